//! Our primary synchronises with a scripted original, in both directions.

use std::collections::BTreeSet;

use hast_tests::peer::Packet;
use hast_tests::{Outcome, Pair, SHORT, disk, wait_until};

use crate::captures;
use crate::primary_handshake::{primary, primary_alone};
use crate::scripted::{Primary, Secondary, answer, virgin_answer};
use crate::session::{DATASIZE, DISK, captured_pair, change_metadata};

fn length(packet: &Packet) -> u64 {
    packet.list().u64("length").unwrap_or(0)
}

/// Waits until a's counts on disk are these: they are written after the last extent is clean.
fn wait_equalised(pair: &Pair, counts: (u64, u64)) -> Outcome {
    wait_until(&format!("the counts to be {counts:?}"), SHORT, || {
        let metadata = disk::metadata(&pair.a.provider(DISK))?;
        Ok((metadata.localcnt, metadata.remotecnt) == counts)
    })
}

/// A secondary that was created anew asks for everything (the captured answer of wire-sync-full) and
/// gets it, in ordinary writes that do not ask for `received`.
fn full(capture: &str, statements: &str) -> Outcome {
    let (pair, stand) = primary_alone(&format!("{statements}\nexec @hook@"))?;
    let client = pair.a.client(DISK)?;
    client.write(0, &disk::pattern(1, 1 << 20))?;
    client.write(3 << 20, &disk::text(2, 512 << 10))?;
    client.flush()?;
    let whole = captures::packets(capture)?.swap_remove(1);
    assert_eq!(whole.decoded()?[0] & 3, 3, "the capture asks for both extents");
    let secondary = Secondary::new(vec![0xee; usize::try_from(DATASIZE)?]);
    pair.link.restore();
    Primary::accept(&stand, &whole)?.serve(&secondary);
    pair.a.wait_in_step(DISK)?;
    secondary.wait_same(&pair)?;
    wait_until("the hooks", SHORT, || {
        let lines = pair.a.hook_lines();
        Ok(["syncstart disk0", "syncdone disk0"].iter().all(|event| lines.iter().any(|line| line == event)))
    })?;
    let mut seqs = BTreeSet::new();
    let mut copied = 0;
    for request in secondary.take_seen() {
        let list = request.list();
        assert!(!list.contains("memsync"), "{:?}", request.fields());
        assert!(length(&request) <= 131_072);
        assert!(seqs.insert(list.u64("seq")), "every request has a seq of its own");
        if list.u8("cmd") == Some(2) {
            copied += length(&request);
        }
    }
    assert_eq!(copied, DATASIZE);
    // Equalised with what the original said of itself: localcnt 0, remotecnt 0.
    wait_equalised(&pair, (0, 0))?;
    pair.finish()
}

#[test]
fn full_plain() -> Outcome {
    full("wire-sync-full-none.c0.s2p", "compression none")
}

#[test]
fn full_with_holes() -> Outcome {
    full("wire-sync-full-hole.c0.s2p", "compression hole\nchecksum crc32")
}

#[test]
fn full_with_lzf() -> Outcome {
    full("wire-sync-full-lzf.c0.s2p", "compression lzf\nchecksum sha256\nreplication async")
}

/// The secondary has newer data (syncsrc 2): the primary reads them over, and meanwhile a client sees
/// the secondary's data, never its own old ones (T2).
#[test]
fn from_the_secondary() -> Outcome {
    let mut pair = captured_pair("exec @hook@")?;
    let provider = pair.a.provider(DISK);
    change_metadata(&provider, |metadata| metadata.resuid = 4711)?;
    let stand = hast_tests::peer::Stand::at(pair.b_listens())?;
    pair.a.start()?;
    pair.a.role("primary", DISK)?;
    let mut newer = disk::pattern(9, usize::try_from(DATASIZE)?);
    // The second extent is the same on both and is not in the map.
    newer[2 << 20..].fill(0);
    let secondary = Secondary::new(newer.clone());
    let mut map = [0; 512];
    map[0] = 1;
    let accepted = Primary::accept(&stand, &answer(1, 0, 2, &map))?;
    pair.a.wait_status(DISK, "complete")?;
    let client = pair.a.client(DISK)?;
    std::thread::scope(|scope| {
        // Asked before the script has answered anything: nothing of that extent is here yet.
        let reader = scope.spawn(|| client.read((2 << 20) - 4096, 8192));
        wait_until("the first read to be asked for", SHORT, || Ok(pair.link.bytes_from_a().0 > 400))?;
        accepted.serve(&secondary);
        let found = reader.join().expect("the reader does not panic")?;
        assert!(found == newer[(2 << 20) - 4096..(2 << 20) + 4096], "a client got stale data");
        Ok::<_, hast_tests::Failure>(())
    })?;
    pair.a.wait_in_step(DISK)?;
    assert!(disk::data(&provider)? == newer);
    let seen = secondary.take_seen();
    let read: u64 = seen.iter().filter(|packet| packet.list().u8("cmd") == Some(1)).map(length).sum();
    assert!(read >= 2 << 20, "{read}");
    assert!(seen.iter().all(|packet| packet.list().u8("cmd") != Some(2)), "nothing was written over there");
    // Equalised with the secondary's (1, 0).
    wait_equalised(&pair, (0, 1))?;
    pair.finish()
}

/// What was written before the first contact goes over although both nodes are virgin.
#[test]
fn written_before_the_first_contact() -> Outcome {
    let (pair, stand) = primary_alone("")?;
    let client = pair.a.client(DISK)?;
    client.write(4096, &disk::pattern(1, 4096))?;
    client.flush()?;
    pair.link.restore();
    let secondary = Secondary::empty();
    let accepted = Primary::accept(&stand, &virgin_answer()?)?;
    accepted.serve(&secondary);
    pair.a.wait_in_step(DISK)?;
    secondary.wait_same(&pair)?;
    let copied: u64 =
        secondary.take_seen().iter().filter(|p| p.list().u8("cmd") == Some(2)).map(length).sum();
    assert_eq!(copied, 2 << 20, "the one extent that was written");
    pair.finish()
}

/// A map that is too long is cut, whatever lies behind its end (L12).
#[test]
fn a_map_that_is_too_long() -> Outcome {
    let (pair, stand) = primary("")?;
    let mut nv = hast_format::nv::Writer::new();
    nv.i64("datasize", 4_189_696).i32("extentsize", 2 << 20);
    nv.u64("localcnt", 0).u64("remotecnt", 0).u8("syncsrc", 1).u32("mapsize", 4096);
    let mut map = vec![0xff; 4096];
    map[0] = 2;
    let answer = Packet::with_payload(2, &mut nv, &map);
    let secondary = Secondary::empty();
    Primary::accept(&stand, &answer)?.serve(&secondary);
    pair.a.wait_in_step(DISK)?;
    let copied: u64 =
        secondary.take_seen().iter().filter(|p| p.list().u8("cmd") == Some(2)).map(length).sum();
    assert_eq!(copied, DATASIZE - (2 << 20), "the second extent, which is short, and nothing else");
    pair.finish()
}
