//! Two histories of the data at once: a node was promoted though the other one has acknowledged something alone.
//!
//! Until the nodes meet again the one that serves may show what it held when it was promoted. When they meet, either
//! both hold everything that either of them has acknowledged, or they report a split-brain, and the administrator
//! decides which history goes on.

use hast_net::Replication;

use crate::client::{Memory, WriteId};
use crate::disk::SECTOR;
use crate::node::Node;
use crate::world::World;

use core::ops::Range;
use core::time::Duration;
use std::collections::BTreeSet;

/// The two histories.
#[derive(Clone, Debug)]
pub(crate) struct Fork {
    /// The node that was promoted.
    pub(crate) new: usize,
    /// It was promoted by force: what it lacks was given up.
    pub(crate) forced: bool,
    /// What it may show: what it held then, and what has been written to it since.
    branch: Memory,
    /// What the other one holds.
    older: Memory,
    /// Sectors that its disk called stale then, or that the other one had yet to copy to it.
    stale: BTreeSet<usize>,
    /// The nodes have been connected since, and not in step: each may have something of the other's.
    mixed: bool,
}

/// The sectors of which a force has given up what the other node had.
#[derive(Debug, Default)]
struct GivenUp {
    /// What lies there only the node that was forced can have.
    wholly: Vec<usize>,
    /// Either may have it, since both have written it or one has copied it; so either's may come back.
    perhaps: Vec<usize>,
}

impl World {
    /// `node` was promoted, by force or though the other one may have acknowledged something alone.
    pub(crate) fn fork(&mut self, node: usize, forced: bool) {
        self.trace(|| format!("two histories from here on: node {node} may lack what the other one has"));
        let Some(branch) = self.as_held_by(node) else { return };
        let mut stale = self.stale_sectors(node);
        stale.extend(self.sectors_owed_to(node));
        let (older, mixed, forced) = match self.admin.fork.take() {
            // Once more: what the other one holds has not changed, and what a force has given up stays given up.
            Some(fork) if fork.new == node => {
                stale.extend(fork.stale);
                (fork.older, fork.mixed, forced || fork.forced)
            }
            // It was the last one that served, without the other one: that holds what it held when they parted.
            _ if forced && self.was_written_alone(node) => {
                let held = self.as_held_by(1 - node);
                (held.unwrap_or_else(|| self.memory.clone()), false, forced)
            }
            _ => (self.memory.clone(), false, forced),
        };
        self.admin.fork = Some(Fork { new: node, forced, branch, older, stale, mixed });
    }

    /// Whether `node` has counted something that the other one does not know of.
    fn was_written_alone(&self, node: usize) -> bool {
        let (here, there) = (self.metadata_of(node), self.metadata_of(1 - node));
        here.is_ok_and(|here| there.is_ok_and(|there| here.localcnt > there.remotecnt))
    }

    /// What the disk of `node` calls stale.
    fn stale_sectors(&self, node: usize) -> BTreeSet<usize> {
        let Some(n) = self.nodes.get(node) else { return BTreeSet::new() };
        if n.has_lost_its_area() {
            return n.data().map_or(BTreeSet::new(), |data| (0..data.len() / SECTOR).collect());
        }
        let Ok(metadata) = self.metadata_of(node) else { return BTreeSet::new() };
        let size = metadata.extentsize as usize / SECTOR;
        let extents = metadata.extension.stale.iter().flat_map(|run| run.extents());
        extents.flat_map(|extent| sectors_of(extent, size)).collect()
    }

    /// What the other one has yet to copy to `node`, which is out of date.
    fn sectors_owed_to(&self, node: usize) -> Vec<usize> {
        let marked = self.metadata_of(node).ok().filter(|metadata| metadata.extension.mark.is_some());
        let map = self.nodes.get(1 - node).and_then(Node::on_disk_map);
        let Some((metadata, map)) = marked.zip(map) else { return Vec::new() };
        let size = metadata.extentsize as usize / SECTOR;
        map.iter().flat_map(|extent| sectors_of(extent, size)).collect()
    }

