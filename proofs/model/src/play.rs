//! A state in motion: what every part of the protocol needs.

use hast_engine::{Counts, Durable, Half};
use hast_net::errno::Errno;

use crate::state::{
    Engine, Extents, Link, Node, NodeId, Says, Seen, Stage, State, Step, There, Write, bit, other,
};
use crate::variant::Variant;
use crate::worlds::World;

/// The error of a disk that fails.
pub(crate) const EIO: Half = Half::Failed(Errno::EIO);

/// A state that is becoming the next one.
pub(crate) struct Play<'a> {
    pub(crate) world: &'a World,
    pub(crate) state: State,
}

impl<'a> Play<'a> {
    pub(crate) fn new(world: &'a World, state: &State) -> Play<'a> {
        let mut state = state.clone();
        state.ghost.seen = Seen::default();
        Play { world, state }
    }

    pub(crate) fn breaks(&self, variant: Variant) -> bool {
        self.world.variant == Some(variant)
    }

    pub(crate) fn extents(&self) -> impl Iterator<Item = usize> + use<> {
        0..self.world.extents
    }

    pub(crate) fn node(&mut self, node: NodeId) -> &mut Node {
        &mut self.state.nodes[node]
    }

    /// The primary's memory.
    pub(crate) fn engine(&mut self, node: NodeId) -> Option<&mut Engine> {
        self.state.nodes[node].primary.as_mut()
    }

    /// What `node` reads from its own disk.
    pub(crate) fn holds(&self, node: NodeId, extent: usize) -> u8 {
        self.state.nodes[node].disk.data[extent].now
    }

    /// Once everything that one event brought about is done.
    pub(crate) fn settle(mut self) -> State {
        if let Some(p) = self.state.primary() {
            self.forget_stale(p);
            self.end_marking_if_pointless(p);
            self.check_synchronised(p);
            self.merged(p);
            self.begin_map_write(p);
            if let Some(engine) = self.engine(p) {
                engine.writes.retain(|write| {
                    !(write.finished && matches!(write.stage, crate::state::Stage::Completed { .. }))
                });
            }
        }
        if self.state.left.flush_faults == [0; 2] && !self.hears_of_failure() {
            for node in [0, 1] {
                // With nothing dropped nothing will be: what was written since the last flush is no matter.
                if self.state.nodes[node].durable.dropped().is_empty() {
                    self.node(node).durable = Durable::new(u32::try_from(self.world.extents).unwrap_or(0));
                }
            }
        }
        self.state
    }

    /// A save of `node`'s metadata is durable, and with it whatever its disk took before: the flush is one of the
    /// whole provider. (L7: it is in the cache.)
    pub(crate) fn write_meta(&mut self, node: NodeId, meta: crate::state::Meta) {
        let lazily = self.breaks(Variant::L7);
        let disk = &mut self.node(node).disk;
        disk.meta.write(meta);
        if !lazily {
            disk.flush();
        }
        // Once the secondary has forgotten the generation before, the connection is one that both nodes know of.
        if self.state.is_up()
            && self.state.primary() == Some(other(node))
            && meta.connection_before == 0
            && let Some(snapshot) = &mut self.state.snapshot
        {
            snapshot.outdated |= snapshot.disk.meta.now.connection != meta.connection;
        }
    }

    /// The nodes may differ, or their counts do.
    pub(crate) fn begin_session(&mut self, p: NodeId) {
        if let Some(engine) = self.engine(p) {
            engine.session = true;
            engine.step = Step::Copying;
        }
    }

    /// Extents to synchronise of which our copy is right.
    pub(crate) fn behind(engine: &Engine) -> Extents {
        to_synchronise(engine) & !engine.stale & !engine.turning_extents()
    }

    /// C1, or L5.
    pub(crate) fn count(&mut self, p: NodeId) {
        let original = self.breaks(Variant::L5);
        let Some(engine) = self.engine(p) else { return };
        if engine.counted != crate::state::Counted::No {
            return;
        }
        let peer = Counts { local: engine.peer.0.into(), remote: engine.peer.1.into() };
        let resuid = engine.meta.resuid.into();
        let (counts, durably) = if original {
            crate::variant::original_raised(engine.meta.counts(), resuid, peer)
        } else {
            engine.meta.counts().raised(resuid, peer)
        };
        engine.meta.set_counts(counts);
        engine.save |= durably;
        engine.counted =
            if durably { crate::state::Counted::Pending } else { crate::state::Counted::Durable };
        if !durably {
            self.counted();
        }
    }

    /// The connection ends, however. What the secondary accepted it stores and flushes (L14) if `orderly`.
    pub(crate) fn close(&mut self, orderly: bool) {
        let was_up = self.state.is_up();
        self.state.link = Link::Down;
        let Some(p) = self.state.primary() else { return };
        let s = other(p);
        let Some(engine) = self.engine(p) else { return };
        engine.session = false;
        engine.marked = false;
        engine.step = Step::Copying;
        engine.done = None;
        engine.turning.clear();
        engine.peer_boot = 0;
        for write in &mut engine.writes {
            write.same_connection = false;
        }
        if was_up {
            engine.map.peer_lost();
        }
        let accepted: Vec<(u8, u8)> = engine
            .writes
            .iter()
            .filter(|write| write.there == There::Received)
            .map(|write| (write.extent, write.value))
            .collect();
        if orderly {
            for (extent, value) in accepted {
                self.stored(s, extent.into(), value);
            }
            self.secondary_ends(s);
        }
        while let Some(engine) = self.engine(p)
            && let Some(at) = engine.writes.iter().position(|write| write.remote == Half::Awaited)
            && let Some(write) = engine.writes.get_mut(at)
        {
            (write.remote, write.there) = (Half::Lost, There::NotSent);
            self.given_alone(p, at);
            self.advance(p, at);
        }
        let telling = |write: &Write| write.stage == Stage::Telling;
        while let Some(at) = self.engine(p).and_then(|engine| engine.writes.iter().position(telling)) {
            self.told(p, at, false);
        }
        self.read_lost(p);
        if was_up {
            self.end_relying(p, false);
        }
        if let Some(engine) = self.engine(p)
            && let Some(run) = &mut engine.flush
        {
            run.remote = crate::state::Says::Unknown;
            run.cut_off = false;
        }
        if was_up {
            self.end_flushing(p, Says::Unknown);
            self.end_marking(p);
        }
    }

    /// `value` is on the disk of `node`.
    pub(crate) fn stored(&mut self, node: NodeId, extent: usize, value: u8) {
        self.node(node).disk.write(extent, value);
        self.state.ghost.fell_back[node] &= !bit(extent);
    }

    /// The disk of `node` has answered a write, well or not.
    pub(crate) fn answered(&mut self, node: NodeId, extent: usize) {
        let extent = extent as u32;
        self.node(node).durable.wrote(extent..extent + 1);
    }

    /// Whether a flush has failed of which the engine has yet to hear.
    fn hears_of_failure(&self) -> bool {
        let engines = self.state.nodes.iter().filter_map(|node| node.primary.as_ref());
        let mut flushes = engines.filter_map(|engine| engine.flush.as_ref());
        flushes.any(|run| [run.local, run.remote].contains(&crate::state::Says::Failed))
    }

    /// `node` has a new worker: nothing is known of its disk but what has been flushed.
    pub(crate) fn starts(&mut self, node: NodeId) {
        self.node(node).doubts = false;
        self.node(node).durable = Durable::new(u32::try_from(self.world.extents).unwrap_or(0));
    }

    /// The secondary's worker ends as it should: what was dropped is written again, and all is flushed (L14).
    pub(crate) fn secondary_ends(&mut self, s: NodeId) {
        self.doubted(s);
        let disk = &mut self.node(s).disk;
        disk.dropped = 0;
        disk.flush();
        self.starts(s);
    }
}

/// The sync set as bits.
pub(crate) fn to_synchronise(engine: &Engine) -> Extents {
    engine.map.to_synchronise().iter().fold(0, |bits, extent| bits | bit(extent as usize))
}
