//! Where the words of a run go: standard error unless it is to be quiet, the system's log, and the file that `log` names.

use std::cell::RefCell;
use std::fs::OpenOptions;
use std::io::Write;
use std::path::PathBuf;

use crate::edge::command::printable;
use crate::system::Priority;

/// A log, about one group or none.
pub(crate) struct Log {
    quiet: bool,
    file: Option<PathBuf>,
    group: Option<String>,
    system: RefCell<hast_log::Syslog>,
}

impl Log {
    pub(crate) fn new(quiet: bool, file: Option<PathBuf>, group: Option<&str>) -> Log {
        Log { quiet, file, group: group.map(str::to_owned), system: RefCell::new(hast_log::Syslog::system()) }
    }

    pub(crate) fn say(&self, priority: Priority, words: &str) {
        let group = self.group.as_ref().map(|group| format!("{group}: ")).unwrap_or_default();
        let (words, pid) = (printable(words), std::process::id());
        let now = if self.quiet && self.file.is_none() { String::new() } else { now() };
        // Whatever cannot be written is in the other places.
        if !self.quiet {
            let line = format!("{now} hast-failover[{pid}]: {group}{words}\n");
            let _ = std::io::stderr().lock().write_all(line.as_bytes());
        }
        if let Some(file) = &self.file {
            let line = format!("{now} [{pid}] {group}{words}\n");
            let file = OpenOptions::new().create(true).append(true).open(file);
            let _ = file.and_then(|mut file| file.write_all(line.as_bytes()));
        }
        let severity = match priority {
            Priority::Error => 3,
            Priority::Warning => 4,
            Priority::Notice => 5,
        };
        let _ = self.system.borrow_mut().send(severity, &group, &words);
    }
}

/// The local time, `2026-11-30 18:10:00`.
fn now() -> String {
    // SAFETY: time(2) writes nothing when it is given no place.
    let seconds = unsafe { libc::time(std::ptr::null_mut()) };
    // SAFETY: tm is plain numbers and a pointer, for which zeros are valid.
    let mut parts: libc::tm = unsafe { std::mem::zeroed() };
    // SAFETY: both point to values of ours that live until the call is over.
    if unsafe { libc::localtime_r(&raw const seconds, &raw mut parts) }.is_null() {
        return seconds.to_string();
    }
    let tm = &parts;
    format!(
        "{:04}-{:02}-{:02} {:02}:{:02}:{:02}",
        i64::from(tm.tm_year).saturating_add(1900),
        i64::from(tm.tm_mon).saturating_add(1),
        tm.tm_mday,
        tm.tm_hour,
        tm.tm_min,
        tm.tm_sec
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_has_the_time_the_process_and_the_group() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("log");
        Log::new(true, Some(file.clone()), Some("g")).say(Priority::Notice, "a\nb\u{1b}c");
        Log::new(true, Some(file.clone()), None).say(Priority::Error, "c");
        let text = std::fs::read_to_string(file).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        let pid = std::process::id();
        assert_eq!(lines[0][19..], format!(" [{pid}] g: a b c"));
        assert_eq!(lines[1][19..], format!(" [{pid}] c"));
        assert!(lines[0].starts_with("20") && lines[0].as_bytes()[10] == b' ', "{text}");
    }
}
