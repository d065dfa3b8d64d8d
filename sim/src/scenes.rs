//! Scenes: histories that chance alone would seldom bring about, each after a way to lose data that
//! spec/defects.md describes.

mod cost;
mod durability;

use core::time::Duration;

use hast_format::metadata::Role;
use hast_net::Replication;

use crate::disk::Chances;
use crate::node::{Node, Worker};
use crate::world::World;

/// How long anything may take in a scene.
const LIMIT: Duration = Duration::from_secs(400);

/// What is played.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scene {
    /// Whatever chance brings, several times, each followed by calm.
    Storm,
    /// The same with everything else that a [`Plan`](crate::Plan) says may go wrong.
    AllFaults,
    /// The same on providers larger than what they were created for, with small extents (L12).
    Roomy,
    /// Both nodes are written apart; it is noticed, and repaired as the manual says.
    SplitBrain,
    /// The second failover of the same node (L5).
    SecondFailover,
    /// The primary dies while it brings the secondary up to date (L6).
    HalfSynced,
    /// A fresh secondary loses its primary in the middle of the first contact (L19).
    FirstContact,
    /// A node was written before any handshake, and is to be the secondary of another (L20).
    WrittenAlone,
    /// A primary is out of date, restarts, and is read before the secondary is back (L18).
    OutOfDate,
    /// A sector of the metadata goes bad (L8).
    BadSector,
    /// Flushes fail on one node, of the map too, and then it loses power (L9, L11).
    FlushFails,
    /// The primary's disk fails, and then the secondary, which has what that lacks, loses power (Power).
    PowerFails,
    /// A secondary that knows no marks fails writes; then the primary dies (C1 b).
    PeerFails,
    /// Nodes that know no marks are said to be in step; then the secondary loses power (C2).
    JustInStep,
    /// A planned change of roles during which the link breaks (C4).
    Planned,
    /// An outdated primary is written while it shakes hands with the newer copy.
    WrittenInHandshake,
    /// Both nodes are written apart, with deaths and losses of power; one gives its changes up, and only what has
    /// changed since they parted is copied.
    Discard,
    /// A node whose disk was replaced by a spare gets the old one back and gives its changes up (P1).
    Spare,
    /// Storms over a pair of which node 1 runs the original, node 0, ours, being the primary first.
    MixedOurPrimary,
    /// Storms over a pair of which node 0, the primary first, runs the original.
    MixedOurSecondary,
    /// Our node in such a pair gives its changes up, after both were written apart, or after a spare.
    MixedDiscard,
    /// What the secondary has sent for a bad sector cannot be written back, and then it loses power (S1).
    RepairFails,
    /// The primary answers a flush alone and dies; the secondary, which has lost power, takes over (C1 d).
    FlushedAlone,
    /// The secondary fails a client's flush; both nodes die, and it loses power (L9).
    FlushNotMarked,
    /// A read of a bad sector goes to the secondary, which owes an acknowledged write beside it (R1).
    RepairOwed,
    /// A read of an extent that is about to be stale goes to the secondary, which owes a write to it (R1).
    TurningOwed,
    /// The secondary fails acknowledged writes while the primary ends as planned (C4).
    DrainFails,
    /// The first flush of a secondary's worker fails, and the next worker's does not (B1).
    StartFlushFails,
    /// A primary that cannot write its metadata finds a stale extent; the secondary fails a write, and loses
    /// power (S1).
    Unrecordable,
    /// The same, but the secondary loses power while it is being asked to remember the extent (S1).
    UnrecordableCut,
    /// The secondary's disk is rolled back to an earlier state (G1).
    Rollback,
    /// The primary's disk is rolled back to an earlier state, and it is written alone (G1).
    RollbackWritten,
    /// The secondary fails a client's flush; both nodes die, and it is made primary by force and written (C1 b).
    FlushFailsCounted,
    /// The primary's disk fails everything for a long time (A5).
    DeadDisk,
    /// Clients flush all the while that the secondary comes back (A1).
    FlushedInHandshake,
    /// A stale extent is written again and again (A4).
    StaleRewritten,
    /// A primary that is out of date waits for a secondary that comes and goes (A6).
    Flapping,
    /// One of the nodes cannot delete (D1).
    DeleteRefused,
    /// The original dies while it brings our node up to date (A7).
    MixedHalfSynced,
}

