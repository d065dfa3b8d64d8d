//! What must be true at every step, not only when all is quiet: what a loss of power of either node, at this very moment,
//! may leave.
//!
//! - **M1**: the bit of an extent is on disk before a write to it is asked of the local disk or of the secondary.
//! - **What differs is known**: an extent of which the two disks hold different bytes, or would after a loss of power, has
//!   its bit in one of the maps on disk, or is called stale there.
//! - **Nobody who is promoted lacks what was flushed**: a secondary lacks something that a client has flushed only if it is
//!   marked, or if the primary is not connected and its disk says that it was written alone (C1). A primary lacks it only
//!   where its disk says so.
//!
//! Two histories ([`crate::branch`]), disks that were exchanged and map writes that are not flushed say nothing of that.

use std::collections::BTreeSet;

use hast_engine::DiskOp;
use hast_format::layout::Layout;
use hast_format::metadata::Metadata;
use hast_net::message::{Command, Message};

use crate::client::Memory;
use crate::disk::SECTOR;
use crate::node::{Node, Worker};
use crate::scenes::Scene;
use crate::world::World;

/// What is known of the two disks, kept up to date sector by sector.
#[derive(Debug)]
pub(crate) struct Oracle {
    /// Where the data area begins, in bytes.
    data: usize,
    /// Sectors of the data area.
    sectors: usize,
    /// Sectors of an extent.
    extent: usize,
    /// Sectors of which some version on one node is none on the other.
    differ: BTreeSet<usize>,
    /// By node: sectors of which some version is older than what was flushed.
    lack: [BTreeSet<usize>; 2],
    /// By node: what its disk says.
    told: [Option<Told>; 2],
    /// All has to be looked at again.
    stale: bool,
    /// Something has changed that the checks depend on.
    changed: bool,
    /// The one that serves was connected when it was last seen alive.
    connected: bool,
}

impl Oracle {
    pub(crate) fn new(node: &Node) -> Result<Oracle, String> {
        let layout = node.layout()?;
        let size = |bytes: u64| usize::try_from(bytes).map_err(|error| error.to_string());
        Ok(Oracle {
            data: size(layout.localoff())?,
            sectors: size(layout.datasize())? / SECTOR,
            extent: layout.extentsize() as usize / SECTOR,
            differ: BTreeSet::new(),
            lack: [BTreeSet::new(), BTreeSet::new()],
            told: [const { None }; 2],
            stale: true,
            changed: false,
            connected: false,
        })
    }

    /// Takes in what has changed on the disks.
    fn update(&mut self, nodes: &mut [Node; 2], memory: &Memory) {
        let mut touched = BTreeSet::new();
        for (node, told) in nodes.iter_mut().zip(&mut self.told) {
            let mut now = node.disk.take_touched();
            if self.stale || now.first().is_some_and(|at| *at < self.data) {
                *told = Told::of(node);
            }
            touched.append(&mut now);
        }
        let [a, b] = nodes.each_ref().map(|node| &node.disk);
        self.changed |= !touched.is_empty() || self.stale;
        let sectors: Vec<usize> = if std::mem::take(&mut self.stale) {
            (0..self.sectors).collect()
        } else {
            touched.into_iter().filter_map(|at| at.checked_sub(self.data)).map(|at| at / SECTOR).collect()
        };
        for sector in sectors.into_iter().filter(|sector| *sector < self.sectors) {
            let at = self.data + sector * SECTOR;
            let mut versions = a.versions(at).chain(b.versions(at));
            let first = versions.next();
            set(&mut self.differ, sector, versions.any(|version| Some(version) != first));
            for (disk, lack) in [a, b].into_iter().zip(&mut self.lack) {
                let lost = disk.versions(at).any(|version| !memory.may_survive(sector, version));
                set(lack, sector, lost);
            }
        }
    }

    fn extents(&self, sectors: &BTreeSet<usize>) -> BTreeSet<usize> {
        sectors.iter().map(|sector| sector / self.extent).collect()
    }
}

fn set(set: &mut BTreeSet<usize>, sector: usize, present: bool) {
    if present {
        set.insert(sector);
    } else {
        set.remove(&sector);
    }
}

/// Whether the map on disk has the bit of an extent, whatever a loss of power leaves of it.
fn has_bit(node: &Node, layout: &Layout, extent: usize) -> bool {
    let begin = usize::try_from(layout.map_offset()).unwrap_or(0);
    let (byte, bit) = (begin + extent / 8, extent % 8);
    let (sector, within) = (byte / SECTOR * SECTOR, byte % SECTOR);
    let mut versions = node.disk.versions(sector);
    versions.all(|version| version.get(within).is_some_and(|byte| byte >> bit & 1 == 1))
}

