//! Both ends of the channel against each other.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;

use hast_conf::{KernelDevice, Replication, Resource};
use hast_engine::{Event, Side};
use hast_format::metadata::Role;
use hast_net::address::Address;
use hast_net::control::{ConnectionState, Divergence, Facts, Statistics, WorkerStatus};
use hast_net::handshake::{Extensions, Parting, SecondHello};
use hast_net::payload::{Checksum, Compression};
use nix::sys::socket::{setsockopt, sockopt};

use super::codec::message;
use super::{
    Channel, GateStart, Outgoing, PACKET_MAX, Packet, Reload, Start, StartKind, ToSupervisor, ToWorker,
    make_room,
};

fn channels() -> (Channel, Channel) {
    let (ours, theirs) = Channel::pair().unwrap();
    (ours, Channel::new(theirs).unwrap())
}

fn resource(remote: &str) -> Resource {
    Resource {
        name: "disk0".into(),
        provname: "prov/0".into(),
        localpath: "/dev/sdb".into(),
        remote: Address::parse_remote(remote).unwrap(),
        source: Some(Address::parse_source("tcp4://10.9.0.1").unwrap()),
        replication: Replication::Async,
        checksum: Checksum::Sha256,
        compression: Compression::Lzf,
        timeout: 7,
        peer_timeout: 3,
        direct_reads: true,
        device: KernelDevice::Nbd,
        exec: Some("/etc/hook".into()),
        metaflush: false,
    }
}

/// Whether two descriptors are the two ends of one connection.
fn connected(one: OwnedFd, other: &mut UnixStream) -> bool {
    UnixStream::from(one).write_all(b"x").unwrap();
    let mut byte = [0; 1];
    other.read_exact(&mut byte).unwrap();
    byte == *b"x"
}

/// As where the administrator has made the system's own room smaller (FreeBSD: `net.local.seqpacket`).
#[test]
fn the_longest_packet_finds_room() {
    let (ours, theirs) = Channel::pair().unwrap();
    for socket in [&ours.socket, &theirs] {
        setsockopt(socket, sockopt::SndBuf, &4096).unwrap();
        setsockopt(socket, sockopt::RcvBuf, &4096).unwrap();
    }
    let list = vec![7; PACKET_MAX - 4];
    let mut packet = Outgoing::from(Packet { nv: list.clone(), descriptors: Vec::new() });
    // Linux refuses it, FreeBSD has no room now, and never would have.
    assert!(!matches!(packet.send(ours.as_fd()), Ok(true)));
    make_room(&ours.socket).unwrap();
    make_room(&theirs).unwrap();
    assert!(packet.send(ours.as_fd()).unwrap());
    assert_eq!(Channel::new(theirs).unwrap().recv().unwrap().unwrap().nv, list);
}

#[test]
fn a_secondary_starts_with_everything_it_was_given() {
    let (supervisor, worker) = channels();
    let ends: Vec<_> = (0..3).map(|_| UnixStream::pair().unwrap()).collect();
    let (mut kept, mut given): (Vec<_>, Vec<_>) = ends.into_iter().unzip();
    let mut give = || OwnedFd::from(given.remove(0));
    let hello = SecondHello {
        resource: "disk0".into(),
        token: *b"0123456789abcdef",
        virgin: true,
        resuid: u64::MAX,
        localcnt: 3,
        remotecnt: 4,
        boot: Some(*b"fedcba9876543210"),
        parting: Some(Parting {
            last: 1,
            next: u64::MAX,
            divergence: Some(Divergence { extentsize: 512, here: 1, there: 2, both: 0, exact: false }),
        }),
        meeting: None,
    };
    let start = Start {
        resource: resource("none"),
        debug: 2,
        background: true,
        drop_privileges: true,
        boot: [7; 16],
        forced: false,
        provider: give(),
        kind: StartKind::Secondary {
            out: give(),
            in_: give(),
            version: 2,
            ext: Extensions::SYNC_MARKS,
            hello: hello.clone(),
        },
        unsure: false,
        detached: None,
    };
    supervisor.send_to_worker(ToWorker::Start(Box::new(start))).unwrap();

    let Some(ToWorker::Start(start)) = worker.recv_from_supervisor().unwrap() else { panic!() };
    assert_eq!(start.role(), Role::Secondary);
    assert_eq!(start.resource, resource("none"));
    assert_eq!((start.debug, start.background, start.drop_privileges), (2, true, true));
    assert_eq!((start.boot, start.forced), ([7; 16], false));
    let StartKind::Secondary { out, in_, version, ext, hello: received } = start.kind else { panic!() };
    assert_eq!((version, ext, received), (2, Extensions::SYNC_MARKS, hello));
    assert!(connected(start.provider, &mut kept[0]));
    assert!(connected(out, &mut kept[1]));
    assert!(connected(in_, &mut kept[2]));
}

#[test]
fn a_primary_starts_with_its_devices() {
    for has in [(true, false), (false, true), (true, true), (false, false)] {
        a_primary_starts_with(has);
    }
}