impl Scene {
    /// Every scene, storms more often.
    pub const ALL: [Scene; 42] = [
        Scene::Storm,
        Scene::SplitBrain,
        Scene::Storm,
        Scene::SecondFailover,
        Scene::Storm,
        Scene::HalfSynced,
        Scene::Storm,
        Scene::FirstContact,
        Scene::Storm,
        Scene::WrittenAlone,
        Scene::Roomy,
        Scene::OutOfDate,
        Scene::Storm,
        Scene::BadSector,
        Scene::FlushFails,
        Scene::PowerFails,
        Scene::Storm,
        Scene::PeerFails,
        Scene::JustInStep,
        Scene::Storm,
        Scene::Planned,
        Scene::WrittenInHandshake,
        Scene::Discard,
        Scene::Spare,
        Scene::Discard,
        Scene::RepairFails,
        Scene::FlushedAlone,
        Scene::FlushNotMarked,
        Scene::RepairOwed,
        Scene::TurningOwed,
        Scene::DrainFails,
        Scene::StartFlushFails,
        Scene::Unrecordable,
        Scene::UnrecordableCut,
        Scene::Rollback,
        Scene::FlushFailsCounted,
        Scene::DeadDisk,
        Scene::FlushedInHandshake,
        Scene::StaleRewritten,
        Scene::Flapping,
        Scene::DeleteRefused,
        Scene::RollbackWritten,
    ];

    /// Scenes that are played by name alone.
    pub const UNMENDED: &[Scene] = &[Scene::AllFaults];

    /// The scenes with a model of the original; they are not among [`Scene::ALL`].
    pub const MIXED: [Scene; 4] =
        [Scene::MixedOurPrimary, Scene::MixedOurSecondary, Scene::MixedDiscard, Scene::MixedHalfSynced];

    /// Every scene there is, some more than once.
    pub fn every() -> impl Iterator<Item = Scene> {
        Scene::ALL.into_iter().chain(Scene::UNMENDED.iter().copied()).chain(Scene::MIXED)
    }

    /// Which nodes run the original.
    #[must_use]
    pub fn originals(self) -> [bool; 2] {
        let first = matches!(self, Scene::MixedOurSecondary | Scene::MixedDiscard | Scene::MixedHalfSynced);
        [first, self == Scene::MixedOurPrimary]
    }

    /// Whether the nodes know nothing of each other beyond the original.
    pub(crate) fn is_plain(self) -> bool {
        matches!(self, Scene::PeerFails | Scene::JustInStep)
    }
}

impl World {
    pub(crate) fn play(&mut self) -> Result<(), String> {
        match self.plan.scene {
            Scene::Storm | Scene::Roomy | Scene::AllFaults => self.storms(),
            Scene::SplitBrain => self.split_brain(),
            Scene::SecondFailover => self.second_failover(),
            Scene::HalfSynced => self.half_synced(),
            Scene::FirstContact => self.first_contact(),
            Scene::WrittenAlone => self.written_alone(),
            Scene::OutOfDate => self.out_of_date(),
            Scene::BadSector => self.bad_sector(),
            Scene::FlushFails => self.flush_fails(),
            Scene::PowerFails => self.power_fails(),
            Scene::PeerFails => self.peer_fails(),
            Scene::JustInStep => self.just_in_step(),
            Scene::Planned => self.planned(),
            Scene::WrittenInHandshake => self.written_in_handshake(),
            Scene::Discard => self.discarded(),
            Scene::Spare => self.spare(),
            Scene::MixedOurPrimary | Scene::MixedOurSecondary => self.mixed_storms(),
            Scene::MixedDiscard => self.mixed_discard(),
            Scene::RepairFails => self.repair_fails(),
            Scene::FlushedAlone => self.flushed_alone(),
            Scene::FlushNotMarked => self.flush_not_marked(),
            Scene::RepairOwed => self.repair_owed(),
            Scene::TurningOwed => self.turning_owed(),
            Scene::DrainFails => self.drain_fails(),
            Scene::StartFlushFails => self.start_flush_fails(),
            Scene::Unrecordable => self.unrecordable(false),
            Scene::UnrecordableCut => self.unrecordable(true),
            Scene::Rollback => self.rollback(),
            Scene::RollbackWritten => self.rollback_written(),
            Scene::FlushFailsCounted => self.flush_fails_counted(),
            Scene::DeadDisk => self.dead_disk(),
            Scene::FlushedInHandshake => self.flushed_in_handshake(),
            Scene::StaleRewritten => self.stale_rewritten(),
            Scene::Flapping => self.flapping(),
            Scene::DeleteRefused => self.delete_refused(),
            Scene::MixedHalfSynced => self.mixed_half_synced(),
        }
    }

