//! What has to wait for what: the end of a synchronisation for writes that one node alone has, the end of a worker
//! for what it writes again, a completion for room in the metadata.

use super::*;

fn flush(message: &Message) -> bool {
    matches!(message, Message::Request(Request { command: Command::Flush, .. }))
}

fn write_there(message: &Message) -> bool {
    matches!(message, Message::Request(Request { command: Command::Write, .. }))
}

/// C2: what both nodes were given, and what is only read, does not hold up the end of a synchronisation.
#[test]
fn counts_are_made_equal_while_the_disk_is_slow_with_other_requests() {
    let slow = |op: &DiskOp| {
        let at = match op {
            DiskOp::Read { offset, .. } | DiskOp::Write { offset, .. } => *offset,
            _ => 0,
        };
        at >= DATA + 9 * u64::from(ES)
    };
    let mut h = H::new(24, 1, Extension::default(), &[2], 5, 1, 1);
    h.handshake_first(Extensions::ALL);
    h.answer(1, 1, SyncSource::Primary, Some(vec![0; 512]));
    h.policy = Box::new(move |op| (!slow(op)).then_some(Ok(())));
    h.w(1, 9);
    h.req(2, Op::Read { offset: 11 * u64::from(ES), length: 512 });
    h.serve_all(|_| Some(None));
    assert_eq!((h.result(1), h.result(2)), (None, None));
    assert!(h.p.is_in_step(), "{:?}", h.p.status());
    h.policy = Box::new(|_| Some(Ok(())));
    h.pump();
    assert!(matches!((h.result(1), h.result(2)), (Some(Ok(_)), Some(Ok(_)))));
    assert!(h.p.is_in_step());
}

/// A primary whose disk failed one write and has its extent from the secondary now, which is still to flush. The
/// secondary lacks nothing, and so was not marked.
fn copied() -> H {
    let mut h = H::in_step();
    h.policy = Box::new(|op| Some(if is_data(op) { Err(Errno::EIO) } else { Ok(()) }));
    h.w(9, 2);
    h.serve_all(|message| (!is_read(message)).then_some(None));
    assert_eq!(h.result(9), Some(Ok(None)));
    h.policy = Box::new(|_| Some(Ok(())));
    h.serve_all(|message| (!flush(message)).then_some(None));
    assert!(h.sent.iter().any(|(_, message)| flush(message)) && !h.p.is_in_step());
    h
}

/// Answers the flush of a copy; nothing may be called in step after it.
fn flushed_too_early(h: &mut H) {
    h.serve_all(|message| flush(message).then_some(None));
    assert!(!h.sent.iter().any(|(_, message)| says_done(message)), "C2");
    assert!(!h.p.is_in_step());
}

#[test]
fn counts_are_not_made_equal_while_a_write_is_written_down() {
    let mut h = copied();
    h.policy = Box::new(|op| match op {
        op if is_data(op) => Some(Err(Errno::EIO)),
        op if is_metadata(op) => None,
        _ => Some(Ok(())),
    });
    h.w(1, 7);
    h.serve_all(|message| write_there(message).then_some(None));
    flushed_too_early(&mut h);
    assert_eq!(h.result(1), None, "L3: that it is stale here is not durable");
    h.policy = Box::new(|_| Some(Ok(())));
    h.pump();
    assert_eq!(h.result(1), Some(Ok(None)));
    h.serve_all(|_| Some(None));
    assert!(h.p.is_in_step());
    let at = (DATA + 7 * u64::from(ES)) as usize;
    assert_eq!(h.disk[at..at + 512], [0x55; 512], "taken from the secondary");
}

#[test]
fn counts_are_not_made_equal_while_the_secondary_is_marked() {
    let mut h = copied();
    h.w(1, 7);
    h.serve_all(|message| write_there(message).then_some(Some(Errno::EIO)));
    assert_eq!(h.result(1), None, "L6: the secondary does not know yet");
    flushed_too_early(&mut h);
    h.serve_all(|message| matches!(message, Message::Mark(_)).then_some(None));
    assert_eq!(h.result(1), Some(Ok(None)));
    h.serve_all(|_| Some(None));
    assert!(h.p.is_in_step());
}

