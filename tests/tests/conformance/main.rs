//! Our daemon against the original: captured requests and handshakes are played to it by hand, and a
//! scripted original is put in the other node's place.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod captures;
mod decisions;
mod disks;
mod life;
mod primary_handshake;
mod primary_requests;
mod primary_sync;
mod scripted;
mod secondary_refusals;
mod secondary_requests;
mod secondary_safety;
mod secondary_sessions;
mod session;