fn a_primary_starts_with(has: (bool, bool)) {
    let (supervisor, worker) = channels();
    let (mut provider, given_provider) = UnixStream::pair().unwrap();
    let (mut nbd, given_nbd) = UnixStream::pair().unwrap();
    let (mut gate, given_gate) = UnixStream::pair().unwrap();
    let start = Start {
        resource: resource("tcp4://10.9.0.2"),
        debug: 0,
        background: false,
        drop_privileges: false,
        boot: [0; 16],
        forced: true,
        provider: given_provider.into(),
        kind: StartKind::Primary {
            nbd: has.0.then(|| given_nbd.into()),
            gate: has
                .1
                .then(|| GateStart { control: given_gate.into(), owner: "hastd at /var/run/hastctl".into() }),
            served: has.0,
            left_behind: !has.1,
        },
        unsure: false,
        detached: None,
    };
    supervisor.send_to_worker(ToWorker::Start(Box::new(start))).unwrap();
    let Some(ToWorker::Start(start)) = worker.recv_from_supervisor().unwrap() else { panic!() };
    assert_eq!(start.role(), Role::Primary);
    assert_eq!(start.resource, resource("tcp4://10.9.0.2"));
    assert!(start.forced);
    let StartKind::Primary { nbd: received, gate: received_gate, served, left_behind } = start.kind else {
        panic!()
    };
    assert_eq!((served, left_behind), (has.0, !has.1));
    assert!(connected(start.provider, &mut provider));
    assert_eq!((received.is_some(), received_gate.is_some()), has);
    assert!(received.is_none_or(|received| connected(received, &mut nbd)));
    let Some(GateStart { control, owner }) = received_gate else { return };
    assert!(connected(control, &mut gate));
    assert_eq!(owner, "hastd at /var/run/hastctl");
}

#[test]
fn messages_keep_order_and_end_with_the_sender() {
    let (supervisor, worker) = channels();
    let reload = Reload { resource: resource("b:9000"), reconnect: true };
    let failed = ToWorker::ConnectFailed { side: Side::In, id: 9, error: "Connection refused".into() };
    supervisor.send_to_worker(ToWorker::Reload(Box::new(reload))).unwrap();
    supervisor.send_to_worker(failed).unwrap();
    supervisor.send_to_worker(ToWorker::Status { id: 77 }).unwrap();
    supervisor.send_to_worker(ToWorker::Stop).unwrap();
    drop(supervisor);
    let Some(ToWorker::Reload(reload)) = worker.recv_from_supervisor().unwrap() else { panic!() };
    assert_eq!((reload.resource, reload.reconnect), (resource("b:9000"), true));
    let Some(ToWorker::ConnectFailed { side: Side::In, id: 9, error }) =
        worker.recv_from_supervisor().unwrap()
    else {
        panic!()
    };
    assert_eq!(error, "Connection refused");
    assert!(matches!(worker.recv_from_supervisor().unwrap(), Some(ToWorker::Status { id: 77 })));
    assert!(matches!(worker.recv_from_supervisor().unwrap(), Some(ToWorker::Stop)));
    assert!(worker.recv_from_supervisor().unwrap().is_none());
}

#[test]
fn what_the_worker_says_arrives() {
    let (supervisor, worker) = channels();
    let error = supervisor.recv_from_worker().unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::WouldBlock);

    let statistics = Statistics { reads: 1, done_queue: u64::MAX, flush_errors: 5, ..Statistics::default() };
    let facts = Facts {
        inconsistent_since: Some(u64::MAX),
        inconsistent_by: "tcp4://10.9.0.1".into(),
        target: true,
        stale_bytes: 1 << 41,
        peer_is_original: Some(false),
        synchronising: true,
        to_synchronise_bytes: 7,
        clients: vec![17, 0, u32::MAX],
        divergence: Some(Divergence { extentsize: 4096, here: 3, there: 1 << 40, both: 2, exact: true }),
        ..Facts::default()
    };
    let status =
        WorkerStatus { complete: true, dirty: 1 << 40, extentsize: 4096, keepdirty: 64, statistics, facts };
    worker.send_to_supervisor(ToSupervisor::Connect { side: Side::Out, id: 1 }).unwrap();
    worker.send_to_supervisor(ToSupervisor::Cancel { id: 1 }).unwrap();
    worker.send_to_supervisor(ToSupervisor::Begun).unwrap();
    worker.send_to_supervisor(ToSupervisor::ClientLost).unwrap();
    let event = ToSupervisor::Event { event: Event::SplitBrain, complete: true, dirty: 1 << 40 };
    worker.send_to_supervisor(event).unwrap();
    let (state, reason) = (ConnectionState::Refused, "Data size differs.".to_owned());
    worker.send_to_supervisor(ToSupervisor::Connection { state, reason: reason.clone() }).unwrap();
    worker.send_to_supervisor(ToSupervisor::Status { id: 2, status: Box::new(status.clone()) }).unwrap();
    let unknown = WorkerStatus {
        facts: Facts { detached: true, possibly_behind: true, split_brain: true, ..Facts::default() },
        ..WorkerStatus::default()
    };
    worker.send_to_supervisor(ToSupervisor::Status { id: 3, status: Box::new(unknown.clone()) }).unwrap();
    // What the supervisor sent and nobody read must not hide what the worker said before it ended.
    supervisor.send_to_worker(ToWorker::Stop).unwrap();
    drop(worker);

    let received = || supervisor.recv_from_worker().unwrap();
    assert!(matches!(received(), Some(ToSupervisor::Connect { side: Side::Out, id: 1 })));
    assert!(matches!(received(), Some(ToSupervisor::Cancel { id: 1 })));
    assert!(matches!(received(), Some(ToSupervisor::Begun)));
    assert!(matches!(received(), Some(ToSupervisor::ClientLost)));
    let Some(ToSupervisor::Event { event: Event::SplitBrain, complete, dirty }) = received() else {
        panic!()
    };
    assert_eq!((complete, dirty), (true, 1 << 40));
    let Some(ToSupervisor::Connection { state: ConnectionState::Refused, reason: same }) = received() else {
        panic!()
    };
    assert_eq!(same, reason);
    let Some(ToSupervisor::Status { id: 2, status: same }) = received() else { panic!() };
    assert_eq!(*same, status);
    let Some(ToSupervisor::Status { id: 3, status: same }) = received() else { panic!() };
    assert_eq!(*same, unknown);
    assert!(received().is_none());
}

