//! What can go wrong: the errors a client is told, and those that end its connection.

use std::fmt;

use hast_net::errno::Errno;

/// An error as NBD spells it. The protocol knows no others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum NbdError {
    /// The export may not be changed.
    Perm,
    /// The device failed.
    Io,
    /// No memory.
    NoMem,
    /// The request is malformed or outside what was negotiated.
    Inval,
    /// A write beyond the end of the device, or no space behind it.
    NoSpc,
    /// The answer would be too large.
    Overflow,
    /// The request cannot be carried out in the way it demands.
    NotSup,
    /// The server is going away.
    Shutdown,
}

impl NbdError {
    /// The number on the wire.
    #[must_use]
    pub fn to_wire(self) -> u32 {
        match self {
            NbdError::Perm => 1,
            NbdError::Io => 5,
            NbdError::NoMem => 12,
            NbdError::Inval => 22,
            NbdError::NoSpc => 28,
            NbdError::Overflow => 75,
            NbdError::NotSup => 95,
            NbdError::Shutdown => 108,
        }
    }

    /// The error that a number on the wire stands for; an undefined one counts as [`NbdError::Inval`], as the
    /// protocol wants it.
    #[must_use]
    pub fn from_wire(number: u32) -> NbdError {
        match number {
            1 => NbdError::Perm,
            5 => NbdError::Io,
            12 => NbdError::NoMem,
            28 => NbdError::NoSpc,
            75 => NbdError::Overflow,
            95 => NbdError::NotSup,
            108 => NbdError::Shutdown,
            _ => NbdError::Inval,
        }
    }
}

impl fmt::Display for NbdError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            NbdError::Perm => "operation not permitted",
            NbdError::Io => "input/output error",
            NbdError::NoMem => "cannot allocate memory",
            NbdError::Inval => "invalid argument",
            NbdError::NoSpc => "no space left on device",
            NbdError::Overflow => "value too large",
            NbdError::NotSup => "operation not supported",
            NbdError::Shutdown => "server is shutting down",
        })
    }
}

impl std::error::Error for NbdError {}

impl From<Errno> for NbdError {
    /// What a client is told of an error of the disk or the peer. The protocol reserves "not supported" for fast
    /// zeroing, so a command that the device cannot do is an invalid one to the client.
    fn from(errno: Errno) -> NbdError {
        match errno {
            Errno::EPERM | Errno::EACCES | Errno::EROFS => NbdError::Perm,
            Errno::ENOMEM => NbdError::NoMem,
            Errno::EINVAL | Errno::EOPNOTSUPP => NbdError::Inval,
            Errno::ENOSPC | Errno::EDQUOT | Errno::EFBIG => NbdError::NoSpc,
            _ => NbdError::Io,
        }
    }
}

/// Why a client's connection cannot go on and is to be closed. The export and other clients are unharmed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SessionError {
    /// The client's answer to the greeting has flags that nobody offered.
    #[error("NBD client sent handshake flags {0:#010x}, of which some were not offered")]
    ClientFlags(u32),
    /// An option does not begin with the magic number: the stream is out of step, or not NBD.
    #[error("NBD client sent {0:#018x} where an option's magic number belongs")]
    OptionMagic(u64),
    /// An option announces more data than any option can have.
    #[error("NBD client announced {length} bytes of data for option {option}")]
    OptionTooLong {
        /// The option's number.
        option: u32,
        /// Bytes announced.
        length: u32,
    },
    /// `EXPORT_NAME` asked for another export; the option has no other answer than closing.
    #[error("NBD client asked for the export {0:?}, which is not served here")]
    UnknownExport(String),
    /// A request does not begin with the magic number: the stream is out of step.
    #[error("NBD client sent {0:#010x} where a request's magic number belongs")]
    RequestMagic(u32),
    /// A write announces so much data that reading it just to refuse it makes no sense.
    #[error("NBD client announced a write of {0} bytes")]
    WriteTooLong(u32),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_of_the_system_have_counterparts() {
        let cases = [
            (Errno::EIO, NbdError::Io),
            (Errno::EINVAL, NbdError::Inval),
            (Errno::ENOSPC, NbdError::NoSpc),
            (Errno::EFBIG, NbdError::NoSpc),
            (Errno::EOPNOTSUPP, NbdError::Inval),
            (Errno::EROFS, NbdError::Perm),
            (Errno::ENOMEM, NbdError::NoMem),
            (Errno::ESTALE, NbdError::Io),
            (Errno::ENOTCONN, NbdError::Io),
        ];
        for (errno, expected) in cases {
            assert_eq!(NbdError::from(errno), expected);
        }
    }

    #[test]
    fn an_undefined_number_counts_as_invalid() {
        for number in [0, 2, 22, 45, 60, u32::MAX] {
            assert_eq!(NbdError::from_wire(number), NbdError::Inval);
        }
    }
}
