//! Extents that turn, are stale, and are good again: what the metadata and the map say meanwhile, and what is copied.

use super::*;

/// Extent 3 is right on the secondary alone, the metadata say so, and it cannot be copied for the next ten seconds.
fn stale_and_known() -> H {
    let run = hast_format::extension::Run { first: 3, count: 1 };
    let ext = Extension { generation: 1, stale: vec![run], ..Extension::default() };
    let mut h = H::new(24, 1, ext, &[3], 5, 1, 1);
    h.handshake_first(Extensions::ALL);
    h.answer(1, 1, SyncSource::Primary, Some(vec![0; 512]));
    h.serve_all(|message| Some(is_read(message).then_some(Errno::EIO)));
    assert_eq!(h.p.status().facts.stale_bytes, u64::from(ES));
    h.sent.clear();
    h
}

/// A write of one sector of an extent.
fn sector(extent: u64, which: u64, value: u8) -> Op {
    Op::Write { offset: extent * u64::from(ES) + which * 512, data: Buffer::from(vec![value; 512]) }
}

/// L3: a write of a whole extent that is stale here waits for the secondary to flush it, and a flush of our disk fails
/// meanwhile, which may have dropped the write: the extent stays stale, though our disk had answered the write well.
#[test]
fn a_stale_extent_stays_stale_if_a_failed_flush_may_have_dropped_what_made_it_good() {
    let mut h = stale_and_known();
    h.policy = next_flush_fails().0;
    h.req(1, whole(3, 1));
    h.serve_all(|message| is(Command::Write)(message).then_some(None));
    assert_eq!(h.result(1), None, "the secondary has not flushed it");
    h.serve_all(|message| (!is_read(message)).then_some(None));
    assert_eq!(h.result(1), Some(Ok(None)), "the secondary has");
    h.tick(2);
    h.serve_all(|message| (!is_read(message)).then_some(None));
    assert_eq!(h.p.status().facts.stale_bytes, u64::from(ES));
    assert!(calls_stale(&h, 3), "after a crash our copy would count");
}

/// L3: a copy has made a stale extent good, and the flush that comes before the metadata stop calling it stale fails, which
/// may have dropped the copy. The next save, whose flushes are good, goes on calling it stale.
#[test]
fn metadata_go_on_calling_stale_what_a_failed_flush_may_have_dropped() {
    let mut h = stale_and_known();
    h.policy = next_flush_fails().0;
    h.tick(11);
    h.serve_one(Command::Read);
    assert_eq!(h.p.status().facts.stale_bytes, 0, "it was copied from there");
    let before = h.metadata().extension.generation;
    h.tick(3);
    assert!(h.metadata().extension.generation > before);
    assert!(calls_stale(&h, 3), "a loss of power takes what the first flush has dropped");
    for _ in 0..3 {
        h.serve_all(|_| Some(None));
        h.tick(12);
    }
    assert!(h.p.is_in_step() && !calls_stale(&h, 3));
}

/// L3: while the metadata are being saved that stop calling an extent stale, it becomes stale once more. A write that
/// rests on that waits for the save that says so again.
#[test]
fn what_a_save_under_way_does_not_call_stale_is_not_known_to_be_on_disk() {
    let mut h = stale_and_known();
    h.policy = Box::new(|op| (!is_metadata(op)).then_some(Ok(())));
    h.tick(11);
    h.serve_one(Command::Read);
    assert_eq!(h.p.status().facts.stale_bytes, 0, "it was copied from there");
    h.policy = Box::new(|op| match op {
        op if is_data(op) => Some(Err(Errno::EIO)),
        op => (!is_metadata(op)).then_some(Ok(())),
    });
    h.req(1, sector(3, 1, 1));
    h.req(2, sector(3, 2, 2));
    h.serve_all(|message| (!is_read(message)).then_some(None));
    assert_eq!(h.p.status().facts.stale_bytes, u64::from(ES));
    let before = (h.result(1), h.result(2));
    assert_eq!(before, (None, None), "the disk is about to say that our copy of it is good");
    h.policy = Box::new(|_| Some(Ok(())));
    h.pump();
    assert_eq!((h.result(1), h.result(2)), (Some(Ok(None)), Some(Ok(None))));
    assert!(calls_stale(&h, 3));
}

