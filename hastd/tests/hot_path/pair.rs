//! Two workers in this process, connected by the test as their supervisors, and a client of the device.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use hast_conf::{KernelDevice, Resource};
use hast_engine::Side;
use hast_format::layout::Layout;
use hast_format::metadata::Metadata;
use hast_net::Replication;
use hast_net::address::Address;
use hast_net::buffer::Pool;
use hast_net::frame::{self, Frame, Limits, Receiver};
use hast_net::handshake::{Extensions, FirstAnswer, FirstHello, SecondHello};
use hast_net::payload::{Checksum, Compression};
use hast_provider::Provider;
use hastd::ipc::{Channel, Start, StartKind, ToSupervisor, ToWorker};

/// Bytes of an extent.
pub(crate) const EXTENT: u32 = 2 << 20;
/// Bytes of an NBD request without data.
pub(crate) const REQUEST: usize = 28;
/// Bytes of an NBD reply without data.
pub(crate) const REPLY: usize = 16;

const MEDIA: u64 = 64 << 20;
const NAME: &str = "test";
const PATIENCE: Duration = Duration::from_secs(60);

/// A connected pair in step.
pub(crate) struct Pair {
    /// Past the negotiation: requests may be sent.
    pub(crate) client: UnixStream,
    primary: Worker,
    secondary: Worker,
    _directory: tempfile::TempDir,
}

impl Pair {
    pub(crate) fn start() -> Pair {
        let directory = tempfile::tempdir().unwrap();
        let (a, b) = (create(directory.path(), "a"), create(directory.path(), "b"));
        let path = directory.path().join("nbd.sock");
        let nbd = UnixListener::bind(&path).unwrap();
        let primary = Worker::start(
            &a,
            StartKind::Primary { nbd: Some(nbd.into()), gate: None, served: true, left_behind: false },
        );
        let secondary = connect(&primary, &b);
        primary.wait_in_step();
        let mut client = UnixStream::connect(&path).unwrap();
        client.set_read_timeout(Some(PATIENCE)).unwrap();
        negotiate(&mut client);
        Pair { client, primary, secondary, _directory: directory }
    }

    pub(crate) fn stop(self) {
        let Pair { client, primary, secondary, .. } = self;
        drop(client);
        primary.tell(ToWorker::Stop);
        assert_eq!(primary.thread.join().unwrap(), 0);
        assert_eq!(secondary.thread.join().unwrap(), 75);
    }
}

fn create(directory: &Path, name: &str) -> PathBuf {
    let path = directory.join(name);
    File::create(&path).unwrap().set_len(MEDIA).unwrap();
    let layout = Layout::create(MEDIA, 512, EXTENT).unwrap();
    let metadata = Metadata::created(NAME, &layout, 64);
    Provider::open(&path, true).unwrap().initialize(&metadata, &layout).unwrap();
    path
}

struct Worker {
    channel: Channel,
    thread: JoinHandle<i32>,
}

impl Worker {
    fn start(disk: &Path, kind: StartKind) -> Worker {
        let resource = Resource {
            name: NAME.into(),
            provname: NAME.into(),
            localpath: disk.into(),
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
        };
        let (channel, theirs): (Channel, OwnedFd) = Channel::pair().unwrap();
        let thread = thread::spawn(|| hastd::worker::run(Channel::new(theirs).unwrap()));
        let provider = Provider::open(disk, true).unwrap();
        provider.lock().unwrap();
        let worker = Worker { channel, thread };
        worker.tell(ToWorker::Start(Box::new(Start {
            resource,
            debug: 0,
            background: false,
            drop_privileges: false,
            boot: hastd::boot_id(),
            forced: false,
            provider: provider.into_file().into(),
            kind,
            unsure: false,
            detached: None,
        })));
        worker
    }

    fn tell(&self, message: ToWorker) {
        self.channel.send_to_worker(message).unwrap();
    }

    /// Waits until it has said something that `find` finds something in.
    fn wait_for<T>(&self, mut find: impl FnMut(ToSupervisor) -> Option<T>) -> T {
        let give_up = Instant::now() + PATIENCE;
        loop {
            match self.channel.recv_from_worker() {
                Ok(Some(message)) => {
                    if let Some(found) = find(message) {
                        return found;
                    }
                }
                Ok(None) => panic!("the worker has ended"),
                Err(_) => thread::sleep(Duration::from_millis(2)),
            }
            assert!(Instant::now() < give_up, "waited in vain");
        }
    }

    fn wait_in_step(&self) {
        loop {
            self.tell(ToWorker::Status { id: 1 });
            let status = self.wait_for(|message| match message {
                ToSupervisor::Status { status, .. } => Some(status),
                _ => None,
            });
            if status.complete && status.dirty == 0 && !status.facts.synchronising {
                return;
            }
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Makes the connection that it asks for; gives the other end.
    fn give_connection(&self, wanted: Side) -> TcpStream {
        let (side, id) = self.wait_for(|message| match message {
            ToSupervisor::Connect { side, id } => Some((side, id)),
            _ => None,
        });
        assert_eq!(side, wanted);
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let ours = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (theirs, _) = listener.accept().unwrap();
        self.tell(ToWorker::Connected { side, id, socket: ours.into() });
        theirs
    }
}

/// The supervisors' part of the handshake; starts the secondary.
fn connect(primary: &Worker, disk: &Path) -> Worker {
    let out = primary.give_connection(Side::Out);
    let hello = FirstHello::decode(&read_frame(&out).list().unwrap()).unwrap();
    let ext = hello.ext.intersection(Extensions::ALL);
    let answer = FirstAnswer { version: hello.negotiated(), token: [7; 16], ext };
    (&out).write_all(&frame::encode(2, answer.encode().as_bytes()).unwrap()).unwrap();
    let in_ = primary.give_connection(Side::In);
    let hello = SecondHello::decode(&read_frame(&in_).list().unwrap()).unwrap();
    let FirstAnswer { version, ext, .. } = answer;
    Worker::start(disk, StartKind::Secondary { out: out.into(), in_: in_.into(), version, ext, hello })
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

/// NBD's fixed newstyle negotiation by hand, up to the first request; replies are simple ones.
fn negotiate(socket: &mut UnixStream) {
    let mut greeting = [0; 18];
    socket.read_exact(&mut greeting).unwrap();
    assert_eq!(greeting[..8], *b"NBDMAGIC");
    let mut go = 3_u32.to_be_bytes().to_vec();
    go.extend(b"IHAVEOPT");
    go.extend(7_u32.to_be_bytes());
    let name = u32::try_from(NAME.len()).unwrap();
    go.extend((name + 6).to_be_bytes());
    go.extend(name.to_be_bytes());
    go.extend(NAME.bytes());
    go.extend([0, 0]);
    socket.write_all(&go).unwrap();
    loop {
        let mut header = [0; 20];
        socket.read_exact(&mut header).unwrap();
        let number = |at: usize| u32::from_be_bytes(header[at..at + 4].try_into().unwrap());
        let mut data = vec![0; number(16) as usize];
        socket.read_exact(&mut data).unwrap();
        match number(12) {
            1 => return,
            3 => {}
            other => panic!("the server refuses: {other:#x}"),
        }
    }
}
