//! The client's memory: what it wrote, what was acknowledged, and so what each sector may hold.

use core::ops::Range;
use core::time::Duration;
use std::collections::{BTreeMap, BTreeSet};

use crate::disk::SECTOR;

/// A write as the client knows it; 0 is what was there in the beginning.
pub type WriteId = u64;

/// What one sector may hold.
#[derive(Clone, Debug)]
struct Candidate {
    write: WriteId,
    /// The write whose contents it left: itself, or 0 for one that wrote zeroes.
    holds: WriteId,
    /// A delete, or a loss that the mode permits: the sector may hold anything, as long as both nodes agree.
    anything: bool,
    invoked: Duration,
    /// When its answer came, or all hope of one went.
    ended: Option<Duration>,
    /// Acknowledged as stored.
    acknowledged: bool,
    /// Another write, begun after this one had ended, was acknowledged: only a loss of power can bring this
    /// one back.
    superseded: Option<Duration>,
    /// ... and both nodes had that one before it was: a failover alone does not bring this one back.
    firmly: bool,
    /// ... or that one was not acknowledged at all, but read: the end of the worker that had it brings this one back.
    by_reading: bool,
}

impl Candidate {
    /// What is there at `now`, and nothing is known of how it came to that.
    fn known(write: WriteId, now: Duration) -> Candidate {
        Candidate {
            holds: write,
            write,
            anything: false,
            invoked: now,
            ended: Some(now),
            acknowledged: true,
            superseded: None,
            firmly: false,
            by_reading: false,
        }
    }

    /// A write that began at `invoked` was acknowledged at `now`, on both nodes if `firmly`.
    fn supersede(&mut self, invoked: Duration, now: Duration, firmly: bool) {
        if self.ended.is_some_and(|ended| ended < invoked) {
            self.superseded.get_or_insert(now);
            self.firmly |= firmly;
            self.by_reading = false;
        }
    }

    /// A write that began at `invoked`, and is not acknowledged, was read at `now`.
    fn supersede_by_reading(&mut self, invoked: Duration, now: Duration) {
        if self.superseded.is_none() {
            self.supersede(invoked, now, false);
            self.by_reading = self.superseded.is_some();
        }
    }

    /// Nothing that came later is certain any more.
    fn may_come_back(&mut self) {
        self.superseded = None;
        self.firmly = false;
        self.by_reading = false;
    }
}

/// What the client may read, sector by sector.
#[derive(Clone, Debug)]
pub struct Memory {
    sectors: Vec<Vec<Candidate>>,
    open: BTreeMap<WriteId, (usize, usize)>,
    /// Open writes whose only holder may be gone, though its answer is still on its way.
    doubtful: BTreeSet<WriteId>,
    /// A write that begins from then on is acknowledged once both nodes have it: any mode but async.
    firm_since: Option<Duration>,
    /// What else a sector may hold: what a loss of power has left of a write that was not flushed.
    torn: BTreeMap<usize, Vec<Torn>>,
}

/// What a loss of power has left of a write to a sector.
#[derive(Clone, Debug)]
struct Torn {
    bytes: [u8; SECTOR],
    /// As those of a [`Candidate`].
    superseded: Option<Duration>,
    firmly: bool,
}

impl Torn {
    /// Nothing that came later is certain any more.
    fn may_come_back(&mut self) {
        self.superseded = None;
        self.firmly = false;
    }
}

impl Memory {
    /// `sectors` sectors, all of them as in the beginning.
    #[must_use]
    pub fn new(sectors: usize) -> Memory {
        let first = Candidate::known(0, Duration::ZERO);
        Memory {
            sectors: vec![vec![first]; sectors],
            open: BTreeMap::new(),
            doubtful: BTreeSet::new(),
            firm_since: Some(Duration::ZERO),
            torn: BTreeMap::new(),
        }
    }

    /// A write that begins from now on is acknowledged once both nodes have it, or (mode async) before the other one
    /// has.
    pub fn set_firm(&mut self, now: Duration, firm: bool) {
        self.firm_since = firm.then(|| self.firm_since.unwrap_or(now));
    }

