//! Life on the other node's disk: our disk answers nothing any more, not even what has to be written down about that.
//!
//! A disk that fails single writes is lived with: what it misses is stale, and recorded (`turning`). But a disk that cannot
//! be written at all can neither record that nor take the map's bits (M1), and without those no write to an unmarked
//! extent, no flush and no write with FUA would succeed, although the secondary is well. So the disk is given up as a
//! whole, if a secondary of ours is connected that lacks nothing:
//!
//! 1. From now on a write is complete once the secondary has flushed it. Requests that our disk holds up wait.
//! 2. The secondary flushes what was complete before (S1: [`super::sync::Relying`]).
//! 3. It writes down that its copy of everything is the right one: its map is full, and its localcnt rises. Whatever
//!    our disk says after a restart, the handshake makes the secondary the source of everything.
//! 4. All is stale here. Nothing is asked of our disk any more, no bit and no count is written; nothing is copied to it.
//!    Reads, writes and flushes are the secondary's; without it they wait for `timeout` and fail.
//! 5. When the secondary has been away, it writes the same down again before anything else reaches it: with the first
//!    other request it would clear its map, because ours has it.
//!
//! 6. From time to time the whole map is written to our disk, and then metadata that call all of it stale. Once both are
//!    durable the disk is in use again: everything is copied to it from the secondary, and after a restart it knows that
//!    it is out of date. (Before that, a node that starts without the secondary cannot know.)
//!
//! The driver is told ([`Action::Detached`], [`Action::Attached`]), so that a worker which replaces this one begins in the
//! same state without reading the disk.

use core::time::Duration;

use hast_net::errno::Errno;
use hast_net::message::MarkKind;

use super::link::Awaited;
use super::sync::Relying;
use super::{Phase, Primary};
use crate::counts::Counts;
use crate::rule::{Rule, keeps};
use crate::types::{Action, RequestId};

/// Whether our disk is in use.
#[derive(Debug, Default)]
enum LocalDisk {
    #[default]
    Attached,
    /// Steps 1 to 3.
    Leaving,
    /// Steps 4 to 6.
    Detached { step: Return, pause: Duration },
}

/// How far the way back has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Return {
    /// The disk is left alone until then.
    Pausing(Duration),
    /// The map is being written.
    Mapping,
    /// The metadata is to be written ...
    Recording,
    /// ... and is being.
    Saving,
}

/// How long the disk is left alone at first, and at most: twice as long after each attempt that fails.
const PAUSE: Duration = Duration::from_secs(1);
const PAUSE_MOST: Duration = Duration::from_secs(300);

/// The local disk's state, and the clients' flushes that it has failed and that wait for the secondary to be relied on.
#[derive(Debug, Default)]
pub(super) struct Detachment {
    disk: LocalDisk,
    flushes: Vec<RequestId>,
    /// The driver was told that a worker which replaces this one begins without the disk, and from these counts.
    remembered: Option<Counts>,
}

impl LocalDisk {
    fn detached(now: Duration) -> LocalDisk {
        LocalDisk::Detached { step: Return::Pausing(now + PAUSE), pause: PAUSE * 2 }
    }
}

impl Detachment {
    /// Of a worker that replaces one whose disk was given up, which was told of these counts.
    pub(super) fn resumed(now: Duration, counts: Counts) -> Detachment {
        Detachment { disk: LocalDisk::detached(now), flushes: Vec::new(), remembered: Some(counts) }
    }

    /// Whether no request is carried out on our disk.
    pub(super) fn is_detached(&self) -> bool {
        matches!(self.disk, LocalDisk::Detached { .. })
    }

    /// Whether the map is not to be written.
    pub(super) fn holds_the_map(&self) -> bool {
        self.is_leaving() && self.step() != Some(Return::Mapping)
    }

    /// Whether metadata are to be written although nothing waits for them; they are being, then.
    pub(super) fn begins_save(&mut self) -> bool {
        let begins = self.step() == Some(Return::Recording);
        if begins {
            self.set_step(Return::Saving);
        }
        begins
    }

    fn step(&self) -> Option<Return> {
        if let LocalDisk::Detached { step, .. } = self.disk { Some(step) } else { None }
    }

