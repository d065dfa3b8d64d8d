//! Holes in the durability of a write that were found from outside: each of these failed before its mend. The simulator
//! plays the same at random (the scenes of the same names).

use super::*;

/// Both nodes have stored a write that neither has flushed, and the client has its answer.
fn stored_on_both(replication: Replication) -> H {
    let mut h = H::in_step();
    h.set_mode(replication);
    h.w(1, 7);
    h.serve_all(|message| (!is(Command::Flush)(message)).then_some(None));
    assert_eq!(h.result(1), Some(Ok(None)));
    h
}

fn localcnt(h: &H) -> u64 {
    h.metadata().localcnt
}

fn is_sync_start(message: &Message) -> bool {
    matches!(message, Message::Mark(Mark { kind: MarkKind::SyncStart, .. }))
}

/// C1 (d): the secondary is gone, and may have lost what no flush there has covered. A client that is told that its
/// flush succeeded relies on this node alone: localcnt rises first.
#[test]
fn a_flush_without_the_secondary_is_counted() {
    for replication in [Replication::Fullsync, Replication::Memsync] {
        let mut h = stored_on_both(replication);
        let before = localcnt(&h);
        h.p.handle_lost(h.t, "gone");
        h.pump();
        assert_eq!(localcnt(&h), before, "nobody was told that it is flushed");
        h.policy = Box::new(|op| (!is_metadata(op)).then_some(Ok(())));
        h.req(2, Op::Flush);
        assert_eq!(h.result(2), None, "not before the count is durable");
        h.policy = Box::new(|_| Some(Ok(())));
        h.pump();
        assert_eq!(h.result(2), Some(Ok(None)));
        assert_eq!(localcnt(&h), before + 1, "{replication:?}");
        h.req(3, Op::Flush);
        assert_eq!(localcnt(&h), before + 1, "once in a disconnected period");
    }
}

/// C1 (b), C2: localcnt is to rise for what the secondary has refused, and cannot be saved. Once the secondary has got that as
/// well there is nothing to be counted any more: the secondary would seem to be out of date.
#[test]
fn what_was_to_be_counted_is_not_once_the_nodes_are_equal() {
    let mut h = H::in_step();
    h.set_mode(Replication::Async);
    h.w(1, 7);
    assert_eq!(h.result(1), Some(Ok(None)));
    h.policy = Box::new(|op| Some(if is_metadata(op) { Err(Errno::EIO) } else { Ok(()) }));
    h.serve_all(|message| is(Command::Write)(message).then_some(Some(Errno::EIO)));
    h.policy = Box::new(|_| Some(Ok(())));
    let mut told = None;
    h.serve_all(|message| {
        if let Message::Mark(Mark { kind: MarkKind::SyncDone { localcnt, .. }, .. }) = message {
            told = Some(*localcnt);
        }
        Some(None)
    });
    assert!(h.p.is_in_step());
    h.tick(5);
    assert_eq!(told, Some(localcnt(&h)));
}

/// The same after both nodes have flushed: nothing is missing there, and nothing is counted.
#[test]
fn a_flush_alone_of_what_both_nodes_have_flushed_is_not_counted() {
    let mut h = stored_on_both(Replication::Fullsync);
    h.req(2, Op::Flush);
    h.serve_all(|_| Some(None));
    let before = localcnt(&h);
    h.p.handle_lost(h.t, "gone");
    h.req(3, Op::Flush);
    assert_eq!(h.result(3), Some(Ok(None)));
    assert_eq!(localcnt(&h), before);
}

/// This primary's worker has ended, and another one begins with what is on the disk.
fn restarted(h: H) -> H {
    let metadata = h.metadata();
    let layout = Layout::open(&metadata, h.disk.len() as u64 - 4096, 512).unwrap();
    let map = h.disk[4096..4096 + layout.map_bytes() as usize].to_vec();
    H::started(metadata, layout, map, Box::new(|_| Some(Ok(()))), false)
}

/// The former primary is gone, and this node, its secondary, takes over by force: its disk says at once that it is the primary.
fn taken_over() -> H {
    let layout = Layout::create(4096 + 512 + 24 * u64::from(ES), 512, ES).unwrap();
    let metadata = Metadata { prevrole: Role::Secondary, ..metadata_on(&layout, Extension::default()) };
    let map = map_of(&layout, &[]);
    let start = PrimaryStart { forced: true, ..H::start(metadata, layout, map) };
    let h = H::begun(start, Box::new(|_| Some(Ok(()))));
    assert_eq!(h.metadata().prevrole, Role::Primary);
    h
}

/// C1 (d): what the former primary had not flushed is in no map of a node that takes over. That holds until the nodes have
/// been connected, and for the next worker too: it finds a node that was the primary, and an empty map.
#[test]
fn a_flush_alone_is_counted_until_the_nodes_have_met_though_the_worker_is_another() {
    for restarts in 0..3 {
        let mut h = (0..restarts).fold(taken_over(), |h, _| restarted(h));
        h.tick(30);
        h.policy = Box::new(|op| (!is_metadata(op)).then_some(Ok(())));
        h.req(1, Op::Flush);
        assert_eq!(h.result(1), None, "not before the count is durable: {restarts} restarts");
        h.policy = Box::new(|_| Some(Ok(())));
        h.pump();
        assert_eq!(h.result(1), Some(Ok(None)));
        assert_eq!(localcnt(&h), 2, "{restarts} restarts");
    }
}

