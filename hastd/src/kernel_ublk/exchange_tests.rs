//! The exchange against NBD sessions over real sockets; the kernel is played by hand.

use super::*;
use std::collections::HashMap;
use std::io::{PipeReader, Read};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{JoinHandle, ScopedJoinHandle};

use hast_nbd::client::Dialect;
use hast_nbd::{Command, CommandId, Export, Kind, Pieces, Session};
use hast_net::buffer::{Buffer, Pool};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

const SIZE: u64 = 1 << 20;
const LONG: Duration = Duration::from_secs(120);

/// The data of requests, by tag.
#[derive(Default)]
struct Memory(Mutex<HashMap<u16, Vec<u8>>>);

impl Memory {
    fn put(&self, tag: u16, data: &[u8]) {
        self.0.lock().unwrap().insert(tag, data.to_vec());
    }

    fn get(&self, tag: u16) -> Vec<u8> {
        self.0.lock().unwrap().get(&tag).cloned().unwrap_or_default()
    }
}

impl Data for Memory {
    fn fetch(&self, tag: u16, data: &mut [u8]) -> io::Result<()> {
        let stored = self.get(tag);
        if stored.len() != data.len() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        data.copy_from_slice(&stored);
        Ok(())
    }

    fn give(&self, tag: u16, data: &[u8]) -> io::Result<()> {
        self.put(tag, data);
        Ok(())
    }
}

/// A worker's side of one connection. It ends when the test says so, or when nobody is left to answer.
struct Worker {
    stream: UnixStream,
    session: Session,
}

impl Worker {
    fn new(stream: UnixStream) -> Worker {
        Worker { stream, session: Session::new(Export::new("shared", SIZE, 512), Pool::new()) }
    }

    /// The next command; `None` when the client has gone.
    fn next(&mut self) -> Option<Command> {
        loop {
            self.transmit();
            if let Some(command) = self.session.poll_command() {
                return Some(command);
            }
            match self.stream.read(self.session.space()) {
                Ok(0) | Err(_) => return None,
                Ok(count) => self.session.advance(count).unwrap(),
            }
        }
    }

    fn answer(&mut self, handle: CommandId, result: Result<Pieces, NbdError>) {
        self.session.complete(handle, result);
        self.transmit();
    }

    fn transmit(&mut self) {
        while let Some(buffer) = self.session.poll_transmit() {
            if self.stream.write_all(&buffer).is_err() {
                return;
            }
        }
    }
}

fn negotiate(stream: UnixStream) -> Result<Client, ClientError> {
    Client::over(stream, "shared", Dialect { structured: false, export_name: false })
}

/// A client and the worker that it talks to, which answers commands with `work` until that says no.
fn worker(mut work: impl FnMut(&mut Worker, Command) -> bool + Send + 'static) -> (Client, JoinHandle<()>) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let thread = thread::spawn(move || {
        let mut worker = Worker::new(theirs);
        while let Some(command) = worker.next() {
            if !work(&mut worker, command) {
                return;
            }
        }
    });
    (negotiate(ours).unwrap(), thread)
}

/// Carries commands out and tells what they were.
fn obedient(told: Sender<Kind>) -> (Client, JoinHandle<()>) {
    worker(move |worker, command| {
        let data = match &command.kind {
            Kind::Read { offset, length } => {
                Pieces::from([Buffer::from(vec![(*offset / 512) as u8; *length as usize])])
            }
            _ => Pieces::new(),
        };
        told.send(command.kind).unwrap();
        worker.answer(command.handle, Ok(data));
        true
    })
}

fn bytes(data: &[Buffer]) -> Vec<u8> {
    data.iter().flat_map(|piece| piece.iter().copied()).collect()
}

