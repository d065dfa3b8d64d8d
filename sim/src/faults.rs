//! What a storm may do beyond crashes, broken links and disks that fail now and then: each by name, so that a plan can
//! say which of them are on.

use std::fmt;
use std::str::FromStr;

use crate::random::Random;

macro_rules! faults {
    ($($(#[$doc:meta])+ $name:ident,)+) => {
        /// One thing that a storm may do.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Fault {
            $($(#[$doc])+ $name,)+
        }

        impl Fault {
            /// All of them.
            pub const ALL: &[Fault] = &[$(Fault::$name,)+];
        }
    };
}

faults! {
    /// Both nodes lose power at once.
    BothPower,
    /// Sectors of the metadata stay bad.
    BadMetadata,
    /// Sectors of the map stay bad.
    BadMap,
    /// Sectors of the data area stay bad.
    BadData,
    /// A disk answers EIO to everything for a long time.
    DeadDisk,
    /// A disk takes long for everything.
    SlowDisk,
    /// The primary dies at any moment, connected or not, and the other node is promoted unless it is marked.
    BlindFailover,
    /// The primary dies right after the secondary came back.
    EarlyFailover,
    /// The primary is stopped as planned, and then power is lost.
    PlannedStop,
    /// A secondary's disk becomes what it was a while ago.
    Rollback,
    /// A secondary's disk becomes a copy of the primary's.
    Clone,
    /// A node cannot delete, or not so that zeros are left.
    NoDelete,
    /// Deletes fail now and then.
    DeleteFails,
    /// hast.conf is read again, with other addresses or not.
    Reload,
    /// ... with another replication mode.
    ModeChange,
    /// ... with map writes flushed or not.
    Metaflush,
    /// A marked node is promoted by force.
    Force,
    /// A node gives its changes up, whatever they are.
    Discard,
    /// A flush that fails has also dropped what was written after it began.
    DropsLater,
    /// What a flush is going to report as failed is dropped before it says so.
    DropsEarly,
    /// The system drops what it could not write back, and the next flush says so.
    WriteBack,
    /// A machine sleeps: nothing happens on it, and its clock stands still or does not.
    Sleep,
    /// Each node's clock goes at a rate of its own.
    Clocks,
    /// A loss of power leaves one data sector written in part.
    TornData,
    /// Sectors have 4096 bytes.
    BigSectors,
    /// Extents are larger than what is copied at once.
    BigExtents,
    /// Many small extents, and more places that cannot be written than there is room for in the metadata.
    ManyStale,
    /// Both nodes are primary at once.
    TwoPrimaries,
}

/// Some of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FaultSet(u32);

impl FaultSet {
    /// Nothing but what every storm does.
    pub const NONE: FaultSet = FaultSet(0);

    /// All of them.
    #[must_use]
    pub fn all() -> FaultSet {
        Fault::ALL.iter().fold(FaultSet::NONE, |set, fault| set.with(*fault))
    }

    /// What a storm of this seed does: few of `among`, half of them, or all.
    #[must_use]
    pub fn drawn(seed: u64, among: FaultSet) -> FaultSet {
        let mut random = Random::new(seed ^ 0x6661_756c_7473);
        let share = 1 + random.below(8);
        let drawn = Fault::ALL.iter().filter(|_| random.below(8) < share);
        drawn.fold(FaultSet::NONE, |set, fault| if among.has(*fault) { set.with(*fault) } else { set })
    }

    /// Whether it is one of them.
    #[must_use]
    pub fn has(self, fault: Fault) -> bool {
        self.0 & FaultSet::bit(fault) != 0
    }

    /// These, and another one.
    #[must_use]
    pub fn with(self, fault: Fault) -> FaultSet {
        FaultSet(self.0 | FaultSet::bit(fault))
    }

    /// These without one.
    #[must_use]
    pub fn without(self, fault: Fault) -> FaultSet {
        FaultSet(self.0 & !FaultSet::bit(fault))
    }

    /// One after the other.
    pub fn iter(self) -> impl Iterator<Item = Fault> {
        Fault::ALL.iter().copied().filter(move |fault| self.has(*fault))
    }

    fn bit(fault: Fault) -> u32 {
        1 << (fault as u32)
    }
}

/// `BothPower,BadMap`, or `none`.
impl fmt::Display for FaultSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if *self == FaultSet::NONE {
            return f.write_str("none");
        }
        for (index, fault) in self.iter().enumerate() {
            write!(f, "{}{fault:?}", if index == 0 { "" } else { "," })?;
        }
        Ok(())
    }
}

impl FromStr for FaultSet {
    type Err = String;

    /// The form that `Display` writes, or `all`.
    fn from_str(text: &str) -> Result<FaultSet, String> {
        let named = |name: &str| {
            let found = Fault::ALL.iter().copied().find(|fault| format!("{fault:?}") == name);
            found.ok_or_else(|| format!("no fault is called {name}; there are {:?}", Fault::ALL))
        };
        match text {
            "none" => Ok(FaultSet::NONE),
            "all" => Ok(FaultSet::all()),
            names => names.split(',').try_fold(FaultSet::NONE, |set, name| named(name).map(|f| set.with(f))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_reads_as_it_is_written() {
        for set in [FaultSet::NONE, FaultSet::all(), FaultSet::drawn(7, FaultSet::all())] {
            assert_eq!(set.to_string().parse(), Ok(set));
        }
        "BothPower,Nonsense".parse::<FaultSet>().unwrap_err();
        assert_eq!(FaultSet::all().iter().count(), Fault::ALL.len());
        assert!(Fault::ALL.len() <= 32);
    }

    #[test]
    fn storms_differ() {
        let sizes: Vec<usize> =
            (0..50).map(|seed| FaultSet::drawn(seed, FaultSet::all()).iter().count()).collect();
        assert!(sizes.iter().any(|size| *size <= 6) && sizes.iter().any(|size| *size >= 25), "{sizes:?}");
    }
}
