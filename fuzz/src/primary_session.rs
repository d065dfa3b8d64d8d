//! An arbitrary secondary against the shipping primary, with an arbitrary device and disk.
//!
//! Whatever the secondary says: no panic; each request of the device is completed once, a read with exactly its
//! bytes; no disk operation goes where it has no business or meets another; the metadata stays readable; and
//! the worker ends in time when it is told to, whether the secondary answers or not.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use hast_engine::{
    Action, EXIT_LOST, EXIT_PEER_BEHIND, EXIT_STALE, MAX_REQUEST, Op, Primary, PrimaryStart, RequestId, Side,
};
use hast_format::nv::Writer;
use hast_net::buffer::{Buffer, Pool};
use hast_net::frame::{Limits, Receiver};
use hast_net::handshake::{FirstAnswer, Refusal, SecondAnswer, SecondRefusal, SyncSource, texts};
use hast_net::message::{Command, Message};
use hast_net::payload::Stages;

use crate::messages::{self, Area, data, feed, frame_bytes, to_bytes, unpack};
use crate::node::{self, Node, Session as _};
use crate::provider::{Provider, host, met, settings};
use crate::source::Source;

/// Requests that a device has under way at most.
const REQUESTS: usize = 256;
/// What the secondary asks for is not believed beyond this.
const UNANSWERED: usize = 4096;

/// One input is one session: the node's past, then what happens.
pub fn run(data: &[u8]) {
    let source = &mut Source::new(data);
    let mut session = Session::begin(source);
    session.drain();
    while !source.is_empty() && !session.node.over {
        session.step(source);
        session.drain();
    }
    session.conclude();
}

struct Session {
    node: Node<Primary>,
    /// Connections that were asked for.
    wanted: VecDeque<Side>,
    out: Option<Receiver>,
    in_: Option<Receiver>,
    /// What the secondary has not answered.
    unanswered: VecDeque<Message>,
    stages: Stages,
    /// What the device awaits: for a read the length.
    requests: BTreeMap<RequestId, Option<u32>>,
    last_request: u64,
    /// Rises whenever the connections are closed: what is under way then is dropped.
    epoch: u64,
    /// The disk is given up: it lives on the secondary's.
    detached: bool,
    /// The worker ended before it could answer: its provider could not be used, or the disk took longer than
    /// the end may last.
    gave_up: bool,
    /// From here on the disk answers at once.
    concluding: bool,
}

impl node::Session for Session {
    type Engine = Primary;

    fn node(&mut self) -> &mut Node<Primary> {
        &mut self.node
    }

    fn drain(&mut self) {
        while let Some(action) = self.node.engine.poll_action() {
            crate::trace(&action);
            assert!(!self.node.over, "{action:?} after the end");
            match action {
                Action::Disk { id, op } => _ = self.node.provider.submit(id, op),
                Action::Connect(side) => self.wanted.push_back(side),
                Action::Send { side, version, message } => self.check_sent(side, version, message),
                Action::Close => self.close(),
                Action::Complete { id, result } => {
                    let asked = self.requests.remove(&id);
                    let asked = asked.unwrap_or_else(|| panic!("{id:?} is completed and was not asked"));
                    if let (Some(length), Ok(data)) = (asked, &result) {
                        let got = data.as_ref().map_or(0, |data| data.len());
                        assert_eq!(got, length as usize, "a read brings what it was asked for");
                    }
                }
                Action::Detached(_) => self.detached = true,
                Action::Attached => self.detached = false,
                Action::Event(_) | Action::Connection { .. } | Action::DirectReads(_) => {}
                Action::Exit(code) => {
                    let late = !self.concluding && self.node.provider.pending() > 0;
                    // It knows that it is out of date, and could not write it down, or not in time.
                    let unwritten = late || self.detached || self.node.provider.metadata_has_failed();
                    let stale = code == EXIT_STALE && unwritten;
                    assert!(stale || [0, 66, EXIT_LOST, EXIT_PEER_BEHIND].contains(&code), "exit {code}");
                    self.node.over = true;
                    self.gave_up = matches!(code, 66 | EXIT_LOST) || late;
                }
            }
        }
        self.node.provider.check();
        assert!(self.wanted.len() <= 1, "one connection is opened at a time");
    }
}

