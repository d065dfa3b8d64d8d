//! As much of the kernel's FUSE protocol (version 7.31 and later) as a file system needs that is one regular file.
//!
//! Requests and replies as bytes; the file system itself is `mount`'s. Every number is in the machine's byte order.

use std::ops::Range;

/// Bytes in front of every request.
const IN_HEADER: usize = 40;
/// Bytes in front of every reply.
const OUT_HEADER: usize = 16;
/// The longest read or write in bytes.
pub(super) const MOST: u32 = 1 << 20;
/// Bytes that a request takes at most.
pub(super) const BUFFER: usize = MOST as usize + 4096;

/// `FUSE_ASYNC_READ`, `FUSE_BIG_WRITES` and `FUSE_MAX_PAGES`.
const FLAGS: u32 = 1 | 1 << 5 | 1 << 22;
/// `FOPEN_DIRECT_IO` and `FOPEN_PARALLEL_DIRECT_WRITES`: no page cache in between, and no write waits for another.
const OPEN_FLAGS: u32 = 1 | 1 << 6;
/// A regular file that its owner may read and write.
const FILE_MODE: u32 = 0o100_600;
/// How long the kernel may believe the attributes, in seconds: they never change.
const VALID: u64 = 1 << 30;

/// What the kernel asks for.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Request {
    Init {
        major: u32,
        minor: u32,
        max_readahead: u32,
    },
    Attributes,
    Open,
    Release,
    Read {
        offset: u64,
        length: usize,
    },
    /// The data are this part of the request.
    Write {
        offset: u64,
        data: Range<usize>,
    },
    Flush,
    /// fallocate(2) with these flags.
    Allocate {
        offset: u64,
        length: u64,
        mode: u32,
    },
    /// A descriptor is closed: nothing to do.
    Close,
    /// No reply is wanted.
    Nothing,
    /// Anything else.
    Unknown,
}

/// A request and the number that its reply carries. None: the bytes are none.
pub(super) fn parse(bytes: &[u8]) -> Option<(u64, Request)> {
    let (opcode, unique) = (u32_at(bytes, 4)?, u64_at(bytes, 8)?);
    let body = bytes.get(IN_HEADER..)?;
    let request = match opcode {
        // FORGET, INTERRUPT, BATCH_FORGET
        2 | 36 | 42 => Request::Nothing,
        3 => Request::Attributes,
        14 => Request::Open,
        15 => Request::Read { offset: u64_at(body, 8)?, length: usize::try_from(u32_at(body, 16)?).ok()? },
        16 => {
            let length = usize::try_from(u32_at(body, 16)?).ok()?;
            let begin = IN_HEADER + 40;
            bytes.get(begin..begin.checked_add(length)?)?;
            Request::Write { offset: u64_at(body, 8)?, data: begin..begin + length }
        }
        18 => Request::Release,
        20 => Request::Flush,
        25 => Request::Close,
        26 => Request::Init {
            major: u32_at(body, 0)?,
            minor: u32_at(body, 4)?,
            max_readahead: u32_at(body, 8)?,
        },
        43 => {
            Request::Allocate { offset: u64_at(body, 8)?, length: u64_at(body, 16)?, mode: u32_at(body, 24)? }
        }
        _ => Request::Unknown,
    };
    Some((unique, request))
}

/// A reply with these bytes.
pub(super) fn good(unique: u64, body: &[u8]) -> Vec<u8> {
    reply(unique, 0, body)
}

/// A reply with an error number.
pub(super) fn error(unique: u64, errno: i32) -> Vec<u8> {
    reply(unique, errno.saturating_neg(), &[])
}

fn reply(unique: u64, error: i32, body: &[u8]) -> Vec<u8> {
    let length = OUT_HEADER + body.len();
    let mut out = Vec::with_capacity(length);
    out.extend_from_slice(&u32::try_from(length).unwrap_or(u32::MAX).to_ne_bytes());
    out.extend_from_slice(&error.to_ne_bytes());
    out.extend_from_slice(&unique.to_ne_bytes());
    out.extend_from_slice(body);
    out
}

