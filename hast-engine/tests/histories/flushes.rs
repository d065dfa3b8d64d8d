//! What a flush speaks for, and what a failed one leaves behind, on either node.

use super::*;

/// Extent 3 is stored on both nodes, and neither has flushed it.
fn unflushed() -> H {
    let mut h = H::in_step();
    h.w(1, 3);
    h.serve_all(|message| is(Command::Write)(message).then_some(None));
    assert_eq!(h.result(1), Some(Ok(None)));
    h
}

fn says_start(message: &Message) -> bool {
    matches!(message, Message::Mark(Mark { kind: MarkKind::SyncStart, .. }))
}

/// C1 (b): the map's housekeeping asks for a flush, for which nobody waits, and the secondary fails it.
#[test]
fn a_flush_that_the_secondary_failed_is_counted_though_nobody_waits_for_it() {
    let mut h = unflushed();
    let before = h.metadata().localcnt;
    h.tick(2);
    h.serve_all(|message| is(Command::Flush)(message).then_some(Some(Errno::EIO)));
    assert_eq!(h.metadata().localcnt, before + 1);
    assert!(h.sent.iter().any(|(_, message)| says_start(message)), "L6: {:?}", h.sent);
}

/// L9: the connection breaks while the secondary flushes: the flush speaks for this node alone, and is counted (C1 d).
#[test]
fn a_flush_that_the_secondary_did_not_answer_is_none_of_it() {
    let mut h = unflushed();
    let before = h.metadata().localcnt;
    h.req(2, Op::Flush);
    assert_eq!(h.result(2), None);
    h.p.handle_lost(h.t, "gone");
    h.pump();
    assert_eq!(h.result(2), Some(Ok(None)));
    assert_eq!(h.metadata().localcnt, before + 1);
    assert_eq!(h.p.status().facts.to_synchronise_bytes, u64::from(ES));
}

/// A node that starts does not know whether the other one has flushed what it alone has stored: without that one no flush is
/// good, and no more so for being asked again.
#[test]
fn no_flush_is_good_without_the_secondary_that_alone_has_something() {
    let run = hast_format::extension::Run { first: 2, count: 1 };
    let ext = Extension { generation: 1, stale: vec![run], ..Extension::default() };
    let mut h = H::new(24, 1, ext, &[2], 5, 1, 1);
    h.p.handle_connect_failed(h.t, Side::Out, "refused");
    h.pump();
    for id in 1..4 {
        h.req(id, Op::Flush);
        assert_eq!(h.result(id), Some(Err(Errno::EIO)), "flush {id}");
    }
    h.tick(2);
    h.handshake_first(Extensions::ALL);
    h.answer(1, 1, SyncSource::Primary, Some(vec![0; 512]));
    h.req(4, Op::Flush);
    h.serve_all(|message| (!is_read(message)).then_some(None));
    assert_eq!(h.result(4), Some(Ok(None)), "the secondary has flushed");
    h.p.handle_lost(h.t, "gone");
    h.req(5, Op::Flush);
    assert_eq!(h.result(5), Some(Ok(None)));
}

/// Our disk fails a flush, the secondary does not: the client hears of success once the metadata say what is stale here
/// (L3).
#[test]
fn a_flush_that_makes_something_stale_waits_until_that_is_on_disk() {
    let mut h = unflushed();
    h.policy = next_flush_fails_and_holds(is_metadata);
    h.req(2, Op::Flush);
    h.serve_all(|message| is(Command::Flush)(message).then_some(None));
    assert_eq!(h.p.status().facts.stale_bytes, u64::from(ES));
    assert_eq!(h.result(2), None);
    h.policy = Box::new(|_| Some(Ok(())));
    h.pump();
    assert_eq!(h.result(2), Some(Ok(None)));
}

/// Both nodes fail a flush for which no client waits. What our disk may have dropped is written again; all the same the next
/// client to ask hears that something could not be written.
#[test]
fn a_flush_that_failed_on_both_nodes_is_told_to_the_next_client() {
    let mut h = unflushed();
    h.policy = next_flush_fails_and_holds(|_| false);
    h.tick(2);
    h.serve_all(|message| is(Command::Flush)(message).then_some(Some(Errno::EIO)));
    h.tick(3);
    h.serve_all(|_| Some(None));
    h.req(2, Op::Flush);
    h.serve_all(|_| Some(None));
    assert_eq!(h.result(2), Some(Err(Errno::EIO)));
    h.req(3, Op::Flush);
    h.serve_all(|_| Some(None));
    assert_eq!(h.result(3), Some(Ok(None)));
}

