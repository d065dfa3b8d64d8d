//! Every combination of compression and checksum that the original was made to produce.

use crate::vectors::{check_pairs, directory, json, masked, read};
use hast_format::nv::{List, Writer};
use hast_net::buffer::{Buffer, Pool};
use hast_net::frame::Frame;
use hast_net::payload::{self, Checksum, Compression, PayloadError, Stages};
use serde_json::Value;

struct Vector {
    name: String,
    input: Vec<u8>,
    stages: Stages,
    nv: Vec<u8>,
    sent: Vec<u8>,
    pairs: Value,
}

fn vectors() -> Vec<Vector> {
    let codec = directory("codec");
    let described = json(&codec, "codec.json");
    let text = |entry: &Value, key: &str| entry[key].as_str().unwrap().trim_end_matches(".xz").to_owned();
    let vectors: Vec<Vector> = described
        .as_array()
        .unwrap()
        .iter()
        .map(|entry| Vector {
            name: text(entry, "nv"),
            input: read(&codec, &text(entry, "input")),
            stages: Stages {
                compression: Compression::parse(&text(entry, "compression")).unwrap(),
                checksum: Checksum::parse(&text(entry, "checksum")).unwrap(),
            },
            nv: read(&codec, &text(entry, "nv")),
            sent: read(&codec, &text(entry, "payload")),
            pairs: entry["entries"].clone(),
        })
        .collect();
    assert_eq!(vectors.len(), 11 * 9);
    vectors
}

fn frame(nv: &[u8], sent: &[u8]) -> Frame {
    Frame { version: 2, nv: nv.to_vec().into(), payload: Some(Buffer::from(sent.to_vec())) }
}

#[test]
fn what_the_original_sent_decodes_to_what_it_was_given() {
    for vector in vectors() {
        check_pairs(&List::parse(&vector.nv).unwrap(), &vector.pairs, &vector.name);
        let mut frame = frame(&vector.nv, &vector.sent);
        payload::decode(&mut frame, 1 << 20, &Pool::new()).expect(&vector.name);
        assert_eq!(frame.payload.unwrap()[..], vector.input, "{}", vector.name);
    }
}

#[test]
fn what_we_send_is_what_the_original_sends() {
    for Vector { name, input, stages, nv, sent, .. } in vectors() {
        let mut ours = Writer::new();
        let input = Buffer::from(input);
        let payload = payload::encode(&mut ours, &input, stages);
        let compression = List::parse(&nv).unwrap().str("compression").map(str::to_owned);
        if compression.as_deref() == Some("lzf") {
            // Packed differently, perhaps; but where the original packs, so do we, and it comes back.
            let list = List::parse(ours.as_bytes()).unwrap();
            let names: Vec<&[u8]> = list.pairs().map(|pair| pair.name).collect();
            let expected: Vec<&[u8]> = List::parse(&nv).unwrap().pairs().map(|pair| pair.name).collect();
            assert_eq!(names, expected, "{name}");
            assert_eq!(list.str("compression"), Some("lzf"), "{name}");
            let mut frame = frame(ours.as_bytes(), &payload);
            payload::decode(&mut frame, 1 << 20, &Pool::new()).expect(&name);
            assert_eq!(frame.payload.unwrap(), input, "{name}");
        } else {
            assert_eq!(ours.as_bytes(), masked(&nv), "{name}");
            assert_eq!(payload[..], sent, "{name}");
        }
    }
}

#[test]
fn no_damaged_byte_gets_past_a_checksum() {
    for vector in vectors().into_iter().filter(|v| v.stages.checksum != Checksum::None) {
        for at in (0..vector.sent.len()).step_by(vector.sent.len() / 5 + 1) {
            let mut sent = vector.sent.clone();
            sent[at] ^= 0x10;
            let outcome = payload::decode(&mut frame(&vector.nv, &sent), 1 << 20, &Pool::new());
            let expected = PayloadError::Hash { checksum: vector.stages.checksum, length: sent.len() };
            assert_eq!(outcome, Err(expected), "{} at {at}", vector.name);
        }
    }
}

#[test]
fn nothing_decodes_to_more_than_is_allowed() {
    for vector in vectors() {
        let limit = u32::try_from(vector.input.len()).unwrap() - 1;
        let outcome = payload::decode(&mut frame(&vector.nv, &vector.sent), limit, &Pool::new());
        let size = vector.input.len() as u64;
        assert_eq!(outcome, Err(PayloadError::TooLong { size, limit }), "{}", vector.name);
    }
}
