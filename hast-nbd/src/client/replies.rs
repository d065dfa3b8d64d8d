//! What the server answers, sorted by the commands it answers.

use std::collections::{HashMap, VecDeque};
use std::io::{self, BufReader, Read};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use zerocopy::{FromBytes, IntoBytes};

use super::{ClientError, Request};
use crate::error::NbdError;
use crate::wire::{self, ChunkHeader, Cursor, SimpleReplyHeader, chunk};

/// The longest chunk that carries no read data: more statuses or text than any server should send.
const MAX_CHUNK: u32 = 1 << 20;

/// A good answer.
#[derive(Debug)]
pub(super) enum Answer {
    Done,
    Data(Vec<u8>),
    Extents(Vec<(u32, u32)>),
}

/// What an answer may contain, and what of it has come.
#[derive(Debug)]
pub(super) struct Expected {
    read: Option<(u64, u32)>,
    status: bool,
    data: Vec<u8>,
    covered: u64,
    extents: Vec<(u32, u32)>,
    error: Option<(NbdError, String)>,
}

impl Expected {
    pub(super) fn of(request: &Request<'_>) -> Expected {
        let read = match *request {
            Request::Read { offset, length } => Some((offset, length)),
            _ => None,
        };
        Expected {
            read,
            status: matches!(request, Request::BlockStatus { .. }),
            data: Vec::new(),
            covered: 0,
            extents: Vec::new(),
            error: None,
        }
    }

    /// The place for `length` bytes of read data at `offset`.
    fn place(&mut self, offset: u64, length: usize) -> Result<&mut [u8], Broken> {
        let (first, whole) = self.read.ok_or(Broken::Told("data that nobody asked for"))?;
        self.data.resize(usize::try_from(whole).unwrap_or_default(), 0);
        self.covered = self.covered.saturating_add(length as u64);
        let start = offset.checked_sub(first).and_then(|start| usize::try_from(start).ok());
        let end = start.and_then(|start| start.checked_add(length));
        start
            .zip(end)
            .and_then(|(start, end)| self.data.get_mut(start..end))
            .ok_or(Broken::Told("data outside of the read"))
    }

    fn finish(self) -> Result<Result<Answer, (NbdError, String)>, Broken> {
        if let Some(error) = self.error {
            return Ok(Err(error));
        }
        match self.read {
            Some((_, length)) if self.covered != u64::from(length) => {
                Err(Broken::Told("a read that was answered in part"))
            }
            Some(_) => Ok(Ok(Answer::Data(self.data))),
            None if self.status => Ok(Ok(Answer::Extents(self.extents))),
            None => Ok(Ok(Answer::Done)),
        }
    }
}

/// An answer, with the number of its command.
pub(super) type Numbered = (u64, Result<Answer, (NbdError, String)>);

/// The commands under way and the answers that nobody has fetched yet.
#[derive(Debug, Default)]
pub(super) struct Replies {
    table: Mutex<Table>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Table {
    expected: HashMap<u64, Expected>,
    /// In the order in which they came.
    answers: VecDeque<Numbered>,
    ended: Option<Broken>,
}

/// Why no more answers come.
#[derive(Clone, Debug)]
enum Broken {
    Closed,
    Failed(io::ErrorKind),
    Told(&'static str),
}

impl From<Broken> for ClientError {
    fn from(broken: Broken) -> ClientError {
        match broken {
            Broken::Closed => ClientError::Closed,
            Broken::Failed(kind) => ClientError::Io(kind.into()),
            Broken::Told(text) => ClientError::Protocol(text.to_owned()),
        }
    }
}

impl From<io::Error> for Broken {
    fn from(error: io::Error) -> Broken {
        match error.kind() {
            io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset => Broken::Closed,
            kind => Broken::Failed(kind),
        }
    }
}

impl Replies {
    /// Takes note of a command that is about to be sent.
    pub(super) fn expect(&self, cookie: u64, expected: Expected) -> Result<(), ClientError> {
        let mut table = self.lock();
        if let Some(broken) = &table.ended {
            return Err(broken.clone().into());
        }
        table.expected.insert(cookie, expected);
        Ok(())
    }

    /// Waits for the answer to a command.
    pub(super) fn wait(&self, cookie: u64, timeout: Option<Duration>) -> Result<Answer, ClientError> {
        self.until(timeout, |table| {
            let at = table.answers.iter().position(|(answered, _)| *answered == cookie);
            if let Some((_, answer)) = at.and_then(|at| table.answers.remove(at)) {
                return Some(answer.map_err(|(error, text)| ClientError::Command { error, text }));
            }
            table.ended.clone().map(|broken| Err(broken.into()))
        })?
    }

    /// Waits for the next answer, to whichever command.
    pub(super) fn next(&self, timeout: Option<Duration>) -> Result<Numbered, ClientError> {
        self.until(timeout, |table| {
            if let Some(answer) = table.answers.pop_front() {
                return Some(Ok(answer));
            }
            table.ended.clone().map(|broken| Err(broken.into()))
        })?
    }

    /// Waits until the server has closed the connection in good order.
    pub(super) fn wait_for_end(&self, timeout: Option<Duration>) -> Result<(), ClientError> {
        self.until(timeout, |table| match table.ended.clone()? {
            Broken::Closed => Some(Ok(())),
            broken => Some(Err(broken.into())),
        })?
    }

