//! Synchronisation: copying every extent of the sync set, many blocks at a time, and equalising the counts
//! once nothing differs any more.
//!
//! A block holds its range like any request, so regular writes to it wait for the copy and the copy for them.
//! An extent whose block could not be copied stays in the set and is tried again later; until then nothing
//! claims to be in step (defects.md L15).

use core::time::Duration;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

use hast_format::bitmap::Bitmap;
use hast_format::extension::{Extension, Run, runs_of};
use hast_net::buffer::Buffer;
use hast_net::errno::Errno;
use hast_net::handshake::SyncSource;
use hast_net::human::human;
use hast_net::message::{Command, MarkKind};
use hast_net::payload::is_zeros;

use super::link::Awaited;
use super::window::{MOST_OF_ORIGINAL, SHARED_BLOCK, USERS, Window};
use super::{Phase, Primary, Purpose, exactly};
use crate::counts::must_be_marked;
use crate::ranges::Key;
use crate::rule::{Rule, keeps};
use crate::types::{Deletes, DiskOp, DiskResult, Event, MAX_REQUEST};

/// How long to wait before an extent that could not be copied is tried again.
const RETRY: Duration = Duration::from_secs(10);
/// After so many that could not, no others are tried before then: a disk that fails everything is not asked for all of
/// its extents, nor the other node.
const FAILED_MOST: usize = 16;

/// The synchronisation under way.
#[derive(Debug)]
pub(super) struct Sync {
    /// Something may differ, or the counts are not equal yet.
    session: bool,
    /// This node is out of date as a whole: the handshake found the secondary to be the source, and the
    /// counts are not equal yet (L18).
    pub(super) target: bool,
    /// Extents that are right on the secondary and wrong here; the other extents of the sync set are right
    /// here.
    pub(super) stale: Bitmap,
    /// Extents that the secondary alone has stored, and no flush there has covered yet.
    pub(super) lone: Bitmap,
    /// What the metadata on disk may call stale.
    pub(super) recorded: Bitmap,
    /// What it certainly does.
    pub(super) known: Bitmap,
    /// Neither map nor metadata can be written: nothing is complete without the secondary, which has written down that
    /// it alone is right.
    pub(super) unable_to_record: bool,
    /// How far the way to that has come.
    pub(super) relying: Relying,
    /// Something in the sync set was not confirmed by both nodes, or nobody knows; what is there only for want
    /// of a flush does not count.
    pub(super) unconfirmed: bool,
    /// The secondary was told that it is out of date.
    marked: Marked,
    /// ... when the last connection ended.
    knew: bool,
    /// Our localcnt as the secondary has it.
    pub(super) told: u64,
    /// On this connection the secondary has written down that it is up to date, and was told nothing else since.
    knows: bool,
    /// The last save that made the counts equal.
    pub(super) equal_save: u64,
    /// The device was told that it may read the local disk without asking.
    direct_reads: bool,
    /// ... and must not any more.
    pub(super) direct_reads_off: bool,
    announced: bool,
    started: Duration,
    /// Bytes of the extents copied since.
    bytes: u64,
    copied: bool,
    copies: BTreeMap<u32, Copy>,
    /// The extent whose blocks are being handed out.
    open: Option<u32>,
    /// Where the search for the next extent goes on.
    cursor: u32,
    blocks: BTreeMap<Key, Block>,
    window: Window,
    /// Extents that could not be copied, until `retry_at`.
    failed: BTreeSet<u32>,
    retry_at: Option<Duration>,
    /// Beside users, a block that has ended keeps its place in the window until then.
    pauses: VecDeque<Duration>,
    step: Step,
}

/// How far the end of a session has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Copying,
    /// The flush with this ticket covers every copy (C2).
    Flushing(u64),
    /// Both nodes hold everything durably.
    Flushed,
    /// The equal counts are being written.
    Saving(u64),
    /// The secondary is being told, and writes them down.
    Telling,
}

