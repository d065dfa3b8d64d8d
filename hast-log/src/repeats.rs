//! Messages that repeat themselves: which of them are shown, and what is told of the others.
//!
//! A disk or a peer that fails thousands of times a second is one fault: its first messages are shown, then they are
//! counted and told of once a minute, and once more when they have stopped coming. Messages are of one kind if they
//! have the same importance, the same prefix, and the same text but for its numbers.

use std::collections::VecDeque;
use std::time::Duration;

use super::Severity;

/// So many messages of a kind are shown in [`WINDOW`]; with the next one the counting begins.
const SHOWN: u32 = 5;
const WINDOW: Duration = Duration::from_secs(10);
/// How often the count is told.
const TELL_EVERY: Duration = Duration::from_secs(60);
/// A kind that has not come for so long has ended.
const QUIET: Duration = Duration::from_secs(10);
/// So many kinds are remembered; of more the one that has not come for longest is forgotten.
const KINDS: usize = 64;

/// What has come lately, by kind. Times are those of one clock that never goes back.
#[derive(Debug, Default)]
pub(crate) struct Repeats {
    /// The one that came last is the last.
    kinds: VecDeque<Kind>,
}

/// A line to be shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Line {
    pub(crate) severity: Severity,
    pub(crate) prefix: String,
    pub(crate) message: String,
}

#[derive(Debug)]
struct Kind {
    /// The last one.
    line: Line,
    /// Its message without its numbers.
    pattern: String,
    /// When the window began, and what has been shown in it.
    since: Duration,
    shown: u32,
    last: Duration,
    held: Option<Held>,
}

/// Messages that are counted instead of being shown.
#[derive(Clone, Copy, Debug)]
struct Held {
    /// Since the count was told.
    count: u64,
    total: u64,
    told: Duration,
}

impl Repeats {
    /// A message has come. Appends what is to be shown of it, and of others that are due.
    pub(crate) fn take(&mut self, now: Duration, line: Line, out: &mut Vec<Line>) {
        let pattern = pattern(&line.message);
        let known = self.kinds.iter().position(|kind| {
            kind.line.severity == line.severity && kind.line.prefix == line.prefix && kind.pattern == pattern
        });
        self.tell(now, out);
        let mut kind = match known.and_then(|at| self.kinds.remove(at)) {
            Some(kind) => Kind { line, last: now, ..kind },
            None => Kind { line, pattern, since: now, shown: 0, last: now, held: None },
        };
        match &mut kind.held {
            Some(held) => {
                held.count = held.count.saturating_add(1);
                held.total = held.total.saturating_add(1);
            }
            None => {
                if now.saturating_sub(kind.since) >= WINDOW {
                    (kind.since, kind.shown) = (now, 0);
                }
                if kind.shown < SHOWN {
                    kind.shown += 1;
                    out.push(kind.line.clone());
                } else {
                    kind.held = Some(Held { count: 1, total: 1, told: now });
                    out.push(kind.told("More of this is counted, and told of once a minute"));
                }
            }
        }
        if self.kinds.len() >= KINDS
            && let Some(oldest) = self.kinds.pop_front()
        {
            out.extend(oldest.end());
        }
        self.kinds.push_back(kind);
    }

    /// Appends what is due.
    pub(crate) fn tell(&mut self, now: Duration, out: &mut Vec<Line>) {
        for kind in &mut self.kinds {
            if now.saturating_sub(kind.last) >= QUIET {
                out.extend(kind.end());
                (kind.held, kind.since, kind.shown) = (None, now, 0);
            } else if let Some(held) = &mut kind.held
                && now.saturating_sub(held.told) >= TELL_EVERY
            {
                let count = std::mem::take(&mut held.count);
                held.told = now;
                out.push(kind.told(&format!("{count} more like this in the last minute")));
            }
        }
    }

    /// Appends what is to be told of everything that was counted: nothing more will come.
    pub(crate) fn end(&mut self, out: &mut Vec<Line>) {
        out.extend(self.kinds.drain(..).filter_map(|kind| kind.end()));
    }

    /// When something will be due, if nothing comes.
    pub(crate) fn due(&self) -> Option<Duration> {
        let due = |kind: &Kind| {
            let held = kind.held.as_ref()?;
            Some(kind.last.saturating_add(QUIET).min(held.told.saturating_add(TELL_EVERY)))
        };
        self.kinds.iter().filter_map(due).min()
    }
}

impl Kind {
    /// The last message, behind what is said of all.
    fn told(&self, of_all: &str) -> Line {
        Line { message: format!("{of_all}: {}", self.line.message), ..self.line.clone() }
    }

    /// What is told when it does not come any more.
    fn end(&self) -> Option<Line> {
        let held = self.held.as_ref()?;
        let total = held.total;
        Some(
            self.told(&format!(
                "No more of this for now; it came {total} times without being shown, at last as"
            )),
        )
    }
}

