//! A model of the protocol, explored to the end: two nodes, two or three extents, a few writes, and everything
//! that may happen to them. What decides in it is the engine's own code; README.md says what is modelled and
//! what is not.
//!
//! | file | owns |
//! |---|---|
//! | `state`, `disk` | what a state is made of |
//! | `model` | what may happen next, and the properties |
//! | `play` | a state in motion; the end of a connection |
//! | `primary` | writes |
//! | `saving` | saves of the metadata, marks |
//! | `stale` | what is right on the secondary alone, and reads, which are answered there |
//! | `sync` | flushes, copying, equalising |
//! | `handshake` | from the first word to "up" |
//! | `operator` | losses of power, kills, roles, `create` |
//! | `observer` | what was promised, and whether it is kept |
//! | `variant` | the original's rules in the place of ours |
//! | `worlds`, `explore` | what is explored, and how |
//! | `trace` | a path as a story |
#![forbid(unsafe_code)]
#![warn(missing_docs)]
// Nothing here comes from outside: an index or a count that is wrong is a fault of the model, and a panic is
// how the checker hears of it.
#![allow(clippy::indexing_slicing)]

mod disk;
pub mod explore;
mod handshake;
pub mod model;
pub mod observer;
mod operator;
mod play;
mod primary;
mod saving;
mod stale;
pub mod state;
pub mod sync;
pub mod trace;
pub mod variant;
pub mod worlds;
