//! Frames: how HAST cuts a byte stream into messages (spec: wire, frame).
//!
//! A frame is a version byte, the length of an nv list in 32 bits, the list, and as much payload as the list's
//! `size` pair says. This module owns the cutting, the bounds that keep a peer from making us allocate what it
//! merely claims, and the rule that nothing of an incomplete frame ever comes out. It does not know what the
//! pairs mean, `size` aside, and leaves payloads as they were sent ([`crate::payload`]).

use crate::buffer::{Buffer, BufferMut, Pool};
use hast_format::nv::{self, List};
use std::collections::VecDeque;
use thiserror::Error;
use zerocopy::byteorder::little_endian::U32;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// The protocol version that we speak, and the highest that a frame may have.
pub const VERSION: u8 = 2;

/// Bytes before the list.
const PREFIX: usize = size_of::<Prefix>();
/// A read that may bring many small frames.
const WIDE: usize = 64 << 10;
/// A read that should bring no more than the header of a frame with a large payload: what it brings of the
/// payload has to be copied. No regular message has a longer one.
const NARROW: usize = 256;
/// From here on a payload is large.
const LARGE: usize = 32 << 10;
/// Payloads below this are no blocks of a disk and need no aligned memory.
const SMALL: usize = 512;

/// One frame, whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// The version in its header, at most [`VERSION`].
    pub version: u8,
    /// A well-formed nv list; it may be empty.
    pub nv: Buffer,
    /// What followed the list: as sent, until [`crate::payload::decode`] has run. Never empty as received.
    pub payload: Option<Buffer>,
}

impl Frame {
    /// The list of pairs.
    ///
    /// # Errors
    /// The list is malformed, which cannot be for a frame from a [`Receiver`].
    pub fn list(&self) -> Result<List<'_>, nv::Error> {
        List::parse(&self.nv)
    }
}

/// The longest that a peer may send, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// For the nv list.
    pub header: u32,
    /// For the payload as sent.
    pub payload: u32,
}

impl Limits {
    /// Between the nodes of a pair.
    pub const PEER: Limits = Limits { header: 64 << 10, payload: 1 << 20 };
    /// Between hastctl and hastd, where no message has a payload.
    pub const CONTROL: Limits = Limits { header: 16 << 20, payload: 0 };
}

/// Cuts received bytes into frames: read into [`Receiver::space`], say how much with [`Receiver::advance`],
/// take what is complete with [`Receiver::next_frame`].
///
/// A payload is read straight into memory of the pool, except for what arrived together with its header.
/// Memory is bounded by the limits and by what has really arrived: a list grows with its bytes, and only a
/// payload within the limit is allocated ahead of them.
#[derive(Debug)]
pub struct Receiver {
    limits: Limits,
    pool: Pool,
    /// Received and not yet cut: the first `filled` bytes; the rest is room.
    buffer: Vec<u8>,
    filled: usize,
    /// A frame whose payload is arriving. Then `filled` is 0.
    partial: Option<Partial>,
    ready: VecDeque<Frame>,
    /// How much to read when no payload is pending.
    window: usize,
    /// What went wrong; after that nothing more is accepted.
    failed: Option<FrameError>,
}

impl Receiver {
    /// A receiver at the beginning of a stream.
    #[must_use]
    pub fn new(limits: Limits, pool: Pool) -> Receiver {
        Receiver {
            limits,
            pool,
            buffer: Vec::new(),
            filled: 0,
            partial: None,
            ready: VecDeque::new(),
            window: NARROW,
            failed: None,
        }
    }

    /// Changes the limit on payloads for frames whose header has not been received completely.
    pub fn set_payload_limit(&mut self, limit: u32) {
        self.limits.payload = limit;
    }

    /// Where the next bytes of the stream belong. Never empty; need not be filled.
    pub fn space(&mut self) -> &mut [u8] {
        match &mut self.partial {
            Some(partial) => partial.rest(),
            None => {
                // A list that fills the buffer makes it twice as large: memory follows what has arrived.
                let end = self.window.max(self.filled.saturating_mul(2));
                if self.buffer.len() < end {
                    self.buffer.resize(end, 0);
                }
                self.buffer.get_mut(self.filled..end).unwrap_or_default()
            }
        }
    }

