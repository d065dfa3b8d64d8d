//! A provider: data, map and metadata, each with what a loss of power may bring back.

use hast_engine::{Counted, Counts};
use hast_net::handshake::Met;

use crate::state::{EXTENTS, Extents, Value, bit};

/// Something on a disk with a volatile cache.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Cached<T> {
    /// What a read gives.
    pub now: T,
    /// What a loss of power may bring back instead, in rising order.
    pub older: Vec<T>,
}

impl<T: Copy + Ord> Cached<T> {
    /// Durable from the start.
    pub fn new(now: T) -> Cached<T> {
        Cached { now, older: Vec::new() }
    }

    /// Into the cache; whatever was there may come back.
    pub fn write(&mut self, value: T) {
        if value != self.now {
            if let Err(at) = self.older.binary_search(&self.now) {
                self.older.insert(at, self.now);
            }
            if let Ok(at) = self.older.binary_search(&value) {
                self.older.remove(at);
            }
            self.now = value;
        }
    }

    /// What is there is durable.
    pub fn flush(&mut self) {
        self.older.clear();
    }

    /// Written and flushed.
    pub fn write_durably(&mut self, value: T) {
        self.now = value;
        self.older.clear();
    }

    /// How many states a loss of power may leave.
    #[must_use]
    pub fn outcomes(&self) -> usize {
        self.older.len() + 1
    }

    /// A loss of power leaves that one: 0 what is there, otherwise an older one.
    pub fn lose(&mut self, choice: usize) {
        if let Some(at) = choice.checked_sub(1)
            && let Some(older) = self.older.get(at)
        {
            self.now = *older;
        }
        self.older.clear();
    }
}

/// What of the metadata matters here.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Meta {
    /// Identity of the resource, 0: none yet.
    pub resuid: u8,
    /// localcnt.
    pub local: u8,
    /// remotecnt.
    pub remote: u8,
    /// prevrole is primary.
    pub was_primary: bool,
    /// As a primary: its map and what it calls stale say all that the other node may lack (C1 (d)).
    pub map_complete: bool,
    /// This copy is inconsistent (L6).
    pub mark: bool,
    /// As a primary: the other node has the newer data (L18).
    pub target: bool,
    /// Extents that are right on the other node alone (L3).
    pub stale: Extents,
    /// The other node's boot id when the nodes were in step, 0: unknown.
    pub peer_boot: u8,
    /// As a secondary: it may have lost what its primary was told that it has (B1).
    pub unsure: bool,
    /// The generation of its latest connection (G1), 0: none.
    pub connection: Generation,
    /// The one before, if the other node may not have stored the latest.
    pub connection_before: Generation,
    /// localcnt when it stored that, or when the nodes became equal since.
    pub connection_local: u8,
}

/// A connection's generation: its counter in the upper byte, the attempt that drew it in the lower.
pub type Generation = u16;

/// A generation as the engine's functions take it.
#[must_use]
pub fn generation(small: Generation) -> u64 {
    u64::from(small >> 8) << 32 | u64::from(small & 0xff)
}

/// What one of those gave.
#[must_use]
pub fn small_generation(generation: u64) -> Generation {
    let counter = u8::try_from(generation >> 32).unwrap_or(u8::MAX);
    let draw = u8::try_from(generation & 0xff).unwrap_or(u8::MAX);
    u16::from(counter) << 8 | u16::from(draw)
}

impl Meta {
    /// The counts as the engine's functions take them.
    #[must_use]
    pub fn counts(&self) -> Counts {
        Counts { local: self.local.into(), remote: self.remote.into() }
    }

    /// The counts, and what localcnt was at the latest connection.
    #[must_use]
    pub fn counted(&self) -> Counted {
        Counted { now: self.counts(), then: self.connection_local.into() }
    }

    /// The generations that it says it has stored.
    #[must_use]
    pub fn met(&self) -> Met {
        Met { last: generation(self.connection), before: generation(self.connection_before) }
    }

    /// What one of those gave.
    pub fn set_counts(&mut self, counts: Counts) {
        self.local = small(counts.local);
        self.remote = small(counts.remote);
    }
}

/// Counts of a bounded world fit a byte.
fn small(count: u64) -> u8 {
    u8::try_from(count).unwrap_or(u8::MAX)
}

/// A node's provider.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Disk {
    /// The data area.
    pub data: [Cached<Value>; EXTENTS],
    /// The first byte of the map.
    pub map: Cached<u8>,
    /// The metadata block.
    pub meta: Cached<Meta>,
    /// Extents that were in the cache when a flush failed: what is read there no flush puts on the medium, until it is
    /// written again.
    pub dropped: Extents,
}

impl Disk {
    /// A flush of the device.
    pub fn flush(&mut self) {
        self.flush_data();
        self.map.flush();
        self.meta.flush();
    }

    /// What a flush does to the data area.
    pub fn flush_data(&mut self) {
        for (extent, data) in self.data.iter_mut().enumerate() {
            if self.dropped & bit(extent) == 0 {
                data.flush();
            }
        }
    }

    /// A flush of the device fails: what the data area has in its cache is dropped.
    pub fn fail_flush(&mut self) {
        for (extent, data) in self.data.iter().enumerate() {
            if data.outcomes() > 1 {
                self.dropped |= bit(extent);
            }
        }
    }

    /// An extent is written, for the first time or again.
    pub fn write(&mut self, extent: usize, value: Value) {
        self.data[extent].write(value);
        self.dropped &= !bit(extent);
    }

    /// The worker has ended, and nobody reads what was dropped any more.
    pub fn forget_dropped(&mut self) {
        for (extent, data) in self.data.iter_mut().enumerate() {
            if self.dropped & bit(extent) != 0 {
                data.lose(1);
            }
        }
        self.dropped = 0;
    }

    /// How many states a loss of power may leave.
    #[must_use]
    pub fn outcomes(&self) -> usize {
        let data: usize = self.data.iter().map(Cached::outcomes).product();
        data * self.map.outcomes() * self.meta.outcomes()
    }

    /// A loss of power leaves that one of them.
    pub fn lose(&mut self, mut choice: usize) {
        for data in &mut self.data {
            let outcomes = data.outcomes();
            data.lose(choice % outcomes);
            choice /= outcomes;
        }
        let outcomes = self.map.outcomes();
        self.map.lose(choice % outcomes);
        choice /= outcomes;
        let outcomes = self.meta.outcomes();
        self.meta.lose(choice % outcomes);
        self.dropped = 0;
    }
}
