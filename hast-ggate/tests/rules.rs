//! What a device does on a kernel that keeps GEOM Gate's rules, after crashes too.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use hast_ggate::fake::{Bio, Call, FakeKernel, Moment, Process};
use hast_ggate::{
    Change, Create, Device, DeviceError, Gate, Kind, Next, Origin, Request, Which, abi, device_name,
};
use hast_net::errno::Errno;

const SOON: Duration = Duration::from_secs(30);
const SIZE: u64 = 1 << 20;

fn create() -> Create {
    Create { name: device_name("disk0"), mediasize: SIZE, sectorsize: 512, info: "test".into() }
}

fn open(kernel: &FakeKernel) -> (Arc<Process>, Device, Origin) {
    let process = Arc::new(kernel.process());
    let (device, origin) = Device::open(process.clone(), &create()).unwrap();
    (process, device, origin)
}

fn submit(kernel: &FakeKernel, bio: Bio) -> usize {
    kernel.submit("hast/disk0", bio).unwrap()
}

fn ended(kernel: &FakeKernel, seq: usize) -> Result<Vec<u8>, Errno> {
    kernel.wait("hast/disk0", seq, SOON).expect("the request ends")
}

fn next(device: &Device, buffer: &mut [u8]) -> Request {
    match device.next_request(buffer).unwrap() {
        Next::Request(request) => request,
        other => panic!("{other:?} instead of a request"),
    }
}

#[test]
fn every_kind_of_request_is_handed_out_and_answered() {
    let kernel = FakeKernel::new();
    let (_, device, origin) = open(&kernel);
    assert_eq!(origin, Origin::Created);
    let mut buffer = vec![0; 4096];

    let write = submit(&kernel, Bio::write(1024, vec![7; 512]));
    let request = next(&device, &mut buffer);
    assert_eq!(request.kind(), Kind::Write { offset: 1024, length: 512 });
    assert_eq!(buffer[..512], [7; 512]);
    device.complete(request, Ok(&[])).unwrap();
    assert_eq!(ended(&kernel, write), Ok(Vec::new()));

    let read = submit(&kernel, Bio::read(512, 1024));
    let request = next(&device, &mut buffer);
    assert_eq!(request.kind(), Kind::Read { offset: 512, length: 1024 });
    device.complete(request, Ok(&[9; 1024])).unwrap();
    assert_eq!(ended(&kernel, read), Ok(vec![9; 1024]));

    let delete = submit(&kernel, Bio::plain(abi::BIO_DELETE, 0, 1 << 40));
    let request = next(&device, &mut buffer);
    assert_eq!(request.kind(), Kind::Delete { offset: 0, length: 1 << 40 });
    device.complete(request, Err(Errno::EOPNOTSUPP)).unwrap();
    assert_eq!(ended(&kernel, delete), Err(Errno::EOPNOTSUPP));

    let flush = submit(&kernel, Bio::plain(abi::BIO_FLUSH, 0, 0));
    let request = next(&device, &mut buffer);
    assert_eq!(request.kind(), Kind::Flush);
    device.complete(request, Ok(&[])).unwrap();
    assert_eq!(ended(&kernel, flush), Ok(Vec::new()));
}

#[test]
fn what_nobody_knows_is_refused_and_never_seen() {
    let kernel = FakeKernel::new();
    let (_, device, _) = open(&kernel);
    let odd = [abi::BIO_GETATTR, abi::BIO_ZONE, abi::BIO_SPEEDUP, 0, 6, 77, u32::MAX];
    let odd: Vec<_> = odd.iter().map(|command| submit(&kernel, Bio::plain(*command, 0, 0))).collect();
    let negative = submit(&kernel, Bio::read(-512, 512));
    let backwards = submit(&kernel, Bio::plain(abi::BIO_DELETE, 0, -1));
    let flush = submit(&kernel, Bio::plain(abi::BIO_FLUSH, 0, 0));
    let request = next(&device, &mut []);
    assert_eq!(request.kind(), Kind::Flush);
    device.complete(request, Ok(&[])).unwrap();
    for seq in odd {
        assert_eq!(ended(&kernel, seq), Err(Errno::EOPNOTSUPP));
    }
    assert_eq!(ended(&kernel, negative), Err(Errno::EINVAL));
    assert_eq!(ended(&kernel, backwards), Err(Errno::EINVAL));
    assert_eq!(ended(&kernel, flush), Ok(Vec::new()));
}

