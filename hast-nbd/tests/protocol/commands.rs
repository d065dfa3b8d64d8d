//! Commands and replies.

use crate::peer::*;
use hast_nbd::{Export, Kind, NbdError, Pieces, Run, SessionError};
use hast_net::buffer::Buffer;

const EPERM: u32 = 1;
const EINVAL: u32 = 22;
const ENOSPC: u32 = 28;
const ENOTSUP: u32 = 95;

fn pieces(data: &[u8], size: usize) -> Pieces {
    data.chunks(size).map(|piece| Buffer::from(piece.to_vec())).collect()
}

fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|i| u8::try_from(i % 251).unwrap()).collect()
}

/// Sends a request that must be refused with `error`, in both kinds of replies, without losing step.
fn refused(bytes: &[u8], error: u32) {
    let cookie = u64::from_be_bytes(bytes[8..16].try_into().unwrap());
    let mut peer = Peer::simple(export());
    peer.feed(&[bytes, &request(FLUSH, 0, 77, 0, 0)].concat()).unwrap();
    assert_eq!(peer.sent(), simple(error, cookie));
    assert_eq!(peer.command().kind, Kind::Flush);
    assert_eq!(peer.session.in_flight(), 1);

    let mut peer = Peer::structured(export());
    peer.feed(&[bytes, &request(FLUSH, 0, 77, 0, 0)].concat()).unwrap();
    let sent = peer.sent();
    let text = &sent[26..];
    let mut payload = error.to_be_bytes().to_vec();
    payload.extend(u16::try_from(text.len()).unwrap().to_be_bytes());
    payload.extend(text);
    assert!(!text.is_empty() && text.is_ascii());
    assert_eq!(sent, chunk(0x8001, cookie, &payload));
    assert_eq!(peer.command().kind, Kind::Flush);
}

#[test]
fn reads_are_answered_simply_until_agreed_otherwise() {
    let data = pattern(300_032);
    for size in [512, 4096, 131_072, 1 << 20] {
        let mut peer = Peer::simple(export());
        peer.feed(&request(READ, 0, 0xabcd, 1024, 300_032)).unwrap();
        let command = peer.command();
        assert_eq!(command.kind, Kind::Read { offset: 1024, length: 300_032 });
        assert_eq!(peer.sent(), b"");
        peer.session.complete(command.handle, Ok(pieces(&data, size)));
        assert_eq!(peer.sent(), [simple(0, 0xabcd), data.clone()].concat());
        assert_eq!(peer.session.in_flight(), 0);

        for flags in [0, DF, FUA] {
            let mut peer = Peer::structured(export());
            peer.feed(&request(READ, flags, 0xabcd, 1024, 300_032)).unwrap();
            let command = peer.command();
            peer.session.complete(command.handle, Ok(pieces(&data, size)));
            let payload = [&1024_u64.to_be_bytes()[..], &data].concat();
            assert_eq!(peer.sent(), chunk(1, 0xabcd, &payload));
        }
    }
}

#[test]
fn large_read_data_is_handed_out_as_it_came() {
    let mut peer = Peer::simple(export());
    peer.feed(&request(READ, 0, 1, 0, 131_072)).unwrap();
    let data = Buffer::from(pattern(131_072));
    let command = peer.command();
    peer.session.complete(command.handle, Ok([data.clone()].into()));
    assert_eq!(peer.session.poll_transmit().unwrap().len(), 16);
    assert_eq!(peer.session.poll_transmit().unwrap().as_ptr(), data.as_ptr());
}

#[test]
fn failed_reads_carry_no_data() {
    let mut peer = Peer::simple(export());
    peer.feed(&request(READ, 0, 1, 0, 512)).unwrap();
    let command = peer.command();
    peer.session.complete(command.handle, Err(NbdError::Io));
    assert_eq!(peer.sent(), simple(5, 1));

    let mut peer = Peer::structured(export());
    peer.feed(&request(READ, 0, 1, 0, 512)).unwrap();
    let command = peer.command();
    peer.session.complete(command.handle, Err(NbdError::Shutdown));
    let sent = peer.sent();
    assert_eq!(sent[6..8], 0x8001_u16.to_be_bytes());
    assert_eq!(sent[20..24], 108_u32.to_be_bytes());
}

#[test]
fn a_read_completed_with_the_wrong_length_fails() {
    for got in [0, 511, 513] {
        let mut peer = Peer::simple(export());
        peer.feed(&request(READ, 0, 1, 0, 512)).unwrap();
        let command = peer.command();
        peer.session.complete(command.handle, Ok([Buffer::from(vec![0; got])].into()));
        assert_eq!(peer.sent(), simple(5, 1));
    }
}

