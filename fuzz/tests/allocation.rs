//! Decoders allocate nothing that the input did not pay for.
//!
//! Two sums are compared with the length of the input: `peak`, the most that a decoder holds at once, and
//! `total`, all that it ever took, given back or not. For each decoder both may be a fixed number of bytes per
//! input byte, plus a fixed number of bytes that does not depend on what the input claims. What a decoder reads
//! ahead of its input, it reads into memory of a size that is ours to choose, and that is in the fixed part: one
//! payload within the limit of its connection, one piece of a client's write, one buffer to read into.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use hast_conf::Node;
use hast_format::metadata::Metadata;
use hast_format::nv::{List, Writer};
use hast_fuzz::allocation::{Usage, measure};
use hast_fuzz::messages::feed;
use hast_nbd::{Export, Session};
use hast_net::buffer::{Buffer, Pool};
use hast_net::control;
use hast_net::extensions::Extensions;
use hast_net::frame::{self, Frame, Limits, Receiver};
use hast_net::handshake::{FirstReply, Hello, SecondReply};
use hast_net::lzf;
use hast_net::message::{FromPrimary, Reply};
use hast_net::payload;

/// What a decoder may take.
struct Price {
    /// Bytes held at once, per byte of input.
    held: usize,
    /// Bytes taken in all, per byte of input.
    taken: usize,
    /// Bytes on top of either, whatever the input says.
    fixed: usize,
}

/// Names, error texts and the like.
const SMALL: usize = 4 << 10;

fn check(what: &str, input: &[u8], price: &Price, decoder: impl Fn(&[u8])) {
    let ((), Usage { total, peak }) = measure(|| decoder(input));
    let length = input.len();
    let held = price.held * length + price.fixed;
    assert!(peak <= held, "{what}: holds {peak} bytes for {length}, {held} are paid for");
    let taken = price.taken * length + price.fixed;
    assert!(total <= taken, "{what}: takes {total} bytes for {length}, {taken} are paid for");
}

/// Every committed input of a target, and what they are when cut in half.
fn corpus(target: &str) -> Vec<(String, Vec<u8>)> {
    let directory = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target);
    let mut inputs = Vec::new();
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        let bytes = std::fs::read(&path).unwrap();
        inputs.push((format!("half of {}", path.display()), bytes[..bytes.len() / 2].to_vec()));
        inputs.push((path.display().to_string(), bytes));
    }
    assert!(inputs.len() >= 10, "{target}");
    inputs
}

/// A frame's beginning: version, claimed length of the list, list.
fn head(claimed: u32, list: &[u8]) -> Vec<u8> {
    [&[2], &claimed.to_le_bytes()[..], list].concat()
}

/// A list with one pair that claims so much data and has almost none.
fn huge_pair(kind: u8, claimed: u32) -> Vec<u8> {
    [&[kind, 5], &claimed.to_le_bytes()[..], b"size\0\0\0\0", &[1; 8]].concat()
}

fn writer(fill: impl FnOnce(&mut Writer)) -> Vec<u8> {
    let mut writer = Writer::new();
    fill(&mut writer);
    writer.into_bytes()
}

/// Inputs that claim as much as can be said.
fn boasts() -> Vec<(String, Vec<u8>)> {
    let mut lists = Vec::new();
    for claimed in [u32::MAX, u32::MAX - 6, 1 << 31, 1 << 20, 65_536] {
        for kind in [1, 8, 10, 16, 17] {
            lists.push((format!("pair of type {kind}, {claimed} bytes"), huge_pair(kind, claimed)));
        }
        let size = writer(|list| _ = list.u8("cmd", 2).u64("seq", 1).u32("size", claimed));
        lists.push((format!("payload of {claimed} bytes"), size));
        let length =
            writer(|list| _ = list.u8("cmd", 2).u64("seq", 1).u64("offset", 0).u64("length", claimed.into()));
        lists.push((format!("write of {claimed} bytes"), length));
        let map = writer(|list| {
            list.u64("resuid", 1).i64("datasize", i64::MAX).i32("extentsize", 1).u64("localcnt", 1);
            list.u64("remotecnt", 1).u8("syncsrc", 1).u32("mapsize", claimed);
        });
        lists.push((format!("map of {claimed} bytes"), map));
    }
    let many = writer(|list| (0..800).for_each(|index| _ = list.str(&format!("resource{index}"), "")));
    lists.push(("800 resources".into(), many));
    let mut inputs = Vec::new();
    for (name, list) in lists {
        let length = u32::try_from(list.len()).unwrap();
        inputs.push((name.clone(), head(length, &list)));
        inputs.push((format!("{name}, and more of the list to come"), head(65_536, &list)));
        inputs.push((name, list));
    }
    for claimed in [u32::MAX, 1 << 24, 65_537, 65_536] {
        inputs.push((format!("list of {claimed} bytes"), head(claimed, &[0; 40])));
    }
    inputs
}

