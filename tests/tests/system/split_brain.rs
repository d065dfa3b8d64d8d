//! Both nodes were written alone: found, refused on both sides, nothing touched, repaired by hand.

use hast_tests::{Failure, LONG, Outcome, Pair, SHORT, Setup, disk, wait_until};

use crate::volume::Volume;

#[test]
fn found_refused_and_repaired() -> Outcome {
    let pair = Pair::up(Setup::with("exec @hook@"))?;
    let mut on_a = Volume::fresh(&pair.a, "disk0")?;
    on_a.scribble(1, 0, 1 << 20)?;
    on_a.flush()?;

    pair.link.cut();
    on_a.scribble(2, 2 << 20, 1 << 20)?;
    on_a.flush()?;
    pair.a.wait_status("disk0", "degraded")?;
    pair.b.role("primary", "disk0")?;
    let mut on_b = on_a.moved_to(&pair.b, "disk0")?;
    on_b.scribble(3, 4 << 20, 1 << 20)?;
    on_b.flush()?;
    pair.b.role("secondary", "disk0")?;

    let (a, b) = (pair.a.provider("disk0"), pair.b.provider("disk0"));
    let before = (disk::data(&a)?, disk::data(&b)?);
    assert!(before.0 != before.1);
    pair.link.restore();
    for node in [&pair.a, &pair.b] {
        wait_until("the split-brain hook", SHORT, || {
            Ok(node.hook_lines().iter().any(|line| line == "split-brain disk0"))
        })?;
    }
    pair.a.wait_log("Split-brain condition!")?;
    pair.b.wait_log("[ERROR] [disk0] (secondary) Split-brain")?;
    assert_eq!(pair.a.status("disk0")?, "degraded", "the primary goes on alone");
    assert_eq!(pair.b.value("disk0", "role")?.as_deref(), Some("secondary"), "and the other keeps its role");
    assert!(disk::data(&a)? == before.0, "nothing was written on a");
    assert!(disk::data(&b)? == before.1, "nothing was written on b");
    // It repeats with each retry, until somebody decides.
    wait_until("the second refusal", SHORT, || {
        Ok(pair.b.hook_lines().iter().filter(|line| *line == "split-brain disk0").count() >= 2)
    })?;
    on_a.scribble(4, 6 << 20, 4096)?;
    for node in [&pair.a, &pair.b] {
        wait_until("both nodes to tell", SHORT, || {
            let status = node.ctl(&["status", "-v", "disk0"])?;
            let list = node.ctl(&["list", "-v", "disk0"])?;
            Ok(status.contains("\tsplit-brain\tsplit-brain since ")
                && list.contains("    split-brain: yes\n"))
        })?;
        assert!(
            !node.ctl(&["status", "disk0"])?.contains("split-brain"),
            "the original's output is unchanged"
        );
        assert!(!node.ctl(&["list", "disk0"])?.contains("split-brain"));
    }

    // a's data are to survive.
    pair.b.role("init", "disk0")?;
    pair.b.ctl(&["create", "-e", "65536", "disk0"])?;
    pair.b.role("secondary", "disk0")?;
    pair.a.wait_in_step("disk0")?;
    for node in [&pair.a, &pair.b] {
        assert!(node.ctl(&["list", "-v", "disk0"])?.contains("    split-brain: no\n"), "it is over");
    }
    on_a.verify()?;
    on_a.flush()?;
    on_a.verify_provider(&pair.a, "disk0")?;
    on_a.verify_provider(&pair.b, "disk0")?;
    pair.finish()
}

/// The same, decided the other way: b's data survive.
#[test]
fn repaired_in_favour_of_the_other_node() -> Outcome {
    let pair = Pair::up(Setup::default())?;
    let mut on_a = Volume::fresh(&pair.a, "disk0")?;
    on_a.scribble(1, 0, 1 << 20)?;
    on_a.flush()?;
    pair.link.cut();
    let mut lost = on_a.moved_to(&pair.a, "disk0")?;
    lost.scribble(2, 1 << 20, 1 << 20)?;
    lost.flush()?;
    pair.a.role("secondary", "disk0")?;
    pair.b.role("primary", "disk0")?;
    let mut on_b = on_a.moved_to(&pair.b, "disk0")?;
    on_b.scribble(3, 2 << 20, 1 << 20)?;
    on_b.flush()?;
    pair.link.restore();
    pair.b.wait_log("Split-brain condition!")?;
    pair.a.wait_log("[ERROR] [disk0] (secondary) Split-brain")?;

    pair.a.role("init", "disk0")?;
    pair.a.ctl(&["create", "-e", "65536", "disk0"])?;
    pair.a.role("secondary", "disk0")?;
    pair.b.wait_in_step("disk0")?;
    on_b.verify()?;
    on_b.flush()?;
    on_b.verify_provider(&pair.a, "disk0")?;
    pair.finish()
}

