//! Flushes: one at a time on both nodes, shared by every client that waits, and by the map's housekeeping.
//!
//! A flush covers what was answered before it began. A client's flush also covers writes that were completed
//! before the secondary had stored them (async; memsync after `received`): the secondary is asked to flush
//! only when it has answered those.

use core::time::Duration;

use hast_format::bitmap::Bitmap;
use hast_net::errno::Errno;
use hast_net::handshake::SyncSource;
use hast_net::message::Command;
use smallvec::SmallVec;

use super::dropped::Became;
use super::link::Awaited;
use super::{Phase, Primary, Purpose};
use crate::rule::{Rule, keeps};
use crate::types::{DiskResult, RequestId};
use crate::verdict::{FlushEnding, Flushed, flush_ending};

/// The map's housekeeping flushes at latest this long after the first answer that no flush covers (M2).
const LATEST: Duration = Duration::from_secs(1);
/// ... or as soon as this many extents wait: with the usual size 2 GiB, which is what would have to be copied at most
/// though it is equal. The more they are, the seldomer a working set that size costs map writes again.
const EXTENTS: u32 = 1024;

/// Clients' flushes: mostly one, which then is no allocation.
type Clients = SmallVec<[RequestId; 4]>;

/// The flush under way and those who want the next one.
#[derive(Debug, Default)]
pub(super) struct Flush {
    running: Option<Run>,
    waiting: Clients,
    /// Clients whose flush the local disk has failed: the next one tells whether the secondary has it all.
    again: Clients,
    /// Somebody other than a client wants one: the ticket of the last who asked, and of the last one served.
    asked: u64,
    begun: u64,
    /// When the first answer came that no flush has covered.
    unflushed_since: Option<Duration>,
    /// A flush failed for somebody else, and what only this node has may have been dropped: the next client to
    /// ask hears of it.
    owed: Option<Errno>,
    /// Clients wait until then for a secondary whose disk is the only one.
    patience: Option<Duration>,
    /// After a failure housekeeping waits until then.
    not_before: Option<Duration>,
    /// The local disk has no cache to flush (M4).
    no_local_cache: bool,
    /// The peer's disk has none.
    no_peer_cache: bool,
    /// Clients whose flush is done but for a durable rise of localcnt, by this save (C1 (b), (d)).
    counting: Vec<Counting>,
    /// Clients whose flush is done but for the secondary, which failed it, to mark itself (L9).
    marking: Vec<(RequestId, DiskResult)>,
}

/// A client's flush that waits for a save of the metadata.
#[derive(Debug)]
struct Counting {
    id: RequestId,
    save: u64,
    result: DiskResult,
    /// The secondary, if it is there, has to know that it may lack what the flush covers.
    mark: bool,
}

#[derive(Debug)]
struct Run {
    clients: Clients,
    /// Those among them who wait for the second time.
    again: Clients,
    /// Everybody who asked up to this ticket is served.
    ticket: u64,
    local: Part,
    remote: Part,
    /// Extents that the secondary alone had stored when it began.
    lone: Bitmap,
    /// What our disk had dropped when it failed its part.
    dropped: Bitmap,
    /// Since it began our disk has got something back that the secondary alone had, and that the metadata do not call
    /// stale: what it covers may be on our disk in a version that it does not cover.
    misses_something: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    /// Waits until the secondary has answered all that it was asked up to this number.
    Behind(u64),
    Awaited,
    Done,
    /// There is no cache to flush.
    Unsupported,
    /// The local disk is given up: the secondary's is the one that counts.
    Detached,
    /// There is no secondary.
    Absent,
    /// The connection broke.
    Lost,
    Failed(Errno),
}

impl Part {
    fn is_over(self) -> bool {
        !matches!(self, Part::Behind(_) | Part::Awaited)
    }

    /// How that node failed.
    fn failure(self) -> Option<Errno> {
        if let Part::Failed(error) = self { Some(error) } else { None }
    }

