//! The system calls of which each system has its own: what is a disk, how large is it, how is it locked
//! and flushed. The only unsafe code of this crate.

use std::fs::{File, FileType};
use std::io;
use std::os::fd::AsRawFd;

use nix::errno::Errno;

pub(crate) use system::{
    DISK, flush, forget_cached, is_disk, is_read_only, mediasize, past_the_cache, sectorsize,
};

/// Whether a transfer failed because of the sectors that it was about, and not because of the disk as a whole, the
/// system or what was asked for.
pub(crate) fn is_bad_sector(error: &io::Error) -> bool {
    error.raw_os_error().is_some_and(|raw| raw == libc::EIO || system::BAD_SECTOR.contains(&raw))
}

/// Whether the system cannot do what [`past_the_cache`] is for, or not in pieces as small as a sector.
pub(crate) fn is_unsupported(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EINVAL | libc::EOPNOTSUPP))
}

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
    /// What disks and file systems answer besides EIO: a medium error, an error of the target, a checksum of the
    /// disk's or the file system's that is wrong.
    pub(crate) const BAD_SECTOR: &[i32] = &[libc::ENODATA, libc::EREMOTEIO, libc::EILSEQ, libc::EBADMSG];

    nix::ioctl_read_bad! {
        #[allow(unreachable_pub)]
        blkgetsize64, nix::request_code_read!(0x12, 114, size_of::<usize>()), u64
    }
    nix::ioctl_read_bad! {
        #[allow(unreachable_pub)]
        blkroget, nix::request_code_none!(0x12, 94), libc::c_int
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

    /// Whether the disk refuses to be written. Opening it for writing succeeds all the same.
    pub(crate) fn is_read_only(file: &File) -> io::Result<bool> {
        let mut read_only: libc::c_int = 0;
        // SAFETY: BLKROGET writes one int through the pointer, which is valid for the call and refers to an int; the
        // descriptor is open because `file` is borrowed.
        unsafe { blkroget(file.as_raw_fd(), &raw mut read_only) }?;
        Ok(read_only != 0)
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

    /// Carries out `work`, with reads and writes of `file` that go to the disk as they are. Nobody else uses the
    /// file meanwhile. Offsets, lengths and the memory are aligned to sectors.
    pub(crate) fn past_the_cache<T>(file: &File, work: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        use nix::fcntl::{FcntlArg, OFlag, fcntl};
        let flags = OFlag::from_bits_retain(fcntl(file, FcntlArg::F_GETFL)?);
        fcntl(file, FcntlArg::F_SETFL(flags | OFlag::O_DIRECT))?;
        let result = work();
        fcntl(file, FcntlArg::F_SETFL(flags))?;
        result
    }
}

#[cfg(target_os = "freebsd")]
mod system {
    use super::*;
    use std::os::unix::fs::FileTypeExt;

    pub(crate) const DISK: &str = "GEOM provider";
    /// What a file system answers besides EIO: a checksum that is wrong (EINTEGRITY, EBADMSG).
    pub(crate) const BAD_SECTOR: &[i32] = &[97, libc::EBADMSG];

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

    /// GEOM does not let a provider that cannot be written be opened for that.
    pub(crate) fn is_read_only(_file: &File) -> io::Result<bool> {
        Ok(false)
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

    /// Not needed: disks have no page cache here.
    pub(crate) fn past_the_cache<T>(_file: &File, _work: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        Err(io::Error::from_raw_os_error(libc::EOPNOTSUPP))
    }
}
