//! The primary: owns the device's requests, the map, the counts and the link to the secondary.
//!
//! | file | owns |
//! |---|---|
//! | `request` | a device request from its arrival to its answers; reads to the end |
//! | `request::write` | writes and deletes from their answers to their completion, in every mode |
//! | `storage` | map writes (grouped) and metadata writes: what must be durable before what |
//! | `flush` | flushes of clients and of the map's housekeeping, one at a time, shared |
//! | `dropped` | the local disk's flushes, and what a failed one may have dropped |
//! | `turning` | extents that are about to be right on the secondary alone |
//! | `detached` | a disk that is given up as a whole |
//! | `link` | connecting, the handshake, loss |
//! | `silence` | keepalives, and a secondary that says nothing |
//! | `sync` | copying what differs, and equalising the counts when nothing does |
//! | `invariants` | what holds after every event |
//! | `window` | how much of that is under way at a time |

mod detached;
mod dropped;
mod flush;
mod invariants;
mod link;
mod request;
mod silence;
mod storage;
mod stuck;
mod sync;
mod turning;
mod window;

pub use turning::Turning;

use core::time::Duration;
use std::collections::{BTreeMap, VecDeque};

use hast_format::activemap::Activemap;
use hast_format::layout::Layout;
use hast_format::metadata::{Metadata, Role};
use hast_net::buffer::Buffer;
use hast_net::control::{Divergence, Facts, Statistics, WorkerStatus};
use hast_net::errno::Errno;

use crate::connection::has_lost;
use crate::counts::Counts;
use crate::durable::Durable;
use crate::ranges::{Key, RangeQueue};
use crate::rule::{Rule, keeps};
use crate::types::{Action, DiskOp, DiskResult, Host, Op, OpId, RequestId, Settings};

/// Exit status of a planned end that leaves a secondary behind which does not know it (C4).
pub const EXIT_PEER_BEHIND: i32 = 69;
/// Exit status of a primary that could not write down what its disk misses: without the secondary that is not known any
/// more, and the driver has to remember that the data is out of date (S1).
pub const EXIT_STALE: i32 = 70;
/// Exit status of a primary whose disk has failed a flush, so that it may have dropped what this node had acknowledged, without
/// a word of that on disk: the driver has to remember that the data may be out of date (B1).
pub const EXIT_LOST: i32 = 74;
/// Requests that may be in flight at once; the idle queue of the status counts down from it.
const SLOTS: usize = 255;
/// Requests under way from which on no more are wanted: many, because in mode async a long link holds what the
/// device has forgotten, but fewer than a secondary of ours takes in.
const REQUESTS: usize = 4096;
/// The same for an original, which takes in 256, those of a synchronisation among them.
const REQUESTS_OF_ORIGINAL: usize = 256 - window::MOST_OF_ORIGINAL;
/// Bytes of requests under way from which on no more are wanted.
const BYTES: u64 = 32 << 20;

/// What a primary starts from.
#[derive(Clone, Debug)]
pub struct PrimaryStart {
    /// From hast.conf.
    pub settings: Settings,
    /// As read from the provider.
    pub metadata: Metadata,
    /// Checked against the provider.
    pub layout: Layout,
    /// The on-disk map, [`Layout::map_bytes`] long.
    pub map: Vec<u8>,
    /// A random number other than 0, should a resource id have to be drawn.
    pub random: u64,
    /// What this node knows of itself.
    pub host: Host,
    /// The operator wants this copy, whatever the metadata says of it (`role -f primary`).
    pub forced: bool,
    /// The worker before this one has given the disk up ([`Action::Detached`]): `metadata` is what it has left, and
    /// nothing is asked of the disk. Such a node serves while a secondary is connected that was told so.
    pub detached: bool,
}

