//! What stands between nbdfuse and hastd's export (Linux): nbdfuse does not connect again, this does.
//!
//! A worker that dies is started again by hastd, which keeps the socket of the export meanwhile. The relay connects again
//! then, and sends what has not been answered once more, in the order in which it was asked. It holds nothing back and answers
//! nothing by itself:
//!
//! * What was answered is not sent again. A worker answers a write when both nodes have it, or the map says that one lacks
//!   it; either outlives the worker.
//! * An error is an answer, and is passed on: a flush that has failed is not tried until it succeeds.
//! * The same bytes again change nothing: a client that writes to a place twice at once does not know which of them stays, and
//!   nobody has been told yet that the first one is there.
//!
//! What waits here was meant for the data as they were. A socket belongs to one term as primary: hastd makes a new one for
//! the next. If it is another one, or nobody listens to it any more, the other node may have been primary since: the relay
//! ends, and the users of the device get errors, as without it.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, ErrorKind, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{self, Child, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hast_nbd::client::{Agreed, Client, ClientError, Dialect, Request};
use hast_nbd::{Command, CommandId, Export, Kind, NbdError, Pieces, Session};
use hast_net::buffer::Pool;
use nix::sys::socket::{MsgFlags, recv};

use crate::log::Log;
use crate::run::exit;
use crate::system::Priority;

/// prctl(2)'s PR_SET_IO_FLUSHER, which libc does not name.
const SET_IO_FLUSHER: libc::c_int = 57;
/// Between two attempts to connect.
const MOMENT: Duration = Duration::from_millis(100);

/// What a process that relays is about.
pub(crate) struct Errand {
    pub(crate) socket: PathBuf,
    pub(crate) export: String,
    /// Where nbdfuse notes its process id, and the file that it shows.
    pub(crate) pid_file: PathBuf,
    pub(crate) file: PathBuf,
}

impl Errand {
    /// Runs nbdfuse and relays for it, until it ends or there is nothing to relay to any more. Gives the exit status.
    pub(crate) fn run(&self, log: Log) -> u8 {
        become_a_server();
        let (tell, heard) = std::sync::mpsc::channel();
        let file = self.file.display().to_string();
        // In a thread of its own: the log's file may be where nothing can be written before the relay goes on.
        let scribe = std::thread::spawn(move || heard.iter().for_each(|news| write_down(&log, &file, &news)));
        let ended = self.start().and_then(|(mut nbdfuse, client, origin)| {
            // It may be killed while nothing is read from it.
            std::thread::spawn(move || {
                let _ = nbdfuse.wait();
                std::process::exit(exit::OK.into());
            });
            let tell = tell.clone();
            Relay::serve(client, origin, move |news| drop(tell.send(news)))
        });
        let Err(end) = ended else { return exit::OK };
        let _ = tell.send(News::End(end));
        drop(tell);
        // The client has gone with the relay, and waits for nothing that is written here.
        let _ = scribe.join();
        exit::FAILED
    }

    fn start(&self) -> Result<(Child, UnixStream, Origin), End> {
        let origin = Origin::new(&self.socket, &self.export)?;
        let (ours, theirs) = UnixStream::pair()?;
        let mut nbdfuse = process::Command::new("nbdfuse");
        nbdfuse.arg("-P").arg(&self.pid_file).arg(&self.file).args(["--fd", "0"]);
        nbdfuse.stdin(OwnedFd::from(theirs)).stdout(Stdio::null()).stderr(Stdio::null());
        Ok((nbdfuse.spawn()?, ours, origin))
    }
}

/// Lives on when the program that has started it ends; and what the kernel wants to write comes past here, so that it must not
/// wait for that itself when it needs memory.
fn become_a_server() {
    // Each fails only where it cannot be had, and is not needed to begin with.
    let _ = nix::unistd::setsid();
    // SAFETY: both take numbers and a string that ends with a NUL, and write nothing of ours.
    unsafe {
        libc::prctl(libc::PR_SET_NAME, c"hast-relay".as_ptr());
        libc::prctl(SET_IO_FLUSHER, 1, 0, 0, 0);
    }
}

