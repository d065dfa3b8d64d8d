//! What a connected pair says to each other: requests, replies and keepalives, typed (spec: wire, requests
//! and replies).
//!
//! Decoding takes a [`Frame`] whose payload has been through [`payload::decode`], and moves that payload into
//! the message without a copy. What a frame must be to be a message at all is checked here; whether a range
//! lies inside the data area and on sectors is not, because that needs the layout.

use crate::buffer::Buffer;
use crate::errno::Errno;
use crate::extensions::Extensions;
use crate::frame::{self, Frame, FrameError};
use crate::handshake::{FirstHello, SecondAnswer, SecondHello, SecondRefusal};
use crate::payload::{self, Stages};
use hast_format::nv::{self, List, Writer};
use std::fmt;
use thiserror::Error;

/// The value of `cmd` in a keepalive.
const KEEPALIVE: u8 = 5;
/// The value of `cmd` in a mark of each kind.
const SYNC_START: u8 = 64;
const SYNC_DONE: u8 = 65;
const STALE: u8 = 66;
/// The pair of a keepalive that says why it is the last one.
const REASON: &str = "hast_reason";
/// The longest reason, in bytes: a line for the log.
const REASON_MAX: usize = 1024;

/// What a request asks the secondary's disk to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Command {
    /// Send back `length` bytes.
    Read = 1,
    /// Store the payload.
    Write = 2,
    /// The range is no longer needed (TRIM).
    Delete = 3,
    /// Make every write that was answered before durable.
    Flush = 4,
}

impl Command {
    /// The value of the `cmd` pair.
    #[must_use]
    pub fn code(self) -> u8 {
        self as u8
    }

    /// The command with that code.
    #[must_use]
    pub fn from_code(code: u8) -> Option<Command> {
        [Command::Read, Command::Write, Command::Delete, Command::Flush]
            .into_iter()
            .find(|command| command.code() == code)
    }
}

impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Command::Read => "READ",
            Command::Write => "WRITE",
            Command::Delete => "DELETE",
            Command::Flush => "FLUSH",
        })
    }
}

/// One request of a primary.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// What to do.
    pub command: Command,
    /// Chosen by the primary, never 0, echoed in the reply. A reference primary uses one more than once.
    pub seq: u64,
    /// First byte of the range, counted from the start of the data area; 0 for a flush.
    pub offset: u64,
    /// Bytes in the range; 0 for a flush.
    pub length: u64,
    /// A write that is to be answered twice: when it has arrived and when it is stored.
    pub memsync: bool,
    /// The bytes of a write, exactly `length`; None for everything else and for a write of length 0.
    pub data: Option<Buffer>,
}

impl Request {
    fn encode(&self, nv: &mut Writer) {
        nv.u8("cmd", self.command.code())
            .u64("seq", self.seq)
            .u64("offset", self.offset)
            .u64("length", self.length);
        if self.memsync {
            nv.u8("memsync", 1);
        }
    }
}

/// What a primary tells a secondary about the secondary's own data, for it to remember. Only when `sync-marks`
/// is active ([`Extensions::SYNC_MARKS`]); answered, once it is durable, with an ordinary [`Reply`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark {
    /// As in [`Request`].
    pub seq: u64,
    /// What it says.
    pub kind: MarkKind,
}

impl Mark {
    fn encode(self, nv: &mut Writer) {
        match self.kind {
            MarkKind::SyncStart => nv.u8("cmd", SYNC_START).u64("seq", self.seq),
            MarkKind::SyncDone { localcnt, failures } => {
                nv.u8("cmd", SYNC_DONE).u64("seq", self.seq).u64("localcnt", localcnt);
                match failures {
                    Some(failures) => nv.u64("failures", failures),
                    None => nv,
                }
            }
            MarkKind::Stale { offset, length } => {
                nv.u8("cmd", STALE).u64("seq", self.seq).u64("offset", offset).u64("length", length)
            }
        };
    }

    /// A mark that cannot be read must not be passed over: what follows rests on it.
    fn decode(code: u8, list: &List<'_>) -> Result<Mark, MessageError> {
        let seq = list.u64("seq").filter(|&seq| seq != 0).ok_or(MessageError::NoSeq)?;
        let number = |field| list.u64(field).ok_or(MessageError::IncompleteMark { seq, field });
        let kind = match code {
            SYNC_START => MarkKind::SyncStart,
            SYNC_DONE => MarkKind::SyncDone { localcnt: number("localcnt")?, failures: list.u64("failures") },
            STALE => MarkKind::Stale { offset: number("offset")?, length: number("length")? },
            _ => return Err(MessageError::UnknownCommand(code)),
        };
        Ok(Mark { seq, kind })
    }
}

