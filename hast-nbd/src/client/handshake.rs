//! The client's half of the negotiation.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use zerocopy::{FromBytes, IntoBytes};

use super::{ClientError, Dialect, timed_out};
use crate::MAX_PAYLOAD;
use crate::wire::{
    self, Cursor, Greeting, OptionHeader, OptionReplyHeader, handshake, info, option, option_reply,
    transmission,
};

/// How long a server may take for each answer of the negotiation.
const PATIENCE: Duration = Duration::from_secs(10);

/// The longest reply to an option that is believed.
const MAX_REPLY: u32 = 64 << 10;

/// What the server said about the export.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Agreed {
    /// Bytes.
    pub size: u64,
    /// Transmission flags.
    pub flags: u16,
    /// The smallest unit of a request in bytes; 1 when the server did not say.
    pub minimum_block: u32,
    /// The most bytes in one read or write; 32 MiB when the server did not say.
    pub maximum_payload: u32,
}

impl Agreed {
    /// Whether the server carries out flushes.
    #[must_use]
    pub fn can_flush(&self) -> bool {
        self.can(transmission::SEND_FLUSH)
    }

    /// Whether it makes single commands durable.
    #[must_use]
    pub fn can_fua(&self) -> bool {
        self.can(transmission::SEND_FUA)
    }

    /// Whether it trims.
    #[must_use]
    pub fn can_trim(&self) -> bool {
        self.can(transmission::SEND_TRIM)
    }

    /// Whether it writes zeroes.
    #[must_use]
    pub fn can_write_zeroes(&self) -> bool {
        self.can(transmission::SEND_WRITE_ZEROES)
    }

    /// Whether it refuses writes.
    #[must_use]
    pub fn is_read_only(&self) -> bool {
        self.can(transmission::READ_ONLY)
    }

    pub(super) fn can(&self, flag: u16) -> bool {
        self.flags & flag != 0
    }
}

/// Brings a fresh connection to the transmission phase.
pub(super) fn open(stream: &UnixStream, export: &str, dialect: Dialect) -> Result<Agreed, ClientError> {
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut talk = Talk { stream };
    talk.greet()?;
    if dialect.structured {
        talk.option(option::STRUCTURED_REPLY, &[])?;
        let mut data = Vec::new();
        put_string(&mut data, export);
        data.extend_from_slice(&1_u32.to_be_bytes());
        put_string(&mut data, wire::BASE_ALLOCATION);
        talk.option(option::SET_META_CONTEXT, &data)?;
    }
    let agreed = if dialect.export_name { talk.export_name(export) } else { talk.go(export) }?;
    stream.set_read_timeout(None)?;
    Ok(agreed)
}

/// Asks for the names of exports and takes leave.
pub(super) fn list(stream: &UnixStream) -> Result<Vec<String>, ClientError> {
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut talk = Talk { stream };
    talk.greet()?;
    let mut names = Vec::new();
    for (kind, data) in talk.option(option::LIST, &[])? {
        if kind == option_reply::SERVER {
            let name = Cursor::new(&data).string().ok_or_else(|| protocol("a cut name in a list"))?;
            names.push(String::from_utf8_lossy(name).into_owned());
        }
    }
    talk.option(option::ABORT, &[])?;
    Ok(names)
}

struct Talk<'a> {
    stream: &'a UnixStream,
}

