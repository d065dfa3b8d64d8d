//! Stale extents, and who is out of date: a node that misses what the other one has is not out of date for that alone, and
//! one that misses something itself is no source of it.

use super::*;
use hast_format::bitmap::Bitmap;
use hast_format::extension::{Mark as Outdated, Run, STALE_RUNS};

fn stale(first: u32) -> Extension {
    Extension { stale: vec![Run { first, count: 1 }], ..Extension::default() }
}

fn answer(s: &S) -> Option<&SecondAnswer> {
    s.sent.iter().find_map(|message| match message {
        Message::SecondAnswer(answer, _) => Some(answer),
        _ => None,
    })
}

/// L3: this node was primary and written alone, and before that its disk failed writes that the other node has. The other
/// one has become primary since. Each lacks something: neither is copied over the other.
#[test]
fn a_node_with_stale_extents_is_no_source_for_the_node_that_has_them() {
    let mut s = S::newer(stale(3), &[3, 5]);
    s.run();
    let refused = s.sent.iter().any(|message| {
        matches!(message, Message::SecondRefusal(refusal, map) if refusal.errmsg == "Split-brain condition!" && map.is_some())
    });
    assert!(refused, "{:?}", s.sent);
    // Without stale extents it is the source.
    let mut s = S::newer(Extension::default(), &[5]);
    s.run();
    assert_eq!(answer(&s).map(|answer| answer.syncsrc), Some(SyncSource::Secondary));
    // And in step it takes what it misses from the primary.
    let mut s = S::new(stale(3), &[3]);
    s.run();
    assert_eq!(answer(&s).map(|answer| answer.syncsrc), Some(SyncSource::Primary));
}

/// S1: the primary relies on this node alone, and so has given it all that it missed itself: it is the source from then on.
#[test]
fn a_node_that_is_relied_on_alone_has_got_back_what_was_stale_there() {
    let mark = Some(Outdated { since: 1, by: "s".into() });
    for unsure in [false, true] {
        let mut s = S::new(Extension { mark: mark.clone(), unsure, generation: 1, ..stale(3) }, &[3]);
        s.run();
        s.frame(Message::Mark(Mark {
            seq: 1,
            kind: MarkKind::Stale { offset: 0, length: 24 * u64::from(ES) },
        }));
        s.run();
        let metadata = Metadata::read(&s.disk).unwrap().metadata;
        assert_eq!((metadata.localcnt, metadata.extension.stale), (2, Vec::new()));
        assert_eq!(metadata.extension.mark.is_some(), unsure, "it knows better whether it lacks something");
    }
}

/// The primary has written alone, and its disk fails everything in extent 3: what it could not store is stale.
fn failing(h: &mut H) {
    h.policy = Box::new(|op| {
        let bad =
            matches!(op, DiskOp::Write { offset, .. } if (DATA + 3 * 4096..DATA + 4 * 4096).contains(offset));
        Some(if bad { Err(Errno::EIO) } else { Ok(()) })
    });
}

/// L6, C2: the secondary has got everything that it lacked, durably. It is told so although this node cannot take its own
/// copy of a stale extent: with a failing disk here the administrator changes over, and must be able to.
#[test]
fn a_secondary_that_lacks_nothing_is_told_so_while_something_is_stale_here() {
    for known in [Extensions::ALL, Extensions::NONE] {
        let mut h = H::in_step();
        failing(&mut h);
        h.w(1, 3);
        h.serve_all(|_| Some(None));
        assert_eq!(h.result(1), Some(Ok(None)), "it is on the secondary alone");
        h.p.handle_lost(h.t, "gone");
        h.pump();
        h.w(2, 7);
        assert_eq!((h.result(2), h.metadata().localcnt), (Some(Ok(None)), 2));
        h.tick(2);
        h.handshake_first(known);
        h.answer(1, 1, SyncSource::Primary, Some(vec![0; 512]));
        let mut told = std::collections::BTreeSet::new();
        for _ in 0..3 {
            h.serve_all(|message| {
                if let Message::Mark(Mark { seq, kind: MarkKind::SyncDone { localcnt: 2, .. } }) = message {
                    told.insert(*seq);
                }
                Some(None)
            });
            h.tick(6);
        }
        assert_eq!(told.len(), usize::from(known == Extensions::ALL), "once");
        let facts = h.p.status().facts;
        assert_eq!((facts.stale_bytes, h.p.is_in_step()), (u64::from(ES), false), "{facts:?}");
        // The counts say that no node is out of date: either of them may be primary next, and the other its secondary.
        let metadata = h.metadata();
        assert_eq!(metadata.extension.stale, stale(3).stale);
        let equal = if known == Extensions::ALL { (2, 1) } else { (1, 1) };
        assert_eq!((metadata.localcnt, metadata.remotecnt), equal);
    }
}

