//! Workers against peers that misbehave: the test is the other node.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use hast_conf::Resource;
use hast_engine::{Event, Side};
use hast_net::Replication;
use hast_net::buffer::{Buffer, Pool};
use hast_net::frame;
use hast_net::handshake::{Extensions, FirstAnswer, SecondAnswer, SecondHello, SecondReply, SyncSource};
use hast_net::message::{self, Command, FromPrimary, Message, Reply, Request};
use hast_net::payload::{self, Checksum, Compression, Stages};
use hastd::ipc::{StartKind, ToSupervisor, ToWorker};

use crate::harness::*;

const PLAIN: Stages = Stages { compression: Compression::None, checksum: Checksum::None };

/// A secondary worker, and the primary's ends of its connections.
struct Secondary {
    _directory: tempfile::TempDir,
    disk: Disk,
    worker: Worker,
    out: TcpStream,
    in_: TcpStream,
}

impl Secondary {
    fn start(version: u8) -> Secondary {
        Secondary::start_in(&[], version, 20)
    }

    fn start_in(environment: &[(&str, &str)], version: u8, timeout: u32) -> Secondary {
        let directory = tempfile::tempdir().unwrap();
        let disk = Disk::create(directory.path(), "b");
        let ((out, their_out), (in_, their_in)) = (loopback(), loopback());
        let hello = SecondHello {
            resource: NAME.into(),
            token: [1; 16],
            virgin: true,
            resuid: 77,
            localcnt: 0,
            remotecnt: 0,
            boot: None,
            parting: None,
            meeting: None,
        };
        let kind = StartKind::Secondary {
            out: their_out.into(),
            in_: their_in.into(),
            version,
            ext: Extensions::NONE,
            hello,
        };
        let resource = Resource { timeout, ..resource(&disk) };
        let worker = Worker::spawn_in(environment, &resource, disk.open(), kind);
        let secondary = Secondary { _directory: directory, disk, worker, out, in_ };
        let frame = read_frame(&secondary.out, &mut receiver()).unwrap();
        let answer = SecondReply::decode(&frame.list().unwrap()).unwrap();
        assert!(matches!(answer, SecondReply::Answer(SecondAnswer { virgin: true, mapsize: 0, .. })));
        secondary
    }

    fn send(&mut self, message: &Message) {
        self.out.write_all(&bytes(message)).unwrap();
    }
}

fn bytes(message: &Message) -> Vec<u8> {
    let (mut bytes, data) = message::to_wire(message, 2, PLAIN).unwrap();
    if let Some(data) = data {
        bytes.extend_from_slice(&data);
    }
    bytes
}

fn write(seq: u64, offset: u64, data: Vec<u8>) -> Message {
    let length = data.len() as u64;
    let data = Some(Buffer::from(data));
    Message::Request(Request { command: Command::Write, seq, offset, length, memsync: true, data })
}

#[test]
fn everything_answered_as_received_is_stored_when_the_connection_ends() {
    let mut secondary = Secondary::start(2);
    let block = 128 << 10;
    let all: Vec<u8> = (1..=100_u64)
        .flat_map(|seq| bytes(&write(seq, (seq - 1) * block, pattern(seq, 128 << 10))))
        .collect();
    let mut out = secondary.out.try_clone().unwrap();
    let sender = std::thread::spawn(move || out.write_all(&all));
    let mut received = Vec::new();
    let mut replies = receiver();
    while received.len() < 60 {
        let mut frame = read_frame(&secondary.in_, &mut replies).unwrap();
        payload::decode(&mut frame, 1 << 20, &Pool::new()).unwrap();
        let reply = Reply::decode(frame).unwrap();
        assert_eq!(reply.error, None);
        if reply.received {
            received.push(reply.seq);
        }
    }
    // In the middle of everything both connections break.
    secondary.in_.shutdown(std::net::Shutdown::Both).unwrap();
    // The worker may have been quicker with the other one.
    let _ = secondary.out.shutdown(std::net::Shutdown::Both);
    let _ = sender.join().unwrap();
    assert_eq!(secondary.worker.exit_code(), Some(75));
    let disk = secondary.disk.data();
    for seq in received {
        let at = ((seq - 1) * block) as usize;
        assert!(disk[at..at + block as usize] == pattern(seq, block as usize), "write {seq} is lost");
    }
}

