//! Messages made from a script, and the way from a message to the bytes on a connection and back.

use hast_format::nv::Writer;
use hast_net::buffer::{Buffer, Pool};
use hast_net::errno::Errno;
use hast_net::extensions::Extensions;
use hast_net::frame::{self, Frame, FrameError, Receiver};
use hast_net::message::{self, Command, Mark, MarkKind, Message, Reply, Request};
use hast_net::payload::{self, Checksum, Compression, Stages};

use crate::source::Source;

/// The longest write that is made, in bytes.
const LONGEST_WRITE: u64 = 16 << 10;

/// Lets a receiver read `bytes` in pieces of at most `piece` bytes. Gives the frames that were complete, and how
/// it ended.
pub fn feed(receiver: &mut Receiver, bytes: &[u8], piece: usize) -> (Vec<Frame>, Result<(), FrameError>) {
    let mut frames = Vec::new();
    let mut rest = bytes;
    while !rest.is_empty() {
        let space = receiver.space();
        assert!(!space.is_empty(), "there is always room for more");
        let count = piece.max(1).min(space.len()).min(rest.len());
        space[..count].copy_from_slice(&rest[..count]);
        rest = &rest[count..];
        let outcome = receiver.advance(count);
        frames.extend(std::iter::from_fn(|| receiver.next_frame()));
        if outcome.is_err() {
            return (frames, outcome);
        }
    }
    (frames, Ok(()))
}

/// The bytes with which a message travels.
#[must_use]
pub fn to_bytes(message: &Message, version: u8, stages: Stages) -> Vec<u8> {
    let (mut bytes, data) = message::to_wire(message, version, stages).expect("a message of ours fits");
    bytes.extend_from_slice(data.as_deref().unwrap_or_default());
    bytes
}

/// The bytes of a frame with this list and payload.
#[must_use]
pub fn frame_bytes(version: u8, mut nv: Writer, data: Option<&Buffer>, stages: Stages) -> Vec<u8> {
    let sent = data.map(|data| payload::encode(&mut nv, data, stages));
    let mut bytes = frame::encode(version, nv.as_bytes()).expect("a list of ours fits");
    bytes.extend_from_slice(sent.as_deref().unwrap_or_default());
    bytes
}

/// What a sender is configured to do to payloads.
pub fn stages(source: &mut Source<'_>) -> Stages {
    Stages {
        compression: source.choose(&[Compression::None, Compression::Hole, Compression::Lzf]),
        checksum: source.choose(&[Checksum::None, Checksum::Crc32, Checksum::Sha256]),
    }
}

/// A payload: bytes of the input, a pattern, or zeros, so that every stage has something to do.
pub fn data(source: &mut Source<'_>, length: usize) -> Buffer {
    let mut bytes = vec![0; length];
    match source.below(3) {
        0 => {}
        1 => {
            let seed = source.byte();
            for (index, byte) in bytes.iter_mut().enumerate() {
                *byte = u8::try_from(index / 16 % 256).unwrap() ^ seed;
            }
        }
        _ => {
            let given = source.bytes(length.min(usize::from(u8::MAX)));
            bytes[..given.len()].copy_from_slice(given);
        }
    }
    Buffer::from(bytes)
}

/// Where requests may go.
#[derive(Clone, Copy, Debug)]
pub struct Area {
    /// Bytes in the data area.
    pub size: u64,
    /// Bytes in a sector.
    pub sector: u32,
}

impl Area {
    /// A range as a request has it: mostly one of whole sectors inside, sometimes at or past an edge, sometimes
    /// anything.
    pub fn range(self, source: &mut Source<'_>) -> (u64, u64) {
        let sector = u64::from(self.sector);
        let sectors = self.size / sector;
        let inside = |number: u16| u64::from(number) % sectors * sector;
        match source.byte() {
            0..=0xd7 => {
                let offset = inside(source.number());
                let length = (u64::from(source.byte() % 17) + 1) * sector;
                (offset, length.min(self.size - offset))
            }
            0xd8..=0xdf => (0, self.size),
            0xe0..=0xe7 => (inside(source.number()), source.number::<u32>().into()),
            0xe8..=0xef => (self.size - sector, sector * u64::from(source.byte())),
            0xf0..=0xf7 => (u64::MAX - u64::from(source.number::<u16>()), source.number::<u16>().into()),
            _ => (source.number(), source.number()),
        }
    }
}

/// Something that a primary sends after the handshake.
pub fn from_primary(source: &mut Source<'_>, area: Area, seq: u64) -> Message {
    let seq = if source.one_in(64) { source.number() } else { seq };
    let request = |command, (offset, length): (u64, u64), memsync, data| {
        Message::Request(Request { command, seq, offset, length, memsync, data })
    };
    match source.below(12) {
        0..=3 => {
            let memsync = source.flag();
            let (offset, length) = area.range(source);
            // A write has its data with it, whatever its range is.
            let length = length.min(LONGEST_WRITE);
            let data = (length > 0).then(|| data(source, usize::try_from(length).unwrap()));
            request(Command::Write, (offset, length), memsync, data)
        }
        4 | 5 => request(Command::Read, area.range(source), false, None),
        6 => request(Command::Delete, area.range(source), false, None),
        7 => request(Command::Flush, (0, 0), false, None),
        8 => Message::Keepalive,
        9 => Message::Mark(Mark { seq, kind: MarkKind::SyncStart }),
        10 => {
            Message::Mark(Mark { seq, kind: MarkKind::SyncDone { localcnt: source.count(), failures: None } })
        }
        _ => {
            let (offset, length) = area.range(source);
            Message::Mark(Mark { seq, kind: MarkKind::Stale { offset, length } })
        }
    }
}

/// Something that a secondary answers; `length` bytes of data if it brings any.
pub fn reply(source: &mut Source<'_>, seq: u64, length: usize) -> Reply {
    let received = source.one_in(4);
    let error = source.one_in(4).then(|| errno(source));
    let data = (length > 0 && error.is_none()).then(|| data(source, length));
    Reply { seq, received, error, data }
}

/// An error number: one that is treated specially, or any.
pub fn errno(source: &mut Source<'_>) -> Errno {
    let any = Errno::from_wire(source.number()).unwrap_or(Errno::EIO);
    source.choose(&[Errno::EIO, Errno::EOPNOTSUPP, Errno::EINVAL, any])
}

/// No extension, or all.
pub fn extensions(source: &mut Source<'_>) -> Extensions {
    source.choose(&[Extensions::NONE, Extensions::ALL])
}

/// Spoils one byte, mostly of the beginning.
pub fn corrupt(source: &mut Source<'_>, bytes: &mut [u8]) {
    let at = usize::from(source.number::<u16>());
    let with = source.byte().max(1);
    if let Some(end) = bytes.len().checked_sub(1) {
        bytes[at.min(end)] ^= with;
    }
}

/// The payload that a receiver hands on: unpacked, or None if the connection is to be closed.
#[must_use]
pub fn unpack(mut frame: Frame, limit: u32, pool: &Pool) -> Option<Frame> {
    payload::decode(&mut frame, limit, pool).ok()?;
    let length = frame.payload.as_ref().map_or(0, |payload| payload.len());
    assert!(length as u64 <= u64::from(limit), "unpacked to {length} of at most {limit} bytes");
    Some(frame)
}
