//! What must hold for every message, every way in which bytes can arrive, and every garbage.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use hast_format::nv::{List, Writer};
use hast_net::buffer::{Buffer, Pool};
use hast_net::control::Divergence;
use hast_net::errno::Errno;
use hast_net::frame::{self, Frame, FrameError, Limits, Receiver};
use hast_net::handshake::{
    Extensions, FirstAnswer, FirstHello, FirstReply, Hello, Meeting, Met, Parting, Refusal, Refused,
    SecondAnswer, SecondHello, SecondRefusal, SecondReply, SyncSource,
};
use hast_net::message::{
    self, Command, FromPrimary, FromSecondary, Mark, MarkKind, Message, MessageError, Reply, Request,
};
use hast_net::payload::{self, Checksum, Compression, PayloadError, Stages};
use proptest::prelude::*;

const LIMIT: u32 = Limits::PEER.payload;

/// Feeds a stream in pieces of the given sizes, over and over. Gives the frames, the error, and whether the
/// stream ended between two frames. Checks on the way that the receiver asks for no more room than its limits
/// and what has arrived justify.
fn receive(bytes: &[u8], pieces: &[usize], limits: Limits) -> (Vec<Frame>, Result<bool, FrameError>) {
    let mut receiver = Receiver::new(limits, Pool::new());
    let mut frames = Vec::new();
    let mut rest = bytes;
    let mut pieces = pieces.iter().copied().cycle();
    while !rest.is_empty() {
        let arrived = bytes.len() - rest.len();
        let space = receiver.space();
        assert!(!space.is_empty());
        let payload = usize::try_from(limits.payload).unwrap();
        assert!(space.len() <= payload.max(65_536).max(2 * arrived), "{} after {arrived}", space.len());
        let n = pieces.next().unwrap_or(usize::MAX).clamp(1, space.len()).min(rest.len());
        space[..n].copy_from_slice(&rest[..n]);
        rest = &rest[n..];
        let outcome = receiver.advance(n);
        frames.extend(std::iter::from_fn(|| receiver.next_frame()));
        if let Err(error) = outcome {
            assert!(!receiver.is_idle());
            receiver.space()[0] = 0;
            assert_eq!(receiver.advance(1), Err(error.clone()), "nothing is accepted after an error");
            assert_eq!(receiver.next_frame(), None);
            return (frames, Err(error));
        }
    }
    (frames, Ok(receiver.is_idle()))
}

fn whole(bytes: &[u8]) -> (Vec<Frame>, Result<bool, FrameError>) {
    receive(bytes, &[usize::MAX], Limits::PEER)
}

fn sent(message: &Message, version: u8, stages: Stages) -> Vec<u8> {
    let (mut bytes, payload) = message::to_wire(message, version, stages).unwrap();
    bytes.extend_from_slice(payload.as_deref().unwrap_or_default());
    bytes
}

