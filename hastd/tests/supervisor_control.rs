//! The control socket: what is answered, what is refused, and that nobody holds up anybody else.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod support;

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use hast_format::metadata::Role;
use hast_format::nv::{List, Writer};
use hast_net::control::{Entry, Reply};
use hast_net::frame::{self, Frame};
use support::{PATIENCE, Place, exchange, set_role, status, wait_for};

/// The three resources of the captures, as node `a` sees them.
const RESOURCES: &str = "
    resource disk0 {
        on a { local /hast/a.img remote tcp4://127.0.0.2:8457 source tcp4://127.0.0.1 }
    }
    resource second {
        replication fullsync checksum sha256 compression lzf name prov2
        on a { local /hast/a2.img remote tcp4://127.0.0.2:8457 }
    }
    resource third { replication async local /hast/third.img on a { remote none } }
";

fn captures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/vectors/control")
}

/// Names, types and values of the pairs; padding is nobody's business.
fn pairs(frame: &Frame) -> Vec<(Vec<u8>, u8, Vec<u8>)> {
    let list = List::parse(&frame.nv).unwrap();
    list.pairs().map(|pair| (pair.name.to_vec(), pair.kind.code(), pair.data.to_vec())).collect()
}

fn decoded(bytes: &[u8]) -> Option<Frame> {
    let mut receiver = frame::Receiver::new(frame::Limits::CONTROL, hast_net::buffer::Pool::new());
    let mut rest = bytes;
    while !rest.is_empty() {
        let space = receiver.space();
        let length = rest.len().min(space.len());
        space[..length].copy_from_slice(&rest[..length]);
        receiver.advance(length).unwrap();
        rest = &rest[length..];
    }
    receiver.next_frame()
}

#[test]
fn requests_captured_from_the_original_are_answered_like_there() {
    let place = Place::new();
    place.configure(RESOURCES);
    let _daemon = place.start();
    let mut compared = 0;
    for entry in fs::read_dir(captures()).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        let Some(name) = name.strip_suffix(".c2d.bin") else { continue };
        // The other captures were taken when resources had other roles.
        if !name.starts_with("control-raw-") && !name.ends_with("-init-all") && name != "control-role-unknown"
        {
            continue;
        }
        let request = fs::read(&path).unwrap();
        let expected = fs::read(captures().join(format!("{name}.d2c.bin"))).unwrap();
        let answer = exchange(&place.control(), &request);
        match decoded(&expected) {
            None => assert_eq!(answer, None, "{name}"),
            Some(expected) => {
                let answer = answer.unwrap_or_else(|| panic!("no answer to {name}"));
                assert_eq!(answer.version, expected.version, "{name}");
                assert_eq!(pairs(&answer), pairs(&expected), "{name}");
            }
        }
        compared += 1;
    }
    assert!(compared >= 12, "{compared}");
}

/// The original does not look for a payload, whatever a request says of one.
#[test]
fn a_request_that_speaks_of_a_payload_is_answered() {
    let place = Place::new();
    place.configure("resource one { local @/one on a { remote none } }");
    let _daemon = place.start();
    for size in [1, 4096, u32::MAX] {
        let mut list = Writer::new();
        list.str("resource0", "one").u8("cmd", 2).u32("size", size);
        let answer =
            exchange(&place.control(), &frame::encode(2, list.as_bytes()).unwrap()).expect("an answer");
        assert_eq!(answer.list().unwrap().str("resource0"), Some("one"), "{size}");
    }
}

