//! What is right on the secondary alone, or is about to be (S1), and reads, which are answered there (R1). Which
//! extents are turning the engine's `Turning` says.

use hast_format::activemap::Outcome;

use crate::play::{Play, to_synchronise};
use crate::state::{Engine, Extents, NodeId, Read, Reading, Stage, There, Value, Write, bit, other};
use crate::variant::Variant;

impl Engine {
    /// Whether no write is complete without the secondary.
    pub(crate) fn rests_on_secondary(&self) -> bool {
        self.target || self.unable_to_record || self.relying != crate::state::Relying::No
    }

    /// Whether the secondary is known to hold all that was ever complete, durably.
    fn secondary_has_all(&self) -> bool {
        self.target || self.unable_to_record
    }

    /// Whether a read, or what is written back for it, holds `extent`.
    pub(crate) fn reads(&self, extent: usize) -> bool {
        self.read.is_some_and(|read| usize::from(read.extent) == extent)
    }

    /// `extent` is right here again; true if it was stale.
    pub(crate) fn no_longer_stale(&mut self, extent: usize) -> bool {
        let was = self.stale & bit(extent) != 0;
        self.lone &= !bit(extent);
        self.stale &= !bit(extent);
        was
    }

    /// Whether the secondary has yet to store what is complete of `extent`.
    pub(crate) fn is_owed(&self, extent: usize) -> bool {
        self.writes.iter().any(|write| write.is_owed(extent as u32))
    }

    /// The extents that are turning.
    pub(crate) fn turning_extents(&self) -> Extents {
        self.turning.iter().fold(0, |bits, extent| bits | bit(extent as usize))
    }
}