/// The message in a stream that holds exactly one, as its receiver sees it.
fn received(bytes: &[u8], like: &Message) -> Message {
    let (mut frames, end) = whole(bytes);
    assert_eq!((frames.len(), end), (1, Ok(true)));
    let mut frame = frames.remove(0);
    payload::decode(&mut frame, LIMIT, &Pool::new()).unwrap();
    let nv = frame.nv.clone();
    let list = List::parse(&nv).unwrap();
    match like {
        Message::FirstHello(_) | Message::SecondHello(_) => match Hello::decode(&list).unwrap() {
            Hello::First(hello) => Message::FirstHello(hello),
            Hello::Second(hello) => Message::SecondHello(hello),
        },
        Message::SecondAnswer(..) | Message::SecondRefusal(..) => match SecondReply::decode(&list).unwrap() {
            SecondReply::Answer(answer) => {
                let map = answer.map(frame.payload).unwrap();
                Message::SecondAnswer(answer, map)
            }
            SecondReply::Refused(Refused { errmsg, parted }) => {
                let refusal = SecondRefusal {
                    datasize: list.i64("datasize").unwrap().cast_unsigned(),
                    extentsize: list.i32("extentsize").unwrap().cast_unsigned(),
                    localcnt: list.u64("localcnt").unwrap(),
                    remotecnt: list.u64("remotecnt").unwrap(),
                    errmsg,
                    parted,
                };
                Message::SecondRefusal(refusal, frame.payload)
            }
        },
        Message::Request(_) | Message::Keepalive | Message::Mark(_) | Message::Farewell(_) => {
            let plain = FromPrimary::decode(frame.clone());
            let extended = FromPrimary::decode_extended(frame, Extensions::ALL).unwrap();
            // An extension changes nothing but its own messages, and those do not exist without it.
            match &extended {
                FromPrimary::Mark(_) => assert!(matches!(plain, Err(MessageError::UnknownCommand(64..=66)))),
                FromPrimary::Farewell { .. } => assert_eq!(plain, Ok(FromPrimary::Keepalive)),
                _ => assert_eq!(plain.as_ref(), Ok(&extended)),
            }
            match extended {
                FromPrimary::Request(request) => Message::Request(request),
                FromPrimary::Keepalive => Message::Keepalive,
                FromPrimary::Mark(mark) => Message::Mark(mark),
                FromPrimary::Farewell { reason } => Message::Farewell(reason),
                invalid => panic!("{invalid:?}"),
            }
        }
        Message::Reply(_) | Message::Busy(_) | Message::Alive => {
            match FromSecondary::decode_extended(frame.clone(), Extensions::ALL).unwrap() {
                FromSecondary::Reply(reply) => {
                    assert_eq!(Reply::decode(frame).as_ref(), Ok(&reply));
                    Message::Reply(reply)
                }
                FromSecondary::Busy { seq } => {
                    assert_eq!(Reply::decode(frame), Err(MessageError::NoSeq));
                    Message::Busy(seq)
                }
                FromSecondary::Alive => {
                    assert_eq!(Reply::decode(frame), Err(MessageError::NoSeq));
                    Message::Alive
                }
            }
        }
    }
}

fn text() -> impl Strategy<Value = String> {
    prop::collection::vec(prop::char::range('\u{1}', '\u{2ff}'), 0..40).prop_map(String::from_iter)
}

/// Payloads of every kind: zeros, noise, what compresses, what nearly does.
fn data() -> impl Strategy<Value = Buffer> {
    prop_oneof![
        (1_usize..20_000).prop_map(|length| vec![0; length]),
        prop::collection::vec(any::<u8>(), 1..3000),
        (prop::collection::vec(0_u8..3, 1..50), 1_usize..200).prop_map(|(piece, times)| piece.repeat(times)),
        (prop::collection::vec(any::<u8>(), 1000..1500), prop::collection::vec(any::<u8>(), 0..900))
            .prop_map(|(first, second)| [first.clone(), second, first].concat()),
    ]
    .prop_map(Buffer::from)
}

fn stages() -> impl Strategy<Value = Stages> {
    let compression = prop_oneof![Just(Compression::None), Just(Compression::Hole), Just(Compression::Lzf)];
    let checksum = prop_oneof![Just(Checksum::None), Just(Checksum::Crc32), Just(Checksum::Sha256)];
    (compression, checksum).prop_map(|(compression, checksum)| Stages { compression, checksum })
}

fn request() -> impl Strategy<Value = Request> {
    let other = prop_oneof![Just(Command::Read), Just(Command::Delete), Just(Command::Flush)];
    prop_oneof![
        (other, 1..u64::MAX, any::<u64>(), any::<u64>()).prop_map(|(command, seq, offset, length)| {
            let range = if command == Command::Flush { (0, 0) } else { (offset, length) };
            Request { command, seq, offset: range.0, length: range.1, memsync: false, data: None }
        }),
        (1..u64::MAX, any::<u64>(), any::<bool>(), data()).prop_map(|(seq, offset, memsync, data)| {
            let length = data.len() as u64;
            Request { command: Command::Write, seq, offset, length, memsync, data: Some(data) }
        }),
    ]
}

fn mark() -> impl Strategy<Value = Mark> {
    let kind = prop_oneof![
        Just(MarkKind::SyncStart),
        any::<(u64, Option<u64>)>()
            .prop_map(|(localcnt, failures)| MarkKind::SyncDone { localcnt, failures }),
        any::<[u64; 2]>().prop_map(|[offset, length]| MarkKind::Stale { offset, length }),
    ];
    (1..u64::MAX, kind).prop_map(|(seq, kind)| Mark { seq, kind })
}

fn extensions() -> impl Strategy<Value = Extensions> {
    prop_oneof![Just(Extensions::NONE), Just(Extensions::SYNC_MARKS), Just(Extensions::ALL)]
}

