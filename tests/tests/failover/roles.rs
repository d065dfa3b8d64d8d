//! Roles that change as planned, too often, too early, or on both hosts.

use hast_tests::{Context, Failure, LONG, Outcome, disk, wait_until};

use super::site::{SHARED, Server, Site};

/// Plays a story, and tells what the hosts have logged if it goes wrong.
fn on_a_site(play: impl FnOnce(&mut Site) -> Outcome) -> Outcome {
    let Some(mut site) = Site::new()? else { return Ok(()) };
    let outcome = play(&mut site);
    outcome.map_err(|why| site.told(&why))
}

/// Does by hand what ucarp does.
fn move_here(server: &Server) -> Outcome {
    server.host.sh(&format!("vip-up eth0 {SHARED} 24:shared"))?;
    wait_until("address and data to be there", LONG, || Ok(server.address_state() == "up"))
}

fn move_away(server: &Server) -> Outcome {
    server.host.sh(&format!("HAST_VIP_WAIT=1 vip-down eth0 {SHARED} 24:shared")).map(drop)
}

#[test]
fn ten_planned_changes_under_load() -> Outcome {
    on_a_site(|site| {
        move_here(&site.a)?;
        site.send_lines()?;
        for turn in 0..10 {
            site.wait_lines()?;
            let (from, to) = if turn % 2 == 0 { (&site.a, &site.b) } else { (&site.b, &site.a) };
            move_away(from)?;
            move_here(to)?;
            assert_eq!(from.value("role")?, "secondary");
        }
        site.wait_lines()?;
        site.every_line_is_on(0)?;
        move_away(&site.a)?;
        site.finish(0)
    })
}

/// Requests come faster than they can be carried out. The last one counts, whatever the others were about.
#[test]
fn flapping() -> Outcome {
    on_a_site(|site| {
        for (last, expected) in [("primary", "primary"), ("secondary", "secondary"), ("primary", "primary")] {
            for _ in 0..12 {
                site.a.failover(&["-b", "primary"])?.ok("primary")?;
                site.a.failover(&["-b", "secondary"])?.ok("secondary")?;
            }
            let final_word = site.a.failover(&["-q", last])?;
            assert_eq!(final_word.code, 0, "{}", final_word.stderr);
            // Those before it find out that they have been overtaken.
            wait_until("the other runs to end", LONG, || {
                Ok(site.a.host.run("pgrep", &["-x", "hast-failover"])?.code != 0)
            })?;
            assert_eq!(site.a.value("role")?, expected);
            let mounted = site.a.host.sh("mount")?.contains(&site.a.mount().display().to_string());
            let running = site.a.host.run("pgrep", &["-x", "hast-lines"])?.code == 0;
            assert_eq!((mounted, running), (expected == "primary", expected == "primary"));
            let attached = site.a.host.directory().join("state/shared.device").exists();
            assert_eq!(attached, expected == "primary", "the device");
        }
        site.finish(0)
    })
}

#[test]
fn a_node_that_is_being_synchronised_is_promoted_by_force_only() -> Outcome {
    on_a_site(|site| {
        site.b.failover(&["-r", "init", "shared"])?.ok("init")?;
        site.a.failover(&["-r", "primary", "shared"])?.ok("primary")?;
        // The end of the device: the file system there has nothing yet.
        let device = site.a.device();
        site.a.host.sh(&format!(
            "dd if=/dev/urandom of={} bs=1M seek=30 count=16 conv=notrunc,fsync 2>/dev/null",
            device.display()
        ))?;
        site.a.host.sh("tc qdisc replace dev eth0 root tbf rate 8mbit burst 64kb latency 400ms")?;
        site.b.failover(&["-r", "secondary", "shared"])?.ok("secondary")?;
        wait_until("synchronisation to begin", LONG, || {
            Ok(site.b.ctl(&["status", "-v", "shared"])?.contains("inconsistent"))
        })?;
        site.lab.set_port(&site.a.host, false)?;
        let refused = site.b.failover(&["primary"])?;
        assert_eq!(refused.code, 70, "{}", refused.stderr);
        assert!(refused.stderr.contains("has newer data"), "{}", refused.stderr);
        assert_eq!(site.b.value("role")?, "secondary");
        assert!(!site.b.host.sh("mount")?.contains(&site.b.mount().display().to_string()));
        let forced = site.b.failover(&["-f", "primary"])?;
        assert_eq!(forced.code, 0, "{}", forced.stderr);
        assert_eq!(site.b.value("role")?, "primary");
        let log = site.b.host.file("hastd.log");
        assert!(log.lines().any(|line| line.starts_with("[WARNING]") && line.contains("forced")), "{log}");
        Ok(())
    })
}

