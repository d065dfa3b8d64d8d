//! A disk that forgets: what was written is readable at once, but survives a loss of power only once a flush has
//! covered it, or by luck. It can also be told to fail or to be slow, by region.
//!
//! Owns the bytes of one provider. Knows nothing of processes, requests of the kernel, or time.

use std::collections::{BTreeMap, BTreeSet};

use hast_format::layout::METADATA_SIZE;
use hast_sim::random::Random;

/// Bytes in a sector: what a loss of power keeps or drops as a whole, outside metadata and map.
pub(super) const SECTOR: usize = 512;

/// What a part of the provider is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Region {
    Metadata,
    Map,
    Data,
}

impl Region {
    pub(super) const ALL: [Region; 3] = [Region::Metadata, Region::Map, Region::Data];
}

/// What is asked of a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Read,
    Write,
    Flush,
}

/// Something that is wrong with a disk for a while: one in `chance` operations of a kind on a region fails. A flush is
/// one on a region if it has something to write there.
#[derive(Clone, Copy, Debug)]
pub(super) struct Fault {
    pub(super) kind: Kind,
    pub(super) region: Region,
    pub(super) chance: u64,
}

/// The operation failed; the kernel will say EIO.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Failed;

/// How many cached sectors a loss of power leaves on the medium, as so many in eight.
const KEPT: [u64; 4] = [0, 0, 4, 7];

type Sector = [u8; SECTOR];

/// One node's disk.
#[derive(Debug)]
pub(super) struct Disk {
    /// What a reader sees.
    seen: Vec<u8>,
    /// What a loss of power leaves for certain.
    durable: Vec<u8>,
    /// Every version of each sector written since, by sector number, oldest first, each with the number of its write.
    cache: BTreeMap<usize, Vec<(u64, Sector)>>,
    writes: u64,
    /// Sectors that a failed flush has given up: a reader sees them until the provider is opened again.
    given_up: BTreeSet<usize>,
    /// Where the data area begins, in bytes.
    data: u64,
    /// A failed flush gives nothing up: the next one tries again.
    pub(super) keeps: bool,
    pub(super) faults: Vec<Fault>,
    random: Random,
}

impl Disk {
    /// A disk of `size` zero bytes.
    pub(super) fn new(size: usize, random: Random) -> Disk {
        Disk {
            seen: vec![0; size],
            durable: vec![0; size],
            cache: BTreeMap::new(),
            writes: 0,
            given_up: BTreeSet::new(),
            data: METADATA_SIZE,
            keeps: false,
            faults: Vec::new(),
            random,
        }
    }

    /// The provider's metadata says that its data begin here.
    pub(super) fn set_data_offset(&mut self, offset: u64) {
        self.data = offset;
    }

    /// Bytes.
    pub(super) fn size(&self) -> u64 {
        self.seen.len() as u64
    }

    /// What a reader sees.
    pub(super) fn seen(&self) -> &[u8] {
        &self.seen
    }

    /// What a loss of power leaves for certain.
    pub(super) fn durable(&self) -> &[u8] {
        &self.durable
    }

    /// The number of the latest write: a flush that begins now covers all up to it.
    pub(super) fn written(&self) -> u64 {
        self.writes
    }

    /// The first sector from byte `from` on that would not survive a loss of power for certain.
    pub(super) fn first_unflushed(&self, from: u64) -> Option<usize> {
        let first = usize::try_from(from).ok()? / SECTOR;
        let cached = self.cache.range(first..).map(|(at, _)| *at).next();
        let given_up = self.given_up.range(first..).next().copied();
        cached.into_iter().chain(given_up).min()
    }

    /// Reads `length` bytes at `offset`, fewer at the end.
    pub(super) fn read(&mut self, offset: u64, length: usize) -> Result<&[u8], Failed> {
        if self.fails(Kind::Read, self.region(offset)) {
            return Err(Failed);
        }
        let start = usize::try_from(offset).unwrap_or(usize::MAX).min(self.seen.len());
        let end = start.saturating_add(length).min(self.seen.len());
        Ok(self.seen.get(start..end).unwrap_or_default())
    }

    /// Writes whole or broken sectors. A write that fails may have got anywhere.
    pub(super) fn write(&mut self, offset: u64, bytes: &[u8]) -> Result<(), Failed> {
        if self.fails(Kind::Write, self.region(offset)) {
            let sectors = self.random.below((bytes.len() / SECTOR) as u64 + 1);
            let got = usize::try_from(sectors).unwrap_or(0).saturating_mul(SECTOR);
            self.put(offset, bytes.get(..got).unwrap_or_default());
            return Err(Failed);
        }
        self.put(offset, bytes);
        Ok(())
    }

