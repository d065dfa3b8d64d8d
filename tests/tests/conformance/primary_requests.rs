//! Our primary's requests: the same operations on the device as in the captures must put the same
//! frames on the wire, `seq` aside. Deletes are the exception: an original cannot say what its disk leaves of a deleted
//! range, so none is sent to it (D1).

use hast_tests::peer::{Field, Packet};
use hast_tests::{Context, Failure, Outcome, SHORT, disk, wait_until};

use crate::captures;
use crate::primary_handshake::primary;
use crate::scripted::{Faults, Primary, Secondary, virgin_answer};
use crate::session::DISK;

/// The statements of resource disk0 in the capture's own hast.conf.
fn statements(name: &str) -> Result<String, Failure> {
    let path = format!("{}/vectors/wire/wire-{name}.txt", env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(&path).context(path)?;
    let inside = text.lines().skip_while(|line| line.trim() != "resource disk0 {").skip(1);
    let statements = inside.take_while(|line| !line.trim().starts_with("on ")).map(str::trim);
    Ok(statements.collect::<Vec<_>>().join("\n"))
}

/// The pairs that must be equal. A sequence number is each node's own; LZF need only decode to the
/// same, so what depends on its bytes is left out.
fn comparable(packet: &Packet) -> Vec<Field> {
    let lzf = packet.list().str("compression") == Some("lzf");
    packet.fields_without(if lzf { &["seq", "hash", "size"] } else { &["seq"] })
}

/// Waits until the secondary has seen this many requests, flushes that nobody asked for aside.
fn wait_seen(secondary: &Secondary, wanted: &Packet) -> Result<Packet, Failure> {
    let mut seen = Vec::new();
    let command = wanted.list().u8("cmd");
    wait_until("the request to reach the secondary", SHORT, || {
        seen.extend(secondary.take_seen());
        // A background flush is ours alone; the original has none.
        seen.retain(|packet| packet.list().u8("cmd") != Some(4) || command == Some(4));
        Ok(!seen.is_empty())
    })?;
    assert_eq!(seen.len(), 1, "one operation, one request: {seen:?}");
    Ok(seen.swap_remove(0))
}

fn same_requests(name: &str) -> Outcome {
    let (pair, stand) = primary(&statements(name)?)?;
    let secondary = Secondary::empty();
    Primary::accept(&stand, &virgin_answer()?)?.serve(&secondary);
    // Connected is not enough: the counts are saved once the nodes are equal.
    pair.a.wait_in_step(DISK)?;
    let client = pair.a.client(DISK)?;
    let before = disk::metadata(&pair.a.provider(DISK))?;
    let is_delete = |packet: &Packet| packet.list().u8("cmd") == Some(3);
    let captured = captures::packets(&format!("wire-{name}.c0.p2s"))?;
    let mut seqs = std::collections::BTreeSet::new();
    for wanted in captured.iter().skip(1).filter(|packet| packet.list().u8("cmd") != Some(5)) {
        let list = wanted.list();
        let (offset, length) = (list.u64("offset").unwrap_or(0), list.u64("length").unwrap_or(0));
        assert!(!secondary.take_seen().iter().any(is_delete));
        match list.u8("cmd") {
            Some(2) => client.write(offset, &wanted.decoded()?)?,
            Some(3) => {
                // What is asked for next comes alone.
                client.trim(offset, u32::try_from(length)?)?;
                continue;
            }
            Some(4) => client.flush()?,
            other => panic!("cmd {other:?} in {name}"),
        }
        let found = wait_seen(&secondary, wanted)?;
        assert_eq!(found.version, wanted.version);
        assert_eq!(comparable(&found), comparable(wanted), "{name}");
        assert_eq!(found.decoded()?, wanted.decoded()?, "{name}");
        let seq = found.list().u64("seq").context("seq")?;
        assert!(seq != 0 && seqs.insert(seq), "seq {seq} was used before");
    }
    client.flush()?;
    assert!(!secondary.take_seen().iter().any(is_delete));
    secondary.wait_same(&pair)?;
    assert_eq!(pair.a.number(DISK, "dirty")?, 0);
    assert_eq!(disk::metadata(&pair.a.provider(DISK))?.localcnt, before.localcnt);
    pair.finish()
}

#[test]
fn writes_in_every_mode() -> Outcome {
    for name in ["write-async", "write-fullsync", "write-memsync"] {
        same_requests(name).context(name)?;
    }
    Ok(())
}

#[test]
fn data_with_every_checksum_and_compression() -> Outcome {
    for name in [
        "data-crc32-hole",
        "data-crc32-lzf",
        "data-crc32-none",
        "data-none-hole",
        "data-none-lzf",
        "data-sha256-hole",
        "data-sha256-none",
    ] {
        same_requests(name).context(name)?;
    }
    Ok(())
}

#[test]
fn deletes_and_flushes() -> Outcome {
    for name in ["delete-flush-async", "delete-flush-fullsync", "delete-flush-memsync"] {
        same_requests(name).context(name)?;
    }
    Ok(())
}

/// A reference peer gets at most 128 KiB per request, whatever the client sends.
#[test]
fn large_writes_are_split() -> Outcome {
    let (pair, stand) = primary("replication fullsync")?;
    let secondary = Secondary::empty();
    Primary::accept(&stand, &virgin_answer()?)?.serve(&secondary);
    pair.a.wait_status(DISK, "complete")?;
    let client = pair.a.client(DISK)?;
    client.write(512, &disk::pattern(1, (3 << 20) + 512))?;
    let mut writes = secondary.take_seen();
    writes.retain(|packet| packet.list().u8("cmd") == Some(2));
    assert!(writes.len() >= 25);
    let lengths: Vec<u64> = writes.iter().filter_map(|packet| packet.list().u64("length")).collect();
    assert!(lengths.iter().all(|length| *length <= 131_072));
    assert_eq!(lengths.iter().sum::<u64>(), (3 << 20) + 512);
    secondary.wait_same(&pair)?;
    pair.finish()
}

/// A write that the secondary could not store succeeds on the primary, and its extent stays to be
/// synchronised (L2); the next connection brings it over.
fn failed_writes(replication: &str) -> Outcome {
    let (pair, stand) = primary(&format!("replication {replication}"))?;
    let secondary = Secondary::empty();
    let served = Primary::accept(&stand, &virgin_answer()?)?.serve(&secondary);
    pair.a.wait_status(DISK, "complete")?;
    let client = pair.a.client(DISK)?;
    secondary.set_faults(Faults { writes: true, ..Faults::default() });
    client.write(4096, &disk::pattern(1, 8192))?;
    wait_until("the extent to be dirty", SHORT, || Ok(pair.a.number(DISK, "dirty")? == 2 << 20))?;
    assert_eq!(client.read(4096, 8192)?, disk::pattern(1, 8192));
    pair.a.wait_log("Remote request failed")?;
    secondary.set_faults(Faults::default());
    client.flush()?;
    assert!(pair.a.number(DISK, "dirty")? == 2 << 20, "nothing is clean that the other node never stored");
    // Break the link: the next connection synchronises it.
    pair.link.cut();
    served.join().expect("the script ends")?;
    pair.link.restore();
    let metadata = disk::metadata(&pair.a.provider(DISK))?;
    let answer = crate::scripted::answer(0, 0, 1, &[0; 512]);
    let accepted = Primary::accept(&stand, &answer)?;
    assert!(metadata.localcnt >= 1, "the secondary is known to be out of date");
    accepted.serve(&secondary);
    pair.a.wait_in_step(DISK)?;
    secondary.wait_same(&pair)?;
    pair.finish()
}

#[test]
fn failed_writes_fullsync() -> Outcome {
    failed_writes("fullsync")
}

#[test]
fn failed_writes_memsync() -> Outcome {
    failed_writes("memsync")
}

#[test]
fn failed_writes_async() -> Outcome {
    failed_writes("async")
}

/// "There is no cache to flush" is no failure.
#[test]
fn flush_that_is_not_supported() -> Outcome {
    let (pair, stand) = primary("")?;
    let secondary = Secondary::empty();
    secondary.set_faults(Faults { flushes: true, ..Faults::default() });
    Primary::accept(&stand, &virgin_answer()?)?.serve(&secondary);
    pair.a.wait_status(DISK, "complete")?;
    let client = pair.a.client(DISK)?;
    client.write(0, &disk::pattern(1, 4096))?;
    client.flush()?;
    client.flush()?;
    assert_eq!(pair.a.status(DISK)?, "complete");
    pair.a.wait_in_step(DISK)?;
    let errors = pair.a.value(DISK, "local errors")?;
    assert_eq!(errors.as_deref(), Some("read: 0, write: 0, delete: 0, flush: 0"));
    pair.finish()
}

/// A reply that makes no sense ends the connection, not the client's request.
#[test]
fn a_senseless_reply() -> Outcome {
    let (pair, stand) = primary("replication fullsync")?;
    let mut accepted = Primary::accept(&stand, &virgin_answer()?)?;
    pair.a.wait_status(DISK, "complete")?;
    let client = pair.a.client(DISK)?;
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| client.write(0, &disk::pattern(1, 4096)));
        accepted.out.receive()?;
        accepted.inward.send_bytes(&[2, 0xff, 0xff, 0xff, 0xff])?;
        writer.join().expect("the writer does not panic")?;
        Ok::<_, Failure>(())
    })?;
    assert_eq!(client.read(0, 4096)?, disk::pattern(1, 4096));
    // It connects anew and brings the write over.
    let secondary = Secondary::empty();
    Primary::accept(&stand, &crate::scripted::answer(0, 0, 1, &[0; 512]))?.serve(&secondary);
    pair.a.wait_in_step(DISK)?;
    secondary.wait_same(&pair)?;
    pair.finish()
}