fn met() -> impl Strategy<Value = Met> {
    any::<[u64; 2]>().prop_map(|[last, before]| Met { last, before })
}

fn second_answer() -> impl Strategy<Value = Message> {
    let numbers = (0..u64::MAX >> 1, 0..u32::MAX >> 1, any::<u64>(), any::<u64>());
    let extended = (any::<Option<[u8; 16]>>(), any::<Option<u32>>(), prop::option::of(met()), any::<bool>());
    (numbers, any::<bool>(), any::<bool>(), prop::option::of(data()), extended).prop_map(
        |(
            (datasize, extentsize, localcnt, remotecnt),
            virgin,
            secondary,
            map,
            (boot, peer_timeout, met, zero_deletes),
        )| {
            let syncsrc = if secondary { SyncSource::Secondary } else { SyncSource::Primary };
            let mapsize = map.as_ref().map_or(0, |map| map.len() as u32);
            Message::SecondAnswer(
                SecondAnswer {
                    datasize,
                    extentsize,
                    localcnt,
                    remotecnt,
                    virgin,
                    syncsrc,
                    mapsize,
                    boot,
                    peer_timeout,
                    met,
                    zero_deletes,
                },
                map,
            )
        },
    )
}

fn parting() -> impl Strategy<Value = Parting> {
    let apart = (any::<u32>(), any::<[u64; 3]>(), any::<bool>()).prop_map(
        |(extentsize, [here, there, both], exact)| Divergence { extentsize, here, there, both, exact },
    );
    (any::<[u64; 2]>(), prop::option::of(apart)).prop_map(|([last, next], divergence)| Parting {
        last,
        next,
        divergence,
    })
}

fn message() -> impl Strategy<Value = Message> {
    prop_oneof![
        (text(), 1..u8::MAX, extensions())
            .prop_map(|(resource, version, ext)| Message::FirstHello(FirstHello { resource, version, ext })),
        (
            text(),
            any::<[u8; 16]>(),
            any::<bool>(),
            any::<[u64; 3]>(),
            any::<Option<[u8; 16]>>(),
            (prop::option::of(parting()), prop::option::of((met(), any::<u32>())))
        )
            .prop_map(
                |(resource, token, virgin, [resuid, localcnt, remotecnt], boot, (parting, met))| {
                    Message::SecondHello(SecondHello {
                        resource,
                        token,
                        virgin,
                        resuid,
                        localcnt,
                        remotecnt,
                        boot,
                        parting,
                        meeting: met.map(|(met, draw)| Meeting { met, draw, localcnt: draw.into() }),
                    })
                }
            ),
        second_answer(),
        (
            (0..u64::MAX >> 1, 0..u32::MAX >> 1, any::<[u64; 2]>()),
            text(),
            any::<Option<u64>>(),
            prop::option::of(data())
        )
            .prop_map(|((datasize, extentsize, [localcnt, remotecnt]), errmsg, parted, map)| {
                let refusal = SecondRefusal { datasize, extentsize, localcnt, remotecnt, errmsg, parted };
                Message::SecondRefusal(refusal, map)
            }),
        request().prop_map(Message::Request),
        mark().prop_map(Message::Mark),
        Just(Message::Keepalive),
        text().prop_map(Message::Farewell),
        any::<u64>().prop_map(Message::Busy),
        Just(Message::Alive),
        (any::<u64>(), any::<bool>(), 0_i16..200, prop::option::of(data())).prop_map(
            |(seq, received, error, data)| Message::Reply(Reply {
                seq,
                received,
                error: Errno::from_wire(error),
                data
            })
        ),
    ]
}

/// A stream of messages, each written with its own version and stages.
fn stream() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec((message(), 0_u8..=2, stages()), 0..12).prop_map(|messages| {
        messages.iter().flat_map(|(message, version, stages)| sent(message, *version, *stages)).collect()
    })
}

