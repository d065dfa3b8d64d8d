//! The client against sessions, over real sockets.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

#[allow(dead_code)]
mod server;

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::Duration;

use hast_nbd::client::{Client, ClientError, Dialect, Request, Ticket};
use hast_nbd::{Export, NbdError};
use proptest::collection::vec;
use proptest::prelude::*;
use server::{Disk, Server, serve};

const SIZE: usize = 1 << 20;
const PATIENCE: Option<Duration> = Some(Duration::from_secs(60));

fn pair(disk: &Arc<Disk>, dialect: Dialect, shuffle: Option<u64>) -> (Client, JoinHandle<()>) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let size = disk.bytes.lock().unwrap().len() as u64;
    let disk = Arc::clone(disk);
    let thread = std::thread::spawn(move || serve(theirs, Export::new("shared", size, 512), &disk, shuffle));
    let mut client = Client::over(ours, "shared", dialect).unwrap();
    client.set_timeout(PATIENCE).unwrap();
    (client, thread)
}

fn dialects() -> [Dialect; 4] {
    [(true, false), (false, false), (true, true), (false, true)]
        .map(|(structured, export_name)| Dialect { structured, export_name })
}

#[test]
fn everything_a_client_can_ask_in_every_dialect() {
    for dialect in dialects() {
        let disk = Disk::new(SIZE);
        let (client, server) = pair(&disk, dialect, None);
        assert_eq!(client.size(), SIZE as u64);
        assert!(client.can_multi_conn());
        assert_eq!(client.minimum_block(), if dialect.export_name { 1 } else { 512 });
        assert_eq!(client.maximum_payload(), 32 << 20);
        let data: Vec<u8> = (0..300_032_u32).map(|i| (i % 253) as u8).collect();
        client.write(1024, &data).unwrap();
        assert_eq!(client.read(1024, data.len()).unwrap(), data);
        client.write_fua(0, &[9; 512]).unwrap();
        assert_eq!(disk.fuas.load(Ordering::SeqCst), 1);
        client.flush().unwrap();
        assert_eq!(disk.flushes.load(Ordering::SeqCst), 1);
        client.write_zeroes(2048, 4096).unwrap();
        client.trim(8192, 512).unwrap();
        client.cache(0, 65_536).unwrap();
        let mut expected = vec![0; SIZE];
        expected[1024..][..data.len()].copy_from_slice(&data);
        expected[..512].fill(9);
        expected[2048..][..4096].fill(0);
        expected[8192..][..512].fill(0);
        assert_eq!(client.read(0, SIZE).unwrap(), expected);
        assert_eq!(*disk.bytes.lock().unwrap(), expected);
        if dialect.structured {
            assert_eq!(client.block_status(512, 1024, true).unwrap(), [(1024, 0)]);
            assert_eq!(client.block_status(512, 1024, false).unwrap(), [(SIZE as u32 - 512, 0)]);
        } else {
            assert!(matches!(
                client.block_status(512, 1024, true),
                Err(ClientError::Command { error: NbdError::Inval, .. })
            ));
        }
        client.disconnect().unwrap();
        server.join().unwrap();
        assert_eq!(disk.errors(), [""; 0]);
    }
}

#[test]
fn commands_under_numbers_of_the_callers_own() {
    for dialect in dialects() {
        let disk = Disk::new(SIZE);
        let (client, server) = pair(&disk, dialect, Some(3));
        let agreed = client.agreed();
        assert_eq!(agreed.size, SIZE as u64);
        assert!(agreed.can_flush() && agreed.can_fua() && agreed.can_trim() && agreed.can_write_zeroes());
        assert!(!agreed.is_read_only());
        for number in 0..8_u64 {
            let data = [number as u8; 512];
            let request = Request::Write { offset: number * 512, data: &data, fua: number == 7 };
            client.send(number, request).unwrap();
        }
        let mut numbers: Vec<u64> = (0..8)
            .map(|_| {
                let (number, answer) = client.receive().unwrap();
                assert_eq!(answer.unwrap(), []);
                number
            })
            .collect();
        numbers.sort_unstable();
        assert_eq!(numbers, [0, 1, 2, 3, 4, 5, 6, 7]);
        // A number is free again once its answer has come.
        client.send(5, Request::Read { offset: 5 * 512, length: 512 }).unwrap();
        client.send(6, Request::Read { offset: SIZE as u64, length: 512 }).unwrap();
        for _ in 0..2 {
            match client.receive().unwrap() {
                (5, answer) => assert_eq!(answer.unwrap(), [5; 512]),
                (number, answer) => assert_eq!((number, answer.unwrap_err()), (6, NbdError::Inval)),
            }
        }
        client.close();
        assert!(matches!(client.receive(), Err(ClientError::Closed)), "nothing comes any more");
        assert!(client.send(1, Request::Flush).is_err());
        server.join().unwrap();
        assert_eq!(disk.errors(), [""; 0]);
    }
}

