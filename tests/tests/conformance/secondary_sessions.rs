//! Whole captured sessions, played to our secondary by hand: the answers must be the original's, and
//! the disk must hold what was written.

use hast_tests::peer::{Packet, Wire};
use hast_tests::{Context, Failure, Outcome, disk};

use crate::captures;
use crate::session::{DATASIZE, DISK, secondary, token};

/// Plays `wire-<name>` against a fresh secondary with these statements. The last `unplayed` requests
/// are left out, with the last reply: they met a fault that was put into the original's disk.
fn play(name: &str, statements: &str, unplayed: usize) -> Outcome {
    let (mut out_packets, in_packets) = (
        captures::packets(&format!("wire-{name}.c0.p2s"))?,
        captures::packets(&format!("wire-{name}.c1.p2s"))?,
    );
    let (answers, mut replies) = (
        captures::packets(&format!("wire-{name}.c0.s2p"))?,
        captures::packets(&format!("wire-{name}.c1.s2p"))?,
    );
    out_packets.truncate(out_packets.len() - unplayed);
    replies.truncate(replies.len() - unplayed);

    let pair = secondary(statements)?;
    let mut out = Wire::connect(pair.link.toward_b().hast())?;
    let (first, requests) = out_packets.split_first().context("a first header")?;
    out.send(first)?;
    let answer = out.receive()?;
    same(&answer, &answers[0], &["token"])?;
    let token = token(&answer)?;
    let mut inward = Wire::connect(pair.link.toward_b().hast())?;
    inward.send(&in_packets[0].replacing("token", &token)?)?;
    let answer = out.receive()?;
    same(&answer, &answers[1], &[])?;

    let mut expected_disk = vec![0; usize::try_from(DATASIZE)?];
    for request in requests {
        out.send(request)?;
        apply(request, &mut expected_disk)?;
    }
    let mut got = Vec::new();
    for _ in 0..replies.len() {
        got.push(inward.receive().context(format!("{} of {} replies came", got.len(), replies.len()))?);
    }
    // Whatever else it has to say comes before it closes too.
    out.end()?;
    if let Some(more) = inward.receive_to_end()?.first() {
        return Failure::because(format!("a reply that the original did not send: {:?}", more.fields()));
    }
    check_early_answers(&got)?;
    // Replies may come in any order.
    let order = |packet: &Packet| (packet.list().u64("seq"), packet.list().contains("received"));
    got.sort_by_key(order);
    replies.sort_by_key(order);
    for (reply, wanted) in got.iter().zip(&replies) {
        same(reply, wanted, &[])?;
    }
    drop((out, inward));
    let found = disk::data(&pair.b.provider(DISK))?;
    if let Some(at) = found.iter().zip(&expected_disk).position(|(x, y)| x != y) {
        return Failure::because(format!("wrong byte on the provider at {at}"));
    }
    pair.finish()
}

/// The same pairs and payload, these pairs aside.
fn same(found: &Packet, wanted: &Packet, aside: &[&str]) -> Outcome {
    let (a, b) = (found.fields_without(aside), wanted.fields_without(aside));
    if found.version == wanted.version && a == b && found.payload == wanted.payload {
        return Ok(());
    }
    Failure::because(format!(
        "answer\n  {} {a:?}\nwhere the original sent\n  {} {b:?}",
        found.version, wanted.version
    ))
}

/// `received` comes before the final answer to the same request.
fn check_early_answers(replies: &[Packet]) -> Outcome {
    for (n, reply) in replies.iter().enumerate() {
        let seq = reply.list().u64("seq");
        let later = replies.iter().skip(n + 1);
        if reply.list().contains("received") && !later.clone().any(|other| other.list().u64("seq") == seq) {
            return Failure::because(format!("request {seq:?} was only answered with `received`"));
        }
    }
    Ok(())
}

/// What a request does to a disk.
fn apply(request: &Packet, disk: &mut [u8]) -> Outcome {
    let list = request.list();
    let at = usize::try_from(list.u64("offset").unwrap_or(0))?;
    let length = usize::try_from(list.u64("length").unwrap_or(0))?;
    match list.u8("cmd") {
        Some(2) => disk[at..at + length].copy_from_slice(&request.decoded()?),
        Some(3) => disk[at..at + length].fill(0),
        _ => {}
    }
    Ok(())
}

#[test]
fn handshakes() -> Outcome {
    play("handshake-virgin", "", 0)?;
    play("handshake-virgin-rawheap", "", 0)
}

#[test]
fn writes_in_every_mode() -> Outcome {
    for name in ["write-async", "write-fullsync", "write-memsync", "write-memsync-slowdisk", "write-large"] {
        play(name, "", 0).context(name)?;
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
        play(name, "", 0).context(name)?;
    }
    Ok(())
}

#[test]
fn deletes_and_flushes() -> Outcome {
    for name in ["delete-flush-async", "delete-flush-fullsync", "delete-flush-memsync"] {
        play(name, "", 0).context(name)?;
    }
    Ok(())
}

#[test]
fn keepalives_are_not_answered() -> Outcome {
    play("keepalive", "", 0)
}

/// Every synchronisation request of the original carries seq 1.
#[test]
fn full_synchronisation() -> Outcome {
    play("sync-full-none", "compression none", 0)?;
    play("sync-full-hole", "", 0)?;
    play("sync-full-lzf", "compression lzf", 0)
}

/// Replies are compressed and checksummed as the secondary is configured.
#[test]
fn remote_reads() -> Outcome {
    play("read-remote-none", "compression none", 1)?;
    play("read-remote-hole-crc32", "checksum crc32", 1)
}
