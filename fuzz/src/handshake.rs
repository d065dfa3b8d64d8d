//! The handshake, both roles: its lists from arbitrary bytes, a secondary's answer to an arbitrary primary, and
//! two nodes of ours with arbitrary pasts.

use std::collections::VecDeque;
use std::time::Duration;

use hast_engine::{
    Action, Counted, Counts, Decision, Event, Hello, Histories, MapToSend, Past, Primary, PrimaryStart,
    Secondary, SecondaryStart, Side, decide, judged,
};
use hast_format::bitmap::Bitmap;
use hast_format::metadata::{Metadata, Role};
use hast_format::nv::List;
use hast_net::buffer::{Buffer, Pool};
use hast_net::errno::Errno;
use hast_net::extensions::Extensions;
use hast_net::frame::{Frame, Limits, Receiver};
use hast_net::handshake::{
    self, FirstReply, Meeting, Parting, SecondAnswer, SecondHello, SecondReply, SyncSource,
};
use hast_net::message::Message;
use hast_net::payload::Stages;

use crate::messages::{self, feed, to_bytes, unpack};
use crate::provider::{self, Provider, RESUID, former, host, settings};
use crate::source::Source;

/// The first byte says what the rest is: a stream, a secondary's past and a primary's greeting, or two pasts.
pub fn run(data: &[u8]) {
    let Some((kind, rest)) = data.split_first() else { return };
    match kind % 3 {
        0 => stream(rest, 1 + usize::from(kind / 3)),
        1 => admission(&mut Source::new(rest)),
        _ => pair(&mut Source::new(rest)),
    }
}

/// A stranger's bytes, within the limits that hold before anybody is known: no payload at all.
pub fn stream(bytes: &[u8], piece: usize) {
    let limits = Limits { header: Limits::PEER.header, payload: 0 };
    let mut receiver = Receiver::new(limits, Pool::new());
    for frame in feed(&mut receiver, bytes, piece).0 {
        assert_eq!(frame.payload, None);
        understand(&frame.list().expect("a receiver gives well-formed lists"));
    }
    // What comes on an answered connection may bring a map.
    let mut receiver = Receiver::new(Limits::PEER, Pool::new());
    for frame in feed(&mut receiver, bytes, usize::MAX).0 {
        let Some(frame) = unpack(frame, Limits::PEER.payload, &Pool::new()) else { continue };
        if let Ok(SecondReply::Answer(answer)) = SecondReply::decode(&frame.list().unwrap()) {
            check_map(&answer, frame.payload);
        }
    }
}

/// Reads a list as every step of the handshake, and writes that again.
pub fn understand(list: &List<'_>) {
    if let Ok(hello) = handshake::Hello::decode(list) {
        let written = match &hello {
            handshake::Hello::First(first) => {
                assert!((1..=2).contains(&first.negotiated()));
                first.encode()
            }
            handshake::Hello::Second(second) => second.encode(),
        };
        let list = List::parse(written.as_bytes()).unwrap();
        assert_eq!(handshake::Hello::decode(&list), Ok(hello));
    }
    if let Ok(reply) = FirstReply::decode(list) {
        let written = match &reply {
            FirstReply::Answer(answer) => {
                assert!((1..=2).contains(&answer.version.max(1)));
                answer.encode()
            }
            FirstReply::Refused(refusal) => refusal.encode(),
        };
        assert_eq!(FirstReply::decode(&List::parse(written.as_bytes()).unwrap()), Ok(reply));
    }
    if let Ok(SecondReply::Answer(answer)) = SecondReply::decode(list) {
        let written = answer.encode();
        let list = List::parse(written.as_bytes()).unwrap();
        assert_eq!(SecondReply::decode(&list), Ok(SecondReply::Answer(answer)));
    }
}

fn check_map(answer: &SecondAnswer, payload: Option<Buffer>) {
    let length = payload.as_ref().map_or(0, |map| map.len());
    match answer.map(payload) {
        Ok(map) => assert_eq!(map.map_or(0, |map| map.len()), answer.mapsize as usize),
        Err(_) => assert_ne!(length, answer.mapsize as usize),
    }
}

