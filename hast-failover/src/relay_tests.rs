use std::os::unix::net::UnixListener;
use std::sync::mpsc::{Receiver, channel};
use std::thread::{self, JoinHandle};

use super::*;

const SIZE: u64 = 1 << 20;

/// hastd: its socket, in a directory of its own.
struct Stage {
    listener: UnixListener,
    socket: PathBuf,
    _directory: tempfile::TempDir,
}

impl Stage {
    fn new() -> Stage {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("x.sock");
        Stage { listener: UnixListener::bind(&socket).unwrap(), socket, _directory: directory }
    }

    /// A worker that serves the next connection.
    fn worker(&self) -> Worker {
        self.worker_of(SIZE)
    }

    fn worker_of(&self, size: u64) -> Worker {
        let stream = self.listener.accept().unwrap().0;
        Worker { stream, session: Session::new(Export::new("x", size, 512), Pool::new()) }
    }

    /// A relay, its client, and what it tells.
    fn relay(&self) -> Playing {
        let origin = Origin::new(&self.socket, "x").unwrap();
        let (client, theirs) = UnixStream::pair().unwrap();
        let (tell, news) = channel();
        let relay = thread::spawn(move || Relay::serve(theirs, origin, move |one| tell.send(one).unwrap()));
        Playing { client, relay, news }
    }
}

struct Playing {
    client: UnixStream,
    relay: JoinHandle<Result<(), End>>,
    news: Receiver<News>,
}

/// One connection of a worker. Dropping it is the worker's death.
struct Worker {
    stream: UnixStream,
    session: Session,
}

impl Worker {
    fn transmit(&mut self) {
        while let Some(buffer) = self.session.poll_transmit() {
            self.stream.write_all(&buffer).unwrap();
        }
    }

