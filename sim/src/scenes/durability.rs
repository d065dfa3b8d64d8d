//! Scenes after holes in the durability of an acknowledged write that were found by attacking the engine, each with
//! the rule of spec/durability.md that closes it.
//!
//! All of them begin with a pair in step in which everything is flushed, node 0 being the primary.

use core::time::Duration;

use hast_format::metadata::Role;

use crate::disk::{Chances, Region, SECTOR};
use crate::node::Node;
use crate::world::World;

impl World {
    /// S1. A sector of the primary goes bad beside an acknowledged write that no flush has covered. What
    /// the secondary sends for it cannot be written back, so the extent becomes stale; then the secondary loses
    /// power, and the write with it, unless it was flushed there first.
    pub(super) fn repair_fails(&mut self) -> Result<(), String> {
        self.flushed_pair()?;
        let extent = self.any_extent();
        self.write_at(0, self.sector_of(extent), 4);
        self.until("the write is acknowledged", World::nothing_is_open)?;
        let bad = self.sector_of(extent) + 6;
        self.spoil(0, Region::dead(self.byte_of(0, bad)?, SECTOR as u64));
        self.read_at(0, bad, 1);
        self.until("the read is answered", World::nothing_is_open)?;
        let after = Duration::from_millis(self.random.below(200));
        self.pass(after)?;
        self.kill(1, true);
        self.calm();
        self.back(1, Role::Secondary);
        self.read_everything(0)?;
        self.quiet()
    }

    /// C1 (d). Writes are acknowledged, and the secondary loses power and with it some of them. The primary
    /// answers a flush alone and dies. The secondary takes over and is written: when the other one is back,
    /// the counts must say that it holds something, too.
    pub(super) fn flushed_alone(&mut self) -> Result<(), String> {
        self.flushed_pair()?;
        self.write_some(0, 4, true)?;
        self.goes_down(1, true);
        self.until("the primary notices", |world| !world.nodes.first().is_some_and(Node::is_connected))?;
        self.flush_and_wait()?;
        let power = self.random.one_in(2);
        self.goes_down(0, power);
        if self.is_marked(1)? {
            return Ok(());
        }
        self.serving = 1;
        self.expect_split = true;
        self.back(1, Role::Primary);
        self.write_some(1, 1, true)?;
        self.back(0, Role::Secondary);
        self.split_or_quiet()
    }

    /// L9. The secondary fails a client's flush, which is answered with the primary's result. Both nodes
    /// die; the secondary, without power, comes back first. Unless it was marked by then it is promoted, and must
    /// have everything.
    pub(super) fn flush_not_marked(&mut self) -> Result<(), String> {
        self.flushed_pair()?;
        self.write_some(0, 6, true)?;
        self.fail_next_flush(1);
        self.flush_and_wait()?;
        self.goes_down(0, false);
        self.goes_down(1, true);
        self.calm();
        if self.is_marked(1)? {
            return Ok(());
        }
        self.serving = 1;
        self.expect_split = true;
        self.back(1, Role::Primary);
        self.read_everything(1)
    }

    /// R1. In a mode that completes a write before the secondary has stored it, a bad sector beside that
    /// write is read, and the secondary's disk fails the write: what it sends is old, and must neither be given to
    /// the client nor be written over the primary's good copy.
    pub(super) fn repair_owed(&mut self) -> Result<(), String> {
        self.flushed_pair()?;
        let extent = self.any_extent();
        let first = self.sector_of(extent);
        self.spoil(0, Region::unreadable(self.byte_of(0, first)?, SECTOR as u64));
        self.disturb(1, Chances { write: 1, ..Chances::default() });
        self.write_at(0, first + 1, 3);
        self.until("the write is acknowledged", World::nothing_is_open)?;
        self.read_at(0, first, 8);
        self.until("the read is answered", World::nothing_is_open)?;
        self.pass(Duration::from_millis(200))?;
        self.calm();
        self.read_everything(0)?;
        self.quiet()
    }

