//! The NBD side of a primary, without I/O: what a client's bytes mean and what to answer.
//!
//! On hosts without GEOM Gate a resource's device is an NBD export. A [`Session`] is the server's half of one
//! client connection: it owns the negotiation, the framing of commands and replies, and the bounds on what a
//! client may keep in flight. It opens no socket, knows no disk and no resource beyond an [`Export`]: whoever
//! drives it moves the bytes and carries out the [`Command`]s. [`client`] is the other half, blocking, for
//! hastd's own devices, tests and the demonstration.
//!
//! The dialect is fixed newstyle with `GO`/`INFO`, structured replies and `base:allocation`; TLS and extended
//! headers are refused in the way that makes clients go on without them.
//!
//! A driver's round, here with a client that says goodbye at once:
//!
//! ```
//! use hast_nbd::{Export, Session};
//! use hast_net::buffer::Pool;
//!
//! let mut session = Session::new(Export::new("shared", 64 << 20, 512), Pool::new());
//! let greeting = session.poll_transmit().unwrap();
//! assert_eq!(&greeting[..8], b"NBDMAGIC");
//!
//! // The client's flags, and the option ABORT (2) without data.
//! let client = [&[0, 0, 0, 1][..], b"IHAVEOPT", &[0, 0, 0, 2], &[0, 0, 0, 0]].concat();
//! for byte in client {
//!     session.space()[0] = byte;
//!     session.advance(1).unwrap();
//! }
//! assert_eq!(session.poll_command(), None);
//! while session.poll_transmit().is_some() {}
//! assert!(session.is_finished());
//! ```
#![forbid(unsafe_code)]
#![warn(missing_docs)]

pub mod client;
mod command;
mod error;
mod export;
mod options;
mod reply;
mod request;
mod session;
mod staging;
mod wire;

pub use command::{Command, CommandId, Kind, Pieces, Question, Run};
pub use error::{NbdError, SessionError};
pub use export::Export;
pub use session::{MAX_BYTES, MAX_COMMANDS, Session};

/// The largest payload of one command in bytes: what NBD clients may expect everywhere.
pub const MAX_PAYLOAD: u32 = 32 << 20;

/// Bytes in each piece of a write's data but the last, which is what a HAST request carries at most.
pub const PIECE: usize = 131_072;

/// Bytes of data that one negotiation option may carry; more is skipped and answered as too big.
pub const MAX_OPTION: u32 = 64 << 10;