/// The kinds of [`Mark`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MarkKind {
    /// The secondary's data is out of date from now on.
    SyncStart,
    /// The secondary has all that the primary has, durably.
    SyncDone {
        /// The primary's count: the secondary's new remotecnt.
        localcnt: u64,
        /// How many answers with an error the primary had read on this connection by then: of later ones it does not know
        /// yet. Absent from a primary that does not count them.
        failures: Option<u64>,
    },
    /// The primary's own copy of this range is out of date, the secondary's is not.
    Stale {
        /// First byte of the range, counted from the start of the data area.
        offset: u64,
        /// Bytes in the range.
        length: u64,
    },
}

/// What arrives at a secondary after the handshake.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FromPrimary {
    /// A request to carry out, if its range is one.
    Request(Request),
    /// Something to remember; only from [`FromPrimary::decode_extended`].
    Mark(Mark),
    /// The primary is there and has nothing to ask.
    Keepalive,
    /// The primary gives this node up; only if `reasons` is active ([`Extensions::REASONS`]).
    Farewell {
        /// Why, as a sentence; nothing in it may be trusted.
        reason: String,
    },
    /// A request that cannot be carried out but harms nobody: it is answered with EINVAL and the connection
    /// stays.
    Invalid {
        /// To be echoed; 0 if there was none.
        seq: u64,
        /// It was a memsync write: the one answer has `received` and the error together.
        memsync: bool,
        /// What to log.
        reason: String,
    },
}

impl FromPrimary {
    /// Reads a frame whose payload has been decoded, from a primary that speaks what an original speaks.
    ///
    /// # Errors
    /// The frame is no message of this protocol; the connection is closed.
    pub fn decode(frame: Frame) -> Result<FromPrimary, MessageError> {
        FromPrimary::decode_extended(frame, Extensions::NONE)
    }

    /// Reads a frame whose payload has been decoded, from a primary with which these extensions are active.
    ///
    /// # Errors
    /// As for [`FromPrimary::decode`]. A command of an extension that is not active is unknown.
    pub fn decode_extended(frame: Frame, active: Extensions) -> Result<FromPrimary, MessageError> {
        let list = List::parse(&frame.nv)?;
        let data = frame.payload;
        let code = list.u8("cmd").filter(|&code| code != 0).ok_or(MessageError::NoCommand)?;
        let mark = active.contains(Extensions::SYNC_MARKS) && matches!(code, SYNC_START | SYNC_DONE | STALE);
        let command = match code {
            KEEPALIVE => None,
            _ if mark => None,
            _ => Some(Command::from_code(code).ok_or(MessageError::UnknownCommand(code))?),
        };
        if let (Some(data), true) = (&data, command != Some(Command::Write)) {
            return Err(MessageError::UnexpectedData { cmd: code, length: data.len() });
        }
        let Some(command) = command else {
            if mark {
                return Mark::decode(code, &list).map(FromPrimary::Mark);
            }
            let reason = list.str(REASON).filter(|_| active.contains(Extensions::REASONS));
            return Ok(match reason {
                Some(reason) => FromPrimary::Farewell { reason: cut(reason).to_owned() },
                None => FromPrimary::Keepalive,
            });
        };
        let Some(seq) = list.u64("seq").filter(|&seq| seq != 0) else {
            let reason = "Header contains no 'seq' field.".into();
            return Ok(FromPrimary::Invalid { seq: 0, memsync: false, reason });
        };
        if command == Command::Flush {
            let request = Request { command, seq, offset: 0, length: 0, memsync: false, data: None };
            return Ok(FromPrimary::Request(request));
        }
        let memsync = command == Command::Write && list.contains("memsync");
        let (offset, length) = match (list.u64("offset"), list.u64("length")) {
            (Some(offset), Some(length)) => (offset, length),
            (offset, _) => {
                let field = if offset.is_none() { "offset" } else { "length" };
                let reason = format!("Header is missing '{field}' field.");
                return Ok(FromPrimary::Invalid { seq, memsync, reason });
            }
        };
        if command == Command::Write {
            let received = data.as_ref().map_or(0, |data| data.len());
            if u64::try_from(received).ok() != Some(length) {
                return Err(MessageError::DataLength { seq, length, received });
            }
        }
        Ok(FromPrimary::Request(Request { command, seq, offset, length, memsync, data }))
    }
}