impl Session {
    fn begin(source: &mut Source<'_>) -> Session {
        let mut provider = Provider::new(source);
        provider.expect_repairs();
        let start = PrimaryStart {
            settings: settings(source),
            metadata: provider.metadata(),
            layout: *provider.layout(),
            map: provider.map(),
            random: source.number(),
            host: host(source),
            forced: source.one_in(8),
            detached: false,
        };
        Session {
            node: Node::new(Primary::new(start, Duration::ZERO), provider),
            wanted: VecDeque::new(),
            out: None,
            in_: None,
            unanswered: VecDeque::new(),
            stages: messages::stages(source),
            requests: BTreeMap::new(),
            last_request: 0,
            epoch: 0,
            detached: false,
            gave_up: false,
            concluding: false,
        }
    }

    fn step(&mut self, source: &mut Source<'_>) {
        match source.below(24) {
            0..=4 => self.request(source),
            5 | 6 => self.connect(source),
            7..=11 => self.answer(source),
            12 => self.say_anything(source),
            13 => {
                let side = source.choose(&[Side::Out, Side::In]);
                let length = usize::from(source.number::<u16>());
                self.receive(side, source.bytes(length), 1 + source.below(256));
            }
            14..=17 => self.end_one(source),
            18 | 19 => self.end_all(),
            20 => self.pass_time(Duration::from_millis(source.number::<u16>().into())),
            21 => self.pass_time(self.node.due() - self.node.now),
            22 => {
                self.close();
                self.node.engine.handle_lost(self.node.now, "the link broke");
            }
            _ => match source.below(8) {
                0 => self.node.engine.handle_stop(self.node.now),
                1 => self.node.engine.handle_reload(self.node.now, settings(source), true),
                2 => self.node.engine.handle_reload(self.node.now, settings(source), false),
                _ => {
                    let status = self.node.engine.status();
                    assert!(status.facts.to_synchronise_bytes <= 1 << 30);
                    assert!(!self.node.engine.is_in_step() || status.complete);
                }
            },
        }
    }

    /// The device asks for something.
    fn request(&mut self, source: &mut Source<'_>) {
        if self.requests.len() >= REQUESTS {
            return;
        }
        let layout = self.node.provider.layout();
        let area = Area { size: layout.datasize(), sector: layout.sectorsize() };
        let (offset, length) = area.range(source);
        let capped = u32::try_from(length).unwrap_or(u32::MAX).min(MAX_REQUEST + 512);
        let op = match source.below(8) {
            0..=3 => Op::Write { offset, data: data(source, capped as usize) },
            4 | 5 => Op::Read { offset, length: capped },
            6 => Op::Delete { offset, length },
            _ => Op::Flush,
        };
        self.last_request += 1;
        let id = RequestId(self.last_request);
        let read = if let Op::Read { length, .. } = op { Some(length) } else { None };
        self.requests.insert(id, read);
        self.node.engine.handle_request(self.node.now, id, op);
    }

    /// A connection that was asked for is there, or is not to be had.
    fn connect(&mut self, source: &mut Source<'_>) {
        let Some(side) = self.wanted.pop_front() else { return };
        if source.one_in(8) {
            return self.node.engine.handle_connect_failed(self.node.now, side, "nobody there");
        }
        let receiver = Some(Receiver::new(Limits::PEER, Pool::new()));
        match side {
            Side::Out => self.out = receiver,
            Side::In => self.in_ = receiver,
        }
        self.node.engine.handle_connected(self.node.now, side);
    }

