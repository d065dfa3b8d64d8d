//! One client connection from greeting to goodbye: framing, admission and the pairing of replies.
//!
//! The session owns what is in flight on its connection and nothing else. It hands out a command only when all
//! of it has arrived, so that a client that dies half-way through a write has written nothing.

use std::collections::HashMap;
use std::collections::VecDeque;

use hast_net::buffer::{Buffer, BufferMut, Pool};

use crate::command::{Command, CommandId, Kind, Pieces, Question, Run};
use crate::error::{NbdError, SessionError};
use crate::export::Export;
use crate::options::{ALLOCATION_ID, Negotiation, Next};
use crate::reply::Output;
use crate::request::{Verdict, judge};
use crate::staging::Staging;
use crate::wire::{self, OptionHeader, RequestHeader, handshake, state};
use crate::{MAX_OPTION, MAX_PAYLOAD, PIECE};

/// Commands that one session takes before it waits for completions.
pub const MAX_COMMANDS: usize = 256;

/// Bytes of read and write data that one session holds at most, from the admission of a command until its
/// write is completed or its read data handed out for sending.
pub const MAX_BYTES: u64 = 64 << 20;

/// A write of more bytes than this is not read just to be refused.
const ABSURD_WRITE: u32 = 4 * MAX_PAYLOAD;

/// An option of more bytes than this is not read just to be refused.
const ABSURD_OPTION: u32 = MAX_PAYLOAD;

/// The length from which writes are received without passing through the staging area.
const LARGE_WRITE: u32 = 32 << 10;

/// The server's side of one client connection.
///
/// The driver's round: read into [`space`](Session::space) while [`wants_input`](Session::wants_input), tell
/// [`advance`](Session::advance) how much came; carry out what [`poll_command`](Session::poll_command) gives and
/// [`complete`](Session::complete) it; send what [`poll_transmit`](Session::poll_transmit) gives; close the
/// connection when [`is_finished`](Session::is_finished) or when `advance` fails. When the client goes away the
/// session is dropped, and completions of what it had in flight are nobody's any more.
#[derive(Debug)]
pub struct Session {
    pool: Pool,
    agreed: Negotiation,
    staging: Staging,
    input: Input,
    /// The write before was large: expect another, and leave its data to its own buffers.
    narrow: bool,
    failed: Option<SessionError>,
    ready: VecDeque<Command>,
    questions: VecDeque<Question>,
    pending: HashMap<CommandId, Pending>,
    last_handle: u64,
    bytes: u64,
    output: Output,
}

/// A command that has not been answered.
#[derive(Debug)]
struct Pending {
    cookie: u64,
    bytes: u64,
    wants: Wants,
}

/// What a client gets for a command that ends well.
#[derive(Clone, Copy, Debug)]
enum Wants {
    /// Word that it is done.
    Done,
    /// The bytes of a read, from this one on.
    Data { offset: u64, length: u32 },
    /// What bytes are.
    Status(Asked),
}

/// Of which bytes a client wants to know what they are.
#[derive(Clone, Copy, Debug)]
struct Asked {
    offset: u64,
    length: u32,
    /// In one run.
    one: bool,
}

/// What the next received bytes belong to.
#[derive(Debug)]
enum Input {
    ClientFlags,
    Option,
    OptionData {
        option: u32,
        left: usize,
        data: Vec<u8>,
    },
    OptionSkip {
        option: u32,
        left: u32,
    },
    Request,
    /// A write's data is being received; its bytes are admitted.
    Payload(Payload),
    /// A refused write's data is being skipped.
    Skip {
        cookie: u64,
        left: u32,
        error: NbdError,
        text: &'static str,
    },
    /// A request waits until what is in flight leaves room for its bytes.
    Waiting {
        cookie: u64,
        verdict: Verdict,
    },
    /// Nothing more is read.
    Closed,
}

/// A write on its way in.
#[derive(Debug)]
struct Payload {
    cookie: u64,
    offset: u64,
    fua: bool,
    /// Bytes that have not arrived, those of the current piece included.
    left: usize,
    pieces: Pieces,
    piece: Option<(BufferMut, usize)>,
}

