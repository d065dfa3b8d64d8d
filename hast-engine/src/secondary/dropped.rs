//! This node's flushes, one at a time, and what becomes of everything that a failed one may have dropped: the
//! primary hears of it with its next flush (durability.md, Flush), and it is written again here, because this node
//! may be the only one that has it.

use hast_net::errno::Errno;

use super::{Phase, Purpose, Secondary};
use crate::ranges::Key;
use crate::types::{DiskOp, DiskResult};

impl Secondary {
    /// Flushes the disk, once the flush under way has ended.
    pub(super) fn flush_disk(&mut self, why: Purpose) {
        self.durable.flush(why);
        self.begin_disk_flush();
    }

    fn begin_disk_flush(&mut self) {
        if self.durable.begin() {
            self.recopied.flush_begins();
            self.disk(Purpose::DiskFlush, DiskOp::Flush);
        }
    }

    pub(super) fn disk_flushed(&mut self, result: DiskResult) {
        let whom = self.durable.end(self.now, &result);
        self.recopied.flush_ended(&result);
        if let Err(error) = result
            && error != Errno::EOPNOTSUPP
        {
            self.may_have_dropped(error);
        }
        for purpose in whom {
            self.disk_ended(purpose, result.clone());
        }
        self.begin_disk_flush();
    }

    /// A flush has failed: of what is being written now nobody will know either.
    fn may_have_dropped(&mut self, error: Errno) {
        self.flush_failed = Some(error);
        for purpose in self.ops.values() {
            if let Purpose::Request(key) = purpose
                && let Some(request) = self.requests.get_mut(key)
            {
                request.suspect = true;
            }
        }
        if !self.durable.dropped().is_empty() {
            self.doubt();
        }
        if self.saving.is_some() {
            self.doubtful = Some(error);
        }
        self.own_map_may_be_dropped(error);
    }

    /// Writes again what may have been dropped.
    pub(super) fn kick_dropped(&mut self) {
        if matches!(self.phase, Phase::Admitting | Phase::Ended) {
            return;
        }
        let key = Key(self.next_key + 1);
        let Some(piece) = self.durable.next_piece(self.now, key, &self.layout, |_| true) else { return };
        self.next_key += 1;
        if self.ranges.insert(key, piece, false) {
            self.dropped_ready();
        }
    }

    pub(super) fn dropped_ready(&mut self) {
        if let Some(op) = self.durable.read(&self.layout) {
            self.disk(Purpose::DroppedRead, op);
        }
    }

    pub(super) fn dropped_read(&mut self, result: DiskResult) {
        match self.durable.write(&self.layout, result) {
            Some(op) => self.disk(Purpose::DroppedWrite, op),
            None => self.dropped_ended(false),
        }
    }

    pub(super) fn dropped_ended(&mut self, well: bool) {
        if let Some(key) = self.durable.piece_ended(self.now, well) {
            self.release(key);
        }
    }

    /// Whether something is perhaps not on the disk, though no flush will say so.
    pub(super) fn has_dropped(&self) -> bool {
        !self.durable.dropped().is_empty() || self.durable.is_rewriting()
    }
}
