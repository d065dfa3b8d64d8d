//! What takes the administrator more than one step.

use super::*;
use crate::node::Worker;
use crate::world::Trouble;
use hast_format::metadata::Metadata;

/// How often is looked whether the next step can be taken.
const LOOK: Duration = Duration::from_millis(5);
const LOOK_AGAIN: Duration = Duration::from_millis(300);

/// A step.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Chore {
    /// A trouble is over.
    Heal { node: usize, trouble: Trouble },
    /// The primary dies, if all is in order.
    PrimaryDies,
    /// `node`, in role init, becomes primary unless it is suspect. The old primary was `connected` when it died.
    /// `beside`: the old one still is primary.
    TakeOver { node: usize, connected: bool, beside: bool, tries: u32 },
    /// A primary that was `connected` is ending as planned.
    Stopped { connected: bool },
    /// Of two primaries this one becomes secondary.
    Demote { node: usize },
    /// A secondary in role init gives its changes up, or is created again, and is secondary again.
    GiveUp { node: usize, create: bool },
    /// The loser of a split-brain gives its changes up.
    Settle,
}

impl World {
    pub(crate) fn do_chore(&mut self, chore: Chore) {
        match chore {
            Chore::Heal { node, trouble } => self.heal(node, trouble),
            Chore::PrimaryDies if self.storm => self.primary_dies(),
            Chore::PrimaryDies => {}
            Chore::TakeOver { node, connected, beside, tries } => {
                self.take_over_now(node, connected, beside, tries);
            }
            Chore::Stopped { connected } => self.stopped(connected),
            Chore::Demote { node } => self.demote(node),
            Chore::GiveUp { node, create } => self.give_up_now(node, create),
            Chore::Settle => self.settle_now(),
        }
    }

    fn chore(&mut self, after: Duration, chore: Chore) {
        self.schedule(after, Happening::Admin(chore));
    }

    fn heal(&mut self, node: usize, trouble: Trouble) {
        let Some(node) = self.nodes.get_mut(node) else { return };
        match trouble {
            Trouble::Region(region) => {
                if let Some(index) = node.disk.bad.iter().position(|bad| *bad == region) {
                    node.disk.bad.remove(index);
                }
            }
            Trouble::Slow => node.slow = 0,
            Trouble::DropsEarly => node.drops_early = 0,
        }
    }

    /// The primary dies, and the other node takes over unless it is suspect.
    pub(super) fn primary_dies(&mut self) {
        let (old, new) = (self.serving, 1 - self.serving);
        let connected = self.nodes.get(old).is_some_and(Node::is_connected);
        if !self.is_orderly() || !(connected || self.plan.faults.has(Fault::BlindFailover)) {
            return;
        }
        let power = self.random.one_in(2);
        self.trace(|| format!("node {old} dies, connected: {connected}; node {new} is to take over"));
        self.kill_for_a_while(old, power);
        self.begin_take_over(new, connected, false);
    }

    fn begin_take_over(&mut self, node: usize, connected: bool, beside: bool) {
        self.admin.busy = true;
        if let Some(node) = self.nodes.get_mut(node).filter(|node| !node.running) {
            node.role = Role::Init;
        } else {
            self.set_role(node, Role::Init);
        }
        self.chore(LOOK, Chore::TakeOver { node, connected, beside, tries: 0 });
    }

    fn take_over_now(&mut self, node: usize, connected: bool, beside: bool, tries: u32) {
        let old = 1 - node;
        let later = Chore::TakeOver { node, connected, beside, tries: tries + 1 };
        let Some(n) = self.nodes.get(node) else { return };
        if !n.running || !matches!(n.worker, Worker::None) || (!n.can_start() && tries < 100) {
            return self.chore(if tries < 100 { LOOK } else { LOOK_AGAIN }, later);
        }
        let resumed = self.nodes.get(old).is_some_and(Node::is_primary);
        // Until a first contact is complete a failover may look like a split-brain (C2).
        let met = self.events_of("syncdone") > 0;
        if (resumed && !beside) || !n.can_start() || !met {
            return self.stay_with(old);
        }
        if self.is_suspect(node) {
            let marked = self.metadata_of(node).is_ok_and(|metadata| metadata.resuid != 0);
            let forced = marked && self.plan.faults.has(Fault::Force) && self.random.one_in(2);
            if !forced || self.admin.exchanged.is_some() || beside {
                return self.stay_with(old);
            }
            self.now_serves(node);
            self.fork(node, true);
            if let Err(error) = self.promote_by_force(node) {
                self.fail(error);
            }
            return;
        }
        let after_loss = self.nodes.get(node).is_some_and(|node| node.lost_power);
        if after_loss {
            self.memory.unflushed_may_be_lost();
            // What the old primary completes later may have been stored on both, and lost here.
            self.memory.doubt_open();
        }
        self.memory.unconfirmed_may_be_lost();
        for at in std::mem::take(&mut self.refused) {
            if self.is_loose() {
                self.memory.may_be_lost(at);
            }
        }
        if !connected {
            self.fork(node, false);
        }
        let counts = |node| self.metadata_of(node).map_or((0, 0), |m| (m.localcnt, m.remotecnt));
        self.admin.counted_for_nothing = connected && counts(old).0 > counts(node).1;
        let counted = self.admin.counted_for_nothing;
        self.trace(|| {
            format!(
                "node {node} takes over, power lost before: {after_loss}; the other has counted: {counted}"
            )
        });
        if beside {
            self.serving = node;
            let after = Duration::from_millis(self.random.below(20_000));
            self.admin.loser = None;
            self.chore(after, Chore::Demote { node: old });
        } else {
            self.now_serves(node);
        }
        self.set_role(node, Role::Primary);
    }

