//! What crosses HAST's sockets, without the sockets.
#![forbid(unsafe_code)]
#![warn(missing_docs)]

pub mod address;
pub mod buffer;
