//! What the original put on the wire, read and written again by ours: every captured stream in both
//! directions, every combination of payload stages, and the hand-made requests that must be refused.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod codec;
mod pairs;
mod pcap;
mod streams;
mod vectors;
mod wire;
