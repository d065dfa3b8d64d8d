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
        } else if standing.relies && !there && matches!(standing.remote, Half::Lost | Half::Done) {
            Verdict::TakeBack
        } else if there && (here || !standing.behind) {
            let rests_there = !here || standing.relies;
            if rests_there && standing.is_write && !standing.flushed {
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

/// What the map learns. A delete that neither disk knows has changed nothing.
#[test]
fn the_map_learns_what_is_certain() {
    for standing in all().filter(Standing::is_answered) {
        let unknown = matches!(standing.remote, EOPNOTSUPP | Half::NotAsked) && standing.local == EOPNOTSUPP;
        let both = standing.is_confirmed() && standing.same_connection;
        let expected = match (!standing.is_write && unknown, both) {
            (true, _) => Outcome::NotIssued,
            (false, true) => Outcome::StoredOnBoth,
            (false, false) => Outcome::Unconfirmed,
        };
        assert_eq!(standing.outcome(), expected, "{standing:?}");
    }
}

#[test]
fn a_half_is_missed_unless_it_is_done_or_may_be() {
    let missed = HALVES.map(Half::is_missed);
    assert_eq!(missed, [true, false, false, true, true, true]);
}
