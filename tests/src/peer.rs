//! The wire protocol by hand: frames as bytes, for peers that are scripted or replay a capture.
//!
//! The frame reader here is deliberately its own, a few blocking lines after spec/wire.md, so that
//! hastd's is not checked against itself.

use std::fmt;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use hast_format::nv::{List, Type, Writer};

use crate::{Context, Failure, SHORT, wait_for};

/// The largest payload that a script expects.
const LARGEST_PAYLOAD: usize = 4 << 20;

/// One frame as it crossed the wire.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Packet {
    /// The frame's version byte.
    pub version: u8,
    /// The nv list.
    pub nv: Vec<u8>,
    /// The payload as sent.
    pub payload: Vec<u8>,
}

/// One pair, in a form that can be compared and printed: name, type, data.
#[derive(Clone, Eq, PartialEq)]
pub struct Field {
    /// The pair's name.
    pub name: String,
    /// The pair's type.
    pub kind: Type,
    /// The pair's data, little-endian as on the wire.
    pub data: Vec<u8>,
}

impl fmt::Debug for Field {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = match self.kind {
            Type::String => String::from_utf8_lossy(&self.data).trim_end_matches('\0').to_string(),
            _ => self.data.iter().rev().map(|byte| format!("{byte:02x}")).collect(),
        };
        write!(f, "{}({:?})={shown}", self.name, self.kind)
    }
}

impl Packet {
    /// A frame without payload.
    pub fn new(version: u8, nv: &Writer) -> Packet {
        Packet { version, nv: nv.as_bytes().to_vec(), payload: Vec::new() }
    }

    /// A frame with this payload, sent as it is: no compression, no checksum.
    pub fn with_payload(version: u8, nv: &mut Writer, payload: &[u8]) -> Packet {
        nv.u32("size", u32::try_from(payload.len()).unwrap_or(u32::MAX));
        Packet { version, nv: nv.as_bytes().to_vec(), payload: payload.to_vec() }
    }

    /// Reads one frame; none at a clean end of the stream before its first byte.
    pub fn read(from: &mut impl Read) -> Result<Option<Packet>, Failure> {
        let mut header = [0; 5];
        let mut have = 0;
        while let Some(space @ [_, ..]) = header.get_mut(have..) {
            match from.read(space) {
                Ok(0) if have == 0 => return Ok(None),
                Ok(0) => return Failure::because("the stream ends inside a frame header"),
                Ok(n) => have += n,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::ConnectionReset && have == 0 => return Ok(None),
                Err(error) => return Err(error).context("reading a frame"),
            }
        }
        let [version, size @ ..] = header;
        let size = usize::try_from(u32::from_le_bytes(size))?;
        if size > 1 << 20 {
            return Failure::because(format!("a frame claims {size} bytes of header"));
        }
        let mut nv = vec![0; size];
        from.read_exact(&mut nv).context("reading a frame's list")?;
        let list = List::parse(&nv).context("a frame's list")?;
        let length = usize::try_from(list.u32("size").unwrap_or(0))?;
        if length > LARGEST_PAYLOAD {
            return Failure::because(format!("a frame claims {length} bytes of payload"));
        }
        let mut payload = vec![0; length];
        from.read_exact(&mut payload).context("reading a frame's payload")?;
        Ok(Some(Packet { version, nv, payload }))
    }

    /// Splits a captured stream into frames. What is left at the end must be nothing.
    pub fn all(mut stream: &[u8]) -> Result<Vec<Packet>, Failure> {
        let mut packets = Vec::new();
        while let Some(packet) = Packet::read(&mut stream)? {
            packets.push(packet);
        }
        Ok(packets)
    }

    /// The bytes of the frame.
    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = vec![self.version];
        bytes.extend_from_slice(&u32::try_from(self.nv.len()).unwrap_or(u32::MAX).to_le_bytes());
        bytes.extend_from_slice(&self.nv);
        bytes.extend_from_slice(&self.payload);
        bytes
    }

    /// The list, which is known to be valid.
    pub fn list(&self) -> List<'_> {
        // Packets are only made from lists that parsed or that a writer wrote; the empty list stands
        // in for the impossible so that scripts need no error path.
        List::parse(&self.nv).or_else(|_| List::parse(&[])).unwrap_or_else(|_| unreachable!())
    }

    /// Every pair in order.
    pub fn fields(&self) -> Vec<Field> {
        let field = |pair: hast_format::nv::Pair<'_>| Field {
            name: String::from_utf8_lossy(pair.name).into_owned(),
            kind: pair.kind,
            data: pair.data.to_vec(),
        };
        self.list().pairs().map(field).collect()
    }

    /// Every pair but these.
    pub fn fields_without(&self, names: &[&str]) -> Vec<Field> {
        self.fields().into_iter().filter(|field| !names.contains(&field.name.as_str())).collect()
    }

    /// The same frame with other data in one pair; the length must stay.
    pub fn replacing(&self, name: &str, data: &[u8]) -> Result<Packet, Failure> {
        let fields = self.fields();
        let mut writer = Writer::new();
        for field in fields {
            let data = if field.name == name { data } else { &field.data };
            put(&mut writer, &field.name, field.kind, data)?;
        }
        Ok(Packet { version: self.version, nv: writer.into_bytes(), payload: self.payload.clone() })
    }

    /// The payload after decompression.
    pub fn decoded(&self) -> Result<Vec<u8>, Failure> {
        use hast_net::{buffer::Buffer, buffer::Pool, frame::Frame, payload};
        let mut frame = Frame {
            version: self.version,
            nv: self.nv.clone().into(),
            payload: (!self.payload.is_empty()).then(|| Buffer::from(self.payload.clone())),
        };
        payload::decode(&mut frame, 4 << 20, &Pool::new()).context("payload")?;
        Ok(frame.payload.map(|buffer| buffer.to_vec()).unwrap_or_default())
    }
}

