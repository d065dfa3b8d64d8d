//! What the micro-benchmarks (`cargo xtask bench micro`) work on: the messages, payloads and maps that a pair under
//! load has in hand.
#![warn(missing_docs)]

use hast_format::activemap::Activemap;
use hast_net::buffer::{Buffer, Pool};
use hast_net::errno::Errno;
use hast_net::message::{Command, Message, Reply, Request};

/// Bytes of a small request.
pub const SMALL: usize = 4 << 10;
/// Bytes of the longest request.
pub const LARGE: usize = 128 << 10;
/// Extents of a provider of 10 TiB with extents of 2 MiB.
pub const EXTENTS: u32 = 5 << 20;
/// Extents that stay in the map because they were written lately, as `hastctl create` chooses it.
const KEEPDIRTY: u32 = 64;
const SECTOR: u32 = 512;

/// What lies in a payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Contents {
    /// Zeros: a hole.
    Zeros,
    /// Zeros but for the last byte: all of it has to be looked at, in vain.
    AlmostZeros,
    /// Words that repeat, as in text.
    Text,
    /// What no compression makes shorter.
    Noise,
}

/// A payload of `length` bytes.
#[must_use]
pub fn payload(contents: Contents, length: usize) -> Buffer {
    let mut buffer = Pool::new().take(length);
    let mut seed = 1_u64;
    let mut chance = || {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        seed.to_be_bytes()[0]
    };
    let words = ["primary ", "secondary ", "extent ", "activemap ", "provider ", "resource ", "a ", "the\n"];
    match contents {
        Contents::Zeros => buffer.fill(0),
        Contents::AlmostZeros => {
            buffer.fill(0);
            if let Some(last) = buffer.last_mut() {
                *last = 1;
            }
        }
        Contents::Text => {
            let mut text = std::iter::repeat_with(|| words.get(usize::from(chance()) % words.len()))
                .flatten()
                .flat_map(|word| word.bytes());
            buffer.fill_with(|| text.next().unwrap_or_default());
        }
        Contents::Noise => buffer.fill_with(chance),
    }
    buffer.freeze()
}

/// A write as a primary sends it.
#[must_use]
pub fn write(data: Buffer) -> Message {
    let length = data.len() as u64;
    let (command, seq, offset) = (Command::Write, 123_456, 40 << 30);
    Message::Request(Request { command, seq, offset, length, memsync: true, data: Some(data) })
}

/// Its answer.
#[must_use]
pub fn reply(error: Option<Errno>) -> Message {
    Message::Reply(Reply { seq: 123_456, received: false, error, data: None })
}

/// The map of a provider of 10 TiB, in which nothing differs.
#[must_use]
pub fn activemap() -> Activemap {
    Activemap::new(EXTENTS, KEEPDIRTY, SECTOR, &[])
}

/// Extents all over the provider, in an order that repeats late.
pub fn scattered() -> impl Iterator<Item = u32> {
    (0_u32..).map(|number| number.wrapping_mul(2_654_435_761) % EXTENTS)
}
