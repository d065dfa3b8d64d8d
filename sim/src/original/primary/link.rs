//! The original as primary, its link: connecting, the handshake, replies, loss, and one synchronisation block at
//! a time.

use core::time::Duration;

use hast_engine::{Action, Counts, DiskOp, DiskResult, Event, Op, Side};
use hast_format::bitmap::Bitmap;
use hast_format::nv::List;
use hast_net::errno::Errno;
use hast_net::frame::Frame;
use hast_net::handshake::{
    Extensions, FirstHello, FirstReply, SecondAnswer, SecondHello, SecondReply, SyncSource, texts,
};
use hast_net::message::{Command, Message, Reply};

use super::{Block, GUARD, Local, Primary, Remote, Stage, overlap};

/// The longest synchronisation request, in bytes.
const BLOCK: u64 = 131_072;
/// Every request of a synchronisation has this number.
const SYNC_SEQ: u64 = 1;

impl Primary {
    pub(super) fn kick_sync(&mut self) {
        while self.sync.on && self.stage == Stage::Up && self.sync.block.is_none() {
            match self.sync.open {
                Some((extent, next, end)) if next >= end => {
                    // L15: whatever became of its blocks.
                    self.to_sync.remove(extent);
                    self.sync.open = None;
                    self.sync.copied = true;
                    self.write_map();
                }
                Some((extent, offset, end)) => {
                    let length = (end - offset).min(BLOCK);
                    let busy = self.requests.values().any(|request| {
                        matches!(request.op, Op::Write { .. })
                            && overlap(request.op.range(), (offset, length))
                    });
                    if busy {
                        return;
                    }
                    self.sync.open = Some((extent, offset + length, end));
                    self.sync.block = Some(Block { offset, length, orphan: false });
                    if self.source == Some(SyncSource::Secondary) {
                        self.ask(Remote::SyncRead, SYNC_SEQ, Command::Read, (offset, length), false, None);
                    } else {
                        let op = DiskOp::Read {
                            offset: self.layout.localoff() + offset,
                            length: u32::try_from(length).unwrap_or(0),
                        };
                        self.local.queue(Local::SyncRead, op);
                    }
                }
                None => match self.to_sync.next_from(0) {
                    Some(extent) => {
                        let (start, length) = self.layout.extent_range(extent);
                        self.sync.open = Some((extent, start, start + u64::from(length)));
                    }
                    None => self.synchronised(),
                },
            }
        }
    }

    /// L7: the counts are equal now, by the secondary's; written, not flushed.
    fn synchronised(&mut self) {
        self.sync.on = false;
        if self.sync.copied {
            self.actions.push_back(Action::Event(Event::SyncDone));
        }
        self.source = None;
        self.metadata.localcnt = self.peer.remote;
        self.metadata.remotecnt = self.peer.local;
        self.save();
    }

    pub(super) fn sync_read(&mut self, result: DiskResult) {
        let Some(Block { offset, length, orphan }) = self.sync.block else { return };
        match result {
            Ok(Some(data)) if !orphan && self.stage == Stage::Up => {
                self.ask(Remote::SyncWrite, SYNC_SEQ, Command::Write, (offset, length), false, Some(data));
            }
            _ => self.sync.block = None,
        }
    }

    // --- link ---

    pub(super) fn connect(&mut self) {
        self.enter(Stage::OpeningOut);
        self.actions.push_back(Action::Connect(Side::Out));
    }

    fn enter(&mut self, stage: Stage) {
        self.stage = stage;
        self.deadline = self.now + self.timeout;
    }

    pub(super) fn send(&mut self, side: Side, message: Message) {
        self.last_sent = self.now;
        self.actions.push_back(Action::Send { side, version: self.version, message });
    }

    pub(crate) fn handle_connected(&mut self, now: Duration, side: Side) {
        self.now = now;
        match (self.stage, side) {
            (Stage::OpeningOut, Side::Out) => {
                self.enter(Stage::AwaitingFirst);
                let resource = self.metadata.resource.clone();
                let hello = FirstHello { resource, version: 2, ext: Extensions::NONE };
                self.send(Side::Out, Message::FirstHello(hello));
            }
            (Stage::OpeningIn, Side::In) if self.metadata.resuid == 0 => {
                self.metadata.resuid = self.random;
                let save = self.save();
                self.enter(Stage::Drawing(save));
            }
            (Stage::OpeningIn, Side::In) => self.second_hello(false),
            _ => {}
        }
        self.settle();
    }

    pub(super) fn second_hello(&mut self, virgin: bool) {
        self.enter(Stage::AwaitingSecond);
        let hello = SecondHello {
            resource: self.metadata.resource.clone(),
            token: self.token,
            // A primary that was written alone has that in its map.
            virgin,
            resuid: self.metadata.resuid,
            localcnt: self.metadata.localcnt,
            remotecnt: self.metadata.remotecnt,
            boot: None,
            parting: None,
            meeting: None,
        };
        self.send(Side::In, Message::SecondHello(hello));
    }

    pub(crate) fn handle_connect_failed(&mut self, now: Duration) {
        self.now = now;
        self.lose(GUARD);
        self.settle();
    }

