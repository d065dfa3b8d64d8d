//! The original's rules, one at a time, in the place of ours. Each must lead to a loss that the checker finds.

use hast_engine::{Counts, FlushEnding, Flushed, flush_ending};

/// A mistake of the original (spec/defects.md).
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
}

impl Variant {
    /// Every one of them.
    pub const ALL: [Variant; 8] = [
        Variant::L1,
        Variant::L2,
        Variant::L3,
        Variant::L5,
        Variant::L6,
        Variant::L7,
        Variant::L9,
        Variant::L10,
    ];

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
