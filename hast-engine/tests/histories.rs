//! Single histories, driven by hand: each once lost an acknowledged write, read a stale byte, stalled or span.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use hast_engine::*;
use hast_format::{
    bitmap::Bitmap,
    extension::Extension,
    layout::Layout,
    metadata::{Metadata, Role},
};
use hast_net::message::*;
use hast_net::{
    Replication, buffer::Buffer, errno::Errno, extensions::Extensions, frame::Frame, handshake::*,
};
use std::time::Duration;

#[path = "histories/connection.rs"]
mod connection;
#[path = "histories/copying.rs"]
mod copying;
#[path = "histories/decisions.rs"]
mod decisions;
#[path = "histories/deletes.rs"]
mod deletes;
#[path = "histories/doubts.rs"]
mod doubts;
#[path = "histories/durability.rs"]
mod durability;
#[path = "histories/flushes.rs"]
mod flushes;
#[path = "histories/large.rs"]
mod large;
#[path = "histories/lost.rs"]
mod lost;
#[path = "histories/reads.rs"]
mod reads;
#[path = "histories/recorded.rs"]
mod recorded;
#[path = "histories/resting.rs"]
mod resting;
#[path = "histories/sessions.rs"]
mod sessions;
#[path = "histories/silence.rs"]
mod silence;
#[path = "histories/stale.rs"]
mod stale;
#[path = "histories/status.rs"]
mod status;
#[path = "histories/target.rs"]
mod target;
#[path = "histories/thin.rs"]
mod thin;
#[path = "histories/turning.rs"]
mod turning;
#[path = "histories/waits.rs"]
mod waits;

/// What the disk does with an operation; `None` leaves it pending.
type Policy = Box<dyn FnMut(&DiskOp) -> Option<Result<(), Errno>>>;

/// A primary and the hands that drive it.
struct H {
    p: Primary,
    t: Duration,
    disk: Vec<u8>,
    ops: Vec<(OpId, DiskOp)>,
    sent: Vec<(Side, Message)>,
    done: Vec<(RequestId, DiskResult)>,
    other: Vec<Action>,
    policy: Policy,
    busy: usize,
}
const ES: u32 = 4096;
/// A silence that no test waits for.
const NEVER: Duration = Duration::from_secs(1 << 30);
impl H {
    fn new(extents: u64, keepdirty: u32, ext: Extension, bits: &[u32], resuid: u64, l: u64, r: u64) -> H {
        H::new_with(extents, keepdirty, ext, bits, resuid, l, r, Box::new(|_| Some(Ok(()))))
    }
    #[expect(clippy::too_many_arguments, reason = "a history begins with all of it")]
    fn new_with(
        extents: u64,
        keepdirty: u32,
        ext: Extension,
        bits: &[u32],
        resuid: u64,
        l: u64,
        r: u64,
        policy: Policy,
    ) -> H {
        let size = 4096 + 512 + extents * u64::from(ES);
        let layout = Layout::create(size, 512, ES).unwrap();
        let base = metadata_on(&layout, ext);
        let metadata = Metadata { keepdirty, resuid, localcnt: l, remotecnt: r, ..base };
        H::started(metadata, layout, map_of(&layout, bits), policy, false)
    }
    /// A primary that replaces one which had given its disk up and left this.
    fn detached(metadata: Metadata) -> H {
        let layout = Layout::open(&metadata, 4096 + 512 + metadata.datasize, 512).unwrap();
        let map = vec![0; layout.map_bytes() as usize];
        H::started(metadata, layout, map, Box::new(|_| Some(Err(Errno::EIO))), true)
    }
    fn started(metadata: Metadata, layout: Layout, map: Vec<u8>, policy: Policy, detached: bool) -> H {
        H::begun(PrimaryStart { detached, ..H::start(metadata, layout, map) }, policy)
    }
    /// A primary that is started like this, on a disk that holds what it is started with.
    fn begun(start: PrimaryStart, policy: Policy) -> H {
        let layout = &start.layout;
        let size = layout.localoff() + layout.datasize();
        let mut disk = start.metadata.encode().to_vec();
        disk.resize(layout.localoff() as usize, 0);
        disk.resize(size as usize + 4096, 0xaa); // no zeros: those are freed instead of copied
        disk[4096..4096 + start.map.len()].copy_from_slice(&start.map);
        let p = Primary::new(start, Duration::ZERO);
        let mut h = H {
            p,
            t: Duration::ZERO,
            disk,
            ops: vec![],
            sent: vec![],
            done: vec![],
            other: vec![],
            policy,
            busy: 0,
        };
        h.pump();
        h
    }
    fn start(metadata: Metadata, layout: Layout, map: Vec<u8>) -> PrimaryStart {
        PrimaryStart {
            settings: H::settings(),
            metadata,
            layout,
            map,
            random: 7,
            host: Host { boot: [1; 16], wall: 0, deletes: Deletes::LeaveZeros },
            forced: false,
            detached: false,
        }
    }
    fn settings() -> Settings {
        Settings {
            replication: Replication::Fullsync,
            timeout: Duration::from_secs(20),
            peer_timeout: NEVER,
            metaflush: true,
            remote: true,
            peer: "s".into(),
        }
    }
    /// hast.conf has another mode now; the connection stays.
    fn set_peer_timeout(&mut self, peer_timeout: Duration) {
        self.p.handle_reload(self.t, Settings { peer_timeout, ..H::settings() }, false);
    }
    fn set_mode(&mut self, replication: Replication) {
        self.p.handle_reload(self.t, Settings { replication, ..H::settings() }, false);
    }
    fn pump(&mut self) {
        let mut n = 0;
        loop {
            while let Some(a) = self.p.poll_action() {
                match a {
                    Action::Disk { id, op } => self.ops.push((id, op)),
                    Action::Send { side, message, .. } => self.sent.push((side, message)),
                    Action::Complete { id, result } => self.done.push((id, result)),
                    a => self.other.push(a),
                }
            }
            let mut i = 0;
            let mut any = None;
            while i < self.ops.len() {
                if let Some(r) = (self.policy)(&self.ops[i].1) {
                    any = Some((i, r));
                    break;
                }
                i += 1;
            }
            let Some((i, r)) = any else { return };
            let (id, op) = self.ops.remove(i);
            let res = match (&op, r) {
                (_, Err(e)) => Err(e),
                (DiskOp::Read { offset, length }, _) => Ok(Some(Buffer::from(
                    self.disk[*offset as usize..*offset as usize + *length as usize].to_vec(),
                ))),
                (DiskOp::Write { offset, data }, _) => {
                    self.disk[*offset as usize..*offset as usize + data.len()].copy_from_slice(data);
                    Ok(None)
                }
                (DiskOp::Delete { offset, length }, _) => {
                    self.disk[*offset as usize..(*offset + *length) as usize].fill(0);
                    Ok(None)
                }
                (DiskOp::Flush, _) => Ok(None),
            };
            n += 1;
            if n > 2000 {
                self.busy = n;
                return;
            }
            self.p.handle_disk(self.t, id, res);
        }
    }
    fn frame(&mut self, side: Side, m: Message) {
        let (w, payload) = m.encode();
        let f = Frame { version: 2, nv: w.as_bytes().to_vec().into(), payload };
        self.p.handle_frame(self.t, side, f);
        self.pump();
    }
    fn handshake_first(&mut self, ext: Extensions) {
        self.connected(Side::Out);
        self.first_answer(ext);
        self.connected(Side::In);
    }
    fn connected(&mut self, side: Side) {
        self.p.handle_connected(self.t, side);
        self.pump();
    }
    fn first_answer(&mut self, ext: Extensions) {
        let w = FirstAnswer { version: 2, token: [9; 16], ext }.encode();
        self.p.handle_frame(
            self.t,
            Side::Out,
            Frame { version: 2, nv: w.as_bytes().to_vec().into(), payload: None },
        );
        self.pump();
    }
    fn answer(&mut self, l: u64, r: u64, src: SyncSource, map: Option<Vec<u8>>) {
        self.answer_with(l, r, src, map, None);
    }
    fn answer_with(
        &mut self,
        l: u64,
        r: u64,
        src: SyncSource,
        map: Option<Vec<u8>>,
        peer_timeout: Option<u32>,
    ) {
        let a = SecondAnswer { localcnt: l, remotecnt: r, syncsrc: src, peer_timeout, ..self.agrees() };
        let mapsize = map.as_ref().map_or(0, |m| m.len() as u32);
        self.frame(Side::Out, Message::SecondAnswer(SecondAnswer { mapsize, ..a }, map.map(Buffer::from)));
    }
    /// A secondary in step, whose system has started since.
    fn answer_after_boot(&mut self, boot: [u8; 16]) {
        let a = SecondAnswer { boot: Some(boot), mapsize: 512, ..self.agrees() };
        self.frame(Side::Out, Message::SecondAnswer(a, Some(Buffer::from(vec![0; 512]))));
    }
    /// A secondary in step that has stored this connection's generation.
    fn answer_meeting(&mut self, met: Met) {
        let a = SecondAnswer { met: Some(met), mapsize: 512, ..self.agrees() };
        self.frame(Side::Out, Message::SecondAnswer(a, Some(Buffer::from(vec![0; 512]))));
    }
    /// The answer of a secondary that is in step.
    fn agrees(&self) -> SecondAnswer {
        let layout = Layout::create(self.disk.len() as u64 - 4096, 512, ES).unwrap();
        SecondAnswer {
            datasize: layout.datasize(),
            extentsize: ES,
            localcnt: 1,
            remotecnt: 1,
            virgin: false,
            syncsrc: SyncSource::Primary,
            mapsize: 0,
            boot: Some([2; 16]),
            peer_timeout: None,
            met: None,
            zero_deletes: true,
        }
    }
    fn reply(&mut self, seq: u64, error: Option<Errno>, data: Option<Buffer>) {
        self.frame(Side::In, Message::Reply(Reply { seq, received: false, error, data }));
    }
    /// answers everything sent with OK except what `f` handles
    fn serve_all(&mut self, mut f: impl FnMut(&Message) -> Option<Option<Errno>>) {
        loop {
            let Some(at) = self
                .sent
                .iter()
                .position(|(_, m)| matches!(m, Message::Request(_) | Message::Mark(_)) && f(m).is_some())
            else {
                return;
            };
            let (_, m) = self.sent.remove(at);
            let e = f(&m).unwrap();
            match m {
                Message::Request(r) => {
                    let d = (r.command == Command::Read && e.is_none())
                        .then(|| Buffer::from(vec![0x55; r.length as usize]));
                    self.reply(r.seq, e, d)
                }
                Message::Mark(k) => self.reply(k.seq, e, None),
                _ => {}
            }
        }
    }
    /// Answers the first such request well.
    fn serve_one(&mut self, command: Command) {
        let first = self.sent.iter().find_map(|(_, m)| match m {
            Message::Request(r) if r.command == command => Some(r.seq),
            _ => None,
        });
        self.serve_all(|m| matches!(m, Message::Request(r) if Some(r.seq) == first).then_some(None));
    }
    fn tick(&mut self, s: u64) {
        let end = self.t + Duration::from_secs(s);
        for _ in 0..100000 {
            match self.p.poll_timeout() {
                Some(at) if at <= end => {
                    self.t = self.t.max(at);
                    self.p.handle_timeout(self.t);
                    self.pump();
                    let next = self.p.poll_timeout();
                    assert!(next.is_none_or(|at| at >= self.t), "{next:?} has passed at {:?}", self.t);
                }
                _ => break,
            }
        }
        self.t = end;
    }
    fn req(&mut self, id: u64, op: Op) {
        self.p.handle_request(self.t, RequestId(id), op);
        self.pump();
    }
    fn w(&mut self, id: u64, extent: u64) {
        self.req(id, Op::Write { offset: extent * u64::from(ES), data: Buffer::from(vec![id as u8; 512]) });
    }
    /// What the metadata on disk says.
    fn metadata(&self) -> Metadata {
        Metadata::read(&self.disk).unwrap().metadata
    }
    /// How the worker has ended, if it has.
    fn exit(&self) -> Option<i32> {
        self.other.iter().find_map(|action| if let Action::Exit(code) = action { Some(*code) } else { None })
    }
    /// What the worker has asked its driver to remember of a disk that was given up, if it is still given up.
    fn detached_at_last(&self) -> Option<Metadata> {
        self.other.iter().fold(None, |last, action| match action {
            Action::Detached(metadata) => Some((**metadata).clone()),
            Action::Attached => None,
            _ => last,
        })
    }
    fn result(&self, id: u64) -> Option<DiskResult> {
        self.done.iter().find(|(i, _)| i.0 == id).map(|(_, r)| r.clone())
    }
    fn in_step() -> H {
        H::in_step_with(24)
    }
    /// One of so many extents.
    fn in_step_with(extents: u64) -> H {
        let mut h = H::new(extents, 1, Extension::default(), &[], 5, 1, 1);
        h.handshake_first(Extensions::ALL);
        h.answer(1, 1, SyncSource::Primary, Some(vec![0; 512]));
        h.serve_all(|_| Some(None));
        assert!(h.p.is_in_step());
        h
    }
    /// A target whose extents `bits` are being copied from the secondary, which says (6, 3).
    fn target(bits: &[u32]) -> H {
        let mut h = H::new(24, 1, Extension::default(), bits, 5, 3, 5);
        h.handshake_first(Extensions::ALL);
        h.answer(6, 3, SyncSource::Secondary, Some(vec![0; 512]));
        assert!(h.p.status().facts.target);
        h
    }
    /// The connection breaks; what was sent is lost, and the next connection waits for the secondary's answer.
    fn meet_again(&mut self) {
        self.p.handle_lost(self.t, "gone");
        self.pump();
        self.sent.clear();
        self.tick(2);
        self.handshake_first(Extensions::ALL);
    }
}
const DATA: u64 = 4096 + 512;
/// What a node has on a disk of this layout: it was primary, knows the other node, and is in step with it.
fn metadata_on(layout: &Layout, extension: Extension) -> Metadata {
    Metadata {
        resource: "t".into(),
        datasize: layout.datasize(),
        extentsize: layout.extentsize(),
        keepdirty: 1,
        localoff: layout.localoff(),
        resuid: 5,
        localcnt: 1,
        remotecnt: 1,
        prevrole: Role::Primary,
        extension,
    }
}
/// A map with these bits.
fn map_of(layout: &Layout, bits: &[u32]) -> Vec<u8> {
    let mut map = vec![0; layout.map_bytes() as usize];
    for bit in bits {
        map[*bit as usize / 8] |= 1 << (bit % 8);
    }
    map
}
/// The blocks that the secondary was given since the last time: number, offset and length.
fn blocks(h: &mut H) -> Vec<(u64, u64, u64)> {
    let mut blocks = Vec::new();
    h.sent.retain(|(_, message)| match message {
        Message::Request(Request { command: Command::Write, seq, offset, length, .. }) => {
            blocks.push((*seq, *offset, *length));
            false
        }
        _ => true,
    });
    blocks
}
/// The answer of a secondary that was written alone, as this node was.
fn split_brain() -> Message {
    let refusal = SecondRefusal {
        datasize: 0,
        extentsize: ES,
        localcnt: 2,
        remotecnt: 1,
        errmsg: texts::SPLIT_BRAIN.into(),
        parted: None,
    };
    Message::SecondRefusal(refusal, None)
}
fn is_data(op: &DiskOp) -> bool {
    matches!(op, DiskOp::Write { offset, .. } if *offset >= DATA)
}
fn is_metadata(op: &DiskOp) -> bool {
    matches!(op, DiskOp::Write { offset, .. } if *offset < 4096)
}
fn is_map(op: &DiskOp) -> bool {
    matches!(op, DiskOp::Write { offset, .. } if (4096..DATA).contains(offset))
}
fn is_read(message: &Message) -> bool {
    matches!(message, Message::Request(Request { command: Command::Read, .. }))
}
fn is_mark(message: &Message) -> bool {
    matches!(message, Message::Mark(_))
}
fn says_start(message: &Message) -> bool {
    matches!(message, Message::Mark(Mark { kind: MarkKind::SyncStart, .. }))
}
fn says_done(message: &Message) -> bool {
    matches!(message, Message::Mark(Mark { kind: MarkKind::SyncDone { .. }, .. }))
}
/// Whether the metadata on disk call `extent` stale.
fn calls_stale(h: &H, extent: u32) -> bool {
    h.metadata().extension.stale.iter().any(|run| run.extents().contains(&extent))
}

