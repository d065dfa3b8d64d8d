//! Extents that are about to be right on the secondary alone: our disk failed a write to them, or a failed flush may
//! have dropped what it had taken.
//!
//! Should the secondary lose power, everything that anybody relies on has to be there afterwards, or still be found
//! here (durability.md, What power loss may take). So an extent is called stale only once the secondary has flushed
//! all that was complete when it began to turn; and from that moment on, turning or stale, a write to it is complete
//! only when the secondary has flushed it. The flush that counts is one that began after the extent turned.

use core::ops::Range;

use hast_format::bitmap::Bitmap;
use hast_format::extension::STALE_RUNS;

use super::Primary;
use super::sync::runs_of;

/// The extents that are turning.
#[derive(Debug)]
pub(super) struct Turning {
    /// Since the flush under way, or the last one, began.
    since: Bitmap,
    /// Before it began.
    before: Bitmap,
}

impl Turning {
    /// None of so many extents.
    pub(super) fn new(extents: u32) -> Turning {
        Turning { since: Bitmap::new(extents), before: Bitmap::new(extents) }
    }

    pub(super) fn contains(&self, extent: u32) -> bool {
        self.since.contains(extent) || self.before.contains(extent)
    }

    /// Whether the flush under way began after `extent` had turned.
    pub(super) fn is_covered(&self, extent: u32) -> bool {
        self.before.contains(extent)
    }

    /// A flush of both nodes begins.
    pub(super) fn flush_begins(&mut self) {
        if !self.since.is_empty() {
            self.before.union(&self.since);
            self.since.clear();
        }
    }

    /// It has ended, and whoever waited for it has had what it wanted.
    pub(super) fn flush_ended(&mut self) {
        if !self.before.is_empty() {
            self.before.clear();
        }
    }

    /// The secondary cannot be relied on.
    pub(super) fn clear(&mut self) {
        self.since.clear();
        self.before.clear();
    }

    /// The secondary lacks what somebody relies on in `extent`.
    pub(super) fn remove(&mut self, extent: u32) {
        self.since.remove(extent);
        self.before.remove(extent);
    }
}

impl Primary {
    /// The connected secondary is about to be the only one that is right in `extents`, other than those in which it
    /// is not.
    pub(super) fn turn(&mut self, extents: Range<u32>) {
        if !self.link.is_up() {
            return;
        }
        for extent in extents {
            if !self.sync.stale.contains(extent) && !self.map.to_synchronise().contains(extent) {
                self.turning.since.insert(extent);
                self.sync.direct_reads_off = true;
            }
        }
    }

    /// What may have been dropped here turns, if the secondary has it.
    pub(super) fn turn_dropped(&mut self) {
        let dropped: Vec<u32> = self.durable.dropped().iter().collect();
        for extent in dropped {
            if !self.turning.contains(extent) {
                self.turn(extent..extent + 1);
            }
        }
    }

    /// Whether `extents`, of which the flush that just ended covers all that is complete, may be called stale. If
    /// there is no room for one more run the whole disk is, and all of it has to turn first: false. It never can while
    /// the secondary lacks something; whoever asks learns that when it tries.
    pub(super) fn may_be_called_stale(&mut self, extents: &Range<u32>) -> bool {
        if self.sync.target {
            return true;
        }
        let mut stale = self.sync.stale.clone();
        for extent in extents.clone() {
            stale.insert(extent);
        }
        let all = 0..stale.len();
        if runs_of(&stale).len() <= STALE_RUNS
            || self.map.to_synchronise().iter().any(|extent| self.is_behind(extent))
            || all.clone().all(|extent| self.turning.is_covered(extent) || stale.contains(extent))
        {
            return true;
        }
        self.turn(all);
        false
    }
}
