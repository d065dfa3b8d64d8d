//! A write or delete from its last answer to its completion: who has stored it, what has to be written down
//! before anybody hears of it, and what the map learns.

use core::ops::Range;

use hast_format::activemap::Outcome;
use hast_format::extension::STALE_RUNS;
use hast_net::Replication;
use hast_net::errno::Errno;
use hast_net::message::MarkKind;

use super::{Request, Stage};
use crate::primary::Primary;
use crate::primary::link::Awaited;
use crate::primary::sync::Relying;
use crate::ranges::Key;
use crate::rule::{Rule, keeps};
use crate::types::{DiskResult, Op};
use crate::verdict::{Half, Standing, Verdict};

impl Primary {
    pub(super) fn advance_write(&mut self, key: Key) {
        let (relies, recorded) = (self.relies(key), self.is_recorded(key));
        let called_stale = self.is_called_stale(key);
        let Some(request) = self.requests.get(&key) else { return };
        let heard = request.stage == (Stage::Completed { well: true });
        let error = request.local.error().or(request.remote.error()).unwrap_or(Errno::EIO);
        let issued = request.stage == Stage::Issued;
        let mut standing = self.standing(request, relies || self.is_turning(key));
        if called_stale && !heard {
            // Our disk alone is not enough before the metadata say that it is good, in any mode.
            standing.mode = Replication::Fullsync;
            standing.relies |= recorded && !standing.is_up;
        }
        match standing.verdict() {
            _ if !issued => {}
            Verdict::Wait => {}
            Verdict::TakeBack => return self.take_back(key, relies),
            Verdict::Fail => {
                if relies && !standing.is_confirmed() {
                    // Before a read that waits for it: what our disk has of it will be copied over.
                    self.give_up(request.extents());
                }
                self.end_write(key, Err(error));
            }
            // Our disk may go on saying that the secondary alone has it: so it must be durable there.
            Verdict::Complete if called_stale && !standing.flushed && standing.is_there_still() => {
                return self.flush_there(key);
            }
            // ... or be so no longer: what it stored on an earlier connection it may have lost.
            Verdict::Complete if called_stale && !standing.flushed => {
                let save = self.good_again(key);
                self.set_stage(key, Stage::Saving(save));
            }
            Verdict::Complete => self.end_write(key, Ok(None)),
            Verdict::FlushThere => return self.flush_there(key),
            Verdict::WriteDown if !standing.is_here() && !self.may_be_called_stale(&request.extents()) => {
                return self.flush_there(key);
            }
            Verdict::WriteDown => match self.write_down(key, standing.is_here()) {
                Some(save) if self.meta.is_durable(save) => self.end_written_down(key),
                Some(save) => self.set_stage(key, Stage::Saving(save)),
                None => self.end_write(key, Err(error)),
            },
        }
        if standing.is_answered() {
            self.finish_write(key, relies);
            if heard && standing.owes_count() {
                self.owe_count(); // somebody has heard of it already
            }
            if heard {
                self.end_owed();
            }
        }
    }

    /// What decides about `request`.
    fn standing(&self, request: &Request, relies: bool) -> Standing {
        Standing {
            mode: self.settings.replication,
            is_write: matches!(request.op, Op::Write { .. }),
            local: request.local,
            remote: request.remote,
            received: request.received,
            suspect: request.suspect,
            same_connection: request.epoch == self.link.epoch(),
            is_up: self.link.is_up(),
            relies,
            behind: request.extents().any(|extent| self.is_behind(extent)),
            is_cut_off: self.is_cut_off(),
            flushed: request.flushed,
        }
    }

    /// The secondary is to be the only one that has `key`, or makes sense of it: it flushes first.
    fn flush_there(&mut self, key: Key) {
        let Some(request) = self.requests.get(&key) else { return };
        if request.local != Half::Done || request.suspect {
            self.turn(request.extents());
        }
        let ticket = self.flush.ask();
        self.set_stage(key, Stage::Flushing(ticket));
    }

    /// The flushes asked for up to `ticket` have ended, on the secondary `well`, or like this: whoever waited is
    /// judged anew.
    pub(in crate::primary) fn end_flushing(&mut self, ticket: u64, well: bool, failed: Option<Errno>) {
        if let Relying::Flushing(wanted) = self.sync.relying
            && wanted <= ticket
        {
            self.end_relying(well);
        }
        while let Some(&(wanted, key)) = self.waiting.flushing.first()
            && wanted <= ticket
        {
            self.set_stage(key, Stage::Issued);
            if let Some(request) = self.requests.get_mut(&key) {
                request.flushed = well;
                request.remote = failed.map_or(request.remote, Half::Failed);
            }
            self.advance_write(key);
        }
    }

