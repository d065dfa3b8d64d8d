//! A node: its disk, its role, its worker, and as much of a supervisor as the engine can notice.

use core::ops::Range;
use core::time::Duration;
use std::collections::BTreeMap;

use hast_engine::{
    Action, Deletes, DiskOp, DiskResult, Host, Op, OpId, Primary, PrimaryStart, RequestId, Secondary,
    SecondaryStart, Settings, Side,
};
use hast_format::bitmap::Bitmap;
use hast_format::layout::Layout;
use hast_format::metadata::Reading;
use hast_format::metadata::{Metadata, Role};
use hast_net::Replication;
use hast_net::extensions::Extensions;
use hast_net::frame::Frame;
use hast_net::handshake::SecondHello;

use crate::clock::Clock;
use crate::disk::Disk;
use crate::faults::Fault;
use crate::network::ConnId;
use crate::original;
use crate::scenes::Scene;
use crate::world::Plan;

/// How a provider is laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shape {
    /// Bytes of a sector: 512 or 4096.
    pub(crate) sectorsize: u32,
    /// Bytes of an extent.
    extentsize: u32,
    /// Bytes of the data area.
    datasize: u64,
    /// Bytes behind it: the provider is larger than what it was created for, so much that a map sized by the
    /// provider runs into the data (L12).
    slack: u64,
}

impl Shape {
    const USUAL: Shape = Shape { sectorsize: 512, extentsize: 4096, datasize: 24 * 4096, slack: 0 };
    const ROOMY: Shape = Shape { extentsize: 512, slack: 5000 * 512, ..Shape::USUAL };

    /// What a plan asks for.
    pub(crate) fn of(plan: &Plan) -> Shape {
        let big = plan.faults.has(Fault::BigSectors);
        let sectorsize = if big { 4096 } else { 512 };
        if plan.scene == Scene::Roomy {
            Shape::ROOMY
        } else if plan.faults.has(Fault::BigExtents) {
            Shape { sectorsize, extentsize: 64 << 10, datasize: 4 * (64 << 10), slack: 0 }
        } else if plan.faults.has(Fault::ManyStale) {
            // Twice as many extents as there is room for runs of them, and some.
            let extents = if big { 80 } else { 160 };
            Shape { sectorsize, extentsize: sectorsize, datasize: extents * u64::from(sectorsize), slack: 0 }
        } else {
            Shape { sectorsize, ..Shape::USUAL }
        }
    }
}

/// An operation that a disk has been asked for.
#[derive(Debug)]
pub(crate) struct InFlight {
    pub(crate) op: DiskOp,
    /// The number of the latest write when it was asked for.
    pub(crate) covers: u64,
    /// It has been carried out already, and nobody has heard.
    pub(crate) done: Option<DiskResult>,
}

/// The engine that runs, if one does.
#[derive(Debug)]
pub(crate) enum Worker {
    None,
    Primary(Box<Primary>),
    Secondary(Box<Secondary>),
    OriginalPrimary(Box<original::Primary>),
    OriginalSecondary(Box<original::Secondary>),
}