    /// The next command; none when the other side has gone.
    fn next(&mut self) -> Option<Command> {
        use std::io::Read;
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

    fn answer(&mut self, command: &Command, answer: Result<Pieces, NbdError>) {
        self.session.complete(command.handle, answer);
        self.transmit();
    }
}

fn data(byte: u8, length: usize) -> Result<Pieces, NbdError> {
    let mut pieces = Pieces::new();
    pieces.push(Pool::new().copy_of(&vec![byte; length]));
    Ok(pieces)
}

fn done() -> Result<Pieces, NbdError> {
    Ok(Pieces::new())
}

/// A client of the relay, in the transmission phase; `worker` is there by then.
fn client(stream: UnixStream) -> Client {
    Client::over(stream, "x", Dialect::default()).unwrap()
}

/// Everything that a worker had not answered is asked of the next one, once, in order; what it had answered is not.
#[test]
fn what_a_dead_worker_has_not_answered_is_asked_of_the_next_one() {
    let stage = Stage::new();
    let playing = stage.relay();
    let mut first = stage.worker();
    let waits = thread::spawn(move || first.next().map(|command| (first, command)));
    let client = client(playing.client);
    assert_eq!(client.size(), SIZE);
    let big = vec![7; 300 << 10];
    let requests = [
        Request::Write { offset: 0, data: &[1; 512], fua: true },
        Request::Write { offset: 4096, data: &big, fua: false },
        Request::Read { offset: 512, length: 1024 },
        Request::Flush,
        Request::Trim { offset: 0, length: 512, fua: true },
        Request::WriteZeroes { offset: 512, length: 512, no_hole: true, fua: false },
        Request::Cache { offset: 0, length: 4096 },
    ];
    let mut tickets: Vec<_> = requests.iter().map(|request| client.submit(*request).unwrap()).collect();
    let (mut first, command) = waits.join().unwrap().unwrap();
    first.answer(&command, done());
    client.wait(tickets.remove(0)).unwrap();
    let asked: Vec<Kind> = std::iter::from_fn(|| first.next().map(|command| command.kind)).take(6).collect();
    drop(first);
    let mut second = stage.worker();
    for kind in &asked {
        let command = second.next().unwrap();
        assert_eq!(command.kind, *kind);
        let answer = if matches!(kind, Kind::Read { .. }) { data(9, 1024) } else { done() };
        second.answer(&command, answer);
    }
    assert!(matches!(asked.first(), Some(Kind::Write { offset: 4096, fua: false, .. })));
    assert!(matches!(asked.get(4), Some(Kind::WriteZeroes { no_hole: true, .. })));
    let answers: Vec<_> = tickets.into_iter().map(|ticket| client.wait(ticket).unwrap()).collect();
    assert_eq!(answers.get(1), Some(&vec![9; 1024]));
    assert!(matches!(playing.news.recv(), Ok(News::Lost)));
    assert!(matches!(playing.news.recv(), Ok(News::Again(6))));
    // What comes later goes the new way.
    let later = client.submit(Request::Flush).unwrap();
    let command = second.next().unwrap();
    assert_eq!(command.kind, Kind::Flush);
    second.answer(&command, done());
    client.wait(later).unwrap();
    drop(client);
    assert!(playing.relay.join().unwrap().is_ok());
}

/// An error is an answer: a flush that has failed is not made one that succeeds.
#[test]
fn an_error_is_passed_on_and_not_tried_again() {
    let stage = Stage::new();
    let playing = stage.relay();
    let worker = stage.worker();
    let serves = thread::spawn(move || {
        let mut worker = worker;
        let mut asked = Vec::new();
        while let Some(command) = worker.next() {
            worker.answer(&command, Err(NbdError::Io));
            asked.push(command.kind);
        }
        asked
    });
    let client = client(playing.client);
    let failed = client.flush().unwrap_err();
    assert!(matches!(failed, ClientError::Command { error: NbdError::Io, .. }), "{failed}");
    assert!(client.write(0, &[0; 512]).is_err());
    drop(client);
    playing.relay.join().unwrap().unwrap();
    assert_eq!(serves.join().unwrap().len(), 2);
    assert!(playing.news.recv().is_err(), "there is nothing to tell");
}

/// What the client asks while there is no worker waits, and a worker that dies again while it is greeted changes nothing.
#[test]
fn what_is_asked_meanwhile_waits() {
    let stage = Stage::new();
    let playing = stage.relay();
    let worker = stage.worker();
    let serves = thread::spawn(move || {
        let mut worker = worker;
        worker.next()
    });
    let client = client(playing.client);
    let first = client.submit(Request::Read { offset: 0, length: 512 }).unwrap();
    serves.join().unwrap().unwrap();
    assert!(matches!(playing.news.recv(), Ok(News::Lost)));
    let second = client.submit(Request::Flush).unwrap();
    drop(stage.listener.accept().unwrap());
    let mut worker = stage.worker();
    for kind in [Kind::Read { offset: 0, length: 512 }, Kind::Flush] {
        let command = worker.next().unwrap();
        let answer = if kind == Kind::Flush { done() } else { data(3, 512) };
        assert_eq!(command.kind, kind);
        worker.answer(&command, answer);
    }
    assert_eq!(client.wait(first).unwrap(), [3; 512]);
    client.wait(second).unwrap();
}

/// A client waits for an answer when the worker dies, and `happens` then; gives why the relay has ended.
fn ends(happens: impl FnOnce(&mut Stage)) -> End {
    let mut stage = Stage::new();
    let playing = stage.relay();
    let mut worker = stage.worker();
    let serves = thread::spawn(move || worker.next().map(drop));
    let client = client(playing.client);
    let asked = client.submit(Request::Flush).unwrap();
    serves.join().unwrap().unwrap();
    happens(&mut stage);
    let end = playing.relay.join().unwrap().unwrap_err();
    assert!(client.wait(asked).is_err(), "nobody may believe that it was done");
    end
}

/// The role has left this node, and come back perhaps.
#[test]
fn what_was_asked_in_one_term_is_not_done_in_the_next() {
    let end = ends(|stage| {
        let next = stage.socket.with_extension("next");
        let listener = UnixListener::bind(&next).unwrap();
        fs::rename(&next, &stage.socket).unwrap();
        stage.listener = listener;
    });
    assert!(matches!(end, End::AnotherTerm { .. }), "{end}");
    let end = ends(|stage| {
        fs::remove_file(&stage.socket).unwrap();
        stage.listener = UnixListener::bind(stage.socket.with_extension("other")).unwrap();
    });
    assert!(matches!(end, End::NotServed { .. }), "{end}");
    // hastd was killed: the file is there still.
    let end =
        ends(|stage| stage.listener = UnixListener::bind(stage.socket.with_extension("other")).unwrap());
    assert!(matches!(end, End::NotServed { .. }), "{end}");
}

#[test]
fn a_device_of_another_size_is_another_one() {
    let end = ends(|stage| {
        let mut worker = stage.worker_of(2 * SIZE);
        assert!(worker.next().is_none());
    });
    assert!(matches!(end, End::AnotherDevice { before: SIZE, now } if now == 2 * SIZE), "{end}");
}

/// Mode and owner may change while a worker is away.
#[test]
fn a_socket_stays_the_same_when_its_owner_or_mode_changes() {
    use std::os::unix::fs::PermissionsExt;
    let stage = Stage::new();
    let before = Term::of(&stage.socket).unwrap();
    fs::set_permissions(&stage.socket, fs::Permissions::from_mode(0o600)).unwrap();
    drop(UnixStream::connect(&stage.socket).unwrap());
    assert_eq!(Term::of(&stage.socket).unwrap(), before);
}
