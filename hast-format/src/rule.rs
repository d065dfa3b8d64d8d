//! The names of the rules that keep data safe, and, in mutants only, the switch that breaks one of them.
//!
//! A rule that nothing tests may as well not be there. With the feature `mutants` one rule at a time can be
//! switched off, and the simulator has to notice. Without the feature, as everything ships, [`keeps`] is the
//! constant `true` and the switch does not exist.

/// A rule: L items of spec/defects.md, the others of spec/durability.md.
#[allow(missing_docs)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Rule {
    L1 = 1,
    L2,
    L3,
    L4,
    L5,
    L6,
    L7,
    L8,
    L9,
    L10,
    L11,
    L12,
    L13,
    L14,
    L15,
    L16,
    L17,
    L18,
    L19,
    L20,
    M1,
    M2,
    M3,
    M4,
    M5,
    C1a,
    C1b,
    C1c,
    C2,
    C4,
    C5,
    Power,
    /// A map is not relied on after a discard unless both nodes know that it is of their parting.
    P1,
    /// A client's flush that the secondary has no part in is counted (durability.md C1 (d)).
    C1d,
    /// A flush that the secondary failed is complete once the secondary has marked itself (durability.md, Flush).
    L9Marked,
    /// An extent is called stale once all that the secondary has acknowledged of it is durable there (durability.md S1).
    S1,
    /// An answer of the secondary to a read counts if its copy was right all the while (durability.md R1).
    R1,
    /// A planned end marks a secondary that lacks something (durability.md C4).
    C4Marked,
    /// A secondary that is not sure of what it stored says so (durability.md B1).
    B1,
    /// A disk that cannot be written is given up, and the resource lives on the secondary's (durability.md, A5).
    A5,
    /// Nodes that did not see the same connections know it (durability.md G1).
    G1,
    /// A node whose disk was set back and that was written alone since then is not overwritten (durability.md G1).
    G1Counted,
    /// A flush that began before the connection says nothing about the secondary (durability.md, Flush).
    A1,
    /// A node that cannot read what its metadata say of stale extents counts as out of date.
    A3,
    /// A write to what is known to be stale costs no save of the metadata.
    A4,
    /// A request waits once for a secondary that is away, however often that comes and goes.
    A6,
    /// A secondary of an original remembers that it may lack something.
    A7,
    /// A delete is given out only if both nodes read zeros then (durability.md D1).
    D1,
}

impl Rule {
    /// Every rule.
    pub const ALL: [Rule; 48] = [
        Rule::L1,
        Rule::L2,
        Rule::L3,
        Rule::L4,
        Rule::L5,
        Rule::L6,
        Rule::L7,
        Rule::L8,
        Rule::L9,
        Rule::L10,
        Rule::L11,
        Rule::L12,
        Rule::L13,
        Rule::L14,
        Rule::L15,
        Rule::L16,
        Rule::L17,
        Rule::L18,
        Rule::L19,
        Rule::L20,
        Rule::M1,
        Rule::M2,
        Rule::M3,
        Rule::M4,
        Rule::M5,
        Rule::C1a,
        Rule::C1b,
        Rule::C1c,
        Rule::C2,
        Rule::C4,
        Rule::C5,
        Rule::Power,
        Rule::P1,
        Rule::C1d,
        Rule::L9Marked,
        Rule::S1,
        Rule::R1,
        Rule::C4Marked,
        Rule::B1,
        Rule::A5,
        Rule::G1,
        Rule::G1Counted,
        Rule::A1,
        Rule::A3,
        Rule::A4,
        Rule::A6,
        Rule::A7,
        Rule::D1,
    ];
}

/// Whether this build has the switch.
pub const MUTANTS: bool = cfg!(feature = "mutants");

#[cfg(not(feature = "mutants"))]
/// Whether the rule is kept: always.
#[must_use]
#[inline(always)]
pub const fn keeps(_rule: Rule) -> bool {
    true
}

#[cfg(feature = "mutants")]
mod switch {
    use core::sync::atomic::{AtomicU8, Ordering};

    use super::Rule;

    static BROKEN: AtomicU8 = AtomicU8::new(0);

    /// Whether the rule is kept: all but the broken one.
    #[must_use]
    pub fn keeps(rule: Rule) -> bool {
        BROKEN.load(Ordering::Relaxed) != rule as u8
    }

    /// Breaks one rule, in the whole process, or none.
    pub fn break_rule(rule: Option<Rule>) {
        BROKEN.store(rule.map_or(0, |rule| rule as u8), Ordering::Relaxed);
    }
}

#[cfg(feature = "mutants")]
pub use switch::{break_rule, keeps};
