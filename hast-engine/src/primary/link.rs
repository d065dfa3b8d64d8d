//! The link to the secondary: connecting, the handshake (spec/wire.md), requests that await an answer,
//! keepalives, silence and loss.

use core::time::Duration;
use std::collections::BTreeMap;

use hast_format::bitmap::Bitmap;
use hast_format::nv::List;
use hast_net::buffer::Buffer;
use hast_net::errno::Errno;
use hast_net::frame::{Frame, VERSION};
use hast_net::handshake::{
    Extensions, FirstAnswer, FirstHello, FirstReply, SecondAnswer, SecondHello, SecondReply, SyncSource,
    texts,
};
use hast_net::message::{Command, Message, Reply, Request};

use super::{Phase, Primary};
use crate::counts::Counts;
use crate::ranges::Key;
use crate::types::{Action, Event, Settings, Side};

/// A keepalive goes out when nothing else did for this long.
const KEEPALIVE: Duration = Duration::from_secs(10);
/// Waits between attempts to connect grow from one second to this.
const RECONNECT_MAX: Duration = Duration::from_secs(10);
/// What a refusal with `wait` waits before the next attempt.
const WAIT: Duration = Duration::from_secs(1);

/// Why an answer of the secondary is awaited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Awaited {
    Request(Key),
    Flush,
    SyncRead(Key),
    SyncWrite(Key),
}

/// The two connections, seen as one.
#[derive(Debug)]
pub(super) struct Link {
    stage: Stage,
    /// When the stage has lasted too long.
    deadline: Option<Duration>,
    /// Failed attempts since the last success.
    attempts: u32,
    /// While this lasts, a refusal with `wait` keeps the device's requests waiting.
    wait_until: Duration,
    /// The log says so.
    waiting: bool,
    /// Negotiated; 1 before the first contact.
    version: u8,
    token: [u8; 16],
    peer: Counts,
    last_sent: Duration,
    last_received: Duration,
    last_seq: u64,
    /// Which connection this is.
    epoch: u64,
    outstanding: BTreeMap<u64, Outstanding>,
}

#[derive(Debug)]
struct Outstanding {
    why: Awaited,
    command: Command,
    length: u64,
    since: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Not connected; the next attempt is due then, if ever.
    Down(Option<Duration>),
    OpeningOut,
    AwaitingFirst,
    OpeningIn,
    /// The new resuid is being written, by this save.
    Drawing(u64),
    AwaitingSecond,
    /// The merged map is being written.
    Merging,
    Up,
}

impl Link {
    pub(super) fn new(settings: &Settings, now: Duration) -> Link {
        Link {
            stage: Stage::Down(None),
            deadline: None,
            attempts: 0,
            wait_until: now + settings.timeout,
            waiting: false,
            version: 1,
            token: [0; 16],
            peer: Counts::default(),
            last_sent: now,
            last_received: now,
            last_seq: 0,
            epoch: 0,
            outstanding: BTreeMap::new(),
        }
    }

    /// Whether requests go to the secondary.
    pub(super) fn is_up(&self) -> bool {
        self.stage == Stage::Up
    }

    /// Whether there is anything to lose.
    pub(super) fn is_connected(&self) -> bool {
        !matches!(self.stage, Stage::Down(_))
    }

    pub(super) fn version(&self) -> u8 {
        self.version
    }

    /// The secondary's counts as of the handshake.
    pub(super) fn peer_counts(&self) -> Counts {
        self.peer
    }

    /// Which connection this is: what an earlier one's secondary stored it may have lost since.
    pub(super) fn epoch(&self) -> u64 {
        self.epoch
    }

    /// The number of the latest request.
    pub(super) fn last_seq(&self) -> u64 {
        self.last_seq
    }

    /// Whether a write or delete numbered up to `seq` has not been answered.
    pub(super) fn awaits_writes_up_to(&self, seq: u64) -> bool {
        self.outstanding
            .range(..=seq)
            .any(|(_, request)| matches!(request.command, Command::Write | Command::Delete))
    }

    pub(super) fn outstanding_requests(&self) -> usize {
        self.outstanding.len()
    }
}

impl Primary {
    /// A connection that was asked for is there.
    pub fn handle_connected(&mut self, now: Duration, side: Side) {
        self.now = now;
        match (self.link.stage, side) {
            (Stage::OpeningOut, Side::Out) => {
                self.link.last_received = now;
                let hello = FirstHello {
                    resource: self.metadata.resource.clone(),
                    version: VERSION,
                    ext: Extensions::NONE,
                };
                self.enter(Stage::AwaitingFirst);
                self.send(Side::Out, Message::FirstHello(hello));
            }
            (Stage::OpeningIn, Side::In) => self.introduce(),
            _ => {}
        }
        self.settle();
    }

