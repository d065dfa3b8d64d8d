//! The activemap's bookkeeping: which extents may differ between the nodes, why, and what of that the
//! disk is known to hold.
//!
//! It owns the rules of spec/on-disk.md (Activemap) and M1 to M3 of spec/durability.md as far as they are
//! about sets of extents. It performs no I/O: the engine asks what to write ([`Activemap::begin_write`])
//! and says how it went ([`Activemap::end_write`]). One map write is under way at a time; what changes
//! meanwhile shares the next one.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;
use core::hash::{Hash, Hasher};
use core::ops::Range;

use crate::bitmap::Bitmap;
use crate::rule::{Rule, keeps};

/// A run of map sectors to be written: byte offset from the start of the map, and the bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MapRun {
    /// Bytes from the start of the map, a multiple of the sector size.
    pub offset: u64,
    /// Whole sectors.
    pub bytes: Vec<u8>,
}

/// How a write or delete to some extents ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Both nodes answered that they stored it; a flush on both makes it durable.
    StoredOnBoth,
    /// Not both nodes confirmed it: the extents differ until they are synchronised.
    Unconfirmed,
    /// Neither node was asked to store it.
    NotIssued,
}

/// The activemap of one resource in the primary role.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Activemap {
    /// Writes and deletes in flight, by extent.
    in_flight: BTreeMap<u32, u32>,
    /// Extents still to synchronise.
    sync: Bitmap,
    /// The `keepdirty` most recently written extents.
    recent: Recent,
    /// Stored on both nodes since the last flush on both began.
    unflushed: Bitmap,
    /// Stored on both nodes before the flush that is running began.
    covered: Bitmap,
    /// The union of all the above: what the disk is to hold.
    wanted: Bitmap,
    /// Bits that the disk certainly holds, durably.
    sure: Bitmap,
    /// Map sectors whose wanted bits differ from those last handed out for writing.
    changed: BTreeSet<u32>,
    /// The sectors and bits of the map write under way.
    writing: Option<Vec<(u32, Vec<u8>)>>,
    extents_per_sector: u32,
    sectorsize: u32,
}

impl Activemap {
    /// The map of `extents` extents as read from disk: every set bit is an extent to synchronise.
    /// `sectorsize` is the provider's, in bytes.
    #[must_use]
    pub fn new(extents: u32, keepdirty: u32, sectorsize: u32, on_disk: &[u8]) -> Activemap {
        let sync = Bitmap::from_bytes(extents, on_disk);
        Activemap {
            in_flight: BTreeMap::new(),
            wanted: sync.clone(),
            sure: sync.clone(),
            sync,
            recent: Recent::new(keepdirty),
            unflushed: Bitmap::new(extents),
            covered: Bitmap::new(extents),
            changed: BTreeSet::new(),
            writing: None,
            extents_per_sector: sectorsize.max(1).saturating_mul(8),
            sectorsize,
        }
    }

    /// A write or delete to `extents` wants to start: it counts as in flight from now on, and the extents
    /// as the most recently used ones. It may be issued once [`Activemap::is_durable`] holds for them.
    pub fn start(&mut self, extents: Range<u32>) {
        for extent in extents {
            let count = self.in_flight.entry(extent).or_insert(0);
            *count = count.saturating_add(1);
            if let Some(evicted) = self.recent.touch(extent) {
                self.refresh(evicted);
            }
            self.refresh(extent);
        }
    }

    /// A write or delete to `extents` has ended.
    pub fn finish(&mut self, extents: Range<u32>, outcome: Outcome) {
        for extent in extents {
            if let Some(count) = self.in_flight.get_mut(&extent) {
                *count = count.saturating_sub(1);
                if *count == 0 {
                    self.in_flight.remove(&extent);
                }
            }
            match outcome {
                // M2: an answer is not enough, either disk may lose it.
                Outcome::StoredOnBoth => keeps(Rule::M2) && self.unflushed.insert(extent),
                Outcome::Unconfirmed => self.sync.insert(extent),
                Outcome::NotIssued => false,
            };
            self.refresh(extent);
        }
    }

    /// Rule 1 of spec/on-disk.md: whether the bits of `extents` are durable on disk and no map write
    /// under way may take them away.
    #[must_use]
    pub fn is_durable(&self, mut extents: Range<u32>) -> bool {
        extents.all(|extent| self.sure.contains(extent))
    }

    /// `extent` is to be synchronised.
    pub fn mark_dirty(&mut self, extent: u32) {
        self.sync.insert(extent);
        self.refresh(extent);
    }

