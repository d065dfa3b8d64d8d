//! What two nodes of ours can agree on beyond the original's protocol (spec: extensions; docs/PROTOCOL-EXTENSIONS.md).
//!
//! This module owns the words. The primary offers them in its first header, the secondary answers with those
//! that it knows too; a word that both said is active. Without the pair the peer is an original, and nothing
//! on the wire may differ from what an original sends.

use std::fmt;

/// A set of extensions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Extensions(u32);

impl Extensions {
    /// No extension: what an original speaks.
    pub const NONE: Extensions = Extensions(0);
    /// `sync-marks`: the primary tells the secondary when its data is out of date and when no more
    /// ([`crate::message::Mark`]), and the nodes exchange their boot ids.
    pub const SYNC_MARKS: Extensions = Extensions(1 << 0);
    /// `busy`: the secondary says that it still works on a request ([`crate::message::FromSecondary::Busy`]).
    pub const BUSY: Extensions = Extensions(1 << 1);
    /// `parting`: the nodes agree on a number for each connection, by which they know later what has changed since
    /// ([`crate::handshake::Parting`]), and a split-brain is refused with a map.
    pub const PARTING: Extensions = Extensions(1 << 2);
    /// `alive`: the secondary answers keepalives ([`crate::message::FromSecondary::Alive`]), and says after how
    /// long a silence it gives the primary up.
    pub const ALIVE: Extensions = Extensions(1 << 3);
    /// `connection`: each connection has a generation, which both nodes store; nodes that did not store the same one have
    /// not seen the same writes ([`crate::handshake::Met`]).
    pub const CONNECTION: Extensions = Extensions(1 << 4);
    /// `zero-deletes`: the secondary says whether it can delete so that the range reads as zeros, and to one that
    /// cannot no delete is sent ([`crate::handshake::SecondAnswer::zero_deletes`]).
    pub const ZERO_DELETES: Extensions = Extensions(1 << 5);
    /// `reasons`: a node that gives the other one up tells it why, in words
    /// ([`crate::message::FromPrimary::Farewell`]).
    pub const REASONS: Extensions = Extensions(1 << 6);
    /// All that this program knows.
    pub const ALL: Extensions = Extensions::SYNC_MARKS
        .union(Extensions::BUSY)
        .union(Extensions::PARTING)
        .union(Extensions::ALIVE)
        .union(Extensions::CONNECTION)
        .union(Extensions::ZERO_DELETES)
        .union(Extensions::REASONS);

    /// Whether all of these are in the set.
    #[must_use]
    pub const fn contains(self, wanted: Extensions) -> bool {
        self.0 & wanted.0 == wanted.0
    }

    /// Whether they are those of a node of ours, not of an original: each of ours knows `sync-marks`.
    #[must_use]
    pub const fn is_ours(self) -> bool {
        self.contains(Extensions::SYNC_MARKS)
    }

    /// Whether there is none in the set.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// What is in both sets.
    #[must_use]
    pub const fn intersection(self, other: Extensions) -> Extensions {
        Extensions(self.0 & other.0)
    }

    /// What is in either set.
    #[must_use]
    pub const fn union(self, other: Extensions) -> Extensions {
        Extensions(self.0 | other.0)
    }

    /// Reads words between spaces. What this program does not know is left out: a later one may have said it.
    #[must_use]
    pub fn from_words(words: &str) -> Extensions {
        let known = |word| WORDS.iter().find(|(_, name)| *name == word).map(|(extension, _)| *extension);
        words.split(' ').filter_map(known).fold(Extensions::NONE, Extensions::union)
    }

    /// The words, with spaces between; empty for none.
    #[must_use]
    pub fn words(self) -> String {
        let words: Vec<&str> =
            WORDS.iter().filter(|(extension, _)| self.contains(*extension)).map(|(_, word)| *word).collect();
        words.join(" ")
    }
}

impl fmt::Display for Extensions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.words())
    }
}

/// Each extension's word, in the order in which they are sent.
const WORDS: [(Extensions, &str); 7] = [
    (Extensions::SYNC_MARKS, "sync-marks"),
    (Extensions::BUSY, "busy"),
    (Extensions::PARTING, "parting"),
    (Extensions::ALIVE, "alive"),
    (Extensions::CONNECTION, "connection"),
    (Extensions::ZERO_DELETES, "zero-deletes"),
    (Extensions::REASONS, "reasons"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_come_back_and_unknown_ones_do_not() {
        assert_eq!(Extensions::from_words(&Extensions::ALL.words()), Extensions::ALL);
        assert_eq!(Extensions::from_words(""), Extensions::NONE);
        assert_eq!(Extensions::NONE.words(), "");
        assert_eq!(Extensions::from_words("later  sync-marks sync-marks big-"), Extensions::SYNC_MARKS);
        for other in ["Sync-Marks", "sync-marks2", "sync-mark", "sync-marks\t"] {
            assert_eq!(Extensions::from_words(other), Extensions::NONE, "{other}");
        }
    }

    #[test]
    fn sets_are_sets() {
        let (none, marks) = (Extensions::NONE, Extensions::SYNC_MARKS);
        assert!(marks.contains(marks) && marks.contains(none) && !none.contains(marks));
        assert!(none.is_empty() && !marks.is_empty());
        assert_eq!((marks.intersection(none), none.union(marks)), (none, marks));
        assert_eq!(WORDS.iter().fold(none, |all, (extension, _)| all.union(*extension)), Extensions::ALL);
    }
}
