//! When a write is complete, who has it, and what has to be written down first: the decisions without what
//! carries them out, for the engine and for the model of the protocol.

use hast_format::activemap::Outcome;
use hast_net::Replication;
use hast_net::errno::Errno;

use crate::rule::{Rule, keeps};

/// What became of one node's part of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Half {
    /// Was not asked.
    NotAsked,
    /// Has not answered.
    Awaited,
    /// Done.
    Done,
    /// Answered with an error.
    Failed(Errno),
    /// The connection broke before the answer.
    Lost,
}

impl Half {
    pub(crate) fn is_answered(self) -> bool {
        !matches!(self, Half::Awaited)
    }

    /// Whether that node lacks the request, as far as anybody knows, and will go on lacking it.
    #[must_use]
    pub fn is_missed(self) -> bool {
        !matches!(self, Half::Done | Half::Awaited)
    }

    /// Why it is not done.
    pub(crate) fn error(self) -> Option<Errno> {
        match self {
            Half::NotAsked | Half::Awaited | Half::Done => None,
            Half::Failed(error) => Some(error),
            Half::Lost => Some(Errno::ENOTCONN),
        }
    }
}

/// All that decides about a write or delete that was issued.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    /// The resource's mode.
    pub mode: Replication,
    /// A write, not a delete: that is never complete early, and never without a secondary that is there (D1).
    pub is_write: bool,
    /// The part of the primary's disk.
    pub local: Half,
    /// The secondary's part.
    pub remote: Half,
    /// memsync: the secondary has the data, though not on its disk yet.
    pub received: bool,
    /// A local flush failed meanwhile: the system may have dropped what it took.
    pub suspect: bool,
    /// No connection has ended since it was issued.
    pub same_connection: bool,
    /// The nodes are connected.
    pub is_up: bool,
    /// Our copy of its extents makes no sense without the secondary's.
    pub relies: bool,
    /// The secondary's copy of its extents makes no sense without ours.
    pub behind: bool,
    /// The connection broke during a planned end: what only this node has fails (C4).
    pub is_cut_off: bool,
    /// A flush on the secondary that began after it was stored there has succeeded.
    pub flushed: bool,
}

/// What is to be done about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing yet.
    Wait,
    /// The device is told that it is complete.
    Complete,
    /// The secondary alone has it, or alone makes sense of it, and has to flush it before anything else.
    FlushThere,
    /// One node alone has it: that has to be durable before the device hears of it (C1, L3).
    WriteDown,
    /// The device is told that it failed.
    Fail,
    /// The connection broke while the only node that could make sense of it had it: it starts again later.
    TakeBack,
}

impl Standing {
    /// Whether the device may be told, and what.
    #[must_use]
    pub fn verdict(&self) -> Verdict {
        let (here, there, answered) = (self.is_here(), self.is_there(), self.is_answered());
        let enough = self.is_enough();
        if !answered && !enough {
            return Verdict::Wait;
        }
        if !self.is_write && matches!(self.remote, Half::Failed(_)) {
            return Verdict::Fail;
        }
        if answered && self.relies && !there && matches!(self.remote, Half::Lost | Half::Done) {
            return Verdict::TakeBack;
        }
        let good = (here && (there || !self.relies)) || (there && !self.behind);
        let good = good || (enough && !keeps(Rule::L16));
        if !good || (answered && here && !there && self.is_cut_off) {
            Verdict::Fail
        } else if answered && self.rests_there(here, there) && keeps(Rule::Power) {
            Verdict::FlushThere
        } else if !answered || (here && there) {
            Verdict::Complete
        } else {
            Verdict::WriteDown
        }
    }

    /// Whether both parts are known.
    #[must_use]
    pub fn is_answered(&self) -> bool {
        self.local.is_answered() && self.remote.is_answered()
    }

    /// Whether our disk has stored it.
    #[must_use]
    pub fn is_here(&self) -> bool {
        self.local == Half::Done && !self.suspect
    }

    /// Whether the secondary has stored it. What it stored before the connection broke it may have lost since:
    /// alone, or where our copy makes no sense without it, that counts for nothing.
    #[must_use]
    pub fn is_there(&self) -> bool {
        let good_here = self.is_here() && !self.relies;
        (self.remote == Half::Done && good_here) || self.is_there_still()
    }

    /// Whether the secondary has stored it on a connection that still stands.
    #[must_use]
    pub fn is_there_still(&self) -> bool {
        self.remote == Half::Done && self.same_connection && self.is_up
    }

    /// Whether a node is known to hold it.
    #[must_use]
    pub fn is_held(&self) -> bool {
        self.is_here() || self.is_there()
    }

    /// Whether it is complete though the secondary has not stored it.
    fn is_enough(&self) -> bool {
        self.is_write
            && (self.is_here() || (!keeps(Rule::L16) && self.received))
            && !self.relies
            && match self.mode {
                Replication::Fullsync => false,
                Replication::Memsync => self.received,
                Replication::Async => true,
            }
    }

    /// Whether a loss of the secondary's power could take what nobody would find here.
    fn rests_there(&self, here: bool, there: bool) -> bool {
        there && !self.flushed && (!here || self.relies)
    }

    /// Whether localcnt must rise for it although the device has its answer, a good one, already (C1 (b), (c)).
    #[must_use]
    pub fn owes_count(&self) -> bool {
        // Should our disk have dropped it, it is written again.
        self.is_answered() && self.local == Half::Done && !self.is_there() && keeps(Rule::C1c)
    }

