//! Sessions that end early or bring what they should not: refusals, peers that break the rules, disks that fail
//! before anything is served, ends that wait for somebody.

use super::*;
use hast_net::control::ConnectionState;

fn closed(h: &H) -> bool {
    h.other.contains(&Action::Close)
}

fn exits(h: &H, code: i32) -> bool {
    h.other.contains(&Action::Exit(code))
}

fn first(h: &mut H, nv: &[u8]) {
    h.p.handle_connected(h.t, Side::Out);
    h.pump();
    h.p.handle_frame(h.t, Side::Out, Frame { version: 2, nv: nv.to_vec().into(), payload: None });
    h.pump();
}

/// A primary of 24 extents that has been in step once.
fn known() -> H {
    H::new(24, 1, Extension::default(), &[], 5, 1, 1)
}

/// One that has been asked for its second connection and waits for the answer.
fn introduced() -> H {
    let mut h = known();
    h.handshake_first(Extensions::ALL);
    h.other.clear();
    h
}

fn second(h: &mut H, change: impl FnOnce(&mut SecondAnswer), map: Option<usize>) {
    let layout = Layout::create(h.disk.len() as u64 - 4096, 512, ES).unwrap();
    let mut answer = SecondAnswer {
        datasize: layout.datasize(),
        extentsize: ES,
        localcnt: 1,
        remotecnt: 1,
        virgin: false,
        syncsrc: SyncSource::Primary,
        mapsize: map.map_or(0, |bytes| bytes as u32),
        boot: Some([2; 16]),
        peer_timeout: None,
        met: None,
        zero_deletes: false,
    };
    change(&mut answer);
    h.frame(Side::Out, Message::SecondAnswer(answer, map.map(|bytes| Buffer::from(vec![0; bytes]))));
}

#[test]
fn a_node_that_is_not_yet_secondary_is_waited_for() {
    let mut h = known();
    let refusal = Refusal { errmsg: "Remote node acts as init.".into(), wait: true };
    let nv = refusal.encode().as_bytes().to_vec();
    h.w(1, 3);
    let mut attempts = 0;
    while h.result(1).is_none() {
        first(&mut h, &nv);
        attempts += 1;
        assert!(attempts < 100);
        assert!(closed(&h));
        h.other.clear();
        h.tick(2);
    }
    // It served alone after a time; until then the write was kept.
    assert!(attempts > 5, "{attempts}");
    assert_eq!(h.result(1), Some(Ok(None)));
    // From then on it is one attempt like any other.
    h.tick(30);
    h.other.clear();
    first(&mut h, &nv);
    assert!(closed(&h));
    h.w(2, 4);
    assert_eq!(h.result(2), Some(Ok(None)));
}

#[test]
fn a_node_that_refuses_is_not_waited_for() {
    let mut h = known();
    h.w(1, 3);
    first(&mut h, Refusal::new("Resource not configured").encode().as_bytes());
    assert!(closed(&h));
    assert_eq!(h.result(1), Some(Ok(None)), "served alone at once");
}

#[test]
fn what_is_no_answer_ends_the_handshake() {
    for garbage in [&b"\xff\x02\x01\0\0\0a\0"[..], &[], &[1]] {
        let mut h = known();
        first(&mut h, garbage);
        assert!(closed(&h), "{garbage:?}");
    }
    // The second answer belongs on the first connection, where only refusals come on the other.
    let mut h = introduced();
    let layout = Layout::create(h.disk.len() as u64 - 4096, 512, ES).unwrap();
    let answer = SecondAnswer {
        datasize: layout.datasize(),
        extentsize: ES,
        localcnt: 1,
        remotecnt: 1,
        virgin: false,
        syncsrc: SyncSource::Primary,
        mapsize: 0,
        boot: None,
        peer_timeout: None,
        met: None,
        zero_deletes: false,
    };
    h.frame(Side::In, Message::SecondAnswer(answer, None));
    assert!(closed(&h) && !h.p.is_in_step());
}

#[test]
fn nodes_of_other_sizes_are_not_synchronised() {
    let mut h = introduced();
    second(&mut h, |answer| answer.datasize += 512, Some(512));
    assert!(closed(&h) && !h.p.is_in_step(), "data size");
    let mut h = introduced();
    second(&mut h, |answer| answer.extentsize *= 2, Some(512));
    assert!(closed(&h) && !h.p.is_in_step(), "extent size");
    let mut h = introduced();
    second(&mut h, |_| (), Some(4));
    assert!(closed(&h) && !h.p.is_in_step(), "a map that lacks extents");
    let mut h = H::new(200, 1, Extension::default(), &[], 5, 1, 1);
    h.handshake_first(Extensions::ALL);
    second(&mut h, |_| (), Some(24));
    assert!(closed(&h) && !h.p.is_in_step(), "a map that lacks the last of many");
    let mut h = introduced();
    second(&mut h, |_| (), Some(8));
    h.serve_all(|_| Some(None));
    assert!(!closed(&h) && h.p.is_in_step(), "a map without room for more");
    let mut h = introduced();
    second(&mut h, |_| (), Some(512));
    h.serve_all(|_| Some(None));
    assert!(!closed(&h) && h.p.is_in_step(), "and these are the sizes");
}

#[test]
fn a_split_brain_is_told_to_the_administrator() {
    let mut h = introduced();
    h.frame(Side::Out, split_brain());
    assert!(closed(&h));
    assert!(h.other.contains(&Action::Event(Event::SplitBrain)));
    assert!(!h.p.is_in_step());
}

#[test]
fn answers_to_what_was_not_asked_end_the_connection() {
    let mut h = H::in_step();
    h.reply(99, None, None);
    assert!(closed(&h), "an unknown number");

    let mut h = H::in_step();
    h.disk_fails_reads();
    h.req(1, Op::Read { offset: 0, length: 512 });
    let seq = h.asked(Command::Read);
    h.reply(seq, None, Some(Buffer::from(vec![1; 100])));
    assert!(closed(&h), "a read that is too short");

    let mut h = H::in_step();
    h.frame(Side::Out, Message::Reply(Reply { seq: 1, received: false, error: None, data: None }));
    assert!(closed(&h), "on the wrong connection");
}

impl H {
    fn disk_fails_reads(&mut self) {
        self.policy =
            Box::new(|op| Some(if matches!(op, DiskOp::Read { .. }) { Err(Errno::EIO) } else { Ok(()) }));
    }

    /// The number of the last such request that was sent.
    fn asked(&self, command: Command) -> u64 {
        let seq = self.sent.iter().rev().find_map(|(_, message)| match message {
            Message::Request(request) if request.command == command => Some(request.seq),
            _ => None,
        });
        seq.expect("it was asked")
    }
}

#[test]
fn a_read_that_fails_here_is_read_there_and_repaired() {
    let mut h = H::in_step();
    h.disk_fails_reads();
    h.req(1, Op::Read { offset: 8192, length: 512 });
    let seq = h.asked(Command::Read);
    h.reply(seq, None, Some(Buffer::from(vec![0x55; 512])));
    assert_eq!(h.result(1), Some(Ok(Some(Buffer::from(vec![0x55; 512])))));
    let at = (DATA + 8192) as usize;
    assert_eq!(h.disk[at..at + 512], [0x55; 512], "written back");
}