/// A full volume; both nodes written while apart, b's changes at `theirs`; b secondary, and both know.
fn split(pair: &Pair, theirs: &[(u64, usize, usize)]) -> Result<Volume, Failure> {
    let mut on_a = Volume::fresh(&pair.a, "disk0")?;
    let size = usize::try_from(on_a.client.size())?;
    for at in (0..size).step_by(1 << 20) {
        on_a.scribble(100 + at as u64, at, (size - at).min(1 << 20))?;
    }
    // memsync: what the secondary stores while the first one waits for it only the second one takes out of the map.
    on_a.flush()?;
    on_a.flush()?;
    pair.a.wait_in_step("disk0")?;
    pair.link.cut();
    on_a.scribble(2, 2 << 20, 128 << 10)?;
    pair.a.wait_status("disk0", "degraded")?;
    pair.b.role("primary", "disk0")?;
    let mut on_b = on_a.moved_to(&pair.b, "disk0")?;
    for (seed, at, length) in theirs {
        on_b.scribble(*seed, *at, *length)?;
    }
    on_b.flush()?;
    pair.b.role("secondary", "disk0")?;
    pair.link.restore();
    for node in [&pair.a, &pair.b] {
        wait_until("the maps to be compared", LONG, || {
            Ok(node.ctl(&["compare", "disk0"])?.contains("  state: split-brain\n  changed here: ")
                && !node.ctl(&["compare", "disk0"])?.contains("  together: -\n"))
        })?;
    }
    Ok(on_a)
}

/// Only the extents that either node has changed since they parted are copied.
#[test]
fn given_up_and_only_the_difference_is_copied() -> Outcome {
    let pair = Pair::up(Setup::default())?;
    let mut on_a = split(&pair, &[(3, 4 << 20, 64 << 10), (4, (2 << 20) + (64 << 10), 64 << 10)])?;
    let lines = |here, there| {
        format!(
            "disk0:\n  state: split-brain\n  changed here: {here}\n  changed there: {there}\n  \
             changed on both: 1 extents, 65536 (64KB)\n  together: 3 extents, 196608 (192KB)\n  complete: yes\n"
        )
    };
    let two = "2 extents, 131072 (128KB)";
    assert_eq!(pair.a.ctl(&["compare", "disk0"])?, lines(two, two));
    assert_eq!(pair.b.ctl(&["compare"])?, lines(two, two));
    let (before, _) = pair.link.bytes_from_a();
    let said = pair.b.ctl(&["discard", "disk0"])?;
    assert_eq!(
        said,
        "disk0: 3 extents, 196608 (192KB), have changed since the nodes parted and will be synchronised\n"
    );
    pair.a.wait_in_step("disk0")?;
    pair.b.wait_log("Only what has changed since the nodes parted will be synchronized.")?;
    let copied = pair.link.bytes_from_a().0 - before;
    assert!((192 << 10..1 << 20).contains(&copied), "{copied} bytes for three extents");
    on_a.flush()?;
    on_a.verify_provider(&pair.a, "disk0")?;
    on_a.verify_provider(&pair.b, "disk0")?;

    // They are a pair like any other: b may take over, and what is missed afterwards is all that is copied.
    on_a.scribble(5, 8 << 20, 1 << 20)?;
    pair.a.role("secondary", "disk0")?;
    pair.b.role("primary", "disk0")?;
    pair.b.wait_in_step("disk0")?;
    let on_b = on_a.moved_to(&pair.b, "disk0")?;
    on_b.verify()?;
    pair.finish()
}

/// A node that knows nothing of when they parted, because an original has written its metadata since, gets everything.
#[test]
fn given_up_and_everything_is_copied() -> Outcome {
    let pair = Pair::up(Setup::default())?;
    let on_a = split(&pair, &[(3, 4 << 20, 64 << 10)])?;
    pair.b.role("init", "disk0")?;
    let path = pair.b.provider("disk0");
    let mut metadata = disk::metadata(&path)?;
    metadata.extension = Default::default();
    let file = std::fs::OpenOptions::new().write(true).open(&path)?;
    std::os::unix::fs::FileExt::write_all_at(&file, &metadata.encode(), 0)?;
    let (before, _) = pair.link.bytes_from_a();
    let said = pair.b.ctl(&["discard", "disk0"])?;
    assert_eq!(
        said,
        "disk0: everything will be synchronised: it is not known what has changed since the nodes parted\n"
    );
    pair.a.wait_in_step("disk0")?;
    pair.b.wait_log("Everything will be synchronized")?;
    let copied = pair.link.bytes_from_a().0 - before;
    assert!(copied > on_a.client.size(), "{copied} bytes for everything");
    on_a.flush()?;
    on_a.verify_provider(&pair.b, "disk0")?;
    pair.finish()
}

/// A node in use is not robbed of its data; one that has given up does not become primary, except by force.
#[test]
fn only_a_node_out_of_use_gives_up() -> Outcome {
    let pair = Pair::up(Setup::default())?;
    let mut on_a = Volume::fresh(&pair.a, "disk0")?;
    on_a.scribble(1, 0, 1 << 20)?;
    let refused = pair.a.hastctl(&["discard", "disk0"])?;
    assert_eq!((refused.code, refused.stdout.as_str()), (75, ""));
    assert!(refused.stderr.contains("The role is primary"), "{}", refused.stderr);
    assert_eq!(pair.b.hastctl(&["discard", "nosuch"])?.code, 65);
    on_a.scribble(2, 1 << 20, 1 << 20)?;

    pair.link.cut();
    pair.b.ctl(&["discard", "disk0"])?;
    // Again, as after an interruption.
    pair.b.ctl(&["discard", "disk0"])?;
    assert_eq!(pair.b.hastctl(&["role", "primary", "disk0"])?.code, 70);
    assert_eq!(pair.b.value("disk0", "role")?.as_deref(), Some("secondary"));
    on_a.scribble(3, 2 << 20, 1 << 20)?;
    pair.link.restore();
    pair.a.wait_in_step("disk0")?;
    on_a.flush()?;
    on_a.verify_provider(&pair.b, "disk0")?;
    pair.finish()
}