/// What a secondary answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// The request's; 0 if the request had none.
    pub seq: u64,
    /// A memsync write has arrived and is not yet stored: another reply with the same `seq` follows, unless
    /// this one carries an error.
    pub received: bool,
    /// Why the request failed; None if it succeeded.
    pub error: Option<Errno>,
    /// The bytes of a successful read.
    pub data: Option<Buffer>,
}

impl Reply {
    /// Reads a frame whose payload has been decoded.
    ///
    /// # Errors
    /// The frame is no reply; the connection is closed.
    pub fn decode(frame: Frame) -> Result<Reply, MessageError> {
        let list = List::parse(&frame.nv)?;
        let seq = list.u64("seq").ok_or(MessageError::NoSeq)?;
        // An error that cannot be read must not pass for a success.
        let error = match list.i16("error") {
            Some(error) => Errno::from_wire(error),
            None if list.contains("error") => return Err(MessageError::UnreadableError { seq }),
            None => None,
        };
        Ok(Reply { seq, received: list.contains("received"), error, data: frame.payload })
    }

    fn encode(&self, nv: &mut Writer) {
        nv.u64("seq", self.seq);
        if self.received {
            nv.i8("received", 1);
        }
        if let Some(error) = self.error {
            nv.i16("error", error.to_wire());
        }
    }
}

/// What arrives at a primary after the handshake.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FromSecondary {
    /// An answer.
    Reply(Reply),
    /// The secondary's disk has this request or mark, the oldest that is not answered; only if `busy` is
    /// active ([`Extensions::BUSY`]).
    Busy {
        /// The request's.
        seq: u64,
    },
    /// The secondary has heard the primary; only if `alive` is active ([`Extensions::ALIVE`]).
    Alive,
}

impl FromSecondary {
    /// Reads a frame whose payload has been decoded, from a secondary with which these extensions are active.
    ///
    /// # Errors
    /// As for [`Reply::decode`].
    pub fn decode_extended(frame: Frame, active: Extensions) -> Result<FromSecondary, MessageError> {
        if active.contains(Extensions::BUSY) && frame.payload.is_none() {
            let list = List::parse(&frame.nv)?;
            if let (Some(seq), false) = (list.u64("busy"), list.contains("seq")) {
                return Ok(FromSecondary::Busy { seq });
            }
        }
        if active.contains(Extensions::ALIVE) && frame.payload.is_none() {
            let list = List::parse(&frame.nv)?;
            if list.u8("alive").is_some() && !list.contains("seq") {
                return Ok(FromSecondary::Alive);
            }
        }
        Reply::decode(frame).map(FromSecondary::Reply)
    }
}

/// Everything that the two workers of a pair send each other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// Step one of the handshake, primary to secondary, first connection.
    FirstHello(FirstHello),
    /// Step two, primary to secondary, second connection.
    SecondHello(SecondHello),
    /// Its answer with the map (exactly `mapsize` bytes), secondary to primary, first connection.
    SecondAnswer(SecondAnswer, Option<Buffer>),
    /// Its refusal, in a frame of version 2.
    SecondRefusal(SecondRefusal, Option<Buffer>),
    /// Primary to secondary, first connection.
    Request(Request),
    /// Primary to secondary, first connection, only when `sync-marks` is active.
    Mark(Mark),
    /// Primary to secondary, first connection.
    Keepalive,
    /// The same, only when `reasons` is active: the last one, and why.
    Farewell(String),
    /// Secondary to primary, second connection.
    Reply(Reply),
    /// The same, only when `busy` is active: the secondary still works on the request with this number.
    Busy(u64),
    /// The same, only when `alive` is active: the secondary has heard the primary.
    Alive,
}

impl Message {
    /// The pairs in the reference's order, and the payload as it is. What goes out is
    /// [`payload::encode`] of the payload, which appends its own pairs; then [`frame::encode`].
    #[must_use]
    pub fn encode(&self) -> (Writer, Option<Buffer>) {
        let mut nv = Writer::with_capacity(256);
        let data = self.encode_to(&mut nv);
        (nv, data)
    }

