//! GEOM Gate: how a process on FreeBSD serves the disk `/dev/hast/<name>` (spec/ggate.md).
//!
//! Owns the kernel's structures and numbers ([`abi`]), the calls themselves ([`Gate`]: the kernel's on
//! FreeBSD, a fake one with the same rules for tests everywhere), and what is done with them ([`Device`]).
//! It knows nothing of replication, and no request's data lives in here: buffers are the caller's.
#![warn(missing_docs)]

pub mod abi;
mod device;
#[cfg(feature = "fake")]
pub mod fake;
pub mod geom;
#[cfg(target_os = "freebsd")]
mod kernel;

pub use device::{Device, DeviceError, Kind, Next, Origin, Request};
#[cfg(target_os = "freebsd")]
pub use kernel::{Kernel, OpenError, confxml, max_request};

use std::os::fd::BorrowedFd;

use hast_net::errno::Errno;

/// Longest device name in bytes, with the directory in front.
pub const MAX_NAME: usize = abi::NAME_SIZE - 1;

/// The name of a provider's device below `/dev`.
#[must_use]
pub fn device_name(provider_name: &str) -> String {
    format!("hast/{provider_name}")
}

/// What a device is created with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Create {
    /// Its name below `/dev`, at most [`MAX_NAME`] bytes.
    pub name: String,
    /// Bytes; a multiple of the sector size.
    pub mediasize: u64,
    /// Bytes.
    pub sectorsize: u32,
    /// Who serves it, in one line, which `geom gate list` shows.
    pub info: String,
}

/// A change of a device that exists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Another size, in bytes.
    Mediasize(u64),
    /// Somebody else serves it from now on.
    Info(String),
    /// From now on the kernel serves reads itself, from this provider, this many bytes further on. The provider's name must
    /// not be empty, and the device must fit on it behind `offset`: the kernel would panic, or keep a lock.
    ReadFrom {
        /// The provider's path.
        provider: String,
        /// Where the device's first byte lies on it.
        offset: u64,
    },
    /// From now on every read comes to the process. What the kernel has begun to read itself ends as it began.
    ReadHere,
}

/// What the kernel says of a device.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// Who serves it, or did ([`Create::info`]).
    pub info: String,
    /// Reads that the kernel serves itself may begin, or some that have begun are under way.
    pub reads: bool,
}

/// Which device is meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Which {
    /// By its number.
    Unit(i32),
    /// By its name below `/dev`.
    Name(String),
}

/// What the kernel handed out. Where `error` is not 0 only it and `length` mean something.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Started {
    /// The request's number.
    pub seq: usize,
    /// One of [`abi`]'s `BIO_` numbers, or one that nobody knows yet.
    pub command: u32,
    /// First byte.
    pub offset: i64,
    /// Bytes.
    pub length: i64,
    /// 0, or why nothing was handed out: a FreeBSD number.
    pub error: i32,
}

/// A request that the kernel waits to be answered. It can be neither copied nor made up: whoever has it may
/// answer it, once.
#[derive(Debug, PartialEq, Eq)]
pub struct Ticket {
    unit: i32,
    seq: usize,
    /// Bytes that the kernel takes from the answer's data.
    wanted: usize,
}

impl Ticket {
    /// Which device the request came from.
    #[must_use]
    pub fn unit(&self) -> i32 {
        self.unit
    }

    /// The request's number.
    #[must_use]
    pub fn seq(&self) -> usize {
        self.seq
    }

    /// Bytes that the kernel takes from the answer's data: a read's length, 0 otherwise.
    #[must_use]
    pub fn wanted(&self) -> usize {
        self.wanted
    }
}

/// How a request ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer<'a> {
    /// It was carried out. For a read this is what was read, as many bytes as were wanted.
    Done(&'a [u8]),
    /// It failed.
    Failed(Errno),
    /// It goes back to the head of the queue.
    Requeue,
}

/// The calls of `/dev/ggctl`. Errors are what the call itself failed with.
pub trait Gate: Send + Sync {
    /// The descriptor that the calls are made on, if there is one.
    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    /// Makes a device and gives its number. EEXIST: there is one of that name.
    fn create(&self, create: &Create) -> Result<i32, Errno>;

    /// Puts what was handed out and not answered back into the queue, in order; gives the device's number.
    /// ENXIO: there is no such device.
    fn cancel(&self, name: &str) -> Result<i32, Errno>;

    /// Waits for a request and puts a write's data at the beginning of `buffer`. ENXIO: the device is gone;
    /// EINTR: a signal.
    fn start(&self, unit: i32, buffer: &mut [u8]) -> Result<Started, Errno>;

    /// Answers a request. ENOENT: the device is gone. A request that has been cancelled is ignored.
    ///
    /// Data that is not exactly as long as the ticket wants is answered as a failure, EIO.
    fn done(&self, ticket: Ticket, answer: Answer<'_>) -> Result<(), Errno>;

    /// Whether there is a device of this name.
    fn exists(&self, name: &str) -> bool;

    /// What there is under this name. Errors, ETIMEDOUT among them: nobody knows. It may take two seconds, and cannot be
    /// asked in capability mode.
    fn look(&self, name: &str) -> Result<Option<Seen>, Errno>;

    /// Changes a device.
    fn modify(&self, unit: i32, change: &Change) -> Result<(), Errno>;

    /// Takes a device away, in use or not. Threads that wait for requests are woken. ENXIO: the device is gone already. It
    /// must not be called while the kernel reads for the device itself: such a read uses at its end what is freed here.
    fn destroy(&self, which: &Which) -> Result<(), Errno>;
}

/// The number that an answer has in the kernel's structure, and the data to point at.
#[cfg(any(target_os = "freebsd", feature = "fake"))]
fn settle<'a>(ticket: &Ticket, answer: Answer<'a>) -> (i32, &'a [u8]) {
    match answer {
        // EAGAIN would not fail the request but put it back, for ever.
        Answer::Failed(Errno::EAGAIN) => (i32::from(Errno::EIO.to_wire()), &[]),
        Answer::Failed(errno) => (i32::from(errno.to_wire()), &[]),
        Answer::Requeue => (i32::from(Errno::EAGAIN.to_wire()), &[]),
        Answer::Done(data) if data.len() == ticket.wanted => (0, data),
        Answer::Done(_) => (i32::from(Errno::EIO.to_wire()), &[]),
    }
}
