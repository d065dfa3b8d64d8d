//! Whole workers over a fake kernel, in this process: requests, and crashes at every call.

use super::*;

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use hast_conf::Resource;
use hast_format::layout::Layout;
use hast_format::metadata::Metadata;
use hast_ggate::fake::{Bio, Call, FakeKernel, Moment, Process};
use hast_ggate::{Which, abi};
use hast_provider::Provider;

use crate::ipc::{Channel, Start, StartKind, ToSupervisor, ToWorker};
use crate::worker::leader;
use crate::worker::reactor::Reactor;
use crate::worker::signals::Signals;
use crate::worker::start::{self, UsedGate};

const PATIENCE: Duration = Duration::from_secs(60);
const DEVICE: &str = "hast/disk0";
const MEDIA: u64 = 16 << 20;
const OWNER: &str = "hastd of a at ctl";

fn pattern(seed: u64, length: usize) -> Vec<u8> {
    (0..length as u64)
        .map(|i| (i / 512).wrapping_mul(31).wrapping_add(i).wrapping_add(seed * 7) as u8)
        .collect()
}

fn wait_for<T>(what: &str, mut found: impl FnMut() -> Option<T>) -> T {
    let give_up = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = found() {
            return found;
        }
        assert!(Instant::now() < give_up, "waited in vain for {what}");
        thread::sleep(Duration::from_millis(2));
    }
}

struct Disk {
    path: PathBuf,
    localoff: u64,
}

impl Disk {
    fn create(directory: &Path, name: &str) -> Disk {
        let path = directory.join(name);
        File::create(&path).unwrap().set_len(MEDIA).unwrap();
        let layout = Layout::create(MEDIA, 512, 128 << 10).unwrap();
        let metadata = Metadata::created("disk0", &layout, 4);
        Provider::open(&path, true).unwrap().initialize(&metadata, &layout).unwrap();
        Disk { path, localoff: layout.localoff() }
    }

    fn resource(&self, remote: &str) -> Resource {
        let text = format!(
            "resource disk0 {{ timeout 5 direct-reads on local {} on a {{ remote {remote} }} }}",
            self.path.display()
        );
        hast_conf::parse(&text, "test", &hast_conf::Node::named("a")).unwrap().resources.remove(0)
    }

    fn data(&self, offset: u64, length: usize) -> Vec<u8> {
        let mut data = vec![0; length];
        File::open(&self.path).unwrap().read_exact_at(&mut data, self.localoff + offset).unwrap();
        data
    }
}

/// A worker in a thread of this process, and the supervisor's end of its channel.
struct Worker {
    channel: Channel,
    thread: Option<JoinHandle<i32>>,
}

impl Worker {
    fn start(resource: Resource, kind: StartKind, gate: Option<Arc<dyn Gate>>) -> Result<Worker, i32> {
        Worker::of(resource, kind, gate.map(|kernel| UsedGate { kernel, owner: OWNER.into() }))
    }

    fn of(resource: Resource, kind: StartKind, gate: Option<UsedGate>) -> Result<Worker, i32> {
        let provider = Provider::open(&resource.localpath, true).unwrap().into_file().into();
        let start = Start {
            resource,
            debug: 0,
            background: false,
            drop_privileges: false,
            boot: [1; 16],
            forced: false,
            provider,
            kind,
            unsure: false,
            detached: None,
        };
        let started = start::open_with(start, gate).map_err(|error| error.code())?;
        let (channel, theirs) = Channel::pair().unwrap();
        let thread = thread::spawn(move || {
            let channel = Channel::new(theirs).unwrap();
            let reactor = Reactor::new(channel, Signals::catch().unwrap(), started).unwrap();
            leader::drive(reactor).unwrap()
        });
        Ok(Worker { channel, thread: Some(thread) })
    }

    fn tell(&self, message: ToWorker) {
        // One that has just ended hears nothing.
        let _ = self.channel.send_to_worker(message);
    }

    /// The supervisor dies.
    fn orphan(&mut self) {
        let (channel, _) = Channel::pair().unwrap();
        drop(mem::replace(&mut self.channel, channel));
    }

    fn has_ended(&self) -> bool {
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }

    fn exit_code(&mut self) -> i32 {
        let thread = self.thread.take().unwrap();
        wait_for("the worker's end", || thread.is_finished().then_some(()));
        thread.join().unwrap()
    }

