//! A primary and a secondary process with everything that can happen between them.

use std::os::unix::fs::MetadataExt;
use std::thread;
use std::time::Duration;

use hast_engine::Event;
use hast_format::metadata::Role;
use hast_net::Replication;
use hast_net::payload::{Checksum, Compression};
use hastd::ipc::{Reload, ToWorker};

use crate::harness::*;

#[test]
fn what_is_written_is_on_both_nodes_in_every_mode() {
    let variants = [
        (Replication::Fullsync, Checksum::Crc32, Compression::Lzf),
        (Replication::Memsync, Checksum::Sha256, Compression::Hole),
        (Replication::Async, Checksum::None, Compression::None),
    ];
    for (replication, checksum, compression) in variants {
        let pair = Pair::start(|resource| {
            resource.replication = replication;
            resource.checksum = checksum;
            resource.compression = compression;
        });
        pair.wait_complete();
        let client = pair.device.connect();
        let data = pattern(1, 4 << 20);
        client.write(0, &data).unwrap();
        client.write_zeroes(1 << 20, 300 << 10).unwrap();
        client.trim(12 << 20, 1 << 20).unwrap();
        client.write_fua(9 << 20, &data[..4096]).unwrap();
        assert!(client.read(9 << 20, 4096).unwrap() == data[..4096]);
        client.flush().unwrap();
        let (a, b) = (pair.a.data(), pair.b.data());
        assert!(a == b, "{replication:?}: the nodes differ after a flush");
        assert!(a[..1 << 20] == data[..1 << 20]);
        assert!(a[1 << 20..(1 << 20) + (300 << 10)].iter().all(|&byte| byte == 0));
        assert_eq!(pair.board().count(Role::Primary, Event::Connect), 1);
        assert_eq!(pair.board().count(Role::Secondary, Event::Connect), 1);
        let (a, b) = (pair.a.metadata(), pair.b.metadata());
        assert!(a.resuid != 0 && a.resuid == b.resuid);
        assert_eq!(pair.stop(), Some(0));
        assert!(pair.a.data() == pair.b.data());
        assert_eq!(pair.board().secondary_exits, [Some(75)]);
        assert_eq!(pair.board().count(Role::Primary, Event::Disconnect), 0, "a stop is no disconnection");
    }
}

/// D1: what one of the disks cannot delete is deleted on neither, and is no reason to count or to synchronise.
/// Zeroes are zeroes in any case.
#[test]
fn deletes_reach_both_nodes_or_neither() {
    let cannot: Variables = &[("HASTD_TEST_NO_DELETES", "")];
    for (here, there) in [(true, true), (true, false), (false, true), (false, false)] {
        let environment = [here, there].map(|can| if can { &[][..] } else { cannot });
        let pair = Pair::start_in(environment, |resource| resource.replication = Replication::Fullsync);
        pair.wait_in_step();
        let before = pair.a.metadata();
        let client = pair.device.connect();
        assert_eq!(client.agreed().can_trim(), here, "what the other node can it may do later");
        let data = pattern(1, 8 << 20);
        client.write(0, &data).unwrap();
        client.flush().unwrap();
        let full = [&pair.a, &pair.b].map(|disk| std::fs::metadata(&disk.path).unwrap().blocks());
        client.write_zeroes(1 << 20, 2 << 20).unwrap();
        client.trim(4 << 20, 2 << 20).unwrap();
        let mut expected = data;
        expected[1 << 20..3 << 20].fill(0);
        if here && there {
            expected[4 << 20..6 << 20].fill(0);
        }
        assert!(client.read(0, expected.len()).unwrap() == expected, "{here}, {there}");
        let status = pair.status();
        assert_eq!(status.facts.to_synchronise_bytes, 0, "{here}, {there}");
        assert_eq!(status.statistics.deletes, if here { 2 } else { 1 });
        client.flush().unwrap();
        assert!(pair.a.data() == pair.b.data() && pair.a.data()[..expected.len()] == expected);
        assert_eq!(pair.a.metadata().localcnt, before.localcnt, "{here}, {there}");
        for (disk, full) in [&pair.a, &pair.b].into_iter().zip(full) {
            let freed = full.saturating_sub(std::fs::metadata(&disk.path).unwrap().blocks()) * 512;
            assert_eq!(freed >= 3 << 20, here && there, "{freed} bytes are free again");
        }
        assert_eq!(pair.stop(), Some(0));
    }
}