#[test]
fn writes_come_in_pieces() {
    for length in [512, 4096, 131_072, 131_584, 1_000_448, 32 << 20] {
        let data = pattern(length);
        let mut peer = Peer::simple(export());
        let bytes = write(FUA, 3, 4096, &data);
        // Nothing of a write comes out before all of it is in.
        peer.feed(&bytes[..bytes.len() - 1]).unwrap();
        assert_eq!(peer.session.poll_command(), None);
        assert_eq!(peer.session.in_flight(), 0);
        peer.feed(&bytes[bytes.len() - 1..]).unwrap();
        let command = peer.command();
        let Kind::Write { offset: 4096, data: pieces, fua: true } = command.kind else {
            panic!("{command:?}");
        };
        assert_eq!(pieces.iter().map(|piece| piece.to_vec()).collect::<Vec<_>>().concat(), data);
        let (last, full) = pieces.split_last().unwrap();
        assert!(full.iter().all(|piece| piece.len() == hast_nbd::PIECE));
        assert!(last.len() <= hast_nbd::PIECE && !last.is_empty());
        assert_eq!(peer.sent(), b"");
        peer.session.complete(command.handle, Ok(Pieces::new()));
        assert_eq!(peer.sent(), simple(0, 3));
    }
}

#[test]
fn a_run_of_large_writes_is_received_where_it_stays() {
    let mut peer = Peer::simple(export());
    let bytes = write(0, 1, 0, &pattern(131_072));
    peer.feed(&bytes).unwrap();
    // The next header is awaited alone, and its data is awaited as one piece.
    assert_eq!(peer.session.space().len(), 28);
    peer.feed(&bytes[..28]).unwrap();
    assert_eq!(peer.session.space().len(), 131_072);
    peer.feed(&bytes[28..]).unwrap();
    assert_eq!(peer.session.in_flight(), 2);
    // After a small command there is room for many again.
    peer.feed(&request(FLUSH, 0, 1, 0, 0)).unwrap();
    assert!(peer.session.space().len() > 8192);
}

#[test]
fn the_other_commands_are_passed_on() {
    let cases = [
        (FLUSH, 0, 0, 0, Kind::Flush),
        (FLUSH, FUA, 0, 0, Kind::Flush),
        (TRIM, 0, 512, 1024, Kind::Trim { offset: 512, length: 1024, fua: false }),
        (TRIM, FUA, 0, 64 << 20, Kind::Trim { offset: 0, length: 64 << 20, fua: true }),
        (
            WRITE_ZEROES,
            0,
            0,
            64 << 20,
            Kind::WriteZeroes { offset: 0, length: 64 << 20, no_hole: false, fua: false },
        ),
        (
            WRITE_ZEROES,
            NO_HOLE | FUA,
            512,
            512,
            Kind::WriteZeroes { offset: 512, length: 512, no_hole: true, fua: true },
        ),
        (CACHE, 0, 0, 64 << 20, Kind::Cache { offset: 0, length: 64 << 20 }),
        (READ, FUA, SIZE - 512, 512, Kind::Read { offset: SIZE - 512, length: 512 }),
    ];
    for (number, flags, offset, length, kind) in cases {
        for mut peer in [Peer::simple(export()), Peer::structured(export())] {
            peer.feed(&request(number, flags, u64::MAX, offset, length)).unwrap();
            let command = peer.command();
            assert_eq!(command.kind, kind);
            let is_read = number == READ;
            let data = if is_read { [Buffer::from(vec![0; 512])].into() } else { Pieces::new() };
            peer.session.complete(command.handle, Ok(data));
            let sent = peer.sent();
            if !is_read {
                assert_eq!(sent, simple(0, u64::MAX));
            }
        }
    }
}

#[test]
fn errors_of_the_device_reach_the_client() {
    let errors = [
        (NbdError::Perm, 1),
        (NbdError::Io, 5),
        (NbdError::NoMem, 12),
        (NbdError::Inval, 22),
        (NbdError::NoSpc, 28),
        (NbdError::Overflow, 75),
        (NbdError::NotSup, 95),
        (NbdError::Shutdown, 108),
    ];
    for (error, number) in errors {
        let mut peer = Peer::simple(export());
        peer.feed(&request(FLUSH, 0, 8, 0, 0)).unwrap();
        let command = peer.command();
        peer.session.complete(command.handle, Err(error));
        assert_eq!(peer.sent(), simple(number, 8));
        assert_eq!(NbdError::from_wire(number), error);
    }
}