/// While a flush runs, the first sector of extent 3, whose other sectors that flush covers, turns out to be bad, and
/// cannot be repaired.
fn given_up_during_a_flush() -> H {
    let mut h = H::in_step();
    h.req(1, Op::Write { offset: 3 * u64::from(ES) + 512, data: Buffer::from(vec![1; 512]) });
    h.serve_all(|message| is(Command::Write)(message).then_some(None));
    h.req(2, Op::Flush);
    h.policy = Box::new(|op| match op {
        DiskOp::Read { offset, .. } if *offset == DATA + 3 * u64::from(ES) => Some(Err(Errno::EIO)),
        op if is_data(op) => Some(Err(Errno::EIO)),
        _ => Some(Ok(())),
    });
    h.req(3, Op::Read { offset: 3 * u64::from(ES), length: 512 });
    h.serve_all(|message| is_read(message).then_some(None));
    assert_eq!(h.result(3), Some(Ok(Some(Buffer::from(vec![0x55; 512])))));
    assert_eq!(h.p.status().facts.stale_bytes, 0);
    h
}

/// S1: the flush that counts began after the extent was given up.
#[test]
fn a_flush_under_way_is_not_enough_to_call_an_extent_stale() {
    let mut h = given_up_during_a_flush();
    h.serve_one(Command::Flush);
    assert_eq!(h.result(2), Some(Ok(None)));
    assert_eq!(h.p.status().facts.stale_bytes, 0, "S1");
    h.serve_one(Command::Flush);
    assert_eq!(h.p.status().facts.stale_bytes, u64::from(ES));
}

/// The secondary fails the flush: it may have lost what it was given, so that our copy is the right one, and stays it after
/// later flushes.
#[test]
fn an_extent_is_not_called_stale_after_a_flush_that_the_secondary_failed() {
    let mut h = given_up_during_a_flush();
    h.serve_all(|message| is(Command::Flush)(message).then_some(Some(Errno::EIO)));
    h.serve_all(|message| says_start(message).then_some(None));
    for _ in 0..3 {
        h.serve_one(Command::Flush);
    }
    assert_eq!(h.p.status().facts.stale_bytes, 0);
    h.p.handle_lost(h.t, "gone");
    h.req(4, Op::Read { offset: 3 * u64::from(ES) + 512, length: 512 });
    assert_eq!(h.result(4), Some(Ok(Some(Buffer::from(vec![1; 512])))));
}

/// A flush of our disk fails while that has a write. Whatever it says of the write, it may have dropped it: reads of the
/// extent go to the secondary.
#[test]
fn a_write_that_a_failed_flush_may_have_dropped_is_read_there() {
    let mut h = H::in_step();
    h.w(1, 7);
    h.req(5, Op::Flush);
    h.serve_all(|_| Some(None));
    h.policy = next_flush_fails_and_holds(is_data);
    h.w(2, 7);
    h.serve_all(|message| is(Command::Write)(message).then_some(None));
    h.req(3, Op::Flush);
    h.policy = Box::new(|_| Some(Ok(())));
    h.pump();
    h.req(4, Op::Read { offset: 7 * u64::from(ES) + 512, length: 512 });
    assert_eq!(h.result(4), None, "not from our disk");
    h.serve_all(|message| is_read(message).then_some(None));
    assert_eq!(h.result(4), Some(Ok(Some(Buffer::from(vec![0x55; 512])))));
}

/// A flush fails while the metadata are being written: what it has dropped may be just those, whatever their own flush says.
#[test]
fn a_save_that_a_failed_flush_may_have_dropped_has_failed() {
    let mut h = unflushed();
    h.p.handle_lost(h.t, "gone");
    h.pump();
    h.policy = next_flush_fails_and_holds(is_metadata);
    h.w(2, 3);
    assert_eq!(h.result(2), None, "C1 (a): localcnt rises first");
    h.req(3, Op::Flush);
    h.policy = Box::new(|_| Some(Ok(())));
    h.pump();
    assert_eq!(h.result(2), Some(Err(Errno::EIO)));
}

