//! What rests on one node alone: what has to be on whose disk before anybody relies on it, and who may not be relied on.

use super::*;

fn tells_stale(message: &Message) -> bool {
    matches!(message, Message::Mark(Mark { kind: MarkKind::Stale { .. }, .. }))
}

/// The secondary stores and flushes, and cannot read.
fn stored_and_not_read(message: &Message) -> Option<Option<Errno>> {
    match message {
        Message::Request(Request { command: Command::Read, .. }) => Some(Some(Errno::EIO)),
        Message::Request(_) => Some(None),
        _ => None,
    }
}

/// Our disk has failed a write that the secondary has stored and flushed; the metadata that are to call extent 7 stale are
/// with the disk.
fn being_written_down(h: &mut H) {
    h.policy = Box::new(|op| match op {
        op if is_data(op) => Some(Err(Errno::EIO)),
        op if is_metadata(op) => None,
        _ => Some(Ok(())),
    });
    h.w(1, 7);
    h.serve_all(stored_and_not_read);
    assert!(h.ops.iter().any(|(_, op)| is_metadata(op)), "L3: {:?}", h.ops);
    assert_eq!(h.result(1), None);
}

/// Nothing can be written to our disk but its data.
fn metadata_fail(h: &mut H) {
    h.policy = Box::new(|op| Some(if is_metadata(op) { Err(Errno::EIO) } else { Ok(()) }));
    h.pump();
}

/// A node that was written alone, and then finds that the other one's copy is the newer one, up to its answer.
fn outdated(known: Extensions) -> H {
    let mut h = H::new(24, 1, Extension::default(), &[], 5, 3, 5);
    h.p.handle_connect_failed(h.t, Side::Out, "refused");
    h.pump();
    h.tick(2);
    h.handshake_first(known);
    h
}

/// Which operations the disk holds up.
type Held = fn(&DiskOp) -> bool;

/// L18, M1: that this node is the target, and the map of both, are on disk before the nodes count as connected.
#[test]
fn the_nodes_are_connected_once_what_the_secondary_said_is_on_disk() {
    let map_write = |op: &DiskOp| !is_metadata(op) && !is_data(op) && *op != DiskOp::Flush;
    let cases: [(Extensions, Held); 3] = [
        (Extensions::ALL, is_metadata),
        (Extensions::ALL, map_write),
        // Nodes that know of no numbers have nothing else to save.
        (Extensions::SYNC_MARKS, is_metadata),
    ];
    for (known, held) in cases {
        let mut h = outdated(known);
        h.policy = Box::new(move |op| (!held(op)).then_some(Ok(())));
        let mut map = vec![0; 512];
        map[0] = 4;
        h.answer(6, 3, SyncSource::Secondary, Some(map));
        assert!(h.ops.iter().any(|(_, op)| held(op)), "{:?}", h.ops);
        h.req(1, Op::Read { offset: 2 * u64::from(ES), length: 512 });
        assert!(!h.sent.iter().any(|(_, message)| matches!(message, Message::Request(_) | Message::Mark(_))));
        h.policy = Box::new(|_| Some(Ok(())));
        h.pump();
        h.serve_all(|_| Some(None));
        assert_eq!(h.result(1), Some(Ok(Some(Buffer::from(vec![0x55; 512])))));
        assert!(h.p.is_in_step() && !h.p.status().facts.target);
    }
}

/// L6: the nodes know each other, and the secondary has written something that this node has not: it may lack something of
/// ours as well, and writes down that it is out of date before it gets anything.
#[test]
fn a_secondary_that_says_that_it_differs_marks_itself_first() {
    let mut h = H::in_step();
    h.p.handle_lost(h.t, "gone");
    h.pump();
    h.tick(2);
    h.sent.clear();
    h.handshake_first(Extensions::ALL);
    let mut map = vec![0; 512];
    map[0] = 4;
    h.answer(1, 1, SyncSource::Primary, Some(map));
    let first = h.sent.iter().find(|(_, message)| matches!(message, Message::Request(_) | Message::Mark(_)));
    assert!(first.is_some_and(|(_, message)| says_start(message)), "{first:?}");
}

