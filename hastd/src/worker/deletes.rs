//! Freeing a range so that it reads as zeros: whether a provider can do that, and the system calls of which each system
//! has its own (D1).
//!
//! Only what promises zeros counts, and only what does not write them one by one: a delete of gigabytes must not keep a
//! disk busy for minutes. So BLKDISCARD and DIOCGDELETE, which leave what they like, are not used, nor are BLKZEROOUT
//! and FALLOC_FL_ZERO_RANGE on devices, which write zeros where the device has no better way.

use std::fs::File;
use std::io;

use hast_engine::Deletes;
use hast_provider::Provider;

/// What `provider` can do. Asked for once, before privileges are dropped; nothing is changed on it.
pub(super) fn ability(provider: &Provider) -> Deletes {
    // So that a test can have a node whose disk cannot.
    #[cfg(debug_assertions)]
    if std::env::var_os("HASTD_TEST_NO_DELETES").is_some() {
        return Deletes::Refused;
    }
    if system::can_free(provider) { Deletes::LeaveZeros } else { Deletes::Refused }
}

/// Frees `length` bytes at `offset`, which read as zeros then.
///
/// # Errors
///
/// The system's; `EOPNOTSUPP` where it cannot be done.
pub(super) fn free(file: &File, is_device: bool, offset: u64, length: u64) -> io::Result<()> {
    let invalid = |_| io::Error::from_raw_os_error(libc::EINVAL);
    let offset = libc::off_t::try_from(offset).map_err(invalid)?;
    let length = libc::off_t::try_from(length).map_err(invalid)?;
    system::free(file, is_device, offset, length)
}

#[cfg(target_os = "linux")]
mod system {
    use super::*;
    use std::ops::Range;
    use std::os::fd::AsRawFd;
    use std::os::unix::fs::{FileExt, MetadataExt};
    use std::path::PathBuf;

    use libc::off_t;
    use nix::errno::Errno;
    use nix::fcntl::{FallocateFlags, fallocate};
    use nix::sys::stat::{major, minor};
    use nix::unistd::{SysconfVar, sysconf};

    pub(super) fn can_free(provider: &Provider) -> bool {
        if provider.is_device() {
            return most_zeroed_at_once(provider.as_file()).is_some_and(|bytes| bytes > 0);
        }
        // Behind its end a file has nothing that could be freed, but the file system says whether it could. All that
        // know FALLOC_FL_ZERO_RANGE know this too.
        let end = provider.mediasize().cast_signed();
        punch(provider.as_file(), end..end.saturating_add(4096)).is_ok()
    }

    /// Of a block device: bytes that it can make zeros with one command, without being sent them; 0 if it cannot.
    fn most_zeroed_at_once(file: &File) -> Option<u64> {
        let device = file.metadata().ok()?.rdev();
        let device = PathBuf::from(format!("/sys/dev/block/{}:{}", major(device), minor(device)));
        // A partition has its disk's queue.
        let queue =
            if device.join("partition").exists() { device.join("../queue") } else { device.join("queue") };
        let text = std::fs::read_to_string(queue.join("write_zeroes_max_bytes")).ok()?;
        text.trim().parse().ok()
    }

    pub(super) fn free(file: &File, is_device: bool, offset: off_t, length: off_t) -> io::Result<()> {
        let end = offset.checked_add(length).ok_or(Errno::EINVAL)?;
        if is_device { free_on_device(file, offset..end) } else { punch(file, offset..end) }
    }

    /// Of a device this is the one call that neither leaves other bytes than zeros nor falls back to writing them.
    fn punch(file: &File, range: Range<off_t>) -> io::Result<()> {
        let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        match fallocate(file, flags, range.start, range.end.saturating_sub(range.start)) {
            // Kernels that cannot do it with devices.
            Err(Errno::ENODEV | Errno::ENOSYS) => Err(Errno::EOPNOTSUPP.into()),
            result => Ok(result?),
        }
    }

    /// The kernel drops what it has cached of the range before it asks the device, which may fail. Then the last
    /// write must not be lost with the cache, so it is with the device before; and what it has cached of a page that
    /// lies in the range in part it would make zeros, on the device or not. Those parts are written.
    fn free_on_device(file: &File, range: Range<off_t>) -> io::Result<()> {
        let pages = whole_pages(&range)?;
        if pages.is_empty() {
            return write_zeros(file, range);
        }
        write_out(file, &pages)?;
        punch(file, pages.clone())?;
        write_zeros(file, range.start..pages.start)?;
        write_zeros(file, pages.end..range.end)
    }