/// A block that was copied here from the secondary lay with our disk when a flush failed: it is copied once more.
#[test]
fn a_copy_that_a_failed_flush_may_have_dropped_is_made_again() {
    let mut h = H::in_step();
    h.policy = Box::new(|op| Some(if is_data(op) { Err(Errno::EIO) } else { Ok(()) }));
    h.w(1, 3);
    h.serve_all(|message| (!is_read(message)).then_some(None));
    assert_eq!(h.result(1), Some(Ok(None)));
    h.policy = next_flush_fails_and_holds(is_data);
    h.serve_all(|message| is_read(message).then_some(None));
    h.req(2, Op::Flush);
    h.policy = Box::new(|_| Some(Ok(())));
    h.pump();
    assert_eq!(h.p.status().facts.stale_bytes, u64::from(ES));
    h.tick(12);
    h.serve_all(|_| Some(None));
    h.tick(12);
    h.serve_all(|_| Some(None));
    assert_eq!(h.p.status().facts.stale_bytes, 0);
}

/// Our disk fails a flush, and before what it dropped is written again the secondary, which lacked that, has got it. What our
/// disk still has of it may be old: it is taken from the secondary.
#[test]
fn what_was_dropped_here_is_taken_from_the_secondary_once_it_is_copied_there() {
    let mut h = H::in_step();
    for (id, extent) in [(1, 9), (2, 3)] {
        h.w(id, extent);
        h.serve_all(|message| match message {
            Message::Request(Request { command: Command::Write, length: 512, .. }) => Some(Some(Errno::EIO)),
            message => says_start(message).then_some(None),
        });
        assert_eq!(h.result(id), Some(Ok(None)), "here alone");
    }
    h.policy = next_flush_fails_and_holds(|op| matches!(op, DiskOp::Read { .. }));
    h.req(3, Op::Flush);
    h.serve_all(|message| is(Command::Write)(message).then_some(None));
    assert_eq!(h.p.status().facts.to_synchronise_bytes, 0, "both are copied");
    for _ in 0..3 {
        h.serve_all(|_| Some(None));
        h.policy = Box::new(|_| Some(Ok(())));
        h.pump();
        h.tick(11);
    }
    assert!(h.p.is_in_step());
    let at = (DATA + 3 * u64::from(ES)) as usize;
    assert!(h.disk[at..at + 512].iter().all(|byte| *byte == 0x55));
}

/// The secondary's flush covers what came before it: it begins when that is stored.
#[test]
fn a_flush_on_the_secondary_begins_behind_the_writes_before_it() {
    let mut s = S::new(Extension::default(), &[]);
    s.run();
    s.frame(write_of(1, 3));
    s.frame(flush_of(2));
    assert!(!s.ops.iter().any(|(_, op)| *op == DiskOp::Flush), "{:?}", s.ops);
    s.run();
    assert_eq!((s.answer(1), s.answer(2)), (Some(Ok(())), Some(Ok(()))));
}

/// ... and behind those alone: what comes after it does not hold it up.
#[test]
fn a_flush_on_the_secondary_waits_for_no_write_after_it() {
    let mut s = S::new(Extension::default(), &[]);
    s.run();
    s.frame(write_of(1, 3));
    s.frame(flush_of(2));
    s.frame(write_of(3, 5));
    s.step(s.at(is_data));
    s.step(s.at(|op| *op == DiskOp::Flush));
    assert_eq!((s.answer(1), s.answer(2), s.answer(3)), (Some(Ok(())), Some(Ok(())), None));
}

/// What a failed flush may have dropped is read, to be written again, while another extent is being written. A write to the
/// same bytes waits for that: otherwise what was read, which is older, would be written over it.
#[test]
fn what_the_secondary_writes_again_is_not_written_over_what_came_later() {
    let mut s = S::flushing_for_a_mark();
    s.frame(write_of(3, 5));
    s.fail(s.at(|op| *op == DiskOp::Flush));
    assert!(s.ops.iter().any(|(_, op)| matches!(op, DiskOp::Read { .. })), "{:?}", s.ops);
    s.step(s.at(is_data));
    s.frame(write_of(4, 3));
    assert!(!s.ops.iter().any(|(_, op)| is_data(op)), "{:?}", s.ops);
    s.run();
    assert_eq!(s.answer(4), Some(Ok(())));
    assert_eq!(s.disk[(DATA + 3 * u64::from(ES)) as usize], 4);
}

/// Our disk fails a client's flush, and what only this node has is written again before the secondary has answered its part:
/// the flush is not good before the disk has flushed that.
#[test]
fn a_flush_is_not_good_by_what_was_written_again_meanwhile() {
    for fails_again in [false, true] {
        flush_while_it_is_written_again(fails_again);
    }
}

