//! What happens to a pair from outside: losses of power, dead workers, changes of roles, `create`.

use hast_engine::Turning;
use hast_format::activemap::Activemap;

use crate::play::Play;
use crate::state::{Cached, Counted, Disk, Engine, Meta, NodeId, Relying, Says, Snapshot, Step, bit, other};
use crate::variant::Variant;
use crate::worlds::World;

/// A primary's memory as its worker finds it on disk.
pub(crate) fn start(disk: &Disk, world: &World) -> Engine {
    let World { extents, keepdirty, variant, .. } = *world;
    let mut meta = disk.meta.now;
    meta.set_counts(meta.counts().at_start(meta.resuid.into()));
    let count = u32::try_from(extents).unwrap_or(0);
    let target = meta.target || meta.mark;
    let map = disk.map.now;
    let mut engine = Engine {
        save: false,
        map: Activemap::new(count, keepdirty, 1, &[map]),
        map_writing: None,
        counted: Counted::No,
        stale: meta.stale | if target { map } else { 0 },
        lone: meta.stale,
        target,
        map_complete: if variant == Some(Variant::MapComplete) {
            meta.was_primary
        } else {
            meta.map_complete
        },
        unconfirmed: map != 0,
        marked: false,
        session: false,
        step: Step::Copying,
        done: None,
        flush: None,
        waiting: false,
        counting: None,
        marking: None,
        turning: Turning::new(count),
        unable_to_record: false,
        relying: Relying::No,
        writes: Vec::new(),
        read: None,
        peer: (0, 0),
        peer_boot: 0,
        meta,
    };
    for extent in (0..extents).filter(|extent| engine.stale & bit(*extent) != 0) {
        engine.map.mark_dirty(extent as u32);
    }
    engine
}

