//! A secondary that is not sure of what it stored says so (B1), and a node whose disk is an older one is found out (G1).

use super::*;

fn metadata(s: &S) -> Metadata {
    Metadata::read(&s.disk).unwrap().metadata
}

/// The boot id that the secondary has answered the handshake with.
fn said(s: &S) -> Option<[u8; 16]> {
    answered(s).and_then(|(answer, _)| answer.boot)
}

fn received_write(seq: u64, extent: u64) -> Message {
    let Message::Request(request) = write_of(seq, extent) else { unreachable!() };
    Message::Request(Request { memsync: true, ..request })
}

fn done(seq: u64, failures: Option<u64>) -> Message {
    Message::Mark(Mark { seq, kind: MarkKind::SyncDone { localcnt: 1, failures } })
}

/// B1: the system tells the first flush of a worker that something could not be written; nobody hears of it again. The
/// node is marked before the worker ends, and the next one does not say which boot this is.
#[test]
fn a_first_flush_that_fails_is_remembered() {
    let mut s = S::new(Extension::default(), &[]);
    s.poll();
    s.fail(0);
    s.run();
    assert_eq!(said(&s), None);
    let left = metadata(&s).extension;
    assert!(left.unsure && left.mark.is_some(), "{left:?}");

    let mut s = S::new(left, &[]);
    s.run();
    assert_eq!(said(&s), Some([0; 16]));
    s.frame(done(1, Some(0)));
    s.run();
    let left = metadata(&s).extension;
    assert!(!left.unsure && left.mark.is_none(), "the primary says that all is well: {left:?}");
    let mut s = S::new(left, &[]);
    s.run();
    assert_eq!(said(&s), Some([1; 16]));
}

/// A flush fails while writes are unflushed: that is written down at once, not only when the worker ends.
#[test]
fn a_flush_that_may_have_dropped_something_marks_at_once() {
    let mut s = S::new(Extension::default(), &[]);
    s.run();
    s.frame(write_of(1, 3));
    s.run();
    s.frame(flush_of(2));
    s.fail(s.at(|op| matches!(op, DiskOp::Flush)));
    s.run();
    let extension = metadata(&s).extension;
    assert!(extension.unsure && extension.mark.is_some(), "{extension:?}");
}

/// A flush fails before anything was written: nothing can be gone, and the node may be called up to date.
#[test]
fn a_failed_flush_of_nothing_leaves_no_doubt() {
    let mut s = S::new(Extension::default(), &[]);
    s.run();
    s.frame(Message::Mark(Mark { seq: 1, kind: MarkKind::SyncStart }));
    s.step(0);
    s.fail(s.at(|op| *op == DiskOp::Flush));
    s.run();
    assert_eq!(s.answer(1), Some(Err(Errno::EIO)));
    s.frame(done(2, Some(1)));
    s.run();
    assert_eq!(s.answer(2), Some(Ok(())));
    let extension = metadata(&s).extension;
    assert!(!extension.unsure && extension.mark.is_none(), "{extension:?}");
}

/// The primary was told that a write is received, and may have told its client; the disk refuses it.
#[test]
fn a_write_that_was_received_and_refused_marks() {
    for memsync in [false, true] {
        let mut s = S::new(Extension::default(), &[]);
        s.run();
        s.frame(if memsync { received_write(1, 3) } else { write_of(1, 3) });
        s.fail(s.at(is_data));
        s.run();
        assert_eq!(s.answer(1), if memsync { Some(Ok(())) } else { Some(Err(Errno::EIO)) }, "received first");
        assert_eq!(metadata(&s).extension.mark.is_some(), memsync);
        // The primary sent this before it had read the refusal.
        s.frame(done(2, Some(0)));
        s.run();
        assert_eq!(metadata(&s).extension.mark.is_some(), memsync);
        s.frame(done(3, Some(1)));
        s.run();
        assert_eq!(metadata(&s).extension.mark, None);
    }
}

