//! The operator and fate: kills, cuts, stalls, freezes, restarts, planned switches and fail-overs.

use std::time::{Duration, Instant};

use hast_tests::Failure;
use nix::sys::signal::{Signal, kill};

use super::field::{Field, Side, State};
use super::{Mode, RESOURCE};

/// How long a node stays down at most, in milliseconds.
const DOWN: u64 = 2_500;
/// How long the link stays cut at most.
const CUT: u64 = 2_500;
/// How long it stalls, or a process is stopped, at most: beyond the time-out of [`super::STATEMENTS`].
const SILENT: u64 = 5_000;
/// Between two blows, at most.
const PAUSE: u64 = 1_200;
/// For how long a node misses what is written before it is made primary by mistake, at most.
const MISSED: u64 = 1_500;
/// How long the operator waits for the nodes to be in step before it drops a change of roles.
const PATIENCE: Duration = Duration::from_secs(6);

impl Field {
    /// Strikes at random for about this long.
    pub(super) fn storm(&mut self, length: Duration) -> Result<(), Failure> {
        self.pace.change(&mut self.random);
        if self.random.one_in(3) {
            self.promote_the_older()?;
        }
        let end = Instant::now() + length;
        let mut next = self.within(PAUSE);
        while Instant::now() < end {
            self.record.check()?;
            self.recover(Some(Instant::now()))?;
            if Instant::now() >= next {
                self.strike()?;
                self.pace.change(&mut self.random);
                next = self.within(PAUSE);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }

    fn strike(&mut self) -> Result<(), Failure> {
        let (serving, other) = (self.serving, self.serving.other());
        let any = self.random.pick(&Side::BOTH).unwrap_or(Side::A);
        match self.random.below(22) {
            0 | 1 => self.kill_worker(serving),
            2 => self.kill_worker(other),
            3 => {
                self.kill_worker(serving)?;
                self.kill_worker(other)
            }
            4 => self.kill_node(serving),
            5 | 6 => self.kill_node(other),
            7 => {
                self.kill_node(serving)?;
                self.kill_node(other)
            }
            8 => {
                self.say("the connections break");
                self.deeds.cuts += 1;
                self.pair.link.cut();
                if self.link_until.is_none() {
                    self.pair.link.restore();
                }
                Ok(())
            }
            9 | 10 => {
                self.say("the link is cut");
                self.deeds.cuts += 1;
                self.pair.link.cut();
                self.link_until = Some(self.within(CUT));
                Ok(())
            }
            11 | 12 if self.link_until.is_none() => {
                self.say("the link stalls");
                self.deeds.stalls += 1;
                self.pair.link.stall();
                self.link_until = Some(self.within(SILENT));
                Ok(())
            }
            13 | 14 => self.freeze(any),
            15 => self.restart(any),
            16 | 17 => self.switch_over(),
            18..=20 => self.fail_over(),
            21 => self.promote_the_older(),
            _ => Ok(()),
        }
    }

    fn kill_worker(&mut self, side: Side) -> Result<(), Failure> {
        if !self.is_up(side) {
            return Ok(());
        }
        if let Some(worker) = self.worker(side)? {
            self.say(format!("the worker of node {}, {worker}, is killed", self.node(side).name()));
            self.deeds.kills += 1;
            // It may have ended by itself meanwhile.
            let _ = kill(worker, Signal::SIGKILL);
        }
        Ok(())
    }

    fn kill_node(&mut self, side: Side) -> Result<(), Failure> {
        if matches!(self.state(side), State::Down { .. }) {
            return Ok(());
        }
        let until = self.within(DOWN);
        self.kill(side, until)
    }

    /// Stops the supervisor, the worker, or both, for a while.
    fn freeze(&mut self, side: Side) -> Result<(), Failure> {
        if !self.is_up(side) {
            return Ok(());
        }
        let supervisor = self.node(side).pid()?;
        let worker = self.worker(side)?;
        let part = self.random.below(3);
        let mut stopped = Vec::new();
        if part != 1 {
            stopped.push(supervisor);
        }
        if part != 0 {
            stopped.extend(worker);
        }
        self.say(format!("node {}: {stopped:?} are stopped", self.node(side).name()));
        for pid in &stopped {
            // A worker may have ended by itself meanwhile.
            let _ = kill(*pid, Signal::SIGSTOP);
        }
        self.deeds.freezes += 1;
        let until = self.within(SILENT);
        self.set_state(side, State::Frozen { until, stopped });
        Ok(())
    }

    /// Ends a node as rc(8) does. It comes back later.
    fn restart(&mut self, side: Side) -> Result<(), Failure> {
        if !self.is_up(side) {
            return Ok(());
        }
        self.say(format!("node {} is stopped by SIGTERM", self.node(side).name()));
        self.deeds.restarts += 1;
        let status = self.node_mut(side).stop()?;
        if status.code() != Some(0) {
            let name = self.node(side).name();
            return Failure::because(format!("hastd on node {name}, told to stop, ended with {status}"));
        }
        let until = self.within(DOWN);
        self.set_state(side, State::Down { until });
        Ok(())
    }

    /// Waits a while for nothing to be wrong and the nodes to be in step.
    fn may_change_roles(&mut self) -> Result<bool, Failure> {
        let end = Instant::now() + PATIENCE;
        while Instant::now() < end {
            self.record.check()?;
            self.recover(Some(Instant::now()))?;
            if self.is_calm() && self.is_in_step()? {
                return Ok(true);
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(false)
    }

    /// A planned change of roles. If the old primary turns out to have written alone, it stays what it was.
    fn switch_over(&mut self) -> Result<(), Failure> {
        let (old, new) = (self.serving, self.serving.other());
        let before = self.localcnt(old)?;
        if !self.may_change_roles()? || self.localcnt(old)? != before {
            return Ok(());
        }
        self.say(format!("switch over to node {}", self.node(new).name()));
        self.node(old).role("secondary", RESOURCE)?;
        if self.localcnt(old)? != before {
            self.say("the old primary was written alone: back");
            return self.node(old).role("primary", RESOURCE);
        }
        self.serving = new;
        self.deeds.switches += 1;
        self.node(new).role("primary", RESOURCE)
    }

    /// The primary's node dies and the other takes over, having been complete and in step. If the dead one
    /// turns out to have written alone, it is the one to come back.
    fn fail_over(&mut self) -> Result<(), Failure> {
        let (old, new) = (self.serving, self.serving.other());
        let before = self.localcnt(old)?;
        if !self.may_change_roles()? || self.localcnt(old)? != before {
            return Ok(());
        }
        let until = self.within(DOWN);
        self.kill(old, until)?;
        if self.localcnt(old)? != before {
            self.say("the dead primary was written alone: it will be back");
            return Ok(());
        }
        self.record.wait_nothing_open()?;
        if self.mode == Mode::Async {
            // hast.conf(5): what was acknowledged and not flushed may be lost with the primary.
            self.record.unflushed_may_be_lost();
        }
        self.say(format!("fail over to node {}", self.node(new).name()));
        self.serving = new;
        self.deeds.failovers += 1;
        self.node(new).role("primary", RESOURCE)
    }

    /// A node is killed, misses what is written meanwhile, and is made primary by mistake, and the other one
    /// secondary. It must find out, and serve what the other one has.
    fn promote_the_older(&mut self) -> Result<(), Failure> {
        let (newer, older) = (self.serving, self.serving.other());
        if !self.is_calm() {
            return Ok(());
        }
        self.kill_node(older)?;
        self.pace.resume();
        let end = self.within(MISSED);
        while Instant::now() < end {
            self.record.check()?;
            std::thread::sleep(Duration::from_millis(10));
        }
        // Written before it has heard of the newer node, it would make a split-brain.
        self.pace.silence();
        self.record.wait_nothing_open()?;
        self.say(format!("node {} is made primary, though it is older", self.node(older).name()));
        self.node(newer).role("secondary", RESOURCE)?;
        self.start(older)?;
        let told = self.node(older).hastctl(&["role", "primary", RESOURCE])?;
        if told.code != 0 {
            if !told.stderr.contains("error 70 ") {
                return told.ok("promoting the older node").map(drop);
            }
            self.say("it knows that it is out of date, and refuses");
            self.node(older).role("secondary", RESOURCE)?;
            return self.node(newer).role("primary", RESOURCE);
        }
        self.serving = older;
        self.deeds.mistakes += 1;
        self.wait("the older node to be connected", Field::is_connected)?;
        self.record.may_refuse(true);
        self.pace.resume();
        if self.random.one_in(2) {
            self.kill_worker(older)?;
        }
        self.wait("the older node to be up to date", Field::is_in_step)?;
        self.record.may_refuse(false);
        Ok(())
    }

    /// Everything works again; waits until the nodes are connected, while the clients go on.
    pub(super) fn calm(&mut self) -> Result<(), Failure> {
        self.say("calm");
        self.pace.change(&mut self.random);
        self.recover(None)?;
        self.wait("the nodes to be connected", Field::is_in_step)
    }

    /// Waits for something that must come now that everything works.
    pub(super) fn wait(
        &self,
        what: &str,
        probe: impl Fn(&Field) -> Result<bool, Failure>,
    ) -> Result<(), Failure> {
        self.record.wait(what, || probe(self))
    }
}
