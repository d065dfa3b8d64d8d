//! A client's byte stream against the server's half of an NBD connection.
//!
//! Whatever the client sends: no panic; every command lies inside the export, in whole blocks; what is in flight
//! stays within its bounds; every command is answered, and nothing is left when the connection is over.

use std::collections::VecDeque;

use hast_nbd::{
    Command, Export, Kind, MAX_BYTES, MAX_COMMANDS, MAX_PAYLOAD, NbdError, Pieces, Question, Run, Session,
};
use hast_net::buffer::{Buffer, Pool};

use crate::source::Source;

/// The export's name.
const NAME: &str = "shared";

/// Three bytes say what is exported and how fast bytes and disk are. An even first byte: the rest is the client's
/// stream. An odd one: it is a script of options and commands.
pub fn run(data: &[u8]) {
    let Some((&[kind, piece, slowness], rest)) = data.split_first_chunk() else { return };
    let export = Export {
        read_only: kind & 2 != 0,
        tells_holes: kind & 16 != 0,
        ..Export::new(
            NAME,
            if kind & 4 == 0 { 1 << 20 } else { 1 << 40 },
            if kind & 8 == 0 { 512 } else { 4096 },
        )
    };
    let stream = if kind & 1 == 0 { rest.to_vec() } else { script(&mut Source::new(rest)) };
    let mut server = Server {
        size: export.size,
        block: u64::from(export.minimum_block),
        read_only: export.read_only,
        session: Session::new(export, Pool::new()),
        held: VecDeque::new(),
        sent: 0,
    };
    server.serve(&stream, usize::from(piece) * 8 + 1, usize::from(slowness % 64));
}

struct Server {
    size: u64,
    block: u64,
    read_only: bool,
    session: Session,
    /// Commands that the disk is at.
    held: VecDeque<Command>,
    sent: usize,
}

impl Server {
    /// Reads the stream in pieces; the disk has so many commands before it ends one.
    fn serve(&mut self, stream: &[u8], piece: usize, slowness: usize) {
        let mut rest = stream;
        let mut failed = false;
        while !rest.is_empty() && !failed && !self.session.is_finished() {
            if self.session.wants_input() {
                let space = self.session.space();
                assert!(!space.is_empty(), "there is room while input is wanted");
                let count = piece.min(space.len()).min(rest.len());
                space[..count].copy_from_slice(&rest[..count]);
                rest = &rest[count..];
                failed = self.session.advance(count).is_err();
            } else if self.held.is_empty() && !self.transmit() {
                // The client has said goodbye: the rest is nobody's.
                break;
            }
            self.take();
            let wants = self.session.wants_input();
            while self.held.len() > slowness || (!wants && !self.held.is_empty()) {
                self.complete();
                if wants || self.session.wants_input() {
                    break;
                }
            }
            if slowness.is_multiple_of(2) {
                self.transmit();
            }
        }
        self.finish(failed);
    }

    fn take(&mut self) {
        while let Some(command) = self.session.poll_command() {
            self.check(&command.kind);
            self.held.push_back(command);
        }
        while let Some(Question { handle, offset, length }) = self.session.poll_question() {
            self.check_range(offset, u64::from(length));
            // Runs that cover it, go beyond it, or make no sense.
            let runs = [Run { length: 512, hole: true }, Run { length: offset, hole: false }];
            self.session.answer(handle, &runs[..(offset / 512 % 3) as usize]);
        }
        assert!(self.session.in_flight() <= MAX_COMMANDS);
        let bytes: u64 = self.held.iter().map(|command| payload(&command.kind)).sum();
        assert!(bytes <= MAX_BYTES, "{bytes} bytes in flight");
    }

    /// A command can be carried out as it is.
    fn check(&self, kind: &Kind) {
        let (offset, length) = match kind {
            Kind::Flush => return,
            Kind::Write { offset, data, .. } => {
                (*offset, data.iter().map(|piece| piece.len() as u64).sum::<u64>())
            }
            Kind::Read { offset, length }
            | Kind::Trim { offset, length, .. }
            | Kind::WriteZeroes { offset, length, .. }
            | Kind::Cache { offset, length } => (*offset, u64::from(*length)),
        };
        self.check_range(offset, length);
        assert!(payload(kind) <= MAX_PAYLOAD.into());
        let changes = matches!(kind, Kind::Write { .. } | Kind::Trim { .. } | Kind::WriteZeroes { .. });
        assert!(!(changes && self.read_only), "a read-only export is not written");
    }

    fn check_range(&self, offset: u64, length: u64) {
        assert!(
            length > 0 && offset.is_multiple_of(self.block) && length.is_multiple_of(self.block),
            "{offset}, {length}"
        );
        assert!(offset.checked_add(length).is_some_and(|end| end <= self.size), "{offset}, {length}");
    }