#[test]
fn many_stale_runs_are_unreadable() {
    let bits: Vec<u32> = (0..40).map(|i| i * 2).collect();
    let mut h = H::new(100, 1, Extension::default(), &bits, 5, 1, 1);
    h.handshake_first(Extensions::ALL);
    h.answer(2, 1, SyncSource::Secondary, Some(vec![0; 512]));
    let r = Metadata::read(&h.disk);
    assert!(r.is_ok(), "metadata unreadable: {r:?}");
}

#[test]
fn write_during_handshake_is_overwritten() {
    let mut h = H::new(24, 1, Extension::default(), &[], 5, 3, 5);
    h.p.handle_connect_failed(h.t, Side::Out, "refused");
    h.pump();
    h.tick(2);
    h.handshake_first(Extensions::ALL); // says localcnt 3
    h.w(1, 4); // degraded write, counted and acknowledged
    assert_eq!(h.result(1), Some(Ok(None)));
    h.answer(6, 3, SyncSource::Secondary, Some(vec![0; 512]));
    h.serve_all(|_| Some(None));
    h.tick(3);
    h.serve_all(|_| Some(None));
    let at = (DATA + 4 * 4096) as usize;
    assert_eq!(h.disk[at], 1, "the acknowledged write is gone");
}

#[test]
fn a_host_that_does_not_answer_holds_up_a_takeover_for_two_seconds() {
    let mut h = H::new(24, 1, Extension::default(), &[], 5, 3, 5);
    h.w(1, 4);
    h.tick(1);
    assert!(h.result(1).is_none(), "served before the other node had a chance to answer");
    h.tick(1);
    assert_eq!(h.result(1), Some(Ok(None)), "held up although nobody answers");
    // The attempt goes on, and the nodes still meet.
    h.handshake_first(Extensions::ALL);
    h.answer(3, 5, SyncSource::Primary, Some(vec![0; 512]));
    h.serve_all(|_| Some(None));
    assert!(!h.p.status().facts.target);
}

/// A hastd that is frozen leaves it to its kernel to accept connections: after a takeover it is waited for as long as it may
/// be silent, in whatever step of the handshake it stops, and not for all of `timeout`.
#[test]
fn a_secondary_that_stops_in_the_handshake_holds_up_a_takeover_for_peer_timeout() {
    for step in 0..3 {
        let mut h = H::new(24, 1, Extension::default(), &[], 5, 3, 5);
        h.set_peer_timeout(Duration::from_secs(5));
        h.w(1, 4);
        h.connected(Side::Out);
        if step > 0 {
            h.first_answer(Extensions::ALL);
        }
        if step > 1 {
            h.connected(Side::In);
        }
        h.tick(4);
        assert!(h.result(1).is_none(), "{step}: served before the other node had a chance to answer");
        h.tick(1);
        assert_eq!(h.result(1), Some(Ok(None)), "{step}: held up although nobody answers");
    }
}

