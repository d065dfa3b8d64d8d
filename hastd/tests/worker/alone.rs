//! A primary without a secondary: the device, the disk, the ways to end.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use hast_conf::Resource;
use hast_nbd::NbdError;
use hast_nbd::client::{Client, ClientError, Request};
use hast_net::control::ConnectionState;
use hastd::ipc::{ToSupervisor, ToWorker};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::harness::*;

struct Alone {
    _directory: tempfile::TempDir,
    disk: Disk,
    device: Device,
    resource: Resource,
    worker: Worker,
}

impl Alone {
    fn start() -> Alone {
        let directory = tempfile::tempdir().unwrap();
        let disk = Disk::create(directory.path(), "a");
        let device = Device::new(directory.path());
        let resource = Resource { remote: None, ..resource(&disk) };
        let worker = Worker::spawn(&resource, disk.open(), device.kind());
        Alone { _directory: directory, disk, device, resource, worker }
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.worker.child.id().try_into().unwrap()), signal).unwrap();
    }
}

fn is_shutdown(error: &ClientError) -> bool {
    matches!(error, ClientError::Command { error: NbdError::Shutdown, .. } | ClientError::Closed)
        || matches!(error, ClientError::Io(_))
}

#[test]
fn the_device_reads_what_was_written_and_so_does_the_disk() {
    let mut alone = Alone::start();
    let client = alone.device.connect();
    let size = alone.disk.metadata().datasize;
    assert_eq!(client.size(), size);
    assert_eq!(client.minimum_block(), 512);

    let data = pattern(1, 3 << 20);
    client.write(512 * 33, &data).unwrap();
    assert!(client.read(512 * 33, data.len()).unwrap() == data);
    client.write_fua(size - 4096, &data[..4096]).unwrap();
    client.write_zeroes(512 * 33 + (1 << 20), 1 << 20).unwrap();
    client.trim(8 << 20, 2 << 20).unwrap();
    client.cache(0, 1 << 20).unwrap();
    client.flush().unwrap();

    let mut expected = vec![0; size as usize];
    expected[512 * 33..512 * 33 + data.len()].copy_from_slice(&data);
    expected[512 * 33 + (1 << 20)..512 * 33 + (2 << 20)].fill(0);
    expected[(size - 4096) as usize..].copy_from_slice(&data[..4096]);
    assert!(client.read(0, size as usize).unwrap() == expected);
    assert!(alone.disk.data() == expected);

    let refused = client.write(size, &data[..512]);
    assert!(matches!(refused, Err(ClientError::Command { .. })), "{refused:?}");
    assert!(alone.disk.dirty_extents() > 0);
    assert_eq!((alone.disk.metadata().resuid, alone.disk.metadata().localcnt), (0, 0));

    assert!(matches!(alone.worker.hear_next(), ToSupervisor::Served), "nothing was left behind");
    let ToSupervisor::Connection { state: ConnectionState::Standalone, .. } = alone.worker.hear_next() else {
        panic!("there is no other node")
    };
    alone.worker.tell(ToWorker::Status { id: 9 });
    let ToSupervisor::Status { id: 9, status } = alone.worker.hear_next() else { panic!("no status") };
    assert!(!status.complete);
    assert_eq!((status.extentsize, status.keepdirty), (EXTENT, 4));
    assert!(status.statistics.writes > 24);
    assert_eq!(status.statistics.deletes, 2, "the zeroes and the trim");
    assert!(status.statistics.flushes >= 2);
    assert_eq!(alone.worker.stop(), Some(0));
    assert!(alone.disk.data() == expected);
}

#[test]
fn several_connections_share_one_device() {
    let alone = Alone::start();
    let path = alone.device.path.clone();
    let threads: Vec<_> = (0..6_u64)
        .map(|i| {
            let client = Client::connect(&path, "").unwrap();
            thread::spawn(move || {
                for round in 0..20_u64 {
                    let data = pattern(i * 100 + round, 96 << 10);
                    let offset = (i * 20 + round) * (96 << 10);
                    client.write(offset, &data).unwrap();
                    assert!(client.read(offset, data.len()).unwrap() == data);
                }
            })
        })
        .collect();
    for thread in threads {
        thread.join().unwrap();
    }
    let other = alone.device.connect();
    for i in 0..120_u64 {
        let (client, round) = (i / 20, i % 20);
        assert!(other.read(i * (96 << 10), 96 << 10).unwrap() == pattern(client * 100 + round, 96 << 10));
    }
}