    /// Whether what was answered before is durable on that node.
    fn is_durable(self) -> bool {
        matches!(self, Part::Done | Part::Unsupported | Part::Detached)
    }
}

impl From<Part> for Flushed {
    fn from(part: Part) -> Flushed {
        match part {
            Part::Done | Part::Unsupported | Part::Detached => Flushed::Yes,
            Part::Failed(_) => Flushed::Failed,
            Part::Behind(_) | Part::Awaited | Part::Absent | Part::Lost => Flushed::Unknown,
        }
    }
}

impl Flush {
    /// A client's flush; it begins with the next [`Primary::kick_flush`].
    pub(super) fn request(&mut self, id: RequestId) {
        self.waiting.push(id);
    }

    /// Our disk has got something back that the secondary alone had, and may lose that without anybody knowing.
    pub(super) fn may_miss_something(&mut self) {
        if let Some(run) = &mut self.running {
            run.misses_something = true;
        }
    }

    /// Whether no client's flush waits for a save of the metadata other than `save`.
    pub(super) fn awaits_only(&self, save: Option<u64>) -> bool {
        self.counting.iter().all(|waiting| save == Some(waiting.save))
    }

    /// Wants a flush that begins from now on; gives a ticket that the flush will name.
    pub(super) fn ask(&mut self) -> u64 {
        self.asked += 1;
        self.asked
    }

    pub(super) fn is_busy(&self) -> bool {
        self.running.is_some()
            || !self.waiting.is_empty()
            || !self.again.is_empty()
            || self.asked > self.begun
            || !self.counting.is_empty()
            || !self.marking.is_empty()
    }

    /// Whether a client waits for the secondary to mark itself.
    pub(super) fn awaits_mark(&self) -> bool {
        !self.marking.is_empty()
    }

    /// The disk has failed a flush that no client waited for.
    pub(super) fn owe(&mut self, error: Errno) {
        self.owed = Some(error);
    }

    /// Whether the last flush failed, and that only just.
    pub(super) fn is_paused(&self, now: Duration) -> bool {
        self.paused_until(now).is_some()
    }

    /// When that is over.
    pub(super) fn paused_until(&self, now: Duration) -> Option<Duration> {
        self.not_before.filter(|at| *at > now)
    }

    pub(super) fn no_local_cache(&mut self) {
        self.no_local_cache = true;
    }

    pub(super) fn note_unflushed(&mut self, now: Duration) {
        self.unflushed_since.get_or_insert(now);
    }

    /// A new connection: its disk may have a cache.
    pub(super) fn peer_connected(&mut self) {
        self.no_peer_cache = false;
    }
}

impl Primary {
    /// Begins a flush if one is wanted and none is under way.
    pub(super) fn kick_flush(&mut self) {
        let serving = matches!(self.phase, Phase::Serving | Phase::Draining(_));
        let many = self.link.is_up() && self.map.unflushed() >= EXTENTS && !self.flush.is_paused(self.now);
        let clients = !self.flush.waiting.is_empty() || !self.flush.again.is_empty();
        let wanted = self.flush.asked > self.flush.begun || clients || many;
        if !serving || !wanted || self.flush.running.is_some() || self.flush_waits_for_secondary(clients) {
            return;
        }
        self.flush.begun = self.flush.asked;
        self.flush.patience = None;
        self.flush.unflushed_since = None;
        self.map.flush_begins();
        self.turning.flush_begins();
        // An empty one need not be as long as the provider is large.
        let lone = if self.sync.lone.is_empty() {
            Bitmap::new(0)
        } else {
            std::mem::replace(&mut self.sync.lone, Bitmap::new(self.sync.stale.len()))
        };
        let local = if self.detachment.is_detached() {
            Part::Detached
        } else if self.flush.no_local_cache {
            Part::Unsupported
        } else {
            Part::Awaited
        };
        let remote = if self.link.is_up() && !keeps(Rule::L10) {
            Part::Unsupported // cleared without asking
        } else if !self.link.is_up() {
            Part::Absent
        } else {
            Part::Behind(self.link.last_seq())
        };
        let clients = std::mem::take(&mut self.flush.waiting);
        let again = std::mem::take(&mut self.flush.again);
        self.flush.running = Some(Run {
            clients,
            again,
            ticket: self.flush.begun,
            local,
            remote,
            lone,
            dropped: Bitmap::new(0),
            misses_something: false,
        });
        if local == Part::Awaited {
            self.flush_disk(Purpose::Flush);
        }
        self.advance_flush();
        // On disks without a cache it has ended by now, and may have asked for another one.
        self.kick_flush();
    }

