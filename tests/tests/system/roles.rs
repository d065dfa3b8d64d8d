//! Roles change hands, as planned and after a crash.

use hast_tests::{Outcome, Pair, Setup, disk};

use crate::volume::Volume;

const MODES: [&str; 3] = ["fullsync", "memsync", "async"];

/// a to b and back, orderly: each new primary has everything that was written before.
#[test]
fn planned_switch_both_ways() -> Outcome {
    for mode in MODES {
        let pair = Pair::up(Setup::with(&format!("replication {mode}")))?;
        let mut on_a = Volume::fresh(&pair.a, "disk0")?;
        on_a.scribble(1, 0, 2 << 20)?;

        // No flush here: the switch itself must keep what was acknowledged.
        pair.a.role("secondary", "disk0")?;
        assert!(!pair.a.socket("disk0").exists(), "a secondary has no device");
        pair.b.role("primary", "disk0")?;
        pair.b.wait_in_step("disk0")?;
        // Nodes that parted in step have nothing to copy.
        assert!(!pair.b.log().contains("Synchronization started"), "{mode}: {}", pair.b.log());
        let mut on_b = on_a.moved_to(&pair.b, "disk0")?;
        on_b.verify()?;
        on_b.scribble(2, 1 << 20, 3 << 20)?;

        let copied = pair.a.log().matches("Synchronization started").count();
        pair.b.role("secondary", "disk0")?;
        pair.a.role("primary", "disk0")?;
        pair.a.wait_in_step("disk0")?;
        assert_eq!(
            pair.a.log().matches("Synchronization started").count(),
            copied,
            "{mode}: {}",
            pair.a.log()
        );
        let on_a = on_b.moved_to(&pair.a, "disk0")?;
        on_a.verify()?;
        on_a.flush()?;
        on_a.verify_provider(&pair.a, "disk0")?;
        on_a.verify_provider(&pair.b, "disk0")?;
        for node in [&pair.a, &pair.b] {
            assert!(!node.log().contains("[ERROR]"), "{mode}: nothing is wrong: {}", node.log());
        }
        pair.finish()?;
    }
    Ok(())
}

/// The primary's node is killed in the midst of things; what it acknowledged is on the other.
#[test]
fn failover_after_a_crash_and_back() -> Outcome {
    for mode in ["fullsync", "memsync"] {
        let mut pair = Pair::up(Setup::with(&format!("replication {mode}")))?;
        let mut on_a = Volume::fresh(&pair.a, "disk0")?;
        on_a.scribble(1, 0, 4 << 20)?;
        pair.a.kill()?;

        pair.b.role("primary", "disk0")?;
        let mut on_b = on_a.moved_to(&pair.b, "disk0")?;
        on_b.verify()?;
        on_b.scribble(2, 3 << 20, 2 << 20)?;
        on_b.flush()?;

        pair.a.start()?;
        pair.a.role("secondary", "disk0")?;
        pair.b.wait_in_step("disk0")?;
        on_b.verify_provider(&pair.a, "disk0")?;
        on_b.verify_provider(&pair.b, "disk0")?;

        // And the way back, so that a serves what b wrote alone.
        pair.b.role("secondary", "disk0")?;
        pair.a.role("primary", "disk0")?;
        pair.a.wait_in_step("disk0")?;
        on_b.moved_to(&pair.a, "disk0")?.verify()?;
        pair.finish()?;
    }
    Ok(())
}

/// The same node takes over twice in a row, writing alone each time; the other must see that it is
/// behind, and not overwrite what it has missed (defects.md L5).
#[test]
fn the_second_failover_counts_too() -> Outcome {
    let mut pair = Pair::up(Setup::default())?;
    let mut volume = Volume::fresh(&pair.a, "disk0")?;
    volume.scribble(1, 0, 1 << 20)?;
    volume.flush()?;
    for round in 0..2 {
        pair.a.kill()?;
        pair.b.role("primary", "disk0")?;
        let mut on_b = volume.moved_to(&pair.b, "disk0")?;
        on_b.scribble(10 + round, (2 + round as usize) << 20, 1 << 20)?;
        on_b.flush()?;
        pair.b.role("secondary", "disk0")?;
        pair.a.start()?;
        pair.a.role("primary", "disk0")?;
        pair.a.wait_in_step("disk0")?;
        volume = on_b.moved_to(&pair.a, "disk0")?;
        volume.verify()?;
        volume.flush()?;
        volume.verify_provider(&pair.a, "disk0")?;
        volume.verify_provider(&pair.b, "disk0")?;
    }
    pair.finish()
}

