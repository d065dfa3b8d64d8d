//! Mixed pairs: one node runs the original (a model of it), the other ours; and what must be true then.
//!
//! While ours is the primary and the original has not been it, everything must hold that holds for a pair of
//! ours. What an original did to the data while *it* was the primary is its own affair: durability.md C3 (a
//! period that it did not count), and the L items of defects.md that belong to a primary. Then there is a
//! [`Witness`]: what our secondary has answered as stored it holds, or sends in its map (M5); what it has taken
//! in it stores before it ends (L14). Once ours takes over, its rules hold again for everything from there on.

use std::collections::BTreeSet;

use hast_engine::Event;
use hast_format::bitmap::Bitmap;
use hast_format::metadata::Role;
use hast_net::frame::Frame;
use hast_net::message::{Command, FromPrimary, Message, Reply};

use core::time::Duration;

use crate::disk::SECTOR;
use crate::node::{Node, Worker};
use crate::scenes::Scene;
use crate::world::{Plan, World};

/// Plays one whole history of a mixed pair.
///
/// # Errors
/// What rule was broken, and when.
pub fn play_mixed(seed: u64, trace: bool) -> Result<World, String> {
    let mut world = World::new(Plan { trace, ..Plan::mixed(seed) })?;
    world.run().map(|()| world)
}

/// What is known of a mixed pair.
#[derive(Debug, Default)]
pub(crate) struct Mixed {
    /// Roles are never changed: the first primary stays it.
    stays: bool,
    /// Nothing goes wrong that would show an original's habits.
    honest: bool,
    /// The original has been the primary.
    ruled: bool,
    /// ... and ours has not taken over since.
    usurped: bool,
    /// ... or has, but the nodes have not met since.
    reckoning: bool,
    /// Sectors that differ, or are older than what was acknowledged, by the original's doing.
    forgiven: BTreeSet<usize>,
    /// The last write of the original's disk before ours took over.
    last_write: u64,
    /// The client's memory is wider than it need be.
    wide: bool,
    witness: Witness,
}

/// What our secondary has promised to an original.
#[derive(Debug, Default)]
struct Witness {
    on: bool,
    /// For each sector what was written to it, oldest first; the first entry is what was there before.
    sectors: Vec<Vec<Seen>>,
    /// Requests of this connection that have not been answered, by the primary's number, which need not be
    /// unique, and ours.
    open: Vec<(u64, u64)>,
    answered: Vec<(u64, bool)>,
    requests: u64,
    /// The map was sent, and no request has followed: what it does not say is not known to the primary.
    sent: bool,
    /// Power was lost since the primary last had everything.
    power_lost: bool,
}

#[derive(Clone, Copy, Debug)]
struct Seen {
    request: u64,
    id: u64,
    stored: bool,
    failed: bool,
}

impl Witness {
    /// From here on, with this on the disk.
    fn rebase(&mut self, data: &[u8]) {
        self.on = true;
        self.power_lost = false;
        self.sent = false;
        let first = |bytes| vec![Seen { request: 0, id: id(bytes), stored: true, failed: false }];
        self.sectors = data.chunks(SECTOR).map(first).collect();
    }

    fn wrote(&mut self, seq: u64, first: usize, ids: impl Iterator<Item = u64>) {
        self.requests += 1;
        self.open.push((seq, self.requests));
        for (sector, id) in self.sectors.iter_mut().skip(first).zip(ids) {
            sector.push(Seen { request: self.requests, id, stored: false, failed: false });
        }
    }

    /// `seq` was answered. The original may have two requests of the same number (T2): then nobody knows which,
    /// until both are.
    fn answered(&mut self, seq: u64, well: bool) {
        self.answered.push((seq, well));
        let same = |(other, _): &&(u64, u64)| *other == seq;
        let answers: Vec<bool> =
            self.answered.iter().filter(|(other, _)| *other == seq).map(|(_, well)| *well).collect();
        if answers.len() < self.open.iter().filter(same).count() {
            return;
        }
        let well = answers.iter().all(|well| *well);
        let requests: BTreeSet<u64> = self.open.iter().filter(same).map(|(_, request)| *request).collect();
        self.open.retain(|(other, _)| *other != seq);
        self.answered.retain(|(other, _)| *other != seq);
        for seen in self.sectors.iter_mut().flatten().filter(|seen| requests.contains(&seen.request)) {
            seen.stored = well;
            seen.failed |= !well;
        }
    }

