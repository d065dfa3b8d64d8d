//! Map and metadata writes: one of each at a time, and what waits for them to be durable.

use core::time::Duration;
use std::collections::VecDeque;

use hast_format::bitmap::Bitmap;
use hast_format::extension::{Extension, Run, STALE_RUNS, runs_of};
use hast_net::buffer::Buffer;
use hast_net::errno::Errno;
use hast_net::handshake::Met;

use super::{Phase, Primary, Purpose};
use crate::connection::met;
use crate::counts::Counts;
use crate::ranges::Key;
use crate::rule::{Rule, keeps};
use crate::saving::{Next, Part, Saving};
use crate::types::{DiskOp, DiskResult};

/// How long a failed map write waits if no request needs it.
const RETRY: Duration = Duration::from_secs(1);

/// Map writes that requests wait for are tried so often before the disk is given up, if it can be.
const ATTEMPTS: u32 = 3;

/// The map write under way, and the requests that wait for their bits (durability.md M1).
#[derive(Debug)]
pub(super) struct MapIo {
    /// Whether map writes are flushed (`metaflush`, off for good after EOPNOTSUPP).
    flush: bool,
    /// Sector runs not yet answered.
    outstanding: usize,
    failure: Option<Errno>,
    /// After a failure: when to try again though nobody waits.
    retry_at: Option<Duration>,
    /// Map writes that have failed since the last one that has not.
    failures: u32,
    /// The map was distrusted, or its last write failed: bits that were durable still are whatever got to the disk,
    /// but nothing new relies on that until all of them are written again.
    pub(super) doubtful: bool,
    /// Requests whose bits are not durable yet, in order of arrival.
    waiting: VecDeque<Key>,
    /// Flushing ends with this save, which says that the map cannot be relied on (`crate::parting`).
    unflushed_after: Option<u64>,
}

impl MapIo {
    pub(super) fn new(flush: bool) -> MapIo {
        MapIo {
            flush,
            outstanding: 0,
            failure: None,
            retry_at: None,
            failures: 0,
            doubtful: false,
            waiting: VecDeque::new(),
            unflushed_after: None,
        }
    }
}

/// The metadata write under way. Saves are numbered; a save is durable when its number is.
#[derive(Debug, Default)]
pub(super) struct MetaIo {
    wanted: u64,
    writing: Option<(u64, Saving)>,
    durable: u64,
    failed: u64,
    /// What a failed save may have left on disk in part.
    unsure: Vec<Part>,
    /// The stale extents that the save under way names.
    saving_stale: Option<Bitmap>,
    /// The runs that the last save named that is durable.
    runs: Vec<Run>,
    /// What that save says of the secondary's count, and what the one under way does.
    remotecnt: u64,
    saving_remotecnt: u64,
    /// ... though some of them are only not on the disk yet.
    names_dropped: bool,
    /// A flush failed while it was under way.
    doubtful: Option<Errno>,
    /// After a failure: when to try again though nobody asks.
    retry_at: Option<Duration>,
    /// localcnt has to rise, durably, for what somebody relies on already (C1 (b), (c)).
    owes_count: bool,
    /// The generations of connections that the save under way names, and those that are on disk: what is in memory alone
    /// would be gone after a crash, and the other node would take this one's disk for another (G1).
    saving_met: Met,
    durable_met: Met,
    /// A save that failed may have left others on disk.
    met_is_doubtful: bool,
}

impl MetaIo {
    /// As an earlier worker has left it.
    pub(super) fn new(left: &Extension, remotecnt: u64) -> MetaIo {
        MetaIo { durable_met: met(left), runs: left.stale.clone(), remotecnt, ..MetaIo::default() }
    }

    /// The secondary's count as our disk has it.
    pub(super) fn remotecnt(&self) -> u64 {
        self.remotecnt
    }

    /// The generations of connections that are on disk.
    pub(super) fn met(&self) -> Met {
        self.durable_met
    }

    /// The same, if they are certain to stay there: no save that names others has failed, is under way or is to come.
    pub(super) fn certain_met(&self, extension: &Extension) -> Option<Met> {
        let saving = self.writing.is_none() || self.saving_met == self.durable_met;
        let certain = saving && !self.met_is_doubtful && met(extension) == self.durable_met;
        certain.then_some(self.durable_met)
    }