#[test]
fn a_read_that_is_short_here_is_read_there() {
    let mut h = H::in_step();
    h.policy = Box::new(|op| (!matches!(op, DiskOp::Read { .. })).then_some(Ok(())));
    h.req(1, Op::Read { offset: 8192, length: 512 });
    let (id, _) = h.ops.remove(0);
    h.p.handle_disk(h.t, id, Ok(Some(Buffer::from(vec![1; 100]))));
    h.pump();
    assert_eq!(h.result(1), None);
    let seq = h.asked(Command::Read);
    h.reply(seq, None, Some(Buffer::from(vec![0x55; 512])));
    assert_eq!(h.result(1), Some(Ok(Some(Buffer::from(vec![0x55; 512])))));
}

/// L3: there is room for so many runs of stale extents; one more, and the whole disk counts as stale.
#[test]
fn a_disk_that_fails_too_often_is_read_from_no_more() {
    let mut h = H::in_step_with(100);
    h.policy = Box::new(|op| Some(if is_data(op) { Err(Errno::EIO) } else { Ok(()) }));
    let only_writes = |message: &Message| match message {
        Message::Request(Request { command: Command::Read, .. }) => None,
        _ => Some(None),
    };
    for n in 0..40 {
        assert_eq!(h.p.status().facts.detached, n > 32, "after {n} runs");
        h.w(n, 2 * n);
        h.serve_all(only_writes);
        assert_eq!(h.result(n), Some(Ok(None)), "the secondary has it");
    }
    let extents = |disk: &[u8]| {
        let stale = Metadata::read(disk).unwrap().metadata.extension.stale;
        stale.into_iter().flat_map(|run| run.extents()).count()
    };
    assert_eq!(extents(&h.disk), 100);
    // An extent that was never written is read there too.
    h.req(99, Op::Read { offset: 99 * u64::from(ES), length: 512 });
    let seq = h.asked(Command::Read);
    h.reply(seq, None, Some(Buffer::from(vec![0x55; 512])));
    assert_eq!(h.result(99), Some(Ok(Some(Buffer::from(vec![0x55; 512])))));
}

/// L3: however many they are, neighbouring extents need the room of one run.
#[test]
fn a_disk_that_fails_in_one_place_is_read_from_elsewhere() {
    let mut h = H::in_step_with(100);
    h.policy = Box::new(|op| Some(if is_data(op) { Err(Errno::EIO) } else { Ok(()) }));
    for n in 0..40 {
        h.w(n, 20 + n);
        h.serve_all(|message| (!is_read(message)).then_some(None));
        assert_eq!(h.result(n), Some(Ok(None)), "the secondary has it");
    }
    assert!(!h.p.status().facts.detached);
    assert_eq!(h.metadata().extension.stale, [hast_format::extension::Run { first: 20, count: 40 }]);
}

/// L3: the secondary's copy cannot stand for all of ours while it lacks something itself. What there is no room for
/// fails then.
#[test]
fn more_stale_runs_than_fit_fail_while_the_secondary_lacks_something() {
    let mut h = H::in_step_with(100);
    let lacks = |message: &Message| matches!(message, Message::Request(Request { command: Command::Write, offset, .. }) if *offset >= 99 * 4096);
    let answers = |message: &Message| match message {
        Message::Request(Request { command: Command::Read, .. }) => None,
        message if lacks(message) => Some(Some(Errno::EIO)),
        _ => Some(None),
    };
    h.w(50, 99);
    h.serve_all(answers);
    assert_eq!(h.result(50), Some(Ok(None)), "here alone");
    h.policy = Box::new(|op| Some(if is_data(op) { Err(Errno::EIO) } else { Ok(()) }));
    let room = hast_format::extension::STALE_RUNS as u64;
    for n in 0..40 {
        h.w(n, 2 * n);
        h.serve_all(answers);
        let expected = if n < room { Ok(None) } else { Err(Errno::EIO) };
        assert_eq!(h.result(n), Some(expected), "{n}");
        assert!(!h.p.status().facts.detached);
    }
    let stale = Metadata::read(&h.disk).unwrap().metadata.extension.stale;
    assert!((0..room as u32).all(|n| stale.iter().any(|run| run.extents().contains(&(2 * n)))), "{stale:?}");
    assert!(stale.iter().all(|run| !run.extents().contains(&99)), "that is right here");
}

#[test]
fn a_stop_waits_until_what_was_dropped_is_written_again() {
    let mut h = H::in_step();
    h.p.handle_lost(h.t, "gone");
    h.pump();
    h.w(1, 2);
    assert_eq!(h.result(1), Some(Ok(None)));
    // Nothing has to be written down for this one, and so nothing has flushed it.
    h.w(3, 2);
    // The flush fails, and what it may have dropped cannot be read for a while.
    let mut once = true;
    h.policy = Box::new(move |op| match op {
        DiskOp::Flush if std::mem::take(&mut once) => Some(Err(Errno::EIO)),
        DiskOp::Read { .. } => None,
        _ => Some(Ok(())),
    });
    h.req(2, Op::Flush);
    h.tick(2);
    assert!(h.ops.iter().any(|(_, op)| matches!(op, DiskOp::Read { .. })), "{:?}", h.ops);
    h.p.handle_stop(h.t);
    h.pump();
    assert!(!exits(&h, 0));
    h.policy = Box::new(|_| Some(Ok(())));
    h.pump();
    h.tick(3);
    assert!(exits(&h, 0));
}

#[test]
fn requests_are_wanted_with_and_without_the_secondary() {
    let mut h = known();
    assert!(h.p.wants_requests());
    h.p.handle_connect_failed(h.t, Side::Out, "refused");
    h.pump();
    assert!(h.p.wants_requests() && !h.p.is_in_step());
    assert!(H::in_step().p.wants_requests());
}

#[test]
fn a_stop_while_the_disk_is_flushed_at_the_start_serves_nothing() {
    let mut h = H::new_with(24, 1, Extension::default(), &[], 5, 1, 1, Box::new(|_| None));
    assert!(!h.p.has_begun());
    h.w(1, 2);
    h.p.handle_stop(h.t);
    h.pump();
    assert_eq!(h.result(1), Some(Err(Errno::ECANCELED)));
    assert!(!exits(&h, 0), "the flush is still under way");
    h.policy = Box::new(|_| Some(Ok(())));
    h.pump();
    assert!(exits(&h, 0) && !h.other.contains(&Action::Connect(Side::Out)));
}

#[test]
fn a_read_that_fails_on_both_nodes_fails() {
    let mut h = H::in_step();
    h.disk_fails_reads();
    h.req(1, Op::Read { offset: 8192, length: 512 });
    let seq = h.asked(Command::Read);
    h.reply(seq, Some(Errno::EIO), None);
    assert_eq!(h.result(1), Some(Err(Errno::EIO)));
}

#[test]
fn requests_outside_the_data_area_are_refused() {
    let mut h = H::in_step();
    let end = 24 * u64::from(ES);
    let data = |bytes: usize| Buffer::from(vec![0; bytes]);
    let refused = [
        Op::Read { offset: end, length: 512 },
        Op::Read { offset: 1, length: 512 },
        Op::Read { offset: 0, length: MAX_REQUEST + 512 },
        Op::Write { offset: end - 512, data: data(1024) },
        Op::Write { offset: 0, data: data(0) },
        Op::Write { offset: 0, data: data(MAX_REQUEST as usize + 512) },
        Op::Delete { offset: 0, length: end + 512 },
        Op::Delete { offset: u64::MAX - 511, length: 512 },
    ];
    let before = h.sent.len();
    for (id, op) in refused.into_iter().enumerate() {
        let shown = op.to_string();
        h.req(id as u64, op);
        assert_eq!(h.result(id as u64), Some(Err(Errno::EINVAL)), "{shown}");
    }
    assert_eq!(h.sent.len(), before, "the secondary hears nothing of it");
}

