//! What happens in a cycle: histories that chance alone would seldom bring about, with chance in their details.

use std::ops::Range;
use std::time::Duration;

use hast_sim::random::Random;
use hast_tests::{Context, Failure};
use nix::sys::signal::{Signal, kill};

use super::disk::{Fault, Kind, Region};
use super::field::{Death, Field};
use super::mount::Slow;
use crate::torture::RESOURCE;
use crate::torture::clients::ask;
use crate::torture::field::Side;
use crate::torture::record::What;

/// A history. Each appears in the list as often as it is to be played among so many.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scene {
    /// The secondary loses power and comes back.
    Secondary,
    /// The primary loses power, or is killed, and comes back.
    Primary,
    /// Both lose power at once; either serves afterwards.
    Both,
    /// The primary dies while they are in step, and the secondary takes over.
    FailOver,
    /// The secondary loses power right after it has acknowledged writes, the primary is flushed alone and dies, and the
    /// secondary is made primary.
    FlushedAlone,
    /// The secondary is away while the primary is used; then the primary dies, and the secondary is made primary.
    Apart,
    /// A planned change of roles, perhaps with a loss of power right after it.
    SwitchOver,
    /// Workers and nodes are killed, the link is cut and comes back.
    Blows,
    /// The secondary comes back, and the primary dies at once.
    JustBack,
}

impl Scene {
    const DECK: [Scene; 16] = [
        Scene::FlushedAlone,
        Scene::FlushedAlone,
        Scene::FlushedAlone,
        Scene::FlushedAlone,
        Scene::Apart,
        Scene::Apart,
        Scene::Both,
        Scene::Both,
        Scene::FailOver,
        Scene::FailOver,
        Scene::Secondary,
        Scene::Primary,
        Scene::SwitchOver,
        Scene::SwitchOver,
        Scene::Blows,
        Scene::JustBack,
    ];

    /// The deck in a random order; of all scenes, or of the one with this name.
    ///
    /// # Errors
    /// There is none.
    pub(super) fn shuffle(random: &mut Random, only: Option<&str>) -> Result<Vec<Scene>, Failure> {
        let mut deck = Scene::DECK.to_vec();
        deck.retain(|scene| only.is_none_or(|only| format!("{scene:?}") == only));
        if deck.is_empty() {
            return Failure::because(format!("no scene {only:?} among {:?}", Scene::DECK));
        }
        for at in (1..deck.len()).rev() {
            let with = usize::try_from(random.below(at as u64 + 1)).unwrap_or(0);
            deck.swap(at, with);
        }
        Ok(deck)
    }
}

impl Field {
    /// Plays one.
    ///
    /// # Errors
    /// Something is lost, or does not work as it must.
    pub(super) fn play(&mut self, scene: Scene) -> Result<(), Failure> {
        let (primary, secondary) = (self.serving, self.serving.other());
        match scene {
            Scene::Secondary => {
                self.die(&[secondary], Death::Power)?;
                self.go_on(600)?;
                self.bring_secondary_back()?;
                self.go_on(300)
            }
            Scene::Primary => {
                let how = self.some_death();
                self.die(&[primary], how)?;
                self.go_on(300)?;
                self.resume()
            }
            Scene::Both => self.both(),
            Scene::FailOver => self.fail_over(),
            Scene::FlushedAlone => self.flushed_alone(),
            Scene::Apart => self.apart(),
            Scene::SwitchOver => self.switch_over(),
            Scene::Blows => self.blows(),
            Scene::JustBack => {
                self.die(&[secondary], Death::Power)?;
                self.go_on(400)?;
                self.bring_secondary_back()?;
                self.go_on(400)?;
                let how = self.some_death();
                self.die(&[primary], how)?;
                self.take_over(false).map(drop)
            }
        }
    }

    /// Everything works again: nodes run, faults are over, and nodes that have parted meet again.
    ///
    /// # Errors
    /// It does not come to that, or something is lost.
    pub(super) fn calm(&mut self) -> Result<(), Failure> {
        self.say("calm");
        self.mend_disks();
        self.pair.link.restore();
        self.keep_role(self.serving, "primary")?;
        if let Some(left) = self.left.take() {
            self.reunite(left)?;
        }
        self.resume()?;
        self.bring_secondary_back()?;
        self.keep_role(self.serving.other(), "secondary")?;
        self.attach()?;
        self.wait_in_step()?;
        self.verify(None)?;
        self.faulty = false;
        self.record.may_refuse(false);
        Ok(())
    }