/// The way from writes that rest on both nodes to writes that rest on the secondary alone (S1): before the secondary
/// writes down that it is right, all that was complete until then is durable there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Relying {
    No,
    /// From now on a write is complete once the secondary has flushed it; what was complete before, this flush covers.
    Flushing(u64),
    /// The secondary has flushed.
    Durable,
}

/// Whether the secondary knows that it is the target (L6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Marked {
    No,
    Asked,
    Yes,
}

/// An extent being copied.
#[derive(Debug)]
struct Copy {
    next: u64,
    end: u64,
    in_flight: u32,
    failed: bool,
    /// A write to it was not confirmed meanwhile.
    spoiled: bool,
    from: SyncSource,
}

#[derive(Debug)]
struct Block {
    extent: u32,
    offset: u64,
    length: u32,
    from: SyncSource,
    state: BlockState,
    /// It is zeros, and the node that it is copied to was asked to free its range instead of storing them (D1).
    freed: bool,
    /// When it was asked for.
    since: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum BlockState {
    Queued,
    Local,
    Remote,
    /// The connection broke while the local disk had it: it ends when the disk answers.
    Orphaned,
}

impl Sync {
    /// As an earlier worker left it: `map` is what lies on disk.
    pub(super) fn new(extents: u32, left: &Extension, map: &[u8]) -> Sync {
        let target = (left.target || left.mark.is_some()) && keeps(Rule::L18);
        let dirty = Bitmap::from_bytes(extents, map);
        let mut stale = Bitmap::new(extents);
        for extent in left.stale.iter().flat_map(|run| run.extents()) {
            stale.insert(extent);
        }
        // Nobody remembers whether the other node has flushed what it alone had stored.
        let lone = stale.clone();
        if target {
            stale.union(&dirty);
        }
        Sync {
            session: false,
            target,
            lone,
            recorded: stale.clone(),
            known: stale.clone(),
            stale,
            unable_to_record: false,
            relying: Relying::No,
            unconfirmed: !dirty.is_empty(),
            marked: Marked::No,
            knew: false,
            told: 0,
            knows: false,
            equal_save: 0,
            direct_reads: false,
            direct_reads_off: false,
            announced: false,
            started: Duration::ZERO,
            bytes: 0,
            copied: false,
            copies: BTreeMap::new(),
            open: None,
            cursor: 0,
            blocks: BTreeMap::new(),
            window: Window::new(),
            failed: BTreeSet::new(),
            retry_at: None,
            pauses: VecDeque::new(),
            step: Step::Copying,
        }
    }

    /// Whether something may differ, or the counts are not equal yet.
    pub(super) fn is_open(&self) -> bool {
        self.session
    }

    pub(super) fn is_copying(&self) -> bool {
        !self.blocks.is_empty()
    }

    /// The stale extents as runs.
    pub(super) fn stale_runs(&self) -> Vec<Run> {
        runs_of(&self.stale)
    }

    /// The secondary is told that it lacks nothing, and forgets its mark: whatever it misses from now on has to be said again.
    pub(super) fn lacks_nothing(&mut self) {
        self.marked = Marked::No;
    }

    /// A write to `extent` was not confirmed by both nodes: a copy under way does not make it equal.
    pub(super) fn spoil(&mut self, extent: u32) {
        if let Some(copy) = self.copies.get_mut(&extent) {
            copy.spoiled = true;
        }
    }
}

impl Primary {
    /// `extent` is right here again, if our disk is in use; true if it was stale.
    pub(super) fn no_longer_stale(&mut self, extent: u32) -> bool {
        if self.detachment.is_detached() {
            return false;
        }
        self.sync.lone.remove(extent);
        let was_stale = self.sync.stale.remove(extent);
        if was_stale && !self.sync.known.contains(extent) {
            self.flush.may_miss_something();
        }
        was_stale
    }

    /// Whether the next save says that this node is the target, so that all of its map is stale. Once the counts are to be
    /// equal it does not, though the disk may still.
    pub(super) fn is_saved_as_target(&self) -> bool {
        let extension = &self.metadata.extension;
        extension.target || extension.mark.is_some()
    }

