//! The handshake's table (spec/behaviour.md, Counters and split-brain): total, deterministic, the same whichever
//! node is the primary, and a split-brain exactly when both nodes were changed apart from each other.

use hast_engine::{Counts, Decision, Hello, MapToSend, decide};
use hast_net::handshake::SyncSource;

use crate::source::{Case, Source};

/// The code under proof.
pub trait Subject {
    /// The secondary's answer.
    fn decide(hello: Hello, resuid: u64, counts: Counts, written: bool) -> Decision {
        decide(hello, resuid, counts, written)
    }
}

/// The code as it ships.
#[derive(Clone, Copy, Debug)]
pub struct Real;
impl Subject for Real {}

/// Counts at both ends of what there is, and those between which every order and equality occurs.
const FEW: [u64; 7] = [0, 1, 2, 3, 4, u64::MAX - 1, u64::MAX];

/// Every row of the table, for all that the two nodes can say: there is an answer, it is the table's, and asking
/// again gives it again.
pub fn table<T: Subject>(source: &mut impl Source) -> Case {
    let all = 0..=u64::MAX;
    let [pl, pr, sl, sr] = [(); 4].map(|()| source.number(all.clone(), &FEW));
    let [theirs, ours] = [(); 2].map(|()| source.number(all.clone(), &[0, 7, 8]));
    let (virgin, written) = (source.bool(), source.bool());
    let hello = Hello { resuid: theirs, counts: Counts { local: pl, remote: pr }, virgin };
    let counts = Counts { local: sl, remote: sr };
    let found = T::decide(hello, ours, counts, written);
    let full = if virgin { MapToSend::Nothing } else { MapToSend::Full };
    let accept = |map, source| Decision::Accept { adopt: false, map, source };
    use SyncSource::{Primary, Secondary};
    // The table as the spec has it, row by row; the first that fits.
    let rows = [
        (theirs == 0, Decision::Mismatch),
        // Written before any handshake (L20), or fresh.
        (ours == 0 && written, Decision::SplitBrain),
        (ours == 0, Decision::Accept { adopt: true, map: full, source: Primary }),
        (ours != theirs, Decision::Mismatch),
        (sl > pr && sr == pl, accept(MapToSend::Own, Secondary)),
        (sl == pr && sr == pl, accept(MapToSend::Own, Primary)),
        (sl == pr && sr < pl, accept(MapToSend::Own, Primary)),
        (sl > pr && pl > sr, Decision::SplitBrain),
        (sl > pr, accept(MapToSend::Full, Secondary)),
        (true, accept(MapToSend::Full, Primary)),
    ];
    let row = rows.iter().find(|(fits, _)| *fits).map(|(_, answer)| *answer);
    assert_eq!(Some(found), row, "{hello:?}, secondary {ours} {counts:?} {written}");
    assert_eq!(T::decide(hello, ours, counts, written), found);
    // No other two rows for nodes that know each other fit at once: the order of the table is no matter.
    if ours != 0 && ours == theirs {
        assert!(rows[4..8].iter().filter(|(fits, _)| *fits).count() <= 1, "{pl} {pr} {sl} {sr}");
    }
    Ok(())
}

/// Two nodes in step part; each is changed alone any number of times, and they meet again.
///
/// A split-brain is found exactly when both were changed; else the one that was changed has the data, and both
/// maps are used. How often a node was counted, and which of them is the primary now, is no matter.
pub fn parted<T: Subject>(source: &mut impl Source) -> Case {
    let all = 0..=u64::MAX;
    let [a, b] = [(); 2].map(|()| source.number(all.clone(), &[0, 1, 2, 7, 1 << 32, u64::MAX - 3]));
    let [by_a, by_b] = [(); 2].map(|()| source.number(all.clone(), &[0, 1, 2, 3]));
    source.assume(a.checked_add(by_a).is_some() && b.checked_add(by_b).is_some())?;
    let (virgin, written) = (source.bool(), source.bool());
    let ends = [Counts { local: a + by_a, remote: b }, Counts { local: b + by_b, remote: a }];
    let meet = |primary: usize| {
        let hello = Hello { resuid: 7, counts: ends[primary], virgin };
        T::decide(hello, 7, ends[1 - primary], written)
    };
    for primary in 0..2 {
        let changed = [by_a > 0, by_b > 0];
        let accept = |source| Decision::Accept { adopt: false, map: MapToSend::Own, source };
        let expected = match (changed[primary], changed[1 - primary]) {
            (true, true) => Decision::SplitBrain,
            (false, true) => accept(SyncSource::Secondary),
            _ => accept(SyncSource::Primary),
        };
        assert_eq!(meet(primary), expected, "primary {primary} of {ends:?}");
    }
    Ok(())
}

/// Any counts at all, wherever they come from: exchanging the roles changes neither whether it is a split-brain
/// nor, where the table knows one, whose data is right.
pub fn exchanged<T: Subject>(source: &mut impl Source) -> Case {
    let [al, ar, bl, br] = [(); 4].map(|()| source.number(0..=u64::MAX, &FEW));
    let (virgin, written) = (source.bool(), source.bool());
    let ends = [Counts { local: al, remote: ar }, Counts { local: bl, remote: br }];
    let answers = [0, 1].map(|primary: usize| {
        let hello = Hello { resuid: 7, counts: ends[primary], virgin };
        T::decide(hello, 7, ends[1 - primary], written)
    });
    let [one, other] = answers.map(|answer| answer == Decision::SplitBrain);
    assert_eq!(one, other, "{ends:?}");
    // Whose data is right, as a node; in step it is the primary's, whoever that is.
    let node = |primary: usize| match answers[primary] {
        Decision::Accept { map: MapToSend::Own, source: SyncSource::Primary, .. } => Some(primary),
        Decision::Accept { map: MapToSend::Own, source: SyncSource::Secondary, .. } => Some(1 - primary),
        _ => None,
    };
    let in_step = al == br && ar == bl;
    if let (Some(one), Some(other)) = (node(0), node(1)) {
        assert_eq!(one == other, !in_step, "{ends:?}");
    }
    assert_eq!(node(0).is_some(), node(1).is_some(), "{ends:?}");
    Ok(())
}
