//! The secondary: answers the handshake, carries out the primary's requests in the order that overlapping
//! ranges demand, and keeps every promise it made before it ends.
//!
//! | file | owns |
//! |---|---|
//! | `admission` | the answer to the handshake and what must be on disk before it |
//! | `request` | requests, from the frame to the reply |
//! | `dropped` | the disk's flushes, and what a failed one may have dropped |
//! | `doubt` | what this node is not sure to have any more |
//! | `marks` | what the primary has this node write down: out of date, up to date, what it missed itself |
//! | `own_map` | what an original's primary forgets too early |
//! | `recopied` | what was stale here and an original has copied |
//! | `suspicion` | that an original's primary may have something that this node has not |

mod admission;
mod doubt;
mod dropped;
mod marks;
mod own_map;
mod recopied;
mod request;
mod suspicion;

use core::time::Duration;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

use hast_format::activemap::Activemap;
use hast_format::bitmap::Bitmap;
use hast_format::layout::Layout;
use hast_format::metadata::{Metadata, Role};
use hast_net::control::{Facts, Statistics, WorkerStatus};
use hast_net::errno::Errno;
use hast_net::extensions::Extensions;
use hast_net::frame::Frame;
use hast_net::handshake::SecondHello;
use hast_net::message::{Mark, Message, Reply};

use crate::connection::Past;
use crate::durable::Durable;
use crate::loss::Loss;
use crate::ranges::{Key, RangeQueue};
use crate::rule::{Rule, keeps};
use crate::saving::{Next, Part, Saving};
use crate::types::{Action, DiskOp, DiskResult, Event, Host, OpId, Settings, Side};

/// Silence of an original primary that ends the connection: it sends keepalives every 10 s (spec/wire.md).
pub const ORIGINAL_SILENCE: Duration = Duration::from_secs(20);
/// Requests and marks under way at once; more are left unread. A primary of ours has fewer, so that a disk
/// that is slow does not look like a link that is dead.
const REQUESTS: usize = 8192;
/// Bytes of requests under way at once; more are left unread.
const BYTES: u64 = 64 << 20;
/// How long a secondary waits for its disk: at the end, for what it has accepted (L14), and before that, for one
/// operation, until the primary is left to think that it is dead (T7).
pub const DISK_PATIENCE: Duration = Duration::from_secs(60);
/// How often the primary hears that the disk is still busy with the same request: more than once in the shortest
/// `timeout` there is.
const BUSY_EVERY: Duration = Duration::from_millis(300);

/// Exit status when the connection has ended.
const EXIT_DISCONNECTED: i32 = 75;
/// Exit status when the nodes do not belong together.
const EXIT_REFUSED: i32 = 78;
/// Exit status when the provider cannot be relied on.
const EXIT_PROVIDER: i32 = 66;

/// What a secondary starts from: a primary has come as far as the second step of the handshake.
#[derive(Clone, Debug)]
pub struct SecondaryStart {
    /// From hast.conf.
    pub settings: Settings,
    /// As read from the provider.
    pub metadata: Metadata,
    /// Checked against the provider.
    pub layout: Layout,
    /// The on-disk map, [`Layout::map_bytes`] long.
    pub map: Vec<u8>,
    /// The negotiated protocol version.
    pub version: u8,
    /// What both nodes know beyond the original.
    pub ext: Extensions,
    /// What this node knows of itself.
    pub host: Host,
    /// What the primary said in the second step; its token has been checked.
    pub hello: SecondHello,
    /// The last worker of this secondary could not rely on the disk, nor write that down (B1).
    pub unsure: bool,
    /// Of a node that belongs to no resource yet: extents that hold something from before, as far as its system can tell.
    pub former: Bitmap,
}

