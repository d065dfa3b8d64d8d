//! Two connected workers, the primary's over a fake kernel: direct reads.

use super::*;

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};

use hast_engine::{Event, Side};
use hast_ggate::Change;
use hast_net::frame::{self, Frame, Limits, Receiver};
use hast_net::handshake::{Extensions, FirstAnswer, FirstHello, SecondHello};

/// Two workers, and this test for both supervisors.
struct Pair {
    _directory: tempfile::TempDir,
    a: Disk,
    b: Disk,
    kernel: FakeKernel,
    primary: Option<Worker>,
    /// What the primary is for its kernel.
    process: Option<Arc<Process>>,
    secondary: Option<Worker>,
    half: Option<(FirstAnswer, TcpStream)>,
    sockets: Vec<TcpStream>,
    reachable: bool,
    events: Vec<Event>,
    /// The primary's device is to be destroyed.
    discards: bool,
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
            process: None,
            secondary: None,
            half: None,
            sockets: Vec::new(),
            reachable: true,
            events: Vec::new(),
            discards: false,
        };
        pair.start_primary();
        pair
    }

    fn start_primary(&mut self) -> Arc<Process> {
        self.start_primary_of(&self.kernel.clone(), self.a.resource("tcp4://127.0.0.1"), true)
    }

    fn start_primary_of(&mut self, kernel: &FakeKernel, resource: Resource, served: bool) -> Arc<Process> {
        let process = Arc::new(kernel.process());
        let kind = StartKind::Primary { nbd: None, gate: None, served, left_behind: false };
        let gate = UsedGate { kernel: process.clone(), owner: OWNER.into() };
        self.primary = Some(Worker::of(resource, kind, Some(gate)).unwrap());
        self.process = Some(process.clone());
        process
    }

    /// Ends it in order, with all threads that wait in the kernel.
    fn stop_primary(&mut self) {
        assert_eq!(self.primary.take().unwrap().stop(), 0);
        self.process.take().unwrap().kill();
    }

    /// The hastd of node a has died, and its worker has left the device behind.
    fn orphan_primary(&mut self) {
        let mut worker = self.primary.take().unwrap();
        worker.orphan();
        assert_eq!(worker.exit_code(), 0);
        self.process.take().unwrap().kill();
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
                    ToSupervisor::DiscardDevice => self.discards = true,
                    ToSupervisor::Begun
                    | ToSupervisor::Served
                    | ToSupervisor::Detached(_)
                    | ToSupervisor::ClientLost
                    | ToSupervisor::Connection { .. }
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

    /// The primary has its device destroyed, and ends for a successor.
    fn until_discarded(&mut self) {
        self.until("the device to be given up", |pair| pair.discards);
        assert_eq!(self.primary.take().unwrap().exit_code(), 75);
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
    pair.stop_primary();
    // The supervisor's part.
    pair.kernel.process().destroy(&Which::Name(DEVICE.into())).unwrap();
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
    pair.stop_primary();
}

/// A device that was left behind is not read by the kernel; the next hastd serves what waits there if the other node has not
/// been written since. If it has, nothing of that reaches a disk.
#[test]
fn what_waits_in_a_device_that_was_left_behind_is_not_written_over_what_is_newer() {
    for newer in [false, true] {
        let mut pair = Pair::new();
        pair.until_direct(true);
        assert_eq!(pair.run(Bio::write(0, pattern(1, 4096))), Ok(Vec::new()));
        pair.orphan_primary();
        assert_eq!(pair.kernel.reads_from(DEVICE), None);
        let (read, write) = (Bio::read(0, 4096), Bio::write(0, pattern(2, 4096)));
        let [read, write] = [read, write].map(|bio| pair.kernel.submit(DEVICE, bio).unwrap());
        pair.secondary.take().unwrap().exit_code();

        if newer {
            // The other node becomes primary and is written.
            let kernel = FakeKernel::new();
            pair.reachable = false;
            pair.start_primary_of(&kernel, pair.b.resource("tcp4://127.0.0.1"), true);
            let request = kernel.submit(DEVICE, Bio::write(0, pattern(3, 4096))).unwrap();
            let ended = |_: &Pair| kernel.wait(DEVICE, request, Duration::from_millis(1)).is_some();
            pair.until("the write on the other node", ended);
            pair.stop_primary();
            pair.reachable = true;
        }

        let device = pair.kernel.clone();
        pair.start_primary_of(&device, pair.a.resource("tcp4://127.0.0.1"), false);
        if newer {
            pair.until_discarded();
            let (waiting, taken) = device.queues(DEVICE);
            assert_eq!(waiting + taken, 2, "neither was answered");
            // The supervisor's part.
            device.process().destroy(&Which::Name(DEVICE.into())).unwrap();
            pair.start_primary_of(&device, pair.a.resource("tcp4://127.0.0.1"), false);
        } else {
            for request in [read, write] {
                let ended = |_: &Pair| device.wait(DEVICE, request, Duration::from_millis(1)).is_some();
                pair.until("what has waited", ended);
            }
        }
        let holds = pattern(if newer { 3 } else { 2 }, 4096);
        assert!(pair.run(Bio::read(0, 4096)) == Ok(holds.clone()), "{newer}");
        let both = |pair: &Pair| pair.a.data(0, 4096) == holds && pair.b.data(0, 4096) == holds;
        pair.until("both disks to hold that", both);
        pair.stop_primary();
    }
}

/// L17: from a device whose direct reads cannot be switched off the kernel may go on reading what is old: its worker ends, and
/// acknowledges nothing any more.
#[test]
fn a_device_whose_direct_reads_cannot_be_switched_off_is_not_served() {
    let mut pair = Pair::new();
    pair.until_direct(true);
    pair.kernel.refuse_modify(Some(Errno::EBUSY));
    pair.reachable = false;
    pair.cut();
    let write = pair.kernel.submit(DEVICE, Bio::write(0, pattern(1, 4096))).unwrap();
    pair.until("the end of the worker", |pair| pair.primary.as_ref().unwrap().has_ended());
    assert_eq!(pair.primary.take().unwrap().exit_code(), 71);
    assert_eq!(pair.kernel.wait(DEVICE, write, Duration::ZERO), None);
}

/// A device that outlived its hastd, and a time as secondary: what waits there is older than what has come since.
#[test]
fn what_waits_in_a_device_is_not_served_by_a_node_that_was_secondary_since() {
    let mut pair = Pair::new();
    pair.until_direct(true);
    assert_eq!(pair.run(Bio::write(0, pattern(1, 4096))), Ok(Vec::new()));
    pair.orphan_primary();
    let device = pair.kernel.clone();
    let write = device.submit(DEVICE, Bio::write(0, pattern(2, 4096))).unwrap();
    pair.secondary.take().unwrap().exit_code();

    // The nodes change their roles, and change them back.
    std::mem::swap(&mut pair.a, &mut pair.b);
    let other = FakeKernel::new();
    pair.start_primary_of(&other, pair.a.resource("tcp4://127.0.0.1"), true);
    let request = other.submit(DEVICE, Bio::write(0, pattern(3, 4096))).unwrap();
    let ended = |_: &Pair| other.wait(DEVICE, request, Duration::from_millis(1)).is_some();
    pair.until("the write", ended);
    pair.stop_primary();
    pair.secondary.take().unwrap().exit_code();
    std::mem::swap(&mut pair.a, &mut pair.b);

    pair.start_primary_of(&device, pair.a.resource("tcp4://127.0.0.1"), false);
    pair.until_discarded();
    assert_eq!(device.wait(DEVICE, write, Duration::ZERO), None);
    assert!(pair.a.data(0, 4096) == pattern(3, 4096) && pair.b.data(0, 4096) == pattern(3, 4096));
}

/// A file system takes ENXIO for the loss of its disk, and anything else for a bad sector beside which it goes on.
#[test]
fn what_is_not_done_when_the_role_ends_fails_with_the_device() {
    let mut pair = Pair::new();
    // The other node is not there yet, and nobody says that it does not come.
    let write = pair.kernel.submit(DEVICE, Bio::write(0, pattern(1, 4096))).unwrap();
    wait_for("the worker to take it", || (pair.kernel.queues(DEVICE) == (0, 1)).then_some(()));
    pair.stop_primary();
    assert_eq!(pair.kernel.wait(DEVICE, write, Duration::ZERO), Some(Err(Errno::ENXIO)));
}