    /// The bytes of a sector written by `write`.
    #[must_use]
    pub fn contents(write: WriteId) -> [u8; SECTOR] {
        let mut bytes = [0; SECTOR];
        for chunk in bytes.chunks_exact_mut(8) {
            chunk.copy_from_slice(&write.to_le_bytes());
        }
        bytes
    }

    /// `write`, or a delete of that number, to `count` sectors from `first` begins.
    pub fn begin(&mut self, now: Duration, write: WriteId, delete: bool, first: usize, count: usize) {
        self.begin_as(now, (write, write), delete, first..first + count);
    }

    /// The write of zeroes of that number begins.
    pub fn begin_zeroes(&mut self, now: Duration, write: WriteId, first: usize, count: usize) {
        self.begin_as(now, (write, 0), false, first..first + count);
    }

    fn begin_as(
        &mut self,
        now: Duration,
        (write, holds): (WriteId, WriteId),
        anything: bool,
        range: Range<usize>,
    ) {
        self.open.insert(write, (range.start, range.len()));
        for sector in self.sectors.iter_mut().skip(range.start).take(range.len()) {
            sector.push(Candidate {
                write,
                holds,
                anything,
                invoked: now,
                ended: None,
                acknowledged: false,
                superseded: None,
                firmly: false,
                by_reading: false,
            });
        }
    }

    /// `write` has ended: acknowledged, failed, or nobody will ever say.
    pub fn end(&mut self, now: Duration, write: WriteId, acknowledged: bool) {
        let Some((first, count)) = self.open.remove(&write) else { return };
        let doubtful = self.doubtful.remove(&write);
        for at in first..first + count {
            let Some(sector) = self.sectors.get_mut(at) else { continue };
            let mut invoked = Duration::ZERO;
            for candidate in sector.iter_mut().filter(|candidate| candidate.write == write) {
                candidate.ended = Some(now);
                candidate.acknowledged = acknowledged && !doubtful;
                invoked = candidate.invoked;
            }
            if acknowledged && !doubtful {
                let firmly = self.firm_since.is_some_and(|since| invoked >= since);
                sector.iter_mut().for_each(|candidate| candidate.supersede(invoked, now, firmly));
                for torn in self.torn.get_mut(&at).into_iter().flatten() {
                    torn.superseded.get_or_insert(now);
                    torn.firmly |= firmly;
                }
            } else if !acknowledged {
                // A client that has read it may read what was there before again.
                sector.iter_mut().filter(|one| one.by_reading).for_each(Candidate::may_come_back);
            }
        }
    }

    /// A flush that was begun at `invoked` was acknowledged: what was superseded by then never comes back.
    pub fn flushed(&mut self, invoked: Duration) {
        for sector in &mut self.sectors {
            // A flush need not cover a write that was not acknowledged, although a client has read it.
            sector.retain(|candidate| {
                candidate.by_reading || candidate.superseded.is_none_or(|at| at >= invoked)
            });
        }
        for torn in self.torn.values_mut() {
            torn.retain(|torn| torn.superseded.is_none_or(|at| at >= invoked));
        }
    }

    /// A loss of power has left `bytes` in sector `at`, of a write that was not flushed.
    pub fn may_be_torn(&mut self, at: usize, bytes: &[u8]) {
        if let Some(bytes) = bytes.first_chunk() {
            self.torn.entry(at).or_default().push(Torn { bytes: *bytes, superseded: None, firmly: false });
        }
    }

    /// Whether `bytes` are what a loss of power has left, and nothing was acknowledged since before `invoked`, if that
    /// matters.
    fn is_torn(&self, at: usize, bytes: &[u8], invoked: Option<Duration>) -> bool {
        let current = |torn: &Torn| torn.superseded.zip(invoked).is_none_or(|(at, invoked)| at >= invoked);
        let mut versions = self.torn.get(&at).into_iter().flatten();
        versions.any(|torn| torn.bytes == bytes && current(torn))
    }

    /// Whether sector `at` may hold `bytes` after a loss of power of all that holds it: nothing that was flushed is lost
    /// by that.
    #[must_use]
    pub fn may_survive(&self, at: usize, bytes: &[u8]) -> bool {
        let (id, whole) = Memory::read(bytes);
        let fine = |candidate: &Candidate| candidate.anything || (whole && candidate.holds == id);
        self.sectors.get(at).is_none_or(|sector| sector.iter().any(fine)) || self.is_torn(at, bytes, None)
    }