/// C2: our disk has a write that began before the secondary was there. Until it is complete, and copied, nothing is in step.
#[test]
fn nothing_is_in_step_while_only_this_node_was_given_a_write() {
    let mut h = outdated(Extensions::ALL);
    h.policy = Box::new(|op| (!is_data(op)).then_some(Ok(())));
    h.w(1, 4);
    h.answer(5, 3, SyncSource::Primary, Some(vec![0; 512]));
    h.serve_all(|_| Some(None));
    assert!(h.p.status().complete && !h.p.is_in_step());
    assert!(!h.sent.iter().any(|(_, message)| says_done(message)), "C2");
    h.policy = Box::new(|_| Some(Ok(())));
    h.pump();
    h.serve_all(|_| Some(None));
    assert_eq!(h.result(1), Some(Ok(None)));
    h.tick(12);
    h.serve_all(|_| Some(None));
    assert!(h.p.is_in_step());
}

/// L3: that an extent is stale is being written down when the secondary has flushed another write to it: that one is
/// complete after the save, too.
#[test]
fn a_write_waits_until_the_disk_says_what_it_misses() {
    let mut h = H::in_step();
    h.policy = Box::new(|op| match op {
        op if is_data(op) => Some(Err(Errno::EIO)),
        op if is_metadata(op) => None,
        _ => Some(Ok(())),
    });
    h.w(1, 7);
    h.req(2, Op::Write { offset: 7 * u64::from(ES) + 512, data: Buffer::from(vec![2; 512]) });
    h.serve_all(stored_and_not_read);
    assert_eq!(h.p.status().facts.stale_bytes, u64::from(ES));
    assert_eq!((h.result(1), h.result(2)), (None, None));
    h.policy = Box::new(|op| Some(if is_data(op) { Err(Errno::EIO) } else { Ok(()) }));
    h.pump();
    assert_eq!((h.result(1), h.result(2)), (Some(Ok(None)), Some(Ok(None))));
}

/// The write whose extent was to be called stale has failed, because its only holder went away: our copy is the right one
/// of all else in the extent, and is read here.
#[test]
fn an_extent_is_not_stale_because_of_a_write_that_failed() {
    let mut h = H::in_step();
    being_written_down(&mut h);
    h.p.handle_lost(h.t, "gone");
    h.policy = Box::new(|_| Some(Ok(())));
    h.pump();
    assert_eq!(h.result(1), Some(Err(Errno::EIO)));
    assert_eq!(h.p.status().facts.stale_bytes, 0);
    h.req(2, Op::Read { offset: 7 * u64::from(ES) + 512, length: 512 });
    assert_eq!(h.result(2), Some(Ok(Some(Buffer::from(vec![0xaa; 512])))));
    h.tick(2);
    assert_eq!(h.metadata().extension.stale, []);
}

/// The secondary lacks a write to extent 11, and knows it.
fn behind() -> H {
    let mut h = H::in_step();
    h.w(9, 11);
    let lacks = |message: &Message| is(Command::Write)(message).then_some(Some(Errno::EIO));
    h.serve_all(|message| lacks(message).or(says_start(message).then_some(None)));
    h.serve_all(lacks);
    assert_eq!(h.result(9), Some(Ok(None)));
    h
}

/// It cannot write down that it alone is right, be it of one extent or of our whole disk: what our disk has failed fails.
#[test]
fn a_secondary_that_lacks_something_does_not_say_that_it_is_right() {
    let mut h = behind();
    being_written_down(&mut h);
    metadata_fail(&mut h);
    h.serve_all(|message| is(Command::Flush)(message).then_some(None));
    assert_eq!(h.result(1), Some(Err(Errno::EIO)));
    assert!(!h.sent.iter().any(|(_, message)| tells_stale(message)), "{:?}", h.sent);

    let mut h = behind();
    h.policy = Box::new(|_| Some(Err(Errno::EIO)));
    h.w(1, 9);
    h.req(2, Op::Flush);
    h.serve_all(|message| is(Command::Flush)(message).then_some(None));
    h.tick(5);
    assert!(!h.sent.iter().any(|(_, message)| tells_stale(message)), "{:?}", h.sent);
    assert_eq!(h.result(1), Some(Err(Errno::EIO)));
    assert!(!h.p.status().facts.detached);
}

