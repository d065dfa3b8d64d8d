//! The pair under torture: which node should serve, what was done to each node and to the link, and when that
//! ends again.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hast_format::layout::METADATA_SIZE;
use hast_format::metadata::Metadata;
use hast_sim::random::Random;
use hast_tests::{Context, Failure, Node, Pair};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, getpgid};

use super::clients::Pace;
use super::remembered::Record;
use super::{Mode, RESOURCE};

/// One of the two nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    A,
    B,
}

impl Side {
    pub(super) const BOTH: [Side; 2] = [Side::A, Side::B];

    pub(super) fn other(self) -> Side {
        match self {
            Side::A => Side::B,
            Side::B => Side::A,
        }
    }

    /// What is this node's of two things.
    pub(super) fn pick<T>(self, a: T, b: T) -> T {
        match self {
            Side::A => a,
            Side::B => b,
        }
    }
}

/// What was done to a node.
#[derive(Clone, Debug)]
pub(super) enum State {
    Up,
    /// These processes were stopped by SIGSTOP.
    Frozen {
        until: Instant,
        stopped: Vec<Pid>,
    },
    /// No process of the node is left.
    Down {
        until: Instant,
    },
}

/// How often each thing was done.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Deeds {
    pub(super) kills: u32,
    pub(super) restarts: u32,
    pub(super) cuts: u32,
    pub(super) stalls: u32,
    pub(super) freezes: u32,
    pub(super) switches: u32,
    pub(super) failovers: u32,
    /// The older node was made primary.
    pub(super) mistakes: u32,
}

/// The pair, the operator's intentions and chance.
pub(super) struct Field {
    pub(super) pair: Pair,
    pub(super) record: Arc<Record>,
    pub(super) random: Random,
    pub(super) mode: Mode,
    /// The node that the operator wants to serve.
    pub(super) serving: Side,
    states: [State; 2],
    /// How busy the clients are.
    pub(super) pace: Pace,
    /// The link is cut or stalled until then.
    pub(super) link_until: Option<Instant>,
    pub(super) deeds: Deeds,
}

impl Field {
    /// A running pair in step, with a as primary.
    pub(super) fn new(pair: Pair, record: Arc<Record>, random: Random, mode: Mode) -> Field {
        Field {
            pair,
            record,
            random,
            mode,
            serving: Side::A,
            states: [State::Up, State::Up],
            pace: Pace::default(),
            link_until: None,
            deeds: Deeds::default(),
        }
    }

    pub(super) fn node(&self, side: Side) -> &Node {
        side.pick(&self.pair.a, &self.pair.b)
    }

    pub(super) fn node_mut(&mut self, side: Side) -> &mut Node {
        side.pick(&mut self.pair.a, &mut self.pair.b)
    }

    pub(super) fn state(&self, side: Side) -> &State {
        let [a, b] = &self.states;
        side.pick(a, b)
    }

    pub(super) fn set_state(&mut self, side: Side, state: State) {
        let [a, b] = &mut self.states;
        *side.pick(a, b) = state;
    }

    pub(super) fn is_up(&self, side: Side) -> bool {
        matches!(self.state(side), State::Up)
    }

    /// Nothing is wrong that we know of.
    pub(super) fn is_calm(&self) -> bool {
        self.link_until.is_none() && Side::BOTH.iter().all(|side| self.is_up(*side))
    }

    pub(super) fn say(&self, text: impl Into<String>) {
        self.record.say(text);
    }

    /// A time from now on, up to `most` milliseconds away.
    pub(super) fn within(&mut self, most: u64) -> Instant {
        Instant::now() + Duration::from_millis(self.random.below(most))
    }

    /// Kills every process of a node, which stays down until then.
    pub(super) fn kill(&mut self, side: Side, until: Instant) -> Result<(), Failure> {
        self.say(format!("node {} is killed", self.node(side).name()));
        self.deeds.kills += 1;
        self.node_mut(side).kill()?;
        self.set_state(side, State::Down { until });
        Ok(())
    }

    /// Sets everything right whose time has come; or everything, without a time.
    pub(super) fn recover(&mut self, now: Option<Instant>) -> Result<(), Failure> {
        let due = |until: Instant| now.is_none_or(|now| until <= now);
        if self.link_until.is_some_and(due) {
            self.say("the link is back");
            self.link_until = None;
            self.pair.link.restore();
        }
        for side in Side::BOTH {
            match self.state(side).clone() {
                State::Frozen { until, stopped } if due(until) => {
                    self.say(format!("node {} goes on", self.node(side).name()));
                    for pid in stopped {
                        // A worker may have been replaced, and its stopped predecessor killed.
                        let _ = kill(pid, Signal::SIGCONT);
                    }
                    self.set_state(side, State::Up);
                }
                State::Down { until } if due(until) => self.bring_back(side)?,
                _ => {}
            }
        }
        Ok(())
    }