/// A secondary with some past answers a primary's second step: as the table says, and not before what it says
/// is durable.
fn admission(source: &mut Source<'_>) {
    let mut provider = Provider::new(source);
    let metadata = provider.metadata();
    let ext = messages::extensions(source);
    let hello = SecondHello {
        resource: "disk0".into(),
        token: [7; 16],
        virgin: source.flag(),
        resuid: source.choose(&[RESUID, RESUID, 0, u64::MAX, 1]),
        localcnt: source.count(),
        remotecnt: source.count(),
        boot: None,
        parting: source.flag().then(|| Parting {
            last: source.count(),
            next: source.count(),
            divergence: None,
        }),
        meeting: source.flag().then(|| {
            let (met, draw) = (provider::met(source), source.number());
            Meeting { met, draw, localcnt: u64::from(draw) & 3 }
        }),
    };
    let expected = expected(&provider, &metadata, &hello);
    let adopts_with_its_map = matches!(expected, Decision::Accept { adopt: true, map: MapToSend::Own, .. });
    // What was written alone is given up with the rest.
    let local = if adopts_with_its_map { hello.remotecnt } else { metadata.localcnt };
    let counts = Counts { local, remote: metadata.remotecnt };
    let start = secondary(source, &provider, ext, hello.clone());
    let expected = match expected {
        Decision::Accept { adopt: true, map: MapToSend::Nothing, source }
            if ext.contains(Extensions::ZERO_DELETES) && !start.former.is_empty() =>
        {
            Decision::Accept { adopt: true, map: MapToSend::Own, source }
        }
        expected => expected,
    };
    let mut engine = Secondary::new(start, Duration::ZERO);
    let mut answered = None;
    let mut exit = None;
    for _ in 0..1000 {
        while let Some(action) = engine.poll_action() {
            match action {
                Action::Disk { id, op } => _ = provider.submit(id, op),
                Action::Send { message: Message::SecondAnswer(answer, map), .. } => {
                    assert_eq!(provider.durable_metadata().resuid, hello.resuid, "adopted durably before");
                    check_answer(&answer, map, expected, &provider, counts);
                    answered = Some(true);
                }
                Action::Send { message: Message::SecondRefusal(refusal, _), .. }
                    if refusal.errmsg.starts_with("The secondary's provider fails.") =>
                {
                    assert!(ext.contains(Extensions::REASONS));
                }
                Action::Send { message: Message::SecondRefusal(refusal, _), .. } => {
                    let split = refusal.errmsg == handshake::texts::SPLIT_BRAIN;
                    let refused = if split { Decision::SplitBrain } else { Decision::Mismatch };
                    assert_eq!(expected, refused);
                    answered = Some(false);
                }
                Action::Exit(code) => exit = Some(code),
                Action::Event(_) | Action::Connection { .. } | Action::Close => {}
                other => panic!("a secondary asks for {other:?}"),
            }
        }
        if provider.pending() == 0 {
            break;
        }
        let fails = source.one_in(16).then_some(Errno::EIO);
        let (id, result) = provider.end(0, fails);
        engine.handle_disk(Duration::ZERO, id, result);
    }
    provider.check();
    match answered {
        Some(true) => assert_eq!(exit, None),
        Some(false) => assert_eq!(exit, Some(78)),
        None => assert_eq!(exit, Some(66), "no answer only if the provider failed"),
    }
}

fn secondary(
    source: &mut Source<'_>,
    provider: &Provider,
    ext: Extensions,
    hello: SecondHello,
) -> SecondaryStart {
    SecondaryStart {
        settings: settings(source),
        metadata: provider.metadata(),
        layout: *provider.layout(),
        map: provider.map(),
        version: 2,
        ext,
        host: host(source),
        hello,
        unsure: false,
        former: former(source, provider.layout()),
    }
}

/// What the table says, of what lies on the provider; a node whose changes were given up takes any primary.
fn expected(provider: &Provider, metadata: &Metadata, hello: &SecondHello) -> Decision {
    if metadata.resuid == 0 && metadata.extension.given_up != 0 && hello.resuid != 0 {
        let same = hello.resuid == metadata.extension.given_up && !hello.virgin;
        let exact = hello.parting.is_some_and(|parting| parting.last == metadata.extension.parted);
        let map =
            if same && exact && metadata.extension.parted != 0 { MapToSend::Own } else { MapToSend::Full };
        return Decision::Accept { adopt: true, map, source: SyncSource::Primary };
    }
    let meeting = hello.meeting;
    let said = Counts { local: hello.localcnt, remote: hello.remotecnt };
    let hello = Hello { resuid: hello.resuid, counts: said, virgin: hello.virgin };
    let counts = Counts { local: metadata.localcnt, remote: metadata.remotecnt };
    let written = metadata.prevrole == Role::Primary && !map(provider).is_empty();
    let decision = decide(hello, metadata.resuid, counts, written);
    let past = Past::of(&metadata.extension);
    let histories = meeting.map_or(Histories::Unknown, |meeting| past.compared(meeting.met));
    let primary = Counted { now: said, then: meeting.map_or(0, |meeting| meeting.localcnt) };
    let misses = !metadata.extension.stale.is_empty() || metadata.extension.unsure;
    match judged(decision, primary, past.counted(counts), metadata.extension.mark.is_some(), histories) {
        // Each node has something that the other lacks.
        Decision::Accept { source: SyncSource::Secondary, .. } if misses => Decision::SplitBrain,
        decision => decision,
    }
}

fn map(provider: &Provider) -> Bitmap {
    Bitmap::from_bytes(u32::try_from(provider.layout().nextents()).unwrap(), &provider.map())
}