#[test]
fn errors_come_back_with_their_text_and_the_connection_goes_on() {
    for dialect in dialects() {
        let disk = Disk::new(SIZE);
        let (client, server) = pair(&disk, dialect, None);
        let failures = [
            (client.write(SIZE as u64, &[0; 512]), NbdError::NoSpc),
            (client.read(SIZE as u64, 512).map(drop), NbdError::Inval),
            (client.write(1, &[0; 512]), NbdError::Inval),
            (client.write_zeroes(SIZE as u64 - 512, 1024), NbdError::NoSpc),
        ];
        for (result, expected) in failures {
            let Err(ClientError::Command { error, text }) = result else { panic!("{result:?}") };
            assert_eq!(error, expected);
            assert_eq!(text.is_empty(), !dialect.structured);
        }
        client.flush().unwrap();
        client.disconnect().unwrap();
        server.join().unwrap();
    }
}

#[test]
fn many_large_commands_under_way_do_not_block_each_other() {
    // Far more than fits the sockets and the session's bounds, and no answer fetched before the end.
    let disk = Disk::new(8 << 20);
    let (client, server) = pair(&disk, Dialect::default(), Some(3));
    let block = vec![5; 1 << 20];
    let mut tickets = Vec::new();
    for _ in 0..25 {
        for at in 0..8_u64 {
            tickets
                .push(client.submit(Request::Write { offset: at << 20, data: &block, fua: false }).unwrap());
            tickets.push(client.submit(Request::Read { offset: at << 20, length: 1 << 20 }).unwrap());
        }
    }
    for (number, ticket) in tickets.into_iter().enumerate().rev() {
        let data = client.wait(ticket).unwrap();
        assert!(if number % 2 == 0 { data.is_empty() } else { data == block });
    }
    client.disconnect().unwrap();
    server.join().unwrap();
}

#[test]
fn threads_share_a_client() {
    let disk = Disk::new(SIZE);
    let (client, server) = pair(&disk, Dialect::default(), Some(5));
    std::thread::scope(|scope| {
        for thread in 0..4_u8 {
            let client = &client;
            scope.spawn(move || {
                let offset = u64::from(thread) * 65_536;
                for round in 0..50_u8 {
                    let data = vec![thread ^ round; 4096];
                    client.write(offset, &data).unwrap();
                    assert_eq!(client.read(offset, 4096).unwrap(), data);
                }
            });
        }
    });
    client.disconnect().unwrap();
    server.join().unwrap();
}

#[test]
fn a_path_an_export_name_and_a_list() {
    let dir = tempfile::tempdir().unwrap();
    let disk = Disk::new(SIZE);
    let server =
        Server::start(&dir.path().join("shared.sock"), Export::new("shared", SIZE as u64, 4096), disk);
    assert_eq!(Client::list(server.path()).unwrap(), ["shared"]);
    for name in ["shared", ""] {
        let client = Client::connect(server.path(), name).unwrap();
        assert_eq!(client.minimum_block(), 4096);
    }
    let refused = Client::connect(server.path(), "other");
    assert!(
        matches!(refused, Err(ClientError::Refused { option: 10, reply: 0x8000_0006, .. })),
        "{refused:?}"
    );
    let dialect = Dialect { structured: false, export_name: true };
    let closed = Client::over(UnixStream::connect(server.path()).unwrap(), "other", dialect);
    assert!(matches!(closed, Err(ClientError::Closed)), "{closed:?}");
}

