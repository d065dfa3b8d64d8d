//! Other programs: each has a limit, after which it is killed with its whole process group. None inherits a lock, a pipe or
//! a descriptor of ours: what it prints goes to a file in memory that nobody waits on, its input and directory are nobody's.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use crate::system::Ran;

/// After this long a program that was asked to end is killed.
const GRACE: Duration = Duration::from_secs(5);
/// How long a program may take to be gone that was killed; one that hangs in the kernel is not waited for.
const GONE: Duration = Duration::from_secs(1);
/// The longest pause between two looks.
const PAUSE: Duration = Duration::from_millis(20);
/// Bytes of what a program printed.
const KEPT: u64 = 256 << 10;

/// The variables of ours, which nobody else is given.
pub(crate) mod variable {
    /// When the request was made, as `hast-failover time` prints it.
    pub(crate) const TIME: &str = "HAST_FAILOVER_TIME";
    /// Set for the part that works in the background.
    pub(crate) const BACKGROUND: &str = "HAST_FAILOVER_BACKGROUND";
}

/// What runs programs.
pub(crate) struct Runner {
    path: OsString,
}

/// Where the output of a program goes.
enum Output {
    Nowhere,
    Kept { out: File, err: File },
}

impl Runner {
    /// The caller's PATH and the usual directories after it.
    pub(crate) fn new(path: Option<OsString>) -> Runner {
        let mut all = path.unwrap_or_default();
        if !all.is_empty() {
            all.push(":");
        }
        all.push("/usr/local/sbin:/usr/local/bin:/usr/sbin:/sbin:/usr/bin:/bin");
        Runner { path: all }
    }

    pub(crate) fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(program);
        command.env("PATH", &self.path).current_dir("/").stdin(Stdio::null());
        command.env_remove(variable::TIME).env_remove(variable::BACKGROUND);
        command
    }

    /// Whether a program is there.
    pub(crate) fn has(&self, program: &str) -> bool {
        use std::os::unix::fs::PermissionsExt;
        std::env::split_paths(&self.path).any(|directory| {
            std::fs::metadata(directory.join(program))
                .is_ok_and(|file| file.is_file() && file.permissions().mode() & 0o111 != 0)
        })
    }

    /// Runs a program; keeps what it prints for the case that it fails.
    pub(crate) fn run(&self, program: &str, arguments: &[impl AsRef<OsStr>], limit: Duration) -> Ran {
        self.ask(program, arguments, limit).0
    }

    /// Runs a program; gives what it printed to its standard output too.
    pub(crate) fn ask(
        &self,
        program: &str,
        arguments: &[impl AsRef<OsStr>],
        limit: Duration,
    ) -> (Ran, String) {
        let kept = file("stdout").and_then(|out| Ok(Output::Kept { out, err: file("stderr")? }));
        match kept {
            Ok(output) => self.start(program, arguments, limit, output),
            Err(error) => (Ran::Not(format!("{program}: {error}")), String::new()),
        }
    }

    /// Runs a program whose output goes nowhere.
    pub(crate) fn run_silent(&self, program: &str, arguments: &[impl AsRef<OsStr>], limit: Duration) -> Ran {
        self.start(program, arguments, limit, Output::Nowhere).0
    }

    fn start(
        &self,
        program: &str,
        arguments: &[impl AsRef<OsStr>],
        limit: Duration,
        output: Output,
    ) -> (Ran, String) {
        let not = |error: std::io::Error| {
            (Ran::Not(format!("{program}: {}", hast_log::error_text(&error))), String::new())
        };
        let mut command = self.command(program);
        command.args(arguments).process_group(0);
        match &output {
            Output::Nowhere => drop(command.stdout(Stdio::null()).stderr(Stdio::null())),
            Output::Kept { out, err } => match (out.try_clone(), err.try_clone()) {
                (Ok(out), Ok(err)) => drop(command.stdout(out).stderr(err)),
                (Err(error), _) | (_, Err(error)) => return not(error),
            },
        }
        let mut child = match command.spawn() {
            Ok(child) => child,
            Err(error) => return not(error),
        };
        let status = match wait(&mut child, limit) {
            Some(status) => status,
            None => {
                kill_group(&mut child);
                return (Ran::TooLong(limit), String::new());
            }
        };
        let (out, err) = match output {
            Output::Nowhere => (String::new(), String::new()),
            Output::Kept { mut out, mut err } => (text(&mut out), text(&mut err)),
        };
        if status.success() {
            return (Ran::Well, out);
        }
        let said = printable(&format!("{out}{err}"));
        (Ran::Badly(number(status), said), out)
    }
}