fn check_answer(
    answer: &SecondAnswer,
    map: Option<Buffer>,
    expected: Decision,
    provider: &Provider,
    counts: Counts,
) {
    let Decision::Accept { adopt, map: kind, source } = expected else {
        panic!("accepted, expected {expected:?}")
    };
    assert_eq!((answer.virgin, answer.syncsrc), (adopt, source));
    assert_eq!((answer.localcnt, answer.remotecnt), (counts.local, counts.remote));
    let layout = provider.layout();
    assert_eq!((answer.datasize, answer.extentsize), (layout.datasize(), layout.extentsize()));
    assert_eq!(map.is_none(), kind == MapToSend::Nothing);
    let all = map.as_ref().is_none_or(|map| map.iter().all(|byte| *byte == 0xff));
    assert!(all || kind == MapToSend::Own, "{kind:?}");
    let length = map.map_or(0, |map| map.len() as u64);
    assert_eq!(u64::from(answer.mapsize), length);
    assert!(length == 0 || length == layout.sent_map_bytes());
}

/// Two nodes with arbitrary pasts meet. It comes to an end; and if they say that they are in step, every extent
/// that either of them knew to differ is the same on both.
fn pair(source: &mut Source<'_>) {
    let mut here = Provider::new(source);
    let mut there = here.twin(source);
    let (ours, theirs) = (map(&here), map(&there));
    let ext = messages::extensions(source);
    let past = (here.metadata(), there.metadata());
    let start = PrimaryStart {
        settings: settings(source),
        metadata: here.metadata(),
        layout: *here.layout(),
        map: here.map(),
        random: RESUID,
        host: host(source),
        forced: source.one_in(8),
        detached: false,
    };
    let mut primary = Primary::new(start, Duration::ZERO);
    let mut secondary: Option<Secondary> = None;
    let mut now = Duration::ZERO;
    let mut to_primary: VecDeque<(Side, Frame)> = VecDeque::new();
    let (mut connected, mut refused) = (false, false);
    for _ in 0..20_000 {
        while let Some(action) = primary.poll_action() {
            match action {
                Action::Disk { id, op } => _ = here.submit(id, op),
                Action::Connect(side) => primary.handle_connected(now, side),
                Action::Send { message: Message::FirstHello(_), .. } => {
                    let answer = handshake::FirstAnswer { version: 2, token: [7; 16], ext };
                    let frame = Frame { version: 2, nv: answer.encode().into_bytes().into(), payload: None };
                    primary.handle_frame(now, Side::Out, frame);
                }
                Action::Send { message: Message::SecondHello(hello), .. } => {
                    assert_eq!(hello.token, [7; 16]);
                    let start = self::secondary(source, &there, ext, hello);
                    secondary = Some(Secondary::new(start, now));
                }
                Action::Send { message, .. } => {
                    if let Some(secondary) = &mut secondary {
                        secondary.handle_frame(now, carry(&message));
                    }
                }
                Action::Event(Event::Connect) => connected = true,
                Action::Close => refused |= !connected,
                _ => {}
            }
        }
        if let Some(engine) = &mut secondary {
            while let Some(action) = engine.poll_action() {
                match action {
                    Action::Disk { id, op } => _ = there.submit(id, op),
                    Action::Send { side, message, .. } => to_primary.push_back((side, carry(&message))),
                    _ => {}
                }
            }
        }
        if let Some((side, frame)) = to_primary.pop_front() {
            primary.handle_frame(now, side, frame);
        } else if here.pending() > 0 {
            let (id, result) = here.end(0, None);
            primary.handle_disk(now, id, result);
        } else if let Some(engine) = secondary.as_mut().filter(|_| there.pending() > 0) {
            let (id, result) = there.end(0, None);
            engine.handle_disk(now, id, result);
        } else if refused || primary.is_in_step() {
            break;
        } else if let Some(due) = primary.poll_timeout() {
            now = now.max(due);
            primary.handle_timeout(now);
        } else {
            break;
        }
    }
    here.check();
    there.check();
    if primary.is_in_step() {
        in_step(&here, &there, &ours, &theirs, &past);
    }
}

/// What arrives of a message.
fn carry(message: &Message) -> Frame {
    let bytes = to_bytes(message, 2, Stages::default());
    let mut receiver = Receiver::new(Limits::PEER, Pool::new());
    let (mut frames, outcome) = feed(&mut receiver, &bytes, usize::MAX);
    assert_eq!((frames.len(), outcome), (1, Ok(())));
    unpack(frames.remove(0), Limits::PEER.payload, &Pool::new()).expect("what we pack can be unpacked")
}

fn in_step(here: &Provider, there: &Provider, ours: &Bitmap, theirs: &Bitmap, past: &(Metadata, Metadata)) {
    let known = past.0.resuid == past.1.resuid && past.0.resuid != 0;
    for extent in ours.iter().chain(theirs.iter()) {
        let (offset, length) = here.layout().extent_range(extent);
        let range = usize::try_from(offset).unwrap()..usize::try_from(offset).unwrap() + length as usize;
        if known {
            assert!(here.data()[range.clone()] == there.data()[range], "extent {extent} differs");
        }
    }
    let (ours, theirs) = (here.metadata(), there.metadata());
    assert_eq!(ours.resuid, theirs.resuid);
    // (A mark that no synchronisation had set is not one that the end of a synchronisation takes away.)
    if past.1.extension.mark.is_none() {
        assert_eq!(theirs.extension.mark, None, "a node in step is not out of date");
    }
}
