//! Control frames captured from the original's hastctl and hastd, and from hand-made requests: what they say, the
//! bytes they are made of, and what a hastd must answer.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::fs;
use std::path::{Path, PathBuf};

use hast_format::metadata::Role;
use hast_net::buffer::Pool;
use hast_net::control::{Command, Entry, Facts, Rejected, Reply, Request, WorkerStatus};
use hast_net::frame::{self, Frame, FrameError, Limits, Receiver};
use serde_json::Value;

fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/vectors/control")
}

/// One exchange.
struct Capture {
    name: String,
    /// What went to hastd, and what came back; a side is `None` if it is no frame.
    request: Side,
    reply: Side,
}

struct Side {
    bytes: Vec<u8>,
    frame: Option<Frame>,
    /// The pairs of the frame, as the capture describes them.
    described: Vec<Value>,
    error: Option<FrameError>,
    /// Whether the stream ended between frames.
    idle: bool,
}

impl Side {
    fn new(json: &Value) -> Side {
        let file = json["file"].as_str().unwrap();
        let bytes = fs::read(directory().join(file)).unwrap();
        assert_eq!(bytes.len() as u64, json["bytes"], "{file}");
        let mut receiver = Receiver::new(Limits::CONTROL, Pool::new());
        let mut error = None;
        // Byte by byte: nothing may come out early.
        for (index, byte) in bytes.iter().enumerate() {
            receiver.space()[0] = *byte;
            if let Err(failed) = receiver.advance(1) {
                error = Some(failed);
                break;
            }
            if index + 1 < bytes.len() {
                assert_eq!(receiver.next_frame(), None, "{file}: early");
            }
        }
        let idle = receiver.is_idle();
        let frame = receiver.next_frame();
        assert_eq!(receiver.next_frame(), None, "{file}: a second frame");
        let described = match json["frames"].as_array().unwrap().as_slice() {
            [] => Vec::new(),
            [frame] => frame["nv"].as_array().unwrap().clone(),
            _ => panic!("{file}: several frames"),
        };
        Side { bytes, frame, described, error, idle }
    }

    /// The described value of a pair, if there is one of that type.
    fn value(&self, name: &str, kind: &str) -> Option<&Value> {
        let pair = self.described.iter().find(|pair| pair["name"] == name)?;
        (pair["type"] == kind).then(|| &pair["value"])
    }

    fn string(&self, name: &str) -> Option<&str> {
        self.value(name, "string").map(|value| value.as_str().unwrap())
    }

    fn number(&self, name: &str, kind: &str) -> Option<i128> {
        let value = self.value(name, kind)?;
        value.as_u64().map(i128::from).or_else(|| value.as_i64().map(i128::from))
    }

    /// `resource0`, `resource1` and so on.
    fn resources(&self) -> Vec<&str> {
        (0..).map_while(|index| self.string(&format!("resource{index}"))).collect()
    }
}

fn captures() -> Vec<Capture> {
    let mut paths: Vec<PathBuf> = fs::read_dir(directory())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|ending| ending == "json"))
        .collect();
    paths.sort();
    assert_eq!(paths.len(), 24);
    let capture = |path: PathBuf| {
        let json: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        Capture {
            name: json["name"].as_str().unwrap().to_owned(),
            request: Side::new(&json["c2d"]),
            reply: Side::new(&json["d2c"]),
        }
    };
    paths.into_iter().map(capture).collect()
}

/// A frame with zeros after each name, where the original leaves what its heap held. Walks the pairs by hand.
fn mask_name_padding(frame: &[u8]) -> Vec<u8> {
    let mut bytes = frame.to_vec();
    let mut at = 5;
    while at < bytes.len() {
        let name = usize::from(bytes[at + 1]);
        let data = u32::from_le_bytes(bytes[at + 2..at + 6].try_into().unwrap()) as usize;
        let padded = name.next_multiple_of(8);
        bytes[at + 6 + name..at + 6 + padded].fill(0);
        at += 6 + padded + data.next_multiple_of(8);
    }
    bytes
}

/// The frame that carries the list.
fn framed(list: &[u8]) -> Vec<u8> {
    frame::encode(frame::VERSION, list).unwrap()
}

#[test]
fn requests_are_understood_and_written_the_same() {
    let mut understood = 0;
    for Capture { name, request: side, .. } in captures() {
        let Some(frame) = &side.frame else { continue };
        let Ok(request) = Request::decode(&frame.list().unwrap()) else {
            assert!(name.starts_with("raw-"), "{name}");
            continue;
        };
        understood += 1;
        let command = match (side.number("cmd", "uint8"), side.number("role", "uint8")) {
            (Some(1), Some(1)) => Command::SetRole(Role::Init),
            (Some(1), Some(2)) => Command::SetRole(Role::Primary),
            (Some(1), Some(3)) => Command::SetRole(Role::Secondary),
            (Some(2), None) => Command::Status,
            other => panic!("{name}: {other:?}"),
        };
        assert_eq!(request.command, command, "{name}");
        assert_eq!(request.resources, side.resources(), "{name}");
        assert_eq!(request.is_all(), side.resources()[0] == "all", "{name}");
        assert_eq!(framed(&request.encode()), mask_name_padding(&side.bytes), "{name}");
    }
    assert_eq!(understood, 16);
}

