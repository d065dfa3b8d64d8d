//! The pair whose nodes lose power: their disks, boot ids and daemons, and what each of the two nodes may hold.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use hast_format::layout::METADATA_SIZE;
use hast_format::metadata::Metadata;
use hast_nbd::client::Client;
use hast_sim::random::Random;
use hast_tests::{Context, Failure, Node, Pair};
use nix::sys::signal::{Signal, killpg};

use super::boot::Boots;
use super::ledger::{Ledger, Parting};
use super::mount::Mounted;
use super::record::Record;
use crate::torture::clients::Pace;
use crate::torture::field::{Side, View};
use crate::torture::{Mode, RESOURCE};

/// How a node ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Death {
    /// SIGKILL to every process: the disk keeps its cache.
    Kill,
    /// The same, and the disk forgets what was not flushed; the node comes back with another boot id.
    Power,
}

/// The history of a node that served before, and has parted from the one that serves now.
pub(super) struct Left {
    pub(super) ledger: Ledger,
    /// When the other one took over.
    pub(super) fork: Duration,
    /// By the counts on the disks, the node that left has what the other one lacks.
    pub(super) ahead: bool,
    /// By the record it may have.
    pub(super) apart: bool,
}

/// The pair, the operator's intentions and chance. The pair ends before its disks do.
pub(super) struct Field {
    pub(super) pair: Pair,
    pub(super) disks: [Mounted; 2],
    pub(super) boots: [Boots; 2],
    pub(super) record: Arc<Record>,
    pub(super) random: Random,
    pub(super) mode: Mode,
    /// The node that serves, or is to.
    pub(super) serving: Side,
    up: [bool; 2],
    /// The power was lost and the node has not started since.
    reset: [bool; 2],
    /// The power was lost since the nodes were in step.
    pub(super) forgot: [bool; 2],
    pub(super) pace: Pace,
    /// Since when the secondary misses what is written.
    pub(super) away: Option<Parting>,
    /// When they were seen to be in step last.
    pub(super) in_step: Duration,
    /// A disk was faulty since.
    pub(super) faulty: bool,
    pub(super) left: Option<Left>,
    /// How often each thing was done.
    pub(super) deeds: BTreeMap<&'static str, u32>,
}

impl Field {
    /// A running pair in step, with a as primary, on these disks.
    pub(super) fn new(
        pair: Pair,
        (disks, boots): ([Mounted; 2], [Boots; 2]),
        record: Arc<Record>,
        random: Random,
        mode: Mode,
    ) -> Field {
        Field {
            pair,
            disks,
            boots,
            in_step: record.now(),
            record,
            random,
            mode,
            serving: Side::A,
            up: [true; 2],
            reset: [false; 2],
            forgot: [false; 2],
            pace: Pace::default(),
            away: None,
            faulty: false,
            left: None,
            deeds: BTreeMap::new(),
        }
    }

    pub(super) fn node(&self, side: Side) -> &Node {
        side.pick(&self.pair.a, &self.pair.b)
    }

    pub(super) fn node_mut(&mut self, side: Side) -> &mut Node {
        side.pick(&mut self.pair.a, &mut self.pair.b)
    }

    pub(super) fn disk(&self, side: Side) -> &Mounted {
        let [a, b] = &self.disks;
        side.pick(a, b)
    }

    pub(super) fn is_up(&self, side: Side) -> bool {
        let [a, b] = self.up;
        side.pick(a, b)
    }

    pub(super) fn forgot(&self, side: Side) -> bool {
        let [a, b] = self.forgot;
        side.pick(a, b)
    }

    pub(super) fn say(&self, text: impl Into<String>) {
        self.record.say(text);
    }

    pub(super) fn count(&mut self, deed: &'static str) {
        let count = self.deeds.entry(deed).or_default();
        *count = count.saturating_add(1);
    }

    /// Lets the clients do what they do for up to `most` milliseconds.
    ///
    /// # Errors
    /// One of them has seen something wrong.
    pub(super) fn go_on(&mut self, most: u64) -> Result<(), Failure> {
        std::thread::sleep(Duration::from_millis(self.random.below(most)));
        self.record.check()
    }

    /// No client does anything from now on.
    ///
    /// # Errors
    /// One of them waits in vain.
    pub(super) fn silence(&self) -> Result<(), Failure> {
        self.pace.silence_all()?;
        self.record.wait_nothing_open()
    }

