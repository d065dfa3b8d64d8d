//! Where received bytes wait until they are understood: headers, and the little that came along with them.

use crate::wire::RequestHeader;

/// Bytes read at once while the stream is made of small things.
const CAPACITY: usize = 64 << 10;

/// Bytes read at once while the stream is made of large writes: just a header, so that the data behind it can
/// be received where it stays.
const NARROW: usize = size_of::<RequestHeader>();

/// A short queue of received bytes.
#[derive(Debug)]
pub(crate) struct Staging {
    bytes: Box<[u8]>,
    start: usize,
    end: usize,
}

impl Staging {
    pub(crate) fn new() -> Staging {
        Staging { bytes: vec![0; CAPACITY].into_boxed_slice(), start: 0, end: 0 }
    }

    /// Where to put what is received next; `narrow` leaves room for one header only.
    pub(crate) fn space(&mut self, narrow: bool) -> &mut [u8] {
        if self.start > 0 {
            self.bytes.copy_within(self.start..self.end, 0);
            self.end = self.end.saturating_sub(self.start);
            self.start = 0;
        }
        let limit = if narrow && self.end < NARROW { NARROW } else { CAPACITY };
        self.bytes.get_mut(self.end..limit).unwrap_or_default()
    }

    /// Takes note that `count` bytes were put into the space.
    pub(crate) fn advance(&mut self, count: usize) {
        self.end = self.end.saturating_add(count).min(self.bytes.len());
    }

    /// Takes up to `most` bytes.
    pub(crate) fn take(&mut self, most: usize) -> &[u8] {
        let start = self.start;
        let count = most.min(self.end.saturating_sub(start));
        self.start = start.saturating_add(count);
        self.bytes.get(start..self.start).unwrap_or_default()
    }

    /// Takes the header `H`, once all of it is there.
    pub(crate) fn header<H: zerocopy::FromBytes>(&mut self) -> Option<H> {
        let waiting = self.bytes.get(self.start..self.end)?;
        let (header, _) = H::read_from_prefix(waiting).ok()?;
        self.start = self.start.saturating_add(size_of::<H>());
        Some(header)
    }
}