/// L14: whatever `timeout` is, and though the supervisor has said stop, or is gone: what was answered with
/// `received` is stored, if that takes eight seconds.
#[test]
fn a_slow_disk_is_waited_for_when_a_secondary_ends() {
    let (block, count) = (128_u64 << 10, 16);
    let ends = [true, false].map(|told| {
        std::thread::spawn(move || {
            let mut secondary = Secondary::start_in(&[("HASTD_TEST_SLOW", "2000")], 2, 1);
            for seq in 1..=count {
                secondary.send(&write(seq, (seq - 1) * block, pattern(seq, 128 << 10)));
            }
            let mut replies = receiver();
            for _ in 0..count {
                let frame = read_frame(&secondary.in_, &mut replies).unwrap();
                assert!(Reply::decode(frame).unwrap().received);
            }
            if told {
                secondary.worker.tell(ToWorker::Stop);
            } else {
                secondary.worker.channel = None;
            }
            assert_eq!(secondary.worker.exit_code(), Some(0));
            let disk = secondary.disk.data();
            for seq in 1..=count {
                let at = ((seq - 1) * block) as usize;
                assert!(disk[at..at + block as usize] == pattern(seq, 128 << 10), "write {seq} is lost");
            }
        })
    });
    for end in ends {
        end.join().unwrap();
    }
}

#[test]
fn every_request_is_answered_though_nothing_follows_it() {
    let mut secondary = Secondary::start(2);
    let mut replies = receiver();
    let data = pattern(1, 128 << 10);
    for batch in 1..=40_u64 {
        let all: Vec<Vec<u8>> =
            (1..=batch).map(|seq| bytes(&write(seq, seq * (128 << 10), data.clone()))).collect();
        secondary.out.write_all(&all.concat()).unwrap();
        let mut left = batch * 2;
        while left > 0 {
            let reply = Reply::decode(read_frame(&secondary.in_, &mut replies).unwrap()).unwrap();
            assert!(reply.error.is_none() && reply.seq <= batch);
            left -= 1;
        }
    }
    assert_eq!(secondary.worker.stop(), Some(0));
}

#[test]
fn a_message_cut_short_changes_nothing() {
    let mut secondary = Secondary::start(2);
    let before = secondary.disk.data();
    let whole = bytes(&write(1, 0, pattern(1, 64 << 10)));
    secondary.out.write_all(&whole[..whole.len() - 512]).unwrap();
    secondary.out.shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(secondary.worker.exit_code(), Some(75));
    assert!(secondary.disk.data() == before);
}

#[test]
fn a_bad_range_is_answered_and_the_link_stays() {
    let mut secondary = Secondary::start(2);
    let before = std::fs::read(&secondary.disk.path).unwrap();
    let mut replies = receiver();
    for (seq, offset) in [(1, 1), (2, u64::MAX - 511), (3, 1 << 40), (4, 0_u64.wrapping_sub(4096))] {
        secondary.send(&write(seq, offset, pattern(seq, 4096)));
        let reply = Reply::decode(read_frame(&secondary.in_, &mut replies).unwrap()).unwrap();
        assert_eq!((reply.seq, reply.error.map(|error| error.to_wire())), (seq, Some(22)));
    }
    assert!(std::fs::read(&secondary.disk.path).unwrap() == before, "not a byte was written");
    secondary.send(&write(9, 4096, pattern(9, 4096)));
    loop {
        let reply = Reply::decode(read_frame(&secondary.in_, &mut replies).unwrap()).unwrap();
        assert_eq!((reply.seq, reply.error), (9, None));
        if !reply.received {
            break;
        }
    }
    assert!(secondary.disk.data()[4096..8192] == pattern(9, 4096));
    assert_eq!(secondary.worker.stop(), Some(0));
}