    /// Without our disk and without the secondary no flush can succeed: those of clients wait for `timeout`.
    fn flush_waits_for_secondary(&mut self, clients: bool) -> bool {
        let waits = self.detachment.is_detached() && !self.link.is_up() && self.phase == Phase::Serving;
        if !waits || !clients {
            self.flush.patience = None;
            return waits;
        }
        let until = *self.flush.patience.get_or_insert(self.now + self.settings.timeout);
        until > self.now
    }

    /// The secondary has answered something: a flush may have waited for it.
    pub(super) fn advance_flush(&mut self) {
        let Some(run) = &mut self.flush.running else { return };
        if let Part::Behind(seq) = run.remote
            && !self.link.awaits_writes_up_to(seq)
        {
            if self.flush.no_peer_cache {
                run.remote = Part::Unsupported;
            } else {
                run.remote = Part::Awaited;
                self.ask(Awaited::Flush, Command::Flush, 0, 0, false, None);
            }
        }
        self.end_flush();
    }

    pub(super) fn locally_flushed(&mut self, result: DiskResult) {
        let dropped = self.has_dropped().then(|| self.durable.error());
        let part = match result.and_then(|ok| dropped.map_or(Ok(ok), Err)) {
            Ok(_) => Part::Done,
            Err(Errno::EOPNOTSUPP) => {
                self.flush.no_local_cache = true;
                Part::Unsupported
            }
            Err(error) => {
                log::error!("Local request failed ({error}): FLUSH.");
                self.statistics.flush_errors += 1;
                Part::Failed(error)
            }
        };
        if let Some(run) = &mut self.flush.running {
            run.local = part;
            if part.failure().is_some() {
                run.dropped.clone_from(self.durable.dropped());
            }
        }
        self.end_flush();
    }

    /// The secondary has flushed. It may have no cache; the original then says EINVAL from the second time on
    /// (M4).
    pub(super) fn remotely_flushed(&mut self, result: Result<(), Errno>) {
        let part = match result {
            Ok(()) => Part::Done,
            Err(error)
                if (error == Errno::EOPNOTSUPP && keeps(Rule::M4))
                    || (error == Errno::EINVAL && !self.link.is_ours()) =>
            {
                log::warn!("Remote request failed ({error}): FLUSH.");
                self.flush.no_peer_cache = true;
                Part::Unsupported
            }
            Err(error) => {
                log::warn!("Remote request failed ({error}): FLUSH.");
                Part::Failed(error)
            }
        };
        if let Some(run) = &mut self.flush.running {
            run.remote = part;
        }
        self.end_flush();
    }

    /// The connection broke: the flush under way speaks for this node alone.
    pub(super) fn remote_flush_lost(&mut self) {
        if let Some(run) = &mut self.flush.running
            && !run.remote.is_over()
        {
            run.remote = Part::Lost;
        }
        self.end_flush();
    }

