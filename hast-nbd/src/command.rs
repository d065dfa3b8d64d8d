//! What a client asks of the device, once framing, flags and bounds have been checked.

use hast_net::buffer::Buffer;
use smallvec::SmallVec;

/// The data of one command, in the order of its offsets; nearly always one piece.
pub type Pieces = SmallVec<[Buffer; 1]>;

/// Names one command of one session, from [`Session::poll_command`](crate::Session::poll_command) to
/// [`Session::complete`](crate::Session::complete). Never reused within a session; unrelated to the cookie
/// that the client chose, which may repeat.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CommandId(pub u64);

/// A command to be carried out, in any order with others, and completed exactly once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Command {
    /// What to name in the completion.
    pub handle: CommandId,
    /// What to do.
    pub kind: Kind,
}

/// A client's question what of a range is a hole, to be answered exactly once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Question {
    /// What to name in the answer.
    pub handle: CommandId,
    /// First byte.
    pub offset: u64,
    /// Bytes; not bounded by the maximum payload.
    pub length: u32,
}

/// Bytes that follow each other and are all of one kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// How many there are.
    pub length: u64,
    /// Nothing is allocated for them, and they read as zeros.
    pub hole: bool,
}

/// What is to be done. Ranges are in bytes, not empty, aligned to the export's minimum block and inside it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Read `length` bytes; completed with buffers that hold exactly these bytes in order.
    Read {
        /// First byte.
        offset: u64,
        /// Bytes, at most the export's maximum payload.
        length: u32,
    },
    /// Write `data`.
    Write {
        /// First byte.
        offset: u64,
        /// Consecutive pieces of [`PIECE`](crate::PIECE) bytes, the last one possibly shorter.
        data: Pieces,
        /// Whether the data must be durable before the command is completed.
        fua: bool,
    },
    /// Make every write that was completed before, on any connection, durable.
    Flush,
    /// The range's contents are no longer needed.
    Trim {
        /// First byte.
        offset: u64,
        /// Bytes; not bounded by the maximum payload.
        length: u32,
        /// Whether the effect must be durable before the command is completed.
        fua: bool,
    },
    /// Make the range read as zeroes.
    WriteZeroes {
        /// First byte.
        offset: u64,
        /// Bytes; not bounded by the maximum payload.
        length: u32,
        /// Whether the range must stay allocated: zeroes are to be written, not discarded.
        no_hole: bool,
        /// Whether the zeroes must be durable before the command is completed.
        fua: bool,
    },
    /// The client is going to read the range. Doing nothing is a correct answer.
    Cache {
        /// First byte.
        offset: u64,
        /// Bytes; not bounded by the maximum payload.
        length: u32,
    },
}

impl Kind {
    /// Bytes of payload that the command holds in memory until it is answered.
    pub(crate) fn payload(&self) -> u64 {
        match self {
            Kind::Read { length, .. } => u64::from(*length),
            Kind::Write { data, .. } => data.iter().map(|piece| piece.len() as u64).sum(),
            _ => 0,
        }
    }
}
