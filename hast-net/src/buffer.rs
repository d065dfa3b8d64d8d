//! Payload memory: aligned for direct I/O, recycled through a pool, shared without copying.
//!
//! A payload is received once into a [`BufferMut`], frozen into a [`Buffer`], and from then on only
//! counted: the local disk, the peer and the client all look at the same bytes. Dropping the last
//! reference gives the memory back to the pool it came from. The pool bounds what it *keeps*; how many
//! buffers are in use at once is bounded by whoever admits requests.

use std::fmt;
use std::ops::{Deref, DerefMut, Range};
use std::sync::{Arc, Mutex, PoisonError, Weak};

/// Every buffer starts at a multiple of this many bytes, enough for direct I/O on 4096-byte sectors.
pub const ALIGNMENT: usize = 4096;

/// Capacities that a pool keeps, in bytes; larger requests are allocated and freed as they come.
const CLASSES: [usize; 4] = [4096, 32_768, 131_072, 1_048_576];

/// Bytes of idle memory that a pool keeps in each class at most.
const KEPT_PER_CLASS: usize = 8 << 20;

/// A source of payload memory; clones share what is idle.
#[derive(Clone, Default)]
pub struct Pool {
    idle: Arc<Mutex<[Vec<Storage>; CLASSES.len()]>>,
}

impl Pool {
    /// An empty pool.
    #[must_use]
    pub fn new() -> Pool {
        Pool::default()
    }

    /// A buffer of `len` bytes whose contents are unspecified (zero, or what an earlier user left).
    #[must_use]
    pub fn take(&self, len: usize) -> BufferMut {
        let class = CLASSES.iter().position(|&size| len <= size);
        let recycled = class.and_then(|class| {
            let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
            idle.get_mut(class)?.pop()
        });
        let storage = recycled.unwrap_or_else(|| {
            Storage::new(class.and_then(|class| CLASSES.get(class).copied()).unwrap_or(len))
        });
        BufferMut { memory: Memory { storage, home: Arc::downgrade(&self.idle), class }, len }
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        f.debug_list().entries(CLASSES.iter().zip(idle.iter().map(Vec::len))).finish()
    }
}

/// Payload memory with one owner, to be filled.
pub struct BufferMut {
    memory: Memory,
    len: usize,
}

impl BufferMut {
    /// Shortens the buffer to `len` bytes; a longer `len` changes nothing.
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }

    /// Ends the filling: from here on the bytes can be shared and do not change.
    #[must_use]
    pub fn freeze(self) -> Buffer {
        let end = self.len;
        Buffer { memory: Arc::new(self.memory), range: 0..end }
    }
}

impl Deref for BufferMut {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.memory.storage.bytes().get(..self.len).unwrap_or_default()
    }
}

impl DerefMut for BufferMut {
    fn deref_mut(&mut self) -> &mut [u8] {
        self.memory.storage.bytes_mut().get_mut(..self.len).unwrap_or_default()
    }
}

impl fmt::Debug for BufferMut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BufferMut({} bytes)", self.len)
    }
}

/// Payload memory that can be shared: a clone or a slice counts a reference and copies nothing.
#[derive(Clone)]
pub struct Buffer {
    memory: Arc<Memory>,
    range: Range<usize>,
}

impl Buffer {
    /// The bytes `range` of this buffer, sharing its memory. What lies past the end is left out.
    #[must_use]
    pub fn slice(&self, range: Range<usize>) -> Buffer {
        let end = self.range.start.saturating_add(range.end).min(self.range.end);
        let start = self.range.start.saturating_add(range.start).min(end);
        Buffer { memory: Arc::clone(&self.memory), range: start..end }
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.memory.storage.bytes().get(self.range.clone()).unwrap_or_default()
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl From<Vec<u8>> for Buffer {
    /// Takes the vector over as it is, without aligning it.
    fn from(bytes: Vec<u8>) -> Buffer {
        let range = 0..bytes.len();
        let memory = Memory { storage: Storage { bytes, start: 0 }, home: Weak::new(), class: None };
        Buffer { memory: Arc::new(memory), range }
    }
}

impl PartialEq for Buffer {
    fn eq(&self, other: &Buffer) -> bool {
        self[..] == other[..]
    }
}

impl Eq for Buffer {}

impl fmt::Debug for Buffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Buffer({} bytes)", self.range.len())
    }
}

