//! What the disk of a primary says of it, and what its driver has to remember because the disk cannot say it.

use super::*;

/// S1, L3, L18: a target's disk fails the save that is to make the counts equal. It is the target still, whatever is saved next.
#[test]
fn a_target_whose_counts_could_not_be_made_equal_is_one_on_disk_too() {
    let mut h = H::target(&[2]);
    h.serve_all(|message| (!is(Command::Flush)(message)).then_some(None));
    h.policy = Box::new(|op| Some(if is_metadata(op) { Err(Errno::EIO) } else { Ok(()) }));
    h.serve_all(|_| Some(None));
    assert!(h.p.status().facts.target && !h.p.is_in_step());
    // The disk takes its metadata again, and fails a write.
    h.policy = Box::new(|op| Some(if is_data(op) { Err(Errno::EIO) } else { Ok(()) }));
    h.w(1, 9);
    h.serve_all(|message| matches!(message, Message::Request(_)).then_some(None));
    assert_eq!(h.result(1), Some(Ok(None)), "it is on the secondary alone");
    let metadata = h.metadata();
    assert!(metadata.extension.target || calls_stale(&h, 9), "{metadata:?}");
}

/// L15, C2: the disk fails that save once. It is tried again after a while, though nobody asks for anything.
#[test]
fn counts_that_could_not_be_made_equal_are_later() {
    let mut h = H::new(24, 1, Extension::default(), &[2], 5, 1, 1);
    h.handshake_first(Extensions::ALL);
    h.answer(1, 1, SyncSource::Primary, Some(vec![0; 512]));
    h.serve_all(|message| (!is(Command::Flush)(message)).then_some(None));
    h.policy = Box::new(|op| Some(if is_metadata(op) { Err(Errno::EIO) } else { Ok(()) }));
    h.serve_all(|_| Some(None));
    assert!(!h.p.is_in_step());
    h.policy = Box::new(|_| Some(Ok(())));
    h.tick(11);
    h.serve_all(|_| Some(None));
    assert!(h.p.is_in_step(), "{:?}", h.p.status());
}

/// The same if it is the secondary that fails a flush while the equal counts are being written.
#[test]
fn a_target_whose_session_goes_on_after_the_counts_were_saved_names_what_is_stale() {
    let mut h = H::target(&[2]);
    h.policy = Box::new(|op| (!is_metadata(op)).then_some(Ok(())));
    h.serve_all(|_| Some(None));
    assert!(h.ops.iter().any(|(_, op)| is_metadata(op)), "the equal counts are being written");
    h.req(1, Op::Write { offset: 5 * u64::from(ES), data: Buffer::from(vec![1; 512]) });
    h.req(2, Op::Flush);
    h.serve_all(|message| Some(is(Command::Flush)(message).then_some(Errno::EIO)));
    h.policy = Box::new(|op| Some(if is_data(op) { Err(Errno::EIO) } else { Ok(()) }));
    h.pump();
    h.w(3, 9);
    h.tick(2);
    h.serve_all(|message| matches!(message, Message::Request(_)).then_some(None));
    assert_eq!(h.result(3), Some(Ok(None)), "it is on the secondary alone");
    let metadata = h.metadata();
    assert!(metadata.extension.target || calls_stale(&h, 9), "{metadata:?}");
}

/// The nodes meet again: the counts that this node says are in step.
#[test]
fn a_target_whose_counts_could_not_be_saved_meets_its_secondary_again() {
    let mut h = H::target(&[2]);
    h.serve_all(|message| (!is(Command::Flush)(message)).then_some(None));
    h.policy = Box::new(|op| Some(if is_metadata(op) { Err(Errno::EIO) } else { Ok(()) }));
    h.serve_all(|_| Some(None));
    h.policy = Box::new(|_| Some(Ok(())));
    h.p.handle_lost(h.t, "gone");
    h.pump();
    for _ in 0..3 {
        h.sent.clear();
        h.tick(11);
        h.handshake_first(Extensions::ALL);
        let said = h.sent.iter().find_map(|(_, message)| match message {
            Message::SecondHello(hello) => Some((hello.localcnt, hello.remotecnt)),
            _ => None,
        });
        // A secondary with (6, 3) is in step with (3, 6), and the newer one for (3, 5).
        let source = if said == Some((3, 5)) { SyncSource::Secondary } else { SyncSource::Primary };
        h.answer(6, 3, source, Some(vec![0; 512]));
        h.serve_all(|_| Some(None));
    }
    assert!(h.p.is_in_step(), "{:?}", h.p.status());
}

