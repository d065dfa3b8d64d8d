//! The original as secondary: answers by the table, stores in order of arrival, and is gone with its connection.

use core::time::Duration;
use std::collections::VecDeque;

use hast_engine::{Action, Counts, DiskOp, DiskResult, Event, OpId, Side};
use hast_format::layout::Layout;
use hast_format::metadata::{Metadata, Role};
use hast_net::buffer::Buffer;
use hast_net::errno::Errno;
use hast_net::frame::Frame;
use hast_net::handshake::{SecondAnswer, SecondHello, SecondRefusal, SyncSource, texts};
use hast_net::message::{Command, FromPrimary, Message, Reply, Request};

use super::{DiskThread, block};

const SILENCE: Duration = Duration::from_secs(20);

/// A worker in the secondary role.
#[derive(Debug)]
pub(crate) struct Secondary {
    metadata: Metadata,
    layout: Layout,
    hello: SecondHello,
    /// The answer is out.
    answered: bool,
    /// The map on disk is cleared before the first request.
    clear: bool,
    /// The disk said that it cannot flush: from then on it is not asked, and the answer is EINVAL.
    no_flush: bool,
    ended: bool,
    last_received: Duration,
    ids: u64,
    disk: DiskThread<Why>,
    actions: VecDeque<Action>,
}

#[derive(Debug)]
enum Why {
    Adoption,
    ReadMap(SyncSource),
    ClearMap,
    Request(Request),
}

impl Secondary {
    pub(crate) fn new(metadata: Metadata, layout: Layout, hello: SecondHello, now: Duration) -> Secondary {
        let mut secondary = Secondary {
            metadata,
            layout,
            hello,
            answered: false,
            clear: true,
            no_flush: false,
            ended: false,
            last_received: now,
            ids: 0,
            disk: DiskThread::new(),
            actions: VecDeque::new(),
        };
        secondary.admit();
        secondary.kick();
        secondary
    }

    /// The table of behaviour.md.
    fn admit(&mut self) {
        let (pl, pr) = (self.hello.localcnt, self.hello.remotecnt);
        let Counts { local: sl, remote: sr } =
            Counts { local: self.metadata.localcnt, remote: self.metadata.remotecnt };
        let source = if sl > pr { SyncSource::Secondary } else { SyncSource::Primary };
        if self.metadata.resuid == 0 {
            // L20: whatever its map says. L19: and once the id is taken over, nothing says that all is owed.
            self.metadata.resuid = self.hello.resuid;
            let op = block(&mut self.metadata, Role::Secondary);
            self.disk.queue(Why::Adoption, op);
        } else if self.metadata.resuid != self.hello.resuid {
            self.refuse(texts::resuid_mismatch(self.hello.resuid, self.metadata.resuid));
        } else if (sl > pr && sr == pl) || (sl == pr && sr <= pl) {
            let length = u32::try_from(self.layout.sent_map_bytes()).unwrap_or(0);
            let op = DiskOp::Read { offset: self.layout.map_offset(), length };
            self.disk.queue(Why::ReadMap(source), op);
        } else if sl > pr && pl > sr {
            self.actions.push_back(Action::Event(Event::SplitBrain));
            self.refuse(texts::SPLIT_BRAIN.into());
        } else {
            self.answer(false, Some(self.full_map()), source);
        }
    }

    fn full_map(&self) -> Buffer {
        Buffer::from(vec![0xff; usize::try_from(self.layout.sent_map_bytes()).unwrap_or(0)])
    }

    fn answer(&mut self, virgin: bool, map: Option<Buffer>, syncsrc: SyncSource) {
        let answer = SecondAnswer {
            datasize: self.layout.datasize(),
            extentsize: self.layout.extentsize(),
            localcnt: self.metadata.localcnt,
            remotecnt: self.metadata.remotecnt,
            virgin,
            syncsrc,
            mapsize: map.as_ref().and_then(|map| u32::try_from(map.len()).ok()).unwrap_or(0),
            boot: None,
            peer_timeout: None,
            met: None,
            zero_deletes: false,
        };
        self.send(Side::Out, Message::SecondAnswer(answer, map));
        self.answered = true;
        self.actions.push_back(Action::Event(Event::Connect));
    }

    fn refuse(&mut self, errmsg: String) {
        let refusal = SecondRefusal {
            datasize: self.layout.datasize(),
            extentsize: self.layout.extentsize(),
            localcnt: self.metadata.localcnt,
            remotecnt: self.metadata.remotecnt,
            errmsg,
            parted: None,
        };
        self.send(Side::Out, Message::SecondRefusal(refusal, None));
        self.exit(78);
    }

