//! The world: what happens next, and what must be true afterwards.

mod connections;
mod requests;

use core::time::Duration;
use std::collections::{BTreeMap, BTreeSet};

use hast_engine::{Action, DiskOp, DiskResult, Event, Op, OpId, RequestId, Side};
use hast_format::metadata::{Metadata, Role};
use hast_net::Replication;
use hast_net::buffer::Buffer;
use hast_net::frame::{self, Frame};
use hast_net::handshake::{Extensions, FirstAnswer, Hello, Refusal, texts};
use hast_net::message::{Mark, MarkKind, Message, to_wire};
use hast_net::payload::{Checksum, Compression, Stages};

use crate::client::Memory;
use crate::disk::{Faults, SECTOR};
use crate::mixed::Mixed;
use crate::network::{Conn, ConnId};
use crate::node::{Node, Worker};
use crate::random::Random;
use crate::scenes::Scene;

/// The client has at most so many requests open.
const OPEN: usize = 24;
/// A quiet period in which nothing is in step after this long is a deadlock.
const PATIENCE: Duration = Duration::from_secs(900);

/// What to play.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Decides everything that chance decides.
    pub seed: u64,
    /// What is played.
    pub scene: Scene,
    /// The replication mode.
    pub mode: Replication,
    /// Stormy periods, each followed by a quiet one.
    pub rounds: u32,
    /// Say what happens.
    pub trace: bool,
    /// Which nodes run the original instead of ours.
    pub originals: [bool; 2],
}

/// Everything there is.
pub struct World {
    pub(crate) plan: Plan,
    pub(crate) random: Random,
    pub(crate) now: Duration,
    queue: BTreeMap<(Duration, u64), Happening>,
    number: u64,
    pub(crate) nodes: [Node; 2],
    conns: BTreeMap<ConnId, Conn>,
    /// New connections can be made.
    pub(crate) network: bool,
    /// Nothing arrives at that node before then.
    pub(crate) stalled_until: [Duration; 2],
    /// The node that the operator wants to serve.
    pub(crate) serving: usize,
    pub(crate) storm: bool,
    /// The primary's disk could not even record what it misses, and the secondary was asked to count for it.
    /// Should the primary then die before it hears that this was done, the counts say split-brain although no
    /// completed write is missing: a disk, a link and a node have failed at once, and nobody can tell.
    asked_to_count: bool,
    /// Which happened: the history ends here.
    pub(crate) excused: bool,
    /// What is known of a pair of which one node runs the original.
    pub(crate) mixed: Option<Mixed>,
    /// The nodes have been written apart on purpose.
    pub(crate) expect_split: bool,
    pub(crate) memory: Memory,
    /// Sectors that the secondary's disk failed to store, of which the primary, in step, has not heard yet.
    pub(crate) refused: BTreeSet<usize>,
    requests: BTreeMap<RequestId, Asked>,
    next_id: u64,
    /// Events of the engines, counted by name.
    events: BTreeMap<&'static str, u64>,
    /// How often a worker has ended by itself with each exit status.
    exits: BTreeMap<i32, u64>,
    /// Happenings so far.
    happenings: u64,
    failure: Option<String>,
}

/// A client's request.
#[derive(Clone, Debug)]
struct Asked {
    invoked: Duration,
    what: What,
}

#[derive(Clone, Copy, Debug)]
enum What {
    Read { first: usize, count: usize },
    Write,
    Delete,
    Flush,
}

pub(crate) enum Happening {
    DiskDone {
        node: usize,
        incarnation: u64,
        id: OpId,
    },
    Arrival {
        conn: ConnId,
        to: usize,
        bytes: Vec<u8>,
    },
    Broken {
        conn: ConnId,
        to: usize,
    },
    Connected {
        node: usize,
        incarnation: u64,
        side: Side,
    },
    Timer {
        node: usize,
        incarnation: u64,
    },
    Client,
    Operator,
    /// A killed worker, or a host without power, is back.
    Back {
        node: usize,
        role: Role,
    },
    NetworkBack,
    /// The operator wants `node` to be primary as soon as the other one is not.
    Promote {
        node: usize,
        before: u64,
    },
    FaultsEnd {
        node: usize,
    },
}