    pub(crate) fn handle_frame(&mut self, now: Duration, side: Side, frame: Frame) {
        self.now = now;
        self.last_received = now;
        match (self.stage, side) {
            (Stage::AwaitingFirst, Side::Out) => self.first_reply(&frame),
            (Stage::AwaitingSecond, _) => self.second_reply(frame),
            (Stage::Up, Side::In) => match Reply::decode(frame) {
                Ok(reply) => self.reply(reply),
                Err(_) => self.lose(GUARD),
            },
            _ => {}
        }
        self.settle();
    }

    fn first_reply(&mut self, frame: &Frame) {
        match List::parse(&frame.nv).map(|list| FirstReply::decode(&list)) {
            Ok(Ok(FirstReply::Answer(answer))) => {
                (self.token, self.version) = (answer.token, answer.version);
                self.enter(Stage::OpeningIn);
                self.actions.push_back(Action::Connect(Side::In));
            }
            Ok(Ok(FirstReply::Refused(refusal))) => {
                let again = Duration::from_secs(1);
                if refusal.wait && !self.serving && self.now + again <= self.wait_until {
                    self.actions.push_back(Action::Close);
                    self.stage = Stage::Down;
                    self.deadline = self.now + again;
                } else {
                    self.lose(GUARD);
                }
            }
            _ => self.lose(GUARD),
        }
    }

    fn second_reply(&mut self, frame: Frame) {
        let Frame { nv, payload, .. } = frame;
        let answer = match List::parse(&nv).map(|list| SecondReply::decode(&list)) {
            Ok(Ok(SecondReply::Answer(answer))) => answer,
            Ok(Ok(SecondReply::Refused(refused))) => {
                if refused.errmsg == texts::SPLIT_BRAIN {
                    self.actions.push_back(Action::Event(Event::SplitBrain));
                }
                return self.lose(GUARD);
            }
            _ => return self.lose(GUARD),
        };
        let SecondAnswer { datasize, extentsize, localcnt, remotecnt, virgin, syncsrc, .. } = answer;
        if (datasize, extentsize) != (self.layout.datasize(), self.layout.extentsize()) {
            return self.lose(GUARD);
        }
        self.peer = Counts { local: localcnt, remote: remotecnt };
        if virgin && self.metadata.localcnt == 0 {
            self.metadata.localcnt = 1;
            self.save();
        }
        self.source = Some(syncsrc);
        let mut save = 0;
        if let Some(map) = payload {
            self.to_sync.union(&Bitmap::from_bytes(self.to_sync.len(), &map));
            save = self.write_map();
        }
        self.enter(Stage::Merging(save));
        if save == 0 {
            self.up();
        }
    }

    pub(super) fn up(&mut self) {
        self.enter(Stage::Up);
        self.serving = true;
        self.last_received = self.now;
        self.actions.push_back(Action::Event(Event::Connect));
        self.sync.on = true;
        self.sync.open = None;
        self.sync.copied = false;
        if !self.to_sync.is_empty() {
            self.actions.push_back(Action::Event(Event::SyncStart));
        }
    }

    fn reply(&mut self, reply: Reply) {
        let Reply { seq, received, error, data } = reply;
        let Some(at) = self.outstanding.iter().position(|(asked, _, _)| *asked == seq) else { return };
        if received && error.is_none() {
            if let Some((_, Remote::Request(key), _)) = self.outstanding.get(at).copied() {
                if let Some(request) = self.requests.get_mut(&key) {
                    request.received = true;
                }
                self.advance(key, None);
            }
            return;
        }
        match (self.outstanding.remove(at).map(|(_, why, _)| why), data) {
            (Some(Remote::Request(key)), data) => {
                let Some(request) = self.requests.get_mut(&key) else { return };
                let lacks = matches!(request.op, Op::Read { .. }) && data.is_none();
                let error = error.or(lacks.then_some(Errno::EIO));
                request.remote = Some(error.map_or(Ok(()), Err));
                self.advance(key, data);
            }
            (Some(Remote::SyncRead), Some(data)) if error.is_none() => {
                let Some(Block { offset, .. }) = self.sync.block else { return };
                let op = DiskOp::Write { offset: self.layout.localoff() + offset, data };
                self.local.queue(Local::SyncWrite, op);
            }
            (Some(Remote::SyncRead | Remote::SyncWrite), _) => self.sync.block = None, // L15
            (None, _) => {}
        }
    }

    pub(crate) fn handle_lost(&mut self, now: Duration) {
        self.now = now;
        if self.stage != Stage::Down {
            self.lose(GUARD);
        }
        self.settle();
    }

    /// L1: what was sent and not answered ends as if the secondary had never been asked, and leaves no trace.
    pub(super) fn lose(&mut self, again: Duration) {
        if self.stage == Stage::Up {
            self.actions.push_back(Action::Event(Event::Disconnect));
            if self.sync.on && !self.to_sync.is_empty() {
                self.actions.push_back(Action::Event(Event::SyncIntr));
            }
        }
        self.actions.push_back(Action::Close);
        self.stage = Stage::Down;
        self.deadline = self.now + again;
        self.serving = true;
        self.sync.on = false;
        let asked = std::mem::take(&mut self.outstanding);
        if asked.iter().any(|(_, why, _)| !matches!(why, Remote::Request(_))) {
            self.sync.block = None;
        }
        if let Some(block) = &mut self.sync.block {
            block.orphan = true;
        }
        for (_, why, _) in asked {
            if let Remote::Request(key) = why {
                if let Some(request) = self.requests.get_mut(&key) {
                    request.remote = Some(Err(Errno::ENOTCONN));
                }
                self.advance(key, None);
            }
        }
    }
}
