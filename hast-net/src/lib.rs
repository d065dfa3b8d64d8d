//! What crosses HAST's sockets, without the sockets.
//!
//! Bytes from a socket become frames in a [`frame::Receiver`], and frames become messages:
//!
//! ```
//! use hast_net::buffer::Pool;
//! use hast_net::extensions::Extensions;
//! use hast_net::frame::{self, Limits, Receiver};
//! use hast_net::handshake::FirstHello;
//!
//! let said = FirstHello { resource: "shared".into(), version: 2, ext: Extensions::ALL };
//! let stream = frame::encode(said.version, said.encode().as_bytes()).unwrap();
//!
//! let mut receiver = Receiver::new(Limits::PEER, Pool::new());
//! let mut rest = stream.as_slice();
//! while !rest.is_empty() {
//!     let space = receiver.space();
//!     let count = rest.len().min(space.len());
//!     space[..count].copy_from_slice(&rest[..count]);
//!     rest = &rest[count..];
//!     receiver.advance(count).unwrap();
//! }
//! let frame = receiver.next_frame().unwrap();
//! assert_eq!(frame.list().unwrap().str("resource"), Some("shared"));
//! ```
#![forbid(unsafe_code)]
#![warn(missing_docs)]

pub mod address;
pub mod buffer;
pub mod checksum;
pub mod control;
pub mod errno;
pub mod extensions;
pub mod frame;
pub mod handshake;
pub mod human;
pub mod lzf;
pub mod message;
pub mod payload;

use std::fmt;

/// When a primary calls a write done: the `replication` statement of hast.conf.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Replication {
    /// When both nodes have stored it.
    Fullsync,
    /// When the primary has stored it and the secondary has received it.
    #[default]
    Memsync,
    /// When the primary has stored it.
    Async,
}

impl Replication {
    /// The name in hast.conf and in `hastctl` output.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Replication::Fullsync => "fullsync",
            Replication::Memsync => "memsync",
            Replication::Async => "async",
        }
    }

    /// The mode of that name, as [`Replication::as_str`] writes it.
    #[must_use]
    pub fn parse(name: &str) -> Option<Replication> {
        [Replication::Fullsync, Replication::Memsync, Replication::Async]
            .into_iter()
            .find(|mode| mode.as_str() == name)
    }
}

impl fmt::Display for Replication {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