    /// A connection that was asked for could not be made.
    pub fn handle_connect_failed(&mut self, now: Duration, side: Side, reason: &str) {
        self.now = now;
        if matches!((self.link.stage, side), (Stage::OpeningOut, Side::Out) | (Stage::OpeningIn, Side::In)) {
            self.lose_link(reason);
        }
        self.settle();
    }

    /// Either connection has ended, broke, or brought something that is no message.
    pub fn handle_lost(&mut self, now: Duration, reason: &str) {
        self.now = now;
        if self.link.is_connected() {
            self.lose_link(reason);
        }
        self.settle();
    }

    /// A frame has come, its payload already decoded.
    pub fn handle_frame(&mut self, now: Duration, side: Side, frame: Frame) {
        self.now = now;
        self.link.last_received = now;
        let understood = match (self.link.stage, side) {
            (Stage::AwaitingFirst, Side::Out) => self.first_reply(&frame),
            (Stage::AwaitingSecond, Side::Out) => self.second_reply(frame),
            (Stage::AwaitingSecond, Side::In) => self.second_refused(&frame),
            (Stage::Up, Side::In) => self.reply(frame),
            (Stage::Down(_), _) => Ok(()),
            (_, side) => Err(format!("The secondary sent something unexpected on connection {side}")),
        };
        if let Err(reason) = understood {
            self.lose_link(&reason);
        }
        self.settle();
    }

    /// Makes the first attempt, or the next one.
    pub(super) fn connect(&mut self) {
        if !self.settings.remote {
            self.enter(Stage::Down(None));
            return self.serve();
        }
        self.enter(Stage::OpeningOut);
        self.actions.push_back(Action::Connect(Side::Out));
    }

    /// Closes and connects anew, after a drain.
    pub(super) fn reconnect(&mut self) {
        if self.link.is_up() {
            self.actions.push_back(Action::Event(Event::Disconnect));
        }
        self.close();
        self.link.attempts = 0;
        self.link.wait_until = self.now;
        self.connect();
    }

    fn enter(&mut self, stage: Stage) {
        self.link.stage = stage;
        self.link.deadline = match stage {
            // The supervisor gives up after `timeout`; this is for when it does not answer at all.
            Stage::OpeningOut | Stage::OpeningIn => {
                Some(self.now + self.settings.timeout + Duration::from_secs(5))
            }
            Stage::AwaitingFirst | Stage::AwaitingSecond => Some(self.now + self.settings.timeout),
            Stage::Down(next) => next,
            Stage::Drawing(_) | Stage::Merging | Stage::Up => None,
        };
    }

    fn first_reply(&mut self, frame: &Frame) -> Result<(), String> {
        let list = List::parse(&frame.nv).map_err(|error| error.to_string())?;
        match FirstReply::decode(&list).map_err(|error| error.to_string())? {
            FirstReply::Refused(refusal) => {
                let patient = refusal.wait
                    && self.phase == Phase::Connecting
                    && self.now + WAIT <= self.link.wait_until;
                if patient {
                    log::warn!("{}", refusal.errmsg);
                    if !self.link.waiting {
                        let seconds = self.settings.timeout.as_secs();
                        log::warn!("Waiting for remote node to become secondary for {seconds}s.");
                        self.link.waiting = true;
                    }
                    self.close();
                    self.enter(Stage::Down(Some(self.now + WAIT)));
                } else {
                    self.lose_link(&refusal.errmsg);
                }
            }
            FirstReply::Answer(FirstAnswer { version, token, .. }) => {
                self.link.version = version.clamp(1, VERSION);
                log::debug!("Negotiated protocol version {}.", self.link.version);
                self.link.token = token;
                self.enter(Stage::OpeningIn);
                self.actions.push_back(Action::Connect(Side::In));
            }
        }
        Ok(())
    }

    /// The second connection is there: say who we are, with a resuid drawn first if there is none.
    fn introduce(&mut self) {
        if self.metadata.resuid == 0 {
            self.metadata.resuid = self.random;
            let save = self.save_metadata();
            self.enter(Stage::Drawing(save));
        } else {
            self.second_hello(false);
        }
    }

    pub(super) fn resuid_drawn(&mut self, save: u64) {
        if matches!(self.link.stage, Stage::Drawing(wanted) if wanted <= save) {
            self.second_hello(true);
        }
    }