#[test]
fn flush_ok_though_primary_only_extent_is_not_flushed() {
    let mut h = H::in_step();
    // write to extent 3 fails remotely: counted, marked, complete on this node alone
    h.w(1, 3);
    h.serve_all(|m| match m {
        Message::Request(Request { command: Command::Write, .. }) => Some(Some(Errno::EIO)),
        _ => None,
    });
    // the mark is answered; copying is not (peer slow)
    h.serve_all(|m| matches!(m, Message::Mark(_)).then_some(None));
    assert_eq!(h.result(1), Some(Ok(None)));
    // the copy of extent 3 fails as well: it is tried again in 10 s
    h.serve_all(|m| {
        matches!(m, Message::Request(Request { offset, .. }) if *offset == 3 * 4096)
            .then_some(Some(Errno::EIO))
    });
    h.w(2, 7);
    h.serve_all(|m| {
        matches!(m, Message::Request(Request { offset, .. }) if *offset == 7 * 4096).then_some(None)
    });
    assert_eq!(h.result(2), Some(Ok(None)));
    // extent 3 is written again, still here alone; no flush has covered that
    h.w(4, 3);
    h.serve_all(|m| match m {
        Message::Request(r) if (r.command, r.offset) == (Command::Write, 3 * 4096) => Some(Some(Errno::EIO)),
        Message::Mark(_) => Some(None),
        _ => None,
    });
    assert_eq!(h.result(4), Some(Ok(None)));
    // hold sync writes unanswered: flush waits Behind them, so answer with an error (still P-only)
    let mut once = true;
    h.policy = Box::new(move |op| {
        Some(if matches!(op, DiskOp::Flush) && std::mem::take(&mut once) { Err(Errno::EIO) } else { Ok(()) })
    });
    h.req(3, Op::Flush);
    // peer: pending sync write answered with an error, then flush good
    for seq in 1..40 {
        if h.result(3).is_some() {
            break;
        }
        let f: Vec<_> = h.sent.drain(..).collect();
        let _ = (seq, &f);
        for (_, m) in f {
            match m {
                Message::Request(r) if r.command == Command::Flush => h.reply(r.seq, None, None),
                Message::Request(r) => h.reply(r.seq, Some(Errno::EIO), None),
                Message::Mark(k) => h.reply(k.seq, None, None),
                _ => {}
            }
        }
    }
    assert!(
        !matches!(h.result(3), Some(Ok(_))),
        "flush reported good: extent 3 is on this disk alone and was not flushed"
    );
}

#[test]
fn marked_survives_sync_done() {
    // secondary restarted since (boot unknown), something to copy: it is marked, copied, then told
    let mut h = H::new(24, 1, Extension::default(), &[2], 5, 1, 1);
    h.handshake_first(Extensions::ALL);
    h.answer(1, 1, SyncSource::Primary, Some(vec![0; 512]));
    // answer everything but SyncDone
    h.serve_all(|m| {
        if matches!(m, Message::Mark(Mark { kind: MarkKind::SyncDone { .. }, .. })) {
            None
        } else {
            Some(None)
        }
    });
    let done: Vec<_> = h.sent.iter().filter(|(_, m)| matches!(m, Message::Mark(_))).collect();
    assert_eq!(done.len(), 1);
    h.w(1, 5);
    h.serve_all(|m| match m {
        Message::Request(Request { command: Command::Write, .. }) => Some(Some(Errno::EIO)),
        _ => None,
    });
    let marks: Vec<_> = h
        .sent
        .iter()
        .filter(|(_, m)| matches!(m, Message::Mark(Mark { kind: MarkKind::SyncStart, .. })))
        .collect();
    assert!(
        h.result(1).is_none() || !marks.is_empty(),
        "write complete, the secondary lacks it, and its mark goes with SyncDone"
    );
}

#[test]
fn failing_map_writes_spin() {
    let mut h = H::in_step();
    h.policy = Box::new(|op| {
        Some(if matches!(op, DiskOp::Write { offset, .. } if *offset >= 4096 && *offset < DATA) {
            Err(Errno::EIO)
        } else {
            Ok(())
        })
    });
    h.w(1, 5);
    assert_eq!(h.busy, 0, "map writes are repeated without end and without a pause");
}

#[test]
fn map_stage_when_the_link_breaks_under_a_target() {
    let mut h = H::target(&[2]);
    h.policy = Box::new(|op| {
        if matches!(op, DiskOp::Write { offset, .. } if *offset >= 4096 && *offset < DATA) {
            None
        } else {
            Some(Ok(()))
        }
    });
    h.w(1, 9); // waits for the map
    h.p.handle_lost(h.t, "gone");
    h.pump();
    h.policy = Box::new(|_| Some(Ok(())));
    h.pump();
    assert_eq!(h.result(1), None, "it has to wait for `timeout`");
}

#[test]
fn taken_back_after_the_link_is_up_again() {
    let mut h = H::target(&[2]);
    h.policy = Box::new(|op| if is_data(op) { None } else { Some(Ok(())) });
    h.w(1, 9);
    h.meet_again();
    h.answer(6, 3, SyncSource::Secondary, Some(vec![0; 512]));
    h.serve_all(|m| Some(None).filter(|_| matches!(m, Message::Mark(_))));
    assert!(h.p.status().complete);
    h.policy = Box::new(|_| Some(Ok(())));
    h.pump();
    h.serve_all(|_| Some(None));
    for _ in 0..10 {
        h.tick(1);
        h.serve_all(|_| Some(None));
    }
    assert!(
        matches!(h.result(1), Some(Ok(_))),
        "the secondary is here, and nobody asks it: {:?}",
        h.result(1)
    );
}

#[test]
fn recorded_parks_for_nothing() {
    let mut h = H::new(
        24,
        1,
        Extension {
            generation: 1,
            stale: vec![hast_format::extension::Run { first: 2, count: 1 }],
            ..Extension::default()
        },
        &[2],
        5,
        1,
        1,
    );
    h.handshake_first(Extensions::ALL);
    h.answer(1, 1, SyncSource::Primary, Some(vec![0; 512]));
    h.policy = Box::new(|op| {
        if matches!(op, DiskOp::Write { offset, .. } if *offset < 4096) { None } else { Some(Ok(())) }
    });
    h.serve_all(|_| Some(None)); // extent 2 is copied; the metadata that says so is being written
    h.p.handle_lost(h.t, "gone");
    h.pump();
    h.w(1, 2);
    assert_eq!(h.result(1), None, "after a crash it would be copied over");
    h.policy = Box::new(|_| Some(Ok(())));
    h.pump();
    h.tick(1);
    let well = "the metadata is durable, and the write still waits for the secondary, or has failed";
    assert_eq!(h.result(1), Some(Ok(None)), "{well}");
}

#[test]
fn local_flush_fails_peer_has_no_cache() {
    let mut h = H::in_step();
    h.w(1, 3);
    h.serve_all(|_| Some(None));
    // peer: no cache
    h.req(2, Op::Flush);
    h.serve_all(|m| match m {
        Message::Request(r) if r.command == Command::Flush => Some(Some(Errno::EOPNOTSUPP)),
        _ => Some(None),
    });
    h.w(3, 4);
    h.serve_all(|_| Some(None));
    let mut once = true;
    h.policy = Box::new(move |op| {
        Some(if matches!(op, DiskOp::Flush) && std::mem::take(&mut once) { Err(Errno::EIO) } else { Ok(()) })
    });
    h.req(4, Op::Flush);
    h.serve_all(|_| Some(None));
    h.tick(3);
    h.serve_all(|_| Some(None));
    // The extent was taken for stale, and copied back from the secondary.
    let at = 4608 + 4 * 4096;
    assert!(h.disk[at..at + 512].iter().all(|byte| *byte == 0x55), "the failed flush is forgotten");
}

#[test]
fn a_map_flush_eats_the_error() {
    let mut h = H::in_step();
    h.w(1, 3);
    h.serve_all(|_| Some(None)); // stored on both, not flushed
    // the next fsync, whoever asks for it, reports the failed write-back of extent 3, once
    let mut once = true;
    h.policy = Box::new(move |op| {
        Some(if matches!(op, DiskOp::Flush) && std::mem::take(&mut once) { Err(Errno::EIO) } else { Ok(()) })
    });
    h.w(2, 9);
    h.serve_all(|_| Some(None));
    h.req(4, Op::Flush);
    h.serve_all(|_| Some(None));
    h.tick(3);
    h.serve_all(|_| Some(None));
    // The extent was taken for stale, and copied back from the secondary.
    let at = 4608 + 3 * 4096;
    assert!(h.disk[at..at + 512].iter().all(|byte| *byte == 0x55), "the failed flush is forgotten");
}

/// A disk whose next flush fails, and what it was asked for since.
fn next_flush_fails() -> (Policy, std::rc::Rc<std::cell::RefCell<Vec<DiskOp>>>) {
    let seen = std::rc::Rc::new(std::cell::RefCell::new(Vec::new()));
    let log = seen.clone();
    let mut once = true;
    let policy: Policy = Box::new(move |op| {
        log.borrow_mut().push(op.clone());
        Some(if matches!(op, DiskOp::Flush) && std::mem::take(&mut once) { Err(Errno::EIO) } else { Ok(()) })
    });
    (policy, seen)
}

/// The disk fails the next flush, and holds up what `held` says.
fn next_flush_fails_and_holds(held: fn(&DiskOp) -> bool) -> Policy {
    let mut once = true;
    Box::new(move |op| match op {
        DiskOp::Flush if std::mem::take(&mut once) => Some(Err(Errno::EIO)),
        op if held(op) => None,
        _ => Some(Ok(())),
    })
}

/// A primary without a secondary.
fn alone() -> H {
    let mut h = H::new(24, 1, Extension::default(), &[], 5, 1, 1);
    h.p.handle_connect_failed(h.t, Side::Out, "refused");
    h.pump();
    h
}

