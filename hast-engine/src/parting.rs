//! When two nodes have parted, and what is known of the difference since: the numbers by which nodes of ours can tell
//! that their two maps together hold every extent in which their copies differ.
//!
//! # What it is for
//!
//! After a split-brain one node gives up what it has written (`hastctl discard`) and becomes the other one's
//! secondary. With the original all of the disk has to be copied then. It is enough to copy the extents of *both*
//! maps, the survivor's and the giver's, if those are known to hold every difference. This module decides whether
//! they are. In every doubt they are not, and everything is copied.
//!
//! # What has to be proved
//!
//! Let X be the survivor, Y the node that gives up, D the extents in which their data areas differ. D must be within
//! map(X) ∪ map(Y) ∪ stale(X) ∪ stale(Y), where map is what a node's disk holds durably and stale is what its
//! metadata calls so. Without more that is not so: either map may have been cleared since, because its node was in
//! step with a third one (a spare that replaced this one), because an original cleared it by rules of its own
//! (defects.md, L1, L2, L4, L10), or because it was never made durable (`metaflush off`).
//!
//! # The numbers
//!
//! Each connection of two nodes of ours has a number, drawn at random by its primary for this one attempt and said
//! in the second step of the handshake. Each node keeps one number in its metadata, `parted`; 0 is none.
//!
//! 1. The *secondary* stores the number of a connection durably before it answers the handshake, so before it clears
//!    its map, which it does when the first request comes. If that cannot be stored it goes on: what its disk says
//!    then is an older number, which nobody else will have any more (see 2).
//! 2. The *primary* stores it durably once the merged map is durable, and before the nodes count as connected: so
//!    before the first request, and before it clears the first bit.
//! 3. With a peer that does not know this (an original, or an older hastd) both store 0 instead, at the latest where
//!    1 and 2 would store a number: the primary before it says who it is, the secondary before it answers.
//! 4. A primary whose map writes are not flushed stores 0 before it serves anything, and gives its connections no
//!    number; if that is switched while it runs, flushing goes on until the 0 is durable.
//! 5. `create` leaves 0, and an original that saves metadata zeroes the area with the number in it. A primary that is
//!    made so by force after its changes were given up has 0.
//!
//! # Why equal numbers are enough
//!
//! Say parted(X) = parted(Y) = e ≠ 0. Numbers are not drawn twice, so both stored that of one and the same
//! connection, and neither has reached 1 or 2 of any other since: X and Y were its two ends, P the primary, S the
//! secondary. P has stored e, so its merged map was durable at some moment t. By what the handshake rests on
//! anyway, the difference at t was within that map (all of it was set, if the counts could not be relied on).
//!
//! - *From t to the end of the connection* writes came from P only. Their bits were durable before either disk was
//!   asked (M1); a bit was cleared only after a flush on both nodes that covered it (M2); what is not durable at the
//!   end stays in P's map, whatever either node loses with its power (M3, L1, L2, L4, L10), or is called stale in the
//!   metadata (L3, L9). S cleared its map after t, and P's held all of it.
//! - *From then on* each of them has perhaps been primary, alone, any number of times. A primary without a connection
//!   clears no bit, and sets one durably before it writes (M1, L11). A secondary without a connection writes nothing.
//!   Attempts that were refused, or broke off before 1, change neither map nor number. One that broke off between 1
//!   and 2 makes the numbers differ.
//! - *Giving up* changes the metadata of Y in one save, and neither its map nor its data. Y writes nothing until a
//!   primary is accepted, and keeps its map on disk until that one has it durably, like any other secondary. Its
//!   metadata says resource id 0 meanwhile, so that whoever knows no more copies everything.
//!
//! So D is within the maps and the stale extents, which X merges and Y adds to the map that it sends. X alone
//! decides nothing by the number: it says which it has, and Y compares and sends its map or a full one.
//!
//! Y takes X's resource id over only with its map durable on disk (L19), and as its localcnt what X knows of it: the
//! periods after that are given up. Should this first contact break off, the next one finds a secondary that is out
//! of date, with its own map, and goes on with what is left.
//!
//! # What cannot be known
//!
//! An original that runs on one of the two disks meanwhile, alone, and neither counts its period (its L5, our C3) nor
//! saves metadata for another reason, leaves no trace. Its writes are in the map, its deletes are not (L4). The
//! manual says that everything has to be copied then. The same goes for a disk that was changed behind hastd's back,
//! say by restoring an image.

use hast_format::bitmap::Bitmap;
use hast_format::metadata::Metadata;
use hast_net::control::Divergence;
use hast_net::handshake::{Parting, SecondHello};

use crate::counts::MapToSend;
use crate::rule::{Rule, keeps};

/// Whether two nodes' maps are of the same parting.
#[must_use]
pub(crate) fn is_exact(one: u64, other: u64) -> bool {
    (one == other && one != 0) || !keeps(Rule::P1)
}