/// Why the relay ends before its client does.
#[derive(Debug, thiserror::Error)]
pub(crate) enum End {
    #[error("hastd does not serve {} any more ({why})", socket.display())]
    NotServed { socket: PathBuf, why: String },
    #[error("{} belongs to another term as primary: what was asked before must not be done now", socket.display())]
    AnotherTerm { socket: PathBuf },
    #[error("the device is another one now: {before} bytes before, {now} now")]
    AnotherDevice { before: u64, now: u64 },
    #[error("{} cannot be used: {error}", socket.display())]
    Refused { socket: PathBuf, error: ClientError },
    #[error("what nbdfuse says cannot be understood: {0}")]
    Client(String),
    #[error("the relay cannot work: {0}")]
    Io(#[from] io::Error),
}

impl End {
    fn not_served(socket: &Path, error: &io::Error) -> End {
        End::NotServed { socket: socket.to_path_buf(), why: hast_log::error_text(error) }
    }
}

/// The socket of an export, as hastd has made it for one term as primary.
#[derive(Debug)]
pub(crate) struct Origin {
    socket: PathBuf,
    export: String,
    term: Term,
    agreed: Option<Agreed>,
}

/// What tells a socket from a later one at the same place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Term {
    device: u64,
    inode: u64,
    made: (i64, i64),
}

impl Term {
    fn of(socket: &Path) -> io::Result<Term> {
        let there = fs::metadata(socket)?;
        // Nothing but making it changes the time of modification; owner and mode have another one.
        Ok(Term { device: there.dev(), inode: there.ino(), made: (there.mtime(), there.mtime_nsec()) })
    }
}

impl Origin {
    /// The export that is served at `socket` now.
    ///
    /// # Errors
    ///
    /// There is no socket.
    pub(crate) fn new(socket: &Path, export: &str) -> Result<Origin, End> {
        let term = Term::of(socket).map_err(|error| End::not_served(socket, &error))?;
        Ok(Origin { socket: socket.to_path_buf(), export: export.to_owned(), term, agreed: None })
    }

    /// Connects, for as long as this term as primary lasts.
    fn connect(&mut self) -> Result<Client, End> {
        loop {
            self.is_same_term()?;
            match self.attempt()? {
                Some(client) => return self.is_same_device(client.agreed()).map(|()| client),
                None => std::thread::sleep(MOMENT),
            }
        }
    }

    /// None if it may go better the next time: there is no worker at the moment.
    fn attempt(&self) -> Result<Option<Client>, End> {
        let stream = match UnixStream::connect(&self.socket) {
            Ok(stream) => stream,
            Err(error) if matches!(error.kind(), ErrorKind::ConnectionRefused | ErrorKind::NotFound) => {
                return Err(End::not_served(&self.socket, &error));
            }
            Err(_) => return Ok(None),
        };
        // The path may have led to the next one by the time of the connection.
        self.is_same_term()?;
        match Client::over(stream, &self.export, Dialect::default()) {
            Ok(client) => Ok(Some(client)),
            Err(ClientError::Closed | ClientError::Timeout | ClientError::Io(_)) => Ok(None),
            Err(error) => Err(End::Refused { socket: self.socket.clone(), error }),
        }
    }

    fn is_same_term(&self) -> Result<(), End> {
        match Term::of(&self.socket) {
            Ok(term) if term == self.term => Ok(()),
            Ok(_) => Err(End::AnotherTerm { socket: self.socket.clone() }),
            Err(error) => Err(End::not_served(&self.socket, &error)),
        }
    }

    fn is_same_device(&mut self, now: Agreed) -> Result<(), End> {
        let before = *self.agreed.get_or_insert(now);
        if (before.size, before.minimum_block) == (now.size, now.minimum_block) {
            return Ok(());
        }
        Err(End::AnotherDevice { before: before.size, now: now.size })
    }
}

/// What is to be told of the way to hastd.
#[derive(Debug)]
pub(crate) enum News {
    Lost,
    /// Connected again, and this many commands were sent once more.
    Again(usize),
    End(End),
}

