//! Workers: how they start and end, and what is left of what their disks were doing.

use hast_engine::{EXIT_LOST, EXIT_PEER_BEHIND, EXIT_STALE};

use super::*;
use crate::faults::Fault;

impl World {
    /// The worker of `node` has ended by itself.
    pub(super) fn exited(&mut self, node: usize, code: i32) {
        self.trace(|| format!("node {node}: worker exits {code}"));
        *self.exits.entry(code).or_insert(0) += 1;
        let was_primary = self.nodes.get(node).is_some_and(Node::is_primary);
        if let Some(node) = self.nodes.get_mut(node) {
            node.unsure = (code == 66 && !was_primary) || matches!(code, EXIT_STALE | EXIT_LOST);
        }
        self.admin_sees_end(node, was_primary && code == 0);
        self.mixed_exit(node);
        // One that took all of its time has not flushed.
        let cut_short = was_primary && code == 0 && self.was_cut_short(node);
        self.forget_dropped(node, matches!(code, 66 | EXIT_LOST) || cut_short);
        self.end_worker(node);
        if was_primary {
            self.abandon_requests(node);
            self.unacknowledged_may_be_gone(node);
        }
        let Some(n) = self.nodes.get_mut(node) else { return };
        if let Some(role) = n.next_role.take() {
            n.waiting = None;
            n.forget_detachment();
            if role == Role::Primary && !was_primary && self.is_refused(node) {
                return self.stay_with_the_old(node);
            }
            return self.set_role(node, role);
        }
        if let Some(conn) = n.waiting.take() {
            return self.answer_first(node, conn.0, conn.1);
        }
        let refused = code == 78 && self.may_be_split() && !was_primary;
        if was_primary && matches!(code, 66 | EXIT_LOST) {
            // The disk failed at the worst moment, and the log says that it could not be flushed: the operator
            // starts it again.
            let role = self.nodes.get(node).map_or(Role::Init, |node| node.role);
            return self.schedule(Duration::from_secs(1), Happening::Back { node, role });
        }
        let fine = code == 0 || (was_primary && matches!(code, EXIT_PEER_BEHIND | EXIT_STALE));
        if !fine && (was_primary || !(refused || matches!(code, 66 | 75))) {
            self.fail(format!("the worker of node {node} ended with {code}"));
        }
    }

    /// Whether `hastctl role primary` is refused, because the node says itself that it is out of date.
    /// (The operator of `AllFaults` has looked before.)
    fn is_refused(&self, node: usize) -> bool {
        self.plan.scene == Scene::Storm && self.nodes.get(node).is_some_and(Node::is_out_of_date)
    }

    /// `node` cannot take over: the other one goes on as the primary once it is back.
    fn stay_with_the_old(&mut self, node: usize) {
        let old = 1 - node;
        self.trace(|| format!("node {node} is out of date: node {old} stays the primary"));
        self.serving = old;
        let unsure = self.metadata_of(node).is_ok_and(|metadata| metadata.extension.unsure);
        let unsure = unsure || self.nodes.get(node).is_some_and(|node| node.unsure);
        if unsure && self.nodes.get(old).is_some_and(|node| node.lost_power) {
            // Nobody has for certain what was not flushed.
            self.unflushed_may_be_lost(old);
        }
        self.set_role(node, Role::Secondary);
        if self.nodes.get(old).is_some_and(|node| node.running) {
            self.set_role(old, Role::Primary);
        } else {
            self.retarget(old, Role::Primary);
        }
    }

    fn end_worker(&mut self, node: usize) {
        self.hang_up(node);
        if let Some(n) = self.nodes.get_mut(node) {
            n.worker = Worker::None;
            n.incarnation += 1;
            n.in_flight.clear();
        }
    }

    /// The worker of `node` is killed; what its disk was doing gets done, in part, or not. With the power the
    /// cache goes too.
    pub(crate) fn kill(&mut self, node: usize, power: bool) {
        self.trace(|| format!("node {node}: killed{}", if power { ", power lost" } else { "" }));
        let Some(n) = self.nodes.get_mut(node) else { return };
        let was_primary = n.is_primary();
        let power = power && self.may_lose_power(node);
        self.mixed_killed(node);
        self.abandon_disk(node, power);
        if power {
            self.lose_power(node);
        } else {
            self.forget_dropped(node, true);
        }
        // The worker alone, and its supervisor remembers that the disk is given up; or all of the node, which then shows old
        // data until the two meet: only `AllFaults` expects that.
        let detached = self.nodes.get(node).is_some_and(|node| node.detached.is_some());
        let forgets = detached && self.plan.scene == Scene::AllFaults && (power || self.random.one_in(2));
        let Some(n) = self.nodes.get_mut(node) else { return };
        if forgets {
            n.forget_detachment();
        }
        n.pending = None;
        n.waiting = None;
        n.next_role = None;
        self.end_worker(node);
        if was_primary {
            self.abandon_requests(node);
            self.unacknowledged_may_be_gone(node);
        }
        if power && (was_primary || self.was_cut_short(node)) {
            self.unflushed_may_be_lost(node);
        }
    }

