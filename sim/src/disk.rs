//! A disk with a volatile cache: what was written is readable at once, but survives a loss of power only
//! once a flush has covered it, or by luck.

use std::collections::{BTreeMap, BTreeSet};

use hast_engine::{DiskOp, DiskResult};
use hast_net::buffer::Buffer;
use hast_net::errno::Errno;

use crate::random::Random;

/// Bytes in a sector.
pub const SECTOR: usize = 512;

/// What goes wrong, as one chance in so many; 0 is never.
#[derive(Clone, Copy, Debug, Default)]
pub struct Chances {
    /// Reads that fail.
    pub read: u64,
    /// Writes that fail.
    pub write: u64,
    /// Deletes that fail.
    pub delete: u64,
    /// Flushes that fail.
    pub flush: u64,
}

/// Bytes of a disk, from its start, that go on failing until they are taken off [`Disk::bad`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region {
    /// The first byte.
    pub from: u64,
    /// The first byte after it.
    pub to: u64,
    /// Reads that touch it fail.
    pub unreadable: bool,
    /// Writes and deletes that touch it fail.
    pub unwritable: bool,
    /// It can be read again once all of it has been written.
    pub heals: bool,
}

impl Region {
    /// `length` bytes that cannot be read, though a write to them succeeds.
    #[must_use]
    pub fn unreadable(from: u64, length: u64) -> Region {
        Region { from, to: from.saturating_add(length), unreadable: true, unwritable: false, heals: false }
    }

    /// `length` bytes that cannot be written, though what they hold can be read.
    #[must_use]
    pub fn unwritable(from: u64, length: u64) -> Region {
        Region { from, to: from.saturating_add(length), unreadable: false, unwritable: true, heals: false }
    }

    /// `length` bytes that can be neither read nor written.
    #[must_use]
    pub fn dead(from: u64, length: u64) -> Region {
        Region { unreadable: true, ..Region::unwritable(from, length) }
    }

    /// Whether one of `length` bytes at `offset` is among them.
    #[must_use]
    pub fn touches(&self, offset: u64, length: u64) -> bool {
        self.from < offset.saturating_add(length) && offset < self.to
    }
}

/// One node's disk.
#[derive(Clone, Debug)]
pub struct Disk {
    /// What a reader sees.
    current: Vec<u8>,
    /// What a loss of power leaves for certain.
    durable: Vec<u8>,
    /// Sectors written since, in order, each with the number of its write.
    cache: Vec<(u64, usize, [u8; SECTOR])>,
    writes: u64,
    /// Sectors that a failed flush has dropped from the cache: a reader sees them as long as the process lives.
    dropped: BTreeSet<usize>,
    /// A failed flush drops nothing, as where there is no page cache.
    pub keeps: bool,
    /// What goes wrong now.
    pub chances: Chances,
    /// Where it goes wrong each time.
    pub bad: Vec<Region>,
    /// The next flush fails, and none after it.
    pub next_flush_fails: bool,
    /// What is deleted reads as zeros; otherwise nothing can be deleted, as where nobody knows what it would leave.
    pub deletes: bool,
    /// A flush that fails also drops what was written after it began.
    pub drops_later: bool,
    /// What lies below this byte is not dropped when a flush fails.
    pub spares_below: u64,
    /// Bytes that a loss of power leaves written as one, or not: 512 or 4096.
    pub unit: usize,
    /// How often each sector is in the cache, by byte offset.
    cached: BTreeMap<usize, usize>,
    /// The byte offsets of sectors of which something has changed, on the medium or in the cache, since they
    /// were last [taken](Disk::take_touched).
    touched: BTreeSet<usize>,
    /// Every write is durable at once, and a flush not supported.
    pub no_cache: bool,
}

impl Disk {
    /// A disk with these contents, a whole number of sectors.
    #[must_use]
    pub fn new(contents: Vec<u8>) -> Disk {
        Disk {
            durable: contents.clone(),
            current: contents,
            cache: Vec::new(),
            writes: 0,
            dropped: BTreeSet::new(),
            keeps: false,
            chances: Chances::default(),
            bad: Vec::new(),
            next_flush_fails: false,
            deletes: true,
            drops_later: false,
            spares_below: 0,
            unit: SECTOR,
            cached: BTreeMap::new(),
            touched: BTreeSet::new(),
            no_cache: false,
        }
    }