/// What a node's disk says, whatever a loss of power leaves of it.
#[derive(Debug)]
struct Told {
    /// With the metadata as they are, and as they are on the medium.
    metadata: [Metadata; 2],
    map: BTreeSet<usize>,
}

impl Told {
    fn of(node: &Node) -> Option<Told> {
        let layout = node.layout().ok()?;
        let read = |contents: &[u8]| Some(Metadata::read(contents).ok()?.metadata);
        let metadata = [read(node.disk.contents())?, read(node.disk.medium())?];
        let extents = usize::try_from(layout.nextents()).ok()?;
        let map = (0..extents).filter(|extent| has_bit(node, &layout, *extent));
        Some(Told { metadata, map: map.collect() })
    }

    fn all(&self, holds: impl Fn(&Metadata) -> bool) -> bool {
        self.metadata.iter().all(holds)
    }

    fn any(&self, holds: impl Fn(&Metadata) -> bool) -> bool {
        self.metadata.iter().any(holds)
    }

    fn is_stale(&self, extent: usize) -> bool {
        self.all(|metadata| names_stale(metadata, extent))
    }

    /// The next handshake copies everything, or refuses.
    fn owes_everything(&self) -> bool {
        self.any(|metadata| {
            let extension = &metadata.extension;
            metadata.resuid == 0 || extension.given_up != 0 || extension.full_sync_owed
        })
    }
}

/// Whether metadata call an extent stale.
fn names_stale(metadata: &Metadata, extent: usize) -> bool {
    let mut runs = metadata.extension.stale.iter();
    runs.any(|run| (run.first as usize..(run.first + run.count) as usize).contains(&extent))
}

impl World {
    /// All that the oracle knows is to be looked at again: what clients may expect has changed.
    pub(crate) fn expect_otherwise(&mut self) {
        if let Some(oracle) = &mut self.oracle {
            oracle.stale = true;
        }
    }

    /// A connection has come or gone.
    pub(crate) fn look_again(&mut self) {
        if let Some(oracle) = &mut self.oracle {
            oracle.changed = true;
        }
    }

    /// Looks at both disks after a step.
    pub(crate) fn look(&mut self) {
        let Some(mut oracle) = self.oracle.take() else { return };
        let serving = self.serving;
        if let Some(node) = self.nodes.get(serving).filter(|node| node.is_primary()) {
            oracle.connected = node.is_connected();
        }
        oracle.update(&mut self.nodes, &self.memory);
        if std::mem::take(&mut oracle.changed)
            && !self.may_be_split()
            && let Err(error) = self.check_step(&oracle)
        {
            self.fail(error);
        }
        self.oracle = Some(oracle);
    }

    fn check_step(&self, oracle: &Oracle) -> Result<(), String> {
        if self.nodes.iter().any(Node::is_map_loose) {
            return Ok(());
        }
        if oracle.differ.is_empty() && oracle.lack.iter().all(BTreeSet::is_empty) {
            return Ok(());
        }
        let [Some(a), Some(b)] = &oracle.told else { return Ok(()) };
        let same = a.all(|one| b.all(|other| one.resuid == other.resuid));
        if !same || a.owes_everything() || b.owes_everything() {
            return Ok(());
        }
        let known = |extent: &usize| {
            a.map.contains(extent) || b.map.contains(extent) || a.is_stale(*extent) || b.is_stale(*extent)
        };
        let unknown: Vec<usize> =
            oracle.extents(&oracle.differ).into_iter().filter(|extent| !known(extent)).collect();
        if !unknown.is_empty() {
            return Err(format!("extents {unknown:?} may differ, and no map on disk says so"));
        }
        let (primary, secondary) = if self.serving == 0 { (a, b) } else { (b, a) };
        self.check_primary(oracle, primary, secondary)?;
        self.check_secondary(oracle, primary, secondary)
    }

    /// The one that serves lacks what was flushed only where it says so.
    fn check_primary(&self, oracle: &Oracle, primary: &Told, secondary: &Told) -> Result<(), String> {
        let Some(lack) = oracle.lack.get(self.serving) else { return Ok(()) };
        // Whichever save is found: one may name the extent, and the next one call all of the map stale.
        let says = |metadata: &Metadata, extent: usize| {
            let behind = metadata.extension.target || metadata.extension.mark.is_some();
            names_stale(metadata, extent) || (behind && primary.map.contains(&extent))
        };
        let said = |extent: &usize| {
            secondary.map.contains(extent) || primary.all(|metadata| says(metadata, *extent))
        };
        let lost: Vec<usize> = oracle.extents(lack).into_iter().filter(|extent| !said(extent)).collect();
        if lost.is_empty() {
            return Ok(());
        }
        Err(format!(
            "node {} serves, lacks what was flushed in extents {lost:?}, and its disk does not say so",
            self.serving
        ))
    }