/// Under an original nobody would ever take the mark back; the doubt itself stays.
#[test]
fn an_original_does_not_mark() {
    let mut s = S::under(Extensions::NONE, Extension::default(), &[]);
    s.poll();
    s.fail(0);
    s.run();
    let left = metadata(&s).extension;
    assert!(left.unsure && left.mark.is_none(), "{left:?}");
}

const G: u64 = 1 << 32;

/// A secondary with these generations, and its answer to a primary with those.
fn meets(secondary: Met, primary: Met) -> (S, Option<SecondAnswer>, Vec<u8>) {
    counted(secondary, 1, primary, 1)
}

/// The same of nodes that say they had counted so much by then; both have counted 1, and know it of each other.
fn counted(secondary: Met, there: u64, primary: Met, here: u64) -> (S, Option<SecondAnswer>, Vec<u8>) {
    let extension = Extension {
        connection: secondary.last,
        connection_before: secondary.before,
        connection_localcnt: there,
        ..Extension::default()
    };
    let mut s = S::meeting(Some(Meeting { met: primary, draw: 9, localcnt: here }), extension);
    s.run();
    let (answer, map) = answered(&s).unzip();
    (s, answer, map.unwrap_or_default())
}

/// The secondary's answer to the handshake, if it accepts, and the map with it.
fn answered(s: &S) -> Option<(SecondAnswer, Vec<u8>)> {
    s.sent.iter().find_map(|message| match message {
        Message::SecondAnswer(answer, map) => {
            Some((answer.clone(), map.as_ref().map_or(Vec::new(), |map| map.to_vec())))
        }
        _ => None,
    })
}

fn is_refused(s: &S) -> bool {
    s.sent.iter().any(|message| matches!(message, Message::SecondRefusal(..)))
}

/// A secondary with this extension under a primary whose latest generation is `last`.
fn under_one_of(last: u64, extension: Extension) -> S {
    S::meeting(Some(Meeting { met: Met { last, before: 0 }, draw: 9, localcnt: 1 }), extension)
}

/// A node that lacks something, as far as it knows since then.
fn lacks_since(since: u64) -> Option<hast_format::extension::Mark> {
    Some(hast_format::extension::Mark { since, by: "a".into() })
}

/// The next save of the metadata fails.
fn fail_next_save(s: &mut S) {
    s.poll();
    while !s.ops.iter().any(|(_, op)| is_metadata(op)) {
        s.step(0);
    }
    s.fail(s.at(is_metadata));
    s.run();
}

/// G1: the counts are in step, but one disk was rolled back. Everything is copied from the node that has seen more.
#[test]
fn a_disk_that_was_rolled_back_is_found() {
    let met = |last, before| Met { last, before };
    let (s, answer, map) = meets(met(5 * G, 0), met(5 * G, 0));
    assert_eq!(
        answer.map(|answer| (answer.syncsrc, answer.met)),
        Some((SyncSource::Primary, Some(met(6 * G + 9, 5 * G))))
    );
    assert!(map.iter().all(|byte| *byte == 0), "in step");
    let stored = metadata(&s).extension;
    assert_eq!(
        (stored.connection, stored.connection_before),
        (6 * G + 9, 5 * G),
        "durable before the answer"
    );

    let (_, answer, map) = meets(met(4 * G, 0), met(5 * G, 0));
    assert_eq!(answer.map(|answer| answer.syncsrc), Some(SyncSource::Primary));
    assert!(!map.is_empty() && map.iter().all(|byte| *byte == 0xff), "G1: ours is older");
    let (_, answer, map) = meets(met(6 * G, 0), met(5 * G, 0));
    assert_eq!(answer.map(|answer| answer.syncsrc), Some(SyncSource::Secondary));
    assert!(!map.is_empty() && map.iter().all(|byte| *byte == 0xff), "G1: the primary's is older");
    let (s, answer, _) = meets(met(5 * G + 1, 0), met(5 * G + 2, 0));
    assert_eq!(answer, None);
    assert!(is_refused(&s), "{:?}", s.sent);
}

