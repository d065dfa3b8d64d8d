//! A blocking NBD client over a unix socket, for hastd's own devices, tests and the demonstration.
//!
//! It owns its connection and a thread that receives replies, so that any number of commands may be under way
//! without the two sides waiting for each other's full socket. It knows nothing of HAST and believes nothing
//! that a server says without checking it against what was asked.

use std::io::{self, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use zerocopy::IntoBytes;

use crate::error::NbdError;
use crate::wire::{self, RequestHeader, command, flag, transmission};

mod handshake;
mod replies;

pub use handshake::Agreed;
use replies::{Answer, Expected, Replies};

/// Why something asked of a server was not done.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The socket failed or could not be reached.
    #[error("cannot talk to the NBD server: {0}")]
    Io(#[from] io::Error),
    /// The server sent what the protocol does not allow at this point.
    #[error("the NBD server broke the protocol: {0}")]
    Protocol(String),
    /// The server refused an option of the negotiation.
    #[error("the NBD server refused option {option} with {reply:#010x}: {text}")]
    Refused {
        /// The option's number.
        option: u32,
        /// The type of the reply.
        reply: u32,
        /// What the server says about it; may be empty.
        text: String,
    },
    /// The server answered a command with an error.
    #[error("the NBD server reports: {error} ({text})")]
    Command {
        /// The error.
        error: NbdError,
        /// What the server says about it; may be empty.
        text: String,
    },
    /// No answer within the time set with [`Client::set_timeout`].
    #[error("the NBD server did not answer in time")]
    Timeout,
    /// The server closed the connection before it answered.
    #[error("the NBD server closed the connection")]
    Closed,
}

/// Brings a fresh connection to the transmission phase, for whoever goes on with it from there.
///
/// # Errors
///
/// The server does not answer, refuses, or does not speak NBD; each answer may take ten seconds.
pub fn negotiate(stream: &UnixStream, export: &str, dialect: Dialect) -> Result<Agreed, ClientError> {
    handshake::open(stream, export, dialect)
}

/// Parts from a server whose connection was [negotiated](negotiate) and is not used after all.
///
/// # Errors
///
/// The connection is broken.
pub fn take_leave(stream: &UnixStream) -> Result<(), ClientError> {
    let mut stream = stream;
    stream.write_all(disconnect_request().as_bytes()).map_err(timed_out)
}

fn disconnect_request() -> RequestHeader {
    RequestHeader {
        magic: wire::REQUEST_MAGIC.into(),
        flags: 0.into(),
        command: command::DISC.into(),
        cookie: 0.into(),
        offset: 0.into(),
        length: 0.into(),
    }
}

/// How to negotiate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dialect {
    /// Ask for structured replies and `base:allocation`.
    pub structured: bool,
    /// Use the old `EXPORT_NAME` instead of `GO`.
    pub export_name: bool,
}

impl Default for Dialect {
    /// What a current client does: `GO` with structured replies.
    fn default() -> Dialect {
        Dialect { structured: true, export_name: false }
    }
}

/// A command to be submitted. Offsets and lengths are in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // The fields say what the NBD protocol says.
pub enum Request<'a> {
    Read { offset: u64, length: u32 },
    Write { offset: u64, data: &'a [u8], fua: bool },
    Flush,
    Trim { offset: u64, length: u32, fua: bool },
    WriteZeroes { offset: u64, length: u32, no_hole: bool, fua: bool },
    Cache { offset: u64, length: u32 },
    BlockStatus { offset: u64, length: u32, one: bool },
}

/// A submitted command, to be waited for once.
#[derive(Debug, PartialEq, Eq, Hash)]
#[must_use = "the answer is kept until it is waited for"]
pub struct Ticket(u64);

/// A connection in the transmission phase. Threads may share it.
#[derive(Debug)]
pub struct Client {
    agreed: Agreed,
    stream: UnixStream,
    writer: Mutex<Writer>,
    replies: Arc<Replies>,
    reader: Option<JoinHandle<()>>,
    timeout: Option<Duration>,
}

/// Who holds it may send.
#[derive(Debug)]
struct Writer {
    last_cookie: u64,
}

impl Client {
    /// Connects to the socket at `path` and opens `export` (empty: the server's default).
    ///
    /// # Errors
    ///
    /// The socket cannot be reached, the server does not answer within ten seconds, or it refuses.
    pub fn connect(path: impl AsRef<Path>, export: &str) -> Result<Client, ClientError> {
        Client::over(UnixStream::connect(path)?, export, Dialect::default())
    }

    /// Opens `export` over a connected socket.
    ///
    /// # Errors
    ///
    /// As for [`connect`](Client::connect).
    pub fn over(stream: UnixStream, export: &str, dialect: Dialect) -> Result<Client, ClientError> {
        let agreed = handshake::open(&stream, export, dialect)?;
        let replies = Arc::new(Replies::default());
        let reader = std::thread::Builder::new().name("nbd-client".to_owned()).spawn({
            let (stream, replies) = (stream.try_clone()?, Arc::clone(&replies));
            move || replies.receive(stream)
        })?;
        Ok(Client {
            agreed,
            stream,
            writer: Mutex::new(Writer { last_cookie: 0 }),
            replies,
            reader: Some(reader),
            timeout: None,
        })
    }

