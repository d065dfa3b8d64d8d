//! The demotion of this host in carp(4): what is added to the kernel's counter, `net.inet.carp.demotion`, is taken back, once.
//!
//! The counter is the whole host's and others add to it too. So `<group>.demotion` remembers what this program has added, and
//! before that what it is about to: after a run that was killed in between, the counter itself tells which of both is so.
//! What was remembered before the system was started again has gone with the counter.

use std::fs;
use std::path::Path;
use std::time::Duration;

use crate::system::Ran;

use super::command::Runner;
use super::state;

const COUNTER: &str = "net.inet.carp.demotion";
/// As much as makes an address go to another host that can have it.
const AMOUNT: i64 = 240;

/// What is remembered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Noted {
    /// About to be added, or taken back, while the counter was this.
    Coming(i64),
    Going(i64),
    Added,
}

/// Demotes the host, or takes that back. False: so it was already.
pub(super) fn set(
    runner: &Runner,
    file: &Path,
    demoted: bool,
    uptime: Duration,
    limit: Duration,
) -> Result<bool, String> {
    let host = Host { runner, file, uptime, limit };
    let is = match host.noted() {
        None => false,
        Some(Noted::Added) => true,
        Some(Noted::Coming(before)) => host.counter()? >= before.saturating_add(AMOUNT),
        Some(Noted::Going(before)) => host.counter()? >= before,
    };
    if is == demoted {
        host.note(is.then_some(Noted::Added))?;
        return Ok(false);
    }
    let before = host.counter()?;
    let (coming, amount) =
        if demoted { (Noted::Coming(before), AMOUNT) } else { (Noted::Going(before), -AMOUNT) };
    host.note(Some(coming))?;
    host.add(amount)?;
    host.note(demoted.then_some(Noted::Added))?;
    Ok(true)
}

struct Host<'a> {
    runner: &'a Runner,
    file: &'a Path,
    uptime: Duration,
    limit: Duration,
}

impl Host<'_> {
    fn noted(&self) -> Option<Noted> {
        let text = fs::read_to_string(self.file).ok()?;
        let mut words = text.split_whitespace();
        let (word, at, before) = (words.next()?, words.next()?, words.next()?);
        let at = Duration::from_millis(at.parse().ok()?);
        if at > self.uptime {
            return None;
        }
        let before = before.parse().ok()?;
        match word {
            "coming" => Some(Noted::Coming(before)),
            "going" => Some(Noted::Going(before)),
            "added" => Some(Noted::Added),
            _ => None,
        }
    }

    fn note(&self, noted: Option<Noted>) -> Result<(), String> {
        let write = |word: &str, before: i64| {
            state::write(self.file, &format!("{word} {} {before}", self.uptime.as_millis()))
        };
        let done = match noted {
            None => state::forget(self.file),
            Some(Noted::Coming(before)) => write("coming", before),
            Some(Noted::Going(before)) => write("going", before),
            Some(Noted::Added) => write("added", 0),
        };
        done.map_err(|error| format!("{}: {}", self.file.display(), hast_log::error_text(&error)))
    }

    fn counter(&self) -> Result<i64, String> {
        let (ran, said) = self.runner.ask("sysctl", &["-n", COUNTER], self.limit);
        match (ran, said.trim().parse()) {
            (Ran::Well, Ok(value)) => Ok(value),
            (ran, _) => Err(format!("{COUNTER} cannot be read: {ran:?}")),
        }
    }

    /// What is written is added to what is there.
    fn add(&self, amount: i64) -> Result<(), String> {
        match self.runner.run("sysctl", &[format!("{COUNTER}={amount}")], self.limit) {
            Ran::Well => Ok(()),
            ran => Err(format!("{COUNTER} cannot be changed by {amount}: {ran:?}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    const LIMIT: Duration = Duration::from_secs(600);

    /// sysctl(8) with one counter, which fails to change it, before or after that is done, while `fails` says so.
    const SYSCTL: &str = r#"#!/bin/sh
here=${0%/*}
now=$(cat "$here/counter")
case $1 in
-n) echo "$now" ;;
*)
    fails=$(cat "$here/fails" 2>/dev/null)
    [ "$fails" != before ] || exit 1
    echo "$((now + ${1#*=}))" >"$here/counter"
    [ "$fails" != after ] || exit 1
    ;;
esac
"#;

    struct Stage {
        directory: tempfile::TempDir,
        runner: Runner,
    }

    impl Stage {
        fn new() -> Stage {
            let directory = tempfile::tempdir().unwrap();
            let path = directory.path().join("sysctl");
            fs::write(&path, SYSCTL).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
            // Others demote this host too.
            fs::write(directory.path().join("counter"), "100\n").unwrap();
            let runner = Runner::new(Some(directory.path().into()));
            Stage { directory, runner }
        }

        fn set(&self, demoted: bool, uptime: u64) -> Result<bool, String> {
            let file = self.directory.path().join("g.demotion");
            set(&self.runner, &file, demoted, Duration::from_secs(uptime), LIMIT)
        }

        fn counter(&self) -> i64 {
            fs::read_to_string(self.directory.path().join("counter")).unwrap().trim().parse().unwrap()
        }

        fn fails(&self, when: &str) {
            fs::write(self.directory.path().join("fails"), when).unwrap();
        }
    }

    #[test]
    fn what_is_added_is_taken_back_once() {
        let stage = Stage::new();
        assert_eq!(stage.set(false, 10), Ok(false));
        for (demoted, changes, counter) in
            [(true, true, 340), (true, false, 340), (false, true, 100), (false, false, 100)]
        {
            assert_eq!((stage.set(demoted, 10), stage.counter()), (Ok(changes), counter));
        }
    }

    /// As after a run that was killed.
    #[test]
    fn what_was_broken_off_is_found_out() {
        for when in ["before", "after"] {
            let stage = Stage::new();
            stage.fails(when);
            assert!(stage.set(true, 10).is_err());
            stage.fails("");
            assert!(stage.set(true, 10).is_ok());
            assert_eq!(stage.counter(), 340, "{when}");
            stage.fails(when);
            assert!(stage.set(false, 10).is_err());
            stage.fails("");
            assert!(stage.set(false, 10).is_ok());
            assert_eq!(stage.counter(), 100, "{when}");
        }
    }

    #[test]
    fn a_restart_takes_the_counter_and_what_was_remembered() {
        let stage = Stage::new();
        assert_eq!(stage.set(true, 1000), Ok(true));
        fs::write(stage.directory.path().join("counter"), "0\n").unwrap();
        assert_eq!((stage.set(false, 5), stage.counter()), (Ok(false), 0));
        assert_eq!((stage.set(true, 5), stage.counter()), (Ok(true), 240));
    }
}