/// G1: the node whose disk was set back was written alone since, until its count was by chance what the other one remembers.
#[test]
fn a_disk_that_was_rolled_back_and_written_is_not_overwritten() {
    let met = |last| Met { last, before: 0 };
    let split = |(s, answer, _): (S, Option<SecondAnswer>, Vec<u8>)| answer.is_none() && is_refused(&s);
    assert!(split(counted(met(4 * G), 0, met(5 * G), 1)), "the secondary was written");
    assert!(split(counted(met(6 * G), 1, met(5 * G), 0)), "the primary was written");
    assert!(!split(counted(met(4 * G), 1, met(5 * G), 0)), "what the newer one was written counts as ever");
    assert!(!split(counted(met(5 * G), 0, met(5 * G), 0)), "nothing was set back");
}

/// A3: a node that has lost what it had stored, generations too, may have been set back as well: all is copied.
#[test]
fn a_secondary_that_has_lost_its_area_is_the_older_one() {
    for (since, full) in [(0, true), (1, false)] {
        let mut s = under_one_of(5 * G, Extension { mark: lacks_since(since), ..Extension::default() });
        s.run();
        let (_, map) = answered(&s).unwrap();
        assert_eq!(!map.is_empty() && map.iter().all(|byte| *byte == 0xff), full);
    }
}

/// A3: once it has stored a generation again it is no longer taken for the older one, although its mark stays until it is up
/// to date: the primary may be set back meanwhile.
#[test]
fn a_secondary_that_lost_its_area_once_is_not_overwritten_by_an_older_primary() {
    let extension =
        Extension { mark: lacks_since(0), connection: 8 * G, connection_localcnt: 1, ..Extension::default() };
    let mut s = under_one_of(5 * G, extension);
    s.run();
    assert!(is_refused(&s), "{:?}", s.sent);
}

/// G1: what a node was written alone is not copied when the connection begins: should its disk be set back to then, or its
/// place be taken by another one until that has the same count, it must not be overwritten.
#[test]
fn what_was_written_alone_before_a_connection_is_not_forgotten_with_it() {
    let met = Met { last: 5 * G, before: 0 };
    let extension = Extension { generation: 1, connection: 5 * G, ..Extension::default() };
    let host = Host { boot: [1; 16], wall: 0, deletes: Deletes::LeaveZeros };
    let meeting = Some(Meeting { met, draw: 9, localcnt: 0 });
    let hello = SecondHello { meeting, remotecnt: 0, ..S::hello() };
    let mut s = S::started(Extensions::ALL, NEVER, extension.clone(), &[], host, hello);
    s.run();
    let left = metadata(&s);
    assert_eq!((left.localcnt, left.extension.connection_localcnt), (1, 0), "the primary knows of nothing");

    let mut h = H::new(24, 1, extension, &[], 5, 3, 1);
    h.handshake_first(Extensions::ALL);
    let met = Some(Met { last: 6 * G, before: 5 * G });
    let answer = SecondAnswer { met, mapsize: 512, remotecnt: 2, ..h.agrees() };
    h.frame(Side::Out, Message::SecondAnswer(answer, Some(Buffer::from(vec![0; 512]))));
    let left = h.metadata();
    assert_eq!((left.localcnt, left.extension.connection_localcnt), (3, 2), "the secondary knows of 2");
    h.serve_all(|_| Some(None));
    assert_eq!(h.metadata().extension.connection_localcnt, 3, "they are equal");
}

/// What a secondary stores of the connection says what it has counted by then.
#[test]
fn a_generation_is_stored_with_the_count() {
    let met = |last| Met { last, before: 0 };
    let (s, _, _) = counted(met(5 * G), 0, met(5 * G), 0);
    assert_eq!(metadata(&s).extension.connection_localcnt, 1);
}