/// Numbers and texts of one entry, one by one as the capture describes them.
fn check_entry(name: &str, side: &Side, index: usize, entry: &Entry) {
    let key = |key: &str| format!("{key}{index}");
    let text = |field: &str| side.string(&key(field)).unwrap_or_else(|| panic!("{name}: no {field}{index}"));
    let number = |field: &str, kind: &str| {
        side.number(&key(field), kind).unwrap_or_else(|| panic!("{name}: no {field}{index}"))
    };
    assert_eq!(entry.name(), text("resource"), "{name}");
    match entry {
        Entry::Error { error, .. } => assert_eq!(i128::from(*error), number("error", "int16"), "{name}"),
        Entry::RoleWas { role, .. } => assert_eq!(role, text("role"), "{name}"),
        Entry::Status { status, .. } => {
            assert_eq!(status.provname, text("provname"));
            assert_eq!(status.localpath, text("localpath"));
            assert_eq!(status.remoteaddr, text("remoteaddr"));
            assert_eq!(status.sourceaddr.as_deref(), side.string(&key("sourceaddr")));
            assert_eq!(status.replication, text("replication"));
            assert_eq!(status.checksum, text("checksum"));
            assert_eq!(status.compression, text("compression"));
            assert_eq!(status.role, text("role"));
            assert_eq!(i128::from(status.workerpid), number("workerpid", "int32"));
            assert_eq!(status.worker.is_some(), status.workerpid != 0, "{name}");
            assert_eq!(status.facts, None, "{name}");
            let Some(worker) = &status.worker else { return };
            assert_eq!(worker.facts, Facts::default(), "{name}");
            let WorkerStatus { complete, dirty, extentsize, keepdirty, statistics, .. } = *worker;
            assert_eq!(if complete { "complete" } else { "degraded" }, text("status"));
            assert_eq!(i128::from(dirty), number("dirty", "uint64"));
            assert_eq!(i128::from(extentsize), number("extentsize", "uint32"));
            assert_eq!(i128::from(keepdirty), number("keepdirty", "uint32"));
            for (field, value) in [
                ("stat_read", statistics.reads),
                ("stat_write", statistics.writes),
                ("stat_delete", statistics.deletes),
                ("stat_flush", statistics.flushes),
                ("stat_activemap_update", statistics.activemap_updates),
                ("stat_read_error", statistics.read_errors),
                ("stat_write_error", statistics.write_errors),
                ("stat_delete_error", statistics.delete_errors),
                ("stat_flush_error", statistics.flush_errors),
                ("idle_queue_size", statistics.idle_queue),
                ("local_queue_size", statistics.local_queue),
                ("send_queue_size", statistics.send_queue),
                ("recv_queue_size", statistics.recv_queue),
                ("done_queue_size", statistics.done_queue),
            ] {
                assert_eq!(i128::from(value), number(field, "uint64"), "{name}: {field}");
            }
        }
    }
}

#[test]
fn replies_are_understood_and_written_the_same() {
    let mut kinds = [0; 4];
    for Capture { name, reply: side, .. } in captures() {
        let Some(frame) = &side.frame else { continue };
        assert_eq!(frame.version, frame::VERSION);
        let reply = Reply::decode(&frame.list().unwrap()).unwrap();
        match &reply {
            Reply::Reloaded(told) => panic!("{name}: {told:?}"),
            Reply::Error(error) => {
                kinds[0] += 1;
                assert_eq!(Some(i128::from(*error)), side.number("error", "int16"), "{name}");
            }
            Reply::Entries(entries) => {
                assert_eq!(entries.len(), side.resources().len(), "{name}");
                for (index, entry) in entries.iter().enumerate() {
                    check_entry(&name, &side, index, entry);
                    kinds[match entry {
                        Entry::Error { .. } => 1,
                        Entry::RoleWas { .. } => 2,
                        Entry::Status { .. } => 3,
                    }] += 1;
                }
            }
        }
        assert_eq!(framed(&reply.encode()), mask_name_padding(&side.bytes), "{name}");
    }
    assert_eq!(kinds, [5, 4, 10, 23], "global errors, errors, roles, status");
}

/// What hastd does with a request that is none is what the original did.
#[test]
fn bad_requests_get_the_captured_answer() {
    let mut checked = Vec::new();
    for Capture { name, request, reply } in captures() {
        let answer = match &request.frame {
            None => {
                // Of a version that nobody knows, or cut off: closed without an answer.
                assert!(request.error.is_some() || !request.idle, "{name}");
                None
            }
            Some(frame) => match Request::decode(&frame.list().unwrap()) {
                Ok(_) => continue,
                Err(Rejected::Close) => None,
                Err(Rejected::Error(error)) => Some(Reply::Error(error)),
            },
        };
        let bytes = answer.map_or_else(Vec::new, |reply| framed(&reply.encode()));
        assert_eq!(bytes, mask_name_padding(&reply.bytes), "{name}");
        checked.push(name);
    }
    let expected = [
        "raw-bad-cmd",
        "raw-bad-cmd-all",
        "raw-bad-role",
        "raw-no-cmd",
        "raw-no-resource",
        "raw-no-role",
        "raw-short",
        "raw-version3",
    ];
    checked.sort();
    assert_eq!(checked, expected);
}

#[test]
fn all_counts_only_as_the_first_name() {
    let capture = captures().into_iter().find(|capture| capture.name == "raw-all-not-first").unwrap();
    let request = Request::decode(&capture.request.frame.unwrap().list().unwrap()).unwrap();
    assert!(!request.is_all());
    assert_eq!(request.resources, ["disk0", "all"]);
    let reply = Reply::decode(&capture.reply.frame.unwrap().list().unwrap()).unwrap();
    let Reply::Entries(entries) = reply else { panic!() };
    assert_eq!(entries[1], Entry::error("all", hast_net::control::ERROR_NO_ENTRY));
}

#[test]
fn a_version_that_nobody_knows_is_refused() {
    let capture = captures().into_iter().find(|capture| capture.name == "raw-version3").unwrap();
    assert_eq!(capture.request.error, Some(FrameError::Version(3)));
}