/// The remote node is taken out of hast.conf while it is being called.
fn without_remote() -> H {
    let mut h = known();
    h.p.handle_reload(h.t, Settings { remote: false, ..H::settings() }, true);
    h.pump();
    h.p.handle_connect_failed(h.t, Side::Out, "gone");
    h.pump();
    h
}

#[test]
fn a_primary_without_a_remote_node_serves_alone() {
    let mut h = without_remote();
    h.w(1, 2);
    assert_eq!(h.result(1), Some(Ok(None)));
    h.tick(60);
    let connects = h.other.iter().filter(|action| matches!(action, Action::Connect(_))).count();
    assert_eq!(connects, 1, "nobody is called any more");
}

/// The map could not be written, and nobody waits for it: a second later it is tried again, whatever else happens.
#[test]
fn a_map_that_could_not_be_written_is_written_a_second_later() {
    let mut h = without_remote();
    h.policy = Box::new(|op| Some(if is_map(op) { Err(Errno::EIO) } else { Ok(()) }));
    h.tick(2);
    h.w(1, 3);
    assert_eq!(h.result(1), Some(Err(Errno::EIO)));
    assert_eq!(h.p.poll_timeout(), Some(h.t + Duration::from_secs(1)));
    h.policy = Box::new(|_| Some(Ok(())));
    h.tick(1);
    assert_eq!(h.disk[4096], 1 << 3, "it was the last one in use");
}

#[test]
fn a_primary_whose_remote_node_was_taken_away_waits_for_nobody() {
    let mut h = H::in_step();
    h.p.handle_reload(h.t, Settings { remote: false, ..H::settings() }, false);
    h.pump();
    h.p.handle_lost(h.t, "gone");
    h.pump();
    assert_eq!(h.p.poll_timeout(), None, "it is not called again");
}

/// One second, and from then on twice as long each time, up to ten seconds; and again from the beginning after a
/// connection.
#[test]
fn the_more_attempts_fail_the_seldomer_they_are_made() {
    let mut h = known();
    let wait = |h: &H| h.p.poll_timeout().unwrap() - h.t;
    for seconds in [1, 2, 4, 8, 10, 10] {
        h.p.handle_connect_failed(h.t, Side::Out, "refused");
        h.pump();
        assert_eq!(wait(&h), Duration::from_secs(seconds));
        h.other.clear();
        h.tick(seconds);
        assert!(h.other.contains(&Action::Connect(Side::Out)));
    }
    h.handshake_first(Extensions::ALL);
    h.answer(1, 1, SyncSource::Primary, Some(vec![0; 512]));
    h.serve_all(|_| Some(None));
    h.p.handle_lost(h.t, "gone");
    h.pump();
    assert_eq!(wait(&h), Duration::from_secs(1));
}

/// The supervisor gives up after `timeout`, and says so; a while later it counts as dead itself.
#[test]
fn a_connection_of_which_nobody_says_anything_is_given_up_after_the_timeout() {
    let mut h = known();
    h.other.clear();
    h.tick(24);
    assert!(!closed(&h));
    h.tick(1);
    assert!(closed(&h));
    h.tick(1);
    assert!(h.other.contains(&Action::Connect(Side::Out)));
}

#[test]
fn only_what_was_connected_is_disconnected() {
    let said = |h: &H| h.other.iter().filter(|action| **action == Action::Event(Event::Disconnect)).count();
    let mut h = known();
    h.p.handle_connect_failed(h.t, Side::Out, "refused");
    h.pump();
    let mut refused = introduced();
    refused.p.handle_lost(refused.t, "gone");
    refused.pump();
    assert_eq!((said(&h), said(&refused)), (0, 0));
    let mut h = H::in_step();
    h.p.handle_lost(h.t, "gone");
    h.pump();
    assert_eq!(said(&h), 1);
    let mut ended = H::in_step();
    ended.p.handle_stop(ended.t);
    ended.pump();
    ended.serve_all(|_| Some(None));
    assert!(exits(&ended, 0));
    let before = said(&ended);
    ended.p.handle_lost(ended.t, "over");
    ended.pump();
    assert_eq!(said(&ended), before, "it has ended already");
}

/// What the secondary said cannot be written down: the connection ends, and what has waited for it goes on without.
#[test]
fn a_handshake_that_cannot_be_written_down_has_failed() {
    let is_map = |op: &DiskOp| matches!(op, DiskOp::Write { .. }) && !is_metadata(op) && !is_data(op);
    for fails in [is_map, is_metadata] {
        let mut h = introduced();
        h.w(1, 3);
        let mut once = true;
        h.policy = Box::new(move |op| {
            Some(if fails(op) && std::mem::take(&mut once) { Err(Errno::EIO) } else { Ok(()) })
        });
        h.answer(1, 1, SyncSource::Primary, Some(vec![0x10; 512]));
        assert!(closed(&h));
        h.tick(1);
        assert_eq!(h.result(1), Some(Ok(None)), "alone");
        h.handshake_first(Extensions::ALL);
        h.answer(1, 1, SyncSource::Primary, Some(vec![0x10; 512]));
        h.serve_all(|_| Some(None));
        assert!(h.p.is_in_step());
    }
}

/// Version 1 knows no memsync: the secondary answers such a write once it has stored it.
#[test]
fn memsync_is_asked_of_a_secondary_that_knows_it() {
    for version in [1, 2] {
        let mut h = known();
        h.set_mode(Replication::Memsync);
        let answer = FirstAnswer { version, token: [9; 16], ext: Extensions::NONE };
        first(&mut h, answer.encode().as_bytes());
        h.p.handle_connected(h.t, Side::In);
        h.pump();
        h.answer(1, 1, SyncSource::Primary, Some(vec![0; 512]));
        h.serve_all(|_| Some(None));
        h.w(1, 3);
        let asked = h.sent.iter().any(|(_, message)| {
            matches!(message, Message::Request(Request { command: Command::Write, memsync: true, .. }))
        });
        assert_eq!(asked, version == 2, "version {version}");
    }
}

/// L19: a secondary of ours hears who this node is without anything being written down first, and so does an original that
/// is known to be owed a full synchronisation: the disk may take its time.
#[test]
fn a_primary_that_has_nothing_to_write_down_says_at_once_who_it_is() {
    for (ext, owed) in [(Extensions::ALL, false), (Extensions::NONE, true)] {
        let extension = Extension { generation: 1, full_sync_owed: owed, ..Extension::default() };
        let policy = Box::new(|op: &DiskOp| (!is_metadata(op)).then_some(Ok(())));
        let mut h = H::new_with(24, 1, extension, &[], 5, 1, 1, policy);
        h.handshake_first(ext);
        assert!(matches!(h.sent.last(), Some((Side::In, Message::SecondHello(_)))), "{:?}", h.sent);
    }
}

#[test]
fn a_stop_before_anything_was_served_cancels_what_waits() {
    let mut h = known();
    h.w(1, 2);
    assert_eq!(h.result(1), None);
    h.p.handle_stop(h.t);
    h.pump();
    assert_eq!(h.result(1), Some(Err(Errno::ECANCELED)));
    assert!(exits(&h, 0));
    h.w(2, 2);
    assert_eq!(h.result(2), Some(Err(Errno::ECANCELED)), "and what comes after");
    h.p.handle_stop(h.t);
    h.pump();
    h.p.handle_lost(h.t, "over");
    h.pump();
    let ends = h.other.iter().filter(|action| matches!(action, Action::Exit(_))).count();
    assert_eq!(ends, 1, "a second stop is no second end");
}

