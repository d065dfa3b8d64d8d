//! An arbitrary primary against the shipping secondary.
//!
//! Whatever the primary says, and however the disk answers: no panic; every disk operation in the data area is
//! one that the primary asked for, with its bytes, once, and no two meet; other writes are metadata or map and
//! leave the metadata readable; every request is answered as often as it should be; what is accepted and not
//! answered stays within a bound; and the worker ends when it is told to.

use std::collections::{HashMap, VecDeque};
use std::ops::Range;
use std::time::Duration;

use hast_engine::{Action, Deletes, DiskOp, OpId, Secondary, SecondaryStart, Side};
use hast_net::buffer::{Buffer, Pool};
use hast_net::extensions::Extensions;
use hast_net::frame::{Frame, Limits, Receiver};
use hast_net::handshake::SecondHello;
use hast_net::message::{Command, FromPrimary, Message, Reply};

use crate::messages::{self, Area, feed, to_bytes, unpack};
use crate::node::{self, Node, Session as _};
use crate::provider::{Provider, RESUID, former, host, settings};
use crate::source::Source;

/// Requests and marks that are accepted and not answered, at most: the engine's own bound, and the one mark that
/// is being written down.
const UNANSWERED: usize = 8193;
/// Bytes of requests under way, at most, and one request more.
const BYTES: u64 = (64 << 20) + (1 << 20);
/// More frames than this are not sent in one session ...
const FRAMES: usize = 10_000;
/// ... nor more bytes, as they are once unpacked.
const SENT: usize = 80 << 20;

/// One input is one session: the node's past, the primary's greeting, then what happens.
pub fn run(data: &[u8]) {
    let source = &mut Source::new(data);
    let mut session = Session::begin(source);
    session.drain();
    while !source.is_empty() && !session.node.over {
        session.step(source);
    }
    session.conclude();
}

struct Session {
    node: Node<Secondary>,
    ext: Extensions,
    deletes: Deletes,
    receiver: Receiver,
    /// Frames that the engine had no room for.
    inbox: VecDeque<Frame>,
    /// The primary has sent something that ends the connection.
    broken: bool,
    sent: usize,
    sent_bytes: usize,
    seq: u64,
    answered: bool,
    closed: bool,
    model: Model,
}

/// What the primary may expect.
#[derive(Default)]
struct Model {
    /// Final answers that are due, by number.
    owed: HashMap<u64, usize>,
    owed_total: usize,
    owed_bytes: HashMap<u64, Vec<u64>>,
    bytes: u64,
    /// Accepted requests whose disk operation has not been seen.
    unissued: Vec<(Command, Range<u64>, Option<Buffer>)>,
}

impl node::Session for Session {
    type Engine = Secondary;

    fn node(&mut self) -> &mut Node<Secondary> {
        &mut self.node
    }

    fn drain(&mut self) {
        while let Some(action) = self.node.engine.poll_action() {
            crate::trace(&action);
            assert!(!self.node.over, "{action:?} after the end");
            match action {
                Action::Disk { id, op } => self.submit(id, op),
                Action::Send { side, message, version } => self.check_sent(side, version, message),
                Action::Close => {
                    self.closed = true;
                    self.inbox.clear();
                }
                Action::Exit(code) => {
                    assert!([0, 66, 75, 78].contains(&code), "exit {code}");
                    self.node.over = true;
                }
                Action::Event(_) | Action::Connection { .. } => {}
                Action::Connect(_)
                | Action::Complete { .. }
                | Action::DirectReads(_)
                | Action::Attached
                | Action::Detached(_) => {
                    panic!("a secondary asks for {action:?}")
                }
            }
        }
        self.node.provider.check();
        assert!(self.model.owed_total <= UNANSWERED, "{} requests unanswered", self.model.owed_total);
        assert!(self.model.bytes <= BYTES, "{} bytes under way", self.model.bytes);
    }

    /// As the worker does it: frames while there is room, then the end of the connection.
    fn hand_over(&mut self) {
        while !self.closed && !self.node.over && self.node.engine.wants_input() {
            let Some(frame) = self.inbox.pop_front() else { break };
            if self.answered {
                self.expect(&frame);
            }
            self.node.engine.handle_frame(self.node.now, frame);
            self.drain();
        }
        if self.broken && self.inbox.is_empty() && !self.closed && !self.node.over {
            self.node.engine.handle_lost(self.node.now, "what came is no frame");
            self.drain();
            assert!(self.closed, "a lost connection is given up");
        }
    }
}

