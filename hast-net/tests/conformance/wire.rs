//! The captures of single connections, with the description that came with each.

use crate::streams::{self, Typed, check_written_again, configured, cut, decode};
use crate::vectors::{check_pairs, directory, json, masked, names, read, sha256};
use hast_format::nv::List;
use hast_net::frame::{Frame, FrameError};
use hast_net::handshake::{FirstReply, Hello, Refusal, SecondRefusal, SecondReply, texts};
use hast_net::message::{Command, FromPrimary};
use serde_json::Value;

/// How the frames that were made by hand to be refused are taken by ours; all others must be read and
/// written again byte for byte.
enum Odd {
    /// Refused as a frame.
    NoFrame(FrameError),
    /// Refused once it is a whole frame, which closes the connection.
    Closed(&'static str),
    /// Answered with EINVAL.
    Invalid(u64, &'static str),
    /// Read, but what we would write is more than what was sent.
    Incomplete,
}

fn odd(file: &str) -> Option<Odd> {
    let no_data = "write of 512 bytes (seq 7) came with 0 bytes of data";
    let half = "write of 1024 bytes (seq 7) came with 512 bytes of data";
    Some(match file {
        "wire-requests.c6.p2s.bin" | "wire-requests.c14.p2s.bin" => {
            Odd::Invalid(7, "Header is missing 'offset' field.")
        }
        "wire-requests.c7.p2s.bin" => Odd::Invalid(7, "Header is missing 'length' field."),
        "wire-requests.c9.p2s.bin" => Odd::Incomplete,
        "wire-requests.c10.p2s.bin" | "wire-requests.c11.p2s.bin" => {
            Odd::Invalid(0, "Header contains no 'seq' field.")
        }
        "wire-requests.c12.p2s.bin" => Odd::Closed("Header contains no 'cmd' field."),
        "wire-requests.c13.p2s.bin" => Odd::Closed("Header contains invalid 'cmd' (6)."),
        "wire-requests.c16.p2s.bin" => Odd::Closed(half),
        "wire-requests.c17.p2s.bin" => {
            Odd::NoFrame(FrameError::PayloadTooLong { size: 1_049_088, limit: 1_048_576 })
        }
        "wire-requests.c18.p2s.bin" => Odd::Closed(no_data),
        "wire-requests.c20.p2s.bin" => Odd::Closed("crc32 hash mismatch in 512 bytes of data"),
        "wire-requests.c21.p2s.bin" => Odd::Closed("unknown checksum algorithm 'md5'"),
        "wire-requests.c22.p2s.bin" => Odd::Closed("unknown compression algorithm 'zstd'"),
        "wire-refused-handshake.c4.p2s.bin" => Odd::Closed("no 'resource' field in the header"),
        "wire-refused-handshake.c6.p2s.bin" => Odd::NoFrame(FrameError::Version(3)),
        "wire-refused-handshake.c7.p2s.bin" => Odd::Closed("token of invalid size (expected 16, got 8)"),
        "wire-refused-handshake.c8.p2s.bin" | "wire-version-negotiation.c2.p2s.bin" => Odd::Incomplete,
        _ => return None,
    })
}

/// Runs `check` on every stream of every capture: its description, its name and its bytes.
fn for_each_stream(mut check: impl FnMut(&Value, &str, &[u8])) -> usize {
    let wire = directory("wire");
    let mut streams = 0;
    for name in names(&wire, ".json") {
        for connection in json(&wire, &name)["conns"].as_array().unwrap() {
            for direction in ["p2s", "s2p"] {
                let stream = &connection[direction];
                let file = stream["file"].as_str().unwrap().trim_end_matches(".xz");
                let bytes = read(&wire, file);
                check(stream, file, &bytes);
                streams += 1;
            }
        }
    }
    streams
}

#[test]
fn every_captured_stream_is_cut_and_decoded_as_described() {
    let mut frames_seen = 0;
    let streams = for_each_stream(|stream, file, bytes| {
        assert_eq!(stream["sha256"], sha256(bytes), "{file}");
        let (frames, end) = cut(bytes, usize::MAX);
        if let Some(Odd::NoFrame(error)) = odd(file) {
            assert_eq!(end, Err(error), "{file}");
            assert!(frames.is_empty());
            return;
        }
        assert_eq!(end, Ok(true), "{file} ends between two frames");
        let described = stream["frames"].as_array().unwrap();
        assert_eq!(frames.len(), described.len(), "{file}");
        for (index, (frame, described)) in frames.iter().zip(described).enumerate() {
            check_described(frame, described, &format!("{file} frame {index}"));
            frames_seen += 1;
        }
    });
    assert!(streams > 200, "only {streams} streams");
    assert!(frames_seen > 450, "only {frames_seen} frames");
}

/// Version, pairs, payload as sent and as decoded.
fn check_described(frame: &Frame, described: &Value, what: &str) {
    let list = frame.list().unwrap();
    assert_eq!(described["version"], frame.version, "{what}");
    assert_eq!(described["nvsize"], frame.nv.len(), "{what}");
    check_pairs(&list, &described["nv"], what);
    assert_eq!(described.get("payload_len").is_some(), frame.payload.is_some(), "{what}");
    let Some(payload) = &frame.payload else { return };
    assert_eq!(described["payload_len"], payload.len(), "{what}");
    assert_eq!(described["payload_sha256"], sha256(payload), "{what}");
    let mut decoded = frame.clone();
    if hast_net::payload::decode(&mut decoded, streams::DECODED, &hast_net::buffer::Pool::new()).is_ok() {
        let decoded = decoded.payload.unwrap();
        assert_eq!(described["decoded_len"], decoded.len(), "{what}");
        assert_eq!(described["decoded_sha256"], sha256(&decoded), "{what}");
    } else {
        assert!(what.starts_with("wire-requests.c2"), "{what} does not decode");
    }
}

#[test]
fn every_captured_stream_is_typed_and_written_again_byte_for_byte() {
    let mut kinds = std::collections::BTreeMap::<&str, usize>::new();
    for_each_stream(|_, file, bytes| {
        let (frames, _) = cut(bytes, usize::MAX);
        let compression = if odd(file).is_some() { None } else { Some(configured(&frames)) };
        for (index, frame) in frames.iter().enumerate() {
            let what = format!("{file} frame {index}");
            let typed = decode(frame.clone());
            match (odd(file), &typed) {
                (None, Ok(typed)) => {
                    *kinds.entry(kind(typed)).or_default() += 1;
                    if let Typed::SecondReply(SecondReply::Refused(refused), _) = typed {
                        assert_eq!(refused.parted, None, "{what}");
                        check_refusal(frame, &refused.errmsg);
                    } else {
                        check_written_again(frame, typed, compression.unwrap(), &what);
                    }
                }
                (Some(Odd::Closed(reason)), Err(error)) => assert_eq!(error, reason, "{what}"),
                (
                    Some(Odd::Invalid(number, text)),
                    Ok(Typed::FromPrimary(FromPrimary::Invalid { seq, memsync, reason })),
                ) => {
                    assert_eq!((*seq, *memsync, reason.as_str()), (number, false, text), "{what}");
                }
                (Some(Odd::Incomplete), Ok(_)) => {}
                (_, outcome) => panic!("{what}: {outcome:?}"),
            }
        }
    });
    for kind in
        ["first hello", "first answer", "refusal", "second hello", "second answer", "map", "second refusal"]
    {
        assert!(kinds.get(kind).is_some_and(|&n| n > 0), "no {kind} in {kinds:?}");
    }
    for kind in ["read", "write", "delete", "flush", "memsync", "keepalive", "received", "error", "data"] {
        assert!(kinds.get(kind).is_some_and(|&n| n > 0), "no {kind} in {kinds:?}");
    }
}

/// A name for what the captures must at least contain.
fn kind(typed: &Typed) -> &'static str {
    match typed {
        Typed::Hello(Hello::First(_)) => "first hello",
        Typed::Hello(Hello::Second(_)) => "second hello",
        Typed::FirstReply(FirstReply::Answer(_)) => "first answer",
        Typed::FirstReply(FirstReply::Refused(_)) => "refusal",
        Typed::SecondReply(SecondReply::Answer(_), None) => "second answer",
        Typed::SecondReply(SecondReply::Answer(_), Some(_)) => "map",
        Typed::SecondReply(SecondReply::Refused(_), _) => "second refusal",
        Typed::FromPrimary(FromPrimary::Keepalive) => "keepalive",
        Typed::FromPrimary(FromPrimary::Invalid { .. }) => "invalid",
        Typed::FromPrimary(FromPrimary::Mark(_)) => unreachable!("an original sends no marks"),
        Typed::FromPrimary(FromPrimary::Farewell { .. }) => unreachable!("an original gives no reasons"),
        Typed::FromPrimary(FromPrimary::Request(request)) => match request.command {
            Command::Read => "read",
            Command::Write if request.memsync => "memsync",
            Command::Write => "write",
            Command::Delete => "delete",
            Command::Flush => "flush",
        },
        Typed::Reply(reply) if reply.received => "received",
        Typed::Reply(reply) if reply.error.is_some() => "error",
        Typed::Reply(reply) if reply.data.is_some() => "data",
        Typed::Reply(_) => "reply",
    }
}

/// The refusal of the second step is written by the secondary's own type.
fn check_refusal(frame: &Frame, errmsg: &str) {
    let list = frame.list().unwrap();
    let refusal = SecondRefusal {
        datasize: list.i64("datasize").unwrap().cast_unsigned(),
        extentsize: list.i32("extentsize").unwrap().cast_unsigned(),
        localcnt: list.u64("localcnt").unwrap(),
        remotecnt: list.u64("remotecnt").unwrap(),
        errmsg: errmsg.into(),
        parted: None,
    };
    assert_eq!(refusal.encode().as_bytes(), masked(&frame.nv));
    let message = hast_net::message::Message::SecondRefusal(refusal, None);
    let (header, payload) = hast_net::message::to_wire(&message, 2, Default::default()).unwrap();
    assert_eq!(header[5..], masked(&frame.nv));
    assert_eq!(payload, None);
}

#[test]
fn the_texts_of_refusals_are_the_captured_ones() {
    let mut seen = Vec::new();
    for_each_stream(|_, _, bytes| {
        let (frames, _) = cut(bytes, usize::MAX);
        let lists = frames.iter().map(|frame| frame.list().unwrap());
        seen.extend(lists.filter_map(|list| Refusal::decode(&list)));
    });
    let waits = Refusal { errmsg: texts::not_secondary("primary"), wait: true };
    assert!(seen.contains(&waits));
    for text in [
        texts::NOT_CONFIGURED,
        texts::NO_ACCESS,
        texts::TOKEN_MISMATCH,
        &texts::not_secondary("init"),
        &texts::resuid_mismatch(16_289_816_082_000_492_570, 2_193_113_500_600_364_031),
    ] {
        assert!(seen.contains(&Refusal::new(text)), "{text}");
    }
}

#[test]
fn cutting_does_not_depend_on_how_the_bytes_arrive() {
    for_each_stream(|_, file, bytes| {
        let whole = cut(bytes, usize::MAX);
        for piece in [1, 3, 97, 4096, 65_536] {
            if piece > 1 || bytes.len() < 20_000 {
                assert_eq!(cut(bytes, piece), whole, "{file} in pieces of {piece}");
            }
        }
    });
}

#[test]
fn a_stream_cut_off_anywhere_gives_whole_frames_only() {
    for_each_stream(|_, file, bytes| {
        let (frames, end) = cut(bytes, usize::MAX);
        let Ok(true) = end else { return };
        let ends: Vec<usize> = frames
            .iter()
            .scan(0, |at, frame| {
                *at += 5 + frame.nv.len() + frame.payload.as_ref().map_or(0, |payload| payload.len());
                Some(*at)
            })
            .collect();
        assert_eq!(ends.last().copied().unwrap_or(0), bytes.len(), "{file}");
        let near = ends.iter().flat_map(|&end| end.saturating_sub(600)..(end + 300).min(bytes.len()));
        for at in near.step_by(37) {
            let whole = ends.iter().filter(|&&end| end <= at).count();
            let (early, end) = cut(&bytes[..at], usize::MAX);
            assert_eq!(early, frames[..whole], "{file} cut at {at}");
            assert_eq!(end, Ok(at == 0 || ends.contains(&at)), "{file} cut at {at}");
        }
    });
}

#[test]
fn lists_of_captured_frames_survive_the_mask() {
    for_each_stream(|_, file, bytes| {
        for frame in cut(bytes, usize::MAX).0 {
            let masked = masked(&frame.nv);
            let pairs: Vec<_> = List::parse(&masked).unwrap().pairs().collect();
            let original: Vec<_> = frame.list().unwrap().pairs().collect();
            assert_eq!(pairs, original, "{file}");
        }
    });
}
