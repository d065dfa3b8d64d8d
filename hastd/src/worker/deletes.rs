//! Telling a disk that a range is no longer needed: the system calls of which each system has its own.

use std::fs::File;
use std::io;

/// Frees `length` bytes at `offset`. What the range reads as afterwards is up to the disk.
///
/// # Errors
///
/// The system's; `EOPNOTSUPP` when disk, file system or system cannot do it.
pub(super) fn discard(file: &File, is_device: bool, offset: u64, length: u64) -> io::Result<()> {
    if is_device { system::discard_device(file, offset, length) } else { system::punch(file, offset, length) }
}

#[cfg(target_os = "linux")]
mod system {
    use super::*;
    use std::os::fd::AsRawFd;

    use nix::errno::Errno;
    use nix::fcntl::{FallocateFlags, fallocate};

    nix::ioctl_write_ptr_bad! {
        #[allow(unreachable_pub)]
        blkdiscard, nix::request_code_none!(0x12, 119), [u64; 2]
    }

    pub(super) fn discard_device(file: &File, offset: u64, length: u64) -> io::Result<()> {
        let range = [offset, length];
        // SAFETY: BLKDISCARD reads two u64 through the pointer, which is valid for the call and refers to
        // exactly that; the descriptor is open because `file` is borrowed.
        unsafe { blkdiscard(file.as_raw_fd(), &raw const range) }?;
        Ok(())
    }

    pub(super) fn punch(file: &File, offset: u64, length: u64) -> io::Result<()> {
        let offset = libc::off_t::try_from(offset).map_err(|_| Errno::EINVAL)?;
        let length = libc::off_t::try_from(length).map_err(|_| Errno::EINVAL)?;
        let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        fallocate(file, flags, offset, length)?;
        Ok(())
    }
}

#[cfg(target_os = "freebsd")]
mod system {
    use super::*;
    use std::os::fd::AsRawFd;

    use nix::errno::Errno;

    nix::ioctl_write_ptr! {
        #[allow(unreachable_pub)]
        diocgdelete, b'd', 136, [libc::off_t; 2]
    }

    pub(super) fn discard_device(file: &File, offset: u64, length: u64) -> io::Result<()> {
        let offset = libc::off_t::try_from(offset).map_err(|_| Errno::EINVAL)?;
        let length = libc::off_t::try_from(length).map_err(|_| Errno::EINVAL)?;
        let range = [offset, length];
        // SAFETY: DIOCGDELETE reads two off_t through the pointer, which is valid for the call and refers
        // to exactly that; the descriptor is open because `file` is borrowed.
        unsafe { diocgdelete(file.as_raw_fd(), &raw const range) }?;
        Ok(())
    }

    /// fspacectl(2). It is there since FreeBSD 14, so it is looked up: a program that names it would not even
    /// start on an older one.
    pub(super) fn punch(file: &File, offset: u64, length: u64) -> io::Result<()> {
        type Fspacectl = unsafe extern "C" fn(
            fd: libc::c_int,
            command: libc::c_int,
            range: *const libc::spacectl_range,
            flags: libc::c_int,
            left: *mut libc::spacectl_range,
        ) -> libc::c_int;
        let offset = libc::off_t::try_from(offset).map_err(|_| Errno::EINVAL)?;
        let length = libc::off_t::try_from(length).map_err(|_| Errno::EINVAL)?;
        // SAFETY: the name ends with a NUL.
        let found = unsafe { libc::dlsym(libc::RTLD_DEFAULT, c"fspacectl".as_ptr()) };
        if found.is_null() {
            return Err(Errno::EOPNOTSUPP.into());
        }
        // SAFETY: the C library's function of this name has this type, and it is not null.
        let fspacectl: Fspacectl = unsafe { std::mem::transmute(found) };
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
