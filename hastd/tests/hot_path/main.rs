//! What a request costs in memory once a pair has warmed up: allocations, and copies of what it carries.
//!
//! Both workers run in this process, each with all of its threads, over a real channel, real sockets and files. The
//! allocator counts what they take; the client, which is the test, takes nothing while it measures. Copies are
//! counted where compiled code makes them: in `memcpy` and `memmove`, which this program defines itself.
//!
//! There is one test, because the counts are of the whole process.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod copies;
mod pair;

use std::io::{Read, Write};

use hast_fuzz::allocation;

use pair::{EXTENT, Pair};

/// Requests that are measured of each kind.
const ROUNDS: usize = 512;
/// Extents that the requests go to: fewer than stay in the map.
const EXTENTS: u64 = 16;

/// What the client asks for.
#[derive(Clone, Copy, Debug)]
enum Kind {
    Read,
    Write,
    Flush,
}

/// What one request has cost on average.
#[derive(Clone, Copy, Debug)]
struct Cost {
    allocations: f64,
    bytes: f64,
    /// Allocations that a payload would fit into.
    large: f64,
    /// Bytes of the copies that are longer than any header.
    copied: f64,
}

/// What it may cost.
struct Bound {
    kind: Kind,
    length: usize,
    depth: usize,
    /// Allocations of both workers for one request. One that is made for each request would be 1.
    allocations: f64,
    /// How often its payload may be copied, on both nodes together.
    copies: f64,
}

/// One at a time allocates nothing at all; what is allowed is what happens once in a while, like a flush of the
/// housekeeping. With many under way the nodes of search trees come and go, a few for each request; none is of a
/// payload's size. A small payload is copied when it is received, once on each node, because one read brings many;
/// of a large one this concerns at most what comes along with a header, now and then.
const BOUNDS: [Bound; 8] = [
    Bound { kind: Kind::Write, length: 4096, depth: 1, allocations: 0.25, copies: 2.01 },
    Bound { kind: Kind::Write, length: 4096, depth: 32, allocations: 3.0, copies: 2.01 },
    Bound { kind: Kind::Write, length: 131_072, depth: 1, allocations: 0.25, copies: 0.01 },
    Bound { kind: Kind::Write, length: 131_072, depth: 16, allocations: 3.0, copies: 0.01 },
    Bound { kind: Kind::Read, length: 4096, depth: 1, allocations: 0.25, copies: 0.01 },
    Bound { kind: Kind::Read, length: 4096, depth: 32, allocations: 1.5, copies: 0.01 },
    Bound { kind: Kind::Read, length: 131_072, depth: 16, allocations: 1.5, copies: 0.01 },
    Bound { kind: Kind::Flush, length: 0, depth: 1, allocations: 0.25, copies: 0.0 },
];

#[test]
fn a_request_allocates_nothing_and_copies_no_payload() {
    let mut pair = Pair::start();
    let mut dear = Vec::new();
    println!("{:<24} {:>11} {:>9} {:>7} {:>9}", "", "allocations", "bytes", "large", "copied");
    for Bound { kind, length, depth, allocations, copies } in BOUNDS {
        let mut client = Client::new(kind, length, depth);
        client.run(&mut pair.client, ROUNDS);
        let cost = client.measure(&mut pair.client);
        let name = format!("{kind:?} {length} at {depth}");
        println!(
            "{name:<24} {:>11.3} {:>9.1} {:>7.3} {:>9.1}",
            cost.allocations, cost.bytes, cost.large, cost.copied
        );
        let copied = copies * length as f64;
        if cost.allocations > allocations || cost.large > 0.1 || cost.copied > copied {
            dear.push(name);
        }
    }
    pair.stop();
    assert!(dear.is_empty(), "too dear: {dear:?}");
}

/// Requests of one kind, as bytes: `depth` of them are sent at once, and all answers awaited.
struct Client {
    kind: Kind,
    length: usize,
    depth: usize,
    requests: Vec<u8>,
    answers: Vec<u8>,
    next: u64,
}

impl Client {
    fn new(kind: Kind, length: usize, depth: usize) -> Client {
        let sent = if matches!(kind, Kind::Write) { length } else { 0 };
        let received = if matches!(kind, Kind::Read) { length } else { 0 };
        let requests = vec![0x5a; depth * (pair::REQUEST + sent)];
        let answers = vec![0; depth * (pair::REPLY + received)];
        Client { kind, length, depth, requests, answers, next: 0 }
    }

    fn run(&mut self, socket: &mut (impl Read + Write), requests: usize) {
        for _ in 0..requests / self.depth {
            let stride = self.requests.len() / self.depth;
            for at in 0..self.depth {
                self.next += 1;
                let command = match self.kind {
                    Kind::Read => 0_u32,
                    Kind::Write => 1,
                    Kind::Flush => 3,
                };
                let places = u64::from(EXTENT) / self.length.max(1) as u64;
                let place = self.next % EXTENTS * u64::from(EXTENT)
                    + self.next / EXTENTS % places.max(1) * self.length as u64;
                let offset = if self.length == 0 { 0 } else { place };
                let header = &mut self.requests[at * stride..][..pair::REQUEST];
                header[..4].copy_from_slice(&0x2560_9513_u32.to_be_bytes());
                header[4..8].copy_from_slice(&command.to_be_bytes());
                header[8..16].copy_from_slice(&self.next.to_be_bytes());
                header[16..24].copy_from_slice(&offset.to_be_bytes());
                header[24..28].copy_from_slice(&u32::try_from(self.length).unwrap().to_be_bytes());
            }
            socket.write_all(&self.requests).unwrap();
            socket.read_exact(&mut self.answers).unwrap();
            let stride = self.answers.len() / self.depth;
            for at in 0..self.depth {
                let header = &self.answers[at * stride..][..8];
                assert_eq!(header, [0x67, 0x44, 0x66, 0x98, 0, 0, 0, 0], "no good answer");
            }
        }
    }

    fn measure(&mut self, socket: &mut (impl Read + Write)) -> Cost {
        let before = allocation::total();
        let copied = copies::bytes();
        self.run(socket, ROUNDS);
        let copied = copies::bytes() - copied;
        let after = allocation::total();
        let each = |after: u64, before: u64| (after - before) as f64 / ROUNDS as f64;
        Cost {
            allocations: each(after.allocations, before.allocations),
            bytes: each(after.bytes, before.bytes),
            large: each(after.large, before.large),
            copied: each(copied, 0),
        }
    }
}