    /// What a reader sees.
    #[must_use]
    pub fn contents(&self) -> &[u8] {
        &self.current
    }

    /// The number of the latest write: a flush issued now covers all up to it.
    #[must_use]
    pub fn written(&self) -> u64 {
        self.writes
    }

    /// Carries `op` out; `covers` is what [`Disk::written`] was when the operation was issued.
    pub fn carry_out(&mut self, op: &DiskOp, covers: u64, random: &mut Random) -> DiskResult {
        let fails = |chance: u64, random: &mut Random| chance > 0 && random.one_in(chance);
        match op {
            DiskOp::Read { offset, length } => {
                if !self.is_readable(*offset, u64::from(*length)) || fails(self.chances.read, random) {
                    return Err(Errno::EIO);
                }
                let start = usize::try_from(*offset).unwrap_or(usize::MAX);
                let data = self.current.get(start..start.saturating_add(*length as usize));
                data.map(|data| Some(Buffer::from(data.to_vec()))).ok_or(Errno::EIO)
            }
            DiskOp::Write { offset, data } => {
                if !self.is_writable(*offset, data.len() as u64) {
                    return Err(Errno::EIO);
                }
                if fails(self.chances.write, random) {
                    // A failed write may have got anywhere.
                    let sectors = random.below((data.len() / SECTOR) as u64 + 1);
                    self.write(*offset, data, usize::try_from(sectors).unwrap_or(0));
                    return Err(Errno::EIO);
                }
                self.write(*offset, data, usize::MAX);
                Ok(None)
            }
            DiskOp::Delete { offset, length } => {
                if !self.deletes {
                    return Err(Errno::EOPNOTSUPP);
                }
                if !self.is_writable(*offset, *length) {
                    return Err(Errno::EIO);
                }
                let fails = fails(self.chances.delete, random);
                let sectors = length / SECTOR as u64;
                let sectors = if fails { random.below(sectors + 1) } else { sectors };
                let data = vec![0; usize::try_from(*length).unwrap_or(0)];
                self.write(*offset, &data, usize::try_from(sectors).unwrap_or(0));
                if fails { Err(Errno::EIO) } else { Ok(None) }
            }
            DiskOp::Flush if self.no_cache => Err(Errno::EOPNOTSUPP),
            DiskOp::Flush => {
                if std::mem::take(&mut self.next_flush_fails) || fails(self.chances.flush, random) {
                    self.drop_some(covers, random);
                    return Err(Errno::EIO);
                }
                let (kept, flushed): (Vec<_>, Vec<_>) =
                    std::mem::take(&mut self.cache).into_iter().partition(|(number, _, _)| *number > covers);
                for (_, at, bytes) in flushed {
                    put(&mut self.durable, at, &bytes);
                    self.touched.insert(at);
                }
                self.cache = kept;
                self.count_cached();
                Ok(None)
            }
        }
    }

    /// Whether none of these bytes goes on failing to be read.
    #[must_use]
    pub fn is_readable(&self, offset: u64, length: u64) -> bool {
        !self.bad.iter().any(|region| region.unreadable && region.touches(offset, length))
    }

    /// Whether none of these bytes goes on failing to be written.
    #[must_use]
    pub fn is_writable(&self, offset: u64, length: u64) -> bool {
        !self.bad.iter().any(|region| region.unwritable && region.touches(offset, length))
    }

