//! The original as primary: a local and a remote half for every request, and a map that forgets early. Its link
//! and its synchronisation are in `link`.

mod link;

use core::ops::Range;
use core::time::Duration;
use std::collections::{BTreeMap, VecDeque};

use hast_engine::{Action, Counts, DiskOp, DiskResult, Op, OpId, PrimaryStart, RequestId, Side};
use hast_format::bitmap::Bitmap;
use hast_format::layout::Layout;
use hast_format::metadata::{Metadata, Role};
use hast_net::Replication;
use hast_net::buffer::Buffer;
use hast_net::errno::Errno;
use hast_net::handshake::SyncSource;
use hast_net::message::{Command, Message, Request as WireRequest};

use super::{DiskThread, block};

/// Keepalives, and attempts to connect.
const GUARD: Duration = Duration::from_secs(10);

/// A worker in the primary role.
#[derive(Debug)]
pub(crate) struct Primary {
    mode: Replication,
    timeout: Duration,
    layout: Layout,
    metadata: Metadata,
    random: u64,
    now: Duration,
    ids: u64,
    actions: VecDeque<Action>,
    local: DiskThread<Local>,
    /// Map writes, each with its number, and its flush.
    map: DiskThread<Saved>,
    meta: DiskThread<Saved>,
    in_flight: BTreeMap<u32, u32>,
    to_sync: Bitmap,
    /// The most recently written extents, the latest first: `keepdirty` of them.
    recent: VecDeque<u32>,
    map_saves: Saves,
    meta_saves: Saves,
    /// The first attempt to connect has ended.
    serving: bool,
    intake: VecDeque<(RequestId, Op)>,
    /// The request at the head of the queue waits for this map write, and everything behind it too.
    held: Option<(u64, u64)>,
    requests: BTreeMap<u64, Request>,
    last_key: u64,
    /// What the device is told once the metadata are written.
    answers: Vec<(u64, RequestId, DiskResult)>,
    stage: Stage,
    deadline: Duration,
    wait_until: Duration,
    token: [u8; 16],
    version: u8,
    peer: Counts,
    source: Option<SyncSource>,
    last_sent: Duration,
    last_received: Duration,
    /// In the order they were sent: number, why, since when.
    outstanding: VecDeque<(u64, Remote, Duration)>,
    sync: Sync,
}

#[derive(Debug)]
struct Request {
    id: RequestId,
    op: Op,
    extents: Range<u32>,
    local: Half,
    remote: Half,
    received: bool,
    told: bool,
}

/// `None` until it has ended.
type Half = Option<Result<(), Errno>>;

/// The number of a save, or 0 for a step on the way.
#[derive(Debug)]
struct Saved(u64);