/// L6: the secondary is just being told that it lacks nothing when it refuses a write. That it has written down the former says
/// nothing of the latter.
#[test]
fn a_write_waits_for_the_mark_that_follows_it() {
    let mut h = all_but_flushed(Extensions::ALL);
    h.serve_all(|message| flush(message).then_some(None));
    assert!(h.sent.iter().any(|(_, message)| says_done(message)));
    h.w(1, 5);
    h.serve_all(|message| write_there(message).then_some(Some(Errno::EIO)));
    h.serve_all(|message| says_done(message).then_some(None));
    assert_eq!(h.result(1), None, "the secondary takes itself for up to date");
    h.serve_all(|message| says_start(message).then_some(None));
    assert_eq!(h.result(1), Some(Ok(None)));
    h.serve_all(|_| Some(None));
    assert!(h.p.is_in_step());
}

#[test]
fn counts_are_not_made_equal_while_the_secondary_remembers_for_us() {
    let mut h = copied();
    h.policy = Box::new(|op| Some(if is_data(op) || is_metadata(op) { Err(Errno::EIO) } else { Ok(()) }));
    h.w(1, 7);
    h.serve_all(|message| write_there(message).then_some(None));
    flushed_too_early(&mut h);
    let asked =
        |message: &Message| matches!(message, Message::Mark(Mark { kind: MarkKind::Stale { .. }, .. }));
    assert!(h.sent.iter().any(|(_, message)| asked(message)), "our disk cannot record it");
    assert_eq!(h.result(1), None);
    h.serve_all(|message| asked(message).then_some(None));
    assert_eq!(h.result(1), Some(Ok(None)));
}

/// Nothing is complete without the secondary, and it fails a write that our disk has taken: what our disk has of it will
/// be copied over, and a read that waited for the write must not bring it.
#[test]
fn a_read_behind_a_failed_write_does_not_bring_what_will_be_copied_over() {
    let mut h = copied();
    h.policy = Box::new(|op| Some(if is_data(op) || is_metadata(op) { Err(Errno::EIO) } else { Ok(()) }));
    h.w(1, 7);
    h.serve_all(|_| Some(None));
    assert_eq!(h.result(1), Some(Ok(None)), "the secondary remembers it for us");
    h.policy = Box::new(|op| Some(if is_metadata(op) { Err(Errno::EIO) } else { Ok(()) }));
    h.w(2, 9);
    h.req(3, Op::Read { offset: 9 * u64::from(ES), length: 512 });
    h.serve_all(|message| write_there(message).then_some(Some(Errno::EIO)));
    assert_eq!(h.result(2), Some(Err(Errno::EIO)));
    assert_eq!(h.result(3), None, "read from our disk");
    let wanted = |message: &Message| {
        matches!(message, Message::Request(Request { command: Command::Read, offset, length: 512, .. })
            if *offset == 9 * u64::from(ES))
    };
    assert!(h.sent.iter().any(|(_, message)| wanted(message)), "{:?}", h.sent);
}

/// While the secondary was away a flush failed, and its data is being written again here. Then it turns out to have
/// the newer data: what was read here before is not written over that, and the worker's end waits for it.
#[test]
fn what_is_written_again_gives_way_to_newer_data() {
    for stops in [false, true] {
        let mut h = H::new(24, 1, Extension::default(), &[], 5, 3, 5);
        h.p.handle_connect_failed(h.t, Side::Out, "refused");
        h.pump();
        h.tick(2);
        h.handshake_first(Extensions::ALL);
        h.p.handle_lost(h.t, "gone");
        h.pump();
        h.w(1, 2);
        assert_eq!(h.result(1), Some(Ok(None)));
        h.w(3, 2);
        // Only a client's flush fails, and what it dropped cannot be read for a while.
        let mut once = true;
        h.policy = Box::new(move |op| match op {
            DiskOp::Flush if std::mem::take(&mut once) => Some(Err(Errno::EIO)),
            DiskOp::Read { .. } => None,
            _ => Some(Ok(())),
        });
        h.req(2, Op::Flush);
        h.tick(2);
        assert!(h.ops.iter().any(|(_, op)| matches!(op, DiskOp::Read { .. })), "{:?}", h.ops);
        // It was written alone as well, but before: no split-brain, its whole map is the newer.
        h.handshake_first(Extensions::ALL);
        h.answer(6, 4, SyncSource::Secondary, Some(vec![0xff; 512]));
        if stops {
            h.p.handle_stop(h.t);
            h.pump();
            assert!(!h.other.contains(&Action::Exit(0)), "the piece is still under way");
        }
        h.policy = Box::new(|_| Some(Ok(())));
        h.pump();
        h.serve_all(|_| Some(None));
        h.tick(3);
        h.serve_all(|_| Some(None));
        if stops {
            assert!(h.other.contains(&Action::Exit(0)));
        } else {
            assert!(h.p.is_in_step());
            assert!(h.disk[DATA as usize..][..24 * ES as usize].iter().all(|byte| *byte == 0x55));
        }
    }
}