impl Play<'_> {
    /// A node loses power. Its daemon starts in role init; whoever wants it to be primary has to say so.
    pub(crate) fn power_lost(&mut self, node: NodeId, choice: usize) {
        self.state.left.powers -= 1;
        let was_primary = self.state.nodes[node].primary.is_some();
        if was_primary {
            self.end_primary(node);
        } else {
            self.close(false);
        }
        let before = self.state.nodes[node].disk.data.clone().map(|data| data.now);
        let machine = self.node(node);
        machine.disk.lose(choice);
        machine.boot = machine.boot.saturating_add(1);
        self.starts(node);
        self.fell_back(node, before, was_primary);
    }

    /// A worker dies; what it gave to its disk is there. A primary's is replaced, a secondary's waits for its
    /// primary.
    pub(crate) fn killed(&mut self, node: NodeId) {
        self.state.left.kills -= 1;
        let before = self.state.nodes[node].disk.data.clone().map(|data| data.now);
        if self.state.nodes[node].primary.is_some() {
            self.end_primary(node);
            self.node(node).disk.forget_dropped();
            self.starts(node);
            self.fell_back(node, before, true);
            let world = self.world;
            let machine = self.node(node);
            machine.disk.flush();
            machine.primary = Some(start(&machine.disk, world));
            self.begins_again(node);
        } else {
            self.close(false);
            self.node(node).disk.forget_dropped();
            self.starts(node);
            self.fell_back(node, before, false);
        }
    }

    /// The primary's worker is gone at once, and so is its connection.
    fn end_primary(&mut self, node: NodeId) {
        self.primary_gone(node);
        self.drop_writes(node);
        self.node(node).primary = None;
    }

    /// The secondary stores what it accepted; whatever the primary would have made of that it cannot any more.
    fn drop_writes(&mut self, node: NodeId) {
        let s = other(node);
        let accepted: Vec<(u8, u8)> = self.state.nodes[node]
            .primary
            .iter()
            .flat_map(|engine| &engine.writes)
            .filter(|write| write.there == crate::state::There::Received)
            .map(|write| (write.extent, write.value))
            .collect();
        for (extent, value) in accepted {
            self.stored(s, extent.into(), value);
        }
        if self.state.link != crate::state::Link::Down {
            self.secondary_ends(s);
        }
        self.state.link = crate::state::Link::Down;
    }

    /// Whether the primary may be asked to give its role up: what is in flight has ended (C4).
    pub(crate) fn is_drained(&self, p: NodeId) -> bool {
        self.state.nodes[p].primary.as_ref().is_some_and(|engine| {
            engine.writes.is_empty()
                && engine.flush.is_none()
                && engine.read.is_none()
                && engine.turning_extents() == 0
                && !engine.waiting
                && engine.counting.is_none()
                && engine.marking.is_none()
                && !engine.save
                && engine.map_writing.is_none()
                && !self.has_dropped(p)
        })
    }

    /// A planned end of the primary role: both nodes flush, then the connection closes (C4).
    pub(crate) fn demoted(&mut self, p: NodeId) {
        self.state.left.roles -= 1;
        let up = self.state.is_up();
        if up {
            self.first_request(p);
        }
        self.node(p).disk.flush();
        if self.state.link != crate::state::Link::Down {
            self.node(other(p)).disk.flush();
        }
        if let Some(engine) = self.engine(p) {
            engine.flush = Some(crate::state::FlushRun {
                client: false,
                local: Says::Yes,
                remote: if up { Says::Yes } else { Says::Unknown },
                covers: 0,
                lone: std::mem::take(&mut engine.lone),
                cut_off: false,
            });
        }
        self.end_flush(p);
        // What a failed flush makes known is written down first; the counts are not made equal any more.
        if self.engine(p).is_some_and(|engine| engine.save && engine.step != Step::Saving) {
            self.saved(p);
        }
        // A secondary that lacks something is told so before the connection closes.
        if up && self.secondary_lacks_something(p) && !self.breaks(Variant::C4Marked) {
            self.write_mark(other(p));
        }
        self.role_ended(p);
        if self.state.link != crate::state::Link::Down {
            self.secondary_ends(other(p));
        }
        self.state.link = crate::state::Link::Down;
        self.node(p).primary = None;
        self.starts(p);
    }

    /// A node becomes primary. One that is marked is refused unless it is forced (L6).
    pub(crate) fn promoted(&mut self, node: NodeId, forced: bool) {
        self.state.left.roles -= 1;
        if forced {
            self.state.left.forced -= 1;
        }
        let (world, all) = (self.world, self.all());
        let machine = self.node(node);
        machine.disk.flush();
        let marked = machine.disk.meta.now.mark;
        if marked && !forced {
            self.state.ghost.seen.refused = true;
            return;
        }
        // Of a node that is out of date, all that it misses is given up.
        let given_up = if forced { machine.disk.meta.now.stale | if marked { all } else { 0 } } else { 0 };
        if forced {
            let meta = Meta { mark: false, target: false, stale: 0, ..machine.disk.meta.now };
            machine.disk.meta.now = meta;
        }
        let engine = start(&machine.disk, world);
        let save = forced || engine.meta.resuid == 0;
        machine.primary = Some(engine);
        self.promoted_with(node, forced, given_up);
        if save {
            self.saved(node);
        }
    }

    /// Somebody copies a node's disk as it is.
    pub(crate) fn snapshot(&mut self, node: NodeId) {
        let mut disk = self.state.nodes[node].disk.clone();
        disk.dropped = 0;
        disk.flush();
        self.state.snapshot = Some(Snapshot { node, disk, outdated: false });
    }

    /// A machine is set back to that copy; its daemon starts in role init.
    pub(crate) fn rolled_back_to_snapshot(&mut self) {
        self.state.left.rollbacks -= 1;
        let Some(Snapshot { node, disk, .. }) = self.state.snapshot.take() else { return };
        if self.state.nodes[node].primary.is_some() {
            self.end_primary(node);
        } else {
            self.close(false);
        }
        let before = self.state.nodes[node].disk.data.clone().map(|data| data.now);
        let machine = self.node(node);
        machine.disk = disk;
        machine.boot = machine.boot.saturating_add(1);
        self.starts(node);
        self.rolled_back(node, before);
    }

    /// `create` on a node that is not primary: metadata and map as new, and another, empty disk below.
    pub(crate) fn created(&mut self, node: NodeId) {
        self.state.left.creates -= 1;
        let data = [0; crate::state::EXTENTS].map(Cached::new);
        self.node(node).disk =
            Disk { data, map: Cached::new(0), meta: Cached::new(Meta::default()), dropped: 0 };
        self.starts(node);
        self.copy_given_up(node);
    }
}