/// Writes one pair of any type that the protocol uses.
fn put(writer: &mut Writer, name: &str, kind: Type, data: &[u8]) -> Result<(), Failure> {
    match kind {
        Type::Int8 => writer.i8(name, i8::from_le_bytes(data.try_into()?)),
        Type::UInt8 => writer.u8(name, u8::from_le_bytes(data.try_into()?)),
        Type::Int16 => writer.i16(name, i16::from_le_bytes(data.try_into()?)),
        Type::UInt16 => writer.u16(name, u16::from_le_bytes(data.try_into()?)),
        Type::Int32 => writer.i32(name, i32::from_le_bytes(data.try_into()?)),
        Type::UInt32 => writer.u32(name, u32::from_le_bytes(data.try_into()?)),
        Type::Int64 => writer.i64(name, i64::from_le_bytes(data.try_into()?)),
        Type::UInt64 => writer.u64(name, u64::from_le_bytes(data.try_into()?)),
        Type::UInt8Array => writer.u8_array(name, data),
        Type::String => writer.str(name, std::str::from_utf8(data)?.trim_end_matches('\0')),
        other => return Failure::because(format!("no script sends a pair of type {other:?}")),
    };
    Ok(())
}

/// One connection that a script holds.
#[derive(Debug)]
pub struct Wire {
    stream: TcpStream,
}

impl Wire {
    /// Wraps a connected socket.
    pub fn over(stream: TcpStream) -> Result<Wire, Failure> {
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(SHORT))?;
        stream.set_write_timeout(Some(SHORT))?;
        Ok(Wire { stream })
    }

    /// Connects.
    pub fn connect(to: SocketAddr) -> Result<Wire, Failure> {
        Wire::over(TcpStream::connect(to).context(to)?)
    }

    /// Sends bytes as they are.
    pub fn send_bytes(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        self.stream.write_all(bytes).context("sending")
    }

    /// Sends a frame.
    pub fn send(&mut self, packet: &Packet) -> Result<(), Failure> {
        self.send_bytes(&packet.bytes())
    }

    /// Receives a frame; the end of the connection is a failure.
    pub fn receive(&mut self) -> Result<Packet, Failure> {
        Packet::read(&mut self.stream)?.context("the connection was closed where a frame was expected")
    }

    /// Receives whatever frames come before the connection ends.
    pub fn receive_to_end(&mut self) -> Result<Vec<Packet>, Failure> {
        let mut packets = Vec::new();
        while let Some(packet) = Packet::read(&mut self.stream)? {
            packets.push(packet);
        }
        Ok(packets)
    }

    /// Fails unless the other side closes without sending anything more.
    pub fn expect_closed(&mut self) -> Result<(), Failure> {
        match self.receive_to_end()?.first() {
            None => Ok(()),
            Some(packet) => {
                Failure::because(format!("closed was expected, this came: {:?}", packet.fields()))
            }
        }
    }

    /// Ends our direction of the connection.
    pub fn end(&self) -> Result<(), Failure> {
        self.stream.shutdown(std::net::Shutdown::Write).context("shutdown")
    }
}

/// A script in the place of a secondary: it listens where a primary connects.
#[derive(Debug)]
pub struct Stand {
    listener: TcpListener,
}

impl Stand {
    /// Listens at this address.
    pub fn at(address: SocketAddr) -> Result<Stand, Failure> {
        // The address may still be held for a moment by a node that was just stopped.
        let listener =
            wait_for(&format!("{address} to be free"), SHORT, || Ok(TcpListener::bind(address).ok()))?;
        listener.set_nonblocking(true)?;
        Ok(Stand { listener })
    }

    /// The next connection.
    pub fn accept(&self) -> Result<Wire, Failure> {
        self.accept_within(Duration::from_secs(30))
    }

    /// The next connection, if it comes soon enough.
    pub fn accept_within(&self, deadline: Duration) -> Result<Wire, Failure> {
        let stream = wait_for("a connection from the primary", deadline, || match self.listener.accept() {
            Ok((stream, _)) => Ok(Some(stream)),
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error).context("accept"),
        })?;
        stream.set_nonblocking(false)?;
        Wire::over(stream)
    }
}