    /// Empty if there are none.
    fn whole_pages(range: &Range<off_t>) -> io::Result<Range<off_t>> {
        let page = sysconf(SysconfVar::PAGE_SIZE)?.and_then(|size| u64::try_from(size).ok());
        let page = page.filter(|size| *size > 0).ok_or(Errno::EINVAL)?;
        let (start, end) = (range.start.cast_unsigned(), range.end.cast_unsigned());
        let start = start.checked_next_multiple_of(page).ok_or(Errno::EINVAL)?;
        let end = end.saturating_sub(end % page).max(start);
        Ok(start.cast_signed()..end.cast_signed())
    }

    /// Less than a page.
    fn write_zeros(file: &File, range: Range<off_t>) -> io::Result<()> {
        let length = usize::try_from(range.end.saturating_sub(range.start)).unwrap_or(0);
        file.write_all_at(&vec![0; length], range.start.cast_unsigned())
    }

    fn write_out(file: &File, range: &Range<off_t>) -> io::Result<()> {
        let flags = libc::SYNC_FILE_RANGE_WAIT_BEFORE
            | libc::SYNC_FILE_RANGE_WRITE
            | libc::SYNC_FILE_RANGE_WAIT_AFTER;
        let length = range.end.saturating_sub(range.start);
        // SAFETY: sync_file_range takes no pointers, and the descriptor is open because `file` is borrowed.
        Errno::result(unsafe { libc::sync_file_range(file.as_raw_fd(), range.start, length, flags) })?;
        Ok(())
    }
}

#[cfg(target_os = "freebsd")]
mod system {
    use super::*;
    use std::os::fd::AsRawFd;

    use nix::errno::Errno;

    /// Whether the file system frees ranges itself, of fpathconf(2). Since FreeBSD 14.
    const DEALLOC_PRESENT: libc::c_int = 65;

    type Fspacectl = unsafe extern "C" fn(
        fd: libc::c_int,
        command: libc::c_int,
        range: *const libc::spacectl_range,
        flags: libc::c_int,
        left: *mut libc::spacectl_range,
    ) -> libc::c_int;

    /// No disk says what a deleted range reads as. A file system that does not free ranges itself has zeros written
    /// by fspacectl(2).
    pub(super) fn can_free(provider: &Provider) -> bool {
        if provider.is_device() || fspacectl().is_none() {
            return false;
        }
        // SAFETY: fpathconf takes no pointers, and the descriptor is open because `provider` is borrowed.
        unsafe { libc::fpathconf(provider.as_file().as_raw_fd(), DEALLOC_PRESENT) == 1 }
    }

    /// fspacectl(2). It is there since FreeBSD 14, so it is looked up: a program that names it would not even
    /// start on an older one.
    fn fspacectl() -> Option<Fspacectl> {
        // SAFETY: the name ends with a NUL.
        let found = unsafe { libc::dlsym(libc::RTLD_DEFAULT, c"fspacectl".as_ptr()) };
        // SAFETY: the C library's function of this name has this type, and it is not null.
        (!found.is_null()).then(|| unsafe { std::mem::transmute::<*mut libc::c_void, Fspacectl>(found) })
    }

    pub(super) fn free(
        file: &File,
        is_device: bool,
        offset: libc::off_t,
        length: libc::off_t,
    ) -> io::Result<()> {
        let Some(fspacectl) = fspacectl().filter(|_| !is_device) else {
            return Err(Errno::EOPNOTSUPP.into());
        };
        let mut left = libc::spacectl_range { r_offset: offset, r_len: length };
        while left.r_len > 0 {
            let range = left;
            // SAFETY: both ranges are valid for the call, one to be read and one to be written; the descriptor
            // is open because `file` is borrowed.
            let result = unsafe {
                fspacectl(file.as_raw_fd(), libc::SPACECTL_DEALLOC, &raw const range, 0, &raw mut left)
            };
            match Errno::result(result) {
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno.into()),
                // Beyond the end of the file nothing can be freed, and nothing is left to be.
                Ok(_) if left.r_offset <= range.r_offset => return Ok(()),
                Ok(_) => {}
            }
        }
        Ok(())
    }
}

#[cfg(test)]
#[path = "deletes_tests.rs"]
mod tests;