    fn bring_back(&mut self, side: Side) -> Result<(), Failure> {
        self.start(side)?;
        let role = if side == self.serving { "primary" } else { "secondary" };
        self.say(format!("node {} is back as {role}", self.node(side).name()));
        self.node(side).role(role, RESOURCE)
    }

    /// Starts a node that is down, in no role.
    pub(super) fn start(&mut self, side: Side) -> Result<(), Failure> {
        self.node_mut(side).start()?;
        self.set_state(side, State::Up);
        Ok(())
    }

    /// The primary is connected; it may have much to copy still.
    pub(super) fn is_connected(&self) -> Result<bool, Failure> {
        Ok(View::of(self.node(self.serving))?.is("status", "complete"))
    }

    /// The worker of a node that is up, if it has one and it is still that node's.
    pub(super) fn worker(&self, side: Side) -> Result<Option<Pid>, Failure> {
        let node = self.node(side);
        let group = node.pid()?;
        Ok(node.worker(RESOURCE)?.filter(|worker| getpgid(Some(*worker)) == Ok(group)))
    }

    /// Both nodes say that the primary is connected and that neither misses anything.
    pub(super) fn is_in_step(&self) -> Result<bool, Failure> {
        let secondary = View::of(self.node(self.serving.other()))?;
        let primary = View::of(self.node(self.serving))?;
        Ok(secondary.is_good() && primary.is_good() && primary.is("status", "complete") && !primary.owes())
    }

    /// In step, and no extent is dirty beyond those that are always kept so.
    pub(super) fn is_clean(&self) -> Result<bool, Failure> {
        if !self.is_in_step()? {
            return Ok(false);
        }
        let primary = View::of(self.node(self.serving))?;
        let kept = primary.number("keepdirty")?.saturating_mul(primary.number("extentsize")?);
        Ok(primary.number("dirty")? <= kept)
    }

    /// The local count on a node's disk, which rises when it writes alone.
    pub(super) fn localcnt(&self, side: Side) -> Result<u64, Failure> {
        let path = self.node(side).provider(RESOURCE);
        let mut block = vec![0; usize::try_from(METADATA_SIZE)?];
        File::open(&path).context(path.display())?.read_exact_at(&mut block, 0).context(path.display())?;
        Ok(Metadata::read(&block).context(path.display())?.metadata.localcnt)
    }
}

/// What `hastctl list -v` says of a node.
pub(super) struct View(String);

impl View {
    pub(super) fn of(node: &Node) -> Result<View, Failure> {
        Ok(View(node.ctl(&["list", "-v", RESOURCE])?))
    }

    fn value(&self, key: &str) -> Option<&str> {
        self.0.lines().find_map(|line| line.trim().strip_prefix(key)?.strip_prefix(": "))
    }

    pub(super) fn is(&self, key: &str, value: &str) -> bool {
        self.value(key) == Some(value)
    }

    pub(super) fn number(&self, key: &str) -> Result<u64, Failure> {
        let value = self.value(key).context(format!("hastctl list -v shows no {key}:\n{}", self.0))?;
        value.split(' ').next().unwrap_or_default().parse().context(format!("{key}: {value}"))
    }

    /// The node's own data is all right.
    pub(super) fn is_good(&self) -> bool {
        ["inconsistent", "target", "split-brain", "possibly behind"].iter().all(|key| self.is(key, "no"))
            && self.is("local disk", "attached")
            && self.is("stale", "0 (0B)")
    }

    /// The other node's may not be.
    pub(super) fn owes(&self) -> bool {
        !self.is("synchronising", "no") || !self.is("to synchronise", "0 (0B)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn view(text: &str) -> View {
        View(text.to_owned())
    }

    const GOOD: &str = "disk0:\n  status: complete\n  dirty: 65536 (64KB)\n  condition:\n    inconsistent: no\n    \
        target: no\n    stale: 0 (0B)\n    local disk: attached\n    split-brain: no\n    possibly behind: no\n    \
        synchronising: no\n    to synchronise: 0 (0B)\n";

    #[test]
    fn only_a_node_that_says_so_is_in_order() {
        let good = view(GOOD);
        assert!(good.is_good() && !good.owes());
        assert_eq!(good.number("dirty").unwrap(), 65536);
        good.number("keepdirty").unwrap_err();
        assert!(!view("disk0:\n  condition: -\n").is_good());
        for (what, instead) in [
            ("inconsistent: no", "inconsistent: since 2026-11-24 07:00:00 UTC"),
            ("target: no", "target: yes"),
            ("stale: 0 (0B)", "stale: 512 (512B)"),
            ("split-brain: no", "split-brain: yes"),
            ("attached", "detached"),
        ] {
            assert!(!view(&GOOD.replace(what, instead)).is_good(), "{instead}");
        }
        assert!(view(&GOOD.replace("synchronising: no", "synchronising: yes")).owes());
        assert!(view(&GOOD.replace("to synchronise: 0 (0B)", "to synchronise: 512 (512B)")).owes());
    }
}
