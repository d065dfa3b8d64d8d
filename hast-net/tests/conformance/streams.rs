//! One direction of one connection: cut into frames, typed, written again, compared.

use crate::vectors::masked;
use hast_format::nv::{List, Writer};
use hast_net::buffer::{Buffer, Pool};
use hast_net::frame::{self, Frame, FrameError, Limits, Receiver};
use hast_net::handshake::{FirstReply, Hello, SecondReply};
use hast_net::message::{self, FromPrimary, Message, Reply, Request};
use hast_net::payload::{self, Checksum, Compression, Stages};

/// The longest payload after decoding that the captures have reason to hold.
pub(crate) const DECODED: u32 = 1 << 20;

/// A frame as what it means.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Typed {
    Hello(Hello),
    FirstReply(FirstReply),
    SecondReply(SecondReply, Option<Buffer>),
    FromPrimary(FromPrimary),
    Reply(Reply),
}

/// Every frame in `bytes` as sent, read in pieces of at most `piece` bytes, and what ended the stream early.
pub(crate) fn cut(bytes: &[u8], piece: usize) -> (Vec<Frame>, Result<bool, FrameError>) {
    let mut receiver = Receiver::new(Limits::PEER, Pool::new());
    let mut frames = Vec::new();
    let mut rest = bytes;
    while !rest.is_empty() {
        let space = receiver.space();
        let n = piece.min(space.len()).min(rest.len());
        space[..n].copy_from_slice(&rest[..n]);
        rest = &rest[n..];
        let outcome = receiver.advance(n);
        frames.extend(std::iter::from_fn(|| receiver.next_frame()));
        if let Err(error) = outcome {
            return (frames, Err(error));
        }
    }
    (frames, Ok(receiver.is_idle()))
}

/// Decodes a frame's payload and says what the frame means, going by its pairs alone.
pub(crate) fn decode(mut frame: Frame) -> Result<Typed, String> {
    payload::decode(&mut frame, DECODED, &Pool::new()).map_err(|error| error.to_string())?;
    let list = List::parse(&frame.nv).map_err(|error| error.to_string())?;
    if list.contains("resource") || list.contains("version") && !list.contains("token") {
        return Hello::decode(&list).map(Typed::Hello).map_err(|error| error.to_string());
    }
    if list.contains("token") || list.contains("errmsg") && !list.contains("datasize") {
        return FirstReply::decode(&list).map(Typed::FirstReply).map_err(|error| error.to_string());
    }
    if list.contains("datasize") {
        let reply = SecondReply::decode(&list).map_err(|error| error.to_string())?;
        let map = match &reply {
            SecondReply::Answer(answer) => answer.map(frame.payload).map_err(|error| error.to_string())?,
            SecondReply::Refused(_) => None,
        };
        return Ok(Typed::SecondReply(reply, map));
    }
    if list.contains("cmd") || list.contains("offset") {
        return FromPrimary::decode(frame).map(Typed::FromPrimary).map_err(|error| error.to_string());
    }
    Reply::decode(frame).map(Typed::Reply).map_err(|error| error.to_string())
}

/// What the frame's pairs say was done to its payload.
pub(crate) fn applied(list: &List<'_>) -> Stages {
    Stages {
        compression: list
            .str("compression")
            .map_or(Compression::None, |name| Compression::parse(name).unwrap()),
        checksum: list.str("checksum").map_or(Checksum::None, |name| Checksum::parse(name).unwrap()),
    }
}

/// The compression that the sender of these frames was configured with, as far as they show it.
pub(crate) fn configured(frames: &[Frame]) -> Compression {
    let used: Vec<Compression> =
        frames.iter().map(|frame| applied(&frame.list().unwrap()).compression).collect();
    [Compression::Lzf, Compression::Hole].into_iter().find(|c| used.contains(c)).unwrap_or(Compression::None)
}

/// That writing `typed` again gives the captured frame. LZF may be packed differently: then the pairs other
/// than the hash and the size must be the same, and what we packed must decode to the same.
pub(crate) fn check_written_again(captured: &Frame, typed: &Typed, compression: Compression, what: &str) {
    let list = captured.list().unwrap();
    let stages = Stages { compression, ..applied(&list) };
    let (header, sent) = write(typed, captured.version, stages);
    let expected = frame::encode(captured.version, &masked(&captured.nv)).unwrap();
    if applied(&list).compression != Compression::Lzf {
        assert_eq!(header, expected, "{what}");
        assert_eq!(sent, captured.payload, "{what}");
        return;
    }
    let ours = List::parse(&header[5..]).unwrap();
    let kept = |list: &List<'_>| -> Vec<Vec<u8>> {
        let pairs = list.pairs().filter(|pair| pair.name != b"hash" && pair.name != b"size");
        pairs.map(|pair| [pair.name, &[pair.kind.code()], pair.data].concat()).collect()
    };
    let order = |list: &List<'_>| -> Vec<Vec<u8>> { list.pairs().map(|pair| pair.name.to_vec()).collect() };
    assert_eq!(kept(&ours), kept(&list), "{what}");
    assert_eq!(order(&ours), order(&list), "{what}");
    let frame = Frame { version: captured.version, nv: header[5..].to_vec().into(), payload: sent };
    assert_eq!(&decode(frame).unwrap(), typed, "{what}");
}

/// A typed frame on its way out.
fn write(typed: &Typed, version: u8, stages: Stages) -> (Vec<u8>, Option<Buffer>) {
    let message = match typed.clone() {
        Typed::Hello(Hello::First(hello)) => Message::FirstHello(hello),
        Typed::Hello(Hello::Second(hello)) => Message::SecondHello(hello),
        Typed::FirstReply(reply) => {
            let nv: Writer = match reply {
                FirstReply::Answer(answer) => answer.encode(),
                FirstReply::Refused(refusal) => refusal.encode(),
            };
            return (frame::encode(version, nv.as_bytes()).unwrap(), None);
        }
        Typed::SecondReply(SecondReply::Answer(answer), map) => Message::SecondAnswer(answer, map),
        Typed::FromPrimary(FromPrimary::Keepalive) => Message::Keepalive,
        Typed::FromPrimary(FromPrimary::Request(request)) => Message::Request(request),
        Typed::Reply(reply) => Message::Reply(reply),
        other => panic!("nothing of ours writes {other:?}"),
    };
    message::to_wire(&message, version, stages).unwrap()
}

/// The request in a frame, if it is one.
pub(crate) fn request(typed: &Typed) -> Option<&Request> {
    match typed {
        Typed::FromPrimary(FromPrimary::Request(request)) => Some(request),
        _ => None,
    }
}