#[test]
fn ranges_outside_the_device_are_refused() {
    for (offset, length) in [(SIZE, 512), (SIZE - 512, 1024), (u64::MAX - 511, 512), (u64::MAX - 511, 1024)] {
        for number in [READ, TRIM, CACHE] {
            refused(&request(number, 0, 5, offset, length), EINVAL);
        }
        refused(&request(WRITE_ZEROES, 0, 5, offset, length), ENOSPC);
        refused(&write(0, 5, offset, &pattern(length as usize)), ENOSPC);
    }
    let mut peer = Peer::structured(export());
    peer.feed(&request(BLOCK_STATUS, 0, 5, SIZE - 512, 1024)).unwrap();
    assert_eq!(peer.sent()[20..24], EINVAL.to_be_bytes());
}

#[test]
fn unaligned_and_empty_ranges_are_refused() {
    for (offset, length) in [(1, 512), (511, 512), (0, 1), (0, 513), (512, 100), (0, 0), (512, 0)] {
        for number in [READ, TRIM, CACHE, WRITE_ZEROES] {
            refused(&request(number, 0, 5, offset, length), EINVAL);
        }
        refused(&write(0, 5, offset, &pattern(length as usize)), EINVAL);
    }
}

#[test]
fn a_write_full_of_magic_is_drained_in_step() {
    let data = request(DISC, 0, 0, 0, 0).repeat(1000);
    refused(&write(0, 5, 512, &data[..27_999]), EINVAL);
    refused(&write(0, 5, SIZE, &data[..27_648]), ENOSPC);
}

#[test]
fn too_long_reads_and_writes_are_refused() {
    refused(&request(READ, 0, 5, 0, (32 << 20) + 512), EINVAL);
    refused(&request(READ, 0, 5, 0, u32::MAX - 511), EINVAL);
    refused(&write(0, 5, 0, &vec![0; (32 << 20) + 512]), EINVAL);
    let mut peer = Peer::simple(export());
    let absurd = request(WRITE, 0, 5, 0, u32::MAX - 511);
    assert_eq!(peer.feed(&absurd), Err(SessionError::WriteTooLong(u32::MAX - 511)));
}

#[test]
fn flags_only_where_they_belong() {
    refused(&request(READ, NO_HOLE, 5, 0, 512), EINVAL);
    refused(&request(READ, 1 << 9, 5, 0, 512), EINVAL);
    refused(&request(FLUSH, DF, 5, 0, 0), EINVAL);
    refused(&request(TRIM, NO_HOLE, 5, 0, 512), EINVAL);
    refused(&request(CACHE, REQ_ONE, 5, 0, 512), EINVAL);
    refused(&request(WRITE_ZEROES, DF, 5, 0, 512), EINVAL);
    refused(&write(DF, 5, 0, &pattern(512)), EINVAL);
    refused(&write(1 << 5, 5, 0, &pattern(512)), EINVAL);
    // Without structured replies there is nothing to leave unfragmented.
    let mut peer = Peer::simple(export());
    peer.feed(&request(READ, DF, 5, 0, 512)).unwrap();
    assert_eq!(peer.sent(), simple(EINVAL, 5));
}

#[test]
fn fast_zeroing_is_refused() {
    refused(&request(WRITE_ZEROES, FAST_ZERO, 5, 0, 512), ENOTSUP);
    refused(&request(WRITE_ZEROES, FAST_ZERO | NO_HOLE | FUA, 5, 0, 512), ENOTSUP);
}

#[test]
fn a_flush_takes_no_range() {
    refused(&request(FLUSH, 0, 5, 0, 512), EINVAL);
    refused(&request(FLUSH, 0, 5, 512, 0), EINVAL);
}

#[test]
fn unknown_commands_are_refused() {
    for number in [8, 9, 255, u16::MAX] {
        refused(&request(number, 0, 5, 0, 512), EINVAL);
    }
}

#[test]
fn a_read_only_export_is_not_written() {
    let mut export = export();
    export.read_only = true;
    let mut peer = Peer::simple(export);
    for bytes in
        [write(0, 5, 0, &pattern(512)), request(TRIM, 0, 5, 0, 512), request(WRITE_ZEROES, 0, 5, 0, 512)]
    {
        peer.feed(&bytes).unwrap();
        assert_eq!(peer.sent(), simple(EPERM, 5));
    }
    peer.feed(&request(READ, 0, 5, 0, 512)).unwrap();
    peer.command();
}