/// The nodes have been connected since: what the secondary lacks is in this node's map, for the next worker too.
#[test]
fn a_flush_alone_is_not_counted_after_a_restart_of_a_primary_that_has_met_the_secondary() {
    let mut h = taken_over();
    h.handshake_first(Extensions::ALL);
    h.answer(1, 1, SyncSource::Primary, Some(vec![0; 512]));
    h.serve_all(|_| Some(None));
    assert!(h.p.is_in_step());
    let before = localcnt(&h);
    let mut h = restarted(h);
    h.tick(30);
    h.req(1, Op::Flush);
    assert_eq!(h.result(1), Some(Ok(None)));
    assert_eq!(localcnt(&h), before);
}

/// A map that is not flushed may lack, after a loss of power, what it had: it is not complete for the next worker, nor does the
/// disk say so.
#[test]
fn a_map_that_is_not_flushed_is_not_complete() {
    let complete = Extension { generation: 1, map_complete: true, ..Extension::default() };
    let layout = Layout::create(4096 + 512 + 24 * u64::from(ES), 512, ES).unwrap();
    let start = |metaflush| {
        let start = H::start(metadata_on(&layout, complete.clone()), layout, map_of(&layout, &[]));
        PrimaryStart { settings: Settings { metaflush, ..H::settings() }, ..start }
    };
    for metaflush in [true, false] {
        let mut h = H::begun(start(metaflush), Box::new(|_| Some(Ok(()))));
        assert_eq!(h.metadata().extension.map_complete, metaflush, "before anything is served");
        h.tick(30);
        h.req(1, Op::Flush);
        assert_eq!(h.result(1), Some(Ok(None)));
        assert_eq!(localcnt(&h), if metaflush { 1 } else { 2 });
        let mut h = H::begun(start(metaflush), Box::new(|_| Some(Ok(()))));
        h.handshake_first(Extensions::ALL);
        h.answer(1, 1, SyncSource::Primary, Some(vec![0; 512]));
        h.serve_all(|_| Some(None));
        assert!(h.p.is_in_step());
        assert_eq!(h.metadata().extension.map_complete, metaflush, "once the nodes have met");
    }
    // Switched off while it runs, and not on again before the nodes meet once more.
    let mut h = H::begun(start(true), Box::new(|_| Some(Ok(()))));
    h.p.handle_reload(h.t, Settings { metaflush: false, ..H::settings() }, false);
    h.pump();
    assert!(!h.metadata().extension.map_complete);
    h.p.handle_reload(h.t, H::settings(), false);
    h.pump();
    assert!(!h.metadata().extension.map_complete);
}

/// G1: what the other node knew when the latest generation was stored stays what it was when an original comes, with which
/// there is no new generation.
#[test]
fn an_original_changes_nothing_about_the_latest_generation() {
    let extension = Extension { connection: 7 << 32, connection_localcnt: 3, ..Extension::default() };
    let mut h = H::new(24, 1, extension, &[], 5, 3, 2);
    h.handshake_first(Extensions::NONE);
    h.answer(2, 2, SyncSource::Primary, Some(vec![0; 512]));
    let extension = h.metadata().extension;
    assert!(extension.map_complete);
    assert_eq!((extension.connection, extension.connection_localcnt), (7 << 32, 3));
}

/// An original was the primary on this disk: it has cleared bits of what neither node had flushed (L2).
#[test]
fn a_flush_alone_is_counted_if_the_map_is_an_originals() {
    let mut h = H::in_step();
    let plain = Metadata { extension: Extension::default(), ..h.metadata() };
    h.disk[..4096].copy_from_slice(&plain.encode());
    let before = localcnt(&h);
    let mut h = restarted(h);
    h.tick(30);
    h.req(1, Op::Flush);
    assert_eq!(h.result(1), Some(Ok(None)));
    assert_eq!(localcnt(&h), before + 1);
}

/// L9: the secondary fails a flush. The client hears of its flush once that is counted and the secondary has written
/// down that it is out of date.
#[test]
fn a_flush_that_the_secondary_failed_waits_until_it_is_marked() {
    let mut h = stored_on_both(Replication::Fullsync);
    h.req(2, Op::Flush);
    h.serve_all(|message| is(Command::Flush)(message).then_some(Some(Errno::EIO)));
    assert_eq!(h.result(2), None);
    assert!(h.sent.iter().any(|(_, message)| is_sync_start(message)), "{:?}", h.sent);
    h.serve_all(|message| is_sync_start(message).then_some(None));
    assert_eq!(h.result(2), Some(Ok(None)));
}

/// The same, and the secondary goes away instead: then it is not promoted without the count being seen.
#[test]
fn a_flush_that_the_secondary_failed_does_not_wait_for_a_node_that_is_gone() {
    let mut h = stored_on_both(Replication::Fullsync);
    h.req(2, Op::Flush);
    h.serve_all(|message| is(Command::Flush)(message).then_some(Some(Errno::EIO)));
    h.p.handle_lost(h.t, "gone");
    h.pump();
    assert_eq!(h.result(2), Some(Ok(None)));
}

/// A1: a flush that began without the secondary ends after it has come back: it says nothing about the secondary. The
/// client's flush is carried out there too, and the nodes are in step without a pause.
#[test]
fn a_flush_that_began_before_the_connection_is_no_failure_of_it() {
    let mut h = stored_on_both(Replication::Fullsync);
    h.p.handle_lost(h.t, "gone");
    h.pump();
    h.tick(2);
    h.handshake_first(Extensions::ALL);
    // The last thing before the connection is up is the second flush of a save of the metadata; the client's begins
    // behind that.
    let mut flushes = 0;
    h.policy = Box::new(move |op| {
        flushes += usize::from(*op == DiskOp::Flush);
        (flushes < 2).then_some(Ok(()))
    });
    h.answer(1, 1, SyncSource::Primary, Some(vec![0; 512]));
    assert!(!h.p.status().complete && h.ops.len() == 1, "{:?}", h.ops);
    h.req(2, Op::Flush);
    h.policy = Box::new(|_| Some(Ok(())));
    h.pump();
    h.serve_all(|_| Some(None));
    assert_eq!(h.result(2), Some(Ok(None)));
    assert!(h.p.is_in_step(), "{:?}", h.p.status());
}