/// L3: metadata that have too little room call extents in between stale too, but none in which the secondary has yet to
/// store what a client relies on.
#[test]
fn no_extent_is_called_stale_for_want_of_room_that_the_secondary_owes() {
    let run = hast_format::extension::Run { first: 0, count: 100 };
    let ext = Extension { generation: 1, stale: vec![run], ..Extension::default() };
    let mut h = H::new(100, 1, ext, &(0..100).collect::<Vec<_>>(), 5, 1, 1);
    h.handshake_first(Extensions::ALL);
    h.answer(1, 1, SyncSource::Primary, Some(vec![0; 512]));
    // Of the first so many extents every second one can be copied.
    let copied = |extents: u64| {
        move |message: &Message| match message {
            Message::Request(Request { offset, command: Command::Read, .. }) => {
                let extent = offset / u64::from(ES);
                (extent < extents).then_some((extent % 2 == 0).then_some(Errno::EIO))
            }
            _ => None,
        }
    };
    h.serve_all(copied(20));
    assert!(!calls_stale(&h, 1));
    h.set_mode(Replication::Async);
    h.req(1, sector(1, 0, 2));
    assert_eq!(h.result(1), Some(Ok(None)), "complete, and the secondary has not answered");
    h.serve_all(copied(80));
    let stale = h.metadata().extension.stale;
    assert_eq!(stale.len(), hast_format::extension::STALE_RUNS);
    assert!(!calls_stale(&h, 1), "{stale:?}");
}

/// So many runs of stale extents that there is room for `room` more, of which none can be copied for now. What lies behind
/// them our disk cannot write.
fn scattered(room: usize) -> H {
    let runs: Vec<_> = (0..hast_format::extension::STALE_RUNS - room)
        .map(|at| hast_format::extension::Run { first: 2 * at as u32, count: 1 })
        .collect();
    let bits: Vec<u32> = runs.iter().map(|run| run.first).collect();
    let ext = Extension { generation: 1, stale: runs, ..Extension::default() };
    let mut h = H::new(200, 1, ext, &bits, 5, 1, 1);
    h.handshake_first(Extensions::ALL);
    h.answer(1, 1, SyncSource::Primary, Some(vec![0; 512]));
    h.serve_all(|message| (!is_read(message)).then_some(None));
    assert!(!h.sent.iter().any(|(_, message)| is(Command::Flush)(message)));
    h.policy = Box::new(|op| {
        let fails = matches!(op, DiskOp::Write { offset, .. } if *offset >= DATA + 100 * u64::from(ES));
        Some(if fails { Err(Errno::EIO) } else { Ok(()) })
    });
    h
}

/// S1: there is no room for one more run of stale extents, so that the whole disk turns. Meanwhile a write to another
/// extent fails on both nodes, and there is room again: that extent is not called stale, and what our disk has of it goes
/// to the secondary.
#[test]
fn an_extent_that_turned_in_vain_is_copied_to_the_secondary_if_the_copies_differ() {
    let mut h = scattered(0);
    h.w(1, 101);
    h.serve_all(|message| is(Command::Write)(message).then_some(None));
    h.serve_one(Command::Flush);
    assert_eq!(h.result(1), None, "the whole disk turns first");
    let differing = h.p.status().facts.to_synchronise_bytes;
    h.w(2, 150);
    h.serve_all(|message| is(Command::Write)(message).then_some(Some(Errno::EIO)));
    assert_eq!(h.result(2), Some(Err(Errno::EIO)));
    assert_eq!(h.p.status().facts.to_synchronise_bytes, differing, "nobody knows which copy is right");
    h.serve_one(Command::Read);
    h.serve_one(Command::Flush);
    assert_eq!(h.result(1), Some(Ok(None)));
    assert!(calls_stale(&h, 101) && !calls_stale(&h, 150) && !h.p.status().facts.detached);
    let copied = |message: &Message| match message {
        Message::Request(Request { command: Command::Write, offset, .. }) => *offset == 150 * u64::from(ES),
        _ => false,
    };
    h.serve_all(|message| (!copied(message)).then_some(None));
    assert!(h.sent.iter().any(|(_, message)| copied(message)), "{:?}", h.sent);
}

