//! The administrator of a storm with all faults, who knows what the nodes tell and no more; and fate.
//!
//! A node is promoted without force unless it is marked, whatever the simulation knows. Whether the old primary was
//! connected when it died is what monitoring tells: if not, two histories are expected ([`crate::branch`]).

mod chores;
mod fate;

pub(crate) use chores::Chore;

use hast_engine::Event;
use hast_format::metadata::Reading;
use hast_format::metadata::Role;
use hast_net::Replication;

use crate::branch::Fork;
use crate::clock::Clock;
use crate::disk::Disk;
use crate::faults::{Fault, FaultSet};
use crate::node::Node;
use crate::random::Random;
use crate::scenes::Scene;
use crate::world::{Happening, World};

use core::time::Duration;

/// Something that happens in a storm.
type Deed = fn(&mut World);

/// What the administrator is about to do, and knows.
#[derive(Default)]
pub(crate) struct Administrator {
    pub(crate) fork: Option<Fork>,
    /// A chore that changes roles is under way.
    busy: bool,
    /// The old primary's connection has broken during a planned end.
    cut_off: bool,
    /// This node is to lose what it has, after a split-brain.
    loser: Option<usize>,
    /// When a split-brain was settled, if the nodes have not been in step since.
    settled: Option<Duration>,
    /// The node whose copy goes on, until it is primary.
    survivor: Option<usize>,
    /// This node's disk was exchanged, and it has not been in step since: it is not promoted.
    exchanged: Option<usize>,
    /// The one that serves was in step when it was last looked at.
    in_step: bool,
    /// What a node's disk was once.
    snapshots: [Option<Disk>; 2],
    /// The primary that died had counted, though the secondary that took over lacks nothing and was not marked: a
    /// split-brain then loses nothing, and nobody should have to decide.
    counted_for_nothing: bool,
    /// The mode has changed, and may have been looser than it is.
    pub(crate) loose: bool,
}

impl Node {
    /// What is wrong with this machine from the beginning.
    pub(crate) fn beset(&mut self, faults: FaultSet, random: &mut Random) {
        if faults.has(Fault::Clocks) {
            let rate = 950 + u32::try_from(random.below(101)).unwrap_or(0);
            self.clock = Clock::new(Duration::from_secs(random.below(1_000_000)), rate);
        }
        self.disk.drops_later = faults.has(Fault::DropsLater) && random.one_in(2);
        self.disk.deletes = !(faults.has(Fault::NoDelete) && random.one_in(2));
    }
}

impl World {
    /// Something happens in a storm with all faults.
    pub(crate) fn administer(&mut self) {
        let after = Duration::from_millis(20 + self.random.below(8_000));
        self.schedule(after, Happening::Operator);
        let faults = self.plan.faults;
        let mut deeds: Vec<Deed> = vec![
            World::cut_some,
            World::cut_some,
            World::lose_network,
            World::stall,
            World::kill_one,
            World::kill_one,
            World::kill_one,
            World::disturb_one,
            World::disturb_one,
            World::switch_as_planned,
            World::switch_as_planned,
            World::primary_dies,
        ];
        let by_fault: &[(Fault, Deed)] = &[
            (Fault::BothPower, World::black_out),
            (Fault::BadMetadata, World::spoil_metadata),
            (Fault::BadMap, World::spoil_map),
            (Fault::BadData, World::spoil_data),
            (Fault::DeadDisk, World::disk_dies),
            (Fault::SlowDisk, World::disk_slows),
            (Fault::BlindFailover, World::primary_dies),
            (Fault::PlannedStop, World::switch_as_planned),
            (Fault::Rollback, World::roll_back),
            (Fault::Rollback, World::take_snapshot),
            (Fault::Clone, World::clone_disk),
            (Fault::Reload, World::reload),
            (Fault::ModeChange, World::reload),
            (Fault::Metaflush, World::reload),
            (Fault::Discard, World::give_up),
            (Fault::DropsEarly, World::drop_early),
            (Fault::WriteBack, World::fail_write_back),
            (Fault::Sleep, World::sleep),
            (Fault::ManyStale, World::spoil_many),
            (Fault::TwoPrimaries, World::promote_beside),
        ];
        for (fault, deed) in by_fault {
            if faults.has(*fault) {
                deeds.extend([*deed, *deed]);
            }
        }
        if let Some(deed) = self.random.pick(&deeds) {
            deed(self);
        }
    }

    /// No node is being restarted, no role is being changed, and there is one history.
    fn is_orderly(&self) -> bool {
        let free = !self.admin.busy && self.admin.fork.is_none() && self.admin.loser.is_none();
        free && self.nodes.iter().all(|node| node.running && node.next_role.is_none())
            && self.nodes.get(self.serving).is_some_and(Node::is_primary)
            && self.nodes.get(1 - self.serving).is_some_and(|node| node.role == Role::Secondary)
    }