/// Our disk cannot read the first sector of extent 7, and fails what `fails` says.
fn bad_sector(h: &mut H, fails: fn(&DiskOp) -> bool) {
    let bad = DATA + 7 * u64::from(ES);
    h.policy = Box::new(move |op| match op {
        DiskOp::Read { offset, .. } if *offset == bad => Some(Err(Errno::EIO)),
        op if fails(op) => Some(Err(Errno::EIO)),
        _ => Some(Ok(())),
    });
}

/// S1: a bad sector is read from the secondary and cannot be written back. Its extent, to which a write is complete
/// that the secondary has not flushed, is not called stale before it has; if it goes away first, our copy is the right
/// one.
#[test]
fn a_repair_that_fails_leaves_nothing_stale_before_the_secondary_has_flushed() {
    for flushed in [false, true] {
        let mut h = H::in_step();
        h.req(1, Op::Write { offset: 7 * u64::from(ES) + 512, data: Buffer::from(vec![1; 512]) });
        h.serve_all(|message| (!is(Command::Flush)(message)).then_some(None));
        bad_sector(&mut h, is_data);
        h.req(2, Op::Read { offset: 7 * u64::from(ES), length: 512 });
        h.serve_all(|message| is_read(message).then_some(None));
        assert_eq!(h.result(2), Some(Ok(Some(Buffer::from(vec![0x55; 512])))));
        assert_eq!(h.p.status().facts.stale_bytes, 0, "S1");
        h.tick(2);
        if flushed {
            h.serve_all(|message| is(Command::Flush)(message).then_some(None));
            assert_eq!(h.p.status().facts.stale_bytes, u64::from(ES));
        }
        h.p.handle_lost(h.t, "gone");
        h.req(3, Op::Read { offset: 7 * u64::from(ES) + 512, length: 512 });
        let here = Some(Ok(Some(Buffer::from(vec![1; 512]))));
        assert_eq!(h.result(3), if flushed { None } else { here }, "flushed {flushed}");
    }
}

/// R1: the secondary has received a write, which is complete, and not stored it. A read that our disk fails is not
/// sent there before it has; and not at all once it has refused the write.
#[test]
fn a_read_waits_for_what_the_secondary_owes() {
    for error in [None, Some(Errno::EIO)] {
        let mut h = H::in_step();
        h.set_mode(Replication::Memsync);
        h.req(1, Op::Write { offset: 7 * u64::from(ES) + 512, data: Buffer::from(vec![1; 512]) });
        let seq = h.sent.iter().find_map(|(_, message)| match message {
            Message::Request(Request { command: Command::Write, seq, .. }) => Some(*seq),
            _ => None,
        });
        let received = Reply { seq: seq.unwrap(), received: true, error: None, data: None };
        h.frame(Side::In, Message::Reply(received));
        assert_eq!(h.result(1), Some(Ok(None)));
        bad_sector(&mut h, |_| false);
        h.req(2, Op::Read { offset: 7 * u64::from(ES), length: 512 });
        assert!(!h.sent.iter().any(|(_, message)| is_read(message)), "R1: {:?}", h.sent);
        h.serve_all(|message| is(Command::Write)(message).then_some(error));
        h.serve_all(|message| is_read(message).then_some(None));
        let read = Ok(Some(Buffer::from(vec![0x55; 512])));
        assert_eq!(h.result(2), Some(error.map_or(read, Err)));
    }
}

/// R1: a read is with the secondary when that fails a write to the same extent which was complete: its answer does not
/// count.
#[test]
fn an_answer_of_a_secondary_that_failed_meanwhile_does_not_count() {
    let mut h = H::in_step();
    h.set_mode(Replication::Async);
    bad_sector(&mut h, |_| false);
    h.req(1, Op::Read { offset: 7 * u64::from(ES), length: 512 });
    assert!(h.sent.iter().any(|(_, message)| is_read(message)));
    h.req(2, Op::Write { offset: 7 * u64::from(ES) + 512, data: Buffer::from(vec![1; 512]) });
    assert_eq!(h.result(2), Some(Ok(None)));
    h.serve_all(|message| is(Command::Write)(message).then_some(Some(Errno::EIO)));
    h.policy = Box::new(|op| (!matches!(op, DiskOp::Read { .. })).then_some(Ok(())));
    h.serve_all(|message| is_read(message).then_some(None));
    assert_eq!(h.result(1), Some(Err(Errno::EIO)), "our disk has failed it, and is not asked again");
}

/// C4: the secondary refuses a write that is complete while this node is being stopped for a change of roles: it
/// writes down that it is out of date before the connection closes.
#[test]
fn a_planned_end_marks_a_secondary_that_lacks_something() {
    let mut h = H::in_step();
    h.set_mode(Replication::Async);
    h.w(1, 7);
    assert_eq!(h.result(1), Some(Ok(None)));
    h.p.handle_stop(h.t);
    h.pump();
    h.serve_all(|message| is(Command::Write)(message).then_some(Some(Errno::EIO)));
    h.serve_all(|message| is(Command::Flush)(message).then_some(None));
    assert_eq!(h.exit(), None, "C4: not before the secondary knows");
    h.serve_all(|message| is_sync_start(message).then_some(None));
    assert_eq!(h.exit(), Some(0));
}

