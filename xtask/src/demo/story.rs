//! What happens in the demo, in order.

use hast_nbd::client::Client;
use hast_tests::{Context, Failure, LONG, disk, wait_until};

use super::node::{Nodes, PROVIDER, RESOURCE, Which};
use super::teller::{Teller, bytes};

/// Bytes written before the failover.
const PATTERN: usize = 32 << 20;
/// Bytes written while the first node is down.
const MORE: usize = 1 << 20;
/// Where those go.
const MORE_AT: u64 = 128 << 20;
/// One NBD request.
const BLOCK: usize = 1 << 20;

/// Plays the whole story and gives the verdict.
pub(crate) fn play(nodes: &mut Nodes, teller: &Teller) -> Result<String, Failure> {
    begin(nodes, teller)?;
    let pattern = disk::pattern(1, PATTERN);
    write(nodes, teller, &pattern)?;
    fail_over(nodes, teller, &pattern)?;
    let moved = bring_back(nodes, teller)?;
    Ok(format!(
        "{} written on a were read back from b after a was killed; bringing a back moved {} of {}",
        bytes(PATTERN as u64),
        bytes(moved),
        bytes(PROVIDER),
    ))
}

fn begin(nodes: &mut Nodes, teller: &Teller) -> Result<(), Failure> {
    teller.step(&format!("Two nodes, a and b, each with a file of {} as its disk", bytes(PROVIDER)));
    teller.say(&format!("Both read {}; every command below gets it with -c,", nodes.conf().display()));
    teller.say("and -N a or -N b, because here one machine plays both.");
    for node in [&nodes.a, &nodes.b] {
        teller.hastctl(node, &["create", "-e", "64k", RESOURCE])?;
    }

    teller.step("Start hastd on both, b as secondary, a as primary");
    nodes.start(Which::A)?;
    nodes.start(Which::B)?;
    teller.hastctl(&nodes.b, &["role", "secondary", RESOURCE])?;
    teller.hastctl(&nodes.a, &["role", "primary", RESOURCE])?;
    nodes.a.wait_in_step(RESOURCE)?;
    teller.hastctl(&nodes.a, &["status"])?;
    teller.hastctl(&nodes.b, &["status"])?;
    Ok(())
}

fn write(nodes: &Nodes, teller: &Teller, pattern: &[u8]) -> Result<(), Failure> {
    teller.step(&format!("Write {} to a's device and read them back", bytes(pattern.len() as u64)));
    teller.say(&format!("The device is an NBD export on {}", nodes.a.socket(RESOURCE).display()));
    let client = nodes.a.client(RESOURCE)?;
    put(&client, 0, pattern)?;
    client.flush().context("flush")?;
    compare(&client, 0, pattern).context("reading back on a")?;
    client.disconnect().context("disconnect")?;
    teller.say("Read back: identical.");
    teller.hastctl(&nodes.a, &["list", RESOURCE])
}

fn fail_over(nodes: &mut Nodes, teller: &Teller, pattern: &[u8]) -> Result<(), Failure> {
    teller.step("Kill node a, hastd and worker, with SIGKILL, and make b the primary");
    nodes.kill(Which::A)?;
    teller.hastctl(&nodes.b, &["role", "primary", RESOURCE])?;
    let client = nodes.b.client(RESOURCE)?;
    compare(&client, 0, pattern).context("reading on b")?;
    teller.say(&format!("b has all {}: identical.", bytes(pattern.len() as u64)));
    put(&client, MORE_AT, &disk::pattern(2, MORE))?;
    client.flush().context("flush")?;
    client.disconnect().context("disconnect")?;
    teller.say(&format!("Meanwhile {} more were written on b.", bytes(MORE as u64)));
    teller.hastctl(&nodes.b, &["status"])
}

fn bring_back(nodes: &mut Nodes, teller: &Teller) -> Result<u64, Failure> {
    teller.step("Start a again, as secondary; only what may differ is copied");
    nodes.start(Which::A)?;
    let (before, _) = nodes.toward_a.bytes();
    teller.hastctl(&nodes.a, &["role", "secondary", RESOURCE])?;
    nodes.b.wait_in_step(RESOURCE)?;
    teller.hastctl(&nodes.b, &["status"])?;
    teller.hastctl(&nodes.a, &["status"])?;
    let (a, b) = (nodes.a.provider(RESOURCE), nodes.b.provider(RESOURCE));
    wait_until("both disks to hold the same", LONG, || Ok(disk::same_data(&a, &b).is_ok()))?;
    let (after, _) = nodes.toward_a.bytes();
    let moved = after.saturating_sub(before);
    let percent = moved as f64 * 100.0 / PROVIDER as f64;
    teller.say(&format!(
        "Synchronised: {} crossed the network, {percent:.1} % of the disk; both disks are identical.",
        bytes(moved)
    ));
    Ok(moved)
}

fn put(client: &Client, at: u64, data: &[u8]) -> Result<(), Failure> {
    let mut offset = at;
    for block in data.chunks(BLOCK) {
        client.write(offset, block).context(format!("write at {offset}"))?;
        offset = offset.saturating_add(block.len() as u64);
    }
    Ok(())
}

fn compare(client: &Client, at: u64, data: &[u8]) -> Result<(), Failure> {
    let mut offset = at;
    for block in data.chunks(BLOCK) {
        let found = client.read(offset, block.len()).context(format!("read at {offset}"))?;
        if found != block {
            return Failure::because(format!("the data at {offset} are not what was written"));
        }
        offset = offset.saturating_add(block.len() as u64);
    }
    Ok(())
}
