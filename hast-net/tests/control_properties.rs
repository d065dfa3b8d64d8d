//! Control requests and replies with any content, with pairs missing, twice, or of the wrong type.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use hast_format::metadata::Role;
use hast_format::nv::{List, Writer};
use hast_net::control::{
    Command, Connection, ConnectionState, Divergence, ERROR_INVALID, ERROR_UNIMPLEMENTED, Entry, Facts,
    Rejected, Reloaded, Reply, ReplyError, Request, ResourceStatus, Statistics, WorkerStatus,
};
use proptest::collection::vec;
use proptest::prelude::*;

fn list(build: impl FnOnce(&mut Writer)) -> Vec<u8> {
    let mut list = Writer::new();
    build(&mut list);
    list.into_bytes()
}

fn request(build: impl FnOnce(&mut Writer)) -> Result<Request, Rejected> {
    Request::decode(&List::parse(&list(build)).unwrap())
}

fn reply(build: impl FnOnce(&mut Writer)) -> Result<Reply, ReplyError> {
    Reply::decode(&List::parse(&list(build)).unwrap())
}

fn role() -> impl Strategy<Value = Role> {
    prop::sample::select(vec![Role::Init, Role::Primary, Role::Secondary])
}

/// Any text without a NUL, which cannot be sent.
fn text() -> impl Strategy<Value = String> {
    vec(prop::char::range('\u{1}', '\u{300}'), 0..20).prop_map(|chars| chars.into_iter().collect())
}

prop_compose! {
    fn statistics()(values in any::<[u64; 14]>()) -> Statistics {
        let [reads, writes, deletes, flushes, activemap_updates, read_errors, write_errors, delete_errors,
            flush_errors, idle_queue, local_queue, send_queue, recv_queue, done_queue] = values;
        Statistics { reads, writes, deletes, flushes, activemap_updates, read_errors, write_errors, delete_errors,
            flush_errors, idle_queue, local_queue, send_queue, recv_queue, done_queue }
    }
}

prop_compose! {
    fn worker()(
        (complete, dirty, extentsize, keepdirty) in any::<(bool, u64, u32, u32)>(),
        statistics in statistics(),
    ) -> WorkerStatus {
        WorkerStatus { complete, dirty, extentsize, keepdirty, statistics, facts: Facts::default() }
    }
}

prop_compose! {
    fn divergence()(
        extentsize in any::<u32>(), [here, there, both] in any::<[u64; 3]>(), exact in any::<bool>(),
    ) -> Divergence {
        Divergence { extentsize, here, there, both, exact }
    }
}

prop_compose! {
    fn facts()(
        inconsistent in prop::option::of((any::<u64>(), text())),
        [target, detached, possibly_behind, split_brain, synchronising] in any::<[bool; 5]>(),
        [stale_bytes, to_synchronise_bytes] in any::<[u64; 2]>(),
        peer_is_original in any::<Option<bool>>(),
        clients in vec(any::<u32>(), 0..4),
        divergence in prop::option::of(divergence()),
    ) -> Facts {
        let (inconsistent_since, by) = inconsistent.unzip();
        Facts {
            inconsistent_since, inconsistent_by: by.unwrap_or_default(), target, stale_bytes, detached,
            possibly_behind, split_brain, peer_is_original, synchronising, to_synchronise_bytes, clients, divergence,
        }
    }
}

prop_compose! {
    fn connection()(
        state in prop::sample::select(&[
            ConnectionState::Standalone, ConnectionState::Connected, ConnectionState::TwoPrimaries,
            ConnectionState::Refused,
        ][..]),
        reason in text(),
        since in any::<u64>(),
    ) -> Connection {
        Connection { state, reason, since }
    }
}

prop_compose! {
    fn status()(
        (provname, localpath, remoteaddr, sourceaddr) in (text(), text(), text(), prop::option::of(text())),
        (replication, checksum, compression, role) in (text(), text(), text(), text()),
        workerpid in any::<i32>(),
        worker in prop::option::of(worker()),
        facts in prop::option::of(facts()),
        connection in prop::option::of(connection()),
    ) -> ResourceStatus {
        ResourceStatus {
            provname, localpath, remoteaddr, sourceaddr, replication, checksum, compression, role, workerpid, worker,
            facts, connection,
        }
    }
}

fn entry() -> impl Strategy<Value = Entry> {
    let error = any::<i16>().prop_filter("no error", |error| *error != 0);
    prop_oneof![
        (text(), error, proptest::option::of(text())).prop_map(|(name, error, reason)| Entry::Error {
            name,
            error,
            reason
        }),
        (text(), text(), any::<bool>()).prop_map(|(name, role, peer_behind)| Entry::RoleWas {
            name,
            role,
            peer_behind
        }),
        (text(), status()).prop_map(|(name, status)| Entry::Status { name, status: Box::new(status) }),
    ]
}