/// A primary of 100 extents whose disk has failed too often: all of it is stale. It works again.
fn detached() -> H {
    let mut h = H::in_step_with(100);
    h.policy = Box::new(|op| Some(if is_data(op) { Err(Errno::EIO) } else { Ok(()) }));
    for n in 0..40 {
        h.w(n, 2 * n);
        h.serve_all(not_copied);
        assert_eq!(h.result(n), Some(Ok(None)));
    }
    assert!(h.p.status().facts.detached);
    h.policy = Box::new(|_| Some(Ok(())));
    h
}

/// The secondary answers all well, but what is to be copied from it.
fn not_copied(message: &Message) -> Option<Option<Errno>> {
    Some(is_read(message).then_some(Errno::EIO))
}

fn whole(h: &mut H, id: u64, extent: u64) {
    h.req(id, Op::Write { offset: extent * u64::from(ES), data: Buffer::from(vec![1; ES as usize]) });
}

fn stale(h: &H) -> Vec<u32> {
    let runs = Metadata::read(&h.disk).unwrap().metadata.extension.stale;
    assert!(runs.len() <= hast_format::extension::STALE_RUNS, "{runs:?}");
    runs.iter().flat_map(|run| run.extents()).collect()
}

/// Every second extent is written whole on both nodes, which makes fifty stale runs of one. Runs are joined over what
/// lies between, so that too much is called stale on disk, and never too little.
#[test]
fn runs_are_joined_when_stale_extents_are_scattered() {
    let mut h = detached();
    for n in 0..50 {
        whole(&mut h, 100 + n, 2 * n);
        h.serve_all(not_copied);
        assert_eq!(h.result(100 + n), Some(Ok(None)));
    }
    let stale = stale(&h);
    assert!((0..50).all(|n| stale.contains(&(2 * n + 1))), "{stale:?}");
    assert!(stale.len() < 100, "some are good again: {stale:?}");
    // In the end all of it is copied, and nothing is stale.
    for _ in 0..100 {
        h.serve_all(|_| Some(None));
        h.tick(3);
    }
    assert!(h.p.is_in_step());
    assert_eq!(self::stale(&h), []);
}

/// Of the gaps between the stale runs the shortest are closed, and no more of them than there have to be.
#[test]
fn as_few_extents_as_possible_are_named_beside_those_that_are_stale() {
    let mut h = detached();
    let scattered: Vec<u32> = (0..32).map(|n| 3 * n).chain([95, 97]).collect();
    for extent in (0..100).filter(|extent| !scattered.contains(extent)) {
        let id = 100 + u64::from(extent);
        whole(&mut h, id, extent.into());
        h.serve_all(not_copied);
        assert_eq!(h.result(id), Some(Ok(None)));
    }
    // What lies between is copied to the secondary as well, and can be called stale then.
    for _ in 0..6 {
        h.tick(11);
        h.serve_all(not_copied);
    }
    assert_eq!(h.p.status().facts.to_synchronise_bytes, 34 * u64::from(ES));
    let named: Vec<u32> = (0..32).map(|n| 3 * n).chain([94, 95, 96, 97]).collect();
    assert_eq!(stale(&h), named, "34 runs, and room for 32");
}

/// The extents between the stale ones are right here alone: runs cannot be joined over them, and what cannot be said
/// on disk is not said to the client.
#[test]
fn what_is_too_scattered_to_be_written_down_is_not_complete() {
    let mut h = detached();
    let mut failed = 0;
    for n in 0..50 {
        whole(&mut h, 100 + n, 2 * n);
        h.serve_all(|message| match message {
            message if write_there(message) => Some(Some(Errno::EIO)),
            message => not_copied(message),
        });
        // Whatever is complete is called right here by the disk too, or the secondary was told.
        match h.result(100 + n) {
            Some(Ok(_)) => assert!(!stale(&h).contains(&(2 * n as u32)), "{n}: {:?}", stale(&h)),
            _ => failed += 1,
        }
        assert!((0..50).all(|n| stale(&h).contains(&(2 * n + 1))));
    }
    assert!((50 - 33..50).contains(&failed), "{failed}");
}