/// C4: the change itself completes nothing on this node alone.
#[test]
fn a_stop_waits_for_the_secondary_and_not_for_ever() {
    for answered in [true, false] {
        let mut h = H::in_step();
        h.w(1, 2);
        h.p.handle_stop(h.t);
        h.pump();
        assert!(!exits(&h, 0) && h.result(1).is_none());
        if answered {
            h.serve_all(|_| Some(None));
            assert_eq!(h.result(1), Some(Ok(None)));
        } else {
            h.tick(21);
            assert!(matches!(h.result(1), Some(Err(_))), "{:?}", h.result(1));
        }
        assert!(exits(&h, 0), "{answered}");
    }
}

/// What was written lately stays in the map while more writes may come. Of a planned end, or new addresses, of nodes that
/// are in step nothing is left to copy; what only this node has, or the secondary has not flushed, is.
#[test]
fn a_planned_end_leaves_only_what_differs_in_the_map() {
    let map = |h: &H| h.disk[4096];
    for (reconnect, fails) in [(false, false), (true, false), (false, true)] {
        let mut h = H::in_step();
        h.w(1, 2);
        h.serve_all(|_| Some(None));
        h.req(2, Op::Flush);
        h.serve_all(|_| Some(None));
        assert_eq!((h.result(2), map(&h)), (Some(Ok(None)), 1 << 2), "written last");
        if fails {
            h.w(3, 3);
            h.serve_all(|_| Some(None));
        }
        if reconnect {
            h.p.handle_reload(h.t, H::settings(), true);
        } else {
            h.p.handle_stop(h.t);
        }
        h.pump();
        h.serve_all(|message| {
            let fails =
                fails && matches!(message, Message::Request(request) if request.command == Command::Flush);
            Some(fails.then_some(Errno::EIO))
        });
        assert_eq!(map(&h), if fails { 1 << 3 } else { 0 });
        assert_eq!(exits(&h, 0), !reconnect);
    }
}

#[test]
fn a_stop_ends_though_the_disk_does_not_answer() {
    let mut h = known();
    h.p.handle_connect_failed(h.t, Side::Out, "refused");
    h.pump();
    h.policy = Box::new(|_| None);
    h.w(1, 2);
    h.p.handle_stop(h.t);
    h.pump();
    h.tick(19);
    assert!(!exits(&h, 0));
    h.tick(1);
    assert!(exits(&h, 0), "attempts to connect were due meanwhile, and are no reason to wait longer");
}

#[test]
fn new_addresses_are_taken_once_what_is_in_flight_has_ended() {
    for answered in [true, false] {
        let mut h = H::in_step();
        h.w(1, 2);
        h.other.clear();
        h.p.handle_reload(h.t, Settings { peer: "other".into(), ..H::settings() }, true);
        h.pump();
        h.w(2, 3);
        assert_eq!(h.result(2), None, "held until the nodes are connected again");
        assert!(!h.other.contains(&Action::Connect(Side::Out)));
        if answered {
            h.serve_all(|_| Some(None));
            assert_eq!(h.result(1), Some(Ok(None)));
        } else {
            h.tick(21);
        }
        assert!(h.other.contains(&Action::Connect(Side::Out)), "{answered}");
    }
}

#[test]
fn a_reload_that_changes_no_address_leaves_the_connection_alone() {
    let mut h = H::in_step();
    h.other.clear();
    h.p.handle_reload(h.t, Settings { metaflush: false, ..H::settings() }, false);
    h.pump();
    assert!(h.p.is_in_step() && h.other.is_empty());
}

/// M1: `metaflush` is switched on. Bits that were written before it were never flushed: until they are, nothing is written
/// that relies on them.
#[test]
fn bits_from_before_metaflush_are_not_relied_on_after() {
    let mut h = H::in_step();
    h.p.handle_reload(h.t, Settings { metaflush: false, ..H::settings() }, false);
    h.pump();
    h.w(1, 3);
    h.serve_all(|_| Some(None));
    assert_eq!(h.result(1), Some(Ok(None)));
    h.p.handle_reload(h.t, H::settings(), false);
    h.policy = Box::new(|op| (*op != DiskOp::Flush).then_some(Ok(())));
    h.w(2, 3);
    assert!(!h.ops.iter().any(|(_, op)| is_data(op)) && !h.sent.iter().any(|(_, m)| is(Command::Write)(m)));
    h.policy = Box::new(|_| Some(Ok(())));
    h.pump();
    h.serve_all(|_| Some(None));
    assert_eq!(h.result(2), Some(Ok(None)));
}

/// The same while a write is with the disk, which was given it by the rule of before: it ends as it would have, and what
/// comes after it waits.
#[test]
fn metaflush_is_switched_on_while_a_write_is_with_the_disk() {
    let mut h = H::in_step();
    h.p.handle_reload(h.t, Settings { metaflush: false, ..H::settings() }, false);
    h.pump();
    h.policy = Box::new(|op| (!is_data(op)).then_some(Ok(())));
    h.w(1, 3);
    assert!(h.ops.iter().any(|(_, op)| is_data(op)), "it is with the disk");
    h.policy = Box::new(|op| (!is_data(op) && *op != DiskOp::Flush).then_some(Ok(())));
    h.p.handle_reload(h.t, H::settings(), false);
    h.pump();
    assert_eq!(h.p.check(), Ok(()));
    h.w(2, 4);
    assert_eq!(h.ops.iter().filter(|(_, op)| is_data(op)).count(), 1, "the second one waits for its bit");
    h.policy = Box::new(|_| Some(Ok(())));
    h.pump();
    h.serve_all(|_| Some(None));
    assert_eq!((h.result(1), h.result(2)), (Some(Ok(None)), Some(Ok(None))));
    assert_eq!(h.p.check(), Ok(()));
}

#[test]
fn a_provider_that_cannot_be_flushed_is_not_served() {
    let fails = |error: Errno| -> Policy {
        Box::new(move |op| Some(if *op == DiskOp::Flush { Err(error) } else { Ok(()) }))
    };
    let new = |policy| H::new_with(24, 1, Extension::default(), &[], 5, 1, 1, policy);
    assert!(exits(&new(fails(Errno::EIO)), EXIT_LOST));
    assert!(!exits(&new(fails(Errno::EOPNOTSUPP)), EXIT_LOST), "a disk without a cache needs none");
}

/// A primary that starts from such metadata, forced or not.
pub(super) fn started(extension: Extension, forced: bool) -> H {
    let mut h = H::new(24, 1, extension.clone(), &[], 5, 1, 1);
    let metadata = Metadata::read(&h.disk).map_or_else(|_| panic!(), |reading| reading.metadata);
    let metadata = Metadata { extension, ..metadata };
    let layout = Layout::create(h.disk.len() as u64 - 4096, 512, ES).unwrap();
    let map = vec![0; layout.map_bytes() as usize];
    let start = PrimaryStart { forced, ..H::start(metadata, layout, map) };
    h.p = Primary::new(start, h.t);
    h.pump();
    h.p.handle_connect_failed(h.t, Side::Out, "refused");
    h.pump();
    h.tick(30);
    h
}