/// Waits until the kernel would have been told this much, as its thread does.
fn answers(exchange: &Exchange, waker: &mut PipeReader, count: usize) -> Vec<(u16, i32)> {
    let mut all = Vec::new();
    while all.len() < count {
        let mut waits = [PollFd::new(waker.as_fd(), PollFlags::POLLIN)];
        assert_eq!(poll(&mut waits, PollTimeout::from(60_000_u16)).unwrap(), 1, "only {all:?} came");
        assert!(waker.read(&mut [0; 64]).unwrap() > 0);
        all.extend(exchange.answers());
    }
    all.sort_unstable();
    all
}

/// Ends the exchange, also when something was not as it should be.
struct End<'a>(&'a Exchange);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.end();
    }
}

/// Runs an exchange with `first` and the connections that are sent to it, while `play` plays the kernel.
fn with_exchange(
    first: Client,
    patience: Duration,
    play: impl FnOnce(&Exchange, &mut PipeReader, &Memory, &Sender<Client>),
) {
    let (mut waits, wakes) = io::pipe().unwrap();
    let exchange = Exchange::new(8, wakes);
    let data = Memory::default();
    let (sender, receiver): (Sender<Client>, Receiver<Client>) = channel();
    thread::scope(|scope| {
        let runner: ScopedJoinHandle<'_, ()> = scope.spawn(|| {
            let receiver = receiver;
            let connect = || receiver.try_recv().map_err(|_| ClientError::Closed);
            exchange.run(&data, first, &connect, patience);
        });
        let end = End(&exchange);
        play(&exchange, &mut waits, &data, &sender);
        drop(end);
        runner.join().unwrap();
    });
}

#[test]
fn requests_are_carried_out_with_their_data() {
    let (told, tells) = channel();
    let (client, server) = obedient(told);
    with_exchange(client, LONG, |exchange, waker, data, _| {
        data.put(0, &[7; 1024]);
        exchange.ask(0, Operation::Write { offset: 512, length: 1024, fua: true });
        exchange.ask(1, Operation::Read { offset: 4096, length: 512 });
        exchange.ask(2, Operation::Flush);
        exchange.ask(3, Operation::Discard { offset: 0, length: 4096, fua: false });
        exchange.ask(4, Operation::Zeroes { offset: 512, length: 512, no_hole: true, fua: true });
        assert_eq!(answers(exchange, waker, 5), [(0, 1024), (1, 512), (2, 0), (3, 0), (4, 0)]);
        assert_eq!(data.get(1), [8; 512]);
        // A tag is used again.
        exchange.ask(1, Operation::Read { offset: 512, length: 1024 });
        assert_eq!(answers(exchange, waker, 1), [(1, 1024)]);
        assert_eq!(data.get(1), [1; 1024]);
    });
    let kinds: Vec<Kind> = tells.iter().take(6).collect();
    let Kind::Write { offset: 512, data, fua: true } = &kinds[0] else { panic!("{kinds:?}") };
    assert_eq!(bytes(data), [7; 1024]);
    assert_eq!(kinds[1], Kind::Read { offset: 4096, length: 512 });
    assert_eq!(kinds[2], Kind::Flush);
    assert_eq!(kinds[3], Kind::Trim { offset: 0, length: 4096, fua: false });
    assert_eq!(kinds[4], Kind::WriteZeroes { offset: 512, length: 512, no_hole: true, fua: true });
    server.join().unwrap();
}

#[test]
fn errors_are_passed_on() {
    let mut errors = [NbdError::Io, NbdError::NoSpc, NbdError::Inval].into_iter();
    let (client, server) = worker(move |worker, command| {
        worker.answer(command.handle, Err(errors.next().unwrap()));
        true
    });
    with_exchange(client, LONG, |exchange, waker, _, _| {
        for expected in [-libc::EIO, -libc::ENOSPC, -libc::EIO] {
            exchange.ask(5, Operation::Flush);
            assert_eq!(answers(exchange, waker, 1), [(5, expected)]);
        }
        // Its data is not to be had.
        exchange.ask(6, Operation::Write { offset: 0, length: 512, fua: false });
        assert_eq!(answers(exchange, waker, 1), [(6, -libc::EIO)]);
    });
    server.join().unwrap();
}