/// A secondary that was marked, and whose connection broke before it heard that it is up to date again, is told although
/// something is stale here.
#[test]
fn a_secondary_that_did_not_hear_that_it_is_up_to_date_is_told_again() {
    let run = hast_format::extension::Run { first: 3, count: 1 };
    let ext = Extension { generation: 1, stale: vec![run], ..Extension::default() };
    let mut h = H::new(24, 1, ext, &[3, 7], 5, 1, 1);
    h.policy = Box::new(|op| {
        let bad =
            matches!(op, DiskOp::Write { offset, .. } if (DATA + 3 * 4096..DATA + 4 * 4096).contains(offset));
        Some(if bad { Err(Errno::EIO) } else { Ok(()) })
    });
    h.handshake_first(Extensions::ALL);
    h.answer(1, 1, SyncSource::Primary, Some(vec![0; 512]));
    assert!(h.sent.iter().any(|(_, message)| says_start(message)));
    for _ in 0..3 {
        h.serve_all(|message| (!says_done(message)).then_some(None));
        h.tick(6);
    }
    // The connection breaks before the secondary has heard that.
    h.meet_again();
    h.answer(1, 1, SyncSource::Primary, Some(vec![0; 512]));
    let mut told = false;
    for _ in 0..20 {
        h.serve_all(|message| {
            told |= says_done(message);
            Some(None)
        });
        h.tick(6);
    }
    assert!(told, "it is marked as out of date for good: {:?} {:?}", h.p.status(), h.metadata());
}

/// One write was told to the secondary; then all is copied back, and while the secondary is told that the nodes are equal this
/// disk is about to be given up, which the loss of the connection prevents. What this node writes alone from then on is on
/// its disk: a worker that replaces this one has to read it.
#[test]
fn a_disk_that_was_not_given_up_after_all_is_read_by_the_next_worker() {
    let mut h = H::in_step();
    h.policy = Box::new(|op| Some(if is_data(op) || is_metadata(op) { Err(Errno::EIO) } else { Ok(()) }));
    h.w(1, 7);
    h.serve_all(|message| (!is_read(message)).then_some(None));
    assert_eq!(h.result(1), Some(Ok(None)), "told");
    assert!(h.detached_at_last().is_some());
    h.policy = Box::new(|_| Some(Ok(())));
    for _ in 0..5 {
        h.serve_all(|message| (!says_done(message)).then_some(None));
        h.tick(1);
    }
    assert!(h.sent.iter().any(|(_, message)| says_done(message)), "{:?}", h.p.status());
    // Now the map cannot be written.
    h.policy = Box::new(|op| {
        let map = !is_metadata(op) && !is_data(op) && *op != DiskOp::Flush;
        Some(if map { Err(Errno::EIO) } else { Ok(()) })
    });
    h.w(2, 9);
    assert_eq!(h.result(2), None, "it waits until the disk is given up");
    h.serve_all(|message| says_done(message).then_some(None));
    h.p.handle_lost(h.t, "gone");
    h.policy = Box::new(|_| Some(Ok(())));
    h.pump();
    h.tick(2);
    h.w(3, 4);
    assert_eq!(h.result(3), Some(Ok(None)), "alone");
    assert_eq!((h.disk[(DATA + 4 * 4096) as usize], h.metadata().localcnt), (3, 2));
    assert_eq!(h.detached_at_last(), None, "{:?}", h.p.status());
}

/// S1: what our disk misses could not be written down in time.
#[test]
fn a_planned_end_that_runs_out_of_time_says_that_the_data_is_out_of_date() {
    let mut h = H::in_step();
    h.w(1, 3);
    h.serve_all(|message| (!is(Command::Flush)(message)).then_some(None));
    assert_eq!(h.result(1), Some(Ok(None)));
    let mut once = true;
    h.policy = Box::new(move |op| match op {
        DiskOp::Flush if std::mem::take(&mut once) => Some(Err(Errno::EIO)),
        op if is_metadata(op) => None,
        _ => Some(Ok(())),
    });
    h.tick(1);
    h.serve_all(|message| is(Command::Flush)(message).then_some(None));
    h.tick(1);
    h.serve_all(|message| is(Command::Flush)(message).then_some(None));
    assert_eq!(h.p.status().facts.stale_bytes, u64::from(ES), "{:?} {:?}", h.sent, h.ops);
    h.p.handle_stop(h.t);
    h.pump();
    h.tick(60);
    assert_eq!(h.metadata().extension.stale, []);
    assert_eq!(h.exit(), Some(EXIT_STALE));
}