    /// Whether this save has failed.
    pub(super) fn has_failed(&self, save: u64) -> bool {
        self.failed >= save && self.durable < save
    }

    pub(super) fn is_durable(&self, save: u64) -> bool {
        self.durable >= save
    }

    pub(super) fn is_busy(&self) -> bool {
        self.writing.is_some() || self.wanted > self.durable.max(self.failed) || self.owes_count
    }
}

impl Primary {
    /// From now on the map on disk may lack what was written before a loss of power: the metadata must not say otherwise.
    /// True if they did; they have to be saved then.
    pub(super) fn forget_the_map(&mut self) -> bool {
        let extension = &mut self.metadata.extension;
        let complete = std::mem::take(&mut extension.map_complete);
        std::mem::take(&mut extension.parted) != 0 || complete
    }

    /// Applies a changed `metaflush`; a disk that has no flush keeps it off.
    pub(super) fn set_metaflush(&mut self, new: bool) {
        if new == self.settings.metaflush {
            return;
        }
        self.map_io.unflushed_after = None;
        if !new && self.forget_the_map() {
            self.map_io.unflushed_after = Some(self.save_metadata());
        } else {
            self.map_io.flush = new;
        }
        if new {
            // Nothing of what was written until now was flushed (M1).
            self.map.distrust();
            self.map_io.doubtful = true;
        }
    }

    /// `key`'s extents are in the map as in flight; it goes on once their bits are durable.
    pub(super) fn wait_for_map(&mut self, key: Key) {
        self.map_io.waiting.push_back(key);
    }

    /// Starts a map write if one is wanted and none is under way.
    pub(super) fn kick_map(&mut self) {
        if self.detachment.holds_the_map() {
            return;
        }
        if self.map_io.retry_at.is_some() && self.map_io.waiting.is_empty() {
            return; // nobody waits, and the disk has just failed
        }
        let runs = self.map.begin_write();
        if runs.is_empty() {
            return;
        }
        self.map_io.retry_at = None;
        self.statistics.activemap_updates += 1;
        self.map_io.outstanding = runs.len();
        self.map_io.failure = None;
        for run in runs {
            let offset = self.layout.map_offset() + run.offset;
            self.disk(Purpose::Map, DiskOp::Write { offset, data: Buffer::from(run.bytes) });
        }
    }

    pub(super) fn map_timeout(&mut self) {
        self.map_io.retry_at.take_if(|at| *at <= self.now);
    }

    pub(super) fn map_deadline(&self) -> Option<Duration> {
        self.map_io.retry_at
    }

    pub(super) fn map_written(&mut self, result: DiskResult) {
        self.map_io.outstanding = self.map_io.outstanding.saturating_sub(1);
        if let Err(error) = result {
            log::error!("Unable to write the activemap: {error}.");
            self.statistics.write_errors += 1;
            self.map_io.failure = Some(error);
        }
        if self.map_io.outstanding > 0 {
            return;
        }
        // The other node clears its map once ours has it: that one is flushed whatever metaflush says.
        if self.map_io.failure.is_none() && (self.map_io.flush || self.link.is_merging()) {
            self.flush_disk(Purpose::MapFlush);
        } else {
            self.map_durable();
        }
    }

    pub(super) fn map_flushed(&mut self, result: DiskResult) {
        match result {
            Ok(_) => {}
            Err(Errno::EOPNOTSUPP) => {
                log::warn!("The provider does not support flushing its cache. Disabling metaflush.");
                self.map_io.flush = false;
            }
            Err(error) => {
                // L11: a map that may not be durable protects nothing.
                log::error!("Unable to flush the activemap: {error}.");
                self.statistics.flush_errors += 1;
                if keeps(Rule::L11) {
                    self.map_io.failure = Some(error);
                }
            }
        }
        self.map_durable();
    }

    /// A flush has failed: a map write under way is not on disk, whatever its own flush will say; and neither is
    /// one that was never flushed.
    pub(super) fn suspect_map(&mut self, error: Errno) {
        if !keeps(Rule::L11) {
            return;
        }
        if self.map.is_writing() {
            self.map_io.failure = Some(error);
        }
        if !self.map_io.flush {
            self.map.distrust();
            self.map_io.doubtful = true;
        }
    }

