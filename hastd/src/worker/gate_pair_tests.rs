//! Two connected workers, the primary's over a fake kernel: direct reads.

use super::*;

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};

use hast_engine::{Event, Side};
use hast_ggate::Change;
use hast_net::frame::{self, Frame, Limits, Receiver};
use hast_net::handshake::{Extensions, FirstAnswer, FirstHello, SecondHello};

use crate::ipc::ToSupervisor;

/// Two workers, and this test for both supervisors.
struct Pair {
    _directory: tempfile::TempDir,
    a: Disk,
    b: Disk,
    kernel: FakeKernel,
    primary: Option<Worker>,
    secondary: Option<Worker>,
    half: Option<(FirstAnswer, TcpStream)>,
    sockets: Vec<TcpStream>,
    reachable: bool,
    events: Vec<Event>,
}

impl Pair {
    fn new() -> Pair {
        let directory = tempfile::tempdir().unwrap();
        let (a, b) = (Disk::create(directory.path(), "a"), Disk::create(directory.path(), "b"));
        let kernel = FakeKernel::new();
        kernel.add_provider(a.path.to_str().unwrap());
        let mut pair = Pair {
            _directory: directory,
            a,
            b,
            kernel,
            primary: None,
            secondary: None,
            half: None,
            sockets: Vec::new(),
            reachable: true,
            events: Vec::new(),
        };
        pair.start_primary();
        pair
    }

    fn start_primary(&mut self) -> Arc<Process> {
        let process = Arc::new(self.kernel.process());
        let kind = StartKind::Primary { nbd: None, gate: None };
        let resource = self.a.resource("tcp4://127.0.0.1");
        self.primary = Some(Worker::start(resource, kind, Some(process.clone())).unwrap());
        process
    }

    /// Does what supervisors do until `done`.
    fn until(&mut self, what: &str, done: impl Fn(&Pair) -> bool) {
        let give_up = Instant::now() + PATIENCE;
        while !done(self) {
            assert!(Instant::now() < give_up, "waited in vain for {what}");
            while let Some(Ok(Some(message))) =
                self.primary.as_ref().map(|worker| worker.channel.recv_from_worker())
            {
                match message {
                    ToSupervisor::Connect { side, id } => self.connect(side, id),
                    ToSupervisor::Event { event, .. } => self.events.push(event),
                    ToSupervisor::Begun
                    | ToSupervisor::Detached(_)
                    | ToSupervisor::ClientLost
                    | ToSupervisor::Cancel { .. }
                    | ToSupervisor::Status { .. } => {}
                }
            }
            thread::sleep(Duration::from_millis(2));
        }
    }

    fn connect(&mut self, side: Side, id: u32) {
        let primary = self.primary.as_ref().unwrap();
        if !self.reachable || (side == Side::In && self.half.is_none()) {
            let error = "Connection refused".to_owned();
            return primary.tell(ToWorker::ConnectFailed { side, id, error });
        }
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let ours = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (theirs, _) = listener.accept().unwrap();
        theirs.set_read_timeout(Some(PATIENCE)).unwrap();
        primary.tell(ToWorker::Connected { side, id, socket: ours.into() });
        self.sockets.push(theirs.try_clone().unwrap());
        let frame = read_frame(&theirs);
        let list = frame.list().unwrap();
        match side {
            Side::Out => {
                let hello = FirstHello::decode(&list).unwrap();
                if let Some(mut old) = self.secondary.take() {
                    old.stop();
                }
                let ext = hello.ext.intersection(Extensions::ALL);
                let answer = FirstAnswer { version: hello.negotiated(), token: [7; 16], ext };
                (&theirs).write_all(&frame::encode(2, answer.encode().as_bytes()).unwrap()).unwrap();
                self.half = Some((answer, theirs));
            }
            Side::In => {
                let (answer, out) = self.half.take().unwrap();
                let hello = SecondHello::decode(&list).unwrap();
                let FirstAnswer { version, ext, .. } = answer;
                let kind = StartKind::Secondary { out: out.into(), in_: theirs.into(), version, ext, hello };
                let resource = self.b.resource("tcp4://127.0.0.1");
                self.secondary = Some(Worker::start(resource, kind, None).unwrap());
            }
        }
    }

