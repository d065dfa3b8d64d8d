//! The clock on the wall: what is told to people and to disks. Whatever is waited for is measured by another one.

use std::time::{SystemTime, UNIX_EPOCH};

/// Seconds since 1970; 0 on a host whose clock is before that.
pub(crate) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