/// Everything that a stream is put through; nothing may panic and nothing may exceed what it was allowed.
fn digest(bytes: &[u8], limits: Limits, decoded: u32) {
    let (frames, _) = receive(bytes, &[usize::MAX], limits);
    let pool = Pool::new();
    for mut frame in frames {
        assert!(frame.version <= 2);
        assert!(frame.nv.len() <= limits.header as usize);
        assert!(frame.payload.as_ref().is_none_or(|payload| payload.len() <= limits.payload as usize));
        let list = List::parse(&frame.nv).unwrap();
        let _ = (Hello::decode(&list), FirstReply::decode(&list), SecondReply::decode(&list));
        if payload::decode(&mut frame, decoded, &pool).is_ok() {
            assert!(frame.payload.as_ref().is_none_or(|payload| payload.len() <= decoded as usize));
            let _ = FromPrimary::decode_extended(frame.clone(), Extensions::ALL);
            let _ = FromSecondary::decode_extended(frame.clone(), Extensions::ALL);
            let _ = (FromPrimary::decode(frame.clone()), Reply::decode(frame));
        }
    }
}

proptest! {
    #[test]
    fn every_message_comes_back_through_every_stage(
        message in message(), version in 0_u8..=2, stages in stages()
    ) {
        let bytes = sent(&message, version, stages);
        prop_assert_eq!(received(&bytes, &message), message);
    }

    #[test]
    fn answers_of_the_first_step_come_back(
        version in 1_u8..=2, token: [u8; 16], ext in extensions(), errmsg in text(), wait: bool
    ) {
        let answer = FirstAnswer { version, token, ext };
        let nv = answer.encode();
        let list = List::parse(nv.as_bytes()).unwrap();
        prop_assert_eq!(FirstReply::decode(&list), Ok(FirstReply::Answer(answer)));
        let refusal = Refusal { errmsg, wait };
        let nv = refusal.encode();
        let list = List::parse(nv.as_bytes()).unwrap();
        prop_assert_eq!(FirstReply::decode(&list), Ok(FirstReply::Refused(refusal)));
    }

    #[test]
    fn frames_do_not_depend_on_how_their_bytes_arrive(
        bytes in stream(), pieces in prop::collection::vec(1_usize..9000, 1..8)
    ) {
        prop_assert_eq!(receive(&bytes, &pieces, Limits::PEER), whole(&bytes));
    }

    #[test]
    fn a_stream_that_ends_early_gives_the_frames_before_its_end(bytes in stream(), at: prop::sample::Index) {
        let (frames, end) = whole(&bytes);
        prop_assert_eq!(end, Ok(true));
        let at = at.index(bytes.len() + 1);
        let (early, end) = whole(&bytes[..at]);
        prop_assert_eq!(&early[..], &frames[..early.len()]);
        let used: usize = early.iter().map(length).sum();
        prop_assert_eq!(end, Ok(used == at));
        prop_assert!(frames.get(early.len()).is_none_or(|next| used + length(next) > at));
    }

    #[test]
    fn garbage_is_harmless(bytes in prop::collection::vec(any::<u8>(), 0..4000)) {
        digest(&bytes, Limits::PEER, 4096);
        digest(&bytes, Limits::CONTROL, 4096);
    }

    #[test]
    fn damaged_streams_are_harmless(
        bytes in stream(), damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6)
    ) {
        let mut bytes = bytes;
        for (at, value) in damage {
            if !bytes.is_empty() {
                let at = at.index(bytes.len());
                bytes[at] = value;
            }
        }
        digest(&bytes, Limits::PEER, 4096);
        digest(&bytes, Limits { header: 100, payload: 600 }, 600);
    }

    #[test]
    fn lists_with_the_right_names_and_anything_in_them_are_harmless(
        pairs in prop::collection::vec((0_usize..NAMES.len(), 0_u8..8, any::<u64>()), 0..10),
        data in prop::collection::vec(any::<u8>(), 1..64)
    ) {
        let mut nv = Writer::new();
        for (name, kind, value) in pairs {
            let name = NAMES[name];
            match kind {
                0 => nv.u8(name, value as u8),
                1 => nv.i8(name, value as i8),
                2 => nv.i16(name, value as i16),
                3 => nv.u32(name, value as u32),
                4 => nv.u64(name, value),
                5 => nv.str(name, ["hole", "lzf", "crc32", "sha256"][value as usize % 4]),
                6 => nv.u8_array(name, &value.to_le_bytes().repeat(2)),
                _ => nv.i64(name, value.cast_signed()),
            };
        }
        nv.u32("size", data.len() as u32);
        let mut bytes = frame::encode(2, nv.as_bytes()).unwrap();
        bytes.extend_from_slice(&data);
        digest(&bytes, Limits::PEER, LIMIT);
    }

    #[test]
    fn claims_are_refused_before_memory_is_given_for_them(claimed in LIMIT + 1..=u32::MAX, lzf: bool) {
        let mut nv = Writer::new();
        nv.str("compression", if lzf { "lzf" } else { "hole" });
        let payload = Some(Buffer::from(claimed.to_le_bytes().to_vec()));
        let mut frame = Frame { version: 2, nv: nv.into_bytes().into(), payload };
        prop_assert_eq!(
            payload::decode(&mut frame, LIMIT, &Pool::new()),
            Err(PayloadError::TooLong { size: claimed.into(), limit: LIMIT })
        );
    }

    #[test]
    fn announced_lengths_are_refused_on_the_byte_that_announces_them(
        size in Limits::PEER.header + 1..=u32::MAX, payload in LIMIT + 1..=u32::MAX
    ) {
        let limit = Limits::PEER.header;
        let prefix = [&[2][..], &size.to_le_bytes()].concat();
        let expected = FrameError::HeaderTooLong { size: size.into(), limit };
        prop_assert_eq!(whole(&prefix), (vec![], Err(expected)));
        prop_assert_eq!(whole(&prefix[..4]), (vec![], Ok(false)));
        let mut nv = Writer::new();
        nv.u32("size", payload);
        let header = frame::encode(2, nv.as_bytes()).unwrap();
        let expected = FrameError::PayloadTooLong { size: payload.into(), limit: LIMIT };
        prop_assert_eq!(whole(&header), (vec![], Err(expected)));
    }
}