#[test]
fn a_write_waits_for_a_buffer_that_is_large_enough() {
    let kernel = FakeKernel::new();
    let (_, device, _) = open(&kernel);
    submit(&kernel, Bio::write(0, vec![1; 8192]));
    assert_eq!(device.next_request(&mut [0; 4096]), Ok(Next::TooSmall(8192)));
    let mut buffer = vec![0; 8192];
    let request = next(&device, &mut buffer);
    assert_eq!(request.kind(), Kind::Write { offset: 0, length: 8192 });
    assert!(buffer.iter().all(|byte| *byte == 1));
}

#[test]
fn an_answer_is_never_shorter_or_longer_than_what_was_asked_for() {
    let kernel = FakeKernel::new();
    let (_, device, _) = open(&kernel);
    for data in [&[0; 511][..], &[0; 513], &[]] {
        let read = submit(&kernel, Bio::read(0, 512));
        let request = next(&device, &mut []);
        device.complete(request, Ok(data)).unwrap();
        assert_eq!(ended(&kernel, read), Err(Errno::EIO));
    }
}

#[test]
fn a_failure_with_eagain_is_a_failure_and_only_a_requeue_comes_again() {
    let kernel = FakeKernel::new();
    let (_, device, _) = open(&kernel);
    let failed = submit(&kernel, Bio::read(0, 512));
    let request = next(&device, &mut []);
    device.complete(request, Err(Errno::EAGAIN)).unwrap();
    assert_eq!(ended(&kernel, failed), Err(Errno::EIO));

    let first = submit(&kernel, Bio::read(0, 512));
    let second = submit(&kernel, Bio::read(512, 512));
    let request = next(&device, &mut []);
    device.requeue(request).unwrap();
    for (offset, seq) in [(0, first), (512, second)] {
        let request = next(&device, &mut []);
        assert_eq!(request.kind(), Kind::Read { offset, length: 512 });
        device.complete(request, Ok(&[3; 512])).unwrap();
        assert_eq!(ended(&kernel, seq), Ok(vec![3; 512]));
    }
}

#[test]
fn signals_end_no_wait_and_a_destroyed_device_ends_all() {
    let kernel = FakeKernel::new();
    let (_, device, _) = open(&kernel);
    let device = Arc::new(device);
    let waiting: Vec<_> = (0..4)
        .map(|_| {
            let device = Arc::clone(&device);
            thread::spawn(move || device.next_request(&mut [0; 512]).unwrap())
        })
        .collect();
    kernel.interrupt();
    while !kernel.calls().contains(&Call::Start(None)) {
        thread::yield_now();
    }
    device.destroy().unwrap();
    for thread in waiting {
        // One that comes too late to wait finds no device.
        assert!(matches!(thread.join().unwrap(), Next::Cancelled | Next::Gone));
    }
    assert_eq!(device.next_request(&mut []), Ok(Next::Gone));
    assert!(!kernel.exists("hast/disk0"));
    device.destroy().unwrap();
}

#[test]
fn a_device_goes_with_its_owner_unless_it_is_left_behind() {
    let kernel = FakeKernel::new();
    let (_, device, _) = open(&kernel);
    drop(device);
    assert!(!kernel.exists("hast/disk0"));
    let (_, device, _) = open(&kernel);
    device.leave();
    drop(device);
    assert!(kernel.exists("hast/disk0"));
    let (_, device, origin) = open(&kernel);
    assert_eq!(origin, Origin::TakenOver);
    drop(device);
    assert!(kernel.exists("hast/disk0"), "the kernel may be reading for it");
}