    /// Sector `at` may also be what another memory says of it.
    pub fn widen(&mut self, at: usize, other: &Memory) {
        if let (Some(sector), Some(others)) = (self.sectors.get_mut(at), other.sectors.get(at)) {
            sector.extend(others.iter().cloned());
        }
    }

    /// Sector `at` is what another memory says of it.
    pub fn adopt(&mut self, at: usize, other: &Memory) {
        if let (Some(sector), Some(others)) = (self.sectors.get_mut(at), other.sectors.get(at)) {
            sector.clone_from(others);
        }
        if let Some(torn) = other.torn.get(&at) {
            self.torn.insert(at, torn.clone());
        }
    }

    /// The client's requests in flight will never be answered.
    pub fn abandon(&mut self, now: Duration) {
        let open: Vec<WriteId> = self.open.keys().copied().collect();
        for write in open {
            self.end(now, write, false);
        }
    }

    /// The node that serves lost power, or writes that no flush has covered were lost with it: they may come
    /// back as they were before.
    pub fn unflushed_may_be_lost(&mut self) {
        self.sectors.iter_mut().flatten().for_each(Candidate::may_come_back);
        self.torn.values_mut().flatten().for_each(Torn::may_come_back);
    }

    /// The other node takes over: what was acknowledged before it had it, as async permits, and was not flushed since
    /// may be as it was before.
    pub fn unconfirmed_may_be_lost(&mut self) {
        let candidates = self.sectors.iter_mut().flatten();
        candidates.filter(|candidate| !candidate.firmly).for_each(Candidate::may_come_back);
        let torn = self.torn.values_mut().flatten();
        torn.filter(|torn| !torn.firmly).for_each(Torn::may_come_back);
    }

    /// The worker that served has ended: what was not acknowledged may be gone, although it was read.
    pub fn unacknowledged_may_be_gone(&mut self) {
        let candidates = self.sectors.iter_mut().flatten();
        candidates.filter(|candidate| candidate.by_reading).for_each(Candidate::may_come_back);
    }

    /// The same of this sector alone.
    pub fn may_be_lost(&mut self, at: usize) {
        self.sectors.get_mut(at).into_iter().flatten().for_each(Candidate::may_come_back);
        self.torn.get_mut(&at).into_iter().flatten().for_each(Torn::may_come_back);
    }

    /// The only node that holds what is being written now is gone, and those who could tell do not know yet: its
    /// answers may still arrive.
    pub fn doubt_open(&mut self) {
        self.doubtful = self.open.keys().copied().collect();
    }

    /// Now they do.
    pub fn doubt_nothing(&mut self) {
        self.doubtful.clear();
    }

    /// From now on each sector holds one of these writes, and nothing is known of how it came to that.
    pub fn rebase(&mut self, now: Duration, sectors: impl Iterator<Item = Vec<WriteId>>) {
        self.open.clear();
        let known = |write| Candidate::known(write, now);
        self.sectors = sectors.map(|writes| writes.into_iter().map(known).collect()).collect();
    }

    /// From now on each sector holds this write, or one that is still open.
    pub fn rebase_under_open(&mut self, now: Duration, sectors: impl Iterator<Item = WriteId>) {
        for (sector, write) in self.sectors.iter_mut().zip(sectors) {
            let failed = |candidate: &Candidate| candidate.holds == write && !candidate.acknowledged;
            let acknowledged = !sector.iter().any(failed);
            sector.retain(|candidate| candidate.ended.is_none());
            sector.insert(0, Candidate { acknowledged, ..Candidate::known(write, now) });
        }
    }

    /// What was written to sector `at` before is still there, and comes back if what was written since is lost.
    pub fn may_fall_back(&mut self, now: Duration, at: usize, bytes: &[u8]) {
        let (write, whole) = Memory::read(bytes);
        if !whole && !self.is_torn(at, bytes, None) {
            let torn =
                bytes.first_chunk().map(|bytes| Torn { bytes: *bytes, superseded: Some(now), firmly: false });
            self.torn.entry(at).or_default().extend(torn);
        }
        let Some(sector) = self.sectors.get_mut(at).filter(|_| whole) else { return };
        if sector.iter().all(|candidate| candidate.holds != write) {
            let by_reading = sector.first().is_some_and(|current| !current.acknowledged);
            sector.push(Candidate { superseded: Some(now), by_reading, ..Candidate::known(write, now) });
        }
    }