const NAMES: [&str; 23] = [
    "cmd",
    "seq",
    "offset",
    "length",
    "memsync",
    "received",
    "error",
    "resource",
    "version",
    "token",
    "virgin",
    "datasize",
    "extentsize",
    "syncsrc",
    "mapsize",
    "errmsg",
    "wait",
    "compression",
    "checksum",
    "hash",
    "localcnt",
    "hast_ext",
    "hast_boot",
];

/// Bytes of a frame on the wire, as received.
fn length(frame: &Frame) -> usize {
    5 + frame.nv.len() + frame.payload.as_ref().map_or(0, |payload| payload.len())
}

#[test]
fn empty_lists_are_frames() {
    let bytes = frame::encode(2, &[]).unwrap().repeat(3);
    let (frames, end) = whole(&bytes);
    assert_eq!((frames.len(), end), (3, Ok(true)));
    assert!(frames.iter().all(|frame| frame.list().unwrap().is_empty() && frame.payload.is_none()));
}

#[test]
fn frames_before_a_bad_one_still_come_out() {
    let mut bytes = sent(&Message::Keepalive, 2, Stages::default());
    bytes.push(3);
    let (frames, end) = whole(&bytes);
    assert_eq!(frames.len(), 1);
    assert_eq!(end, Err(FrameError::Version(3)));
}

#[test]
fn a_payload_is_read_straight_into_what_is_handed_out() {
    let data = Buffer::from((0..131_072_u32).map(|i| i as u8).collect::<Vec<u8>>());
    let request = Request {
        command: Command::Write,
        seq: 1,
        offset: 0,
        length: 131_072,
        memsync: false,
        data: Some(data),
    };
    let none = Stages { compression: Compression::None, checksum: Checksum::None };
    let (header, payload) = message::to_wire(&Message::Request(request), 2, none).unwrap();
    let payload = payload.unwrap();
    let mut receiver = Receiver::new(Limits::PEER, Pool::new());
    receiver.space()[..header.len()].copy_from_slice(&header);
    receiver.advance(header.len()).unwrap();
    let space = receiver.space();
    assert_eq!(space.len(), payload.len(), "room for exactly the payload");
    let address = space.as_ptr();
    space.copy_from_slice(&payload);
    receiver.advance(payload.len() - 1).unwrap();
    assert_eq!(receiver.next_frame(), None, "one byte is missing");
    assert!(!receiver.is_idle());
    assert_eq!(receiver.space().len(), 1);
    receiver.advance(1).unwrap();
    let frame = receiver.next_frame().unwrap();
    assert!(receiver.is_idle());
    let received = frame.payload.unwrap();
    assert_eq!(received.as_ptr(), address);
    assert_eq!(received, payload);
}