    /// One node alone has stored `key`: what has to be in the metadata before anybody hears of it. `None` if
    /// there is no room for it.
    pub(super) fn write_down(&mut self, key: Key, here: bool) -> Option<u64> {
        let request = self.requests.get(&key)?;
        let failed = matches!(request.remote, Half::Failed(_));
        if !here {
            if !keeps(Rule::L3) {
                return Some(0);
            }
            let extents = request.extents();
            if self.detachment.is_detached() || extents.clone().all(|extent| self.is_known_stale(extent)) {
                return Some(0); // on disk long since
            }
            let staled = extents.clone().filter(|extent| !self.sync.stale.contains(*extent)).collect();
            let save = self.record_stale(extents)?;
            if let Some(request) = self.requests.get_mut(&key) {
                request.staled = staled;
            }
            return Some(save);
        }
        // M3, C1 (a), (b)
        let rule = if failed { Rule::C1b } else { Rule::C1a };
        let save = if keeps(rule) { self.count() } else { 0 };
        if !self.is_called_stale(key) {
            return Some(save);
        }
        Some(self.good_again(key))
    }

    /// All of `extent` has been written here, and no flush has failed since: nothing of it is dropped, and whichever copy
    /// was to be the right one, ours is.
    fn is_right_here(&mut self, extent: u32) {
        self.durable.forget(extent);
        self.turning.remove(extent);
    }

    /// Our disk has stored `key`: what it has written as a whole is not stale any more; gives the save that says so.
    fn good_again(&mut self, key: Key) -> u64 {
        if let Some(request) = self.requests.get(&key) {
            let whole = |extent: &u32| self.covers(&request.op, *extent);
            let fresh: Vec<u32> = request.extents().filter(whole).collect();
            for extent in fresh {
                self.no_longer_stale(extent);
                self.is_right_here(extent);
            }
        }
        self.save_metadata()
    }

    /// Whether `extent` is stale, and the metadata on disk certainly says so.
    fn is_known_stale(&self, extent: u32) -> bool {
        self.sync.stale.contains(extent) && self.sync.known.contains(extent) && keeps(Rule::A4)
    }

    /// L3: our copy of `extents` is out of date, the secondary's is not; gives the save that says so. `None`
    /// if the metadata has no room for it.
    pub(in crate::primary) fn record_stale(&mut self, extents: Range<u32>) -> Option<u64> {
        self.note_stale(extents).then(|| self.save_metadata())
    }

    /// Adds `extents` to those that are right on the secondary alone. There is room for so many runs; one more,
    /// and the whole disk counts as stale, which is true as long as the secondary lacks nothing itself. False if
    /// it does, or has yet to store what somebody relies on already (async, memsync): then nothing was added.
    pub(in crate::primary) fn note_stale(&mut self, extents: Range<u32>) -> bool {
        if self.is_owed(&extents) {
            return false;
        }
        let new: Vec<u32> = extents.filter(|extent| self.sync.stale.insert(*extent)).collect();
        if new.is_empty() {
            return true;
        }
        for extent in &new {
            self.map.mark_dirty(*extent);
        }
        if self.link.is_up() {
            self.begin_session();
        }
        if self.is_saved_as_target() || self.sync.stale_runs().len() <= STALE_RUNS {
            return true; // a target's whole map is stale, and its metadata says just that
        }
        if self.is_owed(&(0..u32::MAX)) || self.secondary_is_behind() {
            for extent in new {
                self.no_longer_stale(extent);
            }
            return false;
        }
        log::error!("The local disk fails too often: reads are served by the secondary alone.");
        for extent in 0..self.sync.stale.len() {
            self.sync.stale.insert(extent);
            self.map.mark_dirty(extent);
        }
        true
    }

    /// Whether the secondary has yet to store some of `extents` that the device relies on already.
    pub(in crate::primary) fn is_owed(&self, extents: &Range<u32>) -> bool {
        self.link.awaits_writes() && self.requests.values().any(|request| request.is_owed(extents))
    }