/// The secondary cannot write down that it alone is right: our disk is not given up, and has failed.
#[test]
fn a_disk_is_not_given_up_if_the_secondary_cannot_say_so() {
    let mut h = H::in_step();
    h.policy = Box::new(|_| Some(Err(Errno::EIO)));
    h.w(1, 9);
    h.serve_all(|message| match message {
        message if is(Command::Flush)(message) => Some(None),
        message => tells_stale(message).then_some(Some(Errno::EIO)),
    });
    assert_eq!(h.result(1), Some(Err(Errno::EIO)));
    assert!(!h.p.status().facts.detached);
}

/// S1: the secondary flushes what is complete, to be relied on alone. What is written meanwhile is complete once it has
/// flushed that as well, on both nodes or not.
#[test]
fn a_write_beside_the_way_to_relying_is_flushed_there() {
    let mut h = H::in_step();
    h.w(3, 9);
    h.serve_all(|_| Some(None));
    being_written_down(&mut h);
    metadata_fail(&mut h);
    h.w(2, 9);
    h.serve_all(|message| is(Command::Write)(message).then_some(None));
    assert_eq!(h.result(2), None);
    h.serve_one(Command::Flush);
    h.serve_all(|message| tells_stale(message).then_some(None));
    assert_eq!((h.result(1), h.result(2)), (Some(Ok(None)), None), "that flush began before it was stored");
    h.serve_all(|message| is(Command::Flush)(message).then_some(None));
    assert_eq!(h.result(2), Some(Ok(None)));
    h.w(4, 9);
    h.serve_all(|message| is(Command::Write)(message).then_some(None));
    assert_eq!(h.result(4), None, "and so is everything from now on");
    h.p.handle_lost(h.t, "gone");
    h.w(5, 11);
    h.tick(1);
    h.handshake_first(Extensions::ALL);
    h.w(6, 13);
    assert_eq!((h.result(5), h.result(6)), (None, None), "nothing is complete without it");
}

/// The secondary alone has something, and has written that down because our disk could not.
fn known_to_the_secondary_alone() -> H {
    let mut h = H::in_step();
    being_written_down(&mut h);
    metadata_fail(&mut h);
    h.serve_all(|message| (tells_stale(message) || is(Command::Flush)(message)).then_some(None));
    assert_eq!(h.result(1), Some(Ok(None)));
    h
}

/// ... until the nodes are in step again: then a write is complete once both have stored it, and without the secondary
/// when that goes away.
#[test]
fn a_node_that_is_in_step_again_does_not_rest_on_the_secondary() {
    let mut h = known_to_the_secondary_alone();
    h.policy = Box::new(|_| Some(Ok(())));
    for _ in 0..3 {
        h.serve_all(|_| Some(None));
        h.tick(12);
    }
    assert!(h.p.is_in_step(), "{:?}", h.p.status());
    h.w(2, 9);
    h.serve_all(|message| is(Command::Write)(message).then_some(None));
    assert_eq!(h.result(2), Some(Ok(None)), "it need not be flushed there");
    h.p.handle_lost(h.t, "gone");
    h.w(3, 11);
    assert_eq!(h.result(3), Some(Ok(None)));
}

/// The secondary refuses to write down what it alone has: that has failed, and what is written from then on rests on both
/// nodes, as before.
#[test]
fn nothing_rests_on_a_secondary_that_has_refused_to_be_relied_on() {
    let mut h = H::in_step();
    being_written_down(&mut h);
    metadata_fail(&mut h);
    h.serve_all(|message| is(Command::Flush)(message).then_some(None));
    h.serve_all(|message| tells_stale(message).then_some(Some(Errno::EIO)));
    assert_eq!(h.result(1), Some(Err(Errno::EIO)));
    h.w(2, 9);
    h.serve_all(|message| is(Command::Write)(message).then_some(None));
    assert_eq!(h.result(2), Some(Ok(None)), "it need not be flushed there");
}

