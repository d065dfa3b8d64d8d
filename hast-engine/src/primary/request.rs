//! A device request from its arrival to its completion.

mod deletes;
mod pieces;
mod waiting;
mod write;

use core::ops::Range;
use core::time::Duration;

use hast_format::activemap::Outcome;
use hast_net::Replication;
use hast_net::buffer::Buffer;
use hast_net::errno::Errno;
use hast_net::message::Command;

pub(super) use waiting::Waiting;

use super::link::Awaited;
use super::sync::Relying;
use super::{AfterDrain, Drain, Phase, Primary, Purpose, exactly};
use crate::ranges::Key;
use crate::rule::{Rule, keeps};
use crate::types::{DiskOp, DiskResult, MAX_REQUEST, Op, RequestId};
use crate::verdict::Half;

/// A read, write or delete under way.
#[derive(Debug)]
pub(super) struct Request {
    id: RequestId,
    op: Op,
    extents: Range<u32>,
    stage: Stage,
    local: Half,
    remote: Half,
    /// memsync: the secondary has the data, though not on its disk yet.
    received: bool,
    /// The connection that it went out on.
    epoch: u64,
    /// A read that no node can answer alone.
    pieces: Option<Box<pieces::Pieces>>,
    /// Until when it waits for a secondary that is not there, however often that comes and goes.
    patience: Option<Duration>,
    /// Bytes of memory that it may hold.
    weight: u64,
    /// A local flush failed meanwhile: the system may have dropped what it took.
    suspect: bool,
    /// The secondary has flushed since it stored it.
    flushed: bool,
    /// Extents that count as stale here because of this write.
    staled: Vec<u32>,
}

impl Request {
    pub(super) fn extents(&self) -> Range<u32> {
        self.extents.clone()
    }

    pub(super) fn op(&self) -> &Op {
        &self.op
    }

    /// Whether our disk has it, and has not answered.
    pub(super) fn is_with_the_disk(&self) -> bool {
        self.local == Half::Awaited
    }

    /// Whether the device has its answer, and the secondary has yet to store some of `extents`.
    fn is_owed(&self, extents: &Range<u32>) -> bool {
        self.stage == (Stage::Completed { well: true })
            && self.remote == Half::Awaited
            && self.extents.start < extents.end
            && extents.start < self.extents.end
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Overlaps an earlier request.
    Queued,
    /// Needs the secondary, which is not there, until then.
    Parked(Duration),
    /// A write whose bits are not durable yet.
    Map,
    /// With the disk, the peer or both.
    Issued,
    /// Stored there, and nowhere else or of no use elsewhere: the secondary has to flush it, with this flush.
    Flushing(u64),
    /// Stored, but the metadata has to say something durably first, with this save (C1, L3).
    Saving(u64),
    /// Stored here alone, and counted; the secondary, which failed, has to mark itself first (L6).
    Marking,
    /// Stored there alone, and the metadata cannot be written: the secondary flushes all that is complete (S1) ...
    Relying,
    /// ... and has to remember it (L3).
    Telling,
    /// The device has its answer, a good one or not; a half may still be awaited.
    Completed { well: bool },
    /// A read for the secondary, which has yet to store what is complete already (R1).
    Owed,
    /// A read that only the secondary could answer is written back.
    Repairing,
}

impl Primary {
    pub(super) fn take_request(&mut self, id: RequestId, op: Op) {
        match op {
            Op::Read { .. } => self.statistics.reads += 1,
            Op::Write { .. } => self.statistics.writes += 1,
            Op::Delete { .. } => self.statistics.deletes += 1,
            Op::Flush => self.statistics.flushes += 1,
        }
        let (offset, length) = op.range();
        let invalid = match op {
            Op::Flush => false,
            Op::Delete { .. } => self.layout.check_range(offset, length).is_err(),
            Op::Read { .. } | Op::Write { .. } => {
                length > u64::from(MAX_REQUEST) || self.layout.check_range(offset, length).is_err()
            }
        };
        if invalid {
            log::warn!("The device asked for {length} bytes at {offset}, which are not in the data area.");
            return self.complete(id, Err(Errno::EINVAL));
        }
        match self.phase {
            Phase::Serving => self.admit(id, op),
            Phase::Starting
            | Phase::Connecting
            | Phase::Draining(Drain { after: AfterDrain::Reconnect, .. }) => self.held.push_back((id, op)),
            Phase::Draining(_) | Phase::Ended => self.complete(id, Err(Errno::ECANCELED)),
        }
    }