/// L3, S1: what our disk misses could not be written down when it was found. A planned end without the secondary tries it
/// after its flush, and once more.
#[test]
fn a_planned_end_writes_down_what_could_not_be_written_down_before() {
    for failures in 0..3 {
        let mut h = H::in_step();
        h.w(1, 3);
        h.serve_all(|message| (!is(Command::Flush)(message)).then_some(None));
        assert_eq!(h.result(1), Some(Ok(None)));
        let mut once = true;
        h.policy = Box::new(move |op| {
            let fails = is_metadata(op) || (*op == DiskOp::Flush && std::mem::take(&mut once));
            Some(if fails { Err(Errno::EIO) } else { Ok(()) })
        });
        for _ in 0..2 {
            h.tick(1);
            h.serve_all(|message| is(Command::Flush)(message).then_some(None));
        }
        assert_eq!(h.p.status().facts.stale_bytes, u64::from(ES), "{:?} {:?}", h.sent, h.ops);
        h.p.handle_lost(h.t, "gone");
        h.pump();
        assert!(!calls_stale(&h, 3));
        let mut left = failures;
        h.policy = Box::new(move |op| {
            let fails = is_metadata(op) && left > 0;
            left -= i32::from(fails);
            Some(if fails { Err(Errno::EIO) } else { Ok(()) })
        });
        h.p.handle_stop(h.t);
        h.pump();
        let written = failures < 2;
        assert_eq!(calls_stale(&h, 3), written, "{failures} failures");
        assert_eq!(h.exit(), Some(if written { 0 } else { EXIT_STALE }), "{failures} failures");
    }
}

/// S1: this disk was given up, and says nothing of what it misses. A planned end leaves a node that does not know that it is
/// out of date: the driver has to remember it.
#[test]
fn a_planned_end_of_a_node_without_its_disk_says_that_the_data_is_out_of_date() {
    let mut h = H::in_step();
    h.policy = Box::new(|_| Some(Err(Errno::EIO)));
    h.w(1, 9);
    h.req(2, Op::Flush);
    h.serve_all(|_| Some(None));
    h.tick(2);
    h.serve_all(|_| Some(None));
    assert_eq!(h.result(1), Some(Ok(None)));
    assert!(h.detached_at_last().is_some());
    h.p.handle_stop(h.t);
    h.pump();
    h.serve_all(|_| Some(None));
    h.tick(5);
    h.serve_all(|_| Some(None));
    let extension = h.metadata().extension;
    assert_eq!((extension.stale, extension.mark, extension.target), (vec![], None, false));
    assert_eq!(h.exit(), Some(EXIT_STALE));
}

/// Every second stale extent is copied back, the others cannot be. There are more runs than the metadata have room for, so
/// that they name some of the extents between as well: that is written down once, not each second.
#[test]
fn what_is_named_too_many_is_not_saved_again_and_again() {
    let run = hast_format::extension::Run { first: 0, count: 100 };
    let ext = Extension { generation: 1, stale: vec![run], ..Extension::default() };
    let mut h = H::new(200, 1, ext, &(0..100).collect::<Vec<u32>>(), 5, 1, 1);
    h.handshake_first(Extensions::ALL);
    h.answer(1, 1, SyncSource::Primary, Some(vec![0; 512]));
    // The secondary cannot read the others; then nothing more is asked of it before they are tried again.
    let serve = |h: &mut H| {
        h.serve_all(|message| match message {
            Message::Request(Request { command: Command::Read, offset, .. })
                if offset / u64::from(ES) % 2 == 1 =>
            {
                Some(Some(Errno::EIO))
            }
            _ => Some(None),
        });
    };
    for _ in 0..60 {
        serve(&mut h);
        h.tick(2);
    }
    serve(&mut h);
    assert_eq!(h.p.status().facts.stale_bytes, 50 * u64::from(ES));
    let before = h.metadata().extension.generation;
    for _ in 0..30 {
        h.tick(1);
        serve(&mut h);
    }
    let saves = h.metadata().extension.generation - before;
    assert!(saves <= 6, "{saves} saves in 30 seconds");
}