    pub(super) fn resuid_not_drawn(&mut self, save: u64) {
        if matches!(self.link.stage, Stage::Drawing(wanted) if wanted <= save) {
            self.metadata.resuid = 0;
            self.lose_link("The resource's new id could not be written");
        }
    }

    fn second_hello(&mut self, virgin: bool) {
        let hello = SecondHello {
            resource: self.metadata.resource.clone(),
            token: self.link.token,
            virgin,
            resuid: self.metadata.resuid,
            localcnt: self.metadata.localcnt,
            remotecnt: self.metadata.remotecnt,
            boot: None,
        };
        self.enter(Stage::AwaitingSecond);
        self.send(Side::In, Message::SecondHello(hello));
    }

    /// On the second connection only a refusal can come before the handshake is over.
    fn second_refused(&mut self, frame: &Frame) -> Result<(), String> {
        let list = List::parse(&frame.nv).map_err(|error| error.to_string())?;
        match SecondReply::decode(&list).map_err(|error| error.to_string())? {
            SecondReply::Refused(errmsg) => Err(self.refused(errmsg)),
            SecondReply::Answer(_) => {
                Err("The secondary answered the handshake on the wrong connection".into())
            }
        }
    }

    fn refused(&mut self, errmsg: String) -> String {
        if errmsg == texts::SPLIT_BRAIN {
            self.actions.push_back(Action::Event(Event::SplitBrain));
        }
        errmsg
    }

    fn second_reply(&mut self, frame: Frame) -> Result<(), String> {
        let Frame { nv, payload, .. } = frame;
        let list = List::parse(&nv).map_err(|error| error.to_string())?;
        let answer = match SecondReply::decode(&list).map_err(|error| error.to_string())? {
            SecondReply::Refused(errmsg) => return Err(self.refused(errmsg)),
            SecondReply::Answer(answer) => answer,
        };
        let SecondAnswer { datasize, extentsize, localcnt, remotecnt, virgin, syncsrc, .. } = answer;
        if (datasize, extentsize) != (self.layout.datasize(), self.layout.extentsize()) {
            let (data, extent) = (self.layout.datasize(), self.layout.extentsize());
            return Err(if datasize == data {
                format!("Extent size differs between nodes (local={extent}, remote={extentsize})")
            } else {
                format!("Data size differs between nodes (local={data}, remote={datasize})")
            });
        }
        let map = answer.map(payload).map_err(|error| error.to_string())?;
        let extents = u32::try_from(self.layout.nextents()).unwrap_or(u32::MAX);
        if let Some(map) = &map {
            let least = extents.div_ceil(64) as usize * 8;
            if map.len() < least {
                return Err(format!("The secondary's map has {} bytes, ours {least}", map.len()));
            }
        }
        self.link.peer = Counts { local: localcnt, remote: remotecnt };
        if virgin && self.metadata.localcnt == 0 {
            self.metadata.localcnt = 1;
        }
        if let Some(map) = &map {
            self.map.merge(&Bitmap::from_bytes(extents, map));
        }
        if syncsrc == SyncSource::Secondary {
            self.sync.target = true;
            let dirty = self.map.to_synchronise().clone();
            self.sync.stale.union(&dirty);
        }
        self.enter(Stage::Merging);
        self.kick_map();
        self.merged();
        Ok(())
    }

    /// Once the merged map is durable, the nodes are connected.
    pub(super) fn merged(&mut self) {
        if self.link.stage != Stage::Merging {
            return;
        }
        if !self.map.to_synchronise().iter().all(|extent| self.map.is_durable(extent..extent + 1)) {
            return;
        }
        self.enter(Stage::Up);
        self.link.attempts = 0;
        self.link.last_received = self.now;
        self.counted = None;
        self.flush.peer_connected();
        self.actions.push_back(Action::Event(Event::Connect));
        self.begin_session();
        self.unpark();
        self.serve();
    }

    /// The merged map could not be written: without it nothing may be synchronised.
    pub(super) fn merge_failed(&mut self) {
        if self.link.stage == Stage::Merging {
            self.lose_link("The secondary's map could not be written here");
        }
    }