/// The answer to `Init`.
pub(super) fn init(max_readahead: u32) -> Vec<u8> {
    let mut body = Vec::new();
    for number in [7, 31, max_readahead, FLAGS] {
        body.extend_from_slice(&number.to_ne_bytes());
    }
    // At most so many requests in the background, congested from so many on.
    for number in [64_u16, 48] {
        body.extend_from_slice(&number.to_ne_bytes());
    }
    for number in [MOST, 1] {
        body.extend_from_slice(&number.to_ne_bytes());
    }
    let pages = u16::try_from(MOST / 4096).unwrap_or(u16::MAX);
    body.extend_from_slice(&pages.to_ne_bytes());
    body.resize(64, 0);
    body
}

/// The answer to `Attributes`: a regular file of this size and owner.
pub(super) fn attributes(size: u64, user: u32, group: u32) -> Vec<u8> {
    let mut body = Vec::new();
    // How long this is valid, then inode, size, blocks and three times.
    for number in [VALID, 0, 1, size, size / 512, 0, 0, 0] {
        body.extend_from_slice(&number.to_ne_bytes());
    }
    // The times' nanoseconds, mode, links, owner, device, block size, flags.
    for number in [0, 0, 0, FILE_MODE, 1, user, group, 0, 4096, 0] {
        body.extend_from_slice(&number.to_ne_bytes());
    }
    body
}

/// The answer to `Open`.
pub(super) fn opened() -> Vec<u8> {
    let mut body = 0_u64.to_ne_bytes().to_vec();
    body.extend_from_slice(&OPEN_FLAGS.to_ne_bytes());
    body.resize(16, 0);
    body
}

/// The answer to `Write`.
pub(super) fn written(length: usize) -> Vec<u8> {
    let mut body = u32::try_from(length).unwrap_or(u32::MAX).to_ne_bytes().to_vec();
    body.resize(8, 0);
    body
}

/// What to say when the file is mounted: the open `/dev/fuse`, and who owns the file.
pub(super) fn mount_options(device: i32, user: u32, group: u32) -> String {
    format!(
        "fd={device},rootmode={FILE_MODE:o},user_id={user},group_id={group},allow_other,default_permissions,\
         max_read={MOST}"
    )
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|bytes| u32::from_ne_bytes(*bytes))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    bytes.get(at..)?.first_chunk().map(|bytes| u64::from_ne_bytes(*bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(opcode: u32, body: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0; IN_HEADER];
        bytes[4..8].copy_from_slice(&opcode.to_ne_bytes());
        bytes[8..16].copy_from_slice(&99_u64.to_ne_bytes());
        bytes.extend_from_slice(body);
        bytes
    }

    #[test]
    fn a_write_names_its_data() {
        let mut body = vec![0; 40];
        body[8..16].copy_from_slice(&512_u64.to_ne_bytes());
        body[16..20].copy_from_slice(&3_u32.to_ne_bytes());
        body.extend_from_slice(b"abc");
        let bytes = request(16, &body);
        let Some((99, Request::Write { offset: 512, data })) = parse(&bytes) else { panic!("no write") };
        assert_eq!(&bytes[data], b"abc");
        assert_eq!(parse(&bytes[..bytes.len() - 1]), None, "its data are not all there");
    }

    #[test]
    fn what_is_too_short_is_nothing() {
        for opcode in [15, 16, 26, 43] {
            assert_eq!(parse(&request(opcode, &[0; 4])), None, "{opcode}");
        }
        assert_eq!(parse(&[0; 10]), None);
        assert_eq!(parse(&request(1, &[])), Some((99, Request::Unknown)));
    }

    #[test]
    fn replies_are_as_long_as_they_say_and_as_the_kernel_wants_them() {
        assert_eq!(
            (init(0).len(), attributes(1, 0, 0).len(), opened().len(), written(1).len()),
            (64, 104, 16, 8)
        );
        let bytes = error(7, 5);
        assert_eq!(bytes.len(), 16);
        assert_eq!(u32_at(&bytes, 0), Some(16));
        assert_eq!(bytes[4..8], (-5_i32).to_ne_bytes());
        assert_eq!(u64_at(&good(8, b"x"), 8), Some(8));
    }
}
