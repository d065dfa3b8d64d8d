//! Two FreeBSD machines at work, as seen on the network between them.

use crate::pcap;
use crate::streams::{Typed, applied, check_written_again, configured, cut, decode, request};
use crate::vectors::{directory, read};
use hast_net::frame::Frame;
use hast_net::handshake::{FirstReply, Hello, SecondReply};
use hast_net::message::Command;
use hast_net::payload::{Checksum, Compression};

/// The frames of one flow, and what they mean.
struct Stream {
    frames: Vec<Frame>,
    typed: Vec<Typed>,
}

/// Out and in, each as what the primary sent and what it got.
fn pair(name: &str) -> [[Stream; 2]; 2] {
    let flows = pcap::streams(&read(&directory("freebsd/pair"), name));
    let mut streams = flows.into_iter().map(|(flow, bytes)| {
        let (frames, end) = cut(&bytes, usize::MAX);
        assert_eq!(end, Ok(true), "{name} {flow:?}");
        assert_eq!(cut(&bytes, 1448), (frames.clone(), Ok(true)), "{name} {flow:?}");
        let typed: Vec<Typed> = frames
            .iter()
            .map(|frame| decode(frame.clone()).unwrap_or_else(|e| panic!("{name}: {e}")))
            .collect();
        (flow, Stream { frames, typed })
    });
    let mut connection = || {
        let (sent, first) = streams.next().unwrap();
        let (received, second) = streams.next().unwrap();
        assert_eq!((sent.source.0, sent.destination.1), ([10, 9, 0, 1], 8457));
        assert_eq!((received.source, received.destination), (sent.destination, sent.source));
        [first, second]
    };
    let pair = [connection(), connection()];
    assert!(streams.next().is_none());
    pair
}

/// Everything in a capture is read, is in the right place, and is written again as it was.
fn check(name: &str, memsync: bool, compression: Compression, checksum: Checksum, writes: usize) {
    let [[out_sent, out_got], [in_sent, in_got]] = pair(name);
    for stream in [&out_sent, &out_got, &in_sent, &in_got] {
        for (index, (frame, typed)) in stream.frames.iter().zip(&stream.typed).enumerate() {
            check_written_again(frame, typed, compression, &format!("{name} frame {index}"));
        }
    }
    assert!(matches!(out_sent.typed[0], Typed::Hello(Hello::First(_))));
    assert!(matches!(&in_sent.typed[..], [Typed::Hello(Hello::Second(_))]));
    assert!(matches!(
        &out_got.typed[..],
        [Typed::FirstReply(FirstReply::Answer(_)), Typed::SecondReply(SecondReply::Answer(_), None)]
    ));
    assert_eq!(configured(&out_sent.frames), compression);
    let with_data = out_sent.frames.iter().filter(|frame| frame.payload.is_some());
    assert!(with_data.map(|frame| applied(&frame.list().unwrap())).all(|stages| stages.checksum == checksum));
    let requests: Vec<_> = out_sent.typed.iter().filter_map(request).collect();
    let written = requests.iter().filter(|request| request.command == Command::Write);
    assert_eq!(written.clone().count(), writes);
    assert!(written.clone().all(|request| request.memsync == memsync));
    let mut answered = 0;
    for typed in &in_got.typed {
        let Typed::Reply(reply) = typed else { panic!("{typed:?}") };
        assert_eq!(reply.error, None);
        assert!(requests.iter().any(|request| request.seq == reply.seq));
        answered += usize::from(!reply.received);
    }
    let received = in_got.typed.len() - answered;
    assert_eq!(answered, requests.len());
    assert_eq!(received, if memsync { writes } else { 0 });
}

// The numbers of writes are those that `hastctl list` printed on the primary.

#[test]
fn fullsync_with_crc32_and_lzf() {
    check("fullsync-crc32-lzf.pcap", false, Compression::Lzf, Checksum::Crc32, 62);
}

#[test]
fn memsync_with_holes() {
    check("memsync-none-hole.pcap", true, Compression::Hole, Checksum::None, 62);
}