    fn set_step(&mut self, new: Return) {
        if let LocalDisk::Detached { step, .. } = &mut self.disk {
            *step = new;
        }
    }

    /// The disk has failed the way back.
    fn pause(&mut self, now: Duration) {
        if let LocalDisk::Detached { step, pause } = &mut self.disk {
            *step = Return::Pausing(now + *pause);
            *pause = (*pause * 2).min(PAUSE_MOST);
        }
    }

    /// When the disk is tried again.
    pub(super) fn deadline(&self) -> Option<Duration> {
        if let Some(Return::Pausing(until)) = self.step() { Some(until) } else { None }
    }

    /// Whether it is being given up, or was.
    pub(super) fn is_leaving(&self) -> bool {
        !matches!(self.disk, LocalDisk::Attached)
    }

    /// Whether a client's flush waits for the disk to be given up.
    pub(super) fn is_busy(&self) -> bool {
        !self.flushes.is_empty()
    }
}

impl Primary {
    /// Our disk cannot write down what it must: gives it up, if the secondary can be relied on. False if not; then what
    /// the disk has failed has failed.
    pub(super) fn leave_disk(&mut self) -> bool {
        if self.detachment.is_leaving() {
            return true;
        }
        if !self.can_be_left() || !matches!(self.phase, Phase::Serving | Phase::Draining(_)) {
            return false;
        }
        log::warn!(
            "The local disk cannot be written: the resource is about to live on the other node's disk."
        );
        self.detachment.disk = LocalDisk::Leaving;
        match self.sync.relying {
            Relying::Durable => self.tell_all(),
            Relying::Flushing(_) => {}
            Relying::No => self.sync.relying = Relying::Flushing(self.flush.ask()),
        }
        true
    }

    /// Whether a secondary of ours is connected that lacks nothing.
    pub(super) fn can_be_left(&self) -> bool {
        keeps(Rule::A5) && self.can_be_relied_on()
    }

    /// Whether a secondary of ours is connected that lacks nothing, and whose count would say after a restart that it is the
    /// source: that of a cloned disk (G1) may be lower than our disk says, until the nodes are equal.
    pub(super) fn can_be_relied_on(&self) -> bool {
        self.link.is_up()
            && self.link.is_ours()
            && self.link.peer_counts().local >= self.meta.remotecnt()
            && !self.secondary_is_behind()
    }

    /// A client's flush that our disk has failed waits until it is given up; false if it is not.
    pub(super) fn flush_waits_for_leaving(&mut self, id: RequestId) -> bool {
        if self.detachment.is_detached() || !self.leave_disk() {
            return false;
        }
        self.detachment.flushes.push(id);
        true
    }

    /// Step 2 has ended on the secondary, `well` or not, or the secondary is gone.
    pub(super) fn left_after_flush(&mut self, well: bool) {
        if !matches!(self.detachment.disk, LocalDisk::Leaving) {
            return;
        }
        if well && self.can_be_left() { self.tell_all() } else { self.stay() }
    }

    /// Step 3, and step 5.
    pub(super) fn tell_all(&mut self) {
        let length = self.layout.datasize();
        self.sync.lacks_nothing();
        self.mark(Awaited::Left, MarkKind::Stale { offset: 0, length });
    }

    /// The secondary has written down that it alone is right, or has not. In step 5 our disk may work again by now: then it
    /// stays in use.
    pub(super) fn left(&mut self, result: Result<(), Errno>) {
        let is_step_3 = matches!(self.detachment.disk, LocalDisk::Leaving);
        match result {
            Err(_) if is_step_3 => return self.stay(),
            Err(error) => {
                return self
                    .lose_link(format!("The secondary cannot write down that it alone is right: {error}"));
            }
            Ok(()) if is_step_3 => self.remember_detachment(),
            Ok(()) => {}
        }
        let counted = self.link.peer_counted();
        if !self.sync.target {
            self.metadata.remotecnt = counted;
        }
        if !is_step_3 {
            return self.up_when_marked();
        }
        log::error!(
            "The local disk cannot be written: the resource lives on the disk of {} alone.",
            self.link.name()
        );
        self.detachment.disk = LocalDisk::detached(self.now);
        self.sync.unable_to_record = true;
        self.all_is_stale();
        self.stop_copying();
        self.begin_session();
        for id in std::mem::take(&mut self.detachment.flushes) {
            self.complete(id, Ok(None)); // step 2 has covered what it covers
        }
        self.issue_what_waits_for_the_map();
    }

