//! Flushes, copying what differs, and equalising the counts. What a flush has covered the engine's `flush_ending`
//! says, what is left to copy its `Activemap`, how the counts become equal its `Counts`.

use hast_engine::{FlushEnding, Half, flush_ending};

use crate::play::{Play, to_synchronise};
use crate::state::{Counted, Engine, FlushRun, Meta, NodeId, Says, Stage, Step, There, Write, bit, other};
use crate::variant::{Variant, original_flush_ending};

/// What fails in a flush.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fails {
    /// Nothing.
    Nothing,
    /// The primary's disk.
    Here,
    /// The secondary's.
    There,
}

impl Play<'_> {
    /// A flush, of a client or the map's own, begins: what is there now it makes durable, unless it fails.
    pub(crate) fn begin_flush(&mut self, p: NodeId, fails: Fails) {
        let up = self.state.is_up();
        let skips_peer = up && self.breaks(Variant::L10);
        let covers = self.acknowledged_extents();
        let ends_session = self.wants_flush(p);
        if up && !skips_peer {
            self.first_request(p);
        }
        let local = if fails == Fails::Here { Says::Failed } else { Says::Yes };
        let remote = match fails {
            Fails::There => Says::Failed,
            _ if up => Says::Yes,
            _ => Says::Unknown,
        };
        if local == Says::Yes {
            self.node(p).disk.flush();
        }
        if remote == Says::Yes && !skips_peer {
            self.node(other(p)).disk.flush();
        }
        let Some(engine) = self.engine(p) else { return };
        if local == Says::Failed {
            for write in &mut engine.writes {
                write.suspect |=
                    matches!(write.stage, Stage::Issued | Stage::Flushing { .. } | Stage::Completed { .. });
            }
        }
        for write in &mut engine.writes {
            if let Stage::Flushing { covered } = &mut write.stage {
                *covered = true;
            }
        }
        engine.map.flush_begins();
        if ends_session {
            engine.step = Step::Flushing;
        }
        let lone = std::mem::take(&mut engine.lone);
        engine.flush = Some(FlushRun { local, remote, covers, lone });
    }

    /// It has ended on both nodes.
    pub(crate) fn end_flush(&mut self, p: NodeId) {
        let up = self.state.is_up();
        let original = self.breaks(Variant::L9);
        let Some(engine) = self.engine(p) else { return };
        let Some(FlushRun { local, remote, covers, lone }) = engine.flush.take() else { return };
        if remote != Says::Yes {
            engine.lone |= lone;
        }
        let ending = if original {
            original_flush_ending(local.into(), remote.into())
        } else {
            flush_ending(local.into(), remote.into())
        };
        let mut waits = false;
        let mut good = local == Says::Yes || (original && remote == Says::Yes);
        match ending {
            FlushEnding::PeerMayLose => {
                let unflushed = engine.map.not_durable();
                engine.map.peer_lost();
                engine.unconfirmed = true;
                for extent in unflushed {
                    self.may_be_lost_there(extent as usize);
                }
                self.begin_session(p);
                self.count(p);
                waits = self.engine(p).is_some_and(|engine| engine.counted == Counted::Pending);
            }
            FlushEnding::StaleHere => {
                let unflushed = engine.map.not_durable();
                good = Play::behind(engine) == 0;
                engine.map.flush_failed();
                for extent in unflushed {
                    if Play::behind(engine) & bit(extent as usize) != 0 {
                        continue;
                    }
                    engine.stale |= bit(extent as usize);
                    engine.save = true;
                    waits = true;
                    engine.map.mark_dirty(extent);
                }
                self.begin_session(p);
            }
            FlushEnding::Durable => {
                engine.map.flush_succeeded();
                if engine.step == Step::Flushing {
                    self.equalise(p);
                }
            }
            FlushEnding::NotDurable => {
                engine.map.flush_failed();
                if up {
                    engine.step = Step::Copying;
                }
            }
        }
        let Some(engine) = self.engine(p) else { return };
        good &= engine.lone == 0 || remote == Says::Yes;
        match (good, waits) {
            (true, true) => engine.counting = Some(covers | engine.counting.unwrap_or_default()),
            (true, false) => self.client_flushed(covers),
            (false, _) => {}
        }
        self.end_flushing(p, remote);
    }

    // ---- synchronisation

    /// Whether `extent` may be copied now.
    pub(crate) fn can_copy(&self, p: NodeId, extent: usize) -> bool {
        let Some(engine) = &self.state.nodes[p].primary else { return false };
        let held = |write: &Write| {
            usize::from(write.extent) == extent
                && (!matches!(write.stage, Stage::Completed { .. })
                    || matches!(write.there, There::Sent | There::Received))
        };
        engine.session
            && self.state.is_up()
            && to_synchronise(engine) & bit(extent) != 0
            && !engine.writes.iter().any(held)
            && !self.secondary_lacks_something(p)
    }

    /// An extent is copied from where it is right, and answered.
    pub(crate) fn copy(&mut self, p: NodeId, extent: usize) {
        self.first_request(p);
        let Some(engine) = self.engine(p) else { return };
        let (from, to) = if engine.stale & bit(extent) != 0 { (other(p), p) } else { (p, other(p)) };
        let value = self.holds(from, extent);
        self.stored(to, extent, value);
        let Some(engine) = self.engine(p) else { return };
        if engine.stale & bit(extent) != 0 {
            engine.stale &= !bit(extent);
            engine.save = true;
        }
        engine.map.copied(extent as u32);
        self.copied(from, to, extent);
    }

    /// Whether everything is copied, so that only a flush on both nodes is missing.
    fn is_synchronised(&self, engine: &Engine) -> bool {
        let unconfirmed = |write: &Write| {
            matches!(write.stage, Stage::Flushing { .. } | Stage::Saving | Stage::Marking)
                || (write.stage == Stage::Issued && write.remote == Half::NotAsked)
        };
        engine.session
            && self.state.is_up()
            && to_synchronise(engine) == 0
            && !engine.writes.iter().any(unconfirmed)
    }

    /// Whether the session waits for a flush.
    pub(crate) fn wants_flush(&self, p: NodeId) -> bool {
        let Some(engine) = &self.state.nodes[p].primary else { return false };
        engine.step == Step::Copying && self.is_synchronised(engine)
    }

    pub(crate) fn check_synchronised(&mut self, p: NodeId) {
        let Some(engine) = &self.state.nodes[p].primary else { return };
        if engine.step == Step::Flushing
            && !self.is_synchronised(engine)
            && let Some(engine) = self.engine(p)
        {
            engine.step = Step::Copying;
        }
    }

    /// C2: both nodes hold everything, durably: forward.
    fn equalise(&mut self, p: NodeId) {
        let boot = self.state.nodes[other(p)].boot;
        let Some(engine) = self.engine(p) else { return };
        let peer = hast_engine::Counts { local: engine.peer.0.into(), remote: engine.peer.1.into() };
        engine.meta.set_counts(engine.meta.counts().equal_to_secondary(peer, true));
        engine.meta.target = false;
        engine.meta.mark = false;
        engine.meta.peer_boot = boot;
        engine.counted = Counted::No;
        engine.step = Step::Saving;
        engine.save = true;
    }

    /// The secondary writes the equal counts down, and the primary hears it.
    pub(crate) fn tell(&mut self, p: NodeId, localcnt: u8) {
        let boot = self.state.nodes[p].boot;
        let mut meta = self.state.nodes[other(p)].disk.meta.now;
        meta.set_counts(meta.counts().equal_to_primary(localcnt.into()));
        let meta = Meta { mark: false, target: false, stale: 0, was_primary: false, peer_boot: boot, ..meta };
        self.first_request(p);
        self.write_meta(other(p), meta);
        let Some(engine) = self.engine(p) else { return };
        engine.done = None;
        if engine.step == Step::Telling {
            engine.unconfirmed = false;
            engine.marked = false;
            engine.step = Step::Copying;
            engine.session = false;
            self.equalised();
        }
    }
}