/// One machine.
pub(crate) struct Node {
    pub(crate) disk: Disk,
    /// It runs the original.
    pub(crate) original: bool,
    keepdirty: u32,
    shape: Shape,
    /// Its time.
    pub(crate) clock: Clock,
    /// It sleeps until then, in the world's time.
    pub(crate) asleep_until: Duration,
    /// Map writes are flushed.
    pub(crate) metaflush: bool,
    /// Its disk takes up to so many milliseconds more for everything.
    pub(crate) slow: u64,
    /// One in so many of its flushes will be reported as failed, and what it was to cover is dropped when it begins;
    /// 0 is never.
    pub(crate) drops_early: u64,
    /// It has lost power since the nodes were last in step.
    pub(crate) lost_power: bool,
    /// Its last worker was primary, and ended as planned: nothing that it completed is in a cache.
    pub(crate) ended_well: bool,
    /// When its worker was told to end.
    pub(crate) told_to_end: Duration,
    /// What the operator wants it to be.
    pub(crate) role: Role,
    /// Power and daemon are there.
    pub(crate) running: bool,
    pub(crate) worker: Worker,
    /// Rises whenever a worker starts or ends: what belongs to an earlier one is ignored.
    pub(crate) incarnation: u64,
    pub(crate) in_flight: BTreeMap<OpId, InFlight>,
    /// The worker's connections, out and in.
    pub(crate) conns: [Option<ConnId>; 2],
    /// Secondary: the first step was answered with this token, on that connection.
    pub(crate) pending: Option<([u8; 16], ConnId, Extensions)>,
    /// Secondary: a primary waits for the old worker to end.
    pub(crate) waiting: Option<(ConnId, Extensions)>,
    /// The role to start once the worker has ended.
    pub(crate) next_role: Option<Role>,
    pub(crate) timer: Option<Duration>,
    /// Changes when the host starts.
    pub(crate) boot: u64,
    /// Its last secondary ended because it could not rely on the disk: the supervisor tells the next one, and does not
    /// promote it unforced (B1).
    pub(crate) unsure: bool,
    /// The worker of this primary has given its disk up: what the supervisor starts the next one with (A5).
    pub(crate) detached: Option<Metadata>,
    /// It is to be primary by force, and its metadata do not say so yet.
    pub(crate) force: bool,
    /// Its disk was given up, which nobody here remembers and that disk does not say: the other node alone knows.
    pub(crate) forgot_detachment: bool,
    /// The device may be read without asking the engine.
    pub(crate) direct_reads: bool,
}

impl Node {
    /// A node whose provider was just created.
    pub(crate) fn created(keepdirty: u32, shape: Shape) -> Result<Node, String> {
        let mut disk = Disk::new(Node::blank(keepdirty, shape)?);
        disk.unit = shape.sectorsize as usize;
        Ok(Node {
            disk,
            original: false,
            keepdirty,
            shape,
            clock: Clock::even(),
            asleep_until: Duration::ZERO,
            metaflush: true,
            slow: 0,
            drops_early: 0,
            lost_power: false,
            ended_well: false,
            told_to_end: Duration::ZERO,
            role: Role::Init,
            running: true,
            worker: Worker::None,
            incarnation: 0,
            in_flight: BTreeMap::new(),
            conns: [None; 2],
            pending: None,
            waiting: None,
            next_role: None,
            timer: None,
            boot: 1,
            unsure: false,
            detached: None,
            force: false,
            forgot_detachment: false,
            direct_reads: false,
        })
    }

    /// What a provider that was just created holds.
    fn blank(keepdirty: u32, shape: Shape) -> Result<Vec<u8>, String> {
        let Shape { sectorsize, extentsize, datasize, slack } = shape;
        let media = 4096 + u64::from(sectorsize) + datasize;
        let layout = Layout::create(media, sectorsize, extentsize).map_err(|error| error.to_string())?;
        let metadata = Metadata::created("test", &layout, keepdirty);
        let mut contents = metadata.encode().to_vec();
        let size = layout.localoff() + layout.datasize() + slack;
        contents.resize(usize::try_from(size).unwrap_or(0), 0);
        Ok(contents)
    }

    /// Metadata and map as `create` writes them; the data stay what they are.
    pub(crate) fn recreate(&mut self) -> Result<(), String> {
        let end = usize::try_from(self.layout()?.localoff()).unwrap_or(0);
        let mut contents = Node::blank(self.keepdirty, self.shape)?;
        // Another disk, that held something else.
        contents.get_mut(end..).unwrap_or_default().fill(0xee);
        let former = std::mem::replace(&mut self.disk, Disk::new(contents));
        self.disk.no_cache = former.no_cache;
        self.disk.keeps = former.keeps;
        self.disk.unit = former.unit;
        self.disk.deletes = former.deletes;
        self.disk.drops_later = former.drops_later;
        self.disk.spares_below = former.spares_below;
        self.disk.touch_all();
        Ok(())
    }

