//! The session against hand-made bytes: every option and command, every bound, and arbitrary input.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod commands;
mod limits;
mod negotiation;
mod peer;
mod random;