    fn now_serves(&mut self, node: usize) {
        self.serving = node;
        self.admin.busy = false;
        self.admin.in_step = false;
        self.retarget(1 - node, Role::Secondary);
    }

    /// The other node is not promoted.
    fn stay_with(&mut self, old: usize) {
        self.trace(|| format!("node {old} stays the primary"));
        self.admin.busy = false;
        self.serving = old;
        self.set_role(1 - old, Role::Secondary);
        let back = self.nodes.get(old).is_some_and(|node| node.running);
        self.retarget(old, Role::Primary);
        if back && !self.nodes.get(old).is_some_and(Node::is_primary) {
            self.set_role(old, Role::Primary);
        }
    }

    /// The power of both nodes goes at once.
    pub(super) fn black_out(&mut self) {
        if !self.is_orderly() {
            return;
        }
        let (old, new) = (self.serving, 1 - self.serving);
        let connected = self.nodes.get(old).is_some_and(Node::is_connected);
        let swap = connected && self.random.one_in(2);
        self.trace(|| format!("both lose power; to be swapped: {swap}"));
        self.kill_for_a_while(old, true);
        self.kill_for_a_while(new, true);
        if swap {
            if self.is_loose() {
                // What the secondary had only received is gone with its worker, whatever its disk has kept.
                self.memory.unflushed_may_be_lost();
            }
            self.retarget(old, Role::Init);
            self.retarget(new, Role::Init);
            self.begin_take_over(new, true, false);
        }
    }

    /// The administrator ends the primary, waits until it has ended, and makes the other one primary, or this one
    /// again; the power may go meanwhile.
    pub(super) fn switch_as_planned(&mut self) {
        let (old, connected) = (self.serving, self.nodes.get(self.serving).is_some_and(Node::is_connected));
        if !self.is_orderly() || !connected {
            return;
        }
        self.trace(|| format!("node {old} is stopped as planned"));
        self.admin.busy = true;
        self.admin.cut_off = false;
        self.set_role(old, Role::Init);
        self.chore(LOOK, Chore::Stopped { connected });
    }

    fn stopped(&mut self, connected: bool) {
        let (old, new) = (self.serving, 1 - self.serving);
        if !matches!(self.nodes.get(old).map(|node| &node.worker), Some(Worker::None)) {
            return self.chore(LOOK, Chore::Stopped { connected });
        }
        let well = self.nodes.get(old).is_some_and(|node| node.ended_well);
        let connected = connected && !self.admin.cut_off && well;
        if self.plan.faults.has(Fault::PlannedStop) {
            for node in [old, new] {
                if self.random.one_in(3) {
                    let sure = connected && !self.nodes.get(node).is_some_and(|node| node.lost_power);
                    self.kill_for_a_while(node, true);
                    if let Some(node) = self.nodes.get_mut(node).filter(|_| sure) {
                        node.lost_power = false; // it was flushed before the connection was closed
                    }
                }
            }
        }
        self.trace(|| format!("node {old} has ended, connected to the end: {connected}"));
        if connected || self.plan.faults.has(Fault::BlindFailover) && self.random.one_in(2) {
            self.begin_take_over(new, connected, false);
        } else {
            self.stay_with(old);
        }
    }