    fn storms(&mut self) -> Result<(), String> {
        self.set_role(1, Role::Secondary);
        self.set_role(0, Role::Primary);
        for _ in 0..self.plan.rounds {
            let length = Duration::from_millis(5_000 + self.random.below(120_000));
            self.rage(length)?;
            self.quiet()?;
        }
        Ok(())
    }

    pub(crate) fn pair(&mut self) -> Result<(), String> {
        self.set_role(1, Role::Secondary);
        self.set_role(0, Role::Primary);
        self.write_some(0, 40, true)?;
        self.quiet()
    }

    /// Node `down` is gone, and node `up` serves alone.
    pub(crate) fn take_over(&mut self, down: usize, up: usize) -> Result<(), String> {
        self.serving = up;
        self.goes_down(down, false);
        self.set_role(up, Role::Primary);
        self.write_some(up, 30, true)
    }

    fn split_brain(&mut self) -> Result<(), String> {
        self.pair()?;
        self.network = false;
        self.cut();
        self.expect_split = true;
        self.set_role(1, Role::Primary);
        self.write_some(0, 10, true)?;
        self.write_some(1, 10, false)?;
        self.stop_role(1)?;
        self.set_role(1, Role::Secondary);
        self.network = true;
        let seen = self.events_of("split-brain");
        self.until("the split-brain is noticed on both nodes", |world| {
            world.events_of("split-brain") >= seen + 2
        })?;
        self.repair_by_create(1)
    }

    /// The manual's way out: role init, create, role secondary.
    fn repair_by_create(&mut self, node: usize) -> Result<(), String> {
        self.stop_role(node)?;
        self.recreate(node)?;
        self.set_role(node, Role::Secondary);
        self.write_some(1 - node, 5, true)?;
        self.quiet()?;
        self.expect_split = false;
        Ok(())
    }

    fn second_failover(&mut self) -> Result<(), String> {
        self.pair()?;
        self.take_over(0, 1)?;
        self.back(0, Role::Secondary);
        self.quiet()?;
        self.stop_role(1)?;
        self.take_over(0, 1)?;
        self.stop_role(1)?;
        self.set_running(1, false);
        // The older copy is made primary, by mistake; nothing is written to it.
        self.serving = 0;
        self.back(0, Role::Primary);
        let wait = Duration::from_millis(self.random.below(3_000));
        self.pass(wait)?;
        self.back(1, Role::Secondary);
        self.quiet()
    }

    /// Until something has reached the secondary, node 1, but not everything.
    pub(crate) fn until_half_synced(&mut self) -> Result<(), String> {
        let begun = |world: &World| {
            matches!(world.nodes.get(1).map(|node| &node.worker),
                Some(Worker::Secondary(engine)) if engine.status().statistics.writes > 0)
        };
        self.until("the secondary is being brought up to date", begun)
    }

    fn until_primary(&mut self, node: usize) -> Result<(), String> {
        self.until("a primary is there", |world| world.nodes.get(node).is_some_and(Node::is_primary))
    }

    fn half_synced(&mut self) -> Result<(), String> {
        self.pair()?;
        self.part()?;
        self.write_some(0, 60, true)?;
        self.network = true;
        self.until_half_synced()?;
        let power = self.random.one_in(2);
        self.goes_down(0, power);
        self.stop_role(1)?;
        if self.random.one_in(2) {
            self.kill(1, true);
        }
        if self.metadata_of(1)?.extension.mark.is_some() {
            // The supervisor refuses the promotion.
            self.back(0, Role::Primary);
            self.set_role(1, Role::Secondary);
            return self.quiet();
        }
        self.serving = 1;
        self.set_role(1, Role::Primary);
        self.read_everything(1)?;
        self.back(0, Role::Secondary);
        self.quiet()
    }