    /// Ends nodes, at the same moment if there are two.
    ///
    /// # Errors
    /// A process does not end.
    pub(super) fn die(&mut self, sides: &[Side], how: Death) -> Result<(), Failure> {
        let sides: Vec<Side> = sides.iter().copied().filter(|side| self.is_up(*side)).collect();
        let names: Vec<String> = sides.iter().map(|side| self.node(*side).name().to_owned()).collect();
        let stalled = how == Death::Power && self.random.one_in(4);
        if stalled {
            // A host without power says nothing, not even that a connection has ended.
            self.pair.link.stall();
        }
        let record = Arc::clone(&self.record);
        let at = record.meanwhile(|_, now| {
            for side in &sides {
                if how == Death::Power {
                    self.disk(*side).switch_off();
                }
                killpg(self.node(*side).pid()?, Signal::SIGKILL)?;
            }
            Ok::<_, Failure>(now)
        })?;
        let what = if how == Death::Power { "without power" } else { "killed" };
        self.say(format!("{} {what}{}", names.join(" and "), if stalled { ", in silence" } else { "" }));
        for side in &sides {
            if how == Death::Power {
                self.disk(*side).let_go();
            }
            self.node_mut(*side).kill()?;
            if how == Death::Power {
                self.disk(*side).switch_on();
                *of_mut(*side, &mut self.reset) = true;
                *of_mut(*side, &mut self.forgot) = true;
            }
            *of_mut(*side, &mut self.up) = false;
        }
        if sides.contains(&self.serving.other()) {
            self.parted(at, how == Death::Power);
        }
        self.count(if how == Death::Power { "losses of power" } else { "kills" });
        if stalled {
            self.go_on(800)?;
            self.pair.link.restore();
        }
        Ok(())
    }

    /// The secondary gets nothing from then on.
    pub(super) fn parted(&mut self, at: Duration, power: bool) {
        let forgets = power || self.mode != Mode::Fullsync;
        let parting = self.away.get_or_insert(Parting { at, forgets });
        parting.forgets |= forgets;
    }

    /// Cuts the link, which stays cut.
    pub(super) fn cut(&mut self) {
        let record = Arc::clone(&self.record);
        let at = record.meanwhile(|_, now| {
            self.pair.link.cut();
            now
        });
        self.say("the link is cut");
        self.count("cuts");
        self.parted(at, false);
    }

    /// Starts a node that is down, in no role.
    ///
    /// # Errors
    /// hastd does not start.
    pub(super) fn start(&mut self, side: Side) -> Result<(), Failure> {
        if self.is_up(side) {
            return Ok(());
        }
        let reset = of_mut(side, &mut self.reset);
        if std::mem::take(reset) {
            let [a, b] = &self.boots;
            side.pick(a, b).next(&mut self.random)?;
        }
        self.node_mut(side).start()?;
        *of_mut(side, &mut self.up) = true;
        self.say(format!("{} is back", self.node(side).name()));
        Ok(())
    }

    /// The node that served does so again, after its end.
    ///
    /// # Errors
    /// It does not.
    pub(super) fn resume(&mut self) -> Result<(), Failure> {
        if self.is_up(self.serving) {
            return Ok(());
        }
        self.record.wait_nothing_open()?;
        let forgot = self.forgot(self.serving);
        self.record.meanwhile(|ledger, now| {
            ledger.abandon(now);
            if forgot {
                ledger.forget_unflushed();
            }
        });
        let (serving, other) = (self.serving, self.serving.other());
        self.start(serving)?;
        if !self.is_up(other) && self.counts(other)?.0 > self.counts(serving)?.1 {
            // It lived on the other one's disk, and its own could not write that down: alone it does not know.
            self.say(format!("{} has more, and is back first", self.node(other).name()));
            self.start(other)?;
            self.set_role(other, "secondary")?;
        }
        self.say(format!("{} is primary again", self.node(self.serving).name()));
        self.set_role(self.serving, "primary")
    }

    /// Gives a node a role. A bad disk is mended if the node cannot do without.
    ///
    /// # Errors
    /// The node refuses.
    pub(super) fn set_role(&self, side: Side, role: &str) -> Result<(), Failure> {
        match self.node(side).role(role, RESOURCE) {
            Err(failure) if self.faulty => {
                self.say(format!("{} cannot be {role} with this disk: {failure}", self.node(side).name()));
                self.mend_disks();
                self.node(side).role(role, RESOURCE)
            }
            result => result,
        }
    }