    /// The same, at the end of a list.
    fn encode_to(&self, nv: &mut Writer) -> Option<Buffer> {
        match self {
            Message::FirstHello(hello) => *nv = hello.encode(),
            Message::SecondHello(hello) => *nv = hello.encode(),
            Message::SecondAnswer(answer, map) => {
                *nv = answer.encode();
                return map.clone();
            }
            Message::SecondRefusal(refusal, map) => {
                *nv = refusal.encode();
                return map.clone();
            }
            Message::Request(request) => {
                request.encode(nv);
                return request.data.clone();
            }
            Message::Mark(mark) => mark.encode(nv),
            Message::Keepalive => _ = nv.u8("cmd", KEEPALIVE),
            Message::Farewell(reason) => _ = nv.u8("cmd", KEEPALIVE).str(REASON, cut(reason)),
            Message::Reply(reply) => {
                reply.encode(nv);
                return reply.data.clone();
            }
            Message::Busy(seq) => _ = nv.u64("busy", *seq),
            Message::Alive => _ = nv.u8("alive", 1),
        }
        None
    }
}

/// As much of a reason as is sent and taken.
fn cut(reason: &str) -> &str {
    reason.get(..reason.floor_char_boundary(REASON_MAX)).unwrap_or(reason)
}

/// Makes of messages what goes on the wire, all in the same memory.
#[derive(Debug, Default)]
pub struct Encoder {
    nv: Writer,
}

impl Encoder {
    /// Appends a message's frame header and list to `header`; gives the payload as sent, which follows. It shares
    /// the message's memory unless a stage changed it.
    ///
    /// # Errors
    /// The version is above ours, or the message is too long for the format; then `header` is as it was.
    pub fn encode(
        &mut self,
        message: &Message,
        version: u8,
        stages: Stages,
        header: &mut Vec<u8>,
    ) -> Result<Option<Buffer>, FrameError> {
        self.nv.clear();
        let data = match message.encode_to(&mut self.nv).filter(|data| !data.is_empty()) {
            Some(data) if u32::try_from(data.len()).is_err() => {
                return Err(FrameError::PayloadTooLong { size: data.len() as u64, limit: u32::MAX });
            }
            Some(data) => Some(payload::encode(&mut self.nv, &data, stages)),
            None => None,
        };
        frame::encode_to(version, self.nv.as_bytes(), header)?;
        Ok(data)
    }
}

/// A message as it goes on the wire: frame header with list, then the payload as sent.
///
/// # Errors
/// As for [`Encoder::encode`].
pub fn to_wire(
    message: &Message,
    version: u8,
    stages: Stages,
) -> Result<(Vec<u8>, Option<Buffer>), FrameError> {
    let mut header = Vec::with_capacity(256);
    let data = Encoder::default().encode(message, version, stages, &mut header)?;
    Ok((header, data))
}

