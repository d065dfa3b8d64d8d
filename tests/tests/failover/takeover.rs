//! Something of the primary dies; the other host takes over, and the first one returns.

use hast_tests::{Failure, LONG, Outcome, disk, wait_until};

use super::site::{EXT4, FileSystem, SHARED, Site, XFS};

/// Alpha is primary, lines are coming in; then `fail` happens to alpha, beta takes over, `mend` brings alpha back, and
/// it becomes beta's secondary, for which only what has changed is copied.
fn lost_and_found(
    fail: impl FnOnce(&mut Site) -> Result<(), Failure>,
    mend: impl FnOnce(&mut Site) -> Result<(), Failure>,
) -> Outcome {
    lost_and_found_on(EXT4, fail, mend)
}

fn lost_and_found_on(
    filesystem: FileSystem,
    fail: impl FnOnce(&mut Site) -> Result<(), Failure>,
    mend: impl FnOnce(&mut Site) -> Result<(), Failure>,
) -> Outcome {
    let Some(mut site) = Site::with(filesystem)? else { return Ok(()) };
    let play = || -> Outcome {
        site.a.start_ucarp()?;
        site.a.wait_taken_over()?;
        site.b.start_ucarp()?;
        site.send_lines()?;
        site.wait_lines()?;
        site.a.wait_in_step()?;
        fail(&mut site)?;
        site.b.wait_taken_over()?;
        site.wait_lines()?;
        mend(&mut site)?;
        let before = site.a.host.received()?;
        site.wait_alpha_is_back()?;
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

/// Nobody takes over: hastd starts another worker, and the program that writes to the file system waits for it. The device is
/// nbdfuse's, which does not connect again by itself.
#[test]
fn the_worker_is_killed_again_and_again() -> Outcome {
    let Some(mut site) = Site::new()? else { return Ok(()) };
    let mut play = || -> Outcome {
        site.a.start_ucarp()?;
        site.a.wait_taken_over()?;
        site.send_lines()?;
        for _ in 0..3 {
            site.wait_lines()?;
            let worker = site.a.value("workerpid")?;
            site.a.host.sh(&format!("kill -9 {worker}"))?;
            wait_until("another worker", LONG, || {
                let now = site.a.value("workerpid")?;
                Ok(now != worker && now != "0" && now != "-")
            })?;
        }
        site.wait_lines()?;
        assert_eq!(site.a.failover(&["status"])?.code, 0);
        assert!(site.a.host.file("failover.log").contains("connected again"));
        site.every_line_is_on(0)?;
        site.finish(0)
    };
    play().map_err(|why| site.told(&why))
}

/// The role leaves in spite of the device, and comes back. What was written for the first term must not be done in the
/// second one: the other node may have been primary in between.
#[test]
fn what_waits_at_the_end_of_a_term_is_not_done_in_the_next() -> Outcome {
    let Some(mut site) = Site::new()? else { return Ok(()) };
    let mut play = || -> Outcome {
        let device = site.a.device().display().to_string();
        site.a.failover(&["-r", "primary", "shared"])?.ok("alpha: primary")?;
        site.a.wait_in_step()?;
        site.a.ctl(&["role", "secondary", "shared"])?;
        site.a.ctl(&["role", "primary", "shared"])?;
        site.a.wait_in_step()?;
        let before = disk::data(&site.a.provider())?;
        let write =
            format!("dd if=/dev/urandom of={device} bs=64k count=4 seek=600 oflag=direct conv=notrunc");
        let late = site.a.host.run("sh", &["-c", &write])?;
        assert_ne!(late.code, 0, "the device of the first term still writes");
        assert!(disk::data(&site.a.provider())? == before, "something was written");
        assert_eq!(site.a.failover(&["-r", "status", "shared"])?.code, 1);
        // A device that does not answer is attached again.
        site.a.failover(&["-r", "primary", "shared"])?.ok("alpha: primary once more")?;
        site.a.host.sh(&write)?;
        site.a.failover(&["-r", "secondary", "shared"])?.ok("alpha: secondary")?;
        site.finish(0)
    };
    play().map_err(|why| site.told(&why))
}

#[test]
fn the_host_is_killed() -> Outcome {
    lost_and_found(|site| site.a.kill(), boot_alpha)
}

fn boot_alpha(site: &mut Site) -> Result<(), Failure> {
    site.lab.boot(&mut site.a.host)?;
    site.a.start_hastd()?;
    site.a.start_ucarp()
}

/// The other file system that people use.
#[test]
fn the_host_with_xfs_is_killed() -> Outcome {
    let known = std::fs::read_to_string("/proc/filesystems")?;
    if !known.lines().any(|line| line.trim() == "xfs") {
        eprintln!("SKIPPED: this kernel has no XFS");
        return Ok(());
    }
    lost_and_found_on(XFS, |site| site.a.kill(), boot_alpha)
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

/// keepalived decides, as docs/failover.md says: the host with the higher priority first, the other one when that
/// is gone, and nobody takes anything back.
#[test]
fn keepalived_moves_address_and_data() -> Outcome {
    if !hast_tests::tools::have(&["keepalived"])? {
        return Ok(());
    }
    let Some(mut site) = Site::new()? else { return Ok(()) };
    let mut play = || -> Outcome {
        site.a.start_keepalived(150)?;
        site.a.wait_serves()?;
        site.b.start_keepalived(100)?;
        site.a.wait_in_step()?;
        site.send_lines()?;
        site.wait_lines()?;
        site.a.kill()?;
        site.b.wait_serves()?;
        site.wait_lines()?;
        site.lab.boot(&mut site.a.host)?;
        site.a.start_hastd()?;
        site.a.start_keepalived(150)?;
        site.wait_alpha_is_back()?;
        site.wait_lines()?;
        site.every_line_is_on(1)
    };
    play().map_err(|why| site.told(&why))
}

/// Alpha becomes master, but its disk has gone: it gives the address to beta, whose data can come up, and does not take it
/// again before the disk is there. Then it is as good a backup as any.
#[test]
fn keepalived_gives_the_address_to_a_node_whose_data_comes_up() -> Outcome {
    if !hast_tests::tools::have(&["keepalived"])? {
        return Ok(());
    }
    let Some(mut site) = Site::new()? else { return Ok(()) };
    let mut play = || -> Outcome {
        let gone = site.a.provider().with_extension("gone");
        for role in ["init", "secondary"] {
            site.a.ctl(&["role", role, "shared"])?;
            site.b.ctl(&["role", role, "shared"])?;
            if role == "init" {
                std::fs::rename(site.a.provider(), &gone)?;
            }
        }
        site.a.start_keepalived(150)?;
        let log = |site: &Site| site.a.host.file("failover.log");
        wait_until("alpha to fail", LONG, || Ok(log(&site).contains("This node did not become primary.")))?;
        site.b.start_keepalived(100)?;
        site.b.wait_serves()?;
        assert!(!site.a.host.has_address(SHARED)?);
        assert_eq!(site.a.failover(&["check"])?.code, 1);
        // The disk is back. The other node has been written since, and that has to come first.
        site.a.ctl(&["role", "init", "shared"])?;
        std::fs::rename(&gone, site.a.provider())?;
        site.a.failover(&["secondary"])?.ok("alpha: secondary")?;
        site.b.wait_in_step()?;
        site.send_lines()?;
        site.wait_lines()?;
        site.b.kill()?;
        site.a.wait_serves()?;
        site.wait_lines()?;
        site.every_line_is_on(0)
    };
    play().map_err(|why| site.told(&why))
}