    pub(super) fn admit(&mut self, id: RequestId, op: Op) {
        if matches!(op, Op::Flush) {
            return self.flush.request(id);
        }
        if matches!(op, Op::Delete { .. }) && !self.can_delete() {
            return self.complete(id, Err(Errno::EOPNOTSUPP));
        }
        let key = self.new_key();
        let (offset, length) = op.range();
        let shared = matches!(op, Op::Read { .. });
        let extents = self.layout.extents_of(offset, length);
        let weight = if matches!(op, Op::Delete { .. }) { 0 } else { length };
        let request = Request {
            id,
            op,
            extents,
            stage: Stage::Queued,
            local: Half::NotAsked,
            remote: Half::NotAsked,
            received: false,
            epoch: 0,
            pieces: None,
            patience: None,
            weight,
            suspect: false,
            flushed: false,
            staled: Vec::new(),
        };
        self.bytes = self.bytes.saturating_add(weight);
        self.requests.insert(key, request);
        if self.ranges.insert(key, offset..offset.saturating_add(length), shared) {
            self.request_ready(key);
        }
    }

    /// Nothing earlier overlaps `key` any more, or the secondary that it waited for is here.
    pub(super) fn request_ready(&mut self, key: Key) {
        let Some(request) = self.requests.get_mut(&key) else { return };
        let extents = request.extents();
        let is_read = matches!(request.op, Op::Read { .. });
        if !self.link.is_up() && self.needs_secondary(key) {
            return self.park(key);
        }
        if self.is_cut_off() {
            // A read may have waited for a write that has failed here, and would bring what the next primary lacks.
            return self.not_issued(key, Errno::ENOTCONN);
        }
        if is_read {
            return self.issue_read(key);
        }
        self.map.start(extents.clone());
        if self.map.is_durable(extents) || self.detachment.is_detached() || !keeps(Rule::M1) {
            self.issue_write(key);
        } else {
            self.set_stage(key, Stage::Map);
            self.wait_for_map(key);
        }
    }

    /// Keeps `key` until the secondary is here, for `timeout` at most since it first was not.
    fn park(&mut self, key: Key) {
        if self.is_delete(key) {
            return self.refuse_to_wait(key);
        }
        if matches!(self.phase, Phase::Draining(_)) {
            self.set_stage(key, Stage::Queued);
            return self.not_issued(key, Errno::EIO);
        }
        if self.link.is_up() {
            return self.request_ready(key); // it is back already
        }
        let until = self.now + self.settings.timeout;
        let Some(request) = self.requests.get_mut(&key) else { return };
        let until = if keeps(Rule::A6) { *request.patience.get_or_insert(until) } else { until };
        self.set_stage(key, Stage::Parked(until));
    }

    /// Whether `key` makes no sense without the secondary: a read of what is out of date here, a write that
    /// would mix new data into that, any write while this node is itself the target of a synchronisation or
    /// cannot write down what it misses (durability.md, out-of-date nodes, stale ranges).
    fn needs_secondary(&self, key: Key) -> bool {
        self.relies(key) || self.is_turning(key) || (!self.link.is_up() && self.is_recorded(key))
    }

    /// Whether some of `key`'s extents are about to make no sense without the secondary.
    fn is_turning(&self, key: Key) -> bool {
        let turning = |extent| self.turning.contains(extent);
        self.requests.get(&key).is_some_and(|request| request.extents().any(turning))
    }