    /// Whether `data` is what was promised; what is not must be in `map`, and a loss of power its cause.
    fn check(
        &self,
        data: &[u8],
        map: Option<&Bitmap>,
        extent_of: impl Fn(usize) -> u32,
    ) -> Result<(), String> {
        for (at, (sector, bytes)) in self.sectors.iter().zip(data.chunks(SECTOR)).enumerate() {
            let last = sector.iter().rposition(|seen| seen.stored).unwrap_or(0);
            let promised = sector.iter().skip(last).any(|seen| seen.id == id(bytes));
            let remembered = self.power_lost && map.is_some_and(|map| map.contains(extent_of(at)));
            if !promised && !remembered {
                let found = id(bytes);
                return Err(format!("our secondary answered {sector:?} for sector {at}, but holds {found}"));
            }
        }
        Ok(())
    }
}

impl World {
    pub(crate) fn mixed_storms(&mut self) -> Result<(), String> {
        let stays = self.random.one_in(2);
        let ours_first = self.plan.scene == Scene::MixedOurPrimary;
        match self.random.below(if ours_first { 8 } else { 4 }) {
            0 => self.mixed_first_contact()?,
            4 => self.older_copy_promoted()?,
            5 => self.mixed_out_of_date()?,
            6 => {
                // L20: our node, written before any handshake, is no fresh secondary to an original either.
                self.written_alone()?;
                self.identical()?;
            }
            _ => {
                self.pair()?;
                self.identical()?;
            }
        }
        if let Some(mixed) = &mut self.mixed {
            mixed.stays = stays;
            mixed.honest = false;
            mixed.ruled |= self.nodes.get(self.serving).is_some_and(|node| node.original);
            mixed.usurped = mixed.ruled;
            mixed.reckoning = mixed.ruled;
        }
        for _ in 0..self.plan.rounds {
            self.settle_original();
            let length = Duration::from_millis(5_000 + self.random.below(120_000));
            self.rage(length)?;
            self.quiet()?;
        }
        Ok(())
    }

    /// What an original has written has reached the medium: a disk does not keep it for hours, and an original
    /// without its first metadata is none.
    fn settle_original(&mut self) {
        for node in self.nodes.iter_mut().filter(|node| node.original) {
            node.disk.settle();
        }
    }

    /// A pair in which nothing has gone wrong: until the storm begins the original keeps all rules.
    fn honest_pair(&mut self) -> Result<(), String> {
        if let Some(mixed) = &mut self.mixed {
            mixed.honest = true;
        }
        self.pair()?;
        self.identical()?;
        self.settle_original();
        Ok(())
    }

    /// A fresh secondary loses its primary in the middle of the first contact (L19): an original has forgotten
    /// that it is to get everything, ours must not have.
    fn mixed_first_contact(&mut self) -> Result<(), String> {
        self.honest_pair()?;
        self.stop_role(1)?;
        self.recreate(1)?;
        self.set_role(1, Role::Secondary);
        let adopted = |world: &World| world.metadata_of(1).is_ok_and(|metadata| metadata.resuid != 0);
        self.until("the fresh secondary adopts the resource", adopted)?;
        let after = Duration::from_micros(self.random.below(3_000));
        self.pass(after)?;
        self.cut();
        if self.random.one_in(2) {
            self.goes_down(0, true);
            self.pass(Duration::from_secs(1))?;
            self.back(0, Role::Primary);
        }
        self.quiet()?;
        self.identical()
    }

