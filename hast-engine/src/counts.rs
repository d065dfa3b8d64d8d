//! Who is out of date: the comparison of the two nodes' counts at the handshake (spec/behaviour.md,
//! Counters and split-brain).

use hast_format::bitmap::Bitmap;
use hast_net::handshake::SyncSource;

use crate::rule::{Rule, keeps};

/// A node's modification counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Times this node was written without the other.
    pub local: u64,
    /// What this node knows of the other's `local`.
    pub remote: u64,
}

impl Counts {
    /// C1: this primary, whose secondary said `secondary` when they last met, completes a write that the
    /// secondary does not have, the first since then. Gives the counts from now on, and whether they must be
    /// durable first: until there is a `resuid` the map alone records writes (C5).
    #[must_use]
    pub fn raised(self, resuid: u64, secondary: Counts) -> (Counts, bool) {
        if resuid == 0 && keeps(Rule::C5) {
            (Counts { local: 1, ..self }, false)
        } else if !keeps(Rule::L5) && self.local != secondary.remote {
            (self, false)
        } else {
            (Counts { local: self.local.saturating_add(1), ..self }, true)
        }
    }

    /// What is saved of them: nothing while there is no `resuid` (C5).
    #[must_use]
    pub fn saved(self, resuid: u64) -> Counts {
        if resuid == 0 && keeps(Rule::C5) { Counts::default() } else { self }
    }

    /// What a primary starts with: without a `resuid` it has not met anybody.
    #[must_use]
    pub fn at_start(self, resuid: u64) -> Counts {
        if resuid == 0 { Counts::default() } else { self }
    }

    /// The secondary has just taken this primary's resuid over, and said that it was never used.
    #[must_use]
    pub fn met_virgin(self) -> Counts {
        Counts { local: self.local.max(1), ..self }
    }

    /// C2: both nodes hold everything, durably: a primary's counts after that, with a secondary that is ours or
    /// an original. Between ours counts only rise; the original's secondary knows only the way back.
    #[must_use]
    pub fn equal_to_secondary(self, secondary: Counts, ours: bool) -> Counts {
        Counts { local: if ours { self.local } else { secondary.remote }, remote: secondary.local }
    }

    /// C2: the secondary's, once the primary has told it its `localcnt`.
    #[must_use]
    pub fn equal_to_primary(self, localcnt: u64) -> Counts {
        Counts { remote: localcnt, ..self }
    }
}

/// What the primary says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hello {
    /// The resource's id, never 0.
    pub resuid: u64,
    /// Its counts.
    pub counts: Counts,
    /// Whether the primary has just drawn the id.
    pub virgin: bool,
}

/// Which map goes back to the primary.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MapToSend {
    /// None: neither node was ever written.
    Nothing,
    /// The secondary's own.
    Own,
    /// One with every bit set.
    Full,
}

/// The secondary's answer to a primary.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// The nodes belong together.
    Accept {
        /// The secondary takes the primary's id first.
        adopt: bool,
        /// What to send.
        map: MapToSend,
        /// Whose data is right where the map has a bit.
        source: SyncSource,
    },
    /// The ids differ: these are two resources.
    Mismatch,
    /// Both nodes were written apart from each other.
    SplitBrain,
}

/// Decides for a secondary with `resuid` and `counts`, whose own map `written` has bits or not.
///
/// A secondary without an id whose map is not empty was written alone, before any handshake (defects.md
/// L20, durability.md C5): that is a split-brain too.
#[must_use]
pub fn decide(hello: Hello, resuid: u64, counts: Counts, written: bool) -> Decision {
    use SyncSource::{Primary, Secondary};
    let Counts { local: pl, remote: pr } = hello.counts;
    let Counts { local: sl, remote: sr } = counts;
    let accept = |adopt, map, source| Decision::Accept { adopt, map, source };
    if hello.resuid == 0 {
        return Decision::Mismatch; // no primary sends that
    }
    if resuid == 0 {
        return match (written && keeps(Rule::L20), hello.virgin) {
            (true, _) => Decision::SplitBrain,
            (false, true) => accept(true, MapToSend::Nothing, Primary),
            (false, false) => accept(true, MapToSend::Full, Primary),
        };
    }
    if resuid != hello.resuid {
        Decision::Mismatch
    } else if sl > pr && sr == pl {
        accept(false, MapToSend::Own, Secondary)
    } else if sl == pr && sr <= pl {
        accept(false, MapToSend::Own, Primary)
    } else if sl > pr && pl > sr {
        Decision::SplitBrain
    } else {
        accept(false, MapToSend::Full, if sl > pr { Secondary } else { Primary })
    }
}

/// Whether a node was written alone before it ever met the other: only a primary writes alone; a map without
/// that is what a broken first contact left (L19). `map` is what lies on its disk.
#[must_use]
pub fn written_alone(was_primary: bool, map: &Bitmap) -> bool {
    was_primary && !map.is_empty()
}