/// A message without its numbers. What follows a letter is part of a name: `disk7` is not `disk8`.
fn pattern(message: &str) -> String {
    let mut out = String::with_capacity(message.len());
    let mut named = false;
    for c in message.chars() {
        named = c.is_alphabetic() || (named && c.is_ascii_digit());
        if named || !c.is_ascii_digit() {
            out.push(c);
        } else if !out.ends_with('0') {
            out.push('0');
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(message: &str) -> Line {
        Line { severity: Severity::Error, prefix: "[disk0] ".into(), message: message.into() }
    }

    /// What is shown when this comes after so many milliseconds.
    fn take(repeats: &mut Repeats, at: u64, message: &str) -> Vec<String> {
        let mut out = Vec::new();
        repeats.take(Duration::from_millis(at), line(message), &mut out);
        out.into_iter().map(|line| line.message).collect()
    }

    fn tell(repeats: &mut Repeats, at: u64) -> Vec<String> {
        let mut out = Vec::new();
        repeats.tell(Duration::from_millis(at), &mut out);
        out.into_iter().map(|line| line.message).collect()
    }

    #[test]
    fn a_fault_that_goes_on_is_told_of_once_a_minute_and_when_it_ends() {
        let mut repeats = Repeats::default();
        let mut shown = Vec::new();
        // Ten thousand a second for 150 seconds.
        for tick in 0..1_500_000u64 {
            shown.extend(take(&mut repeats, tick / 10, &format!("WRITE({}, 512) failed.", tick * 512)));
        }
        assert_eq!(shown.len(), 5 + 1 + 2, "{shown:?}");
        assert_eq!(shown[0], "WRITE(0, 512) failed.");
        assert!(shown[5].starts_with("More of this is counted"), "{}", shown[5]);
        assert!(shown[6].starts_with("599995 more like this in the last minute: WRITE("), "{}", shown[6]);
        assert_eq!(repeats.due(), Some(Duration::from_millis(149_999 + 10_000)));
        assert_eq!(tell(&mut repeats, 159_998), Vec::<String>::new());
        let end = tell(&mut repeats, 159_999);
        assert_eq!(end.len(), 1);
        assert!(end[0].contains("it came 1499995 times"), "{}", end[0]);
        assert_eq!((repeats.due(), tell(&mut repeats, 500_000)), (None, Vec::new()));
        // It begins again, and is shown again.
        assert_eq!(take(&mut repeats, 600_000, "WRITE(1, 512) failed."), ["WRITE(1, 512) failed."]);
    }

    #[test]
    fn names_are_not_numbers_and_nothing_is_kept_back_at_the_end() {
        assert_eq!(pattern("Resource r12 at 77: READ(5, 16)"), "Resource r12 at 0: READ(0, 0)");
        let mut repeats = Repeats::default();
        for _ in 0..9 {
            take(&mut repeats, 0, "READ(1, 2)");
        }
        let mut out = Vec::new();
        repeats.end(&mut out);
        assert!(out[0].message.contains("it came 4 times"), "{out:?}");
        assert_eq!((out.len(), repeats.due()), (1, None));
    }

    #[test]
    fn what_comes_seldom_is_shown_each_time() {
        let mut repeats = Repeats::default();
        for at in 0..100 {
            assert_eq!(take(&mut repeats, at * 2_001, "x 1"), ["x 1"], "{at}");
        }
        assert_eq!(repeats.due(), None);
    }

    #[test]
    fn kinds_do_not_hide_each_other() {
        let mut repeats = Repeats::default();
        for _ in 0..10 {
            take(&mut repeats, 0, "READ(1, 2)");
        }
        assert_eq!(take(&mut repeats, 1, "WRITE(1, 2)"), ["WRITE(1, 2)"]);
        assert_eq!(take(&mut repeats, 1, "READ(7, 8)"), Vec::<String>::new());
        let mut out = Vec::new();
        let other = Line { prefix: "[disk1] ".into(), ..line("READ(1, 2)") };
        repeats.take(Duration::from_millis(2), other.clone(), &mut out);
        let warning = Line { severity: Severity::Warning, ..line("READ(1, 2)") };
        repeats.take(Duration::from_millis(2), warning.clone(), &mut out);
        assert_eq!(out, [other, warning]);
    }

    #[test]
    fn memory_is_bounded_and_nothing_counted_is_forgotten_without_a_word() {
        let mut repeats = Repeats::default();
        for _ in 0..7 {
            take(&mut repeats, 0, "first");
        }
        let letters = |n: u32| char::from_u32(0x1000 + n).map(String::from).unwrap_or_default();
        let mut shown = Vec::new();
        for n in 0..64 {
            shown.extend(take(&mut repeats, 1, &letters(n)));
        }
        assert_eq!(repeats.kinds.len(), KINDS);
        assert!(
            shown
                .iter()
                .any(|message| message.ends_with("it came 2 times without being shown, at last as: first"))
        );
    }
}
