//! A7: what a secondary suspects under an original, which never says that it is up to date; on a disk of which only what
//! was flushed counts.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod flushed;

use std::time::Duration;

use hast_engine::*;
use hast_format::bitmap::Bitmap;
use hast_format::extension::{Extension, Run};
use hast_format::metadata::{Metadata, Role};
use hast_net::buffer::Buffer;
use hast_net::errno::Errno;
use hast_net::extensions::Extensions;
use hast_net::frame::Frame;
use hast_net::handshake::*;
use hast_net::message::*;

use flushed::*;

const BOOT: [u8; 16] = [3; 16];
const EARLIER: [u8; 16] = [2; 16];
const ORIGINAL: Extensions = Extensions::NONE;
const OURS: Extensions = Extensions::ALL;

/// A node of a pair whose other one has the counts 4 and 4 if they are in step.
fn counted(role: Role, extension: Extension) -> Metadata {
    metadata(role, (4, 4), extension)
}

fn secondary() -> Metadata {
    counted(Role::Secondary, Extension { boot: BOOT, ..Extension::default() })
}

fn suspected(metadata: Metadata) -> Metadata {
    let extension = Extension { possibly_behind: true, ..metadata.extension };
    Metadata { extension, ..metadata }
}

fn hello(localcnt: u64, remotecnt: u64) -> SecondHello {
    let (resource, token) = ("t".into(), [9; 16]);
    SecondHello {
        resource,
        token,
        virgin: false,
        resuid: 5,
        localcnt,
        remotecnt,
        boot: None,
        parting: None,
        meeting: None,
    }
}

fn suspects(disk: &Disk) -> bool {
    disk.metadata().extension.possibly_behind
}

/// A secondary that has been asked the second time, and what the disk said when each message went out.
struct Node {
    engine: Secondary,
    disk: Disk,
    sent: Vec<(Message, bool)>,
    exit: Option<i32>,
}

impl Node {
    fn new(metadata: &Metadata, map: u8, ext: Extensions, hello: SecondHello) -> Node {
        Node::on(Disk::new(metadata, map), ext, hello)
    }

    fn on(disk: Disk, ext: Extensions, hello: SecondHello) -> Node {
        Node::booted(BOOT, disk, ext, hello)
    }

    fn booted(boot: [u8; 16], disk: Disk, ext: Extensions, hello: SecondHello) -> Node {
        let start = SecondaryStart {
            settings: settings(),
            metadata: disk.metadata(),
            layout: layout(),
            map: disk.map(),
            version: 2,
            ext,
            host: Host { boot, wall: 0, deletes: Deletes::LeaveZeros },
            hello,
            unsure: false,
            former: Bitmap::new(layout().nextents() as u32),
        };
        let engine = Secondary::new(start, Duration::ZERO);
        let mut node = Node { engine, disk, sent: Vec::new(), exit: None };
        node.pump();
        node
    }

    fn pump(&mut self) {
        while let Some(action) = self.engine.poll_action() {
            match action {
                Action::Disk { id, op } => {
                    let result = self.disk.carry_out(&op);
                    self.engine.handle_disk(Duration::ZERO, id, result);
                }
                Action::Send { message, .. } => self.sent.push((message, suspects(&self.disk))),
                Action::Exit(code) => self.exit = Some(code),
                _ => {}
            }
        }
    }

    fn hear(&mut self, message: &Message) {
        let (nv, payload) = message.encode();
        let frame = Frame { version: 2, nv: nv.as_bytes().to_vec().into(), payload };
        self.engine.handle_frame(Duration::ZERO, frame);
        self.pump();
    }

    fn write(&mut self, seq: u64, extent: u64, memsync: bool) {
        let data = Some(Buffer::from(vec![1; ES as usize]));
        let (offset, length) = (extent * u64::from(ES), u64::from(ES));
        self.hear(&Message::Request(Request { command: Command::Write, seq, offset, length, memsync, data }));
    }

    /// What the disk said when the answer went out, which is what the status says too.
    fn answered(&self) -> bool {
        let [(Message::SecondAnswer(..), suspects)] = self.sent[..] else { panic!("{:?}", self.sent) };
        assert_eq!(self.engine.status().facts.possibly_behind, suspects);
        suspects
    }
}