    /// Nothing needs to be synchronised any more: the other node has taken it over.
    pub fn forget_dirty(&mut self) {
        let forgotten = self.sync.clone();
        self.sync.clear();
        for extent in forgotten.iter() {
            self.refresh(extent);
        }
    }

    /// The most recently written extents stay in the map only as long as something else keeps them there: no writes
    /// are to come.
    pub fn forget_recent(&mut self) {
        for extent in self.recent.clear() {
            self.refresh(extent);
        }
    }

    /// Everything set in `received`, the other node's map, is to be synchronised too.
    pub fn merge(&mut self, received: &Bitmap) {
        for extent in received.iter() {
            self.mark_dirty(extent);
        }
    }

    /// Every block of `extent` was copied and answered: it need not be synchronised any more, but stays
    /// in the map until a flush on both nodes has made the copy durable.
    pub fn copied(&mut self, extent: u32) {
        if self.sync.remove(extent) {
            self.unflushed.insert(extent);
            self.refresh(extent);
        }
    }

    /// A flush on both nodes begins: it covers what was answered until now.
    pub fn flush_begins(&mut self) {
        if self.covered.is_empty() {
            core::mem::swap(&mut self.covered, &mut self.unflushed);
        } else {
            self.covered.union(&self.unflushed);
            self.unflushed.clear();
        }
    }

    /// The flush succeeded on both nodes: what it covered and nobody touched since leaves the map.
    pub fn flush_succeeded(&mut self) {
        let covered: Vec<u32> = self.covered.iter().collect();
        self.covered.clear();
        for extent in covered {
            self.refresh(extent);
        }
    }

    /// The flush did not succeed on both nodes: what it covered is as unflushed as before.
    pub fn flush_failed(&mut self) {
        self.unflushed.union(&self.covered);
        self.covered.clear();
    }

    /// The other node is gone, or failed a flush: whatever is not durable there is to be synchronised
    /// (durability.md M3).
    pub fn peer_lost(&mut self) {
        self.sync.union(&self.unflushed);
        self.sync.union(&self.covered);
        self.unflushed.clear();
        self.covered.clear();
    }

    /// Every extent stored on both nodes that is not known to be durable on both.
    #[must_use]
    pub fn not_durable(&self) -> Vec<u32> {
        let mut all = self.unflushed.clone();
        all.union(&self.covered);
        all.iter().collect()
    }

    /// Whether some extent is stored on both nodes and not known to be durable on both.
    #[must_use]
    pub fn has_not_durable(&self) -> bool {
        !self.unflushed.is_empty() || !self.covered.is_empty()
    }

    /// Whether `extent` was stored on both nodes and is not known to be durable on both.
    #[must_use]
    pub fn is_not_durable(&self, extent: u32) -> bool {
        self.unflushed.contains(extent) || self.covered.contains(extent)
    }

    /// Whether `extent` was stored on both nodes after the last flush began.
    #[must_use]
    pub fn is_unflushed(&self, extent: u32) -> bool {
        self.unflushed.contains(extent)
    }

    /// Whether the disk's map is to hold the bit of `extent`.
    #[must_use]
    pub fn is_wanted(&self, extent: u32) -> bool {
        self.wanted.contains(extent)
    }

    /// A flush failed, and map writes were not flushed each by itself: nobody knows what the disk holds, and all
    /// of it is written again.
    pub fn distrust(&mut self) {
        let mut all = self.sure.clone();
        all.union(&self.wanted);
        self.sure.clear();
        for extent in all.iter() {
            self.changed.insert(extent / self.extents_per_sector);
        }
    }

    /// Extents stored on both nodes that no flush has covered yet.
    #[must_use]
    pub fn unflushed(&self) -> u32 {
        self.unflushed.count()
    }

    /// The extents still to synchronise.
    #[must_use]
    pub fn to_synchronise(&self) -> &Bitmap {
        &self.sync
    }

    /// Whether a write or delete to `extent` is in flight.
    #[must_use]
    pub fn is_in_flight(&self, extent: u32) -> bool {
        self.in_flight.contains_key(&extent)
    }

    /// Extents with writes in flight or to synchronise: what status calls dirty.
    #[must_use]
    pub fn dirty(&self) -> u32 {
        let only_in_flight = self.in_flight.keys().filter(|&&extent| !self.sync.contains(extent)).count();
        self.sync.count().saturating_add(u32::try_from(only_in_flight).unwrap_or(u32::MAX))
    }

    /// Whether the disk's map is to change and nothing is being written.
    #[must_use]
    pub fn wants_write(&self) -> bool {
        self.writing.is_none() && !self.changed.is_empty()
    }

    /// Whether a map write is under way.
    #[must_use]
    pub fn is_writing(&self) -> bool {
        self.writing.is_some()
    }

