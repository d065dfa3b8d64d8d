//! `hastctl` from the outside: what it prints, what it exits with, what it writes to a provider and what it
//! sends to a daemon, against what was captured from the original (tests/vectors).
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod captured;
mod command_line;
mod control;
mod create;
mod dump;
mod program;
mod stop;