/// A4: an extent is stale, and the metadata says so. What is written to it on the secondary costs no save any more.
#[test]
fn a_write_whose_staleness_is_on_disk_saves_nothing() {
    let mut h = H::in_step();
    h.policy = Box::new(|op| Some(if is_data(op) { Err(Errno::EIO) } else { Ok(()) }));
    let copy_fails = |m: &Message| Some(is(Command::Read)(m).then_some(Errno::EIO));
    h.w(1, 3);
    h.serve_all(copy_fails);
    assert_eq!(h.result(1), Some(Ok(None)));
    let before = h.metadata().extension.generation;
    h.w(2, 3);
    h.serve_all(copy_fails);
    assert_eq!(h.result(2), Some(Ok(None)));
    assert_eq!(h.metadata().extension.generation, before);
}

/// A6: the only good copy is on an original whose disk hangs: each time the connection comes back the request is sent,
/// and not answered. It fails once, `timeout` after it first had to wait.
#[test]
fn a_request_that_waits_for_a_flapping_secondary_fails_once() {
    let mut h = H::new(24, 1, Extension::default(), &[], 5, 1, 1);
    h.handshake_first(Extensions::NONE);
    h.answer(2, 1, SyncSource::Secondary, Some(vec![0xff; 512]));
    assert!(h.p.status().facts.target);
    h.w(1, 3);
    for _ in 0..6 {
        h.p.handle_lost(h.t, "gone");
        h.tick(5);
        if h.result(1).is_some() {
            break;
        }
        h.handshake_first(Extensions::NONE);
        h.answer(2, 1, SyncSource::Secondary, Some(vec![0xff; 512]));
        h.tick(1);
    }
    assert_eq!(h.result(1), Some(Err(Errno::EIO)));
    assert!(h.t <= Duration::from_secs(40), "{:?}", h.t);
    assert_eq!(h.done.iter().filter(|(id, _)| id.0 == 1).count(), 1);
}

/// Our disk answers EIO to everything; the secondary is well.
fn dead_disk() -> H {
    let mut h = H::in_step();
    h.w(1, 7);
    h.serve_all(|_| Some(None));
    h.policy = Box::new(|_| Some(Err(Errno::EIO)));
    h
}

/// A5: writes to unmarked extents, flushes and reads go on with the secondary, which has written down that it is right,
/// after it had flushed.
#[test]
fn everything_goes_on_without_our_disk() {
    let mut h = dead_disk();
    h.w(2, 9);
    let told =
        |message: &Message| matches!(message, Message::Mark(Mark { kind: MarkKind::Stale { .. }, .. }));
    assert!(!h.sent.iter().any(|(_, message)| told(message)), "S1: it flushes first");
    h.serve_all(|message| is(Command::Flush)(message).then_some(None));
    let length = 24 * u64::from(ES);
    let all = Message::Mark(Mark { seq: 0, kind: MarkKind::Stale { offset: 0, length } });
    let said = h.sent.iter().any(|(_, message)| match (message, &all) {
        (Message::Mark(mark), Message::Mark(all)) => mark.kind == all.kind,
        _ => false,
    });
    assert!(said, "{:?}", h.sent);
    assert!(
        !h.sent.iter().any(|(_, message)| is(Command::Write)(message)),
        "not before it has written that down"
    );
    h.serve_all(|_| Some(None));
    assert_eq!(h.result(2), Some(Ok(None)));
    assert!(h.p.status().facts.detached);
    h.req(3, Op::Flush);
    h.req(4, Op::Read { offset: 0, length: 512 });
    h.w(5, 11);
    h.serve_all(|_| Some(None));
    assert_eq!(h.result(3), Some(Ok(None)));
    assert_eq!(h.result(4), Some(Ok(Some(Buffer::from(vec![0x55; 512])))));
    assert_eq!(h.result(5), Some(Ok(None)));
    assert!(h.other.iter().any(|action| matches!(action, Action::Detached(_))));
}

/// A5, M1: a disk that fails two writes of the map and takes the third one stays in use.
#[test]
fn a_map_write_is_tried_three_times_before_the_disk_is_given_up() {
    for failures in [2, 3] {
        let mut h = H::in_step();
        let mut left = failures;
        h.policy = Box::new(move |op| {
            let map = matches!(op, DiskOp::Write { offset, .. } if (4096..DATA).contains(offset));
            let fails = map && left > 0;
            left -= i32::from(fails);
            Some(if fails { Err(Errno::EIO) } else { Ok(()) })
        });
        h.w(1, 9);
        h.serve_all(|_| Some(None));
        assert_eq!(h.result(1), Some(Ok(None)));
        assert_eq!(h.p.status().facts.detached, failures == 3);
    }
}

/// A client's flush is all that our disk is asked for.
#[test]
fn a_flush_is_enough_to_give_the_disk_up() {
    let mut h = dead_disk();
    h.req(2, Op::Flush);
    h.serve_all(|_| Some(None));
    assert_eq!(h.result(2), Some(Ok(None)));
}