#[test]
fn nonsense_ends_a_secondary_and_writes_nothing() {
    for nonsense in [vec![0xff; 100], vec![2, 0xff, 0xff, 0xff, 0x7f], frame::encode(2, &[]).unwrap()] {
        let mut secondary = Secondary::start(2);
        let before = secondary.disk.data();
        secondary.out.write_all(&nonsense).unwrap();
        assert_eq!(secondary.worker.exit_code(), Some(75), "{nonsense:?}");
        assert!(secondary.disk.data() == before);
    }
}

#[test]
fn a_resource_id_of_another_pair_is_refused_with_words() {
    let mut first = Secondary::start(2);
    assert_eq!(first.worker.stop(), Some(0));
    let ((out, their_out), (in_, their_in)) = (loopback(), loopback());
    let hello = SecondHello {
        resource: NAME.into(),
        token: [1; 16],
        virgin: false,
        resuid: 78,
        localcnt: 0,
        remotecnt: 0,
        boot: None,
        parting: None,
        meeting: None,
    };
    let kind = StartKind::Secondary {
        out: their_out.into(),
        in_: their_in.into(),
        version: 2,
        ext: Extensions::NONE,
        hello,
    };
    let mut worker = Worker::spawn(&resource(&first.disk), first.disk.open(), kind);
    let frame = read_frame(&out, &mut receiver()).unwrap();
    let reply = SecondReply::decode(&frame.list().unwrap()).unwrap();
    let SecondReply::Refused(refused) = reply else { panic!("{reply:?}") };
    assert_eq!(refused.errmsg, "Resource unique ID mismatch (primary=78, secondary=77).");
    assert_eq!(worker.exit_code(), Some(78));
    drop(in_);
}

#[test]
fn a_primary_that_asks_without_listening_is_held_back() {
    let mut secondary = Secondary::start(2);
    let count = 3000_u64;
    let mut out = secondary.out.try_clone().unwrap();
    let asked = Arc::new(AtomicU64::new(0));
    let asking = Arc::clone(&asked);
    let asker = std::thread::spawn(move || {
        for seq in 1..=count {
            let (command, memsync, data) = (Command::Read, false, None);
            let offset = (seq % 64) * (128 << 10);
            let request = Request { command, seq, offset, length: 128 << 10, memsync, data };
            out.write_all(&bytes(&Message::Request(request))).unwrap();
            asking.store(seq, Ordering::Relaxed);
        }
    });
    wait_until_still(&asked);
    let mut seen = std::collections::HashSet::new();
    let mut replies = receiver();
    while seen.len() < count as usize {
        let mut frame = read_frame(&secondary.in_, &mut replies).unwrap();
        payload::decode(&mut frame, 1 << 20, &Pool::new()).unwrap();
        let reply = Reply::decode(frame).unwrap();
        assert_eq!(reply.error, None);
        assert_eq!(reply.data.map(|data| data.len()), Some(128 << 10));
        assert!(seen.insert(reply.seq), "request {} was answered twice", reply.seq);
    }
    asker.join().unwrap();
    if let Some(peak) = secondary.worker.peak_memory() {
        assert!(peak < 300 << 20, "{peak} bytes for {} bytes of answers", count << 17);
    }
    assert_eq!(secondary.worker.stop(), Some(0));
}

/// Waits until a count has stopped rising for a while.
fn wait_until_still(count: &AtomicU64) {
    let mut before = u64::MAX;
    wait_for("a standstill", || {
        let now = count.load(Ordering::Relaxed);
        std::thread::sleep(Duration::from_millis(300));
        (std::mem::replace(&mut before, now) == now).then_some(())
    });
}

