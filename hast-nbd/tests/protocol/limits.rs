//! Bounds on what one client may keep in flight, and that reaching them costs nothing but waiting.

use crate::peer::*;
use hast_nbd::{CommandId, Kind, MAX_BYTES, MAX_COMMANDS, Pieces};
use hast_net::buffer::Buffer;

#[test]
fn commands_in_flight_are_bounded() {
    let mut peer = Peer::simple(export());
    let bytes: Vec<u8> = (0..1000).flat_map(|cookie| request(FLUSH, 0, cookie, 0, 0)).collect();
    let rest = peer.feed_some(&bytes).unwrap().to_vec();
    assert_eq!(peer.session.in_flight(), MAX_COMMANDS);
    assert!(!peer.session.wants_input());
    let mut seen = 0;
    let mut rest = &rest[..];
    while seen < 1000 {
        let command = peer.command();
        seen += 1;
        peer.session.complete(command.handle, Ok(Pieces::new()));
        assert!(peer.session.in_flight() <= MAX_COMMANDS);
        peer.sent();
        rest = peer.feed_some(rest).unwrap();
    }
    assert!(rest.is_empty());
    assert_eq!(peer.session.in_flight(), 0);
}

#[test]
fn bytes_of_reads_are_bounded_until_they_are_handed_out() {
    let mut peer = Peer::simple(export());
    let length = 24 << 20;
    let bytes: Vec<u8> = (0..4).flat_map(|cookie| request(READ, 0, cookie, 0, length)).collect();
    assert!(peer.feed_some(&bytes).unwrap().is_empty(), "four headers fit the staging area");
    let commands = [peer.command(), peer.command()];
    assert_eq!(peer.session.poll_command(), None, "a third does not fit into {MAX_BYTES}");
    assert!(!peer.session.wants_input());
    let data = Buffer::from(vec![7; length as usize]);
    peer.session.complete(commands[0].handle, Ok([data.clone()].into()));
    assert_eq!(peer.session.poll_command(), None, "the data is still held");
    assert_eq!(peer.session.poll_transmit().unwrap().len(), 16);
    assert_eq!(peer.session.poll_command(), None);
    assert_eq!(peer.session.poll_transmit().unwrap().len(), data.len());
    peer.command();
    assert_eq!(peer.session.poll_command(), None);
    // A failed read holds nothing any more.
    peer.session.complete(commands[1].handle, Err(hast_nbd::NbdError::Io));
    peer.command();
    assert!(peer.session.wants_input());
}

#[test]
fn bytes_of_writes_are_bounded_until_they_are_completed() {
    let mut peer = Peer::simple(export());
    let data = vec![7; 32 << 20];
    peer.feed(&write(0, 1, 0, &data)).unwrap();
    peer.feed(&write(0, 2, 0, &data)).unwrap();
    assert!(!peer.session.wants_input());
    let command = peer.command();
    peer.session.complete(command.handle, Ok(Pieces::new()));
    assert!(peer.session.wants_input());
    peer.feed(&write(0, 3, 0, &data)).unwrap();
    assert!(!peer.session.wants_input());
    assert_eq!(peer.session.in_flight(), 2);
}

#[test]
fn a_write_announced_and_not_sent_takes_no_memory_ahead() {
    let mut peer = Peer::simple(export());
    peer.feed(&request(WRITE, 0, 1, 0, 32 << 20)).unwrap();
    assert_eq!(peer.session.space().len(), hast_nbd::PIECE);
    assert!(peer.session.wants_input());
}

#[test]
fn refusals_that_nobody_reads_are_bounded() {
    let mut peer = Peer::structured(export());
    let bytes = request(99, 0, 1, 0, 0).repeat(100_000);
    let left = peer.feed_some(&bytes).unwrap().len();
    assert!(left > 0 && !peer.session.wants_input());
    assert!(peer.sent().len() < 256 << 10);
    assert!(peer.session.wants_input());
}

#[test]
fn an_error_found_late_ends_the_session_too() {
    let mut peer = Peer::simple(export());
    let mut bytes = request(FLUSH, 0, 1, 0, 0).repeat(MAX_COMMANDS);
    bytes.extend([0; 28]);
    peer.feed(&bytes).unwrap();
    assert!(!peer.session.is_finished());
    let command = peer.command();
    peer.session.complete(command.handle, Ok(Pieces::new()));
    assert!(peer.session.is_finished());
    assert!(peer.session.advance(0).is_err());
}

#[test]
fn handles_are_never_reused() {
    let mut peer = Peer::simple(export());
    let mut last = CommandId(0);
    for _ in 0..10 {
        peer.feed(&request(FLUSH, 0, 1, 0, 0)).unwrap();
        let command = peer.command();
        assert_eq!(command.kind, Kind::Flush);
        assert!(command.handle > last);
        last = command.handle;
        peer.session.complete(command.handle, Ok(Pieces::new()));
    }
}

#[test]
fn a_tiny_or_odd_export_keeps_the_promises() {
    let mut export = export();
    (export.minimum_block, export.preferred_block, export.maximum_payload) = (0, 0, u32::MAX);
    let mut peer = Peer::new(export);
    peer.feed(&[&FIXED.to_be_bytes()[..], &option(6, &info("", &[3]))].concat()).unwrap();
    let sent = peer.sent();
    let sizes = [0, 3, 0, 0, 0, 1, 0, 0, 2, 0, 2, 0, 0, 0];
    assert!(sent.windows(14).any(|window| window == sizes), "minimum 1, preferred 512, maximum 32 MiB");
}