/// The secondary goes away and comes back: requests wait, and it writes the same down again before they reach it.
#[test]
fn a_node_without_a_disk_reconnects() {
    let mut h = dead_disk();
    h.w(2, 9);
    h.serve_all(|_| Some(None));
    h.p.handle_lost(h.t, "gone");
    h.w(3, 9);
    h.req(4, Op::Flush);
    h.tick(5);
    assert_eq!((h.result(3), h.result(4)), (None, None));
    h.handshake_first(Extensions::ALL);
    h.answer(2, 1, SyncSource::Primary, Some(vec![0xff; 512]));
    let first = h.sent.iter().find(|(_, message)| matches!(message, Message::Mark(_) | Message::Request(_)));
    assert!(
        matches!(first, Some((_, Message::Mark(Mark { kind: MarkKind::Stale { .. }, .. })))),
        "{first:?}"
    );
    h.serve_all(|_| Some(None));
    assert_eq!((h.result(3), h.result(4)), (Some(Ok(None)), Some(Ok(None))));
    // Without it they fail after `timeout`.
    h.p.handle_lost(h.t, "gone");
    h.w(5, 9);
    h.req(6, Op::Flush);
    h.tick(25);
    assert_eq!((h.result(5), h.result(6)), (Some(Err(Errno::EIO)), Some(Err(Errno::EIO))));
}

/// The disk works again while the secondary, which has come back, writes the same down again: the nodes are connected once it has,
/// or connect again if it cannot.
#[test]
fn a_disk_works_again_while_the_secondary_writes_down_that_it_alone_is_right() {
    for answer in [None, Some(Errno::EIO)] {
        let mut h = dead_disk();
        h.w(2, 9);
        h.serve_all(|_| Some(None));
        h.meet_again();
        h.answer(2, 1, SyncSource::Secondary, Some(vec![0xff; 512]));
        assert!(!h.p.status().complete && h.sent.iter().any(|(_, message)| is_mark(message)));
        h.policy = Box::new(|_| Some(Ok(())));
        for _ in 0..5 {
            h.tick(1);
            h.frame(Side::In, Message::Alive);
        }
        assert!(h.other.contains(&Action::Attached), "{:?}", h.other);
        h.serve_all(|message| is_mark(message).then_some(answer));
        assert!(h.detached_at_last().is_none(), "a worker that replaces this one begins with the disk");
        if answer.is_some() {
            h.tick(2);
            h.handshake_first(Extensions::ALL);
            h.answer(2, 1, SyncSource::Secondary, Some(vec![0xff; 512]));
        }
        assert!(!h.p.status().facts.detached || h.p.status().facts.stale_bytes > 0);
        for _ in 0..5 {
            h.serve_all(|_| Some(None));
            h.tick(4);
        }
        assert!(h.p.is_in_step(), "{answer:?}: {:?}", h.p.status());
    }
}

/// The secondary cannot write down that it alone is right: what our disk has failed has failed, and the nodes stay connected.
#[test]
fn a_disk_is_not_given_up_for_a_secondary_that_cannot_write_that_down() {
    let mut h = dead_disk();
    h.w(2, 9);
    h.serve_all(|message| Some(is_mark(message).then_some(Errno::EIO)));
    assert_eq!(h.result(2), Some(Err(Errno::EIO)));
    let status = h.p.status();
    assert!(status.complete && !status.facts.detached, "{status:?}");
}

/// S1: a secondary that has written down that it alone is right has counted for that. This node knows why, and says the new
/// count: else the secondary would be the source of everything at the next handshake.
#[test]
fn what_the_secondary_has_counted_for_our_disk_is_no_news() {
    let is_bad = |op: &DiskOp| is_data(op) || is_metadata(op);
    for all in [false, true] {
        let mut h = H::in_step();
        h.policy = Box::new(move |op| Some(if all || is_bad(op) { Err(Errno::EIO) } else { Ok(()) }));
        h.w(1, 9);
        h.serve_all(|message| (!is_read(message)).then_some(None));
        assert_eq!(h.result(1), Some(Ok(None)));
        assert!(h.p.status().facts.detached);
        h.meet_again();
        let said = h.sent.iter().find_map(|(_, message)| match message {
            Message::SecondHello(hello) => Some((hello.localcnt, hello.remotecnt)),
            _ => None,
        });
        assert_eq!(said, Some((1, 2)), "{all}");
    }
}

/// The disk works again: the whole map and metadata that call all of it stale are written, and everything is copied to it.
#[test]
fn a_disk_that_works_again_is_brought_up_to_date() {
    let mut h = dead_disk();
    h.w(2, 9);
    h.serve_all(|_| Some(None));
    h.policy = Box::new(|_| Some(Ok(())));
    for _ in 0..5 {
        h.tick(4);
        h.serve_all(|_| Some(None));
    }
    assert!(h.other.iter().any(|action| matches!(action, Action::Attached)));
    let at = DATA as usize + 9 * ES as usize;
    assert_eq!(h.disk[at..at + 512], [0x55; 512]);
    assert!(h.p.is_in_step() && !h.p.status().facts.detached, "{:?}", h.p.status());
}

/// A worker replaces one that had given its disk up: it serves once the secondary is there, and nothing before.
#[test]
fn a_worker_takes_over_without_a_disk() {
    let mut h = dead_disk();
    h.w(2, 9);
    h.serve_all(|_| Some(None));
    let mut h = H::detached(h.detached_at_last().unwrap());
    h.policy = Box::new(|_| Some(Err(Errno::EIO)));
    h.req(1, Op::Read { offset: 0, length: 512 });
    h.w(2, 3);
    h.req(3, Op::Flush);
    assert!(h.done.is_empty());
    h.handshake_first(Extensions::ALL);
    h.answer(2, 1, SyncSource::Secondary, Some(vec![0xff; 512]));
    h.serve_all(|_| Some(None));
    assert_eq!(h.result(1), Some(Ok(Some(Buffer::from(vec![0x55; 512])))));
    assert_eq!((h.result(2), h.result(3)), (Some(Ok(None)), Some(Ok(None))));
}