/// Whether this node's changes were given up, and it has not met a primary since.
#[must_use]
pub(crate) fn is_given_up(metadata: &Metadata) -> bool {
    metadata.resuid == 0 && metadata.extension.given_up != 0
}

/// What a secondary whose changes were given up sends: its map if the two of them hold every difference.
#[must_use]
pub(crate) fn map_after_giving_up(metadata: &Metadata, hello: &SecondHello) -> MapToSend {
    let extension = &metadata.extension;
    let last = hello.parting.map_or(0, |parting| parting.last);
    let same = extension.given_up == hello.resuid && !hello.virgin;
    if same && is_exact(last, extension.parted) { MapToSend::Own } else { MapToSend::Full }
}

/// The number that a secondary stores for the connection that it is asked for.
#[must_use]
pub(crate) fn number_of(parting: Option<Parting>) -> u64 {
    parting.map_or(0, |parting| parting.next)
}

/// A number for a connection that is about to be asked for, not 0: each attempt of each worker has another one.
/// `random` is the worker's, `attempt` counts.
#[must_use]
pub(crate) fn draw(random: u64, attempt: u64) -> u64 {
    // SplitMix64: nothing of the resource id, for which the same number may have been taken, shows.
    let mut drawn = random.wrapping_add(attempt.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    drawn = (drawn ^ (drawn >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    drawn = (drawn ^ (drawn >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    (drawn ^ (drawn >> 31)).max(1)
}

/// The other node's map, and the number it has, as it refused a connection with them.
#[derive(Debug)]
pub(crate) struct Apart {
    pub(crate) map: Bitmap,
    pub(crate) parted: u64,
}

impl Apart {
    /// How far the copies are apart: `here` are the extents of this node's map.
    pub(crate) fn divergence(&self, here: &Bitmap, parted: u64, extentsize: u32) -> Divergence {
        let both = here.iter().filter(|extent| self.map.contains(*extent)).count();
        Divergence {
            extentsize,
            here: here.count().into(),
            there: self.map.count().into(),
            both: both as u64,
            exact: is_exact(parted, self.parted),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hast_format::layout::Layout;

    fn given_up(parted: u64) -> Metadata {
        let layout = Layout::create(1 << 20, 512, 4096).unwrap();
        let mut metadata = Metadata::created("r", &layout, 4);
        metadata.resuid = 7;
        metadata.extension.parted = parted;
        metadata.discarded(0, "x")
    }

    fn hello(resuid: u64, virgin: bool, last: Option<u64>) -> SecondHello {
        let parting = last.map(|last| Parting { last, next: 99, divergence: None });
        let (resource, token) = ("r".into(), [0; 16]);
        SecondHello {
            resource,
            token,
            virgin,
            resuid,
            localcnt: 3,
            remotecnt: 2,
            boot: None,
            parting,
            meeting: None,
        }
    }

    #[test]
    fn only_equal_numbers_of_the_same_resource_spare_anything() {
        let sent =
            |own, resuid, virgin, last| map_after_giving_up(&given_up(own), &hello(resuid, virgin, last));
        assert_eq!(sent(5, 7, false, Some(5)), MapToSend::Own);
        for (own, resuid, virgin, last) in [
            (5, 7, false, Some(6)),
            (5, 7, false, Some(0)),
            (0, 7, false, Some(0)),
            (5, 7, false, None),
            (0, 7, false, None),
            (5, 8, false, Some(5)),
            (5, 7, true, Some(5)),
        ] {
            assert_eq!(sent(own, resuid, virgin, last), MapToSend::Full, "{own} {resuid} {virgin} {last:?}");
        }
    }

    #[test]
    fn numbers_differ_from_attempt_to_attempt() {
        let drawn: std::collections::BTreeSet<u64> =
            (1..50).flat_map(|random| (0..50).map(move |attempt| draw(random, attempt))).collect();
        assert_eq!(drawn.len(), 49 * 50);
        assert!(!drawn.contains(&0));
    }

    #[test]
    fn extents_are_counted_once() {
        let map = |extents: &[u32]| {
            let mut map = Bitmap::new(16);
            extents.iter().for_each(|extent| _ = map.insert(*extent));
            map
        };
        let apart = Apart { map: map(&[1, 2, 3]), parted: 9 };
        let seen = apart.divergence(&map(&[3, 4]), 9, 512);
        assert_eq!(seen, Divergence { extentsize: 512, here: 2, there: 3, both: 1, exact: true });
        assert_eq!(seen.either(), 4);
        assert_eq!(seen.seen_from_there(), Divergence { here: 3, there: 2, ..seen });
        assert!(!apart.divergence(&map(&[]), 8, 512).exact);
        assert!(!Apart { map: map(&[]), parted: 0 }.divergence(&map(&[]), 0, 512).exact);
    }
}
