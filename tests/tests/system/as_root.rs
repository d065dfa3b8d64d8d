//! What shows only when hastd is started by root on a host with a user `hast` and a syslog daemon. The host is
//! left alone: each hastd gets a private view of /etc/passwd, /etc/group and /dev.

use std::io::ErrorKind;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use hast_tests::{
    Context, Failure, LONG, Loopback, Node, Outcome, Pair, Run, SHORT, Setup, wait_for, wait_until,
};
use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;

use crate::daemon::Background;
use crate::volume::Volume;

/// Nobody's numbers on any host, one would hope.
const UID: u32 = 64_845;
const GID: u32 = 64_846;

/// Arguments: the directory with what is to be seen, then the program.
const PRIVATE: &str = r#"
here=$1
shift
mount --bind "$here/passwd" /etc/passwd
mount --bind "$here/group" /etc/group
mount -t tmpfs none "$here/dev"
for device in null zero full random urandom; do
    : >"$here/dev/$device"
    mount --bind "/dev/$device" "$here/dev/$device"
done
ln -s "$here/syslog" "$here/dev/log"
mount --move "$here/dev" /dev
exec "$@"
"#;

/// A host as a program sees it: with a user `hast`, and with a syslog daemon if somebody listens at `syslog`.
struct Host(PathBuf);

impl Host {
    /// None where there can be none: only root may do this. In CI that is a failure.
    fn new(directory: &Path) -> Result<Option<Host>, Failure> {
        let possible = nix::unistd::geteuid().is_root()
            && Run::of(Command::new("unshare").args(["--mount", "--propagation", "private", "true"]))
                .is_ok_and(|run| run.code == 0);
        if !possible {
            if hast_tests::tools::in_ci() {
                return Failure::because("root, unshare(1) and private mounts are needed");
            }
            eprintln!("SKIPPED: only root can give a program mounts of its own");
            return Ok(None);
        }
        let here = directory.join("host");
        for part in ["home", "dev"] {
            std::fs::create_dir_all(here.join(part))?;
        }
        std::fs::write(here.join("home/only-here"), "")?;
        let more = |file: &str, line: String| {
            let old: String = std::fs::read_to_string(Path::new("/etc").join(file))
                .context(file)?
                .lines()
                .filter(|line| !line.starts_with("hast:"))
                .map(|line| format!("{line}\n"))
                .collect();
            std::fs::write(here.join(file), format!("{old}{line}\n")).context(file)
        };
        more("passwd", format!("hast:x:{UID}:{GID}::{}:/bin/false", here.join("home").display()))?;
        more("group", format!("hast:x:{GID}:"))?;
        Ok(Some(Host(here)))
    }

    fn home(&self) -> PathBuf {
        self.0.join("home")
    }

    /// The same command on this host.
    fn command(&self, command: &Command) -> Command {
        let mut private = Command::new("unshare");
        private.args(["--mount", "--propagation", "private", "sh", "-ec", PRIVATE, "sh"]).arg(&self.0);
        private.arg(command.get_program()).args(command.get_args());
        for (name, value) in command.get_envs() {
            if let Some(value) = value {
                private.env(name, value);
            }
        }
        private
    }

    /// What the syslog daemon receives from now on.
    fn syslog(&self) -> Result<Receiver<String>, Failure> {
        let path = self.0.join("syslog");
        let socket = UnixDatagram::bind(&path)?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o666))?;
        socket.set_read_timeout(Some(Duration::from_secs(1)))?;
        let (sender, receiver) = channel();
        std::thread::spawn(move || {
            let mut buffer = vec![0; 65536];
            // Until nobody wants to know any more.
            loop {
                match socket.recv(&mut buffer) {
                    Ok(length) => {
                        let line = String::from_utf8_lossy(&buffer[..length]).into_owned();
                        if sender.send(line).is_err() {
                            return;
                        }
                    }
                    Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                        if sender.send(String::new()).is_err() {
                            return;
                        }
                    }
                    Err(_) => return,
                }
            }
        });
        Ok(receiver)
    }
}

