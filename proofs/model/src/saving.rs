//! What the primary writes down, and what it has the secondary write down: saves of the metadata, marks, and what waits
//! for either.

use hast_engine::{Half, must_be_marked};

use crate::play::{Play, to_synchronise};
use crate::state::{Counted, Engine, Link, Meta, NodeId, Relying, Stage, Step, bit, other};
use crate::variant::Variant;

impl Play<'_> {
    /// A save is durable.
    pub(crate) fn saved(&mut self, p: NodeId) {
        // What was dropped since it was made good the disk goes on calling stale.
        let dropped =
            self.extents().filter(|extent| self.state.nodes[p].durable.dropped().contains(*extent as u32));
        let dropped = dropped.fold(0, |bits, extent| bits | bit(extent));
        let recorded = self.state.nodes[p].disk.meta.now.stale;
        let Some(engine) = self.engine(p) else { return };
        engine.save = false;
        engine.meta.was_primary = true;
        engine.meta.stale = if engine.target { 0 } else { engine.stale | (recorded & dropped) };
        let mut meta = engine.meta;
        meta.set_counts(meta.counts().saved(meta.resuid.into()));
        let rose = engine.counted == Counted::Pending;
        if rose {
            engine.counted = Counted::Durable;
        }
        self.write_meta(p, meta);
        self.written_down_here(p, meta.stale);
        if rose {
            self.counted();
        }
        self.end_saving(p, true);
        let Some(engine) = self.engine(p) else { return };
        let counting = engine.counting.take();
        if engine.step == Step::Saving {
            engine.target = false;
            engine.marked = false;
            engine.step = Step::Telling;
            engine.done = Some(engine.meta.local);
        }
        if let Some(ended) = counting {
            self.end_client_flush(p, ended);
        }
    }

    /// A save has failed, and is tried again when it may.
    pub(crate) fn save_failed(&mut self, p: NodeId) {
        let Some(engine) = self.engine(p) else { return };
        if engine.counted == Counted::Pending {
            engine.counted = Counted::No;
        }
        engine.counting = None;
        if engine.step == Step::Saving {
            engine.step = Step::Copying;
        }
        self.end_saving(p, false);
        if self.state.link == Link::Merging {
            self.close(true);
        }
    }

    fn end_saving(&mut self, p: NodeId, well: bool) {
        let waiting = self.engine(p).map_or(0, |engine| engine.writes.len());
        for at in 0..waiting {
            let stage = |engine: &mut Engine| engine.writes.get(at).map(|write| write.stage);
            if self.engine(p).and_then(stage) != Some(Stage::Saving) {
                continue;
            }
            if well {
                self.written_down(p, at);
            } else if !self.rely(p, at) {
                self.restore(p, at);
                self.complete(p, at, false);
            }
        }
    }

    /// Our disk cannot record that the secondary alone has it: the secondary is to, which then counts as the right copy
    /// of everything. So it flushes all that is complete first (S1).
    fn rely(&mut self, p: NodeId, at: usize) -> bool {
        let up = self.state.is_up();
        let original = self.breaks(Variant::S1);
        let Some(engine) = self.engine(p) else { return false };
        let Some(&write) = engine.writes.get(at) else { return false };
        let possible =
            write.local != Half::Done && write.remote == Half::Done && up && Play::behind(engine) == 0;
        if !possible {
            return false;
        }
        let stage = if engine.relying == Relying::Durable || engine.unable_to_record || original {
            Stage::Telling
        } else {
            if engine.relying == Relying::No {
                engine.relying = Relying::Flushing { covered: false };
            }
            Stage::Relying
        };
        self.set_stage(p, at, stage);
        true
    }

    /// The flush that was to cover all that was complete has ended on the secondary, or the secondary is gone.
    pub(crate) fn end_relying(&mut self, p: NodeId, well: bool) {
        let Some(engine) = self.engine(p) else { return };
        engine.relying = if well { Relying::Durable } else { Relying::No };
        let writes = engine.writes.len();
        for at in 0..writes {
            let stage = |engine: &mut Engine| engine.writes.get(at).map(|write| write.stage);
            if self.engine(p).and_then(stage) == Some(Stage::Relying) && !(well && self.rely(p, at)) {
                self.told(p, at, false);
            }
        }
    }

    /// The secondary has written down that it alone is right, or the connection broke.
    pub(crate) fn told(&mut self, p: NodeId, at: usize, well: bool) {
        if well {
            self.first_request(p);
            let Some(write) = self.engine(p).and_then(|engine| engine.writes.get(at)).copied() else {
                return;
            };
            let disk = &mut self.node(other(p)).disk;
            let map = disk.map.now | bit(write.extent.into());
            let mut meta = disk.meta.now;
            disk.map.write_durably(map);
            meta.local += 1;
            meta.connection_before = 0;
            self.write_meta(other(p), meta);
            self.state.ghost.seen.told = true;
            self.written_down_there(other(p), write.extent.into());
        }
        let Some(engine) = self.engine(p) else { return };
        if well {
            engine.unable_to_record = true;
            engine.peer.0 += 1;
            if !engine.target {
                engine.meta.remote = engine.peer.0;
            }
        } else {
            engine.relying = Relying::No;
            self.restore(p, at);
        }
        self.complete(p, at, well);
    }

    // ---- marks

    /// L6: whether the secondary has to know that it is out of date.
    pub(crate) fn secondary_lacks_something(&self, p: NodeId) -> bool {
        let Some(engine) = &self.state.nodes[p].primary else { return false };
        let restarted = engine.peer_boot == 0 || engine.peer_boot != engine.meta.peer_boot;
        // As the engine does: what is turning may be in the sync set, and only what is stale does not count.
        let lacks = to_synchronise(engine) & !engine.stale != 0;
        !engine.marked && !self.breaks(Variant::L6) && must_be_marked(engine.unconfirmed, restarted, lacks)
    }

    /// Whether the secondary is to be asked to mark itself.
    pub(crate) fn wants_mark(&self, p: NodeId) -> bool {
        let Some(engine) = &self.state.nodes[p].primary else { return false };
        let waits =
            engine.marking.is_some() || engine.writes.iter().any(|write| write.stage == Stage::Marking);
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
        self.write_mark(other(p));
        if let Some(engine) = self.engine(p) {
            engine.marked = true;
        }
        if self.state.link == Link::Marking {
            self.up(p);
        }
        self.first_request(p);
        self.end_marking(p);
    }

    /// A secondary that serves writes down that it is out of date.
    pub(crate) fn write_mark(&mut self, s: NodeId) {
        let meta = self.state.nodes[s].disk.meta.now;
        let unsure = meta.unsure || std::mem::take(&mut self.node(s).doubts);
        let meta = Meta { mark: true, was_primary: false, unsure, connection_before: 0, ..meta };
        self.write_meta(s, meta);
    }

    /// Writes and flushes that waited for the mark are complete.
    pub(crate) fn end_marking(&mut self, p: NodeId) {
        let marking = self.engine(p).and_then(|engine| engine.marking.take());
        if let Some(ended) = marking {
            self.client_flushed(p, ended);
        }
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