    /// R1. The same without a repair: a write fails on the primary, so the extent is about to be called
    /// stale, while the secondary owes another write to it, which its disk fails.
    pub(super) fn turning_owed(&mut self) -> Result<(), String> {
        self.flushed_pair()?;
        let extent = self.any_extent();
        let first = self.sector_of(extent);
        // The extent's bit is on disk.
        self.write_at(0, first + 7, 1);
        self.until("the write is acknowledged", World::nothing_is_open)?;
        self.flush_and_wait()?;
        self.spoil(0, Region::unwritable(self.byte_of(0, first)?, SECTOR as u64));
        self.write_at(0, first, 1);
        let after = Duration::from_micros(self.random.below(4_000));
        self.pass(after)?;
        self.disturb(1, Chances { write: 1, ..Chances::default() });
        self.write_at(0, first + 1, 3);
        for _ in 0..12 {
            let after = Duration::from_micros(self.random.below(800));
            self.pass(after)?;
            self.read_at(0, first + 1, 3);
        }
        self.until("all is answered", World::nothing_is_open)?;
        self.calm();
        self.read_everything(0)?;
        self.quiet()
    }

    /// C4. The secondary's disk fails writes that are complete already while the primary ends as planned.
    /// The operator sees that it has ended well: the secondary is marked, or has everything.
    pub(super) fn drain_fails(&mut self) -> Result<(), String> {
        self.flushed_pair()?;
        for _ in 0..6 {
            self.write_one(0, true);
        }
        // The data area alone: the mark can be written.
        self.spoil(1, Region::unwritable(self.byte_of(1, 0)?, u64::MAX));
        let after = Duration::from_micros(self.random.below(3_000));
        self.pass(after)?;
        self.stop_role(0)?;
        self.set_running(0, false);
        self.calm();
        if self.is_marked(1)? {
            return Ok(());
        }
        self.serving = 1;
        self.expect_split = true;
        self.set_role(1, Role::Primary);
        self.until_primary(1)?;
        self.read_everything(1)?;
        self.back(0, Role::Secondary);
        self.quiet()
    }

    /// B1. The secondary's daemon is killed with writes that are not flushed, and the system tells the next
    /// worker's first flush, and no other, that it could not write them. The primary dies: unless the secondary is
    /// marked it is promoted, and must have everything.
    pub(super) fn start_flush_fails(&mut self) -> Result<(), String> {
        self.flushed_pair()?;
        self.write_some(0, 6, true)?;
        self.cut();
        self.disturb(1, Chances { flush: 1, ..Chances::default() });
        self.goes_down(1, false);
        let connected = |world: &World| world.nodes.first().is_some_and(Node::is_connected);
        self.until("the primary notices", |world| !connected(world))?;
        self.back(1, Role::Secondary);
        self.until("a worker cannot flush", |world| world.exits_with(66) > 0 || connected(world))?;
        self.disturb(1, Chances::default());
        self.until("the nodes are connected", World::is_connected)?;
        self.goes_down(0, false);
        self.stop_role(1)?;
        if self.is_marked(1)? {
            return Ok(());
        }
        self.serving = 1;
        self.set_role(1, Role::Primary);
        self.read_everything(1)?;
        self.back(0, Role::Secondary);
        self.quiet()
    }