    fn reply(&mut self, frame: Frame) -> Result<(), String> {
        let Reply { seq, received, error, data } = Reply::decode(frame).map_err(|error| error.to_string())?;
        let Some(request) = self.link.outstanding.get(&seq) else {
            return Err(format!("The secondary answered request {seq}, which was not asked"));
        };
        if received && error.is_none() {
            if let Awaited::Request(key) = request.why {
                self.remote_received(key);
            }
            return Ok(());
        }
        let length = request.length;
        if error.is_none() && request.command == Command::Read {
            let got = data.as_ref().map_or(0, |data| data.len() as u64);
            if got != length {
                return Err(format!("The secondary sent {got} bytes for a read of {length}"));
            }
        }
        let Some(Outstanding { why, .. }) = self.link.outstanding.remove(&seq) else { return Ok(()) };
        let outcome = error.map_or(Ok(()), Err);
        match why {
            Awaited::Request(key) => self.remote_answered(key, outcome.map(|()| data)),
            Awaited::Flush => self.remotely_flushed(outcome),
            Awaited::SyncWrite(key) => self.block_written_remotely(key, outcome),
            Awaited::SyncRead(key) => {
                let read = outcome.and_then(|()| data.ok_or(Errno::EIO));
                self.block_read_remotely(key, read);
            }
        }
        self.advance_flush();
        Ok(())
    }

    /// Asks the secondary for something, under a number of its own (S2).
    pub(super) fn ask(
        &mut self,
        why: Awaited,
        command: Command,
        offset: u64,
        length: u64,
        memsync: bool,
        data: Option<Buffer>,
    ) {
        self.link.last_seq += 1;
        let seq = self.link.last_seq;
        self.link.outstanding.insert(seq, Outstanding { why, command, length, since: self.now });
        self.send(Side::Out, Message::Request(Request { command, seq, offset, length, memsync, data }));
    }

    fn send(&mut self, side: Side, message: Message) {
        if side == Side::Out {
            self.link.last_sent = self.now;
        }
        self.actions.push_back(Action::Send { side, version: self.link.version, message });
    }

    /// Drops the connections; whatever was asked is answered as lost.
    fn close(&mut self) {
        let was_up = self.link.is_up();
        self.link.epoch += 1;
        self.actions.push_back(Action::Close);
        self.enter(Stage::Down(None));
        if was_up {
            self.end_session();
            // M3: what is not durable there is to be synchronised.
            self.map.peer_lost();
        }
        for (_, Outstanding { why, .. }) in std::mem::take(&mut self.link.outstanding) {
            match why {
                Awaited::Request(key) => self.remote_lost(key),
                Awaited::Flush | Awaited::SyncRead(_) | Awaited::SyncWrite(_) => {}
            }
        }
        if was_up {
            self.remote_flush_lost();
        }
    }

    /// The connection is gone, or never came to be.
    pub(super) fn lose_link(&mut self, reason: &str) {
        let was_up = self.link.is_up();
        let reason = sentence(reason);
        if was_up || self.link.attempts == 0 {
            log::warn!("{reason}");
        } else {
            log::debug!("{reason}");
        }
        if was_up && self.phase != Phase::Ended {
            self.actions.push_back(Action::Event(Event::Disconnect));
        }
        self.close();
        let wait = Duration::from_secs(1 << self.link.attempts.min(4)).min(RECONNECT_MAX);
        self.link.attempts = self.link.attempts.saturating_add(1);
        if matches!(self.phase, Phase::Connecting | Phase::Serving) && self.settings.remote {
            self.enter(Stage::Down(Some(self.now + wait)));
        }
        self.serve();
    }

    pub(super) fn link_timeout(&mut self) {
        if let Some(deadline) = self.link.deadline
            && deadline <= self.now
        {
            match self.link.stage {
                Stage::Down(_) if matches!(self.phase, Phase::Connecting | Phase::Serving) => self.connect(),
                Stage::Down(_) => self.link.deadline = None,
                _ => self.lose_link("The secondary did not answer during the handshake"),
            }
        }
        if !self.link.is_up() {
            return;
        }
        if self.silence_deadline().is_some_and(|deadline| deadline <= self.now) {
            let seconds = self.settings.timeout.as_secs();
            self.lose_link(&format!("The secondary did not answer for {seconds} seconds"));
        } else if self.link.last_sent + KEEPALIVE <= self.now {
            self.send(Side::Out, Message::Keepalive);
        }
    }

    pub(super) fn link_deadline(&self) -> Option<Duration> {
        let keepalive = self.link.is_up().then(|| self.link.last_sent + KEEPALIVE);
        [self.link.deadline, keepalive, self.silence_deadline()].into_iter().flatten().min()
    }

    /// When a secondary that owes an answer has been silent for too long.
    fn silence_deadline(&self) -> Option<Duration> {
        let oldest = self.link.outstanding.values().map(|request| request.since).min()?;
        Some(oldest.max(self.link.last_received) + self.settings.timeout)
    }
}

/// The reason as a sentence of its own.
fn sentence(reason: &str) -> String {
    if reason.ends_with(['.', '!']) { reason.to_owned() } else { format!("{reason}.") }
}