impl Session {
    fn begin(source: &mut Source<'_>) -> Session {
        let provider = Provider::new(source);
        let ext = messages::extensions(source);
        let hello = SecondHello {
            resource: "disk0".into(),
            token: [7; 16],
            virgin: source.one_in(4),
            resuid: source.choose(&[RESUID, RESUID, RESUID, 0, u64::MAX]),
            localcnt: source.count(),
            remotecnt: source.count(),
            boot: source.flag().then(|| [source.byte() & 3; 16]),
            parting: None,
            meeting: None,
        };
        let start = SecondaryStart {
            settings: settings(source),
            metadata: provider.metadata(),
            layout: *provider.layout(),
            map: provider.map(),
            version: source.choose(&[2, 2, 2, 1]),
            ext,
            host: host(source),
            hello,
            unsure: false,
            former: former(source, provider.layout()),
        };
        let deletes = start.host.deletes;
        Session {
            node: Node::new(Secondary::new(start, Duration::ZERO), provider),
            ext,
            deletes,
            receiver: Receiver::new(Limits::PEER, Pool::new()),
            inbox: VecDeque::new(),
            broken: false,
            sent: 0,
            sent_bytes: 0,
            seq: 0,
            answered: false,
            closed: false,
            model: Model::default(),
        }
    }

    fn step(&mut self, source: &mut Source<'_>) {
        match source.below(16) {
            0..=5 => self.send_message(source, 1),
            6 => {
                // Mostly a few; rarely more than there may be room for.
                let times = match source.number::<u16>() {
                    0xfff7 => FRAMES,
                    few => usize::from(few % 1024),
                };
                self.send_message(source, times);
            }
            7 => {
                let length = usize::from(source.number::<u16>());
                self.receive(source.bytes(length), 1 + source.below(256));
            }
            8..=11 => self.end_one(source),
            12 => self.end_all(),
            13 => self.pass_time(Duration::from_millis(source.number::<u16>().into())),
            14 => self.pass_time(self.node.due() - self.node.now),
            _ => match source.below(8) {
                0 => self.node.engine.handle_stop(self.node.now),
                1 => self.node.engine.handle_lost(self.node.now, "the link broke"),
                _ => _ = self.node.engine.status(),
            },
        }
        self.drain();
        self.hand_over();
    }

    /// The primary says something of the protocol, so many times.
    fn send_message(&mut self, source: &mut Source<'_>, times: usize) {
        let layout = self.node.provider.layout();
        let area = Area { size: layout.datasize(), sector: layout.sectorsize() };
        let message = messages::from_primary(source, area, self.seq + 1);
        let stages = messages::stages(source);
        let mut bytes = to_bytes(&message, 2, stages);
        if source.one_in(32) {
            messages::corrupt(source, &mut bytes);
        }
        for _ in 0..times {
            self.seq += 1;
            self.receive(&bytes, usize::MAX);
        }
    }

    /// Bytes arrive.
    fn receive(&mut self, bytes: &[u8], piece: usize) {
        if self.broken || self.closed || self.node.over || self.sent >= FRAMES || self.sent_bytes >= SENT {
            return;
        }
        let (frames, outcome) = feed(&mut self.receiver, bytes, piece);
        self.sent += frames.len();
        let limit = Limits::PEER.payload;
        let unpacked: Vec<Option<Frame>> =
            frames.into_iter().map(|frame| unpack(frame, limit, &Pool::new())).collect();
        self.broken = outcome.is_err() || unpacked.contains(&None);
        let length = |frame: &Frame| frame.payload.as_ref().map_or(0, |payload| payload.len());
        self.sent_bytes += unpacked.iter().flatten().map(length).sum::<usize>();
        self.inbox.extend(unpacked.into_iter().map_while(|frame| frame));
        self.hand_over();
    }

    /// Writes down what the engine owes for a frame.
    fn expect(&mut self, frame: &Frame) {
        let Ok(message) = FromPrimary::decode_extended(frame.clone(), self.ext) else { return };
        let (seq, bytes) = match message {
            FromPrimary::Keepalive | FromPrimary::Farewell { .. } => return,
            FromPrimary::Mark(mark) => (mark.seq, 0),
            FromPrimary::Invalid { seq, .. } => (seq, 0),
            FromPrimary::Request(request) => {
                let (seq, length) = (request.seq, request.length);
                let limit = if request.command == Command::Delete { u64::MAX } else { 1 << 20 };
                let valid = self.node.provider.layout().check_range(request.offset, length).is_ok();
                let refused = request.command == Command::Delete && self.deletes == Deletes::Refused;
                if request.command == Command::Flush || !valid || length > limit || refused {
                    (seq, 0)
                } else {
                    let range = request.offset..request.offset + length;
                    self.model.unissued.push((request.command, range, request.data));
                    (seq, if request.command == Command::Delete { 0 } else { length })
                }
            }
        };
        self.model.owe(seq, bytes);
    }

