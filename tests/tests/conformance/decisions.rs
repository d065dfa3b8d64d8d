//! The handshake's table: what a secondary with these counts answers to a primary with those.

use hast_tests::{Outcome, disk};

use crate::session::{Counts, DISK, PLAIN, Session, captured_pair, change_map, change_metadata};

/// What the secondary answers.
#[derive(Debug)]
enum Answer {
    /// Its own map and the side that has the newer data.
    OwnMap(u8),
    /// A full map and the side.
    FullMap(u8),
    SplitBrain,
}

/// localcnt and remotecnt.
type Pair = (u64, u64);

/// (sl, sr) of the secondary, (pl, pr) of the primary.
const TABLE: &[(Pair, Pair, Answer)] = &[
    // In step.
    ((0, 0), (0, 0), Answer::OwnMap(1)),
    ((3, 2), (2, 3), Answer::OwnMap(1)),
    // The primary is out of date.
    ((1, 0), (0, 0), Answer::OwnMap(2)),
    ((5, 2), (2, 3), Answer::OwnMap(2)),
    // The secondary is out of date.
    ((0, 0), (1, 0), Answer::OwnMap(1)),
    ((3, 2), (4, 3), Answer::OwnMap(1)),
    // Both have gone on alone.
    ((1, 0), (1, 0), Answer::SplitBrain),
    ((4, 2), (3, 3), Answer::SplitBrain),
    // What should not happen: everything is copied, from the side that seems newer.
    ((4, 5), (2, 3), Answer::FullMap(2)),
    ((3, 5), (2, 3), Answer::FullMap(1)),
    ((1, 0), (5, 3), Answer::FullMap(1)),
];

#[test]
fn every_row_of_the_table() -> Outcome {
    let mut pair = captured_pair("")?;
    let provider = pair.b.provider(DISK);
    for ((sl, sr), (pl, pr), wanted) in TABLE {
        change_metadata(&provider, |metadata| {
            (metadata.resuid, metadata.localcnt, metadata.remotecnt) = (PLAIN.resuid, *sl, *sr);
        })?;
        // Its own map has the second of the two extents.
        change_map(&provider, &[2])?;
        pair.b.start()?;
        pair.b.role("secondary", DISK)?;
        let session = Session::attempt(&pair, Counts { localcnt: *pl, remotecnt: *pr, ..PLAIN })?;
        let list = session.answer.list();
        let row = format!("secondary ({sl}, {sr}), primary ({pl}, {pr}): {:?}", session.answer.fields());
        assert_eq!(list.i64("datasize"), Some(4_189_696), "{row}");
        assert_eq!((list.u64("localcnt"), list.u64("remotecnt")), (Some(*sl), Some(*sr)), "{row}");
        assert!(!list.contains("virgin"), "{row}");
        let map = session.answer.decoded()?;
        match wanted {
            Answer::SplitBrain => assert_eq!(list.str("errmsg"), Some("Split-brain condition!"), "{row}"),
            Answer::OwnMap(source) | Answer::FullMap(source) => {
                assert_eq!(list.u8("syncsrc"), Some(*source), "{row}");
                assert_eq!(list.u32("mapsize"), Some(512), "{row}");
                assert_eq!(map.len(), 512, "{row}");
            }
        }
        match wanted {
            Answer::SplitBrain => {}
            Answer::OwnMap(_) => {
                assert_eq!(map[0], 2, "{row}");
                assert!(map[1..].iter().all(|byte| *byte == 0), "{row}");
            }
            Answer::FullMap(_) => assert_eq!(map[0] & 3, 3, "{row}"),
        }
        drop(session);
        pair.b.stop()?;
    }
    pair.finish()
}

/// A secondary that was never used takes the primary's resuid: with nothing to copy if the primary is
/// as fresh, else with everything.
#[test]
fn fresh_secondaries() -> Outcome {
    for virgin in [true, false] {
        let mut pair = captured_pair("")?;
        pair.b.start()?;
        pair.b.role("secondary", DISK)?;
        let session = Session::attempt(&pair, Counts { virgin, ..PLAIN })?;
        let list = session.answer.list();
        assert!(list.contains("virgin"));
        assert_eq!(list.u8("syncsrc"), Some(1));
        let map = session.answer.decoded()?;
        if virgin {
            assert_eq!((list.u32("mapsize"), map.len()), (Some(0), 0));
        } else {
            assert_eq!(list.u32("mapsize"), Some(512));
            assert_eq!(map[0] & 3, 3);
        }
        // It was adopted before the answer.
        assert_eq!(disk::metadata(&pair.b.provider(DISK))?.resuid, PLAIN.resuid);
        drop(session);
        pair.finish()?;
    }
    Ok(())
}
