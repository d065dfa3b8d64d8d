//! Error numbers as the wire and the control socket carry them: FreeBSD's, on every system (spec "Error numbers").
//!
//! Owns the mapping to and from the numbers of the system this runs on. A number that has no counterpart becomes
//! EIO: nothing is ever mapped to success.

use std::fmt;
use std::io;

/// A FreeBSD error number, never 0.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Errno(i16);

impl Errno {
    /// The error with that FreeBSD number. `None` for 0, which is no error; a negative number (they exist inside
    /// a kernel only) is EIO.
    pub fn from_wire(number: i16) -> Option<Errno> {
        match number {
            0 => None,
            1.. => Some(Errno(number)),
            _ => Some(Errno::EIO),
        }
    }

    /// The FreeBSD number, positive.
    pub fn to_wire(self) -> i16 {
        self.0
    }

    /// The error with that number of this system.
    pub fn from_os(raw: i32) -> Errno {
        if cfg!(target_os = "freebsd") {
            return i16::try_from(raw).ok().filter(|raw| *raw > 0).map_or(Errno::EIO, Errno);
        }
        let native = |row: &&Row| row.native == Some(raw);
        TABLE.iter().find(native).map_or(Errno::EIO, |row| row.errno)
    }

    /// This system's number for the error, EIO if it has none.
    pub fn to_os(self) -> i32 {
        self.native().unwrap_or(libc::EIO)
    }

    /// The error behind a failed call.
    pub fn from_io(error: &io::Error) -> Errno {
        if let Some(raw) = error.raw_os_error() {
            return Errno::from_os(raw);
        }
        match error.kind() {
            io::ErrorKind::InvalidInput => Errno::EINVAL,
            io::ErrorKind::TimedOut => Errno::ETIMEDOUT,
            io::ErrorKind::WouldBlock => Errno::EAGAIN,
            io::ErrorKind::Interrupted => Errno::EINTR,
            io::ErrorKind::Unsupported => Errno::EOPNOTSUPP,
            io::ErrorKind::OutOfMemory => Errno::ENOMEM,
            io::ErrorKind::ConnectionReset => Errno::ECONNRESET,
            io::ErrorKind::NotConnected => Errno::ENOTCONN,
            io::ErrorKind::BrokenPipe => Errno::EPIPE,
            _ => Errno::EIO,
        }
    }

    /// FreeBSD's name for the number, if it has one.
    pub fn name(self) -> Option<&'static str> {
        TABLE.iter().find(|row| row.errno == self).map(|row| row.name)
    }

    /// This system's number, if it has one.
    fn native(self) -> Option<i32> {
        if cfg!(target_os = "freebsd") {
            return Some(i32::from(self.0));
        }
        TABLE.iter().find(|row| row.errno == self).and_then(|row| row.native)
    }
}

impl From<Errno> for io::Error {
    fn from(errno: Errno) -> io::Error {
        io::Error::from_raw_os_error(errno.to_os())
    }
}

/// This system's text for the error, without a full stop; the number where it has none.
impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.native(), self.name()) {
            (Some(raw), _) => {
                let text = io::Error::from_raw_os_error(raw).to_string();
                f.write_str(text.split(" (os error").next().unwrap_or(&text))
            }
            (None, Some(name)) => write!(f, "Error {} ({name})", self.0),
            (None, None) => write!(f, "Unknown error: {}", self.0),
        }
    }
}

impl fmt::Debug for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => f.write_str(name),
            None => write!(f, "Errno({})", self.0),
        }
    }
}

struct Row {
    errno: Errno,
    name: &'static str,
    /// Not looked at on FreeBSD.
    native: Option<i32>,
}

/// Name and number on FreeBSD, and what comes closest elsewhere. Three have no namesake on Linux but a
/// relative: ENOATTR is its ENODATA, EINTEGRITY ("the data is damaged") its EUCLEAN, EFTYPE its EMEDIUMTYPE.
macro_rules! table {
    ($($name:ident = $number:literal, $native:expr;)*) => {
        #[allow(missing_docs)]
        impl Errno {
            $(pub const $name: Errno = Errno($number);)*
        }

        #[cfg(target_os = "freebsd")]
        const TABLE: &[Row] = &[$(Row { errno: Errno::$name, name: stringify!($name), native: None }),*];
        #[cfg(not(target_os = "freebsd"))]
        const TABLE: &[Row] = &[$(Row { errno: Errno::$name, name: stringify!($name), native: $native }),*];
    };
}