fn write_down(log: &Log, file: &str, news: &News) {
    match news {
        News::Lost => {
            let words = format!("{file}: hastd's worker has gone; what is asked waits for the next one.");
            log.say(Priority::Warning, &words);
        }
        News::Again(count) => {
            let words = format!("{file}: connected again, {count} requests without an answer sent again.");
            log.say(Priority::Notice, &words);
        }
        News::End(end) => {
            let words = format!(
                "{file}: {end}. Whatever uses this device gets errors from now on; 'hast-failover -a secondary' takes it \
                 away."
            );
            log.say(Priority::Error, &words);
        }
    }
}

/// The commands of a client, on their way to hastd and back.
pub(crate) struct Relay {
    pool: Pool,
    client: UnixStream,
    session: Mutex<Session>,
    changed: Condvar,
    way: Mutex<Way>,
    /// The thread that sends has it, for as long as hastd takes to read that; nothing else waits for it.
    turn: Mutex<()>,
}

/// The way to hastd.
#[derive(Default)]
struct Way {
    /// None while there is no connection.
    there: Option<Arc<Client>>,
    /// The client has gone.
    closed: bool,
    /// What was not answered, in the order in which it was asked.
    pending: BTreeMap<u64, Kind>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Relay {
    /// Serves one client over `client` until it is done: what it asks goes to `origin`, whose ups and downs `tell` hears.
    ///
    /// # Errors
    ///
    /// The term as primary has ended, or the client does not speak NBD.
    pub(crate) fn serve(
        client: UnixStream,
        mut origin: Origin,
        tell: impl Fn(News) + Send + 'static,
    ) -> Result<(), End> {
        let first = origin.connect()?;
        let agreed = first.agreed();
        let export = Export {
            read_only: agreed.is_read_only(),
            trims: agreed.can_trim(),
            maximum_payload: agreed.maximum_payload,
            ..Export::new(origin.export.clone(), agreed.size, agreed.minimum_block)
        };
        let pool = Pool::new();
        let relay = Arc::new(Relay {
            client,
            session: Mutex::new(Session::new(export, pool.clone())),
            pool,
            changed: Condvar::new(),
            way: Mutex::default(),
            turn: Mutex::default(),
        });
        let (send, receive) = std::sync::mpsc::channel();
        let start = |name: &str, work: Box<dyn FnOnce() -> Result<(), End> + Send>| {
            let send = send.clone();
            // The second one to end is not heard any more.
            std::thread::Builder::new().name(name.to_owned()).spawn(move || drop(send.send(work())))
        };
        let there = Arc::clone(&relay);
        start("asks", Box::new(move || there.ask()))?;
        let there = Arc::clone(&relay);
        start("answers", Box::new(move || there.answer()))?;
        let there = Arc::clone(&relay);
        start("connects", Box::new(move || there.carry(first, &mut origin, tell)))?;
        let end = receive.recv().unwrap_or(Ok(()));
        relay.close();
        end
    }

    /// Lets go of both connections. A thread that still waits for something else goes with the process.
    fn close(&self) {
        // It has ended already if this fails.
        let _ = self.client.shutdown(std::net::Shutdown::Both);
        let mut way = lock(&self.way);
        way.closed = true;
        if let Some(there) = &way.there {
            there.close();
        }
    }

    /// Takes what the client asks.
    fn ask(&self) -> Result<(), End> {
        loop {
            let mut session = lock(&self.session);
            while !session.wants_input() {
                if session.is_finished() {
                    return Ok(());
                }
                session = self.changed.wait(session).unwrap_or_else(PoisonError::into_inner);
            }
            let count = match recv(self.client.as_raw_fd(), session.space(), MsgFlags::MSG_DONTWAIT) {
                Ok(0) => return Ok(()),
                Ok(count) => count,
                Err(nix::errno::Errno::EAGAIN | nix::errno::Errno::EINTR) => {
                    drop(session);
                    self.wait_for_client()?;
                    continue;
                }
                Err(errno) => return Err(io::Error::from(errno).into()),
            };
            session.advance(count).map_err(|error| End::Client(error.to_string()))?;
            let commands: Vec<Command> = std::iter::from_fn(|| session.poll_command()).collect();
            drop(session);
            self.changed.notify_all();
            commands.into_iter().for_each(|command| self.submit(command));
        }
    }

    fn wait_for_client(&self) -> Result<(), End> {
        use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
        use std::os::fd::AsFd;
        let mut client = [PollFd::new(self.client.as_fd(), PollFlags::POLLIN)];
        match poll(&mut client, PollTimeout::NONE) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => Ok(()),
            Err(errno) => Err(io::Error::from(errno).into()),
        }
    }

