//! The world: what happens next, and what must be true afterwards.

mod connections;
mod requests;
mod workers;

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

use crate::admin::{Administrator, Chore};
use crate::client::Memory;
use crate::disk::{Chances, Region, SECTOR};
use crate::faults::FaultSet;
use crate::mixed::Mixed;
use crate::network::{Conn, ConnId};
use crate::node::{InFlight, Node, Shape, Worker};
use crate::oracle::Oracle;
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
    /// The replication mode, in the beginning.
    pub mode: Replication,
    /// What a storm may do beyond what every storm does.
    pub faults: FaultSet,
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
    /// The replication mode now.
    pub(crate) mode: Replication,
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
    /// What the administrator of a storm with all faults is about to do, and knows.
    pub(crate) admin: Administrator,
    pub(crate) memory: Memory,
    /// What must be true at every step; of pairs with an original nothing is known.
    pub(crate) oracle: Option<Oracle>,
    /// Sectors that the secondary's disk failed to store, of which the primary, in step, has not heard yet.
    pub(crate) refused: BTreeSet<usize>,
    requests: BTreeMap<RequestId, Asked>,
    next_id: u64,
    /// Requests of the client that were answered with an error.
    failed_requests: u64,
    /// Events of the engines, counted by name.
    events: BTreeMap<&'static str, u64>,
    /// How often a worker has ended by itself with each exit status.
    exits: BTreeMap<i32, u64>,
    /// How often a split-brain came of a failover that has lost nothing.
    pub(crate) needless_splits: u64,
    /// Happenings so far.
    happenings: u64,
    failure: Option<String>,
}

/// A client's request.
#[derive(Clone, Debug)]
struct Asked {
    node: usize,
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
        /// Rises from one to the next: what waits for a node that sleeps is queued behind later ones.
        sent: u64,
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
    /// Something that only storms with all faults know.
    Admin(Chore),
}

/// What is wrong with a disk for a while.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Trouble {
    Region(Region),
    Slow,
    DropsEarly,
}

impl World {
    /// Two created providers, node 0 primary and node 1 secondary.
    ///
    /// # Errors
    /// The providers cannot be created.
    pub fn new(plan: Plan) -> Result<World, String> {
        let mut random = Random::new(plan.seed);
        let keepdirty = u32::try_from(random.below(6)).unwrap_or(0) + 1;
        let mixed = plan.originals.contains(&true);
        let no_cache = (plan.scene == Scene::Storm || mixed) && random.one_in(8);
        // The original cannot do with one (spec/on-disk.md).
        let keepdirty = if mixed { keepdirty.max(2) } else { keepdirty };
        let mut originals = plan.originals.into_iter();
        let mut node = || {
            let mut node = Node::created(keepdirty, Shape::of(&plan))?;
            node.original = originals.next().unwrap_or(false);
            // The original runs on FreeBSD, which has no page cache for disks.
            node.disk.keeps = node.original;
            node.disk.no_cache = no_cache && random.one_in(2);
            Ok::<Node, String>(node)
        };
        let mut nodes = [node()?, node()?];
        if plan.scene == Scene::AllFaults {
            nodes.iter_mut().for_each(|node| node.beset(plan.faults, &mut random));
        }
        let bytes = nodes.iter().filter_map(|node| node.data().ok()).map(<[u8]>::len).min();
        let oracle = nodes.first().filter(|_| !mixed).map(Oracle::new).transpose()?;
        let mut memory = Memory::new(bytes.unwrap_or(0) / SECTOR);
        memory.set_firm(Duration::ZERO, plan.mode != Replication::Async);
        Ok(World {
            mode: plan.mode,
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
            admin: Administrator::default(),
            memory,
            oracle,
            refused: BTreeSet::new(),
            requests: BTreeMap::new(),
            next_id: 0,
            failed_requests: 0,
            events: BTreeMap::new(),
            exits: BTreeMap::new(),
            needless_splits: 0,
            happenings: 0,
            failure: None,
        })
    }

    /// How many things have happened.
    #[must_use]
    pub fn happenings(&self) -> u64 {
        self.happenings
    }

    /// How many of the client's requests were answered with an error.
    pub(crate) fn failed_requests(&self) -> u64 {
        self.failed_requests
    }