#[derive(Debug, Default)]
struct Saves {
    wanted: u64,
    done: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Local {
    Request(u64),
    SyncRead,
    SyncWrite,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Remote {
    Request(u64),
    SyncRead,
    SyncWrite,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Down,
    OpeningOut,
    AwaitingFirst,
    OpeningIn,
    Drawing(u64),
    AwaitingSecond,
    Merging(u64),
    Up,
}

#[derive(Debug, Default)]
struct Sync {
    on: bool,
    copied: bool,
    /// Extent, next byte, end.
    open: Option<(u32, u64, u64)>,
    block: Option<Block>,
}

#[derive(Clone, Copy, Debug)]
struct Block {
    offset: u64,
    length: u64,
    /// The connection broke under it.
    orphan: bool,
}

impl Primary {
    pub(crate) fn new(start: PrimaryStart, now: Duration) -> Primary {
        let PrimaryStart { settings, metadata, layout, map, random, .. } = start;
        let extents = u32::try_from(layout.nextents()).unwrap_or(u32::MAX);
        let mut primary = Primary {
            mode: settings.replication,
            timeout: settings.timeout,
            layout,
            metadata,
            random,
            now,
            ids: 0,
            actions: VecDeque::new(),
            local: DiskThread::new(),
            map: DiskThread::new(),
            meta: DiskThread::new(),
            in_flight: BTreeMap::new(),
            to_sync: Bitmap::from_bytes(extents, &map),
            recent: VecDeque::new(),
            map_saves: Saves::default(),
            meta_saves: Saves::default(),
            serving: false,
            intake: VecDeque::new(),
            held: None,
            requests: BTreeMap::new(),
            last_key: 0,
            answers: Vec::new(),
            stage: Stage::Down,
            deadline: now,
            wait_until: now + settings.timeout,
            token: [0; 16],
            version: 1,
            // L5: nothing of what was known of the secondary survives a restart; nor that its data is the
            // newer (L18).
            peer: Counts::default(),
            source: None,
            last_sent: now,
            last_received: now,
            outstanding: VecDeque::new(),
            sync: Sync::default(),
        };
        if primary.metadata.resuid == 0 {
            primary.metadata.localcnt = 0;
            primary.metadata.remotecnt = 0;
            primary.save();
        }
        primary.connect();
        primary.settle();
        primary
    }

    /// Writes the map as it is now. L11: nobody looks how that went.
    fn write_map(&mut self) -> u64 {
        let mut all = self.to_sync.clone();
        for extent in self.in_flight.keys().chain(&self.recent) {
            all.insert(*extent);
        }
        let bytes = all.bytes(0..usize::try_from(self.layout.map_bytes()).unwrap_or(0));
        self.map_saves.wanted += 1;
        let op = DiskOp::Write { offset: self.layout.map_offset(), data: Buffer::from(bytes) };
        self.map.queue(Saved(0), op);
        self.map.queue(Saved(self.map_saves.wanted), DiskOp::Flush);
        self.map_saves.wanted
    }

    /// L7: written, not flushed, and nobody looks how that went.
    fn save(&mut self) -> u64 {
        let op = block(&mut self.metadata, Role::Primary);
        self.meta_saves.wanted += 1;
        self.meta.queue(Saved(self.meta_saves.wanted), op);
        self.meta_saves.wanted
    }

    /// A write begins; whether the map on disk changes.
    fn write_start(&mut self, extents: Range<u32>) -> bool {
        let mut modified = false;
        for extent in extents {
            *self.in_flight.entry(extent).or_insert(0) += 1;
            if let Some(at) = self.recent.iter().position(|recent| *recent == extent) {
                self.recent.remove(at);
            } else {
                modified = true;
            }
            self.recent.push_front(extent);
            self.recent.truncate(self.metadata.keepdirty as usize);
        }
        modified
    }

    /// L10: answered is as good as stored. L1, L2: and lost or failed is as good as answered.
    fn write_complete(&mut self, extents: Range<u32>) {
        let mut modified = false;
        for extent in extents {
            let Some(count) = self.in_flight.get_mut(&extent) else { continue };
            *count -= 1;
            if *count == 0 {
                self.in_flight.remove(&extent);
                modified |= !self.recent.contains(&extent);
            }
        }
        if modified {
            self.write_map();
        }
    }

    pub(crate) fn handle_request(&mut self, now: Duration, id: RequestId, op: Op) {
        self.now = now;
        self.intake.push_back((id, op));
        self.settle();
    }

    fn take_in(&mut self) {
        while self.serving {
            if let Some((key, save)) = self.held {
                if save > self.map_saves.done {
                    return;
                }
                self.held = None;
                self.issue(key);
                continue;
            }
            let Some((_, op)) = self.intake.front() else { return };
            let (offset, length) = op.range();
            let is_write = matches!(op, Op::Write { .. });
            if is_write && self.sync.block.is_some_and(|b| overlap((b.offset, b.length), (offset, length))) {
                return; // and so does everything behind it (S1)
            }
            let Some((id, op)) = self.intake.pop_front() else { return };
            self.last_key += 1;
            let key = self.last_key;
            let extents = if is_write { self.layout.extents_of(offset, length) } else { 0..0 };
            let request = Request {
                id,
                op,
                extents: extents.clone(),
                local: None,
                remote: None,
                received: false,
                told: false,
            };
            self.requests.insert(key, request);
            if is_write && self.metadata.resuid == 0 && self.metadata.localcnt == 0 {
                self.metadata.localcnt = 1; // in memory only
            }
            if is_write && self.write_start(extents) {
                self.held = Some((key, self.write_map()));
            } else {
                self.issue(key);
            }
        }
    }

    fn issue(&mut self, key: u64) {
        let up = self.stage == Stage::Up;
        let Some(request) = self.requests.get_mut(&key) else { return };
        let at = self.layout.localoff() + request.op.range().0;
        let (op, command, data) = match &request.op {
            Op::Read { length, .. } => {
                let there = self.source == Some(SyncSource::Secondary);
                let unasked = Some(Err(Errno::ENOTCONN));
                if there && up {
                    request.local = unasked;
                    return self.ask_for(key, Command::Read, None);
                }
                request.remote = unasked;
                if there {
                    request.local = unasked;
                    return self.advance(key, None);
                }
                let op = DiskOp::Read { offset: at, length: *length };
                return self.local.queue(Local::Request(key), op);
            }
            Op::Write { data, .. } => {
                (DiskOp::Write { offset: at, data: data.clone() }, Command::Write, Some(data.clone()))
            }
            // L4: not in the map.
            Op::Delete { length, .. } => {
                (DiskOp::Delete { offset: at, length: *length }, Command::Delete, None)
            }
            Op::Flush => (DiskOp::Flush, Command::Flush, None),
        };
        if !up {
            request.remote = Some(Err(Errno::ENOTCONN));
            let missing = request.extents.clone().filter(|extent| self.to_sync.insert(*extent)).count();
            if missing > 0 {
                self.write_map();
            }
        }
        self.local.queue(Local::Request(key), op);
        if up {
            self.ask_for(key, command, data);
        }
    }

    fn ask_for(&mut self, key: u64, command: Command, data: Option<Buffer>) {
        let Some((offset, length)) = self.requests.get(&key).map(|request| request.op.range()) else {
            return;
        };
        let memsync = self.mode == Replication::Memsync && self.version >= 2 && command == Command::Write;
        self.ask(Remote::Request(key), key, command, (offset, length), memsync, data);
    }

    fn ask(
        &mut self,
        why: Remote,
        seq: u64,
        command: Command,
        (offset, length): (u64, u64),
        memsync: bool,
        data: Option<Buffer>,
    ) {
        self.outstanding.push_back((seq, why, self.now));
        self.send(Side::Out, Message::Request(WireRequest { command, seq, offset, length, memsync, data }));
    }

    fn advance(&mut self, key: u64, data: Option<Buffer>) {
        let Some(request) = self.requests.get_mut(&key) else { return };
        let (here, there) = (request.local == Some(Ok(())), request.remote == Some(Ok(())));
        let both = request.local.is_some() && request.remote.is_some();
        let is_write = matches!(request.op, Op::Write { .. });
        let enough = is_write
            && match self.mode {
                Replication::Fullsync => false,
                Replication::Memsync => request.local.is_some() && request.received,
                Replication::Async => here,
            };
        if !request.told && (both || enough) {
            request.told = true;
            let id = request.id;
            // L3, L9, L16: one node's success is success, and `received` is one.
            let result = match request.local {
                Some(Err(error)) if !there && !request.received => Err(error),
                _ => Ok(data),
            };
            self.tell(id, is_write, result);
        }
        if both {
            let Some(Request { extents, .. }) = self.requests.remove(&key) else { return };
            if is_write {
                self.write_complete(extents);
            }
        }
    }

    fn tell(&mut self, id: RequestId, is_write: bool, result: DiskResult) {
        let mut save = 0;
        // L5: what it is compared with is 0 after a restart.
        if is_write && self.stage != Stage::Up && self.metadata.localcnt == self.peer.remote {
            self.metadata.localcnt += 1;
            save = self.save();
        }
        self.answers.push((save, id, result));
    }

    pub(crate) fn handle_disk(&mut self, now: Duration, id: OpId, result: DiskResult) {
        self.now = now;
        if let Some(Saved(save)) = self.map.ended(id) {
            self.map_saves.done = self.map_saves.done.max(save);
        } else if let Some(Saved(save)) = self.meta.ended(id) {
            self.meta_saves.done = self.meta_saves.done.max(save);
        } else {
            match self.local.ended(id) {
                Some(Local::Request(key)) => self.local_ended(key, result),
                Some(Local::SyncRead) => self.sync_read(result),
                Some(Local::SyncWrite) => self.sync.block = None, // L15: well or not
                None => {}
            }
        }
        match self.stage {
            Stage::Drawing(save) if save <= self.meta_saves.done => self.second_hello(true),
            Stage::Merging(save) if save <= self.map_saves.done => self.up(),
            _ => {}
        }
        self.settle();
    }

    fn local_ended(&mut self, key: u64, result: DiskResult) {
        let up = self.stage == Stage::Up;
        let Some(request) = self.requests.get_mut(&key) else { return };
        let (data, local) = match result {
            Ok(data) => (data, Ok(())),
            Err(error) => (None, Err(error)),
        };
        request.local = Some(local);
        if local.is_err() && up && matches!(request.op, Op::Read { .. }) {
            request.remote = None;
            return self.ask_for(key, Command::Read, None);
        }
        self.advance(key, data);
    }

    fn settle(&mut self) {
        self.take_in();
        self.kick_sync();
        self.take_in();
        let done = self.meta_saves.done;
        let (due, later) =
            std::mem::take(&mut self.answers).into_iter().partition(|(save, _, _)| *save <= done);
        self.answers = later;
        let due: Vec<(u64, RequestId, DiskResult)> = due;
        self.actions.extend(due.into_iter().map(|(_, id, result)| Action::Complete { id, result }));
        self.local.kick(&mut self.ids, &mut self.actions);
        self.map.kick(&mut self.ids, &mut self.actions);
        self.meta.kick(&mut self.ids, &mut self.actions);
    }

    pub(crate) fn handle_stop(&mut self) {
        self.actions.push_back(Action::Exit(0));
    }

    pub(crate) fn handle_timeout(&mut self, now: Duration) {
        self.now = now;
        match self.stage {
            Stage::Down if self.deadline <= now => self.connect(),
            Stage::Up => {
                if self.silence().is_some_and(|at| at <= now) {
                    self.lose(GUARD);
                } else if self.last_sent + GUARD <= now {
                    self.send(Side::Out, Message::Keepalive);
                }
            }
            _ if self.deadline <= now => self.lose(GUARD),
            _ => {}
        }
        self.settle();
    }

    fn silence(&self) -> Option<Duration> {
        let (_, _, since) = self.outstanding.front()?;
        Some(self.last_received.max(*since) + self.timeout)
    }

    pub(crate) fn poll_timeout(&self) -> Option<Duration> {
        if self.stage != Stage::Up {
            return Some(self.deadline);
        }
        let keepalive = self.last_sent + GUARD;
        Some(self.silence().map_or(keepalive, |silence| silence.min(keepalive)))
    }

    pub(crate) fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    pub(crate) fn is_connected(&self) -> bool {
        self.stage == Stage::Up
    }

    /// What it says: nothing left to copy.
    pub(crate) fn is_in_step(&self) -> bool {
        self.is_connected() && !self.sync.on && self.to_sync.is_empty()
    }

    pub(crate) fn is_clean(&self) -> bool {
        self.requests.is_empty() && self.intake.is_empty() && self.sync.block.is_none()
    }
}

fn overlap((a, a_length): (u64, u64), (b, b_length): (u64, u64)) -> bool {
    a < b + b_length && b < a + a_length
}