    /// The disk ends the command that came last, or the one that came first.
    fn complete(&mut self) {
        let last = self.held.len().is_multiple_of(2);
        let command = if last { self.held.pop_back() } else { self.held.pop_front() };
        let Some(Command { handle, kind }) = command else { return };
        let result = match kind {
            Kind::Read { offset, .. } if offset % 3 == 1 => Err(NbdError::Io),
            Kind::Read { length, .. } => Ok([Buffer::from(vec![7; length as usize])].into()),
            Kind::Trim { fua: true, .. } => Err(NbdError::NoSpc),
            _ => Ok(Pieces::new()),
        };
        self.session.complete(handle, result);
        self.take();
    }

    /// Sends all that waits; false if there was nothing.
    fn transmit(&mut self) -> bool {
        let before = self.sent;
        while let Some(buffer) = self.session.poll_transmit() {
            assert!(!buffer.is_empty(), "nothing is not sent");
            self.sent += buffer.len();
            self.take();
        }
        self.sent > before
    }

    /// The client sends no more.
    fn finish(&mut self, failed: bool) {
        self.session.shut_down();
        while !self.held.is_empty() {
            self.complete();
        }
        self.transmit();
        if failed {
            assert!(self.session.is_finished());
        } else {
            assert_eq!(self.session.in_flight(), 0, "every command is answered");
            assert!(self.session.is_finished(), "and then it is over");
            assert!(self.sent >= 18, "the greeting at least was sent");
        }
    }
}

fn payload(kind: &Kind) -> u64 {
    match kind {
        Kind::Read { length, .. } => u64::from(*length),
        Kind::Write { data, .. } => data.iter().map(|piece| piece.len() as u64).sum(),
        _ => 0,
    }
}

/// A client that keeps to the protocol more often than not.
fn script(source: &mut Source<'_>) -> Vec<u8> {
    let flags: u32 = source.choose(&[3, 3, 3, 1, 0, u32::MAX]);
    let mut stream = flags.to_be_bytes().to_vec();
    for _ in 0..source.below(6) {
        let (number, data) = option(source);
        put_option(&mut stream, number, &data);
    }
    if source.one_in(4) {
        put_option(&mut stream, 1, source.choose(&[NAME, "", "other"]).as_bytes());
    } else {
        put_option(&mut stream, 7, &info(source));
    }
    for _ in 0..64 {
        if source.is_empty() {
            break;
        }
        request(source, &mut stream);
    }
    stream
}

fn put_option(stream: &mut Vec<u8>, number: u32, data: &[u8]) {
    stream.extend(b"IHAVEOPT");
    stream.extend(number.to_be_bytes());
    stream.extend(u32::try_from(data.len()).unwrap().to_be_bytes());
    stream.extend(data);
}

fn option(source: &mut Source<'_>) -> (u32, Vec<u8>) {
    match source.below(8) {
        0 => (3, Vec::new()),
        1 | 2 => (8, Vec::new()),
        3 => (6, info(source)),
        4 | 5 => {
            let name: &str = source.choose(&[NAME, "", "other"]);
            let queries: Vec<&str> = (0..source.below(4))
                .map(|_| source.choose(&["base:allocation", "base:", "x:y", ""]))
                .collect();
            let mut data = string(name);
            data.extend(u32::try_from(queries.len()).unwrap().to_be_bytes());
            data.extend(queries.into_iter().flat_map(string));
            (source.choose(&[9, 10]), data)
        }
        6 => (source.number(), source.text().into_bytes()),
        _ => (source.byte().into(), source.text().into_bytes()),
    }
}

fn info(source: &mut Source<'_>) -> Vec<u8> {
    let name: &str = source.choose(&[NAME, NAME, "", "other"]);
    let mut data = string(name);
    let wanted = source.below(5);
    data.extend(u16::try_from(wanted).unwrap().to_be_bytes());
    data.extend((0..wanted).flat_map(|_| u16::from(source.byte() % 5).to_be_bytes()));
    data
}

fn string(text: &str) -> Vec<u8> {
    let mut bytes = u32::try_from(text.len()).unwrap().to_be_bytes().to_vec();
    bytes.extend(text.as_bytes());
    bytes
}

fn request(source: &mut Source<'_>, stream: &mut Vec<u8>) {
    let command: u16 = source.choose(&[0, 0, 1, 1, 1, 2, 3, 4, 5, 6, 7, 99]);
    let flags: u16 = if source.flag() { 0 } else { 1 << source.below(6) };
    let offset = match source.byte() {
        0xf0.. => source.number(),
        _ => u64::from(source.number::<u16>() % 2050) * 512,
    };
    let length: u32 = match source.byte() {
        0xf0.. => source.number(),
        few => (u32::from(few % 40)) * 512,
    };
    stream.extend(0x2560_9513_u32.to_be_bytes());
    stream.extend(flags.to_be_bytes());
    stream.extend(command.to_be_bytes());
    stream.extend(source.number::<u32>().to_be_bytes());
    stream.extend([0; 4]);
    stream.extend(offset.to_be_bytes());
    stream.extend(length.to_be_bytes());
    if command == 1 {
        let sent = if source.one_in(16) { usize::from(source.byte()) } else { length.min(1 << 16) as usize };
        stream.resize(stream.len() + sent, source.byte());
    }
}
