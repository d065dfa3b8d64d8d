//! The secondary's whole node dies and comes back.

use hast_tests::{Outcome, Pair, Setup, disk};

use crate::volume::Volume;

const EXTENT: usize = 64 << 10;

fn lost_and_back(replication: &str) -> Outcome {
    let mut pair = Pair::up(Setup::with(&format!("replication {replication}")))?;
    let mut volume = Volume::fresh(&pair.a, "disk0")?;
    volume.scribble(1, 0, 4 << 20)?;
    volume.flush()?;

    pair.b.kill()?;
    for n in 0..4 {
        volume.scribble(20 + n, (100 + 10 * n as usize) * EXTENT, EXTENT)?;
    }
    volume.verify()?;
    volume.flush()?;
    pair.a.wait_status("disk0", "degraded")?;

    let (before, _) = pair.link.bytes_from_a();
    pair.b.start()?;
    assert_eq!(pair.b.value("disk0", "role")?.as_deref(), Some("init"), "a daemon picks no role by itself");
    pair.b.role("secondary", "disk0")?;
    pair.a.wait_in_step("disk0")?;
    let moved = pair.link.bytes_from_a().0 - before;
    // Four extents, and those that the secondary itself may still have had in its own map.
    assert!(moved >= 4 * EXTENT as u64, "{moved}");
    assert!(moved < (4 << 20) + (8 * EXTENT) as u64, "{moved} bytes moved, a full copy has {}", 16 << 20);
    volume.verify()?;
    volume.verify_provider(&pair.a, "disk0")?;
    volume.verify_provider(&pair.b, "disk0")?;
    pair.finish()
}

#[test]
fn fullsync() -> Outcome {
    lost_and_back("fullsync")
}

#[test]
fn memsync() -> Outcome {
    lost_and_back("memsync")
}

#[test]
fn async_() -> Outcome {
    lost_and_back("async")
}

/// A new disk in the secondary: everything is copied.
#[test]
fn a_replaced_disk_is_filled_completely() -> Outcome {
    let mut pair = Pair::up(Setup::default())?;
    let mut volume = Volume::fresh(&pair.a, "disk0")?;
    volume.scribble(1, 1 << 20, 2 << 20)?;
    volume.flush()?;
    pair.b.stop()?;
    let provider = pair.b.provider("disk0");
    std::fs::write(&provider, vec![0xee; usize::try_from(pair.setup.provider)?])?;
    pair.b.ctl(&["create", "-e", "65536", "disk0"])?;
    pair.b.start()?;
    pair.b.role("secondary", "disk0")?;
    pair.a.wait_in_step("disk0")?;
    volume.verify_provider(&pair.b, "disk0")?;
    disk::same_data(&pair.a.provider("disk0"), &provider)?;
    pair.finish()
}