#[test]
fn a_reader_that_sleeps_loses_nothing_and_blocks_nobody() {
    let (supervisor, worker) = channels();
    let mut sent = 0;
    while !supervisor.wants_write() {
        supervisor.send_to_worker(ToWorker::Status { id: sent }).unwrap();
        sent += 1;
    }
    let mut seen = 0;
    while seen < sent {
        match worker.recv_from_supervisor() {
            Ok(Some(ToWorker::Status { id })) => {
                assert_eq!(id, seen);
                seen += 1;
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => supervisor.flush().unwrap(),
            other => panic!("{other:?}"),
        }
    }
    assert!(!supervisor.wants_write());
    loop {
        match supervisor.send_to_worker(ToWorker::Stop) {
            Ok(()) => {}
            Err(error) => break assert_eq!(error.kind(), io::ErrorKind::TimedOut),
        }
    }
}

#[test]
fn rubbish_is_refused() {
    let (supervisor, worker) = channels();
    let mut bad: Vec<Packet> = vec![Packet { nv: b"rubbish".to_vec(), descriptors: vec![] }];
    for name in ["nonsense", "connect", "cancel", "event", "status"] {
        bad.push(message(name).into());
    }
    let count = bad.len();
    bad.into_iter().for_each(|packet| worker.send(packet).unwrap());
    for _ in 0..count {
        let error = supervisor.recv_from_worker().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    }
    let mut missing = message("connected");
    missing.u8("side", 0).u32("id", 1);
    supervisor.send(missing.into()).unwrap();
    let error = worker.recv_from_supervisor().unwrap_err();
    assert!(error.to_string().contains("descriptor"), "{error}");
}

/// Since FreeBSD 15 a packet may be taken, and come, in pieces.
#[test]
fn a_packet_in_pieces_is_put_together() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let channel = Channel::new(theirs.into()).unwrap();
    let (mut kept, given) = UnixStream::pair().unwrap();
    let connected_message = ToWorker::Connected { side: Side::In, id: 7, socket: given.into() };
    let mut outgoing = Outgoing::from(connected_message.encode());
    let rest = outgoing.bytes.split_off(3);
    assert!(outgoing.send(ours.as_fd()).unwrap());
    for byte in rest {
        assert_eq!(channel.recv_from_supervisor().unwrap_err().kind(), io::ErrorKind::WouldBlock);
        (&ours).write_all(&[byte]).unwrap();
    }
    let Some(ToWorker::Connected { side: Side::In, id: 7, socket }) = channel.recv_from_supervisor().unwrap()
    else {
        panic!()
    };
    assert!(connected(socket, &mut kept));
}

#[test]
fn a_packet_whose_length_is_wrong_is_refused() {
    for head in [0, 1, u32::MAX, 65_536] {
        let (ours, theirs) = Channel::pair().unwrap();
        let channel = Channel::new(theirs).unwrap();
        let bytes = [&head.to_le_bytes()[..], b"four and more"].concat();
        Outgoing { bytes, descriptors: Vec::new() }.send(ours.as_fd()).unwrap();
        assert_eq!(channel.recv_from_supervisor().unwrap_err().kind(), io::ErrorKind::InvalidData);
        // What comes next is read from its beginning.
        ours.send_to_worker(ToWorker::Stop).unwrap();
        assert!(matches!(channel.recv_from_supervisor().unwrap(), Some(ToWorker::Stop)));
    }
}