/// What the handshake's connections take from strangers.
const STRANGER: Limits = Limits { header: Limits::PEER.header, payload: 0 };

fn cut(limits: Limits, bytes: &[u8]) -> Vec<Frame> {
    feed(&mut Receiver::new(limits, Pool::new()), bytes, usize::MAX).0
}

#[test]
fn frames() {
    // A list is received, kept, and grows by doubling; small reads are 64 KiB at most, and the one payload under way
    // is its limit at most, aligned.
    let reads = 128 << 10;
    let payload = (1 << 20) + (8 << 10);
    let inputs = boasts().into_iter().chain(corpus("proto_decode"));
    for (what, bytes) in inputs {
        // A payload of 512 bytes and more gets a buffer of a pool's class, at least 8 KiB.
        let price = Price { held: 24, taken: 24, fixed: reads + payload };
        check(&what, &bytes, &price, |bytes| _ = cut(Limits::PEER, bytes));
        // Strangers and clients cannot even announce a payload.
        let price = Price { held: 8, taken: 12, fixed: reads + SMALL };
        check(&what, &bytes, &price, |bytes| _ = cut(STRANGER, bytes));
        check(&what, &bytes, &price, |bytes| _ = cut(Limits::CONTROL, bytes));
    }
}

#[test]
fn a_list_that_is_only_announced_takes_nothing() {
    for limits in [Limits::PEER, Limits::CONTROL] {
        let claim = head(limits.header, &[]);
        let ((), usage) = measure(|| {
            let mut receiver = Receiver::new(limits, Pool::new());
            for byte in &claim {
                receiver.space()[0] = *byte;
                receiver.advance(1).unwrap();
            }
            assert!(!receiver.is_idle());
        });
        assert!(usage.total <= 4096 + SMALL, "{limits:?}: {usage:?}");
    }
}

#[test]
fn name_value_lists() {
    let price = Price { held: 0, taken: 0, fixed: 0 };
    for (what, bytes) in boasts().into_iter().chain(corpus("nv_decode")) {
        check(&what, &bytes, &price, |bytes| {
            let Ok(list) = List::parse(bytes) else { return };
            let names = list
                .pairs()
                .filter(|pair| std::str::from_utf8(pair.name).is_ok_and(|name| list.contains(name)));
            assert!(names.count() <= bytes.len() / 8);
        });
    }
}

#[test]
fn metadata() {
    // The list of a block is packed again to see whether it is what was saved.
    let price = Price { held: 1, taken: 2, fixed: SMALL };
    for (what, bytes) in corpus("metadata_decode") {
        let mut block = bytes;
        block.resize(4096, 0);
        check(&what, &block, &price, |block| _ = Metadata::read(block));
        check(&what, &block, &price, |block| _ = Metadata::decode(block));
    }
}

#[test]
fn the_control_protocol() {
    // A pair of 16 bytes at least becomes an entry of a table, and a text or a whole status.
    let price = Price { held: 64, taken: 128, fixed: SMALL };
    for (what, bytes) in boasts().into_iter().chain(corpus("control_decode")) {
        for frame in cut(Limits::CONTROL, bytes.get(1..).unwrap_or_default())
            .iter()
            .chain(&cut(Limits::CONTROL, &bytes))
        {
            check(&what, &frame.nv, &price, |nv| _ = control::Request::decode(&List::parse(nv).unwrap()));
            check(&what, &frame.nv, &price, |nv| _ = control::Reply::decode(&List::parse(nv).unwrap()));
        }
    }
}

