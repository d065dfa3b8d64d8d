//! Both nodes were written alone: found, refused on both sides, nothing touched, repaired by hand.

use hast_tests::{Outcome, Pair, SHORT, Setup, disk, wait_until};

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
            Ok(status.trim_end().ends_with("split-brain") && list.contains("    split-brain: yes\n"))
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
