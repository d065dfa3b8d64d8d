//! The original's rules, or what ours were before, one at a time, in the place of ours. Each must lead to a loss that the
//! checker finds.

use hast_engine::{Counts, FlushEnding, Flushed, flush_ending};

/// A mistake of the original (spec/defects.md), or one against a rule that it never had (durability.md).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Variant {
    /// A write in flight when the connection breaks counts as stored on both nodes.
    L1,
    /// A write that failed on the secondary's disk counts as stored on both nodes.
    L2,
    /// A write that failed on the local disk counts as stored on both nodes.
    L3,
    /// localcnt rises only if it equals the secondary's last known remotecnt.
    L5,
    /// A secondary does not know that it is being synchronised.
    L6,
    /// Metadata is written and not flushed.
    L7,
    /// A flush that failed on one node succeeds, and nothing is remembered.
    L9,
    /// Bits are cleared after a flush of the local disk alone.
    L10,
    /// A client's flush that the secondary has no part in is not counted.
    C1d,
    /// Whoever was the primary last takes its map for complete, though it has not been connected since it took over.
    MapComplete,
    /// A flush that the secondary failed is complete before the secondary has marked itself.
    L9Marked,
    /// An extent becomes stale before the secondary has flushed what it has acknowledged of it.
    S1,
    /// An answer of the secondary to a read counts, whatever the secondary lacks.
    R1,
    /// A planned end leaves a secondary unmarked that lacks something.
    C4Marked,
    /// A secondary forgets what a failed flush has dropped.
    B1,
    /// Nodes do not compare the generations of their connections.
    G1,
    /// A node that was set back does not know that it was written alone since.
    G1Counted,
}

impl Variant {
    /// Every one of them.
    pub const ALL: [Variant; 17] = [
        Variant::L1,
        Variant::L2,
        Variant::L3,
        Variant::L5,
        Variant::L6,
        Variant::L7,
        Variant::L9,
        Variant::L10,
        Variant::C1d,
        Variant::MapComplete,
        Variant::L9Marked,
        Variant::S1,
        Variant::R1,
        Variant::C4Marked,
        Variant::B1,
        Variant::G1,
        Variant::G1Counted,
    ];

    /// Whether the original makes it, and what a row calls it then.
    #[must_use]
    pub fn title(self) -> String {
        let original = matches!(
            self,
            Variant::L1
                | Variant::L2
                | Variant::L3
                | Variant::L5
                | Variant::L6
                | Variant::L7
                | Variant::L9
                | Variant::L10
        );
        if original { format!("original's {self:?}") } else { format!("without {self:?}") }
    }

    /// What is done instead of what our rule says.
    #[must_use]
    pub fn mistake(self) -> &'static str {
        match self {
            Variant::L1 => "a write in flight when the connection breaks counts as stored on both nodes",
            Variant::L2 => "a write that failed on the secondary's disk counts as stored on both nodes",
            Variant::L3 => "a write that failed on the local disk counts as stored on both nodes",
            Variant::L5 => "localcnt rises only if it equals the secondary's last known remotecnt",
            Variant::L6 => "a secondary does not know that it is out of date",
            Variant::L7 => "metadata is written and not flushed",
            Variant::L9 => "a flush that failed on one node succeeds, and nothing is remembered",
            Variant::L10 => "bits are cleared after a flush of the local disk alone",
            Variant::C1d => "a client's flush that the secondary has no part in is not counted",
            Variant::MapComplete => {
                "a node that took over and has not been connected since takes its map for complete"
            }
            Variant::L9Marked => {
                "a flush that the secondary failed is complete before the secondary has marked itself"
            }
            Variant::S1 => "an extent becomes stale before the secondary has flushed it",
            Variant::R1 => "an answer of the secondary to a read counts, whatever it lacks",
            Variant::C4Marked => "a planned end leaves a secondary unmarked that lacks something",
            Variant::B1 => "a secondary forgets what a failed flush has dropped",
            Variant::G1 => "the generations of connections are not compared",
            Variant::G1Counted => {
                "what a disk that was set back was written alone is told by the counts alone"
            }
        }
    }

    /// The one of that name.
    #[must_use]
    pub fn parse(name: &str) -> Option<Variant> {
        Variant::ALL.into_iter().find(|variant| format!("{variant:?}") == name)
    }
}

/// L5: the original's rise of localcnt.
#[must_use]
pub fn original_raised(counts: Counts, resuid: u64, secondary: Counts) -> (Counts, bool) {
    if counts.local == secondary.remote { counts.raised(resuid, secondary) } else { (counts, false) }
}

/// L9: the original's end of a flush: good if either side was.
#[must_use]
pub fn original_flush_ending(local: Flushed, remote: Flushed) -> FlushEnding {
    match (local, remote) {
        (Flushed::Yes, Flushed::Failed) | (Flushed::Failed, Flushed::Yes) => FlushEnding::Durable,
        _ => flush_ending(local, remote),
    }
}