    pub(crate) fn handle_frame(&mut self, now: Duration, frame: Frame) {
        self.last_received = now;
        match FromPrimary::decode(frame) {
            Ok(FromPrimary::Keepalive | FromPrimary::Farewell { .. }) => {}
            Ok(FromPrimary::Request(request)) => self.take(request),
            Ok(FromPrimary::Invalid { seq, .. }) => self.reply(seq, false, Some(Errno::EINVAL), None),
            Ok(FromPrimary::Mark(_)) | Err(_) => self.exit(75),
        }
        self.kick();
    }

    fn take(&mut self, request: Request) {
        let Request { command, seq, offset, length, memsync, .. } = request;
        if command != Command::Flush && self.layout.check_range(offset, length).is_err() {
            return self.reply(seq, memsync, Some(Errno::EINVAL), None);
        }
        if memsync {
            self.reply(seq, true, None, None);
        }
        if std::mem::take(&mut self.clear) {
            // L12: as long as the provider says. Not flushed.
            let zeros = vec![0; usize::try_from(self.layout.sent_map_bytes()).unwrap_or(0)];
            let op = DiskOp::Write { offset: self.layout.map_offset(), data: Buffer::from(zeros) };
            self.disk.queue(Why::ClearMap, op);
        }
        let at = self.layout.localoff().saturating_add(offset);
        let op = match (command, &request.data) {
            (Command::Read, _) => DiskOp::Read { offset: at, length: u32::try_from(length).unwrap_or(0) },
            (Command::Write, Some(data)) => DiskOp::Write { offset: at, data: data.clone() },
            (Command::Write, None) => return self.reply(seq, false, Some(Errno::EINVAL), None),
            (Command::Delete, _) => DiskOp::Delete { offset: at, length },
            (Command::Flush, _) if self.no_flush => {
                return self.reply(seq, false, Some(Errno::EINVAL), None);
            }
            (Command::Flush, _) => DiskOp::Flush,
        };
        self.disk.queue(Why::Request(Request { data: None, ..request }), op);
    }

    pub(crate) fn handle_disk(&mut self, id: OpId, result: DiskResult) {
        match (self.disk.ended(id), result) {
            (Some(Why::Adoption), Ok(_)) => {
                let map = (!self.hello.virgin).then(|| self.full_map());
                self.answer(true, map, SyncSource::Primary);
            }
            (Some(Why::ReadMap(source)), Ok(map)) => self.answer(false, map, source),
            (Some(Why::Adoption | Why::ReadMap(_)), Err(_)) => self.exit(66),
            (Some(Why::Request(request)), Ok(data)) => self.reply(request.seq, false, None, data),
            (Some(Why::Request(request)), Err(error)) => {
                self.no_flush |= (request.command, error) == (Command::Flush, Errno::EOPNOTSUPP);
                self.reply(request.seq, false, Some(error), None);
            }
            (Some(Why::ClearMap) | None, _) => {}
        }
        self.kick();
    }

    /// L14: what is queued is gone, `received` or not.
    pub(crate) fn handle_lost(&mut self) {
        if self.answered {
            self.actions.push_back(Action::Event(Event::Disconnect));
        }
        self.exit(75);
    }

    /// L14 too: another role, another primary.
    pub(crate) fn handle_stop(&mut self) {
        self.exit(0);
    }

    pub(crate) fn handle_timeout(&mut self, now: Duration) {
        if self.last_received + SILENCE <= now {
            self.handle_lost();
        }
    }

    pub(crate) fn poll_timeout(&self) -> Option<Duration> {
        (!self.ended).then(|| self.last_received + SILENCE)
    }

    pub(crate) fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    fn kick(&mut self) {
        if !self.ended {
            self.disk.kick(&mut self.ids, &mut self.actions);
        }
    }

    fn reply(&mut self, seq: u64, received: bool, error: Option<Errno>, data: Option<Buffer>) {
        self.send(Side::In, Message::Reply(Reply { seq, received, error, data }));
    }

    fn send(&mut self, side: Side, message: Message) {
        if !self.ended {
            self.actions.push_back(Action::Send { side, version: 2, message });
        }
    }

    fn exit(&mut self, code: i32) {
        if !std::mem::replace(&mut self.ended, true) {
            self.actions.push_back(Action::Exit(code));
        }
    }
}
