//! Reads: which disk answers, in how many parts, when what our disk could not read is written back, and when not.

use super::*;

/// Our disk cannot read this extent.
fn unreadable(h: &mut H, extent: u64) {
    let bad = DATA + extent * u64::from(ES);
    h.policy = Box::new(move |op| {
        let hit = matches!(op, DiskOp::Read { offset, length }
            if *offset < bad + u64::from(ES) && bad < offset + u64::from(*length));
        Some(if hit { Err(Errno::EIO) } else { Ok(()) })
    });
}

fn read(extent: u64, length: u32) -> Op {
    Op::Read { offset: extent * u64::from(ES), length }
}

/// What the secondary's disk brings.
fn theirs(length: usize) -> Option<DiskResult> {
    Some(Ok(Some(Buffer::from(vec![0x55; length]))))
}

/// The secondary lacks a write to this extent, and cannot be given it for the next ten seconds.
fn behind(h: &mut H, extent: u64) {
    h.w(99, extent);
    h.serve_all(|message| match message {
        message if is(Command::Write)(message) => Some(Some(Errno::EIO)),
        message => is_mark(message).then_some(None),
    });
    assert_eq!(h.result(99), Some(Ok(None)), "it is here");
    h.sent.clear();
}

/// R1: a read waits for what the secondary has yet to store of the same extents, not of those beside them.
#[test]
fn a_read_does_not_wait_for_what_the_secondary_owes_elsewhere() {
    let mut h = H::in_step();
    h.set_mode(Replication::Async);
    for (id, extent) in [(1, 6), (2, 8)] {
        h.w(id, extent);
        assert_eq!(h.result(id), Some(Ok(None)), "complete, and the secondary has not answered");
    }
    unreadable(&mut h, 7);
    h.req(3, read(7, ES));
    h.serve_all(|message| is_read(message).then_some(None));
    assert_eq!(h.result(3), theirs(ES as usize));
}

/// A read of which our disk has everything is not taken apart, whatever the secondary has of it.
#[test]
fn what_is_right_here_is_read_at_once() {
    for connected in [true, false] {
        let mut h = H::in_step();
        behind(&mut h, 2);
        if !connected {
            h.p.handle_lost(h.t, "gone");
        }
        h.policy = Box::new(|op| (!matches!(op, DiskOp::Read { .. })).then_some(Ok(())));
        h.req(1, read(2, 2 * ES));
        let asked: Vec<_> = h.ops.iter().map(|(_, op)| op.clone()).collect();
        assert_eq!(asked, [DiskOp::Read { offset: DATA + 2 * u64::from(ES), length: 2 * ES }]);
        h.policy = Box::new(|_| Some(Ok(())));
        h.pump();
        assert!(
            matches!(h.result(1), Some(Ok(Some(data))) if data[0] == 99 && data.len() == 2 * ES as usize)
        );
    }
}

/// A secondary may say of any request that it has received it: a read is over when its data is here.
#[test]
fn a_read_that_the_secondary_has_received_waits_for_its_data() {
    let mut h = H::in_step();
    unreadable(&mut h, 7);
    h.req(1, read(7, 512));
    let seq = h.sent.iter().find_map(|(_, message)| match message {
        Message::Request(Request { command: Command::Read, seq, .. }) => Some(*seq),
        _ => None,
    });
    let received = Reply { seq: seq.unwrap(), received: true, error: None, data: None };
    h.frame(Side::In, Message::Reply(received));
    assert_eq!(h.result(1), None);
    h.serve_all(|message| is_read(message).then_some(None));
    assert_eq!(h.result(1), theirs(512));
}

/// What our disk could not read is what the secondary has, once it is written back: there is nothing to synchronise.
#[test]
fn a_repair_leaves_the_nodes_in_step() {
    let mut h = H::in_step();
    unreadable(&mut h, 7);
    h.req(1, read(7, 512));
    h.serve_all(|message| is_read(message).then_some(None));
    assert_eq!(h.result(1), theirs(512));
    assert_eq!(h.disk[(DATA + 7 * u64::from(ES)) as usize..][..512], [0x55; 512], "written back");
    assert!(h.p.is_in_step());
}

/// M3: the disk is still writing back what the secondary had read when the nodes have met again and are in step: the secondary
/// may have lost that meanwhile, and gets it.
#[test]
fn a_repair_that_ends_on_a_later_connection_is_synchronised() {
    let mut h = H::in_step();
    h.policy = Box::new(|op| match op {
        DiskOp::Read { .. } => Some(Err(Errno::EIO)),
        op => (!is_data(op)).then_some(Ok(())),
    });
    h.req(1, read(7, 512));
    h.serve_all(|message| is_read(message).then_some(None));
    assert_eq!(h.result(1), theirs(512));
    h.meet_again();
    h.answer(1, 1, SyncSource::Primary, Some(vec![0; 512]));
    h.serve_all(|_| Some(None));
    assert!(h.p.is_in_step() && h.ops.iter().any(|(_, op)| is_data(op)), "{:?}", h.ops);
    h.policy = Box::new(|_| Some(Ok(())));
    h.pump();
    assert!(!h.p.is_in_step());
    let mut copied = false;
    h.serve_all(|message| {
        copied |= matches!(message, Message::Request(Request { command: Command::Write, offset, .. })
            if *offset == 7 * u64::from(ES));
        Some(None)
    });
    assert!(copied && h.p.is_in_step(), "{:?}", h.p.status());
}