/// S1: an extent was given up, and is right here again, by a copy from the secondary. When the whole disk turns in vain, for
/// want of room, it is as right as all the others.
#[test]
fn an_extent_that_is_right_here_again_is_not_given_up_once_more() {
    let mut h = scattered(1);
    let bad = DATA + 150 * u64::from(ES);
    h.policy = Box::new(move |op| Some(if touches(op, bad) { Err(Errno::EIO) } else { Ok(()) }));
    h.req(1, Op::Read { offset: 150 * u64::from(ES), length: 512 });
    let read = |message: &Message| match message {
        Message::Request(request) => is_read(message) && request.offset == 150 * u64::from(ES),
        _ => false,
    };
    h.serve_all(|message| read(message).then_some(None));
    h.policy = Box::new(|_| Some(Ok(())));
    for _ in 0..4 {
        h.serve_all(|message| Some((is_read(message) && !read(message)).then_some(Errno::EIO)));
        h.tick(11);
    }
    assert!(!calls_stale(&h, 150), "it was copied from there");
    h.policy = Box::new(move |op| Some(if is_data(op) { Err(Errno::EIO) } else { Ok(()) }));
    for (id, extent) in [(2, 101), (3, 111)] {
        h.w(id, extent);
        h.serve_all(|message| is(Command::Write)(message).then_some(None));
        h.serve_one(Command::Flush);
    }
    assert_eq!((h.result(2), h.result(3)), (Some(Ok(None)), None), "the whole disk turns");
    h.policy = Box::new(|_| Some(Ok(())));
    h.serve_one(Command::Read);
    h.serve_one(Command::Flush);
    assert_eq!(h.result(3), Some(Ok(None)));
    assert!(!calls_stale(&h, 150) && !h.p.status().facts.detached);
}

/// Whether `op` reads or writes our disk at `offset`.
fn touches(op: &DiskOp, at: u64) -> bool {
    matches!(op, DiskOp::Read { offset, .. } | DiskOp::Write { offset, .. } if *offset == at)
}

/// S1: what is stale already takes no more room, however scattered it is: a write there that our disk fails is complete after
/// one flush, and nothing else turns.
#[test]
fn a_write_to_a_stale_extent_needs_no_room() {
    let run = hast_format::extension::Run { first: 0, count: 100 };
    let ext = Extension { generation: 1, stale: vec![run], ..Extension::default() };
    let mut h = H::new(200, 1, ext, &(0..100).collect::<Vec<u32>>(), 5, 1, 1);
    h.handshake_first(Extensions::ALL);
    h.answer(1, 1, SyncSource::Primary, Some(vec![0; 512]));
    // Every second one is copied, and the first of the others cannot be.
    h.serve_all(|message| match message {
        Message::Request(Request { command: Command::Read, offset, .. }) => match offset / u64::from(ES) {
            1 => Some(Some(Errno::EIO)),
            extent => (extent % 2 == 0).then_some(None),
        },
        _ => Some(None),
    });
    assert_eq!(h.p.status().facts.stale_bytes, 50 * u64::from(ES), "more runs than there is room for");
    h.policy = Box::new(|op| Some(if is_data(op) { Err(Errno::EIO) } else { Ok(()) }));
    h.req(1, sector(1, 1, 1));
    h.serve_all(|message| is(Command::Write)(message).then_some(None));
    h.serve_one(Command::Flush);
    assert_eq!(h.result(1), Some(Ok(None)));
}

/// S1: while an extent turns, nobody knows which copy is the right one: it is in neither sync set, whatever becomes of other
/// writes to it.
#[test]
fn an_extent_that_turns_is_not_to_be_synchronised_before_it_is_stale() {
    let mut h = H::in_step();
    h.policy = Box::new(|op| Some(if is_data(op) { Err(Errno::EIO) } else { Ok(()) }));
    h.req(1, sector(3, 1, 1));
    h.serve_all(|message| is(Command::Write)(message).then_some(None));
    h.req(2, sector(3, 2, 2));
    h.serve_all(|message| is(Command::Write)(message).then_some(Some(Errno::EIO)));
    assert_eq!((h.result(1), h.result(2)), (None, Some(Err(Errno::EIO))));
    assert_eq!(h.p.status().facts.to_synchronise_bytes, 0, "S1");
    h.serve_all(|message| (!is_read(message)).then_some(None));
    assert_eq!(h.result(1), Some(Ok(None)));
    assert_eq!(h.p.status().facts.stale_bytes, u64::from(ES));
    // Nothing of either is left in the map in the end; the extent that was written last is kept in it.
    h.policy = Box::new(|_| Some(Ok(())));
    h.w(3, 9);
    for _ in 0..3 {
        h.serve_all(|_| Some(None));
        h.tick(12);
    }
    assert!(h.p.is_in_step());
    assert_eq!(h.disk[4096..4104], (1_u64 << 9).to_le_bytes());
}