    /// The nodes may differ, or their counts do: copy, flush, equalise.
    pub(super) fn begin_session(&mut self) {
        if self.sync.step != Step::Copying && !self.all_left_is_stale() {
            self.sync.step = Step::Copying;
        }
        self.sync.direct_reads_off = true;
        if !self.sync.session {
            self.sync.session = true;
            self.sync.copied = false;
            self.sync.announced = false;
            self.sync.window = Window::new();
        }
        if !self.sync.announced && !self.map.to_synchronise().is_empty() {
            self.sync.announced = true;
            let extents = u64::from(self.map.to_synchronise().count());
            let bytes = extents.saturating_mul(u64::from(self.layout.extentsize()));
            log::info!("Synchronization started. {} to go.", human(bytes));
            self.sync.started = self.now;
            self.sync.bytes = 0;
            self.actions.push_back(crate::types::Action::Event(Event::SyncStart));
        }
    }

    /// The connection is gone, or is about to be.
    pub(super) fn end_session(&mut self) {
        if self.sync.session && self.sync.announced {
            log::warn!("Synchronization interrupted.");
            self.actions.push_back(crate::types::Action::Event(Event::SyncIntr));
        }
        self.sync.session = false;
        self.sync.announced = false;
        self.sync.knew = self.sync.marked == Marked::Yes;
        self.sync.marked = Marked::No;
        self.sync.knows = false;
        self.sync.direct_reads_off = true;
        self.sync.step = Step::Copying;
        self.sync.failed.clear();
        self.sync.retry_at = None;
        self.sync.pauses.clear();
        if !keeps(Rule::L18) {
            self.sync.stale.clear();
        }
        self.stop_copying();
        let gone: Vec<Key> = self.sync.blocks.keys().copied().collect();
        for key in gone {
            let Some(block) = self.sync.blocks.get_mut(&key) else { continue };
            match block.state {
                BlockState::Local | BlockState::Orphaned => block.state = BlockState::Orphaned,
                BlockState::Queued | BlockState::Remote => {
                    self.sync.blocks.remove(&key);
                    self.release(key);
                }
            }
        }
        self.sync.copies.clear();
    }

    /// No further blocks; those under way end.
    pub(super) fn stop_copying(&mut self) {
        self.sync.open = None;
        for copy in self.sync.copies.values_mut() {
            if copy.next < copy.end {
                copy.next = copy.end;
                copy.spoiled = true;
            }
        }
        let queued: Vec<Key> = self
            .sync
            .blocks
            .iter()
            .filter(|(_, block)| block.state == BlockState::Queued)
            .map(|(key, _)| *key)
            .collect();
        for key in queued {
            self.forget_block(key);
        }
    }

    /// A block that nobody has been asked for yet is not copied after all.
    fn forget_block(&mut self, key: Key) {
        if let Some(block) = self.sync.blocks.remove(&key) {
            self.sync.spoil(block.extent);
            self.block_gone(block.extent);
            self.release(key);
        }
    }

    /// Keeps the window full.
    pub(super) fn fill_sync(&mut self) {
        self.end_pauses();
        let ours = self.link.is_ours();
        let window = self.sync.window.blocks().min(if ours { usize::MAX } else { MOST_OF_ORIGINAL });
        while self.sync.session
            && !self.detachment.is_detached()
            && self.link.is_up()
            && self.phase == Phase::Serving
            && self.sync.blocks.len() + self.sync.pauses.len() < window
        {
            let waits = self.map.to_synchronise().is_empty() || self.sync.failed.len() >= FAILED_MOST;
            if waits || !self.secondary_is_marked() {
                return;
            }
            let Some((extent, offset, length, from)) = self.next_block() else { return };
            let key = self.new_key();
            let (state, since) = (BlockState::Queued, self.now);
            self.sync.blocks.insert(key, Block { extent, offset, length, from, state, freed: false, since });
            if self.ranges.insert(key, offset..offset + u64::from(length), false) {
                self.block_ready(key);
            }
        }
    }