/// A primary worker, and what its supervisor does for it.
struct Primary {
    _directory: tempfile::TempDir,
    disk: Disk,
    device: Device,
    worker: Worker,
}

impl Primary {
    fn start(timeout: u32) -> Primary {
        Primary::start_as(timeout, Replication::Memsync)
    }

    fn start_as(timeout: u32, replication: Replication) -> Primary {
        let directory = tempfile::tempdir().unwrap();
        let disk = Disk::create(directory.path(), "a");
        let device = Device::new(directory.path());
        let mut resource = resource(&disk);
        resource.timeout = timeout;
        resource.replication = replication;
        resource.compression = Compression::None;
        let worker = Worker::spawn(&resource, disk.open(), device.kind());
        Primary { _directory: directory, disk, device, worker }
    }

    /// Waits until the worker wants a connection, passing over what is no longer wanted.
    fn wants(&self) -> (Side, u32) {
        loop {
            if let ToSupervisor::Connect { side, id } = self.worker.hear_next() {
                return (side, id);
            }
        }
    }

    fn connect(&self, expected: Side) -> TcpStream {
        let (side, id) = self.wants();
        assert_eq!(side, expected);
        let (theirs, ours) = loopback();
        self.worker.tell(ToWorker::Connected { side, id, socket: theirs.into() });
        ours
    }

    /// A secondary, as far as the end of the handshake.
    fn handshake(&self) -> (TcpStream, TcpStream) {
        let mut out = self.connect(Side::Out);
        read_frame(&out, &mut receiver()).unwrap();
        let answer = FirstAnswer { version: 2, token: [3; 16], ext: Extensions::NONE };
        out.write_all(&frame::encode(2, answer.encode().as_bytes()).unwrap()).unwrap();
        let in_ = self.connect(Side::In);
        let frame = read_frame(&in_, &mut receiver()).unwrap();
        let hello = SecondHello::decode(&frame.list().unwrap()).unwrap();
        assert_eq!(hello.token, [3; 16]);
        let metadata = self.disk.metadata();
        let answer = SecondAnswer {
            datasize: metadata.datasize,
            extentsize: metadata.extentsize,
            localcnt: 0,
            remotecnt: hello.localcnt,
            virgin: hello.virgin,
            syncsrc: SyncSource::Primary,
            mapsize: 0,
            boot: None,
            peer_timeout: None,
            met: None,
            zero_deletes: false,
        };
        out.write_all(&bytes(&Message::SecondAnswer(answer, None))).unwrap();
        (out, in_)
    }

    fn wait_event(&self, expected: Event) {
        wait_for("an event", || match self.worker.hear_next() {
            ToSupervisor::Event { event, .. } if event == expected => Some(()),
            _ => None,
        });
    }
}

#[test]
fn a_secondary_that_stops_reading_delays_writes_by_the_timeout_and_no_more() {
    let primary = Primary::start(1);
    let (_out, _in) = primary.handshake();
    primary.wait_event(Event::Connect);
    let client = primary.device.connect();
    let data = pattern(1, 8 << 20);
    client.write(0, &data).unwrap();
    client.write(4 << 20, &data).unwrap();
    primary.wait_event(Event::Disconnect);
    assert!(client.read(4 << 20, 8 << 20).unwrap() == data);
    assert!(primary.disk.data()[4 << 20..12 << 20] == data[..]);
}

