//! A primary whose disk answers EIO to everything (A5).

use hast_tests::{LONG, Outcome, SHORT, wait_for, wait_until};
use nix::sys::signal::{Signal, kill};

use crate::bad_sectors;
use crate::volume::Volume;

/// Writes to extents that have no mark yet, flushes and reads go on with the secondary's disk: through a new client, a
/// secondary that restarts and a worker that is killed. When the disk works again everything is brought up to date.
#[test]
fn everything_goes_on_with_the_other_nodes_disk() -> Outcome {
    let Some((mut pair, bad)) = bad_sectors::pair_of(false, 128 << 10)? else { return Ok(()) };
    pair.start_in_step()?;
    let mut volume = Volume::fresh(&pair.a, "disk0")?;
    volume.scribble(1, 0, 64 << 10)?;
    volume.flush()?;

    bad.fail(true)?;
    for round in 0..4_u64 {
        let at = (1 << 20) * (usize::try_from(round)? + 1);
        volume.scribble(2 + round, at, 96 << 10)?;
        volume.flush()?;
        volume.verify()?;
        if round == 0 {
            wait_until("the disk to be given up", LONG, || {
                Ok(pair.a.ctl(&["status", "-v", "disk0"])?.contains("detached"))
            })?;
        }
        if round == 1 {
            volume = volume.moved_to(&pair.a, "disk0")?;
        }
        if round == 2 {
            pair.b.kill()?;
            pair.b.start()?;
            pair.b.role("secondary", "disk0")?;
            wait_until("the nodes to be connected", LONG, || {
                Ok(pair.a.ctl(&["status", "disk0"])?.contains("complete"))
            })?;
            let worker = pair.a.wait_worker("disk0")?;
            kill(worker, Signal::SIGKILL)?;
            wait_for("another worker", SHORT, || {
                Ok(pair.a.worker("disk0")?.filter(|other| *other != worker))
            })?;
            volume = volume.moved_to(&pair.a, "disk0")?;
        }
    }

    bad.fail(false)?;
    pair.a.wait_log("The local disk can be written again")?;
    pair.a.wait_in_step("disk0")?;
    volume.verify()?;
    volume.verify_provider(&pair.a, "disk0")?;
    volume.verify_provider(&pair.b, "disk0")?;
    pair.finish()?;
    drop(bad);
    Ok(())
}
