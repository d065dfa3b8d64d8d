//! Flushes, copying what differs, and equalising the counts. What a flush has covered the engine's `flush_ending`
//! says, what is left to copy its `Activemap`, how the counts become equal its `Counts`.

use std::time::Duration;

use hast_engine::{DiskResult, Durable, FlushEnding, Half, Key, flush_ending};
use hast_format::layout::Layout;
use hast_net::errno::Errno;

use crate::play::{Play, to_synchronise};
use crate::state::{
    Counted, Ended, Engine, FlushRun, Link, Meta, NodeId, Read, Reading, Relying, Says, Stage, Step, There,
    Write, bit, other,
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
    /// The secondary is not reached: the connection breaks before that.
    CutOff,
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
    pub(crate) fn begin_flush(&mut self, p: NodeId, client: bool, fails: Fails) {
        let up = self.state.is_up();
        let skips_peer = up && self.breaks(Variant::L10);
        let ends_session = self.wants_flush(p);
        let cut_off = up && fails == Fails::CutOff;
        if up && !skips_peer && !cut_off {
            self.first_request(p);
        }
        let local = self.flush_disk(p, fails.is_here());
        let remote = match fails {
            _ if !up || cut_off => Says::Unknown,
            _ if skips_peer => Says::Yes,
            _ => self.flush_disk(other(p), fails.is_there()),
        };
        let all = self.all();
        let Some(engine) = self.engine(p) else { return };
        for write in &mut engine.writes {
            if let Stage::Flushing { covered } = &mut write.stage {
                *covered = true;
            }
        }
        if let Relying::Flushing { covered } = &mut engine.relying {
            *covered = true;
        }
        engine.map.flush_begins();
        engine.turning.flush_begins();
        if ends_session {
            engine.step = Step::Flushing;
        }
        let lone = std::mem::take(&mut engine.lone);
        let client = std::mem::take(&mut engine.waiting) || client;
        let covers = if client { all } else { 0 };
        engine.flush = Some(FlushRun { client, local, remote, covers, lone, cut_off });
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
        if says == Says::Failed && node != p && !self.state.nodes[node].durable.dropped().is_empty() {
            self.doubt(node);
        }
        if node == p
            && says == Says::Failed
            && let Some(engine) = self.engine(p)
        {
            for write in &mut engine.writes {
                write.suspect |=
                    matches!(write.stage, Stage::Issued | Stage::Flushing { .. } | Stage::Completed { .. });
            }
            if let Some(Read { stage: Reading::Repair { suspect, .. }, .. }) = &mut engine.read {
                *suspect = true;
            }
            self.turn_dropped(p);
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
                    && !engine.reads(extent as usize)
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
        let Some(run) = self.engine(p).and_then(|engine| engine.flush.take()) else { return };
        let local = self.disk_flushed(p, p, run.local);
        let remote = self.disk_flushed(p, other(p), run.remote);
        let Some(engine) = self.engine(p) else { return };
        let mut client = run.client;
        if remote == Says::Yes {
            self.given_up_becomes_stale(p);
        } else {
            engine.lone |= run.lone & engine.stale;
        }
        let original = self.breaks(Variant::L9);
        let ending = if original {
            original_flush_ending(local.into(), remote.into())
        } else {
            flush_ending(local.into(), remote.into())
        };
        let mut excused = original && remote == Says::Yes;
        match ending {
            FlushEnding::PeerMayLose => self.peer_may_lose(p),
            FlushEnding::StaleHere => {
                let became = self.dropped_becomes_stale(p);
                if became == Became::Later && client {
                    client = false;
                    self.waits_again(p);
                }
                excused = became != Became::Impossible;
                if let Some(engine) = self.engine(p) {
                    engine.map.flush_failed();
                }
                self.begin_session(p);
            }
            FlushEnding::Durable => {
                let Some(engine) = self.engine(p) else { return };
                engine.map.flush_succeeded();
                if engine.step == Step::Flushing {
                    self.equalise(p);
                }
            }
            FlushEnding::NotDurable => {
                let Some(engine) = self.engine(p) else { return };
                engine.map.flush_failed();
                if up {
                    engine.step = Step::Copying;
                    if run.remote == Says::Unknown && client {
                        // It began before this connection, and says nothing of the secondary.
                        client = false;
                        self.waits_again(p);
                    }
                }
            }
        }
        let lone = self.engine(p).map_or(0, |engine| engine.lone);
        let good = (local == Says::Yes || excused) && (lone == 0 || remote == Says::Yes);
        if client && good {
            self.end_client(p, Ended { covers: run.covers, remote });
        }
        self.end_flushing(p, remote);
        self.end_turning(p);
        self.turn_dropped(p);
    }

    fn waits_again(&mut self, p: NodeId) {
        if let Some(engine) = self.engine(p) {
            engine.waiting = true;
        }
    }

    /// The secondary has failed the flush.
    fn peer_may_lose(&mut self, p: NodeId) {
        let lacks = self.secondary_may_lack(p);
        let Some(engine) = self.engine(p) else { return };
        let unflushed = engine.map.not_durable();
        engine.turning.clear();
        engine.map.peer_lost();
        engine.unconfirmed = true;
        for extent in unflushed {
            self.may_be_lost_there(extent as usize);
        }
        self.begin_session(p);
        if lacks {
            self.count(p);
        }
    }

    /// Whether some extent is not known to be durable on the secondary, other than those that are stale here.
    fn secondary_may_lack(&self, p: NodeId) -> bool {
        let Some(engine) = &self.state.nodes[p].primary else { return false };
        !engine.map_complete
            || engine.map.has_not_durable()
            || self.extents().any(|extent| engine.is_owed(extent))
            || to_synchronise(engine) & !engine.stale != 0
    }

    /// Our disk has failed a flush, and the secondary has not: what had turned before is right there from now on.
    fn dropped_becomes_stale(&mut self, p: NodeId) -> Became {
        let mut became = Became::Stale;
        let dropped: Vec<u32> = self.node(p).durable.dropped().iter().collect();
        for extent in dropped {
            let Some(engine) = self.engine(p) else { break };
            let behind = Play::behind(engine) & bit(extent as usize) != 0;
            let covered = engine.turning.is_covered(extent) || self.breaks(Variant::S1);
            became = became.max(if behind {
                Became::Impossible
            } else if !covered {
                Became::Later
            } else if !self.note_stale(p, extent as usize) {
                Became::Impossible
            } else {
                self.node(p).durable.forget(extent);
                if let Some(engine) = self.engine(p) {
                    engine.save = true;
                }
                Became::Stale
            });
        }
        became
    }

    /// Both disks have answered a client's flush: the metadata say first what it may rely on from then on.
    fn end_client(&mut self, p: NodeId, ended: Ended) {
        let recorded = self.state.nodes[p].disk.meta.now.stale;
        let original = self.breaks(Variant::C1d);
        // What the secondary has flushed may not be what it should have.
        let lacks = match ended.remote {
            Says::Yes => self.secondary_lacks_something(p),
            _ => self.secondary_may_lack(p),
        };
        if lacks && !original {
            self.may_lack_there(p);
            self.count(p);
        }
        let Some(engine) = self.engine(p) else { return };
        let unrecorded = engine.stale & !recorded != 0;
        engine.save |= unrecorded;
        if unrecorded || engine.counted == Counted::Pending {
            let covers = ended.covers | engine.counting.map_or(0, |ended| ended.covers);
            engine.counting = Some(Ended { covers, ..ended });
        } else {
            self.end_client_flush(p, ended);
        }
    }

    /// A client hears of its flush; a connected secondary marks itself first, if it may lack something.
    pub(crate) fn end_client_flush(&mut self, p: NodeId, ended: Ended) {
        let marks = self.state.is_up() && !self.breaks(Variant::L9Marked);
        if marks && self.secondary_lacks_something(p) {
            if let Some(engine) = self.engine(p) {
                engine.marking = Some(ended);
            }
        } else {
            self.client_flushed(p, ended);
        }
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
            && !engine.turning.contains(extent as u32)
            && !engine.reads(extent)
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
        if engine.no_longer_stale(extent) {
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
            matches!(
                write.stage,
                Stage::Flushing { .. } | Stage::Saving | Stage::Marking | Stage::Relying | Stage::Telling
            ) || (write.stage == Stage::Issued
                && (write.remote == Half::NotAsked || (write.remote == Half::Done && !write.same_connection)))
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
        let generations = self.world.generations;
        let Some(engine) = self.engine(p) else { return };
        let peer = hast_engine::Counts { local: engine.peer.0.into(), remote: engine.peer.1.into() };
        engine.meta.set_counts(engine.meta.counts().equal_to_secondary(peer, true));
        engine.meta.target = false;
        engine.meta.mark = false;
        engine.meta.unsure = false;
        engine.meta.peer_boot = engine.peer_boot;
        if generations {
            engine.meta.connection_local = engine.meta.local;
        }
        engine.counted = Counted::No;
        engine.step = Step::Saving;
        engine.save = true;
    }

    /// The secondary writes the equal counts down, and the primary hears it.
    pub(crate) fn tell(&mut self, p: NodeId, localcnt: u8) {
        let boot = self.state.nodes[p].boot;
        let s = other(p);
        let Some(engine) = &self.state.nodes[p].primary else { return };
        let failing = engine.flush.as_ref().is_some_and(|run| run.remote == Says::Failed);
        let node = &self.state.nodes[s];
        let mut meta = node.disk.meta.now;
        let doubts = node.doubts || meta.unsure;
        self.first_request(p);
        if doubts && !self.state.nodes[s].durable.dropped().is_empty() {
            // The primary's next flush hears of what it may have lost.
            if let Some(engine) = self.engine(p) {
                (engine.done, engine.step) = (None, Step::Copying);
            }
            return;
        }
        meta.set_counts(meta.counts().equal_to_primary(localcnt.into()));
        let mut meta = Meta {
            target: false,
            stale: 0,
            was_primary: false,
            peer_boot: boot,
            connection_before: 0,
            connection_local: if self.world.generations { meta.local } else { 0 },
            ..meta
        };
        // Of a failure that is on its way the primary did not know when it said that (B1).
        if !failing || self.breaks(Variant::B1) {
            (meta.mark, meta.unsure) = (false, false);
            self.node(s).doubts = false;
        }
        self.write_meta(s, meta);
        let Some(engine) = self.engine(p) else { return };
        engine.done = None;
        if engine.step == Step::Telling {
            engine.unable_to_record = false;
            engine.relying = Relying::No;
            engine.unconfirmed = false;
            engine.marked = false;
            engine.step = Step::Copying;
            engine.session = false;
            self.equalised();
        }
    }

    // ---- what the secondary is not sure of

    /// Something that the primary relies on may be gone on the secondary: it writes that down as soon as it can (B1).
    pub(crate) fn doubt(&mut self, s: NodeId) {
        if !self.breaks(Variant::B1) && !self.state.nodes[s].disk.meta.now.unsure {
            self.node(s).doubts = true;
        }
    }

    /// It has.
    pub(crate) fn doubted(&mut self, s: NodeId) {
        if std::mem::take(&mut self.node(s).doubts) {
            let meta = self.state.nodes[s].disk.meta.now;
            let connection_before =
                if self.state.link == (Link::Up { cleared: true }) { 0 } else { meta.connection_before };
            self.write_meta(s, Meta { unsure: true, mark: true, connection_before, ..meta });
        }
    }
}

/// What has become of the extents that a failed flush may have dropped, as in the engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Became {
    Stale,
    Later,
    Impossible,
}