/// A node that is the target of a synchronisation says with its map what is stale here: it is out of date to the end.
#[test]
fn a_target_is_out_of_date_until_all_is_copied() {
    let ext =
        Extension { target: true, mark: Some(Outdated { since: 1, by: "s".into() }), ..Extension::default() };
    let mut h = H::new(24, 1, ext, &[3], 5, 1, 1);
    failing(&mut h);
    h.handshake_first(Extensions::ALL);
    h.answer(2, 1, SyncSource::Secondary, Some(vec![8; 512]));
    for _ in 0..3 {
        h.serve_all(|_| Some(None));
        h.tick(1);
    }
    let metadata = h.metadata();
    assert!(metadata.extension.target && metadata.remotecnt == 1, "{metadata:?}");
}

/// Of a hundred stale extents every second one has been copied back, and neither node has flushed since.
fn scattered() -> H {
    let run = Run { first: 0, count: 100 };
    let ext = Extension { generation: 1, stale: vec![run], ..Extension::default() };
    let mut h = H::new(200, 1, ext, &(0..100).collect::<Vec<u32>>(), 5, 1, 1);
    h.handshake_first(Extensions::ALL);
    h.answer(1, 1, SyncSource::Primary, Some(vec![0; 512]));
    h.serve_all(|message| {
        let copied = matches!(message, Message::Request(request) if request.offset / u64::from(ES) % 2 == 0);
        (copied && !is(Command::Flush)(message)).then_some(None)
    });
    h
}

/// Every second stale extent is copied back, and before both nodes have flushed that the link breaks: the metadata have no
/// room for so many runs, and cannot name what this node may be the only one to have. So they go on naming what they named,
/// or the nodes would not meet again.
#[test]
fn nodes_meet_again_though_what_is_stale_is_too_scattered_to_be_written_down() {
    let mut h = scattered();
    assert_eq!(h.p.status().facts.stale_bytes, 50 * u64::from(ES));
    let named = h.metadata().extension.stale;
    h.meet_again();
    assert!(h.sent.iter().any(|(_, message)| matches!(message, Message::SecondHello(_))), "{:?}", h.sent);
    assert_eq!(h.metadata().extension.stale, named);
    h.answer(1, 1, SyncSource::Primary, Some(vec![0; 512]));
    for _ in 0..5 {
        h.serve_all(|_| Some(None));
        h.tick(10);
    }
    assert!(h.p.is_in_step() && h.metadata().extension.stale.is_empty(), "{:?}", h.p.status());
}