/// The secondary lacks something itself, or is an original: then the disk is not given up, and what it failed has failed.
#[test]
fn a_disk_is_not_given_up_for_a_secondary_that_cannot_be_relied_on() {
    let mut h = H::new(24, 1, Extension::default(), &[], 5, 1, 1);
    h.handshake_first(Extensions::NONE);
    h.answer(1, 1, SyncSource::Primary, Some(vec![0; 512]));
    h.serve_all(|_| Some(None));
    h.policy = Box::new(|_| Some(Err(Errno::EIO)));
    h.w(2, 9);
    h.serve_all(|_| Some(None));
    assert_eq!(h.result(2), Some(Err(Errno::EIO)));
    assert!(!h.p.status().facts.detached);
}

/// C4: ... and if it cannot be told, because the link is gone by then, the worker says so with its exit status.
#[test]
fn a_planned_end_that_cannot_mark_the_secondary_says_so() {
    let mut h = H::in_step();
    h.set_mode(Replication::Async);
    h.w(1, 7);
    h.p.handle_stop(h.t);
    h.pump();
    h.serve_all(|message| is(Command::Write)(message).then_some(Some(Errno::EIO)));
    h.p.handle_lost(h.t, "gone");
    h.pump();
    assert_eq!(h.exit(), Some(EXIT_PEER_BEHIND));
}

/// C4: the link breaks in the middle of a planned end, and a client waits for a flush: it fails, as a write does. Nobody
/// relies on this node alone then, so nothing is counted, and the next primary takes over without a split-brain.
#[test]
fn a_flush_that_was_cut_off_fails_and_is_not_counted() {
    for flushes_before in [0, 1] {
        let mut h = stored_on_both(Replication::Fullsync);
        let before = localcnt(&h);
        // One that is under way already, and one that waits behind it.
        for id in 0..=flushes_before {
            h.req(2 + id, Op::Flush);
        }
        h.p.handle_stop(h.t);
        h.pump();
        h.p.handle_lost(h.t, "gone");
        h.pump();
        for id in 0..=flushes_before {
            assert_eq!(h.result(2 + id), Some(Err(Errno::ENOTCONN)));
        }
        assert_eq!((h.exit(), localcnt(&h)), (Some(0), before));
    }
}

/// The secondary stores a write that our disk is slow with, loses power and it, and is back: the nodes are not in step
/// while that write is on its way, and a client's flush waits until the secondary knows what it lacks.
#[test]
fn a_write_that_the_secondary_has_lost_meanwhile_is_not_confirmed() {
    let mut h = H::in_step();
    h.policy = Box::new(|op| (!is_data(op)).then_some(Ok(())));
    h.w(1, 7);
    h.serve_all(|_| Some(None));
    h.p.handle_lost(h.t, "no power");
    h.pump();
    h.tick(2);
    h.handshake_first(Extensions::ALL);
    h.answer_after_boot([3; 16]);
    h.serve_all(|_| Some(None));
    assert!(!h.p.is_in_step(), "the secondary may have lost the write");
    h.policy = Box::new(|_| Some(Ok(())));
    h.pump();
    assert_eq!(h.result(1), Some(Ok(None)));
    let before = localcnt(&h);
    h.req(2, Op::Flush);
    h.serve_all(|message| is(Command::Flush)(message).then_some(None));
    assert_eq!(h.result(2), None, "the secondary lacks it, and does not know that");
    h.serve_all(|message| is_sync_start(message).then_some(None));
    assert_eq!(h.result(2), Some(Ok(None)));
    assert_eq!(localcnt(&h), before + 1, "should the connection break before it is marked");
}

/// The secondary fails a flush that covers nothing: it lacks nothing, and nothing is counted.
#[test]
fn a_flush_of_nothing_that_the_secondary_fails_is_not_counted() {
    let mut h = H::in_step();
    let before = localcnt(&h);
    h.req(1, Op::Flush);
    h.serve_all(|message| is(Command::Flush)(message).then_some(Some(Errno::EIO)));
    assert_eq!(h.result(1), Some(Ok(None)));
    assert_eq!(localcnt(&h), before);
}

fn stale(h: &H) -> bool {
    !h.metadata().extension.stale.is_empty()
}

/// The secondary alone has a write, and goes away while that is being written down, so that it fails. The next one to the
/// extent is on our disk alone: it is complete once the disk does not call the extent stale any more.
#[test]
fn a_write_is_not_complete_while_the_disk_calls_it_stale() {
    let mut h = H::in_step();
    h.policy = Box::new(|op| Some(if is_data(op) { Err(Errno::EIO) } else { Ok(()) }));
    h.req(1, whole(7, 1));
    h.policy = Box::new(|op| (!is_metadata(op)).then_some(Ok(())));
    h.serve_all(|_| Some(None));
    h.req(2, whole(7, 2));
    h.p.handle_lost(h.t, "gone");
    h.pump();
    // What was dropped is not written again yet.
    h.policy = Box::new(|op| (!matches!(op, DiskOp::Read { .. })).then_some(Ok(())));
    h.pump();
    assert!(matches!(h.result(1), Some(Err(_))), "{:?}", h.result(1));
    assert_eq!(h.result(2), Some(Ok(None)));
    assert!(!stale(&h), "after a crash it would be copied over");
}

