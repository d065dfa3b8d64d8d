//! What HAST replication means: the primary and the secondary of one resource as pure state machines.
//!
//! An engine is told what happened (`handle_*`) and asked what to do (`poll_*`). It knows no socket, no
//! file, no thread and no clock: time is an argument, a duration since some start. The worker drives
//! it with a real disk and real connections, the simulator with simulated ones, and it is the same code.
//!
//! Rules for whoever drives it:
//!
//! - After every event, carry out actions until [`Primary::poll_action`] gives none.
//! - Requests of the device and frames of a primary are handed over only while they are wanted
//!   ([`Primary::wants_requests`], [`Secondary::wants_input`]): what an engine holds is bounded by that.
//! - Disk operations may run side by side and end in any order; the engine holds back what must wait. A
//!   [`DiskOp::Flush`] covers every operation whose end was reported before the flush was asked for.
//! - Messages of one [`Side`] are sent in order. After [`Action::Close`], or once `handle_lost` was
//!   called, nothing from the old connections may reach the engine any more.
#![forbid(unsafe_code)]
#![warn(missing_docs)]

mod connection;
mod counts;
mod durable;
mod loss;
mod parting;
mod primary;
mod ranges;
mod saving;
mod secondary;
mod types;
mod verdict;

pub use connection::{Counted, Histories, Past, before, compare, judged, next as next_generation};
pub use counts::{Counts, Decision, Hello, MapToSend, decide, must_be_marked, written_alone};
pub use durable::{Durable, Whom};
pub use primary::{EXIT_LOST, EXIT_PEER_BEHIND, EXIT_STALE, Primary, PrimaryStart, Turning};
pub use ranges::{Key, RangeQueue};
pub use secondary::{DISK_PATIENCE, ORIGINAL_SILENCE, Secondary, SecondaryStart};
pub use types::{
    Action, Deletes, DiskOp, DiskResult, Event, Host, MAX_REQUEST, Op, OpId, RequestId, Settings, Side,
};
pub use verdict::{FlushEnding, Flushed, Half, Standing, Verdict, flush_ending};

/// The rules by name, and in mutants the switch that breaks one.
pub use hast_format::rule;