/// T7: the secondary's disk takes longer than `timeout` for a write.
#[test]
fn a_slow_disk_is_no_dead_node() {
    let pair = Pair::start_in([&[], &[("HASTD_TEST_SLOW", "7000")]], |resource| {
        resource.replication = Replication::Fullsync;
        resource.timeout = 3;
    });
    pair.wait_in_step();
    let client = pair.device.connect();
    let data = pattern(1, 128 << 10);
    client.write(0, &data).unwrap();
    assert!(pair.b.data()[..data.len()] == data, "complete, but not on the secondary");
    assert_eq!(pair.board().count(Role::Primary, Event::Disconnect), 0);
    assert_eq!(pair.stop(), Some(0));
}

/// T7: nor is one that hangs at the very moment at which it was quick, when a worker does not ask a thread first. Both
/// go on telling each other that they are there, and their supervisors what they ask for.
#[test]
fn a_disk_that_hangs_out_of_the_blue_holds_nobody_up() {
    let slow: Variables = &[("HASTD_TEST_SLOW", "7000"), ("HASTD_TEST_QUICK", "")];
    let pair = Pair::start_in([slow, slow], |resource| {
        resource.replication = Replication::Fullsync;
        resource.timeout = 3;
        resource.peer_timeout = 3;
    });
    pair.wait_in_step();
    let client = pair.device.connect();
    let data = pattern(1, 128 << 10);
    client.write(0, &data[..4096]).unwrap();
    let pids = pair.board().pids();
    let (asked, most) = thread::scope(|scope| {
        let write = scope.spawn(|| client.write(0, &data).unwrap());
        let (mut asked, mut most) = (0, [0; 2]);
        while !write.is_finished() {
            pair.status();
            asked += 1;
            most = std::array::from_fn(|node| reactors(pids[node]).max(most[node]));
            thread::sleep(Duration::from_millis(50));
        }
        (asked, most)
    });
    assert!(asked > 10, "{asked} answers while the disk hung");
    if cfg!(all(debug_assertions, target_os = "linux")) {
        assert_eq!(most, [2, 2], "on each node one thread has gone on for another one");
    }
    assert!(pair.b.data()[..data.len()] == data, "complete, but not on the secondary");
    assert_eq!(pair.board().count(Role::Primary, Event::Disconnect), 0);
    assert_eq!(pair.stop(), Some(0));
}

/// Threads of a process that drive its reactor, or have done so.
fn reactors(pid: u32) -> usize {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let names = tasks.filter_map(|task| std::fs::read_to_string(task.path().join("comm")).ok());
    names.filter(|name| name.trim_end() == "reactor").count()
}

#[test]
fn a_lost_secondary_gets_what_it_missed_and_only_that() {
    let pair = Pair::start(|_| {});
    pair.wait_complete();
    let client = pair.device.connect();
    client.write(0, &pattern(1, 8 << 20)).unwrap();
    // Some of it may have been confirmed only after the first flush had begun; the second covers all.
    client.flush().unwrap();
    client.flush().unwrap();
    pair.board().reachable = false;
    pair.cut();
    wait_for("the loss", || (!pair.status().complete).then_some(()));
    client.write(2 << 20, &pattern(2, 1 << 20)).unwrap();
    assert!(client.read(2 << 20, 1 << 20).unwrap() == pattern(2, 1 << 20));
    assert!(pair.a.data() != pair.b.data());
    let dirty = pair.status().dirty;
    assert!((1 << 20..4 << 20).contains(&dirty), "{dirty} bytes are dirty");
    pair.board().reachable = true;
    pair.wait_in_step();
    assert!(pair.a.data() == pair.b.data());
    wait_for("syncdone", || (pair.board().count(Role::Primary, Event::SyncDone) > 0).then_some(()));
    let board = pair.board();
    assert_eq!(board.count(Role::Primary, Event::Disconnect), 1);
    assert!(board.count(Role::Primary, Event::SyncStart) >= 1);
    drop(board);
    assert_eq!(pair.stop(), Some(0));
    assert_eq!(pair.board().secondary_exits, [Some(75), Some(75)]);
}