    fn cut(&mut self) {
        for socket in self.sockets.drain(..) {
            // Those of earlier connections are gone already.
            let _ = socket.shutdown(Shutdown::Both);
        }
        self.half = None;
    }

    fn until_direct(&mut self, direct: bool) {
        let what = if direct { "direct reads" } else { "the end of direct reads" };
        self.until(what, |pair| pair.kernel.reads_from(DEVICE).is_some() == direct);
    }

    fn run(&mut self, bio: Bio) -> Result<Vec<u8>, Errno> {
        let seq = self.kernel.submit(DEVICE, bio).unwrap();
        let ended = std::cell::RefCell::new(None);
        self.until("the end of a request", |pair| {
            *ended.borrow_mut() = pair.kernel.wait(DEVICE, seq, Duration::from_millis(1));
            ended.borrow().is_some()
        });
        ended.into_inner().unwrap()
    }
}

fn read_frame(mut stream: &TcpStream) -> Frame {
    let mut receiver = Receiver::new(Limits::PEER, Pool::new());
    loop {
        if let Some(frame) = receiver.next_frame() {
            return frame;
        }
        let n = stream.read(receiver.space()).unwrap();
        assert!(n > 0, "the worker closed the connection");
        receiver.advance(n).unwrap();
    }
}

/// L17: on while nothing differs, off from the moment that something does, and off for a successor until it
/// knows better.
#[test]
fn the_kernel_reads_by_itself_only_while_the_nodes_are_in_step() {
    let mut pair = Pair::new();
    pair.until_direct(true);
    let (path, offset) = pair.kernel.reads_from(DEVICE).unwrap();
    assert_eq!((Path::new(&path), offset), (&*pair.a.path, pair.a.localoff));

    // Reads that the kernel serves see what was acknowledged.
    for round in 0..20_u64 {
        let data = pattern(round, 4096);
        assert_eq!(pair.run(Bio::write(round as i64 * 4096, data.clone())), Ok(Vec::new()));
        assert!(pair.run(Bio::read(round as i64 * 4096, 4096)) == Ok(data));
    }
    assert!(pair.kernel.direct_reads(DEVICE) > 0);

    // Without the other node they come here.
    pair.reachable = false;
    pair.cut();
    pair.until("the loss of the connection", |pair| pair.events.contains(&Event::Disconnect));
    assert_eq!(pair.run(Bio::write(0, pattern(50, 4096))), Ok(Vec::new()));
    assert_eq!(pair.kernel.reads_from(DEVICE), None, "not in step, and yet a write was acknowledged");
    assert!(pair.run(Bio::read(0, 4096)) == Ok(pattern(50, 4096)));

    // A new worker does not allow them until it is in step itself.
    let calls = pair.kernel.calls().len();
    assert_eq!(pair.primary.take().unwrap().stop(), 0);
    let process = pair.start_primary();
    assert_eq!(pair.run(Bio::write(0, pattern(77, 4096))), Ok(Vec::new()));
    assert_eq!(pair.kernel.reads_from(DEVICE), None);
    assert!(pair.run(Bio::read(0, 4096)) == Ok(pattern(77, 4096)));
    let later = &pair.kernel.calls()[calls..];
    assert!(!later.iter().any(|call| matches!(call, Call::Modify(Change::ReadFrom { .. }))));

    // In step again, on again.
    pair.reachable = true;
    pair.until_direct(true);
    assert!(pair.b.data(0, 4096) == pattern(77, 4096));

    // Killed while they are on: the kernel reads on, and no write is acknowledged meanwhile.
    process.kill();
    pair.primary.take().unwrap().exit_code();
    assert!(pair.kernel.reads_from(DEVICE).is_some());
    let write = pair.kernel.submit(DEVICE, Bio::write(0, pattern(78, 4096))).unwrap();
    assert_eq!(pair.kernel.wait(DEVICE, write, Duration::ZERO), None);
    pair.cut();
    pair.reachable = false;
    pair.start_primary();
    pair.until("the write", |pair| pair.kernel.wait(DEVICE, write, Duration::from_millis(1)).is_some());
    assert_eq!(pair.kernel.reads_from(DEVICE), None);
    assert!(pair.run(Bio::read(0, 4096)) == Ok(pattern(78, 4096)));
    assert_eq!(pair.primary.take().unwrap().stop(), 0);
}