#[test]
fn what_only_this_node_has_is_written_again_after_a_failed_flush() {
    let mut h = alone();
    h.w(1, 3);
    h.w(2, 3); // no flush has covered it: the bit and the count are there already
    let (policy, seen) = next_flush_fails();
    h.policy = policy;
    h.req(3, Op::Flush);
    assert_eq!(h.result(3), Some(Err(Errno::EIO)));
    let at = DATA + 3 * 4096;
    let again = |op: &DiskOp| matches!(op, DiskOp::Write { offset, data } if *offset == at && data.first() == Some(&2));
    assert!(seen.borrow().iter().any(again), "what the flush may have dropped is not written again");
    h.req(4, Op::Flush);
    assert_eq!(h.result(4), Some(Ok(None)));
}

#[test]
fn no_flush_is_good_before_what_was_dropped_is_written_again() {
    let mut h = alone();
    h.w(1, 3);
    h.w(2, 3);
    let mut once = true;
    h.policy = Box::new(move |op| match op {
        DiskOp::Flush if std::mem::take(&mut once) => Some(Err(Errno::EIO)),
        DiskOp::Read { .. } => None, // writing it again takes its time
        _ => Some(Ok(())),
    });
    h.req(3, Op::Flush);
    h.req(4, Op::Flush);
    assert_eq!(
        h.result(4),
        Some(Err(Errno::EIO)),
        "fsync(2) is good again, but has forgotten what it dropped"
    );
    h.policy = Box::new(|_| Some(Ok(())));
    h.pump();
    h.req(5, Op::Flush);
    assert_eq!(h.result(5), Some(Ok(None)));
}

#[test]
fn a_client_hears_of_a_flush_that_failed_for_the_map() {
    let mut h = alone();
    h.w(1, 3);
    h.w(2, 3);
    h.policy = next_flush_fails().0;
    h.w(3, 9); // its bit is flushed, in vain
    assert_eq!(h.result(3), Some(Err(Errno::EIO)));
    h.req(4, Op::Flush);
    assert_eq!(h.result(4), Some(Err(Errno::EIO)), "write 2 may be lost, and nobody says so");
    h.tick(2); // the map is written again first (M1)
    h.req(5, Op::Flush);
    assert_eq!(h.result(5), Some(Ok(None)));
}

#[test]
fn flushes_run_one_at_a_time() {
    let mut h = alone();
    h.w(1, 3);
    h.policy = Box::new(|op| if matches!(op, DiskOp::Flush) { None } else { Some(Ok(())) });
    h.req(2, Op::Flush);
    h.w(3, 9);
    let flushes = |h: &H| h.ops.iter().filter(|(_, op)| matches!(op, DiskOp::Flush)).count();
    assert_eq!(flushes(&h), 1, "the second one could be good because the first one was told what failed");
    // ... and if it fails, the other has failed as well.
    h.policy = next_flush_fails().0;
    h.pump();
    assert_eq!(h.result(2), Some(Err(Errno::EIO)));
    assert_eq!(h.result(3), Some(Err(Errno::EIO)));
}

#[test]
fn an_unflushed_map_is_written_again_after_a_failed_flush() {
    let mut h = alone();
    let settings = Settings {
        replication: Replication::Fullsync,
        timeout: Duration::from_secs(20),
        peer_timeout: NEVER,
        metaflush: false,
        remote: true,
        peer: "s".into(),
    };
    h.p.handle_reload(h.t, settings, false);
    h.w(1, 3);
    let (policy, seen) = next_flush_fails();
    h.policy = policy;
    h.req(2, Op::Flush);
    h.tick(2);
    let map =
        |op: &DiskOp| matches!(op, DiskOp::Write { offset: 4096, data } if data.first() == Some(&(1 << 3)));
    assert!(seen.borrow().iter().any(map), "the bit may have been dropped with the data");
}

/// The metadata cannot be written when the link breaks; what was acknowledged without the secondary counts all
/// the same.
#[test]
fn a_worker_does_not_end_before_a_write_that_only_it_has_is_counted() {
    let mut h = H::in_step();
    h.set_mode(Replication::Async);
    h.w(1, 3);
    assert_eq!(h.result(1), Some(Ok(None)), "async");
    h.p.handle_stop(h.t);
    h.pump();
    let mut failures = 2;
    h.policy = Box::new(move |op| {
        let fails = is_metadata(op) && failures > 0;
        failures -= i32::from(fails);
        Some(if fails { Err(Errno::EIO) } else { Ok(()) })
    });
    h.p.handle_lost(h.t, "gone");
    h.pump();
    h.tick(5);
    assert_eq!(h.exit(), Some(EXIT_PEER_BEHIND));
    assert!(Metadata::read(&h.disk).unwrap().metadata.localcnt > 1);
}

/// The disk cannot flush any more. The worker ends all the same, does not hammer the disk until then, and says with its
/// exit status if something that was written may be lost.
#[test]
fn a_worker_whose_disk_cannot_flush_ends() {
    for written in [false, true] {
        let mut h = alone();
        if written {
            h.w(1, 3);
            h.w(2, 3);
        }
        let n = std::rc::Rc::new(std::cell::Cell::new(0));
        let m = n.clone();
        h.policy = Box::new(move |op| {
            let flush = matches!(op, DiskOp::Flush);
            m.set(m.get() + i32::from(flush));
            Some(if flush { Err(Errno::EIO) } else { Ok(()) })
        });
        h.p.handle_stop(h.t);
        h.pump();
        h.tick(60);
        assert_eq!(h.exit(), Some(if written { EXIT_LOST } else { 0 }));
        assert!(n.get() <= 60, "{} flushes, though every one fails", n.get());
    }
}

/// What the disk still calls stale is copied over after a crash, so our disk alone is not enough for a write to it.
#[test]
fn async_waits_for_the_secondary_while_the_disk_calls_an_extent_stale() {
    async_waits(512);
    async_waits(4096);
}
fn async_waits(length: usize) {
    let run = hast_format::extension::Run { first: 2, count: 1 };
    let ext = Extension { generation: 1, stale: vec![run], ..Extension::default() };
    let mut h = H::new(24, 1, ext, &[2], 5, 1, 1);
    h.set_mode(Replication::Async);
    h.handshake_first(Extensions::ALL);
    h.answer(1, 1, SyncSource::Primary, Some(vec![0; 512]));
    h.policy = Box::new(|op| Some(if is_metadata(op) { Err(Errno::EIO) } else { Ok(()) }));
    // The extent is copied; the metadata cannot say so.
    h.serve_all(|m| Some(None).filter(|_| matches!(m, Message::Request(r) if r.command == Command::Read)));
    h.req(1, Op::Write { offset: 2 * 4096, data: Buffer::from(vec![1; length]) });
    assert_eq!(h.result(1), None, "a crash now, and the secondary's copy counts");
    h.p.handle_lost(h.t, "gone");
    h.pump();
    assert!(!matches!(h.result(1), Some(Ok(_))), "and now");
    h.policy = Box::new(|_| Some(Ok(())));
    h.tick(2);
    if length == 512 {
        assert_eq!(h.result(1), Some(Ok(None)), "the metadata says it now");
    }
    assert_eq!(h.p.status().facts.stale_bytes, 0);
}

/// A write that only the secondary stored fails, because the secondary is gone before that is written down. What
/// else the extent holds was acknowledged, and is here.
#[test]
fn a_write_that_fails_leaves_nothing_stale() {
    let mut h = H::in_step();
    h.w(1, 3);
    h.serve_all(|_| Some(None));
    assert_eq!(h.result(1), Some(Ok(None)));
    h.policy = Box::new(|op| {
        if is_data(op) {
            Some(Err(Errno::EIO))
        } else if is_metadata(op) {
            None
        } else {
            Some(Ok(()))
        }
    });
    h.req(2, Op::Write { offset: 3 * 4096 + 512, data: Buffer::from(vec![2; 512]) });
    h.serve_all(|m| matches!(m, Message::Request(r) if r.command == Command::Write).then_some(None));
    h.p.handle_lost(h.t, "gone");
    h.policy = Box::new(|_| Some(Ok(())));
    h.pump();
    assert_eq!(h.result(2), Some(Err(Errno::EIO)));
    h.req(3, Op::Read { offset: 3 * 4096, length: 512 });
    let read = h.result(3).expect("it does not wait for the secondary").unwrap().unwrap();
    assert_eq!(read.to_vec(), vec![1; 512]);
    h.tick(1);
    assert_eq!(Metadata::read(&h.disk).unwrap().metadata.extension.stale, []);
}

/// A target's disk cannot record what it misses, and the secondary counts for it: the target stays one.
#[test]
fn what_the_secondary_counts_for_a_target_does_not_make_them_equal() {
    let mut h = H::target(&[2]);
    h.policy = Box::new(|op| Some(if is_data(op) || is_metadata(op) { Err(Errno::EIO) } else { Ok(()) }));
    h.w(1, 9);
    h.serve_all(|m| match m {
        Message::Request(Request { command: Command::Write | Command::Flush, .. }) | Message::Mark(_) => {
            Some(None)
        }
        _ => None,
    });
    assert_eq!(h.result(1), Some(Ok(None)), "the secondary remembers it");
    h.p.handle_lost(h.t, "gone");
    h.pump();
    h.policy = Box::new(|_| Some(Ok(())));
    h.tick(2);
    h.sent.clear();
    h.handshake_first(Extensions::ALL);
    let said = h.sent.iter().find_map(|(_, message)| match message {
        Message::SecondHello(hello) => Some((hello.localcnt, hello.remotecnt)),
        _ => None,
    });
    assert_eq!(said, Some((3, 5)), "the secondary has counted to 7: it is the newer one still");
}