/// A connection broke off after the secondary had stored its generation and before the primary had: no rollback.
#[test]
fn an_attempt_that_broke_off_is_no_rollback() {
    let met = |last, before| Met { last, before };
    for (secondary, primary) in [((6 * G, 5 * G), (5 * G, 0)), ((5 * G, 0), (6 * G, 5 * G))] {
        let (_, answer, map) = meets(met(secondary.0, secondary.1), met(primary.0, primary.1));
        assert_eq!(answer.map(|answer| answer.syncsrc), Some(SyncSource::Primary));
        assert!(map.iter().all(|byte| *byte == 0), "{secondary:?} {primary:?}");
    }
}

/// The secondary's disk cannot store the generation: then the primary does not either, and nothing seems to be rolled back
/// at the next connection.
#[test]
fn a_generation_that_cannot_be_stored_is_none() {
    let extension = Extension { connection: 5 * G, ..Extension::default() };
    let mut s =
        S::meeting(Some(Meeting { met: Met { last: 5 * G, before: 0 }, draw: 9, localcnt: 0 }), extension);
    s.poll();
    s.step(0);
    s.fail(s.at(|op| matches!(op, DiskOp::Write { .. })));
    s.run();
    let (answer, _) = answered(&s).unwrap();
    assert_eq!(answer.met, Some(Met { last: 0, before: 5 * G }));
    s.frame(Message::Mark(Mark { seq: 1, kind: MarkKind::SyncStart }));
    s.run();
    let left = metadata(&s).extension;
    assert_eq!((left.connection, left.connection_before), (5 * G, 0));
}

/// The generations that the primary says in the handshake.
fn says_it_had(h: &H) -> Option<Met> {
    let hello = h.sent.iter().find_map(|(_, message)| match message {
        Message::SecondHello(hello) => Some(hello),
        _ => None,
    });
    hello.expect("the second step").meeting.as_ref().map(|meeting| meeting.met)
}

/// G1: a primary that has stored a generation says so, whatever else is being written down, or could not be.
#[test]
fn a_primary_says_which_connection_it_had_last() {
    for saves in [None, Some(None), Some(Some(Err(Errno::EIO)))] {
        let ext = Extension { generation: 1, connection: 5 * G, ..Extension::default() };
        let mut h = H::new(24, 1, ext, &[], 5, 1, 1);
        h.p.handle_connect_failed(h.t, Side::Out, "refused");
        h.pump();
        if let Some(result) = saves {
            h.policy = Box::new(move |op| if is_metadata(op) { result } else { Some(Ok(())) });
            h.w(1, 3);
            assert_eq!(
                h.result(1),
                result.map(|result| result.map(|()| None)),
                "C1 (a): it is counted first"
            );
        }
        h.tick(2);
        h.handshake_first(Extensions::ALL);
        assert_eq!(says_it_had(&h), Some(Met { last: 5 * G, before: 0 }), "{saves:?}");
    }
}

/// ... and none while it has one in memory alone: a disk that was given up stores nothing.
#[test]
fn a_primary_without_its_disk_does_not_say_which_connection_it_had_last() {
    let ext = Extension { generation: 1, connection: 5 * G, ..Extension::default() };
    let mut h = H::new(24, 1, ext, &[], 5, 1, 1);
    h.handshake_first(Extensions::ALL);
    h.answer_meeting(Met { last: 6 * G, before: 5 * G });
    h.serve_all(|_| Some(None));
    h.policy = Box::new(|_| Some(Err(Errno::EIO)));
    h.w(1, 9);
    h.serve_all(|_| Some(None));
    assert!(h.p.status().facts.detached);
    for stored in [Some(Met { last: 6 * G, before: 0 }), None] {
        h.meet_again();
        assert_eq!(says_it_had(&h), stored);
        h.answer_meeting(Met { last: 7 * G, before: 6 * G });
        h.serve_all(|_| Some(None));
        assert!(h.p.status().complete);
    }
}

