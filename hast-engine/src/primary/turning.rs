//! Extents that are about to be right on the secondary alone: our disk failed a write to them, could not be repaired
//! there, or a failed flush may have dropped what it had taken.
//!
//! Should the secondary lose power, everything that anybody relies on has to be there afterwards, or still be found
//! here (durability.md S1, What power loss may take). So an extent is called stale only once the secondary has flushed
//! all that was complete when it began to turn; and from that moment on, turning or stale, a write to it is complete
//! only when the secondary has flushed it. The flush that counts is one that began after the extent turned.
//!
//! A turning extent is not in the sync set: until it is stale nothing is copied to it or from it. If the secondary
//! goes away or fails first, our copy is the right one, as it was.

use core::ops::Range;

use hast_format::bitmap::Bitmap;
use hast_format::extension::{STALE_RUNS, runs_of};

use super::Primary;
use crate::rule::{Rule, keeps};

/// The extents that are turning.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Turning {
    /// Since the flush under way, or the last one, began.
    since: Bitmap,
    /// Before it began.
    before: Bitmap,
    /// Of both: those that are called stale as soon as the secondary has flushed. (The others are when a request that
    /// waits for that flush is judged, or when it is known what a failed flush has dropped.)
    given_up: Bitmap,
    /// Of both: those in which the copies differ in what nobody relies on. They are in the map as not durable on both
    /// nodes, and in the sync set once it is known which copy is the right one.
    differ: Bitmap,
}

impl Turning {
    /// None of so many extents.
    #[must_use]
    pub fn new(extents: u32) -> Turning {
        Turning {
            since: Bitmap::new(extents),
            before: Bitmap::new(extents),
            given_up: Bitmap::new(extents),
            differ: Bitmap::new(extents),
        }
    }

    /// Whether `extent` is one of them.
    #[must_use]
    pub fn contains(&self, extent: u32) -> bool {
        self.since.contains(extent) || self.before.contains(extent)
    }

    /// Whether no extent turns.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.since.is_empty() && self.before.is_empty()
    }

    /// Whether the flush under way began after `extent` had turned.
    #[must_use]
    pub fn is_covered(&self, extent: u32) -> bool {
        self.before.contains(extent)
    }

    /// `extent` turns; a flush that begins from now on covers that.
    pub fn begin(&mut self, extent: u32) {
        self.since.insert(extent);
    }

    /// `extent`, if it is turning, is called stale as soon as the secondary has flushed.
    pub fn give_up(&mut self, extent: u32) {
        if self.contains(extent) {
            self.given_up.insert(extent);
        }
    }

    /// `extent` is stale now.
    pub fn was_given_up(&mut self, extent: u32) {
        self.given_up.remove(extent);
    }

    /// A flush of both nodes begins.
    pub fn flush_begins(&mut self) {
        if !self.since.is_empty() {
            self.before.union(&self.since);
            self.since.clear();
        }
    }

    /// It has ended, and those who waited for it have been judged; gives the extents whose copies are known to differ
    /// and that the next one does not decide about.
    pub fn flush_ended(&mut self) -> Vec<u32> {
        let differ = self.differ.iter().filter(|extent| self.before.contains(*extent));
        let decided: Vec<u32> = differ.filter(|extent| !self.since.contains(*extent)).collect();
        if !self.before.is_empty() {
            self.before.clear();
        }
        for extent in &decided {
            self.differ.remove(*extent);
        }
        decided
    }

    /// The secondary cannot be relied on.
    pub fn clear(&mut self) {
        self.since.clear();
        self.before.clear();
        self.given_up.clear();
        self.differ.clear();
    }

    /// The copies of `extent`, which is turning, differ from now on.
    pub fn differs(&mut self, extent: u32) {
        self.differ.insert(extent);
    }

    /// The secondary lacks what somebody relies on in `extent`, or `extent` is stale now.
    pub fn remove(&mut self, extent: u32) {
        self.since.remove(extent);
        self.before.remove(extent);
        self.given_up.remove(extent);
        self.differ.remove(extent);
    }

    /// Those to be called stale that the flush which has just ended well on the secondary covers.
    #[must_use]
    pub fn covered_and_given_up(&self) -> Vec<u32> {
        self.given_up.iter().filter(|extent| self.before.contains(*extent)).collect()
    }

    /// The extents that are turning.
    pub fn iter(&self) -> impl Iterator<Item = u32> + '_ {
        self.since.iter().chain(self.before.iter())
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
                self.turning.begin(extent);
                self.sync.direct_reads_off = true;
            }
        }
    }

    /// Our copy of `extents` is no good any more, or not wanted: it is called stale once all that the secondary has
    /// acknowledged of it is durable there (S1), except where the secondary's copy is the wrong one. False for extents
    /// of which that cannot be said because the secondary is not there.
    pub(super) fn give_up(&mut self, extents: Range<u32>) -> bool {
        if self.detachment.is_detached() {
            return true; // all of it is stale
        }
        if self.secondary_has_all() || !keeps(Rule::S1) {
            for extent in extents {
                if !self.is_behind(extent) && self.note_stale(extent..extent + 1) && !self.secondary_has_all()
                {
                    self.lies_there_alone(extent..extent + 1);
                }
            }
            self.save_metadata();
            return true;
        }
        if !self.link.is_up() {
            return false;
        }
        self.turn(extents.clone());
        for extent in extents {
            self.turning.give_up(extent);
        }
        self.flush.ask();
        true
    }

    /// Whether the secondary is known to hold all that was ever complete, durably: this node is its target, or nothing
    /// is complete before the secondary has flushed it.
    pub(super) fn secondary_has_all(&self) -> bool {
        self.sync.target || self.sync.unable_to_record
    }

    /// The secondary has flushed: what was given up before that is stale now.
    pub(super) fn given_up_becomes_stale(&mut self) {
        for extent in self.turning.covered_and_given_up() {
            let extents = extent..extent + 1;
            if !self.may_be_called_stale(&extents) {
                self.flush.ask(); // the whole disk has to turn first, and this extent with it
            } else {
                self.record_stale(extents);
                self.turning.was_given_up(extent);
            }
        }
    }

    /// A flush has ended, and those that waited for it have been judged: where the copies differ and ours is still
    /// the right one, it goes to the secondary.
    pub(super) fn end_turning(&mut self) {
        for extent in self.turning.flush_ended() {
            if !self.sync.stale.contains(extent) {
                self.map.mark_dirty(extent);
                if self.link.is_up() {
                    self.begin_session();
                }
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
        if self.is_saved_as_target() || extents.clone().all(|extent| self.sync.stale.contains(extent)) {
            return true;
        }
        let mut stale = self.sync.stale.clone();
        for extent in extents.clone() {
            stale.insert(extent);
        }
        let all = 0..stale.len();
        if runs_of(&stale).len() <= STALE_RUNS
            || self.secondary_is_behind()
            || all.clone().all(|extent| self.turning.is_covered(extent) || stale.contains(extent))
        {
            return true;
        }
        self.turn(all);
        false
    }
}
