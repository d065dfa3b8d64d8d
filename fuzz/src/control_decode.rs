//! The control protocol: frames from hastctl to hastd and back.
//!
//! What is understood can be written again and is then understood the same; nothing that a client sends makes
//! more of it than was sent.

use hast_format::metadata::Role;
use hast_format::nv::List;
use hast_net::buffer::Pool;
use hast_net::control::{
    Command, Connection, ConnectionState, Divergence, Entry, Facts, Reply, Request, ResourceStatus,
    Statistics, WorkerStatus,
};
use hast_net::frame::{self, Limits, Receiver};

use crate::messages::feed;
use crate::source::Source;

/// An even first byte: the rest is a stream as it comes from the socket. An odd one: it is a script that makes
/// a request and a reply.
pub fn run(data: &[u8]) {
    let Some((kind, rest)) = data.split_first() else { return };
    if kind & 1 == 0 {
        stream(rest, usize::from(kind >> 1).max(1));
    } else {
        let source = &mut Source::new(rest);
        check_request(&request(source));
        check_reply(&reply(source));
    }
}

/// Cuts the stream and reads every frame as either.
fn stream(bytes: &[u8], piece: usize) {
    let mut receiver = Receiver::new(Limits::CONTROL, Pool::new());
    let (frames, _) = feed(&mut receiver, bytes, piece);
    for frame in frames {
        assert_eq!(frame.payload, None, "the control protocol has no payloads");
        let list = frame.list().expect("a receiver gives well-formed lists");
        understand(&list);
    }
}

/// Reads a list as request and as reply.
pub fn understand(list: &List<'_>) {
    let pairs = list.pairs().count();
    if let Ok(request) = Request::decode(list) {
        assert!(!request.resources.is_empty() && request.resources.len() <= pairs);
        check_request(&request);
    }
    if let Ok(reply) = Reply::decode(list) {
        if let Reply::Entries(entries) = &reply {
            assert!(entries.len() <= pairs);
        }
        check_reply(&reply);
    }
}

/// That a request comes through its own encoding and a frame.
fn check_request(request: &Request) {
    let bytes = through_a_frame(&request.encode());
    let list = List::parse(&bytes).expect("our own list");
    assert_eq!(Request::decode(&list).as_ref(), Ok(request));
    let all = request.resources.first().is_some_and(|name| name == "all");
    assert_eq!(request.is_all(), all);
}

/// The same for a reply.
fn check_reply(reply: &Reply) {
    let bytes = through_a_frame(&reply.encode());
    let list = List::parse(&bytes).expect("our own list");
    assert_eq!(Reply::decode(&list).as_ref(), Ok(reply));
}

/// What is received when `list` is sent.
fn through_a_frame(list: &[u8]) -> Vec<u8> {
    let bytes = frame::encode(frame::VERSION, list).expect("a list of ours fits");
    let mut receiver = Receiver::new(Limits::CONTROL, Pool::new());
    let (mut frames, outcome) = feed(&mut receiver, &bytes, usize::MAX);
    assert_eq!(outcome, Ok(()));
    assert!(frames.len() == 1 && receiver.is_idle());
    frames.remove(0).nv.to_vec()
}

fn role(source: &mut Source<'_>) -> Role {
    source.choose(&[Role::Init, Role::Primary, Role::Secondary])
}

/// A text that the encoding can hold.
fn text(source: &mut Source<'_>) -> String {
    source.text().replace('\0', "")
}

fn request(source: &mut Source<'_>) -> Request {
    let command = if source.flag() { Command::SetRole(role(source)) } else { Command::Status };
    let extra = source.flag();
    let resources = (0..=source.below(12)).map(|_| text(source)).collect();
    Request {
        force: extra && command != Command::Status,
        verbose: extra && command == Command::Status,
        ..Request::new(command, resources)
    }
}

fn reply(source: &mut Source<'_>) -> Reply {
    if source.one_in(8) {
        return Reply::Error(error(source));
    }
    Reply::Entries((0..source.below(8)).map(|_| entry(source)).collect())
}

fn error(source: &mut Source<'_>) -> i16 {
    source.number::<i16>().max(1)
}

fn entry(source: &mut Source<'_>) -> Entry {
    let name = text(source);
    match source.below(3) {
        0 => Entry::Error { name, error: error(source), reason: source.flag().then(|| text(source)) },
        1 => Entry::RoleWas { name, role: text(source), peer_behind: source.flag() },
        _ => Entry::Status { name, status: Box::new(status(source)) },
    }
}

fn status(source: &mut Source<'_>) -> ResourceStatus {
    ResourceStatus {
        provname: text(source),
        localpath: text(source),
        remoteaddr: text(source),
        sourceaddr: source.flag().then(|| text(source)),
        replication: text(source),
        checksum: text(source),
        compression: text(source),
        role: text(source),
        workerpid: source.number(),
        worker: source.flag().then(|| worker(source)),
        facts: source.flag().then(|| facts(source)),
        connection: source.flag().then(|| connection(source)),
    }
}

fn connection(source: &mut Source<'_>) -> Connection {
    let states = [ConnectionState::Connected, ConnectionState::Refused, ConnectionState::TwoPrimaries];
    let state = states[usize::from(source.byte()) % states.len()];
    Connection { state, reason: text(source), since: source.number() }
}

fn worker(source: &mut Source<'_>) -> WorkerStatus {
    WorkerStatus {
        complete: source.flag(),
        dirty: source.number(),
        extentsize: source.number(),
        keepdirty: source.number(),
        statistics: Statistics {
            reads: source.number(),
            flush_errors: source.number(),
            done_queue: source.number(),
            ..Statistics::default()
        },
        facts: Facts::default(),
    }
}

fn facts(source: &mut Source<'_>) -> Facts {
    let inconsistent_since = source.flag().then(|| source.number());
    Facts {
        inconsistent_since,
        inconsistent_by: inconsistent_since.map(|_| text(source)).unwrap_or_default(),
        target: source.flag(),
        stale_bytes: source.number(),
        detached: source.flag(),
        possibly_behind: source.flag(),
        split_brain: source.flag(),
        peer_is_original: source.flag().then(|| source.flag()),
        synchronising: source.flag(),
        to_synchronise_bytes: source.number(),
        clients: (0..source.number::<u8>() % 3).map(|_| source.number()).collect(),
        divergence: source.flag().then(|| Divergence {
            extentsize: source.number(),
            here: source.number(),
            there: source.number(),
            both: source.number(),
            exact: source.flag(),
        }),
    }
}