    /// Gives the client its answers.
    fn answer(&self) -> Result<(), End> {
        let mut client = &self.client;
        loop {
            let mut session = lock(&self.session);
            let buffer = loop {
                if let Some(buffer) = session.poll_transmit() {
                    break buffer;
                }
                if session.is_finished() {
                    return Ok(());
                }
                session = self.changed.wait(session).unwrap_or_else(PoisonError::into_inner);
            };
            drop(session);
            // There may be room for more input now.
            self.changed.notify_all();
            client.write_all(&buffer)?;
        }
    }

    fn submit(&self, command: Command) {
        let _turn = lock(&self.turn);
        let CommandId(number) = command.handle;
        let there = {
            let mut way = lock(&self.way);
            way.pending.insert(number, command.kind.clone());
            way.there.clone()
        };
        if let Some(there) = there {
            // If it breaks here, the thread that waits for answers notices, and this is sent again.
            let _ = send(&there, number, &command.kind);
        }
    }

    /// Keeps the way to hastd open, and brings back what comes.
    fn carry(&self, first: Client, origin: &mut Origin, tell: impl Fn(News)) -> Result<(), End> {
        let mut client = Arc::new(first);
        self.resume(&client);
        loop {
            while let Ok((number, answer)) = client.receive() {
                self.complete(number, answer);
            }
            let mut way = lock(&self.way);
            way.there = None;
            if way.closed {
                return Ok(());
            }
            drop(way);
            client.close();
            tell(News::Lost);
            client = Arc::new(origin.connect()?);
            tell(News::Again(self.resume(&client)));
        }
    }

    /// From now on commands go this way, after those that have not been answered.
    fn resume(&self, client: &Arc<Client>) -> usize {
        let _turn = lock(&self.turn);
        let pending = lock(&self.way).pending.clone();
        // The first one that fails tells that all do.
        let _ = pending.iter().try_for_each(|(number, kind)| send(client, *number, kind));
        lock(&self.way).there = Some(Arc::clone(client));
        pending.len()
    }

    fn complete(&self, number: u64, answer: Result<Vec<u8>, NbdError>) {
        lock(&self.way).pending.remove(&number);
        let pieces = answer.map(|data| {
            let mut pieces = Pieces::new();
            if !data.is_empty() {
                pieces.push(self.pool.copy_of(&data));
            }
            pieces
        });
        lock(&self.session).complete(CommandId(number), pieces);
        self.changed.notify_all();
    }
}

fn send(client: &Client, number: u64, kind: &Kind) -> Result<(), ClientError> {
    let joined;
    let request = match kind {
        Kind::Read { offset, length } => Request::Read { offset: *offset, length: *length },
        Kind::Write { offset, data, fua } => {
            let data = match data.as_slice() {
                [one] => one.as_ref(),
                pieces => {
                    joined = pieces.iter().flat_map(|piece| piece.iter().copied()).collect::<Vec<u8>>();
                    &joined
                }
            };
            Request::Write { offset: *offset, data, fua: *fua }
        }
        Kind::Flush => Request::Flush,
        Kind::Trim { offset, length, fua } => Request::Trim { offset: *offset, length: *length, fua: *fua },
        Kind::WriteZeroes { offset, length, no_hole, fua } => {
            Request::WriteZeroes { offset: *offset, length: *length, no_hole: *no_hole, fua: *fua }
        }
        Kind::Cache { offset, length } => Request::Cache { offset: *offset, length: *length },
    };
    client.send(number, request)
}

#[cfg(test)]
#[path = "relay_tests.rs"]
mod tests;
