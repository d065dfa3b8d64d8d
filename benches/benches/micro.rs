//! The steps of a request that cost time by themselves, each alone. `cargo xtask bench micro` runs them; what one
//! costs beside another, and beside copying the same bytes, is what matters.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::hint::black_box;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use hast_benches::{Contents, LARGE, SMALL, activemap, payload, reply, scattered, write};
use hast_format::activemap::Outcome;
use hast_format::nv::{List, Writer};
use hast_net::buffer::Pool;
use hast_net::extensions::Extensions;
use hast_net::frame::{Frame, Limits, Receiver};
use hast_net::lzf;
use hast_net::message::{FromPrimary, FromSecondary, Message, to_wire};
use hast_net::payload::{self as stages, Checksum, Compression, Stages};

criterion_group!(all, nv, frames, payloads, compression, map);
criterion_main!(all);

/// A payload of 4 KiB and one of 128 KiB.
const LENGTHS: [(&str, usize); 2] = [("4k", SMALL), ("128k", LARGE)];

fn received(message: &Message) -> Frame {
    let (nv, payload) = message.encode();
    Frame { version: 2, nv: nv.into_bytes().into(), payload }
}

/// Name-value lists, and what they say as messages.
fn nv(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("nv");
    let message = write(payload(Contents::Noise, SMALL));
    group.bench_function("encode write", |bencher| bencher.iter(|| black_box(&message).encode()));
    let answer = reply(None);
    group.bench_function("encode reply", |bencher| bencher.iter(|| black_box(&answer).encode()));
    let request = received(&message);
    group.bench_function("parse write", |bencher| {
        bencher.iter(|| List::parse(black_box(&request.nv)).unwrap().u64("length"));
    });
    group.bench_function("decode write", |bencher| {
        bencher.iter_batched(
            || request.clone(),
            |frame| FromPrimary::decode_extended(frame, Extensions::ALL).unwrap(),
            BatchSize::SmallInput,
        );
    });
    let answer = received(&answer);
    group.bench_function("decode reply", |bencher| {
        bencher.iter_batched(
            || answer.clone(),
            |frame| FromSecondary::decode_extended(frame, Extensions::ALL).unwrap(),
            BatchSize::SmallInput,
        );
    });
    group.finish();
}

/// Frames as they go out and come in, without compression and checksum.
fn frames(criterion: &mut Criterion) {
    let plain = Stages { compression: Compression::None, checksum: Checksum::None };
    let mut group = criterion.benchmark_group("frame");
    for (name, length) in LENGTHS {
        let message = write(payload(Contents::Noise, length));
        group.throughput(Throughput::Elements(1));
        group.bench_function(format!("build write {name}"), |bencher| {
            bencher.iter(|| to_wire(black_box(&message), 2, plain).unwrap());
        });
        let (mut bytes, data) = to_wire(&message, 2, plain).unwrap();
        bytes.extend_from_slice(&data.unwrap());
        let mut receiver = Receiver::new(Limits::PEER, Pool::new());
        group.bench_function(format!("receive write {name}"), |bencher| {
            bencher.iter(|| receive(&mut receiver, black_box(&bytes)));
        });
    }
    let answer = reply(None);
    group.bench_function("build reply", |bencher| {
        bencher.iter(|| to_wire(black_box(&answer), 2, plain).unwrap());
    });
    let (bytes, _) = to_wire(&answer, 2, plain).unwrap();
    let mut receiver = Receiver::new(Limits::PEER, Pool::new());
    group.bench_function("receive reply", |bencher| {
        bencher.iter(|| receive(&mut receiver, black_box(&bytes)));
    });
    group.finish();
}

/// Takes one frame in as from a socket that holds just that.
fn receive(receiver: &mut Receiver, mut bytes: &[u8]) -> Frame {
    loop {
        let space = receiver.space();
        let count = space.len().min(bytes.len());
        let (now, later) = bytes.split_at(count);
        space.iter_mut().zip(now).for_each(|(to, from)| *to = *from);
        bytes = later;
        receiver.advance(count).unwrap();
        if let Some(frame) = receiver.next_frame() {
            return frame;
        }
    }
}

/// Looking for zeros, and checksums, beside copying the same bytes.
fn payloads(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("payload");
    for (name, length) in LENGTHS {
        group.throughput(Throughput::Bytes(length as u64));
        let noise = payload(Contents::Noise, length);
        let mut copy = vec![0; length];
        group.bench_function(format!("copy {name}"), |bencher| {
            bencher.iter(|| copy.copy_from_slice(black_box(&noise)));
        });
        for (what, contents) in [
            ("zeros", Contents::Zeros),
            ("zeros but the last byte", Contents::AlmostZeros),
            ("noise", Contents::Noise),
        ] {
            let data = payload(contents, length);
            let hole = Stages { compression: Compression::Hole, checksum: Checksum::None };
            group.bench_function(format!("look for zeros in {what} {name}"), |bencher| {
                bencher.iter(|| stages::encode(&mut Writer::with_capacity(64), black_box(&data), hole));
            });
        }
        for checksum in [Checksum::Crc32, Checksum::Sha256] {
            let summed = Stages { compression: Compression::None, checksum };
            group.bench_function(format!("{checksum} {name}"), |bencher| {
                bencher.iter(|| stages::encode(&mut Writer::with_capacity(128), black_box(&noise), summed));
            });
        }
    }
    group.finish();
}

/// LZF, both ways.
fn compression(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("lzf");
    for (name, length) in LENGTHS {
        group.throughput(Throughput::Bytes(length as u64));
        for (what, contents) in [("text", Contents::Text), ("noise", Contents::Noise)] {
            let data = payload(contents, length);
            let mut output = Vec::with_capacity(length);
            group.bench_function(format!("compress {what} {name}"), |bencher| {
                bencher.iter(|| {
                    output.clear();
                    lzf::compress(black_box(&data), &mut output, length - 1)
                });
            });
        }
        let data = payload(Contents::Text, length);
        let mut stream = Vec::new();
        assert!(lzf::compress(&data, &mut stream, length));
        let mut output = vec![0; length];
        group.bench_function(format!("decompress text {name}"), |bencher| {
            bencher.iter(|| lzf::decompress(black_box(&stream), &mut output).unwrap());
        });
    }
    group.finish();
}

/// The map of a provider of 10 TiB.
fn map(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("activemap");
    let mut map = activemap();
    group.bench_function("write to a recent extent", |bencher| {
        bencher.iter(|| {
            let extents = black_box(7)..8;
            map.start(extents.clone());
            let durable = map.is_durable(extents.clone());
            map.finish(extents, Outcome::StoredOnBoth);
            durable
        });
    });
    let (mut map, mut extents) = (activemap(), scattered());
    group.bench_function("write to another extent each time", |bencher| {
        bencher.iter(|| {
            let extent = extents.next().unwrap();
            map.start(extent..extent + 1);
            let written = map.begin_write();
            map.end_write(true);
            map.finish(extent..extent + 1, Outcome::StoredOnBoth);
            written
        });
    });
    let (mut map, mut extents) = (activemap(), scattered());
    group.bench_function("flush after 256 extents", |bencher| {
        bencher.iter(|| {
            for extent in extents.by_ref().take(256) {
                map.start(extent..extent + 1);
                map.finish(extent..extent + 1, Outcome::StoredOnBoth);
            }
            map.flush_begins();
            map.flush_succeeded();
            let written = map.begin_write();
            map.end_write(true);
            written
        });
    });
    group.finish();
}
