//! What one more write costs while many are outstanding: `cargo run --release -p hast-engine --example outstanding`.
//!
//! A primary in mode async whose secondary answers the oldest write only when the next one has been made, and a
//! secondary whose disk does the same. The figures are microseconds for one write from its arrival to its end,
//! by how many others are under way.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use hast_engine::{
    Action, Deletes, DiskOp, Host, Op, OpId, Primary, PrimaryStart, RequestId, Secondary, SecondaryStart,
    Settings, Side,
};
use hast_format::bitmap::Bitmap;
use hast_format::extension::Extension;
use hast_format::layout::Layout;
use hast_format::metadata::{Metadata, Role};
use hast_net::Replication;
use hast_net::buffer::Buffer;
use hast_net::extensions::Extensions;
use hast_net::frame::Frame;
use hast_net::handshake::{FirstAnswer, SecondAnswer, SecondHello, SyncSource};
use hast_net::message::{Command, Message, Reply, Request};

const SIZE: u64 = 8 << 30;
const BLOCK: u64 = 4096;
const ROUNDS: u64 = 2000;

fn main() {
    println!("{:>12} {:>12} {:>12}", "outstanding", "primary", "secondary");
    for outstanding in [1, 256, 1024, 4096, 16384] {
        println!("{outstanding:>12} {:>9.2} us {:>9.2} us", primary(outstanding), secondary(outstanding));
    }
}

fn layout() -> Layout {
    Layout::create(SIZE, 4096, 2 << 20).unwrap()
}

fn metadata(prevrole: Role) -> Metadata {
    Metadata {
        resource: "r".into(),
        datasize: layout().datasize(),
        extentsize: layout().extentsize(),
        keepdirty: 64,
        localoff: layout().localoff(),
        resuid: 7,
        localcnt: 1,
        remotecnt: 1,
        prevrole,
        extension: Extension { peer_boot: [2; 16], ..Extension::default() },
    }
}

fn settings() -> Settings {
    Settings {
        replication: Replication::Async,
        timeout: Duration::from_secs(1000),
        peer_timeout: Duration::from_secs(1000),
        metaflush: true,
        remote: true,
        peer: "p".into(),
    }
}

fn map() -> Vec<u8> {
    vec![0; usize::try_from(layout().map_bytes()).unwrap()]
}

fn offset(number: u64) -> u64 {
    // All over the device, and none twice while it is under way.
    number.wrapping_mul(40_503) % (SIZE / BLOCK / 2) * BLOCK
}

fn frame(message: &Message) -> Frame {
    let (nv, payload) = message.encode();
    Frame { version: 2, nv: nv.as_bytes().to_vec().into(), payload }
}

/// The primary's disk does everything at once; what it sends is kept.
fn carry_out(engine: &mut Primary, sent: &mut VecDeque<u64>) {
    while let Some(action) = engine.poll_action() {
        match action {
            Action::Disk { id, .. } => engine.handle_disk(Duration::ZERO, id, Ok(None)),
            Action::Send { message: Message::Request(Request { seq, .. }), .. } => sent.push_back(seq),
            _ => {}
        }
        std::hint::black_box(engine.poll_timeout());
    }
}

