//! `memcpy` and `memmove` with a count.

use std::sync::atomic::{AtomicU64, Ordering};

/// The smallest payload that is measured. Shorter copies are headers, and the nodes of search trees.
const LONG: usize = 4096;

static BYTES: AtomicU64 = AtomicU64::new(0);

/// Bytes of all copies of at least [`LONG`] bytes so far, by any thread.
pub(crate) fn bytes() -> u64 {
    BYTES.load(Ordering::Relaxed)
}

/// As in C; compiled code calls it wherever it copies bytes of a number that it does not know.
///
/// # Safety
/// As in C: `from` and `to` are valid for `count` bytes, and do not overlap.
#[unsafe(no_mangle)]
unsafe extern "C" fn memcpy(to: *mut u8, from: *const u8, count: usize) -> *mut u8 {
    // SAFETY: the caller's promise is more than is asked for.
    unsafe { memmove(to, from, count) }
}

/// As in C.
///
/// # Safety
/// As in C: `from` and `to` are valid for `count` bytes.
#[unsafe(no_mangle)]
unsafe extern "C" fn memmove(to: *mut u8, from: *const u8, count: usize) -> *mut u8 {
    if count >= LONG {
        BYTES.fetch_add(count as u64, Ordering::Relaxed);
    }
    let forwards = to.cast_const() <= from;
    let mut done = 0;
    while done < count {
        let at = if forwards { done } else { count - 1 - done };
        // Volatile, or this loop would be compiled to a call of itself.
        // SAFETY: `at` is below `count`, and the caller says that both are valid for so many bytes. Bytes that are
        // still to be read are not written before: they are copied from the end that is not overlapped.
        unsafe { to.add(at).write_volatile(from.add(at).read_volatile()) };
        done += 1;
    }
    to
}