    /// The names of the exports that the server at `path` tells.
    ///
    /// # Errors
    ///
    /// As for [`connect`](Client::connect).
    pub fn list(path: impl AsRef<Path>) -> Result<Vec<String>, ClientError> {
        handshake::list(&UnixStream::connect(path)?)
    }

    /// Bounds every later wait for an answer, and every wait for the server to take a command.
    ///
    /// # Errors
    ///
    /// The socket does not take the bound; zero is not a bound.
    pub fn set_timeout(&mut self, timeout: Option<Duration>) -> Result<(), ClientError> {
        self.stream.set_write_timeout(timeout)?;
        self.timeout = timeout;
        Ok(())
    }

    /// What the server said about the export.
    #[must_use]
    pub fn agreed(&self) -> Agreed {
        self.agreed
    }

    /// The export's size in bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.agreed.size
    }

    /// The smallest unit of a request in bytes; 1 when the server did not say.
    #[must_use]
    pub fn minimum_block(&self) -> u32 {
        self.agreed.minimum_block
    }

    /// The most bytes in one read or write; 32 MiB when the server did not say.
    #[must_use]
    pub fn maximum_payload(&self) -> u32 {
        self.agreed.maximum_payload
    }

    /// Whether several connections see each other's flushed writes.
    #[must_use]
    pub fn can_multi_conn(&self) -> bool {
        self.agreed.can(transmission::CAN_MULTI_CONN)
    }

    /// Sends a command without waiting for its answer.
    ///
    /// # Errors
    ///
    /// The connection is broken or, with a timeout set, the server takes no more; it is of no use afterwards.
    pub fn submit(&self, request: Request<'_>) -> Result<Ticket, ClientError> {
        let mut writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        writer.last_cookie = writer.last_cookie.wrapping_add(1);
        let cookie = writer.last_cookie;
        self.put(&writer, cookie, &request)?;
        Ok(Ticket(cookie))
    }

    /// Sends a command under a number of the caller's own, who gets it back from [`receive`](Client::receive). No
    /// command under way may have the same one, and whoever uses these two uses nothing else of this client.
    ///
    /// # Errors
    ///
    /// As for [`submit`](Client::submit).
    pub fn send(&self, cookie: u64, request: Request<'_>) -> Result<(), ClientError> {
        let writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        self.put(&writer, cookie, &request)
    }

    /// Waits for the next answer, whichever command [sent](Client::send) it is to: the command's number, and the
    /// data of a read, nothing for other commands, or the error that the server reports.
    ///
    /// # Errors
    ///
    /// The connection is gone, and all answers that it brought have been received; or none has come in time.
    pub fn receive(&self) -> Result<(u64, Result<Vec<u8>, NbdError>), ClientError> {
        let (cookie, answer) = self.replies.next(self.timeout)?;
        let data = answer.map(|answer| match answer {
            Answer::Data(data) => data,
            Answer::Done | Answer::Extents(_) => Vec::new(),
        });
        Ok((cookie, data.map_err(|(error, _)| error)))
    }

    /// Ends the connection at once: whoever sends or waits gets an error.
    pub fn close(&self) {
        // It has ended already if this fails.
        let _ = self.stream.shutdown(Shutdown::Both);
    }

    fn put(&self, _: &Writer, cookie: u64, request: &Request<'_>) -> Result<(), ClientError> {
        let (kind, flags, offset, length, data) = encode(request)?;
        self.replies.expect(cookie, Expected::of(request))?;
        let header = RequestHeader {
            magic: wire::REQUEST_MAGIC.into(),
            flags: flags.into(),
            command: kind.into(),
            cookie: cookie.into(),
            offset: offset.into(),
            length: length.into(),
        };
        let mut stream = &self.stream;
        let sent = stream.write_all(header.as_bytes()).and_then(|()| stream.write_all(data));
        sent.map_err(|error| {
            // Half a command may be out: nothing after it would be understood.
            self.close();
            timed_out(error)
        })
    }

    /// Waits for a command's answer: the data of a read, and nothing for other commands.
    ///
    /// # Errors
    ///
    /// The server answered with an error, did not answer in time, or the connection is gone.
    pub fn wait(&self, ticket: Ticket) -> Result<Vec<u8>, ClientError> {
        match self.replies.wait(ticket.0, self.timeout)? {
            Answer::Data(data) => Ok(data),
            Answer::Done | Answer::Extents(_) => Ok(Vec::new()),
        }
    }

    /// Reads `length` bytes, in several commands when one cannot carry them.
    ///
    /// # Errors
    ///
    /// As for [`submit`](Client::submit) and [`wait`](Client::wait).
    pub fn read(&self, offset: u64, length: usize) -> Result<Vec<u8>, ClientError> {
        let mut data = Vec::new();
        while data.len() < length {
            let part = self.part(length.saturating_sub(data.len()));
            let offset = offset.saturating_add(data.len() as u64);
            data.extend(self.wait(self.submit(Request::Read { offset, length: part })?)?);
        }
        Ok(data)
    }

    /// Writes `data`, in several commands when one cannot carry it.
    ///
    /// # Errors
    ///
    /// As for [`submit`](Client::submit) and [`wait`](Client::wait).
    pub fn write(&self, offset: u64, data: &[u8]) -> Result<(), ClientError> {
        self.write_parts(offset, data, false)
    }

    /// Writes `data` and returns when it is durable.
    ///
    /// # Errors
    ///
    /// As for [`submit`](Client::submit) and [`wait`](Client::wait).
    pub fn write_fua(&self, offset: u64, data: &[u8]) -> Result<(), ClientError> {
        self.write_parts(offset, data, true)
    }

    /// Makes everything that was written before durable.
    ///
    /// # Errors
    ///
    /// As for [`submit`](Client::submit) and [`wait`](Client::wait).
    pub fn flush(&self) -> Result<(), ClientError> {
        self.run(Request::Flush)
    }

    /// Gives `length` bytes up.
    ///
    /// # Errors
    ///
    /// As for [`submit`](Client::submit) and [`wait`](Client::wait).
    pub fn trim(&self, offset: u64, length: u32) -> Result<(), ClientError> {
        self.run(Request::Trim { offset, length, fua: false })
    }

    /// Makes `length` bytes read as zeroes.
    ///
    /// # Errors
    ///
    /// As for [`submit`](Client::submit) and [`wait`](Client::wait).
    pub fn write_zeroes(&self, offset: u64, length: u32) -> Result<(), ClientError> {
        self.run(Request::WriteZeroes { offset, length, no_hole: false, fua: false })
    }

    /// Announces that `length` bytes will be read.
    ///
    /// # Errors
    ///
    /// As for [`submit`](Client::submit) and [`wait`](Client::wait).
    pub fn cache(&self, offset: u64, length: u32) -> Result<(), ClientError> {
        self.run(Request::Cache { offset, length })
    }

    /// The `base:allocation` status from `offset` on, as lengths and flags; just one of them when `one` is set.
    ///
    /// # Errors
    ///
    /// As for [`submit`](Client::submit) and [`wait`](Client::wait).
    pub fn block_status(&self, offset: u64, length: u32, one: bool) -> Result<Vec<(u32, u32)>, ClientError> {
        let ticket = self.submit(Request::BlockStatus { offset, length, one })?;
        match self.replies.wait(ticket.0, self.timeout)? {
            Answer::Extents(extents) => Ok(extents),
            Answer::Done | Answer::Data(_) => {
                Err(ClientError::Protocol("a block status without a status".to_owned()))
            }
        }
    }

    /// Says goodbye and waits until the server, having answered everything, has closed the connection.
    ///
    /// # Errors
    ///
    /// The connection is broken, or the server does not close it within the timeout.
    pub fn disconnect(self) -> Result<(), ClientError> {
        take_leave(&self.stream)?;
        self.replies.wait_for_end(self.timeout)
    }

    fn run(&self, request: Request<'_>) -> Result<(), ClientError> {
        self.wait(self.submit(request)?).map(drop)
    }

    fn write_parts(&self, offset: u64, data: &[u8], fua: bool) -> Result<(), ClientError> {
        let part = usize::try_from(self.part(usize::MAX)).unwrap_or(usize::MAX);
        let mut offset = offset;
        for data in data.chunks(part.max(1)) {
            self.run(Request::Write { offset, data, fua })?;
            offset = offset.saturating_add(data.len() as u64);
        }
        Ok(())
    }

    fn part(&self, left: usize) -> u32 {
        u32::try_from(left).unwrap_or(u32::MAX).min(self.agreed.maximum_payload)
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.close();
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
    }
}

