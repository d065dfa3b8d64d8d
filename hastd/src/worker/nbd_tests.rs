use super::*;

use hast_format::layout::Layout;
use hast_nbd::client::{Client as NbdClient, ClientError, Dialect, Request};
use hast_net::errno::Errno;
use hast_provider::Provider;
use polling::Events;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::mpsc;
use std::thread;
use std::time::Instant;

const LISTENER: usize = 4;
const FIRST: usize = 16;
const SIZE: usize = 64 << 20;
const DEADLINE: Duration = Duration::from_secs(60);

/// A server over a device in memory, carried out by the test.
struct Bench {
    _directory: tempfile::TempDir,
    path: PathBuf,
    poller: Arc<Poller>,
    server: Server,
    memory: Vec<u8>,
    log: Vec<Op>,
    fail: Option<fn(&Op) -> Option<Errno>>,
}

impl Bench {
    fn new() -> Bench {
        Bench::with(None)
    }

    fn with(holes: Option<Holes>) -> Bench {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("nbd.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let poller = Arc::new(Poller::new().unwrap());
        let export = Export::new("test", SIZE as u64, 512);
        let keys = (LISTENER, FIRST);
        let server = Server::new(&poller, keys, listener.into(), export, holes, Pool::new()).unwrap();
        let memory = vec![0; SIZE];
        Bench { _directory: directory, path, poller, server, memory, log: Vec::new(), fail: None }
    }

    /// One whose provider is a file that has something in this part of its data area, and what is heard of each answer.
    fn of_holes(written: Range<u64>) -> (Bench, mpsc::Receiver<()>) {
        let file = tempfile::tempfile_in("/dev/shm").unwrap();
        let layout = Layout::create(SIZE as u64 + (1 << 20), 4096, 2 << 20).unwrap();
        file.set_len(SIZE as u64 + (1 << 20)).unwrap();
        let data = vec![1; (written.end - written.start) as usize];
        file.write_all_at(&data, layout.localoff() + written.start).unwrap();
        let provider = Provider::from_fd(file.into(), "test").unwrap();
        let (woken, wakes) = mpsc::channel();
        let holes = Holes::new(&provider, &layout, move || _ = woken.send(()));
        (Bench::with(holes), wakes)
    }

    /// A client connects and asks something; once that is there it waits in a thread of its own.
    fn asks<T: Send + 'static>(
        &mut self,
        question: impl FnOnce(&NbdClient) -> T + Send + 'static,
    ) -> thread::JoinHandle<(T, NbdClient)> {
        let client = self.connect();
        let asking = thread::spawn(move || (question(&client), client));
        self.until("the question is there", |server| {
            server.clients.values().any(|client| client.session.in_flight() == 1)
        });
        asking
    }

    /// The client gets its answer.
    fn hears<T>(&mut self, asking: thread::JoinHandle<(T, NbdClient)>) -> (T, NbdClient) {
        let started = Instant::now();
        while !asking.is_finished() {
            assert!(started.elapsed() < DEADLINE, "the client waits");
            self.turn();
        }
        asking.join().unwrap()
    }

    /// Moves bytes between sockets and sessions, and carries out nothing.
    fn turn(&mut self) {
        self.server.transmit();
        self.server.watch();
        let mut events = Events::new();
        self.poller.wait(&mut events, Some(Duration::from_millis(20))).unwrap();
        for event in events.iter() {
            match event.key {
                LISTENER => self.server.accept(Duration::ZERO),
                client => self.server.receive(client),
            }
        }
    }

    fn carry_out(&mut self, id: RequestId, op: Op) {
        self.log.push(op.clone());
        let result = match (self.fail.and_then(|fail| fail(&op)), op) {
            (Some(error), _) => Err(error),
            (None, Op::Read { offset, length }) => {
                let at = offset as usize;
                Ok(Some(Buffer::from(self.memory[at..at + length as usize].to_vec())))
            }
            (None, Op::Write { offset, data }) => {
                let at = offset as usize;
                self.memory[at..at + data.len()].copy_from_slice(&data);
                Ok(None)
            }
            (None, Op::Delete { offset, length }) => {
                self.memory[offset as usize..][..length as usize].fill(0);
                Ok(None)
            }
            (None, Op::Flush) => Ok(None),
        };
        self.server.complete(id, result);
    }

