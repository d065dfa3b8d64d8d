//! The observer: sees both disks and every answer, and knows what was promised (spec/durability.md).
//!
//! For each extent it keeps the values that a read may give. A write adds its value, an acknowledgement
//! leaves only that one. What a mode or a loss of power permits to be lost is added again, and nothing else:
//!
//! - a loss of power of the primary takes what no flush of a client had covered, like that of any disk; one of
//!   another node takes from it what the primary still holds, and what nobody else holds unless flushed;
//! - what async and memsync acknowledge before the secondary has stored it may go with the primary, as long as
//!   no count that covers it is durable;
//! - what the administrator's `create` gives up.
//!
//! A node that is made primary while only the other one holds something cannot know that: what it answers
//! until they meet is not judged. What the other one holds must still be there after that, or a split-brain
//! be found.

use hast_engine::Half;

use crate::play::{Play, to_synchronise};
use crate::state::{EXTENTS, Ended, Extents, Link, NodeId, Says, Stage, State, Step, Value, bit, other};

/// A value as a bit.
fn one(value: Value) -> u16 {
    1 << value
}

impl Play<'_> {
    /// The client asks for a write.
    pub(crate) fn invoked(&mut self, extent: usize, value: Value) {
        self.state.ghost.may[extent] |= one(value);
    }

    /// Only `p` was given the write, or the other node did not confirm it.
    pub(crate) fn given_alone(&mut self, p: NodeId, at: usize) {
        let Some(extent) = self.extent_of(p, at) else { return };
        self.state.ghost.changed[p] |= bit(extent);
    }

    /// The secondary has confirmed the write.
    pub(crate) fn confirmed(&mut self, p: NodeId, at: usize) {
        let Some(engine) = &self.state.nodes[p].primary else { return };
        let Some(write) = engine.writes.get(at) else { return };
        let latest = !engine.writes.iter().skip(at + 1).any(|later| later.extent == write.extent);
        if latest {
            let extent = bit(write.extent.into());
            // Each node that has it holds something newer.
            let here = write.local == Half::Done;
            self.state.ghost.alone[p] &= !extent;
            if here {
                self.state.ghost.alone[other(p)] &= !extent;
            }
            self.state.ghost.loose &= !extent;
        }
    }

    /// The client hears that the write is complete.
    pub(crate) fn acknowledged(&mut self, p: NodeId, at: usize) {
        let up = self.state.is_up();
        let Some(engine) = &self.state.nodes[p].primary else { return };
        let Some(&write) = engine.writes.get(at) else { return };
        let extent = bit(write.extent.into());
        self.uncover(p, extent);
        let ghost = &mut self.state.ghost;
        ghost.may[usize::from(write.extent)] = one(write.value);
        ghost.flushed &= !extent;
        match write.remote {
            Half::Done if write.local == Half::Done => ghost.alone[other(p)] &= !extent,
            Half::Done => {}
            Half::Awaited => ghost.loose |= extent,
            Half::NotAsked | Half::Failed(_) | Half::Lost => {
                ghost.alone[p] |= extent;
                ghost.should_know[other(p)] |= up;
            }
        }
    }

    /// The disk of `p` failed to write `extent`: what a flush promised there is where the other node has it
    /// durably, or nowhere.
    pub(crate) fn destroyed(&mut self, p: NodeId, extent: usize) {
        let there = &self.state.nodes[other(p)].disk.data[extent];
        if there.outcomes() == 1 && one(there.now) & self.state.ghost.may[extent] != 0 {
            return;
        }
        self.state.ghost.flushed &= !bit(extent);
        self.uncover(p, bit(extent));
    }

    /// No flush under way speaks for `extents`.
    fn uncover(&mut self, p: NodeId, extents: Extents) {
        let Some(engine) = &mut self.state.nodes[p].primary else { return };
        if let Some(run) = &mut engine.flush {
            run.covers &= !extents;
        }
        for ended in [&mut engine.counting, &mut engine.marking].into_iter().flatten() {
            ended.covers &= !extents;
        }
    }

    /// A rise of localcnt is durable: whatever was acknowledged so far can be known of.
    pub(crate) fn counted(&mut self) {
        let Some(p) = self.state.primary() else { return };
        let loose = std::mem::take(&mut self.state.ghost.loose);
        self.state.ghost.alone[p] |= loose;
    }

    /// The secondary failed to flush `extent`.
    pub(crate) fn may_be_lost_there(&mut self, extent: usize) {
        let Some(p) = self.state.primary() else { return };
        self.state.ghost.changed[p] |= bit(extent);
        self.state.ghost.loose |= bit(extent);
    }

    /// A client's flush ends without the secondary: what that one may lose counts as the primary's alone.
    pub(crate) fn may_lack_there(&mut self, p: NodeId) {
        let Some(engine) = &self.state.nodes[p].primary else { return };
        let extents = engine.map.not_durable().iter().fold(0, |bits, extent| bits | bit(*extent as usize));
        let unknown = if engine.map_complete { 0 } else { self.all() };
        self.state.ghost.changed[p] |= unknown | extents | to_synchronise(engine) & !engine.stale;
    }

    /// A client's flush is complete. What the secondary, which failed it, may lose of that it has to know.
    pub(crate) fn client_flushed(&mut self, p: NodeId, ended: Ended) {
        let (s, up) = (other(p), self.state.is_up());
        self.settled(p, ended.covers);
        let lacks = |extent: usize| {
            let (data, may) = (&self.state.nodes[s].disk.data[extent], self.state.ghost.may[extent]);
            let mut values = data.older.iter().chain([&data.now]);
            ended.covers & bit(extent) != 0 && values.any(|value| one(*value) & may == 0)
        };
        let only_here = |extent: &usize| {
            let may = self.state.ghost.may[*extent];
            ended.covers & bit(*extent) != 0
                && one(self.holds(p, *extent)) & may != 0
                && one(self.holds(s, *extent)) & may == 0
        };
        let only_here = self.extents().filter(only_here).fold(0, |bits, extent| bits | bit(extent));
        let told = up && ended.remote == Says::Failed && self.extents().any(lacks);
        self.state.ghost.should_know[s] |= told;
        self.state.ghost.flushed |= ended.covers;
        self.state.ghost.alone[p] |= only_here;
        self.state.ghost.changed[p] |= only_here;
    }

    /// What the primary holds in `extents` is durable, and the client was told so: nothing older is right any more, whatever
    /// a loss of power or the mode had permitted before.
    fn settled(&mut self, p: NodeId, extents: Extents) {
        let Some(engine) = &self.state.nodes[p].primary else { return };
        let elsewhere = engine.stale | engine.turning_extents();
        let under_way = |extent: usize| engine.writes.iter().any(|write| usize::from(write.extent) == extent);
        let settled = |extent: &usize| extents & !elsewhere & bit(*extent) != 0 && !under_way(*extent);
        let settled: Vec<usize> = self.extents().filter(settled).collect();
        for extent in settled {
            let value = self.holds(p, extent);
            let may = &mut self.state.ghost.may[extent];
            if *may & one(value) != 0 {
                *may &= u16::MAX << value;
            }
        }
    }

    /// A planned end of the primary role: what the connected secondary lacks it has to know.
    pub(crate) fn role_ended(&mut self, p: NodeId) {
        let up = self.state.is_up();
        self.state.ghost.should_know[other(p)] |= up && self.state.ghost.alone[p] != 0;
    }

    /// The client has read `value`.
    pub(crate) fn was_read(&mut self, p: NodeId, extent: usize, value: Value) {
        let ghost = &mut self.state.ghost;
        ghost.seen.wrong_read |= ghost.behind[p] & bit(extent) == 0 && ghost.may[extent] & one(value) == 0;
    }

    /// The secondary has written down that it alone has `extent`: the primary's disk says nothing of it.
    pub(crate) fn written_down_there(&mut self, s: NodeId, extent: usize) {
        let known = self.state.nodes[other(s)].disk.meta.now.stale;
        self.state.ghost.alone[s] |= bit(extent) & !known;
        self.state.ghost.changed[s] |= bit(extent);
    }

    /// The primary's metadata say it now.
    pub(crate) fn written_down_here(&mut self, p: NodeId, stale: Extents) {
        self.state.ghost.alone[other(p)] &= !stale;
    }

    /// A primary begins with what its disk says. What the other node alone has written down for it, it hears of when
    /// they meet.
    pub(crate) fn begins_again(&mut self, p: NodeId) {
        for extent in self.extents() {
            let value = one(self.holds(p, extent));
            let stale = self.state.nodes[p].primary.as_ref().map_or(0, |engine| engine.stale);
            let ghost = &mut self.state.ghost;
            if (value & ghost.may[extent] | u16::from(stale & bit(extent))) == 0
                && ghost.alone[other(p)] & bit(extent) != 0
            {
                ghost.behind[p] |= bit(extent);
            }
        }
    }

    /// `extent` was copied.
    pub(crate) fn copied(&mut self, from: NodeId, to: NodeId, extent: usize) {
        let ghost = &mut self.state.ghost;
        ghost.should_know[to] |= ghost.alone[from] != 0;
        ghost.alone[from] &= !bit(extent);
        ghost.loose &= !bit(extent);
        let before = ghost.changed[from];
        ghost.changed[from] &= !bit(extent);
        ghost.window |= before != 0 && ghost.changed[from] == 0;
    }

    /// The counts are equal on both nodes.
    pub(crate) fn equalised(&mut self) {
        self.state.ghost.should_know = [false; 2];
        self.state.ghost.window = false;
    }

    /// The primary is gone, and with it what it alone remembered.
    pub(crate) fn primary_gone(&mut self, p: NodeId) {
        let loose = std::mem::take(&mut self.state.ghost.loose);
        for extent in (0..EXTENTS).filter(|extent| loose & bit(*extent) != 0) {
            let there = self.holds(other(p), extent);
            self.state.ghost.may[extent] |= one(there);
        }
    }

    /// `node` has lost power; it held `before`, and was primary if it `served`. What was flushed must not be lost: if
    /// the other node has it, that one alone has it now.
    pub(crate) fn fell_back(&mut self, node: NodeId, before: [Value; EXTENTS], served: bool) {
        for extent in self.extents() {
            let (was, is) = (one(before[extent]), one(self.holds(node, extent)));
            let there = one(self.holds(other(node), extent));
            let flushed = self.state.ghost.flushed & bit(extent) != 0;
            let ghost = &mut self.state.ghost;
            let may = &mut ghost.may[extent];
            if was != is {
                ghost.fell_back[node] |= bit(extent);
            }
            let lost = was & *may != 0 && is & *may == 0;
            if !lost {
                continue;
            }
            if flushed && there & *may != 0 {
                ghost.alone[other(node)] |= bit(extent);
                ghost.changed[other(node)] |= bit(extent);
            } else if !flushed && (served || there & *may == 0) {
                *may |= is;
            }
        }
    }

    /// A failed flush has dropped what the secondary had: it kept power, and so has to know what it lacks.
    pub(crate) fn dropped_itself(&mut self, s: NodeId, before: [Value; EXTENTS]) {
        for extent in self.extents() {
            let (was, is) = (one(before[extent]), one(self.holds(s, extent)));
            let there = one(self.holds(other(s), extent));
            let ghost = &mut self.state.ghost;
            let may = &mut ghost.may[extent];
            if was & *may != 0 && is & *may == 0 {
                if there & *may != 0 {
                    ghost.alone[other(s)] |= bit(extent);
                    ghost.changed[other(s)] |= bit(extent);
                    ghost.should_know[s] = true;
                } else {
                    *may |= is;
                }
            }
        }
    }

    /// The disk of `node` was set back; it held `before`. What it alone had is lost; what the other one has, that one
    /// alone has now.
    pub(crate) fn rolled_back(&mut self, node: NodeId, before: [Value; EXTENTS]) {
        for extent in self.extents() {
            let (was, is) = (one(before[extent]), one(self.holds(node, extent)));
            let there = one(self.holds(other(node), extent));
            let ghost = &mut self.state.ghost;
            let may = &mut ghost.may[extent];
            if was == is {
                continue;
            }
            ghost.fell_back[node] |= bit(extent);
            if is & *may != 0 {
                continue;
            }
            ghost.alone[node] &= !bit(extent);
            if there & *may == 0 {
                *may |= is | there;
                ghost.flushed &= !bit(extent);
            } else {
                ghost.alone[other(node)] |= bit(extent);
                ghost.changed[other(node)] |= bit(extent);
            }
        }
        self.state.ghost.should_know[node] = false;
    }

    /// The administrator gives the copy of `node` up.
    pub(crate) fn copy_given_up(&mut self, node: NodeId) {
        let all = self.all();
        let kept: Vec<Value> = self.extents().map(|extent| self.holds(other(node), extent)).collect();
        let ghost = &mut self.state.ghost;
        let mut only_there = 0;
        for (extent, value) in kept.into_iter().enumerate() {
            ghost.may[extent] |= one(value);
            only_there |= if value == 0 { 0 } else { bit(extent) };
        }
        ghost.alone[node] = 0;
        ghost.changed[node] = 0;
        ghost.changed[other(node)] |= only_there;
        ghost.fell_back[node] = all;
        ghost.should_know[node] = false;
    }

    /// `node` is primary now, with what it has.
    /// What it knew to be right on the other node alone, `given_up`, its administrator wants nevertheless.
    pub(crate) fn promoted_with(&mut self, node: NodeId, forced: bool, given_up: Extents) {
        let mut knew = false;
        for extent in self.extents() {
            let value = one(self.holds(node, extent));
            let stale = self.state.nodes[node].primary.as_ref().map_or(0, |engine| engine.stale);
            let ghost = &mut self.state.ghost;
            if value & ghost.may[extent] != 0 || stale & bit(extent) != 0 {
                continue;
            }
            if given_up & bit(extent) != 0 {
                ghost.may[extent] |= value;
                ghost.alone[other(node)] &= !bit(extent);
            } else if ghost.alone[other(node)] & bit(extent) != 0 {
                ghost.behind[node] |= bit(extent);
                knew |= ghost.should_know[node];
            } else if ghost.fell_back[node] & !ghost.flushed & bit(extent) != 0 {
                ghost.may[extent] |= value;
            }
        }
        self.state.ghost.seen.promoted_outdated = knew && !forced;
        // By force its mark is gone: it does not know any more what it missed.
        self.state.ghost.should_know[node] &= !forced;
    }

    /// The secondary has taken the resuid over: until the counts are equal it does not know the primary's.
    pub(crate) fn met(&mut self) {
        self.state.ghost.window = true;
    }

    /// Both nodes have agreed that they belong together.
    pub(crate) fn together(&mut self) {
        let ghost = &mut self.state.ghost;
        ghost.seen.missed_split = ghost.alone[0] != 0 && ghost.alone[1] != 0;
    }

    /// The handshake says split-brain. A secondary that was written alone before it ever met the other node does
    /// so whatever the other one did (C5).
    pub(crate) fn split_brain_found(&mut self, never_met: bool) {
        let set_back = self.state.left.rollbacks != self.world.budget.rollbacks;
        let ghost = &mut self.state.ghost;
        let both = ghost.changed[0] != 0 && ghost.changed[1] != 0;
        ghost.seen.split = both;
        ghost.seen.split_in_window = !both && ghost.window;
        ghost.seen.split_before_meeting = !both && !ghost.window && never_met;
        ghost.seen.invented_split = !both && !ghost.window && !never_met && !set_back;
    }

    fn extent_of(&self, p: NodeId, at: usize) -> Option<usize> {
        let engine = self.state.nodes[p].primary.as_ref()?;
        engine.writes.get(at).map(|write| write.extent.into())
    }
}