/// Both nodes have stored a write to what the disk calls stale: should our worker die now, reads go to the secondary, so
/// it must be durable there.
#[test]
fn a_write_to_what_the_disk_calls_stale_is_flushed_there() {
    let mut h = H::in_step();
    h.policy = Box::new(|op| Some(if is_data(op) { Err(Errno::EIO) } else { Ok(()) }));
    h.req(1, whole(7, 1));
    let regular = |message: &Message| !is_read(message);
    h.serve_all(|message| regular(message).then_some(None));
    assert_eq!(h.result(1), Some(Ok(None)));
    assert!(stale(&h));
    h.policy = Box::new(|_| Some(Ok(())));
    // Its copy is under way, and fails.
    h.serve_all(|message| is_read(message).then_some(Some(Errno::EIO)));
    h.req(2, whole(7, 2));
    h.serve_all(|message| is(Command::Write)(message).then_some(None));
    assert_eq!(h.result(2), None, "the secondary may lose it, and our disk says that it is there");
    h.serve_all(|message| is(Command::Flush)(message).then_some(None));
    assert_eq!(h.result(2), Some(Ok(None)));
}

/// A generation that was taken over in a connection that broke off at once is not said before it is on the disk (G1): the
/// secondary would take it for one that both nodes have.
#[test]
fn a_generation_is_said_once_it_is_durable() {
    let met = |h: &H| {
        h.sent.iter().rev().find_map(|(_, message)| match message {
            Message::SecondHello(hello) => Some(hello.meeting.unwrap().met.last),
            _ => None,
        })
    };
    let mut h = H::new(24, 1, Extension::default(), &[], 5, 1, 1);
    h.handshake_first(Extensions::ALL);
    h.policy = Box::new(|op| (!is_metadata(op)).then_some(Ok(())));
    h.answer_meeting(Met { last: 6 << 32, before: 0 });
    h.p.handle_lost(h.t, "gone");
    h.pump();
    h.tick(2);
    h.sent.clear();
    h.handshake_first(Extensions::ALL);
    assert_eq!(met(&h), None, "not said before it is durable");
    h.policy = Box::new(|_| Some(Ok(())));
    h.pump();
    assert_eq!(met(&h), Some(6 << 32));
    assert_eq!(h.metadata().extension.connection, 6 << 32);
}

/// A5: the connection breaks while our disk is about to be given up, which then works again: it is still the one that
/// requests are served from, without the secondary.
#[test]
fn a_disk_that_could_not_be_given_up_serves_alone() {
    let mut h = dead_disk();
    h.w(2, 9);
    h.serve_all(|message| is(Command::Flush)(message).then_some(None));
    assert!(h.sent.iter().any(|(_, message)| matches!(message, Message::Mark(_))), "{:?}", h.sent);
    h.p.handle_lost(h.t, "gone");
    h.pump();
    assert_eq!(h.result(2), Some(Err(Errno::EIO)));
    h.policy = Box::new(|_| Some(Ok(())));
    h.tick(2);
    h.w(3, 7);
    assert_eq!(h.result(3), Some(Ok(None)));
    assert!(!h.p.status().facts.detached);
}

/// M3, L6: the secondary stored a write before the connection broke, and our disk only after the nodes had met again. The
/// secondary, which has not lost power, is given the extent once more, but nobody calls it out of date for that.
#[test]
fn a_secondary_that_has_stored_a_write_on_an_earlier_connection_is_not_marked() {
    let mut h = H::in_step();
    h.policy = Box::new(|op| (!is_data(op)).then_some(Ok(())));
    h.w(1, 3);
    h.serve_all(|message| is(Command::Write)(message).then_some(None));
    h.meet_again();
    h.answer(1, 1, SyncSource::Primary, Some(vec![0; 512]));
    assert!(h.p.status().complete);
    h.policy = Box::new(|_| Some(Ok(())));
    h.pump();
    assert_eq!(h.result(1), Some(Ok(None)));
    let mut copied = false;
    h.serve_all(|message| {
        assert!(!is_sync_start(message), "{message:?}");
        copied |= is(Command::Write)(message);
        Some(None)
    });
    assert!(copied && h.p.is_in_step());
}

/// Our disk is to be given up, and the secondary has flushed; it has yet to write down that it is right. A client's flush
/// waits for that.
fn about_to_be_given_up() -> H {
    let mut h = dead_disk();
    h.req(2, Op::Flush);
    h.serve_all(|message| is(Command::Flush)(message).then_some(None));
    assert!(h.sent.iter().any(|(_, message)| says_stale(message)), "{:?}", h.sent);
    assert_eq!(h.result(2), None);
    h
}

fn says_stale(message: &Message) -> bool {
    matches!(message, Message::Mark(Mark { kind: MarkKind::Stale { .. }, .. }))
}

/// C4: the addresses have changed, and what is in flight ends first: a flush too that waits for the disk to be given up.
#[test]
fn a_planned_end_waits_for_the_flush_that_gives_the_disk_up() {
    let mut h = about_to_be_given_up();
    h.p.handle_reload(h.t, H::settings(), true);
    h.pump();
    h.serve_all(|message| is(Command::Flush)(message).then_some(None));
    assert!(h.p.status().complete, "the connection is still needed");
    assert_eq!(h.result(2), None);
    h.serve_all(|message| says_stale(message).then_some(None));
    assert_eq!(h.result(2), Some(Ok(None)));
    h.serve_all(|_| Some(None));
    assert!(!h.p.status().complete, "it is made again");
}

