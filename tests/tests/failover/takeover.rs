//! Something of the primary dies; the other host takes over, and the first one returns.

use std::time::Duration;

use hast_tests::{Failure, LONG, Outcome, wait_until};

use super::site::Site;

/// From the start of the up-script until the service can be used.
const TAKEOVER: Duration = Duration::from_secs(5);

/// Alpha is primary, lines are coming in; then `fail` happens to alpha, beta takes over, `mend` brings alpha back, and
/// it becomes beta's secondary, for which only what has changed is copied.
fn lost_and_found(
    fail: impl FnOnce(&mut Site) -> Result<(), Failure>,
    mend: impl FnOnce(&mut Site) -> Result<(), Failure>,
) -> Outcome {
    let Some(mut site) = Site::new()? else { return Ok(()) };
    let play = || -> Outcome {
        site.a.start_ucarp()?;
        site.a.wait_taken_over(TAKEOVER)?;
        site.b.start_ucarp()?;
        site.send_lines()?;
        site.wait_lines()?;
        site.a.wait_in_step()?;
        fail(&mut site)?;
        site.b.wait_taken_over(TAKEOVER)?;
        site.wait_lines()?;
        mend(&mut site)?;
        let before = site.a.host.received()?;
        site.a.wait_role("secondary")?;
        wait_until("alpha to be in step again", LONG, || {
            Ok(site.b.value("role")? == "primary" && site.b.value("status")? == "complete")
        })?;
        site.wait_lines()?;
        let copied = site.a.host.received()?.saturating_sub(before);
        assert!(copied < 32 << 20, "{copied} bytes were sent to a node that had missed a few lines");
        assert_eq!(site.a.address_state(), "down");
        site.every_line_is_on(1)?;
        site.finish(1)
    };
    play().map_err(|why| site.told(&why))
}

#[test]
fn the_daemon_is_killed() -> Outcome {
    lost_and_found(|site| site.a.kill_hastd(), |site| site.a.start_hastd())
}

#[test]
fn the_host_is_killed() -> Outcome {
    lost_and_found(
        |site| site.a.kill(),
        |site| {
            site.lab.boot(&mut site.a.host)?;
            site.a.start_hastd()?;
            site.a.start_ucarp()
        },
    )
}

#[test]
fn the_link_is_cut() -> Outcome {
    lost_and_found(
        |site| site.lab.set_link(&site.a.host, false),
        |site| site.lab.set_link(&site.a.host, true),
    )
}

#[test]
fn ucarp_is_killed() -> Outcome {
    lost_and_found(|site| site.a.host.sh("pkill -9 -x ucarp").map(drop), |_| Ok(()))
}
