//! Worker processes as the supervisor runs them: the real program over a real channel, with files for disks,
//! loopback sockets for the network, and the test in the supervisor's place.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
#![allow(unreachable_pub)] // Nothing outside this program sees it.

mod alone;
mod harness;
mod pair;
mod peers;