    /// Ours is written alone and goes down; the original, which has less, is made primary by mistake, and not
    /// written: it must learn from our counts that it is out of date (C1, L5, L7).
    fn older_copy_promoted(&mut self) -> Result<(), String> {
        self.honest_pair()?;
        if self.random.one_in(2) {
            for _ in 0..20 {
                self.write_one(0, true);
            }
            let after = Duration::from_micros(self.random.below(5_000));
            self.pass(after)?;
            self.network = false;
            self.cut();
            self.until("our node notices", |world| {
                world.nothing_is_open() && !world.nodes.first().is_some_and(Node::is_connected)
            })?;
        }
        self.goes_down(1, false);
        if self.random.one_in(2) {
            self.write_some(0, 20, true)?;
        }
        if self.random.one_in(2) {
            self.kill(0, true);
        } else {
            self.stop_role(0)?;
        }
        self.set_running(0, false);
        self.serving = 1;
        self.network = true;
        self.back(1, Role::Primary);
        let wait = Duration::from_millis(self.random.below(3_000));
        self.pass(wait)?;
        self.back(0, Role::Secondary);
        self.quiet()?;
        self.identical()
    }

    /// The original was written alone; ours is made primary, learns that it is out of date, and restarts before
    /// the secondary is back: it does not serve what is old (L18).
    fn mixed_out_of_date(&mut self) -> Result<(), String> {
        self.honest_pair()?;
        self.older_copy_restarts()?;
        self.quiet()?;
        self.identical()
    }

    /// A7: the original was written alone, and dies in the middle of bringing our node up to date: unless that one has
    /// everything, it remembers that it may lack something.
    pub(crate) fn mixed_half_synced(&mut self) -> Result<(), String> {
        self.honest_pair()?;
        self.part()?;
        self.write_some(0, 60, true)?;
        self.network = true;
        self.until_half_synced()?;
        let after = Duration::from_micros(self.random.below(3_000));
        self.pass(after)?;
        self.goes_down(0, false);
        self.stop_role(1)?;
        let suspected = self.metadata_of(1)?.extension.possibly_behind;
        let [original, ours] = &self.nodes;
        if original.data()? != ours.data()? && !suspected {
            return Err("A7: our node lacks something of the original's, and does not suspect it".into());
        }
        self.back(0, Role::Primary);
        self.set_role(1, Role::Secondary);
        self.quiet()?;
        self.identical()
    }

    /// Ours gives its changes up, and an original cannot say whether its map has all that it changed since they parted:
    /// it must be made to copy everything.
    pub(crate) fn mixed_discard(&mut self) -> Result<(), String> {
        self.honest_pair()?;
        if self.random.one_in(2) {
            self.replaced_for_a_while()?;
        } else {
            self.written_apart_and_discarded()?;
        }
        self.identical()
    }

    fn written_apart_and_discarded(&mut self) -> Result<(), String> {
        self.network = false;
        self.cut();
        self.expect_split = true;
        self.set_role(1, Role::Primary);
        for _ in 0..2 {
            let (kept, lost) = (self.random.below(8), self.random.below(8));
            self.write_some(0, usize::try_from(kept).unwrap_or(0) + 1, true)?;
            self.write_some(1, usize::try_from(lost).unwrap_or(0) + 1, false)?;
        }
        self.settle_original();
        self.stop_role(1)?;
        self.set_role(1, Role::Secondary);
        self.network = true;
        let seen = self.events_of("split-brain");
        self.until("the split-brain is noticed", |world| world.events_of("split-brain") > seen)?;
        self.repair_by_discard(1)?;
        self.quiet()
    }

    /// Whether the history ended where nobody can tell what would be right.
    #[must_use]
    pub fn was_excused(&self) -> bool {
        self.excused
    }

    /// Whether the node that was the primary first stays it.
    pub(crate) fn stays(&self) -> bool {
        self.mixed.as_ref().is_some_and(|mixed| mixed.stays)
    }

    fn ours(&self) -> usize {
        self.nodes.iter().position(|node| !node.original).unwrap_or(0)
    }

    fn is_our_secondary(&self, node: usize) -> bool {
        self.mixed.is_some()
            && matches!(self.nodes.get(node).map(|node| &node.worker), Some(Worker::Secondary(_)))
    }