#[test]
fn a_successor_gets_in_order_what_was_not_answered() {
    let kernel = FakeKernel::new();
    let (process, device, _) = open(&kernel);
    let seqs: Vec<_> = (0..6).map(|i| submit(&kernel, Bio::write(i * 512, vec![i as u8; 512]))).collect();
    let mut buffer = vec![0; 512];
    let mut taken: Vec<_> = (0..4).map(|_| next(&device, &mut buffer)).collect();
    device.complete(taken.remove(1), Ok(&[])).unwrap();
    let stale = taken.remove(0);
    process.kill();
    drop(device);
    assert_eq!(kernel.queues("hast/disk0"), (2, 3));

    let (_, device, origin) = open(&kernel);
    assert_eq!(origin, Origin::TakenOver);
    assert_eq!(kernel.queues("hast/disk0"), (5, 0));
    // What the dead process still wanted to say is not heard, and does no harm.
    device.complete(stale, Ok(&[])).unwrap();
    for expected in [0, 2, 3, 4, 5] {
        let request = next(&device, &mut buffer);
        assert_eq!(request.kind(), Kind::Write { offset: expected * 512, length: 512 });
        assert_eq!(buffer[0], expected as u8);
        device.complete(request, Ok(&[])).unwrap();
    }
    for seq in seqs {
        assert_eq!(ended(&kernel, seq), Ok(Vec::new()));
    }
}

/// Wherever a process dies, its successor answers everything that it had not, and nothing is answered twice.
#[test]
fn every_request_ends_once_wherever_processes_die() {
    for moment in [Moment::Before, Moment::After] {
        for calls in 1..=14 {
            let kernel = FakeKernel::new();
            let (process, device, _) = open(&kernel);
            process.kill_at(calls, moment);
            let seqs: Vec<_> = (0..6).map(|i| submit(&kernel, Bio::write(i * 512, vec![1; 512]))).collect();
            let serve = |device: &Device, requests: usize| {
                let mut buffer = [0; 512];
                for _ in 0..requests {
                    let Ok(Next::Request(request)) = device.next_request(&mut buffer) else { return };
                    if device.complete(request, Ok(&[])).is_err() {
                        return;
                    }
                }
            };
            serve(&device, 6);
            device.leave();
            process.kill();
            let (_, device, _) = open(&kernel);
            let (waiting, handed_out) = kernel.queues("hast/disk0");
            assert_eq!(handed_out, 0);
            serve(&device, waiting);
            for seq in seqs {
                assert_eq!(ended(&kernel, seq), Ok(Vec::new()), "dead {moment:?} call {calls}");
                assert_eq!(kernel.wait("hast/disk0", seq, Duration::ZERO), None);
            }
        }
    }
}

const ON: &str = "switching direct reads on";

/// A provider for direct reads that is 4096 bytes larger than the device, with 5 in all bytes of the device.
fn provider(kernel: &FakeKernel) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), [vec![0; 4096], vec![5; SIZE as usize]].concat()).unwrap();
    kernel.add_provider(file.path().to_str().unwrap());
    file
}

fn read_here(kernel: &FakeKernel, device: &Device) {
    let seq = submit(kernel, Bio::read(0, 512));
    let request = next(device, &mut []);
    device.complete(request, Ok(&[6; 512])).unwrap();
    assert_eq!(ended(kernel, seq), Ok(vec![6; 512]));
}

#[test]
fn the_kernel_reads_by_itself_where_it_can_and_may() {
    let kernel = FakeKernel::new();
    let (_, device, _) = open(&kernel);
    let refused = |errno| Err(DeviceError::Refused { what: ON, errno });
    let file = tempfile::NamedTempFile::new().unwrap();
    let size = SIZE + 4096;
    let other = file.path().to_str().unwrap();
    assert_eq!(device.read_from(other, size, 4096), refused(Errno::EINVAL), "a regular file is no provider");
    let file = provider(&kernel);
    let path = file.path().to_str().unwrap();
    // None of these reaches the kernel, which would panic.
    for (size, offset) in [(size, 1), (size, 511), (size, 4608), (size - 1, 4096), (size, u64::MAX)] {
        assert_eq!(device.read_from(path, size, offset), refused(Errno::EINVAL), "{size} {offset}");
    }
    assert_eq!(device.read_from(&"x".repeat(255), size, 0), refused(Errno::EINVAL));
    assert_eq!(device.read_from("", size, 0), refused(Errno::EINVAL));
    for round in 1..=3 {
        device.read_from(path, size, 4096).unwrap();
        let read = submit(&kernel, Bio::read(0, 512));
        assert_eq!(ended(&kernel, read), Ok(vec![5; 512]));
        assert_eq!(kernel.direct_reads("hast/disk0"), round);
        device.read_here().unwrap();
        read_here(&kernel, &device);
    }
    // What never was on need not be switched off.
    let (_, device, _) = {
        device.leave();
        drop(device);
        let kernel = FakeKernel::new();
        open(&kernel)
    };
    device.read_here().unwrap();
    assert_eq!(device.destroy(), Ok(true));
}