    /// The other one lacks it only if nobody promotes it, or would notice.
    fn check_secondary(&self, oracle: &Oracle, primary: &Told, secondary: &Told) -> Result<(), String> {
        let node = 1 - self.serving;
        let Some(lack) = oracle.lack.get(node).filter(|lack| !lack.is_empty()) else { return Ok(()) };
        let unsure = self.nodes.get(node).is_some_and(|node| node.unsure);
        // Nodes that know no marks warn at best.
        if unsure || self.plan.scene.is_plain() {
            return Ok(());
        }
        let counted =
            |metadata: &Metadata| primary.all(|one| one.localcnt > metadata.remotecnt) && !oracle.connected;
        let told = |metadata: &Metadata| {
            metadata.extension.mark.is_some()
                || counted(metadata)
                || (self.plan.scene != Scene::AllFaults && !oracle.connected)
        };
        // Whichever save is found. What its disk calls stale it would not serve.
        let said =
            |extent: &usize| secondary.all(|metadata| told(metadata) || names_stale(metadata, *extent));
        let extents: BTreeSet<usize> =
            oracle.extents(lack).into_iter().filter(|extent| !said(extent)).collect();
        if extents.is_empty() {
            return Ok(());
        }
        let counted = secondary.all(counted);
        Err(format!(
            "node {node} lacks what was flushed in extents {extents:?} and is not marked; the primary was connected: {}, \
             has counted: {counted}",
            oracle.connected
        ))
    }

    /// M1, as the engine of `node` asks for a disk operation.
    pub(crate) fn check_issued(&self, node: usize, op: &DiskOp) -> Result<(), String> {
        let (offset, length) = match op {
            DiskOp::Write { offset, data } => (*offset, data.len() as u64),
            DiskOp::Delete { offset, length } => (*offset, *length),
            DiskOp::Read { .. } | DiskOp::Flush => return Ok(()),
        };
        let Some(oracle) = &self.oracle else { return Ok(()) };
        let Some(within) = offset.checked_sub(oracle.data as u64) else { return Ok(()) };
        // What one of the nodes holds already is copied, or written again: that makes no difference between them.
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        let end = start.saturating_add(usize::try_from(length).unwrap_or(usize::MAX));
        let holds = |node: &Node| {
            let there = node.disk.contents().get(start..end);
            there.is_some_and(|there| match op {
                DiskOp::Write { data, .. } => there == &data[..],
                // Zeros that are copied are freed instead.
                _ => there.iter().all(|byte| *byte == 0),
            })
        };
        if self.nodes.iter().any(holds) {
            return Ok(());
        }
        self.check_bits(node, within, length)
    }

    /// M1, as the engine of `node` sends something.
    pub(crate) fn check_sent(&self, node: usize, message: &Message) -> Result<(), String> {
        match message {
            Message::Request(request) if matches!(request.command, Command::Write | Command::Delete) => {
                self.check_bits(node, request.offset, request.length)
            }
            _ => Ok(()),
        }
    }

    fn check_bits(&self, node: usize, offset: u64, length: u64) -> Result<(), String> {
        let Some(n) = self.nodes.get(node).filter(|node| matches!(node.worker, Worker::Primary(_))) else {
            return Ok(());
        };
        if n.is_map_loose() {
            return Ok(());
        }
        let Ok(layout) = n.layout() else { return Ok(()) };
        let mut missing: Vec<u32> = layout
            .extents_of(offset, length)
            .filter(|extent| !has_bit(n, &layout, *extent as usize))
            .collect();
        if missing.is_empty() {
            return Ok(());
        }
        // Without our disk the secondary's map stands for it (A5).
        if n.detached.is_some()
            && let Some(other) = self.nodes.get(1 - node)
        {
            missing.retain(|extent| !has_bit(other, &layout, *extent as usize));
        }
        if let Some(told) = Told::of(n) {
            missing.retain(|extent| !told.is_stale(*extent as usize));
        }
        if missing.is_empty() {
            return Ok(());
        }
        Err(format!("M1: node {node} asks for a write to extents {missing:?}, whose bits are not on disk"))
    }
}
