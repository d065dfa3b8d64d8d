//! What passes between an engine and whoever drives it.

use core::fmt;
use core::time::Duration;

use hast_format::metadata::Metadata;
use hast_net::Replication;
use hast_net::buffer::Buffer;
use hast_net::control::ConnectionState;
use hast_net::errno::Errno;
use hast_net::message::Message;

/// The longest read or write that is handed to an engine, in bytes: what every peer takes (spec/wire.md,
/// MAXPHYS).
pub const MAX_REQUEST: u32 = 131_072;

/// A request of the device, numbered by the driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(pub u64);

/// A disk operation, numbered by the engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OpId(pub u64);

/// One of the two connections of a pair, as the primary names them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Side {
    /// The first connection: requests, and both handshake answers.
    Out,
    /// The second connection: replies.
    In,
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Side::Out => "out",
            Side::In => "in",
        })
    }
}

/// What the device asks for. Offsets are bytes in the data area.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// Read `length` bytes, at most [`MAX_REQUEST`].
    Read {
        /// First byte.
        offset: u64,
        /// Bytes.
        length: u32,
    },
    /// Write `data`, at most [`MAX_REQUEST`] bytes.
    Write {
        /// First byte.
        offset: u64,
        /// What to write.
        data: Buffer,
    },
    /// Free a range. Completed well it reads as zeros, as if those had been written; EOPNOTSUPP says that nothing was
    /// done, because one of the nodes cannot do that, or is needed and away.
    Delete {
        /// First byte.
        offset: u64,
        /// Bytes.
        length: u64,
    },
    /// Make every write that was completed so far durable.
    Flush,
}

impl Op {
    /// The bytes of the data area that are concerned, as offset and length; 0, 0 for a flush.
    #[must_use]
    pub fn range(&self) -> (u64, u64) {
        match self {
            Op::Read { offset, length } => (*offset, u64::from(*length)),
            Op::Write { offset, data } => (*offset, data.len() as u64),
            Op::Delete { offset, length } => (*offset, *length),
            Op::Flush => (0, 0),
        }
    }
}

impl fmt::Display for Op {
    /// As the log shows requests.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (offset, length) = self.range();
        match self {
            Op::Read { .. } => write!(f, "READ({offset}, {length})"),
            Op::Write { .. } => write!(f, "WRITE({offset}, {length})"),
            Op::Delete { .. } => write!(f, "DELETE({offset}, {length})"),
            Op::Flush => f.write_str("FLUSH"),
        }
    }
}

/// What the engine asks of the provider. Offsets are bytes from the provider's start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DiskOp {
    /// Read exactly `length` bytes.
    Read {
        /// First byte.
        offset: u64,
        /// Bytes.
        length: u32,
    },
    /// Write all of `data`.
    Write {
        /// First byte.
        offset: u64,
        /// What to write.
        data: Buffer,
    },
    /// Free a range so that it reads as zeros ([`Deletes::LeaveZeros`]).
    Delete {
        /// First byte.
        offset: u64,
        /// Bytes.
        length: u64,
    },
    /// Make everything durable whose end was reported before.
    Flush,
}

/// How a disk operation or a device request ended: with data for a read, without for anything else.
pub type DiskResult = Result<Option<Buffer>, Errno>;

/// What hooks are told (spec/behaviour.md, Events and hooks).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Event {
    /// The nodes are connected.
    Connect,
    /// The connection broke.
    Disconnect,
    /// There is something to synchronise, and it begins.
    SyncStart,
    /// Something was synchronised and the nodes are in step.
    SyncDone,
    /// The connection broke during a synchronisation.
    SyncIntr,
    /// Both nodes were written apart from each other.
    SplitBrain,
}

impl Event {
    /// The event's name as hooks get it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Event::Connect => "connect",
            Event::Disconnect => "disconnect",
            Event::SyncStart => "syncstart",
            Event::SyncDone => "syncdone",
            Event::SyncIntr => "syncintr",
            Event::SplitBrain => "split-brain",
        }
    }

    /// The event of that name.
    #[must_use]
    pub fn parse(name: &str) -> Option<Event> {
        use Event::{Connect, Disconnect, SplitBrain, SyncDone, SyncIntr, SyncStart};
        [Connect, Disconnect, SyncStart, SyncDone, SyncIntr, SplitBrain]
            .into_iter()
            .find(|event| event.as_str() == name)
    }
}

/// What an engine wants done.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Carry out a disk operation and report its end with `handle_disk`.
    Disk {
        /// To be given back.
        id: OpId,
        /// What to do.
        op: DiskOp,
    },
    /// Open a connection to the secondary (primary only).
    Connect(Side),
    /// Send a message.
    Send {
        /// On which connection.
        side: Side,
        /// The frame's version.
        version: u8,
        /// What to send.
        message: Message,
    },
    /// Drop both connections and whatever is being opened.
    Close,
    /// A device request has ended.
    Complete {
        /// The driver's number.
        id: RequestId,
        /// How.
        result: DiskResult,
    },
    /// Something that hooks are told.
    Event(Event),
    /// How this node stands to the other one from now on: for those who ask. Said when either changes.
    Connection {
        /// The state.
        state: ConnectionState,
        /// Why, as a sentence or two; empty if there is nothing to say.
        reason: String,
    },
    /// The local disk is given up, and the resource lives on the secondary's: a worker that replaces this one begins with
    /// this metadata and without the disk ([`crate::PrimaryStart::detached`]).
    Detached(Box<Metadata>),
    /// The local disk is in use again, and says what it has to: a worker that replaces this one begins with it.
    Attached,
    /// From now on the device may, or may not, read the local disk without asking (L17). Off at the start.
    DirectReads(bool),
    /// The worker is to end with this exit status.
    Exit(i32),
}

/// What a provider can do with a range that is no longer needed (D1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Deletes {
    /// Nothing that is known to leave zeros: a [`DiskOp::Delete`] fails with EOPNOTSUPP.
    #[default]
    Refused,
    /// Free it, so that it reads as zeros; durable with the next flush, like a write.
    LeaveZeros,
}

/// What a node knows of itself when its worker starts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Host {
    /// The boot id of this host; zeros if there is none.
    pub boot: [u8; 16],
    /// The time at the start of the engine's clock, in seconds since 1970: marks say since when.
    pub wall: u64,
    /// What its provider can do with deletes.
    pub deletes: Deletes,
}

/// What hast.conf says about a resource, as far as replication is concerned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// When a write is complete.
    pub replication: Replication,
    /// How long to wait for the other node.
    pub timeout: Duration,
    /// After how long a silence a node of ours, which answers keepalives, is gone; 1 s and up.
    pub peer_timeout: Duration,
    /// Whether map writes are flushed.
    pub metaflush: bool,
    /// Whether the other node's address is known (`remote none` otherwise).
    pub remote: bool,
    /// That address, as hast.conf has it: marks and the log say by whom.
    pub peer: String,
}
