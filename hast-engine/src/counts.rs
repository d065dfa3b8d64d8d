//! Who is out of date: the comparison of the two nodes' counts at the handshake (spec/behaviour.md,
//! Counters and split-brain).

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