/// The connection breaks off before the primary has stored its generation: what was found must not be forgotten with that.
#[test]
fn a_rollback_that_was_found_is_found_again() {
    let met = |last, before| Met { last, before };
    let (s, answer, _) = meets(met(4 * G, 0), met(5 * G, 0));
    assert!(answer.is_some());
    let read = Metadata::read(&s.disk).unwrap();
    let left = read.metadata.extension;
    assert_eq!((left.connection, left.connection_before), (6 * G + 9, 5 * G));
    assert!(left.mark.is_some(), "ours is older: {left:?}");
    let layout = Layout::create(s.disk.len() as u64, 512, ES).unwrap();
    let map = usize::try_from(layout.map_offset()).unwrap();
    let bytes = usize::try_from(layout.map_bytes()).unwrap();
    assert!(s.disk[map..map + bytes].iter().any(|byte| *byte != 0), "and all of it is to be copied");

    let (s, answer, _) = meets(met(6 * G, 0), met(5 * G, 0));
    assert!(answer.is_some());
    let left = metadata(&s).extension;
    assert_eq!(
        (left.connection, left.connection_before),
        (7 * G + 9, 0),
        "nothing in common with an older primary"
    );
}

/// A secondary that lacks something is no source, though it has seen more connections.
#[test]
fn a_marked_secondary_is_no_source_for_a_primary_that_was_rolled_back() {
    let extension = Extension { connection: 6 * G, mark: lacks_since(1), ..Extension::default() };
    let mut s = under_one_of(5 * G, extension);
    s.run();
    assert!(is_refused(&s), "{:?}", s.sent);
}

/// The first request says that the primary has stored the generation: the disk hears of that, or a primary that is set back
/// to before this connection would have one in common with it.
#[test]
fn the_generation_before_is_forgotten_durably() {
    let met = |last, before| Met { last, before };
    let (mut s, _, _) = meets(met(5 * G, 0), met(5 * G, 0));
    assert_eq!(metadata(&s).extension.connection_before, 5 * G);
    s.frame(flush_of(1));
    s.run();
    assert_eq!(metadata(&s).extension.connection_before, 0);
}

/// The secondary cannot write down that it alone is right, and says so: it has not counted that either, for the primary, which
/// knows what the secondary has counted only by its answers, would be behind for ever.
#[test]
fn a_mark_that_cannot_be_written_down_is_not_counted() {
    let mut s = S::under(Extensions::ALL, Extension::default(), &[]);
    s.run();
    let stale = |seq| Message::Mark(Mark { seq, kind: MarkKind::Stale { offset: 0, length: u64::from(ES) } });
    let answer = |s: &S, wanted| {
        s.sent.iter().find_map(|message| match message {
            Message::Reply(reply) if reply.seq == wanted => Some(reply.error),
            _ => None,
        })
    };
    s.frame(stale(1));
    fail_next_save(&mut s);
    assert_eq!(answer(&s, 1), Some(Some(Errno::EIO)));
    s.frame(stale(2));
    s.run();
    assert_eq!((answer(&s, 2), metadata(&s).localcnt), (Some(None), 2));
}

/// ... and what was counted stays so, whatever becomes of the marks after it: the other node counts on it.
#[test]
fn what_the_secondary_has_counted_stays_counted() {
    let mut s = S::under(Extensions::ALL, Extension::default(), &[]);
    s.run();
    s.frame(Message::Mark(Mark { seq: 1, kind: MarkKind::Stale { offset: 0, length: u64::from(ES) } }));
    s.run();
    let start = |seq| Message::Mark(Mark { seq, kind: MarkKind::SyncStart });
    s.frame(start(2));
    fail_next_save(&mut s);
    s.frame(start(3));
    s.run();
    assert_eq!((s.answer(1), s.answer(2), s.answer(3)), (Some(Ok(())), Some(Err(Errno::EIO)), Some(Ok(()))));
    assert_eq!(metadata(&s).localcnt, 2);
}