#[test]
fn only_force_uses_a_copy_that_is_out_of_date() {
    let mark = hast_format::extension::Mark { since: 1, by: "s".into() };
    let stale = vec![hast_format::extension::Run { first: 2, count: 1 }];
    let base = Extension { generation: 3, ..Extension::default() };
    let cases = [
        Extension { mark: Some(mark.clone()), target: true, ..base.clone() },
        Extension { target: true, mark: Some(mark), stale: stale.clone(), ..base.clone() },
        Extension { stale, ..base },
    ];
    for extension in cases {
        for forced in [true, false] {
            let mut h = started(extension.clone(), forced);
            h.req(1, Op::Read { offset: 2 * u64::from(ES), length: 512 });
            h.tick(30);
            let read = h.result(1);
            if forced {
                assert!(matches!(read, Some(Ok(Some(_)))), "{extension:?}: {read:?}");
                let saved = Metadata::read(&h.disk).unwrap().metadata.extension;
                assert!(saved.mark.is_none() && !saved.target && saved.stale.is_empty(), "{saved:?}");
            } else if !extension.stale.is_empty() {
                assert_eq!(read, Some(Err(Errno::EIO)), "{extension:?}");
            }
        }
    }
}

/// A secondary with such an id and counts, before it has answered a primary with id 5 and counts 1 and 1.
pub(super) fn secondary(resuid: u64, counts: (u64, u64), bits: u8, role: Role) -> Driven {
    secondary_of(24, Extensions::ALL, resuid, counts, bits, role)
}

/// One whose metadata says `extension`, for a primary that knows `ext`.
pub(super) fn secondary_with(extension: Extension, ext: Extensions) -> Secondary {
    Secondary::new(starting(24, ext, 5, (1, 1), 0, Role::Secondary, extension), Duration::ZERO)
}

/// One in step, for a primary that knows `ext`.
pub(super) fn driven_secondary(ext: Extensions) -> Driven {
    secondary_of(24, ext, 5, (1, 1), 0, Role::Secondary)
}

/// One of so many extents, for a primary that knows such extensions.
fn secondary_of(
    extents: u64,
    ext: Extensions,
    resuid: u64,
    counts: (u64, u64),
    bits: u8,
    role: Role,
) -> Driven {
    driven(starting(extents, ext, resuid, counts, bits, role, Extension::default()))
}

/// One that starts from this.
pub(super) fn driven(start: SecondaryStart) -> Driven {
    Driven {
        s: Secondary::new(start, Duration::ZERO),
        t: Duration::ZERO,
        ops: Vec::new(),
        other: Vec::new(),
        sent: Vec::new(),
    }
}

/// What it starts from.
pub(super) fn starting(
    extents: u64,
    ext: Extensions,
    resuid: u64,
    counts: (u64, u64),
    bits: u8,
    role: Role,
    extension: Extension,
) -> SecondaryStart {
    let map_bytes = (extents.div_ceil(64) * 8).next_multiple_of(512);
    let layout = Layout::create(4096 + map_bytes + extents * u64::from(ES), 512, ES).unwrap();
    let (localcnt, remotecnt) = counts;
    let metadata =
        Metadata { resuid, localcnt, remotecnt, prevrole: role, ..metadata_on(&layout, extension) };
    let mut map = map_of(&layout, &[]);
    map[0] = bits;
    SecondaryStart {
        settings: H::settings(),
        metadata,
        layout,
        map,
        version: 2,
        ext,
        host: Host { boot: [1; 16], wall: 0, deletes: Deletes::LeaveZeros },
        hello: S::hello(),
        unsure: false,
        former: Bitmap::new(extents as u32),
    }
}

/// A secondary and what it wants.
pub(super) struct Driven {
    s: Secondary,
    t: Duration,
    ops: Vec<(OpId, DiskOp)>,
    other: Vec<Action>,
    pub(super) sent: Vec<Message>,
}

impl Driven {
    fn poll(&mut self) {
        while let Some(action) = self.s.poll_action() {
            match action {
                Action::Disk { id, op } => self.ops.push((id, op)),
                Action::Send { message, .. } => self.sent.push(message),
                action => self.other.push(action),
            }
        }
    }

    /// Ends every disk operation as `result` says, and whatever follows from that.
    fn disk(&mut self, mut result: impl FnMut(&DiskOp) -> Result<(), Errno>) {
        self.poll();
        while !self.ops.is_empty() {
            let (id, op) = self.ops.remove(0);
            let result = result(&op).map(|()| match op {
                DiskOp::Read { length, .. } => Some(Buffer::from(vec![7; length as usize])),
                _ => None,
            });
            self.s.handle_disk(self.t, id, result);
            self.poll();
        }
    }

    /// Time passes, with a disk that goes on like this.
    fn pass(&mut self, seconds: u64, mut result: impl FnMut(&DiskOp) -> Result<(), Errno>) {
        let end = self.t + Duration::from_secs(seconds);
        while let Some(at) = self.s.poll_timeout().filter(|at| *at <= end) {
            self.t = self.t.max(at);
            self.s.handle_timeout(self.t);
            self.disk(&mut result);
        }
        self.t = end;
    }

    /// Ends every disk operation well, but those that are `held`.
    fn good_but(&mut self, held: fn(&DiskOp) -> bool) {
        while let Some(at) = self.ops.iter().position(|(_, op)| !held(op)) {
            let (id, op) = self.ops.remove(at);
            let data = match op {
                DiskOp::Read { length, .. } => Some(Buffer::from(vec![7; length as usize])),
                _ => None,
            };
            self.s.handle_disk(self.t, id, Ok(data));
            self.poll();
        }
    }

    pub(super) fn good(&mut self) {
        self.disk(|_| Ok(()));
    }

    pub(super) fn frame(&mut self, message: Message) {
        let (nv, payload) = message.encode();
        self.s.handle_frame(self.t, Frame { version: 2, nv: nv.as_bytes().to_vec().into(), payload });
        self.poll();
    }

    pub(super) fn exits(&self, code: i32) -> bool {
        self.other.contains(&Action::Exit(code))
    }

    /// What was said last of the connection.
    pub(super) fn told(&self) -> Option<(ConnectionState, String)> {
        self.other.iter().rev().find_map(|action| match action {
            Action::Connection { state, reason } => Some((*state, reason.clone())),
            _ => None,
        })
    }

    pub(super) fn error_of(&self, seq: u64) -> Option<Option<Errno>> {
        self.sent.iter().find_map(|message| match message {
            Message::Reply(reply) if reply.seq == seq && !reply.received => Some(reply.error),
            _ => None,
        })
    }
}

#[test]
fn a_secondary_refuses_what_does_not_belong_to_it() {
    let mut other = secondary(6, (1, 1), 0, Role::Secondary);
    other.good();
    assert!(other.exits(78) && matches!(other.sent[..], [Message::SecondRefusal(..)]));
    let mut split = secondary(5, (2, 0), 0, Role::Secondary);
    split.good();
    assert!(split.exits(78) && split.other.contains(&Action::Event(Event::SplitBrain)));
    // Written alone before it ever met anybody (L20).
    let mut written = secondary(0, (0, 0), 1, Role::Primary);
    written.good();
    assert!(written.exits(78) && written.other.contains(&Action::Event(Event::SplitBrain)));
}