#[test]
fn a_server_that_goes_away_is_noticed() {
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    let server = std::thread::spawn(move || {
        theirs.write_all(b"NBDMAGICIHAVEOPT\x00\x03").unwrap();
        let mut received = [0; 4 + 16 + 6];
        theirs.read_exact(&mut received).unwrap();
        theirs.write_all(&(SIZE as u64).to_be_bytes()).unwrap();
        theirs.write_all(&[1, 0x6d]).unwrap();
        theirs.read_exact(&mut [0; 28]).unwrap();
    });
    let client = Client::over(ours, "shared", Dialect { structured: false, export_name: true }).unwrap();
    let result = client.flush();
    assert!(matches!(result, Err(ClientError::Closed)), "{result:?}");
    server.join().unwrap();
}

#[test]
fn nonsense_from_a_server_is_an_error() {
    let handshakes: [&[u8]; 3] =
        [b"NBDMAGICIHAVEOPX\x00\x03", b"SSH-2.0-OpenSSH_9.9\r\n", b"NBDMAGICIHAVEOPT\x00\x00"];
    for bytes in handshakes {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        theirs.write_all(bytes).unwrap();
        let result = Client::over(ours, "", Dialect::default());
        assert!(matches!(result, Err(ClientError::Protocol(_))), "{result:?}");
    }
    let cookie = 1_u64.to_be_bytes();
    let simple = [&[0x67, 0x44, 0x66, 0x98, 0, 0, 0, 0][..], &2_u64.to_be_bytes()].concat();
    let chunk = |kind: [u8; 2], payload: &[u8]| {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        [&[0x66, 0x8e, 0x33, 0xef, 0, 1], &kind[..], &cookie, &length, payload].concat()
    };
    let replies = [
        b"nonsense".to_vec(),
        simple,
        chunk([0, 0], &[]),
        chunk([0, 1], &[&512_u64.to_be_bytes()[..], &[0; 512]].concat()),
        chunk([0, 1], &[0; 8 + 511]),
        chunk([0, 1], &[0; 8 + 513]),
        chunk([0, 1], &[0; 3]),
        chunk([0, 2], &[0; 11]),
        chunk([0, 5], &[0; 12]),
        chunk([0, 9], &[]),
        chunk([0x80, 1], &[0, 0, 0, 5, 0, 1]),
    ];
    for bytes in replies {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let shown = bytes.clone();
        let server = std::thread::spawn(move || {
            theirs.write_all(b"NBDMAGICIHAVEOPT\x00\x03").unwrap();
            theirs.read_exact(&mut [0; 4 + 16]).unwrap();
            theirs.write_all(&(SIZE as u64).to_be_bytes()).unwrap();
            theirs.write_all(&[1, 0x6d]).unwrap();
            theirs.read_exact(&mut [0; 28]).unwrap();
            theirs.write_all(&bytes).unwrap();
            theirs.read_to_end(&mut Vec::new()).unwrap();
        });
        let dialect = Dialect { structured: false, export_name: true };
        let mut client = Client::over(ours, "", dialect).unwrap();
        client.set_timeout(PATIENCE).unwrap();
        let result = client.read(0, 512);
        assert!(matches!(result, Err(ClientError::Protocol(_))), "{shown:?}: {result:?}");
        assert!(client.flush().is_err());
        drop(client);
        server.join().unwrap();
    }
}

#[test]
fn a_silent_server_is_waited_for_so_long() {
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    theirs.write_all(b"NBDMAGICIHAVEOPT\x00\x03").unwrap();
    theirs.write_all(&(SIZE as u64).to_be_bytes()).unwrap();
    theirs.write_all(&[1, 0x6d]).unwrap();
    let mut client = Client::over(ours, "", Dialect { structured: false, export_name: true }).unwrap();
    client.set_timeout(Some(Duration::from_millis(20))).unwrap();
    assert!(matches!(client.flush(), Err(ClientError::Timeout)));
    assert!(matches!(client.disconnect(), Err(ClientError::Timeout)));
}

#[derive(Clone, Debug)]
enum Step {
    Read(usize, usize),
    Write(usize, usize, u8, bool),
    Zero(usize, usize, bool),
    Trim(usize, usize),
    Cache(usize, usize),
    Status(usize, usize),
    Flush,
    Beyond,
    Unaligned(u8),
}

/// A range in sectors, mostly short.
fn ranges() -> impl Strategy<Value = (usize, usize)> {
    (0..SIZE / 512, prop_oneof![8 => 1_usize..20, 1 => 1_usize..600])
        .prop_map(|(start, length)| (start, length.min(SIZE / 512 - start)))
}