    /// Metadata as `discard` writes them.
    pub(crate) fn discard(&mut self) -> Result<(), String> {
        let metadata = self.metadata()?.discarded(0, "the other node");
        for (offset, data) in metadata.writes(self.shape.sectorsize) {
            self.disk.write_through(offset, &data);
        }
        Ok(())
    }

    pub(crate) fn set_metaflush(&mut self, metaflush: bool) {
        self.metaflush = metaflush;
        if !metaflush {
            // What `metaflush off` gives up is what a loss of power takes; nothing else is to show in it.
            self.disk.spares_below = self.layout().map_or(0, |layout| layout.localoff());
        }
    }

    /// Map writes are not flushed, or some that were not are still in the cache.
    pub(crate) fn is_map_loose(&self) -> bool {
        let Ok(layout) = self.layout() else { return false };
        let byte = |offset: u64| usize::try_from(offset).unwrap_or(0);
        !self.metaflush
            || (self.disk.spares_below > 0
                && self.disk.is_cached(byte(layout.map_offset()), byte(layout.localoff())))
    }

    pub(crate) fn shape(&self) -> Shape {
        self.shape
    }

    /// The sectors between two bytes that cannot be read, as offsets from the first of them.
    fn holes(&self, from: u64, to: u64) -> Vec<Range<usize>> {
        let size = u64::from(self.shape.sectorsize);
        let offsets = (from..to).step_by(self.shape.sectorsize as usize);
        let bad = offsets.filter(|at| !self.disk.is_readable(*at, size)).map(|at| at - from);
        let byte = |at: u64| usize::try_from(at).unwrap_or(usize::MAX);
        bad.map(|at| byte(at)..byte(at + size)).collect()
    }

    /// The metadata as a supervisor or a worker reads them, around what cannot be read.
    pub(crate) fn read_metadata(&self) -> Result<Reading, String> {
        let block = self.disk.contents();
        Metadata::read_around(block, &self.holes(0, 4096)).map_err(|error| format!("metadata: {error}"))
    }

    /// Whether a worker can start: what cannot be read of metadata and map can be written again.
    pub(crate) fn can_start(&self) -> bool {
        let (Ok(reading), Ok(layout)) = (self.read_metadata(), self.layout()) else { return false };
        let begin = layout.map_offset();
        let whole = |holes: Vec<Range<usize>>| {
            let mut holes = holes.iter().map(|hole| (begin + hole.start as u64, hole.len() as u64));
            holes.all(|(offset, length)| self.disk.is_writable(offset, length))
        };
        (reading.state.is_sound() || self.disk.is_writable(0, 4096))
            && whole(self.holes(begin, layout.localoff()))
    }

    pub(crate) fn metadata(&self) -> Result<Metadata, String> {
        Metadata::read(self.disk.contents())
            .map(|reading| reading.metadata)
            .map_err(|error| format!("metadata: {error}"))
    }

    fn host(&self) -> Host {
        let mut boot = [0; 16];
        if let Some(low) = boot.first_chunk_mut::<8>() {
            *low = self.boot.to_le_bytes();
        }
        let deletes = if self.disk.deletes { Deletes::LeaveZeros } else { Deletes::Refused };
        Host { boot, wall: 0, deletes }
    }

    pub(crate) fn layout(&self) -> Result<Layout, String> {
        let size = self.disk.contents().len() as u64;
        Layout::open(&self.metadata()?, size, self.shape.sectorsize)
            .map_err(|error| format!("layout: {error}"))
    }

    fn map(&self, layout: &Layout) -> Vec<u8> {
        let start = usize::try_from(layout.map_offset()).unwrap_or(0);
        let length = usize::try_from(layout.map_bytes()).unwrap_or(0);
        self.disk.contents().get(start..start + length).unwrap_or_default().to_vec()
    }