    /// Linux' fsync(2): what could not be written is clean from then on, and nobody hears of it again.
    fn drop_some(&mut self, covers: u64, random: &mut Random) {
        if self.keeps {
            return;
        }
        let covers = if self.drops_later { u64::MAX } else { covers };
        let (dropped, touched) = (&mut self.dropped, &mut self.touched);
        let spared = usize::try_from(self.spares_below).unwrap_or(usize::MAX);
        let size = self.unit;
        let mut last = None;
        self.cache.retain(|(number, at, _)| {
            // With sectors of 4096 bytes those of one sector share their fate.
            let unit = (*number, at / size);
            let fate = last.filter(|(of, _)| *of == unit && size > SECTOR).map(|(_, kept)| kept);
            let kept = *number > covers || *at < spared || fate.unwrap_or_else(|| random.one_in(2));
            last = Some((unit, kept));
            if !kept {
                dropped.insert(*at);
                touched.insert(*at);
            }
            kept
        });
        self.count_cached();
    }

    fn count_cached(&mut self) {
        self.cached.clear();
        for (_, at, _) in &self.cache {
            *self.cached.entry(*at).or_default() += 1;
        }
    }

    /// The system could not write back some of what is cached: that is dropped now, and the next flush to end says so.
    pub fn fail_write_back(&mut self, random: &mut Random) {
        if !self.keeps && !self.no_cache {
            self.drop_some(self.writes, random);
            self.next_flush_fails = true;
        }
    }

    /// The process that had the disk open is gone, and the system has no reason to keep clean pages: what was
    /// dropped is now as it is on the medium. Gives the byte offsets of what has changed by that.
    pub fn forget_dropped(&mut self) -> Vec<usize> {
        let mut changed = Vec::new();
        for at in std::mem::take(&mut self.dropped) {
            let cached = self.cache.iter().rev().find(|(_, cached, _)| *cached == at);
            let medium = self.durable.get(at..at + SECTOR);
            let Some(left) = cached.map(|(_, _, bytes)| bytes.as_slice()).or(medium) else { continue };
            if let Some(seen) = self.current.get_mut(at..at + SECTOR)
                && seen != left
            {
                seen.copy_from_slice(left);
                changed.push(at);
                self.touched.insert(at);
            }
        }
        changed
    }

    /// Power is gone: each cached sector got to the medium or did not, in any order; one of the metadata's or
    /// the map's, below `torn`, may have got there in part, and one of those from `torn_data` on, if there is such an
    /// offset. Gives the byte offset of that one.
    pub fn lose_power(
        &mut self,
        torn: usize,
        torn_data: Option<usize>,
        random: &mut Random,
    ) -> Option<usize> {
        let mut tear = true;
        let mut torn_at = None;
        let mut last = None;
        for (number, at, bytes) in std::mem::take(&mut self.cache) {
            // With sectors of 4096 bytes those of one sector share their fate.
            let unit = (number, at / self.unit);
            let kept = if let Some((_, kept)) = last.filter(|(of, _)| *of == unit && self.unit > SECTOR) {
                kept
            } else if at < torn && tear && random.one_in(4) {
                tear = false;
                usize::try_from(random.below(SECTOR as u64)).unwrap_or(0)
            } else if torn_at.is_none() && torn_data.is_some_and(|from| at >= from) && random.one_in(4) {
                torn_at = Some(at);
                usize::try_from(random.below(SECTOR as u64 / 8)).unwrap_or(0) * 8
            } else if random.one_in(2) {
                SECTOR
            } else {
                0
            };
            last = (kept == 0 || kept == SECTOR).then_some((unit, kept));
            put(&mut self.durable, at, bytes.get(..kept).unwrap_or_default());
            self.touched.insert(at);
        }
        self.touched.append(&mut self.dropped);
        self.cached.clear();
        self.next_flush_fails = false;
        self.current.clone_from(&self.durable);
        torn_at
    }

    /// The process was killed while `op` was with the disk: it may have been carried out in part.
    pub fn abandon(&mut self, op: &DiskOp, random: &mut Random) {
        if let DiskOp::Write { offset, data } = op {
            let sectors = random.below((data.len() / SECTOR) as u64 + 1);
            self.write(*offset, data, usize::try_from(sectors).unwrap_or(0));
        }
    }