#[test]
fn what_was_copied_here_is_flushed_before_the_disk_forgets_that_it_was_stale() {
    let run = hast_format::extension::Run { first: 2, count: 1 };
    let ext = Extension { generation: 1, stale: vec![run], ..Extension::default() };
    let mut h = H::new(24, 1, ext, &[2], 5, 1, 1);
    h.handshake_first(Extensions::ALL);
    h.answer(1, 1, SyncSource::Primary, Some(vec![0; 512]));
    let seen = std::rc::Rc::new(std::cell::RefCell::new(Vec::new()));
    let log = seen.clone();
    h.policy = Box::new(move |op| {
        log.borrow_mut().push(op.clone());
        Some(Ok(()))
    });
    h.serve_all(|_| Some(None));
    let seen = seen.borrow();
    let at = |wanted: &dyn Fn(&DiskOp) -> bool| seen.iter().position(wanted).expect("it happens");
    let copied = at(&is_data);
    let saved = at(&|op| matches!(op, DiskOp::Write { offset, .. } if *offset < 4096));
    let flushed = seen.iter().skip(copied).position(|op| matches!(op, DiskOp::Flush)).unwrap() + copied;
    assert!(copied < flushed && flushed < saved, "copied {copied}, flushed {flushed}, saved {saved}");
}

#[test]
fn resuid_zero_write_before_role_is_durable() {
    let mut h = H::new_with(
        24,
        1,
        Extension::default(),
        &[],
        0,
        0,
        0,
        Box::new(|op| {
            if matches!(op, DiskOp::Write { offset, .. } if *offset < 4096) { None } else { Some(Ok(())) }
        }),
    );
    h.p.handle_connect_failed(h.t, Side::Out, "refused");
    h.pump();
    h.w(1, 2);
    assert!(
        h.result(1).is_none(),
        "complete, and the disk does not say yet that this node was primary (L20, C5)"
    );
}

#[test]
fn a_fresh_secondary_makes_half_synced_data_right() {
    let mut h = H::target(&[2, 3]);
    h.meet_again();
    h.answer(0, 0, SyncSource::Primary, Some(vec![0xff; 512]));
    h.serve_all(|_| Some(None));
    h.tick(3);
    h.serve_all(|_| Some(None));
    assert!(!h.p.is_in_step(), "stale data was taken for right, and nobody forced it");
}

#[test]
fn an_orphan_ends_in_the_next_session() {
    let mut h = H::new(24, 1, Extension::default(), &[2], 5, 1, 1);
    h.policy = Box::new(|op| if matches!(op, DiskOp::Read { .. }) { None } else { Some(Ok(())) });
    h.handshake_first(Extensions::ALL);
    h.answer(1, 1, SyncSource::Primary, Some(vec![0; 512]));
    h.serve_all(|m| matches!(m, Message::Mark(_)).then_some(None));
    assert_eq!(h.ops.len(), 1); // the copy's local read hangs
    h.meet_again();
    h.answer(1, 1, SyncSource::Primary, Some(vec![0; 512]));
    h.serve_all(|m| matches!(m, Message::Mark(_)).then_some(None));
    h.policy = Box::new(|_| Some(Ok(())));
    h.pump();
    h.serve_all(|_| Some(None));
    h.tick(3);
    h.serve_all(|_| Some(None));
    assert!(h.p.is_in_step(), "the old block's end was counted against the new copy");
}

#[test]
fn crash_in_the_save_after_a_failed_one() {
    // list part fails half-way (torn), then power is lost while the next save writes the area
    let mut h = H::in_step();
    h.policy = Box::new(|op| {
        Some(if matches!(op, DiskOp::Write { offset: 0, .. }) { Err(Errno::EIO) } else { Ok(()) })
    });
    h.w(1, 3);
    h.serve_all(|m| match m {
        Message::Request(r) if r.command == Command::Write => Some(Some(Errno::EIO)),
        Message::Mark(_) => Some(None),
        _ => None,
    });
    for b in &mut h.disk[1536..2048] {
        *b = 0xa5;
    } // the failed write got half-way through the copy
    assert!(Metadata::read(&h.disk).is_ok());
    let before = h.disk.clone();
    let log = std::rc::Rc::new(std::cell::RefCell::new(Vec::new()));
    let l2 = log.clone();
    h.policy = Box::new(move |op| {
        if let DiskOp::Write { offset, data } = op {
            l2.borrow_mut().push((*offset, data.len()));
        }
        Some(Ok(()))
    });
    h.w(2, 4);
    h.serve_all(|m| match m {
        Message::Request(r) if r.command == Command::Write => Some(Some(Errno::EIO)),
        Message::Mark(_) => Some(None),
        _ => None,
    });
    let first = log.borrow().iter().find(|(o, _)| *o < 4096).copied();
    let mut torn = before;
    for b in &mut torn[3072..3600] {
        *b = 0x5a;
    }
    assert_eq!(first.map(|f| f.0), Some(0), "the damaged part has to be repeated first");
}

#[test]
fn flush_storm_with_many_extents() {
    let mut h = H::in_step_with(600);
    assert!(h.p.is_in_step());
    let n = std::rc::Rc::new(std::cell::Cell::new(0));
    let m = n.clone();
    for e in 0..255 {
        h.w(e + 1, e);
    }
    h.serve_all(|m| matches!(m, Message::Request(r) if r.command == Command::Write).then_some(None));
    h.policy = Box::new(move |op| {
        Some(if matches!(op, DiskOp::Flush) {
            m.set(m.get() + 1);
            Err(Errno::EIO)
        } else {
            Ok(())
        })
    });
    for e in 255..300 {
        h.w(e + 1, e);
    }
    for _ in 0..200 {
        h.serve_all(|m| {
            Some(match m {
                Message::Request(r) if r.command == Command::Flush => Some(Errno::EIO).filter(|_| false),
                _ => None,
            })
        });
    }
    // One for the map of each of the 45 new writes, and a few more; not one after the other without end.
    assert!(n.get() <= 60, "{} flushes of a disk that cannot, without a moment between them", n.get());
}

/// Extents 52 and 54 are right on the secondary alone, 50 and 53 here alone; all lie in front of what is being
/// synchronised.
fn torn() -> H {
    let run = |first| hast_format::extension::Run { first, count: 1 };
    let ext = Extension { generation: 1, stale: vec![run(52), run(54)], ..Extension::default() };
    let bits: Vec<u32> = (0..50).chain([50, 52, 53, 54]).collect();
    let mut h = H::new(100, 1, ext, &bits, 5, 1, 1);
    for extent in 0..100 {
        let at = (DATA + extent * u64::from(ES)) as usize;
        h.disk[at..at + ES as usize].fill(extent as u8);
    }
    h.handshake_first(Extensions::ALL);
    h.answer(1, 1, SyncSource::Primary, Some(vec![0; 512]));
    h.serve_all(|m| matches!(m, Message::Mark(_)).then_some(None));
    assert!(h.p.status().complete);
    h
}

/// The first byte of each half extent that was read.
fn halves(result: Option<DiskResult>) -> Vec<u8> {
    let data = result.expect("answered").expect("well").expect("with data");
    data.chunks(2048).map(|half| half[0]).collect()
}

/// Neither node has all of what is read, but each part is good on one.
#[test]
fn a_read_of_parts_that_are_good_on_different_nodes() {
    let is_read = |m: &Message| matches!(m, Message::Request(r) if r.command == Command::Read);
    let mut h = torn();
    let half = u64::from(ES) / 2;
    h.req(1, Op::Read { offset: 51 * u64::from(ES) + half, length: ES * 4 });
    h.serve_all(|m| is_read(m).then_some(None));
    assert_eq!(halves(h.result(1)), [0x55, 0x55, 0x55, 53, 53, 0x55, 0x55, 0x55], "as each is right");
    // A part that is the same on both, and cannot be read here.
    h.policy = Box::new(|op| {
        let bad = DATA + 51 * u64::from(ES);
        let hit = |from: u64, length: u32| from < bad + u64::from(ES) && bad < from + u64::from(length);
        Some(match op {
            DiskOp::Read { offset, length } if hit(*offset, *length) => Err(Errno::EIO),
            _ => Ok(()),
        })
    });
    h.req(2, Op::Read { offset: 50 * u64::from(ES), length: ES * 2 });
    h.serve_all(|m| is_read(m).then_some(None));
    assert_eq!(halves(h.result(2)), [50, 50, 0x55, 0x55]);
    // The secondary goes away between two parts, and comes back.
    h.req(3, Op::Read { offset: 52 * u64::from(ES), length: ES * 3 });
    let mut first = false;
    h.serve_all(|m| match m {
        Message::Request(r) if r.command == Command::Read && r.offset == 52 * u64::from(ES) => {
            first = true;
            Some(None)
        }
        _ => None,
    });
    assert!(first && h.result(3).is_none());
    h.p.handle_lost(h.t, "gone");
    h.pump();
    h.tick(3);
    h.sent.clear();
    h.handshake_first(Extensions::ALL);
    h.answer(1, 1, SyncSource::Primary, Some(vec![0; 512]));
    h.serve_all(|m| (is_read(m) || matches!(m, Message::Mark(_))).then_some(None));
    assert_eq!(halves(h.result(3)), [0x55, 0x55, 53, 53, 0x55, 0x55]);
    // ... or not.
    let mut h = torn();
    h.req(4, Op::Read { offset: 52 * u64::from(ES), length: ES * 3 });
    h.p.handle_lost(h.t, "gone");
    h.pump();
    h.tick(21);
    assert_eq!(h.result(4), Some(Err(Errno::EIO)), "no old data in its place");
}

/// Mode async: the device has its answer long before the secondary's, and asks on.
#[test]
fn what_a_secondary_has_not_answered_is_bounded() {
    for length in [512, 131_072] {
        let mut h = H::in_step_with(1000);
        h.set_mode(Replication::Async);
        let mut asked = 0;
        while h.p.wants_requests() && asked < 20_000 {
            asked += 1;
            let offset = asked * 512 * 7 % (800 * u64::from(ES));
            h.req(asked, Op::Write { offset, data: Buffer::from(vec![1; length]) });
        }
        assert!(h.done.len() as u64 == asked, "the device waits for none of them");
        let most = 4096.min((32 << 20) / length as u64);
        assert_eq!(asked, most, "of {length} bytes");
        let seq = |m: &Message| if let Message::Request(r) = m { r.seq } else { 0 };
        let first = h.sent.iter().map(|(_, m)| seq(m)).filter(|seq| *seq > 0).min().unwrap();
        h.serve_all(|m| (seq(m) == first).then_some(None));
        assert!(h.p.wants_requests(), "there is room again");
    }
}