    /// The map as it lies on the disk.
    pub(crate) fn on_disk_map(&self) -> Option<Bitmap> {
        let layout = self.layout().ok()?;
        Some(Bitmap::from_bytes(u32::try_from(layout.nextents()).ok()?, &self.map(&layout)))
    }

    /// The bytes that clients see.
    pub(crate) fn data(&self) -> Result<&[u8], String> {
        let layout = self.layout()?;
        let start = usize::try_from(layout.localoff()).unwrap_or(0);
        let length = usize::try_from(layout.datasize()).unwrap_or(0);
        Ok(self.disk.contents().get(start..start + length).unwrap_or_default())
    }

    fn settings(&self, mode: Replication) -> Settings {
        Settings {
            replication: mode,
            timeout: Duration::from_secs(20),
            peer_timeout: Duration::from_secs(5),
            metaflush: self.metaflush,
            remote: true,
            peer: "the other node".into(),
        }
    }

    /// A metadata block that is damaged is made whole before anything else is written, and what cannot be read of the map
    /// counts as set, as hast-provider does.
    fn recover(&mut self) -> Result<(), String> {
        if self.original {
            return Ok(());
        }
        let reading = self.read_metadata()?;
        if !reading.state.is_sound() {
            for (offset, data) in reading.metadata.writes(self.shape.sectorsize) {
                self.disk.write_through(offset, &data);
            }
        }
        let layout = self.layout()?;
        for hole in self.holes(layout.map_offset(), layout.localoff()) {
            let first = hole.start as u64 * 8;
            let set = |at: u64| {
                (0..8)
                    .filter(|bit| first + at * 8 + bit < layout.nextents())
                    .fold(0, |byte, bit| byte | 1 << bit)
            };
            let bytes: Vec<u8> = (0..hole.len() as u64).map(set).collect();
            self.disk.write_through(layout.map_offset() + hole.start as u64, &bytes);
        }
        Ok(())
    }

    /// Whether its disk says that it is out of date: without force it is not promoted.
    pub(crate) fn is_out_of_date(&self) -> bool {
        self.metadata().is_ok_and(|metadata| metadata.extension.target || metadata.extension.mark.is_some())
    }

    /// Whether its disk does not say any more what is stale (A3).
    pub(crate) fn has_lost_its_area(&self) -> bool {
        let mark = self.read_metadata().ok().and_then(|reading| reading.metadata.extension.mark);
        mark.is_some_and(|mark| mark.since == 0)
    }

    /// Nobody here remembers any more that the disk is given up.
    pub(crate) fn forget_detachment(&mut self) {
        self.forgot_detachment |= self.detached.take().is_some();
    }

    /// Metadata, layout and map; nothing of a disk that is given up is read.
    fn read_for_primary(&mut self) -> Result<(Metadata, Layout, Vec<u8>), String> {
        if let Some(metadata) = self.detached.clone() {
            let size = self.disk.contents().len() as u64;
            let layout = Layout::open(&metadata, size, self.shape.sectorsize)
                .map_err(|error| format!("layout: {error}"))?;
            let map = vec![0; usize::try_from(layout.map_bytes()).unwrap_or(0)];
            return Ok((metadata, layout, map));
        }
        self.recover()?;
        let layout = self.layout()?;
        Ok((self.metadata()?, layout, self.map(&layout)))
    }

    pub(crate) fn start_primary(
        &mut self,
        now: Duration,
        mode: Replication,
        random: u64,
        forced: bool,
    ) -> Result<(), String> {
        self.unsure = false;
        let now = self.clock.shows(now);
        self.ended_well = false;
        let detached = self.detached.is_some();
        let (metadata, layout, map) = self.read_for_primary()?;
        let start = PrimaryStart {
            settings: self.settings(mode),
            metadata,
            map,
            layout,
            random,
            host: self.host(),
            forced,
            detached,
        };
        self.direct_reads = false;
        self.incarnation += 1;
        self.timer = None;
        self.worker = if self.original {
            Worker::OriginalPrimary(Box::new(original::Primary::new(start, now)))
        } else {
            Worker::Primary(Box::new(Primary::new(start, now)))
        };
        Ok(())
    }

