//! The first two steps of the handshake, played by hand against hastd as the secondary.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod support;

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

use hast_format::metadata::Role;
use hast_format::nv::{List, Writer};
use hast_net::frame::{self, Frame};
use hast_net::handshake::{FirstReply, Refusal, SecondReply, Token};
use support::{PATIENCE, Place, Stream, is_alive, wait_for};

/// Where the other node of `disk0` is.
const PEER: &str = "127.0.0.4";

fn place() -> Place {
    let place = Place::new();
    place.configure(&format!(
        "resource disk0 {{ compression none local @/disk0 on a {{ remote tcp4://{PEER}:8457 }} }}
         resource other {{ local @/other on a {{ remote tcp4://127.0.0.9:8457 }} }}"
    ));
    place.create("disk0", "disk0");
    place.create("other", "other");
    place
}

fn first(version: Option<u8>) -> Writer {
    let mut list = Writer::new();
    list.str("resource", "disk0");
    if let Some(version) = version {
        list.u8("version", version);
    }
    list
}

fn second(token: &Token) -> Writer {
    let mut list = Writer::new();
    list.str("resource", "disk0").u8_array("token", token);
    list.u64("resuid", 77).u64("localcnt", 1).u64("remotecnt", 0);
    list
}

/// Does the first step; the connection, the frame's version, the negotiated one and the token.
fn step_one(place: &Place, frame_version: u8, version: Option<u8>) -> (Stream, u8, u8, Token) {
    let mut stream = place.connect_from(PEER);
    stream.send(frame_version, &first(version));
    let frame = stream.receive().expect("an answer");
    match FirstReply::decode(&List::parse(&frame.nv).unwrap()).unwrap() {
        FirstReply::Answer(answer) => (stream, frame.version, answer.version, answer.token),
        FirstReply::Refused(refusal) => panic!("{refusal:?}\n{}", place.log()),
    }
}

fn refusal(frame: &Frame) -> Refusal {
    assert_eq!(frame.version, 2);
    Refusal::decode(&List::parse(&frame.nv).unwrap()).unwrap()
}

/// What is refused with this token.
fn refused_token(place: &Place, token: &Token) -> String {
    let mut stream = place.connect_from(PEER);
    stream.send(2, &second(token));
    refusal(&stream.last()).errmsg
}

/// A node that connects over and over again does not fill the log.
#[test]
fn what_comes_very_often_is_counted() {
    let place = place();
    let daemon = place.start_quietly();
    for _ in 0..200 {
        let mut stream = place.connect_from("127.0.0.77");
        assert_eq!(stream.receive(), None);
    }
    place
        .wait_for_log("[ERROR] More of this is counted, and told of once a minute: Client tcp://127.0.0.77:");
    assert_eq!(place.log().matches("isn't known").count(), 6, "{}", place.log());
    drop(daemon);
    // With debug output everything is shown.
    let _daemon = place.start();
    for _ in 0..10 {
        let mut stream = place.connect_from("127.0.0.77");
        assert_eq!(stream.receive(), None);
    }
    place.wait_for_log_times("isn't known", 16);
}

#[test]
fn captured_headers_are_refused_as_the_original_refuses_them() {
    let place = place();
    let _daemon = place.start();
    let vectors = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/vectors/wire");
    // Connection of the capture, role that disk0 has by then, where it comes from.
    let cases = [
        (0, Role::Init, PEER),
        (1, Role::Primary, PEER),
        (2, Role::Secondary, PEER),
        (3, Role::Secondary, PEER),
        (4, Role::Secondary, PEER),
        (5, Role::Secondary, "127.0.0.77"),
        (6, Role::Secondary, PEER),
        (7, Role::Secondary, PEER),
        (8, Role::Secondary, PEER),
    ];
    for (number, role, source) in cases {
        place.set_role(role, &["disk0"]);
        let read = |way: &str| {
            fs::read(vectors.join(format!("wire-refused-handshake.c{number}.{way}.bin"))).unwrap()
        };
        let mut stream = place.connect_from(source);
        // A connection that is not even listened to may be gone already.
        let _ = stream.socket.write_all(&read("p2s"));
        let expected = read("s2p");
        if expected.is_empty() {
            assert_eq!(stream.receive(), None, "connection {number}");
        } else {
            let frame = stream.last();
            let (version, list) = (expected[0], List::parse(&expected[5..]).unwrap());
            assert_eq!(frame.version, version);
            let pairs = |list: &List<'_>| -> Vec<_> {
                list.pairs().map(|pair| (pair.name.to_vec(), pair.kind.code(), pair.data.to_vec())).collect()
            };
            assert_eq!(pairs(&List::parse(&frame.nv).unwrap()), pairs(&list), "connection {number}");
        }
    }
    let log = place.log();
    for line in [
        "[WARNING] [disk0] (init) We act as init for the resource and not as secondary as requested by tcp://127.0.0.4:",
        "[WARNING] [disk0] (primary) We act as primary for the resource and not as secondary as requested by tcp://",
        "[ERROR] No resource 'nosuch' as requested by tcp://127.0.0.4:",
        "[ERROR] [other] (init) Client tcp://127.0.0.4:",
        "[ERROR] No 'resource' field in the header received from tcp://127.0.0.4:",
        "[INFO] Connection from tcp://127.0.0.77:",
        "[ERROR] Client tcp://127.0.0.77:",
        "[ERROR] Unable to receive header from tcp://127.0.0.4:",
        "[ERROR] Received token of invalid size from tcp://127.0.0.4:",
        "[ERROR] [disk0] (secondary) Token received from tcp://127.0.0.4:",
    ] {
        assert!(log.contains(line), "`{line}' is not in the log:\n{log}");
    }
}

#[test]
fn versions_are_negotiated_like_in_the_capture() {
    let place = place();
    let _daemon = place.start();
    place.set_role(Role::Secondary, &["disk0"]);
    for (frame, offered, agreed) in
        [(2, Some(3), 2), (1, Some(1), 1), (0, None, 1), (0, Some(2), 2), (1, Some(2), 2), (1, Some(0), 1)]
    {
        let (_stream, answered_in, version, _) = step_one(&place, frame, offered);
        assert_eq!((answered_in, version), (agreed, agreed), "{offered:?}");
    }
    let line =
        "[INFO] [disk0] (secondary) Remote protocol version 3 is not supported, falling back to version 2.";
    assert!(place.log().contains(line));
}

#[test]
fn a_token_is_good_once_and_only_while_its_first_step_is_pending() {
    let place = place();
    let _daemon = place.start();
    place.set_role(Role::Secondary, &["disk0"]);
    // X8: there is no token before there was a first step, not even zeros.
    assert_eq!(refused_token(&place, &[0; 16]), "Token doesn't match.");

    let (mut out, _, _, token) = step_one(&place, 1, Some(2));
    let mut wrong = token;
    wrong[15] ^= 1;
    assert_eq!(refused_token(&place, &wrong), "Token doesn't match.");

    // A wrong one has not spoiled the right one.
    let mut in_ = place.connect_from(PEER);
    in_.send(2, &second(&token));
    let answer = out.receive().expect("the worker's answer");
    let answer = SecondReply::decode(&List::parse(&answer.nv).unwrap()).unwrap();
    assert!(matches!(answer, SecondReply::Answer(_)), "{answer:?}");
    assert_eq!(refused_token(&place, &token), "Token doesn't match.");
    assert_eq!(place.role("disk0"), "secondary");
}

#[test]
fn a_token_goes_with_its_connection() {
    let place = place();
    let _daemon = place.start();
    place.set_role(Role::Secondary, &["disk0"]);
    let (out, _, _, token) = step_one(&place, 1, Some(2));
    drop(out);
    place.wait_for_log("is given up: it was closed");
    assert_eq!(refused_token(&place, &token), "Token doesn't match.");

    let (mut out, _, _, token) = step_one(&place, 1, Some(2));
    out.socket.write_all(b"too early").unwrap();
    assert_eq!(out.receive(), None);
    assert_eq!(refused_token(&place, &token), "Token doesn't match.");
}

#[test]
fn a_new_first_step_replaces_one_that_is_pending() {
    let place = place();
    let _daemon = place.start();
    place.set_role(Role::Secondary, &["disk0"]);
    let (mut old, _, _, old_token) = step_one(&place, 1, Some(2));
    let (mut new, _, _, new_token) = step_one(&place, 1, Some(2));
    assert_ne!(old_token, new_token);
    assert_eq!(old.receive(), None);
    assert_eq!(refused_token(&place, &old_token), "Token doesn't match.");
    let mut in_ = place.connect_from(PEER);
    in_.send(2, &second(&new_token));
    assert!(new.receive().is_some());
}

#[test]
fn a_new_first_step_replaces_a_connected_primary() {
    let place = place();
    let _daemon = place.start();
    place.set_role(Role::Secondary, &["disk0"]);
    let connect = || {
        let (mut out, _, _, token) = step_one(&place, 1, Some(2));
        let mut in_ = place.connect_from(PEER);
        in_.send(2, &second(&token));
        assert!(out.receive().is_some(), "{}", place.log());
        let pid = wait_for("the worker", || Some(place.status("disk0").workerpid).filter(|pid| *pid != 0));
        (out, in_, pid)
    };
    let (mut out, mut in_, first_pid) = connect();
    let (_out, _in, second_pid) = connect();
    assert_ne!(first_pid, second_pid);
    assert!(!is_alive(first_pid));
    assert_eq!(out.receive(), None);
    assert_eq!(in_.receive(), None);
    // Roles that are left close what is connected.
    place.set_role(Role::Init, &["disk0"]);
    assert!(!is_alive(second_pid));
    assert_eq!(place.status("disk0").workerpid, 0);
}

/// The disk of a secondary is away when the role is set, and still when a primary comes: the connection ends,
/// the role does not. When the disk is back the next connection finds it, and it is locked.
#[test]
fn a_secondary_opens_its_provider_when_a_primary_comes() {
    let place = place();
    let path = place.path("disk0");
    fs::remove_file(&path).unwrap();
    let _daemon = place.start();
    assert_eq!(place.set_role(Role::Secondary, &["disk0"]), ["init"]);
    let connect = || {
        let (mut out, .., token) = step_one(&place, 1, Some(2));
        let mut in_ = place.connect_from(PEER);
        in_.send(2, &second(&token));
        (out.receive(), out, in_)
    };
    let (answer, ..) = connect();
    assert!(answer.is_none(), "closed without an answer");
    let line = format!(
        "[ERROR] [disk0] (secondary) Unable to open {}: No such file or directory.\n",
        path.display()
    );
    place.wait_for_log(&line);
    assert_eq!(place.role("disk0"), "secondary");

    place.create("disk0", "disk0");
    let (answer, out, in_) = connect();
    assert!(answer.is_some(), "{}", place.log());
    let locked = || hast_provider::Provider::open(&path, true).unwrap().lock().is_err();
    assert!(locked());
    drop((out, in_));
    wait_for("the worker to end", || (place.status("disk0").workerpid == 0).then_some(()));
    assert!(locked(), "it stays the secondary's");
    place.set_role(Role::Init, &["disk0"]);
    assert!(!locked());
}

#[test]
fn a_role_that_is_left_takes_the_pending_step_with_it() {
    let place = place();
    let _daemon = place.start();
    place.set_role(Role::Secondary, &["disk0"]);
    let (mut out, _, _, token) = step_one(&place, 1, Some(2));
    place.set_role(Role::Init, &["disk0"]);
    assert_eq!(out.receive(), None);
    place.set_role(Role::Secondary, &["disk0"]);
    assert_eq!(refused_token(&place, &token), "Token doesn't match.");
}

#[test]
fn headers_that_are_none_are_closed_and_nothing_is_harmed() {
    let place = place();
    let _daemon = place.start();
    place.set_role(Role::Secondary, &["disk0"]);
    let long = (64_u32 << 10) + 1;
    let mut cases: Vec<Vec<u8>> = vec![
        // X4: no pairs at all.
        frame::encode(1, &[]).unwrap(),
        frame::encode(1, &[0]).unwrap(),
        // X1: more than anybody has to say.
        [&[2], &long.to_le_bytes()[..]].concat(),
        [&[2], &u32::MAX.to_le_bytes()[..]].concat(),
        // Not a list.
        frame::encode(1, b"\x11rubbish").unwrap(),
        b"GET / HTTP/1.1\r\n\r\n".to_vec(),
    ];
    // Two headers at once, and one with a payload.
    let one = frame::encode(1, first(Some(2)).as_bytes()).unwrap();
    cases.push([one.as_slice(), one.as_slice()].concat());
    let mut list = first(Some(2));
    list.u32("size", 4);
    cases.push([frame::encode(1, list.as_bytes()).unwrap(), b"data".to_vec()].concat());
    for bytes in cases {
        let mut stream = place.connect_from(PEER);
        let _ = stream.socket.write_all(&bytes);
        assert_eq!(stream.receive(), None, "{:?}", &bytes[..bytes.len().min(16)]);
    }
    step_one(&place, 1, Some(2));
}

#[test]
fn silent_connections_hold_up_nobody() {
    let place = place();
    let _daemon = place.start();
    place.set_role(Role::Secondary, &["disk0"]);
    // More than are kept; some in the middle of a header.
    let header = frame::encode(1, first(Some(2)).as_bytes()).unwrap();
    let mut silent = Vec::new();
    for number in 0..200 {
        let mut stream = place.connect_from(PEER);
        let _ = stream.socket.write_all(&header[..number % header.len()]);
        silent.push(stream);
    }
    let (mut out, _, _, token) = step_one(&place, 1, Some(2));
    let mut in_ = place.connect_from(PEER);
    in_.send(2, &second(&token));
    assert!(out.receive().is_some());
    // The oldest gave way; the others are closed when their time is over.
    for stream in &mut silent {
        let mut rest = Vec::new();
        let _ = stream.socket.read_to_end(&mut rest);
        assert!(rest.is_empty());
    }
}

#[test]
fn a_host_name_is_looked_up_for_each_connection() {
    let place = Place::new();
    place.configure(
        "resource named { local @/named on a { remote tcp4://localhost:1 } }
         resource lost { local @/lost on a { remote tcp4://no-such-host.invalid:1 } }",
    );
    place.create("named", "named");
    let _daemon = place.start();
    place.set_role(Role::Secondary, &["named"]);
    let mut list = Writer::new();
    list.str("resource", "named").u8("version", 2);
    let mut stream = place.connect_from("127.0.0.1");
    stream.send(1, &list);
    let frame = stream.receive().expect("an answer");
    assert!(matches!(FirstReply::decode(&List::parse(&frame.nv).unwrap()).unwrap(), FirstReply::Answer(_)));
    // Nobody's address, once all names are known.
    let mut stream = place.connect_from("127.0.0.5");
    let _ = stream.socket.write_all(b"x");
    assert_eq!(stream.receive(), None);
    place.wait_for_log("isn't known.");
}

#[test]
fn a_node_on_the_same_machine_may_come_over_a_unix_socket() {
    let place = Place::new();
    place.write_conf(
        "control @/ctl listen uds://@/peers
         resource near { local @/near on a { remote uds://@/other } }
         resource far { local @/far on a { remote tcp4://127.0.0.4 } }",
    );
    place.create("near", "near");
    let _daemon = place.start();
    place.set_role(Role::Secondary, &["near"]);
    for (resource, admitted) in [("near", true), ("far", false)] {
        let mut list = Writer::new();
        list.str("resource", resource).u8("version", 2);
        let mut socket = UnixStream::connect(place.path("peers")).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket.write_all(&frame::encode(1, list.as_bytes()).unwrap()).unwrap();
        let mut prefix = [0; 5];
        socket.read_exact(&mut prefix).unwrap();
        let mut list = vec![0; usize::from(prefix[1])];
        socket.read_exact(&mut list).unwrap();
        let reply = FirstReply::decode(&List::parse(&list).unwrap()).unwrap();
        assert_eq!(matches!(reply, FirstReply::Answer(_)), admitted, "{reply:?}");
    }
}

/// An original hears nothing of extensions, and ours of none that it did not offer.
#[test]
fn extensions_are_answered_only_if_both_know_them() {
    let place = place();
    let _daemon = place.start();
    place.set_role(Role::Secondary, &["disk0"]);
    let answered = |offer: &dyn Fn(&mut Writer)| -> Vec<(String, Option<String>)> {
        let mut stream = place.connect_from(PEER);
        let mut hello = first(Some(2));
        offer(&mut hello);
        stream.send(1, &hello);
        let frame = stream.receive().expect("an answer");
        let list = List::parse(&frame.nv).unwrap();
        let text = |name: &str| (name.to_owned(), list.str(name).map(str::to_owned));
        list.pairs().map(|pair| text(std::str::from_utf8(pair.name).unwrap())).collect()
    };
    let plain = [("version".to_owned(), None), ("token".to_owned(), None)];
    assert_eq!(answered(&|_| ()), plain);
    assert_eq!(answered(&|hello| _ = hello.str("hast_ext", "")), plain);
    assert_eq!(answered(&|hello| _ = hello.str("hast_ext", "later sync-marksman")), plain);
    assert_eq!(answered(&|hello| _ = hello.u8("hast_ext", 1)), plain);
    let [version, token] = plain;
    let agreed = ("hast_ext".to_owned(), Some("sync-marks busy".to_owned()));
    assert_eq!(
        answered(&|hello| _ = hello.str("hast_ext", "later busy sync-marks other")),
        [version, token, agreed]
    );
}