/// memsync: that something has arrived is said of writes alone, whatever else asks for it.
#[test]
fn only_writes_are_said_to_be_received() {
    for (command, length, received) in
        [(Command::Write, 512, 1), (Command::Read, 512, 0), (Command::Flush, 0, 0)]
    {
        let mut s = sessions::secondary(5, (1, 1), 0, Role::Secondary);
        s.good();
        let data = (command == Command::Write).then(|| Buffer::from(vec![1; 512]));
        s.frame(Message::Request(Request { command, seq: 1, offset: 0, length, memsync: true, data }));
        let is_received =
            |message: &&Message| matches!(message, Message::Reply(Reply { received: true, .. }));
        assert_eq!(s.sent.iter().filter(is_received).count(), received, "{command}");
        s.good();
        assert_eq!(s.error_of(1), Some(None));
    }
}

/// The primary asks for that in mode memsync, of a secondary that knows it.
#[test]
fn only_in_memsync_is_the_secondary_asked_to_say_that_it_has_received_a_write() {
    use Replication::{Async, Fullsync, Memsync};
    for (mode, version) in [Fullsync, Memsync, Async].into_iter().flat_map(|mode| [(mode, 1), (mode, 2)]) {
        let mut h = H::new(24, 1, Extension::default(), &[], 5, 1, 1);
        h.set_mode(mode);
        h.p.handle_connected(h.t, Side::Out);
        h.pump();
        let nv = FirstAnswer { version, token: [9; 16], ext: Extensions::NONE }.encode();
        let nv = nv.as_bytes().to_vec().into();
        h.p.handle_frame(h.t, Side::Out, Frame { version, nv, payload: None });
        h.pump();
        h.p.handle_connected(h.t, Side::In);
        h.pump();
        h.answer(1, 1, SyncSource::Primary, Some(vec![0; 512]));
        h.serve_all(|_| Some(None));
        h.w(1, 3);
        let asked = h.sent.iter().find_map(|(_, message)| match message {
            Message::Request(Request { command: Command::Write, memsync, .. }) => Some(*memsync),
            _ => None,
        });
        assert_eq!(asked, Some((mode, version) == (Memsync, 2)), "{mode:?}, version {version}");
    }
}

/// What is written again while a flush is under way that flush does not cover.
#[test]
fn a_flush_that_began_before_something_was_written_again_is_not_good() {
    let mut h = H::in_step();
    h.p.handle_lost(h.t, "gone");
    h.pump();
    h.w(1, 2);
    h.w(2, 2);
    assert_eq!(h.result(2), Some(Ok(None)));
    let mut once = true;
    h.policy = Box::new(move |op| match op {
        DiskOp::Flush if std::mem::take(&mut once) => Some(Err(Errno::EIO)),
        DiskOp::Read { .. } => None,
        _ => Some(Ok(())),
    });
    h.req(3, Op::Flush);
    assert_eq!(h.result(3), Some(Err(Errno::EIO)));
    h.tick(2);
    assert!(h.ops.iter().any(|(_, op)| matches!(op, DiskOp::Read { .. })), "{:?}", h.ops);
    // The next flush begins; what was dropped is written only then, and the flush ends well.
    h.policy = Box::new(|_| None);
    h.req(4, Op::Flush);
    assert!(h.ops.iter().any(|(_, op)| *op == DiskOp::Flush), "{:?}", h.ops);
    h.policy = Box::new(|op| (*op != DiskOp::Flush).then_some(Ok(())));
    h.pump();
    h.policy = Box::new(|_| Some(Ok(())));
    h.pump();
    assert_eq!(h.result(4), Some(Err(Errno::EIO)));
    h.req(5, Op::Flush);
    assert_eq!(h.result(5), Some(Ok(None)));
}