/// A write makes a whole stale extent good while nobody is connected. The disk is slow with it, and a copy of what the secondary
/// has waits behind it: that copy would bring the old data back.
#[test]
fn nothing_is_copied_over_a_write_that_has_made_a_stale_extent_good() {
    let mut h = H::in_step();
    failing(&mut h);
    h.w(1, 3);
    h.serve_all(|message| (!is(Command::Read)(message)).then_some(None));
    assert_eq!(h.metadata().extension.stale, stale(3).stale);
    h.p.handle_lost(h.t, "gone");
    h.policy = Box::new(|op| (!is_data(op)).then_some(Ok(())));
    h.req(2, Op::Write { offset: 3 * u64::from(ES), data: Buffer::from(vec![9; ES as usize]) });
    h.sent.clear();
    h.tick(2);
    h.handshake_first(Extensions::ALL);
    h.answer(1, 1, SyncSource::Primary, Some(vec![0; 512]));
    h.serve_all(|message| matches!(message, Message::Mark(_)).then_some(None));
    assert!(h.p.status().complete && h.result(2).is_none(), "{:?}", h.sent);
    h.policy = Box::new(|_| Some(Ok(())));
    h.pump();
    for _ in 0..3 {
        h.serve_all(|_| Some(None));
        h.tick(10);
    }
    assert_eq!(h.result(2), Some(Ok(None)));
    let at = DATA as usize + 3 * ES as usize;
    assert!(h.disk[at..at + ES as usize].iter().all(|byte| *byte == 9), "it is {}", h.disk[at]);
    assert!(h.p.is_in_step(), "{:?}", h.p.status());
}

/// L6, C2: while the secondary writes down that it lacks nothing, our disk fails another write, which it has as well. It lacks
/// nothing still, and is not told again: a disk that goes on failing would never let it become up to date.
#[test]
fn a_secondary_that_lacks_nothing_is_told_once_though_more_becomes_stale_here() {
    let mut h = H::in_step();
    failing(&mut h);
    h.w(1, 3);
    h.serve_all(|_| Some(None));
    h.p.handle_lost(h.t, "gone");
    h.pump();
    h.w(2, 7);
    h.tick(2);
    h.handshake_first(Extensions::ALL);
    h.answer(1, 1, SyncSource::Primary, Some(vec![0; 512]));
    for _ in 0..3 {
        h.serve_all(|message| (!says_done(message)).then_some(None));
        if !h.sent.iter().any(|(_, message)| says_done(message)) {
            h.tick(6);
        }
    }
    assert!(h.sent.iter().any(|(_, message)| says_done(message)), "{:?}", h.p.status());
    h.policy = Box::new(|op| Some(if is_data(op) { Err(Errno::EIO) } else { Ok(()) }));
    h.w(3, 5);
    h.serve_all(|message| (!says_done(message)).then_some(None));
    assert_eq!((h.result(3), calls_stale(&h, 5)), (Some(Ok(None)), true));
    let mut told = std::collections::BTreeSet::new();
    for _ in 0..5 {
        h.serve_all(|message| {
            if let Message::Mark(Mark { seq, kind: MarkKind::SyncDone { .. } }) = message {
                told.insert(*seq);
            }
            Some(None)
        });
        h.tick(6);
    }
    assert_eq!(told.len(), 1);
}

/// Nobody is connected, and what is stale is too scattered to be written down. A write makes one of those extents good, which
/// the disk would go on calling stale: the secondary's old copy would be taken for the right one after a crash.
#[test]
fn a_write_is_not_complete_while_the_disk_has_no_room_to_say_that_its_extent_is_good() {
    let mut h = scattered();
    h.p.handle_lost(h.t, "gone");
    h.pump();
    h.req(1, whole(51, 1));
    assert!(calls_stale(&h, 51));
    assert_eq!(h.result(1), Some(Err(Errno::EIO)));
}

/// The map of a node that is out of date says what is stale there: its metadata name no extents, of which they have no room for
/// so many runs, and would have to name others as well.
#[test]
fn the_metadata_of_a_node_that_is_out_of_date_name_no_extents() {
    let mark = Some(Outdated { since: 1, by: "s".into() });
    let bits: Vec<u32> = (0..40).map(|n| 2 * n).collect();
    let ext = Extension { generation: 1, mark, parted: 9, ..Extension::default() };
    let mut h = H::new(100, 1, ext, &bits, 5, 1, 1);
    assert_eq!(h.p.status().facts.stale_bytes, 40 * u64::from(ES));
    // The number of the last connection is forgotten under an original, durably.
    h.handshake_first(Extensions::NONE);
    let extension = h.metadata().extension;
    assert_eq!((extension.parted, extension.stale), (0, Vec::new()));
}

