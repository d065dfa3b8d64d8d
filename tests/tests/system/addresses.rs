//! Other ways to say where a node is, and other names for the device.

use std::net::TcpListener;

use hast_tests::setup::NodeAddresses;
use hast_tests::{Failure, Outcome, Pair, Setup, disk};

use crate::volume::Volume;

/// A pair without the link: both nodes on one address of this host, told apart by ports, which hastd
/// does not look at when it decides who may connect.
fn direct(host: &str, listen: &str) -> Result<Pair, Failure> {
    let (a, b) = (TcpListener::bind((host, 0))?, TcpListener::bind((host, 0))?);
    let (port_a, port_b) = (a.local_addr()?.port(), b.local_addr()?.port());
    drop((a, b));
    let mut pair = Pair::blank(Setup::default())?;
    let at = |port: u16| format!("{listen}:{port}");
    let ours = NodeAddresses { listen: at(port_a), source: None, remote: at(port_b) };
    let theirs = NodeAddresses { listen: at(port_b), source: None, remote: at(port_a) };
    *pair.addresses() = [ours, theirs];
    pair.write_conf()?;
    pair.create()?;
    pair.start_in_step()?;
    Ok(pair)
}

fn works(pair: Pair, remote: &str) -> Outcome {
    let shown = pair.a.value("disk0", "remoteaddr")?.unwrap_or_default();
    assert!(shown.starts_with(remote), "shown as configured: {shown}");
    let mut volume = Volume::fresh(&pair.a, "disk0")?;
    volume.scribble(1, 0, 1 << 20)?;
    volume.flush()?;
    disk::same_data(&pair.a.provider("disk0"), &pair.b.provider("disk0"))?;
    pair.finish()
}

#[test]
fn over_ipv6() -> Outcome {
    if TcpListener::bind(("::1", 0)).is_err() {
        // A host without IPv6 cannot show this; in CI there must be one.
        assert!(!hast_tests::tools::in_ci(), "no IPv6 loopback");
        eprintln!("SKIPPED: no IPv6 loopback");
        return Ok(());
    }
    works(direct("::1", "tcp6://[::1]")?, "tcp6://[::1]:")
}

#[test]
fn by_host_name() -> Outcome {
    works(direct("127.0.0.1", "tcp4://localhost")?, "tcp4://localhost:")
}

#[test]
fn without_a_protocol() -> Outcome {
    works(direct("127.0.0.1", "127.0.0.1")?, "127.0.0.1:")
}

/// A provider name of its own, in a directory of its own.
#[test]
fn a_slash_in_the_provider_s_name() -> Outcome {
    let pair = Pair::up(Setup::with("name pool/first"))?;
    assert!(pair.a.directory().join("pool/first.sock").exists());
    let mut volume = Volume::fresh(&pair.a, "pool/first")?;
    volume.scribble(1, 0, 4096)?;
    volume.verify()?;
    assert_eq!(pair.a.value("disk0", "provname")?.as_deref(), Some("pool/first"));
    pair.a.role("init", "disk0")?;
    assert!(!pair.a.directory().join("pool/first.sock").exists());
    pair.finish()
}
