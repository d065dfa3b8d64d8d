//! What a node knows about itself beyond what the original can say. On the control socket only for those who
//! ask for it (`verbose`), so that the answer to the original's hastctl stays what it is.

use super::{Numbered, Pairs};

/// The condition of a resource on this node. Everything at its default: nothing is wrong, nothing is known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// Since when this node's data is known to be out of date, in seconds since 1970; None if it is not.
    pub inconsistent_since: Option<u64>,
    /// The node that was bringing it up to date, as configured; empty unless it is out of date.
    pub inconsistent_by: String,
    /// This node is primary and the other one has the newer data.
    pub target: bool,
    /// Bytes of the extents that are wrong here and right on the other node.
    pub stale_bytes: u64,
    /// The local disk is not used any more.
    pub detached: bool,
    /// An original primary may have written without this node.
    pub possibly_behind: bool,
    /// Both nodes have written alone.
    pub split_brain: bool,
    /// Whether the other node runs the original; None if it was not there yet.
    pub peer_is_original: Option<bool>,
    /// Extents are being copied.
    pub synchronising: bool,
    /// Bytes of the extents that are still to be copied.
    pub to_synchronise_bytes: u64,
    /// Processes that are connected to the device over NBD; 0 for one that the system does not name.
    pub clients: Vec<u32>,
    /// How far the copies are apart, if both nodes have written alone and have told each other.
    pub divergence: Option<Divergence>,
}

/// How far the copies of two nodes are apart that have both written alone, in extents.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Divergence {
    /// Bytes per extent.
    pub extentsize: u32,
    /// Extents that this node's map has.
    pub here: u64,
    /// Extents that the other node's map has.
    pub there: u64,
    /// Extents that both maps have.
    pub both: u64,
    /// The maps are known to hold all that was changed since the nodes parted.
    pub exact: bool,
}

impl Divergence {
    /// Extents that either map has: what is copied if one node gives up its changes.
    #[must_use]
    pub fn either(&self) -> u64 {
        self.here.saturating_add(self.there).saturating_sub(self.both)
    }

    /// The same, as the other node sees it.
    #[must_use]
    pub fn seen_from_there(self) -> Divergence {
        Divergence { here: self.there, there: self.here, ..self }
    }
}

impl Facts {
    pub(super) fn encode(&self, list: &mut Numbered<'_>) {
        if let Some(since) = self.inconsistent_since {
            list.u64("x_inconsistent_since", since);
            list.str("x_inconsistent_by", &self.inconsistent_by);
        }
        list.bool(TARGET, self.target);
        list.u64("x_stale_bytes", self.stale_bytes);
        list.bool("x_detached", self.detached);
        list.bool("x_possibly_behind", self.possibly_behind);
        list.bool("x_split_brain", self.split_brain);
        if let Some(original) = self.peer_is_original {
            list.bool("x_peer_is_original", original);
        }
        list.bool("x_synchronising", self.synchronising);
        list.u64("x_to_synchronise_bytes", self.to_synchronise_bytes);
        if !self.clients.is_empty() {
            let pids: Vec<String> = self.clients.iter().map(u32::to_string).collect();
            list.str("x_clients", &pids.join(" "));
        }
        if let Some(divergence) = &self.divergence {
            list.u32(DIVERGENCE, divergence.extentsize);
            list.u64("x_changed_here", divergence.here);
            list.u64("x_changed_there", divergence.there);
            list.u64("x_changed_both", divergence.both);
            list.bool("x_changed_exact", divergence.exact);
        }
    }

    /// None from a daemon that does not tell.
    pub(super) fn decode(index: usize, pairs: &Pairs<'_>) -> Option<Facts> {
        let flag = |key| pairs.bool(key, index).unwrap_or_default();
        let number = |key| pairs.u64(key, index).unwrap_or_default();
        let target = pairs.bool(TARGET, index)?;
        let inconsistent_since = pairs.u64("x_inconsistent_since", index);
        let by = inconsistent_since.and_then(|_| pairs.text("x_inconsistent_by", index));
        Some(Facts {
            inconsistent_since,
            inconsistent_by: by.unwrap_or_default(),
            target,
            stale_bytes: number("x_stale_bytes"),
            detached: flag("x_detached"),
            possibly_behind: flag("x_possibly_behind"),
            split_brain: flag("x_split_brain"),
            peer_is_original: pairs.bool("x_peer_is_original", index),
            synchronising: flag("x_synchronising"),
            to_synchronise_bytes: number("x_to_synchronise_bytes"),
            clients: pairs
                .text("x_clients", index)
                .map_or_else(Vec::new, |pids| pids.split(' ').filter_map(|pid| pid.parse().ok()).collect()),
            divergence: pairs.u32(DIVERGENCE, index).map(|extentsize| Divergence {
                extentsize,
                here: number("x_changed_here"),
                there: number("x_changed_there"),
                both: number("x_changed_both"),
                exact: flag("x_changed_exact"),
            }),
        })
    }
}

/// Whoever tells how far the copies are apart tells this: bytes per extent.
const DIVERGENCE: &str = "x_changed_extentsize";
/// Whoever tells facts tells this one.
const TARGET: &str = "x_target";