/// L19, L12: nothing is answered before what the answer says is durable; each step may fail. A primary of ours is told why there
/// is no answer, an original sees the connection end.
#[test]
fn a_secondary_whose_disk_fails_before_its_answer_gives_none() {
    for ext in [Extensions::ALL, Extensions::NONE] {
        let mut steps = 0;
        loop {
            let mut fresh = secondary_of(24, ext, 0, (0, 0), 0, Role::Primary);
            let mut left = steps;
            let mut failed = false;
            fresh.disk(|_| {
                if left == 0 && !failed {
                    failed = true;
                    return Err(Errno::EIO);
                }
                left = u32::saturating_sub(left, 1);
                Ok(())
            });
            if !failed {
                assert!(matches!(fresh.sent[..], [Message::SecondAnswer(..)]), "after {steps} steps");
                break;
            }
            assert!(fresh.exits(66), "step {steps}: {:?}", fresh.other);
            assert!(matches!(fresh.told(), Some((ConnectionState::Refused, _))));
            if ext == Extensions::NONE {
                assert!(fresh.sent.is_empty() && fresh.other.contains(&Action::Close));
            } else {
                let [Message::SecondRefusal(refusal, None)] = &fresh.sent[..] else {
                    panic!("{:?}", fresh.sent)
                };
                assert!(refusal.errmsg.starts_with("The secondary's provider fails. "), "{}", refusal.errmsg);
            }
            steps += 1;
        }
        assert!(steps >= 4, "flush, map, flush, metadata: {steps}");
    }
}

#[test]
fn a_secondary_on_a_disk_without_a_cache_answers() {
    for resuid in [0, 5] {
        let mut s = secondary(resuid, (resuid.min(1), resuid.min(1)), 0, Role::Primary);
        s.disk(|op| if *op == DiskOp::Flush { Err(Errno::EOPNOTSUPP) } else { Ok(()) });
        assert!(matches!(s.sent[..], [Message::SecondAnswer(..)]), "{:?}", s.sent);
    }
}

#[test]
fn a_primary_that_does_not_wait_for_the_answer_is_left() {
    let mut s = secondary(5, (1, 1), 0, Role::Secondary);
    s.frame(Message::Keepalive);
    s.good();
    assert!(s.exits(75) && s.sent.is_empty());
}

#[test]
fn a_silent_primary_is_left_and_what_it_sent_is_stored() {
    let mut s = secondary(5, (1, 1), 0, Role::Secondary);
    s.good();
    let silence = H::settings().peer_timeout;
    s.s.handle_timeout(silence - Duration::from_secs(1));
    s.good();
    assert!(!s.exits(75));
    s.s.handle_timeout(silence);
    s.good();
    assert!(s.exits(75) && s.other.contains(&Action::Event(Event::Disconnect)));
    s.s.handle_lost(Duration::from_secs(21), "again");
    s.s.handle_stop(Duration::from_secs(21));
    s.poll();
    let ends = s.other.iter().filter(|action| matches!(action, Action::Exit(_))).count();
    assert_eq!(ends, 1);
}

/// A secondary that was asked to end when it had stored a write and not flushed it.
fn ending() -> Driven {
    let mut s = secondary(5, (1, 1), 0, Role::Secondary);
    s.good();
    s.frame(request(Command::Write, 1, 0, 512));
    s.good();
    s.s.handle_stop(Duration::ZERO);
    s
}

#[test]
fn a_secondary_that_cannot_flush_at_its_end_tries_as_long_as_it_has_patience() {
    let mut s = ending();
    s.disk(|_| Err(Errno::EOPNOTSUPP));
    assert!(s.exits(0), "a disk without a cache needs none");

    // What a failed flush may have dropped is written again before the end.
    let mut s = ending();
    s.disk(|op| if *op == DiskOp::Flush { Err(Errno::EIO) } else { Ok(()) });
    assert!(!s.exits(0));
    let mut written = false;
    s.pass(10, |op| {
        written |= matches!(op, DiskOp::Write { .. });
        Ok(())
    });
    assert!(written && s.exits(0));

    // What comes from the primary meanwhile is not taken in, and a disk that answers too late is not heard.
    let mut s = ending();
    s.frame(request(Command::Write, 2, 0, 512));
    s.poll();
    let late: Vec<OpId> = s.ops.drain(..).map(|(id, _)| id).collect();
    s.pass(DISK_PATIENCE.as_secs(), |_| Ok(()));
    assert!(s.exits(0) && s.error_of(2).is_none());
    for id in late {
        s.s.handle_disk(s.t, id, Ok(None));
    }
    s.poll();
    assert!(s.ops.is_empty());

    let mut s = ending();
    s.disk(|_| Err(Errno::EIO));
    s.pass(DISK_PATIENCE.as_secs() - 1, |_| Err(Errno::EIO));
    assert!(!s.exits(0));
    s.pass(1, |_| Err(Errno::EIO));
    assert!(s.exits(66), "but not for ever; the supervisor learns that something may be gone (B1)");
}

fn request(command: Command, seq: u64, offset: u64, length: u64) -> Message {
    let data = (command == Command::Write).then(|| Buffer::from(vec![1; length as usize]));
    Message::Request(Request { command, seq, offset, length, memsync: false, data })
}

#[test]
fn a_secondary_refuses_requests_outside_its_data() {
    let mut s = secondary(5, (1, 1), 1, Role::Secondary);
    s.good();
    let end = 24 * u64::from(ES);
    let refused = [
        request(Command::Read, 1, 0, 0),
        request(Command::Read, 2, 1, 512),
        request(Command::Read, 3, 0, 511),
        request(Command::Read, 4, end, 512),
        request(Command::Read, 5, 0, 132_096),
        request(Command::Delete, 6, end, 512),
        request(Command::Delete, 7, u64::MAX - 511, 1024),
        request(Command::Write, 8, end, 512),
    ];
    for message in refused {
        s.frame(message);
    }
    // The first of them shows that the primary has our map: ours is cleared.
    assert_eq!(s.ops.len(), 1, "{:?}", s.ops);
    s.good();
    for seq in 1..=8 {
        assert_eq!(s.error_of(seq), Some(Some(Errno::EINVAL)), "{seq}");
    }
    assert!(!s.exits(75), "the link stays");
}

#[test]
fn what_fails_on_the_secondary_is_said_and_counted() {
    let mut s = secondary(5, (1, 1), 0, Role::Secondary);
    s.good();
    let commands = [Command::Read, Command::Write, Command::Delete, Command::Flush];
    for (seq, command) in (1..).zip(commands) {
        let length = if command == Command::Flush { 0 } else { 512 };
        s.frame(request(command, seq, 0, length));
        s.disk(|_| Err(Errno::EIO));
        assert_eq!(s.error_of(seq), Some(Some(Errno::EIO)), "{command:?}");
    }
    // What the failed flush may have dropped is written again; the next one tells of it once more.
    s.pass(3, |_| Ok(()));
    s.frame(request(Command::Flush, 10, 0, 0));
    s.good();
    for (seq, command) in (11..).zip(commands) {
        let length = if command == Command::Flush { 0 } else { 512 };
        s.frame(request(command, seq, 0, length));
        s.good();
        assert_eq!(s.error_of(seq), Some(None), "{command:?}");
    }
    // A read that is shorter than asked for is none.
    s.frame(request(Command::Read, 20, 0, 512));
    let (id, _) = s.ops.remove(0);
    s.s.handle_disk(Duration::ZERO, id, Ok(Some(Buffer::from(vec![0; 100]))));
    s.poll();
    assert_eq!(s.error_of(20), Some(Some(Errno::EIO)));
    // And an operation that nobody asked for is no matter.
    s.s.handle_disk(Duration::ZERO, OpId(999), Ok(None));
    s.poll();
}