proptest! {
    #[test]
    fn requests_round_trip(role in prop::option::of(role()), resources in vec(text(), 1..20), more: bool) {
        let command = role.map_or(Command::Status, Command::SetRole);
        let (force, verbose) = (more && role.is_some(), more && role.is_none());
        let request = Request { command, resources, force, verbose };
        let bytes = request.encode();
        prop_assert_eq!(Request::decode(&List::parse(&bytes).unwrap()), Ok(request));
    }

    #[test]
    fn replies_round_trip(entries in vec(entry(), 0..20)) {
        let reply = Reply::Entries(entries);
        let bytes = reply.encode();
        prop_assert!(!bytes.is_empty());
        prop_assert_eq!(Reply::decode(&List::parse(&bytes).unwrap()), Ok(reply));
    }

    /// Each pair may be missing, or have become another name's: what is left is still an answer.
    #[test]
    fn statuses_with_holes(status in status(), holes in any::<u64>()) {
        let entry = Entry::Status { name: "r".into(), status: Box::new(status.clone()) };
        let bytes = Reply::Entries(vec![entry]).encode();
        let mut holed = Vec::new();
        let mut at = 0;
        let mut left = Vec::new();
        for (number, pair) in List::parse(&bytes).unwrap().pairs().enumerate() {
            let length = 6 + (pair.name.len() + 1).next_multiple_of(8) + pair.data.len().next_multiple_of(8);
            if number == 0 || holes >> number & 1 == 0 {
                holed.extend(&bytes[at..at + length]);
                left.push(String::from_utf8(pair.name.to_vec()).unwrap());
            }
            at += length;
        }
        let has = |name: &str| left.iter().any(|other| other == name);
        match Reply::decode(&List::parse(&holed).unwrap()) {
            Ok(Reply::Entries(entries)) => match &entries[..] {
                [Entry::Status { status: read, .. }] => {
                    let text = |name: &str, value: &str| if has(name) { value.to_owned() } else { "-".to_owned() };
                    prop_assert_eq!(&read.provname, &text("provname0", &status.provname));
                    prop_assert_eq!(&read.localpath, &text("localpath0", &status.localpath));
                    prop_assert_eq!(&read.role, &text("role0", &status.role));
                    prop_assert_eq!(&read.checksum, &text("checksum0", &status.checksum));
                    prop_assert_eq!(read.sourceaddr.is_some(), has("sourceaddr0"));
                    prop_assert_eq!(read.workerpid, if has("workerpid0") { status.workerpid } else { 0 });
                    prop_assert_eq!(read.worker.is_some(), has("status0"));
                    if let (Some(read), Some(worker)) = (&read.worker, &status.worker) {
                        prop_assert_eq!(read.dirty, if has("dirty0") { worker.dirty } else { 0 });
                        let idle = if has("idle_queue_size0") { worker.statistics.idle_queue } else { 0 };
                        prop_assert_eq!(read.statistics.idle_queue, idle);
                    }
                }
                [Entry::RoleWas { role, .. }] => {
                    prop_assert_eq!(role, &status.role);
                    prop_assert!(!has("provname0") && !has("localpath0") && !has("workerpid0"));
                }
                other => prop_assert!(false, "{other:?}"),
            },
            Err(error) => {
                prop_assert!(!has("role0") && !has("provname0"));
                prop_assert_eq!(error.name, "r");
            }
            other => prop_assert!(false, "{other:?}"),
        }
    }

    #[test]
    fn any_numbers_and_names(
        pairs in vec(
            (prop::sample::select(vec!["cmd", "role", "error", "resource0", "resource1", "role0", "error0", "status0",
                "provname0", "workerpid0", "dirty0", "extentsize0"]), any::<i16>(), text(), 0u8..6),
            0..12,
        ),
    ) {
        let bytes = list(|list| {
            for (name, number, text, kind) in &pairs {
                match kind {
                    0 => list.str(name, text),
                    1 => list.u8(name, *number as u8 & 3),
                    2 => list.i16(name, *number),
                    3 => list.u64(name, *number as u64),
                    4 => list.i32(name, i32::from(*number)),
                    _ => list.u8_array(name, text.as_bytes()),
                };
            }
        });
        let list = List::parse(&bytes).unwrap();
        if let Ok(request) = Request::decode(&list) {
            prop_assert_eq!(&request.resources[0], list.str("resource0").unwrap());
        }
        match Reply::decode(&list) {
            Ok(Reply::Error(error)) => prop_assert_eq!(Some(error), list.i16("error")),
            Ok(Reply::Entries(entries)) => prop_assert_eq!(!entries.is_empty(), list.str("resource0").is_some()),
            Ok(reloaded @ Reply::Reloaded(_)) => prop_assert!(false, "{reloaded:?}"),
            Err(error) => prop_assert!(error.name == list.str("resource0").unwrap() || list.contains("resource1")),
        }
    }
}