/// An original takes in 256 requests, those of a synchronisation among them: more would stop its connection.
#[test]
fn an_original_is_asked_for_no_more_than_it_takes_in() {
    let mut h = H::new(100, 1, Extension::default(), &[1, 2], 5, 1, 1);
    h.handshake_first(Extensions::NONE);
    h.answer(1, 1, SyncSource::Primary, Some(vec![0; 512]));
    h.set_mode(Replication::Async);
    let mut asked = 0;
    while h.p.wants_requests() && asked < 20_000 {
        asked += 1;
        h.w(asked, 3 + asked % 90);
    }
    let sent = h.sent.iter().filter(|(_, m)| matches!(m, Message::Request(_))).count();
    assert!((200..=256).contains(&sent), "{sent} requests at once");
}

/// Answers come all the time, but one request, or one mark, is forgotten.
#[test]
fn a_secondary_that_forgets_one_request_is_given_up() {
    for mark in [false, true] {
        let mut h = H::in_step();
        h.w(1, 3);
        let forgotten = |m: &Message| match m {
            Message::Request(r) => r.command == Command::Write && r.offset == 3 * u64::from(ES),
            Message::Mark(_) => mark,
            _ => false,
        };
        if mark {
            // The secondary cannot store it, and is to mark itself.
            h.serve_all(|m| matches!(m, Message::Request(_)).then_some(Some(Errno::EIO)));
            assert!(h.sent.iter().any(|(_, m)| matches!(m, Message::Mark(_))));
        }
        let mut id = 2;
        while h.p.status().complete && h.t < Duration::from_secs(100) {
            h.w(id, 7);
            h.serve_all(|m| (!forgotten(m)).then_some(None));
            id += 1;
            h.tick(1);
        }
        assert!(h.t <= Duration::from_secs(22), "given up only at {:?}, {id} writes later", h.t);
    }
}

/// Many answers wait in a queue of a slow link, that of the oldest request last: nothing is wrong.
#[test]
fn answers_in_any_order_keep_the_link() {
    let mut h = H::in_step();
    for id in 1..=20 {
        h.w(id, id);
    }
    for seconds in 0..19 {
        h.tick(5);
        assert!(h.p.status().complete, "lost after {seconds} answers");
        let last = h.sent.iter().rev().find_map(|(_, m)| match m {
            Message::Request(r) => Some(r.seq),
            _ => None,
        });
        h.serve_all(|m| matches!(m, Message::Request(r) if Some(r.seq) == last).then_some(None));
    }
    h.serve_all(|_| Some(None));
    assert!(h.p.status().complete);
}

/// T7: a disk that is slow is not a peer that is dead, as long as the peer says so, and of the right request.
#[test]
fn a_secondary_with_a_slow_disk_is_waited_for() {
    let mut h = H::in_step();
    h.w(1, 3);
    h.w(2, 4);
    let seqs: Vec<u64> = h
        .sent
        .iter()
        .filter_map(|(_, m)| match m {
            Message::Request(r) if r.command == Command::Write => Some(r.seq),
            _ => None,
        })
        .collect();
    for _ in 0..20 {
        h.tick(10);
        h.frame(Side::In, Message::Busy(seqs[0]));
        assert!(h.p.status().complete, "lost at {:?}", h.t);
    }
    // It has forgotten the first and works on the second.
    for _ in 0..3 {
        h.tick(10);
        h.frame(Side::In, Message::Busy(seqs[1]));
    }
    assert!(!h.p.status().complete);
}

// ---- secondary ----
struct S {
    s: Secondary,
    t: Duration,
    disk: Vec<u8>,
    ops: Vec<(OpId, DiskOp)>,
    sent: Vec<Message>,
    log: Vec<(u64, usize)>,
    snaps: Vec<Vec<u8>>,
}
impl S {
    fn new(ext: Extension, bits: &[u32]) -> S {
        S::under(Extensions::ALL, ext, bits)
    }
    fn under(known: Extensions, ext: Extension, bits: &[u32]) -> S {
        S::patient(known, NEVER, ext, bits)
    }
    fn patient(known: Extensions, peer_timeout: Duration, ext: Extension, bits: &[u32]) -> S {
        let host = Host { boot: [1; 16], wall: 0, deletes: Deletes::LeaveZeros };
        S::started(known, peer_timeout, ext, bits, host, S::hello())
    }
    /// On a host of which this is known.
    fn with(known: Extensions, host: Host) -> S {
        S::started(known, NEVER, Extension::default(), &[], host, S::hello())
    }
    /// Under a primary that says this of generations.
    fn meeting(meeting: Option<Meeting>, ext: Extension) -> S {
        let host = Host { boot: [1; 16], wall: 0, deletes: Deletes::LeaveZeros };
        S::started(Extensions::ALL, NEVER, ext, &[], host, SecondHello { meeting, ..S::hello() })
    }
    fn started(
        known: Extensions,
        peer_timeout: Duration,
        ext: Extension,
        bits: &[u32],
        host: Host,
        hello: SecondHello,
    ) -> S {
        S::from_disk(S::disk(24, ext, bits), known, peer_timeout, host, hello)
    }
    /// The disk of a node with so many extents.
    fn disk(extents: u64, ext: Extension, bits: &[u32]) -> Vec<u8> {
        let size = 4096 + 512 + extents * u64::from(ES);
        let layout = Layout::create(size, 512, ES).unwrap();
        let map = map_of(&layout, bits);
        let mut disk = vec![0; size as usize];
        let ext = Extension { generation: 1, ..ext };
        for (offset, part) in metadata_on(&layout, ext).writes(512) {
            disk[offset as usize..][..part.len()].copy_from_slice(&part);
        }
        disk[4096..4096 + map.len()].copy_from_slice(&map);
        disk
    }
    /// A worker that finds this on its disk.
    fn from_disk(
        disk: Vec<u8>,
        known: Extensions,
        peer_timeout: Duration,
        host: Host,
        hello: SecondHello,
    ) -> S {
        let layout = Layout::create(disk.len() as u64, 512, ES).unwrap();
        let settings = Settings {
            replication: Replication::Fullsync,
            timeout: Duration::from_secs(20),
            peer_timeout,
            metaflush: true,
            remote: true,
            peer: "s".into(),
        };
        let s = Secondary::new(
            SecondaryStart {
                settings,
                metadata: Metadata::read(&disk).unwrap().metadata,
                layout,
                map: disk[4096..4096 + 512].to_vec(),
                version: 2,
                ext: known,
                host,
                hello,
                unsure: false,
                former: Bitmap::new(layout.nextents() as u32),
            },
            Duration::ZERO,
        );
        S { s, t: Duration::ZERO, disk, ops: vec![], sent: vec![], log: vec![], snaps: vec![] }
    }
    /// It has stored write 1, to extent 3, and flushes for mark 2.
    fn flushing_for_a_mark() -> S {
        let mut s = S::new(Extension::default(), &[]);
        s.run();
        s.frame(write_of(1, 3));
        s.run();
        s.frame(Message::Mark(Mark { seq: 2, kind: MarkKind::SyncStart }));
        s.step(0);
        s
    }
    /// Of a primary in step.
    fn hello() -> SecondHello {
        SecondHello {
            resource: "t".into(),
            token: [9; 16],
            virgin: false,
            resuid: 5,
            localcnt: 1,
            remotecnt: 1,
            boot: Some([3; 16]),
            parting: None,
            meeting: None,
        }
    }
    /// Under a primary that has not met this node since it was written alone.
    fn newer(ext: Extension, bits: &[u32]) -> S {
        let host = Host { boot: [1; 16], wall: 0, deletes: Deletes::LeaveZeros };
        S::started(Extensions::ALL, NEVER, ext, bits, host, SecondHello { remotecnt: 0, ..S::hello() })
    }
    fn poll(&mut self) {
        while let Some(a) = self.s.poll_action() {
            match a {
                Action::Disk { id, op } => self.ops.push((id, op)),
                Action::Send { message, .. } => self.sent.push(message),
                _ => {}
            }
        }
    }
    fn step(&mut self, at: usize) {
        let (id, op) = self.ops.remove(at);
        let res = match &op {
            DiskOp::Read { offset, length } => Ok(Some(Buffer::from(
                self.disk[*offset as usize..*offset as usize + *length as usize].to_vec(),
            ))),
            DiskOp::Write { offset, data } => {
                self.log.push((*offset, data.len()));
                self.disk[*offset as usize..*offset as usize + data.len()].copy_from_slice(data);
                self.snaps.push(self.disk.clone());
                Ok(None)
            }
            _ => Ok(None),
        };
        self.s.handle_disk(self.t, id, res);
        self.poll();
    }
    fn run(&mut self) {
        self.poll();
        while !self.ops.is_empty() {
            self.step(0);
        }
    }
    fn write(&mut self, seq: u64, extent: u64) {
        let (offset, length, data) = (extent * u64::from(ES), 512, Some(Buffer::from(vec![1; 512])));
        let command = Command::Write;
        self.frame(Message::Request(Request { command, seq, offset, length, memsync: false, data }));
    }
    fn frame(&mut self, m: Message) {
        let (w, payload) = m.encode();
        self.s.handle_frame(self.t, Frame { version: 2, nv: w.as_bytes().to_vec().into(), payload });
        self.poll();
    }
}
fn write_of(seq: u64, extent: u64) -> Message {
    let data = Some(Buffer::from(vec![seq as u8; 512]));
    let (command, offset) = (Command::Write, extent * 4096);
    Message::Request(Request { command, seq, offset, length: 512, memsync: false, data })
}
fn flush_of(seq: u64) -> Message {
    let command = Command::Flush;
    Message::Request(Request { command, seq, offset: 0, length: 0, memsync: false, data: None })
}
impl S {
    /// The operation at `at` fails.
    fn fail(&mut self, at: usize) {
        let (id, _) = self.ops.remove(at);
        self.s.handle_disk(self.t, id, Err(Errno::EIO));
        self.poll();
    }
    fn at(&self, wanted: impl Fn(&DiskOp) -> bool) -> usize {
        self.ops.iter().position(|(_, op)| wanted(op)).expect("it was asked for")
    }
    fn answer(&self, wanted: u64) -> Option<Result<(), Errno>> {
        self.sent.iter().find_map(|message| match message {
            Message::Reply(reply) if reply.seq == wanted => Some(reply.error.map_or(Ok(()), Err)),
            _ => None,
        })
    }
}