/// A hastd that goes with the test.
struct Daemon(Child);

impl Daemon {
    /// Starts a node's hastd in the foreground on this host.
    fn start(host: &Host, node: &Node) -> Result<Daemon, Failure> {
        let log = std::fs::File::create(node.directory().join("log"))?;
        let mut command = host.command(&node.hastd(&["-F", "-d"]));
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).process_group(0);
        let daemon = Daemon(command.spawn()?);
        wait_until("hastd to answer", SHORT, || Ok(node.hastctl(&["status"])?.code == 0))?;
        Ok(daemon)
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.0.id()).unwrap())
    }

    fn stop(mut self) -> Outcome {
        kill(self.pid(), Signal::SIGTERM)?;
        let status = wait_for("hastd to end", LONG, || Ok(self.0.try_wait()?))?;
        if status.success() { Ok(()) } else { Failure::because(format!("hastd ended with {status}")) }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if matches!(self.0.try_wait(), Ok(None)) {
            let _ = killpg(self.pid(), Signal::SIGKILL);
            let _ = self.0.wait();
        }
    }
}

/// A field of /proc/<pid>/status, its values parted by one blank.
fn status(pid: Pid, field: &str) -> Result<String, Failure> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).context(pid)?;
    let value = text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':')).context(field)?;
    Ok(value.split_whitespace().collect::<Vec<_>>().join(" "))
}

/// Both kinds of workers give up everything that is root's, and go on working; the supervisor, which opens
/// and connects for them, stays what it is.
#[test]
fn workers_are_confined_to_the_home_of_their_user() -> Outcome {
    let pair = Pair::blank(Setup::default())?;
    let Some(host) = Host::new(pair.directory())? else { return pair.finish() };
    pair.create()?;
    let (a, b) = (Daemon::start(&host, &pair.a)?, Daemon::start(&host, &pair.b)?);
    pair.b.role("secondary", "disk0")?;
    pair.a.role("primary", "disk0")?;
    pair.a.wait_in_step("disk0")?;
    let mut volume = Volume::fresh(&pair.a, "disk0")?;
    volume.scribble(1, 0, 1 << 20)?;
    for (node, daemon) in [(&pair.a, &a), (&pair.b, &b)] {
        let worker = node.wait_worker("disk0")?;
        node.wait_log("Privileges successfully dropped.")?;
        for (field, expected) in [
            ("Uid", [UID; 4].map(|id| id.to_string()).join(" ")),
            ("Gid", [GID; 4].map(|id| id.to_string()).join(" ")),
            ("Groups", GID.to_string()),
            ("CapInh", "0".repeat(16)),
            ("CapPrm", "0".repeat(16)),
            ("CapEff", "0".repeat(16)),
            ("CapAmb", "0".repeat(16)),
        ] {
            assert_eq!(status(worker, field)?, expected, "{field} of node {}'s worker", node.name());
        }
        for place in ["root", "cwd"] {
            assert_eq!(std::fs::read_link(format!("/proc/{worker}/{place}"))?, host.home(), "{place}");
        }
        assert!(Path::new(&format!("/proc/{worker}/root/only-here")).exists());
        assert_eq!(status(daemon.pid(), "Uid")?, "0 0 0 0");
    }
    // Nothing that a worker does later needs what it gave up: another connection, another worker.
    pair.link.cut();
    pair.a.wait_status("disk0", "degraded")?;
    volume.scribble(2, 1 << 20, 1 << 20)?;
    pair.link.restore();
    pair.a.wait_in_step("disk0")?;
    let worker = pair.a.wait_worker("disk0")?;
    kill(worker, Signal::SIGKILL)?;
    wait_for("another worker", SHORT, || Ok(pair.a.worker("disk0")?.filter(|other| *other != worker)))?;
    pair.a.wait_in_step("disk0")?;
    let volume = volume.moved_to(&pair.a, "disk0")?;
    volume.verify()?;
    volume.flush()?;
    volume.verify_provider(&pair.b, "disk0")?;
    a.stop()?;
    b.stop()?;
    pair.finish()
}