/// A handshake, what it says of an earlier suspicion, and the expected end of both.
#[test]
fn what_a_handshake_shows_is_on_disk_before_the_answer() {
    let booted = |boot| counted(Role::Secondary, Extension { boot, ..Extension::default() });
    let stale = vec![Run { first: 1, count: 1 }];
    let fresh = Metadata::created("t", &layout(), 1);
    let met_alone = Metadata { resuid: 0, localcnt: 0, remotecnt: 0, ..secondary() };
    let ahead = Metadata { localcnt: 6, ..secondary() };
    let virgin = SecondHello { virgin: true, ..hello(1, 0) };
    for (what, metadata, map, hello, expected) in [
        ("in step", secondary(), 0, hello(4, 4), false),
        ("in step, not flushed in time", secondary(), 0b11, hello(4, 4), false),
        ("in step, after a restart", booted(EARLIER), 0, hello(4, 4), false),
        ("in step, perhaps lost in a restart", booted(EARLIER), 0b1, hello(4, 4), true),
        ("in step, perhaps lost, the system does not tell", booted([0; 16]), 0b1, hello(4, 4), true),
        (
            "in step, missed when it was primary",
            counted(Role::Secondary, Extension { stale, boot: BOOT, ..Extension::default() }),
            0b1,
            hello(4, 4),
            true,
        ),
        (
            "in step, its disk refused something",
            counted(Role::Secondary, Extension { unsure: true, boot: BOOT, ..Extension::default() }),
            0b1,
            hello(4, 4),
            true,
        ),
        ("the primary was written alone", secondary(), 0, hello(5, 4), true),
        ("no counts that can be", secondary(), 0, hello(3, 3), true),
        ("the primary is to be synchronised from here", ahead, 0b1, hello(4, 4), false),
        ("first contact with a primary that has data", fresh.clone(), 0, hello(1, 0), true),
        ("first contact, again", met_alone, 0, hello(1, 0), true),
        ("first contact of both", fresh, 0, virgin, false),
    ] {
        for metadata in [metadata.clone(), suspected(metadata)] {
            let node = Node::new(&metadata, map, ORIGINAL, hello.clone());
            assert_eq!(node.answered(), expected, "{what}");
            // The next handshake begins with what is known.
            assert_eq!(suspects(&node.disk), expected, "{what}");
        }
    }
}

/// The history of the issue: the primary dies in the middle, and so do worker and daemon here.
#[test]
fn a_synchronisation_that_broke_off_is_remembered_until_the_nodes_meet_in_step() {
    let mut node = Node::new(&secondary(), 0, ORIGINAL, hello(5, 4));
    node.write(1, 2, false);
    node.engine.handle_lost(Duration::ZERO, "cut");
    node.pump();
    assert!(node.exit.is_some() && suspects(&node.disk));
    // Again, and again not to the end.
    let node = Node::on(node.disk, ORIGINAL, hello(5, 4));
    assert!(node.answered());
    // This time it came to its end: the primary has made the counts equal.
    let node = Node::on(node.disk, ORIGINAL, hello(4, 4));
    assert!(!node.answered());
}

/// The boot counts, not when the metadata happened to be saved: what was lost once is not lost again.
#[test]
fn a_restart_is_one_restart() {
    let earlier = counted(Role::Secondary, Extension { boot: EARLIER, ..Extension::default() });
    let mut node = Node::new(&earlier, 0, ORIGINAL, hello(4, 4));
    assert!(!node.answered());
    node.write(7, 2, false);
    node.engine.handle_lost(Duration::ZERO, "cut");
    node.pump();
    assert_ne!(node.disk.bytes[MAP], 0, "what was written last stays in the map");
    assert!(!Node::on(node.disk, ORIGINAL, hello(4, 4)).answered());
}

/// A system that does not tell its boots may have been started between any two.
#[test]
fn a_boot_that_is_not_told_may_be_another_one() {
    let unknown = [0; 16];
    let metadata = counted(Role::Secondary, Extension::default());
    let begun = |map| Node::booted(unknown, Disk::new(&metadata, map), ORIGINAL, hello(4, 4));
    assert!(!begun(0).answered());
    assert!(begun(1).answered());
}

/// Blocks that this node has not asked for show that the primary knows of more than the handshake said (L5).
#[test]
fn a_synchronisation_that_no_count_announced_is_noticed() {
    let begun = || Node::new(&secondary(), 0b101, ORIGINAL, hello(4, 4));
    for (what, seq, extent, memsync, expected) in [
        ("asked for", 1, 2, false, false),
        ("not asked for", 1, 1, false, true),
        ("the device's, in memsync", 1, 1, true, false),
        ("the device's", 2, 1, false, false),
    ] {
        let mut node = begun();
        assert!(!node.answered());
        node.write(seq, extent, memsync);
        assert_eq!(suspects(&node.disk), expected, "{what}");
        assert_eq!(node.engine.status().facts.possibly_behind, expected, "{what}");
    }
    // Requests that are none make nobody suspicious.
    let mut node = begun();
    node.write(1, EXTENTS, false);
    assert!(!suspects(&node.disk));
    // It is written once.
    let mut node = begun();
    node.write(1, 1, false);
    let generation = node.disk.metadata().extension.generation;
    node.write(1, 3, false);
    assert_eq!(node.disk.metadata().extension.generation, generation);
    // And what cannot be written is at least told.
    let mut node = begun();
    node.disk.broken = true;
    node.write(1, 1, false);
    assert!(node.engine.status().facts.possibly_behind && !suspects(&node.disk));
    assert_eq!(node.exit, None);
}

#[test]
fn without_the_note_there_is_no_answer() {
    let mut disk = Disk::new(&secondary(), 0);
    disk.broken = true;
    let node = Node::on(disk, ORIGINAL, hello(5, 4));
    assert!(node.sent.is_empty(), "{:?}", node.sent);
    assert_eq!(node.exit, Some(66));
}