    /// Begins one map write of every changed sector, neighbours joined; empty if there is nothing to
    /// write or a write is under way. From here on no bit that the write clears counts as durable.
    pub fn begin_write(&mut self) -> Vec<MapRun> {
        if !self.wants_write() {
            return Vec::new();
        }
        let size = self.sectorsize as usize;
        let sectors: Vec<(u32, Vec<u8>)> = core::mem::take(&mut self.changed)
            .into_iter()
            .map(|sector| {
                let start = sector as usize * size;
                (sector, self.wanted.bytes(start..start + size))
            })
            .collect();
        let mut runs: Vec<MapRun> = Vec::new();
        for (sector, bytes) in &sectors {
            let offset = u64::from(*sector) * u64::from(self.sectorsize);
            match runs.last_mut() {
                Some(run) if run.offset + run.bytes.len() as u64 == offset => {
                    run.bytes.extend_from_slice(bytes)
                }
                _ => runs.push(MapRun { offset, bytes: bytes.clone() }),
            }
            for extent in self.extents_of_sector(*sector) {
                if !self.wanted.contains(extent) {
                    self.sure.remove(extent);
                }
            }
        }
        self.writing = Some(sectors);
        runs
    }

    /// The map write under way has ended. After a failure its sectors hold nobody knows what, and are
    /// written again with the next write.
    pub fn end_write(&mut self, durable: bool) {
        for (sector, bytes) in self.writing.take().unwrap_or_default() {
            if durable {
                let written = Bitmap::from_bytes(self.extents_per_sector, &bytes);
                let base = sector.saturating_mul(self.extents_per_sector);
                for bit in written.iter() {
                    self.sure.insert(base.saturating_add(bit));
                }
            } else {
                for extent in self.extents_of_sector(sector) {
                    self.sure.remove(extent);
                }
                self.changed.insert(sector);
            }
        }
    }

    fn extents_of_sector(&self, sector: u32) -> Range<u32> {
        let start = sector.saturating_mul(self.extents_per_sector);
        start..start.saturating_add(self.extents_per_sector).min(self.wanted.len())
    }

    fn refresh(&mut self, extent: u32) {
        let wanted = self.in_flight.contains_key(&extent)
            || self.sync.contains(extent)
            || self.recent.contains(extent)
            || self.unflushed.contains(extent)
            || self.covered.contains(extent);
        let changed = if wanted { self.wanted.insert(extent) } else { self.wanted.remove(extent) };
        if changed || (wanted && !self.sure.contains(extent) && self.writing.is_none()) {
            self.changed.insert(extent / self.extents_per_sector);
        }
    }
}

/// A list of at most `limit` extents, the most recently used first.
#[derive(Clone, Debug)]
struct Recent {
    limit: u32,
    clock: u64,
    stamps: BTreeMap<u32, u64>,
    order: BTreeMap<u64, u32>,
}

/// The same extents in the same order: stamps are only how that is remembered.
impl PartialEq for Recent {
    fn eq(&self, other: &Recent) -> bool {
        self.limit == other.limit && self.order.values().eq(other.order.values())
    }
}

impl Eq for Recent {}

impl Hash for Recent {
    fn hash<H: Hasher>(&self, hasher: &mut H) {
        self.limit.hash(hasher);
        for extent in self.order.values() {
            extent.hash(hasher);
        }
    }
}

impl Recent {
    fn new(limit: u32) -> Recent {
        Recent { limit, clock: 0, stamps: BTreeMap::new(), order: BTreeMap::new() }
    }

    /// Moves `extent` to the front; gives back the extent that had to leave.
    fn touch(&mut self, extent: u32) -> Option<u32> {
        self.clock = self.clock.saturating_add(1);
        if let Some(stamp) = self.stamps.insert(extent, self.clock) {
            self.order.remove(&stamp);
        }
        self.order.insert(self.clock, extent);
        if self.order.len() <= self.limit as usize {
            return None;
        }
        let (_, evicted) = self.order.pop_first()?;
        self.stamps.remove(&evicted);
        Some(evicted)
    }

    fn contains(&self, extent: u32) -> bool {
        self.stamps.contains_key(&extent)
    }