/// All that a secondary may lack is unflushed, and its disk is set back meanwhile: it has to mark itself, though its map,
/// which is full, has nothing in it that ours has not.
#[test]
fn a_secondary_whose_disk_was_rolled_back_is_marked_whatever_is_to_be_synchronised() {
    let ext = Extension { connection: 5 * G, ..Extension::default() };
    let mut h = H::new(24, 1, ext, &[], 5, 1, 1);
    h.handshake_first(Extensions::ALL);
    h.answer_meeting(Met { last: 6 * G, before: 5 * G });
    h.serve_all(|_| Some(None));
    for extent in 0..24 {
        h.w(extent, extent);
        h.serve_all(|message| is(Command::Write)(message).then_some(None));
    }
    // In step; set back; the same, and it cannot store the generation.
    for (last, before) in [(7 * G, 6 * G), (8 * G, 4 * G), (0, 4 * G)] {
        h.p.handle_lost(h.t, "gone");
        h.tick(3);
        h.sent.clear();
        h.handshake_first(Extensions::ALL);
        let met = Some(Met { last, before });
        let answer = SecondAnswer { met, mapsize: 512, ..h.agrees() };
        let map = if before == 6 * G { 0 } else { 0xff };
        h.frame(Side::Out, Message::SecondAnswer(answer, Some(Buffer::from(vec![map; 512]))));
        let marks = h.sent.iter().any(|(_, message)| matches!(message, Message::Mark(_)));
        assert_eq!(marks, before == 4 * G, "{last:x} {before:x}");
    }
}

/// A disk was set back, this was found, and the generation of the connection could not be stored. Once the nodes are equal
/// the older one has that of the other: it would be taken for set back again, or for written beside the other one.
#[test]
fn equal_nodes_have_a_generation_in_common() {
    let extension =
        Extension { generation: 1, connection: 4 * G, connection_localcnt: 1, ..Extension::default() };
    let mut s = under_one_of(5 * G, extension);
    fail_next_save(&mut s);
    assert!(answered(&s).is_some(), "{:?}", s.sent);
    assert_eq!(metadata(&s).extension.connection, 4 * G, "nothing is equal so far");
    s.frame(Message::Mark(Mark { seq: 1, kind: MarkKind::SyncDone { localcnt: 1, failures: Some(0) } }));
    s.run();
    let left = metadata(&s).extension;
    assert_eq!((left.connection, left.connection_before, left.connection_localcnt), (5 * G, 0, 1));

    let mut h =
        H::new(24, 1, Extension { generation: 1, connection: 4 * G, ..Extension::default() }, &[], 5, 1, 1);
    h.handshake_first(Extensions::ALL);
    let met = Some(Met { last: 0, before: 5 * G });
    let answer = SecondAnswer { met, mapsize: 512, syncsrc: SyncSource::Secondary, ..h.agrees() };
    h.frame(Side::Out, Message::SecondAnswer(answer, Some(Buffer::from(vec![0xff; 512]))));
    assert_eq!(h.metadata().extension.connection, 4 * G, "nothing is equal so far");
    h.serve_all(|_| Some(None));
    let left = h.metadata().extension;
    assert_eq!((left.connection, left.connection_before, left.connection_localcnt), (5 * G, 0, 1));
}

/// L19: a first contact with an original breaks off once that has taken the resource id over. It seems to be in step then,
/// and has nothing.
#[test]
fn a_first_contact_that_broke_off_is_finished() {
    for broken_off in [false, true] {
        let mut h = H::new(24, 1, Extension::default(), &[], 5, 0, 0);
        if broken_off {
            h.handshake_first(Extensions::NONE);
            h.p.handle_lost(h.t, "gone");
            h.pump();
            assert!(h.metadata().extension.full_sync_owed);
            h.tick(3);
        }
        h.handshake_first(Extensions::NONE);
        h.answer(0, 0, SyncSource::Primary, Some(vec![0; 512]));
        let all = if broken_off { 24 * u64::from(ES) } else { 0 };
        assert_eq!(h.p.status().facts.to_synchronise_bytes, all);
        h.serve_all(|_| Some(None));
        assert!(h.p.is_in_step() && !h.metadata().extension.full_sync_owed);
    }
}

