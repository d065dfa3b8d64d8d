//! What `hastctl status` is told of a primary and of a secondary, and what its driver asks.

use super::*;
use hast_format::extension::Mark as OutOfDate;
use hast_net::control::{Facts, Statistics};

fn out_of_date() -> Extension {
    Extension { generation: 3, mark: Some(OutOfDate { since: 77, by: "s".into() }), ..Extension::default() }
}

fn says_out_of_date(facts: &Facts) -> bool {
    facts.inconsistent_since == Some(77) && facts.inconsistent_by == "s"
}

#[test]
fn both_roles_say_since_when_they_are_out_of_date_and_by_whom() {
    let mut h = H::new(24, 1, Extension::default(), &[], 5, 1, 1);
    assert_eq!(h.p.status().facts.inconsistent_since, None);
    assert!(h.p.status().facts.inconsistent_by.is_empty());
    h = sessions::started(out_of_date(), false);
    assert!(says_out_of_date(&h.p.status().facts), "{:?}", h.p.status());
    let secondary = sessions::secondary_with(out_of_date(), Extensions::ALL);
    assert!(says_out_of_date(&secondary.status().facts), "{:?}", secondary.status());
    let secondary = sessions::secondary_with(Extension::default(), Extensions::ALL);
    assert_eq!(secondary.status().facts.inconsistent_since, None);
    assert!(secondary.status().facts.inconsistent_by.is_empty());
}

/// What waits in a device that was left behind is not served before the nodes have met, nor by one that is out of date.
#[test]
fn a_primary_says_whether_it_serves_and_whether_it_is_out_of_date() {
    let waiting = H::new(24, 1, Extension::default(), &[], 5, 1, 1);
    assert!(!waiting.p.is_serving() && !waiting.p.is_target());
    let equal = H::in_step();
    assert!(equal.p.is_serving() && !equal.p.is_target());
    let behind = H::target(&[2]);
    assert!(behind.p.is_serving() && behind.p.is_target());
}

#[test]
fn both_roles_say_whether_the_other_node_is_an_original() {
    let h = H::new(24, 1, Extension::default(), &[], 5, 1, 1);
    assert_eq!(h.p.status().facts.peer_is_original, None, "nobody is connected");
    for (ext, original) in [(Extensions::ALL, false), (Extensions::NONE, true)] {
        let mut h = H::new(24, 1, Extension::default(), &[], 5, 1, 1);
        h.handshake_first(ext);
        h.answer(1, 1, SyncSource::Primary, Some(vec![0; 512]));
        assert_eq!(h.p.status().facts.peer_is_original, Some(original), "{ext:?}");
        let secondary = sessions::secondary_with(Extension::default(), ext);
        assert_eq!(secondary.status().facts.peer_is_original, Some(original), "{ext:?}");
    }
}

#[test]
fn a_primary_says_how_much_is_left_to_synchronise() {
    let mut h = H::new(24, 1, Extension::default(), &[2, 3], 5, 1, 1);
    h.handshake_first(Extensions::ALL);
    h.answer(1, 1, SyncSource::Primary, Some(vec![0; 512]));
    h.serve_all(|message| is_mark(message).then_some(None));
    let facts = h.p.status().facts;
    assert!(facts.synchronising, "{facts:?}");
    assert_eq!(facts.to_synchronise_bytes, 2 * u64::from(ES));
    h.serve_all(|_| Some(None));
    let facts = h.p.status().facts;
    assert!(!facts.synchronising && facts.to_synchronise_bytes == 0, "{facts:?}");
}

/// What the disk fails of the device's requests, and of the map.
fn fails(op: &DiskOp) -> bool {
    matches!(op, DiskOp::Read { .. } | DiskOp::Delete { .. }) || is_data(op)
}

#[test]
fn a_primary_counts_what_it_is_asked_and_what_its_disk_fails() {
    let mut h = alone();
    let read = || Op::Read { offset: 0, length: 512 };
    let delete = || Op::Delete { offset: 3 * u64::from(ES), length: 512 };
    let mut id = 0;
    let mut ask = |h: &mut H, ops: Vec<Op>| {
        for op in ops {
            id += 1;
            h.req(id, op);
        }
    };
    let all = |h: &H| Statistics { idle_queue: 0, ..h.p.status().statistics };
    ask(&mut h, vec![read(), read(), whole(3, 1), whole(3, 1), whole(3, 1), delete(), delete()]);
    ask(&mut h, vec![Op::Flush; 4]);
    let mut expected = Statistics {
        reads: 2,
        writes: 3,
        deletes: 2,
        flushes: 4,
        activemap_updates: 1,
        ..Statistics::default()
    };
    assert_eq!(all(&h), expected);
    h.policy = Box::new(|op| Some(if fails(op) { Err(Errno::EIO) } else { Ok(()) }));
    ask(&mut h, vec![read(), read(), whole(3, 1), whole(3, 1), whole(3, 1), delete()]);
    (expected.reads, expected.writes, expected.deletes) = (4, 6, 3);
    (expected.read_errors, expected.write_errors, expected.delete_errors) = (2, 3, 1);
    assert_eq!(all(&h), expected);
    h.policy = Box::new(|op| Some(if *op == DiskOp::Flush { Err(Errno::EIO) } else { Ok(()) }));
    ask(&mut h, vec![Op::Flush; 2]);
    (expected.flushes, expected.flush_errors) = (6, 2);
    assert_eq!(all(&h), expected);
}