    /// Forgets all of them; gives them back.
    fn clear(&mut self) -> Vec<u32> {
        self.stamps.clear();
        core::mem::take(&mut self.order).into_values().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;
    use proptest::prelude::*;

    fn write_map(map: &mut Activemap, disk: &mut [u8]) -> usize {
        let runs = map.begin_write();
        for run in &runs {
            let start = run.offset as usize;
            disk[start..start + run.bytes.len()].copy_from_slice(&run.bytes);
        }
        map.end_write(true);
        runs.len()
    }

    #[test]
    fn a_write_may_start_only_when_its_bits_are_durable() {
        let mut map = Activemap::new(8, 2, 512, &[0; 512]);
        map.start(3..5);
        assert!(!map.is_durable(3..5));
        let runs = map.begin_write();
        assert_eq!((runs.len(), runs[0].bytes[0]), (1, 0b1_1000));
        assert!(!map.is_durable(3..5), "written but not yet durable");
        map.end_write(true);
        assert!(map.is_durable(3..5) && !map.is_durable(3..6));
        map.start(3..5);
        assert!(!map.wants_write() && map.is_durable(3..5), "they are there already");
    }

    #[test]
    fn a_bit_being_cleared_is_not_durable_any_more() {
        let mut map = Activemap::new(8, 0, 512, &[0; 512]);
        let mut disk = [0; 512];
        map.start(1..2);
        write_map(&mut map, &mut disk);
        map.finish(1..2, Outcome::StoredOnBoth);
        map.flush_begins();
        map.flush_succeeded();
        assert_eq!(map.begin_write()[0].bytes[0], 0);
        map.start(1..2);
        assert!(!map.is_durable(1..2), "the write under way clears it");
        map.end_write(true);
        assert!(!map.is_durable(1..2));
        assert_eq!(write_map(&mut map, &mut disk), 1);
        assert!(map.is_durable(1..2));
        assert_eq!(disk[0], 2);
    }

    #[test]
    fn a_failed_map_write_is_written_again() {
        let mut map = Activemap::new(8, 4, 512, &[0; 512]);
        map.start(0..1);
        map.begin_write();
        map.end_write(false);
        assert!(map.wants_write() && !map.is_durable(0..1));
        assert_eq!(map.begin_write()[0].bytes[0], 1);
    }

    #[test]
    fn sectors_far_apart_are_written_where_they_belong_and_again_when_they_are_distrusted() {
        let mut map = Activemap::new(3 * 4096, 0, 512, &[0; 3 * 512]);
        map.start(0..1);
        map.start(8200..8201);
        for _ in 0..2 {
            let places: Vec<u64> = map.begin_write().iter().map(|run| run.offset).collect();
            assert_eq!(places, [0, 1024]);
            map.end_write(true);
            assert!(map.is_durable(0..1) && map.is_durable(8200..8201) && !map.wants_write());
            map.distrust();
            assert!(!map.is_durable(0..1) && !map.is_durable(8200..8201));
        }
        assert!(map.is_wanted(0) && map.is_wanted(8200) && !map.is_wanted(4096));
    }

    #[test]
    fn an_extent_is_unflushed_until_a_flush_begins_after_its_answer() {
        let mut map = Activemap::new(8, 2, 512, &[0; 512]);
        map.start(3..4);
        assert!(!map.is_unflushed(3));
        map.finish(3..4, Outcome::StoredOnBoth);
        assert!(map.is_unflushed(3) && !map.is_unflushed(4));
        map.flush_begins();
        assert!(!map.is_unflushed(3));
        map.flush_failed();
        assert!(map.is_unflushed(3));
    }

    #[test]
    fn keepdirty_keeps_the_most_recent_extents_on_disk() {
        let mut map = Activemap::new(8, 2, 512, &[0; 512]);
        let mut disk = [0; 512];
        for extent in [0, 1, 2, 4, 5] {
            map.start(extent..extent + 1);
            write_map(&mut map, &mut disk);
            map.finish(extent..extent + 1, Outcome::StoredOnBoth);
        }
        map.flush_begins();
        map.flush_succeeded();
        write_map(&mut map, &mut disk);
        assert_eq!(disk[0], 0b11_0000);
        assert_eq!(map.dirty(), 0);
    }

    #[test]
    fn what_the_peer_may_have_lost_is_synchronised() {
        let mut map = Activemap::new(16, 1, 512, &[0; 512]);
        for extent in 0..3 {
            map.start(extent..extent + 1);
        }
        map.finish(0..1, Outcome::StoredOnBoth);
        map.flush_begins();
        map.finish(1..2, Outcome::StoredOnBoth);
        map.peer_lost();
        map.finish(2..3, Outcome::Unconfirmed);
        assert_eq!(map.to_synchronise().iter().collect::<Vec<_>>(), vec![0, 1, 2]);
        map.flush_succeeded();
        assert_eq!(map.dirty(), 3);
    }

    #[test]
    fn what_did_not_begin_or_need_not_be_copied_changes_nothing() {
        let mut map = Activemap::new(8, 1, 512, &[0; 512]);
        let before = map.clone();
        map.finish(3..4, Outcome::NotIssued);
        map.copied(3);
        assert_eq!(map, before);
        map.start(3..4);
        assert_ne!(map, before);
        map.finish(3..4, Outcome::NotIssued);
        assert_ne!(map, before, "it is the most recently used one");
        assert_ne!(Activemap::new(8, 2, 512, &[0; 512]), before, "another keepdirty");
    }

    /// T4.
    #[test]
    fn only_changed_sectors_are_written_and_neighbours_share_a_run() {
        let mut map = Activemap::new(5 * 4096, 64, 512, &[]);
        for extent in [0, 4096, 4 * 4096] {
            map.start(extent..extent + 1);
        }
        let runs = map.begin_write();
        assert_eq!(
            runs.iter().map(|r| (r.offset, r.bytes.len())).collect::<Vec<_>>(),
            [(0, 1024), (2048, 512)]
        );
    }

    #[derive(Clone, Debug)]
    enum Step {
        Start(u32),
        Finish(usize, bool),
        FlushBegins,
        FlushEnds(bool),
        Lost,
        ForgetRecent,
        Begin,
        End(bool),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => (0u32..12).prop_map(Step::Start),
            3 => (any::<usize>(), any::<bool>()).prop_map(|(n, both)| Step::Finish(n, both)),
            1 => Just(Step::FlushBegins),
            1 => any::<bool>().prop_map(Step::FlushEnds),
            1 => Just(Step::Lost),
            1 => Just(Step::ForgetRecent),
            3 => Just(Step::Begin),
            3 => any::<bool>().prop_map(Step::End),
        ]
    }