    /// The secondary answers one of the oldest things it was asked, mostly as it should.
    fn answer(&mut self, source: &mut Source<'_>) {
        if self.unanswered.is_empty() {
            return;
        }
        let index = if source.one_in(4) { source.below(self.unanswered.len().min(256)) } else { 0 };
        let Some(message) = self.unanswered.remove(index) else { return };
        let stages = messages::stages(source);
        let (side, mut bytes) = match message {
            Message::FirstHello(_) => (Side::Out, first_answer(source)),
            Message::SecondHello(_) => (Side::Out, self.second_answer(source, stages)),
            Message::Request(request) => {
                let length = if request.command == Command::Read { request.length } else { 0 };
                let length = if source.one_in(64) { source.number::<u16>().into() } else { length };
                let reply = messages::reply(source, request.seq, usize::try_from(length).unwrap());
                if reply.received && reply.error.is_none() {
                    self.unanswered.push_front(Message::Request(request));
                }
                (Side::In, to_bytes(&Message::Reply(reply), 2, stages))
            }
            Message::Mark(mark) => {
                let reply = messages::reply(source, mark.seq, 0);
                (Side::In, to_bytes(&Message::Reply(reply), 2, stages))
            }
            _ => return,
        };
        if source.one_in(64) {
            messages::corrupt(source, &mut bytes);
        }
        self.receive(side, &bytes, usize::MAX);
    }

    fn second_answer(&self, source: &mut Source<'_>, stages: Stages) -> Vec<u8> {
        let layout = self.node.provider.layout();
        if source.one_in(8) {
            let text = source.text();
            let refusal = SecondRefusal {
                datasize: layout.datasize(),
                extentsize: layout.extentsize(),
                localcnt: source.count(),
                remotecnt: source.count(),
                errmsg: source.choose(&[texts::SPLIT_BRAIN.to_owned(), text]),
                parted: source.flag().then(|| source.number()),
            };
            let map = source.flag().then(|| Buffer::from(source.bytes(64).to_vec()));
            return to_bytes(&Message::SecondRefusal(refusal, map), 2, stages);
        }
        let length = match source.below(4) {
            0 => 0,
            1..=2 => usize::try_from(layout.map_bytes()).unwrap(),
            _ => usize::from(source.number::<u16>()),
        };
        let map = (length > 0).then(|| data(source, length));
        let odd = source.one_in(32);
        let answer = SecondAnswer {
            datasize: if odd { source.number::<u64>() >> 1 } else { layout.datasize() },
            extentsize: if odd { source.number::<u32>() >> 1 } else { layout.extentsize() },
            localcnt: source.count(),
            remotecnt: source.count(),
            virgin: source.one_in(4),
            syncsrc: source.choose(&[SyncSource::Primary, SyncSource::Secondary]),
            mapsize: if odd { source.number() } else { u32::try_from(length).unwrap() },
            boot: source.flag().then(|| [source.byte() & 3; 16]),
            peer_timeout: source.choose(&[None, Some(0), Some(1), Some(5), Some(u32::MAX)]),
            met: source.flag().then(|| met(source)),
            zero_deletes: source.flag(),
        };
        to_bytes(&Message::SecondAnswer(answer, map), 2, stages)
    }

    /// The secondary says something of the protocol that nobody asked for.
    fn say_anything(&mut self, source: &mut Source<'_>) {
        let side = source.choose(&[Side::Out, Side::In]);
        let stages = messages::stages(source);
        let bytes = match source.below(4) {
            0 => first_answer(source),
            1 => self.second_answer(source, stages),
            2 => {
                let seq = source.count();
                let length = usize::from(source.number::<u16>());
                to_bytes(&Message::Reply(messages::reply(source, seq, length)), 2, stages)
            }
            _ => {
                let area = Area { size: 1 << 16, sector: 512 };
                to_bytes(&messages::from_primary(source, area, 1), 2, stages)
            }
        };
        self.receive(side, &bytes, usize::MAX);
    }