    /// S1. The primary can write neither its metadata nor a sector, and asks the secondary to remember the
    /// stale extent. Meanwhile a write to another extent is acknowledged, and the next one fails on the secondary,
    /// which then loses power (`cut`: it loses power while it has that one).
    pub(super) fn unrecordable(&mut self, cut: bool) -> Result<(), String> {
        self.flushed_pair()?;
        let (failing, other) = (self.sector_of(0), self.sector_of(1));
        // The bits of both extents are on disk.
        self.write_at(0, failing, 1);
        self.write_at(0, other, 1);
        self.until("the writes are acknowledged", World::nothing_is_open)?;
        self.flush_and_wait()?;
        self.spoil(0, Region::unwritable(0, self.map_begin(0)?));
        self.spoil(0, Region::unwritable(self.byte_of(0, failing)?, SECTOR as u64));
        self.write_at(0, failing, 1);
        let after = Duration::from_micros(self.random.below(12_000));
        self.pass(after)?;
        self.write_at(0, other + 2, 2);
        self.until("both are acknowledged", World::nothing_is_open)?;
        if cut {
            self.write_at(0, other + 5, 1);
            let after = Duration::from_micros(self.random.below(4_000));
            self.pass(after)?;
        } else {
            self.disturb(1, Chances { write: 1, ..Chances::default() });
            self.write_at(0, other + 5, 1);
            self.until("the last write is answered", World::nothing_is_open)?;
        }
        self.kill(1, true);
        self.calm();
        self.back(1, Role::Secondary);
        self.read_everything(0)?;
        self.quiet()
    }

    /// G1. The secondary's disk is what it was a while ago, metadata and all (a snapshot of the machine, or
    /// a backup, was restored): it is not in step, whatever the counts say.
    pub(super) fn rollback(&mut self) -> Result<(), String> {
        self.pair()?;
        let former = self.nodes.get(1).ok_or("no such node")?.disk.clone();
        // Of what happens on one connection the generations say nothing.
        self.cut();
        self.pass(Duration::from_secs(5))?;
        self.quiet()?;
        self.write_some(0, 40, true)?;
        self.quiet()?;
        self.pass(Duration::from_secs(5))?;
        // Until `keepdirty` others are: no bit of what was written before is left.
        for extent in 0..8 {
            self.write_at(0, self.sector_of(extent), 1);
            self.until("the write is acknowledged", World::nothing_is_open)?;
        }
        self.pass(Duration::from_secs(5))?;
        self.stop_role(1)?;
        if let Some(node) = self.nodes.get_mut(1) {
            node.disk = former;
            node.disk.touch_all();
        }
        self.note_exchange(1);
        self.set_role(1, Role::Secondary);
        self.quiet()
    }

    /// G1, counted. Node 1 is set back to an earlier state while it serves alone, and written until its count is one that
    /// the other node remembers: what it was written must not be overwritten.
    pub(super) fn rollback_written(&mut self) -> Result<(), String> {
        self.pair()?;
        let former = self.nodes.get(1).ok_or("no such node")?.disk.clone();
        self.take_over(0, 1)?;
        self.back(0, Role::Secondary);
        self.quiet()?;
        self.goes_down(0, false);
        self.kill(1, false);
        if let Some(node) = self.nodes.get_mut(1) {
            node.disk = former;
            node.disk.touch_all();
        }
        self.note_exchange(1);
        self.expect_split = true;
        self.set_role(1, Role::Primary);
        self.write_some(1, 6, true)?;
        if self.random.one_in(2) {
            self.back(0, Role::Secondary);
        } else {
            self.stop_role(1)?;
            self.set_role(1, Role::Secondary);
            self.serving = 0;
            self.back(0, Role::Primary);
        }
        self.split_or_quiet()
    }

    /// Rule C1 (b). The secondary fails a client's flush; both nodes die. It is made primary by force, and written:
    /// when the other one is back the counts must say that this one holds something, too.
    pub(super) fn flush_fails_counted(&mut self) -> Result<(), String> {
        self.flushed_pair()?;
        self.write_some(0, 6, true)?;
        self.fail_next_flush(1);
        self.flush_and_wait()?;
        self.goes_down(0, false);
        self.kill(1, true);
        self.serving = 1;
        self.expect_split = true;
        self.promote_by_force(1)?;
        self.write_some(1, 1, true)?;
        self.back(0, Role::Secondary);
        self.split_or_quiet()
    }