    /// How often the nodes reported a split-brain, and so refused to go on, after a failover that has lost nothing; the
    /// history ended there.
    #[must_use]
    pub fn needless_splits(&self) -> u64 {
        self.needless_splits
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
            self.look();
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
        if let Some(until) = self.sleeps(&happening) {
            return self.schedule(until.saturating_sub(self.now), happening);
        }
        match happening {
            Happening::DiskDone { node, incarnation, id } => self.disk_done(node, incarnation, id),
            Happening::Arrival { conn, to, bytes, .. } => self.arrival(conn, to, &bytes),
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
            Happening::Admin(chore) => self.do_chore(chore),
            Happening::Client => self.client(),
            Happening::Operator => self.operate(),
            Happening::Back { node, role } => self.back(node, role),
            Happening::NetworkBack => self.network = true,
            Happening::Promote { node, before } => self.promote(node, before),
            Happening::FaultsEnd { node } => {
                if let Some(node) = self.nodes.get_mut(node) {
                    node.disk.chances = Chances::default();
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
        let Some(InFlight { op, covers, done }) = n.in_flight.remove(&id) else { return };
        let result = done.unwrap_or_else(|| n.disk.carry_out(&op, covers, &mut self.random));
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
        } else if self.mode == Replication::Memsync
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
                Action::Disk { id, op } => self.ask_disk(node, id, op),
                Action::Connect(side) => {
                    n.force = false; // the metadata say it by now
                    let after = self.latency(5_000);
                    self.schedule(after, Happening::Connected { node, incarnation, side });
                }
                Action::Send { side, version, message } => {
                    self.mixed_sends(node, &message);
                    if let Err(error) = self.check_sent(node, &message) {
                        self.fail(error);
                    }
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
                Action::Connection { .. } => {}
                Action::DirectReads(allowed) => n.direct_reads = allowed,
                Action::Attached => n.detached = None,
                Action::Detached(metadata) => n.detached = Some(*metadata),
                Action::Complete { id, result } => self.completed(node, id, result),
                Action::Event(event) => {
                    self.trace(|| format!("node {node}: event {}", event.as_str()));
                    *self.events.entry(event.as_str()).or_insert(0) += 1;
                    self.mixed_event(node, event);
                    if event == Event::Connect {
                        self.fork_is_mixed();
                    }
                    self.look_again();
                    if event == Event::Disconnect && node == self.serving {
                        self.memory.doubt_nothing();
                    }
                    if self.admin_hears(node, event) {
                        continue;
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
        if node == self.serving && !n.is_in_step() && self.plan.scene != Scene::AllFaults {
            // It is not again before it has every answer.
            self.refused.clear();
        }
        self.watch_step(node);
        let Some(n) = self.nodes.get_mut(node) else { return };
        if let Some(at) = n.poll_timeout()
            && n.timer.is_none_or(|timer| at < timer)
        {
            n.timer = Some(at);
            let incarnation = n.incarnation;
            let after = at.saturating_sub(self.now);
            self.schedule(after, Happening::Timer { node, incarnation });
        }
    }

    /// The node's engine wants something of its disk.
    fn ask_disk(&mut self, node: usize, id: OpId, op: DiskOp) {
        if let Err(error) = self.check_issued(node, &op) {
            self.fail(error);
        }
        let all_faults = self.plan.scene == Scene::AllFaults;
        let mut after = self.latency(2_000);
        let Some(n) = self.nodes.get_mut(node) else { return };
        let (incarnation, covers) = (n.incarnation, n.disk.written());
        let mut done = None;
        if all_faults {
            if n.drops_early > 0 && matches!(op, DiskOp::Flush) && self.random.one_in(n.drops_early) {
                n.disk.fail_write_back(&mut self.random);
            }
            if n.slow > 0 {
                after += Duration::from_millis(self.random.below(n.slow));
            }
            // Done long before anybody hears of it.
            if matches!(op, DiskOp::Write { .. }) && self.random.one_in(2) {
                done = Some(n.disk.carry_out(&op, covers, &mut self.random));
            }
        }
        n.in_flight.insert(id, InFlight { op, covers, done });
        self.schedule(after, Happening::DiskDone { node, incarnation, id });
    }

    /// Until when the machine sleeps that this would happen on, if it does.
    fn sleeps(&self, happening: &Happening) -> Option<Duration> {
        let node = match happening {
            Happening::DiskDone { node, .. }
            | Happening::Connected { node, .. }
            | Happening::Timer { node, .. } => *node,
            Happening::Arrival { to, .. } | Happening::Broken { to, .. } => *to,
            _ => return None,
        };
        self.nodes.get(node).map(|node| node.asleep_until).filter(|until| *until > self.now)
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
}

fn n_waits_on(node: Option<&mut Node>, conn: ConnId) -> bool {
    node.is_some_and(|node| node.waiting.is_some_and(|(waiting, _)| waiting == conn))
}
