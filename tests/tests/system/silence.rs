//! A peer that says nothing although its connections are there (T7).

use hast_tests::{LONG, Outcome, Pair, SHORT, Setup, wait_until};

use crate::volume::Volume;

const EXTENT: usize = 64 << 10;
/// What is awaited has ten minutes, so that only the silence can have been noticed.
const SETTINGS: &str = "timeout 600\n#% peer-timeout 1\nexec @hook@";

/// Waits until a node has noticed; the other one may be quicker in hearing that the first has hung up.
fn wait_noticed(pair: &Pair) -> Outcome {
    wait_until("the silence to be noticed", SHORT, || {
        Ok(pair.a.log().contains("The secondary has been silent for 1 seconds.")
            || pair.b.log().contains("The primary has been silent for 1 seconds."))
    })
}

/// Nothing is asked and nothing owed: both nodes notice all the same, and hooks hear of it.
#[test]
fn an_idle_pair_notices_that_nothing_comes_through() -> Outcome {
    let pair = Pair::up(Setup::with(SETTINGS))?;
    pair.a.wait_at_rest("disk0")?;
    pair.link.stall();
    wait_noticed(&pair)?;
    pair.a.wait_status("disk0", "degraded")?;
    for node in [&pair.a, &pair.b] {
        wait_until("the hook to hear of it", SHORT, || {
            Ok(node.hook_lines().iter().any(|line| line == "disconnect disk0"))
        })?;
    }
    // Whoever had been asked to connect meanwhile is not left waiting for `timeout`.
    pair.link.cut();
    pair.link.restore();
    pair.a.wait_in_step("disk0")?;
    pair.finish()
}

/// A write that has been sent waits for the silence to be noticed, and no longer.
#[test]
fn a_write_does_not_wait_for_the_timeout() -> Outcome {
    let pair = Pair::up(Setup::with(SETTINGS))?;
    let mut volume = Volume::fresh(&pair.a, "disk0")?;
    volume.scribble(1, 0, 4 * EXTENT)?;
    pair.link.stall();
    volume.scribble(2, EXTENT, EXTENT)?;
    volume.flush()?;
    wait_noticed(&pair)?;
    pair.link.cut();
    pair.link.restore();
    pair.a.wait_in_step("disk0")?;
    volume.verify()?;
    volume.verify_provider(&pair.b, "disk0")?;
    pair.finish()
}

/// Signs of life keep an idle pair together for many times the silence that is allowed.
#[test]
fn an_idle_pair_stays_together() -> Outcome {
    let pair = Pair::up(Setup::with(SETTINGS))?;
    pair.a.wait_at_rest("disk0")?;
    let before = pair.link.bytes_from_a();
    // Twenty keepalives and their answers, three in a second.
    wait_until("signs of life to go to and fro", LONG, || {
        let now = pair.link.bytes_from_a();
        Ok(now.0 > before.0 + 20 * 20 && now.1 > before.1 + 20 * 20)
    })?;
    assert!(!pair.a.log().contains("silent") && !pair.b.log().contains("silent"));
    assert_eq!(pair.a.status("disk0")?, "complete");
    pair.finish()
}
