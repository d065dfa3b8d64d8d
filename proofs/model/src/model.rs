//! The model as the checker sees it: what may happen next, what follows, what must hold.

use hast_engine::Half;
use hast_net::Replication;
use stateright::{Model, Property};

use crate::observer::{in_step_is_equal, is_in_step, reads_are_right};
use crate::play::Play;
use crate::state::{Engine, Link, NodeId, Reading, Relying, Stage, State, Step, There, Value, other};
use crate::sync::Fails;
use crate::worlds::World;

/// One thing that happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// The client writes a whole extent.
    Write(usize),
    /// The map write under way is durable.
    MapWritten,
    /// The metadata as it is in memory is durable.
    Saved,
    /// The primary's disk has stored that write.
    StoredHere(usize),
    /// It has failed.
    FailedHere(usize),
    /// The secondary has received it, and said so.
    Received(usize),
    /// The secondary's disk has stored it.
    StoredThere(usize),
    /// The primary hears of that.
    Confirmed(usize),
    /// The secondary's disk failed, and the primary hears of that.
    FailedThere(usize),
    /// A flush begins on both nodes, of a client or not.
    Flush(bool, Fails),
    /// It has ended.
    Flushed,
    /// A node has written again what a failed flush may have dropped.
    Rewritten(NodeId),
    /// The save under way has failed.
    SaveFailed,
    /// The client reads a whole extent, which the primary's disk fails or not.
    Read(usize, bool),
    /// The secondary has read it.
    ReadThere,
    /// The primary hears that.
    ReadAnswered(Value),
    /// What was read is written back, well or not.
    Repaired(bool),
    /// The secondary writes down what the primary's metadata cannot say for this write.
    Told(usize),
    /// The secondary writes down that it may have lost something.
    Doubted,
    /// The primary connects and says who it is.
    Hello,
    /// The secondary compares the counts.
    Decide,
    /// Its first flush fails, and with that the handshake.
    DecideInVain,
    /// The secondary takes the resuid over.
    Adopt,
    /// The primary merges the secondary's map.
    Merge,
    /// The secondary writes down that it is out of date.
    Mark,
    /// An extent is copied.
    Copy(usize),
    /// The secondary writes the equal counts down.
    SyncDone,
    /// The connection breaks.
    Cut,
    /// A node loses power; the disk keeps that one of what it may keep.
    Power(NodeId, usize),
    /// A node's worker is killed.
    Kill(NodeId),
    /// The primary becomes secondary.
    Demote,
    /// A node becomes primary, by force or not.
    Promote(NodeId, bool),
    /// A node's provider is created anew.
    Create(NodeId),
    /// A node's disk is copied.
    Snapshot(NodeId),
    /// That node is set back to the copy.
    RollBack,
}

/// No read gives anything but what was promised.
pub const READS: &str = "an acknowledged write is read";
/// Nodes in step are equal and hold what was promised.
pub const IN_STEP: &str = "nodes that say they are in step are equal and hold every acknowledged write";
/// A split-brain is noticed.
pub const NOT_MISSED: &str = "no split-brain is missed";
/// ... and not made up.
pub const NOT_INVENTED: &str =
    "no split-brain is reported that did not happen, but in the windows of C2 and C5";
/// L6.
pub const REFUSED: &str = "no node that was connected while it missed something becomes primary unforced";
/// G1.
pub const NO_ALARM: &str = "no disk is taken for an older one unless it was set back";
/// What must hold.
pub const SAFETY: [&str; 6] = [READS, IN_STEP, NOT_MISSED, NOT_INVENTED, REFUSED, NO_ALARM];

/// What must happen somewhere in the worlds, or they would show nothing.
pub const SIGHTS: [&str; 10] = [
    "nodes in step after two writes",
    "a split-brain that happened is found",
    "a split-brain in the window of C2",
    "a split-brain in the window of C5",
    "a promotion is refused",
    "a primary that is the target is connected",
    "an extent becomes stale after the secondary's flush",
    "the secondary writes down what the primary cannot",
    "an answer to a read is waited for, or not used",
    "a disk that was set back is found",
];

