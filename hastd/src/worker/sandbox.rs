//! What a worker's descriptors may still be used for once everything is open: the narrowest that lets it work.
//!
//! Owns the list, which is the same on every system and tested there, and on FreeBSD its enforcement by
//! Capsicum: the rights of each descriptor, its ioctl(2) and fcntl(2) numbers, and capability mode, in which
//! nothing new can be opened.

use std::io;
use std::os::fd::BorrowedFd;

use hast_ggate::abi;

/// What a descriptor is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    /// The provider.
    Disk,
    /// GEOM Gate's control device.
    Gate,
    /// The channel to the supervisor.
    Channel,
    /// A connection to the other node.
    Peer,
    /// The listening socket of the NBD export; what is accepted from it has its rights.
    NbdListener,
    /// Standard input, from which nothing is read.
    Input,
    /// Where the log goes: standard output and error, and the socket of syslogd(8).
    Log,
}

/// Something that a descriptor may be used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(not(target_os = "freebsd"), allow(dead_code))]
pub(super) enum Right {
    /// read(2), recvmsg(2).
    Read,
    /// write(2), sendmsg(2).
    Write,
    /// At an offset: pread(2), pwrite(2).
    Seek,
    /// fsync(2), fdatasync(2).
    Fsync,
    /// The numbers of [`Purpose::ioctls`].
    Ioctl,
    /// Getting and setting `O_NONBLOCK`.
    Fcntl,
    /// kevent(2), poll(2).
    Event,
    /// accept(2).
    Accept,
    /// getsockname(2): whether it is TCP.
    Getsockname,
    /// setsockopt(2): keepalive.
    Setsockopt,
}

/// `DIOCGFLUSH`.
const FLUSH: u64 = 0x2000_6487;
/// `FIONBIO`, with which the standard library makes a listener non-blocking.
const NONBLOCKING: u64 = 0x8004_667e;
#[cfg(target_os = "freebsd")]
const _: () = assert!(NONBLOCKING == libc::FIONBIO);

impl Purpose {
    /// All rights.
    #[cfg_attr(not(target_os = "freebsd"), allow(dead_code))]
    pub(super) fn rights(self) -> &'static [Right] {
        use Right::{Accept, Event, Fcntl, Fsync, Getsockname, Ioctl, Read, Seek, Setsockopt, Write};
        match self {
            Purpose::Disk => &[Read, Write, Seek, Fsync, Ioctl],
            Purpose::Gate => &[Ioctl],
            Purpose::Channel => &[Read, Write, Event],
            Purpose::Peer => &[Read, Write, Event, Fcntl, Getsockname, Setsockopt],
            Purpose::NbdListener => &[Read, Write, Event, Fcntl, Ioctl, Accept],
            Purpose::Input => &[],
            Purpose::Log => &[Write],
        }
    }

    /// All ioctl(2) numbers.
    #[cfg_attr(not(target_os = "freebsd"), allow(dead_code))]
    pub(super) fn ioctls(self) -> &'static [u64] {
        match self {
            Purpose::Disk => &[FLUSH],
            // Creating and taking over is done; what is left is what a worker does all the time.
            Purpose::Gate => &[abi::MODIFY, abi::DESTROY, abi::START, abi::DONE],
            Purpose::NbdListener => &[NONBLOCKING],
            Purpose::Channel | Purpose::Peer | Purpose::Input | Purpose::Log => &[],
        }
    }
}

/// Leaves a descriptor the rights of its purpose and no others. Where there is no Capsicum nothing happens.
///
/// # Errors
///
/// When the system refuses.
pub(super) fn limit(fd: BorrowedFd<'_>, purpose: Purpose) -> io::Result<()> {
    system::limit(fd, purpose)
}

/// Enters capability mode: from here on nothing can be opened, and there is no way back. False where there is
/// no such mode.
///
/// # Errors
///
/// When the system refuses.
pub(super) fn enter() -> io::Result<bool> {
    system::enter()
}

#[cfg(target_os = "freebsd")]
mod system {
    use super::{Purpose, Right};
    use std::io;
    use std::mem::MaybeUninit;
    use std::os::fd::{AsRawFd, BorrowedFd};

    pub(super) fn limit(fd: BorrowedFd<'_>, purpose: Purpose) -> io::Result<()> {
        match leave_rights(fd, purpose) {
            // A kernel without Capsicum has nothing to limit.
            Err(error) if error.raw_os_error() == Some(libc::ENOSYS) => Ok(()),
            result => result,
        }
    }

