//! Everything a session says, in order, until it is handed out for sending.
//!
//! Small pieces are gathered into buffers of the pool; read data is queued as it is, without copying. Each queued
//! buffer remembers how much of the session's byte budget it holds, which is given back when it is handed out.

use std::collections::VecDeque;

use hast_net::buffer::{Buffer, BufferMut, Pool};
use zerocopy::IntoBytes;

use crate::command::Pieces;
use crate::error::NbdError;
use crate::wire::{
    self, ChunkHeader, Greeting, OPTION_REPLY_MAGIC, OptionReplyHeader, STRUCTURED_REPLY_MAGIC,
    SimpleReplyHeader,
};

/// Bytes in which small pieces are gathered.
const GATHERED: usize = 4096;
/// What is as short as this is copied out of that memory, in bytes.
const SHORT: usize = 256;

/// Replies waiting to be sent that no command's budget bounds may take this many bytes before input waits.
const FULL: usize = 64 << 10;

/// Output in order.
#[derive(Debug)]
pub(crate) struct Output {
    pool: Pool,
    sealed: VecDeque<Sealed>,
    /// Where small pieces are being gathered, and how many bytes there are.
    tail: Option<(BufferMut, usize)>,
    /// Bytes of small pieces that wait.
    small: usize,
}

/// A buffer ready to be sent.
#[derive(Debug)]
struct Sealed {
    buffer: Buffer,
    releases: u64,
    small: usize,
}

impl Output {
    /// Nothing to say yet.
    pub(crate) fn new(pool: Pool) -> Output {
        Output { pool, sealed: VecDeque::new(), tail: None, small: 0 }
    }

    /// The next buffer to send and the bytes of budget that it gives back.
    pub(crate) fn pop(&mut self) -> Option<(Buffer, u64)> {
        if self.sealed.is_empty() {
            self.seal();
        }
        let next = self.sealed.pop_front()?;
        self.small = self.small.saturating_sub(next.small);
        Some((next.buffer, next.releases))
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.sealed.is_empty() && self.tail.as_ref().is_none_or(|(_, filled)| *filled == 0)
    }

    /// Whether so much waits to be sent that nothing new should be answered.
    pub(crate) fn is_full(&self) -> bool {
        self.small >= FULL
    }

    pub(crate) fn greeting(&mut self, flags: u16) {
        self.put(
            Greeting {
                magic: wire::GREETING_MAGIC.into(),
                option_magic: wire::OPTION_MAGIC.into(),
                flags: flags.into(),
            }
            .as_bytes(),
        );
    }

    /// A reply to an option whose data is `parts`, one after the other.
    pub(crate) fn option_reply(&mut self, option: u32, kind: u32, parts: &[&[u8]]) {
        let length: usize = parts.iter().map(|part| part.len()).sum();
        let length = u32::try_from(length).unwrap_or(u32::MAX);
        self.put(
            OptionReplyHeader {
                magic: OPTION_REPLY_MAGIC.into(),
                option: option.into(),
                kind: kind.into(),
                length: length.into(),
            }
            .as_bytes(),
        );
        for part in parts {
            self.put(part);
        }
    }

    /// The answer to `EXPORT_NAME`, which has no header.
    pub(crate) fn export_name(&mut self, size: u64, flags: u16, zeroes: usize) {
        self.put(&size.to_be_bytes());
        self.put(&flags.to_be_bytes());
        for _ in 0..zeroes {
            self.put(&[0]);
        }
    }

    /// Success of a command without data.
    pub(crate) fn done(&mut self, cookie: u64) {
        self.simple(cookie, 0);
    }

    /// Failure of a command; `text` is shown to the client's user when replies are structured.
    pub(crate) fn failed(&mut self, cookie: u64, error: NbdError, text: &str, structured: bool) {
        if !structured {
            return self.simple(cookie, error.to_wire());
        }
        // The texts are this crate's own and short; the protocol's limit is 4096 bytes.
        let text = text.as_bytes();
        let length = u16::try_from(text.len()).unwrap_or(0);
        let text = text.get(..usize::from(length)).unwrap_or_default();
        self.chunk(cookie, wire::chunk::ERROR, 6_u32.saturating_add(u32::from(length)));
        self.put(&error.to_wire().to_be_bytes());
        self.put(&length.to_be_bytes());
        self.put(text);
    }

    /// The data of a read of `length` bytes, which holds `releases` bytes of budget until it is sent.
    pub(crate) fn data(
        &mut self,
        cookie: u64,
        offset: u64,
        length: u32,
        data: Pieces,
        structured: bool,
        releases: u64,
    ) {
        if structured {
            self.chunk(cookie, wire::chunk::OFFSET_DATA, length.saturating_add(8));
            self.put(&offset.to_be_bytes());
        } else {
            self.simple(cookie, 0);
        }
        let mut releases = releases;
        for buffer in data {
            let share = releases.min(buffer.len() as u64);
            releases = releases.saturating_sub(share);
            if !buffer.is_empty() {
                self.seal();
                self.sealed.push_back(Sealed { buffer, releases: share, small: 0 });
            }
        }
    }

    /// What the bytes from the request's offset on are, as lengths and flags, in the one context there is.
    pub(crate) fn block_status(&mut self, cookie: u64, context: u32, extents: &[(u32, u32)]) {
        let length = extents.len().saturating_mul(8).saturating_add(4);
        self.chunk(cookie, wire::chunk::BLOCK_STATUS, u32::try_from(length).unwrap_or(u32::MAX));
        self.put(&context.to_be_bytes());
        for (length, flags) in extents {
            self.put(&length.to_be_bytes());
            self.put(&flags.to_be_bytes());
        }
    }

    fn simple(&mut self, cookie: u64, error: u32) {
        self.put(
            SimpleReplyHeader {
                magic: wire::SIMPLE_REPLY_MAGIC.into(),
                error: error.into(),
                cookie: cookie.into(),
            }
            .as_bytes(),
        );
    }

    /// The head of the only chunk of a reply: whatever is said is known completely before it is queued.
    fn chunk(&mut self, cookie: u64, kind: u16, length: u32) {
        self.put(
            ChunkHeader {
                magic: STRUCTURED_REPLY_MAGIC.into(),
                flags: wire::chunk::DONE.into(),
                kind: kind.into(),
                cookie: cookie.into(),
                length: length.into(),
            }
            .as_bytes(),
        );
    }

    fn put(&mut self, mut bytes: &[u8]) {
        self.small = self.small.saturating_add(bytes.len());
        while !bytes.is_empty() {
            let (tail, filled) = self.tail.get_or_insert_with(|| (self.pool.take(GATHERED), 0));
            let room = tail.get_mut(*filled..).unwrap_or_default();
            let count = room.len().min(bytes.len());
            let Some((now, later)) = bytes.split_at_checked(count) else { return };
            if let Some(room) = room.get_mut(..count) {
                room.copy_from_slice(now);
            }
            *filled = filled.saturating_add(count);
            bytes = later;
            if *filled == GATHERED {
                self.seal();
            }
        }
    }

    fn seal(&mut self) {
        let Some((mut tail, filled)) = self.tail.take_if(|(_, filled)| *filled > 0) else { return };
        // A client that does not read its answers is to hold no more memory than they are long, or hardly.
        let buffer = match tail.get(..filled) {
            Some(short) if filled <= SHORT => {
                let short = self.pool.copy_of(short);
                self.tail = Some((tail, 0));
                short
            }
            _ => {
                tail.truncate(filled);
                tail.freeze()
            }
        };
        self.sealed.push_back(Sealed { buffer, releases: 0, small: filled });
    }
}