/// One resource in the secondary role, for as long as one primary is connected.
#[derive(Debug)]
pub struct Secondary {
    metadata: Metadata,
    layout: Layout,
    map: Bitmap,
    /// What it holds from before it was created.
    former: Bitmap,
    /// This node was the last time in the primary role.
    was_primary: bool,
    /// Its disk said so far that its map says all that the other node may lack (C1 (d)).
    map_was_complete: bool,
    version: u8,
    ext: Extensions,
    host: Host,
    /// The primary's address, as hast.conf has it.
    peer: String,
    hello: SecondHello,
    /// What this node had stored of its connections when the primary came.
    past: Past,
    /// The generation of this connection, if it is stored; else 0 (`crate::connection`).
    connection: u64,
    /// What the answer will say, once what has to be durable before it is.
    reply: admission::Reply,
    saving: Option<(Save, Saving)>,
    /// What a failed save may have left on disk in part.
    unsure: Vec<Part>,
    durable: Durable<Purpose>,
    /// A flush failed, whatever it was for: the primary's next one does.
    flush_failed: Option<Errno>,
    /// Answers with an error that the primary was sent on this connection.
    failures: u64,
    /// Something that the primary relies on may be gone.
    doubt: doubt::Doubt,
    /// ... and was to be written down a second time.
    doubted_again: bool,
    /// The generation before this connection's is forgotten, and the disk does not say so yet (G1).
    forgets_before: bool,
    /// The first flush has failed: this worker ends.
    unflushable: bool,
    /// The map is being cleared.
    clearing: bool,
    /// ... while the metadata was being written.
    doubtful: Option<Errno>,
    /// The map is being written for this mark.
    marking: Option<u64>,
    /// On this connection the primary said that its own copy is out of date: its map cannot be relied on, and ours is kept.
    told_stale: bool,
    /// The mark for which localcnt has risen, while that is not durable.
    counting: Option<u64>,
    /// Marks that wait for an earlier one to be written down.
    marks: VecDeque<Mark>,
    now: Duration,
    phase: Phase,
    actions: VecDeque<Action>,
    next_op: u64,
    ops: BTreeMap<OpId, Purpose>,
    next_key: u64,
    ranges: RangeQueue,
    requests: BTreeMap<Key, request::Request>,
    /// The writes and deletes among them.
    writes: BTreeSet<Key>,
    /// Flushes that wait for writes before them, the oldest first.
    flushes: VecDeque<Key>,
    /// Kept under an original (M5).
    own: Option<own_map::OwnMap>,
    recopied: recopied::Recopied,
    /// Silence of the primary that ends the connection.
    patience: Duration,
    /// When the primary was last sent anything on the connection for replies.
    last_told: Duration,
    bytes_in_flight: u64,
    /// The oldest request or mark that is not answered, if the primary is told of it (T7).
    oldest: Option<Oldest>,
    /// Writes were stored since the last flush.
    unflushed: bool,
    last_received: Duration,
    statistics: Statistics,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// The answer waits for something to be durable.
    Admitting,
    /// Answered; the primary has asked for nothing yet.
    Answered,
    /// The primary's requests are carried out.
    Serving,
    /// No more requests; what was accepted is stored, flushed, and then it is over (L14).
    Ending { code: i32, flushing: bool, deadline: Duration },
    /// Over.
    Ended,
}

/// The oldest request or mark in hand.
#[derive(Clone, Copy, Debug)]
struct Oldest {
    seq: u64,
    /// When it became the oldest.
    since: Duration,
    /// When the primary last had reason to know that it is being worked on.
    told: Duration,
}

impl Oldest {
    /// When the primary is to be told again, if it is.
    fn due(&self) -> Option<Duration> {
        let next = self.told + BUSY_EVERY;
        (next <= self.since + DISK_PATIENCE).then_some(next)
    }
}

/// Why the metadata is being written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Save {
    /// The role, before a full map that must not look like writes of our own.
    Role,
    /// The primary's resuid.
    Adoption,
    /// The number of this connection (`parting`).
    Parting,
    /// The answer to this mark.
    Mark(u64),
    /// That something may be gone (B1).
    Doubt,
    /// That the primary has stored this connection's generation (G1).
    Met,
    /// That the primary may have something that this node has not (A7).
    Suspicion,
    /// That an original has copied what was stale here (L3).
    Recopied,
}

/// Why a disk operation was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Purpose {
    StartFlush,
    Metadata,
    FullMap,
    FullMapFlush,
    ClearMap,
    MarkMap,
    MarkMapFlush,
    OwnMap,
    OwnMapFlush,
    OwnFlush,
    Request(Key),
    LastFlush,
    /// Whoever waits for one.
    DiskFlush,
    /// What a failed flush may have dropped is read, to be written again.
    DroppedRead,
    DroppedWrite,
}