    /// Takes note that the first `n` bytes of [`Receiver::space`] are now the next bytes of the stream.
    ///
    /// # Errors
    /// The stream is no sequence of acceptable frames. Frames that were complete before can still be taken;
    /// everything after is refused with the same error, and the connection is to be closed.
    pub fn advance(&mut self, n: usize) -> Result<(), FrameError> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        if let Some(mut partial) = self.partial.take() {
            partial.filled = partial.filled.saturating_add(n).min(partial.payload.len());
            self.finish_or_keep(partial);
            return Ok(());
        }
        self.filled = self.filled.saturating_add(n).min(self.buffer.len());
        self.cut().inspect_err(|error| {
            self.failed = Some(error.clone());
            self.buffer = Vec::new();
            self.filled = 0;
        })
    }

    /// The next complete frame, in the order of the stream.
    pub fn next_frame(&mut self) -> Option<Frame> {
        self.ready.pop_front()
    }

    /// In a mutant only: the connection has ended, and what came of a message is taken for all of it, the rest
    /// being whatever lay in the buffer (defects.md L13).
    #[cfg(feature = "mutants")]
    pub fn take_incomplete(&mut self) -> Option<Frame> {
        if self.partial.is_none() || hast_format::rule::keeps(hast_format::rule::Rule::L13) {
            return None;
        }
        let rest = self.space().len();
        self.advance(rest).ok()?;
        self.next_frame()
    }

    /// Whether the stream stands between two frames, so that its end here cuts nothing off.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.filled == 0 && self.partial.is_none() && self.failed.is_none()
    }

    /// Cuts what the buffer holds; what is left at its start is the beginning of one frame's header and list.
    fn cut(&mut self) -> Result<(), FrameError> {
        let received = self.buffer.get(..self.filled).unwrap_or_default();
        let mut rest = received;
        let mut partial = None;
        while let Some(Head { version, nv, after }) = split_header(rest, self.limits.header)? {
            // A control message has no payload, whatever it says: the original does not look there.
            let asked = List::parse(nv)?.u32("size").unwrap_or(0);
            let size = if self.limits == Limits::CONTROL { 0 } else { asked };
            if size > self.limits.payload {
                return Err(FrameError::PayloadTooLong { size: size.into(), limit: self.limits.payload });
            }
            let size = usize::try_from(size).unwrap_or(usize::MAX);
            let (arrived, after) = after.split_at_checked(size).unwrap_or((after, &[]));
            rest = after;
            self.window = if size >= LARGE { NARROW } else { WIDE };
            if size == 0 {
                self.ready.push_back(Frame { version, nv: self.pool.copy_of(nv), payload: None });
                continue;
            }
            if size < SMALL && arrived.len() == size {
                let payload = Some(self.pool.copy_of(arrived));
                self.ready.push_back(Frame { version, nv: self.pool.copy_of(nv), payload });
                continue;
            }
            let mut payload = self.pool.take(size);
            if let Some(start) = payload.get_mut(..arrived.len()) {
                start.copy_from_slice(arrived);
            }
            let begun = Partial { version, nv: self.pool.copy_of(nv), payload, filled: arrived.len() };
            if arrived.len() < size {
                partial = Some(begun);
                break;
            }
            self.ready.push_back(begun.finish());
        }
        let kept = if partial.is_some() { 0 } else { rest.len() };
        let start = self.filled.saturating_sub(kept);
        self.buffer.copy_within(start..self.filled, 0);
        self.filled = kept;
        self.partial = partial;
        if kept == 0 && self.buffer.len() > WIDE {
            self.buffer = Vec::new();
        }
        Ok(())
    }

    fn finish_or_keep(&mut self, partial: Partial) {
        if partial.filled == partial.payload.len() {
            self.ready.push_back(partial.finish());
        } else {
            self.partial = Some(partial);
        }
    }
}

/// A frame whose payload has not arrived completely.
#[derive(Debug)]
struct Partial {
    version: u8,
    nv: Buffer,
    /// As long as the payload will be; only its first `filled` bytes are ours.
    payload: BufferMut,
    filled: usize,
}

impl Partial {
    fn rest(&mut self) -> &mut [u8] {
        self.payload.get_mut(self.filled..).unwrap_or_default()
    }

    fn finish(self) -> Frame {
        Frame { version: self.version, nv: self.nv, payload: Some(self.payload.freeze()) }
    }
}

/// A frame's header and list, ready to be sent; a payload follows it.
///
/// # Errors
/// The version is above ours, or the list is longer than the format allows.
pub fn encode(version: u8, nv: &[u8]) -> Result<Vec<u8>, FrameError> {
    let mut bytes = Vec::with_capacity(PREFIX.saturating_add(nv.len()));
    encode_to(version, nv, &mut bytes)?;
    Ok(bytes)
}

/// The same, at the end of `bytes`.
///
/// # Errors
/// As for [`encode`]; then `bytes` is as it was.
pub fn encode_to(version: u8, nv: &[u8], bytes: &mut Vec<u8>) -> Result<(), FrameError> {
    if version > VERSION {
        return Err(FrameError::Version(version));
    }
    let size = u32::try_from(nv.len())
        .map_err(|_| FrameError::HeaderTooLong { size: nv.len() as u64, limit: u32::MAX })?;
    let prefix = Prefix { version, size: U32::new(size) };
    bytes.extend_from_slice(prefix.as_bytes());
    bytes.extend_from_slice(nv);
    Ok(())
}

/// Why a stream is no sequence of frames. The connection is closed.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum FrameError {
    /// A version that we do not speak.
    #[error("unsupported protocol version {0} (ours is {VERSION})")]
    Version(u8),
    /// A list longer than anybody has reason to send.
    #[error("header of {size} bytes exceeds the limit of {limit}")]
    HeaderTooLong {
        /// The announced length in bytes.
        size: u64,
        /// The limit in bytes.
        limit: u32,
    },
    /// A list that is none.
    #[error("{0}")]
    List(#[from] nv::Error),
    /// A payload longer than anybody has reason to send.
    #[error("payload of {size} bytes exceeds the limit of {limit}")]
    PayloadTooLong {
        /// The announced length in bytes.
        size: u64,
        /// The limit in bytes.
        limit: u32,
    },
}

/// What stands before the list, packed.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Prefix {
    version: u8,
    size: U32,
}

/// The header of a frame with its list, and what comes after.
struct Head<'a> {
    version: u8,
    nv: &'a [u8],
    after: &'a [u8],
}

/// Splits off version and list; None if they have not arrived completely. What cannot become a frame is
/// refused on the first byte that shows it.
fn split_header(bytes: &[u8], limit: u32) -> Result<Option<Head<'_>>, FrameError> {
    if let Some(&version) = bytes.first()
        && version > VERSION
    {
        return Err(FrameError::Version(version));
    }
    let Ok((prefix, after)) = Prefix::ref_from_prefix(bytes) else { return Ok(None) };
    let size = prefix.size.get();
    if size > limit {
        return Err(FrameError::HeaderTooLong { size: size.into(), limit });
    }
    let size = usize::try_from(size).unwrap_or(usize::MAX);
    Ok(after.split_at_checked(size).map(|(nv, after)| Head { version: prefix.version, nv, after }))
}
