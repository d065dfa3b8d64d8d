//! What a state of the model is made of.
//!
//! Everything is small and canonical: two states that differ only in how they came about are equal. An
//! extent holds one value, the number of the write that filled it; 0 is what `create` leaves.

use hast_engine::{Durable, Flushed, Half, Turning};
use hast_format::activemap::Activemap;

pub use crate::disk::{Cached, Disk, Generation, Meta, generation, small_generation};

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

/// One machine.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Node {
    /// Its provider.
    pub disk: Disk,
    /// Which start of the host this is, from 1.
    pub boot: u8,
    /// What its worker, if there is one, knows to be durable: the engine's own account.
    pub durable: Durable<()>,
    /// As a secondary: something may be gone, and that is not written down yet (B1).
    pub doubts: bool,
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
    /// The map says what the other node may lack: this one kept it as the primary, or has been connected since.
    pub map_complete: bool,
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
    /// A client's flush waits for the next one.
    pub waiting: bool,
    /// A client's flush that is complete but for the metadata to be saved (C1 (b), (d), L3).
    pub counting: Option<Ended>,
    /// One that is complete but for the secondary to mark itself (L9).
    pub marking: Option<Ended>,
    /// Extents that are about to be stale (S1): the engine's own account.
    pub turning: Turning,
    /// Nothing is complete without the secondary, which has written down what this node's metadata cannot say.
    pub unable_to_record: bool,
    /// How far the way to that has come.
    pub relying: Relying,
    /// Requests, oldest first.
    pub writes: Vec<Write>,
    /// A read.
    pub read: Option<Read>,
    /// The secondary's counts as it said when the nodes last met.
    pub peer: (u8, u8),
    /// The boot id that the connected secondary said.
    pub peer_boot: u8,
}

/// A client's flush whose disks have answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Ended {
    /// Extents whose last acknowledged write came before it.
    pub covers: Extents,
    /// What the secondary said.
    pub remote: Says,
}

/// As in the engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Relying {
    /// No.
    No,
    /// All that was complete has to be flushed there first.
    Flushing {
        /// The flush under way does.
        covered: bool,
    },
    /// It was.
    Durable,
}

/// A read that this node's disk alone does not answer, and what is written back afterwards.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Read {
    /// Where.
    pub extent: u8,
    /// This node's disk could not read it.
    pub failed_here: bool,
    /// How far it is.
    pub stage: Reading,
}

/// The stages of a [`Read`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reading {
    /// The secondary has yet to store what is complete already (R1).
    Owed,
    /// The secondary was asked.
    Asked,
    /// It has read this, and says so.
    Answered(Value),
    /// The client has this; its bit has to be durable before it is written back.
    RepairMap(Value),
    /// It is being written back.
    Repair {
        /// What is written.
        value: Value,
        /// The connection that stood when that began still stands.
        same_connection: bool,
        /// A local flush failed meanwhile.
        suspect: bool,
    },
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
    /// A client waits for it.
    pub client: bool,
    /// What this node's disk will say.
    pub local: Says,
    /// What the secondary will say.
    pub remote: Says,
    /// Extents whose last acknowledged write came before it.
    pub covers: Extents,
    /// Extents that the secondary alone had stored when it began.
    pub lone: Extents,
    /// The secondary has not been asked, and will not be: the connection breaks before that.
    pub cut_off: bool,
}

/// [`Flushed`], in a state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Says {
    /// Durable.
    Yes,
    /// Nothing: it was not asked, or the connection has broken or will.
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
    /// Its extent became stale because of it.
    pub staled: bool,
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
    /// The metadata cannot be saved: the secondary has to flush all that is complete (S1) ...
    Relying,
    /// ... and then to write down that it alone is right.
    Telling,
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
        /// The generation that it had before (G1).
        had: Generation,
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
    /// Flushes of the client.
    pub flushes: u8,
    /// Reads of the client, as requests.
    pub reads: u8,
    /// Saves of the primary's metadata that fail.
    pub save_faults: u8,
    /// A node's disk is set back to what it was when a snapshot was taken.
    pub rollbacks: u8,
    /// Attempts to connect, where connections have generations; elsewhere there is any number.
    pub connects: u8,
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
    /// A read gave what it must not.
    pub wrong_read: bool,
    /// A disk was taken for an older one, and nobody had set it back.
    pub false_alarm: bool,
    /// ... and somebody had.
    pub rollback_found: bool,
    /// An extent became stale that was given up.
    pub turned: bool,
    /// The secondary has written down what the primary's metadata cannot say.
    pub told: bool,
    /// The secondary's answer to a read was not used, or waited for.
    pub read_again: bool,
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
    /// What a node's disk may be set back to.
    pub snapshot: Option<Snapshot>,
    /// The observer.
    pub ghost: Ghost,
}

/// A copy of a node's disk.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Snapshot {
    /// Whose.
    pub node: NodeId,
    /// What was on it.
    pub disk: Disk,
    /// The nodes have been connected since, by a later connection than that disk knows of.
    pub outdated: bool,
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