#[test]
fn the_handshake() {
    let price = Price { held: 4, taken: 4, fixed: SMALL };
    for (what, bytes) in boasts().into_iter().chain(corpus("handshake")) {
        for frame in
            cut(Limits::PEER, bytes.get(1..).unwrap_or_default()).iter().chain(&cut(Limits::PEER, &bytes))
        {
            check(&what, &frame.nv, &price, |nv| {
                let list = List::parse(nv).unwrap();
                let _ = (Hello::decode(&list), FirstReply::decode(&list), SecondReply::decode(&list));
            });
        }
    }
}

#[test]
fn messages() {
    let price = Price { held: 4, taken: 4, fixed: SMALL };
    for (what, bytes) in boasts().into_iter().chain(corpus("proto_decode")) {
        for frame in
            cut(Limits::PEER, bytes.get(1..).unwrap_or_default()).iter().chain(&cut(Limits::PEER, &bytes))
        {
            let length = [&frame.nv[..], frame.payload.as_deref().unwrap_or_default()].concat();
            // The clone that `decode` takes is ours, not the decoder's: one list, and the payload is shared.
            check(&what, &length, &price, |_| {
                let _ = FromPrimary::decode_extended(frame.clone(), Extensions::ALL);
                let _ = Reply::decode(frame.clone());
            });
        }
    }
}

/// A frame with a packed payload.
fn packed(compression: &str, sent: Vec<u8>) -> Frame {
    let size = u32::try_from(sent.len()).unwrap();
    let nv = writer(|list| _ = list.str("compression", compression).u32("size", size));
    Frame { version: 2, nv: nv.into(), payload: Some(Buffer::from(sent)) }
}

fn unpacked(frame: &Frame) -> (bool, Usage) {
    let mut frame = frame.clone();
    measure(move || payload::decode(&mut frame, Limits::PEER.payload, &Pool::new()).is_ok())
}

#[test]
fn payload_stages() {
    // What a stage unpacks to is what a request needs, and never more than the limit; a buffer has the size of a
    // pool's class.
    let limit = Limits::PEER.payload as usize;
    for claimed in [0_u32, 1, 1 << 20, (1 << 20) + 1, 1 << 24, u32::MAX] {
        let (accepted, usage) = unpacked(&packed("hole", claimed.to_le_bytes().to_vec()));
        assert_eq!(accepted, (1..=limit).contains(&(claimed as usize)), "hole of {claimed}");
        let bound = if accepted { limit + 2 * SMALL } else { SMALL };
        assert!(usage.total <= bound, "hole of {claimed} bytes: {usage:?}");
        for stream in [&[][..], &[0, 7], &[0, 7, 0xff, 0xff, 0]] {
            let sent = [&claimed.to_le_bytes()[..], stream].concat();
            let (accepted, usage) = unpacked(&packed("lzf", sent));
            // Three bytes make 264 at most: what cannot be true is not prepared for.
            assert!(!accepted && usage.total <= SMALL, "{stream:?} is to make {claimed} bytes: {usage:?}");
        }
    }
    // Streams of which each byte makes as much as it can, and says one byte more than there is.
    for length in [2000_usize, 30_000, 1 << 20] {
        let mut stream = Vec::new();
        assert!(lzf::compress(&vec![7; length], &mut stream, usize::MAX));
        let claimed = u32::try_from(length).unwrap();
        for (claimed, right) in [(claimed, true), (claimed - 1, false), (claimed + 1, false)] {
            let frame = packed("lzf", [&claimed.to_le_bytes()[..], &stream].concat());
            let (accepted, usage) = unpacked(&frame);
            assert_eq!(accepted, right && length <= limit);
            // The classes of a pool are up to eight times apart.
            assert!(usage.total <= stream.len() * 88 * 8 + 4 * SMALL, "{length} bytes: {usage:?}");
        }
    }
}