    /// A client of our own on the device. A bad disk is mended if there is no device otherwise.
    ///
    /// # Errors
    /// There is no device.
    pub(super) fn client(&self) -> Result<Client, Failure> {
        match self.node(self.serving).client(RESOURCE) {
            Err(failure) if self.faulty => {
                self.say(format!("no device with this disk: {failure}"));
                self.mend_disks();
                self.set_role(self.serving, "primary")?;
                self.node(self.serving).client(RESOURCE)
            }
            result => result,
        }
    }

    /// The disks are neither bad nor slow any more.
    pub(super) fn mend_disks(&self) {
        for side in Side::BOTH {
            self.disk(side).disk(|disk| disk.faults.clear());
            self.disk(side).set_slow(None);
        }
    }

    /// Makes a node primary. False: it knows that it is out of date, and refuses; or its disk is bad.
    ///
    /// # Errors
    /// It fails in any other way.
    pub(super) fn promote(&self, side: Side) -> Result<bool, Failure> {
        let told = self.node(side).hastctl(&["role", "primary", RESOURCE])?;
        if told.code != 0 && (self.faulty || told.stderr.contains("error 70 ")) {
            return Ok(false);
        }
        told.ok(&format!("making {} primary", self.node(side).name())).map(|_| true)
    }

    /// The local and the remote count on a node's disk.
    ///
    /// # Errors
    /// Its metadata cannot be read: no loss of power may bring that about.
    pub(super) fn counts(&self, side: Side) -> Result<(u64, u64), Failure> {
        let metadata = self.metadata(side)?;
        Ok((metadata.localcnt, metadata.remotecnt))
    }

    /// Some extents of a node are right on the other one alone.
    ///
    /// # Errors
    /// As of [`Field::counts`].
    pub(super) fn is_stale(&self, side: Side) -> Result<bool, Failure> {
        Ok(!self.metadata(side)?.extension.stale.is_empty())
    }

    fn metadata(&self, side: Side) -> Result<Metadata, Failure> {
        let length = usize::try_from(METADATA_SIZE)?;
        let block = self.disk(side).disk(|disk| disk.seen().get(..length).unwrap_or_default().to_vec());
        let reading = Metadata::read(&block).context(format!("metadata of {}", self.node(side).name()))?;
        Ok(reading.metadata)
    }

    /// What `hastctl list -v` says of a node.
    ///
    /// # Errors
    /// hastd does not answer.
    pub(super) fn view(&self, side: Side) -> Result<View, Failure> {
        View::of(self.node(side))
    }

    /// Both nodes say that the primary is connected and that neither misses anything.
    ///
    /// # Errors
    /// One does not answer.
    pub(super) fn is_in_step(&self) -> Result<bool, Failure> {
        let (primary, secondary) = (self.view(self.serving)?, self.view(self.serving.other())?);
        Ok(secondary.is_good() && primary.is_good() && primary.is("status", "complete") && !primary.owes())
    }

    /// One of them knows of a split-brain.
    ///
    /// # Errors
    /// One does not answer.
    pub(super) fn is_split(&self) -> Result<bool, Failure> {
        let split = |side| Ok::<_, Failure>(self.view(side)?.is("split-brain", "yes"));
        Ok(split(Side::A)? || split(Side::B)?)
    }

    /// Waits until the nodes are in step, which they must be by themselves.
    ///
    /// # Errors
    /// They are not, or have found a split-brain.
    pub(super) fn wait_in_step(&mut self) -> Result<(), Failure> {
        self.wait("the nodes to be in step", |field| {
            if field.is_split()? {
                return Failure::because("a split-brain, and nobody was written apart");
            }
            field.is_in_step()
        })?;
        self.in_step = self.record.now();
        self.away = None;
        self.forgot = [false; 2];
        Ok(())
    }

    /// Waits for something that must come.
    ///
    /// # Errors
    /// It does not, or something else is wrong.
    pub(super) fn wait(
        &self,
        what: &str,
        probe: impl Fn(&Field) -> Result<bool, Failure>,
    ) -> Result<(), Failure> {
        self.record.wait(what, || probe(self))
    }
}

fn of_mut<T>(side: Side, both: &mut [T; 2]) -> &mut T {
    let [a, b] = both;
    side.pick(a, b)
}