/// A device is not destroyed by a process that cannot see whether the kernel still reads for it.
#[test]
fn direct_reads_under_way_survive_that_they_are_switched_off() {
    let kernel = FakeKernel::new();
    let (process, device, _) = open(&kernel);
    let file = provider(&kernel);
    let path = file.path().to_str().unwrap();
    device.read_from(path, SIZE + 4096, 4096).unwrap();
    kernel.hold_direct_reads(true);
    let slow = submit(&kernel, Bio::read(0, 512));
    let reads = |process: &Process| process.look("hast/disk0").unwrap().unwrap().reads;
    assert!(reads(&process));
    device.read_here().unwrap();
    assert!(reads(&process), "one is under way");
    read_here(&kernel, &device);
    device.read_from(path, SIZE + 4096, 4096).unwrap();
    process.kill();
    drop(device);
    let (process, device, _) = open(&kernel);
    assert_eq!(kernel.reads_from("hast/disk0"), None);
    assert_eq!(
        device.read_from(path, SIZE + 4096, 4096),
        Err(DeviceError::Refused { what: ON, errno: Errno::EBUSY }),
        "nobody knows how large the dead process has made it"
    );
    assert_eq!(device.destroy(), Ok(false));
    assert_eq!(kernel.wait("hast/disk0", slow, Duration::ZERO), None);
    kernel.hold_direct_reads(false);
    assert_eq!(ended(&kernel, slow), Ok(vec![5; 512]));
    assert!(!reads(&process));
    read_here(&kernel, &device);
    drop(device);
    assert!(kernel.exists("hast/disk0"));
}

/// The fake kernel fails on what panics the real one.
mod panics {
    use super::*;

    fn reading(kernel: &FakeKernel) -> (Arc<Process>, Device, tempfile::NamedTempFile) {
        let (process, device, _) = open(kernel);
        let file = provider(kernel);
        device.read_from(file.path().to_str().unwrap(), SIZE + 4096, 4096).unwrap();
        device.leave(); // else the test would panic twice
        (process, device, file)
    }

    fn name(process: &Process, device: &Device, provider: &str, offset: u64) -> Result<(), Errno> {
        process.modify(device.unit(), &Change::ReadFrom { provider: provider.to_owned(), offset })
    }

    #[test]
    #[should_panic(expected = "page fault")]
    fn an_empty_name_leaves_a_pointer_to_what_was_freed() {
        let kernel = FakeKernel::new();
        let (process, device, _file) = reading(&kernel);
        assert_eq!(name(&process, &device, "", 0), Ok(()));
        let _ = process.modify(device.unit(), &Change::ReadHere);
    }

    /// Seen on 13.2, under load: the read looks at the device when it ends.
    #[test]
    #[should_panic(expected = "ends without its device")]
    fn a_device_must_not_go_before_the_reads_that_the_kernel_serves_itself() {
        let kernel = FakeKernel::new();
        let (process, device, _file) = reading(&kernel);
        kernel.hold_direct_reads(true);
        submit(&kernel, Bio::read(0, 512));
        device.read_here().unwrap();
        let _ = process.destroy(&Which::Unit(device.unit()));
    }

    #[test]
    #[should_panic(expected = "lock held")]
    fn a_provider_that_is_too_small_leaves_a_lock_held() {
        let kernel = FakeKernel::new();
        let (process, device, file) = reading(&kernel);
        let _ = name(&process, &device, file.path().to_str().unwrap(), 8192);
    }
}