#[test]
fn the_limits_themselves_are_allowed() {
    let limits = Limits { header: 44, payload: 1000 };
    let stream = |extra: u32| {
        let mut nv = Writer::new();
        nv.u32("size", 1000 + extra).u32("padding", 0);
        assert_eq!(nv.len(), 44);
        let mut bytes = frame::encode(2, nv.as_bytes()).unwrap();
        bytes.resize(bytes.len() + 1000, 7);
        bytes
    };
    let (frames, end) = receive(&stream(0), &[usize::MAX], limits);
    assert_eq!((frames.len(), end), (1, Ok(true)));
    let (frames, end) = receive(&stream(1), &[usize::MAX], limits);
    assert!(frames.is_empty());
    assert_eq!(end, Err(FrameError::PayloadTooLong { size: 1001, limit: 1000 }));
    let (frames, end) = receive(&stream(0), &[usize::MAX], Limits { header: 43, ..limits });
    assert!(frames.is_empty());
    assert_eq!(end, Err(FrameError::HeaderTooLong { size: 44, limit: 43 }));
}

#[test]
fn a_hole_is_zeros_even_in_memory_that_was_used_before() {
    let pool = Pool::new();
    let mut used = pool.take(4096);
    used.fill(0xff);
    let address = used.as_ptr();
    drop(used);
    let mut nv = Writer::new();
    nv.str("compression", "hole");
    let payload = Some(Buffer::from(4096_u32.to_le_bytes().to_vec()));
    let mut frame = Frame { version: 2, nv: nv.into_bytes().into(), payload };
    payload::decode(&mut frame, 4096, &pool).unwrap();
    let zeros = frame.payload.unwrap();
    assert_eq!(zeros.as_ptr(), address, "the pool handed out the same memory");
    assert_eq!(zeros[..], [0; 4096]);
}

#[test]
fn a_large_control_list_grows_with_its_bytes() {
    let mut nv = Writer::new();
    for index in 0..60_000 {
        nv.str(&format!("resource{index}"), "a resource with a fairly long name, as they come");
    }
    assert!(nv.len() > 4 << 20);
    let bytes = frame::encode(1, nv.as_bytes()).unwrap();
    // `receive` checks how much room there is on the way.
    let (frames, end) = receive(&bytes, &[1, 5000, 70_000], Limits::CONTROL);
    assert_eq!(end, Ok(true));
    assert_eq!(&frames[0].nv[..], nv.as_bytes());
    let (frames, end) = receive(&bytes, &[5000], Limits::PEER);
    assert!(frames.is_empty());
    assert!(matches!(end, Err(FrameError::HeaderTooLong { .. })));
}

#[test]
fn a_raised_payload_limit_holds_from_the_next_header_on() {
    let map = Buffer::from(vec![1; 3 << 20]);
    let answer = SecondAnswer {
        datasize: 0,
        extentsize: 0,
        localcnt: 0,
        remotecnt: 0,
        virgin: false,
        syncsrc: SyncSource::Primary,
        mapsize: 3 << 20,
        boot: None,
        peer_timeout: None,
        met: None,
        zero_deletes: false,
    };
    let none = Stages { compression: Compression::None, checksum: Checksum::None };
    let bytes = sent(&Message::SecondAnswer(answer, Some(map.clone())), 2, none);
    assert!(matches!(whole(&bytes).1, Err(FrameError::PayloadTooLong { .. })));
    let mut receiver = Receiver::new(Limits::PEER, Pool::new());
    receiver.set_payload_limit(3 << 20);
    let mut rest = &bytes[..];
    while !rest.is_empty() {
        let space = receiver.space();
        let n = space.len().min(rest.len());
        space[..n].copy_from_slice(&rest[..n]);
        rest = &rest[n..];
        receiver.advance(n).unwrap();
    }
    assert_eq!(receiver.next_frame().unwrap().payload, Some(map));
}

/// A payload with the pairs that lie about it.
fn lie(payload: &[u8], pairs: impl FnOnce(&mut Writer) -> &mut Writer) -> Result<(), PayloadError> {
    let mut nv = Writer::new();
    pairs(&mut nv);
    let payload = Some(Buffer::from(payload.to_vec()));
    payload::decode(&mut Frame { version: 2, nv: nv.into_bytes().into(), payload }, 1 << 20, &Pool::new())
}