    /// Whether `node` says that its data is out of date, or is known not to be what it was.
    fn is_suspect(&self, node: usize) -> bool {
        let suspect = |node: &Node| {
            let marked =
                |reading: Reading| reading.metadata.extension.mark.is_some() || reading.metadata.resuid == 0;
            node.unsure || node.read_metadata().map_or(true, marked)
        };
        self.admin.exchanged == Some(node) || self.nodes.get(node).is_none_or(suspect)
    }

    /// The mode is not one in which both nodes have stored what is complete, or was not.
    pub(crate) fn is_loose(&self) -> bool {
        self.admin.loose || self.mode != Replication::Fullsync
    }

    /// The disk of `node` is another one from now on, until the nodes are in step.
    pub(crate) fn note_exchange(&mut self, node: usize) {
        self.admin.exchanged = Some(node);
    }

    /// Whether the disk of `node` is another one, and the nodes have not been in step since.
    pub(crate) fn is_exchanged(&self, node: usize) -> bool {
        self.admin.exchanged == Some(node)
    }

    /// Whether `node` becomes primary because its copy is the one that goes on after a split-brain; asked once.
    pub(crate) fn is_survivor(&mut self, node: usize) -> bool {
        self.admin.survivor.take() == Some(node)
    }

    /// A split-brain would be no surprise.
    pub(crate) fn may_be_split(&self) -> bool {
        let admin = &self.admin;
        let apart = admin.fork.is_some() || admin.settled.is_some() || admin.loser.is_some();
        self.expect_split || apart || admin.exchanged.is_some()
    }

    /// A hook is told of something; true if that is all there is to say about it.
    pub(crate) fn admin_hears(&mut self, node: usize, event: Event) -> bool {
        if self.plan.scene != Scene::AllFaults {
            return false;
        }
        match event {
            Event::Disconnect if node == self.serving => self.admin.cut_off = true,
            Event::Connect if node == self.serving && self.plan.faults.has(Fault::EarlyFailover) => {
                self.die_soon();
            }
            Event::SplitBrain if self.admin.counted_for_nothing && self.admin.fork.is_none() => {
                self.excused = true;
                self.needless_splits += 1;
                self.fail("a split-brain after a failover that has lost nothing".into());
                return true;
            }
            Event::SplitBrain if self.may_be_split() => {
                self.settle_split();
                return true;
            }
            _ => {}
        }
        false
    }

    /// The secondary is back, and the primary dies in a moment, perhaps.
    fn die_soon(&mut self) {
        if self.random.one_in(3) {
            let most = if self.random.one_in(2) { 20_000 } else { 1_000_000 };
            let after = Duration::from_micros(self.random.below(most));
            self.schedule(after, Happening::Admin(Chore::PrimaryDies));
        }
    }

    /// A worker of `node` has ended by itself, a primary's without a complaint.
    pub(crate) fn admin_sees_end(&mut self, node: usize, well: bool) {
        let now = self.now;
        if let Some(node) = self.nodes.get_mut(node) {
            // One that took all of its `timeout` did not wait for its disk any longer.
            node.ended_well = well && now < node.told_to_end + Duration::from_secs(19);
        }
    }

    /// The node had a worker that did not end as planned: what it has completed may be in a cache.
    pub(crate) fn was_cut_short(&self, node: usize) -> bool {
        self.plan.scene == Scene::AllFaults && self.nodes.get(node).is_some_and(|node| !node.ended_well)
    }

    /// Map writes that are not flushed need not survive a loss of power: that is what `metaflush off` means.
    pub(crate) fn may_lose_power(&self, node: usize) -> bool {
        self.nodes.get(node).is_none_or(|node| !node.is_map_loose())
    }

    /// Looks whether the one that serves has just come in step.
    pub(crate) fn watch_step(&mut self, node: usize) {
        if node != self.serving || self.plan.scene != Scene::AllFaults {
            return;
        }
        let in_step = self.nodes.get(node).is_some_and(Node::is_in_step);
        if !in_step || std::mem::replace(&mut self.admin.in_step, in_step) || !self.is_connected() {
            self.admin.in_step = in_step && self.is_connected();
            return;
        }
        self.trace(|| "in step".into());
        self.nodes.iter_mut().for_each(|node| (node.lost_power, node.forgot_detachment) = (false, false));
        self.admin.exchanged = None;
        self.admin.counted_for_nothing = false;
        self.admin.settled = None;
        self.refused.clear();
        self.join();
    }
}