/// A primary whose metadata name more than is stale, for want of room, and the first extent between stale ones that they do
/// not name. Our disk and the secondary have every second extent in common.
fn crowded() -> (H, u64) {
    let run = hast_format::extension::Run { first: 0, count: 100 };
    let ext = Extension { generation: 1, stale: vec![run], ..Extension::default() };
    let mut h = H::new(200, 1, ext, &(0..100).collect::<Vec<u32>>(), 5, 1, 1);
    h.set_mode(Replication::Async);
    h.handshake_first(Extensions::ALL);
    h.answer(1, 1, SyncSource::Primary, Some(vec![0; 512]));
    for _ in 0..60 {
        // The secondary cannot read every second extent.
        h.serve_all(|message| match message {
            Message::Request(r) if r.command == Command::Read && r.offset / u64::from(ES) % 2 == 1 => {
                Some(Some(Errno::EIO))
            }
            _ => Some(None),
        });
        h.tick(2);
    }
    assert_eq!(h.p.status().facts.stale_bytes, 50 * u64::from(ES));
    let free = (1..50).map(|at| 2 * at).find(|extent| !calls_stale(&h, *extent as u32)).unwrap();
    (h, free)
}

/// L3: the metadata name too many, for want of room, and among that nothing that is complete and that the secondary lacks:
/// after a crash it would be copied over. The connection takes with it what the secondary has not answered yet.
#[test]
fn what_the_secondary_owed_when_it_went_away_is_not_named_stale() {
    let (mut h, free) = crowded();
    h.w(1, 2); // is named, and waits for the secondary
    h.w(2, free + 2);
    h.w(3, free);
    assert_eq!((h.result(1), h.result(2), h.result(3)), (None, Some(Ok(None)), Some(Ok(None))));
    h.p.handle_lost(h.t, "gone");
    h.pump();
    h.req(4, Op::Flush);
    assert_eq!(h.result(4), Some(Ok(None)));
    // A crash. A worker that begins with this disk reads what was flushed on it.
    let (metadata, map) = (h.metadata(), h.disk[4096..4096 + 512].to_vec());
    let layout = Layout::open(&metadata, h.disk.len() as u64 - 4096, 512).unwrap();
    let mut next = H::started(metadata, layout, map, Box::new(|_| Some(Ok(()))), false);
    next.disk = h.disk;
    next.p.handle_connect_failed(next.t, Side::Out, "refused");
    next.pump();
    for (id, extent, value) in [(1, free, 3), (2, free + 2, 2)] {
        next.req(id, Op::Read { offset: extent * u64::from(ES), length: 512 });
        assert_eq!(next.result(id), Some(Ok(Some(Buffer::from(vec![value; 512])))), "extent {extent}");
    }
}

/// The same of a write that nobody has heard of: our disk has it, and what is written down when the connection breaks does
/// not make it wait for the secondary.
#[test]
fn what_waited_for_the_secondary_when_it_went_away_is_not_named_stale() {
    let (mut h, free) = crowded();
    h.w(1, 2); // is named, and waits for the secondary
    h.w(2, free + 2);
    h.set_mode(Replication::Fullsync);
    h.w(3, free);
    assert_eq!((h.result(2), h.result(3)), (Some(Ok(None)), None));
    h.p.handle_lost(h.t, "gone");
    h.pump();
    assert_eq!(h.result(3), Some(Ok(None)));
    assert!(!calls_stale(&h, free as u32));
}

/// C1: what lies between the stale runs is not flushed when the connection breaks, so that no gap can be closed and nothing
/// new can be named. Nothing new has to be: localcnt rises all the same, and this node goes on alone.
#[test]
fn a_primary_without_room_to_name_what_is_stale_goes_on_alone() {
    let (mut h, _) = crowded();
    h.set_mode(Replication::Fullsync);
    for extent in 0..40 {
        h.w(100 + extent, 2 * extent + 18);
    }
    h.serve_all(|message| (!is(Command::Flush)(message) && !is_read(message)).then_some(None));
    h.p.handle_lost(h.t, "gone");
    h.pump();
    let counted = h.metadata().localcnt;
    h.w(3, 150);
    h.req(4, Op::Flush);
    h.w(5, 152);
    for id in [3, 4, 5] {
        assert_eq!(h.result(id), Some(Ok(None)), "request {id}");
    }
    assert_eq!(h.metadata().localcnt, counted + 1);
}