impl Model for World {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        vec![self.initial()]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        self.of_operator(state, actions);
        let Some(p) = state.primary() else { return };
        self.of_link(state, p, actions);
        self.of_disks(state, p, actions);
        self.of_writes(state, p, actions);
    }

    fn next_state(&self, state: &State, action: Action) -> Option<State> {
        let mut play = Play::new(self, state);
        play.carry_out(action);
        Some(play.settle())
    }

    fn properties(&self) -> Vec<Property<World>> {
        vec![
            Property::always(READS, |world: &World, state: &State| reads_are_right(state, world.extents)),
            Property::always(IN_STEP, |world: &World, state: &State| in_step_is_equal(state, world.extents)),
            Property::always(NOT_MISSED, |_, state: &State| !state.ghost.seen.missed_split),
            Property::always(NOT_INVENTED, |_, state: &State| !state.ghost.seen.invented_split),
            Property::always(REFUSED, |_, state: &State| !state.ghost.seen.promoted_outdated),
            Property::always(NO_ALARM, |_, state: &State| !state.ghost.seen.false_alarm),
            Property::sometimes(SIGHTS[0], |_, state: &State| state.written > 1 && is_in_step(state)),
            Property::sometimes(SIGHTS[1], |_, state: &State| state.ghost.seen.split),
            Property::sometimes(SIGHTS[2], |_, state: &State| state.ghost.seen.split_in_window),
            Property::sometimes(SIGHTS[3], |_, state: &State| state.ghost.seen.split_before_meeting),
            Property::sometimes(SIGHTS[4], |_, state: &State| state.ghost.seen.refused),
            Property::sometimes(SIGHTS[5], |_, state: &State| is_target(state) && state.is_up()),
            Property::sometimes(SIGHTS[6], |_, state: &State| state.ghost.seen.turned),
            Property::sometimes(SIGHTS[7], |_, state: &State| state.ghost.seen.told),
            Property::sometimes(SIGHTS[8], |_, state: &State| state.ghost.seen.read_again),
            Property::sometimes(SIGHTS[9], |_, state: &State| state.ghost.seen.rollback_found),
        ]
    }
}

impl World {
    fn of_operator(&self, state: &State, actions: &mut Vec<Action>) {
        let left = &state.left;
        let p = state.primary();
        for node in [0, 1] {
            if left.powers > 0 {
                let choices = state.nodes[node].disk.outcomes();
                actions.extend((0..choices).map(|choice| Action::Power(node, choice)));
            }
            if left.kills > 0 && (p == Some(node) || state.link != Link::Down) {
                actions.push(Action::Kill(node));
            }
            if left.roles > 0 && p.is_none() {
                actions.push(Action::Promote(node, false));
                if left.forced > 0 {
                    actions.push(Action::Promote(node, true));
                }
            }
            if left.creates > 0 && p != Some(node) && state.link == Link::Down {
                actions.push(Action::Create(node));
            }
            if left.rollbacks > 0 && state.snapshot.is_none() {
                actions.push(Action::Snapshot(node));
            }
        }
        if left.rollbacks > 0 && state.snapshot.as_ref().is_some_and(|snapshot| snapshot.outdated) {
            actions.push(Action::RollBack);
        }
        if let Some(p) = p
            && left.roles > 0
            && Play::new(self, state).is_drained(p)
        {
            actions.push(Action::Demote);
        }
        if left.cuts > 0 && state.link != Link::Down {
            actions.push(Action::Cut);
        }
    }

    fn of_link(&self, state: &State, p: NodeId, actions: &mut Vec<Action>) {
        let play = Play::new(self, state);
        match state.link {
            Link::Down if self.generations && state.left.connects == 0 => {}
            Link::Down => actions.push(Action::Hello),
            Link::Hello { .. } => {
                actions.push(Action::Decide);
                if state.left.flush_faults[1] > 0 {
                    actions.push(Action::DecideInVain);
                }
            }
            Link::FullMap { .. } => actions.push(Action::Adopt),
            Link::Answered { .. } => actions.push(Action::Merge),
            Link::Merging | Link::Marking | Link::Up { .. } => {}
        }
        if play.wants_mark(p) {
            actions.push(Action::Mark);
        }
        actions.extend((0..self.extents).filter(|extent| play.can_copy(p, *extent)).map(Action::Copy));
        let done = state.nodes[p].primary.as_ref().is_some_and(|engine| engine.done.is_some());
        if state.is_up() && done {
            actions.push(Action::SyncDone);
        }
    }