/// Whether a step of the input used anything up.
enum Progress {
    Made(Input),
    Starved(Input),
}

impl Session {
    /// A session for a client that has just connected. The greeting waits to be sent at once.
    #[must_use]
    pub fn new(export: Export, pool: Pool) -> Session {
        let mut output = Output::new(pool.clone());
        output.greeting(handshake::FIXED_NEWSTYLE | handshake::NO_ZEROES);
        Session {
            pool,
            agreed: Negotiation::new(export.normalised()),
            staging: Staging::new(),
            input: Input::ClientFlags,
            narrow: false,
            failed: None,
            ready: VecDeque::new(),
            questions: VecDeque::new(),
            pending: HashMap::new(),
            last_handle: 0,
            bytes: 0,
            output,
        }
    }

    /// Where to read the client's next bytes. Never empty while [`wants_input`](Session::wants_input) says so;
    /// it may be empty otherwise, so a read of nothing is then not the end of the connection.
    pub fn space(&mut self) -> &mut [u8] {
        match &mut self.input {
            Input::Payload(payload) => payload.space(&self.pool),
            Input::Request => self.staging.space(self.narrow),
            _ => self.staging.space(false),
        }
    }

    /// Takes the first `n` bytes of the space as received.
    ///
    /// # Errors
    ///
    /// The connection is to be closed: the client does not speak the protocol, or asked for an export that is
    /// not served. The session then takes and gives nothing more.
    pub fn advance(&mut self, n: usize) -> Result<(), SessionError> {
        match &mut self.input {
            Input::Payload(payload) => payload.advance(n),
            _ => self.staging.advance(n),
        }
        self.process();
        match &self.failed {
            Some(error) => Err(error.clone()),
            None => Ok(()),
        }
    }

    /// The next command to carry out, in the order of arrival.
    pub fn poll_command(&mut self) -> Option<Command> {
        self.ready.pop_front()
    }

    /// The next question what of a range is a hole; none unless the export [tells](Export::tells_holes).
    pub fn poll_question(&mut self) -> Option<Question> {
        self.questions.pop_front()
    }

    /// Answers a question with what the bytes from its offset on are, as far as that is known: whole blocks, one run behind
    /// the other. Of what is not said, and if that is all, the client hears that it is allocated.
    pub fn answer(&mut self, handle: CommandId, runs: &[Run]) {
        let Some(&Pending { cookie, wants: Wants::Status(asked), .. }) = self.pending.get(&handle) else {
            log::error!("NBD question {} was answered, but is not in flight.", handle.0);
            return;
        };
        self.pending.remove(&handle);
        self.tell_status(cookie, asked, runs);
        self.process();
    }

    fn tell_status(&mut self, cookie: u64, asked: Asked, runs: &[Run]) {
        let extents = extents(&self.agreed.export, asked, runs);
        self.output.block_status(cookie, ALLOCATION_ID, &extents);
    }

    /// Answers a command. A read succeeds with buffers that hold exactly the bytes asked for; for others the
    /// buffers mean nothing. A read with a different number of bytes is answered as failed, and an unknown or
    /// repeated handle is ignored; both are logged, as they are the driver's mistakes.
    pub fn complete(&mut self, handle: CommandId, result: Result<Pieces, NbdError>) {
        let Some(pending) = self.pending.remove(&handle) else {
            log::error!("NBD command {} was completed, but is not in flight.", handle.0);
            return;
        };
        let Pending { cookie, bytes, wants } = pending;
        let structured = self.agreed.structured;
        match (result, wants) {
            (Ok(data), Wants::Data { offset, length }) => {
                let got: u64 = data.iter().map(|buffer| buffer.len() as u64).sum();
                if got == u64::from(length) {
                    self.output.data(cookie, offset, length, data, structured, bytes);
                    return self.process();
                }
                log::error!("NBD read of {length} bytes at {offset} was completed with {got} bytes.");
                self.output.failed(cookie, NbdError::Io, "the device returned too little", structured);
            }
            (Ok(_), Wants::Status(asked)) => self.tell_status(cookie, asked, &[]),
            (Ok(_), Wants::Done) => self.output.done(cookie),
            (Err(error), _) => self.output.failed(cookie, error, &error.to_string(), structured),
        }
        self.release(bytes);
        self.process();
    }