impl Secondary {
    /// A secondary that is about to answer a primary.
    #[must_use]
    pub fn new(start: SecondaryStart, now: Duration) -> Secondary {
        let SecondaryStart { settings, mut metadata, layout, map, version, ext, host, hello, unsure, former } =
            start;
        let was_primary = metadata.prevrole == Role::Primary;
        metadata.prevrole = Role::Secondary;
        let map_was_complete = std::mem::take(&mut metadata.extension.map_complete);
        let extents = u32::try_from(layout.nextents()).unwrap_or(u32::MAX);
        // M5: a primary of ours keeps the map for both nodes.
        let patience = if ext.contains(Extensions::ALIVE) { settings.peer_timeout } else { ORIGINAL_SILENCE };
        let own = (!ext.is_ours() && keeps(Rule::M5)).then(|| {
            let map = Activemap::new(extents, metadata.keepdirty, layout.sectorsize(), &map);
            own_map::OwnMap::new(map, settings.metaflush)
        });
        let mut secondary = Secondary {
            past: Past::of(&metadata.extension),
            map: Bitmap::from_bytes(extents, &map),
            former,
            was_primary,
            map_was_complete,
            metadata,
            layout,
            version,
            ext,
            host,
            peer: settings.peer,
            hello,
            connection: 0,
            reply: admission::Reply::default(),
            saving: None,
            unsure: Vec::new(),
            durable: Durable::new(extents),
            flush_failed: None,
            failures: 0,
            doubt: doubt::Doubt::default(),
            doubted_again: false,
            forgets_before: false,
            unflushable: false,
            clearing: false,
            doubtful: None,
            marking: None,
            told_stale: false,
            counting: None,
            marks: VecDeque::new(),
            now,
            phase: Phase::Admitting,
            actions: VecDeque::new(),
            next_op: 0,
            ops: BTreeMap::new(),
            next_key: 0,
            ranges: RangeQueue::new(),
            requests: BTreeMap::new(),
            writes: BTreeSet::new(),
            flushes: VecDeque::new(),
            own,
            recopied: recopied::Recopied::new(extents),
            patience,
            last_told: now,
            bytes_in_flight: 0,
            oldest: None,
            unflushed: false,
            last_received: now,
            statistics: Statistics::default(),
        };
        if unsure {
            secondary.doubt();
        }
        // What an earlier worker left in caches is made durable before it is relied on.
        secondary.flush_disk(Purpose::StartFlush);
        secondary
    }

    /// A frame has come from the primary, its payload already decoded.
    pub fn handle_frame(&mut self, now: Duration, frame: Frame) {
        self.now = now;
        self.last_received = now;
        if matches!(self.phase, Phase::Answered | Phase::Serving) {
            self.take_frame(frame);
        } else if self.phase == Phase::Admitting {
            self.lose("The primary did not wait for the answer to its handshake");
        }
        self.settle();
    }

    /// Bytes have come from the primary that are no whole frame yet. It may take a while until they are; the
    /// primary is told that they come.
    pub fn handle_heard(&mut self, now: Duration) {
        self.now = now;
        self.last_received = now;
        if self.last_told + BUSY_EVERY <= now {
            self.tell_alive();
        }
    }

    /// Nothing is read from the primary just now: what cannot be heard is no silence.
    pub fn handle_deaf(&mut self, now: Duration) {
        self.now = now;
        self.last_received = now;
    }

    /// A disk operation has ended.
    pub fn handle_disk(&mut self, now: Duration, id: OpId, result: DiskResult) {
        self.now = now;
        if !self.wants_input() {
            self.last_received = now; // nobody listened: silence begins now
        }
        let Some(purpose) = self.ops.remove(&id) else { return };
        match purpose {
            Purpose::DiskFlush => self.disk_flushed(result),
            Purpose::DroppedRead => self.dropped_read(result),
            Purpose::DroppedWrite => self.dropped_ended(result.is_ok()),
            purpose => self.disk_ended(purpose, result),
        }
        self.settle();
    }

    /// An operation for this purpose, or the flush that it waited for, has ended.
    fn disk_ended(&mut self, purpose: Purpose, result: DiskResult) {
        match purpose {
            Purpose::StartFlush => self.flushed_at_start(result),
            Purpose::Metadata => self.metadata_advanced(result),
            Purpose::FullMap => self.full_map_written(result),
            Purpose::FullMapFlush => self.full_map_flushed(result),
            Purpose::MarkMap => self.mark_map_written(result),
            Purpose::MarkMapFlush => self.mark_map_flushed(result),
            Purpose::ClearMap => {
                self.clearing = false;
                if let Err(error) = result {
                    log::error!("Unable to clear the activemap: {error}.");
                    self.statistics.write_errors += 1;
                }
                self.next_mark();
            }
            Purpose::OwnMap => self.own_map_written(result),
            Purpose::OwnMapFlush => self.own_map_flushed(result),
            Purpose::OwnFlush => self.own_flush_ended(result),
            Purpose::Request(key) => self.stored(key, result),
            Purpose::LastFlush => {
                let Phase::Ending { code, deadline, .. } = self.phase else { return };
                match result {
                    Err(error) if error != Errno::EOPNOTSUPP => {
                        log::error!("Unable to flush the provider: {error}.");
                        self.unflushed = self.has_dropped();
                        self.phase = Phase::Ending { code, flushing: false, deadline };
                    }
                    _ => self.phase = Phase::Ending { code, flushing: false, deadline },
                }
            }
            Purpose::DiskFlush | Purpose::DroppedRead | Purpose::DroppedWrite => {}
        }
    }

