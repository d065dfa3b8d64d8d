//! Keeps the worker of a primary working while memory is short.
//!
//! It is in the write path of the device: what the kernel has to write back in order to free memory goes through it. A
//! worker that waits for memory itself, is swapped out or killed would wait for that very writeback.

use std::io;

/// Does what the system allows to this process. Has to be called before the first thread is started: threads get it from
/// the one that starts them. What is not allowed is told with debug output only, for hastd need not be root.
pub(super) fn stay_out_of_reclaim() {
    for (what, result) in [
        ("be known as one that memory is freed by", be_io_flusher()),
        ("keep its memory out of the swap", lock_memory()),
        ("be spared when memory has run out", be_spared()),
    ] {
        if let Err(error) = result {
            log::debug!("The worker cannot {what}: {}.", hast_log::error_text(&error));
        }
    }
}

/// Since Linux 5.6: an allocation of this process does not wait for writeback, and its writes are not throttled for the
/// dirty pages of those who use the device.
#[cfg(target_os = "linux")]
fn be_io_flusher() -> io::Result<()> {
    const PR_SET_IO_FLUSHER: libc::c_int = 57;
    const ON: libc::c_ulong = 1;
    const NONE: libc::c_ulong = 0;
    // SAFETY: with this option prctl(2) reads its numbers and no memory; all five arguments are there.
    told(unsafe { libc::prctl(PR_SET_IO_FLUSHER, ON, NONE, NONE, NONE) })
}

#[cfg(not(target_os = "linux"))]
fn be_io_flusher() -> io::Result<()> {
    Ok(()) // FreeBSD has nothing like it
}

/// What the process uses stays in memory from the moment it is used. Only if there is no limit for that: with one, memory
/// that the worker needs later would be refused, and it may be another user by then.
#[cfg(target_os = "linux")]
fn lock_memory() -> io::Result<()> {
    use nix::sys::resource::{RLIM_INFINITY, Resource, setrlimit};
    setrlimit(Resource::RLIMIT_MEMLOCK, RLIM_INFINITY, RLIM_INFINITY)?;
    // SAFETY: mlockall(2) gets flags only, and changes nothing that the program could see.
    told(unsafe { libc::mlockall(libc::MCL_CURRENT | libc::MCL_FUTURE | libc::MCL_ONFAULT) })
}

#[cfg(not(target_os = "linux"))]
fn lock_memory() -> io::Result<()> {
    Ok(()) // what FreeBSD protects it does not swap out
}

/// The kernel ends other processes first.
#[cfg(target_os = "linux")]
fn be_spared() -> io::Result<()> {
    std::fs::write("/proc/self/oom_score_adj", "-1000")
}

/// As protect(1) does it.
#[cfg(target_os = "freebsd")]
fn be_spared() -> io::Result<()> {
    // SAFETY: MADV_PROTECT is about the process; address and length are not looked at.
    told(unsafe { libc::madvise(std::ptr::null_mut(), 0, libc::MADV_PROTECT) })
}

#[cfg(not(any(target_os = "linux", target_os = "freebsd")))]
fn be_spared() -> io::Result<()> {
    Ok(())
}

fn told(result: libc::c_int) -> io::Result<()> {
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