    /// The same of the metadata.
    pub(super) fn suspect_metadata(&mut self, error: Errno) {
        if self.meta.writing.is_some() {
            self.meta.doubtful = Some(error);
        }
    }

    /// The map write has ended, well or not: those whose bits are durable go on, after a failure the others
    /// fail (M1).
    fn map_durable(&mut self) {
        let failure = self.map_io.failure.take();
        self.map.end_write(failure.is_none());
        self.map_io.retry_at = failure.map(|_| self.now + RETRY);
        self.map_io.doubtful = failure.is_some() || (self.map_io.doubtful && self.map.wants_write());
        self.map_written_detached(failure.is_none());
        self.map_io.failures = if failure.is_some() { self.map_io.failures.saturating_add(1) } else { 0 };
        let again = self.can_be_left() && (self.map_io.failures < ATTEMPTS || self.leave_disk());
        for key in std::mem::take(&mut self.map_io.waiting) {
            let Some(request) = self.requests.get(&key) else { continue };
            if self.map.is_durable(request.extents()) {
                self.issue_write(key);
            } else if let Some(error) = failure
                && !again
            {
                self.not_issued(key, error);
            } else {
                self.map_io.waiting.push_back(key);
            }
        }
        if failure.is_none() { self.merged() } else { self.merge_failed() }
    }

    /// The disk is given up: nothing waits for bits on it any more.
    pub(super) fn issue_what_waits_for_the_map(&mut self) {
        for key in std::mem::take(&mut self.map_io.waiting) {
            self.issue_write(key);
        }
    }

    /// The disk is not given up: what waits for bits on it has failed.
    pub(super) fn fail_what_waits_for_the_map(&mut self, error: Errno) {
        for key in std::mem::take(&mut self.map_io.waiting) {
            self.not_issued(key, error);
        }
    }

    /// Asks for the metadata to be written as it is in memory by then; gives the number of the save.
    pub(super) fn save_metadata(&mut self) -> u64 {
        self.meta.wanted += 1;
        self.meta.wanted
    }

    /// Starts a metadata write if one is wanted and none is under way.
    pub(super) fn kick_metadata(&mut self) {
        if self.detachment.is_detached() && self.meta.wanted > self.meta.durable {
            // What it would say the secondary has written down.
            self.meta.durable = self.meta.wanted;
            self.remember_again();
            self.metadata_durable(self.meta.durable);
        }
        let wanted = self.meta.wanted > self.meta.durable.max(self.meta.failed);
        if self.meta.writing.is_some() || !(wanted || self.detachment.begins_save()) {
            return;
        }
        let still_stale = self.still_stale();
        let Some((stale, named)) = self.stale_to_name(&still_stale) else {
            log::error!("What the local disk misses is too scattered to be written down.");
            self.meta.failed = self.meta.wanted;
            if self.meta.owes_count {
                self.meta.retry_at = Some(self.now + RETRY);
            }
            return self.metadata_failed(self.meta.failed);
        };
        self.meta.names_dropped = still_stale != self.sync.stale;
        // What is not stale any more is durable before the disk stops saying that it is.
        let shrinks = self.sync.recorded.iter().any(|extent| !named.contains(extent));
        self.sync.recorded.union(&named);
        let unnamed: Vec<u32> = self.sync.known.iter().filter(|extent| !named.contains(*extent)).collect();
        for extent in unnamed {
            self.sync.known.remove(extent);
        }
        let extension = &mut self.metadata.extension;
        extension.generation = extension.generation.saturating_add(1);
        extension.boot = self.host.boot;
        extension.stale = stale;
        let mut metadata = self.metadata.clone();
        let counts = self.counts().saved(metadata.resuid);
        (metadata.localcnt, metadata.remotecnt) = (counts.local, counts.remote);
        let unsure = std::mem::take(&mut self.meta.unsure);
        let (saving, next) = Saving::begin(&metadata, unsure, self.layout.sectorsize(), shrinks);
        self.meta.saving_met = met(&metadata.extension);
        self.meta.saving_remotecnt = metadata.remotecnt;
        self.meta.doubtful = None;
        self.meta.writing = Some((self.meta.wanted, saving));
        self.meta.saving_stale = Some(named);
        self.remember_again();
        self.save_next(next);
    }

