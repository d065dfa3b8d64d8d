//! The activemap over every sequence of operations up to a bound: that it is the union of sets which the spec
//! says it is, and that rules 1 to 3 of spec/on-disk.md (Activemap) hold at every moment, a loss of power included.
//!
//! Two things watch it. The *model* is the naive form of the sets. The *disk* knows of every bit whether all that
//! may be on it after a loss of power has the bit, and of every extent, by when its writes were answered and when
//! flushes began, whether the nodes may differ there.

use hast_format::activemap::{Activemap, Outcome};
use hast_format::bitmap::Bitmap;

use crate::source::{Case, Source};

/// The code under proof.
pub trait Subject {
    /// A write wants to start.
    fn start(map: &mut Activemap, extent: u32) {
        map.start(extent..extent + 1);
    }

    /// A write has ended.
    fn finish(map: &mut Activemap, extent: u32, outcome: Outcome) {
        map.finish(extent..extent + 1, outcome);
    }

    /// The other node's map has come.
    fn merge(map: &mut Activemap, received: &Bitmap) {
        map.merge(received);
    }

    /// An extent was copied.
    fn copied(map: &mut Activemap, extent: u32) {
        map.copied(extent);
    }

    /// The other node is gone.
    fn peer_lost(map: &mut Activemap) {
        map.peer_lost();
    }

    /// A flush on both nodes begins.
    fn flush_begins(map: &mut Activemap) {
        map.flush_begins();
    }

    /// It has ended.
    fn flush_ended(map: &mut Activemap, succeeded: bool) {
        if succeeded { map.flush_succeeded() } else { map.flush_failed() }
    }

    /// A map write has ended.
    fn end_write(map: &mut Activemap, durable: bool) {
        map.end_write(durable);
    }

    /// Whether a write may be issued.
    fn is_durable(map: &Activemap, extent: u32) -> bool {
        map.is_durable(extent..extent + 1)
    }

    /// How many extents stay in the map for having been written last.
    fn keepdirty(wanted: u32) -> u32 {
        wanted
    }
}

/// The code as it ships.
#[derive(Clone, Copy, Debug)]
pub struct Real;
impl Subject for Real {}

/// Extents that are written here.
const EXTENTS: usize = 2;
/// Most extents that a world has between and besides them.
const MOST: usize = 9;

/// Where the extents are: side by side in one sector of the map, or at the ends of two. Sectors of one byte do.
const WORLDS: [[u32; EXTENTS]; 2] = [[0, 1], [0, 8]];

/// Every sequence of up to `steps` operations on the first `extents` extents, one or two, from any map.
pub fn sequences<T: Subject>(source: &mut impl Source, steps: u64, extents: usize) -> Case {
    let places = if extents > 1 { source.pick(&WORLDS) } else { WORLDS[0] };
    let keepdirty = source.below(extents as u64 + 1) as u32;
    let mut world = World::new(places, keepdirty, T::keepdirty(keepdirty), source.below(1 << extents) as u8);
    world.used = extents;
    for _ in 0..steps {
        world.step::<T>(source);
        world.check::<T>();
    }
    world.settle::<T>();
    Ok(())
}

/// What is known of one extent.
#[derive(Clone, Copy, Debug, Default)]
struct Extent {
    /// Writes that wait for their bit.
    waiting: u32,
    /// Writes that were issued and have not ended.
    issued: u32,
    /// To be synchronised.
    sync: bool,
    /// Answered by both nodes; since then no flush has begun, or one has and not ended.
    unflushed: bool,
    covered: bool,
    /// The disk has the bit, whatever of the writes under way reaches it.
    certain: bool,
    /// The bit in the map write under way.
    pending: Option<bool>,
    /// By the order of events alone: the nodes may differ here, and the map had to say so.
    differs: bool,
    /// When a write was last answered by both nodes and when such an answer was last made durable.
    answered: Option<u64>,
}