    /// Makes what was written up to number `covers` durable. When that fails, some of it is clean from then on, and no
    /// flush ever writes it, as with Linux' page cache; or all of it stays, if the disk [keeps](Disk::keeps) it.
    pub(super) fn flush(&mut self, covers: u64) -> Result<(), Failed> {
        let failing: Vec<Region> = Region::ALL
            .into_iter()
            .filter(|region| self.has_to_write(*region, covers) && self.fails(Kind::Flush, *region))
            .collect();
        let sectors: Vec<usize> = self.cache.keys().copied().collect();
        for at in sectors {
            let fails = failing.contains(&self.region((at * SECTOR) as u64));
            if fails && (self.keeps || self.random.one_in(2)) {
                continue;
            }
            self.write_out(at, covers, fails);
        }
        if failing.is_empty() { Ok(()) } else { Err(Failed) }
    }

    /// Somebody opens the provider whom nobody else has open: clean pages may have left the cache by now.
    pub(super) fn forget_given_up(&mut self) {
        for at in std::mem::take(&mut self.given_up) {
            let cached = self.cache.get(&at).and_then(|versions| versions.last()).map(|(_, bytes)| *bytes);
            let medium = sector(&self.durable, at);
            copy(&mut self.seen, at, &cached.unwrap_or(medium));
        }
    }

    /// The power is gone. Each cached sector has got to the medium or has not, in one of its versions; one of the
    /// metadata or the map may have got there in part.
    pub(super) fn lose_power(&mut self) {
        let kept = self.random.pick(&KEPT).unwrap_or(0);
        let mut tear = self.random.one_in(2);
        for (at, versions) in std::mem::take(&mut self.cache) {
            if self.random.below(8) >= kept {
                continue;
            }
            let which = usize::try_from(self.random.below(versions.len() as u64)).unwrap_or(0);
            let Some((_, bytes)) = versions.get(which) else { continue };
            let mut left = *bytes;
            if tear && self.region((at * SECTOR) as u64) != Region::Data && self.random.one_in(4) {
                tear = false;
                let old = sector(&self.durable, at);
                let line = usize::try_from(self.random.below(SECTOR as u64)).unwrap_or(0);
                // The beginning is new and the rest old, or the other way round.
                let part = if self.random.one_in(2) { 0..line } else { line..SECTOR };
                if let (Some(left), Some(old)) = (left.get_mut(part.clone()), old.get(part)) {
                    left.copy_from_slice(old);
                }
            }
            copy(&mut self.durable, at, &left);
        }
        self.given_up.clear();
        self.seen.clone_from(&self.durable);
    }

    fn region(&self, offset: u64) -> Region {
        if offset < METADATA_SIZE {
            Region::Metadata
        } else if offset < self.data {
            Region::Map
        } else {
            Region::Data
        }
    }

    fn fails(&mut self, kind: Kind, region: Region) -> bool {
        let fault = self.faults.iter().find(|fault| fault.kind == kind && fault.region == region);
        fault.map(|fault| fault.chance).is_some_and(|chance| self.random.one_in(chance))
    }

    fn has_to_write(&self, region: Region, covers: u64) -> bool {
        self.cache.iter().any(|(at, versions)| {
            self.region((at * SECTOR) as u64) == region
                && versions.iter().any(|(number, _)| *number <= covers)
        })
    }

    /// Takes what was written to a sector up to number `covers` out of the cache, to the medium unless it is given up.
    fn write_out(&mut self, at: usize, covers: u64, give_up: bool) {
        let Some(versions) = self.cache.get_mut(&at) else { return };
        let count = versions.iter().take_while(|(number, _)| *number <= covers).count();
        let Some((_, bytes)) = versions.drain(..count).next_back() else { return };
        let rest = !versions.is_empty();
        if !rest {
            self.cache.remove(&at);
        }
        if !give_up {
            copy(&mut self.durable, at, &bytes);
            self.given_up.remove(&at);
        } else if !rest {
            self.given_up.insert(at);
        }
    }

    fn put(&mut self, offset: u64, bytes: &[u8]) {
        let start = usize::try_from(offset).unwrap_or(usize::MAX).min(self.seen.len());
        let length = bytes.len().min(self.seen.len() - start);
        if length == 0 {
            return;
        }
        self.writes += 1;
        if let (Some(seen), Some(bytes)) = (self.seen.get_mut(start..start + length), bytes.get(..length)) {
            seen.copy_from_slice(bytes);
        }
        for at in start / SECTOR..=(start + length - 1) / SECTOR {
            let version = (self.writes, sector(&self.seen, at));
            self.cache.entry(at).or_default().push(version);
            self.given_up.remove(&at);
        }
    }
}

fn sector(bytes: &[u8], at: usize) -> Sector {
    let mut sector = [0; SECTOR];
    if let Some(from) = bytes.get(at * SECTOR..(at + 1) * SECTOR) {
        sector.copy_from_slice(from);
    }
    sector
}