    /// What a flush has to reach on the secondary, because reads of `extents` go there.
    pub(in crate::primary) fn lies_there_alone(&mut self, extents: Range<u32>) {
        for extent in extents {
            self.sync.lone.insert(extent);
        }
    }

    /// The connection broke while the only node that could make sense of `key` had it: it starts again once
    /// the secondary is back, or the metadata say less. If it `relied` on the secondary's copy, ours is none now.
    pub(super) fn take_back(&mut self, key: Key, relied: bool) {
        let Some(request) = self.requests.get_mut(&key) else { return };
        request.local = Half::NotAsked;
        request.remote = Half::NotAsked;
        request.received = false;
        let extents = request.extents();
        for extent in extents.clone() {
            self.sync.spoil(extent);
        }
        if relied {
            self.give_up(extents.clone());
        }
        self.finish_in_map(extents, Outcome::Unconfirmed);
        self.park(key);
    }

    /// Tells the device, and lets others at the bytes.
    pub(super) fn end_write(&mut self, key: Key, result: DiskResult) {
        if let Some(id) = self.requests.get(&key).map(|request| request.id) {
            self.set_stage(key, Stage::Completed { well: result.is_ok() });
            self.complete(id, result);
            self.release(key);
        }
    }

    /// Both halves are known: the map learns how it ended. `relied` says that our copy alone would not have been right.
    pub(super) fn finish_write(&mut self, key: Key, relied: bool) {
        let Some(request) = self.requests.get(&key) else { return };
        let standing = self.standing(request, relied);
        let (here, confirmed) = (standing.is_here(), standing.is_confirmed());
        let outcome = standing.outcome();
        let both = outcome == Outcome::StoredOnBoth;
        let stage = request.stage;
        let extents = request.extents();
        // Somebody relies on our copy, whatever has come to need the secondary since.
        let ours = stage == (Stage::Completed { well: true }) && standing.remote != Half::Done;
        for extent in extents.clone() {
            let covered = self.requests.get(&key).is_some_and(|request| self.covers(&request.op, extent));
            if !both {
                self.sync.spoil(extent);
            }
            if relied && !ours && !confirmed && !self.is_behind(extent) {
                self.give_up(extent..extent + 1);
            } else if here && covered && self.no_longer_stale(extent) {
                self.is_right_here(extent);
                self.save_metadata();
            }
            if ours {
                self.turning.remove(extent); // the secondary is not right either
            }
            if standing.remote == Half::Done && !standing.flushed && self.sync.stale.contains(extent) {
                self.lies_there_alone(extent..extent + 1); // whatever our disk has of it
            }
        }
        self.finish_in_map(extents, outcome);
        self.sync.unconfirmed |= outcome == Outcome::Unconfirmed && !confirmed;
        if !matches!(stage, Stage::Saving(_) | Stage::Marking | Stage::Telling) {
            self.take_out(key);
        }
        if both {
            self.flush.note_unflushed(self.now);
        } else if self.link.is_up() {
            self.begin_session();
        }
    }

    /// The map learns how a write or delete to `extents` ended; where it is not known yet which copy is the right one, it
    /// learns later that they differ.
    fn finish_in_map(&mut self, extents: Range<u32>, outcome: Outcome) {
        for extent in extents {
            if outcome == Outcome::Unconfirmed && self.turning.contains(extent) {
                self.turning.differs(extent);
                self.map.finish(extent..extent + 1, Outcome::StoredOnBoth);
            } else {
                self.map.finish(extent..extent + 1, outcome);
            }
        }
    }

    /// What waited for the metadata to be saved with `save` is complete, or must not be relied on.
    pub(in crate::primary) fn end_saving(&mut self, save: u64, result: DiskResult) {
        while let Some(&(wanted, key)) = self.waiting.saving.first()
            && wanted <= save
        {
            if result.is_err() && self.tell(key) {
                continue;
            }
            if result.is_ok() {
                self.end_written_down(key);
            } else {
                self.restore(key);
                self.end_write(key, result.clone());
            }
            if !matches!(self.requests.get(&key), Some(Request { stage: Stage::Marking, .. })) {
                self.take_out(key);
            }
        }
    }

