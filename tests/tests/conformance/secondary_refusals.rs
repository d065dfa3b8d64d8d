//! First headers that are refused or renegotiated: wire-refused-handshake, wire-version-negotiation,
//! wire-refused-resuid.

use hast_format::nv::Writer;
use hast_tests::link::connect_from;
use hast_tests::peer::{Packet, Wire};
use hast_tests::{Failure, Loopback, Outcome, Pair, Resource, SHORT, Setup, wait_until};

use crate::captures;
use crate::session::{
    Counts, DISK, PLAIN, Session, captured_pair, first_header, second_header, secondary, token,
};

/// Sends the captured header `n` and compares the answer, after which the connection must end.
fn refused(pair: &Pair, n: usize) -> Outcome {
    let mut wire = Wire::connect(pair.link.toward_b().hast())?;
    wire.send_bytes(&captures::bytes(&format!("wire-refused-handshake.c{n}.p2s"))?)?;
    let got = wire.receive_to_end()?;
    let wanted = captures::packets(&format!("wire-refused-handshake.c{n}.s2p"))?;
    let shown = |packets: &[Packet]| packets.iter().map(|p| (p.version, p.fields())).collect::<Vec<_>>();
    assert_eq!(shown(&got), shown(&wanted), "header {n}");
    Ok(())
}

#[test]
fn captured_refusals() -> Outcome {
    let nobody = Loopback::reserve()?;
    let mut other = Resource::named("other");
    other.remote_b = Some(nobody.conf());
    let setup = Setup {
        provider: 4 << 20,
        extent: 2 << 20,
        resources: vec![Resource::named(DISK), other],
        ..Setup::default()
    };
    let mut pair = Pair::blank(setup)?;
    pair.create()?;
    pair.b.start()?;
    refused(&pair, 0)?;
    pair.b.role("primary", DISK)?;
    refused(&pair, 1)?;
    pair.b.role("init", DISK)?;
    pair.b.role("secondary", DISK)?;
    for n in [2, 3, 4, 6, 7] {
        refused(&pair, n)?;
    }
    // 5: an address that nobody knows; closed before a byte is read.
    let stranger = Loopback::reserve()?;
    let mut wire = Wire::over(connect_from(stranger.ip(), pair.b_listens())?)?;
    assert_eq!(wire.receive_to_end().unwrap_or_default(), []);
    // 8: a token of the right size that was never given.
    refused(&pair, 8)?;
    for text in [
        "We act as init for the resource and not as secondary as requested by",
        "We act as primary for the resource and not as secondary as requested by",
        "No resource 'nosuch' as requested by",
        "has no access to the resource",
    ] {
        pair.b.wait_log(text)?;
    }
    pair.finish()
}

#[test]
fn captured_versions() -> Outcome {
    let pair = secondary("")?;
    for n in 0..4 {
        let mut wire = Wire::connect(pair.link.toward_b().hast())?;
        wire.send_bytes(&captures::bytes(&format!("wire-version-negotiation.c{n}.p2s"))?)?;
        let got = wire.receive()?;
        let wanted = &captures::packets(&format!("wire-version-negotiation.c{n}.s2p"))?[0];
        assert_eq!(got.version, wanted.version, "header {n}");
        assert_eq!(got.fields_without(&["token"]), wanted.fields_without(&["token"]), "header {n}");
        token(&got)?;
    }
    pair.finish()
}

/// A refusal in the second step follows the pairs up to `remotecnt`, on the first connection.
fn assert_second_refusal(answer: &Packet, datasize: i64, counts: (u64, u64), errmsg: &str) {
    let mut nv = Writer::new();
    nv.i64("datasize", datasize).i32("extentsize", 2 << 20);
    nv.u64("localcnt", counts.0).u64("remotecnt", counts.1).str("errmsg", errmsg);
    assert_eq!(answer.fields(), Packet::new(2, &nv).fields());
}