/// The secondary refuses to write down what it alone has, twice; between, another write has begun to wait for that. It is
/// answered all the same.
#[test]
fn a_refusal_does_not_strand_a_write_that_waits_for_the_secondary_to_be_relied_on() {
    let mut h = H::in_step();
    h.policy = Box::new(|op| Some(if is_data(op) || is_metadata(op) { Err(Errno::EIO) } else { Ok(()) }));
    for (id, extent) in [(1, 7), (2, 9)] {
        h.w(id, extent);
    }
    h.serve_all(stored_and_not_read);
    let marks: Vec<u64> = h
        .sent
        .iter()
        .filter_map(|(_, message)| match message {
            Message::Mark(Mark { seq, kind: MarkKind::Stale { .. } }) => Some(*seq),
            _ => None,
        })
        .collect();
    assert_eq!(marks.len(), 2, "{:?}", h.sent);
    let refuse = |h: &mut H, seq: u64| {
        h.serve_all(|message| {
            matches!(message, Message::Mark(mark) if mark.seq == seq).then_some(Some(Errno::EIO))
        });
    };
    refuse(&mut h, marks[0]);
    h.w(3, 11);
    h.serve_all(|message| is(Command::Write)(message).then_some(None));
    h.serve_one(Command::Flush);
    refuse(&mut h, marks[1]);
    for _ in 0..3 {
        h.serve_all(|message| match message {
            Message::Mark(_) => Some(Some(Errno::EIO)),
            message => stored_and_not_read(message),
        });
        h.tick(1);
    }
    assert_eq!([1, 2, 3].map(|id| h.result(id)), [1; 3].map(|_| Some(Err(Errno::EIO))));
}

/// The secondary's disk is a clone of ours, so that its count is ours and not what we know of its: what it would write down
/// would not make it the source after a restart. Until the nodes are equal, what our disk fails has failed.
#[test]
fn a_clone_is_not_relied_on_before_the_nodes_are_equal() {
    let mut h = H::new(24, 1, Extension::default(), &[], 5, 3, 190);
    h.handshake_first(Extensions::ALL);
    h.answer(3, 190, SyncSource::Primary, Some(vec![0xff; 512]));
    let copied = |message: &Message| (is(Command::Write)(message) || says_start(message)).then_some(None);
    h.serve_all(copied);
    assert_eq!(h.metadata().remotecnt, 190);
    h.policy = Box::new(|_| Some(Err(Errno::EIO)));
    h.w(1, 7);
    let mut told = false;
    h.serve_all(|message| {
        told |= tells_stale(message);
        Some(None)
    });
    assert!(!told && h.result(1) == Some(Err(Errno::EIO)), "{:?}", h.result(1));
}

/// S1: a worker that dies then is replaced by one that knows: it begins without the disk. Once all is copied back, the disk
/// counts again.
#[test]
fn what_only_the_secondary_remembers_the_driver_remembers_too() {
    let mut h = known_to_the_secondary_alone();
    let mut next = H::detached(h.detached_at_last().unwrap());
    next.handshake_first(Extensions::ALL);
    next.answer(2, 1, SyncSource::Secondary, Some(vec![0xff; 512]));
    next.req(2, Op::Read { offset: 7 * u64::from(ES), length: 512 });
    next.serve_all(|_| Some(None));
    assert_eq!(next.result(2), Some(Ok(Some(Buffer::from(vec![0x55; 512])))), "not what our disk has");
    assert!(!h.other.contains(&Action::Attached));
    h.policy = Box::new(|_| Some(Ok(())));
    for _ in 0..3 {
        h.tick(10);
        h.serve_all(|_| Some(None));
    }
    assert!(h.p.is_in_step() && h.other.contains(&Action::Attached), "{:?}", h.p.status());
}

/// Our disk fails once more while the nodes agree that they are equal: a worker that replaces this one begins from the counts
/// that they have agreed on, not from those of before.
#[test]
fn what_the_driver_remembers_is_as_new_as_what_the_nodes_have_agreed_on() {
    let mut h = known_to_the_secondary_alone();
    let before = h.detached_at_last().map(|metadata| (metadata.localcnt, metadata.remotecnt));
    h.policy = Box::new(|_| Some(Ok(())));
    let agrees =
        |message: &Message| matches!(message, Message::Mark(Mark { kind: MarkKind::SyncDone { .. }, .. }));
    while !h.sent.iter().any(|(_, message)| agrees(message)) {
        assert!(h.t < Duration::from_secs(60), "{:?}", h.sent);
        h.serve_all(|message| (!agrees(message)).then_some(None));
        h.tick(1);
    }
    h.policy = Box::new(|_| Some(Err(Errno::EIO)));
    h.w(2, 9);
    h.serve_all(|_| Some(None));
    assert!(h.p.status().facts.detached);
    let counts = h.detached_at_last().map(|metadata| (metadata.localcnt, metadata.remotecnt));
    assert_eq!((before, counts), (Some((1, 1)), Some((1, 2))));
}

