//! Greeting and options.

use crate::peer::*;
use hast_nbd::{Kind, SessionError};

const GO: u32 = 7;
const INFO: u32 = 6;

fn negotiating() -> Peer {
    let mut peer = Peer::new(export());
    peer.feed(&(FIXED | NO_ZEROES).to_be_bytes()).unwrap();
    peer
}

/// The replies to `INFO` and `GO` for an export of `SIZE` with these flags.
fn infos(option: u32, flags: u16) -> Vec<u8> {
    let mut export = vec![0, 0];
    export.extend(SIZE.to_be_bytes());
    export.extend(flags.to_be_bytes());
    let sizes = [0, 3, 0, 0, 2, 0, 0, 0, 0x10, 0, 2, 0, 0, 0];
    [reply(option, 3, &export), reply(option, 3, &sizes)].concat()
}

fn error_kind(sent: &[u8], option: u32) -> u32 {
    assert_eq!(sent[..8], reply(option, 0, &[])[..8]);
    assert_eq!(sent[8..12], option.to_be_bytes());
    let length = u32::from_be_bytes(sent[16..20].try_into().unwrap());
    assert_eq!(sent.len(), 20 + length as usize, "exactly one reply");
    u32::from_be_bytes(sent[12..16].try_into().unwrap())
}

#[test]
fn a_flag_that_was_not_offered_ends_the_connection() {
    let mut peer = Peer::new(export());
    assert_eq!(peer.feed(&7_u32.to_be_bytes()), Err(SessionError::ClientFlags(7)));
    assert!(peer.session.is_finished());
    assert!(!peer.session.wants_input());
}

#[test]
fn export_name_answers_with_and_without_zeroes() {
    for (flags, zeroes) in [(FIXED, 124), (FIXED | NO_ZEROES, 0), (0, 124)] {
        for name in ["shared", ""] {
            let mut peer = Peer::new(export());
            peer.feed(&flags.to_be_bytes()).unwrap();
            peer.feed(&option(1, name.as_bytes())).unwrap();
            let mut expected = SIZE.to_be_bytes().to_vec();
            expected.extend(FLAGS.to_be_bytes());
            expected.extend(vec![0; zeroes]);
            assert_eq!(peer.sent(), expected);
            peer.feed(&request(FLUSH, 0, 1, 0, 0)).unwrap();
            peer.command();
        }
    }
}

#[test]
fn export_name_of_another_export_ends_the_connection() {
    let mut peer = negotiating();
    assert_eq!(peer.feed(&option(1, b"other")), Err(SessionError::UnknownExport("other".into())));
    assert!(peer.session.is_finished());
    let mut peer = negotiating();
    assert!(matches!(peer.feed(&option(1, &[b'x'; 70_000])), Err(SessionError::UnknownExport(_))));
}

#[test]
fn go_and_info_tell_size_flags_and_blocks() {
    for name in ["shared", ""] {
        let mut peer = negotiating();
        peer.feed(&option(INFO, &info(name, &[]))).unwrap();
        assert_eq!(peer.sent(), [infos(INFO, FLAGS), reply(INFO, ACK, &[])].concat());
        peer.feed(&option(GO, &info(name, &[3, 99]))).unwrap();
        assert_eq!(peer.sent(), [infos(GO, FLAGS), reply(GO, ACK, &[])].concat());
        peer.feed(&request(FLUSH, 0, 1, 0, 0)).unwrap();
        peer.command();
    }
}

#[test]
fn the_canonical_name_is_told_on_demand() {
    let mut peer = negotiating();
    peer.feed(&option(INFO, &info("", &[1]))).unwrap();
    let name = reply(INFO, 3, b"\x00\x01shared");
    assert_eq!(peer.sent(), [infos(INFO, FLAGS), name, reply(INFO, ACK, &[])].concat());
}

#[test]
fn dont_fragment_is_offered_with_structured_replies_only() {
    let mut peer = negotiating();
    peer.feed(&option(8, &[])).unwrap();
    assert_eq!(peer.sent(), reply(8, ACK, &[]));
    peer.feed(&option(GO, &info("", &[]))).unwrap();
    assert_eq!(peer.sent(), [infos(GO, FLAGS | SEND_DF), reply(GO, ACK, &[])].concat());
}

#[test]
fn a_read_only_export_says_so() {
    let mut export = export();
    export.read_only = true;
    let mut peer = Peer::new(export);
    peer.feed(&FIXED.to_be_bytes()).unwrap();
    peer.feed(&option(GO, &info("", &[]))).unwrap();
    assert_eq!(peer.sent(), [infos(GO, FLAGS | 2), reply(GO, ACK, &[])].concat());
}

