//! wire-requests: single requests, good and bad, and what the original answered to each.

use hast_tests::peer::Packet;
use hast_tests::{Failure, Outcome};

use crate::captures;
use crate::session::{Session, request, secondary, wait_no_worker};

/// Where ours differs from the original on purpose: spec/wire.md, "What the original does with a bad
/// request, and ours".
fn expected(label: &str, captured: Vec<Packet>) -> (Vec<Packet>, bool) {
    // The original stores stale bytes for these; ours closes.
    if label.starts_with("WRITE size < length") || label.starts_with("WRITE without size/data") {
        return (Vec::new(), false);
    }
    // X3: the original loses step and aborts; ours drains the payload and answers.
    if label.starts_with("WRITE unaligned with payload") {
        let mut nv = hast_format::nv::Writer::new();
        nv.u64("seq", 7).i16("error", 22);
        return (vec![Packet::new(2, &nv)], true);
    }
    let open = label.contains("(open)");
    (captured, open)
}

#[test]
fn every_captured_request_is_answered_as_specified() -> Outcome {
    let pair = secondary("")?;
    let json = captures::json("wire-requests")?;
    let connections = json["conns"].as_array().expect("connections");
    assert_eq!(connections.len(), 25);
    for (n, connection) in connections.iter().enumerate() {
        let label = connection["label"].as_str().expect("a label");
        let captured = captures::packets(&format!("wire-requests.c{n}.s2p"))?;
        let (expected, open) = expected(label, captured);
        let in_label = |failure: Failure| Failure::new(format!("{label}: {failure}"));

        let mut session = Session::open(&pair).map_err(in_label)?;
        session.out.send_bytes(&captures::bytes(&format!("wire-requests.c{n}.p2s"))?)?;
        for wanted in &expected {
            let reply = session.inward.receive().map_err(in_label)?;
            assert_eq!(reply.version, wanted.version, "{label}");
            assert_eq!(reply.fields(), wanted.fields(), "{label}");
            assert_eq!(reply.payload, wanted.payload, "{label}");
        }
        if open {
            // Nothing more comes, and the session still works.
            let reply = session.ask(&request(1, 99, 0, 512)).map_err(in_label)?;
            assert_eq!(reply.list().u64("seq"), Some(99), "{label}");
            assert_eq!(reply.list().i16("error"), None, "{label}");
        } else {
            session.inward.expect_closed().map_err(in_label)?;
        }
        drop(session);
        wait_no_worker(&pair).map_err(in_label)?;
        assert_eq!(pair.b.value("disk0", "role")?.as_deref(), Some("secondary"), "{label}");
    }
    // What the good writes wrote, and nothing else: the last one was the memsync write of 0x6d.
    let data = hast_tests::disk::data(&pair.b.provider("disk0"))?;
    assert!(data[..512].iter().all(|byte| *byte == b'm'));
    assert!(data[512..].iter().all(|byte| *byte == 0));
    // Each bad request was explained in the log, as administrators know it.
    let log = pair.b.log();
    for text in [
        "Data length is zero.",
        "Data length is too large (1049088 > 1048576).",
        "Offset 1 is not multiple of sector size.",
        "Length 513 is not multiple of sector size.",
        "Data offset is too large (4194816 > 4189696).",
        "Header is missing 'offset' field.",
        "Header is missing 'length' field.",
        "Header contains no 'seq' field.",
        "Header contains no 'cmd' field.",
        "Header contains invalid 'cmd' (6).",
    ] {
        assert!(log.contains(text), "{text:?} is missing in the log");
    }
    pair.finish()
}
