//! How long each step took when it last passed, kept beside what was built: a name and seconds in each line.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use crate::watch::about;

#[derive(Debug, Default, PartialEq)]
pub(super) struct Times(BTreeMap<String, Duration>);

impl Times {
    /// Those that are kept; empty before the first run.
    pub(super) fn load() -> Times {
        Times::parse(&std::fs::read_to_string(file()).unwrap_or_default())
    }

    /// Lines that cannot be read are left out.
    fn parse(text: &str) -> Times {
        let line = |line: &str| {
            let (name, seconds) = line.split_once(' ')?;
            let seconds = Duration::try_from_secs_f64(seconds.trim().parse().ok()?).ok()?;
            Some((name.to_owned(), seconds))
        };
        Times(text.lines().filter_map(line).collect())
    }

    fn text(&self) -> String {
        self.0.iter().map(|(name, took)| format!("{name} {:.1}\n", took.as_secs_f64())).collect()
    }

    pub(super) fn last(&self, step: &str) -> Option<Duration> {
        self.0.get(step).copied()
    }

    /// A step has passed. That its time cannot be kept is no reason to stop.
    pub(super) fn passed(&mut self, step: &str, took: Duration) {
        self.0.insert(step.to_owned(), took);
        let _ = std::fs::write(file(), self.text());
    }

    /// What these steps will take, as far as that is known.
    pub(super) fn forecast(&self, steps: &[&str]) -> String {
        let known: Vec<Duration> = steps.iter().filter_map(|step| self.last(step)).collect();
        let sum = about(known.iter().sum());
        match steps.len().saturating_sub(known.len()) {
            0 => format!("{sum} last time"),
            unknown if known.is_empty() => format!("the first time for {unknown}"),
            unknown => format!("{sum} last time, and {unknown} that have not passed here yet"),
        }
    }
}

fn file() -> PathBuf {
    crate::tools::target().join("xtask-test-times")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_kept_and_bad_lines_are_not() {
        let times = Times::parse("tests 481.4\nformat 0.6\nshell\nno-std x\ndeny -1\nbuild inf\n\n");
        assert_eq!(times.text(), "format 0.6\ntests 481.4\n");
        assert_eq!(Times::parse(&times.text()), times);
        assert_eq!(times.last("tests"), Some(Duration::from_millis(481_400)));
        assert_eq!(times.last("shell"), None);
    }

    #[test]
    fn what_is_known_is_forecast() {
        let times = Times::parse("tests 481.4\nformat 0.6\n");
        assert_eq!(times.forecast(&["tests", "format"]), "8 min last time");
        assert_eq!(
            times.forecast(&["tests", "deny"]),
            "8 min last time, and 1 that have not passed here yet"
        );
        assert_eq!(times.forecast(&["deny", "fuzz"]), "the first time for 2");
    }
}