fn copy(to: &mut [u8], at: usize, bytes: &Sector) {
    if let Some(to) = to.get_mut(at * SECTOR..(at + 1) * SECTOR) {
        to.copy_from_slice(bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DATA: u64 = 8192;

    fn disk(seed: u64) -> Disk {
        let mut disk = Disk::new(64 << 10, Random::new(seed));
        disk.set_data_offset(DATA);
        disk
    }

    fn write(disk: &mut Disk, sector: u64, byte: u8) {
        disk.write(DATA + sector * 512, &[byte; SECTOR]).unwrap();
    }

    fn holds(disk: &mut Disk, sector: u64) -> u8 {
        let bytes = disk.read(DATA + sector * 512, SECTOR).unwrap().to_vec();
        assert!(bytes.iter().all(|byte| *byte == bytes[0]), "data sectors are never torn");
        bytes[0]
    }

    #[test]
    fn what_was_flushed_stays_and_the_rest_may_go() {
        let (mut kept, mut dropped, mut between) = (0, 0, 0);
        for seed in 0..200 {
            let mut disk = disk(seed);
            write(&mut disk, 0, 1);
            let covers = disk.written();
            write(&mut disk, 1, 2);
            write(&mut disk, 2, 3);
            write(&mut disk, 2, 4);
            disk.flush(covers).unwrap();
            assert_eq!(disk.first_unflushed(0), Some(DATA as usize / SECTOR + 1));
            assert_eq!((holds(&mut disk, 1), holds(&mut disk, 2)), (2, 4), "all is readable");
            disk.lose_power();
            assert_eq!(holds(&mut disk, 0), 1);
            assert_eq!(disk.first_unflushed(0), None);
            match holds(&mut disk, 2) {
                0 => dropped += 1,
                3 => between += 1,
                4 => kept += 1,
                other => panic!("{other}"),
            }
        }
        assert!(kept > 10 && dropped > 10 && between > 10, "{kept} {between} {dropped}");
    }

    #[test]
    fn the_metadata_is_torn_at_any_line_and_within() {
        let (mut at_a_line, mut within) = (0, 0);
        for seed in 0..400 {
            let mut disk = disk(seed);
            disk.write(0, &[7; 4096]).unwrap();
            disk.lose_power();
            let sectors = disk.seen()[..4096].chunks(SECTOR);
            within += sectors.clone().filter(|sector| sector.iter().any(|byte| *byte != sector[0])).count();
            let new = sectors.filter(|sector| sector[0] == 7).count();
            at_a_line += usize::from(new > 0 && new < 8);
        }
        assert!(at_a_line > 100 && within > 10, "{at_a_line} {within}");
    }

    #[test]
    fn faults_keep_to_their_region_and_kind() {
        let mut disk = disk(1);
        disk.faults = vec![Fault { kind: Kind::Write, region: Region::Map, chance: 1 }];
        disk.write(0, &[1; SECTOR]).unwrap();
        disk.write(METADATA_SIZE, &[1; SECTOR]).unwrap_err();
        write(&mut disk, 0, 1);
        disk.faults = vec![Fault { kind: Kind::Read, region: Region::Data, chance: 1 }];
        disk.read(DATA, SECTOR).unwrap_err();
        disk.read(METADATA_SIZE, SECTOR).unwrap();
    }

    #[test]
    fn a_failed_flush_gives_up_some_and_nobody_sees_it_at_once() {
        let mut lost = 0;
        for seed in 0..50 {
            let mut disk = disk(seed);
            write(&mut disk, 0, 1);
            disk.write(0, &[5; SECTOR]).unwrap();
            disk.faults = vec![Fault { kind: Kind::Flush, region: Region::Data, chance: 1 }];
            disk.flush(disk.written()).unwrap_err();
            assert_eq!(holds(&mut disk, 0), 1);
            assert_eq!(disk.durable()[0], 5, "the other regions are flushed");
            disk.faults.clear();
            disk.flush(disk.written()).unwrap();
            disk.forget_given_up();
            lost += u32::from(holds(&mut disk, 0) == 0);
        }
        assert!((10..40).contains(&lost), "{lost}");
        let mut keeping = disk(1);
        keeping.keeps = true;
        keeping.faults = vec![Fault { kind: Kind::Flush, region: Region::Data, chance: 1 }];
        write(&mut keeping, 0, 1);
        keeping.flush(1).unwrap_err();
        keeping.faults.clear();
        keeping.flush(1).unwrap();
        keeping.lose_power();
        assert_eq!(holds(&mut keeping, 0), 1);
    }

    #[test]
    fn a_flush_with_nothing_to_write_in_a_bad_region_is_good() {
        let mut disk = disk(1);
        disk.faults = vec![Fault { kind: Kind::Flush, region: Region::Metadata, chance: 1 }];
        write(&mut disk, 0, 1);
        disk.flush(disk.written()).unwrap();
    }
}