#[test]
fn an_export_that_cannot_trim_does_not_say_that_it_can() {
    let mut export = export();
    export.trims = false;
    let mut peer = Peer::new(export);
    peer.feed(&FIXED.to_be_bytes()).unwrap();
    peer.feed(&option(GO, &info("", &[]))).unwrap();
    assert_eq!(peer.sent(), [infos(GO, FLAGS & !0x0020), reply(GO, ACK, &[])].concat());
    peer.feed(&request(TRIM, 0, 5, 0, 512)).unwrap();
    assert_eq!(peer.command().kind, Kind::Trim { offset: 0, length: 512, fua: false });
}

#[test]
fn an_unknown_export_is_refused_and_the_negotiation_goes_on() {
    let mut peer = negotiating();
    for number in [INFO, GO] {
        peer.feed(&option(number, &info("other", &[3]))).unwrap();
        assert_eq!(error_kind(&peer.sent(), number), ERR_UNKNOWN);
    }
    peer.feed(&option(GO, &info("shared", &[]))).unwrap();
    assert_eq!(peer.sent(), [infos(GO, FLAGS), reply(GO, ACK, &[])].concat());
}

#[test]
fn malformed_info_is_refused() {
    let good = info("shared", &[3]);
    let mut long = good.clone();
    long.push(0);
    let mut name_beyond_the_end = good.clone();
    name_beyond_the_end[0] = 0xff;
    for data in [&[][..], &good[..good.len() - 1], &long, &name_beyond_the_end, &[0; 5]] {
        let mut peer = negotiating();
        peer.feed(&option(GO, data)).unwrap();
        assert_eq!(error_kind(&peer.sent(), GO), ERR_INVALID);
        peer.feed(&option(GO, &good)).unwrap();
        assert_eq!(peer.sent(), [infos(GO, FLAGS), reply(GO, ACK, &[])].concat());
    }
}

#[test]
fn list_names_the_export() {
    let mut peer = negotiating();
    peer.feed(&option(3, &[])).unwrap();
    assert_eq!(peer.sent(), [reply(3, 2, b"\0\0\0\x06shared"), reply(3, ACK, &[])].concat());
    peer.feed(&option(3, b"x")).unwrap();
    assert_eq!(error_kind(&peer.sent(), 3), ERR_INVALID);
}

#[test]
fn abort_is_acknowledged_and_ends_the_session() {
    for data in [&[][..], b"whatever", &[0; 100_000]] {
        let mut peer = negotiating();
        peer.feed(&option(2, data)).unwrap();
        assert!(!peer.session.is_finished(), "the answer is still to be sent");
        assert_eq!(peer.sent(), reply(2, ACK, &[]));
        assert!(peer.session.is_finished());
        assert!(!peer.session.wants_input());
    }
}

#[test]
fn unknown_options_are_refused_in_step() {
    // PEEK_EXPORT, STARTTLS, EXTENDED_HEADERS and two that nobody has defined.
    for (number, length) in [(4, 0), (5, 0), (11, 0), (11, 7), (12, 200_000), (u32::MAX, 1)] {
        let mut peer = negotiating();
        let data = vec![b'I'; length];
        peer.feed(&[option(number, &data), option(3, &[])].concat()).unwrap();
        let sent = peer.sent();
        let list = [reply(3, 2, b"\0\0\0\x06shared"), reply(3, ACK, &[])].concat();
        assert!(sent.ends_with(&list));
        assert_eq!(error_kind(&sent[..sent.len() - list.len()], number), ERR_UNSUP);
    }
}

#[test]
fn structured_reply_takes_no_data() {
    let mut peer = negotiating();
    peer.feed(&option(8, b"x")).unwrap();
    assert_eq!(error_kind(&peer.sent(), 8), ERR_INVALID);
    peer.feed(&option(GO, &info("", &[]))).unwrap();
    assert_eq!(peer.sent(), [infos(GO, FLAGS), reply(GO, ACK, &[])].concat());
}

#[test]
fn contexts_need_structured_replies() {
    let mut peer = negotiating();
    for number in [9, 10] {
        peer.feed(&option(number, &contexts("shared", &["base:allocation"]))).unwrap();
        assert_eq!(error_kind(&peer.sent(), number), ERR_INVALID);
    }
}