/// What a read of `extent` would give, if it is answered and nothing is under way there.
fn read(state: &State, extent: usize) -> Option<Value> {
    let p = state.primary()?;
    let engine = state.nodes[p].primary.as_ref()?;
    let busy = |write: &crate::state::Write| {
        usize::from(write.extent) == extent && !matches!(write.stage, Stage::Completed { .. })
    };
    if engine.writes.iter().any(busy) {
        return None;
    }
    let from = if (engine.stale | engine.turning_extents()) & bit(extent) == 0 {
        p
    } else {
        let under_way = |write: &crate::state::Write| {
            usize::from(write.extent) == extent && write.remote == Half::Awaited
        };
        // What the secondary has failed is known by the time that its answer is.
        if !state.is_up() || engine.writes.iter().any(under_way) {
            return None; // parked, or behind that write
        }
        other(p)
    };
    Some(state.nodes[from].disk.data[extent].now)
}

/// No read gives anything but what was promised.
#[must_use]
pub fn reads_are_right(state: &State, extents: usize) -> bool {
    let Some(p) = state.primary() else { return !state.ghost.seen.wrong_read };
    !state.ghost.seen.wrong_read
        && (0..extents).all(|extent| {
            state.ghost.behind[p] & bit(extent) != 0
                || read(state, extent).is_none_or(|value| one(value) & state.ghost.may[extent] != 0)
        })
}

/// Nodes that say that they are in step, with nothing under way, hold the same, and what was promised.
#[must_use]
pub fn in_step_is_equal(state: &State, extents: usize) -> bool {
    if !is_in_step(state) {
        return true;
    }
    (0..extents).all(|extent| {
        let [a, b] = [0, 1].map(|node| state.nodes[node].disk.data[extent].now);
        a == b && one(a) & state.ghost.may[extent] != 0
    })
}

/// Whether the primary says "in step" and "clean".
#[must_use]
pub fn is_in_step(state: &State) -> bool {
    let Some(p) = state.primary() else { return false };
    let Some(engine) = &state.nodes[p].primary else { return false };
    matches!(state.link, Link::Up { .. })
        && !engine.session
        && engine.step == Step::Copying
        && engine.writes.is_empty()
        && engine.read.is_none()
        && to_synchronise(engine) == 0
}
