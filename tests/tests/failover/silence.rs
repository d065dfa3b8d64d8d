//! Hosts that cannot reach each other any more, and are told so by nobody: no link goes down, nothing is refused.

use hast_tests::{Outcome, SHORT, wait_until};

use super::site::{Server, Site};

fn wait_noticed(server: &Server, who: &str) -> Outcome {
    let host = &server.host;
    let text = format!("The {who} has been silent for 6 seconds.");
    wait_until(&format!("{} to log {text:?}", host.name()), SHORT, || {
        Ok(host.file("hastd.log").contains(&text))
    })?;
    wait_until(&format!("the hook of {} to hear of it", host.name()), SHORT, || {
        Ok(host.file("hooks").lines().any(|line| line == "disconnect shared"))
    })
}

/// Both nodes notice while nothing is asked, and what is written meanwhile is copied afterwards.
#[test]
fn a_switch_that_fails_is_noticed_on_both_sides() -> Outcome {
    let Some(site) = Site::new()? else { return Ok(()) };
    let play = || -> Outcome {
        site.a.failover(&["-r", "primary", "shared"])?.ok("alpha: primary")?;
        site.a.wait_in_step()?;
        for server in [&site.a, &site.b] {
            std::fs::write(server.host.directory().join("hooks"), "")?;
        }
        site.lab.set_port(&site.b.host, false)?;
        wait_noticed(&site.a, "secondary")?;
        wait_noticed(&site.b, "primary")?;
        assert_eq!(site.a.value("status")?, "degraded");
        site.a.host.sh(&format!(
            "dd if=/dev/urandom of={} bs=64k count=4 seek=600 conv=notrunc,fsync 2>/dev/null",
            site.a.device().display()
        ))?;
        site.lab.set_port(&site.b.host, true)?;
        site.a.wait_in_step()
    };
    play().map_err(|why| site.told(&why))?;
    let mut site = site;
    site.finish(0)
}