/// A command's number, flags, offset, length and data.
type Encoded<'a> = (u16, u16, u64, u32, &'a [u8]);

fn encode<'a>(request: &Request<'a>) -> Result<Encoded<'a>, ClientError> {
    let fua_flag = |fua| if fua { flag::FUA } else { 0 };
    Ok(match *request {
        Request::Read { offset, length } => (command::READ, 0, offset, length, &[]),
        Request::Write { offset, data, fua } => {
            let length = u32::try_from(data.len())
                .map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, "a write above 4 GiB"))?;
            (command::WRITE, fua_flag(fua), offset, length, data)
        }
        Request::Flush => (command::FLUSH, 0, 0, 0, &[]),
        Request::Trim { offset, length, fua } => (command::TRIM, fua_flag(fua), offset, length, &[]),
        Request::WriteZeroes { offset, length, no_hole, fua } => {
            let no_hole = if no_hole { flag::NO_HOLE } else { 0 };
            (command::WRITE_ZEROES, no_hole | fua_flag(fua), offset, length, &[])
        }
        Request::Cache { offset, length } => (command::CACHE, 0, offset, length, &[]),
        Request::BlockStatus { offset, length, one } => {
            (command::BLOCK_STATUS, if one { flag::REQ_ONE } else { 0 }, offset, length, &[])
        }
    })
}

fn timed_out(error: io::Error) -> ClientError {
    match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => ClientError::Timeout,
        _ => ClientError::Io(error),
    }
}