#[test]
fn connections_cut_under_load_cost_no_data() {
    for replication in [Replication::Fullsync, Replication::Memsync, Replication::Async] {
        let pair = Pair::start(|resource| {
            resource.replication = replication;
            resource.checksum = Checksum::Crc32;
        });
        pair.wait_complete();
        let (last, connected) = thread::scope(|scope| {
            let writers: Vec<_> = (0..3_u64)
                .map(|writer| {
                    let client = pair.device.connect();
                    let pair = &pair;
                    scope.spawn(move || {
                        let mut last = vec![0; 40];
                        for round in 1..=400_u64 {
                            let slot = (round * 7) % 40;
                            let seed = writer * 1_000_000 + slot * 1000 + round;
                            let offset = (writer * 40 + slot) * (100 << 10);
                            client.write(offset, &pattern(seed, 100 << 10)).unwrap();
                            last[slot as usize] = seed;
                            if writer == 0 && round % 100 == 50 {
                                pair.cut();
                            }
                            if round % 64 == 0 {
                                client.flush().unwrap();
                            }
                        }
                        last
                    })
                })
                .collect();
            let last: Vec<Vec<u64>> = writers.into_iter().map(|writer| writer.join().unwrap()).collect();
            (last, pair.board().count(Role::Primary, Event::Connect))
        });
        assert!(connected >= 1);
        assert!(pair.board().count(Role::Primary, Event::Disconnect) >= 1, "nothing was cut");
        pair.wait_in_step();
        assert_eq!(pair.stop(), Some(0));
        let (a, b) = (pair.a.data(), pair.b.data());
        for (writer, slots) in last.iter().enumerate() {
            for (slot, seed) in slots.iter().enumerate().filter(|(_, seed)| **seed != 0) {
                let at = (writer * 40 + slot) * (100 << 10);
                let expected = pattern(*seed, 100 << 10);
                assert!(a[at..at + expected.len()] == expected, "{replication:?}: lost on the primary");
            }
        }
        assert!(a == b, "{replication:?}: the nodes differ");
    }
}

#[test]
fn a_killed_secondary_is_replaced_and_brought_up_to_date() {
    let pair = Pair::start(|resource| resource.replication = Replication::Fullsync);
    pair.wait_complete();
    let client = pair.device.connect();
    client.write(0, &pattern(1, 2 << 20)).unwrap();
    pair.kill_secondary();
    client.write(1 << 20, &pattern(2, 2 << 20)).unwrap();
    pair.wait_in_step();
    assert!(pair.board().secondary_exits.contains(&None), "it was killed by a signal");
    assert!(pair.a.data() == pair.b.data());
    assert!(client.read(1 << 20, 2 << 20).unwrap() == pattern(2, 2 << 20));
}

/// The secondary's disk is replaced by one that is full of something else: what the primary never wrote, or gave back, is not
/// allocated there any more, if the disk can free it. Either way it reads as zeros.
#[test]
fn a_synchronisation_onto_a_full_disk_leaves_holes() {
    for frees in [true, false] {
        let cannot: Variables = &[("HASTD_TEST_NO_DELETES", "")];
        let environment = if frees { &[][..] } else { cannot };
        let pair = Pair::start_in([&[], environment], |resource| {
            resource.replication = Replication::Fullsync;
        });
        pair.wait_in_step();
        let client = pair.device.connect();
        client.write(0, &pattern(1, 1 << 20)).unwrap();
        client.write(8 << 20, &pattern(2, 1 << 20)).unwrap();
        client.flush().unwrap();
        pair.board().reachable = false;
        pair.kill_secondary();
        wait_for("the secondary's end", || pair.board().secondary.is_none().then_some(()));
        std::fs::write(&pair.b.path, pattern(3, MEDIA as usize)).unwrap();
        Disk::initialize(&pair.b.path);
        pair.board().reachable = true;
        pair.wait_in_step();
        client.flush().unwrap();
        assert!(pair.a.data() == pair.b.data());
        let [a, b] = [&pair.a, &pair.b].map(|disk| std::fs::metadata(&disk.path).unwrap().blocks());
        assert_eq!(b <= 2 * a, frees, "{a} and {b} blocks");
    }
}

