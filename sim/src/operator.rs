//! The operator: kills, cuts, restarts and switches, as operators and fate do.

use core::time::Duration;

use hast_format::metadata::Role;
use hast_net::Replication;

use crate::disk::Chances;
use crate::node::Node;
use crate::scenes::Scene;
use crate::world::{Happening, World};

impl World {
    pub(crate) fn operate(&mut self) {
        if !self.storm {
            return;
        }
        if self.plan.scene == Scene::AllFaults {
            return self.administer();
        }
        let after = Duration::from_millis(20 + self.random.below(8_000));
        self.schedule(after, Happening::Operator);
        let (serving, other) = (self.serving, 1 - self.serving);
        let settled = self.is_settled();
        match self.random.below(12) {
            0 | 1 => self.cut_some(),
            2 => self.lose_network(),
            3 => self.stall(),
            4 | 5 if settled => {
                let power = self.random.one_in(2);
                self.kill_for_a_while(other, power);
            }
            6 | 7 if settled => {
                let power = self.random.one_in(2);
                self.kill_for_a_while(serving, power);
            }
            8 | 9 if settled && !self.stays() => self.switch_over(),
            10 if settled && !self.stays() => self.fail_over(),
            11 => self.disturb_one(),
            _ => {}
        }
    }

    /// No node is being restarted, and no role is being changed.
    fn is_settled(&self) -> bool {
        self.nodes.iter().all(|node| node.running && node.next_role.is_none())
            && self.nodes.get(self.serving).is_some_and(Node::is_primary)
    }

    pub(crate) fn kill_for_a_while(&mut self, node: usize, power: bool) {
        let Some(role) = self.nodes.get(node).map(|node| node.role) else { return };
        self.kill(node, power);
        self.forget_restart(node);
        if let Some(node) = self.nodes.get_mut(node) {
            node.running = false;
        }
        let after = Duration::from_millis(10 + self.random.below(10_000));
        self.schedule(after, Happening::Back { node, role });
    }

    pub(crate) fn back(&mut self, node: usize, role: Role) {
        if let Some(node) = self.nodes.get_mut(node) {
            node.running = true;
        }
        self.set_role(node, role);
    }

    /// A planned change of roles, of nodes that are in step: nothing may be lost by it.
    fn switch_over(&mut self) {
        let (old, new) = (self.serving, 1 - self.serving);
        if !self.is_connected() || !self.nodes.get(old).is_some_and(Node::is_in_step) {
            return;
        }
        self.trace(|| format!("the operator switches from node {old} to node {new}"));
        let before = self.localcnt(old);
        if let Some(node) = self.nodes.get_mut(old) {
            node.lost_power = false; // earlier: it has been synchronised since
        }
        self.serving = new;
        self.set_role(old, Role::Secondary);
        self.promote(new, before);
    }

    fn localcnt(&self, node: usize) -> u64 {
        self.nodes.get(node).and_then(|node| node.metadata().ok()).map_or(0, |metadata| metadata.localcnt)
    }

    /// As operators do it: the new primary waits until the old one has ended; and if that was written alone
    /// in the end, it stays what it is.
    pub(crate) fn promote(&mut self, node: usize, before: u64) {
        let old = 1 - node;
        if self.nodes.get(old).is_some_and(Node::is_primary) {
            self.schedule(Duration::from_millis(5), Happening::Promote { node, before });
        } else if self.localcnt(old) == before {
            self.set_role(node, Role::Primary);
        } else {
            self.trace(|| format!("node {old} was written alone: it stays the primary"));
            self.serving = old;
            self.set_role(old, Role::Primary);
        }
    }

    /// The primary dies, and the other node, which was in step and still has its worker, takes over.
    fn fail_over(&mut self) {
        let (old, new) = (self.serving, 1 - self.serving);
        if !self.is_connected() || !self.nodes.get(old).is_some_and(Node::is_in_step) {
            return;
        }
        let power = self.random.one_in(2);
        self.trace(|| format!("node {old} dies and node {new} takes over"));
        if self.mode == Replication::Async {
            self.memory.unconfirmed_may_be_lost();
        }
        if self.mode == Replication::Memsync {
            // Complete once it was received: the new primary's disk failed it, and the old one died before it heard.
            for at in std::mem::take(&mut self.refused) {
                self.memory.may_be_lost(at);
            }
        }
        // The new primary kept power: it has every acknowledged write. The old one comes back as its secondary.
        self.serving = new;
        if let Some(node) = self.nodes.get_mut(old) {
            node.lost_power = false; // earlier
        }
        self.kill_for_a_while(old, power);
        self.retarget(old, Role::Secondary);
        self.set_role(new, Role::Primary);
    }

    /// The storm is over: everything works again.
    pub(crate) fn calm(&mut self) {
        self.network = true;
        self.stalled_until = [self.now; 2];
        for node in &mut self.nodes {
            node.disk.chances = Chances::default();
            node.disk.bad.clear();
            (node.slow, node.drops_early) = (0, 0);
        }
        // A disk that was given up, and works again, is used again after a change of roles.
        for node in 0..2 {
            let stays =
                |node: &Node| node.detached.is_some() && node.is_primary() && node.next_role.is_none();
            if self.nodes.get(node).is_some_and(stays) {
                self.set_role(node, Role::Primary);
            }
        }
    }
}
