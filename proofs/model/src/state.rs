//! What a state of the model is made of.
//!
//! Everything is small and canonical: two states that differ only in how they came about are equal. An
//! extent holds one value, the number of the write that filled it; 0 is what `create` leaves.

use hast_engine::{Counts, Durable, Flushed, Half};
use hast_format::activemap::Activemap;

/// Most extents of a world.
pub const EXTENTS: usize = 3;

/// Which of the two nodes.
pub type NodeId = usize;
/// Extents as bits.
pub type Extents = u8;
/// What an extent holds: the number of the write that filled it.
pub type Value = u8;

/// The other node.
#[must_use]
pub fn other(node: NodeId) -> NodeId {
    1 - node
}

/// The bit of an extent.
#[must_use]
pub fn bit(extent: usize) -> Extents {
    1 << extent
}

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
    /// This copy is inconsistent (L6).
    pub mark: bool,
    /// As a primary: the other node has the newer data (L18).
    pub target: bool,
    /// Extents that are right on the other node alone (L3).
    pub stale: Extents,
    /// The other node's boot id when the nodes were in step, 0: unknown.
    pub peer_boot: u8,
}

impl Meta {
    /// The counts as the engine's functions take them.
    #[must_use]
    pub fn counts(&self) -> Counts {
        Counts { local: self.local.into(), remote: self.remote.into() }
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

/// One machine.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Node {
    /// Its provider.
    pub disk: Disk,
    /// Which start of the host this is, from 1.
    pub boot: u8,
    /// What its worker, if there is one, knows to be durable: the engine's own account.
    pub durable: Durable<()>,
    /// In the primary role its worker's memory; otherwise it is a secondary, or nothing.
    pub primary: Option<Engine>,
}

/// A primary's memory.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Engine {
    /// The metadata as it will be saved next.
    pub meta: Meta,
    /// A save is wanted.
    pub save: bool,
    /// The engine's own map.
    pub map: Activemap,
    /// The map write under way: the byte that goes to disk.
    pub map_writing: Option<u8>,
    /// This disconnected period's rise of localcnt (C1).
    pub counted: Counted,
    /// Extents that are right on the secondary and wrong here.
    pub stale: Extents,
    /// Extents that the secondary alone has stored, and no flush there has covered.
    pub lone: Extents,
    /// This node is out of date as a whole (L18).
    pub target: bool,
    /// Something in the sync set was not confirmed by both nodes.
    pub unconfirmed: bool,
    /// The secondary was told that it is out of date.
    pub marked: bool,
    /// Something may differ, or the counts are not equal yet.
    pub session: bool,
    /// How far the end of the session has come.
    pub step: Step,
    /// "Sync done" is on its way, with this localcnt.
    pub done: Option<u8>,
    /// The flush under way.
    pub flush: Option<FlushRun>,
    /// Extents whose client waits for localcnt to rise before its flush is complete (L9).
    pub counting: Option<Extents>,
    /// Requests, oldest first.
    pub writes: Vec<Write>,
    /// The secondary's counts as it said when the nodes last met.
    pub peer: (u8, u8),
}

/// Whether localcnt has risen since the nodes were last connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Counted {
    /// No.
    No,
    /// In memory.
    Pending,
    /// On disk, or it need not be.
    Durable,
}

/// The end of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Step {
    /// There is something to copy.
    Copying,
    /// The flush under way covers every copy.
    Flushing,
    /// The equal counts are being saved here.
    Saving,
    /// The secondary is being told.
    Telling,
}

/// A flush of both nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FlushRun {
    /// What this node's disk will say.
    pub local: Says,
    /// What the secondary will say.
    pub remote: Says,
    /// Extents whose last acknowledged write came before it.
    pub covers: Extents,
    /// Extents that the secondary alone had stored when it began.
    pub lone: Extents,
}

/// [`Flushed`], in a state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Says {
    /// Durable.
    Yes,
    /// Not asked, or lost.
    Unknown,
    /// Failed.
    Failed,
}

impl From<Says> for Flushed {
    fn from(says: Says) -> Flushed {
        match says {
            Says::Yes => Flushed::Yes,
            Says::Unknown => Flushed::Unknown,
            Says::Failed => Flushed::Failed,
        }
    }
}

/// A write from its start to its last answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Write {
    /// Where.
    pub extent: u8,
    /// Its number.
    pub value: Value,
    /// How far it is with the client.
    pub stage: Stage,
    /// This node's part.
    pub local: Half,
    /// The secondary's part, as this node knows it.
    pub remote: Half,
    /// How far it really is on the other node.
    pub there: There,
    /// memsync: the secondary said that it has the data.
    pub received: bool,
    /// The connection that it went out on still stands.
    pub same_connection: bool,
    /// A local flush failed meanwhile.
    pub suspect: bool,
    /// The secondary has flushed since it stored it.
    pub flushed: bool,
    /// Both parts are known, and the map has learnt of it.
    pub finished: bool,
}