#[test]
fn a_stop_under_load_keeps_every_promise() {
    let mut alone = Alone::start();
    let client = Arc::new(alone.device.connect());
    let begun: Arc<[AtomicBool; 4]> = Arc::default();
    let writers: Vec<_> = (0..4_u64)
        .map(|writer| {
            let (client, begun) = (Arc::clone(&client), Arc::clone(&begun));
            thread::spawn(move || {
                let mut kept = Vec::new();
                for round in 0.. {
                    let slot = writer * 24 + round % 24;
                    let data = pattern(slot * 1000 + round, 128 << 10);
                    match client.write(slot * (128 << 10), &data) {
                        Ok(()) => {
                            kept.push((slot, data));
                            begun[writer as usize].store(true, Ordering::Relaxed);
                        }
                        Err(error) => {
                            assert!(is_shutdown(&error), "{error}");
                            return kept;
                        }
                    }
                }
                unreachable!()
            })
        })
        .collect();
    wait_for("a write of each", || begun.iter().all(|begun| begun.load(Ordering::Relaxed)).then_some(()));
    assert_eq!(alone.worker.stop(), Some(0));
    let disk = alone.disk.data();
    for writer in writers {
        let mut latest = std::collections::HashMap::new();
        let kept = writer.join().unwrap();
        assert!(!kept.is_empty());
        let last_slot = kept.last().map(|(slot, _)| *slot).unwrap();
        latest.extend(kept);
        for (slot, data) in latest {
            let at = slot as usize * (128 << 10);
            // The write after the last acknowledged one may have got there too, in the next slot.
            let next = (last_slot / 24) * 24 + (last_slot % 24 + 1) % 24;
            assert!(slot == next || disk[at..at + data.len()] == data, "slot {slot} lost its data");
        }
    }
}

#[test]
fn requests_pending_at_a_stop_are_answered_or_the_connection_closes() {
    let mut alone = Alone::start();
    let client = alone.device.connect();
    let data = pattern(3, 8 << 20);
    let tickets: Vec<_> = (0..6)
        .map(|_| client.submit(Request::Write { offset: 0, data: &data, fua: true }).unwrap())
        .collect();
    alone.worker.tell(ToWorker::Stop);
    for ticket in tickets {
        if let Err(error) = client.wait(ticket) {
            assert!(is_shutdown(&error), "{error}");
        }
    }
    assert_eq!(alone.worker.exit_code(), Some(0));
    assert!(client.read(0, 512).is_err());
}

#[test]
fn signals_end_a_worker_in_order_except_a_hangup() {
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let mut alone = Alone::start();
        let client = alone.device.connect();
        client.write(0, &pattern(1, 4096)).unwrap();
        alone.signal(Signal::SIGHUP);
        client.write(4096, &pattern(2, 4096)).unwrap();
        alone.signal(signal);
        assert_eq!(alone.worker.exit_code(), Some(0));
        assert!(alone.disk.data()[..8192] == [pattern(1, 4096), pattern(2, 4096)].concat());
    }
}

#[test]
fn a_worker_ends_with_its_supervisor() {
    let mut alone = Alone::start();
    let client = alone.device.connect();
    client.write(0, &pattern(1, 4096)).unwrap();
    alone.worker.channel = None;
    assert_eq!(alone.worker.exit_code(), Some(0));
    assert!(alone.disk.data()[..4096] == pattern(1, 4096));
}

#[test]
fn a_killed_worker_is_followed_by_one_that_serves_the_same_socket() {
    let mut alone = Alone::start();
    let client = alone.device.connect();
    client.write(0, &pattern(1, 1 << 20)).unwrap();
    alone.worker.child.kill().unwrap();
    alone.worker.child.wait().unwrap();
    assert!(client.read(0, 512).is_err(), "the old connection is closed and hangs nobody");
    let waiting = {
        let path = alone.device.path.clone();
        // Connects to the socket before anybody serves it.
        thread::spawn(move || Client::connect(path, NAME).unwrap().read(0, 1 << 20).unwrap())
    };
    alone.worker = Worker::spawn(&alone.resource, alone.disk.open(), alone.device.kind());
    assert!(waiting.join().unwrap() == pattern(1, 1 << 20));
    assert_eq!(alone.worker.stop(), Some(0));
}

/// The exit code of a primary on `disk` that cannot begin.
fn refusal(disk: &Disk, change: impl FnOnce(&mut Resource)) -> Option<i32> {
    let directory = tempfile::tempdir().unwrap();
    let device = Device::new(directory.path());
    let mut resource = resource(disk);
    change(&mut resource);
    Worker::spawn(&resource, disk.open(), device.kind()).exit_code()
}

#[test]
fn a_provider_of_another_resource_or_of_none_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let disk = Disk::create(directory.path(), "a");
    let before = std::fs::read(&disk.path).unwrap();
    assert_eq!(refusal(&disk, |resource| resource.name = "other".into()), Some(66));
    assert!(std::fs::read(&disk.path).unwrap() == before, "a refused provider is not touched");

    let blank = Disk::create(directory.path(), "blank");
    std::fs::write(&blank.path, vec![0; MEDIA as usize]).unwrap();
    assert_eq!(refusal(&blank, |_| {}), Some(66));

    let short = Disk::create(directory.path(), "short");
    std::fs::OpenOptions::new().write(true).open(&short.path).unwrap().set_len(MEDIA / 2).unwrap();
    assert_eq!(refusal(&short, |_| {}), Some(66));
}

#[test]
fn a_worker_that_is_stopped_before_it_was_started_just_ends() {
    let directory = tempfile::tempdir().unwrap();
    let disk = Disk::create(directory.path(), "a");
    let device = Device::new(directory.path());
    let mut worker = Worker::spawn(&resource(&disk), disk.open(), device.kind());
    worker.tell(ToWorker::Stop);
    assert_eq!(worker.exit_code(), Some(0));
}
