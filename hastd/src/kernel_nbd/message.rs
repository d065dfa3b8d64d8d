//! Generic netlink as far as the kernel's NBD needs it: requests as bytes, replies from bytes
//! (`linux/netlink.h`, `linux/genetlink.h`, `linux/nbd-netlink.h`). Numbers have the machine's own byte order.

/// Longest reply that is looked at, in bytes.
pub(super) const REPLY_MAX: usize = 16 << 10;

/// Bytes of a message's header, of a generic one behind it, and of an attribute's.
const HEADER: usize = 16;
const GENERIC: usize = 4;
const ATTRIBUTE: usize = 4;

/// Message types: what the controller of generic netlink listens to, and a report of an error or of none.
const CONTROLLER: u16 = 0x10;
const ERROR: u16 = 2;
/// Flags: a request, which is to be confirmed.
const REQUEST: u16 = 1;
const ACK: u16 = 4;

/// The controller's command for a family's number, and its attributes.
const GET_FAMILY: u8 = 3;
const FAMILY_ID: u16 = 1;
const FAMILY_NAME: u16 = 2;

/// NBD's commands ...
const CONNECT: u8 = 1;
const DISCONNECT: u8 = 2;
const RECONFIGURE: u8 = 3;
/// ... and attributes.
const INDEX: u16 = 1;
const SIZE_BYTES: u16 = 2;
const BLOCK_SIZE_BYTES: u16 = 3;
const TIMEOUT: u16 = 4;
const SERVER_FLAGS: u16 = 5;
const SOCKETS: u16 = 7;
const DEAD_CONN_TIMEOUT: u16 = 8;
const BACKEND_IDENTIFIER: u16 = 10;
const SOCK_ITEM: u16 = 1;
const SOCK_FD: u16 = 1;

/// What a device is connected to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Connection {
    /// Bytes.
    pub(super) size: u64,
    /// Bytes of the smallest request.
    pub(super) block_size: u64,
    /// Seconds after which a request that is not answered is sent again, over another connection.
    pub(super) timeout: u64,
    /// Seconds that requests wait for another connection when this one is gone.
    pub(super) dead_timeout: u64,
    /// The server's transmission flags, as negotiated.
    pub(super) flags: u64,
    /// The socket, in the transmission phase.
    pub(super) socket: u32,
    /// By what the device is found again.
    pub(super) backend: String,
}

impl Connection {
    fn put(&self, message: &mut Message) {
        message.u64(SIZE_BYTES, self.size);
        message.u64(BLOCK_SIZE_BYTES, self.block_size);
        message.u64(TIMEOUT, self.timeout);
        message.u64(SERVER_FLAGS, self.flags);
        message.u64(DEAD_CONN_TIMEOUT, self.dead_timeout);
        message.nested(SOCKETS, |sockets| sockets.nested(SOCK_ITEM, |item| item.u32(SOCK_FD, self.socket)));
        message.string(BACKEND_IDENTIFIER, &self.backend);
    }
}

/// Asks for the number of a family.
pub(super) fn get_family(seq: u32, name: &str) -> Vec<u8> {
    let mut message = Message::new(CONTROLLER, seq, GET_FAMILY);
    message.string(FAMILY_NAME, name);
    message.finish()
}

/// Connects a device that is not in use; which one, the reply says.
pub(super) fn connect(family: u16, seq: u32, connection: &Connection) -> Vec<u8> {
    let mut message = Message::new(family, seq, CONNECT);
    connection.put(&mut message);
    message.finish()
}

/// Gives a device another connection for one that is gone.
pub(super) fn reconfigure(family: u16, seq: u32, index: u32, connection: &Connection) -> Vec<u8> {
    let mut message = Message::new(family, seq, RECONFIGURE);
    message.u32(INDEX, index);
    connection.put(&mut message);
    message.finish()
}

/// Ends a device's connection, and with it the device: requests that wait fail.
pub(super) fn disconnect(family: u16, seq: u32, index: u32) -> Vec<u8> {
    let mut message = Message::new(family, seq, DISCONNECT);
    message.u32(INDEX, index);
    message.finish()
}

/// One message of a reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reply {
    /// The request with this number has been carried out.
    Done {
        /// The request's.
        seq: u32,
    },
    /// It has not.
    Failed {
        /// The request's.
        seq: u32,
        /// The system's error number.
        errno: i32,
    },
    /// The number of the family that was asked for.
    Family(u16),
    /// The index of the device that was connected.
    Device(u32),
    /// Something else.
    Other,
}