    /// C4: whether a planned end has to wait for the secondary to mark itself, which lacks something; asks it to.
    pub(super) fn ends_unmarked(&mut self) -> bool {
        self.link.is_up() && keeps(Rule::C4Marked) && !self.secondary_is_marked()
    }

    /// C4: whether a secondary that was there lacks something that is complete, so that localcnt has risen since (C1), and
    /// does not know it.
    pub(super) fn leaves_behind(&self) -> bool {
        let knows = if self.link.is_up() { self.sync.marked == Marked::Yes } else { self.sync.knew };
        self.counted.is_some() && self.secondary_is_behind() && !knows
    }

    /// L6: whether the secondary has to know that it is out of date; all that it may lack but a flush it does
    /// not, if it runs since.
    pub(super) fn secondary_lacks_something(&self) -> bool {
        self.link.is_ours()
            && self.sync.marked != Marked::Yes
            && must_be_marked(
                self.sync.unconfirmed,
                self.link.peer_has_restarted(&self.metadata.extension),
                !self.map.to_synchronise().is_subset(&self.sync.stale),
            )
    }

    /// Asks the secondary to mark itself if it has to; true if nothing has to wait for that.
    pub(super) fn secondary_is_marked(&mut self) -> bool {
        if !self.secondary_lacks_something() {
            return true;
        }
        if self.sync.marked == Marked::No {
            self.sync.marked = Marked::Asked;
            self.mark(Awaited::SyncStart, MarkKind::SyncStart);
        }
        false
    }

    /// The secondary has marked itself, or could not.
    pub(super) fn marked(&mut self, result: Result<(), Errno>) {
        match result {
            Ok(()) => {
                self.sync.marked = Marked::Yes;
                self.up_when_marked();
                self.end_marking();
            }
            Err(error) => {
                self.lose_link(format!("The secondary cannot write down that it is out of date: {error}"));
            }
        }
    }

    /// What is being copied from there is copied again: a flush of the node that it is copied to has failed.
    pub(super) fn spoil_copies(&mut self, from: SyncSource) {
        for copy in self.sync.copies.values_mut().filter(|copy| copy.from == from) {
            copy.spoiled = true;
        }
    }

    fn next_block(&mut self) -> Option<(u32, u64, u32, SyncSource)> {
        let extent = match self.sync.open {
            Some(extent) => extent,
            None => {
                let extent = self.next_extent()?;
                let (start, length) = self.layout.extent_range(extent);
                let from = if self.sync.stale.contains(extent) {
                    SyncSource::Secondary
                } else {
                    SyncSource::Primary
                };
                let end = start + u64::from(length);
                let copy = Copy { next: start, end, in_flight: 0, failed: false, spoiled: false, from };
                self.sync.copies.insert(extent, copy);
                self.sync.open = Some(extent);
                extent
            }
        };
        let most = if self.has_users() { SHARED_BLOCK } else { MAX_REQUEST };
        let copy = self.sync.copies.get_mut(&extent)?;
        let offset = copy.next;
        let length = u32::try_from(copy.end - offset).unwrap_or(u32::MAX).min(most);
        copy.next += u64::from(length);
        copy.in_flight += 1;
        let from = copy.from;
        if copy.next >= copy.end {
            self.sync.open = None;
        }
        Some((extent, offset, length, from))
    }

    /// Whether anybody else uses the device.
    fn has_users(&self) -> bool {
        self.last_request.is_some_and(|at| self.now.saturating_sub(at) < USERS)
    }

    fn next_extent(&mut self) -> Option<u32> {
        let set = self.map.to_synchronise();
        let free = |extent: &u32| {
            !self.sync.copies.contains_key(extent)
                && !self.sync.failed.contains(extent)
                && !self.turning.contains(*extent)
        };
        let from = |start| std::iter::successors(set.next_from(start), |&extent| set.next_from(extent + 1));
        let extent = from(self.sync.cursor).find(free).or_else(|| from(0).find(free))?;
        self.sync.cursor = extent.saturating_add(1);
        Some(extent)
    }