#[test]
fn a_primary_counts_what_its_disk_fails_of_the_map() {
    for (flush, errors) in [(false, (1, 0)), (true, (0, 1))] {
        let mut h = alone();
        h.policy =
            Box::new(move |op| Some(if (*op == DiskOp::Flush) == flush { Err(Errno::EIO) } else { Ok(()) }));
        h.w(1, 3);
        assert_eq!(h.result(1), Some(Err(Errno::EIO)));
        let all = h.p.status().statistics;
        assert_eq!((all.write_errors, all.flush_errors), errors);
        assert_eq!((all.writes, all.activemap_updates), (1, 1));
    }
}

/// What is under way is shown where it waits.
#[test]
fn a_primary_counts_what_is_under_way() {
    let mut h = H::in_step();
    h.policy = Box::new(|op| (!is_data(op)).then_some(Ok(())));
    h.w(1, 3);
    h.w(2, 4);
    h.w(3, 3); // behind the first
    let all = h.p.status().statistics;
    assert_eq!((all.idle_queue, all.local_queue, all.recv_queue), (255 - 3, 2, 2));
    h.policy = Box::new(|_| Some(Ok(())));
    h.pump();
    h.serve_all(|_| Some(None));
    let all = h.p.status().statistics;
    assert_eq!((all.idle_queue, all.local_queue, all.recv_queue), (255, 0, 0));
}

/// What a synchronisation cannot read or write here is counted with what the device cannot.
#[test]
fn what_a_synchronisation_cannot_read_or_write_here_is_counted() {
    let run = hast_format::extension::Run { first: 2, count: 1 };
    let stale = Extension { generation: 1, stale: vec![run], ..Extension::default() };
    for (extension, errors) in [(Extension::default(), (1, 0)), (stale, (0, 1))] {
        let mut h = H::new(24, 1, extension, &[2], 5, 1, 1);
        h.handshake_first(Extensions::ALL);
        h.policy = Box::new(|op| {
            let fails = is_data(op) || matches!(op, DiskOp::Read { .. });
            Some(if fails { Err(Errno::EIO) } else { Ok(()) })
        });
        h.answer(1, 1, SyncSource::Primary, Some(vec![0; 512]));
        h.serve_all(|_| Some(None));
        let statistics = h.p.status().statistics;
        assert_eq!((statistics.read_errors, statistics.write_errors), errors);
    }
}

/// Writes of the map are counted, and those that fail with the device's.
#[test]
fn what_becomes_of_the_map_is_counted() {
    let map = |op: &DiskOp| matches!(op, DiskOp::Write { offset, .. } if (4096..DATA).contains(offset));
    for (fails_written, errors) in [(true, (1, 0)), (false, (0, 1))] {
        let mut h = alone();
        let before = h.p.status().statistics;
        let mut once = true;
        h.policy = Box::new(move |op| {
            let fails = if fails_written { map(op) } else { *op == DiskOp::Flush };
            Some(if fails && std::mem::take(&mut once) { Err(Errno::EIO) } else { Ok(()) })
        });
        h.w(1, 3);
        let statistics = h.p.status().statistics;
        assert_eq!(statistics.activemap_updates, before.activemap_updates + 1);
        assert_eq!((statistics.write_errors, statistics.flush_errors), errors);
        h.tick(1);
        assert_eq!(
            h.p.status().statistics.activemap_updates,
            before.activemap_updates + 2,
            "it is tried again"
        );
    }
}

/// The worker says to hastd that the role is taken once that is durable.
#[test]
fn a_primary_has_begun_once_it_is_durable_that_it_is_one() {
    let mut h = H::new_with(
        24,
        1,
        Extension::default(),
        &[],
        0,
        0,
        0,
        Box::new(|op| (!is_metadata(op)).then_some(Ok(()))),
    );
    assert!(!h.p.has_begun(), "the metadata does not say it yet");
    h.policy = Box::new(|_| Some(Ok(())));
    h.pump();
    assert!(h.p.has_begun());
}

