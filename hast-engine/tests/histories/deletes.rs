//! Deletes (D1): carried out where they leave zeros on every node that is there, refused at once everywhere else, and
//! never a reason to synchronise what is the same.

use super::*;
use Deletes::{LeaveZeros, Refused};

const EOPNOTSUPP: Option<DiskResult> = Some(Err(Errno::EOPNOTSUPP));
const EXTENT: u64 = ES as u64;

/// A primary whose disk can do so much, in step with a secondary that says so much of its own.
fn pair(ours: Deletes, ext: Extensions, theirs: bool) -> H {
    let mut h = alone(ours);
    meet(&mut h, ext, theirs);
    h.serve_all(|_| Some(None));
    assert!(h.p.is_in_step());
    h.sent.clear();
    h
}

fn both() -> H {
    pair(LeaveZeros, Extensions::ALL, true)
}

/// A primary that waits for a secondary.
fn alone(ours: Deletes) -> H {
    let mut h = H::new(24, 1, Extension::default(), &[], 5, 1, 1);
    let metadata = Metadata::read(&h.disk).unwrap().metadata;
    let layout = Layout::create(h.disk.len() as u64 - 4096, 512, ES).unwrap();
    let map = vec![0; layout.map_bytes() as usize];
    let host = Host { boot: [1; 16], wall: 0, deletes: ours };
    let start = PrimaryStart { host, ..H::start(metadata, layout, map) };
    h.p = Primary::new(start, Duration::ZERO);
    h.disk[DATA as usize..].fill(7);
    (h.ops, h.other) = (vec![], vec![]);
    h.pump();
    h
}

fn meet(h: &mut H, ext: Extensions, theirs: bool) {
    h.handshake_first(ext);
    let layout = Layout::create(h.disk.len() as u64 - 4096, 512, ES).unwrap();
    let count = localcnt(h);
    let answer = SecondAnswer {
        datasize: layout.datasize(),
        extentsize: ES,
        localcnt: 1,
        remotecnt: count,
        virgin: false,
        syncsrc: SyncSource::Primary,
        mapsize: 512,
        boot: Some([2; 16]),
        peer_timeout: None,
        zero_deletes: theirs,
        met: None,
    };
    h.frame(Side::Out, Message::SecondAnswer(answer, Some(Buffer::from(vec![0; 512]))));
}

fn lose(h: &mut H) {
    h.p.handle_lost(h.t, "gone");
    h.pump();
    h.sent.clear();
}

fn delete(h: &mut H, id: u64, extent: u64) {
    h.req(id, Op::Delete { offset: extent * EXTENT, length: EXTENT });
}

fn localcnt(h: &H) -> u64 {
    Metadata::read(&h.disk).unwrap().metadata.localcnt
}

fn is_zero(h: &H, extent: u64) -> bool {
    let at = (DATA + extent * EXTENT) as usize;
    h.disk[at..at + ES as usize].iter().all(|byte| *byte == 0)
}

fn is_delete(message: &Message) -> bool {
    matches!(message, Message::Request(Request { command: Command::Delete, .. }))
}

fn deletes(h: &H) -> usize {
    h.sent.iter().filter(|(_, message)| is_delete(message)).count()
}

/// The secondary's answer to deletes, and to nothing else.
fn answer_deletes(h: &mut H, error: Option<Errno>) {
    h.serve_all(|message| is_delete(message).then_some(error));
}

fn to_synchronise(h: &H) -> u64 {
    h.p.status().facts.to_synchronise_bytes
}

/// What our disk does with deletes; everything else it does well.
fn disk_answers(h: &mut H, result: Option<Result<(), Errno>>) {
    h.policy = Box::new(move |op| if matches!(op, DiskOp::Delete { .. }) { result } else { Some(Ok(())) });
}

#[test]
fn both_nodes_leave_zeros() {
    let mut h = both();
    delete(&mut h, 1, 3);
    assert_eq!((deletes(&h), h.result(1)), (1, None), "complete with both only");
    answer_deletes(&mut h, None);
    assert_eq!(h.result(1), Some(Ok(None)));
    assert!(is_zero(&h, 3) && !is_zero(&h, 2) && !is_zero(&h, 4));
    assert!(h.p.is_in_step() && localcnt(&h) == 1);
}