/// One resource in the primary role.
#[derive(Debug)]
pub struct Primary {
    settings: Settings,
    layout: Layout,
    metadata: Metadata,
    random: u64,
    host: Host,
    forced: bool,
    start_save: u64,
    begun: bool,
    now: Duration,
    phase: Phase,
    actions: VecDeque<Action>,
    next_op: u64,
    ops: BTreeMap<OpId, Purpose>,
    next_key: u64,
    ranges: RangeQueue,
    requests: BTreeMap<Key, request::Request>,
    waiting: request::Waiting,
    /// Bytes of memory that `requests` hold.
    bytes: u64,
    /// Requests that wait until the first attempt to connect has ended, or a drained link is back.
    held: VecDeque<(RequestId, Op)>,
    map: Activemap,
    map_io: storage::MapIo,
    meta: storage::MetaIo,
    flush: flush::Flush,
    durable: Durable<Purpose>,
    link: link::Link,
    sync: sync::Sync,
    turning: turning::Turning,
    detachment: detached::Detachment,
    /// The save that made this disconnected period's rise of localcnt durable, or will (C1).
    counted: Option<u64>,
    statistics: Statistics,
    /// When the device last asked for something.
    last_request: Option<Duration>,
    /// The map and the stale extents say all that the secondary may lack: this node has been connected as the primary since
    /// it took over. What the former primary had not flushed they do not say (C1 (d)).
    map_complete: bool,
    /// During a planned end: the save that is to record what is stale here.
    recording: Option<u64>,
}

/// What the primary is about to do with the device's requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// What lies on the disk is being made durable before anything relies on it.
    Starting,
    /// Requests wait for the first attempt to connect to end.
    Connecting,
    /// Requests are served.
    Serving,
    /// No new requests; those in flight end, both nodes flush.
    Draining(Drain),
    /// Nothing any more.
    Ended,
}

/// A planned end of the connection (C4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Drain {
    after: AfterDrain,
    deadline: Duration,
    /// Both nodes have been asked to flush.
    flushed: bool,
    /// The secondary was there when it began: what is not complete on both nodes by the end fails, rather
    /// than being complete on one.
    connected: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum AfterDrain {
    Exit,
    Reconnect,
}

/// Why a disk operation was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Purpose {
    StartFlush,
    Request(Key),
    Map,
    MapFlush,
    Metadata,
    /// Whoever waits for one.
    DiskFlush,
    Flush,
    SyncRead(Key),
    SyncWrite(Key),
    /// What a failed flush may have dropped is read, to be written again.
    DroppedRead,
    DroppedWrite,
}

impl Primary {
    /// A primary that has just got its provider. It connects by itself; requests may come at once.
    #[must_use]
    pub fn new(start: PrimaryStart, now: Duration) -> Primary {
        let PrimaryStart { settings, mut metadata, layout, map, random, host, forced, detached } = start;
        let counts = Counts { local: metadata.localcnt, remote: metadata.remotecnt };
        let counts = counts.at_start(metadata.resuid);
        (metadata.localcnt, metadata.remotecnt) = (counts.local, counts.remote);
        metadata.prevrole = Role::Primary;
        let extension = &mut metadata.extension;
        if forced && (extension.mark.is_some() || extension.target || !extension.stale.is_empty()) {
            log::warn!("This copy is used as it is, though it was out of date.");
            // Nobody can tell whether the other node's disk was set back (G1).
            extension.full_sync_owed |= has_lost(extension) && keeps(Rule::G1);
            (extension.mark, extension.target, extension.unsure) = (None, false, false);
            extension.stale.clear();
        }
        let extension = &mut metadata.extension;
        extension.target |= detached;
        if std::mem::take(&mut extension.given_up) != 0 {
            extension.parted = 0; // it will be another resource
        }
        // Without metaflush a loss of power may have taken some of the map.
        let map_complete = extension.map_complete && settings.metaflush;
        let extents = u32::try_from(layout.nextents()).unwrap_or(u32::MAX);
        let mut primary = Primary {
            link: link::Link::new(&settings, now),
            sync: sync::Sync::new(extents, &metadata.extension, &map),
            turning: turning::Turning::new(extents),
            detachment: detached::Detachment::default(),
            map: Activemap::new(extents, metadata.keepdirty, layout.sectorsize(), &map),
            map_io: storage::MapIo::new(settings.metaflush),
            meta: storage::MetaIo::new(&metadata.extension, metadata.remotecnt),
            flush: flush::Flush::default(),
            durable: Durable::new(extents),
            settings,
            layout,
            metadata,
            random: random.max(1),
            host,
            forced,
            start_save: 0,
            begun: false,
            now,
            phase: Phase::Starting,
            actions: VecDeque::new(),
            next_op: 0,
            ops: BTreeMap::new(),
            next_key: 0,
            ranges: RangeQueue::new(),
            requests: BTreeMap::new(),
            waiting: request::Waiting::default(),
            bytes: 0,
            held: VecDeque::new(),
            counted: None,
            statistics: Statistics::default(),
            last_request: None,
            map_complete,
            recording: None,
        };
        if detached {
            primary.detachment = detached::Detachment::resumed(now, counts);
            primary.actions.push_back(Action::DirectReads(false));
            primary.resume_detached();
            return primary;
        }
        let stale: Vec<u32> = primary.sync.stale.iter().collect();
        for extent in stale {
            primary.map.mark_dirty(extent);
        }
        primary.actions.push_back(Action::DirectReads(false));
        primary.flush_disk(Purpose::StartFlush);
        primary
    }