impl Extent {
    fn in_flight(&self) -> u32 {
        self.waiting + self.issued
    }
}

/// What may happen.
#[derive(Clone, Copy, Debug)]
enum Op {
    /// A write begins or ends; an extent was copied; the other node's map has it.
    Start(usize),
    Finish(usize, Outcome),
    Copied(usize),
    Merge(usize),
    FlushBegins,
    FlushEnded(bool),
    PeerLost,
    /// The other node has taken over what is to be synchronised.
    HandOver,
    WriteMap,
    MapWritten(bool),
}

/// A map, its model and its disk.
struct World {
    map: Activemap,
    places: [u32; EXTENTS],
    /// Of these as many are used.
    used: usize,
    extents: [Extent; EXTENTS],
    /// Most recently written first, at most `keepdirty`.
    recent: Vec<usize>,
    keepdirty: u32,
    /// Counts events.
    now: u64,
    flush_began: Option<u64>,
    writing: bool,
}

impl World {
    fn new(places: [u32; EXTENTS], keepdirty: u32, given: u32, bits: u8) -> World {
        let mut on_disk = [0; MOST.div_ceil(8)];
        let mut extents = [Extent::default(); EXTENTS];
        for (index, place) in places.into_iter().enumerate() {
            if bits & (1 << index) != 0 {
                on_disk[place as usize / 8] |= 1 << (place % 8);
                extents[index] = Extent { sync: true, certain: true, differs: true, ..Extent::default() };
            }
        }
        World {
            map: Activemap::new(MOST as u32, given, 1, &on_disk),
            places,
            used: EXTENTS,
            extents,
            recent: Vec::new(),
            keepdirty,
            now: 0,
            flush_began: None,
            writing: false,
        }
    }

    /// One of the operations that make sense now, on the map and on the model.
    fn step<T: Subject>(&mut self, source: &mut impl Source) {
        self.now += 1;
        let mut possible = vec![Op::PeerLost, Op::WriteMap];
        for (index, extent) in self.extents.iter().enumerate().take(self.used) {
            possible.push(Op::Start(index));
            possible.push(Op::Merge(index));
            if extent.issued > 0 {
                possible.push(Op::Finish(index, Outcome::StoredOnBoth));
                possible.push(Op::Finish(index, Outcome::Unconfirmed));
            }
            if extent.waiting > 0 {
                possible.push(Op::Finish(index, Outcome::NotIssued));
            }
            if extent.sync {
                possible.push(Op::Copied(index));
            }
        }
        if self.flush_began.is_some() {
            possible.extend([Op::FlushEnded(true), Op::FlushEnded(false)]);
        } else {
            possible.push(Op::FlushBegins);
        }
        if self.writing {
            possible.extend([Op::MapWritten(true), Op::MapWritten(false)]);
        }
        // Not while anything waits, is in flight or is not durable.
        if self.extents.iter().all(|extent| extent.in_flight() == 0 && extent.answered.is_none()) {
            possible.push(Op::HandOver);
        }
        match source.pick(&possible) {
            Op::Start(index) => self.start::<T>(index),
            Op::Finish(index, outcome) => self.finish::<T>(index, outcome),
            Op::Copied(index) => self.copied::<T>(index),
            Op::Merge(index) => self.merge::<T>(index),
            Op::FlushBegins => self.flush_begins::<T>(),
            Op::FlushEnded(succeeded) => self.flush_ended::<T>(succeeded),
            Op::PeerLost => self.lose_peer::<T>(),
            Op::HandOver => self.hand_over(),
            Op::WriteMap => self.write_map(),
            Op::MapWritten(durable) => self.end_write::<T>(durable),
        }
        // A write is issued as soon as it may be (rule 1).
        for index in 0..EXTENTS {
            if T::is_durable(&self.map, self.places[index]) {
                let extent = &mut self.extents[index];
                extent.issued += std::mem::take(&mut extent.waiting);
                extent.differs |= extent.sync;
            }
        }
    }

