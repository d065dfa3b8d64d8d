//! A read of extents that no node has all of: some are right here alone, others are not. It is done in pieces, one
//! after the other, each from where it is right.

use core::ops::Range;

use hast_net::buffer::Buffer;

use super::{Half, Stage};
use crate::primary::Primary;
use crate::ranges::Key;
use crate::types::Op;

/// A read of which only a piece is being read now.
#[derive(Debug, Default)]
pub(super) struct Pieces {
    /// The pieces before it.
    read: Vec<Buffer>,
    /// What comes after it, in bytes of the data area.
    rest: Range<u64>,
}

impl Primary {
    /// Whether some of what `key` reads is right here alone, and some is not.
    pub(super) fn is_mixed(&self, key: Key) -> bool {
        let Some(request) = self.requests.get(&key) else { return false };
        let behind = request.extents().filter(|extent| self.is_behind(*extent)).count();
        behind > 0 && behind < request.extents().len()
    }

    /// Reads no more of `key` for now than one node has.
    pub(super) fn read_a_piece(&mut self, key: Key) {
        let Some(request) = self.requests.get(&key) else { return };
        let extents = request.extents();
        let here = self.is_behind(extents.start);
        let Some(next) = extents.clone().find(|extent| self.is_behind(*extent) != here) else { return };
        let (cut, _) = self.layout.extent_range(next);
        let Some(request) = self.requests.get_mut(&key) else { return };
        let Op::Read { offset, length } = request.op else { return };
        let end = offset.saturating_add(length.into());
        let Ok(length) = u32::try_from(cut.saturating_sub(offset)) else { return };
        let pieces = request.pieces.get_or_insert_default();
        pieces.rest = cut..pieces.rest.end.max(end);
        request.op = Op::Read { offset, length };
        request.extents = extents.start..next;
    }

    /// A piece of `key`, or all of it, was read. Gives all of it once there is no more to read.
    pub(super) fn piece_read(&mut self, key: Key, data: Buffer) -> Option<Buffer> {
        let request = self.requests.get_mut(&key)?;
        let Some(pieces) = &mut request.pieces else { return Some(data) };
        pieces.read.push(data);
        let Range { start, end } = std::mem::take(&mut pieces.rest);
        if start == end {
            let all: Vec<u8> = pieces.read.iter().flat_map(|piece| piece.iter().copied()).collect();
            return Some(Buffer::from(all));
        }
        let length = u32::try_from(end.saturating_sub(start)).unwrap_or(0);
        request.op = Op::Read { offset: start, length };
        request.extents = self.layout.extents_of(start, length.into());
        (request.local, request.remote) = (Half::NotAsked, Half::NotAsked);
        self.set_stage(key, Stage::Queued);
        self.request_ready(key);
        None
    }
}