/// M5: under an original the secondary keeps a map itself, and answers once it is durable.
#[test]
fn under_an_original_the_map_is_durable_before_the_answer() {
    let mut s = secondary_of(4 * 4096, Extensions::NONE, 5, (1, 1), 0, Role::Secondary);
    s.good();
    let write = |seq, extent: u64| request(Command::Write, seq, extent * u64::from(ES), 512);
    let is_map = |op: &DiskOp| matches!(op, DiskOp::Write { offset, .. } if *offset < 4096 + 4 * 512);
    s.frame(write(2, 0));
    s.frame(write(3, 4096));
    s.frame(write(4, 3 * 4096));
    // The first map write holds up the others, which share the next one, of two pieces.
    let mut order = Vec::new();
    while let Some(at) = s.ops.iter().position(|(_, op)| !is_map(op)).or((!s.ops.is_empty()).then_some(0)) {
        let (id, op) = s.ops.remove(at);
        if let DiskOp::Write { offset, .. } = op {
            order.push(offset);
        }
        let answered = (2..=4).filter(|seq| s.error_of(*seq).is_some()).count();
        s.s.handle_disk(s.t, id, Ok(None));
        s.poll();
        if is_map(&op) || op == DiskOp::Flush {
            continue;
        }
        let after = (2..=4).filter(|seq| s.error_of(*seq).is_some()).count();
        assert_eq!(after, answered, "the disk alone answers nothing");
    }
    assert_eq!(order[3..], [4096, 4096 + 512, 4096 + 3 * 512]);
    assert!((2..=4).all(|seq| s.error_of(seq) == Some(None)));
    // With many extents unflushed it does not wait for the second to be over.
    for seq in 10..400 {
        s.frame(write(seq, seq));
        let mut flushed = false;
        s.disk(|op| {
            flushed |= *op == DiskOp::Flush;
            Ok(())
        });
        assert_eq!(s.error_of(seq), Some(None));
    }
}

/// M5: the map may be written in pieces, and is durable once all of them are. One that fails, fails the writes that wait.
#[test]
fn under_an_original_every_piece_of_the_map_is_durable_before_the_answer() {
    let last = 4096 + 3 * 512;
    let is_last = |op: &DiskOp| matches!(op, DiskOp::Write { offset, .. } if *offset == last);
    for fails in [None, Some(4096 + 512), Some(last)] {
        let mut s = secondary_of(4 * 4096, Extensions::NONE, 5, (1, 1), 0, Role::Secondary);
        s.good();
        for (seq, extent) in [(2, 0), (3, 4096), (4, 3 * 4096)] {
            s.frame(request(Command::Write, seq, extent * u64::from(ES), 512));
        }
        let end = |s: &mut Driven, at: usize| {
            let (id, op) = s.ops.remove(at);
            let failed = matches!(op, DiskOp::Write { offset, .. } if Some(offset) == fails);
            s.s.handle_disk(s.t, id, if failed { Err(Errno::EIO) } else { Ok(None) });
            s.poll();
        };
        while let Some(at) = s.ops.iter().position(|(_, op)| !is_last(op)) {
            end(&mut s, at);
        }
        assert_eq!((s.ops.len(), s.error_of(2)), (1, Some(None)), "{:?}", s.ops);
        assert!(s.error_of(3).is_none() && s.error_of(4).is_none(), "{fails:?}");
        end(&mut s, 0);
        s.good();
        let expected = Some(fails.map(|_| Errno::EIO));
        assert_eq!((s.error_of(3), s.error_of(4)), (expected, expected), "{fails:?}");
    }
}

/// M1, M5: without `metaflush` the map is written and not flushed. A flush that fails may have dropped it, too: the next
/// write is answered once the map is written again.
#[test]
fn under_an_original_a_map_that_is_not_flushed_is_written_again_after_a_failed_flush() {
    let start = starting(24, Extensions::NONE, 5, (1, 1), 0, Role::Secondary, Extension::default());
    let mut s = driven(SecondaryStart { settings: Settings { metaflush: false, ..H::settings() }, ..start });
    s.good();
    s.frame(request(Command::Write, 2, 0, 512));
    let mut flushes = 0;
    s.disk(|op| {
        flushes += u32::from(*op == DiskOp::Flush);
        Ok(())
    });
    assert_eq!((s.error_of(2), flushes), (Some(None), 0));
    s.frame(request(Command::Flush, 3, 0, 0));
    let (id, _) = s.ops.remove(0);
    s.s.handle_disk(s.t, id, Err(Errno::EIO));
    s.poll();
    assert_eq!(s.error_of(3), Some(Some(Errno::EIO)));
    s.frame(request(Command::Write, 4, 0, 512));
    s.good_but(is_map);
    assert_eq!(s.error_of(4), None);
    assert!(s.ops.iter().any(|(_, op)| is_map(op)), "{:?}", s.ops);
    s.good();
    assert_eq!(s.error_of(4), Some(None));
}

/// ... and when nothing is written any more: the last flush of a worker fails, and what the disk has refused is known from the
/// map alone.
#[test]
fn under_an_original_a_map_that_the_last_flush_may_have_dropped_is_written_again() {
    let start = starting(24, Extensions::NONE, 5, (1, 1), 0, Role::Secondary, Extension::default());
    let mut s = driven(SecondaryStart { settings: Settings { metaflush: false, ..H::settings() }, ..start });
    s.good();
    s.frame(request(Command::Write, 2, 0, 512));
    s.good();
    s.frame(request(Command::Write, 3, 5 * u64::from(ES), 512));
    s.disk(|op| if is_data(op) { Err(Errno::EIO) } else { Ok(()) });
    assert_eq!(s.error_of(3), Some(Some(Errno::EIO)));
    s.s.handle_lost(s.t, "gone");
    let (mut failed, mut flushed) = (false, None);
    s.disk(|op| match op {
        DiskOp::Flush if !std::mem::replace(&mut failed, true) => Err(Errno::EIO),
        DiskOp::Flush => {
            flushed = flushed.map(|_| true);
            Ok(())
        }
        op if failed && is_map(op) => {
            flushed = Some(false);
            Ok(())
        }
        _ => Ok(()),
    });
    assert!(s.exits(75));
    assert_eq!(flushed, Some(true), "written again, and flushed");
}

/// M5: an original has the map that was sent with the answer when it asks for something: what was in it is forgotten.
#[test]
fn under_an_original_the_map_is_forgotten_once_the_primary_has_it() {
    let mut s = S::under(Extensions::NONE, Extension::default(), &[7]);
    s.run();
    s.frame(Message::Keepalive);
    s.run();
    assert_eq!(s.disk[4096], 0b1000_0000);
    s.frame(request(Command::Read, 2, 0, 512));
    s.run();
    assert_eq!((s.answer(2), s.disk[4096]), (Some(Ok(())), 0));
}

/// So many requests of that kind are taken in before the primary is not listened to any more.
fn taken(s: &mut Driven, command: Command, length: u64) -> u64 {
    let mut seq = 0;
    while s.s.wants_input() && seq < 10_000 {
        seq += 1;
        s.frame(request(command, seq, seq % 24 * u64::from(ES), length));
    }
    seq
}

#[test]
fn what_is_under_way_is_bounded_in_number_and_in_bytes() {
    let mut s = secondary_of(512, Extensions::ALL, 5, (1, 1), 0, Role::Secondary);
    s.good();
    assert_eq!(taken(&mut s, Command::Read, 512), 8192);
    s.good();
    assert_eq!(taken(&mut s, Command::Read, 1 << 20), 64);
    s.good();
    for seq in 1..100 {
        s.frame(request(Command::Delete, seq, 0, 1 << 20));
    }
    assert!(s.s.wants_input(), "what is deleted takes no room");
    s.good();
    assert_eq!(taken(&mut s, Command::Read, 1 << 20), 64, "and leaves none");
}