    fn start<T: Subject>(&mut self, index: usize) {
        T::start(&mut self.map, self.places[index]);
        self.extents[index].waiting += 1;
        self.recent.retain(|other| *other != index);
        self.recent.insert(0, index);
        self.recent.truncate(self.keepdirty as usize);
    }

    fn finish<T: Subject>(&mut self, index: usize, outcome: Outcome) {
        let now = self.now;
        let extent = &mut self.extents[index];
        match outcome {
            Outcome::StoredOnBoth => {
                extent.issued -= 1;
                extent.unflushed = true;
                extent.answered = Some(now);
            }
            Outcome::Unconfirmed => {
                extent.issued -= 1;
                extent.sync = true;
                extent.differs = true;
            }
            Outcome::NotIssued => extent.waiting -= 1,
        }
        T::finish(&mut self.map, self.places[index], outcome);
    }

    /// The other node has it now, and not yet durably.
    fn copied<T: Subject>(&mut self, index: usize) {
        let now = self.now;
        let extent = &mut self.extents[index];
        T::copied(&mut self.map, self.places[index]);
        extent.sync = false;
        extent.unflushed = true;
        // The map had not said yet that what it never had on disk may differ.
        if std::mem::take(&mut extent.differs) {
            extent.answered = Some(now);
        }
    }

    fn flush_begins<T: Subject>(&mut self) {
        T::flush_begins(&mut self.map);
        self.flush_began = Some(self.now);
        for extent in &mut self.extents {
            extent.covered |= std::mem::take(&mut extent.unflushed);
        }
    }

    fn flush_ended<T: Subject>(&mut self, succeeded: bool) {
        T::flush_ended(&mut self.map, succeeded);
        let began = self.flush_began.take().unwrap_or(self.now);
        for extent in &mut self.extents {
            let covered = std::mem::take(&mut extent.covered);
            if succeeded {
                // Durable is what was answered before the flush began.
                extent.answered = extent.answered.filter(|answered| *answered > began);
            } else {
                extent.unflushed |= covered;
            }
        }
    }

    /// The link is lost.
    fn lose_peer<T: Subject>(&mut self) {
        T::peer_lost(&mut self.map);
        self.flush_began = None;
        for extent in &mut self.extents {
            extent.differs |= extent.answered.take().is_some();
            extent.sync |= std::mem::take(&mut extent.unflushed) | std::mem::take(&mut extent.covered);
        }
    }

    /// The other node has taken over what is to be synchronised.
    fn hand_over(&mut self) {
        self.map.forget_dirty();
        for extent in &mut self.extents {
            extent.sync = false;
            extent.differs = false;
        }
    }

    /// The other node's map has this extent; if it is the first, all.
    fn merge<T: Subject>(&mut self, index: usize) {
        let mut received = Bitmap::new(MOST as u32);
        for at in 0..self.used {
            if at == index || index == 0 {
                received.insert(self.places[at]);
                self.extents[at].sync = true;
            }
        }
        T::merge(&mut self.map, &received);
    }

    /// The map is written: whole sectors, and each with exactly the bits that are wanted.
    fn write_map(&mut self) {
        let wants = self.map.wants_write();
        let runs = self.map.begin_write();
        assert_eq!(wants, !runs.is_empty());
        for run in &runs {
            for (byte, bits) in run.bytes.iter().enumerate() {
                let sector = run.offset as u32 + byte as u32;
                let mut expected = 0;
                for index in self.in_sector(sector) {
                    expected |= u8::from(self.wanted(index)) << (self.places[index] % 8);
                }
                assert_eq!(*bits, expected, "sector {sector}");
                for index in self.in_sector(sector) {
                    let wanted = self.wanted(index);
                    let extent = &mut self.extents[index];
                    extent.pending = Some(wanted);
                    // Power may be lost before or after this write.
                    extent.certain &= wanted;
                }
            }
        }
        self.writing |= !runs.is_empty();
    }