/// bsnmpd's snmp_hast takes a number of another type for 0, and a key that is missing for nothing: it is given what the
/// original gives, in the order of pairs in which it asks.
#[test]
fn snmp_hast_finds_every_key_with_its_type() {
    let place = Place::new();
    place.configure(
        "resource disk0 { local @/disk0 on a { remote tcp4://127.0.0.1:1 source tcp4://127.0.0.1 } }
         resource second { local @/second on a { remote none } }
         resource third { local @/third on a { remote none } }",
    );
    for name in ["disk0", "second", "third"] {
        place.create(name, name);
    }
    let _daemon = place.start();
    let ask = |list: &Writer| {
        exchange(&place.control(), &frame::encode(2, list.as_bytes()).unwrap()).expect("an answer")
    };
    for (name, role) in [("disk0", 2), ("second", 3), ("third", 2)] {
        let mut list = Writer::new();
        list.str("resource0", name).u8("cmd", 1).u8("role", role);
        assert_eq!(shape(&ask(&list), 0), shape(&captured("control-role-primary-a"), 0));
    }
    for name in ["disk0", "third"] {
        wait_for("what the worker says", || place.status(name).worker);
    }
    let mut list = Writer::new();
    list.str("resource0", "all").u8("cmd", 2);
    let answer = ask(&list);
    let node_a = captured("control-list-running-a");
    assert_eq!(shape(&answer, 0), shape(&node_a, 0));
    assert_eq!(shape(&answer, 0).len(), 28);
    // A secondary that nobody has connected to has no worker.
    assert_eq!(shape(&answer, 1), shape(&captured("control-list-running-b"), 2));
    // Without a source address.
    assert_eq!(shape(&answer, 2), shape(&node_a, 2));
    assert_eq!(
        pairs(&answer).len(),
        [0, 1, 2].map(|index| shape(&answer, index).len()).iter().sum::<usize>()
    );
}

/// What the original answered.
fn captured(name: &str) -> Frame {
    decoded(&fs::read(captures().join(format!("{name}.d2c.bin"))).unwrap()).unwrap()
}

/// What is said about one resource: keys without its number, and types.
fn shape(frame: &Frame, index: usize) -> Vec<(String, u8)> {
    let own = |(name, kind, _): (Vec<u8>, u8, Vec<u8>)| {
        let key = String::from_utf8(name).unwrap().strip_suffix(&index.to_string())?.to_owned();
        Some((key, kind))
    };
    pairs(frame).into_iter().filter_map(own).collect()
}

#[test]
fn a_role_changes_once_and_the_former_one_is_told() {
    let place = Place::new();
    place.configure(
        "resource one { local @/one on a { remote none } } resource two { local @/two on a { remote none } }",
    );
    place.provider("one");
    place.provider("two");
    let _daemon = place.start();
    assert_eq!(place.set_role(Role::Secondary, &["one"]), ["init"]);
    assert_eq!(place.set_role(Role::Secondary, &["all"]), ["secondary", "init"]);
    assert_eq!(place.set_role(Role::Secondary, &["two", "two"]), ["secondary", "secondary"]);
    let two = place.status("two");
    assert_eq!((two.role.as_str(), two.workerpid, two.worker), ("secondary", 0, None));
    assert_eq!(two.remoteaddr, "none");
    let reply = place.ask(&set_role(Role::Init, &["one", "nosuch", "two"]));
    let was = |name: &str| Entry::RoleWas {
        name: name.to_owned(),
        role: "secondary".to_owned(),
        peer_behind: false,
    };
    let unknown = Entry::error("nosuch".to_owned(), 1);
    assert_eq!(reply, Reply::Entries(vec![was("one"), unknown, was("two")]));
    assert!(place.log().contains("[INFO] [one] (init) Role changed to secondary.\n"));
    assert!(place.log().contains("[INFO] [two] (secondary) Role changed to init.\n"));
}

#[test]
fn without_resources_the_answer_is_not_empty() {
    let place = Place::new();
    place.configure("");
    let _daemon = place.start();
    let request = frame::encode(2, &status(&["all"]).encode()).unwrap();
    let answer = exchange(&place.control(), &request).unwrap();
    assert_eq!(pairs(&answer).len(), 1);
    assert_eq!(place.ask(&status(&["all"])), Reply::Entries(vec![]));
}

#[test]
fn the_socket_is_its_owners() {
    let place = Place::new();
    place.configure("");
    let _daemon = place.start();
    assert_eq!(fs::metadata(place.control()).unwrap().permissions().mode() & 0o777, 0o600);
}

