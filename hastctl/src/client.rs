//! Asking `hastd` something: one request, one reply, over the control socket.

use std::io::{self, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use hast_format::nv::List;
use hast_log::error_text;
use hast_net::address::Address;
use hast_net::buffer::Pool;
use hast_net::control::{Reply, Request};
use hast_net::frame::{self, Frame, Limits, Receiver};

use crate::exit;

/// How long a daemon on another machine may take to accept a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(20);

/// Sends `request` to the daemon that listens on `control` and waits for its reply; a change of role takes
/// as long as the worker takes to end.
pub(crate) fn ask(control: &Address, request: &Request) -> Result<Reply, AskError> {
    ask_within(control, request, None)
}

/// The same, of a daemon that has to take and say each piece within `patience`.
pub(crate) fn ask_within(
    control: &Address,
    request: &Request,
    patience: Option<Duration>,
) -> Result<Reply, AskError> {
    let mut stream = connect(control, patience)
        .map_err(|error| AskError::Connect { address: control.to_string(), reason: error_text(&error) })?;
    let send = |reason| AskError::Send { address: control.to_string(), reason };
    let bytes = frame::encode(frame::VERSION, &request.encode()).map_err(|error| send(error.to_string()))?;
    stream.write_all(&bytes).map_err(|error| send(error_text(&error)))?;

    let receive = |reason| AskError::Receive { address: control.to_string(), reason };
    let frame = receive_frame(stream.as_mut()).map_err(|error| receive(error_text(&error)))?;
    let list = List::parse(&frame.nv).map_err(|error| receive(error.to_string()))?;
    Reply::decode(&list).map_err(|error| receive(error.to_string()))
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
}

impl AskError {
    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            AskError::Connect { .. } => exit::OSERR,
            AskError::Send { .. } | AskError::Receive { .. } => exit::UNAVAILABLE,
        }
    }
}

trait Stream: Read + Write {}

impl<T: Read + Write> Stream for T {}

fn connect(control: &Address, patience: Option<Duration>) -> io::Result<Box<dyn Stream>> {
    if let Some(path) = control.unix_path() {
        let stream = UnixStream::connect(path)?;
        stream.set_read_timeout(patience)?;
        stream.set_write_timeout(patience)?;
        return Ok(Box::new(stream));
    }
    // Only the first address counts, as everywhere in HAST.
    let addresses = control.resolve()?;
    let address = addresses.first().ok_or(ErrorKind::NotFound)?;
    let stream = TcpStream::connect_timeout(address, patience.unwrap_or(CONNECT_TIMEOUT))?;
    stream.set_read_timeout(patience)?;
    stream.set_write_timeout(patience)?;
    Ok(Box::new(stream))
}

fn receive_frame(stream: &mut dyn Stream) -> io::Result<Frame> {
    let mut receiver = Receiver::new(Limits::CONTROL, Pool::new());
    loop {
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
