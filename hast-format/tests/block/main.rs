//! The metadata block on disks that lose power, tear sectors, corrupt them, or put them elsewhere: what is read
//! is a state that was saved, and damage is noticed (spec: extensions, "Torn writes").
#![cfg(feature = "alloc")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod damage;
mod original;
mod properties;
mod states;
mod torn;