fn steps() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => ranges().prop_map(|(at, length)| Step::Read(at, length)),
        4 => (ranges(), any::<u8>(), any::<bool>())
            .prop_map(|((at, length), byte, fua)| Step::Write(at, length, byte, fua)),
        1 => (ranges(), any::<bool>()).prop_map(|((at, length), no_hole)| Step::Zero(at, length, no_hole)),
        1 => ranges().prop_map(|(at, length)| Step::Trim(at, length)),
        1 => ranges().prop_map(|(at, length)| Step::Cache(at, length)),
        1 => ranges().prop_map(|(at, length)| Step::Status(at, length)),
        1 => Just(Step::Flush),
        1 => Just(Step::Beyond),
        1 => any::<u8>().prop_map(Step::Unaligned),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Random commands, many under way at a time, answered in any order: the client sees what a plain array
    /// that executes them in order would show.
    #[test]
    fn random_commands_match_a_model(
        steps in vec(steps(), 1..120),
        window in 1_usize..40,
        seed in any::<u64>(),
        dialect in prop::sample::select(dialects().to_vec()),
    ) {
        let disk = Disk::new(SIZE);
        let (client, server) = pair(&disk, dialect, Some(seed));
        let mut model = vec![0; SIZE];
        let mut under_way: Vec<(Ticket, Result<Vec<u8>, NbdError>)> = Vec::new();
        for (number, step) in steps.iter().enumerate() {
            let mut expected = Ok(Vec::new());
            let bytes = |at: usize, length: usize| ((at * 512) as u64, (length * 512) as u32);
            let data;
            let request = match *step {
                Step::Read(at, length) => {
                    expected = Ok(model[at * 512..][..length * 512].to_vec());
                    let (offset, length) = bytes(at, length);
                    Request::Read { offset, length }
                }
                Step::Write(at, length, byte, fua) => {
                    data = vec![byte; length * 512];
                    model[at * 512..][..length * 512].copy_from_slice(&data);
                    Request::Write { offset: bytes(at, 0).0, data: &data, fua }
                }
                Step::Zero(at, length, no_hole) => {
                    model[at * 512..][..length * 512].fill(0);
                    let (offset, length) = bytes(at, length);
                    Request::WriteZeroes { offset, length, no_hole, fua: !no_hole }
                }
                Step::Trim(at, length) => {
                    model[at * 512..][..length * 512].fill(0);
                    let (offset, length) = bytes(at, length);
                    Request::Trim { offset, length, fua: false }
                }
                Step::Cache(at, length) => {
                    let (offset, length) = bytes(at, length);
                    Request::Cache { offset, length }
                }
                Step::Status(at, length) => {
                    if !dialect.structured {
                        expected = Err(NbdError::Inval);
                    }
                    let (offset, length) = bytes(at, length);
                    Request::BlockStatus { offset, length, one: number % 2 == 0 }
                }
                Step::Flush => Request::Flush,
                Step::Beyond => {
                    expected = Err(NbdError::NoSpc);
                    data = vec![1; 70_144];
                    Request::Write { offset: SIZE as u64 - 512, data: &data, fua: true }
                }
                Step::Unaligned(by) => {
                    expected = Err(NbdError::Inval);
                    data = vec![1; 511];
                    Request::Write { offset: u64::from(by), data: &data, fua: false }
                }
            };
            under_way.push((client.submit(request).unwrap(), expected));
            while under_way.len() > window {
                let (ticket, expected) = under_way.remove(number % under_way.len());
                prop_assert_eq!(outcome(client.wait(ticket)), expected);
            }
        }
        for (ticket, expected) in under_way {
            prop_assert_eq!(outcome(client.wait(ticket)), expected);
        }
        prop_assert!(client.read(0, SIZE).unwrap() == model);
        client.disconnect().unwrap();
        server.join().unwrap();
        prop_assert_eq!(disk.errors(), [""; 0]);
    }
}

fn outcome(result: Result<Vec<u8>, ClientError>) -> Result<Vec<u8>, NbdError> {
    result.map_err(|error| match error {
        ClientError::Command { error, .. } => error,
        other => panic!("{other}"),
    })
}