    /// A block holds its range: read it from where it is right. While it waited for a write to its range, that may have become
    /// the other node.
    pub(super) fn block_ready(&mut self, key: Key) {
        let Some(block) = self.sync.blocks.get_mut(&key) else { return };
        let Block { extent, offset, length, from, .. } = *block;
        if self.sync.stale.contains(extent) != (from == SyncSource::Secondary) {
            return self.forget_block(key);
        }
        block.since = self.now;
        match from {
            SyncSource::Primary => {
                block.state = BlockState::Local;
                let offset = self.layout.localoff() + offset;
                self.disk(Purpose::SyncRead(key), DiskOp::Read { offset, length });
            }
            SyncSource::Secondary => {
                block.state = BlockState::Remote;
                self.ask(Awaited::SyncRead(key), Command::Read, offset, u64::from(length), false, None);
            }
        }
    }

    pub(super) fn block_read_locally(&mut self, key: Key, result: DiskResult) {
        let Some(block) = self.sync.blocks.get_mut(&key) else { return };
        if block.state == BlockState::Orphaned {
            return self.end_block(key, Err(Errno::ENOTCONN));
        }
        match result.map(|data| exactly(data, u64::from(block.length))) {
            Ok(Some(data)) => {
                block.state = BlockState::Remote;
                block.freed = self.link.peer_deletes == Deletes::LeaveZeros && is_zeros(&data);
                self.copy_there(key, data);
            }
            Ok(None) => self.block_failed(key, "local read", Errno::EIO),
            Err(error) => {
                self.statistics.read_errors += 1;
                self.block_failed(key, "local read", error);
            }
        }
    }

    /// Asks the secondary to store a block, or to free its range.
    fn copy_there(&mut self, key: Key, data: Buffer) {
        let Some(Block { offset, length, freed, .. }) = self.sync.blocks.get(&key) else { return };
        let (offset, length) = (*offset, u64::from(*length));
        let (command, data) = if *freed { (Command::Delete, None) } else { (Command::Write, Some(data)) };
        self.ask(Awaited::SyncWrite(key), command, offset, length, false, data);
    }

    pub(super) fn block_read_remotely(&mut self, key: Key, result: Result<Buffer, Errno>) {
        let Some(block) = self.sync.blocks.get_mut(&key) else { return };
        match result {
            Ok(data) => {
                block.state = BlockState::Local;
                block.freed = self.host.deletes == Deletes::LeaveZeros && is_zeros(&data);
                self.copy_here(key, data);
            }
            Err(error) => self.block_failed(key, "remote read", error),
        }
    }

    /// Stores a block on our disk, or frees its range.
    fn copy_here(&mut self, key: Key, data: Buffer) {
        let Some(Block { offset, length, freed, .. }) = self.sync.blocks.get(&key) else { return };
        let (offset, length) = (self.layout.localoff() + offset, u64::from(*length));
        let op = if *freed { DiskOp::Delete { offset, length } } else { DiskOp::Write { offset, data } };
        self.disk(Purpose::SyncWrite(key), op);
    }

    /// If this block's range was to be freed, which has failed: the zeros to store instead. A node that cannot free is not
    /// asked again.
    fn zeros_instead(&mut self, key: Key, error: Errno) -> Option<Buffer> {
        let block = self.sync.blocks.get_mut(&key)?;
        if !std::mem::take(&mut block.freed) {
            return None;
        }
        if error == Errno::EOPNOTSUPP {
            match block.from {
                SyncSource::Primary => self.link.peer_deletes = Deletes::Refused,
                SyncSource::Secondary => self.host.deletes = Deletes::Refused,
            }
        }
        Some(Buffer::from(vec![0; block.length as usize]))
    }

