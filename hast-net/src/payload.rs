//! The two stages of a payload, compression and checksum (spec: wire, payload stages).
//!
//! The sender compresses as configured and adds a checksum over what it sends; the receiver goes by the pairs
//! alone, whatever its own configuration. Every length that a peer claims is checked before memory is
//! allocated for it.

pub use crate::checksum::Checksum;

use crate::buffer::{Buffer, Pool};
use crate::frame::Frame;
use crate::lzf::{self, LzfError};
use hast_format::nv::{self, List, Writer};
use std::fmt;
use thiserror::Error;

/// A compressed payload must be this much shorter to be worth it, and one that is no longer than this is
/// never compressed. In bytes.
const WORTH: usize = 1024;
/// Bytes of the original length in front of an LZF stream, and all there is to a hole.
const LENGTH: usize = 4;

/// How payloads are compressed: the `compression` statement of hast.conf. The pair on the wire names what
/// was really done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Compression {
    /// Not at all; the pair is absent.
    None,
    /// Payloads of zeros are sent as their length.
    #[default]
    Hole,
    /// As hole; other payloads as LZF where that saves enough.
    Lzf,
}

impl Compression {
    /// The name in hast.conf, in `hastctl` output and, except for `none`, on the wire.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Compression::None => "none",
            Compression::Hole => "hole",
            Compression::Lzf => "lzf",
        }
    }

    /// The compression of that name, as [`Compression::as_str`] writes it.
    #[must_use]
    pub fn parse(name: &str) -> Option<Compression> {
        [Compression::None, Compression::Hole, Compression::Lzf].into_iter().find(|c| c.as_str() == name)
    }
}

impl fmt::Display for Compression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What a sender does to its payloads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stages {
    /// The first stage.
    pub compression: Compression,
    /// The second.
    pub checksum: Checksum,
}

/// Runs a payload through the stages and appends their pairs, `size` last. Returns what to send: the same
/// buffer if it was not compressed. An empty payload is no payload and adds no pairs.
///
/// The payload must be shorter than 4 GiB; of a longer one nothing is sent (a debug assertion).
#[must_use]
pub fn encode(nv: &mut Writer, payload: &Buffer, stages: Stages) -> Buffer {
    let Ok(length) = u32::try_from(payload.len()) else {
        debug_assert!(false, "payload of {} bytes", payload.len());
        return Buffer::from(Vec::new());
    };
    if length == 0 {
        return payload.clone();
    }
    let compressed = match stages.compression {
        Compression::None => None,
        Compression::Hole => hole(payload, length),
        Compression::Lzf => hole(payload, length).or_else(|| shrink(payload, length)),
    };
    let sent = match compressed {
        Some((applied, bytes)) => {
            nv.str("compression", applied.as_str());
            Buffer::from(bytes)
        }
        None => payload.clone(),
    };
    if let Some(hash) = stages.checksum.hash(&sent) {
        nv.str("checksum", stages.checksum.as_str()).u8_array("hash", hash.as_bytes());
    }
    // Never above `length`: compression only shrinks, except that a hole of one to three bytes becomes four.
    nv.u32("size", u32::try_from(sent.len()).unwrap_or(length));
    sent
}

/// Undoes the stages that a frame's pairs name: checks the hash, then replaces the payload by what it was
/// before it was compressed, which may have at most `limit` bytes. A frame without payload is left alone.
/// Once per frame: the pairs stay as they are.
///
/// # Errors
/// The payload is not what its pairs say; the frame must not be used and the connection is to be closed.
pub fn decode(frame: &mut Frame, limit: u32, pool: &Pool) -> Result<(), PayloadError> {
    let Some(payload) = &frame.payload else { return Ok(()) };
    let list = List::parse(&frame.nv)?;
    let checksum = stage(&list, "checksum", Checksum::parse, Checksum::None)?;
    if let Some(hash) = checksum.hash(payload) {
        let expected = list.u8_array("hash").ok_or(PayloadError::NoHash)?;
        if expected != hash.as_bytes() {
            return Err(PayloadError::Hash { checksum, length: payload.len() });
        }
    }
    let original = match stage(&list, "compression", Compression::parse, Compression::None)? {
        Compression::None => {
            let size = u64::try_from(payload.len()).unwrap_or(u64::MAX);
            return if size > limit.into() { Err(PayloadError::TooLong { size, limit }) } else { Ok(()) };
        }
        Compression::Hole => {
            let (claimed, rest) = split_length(payload)?;
            if !rest.is_empty() || claimed == 0 {
                return Err(PayloadError::Hole { length: payload.len(), claimed });
            }
            let mut zeros = pool.take(bounded(claimed, limit)?);
            zeros.fill(0);
            zeros
        }
        Compression::Lzf => {
            let (claimed, stream) = split_length(payload)?;
            let claimed = bounded(claimed, limit)?;
            if claimed <= WORTH {
                return Err(PayloadError::LzfTooShort { claimed });
            }
            lzf::check_claim(stream, claimed)?;
            let mut bytes = pool.take(claimed);
            lzf::decompress(stream, &mut bytes)?;
            bytes
        }
    };
    frame.payload = Some(original.freeze());
    Ok(())
}