    /// The stale extents, and those that have been made good since but were dropped with a failed flush: the disk
    /// does not stop calling them stale before they are on it.
    fn still_stale(&self) -> Bitmap {
        let mut stale = self.sync.stale.clone();
        for extent in self.durable.dropped().iter().filter(|extent| self.sync.recorded.contains(*extent)) {
            stale.insert(extent);
        }
        stale
    }

    /// What the next save names stale, as runs and as extents.
    fn stale_to_name(&self, still_stale: &Bitmap) -> Option<(Vec<Run>, Bitmap)> {
        let (runs, mut named) = match self.stale_runs_to_save(still_stale) {
            Some(runs) => (runs, still_stale.clone()),
            None if self.may_name_the_same() => (self.meta.runs.clone(), Bitmap::new(self.sync.stale.len())),
            None => return None,
        };
        for extent in runs.iter().flat_map(|run| run.extents()) {
            named.insert(extent);
        }
        Some((runs, named))
    }

    /// Whether the metadata may go on naming what they named before: what is stale has too many runs, and no room until
    /// the nodes have met, for which other values have to be saved. Nobody is told then that anything new is named: who
    /// waits, waits for localcnt.
    fn may_name_the_same(&self) -> bool {
        !self.link.is_up()
            && self.begun
            && self.recording.is_none()
            && self.flush.awaits_only(self.counted)
            && self.waiting.saving.iter().all(|(save, _)| self.counted == Some(*save))
    }

    /// The stale extents as the metadata names them, in as many runs as it has room for. Neighbouring runs are
    /// joined over a gap whose extents the secondary has as well: too many are named then, never too few. First over those
    /// that the secondary has durably or that are named already: what it has in its cache only is right nowhere else after
    /// both nodes have lost power (S1). `None` if that is not possible.
    fn stale_runs_to_save(&self, still_stale: &Bitmap) -> Option<Vec<Run>> {
        if self.is_saved_as_target() {
            return Some(Vec::new()); // its whole map is stale; runs could not say it
        }
        let mut runs = runs_of(still_stale);
        while runs.len() > STALE_RUNS {
            let gaps = runs.windows(2).enumerate().filter_map(|(at, pair)| match pair {
                [left, right] => Some((at, left.extents().end..right.first)),
                _ => None,
            });
            let joinable = gaps
                .filter(|(_, gap)| !gap.clone().any(|extent| self.is_behind(extent)) && !self.is_owed(gap));
            let (at, gap) = joinable.min_by_key(|(_, gap)| {
                let may_be_lost = |extent| self.map.is_not_durable(extent) && !self.is_named(extent);
                (gap.clone().any(may_be_lost), gap.len())
            })?;
            let next = runs.remove(at + 1);
            let run = runs.get_mut(at)?;
            run.count = run.count.saturating_add(u32::try_from(gap.len()).ok()?).saturating_add(next.count);
        }
        Some(runs)
    }

    /// Whether the metadata on disk name `extent` as stale.
    fn is_named(&self, extent: u32) -> bool {
        self.meta.runs.iter().any(|run| run.extents().contains(&extent))
    }

    pub(super) fn metadata_advanced(&mut self, result: DiskResult) {
        if let Some((_, saving)) = &mut self.meta.writing {
            let next = saving.advance(self.meta.doubtful.take().map_or(result, Err));
            self.save_next(next);
        }
    }

    fn save_next(&mut self, next: Next) {
        match next {
            Next::Disk(DiskOp::Flush) => self.flush_disk(Purpose::Metadata),
            Next::Disk(op) => self.disk(Purpose::Metadata, op),
            Next::Durable => self.metadata_saved(None),
            Next::Failed(error) => self.metadata_saved(Some(error)),
        }
    }

