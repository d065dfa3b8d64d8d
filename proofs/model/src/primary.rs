//! The primary's writes. What decides is the engine's: the map is its `Activemap`, a write's verdict and outcome its
//! `Standing`.

use hast_engine::{Half, Standing, Verdict};
use hast_format::activemap::Outcome;
use hast_net::Replication;

use crate::play::{EIO, Play};
use crate::state::{Counted, Engine, NodeId, Relying, Says, Stage, There, Write, bit, other};
use crate::variant::Variant;

impl Play<'_> {
    /// Whether the client may begin a write to `extent`.
    pub(crate) fn takes_write(&self, engine: &Engine, extent: usize) -> bool {
        let held = |write: &Write| {
            usize::from(write.extent) == extent && !matches!(write.stage, Stage::Completed { .. })
        };
        let parked = engine.rests_on_secondary() && !self.state.is_up();
        engine.writes.len() < usize::from(self.state.left.at_once)
            && !engine.writes.iter().any(held)
            && !engine.reads(extent)
            && !parked
    }

    /// The client writes a whole extent.
    pub(crate) fn begin_write(&mut self, p: NodeId, extent: usize) {
        self.state.written += 1;
        let value = self.state.written;
        self.invoked(extent, value);
        let range = extent as u32..extent as u32 + 1;
        let Some(engine) = self.engine(p) else { return };
        engine.map.start(range.clone());
        let durable = engine.map.is_durable(range);
        engine.writes.push(Write {
            extent: extent as u8,
            value,
            stage: Stage::Map,
            local: Half::NotAsked,
            remote: Half::NotAsked,
            there: There::NotSent,
            received: false,
            same_connection: true,
            suspect: false,
            flushed: false,
            finished: false,
            staled: false,
        });
        let at = engine.writes.len() - 1;
        if durable {
            self.issue(p, at);
        }
    }

    /// M1 is satisfied: to disk and peer.
    fn issue(&mut self, p: NodeId, at: usize) {
        let up = self.state.is_up();
        let Some(engine) = self.engine(p) else { return };
        let rests = engine.rests_on_secondary();
        let Some(write) = engine.writes.get_mut(at) else { return };
        if !up && rests {
            // The secondary went away while the map was being written; the client will not wait for ever.
            let extent = u32::from(write.extent);
            engine.map.finish(extent..extent + 1, Outcome::NotIssued);
            engine.writes.remove(at);
            return;
        }
        write.stage = Stage::Issued;
        write.local = Half::Awaited;
        write.same_connection = true;
        if up {
            (write.remote, write.there) = (Half::Awaited, There::Sent);
        } else {
            self.given_alone(p, at);
        }
    }

    /// A map write is under way as soon as one is wanted.
    pub(crate) fn begin_map_write(&mut self, p: NodeId) {
        let Some(engine) = self.engine(p) else { return };
        if let Some(run) = engine.map.begin_write().first() {
            engine.map_writing = run.bytes.first().copied();
        }
    }

    /// It has ended.
    pub(crate) fn map_written(&mut self, p: NodeId) {
        let Some(engine) = self.engine(p) else { return };
        let Some(byte) = engine.map_writing.take() else { return };
        engine.map.end_write(true);
        self.node(p).disk.map.write_durably(byte);
        let mut at = 0;
        while let Some(engine) = self.engine(p)
            && let Some(write) = engine.writes.get(at)
        {
            let (extent, waits, length) =
                (u32::from(write.extent), write.stage == Stage::Map, engine.writes.len());
            if waits && engine.map.is_durable(extent..extent + 1) {
                self.issue(p, at);
            }
            let same = self.engine(p).is_some_and(|engine| engine.writes.len() == length);
            at += usize::from(same);
        }
        self.begin_repair(p);
    }

    /// The local disk has answered.
    pub(crate) fn local_answer(&mut self, p: NodeId, at: usize, good: bool) {
        let Some(engine) = self.engine(p) else { return };
        let Some(write) = engine.writes.get_mut(at) else { return };
        write.local = if good { Half::Done } else { EIO };
        let (extent, value, suspect) = (usize::from(write.extent), write.value, write.suspect);
        if suspect {
            self.node(p).durable.may_have_dropped(extent as u32..extent as u32 + 1);
            self.turn(p, extent);
        } else {
            self.answered(p, extent);
        }
        if good {
            self.stored(p, extent, value);
        } else {
            self.destroyed(p, extent);
        }
        self.advance(p, at);
    }

    /// memsync: it has arrived, and the primary hears that.
    pub(crate) fn remote_receives(&mut self, p: NodeId, at: usize) {
        self.first_request(p);
        let Some(engine) = self.engine(p) else { return };
        let Some(write) = engine.writes.get_mut(at) else { return };
        (write.there, write.received) = (There::Received, true);
        self.advance(p, at);
    }

    /// The secondary's disk has taken it.
    pub(crate) fn remote_stores(&mut self, p: NodeId, at: usize) {
        self.first_request(p);
        let Some(engine) = self.engine(p) else { return };
        let Some(write) = engine.writes.get_mut(at) else { return };
        write.there = There::Stored;
        let (extent, value) = (usize::from(write.extent), write.value);
        self.stored(other(p), extent, value);
        self.answered(other(p), extent);
    }

    /// The primary hears of the end of the secondary's part.
    pub(crate) fn remote_answer(&mut self, p: NodeId, at: usize, good: bool) {
        self.first_request(p);
        let Some(engine) = self.engine(p) else { return };
        let Some(write) = engine.writes.get_mut(at) else { return };
        write.remote = if good { Half::Done } else { EIO };
        let (extent, received) = (usize::from(write.extent), write.received);
        if !good {
            write.there = There::NotSent;
        }
        if good {
            self.confirmed(p, at);
        } else {
            self.answered(other(p), extent);
            self.given_alone(p, at);
            if received {
                self.doubt(other(p));
            }
        }
        self.advance(p, at);
    }

    /// What decides about a write.
    fn standing(&self, engine: &Engine, write: &Write, relies: bool) -> Standing {
        Standing {
            mode: self.world.mode,
            is_write: true,
            local: write.local,
            remote: write.remote,
            received: write.received,
            suspect: write.suspect,
            same_connection: write.same_connection,
            is_up: self.state.is_up(),
            relies,
            behind: Play::behind(engine) & bit(write.extent.into()) != 0,
            is_cut_off: false,
            flushed: write.flushed,
        }
    }

    /// One of the two nodes has answered.
    pub(crate) fn advance(&mut self, p: NodeId, at: usize) {
        let called_stale = self.called_stale(p);
        let Some(engine) = &self.state.nodes[p].primary else { return };
        let Some(&write) = engine.writes.get(at) else { return };
        let heard = write.stage == (Stage::Completed { well: true });
        let relies = engine.rests_on_secondary();
        let turning = engine.turning.contains(write.extent.into());
        let mut standing = self.standing(engine, &write, relies || turning);
        if called_stale & bit(write.extent.into()) != 0 && !heard {
            // Our disk alone is not enough before the metadata say that it is good, in any mode.
            standing.mode = Replication::Fullsync;
        }
        if write.stage == Stage::Issued {
            match standing.verdict() {
                Verdict::Wait => {}
                Verdict::TakeBack => return self.take_back(p, at, relies),
                Verdict::Fail => {
                    if relies && !standing.is_confirmed() {
                        self.give_up(p, write.extent.into());
                    }
                    self.complete(p, at, false);
                }
                Verdict::Complete if called_stale & bit(write.extent.into()) != 0 && !write.flushed => {
                    if standing.is_there_still() {
                        return self.flush_there(p, at);
                    }
                    self.good_again(p, at);
                }
                Verdict::Complete => self.complete(p, at, true),
                Verdict::FlushThere => return self.flush_there(p, at),
                Verdict::WriteDown => self.write_down(p, at, standing.is_here()),
            }
        }
        if standing.is_answered() {
            self.finish(p, at, relies);
            if heard && standing.owes_count() {
                self.count(p);
            }
            if heard {
                self.end_owed(p);
            }
        }
    }

    /// The secondary is to be the only one that has it, or makes sense of it: it flushes first.
    fn flush_there(&mut self, p: NodeId, at: usize) {
        let Some(engine) = self.engine(p) else { return };
        let Some(&write) = engine.writes.get(at) else { return };
        if write.local != Half::Done || write.suspect {
            self.turn(p, write.extent.into());
        }
        self.set_stage(p, at, Stage::Flushing { covered: false });
    }

    pub(crate) fn set_stage(&mut self, p: NodeId, at: usize, stage: Stage) {
        if let Some(write) = self.engine(p).and_then(|engine| engine.writes.get_mut(at)) {
            write.stage = stage;
        }
    }

    /// A flush that the secondary was asked for has ended, or the connection has: whoever waited is judged anew.
    pub(crate) fn end_flushing(&mut self, p: NodeId, remote: Says) {
        let up = self.state.is_up();
        if self.engine(p).is_some_and(|engine| engine.relying == (Relying::Flushing { covered: true })) {
            self.end_relying(p, remote == Says::Yes);
        }
        let waits = |write: &Write| match write.stage {
            Stage::Flushing { covered } => covered || !up,
            _ => false,
        };
        while let Some(engine) = self.engine(p)
            && let Some(at) = engine.writes.iter().position(waits)
            && let Some(write) = engine.writes.get_mut(at)
        {
            write.stage = Stage::Issued;
            match remote {
                Says::Yes => write.flushed = true,
                Says::Failed => write.remote = EIO,
                Says::Unknown => {}
            }
            self.advance(p, at);
        }
    }

    /// One node alone has it.
    fn write_down(&mut self, p: NodeId, at: usize, here: bool) {
        if !here && self.breaks(Variant::L3) {
            return self.complete(p, at, true);
        }
        if here {
            self.count(p);
        }
        let (called_stale, recorded) = (self.called_stale(p), self.state.nodes[p].disk.meta.now.stale);
        let Some(engine) = self.engine(p) else { return };
        let Some(&write) = engine.writes.get(at) else { return };
        let extent = usize::from(write.extent);
        let known = engine.stale & recorded & bit(extent) != 0;
        let mut waits = (!here && !known) || engine.counted == Counted::Pending;
        if !here && !known {
            let staled = engine.stale & bit(extent) == 0;
            if !self.note_stale(p, extent) {
                return self.complete(p, at, false);
            }
            if let Some(write) = self.engine(p).and_then(|engine| engine.writes.get_mut(at)) {
                write.staled = staled;
            }
        } else if here && called_stale & bit(extent) != 0 {
            engine.no_longer_stale(extent);
            self.node(p).durable.forget(extent as u32); // written as a whole, and no flush has failed since
            waits = true;
        }
        if let Some(engine) = self.engine(p) {
            engine.save |= waits;
        }
        self.set_stage(p, at, Stage::Saving);
        if !waits {
            self.written_down(p, at);
        }
    }

    /// Both nodes have written what the metadata call stale, and the secondary is gone: they say first that it is not.
    fn good_again(&mut self, p: NodeId, at: usize) {
        let Some(engine) = self.engine(p) else { return };
        let Some(&write) = engine.writes.get(at) else { return };
        engine.no_longer_stale(write.extent.into());
        engine.save = true;
        self.node(p).durable.forget(write.extent.into()); // written as a whole, and no flush has failed since
        self.set_stage(p, at, Stage::Saving);
    }

    /// What the metadata has to say about it is durable.
    pub(crate) fn written_down(&mut self, p: NodeId, at: usize) {
        let up = self.state.is_up();
        let marks = !self.breaks(Variant::L6);
        let held = self.state.nodes[p].primary.as_ref().is_some_and(|engine| {
            engine.writes.get(at).is_some_and(|write| self.standing(engine, write, false).is_held())
        });
        if !held {
            self.restore(p, at);
            return self.complete(p, at, false);
        }
        let Some(engine) = self.engine(p) else { return };
        let Some(write) = engine.writes.get_mut(at) else { return };
        if write.remote.is_missed() && up && marks {
            write.stage = Stage::Marking;
        } else {
            self.complete(p, at, true);
        }
    }

    /// The only node that had it went away before anybody heard of it: what counts as stale because of it does not
    /// any more.
    pub(crate) fn restore(&mut self, p: NodeId, at: usize) {
        let up = self.state.is_up();
        let Some(engine) = self.engine(p) else { return };
        let Some(write) = engine.writes.get_mut(at) else { return };
        if up || !std::mem::take(&mut write.staled) {
            return;
        }
        let extent = usize::from(write.extent);
        engine.no_longer_stale(extent);
        engine.map.mark_dirty(extent as u32);
        engine.save = true;
        self.node(p).durable.may_have_dropped(extent as u32..extent as u32 + 1);
    }

    /// The client hears of it.
    pub(crate) fn complete(&mut self, p: NodeId, at: usize, well: bool) {
        let Some(engine) = self.engine(p) else { return };
        let Some(write) = engine.writes.get_mut(at) else { return };
        write.stage = Stage::Completed { well };
        write.staled = false;
        if well {
            self.acknowledged(p, at);
        }
    }

    /// The connection broke while the only node that could make sense of it had it. The client does not wait for
    /// ever: a later attempt is another write.
    fn take_back(&mut self, p: NodeId, at: usize, relied: bool) {
        let Some(engine) = self.engine(p) else { return };
        let Some(&write) = engine.writes.get(at) else { return };
        let extent = u32::from(write.extent);
        if relied {
            self.give_up(p, extent as usize);
        }
        let Some(engine) = self.engine(p) else { return };
        engine.map.finish(extent..extent + 1, Outcome::Unconfirmed);
        engine.writes.remove(at);
    }

    /// Both parts are known: what the map learns.
    fn finish(&mut self, p: NodeId, at: usize, relied: bool) {
        let up = self.state.is_up();
        let Some(engine) = &self.state.nodes[p].primary else { return };
        let Some(&write) = engine.writes.get(at) else { return };
        let standing = self.standing(engine, &write, relied);
        let mut outcome = standing.outcome();
        let forgets = match (standing.local, standing.remote) {
            (Half::Done, Half::Lost) => self.breaks(Variant::L1),
            (Half::Done, Half::Failed(_)) => self.breaks(Variant::L2),
            (Half::Failed(_), Half::Done) => self.breaks(Variant::L3),
            _ => false,
        };
        if forgets {
            outcome = Outcome::StoredOnBoth;
        }
        let extent = usize::from(write.extent);
        let behind = Play::behind(engine) & bit(extent) != 0;
        let (here, confirmed) = (standing.is_here(), standing.is_confirmed() || forgets);
        // Somebody relies on our copy, whatever has come to need the secondary since.
        let ours = write.stage == (Stage::Completed { well: true }) && write.remote != Half::Done;
        if relied && !ours && !confirmed && !behind {
            self.give_up(p, extent);
        } else if here && self.engine(p).is_some_and(|engine| engine.no_longer_stale(extent)) {
            self.node(p).durable.forget(extent as u32);
            if let Some(engine) = self.engine(p) {
                engine.save = true;
            }
        }
        let Some(engine) = self.engine(p) else { return };
        if ours {
            engine.turning.remove(extent as u32); // the secondary is not right either
        }
        if write.remote == Half::Done && !write.flushed && engine.stale & bit(extent) != 0 {
            engine.lone |= bit(extent);
        }
        let range = extent as u32..extent as u32 + 1;
        if outcome == Outcome::Unconfirmed && engine.turning.contains(extent as u32) {
            engine.turning.differs(extent as u32);
            engine.map.finish(range, Outcome::StoredOnBoth);
        } else {
            engine.map.finish(range, outcome);
        }
        engine.unconfirmed |= outcome == Outcome::Unconfirmed && !confirmed;
        if let Some(write) = engine.writes.get_mut(at) {
            write.finished = true;
        }
        if outcome != Outcome::StoredOnBoth && up {
            self.begin_session(p);
        }
    }
}