#[test]
fn a_secondary_says_what_a_failed_flush_may_have_dropped_and_writes_it_again() {
    let mut s = S::flushing_for_a_mark();
    s.frame(write_of(3, 5)); // with the disk meanwhile
    s.fail(s.at(|op| matches!(op, DiskOp::Flush)));
    assert_eq!(s.answer(2), Some(Err(Errno::EIO)));
    s.step(s.at(is_data));
    assert_eq!(s.answer(3), Some(Err(Errno::EIO)), "it may have been dropped too");
    s.frame(flush_of(4));
    s.log.clear();
    s.run();
    assert_eq!(s.answer(4), Some(Err(Errno::EIO)), "the primary has to hear of it");
    s.frame(flush_of(5));
    s.run();
    assert_eq!(s.answer(5), Some(Ok(())));
    for extent in [3, 5] {
        assert!(s.log.contains(&(DATA + extent * 4096, 4096)), "extent {extent} is not written again");
    }
}

/// The map write that fails did not hold the second write's bit, and no other followed.
#[test]
fn a_write_whose_bit_came_after_a_failed_map_write_is_answered() {
    let mut s = S::under(Extensions::NONE, Extension::default(), &[]);
    s.run();
    s.frame(write_of(1, 3));
    s.frame(write_of(2, 5));
    let map = |op: &DiskOp| matches!(op, DiskOp::Write { offset, .. } if *offset >= 4096 && *offset < DATA);
    s.fail(s.at(map));
    s.run();
    for seq in [1, 2] {
        assert!(s.answer(seq).is_some(), "write {seq} is never answered");
    }
}

#[test]
fn stale_is_forgotten_before_the_mark_is_there() {
    let ext = Extension {
        generation: 1,
        stale: vec![hast_format::extension::Run { first: 2, count: 1 }],
        ..Extension::default()
    };
    let mut s = S::new(ext, &[2]);
    s.run();
    s.snaps.clear();
    s.frame(Message::Mark(Mark { seq: 1, kind: MarkKind::SyncStart }));
    s.run();
    for (i, d) in s.snaps.iter().enumerate() {
        let r = Metadata::read(d).unwrap();
        println!(
            "after write {i}: mark {} stale {:?} map {:?}",
            r.metadata.extension.mark.is_some(),
            r.metadata.extension.stale,
            d[4096]
        );
        assert!(
            r.metadata.extension.mark.is_some() || !r.metadata.extension.stale.is_empty(),
            "a crash here: nothing says that extent 2 is wrong on this node"
        );
    }
}
#[test]
fn clear_map_and_mark_map_side_by_side() {
    let mut s = S::new(Extension::default(), &[2]);
    s.run();
    s.frame(Message::Request(Request {
        command: Command::Write,
        seq: 1,
        offset: 5 * 4096,
        length: 512,
        memsync: false,
        data: Some(Buffer::from(vec![1; 512])),
    }));
    s.step(1); // the data; the clearing of the map is slow
    s.frame(Message::Mark(Mark { seq: 2, kind: MarkKind::Stale { offset: 5 * 4096, length: 512 } }));
    while s.ops.len() > 1 {
        let last = s.ops.len() - 1;
        s.step(last);
    }
    s.run();
    assert_eq!(s.disk[4096], 1 << 5, "the bit that the primary was promised is not on disk");
}
#[test]
fn acknowledged_after_the_only_holder_is_gone() {
    // simulator seed 100555, unmodified
    let mut h = H::in_step();
    h.policy = Box::new(|op| if is_data(op) { None } else { Some(Ok(())) });
    h.w(1, 3);
    h.serve_all(|_| Some(None)); // stored there, not flushed; our disk is slow
    h.p.handle_lost(h.t, "gone");
    h.pump(); // the secondary loses power
    h.policy = Box::new(|op| Some(if is_data(op) { Err(Errno::EIO) } else { Ok(()) }));
    h.pump(); // and our disk fails
    assert!(!matches!(h.result(1), Some(Ok(_))), "acknowledged, and nobody here knows of a node that has it");
}
fn is(command: Command) -> impl Fn(&Message) -> bool {
    move |m| matches!(m, Message::Request(r) if r.command == command)
}

/// A write of a whole extent.
fn whole(extent: u64, value: u8) -> Op {
    Op::Write { offset: extent * u64::from(ES), data: Buffer::from(vec![value; ES as usize]) }
}

/// Our disk fails writes to its data area once.
fn one_write_fails() -> Policy {
    let mut once = true;
    Box::new(move |op| Some(if is_data(op) && std::mem::take(&mut once) { Err(Errno::EIO) } else { Ok(()) }))
}

/// What the secondary alone has it flushes before anybody hears of it, and so a flush is good without it.
#[test]
fn what_the_secondary_alone_has_it_has_flushed() {
    for flushes in [false, true] {
        let mut h = H::in_step();
        h.policy = one_write_fails();
        h.w(1, 3);
        h.serve_all(|m| is(Command::Write)(m).then_some(None));
        assert_eq!(h.result(1), None, "it lies in the secondary's cache alone");
        if flushes {
            h.serve_all(|m| is(Command::Flush)(m).then_some(None));
            assert_eq!(h.result(1), Some(Ok(None)));
        }
        h.p.handle_lost(h.t, "gone");
        h.pump();
        h.req(2, Op::Flush);
        assert_eq!(h.result(2), Some(Ok(None)));
        assert_eq!(h.result(1), Some(if flushes { Ok(None) } else { Err(Errno::EIO) }));
        assert_eq!(h.p.status().facts.stale_bytes, if flushes { u64::from(ES) } else { 0 });
    }
}

/// The secondary cannot flush it: nobody has it.
#[test]
fn what_the_secondary_alone_has_and_cannot_flush_has_failed() {
    let mut h = H::in_step();
    h.policy = one_write_fails();
    h.w(1, 3);
    h.serve_all(|m| match m {
        m if is(Command::Write)(m) => Some(None),
        m if is(Command::Flush)(m) => Some(Some(Errno::EIO)),
        _ => None,
    });
    assert_eq!(h.result(1), Some(Err(Errno::EIO)));
    assert_eq!(h.p.status().facts.stale_bytes, 0);
}

/// Part of a stale extent is written again, on both nodes: reads of it still go to the secondary, which flushes it
/// first.
#[test]
fn what_is_written_to_a_stale_extent_the_secondary_has_flushed() {
    let mut h = H::in_step();
    h.policy = one_write_fails();
    h.w(1, 3);
    // The extent cannot be copied back for now.
    let copy_fails = |m: &Message| Some(is(Command::Read)(m).then_some(Errno::EIO));
    h.serve_all(copy_fails);
    assert_eq!(h.result(1), Some(Ok(None)));
    h.w(3, 3);
    h.serve_all(|m| if is(Command::Flush)(m) { None } else { copy_fails(m) });
    assert_eq!(h.result(3), None, "it counts in the secondary's cache alone");
    h.serve_all(copy_fails);
    assert_eq!(h.result(3), Some(Ok(None)));
}

/// The link breaks in the middle of a planned end: a write fails though it is here, and a read that has waited for
/// it does not bring what the next primary lacks.
#[test]
fn a_read_behind_a_write_that_was_cut_off_fails() {
    let mut h = H::in_step();
    h.w(1, 3);
    h.req(2, Op::Read { offset: 3 * u64::from(ES), length: 512 });
    h.p.handle_stop(h.t);
    h.pump();
    h.p.handle_lost(h.t, "gone");
    h.pump();
    assert_eq!(h.result(1), Some(Err(Errno::ENOTCONN)));
    assert_eq!(h.result(2), Some(Err(Errno::ENOTCONN)));
}

/// ... and never is while that lacks something itself: what there is no room for fails.
#[test]
fn the_whole_disk_does_not_turn_while_the_secondary_lacks_something() {
    let mut h = H::new(200, 1, Extension::default(), &[], 5, 3, 3);
    h.handshake_first(Extensions::ALL);
    h.answer(3, 3, SyncSource::Primary, None);
    h.serve_all(|_| Some(None));
    let lacks = |m: &Message| matches!(m, Message::Request(r) if r.offset >= 199 * u64::from(ES));
    let serve = |m: &Message| match m {
        m if is(Command::Read)(m) => None,
        m if is(Command::Write)(m) && lacks(m) => Some(Some(Errno::EIO)),
        _ => Some(None),
    };
    h.w(1, 199);
    h.serve_all(serve);
    h.policy = Box::new(|op| Some(if is_data(op) { Err(Errno::EIO) } else { Ok(()) }));
    for at in 0..40 {
        h.w(2 + at, 2 * at);
        h.serve_all(serve);
        let room = at < hast_format::extension::STALE_RUNS as u64;
        assert_eq!(h.result(2 + at), Some(if room { Ok(None) } else { Err(Errno::EIO) }), "write {at}");
    }
    assert!(!h.p.status().facts.detached);
}