    /// The process is gone, and with it what a failed flush had dropped and nobody has written again. If it was
    /// `killed`, or could not even start with that disk, before it could, nobody else knows; then a node may have
    /// lost what no flush of a client had covered, as after a loss of power. One that ends by itself loses nothing.
    fn forget_dropped(&mut self, node: usize, killed: bool) {
        // A primary, or one that was killed and has had no worker since, or whose place the other one has taken.
        let replaced = self.admin.fork.as_ref().is_some_and(|fork| fork.new != node);
        let counts = |n: &Node| {
            replaced || n.is_primary() || (n.role == Role::Primary && matches!(n.worker, Worker::None))
        };
        let counts = self.nodes.get(node).is_some_and(counts);
        let Some(n) = self.nodes.get_mut(node) else { return };
        let changed = n.disk.forget_dropped();
        let localoff = n.layout().map_or(0, |layout| usize::try_from(layout.localoff()).unwrap_or(0));
        let sectors: Vec<usize> =
            changed.into_iter().filter_map(|at| at.checked_sub(localoff)).map(|at| at / SECTOR).collect();
        if sectors.is_empty() {
            return;
        }
        self.trace(|| format!("node {node}: sectors {sectors:?} are gone, since a flush failed"));
        self.unacknowledged_may_be_gone(node);
        if !killed {
            return;
        }
        if counts {
            sectors.iter().for_each(|at| self.may_be_lost(node, *at));
            self.memory.doubt_open();
        }
        self.mixed_power_lost(node, Vec::new());
    }

    /// The process is gone: what its disk was doing gets done, in part, or not.
    pub(crate) fn abandon_disk(&mut self, node: usize, power: bool) {
        let Some(n) = self.nodes.get_mut(node) else { return };
        for InFlight { op, covers, done } in std::mem::take(&mut n.in_flight).into_values() {
            if done.is_some() {
                continue;
            }
            if power || self.random.one_in(2) {
                n.disk.abandon(&op, &mut self.random);
            } else if !matches!(op, DiskOp::Flush) {
                let _ = n.disk.carry_out(&op, covers, &mut self.random);
            }
        }
    }

    fn lose_power(&mut self, node: usize) {
        let fragile = self.fragile(node);
        let Some(n) = self.nodes.get_mut(node) else { return };
        // L8: a torn sector of metadata ends an original; that is no history of ours.
        let torn = if n.original { Ok(0) } else { n.layout().map(|layout| layout.localoff()) };
        let torn = torn.map_or(4096, |torn| usize::try_from(torn).unwrap_or(0));
        let data = n.layout().map_or(0, |layout| usize::try_from(layout.localoff()).unwrap_or(0));
        // A disk writes a sector of 4096 bytes whole or not at all.
        let torn = if n.disk.unit > SECTOR { 0 } else { torn };
        let torn_data = self.plan.faults.has(Fault::TornData).then_some(data);
        let torn_at = n.disk.lose_power(torn, torn_data, &mut self.random);
        n.boot += 1;
        n.lost_power = true;
        if let Some(at) = torn_at {
            let bytes = n.disk.contents().get(at..at + SECTOR).unwrap_or_default().to_vec();
            self.remember_torn((at - data) / SECTOR, &bytes);
        }
        self.mixed_power_lost(node, fragile);
    }

    /// The client will hear nothing more of what it asked of `node`.
    fn abandon_requests(&mut self, node: usize) {
        let gone: Vec<RequestId> =
            self.requests.iter().filter(|(_, asked)| asked.node == node).map(|(id, _)| *id).collect();
        for id in gone {
            self.requests.remove(&id);
            self.write_ended(node, id.0, false);
        }
    }