/// L19: a secondary of ours takes the resource id over together with what it lacks, durably: a first contact with it that
/// breaks off leaves nothing to be finished.
#[test]
fn a_first_contact_with_a_secondary_of_ours_that_broke_off_costs_nothing() {
    for ext in [Extensions::ALL, Extensions::SYNC_MARKS] {
        let mut h = H::new(24, 1, Extension { parted: 3, ..Extension::default() }, &[], 5, 0, 0);
        for _ in 0..2 {
            h.handshake_first(ext);
            h.p.handle_lost(h.t, "gone");
            h.pump();
            h.tick(3);
        }
        h.handshake_first(ext);
        h.answer(0, 0, SyncSource::Primary, Some(vec![0; 512]));
        assert_eq!(h.p.status().facts.to_synchronise_bytes, 0, "{ext:?}");
    }
}

/// L19: the original that answers in the end is one that this node was connected to, or lacks what its map says.
#[test]
fn an_original_that_is_in_step_is_not_taken_for_a_fresh_one() {
    for (counts, map, extents) in [((1, 1), 0, 0), ((0, 0), 0b10, 1)] {
        let mut h = H::new(24, 1, Extension::default(), &[], 5, counts.0, counts.1);
        h.handshake_first(Extensions::NONE);
        h.p.handle_lost(h.t, "gone");
        h.pump();
        h.tick(3);
        h.handshake_first(Extensions::NONE);
        let mut bytes = vec![0; 512];
        bytes[0] = map;
        h.answer(counts.0, counts.1, SyncSource::Primary, Some(bytes));
        assert_eq!(h.p.status().facts.to_synchronise_bytes, extents * u64::from(ES));
    }
}

/// G1: the secondary had stored a connection that this node has not, because it broke off between, and could not store
/// this one. It has decided that the nodes belong together: it is not the newer one, and this node's generation stays.
#[test]
fn a_secondary_that_has_stored_a_connection_which_broke_off_is_not_newer() {
    let ext = Extension { generation: 1, connection: 5 * G, ..Extension::default() };
    let mut h = H::new(24, 1, ext, &[], 5, 1, 1);
    h.handshake_first(Extensions::ALL);
    h.answer_meeting(Met { last: 0, before: 6 * G });
    h.serve_all(|_| Some(None));
    assert!(h.p.is_in_step());
    assert_eq!(h.metadata().extension.connection, 5 * G);
}

/// The secondary marks itself if it has told of more failures than the primary has heard of when that calls it up to date: on
/// this connection.
#[test]
fn a_primary_says_how_many_failures_it_has_heard_of() {
    let heard = |h: &mut H| {
        let mut heard = None;
        for _ in 0..3 {
            h.serve_all(|message| {
                if let Message::Mark(Mark { kind: MarkKind::SyncDone { failures, .. }, .. }) = message {
                    heard = *failures;
                }
                Some(None)
            });
            h.tick(2);
        }
        assert!(h.p.is_in_step());
        heard
    };
    let mut h = H::new(24, 1, Extension::default(), &[], 5, 1, 1);
    h.handshake_first(Extensions::ALL);
    h.answer(1, 1, SyncSource::Primary, Some(vec![0; 512]));
    assert_eq!(heard(&mut h), Some(0));
    h.w(1, 3);
    h.w(2, 7);
    h.serve_all(|message| is(Command::Write)(message).then_some(Some(Errno::EIO)));
    assert_eq!(heard(&mut h), Some(2));
    h.meet_again();
    h.answer(1, 2, SyncSource::Primary, Some(vec![0; 512]));
    assert_eq!(heard(&mut h), Some(0));
}