    fn stop(&mut self) -> i32 {
        self.tell(ToWorker::Stop);
        self.exit_code()
    }
}

/// A primary without a secondary.
struct Alone {
    _directory: tempfile::TempDir,
    disk: Disk,
    kernel: FakeKernel,
}

impl Alone {
    fn new() -> Alone {
        let directory = tempfile::tempdir().unwrap();
        let disk = Disk::create(directory.path(), "a");
        Alone { disk, _directory: directory, kernel: FakeKernel::new() }
    }

    fn start(&self, process: &Arc<Process>) -> Result<Worker, i32> {
        let kind = StartKind::Primary { nbd: None, gate: None, served: true, left_behind: false };
        Worker::start(self.disk.resource("none"), kind, Some(process.clone()))
    }

    fn worker(&self) -> (Arc<Process>, Worker) {
        let process = Arc::new(self.kernel.process());
        let worker = self.start(&process).unwrap();
        (process, worker)
    }

    fn submit(&self, bio: Bio) -> usize {
        self.kernel.submit(DEVICE, bio).unwrap()
    }

    fn ended(&self, seq: usize) -> Result<Vec<u8>, Errno> {
        self.kernel.wait(DEVICE, seq, PATIENCE).expect("the request ends")
    }

    fn run(&self, bio: Bio) -> Result<Vec<u8>, Errno> {
        let seq = self.submit(bio);
        self.ended(seq)
    }
}

#[test]
fn requests_of_all_sizes_reach_the_disk_and_come_back() {
    let alone = Alone::new();
    let (_, mut worker) = alone.worker();
    let mut at = 0;
    for (seed, length) in [(1, 512), (2, 131_072), (3, 131_584), (4, 1 << 20)] {
        let data = pattern(seed, length);
        assert_eq!(alone.run(Bio::write(at, data.clone())), Ok(Vec::new()));
        assert!(alone.run(Bio::read(at, length as i64)) == Ok(data.clone()));
        assert!(alone.disk.data(at as u64, length) == data);
        at += length as i64;
    }
    assert_eq!(alone.run(Bio::plain(abi::BIO_FLUSH, 0, 0)), Ok(Vec::new()));
    assert_eq!(alone.run(Bio::read(0, 0)), Ok(Vec::new()));
    let deleted = alone.run(Bio::plain(abi::BIO_DELETE, 131_072, 262_144));
    assert!(matches!(deleted, Ok(_) | Err(Errno::EOPNOTSUPP)), "{deleted:?}");
    // X7: a command that nobody here knows.
    assert_eq!(alone.run(Bio::plain(abi::BIO_SPEEDUP, 0, 0)), Err(Errno::EOPNOTSUPP));
    assert!(alone.run(Bio::read(1 << 40, 512)).is_err());
    assert_eq!(worker.stop(), 0);
    assert!(!alone.kernel.exists(DEVICE));
}

/// The kernel never reads by itself.
fn nowhere() -> Source {
    Source { path: String::new(), size: 0, offset: 0, allowed: false }
}

/// `direct-reads` is off, then on, then off, while the nodes are in step.
#[test]
fn the_kernel_reads_by_itself_only_if_hast_conf_says_so() {
    let disk = tempfile::NamedTempFile::new().unwrap();
    disk.as_file().set_len(1 << 20).unwrap();
    let path = disk.path().to_str().unwrap().to_owned();
    let kernel = FakeKernel::new();
    kernel.add_provider(&path);
    let create = Create { name: DEVICE.into(), mediasize: 1 << 20, sectorsize: 512, info: String::new() };
    let source = Source { path: path.clone(), size: 1 << 20, offset: 0, allowed: false };
    let opened = Opened::open(Arc::new(kernel.process()), &create, source).unwrap();
    let mut server = Server::start(opened, Pool::new(), || {}).unwrap();
    server.direct_reads(true).unwrap();
    assert_eq!(kernel.reads_from(DEVICE), None);
    server.allow_direct_reads(true).unwrap();
    assert_eq!(kernel.reads_from(DEVICE), Some((path, 0)));
    server.allow_direct_reads(false).unwrap();
    assert_eq!(kernel.reads_from(DEVICE), None);
    server.direct_reads(false).unwrap();
    server.allow_direct_reads(true).unwrap();
    assert_eq!(kernel.reads_from(DEVICE), None, "the nodes are not in step");
    server.finish(false);
}