/// In no mode is it complete earlier: what the secondary refuses is refused to the device.
#[test]
fn no_mode_completes_a_delete_early() {
    for mode in [Replication::Async, Replication::Memsync] {
        let mut h = both();
        h.set_mode(mode);
        delete(&mut h, 1, 3);
        assert!(is_zero(&h, 3) && h.result(1).is_none());
        let asked = h.sent.iter().find(|(_, message)| is_delete(message)).unwrap();
        assert!(matches!(&asked.1, Message::Request(Request { memsync: false, .. })));
        answer_deletes(&mut h, Some(Errno::EIO));
        assert_eq!(h.result(1), Some(Err(Errno::EIO)));
        assert_eq!(localcnt(&h), 1);
    }
}

/// D1: nothing is asked of either disk, nothing counted, nothing to synchronise. With an original neither: it cannot
/// say what its disk leaves.
#[test]
fn unless_both_leave_zeros_a_delete_is_refused_at_once() {
    let older = Extensions::from_words("sync-marks busy parting alive");
    for (ours, ext, theirs) in [
        (LeaveZeros, Extensions::ALL, false),
        (Refused, Extensions::ALL, true),
        (Refused, Extensions::ALL, false),
        (LeaveZeros, older, true),
        (LeaveZeros, Extensions::NONE, false),
        (LeaveZeros, Extensions::NONE, true),
    ] {
        let mut h = pair(ours, ext, theirs);
        let before = h.disk.clone();
        h.policy = Box::new(|_| None);
        delete(&mut h, 1, 3);
        assert_eq!(h.result(1), EOPNOTSUPP, "{ours:?}, {ext}, {theirs}");
        assert!(h.ops.is_empty() && h.sent.is_empty(), "{:?}, {:?}", h.ops, h.sent);
        assert!(h.disk == before && to_synchronise(&h) == 0 && h.p.is_in_step());
        let status = h.p.status().statistics;
        assert_eq!((status.deletes, status.delete_errors), (1, 0));
        assert_eq!(h.p.status().dirty, 0);
    }
}

/// D1: a secondary whose disk refuses after all.
#[test]
fn a_delete_that_the_secondary_cannot_carry_out_counts_nothing_and_is_not_tried_again() {
    let mut h = both();
    delete(&mut h, 1, 3);
    assert_eq!(h.result(1), None);
    answer_deletes(&mut h, Some(Errno::EOPNOTSUPP));
    assert_eq!(h.result(1), EOPNOTSUPP);
    assert_eq!((to_synchronise(&h), localcnt(&h)), (EXTENT, 1));
    h.serve_all(|_| Some(None));
    assert!(h.p.is_in_step(), "the extent was copied");
    assert_eq!(localcnt(&h), 1, "nobody was told that anything is here alone");
    h.sent.clear();
    delete(&mut h, 2, 4);
    assert_eq!((h.result(2), deletes(&h), to_synchronise(&h)), (EOPNOTSUPP, 0, 0));
    // The next secondary may have another disk.
    lose(&mut h);
    h.tick(20);
    meet(&mut h, Extensions::ALL, true);
    h.serve_all(|_| Some(None));
    delete(&mut h, 3, 4);
    assert_eq!(deletes(&h), 1);
}

#[test]
fn a_delete_that_fails_on_the_secondary_fails_and_leaves_its_range_to_synchronise() {
    let mut h = both();
    delete(&mut h, 1, 3);
    answer_deletes(&mut h, Some(Errno::EIO));
    assert_eq!(h.result(1), Some(Err(Errno::EIO)));
    assert_eq!((to_synchronise(&h), localcnt(&h)), (EXTENT, 1));
    let on_disk = &h.disk[4096..4096 + 3];
    assert_ne!(on_disk[0] & 1 << 3, 0, "durably");
    // Lost before it was copied: it is copied the next time.
    lose(&mut h);
    assert_eq!((to_synchronise(&h), localcnt(&h)), (EXTENT, 1));
    h.tick(20);
    meet(&mut h, Extensions::ALL, true);
    h.serve_all(|_| Some(None));
    assert!(h.p.is_in_step() && localcnt(&h) == 1);
}

/// A disk of ours that fails is masked, as for a write: the zeros are the secondary's, durably, and are read there.
#[test]
fn a_delete_that_fails_here_is_read_from_the_secondary() {
    for error in [Errno::EIO, Errno::EOPNOTSUPP] {
        let mut h = both();
        disk_answers(&mut h, Some(Err(error)));
        delete(&mut h, 1, 3);
        answer_deletes(&mut h, None);
        assert_eq!(h.result(1), None, "the secondary has not flushed it");
        h.req(2, Op::Read { offset: 3 * EXTENT, length: 512 });
        h.serve_all(|message| {
            matches!(message, Message::Request(Request { command: Command::Flush, .. })).then_some(None)
        });
        assert_eq!(h.result(1), Some(Ok(None)));
        assert_eq!((h.p.status().facts.stale_bytes, localcnt(&h)), (EXTENT, 1));
        assert!(h.sent.iter().any(|(_, message)| is_read(message)), "{:?}", h.sent);
        assert_eq!(h.p.status().statistics.delete_errors, 1);
        // A disk that cannot is not asked again.
        h.serve_all(|_| Some(None));
        delete(&mut h, 3, 5);
        assert_eq!(h.result(3) == EOPNOTSUPP, error == Errno::EOPNOTSUPP);
    }
}