    /// What the metadata has to say about `key` is durable. If the secondary lacks it though it is connected,
    /// it has to know that first; should it go away meanwhile, it counts as any that is not there.
    pub(super) fn end_written_down(&mut self, key: Key) {
        let Some(request) = self.requests.get(&key) else { return };
        let lacks = request.remote.is_missed();
        // After a crash the secondary's copy would be written over it, whatever the disk has kept (L3).
        let called_stale = |extent| self.sync.recorded.contains(extent) && !self.sync.stale.contains(extent);
        let undone = request.extents().any(called_stale) && keeps(Rule::L3);
        if undone || !self.standing(request, false).is_held() {
            self.restore(key);
            return self.end_write(key, Err(Errno::EIO));
        }
        if lacks && self.link.is_up() && self.link.is_ours() && keeps(Rule::L6) {
            self.set_stage(key, Stage::Marking);
        } else {
            self.end_write(key, Ok(None));
        }
    }

    /// The only node that had `key` went away before anybody heard of it, and may have lost it, and whatever else
    /// it had not flushed: what counts as stale here because of `key` does not any more.
    fn restore(&mut self, key: Key) {
        if self.link.is_up() {
            return;
        }
        let Some(request) = self.requests.get_mut(&key) else { return };
        let staled = std::mem::take(&mut request.staled);
        if staled.is_empty() {
            return;
        }
        for extent in staled {
            self.no_longer_stale(extent);
            self.map.mark_dirty(extent);
            // Nobody has looked after it meanwhile.
            self.durable.may_have_dropped(extent..extent + 1);
        }
        self.save_metadata();
    }

    /// Asks the secondary to mark itself if a write waits for that.
    pub(in crate::primary) fn kick_marking(&mut self) {
        let waits = !self.waiting.marking.is_empty() || self.flush.awaits_mark();
        if waits && self.secondary_is_marked() {
            self.end_marking();
        }
    }

    /// The secondary has marked itself, or is gone.
    pub(in crate::primary) fn end_marking(&mut self) {
        while let Some(key) = self.waiting.marking.pop_first() {
            self.end_write(key, Ok(None));
            self.take_out(key);
        }
        self.end_marking_flushes();
    }

    /// Our disk cannot record that the secondary alone has `key`: let the secondary do it, which then counts as the
    /// right copy of everything. So it may lack nothing, and flushes all that is complete first (S1).
    pub(super) fn tell(&mut self, key: Key) -> bool {
        let Some(request) = self.requests.get(&key) else { return false };
        let (offset, length) = request.op.range();
        let possible = request.local != Half::Done && request.remote == Half::Done && self.can_be_relied_on();
        if !possible {
            return false;
        }
        if self.sync.relying == Relying::Durable || self.sync.unable_to_record || !keeps(Rule::S1) {
            self.sync.lacks_nothing();
            self.mark(Awaited::Told(key), MarkKind::Stale { offset, length });
            self.set_stage(key, Stage::Telling);
        } else {
            if self.sync.relying == Relying::No {
                self.sync.relying = Relying::Flushing(self.flush.ask());
            }
            self.set_stage(key, Stage::Relying);
        }
        true
    }

    /// Whether a write waits for the secondary to become the right copy of everything.
    pub(in crate::primary) fn is_about_to_rely(&self) -> bool {
        self.waiting.is_about_to_rely()
    }

    /// The flush that was to cover all that was complete has ended on the secondary, `well` or not, or the secondary is
    /// gone.
    pub(in crate::primary) fn end_relying(&mut self, well: bool) {
        self.sync.relying = if well { Relying::Durable } else { Relying::No };
        self.left_after_flush(well);
        for key in std::mem::take(&mut self.waiting.relying) {
            if !(well && self.tell(key)) {
                self.told(key, Err(Errno::EIO));
            }
        }
    }

    /// The secondary remembers what our disk could not, or cannot.
    pub(in crate::primary) fn told(&mut self, key: Key, result: Result<(), Errno>) {
        if result.is_ok() {
            log::error!("The local disk cannot be written: nothing is complete without the secondary.");
            self.sync.unable_to_record = true;
            self.remember_detachment();
            // We know why the secondary counted: it does not make everything else here out of date, unless it is.
            let counted = self.link.peer_counted();
            if !self.sync.target {
                self.metadata.remotecnt = counted;
            }
        } else {
            // The flush that others wait for decides about those.
            if self.sync.relying == Relying::Durable {
                self.sync.relying = Relying::No;
            }
            self.restore(key);
        }
        self.end_write(key, result.map(|()| None));
        self.take_out(key);
    }
}
