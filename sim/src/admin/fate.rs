//! What goes wrong by itself.

use super::*;
use crate::disk::{Chances, Region, SECTOR};
use crate::world::Trouble;

impl World {
    pub(crate) fn cut_some(&mut self) {
        if self.random.one_in(3) {
            self.trace(|| "one of the connections breaks".into());
            self.cut_one();
        } else {
            self.trace(|| "the connections break".into());
            self.cut();
        }
    }

    pub(crate) fn lose_network(&mut self) {
        let length = Duration::from_millis(self.random.below(15_000));
        self.trace(|| format!("the network is gone for {length:?}"));
        self.network = false;
        self.cut();
        self.schedule(length, Happening::NetworkBack);
    }

    pub(crate) fn stall(&mut self) {
        let length = Duration::from_millis(self.random.below(30_000));
        self.trace(|| format!("the network stalls for {length:?}"));
        let until = self.now + length;
        // Both ways, or what goes to one node alone.
        self.stalled_until = match self.random.below(4) {
            0 => [until, self.now],
            1 => [self.now, until],
            _ => [until; 2],
        };
    }

    pub(super) fn kill_one(&mut self) {
        let node = self.any_node();
        let free = self.nodes.iter().all(|node| node.running && node.next_role.is_none());
        if free && !self.admin.busy {
            let power = self.random.one_in(2);
            self.kill_for_a_while(node, power);
        }
    }

    pub(crate) fn disturb_one(&mut self) {
        let node = self.any_node();
        let deletes = self.plan.faults.has(Fault::DeleteFails);
        let mut chance = || if self.random.one_in(2) { 0 } else { 3 + self.random.below(60) };
        let (read, write, flush) = (chance(), chance(), chance());
        let delete = if deletes { chance() / 3 } else { 0 };
        let chances = Chances { read, write, delete, flush };
        let length = Duration::from_millis(self.random.below(5_000));
        self.trace(|| format!("node {node}: {chances:?} for {length:?}"));
        if let Some(node) = self.nodes.get_mut(node) {
            node.disk.chances = chances;
        }
        self.schedule(length, Happening::FaultsEnd { node });
    }

    pub(super) fn spoil_metadata(&mut self) {
        let node = self.any_node();
        let sector = self.random.below(8) * SECTOR as u64;
        let length = if self.random.one_in(2) { 4096 - sector } else { SECTOR as u64 };
        self.spoil_for_a_while(node, sector, length);
    }

    pub(super) fn spoil_map(&mut self) {
        let node = self.any_node();
        let Some(layout) = self.nodes.get(node).and_then(|node| node.layout().ok()) else { return };
        self.spoil_for_a_while(node, layout.map_offset(), layout.localoff() - layout.map_offset());
    }

    pub(super) fn spoil_data(&mut self) {
        let node = self.any_node();
        let Some(layout) = self.nodes.get(node).and_then(|node| node.layout().ok()) else { return };
        let sectors = self.sectors() as u64;
        let first = self.random.below(sectors);
        let count = if self.random.one_in(4) { sectors } else { 1 + self.random.below(12) };
        self.spoil_for_a_while(node, layout.localoff() + first * SECTOR as u64, count * SECTOR as u64);
    }

    /// Every other extent of the one that serves cannot be written.
    pub(super) fn spoil_many(&mut self) {
        let node = self.serving;
        let Some(layout) = self.nodes.get(node).and_then(|node| node.layout().ok()) else { return };
        let length = Duration::from_millis(1_000 + self.random.below(60_000));
        self.trace(|| format!("node {node}: every other extent cannot be written for {length:?}"));
        let extents = u32::try_from(layout.nextents()).unwrap_or(0);
        for extent in (0..extents).step_by(2) {
            let (offset, _) = layout.extent_range(extent);
            let region = Region::unwritable(layout.localoff() + offset, SECTOR as u64);
            self.spoil_until(node, region, length);
        }
    }

    pub(super) fn disk_dies(&mut self) {
        let node = self.any_node();
        let length = Duration::from_millis(self.random.below(120_000));
        self.trace(|| format!("node {node}: the disk fails everything for {length:?}"));
        if let Some(node) = self.nodes.get_mut(node) {
            node.disk.chances = Chances { flush: 1, ..Chances::default() };
        }
        self.spoil_until(node, Region::dead(0, u64::MAX), length);
        self.schedule(length, Happening::FaultsEnd { node });
    }

    pub(super) fn disk_slows(&mut self) {
        let node = self.any_node();
        let most = if self.random.one_in(2) { 40_000 } else { 500 };
        let slow = self.random.below(most);
        let length = Duration::from_millis(self.random.below(60_000));
        self.trace(|| format!("node {node}: the disk takes up to {slow} ms more for {length:?}"));
        if let Some(node) = self.nodes.get_mut(node) {
            node.slow = slow;
        }
        self.schedule(length, Happening::Admin(Chore::Heal { node, trouble: Trouble::Slow }));
    }

    pub(super) fn drop_early(&mut self) {
        let node = self.any_node();
        let drops_early = 1 + self.random.below(10);
        let length = Duration::from_millis(self.random.below(5_000));
        self.trace(|| format!("node {node}: drops early, one flush in {drops_early}, for {length:?}"));
        if let Some(node) = self.nodes.get_mut(node) {
            node.drops_early = drops_early;
        }
        self.schedule(length, Happening::Admin(Chore::Heal { node, trouble: Trouble::DropsEarly }));
    }

    pub(super) fn fail_write_back(&mut self) {
        let node = self.any_node();
        self.trace(|| format!("node {node}: what is cached cannot be written back"));
        if let Some(node) = self.nodes.get_mut(node) {
            node.disk.fail_write_back(&mut self.random);
        }
    }

    pub(super) fn sleep(&mut self) {
        let (node, now) = (self.any_node(), self.now);
        let most = if self.random.one_in(2) { 60_000 } else { 2_000 };
        let length = Duration::from_millis(self.random.below(most));
        let stops = self.random.one_in(2);
        self.trace(|| format!("node {node}: sleeps for {length:?}, and its clock with it: {stops}"));
        let Some(n) = self.nodes.get_mut(node) else { return };
        if n.asleep_until > now {
            return;
        }
        // No other thing happens at that moment: what has waited comes in its order.
        n.asleep_until = now + length + Duration::from_nanos(1);
        if stops {
            n.clock.stop(now, length);
        }
    }

    fn any_node(&mut self) -> usize {
        usize::from(self.random.one_in(2))
    }

    fn spoil_for_a_while(&mut self, node: usize, from: u64, length: u64) {
        let region = match self.random.below(4) {
            0 => Region::unreadable(from, length),
            3 => Region { heals: true, ..Region::unreadable(from, length) },
            1 => Region::unwritable(from, length),
            _ => Region::dead(from, length),
        };
        let time = Duration::from_millis(self.random.below(100_000));
        self.trace(|| format!("node {node}: {region:?} for {time:?}"));
        self.spoil_until(node, region, time);
    }

    fn spoil_until(&mut self, node: usize, region: Region, time: Duration) {
        if let Some(node) = self.nodes.get_mut(node) {
            node.disk.bad.push(region);
        }
        self.schedule(time, Happening::Admin(Chore::Heal { node, trouble: Trouble::Region(region) }));
    }
}
