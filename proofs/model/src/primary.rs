//! The primary at work: writes, saves and marks. What decides is the engine's: the map is its `Activemap`, a
//! write's verdict and outcome its `Standing`.

use hast_engine::{Half, Standing, Verdict, must_be_marked};
use hast_format::activemap::Outcome;

use crate::play::{EIO, Play, to_synchronise};
use crate::state::{Counted, Engine, Link, Meta, NodeId, Says, Stage, Step, There, Write, bit, other};
use crate::variant::Variant;

impl Play<'_> {
    // ---- writes

    /// Whether the client may begin a write to `extent`.
    pub(crate) fn takes_write(&self, engine: &Engine, extent: usize) -> bool {
        let held = |write: &Write| {
            usize::from(write.extent) == extent && !matches!(write.stage, Stage::Completed { .. })
        };
        let parked = engine.target && !self.state.is_up();
        engine.writes.len() < usize::from(self.state.left.at_once)
            && !engine.writes.iter().any(held)
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
        let target = engine.target;
        let Some(write) = engine.writes.get_mut(at) else { return };
        if !up && target {
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
    }

    /// The local disk has answered.
    pub(crate) fn local_answer(&mut self, p: NodeId, at: usize, good: bool) {
        let Some(engine) = self.engine(p) else { return };
        let Some(write) = engine.writes.get_mut(at) else { return };
        write.local = if good { Half::Done } else { EIO };
        let (extent, value, suspect) = (usize::from(write.extent), write.value, write.suspect);
        if suspect {
            self.node(p).durable.may_have_dropped(extent as u32..extent as u32 + 1);
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
        let extent = usize::from(write.extent);
        if !good {
            write.there = There::NotSent;
        }
        if good {
            self.confirmed(p, at);
        } else {
            self.answered(other(p), extent);
            self.given_alone(p, at);
        }
        self.advance(p, at);
    }

    /// What decides about a write.
    fn standing(&self, engine: &Engine, write: &Write) -> Standing {
        Standing {
            mode: self.world.mode,
            is_write: true,
            local: write.local,
            remote: write.remote,
            received: write.received,
            suspect: write.suspect,
            same_connection: write.same_connection,
            is_up: self.state.is_up(),
            relies: engine.target,
            behind: Play::behind(engine) & bit(write.extent.into()) != 0,
            is_cut_off: false,
            flushed: write.flushed,
        }
    }

    /// One of the two nodes has answered.
    pub(crate) fn advance(&mut self, p: NodeId, at: usize) {
        let Some(engine) = &self.state.nodes[p].primary else { return };
        let Some(&write) = engine.writes.get(at) else { return };
        let heard = write.stage == (Stage::Completed { well: true });
        let relies = engine.target;
        let standing = self.standing(engine, &write);
        if write.stage == Stage::Issued {
            match standing.verdict() {
                Verdict::Wait => {}
                Verdict::TakeBack => return self.take_back(p, at),
                Verdict::Fail => self.complete(p, at, false),
                Verdict::Complete => self.complete(p, at, true),
                Verdict::FlushThere => return self.set_stage(p, at, Stage::Flushing { covered: false }),
                Verdict::WriteDown => self.write_down(p, at, standing.is_here()),
            }
        }
        if standing.is_answered() {
            self.finish(p, at, standing, relies);
            if heard && standing.owes_count() {
                self.count(p);
            }
        }
    }

    fn set_stage(&mut self, p: NodeId, at: usize, stage: Stage) {
        if let Some(write) = self.engine(p).and_then(|engine| engine.writes.get_mut(at)) {
            write.stage = stage;
        }
    }

    /// A flush that the secondary was asked for has ended, or the connection has: whoever waited is judged anew.
    pub(crate) fn end_flushing(&mut self, p: NodeId, remote: Says) {
        let up = self.state.is_up();
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
        let Some(engine) = self.engine(p) else { return };
        let Some(&write) = engine.writes.get(at) else { return };
        let (extent, stale) = (bit(write.extent.into()), engine.stale);
        if !here {
            if engine.writes.iter().any(|other| other.is_owed(write.extent.into())) {
                return self.complete(p, at, false);
            }
            engine.stale |= extent;
            engine.save = true;
        } else if engine.stale & extent != 0 {
            engine.stale &= !extent;
            engine.save = true;
        }
        let waits = !here || engine.counted == Counted::Pending || engine.stale != stale;
        if let Some(write) = engine.writes.get_mut(at) {
            write.stage = Stage::Saving;
        }
        if !waits {
            self.written_down(p, at);
        }
    }

    /// What the metadata has to say about it is durable.
    fn written_down(&mut self, p: NodeId, at: usize) {
        let up = self.state.is_up();
        let marks = !self.breaks(Variant::L6);
        let held = self.state.nodes[p].primary.as_ref().is_some_and(|engine| {
            engine.writes.get(at).is_some_and(|write| self.standing(engine, write).is_held())
        });
        if !held {
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

    /// The client hears of it.
    fn complete(&mut self, p: NodeId, at: usize, well: bool) {
        let Some(engine) = self.engine(p) else { return };
        let Some(write) = engine.writes.get_mut(at) else { return };
        write.stage = Stage::Completed { well };
        if well {
            self.acknowledged(p, at);
        }
    }

    /// The connection broke while the only node that could make sense of it had it.
    fn take_back(&mut self, p: NodeId, at: usize) {
        let Some(engine) = self.engine(p) else { return };
        let Some(&write) = engine.writes.get(at) else { return };
        let extent = u32::from(write.extent);
        if Play::behind(engine) & bit(write.extent.into()) == 0 {
            engine.stale |= bit(write.extent.into());
        }
        engine.map.finish(extent..extent + 1, Outcome::Unconfirmed);
        engine.writes.remove(at);
    }

    /// Both parts are known: what the map learns.
    fn finish(&mut self, p: NodeId, at: usize, standing: Standing, relied: bool) {
        let up = self.state.is_up();
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
        let Some(engine) = self.engine(p) else { return };
        let Some(&write) = engine.writes.get(at) else { return };
        let extent = bit(write.extent.into());
        let (here, confirmed) = (standing.is_here(), standing.is_confirmed() || forgets);
        if relied && !confirmed && Play::behind(engine) & extent == 0 {
            engine.stale |= extent;
        } else if here && engine.stale & extent != 0 {
            engine.stale &= !extent;
            engine.save = true;
        }
        let range = u32::from(write.extent)..u32::from(write.extent) + 1;
        engine.map.finish(range, outcome);
        engine.unconfirmed |= outcome == Outcome::Unconfirmed && !confirmed;
        if let Some(write) = engine.writes.get_mut(at) {
            write.finished = true;
        }
        if outcome != Outcome::StoredOnBoth && up {
            self.begin_session(p);
        }
    }

    // ---- metadata

    /// A save is durable.
    pub(crate) fn saved(&mut self, p: NodeId) {
        let Some(engine) = self.engine(p) else { return };
        engine.save = false;
        engine.meta.was_primary = true;
        engine.meta.stale = if engine.target { 0 } else { engine.stale };
        let mut meta = engine.meta;
        meta.set_counts(meta.counts().saved(meta.resuid.into()));
        let rose = engine.counted == Counted::Pending;
        if rose {
            engine.counted = Counted::Durable;
        }
        self.write_meta(p, meta);
        if rose {
            self.counted();
        }
        let waiting = self.engine(p).map_or(0, |engine| engine.writes.len());
        for at in 0..waiting {
            let saving = |engine: &mut Engine| engine.writes.get(at).map(|write| write.stage);
            if self.engine(p).and_then(saving) == Some(Stage::Saving) {
                self.written_down(p, at);
            }
        }
        let Some(engine) = self.engine(p) else { return };
        let counting = engine.counting.take();
        if engine.step == Step::Saving {
            engine.target = false;
            engine.marked = false;
            engine.step = Step::Telling;
            engine.done = Some(engine.meta.local);
        }
        if let Some(covers) = counting {
            self.client_flushed(covers);
        }
    }

    // ---- marks

    /// L6: whether the secondary has to know that it is out of date.
    pub(crate) fn secondary_lacks_something(&self, p: NodeId) -> bool {
        let Some(engine) = &self.state.nodes[p].primary else { return false };
        let boot = self.state.nodes[other(p)].boot;
        !engine.marked
            && !self.breaks(Variant::L6)
            && must_be_marked(engine.unconfirmed, engine.meta.peer_boot != boot, Play::behind(engine) != 0)
    }

    /// Whether the secondary is to be asked to mark itself.
    pub(crate) fn wants_mark(&self, p: NodeId) -> bool {
        let Some(engine) = &self.state.nodes[p].primary else { return false };
        let waits = engine.writes.iter().any(|write| write.stage == Stage::Marking);
        let copying = engine.session && to_synchronise(engine) != 0;
        if engine.done.is_some() {
            return false; // one after the other
        }
        match self.state.link {
            Link::Marking => true,
            Link::Up { .. } => (waits || copying) && self.secondary_lacks_something(p),
            _ => false,
        }
    }

    /// The secondary has marked itself, durably, and the primary hears it.
    pub(crate) fn marked(&mut self, p: NodeId) {
        let meta = Meta { mark: true, was_primary: false, ..self.state.nodes[other(p)].disk.meta.now };
        self.write_meta(other(p), meta);
        if let Some(engine) = self.engine(p) {
            engine.marked = true;
        }
        if self.state.link == Link::Marking {
            self.up(p);
        }
        self.first_request(p);
        self.end_marking(p);
    }

    /// Writes that waited for the mark are complete.
    pub(crate) fn end_marking(&mut self, p: NodeId) {
        let writes = self.engine(p).map_or(0, |engine| engine.writes.len());
        for at in 0..writes {
            let stage = |engine: &mut Engine| engine.writes.get(at).map(|write| write.stage);
            if self.engine(p).and_then(stage) == Some(Stage::Marking) {
                self.complete(p, at, true);
            }
        }
    }

    pub(crate) fn end_marking_if_pointless(&mut self, p: NodeId) {
        if self.state.is_up() && !self.secondary_lacks_something(p) {
            self.end_marking(p);
        }
    }

    /// The secondary clears its map when something comes after its answer.
    pub(crate) fn first_request(&mut self, p: NodeId) {
        if self.state.link == (Link::Up { cleared: false }) {
            self.node(other(p)).disk.map.write(0);
            self.state.link = Link::Up { cleared: true };
        }
    }
}
