//! A global allocator that counts, per thread: what a decoder takes can be compared with what it was given. And for
//! the whole process: what a request costs that several threads work on.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::atomic::{AtomicU64, Ordering};

/// What a thread has taken from the allocator.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Bytes of all allocations together, given back or not.
    pub total: usize,
    /// The most bytes that were held at once.
    pub peak: usize,
}

/// Runs `f` and tells what this thread took meanwhile.
pub fn measure<R>(f: impl FnOnce() -> R) -> (R, Usage) {
    let before = COUNT.get();
    COUNT.set(Count { total: 0, live: 0, peak: 0 });
    let result = f();
    let Count { total, peak, live } = COUNT.get();
    COUNT.set(Count {
        total: before.total.wrapping_add(total),
        live: before.live.wrapping_add(live),
        peak: before.peak.max(before.live.wrapping_add(peak)),
    });
    (result, Usage { total, peak: usize::try_from(peak).unwrap_or(0) })
}

/// What all threads have taken from the allocator since the process began, given back or not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Total {
    /// Allocations, and reallocations, which may be as costly.
    pub allocations: u64,
    /// Bytes of all of them together.
    pub bytes: u64,
    /// Those among them of at least [`LARGE`] bytes.
    pub large: u64,
}

/// Bytes of the smallest block of a disk that anybody sends: from here on an allocation may be for a payload.
pub const LARGE: usize = 4096;

/// What all threads have taken so far.
#[must_use]
pub fn total() -> Total {
    let get = |count: &AtomicU64| count.load(Ordering::Relaxed);
    Total { allocations: get(&ALLOCATIONS), bytes: get(&BYTES), large: get(&LARGE_ONES) }
}

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);
static BYTES: AtomicU64 = AtomicU64::new(0);
static LARGE_ONES: AtomicU64 = AtomicU64::new(0);

#[derive(Clone, Copy)]
struct Count {
    total: usize,
    /// Below 0 when more was given back than taken.
    live: isize,
    peak: isize,
}

thread_local! {
    /// Constant and without a destructor: looking at it allocates nothing, at any time of a thread's life.
    static COUNT: Cell<Count> = const { Cell::new(Count { total: 0, live: 0, peak: 0 }) };
}

fn took(size: usize) {
    let Count { total, live, peak } = COUNT.get();
    let live = live.wrapping_add_unsigned(size);
    COUNT.set(Count { total: total.wrapping_add(size), live, peak: peak.max(live) });
    ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
    BYTES.fetch_add(size as u64, Ordering::Relaxed);
    LARGE_ONES.fetch_add(u64::from(size >= LARGE), Ordering::Relaxed);
}

fn gave(size: usize) {
    let count = COUNT.get();
    COUNT.set(Count { live: count.live.wrapping_sub_unsigned(size), ..count });
}

/// The system's allocator, with a count.
struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

// SAFETY: every call is passed on to the system's allocator unchanged, which keeps the contract; the count is
// a thread-local cell without destructor, so that counting neither allocates nor unwinds.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        took(layout.size());
        // SAFETY: the caller keeps the contract of `alloc`, which is `System`'s.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        took(layout.size());
        // SAFETY: the caller keeps the contract of `alloc_zeroed`, which is `System`'s.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        gave(layout.size());
        // SAFETY: the caller says that `pointer` came from here with that layout, so it came from `System`.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        took(size);
        gave(layout.size());
        // SAFETY: as for `dealloc`; the caller keeps the contract of `realloc` for the new size.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_other_threads_take_is_in_the_total() {
        let before = total();
        let thread = std::thread::spawn(|| drop(std::hint::black_box(vec![1_u8; 5000])));
        thread.join().unwrap();
        let after = total();
        assert!(after.allocations > before.allocations && after.large > before.large);
        assert!(after.bytes >= before.bytes + 5000);
    }

    #[test]
    fn what_is_taken_is_counted_and_what_is_given_back_too() {
        let (kept, usage) = measure(|| {
            drop(std::hint::black_box(vec![1_u8; 1000]));
            std::hint::black_box(vec![1_u8; 300])
        });
        assert_eq!(usage, Usage { total: 1300, peak: 1000 });
        drop(kept);
        assert_eq!(measure(|| ()).1, Usage::default());
        let (inner, outer) = measure(|| measure(|| drop(std::hint::black_box(vec![0_u8; 77]))).1);
        assert_eq!((inner.total, outer.total, outer.peak), (77, 77, 77));
    }
}