    /// A5. The primary's disk answers EIO to everything. Writes, to marked extents and others, flushes and reads go on
    /// with the secondary, through lost connections and a new worker; then the disk is well again.
    pub(super) fn dead_disk(&mut self) -> Result<(), String> {
        self.flushed_pair()?;
        self.write_some(0, 4, true)?;
        self.spoil(0, Region::dead(0, u64::MAX));
        for _ in 0..5 {
            let failed = self.failed_requests();
            self.write_some(0, 6, true)?;
            self.flush_and_wait()?;
            self.read_everything(0)?;
            if self.failed_requests() != failed {
                return Err("A5: a request failed although the secondary is well".into());
            }
            match self.random.below(4) {
                0 => self.cut(),
                1 if self.nodes.first().is_some_and(|node| node.detached.is_some()) => {
                    let detached = self.nodes.first().and_then(|node| node.detached.clone());
                    self.kill(0, false);
                    if let Some(node) = self.nodes.first_mut() {
                        node.detached = detached; // the supervisor lives
                    }
                    self.back(0, Role::Primary);
                }
                2 => {
                    self.kill(1, true);
                    self.back(1, Role::Secondary);
                }
                _ => {}
            }
            let connected = |world: &World| world.nodes.first().is_some_and(Node::is_connected);
            self.until("the nodes are connected", connected)?;
        }
        self.quiet()
    }

    /// A pair in step that has flushed everything.
    pub(super) fn flushed_pair(&mut self) -> Result<(), String> {
        self.pair()?;
        self.flush_and_wait()
    }

    pub(super) fn flush_and_wait(&mut self) -> Result<(), String> {
        self.flush_one(self.serving);
        self.until("the flush is answered", World::nothing_is_open)
    }

    /// The split-brain that the counts must tell of is noticed, or there is none to tell of.
    pub(super) fn split_or_quiet(&mut self) -> Result<(), String> {
        let end = self.now + Duration::from_secs(60);
        let settled = |world: &World| world.events_of("split-brain") >= 2 || world.is_quiet();
        if self.advance_until(end, settled)? && self.events_of("split-brain") > 0 {
            return Ok(());
        }
        self.quiet()
    }

    fn is_marked(&self, node: usize) -> Result<bool, String> {
        let unsure = self.nodes.get(node).is_some_and(|node| node.unsure);
        Ok(unsure || self.metadata_of(node)?.extension.mark.is_some())
    }

    pub(super) fn any_extent(&mut self) -> usize {
        usize::try_from(self.random.below(24)).unwrap_or(0)
    }

    /// The first sector of an extent, in the data area.
    pub(super) fn sector_of(&self, extent: usize) -> usize {
        let layout = self.nodes.first().and_then(|node| node.layout().ok());
        extent * layout.map_or(0, |layout| layout.extentsize() as usize) / SECTOR
    }

    /// Where a sector of the data area lies on the disk of `node`, in bytes.
    pub(super) fn byte_of(&self, node: usize, sector: usize) -> Result<u64, String> {
        let layout = self.nodes.get(node).ok_or("no such node")?.layout()?;
        Ok(layout.localoff() + (sector * SECTOR) as u64)
    }

    /// Where the map begins on the disk of `node`, in bytes: below it lies the metadata.
    fn map_begin(&self, node: usize) -> Result<u64, String> {
        Ok(self.nodes.get(node).ok_or("no such node")?.layout()?.map_offset())
    }

    pub(super) fn spoil(&mut self, node: usize, region: Region) {
        self.trace(|| format!("node {node}: {region:?}"));
        if let Some(node) = self.nodes.get_mut(node) {
            node.disk.bad.push(region);
        }
    }

    fn disturb(&mut self, node: usize, chances: Chances) {
        self.trace(|| format!("node {node}: {chances:?}"));
        if let Some(node) = self.nodes.get_mut(node) {
            node.disk.chances = chances;
        }
    }

    fn fail_next_flush(&mut self, node: usize) {
        self.trace(|| format!("node {node}: the next flush fails"));
        if let Some(node) = self.nodes.get_mut(node) {
            node.disk.next_flush_fails = true;
        }
    }
}