/// A payload is taken in while it is no longer than what can be meant: twice our map, for a provider that is larger
/// than ours, and never less than a mebibyte.
#[test]
fn a_primary_takes_in_payloads_as_long_as_the_maps_may_be() {
    let limit = |extents: u64| {
        let layout = Layout::create(4096 + extents / 8 + extents * 512, 512, 512).unwrap();
        let metadata = metadata_on(&layout, Extension::default());
        let map = vec![0; layout.map_bytes() as usize];
        let map_bytes = map.len() as u32;
        (Primary::new(H::start(metadata, layout, map), Duration::ZERO).payload_limit(), map_bytes)
    };
    assert_eq!(limit(1 << 12).0, 1 << 20);
    let (limit, map_bytes) = limit(1 << 23);
    assert!(map_bytes >= 1 << 20);
    assert_eq!(limit, 2 * map_bytes);
}

#[test]
fn a_primary_says_that_the_nodes_were_written_apart_until_they_are_connected() {
    let mut h = H::new(24, 1, Extension::default(), &[], 5, 1, 1);
    h.handshake_first(Extensions::ALL);
    assert!(!h.p.status().facts.split_brain);
    h.frame(Side::Out, split_brain());
    assert!(h.p.status().facts.split_brain);
    h.tick(2);
    h.handshake_first(Extensions::ALL);
    assert!(h.p.status().facts.split_brain, "the secondary has not answered");
    h.answer(1, 1, SyncSource::Primary, Some(vec![0; 512]));
    assert!(!h.p.status().facts.split_brain);
}

#[test]
fn a_primary_says_how_many_requests_the_secondary_has_not_answered() {
    let mut h = H::in_step();
    let waiting = |h: &H| h.p.status().statistics.recv_queue;
    assert_eq!(waiting(&h), 0);
    h.w(1, 3);
    h.w(2, 4);
    assert_eq!(waiting(&h), 2);
    h.serve_one(Command::Write);
    assert_eq!(waiting(&h), 1);
}

/// What a secondary was asked for, and what has failed: reads, writes, deletes and flushes.
fn counted(s: &S) -> ([u64; 4], [u64; 4]) {
    let all = s.s.status().statistics;
    (
        [all.reads, all.writes, all.deletes, all.flushes],
        [all.read_errors, all.write_errors, all.delete_errors, all.flush_errors],
    )
}

/// The primary asks for this, and all that the disk is asked for ends like that.
fn ends(s: &mut S, command: Command, result: Result<(), Errno>) {
    let data = (command == Command::Write).then(|| Buffer::from(vec![1; 512]));
    let length = if command == Command::Flush { 0 } else { 512 };
    s.frame(Message::Request(Request { command, seq: 9, offset: 0, length, memsync: false, data }));
    match result {
        Ok(()) => s.run(),
        Err(error) => {
            let (id, _) = s.ops.remove(0);
            s.s.handle_disk(s.t, id, Err(error));
            s.run();
        }
    }
}

#[test]
fn a_secondary_counts_what_it_was_asked_for_and_what_of_that_failed() {
    let mut s = S::new(Extension::default(), &[]);
    s.run();
    assert_eq!(counted(&s), ([0; 4], [0; 4]));
    let commands = [Command::Read, Command::Write, Command::Delete, Command::Flush];
    for (times, command) in (1..).zip(commands) {
        for _ in 0..times {
            ends(&mut s, command, Ok(()));
        }
        for _ in 0..times {
            ends(&mut s, command, Err(Errno::EOPNOTSUPP));
        }
    }
    assert_eq!(counted(&s), ([2, 4, 6, 8], [1, 2, 3, 0]), "a disk without a cache need not flush");
    ends(&mut s, Command::Flush, Err(Errno::EIO));
    assert_eq!(counted(&s), ([2, 4, 6, 9], [1, 2, 3, 1]));
}

/// What fails for the map counts with what fails for the primary.
#[test]
fn a_secondary_counts_what_failed_for_its_map() {
    let mut s = S::new(Extension::default(), &[7]);
    s.run();
    s.frame(flush_of(1));
    s.fail(s.at(is_map));
    s.run();
    assert_eq!(counted(&s), ([0, 0, 0, 1], [0, 1, 0, 0]), "it could not be cleared");

    let mut s = S::under(Extensions::NONE, Extension::default(), &[]);
    s.run();
    s.write(1, 3);
    s.fail(s.at(is_map));
    s.run();
    assert_eq!(s.answer(1), Some(Ok(())), "it was written again");
    assert_eq!(counted(&s), ([0, 1, 0, 0], [0, 1, 0, 0]));
    s.write(2, 5);
    s.step(s.at(is_map));
    s.fail(s.at(|op| *op == DiskOp::Flush));
    let (_, failed) = counted(&s);
    assert_eq!(failed, [0, 1, 0, 1], "the flush of the map");
    s.run();
    assert_eq!(s.answer(2), Some(Err(Errno::EIO)), "a failed flush may have dropped it");
    s.t += Duration::from_secs(2);
    s.s.handle_timeout(s.t);
    s.poll();
    s.fail(s.at(|op| *op == DiskOp::Flush));
    let (_, failed) = counted(&s);
    assert_eq!(failed, [0, 2, 0, 2], "its housekeeping");
}