    /// What goes to the data area is what the primary asked for.
    fn submit(&mut self, id: OpId, op: DiskOp) {
        let (command, data) = match &op {
            DiskOp::Read { .. } => (Command::Read, None),
            DiskOp::Write { data, .. } => (Command::Write, Some(data.clone())),
            DiskOp::Delete { .. } => (Command::Delete, None),
            DiskOp::Flush => (Command::Flush, None),
        };
        let Some(place) = self.node.provider.submit(id, op) else { return };
        let asked = (command, place.clone(), data);
        if let Some(at) = self.model.unissued.iter().position(|other| *other == asked) {
            self.model.unissued.remove(at);
            return;
        }
        let (command, place, data) = asked;
        let same = data.is_none_or(|data| {
            let bytes = usize::try_from(place.start).unwrap()..usize::try_from(place.end).unwrap();
            self.node.provider.data()[bytes] == data[..]
        });
        // What the disk may have dropped when a flush failed is read and written again.
        let again = self.node.provider.flush_has_failed() && command != Command::Delete && same;
        assert!(again, "nobody asked for {command} of {place:?}");
    }

    fn check_sent(&mut self, side: Side, version: u8, message: Message) {
        assert!(!self.closed, "{message:?} on a closed connection");
        match message {
            Message::SecondAnswer(answer, map) => {
                assert_eq!(side, Side::Out);
                assert!(!self.answered, "one answer");
                self.answered = true;
                assert_eq!(answer.mapsize as usize, map.map_or(0, |map| map.len()));
                assert!(u64::from(answer.mapsize) <= self.node.provider.layout().sent_map_bytes());
            }
            Message::SecondRefusal(..) => assert!(side == Side::Out && !self.answered),
            Message::Reply(reply) => {
                assert!(side == Side::In && self.answered);
                self.model.settle(&reply);
                let bytes =
                    to_bytes(&Message::Reply(reply), version, messages::stages(&mut Source::new(&[])));
                let mut receiver = Receiver::new(Limits::PEER, Pool::new());
                assert_eq!(feed(&mut receiver, &bytes, usize::MAX).1, Ok(()), "a primary can read it");
            }
            Message::Busy(seq) => {
                assert!(
                    side == Side::In && self.ext.contains(Extensions::BUSY),
                    "an original does not know it"
                );
                assert!(self.model.owed.get(&seq).is_some_and(|owed| *owed > 0), "{seq} is not in hand");
            }
            Message::Alive => {
                assert!(
                    side == Side::In && self.ext.contains(Extensions::ALIVE) && self.answered,
                    "an original does not know it"
                );
            }
            other => panic!("a secondary says {other:?}"),
        }
    }

    /// Nothing more comes: what was accepted is answered, and the worker ends when it is told to.
    fn conclude(&mut self) {
        self.end_all();
        if !self.closed {
            self.pass_time(Duration::from_secs(1));
            self.end_all();
            if !self.closed && self.answered {
                assert_eq!(self.model.owed_total, 0, "everything is answered: {:?}", self.model.owed);
                assert_eq!(self.model.unissued, [], "and was carried out");
            }
        }
        if !self.node.over {
            self.node.engine.handle_stop(self.node.now);
        }
        for _ in 0..100 {
            self.end_all();
            if self.node.over {
                break;
            }
            // What the disk failed to store a moment ago is written again in a while.
            let due = self.node.engine.poll_timeout().expect("something is still due before the end");
            self.pass_time(due.saturating_sub(self.node.now));
        }
        assert!(self.node.over, "the end comes when the disk has answered");
        self.node.provider.check();
    }
}

impl Model {
    fn owe(&mut self, seq: u64, bytes: u64) {
        *self.owed.entry(seq).or_default() += 1;
        self.owed_total += 1;
        if bytes > 0 {
            self.owed_bytes.entry(seq).or_default().push(bytes);
            self.bytes += bytes;
        }
    }

    fn settle(&mut self, reply: &Reply) {
        let owed = self.owed.get_mut(&reply.seq).filter(|owed| **owed > 0);
        let owed = owed.unwrap_or_else(|| panic!("answer {} was not asked for", reply.seq));
        if reply.received && reply.error.is_none() {
            return;
        }
        *owed -= 1;
        self.owed_total -= 1;
        // Numbers may be used twice; which of them was answered does not matter to the bound.
        if let Some(bytes) = self.owed_bytes.get_mut(&reply.seq).and_then(Vec::pop) {
            self.bytes -= bytes;
        }
    }
}
