//! Scenes about what a fault may cost: nothing is lost in them, but a request would fail or wait without need, or the nodes
//! copy or write what they need not.

use core::time::Duration;

use hast_format::metadata::Role;

use crate::disk::{Region, SECTOR};
use crate::node::Node;
use crate::world::World;

/// The resource's `timeout`, and what an answer may take beyond it.
const TIMEOUT: Duration = Duration::from_secs(20);
const SLACK: Duration = Duration::from_secs(2);

impl World {
    /// A1. A client flushes without end while the secondary comes back, so that a flush which began before the connection
    /// ends after it. That says nothing about the secondary: the nodes are in step without the pause that follows a
    /// failure.
    pub(super) fn flushed_in_handshake(&mut self) -> Result<(), String> {
        self.flushed_pair()?;
        self.part()?;
        self.write_some(0, 2, true)?;
        self.network = true;
        let connected = |world: &World| world.nodes.first().is_some_and(Node::is_connected);
        let limit = self.now + Duration::from_secs(60);
        while !connected(self) {
            if self.now >= limit {
                return Err("the secondary is not back within 60s".into());
            }
            self.flush_one(0);
            let after = self.now + Duration::from_micros(200 + self.random.below(600));
            self.advance_until(after, connected)?;
        }
        // Housekeeping flushes within a second; the pause after a failure is ten.
        let end = self.now + Duration::from_secs(8);
        if !self.advance_until(end, |world| world.nodes.first().is_some_and(Node::is_in_step))? {
            return Err("A1: the nodes are not in step, though no flush of the secondary has failed".into());
        }
        self.quiet()
    }

    /// A4. A sector of the primary cannot be written, so its extent is stale, and the metadata say so. Further writes to
    /// it cost no save.
    pub(super) fn stale_rewritten(&mut self) -> Result<(), String> {
        self.flushed_pair()?;
        let extent = self.any_extent();
        let first = self.sector_of(extent);
        self.spoil(0, Region::unwritable(self.byte_of(0, first)?, SECTOR as u64));
        self.write_at(0, first, 1);
        self.until("the write is acknowledged", World::nothing_is_open)?;
        // What else the first write has to say is said.
        self.pass(Duration::from_secs(2))?;
        let before = self.metadata_of(0)?.extension.generation;
        for _ in 0..5 {
            self.write_at(0, first, 1);
            self.until("the write is acknowledged", World::nothing_is_open)?;
        }
        if self.metadata_of(0)?.extension.generation != before {
            return Err("A4: writes to what is known to be stale have saved the metadata".into());
        }
        self.calm();
        self.quiet()
    }

    /// A6. The primary is out of date. Each time the secondary is there again the connection breaks at once. A write
    /// that needs the secondary fails when `timeout` is over, not so long after each attempt.
    pub(super) fn flapping(&mut self) -> Result<(), String> {
        self.pair()?;
        self.take_over(0, 1)?;
        self.stop_role(1)?;
        self.serving = 0;
        self.back(0, Role::Primary);
        self.set_role(1, Role::Secondary);
        let connected = |world: &World| world.nodes.first().is_some_and(Node::is_connected);
        self.until("the primary is connected", connected)?;
        self.cut();
        self.until("the primary notices", |world| !connected(world))?;
        self.write_at(0, 0, 1);
        let end = self.now + TIMEOUT + SLACK;
        while !self.nothing_is_open() && self.now < end {
            self.advance_until(end, |world| world.nothing_is_open() || connected(world))?;
            if connected(self) {
                self.cut();
                self.advance_until(end, |world| !connected(world))?;
            }
        }
        if !self.nothing_is_open() {
            return Err(
                "A6: a request waits for longer than `timeout` for a secondary that comes and goes".into()
            );
        }
        self.quiet()
    }

    /// D1. One of the nodes cannot delete: a delete is refused, and neither disk is touched, so the nodes stay in step.
    pub(super) fn delete_refused(&mut self) -> Result<(), String> {
        let node = usize::from(self.random.one_in(2));
        if let Some(node) = self.nodes.get_mut(node) {
            node.disk.deletes = false;
        }
        self.flushed_pair()?;
        let extent = self.any_extent();
        let (first, failed) = (self.sector_of(extent), self.failed_requests());
        self.delete_at(0, first, 8);
        self.until("the delete is answered", World::nothing_is_open)?;
        if self.failed_requests() == failed {
            return Err("D1: a delete is complete that one node cannot carry out".into());
        }
        if !self.nodes.first().is_some_and(Node::is_in_step) {
            return Err("D1: a delete that one node cannot carry out has made the copies differ".into());
        }
        self.quiet()
    }
}