/// The switch fails, each host takes the other for dead, and both go on. When they meet again they notice, nobody's
/// data is touched, and `repair` of beta brings them together.
fn both_are_primary(repair: impl FnOnce(&Site) -> Outcome) -> Outcome {
    on_a_site(|site| {
        site.a.failover(&["primary"])?.ok("alpha")?;
        site.a.wait_in_step()?;
        site.lab.set_port(&site.b.host, false)?;
        site.b.failover(&["primary"])?.ok("beta")?;
        for server in [&site.a, &site.b] {
            let written = server.mount().join("by").display().to_string();
            server.host.sh(&format!("hostname >{written} && sync -f {written}"))?;
        }
        site.lab.set_port(&site.b.host, true)?;
        // The cluster notices first, and takes the role from one of them.
        site.b.failover(&["secondary"])?.ok("beta")?;
        let theirs = disk::data(&site.b.provider())?;
        for server in [&site.a, &site.b] {
            wait_until(&format!("{}'s hook", server.host.name()), LONG, || {
                Ok(server.host.file("hooks").lines().any(|line| line == "split-brain shared"))
            })?;
            assert!(server.ctl(&["status", "-v", "shared"])?.contains("split-brain"));
        }
        assert_eq!(site.a.host.sh(&format!("cat {}/by", site.a.mount().display()))?, "alpha\n");
        assert!(disk::data(&site.b.provider())? == theirs, "beta's data was touched");
        repair(site)?;
        site.a.wait_in_step()?;
        site.a.failover(&["secondary"])?.ok("alpha")?;
        site.b.failover(&["primary"])?.ok("beta")?;
        assert_eq!(site.b.host.sh(&format!("cat {}/by", site.b.mount().display()))?, "alpha\n");
        site.b.failover(&["secondary"])?.ok("beta")?;
        site.finish(1)
    })
}

/// The three steps that every HAST knows.
#[test]
fn both_are_primary_and_one_is_created_anew() -> Outcome {
    both_are_primary(|site| {
        site.b.ctl(&["role", "init", "shared"])?;
        site.b.ctl(&["create", "-e", "64k", "shared"])?;
        site.b.ctl(&["role", "secondary", "shared"]).map(drop)
    })
}

#[test]
fn both_are_primary_and_one_gives_up() -> Outcome {
    both_are_primary(|site| {
        for server in [&site.a, &site.b] {
            wait_until("the maps to be compared", LONG, || {
                Ok(server.ctl(&["compare", "shared"])?.ends_with("  complete: yes\n"))
            })?;
        }
        let before = site.b.host.received()?;
        let said = site.b.ctl(&["discard", "shared"])?;
        assert!(said.contains("have changed since the nodes parted and will be synchronised"), "{said}");
        site.a.wait_in_step()?;
        let copied = site.b.host.received()?.saturating_sub(before);
        assert!(copied < 16 << 20, "{copied} bytes for a few changes");
        Ok(())
    })
}

/// The agent under the tester that resource-agents brings.
#[test]
fn the_agent_passes_ocf_tester() -> Outcome {
    if !hast_tests::tools::have(&["ocf-tester", "xmllint"])? {
        return Ok(());
    }
    on_a_site(|site| {
        // The tester also asks for the metadata as nobody, who has to get at it.
        let agent = std::env::temp_dir().join(format!("hast-agent.{}", std::process::id()));
        std::fs::copy(concat!(env!("CARGO_MANIFEST_DIR"), "/../dist/ocf/resource"), &agent)
            .context("the agent")?;
        let conf = site.a.host.directory().join("hast-failover.conf");
        let parameter = format!("config={}", conf.display());
        site.a.failover(&["init"])?.ok("init")?;
        let agent = agent.display().to_string();
        let tested = site
            .a
            .host
            .run("ocf-tester", &["-v", "-n", "shared", "-o", "resource=shared", "-o", &parameter, &agent]);
        std::fs::remove_file(&agent)?;
        let tested = tested?;
        let said = format!("{}{}", tested.stdout, tested.stderr);
        assert!(tested.code == 0 && said.contains("passed all tests"), "{said}");
        // All but an action of which hast.conf's reload takes care.
        let mut missing = said.lines().filter(|line| line.contains("not support"));
        assert!(missing.all(|line| line.contains("the reload action")), "{said}");
        Ok(())
    })
}

