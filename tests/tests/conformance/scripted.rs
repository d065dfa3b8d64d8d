//! A scripted original in node b's place: it takes a primary's handshake and answers its requests.

use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use hast_format::nv::Writer;
use hast_tests::peer::{Packet, Stand, Wire};
use hast_tests::{Context, Failure, Outcome, Pair, SHORT, wait_until};

use crate::captures;
use crate::session::DATASIZE;

/// A primary that has connected.
pub(crate) struct Primary {
    pub(crate) out: Wire,
    pub(crate) inward: Wire,
    pub(crate) first: Packet,
    pub(crate) second: Packet,
}

/// The original's answer to a first header.
pub(crate) fn first_answer() -> Result<Packet, Failure> {
    Ok(captures::packets("wire-handshake-virgin.c0.s2p")?.swap_remove(0))
}

/// The original's answer to a second header when both nodes are virgin.
pub(crate) fn virgin_answer() -> Result<Packet, Failure> {
    Ok(captures::packets("wire-handshake-virgin.c0.s2p")?.swap_remove(1))
}

/// An answer to a second header with these counts, source and map.
pub(crate) fn answer(localcnt: u64, remotecnt: u64, syncsrc: u8, map: &[u8; 512]) -> Packet {
    let mut nv = Writer::new();
    nv.i64("datasize", i64::try_from(DATASIZE).unwrap()).i32("extentsize", 2 << 20);
    nv.u64("localcnt", localcnt).u64("remotecnt", remotecnt).u8("syncsrc", syncsrc).u32("mapsize", 512);
    Packet::with_payload(2, &mut nv, map)
}

/// A refusal of a first header.
pub(crate) fn refusal(errmsg: &str, wait: bool) -> Packet {
    let mut nv = Writer::new();
    nv.str("errmsg", errmsg);
    if wait {
        nv.u8("wait", 1);
    }
    Packet::new(2, &nv)
}

impl Primary {
    /// Takes a primary's handshake and gives this second answer.
    pub(crate) fn accept(stand: &Stand, second_answer: &Packet) -> Result<Primary, Failure> {
        let first_answer = first_answer()?;
        let mut out = stand.accept()?;
        let first = out.receive().context("the first header")?;
        out.send(&first_answer)?;
        let inward = stand.accept()?;
        let mut primary = Primary { out, inward, first, second: Packet::new(2, &Writer::new()) };
        primary.second = primary.inward.receive().context("the second header")?;
        let given = first_answer.list().u8_array("token").map(<[u8]>::to_vec);
        assert_eq!(
            primary.second.list().u8_array("token").map(<[u8]>::to_vec),
            given,
            "the token comes back"
        );
        primary.out.send(second_answer)?;
        Ok(primary)
    }

    /// Serves the primary in the background until it goes away.
    pub(crate) fn serve(self, secondary: &Arc<Secondary>) -> JoinHandle<Outcome> {
        let secondary = Arc::clone(secondary);
        let (mut out, mut inward) = (self.out, self.inward);
        std::thread::spawn(move || {
            while let Ok(request) = out.receive() {
                for reply in secondary.reply(request)? {
                    inward.send(&reply)?;
                }
            }
            Ok(())
        })
    }
}

/// What a scripted secondary has and has seen.
pub(crate) struct Secondary {
    state: Mutex<State>,
}

struct State {
    disk: Vec<u8>,
    seen: Vec<Packet>,
    faults: Faults,
}

/// How a scripted secondary misbehaves.
#[derive(Clone, Copy, Default)]
pub(crate) struct Faults {
    /// Writes fail with EIO.
    pub(crate) writes: bool,
    /// Flushes are not supported.
    pub(crate) flushes: bool,
}

impl Secondary {
    /// An obedient one with this disk.
    pub(crate) fn new(disk: Vec<u8>) -> Arc<Secondary> {
        let state = State { disk, seen: Vec::new(), faults: Faults::default() };
        Arc::new(Secondary { state: Mutex::new(state) })
    }

    /// One with an empty disk of the captures' size.
    pub(crate) fn empty() -> Arc<Secondary> {
        Secondary::new(vec![0; usize::try_from(DATASIZE).unwrap()])
    }

    pub(crate) fn set_faults(&self, faults: Faults) {
        self.state.lock().unwrap().faults = faults;
    }

    pub(crate) fn disk(&self) -> Vec<u8> {
        self.state.lock().unwrap().disk.clone()
    }

    /// The requests seen since the last call, keepalives aside.
    pub(crate) fn take_seen(&self) -> Vec<Packet> {
        std::mem::take(&mut self.state.lock().unwrap().seen)
    }

    /// Waits until the disk holds what `node a`'s provider holds.
    pub(crate) fn wait_same(&self, pair: &Pair) -> Outcome {
        wait_until("the secondary to have the primary's data", SHORT, || {
            Ok(hast_tests::disk::data(&pair.a.provider("disk0"))? == self.disk())
        })
    }

    /// Carries a request out and gives the original's replies to it.
    fn reply(&self, request: Packet) -> Result<Vec<Packet>, Failure> {
        let mut state = self.state.lock().unwrap();
        let list = request.list();
        let command = list.u8("cmd");
        if command == Some(5) {
            return Ok(Vec::new());
        }
        let seq = list.u64("seq").context("a request without seq")?;
        let at = usize::try_from(list.u64("offset").unwrap_or(0))?;
        let length = usize::try_from(list.u64("length").unwrap_or(0))?;
        let faults = state.faults;
        let version = request.version;
        let reply = |fill: &dyn Fn(&mut Writer)| {
            let mut nv = Writer::new();
            nv.u64("seq", seq);
            fill(&mut nv);
            Packet::new(version, &nv)
        };
        let mut replies = Vec::new();
        match command {
            Some(1) => {
                let mut nv = Writer::new();
                nv.u64("seq", seq);
                replies.push(Packet::with_payload(version, &mut nv, &state.disk[at..at + length]));
            }
            Some(2) => {
                if list.contains("memsync") {
                    replies.push(reply(&|nv| {
                        nv.i8("received", 1);
                    }));
                }
                if faults.writes {
                    replies.push(reply(&|nv| {
                        nv.i16("error", 5);
                    }));
                } else {
                    let data = request.decoded()?;
                    assert_eq!(data.len(), length);
                    state.disk[at..at + length].copy_from_slice(&data);
                    replies.push(reply(&|_| {}));
                }
            }
            Some(3) => {
                state.disk[at..at + length].fill(0);
                replies.push(reply(&|_| {}));
            }
            Some(4) if faults.flushes => replies.push(reply(&|nv| {
                nv.i16("error", 45);
            })),
            Some(4) => replies.push(reply(&|_| {})),
            other => return Failure::because(format!("a primary sent cmd {other:?}")),
        }
        state.seen.push(request);
        Ok(replies)
    }
}