#[test]
fn what_was_not_answered_is_sent_again() {
    let mut seen = 0;
    // Answers one of three, and is killed.
    let (client, killed) = worker(move |worker, command| {
        seen += 1;
        if matches!(command.kind, Kind::Flush) {
            worker.answer(command.handle, Ok(Pieces::new()));
        }
        seen < 3
    });
    with_exchange(client, LONG, |exchange, waker, data, connections| {
        data.put(0, &[1; 512]);
        data.put(2, &[3; 512]);
        exchange.ask(0, Operation::Write { offset: 0, length: 512, fua: false });
        exchange.ask(1, Operation::Flush);
        exchange.ask(2, Operation::Write { offset: 1024, length: 512, fua: false });
        assert_eq!(answers(exchange, waker, 1), [(1, 0)]);
        killed.join().unwrap();
        // Meanwhile there is more.
        exchange.ask(3, Operation::Read { offset: 2048, length: 512 });
        let (told, tells) = channel();
        let (successor, server) = obedient(told);
        connections.send(successor).unwrap();
        assert_eq!(answers(exchange, waker, 3), [(0, 512), (2, 512), (3, 512)]);
        assert_eq!(data.get(3), [4; 512]);
        let kinds: Vec<Kind> = tells.iter().take(3).collect();
        for (kind, (place, byte)) in kinds.iter().zip([(0, 1), (1024, 3)]) {
            let Kind::Write { offset, data, .. } = kind else { panic!("{kinds:?}") };
            assert_eq!((*offset, bytes(data)), (place, vec![byte; 512]));
        }
        exchange.end();
        server.join().unwrap();
    });
}

#[test]
fn a_worker_that_is_going_away_is_not_believed() {
    let (client, _ending) = worker(|worker, command| {
        worker.answer(command.handle, Err(NbdError::Shutdown));
        true
    });
    with_exchange(client, LONG, |exchange, waker, _, connections| {
        let (told, _tells) = channel();
        let (successor, _server) = obedient(told);
        connections.send(successor).unwrap();
        exchange.ask(0, Operation::Flush);
        assert_eq!(answers(exchange, waker, 1), [(0, 0)]);
    });
}

#[test]
fn without_a_worker_requests_fail_in_the_end_and_succeed_with_the_next_one() {
    let (client, killed) = worker(|_, _| false);
    with_exchange(client, Duration::ZERO, |exchange, waker, _, connections| {
        exchange.ask(0, Operation::Flush);
        assert_eq!(answers(exchange, waker, 1), [(0, -libc::EIO)]);
        killed.join().unwrap();
        exchange.ask(1, Operation::Flush);
        assert_eq!(answers(exchange, waker, 1), [(1, -libc::EIO)]);
        let (told, _tells) = channel();
        let (successor, _server) = obedient(told);
        connections.send(successor).unwrap();
        // It may come too late for some.
        loop {
            exchange.ask(2, Operation::Flush);
            if answers(exchange, waker, 1) == [(2, 0)] {
                break;
            }
        }
    });
}

#[test]
fn at_the_end_everything_fails() {
    let (asked, was_asked) = channel();
    // Never answers.
    let (client, server) = worker(move |_, _| {
        asked.send(()).unwrap();
        true
    });
    with_exchange(client, LONG, |exchange, waker, _, _| {
        exchange.ask(0, Operation::Flush);
        exchange.ask(7, Operation::Read { offset: 0, length: 512 });
        was_asked.recv_timeout(Duration::from_secs(60)).unwrap();
        exchange.end();
        assert_eq!(answers(exchange, waker, 2), [(0, -libc::EIO), (7, -libc::EIO)]);
        exchange.ask(0, Operation::Flush);
        assert_eq!(answers(exchange, waker, 1), [(0, -libc::EIO)]);
    });
    server.join().unwrap();
}