    fn work(&mut self) {
        while let Some((id, op)) = self.server.next_request() {
            self.carry_out(id, op);
        }
    }

    /// Serves until `client`, in a thread of its own, has come to its end.
    fn serve<T: Send + 'static>(&mut self, client: impl FnOnce(PathBuf) -> T + Send + 'static) -> T {
        let (sender, receiver) = mpsc::channel();
        let path = self.path.clone();
        let thread = thread::spawn(move || sender.send(client(path)).unwrap());
        let started = Instant::now();
        loop {
            assert!(started.elapsed() < DEADLINE, "the client does not come to its end");
            self.turn();
            self.work();
            match receiver.try_recv() {
                Ok(value) => {
                    thread.join().unwrap();
                    return value;
                }
                Err(mpsc::TryRecvError::Empty) => {}
                Err(mpsc::TryRecvError::Disconnected) => panic!("the client failed"),
            }
        }
    }

    fn connect(&mut self) -> NbdClient {
        self.serve(|path| NbdClient::connect(path, "test").unwrap())
    }

    fn until(&mut self, what: &str, done: impl Fn(&Server) -> bool) {
        let started = Instant::now();
        while !done(&self.server) {
            assert!(started.elapsed() < DEADLINE, "never happened: {what}");
            self.turn();
        }
    }
}

fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|i| (i / 512 + i) as u8).collect()
}

#[test]
fn a_client_reads_what_it_wrote_through_requests_of_bounded_size() {
    let mut bench = Bench::new();
    bench.serve(|path| {
        let client = NbdClient::connect(path, "").unwrap();
        assert_eq!(client.size(), SIZE as u64);
        let data = pattern(5 << 20);
        client.write(512, &data).unwrap();
        assert!(client.read(512, data.len()).unwrap() == data);
        client.write_zeroes(1 << 20, 300_032).unwrap();
        let after = client.read(512, data.len()).unwrap();
        let from = (1 << 20) - 512;
        assert!(after[..from] == data[..from] && after[from + 300_032..] == data[from + 300_032..]);
        assert!(after[from..from + 300_032].iter().all(|&byte| byte == 0));
        client.trim(0, 8 << 20).unwrap();
        client.cache(0, 4096).unwrap();
        client.flush().unwrap();
        client.disconnect().unwrap();
    });
    assert!(
        bench.log.iter().all(|op| matches!(op, Op::Delete { .. }) || op.range().1 <= u64::from(MAX_REQUEST))
    );
    assert!(bench.log.contains(&Op::Delete { offset: 0, length: 8 << 20 }));
    assert_eq!(bench.log.last(), Some(&Op::Flush));
    bench.until("the client is forgotten", |server| server.clients() == 0);
    assert!(bench.server.commands.is_empty() && bench.server.turns.is_empty());
}

/// D1: with deletes and without, zeroes are zeroes, and a trim that nobody can carry out is no error.
#[test]
fn zeroes_are_exact_whether_deletes_work_or_not() {
    for works in [true, false] {
        let mut bench = Bench::new();
        if !works {
            bench.fail = Some(|op| matches!(op, Op::Delete { .. }).then_some(Errno::EOPNOTSUPP));
        }
        bench.serve(|path| {
            let client = NbdClient::connect(path, "test").unwrap();
            client.write(0, &pattern(8 << 20)).unwrap();
            client.write_zeroes(1 << 20, 1 << 20).unwrap();
            let ticket = client.submit(Request::WriteZeroes {
                offset: 4 << 20,
                length: 1 << 20,
                no_hole: true,
                fua: true,
            });
            client.wait(ticket.unwrap()).unwrap();
            client.trim(6 << 20, 1 << 20).unwrap();
        });
        let mut expected = pattern(8 << 20);
        expected[1 << 20..2 << 20].fill(0);
        expected[4 << 20..5 << 20].fill(0);
        if works {
            expected[6 << 20..7 << 20].fill(0);
        }
        assert!(bench.memory[..8 << 20] == expected, "{works}");
        let deletes = bench.log.iter().filter(|op| matches!(op, Op::Delete { .. }));
        assert_eq!(deletes.count(), 2, "not where there are to be no holes");
        assert_eq!(bench.log.iter().filter(|op| **op == Op::Flush).count(), 1);
    }
}