/// The same, and the disk could not write down that another extent is stale, which the secondary knows. Neither a planned end
/// nor a client's flush is good.
#[test]
fn what_the_disk_has_no_room_to_call_stale_is_not_forgotten() {
    for stops in [false, true] {
        let run = Run { first: 0, count: 100 };
        let ext = Extension { generation: 1, stale: vec![run], ..Extension::default() };
        let mut h = H::new(200, 1, ext, &(0..100).collect::<Vec<u32>>(), 5, 1, 1);
        h.handshake_first(Extensions::ALL);
        h.answer(1, 1, SyncSource::Primary, Some(vec![0; 512]));
        h.policy = Box::new(|op| {
            let bad = matches!(op, DiskOp::Write { offset, .. } if *offset == DATA + 150 * u64::from(ES));
            Some(if bad || is_metadata(op) { Err(Errno::EIO) } else { Ok(()) })
        });
        h.w(1, 150);
        h.serve_all(|message| (!is_read(message)).then_some(None));
        assert_eq!(h.result(1), Some(Ok(None)), "the secondary has been told");
        h.serve_all(|message| {
            let copied =
                matches!(message, Message::Request(request) if request.offset / u64::from(ES) % 2 == 0);
            (copied && is_read(message)).then_some(None)
        });
        assert_eq!(h.p.status().facts.stale_bytes, 51 * u64::from(ES));
        h.p.handle_lost(h.t, "gone");
        h.policy = Box::new(|_| Some(Ok(())));
        h.pump();
        if stops {
            h.p.handle_stop(h.t);
            h.pump();
            assert_eq!(h.exit(), Some(EXIT_STALE));
        } else {
            h.req(2, Op::Flush);
            assert_eq!(h.result(2), Some(Err(Errno::EIO)));
        }
        assert!(!calls_stale(&h, 150));
    }
}

/// S1: extents that are copied here split a run, and there is no room to name one more: extents between two runs are named
/// with them. Not one that the secondary has in its cache only, while there are others: after both nodes have lost power it
/// would be right nowhere.
#[test]
fn what_the_secondary_has_not_flushed_is_not_named_for_want_of_room() {
    let wide = Run { first: 0, count: 5 };
    let singles = (0..STALE_RUNS as u32 - 1).map(|at| Run { first: 6 + 2 * at, count: 1 });
    let runs = core::iter::once(wide).chain(singles).collect();
    let mut h = H::new(80, 1, Extension { stale: runs, ..Extension::default() }, &[], 5, 1, 1);
    h.handshake_first(Extensions::ALL);
    h.answer(1, 1, SyncSource::Primary, Some(vec![0; 512]));
    let copies = |message: &Message, extents: core::ops::Range<u64>| {
        matches!(message, Message::Request(request)
            if request.command == Command::Read && extents.contains(&(request.offset / u64::from(ES))))
    };
    h.serve_all(|message| is_mark(message).then_some(None));
    h.w(1, 5);
    h.serve_all(|message| is(Command::Write)(message).then_some(None));
    assert_eq!(h.result(1), Some(Ok(None)));
    h.serve_all(|message| copies(message, 1..4).then_some(None));
    h.tick(1);
    assert!(!calls_stale(&h, 5), "{:?}", h.metadata().extension.stale);
    for extent in [0, 4, 6, 66] {
        assert!(calls_stale(&h, extent), "{extent}");
    }
}