/// Until then every write is flushed there, and no more from then on: it rests on both nodes.
#[test]
fn writes_rest_on_both_nodes_again_once_all_is_copied_back() {
    let mut h = known_to_the_secondary_alone();
    h.policy = Box::new(|_| Some(Ok(())));
    for (id, equal) in [(2, false), (3, true)] {
        assert_eq!(h.p.is_in_step(), equal);
        h.w(id, 9);
        h.serve_all(|message| is(Command::Write)(message).then_some(None));
        assert_eq!(h.result(id), equal.then_some(Ok(None)));
        for _ in 0..3 {
            h.serve_all(|_| Some(None));
            h.tick(10);
        }
    }
}

/// ... and if the worker ends as planned instead, its exit status says that the data here is out of date. New addresses
/// alone do not end it.
#[test]
fn a_node_that_cannot_write_down_what_it_misses_says_so_at_the_end() {
    for reload in [true, false] {
        let mut h = known_to_the_secondary_alone();
        h.p.handle_lost(h.t, "gone");
        h.pump();
        if reload {
            h.p.handle_reload(h.t, Settings { peer: "other".into(), ..H::settings() }, true);
        } else {
            h.p.handle_stop(h.t);
        }
        h.pump();
        h.tick(1);
        assert_eq!(h.exit(), (!reload).then_some(EXIT_STALE));
    }
}

/// A disk that was given up takes its map but not its metadata, or the other way round: it stays given up.
#[test]
fn a_disk_that_cannot_be_written_in_part_stays_given_up() {
    for fails in [is_map as fn(&DiskOp) -> bool, is_metadata] {
        let mut h = H::in_step();
        h.policy = Box::new(|_| Some(Err(Errno::EIO)));
        h.w(1, 9);
        h.serve_all(|_| Some(None));
        assert!(h.p.status().facts.detached);
        h.policy = Box::new(move |op| Some(if fails(op) { Err(Errno::EIO) } else { Ok(()) }));
        for _ in 0..5 {
            h.tick(10);
            h.serve_all(|_| Some(None));
        }
        assert!(!h.other.contains(&Action::Attached));
        // Then both can be written: all of the map is, before the disk is in use again.
        let seen = std::rc::Rc::new(std::cell::RefCell::new(Vec::new()));
        let log = seen.clone();
        h.policy = Box::new(move |op| {
            if is_map(op) || is_metadata(op) {
                log.borrow_mut().push(op.clone());
            }
            Some(Ok(()))
        });
        for _ in 0..70 {
            h.tick(10);
            h.serve_all(|_| Some(None));
        }
        assert!(h.other.contains(&Action::Attached));
        let full = |op: &DiskOp| matches!(op, DiskOp::Write { data, .. } if data[..3] == [0xff; 3]);
        let seen = seen.borrow();
        let map = seen.iter().position(|op| is_map(op) && full(op));
        let metadata = seen.iter().position(is_metadata);
        assert!(map.is_some() && map < metadata, "{map:?} {metadata:?}");
    }
}

/// There is no room to write down that the secondary alone has a write, which therefore fails: the copies differ, and the
/// range is synchronised.
#[test]
fn what_there_was_no_room_for_is_synchronised() {
    let mut h = H::new(200, 1, Extension::default(), &[], 5, 3, 3);
    h.handshake_first(Extensions::ALL);
    h.answer(3, 3, SyncSource::Primary, None);
    h.serve_all(|_| Some(None));
    let lacks = |m: &Message| matches!(m, Message::Request(r) if r.offset >= 199 * u64::from(ES));
    let serve = |m: &Message| match m {
        m if is(Command::Read)(m) => None,
        m if is(Command::Write)(m) && lacks(m) => Some(Some(Errno::EIO)),
        m if is(Command::Write)(m) && matches!(m, Message::Request(r) if r.length > 512) => None,
        _ => Some(None),
    };
    h.w(1, 199);
    h.serve_all(serve);
    h.policy = Box::new(|op| Some(if is_data(op) { Err(Errno::EIO) } else { Ok(()) }));
    let room = hast_format::extension::STALE_RUNS as u64;
    for at in 0..room + 3 {
        h.w(2 + at, 2 * at);
        h.serve_all(serve);
        assert_eq!(h.result(2 + at), Some(if at < room { Ok(None) } else { Err(Errno::EIO) }), "write {at}");
    }
    let facts = h.p.status().facts;
    assert_eq!(facts.stale_bytes, room * u64::from(ES));
    assert_eq!(facts.to_synchronise_bytes, (room + 4) * u64::from(ES));
}