/// The worker is told to end while a delete is under way that then fails: there is nobody left who writes the zeroes.
#[test]
fn zeroes_that_a_stop_cuts_off_are_refused() {
    let mut bench = Bench::new();
    let client = bench.connect();
    let zeroing = thread::spawn(move || client.write_zeroes(0, 1 << 20));
    bench.until("the command has arrived", |server| {
        server.clients.values().any(|client| client.session.in_flight() == 1)
    });
    let (id, op) = bench.server.next_request().unwrap();
    assert!(matches!(op, Op::Delete { .. }));
    assert!(bench.server.next_request().is_none());
    bench.server.stop(true);
    bench.server.complete(id, Err(Errno::ENOTCONN));
    let started = Instant::now();
    while !zeroing.is_finished() {
        assert!(started.elapsed() < DEADLINE);
        bench.turn();
    }
    let outcome = zeroing.join().unwrap();
    assert!(matches!(outcome, Err(ClientError::Command { error: NbdError::Shutdown, .. })), "{outcome:?}");
    assert!(bench.server.commands.is_empty());
}

#[test]
fn a_fua_write_is_followed_by_a_flush_before_its_answer() {
    let mut bench = Bench::new();
    bench.serve(|path| {
        let client = NbdClient::connect(path, "test").unwrap();
        client.write_fua(0, &pattern(300_032)).unwrap();
    });
    assert_eq!(bench.log.len(), 4);
    assert!(bench.log[..3].iter().all(|op| matches!(op, Op::Write { .. })));
    assert_eq!(bench.log[3], Op::Flush);
}

#[test]
fn an_error_of_one_piece_fails_its_command_only() {
    let mut bench = Bench::new();
    bench.fail = Some(|op| (op.range().0 == 131_072).then_some(Errno::ENOSPC));
    let (first, second) = bench.serve(|path| {
        let client = NbdClient::connect(path, "test").unwrap();
        (client.write(0, &pattern(400_384)), client.write(1 << 20, &pattern(4096)))
    });
    assert!(matches!(first, Err(ClientError::Command { error: NbdError::NoSpc, .. })), "{first:?}");
    assert!(second.is_ok());
}

#[test]
fn clients_have_their_turns_in_turn() {
    let mut bench = Bench::new();
    let greedy = bench.connect();
    let modest = bench.connect();
    let writer = thread::spawn(move || {
        let ticket = greedy.submit(Request::Write { offset: 0, data: &pattern(16 << 20), fua: false });
        greedy.wait(ticket.unwrap()).unwrap();
    });
    bench.until("the long write has arrived", |server| {
        server.clients.values().map(|client| client.session.in_flight()).sum::<usize>() == 1
    });
    let reader = thread::spawn(move || modest.read(32 << 20, 4096).unwrap());
    bench.until("the read has arrived", |server| {
        server.clients.values().map(|client| client.session.in_flight()).sum::<usize>() == 2
    });
    let first_two: Vec<_> = (0..2).map(|_| bench.server.next_request().unwrap()).collect();
    assert!(first_two.iter().any(|(_, op)| matches!(op, Op::Read { .. })), "{first_two:?}");
    for (id, op) in first_two {
        bench.carry_out(id, op);
    }
    let started = Instant::now();
    while !(writer.is_finished() && reader.is_finished()) {
        assert!(started.elapsed() < DEADLINE);
        bench.turn();
        bench.work();
    }
    writer.join().unwrap();
    reader.join().unwrap();
}