    /// The same, whatever the metadata on disk still says.
    fn relies(&self, key: Key) -> bool {
        let Some(request) = self.requests.get(&key) else { return false };
        let is_write = !matches!(request.op, Op::Read { .. });
        if is_write && self.rests_on_secondary() {
            return true;
        }
        let stale = |extent| self.sync.stale.contains(extent);
        request.extents().any(|extent| stale(extent) && !(is_write && self.covers(&request.op, extent)))
    }

    /// Whether no write is complete without the secondary: this node is its target, or cannot write down what it misses,
    /// or is about to say so.
    pub(super) fn rests_on_secondary(&self) -> bool {
        self.sync.target || self.sync.unable_to_record || self.sync.relying != Relying::No
    }

    /// Whether `key` is a write to what the metadata on disk may still call stale: stored here alone it would be
    /// copied over after a crash.
    fn is_recorded(&self, key: Key) -> bool {
        let Some(request) = self.requests.get(&key) else { return false };
        !matches!(request.op, Op::Read { .. })
            && request
                .extents()
                .any(|extent| self.sync.recorded.contains(extent) && !self.covers(&request.op, extent))
    }

    /// Whether some of `key`'s extents are stale, or may still be called so by the metadata on disk.
    fn is_called_stale(&self, key: Key) -> bool {
        let called = |extent| self.sync.stale.contains(extent) || self.sync.recorded.contains(extent);
        self.requests.get(&key).is_some_and(|request| request.extents().any(called))
    }

    /// Whether `op` writes all of `extent`, so that nothing of what was there matters.
    fn covers(&self, op: &Op, extent: u32) -> bool {
        let (offset, length) = op.range();
        let (first, size) = self.layout.extent_range(extent);
        matches!(op, Op::Write { .. })
            && offset <= first
            && offset.saturating_add(length) >= first.saturating_add(u64::from(size))
    }

    /// Whether our copy of `extent` is right and the secondary's is not.
    pub(super) fn is_behind(&self, extent: u32) -> bool {
        self.map.to_synchronise().contains(extent)
            && !self.sync.stale.contains(extent)
            && !self.turning.contains(extent)
    }

    /// Whether [`is_behind`](Self::is_behind) says so of any extent.
    pub(super) fn secondary_is_behind(&self) -> bool {
        self.map.to_synchronise().iter().any(|extent| self.is_behind(extent))
    }

    fn issue_read(&mut self, key: Key) {
        let mut remote = self.link.is_up() && self.needs_secondary(key);
        if remote && self.is_mixed(key) {
            self.read_a_piece(key);
            remote = self.needs_secondary(key);
        }
        if remote {
            return self.read_remotely(key);
        }
        self.set_stage(key, Stage::Issued);
        let Some(request) = self.requests.get_mut(&key) else { return };
        let Op::Read { offset, length } = request.op else { return };
        request.local = Half::Awaited;
        let offset = self.layout.localoff() + offset;
        self.disk(Purpose::Request(key), DiskOp::Read { offset, length });
    }

    /// R1: the secondary is asked for what `key` reads, once it has stored all that is complete of it.
    fn read_remotely(&mut self, key: Key) {
        let Some(request) = self.requests.get(&key) else { return };
        if self.is_owed(&request.extents()) && keeps(Rule::R1) {
            return self.set_stage(key, Stage::Owed);
        }
        self.set_stage(key, Stage::Issued);
        let Some(request) = self.requests.get_mut(&key) else { return };
        let Op::Read { offset, length } = request.op else { return };
        request.remote = Half::Awaited;
        self.ask(Awaited::Request(key), Command::Read, offset, u64::from(length), false, None);
    }

    /// The secondary has answered something that was complete already: reads that waited for that go on.
    pub(super) fn end_owed(&mut self) {
        for key in std::mem::take(&mut self.waiting.reads) {
            let Some(request) = self.requests.get(&key) else { continue };
            let failed_here = matches!(request.local, Half::Failed(_));
            self.set_stage(key, Stage::Issued);
            if failed_here { self.advance_read(key, None) } else { self.request_ready(key) }
        }
    }