    pub(crate) fn start_secondary(
        &mut self,
        now: Duration,
        mode: Replication,
        hello: SecondHello,
        ext: Extensions,
    ) -> Result<(), String> {
        self.recover()?;
        let now = self.clock.shows(now);
        self.ended_well = false;
        let layout = self.layout()?;
        let start = SecondaryStart {
            settings: self.settings(mode),
            metadata: self.metadata()?,
            map: self.map(&layout),
            layout,
            version: 2,
            ext,
            host: self.host(),
            hello,
            unsure: self.unsure,
            former: Bitmap::new(u32::try_from(layout.nextents()).unwrap_or(0)),
        };
        self.direct_reads = false;
        self.incarnation += 1;
        self.timer = None;
        self.worker = if self.original {
            let SecondaryStart { metadata, layout, hello, .. } = start;
            Worker::OriginalSecondary(Box::new(original::Secondary::new(metadata, layout, hello, now)))
        } else {
            Worker::Secondary(Box::new(Secondary::new(start, now)))
        };
        Ok(())
    }

    pub(crate) fn poll_action(&mut self) -> Option<Action> {
        match &mut self.worker {
            Worker::None => None,
            Worker::Primary(engine) => engine.poll_action(),
            Worker::Secondary(engine) => engine.poll_action(),
            Worker::OriginalPrimary(engine) => engine.poll_action(),
            Worker::OriginalSecondary(engine) => engine.poll_action(),
        }
    }

    /// In the world's time.
    pub(crate) fn poll_timeout(&self) -> Option<Duration> {
        let shown = match &self.worker {
            Worker::None => None,
            Worker::Primary(engine) => engine.poll_timeout(),
            Worker::Secondary(engine) => engine.poll_timeout(),
            Worker::OriginalPrimary(engine) => engine.poll_timeout(),
            Worker::OriginalSecondary(engine) => engine.poll_timeout(),
        };
        shown.map(|time| self.clock.world(time))
    }

    pub(crate) fn handle_timeout(&mut self, now: Duration) {
        let now = self.clock.shows(now);
        match &mut self.worker {
            Worker::None => {}
            Worker::Primary(engine) => engine.handle_timeout(now),
            Worker::Secondary(engine) => engine.handle_timeout(now),
            Worker::OriginalPrimary(engine) => engine.handle_timeout(now),
            Worker::OriginalSecondary(engine) => engine.handle_timeout(now),
        }
    }

    pub(crate) fn handle_disk(&mut self, now: Duration, id: OpId, result: DiskResult) {
        let now = self.clock.shows(now);
        match &mut self.worker {
            Worker::None => {}
            Worker::Primary(engine) => engine.handle_disk(now, id, result),
            Worker::Secondary(engine) => engine.handle_disk(now, id, result),
            Worker::OriginalPrimary(engine) => engine.handle_disk(now, id, result),
            Worker::OriginalSecondary(engine) => engine.handle_disk(id, result),
        }
    }

    pub(crate) fn handle_lost(&mut self, now: Duration, reason: &str) {
        let now = self.clock.shows(now);
        match &mut self.worker {
            Worker::None => {}
            Worker::Primary(engine) => engine.handle_lost(now, reason),
            Worker::Secondary(engine) => engine.handle_lost(now, reason),
            Worker::OriginalPrimary(engine) => engine.handle_lost(now),
            Worker::OriginalSecondary(engine) => engine.handle_lost(),
        }
    }

    pub(crate) fn handle_stop(&mut self, now: Duration) {
        let now = self.clock.shows(now);
        match &mut self.worker {
            Worker::None => {}
            Worker::Primary(engine) => engine.handle_stop(now),
            Worker::Secondary(engine) => engine.handle_stop(now),
            Worker::OriginalPrimary(engine) => engine.handle_stop(),
            Worker::OriginalSecondary(engine) => engine.handle_stop(),
        }
    }