/// As an original bounds it; a delete has no data.
#[test]
fn a_read_or_write_is_a_mebibyte_long_at_most() {
    let mut s = secondary_of(512, Extensions::ALL, 5, (1, 1), 0, Role::Secondary);
    s.good();
    for command in [Command::Read, Command::Write, Command::Delete] {
        for (length, short) in [(1 << 20, true), ((1 << 20) + 512, false)] {
            s.sent.clear();
            s.frame(request(command, 2, 0, length));
            s.good();
            let fits = short || command == Command::Delete;
            assert_eq!(s.error_of(2), Some((!fits).then_some(Errno::EINVAL)), "{command:?} of {length}");
        }
    }
}

#[test]
fn overlapping_requests_are_carried_out_in_the_order_they_came() {
    let mut s = secondary(5, (1, 1), 0, Role::Secondary);
    s.good();
    s.frame(request(Command::Write, 2, 0, 1024));
    s.frame(request(Command::Write, 3, 512, 1024));
    s.frame(request(Command::Read, 4, 512, 512));
    s.frame(request(Command::Read, 5, 512, 1024));
    s.frame(request(Command::Delete, 6, 512, 512));
    let mut order = Vec::new();
    while !s.ops.is_empty() {
        let ops: Vec<(OpId, DiskOp)> = s.ops.drain(..).collect();
        order.push(ops.len());
        for (id, op) in ops {
            let data = match op {
                DiskOp::Read { length, .. } => Some(Buffer::from(vec![7; length as usize])),
                _ => None,
            };
            s.s.handle_disk(s.t, id, Ok(data));
        }
        s.poll();
    }
    assert_eq!(order, [1, 1, 2, 1], "only reads of the same bytes are carried out at once");
    assert!((2..=6).all(|seq| s.error_of(seq) == Some(None)), "{:?}", s.sent);
}

#[test]
fn a_primary_that_is_not_listened_to_is_not_called_silent() {
    let mut s = secondary(5, (1, 1), 0, Role::Secondary);
    s.good();
    let mut seq = 0;
    while s.s.wants_input() {
        seq += 1;
        s.frame(request(Command::Read, seq, 0, 512));
        assert!(seq < 100_000, "no bound");
    }
    s.s.handle_timeout(Duration::from_secs(1000));
    s.poll();
    assert!(s.other.iter().all(|action| !matches!(action, Action::Close | Action::Exit(_))));
    s.t = Duration::from_secs(1000);
    s.good();
    assert!(s.s.wants_input() && (1..=seq).all(|seq| s.error_of(seq) == Some(None)));
}

#[test]
fn marks_that_cannot_be_written_down_are_refused() {
    let stale = |seq, offset| Message::Mark(Mark { seq, kind: MarkKind::Stale { offset, length: 512 } });
    let mut s = secondary(5, (1, 1), 0, Role::Secondary);
    s.good();
    s.frame(stale(1, 24 * u64::from(ES)));
    s.good();
    assert_eq!(s.error_of(1), Some(Some(Errno::EINVAL)));
    s.frame(stale(2, 512));
    s.disk(|op| if matches!(op, DiskOp::Write { .. }) { Err(Errno::EIO) } else { Ok(()) });
    assert_eq!(s.error_of(2), Some(Some(Errno::EIO)), "the map was not written");
    s.frame(stale(3, 512));
    s.disk(|op| if *op == DiskOp::Flush { Err(Errno::EIO) } else { Ok(()) });
    assert_eq!(s.error_of(3), Some(Some(Errno::EIO)), "the map was not flushed");
    s.frame(stale(4, 512));
    let mut writes = 0;
    s.disk(|op| {
        writes += u32::from(matches!(op, DiskOp::Write { .. }));
        if matches!(op, DiskOp::Write { .. }) && writes > 1 { Err(Errno::EIO) } else { Ok(()) }
    });
    assert_eq!(s.error_of(4), Some(Some(Errno::EIO)), "the count was not written");
    // A disk without a cache need not flush; but it has to write.
    s.frame(Message::Mark(Mark { seq: 5, kind: MarkKind::SyncStart }));
    s.disk(|_| Err(Errno::EOPNOTSUPP));
    assert_eq!(s.error_of(5), Some(Some(Errno::EOPNOTSUPP)));
    s.frame(stale(6, 512));
    s.disk(|op| if *op == DiskOp::Flush { Err(Errno::EOPNOTSUPP) } else { Ok(()) });
    assert_eq!(s.error_of(6), Some(None));
}

#[test]
fn a_map_that_cannot_be_cleared_stays() {
    let mut s = secondary(5, (1, 1), 1, Role::Secondary);
    s.good();
    s.frame(request(Command::Read, 1, 0, 512));
    s.disk(|op| if matches!(op, DiskOp::Write { .. }) { Err(Errno::EIO) } else { Ok(()) });
    assert_eq!(s.error_of(1), Some(None), "it costs a synchronisation more, and nothing else");
    assert!(!s.exits(66));
}

#[test]
fn what_is_no_message_ends_the_session() {
    let mut s = secondary(5, (1, 1), 0, Role::Secondary);
    s.good();
    s.s.handle_frame(Duration::ZERO, Frame { version: 2, nv: vec![0xff; 20].into(), payload: None });
    s.good();
    assert!(s.exits(75));
}

#[test]
fn what_passes_has_words() {
    let data = Buffer::from(vec![0; 512]);
    let ops = [
        (Op::Read { offset: 1, length: 2 }, "READ(1, 2)"),
        (Op::Write { offset: 1, data }, "WRITE(1, 512)"),
        (Op::Delete { offset: 3, length: 4 }, "DELETE(3, 4)"),
        (Op::Flush, "FLUSH"),
    ];
    for (op, word) in ops {
        assert_eq!(op.to_string(), word);
    }
    assert_eq!(format!("{} {}", Side::Out, Side::In), "out in");
    for word in ["connect", "disconnect", "syncstart", "syncdone", "syncintr", "split-brain"] {
        assert_eq!(Event::parse(word).map(Event::as_str), Some(word));
    }
    assert_eq!(Event::parse("role"), None);
}

/// L19, L20: a node that has no resource id yet is given everything. Should this first contact break off, the full map that it
/// has set for that must not look like writes of its own: a node that was primary says first that it is not any more.
#[test]
fn a_node_that_was_primary_gives_that_up_before_its_map_is_full() {
    for (role, first) in [(Role::Primary, true), (Role::Secondary, false)] {
        let mut s = secondary(0, (0, 0), 0, role);
        let mut writes = Vec::new();
        s.disk(|op| {
            if let DiskOp::Write { offset, .. } = op {
                writes.push(*offset < 4096);
            }
            Ok(())
        });
        assert!(writes.contains(&false), "the map is full");
        assert_eq!(writes.first(), Some(&first), "{role:?}");
    }
}

/// L3, B1: this node was written alone, and its last worker could not write down what its disk had lost: it has something that
/// the primary lacks, and lacks something that the primary has. Neither copy may be written over the other.
#[test]
fn a_newer_node_that_may_have_lost_something_is_no_source() {
    for unsure in [false, true] {
        let start = starting(24, Extensions::ALL, 5, (2, 1), 0, Role::Primary, Extension::default());
        let mut s = driven(SecondaryStart { unsure, ..start });
        s.good();
        let source = s.sent.iter().find_map(|message| match message {
            Message::SecondAnswer(answer, _) => Some(answer.syncsrc),
            _ => None,
        });
        assert_eq!(source, (!unsure).then_some(SyncSource::Secondary));
        assert_eq!(s.other.contains(&Action::Event(Event::SplitBrain)), unsure);
    }
}