    fn leave_rights(fd: BorrowedFd<'_>, purpose: Purpose) -> io::Result<()> {
        let mut rights = MaybeUninit::<libc::cap_rights_t>::zeroed();
        let end_of_list: u64 = 0;
        // SAFETY: __cap_rights_init(3) fills the structure it is given, whatever was in it, with no rights:
        // the list of rights is empty, and ends with 0 as it must.
        unsafe { libc::__cap_rights_init(libc::CAP_RIGHTS_VERSION, rights.as_mut_ptr(), end_of_list) };
        for right in purpose.rights() {
            // SAFETY: the structure has been filled above; the list is one right, and ends with 0.
            unsafe { libc::__cap_rights_set(rights.as_mut_ptr(), number(*right), end_of_list) };
        }
        // SAFETY: the structure is valid and only read; the descriptor is open because it is borrowed.
        let result = unsafe { libc::cap_rights_limit(fd.as_raw_fd(), rights.as_ptr()) };
        told(result)?;
        let ioctls = purpose.ioctls();
        if !ioctls.is_empty() {
            // SAFETY: the list is as long as it is said to be and only read; the descriptor is open.
            told(unsafe { libc::cap_ioctls_limit(fd.as_raw_fd(), ioctls.as_ptr(), ioctls.len()) })?;
        }
        if purpose.rights().contains(&Right::Fcntl) {
            let flags = libc::CAP_FCNTL_GETFL | libc::CAP_FCNTL_SETFL;
            // SAFETY: takes no pointers; the descriptor is open.
            told(unsafe { libc::cap_fcntls_limit(fd.as_raw_fd(), flags) })?;
        }
        Ok(())
    }

    pub(super) fn enter() -> io::Result<bool> {
        // SAFETY: takes nothing. It ends this process's right to open things, which is what is wanted.
        match told(unsafe { libc::cap_enter() }) {
            Ok(()) => Ok(true),
            Err(error) if error.raw_os_error() == Some(libc::ENOSYS) => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn told(result: libc::c_int) -> io::Result<()> {
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    fn number(right: Right) -> u64 {
        match right {
            Right::Read => libc::CAP_READ,
            Right::Write => libc::CAP_WRITE,
            Right::Seek => libc::CAP_SEEK,
            Right::Fsync => libc::CAP_FSYNC,
            Right::Ioctl => libc::CAP_IOCTL,
            Right::Fcntl => libc::CAP_FCNTL,
            Right::Event => libc::CAP_EVENT,
            Right::Accept => libc::CAP_ACCEPT,
            Right::Getsockname => libc::CAP_GETSOCKNAME,
            Right::Setsockopt => libc::CAP_SETSOCKOPT,
        }
    }
}

#[cfg(not(target_os = "freebsd"))]
mod system {
    use super::Purpose;
    use std::io;
    use std::os::fd::BorrowedFd;

    pub(super) fn limit(_: BorrowedFd<'_>, _: Purpose) -> io::Result<()> {
        Ok(())
    }

    pub(super) fn enter() -> io::Result<bool> {
        Ok(false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Right::{Accept, Event, Fcntl, Fsync, Getsockname, Ioctl, Read, Seek, Setsockopt, Write};

    const ALL: [Purpose; 7] = [
        Purpose::Disk,
        Purpose::Gate,
        Purpose::Channel,
        Purpose::Peer,
        Purpose::NbdListener,
        Purpose::Input,
        Purpose::Log,
    ];

    /// What is to be added to this list has to be added here as well, by somebody who wonders why.
    #[test]
    fn the_list_is_this_and_nothing_more() {
        assert_eq!(Purpose::Disk.rights(), [Read, Write, Seek, Fsync, Ioctl]);
        assert_eq!(Purpose::Disk.ioctls(), [0x2000_6487]);
        assert_eq!(Purpose::Gate.rights(), [Ioctl]);
        assert_eq!(Purpose::Gate.ioctls(), [0xc920_6d01, 0xc10c_6d02, 0xc038_6d04, 0xc038_6d05]);
        assert_eq!(Purpose::Channel.rights(), [Read, Write, Event]);
        assert_eq!(Purpose::Peer.rights(), [Read, Write, Event, Fcntl, Getsockname, Setsockopt]);
        assert_eq!(Purpose::NbdListener.rights(), [Read, Write, Event, Fcntl, Ioctl, Accept]);
        assert_eq!(Purpose::NbdListener.ioctls(), [0x8004_667e]);
        assert_eq!(Purpose::Input.rights(), []);
        assert_eq!(Purpose::Log.rights(), [Write]);
    }

    /// Whoever may do an ioctl may do only those that are listed.
    #[test]
    fn no_ioctl_is_allowed_without_its_number() {
        for purpose in ALL {
            assert_eq!(purpose.rights().contains(&Ioctl), !purpose.ioctls().is_empty(), "{purpose:?}");
        }
    }
}