/// Our disk fails a flush, and before the extent is called stale another write to it is stored on both nodes: it
/// would rest on the secondary's cache.
#[test]
fn what_is_written_while_an_extent_turns_the_secondary_has_flushed() {
    let mut h = H::in_step();
    h.w(1, 3);
    h.serve_all(|_| Some(None));
    h.req(2, Op::Flush);
    h.serve_all(|_| Some(None));
    h.w(3, 3);
    h.serve_all(|m| is(Command::Write)(m).then_some(None));
    assert_eq!(h.result(3), Some(Ok(None)), "on both nodes");
    h.policy = next_flush_fails().0;
    h.req(4, Op::Flush);
    h.w(5, 3);
    h.serve_all(|m| is(Command::Write)(m).then_some(None));
    assert_eq!(h.result(5), None, "the flush under way began before it was stored");
    h.serve_one(Command::Flush);
    assert_eq!((h.result(4), h.result(5)), (None, None), "what has turned since, that flush does not cover");
    h.serve_all(|m| (!is(Command::Read)(m)).then_some(None));
    assert_eq!((h.result(4), h.result(5)), (Some(Ok(None)), Some(Ok(None))));
    assert_eq!(h.p.status().facts.stale_bytes, u64::from(ES));
}

/// The secondary goes away while an extent turns: our copy is what there is.
#[test]
fn an_extent_that_was_turning_is_right_here_when_the_secondary_goes_away() {
    let mut h = H::in_step();
    h.w(1, 3);
    h.serve_all(|m| is(Command::Write)(m).then_some(None));
    h.policy = next_flush_fails().0;
    h.req(2, Op::Flush);
    h.w(3, 3);
    h.req(4, Op::Read { offset: 3 * u64::from(ES), length: 512 });
    assert!(h.sent.iter().any(|(_, m)| is(Command::Write)(m)));
    h.serve_all(|m| is(Command::Write)(m).then_some(None));
    assert_eq!(h.result(3), None);
    h.p.handle_lost(h.t, "gone");
    h.pump();
    assert_eq!(h.p.status().facts.stale_bytes, 0);
    assert_eq!(h.result(3), Some(Ok(None)), "it is here");
    assert_eq!(h.result(4), Some(Ok(Some(Buffer::from(vec![3; 512])))));
    assert_eq!(h.result(2), Some(Err(Errno::EIO)));
}

/// More runs than there is room for: the whole disk is called stale, once the secondary has flushed all of it.
#[test]
fn the_whole_disk_turns_before_it_is_called_stale() {
    let mut h = H::new(200, 1, Extension::default(), &[], 5, 3, 3);
    h.handshake_first(Extensions::ALL);
    h.answer(3, 3, SyncSource::Primary, None);
    h.serve_all(|_| Some(None));
    h.w(1, 199); // on both nodes, flushed on none
    h.serve_all(|m| is(Command::Write)(m).then_some(None));
    h.policy = Box::new(|op| Some(if is_data(op) { Err(Errno::EIO) } else { Ok(()) }));
    for at in 0..60 {
        let before = h.sent.iter().filter(|(_, m)| is(Command::Flush)(m)).count();
        assert_eq!(before, 0);
        h.w(2 + at, 2 * at);
        h.serve_all(|m| is(Command::Write)(m).then_some(None));
        let mut flushes = 0;
        while h.result(2 + at).is_none() && flushes < 5 {
            h.serve_one(Command::Flush);
            flushes += 1;
        }
        assert_eq!(h.result(2 + at), Some(Ok(None)), "write {at}");
        if h.p.status().facts.detached {
            assert_eq!(flushes, 2, "one for the write, and one for the whole disk");
            return;
        }
        assert_eq!(flushes, 1);
    }
    panic!("the disk is never given up");
}

#[test]
fn reload_with_a_shorter_timeout_while_marking() {
    let mut h = H::new(24, 1, Extension::default(), &[2], 5, 1, 1);
    h.handshake_first(Extensions::ALL);
    h.answer(1, 1, SyncSource::Primary, Some(vec![0; 512]));
    h.p.handle_reload(
        h.t,
        Settings {
            replication: Replication::Fullsync,
            timeout: Duration::from_secs(5),
            peer_timeout: NEVER,
            metaflush: true,
            remote: true,
            peer: "s".into(),
        },
        false,
    );
    h.pump();
    h.t = Duration::from_secs(6);
    h.p.handle_timeout(h.t);
    h.pump();
    assert!(h.p.poll_timeout().unwrap() > h.t, "spins");
}
#[test]
fn secondary_recovers_from_a_slow_disk_and_is_dropped() {
    let mut s = S::patient(Extensions::ALL, Duration::from_secs(20), Extension::default(), &[]);
    s.run();
    for seq in 1..20_000 {
        if s.s.wants_input() {
            s.write(seq, seq % 24);
        }
    }
    assert!(!s.s.wants_input());
    s.t = Duration::from_secs(25); // the disk stood still; frames wait in the socket
    s.step(0);
    s.s.handle_timeout(s.t);
    s.poll(); // as hastd's check_clock does, before anything is read
    assert!(s.s.status().complete, "dropped for silence that was its own");
}

/// Marks are written down one after the other; a primary that goes on sending them is not listened to without
/// end.
#[test]
fn marks_that_wait_are_bounded() {
    let mut s = S::new(Extension::default(), &[]);
    s.run();
    let mut sent = 0;
    while s.s.wants_input() && sent < 20_000 {
        sent += 1;
        s.frame(Message::Mark(Mark { seq: sent, kind: MarkKind::SyncStart }));
    }
    assert!(sent < 10_000, "{sent} marks, and none of them on disk");
    while !s.ops.is_empty() {
        s.step(0);
        s.snaps.clear();
    }
    assert!(s.s.wants_input());
    assert_eq!(s.sent.iter().filter(|m| matches!(m, Message::Reply(_))).count() as u64, sent);
}

/// T7: the primary hears of the oldest request, or mark, that the disk has not ended, for a minute.
#[test]
fn a_slow_disk_is_told_of() {
    for mark in [false, true] {
        let mut s = S::new(Extension::default(), &[]);
        s.run();
        s.sent.clear();
        if mark {
            s.frame(Message::Mark(Mark { seq: 7, kind: MarkKind::SyncStart }));
            s.write(8, 2);
        } else {
            s.write(7, 1);
            s.frame(Message::Mark(Mark { seq: 8, kind: MarkKind::SyncStart }));
        }
        let mut told = Vec::new();
        let end = Duration::from_secs(200);
        while let Some(at) = s.s.poll_timeout().filter(|at| *at < end) {
            assert!(at > s.t, "spins");
            s.t = at;
            if (s.t.as_secs() % 10, s.sent.len()) == (0, 0) {
                s.s.handle_frame(s.t, Frame { version: 2, nv: keepalive().into(), payload: None });
            }
            s.s.handle_timeout(s.t);
            s.poll();
            s.sent.retain(|m| *m != Message::Alive);
            told.extend(s.sent.drain(..).map(|m| (s.t, m)));
        }
        assert!(told.iter().all(|(_, m)| *m == Message::Busy(7)), "{told:?}");
        assert!(told[0].0 < Duration::from_secs(1), "the shortest timeout");
        assert!(told.windows(2).all(|pair| pair[1].0 - pair[0].0 < Duration::from_secs(1)));
        let last = told.last().unwrap().0;
        assert!(last > Duration::from_secs(50) && last <= Duration::from_secs(60), "{last:?}");
    }
}

fn keepalive() -> Vec<u8> {
    Message::Keepalive.encode().0.as_bytes().to_vec()
}

#[test]
fn complete_before_a_connected_secondary_knows_that_it_lacks_it() {
    // hast-model found it: the link breaks and is back while the local disk takes its time
    let mut h = H::in_step();
    h.policy = Box::new(|op| if is_data(op) { None } else { Some(Ok(())) });
    h.w(1, 3);
    h.meet_again();
    h.answer(1, 1, SyncSource::Primary, Some(vec![0; 512]));
    assert!(h.p.status().complete);
    h.policy = Box::new(|_| Some(Ok(())));
    h.pump();
    assert_eq!(
        h.result(1),
        None,
        "complete, and a secondary that is connected does not know that it lacks it"
    );
    h.serve_all(|_| Some(None));
    assert_eq!(h.result(1), Some(Ok(None)));
}

#[test]
fn acknowledged_after_the_only_holder_went_away_while_that_was_written_down() {
    // hast-model found it
    let mut h = H::in_step();
    h.policy = Box::new(|op| match op {
        DiskOp::Write { offset, .. } if *offset >= DATA => Some(Err(Errno::EIO)),
        DiskOp::Write { offset, .. } if *offset < 4096 => None,
        _ => Some(Ok(())),
    });
    h.w(1, 3);
    h.serve_all(|m| match m {
        Message::Request(r) if r.command == Command::Write => Some(None),
        _ => None,
    });
    assert_eq!(h.result(1), None, "the metadata does not say yet where it lies");
    h.p.handle_lost(h.t, "gone");
    h.pump();
    h.policy = Box::new(|_| Some(Ok(())));
    h.pump();
    assert!(!matches!(h.result(1), Some(Ok(_))), "acknowledged, and nobody here knows of a node that has it");
}

#[test]
fn a_target_keeps_what_it_has_written_when_the_link_breaks() {
    // hast-model found it: the source loses power, and with it what both nodes had stored
    let mut h = H::target(&[2]);
    let write = |m: &Message| matches!(m, Message::Request(r) if r.command == Command::Write);
    h.req(1, Op::Write { offset: 9 * u64::from(ES), data: Buffer::from(vec![1; ES as usize]) });
    h.serve_all(|m| Some(None).filter(|_| write(m) || is(Command::Flush)(m)));
    assert_eq!(h.result(1), Some(Ok(None)));
    h.meet_again();
    h.answer(6, 3, SyncSource::Secondary, Some(vec![0; 512]));
    h.serve_all(|m| Some(None).filter(|_| matches!(m, Message::Mark(_))));
    h.req(2, Op::Read { offset: 9 * u64::from(ES), length: 512 });
    h.serve_all(|_| Some(None));
    assert_eq!(h.result(2), Some(Ok(Some(Buffer::from(vec![1; 512])))), "an older copy is read");
}