fn flush_while_it_is_written_again(fails_again: bool) {
    let mut h = H::in_step();
    // The first one is flushed with the count; of the second one nothing is.
    for id in [1, 3] {
        h.w(id, 3);
        h.serve_all(|message| Some(is(Command::Write)(message).then_some(Errno::EIO)));
        assert_eq!(h.result(id), Some(Ok(None)), "the secondary has refused it");
    }
    h.policy = next_flush_fails_and_holds(is_data);
    h.req(2, Op::Flush);
    h.serve_all(|message| is(Command::Flush)(message).then_some(None));
    assert_eq!(h.result(2), Some(Err(Errno::EIO)), "the first one hears of it");
    h.req(4, Op::Flush);
    h.policy = Box::new(|op| (*op != DiskOp::Flush).then_some(Ok(())));
    h.pump();
    h.serve_all(|message| is(Command::Flush)(message).then_some(None));
    assert_eq!(h.result(4), None, "what was dropped is in a cache again");
    if fails_again {
        h.policy = next_flush_fails().0;
        h.pump();
        h.serve_all(|message| is(Command::Flush)(message).then_some(None));
        assert_eq!(h.result(4), Some(Err(Errno::EIO)), "it has waited for the second time");
        return;
    }
    h.policy = Box::new(|_| Some(Ok(())));
    for _ in 0..3 {
        h.pump();
        h.serve_all(|_| Some(None));
        h.tick(2);
    }
    assert_eq!(h.result(4), Some(Ok(None)));
}

/// A flush has failed for something else, and what it dropped is written again already when the primary asks: what could be
/// read may be old, so the primary hears of the failure, once.
#[test]
fn the_primary_hears_of_a_failed_flush_though_all_is_written_again() {
    let mut s = S::flushing_for_a_mark();
    s.fail(s.at(|op| *op == DiskOp::Flush));
    s.run();
    s.frame(flush_of(3));
    s.run();
    s.frame(flush_of(4));
    s.run();
    assert_eq!((s.answer(3), s.answer(4)), (Some(Err(Errno::EIO)), Some(Ok(()))));
}

/// ... and again as long as something is not.
#[test]
fn no_flush_of_the_secondary_is_good_before_what_was_dropped_is_written_again() {
    let mut s = S::new(Extension::default(), &[]);
    s.run();
    s.frame(write_of(1, 3));
    s.run();
    s.frame(flush_of(2));
    s.fail(s.at(|op| *op == DiskOp::Flush));
    for seq in 3..6 {
        s.frame(flush_of(seq));
        s.step(s.at(|op| *op == DiskOp::Flush));
        assert_eq!(s.answer(seq), Some(Err(Errno::EIO)), "flush {seq}");
    }
    s.run();
    s.frame(flush_of(6));
    s.run();
    assert_eq!(s.answer(6), Some(Ok(())));
}

/// The secondary's metadata lay with its disk when a flush for something else failed: they may have been dropped.
#[test]
fn a_mark_that_a_failed_flush_may_have_dropped_is_refused() {
    let mut s = S::new(Extension::default(), &[]);
    s.run();
    s.frame(flush_of(1));
    s.frame(Message::Mark(Mark { seq: 2, kind: MarkKind::SyncStart }));
    s.fail(s.at(|op| *op == DiskOp::Flush));
    s.run();
    assert_eq!((s.answer(1), s.answer(2)), (Some(Err(Errno::EIO)), Some(Err(Errno::EIO))));
}

/// C2: a block is stored on the secondary while a flush runs that began before: the nodes are not called equal before the
/// next one.
#[test]
fn a_flush_that_began_before_the_last_copy_does_not_make_the_nodes_equal() {
    let mut h = H::new(24, 1, Extension::default(), &[2], 5, 1, 1);
    h.handshake_first(Extensions::ALL);
    h.answer(1, 1, SyncSource::Primary, Some(vec![0; 512]));
    h.policy = Box::new(|op| (!matches!(op, DiskOp::Read { .. })).then_some(Ok(())));
    h.serve_all(|message| matches!(message, Message::Mark(_)).then_some(None));
    h.req(1, Op::Flush);
    h.policy = Box::new(|_| Some(Ok(())));
    h.pump();
    h.serve_one(Command::Write);
    assert_eq!(h.p.status().facts.to_synchronise_bytes, 0, "it is copied");
    h.serve_one(Command::Flush);
    assert_eq!(h.result(1), Some(Ok(None)));
    assert!(!h.sent.iter().any(|(_, message)| is_mark(message)), "C2: {:?}", h.sent);
    h.serve_one(Command::Flush);
    assert!(h.sent.iter().any(|(_, message)| is_mark(message)), "{:?}", h.sent);
    h.serve_all(|_| Some(None));
    assert!(h.p.is_in_step());
}

