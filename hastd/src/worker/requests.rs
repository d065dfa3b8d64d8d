//! A request of a device cut into requests that every peer takes.

use hast_engine::{MAX_REQUEST, Op};
use hast_nbd::Pieces;
use hast_net::buffer::Buffer;

/// Bytes that one delete request covers at most.
pub(super) const MAX_DELETE: u64 = 1 << 30;

/// The engine's requests for one range, in order of their offsets.
pub(super) struct Requests {
    what: What,
    offset: u64,
    left: u64,
}

enum What {
    Nothing,
    Read,
    Write(<Pieces as IntoIterator>::IntoIter),
    Zeroes(Buffer),
    Delete,
}

impl Requests {
    /// Nothing to ask for.
    pub(super) fn none() -> Requests {
        Requests { what: What::Nothing, offset: 0, left: 0 }
    }

    /// Reads `length` bytes.
    pub(super) fn read(offset: u64, length: u64) -> Requests {
        Requests { what: What::Read, offset, left: length }
    }

    /// Writes `pieces`, none of them longer than [`MAX_REQUEST`], one behind the other.
    pub(super) fn write(offset: u64, pieces: Pieces) -> Requests {
        let left = pieces.iter().map(|piece| piece.len() as u64).sum();
        Requests { what: What::Write(pieces.into_iter()), offset, left }
    }

    /// Writes zeroes; `zeroes` are [`MAX_REQUEST`] bytes of them.
    pub(super) fn zeroes(offset: u64, length: u64, zeroes: &Buffer) -> Requests {
        Requests { what: What::Zeroes(zeroes.clone()), offset, left: length }
    }

    /// Deletes whole sectors. Done well that leaves zeroes.
    pub(super) fn delete(offset: u64, length: u64) -> Requests {
        Requests { what: What::Delete, offset, left: length }
    }

    /// Has `zeroes`, [`MAX_REQUEST`] bytes of them, written where the rest was to be deleted.
    pub(super) fn write_zeroes(&mut self, zeroes: &Buffer) {
        self.what = What::Zeroes(zeroes.clone());
    }

    pub(super) fn is_empty(&self) -> bool {
        self.left == 0
    }

    pub(super) fn is_trim(&self) -> bool {
        matches!(self.what, What::Delete)
    }
}

impl Iterator for Requests {
    type Item = Op;

    fn next(&mut self) -> Option<Op> {
        if self.left == 0 {
            return None;
        }
        let offset = self.offset;
        let short = u32::try_from(self.left).unwrap_or(u32::MAX).min(MAX_REQUEST);
        let (op, length) = match &mut self.what {
            What::Nothing => return None,
            What::Read => (Op::Read { offset, length: short }, u64::from(short)),
            What::Zeroes(zeroes) => {
                let data = zeroes.slice(0..short as usize);
                (Op::Write { offset, data }, u64::from(short))
            }
            What::Write(pieces) => {
                // An empty or missing piece cannot be; it must not end in a loop.
                let Some(data) = pieces.next().filter(|data| !data.is_empty()) else {
                    self.left = 0;
                    return None;
                };
                let length = data.len() as u64;
                (Op::Write { offset, data }, length)
            }
            What::Delete => {
                let length = self.left.min(MAX_DELETE);
                (Op::Delete { offset, length }, length)
            }
        };
        self.left = self.left.saturating_sub(length);
        self.offset = self.offset.saturating_add(length);
        Some(op)
    }
}
