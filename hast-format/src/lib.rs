//! What lies on a HAST provider: the nv codec, the metadata block and its extension, the arithmetic of the
//! layout and the activemap. No I/O, no clock; without the `alloc` feature no allocation either.
//!
//! To read the metadata of a provider, be it written by ours or by the original, give [`metadata::Metadata::read`] its first
//! 4096 bytes:
//!
//! ```
//! # #[cfg(feature = "alloc")] {
//! use hast_format::layout::Layout;
//! use hast_format::metadata::Metadata;
//!
//! // What `hastctl create` writes on a provider of 64 MiB.
//! let layout = Layout::create(64 << 20, 512, 2 << 20).unwrap();
//! let provider = Metadata::created("shared", &layout, 64).encode();
//!
//! let metadata = Metadata::read(&provider).unwrap().metadata;
//! assert_eq!(metadata.resource, "shared");
//! assert_eq!(metadata.datasize, layout.datasize());
//! # }
//! ```
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
