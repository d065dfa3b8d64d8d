//! A node that is out of date as a whole, while it is brought up to date (L18): no write is complete on it before the
//! secondary has flushed it.

use super::*;

/// L18: the connection takes a write with it that our disk has. Nobody knows whether the secondary has it, whose copy is
/// the right one: once the write has failed, the extent is not read here.
#[test]
fn a_write_that_was_taken_back_is_not_read_here() {
    let mut h = H::target(&[2]);
    h.req(1, whole(9, 1));
    h.p.handle_lost(h.t, "gone");
    h.pump();
    h.tick(21);
    assert_eq!(h.result(1), Some(Err(Errno::EIO)));
    h.req(2, Op::Read { offset: 9 * u64::from(ES), length: 512 });
    assert_eq!(h.result(2), None, "the secondary may have the old bytes, which are copied here next");
    // All that is complete the secondary has flushed.
    h.req(3, Op::Flush);
    assert_eq!(h.result(3), Some(Ok(None)));
}

/// The same if the secondary refuses it, though our disk has all of the extent.
#[test]
fn a_write_that_the_secondary_has_refused_is_not_read_here() {
    let mut h = H::target(&[2]);
    let before = h.p.status().facts.stale_bytes;
    h.req(1, whole(9, 1));
    h.serve_all(|message| is(Command::Write)(message).then_some(Some(Errno::EIO)));
    assert_eq!(h.result(1), Some(Err(Errno::EIO)));
    assert_eq!(h.p.status().facts.stale_bytes, before + u64::from(ES));
    h.req(2, Op::Read { offset: 9 * u64::from(ES), length: 512 });
    h.serve_all(|message| is_read(message).then_some(None));
    assert_eq!(h.result(2), Some(Ok(Some(Buffer::from(vec![0x55; 512])))));
}

/// C1 (d): a flush of a target without the secondary, which has flushed all that is complete, counts nothing: the nodes
/// would seem to have been written apart.
#[test]
fn a_flush_of_a_target_is_not_counted() {
    let mut h = H::target(&[2]);
    h.req(1, whole(9, 1));
    h.serve_all(|message| (is(Command::Write)(message) || is(Command::Flush)(message)).then_some(None));
    assert_eq!(h.result(1), Some(Ok(None)));
    h.p.handle_lost(h.t, "gone");
    h.pump();
    h.req(2, Op::Flush);
    assert_eq!(h.result(2), Some(Ok(None)));
    assert_eq!(h.metadata().localcnt, 3);
}

/// The same while the secondary is there, and has failed a flush since.
#[test]
fn a_flush_of_a_target_is_not_counted_though_the_secondary_has_failed_one() {
    let mut h = H::target(&[2]);
    h.req(1, whole(9, 1));
    h.serve_all(|message| (is(Command::Write)(message) || is(Command::Flush)(message)).then_some(None));
    assert_eq!(h.result(1), Some(Ok(None)));
    for (id, error) in [(2, Some(Errno::EIO)), (3, None)] {
        h.req(id, Op::Flush);
        h.serve_all(|message| is(Command::Flush)(message).then_some(error));
    }
    h.serve_all(|message| matches!(message, Message::Mark(_)).then_some(None));
    assert_eq!((h.result(2), h.result(3)), (Some(Ok(None)), Some(Ok(None))));
    assert_eq!(h.metadata().localcnt, 3);
}

/// L18: the node that a target is brought up to date from has been written alone meanwhile, or is the newer one (G1)
/// although its counts are those that it had: what its map names is right there, and copied from there.
#[test]
fn what_the_source_was_written_since_the_nodes_met_comes_from_it() {
    let mut map = vec![0; 512];
    map[1] = 0b10;
    for (mut h, counts) in [(H::target(&[2]), (7, 3)), (H::in_step(), (1, 1))] {
        h.meet_again();
        h.answer(counts.0, counts.1, SyncSource::Secondary, Some(map.clone()));
        h.req(1, Op::Read { offset: 9 * u64::from(ES), length: 512 });
        h.serve_all(|_| Some(None));
        assert_eq!(h.result(1), Some(Ok(Some(Buffer::from(vec![0x55; 512])))), "{counts:?}");
        let at = (DATA + 9 * u64::from(ES)) as usize;
        assert_eq!(h.disk[at..at + 512], [0x55; 512], "{counts:?}");
    }
}

/// A node that is out of date, told to stop, does not wait for the secondary: what waits for that has failed.
#[test]
fn what_waits_for_the_secondary_does_not_hold_up_a_planned_end() {
    let mut h = H::target(&[2]);
    h.p.handle_lost(h.t, "gone");
    h.pump();
    h.w(1, 9);
    h.req(2, Op::Read { offset: 2 * u64::from(ES), length: 512 });
    assert_eq!((h.result(1), h.result(2)), (None, None));
    h.p.handle_stop(h.t);
    h.pump();
    assert_eq!((h.result(1), h.result(2)), (Some(Err(Errno::EIO)), Some(Err(Errno::EIO))));
    assert_eq!(h.exit(), Some(0));
}
