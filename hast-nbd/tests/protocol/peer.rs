//! The bytes that a client sends, spelled out, and a session fed with them.

use hast_nbd::{Command, Export, Session, SessionError};
use hast_net::buffer::Pool;

pub(crate) const FIXED: u32 = 1;
pub(crate) const NO_ZEROES: u32 = 2;

pub(crate) const READ: u16 = 0;
pub(crate) const WRITE: u16 = 1;
pub(crate) const DISC: u16 = 2;
pub(crate) const FLUSH: u16 = 3;
pub(crate) const TRIM: u16 = 4;
pub(crate) const CACHE: u16 = 5;
pub(crate) const WRITE_ZEROES: u16 = 6;
pub(crate) const BLOCK_STATUS: u16 = 7;

pub(crate) const FUA: u16 = 1;
pub(crate) const NO_HOLE: u16 = 2;
pub(crate) const DF: u16 = 4;
pub(crate) const REQ_ONE: u16 = 8;
pub(crate) const FAST_ZERO: u16 = 16;

pub(crate) const ACK: u32 = 1;
pub(crate) const ERR_UNSUP: u32 = 0x8000_0001;
pub(crate) const ERR_INVALID: u32 = 0x8000_0003;
pub(crate) const ERR_UNKNOWN: u32 = 0x8000_0006;
pub(crate) const ERR_TOO_BIG: u32 = 0x8000_0009;

pub(crate) const SIZE: u64 = 64 << 20;

/// HAS_FLAGS, SEND_FLUSH, SEND_FUA, SEND_TRIM, SEND_WRITE_ZEROES, CAN_MULTI_CONN, SEND_CACHE.
pub(crate) const FLAGS: u16 = 0x0001 | 0x0004 | 0x0008 | 0x0020 | 0x0040 | 0x0100 | 0x0400;
pub(crate) const SEND_DF: u16 = 0x0080;

pub(crate) fn export() -> Export {
    Export::new("shared", SIZE, 512)
}

pub(crate) fn option(number: u32, data: &[u8]) -> Vec<u8> {
    let mut bytes = b"IHAVEOPT".to_vec();
    bytes.extend(number.to_be_bytes());
    bytes.extend(u32::try_from(data.len()).unwrap().to_be_bytes());
    bytes.extend(data);
    bytes
}

pub(crate) fn reply(number: u32, kind: u32, data: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0x00, 0x03, 0xe8, 0x89, 0x04, 0x55, 0x65, 0xa9];
    bytes.extend(number.to_be_bytes());
    bytes.extend(kind.to_be_bytes());
    bytes.extend(u32::try_from(data.len()).unwrap().to_be_bytes());
    bytes.extend(data);
    bytes
}

/// The data of `INFO` and `GO`.
pub(crate) fn info(name: &str, wanted: &[u16]) -> Vec<u8> {
    let mut data = string(name);
    data.extend(u16::try_from(wanted.len()).unwrap().to_be_bytes());
    wanted.iter().for_each(|item| data.extend(item.to_be_bytes()));
    data
}

/// The data of `LIST_META_CONTEXT` and `SET_META_CONTEXT`.
pub(crate) fn contexts(name: &str, queries: &[&str]) -> Vec<u8> {
    let mut data = string(name);
    data.extend(u32::try_from(queries.len()).unwrap().to_be_bytes());
    queries.iter().for_each(|query| data.extend(string(query)));
    data
}

fn string(text: &str) -> Vec<u8> {
    let mut data = u32::try_from(text.len()).unwrap().to_be_bytes().to_vec();
    data.extend(text.as_bytes());
    data
}

pub(crate) fn request(command: u16, flags: u16, cookie: u64, offset: u64, length: u32) -> Vec<u8> {
    let mut bytes = vec![0x25, 0x60, 0x95, 0x13];
    bytes.extend(flags.to_be_bytes());
    bytes.extend(command.to_be_bytes());
    bytes.extend(cookie.to_be_bytes());
    bytes.extend(offset.to_be_bytes());
    bytes.extend(length.to_be_bytes());
    bytes
}

pub(crate) fn write(flags: u16, cookie: u64, offset: u64, data: &[u8]) -> Vec<u8> {
    let mut bytes = request(WRITE, flags, cookie, offset, u32::try_from(data.len()).unwrap());
    bytes.extend(data);
    bytes
}

pub(crate) fn simple(error: u32, cookie: u64) -> Vec<u8> {
    let mut bytes = vec![0x67, 0x44, 0x66, 0x98];
    bytes.extend(error.to_be_bytes());
    bytes.extend(cookie.to_be_bytes());
    bytes
}

pub(crate) fn chunk(kind: u16, cookie: u64, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0x66, 0x8e, 0x33, 0xef, 0, 1];
    bytes.extend(kind.to_be_bytes());
    bytes.extend(cookie.to_be_bytes());
    bytes.extend(u32::try_from(payload.len()).unwrap().to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// A session and what it has sent.
pub(crate) struct Peer {
    pub(crate) session: Session,
}

impl Peer {
    /// After the greeting.
    pub(crate) fn new(export: Export) -> Peer {
        let mut peer = Peer { session: Session::new(export, Pool::new()) };
        assert_eq!(peer.sent(), b"NBDMAGICIHAVEOPT\x00\x03");
        peer
    }

    /// In the transmission phase, entered with `GO`.
    pub(crate) fn simple(export: Export) -> Peer {
        let mut peer = Peer::new(export);
        peer.feed(&FIXED.to_be_bytes()).unwrap();
        peer.feed(&option(7, &info("", &[]))).unwrap();
        peer.sent();
        peer
    }

    /// In the transmission phase with structured replies and `base:allocation`.
    pub(crate) fn structured(export: Export) -> Peer {
        let mut peer = Peer::new(export);
        peer.feed(&(FIXED | NO_ZEROES).to_be_bytes()).unwrap();
        peer.feed(&option(8, &[])).unwrap();
        peer.feed(&option(10, &contexts("shared", &["base:allocation"]))).unwrap();
        peer.feed(&option(7, &info("shared", &[3]))).unwrap();
        peer.sent();
        peer
    }

    /// Feeds as much as the session takes at a time; it must take everything.
    pub(crate) fn feed(&mut self, bytes: &[u8]) -> Result<(), SessionError> {
        let rest = self.feed_some(bytes)?;
        assert!(rest.is_empty(), "{} bytes were not taken", rest.len());
        Ok(())
    }

    /// Feeds what the session wants, and gives back the rest.
    pub(crate) fn feed_some<'a>(&mut self, mut bytes: &'a [u8]) -> Result<&'a [u8], SessionError> {
        while !bytes.is_empty() && self.session.wants_input() {
            let space = self.session.space();
            assert!(!space.is_empty());
            let count = space.len().min(bytes.len());
            space[..count].copy_from_slice(&bytes[..count]);
            self.session.advance(count)?;
            bytes = &bytes[count..];
        }
        Ok(bytes)
    }

    pub(crate) fn sent(&mut self) -> Vec<u8> {
        let mut bytes = Vec::new();
        while let Some(buffer) = self.session.poll_transmit() {
            bytes.extend_from_slice(&buffer);
        }
        bytes
    }

    pub(crate) fn command(&mut self) -> Command {
        self.session.poll_command().expect("a command")
    }
}