#[test]
fn after_a_stop_what_runs_is_finished_and_what_comes_is_refused() {
    let mut bench = Bench::new();
    let client = Arc::new(bench.connect());
    let writing = Arc::clone(&client);
    let running = thread::spawn(move || writing.write(0, &pattern(4096)));
    bench.until("the write has arrived", |server| {
        server.clients.values().any(|client| client.session.in_flight() == 1)
    });
    let (id, op) = bench.server.next_request().unwrap();
    let half = Arc::clone(&client);
    let unfinished = thread::spawn(move || half.write_fua(0, &pattern(262_144)));
    bench.until("the second write has arrived", |server| {
        server.clients.values().any(|client| client.session.in_flight() == 2)
    });
    let (second, second_op) = bench.server.next_request().unwrap();
    bench.server.stop(true);
    assert!(bench.server.next_request().is_none());
    let refused = thread::spawn(move || client.read(0, 512));
    bench.carry_out(id, op);
    bench.carry_out(second, second_op);
    let started = Instant::now();
    while !(running.is_finished() && unfinished.is_finished() && refused.is_finished()) {
        assert!(started.elapsed() < DEADLINE);
        bench.turn();
    }
    assert!(running.join().unwrap().is_ok());
    for outcome in [unfinished.join().unwrap(), refused.join().unwrap().map(drop)] {
        assert!(
            matches!(outcome, Err(ClientError::Command { error: NbdError::Shutdown, .. })),
            "{outcome:?}"
        );
    }
    assert_eq!(bench.server.in_flight(), 0);
    assert!(bench.server.commands.is_empty());
}

/// A client that waits for a successor, as the kernel does, hears of no error that this end has brought about.
#[test]
fn what_a_successor_may_do_is_not_refused() {
    let mut bench = Bench::new();
    let (good, bad) = (Arc::new(bench.connect()), bench.connect());
    let writing = Arc::clone(&good);
    let running = thread::spawn(move || writing.write(0, &pattern(4096)));
    let failing = thread::spawn(move || bad.write(0, &pattern(512)));
    bench.until("both writes have arrived", |server| {
        server.clients.values().filter(|client| client.session.in_flight() == 1).count() == 2
    });
    let taken = [bench.server.next_request().unwrap(), bench.server.next_request().unwrap()];
    bench.server.stop(false);
    let unheard = thread::spawn(move || good.read(0, 512));
    for (id, op) in taken {
        if op.range().1 == 512 {
            bench.server.complete(id, Err(Errno::ECANCELED));
        } else {
            bench.carry_out(id, op);
        }
    }
    bench.until("the second client has lost its connection", |server| server.clients() == 1);
    bench.until("the read has arrived", |server| {
        server.clients.values().all(|client| client.session.in_flight() == 1)
    });
    assert!(running.join().unwrap().is_ok(), "what is done is said");
    assert!(matches!(failing.join().unwrap(), Err(ClientError::Closed)));
    assert!(bench.server.next_request().is_none() && !unheard.is_finished());
    drop(bench);
    assert!(matches!(unheard.join().unwrap(), Err(ClientError::Closed)));
}

#[test]
fn who_takes_leave_is_not_lost() {
    let mut bench = Bench::new();
    let (polite, rude) = (bench.connect(), bench.connect());
    let leaving = thread::spawn(move || polite.disconnect());
    bench.until("the first client has gone", |server| server.clients() == 1);
    leaving.join().unwrap().unwrap();
    assert!(!bench.server.take_lost());
    drop(rude);
    bench.until("the second client has gone", |server| server.clients() == 0);
    assert!(bench.server.take_lost());
    assert!(!bench.server.take_lost(), "it is said once");
}