    /// A sector that nobody touched holds something else now.
    pub fn rot(&mut self, sector: usize, random: &mut Random) {
        let mut bytes = [0; SECTOR];
        for chunk in bytes.chunks_exact_mut(8) {
            chunk.copy_from_slice(&random.number().to_le_bytes());
        }
        self.write_through((sector * SECTOR) as u64, &bytes);
    }

    /// Writes what is durable at once; everything cached becomes so too.
    pub fn write_through(&mut self, offset: u64, data: &[u8]) {
        self.write(offset, data, usize::MAX);
        for (_, at, bytes) in std::mem::take(&mut self.cache) {
            self.touched.insert(at);
            put(&mut self.durable, at, &bytes);
            self.cached.remove(&at);
        }
    }

    /// The disk had nothing else to do for a while: its cache is on the medium.
    pub fn settle(&mut self) {
        self.write_through(0, &[]);
    }

    /// The first eight bytes of whatever the sector at byte `at` may hold after a loss of power.
    #[must_use]
    pub fn may_hold(&self, at: usize) -> Vec<u64> {
        let id = |bytes: &[u8]| bytes.first_chunk::<8>().map_or(0, |id| u64::from_le_bytes(*id));
        let whole =
            [&self.current, &self.durable].into_iter().filter_map(|all| all.get(at..at + SECTOR)).map(id);
        let cached = self.cache.iter().filter(|(_, cached, _)| *cached == at).map(|(_, _, bytes)| id(bytes));
        whole.chain(cached).collect()
    }

    /// Every version of the sector at byte `at` that there is: what a reader sees, and what a loss of power may leave.
    pub fn versions(&self, at: usize) -> impl Iterator<Item = &[u8]> {
        let whole = [&self.current, &self.durable];
        let whole = whole.into_iter().filter_map(move |all| all.get(at..at + SECTOR));
        let count = self.cached.get(&at).copied().unwrap_or(0);
        let cached = self.cache.iter().rev().filter(move |(_, cached, _)| *cached == at).take(count);
        whole.chain(cached.map(|(_, _, bytes)| bytes.as_slice()))
    }

    /// What a loss of power leaves for certain.
    #[must_use]
    pub fn medium(&self) -> &[u8] {
        &self.durable
    }

    /// Whether something of the bytes from `from` to `to` is in the cache alone.
    #[must_use]
    pub fn is_cached(&self, from: usize, to: usize) -> bool {
        self.cache.iter().any(|(_, at, _)| (from..to).contains(at))
    }

    /// The byte offsets of sectors that have changed since the last call.
    pub fn take_touched(&mut self) -> BTreeSet<usize> {
        std::mem::take(&mut self.touched)
    }

    /// All of it may have changed: another disk is in its place.
    pub fn touch_all(&mut self) {
        self.touched.extend((0..self.current.len()).step_by(SECTOR));
    }

    /// The byte offsets of sectors that a write numbered up to `write` has left in the cache.
    #[must_use]
    pub fn cached(&self, write: u64) -> Vec<usize> {
        self.cache.iter().filter(|(number, _, _)| *number <= write).map(|(_, at, _)| *at).collect()
    }

    fn write(&mut self, offset: u64, data: &[u8], sectors: usize) {
        self.writes += 1;
        let end = offset.saturating_add((data.len() as u64).min(sectors.saturating_mul(SECTOR) as u64));
        self.bad.retain(|region| !(region.heals && offset <= region.from && region.to <= end));
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        for (index, chunk) in data.chunks_exact(SECTOR).take(sectors).enumerate() {
            let at = start.saturating_add(index * SECTOR);
            let mut bytes = [0; SECTOR];
            bytes.copy_from_slice(chunk);
            put(&mut self.current, at, &bytes);
            self.touched.insert(at);
            if self.no_cache {
                put(&mut self.durable, at, &bytes);
            } else {
                self.cache.push((self.writes, at, bytes));
                *self.cached.entry(at).or_default() += 1;
            }
        }
    }
}

fn put(to: &mut [u8], at: usize, bytes: &[u8]) {
    if let Some(to) = to.get_mut(at..at.saturating_add(bytes.len())) {
        to.copy_from_slice(bytes);
    }
}