/// L6: whether a secondary of ours that is connected has to mark itself as out of date: it lacks (`behind`) an
/// extent that was not confirmed, or that it may have lost when its host started since the nodes were in step.
/// All that it may lack but a flush it does not, if it runs since.
#[must_use]
pub fn must_be_marked(unconfirmed: bool, restarted: bool, behind: bool) -> bool {
    (unconfirmed || restarted) && behind && keeps(Rule::L6)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(pl: u64, pr: u64, sl: u64, sr: u64) -> Decision {
        let hello = Hello { resuid: 7, counts: Counts { local: pl, remote: pr }, virgin: false };
        decide(hello, 7, Counts { local: sl, remote: sr }, true)
    }

    fn accept(map: MapToSend, source: SyncSource) -> Decision {
        Decision::Accept { adopt: false, map, source }
    }

    #[test]
    fn table_of_behaviour_md() {
        use SyncSource::{Primary, Secondary};
        assert_eq!(at(3, 5, 6, 3), accept(MapToSend::Own, Secondary), "primary out of date");
        assert_eq!(at(3, 5, 5, 3), accept(MapToSend::Own, Primary), "in step");
        assert_eq!(at(4, 5, 5, 3), accept(MapToSend::Own, Primary), "secondary out of date");
        assert_eq!(at(4, 5, 6, 3), Decision::SplitBrain);
        assert_eq!(at(2, 5, 6, 3), accept(MapToSend::Full, Secondary), "should not happen");
        assert_eq!(at(2, 5, 5, 3), accept(MapToSend::Full, Primary), "should not happen");
        assert_eq!(at(2, 5, 4, 3), accept(MapToSend::Full, Primary), "should not happen");
    }

    #[test]
    fn a_rise_is_durable_unless_there_is_no_resuid() {
        let counts = Counts { local: 3, remote: 2 };
        let peer = Counts { local: 2, remote: 1 };
        assert_eq!(counts.raised(7, peer), (Counts { local: 4, remote: 2 }, true), "whatever it knew");
        assert_eq!(Counts::default().raised(0, peer), (Counts { local: 1, remote: 0 }, false));
        assert_eq!(counts.saved(0), Counts::default());
        assert_eq!((counts.saved(7), counts.at_start(7)), (counts, counts));
    }

    #[test]
    fn equal_counts_are_in_step_whichever_node_is_primary_next() {
        for (pl, pr, sl, sr) in all_counts_below(0..3) {
            let secondary = Counts { local: sl, remote: sr };
            let primary = Counts { local: pl, remote: pr }.equal_to_secondary(secondary, true);
            let secondary = secondary.equal_to_primary(primary.local);
            assert_eq!((primary.local, secondary.local), (pl, sl), "localcnt never falls");
            let step = accept(MapToSend::Own, SyncSource::Primary);
            assert_eq!(at(primary.local, primary.remote, secondary.local, secondary.remote), step);
            assert_eq!(at(secondary.local, secondary.remote, primary.local, primary.remote), step);
        }
    }

    #[test]
    fn counts_begin_when_the_nodes_meet() {
        let counts = Counts { local: 3, remote: 2 };
        assert_eq!(Counts::default().met_virgin(), Counts { local: 1, remote: 0 });
        assert_eq!(counts.met_virgin(), counts, "they never fall");
        assert_eq!(counts.at_start(0), Counts::default());
        let original = Counts { local: 6, remote: 4 };
        assert_eq!(counts.equal_to_secondary(original, false), Counts { local: 4, remote: 6 });
    }

    #[test]
    fn a_secondary_is_marked_if_it_lacks_what_was_not_confirmed_or_may_be_lost() {
        for case in 0..8 {
            let [unconfirmed, restarted, behind] = [0, 1, 2].map(|bit| case >> bit & 1 == 1);
            let marked = behind && (unconfirmed || restarted);
            assert_eq!(must_be_marked(unconfirmed, restarted, behind), marked, "L6: {case:03b}");
        }
    }

    #[test]
    fn only_a_primary_writes_alone() {
        let (empty, written) = (Bitmap::from_bytes(8, &[0]), Bitmap::from_bytes(8, &[4]));
        assert!(written_alone(true, &written) && !written_alone(true, &empty));
        assert!(!written_alone(false, &written) && !written_alone(false, &empty));
    }

    #[test]
    fn fresh_and_foreign_secondaries() {
        let hello = Hello { resuid: 7, counts: Counts { local: 1, remote: 0 }, virgin: false };
        let virgin = Hello { virgin: true, ..hello };
        let full = Decision::Accept { adopt: true, map: MapToSend::Full, source: SyncSource::Primary };
        let none = Decision::Accept { adopt: true, map: MapToSend::Nothing, source: SyncSource::Primary };
        assert_eq!(decide(hello, 0, Counts::default(), false), full);
        assert_eq!(decide(virgin, 0, Counts::default(), false), none);
        assert_eq!(decide(virgin, 0, Counts::default(), true), Decision::SplitBrain);
        assert_eq!(decide(hello, 8, Counts::default(), false), Decision::Mismatch);
        assert_eq!(decide(Hello { resuid: 0, ..hello }, 0, Counts::default(), false), Decision::Mismatch);
    }

    #[test]
    fn split_brain_exactly_when_both_changed() {
        for (pl, pr, sl, sr) in all_counts_below(0..4) {
            let both = sl > pr && pl > sr;
            assert_eq!(at(pl, pr, sl, sr) == Decision::SplitBrain, both, "{pl} {pr} {sl} {sr}");
        }
    }

    fn all_counts_below(range: std::ops::Range<u64>) -> impl Iterator<Item = (u64, u64, u64, u64)> {
        let n = range.end;
        (0..n * n * n * n).map(move |i| (i % n, i / n % n, i / n / n % n, i / n / n / n))
    }
}