    /// Whether `bytes` is something that sector `at` may hold, for a read that began at `invoked`.
    ///
    /// # Errors
    /// Says what it holds and what it might.
    pub fn check(&self, at: usize, bytes: &[u8], invoked: Duration) -> Result<(), String> {
        let (id, whole) = Memory::read(bytes);
        let Some(sector) = self.sectors.get(at) else { return Ok(()) };
        let fine = |candidate: &Candidate| {
            (candidate.anything || (whole && candidate.holds == id))
                && candidate.superseded.is_none_or(|superseded| superseded >= invoked)
        };
        if sector.iter().any(fine) || self.is_torn(at, bytes, Some(invoked)) {
            return Ok(());
        }
        Err(format!("sector {at} holds write {id}, but may hold only {:?}", self.possible(at)))
    }

    /// A read that ended at `now` has brought `bytes` from sector `at`, as it may: the write that left them has taken
    /// effect, if it was acknowledged or is still open. What had ended before it began no later read brings, unless it
    /// fails, or was not acknowledged and the worker ends. Of a write that has failed nothing is promised.
    pub fn seen(&mut self, at: usize, bytes: &[u8], now: Duration) {
        let (id, whole) = Memory::read(bytes);
        let Some(sector) = self.sectors.get_mut(at).filter(|_| whole && id != 0) else { return };
        let of = |candidate: &&Candidate| candidate.holds == id && candidate.superseded.is_none();
        let Some(candidate) = sector.iter().find(of) else { return };
        let (invoked, acknowledged) = (candidate.invoked, candidate.acknowledged);
        if !acknowledged && candidate.ended.is_some() {
            return;
        }
        for candidate in sector.iter_mut().filter(|candidate| candidate.superseded.is_none()) {
            // It may have been read where it was not durable.
            if acknowledged {
                candidate.supersede(invoked, now, false);
            } else {
                candidate.supersede_by_reading(invoked, now);
            }
        }
    }

    /// Both nodes are in step, flushed, and hold `bytes` in sector `at`, and no request is open: nothing else
    /// can come up there any more.
    pub fn settle(&mut self, at: usize, bytes: &[u8]) {
        let (id, whole) = Memory::read(bytes);
        // What a delete left may be no write's.
        if let Some(sector) = self.sectors.get_mut(at).filter(|_| whole) {
            sector.truncate(1);
            for candidate in sector {
                candidate.holds = id;
                candidate.write = id;
                candidate.anything = false;
                candidate.may_come_back();
            }
        }
    }

    /// The write whose contents `bytes` begin with, and whether all of them are.
    fn read(bytes: &[u8]) -> (WriteId, bool) {
        let id = u64::from_le_bytes(bytes.first_chunk().copied().unwrap_or_default());
        (id, bytes == Memory::contents(id))
    }

