//! When a node stores the number of a connection, and when it stores that there is none: the steps that
//! `hast-engine/src/parting.rs` counts on, one by one, on disks of which nothing is lost that was flushed.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod flushed;

use std::time::Duration;

use hast_engine::*;
use hast_format::bitmap::Bitmap;
use hast_format::extension::Extension;
use hast_format::metadata::{Metadata, Role};
use hast_net::buffer::Buffer;
use hast_net::extensions::Extensions;
use hast_net::frame::Frame;
use hast_net::handshake::*;
use hast_net::message::*;

use flushed::*;

/// Both know marks, and not this.
const OLDER: Extensions = Extensions::SYNC_MARKS;

fn parted(parted: u64) -> Extension {
    Extension { parted, ..Extension::default() }
}

/// The number that `disk` holds durably.
fn number(disk: &Disk) -> u64 {
    disk.metadata().extension.parted
}

struct OurPrimary {
    engine: Primary,
    disk: Disk,
    sent: Vec<Message>,
    /// What the disk said was durable when each message went out: number, and first byte of the map.
    then: Vec<(u64, u8)>,
}

impl OurPrimary {
    fn new(metadata: Metadata, map: u8, metaflush: bool) -> OurPrimary {
        OurPrimary::drawing(7, metadata, map, metaflush)
    }

    /// One whose worker has got this number at random.
    fn drawing(random: u64, metadata: Metadata, map: u8, metaflush: bool) -> OurPrimary {
        let disk = Disk::new(&metadata, map);
        let start = PrimaryStart {
            settings: Settings { metaflush, ..settings() },
            map: disk.map(),
            metadata,
            layout: layout(),
            random,
            host: Host { boot: [1; 16], wall: 0, deletes: Deletes::LeaveZeros },
            forced: false,
            detached: false,
        };
        let engine = Primary::new(start, Duration::ZERO);
        let mut primary = OurPrimary { engine, disk, sent: Vec::new(), then: Vec::new() };
        primary.pump();
        primary
    }

    fn pump(&mut self) {
        while let Some(action) = self.engine.poll_action() {
            match action {
                Action::Disk { id, op } => {
                    let result = self.disk.carry_out(&op);
                    self.engine.handle_disk(Duration::ZERO, id, result);
                }
                Action::Send { message, .. } => {
                    self.sent.push(message);
                    self.then.push((number(&self.disk), self.disk.durable[MAP]));
                }
                _ => {}
            }
        }
    }

    /// The handshake up to the second header, with a secondary that knows `ext`.
    fn introduce(&mut self, ext: Extensions) -> SecondHello {
        self.engine.handle_connected(Duration::ZERO, Side::Out);
        self.pump();
        let nv = FirstAnswer { version: 2, token: [9; 16], ext }.encode().as_bytes().to_vec();
        self.engine.handle_frame(
            Duration::ZERO,
            Side::Out,
            Frame { version: 2, nv: nv.into(), payload: None },
        );
        self.pump();
        self.engine.handle_connected(Duration::ZERO, Side::In);
        self.pump();
        match self.sent.last() {
            Some(Message::SecondHello(hello)) => hello.clone(),
            other => panic!("{other:?}"),
        }
    }

    fn hear(&mut self, side: Side, message: &Message) {
        let (nv, payload) = message.encode();
        let frame = Frame { version: 2, nv: nv.as_bytes().to_vec().into(), payload };
        self.engine.handle_frame(Duration::ZERO, side, frame);
        self.pump();
    }

    /// An answer of a secondary that lacks what `map` has.
    fn answer(&mut self, map: u8) {
        let mut bytes = vec![0; 512];
        bytes[0] = map;
        let answer = SecondAnswer {
            datasize: layout().datasize(),
            extentsize: ES,
            localcnt: 1,
            remotecnt: 1,
            virgin: false,
            syncsrc: SyncSource::Primary,
            mapsize: 512,
            boot: None,
            peer_timeout: None,
            met: None,
            zero_deletes: false,
        };
        self.hear(Side::Out, &Message::SecondAnswer(answer, Some(Buffer::from(bytes))));
    }
}

struct OurSecondary {
    engine: Secondary,
    disk: Disk,
    sent: Vec<Message>,
    /// The number on disk when each message went out.
    then: Vec<u64>,
    exit: Option<i32>,
}