/// A primary of ours says that this node has everything; a handshake alone does not say it.
#[test]
fn a_primary_of_ours_ends_the_suspicion_when_it_is_done() {
    let mut node = Node::new(&suspected(secondary()), 0, OURS, hello(4, 4));
    assert!(node.answered());
    assert!(suspects(&node.disk));
    let mark = |seq, kind| Message::Mark(Mark { seq, kind });
    node.hear(&mark(1, MarkKind::SyncStart));
    node.write(1, 2, false);
    assert!(suspects(&node.disk));
    node.hear(&mark(2, MarkKind::SyncDone { localcnt: 4, failures: None }));
    let (Message::Reply(reply), suspected) = node.sent.last().unwrap() else { panic!("{:?}", node.sent) };
    assert_eq!((reply.seq, reply.error, suspected), (2, None, &false), "durable before it is said");
    assert!(!node.engine.status().facts.possibly_behind);
    // Nothing that it sends makes this node suspicious.
    node.write(1, 5, false);
    assert!(!suspects(&node.disk));
}

/// A primary that starts from such metadata, and its disk.
struct OurPrimary {
    engine: Primary,
    disk: Disk,
    time: Duration,
    completed: usize,
}

impl OurPrimary {
    fn new(forced: bool) -> OurPrimary {
        let metadata = suspected(secondary());
        let disk = Disk::new(&metadata, 0);
        let start = PrimaryStart {
            settings: settings(),
            map: vec![0; 512],
            metadata,
            layout: layout(),
            random: 7,
            host: Host { boot: BOOT, wall: 0, deletes: Deletes::LeaveZeros },
            forced,
            detached: false,
        };
        let engine = Primary::new(start, Duration::ZERO);
        let mut primary = OurPrimary { engine, disk, time: Duration::ZERO, completed: 0 };
        primary.pump();
        primary
    }

    fn pump(&mut self) {
        while let Some(action) = self.engine.poll_action() {
            match action {
                Action::Disk { id, op } => {
                    let result = self.disk.carry_out(&op);
                    self.engine.handle_disk(self.time, id, result);
                }
                Action::Complete { .. } => self.completed += 1,
                _ => {}
            }
        }
    }

    fn hear(&mut self, side: Side, nv: Vec<u8>, payload: Option<Buffer>) {
        self.engine.handle_frame(self.time, side, Frame { version: 2, nv: nv.into(), payload });
        self.pump();
    }

    /// Until nothing is left to do, at most this long.
    fn pass(&mut self, seconds: u64) {
        let end = self.time + Duration::from_secs(seconds);
        while let Some(at) = self.engine.poll_timeout().filter(|at| *at <= end) {
            self.time = self.time.max(at);
            self.engine.handle_timeout(self.time);
            self.pump();
        }
        self.time = end;
    }
}

#[test]
fn a_primary_is_not_suspicious_once_it_has_been_written_alone() {
    for forced in [false, true] {
        let mut primary = OurPrimary::new(forced);
        primary.engine.handle_connect_failed(Duration::ZERO, Side::Out, "refused");
        primary.pump();
        primary.pass(30);
        primary.engine.handle_request(primary.time, RequestId(1), Op::Read { offset: 0, length: 512 });
        primary.pump();
        assert_eq!(primary.completed, 1);
        assert!(suspects(&primary.disk), "should it leave the role now, nothing has changed");
        let data = Buffer::from(vec![1; 512]);
        primary.engine.handle_request(primary.time, RequestId(2), Op::Write { offset: 0, data });
        primary.pump();
        assert_eq!(primary.completed, 2);
        assert!(!suspects(&primary.disk));
        assert_eq!(primary.disk.metadata().localcnt, 5);
    }
}

#[test]
fn a_primary_is_not_suspicious_once_both_nodes_hold_the_same() {
    let mut primary = OurPrimary::new(false);
    primary.engine.handle_connected(primary.time, Side::Out);
    primary.pump();
    let first = FirstAnswer { version: 2, token: [9; 16], ext: ORIGINAL };
    primary.hear(Side::Out, first.encode().as_bytes().to_vec(), None);
    primary.engine.handle_connected(primary.time, Side::In);
    primary.pump();
    assert!(suspects(&primary.disk));
    let answer = SecondAnswer {
        datasize: layout().datasize(),
        extentsize: ES,
        localcnt: 4,
        remotecnt: 4,
        virgin: false,
        syncsrc: SyncSource::Primary,
        mapsize: 0,
        boot: None,
        peer_timeout: None,
        met: None,
        zero_deletes: false,
    };
    let (nv, payload) = Message::SecondAnswer(answer, None).encode();
    primary.hear(Side::Out, nv.as_bytes().to_vec(), payload);
    // An original without a cache, so that its flush needs no second answer.
    for seq in 1..4 {
        let reply =
            Message::Reply(Reply { seq, received: false, error: Some(Errno::EOPNOTSUPP), data: None });
        let (nv, payload) = reply.encode();
        primary.hear(Side::In, nv.as_bytes().to_vec(), payload);
        primary.pass(2);
        if !suspects(&primary.disk) {
            break;
        }
    }
    assert!(!suspects(&primary.disk));
    assert!(primary.engine.is_in_step());
}
