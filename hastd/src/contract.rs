//! What the supervisor and a worker agree on beside their messages: by what a worker is known, and how long it may take to
//! end.

use std::time::Duration;

use hast_engine::DISK_PATIENCE;
use hast_format::metadata::Role;

/// In the environment of a worker, beside a title that begins with [`TITLE_PREFIX`].
pub(crate) const WORKER_VARIABLE: &str = "HASTD_WORKER";
/// What a worker's title begins with.
pub(crate) const TITLE_PREFIX: &str = "hastd: ";

/// How much longer than its engine a worker may take to end.
const STOP_MARGIN: Duration = Duration::from_secs(5);

/// How long a worker may take to end once it is told to: longer than its engine. That of a secondary has its own
/// patience with the disk, which nobody may cut short, because it has answered `received` (L14); that of a primary
/// has the resource's `timeout` (C4).
pub(crate) fn longest_end(role: Role, timeout: Duration) -> Duration {
    let engine = if role == Role::Secondary { DISK_PATIENCE } else { timeout };
    engine.saturating_add(STOP_MARGIN)
}