impl OurSecondary {
    /// With a disk that fails every write of the metadata if it is `broken`.
    fn answering(
        metadata: Metadata,
        map: u8,
        ext: Extensions,
        hello: SecondHello,
        broken: bool,
    ) -> OurSecondary {
        let disk = Disk { broken, ..Disk::new(&metadata, map) };
        let start = SecondaryStart {
            settings: settings(),
            map: disk.map(),
            metadata,
            layout: layout(),
            version: 2,
            ext,
            host: Host { boot: [3; 16], wall: 0, deletes: Deletes::LeaveZeros },
            hello,
            unsure: false,
            former: Bitmap::new(layout().nextents() as u32),
        };
        let engine = Secondary::new(start, Duration::ZERO);
        let mut secondary = OurSecondary { engine, disk, sent: Vec::new(), then: Vec::new(), exit: None };
        while let Some(action) = secondary.engine.poll_action() {
            match action {
                Action::Disk { id, op } => {
                    let result = secondary.disk.carry_out(&op);
                    secondary.engine.handle_disk(Duration::ZERO, id, result);
                }
                Action::Send { message, .. } => {
                    secondary.sent.push(message);
                    secondary.then.push(number(&secondary.disk));
                }
                Action::Exit(code) => secondary.exit = Some(code),
                _ => {}
            }
        }
        secondary
    }

    fn answer(&self) -> (&SecondAnswer, Option<&[u8]>) {
        match self.sent.first() {
            Some(Message::SecondAnswer(answer, map)) => (answer, map.as_deref()),
            other => panic!("{other:?}"),
        }
    }
}

fn hello(counts: (u64, u64), parting: Option<Parting>) -> SecondHello {
    let (resource, token) = ("t".into(), [9; 16]);
    let (localcnt, remotecnt) = counts;
    SecondHello {
        resource,
        token,
        virgin: false,
        resuid: 5,
        localcnt,
        remotecnt,
        boot: Some([1; 16]),
        parting,
        meeting: None,
    }
}

fn numbers(last: u64, next: u64) -> Option<Parting> {
    Some(Parting { last, next, divergence: None })
}

#[test]
fn a_primary_stores_the_number_when_the_merged_map_is_durable_and_before_anything_else() {
    let mut primary = OurPrimary::new(metadata(Role::Primary, (1, 1), parted(3)), 0b1, true);
    let Some(Parting { last: 3, next, divergence: None }) = primary.introduce(Extensions::ALL).parting else {
        panic!()
    };
    assert!(next != 0 && next != 3);
    assert_eq!(number(&primary.disk), 3, "the secondary has not answered");
    let said = primary.sent.len();
    primary.answer(0b10);
    assert!(primary.sent.len() > said, "{:?}", primary.sent);
    assert_eq!(primary.then[said], (next, 0b11), "when the first thing after the handshake is said");
    // Another attempt has another number.
    primary.engine.handle_lost(Duration::ZERO, "cut");
    primary.pump();
    primary.engine.handle_timeout(Duration::from_secs(1));
    primary.pump();
    let again = primary.introduce(Extensions::ALL).parting.unwrap();
    assert_eq!(again.last, next);
    assert!(again.next != next && again.next != 0);
    assert_eq!(number(&primary.disk), next);
}

/// Numbers and generations are as good as random: those of a worker are the sequence that SplitMix64 is published with,
/// one for each attempt, of which the generation takes the upper half.
#[test]
fn each_attempt_has_the_next_number_of_splitmix64() {
    let in_step = metadata(Role::Primary, (1, 1), Extension::default());
    let mut primary = OurPrimary::drawing(1_234_567, in_step, 0, true);
    let published = [
        6_457_827_717_110_365_317,
        3_203_168_211_198_807_973,
        9_817_491_932_198_370_423,
        4_593_380_528_125_082_431,
        16_408_922_859_458_223_821,
    ];
    for (attempt, number) in (1..).zip(published) {
        let said = primary.introduce(Extensions::ALL);
        assert_eq!(said.parting.unwrap().next, number);
        assert_eq!(u64::from(said.meeting.unwrap().draw), number >> 32);
        primary.engine.handle_lost(Duration::ZERO, "cut");
        primary.pump();
        primary.engine.handle_timeout(Duration::from_secs(100 * attempt));
        primary.pump();
    }
}