/// A primary that has copied its one dirty extent; the secondary has yet to flush it.
fn all_but_flushed(extensions: Extensions) -> H {
    let mut h = H::new(24, 1, Extension::default(), &[2], 5, 1, 1);
    h.handshake_first(extensions);
    h.answer(1, 1, SyncSource::Primary, Some(vec![0; 512]));
    h.serve_all(|m| (!flush(m)).then_some(None));
    assert!(h.sent.iter().any(|(_, message)| flush(message)));
    h
}

fn exits(h: &H) -> bool {
    h.other.contains(&Action::Exit(0))
}

/// C4: what is equal already is called so on both nodes before a planned end, so that the other one can be promoted.
#[test]
fn a_stop_after_the_last_copy_leaves_both_nodes_in_step() {
    for (extensions, nothing_to_tell) in [(Extensions::ALL, false), (Extensions::NONE, true)] {
        let mut h = all_but_flushed(extensions);
        h.p.handle_stop(h.t);
        h.pump();
        assert!(!exits(&h));
        h.serve_all(|m| (!says_done(m)).then_some(None));
        assert_eq!(exits(&h), nothing_to_tell);
        assert_eq!(h.sent.iter().any(|(_, message)| says_done(message)), !nothing_to_tell);
        h.serve_all(|_| Some(None));
        assert!(exits(&h));
    }
}

/// ... unless the nodes cannot be made equal, or one of them does not say so in time.
#[test]
fn a_stop_does_not_wait_for_counts_that_cannot_be_equal() {
    for failure in [Some(Errno::EIO), None] {
        let mut h = all_but_flushed(Extensions::ALL);
        h.p.handle_stop(h.t);
        h.serve_all(|m| match m {
            m if says_done(m) => failure.map(Some),
            _ => Some(None),
        });
        assert_eq!(exits(&h), failure.is_some());
        h.tick(21);
        assert!(exits(&h), "{failure:?}");
    }
}

/// L3: what is stale here is being written down when the worker is to end, or could not be so far: the worker ends when that is
/// done.
#[test]
fn a_stop_waits_until_what_is_stale_is_written_down() {
    for failed_before in [false, true] {
        let mut h = H::in_step();
        h.w(1, 3);
        h.serve_all(|message| write_there(message).then_some(None));
        let mut once = true;
        h.policy = Box::new(move |op| match op {
            DiskOp::Flush if std::mem::take(&mut once) => Some(Err(Errno::EIO)),
            op if is_metadata(op) => failed_before.then_some(Err(Errno::EIO)),
            _ => Some(Ok(())),
        });
        h.tick(1);
        for _ in 0..3 {
            h.serve_all(|message| flush(message).then_some(None));
            h.tick(1);
        }
        assert_eq!(h.p.status().facts.stale_bytes, u64::from(ES));
        h.p.handle_lost(h.t, "gone");
        h.pump();
        let mut fails = failed_before;
        h.policy = Box::new(move |op| match op {
            op if is_metadata(op) => std::mem::take(&mut fails).then_some(Err(Errno::EIO)),
            _ => Some(Ok(())),
        });
        h.p.handle_stop(h.t);
        h.pump();
        assert_eq!((h.exit(), calls_stale(&h, 3)), (None, false));
        h.policy = Box::new(|_| Some(Ok(())));
        h.pump();
        assert_eq!((h.exit(), calls_stale(&h, 3)), (Some(0), true));
    }
}

/// The same of a disk that was given up, and is about to say that all of it is stale.
#[test]
fn a_stop_waits_until_a_disk_that_works_again_says_that_it_is_stale() {
    let mut h = H::in_step();
    h.policy = Box::new(|_| Some(Err(Errno::EIO)));
    h.w(1, 9);
    h.serve_all(|_| Some(None));
    assert!(h.p.status().facts.detached);
    h.policy = Box::new(|op| (!is_metadata(op)).then_some(Ok(())));
    h.tick(2);
    assert!(h.ops.iter().any(|(_, op)| is_metadata(op)));
    h.p.handle_stop(h.t);
    h.pump();
    h.serve_all(|_| Some(None));
    assert_eq!(h.exit(), None);
    h.policy = Box::new(|_| Some(Ok(())));
    h.pump();
    h.serve_all(|_| Some(None));
    assert_eq!((h.exit(), h.metadata().extension.stale.len()), (Some(0), 1));
    assert!(calls_stale(&h, 0) && calls_stale(&h, 23));
}