#[test]
fn a_killed_primary_comes_back_with_its_data() {
    let mut pair = Pair::start(|_| {});
    pair.wait_complete();
    pair.device.connect().write(0, &pattern(1, 4 << 20)).unwrap();
    let mut primary = pair.take_primary();
    primary.child.kill().unwrap();
    primary.child.wait().unwrap();
    pair.resource.checksum = Checksum::Sha256;
    pair.start_primary();
    pair.wait_in_step();
    assert!(pair.device.connect().read(0, 4 << 20).unwrap() == pattern(1, 4 << 20));
    assert_eq!(pair.stop(), Some(0));
    assert!(pair.a.data() == pair.b.data());
}

#[test]
fn a_reload_applies_without_disturbing_the_device() {
    let pair = Pair::start(|_| {});
    pair.wait_complete();
    let client = pair.device.connect();
    client.write(0, &pattern(1, 1 << 20)).unwrap();
    let mut resource = pair.resource.clone();
    resource.replication = Replication::Fullsync;
    resource.checksum = Checksum::Crc32;
    resource.compression = Compression::Lzf;
    resource.timeout = 7;
    let reload = |reconnect| {
        let reload = Reload { resource: resource.clone(), reconnect };
        let board = pair.board();
        board.primary.as_ref().unwrap().tell(ToWorker::Reload(Box::new(reload)));
    };
    reload(false);
    client.write(1 << 20, &pattern(2, 1 << 20)).unwrap();
    assert_eq!(pair.board().count(Role::Primary, Event::Connect), 1);
    reload(true);
    wait_for("another connection", || (pair.board().count(Role::Primary, Event::Connect) == 2).then_some(()));
    client.write(2 << 20, &pattern(3, 1 << 20)).unwrap();
    client.flush().unwrap();
    assert!(pair.a.data() == pair.b.data());
    assert_eq!(pair.stop(), Some(0));
}

#[test]
fn a_secondary_that_is_stopped_has_stored_what_it_accepted() {
    let pair = Pair::start(|resource| resource.replication = Replication::Memsync);
    pair.wait_complete();
    let client = pair.device.connect();
    for i in 0..32_u64 {
        client.write(i * (64 << 10), &pattern(i, 64 << 10)).unwrap();
    }
    pair.board().reachable = false;
    pair.let_go();
    let mut secondary = pair.board().secondary.take().unwrap();
    assert_eq!(secondary.stop(), Some(0));
    let b = pair.b.data();
    for i in 0..32_usize {
        assert!(b[i * (64 << 10)..][..64 << 10] == pattern(i as u64, 64 << 10), "write {i} is lost");
    }
    client.write(0, &pattern(99, 4096)).unwrap();
    assert_eq!(pair.stop(), Some(0));
}

#[test]
fn a_stop_of_a_connected_pair_under_load_leaves_equal_nodes() {
    let pair = Pair::start(|resource| resource.replication = Replication::Async);
    pair.wait_complete();
    thread::scope(|scope| {
        for writer in 0..3_u64 {
            let client = pair.device.connect();
            scope.spawn(move || {
                for round in 0.. {
                    let offset = (writer * 30 + round % 30) * (128 << 10);
                    if client.write(offset, &pattern(round, 128 << 10)).is_err() {
                        return;
                    }
                }
            });
        }
        thread::sleep(Duration::from_millis(200));
        assert_eq!(pair.stop(), Some(0));
    });
    assert!(pair.a.data() == pair.b.data(), "C4: what was in flight ends on both nodes");
}
