//! Our primary's handshake, as the original would receive it.

use hast_format::nv::Writer;
use hast_tests::peer::{Packet, Stand};
use hast_tests::{Context, Failure, Outcome, Pair, SHORT, disk, wait_until};

use crate::captures;
use crate::scripted::{Primary, Secondary, first_answer, refusal, virgin_answer};
use crate::session::{DISK, captured_pair};

/// A pair whose node a runs as primary and whose node b is a script.
pub(crate) fn primary(statements: &str) -> Result<(Pair, Stand), Failure> {
    let mut pair = captured_pair(statements)?;
    let stand = Stand::at(pair.b_listens())?;
    pair.a.start()?;
    pair.a.role("primary", DISK)?;
    Ok((pair, stand))
}

/// The same with the link cut, so that the primary works alone; `restore` it to let them meet.
pub(crate) fn primary_alone(statements: &str) -> Result<(Pair, Stand), Failure> {
    let mut pair = captured_pair(statements)?;
    let stand = Stand::at(pair.b_listens())?;
    pair.link.cut();
    pair.a.start()?;
    pair.a.role("primary", DISK)?;
    Ok((pair, stand))
}

#[test]
fn first_contact_is_the_original_s() -> Outcome {
    let (pair, stand) = primary("")?;
    let accepted = Primary::accept(&stand, &virgin_answer()?)?;
    let first = &captures::packets("wire-handshake-virgin.c0.p2s")?[0];
    // One pair more, which the original does not look at, says what this node knows beyond it.
    let ours = ["hast_ext"];
    assert_eq!(accepted.first.version, first.version);
    assert_eq!(accepted.first.fields_without(&ours), first.fields());
    assert_eq!(
        accepted.first.list().str("hast_ext"),
        Some("sync-marks busy parting alive connection zero-deletes reasons")
    );
    let second = &captures::packets("wire-handshake-virgin.c1.p2s")?[0];
    let aside = ["token", "resuid"];
    assert_eq!(accepted.second.version, second.version);
    assert_eq!(accepted.second.fields_without(&aside), second.fields_without(&aside));
    let names = |packet: &Packet| packet.fields().into_iter().map(|field| field.name).collect::<Vec<_>>();
    assert_eq!(names(&accepted.second), names(second), "in the same order");
    let resuid = accepted.second.list().u64("resuid").unwrap_or(0);
    assert_ne!(resuid, 0);
    // It was durable before it was sent.
    assert_eq!(disk::metadata(&pair.a.provider(DISK))?.resuid, resuid);
    pair.a.wait_status(DISK, "complete")?;
    assert_eq!(pair.a.number(DISK, "dirty")?, 0, "two virgins have nothing to copy");
    let served = accepted.serve(&Secondary::empty());
    pair.finish()?;
    served.join().expect("the script ends")
}

/// `virgin` goes only into the attempt that draws the resuid; a later header says nothing of the kind.
#[test]
fn a_second_attempt_is_no_virgin() -> Outcome {
    let (pair, stand) = primary("")?;
    // The first attempt breaks off before it is answered.
    let mut out = stand.accept()?;
    out.receive()?;
    out.send(&first_answer()?)?;
    let mut inward = stand.accept()?;
    let drawn = inward.receive()?;
    assert!(drawn.list().contains("virgin"));
    drop((out, inward));
    let accepted = Primary::accept(&stand, &virgin_answer()?)?;
    assert!(!accepted.second.list().contains("virgin"));
    assert_eq!(accepted.second.list().u64("resuid"), drawn.list().u64("resuid"));
    drop(accepted);
    pair.finish()
}

/// Refused with `wait`: the device exists, tries again each second, and serves alone after `timeout`.
#[test]
fn refused_with_wait() -> Outcome {
    let (pair, stand) = primary("timeout 10")?;
    let client = pair.a.client(DISK)?;
    let errmsg = "Remote node acts as primary for the resource and not as secondary.";
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| client.write(0, &disk::pattern(1, 4096)));
        let mut refusals = 0;
        while !writer.is_finished() {
            let Ok(mut out) = stand.accept_within(SHORT) else { break };
            out.receive()?;
            out.send(&refusal(errmsg, true))?;
            refusals += 1;
        }
        // How many there are in ten seconds depends on the machine, that I/O waits for some of them does not.
        assert!(refusals >= 3, "I/O was served after {refusals} refusals, before the wait was over");
        writer.join().expect("the writer does not panic").context("writing")
    })?;
    pair.a.wait_log(errmsg)?;
    assert_eq!(client.read(0, 4096)?, disk::pattern(1, 4096));
    assert_eq!(pair.a.status(DISK)?, "degraded");
    pair.finish()
}