/// S1: a write to an extent that turns is complete once the secondary has flushed it, though an earlier one, complete since
/// long, ends on both nodes meanwhile.
#[test]
fn an_extent_goes_on_turning_when_an_earlier_write_ends() {
    let mut h = H::in_step();
    h.set_mode(Replication::Async);
    h.policy = one_write_fails();
    h.req(2, sector(3, 1, 2));
    h.req(1, sector(3, 0, 1));
    assert_eq!((h.result(1), h.result(2)), (Some(Ok(None)), None));
    let second = |message: &Message| matches!(message, Message::Request(Request { offset, .. }) if offset % 1024 == 512);
    h.serve_all(|message| second(message).then_some(None));
    h.serve_all(|message| is(Command::Write)(message).then_some(None));
    h.req(3, sector(3, 2, 3));
    h.serve_all(|message| is(Command::Write)(message).then_some(None));
    assert_eq!(h.result(3), None, "it lies in the cache of the node that is to be right");
    h.serve_one(Command::Flush);
    assert_eq!((h.result(2), h.result(3)), (Some(Ok(None)), None), "that flush began before it was stored");
    h.serve_all(|message| (!is_read(message)).then_some(None));
    assert_eq!(h.result(3), Some(Ok(None)));
}

/// S1: our disk fails two flushes, the second while it has a write that the secondary then refuses. The extent is stale after
/// the first, and turns once more because of the write: it is not copied from the secondary before another flush.
#[test]
fn nothing_is_copied_to_an_extent_that_turns() {
    let mut h = stale_and_turning();
    assert!(!h.sent.iter().any(|(_, message)| is_read(message)), "S1: {:?}", h.sent);
    h.tick(2);
    h.serve_all(|message| (!is_read(message)).then_some(None));
    assert!(h.sent.iter().any(|(_, message)| is_read(message)), "{:?}", h.sent);
}

/// All of such an extent is written again, and the secondary refuses that: ours is the right copy, and goes there.
#[test]
fn an_extent_that_turns_and_is_written_as_a_whole_is_right_here() {
    let mut h = stale_and_turning();
    h.req(4, whole(3, 4));
    h.serve_all(|message| is(Command::Write)(message).then_some(Some(Errno::EIO)));
    assert_eq!(h.p.check(), Ok(()));
    for _ in 0..3 {
        h.serve_all(|message| {
            assert!(!is_read(message), "the secondary's copy is the older one: {message:?}");
            Some(None)
        });
        h.tick(2);
    }
    assert_eq!((h.result(4), h.p.status().facts.stale_bytes), (Some(Err(Errno::EIO)), 0));
    assert!(h.p.is_in_step());
}

/// Extent 3 is stale, and turns once more.
fn stale_and_turning() -> H {
    let mut h = H::in_step();
    h.req(1, sector(3, 1, 1));
    h.serve_all(|message| is(Command::Write)(message).then_some(None));
    h.policy = next_flush_fails().0;
    h.req(2, Op::Flush);
    h.tick(2);
    h.policy = next_flush_fails_and_holds(is_data);
    h.req(3, sector(3, 2, 2));
    h.serve_all(|message| is(Command::Write)(message).then_some(Some(Errno::EIO)));
    h.serve_one(Command::Flush);
    h.policy = Box::new(|_| Some(Ok(())));
    h.pump();
    assert_eq!(h.result(3), Some(Err(Errno::EIO)));
    h.serve_one(Command::Flush);
    assert_eq!((h.result(2), h.p.status().facts.stale_bytes), (Some(Ok(None)), u64::from(ES)));
    h
}

