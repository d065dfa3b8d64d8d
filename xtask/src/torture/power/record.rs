//! What the clients did and were told, in the histories of both nodes: that of the node which serves, and that of one
//! which served before, when they have parted.

use std::time::Duration;

use hast_sim::client::WriteId;

use super::ledger::Ledger;
use crate::torture::record::{Book, Open, What};

/// The record of the node that serves.
pub(super) type Record = crate::torture::record::Record<Ledger>;

impl Book for Ledger {
    fn begun(&mut self, now: Duration, id: WriteId, what: &What) {
        match what {
            What::Read(_) => {}
            What::Flush => self.begin_flush(now),
            What::Write(range, _) => self.begin(now, id, Some(id), range.clone()),
            What::Zeroes(range) => self.begin(now, id, Some(0), range.clone()),
            What::Trim(range) => self.begin(now, id, None, range.clone()),
        }
    }

    fn ended(&mut self, now: Duration, open: &Open, good: bool) {
        match &open.what {
            What::Read(_) => {}
            What::Flush => self.end_flush(now, open.invoked, good),
            What::Write(_, through) => self.end(now, open.id, good, *through),
            What::Zeroes(_) | What::Trim(_) => self.end(now, open.id, good, false),
        }
    }

    fn check(&self, at: usize, bytes: &[u8], begun: Duration) -> Result<(), String> {
        Ledger::check(self, at, bytes, begun)
    }

    fn seen(&mut self, at: usize, bytes: &[u8], now: Duration) {
        Ledger::seen(self, at, bytes, now);
    }
}
