//! The decisions about a write, in every case of a bounded domain: what follows from both halves of it.

use super::*;
use hast_format::activemap::Outcome;

const EOPNOTSUPP: Half = Half::Failed(Errno::EOPNOTSUPP);
const HALVES: [Half; 6] =
    [Half::NotAsked, Half::Awaited, Half::Done, Half::Failed(Errno::EIO), EOPNOTSUPP, Half::Lost];
const MODES: [Replication; 3] = [Replication::Fullsync, Replication::Memsync, Replication::Async];

/// Writes and deletes in every state.
fn all() -> impl Iterator<Item = Standing> {
    (0..512).flat_map(|bits: u32| {
        let bit = move |n: u32| bits & (1 << n) != 0;
        MODES.into_iter().flat_map(move |mode| {
            HALVES.into_iter().flat_map(move |local| {
                HALVES.into_iter().map(move |remote| Standing {
                    mode,
                    is_write: bit(0),
                    local,
                    remote,
                    received: bit(1),
                    suspect: bit(2),
                    same_connection: bit(3),
                    is_up: bit(4),
                    relies: bit(5),
                    behind: bit(6),
                    is_cut_off: bit(7),
                    flushed: bit(8),
                })
            })
        })
    })
}

/// Who has it, said anew.
fn holders(standing: &Standing) -> (bool, bool, bool) {
    let answered = standing.local != Half::Awaited && standing.remote != Half::Awaited;
    let here = standing.local == Half::Done && !standing.suspect;
    let still_there = standing.same_connection && standing.is_up;
    let there = standing.remote == Half::Done && (still_there || (here && !standing.relies));
    (answered, here, there)
}

#[test]
fn who_holds_a_write_and_whether_a_count_is_owed() {
    for standing in all() {
        let (answered, here, there) = holders(&standing);
        assert_eq!(
            (standing.is_answered(), standing.is_here(), standing.is_there()),
            (answered, here, there)
        );
        assert_eq!(standing.is_held(), here || there, "{standing:?}");
        let owes = answered && standing.local == Half::Done && !there;
        assert_eq!(standing.owes_count(), owes, "C1: {standing:?}");
        let confirmed = standing.local == Half::Done && standing.remote == Half::Done;
        assert_eq!(standing.is_confirmed(), confirmed, "{standing:?}");
    }
}

/// When the device is told, and what. The mode says how much is enough before both nodes have answered; after that it
/// is no matter.
#[test]
fn a_verdict_follows_from_who_holds_it() {
    for standing in all() {
        let (answered, here, there) = holders(&standing);
        let mode_is_satisfied = match standing.mode {
            Replication::Fullsync => false,
            Replication::Memsync => standing.received,
            Replication::Async => true,
        };
        let expected = if !answered {
            let early = standing.is_write && here && !standing.relies && mode_is_satisfied;
            if early { Verdict::Complete } else { Verdict::Wait }
        } else if !standing.is_write && matches!(standing.remote, Half::Failed(_)) {
            Verdict::Fail
        } else if standing.relies && !there && matches!(standing.remote, Half::Lost | Half::Done) {
            Verdict::TakeBack
        } else if there && (here || !standing.behind) {
            let rests_there = !here || standing.relies;
            if rests_there && !standing.flushed {
                Verdict::FlushThere
            } else if here {
                Verdict::Complete
            } else {
                Verdict::WriteDown
            }
        } else if here && !standing.relies && !standing.is_cut_off {
            Verdict::WriteDown
        } else {
            Verdict::Fail
        };
        assert_eq!(standing.verdict(), expected, "{standing:?}");
    }
}

/// What the map learns. A disk that says that it cannot delete may have freed a part of the range.
#[test]
fn the_map_learns_what_is_certain() {
    for standing in all().filter(Standing::is_answered) {
        let both = standing.is_confirmed() && standing.same_connection;
        let expected = if both { Outcome::StoredOnBoth } else { Outcome::Unconfirmed };
        assert_eq!(standing.outcome(), expected, "{standing:?}");
    }
}

/// D1: a delete is complete if each node that is there has left zeros: on both, or on the only one; our disk may have
/// failed it where the secondary's copy is to be read.
#[test]
fn a_complete_delete_left_zeros_wherever_it_is_read() {
    for delete in all().filter(|standing| !standing.is_write) {
        let (answered, here, there) = holders(&delete);
        match delete.verdict() {
            Verdict::Complete => assert!(answered && here && there, "{delete:?}"),
            Verdict::WriteDown => {
                let alone =
                    here && !there && matches!(delete.remote, Half::NotAsked | Half::Lost | Half::Awaited);
                let stale_here = there && !here && delete.flushed && !delete.behind;
                assert!(answered && (alone || stale_here), "{delete:?}");
            }
            _ => {}
        }
    }
}

/// D1: localcnt rises for what the device was told and the secondary lacks. A delete that a connected secondary has not
/// carried out the device is told the truth about.
#[test]
fn a_delete_raises_localcnt_only_where_this_node_is_alone() {
    for delete in all().filter(|standing| !standing.is_write) {
        let counted = delete.verdict() == Verdict::WriteDown && delete.is_here();
        let alone = matches!(delete.remote, Half::NotAsked | Half::Lost);
        assert!(!counted || alone, "{delete:?}");
        assert!(
            !matches!(delete.remote, Half::Failed(_))
                || !matches!(delete.verdict(), Verdict::Complete | Verdict::WriteDown)
        );
    }
}

/// What a delete promises a write of zeros does too: where a delete is complete, so would the write be.
#[test]
fn a_delete_is_never_complete_before_a_write() {
    for delete in all().filter(|standing| !standing.is_write) {
        let write = Standing { is_write: true, ..delete };
        let (deleted, written) = (delete.verdict(), write.verdict());
        let refused = deleted == Verdict::Fail && matches!(delete.remote, Half::Failed(_));
        let waits = deleted == Verdict::Wait && written == Verdict::Complete;
        assert!(deleted == written || refused || waits, "{delete:?}: {deleted:?}, {written:?}");
        assert_eq!(delete.outcome(), write.outcome());
    }
}

#[test]
fn a_half_is_missed_unless_it_is_done_or_may_be() {
    let missed = HALVES.map(Half::is_missed);
    assert_eq!(missed, [true, false, false, true, true, true]);
}