    /// What sector `at` may hold.
    #[must_use]
    pub fn possible(&self, at: usize) -> Vec<WriteId> {
        let sector = self.sectors.get(at).map(Vec::as_slice).unwrap_or_default();
        sector
            .iter()
            .filter(|candidate| candidate.superseded.is_none())
            .map(|candidate| candidate.write)
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn zeroes_are_a_write_like_any_other() {
        let mut memory = Memory::new(4);
        memory.begin(at(1), 7, false, 0, 4);
        memory.end(at(2), 7, true);
        memory.check(1, &Memory::contents(0), at(3)).unwrap_err();
        memory.begin_zeroes(at(4), 8, 1, 2);
        for id in [0, 7] {
            memory.check(1, &Memory::contents(id), at(5)).unwrap();
        }
        memory.check(1, &Memory::contents(8), at(5)).unwrap_err();
        memory.end(at(6), 8, true);
        memory.check(1, &Memory::contents(7), at(7)).unwrap_err();
        memory.check(2, &Memory::contents(0), at(7)).unwrap();
        memory.check(3, &Memory::contents(0), at(7)).unwrap_err();
    }

    #[test]
    fn what_was_read_of_an_open_write_stays_until_that_fails_or_the_worker_ends() {
        for fails in [false, true] {
            let mut memory = Memory::new(1);
            memory.begin(at(1), 7, false, 0, 1);
            memory.end(at(2), 7, true);
            memory.begin(at(3), 8, false, 0, 1);
            memory.seen(0, &Memory::contents(8), at(4));
            memory.check(0, &Memory::contents(7), at(5)).unwrap_err();
            if fails {
                memory.end(at(6), 8, false);
                memory.seen(0, &Memory::contents(8), at(7));
            } else {
                memory.unacknowledged_may_be_gone();
            }
            memory.flushed(at(8));
            for id in [7, 8] {
                memory.check(0, &Memory::contents(id), at(9)).unwrap();
            }
        }
    }

    #[test]
    fn what_was_read_before_it_was_acknowledged_is_as_safe_as_any() {
        let mut memory = Memory::new(1);
        memory.begin(at(1), 7, false, 0, 1);
        memory.end(at(2), 7, true);
        memory.begin(at(3), 8, false, 0, 1);
        memory.seen(0, &Memory::contents(8), at(4));
        memory.end(at(5), 8, true);
        memory.unacknowledged_may_be_gone();
        memory.check(0, &Memory::contents(7), at(6)).unwrap_err();
    }

    #[test]
    fn a_failover_takes_nothing_that_was_flushed_or_that_both_nodes_had() {
        let mut memory = Memory::new(1);
        memory.set_firm(at(0), false);
        for write in 1..4 {
            memory.begin(at(10 * write), write, false, 0, 1);
            memory.end(at(10 * write + 1), write, true);
        }
        memory.flushed(at(25));
        memory.unconfirmed_may_be_lost();
        // Of the last write nobody knows; the one before it is flushed.
        for (write, fine) in [(0, false), (1, false), (2, true), (3, true)] {
            assert_eq!(memory.check(0, &Memory::contents(write), at(50)).is_ok(), fine, "{write}");
        }
        memory.set_firm(at(55), true);
        memory.begin(at(60), 4, false, 0, 1);
        memory.end(at(61), 4, true);
        memory.unconfirmed_may_be_lost();
        for (write, fine) in [(2, false), (3, false), (4, true)] {
            assert_eq!(memory.check(0, &Memory::contents(write), at(70)).is_ok(), fine, "{write}");
        }
    }

    #[test]
    fn a_failover_brings_back_what_a_loss_of_power_had_left_unless_both_nodes_had_what_came_then() {
        let half = [1; SECTOR];
        for firm in [false, true] {
            let mut memory = Memory::new(1);
            memory.set_firm(at(0), firm);
            memory.may_be_torn(0, &half);
            memory.begin(at(10), 1, false, 0, 1);
            memory.end(at(11), 1, true);
            memory.check(0, &half, at(12)).unwrap_err();
            memory.unconfirmed_may_be_lost();
            assert_eq!(memory.check(0, &half, at(13)).is_err(), firm);
        }
    }

    #[test]
    fn what_both_nodes_hold_is_settled() {
        let mut memory = Memory::new(2);
        memory.begin(at(1), 1, false, 0, 2);
        memory.begin(at(1), 2, false, 0, 2);
        memory.end(at(2), 1, true);
        memory.end(at(2), 2, true);
        memory.settle(0, &Memory::contents(1));
        memory.unflushed_may_be_lost();
        memory.check(0, &Memory::contents(1), at(3)).unwrap();
        for lost in [0, 2] {
            memory.check(0, &Memory::contents(lost), at(3)).unwrap_err();
            memory.check(1, &Memory::contents(lost), at(3)).unwrap();
        }
        // Half of a write, left by a delete, is nobody's: the delete stays what it was.
        memory.begin(at(4), 3, true, 0, 1);
        memory.end(at(5), 3, true);
        let mut half = Memory::contents(1);
        half[SECTOR / 2..].fill(0);
        memory.settle(0, &half);
        memory.check(0, &half, at(6)).unwrap();
        memory.settle(0, &Memory::contents(0));
        memory.check(0, &half, at(6)).unwrap_err();
        memory.check(0, &Memory::contents(0), at(6)).unwrap();
    }
}