table! {
    EPERM = 1, Some(libc::EPERM);
    ENOENT = 2, Some(libc::ENOENT);
    ESRCH = 3, Some(libc::ESRCH);
    EINTR = 4, Some(libc::EINTR);
    EIO = 5, Some(libc::EIO);
    ENXIO = 6, Some(libc::ENXIO);
    E2BIG = 7, Some(libc::E2BIG);
    ENOEXEC = 8, Some(libc::ENOEXEC);
    EBADF = 9, Some(libc::EBADF);
    ECHILD = 10, Some(libc::ECHILD);
    EDEADLK = 11, Some(libc::EDEADLK);
    ENOMEM = 12, Some(libc::ENOMEM);
    EACCES = 13, Some(libc::EACCES);
    EFAULT = 14, Some(libc::EFAULT);
    ENOTBLK = 15, Some(libc::ENOTBLK);
    EBUSY = 16, Some(libc::EBUSY);
    EEXIST = 17, Some(libc::EEXIST);
    EXDEV = 18, Some(libc::EXDEV);
    ENODEV = 19, Some(libc::ENODEV);
    ENOTDIR = 20, Some(libc::ENOTDIR);
    EISDIR = 21, Some(libc::EISDIR);
    EINVAL = 22, Some(libc::EINVAL);
    ENFILE = 23, Some(libc::ENFILE);
    EMFILE = 24, Some(libc::EMFILE);
    ENOTTY = 25, Some(libc::ENOTTY);
    ETXTBSY = 26, Some(libc::ETXTBSY);
    EFBIG = 27, Some(libc::EFBIG);
    ENOSPC = 28, Some(libc::ENOSPC);
    ESPIPE = 29, Some(libc::ESPIPE);
    EROFS = 30, Some(libc::EROFS);
    EMLINK = 31, Some(libc::EMLINK);
    EPIPE = 32, Some(libc::EPIPE);
    EDOM = 33, Some(libc::EDOM);
    ERANGE = 34, Some(libc::ERANGE);
    EAGAIN = 35, Some(libc::EAGAIN);
    EINPROGRESS = 36, Some(libc::EINPROGRESS);
    EALREADY = 37, Some(libc::EALREADY);
    ENOTSOCK = 38, Some(libc::ENOTSOCK);
    EDESTADDRREQ = 39, Some(libc::EDESTADDRREQ);
    EMSGSIZE = 40, Some(libc::EMSGSIZE);
    EPROTOTYPE = 41, Some(libc::EPROTOTYPE);
    ENOPROTOOPT = 42, Some(libc::ENOPROTOOPT);
    EPROTONOSUPPORT = 43, Some(libc::EPROTONOSUPPORT);
    ESOCKTNOSUPPORT = 44, Some(libc::ESOCKTNOSUPPORT);
    EOPNOTSUPP = 45, Some(libc::EOPNOTSUPP);
    EPFNOSUPPORT = 46, Some(libc::EPFNOSUPPORT);
    EAFNOSUPPORT = 47, Some(libc::EAFNOSUPPORT);
    EADDRINUSE = 48, Some(libc::EADDRINUSE);
    EADDRNOTAVAIL = 49, Some(libc::EADDRNOTAVAIL);
    ENETDOWN = 50, Some(libc::ENETDOWN);
    ENETUNREACH = 51, Some(libc::ENETUNREACH);
    ENETRESET = 52, Some(libc::ENETRESET);
    ECONNABORTED = 53, Some(libc::ECONNABORTED);
    ECONNRESET = 54, Some(libc::ECONNRESET);
    ENOBUFS = 55, Some(libc::ENOBUFS);
    EISCONN = 56, Some(libc::EISCONN);
    ENOTCONN = 57, Some(libc::ENOTCONN);
    ESHUTDOWN = 58, Some(libc::ESHUTDOWN);
    ETOOMANYREFS = 59, Some(libc::ETOOMANYREFS);
    ETIMEDOUT = 60, Some(libc::ETIMEDOUT);
    ECONNREFUSED = 61, Some(libc::ECONNREFUSED);
    ELOOP = 62, Some(libc::ELOOP);
    ENAMETOOLONG = 63, Some(libc::ENAMETOOLONG);
    EHOSTDOWN = 64, Some(libc::EHOSTDOWN);
    EHOSTUNREACH = 65, Some(libc::EHOSTUNREACH);
    ENOTEMPTY = 66, Some(libc::ENOTEMPTY);
    EPROCLIM = 67, None;
    EUSERS = 68, Some(libc::EUSERS);
    EDQUOT = 69, Some(libc::EDQUOT);
    ESTALE = 70, Some(libc::ESTALE);
    EREMOTE = 71, Some(libc::EREMOTE);
    EBADRPC = 72, None;
    ERPCMISMATCH = 73, None;
    EPROGUNAVAIL = 74, None;
    EPROGMISMATCH = 75, None;
    EPROCUNAVAIL = 76, None;
    ENOLCK = 77, Some(libc::ENOLCK);
    ENOSYS = 78, Some(libc::ENOSYS);
    EFTYPE = 79, Some(libc::EMEDIUMTYPE);
    EAUTH = 80, None;
    ENEEDAUTH = 81, None;
    EIDRM = 82, Some(libc::EIDRM);
    ENOMSG = 83, Some(libc::ENOMSG);
    EOVERFLOW = 84, Some(libc::EOVERFLOW);
    ECANCELED = 85, Some(libc::ECANCELED);
    EILSEQ = 86, Some(libc::EILSEQ);
    ENOATTR = 87, Some(libc::ENODATA);
    EDOOFUS = 88, None;
    EBADMSG = 89, Some(libc::EBADMSG);
    EMULTIHOP = 90, Some(libc::EMULTIHOP);
    ENOLINK = 91, Some(libc::ENOLINK);
    EPROTO = 92, Some(libc::EPROTO);
    ENOTCAPABLE = 93, None;
    ECAPMODE = 94, None;
    ENOTRECOVERABLE = 95, Some(libc::ENOTRECOVERABLE);
    EOWNERDEAD = 96, Some(libc::EOWNERDEAD);
    EINTEGRITY = 97, Some(libc::EUCLEAN);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Spec "Error numbers": the numbers in which the systems differ, and which must map both ways.
    #[test]
    #[cfg(target_os = "linux")]
    fn numbers_that_differ_map_both_ways() {
        for (errno, wire, native) in [
            (Errno::EAGAIN, 35, libc::EAGAIN),
            (Errno::EDEADLK, 11, libc::EDEADLK),
            (Errno::EOPNOTSUPP, 45, libc::EOPNOTSUPP),
            (Errno::ETIMEDOUT, 60, libc::ETIMEDOUT),
            (Errno::ENOTCONN, 57, libc::ENOTCONN),
            (Errno::ECONNREFUSED, 61, libc::ECONNREFUSED),
            (Errno::ECONNABORTED, 53, libc::ECONNABORTED),
            (Errno::ECONNRESET, 54, libc::ECONNRESET),
            (Errno::ENOBUFS, 55, libc::ENOBUFS),
            (Errno::EHOSTUNREACH, 65, libc::EHOSTUNREACH),
            (Errno::EINPROGRESS, 36, libc::EINPROGRESS),
            (Errno::ENOSYS, 78, libc::ENOSYS),
            (Errno::EFTYPE, 79, libc::EMEDIUMTYPE),
            (Errno::EINTEGRITY, 97, libc::EUCLEAN),
            (Errno::ECANCELED, 85, libc::ECANCELED),
            (Errno::EDQUOT, 69, libc::EDQUOT),
            (Errno::ESTALE, 70, libc::ESTALE),
        ] {
            assert_eq!(errno.to_wire(), wire);
            assert_eq!(Errno::from_wire(wire), Some(errno));
            assert_eq!(errno.to_os(), native);
            assert_eq!(Errno::from_os(native), errno);
        }
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn the_first_34_are_the_same_but_for_one() {
        for number in (1..=34).filter(|number| *number != 11) {
            assert_eq!(Errno::from_os(i32::from(number)).to_wire(), number);
            assert_eq!(Errno::from_wire(number).unwrap().to_os(), i32::from(number));
        }
    }

    #[test]
    fn every_number_with_a_counterpart_comes_back() {
        let mut known = 0;
        for number in 1..=97 {
            let errno = Errno::from_wire(number).unwrap();
            assert!(errno.name().is_some(), "{number}");
            if errno.native().is_some() {
                known += 1;
                assert_eq!(Errno::from_os(errno.to_os()), errno);
            } else {
                assert_eq!(errno.to_os(), libc::EIO);
            }
        }
        assert!(known >= 86);
    }

    #[test]
    fn what_is_unknown_is_eio_and_never_success() {
        assert_eq!(Errno::from_wire(0), None);
        for wire in [-1, -95, i16::MIN] {
            assert_eq!(Errno::from_wire(wire), Some(Errno::EIO));
        }
        for raw in [0, -1, i32::MAX, i32::MIN, 1 << 16] {
            assert_eq!(Errno::from_os(raw), Errno::EIO);
        }
        for wire in 1..=i16::MAX {
            let errno = Errno::from_wire(wire).unwrap();
            assert_eq!(errno.to_wire(), wire);
            assert!(errno.to_os() > 0);
        }
    }

    #[test]
    fn texts() {
        assert_eq!(Errno::EINVAL.to_string(), "Invalid argument");
        assert_eq!(format!("{:?}", Errno::EOPNOTSUPP), "EOPNOTSUPP");
        assert!(!Errno::EIO.to_string().contains("os error"));
        assert!(Errno::from_wire(12_345).unwrap().to_string().contains("12345"));
    }

    #[test]
    fn failed_calls() {
        let call = |error: io::Error| Errno::from_io(&error);
        assert_eq!(call(io::Error::from_raw_os_error(libc::ENOSPC)), Errno::ENOSPC);
        assert_eq!(call(io::ErrorKind::UnexpectedEof.into()), Errno::EIO);
        assert_eq!(call(io::ErrorKind::TimedOut.into()), Errno::ETIMEDOUT);
        assert_eq!(call(io::Error::other("x")), Errno::EIO);
    }
}