impl Play<'_> {
    /// What the metadata call stale, or may.
    pub(crate) fn called_stale(&self, p: NodeId) -> Extents {
        let node = &self.state.nodes[p];
        node.primary.as_ref().map_or(0, |engine| engine.stale) | node.disk.meta.now.stale
    }

    /// The connected secondary is about to be the only one that is right in `extent`, if it is.
    pub(crate) fn turn(&mut self, p: NodeId, extent: usize) {
        let up = self.state.is_up();
        let Some(engine) = self.engine(p) else { return };
        if up && (engine.stale | to_synchronise(engine)) & bit(extent) == 0 {
            engine.turning.begin(extent as u32);
        }
    }

    /// Our copy of `extent` is no good any more, or not wanted: it is called stale once all that the secondary has
    /// acknowledged of it is durable there.
    pub(crate) fn give_up(&mut self, p: NodeId, extent: usize) {
        let (up, original) = (self.state.is_up(), self.breaks(Variant::S1));
        let Some(engine) = self.engine(p) else { return };
        let has_all = engine.secondary_has_all();
        if has_all || original {
            let behind = Play::behind(engine) & bit(extent) != 0;
            engine.save = true;
            if !behind && self.note_stale(p, extent) && !has_all {
                self.lies_there_alone(p, extent);
            }
        } else if up {
            self.turn(p, extent);
            if let Some(engine) = self.engine(p) {
                engine.turning.give_up(extent as u32);
            }
        }
    }

    /// Adds `extent` to those that are right on the secondary alone, unless it has yet to store what is complete.
    pub(crate) fn note_stale(&mut self, p: NodeId, extent: usize) -> bool {
        let up = self.state.is_up();
        let Some(engine) = self.engine(p) else { return false };
        if engine.is_owed(extent) {
            return false;
        }
        if engine.stale & bit(extent) == 0 {
            engine.stale |= bit(extent);
            engine.map.mark_dirty(extent as u32);
            if up {
                self.begin_session(p);
            }
        }
        true
    }

    fn lies_there_alone(&mut self, p: NodeId, extent: usize) {
        if let Some(engine) = self.engine(p) {
            engine.lone |= bit(extent);
        }
    }

    /// The secondary has flushed: what was given up before that is stale now.
    pub(crate) fn given_up_becomes_stale(&mut self, p: NodeId) {
        let given_up = self.engine(p).map(|engine| engine.turning.covered_and_given_up());
        for extent in given_up.into_iter().flatten() {
            if self.note_stale(p, extent as usize) {
                self.state.ghost.seen.turned = true;
                if let Some(engine) = self.engine(p) {
                    engine.save = true;
                }
            }
            if let Some(engine) = self.engine(p) {
                engine.turning.was_given_up(extent);
            }
        }
    }

    /// A flush has ended, and those that waited for it have been judged.
    pub(crate) fn end_turning(&mut self, p: NodeId) {
        let up = self.state.is_up();
        let Some(engine) = self.engine(p) else { return };
        for extent in engine.turning.flush_ended() {
            let Some(engine) = self.engine(p) else { return };
            if engine.stale & bit(extent as usize) == 0 {
                engine.map.mark_dirty(extent);
                if up {
                    self.begin_session(p);
                }
            }
        }
    }

    /// What may have been dropped here turns, if the secondary has it.
    pub(crate) fn turn_dropped(&mut self, p: NodeId) {
        let dropped: Vec<u32> = self.state.nodes[p].durable.dropped().iter().collect();
        for extent in dropped {
            if self.engine(p).is_some_and(|engine| !engine.turning.contains(extent)) {
                self.turn(p, extent as usize);
            }
        }
    }

    // ---- reads

    /// Whether `extent` makes no sense without the secondary.
    fn needs_secondary(engine: &Engine, extent: usize) -> bool {
        (engine.stale | engine.turning_extents()) & bit(extent) != 0
    }

    /// Whether the client may begin a read of `extent`, which our disk fails if `bad`. One that would wait for a
    /// secondary that is not there, or fail, tells nothing.
    pub(crate) fn takes_read(&self, engine: &Engine, extent: usize, bad: bool) -> bool {
        let held = |write: &Write| {
            usize::from(write.extent) == extent && !matches!(write.stage, Stage::Completed { .. })
        };
        if engine.read.is_some() || engine.writes.iter().any(held) {
            return false;
        }
        let (up, needs) = (self.state.is_up(), Play::needs_secondary(engine, extent));
        if bad { up && !needs && Play::behind(engine) & bit(extent) == 0 } else { up || !needs }
    }

    /// The client reads a whole extent.
    pub(crate) fn begin_read(&mut self, p: NodeId, extent: usize, bad: bool) {
        let Some(engine) = self.engine(p) else { return };
        if bad {
            engine.read = Some(Read { extent: extent as u8, failed_here: true, stage: Reading::Owed });
            self.read_remotely(p);
        } else {
            self.issue_read(p, extent);
        }
    }

    fn issue_read(&mut self, p: NodeId, extent: usize) {
        let up = self.state.is_up();
        let Some(engine) = self.engine(p) else { return };
        if !Play::needs_secondary(engine, extent) {
            engine.read = None;
            let value = self.holds(p, extent);
            self.was_read(p, extent, value);
        } else if up {
            engine.read = Some(Read { extent: extent as u8, failed_here: false, stage: Reading::Owed });
            self.read_remotely(p);
        } else {
            engine.read = None; // it waits, and is another read when the secondary is here
        }
    }

    /// R1: the secondary is asked once it has stored all that is complete.
    fn read_remotely(&mut self, p: NodeId) {
        let original = self.breaks(Variant::R1);
        let Some(engine) = self.engine(p) else { return };
        let Some(read) = engine.read else { return };
        let owed = engine.is_owed(read.extent.into()) && !original;
        let stage = if owed { Reading::Owed } else { Reading::Asked };
        engine.read = Some(Read { stage, ..read });
        self.state.ghost.seen.read_again |= owed;
    }

    /// Whether the secondary may read now: it keeps the order of what overlaps.
    pub(crate) fn can_read_there(engine: &Engine) -> bool {
        let under_way = |write: &Write, read: Read| {
            write.extent == read.extent && matches!(write.there, There::Sent | There::Received)
        };
        engine.read.is_some_and(|read| {
            read.stage == Reading::Asked && !engine.writes.iter().any(|write| under_way(write, read))
        })
    }

    /// The secondary has read it.
    pub(crate) fn read_there(&mut self, p: NodeId) {
        self.first_request(p);
        let Some(read) = self.engine(p).and_then(|engine| engine.read) else { return };
        let value = self.holds(other(p), read.extent.into());
        if let Some(engine) = self.engine(p) {
            engine.read = Some(Read { stage: Reading::Answered(value), ..read });
        }
    }

    /// The primary has its answer.
    pub(crate) fn read_answered(&mut self, p: NodeId, value: Value) {
        let original = self.breaks(Variant::R1);
        let Some(engine) = self.engine(p) else { return };
        let Some(read) = engine.read else { return };
        let extent = usize::from(read.extent);
        if Play::behind(engine) & bit(extent) != 0 && !original {
            self.state.ghost.seen.read_again = true;
            match self.engine(p) {
                Some(engine) if read.failed_here => engine.read = None,
                _ => self.issue_read(p, extent),
            }
            return;
        }
        self.was_read(p, extent, value);
        let Some(engine) = self.engine(p) else { return };
        if read.failed_here {
            engine.read = Some(Read { stage: Reading::RepairMap(value), ..read });
            engine.map.start(extent as u32..extent as u32 + 1);
            self.begin_repair(p);
        } else {
            engine.read = None;
        }
    }

    /// Its bit may be durable: the bytes are written back.
    pub(crate) fn begin_repair(&mut self, p: NodeId) {
        let Some(engine) = self.engine(p) else { return };
        let Some(read) = engine.read else { return };
        let Reading::RepairMap(value) = read.stage else { return };
        if engine.map.is_durable(u32::from(read.extent)..u32::from(read.extent) + 1) {
            let stage = Reading::Repair { value, same_connection: true, suspect: false };
            engine.read = Some(Read { stage, ..read });
        }
    }

    /// They were written back, or could not be: then our disk has what it had, which cannot be read or is the same.
    pub(crate) fn repaired(&mut self, p: NodeId, good: bool) {
        let up = self.state.is_up();
        let Some(Read { extent, stage: Reading::Repair { value, same_connection, suspect }, .. }) =
            self.engine(p).and_then(|engine| engine.read.take())
        else {
            return;
        };
        let at = usize::from(extent);
        if good {
            self.stored(p, at, value);
        }
        if suspect {
            self.node(p).durable.may_have_dropped(u32::from(extent)..u32::from(extent) + 1);
            self.turn(p, at);
        } else {
            self.answered(p, at);
        }
        let outcome = match (good, same_connection) {
            (false, _) => {
                self.give_up(p, at);
                Outcome::NotIssued
            }
            (true, true) => Outcome::StoredOnBoth,
            (true, false) => Outcome::Unconfirmed,
        };
        if let Some(engine) = self.engine(p) {
            engine.map.finish(u32::from(extent)..u32::from(extent) + 1, outcome);
        }
        if outcome == Outcome::Unconfirmed && up {
            self.begin_session(p);
        }
    }

    /// The secondary has answered something that was complete already.
    pub(crate) fn end_owed(&mut self, p: NodeId) {
        let up = self.state.is_up();
        let Some(engine) = self.engine(p) else { return };
        let Some(read) = engine.read.filter(|read| read.stage == Reading::Owed) else { return };
        let extent = usize::from(read.extent);
        if !read.failed_here {
            self.issue_read(p, extent);
        } else if up && Play::behind(engine) & bit(extent) == 0 {
            self.read_remotely(p);
        } else {
            engine.read = None; // it fails
        }
    }

    /// The connection is gone, and with it what the secondary was asked.
    pub(crate) fn read_lost(&mut self, p: NodeId) {
        let Some(engine) = self.engine(p) else { return };
        let Some(read) = &mut engine.read else { return };
        match &mut read.stage {
            Reading::Owed | Reading::Asked | Reading::Answered(_) => {
                let (extent, failed_here) = (usize::from(read.extent), read.failed_here);
                engine.read = None;
                if !failed_here {
                    self.issue_read(p, extent);
                }
            }
            Reading::Repair { same_connection, .. } => *same_connection = false,
            Reading::RepairMap(_) => {}
        }
    }
}