    /// Receives answers until the connection ends. The body of the client's thread.
    pub(super) fn receive(&self, stream: UnixStream) {
        let mut reader = BufReader::new(&stream);
        let broken = loop {
            if let Err(broken) = self.receive_one(&mut reader) {
                break broken;
            }
        };
        let _ = stream.shutdown(Shutdown::Both);
        self.lock().ended = Some(broken);
        self.changed.notify_all();
    }

    fn receive_one(&self, reader: &mut impl Read) -> Result<(), Broken> {
        let mut magic = [0; 4];
        reader.read_exact(&mut magic)?;
        match u32::from_be_bytes(magic) {
            wire::SIMPLE_REPLY_MAGIC => self.receive_simple(reader),
            wire::STRUCTURED_REPLY_MAGIC => self.receive_chunk(reader),
            _ => Err(Broken::Told("no reply's magic number")),
        }
    }

    fn receive_simple(&self, reader: &mut impl Read) -> Result<(), Broken> {
        let header: SimpleReplyHeader = after_magic(reader)?;
        let cookie = header.cookie.get();
        let mut expected = self.take(cookie)?;
        match header.error.get() {
            0 => {
                if let Some((offset, length)) = expected.read {
                    let length = usize::try_from(length).unwrap_or_default();
                    reader.read_exact(expected.place(offset, length)?)?;
                }
            }
            error => expected.error = Some((NbdError::from_wire(error), String::new())),
        }
        self.give(cookie, expected)
    }

    fn receive_chunk(&self, reader: &mut impl Read) -> Result<(), Broken> {
        let header: ChunkHeader = after_magic(reader)?;
        let (cookie, length) = (header.cookie.get(), header.length.get());
        let mut expected = self.take(cookie)?;
        if header.kind.get() == chunk::OFFSET_DATA {
            let length = length.checked_sub(8).ok_or(Broken::Told("a cut data chunk"))?;
            let mut offset = [0; 8];
            reader.read_exact(&mut offset)?;
            let length = usize::try_from(length).unwrap_or(usize::MAX);
            reader.read_exact(expected.place(u64::from_be_bytes(offset), length)?)?;
        } else {
            if length > MAX_CHUNK {
                return Err(Broken::Told("too long a chunk"));
            }
            let mut payload = vec![0; usize::try_from(length).unwrap_or_default()];
            reader.read_exact(&mut payload)?;
            take_chunk(header.kind.get(), Cursor::new(&payload), &mut expected)
                .ok_or(Broken::Told("a malformed chunk"))??;
        }
        if header.flags.get() & chunk::DONE != 0 {
            return self.give(cookie, expected);
        }
        self.lock().expected.insert(cookie, expected);
        Ok(())
    }

    fn take(&self, cookie: u64) -> Result<Expected, Broken> {
        self.lock().expected.remove(&cookie).ok_or(Broken::Told("an answer to an unknown command"))
    }

    fn give(&self, cookie: u64, expected: Expected) -> Result<(), Broken> {
        let answer = expected.finish()?;
        self.lock().answers.push_back((cookie, answer));
        self.changed.notify_all();
        Ok(())
    }

    /// Waits until `done` finds what it looks for.
    fn until<T>(
        &self,
        timeout: Option<Duration>,
        mut done: impl FnMut(&mut Table) -> Option<T>,
    ) -> Result<T, ClientError> {
        let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        let mut table = self.lock();
        loop {
            if let Some(found) = done(&mut table) {
                return Ok(found);
            }
            table = match deadline {
                None => self.changed.wait(table).unwrap_or_else(PoisonError::into_inner),
                Some(deadline) => {
                    let left = deadline.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        return Err(ClientError::Timeout);
                    }
                    self.changed.wait_timeout(table, left).unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The rest of a header whose first four bytes have been read.
fn after_magic<H: FromBytes + IntoBytes>(reader: &mut impl Read) -> Result<H, Broken> {
    let mut header = H::new_zeroed();
    reader.read_exact(header.as_mut_bytes().get_mut(4..).unwrap_or_default())?;
    Ok(header)
}

/// Takes a chunk without read data; `None` when it is too short.
fn take_chunk(kind: u16, mut payload: Cursor<'_>, expected: &mut Expected) -> Option<Result<(), Broken>> {
    match kind {
        chunk::NONE => return Some(Ok(())),
        chunk::OFFSET_HOLE => {
            let (offset, length) = (payload.u64()?, payload.u32()?);
            let length = usize::try_from(length).ok()?;
            return Some(expected.place(offset, length).map(|place| place.fill(0)));
        }
        chunk::BLOCK_STATUS if expected.status => {
            let _context = payload.u32()?;
            while !payload.is_empty() {
                expected.extents.push((payload.u32()?, payload.u32()?));
            }
        }
        kind if kind & chunk::ERROR_BIT != 0 => {
            let error = NbdError::from_wire(payload.u32()?);
            let length = usize::from(payload.u16()?);
            let text = String::from_utf8_lossy(payload.bytes(length)?).into_owned();
            expected.error = Some((error, text));
        }
        _ => return Some(Err(Broken::Told("a chunk of an unexpected type"))),
    }
    Some(Ok(()))
}