    /// Whether the device may hand over another request: what is under way is bounded, be it completed (mode
    /// async) or not.
    #[must_use]
    pub fn wants_requests(&self) -> bool {
        let original = self.link.is_up() && !self.link.is_ours();
        let most = if original { REQUESTS_OF_ORIGINAL } else { REQUESTS };
        self.requests.len().saturating_add(self.held.len()) < most && self.bytes < BYTES
    }

    /// A request of the device, when they are [wanted](Primary::wants_requests). Every request is completed exactly once, unless the worker ends first.
    pub fn handle_request(&mut self, now: Duration, id: RequestId, op: Op) {
        self.now = now;
        self.last_request = Some(now);
        self.take_request(id, op);
        self.settle();
    }

    /// A disk operation has ended.
    pub fn handle_disk(&mut self, now: Duration, id: OpId, result: DiskResult) {
        self.now = now;
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
            Purpose::StartFlush => self.started(result),
            Purpose::Request(key) => self.local_answered(key, result),
            Purpose::Map => self.map_written(result),
            Purpose::MapFlush => self.map_flushed(result),
            Purpose::Metadata => self.metadata_advanced(result),
            Purpose::Flush => self.locally_flushed(result),
            Purpose::SyncRead(key) => self.block_read_locally(key, result),
            Purpose::SyncWrite(key) => self.block_written_locally(key, result),
            Purpose::DiskFlush | Purpose::DroppedRead | Purpose::DroppedWrite => {}
        }
    }

    /// Time has passed: the moment that [`Primary::poll_timeout`] gave is here.
    pub fn handle_timeout(&mut self, now: Duration) {
        self.now = now;
        self.link_timeout();
        self.parked_timeout();
        self.map_timeout();
        self.metadata_timeout();
        self.flush_timeout();
        self.sync_timeout();
        self.detachment_timeout();
        if let Phase::Draining(drain) = self.phase
            && now >= drain.deadline
        {
            self.drain_timeout();
        }
        self.settle();
    }

    /// hast.conf was read again. With `reconnect` the addresses have changed: what is in flight ends on
    /// both nodes first (C4), then the connections are made anew.
    pub fn handle_reload(&mut self, now: Duration, settings: Settings, reconnect: bool) {
        self.now = now;
        self.set_metaflush(settings.metaflush);
        self.settings = settings;
        if reconnect && matches!(self.phase, Phase::Connecting | Phase::Serving) {
            self.drain(AfterDrain::Reconnect);
        }
        self.settle();
    }

    /// The worker is to end: take no new requests, finish those in flight on both nodes, flush both, then
    /// exit (C4). Bounded by the resource's `timeout`.
    pub fn handle_stop(&mut self, now: Duration) {
        self.now = now;
        match self.phase {
            Phase::Ended | Phase::Draining(Drain { after: AfterDrain::Exit, .. }) => {}
            _ => self.drain(AfterDrain::Exit),
        }
        self.settle();
    }

    /// The next thing to do.
    pub fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// When to call [`Primary::handle_timeout`], on the clock of `now`.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Duration> {
        let drain = match self.phase {
            Phase::Draining(drain) => Some(drain.deadline),
            _ => None,
        };
        let others = [
            self.parked_deadline(),
            self.map_deadline(),
            self.metadata_deadline(),
            self.flush_deadline(),
            self.flush.paused_until(self.now),
            self.sync_deadline(),
            self.detachment.deadline(),
            self.durable.deadline(self.now),
        ];
        [self.link_deadline(), drain].into_iter().chain(others).flatten().min()
    }

    /// What `hastctl status` and `list` show.
    #[must_use]
    pub fn status(&self) -> WorkerStatus {
        let busy = self.requests.len().saturating_add(self.held.len());
        let mut statistics = self.statistics;
        statistics.idle_queue = SLOTS.saturating_sub(busy) as u64;
        statistics.local_queue =
            self.ops.values().filter(|purpose| matches!(purpose, Purpose::Request(_))).count() as u64;
        statistics.recv_queue = self.link.outstanding_requests() as u64;
        WorkerStatus {
            complete: self.link.is_up(),
            dirty: u64::from(self.map.dirty()).saturating_mul(u64::from(self.layout.extentsize())),
            extentsize: self.layout.extentsize(),
            keepdirty: self.metadata.keepdirty,
            statistics,
            facts: self.facts(),
        }
    }

    fn facts(&self) -> Facts {
        let mark = self.metadata.extension.mark.as_ref();
        let bytes = |extents: u32| u64::from(extents).saturating_mul(u64::from(self.layout.extentsize()));
        Facts {
            inconsistent_since: mark.map(|mark| mark.since),
            inconsistent_by: mark.map(|mark| mark.by.clone()).unwrap_or_default(),
            target: self.sync.target,
            stale_bytes: bytes(self.sync.stale.count()),
            detached: self.detachment.is_detached()
                || self.sync.unable_to_record
                || self.sync.stale.count() == self.sync.stale.len(),
            split_brain: self.link.is_split(),
            divergence: self.divergence(),
            peer_is_original: self.link.is_up().then(|| !self.link.is_ours()),
            synchronising: self.sync.is_open(),
            to_synchronise_bytes: bytes(self.map.to_synchronise().count()),
            ..Facts::default()
        }
    }

    /// How far the copies are apart, if both nodes have written alone and the other one has sent its map.
    fn divergence(&self) -> Option<Divergence> {
        let apart = self.link.apart()?;
        let mut here = self.map.to_synchronise().clone();
        here.union(&self.sync.stale);
        Some(apart.divergence(&here, self.metadata.extension.parted, self.layout.extentsize()))
    }

    /// Whether the nodes are connected, nothing is left to synchronise and the counts are equal.
    #[must_use]
    pub fn is_in_step(&self) -> bool {
        self.link.is_up() && !self.sync.is_open()
    }

    /// Whether this primary carries requests out: it has met the other node, or has tried once in vain.
    #[must_use]
    pub fn is_serving(&self) -> bool {
        self.phase == Phase::Serving
    }

    /// Whether a read of this range would now be answered by the local disk, nothing of it is being written, and a flush has
    /// covered what was: what the file system says of it is what a client may be told (R1). Of what no flush has covered it
    /// may say that it is a hole although its cache has something, if it could not write that out.
    #[must_use]
    pub fn reads_here(&self, offset: u64, length: u64) -> bool {
        let range = offset..offset.saturating_add(length);
        let trusted = self.is_serving() && !self.detachment.is_detached();
        let right = |extent| {
            !self.sync.stale.contains(extent)
                && !self.turning.contains(extent)
                && self.durable.is_durable(extent)
        };
        trusted
            && self.layout.check_range(offset, length).is_ok()
            && !self.rests_on_secondary()
            && self.layout.extents_of(offset, length).all(right)
            && !self.ranges.is_written(range)
    }

    /// Whether the data here is out of date and is being made up for, or has to be, from the other node.
    #[must_use]
    pub fn is_target(&self) -> bool {
        self.sync.target
    }

    /// Whether what this primary starts from is durable: that it is the primary, and what was forced.
    #[must_use]
    pub fn has_begun(&self) -> bool {
        self.begun
    }

    /// The longest payload the secondary may send now, in bytes, once decoded: a map during the handshake,
    /// the answer to a read later.
    #[must_use]
    pub fn payload_limit(&self) -> u32 {
        let map = u32::try_from(self.layout.map_bytes()).unwrap_or(u32::MAX);
        // The other node's provider may be larger than ours, and its map with it.
        map.saturating_mul(2).max(1 << 20)
    }

    fn started(&mut self, result: DiskResult) {
        match result {
            Ok(_) => {}
            Err(Errno::EOPNOTSUPP) => self.flush.no_local_cache(),
            Err(error) => {
                log::error!("Unable to flush the provider: {error}. The resource cannot be served safely.");
                self.exit(EXIT_LOST);
                return;
            }
        }
        let forget = !self.settings.metaflush && self.forget_the_map();
        if self.metadata.resuid == 0 || self.forced || forget {
            self.start_save = self.save_metadata();
        }
        self.begin_when_saved();
    }

    /// The first attempt to connect begins once the metadata says that this node is the primary, and what was
    /// forced: nothing may be built on either before (L20).
    fn begin_when_saved(&mut self) {
        if self.phase != Phase::Starting || self.durable.is_flushing(Purpose::StartFlush) {
            return; // told to stop meanwhile, or not so far yet
        }
        if self.meta.is_durable(self.start_save) {
            self.begun = true;
            self.phase = Phase::Connecting;
            self.connect();
        }
    }

    /// Serves what has waited so far.
    fn serve(&mut self) {
        if self.phase == Phase::Connecting {
            self.phase = Phase::Serving;
            while let Some((id, op)) = self.held.pop_front() {
                self.admit(id, op);
            }
        }
    }

    fn drain(&mut self, after: AfterDrain) {
        let deadline = self.now + self.settings.timeout;
        // A drain that begins during another one: what was to fail then still does.
        let connected =
            self.link.is_up() || matches!(self.phase, Phase::Draining(Drain { connected: true, .. }));
        self.phase = Phase::Draining(Drain { after, deadline, flushed: false, connected });
        if after == AfterDrain::Exit {
            for (id, _) in std::mem::take(&mut self.held) {
                self.complete(id, Err(Errno::ECANCELED));
            }
        }
        self.fail_parked();
        self.stop_copying();
    }

    /// The peer or the disk did not let the drain end in time: what is in flight counts as lost.
    fn drain_timeout(&mut self) {
        let Phase::Draining(drain) = self.phase else { return };
        log::warn!("Requests in flight did not end within {} seconds.", self.settings.timeout.as_secs());
        if self.link.is_connected() {
            self.lose_link("The secondary did not finish what was in flight");
        } else if drain.after == AfterDrain::Exit {
            self.exit_unfinished();
        } else {
            self.phase = Phase::Connecting;
            self.connect();
        }
    }

    /// The end cannot be waited for any longer. What a failed flush has dropped and nobody could write again is lost with
    /// this worker: that is no good end.
    fn exit_unfinished(&mut self) {
        if self.detachment.is_detached() || !self.sync.stale.is_subset(&self.sync.known) {
            return self.exit_out_of_date();
        }
        if !self.has_dropped() {
            return self.exit(0);
        }
        log::error!(
            "What was written here since the last flush could not be flushed, and may be lost: the local disk fails."
        );
        self.exit(EXIT_LOST);
    }

    /// Whether the link broke during a planned end: what only this node could complete fails, and nothing is counted for it (C4).
    fn is_cut_off(&self) -> bool {
        matches!(self.phase, Phase::Draining(Drain { connected: true, .. }))
            && !self.link.is_up()
            && keeps(Rule::C4)
    }

    /// After each event: does what has become possible.
    fn settle(&mut self) {
        if self.phase == Phase::Ended {
            return;
        }
        self.kick_metadata();
        self.kick_flush();
        self.kick_map();
        self.kick_dropped();
        self.kick_marking();
        self.fill_sync();
        self.check_synchronised();
        // The end of a flush may have found what the disk has to say: nothing else may come that would begin the save.
        self.kick_metadata();
        self.check_drained();
        self.direct_reads();
        self.check_invariants();
    }

    fn check_drained(&mut self) {
        let Phase::Draining(drain) = self.phase else { return };
        let busy = !self.requests.is_empty()
            || self.sync.is_copying()
            || self.is_equalising()
            || self.flush.is_busy()
            || self.detachment.is_busy()
            || self.meta.is_busy()
            || self.map.is_writing()
            || self.has_dropped()
            || self.durable.is_rewriting()
            || self.durable.is_flushing(Purpose::StartFlush);
        if busy {
            return;
        }
        if !drain.flushed {
            self.phase = Phase::Draining(Drain { flushed: true, ..drain });
            self.flush.ask();
            self.kick_flush();
            return self.check_drained();
        }
        if self.ends_unmarked() || (drain.after == AfterDrain::Exit && self.ends_unrecorded()) {
            return;
        }
        // Extents that are in the map only because they were written lately leave it: when the nodes meet again there is
        // nothing to copy.
        self.map.forget_recent();
        self.kick_map();
        if self.map.is_writing() {
            return;
        }
        match drain.after {
            AfterDrain::Exit if drain.connected && self.leaves_behind() => {
                log::error!(
                    "{} lacks something that was written here, and does not know it: make this node primary again and \
                     let them synchronize before that one becomes primary.",
                    self.link.name()
                );
                self.exit(EXIT_PEER_BEHIND);
            }
            // S1: our disk says nothing of what it misses.
            AfterDrain::Exit if self.detachment.is_detached() => self.exit_out_of_date(),
            AfterDrain::Exit => self.exit(0),
            AfterDrain::Reconnect => {
                self.phase = Phase::Connecting;
                self.reconnect();
            }
        }
    }

    /// L3, S1: what is stale here is written down before a planned end, on our disk or on the secondary's: this node would
    /// come back as the source of what it does not have. True if that has to be waited for; if it cannot be done, the
    /// worker has ended with an error.
    fn ends_unrecorded(&mut self) -> bool {
        if self.detachment.is_detached() || self.sync.stale.is_subset(&self.sync.known) {
            return false;
        }
        let save = match self.recording {
            Some(save) if !self.meta.is_durable(save) => save,
            _ => {
                let save = self.save_metadata();
                self.recording = Some(save);
                self.kick_metadata();
                save
            }
        };
        if self.meta.has_failed(save) && !self.leave_disk() {
            self.exit_out_of_date();
        }
        true
    }

    /// Nobody but the secondary and the driver knows from now on that this node is out of date.
    fn exit_out_of_date(&mut self) {
        log::error!("What the local disk misses could not be written down. The data here is out of date.");
        self.exit(EXIT_STALE);
    }

    fn exit(&mut self, code: i32) {
        self.phase = Phase::Ended;
        self.actions.push_back(Action::Close);
        self.actions.push_back(Action::Exit(code));
    }

    fn complete(&mut self, id: RequestId, result: DiskResult) {
        self.actions.push_back(Action::Complete { id, result });
    }

    fn disk(&mut self, purpose: Purpose, op: DiskOp) {
        self.next_op += 1;
        let id = OpId(self.next_op);
        self.ops.insert(id, purpose);
        self.actions.push_back(Action::Disk { id, op });
    }

    fn new_key(&mut self) -> Key {
        self.next_key += 1;
        Key(self.next_key)
    }

    /// Gives the bytes that `key` holds to whoever waits for them.
    fn release(&mut self, key: Key) {
        let mut ready = Vec::new();
        self.ranges.release(key, &mut ready);
        for key in ready {
            self.ready(key);
        }
    }

    /// `key` holds its bytes now.
    fn ready(&mut self, key: Key) {
        if self.requests.contains_key(&key) {
            self.request_ready(key);
        } else if self.durable.is_piece(key) {
            self.dropped_ready();
        } else {
            self.block_ready(key);
        }
    }

    /// What must hold after every event.
    fn check_invariants(&self) {
        // With a great many the look through all of them would be all that a test does.
        if cfg!(debug_assertions) && self.requests.len() <= SLOTS && self.layout.nextents() <= 4096 {
            debug_assert_eq!(self.check(), Ok(()));
        }
    }
}

/// The data of a successful read, if it is as long as was asked for.
fn exactly(data: Option<Buffer>, length: u64) -> Option<Buffer> {
    data.filter(|data| data.len() as u64 == length)
}
