//! The system calls of which each system has its own: what is a disk, how large is it, how is it locked
//! and flushed. The only unsafe code of this crate.

use std::fs::{File, FileType};
use std::io;
use std::os::fd::AsRawFd;

use nix::errno::Errno;

pub(crate) use system::{DISK, flush, forget_cached, is_disk, mediasize, sectorsize};

/// flock(2), exclusive, without waiting. The lock lives as long as the open file, across fork and exec
/// and whoever the descriptor is passed to: `nix`'s guard would end it with this process's handle.
pub(crate) fn lock_exclusively(file: &File) -> Result<(), Errno> {
    // SAFETY: flock takes no pointers, and the descriptor is open because `file` is borrowed.
    let result = unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) };
    Errno::result(result).map(drop)
}

#[cfg(target_os = "linux")]
mod system {
    use super::*;
    use std::os::unix::fs::FileTypeExt;

    pub(crate) const DISK: &str = "block device";

    nix::ioctl_read_bad! {
        #[allow(unreachable_pub)]
        blkgetsize64, nix::request_code_read!(0x12, 114, size_of::<usize>()), u64
    }
    nix::ioctl_read_bad! {
        #[allow(unreachable_pub)]
        blksszget, nix::request_code_none!(0x12, 104), libc::c_int
    }

    pub(crate) fn is_disk(kind: FileType) -> bool {
        kind.is_block_device()
    }

    pub(crate) fn mediasize(file: &File) -> io::Result<u64> {
        let mut size = 0_u64;
        // SAFETY: BLKGETSIZE64 writes one u64 through the pointer, which is valid for the call and refers
        // to a u64; the descriptor is open because `file` is borrowed.
        unsafe { blkgetsize64(file.as_raw_fd(), &raw mut size) }?;
        Ok(size)
    }

    pub(crate) fn sectorsize(file: &File) -> io::Result<u32> {
        let mut size: libc::c_int = 0;
        // SAFETY: BLKSSZGET writes one int through the pointer, which is valid for the call and refers to
        // an int; the descriptor is open because `file` is borrowed.
        unsafe { blksszget(file.as_raw_fd(), &raw mut size) }?;
        u32::try_from(size).map_err(io::Error::other)
    }

    pub(crate) fn flush(file: &File, _is_device: bool) -> io::Result<()> {
        // On a block device this flushes the disk's cache too.
        file.sync_data()
    }

    pub(crate) fn forget_cached(file: &File) -> io::Result<()> {
        use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
        // Clean pages only: what is yet to be written stays.
        posix_fadvise(file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED).map_err(io::Error::from)
    }
}

#[cfg(target_os = "freebsd")]
mod system {
    use super::*;
    use std::os::unix::fs::FileTypeExt;

    pub(crate) const DISK: &str = "GEOM provider";

    nix::ioctl_read! {
        #[allow(unreachable_pub)]
        diocgmediasize, b'd', 129, libc::off_t
    }
    nix::ioctl_read! {
        #[allow(unreachable_pub)]
        diocgsectorsize, b'd', 128, libc::c_uint
    }
    nix::ioctl_none! {
        #[allow(unreachable_pub)]
        diocgflush, b'd', 135
    }

    // The numbers of spec/ggate.md, checked where they are used.
    const _: () = assert!(nix::request_code_read!(b'd', 129, size_of::<libc::off_t>()) == 0x4008_6481);
    const _: () = assert!(nix::request_code_read!(b'd', 128, size_of::<libc::c_uint>()) == 0x4004_6480);
    const _: () = assert!(nix::request_code_none!(b'd', 135) == 0x2000_6487);

    pub(crate) fn is_disk(kind: FileType) -> bool {
        kind.is_char_device()
    }

    pub(crate) fn mediasize(file: &File) -> io::Result<u64> {
        let mut size: libc::off_t = 0;
        // SAFETY: DIOCGMEDIASIZE writes one off_t through the pointer, which is valid for the call and
        // refers to an off_t; the descriptor is open because `file` is borrowed.
        unsafe { diocgmediasize(file.as_raw_fd(), &raw mut size) }?;
        u64::try_from(size).map_err(io::Error::other)
    }

    pub(crate) fn sectorsize(file: &File) -> io::Result<u32> {
        let mut size: libc::c_uint = 0;
        // SAFETY: DIOCGSECTORSIZE writes one unsigned int through the pointer, which is valid for the call
        // and refers to one; the descriptor is open because `file` is borrowed.
        unsafe { diocgsectorsize(file.as_raw_fd(), &raw mut size) }?;
        Ok(size)
    }

    pub(crate) fn flush(file: &File, is_device: bool) -> io::Result<()> {
        if !is_device {
            return file.sync_data();
        }
        // SAFETY: DIOCGFLUSH takes no argument; the descriptor is open because `file` is borrowed.
        unsafe { diocgflush(file.as_raw_fd()) }?;
        Ok(())
    }

    pub(crate) fn forget_cached(_file: &File) -> io::Result<()> {
        Ok(())
    }
}