    /// Sends a write or delete to disk and peer; its bits are durable (M1).
    pub(super) fn issue_write(&mut self, key: Key) {
        let repairing = matches!(self.requests.get(&key), Some(Request { stage: Stage::Repairing, .. }));
        if !repairing && !self.link.is_up() && self.needs_secondary(key) {
            // The secondary went away while the map was being written.
            let Some(request) = self.requests.get(&key) else { return };
            self.map.finish(request.extents(), Outcome::NotIssued);
            return self.park(key);
        }
        if self.is_delete(key) && !self.can_delete() {
            return self.refuse_delete(key); // another secondary has come meanwhile
        }
        let up = self.link.is_up() && !repairing;
        let detached = self.detachment.is_detached();
        if detached && repairing {
            return self.repaired(key); // nobody would answer: the disk has been given up meanwhile
        }
        let memsync = self.settings.replication == Replication::Memsync && self.link.version() >= 2;
        let Some(request) = self.requests.get_mut(&key) else { return };
        request.suspect = false;
        request.flushed = false;
        request.epoch = self.link.epoch();
        request.local = if detached { Half::Failed(Errno::EIO) } else { Half::Awaited };
        request.remote = if up { Half::Awaited } else { Half::NotAsked };
        if !repairing {
            self.set_stage(key, Stage::Issued);
        }
        let Some(request) = self.requests.get(&key) else { return };
        let localoff = self.layout.localoff();
        let (op, command, data) = match &request.op {
            Op::Write { offset, data } => {
                let op = DiskOp::Write { offset: localoff + offset, data: data.clone() };
                (op, Command::Write, Some(data.clone()))
            }
            Op::Delete { offset, length } => {
                (DiskOp::Delete { offset: localoff + offset, length: *length }, Command::Delete, None)
            }
            Op::Read { .. } | Op::Flush => return,
        };
        let (offset, length) = request.op.range();
        if up {
            let memsync = memsync && command == Command::Write;
            self.ask(Awaited::Request(key), command, offset, length, memsync, data);
        }
        if !detached {
            self.disk(Purpose::Request(key), op);
        }
    }

    /// `key` was given to nobody and never will be.
    pub(super) fn not_issued(&mut self, key: Key, error: Errno) {
        let Some(request) = self.take_out(key) else { return };
        if matches!(request.stage, Stage::Map | Stage::Repairing) {
            self.map.finish(request.extents(), Outcome::NotIssued);
        }
        if request.stage != Stage::Repairing {
            self.complete(request.id, Err(error));
        }
        self.release(key);
    }

    pub(super) fn local_answered(&mut self, key: Key, result: DiskResult) {
        let Some(request) = self.requests.get_mut(&key) else { return };
        let mut data = None;
        request.local = match result {
            Ok(read) => {
                data = read;
                Half::Done
            }
            Err(error) => Half::Failed(error),
        };
        if matches!(request.op, Op::Write { .. } | Op::Delete { .. }) {
            let extents = request.extents();
            if request.suspect {
                self.durable.may_have_dropped(extents.clone());
                self.turn(extents);
                self.flush.note_unflushed(self.now);
            } else {
                self.durable.wrote(extents);
            }
        }
        let Some(request) = self.requests.get(&key) else { return };
        if let Half::Failed(error) = request.local {
            let counter = match request.op {
                Op::Read { .. } => &mut self.statistics.read_errors,
                Op::Write { .. } => &mut self.statistics.write_errors,
                Op::Delete { .. } => &mut self.statistics.delete_errors,
                Op::Flush => return,
            };
            *counter += 1;
            let op = &request.op;
            if matches!(op, Op::Read { .. }) && self.link.is_up() {
                log::warn!("Local request failed ({error}), trying remote node. {op}.");
            } else {
                log::error!("Local request failed ({error}): {op}.");
            }
        }
        self.learn_of_delete(key);
        self.advance(key, data);
    }