/// S1: our disk takes so long with a write that the connection breaks and is back. It ends while its extent turns because
/// of another write, and is given to both nodes again; which copy of the extent is the right one is as open as before.
#[test]
fn a_write_that_is_taken_back_leaves_open_which_copy_of_a_turning_extent_is_right() {
    let mut h = H::in_step();
    h.policy = Box::new(|op| (!is_data(op)).then_some(Ok(())));
    h.req(1, sector(3, 1, 1));
    h.meet_again();
    h.answer(1, 1, SyncSource::Primary, Some(vec![0; 512]));
    h.serve_all(|_| Some(None));
    let second = DATA + 3 * u64::from(ES) + 2 * 512;
    h.policy = Box::new(move |op| match op {
        DiskOp::Write { offset, .. } if *offset == second => Some(Err(Errno::EIO)),
        op => (!is_data(op)).then_some(Ok(())),
    });
    h.req(2, sector(3, 2, 2));
    h.serve_all(|message| is(Command::Write)(message).then_some(None));
    h.policy = Box::new(|_| Some(Ok(())));
    h.pump();
    assert_eq!((h.result(1), h.result(2)), (None, None));
    assert_eq!(h.p.status().facts.to_synchronise_bytes, 0, "S1");
    h.serve_all(|_| Some(None));
    assert_eq!((h.result(1), h.result(2)), (Some(Ok(None)), Some(Ok(None))));
    h.tick(2);
    h.serve_all(|_| Some(None));
    assert!(h.p.is_in_step());
    let at = (DATA + 3 * u64::from(ES)) as usize;
    assert_eq!(h.disk[at..at + 512], [0x55; 512], "copied from the secondary");
}

/// What the device was told last: whether it may read our disk without asking.
fn reads_directly(h: &H) -> Option<bool> {
    h.other.iter().rev().find_map(|action| match action {
        Action::DirectReads(allowed) => Some(*allowed),
        _ => None,
    })
}

/// L17: between the last step of a synchronisation and the secondary's answer a flush of our disk fails, which may have
/// dropped what both nodes have stored since: nobody reads it from our disk without asking.
#[test]
fn the_device_does_not_read_what_turns_without_asking() {
    let mut h = H::new(24, 1, Extension::default(), &[2], 5, 1, 1);
    h.handshake_first(Extensions::ALL);
    h.answer(1, 1, SyncSource::Primary, Some(vec![0; 512]));
    h.serve_all(|message| (!says_done(message)).then_some(None));
    h.w(1, 5);
    h.serve_all(|message| is(Command::Write)(message).then_some(None));
    assert_eq!(h.result(1), Some(Ok(None)));
    h.policy = next_flush_fails().0;
    h.req(2, Op::Flush);
    h.serve_all(|message| says_done(message).then_some(None));
    assert_eq!(reads_directly(&h), Some(false), "extent 5 may be gone here");
    for _ in 0..3 {
        h.serve_all(|_| Some(None));
        h.tick(12);
    }
    assert_eq!((h.result(2), reads_directly(&h)), (Some(Ok(None)), Some(true)));
}

/// S1: more runs than there is room for, so that the whole disk is called stale. The secondary has flushed all that is
/// complete, so that a client's flush is good without it.
#[test]
fn a_flush_without_the_secondary_is_good_once_the_whole_disk_is_stale() {
    let mut h = H::in_step_with(200);
    h.policy = Box::new(|op| Some(if is_data(op) { Err(Errno::EIO) } else { Ok(()) }));
    for at in 0..=hast_format::extension::STALE_RUNS as u64 {
        h.w(at, 2 * at);
        h.serve_all(|message| (!is_read(message)).then_some(None));
        assert_eq!(h.result(at), Some(Ok(None)), "write {at}");
    }
    assert!(h.p.status().facts.detached);
    h.p.handle_lost(h.t, "gone");
    h.pump();
    h.req(99, Op::Flush);
    assert_eq!(h.result(99), Some(Ok(None)));
}

/// L3: the secondary refuses a write to an extent that is stale here. Part of the extent is of no use on our disk alone, where
/// the rest is old: it has failed. All of the extent makes our copy the right one.
#[test]
fn a_write_to_a_stale_extent_is_complete_here_alone_only_if_it_is_all_of_it() {
    let refused = |message: &Message| match message {
        message if is(Command::Write)(message) => Some(Some(Errno::EIO)),
        message => is_mark(message).then_some(None),
    };
    for which in [0, 3, 7] {
        let mut h = stale_and_known();
        h.req(1, sector(3, which, 1));
        h.serve_all(refused);
        assert_eq!(h.result(1), Some(Err(Errno::EIO)), "sector {which} would be copied over");
        assert_eq!(h.p.status().facts.stale_bytes, u64::from(ES));
    }
    let mut h = stale_and_known();
    h.req(1, whole(3, 1));
    h.serve_all(refused);
    assert_eq!(h.result(1), Some(Ok(None)));
    assert_eq!(h.p.status().facts.stale_bytes, 0);
    assert!(!calls_stale(&h, 3));
}