    pub(super) fn block_written_locally(&mut self, key: Key, result: DiskResult) {
        let Some(block) = self.sync.blocks.get(&key) else { return };
        self.durable.wrote(block.extent..block.extent + 1);
        if block.state == BlockState::Orphaned {
            return self.end_block(key, Err(Errno::ENOTCONN));
        }
        match result {
            Ok(_) => self.end_block(key, Ok(())),
            // Nothing is asked of a disk that was given up meanwhile.
            Err(error) if self.detachment.is_detached() => self.end_block(key, Err(error)),
            Err(error) => match self.zeros_instead(key, error) {
                Some(zeros) => self.copy_here(key, zeros),
                None => {
                    self.statistics.write_errors += 1;
                    self.block_failed(key, "local write", error);
                }
            },
        }
    }

    pub(super) fn block_written_remotely(&mut self, key: Key, result: Result<(), Errno>) {
        match result {
            Ok(()) => self.end_block(key, Ok(())),
            Err(error) => match self.zeros_instead(key, error) {
                Some(zeros) => self.copy_there(key, zeros),
                None => self.block_failed(key, "remote write", error),
            },
        }
    }

    fn block_failed(&mut self, key: Key, what: &str, error: Errno) {
        if let Some(block) = self.sync.blocks.get(&key) {
            let Block { offset, length, extent, .. } = *block;
            log::error!(
                "Synchronization: {what} of {length} bytes at {offset} failed: {error}. Extent {extent} stays dirty."
            );
        }
        self.end_block(key, Err(error));
    }

    fn end_block(&mut self, key: Key, result: Result<(), Errno>) {
        let Some(block) = self.sync.blocks.remove(&key) else { return };
        if block.state == BlockState::Orphaned {
            return self.release(key); // its copy ended with the session
        }
        if result.is_ok() && block.length >= SHARED_BLOCK.min(self.layout.extentsize()) {
            let took = self.now.saturating_sub(block.since);
            let has_users = self.has_users();
            self.sync.window.copied(self.now, took, has_users);
            if has_users {
                self.sync.pauses.push_back(self.now + self.sync.window.pause(took));
            }
        }
        if result.is_err()
            && let Some(copy) = self.sync.copies.get_mut(&block.extent)
        {
            copy.failed = true;
        }
        self.block_gone(block.extent);
        self.release(key);
    }

    /// A block of `extent` is not under way any more.
    fn block_gone(&mut self, extent: u32) {
        let Some(copy) = self.sync.copies.get_mut(&extent) else { return };
        copy.in_flight = copy.in_flight.saturating_sub(1);
        if copy.failed && copy.next < copy.end {
            copy.next = copy.end; // the rest would be copied in vain
            if self.sync.open == Some(extent) {
                self.sync.open = None;
            }
        }
        if copy.in_flight > 0 || copy.next < copy.end {
            return;
        }
        let Some(copy) = self.sync.copies.remove(&extent) else { return };
        if copy.failed && keeps(Rule::L15) {
            self.copy_later(extent);
        } else if !copy.spoiled && !self.detachment.is_detached() {
            if copy.from == SyncSource::Secondary {
                self.durable.forget(extent); // no flush has failed since the copy began
            }
            if self.no_longer_stale(extent) {
                self.save_metadata();
            }
            self.sync.copied = true;
            let (_, length) = self.layout.extent_range(extent);
            self.sync.bytes = self.sync.bytes.saturating_add(u64::from(length));
            self.map.copied(extent);
            self.flush.note_unflushed(self.now);
        }
    }

    /// The disk that `extent` is to be copied to has just failed.
    pub(super) fn copy_later(&mut self, extent: u32) {
        self.sync.failed.insert(extent);
        self.sync.retry_at.get_or_insert(self.now + RETRY);
    }

    /// Something could not be copied or flushed; the session goes on in a while.
    pub(super) fn sync_failed(&mut self) {
        self.sync.step = Step::Copying;
        self.sync.retry_at.get_or_insert(self.now + RETRY);
    }