    /// The secondary has the data of `key` (memsync).
    pub(super) fn remote_received(&mut self, key: Key) {
        if let Some(request) = self.requests.get_mut(&key) {
            request.received = true;
            self.advance(key, None);
        }
    }

    /// The secondary has answered `key`.
    pub(super) fn remote_answered(&mut self, key: Key, result: DiskResult) {
        let Some(request) = self.requests.get_mut(&key) else { return };
        let mut data = None;
        request.remote = match result {
            Ok(read) => {
                data = read;
                Half::Done
            }
            Err(error) => {
                log::warn!("Remote request failed ({error}): {}.", request.op);
                Half::Failed(error)
            }
        };
        self.learn_of_delete(key);
        self.advance(key, data);
    }

    /// The connection broke while the secondary had `key`.
    pub(super) fn remote_lost(&mut self, key: Key) {
        if let Some(request) = self.requests.get_mut(&key) {
            request.remote = Half::Lost;
            self.advance(key, None);
        }
    }

    fn advance(&mut self, key: Key, data: Option<Buffer>) {
        match self.requests.get(&key) {
            Some(Request { op: Op::Read { .. }, .. }) => self.advance_read(key, data),
            Some(Request { stage: Stage::Repairing, .. }) => self.repaired(key),
            Some(_) => self.advance_write(key),
            None => {}
        }
    }

    fn advance_read(&mut self, key: Key, data: Option<Buffer>) {
        let Some(request) = self.requests.get(&key) else { return };
        let Op::Read { length, .. } = request.op else { return };
        let behind = request.extents().any(|extent| self.is_behind(extent));
        let Some(request) = self.requests.get_mut(&key) else { return };
        if request.remote == Half::Done && behind && keeps(Rule::R1) {
            // The secondary has failed a write meanwhile, or a flush: what it says is not to be relied on.
            log::warn!("The secondary's answer to {} is not used: it lacks something by now.", request.op);
            request.remote = Half::NotAsked;
            return match request.local {
                // Each part of it may be right on one of the nodes.
                Half::Failed(_) => self.advance_read(key, None),
                _ => self.request_ready(key),
            };
        }
        if let Some(data) = exactly(data, u64::from(length)) {
            // What is read in pieces is being synchronised: it is repaired when it is read the next time.
            if matches!(request.local, Half::Failed(_)) && request.pieces.is_none() {
                return self.repair(key, data);
            }
            let Some(data) = self.piece_read(key, data) else { return };
            return self.end_read(key, Ok(Some(data)));
        }
        if let Half::Done = request.local {
            request.local = Half::Failed(Errno::EIO); // a short read is no read
        }
        if request.local == Half::Awaited || request.remote == Half::Awaited {
            return;
        }
        let mixed = behind && self.is_mixed(key);
        let Some(request) = self.requests.get_mut(&key) else { return };
        match (&request.local, &request.remote) {
            // The local disk could not tell: the secondary may.
            (Half::Failed(_), Half::NotAsked) if self.link.is_up() && !behind => self.read_remotely(key),
            // ... though not all of it.
            (Half::Failed(_), Half::NotAsked) if self.link.is_up() && mixed => {
                request.local = Half::NotAsked;
                self.read_a_piece(key);
                self.request_ready(key);
            }
            // Only the secondary could tell, and it went away: wait for it.
            (Half::NotAsked, Half::Lost) => {
                request.remote = Half::NotAsked;
                self.request_ready(key);
            }
            (local, remote) => {
                let error = local.error().or(remote.error()).unwrap_or(Errno::EIO);
                self.end_read(key, Err(error));
            }
        }
    }

