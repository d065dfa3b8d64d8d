//! What lies on a HAST provider: the nv codec, the metadata block and its extension, the arithmetic of the
//! layout and the activemap. No I/O, no clock; without the `alloc` feature no allocation either.
#![no_std]
#![forbid(unsafe_code)]
#![warn(missing_docs)]

#[cfg(feature = "alloc")]
extern crate alloc;

pub mod layout;
pub mod metadata;
pub mod nv;
pub mod rule;

#[cfg(feature = "alloc")]
pub mod activemap;
#[cfg(feature = "alloc")]
pub mod bitmap;
#[cfg(feature = "alloc")]
mod block;
#[cfg(feature = "alloc")]
pub mod extension;