#[test]
fn a_read_whose_answer_does_not_count_is_read_where_each_part_is_right() {
    let mut h = H::in_step();
    h.set_mode(Replication::Async);
    unreadable(&mut h, 8);
    h.req(1, Op::Read { offset: 7 * u64::from(ES) + 512, length: 2 * ES - 512 });
    h.req(2, Op::Write { offset: 7 * u64::from(ES), data: Buffer::from(vec![1; 512]) });
    assert_eq!(h.result(2), Some(Ok(None)));
    h.serve_all(|message| is(Command::Write)(message).then_some(Some(Errno::EIO)));
    h.serve_all(|message| is_read(message).then_some(None));
    assert!(matches!(h.result(1), Some(Ok(_))));
}

/// What the local disk holds of an extent, or that it holds nothing, is told while the disk is what a read would be answered by.
fn right_here(h: &H, extent: u64) -> bool {
    h.p.reads_here(extent * u64::from(ES), u64::from(ES))
}

#[test]
fn what_is_being_written_is_not_told_and_what_is_read_is() {
    let mut h = H::in_step();
    assert!((0..24).all(|extent| right_here(&h, extent)));
    assert!(h.p.reads_here(0, 24 * u64::from(ES)));
    assert!(!h.p.reads_here(0, 25 * u64::from(ES)), "past the end");
    assert!(!h.p.reads_here(1, 512) && !h.p.reads_here(0, 0) && !h.p.reads_here(u64::MAX - 511, 512));
    h.policy = Box::new(|_| None);
    h.w(1, 7);
    h.req(2, Op::Read { offset: 8 * u64::from(ES), length: ES });
    assert_eq!((right_here(&h, 6), right_here(&h, 7), right_here(&h, 8)), (true, false, true));
    h.policy = Box::new(|_| Some(Ok(())));
    h.pump();
    h.serve_all(|message| is(Command::Write)(message).then_some(None));
    assert!(!right_here(&h, 7), "no flush has covered it");
    h.req(3, Op::Flush);
    h.serve_all(|_| Some(None));
    assert!(right_here(&h, 7));
    h.p.handle_lost(h.t, "gone");
    h.pump();
    assert!(right_here(&h, 7), "alone as well");
}

#[test]
fn nothing_is_told_before_the_other_node_has_been_asked() {
    let mut h = H::new(24, 1, Extension::default(), &[], 5, 1, 1);
    assert!(!right_here(&h, 7), "it may have the newer data");
    h.p.handle_connect_failed(h.t, Side::Out, "refused");
    h.pump();
    assert!(right_here(&h, 7));
}

#[test]
fn nothing_is_told_of_what_the_secondary_alone_has() {
    // Stale here.
    let run = hast_format::extension::Run { first: 3, count: 1 };
    let ext = Extension { generation: 1, stale: vec![run], ..Extension::default() };
    let mut h = H::new(24, 1, ext, &[3], 5, 1, 1);
    h.p.handle_connect_failed(h.t, Side::Out, "refused");
    h.pump();
    assert_eq!((right_here(&h, 2), right_here(&h, 3), right_here(&h, 4)), (true, false, true));
    assert!(!h.p.reads_here(0, 24 * u64::from(ES)));
    // This node is the target.
    let h = H::target(&[1]);
    assert!(!right_here(&h, 1) && !right_here(&h, 2));
    // The write has failed here: the extent turns.
    let mut h = H::in_step();
    h.policy = Box::new(|op| {
        let data = matches!(op, DiskOp::Write { offset, .. } if *offset >= 4096 + 512);
        Some(if data { Err(Errno::EIO) } else { Ok(()) })
    });
    h.w(1, 7);
    h.serve_all(|message| is(Command::Write)(message).then_some(None));
    assert!(!right_here(&h, 7) && right_here(&h, 6));
}

#[test]
fn nothing_is_told_while_a_failed_flush_may_have_dropped_something() {
    let mut h = H::in_step();
    h.w(1, 7);
    h.serve_all(|message| is(Command::Write)(message).then_some(None));
    h.policy = next_flush_fails().0;
    h.req(2, Op::Flush);
    h.policy = Box::new(|_| None);
    assert!(!right_here(&h, 7));
    // The same without the secondary: the cache may have what the file system calls a hole.
    let mut h = H::new(24, 1, Extension::default(), &[], 5, 1, 1);
    h.p.handle_connect_failed(h.t, Side::Out, "refused");
    h.pump();
    h.w(1, 7);
    h.w(2, 7); // not covered by the flush that the first one's count needed
    assert_eq!((right_here(&h, 7), right_here(&h, 8)), (false, true));
    h.policy = next_flush_fails_and_holds(|op| is_data(op) || matches!(op, DiskOp::Read { .. }));
    h.req(3, Op::Flush);
    assert_eq!((right_here(&h, 7), right_here(&h, 8), h.result(3)), (false, true, Some(Err(Errno::EIO))));
}