/// Refused without `wait`: an ordinary retry; meanwhile it serves alone.
#[test]
fn refused_without_wait() -> Outcome {
    let (pair, stand) = primary("timeout 20")?;
    let errmsg = "Remote node acts as init for the resource and not as secondary.";
    let client = pair.a.client(DISK)?;
    for _ in 0..2 {
        let mut out = stand.accept()?;
        out.receive()?;
        out.send(&refusal(errmsg, false))?;
        out.expect_closed()?;
    }
    pair.a.wait_log(errmsg)?;
    client.write(0, &disk::pattern(1, 4096))?;
    // And the moment the other side is willing, all is well.
    let secondary = Secondary::empty();
    let accepted = Primary::accept(&stand, &virgin_answer()?)?;
    accepted.serve(&secondary);
    pair.a.wait_in_step(DISK)?;
    secondary.wait_same(&pair)?;
    pair.finish()
}

/// Refusals in the second step: shown, retried, and a split-brain fires its hook.
fn refused_late(answer: &Packet, errmsg: &str, hook: bool) -> Outcome {
    let (pair, stand) = primary("exec @hook@")?;
    for _ in 0..2 {
        let mut accepted = Primary::accept(&stand, answer)?;
        accepted.out.expect_closed()?;
        accepted.inward.expect_closed()?;
    }
    pair.a.wait_log(errmsg)?;
    assert_eq!(pair.a.status(DISK)?, "degraded");
    let client = pair.a.client(DISK)?;
    client.write(0, &[1; 512])?;
    if hook {
        wait_until("the hook", SHORT, || {
            Ok(pair.a.hook_lines().iter().any(|line| line == "split-brain disk0"))
        })?;
    }
    assert!(!pair.a.hook_lines().iter().any(|line| line == "connect disk0"));
    pair.finish()
}

/// The second answer of the captured first contact, with other numbers or a refusal at its end.
fn bent(datasize: i64, extentsize: i32, errmsg: Option<&str>) -> Packet {
    let mut nv = Writer::new();
    nv.i64("datasize", datasize).i32("extentsize", extentsize).u64("localcnt", 1).u64("remotecnt", 0);
    match errmsg {
        Some(errmsg) => nv.str("errmsg", errmsg),
        None => nv.u8("syncsrc", 1).u32("mapsize", 0),
    };
    Packet::new(2, &nv)
}

#[test]
fn a_split_brain_answer() -> Outcome {
    let errmsg = "Split-brain condition!";
    refused_late(&bent(4_189_696, 2 << 20, Some(errmsg)), errmsg, true)
}

#[test]
fn a_resuid_mismatch() -> Outcome {
    let errmsg = "Resource unique ID mismatch (primary=1, secondary=2).";
    refused_late(&bent(4_189_696, 2 << 20, Some(errmsg)), errmsg, false)
}

#[test]
fn another_datasize() -> Outcome {
    let captured = captures::packets("wire-refused-datasize.c0.s2p")?.swap_remove(1);
    refused_late(&captured, "Data size differs between nodes (local=4189696, remote=3141120).", false)
}

#[test]
fn another_extentsize() -> Outcome {
    let answer = bent(4_189_696, 1 << 20, None);
    refused_late(&answer, "Extent size differs between nodes (local=2097152, remote=1048576).", false)
}

/// With a peer of version 1 a memsync primary works as fullsync, in frames of version 1.
#[test]
fn a_secondary_of_version_1() -> Outcome {
    let (pair, stand) = primary("replication memsync")?;
    let mut out = stand.accept()?;
    out.receive()?;
    let answer = &captures::packets("wire-version-negotiation.c1.s2p")?[0];
    out.send(answer)?;
    let mut inward = stand.accept()?;
    let second = inward.receive()?;
    assert_eq!(second.version, 1);
    let mut virgin = virgin_answer()?;
    virgin.version = 1;
    out.send(&virgin)?;
    let secondary = Secondary::empty();
    let accepted = Primary { out, inward, first: second.clone(), second };
    accepted.serve(&secondary);
    pair.a.wait_status(DISK, "complete")?;
    pair.a.client(DISK)?.write(0, &disk::pattern(1, 4096))?;
    let seen = secondary.take_seen();
    assert!(!seen.is_empty());
    for request in &seen {
        assert_eq!(request.version, 1);
        assert!(!request.list().contains("memsync"));
    }
    assert_eq!(
        pair.a.value(DISK, "replication")?.as_deref(),
        Some("memsync"),
        "the configuration is unchanged"
    );
    pair.finish()
}

/// Nothing to send for 10 s: a keepalive, byte for byte.
#[test]
fn keepalives() -> Outcome {
    let (pair, stand) = primary("")?;
    let mut accepted = Primary::accept(&stand, &virgin_answer()?)?;
    let wanted = &captures::packets("wire-keepalive.c0.p2s")?[1];
    let mut found = accepted.out.receive()?;
    // Ours flushes both nodes before it calls them equal; the original does not ask.
    while found.list().u8("cmd") == Some(4) {
        let mut nv = Writer::new();
        nv.u64("seq", found.list().u64("seq").unwrap_or(0));
        accepted.inward.send(&Packet::new(2, &nv))?;
        found = accepted.out.receive()?;
    }
    assert_eq!((found.version, found.fields()), (wanted.version, wanted.fields()));
    assert_eq!(found.bytes().len(), 27);
    pair.finish()
}