    /// The network is gone, and the other node is made primary as well.
    pub(super) fn promote_beside(&mut self) {
        if !self.is_orderly() || self.is_suspect(1 - self.serving) {
            return;
        }
        let length = Duration::from_millis(self.random.below(30_000));
        self.trace(|| format!("the network is gone for {length:?}, and both nodes are to be primary"));
        self.network = false;
        self.cut();
        self.schedule(length, Happening::NetworkBack);
        let new = 1 - self.serving;
        self.begin_take_over(new, false, true);
    }

    fn demote(&mut self, node: usize) {
        self.admin.busy = false;
        self.admin.in_step = false;
        self.retarget(node, Role::Secondary);
        if self.nodes.get(node).is_some_and(|node| node.running) {
            self.set_role(node, Role::Secondary);
        }
    }

    /// Whom the client asks: of two primaries the old one too.
    pub(crate) fn asks_whom(&mut self) -> usize {
        let Some(fork) = &self.admin.fork else { return self.serving };
        let old = 1 - fork.new;
        if self.are_both_primary() && self.random.one_in(4) { old } else { self.serving }
    }

    /// `hastctl discard`, or `create`, on a secondary.
    pub(super) fn give_up(&mut self) {
        let node = 1 - self.serving;
        if !self.is_orderly() || !self.can_do_without(node) {
            return;
        }
        let create = self.random.one_in(3);
        self.admin.busy = true;
        self.set_role(node, Role::Init);
        self.chore(LOOK, Chore::GiveUp { node, create });
    }

    fn give_up_now(&mut self, node: usize, create: bool) {
        let Some(n) = self.nodes.get(node) else { return };
        if !n.running || !matches!(n.worker, Worker::None) || !n.can_start() {
            return self.chore(LOOK_AGAIN, Chore::GiveUp { node, create });
        }
        self.admin.busy = false;
        if self.can_do_without(node) {
            self.wipe(node, create);
            self.admin.exchanged = Some(node);
        }
        self.set_role(node, Role::Secondary);
    }

    /// Whether the other node has everything: `status -v` says so. Before the first contact the nodes would not know
    /// that this one does not hold what it held when it was created.
    fn can_do_without(&self, node: usize) -> bool {
        let whole = |metadata: Metadata| {
            let extension = metadata.extension;
            metadata.resuid != 0
                && !extension.target
                && extension.mark.is_none()
                && extension.stale.is_empty()
        };
        // Before the first contact is complete the resource id may be lost, and drawn again.
        self.events_of("syncdone") > 0
            && self.metadata_of(1 - node).is_ok_and(whole)
            && self.nodes.get(1 - node).is_some_and(Node::has_everything)
    }

    fn wipe(&mut self, node: usize, create: bool) {
        let wiped = if create { self.recreate(node) } else { self.discard(node) };
        if let Err(error) = wiped {
            self.fail(error);
        }
        if let Some(snapshot) = self.admin.snapshots.get_mut(node) {
            *snapshot = None;
        }
    }

    /// A split-brain that was to be expected: one of the nodes will give its changes up.
    pub(super) fn settle_split(&mut self) {
        let late = |at| self.now < at + Duration::from_secs(15);
        if self.admin.loser.is_some() || self.admin.settled.is_some_and(late) {
            return;
        }
        // Which copy is whole, `status -v` says.
        let whole = |node: usize| {
            let metadata = self.metadata_of(node);
            metadata.is_ok_and(|Metadata { extension, .. }| {
                extension.mark.is_none() && !extension.target && extension.stale.is_empty()
            })
        };
        let choice = self.admin.fork.is_some() && whole(1 - self.serving);
        let forced = choice && !whole(self.serving);
        // One that lives on the other node's disk has nothing of its own.
        let detached = self.nodes.get(self.serving).is_some_and(|node| node.detached.is_some());
        let gives_up = detached || forced || (choice && self.random.one_in(2));
        let loser = if gives_up { self.serving } else { 1 - self.serving };
        self.trace(|| format!("split-brain: node {loser} is to give its changes up"));
        self.admin.loser = Some(loser);
        self.chore(LOOK_AGAIN, Chore::Settle);
    }