/// Lines that reach the syslog daemon: all so far, and a wait for the next one that matters.
struct Lines {
    receiver: Receiver<String>,
    seen: Vec<String>,
}

impl Lines {
    fn wait(&mut self, line: &str) -> Outcome {
        let result = wait_until(&format!("{line:?} in syslog"), SHORT, || {
            self.seen.extend(self.receiver.try_iter().filter(|line| !line.is_empty()));
            Ok(self.seen.iter().any(|seen| seen.starts_with(line)))
        });
        result.context(self.seen.join("\n"))
    }
}

/// In the background everything goes to syslog: facility daemon, a priority that says how bad it is, the
/// program's name and the process that speaks, resource and role; also from a worker that sees no /dev/log any
/// more, and also what a panic says.
#[test]
fn a_daemon_in_the_background_speaks_through_syslog() -> Outcome {
    let mut pair = Pair::blank(Setup::default())?;
    let Some(host) = Host::new(pair.directory())? else { return pair.finish() };
    let nobody = Loopback::reserve()?;
    pair.setup.resources[0].remote_a = Some(nobody.conf());
    pair.setup.resources[0].remote_b = Some("none".to_string());
    pair.write_conf()?;
    pair.create()?;
    let mut lines = Lines { receiver: host.syslog()?, seen: Vec::new() };
    let started = Run::of(&mut host.command(&pair.a.hastd(&[])))?;
    assert_eq!(started.code, 0, "{}{}", started.stdout, started.stderr);
    let pid: i32 = std::fs::read_to_string(pair.a.pidfile())?.trim().parse()?;
    let daemon = Background(Pid::from_raw(pid));
    pair.a.role("primary", "disk0")?;
    let worker = pair.a.wait_worker("disk0")?;
    lines.wait(&format!("<30>hastd[{pid}]: Started successfully, running protocol version 2."))?;
    lines.wait(&format!("<30>hastd[{pid}]: [disk0] (init) Role changed to primary."))?;
    lines.wait(&format!("<30>hastd[{worker}]: [disk0] (primary) Privileges successfully dropped."))?;
    let refused = format!("Unable to connect to {}: Connection refused.", nobody.conf());
    lines.wait(&format!("<28>hastd[{worker}]: [disk0] (primary) {refused}"))?;
    kill(worker, Signal::SIGKILL)?;
    let killed = format!("Worker process killed (pid={worker}, signal=9).");
    lines.wait(&format!("<27>hastd[{pid}]: [disk0] (primary) {killed}"))?;
    pair.a.ctl(&["stop"])?;
    daemon.wait_gone()?;
    lines.wait(&format!("<30>hastd[{pid}]: Termination signal received, exiting."))?;
    for line in &lines.seen {
        // The priority says it; debug output nobody has asked for.
        assert!(line.starts_with('<') && !line.starts_with("<31>"), "{line}");
        assert!(
            !line.contains("[INFO]") && !line.contains("[ERROR]") && !line.contains("[WARNING]"),
            "{line}"
        );
    }
    // Only programs with assertions can be made to panic.
    if cfg!(debug_assertions) {
        let mut command = pair.b.hastd(&[]);
        command.env("HASTD_TEST_PANIC", "1");
        assert_eq!(Run::of(&mut host.command(&command))?.code, 0);
        let pid: i32 = std::fs::read_to_string(pair.b.pidfile())?.trim().parse()?;
        let daemon = Background(Pid::from_raw(pid));
        pair.b.role("primary", "disk0")?;
        wait_until("the word of a worker that panics", SHORT, || {
            lines.seen.extend(lines.receiver.try_iter());
            Ok(lines.seen.iter().any(|line| {
                line.starts_with("<26>hastd[") && line.contains("]: [disk0] (primary) panicked at hastd/src/")
            }))
        })
        .context(lines.seen.join("\n"))?;
        pair.b.ctl(&["stop"])?;
        daemon.wait_gone()?;
    }
    pair.finish()
}