/// The old primary comes back as primary and is out of date: it takes the data from the secondary and
/// meanwhile serves none of its own.
#[test]
fn an_out_of_date_primary_reads_from_the_secondary() -> Outcome {
    let mut pair = Pair::up(Setup::default())?;
    let mut on_a = Volume::fresh(&pair.a, "disk0")?;
    on_a.scribble(1, 0, 4 << 20)?;
    on_a.flush()?;
    pair.a.kill()?;
    pair.b.role("primary", "disk0")?;
    let mut on_b = on_a.moved_to(&pair.b, "disk0")?;
    on_b.scribble(2, 2 << 20, 4 << 20)?;
    on_b.flush()?;
    drop(on_a);

    pair.b.role("secondary", "disk0")?;
    pair.a.start()?;
    pair.a.role("primary", "disk0")?;
    pair.a.wait_status("disk0", "complete")?;
    // Complete is not in step yet: whatever is read now must be b's.
    let on_a = on_b.moved_to(&pair.a, "disk0")?;
    on_a.verify()?;
    pair.a.wait_in_step("disk0")?;
    on_a.verify()?;
    on_a.flush()?;
    on_a.verify_provider(&pair.a, "disk0")?;
    on_a.verify_provider(&pair.b, "disk0")?;
    pair.finish()
}

/// The same with more gaps between what it has missed than its metadata has room to name: it must still be
/// able to read that metadata after its worker has died in the middle.
#[test]
fn an_out_of_date_primary_that_missed_scattered_extents_restarts() -> Outcome {
    let mut pair = Pair::up(Setup::default())?;
    let mut on_a = Volume::fresh(&pair.a, "disk0")?;
    on_a.scribble(1, 0, 8 << 20)?;
    on_a.flush()?;
    pair.a.kill()?;
    pair.b.role("primary", "disk0")?;
    let mut on_b = on_a.moved_to(&pair.b, "disk0")?;
    for n in 0..60 {
        on_b.scribble(100 + n, usize::try_from(2 * n)? * (64 << 10), 4096)?;
    }
    on_b.flush()?;
    drop(on_a);

    pair.b.role("secondary", "disk0")?;
    pair.a.start()?;
    pair.a.role("primary", "disk0")?;
    pair.a.wait_status("disk0", "complete")?;
    nix::sys::signal::kill(pair.a.wait_worker("disk0")?, nix::sys::signal::Signal::SIGKILL)?;
    pair.a.wait_in_step("disk0")?;
    let on_a = on_b.moved_to(&pair.a, "disk0")?;
    on_a.verify()?;
    on_a.flush()?;
    on_a.verify_provider(&pair.a, "disk0")?;
    on_a.verify_provider(&pair.b, "disk0")?;
    pair.finish()
}

/// A primary without a secondary works alone, and the secondary gets all of it later.
#[test]
fn a_primary_alone_first() -> Outcome {
    let pair = Pair::started(Setup::default())?;
    pair.a.role("primary", "disk0")?;
    assert_eq!(pair.a.status("disk0")?, "degraded");
    let mut volume = Volume::fresh(&pair.a, "disk0")?;
    volume.scribble(1, 512, 3 << 20)?;
    volume.flush()?;
    volume.verify()?;
    let alone = disk::metadata(&pair.a.provider("disk0"))?;
    assert_eq!(
        (alone.resuid, alone.localcnt, alone.remotecnt),
        (0, 0, 0),
        "nothing counts before a handshake"
    );
    pair.b.role("secondary", "disk0")?;
    pair.a.wait_in_step("disk0")?;
    volume.flush()?;
    volume.verify_provider(&pair.b, "disk0")?;
    let (a, b) = (disk::metadata(&pair.a.provider("disk0"))?, disk::metadata(&pair.b.provider("disk0"))?);
    assert_ne!(a.resuid, 0);
    assert_eq!(a.resuid, b.resuid);
    pair.finish()
}

/// Setting the role a resource has already is no error; debug output says what happened.
#[test]
fn roles_that_do_not_change() -> Outcome {
    let pair = Pair::up(Setup::default())?;
    let worker = pair.a.worker("disk0")?;
    assert_eq!(pair.a.ctl(&["role", "primary", "disk0"])?, "");
    assert_eq!(pair.a.worker("disk0")?, worker, "the worker was left alone");
    assert_eq!(
        pair.a.ctl(&["role", "-dd", "primary", "disk0"])?,
        "[DEBUG][2] [disk0] Role unchanged (primary).\n"
    );
    assert_eq!(
        pair.b.ctl(&["role", "-d", "init", "disk0"])?,
        "[DEBUG][1] [disk0] Role changed from secondary to init.\n"
    );
    pair.finish()
}