/// The nodes are connected, and what is stale here is too scattered to be written down beside what is right here alone. So
/// localcnt cannot rise: a write that the secondary refuses fails, and so does a flush while a rise is owed for a write that
/// was complete before (C1). Neither waits for ever, and once nobody is connected the rise that is owed is saved.
#[test]
fn what_cannot_be_counted_for_want_of_room_fails() {
    for replication in [Replication::Fullsync, Replication::Async] {
        let mut h = scattered();
        h.meet_again();
        h.answer(1, 1, SyncSource::Primary, Some(vec![0; 512]));
        h.set_mode(replication);
        let refuses = |message: &Message| {
            let refused = is(Command::Write)(message) || is_read(message);
            Some(refused.then_some(Errno::EIO))
        };
        h.serve_all(|message| is_mark(message).then_some(None));
        h.w(1, 150);
        h.serve_all(refuses);
        if replication == Replication::Fullsync {
            assert_eq!(h.result(1), Some(Err(Errno::EIO)));
            continue;
        }
        assert_eq!(h.result(1), Some(Ok(None)));
        h.req(2, Op::Flush);
        h.serve_all(refuses);
        assert_eq!((h.result(2), h.metadata().localcnt), (Some(Err(Errno::EIO)), 1));
        let retried = h.p.poll_timeout();
        assert!(retried.is_some_and(|at| at > h.t), "the save is tried again, and not at once: {retried:?}");
        h.p.handle_lost(h.t, "gone");
        h.pump();
        h.tick(5);
        assert!(h.metadata().localcnt > 1);
    }
}

/// The extents of the map that a secondary has answered with.
fn answered_map(s: &S) -> Vec<u32> {
    let map = s.sent.iter().find_map(|message| match message {
        Message::SecondAnswer(_, map) => map.clone(),
        _ => None,
    });
    Bitmap::from_bytes(24, &map.expect("an answer with a map")).iter().collect()
}

/// A worker of a secondary begins with what is on `disk`, under a primary of this kind that says that the nodes are in step.
fn begins_again(disk: &[u8], known: Extensions) -> S {
    let host = Host { boot: [1; 16], wall: 0, deletes: Deletes::LeaveZeros };
    let mut s = S::from_disk(disk.to_vec(), known, NEVER, host, S::hello());
    s.run();
    s
}

/// L3: a node was primary, and its disk has dropped what both nodes had stored: that is stale, though the map has no bit of it
/// and the counts say that the nodes are in step. Wherever its worker is killed, and however often, the next primary is told.
#[test]
fn what_a_former_primary_misses_the_next_primary_hears_of() {
    for known in [Extensions::ALL, Extensions::NONE] {
        let s = S::under(known, stale(7), &[]);
        let mut s = begins_again(&s.disk, known);
        assert_eq!(answered_map(&s), [7], "{known:?}");
        s.frame(flush_of(1));
        s.run();
        s.snaps.push(s.disk.clone());
        for disk in s.snaps.clone() {
            for next in [Extensions::ALL, Extensions::NONE] {
                assert_eq!(answered_map(&begins_again(&disk, next)), [7], "{known:?}");
            }
        }
        assert_eq!(stale_on(&s.disk), [7]);
    }
}

/// A primary of ours says when it has copied everything; what it writes until then says nothing.
#[test]
fn what_a_primary_has_copied_is_not_stale_any_more() {
    let mut s = S::new(stale(7), &[]);
    s.run();
    s.frame(part_of(3, 7 * u64::from(ES), ES.into()));
    s.run();
    s.frame(flush_of(1));
    s.run();
    assert_eq!(stale_on(&s.disk), [7]);
    s.frame(Message::Mark(Mark { seq: 2, kind: MarkKind::SyncDone { localcnt: 1, failures: Some(0) } }));
    s.run();
    assert_eq!(stale_on(&s.disk), []);
}

fn stale_on(disk: &[u8]) -> Vec<u32> {
    let runs = Metadata::read(disk).unwrap().metadata.extension.stale;
    runs.iter().flat_map(|run| run.extents()).collect()
}

fn part_of(seq: u64, offset: u64, length: u64) -> Message {
    let data = Some(Buffer::from(vec![seq as u8; length as usize]));
    let command = Command::Write;
    Message::Request(Request { command, seq, offset, length, memsync: false, data })
}