    /// What may be read once the data of `node` goes on, as it holds it now.
    fn as_held_by(&self, node: usize) -> Option<Memory> {
        let mut memory = self.memory.clone();
        let node = self.nodes.get(node)?;
        let (data, begin) = (node.data().ok()?, node.layout().ok()?.localoff());
        let begin = usize::try_from(begin).ok()?;
        let id = |bytes: &[u8]| bytes.first_chunk::<8>().map_or(0, |id| u64::from_le_bytes(*id));
        memory.rebase_under_open(self.now, data.chunks(SECTOR).map(id));
        for (at, bytes) in data.chunks(SECTOR).enumerate() {
            if memory.check(at, bytes, self.now).is_err() {
                memory.may_be_torn(at, bytes);
            }
            for version in node.disk.versions(begin + at * SECTOR) {
                memory.may_fall_back(self.now, at, version);
            }
        }
        Some(memory)
    }

    /// What `node` holds goes on, whatever that is: the other one has given everything up.
    pub(crate) fn is_all_there_is(&mut self, node: usize) {
        self.memory = self.as_held_by(node).unwrap_or_else(|| self.memory.clone());
        self.expect_otherwise();
    }

    /// The nodes are connected.
    pub(crate) fn fork_is_mixed(&mut self) {
        if let Some(fork) = &mut self.admin.fork {
            fork.mixed = true;
        }
    }

    /// The nodes are in step again without a split-brain: nothing that either has acknowledged may be missing, unless one
    /// was promoted by force.
    pub(crate) fn join(&mut self) {
        let Some(fork) = self.admin.fork.take() else { return };
        self.expect_otherwise();
        self.trace(|| "one history again, without a split-brain".into());
        // A write that failed, and was read of the history that ends here, may be gone with it.
        self.memory.unacknowledged_may_be_gone();
        match self.given_up(&fork) {
            Ok(GivenUp { wholly, perhaps }) => {
                wholly.into_iter().for_each(|at| self.memory.adopt(at, &fork.branch));
                perhaps.into_iter().for_each(|at| self.memory.widen(at, &fork.branch));
            }
            Err(error) => {
                self.fail(format!("the nodes parted and met again without a split-brain: {error}"));
            }
        }
    }

    /// The sectors of which the force has given up what the other node had.
    fn given_up(&self, fork: &Fork) -> Result<GivenUp, String> {
        let node = self.nodes.get(self.serving).ok_or("nobody serves")?;
        let data = node.data()?;
        let mut given_up = GivenUp::default();
        for (at, bytes) in data.chunks(SECTOR).enumerate() {
            // Nothing but the force itself says any more what is stale there.
            let stale = fork.forced && fork.stale.contains(&at);
            let own = fork.branch.check(at, bytes, self.now).is_ok();
            match self.memory.check(at, bytes, self.now) {
                // What was written since may be lost again, and what was there then come back.
                Ok(()) if !stale => {}
                Ok(()) => given_up.perhaps.extend(own.then_some(at)),
                Err(_) if own && (stale || (fork.forced && self.memory.may_survive(at, bytes))) => {
                    given_up.wholly.push(at);
                }
                Err(error) => return Err(error),
            }
        }
        Ok(given_up)
    }

    /// The administrator has decided, after a split-brain, that the history of `survivor` goes on.
    pub(crate) fn decide_for(&mut self, survivor: usize) {
        let Some(fork) = self.admin.fork.take() else { return };
        self.expect_otherwise();
        let mixed = fork.mixed;
        let (own, other) =
            if survivor == fork.new { (fork.branch, fork.older) } else { (fork.older, fork.branch) };
        self.memory = own;
        let node = self.nodes.get_mut(survivor);
        let lacks = |node: &mut Node| {
            std::mem::take(&mut node.forgot_detachment) || node.is_out_of_date() || node.unsure
        };
        if node.is_some_and(lacks) || mixed || self.is_exchanged(survivor) {
            // What it lacks the one that gives up has.
            self.is_all_there_is(survivor);
        }
        // What is stale here the other node alone has, whatever has become of it there.
        let other = if mixed { self.as_held_by(1 - survivor).unwrap_or(other) } else { other };
        for at in self.stale_sectors(survivor) {
            self.memory.widen(at, &other);
        }
    }

    pub(crate) fn are_both_primary(&self) -> bool {
        self.nodes.iter().all(Node::is_primary)
    }