impl World {
    /// Two created providers, node 0 primary and node 1 secondary.
    ///
    /// # Errors
    /// The providers cannot be created.
    pub fn new(plan: Plan) -> Result<World, String> {
        let mut random = Random::new(plan.seed);
        let keepdirty = u32::try_from(random.below(6)).unwrap_or(0) + 1;
        let roomy = plan.scene == Scene::Roomy;
        let mixed = plan.originals.contains(&true);
        let no_cache = (plan.scene == Scene::Storm || mixed) && random.one_in(8);
        // The original cannot do with one (spec/on-disk.md).
        let keepdirty = if mixed { keepdirty.max(2) } else { keepdirty };
        let mut originals = plan.originals.into_iter();
        let mut node = || {
            let mut node = Node::created(keepdirty, roomy)?;
            node.original = originals.next().unwrap_or(false);
            // The original runs on FreeBSD, which has no page cache for disks.
            node.disk.keeps = node.original;
            node.disk.no_cache = no_cache && random.one_in(2);
            Ok::<Node, String>(node)
        };
        let nodes = [node()?, node()?];
        let bytes = nodes.iter().filter_map(|node| node.data().ok()).map(<[u8]>::len).min();
        let mut memory = Memory::new(bytes.unwrap_or(0) / SECTOR);
        memory.set_firm(plan.mode != Replication::Async);
        Ok(World {
            plan,
            random,
            now: Duration::from_secs(1),
            queue: BTreeMap::new(),
            number: 0,
            nodes,
            conns: BTreeMap::new(),
            network: true,
            stalled_until: [Duration::ZERO; 2],
            serving: 0,
            storm: false,
            asked_to_count: false,
            excused: false,
            mixed: mixed.then(Mixed::default),
            expect_split: false,
            memory,
            refused: BTreeSet::new(),
            requests: BTreeMap::new(),
            next_id: 0,
            events: BTreeMap::new(),
            exits: BTreeMap::new(),
            happenings: 0,
            failure: None,
        })
    }

    /// How many things have happened.
    #[must_use]
    pub fn happenings(&self) -> u64 {
        self.happenings
    }