/// The messages in what was received; what is cut short is left out.
pub(super) fn replies(mut bytes: &[u8], family: Option<u16>) -> Vec<Reply> {
    let mut replies = Vec::new();
    while let Some((length, kind, seq)) = header(bytes) {
        let Some(message) = bytes.get(..length).filter(|_| length >= HEADER) else { break };
        let body = message.get(HEADER..).unwrap_or_default();
        replies.push(reply(kind, seq, body, family));
        bytes = bytes.get(padded(length)..).unwrap_or_default();
    }
    replies
}

fn reply(kind: u16, seq: u32, body: &[u8], family: Option<u16>) -> Reply {
    if kind == ERROR {
        return match body.first_chunk().map(|number| i32::from_ne_bytes(*number)) {
            Some(0) => Reply::Done { seq },
            Some(number) => Reply::Failed { seq, errno: number.saturating_neg() },
            None => Reply::Other,
        };
    }
    let attributes = body.get(GENERIC..).unwrap_or_default();
    if kind == CONTROLLER {
        let id = find(attributes, FAMILY_ID).and_then(|value| value.first_chunk());
        return id.map_or(Reply::Other, |id| Reply::Family(u16::from_ne_bytes(*id)));
    }
    if Some(kind) == family {
        let index = find(attributes, INDEX).and_then(|value| value.first_chunk());
        return index.map_or(Reply::Other, |index| Reply::Device(u32::from_ne_bytes(*index)));
    }
    Reply::Other
}

/// Length, type and number of the message that begins here.
fn header(bytes: &[u8]) -> Option<(usize, u16, u32)> {
    let length = u32::from_ne_bytes(*bytes.first_chunk()?);
    let kind = u16::from_ne_bytes(*bytes.get(4..)?.first_chunk()?);
    let seq = u32::from_ne_bytes(*bytes.get(8..)?.first_chunk()?);
    Some((usize::try_from(length).ok()?, kind, seq))
}

/// The value of the first attribute of this type.
fn find(mut attributes: &[u8], wanted: u16) -> Option<&[u8]> {
    /// Two bits of the type say something about the value.
    const TYPE: u16 = 0x3fff;
    loop {
        let length = usize::from(u16::from_ne_bytes(*attributes.first_chunk()?));
        let kind = u16::from_ne_bytes(*attributes.get(2..)?.first_chunk()?);
        let value = attributes.get(ATTRIBUTE..length)?;
        if kind & TYPE == wanted {
            return Some(value);
        }
        attributes = attributes.get(padded(length)..)?;
    }
}

fn padded(length: usize) -> usize {
    length.next_multiple_of(4)
}

/// A request in the making.
struct Message {
    bytes: Vec<u8>,
}

impl Message {
    fn new(kind: u16, seq: u32, command: u8) -> Message {
        let mut bytes = Vec::with_capacity(256);
        bytes.extend_from_slice(&0_u32.to_ne_bytes());
        bytes.extend_from_slice(&kind.to_ne_bytes());
        bytes.extend_from_slice(&(REQUEST | ACK).to_ne_bytes());
        bytes.extend_from_slice(&seq.to_ne_bytes());
        // The kernel fills in who asks.
        bytes.extend_from_slice(&0_u32.to_ne_bytes());
        // Command, version, and two bytes that mean nothing.
        bytes.extend_from_slice(&[command, 1, 0, 0]);
        Message { bytes }
    }

    fn u32(&mut self, kind: u16, value: u32) {
        self.nested(kind, |message| message.bytes.extend_from_slice(&value.to_ne_bytes()));
    }

    fn u64(&mut self, kind: u16, value: u64) {
        self.nested(kind, |message| message.bytes.extend_from_slice(&value.to_ne_bytes()));
    }

    fn string(&mut self, kind: u16, text: &str) {
        self.nested(kind, |message| {
            message.bytes.extend_from_slice(text.as_bytes());
            message.bytes.push(0);
        });
    }

    /// An attribute whose value is what `content` adds.
    fn nested(&mut self, kind: u16, content: impl FnOnce(&mut Message)) {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&[0; 2]);
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        content(self);
        let length = u16::try_from(self.bytes.len().saturating_sub(start)).unwrap_or(u16::MAX);
        if let Some(place) = self.bytes.get_mut(start..).and_then(<[u8]>::first_chunk_mut) {
            *place = length.to_ne_bytes();
        }
        self.bytes.resize(padded(self.bytes.len()), 0);
    }

    fn finish(mut self) -> Vec<u8> {
        let length = u32::try_from(self.bytes.len()).unwrap_or(u32::MAX);
        if let Some(place) = self.bytes.first_chunk_mut() {
            *place = length.to_ne_bytes();
        }
        self.bytes
    }
}

#[cfg(test)]
#[path = "message_tests.rs"]
mod tests;