    /// Either connection has ended, broke, or brought something that is no message.
    pub fn handle_lost(&mut self, now: Duration, reason: &str) {
        self.now = now;
        // A primary that leaves its role ends the connection as well.
        self.lose_telling(log::Level::Warn, Loss::from(reason));
        self.settle();
    }

    /// The worker is to end: another role, another primary, or the daemon stops.
    pub fn handle_stop(&mut self, now: Duration) {
        self.now = now;
        self.begin_end(0);
        self.settle();
    }

    /// Time has passed: the moment that [`Secondary::poll_timeout`] gave is here.
    pub fn handle_timeout(&mut self, now: Duration) {
        self.now = now;
        match self.phase {
            Phase::Answered | Phase::Serving
                if self.last_received + self.patience <= now && self.wants_input() =>
            {
                let seconds = self.patience.as_secs();
                self.lose(format!("The primary has been silent for {seconds} seconds"));
            }
            Phase::Ending { code, deadline, .. } if deadline <= now => {
                log::error!("The disk did not answer; {} requests are given up.", self.requests.len());
                self.end(code);
            }
            _ => {}
        }
        self.tell_busy();
        self.settle();
    }

    /// When to call [`Secondary::handle_timeout`], on the clock of `now`.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Duration> {
        let again = self.durable.deadline(self.now);
        match self.phase {
            Phase::Answered | Phase::Serving => {
                // While nothing more is taken in, silence says nothing.
                let silence = self.wants_input().then(|| self.last_received + self.patience);
                let busy = self.oldest.as_ref().and_then(Oldest::due);
                [silence, busy, again, self.own_flush_deadline()].into_iter().flatten().min()
            }
            Phase::Ending { deadline, .. } => Some(again.map_or(deadline, |again| again.min(deadline))),
            Phase::Admitting | Phase::Ended => None,
        }
    }

    /// The next thing to do.
    pub fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// Whether another frame may be read: what is under way is bounded.
    #[must_use]
    pub fn wants_input(&self) -> bool {
        self.requests.len().saturating_add(self.marks.len()) < REQUESTS && self.bytes_in_flight < BYTES
    }

    /// What `hastctl status` and `list` show.
    #[must_use]
    pub fn status(&self) -> WorkerStatus {
        let mut statistics = self.statistics;
        statistics.idle_queue = 255_u64.saturating_sub(self.requests.len() as u64);
        statistics.local_queue = self.requests.len() as u64;
        WorkerStatus {
            complete: matches!(self.phase, Phase::Answered | Phase::Serving),
            dirty: 0,
            extentsize: self.layout.extentsize(),
            keepdirty: 0,
            statistics,
            facts: Facts {
                inconsistent_since: self.metadata.extension.mark.as_ref().map(|mark| mark.since),
                inconsistent_by: self
                    .metadata
                    .extension
                    .mark
                    .as_ref()
                    .map(|mark| mark.by.clone())
                    .unwrap_or_default(),
                possibly_behind: self.metadata.extension.possibly_behind,
                peer_is_original: Some(!self.ext.is_ours()),
                ..Facts::default()
            },
        }
    }

    fn lose(&mut self, loss: impl Into<Loss>) {
        self.lose_telling(log::Level::Error, loss.into());
    }

    fn lose_telling(&mut self, level: log::Level, loss: Loss) {
        if matches!(self.phase, Phase::Ending { .. } | Phase::Ended) {
            return;
        }
        log::log!(level, "{}", loss.reason);
        self.tell_connection(&loss);
        if self.phase != Phase::Admitting {
            self.actions.push_back(Action::Event(Event::Disconnect));
        }
        self.begin_end(EXIT_DISCONNECTED);
    }

    /// Tells those who ask that there is no connection, and why.
    fn tell_connection(&mut self, loss: &Loss) {
        let (state, reason) = (loss.state, loss.told());
        self.actions.push_back(Action::Connection { state, reason });
    }

    /// L14: nothing more is accepted; what was is carried out and flushed first.
    fn begin_end(&mut self, code: i32) {
        if matches!(self.phase, Phase::Ending { .. } | Phase::Ended) {
            return;
        }
        self.actions.push_back(Action::Close);
        if !keeps(Rule::L14) {
            return self.end(code);
        }
        self.phase = Phase::Ending { code, flushing: false, deadline: self.now + DISK_PATIENCE };
    }

    fn end(&mut self, code: i32) {
        let code = if self.doubt == doubt::Doubt::Settled { code } else { EXIT_PROVIDER };
        self.phase = Phase::Ended;
        self.actions.push_back(Action::Exit(code));
    }

    /// Tells the primary, if it understands, that the disk has not forgotten what it was asked first.
    fn tell_busy(&mut self) {
        let Some(oldest) =
            self.oldest.as_mut().filter(|oldest| oldest.due().is_some_and(|at| at <= self.now))
        else {
            return;
        };
        oldest.told = self.now;
        let message = Message::Busy(oldest.seq);
        self.send(Side::In, message);
    }

    /// Tells the primary, if it understands, that it is heard.
    fn tell_alive(&mut self) {
        if self.ext.contains(Extensions::ALIVE) && matches!(self.phase, Phase::Answered | Phase::Serving) {
            self.send(Side::In, Message::Alive);
        }
    }

    /// Looks what is the oldest in hand.
    fn find_oldest(&mut self) {
        if !self.ext.contains(Extensions::BUSY) {
            return;
        }
        let seq = self.requests.first_key_value().map(|(_, request)| request.seq());
        let seq = seq.into_iter().chain(self.oldest_mark()).min();
        if seq != self.oldest.map(|oldest| oldest.seq) {
            self.oldest = seq.map(|seq| Oldest { seq, since: self.now, told: self.now });
        }
    }

    fn settle(&mut self) {
        if self.phase == Phase::Serving {
            self.kick_own_flush();
        }
        self.find_oldest();
        self.kick_dropped();
        self.kick_doubt();
        self.kick_recopied();
        self.kick_met();
        let Phase::Ending { code, flushing: false, deadline } = self.phase else { return };
        if !self.requests.is_empty() || !self.ops.is_empty() || self.has_dropped() {
            return;
        }
        if std::mem::take(&mut self.unflushed) {
            self.phase = Phase::Ending { code, flushing: true, deadline };
            self.flush_disk(Purpose::LastFlush);
        } else if !self.writes_doubt_again() {
            self.end(code);
        }
    }

    /// Writes the metadata as it is now, for `why`.
    fn save(&mut self, why: Save) {
        self.forgets_before = false; // all that is to be said goes with it
        let extension = &mut self.metadata.extension;
        extension.generation = extension.generation.saturating_add(1);
        extension.boot = self.host.boot;
        let unsure = std::mem::take(&mut self.unsure);
        let (saving, next) = Saving::begin(&self.metadata, unsure, self.layout.sectorsize(), false);
        self.doubtful = None;
        self.saving = Some((why, saving));
        self.save_next(next);
    }

    fn metadata_advanced(&mut self, result: DiskResult) {
        if let Some((_, saving)) = &mut self.saving {
            let next = saving.advance(self.doubtful.take().map_or(result, Err));
            self.save_next(next);
        }
    }

    fn save_next(&mut self, next: Next) {
        let result = match next {
            Next::Disk(DiskOp::Flush) => return self.flush_disk(Purpose::Metadata),
            Next::Disk(op) => return self.disk(Purpose::Metadata, op),
            Next::Durable => Ok(()),
            Next::Failed(error) => Err(error),
        };
        let Some((why, saving)) = self.saving.take() else { return };
        match result {
            Ok(()) => self.map_was_complete = false,
            Err(_) => self.unsure = saving.unsure(),
        }
        match why {
            Save::Role => self.role_saved(result),
            Save::Adoption => self.adopted(result),
            Save::Parting => self.parting_saved(result),
            Save::Mark(seq) => self.mark_saved(seq, result),
            Save::Doubt => self.doubt_saved(result),
            Save::Met => self.next_mark(), // if not now, with the next mark
            Save::Suspicion => self.suspicion_saved(result),
            Save::Recopied => self.recopied_saved(result),
        }
    }

    fn disk(&mut self, purpose: Purpose, op: DiskOp) {
        self.next_op += 1;
        let id = OpId(self.next_op);
        self.ops.insert(id, purpose);
        self.actions.push_back(Action::Disk { id, op });
    }

    fn send(&mut self, side: Side, message: Message) {
        if !matches!(self.phase, Phase::Ending { .. } | Phase::Ended) {
            if side == Side::In {
                self.last_told = self.now;
            }
            self.failures += u64::from(matches!(&message, Message::Reply(Reply { error: Some(_), .. })));
            self.actions.push_back(Action::Send { side, version: self.version, message });
        }
    }
}
