//! Generations of connections (durability.md G1): how two nodes notice that the disk of one of them is not the one that
//! the other was last connected to, because it was rolled back (a snapshot of the machine, a restored backup), cloned
//! or exchanged. Their counts may be in step then, though their data are not.
//!
//! Each connection has a generation: its upper half is one more than the larger of those that the two nodes have
//! stored, its lower half is drawn at random by the primary. Both nodes store it durably:
//!
//! 1. The *secondary* before it answers the handshake, and with it the generation that the primary said it had
//!    (`before`): should the connection break off now, the primary still has that one. A secondary that cannot store it
//!    says so, keeps what it had, and the connection has no generation.
//! 2. The *primary* before the nodes count as connected. It knows that the secondary has stored it, and forgets what it
//!    had as `before` itself.
//! 3. The secondary forgets `before` with the first request: the primary has stored the generation by then. (Durably
//!    soon after that; until then a primary that is set back to before this connection is not found.)
//!
//! Where the generations have shown that one of the disks is an older one, that must still be known if the connection
//! breaks off between 1 and 3: an older secondary first sets its whole map and marks itself, durably; one whose primary
//! is older does not store a `before`.
//!
//! So of two nodes whose disks nobody has touched, each has a generation that the other has too, as its latest or as the
//! one before: only the steps from 1 to 2 make the latest ones differ, whichever is primary afterwards, and 1 happens
//! again only with `before` set to what the primary of that attempt has. Nodes that have none in common have seen
//! different connections since, and the one with the higher counter has seen more. Between equal generations a rollback
//! cannot be seen, nor one to before the first connection: a node that the original ran since has none either.
//!
//! A node whose disk was set back may have been written alone before the nodes meet, and its localcnt may then be by
//! chance what the other one remembers. So each node stores with the generation what the other one knows of its localcnt,
//! and its localcnt when the two have become equal: it has been written alone if its localcnt is higher.

use hast_format::extension::Extension;
use hast_net::handshake::{Met, SyncSource};

use crate::counts::{Counts, Decision, MapToSend};
use crate::rule::{Rule, keeps};

/// What the generations that two nodes have stored say of their disks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Histories {
    /// One of them is not known.
    Unknown,
    /// The nodes were connected to each other last.
    Same,
    /// The primary was connected since, the secondary was not: its disk is an older one.
    PrimaryAhead,
    /// The other way round.
    SecondaryAhead,
    /// Both were, to different nodes.
    Apart,
}

/// What a node counts, and what the other one knew of that when it stored the generation of its latest connection, or became
/// equal to it since.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counted {
    /// Its counts.
    pub now: Counts,
    /// Its localcnt then.
    pub then: u64,
}

impl Counted {
    /// Whether this node was written alone, as far as `other` knows or it says itself.
    fn was_written_beside(self, other: Counted) -> bool {
        self.now.local > other.now.remote || (self.now.local > self.then && keeps(Rule::G1Counted))
    }
}

/// What a secondary's metadata said of its connections when a primary came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Past {
    met: Met,
    /// `connection_localcnt`.
    localcnt: u64,
    /// It has lost what it had stored beyond the original's fields (A3), and nothing since is in common with anybody.
    lost: bool,
}

impl Past {
    /// As the metadata have it.
    #[must_use]
    pub fn of(extension: &Extension) -> Past {
        Past { met: met(extension), localcnt: extension.connection_localcnt, lost: has_lost(extension) }
    }

    /// The generations.
    #[must_use]
    pub fn met(&self) -> Met {
        self.met
    }

    /// What they and those of `primary` say. A node that has lost its own may have been set back as well.
    #[must_use]
    pub fn compared(&self, primary: Met) -> Histories {
        if self.lost && primary.last != 0 { Histories::PrimaryAhead } else { compare(primary, self.met) }
    }

    /// With what the node counts `now`. If it has lost what it counted then, the counts alone tell whether it was written.
    #[must_use]
    pub fn counted(&self, now: Counts) -> Counted {
        Counted { now, then: if self.lost { u64::MAX } else { self.localcnt } }
    }

    /// Nothing has come of the connection that `extension` names.
    pub(crate) fn put_back(&self, extension: &mut Extension) {
        (extension.connection, extension.connection_before) = (self.met.last, self.met.before);
        extension.connection_localcnt = self.localcnt;
    }
}

/// Whether a node has lost what it had stored beyond the original's fields (A3), and has met nobody since.
pub(crate) fn has_lost(extension: &Extension) -> bool {
    extension.connection == 0 && extension.mark.as_ref().is_some_and(|mark| mark.since == 0)
}