fn primary(outstanding: u64) -> f64 {
    let host = Host { boot: [1; 16], wall: 0, deletes: Deletes::LeaveZeros };
    let (metadata, layout, map) = (metadata(Role::Primary), layout(), map());
    let start = PrimaryStart {
        settings: settings(),
        metadata,
        layout,
        map,
        random: 7,
        host,
        forced: false,
        detached: false,
    };
    let (mut engine, mut sent) = (Primary::new(start, Duration::ZERO), VecDeque::new());
    carry_out(&mut engine, &mut sent);
    engine.handle_connected(Duration::ZERO, Side::Out);
    carry_out(&mut engine, &mut sent);
    let answer = FirstAnswer { version: 2, token: [0; 16], ext: Extensions::ALL }.encode();
    let answer = Frame { version: 2, nv: answer.as_bytes().to_vec().into(), payload: None };
    engine.handle_frame(Duration::ZERO, Side::Out, answer);
    engine.handle_connected(Duration::ZERO, Side::In);
    carry_out(&mut engine, &mut sent);
    let answer = SecondAnswer {
        datasize: self::layout().datasize(),
        extentsize: self::layout().extentsize(),
        localcnt: 1,
        remotecnt: 1,
        virgin: false,
        syncsrc: SyncSource::Primary,
        mapsize: 0,
        boot: Some([2; 16]),
        peer_timeout: None,
        met: None,
        zero_deletes: false,
    };
    engine.handle_frame(Duration::ZERO, Side::Out, frame(&Message::SecondAnswer(answer, None)));
    carry_out(&mut engine, &mut sent);
    assert!(engine.status().complete);
    let data = Buffer::from(vec![1; 4096]);
    let write = |number: u64, engine: &mut Primary, sent: &mut VecDeque<u64>| {
        let op = Op::Write { offset: offset(number), data: data.clone() };
        engine.handle_request(Duration::ZERO, RequestId(number), op);
        carry_out(engine, sent);
    };
    for number in 0..outstanding {
        write(number, &mut engine, &mut sent);
    }
    let begun = Instant::now();
    for number in outstanding..outstanding + ROUNDS {
        write(number, &mut engine, &mut sent);
        let seq = sent.pop_front().unwrap();
        let reply = Reply { seq, received: false, error: None, data: None };
        engine.handle_frame(Duration::ZERO, Side::In, frame(&Message::Reply(reply)));
        carry_out(&mut engine, &mut sent);
    }
    begun.elapsed().as_secs_f64() * 1e6 / ROUNDS as f64
}

fn secondary(outstanding: u64) -> f64 {
    let hello = SecondHello {
        resource: "r".into(),
        token: [0; 16],
        virgin: false,
        resuid: 7,
        localcnt: 1,
        remotecnt: 1,
        boot: Some([2; 16]),
        parting: None,
        meeting: None,
    };
    let start = SecondaryStart {
        settings: settings(),
        metadata: metadata(Role::Secondary),
        layout: layout(),
        map: map(),
        version: 2,
        ext: Extensions::ALL,
        host: Host { boot: [1; 16], wall: 0, deletes: Deletes::LeaveZeros },
        hello,
        unsure: false,
        former: Bitmap::new(u32::try_from(layout().nextents()).unwrap()),
    };
    let mut engine = Secondary::new(start, Duration::ZERO);
    let mut ops: VecDeque<OpId> = VecDeque::new();
    let carry_out = |engine: &mut Secondary, ops: &mut VecDeque<OpId>| {
        while let Some(action) = engine.poll_action() {
            match action {
                Action::Disk { id, op: DiskOp::Write { offset, .. } } if offset >= layout().localoff() => {
                    ops.push_back(id);
                }
                Action::Disk { id, .. } => engine.handle_disk(Duration::ZERO, id, Ok(None)),
                _ => {}
            }
            std::hint::black_box(engine.poll_timeout());
        }
    };
    carry_out(&mut engine, &mut ops);
    let data = Buffer::from(vec![1; 4096]);
    let write = |number: u64, engine: &mut Secondary, ops: &mut VecDeque<OpId>| {
        let (command, seq, offset, length) = (Command::Write, number + 1, offset(number), BLOCK);
        let request = Request { command, seq, offset, length, memsync: false, data: Some(data.clone()) };
        engine.handle_frame(Duration::ZERO, frame(&Message::Request(request)));
        carry_out(engine, ops);
    };
    for number in 0..outstanding {
        write(number, &mut engine, &mut ops);
    }
    let begun = Instant::now();
    for number in outstanding..outstanding + ROUNDS {
        write(number, &mut engine, &mut ops);
        let id = ops.pop_front().unwrap();
        engine.handle_disk(Duration::ZERO, id, Ok(None));
        carry_out(&mut engine, &mut ops);
    }
    begun.elapsed().as_secs_f64() * 1e6 / ROUNDS as f64
}