    /// Whether both nodes have confirmed it, on whichever connection. What becomes of it if a failed flush may have
    /// dropped it here is the next flush's business, as for a write that was confirmed just before.
    #[must_use]
    pub fn is_confirmed(&self) -> bool {
        self.local == Half::Done && (self.remote == Half::Done || self.forgets())
    }

    /// Once both parts are known: what the map learns.
    #[must_use]
    pub fn outcome(&self) -> Outcome {
        // M3: what the secondary stored before the connection broke it may not have flushed.
        let same_connection = self.same_connection || !keeps(Rule::M3) || !keeps(Rule::L1);
        if self.is_confirmed() && same_connection { Outcome::StoredOnBoth } else { Outcome::Unconfirmed }
    }

    /// Whether a mutant takes for stored what the secondary never confirmed.
    fn forgets(&self) -> bool {
        let lost = self.remote == Half::Lost && !keeps(Rule::L1);
        let failed = matches!(self.remote, Half::Failed(_)) && !keeps(Rule::L2);
        lost || failed || (!self.is_write && !keeps(Rule::L4))
    }
}

/// What one node's flush says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flushed {
    /// What was answered before it is durable there.
    Yes,
    /// It was not asked, or the connection broke.
    Unknown,
    /// It may have lost what was answered before.
    Failed,
}

/// What follows from a flush that has ended on both nodes (L9).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FlushEnding {
    /// What it covered is durable on both.
    Durable,
    /// The secondary may lose what it covered: that goes to the sync set, and is counted.
    PeerMayLose,
    /// Our disk may lose what it covered, and the secondary has it: that becomes stale here.
    StaleHere,
    /// What it covered is as unflushed as before.
    NotDurable,
}

/// Decides on that.
#[must_use]
pub fn flush_ending(local: Flushed, remote: Flushed) -> FlushEnding {
    match (local, remote) {
        (_, Flushed::Failed) if keeps(Rule::L9) => FlushEnding::PeerMayLose,
        (Flushed::Failed, Flushed::Yes) if keeps(Rule::L9) => FlushEnding::StaleHere,
        (Flushed::Yes, Flushed::Yes) => FlushEnding::Durable,
        (_, Flushed::Yes) if !keeps(Rule::L9) => FlushEnding::Durable,
        _ => FlushEnding::NotDurable,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HALVES: [Half; 5] =
        [Half::NotAsked, Half::Awaited, Half::Done, Half::Failed(Errno::EIO), Half::Lost];
    const MODES: [Replication; 3] = [Replication::Fullsync, Replication::Memsync, Replication::Async];

    /// Every write and delete on a connection that may have broken since.
    fn all() -> impl Iterator<Item = Standing> {
        (0..256).flat_map(|bits: u32| {
            let bit = move |n: u32| bits & (1 << n) != 0;
            MODES.into_iter().flat_map(move |mode| {
                HALVES.into_iter().flat_map(move |local| {
                    HALVES.into_iter().map(move |remote| Standing {
                        mode,
                        is_write: bit(7),
                        local,
                        remote,
                        received: bit(0),
                        suspect: bit(1),
                        same_connection: bit(2),
                        is_up: bit(2),
                        relies: bit(3),
                        behind: bit(4),
                        is_cut_off: bit(5),
                        flushed: bit(6),
                    })
                })
            })
        })
    }

    #[test]
    fn a_complete_write_is_on_our_disk_or_good_on_the_other() {
        for standing in all() {
            if matches!(standing.verdict(), Verdict::Complete | Verdict::WriteDown) {
                let good_there = standing.remote == Half::Done && !standing.behind;
                assert!(standing.is_here() || good_there, "{standing:?}");
            }
        }
    }

    #[test]
    fn fullsync_says_complete_only_with_both_nodes() {
        for standing in all().filter(|standing| standing.mode == Replication::Fullsync) {
            if standing.verdict() == Verdict::Complete {
                assert_eq!((standing.local, standing.remote), (Half::Done, Half::Done), "{standing:?}");
            }
        }
    }

    #[test]
    fn what_rests_on_the_secondary_is_flushed_there_first() {
        for standing in all() {
            let ends = matches!(standing.verdict(), Verdict::Complete | Verdict::WriteDown);
            let enough_here = standing.is_here() && !standing.relies;
            assert!(!ends || enough_here || standing.flushed, "{standing:?}");
        }
    }

    #[test]
    fn nothing_waits_once_both_nodes_have_answered() {
        for standing in all() {
            let waits = standing.verdict() == Verdict::Wait;
            assert!(!(waits && standing.is_answered()), "{standing:?}");
        }
    }

    #[test]
    fn the_map_forgets_only_what_both_nodes_stored_on_this_connection() {
        for standing in all() {
            let both =
                standing.local == Half::Done && standing.remote == Half::Done && standing.same_connection;
            assert_eq!(standing.outcome() == Outcome::StoredOnBoth, both, "{standing:?}");
        }
    }

    #[test]
    fn a_half_that_is_not_done_says_why() {
        let why = [None, None, None, Some(Errno::EIO), Some(Errno::ENOTCONN)];
        assert_eq!(HALVES.map(Half::error), why);
    }

    #[test]
    fn a_flush_covers_only_what_both_nodes_flushed() {
        use Flushed::{Failed, Unknown, Yes};
        for local in [Yes, Unknown, Failed] {
            for remote in [Yes, Unknown, Failed] {
                let durable = flush_ending(local, remote) == FlushEnding::Durable;
                assert_eq!(durable, (local, remote) == (Yes, Yes));
            }
        }
        assert_eq!(flush_ending(Failed, Yes), FlushEnding::StaleHere);
        assert_eq!(flush_ending(Failed, Failed), FlushEnding::PeerMayLose);
    }
}
