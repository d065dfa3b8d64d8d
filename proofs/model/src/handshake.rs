//! From "who are you" to "up": the counts are the engine's to compare, and the map its to merge.

use hast_engine::{
    Counts, Decision, Hello, Histories, MapToSend, before, compare, decide, judged, next_generation,
    written_alone,
};
use hast_format::bitmap::Bitmap;
use hast_net::handshake::{Met, SyncSource};

use crate::play::{Play, to_synchronise};
use crate::state::{
    Counted, Extents, Generation, Link, Meta, NodeId, bit, generation, other, small_generation,
};
use crate::variant::Variant;

impl Play<'_> {
    /// The primary says who it is; if it has no resuid yet it draws one, durably, first.
    pub(crate) fn hello(&mut self, p: NodeId) {
        self.state.left.connects = self.state.left.connects.saturating_sub(1);
        let drawn = self.state.drawn + 1;
        let Some(engine) = self.engine(p) else { return };
        let virgin = engine.meta.resuid == 0;
        if virgin {
            engine.meta.resuid = drawn;
        }
        let said = engine.meta.local;
        let (met, generations) = (engine.meta.connection, self.world.generations);
        if virgin {
            self.state.drawn = drawn;
        }
        // G1: what it says it has stored, it has.
        if virgin || (generations && met != self.state.nodes[p].disk.meta.now.connection) {
            self.saved(p);
        }
        self.state.link = Link::Hello { virgin, said };
    }

    /// The secondary decides, and writes down what must be durable before its answer.
    pub(crate) fn decide(&mut self, p: NodeId, virgin: bool, said: u8) {
        let s = other(p);
        self.node(s).disk.flush(); // what an earlier worker left in caches
        let Some(engine) = self.engine(p) else { return };
        let resuid = engine.meta.resuid;
        let counts = Counts { local: said.into(), remote: engine.meta.remote.into() };
        let hello = Hello { resuid: resuid.into(), counts, virgin };
        let (meta, map) = (self.not_complete(s), self.state.nodes[s].disk.map.now);
        let extents = u32::try_from(self.world.extents).unwrap_or(0);
        let written = written_alone(meta.was_primary, &Bitmap::from_bytes(extents, &[map]));
        let decision = decide(hello, meta.resuid.into(), meta.counts(), written);
        match self.judged(p, s, decision, counts) {
            Decision::Mismatch => self.close(true),
            Decision::SplitBrain => {
                self.split_brain_found(meta.resuid == 0);
                self.close(true);
            }
            Decision::Accept { adopt: true, map: MapToSend::Full, .. } => {
                let all = self.all();
                self.write_meta(s, Meta { was_primary: false, ..meta });
                self.node(s).disk.map.write_durably(all);
                self.state.link = Link::FullMap { said };
            }
            Decision::Accept { adopt: true, .. } => {
                self.write_meta(s, Meta { was_primary: false, resuid, mark: true, ..meta });
                self.met();
                let had = self.meet(p, s);
                self.state.link = Link::Answered { said, virgin: true, map: 0, from_secondary: false, had };
            }
            Decision::Accept { adopt: false, map: send, source } => {
                // What this node missed long ago has been made up for.
                let in_step = meta.counts().local == counts.remote && meta.counts().remote == counts.local;
                let stale = if in_step && map == 0 && !meta.mark { 0 } else { meta.stale };
                let map = match send {
                    MapToSend::Nothing => 0,
                    MapToSend::Own => map | stale,
                    MapToSend::Full => self.all(),
                };
                let from_secondary = source == SyncSource::Secondary;
                let had = self.meet(p, s);
                self.state.link = Link::Answered { said, virgin: false, map, from_secondary, had };
            }
        }
    }

    /// A secondary's disk says before it answers that its map is not that of a primary any more (C1 (d)).
    fn not_complete(&mut self, s: NodeId) -> Meta {
        let meta = Meta { map_complete: false, ..self.state.nodes[s].disk.meta.now };
        if self.state.nodes[s].disk.meta.now.map_complete {
            self.write_meta(s, meta);
        }
        meta
    }

    /// The secondary's first flush fails: it writes down that it may have lost something, and its worker ends.
    pub(crate) fn decide_in_vain(&mut self, p: NodeId) {
        let s = other(p);
        self.state.left.flush_faults[1] -= 1;
        let before = self.state.nodes[s].disk.data.clone().map(|data| data.now);
        let disk = &mut self.node(s).disk;
        disk.fail_flush();
        disk.forget_dropped();
        if !self.breaks(Variant::B1) {
            let meta = self.state.nodes[s].disk.meta.now;
            self.write_meta(s, Meta { unsure: true, mark: true, ..meta });
        }
        self.starts(s);
        self.dropped_itself(s, before);
        self.state.link = Link::Down;
    }

    /// G1: what the generations have shown overrides what the counts say.
    fn judged(&mut self, p: NodeId, s: NodeId, decision: Decision, counts: Counts) -> Decision {
        if !self.world.generations {
            return decision;
        }
        let Some(engine) = &self.state.nodes[p].primary else { return decision };
        let theirs = self.state.nodes[s].disk.meta.now;
        let histories = compare(engine.meta.met(), theirs.met());
        let strange = !matches!(histories, Histories::Same | Histories::Unknown);
        let untouched = self.state.left.rollbacks == self.world.budget.rollbacks;
        self.state.ghost.seen.false_alarm = strange && untouched;
        self.state.ghost.seen.rollback_found = strange && !untouched;
        if self.breaks(Variant::G1) {
            return decision;
        }
        let mut counted = [engine.meta.counted(), theirs.counted()];
        counted[0].now = counts;
        if self.breaks(Variant::G1Counted) {
            counted.iter_mut().for_each(|counted| counted.then = u64::MAX);
        }
        judged(decision, counted[0], counted[1], theirs.mark, histories)
    }

    /// G1: the generation of this connection is durable before the answer, and that which the primary still has; gives
    /// the one that this node had.
    fn meet(&mut self, p: NodeId, s: NodeId) -> Generation {
        if !self.world.generations {
            return 0;
        }
        let draw = u32::from(self.state.left.connects);
        let Some(engine) = &self.state.nodes[p].primary else { return 0 };
        let (here, meta) = (engine.meta, self.state.nodes[s].disk.meta.now);
        let connection = small_generation(next_generation(here.met(), meta.met(), draw));
        let histories =
            if self.breaks(Variant::G1) { Histories::Same } else { compare(here.met(), meta.met()) };
        let connection_before = small_generation(before(histories, here.met().last));
        let older = histories == Histories::PrimaryAhead;
        if older {
            let all = self.all();
            self.node(s).disk.map.write_durably(all);
        }
        let connection_local = meta.local.min(here.remote);
        let mark = meta.mark || older;
        let new = Meta { connection, connection_before, connection_local, mark, ..meta };
        self.write_meta(s, new);
        meta.connection
    }

    /// G1: the secondary has stored the generation of this connection, and says which it had before.
    fn met_again(&mut self, p: NodeId, had: Generation) {
        let Some(engine) = self.engine(p) else { return };
        let theirs = Met { last: generation(had), before: 0 };
        if engine.meta.connection != 0 && compare(engine.meta.met(), theirs) == Histories::PrimaryAhead {
            engine.unconfirmed = true;
        }
    }

    /// The secondary takes the resuid over, durably, once its whole map is set (L19).
    pub(crate) fn adopt(&mut self, p: NodeId, said: u8) {
        let Some(engine) = self.engine(p) else { return };
        let resuid = engine.meta.resuid;
        // What the primary has written before this node was there it lacks until it is told otherwise (L6, L19).
        let meta =
            Meta { resuid, was_primary: false, mark: true, ..self.state.nodes[other(p)].disk.meta.now };
        self.write_meta(other(p), meta);
        self.met();
        let map = self.all();
        let had = self.meet(p, other(p));
        self.state.link = Link::Answered { said, virgin: true, map, from_secondary: false, had };
    }

    /// The primary has the answer: what is right where is written down before anything else.
    pub(crate) fn merge(
        &mut self,
        p: NodeId,
        (said, virgin): (u8, bool),
        map: Extents,
        (from_secondary, had): (bool, Generation),
    ) {
        let boot = self.state.nodes[other(p)].boot;
        let peer = self.state.nodes[other(p)].disk.meta.now;
        let extents = u32::try_from(self.world.extents).unwrap_or(0);
        let Some(engine) = self.engine(p) else { return };
        let before = engine.peer;
        let written_meanwhile = from_secondary && said != engine.meta.local;
        let source_gone = !from_secondary && engine.target;
        if !written_meanwhile {
            engine.peer = (peer.local, peer.remote);
            engine.peer_boot = if peer.unsure { 0 } else { boot };
            if virgin {
                engine.meta.set_counts(engine.meta.counts().met_virgin());
            }
            engine.unconfirmed |= map & !to_synchronise(engine) != 0;
        }
        if written_meanwhile || source_gone {
            return self.close(true);
        }
        self.met_again(p, had);
        self.together();
        let Some(engine) = self.engine(p) else { return };
        engine.map.merge(&Bitmap::from_bytes(extents, &[map]));
        if from_secondary {
            // What was written on both nodes since this node became the target is right here.
            if !engine.target || engine.peer != before {
                engine.stale |= to_synchronise(engine);
            }
            engine.target = true;
            engine.meta.target = true;
            engine.meta.mark = true;
            engine.save = true;
        }
        self.state.link = Link::Merging;
    }

    /// Once the merged map is durable, and that this node is the target, the nodes are connected.
    pub(crate) fn merged(&mut self, p: NodeId) {
        let Some(engine) = self.engine(p) else { return };
        let durable =
            engine.map.to_synchronise().iter().all(|extent| engine.map.is_durable(extent..extent + 1));
        let saved = !(engine.target && engine.save);
        if self.state.link != Link::Merging || !durable || !saved {
            return;
        }
        if self.world.generations {
            // The secondary has it: now this node does, before anybody builds on the connection.
            let connection = self.state.nodes[other(p)].disk.meta.now.connection;
            let Some(engine) = self.engine(p) else { return };
            if (engine.meta.connection, engine.meta.connection_before) != (connection, 0) {
                (engine.meta.connection, engine.meta.connection_before) = (connection, 0);
                engine.meta.connection_local = engine.meta.local.min(engine.peer.1);
                engine.save = true;
            }
            if engine.save {
                return;
            }
        }
        if !self.state.nodes[p].disk.meta.now.map_complete {
            if let Some(engine) = self.engine(p) {
                engine.meta.map_complete = true;
                engine.save = true;
            }
            return;
        }
        if self.secondary_lacks_something(p) {
            self.state.link = Link::Marking;
        } else {
            self.up(p);
        }
    }

    pub(crate) fn up(&mut self, p: NodeId) {
        self.state.link = Link::Up { cleared: false };
        if let Some(engine) = self.engine(p) {
            engine.counted = Counted::No;
            engine.map_complete = true;
        }
        self.begin_session(p);
        self.state.ghost.behind = [0; 2];
    }

    /// Every extent.
    pub(crate) fn all(&self) -> Extents {
        self.extents().fold(0, |bits, extent| bits | bit(extent))
    }
}