#[test]
fn silent_clients_hold_up_nobody() {
    let place = Place::new();
    place.configure("resource one { local @/one on a { remote none } }");
    place.provider("one");
    let _daemon = place.start();
    // More than are served at a time: some silent, some in the middle of a request.
    let mut silent: Vec<UnixStream> = Vec::new();
    for number in 0..150 {
        let mut socket = UnixStream::connect(place.control()).unwrap();
        let request = frame::encode(2, &status(&["one"]).encode()).unwrap();
        let _ = socket.write_all(&request[..number % request.len()]);
        silent.push(socket);
    }
    assert_eq!(place.set_role(Role::Secondary, &["one"]), ["init"]);
    assert_eq!(place.role("one"), "secondary");
    // Each of them is closed in the end, most without a word.
    for mut socket in silent {
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut rest = Vec::new();
        let _ = socket.read_to_end(&mut rest);
    }
    assert_eq!(place.role("one"), "secondary");
}

#[test]
fn a_header_above_16_mib_is_refused_before_it_is_sent() {
    let place = Place::new();
    place.configure("");
    let _daemon = place.start();
    let mut socket = UnixStream::connect(place.control()).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut prefix = vec![2];
    prefix.extend_from_slice(&((16_u32 << 20) + 1).to_le_bytes());
    socket.write_all(&prefix).unwrap();
    let mut rest = Vec::new();
    assert_eq!(socket.read_to_end(&mut rest).unwrap(), 0);
    // One that is only long is read to its end.
    let mut list = Writer::new();
    list.u8("cmd", 2).str("resource0", "all").str("padding", &"x".repeat(1 << 20));
    let answer = exchange(&place.control(), &frame::encode(2, list.as_bytes()).unwrap());
    assert!(answer.is_some());
}

#[test]
fn one_name_very_often_is_bounded() {
    let place = Place::new();
    place.configure("resource one { local @/one on a { remote none } }");
    let _daemon = place.start();
    assert_eq!(place.ask(&status(&["one"; 20000])), Reply::Error(2));
    let Reply::Entries(entries) = place.ask(&status(&["one"; 2000])) else { panic!() };
    assert_eq!(entries.len(), 2000);
}

/// Whatever is wrong with a provider: the node is no primary, is not said to be one, and no hook hears of one.
#[test]
fn a_primary_whose_provider_cannot_be_used_is_none() {
    let place = Place::new();
    let hook = place.hook();
    place
        .configure(&format!("exec {} resource one {{ local @/one on a {{ remote none }} }}", hook.display()));
    let _daemon = place.start();
    let path = place.path("one");
    let what = path.display();
    let error = |role: &str, text: &str| format!("[ERROR] [one] ({role}) {text}\n");
    let refused = |text: &str| {
        assert_eq!(place.refused(Role::Primary, "one"), 66);
        assert_eq!(place.role("one"), "init");
        let line = error("init", text);
        assert!(place.log().contains(&line), "{line}\n{}", place.log());
    };
    refused(&format!("Unable to open {what}: No such file or directory."));
    place.create("one", "two");
    refused(&format!("Provider {what} is not part of resource one."));
    place.create("one", "one");
    std::fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(65536).unwrap();
    assert_eq!(place.refused(Role::Primary, "one"), 66);
    assert!(place.log().contains(&format!("[ERROR] [one] (init) Metadata on {what} is unusable: ")));
    place.provider("one");
    assert_eq!(place.refused(Role::Primary, "one"), 66);
    assert!(place.log().contains(&format!("[ERROR] [one] (init) Unable to read metadata from {what}: ")));
    let holder = hast_provider::Provider::open(&place.create("one", "one"), true).unwrap();
    holder.lock().unwrap();
    assert_eq!(place.refused(Role::Primary, "one"), 66);
    assert!(place.log().contains("is in use"), "{}", place.log());
    drop(holder);
    assert!(!place.path("events").exists());

    // Nor does a secondary become one; it is in role init afterwards, and has let go of everything.
    place.set_role(Role::Secondary, &["one"]);
    assert_eq!(place.wait_for_lines("events", 1), ["role one init secondary"]);
    place.provider("one");
    assert_eq!(place.refused(Role::Primary, "one"), 66);
    assert_eq!(place.role("one"), "init");
    assert!(place.log().contains("[WARNING] [one] (secondary) Role changed to init instead of primary.\n"));
    hast_provider::Provider::open(&path, true).unwrap().lock().unwrap();
    place.create("one", "one");
    assert_eq!(place.set_role(Role::Primary, &["one"]), ["init"]);
    assert_eq!(place.wait_for_lines("events", 2)[1..], ["role one init primary"]);
}

