//! Two real daemons on loopback: what an administrator does, and what goes wrong in between.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod addresses;
mod as_root;
mod bad_input;
mod bad_sectors;
mod clients;
mod daemon;
mod exit_codes;
mod foresight;
mod hooks;
mod many;
mod messages;
mod modes;
mod reconnect;
mod reload;
mod roles;
mod secondary_lost;
mod silence;
mod split_brain;
mod volume;
mod worker;