    /// The secondary read what our disk could not: the device has its answer, and the bytes are written back
    /// while they are still held.
    fn repair(&mut self, key: Key, data: Buffer) {
        let Some(request) = self.requests.get_mut(&key) else { return };
        let Op::Read { offset, .. } = request.op else { return };
        let id = request.id;
        let extents = request.extents();
        request.op = Op::Write { offset, data: data.clone() };
        self.set_stage(key, Stage::Repairing);
        self.complete(id, Ok(Some(data)));
        self.map.start(extents.clone());
        if self.map.is_durable(extents) {
            self.issue_write(key);
        } else {
            self.wait_for_map(key);
        }
    }

    /// The bytes were written back, or could not be. What a write that failed has left is as before: it cannot be read,
    /// or holds what the secondary has.
    fn repaired(&mut self, key: Key) {
        let Some(request) = self.take_out(key) else { return };
        let extents = request.extents();
        let same = request.epoch == self.link.epoch();
        let outcome = if request.local != Half::Done {
            for extent in extents.clone() {
                self.sync.spoil(extent);
            }
            self.give_up(extents.clone());
            Outcome::NotIssued
        } else if same {
            Outcome::StoredOnBoth // what a failed flush may have dropped the next one decides
        } else {
            Outcome::Unconfirmed
        };
        if outcome != Outcome::NotIssued && !request.suspect {
            log::info!("Repaired what could not be read: {}.", request.op);
        }
        self.map.finish(extents, outcome);
        self.flush.note_unflushed(self.now);
        if outcome == Outcome::Unconfirmed && self.link.is_up() {
            self.begin_session();
        }
        self.release(key);
    }

    fn end_read(&mut self, key: Key, result: DiskResult) {
        if let Some(request) = self.take_out(key) {
            self.complete(request.id, result);
            self.release(key);
        }
    }

    /// A local flush has failed: writes that are on their way may have been dropped with what it covered.
    pub(super) fn suspect_writes(&mut self) {
        for request in self.requests.values_mut() {
            request.suspect |= matches!(
                request.stage,
                Stage::Issued | Stage::Flushing(_) | Stage::Completed { .. } | Stage::Repairing
            );
        }
    }

    /// The secondary is here, or our metadata says less: whoever waited for that goes on.
    pub(super) fn unpark(&mut self) {
        for key in self.parked() {
            self.request_ready(key);
        }
    }

    pub(super) fn parked_timeout(&mut self) {
        while let Some(&(until, key)) = self.waiting.parked.first()
            && until <= self.now
        {
            log::error!("The secondary has the only good copy of a requested range and is not connected.");
            self.not_issued(key, Errno::EIO);
        }
    }

    pub(super) fn parked_deadline(&self) -> Option<Duration> {
        self.waiting.parked.first().map(|(until, _)| *until)
    }

    pub(super) fn fail_parked(&mut self) {
        for key in self.parked() {
            self.not_issued(key, Errno::EIO);
        }
    }

    fn parked(&self) -> Vec<Key> {
        self.waiting.parked.iter().map(|(_, key)| *key).collect()
    }

    /// Writes that only one node was given, or that the secondary stored before an earlier connection ended, which it may
    /// have lost since; and that have not ended.
    pub(super) fn unconfirmed_in_flight(&self) -> bool {
        let earlier = |request: &Request| {
            request.stage == Stage::Issued
                && request.remote == Half::Done
                && request.epoch != self.link.epoch()
                && !matches!(request.op, Op::Read { .. })
        };
        self.waiting.has_unconfirmed() || self.requests.values().any(earlier)
    }

    fn set_stage(&mut self, key: Key, stage: Stage) {
        if let Some(request) = self.requests.get_mut(&key) {
            self.waiting.leave(key, request.stage);
            request.stage = stage;
            self.waiting.enter(key, request);
        }
    }

    /// `key` is over.
    fn take_out(&mut self, key: Key) -> Option<Request> {
        let request = self.requests.remove(&key)?;
        self.waiting.leave(key, request.stage);
        self.bytes = self.bytes.saturating_sub(request.weight);
        Some(request)
    }
}