#[test]
fn what_a_disk_cannot_do_the_kernel_is_told() {
    let kernel = FakeKernel::new();
    let create = Create { name: DEVICE.into(), mediasize: 1 << 20, sectorsize: 512, info: String::new() };
    let opened = Opened::open(Arc::new(kernel.process()), &create, nowhere()).unwrap();
    let mut server = Server::start(opened, Pool::new(), || {}).unwrap();
    for command in [abi::BIO_DELETE, abi::BIO_FLUSH] {
        let seq = kernel.submit(DEVICE, Bio::plain(command, 0, 4096)).unwrap();
        let (id, op) = wait_for("the request", || server.next_request());
        assert_eq!(op == Op::Flush, command == abi::BIO_FLUSH);
        assert!(Server::owns(id));
        server.complete(id, Err(Errno::EOPNOTSUPP));
        assert_eq!(kernel.wait(DEVICE, seq, PATIENCE), Some(Err(Errno::EOPNOTSUPP)));
    }
    server.finish(false);
}

#[test]
fn an_error_of_one_piece_fails_its_request_once_all_pieces_are_back() {
    let kernel = FakeKernel::new();
    let create = Create { name: DEVICE.into(), mediasize: 1 << 20, sectorsize: 512, info: String::new() };
    let opened = Opened::open(Arc::new(kernel.process()), &create, nowhere()).unwrap();
    let mut server = Server::start(opened, Pool::new(), || {}).unwrap();
    let seq = kernel.submit(DEVICE, Bio::read(0, 400_384)).unwrap();
    let (first, _) = wait_for("the request", || server.next_request());
    let (second, _) = server.next_request().unwrap();
    server.complete(second, Err(Errno::EINTEGRITY));
    assert!(server.next_request().is_none(), "no more is asked after an error");
    assert_eq!(kernel.wait(DEVICE, seq, Duration::ZERO), None);
    server.complete(first, Ok(Some(Buffer::from(vec![0; 131_072]))));
    assert_eq!(kernel.wait(DEVICE, seq, PATIENCE), Some(Err(Errno::EINTEGRITY)));
    assert_eq!(server.in_flight(), 0);
    server.finish(false);
}

/// More than the worker takes at once, and more than one thread can hand over.
#[test]
fn what_the_worker_does_not_take_waits_in_the_kernel() {
    let kernel = FakeKernel::new();
    let create = Create { name: DEVICE.into(), mediasize: 1 << 20, sectorsize: 512, info: String::new() };
    let opened = Opened::open(Arc::new(kernel.process()), &create, nowhere()).unwrap();
    let mut server = Server::start(opened, Pool::new(), || {}).unwrap();
    let seqs: Vec<_> =
        (0..2 * MAX_TAKEN).map(|_| kernel.submit(DEVICE, Bio::read(0, 512)).unwrap()).collect();
    wait_for("as many as may be", || (lock(&server.shared.state).arrived.len() >= MAX_TAKEN).then_some(()));
    // Of two threads the one that took a request first need not hand it over first.
    for _ in &seqs {
        let (id, _) = wait_for("the request", || server.next_request());
        assert!(lock(&server.shared.state).taken < MAX_TAKEN + THREADS);
        server.complete(id, Ok(Some(Buffer::from(vec![1; 512]))));
    }
    for seq in seqs {
        assert!(kernel.wait(DEVICE, seq, PATIENCE) == Some(Ok(vec![1; 512])));
    }
    server.finish(false);
    assert!(server.threads.is_empty());
}

#[test]
fn a_stop_under_load_finishes_what_was_begun_and_fails_the_rest() {
    let alone = Alone::new();
    let (_, mut worker) = alone.worker();
    let seqs: Vec<_> =
        (0..200).map(|i| alone.submit(Bio::write(i * 4096, pattern(i as u64, 4096)))).collect();
    assert_eq!(alone.ended(seqs[0]), Ok(Vec::new()));
    assert_eq!(worker.stop(), 0);
    assert!(!alone.kernel.exists(DEVICE));
    assert!(alone.kernel.calls().contains(&Call::Destroy(Which::Unit(0))));
    assert!(alone.disk.data(0, 4096) == pattern(0, 4096));
}

