//! The local disk's flushes, one at a time, and what becomes of everything that a failed one may have dropped
//! (durability.md, Flush): what the secondary has as well is taken from there, by the flush of both nodes that
//! follows; what only this node has is written again; map and metadata writes under way have failed.

use hast_net::errno::Errno;
use hast_net::handshake::SyncSource;

use super::{Phase, Primary, Purpose};
use crate::types::{DiskOp, DiskResult};

/// What has become of the extents that a failed flush may have dropped, once the secondary has flushed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Became {
    /// All of them count as stale.
    Stale,
    /// But for those that were dropped since that flush began: they have to wait for the next one.
    Later,
    /// The whole disk is to be called stale, and has to wait for the next one.
    NotYet,
    /// Some the secondary does not have either, or they cannot be recorded.
    Impossible,
}

impl Primary {
    /// What may have been dropped here, and had turned before the flush that just ended, is right on the secondary
    /// from now on.
    pub(super) fn dropped_becomes_stale(&mut self) -> Became {
        let mut became = Became::Stale;
        let dropped: Vec<u32> = self.durable.dropped().iter().collect();
        for extent in dropped {
            let extents = extent..extent + 1;
            became = became.max(if self.is_behind(extent) {
                Became::Impossible
            } else if !self.turning.is_covered(extent) {
                Became::Later
            } else if !self.may_be_called_stale(&extents) {
                Became::NotYet
            } else if self.record_stale(extents).is_none() {
                Became::Impossible
            } else {
                self.durable.forget(extent);
                if self.durable.is_paused(self.now) {
                    self.copy_later(extent);
                }
                Became::Stale
            });
        }
        became
    }

    /// Flushes the local disk, once the flush under way has ended.
    pub(super) fn flush_disk(&mut self, why: Purpose) {
        self.durable.flush(why);
        self.begin_disk_flush();
    }

    fn begin_disk_flush(&mut self) {
        if self.durable.begin() {
            self.disk(Purpose::DiskFlush, DiskOp::Flush);
        }
    }

    pub(super) fn disk_flushed(&mut self, result: DiskResult) {
        let whom = self.durable.end(self.now, &result);
        if let Err(error) = result
            && error != Errno::EOPNOTSUPP
        {
            self.may_have_dropped(error, &whom);
        }
        for purpose in whom {
            self.disk_ended(purpose, result.clone());
        }
        self.begin_disk_flush();
    }

    /// A flush has failed, for these.
    fn may_have_dropped(&mut self, error: Errno, whom: &[Purpose]) {
        self.suspect_writes();
        self.spoil_copies(SyncSource::Secondary);
        self.suspect_map(error);
        self.suspect_metadata(error);
        self.turn_dropped();
        if self.has_dropped() {
            if let Phase::Draining(drain) = &mut self.phase {
                drain.flushed = false; // once more, when it is written again
            }
            if self.dropped_alone() {
                self.flush.owe(error);
            }
            if !whom.contains(&Purpose::Flush) {
                // What the secondary has is to be taken from there.
                if self.durable.is_paused(self.now) {
                    self.flush.note_unflushed(self.now);
                } else {
                    self.flush.ask();
                }
            }
        }
    }

    /// Whether something is on this node alone, and perhaps not on its disk.
    fn dropped_alone(&self) -> bool {
        self.durable.dropped().iter().any(|extent| self.is_behind(extent))
    }

    /// Whether something that is right here is perhaps not on the disk, though no flush will say so.
    pub(super) fn has_dropped(&self) -> bool {
        self.durable.dropped().iter().any(|extent| !self.sync.stale.contains(extent))
    }

    /// Writes again what only this node has.
    pub(super) fn kick_dropped(&mut self) {
        if self.durable.dropped().is_empty() && !self.durable.is_rewriting() {
            return;
        }
        let stale: Vec<u32> =
            self.durable.dropped().iter().filter(|extent| self.sync.stale.contains(*extent)).collect();
        for extent in stale {
            self.durable.forget(extent);
        }
        if !matches!(self.phase, Phase::Serving | Phase::Draining(_)) {
            return;
        }
        let key = self.new_key();
        let (map, up) = (&self.map, self.link.is_up());
        let ready = |extent: u32| {
            // What the secondary has too waits for the next flush. M1: the bit first.
            (!up || map.to_synchronise().contains(extent))
                && (map.is_durable(extent..extent + 1) || !map.is_wanted(extent))
        };
        let Some(piece) = self.durable.next_piece(self.now, key, &self.layout, ready) else { return };
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
}