/// M5: under an original, a flush fails that the primary has asked for. What it may have dropped stays in the map until the
/// next handshake, though the flush of the map's housekeeping, which tells nothing of it, is good.
#[test]
fn what_a_failed_flush_may_have_dropped_stays_in_the_map_of_a_secondary() {
    let mut s = S::under(Extensions::NONE, Extension::default(), &[]);
    s.run();
    s.frame(write_of(2, 3));
    s.run();
    s.frame(flush_of(3));
    s.fail(s.at(|op| *op == DiskOp::Flush));
    // What was dropped cannot be written again for now, and another extent is the last one that was written.
    let goes_on = |s: &mut S| {
        while let Some(at) = s.ops.iter().position(|(_, op)| !matches!(op, DiskOp::Read { .. })) {
            s.step(at);
        }
    };
    s.frame(write_of(4, 9));
    for _ in 0..3 {
        goes_on(&mut s);
        s.t += Duration::from_secs(2);
        s.s.handle_timeout(s.t);
        s.poll();
    }
    goes_on(&mut s);
    assert_eq!(s.ops.len(), 1, "{:?}", s.ops);
    assert_ne!(s.disk[4096] & 1 << 3, 0, "a loss of power takes the write, and nobody remembers it");
}

/// L14: the last flush of a worker fails. What it may have dropped is written again, and flushed before the worker ends.
#[test]
fn what_the_last_flush_may_have_dropped_is_flushed_before_the_worker_ends() {
    let mut s = S::new(Extension::default(), &[]);
    s.run();
    s.frame(write_of(1, 3));
    s.run();
    s.s.handle_lost(s.t, "gone");
    s.poll();
    s.fail(s.at(|op| *op == DiskOp::Flush));
    // The doubt is written down before the disk can be read again.
    while let Some(at) = s.ops.iter().position(|(_, op)| !matches!(op, DiskOp::Read { .. })) {
        s.step(at);
    }
    s.log.clear();
    s.step(0);
    s.step(0);
    assert_eq!(s.log, [(DATA + 3 * u64::from(ES), ES as usize)]);
    assert!(matches!(s.ops[..], [(_, DiskOp::Flush)]), "{:?}", s.ops);
}

/// C2: all is copied, and the flush of the end has begun, when our disk fails a write. The extent is stale then, and is copied
/// from the secondary: the nodes are not called equal before a flush that covers that copy too.
#[test]
fn a_copy_that_is_made_while_a_synchronisation_ends_is_flushed_before_the_nodes_are_equal() {
    let mut h = H::new(24, 1, Extension::default(), &[2], 5, 1, 1);
    h.handshake_first(Extensions::ALL);
    h.answer(1, 1, SyncSource::Primary, Some(vec![0; 512]));
    h.serve_all(|message| (is_mark(message) || is(Command::Write)(message)).then_some(None));
    assert!(h.sent.iter().any(|(_, message)| is(Command::Flush)(message)), "{:?}", h.sent);
    h.policy = one_write_fails();
    h.w(1, 5);
    h.serve_all(|message| is(Command::Write)(message).then_some(None));
    h.serve_one(Command::Flush);
    h.serve_one(Command::Flush);
    assert_eq!((h.result(1), h.p.status().facts.stale_bytes), (Some(Ok(None)), u64::from(ES)));
    h.serve_one(Command::Read);
    assert_eq!(h.p.status().facts.to_synchronise_bytes, 0, "it is copied");
    assert!(!h.sent.iter().any(|(_, message)| is_mark(message)), "C2: {:?}", h.sent);
    h.serve_one(Command::Flush);
    assert!(h.sent.iter().any(|(_, message)| is_mark(message)), "{:?}", h.sent);
    h.serve_all(|_| Some(None));
    assert!(h.p.is_in_step());
}