    /// The disk stays in use, and has failed what waits for it.
    fn stay(&mut self) {
        log::error!("The local disk cannot be written, and the secondary cannot be relied on.");
        self.detachment.disk = LocalDisk::Attached;
        if !self.sync.unable_to_record {
            self.forget_detachment(); // the nodes have become equal meanwhile
        }
        for id in std::mem::take(&mut self.detachment.flushes) {
            self.complete(id, Err(Errno::EIO));
        }
        self.fail_what_waits_for_the_map(Errno::EIO);
    }

    /// A worker that replaces one whose disk was given up.
    pub(super) fn resume_detached(&mut self) {
        self.sync.unable_to_record = true;
        self.all_is_stale();
        self.begun = true;
        self.phase = Phase::Connecting;
        self.connect();
    }

    /// Step 6, when it is time.
    pub(super) fn detachment_timeout(&mut self) {
        if self.detachment.deadline().is_some_and(|deadline| deadline <= self.now) {
            self.detachment.set_step(Return::Mapping);
            self.map.distrust(); // all of it is written
        }
    }

    /// The map was written while the disk is given up, or could not be.
    pub(super) fn map_written_detached(&mut self, well: bool) {
        if self.detachment.step() != Some(Return::Mapping) {
            return;
        }
        if !well {
            self.detachment.pause(self.now);
        } else if !self.map.wants_write() {
            self.detachment.set_step(Return::Recording);
        }
    }

    /// Metadata that call all of the disk stale were written, or could not be.
    pub(super) fn recorded_detached(&mut self, well: bool) {
        if self.detachment.step() != Some(Return::Saving) {
            return;
        }
        if !well {
            return self.detachment.pause(self.now);
        }
        log::warn!(
            "The local disk can be written again: all of it is synchronized from {}.",
            self.link.name()
        );
        self.detachment.disk = LocalDisk::Attached;
        self.forget_detachment();
        if self.link.is_up() {
            self.begin_session();
        }
    }

    /// The secondary has written down that it alone is right, before it counted for that: a worker that replaces this one
    /// is to find that it has counted since, and is the source. What this node had counted the secondary has by now.
    pub(super) fn remember_detachment(&mut self) {
        if self.detachment.remembered.is_none() {
            self.remember_counts();
        }
    }

    /// The nodes have become equal: what the driver was told of counts is older than that.
    pub(super) fn recount_detachment(&mut self) {
        if self.detachment.remembered.is_some() {
            self.remember_counts();
        }
    }

    fn remember_counts(&mut self) {
        let local = self.metadata.localcnt.min(self.sync.told);
        self.detachment.remembered = Some(Counts { local, remote: self.metadata.remotecnt });
        self.remember_again();
    }

    /// What is written down now a worker that replaces this one begins from, too: with an older number of the connection
    /// or of the map (G1) the secondary would take its disk for one that was set back. The counts stay what they were.
    pub(super) fn remember_again(&mut self) {
        let Some(counts) = self.detachment.remembered else { return };
        let mut metadata = self.metadata.clone();
        (metadata.localcnt, metadata.remotecnt) = (counts.local, counts.remote);
        // Nothing was written alone since: what this node counted the secondary has.
        metadata.extension.connection_localcnt = counts.local;
        self.actions.push_back(Action::Detached(Box::new(metadata)));
    }

    /// What our disk says is right again.
    pub(super) fn forget_detachment(&mut self) {
        if self.detachment.remembered.take().is_some() {
            self.actions.push_back(Action::Attached);
        }
    }

    fn all_is_stale(&mut self) {
        for extent in 0..self.sync.stale.len() {
            self.sync.stale.insert(extent);
            self.map.mark_dirty(extent);
        }
    }
}
