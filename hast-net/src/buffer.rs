//! Memory for what is received and sent: aligned for direct I/O, recycled through a pool, shared without copying.
//!
//! A payload is received once into a [`BufferMut`], frozen into a [`Buffer`], and from then on only
//! counted: the local disk, the peer and the client all look at the same bytes. Dropping the last
//! reference gives the memory back to the pool it came from, with the count that it was shared by, so that
//! neither is allocated for the next one. The pool bounds what it *keeps*; how many buffers are in use at
//! once is bounded by whoever admits requests.

use std::fmt;
use std::ops::{Deref, DerefMut, Range};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

/// Every buffer that is longer than a header starts at a multiple of this many bytes, enough for direct I/O on
/// 4096-byte sectors.
pub const ALIGNMENT: usize = 4096;

/// Bytes that no disk is given: lists of pairs and the like, which need not be aligned.
const HEADER: usize = 256;

/// Capacities that a pool keeps, in bytes; larger requests are allocated and freed as they come.
const CLASSES: [usize; 5] = [HEADER, 4096, 32_768, 131_072, 1_048_576];

/// Bytes of idle memory that a pool keeps in each class at most.
const KEPT_PER_CLASS: usize = 4 << 20;

/// A source of memory; clones share what is idle.
#[derive(Clone, Default)]
pub struct Pool {
    idle: Arc<Idle>,
}

/// What nobody uses, by class.
type Idle = Mutex<[Vec<Arc<Memory>>; CLASSES.len()]>;

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
        let recycled = class.and_then(|class| lock(&self.idle).get_mut(class)?.pop());
        let memory = recycled.unwrap_or_else(|| {
            let capacity = class.and_then(|class| CLASSES.get(class).copied()).unwrap_or(len);
            Arc::new(Memory { storage: Storage::new(capacity), home: Arc::downgrade(&self.idle), class })
        });
        BufferMut { held: Held(Some(memory)), len }
    }

    /// A buffer with these bytes.
    #[must_use]
    pub fn copy_of(&self, bytes: &[u8]) -> Buffer {
        if bytes.is_empty() {
            return Buffer::default();
        }
        let mut buffer = self.take(bytes.len());
        buffer.copy_from_slice(bytes);
        buffer.freeze()
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let idle = lock(&self.idle);
        f.debug_list().entries(CLASSES.iter().zip(idle.iter().map(Vec::len))).finish()
    }
}

/// Memory with one owner, to be filled.
pub struct BufferMut {
    held: Held,
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
        Buffer { range: 0..self.len, held: self.held }
    }
}

impl Deref for BufferMut {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.held.bytes().get(..self.len).unwrap_or_default()
    }
}

impl DerefMut for BufferMut {
    fn deref_mut(&mut self) -> &mut [u8] {
        let memory = self.held.0.as_mut().and_then(Arc::get_mut);
        memory.and_then(|memory| memory.storage.bytes_mut().get_mut(..self.len)).unwrap_or_default()
    }
}

impl fmt::Debug for BufferMut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BufferMut({} bytes)", self.len)
    }
}

/// Memory that can be shared: a clone or a slice counts a reference and copies nothing. The default has no bytes.
#[derive(Clone, Default)]
pub struct Buffer {
    held: Held,
    range: Range<usize>,
}

impl Buffer {
    /// The bytes `range` of this buffer, sharing its memory. What lies past the end is left out.
    #[must_use]
    pub fn slice(&self, range: Range<usize>) -> Buffer {
        let end = self.range.start.saturating_add(range.end).min(self.range.end);
        let start = self.range.start.saturating_add(range.start).min(end);
        Buffer { held: self.held.clone(), range: start..end }
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.held.bytes().get(self.range.clone()).unwrap_or_default()
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
        Buffer { held: Held(Some(Arc::new(memory))), range }
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

/// One reference to memory; none to memory of no bytes. The last one brings it home.
#[derive(Clone, Default)]
struct Held(Option<Arc<Memory>>);

impl Held {
    fn bytes(&self) -> &[u8] {
        self.0.as_ref().map(|memory| memory.storage.bytes()).unwrap_or_default()
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let Some(mut memory) = self.0.take() else { return };
        if Arc::get_mut(&mut memory).is_none() {
            return; // others are left
        }
        if let (Some(class), Some(home)) = (memory.class, memory.home.upgrade()) {
            keep(&home, class, || memory);
        }
    }
}

/// Storage, and where it belongs.
struct Memory {
    storage: Storage,
    home: Weak<Idle>,
    class: Option<usize>,
}

/// Two threads may have let go at the same moment, so that neither was the last to look: then only the storage can
/// be saved.
impl Drop for Memory {
    fn drop(&mut self) {
        let storage = std::mem::take(&mut self.storage);
        if let (false, Some(class), Some(home)) = (storage.bytes.is_empty(), self.class, self.home.upgrade())
        {
            let home_of_it = Weak::clone(&self.home);
            keep(&home, class, || Arc::new(Memory { storage, home: home_of_it, class: Some(class) }));
        }
    }
}

/// Adds memory to what is idle, if there is room.
fn keep(idle: &Idle, class: usize, memory: impl FnOnce() -> Arc<Memory>) {
    let mut idle = lock(idle);
    if let (Some(kept), Some(size)) = (idle.get_mut(class), CLASSES.get(class))
        && kept.len() < KEPT_PER_CLASS / size
    {
        kept.push(memory());
    }
}

fn lock(idle: &Idle) -> MutexGuard<'_, [Vec<Arc<Memory>>; CLASSES.len()]> {
    idle.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A vector with its first aligned byte.
#[derive(Default)]
struct Storage {
    bytes: Vec<u8>,
    start: usize,
}

impl Storage {
    fn new(capacity: usize) -> Storage {
        if capacity <= HEADER {
            return Storage { bytes: vec![0; capacity], start: 0 };
        }
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
        for len in [257, 512, 4096, 4097, 131_072, 1_048_576, 1_048_577, 3_000_000] {
            let mut buffer = pool.take(len);
            assert_eq!(buffer.len(), len);
            assert_eq!(buffer.as_ptr().addr() % ALIGNMENT, 0, "{len}");
            buffer.fill(7);
            assert!(buffer.freeze().iter().all(|&byte| byte == 7));
        }
        for len in [0, 1, 256] {
            assert_eq!((pool.take(len).len(), pool.copy_of(&vec![7; len]).len()), (len, len));
        }
    }

    #[test]
    fn what_several_threads_let_go_of_comes_back_once() {
        let pool = Pool::new();
        let address = pool.take(4096).as_ptr().addr();
        for _ in 0..1000 {
            let buffer = pool.take(4096).freeze();
            assert_eq!(buffer.as_ptr().addr(), address);
            let theirs = buffer.clone();
            let thread = std::thread::spawn(|| drop(theirs));
            drop(buffer);
            thread.join().unwrap();
        }
        assert_eq!(lock(&pool.idle)[1].len(), 1);
    }

    #[test]
    fn memory_that_outlives_its_pool_is_freed() {
        let buffer = Pool::new().copy_of(&[1; 4096]);
        assert_eq!(buffer.clone(), buffer);
        assert!(buffer.held.0.as_ref().unwrap().home.upgrade().is_none());
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
        assert_eq!(lock(&pool.idle)[4].len(), KEPT_PER_CLASS / 1_048_576);
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