    /// A disk that failed is taken into use again when its worker starts again.
    fn attach(&mut self) -> Result<(), Failure> {
        let serving = self.serving;
        self.wait("the nodes to be connected", |field| Ok(field.view(serving)?.is("status", "complete")))?;
        if self.view(serving)?.is("local disk", "detached") {
            self.say("the primary's disk is attached again");
            self.silence()?;
            self.set_role(serving, "init")?;
            self.set_role(serving, "primary")?;
        }
        Ok(())
    }

    fn some_death(&mut self) -> Death {
        if self.random.one_in(2) { Death::Power } else { Death::Kill }
    }

    fn bring_secondary_back(&mut self) -> Result<(), Failure> {
        let secondary = self.serving.other();
        if self.is_up(secondary) {
            return Ok(());
        }
        self.start(secondary)?;
        self.set_role(secondary, "secondary")
    }

    fn both(&mut self) -> Result<(), Failure> {
        self.die(&Side::BOTH, Death::Power)?;
        if self.random.one_in(2) {
            self.resume()?;
            return self.bring_secondary_back();
        }
        self.take_over(false)?;
        self.pace.resume();
        self.go_on(300)
    }

    fn fail_over(&mut self) -> Result<(), Failure> {
        let how = self.some_death();
        let must = !self.faulty;
        self.die(&[self.serving], how)?;
        self.take_over(must)?;
        self.pace.resume();
        self.go_on(400)
    }

    /// What the secondary lacks, nobody may take for being on both.
    fn flushed_alone(&mut self) -> Result<(), Failure> {
        self.silence()?;
        self.wait_in_step()?;
        let client = self.client()?;
        for _ in 0..8 + self.random.below(24) {
            let range = self.range(client.size());
            if !ask(&*self.record, &client, What::Write(range, false)) {
                return Failure::because("a write fails on nodes that are in step");
            }
        }
        self.die(&[self.serving.other()], Death::Power)?;
        if !ask(&*self.record, &client, What::Flush) {
            return Failure::because("a flush fails on a primary whose secondary is gone");
        }
        drop(client);
        let how = self.some_death();
        self.die(&[self.serving], how)?;
        if self.take_over(false)? && !self.random.one_in(4) {
            self.write_a_little()?;
        }
        Ok(())
    }

    fn apart(&mut self) -> Result<(), Failure> {
        if self.random.one_in(2) {
            let how = self.some_death();
            self.die(&[self.serving.other()], how)?;
        } else {
            self.cut();
        }
        match self.random.below(4) {
            0 => self.silence()?,
            1 => {
                self.silence()?;
                self.write_a_little()?;
            }
            2 => {
                self.pace.resume();
                self.write_a_little()?;
            }
            _ => {}
        }
        self.go_on(500)?;
        let how = self.some_death();
        self.die(&[self.serving], how)?;
        if !self.take_over(false)? {
            return Ok(());
        }
        match self.random.below(3) {
            0 => self.silence(),
            1 => self.write_a_little(),
            _ => {
                self.pace.resume();
                self.go_on(400)
            }
        }
    }

    /// Whatever was acknowledged is on both nodes afterwards, durably.
    fn switch_over(&mut self) -> Result<(), Failure> {
        let (old, new) = (self.serving, self.serving.other());
        if !self.faulty {
            self.wait_in_step()?;
        }
        let begun = self.record.meanwhile(|ledger, now| {
            ledger.begin_flush(now);
            now
        });
        self.say(format!("switch over to {}", self.node(new).name()));
        self.count("switches");
        let told = self.node(old).hastctl(&["role", "secondary", RESOURCE])?;
        let good = told.code == 0 && !self.faulty;
        self.record.meanwhile(|ledger, now| ledger.end_flush(now, begun, good));
        self.record.wait_nothing_open()?;
        if told.code != 0 {
            self.say(format!("it does not end well: {}", told.stderr.trim_end()));
            if !self.faulty {
                return told.ok("the planned change of roles").map(drop);
            }
            self.count("planned changes that were called off");
            return self.call_off(old);
        }
        match self.random.below(3) {
            0 => self.die(&[new], Death::Power)?,
            1 => self.die(&Side::BOTH, Death::Power)?,
            _ => {}
        }
        // What was under way when the role changed may be lost; what had an answer is durable.
        let forgot = self.forgot(new);
        self.record.meanwhile(|ledger, now| {
            ledger.abandon(now);
            if forgot {
                ledger.forget_unflushed();
            }
        });
        self.start(new)?;
        if !self.promote(new)? {
            self.say("it refuses");
            self.count("refusals");
            if !self.faulty {
                return Failure::because("after a planned change the new primary refuses");
            }
            self.set_role(new, "secondary")?;
            return self.call_off(old);
        }
        self.serving = new;
        self.away = None;
        self.read_everything().context("after a planned change of roles")?;
        if !self.is_up(old) {
            self.start(old)?;
            self.set_role(old, "secondary")?;
        }
        self.pace.resume();
        self.go_on(300)
    }