#[test]
fn nonsense_from_a_secondary_costs_the_connection_and_nothing_else() {
    let mut primary = Primary::start(5);
    let client = primary.device.connect();
    for round in 0..3_u64 {
        let (mut out, mut in_) = primary.handshake();
        primary.wait_event(Event::Connect);
        let garbage = pattern(round + 1, 3000);
        if round == 0 {
            in_.write_all(&garbage).unwrap()
        } else {
            out.write_all(&garbage).unwrap()
        }
        primary.wait_event(Event::Disconnect);
        client.write(round * 4096, &pattern(round, 4096)).unwrap();
        // The worker has closed both.
        let _ = out.read_to_end(&mut Vec::new());
        let _ = in_.read_to_end(&mut Vec::new());
    }
    assert!(client.read(0, 4096).unwrap() == pattern(0, 4096));
    assert_eq!(primary.worker.stop(), Some(0));
}

#[test]
fn a_connection_that_comes_too_late_is_dropped() {
    let mut primary = Primary::start(5);
    let (_, first) = primary.wants();
    let (theirs, mut late) = loopback();
    primary.worker.tell(ToWorker::ConnectFailed { side: Side::Out, id: first, error: "refused".into() });
    primary.worker.tell(ToWorker::Connected { side: Side::Out, id: first, socket: theirs.into() });
    let mut nothing = Vec::new();
    late.read_to_end(&mut nothing).unwrap();
    assert_eq!(nothing, [], "nothing was said on it");
    let (side, second) = primary.wants();
    assert_eq!(side, Side::Out);
    assert_ne!(first, second);
    assert_eq!(primary.worker.stop(), Some(0));
}

#[test]
fn a_stop_does_not_wait_for_a_silent_secondary_for_ever() {
    let mut primary = Primary::start(1);
    let (_out, _in) = primary.handshake();
    primary.wait_event(Event::Connect);
    let client = primary.device.connect();
    let writer = std::thread::spawn(move || client.write(0, &pattern(1, 1 << 20)));
    primary.worker.tell(ToWorker::Stop);
    assert_eq!(primary.worker.exit_code(), Some(0));
    // Answered or closed, but over.
    let _ = writer.join().unwrap();
}

/// Answers whatever a primary asks, without a disk.
fn answer(out: &TcpStream, mut in_: &TcpStream) {
    let mut requests = receiver();
    let pool = Pool::new();
    while let Ok(mut frame) = read_frame(out, &mut requests) {
        payload::decode(&mut frame, 1 << 20, &pool).unwrap();
        if let FromPrimary::Request(request) = FromPrimary::decode(frame).unwrap() {
            assert_ne!(request.command, Command::Read);
            let reply = Reply { seq: request.seq, received: false, error: None, data: None };
            if in_.write_all(&bytes(&Message::Reply(reply))).is_err() {
                return;
            }
        }
    }
}

#[test]
fn an_async_primary_does_not_run_away_from_a_slow_secondary() {
    let mut primary = Primary::start_as(60, Replication::Async);
    let (out, in_) = primary.handshake();
    primary.wait_event(Event::Connect);
    let client = Arc::new(primary.device.connect());
    let (writes, block) = (3000_u64, 128 << 10);
    let written = Arc::new(AtomicU64::new(0));
    let threads: Vec<_> = (0..8_u64)
        .map(|writer| {
            let (client, written) = (Arc::clone(&client), Arc::clone(&written));
            std::thread::spawn(move || {
                for round in 0..writes / 8 {
                    let slot = writer * 12 + round % 12;
                    client.write(slot * block, &pattern(slot, block as usize)).unwrap();
                    written.fetch_add(1, Ordering::Relaxed);
                }
            })
        })
        .collect();
    wait_until_still(&written);
    assert!(written.load(Ordering::Relaxed) < writes, "375 MiB are somewhere in memory");
    let slow = std::thread::spawn(move || answer(&out, &in_));
    for thread in threads {
        thread.join().unwrap();
    }
    client.flush().unwrap();
    if let Some(peak) = primary.worker.peak_memory() {
        assert!(peak < 300 << 20, "{peak} bytes for {} bytes of writes", writes * block);
    }
    assert_eq!(primary.worker.stop(), Some(0));
    slow.join().unwrap();
}