    fn end_write<T: Subject>(&mut self, durable: bool) {
        T::end_write(&mut self.map, durable);
        self.writing = false;
        for extent in &mut self.extents {
            match extent.pending.take() {
                Some(bit) if durable => extent.certain = bit,
                // It may have reached the disk or not: what is certain of both remains.
                _ => {}
            }
        }
    }

    fn in_sector(&self, sector: u32) -> impl Iterator<Item = usize> + use<> {
        let places = self.places;
        (0..EXTENTS).filter(move |index| places[*index] / 8 == sector)
    }

    /// The union of the sets: what the disk's map is to have.
    fn wanted(&self, index: usize) -> bool {
        let extent = &self.extents[index];
        extent.in_flight() > 0
            || extent.sync
            || extent.unflushed
            || extent.covered
            || self.recent.contains(&index)
    }

    /// What holds after every operation.
    fn check<T: Subject>(&self) {
        let mut dirty = 0;
        let mut undurable = Vec::new();
        for (index, extent) in self.extents.iter().enumerate() {
            let place = self.places[index];
            // The map is what the model is.
            assert_eq!(self.map.to_synchronise().contains(place), extent.sync, "{extent:?}");
            assert_eq!(self.map.is_in_flight(place), extent.in_flight() > 0, "{extent:?}");
            dirty += u32::from(extent.sync || extent.in_flight() > 0);
            if extent.unflushed || extent.covered {
                undurable.push(place);
            }
            // Rule 1: what counts as durable is on the disk, whatever of the writes under way reaches it.
            assert!(!T::is_durable(&self.map, place) || extent.certain, "rule 1: {extent:?}");
            assert!(extent.issued == 0 || extent.certain, "rule 1: {extent:?}");
            // Rule 2: no bit is cleared before both nodes have the data durably.
            let owed = extent.differs || extent.answered.is_some();
            assert!(!owed || extent.certain, "rule 2: {extent:?}");
            // Rule 3: a map that has a bit too many costs time only. One that is read after a loss of power now,
            // at its worst, still knows of all that may differ.
            if owed || extent.issued > 0 {
                let mut on_disk = [0; MOST.div_ceil(8)];
                if extent.certain {
                    on_disk[place as usize / 8] = 1 << (place % 8);
                }
                let again = Activemap::new(MOST as u32, self.keepdirty, 1, &on_disk);
                assert!(again.to_synchronise().contains(place), "rule 3: {extent:?}");
            }
        }
        assert_eq!(self.map.dirty(), dirty);
        assert_eq!(self.map.not_durable(), undurable);
        let unflushed = self.extents.iter().filter(|extent| extent.unflushed).count();
        assert_eq!(self.map.unflushed() as usize, unflushed);
        assert_eq!(self.map.is_writing(), self.writing);
    }

    /// When map writes succeed again the disk has exactly the wanted bits: nothing is forgotten and nothing is kept
    /// for ever. Beyond what may differ that is at most `keepdirty` extents.
    fn settle<T: Subject>(&mut self) {
        self.end_write::<T>(true);
        self.write_map();
        self.end_write::<T>(true);
        assert!(!self.map.wants_write());
        for index in 0..EXTENTS {
            assert_eq!(self.extents[index].certain, self.wanted(index), "{:?}", self.extents[index]);
            assert_eq!(T::is_durable(&self.map, self.places[index]), self.wanted(index));
        }
        let clean = |extent: &Extent| {
            extent.certain && extent.in_flight() == 0 && !extent.sync && !extent.unflushed && !extent.covered
        };
        let kept = self.extents.iter().filter(|extent| clean(extent)).count();
        assert!(kept <= self.keepdirty as usize, "{kept} extents for having been written last");
    }
}