/// G1, A3: a primary that has lost what it had stored of its connections, and is used by force, cannot tell whether the
/// secondary's disk was set back: the maps may say nothing of what that lacks. One that only has not stored its first
/// generation yet has lost nothing.
#[test]
fn a_primary_that_has_lost_its_generation_synchronises_everything() {
    let mark = |since| Some(hast_format::extension::Mark { since, by: String::new() });
    for (since, known, theirs, all) in [
        (None, 0, 5 * G, false),
        (Some(7), 0, 5 * G, false),
        (Some(0), 0, 0, false),
        (Some(0), 0, 5 * G, true),
        (Some(0), 5 * G, 5 * G, false),
    ] {
        let ext = Extension {
            generation: 1,
            connection: known,
            mark: since.and_then(mark),
            ..Extension::default()
        };
        let mut h = sessions::started(ext, true);
        h.handshake_first(Extensions::ALL);
        h.answer_meeting(Met { last: 6 * G, before: theirs });
        let bytes = if all { 24 * u64::from(ES) } else { 0 };
        let case = format!("marked {since:?}, {known:x} here, {theirs:x} there");
        assert_eq!(h.p.status().facts.to_synchronise_bytes, bytes, "{case}");
        assert_eq!(
            h.sent.iter().any(|(_, message)| says_start(message)),
            all,
            "it may lack something: {case}"
        );
        h.serve_all(|_| Some(None));
        assert!(h.p.is_in_step());
        let extension = h.metadata().extension;
        assert!(extension.connection == 6 * G && !extension.full_sync_owed, "{extension:?}");
    }
}

/// ... and still does after the worker was replaced, before the nodes have met.
#[test]
fn a_primary_that_has_lost_its_generation_remembers_that() {
    let mark = Some(hast_format::extension::Mark { since: 0, by: String::new() });
    let h = sessions::started(Extension { generation: 1, mark, ..Extension::default() }, true);
    let mut again = sessions::started(h.metadata().extension, false);
    again.handshake_first(Extensions::ALL);
    again.answer_meeting(Met { last: 6 * G, before: 5 * G });
    assert_eq!(again.p.status().facts.to_synchronise_bytes, 24 * u64::from(ES));
}

/// G1: nodes that are equal have the generation of their connection in common, whichever disk was the older one.
#[test]
fn an_older_disk_that_has_stored_the_generation_keeps_it() {
    let base = Extension { generation: 1, connection_localcnt: 1, ..Extension::default() };
    let mut s = under_one_of(6 * G, Extension { connection: 5 * G, ..base.clone() });
    s.run();
    s.frame(done(1, Some(0)));
    s.run();
    assert_eq!(metadata(&s).extension.connection, 7 * G + 9);
    // It is not older, and could not store the generation: what it has is in common.
    let mut s = under_one_of(5 * G, Extension { connection: 6 * G, connection_before: 5 * G, ..base });
    fail_next_save(&mut s);
    s.frame(done(1, Some(0)));
    s.run();
    assert_eq!(metadata(&s).extension.connection, 6 * G);
}

/// B1: a doubt is written down once, however often the disk fails after that.
#[test]
fn a_doubt_that_is_written_down_is_not_written_again() {
    let mut s = S::new(Extension::default(), &[]);
    s.run();
    let mut generations = Vec::new();
    for seq in [1, 3] {
        s.frame(write_of(seq, seq));
        s.run();
        s.frame(flush_of(seq + 1));
        s.fail(s.at(|op| *op == DiskOp::Flush));
        s.run();
        assert!(metadata(&s).extension.unsure);
        generations.push(metadata(&s).extension.generation);
    }
    assert_eq!(generations[0], generations[1], "nothing new was saved");
}