    /// The next bytes to send. Asking for more than can be sent soon defeats the bound on memory: what was
    /// handed out no longer counts.
    pub fn poll_transmit(&mut self) -> Option<Buffer> {
        if self.failed.is_some() {
            return None;
        }
        let (buffer, releases) = self.output.pop()?;
        self.release(releases);
        self.process();
        Some(buffer)
    }

    /// Whether the connection is to be closed: the client has taken its leave, everything it asked is answered
    /// and handed out for sending, or it broke the protocol.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        self.failed.is_some()
            || (matches!(self.input, Input::Closed) && self.pending.is_empty() && self.output.is_empty())
    }

    /// Commands that have arrived and are not completed, whether they were polled or not.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.pending.len()
    }

    /// Whether more should be read from the client. False while as many commands or bytes are in flight as one
    /// client may have, while too many replies wait to be sent, and for good after the client's goodbye.
    #[must_use]
    pub fn wants_input(&self) -> bool {
        match &self.input {
            Input::Closed | Input::Waiting { .. } => false,
            Input::Option => !self.output.is_full(),
            Input::Request => self.takes_requests(),
            Input::ClientFlags
            | Input::OptionData { .. }
            | Input::OptionSkip { .. }
            | Input::Payload(_)
            | Input::Skip { .. } => true,
        }
    }

    /// Takes no more requests, as if the client had said goodbye: the session finishes when what is in flight
    /// has been completed and handed out; commands that were not polled yet still are to be. A write that has
    /// not arrived completely is dropped unanswered.
    pub fn shut_down(&mut self) {
        self.input = Input::Closed;
    }

    fn takes_requests(&self) -> bool {
        self.pending.len() < MAX_COMMANDS && self.bytes < MAX_BYTES && !self.output.is_full()
    }

    /// Understands what was received, as far as it goes.
    fn process(&mut self) {
        loop {
            // `Closed` stays behind when a step fails.
            let input = std::mem::replace(&mut self.input, Input::Closed);
            match self.step(input) {
                Ok(Progress::Made(next)) => self.input = next,
                Ok(Progress::Starved(same)) => {
                    self.input = same;
                    return;
                }
                Err(error) => {
                    self.failed = Some(error);
                    self.ready.clear();
                    self.questions.clear();
                    return;
                }
            }
        }
    }

    fn step(&mut self, input: Input) -> Result<Progress, SessionError> {
        match input {
            Input::ClientFlags => self.client_flags(),
            Input::Option => self.option(),
            Input::OptionData { option, left, data } => self.option_data(option, left, data),
            Input::OptionSkip { option, left } => self.option_skip(option, left),
            Input::Request => self.request(),
            Input::Payload(payload) => Ok(self.payload(payload)),
            Input::Skip { cookie, left, error, text } => Ok(self.skip(cookie, left, error, text)),
            Input::Waiting { cookie, verdict } => Ok(self.admit(cookie, verdict)),
            Input::Closed => Ok(Progress::Starved(Input::Closed)),
        }
    }

    fn client_flags(&mut self) -> Result<Progress, SessionError> {
        let Some(flags) = self.staging.header::<zerocopy::byteorder::big_endian::U32>() else {
            return Ok(Progress::Starved(Input::ClientFlags));
        };
        self.agreed.client_flags(flags.get())?;
        Ok(Progress::Made(Input::Option))
    }

    fn option(&mut self) -> Result<Progress, SessionError> {
        if self.output.is_full() {
            return Ok(Progress::Starved(Input::Option));
        }
        let Some(header) = self.staging.header::<OptionHeader>() else {
            return Ok(Progress::Starved(Input::Option));
        };
        if header.magic.get() != wire::OPTION_MAGIC {
            return Err(SessionError::OptionMagic(header.magic.get()));
        }
        let (option, length) = (header.option.get(), header.length.get());
        if length > ABSURD_OPTION {
            return Err(SessionError::OptionTooLong { option, length });
        }
        if length > MAX_OPTION || !Negotiation::knows(option) {
            return Ok(Progress::Made(Input::OptionSkip { option, left: length }));
        }
        let left = usize::try_from(length).unwrap_or(usize::MAX);
        Ok(Progress::Made(Input::OptionData { option, left, data: Vec::new() }))
    }

    fn option_data(&mut self, option: u32, left: usize, mut data: Vec<u8>) -> Result<Progress, SessionError> {
        let taken = self.staging.take(left);
        let left = left.saturating_sub(taken.len());
        data.extend_from_slice(taken);
        if left > 0 {
            return Ok(Progress::Starved(Input::OptionData { option, left, data }));
        }
        let next = self.agreed.answer(option, &data, &mut self.output)?;
        Ok(Progress::Made(after_option(next)))
    }

    fn option_skip(&mut self, option: u32, left: u32) -> Result<Progress, SessionError> {
        let left = self.drop_staged(left);
        if left > 0 {
            return Ok(Progress::Starved(Input::OptionSkip { option, left }));
        }
        let next = self.agreed.skipped(option, &mut self.output)?;
        Ok(Progress::Made(after_option(next)))
    }

    fn request(&mut self) -> Result<Progress, SessionError> {
        if !self.takes_requests() {
            return Ok(Progress::Starved(Input::Request));
        }
        let Some(header) = self.staging.header::<RequestHeader>() else {
            return Ok(Progress::Starved(Input::Request));
        };
        if header.magic.get() != wire::REQUEST_MAGIC {
            return Err(SessionError::RequestMagic(header.magic.get()));
        }
        let is_write = header.command.get() == wire::command::WRITE;
        let (cookie, length) = (header.cookie.get(), header.length.get());
        self.narrow = is_write && length >= LARGE_WRITE;
        Ok(match judge(&header, &self.agreed) {
            Verdict::Disconnect => Progress::Made(Input::Closed),
            Verdict::Status { offset, length, one } => {
                self.ask(cookie, Asked { offset, length, one });
                Progress::Made(Input::Request)
            }
            Verdict::Refuse(error, text) => {
                if is_write && length > ABSURD_WRITE {
                    return Err(SessionError::WriteTooLong(length));
                }
                let left = if is_write { length } else { 0 };
                Progress::Made(Input::Skip { cookie, left, error, text })
            }
            verdict => self.admit(cookie, verdict),
        })
    }

    /// Lets a command in when its bytes fit beside those in flight. As no command is longer than the bound, it
    /// always does in the end.
    fn admit(&mut self, cookie: u64, verdict: Verdict) -> Progress {
        let bytes = match &verdict {
            Verdict::Command(kind) => kind.payload(),
            Verdict::Write { length, .. } => u64::from(*length),
            Verdict::Status { .. } | Verdict::Refuse(..) | Verdict::Disconnect => 0,
        };
        let sum = self.bytes.saturating_add(bytes);
        if sum > MAX_BYTES {
            return Progress::Starved(Input::Waiting { cookie, verdict });
        }
        self.bytes = sum;
        match verdict {
            Verdict::Command(kind) => {
                self.hand_out(cookie, kind);
                Progress::Made(Input::Request)
            }
            Verdict::Write { offset, length, fua } => {
                let left = usize::try_from(length).unwrap_or(usize::MAX);
                let payload = Payload { cookie, offset, fua, left, pieces: Pieces::new(), piece: None };
                Progress::Made(Input::Payload(payload))
            }
            Verdict::Status { .. } | Verdict::Refuse(..) | Verdict::Disconnect => {
                Progress::Made(Input::Request)
            }
        }
    }

    fn payload(&mut self, mut payload: Payload) -> Progress {
        while payload.left > 0 {
            let space = payload.space(&self.pool);
            let taken = self.staging.take(space.len());
            let count = taken.len();
            if count == 0 {
                return Progress::Starved(Input::Payload(payload));
            }
            if let Some(target) = space.get_mut(..count) {
                target.copy_from_slice(taken);
            }
            payload.advance(count);
        }
        let Payload { cookie, offset, fua, pieces: data, .. } = payload;
        self.hand_out(cookie, Kind::Write { offset, data, fua });
        Progress::Made(Input::Request)
    }

    fn skip(&mut self, cookie: u64, left: u32, error: NbdError, text: &'static str) -> Progress {
        let left = self.drop_staged(left);
        if left > 0 {
            return Progress::Starved(Input::Skip { cookie, left, error, text });
        }
        self.output.failed(cookie, error, text, self.agreed.structured);
        Progress::Made(Input::Request)
    }

    /// Drops up to `left` received bytes and tells how many are still to come.
    fn drop_staged(&mut self, left: u32) -> u32 {
        let most = usize::try_from(left).unwrap_or(usize::MAX);
        let dropped = u32::try_from(self.staging.take(most).len()).unwrap_or(left);
        left.saturating_sub(dropped)
    }

    fn ask(&mut self, cookie: u64, asked: Asked) {
        if !self.agreed.export.tells_holes {
            return self.tell_status(cookie, asked, &[]);
        }
        let handle = self.new_handle();
        let Asked { offset, length, .. } = asked;
        self.pending.insert(handle, Pending { cookie, bytes: 0, wants: Wants::Status(asked) });
        self.questions.push_back(Question { handle, offset, length });
    }

    fn new_handle(&mut self) -> CommandId {
        self.last_handle = self.last_handle.wrapping_add(1);
        CommandId(self.last_handle)
    }

    fn hand_out(&mut self, cookie: u64, kind: Kind) {
        let handle = self.new_handle();
        let wants = match kind {
            Kind::Read { offset, length } => Wants::Data { offset, length },
            _ => Wants::Done,
        };
        self.pending.insert(handle, Pending { cookie, bytes: kind.payload(), wants });
        self.ready.push_back(Command { handle, kind });
    }

    fn release(&mut self, bytes: u64) {
        self.bytes = self.bytes.saturating_sub(bytes);
    }
}

