//! A provider, a worker process, and a pair of them with the test as both supervisors.

use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use hast_conf::{KernelDevice, Resource};
use hast_engine::{Event, Side};
use hast_format::layout::Layout;
use hast_format::metadata::{Metadata, Role};
use hast_nbd::client::Client;
use hast_net::Replication;
use hast_net::address::Address;
use hast_net::buffer::Pool;
use hast_net::control::WorkerStatus;
use hast_net::frame::{self, Frame, Limits, Receiver};
use hast_net::handshake::{Extensions, FirstAnswer, FirstHello, SecondHello};
use hast_net::payload::{Checksum, Compression};
use hast_provider::Provider;
use hastd::ipc::{Channel, Start, StartKind, ToSupervisor, ToWorker};

/// Long enough for a machine under load.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// The resource's name.
pub const NAME: &str = "test";
/// Bytes of a provider.
pub const MEDIA: u64 = 16 << 20;
pub const EXTENT: u32 = 128 << 10;

/// Variables of an environment, with their values.
pub type Variables = &'static [(&'static str, &'static str)];

/// Waits until `found` finds something.
pub fn wait_for<T>(what: &str, mut found: impl FnMut() -> Option<T>) -> T {
    let give_up = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = found() {
            return found;
        }
        assert!(Instant::now() < give_up, "waited in vain for {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// Bytes that depend on a seed and on where they are.
pub fn pattern(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

/// A file that has been through `hastctl create`.
#[derive(Clone)]
pub struct Disk {
    pub path: PathBuf,
}

impl Disk {
    pub fn create(directory: &Path, name: &str) -> Disk {
        let path = directory.join(name);
        File::create(&path).unwrap().set_len(MEDIA).unwrap();
        Disk::initialize(&path);
        Disk { path }
    }

    /// Writes the metadata of a new resource, and leaves the data area as it is.
    pub fn initialize(path: &Path) {
        let layout = Layout::create(MEDIA, 512, EXTENT).unwrap();
        let metadata = Metadata::created(NAME, &layout, 4);
        Provider::open(path, true).unwrap().initialize(&metadata, &layout).unwrap();
    }

    /// Open and locked, as the supervisor passes it on.
    pub fn open(&self) -> OwnedFd {
        let provider = Provider::open(&self.path, true).unwrap();
        // The process that had it before may just be ending.
        wait_for("the lock on the provider", || provider.lock().ok());
        provider.into_file().into()
    }

    pub fn metadata(&self) -> Metadata {
        Provider::open(&self.path, false).unwrap().read_metadata().unwrap()
    }

    /// The data area.
    pub fn data(&self) -> Vec<u8> {
        let metadata = self.metadata();
        let mut data = vec![0; metadata.datasize as usize];
        File::open(&self.path).unwrap().read_exact_at(&mut data, metadata.localoff).unwrap();
        data
    }

    /// Extents whose bits are set on disk.
    pub fn dirty_extents(&self) -> u32 {
        let provider = Provider::open(&self.path, false).unwrap();
        let metadata = provider.read_metadata().unwrap();
        let layout = Layout::open(&metadata, provider.mediasize(), provider.sectorsize()).unwrap();
        provider.read_map(&layout).unwrap().iter().map(|byte| byte.count_ones()).sum()
    }
}

/// The resource of a node whose disk is `disk`.
pub fn resource(disk: &Disk) -> Resource {
    Resource {
        name: NAME.into(),
        provname: NAME.into(),
        localpath: disk.path.clone(),
        remote: Some(Address::parse("tcp4://127.0.0.1").unwrap()),
        source: None,
        replication: Replication::Memsync,
        checksum: Checksum::None,
        compression: Compression::Hole,
        timeout: 20,
        peer_timeout: 5,
        device: KernelDevice::None,
        direct_reads: false,
        exec: None,
        metaflush: true,
    }
}

/// A worker process and the supervisor's end of its channel.
pub struct Worker {
    pub child: Child,
    pub channel: Option<Channel>,
}

impl Worker {
    pub fn spawn(resource: &Resource, provider: OwnedFd, kind: StartKind) -> Worker {
        Worker::spawn_in(&[], resource, provider, kind)
    }

    /// With these variables in its environment.
    pub fn spawn_in(
        environment: &[(&str, &str)],
        resource: &Resource,
        provider: OwnedFd,
        kind: StartKind,
    ) -> Worker {
        let (channel, theirs) = Channel::pair().unwrap();
        let role = if matches!(kind, StartKind::Primary { .. }) { "primary" } else { "secondary" };
        let child = Command::new(env!("CARGO_BIN_EXE_hastd"))
            .arg0(format!("hastd: {} ({role})", resource.name))
            .env("HASTD_WORKER", "1")
            .envs(environment.iter().copied())
            .stdin(Stdio::from(theirs))
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let worker = Worker { child, channel: Some(channel) };
        worker.tell(ToWorker::Start(Box::new(Start {
            resource: resource.clone(),
            debug: 0,
            background: false,
            drop_privileges: false,
            boot: hastd::boot_id(),
            forced: false,
            provider,
            kind,
            unsure: false,
            detached: None,
        })));
        worker
    }

    pub fn tell(&self, message: ToWorker) {
        // A worker that has just ended hears nothing; its exit code is looked at.
        if let Some(channel) = &self.channel {
            let _ = channel.send_to_worker(message);
        }
    }

    /// What it says, if it says something now.
    pub fn hear(&self) -> Option<ToSupervisor> {
        match self.channel.as_ref()?.recv_from_worker() {
            Ok(message) => message,
            Err(error) if error.kind() == ErrorKind::WouldBlock => None,
            Err(error) => panic!("the channel is broken: {error}"),
        }
    }

    pub fn hear_next(&self) -> ToSupervisor {
        wait_for("a message from the worker", || self.hear())
    }

    /// The most memory that it has had resident, in bytes; None where the system does not tell.
    pub fn peak_memory(&self) -> Option<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).ok()?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
        Some(line.trim().strip_suffix(" kB")?.parse::<u64>().ok()? << 10)
    }

    /// Waits for its end.
    pub fn exit_code(&mut self) -> Option<i32> {
        wait_for("the worker's end", || self.child.try_wait().unwrap()).code()
    }

    pub fn stop(&mut self) -> Option<i32> {
        self.tell(ToWorker::Stop);
        self.exit_code()
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A listening socket for NBD clients.
pub struct Device {
    pub path: PathBuf,
    listener: UnixListener,
}

impl Device {
    pub fn new(directory: &Path) -> Device {
        let path = directory.join("nbd.sock");
        Device { listener: UnixListener::bind(&path).unwrap(), path }
    }

    pub fn kind(&self) -> StartKind {
        StartKind::Primary {
            nbd: Some(self.listener.try_clone().unwrap().into()),
            gate: None,
            served: true,
            left_behind: false,
        }
    }

    pub fn connect(&self) -> Client {
        let mut client = Client::connect(&self.path, NAME).unwrap();
        client.set_timeout(Some(PATIENCE)).unwrap();
        client
    }
}

/// A frame from a blocking socket.
pub fn read_frame(mut stream: &TcpStream, receiver: &mut Receiver) -> std::io::Result<Frame> {
    loop {
        if let Some(frame) = receiver.next_frame() {
            return Ok(frame);
        }
        match stream.read(receiver.space())? {
            0 => return Err(ErrorKind::UnexpectedEof.into()),
            n => receiver.advance(n).map_err(std::io::Error::other)?,
        }
    }
}

pub fn receiver() -> Receiver {
    Receiver::new(Limits::PEER, Pool::new())
}

/// Two connected TCP sockets.
pub fn loopback() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let ours = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (theirs, _) = listener.accept().unwrap();
    for stream in [&ours, &theirs] {
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
    }
    (ours, theirs)
}

/// Both nodes of a resource, connected by a thread that is both supervisors.
pub struct Pair {
    _directory: tempfile::TempDir,
    pub a: Disk,
    a_environment: Variables,
    pub b: Disk,
    pub device: Device,
    pub resource: Resource,
    board: Arc<Mutex<Board>>,
    ended: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

/// What the thread works on.
pub struct Board {
    pub primary: Option<Worker>,
    pub secondary: Option<Worker>,
    /// Whether connections can be made.
    pub reachable: bool,
    pub events: Vec<(Role, Event)>,
    pub status: Option<WorkerStatus>,
    /// Exit codes of secondaries, in order.
    pub secondary_exits: Vec<Option<i32>>,
    b: Disk,
    b_resource: Resource,
    b_environment: Variables,
    half: Option<(FirstAnswer, TcpStream)>,
    sockets: Vec<TcpStream>,
}

impl Pair {
    /// `change` may change the configuration of both nodes.
    pub fn start(change: impl FnOnce(&mut Resource)) -> Pair {
        Pair::start_in([&[], &[]], change)
    }

    /// With these variables in the environment of primaries and of secondaries.
    pub fn start_in(
        [a_environment, b_environment]: [Variables; 2],
        change: impl FnOnce(&mut Resource),
    ) -> Pair {
        let directory = tempfile::tempdir().unwrap();
        let (a, b) = (Disk::create(directory.path(), "a"), Disk::create(directory.path(), "b"));
        let device = Device::new(directory.path());
        let mut resource = resource(&a);
        change(&mut resource);
        let board = Board {
            primary: None,
            secondary: None,
            reachable: true,
            events: Vec::new(),
            status: None,
            secondary_exits: Vec::new(),
            b: b.clone(),
            b_resource: Resource { localpath: b.path.clone(), ..resource.clone() },
            b_environment,
            half: None,
            sockets: Vec::new(),
        };
        let board = Arc::new(Mutex::new(board));
        let ended = Arc::new(AtomicBool::new(false));
        let (shared, end) = (Arc::clone(&board), Arc::clone(&ended));
        let thread = thread::spawn(move || {
            while !end.load(Ordering::Relaxed) {
                shared.lock().unwrap().turn();
                thread::sleep(Duration::from_millis(2));
            }
        });
        let thread = Some(thread);
        let pair =
            Pair { _directory: directory, a, a_environment, b, device, resource, board, ended, thread };
        pair.start_primary();
        pair
    }

    pub fn start_primary(&self) {
        let (provider, kind) = (self.a.open(), self.device.kind());
        let worker = Worker::spawn_in(self.a_environment, &self.resource, provider, kind);
        self.board().primary = Some(worker);
    }

    pub fn board(&self) -> MutexGuard<'_, Board> {
        self.board.lock().unwrap()
    }

    pub fn status(&self) -> WorkerStatus {
        let mut board = self.board();
        board.status = None;
        board.primary.as_ref().unwrap().tell(ToWorker::Status { id: 7 });
        drop(board);
        wait_for("the primary's status", || self.board().status.clone())
    }

    pub fn wait_complete(&self) {
        wait_for("a connected pair", || self.status().complete.then_some(()));
    }

    /// Waits until the nodes are connected and nothing is left to copy.
    pub fn wait_in_step(&self) {
        wait_for("nodes in step", || {
            let status = self.status();
            (status.complete && status.dirty == 0).then_some(())
        });
    }

    /// Breaks every connection between the nodes.
    pub fn cut(&self) {
        self.board().cut();
    }

    /// Ends the secondary without a word.
    pub fn kill_secondary(&self) {
        self.let_go();
        self.board().secondary.as_mut().unwrap().child.kill().unwrap();
    }

    /// Closes the test's copies of the connections, so that they end with the workers'.
    pub fn let_go(&self) {
        self.board().sockets.clear();
    }

    /// Takes the primary out of the supervisor's hands.
    pub fn take_primary(&self) -> Worker {
        self.board().primary.take().unwrap()
    }

    /// Stops the primary and waits for both ends.
    pub fn stop(&self) -> Option<i32> {
        let code = self.take_primary().stop();
        wait_for("the secondary's end", || self.board().secondary.is_none().then_some(()));
        code
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
            && !thread::panicking()
        {
            panic!("the supervisors' thread failed");
        }
    }
}

impl Board {
    pub fn cut(&mut self) {
        for socket in self.sockets.drain(..) {
            // Those of earlier connections are gone already.
            let _ = socket.shutdown(Shutdown::Both);
        }
        self.half = None;
    }

    /// The processes of the primary and of the secondary.
    pub fn pids(&self) -> [u32; 2] {
        [&self.primary, &self.secondary].map(|worker| worker.as_ref().unwrap().child.id())
    }

    pub fn count(&self, role: Role, event: Event) -> usize {
        self.events.iter().filter(|seen| **seen == (role, event)).count()
    }

    fn turn(&mut self) {
        while let Some(message) = self.primary.as_ref().and_then(Worker::hear) {
            match message {
                ToSupervisor::Connect { side, id } => {
                    let answer = match self.connect(side) {
                        Some(socket) => ToWorker::Connected { side, id, socket: socket.into() },
                        None => ToWorker::ConnectFailed { side, id, error: "Connection refused".into() },
                    };
                    self.primary.as_ref().unwrap().tell(answer);
                    self.continue_handshake(side);
                }
                ToSupervisor::Cancel { .. }
                | ToSupervisor::Begun
                | ToSupervisor::Detached(_)
                | ToSupervisor::Served
                | ToSupervisor::DiscardDevice
                | ToSupervisor::Connection { .. }
                | ToSupervisor::ClientLost => {}
                ToSupervisor::Event { event, .. } => self.events.push((Role::Primary, event)),
                ToSupervisor::Status { status, .. } => self.status = Some(*status),
            }
        }
        while let Some(message) = self.secondary.as_ref().and_then(Worker::hear) {
            if let ToSupervisor::Event { event, .. } = message {
                self.events.push((Role::Secondary, event));
            }
        }
        let status = self.secondary.as_mut().and_then(|worker| worker.child.try_wait().unwrap());
        if let Some(status) = status {
            self.secondary_exits.push(status.code());
            self.secondary = None;
        }
    }

    /// The primary's end of a new connection. The other end is at the back of `sockets`.
    fn connect(&mut self, side: Side) -> Option<TcpStream> {
        if !self.reachable || (side == Side::In && self.half.is_none()) {
            return None;
        }
        let (ours, theirs) = loopback();
        self.sockets.push(theirs);
        Some(ours)
    }

    /// What the secondary's supervisor does with a connection that was just made.
    fn continue_handshake(&mut self, side: Side) {
        let Some(theirs) = self.sockets.last().filter(|_| self.reachable) else { return };
        let theirs = theirs.try_clone().unwrap();
        let Ok(frame) = read_frame(&theirs, &mut receiver()) else { return };
        let list = frame.list().unwrap();
        match side {
            Side::Out => {
                let hello = FirstHello::decode(&list).unwrap();
                assert_eq!(hello.resource, NAME);
                // A new primary's first step ends what an earlier one had.
                self.stop_secondary();
                let ext = hello.ext.intersection(Extensions::ALL);
                let answer = FirstAnswer { version: hello.negotiated(), token: [7; 16], ext };
                let bytes = frame::encode(2, answer.encode().as_bytes()).unwrap();
                let _ = (&theirs).write_all(&bytes);
                self.half = Some((answer, theirs));
            }
            Side::In => {
                let Some((answer, out)) = self.half.take() else { return };
                let hello = SecondHello::decode(&list).unwrap();
                assert_eq!(hello.token, answer.token);
                let kind = StartKind::Secondary {
                    out: out.into(),
                    in_: theirs.into(),
                    version: answer.version,
                    ext: answer.ext,
                    hello,
                };
                let worker = Worker::spawn_in(self.b_environment, &self.b_resource, self.b.open(), kind);
                self.secondary = Some(worker);
            }
        }
    }

    fn stop_secondary(&mut self) {
        if let Some(mut worker) = self.secondary.take() {
            let code = worker.stop();
            self.secondary_exits.push(code);
        }
    }
}