/// Why a frame is no message. The connection is closed: what follows cannot be trusted to be in step.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum MessageError {
    /// The list of pairs is malformed.
    #[error("{0}")]
    List(#[from] nv::Error),
    /// No `cmd`, or 0.
    #[error("Header contains no 'cmd' field.")]
    NoCommand,
    /// A command that nobody agreed on.
    #[error("Header contains invalid 'cmd' ({0}).")]
    UnknownCommand(u8),
    /// A payload where none belongs.
    #[error("{length} bytes of data came with a request of cmd {cmd}, which has none")]
    UnexpectedData {
        /// The request's command.
        cmd: u8,
        /// Bytes of payload.
        length: usize,
    },
    /// A write with more or less data than it says.
    #[error("write of {length} bytes (seq {seq}) came with {received} bytes of data")]
    DataLength {
        /// The request's number.
        seq: u64,
        /// Bytes to write.
        length: u64,
        /// Bytes of decoded payload.
        received: usize,
    },
    /// A reply to nothing, or a mark that cannot be answered.
    #[error("Header contains no 'seq' field.")]
    NoSeq,
    /// A mark does not say all that it is about.
    #[error("mark (seq {seq}) is missing '{field}' field")]
    IncompleteMark {
        /// The mark's number.
        seq: u64,
        /// Name of the pair.
        field: &'static str,
    },
    /// The pair `error` is there and is no int16.
    #[error("reply (seq {seq}) carries an error that cannot be read")]
    UnreadableError {
        /// The reply's number.
        seq: u64,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(nv: &Writer, payload: Option<&[u8]>) -> Frame {
        let payload = payload.map(|bytes| Buffer::from(bytes.to_vec()));
        Frame { version: 2, nv: nv.as_bytes().to_vec().into(), payload }
    }

    fn header(command: u8) -> Writer {
        let mut nv = Writer::new();
        nv.u8("cmd", command).u64("seq", 7).u64("offset", 0).u64("length", 512);
        nv
    }

    #[test]
    fn a_write_has_exactly_its_length_of_data() {
        let write = |data: Option<&[u8]>| FromPrimary::decode(frame(&header(2), data));
        assert!(matches!(write(Some(&[1; 512])), Ok(FromPrimary::Request(Request { data: Some(_), .. }))));
        for received in [1, 511, 513] {
            assert_eq!(
                write(Some(&vec![1; received])),
                Err(MessageError::DataLength { seq: 7, length: 512, received })
            );
        }
        assert_eq!(write(None), Err(MessageError::DataLength { seq: 7, length: 512, received: 0 }));
    }

    #[test]
    fn a_write_of_nothing_is_left_to_the_range_check() {
        let mut nv = Writer::new();
        nv.u8("cmd", 2).u64("seq", 7).u64("offset", 0).u64("length", 0);
        assert!(matches!(
            FromPrimary::decode(frame(&nv, None)),
            Ok(FromPrimary::Request(Request { length: 0, data: None, .. }))
        ));
    }

    #[test]
    fn only_writes_bring_data() {
        for command in [1, 3, 4, 5] {
            assert_eq!(
                FromPrimary::decode(frame(&header(command), Some(&[1; 512]))),
                Err(MessageError::UnexpectedData { cmd: command, length: 512 })
            );
        }
    }

    #[test]
    fn unknown_commands_and_empty_lists_close() {
        assert_eq!(FromPrimary::decode(frame(&Writer::new(), None)), Err(MessageError::NoCommand));
        for command in [6, 255] {
            assert_eq!(
                FromPrimary::decode(frame(&header(command), None)),
                Err(MessageError::UnknownCommand(command))
            );
        }
        assert_eq!(FromPrimary::decode(frame(&header(0), None)), Err(MessageError::NoCommand));
    }

    #[test]
    fn marks_are_known_only_where_they_are_agreed_on() {
        let marks = [
            (64, MarkKind::SyncStart, vec!["cmd", "seq"]),
            (65, MarkKind::SyncDone { localcnt: 9, failures: None }, vec!["cmd", "seq", "localcnt"]),
            (
                65,
                MarkKind::SyncDone { localcnt: 9, failures: Some(2) },
                vec!["cmd", "seq", "localcnt", "failures"],
            ),
            (66, MarkKind::Stale { offset: 512, length: 1024 }, vec!["cmd", "seq", "offset", "length"]),
        ];
        for (code, kind, names) in marks {
            let mark = Mark { seq: 7, kind };
            let (nv, None) = Message::Mark(mark).encode() else { panic!("a mark with a payload") };
            let list = List::parse(nv.as_bytes()).unwrap();
            assert_eq!(list.u8("cmd"), Some(code));
            assert!(list.pairs().map(|pair| pair.name).eq(names.iter().map(|name| name.as_bytes())));
            let decode = |active| FromPrimary::decode_extended(frame(&nv, None), active);
            assert_eq!(decode(Extensions::SYNC_MARKS), Ok(FromPrimary::Mark(mark)));
            assert_eq!(decode(Extensions::NONE), Err(MessageError::UnknownCommand(code)));
            assert_eq!(FromPrimary::decode(frame(&nv, None)), Err(MessageError::UnknownCommand(code)));
            assert_eq!(
                FromPrimary::decode_extended(frame(&nv, Some(&[0])), Extensions::SYNC_MARKS),
                Err(MessageError::UnexpectedData { cmd: code, length: 1 })
            );
        }
        for code in [63, 67] {
            assert_eq!(
                FromPrimary::decode_extended(frame(&header(code), None), Extensions::SYNC_MARKS),
                Err(MessageError::UnknownCommand(code))
            );
        }
    }

    #[test]
    fn that_the_secondary_is_busy_is_said_only_where_it_is_agreed_on() {
        let (nv, None) = Message::Busy(7).encode() else { panic!("with a payload") };
        let list = List::parse(nv.as_bytes()).unwrap();
        assert!(list.pairs().map(|pair| pair.name).eq([b"busy".as_slice()]));
        let decode =
            |nv: &Writer, payload, active| FromSecondary::decode_extended(frame(nv, payload), active);
        assert_eq!(decode(&nv, None, Extensions::BUSY), Ok(FromSecondary::Busy { seq: 7 }));
        assert_eq!(decode(&nv, None, Extensions::SYNC_MARKS), Err(MessageError::NoSeq));
        assert_eq!(decode(&nv, Some(&[0]), Extensions::ALL), Err(MessageError::NoSeq));
        // A reply is one, whatever else it says.
        let (mut nv, _) = Message::Reply(Reply { seq: 9, received: false, error: None, data: None }).encode();
        nv.u64("busy", 7);
        let reply = decode(&nv, None, Extensions::ALL);
        assert!(matches!(reply, Ok(FromSecondary::Reply(Reply { seq: 9, .. }))), "{reply:?}");
    }

    #[test]
    fn that_the_secondary_is_alive_is_said_only_where_it_is_agreed_on() {
        let (nv, None) = Message::Alive.encode() else { panic!("with a payload") };
        let list = List::parse(nv.as_bytes()).unwrap();
        assert!(list.pairs().map(|pair| pair.name).eq([b"alive".as_slice()]));
        let decode = |payload, active| FromSecondary::decode_extended(frame(&nv, payload), active);
        assert_eq!(decode(None, Extensions::ALIVE), Ok(FromSecondary::Alive));
        assert_eq!(decode(None, Extensions::BUSY), Err(MessageError::NoSeq));
        assert_eq!(decode(Some(&[0]), Extensions::ALL), Err(MessageError::NoSeq));
    }

    #[test]
    fn half_a_mark_closes() {
        let decode = |nv: &Writer| FromPrimary::decode_extended(frame(nv, None), Extensions::ALL);
        for code in [64, 65, 66] {
            let mut nv = Writer::new();
            assert_eq!(decode(nv.u8("cmd", code)), Err(MessageError::NoSeq));
            assert_eq!(decode(nv.u64("seq", 0)), Err(MessageError::NoSeq));
        }
        for (code, field) in [(65, "localcnt"), (66, "offset")] {
            let mut nv = Writer::new();
            nv.u8("cmd", code).u64("seq", 7).i64(field, 1).u64("length", 1);
            assert_eq!(decode(&nv), Err(MessageError::IncompleteMark { seq: 7, field }));
        }
        let mut nv = Writer::new();
        nv.u8("cmd", 66).u64("seq", 7).u64("offset", 0);
        assert_eq!(decode(&nv), Err(MessageError::IncompleteMark { seq: 7, field: "length" }));
    }

    #[test]
    fn an_invalid_memsync_write_is_still_a_memsync_write() {
        let mut nv = Writer::new();
        nv.u8("cmd", 2).u64("seq", 7).u64("length", 512).u8("memsync", 1);
        let Ok(FromPrimary::Invalid { seq: 7, memsync: true, reason }) =
            FromPrimary::decode(frame(&nv, Some(&[0; 512])))
        else {
            panic!("not taken for an invalid memsync write");
        };
        assert_eq!(reason, "Header is missing 'offset' field.");
        let mut nv = header(1);
        nv.u8("memsync", 1);
        assert!(matches!(
            FromPrimary::decode(frame(&nv, None)),
            Ok(FromPrimary::Request(Request { command: Command::Read, memsync: false, .. }))
        ));
    }

    #[test]
    fn an_unreadable_error_is_no_success() {
        let mut nv = Writer::new();
        nv.u64("seq", 7).u32("error", 5);
        assert_eq!(Reply::decode(frame(&nv, None)), Err(MessageError::UnreadableError { seq: 7 }));
        let mut nv = Writer::new();
        nv.u64("seq", 7).i16("error", 0);
        assert_eq!(Reply::decode(frame(&nv, None)).unwrap().error, None);
        let mut nv = Writer::new();
        nv.u64("seq", 7).i16("error", -1);
        assert_eq!(Reply::decode(frame(&nv, None)).unwrap().error, Some(Errno::EIO));
        assert_eq!(Reply::decode(frame(&Writer::new(), None)), Err(MessageError::NoSeq));
    }

    #[test]
    fn what_is_sent_shares_the_memory_of_the_message() {
        let data = Buffer::from(vec![7; 4096]);
        let request = Request {
            command: Command::Write,
            seq: 1,
            offset: 0,
            length: 4096,
            memsync: true,
            data: Some(data.clone()),
        };
        let (_, sent) = to_wire(&Message::Request(request), 2, Stages::default()).unwrap();
        assert_eq!(sent.unwrap().as_ptr(), data.as_ptr());
        assert_eq!(to_wire(&Message::Keepalive, 3, Stages::default()), Err(FrameError::Version(3)));
    }
}