/// S1: the secondary cannot flush, so that nobody knows what it holds: it does not become the only node that is right, even if
/// nothing is known that it lacks.
#[test]
fn a_disk_is_not_given_up_for_a_secondary_that_cannot_flush() {
    let mut h = dead_disk();
    h.policy = Box::new(|_| Some(Ok(())));
    h.req(2, Op::Flush);
    h.serve_all(|_| Some(None));
    assert_eq!(h.result(2), Some(Ok(None)), "nothing is left to flush");
    h.policy = Box::new(|_| Some(Err(Errno::EIO)));
    h.w(3, 9);
    h.serve_all(|message| is(Command::Flush)(message).then_some(Some(Errno::EIO)));
    assert!(!h.sent.iter().any(|(_, message)| says_stale(message)), "{:?}", h.sent);
    assert_eq!(h.result(3), Some(Err(Errno::EIO)));
    assert!(!h.p.status().facts.detached);
}

/// L18: the secondary counts when it writes down that it is right, and this node knows why: it says so when they meet again.
/// If it was out of date as a whole before, it goes on saying that.
#[test]
fn what_the_secondary_counts_for_a_disk_that_is_given_up_is_known_here() {
    for (target, says) in [(false, (1, 2)), (true, (3, 5))] {
        let mut h = if target { H::target(&[2]) } else { H::in_step() };
        h.policy = Box::new(|_| Some(Err(Errno::EIO)));
        h.w(2, 9);
        h.serve_all(|message| (!is_read(message)).then_some(None));
        assert_eq!(h.result(2), Some(Ok(None)));
        assert!(h.p.status().facts.detached);
        h.meet_again();
        let said = h.sent.iter().find_map(|(_, message)| match message {
            Message::SecondHello(hello) => Some((hello.localcnt, hello.remotecnt)),
            _ => None,
        });
        assert_eq!(said, Some(says), "target {target}");
    }
}

/// M4: the disk of the secondary is the only one, and has no cache: nothing is to be flushed, as without a secondary.
#[test]
fn a_flush_on_a_secondary_without_a_cache_is_not_supported() {
    let mut h = dead_disk();
    h.w(2, 9);
    h.serve_all(|_| Some(None));
    assert!(h.p.status().facts.detached);
    for id in [3, 4] {
        h.req(id, Op::Flush);
        h.serve_all(|message| is(Command::Flush)(message).then_some(Some(Errno::EOPNOTSUPP)));
        assert_eq!(h.result(id), Some(Err(Errno::EOPNOTSUPP)));
    }
}

/// Step 6 of the way back: a disk that goes on failing is tried again after one second, and each time after twice as long, but
/// after five minutes at most.
#[test]
fn a_disk_that_was_given_up_is_tried_again_and_again() {
    let mut h = dead_disk();
    h.w(2, 9);
    h.serve_all(|_| Some(None));
    assert!(h.p.status().facts.detached);
    let tries = std::rc::Rc::new(std::cell::Cell::new(0));
    let count = tries.clone();
    h.policy = Box::new(move |_| {
        count.set(count.get() + 1);
        Some(Err(Errno::EIO))
    });
    let (mut last, mut pauses) = (h.t, Vec::new());
    while pauses.len() < 11 {
        h.t = h.p.poll_timeout().expect("it is tried again");
        h.p.handle_timeout(h.t);
        h.pump();
        if tries.take() > 0 {
            pauses.push((h.t - last).as_secs());
            last = h.t;
        }
        h.frame(Side::In, Message::Alive);
    }
    assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300]);
}

/// C4: the secondary fails a client's flush while this node is being stopped: it is asked to mark itself, and the client
/// hears of its flush then.
#[test]
fn a_flush_that_the_secondary_failed_during_a_planned_end_is_good_once_it_is_marked() {
    let mut h = stored_on_both(Replication::Fullsync);
    h.req(2, Op::Flush);
    h.p.handle_stop(h.t);
    h.pump();
    h.serve_all(|message| is(Command::Flush)(message).then_some(Some(Errno::EIO)));
    assert_eq!(h.result(2), None);
    h.serve_all(|message| is_sync_start(message).then_some(None));
    assert_eq!(h.result(2), Some(Ok(None)));
    h.serve_all(|_| Some(None));
    assert_eq!(h.exit(), Some(0));
}

/// G1: the connections after the disk was given up are known to a worker that replaces this one; the counts are those from
/// before the secondary was told, so that it is the source.
#[test]
fn the_successor_of_a_worker_without_its_disk_knows_the_last_connection() {
    for whole in [false, true] {
        let mut h = if whole { dead_disk() } else { H::in_step() };
        if !whole {
            // A single write is the secondary's alone, and nothing can be written down about it.
            h.policy =
                Box::new(|op| Some(if is_data(op) || is_metadata(op) { Err(Errno::EIO) } else { Ok(()) }));
        }
        h.w(2, 9);
        h.serve_all(|message| (!is_read(message)).then_some(None));
        assert_eq!(h.result(2), Some(Ok(None)));
        let before = h.detached_at_last().unwrap();
        h.policy = Box::new(move |_| Some(if whole { Err(Errno::EIO) } else { Ok(()) }));
        for last in [77, 78] {
            h.meet_again();
            h.answer_meeting(Met { last, before: h.metadata().extension.connection });
            let after = h.detached_at_last().unwrap();
            assert_eq!(after.extension.connection, last, "{whole}");
            assert_ne!(after.extension.parted, before.extension.parted);
            assert_eq!((after.localcnt, after.remotecnt), (before.localcnt, before.remotecnt));
        }
    }
}