#[test]
fn faults_are_answered_in_the_original_order() {
    let invalid = Err(Rejected::Error(ERROR_INVALID));
    assert_eq!(request(|_| ()), Err(Rejected::Close));
    assert_eq!(request(|l| _ = l.u8("cmd", 0).str("resource0", "r")), Err(Rejected::Close));
    assert_eq!(request(|l| _ = l.u16("cmd", 2).str("resource0", "r")), Err(Rejected::Close));
    assert_eq!(request(|l| _ = l.u8("cmd", 9)), invalid);
    assert_eq!(request(|l| _ = l.u8("cmd", 2)), invalid);
    assert_eq!(request(|l| _ = l.u8("cmd", 2).str("resource1", "r")), invalid);
    for bad in [0, 4, 255] {
        assert_eq!(request(|l| _ = l.u8("cmd", 1).u8("role", bad).str("resource0", "r")), invalid);
    }
    assert_eq!(request(|l| _ = l.u8("cmd", 1).i8("role", 1).str("resource0", "r")), invalid);
    let unknown = request(|l| _ = l.u8("cmd", 3).str("resource0", "r"));
    assert_eq!(unknown, Err(Rejected::Error(ERROR_UNIMPLEMENTED)));
}

/// An original takes the request for an unknown command, which it is there; its hastctl makes none.
#[test]
fn a_reload_is_asked_for_and_answered() {
    let asked = Request::new(Command::Reload, vec!["all".to_owned()]);
    let bytes = asked.encode();
    let sent = List::parse(&bytes).unwrap();
    assert_eq!((sent.u8("cmd"), sent.str("resource0")), (Some(64), Some("all")));
    assert_eq!(Request::decode(&sent), Ok(asked));
    for (status, lines) in [(0, vec!["Resource a added.".to_owned()]), (78, Vec::new())] {
        let answer = Reply::Reloaded(Reloaded { status, lines });
        let bytes = answer.encode();
        assert_eq!(Reply::decode(&List::parse(&bytes).unwrap()), Ok(answer));
    }
    // An error of an original voids the reply, whatever else is there.
    assert_eq!(reply(|l| _ = l.u8("x_reloaded", 0).i16("error", 4)), Ok(Reply::Error(4)));
}

#[test]
fn names_end_at_the_first_gap() {
    let request = request(|l| {
        l.u8("cmd", 2).str("resource0", "a").str("resource1", "b").str("resource3", "d").u8("resource2", 1);
    });
    assert_eq!(request.unwrap().resources, ["a", "b"]);
    let reply = reply(|l| {
        l.str("resource0", "a").i16("error0", 1).str("resource2", "c").i16("error2", 1);
    });
    assert_eq!(reply, Ok(Reply::Entries(vec![Entry::error("a", 1)])));
}

#[test]
fn the_first_pair_of_a_name_decides() {
    let request = request(|l| {
        l.u8("cmd", 2).str("resource0", "a").str("resource0", "b").u8("resource1", 1).str("resource1", "c");
    });
    assert_eq!(request.unwrap().resources, ["a"]);
}

/// An old hastd answers with an empty list when it has no resources; its own hastctl does not survive that.
#[test]
fn no_resources_at_all() {
    assert_eq!(reply(|_| ()), Ok(Reply::Entries(Vec::new())));
    let bytes = Reply::Entries(Vec::new()).encode();
    let sent = List::parse(&bytes).unwrap();
    assert_eq!(sent.pairs().count(), 1);
    assert!(!sent.contains("resource0") && !sent.contains("error"));
}

#[test]
fn a_global_error_voids_the_reply() {
    assert_eq!(
        reply(|l| _ = l.str("resource0", "a").str("role0", "init").i16("error", 5)),
        Ok(Reply::Error(5))
    );
    // Zero is no error, and neither is one of another type.
    let expected = Ok(Reply::Entries(vec![Entry::RoleWas {
        name: "a".into(),
        role: "init".into(),
        peer_behind: false,
    }]));
    assert_eq!(reply(|l| _ = l.i16("error", 0).str("resource0", "a").str("role0", "init")), expected);
    assert_eq!(reply(|l| _ = l.i32("error", 5).str("resource0", "a").str("role0", "init")), expected);
}