#[test]
fn a_client_that_vanishes_leaves_nothing_behind() {
    let mut bench = Bench::new();
    let client = bench.connect();
    let submitting = thread::spawn(move || {
        let data = pattern(1 << 20);
        let ticket = client.submit(Request::Write { offset: 0, data: &data, fua: true });
        (client, ticket.is_ok())
    });
    bench.until("the write has arrived", |server| {
        server.clients.values().any(|client| client.session.in_flight() == 1)
    });
    let (id, op) = bench.server.next_request().unwrap();
    let (client, submitted) = submitting.join().unwrap();
    assert!(submitted);
    drop(client);
    bench.until("the end is noticed", |server| server.clients.values().all(|client| client.ended));
    bench.carry_out(id, op);
    let started = Instant::now();
    while bench.server.clients() > 0 {
        assert!(started.elapsed() < DEADLINE);
        bench.turn();
        bench.work();
    }
    assert_eq!(bench.server.in_flight(), 0);
    assert!(bench.server.commands.is_empty());
}

/// What is a hole the file system says, if the engine lets it, and at most so much at once.
#[test]
fn holes_are_told_if_they_are_right() {
    let (mut bench, wakes) = Bench::of_holes(65_536..65_536 + 4096);
    for right in [true, false] {
        let asking = bench.asks(|client| client.block_status(0, SIZE as u32, false).unwrap());
        let (key, question) = bench.server.next_question().unwrap();
        assert_eq!((question.offset, question.length), (0, SIZE as u32));
        bench.server.tell_holes(key, question, right);
        if right {
            wakes.recv().unwrap();
        }
        bench.server.take_answers(|_, _| true);
        let (told, client) = bench.hears(asking);
        let rest = SIZE as u32 - 65_536 - 4096;
        let expected = if right { vec![(65_536, 3), (4096, 0), (rest, 3)] } else { vec![(SIZE as u32, 0)] };
        assert_eq!(told, expected);
        drop(client);
        bench.until("the client has gone", |server| server.clients() == 0);
    }
}

/// A question that comes while the device is being taken away is refused.
#[test]
fn questions_end_with_the_device() {
    let (mut bench, _wakes) = Bench::of_holes(0..0);
    let asking = bench.asks(|client| client.block_status(0, 512, true));
    bench.server.stop(true);
    assert_eq!(bench.server.next_question(), None);
    let (told, _client) = bench.hears(asking);
    assert!(matches!(told, Err(ClientError::Command { error: NbdError::Shutdown, .. })), "{told:?}");
}

/// What the file system has said is wrong by now, or the device goes away before it has said anything.
#[test]
fn an_answer_that_comes_too_late_is_not_passed_on() {
    for (stops, expected) in [(false, Ok(vec![(512, 0)])), (true, Err(()))] {
        let (mut bench, wakes) = Bench::of_holes(0..0);
        let asking = bench.asks(|client| client.block_status(0, 512, true));
        let (key, question) = bench.server.next_question().unwrap();
        bench.server.tell_holes(key, question, true);
        wakes.recv().unwrap();
        if stops {
            bench.server.stop(true);
        }
        bench.server.take_answers(|offset, length| (offset, length) != (0, 512));
        let (told, _client) = bench.hears(asking);
        assert_eq!(told.map_err(|_| ()), expected);
    }
}

#[test]
fn nonsense_costs_its_sender_the_connection_and_nobody_else() {
    let mut bench = Bench::new();
    let good = bench.connect();
    let mut bad = UnixStream::connect(&bench.path).unwrap();
    std::io::Write::write_all(&mut bad, &[0xff; 4096]).unwrap();
    bench.serve(move |_| {
        bad.set_read_timeout(Some(DEADLINE)).unwrap();
        let mut rest = Vec::new();
        // Closed with unread bytes, which some systems report as a reset.
        let _ = bad.read_to_end(&mut rest);
        good.write(0, &pattern(512)).unwrap();
    });
}

#[test]
fn one_client_too_many_is_turned_away() {
    let mut bench = Bench::new();
    let clients: Vec<NbdClient> = (0..MAX_CLIENTS).map(|_| bench.connect()).collect();
    let refused = bench.serve(|path| {
        NbdClient::over(UnixStream::connect(path).unwrap(), "test", Dialect::default()).is_err()
    });
    assert!(refused);
    drop(clients);
    bench.until("all are forgotten", |server| server.clients() == 0);
    bench.connect();
}
