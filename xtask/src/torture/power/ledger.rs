//! What each sector of the device may hold: every write since the disks were last compared, and what has become of it.
//!
//! Two losses are told apart. A write is *superseded* when a later one was acknowledged: no reader sees it again as long
//! as no power is lost. It is *buried* when that is flushed too: no loss of power brings it back. Nothing is forgotten
//! before [`Ledger::settle`], so that another history, that of a node which was away, can still be told from it.

use std::ops::Range;
use std::time::Duration;

use hast_sim::client::{Memory, WriteId};

use super::disk::SECTOR;

/// Time since the beginning of the run.
type Moment = Duration;

/// One write to one sector.
#[derive(Clone, Debug)]
struct Version {
    write: WriteId,
    /// The write whose bytes it leaves, 0 for zeros. None: anything, as a delete may.
    holds: Option<WriteId>,
    begun: Moment,
    /// When its answer came, or all hope of one went.
    ended: Option<Moment>,
    superseded: Option<Moment>,
    buried: Option<Moment>,
}

impl Version {
    fn settled(write: Option<WriteId>, at: Moment) -> Version {
        let id = write.unwrap_or_default();
        Version { write: id, holds: write, begun: at, ended: Some(at), superseded: None, buried: None }
    }
}

/// The histories that one node may tell.
#[derive(Clone, Debug)]
pub(super) struct Ledger {
    sectors: Vec<Vec<Version>>,
    open: Vec<(WriteId, Range<usize>)>,
    /// Begin of the latest acknowledged flush.
    flushed: Moment,
    /// End of the latest acknowledged write.
    acknowledged: Moment,
    /// When a write or flush was begun or ended last.
    active: Moment,
    /// Flushes under way.
    flushing: u32,
}

/// When and how a node stopped getting what is written.
#[derive(Clone, Copy, Debug)]
pub(super) struct Parting {
    pub(super) at: Moment,
    /// It may lack what no flush had covered by then: it lost power, or in its mode the other node does not wait for it.
    pub(super) forgets: bool,
}

impl Ledger {
    /// A device of zeros.
    pub(super) fn new(sectors: usize) -> Ledger {
        let zeros = vec![Version::settled(Some(0), Moment::ZERO)];
        Ledger {
            sectors: vec![zeros; sectors],
            open: Vec::new(),
            flushed: Moment::ZERO,
            acknowledged: Moment::ZERO,
            active: Moment::ZERO,
            flushing: 0,
        }
    }

    /// A write, or what leaves `holds`, begins.
    pub(super) fn begin(&mut self, now: Moment, write: WriteId, holds: Option<WriteId>, range: Range<usize>) {
        self.active = now;
        for sector in self.sectors.get_mut(range.clone()).into_iter().flatten() {
            sector.push(Version { write, holds, begun: now, ended: None, superseded: None, buried: None });
        }
        self.open.push((write, range));
    }

    /// It has ended: acknowledged, and with that durable if it was written through; or nobody will say.
    pub(super) fn end(&mut self, now: Moment, write: WriteId, acknowledged: bool, through: bool) {
        self.active = now;
        let Some(at) = self.open.iter().position(|(open, _)| *open == write) else { return };
        let (_, range) = self.open.swap_remove(at);
        if acknowledged {
            self.acknowledged = now;
        }
        for sector in self.sectors.get_mut(range).into_iter().flatten() {
            let Some(version) = sector.iter_mut().find(|version| version.write == write) else { continue };
            version.ended = Some(now);
            let begun = version.begun;
            for older in
                sector.iter_mut().filter(|older| acknowledged && older.ended.is_some_and(|end| end < begun))
            {
                older.superseded.get_or_insert(now);
                if through {
                    older.buried.get_or_insert(now);
                }
            }
        }
    }

    /// A flush begins.
    pub(super) fn begin_flush(&mut self, now: Moment) {
        self.active = now;
        self.flushing += 1;
    }

    /// One that was begun then has ended.
    pub(super) fn end_flush(&mut self, now: Moment, begun: Moment, acknowledged: bool) {
        self.active = now;
        self.flushing = self.flushing.saturating_sub(1);
        if !acknowledged {
            return;
        }
        self.flushed = self.flushed.max(begun);
        for version in self.sectors.iter_mut().flatten() {
            if version.superseded.is_some_and(|at| at < begun) {
                version.buried.get_or_insert(now);
            }
        }
    }