    /// A connection that the primary asked for is there.
    pub(crate) fn handle_connected(&mut self, now: Duration, side: Side) {
        let now = self.clock.shows(now);
        match &mut self.worker {
            Worker::Primary(engine) => engine.handle_connected(now, side),
            Worker::OriginalPrimary(engine) => engine.handle_connected(now, side),
            _ => {}
        }
    }

    /// A connection that the primary asked for cannot be made.
    pub(crate) fn handle_connect_failed(&mut self, now: Duration, side: Side, reason: &str) {
        let now = self.clock.shows(now);
        match &mut self.worker {
            Worker::Primary(engine) => engine.handle_connect_failed(now, side, reason),
            Worker::OriginalPrimary(engine) => engine.handle_connect_failed(now),
            _ => {}
        }
    }

    /// A frame has come for the worker, not for the supervisor.
    pub(crate) fn handle_frame(&mut self, now: Duration, side: Side, frame: Frame) {
        let now = self.clock.shows(now);
        match (&mut self.worker, side) {
            (Worker::Primary(engine), _) => engine.handle_frame(now, side, frame),
            (Worker::OriginalPrimary(engine), _) => engine.handle_frame(now, side, frame),
            (Worker::Secondary(engine), Side::Out) => engine.handle_frame(now, frame),
            (Worker::OriginalSecondary(engine), Side::Out) => engine.handle_frame(now, frame),
            _ => {}
        }
    }

    /// hast.conf was read again: the peer's address has changed if it is to `reconnect`.
    pub(crate) fn handle_reload(&mut self, now: Duration, mode: Replication, reconnect: bool) {
        let (now, settings) = (self.clock.shows(now), self.settings(mode));
        if let Worker::Primary(engine) = &mut self.worker {
            engine.handle_reload(now, settings, reconnect);
        }
    }

    /// A request of the device.
    pub(crate) fn handle_request(&mut self, now: Duration, id: RequestId, op: Op) {
        let now = self.clock.shows(now);
        match &mut self.worker {
            Worker::Primary(engine) => engine.handle_request(now, id, op),
            Worker::OriginalPrimary(engine) => engine.handle_request(now, id, op),
            _ => {}
        }
    }

    /// Whether clients are told what is a hole by what the disk holds there.
    pub(crate) fn reads_here(&self, offset: u64, length: u64) -> bool {
        matches!(&self.worker, Worker::Primary(engine) if engine.reads_here(offset, length))
    }

    pub(crate) fn is_primary(&self) -> bool {
        matches!(self.worker, Worker::Primary(_) | Worker::OriginalPrimary(_))
    }

    pub(crate) fn is_secondary(&self) -> bool {
        matches!(self.worker, Worker::Secondary(_) | Worker::OriginalSecondary(_))
    }

    /// A primary that is connected.
    pub(crate) fn is_connected(&self) -> bool {
        match &self.worker {
            Worker::Primary(engine) => engine.status().complete,
            Worker::OriginalPrimary(engine) => engine.is_connected(),
            _ => false,
        }
    }

    /// A primary of ours that needs nothing of the other node.
    pub(crate) fn has_everything(&self) -> bool {
        let Worker::Primary(engine) = &self.worker else { return false };
        let facts = engine.status().facts;
        !facts.target && !facts.detached && facts.stale_bytes == 0
    }

    /// Whether nothing is dirty: no write is in flight to either node.
    pub(crate) fn is_clean(&self) -> bool {
        match &self.worker {
            Worker::Primary(engine) => engine.status().dirty == 0,
            Worker::OriginalPrimary(engine) => engine.is_clean(),
            _ => false,
        }
    }

    /// A primary that is connected, with nothing left to synchronise and equal counts.
    pub(crate) fn is_in_step(&self) -> bool {
        match &self.worker {
            Worker::Primary(engine) => engine.is_in_step(),
            Worker::OriginalPrimary(engine) => engine.is_in_step(),
            _ => false,
        }
    }
}
