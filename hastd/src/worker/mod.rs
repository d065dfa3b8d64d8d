//! The worker: one process that owns one resource's engine and connects it to disk, peer and device.
//!
//! A single thread drives the reactor, which owns the engine and every socket; a few threads carry out disk
//! operations.
//! The worker opens nothing by path: the provider, the sockets and the connections come from the supervisor
//! over a channel, and the channel's end is the end of the worker. What replication means is decided in
//! `hast-engine` and nowhere here.

mod command;
mod deletes;
mod devices;
mod disk;
mod engine;
mod former;
mod gate;
mod holes;
mod leader;
mod lock;
mod nbd;
mod pace;
mod peer;
mod privileges;
mod reactor;
mod reclaim;
mod requests;
mod sandbox;
mod sendqueue;
mod signals;
mod start;
mod wait;

use crate::ipc::Channel;
use reactor::Reactor;
use signals::Signals;
use start::StartError;

/// Runs a worker process to its end and returns its exit code: 0 stopped, 66 provider or metadata unusable, 69 stopped and
/// the other node is behind without knowing it, 70 stopped and this node is out of date and could not write that down,
/// 71 the system refuses something, 75 temporary failure, 78 configuration or split-brain.
///
/// SIGTERM and SIGINT mean the same as a stop message; SIGHUP means nothing to a worker.
#[must_use]
pub fn run(channel: Channel) -> i32 {
    // Until the start message says where to log.
    hast_log::init(hast_log::Sink::Terminal, 0);
    let code = serve(channel).unwrap_or_else(|error| {
        log::error!("{error}");
        error.code()
    });
    hast_log::end_repeats();
    code
}

fn serve(channel: Channel) -> Result<i32, StartError> {
    let signals = Signals::catch().map_err(StartError::System)?;
    let Some(start) = start::receive(&channel)? else { return Ok(0) };
    #[cfg(debug_assertions)]
    if let Some(code) = test_end() {
        return Ok(code);
    }
    let started = start::open(start)?;
    start::confine(&channel, &started)?;
    Reactor::new(channel, signals, started).and_then(leader::drive).map_err(StartError::System)
}

/// So that a test can see what follows a worker that has done nothing yet: the file that `HASTD_TEST_DIE` names has the
/// exit status for the next one, or nothing for a worker that is to be killed.
#[cfg(debug_assertions)]
fn test_end() -> Option<i32> {
    let once = std::env::var_os("HASTD_TEST_DIE")?;
    let code = std::fs::read_to_string(&once).ok()?;
    std::fs::remove_file(once).ok()?;
    code.parse().ok().or_else(|| std::process::abort())
}