/// A secondary needs its disk when a primary comes, not before.
#[test]
fn a_secondary_whose_provider_cannot_be_opened_is_one_all_the_same() {
    let place = Place::new();
    let hook = place.hook();
    place
        .configure(&format!("exec {} resource one {{ local @/one on a {{ remote none }} }}", hook.display()));
    let _daemon = place.start();
    assert_eq!(place.set_role(Role::Secondary, &["one"]), ["init"]);
    assert_eq!(place.role("one"), "secondary");
    let missing = place.path("one");
    let line =
        format!("[ERROR] [one] (init) Unable to open {}: No such file or directory.\n", missing.display());
    assert_eq!(place.log().matches(&line).count(), 1, "{}", place.log());
    assert_eq!(place.wait_for_lines("events", 1), ["role one init secondary"]);
    assert_eq!(place.set_role(Role::Init, &["one"]), ["secondary"]);
}

#[test]
fn a_provider_in_use_is_waited_for_while_others_go_on() {
    let place = Place::new();
    place.configure(
        "resource held { local @/held on a { remote none } } resource free { local @/free on a { remote none } }",
    );
    let held = place.provider("held");
    place.provider("free");
    let _daemon = place.start();

    // Let go in time.
    let holder = hast_provider::Provider::open(&held, true).unwrap();
    holder.lock().unwrap();
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| place.set_role(Role::Secondary, &["held", "free"]));
        wait_for("the other resource's role", || (place.role("free") == "secondary").then_some(()));
        assert_eq!(place.role("held"), "init");
        drop(holder);
        assert_eq!(waiting.join().unwrap(), ["init", "init"]);
    });
    assert_eq!(place.role("held"), "secondary");
    // Now it is hastd's.
    assert!(hast_provider::Provider::open(&held, true).unwrap().lock().is_err());
    place.set_role(Role::Init, &["held"]);

    // Not let go: the role changes without it.
    let holder = hast_provider::Provider::open(&held, true).unwrap();
    holder.lock().unwrap();
    assert_eq!(place.set_role(Role::Secondary, &["held"]), ["init"]);
    assert_eq!(place.role("held"), "secondary");
    assert!(place.log().contains("[ERROR] [held] (init) Provider"), "{}", place.log());
    assert!(place.log().contains("is in use"), "{}", place.log());
}

#[test]
fn role_hooks_are_told_what_was_and_what_is() {
    let place = Place::new();
    let hook = place.hook();
    place
        .configure(&format!("resource one {{ exec {} local @/one on a {{ remote none }} }}", hook.display()));
    place.provider("one");
    let _daemon = place.start();
    place.set_role(Role::Secondary, &["one"]);
    place.set_role(Role::Secondary, &["one"]);
    place.wait_for_lines("events", 1);
    place.set_role(Role::Init, &["one"]);
    let events = place.wait_for_lines("events", 2);
    assert_eq!(events, ["role one init secondary", "role one secondary init"]);
}

#[test]
fn hooks_inherit_nothing_but_standard_descriptors_and_report_their_end() {
    let place = Place::new();
    let hook = place.path("hook");
    let script = format!(
        "#!/bin/sh\nls /proc/$$/fd > {}\ngrep SigBlk /proc/self/status >> {}\nexit 3\n",
        place.path("events").display(),
        place.path("events").display()
    );
    fs::write(&hook, script).unwrap();
    fs::set_permissions(&hook, fs::Permissions::from_mode(0o755)).unwrap();
    place
        .configure(&format!("exec {} resource one {{ local @/one on a {{ remote none }} }}", hook.display()));
    place.provider("one");
    let _daemon = place.start();
    place.set_role(Role::Secondary, &["one"]);
    place.wait_for_log("exitcode=3");
    let events = fs::read_to_string(place.path("events")).unwrap();
    let descriptors: Vec<u32> = events.lines().map_while(|line| line.parse().ok()).collect();
    // The shell keeps its script open at 10 or above.
    assert!(descriptors.iter().all(|number| *number <= 2 || *number >= 10), "{events}");
    assert!(events.contains("SigBlk:\t0000000000000000"), "{events}");
    assert!(place.log().contains(&format!("cmd=[{} role one init secondary]", hook.display())));
}
