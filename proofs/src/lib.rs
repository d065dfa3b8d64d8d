//! What is proved of hast, as harnesses: one function each, which takes its values from a [`Source`] and
//! panics if what it claims is not so.
//!
//! The same function is run by several engines. [`Walk`](source::Walk) tries every combination of a bounded
//! domain; [`Tape`](source::Tape) takes random values of the whole domain from proptest; under Kani the values
//! are symbolic (`kani.rs`). Each harness takes the code it is about through a trait, its *subject*, so that
//! wrong variants of the code can show that it fails when it should ([`harness`]).
#![warn(missing_docs)]

pub mod activemap;
pub mod bits;
#[cfg(not(kani))]
pub mod engine;
pub mod handshake;
#[cfg(not(kani))]
pub mod harness;
#[cfg(kani)]
mod kani;
pub mod layout;
pub mod metadata;
pub mod nv;
pub mod queue;
pub mod source;
pub mod torn;
#[cfg(not(kani))]
pub mod wrong;

pub use source::{Case, Source};