fn stale_mark(seq: u64, extent: u64) -> Message {
    let offset = extent * u64::from(ES);
    Message::Mark(Mark { seq, kind: MarkKind::Stale { offset, length: u64::from(ES) } })
}

/// What the primary's disk cannot remember the secondary does: the extent is in its map, durably, its count has risen, and
/// the map outlives what the primary asks for next.
#[test]
fn a_secondary_remembers_what_the_primary_misses() {
    let mut s = S::new(Extension::default(), &[]);
    s.run();
    let counted = |s: &S| Metadata::read(&s.disk).unwrap().metadata.localcnt;
    let before = counted(&s);
    s.frame(stale_mark(1, 3));
    s.run();
    assert_eq!(s.answer(1), Some(Ok(())));
    assert_eq!((s.disk[4096], counted(&s)), (8, before + 1));
    s.frame(write_of(2, 5));
    s.run();
    assert_eq!(s.disk[4096], 8, "the primary does not have it");

    let mut s = S::new(Extension::default(), &[]);
    s.run();
    s.frame(stale_mark(1, 3));
    s.step(s.at(|op| matches!(op, DiskOp::Write { .. })));
    s.fail(s.at(|op| *op == DiskOp::Flush));
    s.run();
    assert_eq!((s.answer(1), counted(&s)), (Some(Err(Errno::EIO)), before));
}

/// The primary has taken the secondary's map over, durably, when it asks for something or marks: then the secondary clears
/// it. That the primary's own copy is out of date does not say that.
#[test]
fn a_secondary_keeps_its_map_until_the_primary_has_it() {
    let start = Message::Mark(Mark { seq: 1, kind: MarkKind::SyncStart });
    for (message, left) in [(stale_mark(1, 3), 0b1000_1000), (start, 0), (write_of(1, 5), 0)] {
        let mut s = S::new(Extension::default(), &[7]);
        s.run();
        s.frame(Message::Keepalive);
        s.run();
        assert_eq!(s.disk[4096], 0b1000_0000);
        let shown = format!("{message:?}");
        s.frame(message);
        s.run();
        assert_eq!((s.answer(1), s.disk[4096]), (Some(Ok(())), left), "{shown}");
    }
}

/// A flush has failed and dropped something of which the primary has not heard yet: the secondary does not let itself be
/// called up to date before it has.
#[test]
fn a_secondary_in_doubt_is_not_up_to_date_before_the_primary_has_heard() {
    let mut s = S::flushing_for_a_mark();
    s.fail(s.at(|op| *op == DiskOp::Flush));
    s.run();
    let failures =
        s.sent.iter().filter(|m| matches!(m, Message::Reply(Reply { error: Some(_), .. }))).count();
    let done = |seq, failures| {
        Message::Mark(Mark { seq, kind: MarkKind::SyncDone { localcnt: 1, failures: Some(failures) } })
    };
    s.frame(done(3, failures as u64));
    s.run();
    assert_eq!(s.answer(3), Some(Err(Errno::EIO)));
    assert!(Metadata::read(&s.disk).unwrap().metadata.extension.mark.is_some());
    s.frame(flush_of(4));
    s.run();
    assert_eq!(s.answer(4), Some(Err(Errno::EIO)));
    s.frame(done(5, failures as u64 + 2));
    s.run();
    assert_eq!(s.answer(5), Some(Ok(())));
    assert_eq!(Metadata::read(&s.disk).unwrap().metadata.extension.mark, None);
}
