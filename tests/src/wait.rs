//! Waiting for a condition, always with a deadline.

use std::time::{Duration, Instant};

use crate::Failure;

/// Long enough for anything local on a busy machine.
pub const SHORT: Duration = Duration::from_secs(20);
/// Long enough for what includes a protocol time-out or a large copy.
pub const LONG: Duration = Duration::from_secs(60);

/// Asks `probe` until it gives a value; an error from it ends the wait at once.
pub fn wait_for<T>(
    what: &str,
    deadline: Duration,
    mut probe: impl FnMut() -> Result<Option<T>, Failure>,
) -> Result<T, Failure> {
    let begin = Instant::now();
    loop {
        if let Some(value) = probe()? {
            return Ok(value);
        }
        if begin.elapsed() > deadline {
            return Failure::because(format!("waited {} s in vain for: {what}", deadline.as_secs()));
        }
        // Polling interval, not synchronisation: the condition decides, the deadline bounds.
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Waits until `probe` says true.
pub fn wait_until(
    what: &str,
    deadline: Duration,
    mut probe: impl FnMut() -> Result<bool, Failure>,
) -> Result<(), Failure> {
    wait_for(what, deadline, || Ok(probe()?.then_some(())))
}