/// Neither: it may have been carried out in part.
#[test]
fn a_delete_that_fails_on_both_nodes_leaves_its_range_to_synchronise() {
    let mut h = both();
    disk_answers(&mut h, Some(Err(Errno::EOPNOTSUPP)));
    delete(&mut h, 1, 3);
    answer_deletes(&mut h, Some(Errno::EOPNOTSUPP));
    assert_eq!((h.result(1), to_synchronise(&h), localcnt(&h)), (EOPNOTSUPP, EXTENT, 1));
}

/// C1(a): alone a delete is a write of zeros that the other node lacks.
#[test]
fn alone_a_delete_counts_as_a_write_does() {
    let mut h = alone(LeaveZeros);
    h.p.handle_connect_failed(h.t, Side::Out, "refused");
    h.pump();
    h.policy = Box::new(|op| (!is_metadata(op)).then_some(Ok(())));
    delete(&mut h, 1, 3);
    assert_eq!(h.result(1), None, "the count is not durable yet");
    assert!(is_zero(&h, 3));
    h.policy = Box::new(|_| Some(Ok(())));
    h.pump();
    assert_eq!((h.result(1), localcnt(&h)), (Some(Ok(None)), 2));
    delete(&mut h, 2, 5);
    assert_eq!((h.result(2), localcnt(&h)), (Some(Ok(None)), 2), "once in each period");
    assert_eq!(to_synchronise(&h), 2 * EXTENT);
    let mut h = alone(Refused);
    h.p.handle_connect_failed(h.t, Side::Out, "refused");
    h.pump();
    delete(&mut h, 1, 3);
    assert_eq!((h.result(1), localcnt(&h), to_synchronise(&h)), (EOPNOTSUPP, 1, 0));
}

/// The connection breaks while the secondary has it: this node is alone then.
#[test]
fn a_delete_that_the_connection_took_with_it_counts_as_a_write_does() {
    let mut h = both();
    delete(&mut h, 1, 3);
    lose(&mut h);
    assert_eq!((h.result(1), localcnt(&h)), (Some(Ok(None)), 2));
    assert_eq!(to_synchronise(&h), EXTENT);
}

/// C4: the planned end completes nothing on this node alone.
#[test]
fn a_delete_that_a_planned_end_cuts_off_fails() {
    let mut h = both();
    delete(&mut h, 1, 3);
    h.p.handle_stop(h.t);
    h.pump();
    lose(&mut h);
    assert!(matches!(h.result(1), Some(Err(_))), "{:?}", h.result(1));
    assert_eq!(localcnt(&h), 1);
}

/// An extent that is right on the secondary alone stays so, and what rests there is flushed there first.
#[test]
fn a_delete_in_a_stale_extent_is_flushed_on_the_secondary_and_does_not_wait_for_one() {
    let mut h = both();
    let mut fails = true;
    h.policy = Box::new(move |op| {
        Some(if is_data(op) && std::mem::take(&mut fails) { Err(Errno::EIO) } else { Ok(()) })
    });
    h.w(1, 3);
    h.serve_all(|message| match message {
        Message::Request(Request { command: Command::Write | Command::Flush, .. }) => Some(None),
        _ => None,
    });
    assert_eq!((h.result(1), h.p.status().facts.stale_bytes), (Some(Ok(None)), EXTENT));
    // It cannot be copied for the moment.
    h.serve_all(|message| is_read(message).then_some(Some(Errno::EIO)));
    h.req(2, Op::Delete { offset: 3 * EXTENT, length: 512 });
    answer_deletes(&mut h, None);
    assert_eq!(h.result(2), None, "only the secondary makes sense of it, and has not flushed it");
    h.serve_all(|message| {
        matches!(message, Message::Request(Request { command: Command::Flush, .. })).then_some(None)
    });
    assert_eq!(h.result(2), Some(Ok(None)));
    assert_eq!(h.p.status().facts.stale_bytes, EXTENT);
    // One that the secondary took with it: who knows what has come of it.
    h.req(3, Op::Delete { offset: 3 * EXTENT, length: 512 });
    lose(&mut h);
    assert_eq!(h.result(3), Some(Err(Errno::ENOTCONN)));
    // And one that would have to wait.
    h.req(4, Op::Delete { offset: 3 * EXTENT, length: 512 });
    assert_eq!(h.result(4), EOPNOTSUPP);
    delete(&mut h, 5, 3);
    assert_eq!(h.result(5), EOPNOTSUPP, "nor does all of it");
    assert_eq!((localcnt(&h), h.p.status().facts.stale_bytes), (1, EXTENT));
}

