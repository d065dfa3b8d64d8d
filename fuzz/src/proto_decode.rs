//! Frames, payload stages and typed messages, as they come from the node that is the peer.

use hast_net::buffer::Pool;
use hast_net::extensions::Extensions;
use hast_net::frame::{self, Frame, FrameError, Limits, Receiver};
use hast_net::message::{FromPrimary, FromSecondary, Message, Reply};
use hast_net::payload::Stages;

use crate::messages::{self, Area, feed, to_bytes, unpack};
use crate::source::Source;

/// The first byte says how the rest is read: even, as a stream in pieces of half that many bytes; odd, as a
/// script of messages with good checksums, some of which are spoilt on the way.
pub fn run(data: &[u8]) {
    let Some((kind, rest)) = data.split_first() else { return };
    if kind & 1 == 0 {
        stream(rest, usize::from(kind >> 1));
    } else {
        script(&mut Source::new(rest));
    }
}

/// Cuts a stream into frames and understands each.
pub fn stream(bytes: &[u8], piece: usize) {
    let (frames, outcome) = cut(bytes, usize::MAX);
    let (in_pieces, outcome_in_pieces) = cut(bytes, piece.max(1));
    assert_eq!(outcome, outcome_in_pieces, "how a stream arrives changes nothing");
    assert_eq!(frames, in_pieces);
    check_cut(bytes, &frames, &outcome);
    for frame in frames {
        understand(frame);
    }
}

fn cut(bytes: &[u8], piece: usize) -> (Vec<Frame>, Result<bool, FrameError>) {
    let mut receiver = Receiver::new(Limits::PEER, Pool::new());
    let (frames, outcome) = feed(&mut receiver, bytes, piece);
    (frames, outcome.map(|()| receiver.is_idle()))
}

/// Frames are what the stream consists of, byte for byte, and keep the limits.
fn check_cut(bytes: &[u8], frames: &[Frame], outcome: &Result<bool, FrameError>) {
    let mut written = Vec::new();
    for frame in frames {
        let length = frame.payload.as_ref().map_or(0, |payload| payload.len());
        assert!(frame.nv.len() <= Limits::PEER.header as usize && length <= Limits::PEER.payload as usize);
        assert!(frame.version <= frame::VERSION);
        let size = frame.list().expect("a receiver gives well-formed lists").u32("size").unwrap_or(0);
        assert_eq!(size as usize, length, "a payload is as long as its header says");
        written.extend(frame::encode(frame.version, &frame.nv).expect("what was received can be sent"));
        written.extend_from_slice(frame.payload.as_deref().unwrap_or_default());
    }
    assert!(bytes.starts_with(&written), "nothing is added or left out");
    if let Ok(idle) = outcome {
        assert_eq!(*idle, written.len() == bytes.len(), "idle is when nothing is left over");
    }
}

/// Reads a frame as what either node could mean, and writes that again.
pub fn understand(frame: Frame) {
    let Some(frame) = unpack(frame, Limits::PEER.payload, &Pool::new()) else { return };
    for active in [Extensions::NONE, Extensions::ALL] {
        if let Ok(message) = FromPrimary::decode_extended(frame.clone(), active) {
            check_again(&message, active);
        }
    }
    for active in [Extensions::NONE, Extensions::ALL] {
        let Ok(message) = FromSecondary::decode_extended(frame.clone(), active) else { continue };
        let again = match message.clone() {
            FromSecondary::Reply(reply) => Message::Reply(reply),
            FromSecondary::Busy { seq } => Message::Busy(seq),
            FromSecondary::Alive => Message::Alive,
        };
        let sent = to_bytes(&again, 2, Stages::default());
        assert_eq!(FromSecondary::decode_extended(receive(&sent), active), Ok(message));
    }
}

fn check_again(message: &FromPrimary, active: Extensions) {
    let again = match message {
        FromPrimary::Request(request) => {
            let length = request.data.as_ref().map_or(0, |data| data.len() as u64);
            let is_write = request.command == hast_net::message::Command::Write;
            assert_eq!(length, if is_write { request.length } else { 0 }, "a write has its data");
            assert_ne!(request.seq, 0);
            Message::Request(request.clone())
        }
        FromPrimary::Mark(mark) => {
            assert!(active.contains(Extensions::SYNC_MARKS), "an original knows no marks");
            Message::Mark(*mark)
        }
        FromPrimary::Keepalive => Message::Keepalive,
        FromPrimary::Farewell { reason } => {
            assert!(active.contains(Extensions::REASONS), "an original gives no reasons");
            Message::Farewell(reason.clone())
        }
        FromPrimary::Invalid { reason, .. } => return assert!(!reason.is_empty()),
    };
    let sent = to_bytes(&again, 2, Stages::default());
    assert_eq!(FromPrimary::decode_extended(receive(&sent), active).as_ref(), Ok(message));
}

/// The one frame in `bytes`, its payload unpacked.
fn receive(bytes: &[u8]) -> Frame {
    let (mut frames, outcome) = cut(bytes, usize::MAX);
    assert_eq!((frames.len(), outcome), (1, Ok(true)), "one message is one frame");
    unpack(frames.remove(0), Limits::PEER.payload, &Pool::new()).expect("what we pack can be unpacked")
}

/// A stream of our own messages. What was not spoilt must arrive as it was sent.
fn script(source: &mut Source<'_>) {
    let area = Area { size: 1 << 20, sector: 512 };
    let mut stream = Vec::new();
    for seq in 1..=16 {
        if source.is_empty() {
            break;
        }
        let stages = messages::stages(source);
        let message = if source.flag() {
            messages::from_primary(source, area, seq)
        } else {
            let length = usize::from(source.number::<u16>() & 0x1fff);
            Message::Reply(messages::reply(source, seq, length))
        };
        let mut bytes = to_bytes(&message, 2, stages);
        let spoilt = source.one_in(4);
        if spoilt {
            messages::corrupt(source, &mut bytes);
        } else {
            arrives(&message, &bytes);
        }
        stream.extend(bytes);
    }
    self::stream(&stream, source.below(256));
}

fn arrives(sent: &Message, bytes: &[u8]) {
    let frame = receive(bytes);
    match sent {
        Message::Reply(reply) => assert_eq!(Reply::decode(frame).as_ref(), Ok(reply)),
        Message::Request(request) if request.seq != 0 => {
            assert_eq!(FromPrimary::decode(frame), Ok(FromPrimary::Request(request.clone())));
        }
        Message::Mark(mark) if mark.seq != 0 => {
            let received = FromPrimary::decode_extended(frame, Extensions::ALL);
            assert_eq!(received, Ok(FromPrimary::Mark(*mark)));
        }
        _ => {}
    }
}