/// L3: an original does not say when it has copied what was stale here. It has once all of that was written and a flush that began
/// afterwards has succeeded, and not before.
#[test]
fn what_an_original_has_copied_is_not_stale_any_more() {
    let (begin, es) = (2 * u64::from(ES), u64::from(ES));
    let copies: &[(&[(u64, u64)], bool)] = &[
        (&[(begin, es)], true),
        (&[(begin, es / 2), (begin + es / 2, es / 2)], true),
        (&[(begin - 512, 1024), (begin + 512, es)], true),
        (&[(begin, es / 2)], false),
        (&[(begin + es / 2, es / 2), (begin, es / 2)], false),
        (&[(begin + 512, es - 512)], false),
        (&[], false),
    ];
    for (writes, copied) in copies {
        let mut s = S::under(Extensions::NONE, stale(2), &[]);
        s.run();
        for (seq, (offset, length)) in (1..).zip(*writes) {
            s.frame(part_of(seq, *offset, *length));
            s.run();
        }
        assert_eq!(stale_on(&s.disk), [2], "{writes:?}: not flushed");
        s.frame(flush_of(9));
        s.run();
        assert_eq!(stale_on(&s.disk).is_empty(), *copied, "{writes:?}");
        let next = begins_again(&s.disk, Extensions::NONE);
        assert_eq!(answered_map(&next).contains(&2), !copied || !writes.is_empty(), "{writes:?}");
    }
}

/// A flush that fails covers nothing, and neither does one that began before the last write.
#[test]
fn what_an_original_has_copied_is_stale_until_a_flush_has_covered_it() {
    let begin = 2 * u64::from(ES);
    let mut s = S::under(Extensions::NONE, stale(2), &[]);
    s.run();
    s.frame(part_of(1, begin, ES.into()));
    s.run();
    s.frame(flush_of(2));
    s.fail(s.at(|op| *op == DiskOp::Flush));
    s.run();
    s.frame(flush_of(3));
    s.run();
    assert_eq!(stale_on(&s.disk), [2]);
    s.frame(part_of(4, begin, ES.into()));
    s.run();
    s.frame(flush_of(5));
    s.run();
    assert_eq!(stale_on(&s.disk), []);
}

/// One save at a time: what is copied while one is being written is written down by the next.
#[test]
fn what_an_original_has_copied_meanwhile_is_saved_after_the_save_under_way() {
    let runs = [2, 5].map(|first| Run { first, count: 1 }).to_vec();
    let mut s = S::under(Extensions::NONE, Extension { stale: runs, ..Extension::default() }, &[]);
    s.run();
    s.frame(part_of(1, 2 * u64::from(ES), ES.into()));
    s.run();
    s.frame(flush_of(2));
    let all_but_the_save = |s: &mut S| {
        while let Some(at) = s.ops.iter().position(|(_, op)| !is_metadata(op)) {
            s.step(at);
        }
    };
    all_but_the_save(&mut s);
    assert_eq!(s.ops.len(), 1);
    s.frame(part_of(3, 5 * u64::from(ES), ES.into()));
    all_but_the_save(&mut s);
    s.frame(flush_of(4));
    all_but_the_save(&mut s);
    assert_eq!(s.ops.len(), 1, "the first one has not ended");
    s.run();
    assert_eq!(stale_on(&s.disk), []);
}