    /// Whether a read that was begun then may bring `bytes` from sector `at`.
    ///
    /// # Errors
    /// Says what it brought and what it might.
    pub(super) fn check(&self, at: usize, bytes: &[u8], begun: Moment) -> Result<(), String> {
        let Some(sector) = self.sectors.get(at) else { return Ok(()) };
        let (id, whole) = whose(bytes);
        let fine = |version: &Version| {
            version.holds.is_none_or(|holds| whole && holds == id)
                && version.superseded.is_none_or(|superseded| superseded >= begun)
        };
        if sector.iter().any(fine) {
            return Ok(());
        }
        let may: Vec<WriteId> = sector
            .iter()
            .filter(|version| version.superseded.is_none())
            .map(|version| version.write)
            .collect();
        let what = sector.iter().find(|version| version.holds == Some(id) && whole).map_or("", |version| {
            match (version.superseded, version.buried) {
                (Some(_), Some(_)) => ", over which a later one was acknowledged and flushed",
                (Some(_), None) => ", over which a later one was acknowledged",
                _ => "",
            }
        });
        Err(format!("sector {at} holds write {id}{what}, but may hold only {may:?}"))
    }

    /// A read that ended now has brought what it may: older writes are not read again.
    pub(super) fn seen(&mut self, at: usize, bytes: &[u8], now: Moment) {
        let (id, whole) = whose(bytes);
        let Some(sector) = self.sectors.get_mut(at).filter(|_| whole && id != 0) else { return };
        // One whose fate is open may be on one node alone.
        let of = |version: &&Version| {
            version.holds == Some(id) && version.superseded.is_none() && version.ended.is_some()
        };
        let Some(begun) = sector.iter().find(of).map(|version| version.begun) else { return };
        for version in sector.iter_mut().filter(|version| version.ended.is_some_and(|ended| ended < begun)) {
            version.superseded.get_or_insert(now);
        }
    }

    /// Power was lost where this is served: what no flush covers may be as it was before.
    pub(super) fn forget_unflushed(&mut self) {
        for version in self.sectors.iter_mut().flatten().filter(|version| version.buried.is_none()) {
            version.superseded = None;
        }
    }

    /// Nobody will answer what is open.
    pub(super) fn abandon(&mut self, now: Moment) {
        self.flushing = 0;
        for (write, _) in self.open.clone() {
            self.end(now, write, false, false);
        }
    }

    /// The history of a node that has, or may have, missed what came after `parting`.
    pub(super) fn of_one_that_missed(&self, parting: Parting, now: Moment) -> Ledger {
        let mut ledger = self.clone();
        ledger.abandon(now);
        for version in ledger.sectors.iter_mut().flatten() {
            version.buried = version.buried.filter(|at| *at < parting.at);
            version.superseded = version
                .superseded
                .filter(|at| *at < parting.at && (!parting.forgets || version.buried.is_some()));
        }
        ledger
    }

    /// Whether the node that serves this may have been written or flushed after that moment, or not long enough before
    /// it that the other node has everything.
    pub(super) fn is_apart_since(&self, parting: Parting) -> bool {
        let pending = !self.open.is_empty() || self.flushing > 0;
        let unconfirmed = parting.forgets && self.acknowledged >= self.flushed;
        pending || self.active >= parting.at || unconfirmed
    }

    /// Whether a write was acknowledged after that moment.
    pub(super) fn is_written_since(&self, moment: Moment) -> bool {
        self.acknowledged > moment
    }

    /// Whether anything was written to this sector after that moment.
    pub(super) fn is_touched_since(&self, at: usize, moment: Moment) -> bool {
        self.sectors.get(at).is_some_and(|sector| sector.iter().any(|version| version.begun > moment))
    }

    /// Both nodes hold these bytes, durably, and nothing is open: all that was before is over.
    pub(super) fn settle(&mut self, data: &[u8], now: Moment) {
        self.open.clear();
        self.flushing = 0;
        for (sector, bytes) in self.sectors.iter_mut().zip(data.chunks(SECTOR)) {
            let (id, whole) = whose(bytes);
            *sector = vec![Version::settled(whole.then_some(id), now)];
        }
    }
}

