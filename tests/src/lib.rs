//! Real daemons for tests and for the demo: nodes in temporary directories, a link between them that
//! can be cut, external clients, and scripted peers that speak the wire protocol by hand.
//!
//! Nothing here knows how hastd or hastctl are built; everything goes through their command lines,
//! their sockets and their files, as an administrator would.
#![forbid(unsafe_code)]
#![warn(missing_docs)]

pub mod disk;
pub mod failure;
pub mod link;
pub mod loopback;
pub mod node;
pub mod pair;
pub mod peer;
pub mod programs;
pub mod setup;
pub mod tools;
pub mod wait;

pub use failure::{Context, Failure, Outcome};
pub use link::Link;
pub use loopback::Loopback;
pub use node::{Node, Run};
pub use pair::Pair;
pub use setup::{Resource, Setup};
pub use wait::{LONG, SHORT, wait_for, wait_until};