    /// Bytes arrive on one of the connections.
    fn receive(&mut self, side: Side, bytes: &[u8], piece: usize) {
        let out = self.node.engine.payload_limit();
        let (receiver, limit) = match side {
            Side::Out => (&mut self.out, out),
            Side::In => (&mut self.in_, Limits::PEER.payload),
        };
        let Some(receiver) = receiver else { return };
        receiver.set_payload_limit(limit);
        let (frames, outcome) = feed(receiver, bytes, piece);
        let epoch = self.epoch;
        let mut broken = outcome.is_err();
        for frame in frames {
            let Some(frame) = unpack(frame, limit, &Pool::new()) else {
                broken = true;
                break;
            };
            self.node.engine.handle_frame(self.node.now, side, frame);
            self.drain();
            if self.epoch != epoch {
                return;
            }
        }
        if broken {
            self.close();
            self.node.engine.handle_lost(self.node.now, "what came is no frame");
        }
    }

    fn close(&mut self) {
        self.epoch += 1;
        (self.out, self.in_) = (None, None);
        self.wanted.clear();
        self.unanswered.clear();
    }

    fn check_sent(&mut self, side: Side, version: u8, message: Message) {
        let open = match side {
            Side::Out => self.out.is_some(),
            Side::In => self.in_.is_some(),
        };
        assert!(open, "{message:?} without a connection");
        let expected = if matches!(message, Message::SecondHello(_)) { Side::In } else { Side::Out };
        assert_eq!(side, expected, "{message:?}");
        if let Message::SecondHello(hello) = &message {
            let durable = self.node.provider.durable_metadata();
            assert_eq!(hello.resuid, durable.resuid, "an id is on disk before anybody hears it");
            assert_ne!(hello.resuid, 0);
        }
        if let Message::Request(request) = &message {
            assert!(request.length <= MAX_REQUEST.into() || request.command == Command::Delete);
            if request.command != Command::Flush {
                let range = self.node.provider.layout().check_range(request.offset, request.length);
                assert_eq!(range, Ok(()), "{request:?}");
            }
        }
        let bytes = to_bytes(&message, version, self.stages);
        let mut receiver = Receiver::new(Limits::PEER, Pool::new());
        assert_eq!(feed(&mut receiver, &bytes, usize::MAX).1, Ok(()), "a secondary can read it");
        self.unanswered.push_back(message);
        assert!(self.unanswered.len() <= UNANSWERED, "{} messages unanswered", self.unanswered.len());
    }

    /// The secondary falls silent and the worker is told to end: it does, in time, and every request has its
    /// answer.
    fn conclude(&mut self) {
        self.end_all();
        self.concluding = true;
        if !self.node.over {
            self.node.engine.handle_stop(self.node.now);
        }
        // `timeout` may be 600 s, and a keepalive due three times a second.
        for _ in 0..4000 {
            self.end_all();
            if self.node.over {
                break;
            }
            let due = self.node.engine.poll_timeout().expect("something is still due before the end");
            self.node.now = self.node.now.max(due);
            self.node.engine.handle_timeout(self.node.now);
        }
        assert!(self.node.over, "the end comes");
        assert!(self.gave_up || self.requests.is_empty(), "without an answer: {:?}", self.requests);
        self.node.provider.check();
    }
}

/// An answer to the first step, or a refusal.
fn first_answer(source: &mut Source<'_>) -> Vec<u8> {
    let nv: Writer = if source.one_in(8) {
        Refusal { errmsg: source.text(), wait: source.flag() }.encode()
    } else {
        let version = source.choose(&[2, 2, 2, 1, 0, 3]);
        FirstAnswer { version, token: [source.byte(); 16], ext: messages::extensions(source) }.encode()
    };
    frame_bytes(source.choose(&[1, 2]), nv, None, Stages::default())
}
