//! Flushes, copying what differs, and equalising the counts. What a flush has covered the engine's `flush_ending`
//! says, what is left to copy its `Activemap`, how the counts become equal its `Counts`.

use std::time::Duration;

use hast_engine::{DiskResult, Durable, FlushEnding, Half, Key, flush_ending};
use hast_format::layout::Layout;
use hast_net::errno::Errno;

use crate::play::{Play, to_synchronise};
use crate::state::{
    Counted, Engine, FlushRun, Link, Meta, NodeId, Says, Stage, Step, There, Write, bit, other,
};
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
    /// Both.
    Everywhere,
}

impl Fails {
    pub(crate) fn is_here(self) -> bool {
        matches!(self, Fails::Here | Fails::Everywhere)
    }

    pub(crate) fn is_there(self) -> bool {
        matches!(self, Fails::There | Fails::Everywhere)
    }
}

/// All that the engine's account of a disk needs to know of time: that no two flushes of one disk fail here.
const NOW: Duration = Duration::ZERO;
/// Bytes of an extent, so that it is written again in one piece.
const EXTENT: u32 = 4096;

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
        let local = self.flush_disk(p, fails.is_here());
        let remote = match fails {
            _ if !up => Says::Unknown,
            _ if skips_peer => Says::Yes,
            _ => self.flush_disk(other(p), fails.is_there()),
        };
        let Some(engine) = self.engine(p) else { return };
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

    /// A node's disk is flushed, and will say how that went.
    fn flush_disk(&mut self, node: NodeId, fails: bool) -> Says {
        let machine = self.node(node);
        machine.durable.flush(());
        machine.durable.begin();
        if fails {
            machine.disk.fail_flush();
            Says::Failed
        } else {
            machine.disk.flush();
            Says::Yes
        }
    }

    /// What the primary hears of a node's flush: it is not good either while something may be dropped.
    fn disk_flushed(&mut self, p: NodeId, node: NodeId, says: Says) -> Says {
        let result: DiskResult = match says {
            Says::Unknown => return says,
            Says::Yes => Ok(None),
            Says::Failed => Err(Errno::EIO),
        };
        self.node(node).durable.end(NOW, &result);
        if node == p
            && says == Says::Failed
            && let Some(engine) = self.engine(p)
        {
            for write in &mut engine.writes {
                write.suspect |=
                    matches!(write.stage, Stage::Issued | Stage::Flushing { .. } | Stage::Completed { .. });
            }
        }
        let dropped = if node == p {
            self.has_dropped(p)
        } else {
            !self.state.nodes[node].durable.dropped().is_empty()
        };
        if dropped { Says::Failed } else { says }
    }

    /// Whether something that is right on the primary is perhaps not on its disk, though no flush will say so.
    pub(crate) fn has_dropped(&self, p: NodeId) -> bool {
        let node = &self.state.nodes[p];
        let stale = node.primary.as_ref().map_or(0, |engine| engine.stale);
        node.durable.dropped().iter().any(|extent| stale & bit(extent as usize) == 0)
    }

    /// What is right on the other node is taken from there, and not written again.
    pub(crate) fn forget_stale(&mut self, p: NodeId) {
        let stale = self.engine(p).map_or(0, |engine| engine.stale);
        for extent in self.extents().filter(|extent| stale & bit(*extent) != 0) {
            self.node(p).durable.forget(extent as u32);
        }
    }

    /// Whether a piece of `node`'s data may be written again now.
    pub(crate) fn can_rewrite(&self, p: NodeId, node: NodeId) -> bool {
        if self.state.nodes[node].durable.dropped().is_empty() {
            return false;
        }
        let works = match self.state.link {
            Link::Down | Link::Hello { .. } | Link::FullMap { .. } => node == p,
            Link::Answered { .. } | Link::Merging | Link::Marking | Link::Up { .. } => true,
        };
        works && self.next_piece(&mut self.state.nodes[node].durable.clone(), p, node).is_some()
    }

    /// What `node` writes again next: a primary only what it alone has, and not while its bit is not durable (M1).
    fn next_piece(&self, durable: &mut Durable<()>, p: NodeId, node: NodeId) -> Option<usize> {
        let layout =
            Layout::create(4096 + 512 + u64::from(EXTENT) * self.world.extents as u64, 512, EXTENT).ok()?;
        let engine = self.state.nodes[p].primary.as_ref()?;
        let up = self.state.is_up();
        let held = |write: &Write, extent: u32| {
            u32::from(write.extent) == extent
                && (!matches!(write.stage, Stage::Completed { .. })
                    || matches!(write.there, There::Sent | There::Received))
        };
        let ready = |extent: u32| {
            let map = &engine.map;
            node != p
                || ((!up || map.to_synchronise().contains(extent))
                    && (map.is_durable(extent..extent + 1) || !map.is_wanted(extent))
                    && !engine.writes.iter().any(|write| held(write, extent)))
        };
        let piece = durable.next_piece(NOW, Key(0), &layout, ready)?;
        usize::try_from(piece.start / u64::from(EXTENT)).ok()
    }

    /// A piece is read and written again.
    pub(crate) fn rewrite(&mut self, p: NodeId, node: NodeId) {
        let mut durable = self.state.nodes[node].durable.clone();
        let Some(extent) = self.next_piece(&mut durable, p, node) else { return };
        let value = self.holds(node, extent);
        self.node(node).disk.write(extent, value);
        durable.piece_ended(NOW, true);
        let layout = Layout::create(4096 + 512 + u64::from(EXTENT) * self.world.extents as u64, 512, EXTENT);
        if let Ok(layout) = layout {
            let next = durable.next_piece(NOW, Key(0), &layout, |_| false);
            debug_assert!(next.is_none());
        }
        self.node(node).durable = durable;
    }

    /// It has ended on both nodes.
    pub(crate) fn end_flush(&mut self, p: NodeId) {
        let up = self.state.is_up();
        let original = self.breaks(Variant::L9);
        let Some(engine) = self.engine(p) else { return };
        let Some(FlushRun { local, remote, covers, lone }) = engine.flush.take() else { return };
        let local = self.disk_flushed(p, p, local);
        let remote = self.disk_flushed(p, other(p), remote);
        let Some(engine) = self.engine(p) else { return };
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
                let dropped: Vec<u32> = self.node(p).durable.dropped().iter().collect();
                for extent in dropped {
                    let Some(engine) = self.engine(p) else { return };
                    let owed = engine.writes.iter().any(|write| write.is_owed(extent));
                    if Play::behind(engine) & bit(extent as usize) != 0 || owed {
                        continue;
                    }
                    engine.stale |= bit(extent as usize);
                    engine.save = true;
                    waits = true;
                    engine.map.mark_dirty(extent);
                    if engine.map.is_unflushed(extent) {
                        engine.lone |= bit(extent as usize);
                    }
                    self.node(p).durable.forget(extent);
                }
                good = self.node(p).durable.dropped().is_empty();
                if let Some(engine) = self.engine(p) {
                    engine.map.flush_failed();
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
        self.answered(to, extent);
        let Some(engine) = self.engine(p) else { return };
        if engine.stale & bit(extent) != 0 {
            engine.stale &= !bit(extent);
            engine.save = true;
        }
        engine.map.copied(extent as u32);
        if to == p {
            self.node(p).durable.forget(extent as u32);
        }
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