/// Wherever a worker dies, the next one answers whatever it had not; nothing acknowledged is lost, and every
/// request ends once.
#[test]
fn a_successor_answers_everything_wherever_a_worker_dies() {
    const WRITES: i64 = 6;
    let mut died = 0;
    for moment in [Moment::Before, Moment::After] {
        for calls in 1..=18 {
            let alone = Alone::new();
            let process = Arc::new(alone.kernel.process());
            // The first calls make the device.
            process.kill_at(calls, moment);
            if let Ok(mut worker) = alone.start(&process) {
                let mut seqs = Vec::new();
                for i in 0..WRITES {
                    let Some(write) =
                        alone.kernel.submit(DEVICE, Bio::write(i * 8192, pattern(i as u64, 8192)))
                    else {
                        break;
                    };
                    seqs.push((write, Vec::new()));
                    let first = Bio::read(i * 8192, 512);
                    // Overlapping requests in flight have no order; this one may come before the write.
                    if alone.kernel.wait(DEVICE, write, Duration::from_millis(20)).is_some() {
                        seqs.pop();
                        seqs.push((alone.submit(first), pattern(i as u64, 512)));
                    }
                }
                if process.is_dead() {
                    died += 1;
                    worker.exit_code();
                } else {
                    process.kill();
                    worker.exit_code();
                }
                if alone.kernel.exists(DEVICE) {
                    let (_, mut successor) = alone.worker();
                    for (seq, data) in seqs {
                        assert!(alone.ended(seq) == Ok(data), "dead {moment:?} call {calls}");
                    }
                    for i in 0..WRITES {
                        assert!(alone.disk.data(i as u64 * 8192, 8192) == pattern(i as u64, 8192));
                        assert!(alone.run(Bio::read(i * 8192, 8192)) == Ok(pattern(i as u64, 8192)));
                    }
                    assert_eq!(successor.stop(), 0);
                }
            } else {
                died += 1;
                let (_, mut successor) = alone.worker();
                assert_eq!(alone.run(Bio::write(0, pattern(0, 512))), Ok(Vec::new()));
                assert_eq!(successor.stop(), 0);
            }
        }
    }
    assert!(died > 20, "only {died} workers died where they should");
}

#[test]
fn a_device_that_somebody_destroys_ends_the_worker() {
    let alone = Alone::new();
    let (_, mut worker) = alone.worker();
    assert_eq!(alone.run(Bio::write(0, pattern(0, 512))), Ok(Vec::new()));
    alone.kernel.process().destroy(&Which::Name(DEVICE.into())).unwrap();
    assert_eq!(worker.exit_code(), 71);
}

#[test]
fn a_device_that_cannot_be_had_is_a_refusal() {
    let alone = Alone::new();
    let process = Arc::new(alone.kernel.process());
    process.kill();
    assert_eq!(alone.start(&process).err(), Some(71));
}

/// Who uses the device of a hastd that has died waits for the next one.
#[test]
fn an_orphan_leaves_its_device_to_the_next_hastd() {
    let alone = Alone::new();
    let (process, mut worker) = alone.worker();
    assert_eq!(alone.run(Bio::write(0, pattern(0, 512))), Ok(Vec::new()));
    worker.orphan();
    assert_eq!(worker.exit_code(), 0);
    process.kill();
    let write = alone.submit(Bio::write(512, pattern(1, 512)));
    assert_eq!(alone.kernel.wait(DEVICE, write, Duration::ZERO), None);

    let process = Arc::new(alone.kernel.process());
    let gate = UsedGate { kernel: process.clone(), owner: "hastd of a at other".into() };
    let kind = StartKind::Primary { nbd: None, gate: None, served: false, left_behind: false };
    let mut next = Worker::of(alone.disk.resource("none"), kind, Some(gate)).unwrap();
    assert_eq!(alone.ended(write), Ok(Vec::new()));
    assert_eq!(alone.disk.data(0, 1024), [pattern(0, 512), pattern(1, 512)].concat());
    assert_eq!(process.look(DEVICE).unwrap().unwrap().info, "hastd of a at other");
    wait_for("the supervisor to be told", || {
        let told = next.channel.recv_from_worker().ok()??;
        matches!(told, ToSupervisor::Served).then_some(())
    });
    assert_eq!(next.stop(), 0);
    assert!(
        alone.kernel.exists(DEVICE),
        "the kernel may be reading for it: the supervisor sees when it does not"
    );
}

#[path = "gate_pair_tests.rs"]
mod pair;