#[test]
fn another_resuid() -> Outcome {
    let pair = secondary("exec @hook@")?;
    drop(Session::open(&pair)?);
    crate::session::wait_no_worker(&pair)?;
    let other = Counts { resuid: 16_289_816_082_000_492_570, ..PLAIN };
    for _ in 0..2 {
        let mut session = Session::attempt(&pair, other)?;
        let errmsg = "Resource unique ID mismatch (primary=16289816082000492570, secondary=4711).";
        assert_second_refusal(&session.answer, 4_189_696, (0, 0), errmsg);
        session.out.expect_closed()?;
        session.inward.expect_closed()?;
        assert_eq!(pair.b.value(DISK, "role")?.as_deref(), Some("secondary"));
    }
    pair.b.wait_log("Resource unique ID mismatch (primary=16289816082000492570, secondary=4711)")?;
    pair.b.wait_log("exitcode=78")?;
    // The right one is still welcome.
    Session::open(&pair)?;
    pair.finish()
}

#[test]
fn split_brain() -> Outcome {
    let mut pair = captured_pair("exec @hook@")?;
    crate::session::change_metadata(&pair.b.provider(DISK), |metadata| {
        metadata.resuid = 4711;
        metadata.localcnt = 2;
        metadata.remotecnt = 1;
    })?;
    pair.b.start()?;
    pair.b.role("secondary", DISK)?;
    let before = hast_tests::disk::data(&pair.b.provider(DISK))?;
    let mut session = Session::attempt(&pair, Counts { localcnt: 2, remotecnt: 1, ..PLAIN })?;
    assert_second_refusal(&session.answer, 4_189_696, (2, 1), "Split-brain condition!");
    session.out.expect_closed()?;
    session.inward.expect_closed()?;
    wait_until("the hook", SHORT, || Ok(pair.b.hook_lines().iter().any(|line| line == "split-brain disk0")))?;
    pair.b.wait_log("exitcode=78")?;
    assert!(hast_tests::disk::data(&pair.b.provider(DISK))? == before);
    pair.finish()
}

/// A token is good for one second header, on a first step that still stands (X8).
#[test]
fn tokens_work_once() -> Outcome {
    let pair = secondary("")?;
    let refusal = |token: &[u8]| -> Result<Packet, Failure> {
        let mut wire = Wire::connect(pair.link.toward_b().hast())?;
        wire.send(&second_header(DISK, token, PLAIN))?;
        let answer = wire.receive()?;
        wire.expect_closed()?;
        Ok(answer)
    };
    let no_match = "Token doesn't match.";
    // Before any first step not even zeros match.
    assert_eq!(refusal(&[0; 16])?.list().str("errmsg"), Some(no_match));
    let mut out = Wire::connect(pair.link.toward_b().hast())?;
    out.send(&first_header(DISK))?;
    let first = token(&out.receive()?)?;
    let mut inward = Wire::connect(pair.link.toward_b().hast())?;
    inward.send(&second_header(DISK, &first, PLAIN))?;
    assert!(!out.receive()?.list().contains("errmsg"));
    assert_eq!(refusal(&first)?.list().str("errmsg"), Some(no_match), "a token that was used");
    // The session in progress is none the worse.
    out.send(&crate::session::request(1, 3, 0, 512))?;
    assert_eq!(inward.receive()?.list().u64("seq"), Some(3));
    pair.finish()
}

/// A new first header cancels whatever there is, half-open or complete.
#[test]
fn a_new_first_header_wins() -> Outcome {
    let pair = secondary("")?;
    let mut half = Wire::connect(pair.link.toward_b().hast())?;
    half.send(&first_header(DISK))?;
    let old = token(&half.receive()?)?;
    let mut session = Session::open(&pair)?;
    half.expect_closed()?;
    let mut late = Wire::connect(pair.link.toward_b().hast())?;
    late.send(&second_header(DISK, &old, PLAIN))?;
    assert_eq!(late.receive()?.list().str("errmsg"), Some("Token doesn't match."));
    let mut newer = Session::open(&pair)?;
    session.out.expect_closed()?;
    session.inward.expect_closed()?;
    assert_eq!(newer.read(0, 512)?, vec![0; 512]);
    pair.finish()
}