/// L3, L9: a failed flush has made an extent stale, and before the metadata say so it is copied back, or written as a whole.
/// A client's flush that began before that does not cover what our disk has of it now: it is carried out again.
#[test]
fn a_flush_covers_what_was_copied_back_after_it_began() {
    for written in [false, true] {
        let mut h = H::in_step();
        h.w(1, 7);
        h.serve_all(|message| (!is(Command::Flush)(message)).then_some(None));
        h.policy = next_flush_fails_and_holds(|op| is_metadata(op) || is_data(op));
        h.req(2, Op::Flush);
        h.serve_all(|_| Some(None));
        assert_eq!(h.p.status().facts.stale_bytes, u64::from(ES), "and its metadata are with the disk");
        if written {
            h.req(3, Op::Write { offset: 7 * u64::from(ES), data: Buffer::from(vec![9; ES as usize]) });
        }
        // The flush begins, and is with the disk when the extent is right again.
        h.policy = Box::new(|_| None);
        h.req(4, Op::Flush);
        h.serve_all(|_| Some(None));
        assert!(h.ops.iter().any(|(_, op)| *op == DiskOp::Flush), "{:?}", h.ops);
        h.policy = Box::new(|op| is_data(op).then_some(Ok(())));
        h.pump();
        h.serve_all(|_| Some(None));
        assert_eq!(h.p.status().facts.stale_bytes, 0);
        let mut once = true;
        h.policy = Box::new(move |op| (*op == DiskOp::Flush && std::mem::take(&mut once)).then_some(Ok(())));
        h.pump();
        h.serve_all(|_| Some(None));
        assert_eq!(h.result(4), None, "that flush began before");
        h.policy = Box::new(|op| (!is_metadata(op)).then_some(Ok(())));
        h.pump();
        h.serve_all(|_| Some(None));
        assert_eq!(h.result(4), Some(Ok(None)), "{:?}", h.ops);
    }
}

fn flushes_there(h: &H) -> usize {
    h.sent.iter().filter(|(_, message)| is(Command::Flush)(message)).count()
}

fn flush_is_answered(h: &mut H, error: Option<Errno>) {
    h.serve_all(|message| is(Command::Flush)(message).then_some(error));
}

/// Both nodes fail a client's flush: it hears of that, whatever has to be counted and marked because of it.
#[test]
fn a_flush_that_failed_on_both_nodes_waits_for_nothing() {
    let mut h = unflushed();
    h.policy = next_flush_fails_and_holds(is_metadata);
    h.req(2, Op::Flush);
    flush_is_answered(&mut h, Some(Errno::EIO));
    assert!(h.ops.iter().any(|(_, op)| is_metadata(op)), "C1 (b): {:?}", h.ops);
    assert_eq!(h.result(2), Some(Err(Errno::EIO)));
}

/// The same if the secondary alone fails it, and what has to be counted because of that cannot be written: the client does
/// not wait for the secondary to mark itself.
#[test]
fn a_flush_that_cannot_be_counted_fails_at_once() {
    let mut h = unflushed();
    h.policy = Box::new(|op| Some(if is_metadata(op) { Err(Errno::EIO) } else { Ok(()) }));
    h.req(2, Op::Flush);
    flush_is_answered(&mut h, Some(Errno::EIO));
    assert!(h.sent.iter().any(|(_, message)| says_start(message)), "L6: {:?}", h.sent);
    assert_eq!(h.result(2), Some(Err(Errno::EIO)));
}

/// M4: a secondary whose disk has no cache refuses flushes: that is no failure, and it is not asked again. An original says
/// EINVAL from the second time on. Any other refusal means that it may have lost what it was given.
#[test]
fn a_secondary_without_a_cache_has_lost_nothing() {
    for (known, error, has_cache) in [
        (Extensions::ALL, Errno::EOPNOTSUPP, false),
        (Extensions::NONE, Errno::EOPNOTSUPP, false),
        (Extensions::NONE, Errno::EINVAL, false),
        (Extensions::ALL, Errno::EINVAL, true),
        (Extensions::NONE, Errno::EIO, true),
    ] {
        let mut h = H::new(24, 1, Extension::default(), &[], 5, 1, 1);
        h.handshake_first(known);
        h.answer(1, 1, SyncSource::Primary, Some(vec![0; 512]));
        h.serve_all(|_| Some(None));
        h.w(1, 3);
        h.serve_all(|message| is(Command::Write)(message).then_some(None));
        let before = h.metadata().localcnt;
        h.req(2, Op::Flush);
        flush_is_answered(&mut h, Some(error));
        assert_eq!(h.metadata().localcnt, before + u64::from(has_cache), "{known} {error}");
        let lacks = h.p.status().facts.to_synchronise_bytes > 0;
        assert_eq!(lacks, has_cache, "{known} {error}");
        if !has_cache {
            assert_eq!(h.result(2), Some(Ok(None)), "{known} {error}");
            h.req(3, Op::Flush);
            assert_eq!((h.result(3), flushes_there(&h)), (Some(Ok(None)), 0), "{known} {error}");
        }
    }
}