    /// The flush that was to cover every copy said nothing about the secondary, which has just connected: another one.
    pub(super) fn flush_again_for_copies(&mut self) {
        if matches!(self.sync.step, Step::Flushing(_)) {
            self.sync.step = Step::Copying;
        }
    }

    /// Every copy that the secondary needs has been made, and the counts are not equal yet.
    fn is_copied(&self) -> bool {
        let done = self.map.to_synchronise().is_empty()
            && self.sync.copies.is_empty()
            && self.sync.retry_at.is_none();
        self.sync.session
            && self.link.is_up()
            && matches!(self.phase, Phase::Serving | Phase::Draining(_))
            && (done || self.secondary_has_caught_up())
    }

    /// Whether the secondary has all that it lacked, and does not know it: what is left is stale here, and our metadata
    /// say so. It is told before that is copied, which a failing disk may never permit: the administrator changes over to
    /// the other node then, and finds it up to date.
    fn secondary_has_caught_up(&self) -> bool {
        let knows =
            self.sync.knows && self.sync.told == self.metadata.localcnt && self.sync.marked == Marked::No;
        !knows
            && !self.rests_on_secondary()
            && !self.detachment.is_leaving()
            && (self.sync.step != Step::Copying || self.sync.retry_at.is_none())
            && self.sync.copies.values().all(|copy| copy.from == SyncSource::Secondary)
            && self.all_left_is_stale()
            && self.sync.stale.is_subset(&self.sync.known)
    }

    /// Whether there is nothing to copy to the secondary.
    fn all_left_is_stale(&self) -> bool {
        self.map.to_synchronise().is_subset(&self.sync.stale)
    }

    /// All that is left of the session is to say on both nodes that they are in step: a planned end does so first,
    /// or the other node would have to be taken for out of date.
    pub(super) fn is_equalising(&self) -> bool {
        self.is_copied() && !self.flush.is_paused(self.now)
    }

    /// When nothing is left to copy: flush, then equalise (C2).
    pub(super) fn check_synchronised(&mut self) {
        if !self.is_copied() || self.unconfirmed_in_flight() {
            if matches!(self.sync.step, Step::Flushing(_) | Step::Flushed) {
                self.sync.step = Step::Copying;
            }
            return;
        }
        match self.sync.step {
            Step::Copying if !keeps(Rule::C2) => {
                self.sync.step = Step::Flushed;
                self.check_synchronised();
            }
            Step::Copying if self.flush.is_paused(self.now) => {}
            Step::Copying => {
                self.sync.step = Step::Flushing(self.flush.ask());
                self.kick_flush();
            }
            Step::Flushing(_) | Step::Saving(_) | Step::Telling => {}
            Step::Flushed => {
                let ours = self.link.is_ours();
                self.set_counts(self.counts().equal_to_secondary(self.link.peer_counts(), ours));
                self.metadata.extension.target = false;
                self.metadata.extension.mark = None;
                self.metadata.extension.unsure = false;
                self.metadata.extension.peer_boot = self.link.peer_boot();
                self.note_equality();
                // What was to be counted both nodes have, and what is saved now includes the count.
                self.counted = None;
                self.forget_count();
                let save = self.save_metadata();
                self.sync.equal_save = save;
                self.sync.step = Step::Saving(save);
                self.kick_metadata();
            }
        }
    }

    /// G1: what the nodes have in common from now on.
    fn note_equality(&mut self) {
        let extension = &mut self.metadata.extension;
        extension.connection_localcnt = self.metadata.localcnt;
        if self.link.newer != 0 {
            (extension.connection, extension.connection_before) = (self.link.newer, 0);
        }
    }

