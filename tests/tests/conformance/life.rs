//! The life of a pair as it was captured from two of the original's nodes, step by step: what `hastctl dump`
//! shows and what the map on disk holds must be the same after each of them.
//!
//! Three things differ between two of ours, on purpose (issue 2): a localcnt never falls, so that the other
//! node's remotecnt follows it; the secondary writes that down, and with it its role; and extent 0, of which
//! a write was in flight when the connection broke, is not forgotten.

use hast_nbd::client::Client;
use hast_tests::{Context, Failure, Node, Outcome, Pair, SHORT, Setup, disk, wait_until};

/// Where the map of such a provider lies.
const MAP: std::ops::Range<usize> = 4096..4608;

/// What the original had on one node after a step: the text of `hastctl dump`, and the map.
fn captured(step: &str) -> Result<(String, Vec<u8>), Failure> {
    let path =
        |end: &str| format!("{}/vectors/metadata/metadata-life-{step}.{end}", env!("CARGO_MANIFEST_DIR"));
    let json: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(path("json"))?)?;
    let dump = json["dump"].as_str().context("a dump")?.to_owned();
    Ok((dump, std::fs::read(path("bin"))?[MAP].to_vec()))
}

/// The dump without the number that each pair draws for itself.
fn without_resuid(dump: &str) -> String {
    dump.lines()
        .map(|line| match line.trim().strip_prefix("resuid: ") {
            Some(number) if number != "0" => "    resuid: drawn\n".to_owned(),
            _ => format!("{line}\n"),
        })
        .collect()
}

/// Waits until the node has what the original had after `step`, but for lines of the dump that `differ`, and
/// a map that begins differently.
fn reaches_but(node: &Node, step: &str, differ: &[(&str, &str)], begins: Option<u8>) -> Outcome {
    let (dump, mut map) = captured(step)?;
    let mut dump = without_resuid(&dump);
    for (theirs, ours) in differ {
        assert!(dump.contains(theirs), "{step}: the original's dump has no {theirs:?}:\n{dump}");
        dump = dump.replace(theirs, ours);
    }
    if let Some(byte) = begins {
        assert_ne!(map[0], byte);
        map[0] = byte;
    }
    let mut found = String::new();
    let result = wait_until(&format!("step {step}"), SHORT, || {
        let shown = without_resuid(&node.ctl(&["dump", "disk0"])?);
        let on_disk = disk::map(&node.provider("disk0"))?;
        found = format!("{shown}map {:02x?}", &on_disk[..8]);
        Ok(shown == dump && on_disk == map)
    });
    result.context(format!("expected\n{dump}map {:02x?}\nfound\n{found}", &map[..8]))
}

/// The same, without any difference.
fn reaches(node: &Node, step: &str) -> Outcome {
    reaches_but(node, step, &[], None)
}

fn write(client: &Client, offset: u64, length: usize) -> Outcome {
    client.write(offset, &disk::pattern(offset + length as u64, length)).context(offset)
}

#[test]
fn every_step_leaves_on_disk_what_the_originals_left() -> Outcome {
    let mut pair = Pair::blank(Setup { extent: 2 << 20, ..Setup::with("compression none") })?;
    for node in [&mut pair.a, &mut pair.b] {
        node.ctl(&["create", "-k", "2", "disk0"])?;
        node.start()?;
    }
    reaches(&pair.a, "0-created")?;

    pair.a.role("primary", "disk0")?;
    reaches(&pair.a, "1-primary-alone")?;
    let client = pair.a.client("disk0")?;
    write(&client, 6 << 20, 4096)?;
    reaches(&pair.a, "2-primary-alone-written")?;

    pair.b.role("secondary", "disk0")?;
    pair.a.wait_status("disk0", "complete")?;
    let counted = [("localcnt: 0", "localcnt: 1")];
    let told = [("remotecnt: 0", "remotecnt: 1")];
    reaches_but(&pair.a, "3-synced-primary", &counted, None)?;
    reaches_but(&pair.b, "3-synced-secondary", &told, None)?;

    // With keepdirty 2 the two extents that were used last stay marked.
    for extent in [0, 1, 2, 4, 5] {
        write(&client, extent << 21, 4096)?;
    }
    reaches_but(&pair.a, "4-keepdirty", &counted, None)?;

    // So that the extents that are marked are so for keepdirty's sake alone, whatever the timing was.
    client.flush().context("flush")?;
    pair.b.kill()?;
    pair.a.wait_status("disk0", "degraded")?;
    for extent in [0, 1, 3, 6] {
        write(&client, extent << 21, 512)?;
    }
    reaches_but(&pair.b, "5-degraded-secondary", &told, None)?;
    pair.a.stop()?;
    reaches_but(&pair.a, "6-primary-stopped", &[("localcnt: 1", "localcnt: 2")], Some(0x4b))?;

    pair.b.start()?;
    pair.b.role("secondary", "disk0")?;
    pair.a.start()?;
    pair.a.role("primary", "disk0")?;
    pair.a.wait_in_step("disk0")?;
    let counted = [("localcnt: 0", "localcnt: 2")];
    reaches_but(&pair.a, "7-resynced-primary", &counted, None)?;

    // Nothing is written for role init.
    pair.a.role("init", "disk0")?;
    pair.b.role("init", "disk0")?;
    reaches_but(&pair.a, "8-init-a", &counted, None)?;

    pair.a.role("secondary", "disk0")?;
    pair.b.role("primary", "disk0")?;
    pair.b.wait_in_step("disk0")?;
    let switched = [counted[0], ("prevrole: primary", "prevrole: secondary")];
    reaches_but(&pair.a, "9-switched-a", &switched, None)?;
    pair.finish()
}