/// M4: what is known of a disk without a cache is known of that disk: after a new connection it may be another one.
#[test]
fn a_secondary_that_has_connected_again_may_have_a_cache() {
    let mut h = unflushed();
    h.req(2, Op::Flush);
    flush_is_answered(&mut h, Some(Errno::EOPNOTSUPP));
    h.meet_again();
    h.answer(1, 1, SyncSource::Primary, Some(vec![0; 512]));
    h.serve_all(|_| Some(None));
    h.req(3, Op::Flush);
    assert_eq!((h.result(3), flushes_there(&h)), (None, 1));
    flush_is_answered(&mut h, None);
    assert_eq!(h.result(3), Some(Ok(None)));
}

/// M4: our disk has said when the worker started that it has no cache.
#[test]
fn a_disk_without_a_cache_is_not_asked_to_flush_for_clients() {
    let flushes = std::rc::Rc::new(std::cell::Cell::new(0));
    let count = flushes.clone();
    let policy: Policy = Box::new(move |op| {
        count.set(count.get() + usize::from(*op == DiskOp::Flush));
        Some(if *op == DiskOp::Flush { Err(Errno::EOPNOTSUPP) } else { Ok(()) })
    });
    let mut h =
        H::new_with(24, 1, Extension { map_complete: true, ..Extension::default() }, &[], 5, 1, 1, policy);
    h.p.handle_connect_failed(h.t, Side::Out, "refused");
    h.pump();
    assert_eq!(flushes.get(), 1, "when the worker started");
    h.req(1, Op::Flush);
    assert_eq!((h.result(1), flushes.get()), (Some(Err(Errno::EOPNOTSUPP)), 1));
}

/// M2: the map's housekeeping flushes a second after the first answer that no flush covers, but not while another flush is
/// under way, however long that takes, and not without the secondary.
#[test]
fn housekeeping_waits_for_the_flush_under_way() {
    let mut h = unflushed();
    h.req(2, Op::Flush);
    h.w(3, 7);
    h.serve_all(|message| is(Command::Write)(message).then_some(None));
    assert_eq!((h.result(3), flushes_there(&h)), (Some(Ok(None)), 1));
    while let Some(at) = h.p.poll_timeout().filter(|at| *at < Duration::from_secs(15)) {
        assert!(at > h.t, "spins");
        h.t = at;
        h.p.handle_timeout(at);
        h.pump();
    }
    assert_eq!(flushes_there(&h), 1);
    flush_is_answered(&mut h, None);
    h.tick(1);
    assert_eq!(flushes_there(&h), 1, "the next one");
    h.p.handle_lost(h.t, "gone");
    let (policy, seen) = next_flush_fails();
    h.policy = policy;
    h.tick(2);
    assert!(!seen.borrow().contains(&DiskOp::Flush), "{:?}", seen.borrow());
}

/// A primary that has flushed alone after half a second, and meets its secondary half a second later.
fn met_after_a_flush_alone() -> H {
    let mut h = alone();
    h.t = Duration::from_millis(500);
    h.req(1, Op::Flush);
    assert_eq!(h.result(1), Some(Ok(None)));
    h.t = Duration::from_secs(1);
    h.p.handle_timeout(h.t);
    h.pump();
    h.handshake_first(Extensions::ALL);
    h.answer(1, 1, SyncSource::Primary, Some(vec![0; 512]));
    h
}

/// C2: a flush without the secondary does not make the nodes equal. The next attempt waits for a second, and no longer.
#[test]
fn nodes_that_meet_after_a_flush_alone_are_equal_a_second_later() {
    let mut h = met_after_a_flush_alone();
    for (millis, flushes) in [(1000, 0), (1499, 0), (1500, 1)] {
        h.t = Duration::from_millis(millis);
        h.p.handle_timeout(h.t);
        h.pump();
        assert_eq!(flushes_there(&h), flushes, "after {millis} ms");
    }
    h.serve_all(|_| Some(None));
    assert!(h.p.is_in_step());
}