#[test]
fn a_resource_of_which_nothing_is_said() {
    assert_eq!(reply(|l| _ = l.str("resource0", "a")), Err(ReplyError { name: "a".into() }));
}

/// Long lists take time in proportion to their length: a quadratic reader would still be at it.
#[test]
fn very_many_resources() {
    let resources: Vec<String> = (0..100_000).map(|number| format!("r{number}")).collect();
    let request = Request::new(Command::Status, resources);
    let bytes = request.encode();
    assert_eq!(Request::decode(&List::parse(&bytes).unwrap()), Ok(request));
}

#[test]
fn force_and_verbose_are_said_only_where_they_mean_something() {
    let names = |request: Request| -> Vec<String> {
        let bytes = request.encode();
        let list = List::parse(&bytes).unwrap();
        list.pairs().map(|pair| String::from_utf8(pair.name.to_vec()).unwrap()).collect()
    };
    let both = |command| Request { command, resources: vec!["r".into()], force: true, verbose: true };
    assert_eq!(names(both(Command::SetRole(Role::Primary))), ["cmd", "role", "force", "resource0"]);
    assert_eq!(names(both(Command::Status)), ["cmd", "verbose", "resource0"]);
    let plain = |command| Request::new(command, vec!["r".into()]);
    assert_eq!(names(plain(Command::SetRole(Role::Primary))), ["cmd", "role", "resource0"]);
    assert_eq!(names(plain(Command::Status)), ["cmd", "resource0"]);
    // Nobody is forced by accident.
    let read =
        |value: u8| request(|l| _ = l.u8("cmd", 1).u8("role", 2).u8("force", value).str("resource0", "r"));
    assert_eq!([0, 1, 2, 255].map(|value| read(value).unwrap().force), [false, true, false, false]);
    let typed = request(|l| _ = l.u8("cmd", 1).u8("role", 2).i8("force", 1).str("resource0", "r"));
    assert!(!typed.unwrap().force);
}

fn status_with(facts: Option<Facts>, worker: Option<WorkerStatus>) -> Entry {
    let text = String::new;
    let status = ResourceStatus {
        provname: text(),
        localpath: text(),
        remoteaddr: text(),
        sourceaddr: None,
        replication: text(),
        checksum: text(),
        compression: text(),
        role: text(),
        workerpid: 1,
        worker,
        facts,
        connection: None,
    };
    Entry::Status { name: "r".into(), status: Box::new(status) }
}

/// What the original's hastctl reads comes first and is the same, whether facts follow or not.
#[test]
fn facts_follow_all_that_the_original_knows() {
    let worker =
        WorkerStatus { facts: Facts { target: true, ..Facts::default() }, ..WorkerStatus::default() };
    let bytes = |facts| Reply::Entries(vec![status_with(facts, Some(worker.clone()))]).encode();
    let plain = bytes(None);
    assert!(List::parse(&plain).unwrap().pairs().all(|pair| !pair.name.starts_with(b"x_")));
    let told = bytes(Some(worker.facts.clone()));
    assert!(told.len() > plain.len() && told.starts_with(&plain));
    let rest = told[plain.len()..].to_vec();
    assert!(List::parse(&rest).unwrap().pairs().all(|pair| pair.name.starts_with(b"x_")));
}

/// docs/PROTOCOL-EXTENSIONS.md names every pair and every word that only our programs know.
#[test]
fn what_is_ours_alone_is_documented() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/PROTOCOL-EXTENSIONS.md");
    let text = std::fs::read_to_string(path).unwrap();
    let facts = Facts {
        inconsistent_since: Some(1),
        peer_is_original: Some(true),
        clients: vec![1],
        divergence: Some(Divergence::default()),
        ..Facts::default()
    };
    let mut entry = status_with(Some(facts), None);
    if let Entry::Status { status, .. } = &mut entry {
        let (state, reason) = (ConnectionState::Refused, "why".to_owned());
        status.connection = Some(Connection { state, reason, since: 1 });
    }
    let bytes = Reply::Entries(vec![entry]).encode();
    let list = List::parse(&bytes).unwrap();
    let names = list.pairs().map(|pair| std::str::from_utf8(pair.name).unwrap());
    let mut documented = 0;
    for name in names.filter_map(|name| name.strip_suffix('0')).filter(|name| name.starts_with("x_")) {
        assert!(text.contains(&format!("`{name}N`")), "{name}");
        documented += 1;
    }
    assert_eq!(documented, text.matches("\n| `x_").count(), "pairs in the document");
    for word in hast_net::extensions::Extensions::ALL.words().split(' ') {
        assert!(text.contains(&format!("\n| `{word}` |")), "{word}");
    }
}
