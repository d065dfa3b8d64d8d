//! Asking `hastd` something: one request, one reply, over the control socket.

use std::io::{self, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use hast_conf::Config;
use hast_format::nv::List;
use hast_log::error_text;
use hast_net::address::Address;
use hast_net::buffer::Pool;
use hast_net::control::{Command, Reply, Request};
use hast_net::frame::{self, Frame, Limits, Receiver};
use socket2::{Domain, SockAddr, Socket, Type};

use crate::exit;

/// How long hastd may take to accept the connection, and to answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// What a change of roles takes beside the `timeout`s of a resource: a disk has a minute for what a secondary has
/// acknowledged, a provider a few seconds to become free.
const DISKS: Duration = Duration::from_secs(120);

/// Sends `request` to the daemon of `config` and waits for its reply, ten seconds at most. For a change of roles it
/// waits longer, and says so, while hastd answers other questions.
pub(crate) fn ask(config: &Config, request: &Request) -> Result<Reply, AskError> {
    match request.command {
        Command::SetRole(_) => ask_patiently(config, request),
        Command::Status | Command::Reload => ask_within(&config.control, request, PATIENCE),
    }
}

/// The longest that hastd may take to change roles, or to end.
pub(crate) fn longest_change(config: &Config) -> Duration {
    let timeout = config.resources.iter().map(|resource| resource.timeout).max().unwrap_or_default();
    Duration::from_secs(timeout.into()).saturating_mul(2).saturating_add(DISKS)
}

/// The same, of a daemon that has to take and say everything within `patience`.
pub(crate) fn ask_within(
    control: &Address,
    request: &Request,
    patience: Duration,
) -> Result<Reply, AskError> {
    Conversation::begin(control, request, patience)?.reply(patience)
}

fn ask_patiently(config: &Config, request: &Request) -> Result<Reply, AskError> {
    let control = &config.control;
    let mut conversation = Conversation::begin(control, request, PATIENCE)?;
    let begun = Instant::now();
    let mut told = false;
    loop {
        match conversation.reply(PATIENCE) {
            Err(AskError::Silent { .. }) if begun.elapsed() < longest_change(config) => {
                // A daemon that is busy with a worker still answers; one that hangs does not.
                let question = Request::new(Command::Status, request.resources.clone());
                if let Err(error @ AskError::Silent { .. }) = ask_within(control, &question, PATIENCE) {
                    return Err(error);
                }
                if !told {
                    log::warn!(
                        "hastd waits for a worker process or a provider: waiting {} s at most.",
                        longest_change(config).as_secs()
                    );
                    told = true;
                }
            }
            result => return result,
        }
    }
}

/// A request that has been sent.
struct Conversation<'a> {
    control: &'a Address,
    stream: Box<dyn Stream>,
    receiver: Receiver,
}

impl<'a> Conversation<'a> {
    fn begin(
        control: &'a Address,
        request: &Request,
        patience: Duration,
    ) -> Result<Conversation<'a>, AskError> {
        let mut stream = connect(control, patience).map_err(|error| match is_late(&error) {
            true => AskError::silent(control, patience),
            false => AskError::Connect { address: control.to_string(), reason: error_text(&error) },
        })?;
        let send = |reason| AskError::Send { address: control.to_string(), reason };
        let bytes =
            frame::encode(frame::VERSION, &request.encode()).map_err(|error| send(error.to_string()))?;
        stream.write_all(&bytes).map_err(|error| match is_late(&error) {
            true => AskError::silent(control, patience),
            false => send(error_text(&error)),
        })?;
        Ok(Conversation { control, stream, receiver: Receiver::new(Limits::CONTROL, Pool::new()) })
    }

    /// The reply, if it comes within `patience`; otherwise it can be waited for again.
    fn reply(&mut self, patience: Duration) -> Result<Reply, AskError> {
        let address = || self.control.to_string();
        let receive = |reason| AskError::Receive { address: address(), reason };
        let frame = receive_frame(self.stream.as_mut(), &mut self.receiver, Instant::now() + patience);
        let frame = frame.map_err(|error| match is_late(&error) {
            true => AskError::silent(self.control, patience),
            false => receive(error_text(&error)),
        })?;
        let list = List::parse(&frame.nv).map_err(|error| receive(error.to_string()))?;
        Reply::decode(&list).map_err(|error| receive(error.to_string()))
    }
}

/// Why there is no reply.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AskError {
    #[error("Unable to connect to hastd via {address}: {reason}.")]
    Connect { address: String, reason: String },
    #[error("Unable to send command to hastd via {address}: {reason}.")]
    Send { address: String, reason: String },
    #[error("cannot receive reply from hastd via {address}: {reason}.")]
    Receive { address: String, reason: String },
    #[error("hastd does not answer via {address}: nothing has come for {seconds} s.")]
    Silent { address: String, seconds: u64 },
}

impl AskError {
    fn silent(control: &Address, patience: Duration) -> AskError {
        AskError::Silent { address: control.to_string(), seconds: patience.as_secs() }
    }

    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            AskError::Connect { .. } => exit::OSERR,
            AskError::Send { .. } | AskError::Receive { .. } => exit::UNAVAILABLE,
            AskError::Silent { .. } => exit::TEMPFAIL,
        }
    }
}

/// Whether a time limit of the socket has passed.
fn is_late(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut)
}

trait Stream: Read + Write {
    /// Not zero.
    fn limit_reading(&self, patience: Duration) -> io::Result<()>;
}

impl Stream for UnixStream {
    fn limit_reading(&self, patience: Duration) -> io::Result<()> {
        self.set_read_timeout(Some(patience))
    }
}

impl Stream for TcpStream {
    fn limit_reading(&self, patience: Duration) -> io::Result<()> {
        self.set_read_timeout(Some(patience))
    }
}

fn connect(control: &Address, patience: Duration) -> io::Result<Box<dyn Stream>> {
    if let Some(path) = control.unix_path() {
        let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
        // Before it connects: Linux waits there for a daemon that has stopped accepting.
        socket.set_write_timeout(Some(patience))?;
        socket.connect(&SockAddr::unix(path)?)?;
        return Ok(Box::new(UnixStream::from(OwnedFd::from(socket))));
    }
    // Only the first address counts, as everywhere in HAST.
    let addresses = control.resolve()?;
    let address = addresses.first().ok_or(ErrorKind::NotFound)?;
    let stream = TcpStream::connect_timeout(address, patience)?;
    stream.set_write_timeout(Some(patience))?;
    Ok(Box::new(stream))
}

fn receive_frame(stream: &mut dyn Stream, receiver: &mut Receiver, deadline: Instant) -> io::Result<Frame> {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(ErrorKind::TimedOut.into());
        }
        stream.limit_reading(left)?;
        let n = match stream.read(receiver.space()) {
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            result => result?,
        };
        if n == 0 {
            // The connection ended before the reply did.
            return Err(io::Error::from_raw_os_error(libc::ENOTCONN));
        }
        receiver.advance(n).map_err(io::Error::other)?;
        if let Some(frame) = receiver.next_frame() {
            return Ok(frame);
        }
    }
}