impl Write {
    /// Whether somebody relies on the secondary's part of it, which has not been heard of.
    #[must_use]
    pub fn is_owed(&self, extent: u32) -> bool {
        u32::from(self.extent) == extent
            && self.stage == (Stage::Completed { well: true })
            && self.remote == Half::Awaited
    }
}

/// As in the engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Stage {
    /// Its bit is not durable yet.
    Map,
    /// With the disk, the peer or both.
    Issued,
    /// The secondary has to flush it first.
    Flushing {
        /// The flush under way does.
        covered: bool,
    },
    /// Something has to be durable in the metadata first.
    Saving,
    /// The secondary has to mark itself first.
    Marking,
    /// The client has its answer.
    Completed {
        /// A good one.
        well: bool,
    },
}

/// Where the secondary's part of a write is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum There {
    /// It was not sent.
    NotSent,
    /// On its way.
    Sent,
    /// In the secondary's memory.
    Received,
    /// On the secondary's disk, maybe in its cache.
    Stored,
}

/// The connection between a primary and its secondary.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Link {
    /// None.
    Down,
    /// The primary has said who it is.
    Hello {
        /// It has just drawn the resuid.
        virgin: bool,
        /// The localcnt that it said.
        said: u8,
    },
    /// The secondary's whole map is durable; the resuid is not yet taken over (L19).
    FullMap {
        /// As above.
        said: u8,
    },
    /// The secondary has answered.
    Answered {
        /// As above.
        said: u8,
        /// It was never used.
        virgin: bool,
        /// Its map.
        map: Extents,
        /// Its data is the newer one.
        from_secondary: bool,
    },
    /// The primary makes the merged map durable.
    Merging,
    /// The secondary has to write down that it is out of date (L6).
    Marking,
    /// Requests go through.
    Up {
        /// The secondary has cleared its own map.
        cleared: bool,
    },
}

/// What is still allowed to happen: this is what bounds a world.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Budget {
    /// Writes of the client.
    pub writes: u8,
    /// Writes at the same time.
    pub at_once: u8,
    /// The connection breaks.
    pub cuts: u8,
    /// A host loses power.
    pub powers: u8,
    /// A worker is killed; its disk's cache stays.
    pub kills: u8,
    /// Promotions and demotions.
    pub roles: u8,
    /// ... of which so many promotions by force.
    pub forced: u8,
    /// `create`.
    pub creates: u8,
    /// Writes that fail, on either node.
    pub faults: u8,
    /// Flushes that fail: on the primary and on the secondary.
    pub flush_faults: [u8; 2],
}

/// What an outside observer knows, who sees both disks and every answer. No transition of the protocol looks
/// at it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Ghost {
    /// For each extent the values that a read may give, as bits.
    pub may: [u16; EXTENTS],
    /// Extents with writes that were acknowledged by that node without the other's confirmation.
    pub alone: [Extents; 2],
    /// ... that were acknowledged early (async, memsync), and that no count covers yet.
    pub loose: Extents,
    /// Extents that were given to that node alone, acknowledged or not.
    pub changed: [Extents; 2],
    /// Extents whose last acknowledged write a completed flush covers.
    pub flushed: Extents,
    /// The administrator made that node primary while the other one had newer data in these extents, which it
    /// could not know.
    pub behind: [Extents; 2],
    /// Extents that fell back on that node when it lost power, or because it was created.
    pub fell_back: [Extents; 2],
    /// That node was connected while it missed something, or has been copied into, and was not in step since.
    pub should_know: [bool; 2],
    /// All that one node had written alone was copied to the other, or they met for the first time, and the counts
    /// are not equal on both yet (C2).
    pub window: bool,
    /// What went wrong, or was seen.
    pub seen: Seen,
}

/// Moments that cannot be seen in a state afterwards.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Seen {
    /// Both nodes had been written apart, and the handshake let them together.
    pub missed_split: bool,
    /// The handshake said split-brain and one node had been given nothing that the other lacks.
    pub invented_split: bool,
    /// ... in the window that C2 names.
    pub split_in_window: bool,
    /// ... because a node was written alone before it ever met the other, as C5 says.
    pub split_before_meeting: bool,
    /// A split-brain was rightly found.
    pub split: bool,
    /// A node that should have known that it is out of date became primary unforced.
    pub promoted_outdated: bool,
    /// A promotion was refused for the mark.
    pub refused: bool,
}

/// A state of the world.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct State {
    /// Both machines.
    pub nodes: [Node; 2],
    /// Between them.
    pub link: Link,
    /// What may still happen.
    pub left: Budget,
    /// The number of the latest write.
    pub written: Value,
    /// Resource ids drawn so far.
    pub drawn: u8,
    /// The observer.
    pub ghost: Ghost,
}

impl State {
    /// The node in the primary role.
    #[must_use]
    pub fn primary(&self) -> Option<NodeId> {
        self.nodes.iter().position(|node| node.primary.is_some())
    }

    /// Whether requests go to the secondary.
    #[must_use]
    pub fn is_up(&self) -> bool {
        matches!(self.link, Link::Up { .. })
    }
}