#[test]
fn payloads_that_are_not_what_they_say_are_errors() {
    let hole = |payload: &[u8]| lie(payload, |nv| nv.str("compression", "hole"));
    let lzf = |payload: &[u8]| lie(payload, |nv| nv.str("compression", "lzf"));
    assert_eq!(hole(&[0, 2, 0, 0]), Ok(()));
    assert_eq!(hole(&[0, 2, 0, 0, 0]), Err(PayloadError::Hole { length: 5, claimed: 512 }));
    assert_eq!(hole(&[0, 0, 0, 0]), Err(PayloadError::Hole { length: 4, claimed: 0 }));
    assert_eq!(hole(&[0, 2, 0]), Err(PayloadError::NoLength { length: 3 }));
    assert_eq!(lzf(&[0, 4, 0]), Err(PayloadError::NoLength { length: 3 }));
    assert_eq!(lzf(&[0, 4, 0, 0, 0, 1]), Err(PayloadError::LzfTooShort { claimed: 1024 }));
    assert!(matches!(lzf(&[1, 4, 0, 0, 0, 1]), Err(PayloadError::Lzf(_))));
    // A literal, then four references to it: 1 + 3 * 264 + 232 bytes.
    let run = [&[0, 7][..], &[7 << 5, 255, 0].repeat(3), &[7 << 5, 223, 0]].concat();
    let claim = |length: u32| lzf(&[&length.to_le_bytes()[..], &run].concat());
    assert_eq!(claim(1025), Ok(()));
    assert!(matches!(claim(1026), Err(PayloadError::Lzf(_))));
    assert!(matches!(claim(1030), Err(PayloadError::Lzf(_))));
    let unknown = |stage, name: &str| Err(PayloadError::UnknownStage { stage, name: name.into() });
    for name in ["none", "zstd", "HOLE", ""] {
        assert_eq!(lie(b"x", |nv| nv.str("compression", name)), unknown("compression", name));
        assert_eq!(lie(b"x", |nv| nv.str("checksum", name)), unknown("checksum", name));
    }
    assert_eq!(lie(b"x", |nv| nv.u8("checksum", b'x')), unknown("checksum", "x"));
    assert_eq!(lie(b"x", |nv| nv.str("checksum", "crc32")), Err(PayloadError::NoHash));
    assert_eq!(
        lie(b"x", |nv| nv.str("checksum", "crc32").u32("hash", 0)),
        Err(PayloadError::NoHash),
        "a hash of another type is none"
    );
    assert_eq!(
        lie(b"x", |nv| nv.str("checksum", "sha256").u8_array("hash", &[0; 4])),
        Err(PayloadError::Hash { checksum: Checksum::Sha256, length: 1 })
    );
}

#[test]
fn an_empty_payload_is_none() {
    let mut nv = Writer::new();
    let stages = Stages { compression: Compression::Lzf, checksum: Checksum::Sha256 };
    assert!(payload::encode(&mut nv, &Buffer::from(vec![]), stages).is_empty());
    assert!(nv.is_empty());
    let reply = Reply { seq: 1, received: false, error: None, data: Some(Buffer::from(vec![])) };
    let (_, payload) = message::to_wire(&Message::Reply(reply), 2, stages).unwrap();
    assert_eq!(payload, None);
}

#[test]
fn compression_is_applied_only_where_it_saves_enough() {
    let applied = |data: Vec<u8>, compression: Compression| {
        let mut nv = Writer::new();
        let sent =
            payload::encode(&mut nv, &Buffer::from(data), Stages { compression, checksum: Checksum::None });
        let list = List::parse(nv.as_bytes()).unwrap();
        assert_eq!(list.u32("size").unwrap() as usize, sent.len());
        (list.str("compression").map(str::to_owned), sent.len())
    };
    assert_eq!(applied(vec![0; 512], Compression::Lzf), (Some("hole".into()), 4));
    assert_eq!(applied(vec![0; 512], Compression::None), (None, 512));
    assert_eq!(applied(vec![1; 512], Compression::Hole), (None, 512));
    assert_eq!(applied(vec![1; 1024], Compression::Lzf), (None, 1024));
    // 1038 equal bytes are a literal and four references, fourteen bytes; of 1025, one may be used.
    assert_eq!(applied(vec![1; 1025], Compression::Lzf), (None, 1025));
    assert_eq!(applied(vec![1; 1037], Compression::Lzf).0, None);
    assert_eq!(applied(vec![1; 1038], Compression::Lzf), (Some("lzf".into()), 18));
}