/// L3: all of a stale extent is written, and the connection breaks after the secondary has stored that, which it may lose.
/// Our disk has it too: it is complete once the metadata do not call our copy stale.
#[test]
fn a_write_that_makes_a_stale_extent_good_is_complete_once_the_disk_says_so() {
    let mut h = stale_and_known();
    h.policy = Box::new(|op| (!is_data(op)).then_some(Ok(())));
    h.req(1, whole(3, 1));
    h.serve_all(|message| is(Command::Write)(message).then_some(None));
    h.p.handle_lost(h.t, "gone");
    h.policy = Box::new(|op| (!is_metadata(op)).then_some(Ok(())));
    h.pump();
    assert!(h.disk[(DATA + 3 * u64::from(ES)) as usize] == 1 && calls_stale(&h, 3));
    assert_eq!(h.result(1), None, "after a crash it would be copied over");
    h.policy = Box::new(|_| Some(Ok(())));
    h.pump();
    assert_eq!(h.result(1), Some(Ok(None)));
    assert!(!calls_stale(&h, 3));
}

/// The secondary has flushed what it alone has, and refuses another write to it, which fails: a flush is good without it.
#[test]
fn what_the_secondary_has_refused_it_need_not_flush() {
    let mut h = stale_and_known();
    h.req(1, Op::Flush);
    h.serve_all(|message| is(Command::Flush)(message).then_some(None));
    assert_eq!(h.result(1), Some(Ok(None)));
    h.req(2, sector(3, 1, 1));
    h.serve_all(|message| is(Command::Write)(message).then_some(Some(Errno::EIO)));
    assert_eq!(h.result(2), Some(Err(Errno::EIO)));
    h.p.handle_lost(h.t, "gone");
    h.req(3, Op::Flush);
    assert_eq!(h.result(3), Some(Ok(None)));
}

/// S1: neither disk has a cache, so that a flush ends as soon as it begins; the whole disk turns, and the flush that has to come
/// after that begins at once: the write is not held up until something else happens.
#[test]
fn a_flush_that_another_one_makes_necessary_begins_at_once() {
    let runs: Vec<_> = (0..hast_format::extension::STALE_RUNS)
        .map(|at| hast_format::extension::Run { first: 2 * at as u32, count: 1 })
        .collect();
    let bits: Vec<u32> = runs.iter().map(|run| run.first).collect();
    let ext = Extension { generation: 1, stale: runs, ..Extension::default() };
    let no_cache = |op: &DiskOp| if *op == DiskOp::Flush { Err(Errno::EOPNOTSUPP) } else { Ok(()) };
    let mut h = H::new_with(200, 1, ext, &bits, 5, 1, 1, Box::new(move |op| Some(no_cache(op))));
    h.handshake_first(Extensions::ALL);
    h.answer(1, 1, SyncSource::Primary, Some(vec![0; 512]));
    let serve = |m: &Message| (!is_read(m)).then_some(is(Command::Flush)(m).then_some(Errno::EOPNOTSUPP));
    h.serve_all(serve);
    h.policy = Box::new(move |op| Some(if is_data(op) { Err(Errno::EIO) } else { no_cache(op) }));
    h.w(1, 101);
    h.serve_all(serve);
    assert_eq!(h.result(1), Some(Ok(None)));
}

/// L17: our disk may have dropped what it had taken, or the worker ends: the device asks from then on.
#[test]
fn the_device_reads_without_asking_while_both_nodes_have_everything() {
    let mut h = H::in_step();
    assert_eq!(reads_directly(&h), Some(true));
    h.w(1, 3);
    h.serve_all(|message| is(Command::Write)(message).then_some(None));
    assert_eq!(reads_directly(&h), Some(true));
    h.policy = next_flush_fails().0;
    h.req(2, Op::Flush);
    assert!(h.p.is_in_step() && h.p.status().facts.stale_bytes == 0, "extent 3 turns");
    assert_eq!(reads_directly(&h), Some(false));

    let mut h = H::in_step();
    h.w(1, 3);
    h.p.handle_stop(h.t);
    h.pump();
    assert!(h.exit().is_none(), "it waits for the write");
    assert_eq!(reads_directly(&h), Some(false));
}