    fn end_flush(&mut self) {
        let Some(mut run) = self.flush.running.take_if(|run| run.local.is_over() && run.remote.is_over())
        else {
            return;
        };
        if !run.remote.is_durable() {
            for extent in run.lone.iter().filter(|extent| self.sync.stale.contains(*extent)) {
                self.sync.lone.insert(extent);
            }
        }
        let excused = self.apply_flush(&mut run);
        // Clients wait for the next flush then, once.
        let written_again = self.is_written_again(&run.dropped);
        if written_again {
            self.flush.again.append(&mut run.clients);
        }
        let Run { clients, again, ticket, local, remote, misses_something, .. } = run;
        let mut clients: Clients = clients.into_iter().chain(again).collect();
        let mut result = match (local, remote) {
            (_, remote) if self.is_cut_off() && !remote.is_durable() => Err(Errno::ENOTCONN),
            (Part::Failed(error), _) if (!excused || written_again) && keeps(Rule::L9) => Err(error),
            (Part::Failed(_), Part::Done | Part::Unsupported) => Ok(None),
            (Part::Failed(error), _) => Err(error),
            // What is on the secondary alone it was not asked to flush, or did not.
            _ if !self.sync.lone.is_empty() && !remote.is_durable() => Err(Errno::EIO),
            (Part::Detached | Part::Unsupported, Part::Done) | (Part::Done, _) => Ok(None),
            (Part::Detached, remote) if remote != Part::Unsupported => Err(Errno::EIO),
            _ => Err(Errno::EOPNOTSUPP),
        };
        if let Part::Failed(error) = local
            && !excused
        {
            self.flush.owe(error);
        }
        if !clients.is_empty()
            && let Some(error) = self.flush.owed.take()
        {
            result = Err(error);
        }
        if misses_something && result.is_ok() {
            self.flush.waiting.append(&mut clients); // the next one covers it
        }
        self.end_clients(clients, result, remote.is_durable());
        self.end_flushing(ticket, remote.is_durable(), remote.failure());
        self.end_turning();
        self.turn_dropped();
    }

    /// Whether some of `dropped` is on our disk again, where no flush has covered it so far.
    fn is_written_again(&self, dropped: &Bitmap) -> bool {
        let stale = &self.sync.stale;
        dropped.iter().any(|extent| !stale.contains(extent) && !self.durable.dropped().contains(extent))
    }

    /// What the map, the stale extents and the counts learn from a flush that has ended (L9). Clients that have to
    /// wait for the next one are taken out of `run`. True if our disk failed, and the secondary has made up for it.
    fn apply_flush(&mut self, run: &mut Run) -> bool {
        let good = run.local.is_durable() && run.remote.is_durable();
        // It began before this connection, or while an earlier one was lost: it says nothing about the secondary.
        let met = matches!(run.remote, Part::Absent | Part::Lost) && self.link.is_up() && keeps(Rule::A1);
        self.flush.not_before = (!good && !met).then(|| self.now + LATEST);
        if run.remote.is_durable() {
            self.given_up_becomes_stale();
        }
        match flush_ending(run.local.into(), run.remote.into()) {
            FlushEnding::PeerMayLose => {
                let lacks = self.secondary_may_lack();
                self.turning.clear();
                self.map.peer_lost();
                self.spoil_copies(SyncSource::Primary);
                self.begin_session();
                self.sync_failed();
                self.sync.unconfirmed = true;
                if lacks {
                    self.owe_count();
                }
            }
            FlushEnding::StaleHere => return self.stale_after_flush(run),
            FlushEnding::Durable => {
                self.map.flush_succeeded();
                self.copies_are_durable(run.ticket);
            }
            FlushEnding::NotDurable => {
                self.map.flush_failed();
                if met {
                    self.flush.waiting.append(&mut run.clients);
                    self.flush.note_unflushed(self.now);
                    self.flush_again_for_copies();
                } else if self.link.is_up() {
                    self.flush.note_unflushed(self.now);
                    self.sync_failed();
                }
            }
        }
        false
    }