    fn identical(&self) -> Result<(), String> {
        let [a, b] = &self.nodes;
        let (a, b) = (a.data()?, b.data()?);
        for (at, (x, y)) in a.chunks(SECTOR).zip(b.chunks(SECTOR)).enumerate() {
            if x != y {
                return Err(format!("sector {at} holds write {} on node 0, {} on node 1", id(x), id(y)));
            }
            self.memory.check(at, x, self.now)?;
        }
        Ok(())
    }

    /// A quiet period has ended in step.
    pub(crate) fn compare_mixed(&mut self) -> Result<(), String> {
        let ours = self.ours();
        if self.serving != ours {
            // C3, and L1 to L5, L9, L10, L15 and L16 of an original's primary: no word on whether the nodes
            // are the same.
            return self.check_witness(ours, None);
        }
        let Some(mut mixed) = self.mixed.take() else { return Ok(()) };
        let compared = self.compare_with(&mut mixed.forgiven);
        if compared.is_ok() && std::mem::take(&mut mixed.wide) {
            self.remember_what_is_there();
        }
        self.mixed = Some(mixed);
        self.trace(|| "quiet: both nodes hold the same, and all that was acknowledged".into());
        compared
    }

    fn compare_with(&self, forgiven: &mut BTreeSet<usize>) -> Result<(), String> {
        let (ours, theirs) = (self.ours(), 1 - self.ours());
        let data = |node: usize| self.nodes.get(node).ok_or("no such node")?.data();
        for (at, (x, y)) in data(ours)?.chunks(SECTOR).zip(data(theirs)?.chunks(SECTOR)).enumerate() {
            if x == y {
                forgiven.remove(&at);
            } else if !forgiven.contains(&at) {
                let (x, y) = (id(x), id(y));
                return Err(format!(
                    "in step, but sector {at} holds write {x} on our node and {y} on the original"
                ));
            }
            self.memory.check(at, x, self.now)?;
        }
        Ok(())
    }

    /// The client can expect what lies on either disk, or may after a loss of power: nothing else.
    fn remember_what_is_there(&mut self) {
        let [a, b] = &self.nodes;
        let (Ok(x), Ok(y)) = (a.layout(), b.layout()) else { return };
        let byte = |off: u64, at: usize| usize::try_from(off).unwrap_or(0) + at * SECTOR;
        let sectors = (0..self.sectors()).map(|at| {
            let mut ids = a.disk.may_hold(byte(x.localoff(), at));
            ids.extend(b.disk.may_hold(byte(y.localoff(), at)));
            ids
        });
        self.memory.rebase(self.now, sectors);
    }

    fn check_witness(&self, node: usize, map: Option<&Bitmap>) -> Result<(), String> {
        let (Some(mixed), Some(node)) = (&self.mixed, self.nodes.get(node)) else { return Ok(()) };
        if !mixed.witness.on {
            return Ok(());
        }
        let layout = node.layout()?;
        let extent_of = |at: usize| {
            let offset = (at * SECTOR) as u64;
            u32::try_from(offset / u64::from(layout.extentsize())).unwrap_or(u32::MAX)
        };
        mixed.witness.check(node.data()?, map, extent_of)
    }

    fn witness(&mut self, node: usize, map: Option<&Bitmap>, when: &str) {
        if let Err(error) = self.check_witness(node, map) {
            self.fail(format!("{when}: {error}"));
        }
    }

    /// What a node holds was given up: nothing that was answered before counts.
    pub(crate) fn mixed_recreated(&mut self) {
        if let Some(mixed) = &mut self.mixed {
            mixed.witness.on = false;
        }
    }

    /// A secondary was told who its primary is.
    pub(crate) fn mixed_introduced(&mut self, node: usize) {
        if !self.is_our_secondary(node) {
            return;
        }
        let (Some(mixed), Some(node)) = (&mut self.mixed, self.nodes.get(node)) else { return };
        mixed.witness.open.clear();
        mixed.witness.answered.clear();
        mixed.witness.sent = false;
        if let (false, Ok(data)) = (mixed.witness.on, node.data()) {
            mixed.witness.rebase(data);
        }
    }

