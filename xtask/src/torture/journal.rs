//! Everything that happened in a round, to be read after a failure.

use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

use hast_sim::client::WriteId;
use hast_tests::{Context, Failure};

use super::record::{End, What};

/// Lines kept at most; a round has far fewer unless something runs wild.
const MOST: usize = 2_000_000;

/// The lines, each with its time since the beginning of the run.
#[derive(Default)]
pub(super) struct Journal(Vec<(Duration, Text)>);

enum Text {
    Said(String),
    Begun(WriteId, What),
    Ended(WriteId, &'static str),
}

impl Journal {
    /// The operator says what happens.
    pub(super) fn said(&mut self, at: Duration, text: impl Into<String>) {
        self.note(at, Text::Said(text.into()));
    }

    /// A request begins.
    pub(super) fn begun(&mut self, at: Duration, id: WriteId, what: &What) {
        self.note(at, Text::Begun(id, what.clone()));
    }

    /// It has ended.
    pub(super) fn ended(&mut self, at: Duration, id: WriteId, end: &End) {
        let word = match end {
            End::Good(_) => "done",
            End::Refused(_) => "refused",
            End::Lost => "lost",
        };
        self.note(at, Text::Ended(id, word));
    }

    /// Begins again: all that was is in order.
    pub(super) fn clear(&mut self) {
        self.0.clear();
    }

    /// Writes everything to a file.
    ///
    /// # Errors
    /// It cannot be written.
    pub(super) fn write(&self, path: &Path) -> Result<(), Failure> {
        let mut out = String::new();
        for (at, text) in &self.0 {
            // Writing to a string cannot fail.
            let _ = write!(out, "{:>12.6} ", at.as_secs_f64());
            let _ = match text {
                Text::Said(text) => writeln!(out, "# {text}"),
                Text::Begun(id, what) => writeln!(out, "{id} begins {what:?}"),
                Text::Ended(id, how) => writeln!(out, "{id} {how}"),
            };
        }
        std::fs::write(path, out).context(path.display())
    }

    fn note(&mut self, at: Duration, text: Text) {
        if self.0.len() < MOST {
            self.0.push((at, text));
        }
    }
}
