//! Connections that break, saves that fail and marks that are refused while a write rests on the secondary alone, or
//! a worker ends.

use super::*;

fn is_mark(message: &Message) -> bool {
    matches!(message, Message::Mark(_))
}

/// A write that our disk failed and that the secondary has stored and flushed; that it is stale here is being written
/// down.
fn written_down() -> H {
    let mut h = H::in_step();
    h.policy = Box::new(|op| match op {
        op if is_data(op) => Some(Err(Errno::EIO)),
        op if is_metadata(op) => None,
        _ => Some(Ok(())),
    });
    h.w(1, 7);
    h.serve_all(|message| (!is_read(message)).then_some(None));
    assert!(h.ops.iter().any(|(_, op)| is_metadata(op)), "L3: {:?}", h.ops);
    assert_eq!(h.result(1), None);
    h
}

/// The only node that had the write is gone before anybody heard of it: it may come back without it (L16).
#[test]
fn a_write_is_not_complete_whose_only_holder_went_away() {
    for saved in [true, false] {
        let mut h = written_down();
        h.p.handle_lost(h.t, "gone");
        h.pump();
        h.policy = Box::new(move |op| Some(if is_metadata(op) && !saved { Err(Errno::EIO) } else { Ok(()) }));
        h.pump();
        assert_eq!(h.result(1), Some(Err(Errno::EIO)), "saved {saved}");
    }
}

/// ... and our copy counts again. While it did not, nobody looked after what a failed flush dropped of it: all of it is
/// written again.
#[test]
fn an_extent_that_does_not_become_stale_after_all_is_written_again() {
    let mut h = written_down();
    h.p.handle_lost(h.t, "gone");
    let seen = std::rc::Rc::new(std::cell::RefCell::new(Vec::new()));
    let log = seen.clone();
    h.policy = Box::new(move |op| {
        log.borrow_mut().push(op.clone());
        Some(Ok(()))
    });
    h.pump();
    h.tick(2);
    assert_eq!((h.result(1), h.p.status().facts.stale_bytes), (Some(Err(Errno::EIO)), 0));
    let at = DATA + 7 * u64::from(ES);
    let again = |op: &DiskOp| matches!(op, DiskOp::Write { offset, data } if *offset == at && data.len() == ES as usize);
    assert!(seen.borrow().iter().any(again), "{:?}", seen.borrow());
}

/// Our disk has a write that the device heard of before the secondary had stored it. Then our disk cannot write down what
/// it misses: the secondary does not become the right copy of everything while it owes that write (S1). It goes away, and
/// the write is read here.
#[test]
fn the_secondary_is_not_relied_on_before_it_has_stored_what_is_complete() {
    for replication in [Replication::Async, Replication::Memsync] {
        let mut h = written_down();
        h.set_mode(replication);
        h.policy = Box::new(|op| (!is_metadata(op)).then_some(Ok(())));
        h.w(2, 9);
        let sent = h.sent.iter().rev().find_map(|(_, message)| match message {
            Message::Request(Request { command: Command::Write, seq, .. }) => Some(*seq),
            _ => None,
        });
        let received = Reply { seq: sent.unwrap(), received: true, error: None, data: None };
        h.frame(Side::In, Message::Reply(received));
        assert_eq!(h.result(2), Some(Ok(None)), "{replication:?}");
        h.policy = Box::new(|op| Some(if is_metadata(op) { Err(Errno::EIO) } else { Ok(()) }));
        h.pump();
        let asked = |(_, message): &(Side, Message)| is(Command::Flush)(message) || is_mark(message);
        assert!(!h.sent.iter().any(asked), "{replication:?}: {:?}", h.sent);
        h.p.handle_lost(h.t, "gone");
        h.pump();
        assert_eq!(h.result(1), Some(Err(Errno::EIO)), "{replication:?}");
        h.req(3, Op::Read { offset: 9 * u64::from(ES), length: 512 });
        assert_eq!(h.result(3), Some(Ok(Some(Buffer::from(vec![2; 512])))), "{replication:?}");
    }
}

/// Neither node can remember that our copy is out of date: nobody may rely on the other one.
#[test]
fn a_write_fails_that_neither_node_can_write_down() {
    for refused in [None, Some(Errno::EIO)] {
        let mut h = written_down();
        h.policy = Box::new(|op| Some(if is_metadata(op) { Err(Errno::EIO) } else { Ok(()) }));
        h.pump();
        assert_eq!(h.result(1), None);
        assert!(!h.sent.iter().any(|(_, message)| is_mark(message)), "S1: it flushes first");
        h.serve_all(|message| is(Command::Flush)(message).then_some(None));
        h.serve_all(|message| is_mark(message).then_some(refused));
        assert_eq!(h.result(1), Some(refused.map_or(Ok(None), Err)));
        assert_eq!(h.p.status().facts.detached, refused.is_none());
    }
}

/// What was read on the secondary is being written back when the connection breaks.
#[test]
fn a_repair_outlives_the_connection() {
    let mut h = H::in_step();
    h.policy = Box::new(|op| match op {
        DiskOp::Read { .. } => Some(Err(Errno::EIO)),
        op if is_data(op) => None,
        _ => Some(Ok(())),
    });
    h.req(1, Op::Read { offset: 8192, length: 512 });
    h.serve_all(|_| Some(None));
    assert_eq!(h.result(1), Some(Ok(Some(Buffer::from(vec![0x55; 512])))));
    h.p.handle_lost(h.t, "gone");
    h.pump();
    h.policy = Box::new(|_| Some(Ok(())));
    h.pump();
    let at = (DATA + 8192) as usize;
    assert_eq!(h.disk[at..at + 512], [0x55; 512]);
    assert_eq!(
        h.p.status().facts.to_synchronise_bytes,
        u64::from(ES),
        "M3: who knows what the secondary keeps"
    );
}

/// An id that could not be saved is nobody's: the secondary must not adopt it.
#[test]
fn an_id_that_cannot_be_saved_is_not_said() {
    let mut h = H::new(24, 1, Extension::default(), &[], 0, 0, 0);
    h.policy = Box::new(|op| Some(if is_metadata(op) { Err(Errno::EIO) } else { Ok(()) }));
    h.handshake_first(Extensions::ALL);
    let said = |h: &H| {
        h.sent.iter().find_map(|(_, message)| match message {
            Message::SecondHello(hello) => Some((hello.resuid, hello.virgin)),
            _ => None,
        })
    };
    assert_eq!(said(&h), None);
    assert!(h.other.contains(&Action::Close));
    // Another attempt draws another.
    h.policy = Box::new(|_| Some(Ok(())));
    h.tick(20);
    h.handshake_first(Extensions::ALL);
    let (resuid, virgin) = said(&h).expect("this one is on disk");
    assert!(resuid != 0 && virgin);
    assert_eq!(Metadata::read(&h.disk).unwrap().metadata.resuid, resuid);
}

/// C4: a planned end that loses its connection does not connect again.
#[test]
fn a_connection_lost_during_an_end_is_not_opened_again() {
    let mut h = H::in_step();
    h.w(1, 3);
    h.other.clear();
    h.p.handle_stop(h.t);
    h.pump();
    h.p.handle_lost(h.t, "gone");
    h.pump();
    h.tick(60);
    assert!(h.result(1).is_some());
    assert!(h.other.contains(&Action::Exit(0)));
    assert!(!h.other.iter().any(|action| matches!(action, Action::Connect(_))));
}