    /// Our disk has failed a flush, and the secondary has not.
    fn stale_after_flush(&mut self, run: &mut Run) -> bool {
        let became = self.dropped_becomes_stale();
        match became {
            Became::Stale | Became::Impossible => {}
            // Those who have waited in vain before are not concerned by what was dropped since.
            Became::Later => {
                self.flush.again.append(&mut run.clients);
                run.clients = std::mem::take(&mut run.again);
            }
            Became::NotYet => {
                self.flush.again.append(&mut run.clients);
                self.flush.again.append(&mut run.again);
            }
        }
        self.map.flush_failed();
        self.flush.note_unflushed(self.now);
        self.begin_session();
        became != Became::Impossible
    }

    /// Clients hear of their flush, once the metadata says what they may rely on from then on (C1 (b), (d), L3), and
    /// a secondary that failed has marked itself (L9).
    fn end_clients(&mut self, clients: Clients, result: DiskResult, flushed_there: bool) {
        let good = !matches!(result, Err(error) if error != Errno::EOPNOTSUPP);
        // What it has flushed may be what it had before it lost power.
        let lacks = if flushed_there {
            self.secondary_lacks_something() && !self.secondary_has_all()
        } else {
            self.secondary_may_lack()
        };
        if good && lacks && !clients.is_empty() && keeps(Rule::C1d) {
            self.owe_count();
        }
        let mut counting = self.count_owed();
        if !self.detachment.is_detached() && !self.sync.stale.is_subset(&self.sync.known) {
            counting = Some(self.save_metadata());
        }
        let counting = counting.filter(|save| good && !self.meta.is_durable(*save));
        // It may lack something that it has refused although its flush was good.
        let mark = good && keeps(Rule::L9Marked);
        for id in clients {
            let result = result.clone();
            match counting {
                Some(save) => self.flush.counting.push(Counting { id, save, result, mark }),
                None => self.end_client(id, result, mark),
            }
        }
    }

    /// Whether some extent of which somebody may rely on our copy is not known to be durable on the secondary.
    fn secondary_may_lack(&self) -> bool {
        let known = self.map_complete
            && !self.map.has_not_durable()
            && !self.is_owed(&(0..u32::MAX))
            && self.map.to_synchronise().is_subset(&self.sync.stale);
        !known && !self.secondary_has_all()
    }

    /// A client hears of its flush; with `mark` a connected secondary marks itself first, if it may lack something.
    fn end_client(&mut self, id: RequestId, result: DiskResult, mark: bool) {
        if mark && self.link.is_up() && self.secondary_lacks_something() {
            self.flush.marking.push((id, result));
        } else {
            self.complete(id, result);
        }
    }

    /// What waited for localcnt to rise by `save` is complete, or has failed.
    pub(super) fn end_counting_flushes(&mut self, save: u64, result: DiskResult) {
        let (due, rest): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.flush.counting).into_iter().partition(|waiting| waiting.save <= save);
        self.flush.counting = rest;
        for Counting { id, result: outcome, mark, .. } in due {
            if result.is_err() && self.flush_waits_for_leaving(id) {
                continue;
            }
            let outcome = result.clone().and(outcome);
            let mark = mark && result.is_ok();
            self.end_client(id, outcome, mark);
        }
    }

    /// The secondary has marked itself, or is gone.
    pub(super) fn end_marking_flushes(&mut self) {
        for (id, result) in std::mem::take(&mut self.flush.marking) {
            self.complete(id, result);
        }
    }

    pub(super) fn flush_timeout(&mut self) {
        if self.flush_deadline().is_some_and(|deadline| deadline <= self.now) {
            self.flush.ask();
        }
    }

    pub(super) fn flush_deadline(&self) -> Option<Duration> {
        if self.flush.patience.is_some() {
            return self.flush.patience;
        }
        if self.flush.running.is_some() || !self.link.is_up() {
            return None;
        }
        self.flush.unflushed_since.map(|since| since + LATEST)
    }
}