#[test]
fn everything_is_allocated() {
    let status = |length: u64| {
        let mut payload = 1_u32.to_be_bytes().to_vec();
        payload.extend(u32::try_from(length).unwrap().to_be_bytes());
        payload.extend([0; 4]);
        chunk(5, 6, &payload)
    };
    let mut peer = Peer::structured(export());
    for (flags, offset, length, expected) in [
        (REQ_ONE, 0, 512, 512),
        (REQ_ONE, 4096, 1 << 20, 1 << 20),
        (0, 0, 512, SIZE),
        (0, SIZE - 512, 512, 512),
    ] {
        peer.feed(&request(BLOCK_STATUS, flags, 6, offset, length)).unwrap();
        assert_eq!(peer.sent(), status(expected));
    }
    let mut big = export();
    big.size = 1 << 40;
    let mut peer = Peer::structured(big);
    peer.feed(&request(BLOCK_STATUS, 0, 6, 0, 512)).unwrap();
    assert_eq!(peer.sent(), status((1 << 32) - 512));
    peer.feed(&request(BLOCK_STATUS, REQ_ONE, 6, 512, u32::MAX - 511)).unwrap();
    assert_eq!(peer.sent(), status((1 << 32) - 512));
}

/// The reply with these lengths and flags.
fn status(extents: &[(u64, u32)]) -> Vec<u8> {
    let mut payload = 1_u32.to_be_bytes().to_vec();
    for (length, flags) in extents {
        payload.extend(u32::try_from(*length).unwrap().to_be_bytes());
        payload.extend(flags.to_be_bytes());
    }
    chunk(5, 6, &payload)
}

fn that_tells_holes(size: u64) -> Export {
    Export { tells_holes: true, size, ..export() }
}

#[test]
fn holes_are_told() {
    const HOLE: u32 = 3;
    let (hole, data) = (|length| Run { length, hole: true }, |length| Run { length, hole: false });
    let told = |flags, offset, length: u32, runs: &[Run], size| {
        let mut peer = Peer::structured(that_tells_holes(size));
        peer.feed(&request(BLOCK_STATUS, flags, 6, offset, length)).unwrap();
        assert_eq!(peer.session.poll_command(), None);
        let question = peer.session.poll_question().unwrap();
        assert_eq!((question.offset, question.length), (offset, length));
        assert_eq!((peer.session.poll_question(), peer.session.in_flight()), (None, 1));
        assert!(peer.sent().is_empty(), "not before it is known");
        peer.session.answer(question.handle, runs);
        assert_eq!(peer.session.in_flight(), 0);
        peer.sent()
    };
    let runs = [data(512), hole(4096), data(1024)];
    assert_eq!(told(0, 512, 8192, &runs, SIZE), status(&[(512, 0), (4096, HOLE), (1024, 0)]));
    assert_eq!(told(REQ_ONE, 512, 8192, &runs, SIZE), status(&[(512, 0)]));
    assert_eq!(told(REQ_ONE, 0, 1024, &[hole(1 << 20)], SIZE), status(&[(1024, HOLE)]));
    // The last run may be longer than what was asked for, as far as the export goes and its length can say.
    assert_eq!(told(0, 512, 1024, &runs, SIZE), status(&[(512, 0), (4096, HOLE)]));
    assert_eq!(told(0, SIZE - 1024, 512, &[hole(4096)], SIZE), status(&[(1024, HOLE)]));
    assert_eq!(told(0, 0, 512, &[hole(1 << 33), data(512)], 1 << 40), status(&[((1 << 32) - 512, HOLE)]));
    // What is not known, or makes no sense, is allocated.
    for runs in [&[][..], &[hole(511)], &[hole(0)], &[data(512), hole(100)]] {
        assert_eq!(told(0, 512, 1024, runs, SIZE), status(&[(SIZE - 512, 0)]));
        assert_eq!(told(REQ_ONE, 512, 1024, runs, SIZE), status(&[(1024, 0)]));
    }
}

#[test]
fn a_question_is_answered_once() {
    let mut peer = Peer::structured(that_tells_holes(SIZE));
    peer.feed(&request(BLOCK_STATUS, REQ_ONE, 6, 0, 512)).unwrap();
    peer.feed(&request(BLOCK_STATUS, REQ_ONE, 6, 512, 512)).unwrap();
    peer.feed(&request(FLUSH, 0, 6, 0, 0)).unwrap();
    let (first, second) = (peer.session.poll_question().unwrap(), peer.session.poll_question().unwrap());
    let flush = peer.command();
    peer.session.answer(flush.handle, &[Run { length: 512, hole: true }]);
    peer.session.answer(first.handle, &[Run { length: 512, hole: true }]);
    peer.session.answer(first.handle, &[]);
    assert_eq!(peer.sent(), status(&[(512, 3)]));
    // A driver that cannot say fails it.
    peer.session.complete(second.handle, Err(NbdError::Shutdown));
    assert_eq!(peer.sent()[20..24], 108_u32.to_be_bytes());
    assert_eq!(peer.session.in_flight(), 1);
}