    /// A frame is about to reach a worker.
    pub(crate) fn mixed_receives(&mut self, node: usize, frame: &Frame) {
        if !self.is_our_secondary(node) {
            return;
        }
        let (Some(mixed), Some(node)) = (&mut self.mixed, self.nodes.get(node)) else { return };
        let Frame { version, nv, payload } = frame;
        let frame = Frame { version: *version, nv: nv.clone(), payload: payload.clone() };
        let Ok(FromPrimary::Request(request)) = FromPrimary::decode(frame) else { return };
        // With the first request the primary has our map: what we had lost is its affair.
        if let (true, Ok(data)) = (mixed.witness.sent, node.data()) {
            mixed.witness.rebase(data);
        }
        let first = usize::try_from(request.offset).unwrap_or(0) / SECTOR;
        let count = usize::try_from(request.length).unwrap_or(0) / SECTOR;
        match (request.command, &request.data) {
            (Command::Write, Some(data)) => {
                mixed.witness.wrote(request.seq, first, data.chunks(SECTOR).map(id));
            }
            (Command::Delete, _) => mixed.witness.wrote(request.seq, first, vec![0; count].into_iter()),
            _ => {}
        }
    }

    /// A worker sends something.
    pub(crate) fn mixed_sends(&mut self, node: usize, message: &Message) {
        if !self.is_our_secondary(node) {
            return;
        }
        match message {
            Message::SecondAnswer(answer, map) => {
                let extents = self.sectors() * SECTOR / answer.extentsize.max(1) as usize;
                let extents = u32::try_from(extents).unwrap_or(u32::MAX).saturating_add(1);
                let map = map.as_ref().map(|map| Bitmap::from_bytes(extents, map));
                // M5
                self.witness(node, map.as_ref(), "our secondary sends its map");
                if let Some(mixed) = &mut self.mixed {
                    mixed.witness.sent = true;
                }
            }
            Message::Reply(Reply { seq, received: false, error, .. }) => {
                if let Some(mixed) = &mut self.mixed
                    && mixed.witness.open.iter().any(|(open, _)| open == seq)
                {
                    mixed.witness.answered(*seq, error.is_none());
                }
            }
            _ => {}
        }
    }

    /// A write has failed on the disk.
    pub(crate) fn mixed_write_failed(&mut self, node: usize, offset: u64, data: &[u8]) {
        let Some(localoff) = self.nodes.get(node).and_then(|node| node.layout().ok()).map(|l| l.localoff())
        else {
            return;
        };
        if !self.is_our_secondary(node) || offset < localoff {
            return;
        }
        let Some(mixed) = &mut self.mixed else { return };
        let first = usize::try_from(offset - localoff).unwrap_or(0) / SECTOR;
        for (sector, bytes) in mixed.witness.sectors.iter_mut().skip(first).zip(data.chunks(SECTOR)) {
            for seen in sector.iter_mut().filter(|seen| !seen.stored && seen.id == id(bytes)) {
                seen.failed = true;
            }
        }
    }

    /// A worker was killed: what it had not answered may be on its disk, or not.
    pub(crate) fn mixed_killed(&mut self, node: usize) {
        if !self.is_our_secondary(node) {
            return;
        }
        if let Some(mixed) = &mut self.mixed {
            for seen in mixed.witness.sectors.iter_mut().flatten().filter(|seen| !seen.stored) {
                seen.failed = true;
            }
        }
    }

    /// A worker ends by itself.
    pub(crate) fn mixed_exit(&mut self, node: usize) {
        if self.nodes.get(node).is_some_and(|node| node.original) {
            self.abandon_disk(node, false);
        }
        if !self.is_our_secondary(node) {
            return;
        }
        if let Some(mixed) = &mut self.mixed {
            // L14
            for seen in mixed.witness.sectors.iter_mut().flatten().filter(|seen| !seen.failed) {
                seen.stored |= !mixed.witness.power_lost;
            }
        }
        self.witness_unless_power_lost(node);
    }