    /// The node that served goes on with it, now that its disk works.
    fn call_off(&mut self, old: Side) -> Result<(), Failure> {
        self.mend_disks();
        self.start(old)?;
        self.set_role(old, "primary")
    }

    fn blows(&mut self) -> Result<(), Failure> {
        for _ in 0..2 + self.random.below(3) {
            let side = self.random.pick(&Side::BOTH).unwrap_or(Side::A);
            match self.random.below(4) {
                0 => {
                    self.cut();
                    self.go_on(300)?;
                    self.pair.link.restore();
                }
                1 | 2 => {
                    let worker = self.node(side).worker(RESOURCE)?;
                    self.say(format!("the worker of {} is killed", self.node(side).name()));
                    self.count("kills");
                    if side != self.serving {
                        let now = self.record.now();
                        self.parted(now, false);
                    }
                    // It may have ended by itself meanwhile.
                    let _ = worker.map(|worker| kill(worker, Signal::SIGKILL));
                }
                _ => {
                    self.die(&[side], Death::Kill)?;
                    self.go_on(200)?;
                    self.resume()?;
                    self.bring_secondary_back()?;
                }
            }
            self.go_on(400)?;
        }
        Ok(())
    }

    /// A client of our own writes, and perhaps flushes.
    fn write_a_little(&mut self) -> Result<(), Failure> {
        let client = self.client()?;
        for _ in 0..1 + self.random.below(4) {
            let range = self.range(client.size());
            let through = self.random.one_in(4);
            // A disk of theirs may be faulty.
            let _ = ask(&*self.record, &client, What::Write(range, through));
        }
        if self.random.one_in(2) {
            let _ = ask(&*self.record, &client, What::Flush);
        }
        Ok(())
    }

    /// A node that is up has its role back, if it could not keep it with a bad disk.
    fn keep_role(&self, side: Side, role: &str) -> Result<(), Failure> {
        if !self.faulty || !self.is_up(side) || self.view(side)?.is("role", role) {
            return Ok(());
        }
        self.say(format!("{} was not {role} any more", self.node(side).name()));
        self.set_role(side, role)
    }

    fn range(&mut self, bytes: u64) -> Range<usize> {
        let (count, sectors) = (1 + self.random.below(24), bytes / super::disk::SECTOR as u64);
        let first = self.random.below(sectors.saturating_sub(count));
        let number = |n: u64| usize::try_from(n).unwrap_or(0);
        number(first)..number(first + count)
    }

    /// Makes a disk bad in places, or slow, until the calm.
    pub(super) fn disturb(&mut self) {
        let side = self.random.pick(&Side::BOTH).unwrap_or(Side::A);
        let kind = self.random.pick(&[Kind::Read, Kind::Write, Kind::Flush]).unwrap_or(Kind::Flush);
        if self.random.one_in(2) {
            let slow = Slow { kind, most: Duration::from_millis(5 + self.random.below(150)) };
            self.say(format!("the disk of {} is slow: {slow:?}", self.node(side).name()));
            self.count("slow disks");
            return self.disk(side).set_slow(Some(slow));
        }
        let region = self.random.pick(&Region::ALL).unwrap_or(Region::Data);
        let fault = Fault { kind, region, chance: self.random.pick(&[1, 3, 10]).unwrap_or(1) };
        let keeps = self.random.one_in(2);
        self.say(format!("the disk of {} is bad: {fault:?}", self.node(side).name()));
        self.count("bad disks");
        self.faulty = true;
        self.record.may_refuse(true);
        self.disk(side).disk(|disk| {
            disk.faults.push(fault);
            disk.keeps = keeps;
        });
    }
}