    fn first_contact(&mut self) -> Result<(), String> {
        self.pair()?;
        self.stop_role(1)?;
        self.recreate(1)?;
        self.set_role(1, Role::Secondary);
        let adopted = |world: &World| world.metadata_of(1).is_ok_and(|metadata| metadata.resuid != 0);
        self.until("the fresh secondary adopts the resource", adopted)?;
        self.cut();
        if self.random.one_in(2) {
            self.goes_down(0, true);
            self.pass(Duration::from_secs(1))?;
            self.back(0, Role::Primary);
        }
        self.quiet()
    }

    pub(crate) fn written_alone(&mut self) -> Result<(), String> {
        self.expect_split = true;
        self.set_role(0, Role::Primary);
        self.write_some(0, 10, false)?;
        self.stop_role(0)?;
        self.serving = 1;
        self.set_role(1, Role::Primary);
        self.write_some(1, 10, true)?;
        self.set_role(0, Role::Secondary);
        self.until("what node 0 was written alone is noticed", |world| world.events_of("split-brain") >= 2)?;
        self.repair_by_create(0)
    }

    fn out_of_date(&mut self) -> Result<(), String> {
        self.pair()?;
        self.older_copy_restarts()?;
        self.quiet()
    }

    /// Node 1 was written alone; node 0 is made primary, learns that it is out of date, and restarts before the
    /// secondary is back.
    pub(crate) fn older_copy_restarts(&mut self) -> Result<(), String> {
        self.take_over(0, 1)?;
        self.stop_role(1)?;
        // The older copy serves now, and learns from the secondary that it is older.
        self.serving = 0;
        self.back(0, Role::Primary);
        self.set_role(1, Role::Secondary);
        self.until("the primary knows that it is out of date", |world| {
            world.events_of("syncstart") > 0 && world.nodes.first().is_some_and(Node::is_connected)
        })?;
        let after = Duration::from_micros(self.random.below(3_000));
        self.pass(after)?;
        self.network = false;
        self.cut();
        let power = self.random.one_in(2);
        self.kill(0, power);
        self.back(0, Role::Primary);
        // Reads of what is out of date wait, or fail; they do not bring old data.
        self.read_everything(0)?;
        self.network = true;
        Ok(())
    }

    /// The network goes away, and both nodes have noticed.
    pub(crate) fn part(&mut self) -> Result<(), String> {
        self.network = false;
        self.cut();
        self.until("both nodes notice", |world| {
            matches!(world.nodes.get(1).map(|node| &node.worker), Some(Worker::None))
                && !world.nodes.first().is_some_and(Node::is_connected)
        })
    }

    fn bad_sector(&mut self) -> Result<(), String> {
        self.pair()?;
        if self.random.one_in(2) {
            self.network = false;
            self.cut();
            self.write_some(0, 10, true)?;
        }
        let node = usize::from(self.random.one_in(2));
        self.stop_role(node)?;
        let sector = usize::try_from(self.random.below(8)).unwrap_or(0);
        self.trace(|| format!("node {node}: sector {sector} goes bad"));
        if let Some(node) = self.nodes.get_mut(node) {
            node.disk.rot(sector, &mut self.random);
        }
        self.network = true;
        self.set_role(node, if node == 0 { Role::Primary } else { Role::Secondary });
        self.write_some(0, 5, true)?;
        self.quiet()
    }

    fn flush_fails(&mut self) -> Result<(), String> {
        self.pair()?;
        let node = usize::from(self.random.one_in(2));
        let flush = 1 + self.random.below(3);
        if let Some(node) = self.nodes.get_mut(node) {
            node.disk.chances = Chances { flush, ..Chances::default() };
        }
        for _ in 0..4 {
            self.write_some(0, 6, true)?;
            if self.random.one_in(2) {
                self.flush_one(0);
                self.until("the flush is answered", World::nothing_is_open)?;
            }
        }
        self.kill(node, true);
        self.calm();
        let role = if node == 0 { Role::Primary } else { Role::Secondary };
        self.back(node, role);
        self.quiet()
    }