#[test]
fn base_allocation_is_listed_and_selected() {
    let listed = [reply(9, 4, b"\0\0\0\0base:allocation"), reply(9, ACK, &[])].concat();
    let selected = [reply(10, 4, b"\0\0\0\x01base:allocation"), reply(10, ACK, &[])].concat();
    let cases: [(&[&str], bool, bool); 7] = [
        (&[], true, false),
        (&["base:"], true, false),
        (&["base:allocation"], true, true),
        (&["qemu:dirty-bitmap:x", "base:allocation", "base:allocation"], true, true),
        (&["qemu:"], false, false),
        (&["base:other"], false, false),
        (&["base:allocation\0"], false, false),
    ];
    for (queries, lists, selects) in cases {
        for name in ["shared", ""] {
            let mut peer = negotiating();
            peer.feed(&option(8, &[])).unwrap();
            peer.sent();
            peer.feed(&option(9, &contexts(name, queries))).unwrap();
            let expected = if lists { listed.clone() } else { reply(9, ACK, &[]) };
            assert_eq!(peer.sent(), expected, "{queries:?}");
            peer.feed(&option(10, &contexts(name, queries))).unwrap();
            let expected = if selects { selected.clone() } else { reply(10, ACK, &[]) };
            assert_eq!(peer.sent(), expected, "{queries:?}");
        }
    }
}

#[test]
fn malformed_and_misdirected_context_queries_are_refused() {
    let mut peer = negotiating();
    peer.feed(&option(8, &[])).unwrap();
    peer.sent();
    let good = contexts("shared", &["base:allocation"]);
    let mut counts_too_many = good.clone();
    counts_too_many[10..14].copy_from_slice(&u32::MAX.to_be_bytes());
    let mut trailing = good.clone();
    trailing.push(b'x');
    for number in [9, 10] {
        for data in [&[][..], &good[..good.len() - 1], &counts_too_many, &trailing] {
            peer.feed(&option(number, data)).unwrap();
            assert_eq!(error_kind(&peer.sent(), number), ERR_INVALID);
        }
        peer.feed(&option(number, &contexts("other", &["base:allocation"]))).unwrap();
        assert_eq!(error_kind(&peer.sent(), number), ERR_UNKNOWN);
    }
}

#[test]
fn a_failed_selection_drops_the_one_before() {
    let good = option(10, &contexts("shared", &["base:allocation"]));
    let failures = [
        option(10, &contexts("other", &["base:allocation"])),
        option(10, &contexts("shared", &[])),
        option(10, b"?"),
        option(10, &[0; 70_000]),
    ];
    for failure in failures {
        let mut peer = negotiating();
        peer.feed(&[option(8, &[]), good.clone(), failure, option(GO, &info("", &[]))].concat()).unwrap();
        peer.sent();
        peer.feed(&request(BLOCK_STATUS, 0, 9, 0, 512)).unwrap();
        let sent = peer.sent();
        assert_eq!(sent[6..8], 0x8001_u16.to_be_bytes(), "an error chunk");
        assert_eq!(sent[20..24], 22_u32.to_be_bytes());
    }
}

#[test]
fn too_long_options_are_skipped_and_refused() {
    let mut peer = negotiating();
    for number in [3, 6, 7, 8, 9, 10] {
        peer.feed(&option(number, &vec![0; 64 * 1024 + 1])).unwrap();
        assert_eq!(error_kind(&peer.sent(), number), ERR_TOO_BIG);
    }
    // Just short enough: judged by its content.
    peer.feed(&option(GO, &vec![0; 64 * 1024])).unwrap();
    assert_eq!(error_kind(&peer.sent(), GO), ERR_INVALID);
    let mut absurd = option(GO, &[]);
    absurd[12..].copy_from_slice(&u32::MAX.to_be_bytes());
    assert_eq!(peer.feed(&absurd), Err(SessionError::OptionTooLong { option: GO, length: u32::MAX }));
}

#[test]
fn a_stream_out_of_step_ends_the_connection() {
    let mut peer = negotiating();
    let mut wrong = option(3, &[]);
    wrong[7] = b'X';
    assert_eq!(peer.feed(&wrong), Err(SessionError::OptionMagic(0x4948_4156_454f_5058)));
    assert!(peer.session.is_finished());
    assert_eq!(peer.session.poll_transmit(), None);
}

#[test]
fn a_client_that_reads_no_replies_is_not_read_either() {
    let mut peer = negotiating();
    let flood = option(3, &[]).repeat(100_000);
    let rest = peer.feed_some(&flood).unwrap().len();
    assert!(rest > 0 && !peer.session.wants_input());
    let answered = peer.sent().len();
    assert!(answered < 256 << 10, "{answered} bytes were queued");
    assert!(peer.session.wants_input());
}