    fn witness_unless_power_lost(&mut self, node: usize) {
        if self.mixed.as_ref().is_some_and(|mixed| !mixed.witness.power_lost) {
            self.witness(node, None, "our secondary ends");
        }
    }

    /// The data sectors that an original had not flushed when ours took over, and what they hold.
    pub(crate) fn fragile(&self, node: usize) -> Vec<usize> {
        let (Some(mixed), Some(node)) = (&self.mixed, self.nodes.get(node)) else { return Vec::new() };
        if !node.original {
            return Vec::new();
        }
        let localoff = node.layout().map_or(0, |layout| usize::try_from(layout.localoff()).unwrap_or(0));
        let cached = node.disk.cached(mixed.last_write).into_iter();
        cached.filter_map(|at| at.checked_sub(localoff)).map(|at| at / SECTOR).collect()
    }

    /// A node has lost what its cache held.
    pub(crate) fn mixed_power_lost(&mut self, node: usize, fragile: Vec<usize>) {
        let ours = self.ours();
        let Some(mixed) = &mut self.mixed else { return };
        if node == ours {
            mixed.witness.power_lost |= mixed.witness.on;
        } else {
            // L10 of the original as it was the primary: it had cleared their bits.
            mixed.forgiven.extend(fragile);
        }
    }

    /// A node has become the primary, or is it again.
    pub(crate) fn mixed_promoted(&mut self, node: usize) {
        let Some(mixed) = &mut self.mixed else { return };
        let Some(n) = self.nodes.get(node) else { return };
        if n.original {
            if !mixed.honest {
                (mixed.ruled, mixed.usurped, mixed.reckoning) = (true, true, true);
            }
            return;
        }
        if mixed.witness.on {
            let map = n.on_disk_map();
            self.witness(node, map.as_ref(), "our secondary is promoted");
        }
        let last_write = self.nodes.iter().find(|node| node.original).map_or(0, |node| node.disk.written());
        let Some(mixed) = &mut self.mixed else { return };
        mixed.witness.on = false;
        if std::mem::take(&mut mixed.usurped) {
            mixed.last_write = last_write;
            mixed.wide = true;
            self.remember_what_is_there();
        }
    }

    /// A hook is told of something.
    pub(crate) fn mixed_event(&mut self, node: usize, event: Event) {
        let Some(mixed) = &self.mixed else { return };
        let primary = self.nodes.get(node).is_some_and(|node| !node.original && node.is_primary());
        match event {
            // L5 and L7 of an original's primary: its counts say what they like (C3).
            Event::SplitBrain if mixed.ruled && !self.expect_split => self.excused = true,
            Event::Connect if primary && mixed.reckoning => self.reckon(node),
            _ => {}
        }
    }

    /// The nodes meet after the original was the primary: what differs and is in no map is its doing. (What our
    /// node has promised the witness has looked after.)
    fn reckon(&mut self, node: usize) {
        let [a, b] = &self.nodes;
        let (Ok(a), Ok(b)) = (a.data(), b.data()) else { return };
        let map = self.nodes.get(node).and_then(Node::on_disk_map);
        let extentsize =
            self.nodes.get(node).and_then(|node| node.layout().ok()).map_or(1, |l| l.extentsize());
        let differ = a.chunks(SECTOR).zip(b.chunks(SECTOR)).enumerate().filter(|(_, (x, y))| x != y);
        let forgiven: Vec<usize> = differ
            .map(|(at, _)| at)
            .filter(|at| {
                let extent = u32::try_from((at * SECTOR) as u64 / u64::from(extentsize)).unwrap_or(u32::MAX);
                !map.as_ref().is_some_and(|map| map.contains(extent))
            })
            .collect();
        self.trace(|| format!("the original has left sectors {forgiven:?} different"));
        if let Some(mixed) = &mut self.mixed {
            mixed.forgiven.extend(forgiven);
            mixed.reckoning = false;
        }
    }
}

fn id(bytes: &[u8]) -> u64 {
    bytes.first_chunk::<8>().map_or(0, |id| u64::from_le_bytes(*id))
}