fn file(name: &str) -> std::io::Result<File> {
    Ok(File::from(memfd_create(name, MFdFlags::MFD_CLOEXEC)?))
}

/// 128 and the signal's number for a program that was killed, as a shell has it.
fn number(status: ExitStatus) -> i32 {
    status.code().unwrap_or_else(|| status.signal().unwrap_or(0).saturating_add(128))
}

/// Waits until it ends: none if it does not in time.
fn wait(child: &mut Child, limit: Duration) -> Option<ExitStatus> {
    let begin = Instant::now();
    let mut pause = Duration::from_millis(1);
    loop {
        // What cannot be asked, after its end, has ended.
        match child.try_wait() {
            Ok(Some(status)) => return Some(status),
            Ok(None) => {}
            Err(_) => return None,
        }
        if begin.elapsed() >= limit {
            return None;
        }
        std::thread::sleep(pause);
        pause = PAUSE.min(pause.saturating_mul(2));
    }
}

fn kill_group(child: &mut Child) {
    let Ok(id) = i32::try_from(child.id()) else { return };
    // It has not been waited for, so that its number is no other's.
    let group = Pid::from_raw(id);
    let _ = killpg(group, Signal::SIGTERM);
    if wait(child, GRACE).is_some() {
        // Some of its children may be left, and its group with them.
        let _ = killpg(group, Signal::SIGKILL);
        return;
    }
    let _ = killpg(group, Signal::SIGKILL);
    let _ = wait(child, GONE);
}

fn text(file: &mut File) -> String {
    let mut bytes = Vec::new();
    let read = file.seek(SeekFrom::Start(0)).and_then(|_| file.take(KEPT).read_to_end(&mut bytes));
    // What cannot be read is not told; the status counts.
    drop(read);
    String::from_utf8_lossy(&bytes).into_owned()
}

/// In one line.
pub(crate) fn printable(text: &str) -> String {
    let clean = |c: char| if c.is_control() { ' ' } else { c };
    text.trim().chars().map(clean).take(2000).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sh(script: &str, limit: Duration) -> (Ran, String) {
        let runner = Runner::new(std::env::var_os("PATH"));
        runner.ask("sh", &["-c", script], limit)
    }

    const LONG: Duration = Duration::from_secs(600);

    #[test]
    fn a_program_ends_and_has_said_something() {
        assert_eq!(sh("echo yes; echo no >&2", LONG), (Ran::Well, "yes\n".to_owned()));
        let (ran, out) = sh("echo a; echo b >&2; exit 7", LONG);
        assert_eq!((ran, out.as_str()), (Ran::Badly(7, "a b".to_owned()), "a\n"));
        assert_eq!(sh("kill -9 $$", LONG).0, Ran::Badly(137, String::new()));
        let runner = Runner::new(None);
        assert!(matches!(runner.run("hast-no-such-program", &[""; 0], LONG), Ran::Not(_)));
        assert!(runner.has("sh") && !runner.has("hast-no-such-program"));
    }

    /// The child of the child has its output too, and nobody waits for it.
    #[test]
    fn what_goes_on_in_the_background_is_not_waited_for() {
        let begin = Instant::now();
        let (ran, out) = sh("sleep 500 & echo $!", LONG);
        assert_eq!(ran, Ran::Well);
        assert!(begin.elapsed() < LONG / 2);
        let pid = Pid::from_raw(out.trim().parse().unwrap());
        nix::sys::signal::kill(pid, Signal::SIGKILL).unwrap();
    }

    /// Also one that ignores SIGTERM, together with its children.
    #[test]
    fn a_program_that_takes_too_long_goes_with_its_group() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("child");
        let script = format!("trap '' TERM; sleep 500 & echo $! >{}; wait", file.display());
        // On a busy machine the shell needs longer to come that far.
        let child = [300, 3_000, 30_000].map(Duration::from_millis).into_iter().find_map(|limit| {
            assert_eq!(sh(&script, limit).0, Ran::TooLong(limit));
            std::fs::read_to_string(&file).ok()?.trim().parse().ok()
        });
        let pid = Pid::from_raw(child.unwrap());
        // The process that inherits it may take its time to reap it.
        let state = || std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let gone = || nix::sys::signal::kill(pid, None).is_err() || state().contains(") Z ");
        while !gone() {
            std::thread::sleep(PAUSE);
        }
    }
}