/// The secondary clears its map once the primary has it: that one is on the disk whatever `metaflush` says.
#[test]
fn the_merged_map_is_flushed_though_no_other_is() {
    let mut primary = OurPrimary::new(metadata(Role::Primary, (1, 1), Extension::default()), 0, false);
    primary.introduce(Extensions::ALL);
    let said = primary.sent.len();
    primary.answer(0b10);
    assert!(primary.sent.len() > said, "{:?}", primary.sent);
    assert_eq!(primary.then[said], (0, 0b10), "when the first thing after the handshake is said");
}

#[test]
fn a_primary_has_no_number_with_whoever_does_not_know_of_it() {
    for ext in [Extensions::NONE, OLDER] {
        let mut primary = OurPrimary::new(metadata(Role::Primary, (1, 1), parted(3)), 0, true);
        assert_eq!(primary.introduce(ext).parting, None);
        assert_eq!(primary.then.last().unwrap().0, 0, "durable before it says who it is");
        primary.answer(0);
        assert_eq!(number(&primary.disk), 0);
    }
}

#[test]
fn a_map_that_is_not_flushed_has_no_number() {
    let mut primary = OurPrimary::new(metadata(Role::Primary, (1, 1), parted(3)), 0, false);
    assert_eq!(number(&primary.disk), 0, "before anything is served");
    assert_eq!(primary.introduce(Extensions::ALL).parting, numbers(0, 0));
    primary.answer(0);
    assert_eq!(number(&primary.disk), 0);

    // Switched while it runs: each map write is flushed until the 0 is durable.
    let mut primary = OurPrimary::new(metadata(Role::Primary, (1, 1), Extension::default()), 0, true);
    primary.introduce(Extensions::ALL);
    primary.answer(0);
    assert_ne!(number(&primary.disk), 0);
    primary.engine.handle_reload(Duration::ZERO, Settings { metaflush: false, ..settings() }, false);
    primary.pump();
    assert_eq!(number(&primary.disk), 0);
    // ... and between the second header and the answer.
    let mut primary = OurPrimary::new(metadata(Role::Primary, (1, 1), Extension::default()), 0, true);
    assert_ne!(primary.introduce(Extensions::ALL).parting.unwrap().next, 0);
    primary.engine.handle_reload(Duration::ZERO, Settings { metaflush: false, ..settings() }, false);
    primary.pump();
    primary.answer(0);
    assert_eq!(number(&primary.disk), 0);
}

#[test]
fn a_secondary_stores_the_number_before_it_answers() {
    let in_step = metadata(Role::Secondary, (1, 1), parted(3));
    for (ext, parting, expected) in [
        (Extensions::ALL, numbers(3, 8), 8),
        (Extensions::ALL, numbers(3, 0), 0),
        (OLDER, None, 0),
        (Extensions::NONE, None, 0),
    ] {
        let secondary = OurSecondary::answering(in_step.clone(), 0, ext, hello((1, 1), parting), false);
        secondary.answer();
        assert_eq!(secondary.then, [expected]);
    }
    // What cannot be stored: the primary's number will be another one, or there is no answer.
    let ours =
        OurSecondary::answering(in_step.clone(), 0, Extensions::ALL, hello((1, 1), numbers(3, 8)), true);
    ours.answer();
    assert_eq!(ours.then, [3]);
    let original = OurSecondary::answering(in_step, 0, Extensions::NONE, hello((1, 1), None), true);
    assert_eq!((original.sent.len(), original.exit), (0, Some(66)));
}

/// C1 (d): a former primary's disk says before the answer that its map is not complete any more: what comes on this
/// connection is not in it. Of a disk that cannot say so there is no answer.
#[test]
fn a_secondary_calls_its_map_complete_no_longer_before_it_answers() {
    let complete = Extension { map_complete: true, ..Extension::default() };
    let former = metadata(Role::Primary, (1, 1), complete);
    for (ext, parting) in [(Extensions::ALL, numbers(3, 8)), (Extensions::NONE, None)] {
        let answering =
            |broken| OurSecondary::answering(former.clone(), 0, ext, hello((1, 1), parting), broken);
        let secondary = answering(false);
        secondary.answer();
        assert!(!Metadata::read(&secondary.disk.durable).unwrap().metadata.extension.map_complete);
        let broken = answering(true);
        assert_eq!(broken.exit, Some(66));
        assert!(!broken.sent.iter().any(|message| matches!(message, Message::SecondAnswer(..))));
    }
}