impl Payload {
    /// The rest of the current piece; empty only when everything has arrived.
    fn space(&mut self, pool: &Pool) -> &mut [u8] {
        let left = self.left;
        let (piece, filled) = self.piece.get_or_insert_with(|| (pool.take(left.min(PIECE)), 0));
        piece.get_mut(*filled..).unwrap_or_default()
    }

    fn advance(&mut self, count: usize) {
        let Some((piece, filled)) = &mut self.piece else { return };
        let count = count.min(piece.len().saturating_sub(*filled));
        *filled = filled.saturating_add(count);
        self.left = self.left.saturating_sub(count);
        if *filled == piece.len()
            && let Some((piece, _)) = self.piece.take()
        {
            self.pieces.push(piece.freeze());
        }
    }
}

/// `runs` as a reply has them: lengths and flags. Nothing of an export is beyond its end, and the last run alone may be longer
/// than what was asked for, unless just one was.
fn extents(export: &Export, asked: Asked, runs: &[Run]) -> Vec<(u32, u32)> {
    let block = u64::from(export.minimum_block.max(1));
    let longest = u64::from(u32::MAX) / block * block;
    let rest = export.size.saturating_sub(asked.offset);
    let all = [Run { length: rest, hole: false }];
    let well = !runs.is_empty() && runs.iter().all(|run| run.length > 0 && run.length.is_multiple_of(block));
    let mut extents: Vec<(u32, u32)> = Vec::new();
    let mut covered = 0_u64;
    for run in if well { runs } else { &all } {
        let wanted = u64::from(asked.length).saturating_sub(covered);
        if wanted == 0 {
            break;
        }
        let most = if asked.one { wanted } else { rest.saturating_sub(covered) };
        let length = run.length.min(most).min(longest);
        let flags = if run.hole { state::HOLE | state::ZERO } else { 0 };
        extents.push((u32::try_from(length).unwrap_or(u32::MAX), flags));
        covered = covered.saturating_add(length);
        if asked.one || length < run.length {
            break;
        }
    }
    extents
}

fn after_option(next: Next) -> Input {
    match next {
        Next::Option => Input::Option,
        Next::Transmission => Input::Request,
        Next::Goodbye => Input::Closed,
    }
}