    /// How often hooks were told of each event.
    #[must_use]
    pub fn events(&self) -> &BTreeMap<&'static str, u64> {
        &self.events
    }

    /// Plays the plan.
    ///
    /// # Errors
    /// What rule was broken, and when.
    pub fn run(&mut self) -> Result<(), String> {
        let played = self.play();
        if self.excused {
            return Ok(());
        }
        played.map_err(|what| format!("{}, at {:.3?}: {what}", self.plan, self.now))
    }

    /// A stormy period.
    pub(crate) fn rage(&mut self, length: Duration) -> Result<(), String> {
        self.storm = true;
        self.schedule(Duration::ZERO, Happening::Client);
        self.schedule(Duration::ZERO, Happening::Operator);
        let end = self.now + length;
        self.advance_until(end, |_| false)?;
        self.storm = false;
        Ok(())
    }

    /// A quiet period, after which everything must be in order.
    pub(crate) fn quiet(&mut self) -> Result<(), String> {
        self.calm();
        let end = self.now + PATIENCE;
        if !self.advance_until(end, World::is_quiet)? {
            for node in &self.nodes {
                self.trace(|| format!("{:?}", node.worker));
            }
            return Err(format!("the nodes are not in step after {PATIENCE:?} of calm"));
        }
        self.compare()
    }

    /// Lets things happen until `done`, or `end`; true if `done`.
    pub(crate) fn advance_until(
        &mut self,
        end: Duration,
        done: impl Fn(&World) -> bool,
    ) -> Result<bool, String> {
        loop {
            if let Some(failure) = self.failure.take() {
                return Err(failure);
            }
            if done(self) {
                return Ok(true);
            }
            let Some(((at, number), happening)) = self.queue.pop_first() else {
                self.now = end;
                return Ok(false);
            };
            if at >= end {
                self.queue.insert((at, number), happening);
                self.now = end;
                return Ok(false);
            }
            self.now = at;
            self.happenings += 1;
            self.happen(happening);
        }
    }

    pub(crate) fn is_quiet(&self) -> bool {
        let secondary = 1 - self.serving;
        self.requests.is_empty()
            && self.nodes.get(self.serving).is_some_and(|node| node.is_in_step() && node.is_clean())
            && self.nodes.get(secondary).is_some_and(Node::is_secondary)
            && self.nodes.iter().all(|node| node.in_flight.is_empty())
    }

    /// Both data areas are the same, and hold what the client may expect.
    fn compare(&mut self) -> Result<(), String> {
        if self.mixed.is_some() {
            return self.compare_mixed();
        }
        let [a, b] = &self.nodes;
        let (a, b) = (a.data()?, b.data()?);
        for (at, (x, y)) in a.chunks(SECTOR).zip(b.chunks(SECTOR)).enumerate() {
            if x != y {
                let id = |bytes: &[u8]| bytes.first_chunk::<8>().map_or(0, |id| u64::from_le_bytes(*id));
                return Err(format!(
                    "in step, but sector {at} holds write {} on node 0 and {} on node 1",
                    id(x),
                    id(y)
                ));
            }
            self.memory.check(at, x, self.now)?;
        }
        self.asked_to_count = false;
        self.trace(|| "quiet: both nodes hold the same, and all that was acknowledged".into());
        Ok(())
    }

    pub(crate) fn trace(&self, text: impl FnOnce() -> String) {
        if self.plan.trace {
            println!("{:>12.6} {}", self.now.as_secs_f64(), text());
        }
    }

    pub(crate) fn fail(&mut self, what: String) {
        self.trace(|| format!("FAILED: {what}"));
        self.failure.get_or_insert(what);
    }

    pub(crate) fn schedule(&mut self, after: Duration, happening: Happening) {
        self.number += 1;
        self.queue.insert((self.now + after, self.number), happening);
    }

    fn latency(&mut self, most: u64) -> Duration {
        let slow = if self.random.one_in(50) { 100 } else { 1 };
        Duration::from_micros(10 + self.random.below(most * slow))
    }

    fn happen(&mut self, happening: Happening) {
        match happening {
            Happening::DiskDone { node, incarnation, id } => self.disk_done(node, incarnation, id),
            Happening::Arrival { conn, to, bytes } => self.arrival(conn, to, &bytes),
            Happening::Broken { conn, to } => self.broken(conn, to),
            Happening::Connected { node, incarnation, side } => self.connected(node, incarnation, side),
            Happening::Timer { node, incarnation } => {
                let Some(n) = self.nodes.get_mut(node) else { return };
                if n.incarnation != incarnation {
                    return;
                }
                n.timer = None;
                if n.poll_timeout().is_some_and(|at| at <= self.now) {
                    n.handle_timeout(self.now);
                }
                self.pump(node);
            }
            Happening::Client => self.client(),
            Happening::Operator => self.operate(),
            Happening::Back { node, role } => self.back(node, role),
            Happening::NetworkBack => self.network = true,
            Happening::Promote { node, before } => self.promote(node, before),
            Happening::FaultsEnd { node } => {
                if let Some(node) = self.nodes.get_mut(node) {
                    node.disk.faults = Faults::default();
                }
            }
        }
    }

    fn disk_done(&mut self, node: usize, incarnation: u64, id: OpId) {
        let now = self.now;
        let Some(n) = self.nodes.get_mut(node) else { return };
        if n.incarnation != incarnation {
            return;
        }
        let Some((op, covers)) = n.in_flight.remove(&id) else { return };
        let result = n.disk.carry_out(&op, covers, &mut self.random);
        if let Err(error) = &result
            && self.plan.trace
        {
            println!("{:>12.6} node {node}: {op:?} fails: {error}", self.now.as_secs_f64());
        }
        if matches!(op, DiskOp::Write { offset, .. } if offset < 4096)
            && let Ok(metadata) = n.metadata()
            && metadata.resuid == 0
            && (metadata.localcnt, metadata.remotecnt) != (0, 0)
        {
            self.fail(format!("C5: node {node} has counts, but no resuid yet"));
        }
        if let (DiskOp::Write { offset, data }, Err(_)) = (&op, &result) {
            self.mixed_write_failed(node, *offset, data);
            self.refuse(node, *offset, data.len());
        }
        let Some(n) = self.nodes.get_mut(node) else { return };
        n.handle_disk(now, id, result);
        self.pump(node);
    }

    fn refuse(&mut self, node: usize, offset: u64, length: usize) {
        let localoff =
            self.nodes.get(node).and_then(|node| node.layout().ok()).map_or(0, |layout| layout.localoff());
        let Some(first) = offset.checked_sub(localoff) else { return };
        let first = usize::try_from(first).unwrap_or(0) / SECTOR;
        let sectors = first..first + length / SECTOR;
        if node != self.serving {
            self.refused.extend(sectors);
        } else if self.plan.mode == Replication::Memsync
            && self.nodes.get(node).is_some_and(|node| matches!(node.worker, Worker::Secondary(_)))
        {
            // It takes over, and stores what it has received before; there is nobody left who could hear of it.
            for at in sectors {
                self.memory.may_be_lost(at);
            }
        }
    }

    /// Carries out what the node's engine wants.
    pub(crate) fn pump(&mut self, node: usize) {
        loop {
            let Some(n) = self.nodes.get_mut(node) else { return };
            let Some(action) = n.poll_action() else { break };
            let incarnation = n.incarnation;
            match action {
                Action::Disk { id, op } => {
                    let covers = n.disk.written();
                    n.in_flight.insert(id, (op, covers));
                    let after = self.latency(2_000);
                    self.schedule(after, Happening::DiskDone { node, incarnation, id });
                }
                Action::Connect(side) => {
                    let after = self.latency(5_000);
                    self.schedule(after, Happening::Connected { node, incarnation, side });
                }
                Action::Send { side, version, message } => {
                    self.mixed_sends(node, &message);
                    let Some(n) = self.nodes.get_mut(node) else { return };
                    self.asked_to_count |=
                        matches!(&message, Message::Mark(Mark { kind: MarkKind::Stale { .. }, .. }));
                    if self.plan.trace {
                        println!("{:>12.6} node {node} sends {message:?}", self.now.as_secs_f64());
                    }
                    let conn = n.conns.get(usize::from(side == Side::In)).copied().flatten();
                    let stages = Stages { compression: Compression::None, checksum: Checksum::None };
                    match (conn, to_wire(&message, version, stages)) {
                        (Some(conn), Ok((head, payload))) => {
                            let mut bytes = head;
                            bytes.extend_from_slice(payload.as_deref().unwrap_or_default());
                            self.transmit(conn, node, bytes);
                        }
                        (None, _) => {}
                        (_, Err(error)) => self.fail(format!("a message cannot be sent: {error}")),
                    }
                }
                Action::Close => self.hang_up(node),
                Action::DirectReads(allowed) => n.direct_reads = allowed,
                Action::Complete { id, result } => self.completed(node, id, result),
                Action::Event(event) => {
                    self.trace(|| format!("node {node}: event {}", event.as_str()));
                    *self.events.entry(event.as_str()).or_insert(0) += 1;
                    self.mixed_event(node, event);
                    if event == Event::Disconnect && node == self.serving {
                        self.memory.doubt_nothing();
                    }
                    if event == Event::SplitBrain && self.excused {
                        self.fail("a split-brain that the original has caused".into());
                    } else if event == Event::SplitBrain && self.asked_to_count {
                        self.excused = true;
                        self.fail("a split-brain that nobody can tell from a real one".into());
                    } else if event == Event::SplitBrain && !self.expect_split {
                        self.fail(format!("node {node} reports a split-brain that nobody caused"));
                    }
                }
                Action::Exit(code) => return self.exited(node, code),
            }
        }
        let Some(n) = self.nodes.get_mut(node) else { return };
        if node == self.serving && !n.is_in_step() {
            // It is not again before it has every answer.
            self.refused.clear();
        }
        if let Some(at) = n.poll_timeout()
            && n.timer.is_none_or(|timer| at < timer)
        {
            n.timer = Some(at);
            let incarnation = n.incarnation;
            let after = at.saturating_sub(self.now);
            self.schedule(after, Happening::Timer { node, incarnation });
        }
    }

    /// The worker of `node` has ended by itself.
    fn exited(&mut self, node: usize, code: i32) {
        self.trace(|| format!("node {node}: worker exits {code}"));
        *self.exits.entry(code).or_insert(0) += 1;
        let was_primary = self.nodes.get(node).is_some_and(Node::is_primary);
        self.mixed_exit(node);
        self.forget_dropped(node, code == 66);
        self.end_worker(node);
        if was_primary {
            self.abandon_requests();
        }
        let Some(n) = self.nodes.get_mut(node) else { return };
        if let Some(role) = n.next_role.take() {
            n.waiting = None;
            return self.set_role(node, role);
        }
        if let Some(conn) = n.waiting.take() {
            return self.answer_first(node, conn.0, conn.1);
        }
        let refused = code == 78 && self.expect_split && !was_primary;
        if was_primary && code == 66 {
            // The disk failed at the worst moment, and the log says that it could not be flushed: the operator
            // starts it again.
            let role = self.nodes.get(node).map_or(Role::Init, |node| node.role);
            return self.schedule(Duration::from_secs(1), Happening::Back { node, role });
        }
        if code != 0 && (was_primary || !(refused || matches!(code, 66 | 75))) {
            self.fail(format!("the worker of node {node} ended with {code}"));
        }
    }

    fn end_worker(&mut self, node: usize) {
        self.hang_up(node);
        if let Some(n) = self.nodes.get_mut(node) {
            n.worker = Worker::None;
            n.incarnation += 1;
            n.in_flight.clear();
        }
    }

    /// The worker of `node` is killed; what its disk was doing gets done, in part, or not. With the power the
    /// cache goes too.
    pub(crate) fn kill(&mut self, node: usize, power: bool) {
        self.trace(|| format!("node {node}: killed{}", if power { ", power lost" } else { "" }));
        let Some(n) = self.nodes.get_mut(node) else { return };
        let was_primary = n.is_primary();
        self.mixed_killed(node);
        self.abandon_disk(node, power);
        if power {
            self.lose_power(node);
        } else {
            self.forget_dropped(node, true);
        }
        let Some(n) = self.nodes.get_mut(node) else { return };
        n.pending = None;
        n.waiting = None;
        n.next_role = None;
        self.end_worker(node);
        if was_primary {
            self.abandon_requests();
            if power && node == self.serving {
                self.memory.unflushed_may_be_lost();
            }
        }
    }

    /// The process is gone, and with it what a failed flush had dropped and nobody has written again. If it was
    /// `killed`, or could not even start with that disk, before it could, nobody else knows; then a node may have
    /// lost what no flush of a client had covered, as after a loss of power. One that ends by itself loses nothing.
    fn forget_dropped(&mut self, node: usize, killed: bool) {
        let counts = self.nodes.get(node).is_some_and(Node::is_primary);
        let Some(n) = self.nodes.get_mut(node) else { return };
        let changed = n.disk.forget_dropped();
        let localoff = n.layout().map_or(0, |layout| usize::try_from(layout.localoff()).unwrap_or(0));
        let sectors: Vec<usize> =
            changed.into_iter().filter_map(|at| at.checked_sub(localoff)).map(|at| at / SECTOR).collect();
        if sectors.is_empty() {
            return;
        }
        self.trace(|| format!("node {node}: sectors {sectors:?} are gone, since a flush failed"));
        if !killed {
            return;
        }
        if counts {
            sectors.iter().for_each(|at| self.memory.may_be_lost(*at));
            self.memory.doubt_open();
        }
        self.mixed_power_lost(node, Vec::new());
    }

    /// The process is gone: what its disk was doing gets done, in part, or not.
    pub(crate) fn abandon_disk(&mut self, node: usize, power: bool) {
        let Some(n) = self.nodes.get_mut(node) else { return };
        for (op, covers) in std::mem::take(&mut n.in_flight).into_values() {
            if power || self.random.one_in(2) {
                n.disk.abandon(&op, &mut self.random);
            } else if !matches!(op, DiskOp::Flush) {
                let _ = n.disk.carry_out(&op, covers, &mut self.random);
            }
        }
    }

    fn lose_power(&mut self, node: usize) {
        let fragile = self.fragile(node);
        let Some(n) = self.nodes.get_mut(node) else { return };
        // L8: a torn sector of metadata ends an original; that is no history of ours.
        let torn = if n.original { Ok(0) } else { n.layout().map(|layout| layout.localoff()) };
        let torn = torn.map_or(4096, |torn| usize::try_from(torn).unwrap_or(0));
        n.disk.lose_power(torn, &mut self.random);
        n.boot += 1;
        self.mixed_power_lost(node, fragile);
    }

    /// The client will hear nothing more of what it asked.
    fn abandon_requests(&mut self) {
        self.requests.clear();
        self.memory.abandon(self.now);
    }

    /// Starts `node` in `role`, or first ends what it is.
    pub(crate) fn set_role(&mut self, node: usize, role: Role) {
        let (now, mode) = (self.now, self.plan.mode);
        let resuid = self.random.number() | 1;
        let Some(n) = self.nodes.get_mut(node) else { return };
        n.role = role;
        n.pending = None;
        if !matches!(n.worker, Worker::None) {
            n.next_role = Some(role);
            n.handle_stop(now);
            return self.pump(node);
        }
        if role == Role::Primary && n.running {
            if let Err(error) = n.start_primary(now, mode, resuid, false) {
                return self.fail(error);
            }
            self.mixed_promoted(node);
        }
        self.trace(|| format!("node {node}: {role}"));
        self.pump(node);
    }

    /// `hastctl role -f primary` on a node without a worker.
    pub(crate) fn promote_by_force(&mut self, node: usize) -> Result<(), String> {
        self.trace(|| format!("node {node}: primary, by force"));
        let (now, mode) = (self.now, self.plan.mode);
        let resuid = self.random.number() | 1;
        let n = self.nodes.get_mut(node).ok_or("no such node")?;
        (n.role, n.running, n.pending) = (Role::Primary, true, None);
        n.start_primary(now, mode, resuid, true)?;
        self.pump(node);
        Ok(())
    }

    pub(crate) fn set_running(&mut self, node: usize, running: bool) {
        if let Some(node) = self.nodes.get_mut(node) {
            node.running = running;
        }
    }

    pub(crate) fn events_of(&self, name: &str) -> u64 {
        self.events.get(name).copied().unwrap_or(0)
    }

    /// How often a worker has ended by itself with `code`.
    pub(crate) fn exits_with(&self, code: i32) -> u64 {
        self.exits.get(&code).copied().unwrap_or(0)
    }

    pub(crate) fn metadata_of(&self, node: usize) -> Result<Metadata, String> {
        self.nodes.get(node).ok_or("no such node")?.metadata()
    }

    /// `hastctl create` on a node that is in role init; what was in its data area stays there.
    pub(crate) fn recreate(&mut self, node: usize) -> Result<(), String> {
        self.trace(|| format!("node {node}: created anew"));
        self.mixed_recreated();
        self.nodes.get_mut(node).ok_or("no such node")?.recreate()
    }

    /// `hastctl discard` on a node that is in role init.
    pub(crate) fn discard(&mut self, node: usize) -> Result<(), String> {
        self.trace(|| format!("node {node}: its changes are given up"));
        self.mixed_recreated();
        self.nodes.get_mut(node).ok_or("no such node")?.discard()
    }

    /// A node that is to come back will be a secondary.
    pub(crate) fn retarget(&mut self, whom: usize) {
        for happening in self.queue.values_mut() {
            if let Happening::Back { node, role } = happening
                && *node == whom
            {
                *role = Role::Secondary;
            }
        }
        if let Some(node) = self.nodes.get_mut(whom) {
            node.role = Role::Secondary;
        }
    }
}

fn n_waits_on(node: Option<&mut Node>, conn: ConnId) -> bool {
    node.is_some_and(|node| node.waiting.is_some_and(|(waiting, _)| waiting == conn))
}
