//! Hooks: the administrator's programs, told of events (spec/behaviour.md, Events and hooks).
//!
//! They are started and never waited for; what became of them is logged. Besides the original's arguments they
//! have the facts in their environment.

use std::ffi::OsStr;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// How often a hook that goes on running is reported.
const REPORT_EVERY: Duration = Duration::from_secs(60);

/// The hooks that run.
#[derive(Debug)]
pub(super) struct Hooks {
    /// In the background hooks have `/dev/null` for standard input, output and error.
    background: bool,
    running: Vec<Hook>,
}

/// What a worker says of its resource at the moment of an event.
#[derive(Clone, Copy, Debug)]
pub(super) struct Condition {
    /// Both connections are up.
    pub(super) complete: bool,
    /// Bytes of the extents that are being written or still to synchronise; 0 on a secondary.
    pub(super) dirty: u64,
}

/// What a hook finds in its environment.
#[derive(Clone, Copy, Debug)]
pub(super) struct Facts<'a> {
    pub(super) resource: &'a str,
    pub(super) event: &'a str,
    /// The role now.
    pub(super) role: &'a str,
    /// Absent if no worker can have said anything yet.
    pub(super) condition: Option<Condition>,
}

impl Facts<'_> {
    fn variables(&self) -> [(&'static str, String); 5] {
        let status = self.condition.map(|condition| if condition.complete { "complete" } else { "degraded" });
        let dirty = self.condition.map(|condition| condition.dirty.to_string());
        let known = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
        [
            ("HAST_RESOURCE", self.resource.to_owned()),
            ("HAST_EVENT", self.event.to_owned()),
            ("HAST_ROLE", self.role.to_owned()),
            ("HAST_STATUS", known(status.map(str::to_owned))),
            ("HAST_DIRTY", known(dirty)),
        ]
    }
}

#[derive(Debug)]
struct Hook {
    child: Child,
    /// Program and arguments as they are logged.
    command: String,
    started: Instant,
    report: Instant,
}

impl Hooks {
    /// None yet.
    pub(super) fn new(background: bool) -> Hooks {
        Hooks { background, running: Vec::new() }
    }

    /// Starts `program` with `arguments`, and `facts` in its environment. Descriptors above 2 are closed by the
    /// exec (all of ours are marked so), and the library empties the signal mask.
    pub(super) fn run(&mut self, now: Instant, program: &Path, arguments: &[&str], facts: &Facts<'_>) {
        let shown = std::iter::once(program.display().to_string())
            .chain(arguments.iter().map(|argument| (*argument).to_owned()))
            .collect::<Vec<_>>()
            .join(" ");
        let mut command = Command::new(without_search(program));
        command.arg0(program).args(arguments.iter().map(OsStr::new)).envs(facts.variables());
        if self.background {
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        }
        match command.spawn() {
            Ok(child) => {
                log::debug!("Hook started (pid={}, cmd=[{shown}]).", child.id());
                self.running.push(Hook { child, command: shown, started: now, report: now + REPORT_EVERY });
            }
            Err(error) => log::error!("Unable to execute [{shown}]: {}.", hast_log::error_text(&error)),
        }
    }

    /// Takes note of the hooks that ended.
    pub(super) fn reap(&mut self) {
        self.running.retain_mut(|hook| match hook.child.try_wait() {
            Ok(None) => true,
            Ok(Some(status)) => {
                report_end(hook, status);
                false
            }
            Err(error) => {
                log::error!(
                    "Unable to learn about hook (pid={}, cmd=[{}]): {}.",
                    hook.child.id(),
                    hook.command,
                    hast_log::error_text(&error)
                );
                false
            }
        });
    }

    /// Reports the hooks that still run.
    pub(super) fn report(&mut self, now: Instant) {
        for hook in self.running.iter_mut().filter(|hook| hook.report <= now) {
            log::warn!(
                "Hook has been running for {} seconds (pid={}, cmd=[{}]).",
                now.saturating_duration_since(hook.started).as_secs(),
                hook.child.id(),
                hook.command
            );
            hook.report = now + REPORT_EVERY;
        }
    }

    /// When [`Hooks::report`] has something to do next.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.running.iter().map(|hook| hook.report).min()
    }
}

fn report_end(hook: &Hook, status: ExitStatus) {
    let (pid, command) = (hook.child.id(), &hook.command);
    match (status.code(), status.signal()) {
        (Some(0), _) => log::debug!("Hook exited gracefully (pid={pid}, cmd=[{command}])."),
        (Some(code), _) => {
            log::error!("Hook exited ungracefully (pid={pid}, exitcode={code}, cmd=[{command}]).");
        }
        (None, signal) => {
            let signal = signal.unwrap_or_default();
            log::error!("Hook was killed (pid={pid}, signal={signal}, cmd=[{command}]).");
        }
    }
}

/// A name without a slash is a file in the current directory, not something to look for in PATH.
fn without_search(program: &Path) -> PathBuf {
    if program.as_os_str().as_encoded_bytes().contains(&b'/') {
        program.to_owned()
    } else {
        Path::new(".").join(program)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn a_name_without_slash_is_not_looked_for() {
        assert_eq!(without_search(Path::new("true")), Path::new("./true"));
        assert_eq!(without_search(Path::new("bin/true")), Path::new("bin/true"));
        assert_eq!(without_search(Path::new("/bin/true")), Path::new("/bin/true"));
    }

    #[test]
    fn what_is_not_known_is_a_dash() {
        let facts = Facts { resource: "disk0", event: "role", role: "secondary", condition: None };
        let expected = ["disk0", "role", "secondary", "-", "-"];
        assert_eq!(facts.variables().map(|(_, value)| value), expected);
        let condition = Some(Condition { complete: true, dirty: 0 });
        let [.., (_, status), (_, dirty)] = Facts { condition, ..facts }.variables();
        assert_eq!((status.as_str(), dirty.as_str()), ("complete", "0"));
    }

    #[test]
    fn arguments_arrive_and_ends_are_noticed() {
        let directory = tempfile::tempdir().unwrap();
        let output = directory.path().join("output");
        let variables = "$HAST_RESOURCE|$HAST_EVENT|$HAST_ROLE|$HAST_STATUS|$HAST_DIRTY";
        let script = format!("read x; echo \"$0|$*|$x|{variables}\" > {}", output.display());
        let condition = Some(Condition { complete: false, dirty: 1 << 21 });
        let facts = Facts { resource: "disk0", event: "role", role: "primary", condition };

        let mut hooks = Hooks::new(true);
        let now = Instant::now();
        hooks.run(now, Path::new("/bin/sh"), &["-c", &script, "role", "disk0", "init", "primary"], &facts);
        hooks.run(now, Path::new("/nonexistent/hook"), &["connect", "disk0"], &facts);
        hooks.run(now, Path::new("true"), &["connect", "disk0"], &facts);
        assert_eq!(hooks.running.len(), 1);
        assert_eq!(hooks.deadline(), Some(now + REPORT_EVERY));
        hooks.report(now + REPORT_EVERY);
        assert_eq!(hooks.deadline(), Some(now + 2 * REPORT_EVERY));

        let give_up = Instant::now() + Duration::from_secs(30);
        while !hooks.running.is_empty() {
            assert!(Instant::now() < give_up);
            hooks.reap();
            std::thread::yield_now();
        }
        assert_eq!(
            fs::read_to_string(&output).unwrap(),
            "role|disk0 init primary||disk0|role|primary|degraded|2097152\n"
        );
    }
}