    proptest! {
        /// Rules 1 to 3 of spec/on-disk.md over arbitrary histories, with a disk that a crash may leave
        /// with either the old or the new sector while a write is under way.
        #[test]
        fn what_is_called_durable_is_on_disk_whatever_happens(steps in proptest::collection::vec(step(), 0..120), keep in 0u32..4) {
            let mut map = Activemap::new(12, keep, 512, &[0; 512]);
            let mut possible = vec![[0u8; 2]]; // contents the disk may have after a crash now
            let mut pending: Option<[u8; 2]> = None;
            let mut open = Vec::new();
            let mut flushing = false;
            let mut unconfirmed = BTreeSet::new();
            for step in steps {
                match step {
                    Step::Start(extent) => { map.start(extent..extent + 1); open.push(extent); }
                    Step::Finish(n, both) => if !open.is_empty() {
                        let extent = open.swap_remove(n % open.len());
                        if !both { unconfirmed.insert(extent); }
                        map.finish(extent..extent + 1, if both { Outcome::StoredOnBoth } else { Outcome::Unconfirmed });
                    },
                    Step::FlushBegins => if !flushing { map.flush_begins(); flushing = true; },
                    Step::FlushEnds(ok) => if flushing {
                        flushing = false;
                        if ok { map.flush_succeeded() } else { map.flush_failed() }
                    },
                    Step::Lost => { map.peer_lost(); flushing = false; }
                    Step::ForgetRecent => { map.forget_recent(); prop_assert!(map.recent.order.is_empty()); }
                    Step::Begin => if let Some(run) = map.begin_write().first() {
                        let new = [run.bytes[0], run.bytes[1]];
                        possible.push(new);
                        pending = Some(new);
                    },
                    Step::End(ok) => if let Some(new) = pending.take() {
                        map.end_write(ok);
                        if ok { possible = vec![new]; }
                    },
                }
                for extent in 0..12 {
                    let on_disk = possible.iter().all(|b| b[extent as usize / 8] & (1 << (extent % 8)) != 0);
                    prop_assert!(!map.is_durable(extent..extent + 1) || on_disk, "extent {extent}");
                    let needed = unconfirmed.contains(&extent) || open.contains(&extent);
                    prop_assert!(!needed || map.wanted.contains(extent));
                    prop_assert!(!unconfirmed.contains(&extent) || map.sync.contains(extent));
                }
                prop_assert!(map.recent.order.len() <= keep as usize);
            }
            // Nothing wanted is forgotten: one more good write brings the disk to exactly the wanted bits.
            if pending.is_some() { map.end_write(true); possible = vec![pending.unwrap_or_default()]; }
            let last = map.begin_write().first().map_or(possible[possible.len() - 1], |run| [run.bytes[0], run.bytes[1]]);
            if possible.len() == 1 || map.is_writing() {
                prop_assert_eq!(&map.wanted.bytes(0..2)[..], &last[..]);
            }
        }
    }
}