/// What was refused changes no number; the primary gets the map, and says next time how far they are apart.
#[test]
fn a_split_brain_is_refused_with_the_map() {
    let written = metadata(Role::Primary, (2, 1), parted(3));
    let mut primary = OurPrimary::new(metadata(Role::Primary, (2, 1), parted(3)), 0b110, true);
    let said = primary.introduce(Extensions::ALL);
    let secondary = OurSecondary::answering(written.clone(), 0b11, Extensions::ALL, said, false);
    assert_eq!((secondary.exit, number(&secondary.disk)), (Some(78), 3));
    primary.hear(Side::Out, &secondary.sent[0]);
    assert_eq!(number(&primary.disk), 3);
    let told = primary.engine.status().facts;
    let apart = told.divergence.unwrap();
    assert!(told.split_brain && apart.exact);
    assert_eq!((apart.here, apart.there, apart.both, apart.extentsize), (2, 2, 1, ES));
    primary.engine.handle_timeout(Duration::from_secs(1));
    primary.pump();
    assert_eq!(primary.introduce(Extensions::ALL).parting.unwrap().divergence, Some(apart));

    // Who does not know of it gets what the original says.
    let plain = OurSecondary::answering(written, 0b11, OLDER, hello((2, 1), None), false);
    assert!(matches!(&plain.sent[..], [Message::SecondRefusal(SecondRefusal { parted: None, .. }, None)]));
}

/// The map that was kept is sent, and a first contact that breaks off goes on as any other synchronisation.
#[test]
fn what_was_given_up_is_out_of_date_and_no_more() {
    let given_up = metadata(Role::Primary, (4, 1), parted(3)).discarded(9, "s");
    let ask = |last| hello((2, 1), numbers(last, 8));
    let secondary = OurSecondary::answering(given_up.clone(), 0b101, Extensions::ALL, ask(3), false);
    let (answer, map) = secondary.answer();
    assert_eq!((answer.virgin, answer.syncsrc, map.unwrap()[0]), (true, SyncSource::Primary, 0b101));
    assert!(map.unwrap()[1..].iter().all(|byte| *byte == 0));
    let stored = secondary.disk.metadata();
    assert_eq!((stored.resuid, stored.localcnt, stored.remotecnt), (5, 1, 0));
    assert_eq!((stored.extension.given_up, stored.extension.parted), (0, 8));
    assert!(stored.extension.mark.is_some(), "until it has everything");
    assert_eq!(secondary.disk.durable[MAP], 0b101, "on the disk until the primary has it");
    // Broken off: once more, with what is left.
    let again = OurSecondary::answering(stored, 0b101, Extensions::ALL, ask(3), false);
    let (answer, map) = again.answer();
    assert_eq!((answer.virgin, answer.syncsrc, map.unwrap()[0]), (false, SyncSource::Primary, 0b101));

    // In every doubt all of it.
    for last in [0, 4] {
        let secondary = OurSecondary::answering(given_up.clone(), 0b101, Extensions::ALL, ask(last), false);
        assert!(secondary.answer().1.unwrap()[..3].iter().all(|byte| *byte == 0xff));
        assert_eq!(secondary.disk.durable[MAP..MAP + 3], [0xff; 3]);
        assert_eq!(secondary.disk.metadata().localcnt, 0);
    }
    // Nobody will say that it has everything: as after a create.
    let original =
        OurSecondary::answering(given_up.clone(), 0b101, Extensions::NONE, hello((2, 1), None), false);
    assert_eq!(original.disk.metadata().extension.mark, None);
    assert!(original.answer().1.unwrap()[..3].iter().all(|byte| *byte == 0xff));
    // A primary that never met anybody is no reason to copy nothing: the data here is no fresh disk's.
    let virgin = SecondHello { virgin: true, resuid: 6, ..ask(0) };
    let secondary = OurSecondary::answering(given_up, 0b101, Extensions::ALL, virgin, false);
    assert!(secondary.answer().1.unwrap()[..3].iter().all(|byte| *byte == 0xff));
}
