//! A hand-made primary's session with our secondary, and the daemon under it.

use hast_format::metadata::Metadata;
use hast_format::nv::Writer;
use hast_tests::peer::{Packet, Wire};
use hast_tests::{Context, Failure, Outcome, Pair, Resource, SHORT, Setup, disk, wait_until};

/// The resource of the captures.
pub(crate) const DISK: &str = "disk0";
/// The provider of the captures: 4 MiB with 2 MiB extents.
pub(crate) const DATASIZE: u64 = 4_189_696;

/// The pair as it was captured, nothing running. The first resource is `disk0` with these statements.
pub(crate) fn captured_pair(statements: &str) -> Result<Pair, Failure> {
    let setup = Setup {
        provider: 4 << 20,
        extent: 2 << 20,
        resources: vec![Resource::with(DISK, statements)],
        ..Setup::default()
    };
    let pair = Pair::blank(setup)?;
    pair.create()?;
    Ok(pair)
}

/// The same with node b running as secondary.
pub(crate) fn secondary(statements: &str) -> Result<Pair, Failure> {
    let mut pair = captured_pair(statements)?;
    pair.b.start()?;
    pair.b.role("secondary", DISK)?;
    Ok(pair)
}

/// Both connections of a primary, and what the secondary answered to the second header.
pub(crate) struct Session {
    pub(crate) out: Wire,
    pub(crate) inward: Wire,
    pub(crate) answer: Packet,
}

/// What a primary says of itself in the second header.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Counts {
    pub(crate) virgin: bool,
    pub(crate) resuid: u64,
    pub(crate) localcnt: u64,
    pub(crate) remotecnt: u64,
}

/// A primary that has drawn its resuid long ago and is in step with a fresh secondary.
pub(crate) const PLAIN: Counts = Counts { virgin: false, resuid: 4711, localcnt: 0, remotecnt: 0 };

/// The first header.
pub(crate) fn first_header(resource: &str) -> Packet {
    let mut nv = Writer::new();
    nv.str("resource", resource).u8("version", 2);
    Packet::new(1, &nv)
}

/// The second header.
pub(crate) fn second_header(resource: &str, token: &[u8], counts: Counts) -> Packet {
    let mut nv = Writer::new();
    nv.str("resource", resource).u8_array("token", token);
    if counts.virgin {
        nv.i8("virgin", 1);
    }
    nv.u64("resuid", counts.resuid).u64("localcnt", counts.localcnt).u64("remotecnt", counts.remotecnt);
    Packet::new(2, &nv)
}

/// The token in an answer to a first header.
pub(crate) fn token(answer: &Packet) -> Result<Vec<u8>, Failure> {
    let token = answer.list().u8_array("token").context(format!("no token in {:?}", answer.fields()))?;
    assert_eq!(token.len(), 16);
    Ok(token.to_vec())
}

impl Session {
    /// Both steps of the handshake, whatever the second answer is.
    pub(crate) fn attempt(pair: &Pair, counts: Counts) -> Result<Session, Failure> {
        let mut out = Wire::connect(pair.link.toward_b().hast())?;
        out.send(&first_header(DISK))?;
        let token = token(&out.receive().context("the first answer")?)?;
        let mut inward = Wire::connect(pair.link.toward_b().hast())?;
        inward.send(&second_header(DISK, &token, counts))?;
        let answer = out.receive().context("the second answer")?;
        Ok(Session { out, inward, answer })
    }

    /// A handshake that succeeds.
    pub(crate) fn open(pair: &Pair) -> Result<Session, Failure> {
        let session = Session::attempt(pair, PLAIN)?;
        match session.answer.list().str("errmsg") {
            None => Ok(session),
            Some(errmsg) => Failure::because(format!("refused: {errmsg}")),
        }
    }

    /// Sends a request and gives the one reply to it.
    pub(crate) fn ask(&mut self, request: &Packet) -> Result<Packet, Failure> {
        self.out.send(request)?;
        self.inward.receive()
    }

    /// Reads through the session and expects success.
    pub(crate) fn read(&mut self, offset: u64, length: u64) -> Result<Vec<u8>, Failure> {
        let reply = self.ask(&request(1, 9001, offset, length))?;
        let list = reply.list();
        assert_eq!(list.u64("seq"), Some(9001), "{:?}", reply.fields());
        assert_eq!(list.i16("error"), None);
        reply.decoded()
    }
}

/// A request without payload.
pub(crate) fn request(command: u8, seq: u64, offset: u64, length: u64) -> Packet {
    Packet::new(2, &request_list(command, seq, offset, length))
}

/// A write; `memsync` asks for the early answer.
pub(crate) fn write(seq: u64, offset: u64, data: &[u8], memsync: bool) -> Packet {
    let mut nv = request_list(2, seq, offset, data.len() as u64);
    if memsync {
        nv.u8("memsync", 1);
    }
    Packet::with_payload(2, &mut nv, data)
}

fn request_list(command: u8, seq: u64, offset: u64, length: u64) -> Writer {
    let mut nv = Writer::new();
    nv.u8("cmd", command).u64("seq", seq).u64("offset", offset).u64("length", length);
    nv
}

/// Waits until b has no worker for the captured resource.
pub(crate) fn wait_no_worker(pair: &Pair) -> Outcome {
    wait_until("the secondary's worker to be gone", SHORT, || Ok(pair.b.worker(DISK)?.is_none()))
}

/// Rewrites a provider's metadata; nobody may have it open.
pub(crate) fn change_metadata(path: &std::path::Path, change: impl FnOnce(&mut Metadata)) -> Outcome {
    use std::os::unix::fs::FileExt;
    let mut metadata = disk::metadata(path)?;
    change(&mut metadata);
    let file = std::fs::OpenOptions::new().write(true).open(path)?;
    file.write_all_at(&metadata.encode(), 0).context(path.display())
}

/// Writes the beginning of a provider's on-disk map.
pub(crate) fn change_map(path: &std::path::Path, map: &[u8]) -> Outcome {
    use std::os::unix::fs::FileExt;
    let file = std::fs::OpenOptions::new().write(true).open(path)?;
    file.write_all_at(map, 4096).context(path.display())
}