/// Half of an extent before a flush that fails, and half after it, are not all of it; nor is what was written while that flush
/// ran, nor a write that the disk has refused.
#[test]
fn what_may_not_be_on_the_disk_is_not_copied() {
    let (begin, half) = (2 * u64::from(ES), u64::from(ES) / 2);
    let under = || {
        let mut s = S::under(Extensions::NONE, stale(2), &[]);
        s.run();
        s
    };
    let flushed = |mut s: S| {
        s.frame(flush_of(9));
        s.run();
        stale_on(&s.disk)
    };
    let mut s = under();
    s.frame(part_of(1, begin, half));
    s.run();
    s.frame(flush_of(2));
    s.fail(s.at(|op| *op == DiskOp::Flush));
    s.run();
    s.frame(part_of(3, begin + half, half));
    s.run();
    assert_eq!(flushed(s), [2], "half and half");

    let mut s = under();
    s.frame(part_of(1, begin - 512, 512));
    s.run();
    s.frame(flush_of(2));
    s.frame(part_of(3, begin, 2 * half));
    s.step(s.at(is_data));
    s.fail(s.at(|op| *op == DiskOp::Flush));
    s.run();
    assert_eq!(flushed(s), [2], "while it ran");

    let mut s = under();
    s.frame(part_of(1, begin, 2 * half));
    s.fail(s.at(is_data));
    s.run();
    assert_eq!(flushed(s), [2], "refused");
}

/// L3: every second extent of a run has been copied. Where there is no room for that many runs, something that was copied stays
/// stale, until the rest has been copied, too.
#[test]
fn what_an_original_has_copied_stays_stale_while_there_is_no_room_for_the_rest() {
    let (room, es) = (STALE_RUNS as u32, u64::from(ES));
    for left in [room, room + 1] {
        let all = Run { first: 0, count: 2 * left - 1 };
        let disk = S::disk(100, Extension { stale: vec![all], ..Extension::default() }, &[]);
        let mut s = begins_again(&disk, Extensions::NONE);
        let copy = |s: &mut S, first: u32| {
            for extent in (first..all.count).step_by(2) {
                s.frame(part_of(u64::from(extent) + 1, u64::from(extent) * es, es));
                s.run();
            }
            s.frame(flush_of(1000));
            s.run();
        };
        copy(&mut s, 1);
        let metadata = Metadata::read(&s.disk).unwrap().metadata;
        assert!(metadata.extension.stale.len() <= STALE_RUNS, "{:?}", metadata.extension.stale);
        let stale = stale_on(&s.disk);
        assert!((0..all.count).step_by(2).all(|extent| stale.contains(&extent)), "{stale:?}");
        assert_eq!(stale.len() as u32 > left, left > room, "{stale:?}");
        copy(&mut s, 0);
        assert_eq!(stale_on(&s.disk), []);
    }
}

/// L3: a write of a whole extent that is stale here waits, alone, for the metadata to stop calling it stale. A flush fails
/// meanwhile, which may have dropped the write: the next save, whose flushes are good, goes on calling the extent stale, and
/// the write must not be complete by that, because after a crash the secondary's copy would be written over it.
#[test]
fn a_write_is_not_complete_by_a_save_that_goes_on_calling_its_extent_stale() {
    let run = |first| hast_format::extension::Run { first, count: 1 };
    let ext = Extension { generation: 1, stale: vec![run(3), run(5)], ..Extension::default() };
    let mut h = H::new(24, 1, ext, &[3, 5], 5, 1, 1);
    h.p.handle_connect_failed(h.t, Side::Out, "refused");
    h.pump();
    h.policy = Box::new(|op| (*op != DiskOp::Flush).then_some(Ok(())));
    h.req(1, whole(5, 1)); // its save is under way ...
    h.req(2, whole(3, 2)); // ... and the next one is to be for this
    assert_eq!((h.result(1), h.result(2)), (None, None));
    h.policy = next_flush_fails_and_holds(is_data);
    h.pump();
    assert!(calls_stale(&h, 3), "what was written to it is perhaps not on the disk");
    assert_eq!(h.result(2), Some(Err(Errno::EIO)));
    // Once that is on the disk the extent is good, and writes to it are complete as ever.
    h.policy = Box::new(|_| Some(Ok(())));
    h.pump();
    h.tick(5);
    assert!(!calls_stale(&h, 3));
    h.req(3, sector(3));
    assert_eq!(h.result(3), Some(Ok(None)));
}

/// A write of one sector of an extent.
fn sector(extent: u64) -> Op {
    Op::Write { offset: extent * u64::from(ES), data: Buffer::from(vec![9; 512]) }
}