    fn metadata_saved(&mut self, failure: Option<Errno>) {
        let Some((save, saving)) = self.meta.writing.take() else { return };
        if failure.is_none() {
            self.meta.runs.clone_from(&self.metadata.extension.stale);
            self.meta.remotecnt = self.meta.saving_remotecnt;
            self.meta.durable_met = self.meta.saving_met;
            self.meta.met_is_doubtful = false;
        } else {
            self.meta.met_is_doubtful |= self.meta.saving_met != self.meta.durable_met;
        }
        if self.detachment.is_detached() {
            if failure.is_some() {
                self.meta.unsure = saving.unsure();
            } else if let Some(stale) = self.meta.saving_stale.take() {
                self.sync.known.clone_from(&stale);
                self.sync.recorded = stale;
            }
            self.recorded_detached(failure.is_none());
        } else if let Some(error) = failure {
            log::error!("Unable to write metadata: {error}.");
            self.meta.unsure = saving.unsure();
            self.meta.failed = save;
            // While the disk calls something stale that is not, writes to it wait.
            let too_many = self.sync.recorded.iter().any(|extent| !self.sync.stale.contains(extent));
            self.meta.retry_at = (too_many || self.meta.owes_count).then(|| self.now + RETRY);
            self.metadata_failed(save);
        } else {
            self.meta.retry_at = None;
            self.meta.durable = save;
            if let Some(stale) = self.meta.saving_stale.take() {
                self.sync.known.clone_from(&stale);
                self.sync.recorded = stale;
            }
            self.metadata_durable(save);
            if self.meta.names_dropped || (self.meta.owes_count && self.counted.is_none()) {
                self.meta.retry_at = Some(self.now + RETRY);
            }
            if !self.link.is_up() {
                self.unpark();
            }
        }
    }

    pub(super) fn metadata_timeout(&mut self) {
        let due = self.meta.retry_at.take_if(|at| *at <= self.now).is_some();
        if due && self.count_owed().is_none() {
            self.save_metadata();
        }
    }

    pub(super) fn metadata_deadline(&self) -> Option<Duration> {
        self.meta.retry_at
    }

    fn metadata_durable(&mut self, save: u64) {
        if self.map_io.unflushed_after.take_if(|after| *after <= save).is_some() {
            self.map_io.flush = false;
        }
        if self.counted.is_some_and(|counted| counted <= save) {
            self.meta.owes_count = false;
        }
        self.equal_here(save);
        self.end_saving(save, Ok(None));
        self.end_counting_flushes(save, Ok(None));
        self.begin_when_saved();
        self.resuid_drawn(save);
        self.merged();
    }

    fn metadata_failed(&mut self, save: u64) {
        // The rise is not on disk: the next write that needs it tries again.
        if self.counted.is_some_and(|counted| counted <= save) {
            self.counted = None;
        }
        if self.phase == Phase::Starting {
            return self.exit(66);
        }
        self.end_saving(save, Err(Errno::EIO));
        self.end_counting_flushes(save, Err(Errno::EIO));
        self.resuid_not_drawn(save);
        self.merge_failed();
        self.not_equalised(save);
    }

    pub(super) fn counts(&self) -> Counts {
        Counts { local: self.metadata.localcnt, remote: self.metadata.remotecnt }
    }

    /// In memory; a save makes them durable. That this node was perhaps not up to date when it became the primary (A7)
    /// is no matter once it has been written without the other one, or both hold the same.
    pub(super) fn set_counts(&mut self, counts: Counts) {
        self.metadata.extension.possibly_behind = false;
        (self.metadata.localcnt, self.metadata.remotecnt) = (counts.local, counts.remote);
    }

    /// C1 (b), (c): localcnt has to rise for something that is complete; gives the save, if it is not durable yet.
    /// A save that fails is tried again.
    pub(super) fn owe_count(&mut self) -> Option<u64> {
        self.meta.owes_count = true;
        self.count_owed()
    }

    /// The save that localcnt's rise is owed by.
    pub(super) fn count_owed(&mut self) -> Option<u64> {
        if !self.meta.owes_count {
            return None;
        }
        let save = self.count();
        self.meta.owes_count = !self.meta.is_durable(save);
        self.meta.owes_count.then_some(save)
    }

    /// The nodes are equal: nothing has to be counted any more.
    pub(super) fn forget_count(&mut self) {
        self.meta.owes_count = false;
    }

    /// C1: raises localcnt, once per disconnected period. Gives the save that must be durable before anybody
    /// hears of what made it necessary. It begins at the end of the event: what the secondary owed when it went away is not
    /// all behind yet when the first of it is counted, and would be named stale.
    pub(super) fn count(&mut self) -> u64 {
        if let Some(save) = self.counted {
            return save;
        }
        let (counts, durably) = self.counts().raised(self.metadata.resuid, self.link.peer_counts());
        self.set_counts(counts);
        let save = if durably { self.save_metadata() } else { 0 };
        self.counted = Some(save);
        save
    }
}