/// hastd waits for the primary to leave, and would carry the promotion out though nobody is there any more who has asked for
/// it. What was asked for later counts.
#[test]
fn a_promotion_whose_caller_has_gone_ends_with_the_next_request() -> Outcome {
    on_a_site(|site| {
        site.a.failover(&["-r", "primary", "shared"])?.ok("alpha: primary")?;
        site.a.wait_in_step()?;
        // It is hastd that is to wait.
        let conf = format!("wait_secondary = no\n{}", site.b.host.file("hast-failover.conf"));
        std::fs::write(site.b.host.directory().join("hast-failover.conf"), conf)?;
        let mut caller = site.b.host.spawn("caller.log", "hast-failover", &["primary"])?;
        wait_until("hastd to wait for alpha", LONG, || {
            Ok(site.b.host.file("hastd.log").contains("for it to leave its role"))
        })?;
        site.b.host.sh("pkill -9 -x hast-failover; pkill -9 -x hastctl")?;
        caller.wait()?;
        site.b.failover(&["secondary"])?.ok("beta: secondary")?;
        site.a.failover(&["-r", "secondary", "shared"])?.ok("alpha: secondary")?;
        site.a.failover(&["-r", "primary", "shared"])?.ok("alpha: primary again")?;
        site.a.wait_in_step()?;
        assert_eq!(site.b.value("role")?, "secondary");
        let hooks = site.b.host.file("hooks");
        assert!(!hooks.lines().any(|line| line == "role shared secondary primary"), "{hooks}");
        site.a.failover(&["-r", "secondary", "shared"])?.ok("alpha: secondary")?;
        site.finish(0)
    })
}

/// Everything can be asked for again, and is done already.
#[test]
fn repeated_runs_change_nothing() -> Outcome {
    on_a_site(|site| {
        let workers = |server: &Server| -> Result<String, Failure> { server.value("workerpid") };
        site.a.failover(&["primary"])?.ok("first")?;
        let (worker, device) =
            (workers(&site.a)?, site.a.host.sh(&format!("readlink {}", site.a.device().display()))?);
        let again = site.a.failover(&["primary"])?;
        assert_eq!(again.code, 0, "{}", again.stderr);
        assert_eq!(
            (workers(&site.a)?, site.a.host.sh(&format!("readlink {}", site.a.device().display()))?),
            (worker, device)
        );
        assert_eq!(site.a.failover(&["status"])?.code, 0);
        assert_eq!(site.b.failover(&["status"])?.code, 3);
        for _ in 0..2 {
            site.a.failover(&["secondary"])?.ok("secondary")?;
            assert_eq!(site.a.failover(&["status"])?.code, 3);
        }
        site.b.kill_hastd()?;
        assert_eq!(site.b.failover(&["status"])?.code, 4);
        Ok(())
    })
}

/// Somebody sits in the file system and does not go when asked.
#[test]
fn whoever_holds_the_file_system_is_made_to_let_go() -> Outcome {
    on_a_site(|site| {
        site.a.failover(&["primary"])?.ok("primary")?;
        let stubborn = format!("cd {} && trap '' TERM && exec sleep 4321", site.a.mount().display());
        let mut holder = site.a.host.spawn("holder.log", "sh", &["-c", &stubborn])?;
        wait_until("it to sit there", LONG, || {
            Ok(site.a.host.run("pgrep", &["-f", "^sleep 4321$"])?.code == 0)
        })?;
        let run = site.a.failover(&["secondary"])?;
        assert_eq!(run.code, 0, "{}", run.stderr);
        assert!(run.stderr.contains("SIGTERM") && run.stderr.contains("SIGKILL"), "{}", run.stderr);
        holder.wait()?;
        site.finish(0)
    })
}