    fn power_fails(&mut self) -> Result<(), String> {
        self.pair()?;
        let (write, flush) = (1 + self.random.below(6), self.random.below(4));
        for _ in 0..3 {
            if let Some(node) = self.nodes.first_mut() {
                node.disk.chances = Chances { write, flush, ..Chances::default() };
            }
            self.write_some(0, 6, true)?;
            self.kill(1, true);
            self.calm();
            self.back(1, Role::Secondary);
            self.read_everything(0)?;
            self.quiet()?;
        }
        Ok(())
    }

    fn peer_fails(&mut self) -> Result<(), String> {
        self.pair()?;
        if let Some(node) = self.nodes.get_mut(1) {
            node.disk.chances = Chances { write: 1, ..Chances::default() };
        }
        self.write_some(0, 5, true)?;
        self.pass(Duration::from_secs(2))?;
        self.goes_down(0, false);
        self.calm();
        self.serving = 1;
        self.expect_split = true;
        self.set_role(1, Role::Primary);
        self.write_some(1, 5, false)?;
        // Nothing but the counts says that the dead node holds something that this one never had.
        self.serving = 0;
        let seen = self.events_of("split-brain");
        self.back(0, Role::Secondary);
        self.until("the split-brain is noticed on both nodes", |world| {
            world.events_of("split-brain") >= seen + 2
        })?;
        self.stop_role(1)?;
        self.stop_role(0)?;
        self.set_role(0, Role::Primary);
        self.repair_by_create(1)
    }

    fn just_in_step(&mut self) -> Result<(), String> {
        self.pair()?;
        self.part()?;
        self.write_some(0, 20, true)?;
        self.flush_one(0);
        self.until("the flush is answered", World::nothing_is_open)?;
        self.network = true;
        self.until("the nodes are in step", |world| world.nodes.first().is_some_and(Node::is_in_step))?;
        self.goes_down(0, false);
        self.kill(1, true);
        self.serving = 1;
        self.back(1, Role::Primary);
        self.read_everything(1)?;
        self.back(0, Role::Secondary);
        self.quiet()
    }

    fn planned(&mut self) -> Result<(), String> {
        self.pair()?;
        let before = self.metadata_of(0)?.localcnt;
        for _ in 0..20 {
            self.write_one(0, true);
        }
        self.set_role(0, Role::Secondary);
        let after = Duration::from_micros(self.random.below(3_000));
        self.pass(after)?;
        self.cut();
        self.until("the old primary ends", |world| {
            !matches!(world.nodes.first().map(|node| &node.worker), Some(Worker::Primary(_)))
        })?;
        let counted = self.metadata_of(0)?.localcnt != before;
        if counted && self.plan.mode == Replication::Fullsync {
            return Err("C4: a planned change of roles has raised localcnt".into());
        }
        if counted {
            self.set_role(0, Role::Primary);
        } else {
            self.serving = 1;
            self.set_role(1, Role::Primary);
            self.until_primary(1)?;
            self.read_everything(1)?;
        }
        self.quiet()
    }

    fn written_in_handshake(&mut self) -> Result<(), String> {
        self.pair()?;
        self.take_over(0, 1)?;
        self.stop_role(1)?;
        self.serving = 0;
        self.back(0, Role::Primary);
        self.set_role(1, Role::Secondary);
        self.until("the handshake has begun", |world| {
            world.nodes.first().is_some_and(|node| node.conns.iter().all(Option::is_some))
        })?;
        let after = Duration::from_micros(self.random.below(6_000));
        self.pass(after)?;
        // Whoever gets an answer is kept, or the nodes say that they were written apart.
        self.expect_split = true;
        self.write_some(0, 8, true)?;
        self.split_or_quiet()
    }

