//! Who waits for what: the requests of those stages that somebody looks for, so that no event has to look
//! through all that are under way.

use core::time::Duration;
use std::collections::BTreeSet;

use super::{Half, Request, Stage};
use crate::ranges::Key;
use crate::types::Op;

/// The keys of requests by what they wait for.
#[derive(Debug, Default)]
pub(in crate::primary) struct Waiting {
    /// For the secondary, until then.
    pub(super) parked: BTreeSet<(Duration, Key)>,
    /// For this flush.
    pub(super) flushing: BTreeSet<(u64, Key)>,
    /// For this save of the metadata.
    pub(in crate::primary) saving: BTreeSet<(u64, Key)>,
    /// For the secondary to mark itself.
    pub(super) marking: BTreeSet<Key>,
    /// For the flush after which the secondary can write down what our disk cannot.
    pub(super) relying: BTreeSet<Key>,
    /// For the secondary to write down what our disk cannot.
    telling: BTreeSet<Key>,
    /// Writes and deletes that only this node was given.
    alone: BTreeSet<Key>,
    /// Reads that go to the secondary once it has stored what is complete.
    pub(super) reads: BTreeSet<Key>,
}

impl Waiting {
    /// `key` is in its stage from now on.
    pub(super) fn enter(&mut self, key: Key, request: &Request) {
        match request.stage {
            Stage::Parked(until) => _ = self.parked.insert((until, key)),
            Stage::Flushing(ticket) => _ = self.flushing.insert((ticket, key)),
            Stage::Saving(save) => _ = self.saving.insert((save, key)),
            Stage::Marking => _ = self.marking.insert(key),
            Stage::Relying => _ = self.relying.insert(key),
            Stage::Telling => _ = self.telling.insert(key),
            Stage::Issued if is_alone(request) => _ = self.alone.insert(key),
            Stage::Owed => _ = self.reads.insert(key),
            Stage::Queued | Stage::Map | Stage::Issued | Stage::Completed { .. } | Stage::Repairing => {}
        }
    }

    /// `key` is in its stage no longer.
    pub(super) fn leave(&mut self, key: Key, stage: Stage) {
        match stage {
            Stage::Parked(until) => _ = self.parked.remove(&(until, key)),
            Stage::Flushing(ticket) => _ = self.flushing.remove(&(ticket, key)),
            Stage::Saving(save) => _ = self.saving.remove(&(save, key)),
            Stage::Marking => _ = self.marking.remove(&key),
            Stage::Relying => _ = self.relying.remove(&key),
            Stage::Telling => _ = self.telling.remove(&key),
            Stage::Issued => _ = self.alone.remove(&key),
            Stage::Owed => _ = self.reads.remove(&key),
            Stage::Queued | Stage::Map | Stage::Completed { .. } | Stage::Repairing => {}
        }
    }

    /// Whether a write that only one node was given has not ended.
    pub(super) fn has_unconfirmed(&self) -> bool {
        !(self.flushing.is_empty()
            && self.saving.is_empty()
            && self.marking.is_empty()
            && self.relying.is_empty()
            && self.telling.is_empty()
            && self.alone.is_empty())
    }

    /// Whether a write waits for the secondary to flush, or to write down what our disk cannot.
    pub(super) fn is_about_to_rely(&self) -> bool {
        !self.relying.is_empty() || !self.telling.is_empty()
    }

    /// Whether it says of `key` what the request does.
    pub(in crate::primary) fn agrees(&self, key: Key, request: &Request) -> bool {
        let mut expected = Waiting::default();
        expected.enter(key, request);
        let until = |waiting: &Waiting| waiting.parked.iter().find(|(_, parked)| *parked == key).copied();
        let ticket =
            |waiting: &Waiting| waiting.flushing.iter().find(|(_, flushing)| *flushing == key).copied();
        let save = |waiting: &Waiting| waiting.saving.iter().find(|(_, saving)| *saving == key).copied();
        let says = |waiting: &Waiting| {
            let Waiting { marking, relying, telling, alone, reads, .. } = waiting;
            let sets = [marking, relying, telling, alone, reads];
            let member = sets.map(|keys| keys.contains(&key));
            (until(waiting), ticket(waiting), save(waiting), member)
        };
        says(self) == says(&expected)
    }
}

/// Whether the secondary was not asked to store this.
fn is_alone(request: &Request) -> bool {
    !matches!(request.op, Op::Read { .. }) && request.remote == Half::NotAsked
}