/// Storage that goes home when nobody needs it any more.
struct Memory {
    storage: Storage,
    home: Weak<Mutex<[Vec<Storage>; CLASSES.len()]>>,
    class: Option<usize>,
}

impl Drop for Memory {
    fn drop(&mut self) {
        let (Some(class), Some(home)) = (self.class, self.home.upgrade()) else { return };
        let storage = std::mem::take(&mut self.storage);
        let mut idle = home.lock().unwrap_or_else(PoisonError::into_inner);
        if let (Some(kept), Some(size)) = (idle.get_mut(class), CLASSES.get(class))
            && kept.len() < KEPT_PER_CLASS / size
        {
            kept.push(storage);
        }
    }
}

/// A vector with its first aligned byte.
#[derive(Default)]
struct Storage {
    bytes: Vec<u8>,
    start: usize,
}

impl Storage {
    fn new(capacity: usize) -> Storage {
        let bytes = vec![0; capacity.saturating_add(ALIGNMENT)];
        let misaligned = bytes.as_ptr().addr() % ALIGNMENT;
        Storage { bytes, start: if misaligned == 0 { 0 } else { ALIGNMENT - misaligned } }
    }

    fn bytes(&self) -> &[u8] {
        self.bytes.get(self.start..).unwrap_or_default()
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        self.bytes.get_mut(self.start..).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_aligned_and_exactly_as_long_as_asked_for() {
        let pool = Pool::new();
        for len in [0, 1, 512, 4096, 4097, 131_072, 1_048_576, 1_048_577, 3_000_000] {
            let mut buffer = pool.take(len);
            assert_eq!(buffer.len(), len);
            assert_eq!(buffer.as_ptr().addr() % ALIGNMENT, 0, "{len}");
            buffer.fill(7);
            assert!(buffer.freeze().iter().all(|&byte| byte == 7));
        }
    }

    #[test]
    fn memory_comes_back_only_when_the_last_reference_is_gone() {
        let pool = Pool::new();
        let first = pool.take(4096);
        let address = first.as_ptr().addr();
        let whole = first.freeze();
        let part = whole.slice(512..1024);
        drop(whole);
        assert_ne!(pool.take(4096).as_ptr().addr(), address, "still in use by the slice");
        drop(part);
        let again: Vec<usize> = (0..2).map(|_| pool.take(4096)).map(|b| b.as_ptr().addr()).collect();
        assert!(again.contains(&address));
    }

    #[test]
    fn what_a_pool_keeps_is_bounded() {
        let pool = Pool::new();
        let many: Vec<BufferMut> = (0..40).map(|_| pool.take(1_048_576)).collect();
        drop(many);
        assert_eq!(pool.idle.lock().unwrap()[3].len(), KEPT_PER_CLASS / 1_048_576);
    }

    #[test]
    fn slices_share_and_stay_inside() {
        let buffer = Buffer::from(vec![1, 2, 3, 4, 5]);
        let middle = buffer.slice(1..4);
        assert_eq!(&middle[..], [2, 3, 4]);
        assert_eq!(&middle.slice(1..9)[..], [3, 4]);
        assert_eq!(&middle.slice(9..12)[..], [0u8; 0]);
        assert_eq!(middle.slice(2..3), Buffer::from(vec![4]));
    }

    #[test]
    fn truncated_buffers_freeze_short() {
        let mut buffer = Pool::new().take(100);
        buffer.truncate(10);
        buffer.truncate(50);
        assert_eq!(buffer.freeze().len(), 10);
    }
}
