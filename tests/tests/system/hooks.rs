//! The `exec` program gets every event with its arguments, on the node that the event concerns.

use hast_tests::{LONG, Node, Outcome, Pair, SHORT, Setup, wait_until};

use crate::volume::Volume;

/// Waits until a node's hook has run with exactly these arguments since the last call. Hooks are started
/// in the order of the events but not waited for, so close ones may write their lines in any order.
fn expect(node: &Node, from: &mut usize, expected: &[&str]) -> Outcome {
    let wanted = *from + expected.len();
    wait_until(&format!("{} hook calls on node {}", expected.len(), node.name()), LONG, || {
        Ok(node.hook_lines().len() >= wanted)
    })?;
    let mut found = node.hook_lines()[*from..wanted].to_vec();
    let mut expected = expected.to_vec();
    found.sort();
    expected.sort_unstable();
    assert_eq!(found, expected, "on node {}", node.name());
    *from = wanted;
    Ok(())
}

#[test]
fn every_event_in_order() -> Outcome {
    let pair = Pair::started(Setup::with("exec @hook@"))?;
    let (mut a, mut b) = (0, 0);
    pair.b.role("secondary", "disk0")?;
    expect(&pair.b, &mut b, &["role disk0 init secondary"])?;
    pair.a.role("primary", "disk0")?;
    expect(&pair.a, &mut a, &["role disk0 init primary"])?;
    // Both virgin: nothing to copy, so no sync events.
    expect(&pair.a, &mut a, &["connect disk0"])?;
    expect(&pair.b, &mut b, &["connect disk0"])?;
    pair.a.wait_in_step("disk0")?;

    let mut volume = Volume::fresh(&pair.a, "disk0")?;
    pair.link.cut();
    volume.scribble(1, 0, 1 << 20)?;
    expect(&pair.a, &mut a, &["disconnect disk0"])?;
    expect(&pair.b, &mut b, &["disconnect disk0"])?;
    pair.link.restore();
    expect(&pair.a, &mut a, &["connect disk0", "syncstart disk0", "syncdone disk0"])?;
    expect(&pair.b, &mut b, &["connect disk0"])?;
    volume.flush()?;
    let facts = |node: &Node, event: &str| -> Vec<String> {
        let lines = node.hook_facts().into_iter();
        lines.filter(|line| line.split(' ').nth(1) == Some(event)).collect()
    };
    assert_eq!(facts(&pair.a, "role"), ["disk0 role primary - -"]);
    assert_eq!(facts(&pair.b, "role"), ["disk0 role secondary - -"]);
    assert_eq!(facts(&pair.b, "connect"), ["disk0 connect secondary complete 0"; 2]);
    assert_eq!(facts(&pair.b, "disconnect"), ["disk0 disconnect secondary degraded 0"]);
    let connected = facts(&pair.a, "connect");
    assert_eq!(connected[0], "disk0 connect primary complete 0");
    let dirty = |line: &String, head: &str| line.strip_prefix(head).unwrap().parse::<u64>().unwrap();
    assert!(dirty(&connected[1], "disk0 connect primary complete ") >= 1 << 20, "{connected:?}");
    let [start] = facts(&pair.a, "syncstart").try_into().unwrap();
    assert!(dirty(&start, "disk0 syncstart primary complete ") >= 1 << 20, "{start}");
    assert_eq!(facts(&pair.a, "syncdone"), ["disk0 syncdone primary complete 0"]);
    let [lost] = facts(&pair.a, "disconnect").try_into().unwrap();
    dirty(&lost, "disk0 disconnect primary degraded ");

    // A planned change is no disconnection for the node that makes it.
    pair.a.role("secondary", "disk0")?;
    expect(&pair.a, &mut a, &["role disk0 primary secondary"])?;
    pair.b.role("init", "disk0")?;
    wait_until("the role hook on b", SHORT, || {
        Ok(pair.b.hook_lines().iter().any(|line| line == "role disk0 secondary init"))
    })?;
    // Setting the role it has is no change.
    pair.a.role("secondary", "disk0")?;
    assert_eq!(pair.a.hook_lines().len(), a);
    pair.finish()
}

#[test]
fn a_synchronisation_that_breaks_off() -> Outcome {
    let pair = Pair::up(Setup { provider: 64 << 20, ..Setup::with("exec @hook@") })?;
    let mut volume = Volume::fresh(&pair.a, "disk0")?;
    pair.link.cut();
    volume.scribble(1, 0, 48 << 20)?;
    pair.a.wait_status("disk0", "degraded")?;
    let (before, _) = pair.link.bytes_from_a();
    pair.link.restore();
    wait_until("the synchronisation to be under way", LONG, || {
        Ok(pair.link.bytes_from_a().0 > before + (2 << 20))
    })?;
    pair.link.cut();
    wait_until("syncintr", LONG, || Ok(pair.a.hook_lines().iter().any(|line| line == "syncintr disk0")))?;
    pair.link.restore();
    wait_until("syncdone", LONG, || Ok(pair.a.hook_lines().iter().any(|line| line == "syncdone disk0")))?;
    let lines = pair.a.hook_lines();
    let count = |event: &str| lines.iter().filter(|line| line.starts_with(event)).count();
    assert_eq!((count("syncstart"), count("syncintr"), count("syncdone")), (2, 1, 1), "{lines:?}");
    assert!(!pair.b.hook_lines().iter().any(|line| line.starts_with("sync")), "the secondary has none");
    pair.finish()
}

/// A hook that fails or cannot be run is an error in the log and nothing more.
#[test]
fn a_hook_that_fails_is_reported() -> Outcome {
    let pair = Pair::started(Setup::with("exec @dir@/nosuch"))?;
    pair.a.role("primary", "disk0")?;
    wait_until("the log to name the hook", SHORT, || {
        Ok(pair.a.log().lines().any(|line| line.contains("[ERROR]") && line.contains("nosuch")))
    })?;
    let mut volume = Volume::fresh(&pair.a, "disk0")?;
    volume.scribble(1, 0, 4096)?;
    pair.finish()
}