/// L9: a client's flush waits for the second time. Our disk fails it once more, and what it may have dropped the secondary
/// has, but for a write which that refuses, so that only our disk has it and has it in its cache: the client hears of that.
#[test]
fn a_flush_that_waits_for_the_second_time_does_not_cover_what_was_written_again() {
    let mut h = unflushed();
    h.set_mode(Replication::Async);
    h.policy = next_flush_fails().0;
    h.req(2, Op::Flush);
    h.w(3, 5);
    assert_eq!(h.result(3), Some(Ok(None)), "async");
    h.tick(2);
    h.policy = next_flush_fails().0;
    h.serve_one(Command::Flush);
    assert_eq!(h.result(2), None, "what was dropped turned after that flush had begun");
    let again = std::rc::Rc::new(std::cell::Cell::new(false));
    let seen = again.clone();
    h.policy = Box::new(move |op| {
        let extent = DATA + 5 * u64::from(ES);
        seen.set(seen.get() || matches!(op, DiskOp::Write { offset, .. } if *offset == extent));
        Some(Ok(()))
    });
    h.serve_all(|message| is(Command::Write)(message).then_some(Some(Errno::EIO)));
    assert!(again.get(), "written again");
    h.serve_one(Command::Flush);
    assert_eq!(h.result(2), Some(Err(Errno::EIO)));
}

/// L3: a failed flush makes an extent stale, and before the metadata say so the secondary is gone. What was copied back from it
/// is right here alone then, and leaves no room for one more run of stale extents: the flush is not good, or the extent would
/// be read here after a crash.
#[test]
fn a_flush_is_not_good_if_the_metadata_have_no_room_for_what_it_has_made_stale() {
    let run = hast_format::extension::Run { first: 0, count: 100 };
    let ext = Extension { generation: 1, stale: vec![run], ..Extension::default() };
    let mut h = H::new(200, 1, ext, &(0..100).collect::<Vec<u32>>(), 5, 1, 1);
    h.handshake_first(Extensions::ALL);
    h.answer(1, 1, SyncSource::Primary, Some(vec![0; 512]));
    h.req(1, Op::Flush);
    flush_is_answered(&mut h, None);
    assert_eq!(h.result(1), Some(Ok(None)), "the secondary has flushed what it alone has");
    // A save is under way when another one is needed.
    h.policy = Box::new(|op| (!is_metadata(op)).then_some(Ok(())));
    h.serve_one(Command::Read);
    h.w(2, 151);
    h.serve_all(|message| is(Command::Write)(message).then_some(None));
    h.policy = next_flush_fails_and_holds(is_metadata);
    h.req(3, Op::Flush);
    for _ in 0..2 {
        h.serve_one(Command::Flush);
    }
    assert_eq!(h.p.status().facts.stale_bytes, 100 * u64::from(ES), "one is copied, one is new");
    h.serve_all(|message| {
        let even = matches!(message, Message::Request(request) if request.offset / u64::from(ES) % 2 == 0);
        (even && is_read(message)).then_some(None)
    });
    assert_eq!(h.p.status().facts.stale_bytes, 51 * u64::from(ES));
    h.p.handle_lost(h.t, "gone");
    h.policy = Box::new(|_| Some(Ok(())));
    h.pump();
    assert!(!calls_stale(&h, 151), "{:?}", h.metadata().extension.stale);
    assert_eq!(h.result(3), Some(Err(Errno::EIO)));
}

/// M1: a map write fails, so that nobody knows which bits are on disk, and what its flush may have dropped is on this node
/// alone. It is written again once its bit is there.
#[test]
fn what_was_dropped_is_written_again_behind_its_bit() {
    let mut h = alone();
    h.w(1, 3);
    h.w(2, 3);
    let (policy, seen) = next_flush_fails();
    h.policy = policy;
    h.w(3, 9);
    assert_eq!(h.result(3), Some(Err(Errno::EIO)), "its bit could not be flushed");
    let again =
        |op: &DiskOp| matches!(op, DiskOp::Write { offset, .. } if *offset == DATA + 3 * u64::from(ES));
    assert!(!seen.borrow().iter().any(again), "M1: {:?}", seen.borrow());
    seen.borrow_mut().clear();
    h.tick(2);
    let seen = seen.borrow();
    let at = |wanted: &dyn Fn(&DiskOp) -> bool| seen.iter().position(wanted).expect("it happens");
    let bit = |op: &DiskOp| matches!(op, DiskOp::Write { offset: 4096, data } if data[0] & 1 << 3 != 0);
    let flush = |op: &DiskOp| *op == DiskOp::Flush;
    assert!(at(&bit) < at(&flush) && at(&flush) < at(&again), "M1: {seen:?}");
}

/// C2: a flush without the secondary is followed by a pause of a second; the nodes that meet within it are equal after it.
#[test]
fn a_pause_ends_by_itself() {
    let h = met_after_a_flush_alone();
    assert_eq!(h.p.poll_timeout(), Some(Duration::from_millis(1500)));
}