    fn discarded(&mut self) -> Result<(), String> {
        self.pair()?;
        if self.random.one_in(2) {
            let length = Duration::from_millis(self.random.below(60_000));
            self.rage(length)?;
            self.quiet()?;
        }
        let old = self.serving;
        let new = 1 - old;
        let survivor = if self.random.one_in(2) { old } else { new };
        let loser = 1 - survivor;
        if survivor == old {
            // In flight while the link breaks; what the loser asks for then, nobody is to see.
            for _ in 0..self.random.below(8) {
                self.write_one(old, true);
            }
            let after = Duration::from_micros(self.random.below(3_000));
            self.pass(after)?;
        }
        self.network = false;
        self.cut();
        self.expect_split = true;
        self.serving = survivor;
        self.set_role(new, Role::Primary);
        for _ in 0..2 {
            let (kept, lost) = (self.random.below(8), self.random.below(8));
            self.write_some(survivor, usize::try_from(kept).unwrap_or(0) + 1, true)?;
            self.write_some(loser, usize::try_from(lost).unwrap_or(0) + 1, false)?;
            let node = usize::from(self.random.one_in(2));
            if self.random.one_in(2) {
                self.restart(node, Role::Primary)?;
            }
        }
        self.stop_role(loser)?;
        self.set_role(loser, Role::Secondary);
        self.network = true;
        let seen = self.events_of("split-brain");
        self.until("the split-brain is noticed on both nodes", |world| {
            world.events_of("split-brain") >= seen + 2
        })?;
        self.repair_by_discard(loser)?;
        if self.random.one_in(2) {
            let length = Duration::from_millis(self.random.below(30_000));
            self.rage(length)?;
        }
        self.quiet()
    }

    /// `hastctl discard`, and a while in which anything may be interrupted.
    pub(crate) fn repair_by_discard(&mut self, node: usize) -> Result<(), String> {
        self.stop_role(node)?;
        self.discard(node)?;
        if self.random.one_in(3) {
            self.restart(node, Role::Init)?;
        }
        self.set_role(node, Role::Secondary);
        for _ in 0..self.random.below(4) {
            let after = Duration::from_millis(self.random.below(1_500));
            self.pass(after)?;
            match self.random.below(3) {
                0 => self.cut(),
                1 => self.restart(node, Role::Secondary)?,
                _ => self.restart(1 - node, Role::Primary)?,
            }
        }
        self.until("the nodes are connected", World::is_connected)?;
        self.expect_split = false;
        Ok(())
    }

    /// The machine of `node` dies, with its power or without, and comes back after a while.
    fn restart(&mut self, node: usize, role: Role) -> Result<(), String> {
        let power = self.random.one_in(2);
        self.goes_down(node, power);
        let after = Duration::from_millis(self.random.below(2_000));
        self.pass(after)?;
        self.back(node, role);
        Ok(())
    }

    fn spare(&mut self) -> Result<(), String> {
        self.pair()?;
        self.replaced_for_a_while()
    }

    /// A spare takes the place of node 1's disk and is brought up to date; then the old disk is back.
    pub(crate) fn replaced_for_a_while(&mut self) -> Result<(), String> {
        self.stop_role(1)?;
        let former = self.nodes.get(1).ok_or("no such node")?.disk.clone();
        self.recreate(1)?;
        self.set_role(1, Role::Secondary);
        self.write_some(0, 30, true)?;
        self.quiet()?;
        self.stop_role(1)?;
        if let Some(node) = self.nodes.get_mut(1) {
            node.disk = former;
        }
        self.discard(1)?;
        self.set_role(1, Role::Secondary);
        self.write_some(0, 5, true)?;
        self.quiet()
    }

    pub(crate) fn until(&mut self, what: &str, done: impl Fn(&World) -> bool) -> Result<(), String> {
        let end = self.now + LIMIT;
        if self.advance_until(end, done)? { Ok(()) } else { Err(format!("not within {LIMIT:?}: {what}")) }
    }

    pub(crate) fn pass(&mut self, time: Duration) -> Result<(), String> {
        let end = self.now + time;
        self.advance_until(end, |_| false).map(|_| ())
    }

    /// Ends the role of `node` and waits until its worker has ended.
    pub(crate) fn stop_role(&mut self, node: usize) -> Result<(), String> {
        self.set_role(node, Role::Init);
        self.until("a worker ends", |world| {
            matches!(world.nodes.get(node).map(|node| &node.worker), Some(Worker::None))
        })
    }

    /// Writes to whatever role primary `node` has, and waits for the answers. Only what is `tracked` is
    /// expected to be there in the end.
    pub(crate) fn write_some(&mut self, node: usize, count: usize, tracked: bool) -> Result<(), String> {
        self.until_primary(node)?;
        for _ in 0..count {
            self.write_one(node, tracked);
        }
        self.until("writes are answered", World::nothing_is_open)
    }

    pub(crate) fn read_everything(&mut self, node: usize) -> Result<(), String> {
        self.read_all(node);
        self.until("reads are answered", World::nothing_is_open)
    }
}