/// L17: what a dead process had allowed does not outlive it.
#[test]
fn direct_reads_end_when_a_device_is_taken_over() {
    let kernel = FakeKernel::new();
    let (process, device, _) = open(&kernel);
    let file = provider(&kernel);
    device.read_from(file.path().to_str().unwrap(), SIZE + 4096, 4096).unwrap();
    process.kill();
    drop(device);
    assert!(kernel.reads_from("hast/disk0").is_some());
    let (_, device, _) = open(&kernel);
    assert_eq!(kernel.reads_from("hast/disk0"), None);
    let calls = kernel.calls();
    let taken_over = calls.iter().position(|call| *call == Call::Cancel("hast/disk0".into())).unwrap();
    let info = Change::Info("test".into());
    assert_eq!(calls[taken_over + 1..], [Call::Modify(Change::ReadHere), Call::Modify(info)]);
    drop(device);
}

/// A device whose direct reads cannot be switched off serves nobody, and is not destroyed by mistake either.
#[test]
fn a_device_that_cannot_be_put_in_order_is_not_taken_over() {
    let kernel = FakeKernel::new();
    let (process, device, _) = open(&kernel);
    process.kill();
    drop(device);
    kernel.refuse_modify(Some(Errno::EBUSY));
    let error = Device::open(Arc::new(kernel.process()), &create()).err().unwrap();
    assert_eq!(error, DeviceError::Refused { what: "switching direct reads off", errno: Errno::EBUSY });
    assert!(kernel.exists("hast/disk0"));
}

#[test]
fn sizes_and_names_are_checked() {
    let kernel = FakeKernel::new();
    let open = |create| Device::open(Arc::new(kernel.process()), &create).err();
    for name in [String::new(), "a\0b".into(), "n".repeat(255)] {
        assert_eq!(open(Create { name: name.clone(), ..create() }), Some(DeviceError::Name { name }));
    }
    assert!(open(Create { name: "n".repeat(254), ..create() }).is_none());
    let what = "creating the device";
    assert_eq!(
        open(Create { mediasize: 1000, ..create() }),
        Some(DeviceError::Refused { what, errno: Errno::EINVAL })
    );
    let (_, device, _) = {
        let process = Arc::new(kernel.process());
        let (device, origin) = Device::open(process.clone(), &create()).unwrap();
        (process, device, origin)
    };
    device.resize(SIZE / 2).unwrap();
    assert_eq!(kernel.mediasize("hast/disk0"), Some(SIZE / 2));
    assert!(device.resize(SIZE / 2 + 1).is_err());
}

#[test]
fn a_device_destroyed_by_somebody_else_is_gone() {
    let kernel = FakeKernel::new();
    let (_, device, _) = open(&kernel);
    submit(&kernel, Bio::read(0, 512));
    let request = next(&device, &mut []);
    kernel.process().destroy(&Which::Name("hast/disk0".into())).unwrap();
    assert_eq!(device.complete(request, Ok(&[0; 512])), Err(DeviceError::Gone));
    assert_eq!(device.next_request(&mut []), Ok(Next::Gone));
    assert_eq!(device.read_from("/dev/md0", SIZE, 0), Err(DeviceError::Gone));
}

#[test]
fn layouts_and_numbers_are_the_kernels() {
    // The whole table is checked when the crate is compiled; this is so that a test says so.
    let sizes = [size_of::<abi::Create>(), size_of::<abi::Modify>(), size_of::<abi::Destroy>()];
    assert_eq!(sizes, [2608, 2336, 268]);
    assert_eq!([size_of::<abi::Cancel>(), size_of::<abi::Io>()], [272, 56]);
    let numbers = [abi::CREATE, abi::MODIFY, abi::DESTROY, abi::CANCEL, abi::START, abi::DONE];
    assert_eq!(numbers, [0xca30_6d00, 0xc920_6d01, 0xc10c_6d02, 0xc110_6d03, 0xc038_6d04, 0xc038_6d05]);
    assert_eq!(abi::text::<4>("abc"), Some(*b"abc\0"));
    assert_eq!((abi::text::<4>("abcd"), abi::text::<4>("a\0b")), (None, None));
}