/// The generations in a node's metadata.
pub(crate) fn met(extension: &Extension) -> Met {
    Met { last: extension.connection, before: extension.connection_before }
}

/// Compares them.
#[must_use]
pub fn compare(primary: Met, secondary: Met) -> Histories {
    if primary.last == 0 || secondary.last == 0 {
        return Histories::Unknown;
    }
    let has =
        |met: Met, generation: u64| generation != 0 && (met.last == generation || met.before == generation);
    if has(secondary, primary.last) || has(secondary, primary.before) {
        return Histories::Same;
    }
    match counter(primary.last).cmp(&counter(secondary.last)) {
        core::cmp::Ordering::Greater => Histories::PrimaryAhead,
        core::cmp::Ordering::Less => Histories::SecondaryAhead,
        core::cmp::Ordering::Equal => Histories::Apart,
    }
}

/// The generation of a connection between two nodes, for which the primary has drawn `draw`.
#[must_use]
pub fn next(primary: Met, secondary: Met, draw: u32) -> u64 {
    let latest = counter(primary.last).max(counter(secondary.last));
    u64::from(latest.saturating_add(1)) << 32 | u64::from(draw)
}

/// What the secondary stores as `before` when it answers a primary that has `last`. A primary that is older has nothing in
/// common with this node before it has stored the new generation: should the connection break off, it is found again.
#[must_use]
pub fn before(histories: Histories, last: u64) -> u64 {
    if histories == Histories::SecondaryAhead && keeps(Rule::G1) { 0 } else { last }
}

/// What the counts have decided, in view of the histories: of nodes whose disks do not belong together the maps say
/// nothing, so that everything is copied from the one that has seen more, unless the other one was written alone since,
/// or that one is the secondary, `marked` because it lacks something: then neither copy is good.
///
/// A clone of the primary's own disk, older than its last counts, has met whom the primary has met last. Its counts may make it
/// the source; what the primary was written alone since they met is not overwritten for that.
#[must_use]
pub fn judged(
    decision: Decision,
    primary: Counted,
    secondary: Counted,
    marked: bool,
    histories: Histories,
) -> Decision {
    if !matches!(decision, Decision::Accept { adopt: false, .. }) || !keeps(Rule::G1) {
        return decision;
    }
    let everything_from = |source, other_was_written| match other_was_written {
        true => Decision::SplitBrain,
        false => Decision::Accept { adopt: false, map: MapToSend::Full, source },
    };
    let from_secondary = matches!(decision, Decision::Accept { source: SyncSource::Secondary, .. });
    match histories {
        Histories::Same if from_secondary && primary.was_written_beside(secondary) => Decision::SplitBrain,
        Histories::Unknown | Histories::Same => decision,
        Histories::PrimaryAhead => {
            everything_from(SyncSource::Primary, secondary.was_written_beside(primary))
        }
        Histories::SecondaryAhead => {
            everything_from(SyncSource::Secondary, marked || primary.was_written_beside(secondary))
        }
        Histories::Apart => Decision::SplitBrain,
    }
}