    /// This node's counts are equal to the other's, durably: now the secondary's.
    pub(super) fn equal_here(&mut self, save: u64) {
        if self.sync.equal_save > 0 && self.sync.equal_save <= save {
            self.sync.target = false; // the disk says so, whatever has become of the session
            self.sync.equal_save = 0;
        }
        if !matches!(self.sync.step, Step::Saving(wanted) if wanted <= save) {
            return;
        }
        if self.link.is_ours() {
            self.sync.step = Step::Telling;
            self.sync.lacks_nothing();
            let (localcnt, failures) = (self.metadata.localcnt, Some(self.link.failures()));
            self.mark(Awaited::SyncDone, MarkKind::SyncDone { localcnt, failures });
        } else {
            self.equalised();
        }
    }

    /// The secondary has written the counts down, or could not.
    pub(super) fn equal_there(&mut self, result: Result<(), Errno>) {
        match result {
            Ok(()) if self.sync.step == Step::Telling => self.equalised(),
            Ok(()) => {}
            Err(error) => {
                log::error!("The secondary cannot write down that it is up to date: {error}.");
                self.sync_failed();
            }
        }
    }

    /// The flushes asked for up to `ticket` have succeeded on both nodes.
    pub(super) fn copies_are_durable(&mut self, ticket: u64) {
        if matches!(self.sync.step, Step::Flushing(wanted) if wanted <= ticket) {
            self.sync.step = Step::Flushed;
        }
    }

    fn equalised(&mut self) {
        self.sync.told = self.metadata.localcnt;
        self.sync.knows = true;
        self.sync.unconfirmed = false;
        self.forget_count();
        self.sync.lacks_nothing();
        self.sync.step = Step::Copying;
        if !self.map.to_synchronise().is_empty() {
            log::info!("{} is up to date.", self.link.name());
            return; // what is left is stale here
        }
        self.sync.unable_to_record = false;
        if self.detachment.is_leaving() {
            self.recount_detachment();
        } else {
            self.forget_detachment();
            if !self.is_about_to_rely() {
                self.sync.relying = Relying::No;
            }
        }
        self.sync.session = false;
        if std::mem::take(&mut self.sync.announced) && self.sync.copied {
            let (bytes, time) = (self.sync.bytes, self.now.saturating_sub(self.sync.started));
            let rate = u128::from(bytes) * 1000 / time.as_millis().max(1);
            log::info!(
                "Synchronization complete. {} synchronized in {}s ({}/sec).",
                human(bytes),
                time.as_secs(),
                human(u64::try_from(rate).unwrap_or(u64::MAX)),
            );
            self.actions.push_back(crate::types::Action::Event(Event::SyncDone));
        } else {
            log::info!("Nodes are in sync.");
        }
        self.sync.direct_reads_off = false;
    }

    pub(super) fn not_equalised(&mut self, save: u64) {
        if matches!(self.sync.step, Step::Saving(wanted) if wanted <= save) {
            self.sync_failed();
        }
    }

    /// L17: the device may read without asking only while nothing differs; the moment something does, it hears
    /// of that before anything else.
    pub(super) fn direct_reads(&mut self) {
        let allowed = self.is_in_step()
            && self.phase == Phase::Serving
            && self.sync.stale.is_empty()
            && self.turning.is_empty()
            && !self.sync.direct_reads_off;
        if allowed != self.sync.direct_reads && (allowed || keeps(Rule::L17)) {
            self.sync.direct_reads = allowed;
            self.actions.push_front(crate::types::Action::DirectReads(allowed));
        }
    }

    pub(super) fn sync_timeout(&mut self) {
        if self.sync.retry_at.is_some_and(|at| at <= self.now) {
            self.sync.retry_at = None;
            self.sync.failed.clear();
        }
        self.end_pauses();
    }

    /// The turns of users that are over, or all of them if nobody is there any more.
    fn end_pauses(&mut self) {
        if !self.has_users() {
            self.sync.pauses.clear();
        }
        while self.sync.pauses.pop_front_if(|end| *end <= self.now).is_some() {}
    }

    pub(super) fn sync_deadline(&self) -> Option<Duration> {
        [self.sync.retry_at, self.sync.pauses.front().copied()].into_iter().flatten().min()
    }
}