#[test]
fn lzf_streams() {
    let price = Price { held: 0, taken: 0, fixed: 0 };
    for (what, bytes) in corpus("lzf_decode") {
        let mut output = vec![0; 70_000];
        let output = std::cell::RefCell::new(&mut output);
        check(&what, &bytes, &price, |bytes| {
            _ = lzf::decompress(bytes.get(4..).unwrap_or_default(), *output.borrow_mut())
        });
    }
}

#[test]
fn configuration_files() {
    // Words, addresses and paths are copied into the configuration, each a few times, with the error's line.
    let price = Price { held: 64, taken: 160, fixed: 8 * SMALL };
    let mut node = Node::named("a");
    (node.inet, node.inet6) = (true, true);
    let long = ("one long line".to_string(), [b"resource ", &[b'x'; 60_000][..]].concat());
    let many = ("many resources".to_string(), b"resource r { local /d on a { remote b } }\n".repeat(500));
    for (what, bytes) in corpus("conf_parse").into_iter().chain([long, many]) {
        let text = String::from_utf8_lossy(&bytes).into_owned();
        check(&what, text.as_bytes(), &price, |_| {
            if let Err(error) = hast_conf::parse(&text, "hast.conf", &node) {
                assert!(!error.to_string().is_empty());
            }
        });
    }
}

#[test]
fn clients_of_a_device() {
    // The greeting, 64 KiB to read into, and one piece of a write.
    let piece = (128 << 10) + (8 << 10);
    let price = Price { held: 40, taken: 64, fixed: piece + (64 << 10) + 2 * SMALL };
    let option = |number: u32, claimed: u32, data: &[u8]| {
        [&[0, 0, 0, 3], &b"IHAVEOPT"[..], &number.to_be_bytes(), &claimed.to_be_bytes(), data].concat()
    };
    let go = option(7, 12, &[&[0, 0, 0, 6], &b"shared"[..], &[0, 0]].concat());
    let write = |length: u32| {
        let request =
            [&0x2560_9513_u32.to_be_bytes()[..], &[0, 0, 0, 1], &[0; 16], &length.to_be_bytes()].concat();
        [&go[..], &request].concat()
    };
    let mut inputs = Vec::new();
    for claimed in [u32::MAX, 1 << 31, 32 << 20, 4096, 4097] {
        for number in [1, 3, 6, 7, 8, 9, 10, 99] {
            inputs.push((format!("option {number} of {claimed} bytes"), option(number, claimed, &[1; 8])));
        }
        inputs.push((format!("write of {claimed} bytes"), write(claimed)));
    }
    let text = [&[0, 0, 0, 6], &b"shared"[..], &[0xff, 0xff, 0xff, 0xff]].concat();
    inputs.push(("2^32 contexts".to_string(), option(10, 14, &text)));
    let streams = corpus("nbd_session")
        .into_iter()
        .map(|(what, bytes)| (what, bytes.get(3..).unwrap_or_default().to_vec()));
    for (what, bytes) in inputs.into_iter().chain(streams) {
        check(&what, &bytes, &price, |bytes| {
            let mut session = Session::new(Export::new("shared", 1 << 40, 512), Pool::new());
            let mut rest = bytes;
            while !rest.is_empty() && session.wants_input() {
                let space = session.space();
                let count = space.len().min(rest.len());
                space[..count].copy_from_slice(&rest[..count]);
                rest = &rest[count..];
                if session.advance(count).is_err() {
                    break;
                }
            }
        });
    }
}

#[test]
fn what_is_sent_is_what_was_measured() {
    // The measure measures: a decoder that believed a claim would be found out.
    let claim = u32::MAX >> 8;
    let believed = std::panic::catch_unwind(|| {
        check("a claim", &claim.to_le_bytes(), &Price { held: 64, taken: 64, fixed: SMALL }, |bytes| {
            let length = u32::from_le_bytes(bytes.try_into().unwrap()) as usize;
            std::hint::black_box(vec![0_u8; length]);
        });
    });
    assert!(believed.is_err());
    let list = writer(|list| _ = list.u8("cmd", 5));
    assert_eq!(cut(Limits::PEER, &frame::encode(2, &list).unwrap()).len(), 1);
}