fn counter(generation: u64) -> u32 {
    u32::try_from(generation >> 32).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn stored(last: u64, before: u64) -> Met {
        Met { last, before }
    }

    fn accept(map: MapToSend, source: SyncSource) -> Decision {
        Decision::Accept { adopt: false, map, source }
    }

    const G: u64 = 1 << 32;

    #[test]
    fn a_node_that_missed_connections_is_the_older_one() {
        assert_eq!(compare(stored(5 * G, 0), stored(5 * G, 0)), Histories::Same);
        assert_eq!(
            compare(stored(5 * G, 0), stored(6 * G, 5 * G)),
            Histories::Same,
            "broke off before the primary had it"
        );
        assert_eq!(
            compare(stored(6 * G, 5 * G), stored(5 * G, 0)),
            Histories::Same,
            "and then the roles changed"
        );
        assert_eq!(compare(stored(7 * G, 0), stored(5 * G, 0)), Histories::PrimaryAhead);
        assert_eq!(compare(stored(5 * G, 0), stored(7 * G, 0)), Histories::SecondaryAhead);
        assert_eq!(compare(stored(5 * G + 1, 0), stored(5 * G + 2, 0)), Histories::Apart);
        for (one, other) in [(0, 5 * G), (5 * G, 0), (0, 0)] {
            assert_eq!(compare(stored(one, 0), stored(other, 0)), Histories::Unknown);
        }
    }

    #[test]
    fn everything_is_copied_from_the_node_that_has_seen_more_unless_the_other_was_written() {
        use SyncSource::{Primary, Secondary};
        let counts = |local, remote| Counted { now: Counts { local, remote }, then: local };
        let in_step = accept(MapToSend::Own, Primary);
        let with = |p, s, histories| judged(in_step, p, s, false, histories);
        let (p, s) = (counts(3, 5), counts(5, 3));
        assert_eq!(with(p, s, Histories::Same), in_step);
        assert_eq!(with(p, s, Histories::Unknown), in_step);
        assert_eq!(with(p, s, Histories::PrimaryAhead), accept(MapToSend::Full, Primary));
        assert_eq!(with(p, s, Histories::SecondaryAhead), accept(MapToSend::Full, Secondary));
        assert_eq!(with(p, s, Histories::Apart), Decision::SplitBrain);
        assert_eq!(
            judged(in_step, p, s, true, Histories::SecondaryAhead),
            Decision::SplitBrain,
            "neither is good"
        );
        assert_eq!(judged(in_step, p, s, true, Histories::PrimaryAhead), accept(MapToSend::Full, Primary));
        assert_eq!(with(p, counts(6, 3), Histories::PrimaryAhead), Decision::SplitBrain);
        assert_eq!(with(counts(4, 5), s, Histories::SecondaryAhead), Decision::SplitBrain);
        // The primary is older than what the secondary knows of it: the counts alone would make it the source.
        assert_eq!(with(counts(2, 5), s, Histories::SecondaryAhead), accept(MapToSend::Full, Secondary));
        // Set back, and written alone until its count is the one that the other node remembers.
        let alone = |counted: Counted| Counted { then: counted.now.local - 1, ..counted };
        assert_eq!(with(alone(p), s, Histories::SecondaryAhead), Decision::SplitBrain);
        assert_eq!(with(p, alone(s), Histories::PrimaryAhead), Decision::SplitBrain);
        // Of the one that has seen more, it says nothing.
        assert_eq!(with(p, alone(s), Histories::SecondaryAhead), accept(MapToSend::Full, Secondary));
        assert_eq!(with(alone(p), alone(s), Histories::Same), in_step);
        let newer = accept(MapToSend::Own, Secondary);
        let with_newer = |p, histories| judged(newer, p, s, false, histories);
        assert_eq!(with_newer(p, Histories::Same), newer);
        assert_eq!(
            with_newer(alone(p), Histories::Same),
            Decision::SplitBrain,
            "a clone of the primary's disk"
        );
        assert_eq!(with_newer(alone(p), Histories::Unknown), newer);
        assert_eq!(judged(Decision::Mismatch, p, s, false, Histories::Apart), Decision::Mismatch);
        assert_eq!(judged(Decision::SplitBrain, p, s, false, Histories::PrimaryAhead), Decision::SplitBrain);
    }

    #[test]
    fn generations_only_rise() {
        assert_eq!(next(stored(0, 0), stored(0, 0), 9), G + 9);
        assert_eq!(next(stored(5 * G + 7, 0), stored(3 * G, 0), 9), 6 * G + 9);
        assert_eq!(next(stored(u64::MAX, 0), stored(0, 0), 9), (u64::from(u32::MAX) << 32) + 9);
    }

    proptest! {
        /// Two nodes that nobody has tampered with, any number of attempts that end at any step, in either role: they
        /// never seem to be apart. And a node that is set back to before the last connection that both completed is
        /// found to be the older one.
        #[test]
        fn honest_nodes_are_never_apart(
            steps in proptest::collection::vec((any::<bool>(), 0..4_u8, any::<u32>()), 1..40),
        ) {
            let mut nodes = [stored(0, 0); 2];
            let mut complete = None;
            for (turned, reached, draw) in steps {
                let (p, s) = (usize::from(turned), usize::from(!turned));
                let histories = compare(nodes[p], nodes[s]);
                prop_assert!(matches!(histories, Histories::Same | Histories::Unknown), "{nodes:?}");
                let generation = next(nodes[p], nodes[s], draw);
                let before = nodes;
                if reached >= 1 {
                    nodes[s] = stored(generation, nodes[p].last);
                }
                if reached >= 2 {
                    nodes[p] = stored(generation, 0);
                }
                if reached >= 3 {
                    nodes[s].before = 0;
                    complete = Some(before);
                }
            }
            if let Some(older) = complete {
                for (node, old) in older.into_iter().enumerate() {
                    let found = compare(old, nodes[1 - node]);
                    prop_assert!(matches!(found, Histories::SecondaryAhead | Histories::Unknown), "{old:?} {nodes:?}");
                }
            }
        }
    }
}