    fn of_disks(&self, state: &State, p: NodeId, actions: &mut Vec<Action>) {
        let Some(engine) = &state.nodes[p].primary else { return };
        if engine.map_writing.is_some() {
            actions.push(Action::MapWritten);
        }
        if engine.save {
            actions.push(Action::Saved);
            if state.left.save_faults > 0 {
                actions.push(Action::SaveFailed);
            }
        }
        if state.nodes[other(p)].doubts {
            actions.push(Action::Doubted);
        }
        let play = Play::new(self, state);
        actions.extend([0, 1].into_iter().filter(|node| play.can_rewrite(p, *node)).map(Action::Rewritten));
        self.of_reads(state, engine, actions);
        if let Some(run) = &engine.flush {
            if !(run.cut_off && state.is_up()) {
                actions.push(Action::Flushed);
            }
            return;
        }
        let left = &state.left;
        if left.flushes > 0 && state.is_up() && left.cuts + left.powers + left.kills > 0 {
            actions.push(Action::Flush(true, Fails::CutOff));
        }
        if engine.writes.iter().any(|write| write.remote == Half::Awaited) {
            return;
        }
        let flushing = |write: &crate::state::Write| matches!(write.stage, Stage::Flushing { .. });
        let wanted = engine.waiting
            || engine.relying == (Relying::Flushing { covered: false })
            || engine.turning_extents() != 0
            || engine.writes.iter().any(flushing)
            || !engine.map.not_durable().is_empty()
            || engine.step == Step::Copying && play.wants_flush(p);
        let cached = |node: NodeId| state.nodes[node].disk.data.iter().any(|data| data.outcomes() > 1);
        if wanted || cached(p) || (state.is_up() && cached(other(p))) {
            self.flushes(state, false, actions);
        }
        if left.flushes > 0 {
            self.flushes(state, true, actions);
        }
    }

    /// A flush, which fails or not.
    fn flushes(&self, state: &State, client: bool, actions: &mut Vec<Action>) {
        actions.push(Action::Flush(client, Fails::Nothing));
        let [here, there] = state.left.flush_faults;
        if there > 0 && state.is_up() {
            actions.push(Action::Flush(client, Fails::There));
        }
        if here > 0 {
            actions.push(Action::Flush(client, Fails::Here));
        }
        if here > 0 && there > 0 && state.is_up() {
            actions.push(Action::Flush(client, Fails::Everywhere));
        }
    }

    fn of_reads(&self, state: &State, engine: &Engine, actions: &mut Vec<Action>) {
        let play = Play::new(self, state);
        if state.left.reads > 0 {
            for extent in 0..self.extents {
                if play.takes_read(engine, extent, false) {
                    actions.push(Action::Read(extent, false));
                }
                if state.left.faults > 0 && play.takes_read(engine, extent, true) {
                    actions.push(Action::Read(extent, true));
                }
            }
        }
        if Play::can_read_there(engine) {
            actions.push(Action::ReadThere);
        }
        match engine.read.map(|read| read.stage) {
            Some(Reading::Answered(value)) => actions.push(Action::ReadAnswered(value)),
            Some(Reading::Repair { .. }) => {
                actions.push(Action::Repaired(true));
                if state.left.faults > 0 {
                    actions.push(Action::Repaired(false));
                }
            }
            _ => {}
        }
    }

    fn of_writes(&self, state: &State, p: NodeId, actions: &mut Vec<Action>) {
        let Some(engine) = &state.nodes[p].primary else { return };
        if state.left.writes > 0 {
            let play = Play::new(self, state);
            let free = |extent: &usize| play.takes_write(engine, *extent);
            actions.extend((0..self.extents).filter(free).map(Action::Write));
        }
        for (at, write) in engine.writes.iter().enumerate() {
            let first = |earlier: &crate::state::Write| {
                earlier.extent == write.extent && matches!(earlier.there, There::Sent | There::Received)
            };
            let blocked = engine.writes.iter().take(at).any(first);
            if write.local == Half::Awaited {
                actions.push(Action::StoredHere(at));
                if state.left.faults > 0 {
                    actions.push(Action::FailedHere(at));
                }
            }
            if write.stage == Stage::Telling {
                actions.push(Action::Told(at));
            }
            if write.remote != Half::Awaited {
                continue;
            }
            let memsync = self.mode == Replication::Memsync;
            match write.there {
                There::Sent if memsync => actions.push(Action::Received(at)),
                There::Sent | There::Received if !blocked => {
                    actions.push(Action::StoredThere(at));
                    if state.left.faults > 0 {
                        actions.push(Action::FailedThere(at));
                    }
                }
                There::Stored => actions.push(Action::Confirmed(at)),
                There::Sent | There::Received | There::NotSent => {}
            }
        }
    }
}

