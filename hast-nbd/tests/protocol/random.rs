//! Arbitrary input: never a panic, never a command outside the export, and the same result however the bytes
//! were cut.

use crate::peer::*;
use hast_nbd::{Command, Kind, NbdError, Pieces, Session};
use hast_net::buffer::{Buffer, Pool};
use proptest::collection::vec;
use proptest::prelude::*;

/// Feeds `bytes` in pieces of the given sizes, completes what comes at the end, and returns what came out.
fn run(mut session: Session, bytes: &[u8], cuts: &[usize]) -> (Vec<Command>, Vec<u8>, bool) {
    let mut rest = bytes;
    let mut cuts = cuts.iter().copied().cycle();
    let mut failed = false;
    while !rest.is_empty() && session.wants_input() && !failed {
        let cut = cuts.next().unwrap_or(usize::MAX);
        let space = session.space();
        let count = space.len().min(rest.len()).min(cut.max(1));
        space[..count].copy_from_slice(&rest[..count]);
        rest = &rest[count..];
        failed = session.advance(count).is_err();
    }
    let commands: Vec<Command> = std::iter::from_fn(|| session.poll_command()).collect();
    for command in &commands {
        session.complete(command.handle, answer(command));
    }
    let mut sent = Vec::new();
    while let Some(buffer) = session.poll_transmit() {
        sent.extend_from_slice(&buffer);
    }
    (commands, sent, failed)
}

fn answer(command: &Command) -> Result<Pieces, NbdError> {
    match &command.kind {
        Kind::Read { offset, length } if offset % 1024 == 0 => {
            Ok([Buffer::from(vec![7; *length as usize])].into())
        }
        Kind::Read { .. } => Err(NbdError::Io),
        _ => Ok(Pieces::new()),
    }
}

fn inside(command: &Command) -> bool {
    let (offset, length) = match &command.kind {
        Kind::Flush => return true,
        Kind::Write { offset, data, .. } => (*offset, data.iter().map(|piece| piece.len() as u64).sum()),
        Kind::Read { offset, length }
        | Kind::Trim { offset, length, .. }
        | Kind::WriteZeroes { offset, length, .. }
        | Kind::Cache { offset, length } => (*offset, u64::from(*length)),
    };
    length > 0 && offset % 512 == 0 && length % 512 == 0 && offset + length <= SIZE
}

/// The negotiation that brings a session to commands, or not quite.
fn opening() -> impl Strategy<Value = Vec<u8>> {
    let start = (FIXED | NO_ZEROES).to_be_bytes().to_vec();
    let options = prop_oneof![
        Just(option(3, &[])),
        Just(option(8, &[])),
        Just(option(10, &contexts("", &["base:allocation"]))),
        Just(option(9, &contexts("shared", &["base:"]))),
        Just(option(6, &info("shared", &[1, 3]))),
        (any::<u32>(), vec(any::<u8>(), 0..100)).prop_map(|(number, data)| option(number.max(4), &data)),
        (1_u32..12, vec(any::<u8>(), 0..40)).prop_map(|(number, data)| option(number, &data)),
    ];
    vec(options, 0..6)
        .prop_map(move |options| [start.clone(), options.concat(), option(7, &info("shared", &[3]))].concat())
}

fn offsets() -> impl Strategy<Value = u64> {
    prop_oneof![
        4 => (0..SIZE / 512).prop_map(|sector| sector * 512),
        1 => 0..SIZE,
        1 => (0_u64..8).prop_map(|sectors| SIZE - sectors * 512),
        1 => any::<u64>(),
    ]
}

fn requests() -> impl Strategy<Value = Vec<u8>> {
    let flags = prop_oneof![4 => Just(0), 2 => 0_u16..32, 1 => any::<u16>()];
    let lengths = prop_oneof![4 => (1_u32..40).prop_map(|sectors| sectors * 512), 1 => 0_u32..5000];
    let one = prop_oneof![
        8 => (0_u16..10, flags.clone(), any::<u64>(), offsets(), lengths.clone()).prop_map(
            |(number, flags, cookie, offset, length)| {
                let number = if number == WRITE { READ } else { number };
                request(number, flags, cookie, offset, length)
            }
        ),
        6 => (flags, any::<u64>(), offsets(), lengths, any::<u8>()).prop_map(
            |(flags, cookie, offset, length, byte)| {
                write(flags, cookie, offset, &vec![byte; length as usize])
            }
        ),
        1 => vec(any::<u8>(), 0..40),
    ];
    vec(one, 0..40).prop_map(|requests| requests.concat())
}

proptest! {
    #[test]
    fn arbitrary_bytes_do_no_harm(bytes in vec(any::<u8>(), 0..2000), cut in 1_usize..100) {
        run(Session::new(export(), Pool::new()), &bytes, &[cut]);
    }

    #[test]
    fn arbitrary_commands_stay_inside(opening in opening(), bytes in vec(any::<u8>(), 0..2000)) {
        let (commands, _, _) = run(Session::new(export(), Pool::new()), &[opening, bytes].concat(), &[]);
        prop_assert!(commands.iter().all(inside));
    }

    #[test]
    fn cutting_the_stream_changes_nothing(
        opening in opening(),
        requests in requests(),
        cuts in vec(prop_oneof![1_usize..40, 1_usize..5000], 1..20),
    ) {
        let bytes = [opening, requests].concat();
        let whole = run(Session::new(export(), Pool::new()), &bytes, &[]);
        let single = run(Session::new(export(), Pool::new()), &bytes, &[1]);
        let cut = run(Session::new(export(), Pool::new()), &bytes, &cuts);
        prop_assert!(whole.0.iter().all(inside));
        // After an error nothing is promised but that it is found; before it, cuts decide what was polled.
        if whole.2 {
            prop_assert!(single.2 && cut.2);
        } else {
            prop_assert_eq!(&whole, &single);
            prop_assert_eq!(&whole, &cut);
        }
    }

    #[test]
    fn a_session_under_pressure_answers_everything(
        requests in requests(),
        delays in vec(0_usize..5, 1..20),
    ) {
        // Completes late and sends late; in the end everything is answered and nothing is held.
        let mut peer = Peer::structured(export());
        let mut rest = &requests[..];
        let mut held = std::collections::VecDeque::new();
        for delay in delays.iter().cycle().take(1000) {
            match peer.feed_some(&rest[..rest.len().min(1000)]) {
                Ok(left) => rest = &rest[rest.len().min(1000) - left.len()..],
                Err(_) => return Ok(()),
            }
            held.extend(std::iter::from_fn(|| peer.session.poll_command()));
            while held.len() > *delay {
                let command = held.pop_back().unwrap();
                peer.session.complete(command.handle, answer(&command));
            }
            if *delay < 3 {
                peer.sent();
            }
            if rest.is_empty() {
                break;
            }
        }
        for command in held {
            peer.session.complete(command.handle, answer(&command));
        }
        peer.sent();
        while let Some(command) = peer.session.poll_command() {
            peer.session.complete(command.handle, answer(&command));
            peer.sent();
        }
        prop_assert_eq!(peer.session.in_flight(), 0);
        peer.session.shut_down();
        prop_assert!(peer.session.is_finished());
    }
}