    /// Starts `node` in `role`, or first ends what it is.
    pub(crate) fn set_role(&mut self, node: usize, role: Role) {
        let (now, mode) = (self.now, self.mode);
        let resuid = self.random.number() | 1;
        self.forget_restart(node);
        let Some(n) = self.nodes.get_mut(node) else { return };
        n.role = role;
        n.pending = None;
        if !matches!(n.worker, Worker::None) {
            n.next_role = Some(role);
            n.told_to_end = now;
            n.handle_stop(now);
            return self.pump(node);
        }
        if role != Role::Primary {
            n.forget_detachment();
            n.force = false;
        }
        if role == Role::Primary && n.running && n.detached.is_none() && !n.can_start() {
            self.trace(|| format!("node {node}: metadata or map cannot be read"));
            return self.schedule(Duration::from_secs(1), Happening::Back { node, role });
        }
        if role == Role::Primary && n.running {
            let survives = self.is_survivor(node);
            let Some(n) = self.nodes.get_mut(node) else { return };
            // Its supervisor knows that the data is out of date, and so does an administrator who wants it all the same.
            // It is not asked while the disk is given up.
            let doubts = n.unsure || (n.detached.is_none() && n.has_lost_its_area());
            let unsure = doubts && self.plan.scene == Scene::AllFaults;
            // After a split-brain the other one has given everything up, whatever this one has written down since.
            let only = survives && n.is_out_of_date();
            n.force |= unsure || only;
            if unsure {
                self.fork(node, true);
            } else if only {
                // Its former worker may have ended since, and with it what its disk had dropped.
                self.is_all_there_is(node);
            }
            let Some(n) = self.nodes.get_mut(node) else { return };
            if let Err(error) = n.start_primary(now, mode, resuid, n.force) {
                return self.fail(error);
            }
            self.mixed_promoted(node);
            self.fork_if_detachment_is_forgotten(node);
        }
        self.trace(|| format!("node {node}: {role}"));
        self.pump(node);
    }

    /// A primary that lived on the other node's disk and crashed serves what its own holds until the two meet.
    fn fork_if_detachment_is_forgotten(&mut self, node: usize) {
        let forgotten = self.nodes.get(node).is_some_and(|node| node.forgot_detachment);
        let shows_it = self.admin.fork.as_ref().is_none_or(|fork| fork.new == node);
        if forgotten && self.plan.scene == Scene::AllFaults && shows_it {
            self.fork(node, false);
        }
    }

    /// `hastctl role -f primary` on a node without a worker.
    pub(crate) fn promote_by_force(&mut self, node: usize) -> Result<(), String> {
        self.trace(|| format!("node {node}: primary, by force"));
        let (now, mode) = (self.now, self.mode);
        let resuid = self.random.number() | 1;
        let n = self.nodes.get_mut(node).ok_or("no such node")?;
        (n.role, n.running, n.pending, n.force) = (Role::Primary, true, None, true);
        n.start_primary(now, mode, resuid, true)?;
        self.pump(node);
        Ok(())
    }

    /// `node` is killed, and stays away.
    pub(crate) fn goes_down(&mut self, node: usize, power: bool) {
        self.kill(node, power);
        self.set_running(node, false);
    }

    pub(crate) fn set_running(&mut self, node: usize, running: bool) {
        if let Some(node) = self.nodes.get_mut(node) {
            node.running = running;
        }
    }

    /// `hastctl create` on a node that is in role init; what was in its data area stays there.
    pub(crate) fn recreate(&mut self, node: usize) -> Result<(), String> {
        self.trace(|| format!("node {node}: created again"));
        self.mixed_recreated();
        self.nodes.get_mut(node).ok_or("no such node")?.recreate()
    }

    /// `hastctl discard` on a node that is in role init.
    pub(crate) fn discard(&mut self, node: usize) -> Result<(), String> {
        self.trace(|| format!("node {node}: its changes are given up"));
        self.mixed_recreated();
        self.nodes.get_mut(node).ok_or("no such node")?.discard()
    }

    /// A node that runs and was to try again to start a worker has something else to do now.
    pub(crate) fn forget_restart(&mut self, whom: usize) {
        let running = self.nodes.get(whom).is_some_and(|node| node.running);
        if running && self.plan.scene == Scene::AllFaults {
            self.queue
                .retain(|_, happening| !matches!(happening, Happening::Back { node, .. } if *node == whom));
        }
    }

    /// A node that is to come back will have another role.
    pub(crate) fn retarget(&mut self, whom: usize, to: Role) {
        for happening in self.queue.values_mut() {
            if let Happening::Back { node, role } = happening
                && *node == whom
            {
                *role = to;
            }
        }
        if let Some(node) = self.nodes.get_mut(whom) {
            node.role = to;
        }
    }
}