impl Play<'_> {
    fn carry_out(&mut self, action: Action) {
        match action {
            Action::Cut => {
                self.state.left.cuts -= 1;
                return self.close(true);
            }
            Action::Power(node, choice) => return self.power_lost(node, choice),
            Action::Kill(node) => return self.killed(node),
            Action::Promote(node, forced) => return self.promoted(node, forced),
            Action::Create(node) => return self.created(node),
            Action::Snapshot(node) => return self.snapshot(node),
            Action::RollBack => return self.rolled_back_to_snapshot(),
            _ => {}
        }
        let Some(p) = self.state.primary() else { return };
        match action {
            Action::Write(extent) => {
                self.state.left.writes -= 1;
                self.begin_write(p, extent);
            }
            Action::MapWritten => self.map_written(p),
            Action::Saved => self.saved(p),
            Action::StoredHere(at) => self.local_answer(p, at, true),
            Action::FailedHere(at) => {
                self.state.left.faults -= 1;
                self.local_answer(p, at, false);
            }
            Action::Received(at) => self.remote_receives(p, at),
            Action::StoredThere(at) => self.remote_stores(p, at),
            Action::Confirmed(at) => self.remote_answer(p, at, true),
            Action::FailedThere(at) => {
                self.state.left.faults -= 1;
                self.remote_answer(p, at, false);
            }
            Action::SaveFailed => {
                self.state.left.save_faults -= 1;
                self.save_failed(p);
            }
            Action::Flush(client, fails) => {
                let [here, there] = &mut self.state.left.flush_faults;
                *here -= u8::from(fails.is_here());
                *there -= u8::from(fails.is_there());
                self.state.left.flushes -= u8::from(client);
                self.begin_flush(p, client, fails);
            }
            Action::Read(extent, bad) => {
                self.state.left.reads -= 1;
                self.state.left.faults -= u8::from(bad);
                self.begin_read(p, extent, bad);
            }
            Action::ReadThere => self.read_there(p),
            Action::ReadAnswered(value) => self.read_answered(p, value),
            Action::Repaired(good) => {
                self.state.left.faults -= u8::from(!good);
                self.repaired(p, good);
            }
            Action::Told(at) => self.told(p, at, true),
            Action::Doubted => self.doubted(other(p)),
            Action::DecideInVain => self.decide_in_vain(p),
            Action::Flushed => self.end_flush(p),
            Action::Rewritten(node) => self.rewrite(p, node),
            Action::Hello => self.hello(p),
            Action::Decide => {
                if let Link::Hello { virgin, said } = self.state.link {
                    self.decide(p, virgin, said);
                }
            }
            Action::Adopt => {
                if let Link::FullMap { said } = self.state.link {
                    self.adopt(p, said);
                }
            }
            Action::Merge => {
                if let Link::Answered { said, virgin, map, from_secondary, had } = self.state.link {
                    self.merge(p, (said, virgin), map, (from_secondary, had));
                }
            }
            Action::Mark => self.marked(p),
            Action::Copy(extent) => self.copy(p, extent),
            Action::SyncDone => {
                let done = self.engine(p).and_then(|engine| engine.done);
                if let Some(localcnt) = done {
                    self.tell(p, localcnt);
                }
            }
            Action::Demote => self.demoted(p),
            Action::Cut
            | Action::Power(..)
            | Action::Kill(_)
            | Action::Promote(..)
            | Action::Create(_)
            | Action::Snapshot(_)
            | Action::RollBack => {}
        }
    }
}

/// Whether the primary is out of date as a whole.
fn is_target(state: &State) -> bool {
    state.nodes.iter().any(|node| node.primary.as_ref().is_some_and(|engine| engine.target))
}