/// Why a payload is not what its pairs say. The connection is closed.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum PayloadError {
    /// The list of pairs is malformed.
    #[error("{0}")]
    List(#[from] nv::Error),
    /// A stage that we do not know.
    #[error("unknown {stage} algorithm '{name}'")]
    UnknownStage {
        /// `checksum` or `compression`.
        stage: &'static str,
        /// What the peer calls it.
        name: String,
    },
    /// A checksum is named, and no hash is there.
    #[error("no 'hash' field in the header")]
    NoHash,
    /// The bytes are not those that were sent.
    #[error("{checksum} hash mismatch in {length} bytes of data")]
    Hash {
        /// The algorithm.
        checksum: Checksum,
        /// Bytes of payload as received.
        length: usize,
    },
    /// The payload is, or expands to, more than is allowed here.
    #[error("data of {size} bytes exceeds the limit of {limit}")]
    TooLong {
        /// Bytes of payload before compression, as claimed.
        size: u64,
        /// The limit in bytes.
        limit: u32,
    },
    /// Too short to hold the original length.
    #[error("compressed data of {length} bytes holds no length")]
    NoLength {
        /// Bytes of payload as received.
        length: usize,
    },
    /// A hole that is not just the length of one.
    #[error("invalid hole of {claimed} bytes in {length} bytes of data")]
    Hole {
        /// Bytes of payload as received.
        length: usize,
        /// How many zeros it claims to stand for.
        claimed: u32,
    },
    /// Nobody compresses so little.
    #[error("lzf data claims to stand for only {claimed} bytes")]
    LzfTooShort {
        /// The claim.
        claimed: usize,
    },
    /// The LZF stream is broken or of another length than it says.
    #[error("{0}")]
    Lzf(#[from] LzfError),
}

/// What a stage's pair names; without the pair, `absent`. A pair that is no string names nothing we know.
fn stage<T>(
    list: &List<'_>,
    stage: &'static str,
    parse: fn(&str) -> Option<T>,
    absent: T,
) -> Result<T, PayloadError> {
    let Some(pair) = list.find(stage) else { return Ok(absent) };
    pair.as_str().filter(|&name| name != "none").and_then(parse).ok_or_else(|| PayloadError::UnknownStage {
        stage,
        name: String::from_utf8_lossy(pair.data.strip_suffix(&[0]).unwrap_or(pair.data)).into_owned(),
    })
}

/// The original length and what follows it.
fn split_length(payload: &[u8]) -> Result<(u32, &[u8]), PayloadError> {
    let (length, rest) =
        payload.split_first_chunk::<LENGTH>().ok_or(PayloadError::NoLength { length: payload.len() })?;
    Ok((u32::from_le_bytes(*length), rest))
}

/// A claimed length as a size to allocate, if it is allowed.
fn bounded(claimed: u32, limit: u32) -> Result<usize, PayloadError> {
    let size = u64::from(claimed);
    usize::try_from(claimed).ok().filter(|_| claimed <= limit).ok_or(PayloadError::TooLong { size, limit })
}

/// Whether these bytes are nothing but zeros.
#[must_use]
pub fn is_zeros(bytes: &[u8]) -> bool {
    // By whole lines of cache, so that the compiler can look at many bytes at once.
    bytes.chunks(64).all(|line| line.iter().fold(0, |seen, byte| seen | byte) == 0)
}

/// The payload as a hole, if it is all zero.
fn hole(payload: &[u8], length: u32) -> Option<(Compression, Vec<u8>)> {
    is_zeros(payload).then(|| (Compression::Hole, length.to_le_bytes().to_vec()))
}

/// The payload as LZF, if that saves enough.
fn shrink(payload: &[u8], length: u32) -> Option<(Compression, Vec<u8>)> {
    let limit = payload.len().checked_sub(WORTH).filter(|&limit| limit > 0)?;
    let mut bytes = Vec::with_capacity(LENGTH + limit);
    bytes.extend_from_slice(&length.to_le_bytes());
    lzf::compress(payload, &mut bytes, limit).then_some((Compression::Lzf, bytes))
}