/// What was to be carried out alone is not, once there is a secondary that cannot.
#[test]
fn a_delete_that_a_connection_overtakes_is_refused() {
    let mut h = alone(LeaveZeros);
    h.p.handle_connect_failed(h.t, Side::Out, "refused");
    h.pump();
    h.tick(2);
    // One waits for an earlier write, one for the map.
    h.policy = Box::new(|op| (!is_data(op)).then_some(Ok(())));
    h.w(1, 3);
    delete(&mut h, 2, 3);
    meet(&mut h, Extensions::ALL, false);
    h.policy = Box::new(|_| Some(Ok(())));
    h.pump();
    h.serve_all(|message| matches!(message, Message::Mark(_)).then_some(None));
    assert_eq!((h.result(1), h.result(2), deletes(&h)), (Some(Ok(None)), EOPNOTSUPP, 0));
    assert!(!is_zero(&h, 3));
    h.serve_all(|_| Some(None));
    h.tick(3);
    h.serve_all(|_| Some(None));
    assert!(h.p.is_in_step());
    // Its bit is cleared like others: nothing of it is left in flight.
    h.w(5, 7);
    h.serve_all(|_| Some(None));
    h.tick(3);
    h.serve_all(|_| Some(None));
    h.tick(3);
    assert_eq!(h.p.status().dirty, 0);
}

/// A disk that may leave other bytes than zeros is not asked, whether the primary is ours or an original. An
/// original may have freed the range itself: that is to be synchronised the next time.
#[test]
fn a_secondary_whose_disk_cannot_delete_says_so_at_once() {
    for (known, deletes) in [
        (Extensions::ALL, LeaveZeros),
        (Extensions::ALL, Refused),
        (Extensions::NONE, LeaveZeros),
        (Extensions::NONE, Refused),
    ] {
        let mut s = S::with(known, Host { boot: [1; 16], wall: 0, deletes });
        s.run();
        let (command, offset, length) = (Command::Delete, 3 * EXTENT, EXTENT);
        s.frame(Message::Request(Request { command, seq: 1, offset, length, memsync: false, data: None }));
        let asked = s.ops.iter().any(|(_, op)| matches!(op, DiskOp::Delete { .. }));
        s.run();
        let expected = if deletes == Refused { Err(Errno::EOPNOTSUPP) } else { Ok(()) };
        assert_eq!((s.answer(1), asked), (Some(expected), deletes == LeaveZeros), "{known}");
        let remembered = s.disk[4096] & 1 << 3 != 0;
        assert_eq!(remembered, known == Extensions::NONE, "M5");
        s.write(2, 9); // the extent that was written last is kept
        s.run();
        for _ in 0..3 {
            s.t += Duration::from_secs(2);
            s.s.handle_timeout(s.t);
            s.run();
        }
        let remembered = s.disk[4096] & 1 << 3 != 0;
        assert_eq!(remembered, known == Extensions::NONE && deletes == Refused, "what is equal is forgotten");
    }
}

fn said(known: Extensions, deletes: Deletes) -> SecondAnswer {
    let mut s = S::with(known, Host { boot: [1; 16], wall: 0, deletes });
    s.run();
    s.sent
        .iter()
        .find_map(|message| match message {
            Message::SecondAnswer(answer, _) => Some(answer.clone()),
            _ => None,
        })
        .expect("it was answered")
}

#[test]
fn a_secondary_says_what_its_disk_leaves_to_whoever_asks() {
    assert!(said(Extensions::ALL, LeaveZeros).zero_deletes);
    assert!(!said(Extensions::ALL, Refused).zero_deletes);
    for known in [Extensions::NONE, Extensions::from_words("sync-marks busy parting alive")] {
        assert_eq!(said(known, LeaveZeros), said(known, Refused), "{known}");
        assert!(!said(known, LeaveZeros).zero_deletes);
    }
}