#[test]
fn status_needs_a_selected_context() {
    refused_without_context(Peer::simple(export()));
    let mut peer = Peer::new(export());
    peer.feed(&[&FIXED.to_be_bytes()[..], &option(8, &[]), &option(7, &info("", &[]))].concat()).unwrap();
    peer.sent();
    refused_without_context(peer);
}

fn refused_without_context(mut peer: Peer) {
    peer.feed(&request(BLOCK_STATUS, 0, 5, 0, 512)).unwrap();
    let sent = peer.sent();
    let error = if sent.len() == 16 { &sent[4..8] } else { &sent[20..24] };
    assert_eq!(error, EINVAL.to_be_bytes());
}

#[test]
fn replies_go_out_as_commands_are_completed() {
    let mut peer = Peer::simple(export());
    // A client may use one cookie twice at a time if it likes.
    for cookie in [1, 2, 2] {
        peer.feed(&request(FLUSH, 0, cookie, 0, 0)).unwrap();
    }
    let commands = [peer.command(), peer.command(), peer.command()];
    assert_eq!(peer.session.poll_command(), None);
    peer.session.complete(commands[2].handle, Err(NbdError::Io));
    peer.session.complete(commands[0].handle, Ok(Pieces::new()));
    assert_eq!(peer.session.in_flight(), 1);
    peer.session.complete(commands[1].handle, Ok(Pieces::new()));
    assert_eq!(peer.sent(), [simple(5, 2), simple(0, 1), simple(0, 2)].concat());
}

#[test]
fn a_second_completion_is_ignored() {
    let mut peer = Peer::simple(export());
    peer.feed(&request(FLUSH, 0, 1, 0, 0)).unwrap();
    let command = peer.command();
    peer.session.complete(command.handle, Ok(Pieces::new()));
    peer.session.complete(command.handle, Ok(Pieces::new()));
    assert_eq!(peer.sent(), simple(0, 1));
}

#[test]
fn goodbye_waits_for_what_is_in_flight() {
    let mut peer = Peer::simple(export());
    let bytes =
        [request(READ, 0, 1, 0, 512), write(0, 2, 0, &pattern(512)), request(DISC, 0, 3, 0, 0)].concat();
    // What follows a goodbye is nobody's.
    peer.feed(&[bytes, b"and more".to_vec()].concat()).unwrap();
    assert!(!peer.session.wants_input());
    assert!(!peer.session.is_finished());
    let (read, write) = (peer.command(), peer.command());
    peer.session.complete(write.handle, Ok(Pieces::new()));
    assert_eq!(peer.sent(), simple(0, 2));
    assert!(!peer.session.is_finished());
    peer.session.complete(read.handle, Ok([Buffer::from(pattern(512))].into()));
    assert!(!peer.session.is_finished());
    assert_eq!(peer.sent(), [simple(0, 1), pattern(512)].concat());
    assert!(peer.session.is_finished());
}

#[test]
fn shutting_down_answers_what_has_arrived_and_drops_the_rest() {
    let mut peer = Peer::simple(export());
    let bytes = write(0, 1, 0, &pattern(4096));
    peer.feed(&bytes).unwrap();
    peer.feed(&bytes[..2000]).unwrap();
    peer.session.shut_down();
    assert!(!peer.session.wants_input() && !peer.session.is_finished());
    let command = peer.command();
    assert_eq!(peer.session.poll_command(), None);
    peer.session.complete(command.handle, Ok(Pieces::new()));
    assert_eq!(peer.sent(), simple(0, 1));
    assert!(peer.session.is_finished());
}

#[test]
fn a_wrong_magic_ends_the_connection() {
    let mut peer = Peer::simple(export());
    peer.feed(&request(FLUSH, 0, 1, 0, 0)).unwrap();
    let command = peer.command();
    let mut wrong = request(FLUSH, 0, 1, 0, 0);
    wrong[0] = 0;
    assert_eq!(peer.feed(&wrong), Err(SessionError::RequestMagic(0x0060_9513)));
    assert!(peer.session.is_finished() && !peer.session.wants_input());
    // A late completion does no harm.
    peer.session.complete(command.handle, Ok(Pieces::new()));
    assert!(peer.session.is_finished());
    assert_eq!(peer.session.poll_transmit(), None);
}