impl Talk<'_> {
    fn greet(&mut self) -> Result<(), ClientError> {
        let greeting: Greeting = self.receive()?;
        if greeting.magic.get() != wire::GREETING_MAGIC || greeting.option_magic.get() != wire::OPTION_MAGIC {
            return Err(protocol("no NBD newstyle greeting"));
        }
        let wanted = handshake::FIXED_NEWSTYLE | handshake::NO_ZEROES;
        if greeting.flags.get() & handshake::FIXED_NEWSTYLE == 0 {
            return Err(protocol("no fixed newstyle"));
        }
        let flags = u32::from(greeting.flags.get() & wanted);
        self.send(&flags.to_be_bytes())
    }

    /// Sends an option and gathers its replies up to the final one, which must be good.
    fn option(&mut self, option: u32, data: &[u8]) -> Result<Vec<(u32, Vec<u8>)>, ClientError> {
        self.send_option(option, data)?;
        let mut replies = Vec::new();
        loop {
            let header: OptionReplyHeader = self.receive()?;
            if header.magic.get() != wire::OPTION_REPLY_MAGIC || header.option.get() != option {
                return Err(protocol("a reply to an option that was not asked"));
            }
            let length = header.length.get();
            if length > MAX_REPLY || replies.len() > 1000 {
                return Err(protocol("too long a reply to an option"));
            }
            let mut data = vec![0; usize::try_from(length).unwrap_or_default()];
            self.receive_into(&mut data)?;
            match header.kind.get() {
                option_reply::ACK => return Ok(replies),
                reply if reply & option_reply::ERROR != 0 => {
                    let text = String::from_utf8_lossy(&data).into_owned();
                    return Err(ClientError::Refused { option, reply, text });
                }
                kind => replies.push((kind, data)),
            }
        }
    }

    fn go(&mut self, export: &str) -> Result<Agreed, ClientError> {
        let mut data = Vec::new();
        put_string(&mut data, export);
        data.extend_from_slice(&1_u16.to_be_bytes());
        data.extend_from_slice(&info::BLOCK_SIZE.to_be_bytes());
        let mut export = None;
        let mut sizes = (1, MAX_PAYLOAD);
        for (kind, data) in self.option(option::GO, &data)? {
            if kind != option_reply::INFO {
                continue;
            }
            let mut cursor = Cursor::new(&data);
            match cursor.u16() {
                Some(info::EXPORT) => export = cursor.u64().zip(cursor.u16()),
                Some(info::BLOCK_SIZE) => {
                    let (minimum, _preferred, maximum) = (cursor.u32(), cursor.u32(), cursor.u32());
                    sizes = minimum.zip(maximum).ok_or_else(|| protocol("cut block sizes"))?;
                }
                _ => {}
            }
        }
        let (size, flags) = export.ok_or_else(|| protocol("no information about the export"))?;
        let (minimum_block, maximum_payload) =
            (sizes.0.max(1), sizes.1.clamp(sizes.0.max(1), MAX_PAYLOAD.max(sizes.0)));
        Ok(Agreed { size, flags, minimum_block, maximum_payload })
    }

    fn export_name(&mut self, export: &str) -> Result<Agreed, ClientError> {
        self.send_option(option::EXPORT_NAME, export.as_bytes())?;
        let mut answer = [0; 10];
        self.receive_into(&mut answer)?;
        let mut cursor = Cursor::new(&answer);
        let (size, flags) =
            cursor.u64().zip(cursor.u16()).ok_or_else(|| protocol("no information about the export"))?;
        Ok(Agreed { size, flags, minimum_block: 1, maximum_payload: MAX_PAYLOAD })
    }

    fn send_option(&mut self, option: u32, data: &[u8]) -> Result<(), ClientError> {
        let header = OptionHeader {
            magic: wire::OPTION_MAGIC.into(),
            option: option.into(),
            length: u32::try_from(data.len()).map_err(|_| protocol("too long a name"))?.into(),
        };
        self.send(header.as_bytes())?;
        self.send(data)
    }

    fn send(&mut self, bytes: &[u8]) -> Result<(), ClientError> {
        self.stream.write_all(bytes).map_err(ended)
    }

    fn receive<H: FromBytes + IntoBytes>(&mut self) -> Result<H, ClientError> {
        let mut header = H::new_zeroed();
        self.receive_into(header.as_mut_bytes())?;
        Ok(header)
    }

    fn receive_into(&mut self, bytes: &mut [u8]) -> Result<(), ClientError> {
        self.stream.read_exact(bytes).map_err(ended)
    }
}

fn put_string(data: &mut Vec<u8>, text: &str) {
    data.extend_from_slice(&u32::try_from(text.len()).unwrap_or(u32::MAX).to_be_bytes());
    data.extend_from_slice(text.as_bytes());
}

fn protocol(text: &str) -> ClientError {
    ClientError::Protocol(text.to_owned())
}

fn ended(error: io::Error) -> ClientError {
    match error.kind() {
        io::ErrorKind::UnexpectedEof | io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => {
            ClientError::Closed
        }
        _ => timed_out(error),
    }
}
