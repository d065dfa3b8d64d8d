//! `hast.conf`: grammar, scopes, defaults, node matching, diagnostics and what a reload changes.
//!
//! This crate owns the meaning of the file (spec conf.md, and the statements of extensions.md). It
//! reads the one file it is told to and asks the host who it is ([`Node::detect`]); it opens no
//! sockets and changes nothing. Host names in addresses are looked up by whoever uses them.
//!
//! ```
//! let node = hast_conf::Node::named("a");
//! let text = "resource disk0 { local /dev/da0 on a { remote b } on b { remote a } }";
//! let config = hast_conf::parse(text, "hast.conf", &node)?;
//! assert_eq!(config.resources[0].remote_text(), "b");
//! # Ok::<(), hast_conf::ConfError>(())
//! ```
#![forbid(unsafe_code)]
#![warn(missing_docs)]

mod config;
mod diff;
mod error;
mod lex;
mod nbd;
mod node;
mod own;
mod parse;
mod scope;

pub use config::{
    Config, DEFAULT_CONTROL, DEFAULT_PEER_TIMEOUT, DEFAULT_PIDFILE, DEFAULT_TIMEOUT, KernelDevice, Resource,
    load, parse,
};
pub use diff::{Action, ChangedResource, Changes, diff};
pub use error::{ConfError, Invalid, Problem};
pub use nbd::{DEFAULT_NBD_DIRECTORY, NbdPathError, nbd_socket_path};
pub use node::Node;

pub use hast_net::Replication;
pub use hast_net::address::Address;
pub use hast_net::payload::{Checksum, Compression};