    fn settle_now(&mut self) {
        let Some(loser) = self.admin.loser else { return };
        let free = !self.admin.busy
            && self.nodes.iter().all(|node| node.running && node.next_role.is_none() && node.can_start());
        let Some(n) = self.nodes.get(loser) else { return };
        if !free || !matches!(n.worker, Worker::None) || n.role != Role::Init {
            if free && n.role != Role::Init {
                self.set_role(loser, Role::Init);
            }
            return self.chore(LOOK_AGAIN, Chore::Settle);
        }
        // What is stale on the survivor the loser alone has.
        let whole = self.metadata_of(1 - loser).is_ok_and(|metadata| metadata.extension.stale.is_empty());
        let create = whole && self.random.one_in(2);
        self.wipe(loser, create);
        self.decide_for(1 - loser);
        self.admin.loser = None;
        self.admin.settled = Some(self.now);
        self.admin.in_step = false;
        self.admin.exchanged = Some(loser);
        self.serving = 1 - loser;
        self.set_role(loser, Role::Secondary);
        let Some(survivor) = self.nodes.get(1 - loser) else { return };
        if survivor.is_out_of_date() || !survivor.is_primary() {
            self.admin.survivor = Some(1 - loser);
            self.set_role(1 - loser, Role::Primary);
        }
    }

    /// A snapshot of a machine: what would be there after a loss of power.
    pub(super) fn take_snapshot(&mut self) {
        let node = 1 - self.serving;
        let Some(n) = self.nodes.get(node) else { return };
        let mut disk = n.disk.clone();
        disk.lose_power(0, None, &mut self.random);
        self.trace(|| format!("node {node}: a snapshot is taken"));
        if let Some(snapshot) = self.admin.snapshots.get_mut(node) {
            *snapshot = Some(disk);
        }
    }

    /// The secondary's disk is what it was when the snapshot was taken; both nodes have met since, so that can be seen.
    pub(super) fn roll_back(&mut self) {
        let node = 1 - self.serving;
        let snapshot = self.admin.snapshots.get(node).cloned().flatten();
        let fine = self.is_orderly() && self.can_do_without(node);
        let Some(disk) = snapshot.filter(|_| fine) else { return };
        // A connection that both disks know of hides what came before it.
        let known = |contents: &[u8]| {
            let extension = Metadata::read(contents).map(|reading| reading.metadata.extension);
            extension.map_or([0; 2], |extension| [extension.connection, extension.connection_before])
        };
        let former = known(disk.contents());
        let seen =
            |node: &Node| known(node.disk.contents()).iter().any(|one| *one != 0 && former.contains(one));
        // One from before the first connection says nothing at all.
        if former == [0; 2] || self.nodes.iter().any(seen) {
            return;
        }
        self.exchange_disk(node, disk, "is rolled back");
    }

    /// The secondary's disk becomes a copy of the primary's.
    pub(super) fn clone_disk(&mut self) {
        let (node, of) = (1 - self.serving, self.serving);
        let loose = self.nodes.get(of).is_none_or(Node::is_map_loose);
        let fine = self.is_orderly() && !loose && self.can_do_without(node);
        let Some(n) = self.nodes.get(of).filter(|_| fine) else { return };
        let mut disk = n.disk.clone();
        disk.lose_power(0, None, &mut self.random);
        self.exchange_disk(node, disk, "gets a copy of the other's disk");
    }

    fn exchange_disk(&mut self, node: usize, disk: Disk, what: &str) {
        self.trace(|| format!("node {node} {what}"));
        self.kill_for_a_while(node, false);
        // What the primary's disk has dropped, and nobody has noticed so far, this one alone had.
        self.unflushed_may_be_lost(self.serving);
        self.admin.exchanged = Some(node);
        self.admin.in_step = false;
        let Some(n) = self.nodes.get_mut(node) else { return };
        let (deletes, spares) = (n.disk.deletes, n.disk.spares_below);
        let bad = std::mem::take(&mut n.disk.bad);
        n.disk = disk;
        (n.disk.deletes, n.disk.spares_below, n.disk.bad) = (deletes, spares, bad);
        n.disk.touch_all();
    }

    /// hast.conf is read again.
    pub(super) fn reload(&mut self) {
        let (now, serving, faults) = (self.now, self.serving, self.plan.faults);
        if self.nodes.get(serving).is_none_or(|node| node.asleep_until > now) {
            return;
        }
        let reconnect = self.random.one_in(2);
        if faults.has(Fault::ModeChange) && self.random.one_in(2) {
            let modes = [Replication::Fullsync, Replication::Memsync, Replication::Async];
            self.mode = self.random.pick(&modes).unwrap_or(self.mode);
            self.admin.loose = true;
            self.mode_changed();
        }
        let metaflush = !(faults.has(Fault::Metaflush) && self.random.one_in(2));
        let mode = self.mode;
        self.trace(|| format!("reload: {mode}, metaflush {metaflush}, reconnect {reconnect}"));
        let Some(node) = self.nodes.get_mut(serving) else { return };
        node.set_metaflush(metaflush);
        node.handle_reload(now, mode, reconnect);
        self.pump(serving);
    }
}