/// The write whose contents `bytes` begin with, and whether all of them are.
fn whose(bytes: &[u8]) -> (WriteId, bool) {
    let id = u64::from_le_bytes(bytes.first_chunk().copied().unwrap_or_default());
    (id, bytes == Memory::contents(id))
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn at(seconds: u64) -> Moment {
        Duration::from_secs(seconds)
    }

    fn write(ledger: &mut Ledger, begin: u64, id: WriteId, through: bool) {
        ledger.begin(at(begin), id, Some(id), 0..1);
        ledger.end(at(begin + 1), id, true, through);
    }

    fn flush(ledger: &mut Ledger, begin: u64) {
        ledger.begin_flush(at(begin));
        ledger.end_flush(at(begin + 1), at(begin), true);
    }

    fn holds(ledger: &Ledger, id: WriteId) -> bool {
        ledger.check(0, &Memory::contents(id), at(1000)).is_ok()
    }

    const POWER: fn(u64) -> Parting = |seconds| Parting { at: at(seconds), forgets: true };
    const LINK: fn(u64) -> Parting = |seconds| Parting { at: at(seconds), forgets: false };

    #[test]
    fn a_loss_of_power_takes_what_no_flush_covers() {
        let mut ledger = Ledger::new(1);
        write(&mut ledger, 1, 7, false);
        assert!(holds(&ledger, 7) && !holds(&ledger, 0));
        let mut lost = ledger.clone();
        lost.forget_unflushed();
        assert!(holds(&lost, 7) && holds(&lost, 0));
        flush(&mut ledger, 3);
        ledger.forget_unflushed();
        assert!(holds(&ledger, 7) && !holds(&ledger, 0));
        // A flush that was begun before the write was acknowledged says nothing of it.
        write(&mut ledger, 10, 8, false);
        ledger.begin_flush(at(10));
        ledger.end_flush(at(20), at(10), true);
        ledger.forget_unflushed();
        assert!(holds(&ledger, 7) && holds(&ledger, 8));
        write(&mut ledger, 30, 9, true);
        ledger.forget_unflushed();
        assert!(holds(&ledger, 9) && !holds(&ledger, 8) && !holds(&ledger, 7));
    }

    #[test]
    fn a_node_that_was_away_lacks_what_came_later_and_nothing_else() {
        let mut ledger = Ledger::new(1);
        write(&mut ledger, 1, 7, false);
        write(&mut ledger, 20, 8, false);
        flush(&mut ledger, 22);
        assert!(holds(&ledger, 8) && !holds(&ledger, 7));
        let away = ledger.of_one_that_missed(LINK(10), at(30));
        assert!(holds(&away, 7) && holds(&away, 8) && !holds(&away, 0), "it had stored the first");
        let lost = ledger.of_one_that_missed(POWER(10), at(30));
        assert!(holds(&lost, 7) && holds(&lost, 8) && holds(&lost, 0), "nobody had flushed it");
        let before = ledger.of_one_that_missed(POWER(40), at(50));
        assert!(holds(&before, 8) && !holds(&before, 7), "what is flushed on both stays");
    }

    #[test]
    fn it_is_known_who_was_written_apart() {
        let mut ledger = Ledger::new(2);
        write(&mut ledger, 1, 7, false);
        assert!(ledger.is_apart_since(POWER(5)), "it may not have been confirmed");
        assert!(!ledger.is_apart_since(LINK(5)));
        flush(&mut ledger, 3);
        assert!(!ledger.is_apart_since(POWER(5)));
        ledger.begin_flush(at(6));
        assert!(ledger.is_apart_since(LINK(7)), "a flush is under way");
        ledger.end_flush(at(8), at(6), true);
        assert!(ledger.is_apart_since(LINK(7)) && !ledger.is_apart_since(LINK(9)));
        ledger.begin(at(20), 9, Some(9), 1..2);
        assert!(ledger.is_apart_since(LINK(30)), "so is a write");
        assert!(!ledger.is_written_since(at(10)) && ledger.is_touched_since(1, at(10)));
        assert!(!ledger.is_touched_since(0, at(10)));
    }

    #[test]
    fn what_was_read_is_not_taken_back() {
        let mut ledger = Ledger::new(1);
        write(&mut ledger, 1, 7, false);
        ledger.begin(at(5), 8, Some(8), 0..1);
        ledger.end(at(6), 8, false, false);
        assert!(holds(&ledger, 7) && holds(&ledger, 8), "nobody said what became of it");
        ledger.seen(0, &Memory::contents(8), at(7));
        assert!(!holds(&ledger, 7) && holds(&ledger, 8));
        // A read that was begun before may bring either.
        ledger.check(0, &Memory::contents(7), at(6)).unwrap();
    }

    #[test]
    fn what_is_open_may_or_may_not_be_there() {
        let mut ledger = Ledger::new(1);
        write(&mut ledger, 1, 7, false);
        ledger.begin(at(5), 8, None, 0..1);
        ledger.abandon(at(9));
        assert!(holds(&ledger, 7) && holds(&ledger, 12345), "a delete leaves anything");
        ledger.settle(&Memory::contents(7), at(10));
        assert!(holds(&ledger, 7) && !holds(&ledger, 12345));
    }
}