    /// What is remembered of what `node` acknowledges.
    fn memories(&mut self, node: usize) -> impl Iterator<Item = &mut Memory> {
        let own = self
            .admin
            .fork
            .as_mut()
            .map(|fork| if node == fork.new { &mut fork.branch } else { &mut fork.older });
        core::iter::once(&mut self.memory).chain(own)
    }

    pub(crate) fn write_begins(
        &mut self,
        node: usize,
        write: WriteId,
        delete: bool,
        first: usize,
        count: usize,
    ) {
        let now = self.now;
        // What an original leaves of a deleted range is anybody's guess; ours leaves zeros (D1).
        let zeroes = delete && self.mixed.is_none();
        self.memories(node).for_each(|memory| {
            if zeroes {
                memory.begin_zeroes(now, write, first, count);
            } else {
                memory.begin(now, write, delete, first, count);
            }
        });
    }

    pub(crate) fn write_ended(&mut self, node: usize, write: WriteId, acknowledged: bool) {
        let now = self.now;
        self.memories(node).for_each(|memory| memory.end(now, write, acknowledged));
    }

    pub(crate) fn was_flushed(&mut self, node: usize, invoked: Duration) {
        let both = self.are_both_primary();
        match &mut self.admin.fork {
            // Its flush says nothing about what it lacks and was given up, nor about what the other one has written
            // beside it.
            Some(fork) if fork.new == node && (fork.forced || both) => fork.branch.flushed(invoked),
            Some(fork) if both => fork.older.flushed(invoked),
            _ => self.memories(node).for_each(|memory| memory.flushed(invoked)),
        }
        self.expect_otherwise();
    }

    /// Whether `node` may give a client `bytes` for sector `at`.
    pub(crate) fn check_read(
        &self,
        node: usize,
        at: usize,
        bytes: &[u8],
        invoked: Duration,
    ) -> Result<(), String> {
        let checked = self.memory.check(at, bytes, invoked);
        let Some(fork) = &self.admin.fork else { return checked };
        let own = if node == fork.new { &fork.branch } else { &fork.older };
        checked.or_else(|_| own.check(at, bytes, invoked))
    }

    /// A client has read `bytes`, as it may. Of two primaries neither makes durable what only the other one has shown.
    pub(crate) fn was_read(&mut self, node: usize, at: usize, bytes: &[u8]) {
        let now = self.now;
        let beside = self.admin.fork.is_some() && self.are_both_primary();
        self.memories(node).skip(usize::from(beside)).for_each(|memory| memory.seen(at, bytes, now));
    }

    /// What `node` had acknowledged and not flushed may be gone.
    pub(crate) fn unflushed_may_be_lost(&mut self, node: usize) {
        if node == self.serving || self.admin.fork.is_some() {
            self.memories(node).for_each(Memory::unflushed_may_be_lost);
        }
    }

    /// The primary's worker on `node` has ended: what it has not acknowledged may be gone.
    pub(crate) fn unacknowledged_may_be_gone(&mut self, node: usize) {
        self.memories(node).for_each(Memory::unacknowledged_may_be_gone);
    }

    /// The replication mode has changed.
    pub(crate) fn mode_changed(&mut self) {
        let (now, firm) = (self.now, self.mode != Replication::Async);
        self.memory.set_firm(now, firm);
        if let Some(fork) = &mut self.admin.fork {
            fork.branch.set_firm(now, firm);
            fork.older.set_firm(now, firm);
        }
    }

    /// The same of one sector.
    pub(crate) fn may_be_lost(&mut self, node: usize, at: usize) {
        self.memories(node).for_each(|memory| memory.may_be_lost(at));
    }

    /// A loss of power has left `bytes` in sector `at` of `node`, and nobody can tell which nodes will hold that.
    pub(crate) fn remember_torn(&mut self, at: usize, bytes: &[u8]) {
        self.memory.may_be_torn(at, bytes);
        self.expect_otherwise();
        if let Some(fork) = &mut self.admin.fork {
            fork.branch.may_be_torn(at, bytes);
            fork.older.may_be_torn(at, bytes);
        }
    }
}

/// The sectors of an extent of `size` sectors.
fn sectors_of(extent: u32, size: usize) -> Range<usize> {
    extent as usize * size..(extent as usize + 1) * size
}
