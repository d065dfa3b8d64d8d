//! The link breaks and comes back.

use std::time::{Duration, Instant};

use hast_nbd::client::Client;
use hast_tests::{Context, Outcome, Pair, Setup, disk};

use crate::volume::Volume;

const EXTENT: usize = 64 << 10;

/// Three of 255 extents are written while the link is cut: they move, and nothing else does.
#[test]
fn only_dirty_extents_move_after_a_cut() -> Outcome {
    let pair = Pair::up(Setup::default())?;
    let mut volume = Volume::fresh(&pair.a, "disk0")?;
    volume.scribble(1, 0, 8 << 20)?;
    // In memsync the other node may say only after a flush has begun that it has stored a write. The flush keeps
    // it safe, but only the next one lets the map forget it.
    volume.flush()?;
    volume.flush()?;
    let (before_cut, _) = pair.link.bytes_from_a();
    assert!(before_cut > 8 << 20, "the first writes crossed the link");

    let counted = disk::metadata(&pair.a.provider("disk0"))?.localcnt;
    pair.link.cut();
    for (n, extent) in [7, 90, 200].into_iter().enumerate() {
        volume.scribble(10 + n as u64, extent * EXTENT, EXTENT)?;
    }
    volume.verify()?;
    volume.flush()?;
    pair.a.wait_status("disk0", "degraded")?;
    assert_eq!(pair.a.number("disk0", "dirty")?, 3 * EXTENT as u64);
    let metadata = disk::metadata(&pair.a.provider("disk0"))?;
    assert_eq!(metadata.localcnt, counted + 1, "a disconnected period is counted once");

    let (before, _) = pair.link.bytes_from_a();
    pair.link.restore();
    pair.a.wait_in_step("disk0")?;
    let (after, _) = pair.link.bytes_from_a();
    let moved = after - before;
    let least = 3 * EXTENT as u64;
    assert!(moved >= least, "three extents of noise cannot take {moved} bytes");
    assert!(moved < least + least / 8, "three extents were dirty, {moved} bytes moved");
    volume.verify()?;
    volume.verify_provider(&pair.a, "disk0")?;
    volume.verify_provider(&pair.b, "disk0")?;
    pair.finish()
}

/// A link that lets nothing through any more is noticed within the time-out; the write that waited
/// for it completes, and the other node gets it later.
#[test]
fn a_silent_link_is_given_up() -> Outcome {
    let pair = Pair::up(Setup::with("replication fullsync\ntimeout 2"))?;
    let mut volume = Volume::fresh(&pair.a, "disk0")?;
    volume.scribble(1, 0, EXTENT)?;
    pair.link.stall();
    volume.scribble(2, 5 * EXTENT, EXTENT)?;
    pair.a.wait_status("disk0", "degraded")?;
    pair.link.restore();
    pair.a.wait_in_step("disk0")?;
    volume.flush()?;
    volume.verify_provider(&pair.a, "disk0")?;
    volume.verify_provider(&pair.b, "disk0")?;
    pair.finish()
}

/// Requests in flight when the link breaks are answered, and their data reach the other node.
fn writes_in_flight(replication: &str) -> Outcome {
    let pair = Pair::up(Setup::with(&format!("replication {replication}\ntimeout 2")))?;
    let client = pair.a.client("disk0")?;
    for round in 0..3 {
        let (before, _) = pair.link.bytes_from_a();
        let writing = || write_for(&client, round, Duration::from_millis(800));
        std::thread::scope(|scope| {
            let writer = scope.spawn(writing);
            // In the midst of the writes, not before the first has crossed.
            hast_tests::wait_until("writes to cross the link", hast_tests::SHORT, || {
                Ok(pair.link.bytes_from_a().0 > before + (256 << 10))
            })?;
            pair.link.cut();
            writer.join().expect("the writer does not panic")
        })?;
        pair.a.wait_status("disk0", "degraded")?;
        pair.link.restore();
        pair.a.wait_in_step("disk0")?;
        client.flush()?;
        disk::same_data(&pair.a.provider("disk0"), &pair.b.provider("disk0"))
            .context(format!("{replication}, round {round}"))?;
    }
    pair.finish()
}

/// Keeps 16 writes of 4 KiB in flight, scattered, for a while. Every one must succeed.
fn write_for(client: &Client, seed: u64, duration: Duration) -> Outcome {
    let begin = Instant::now();
    let slots = client.size() / 4096;
    let mut n = 0_u64;
    while begin.elapsed() < duration {
        let mut tickets = Vec::new();
        for _ in 0..16 {
            n += 1;
            let offset = (n.wrapping_mul(7919).wrapping_add(seed * 31) % slots) * 4096;
            let data = disk::pattern(seed << 32 | n, 4096);
            tickets.push(client.submit(hast_nbd::client::Request::Write {
                offset,
                data: &data,
                fua: false,
            })?);
        }
        for ticket in tickets {
            client.wait(ticket)?;
        }
    }
    Ok(())
}

#[test]
fn writes_in_flight_fullsync() -> Outcome {
    writes_in_flight("fullsync")
}

#[test]
fn writes_in_flight_memsync() -> Outcome {
    writes_in_flight("memsync")
}

#[test]
fn writes_in_flight_async() -> Outcome {
    writes_in_flight("async")
}

/// A synchronisation that is interrupted goes on with what is left.
#[test]
fn an_interrupted_synchronisation_resumes() -> Outcome {
    let pair = Pair::up(Setup { provider: 64 << 20, ..Setup::with("exec @hook@") })?;
    let mut volume = Volume::fresh(&pair.a, "disk0")?;
    pair.link.cut();
    volume.scribble(3, 0, 48 << 20)?;
    pair.a.wait_status("disk0", "degraded")?;
    let (before, _) = pair.link.bytes_from_a();
    pair.link.restore();
    hast_tests::wait_until("the synchronisation to be under way", hast_tests::LONG, || {
        Ok(pair.link.bytes_from_a().0 > before + (4 << 20))
    })?;
    pair.link.cut();
    pair.a.wait_status("disk0", "degraded")?;
    let (interrupted, _) = pair.link.bytes_from_a();
    pair.link.restore();
    pair.a.wait_in_step("disk0")?;
    let (after, _) = pair.link.bytes_from_a();
    volume.flush()?;
    volume.verify_provider(&pair.b, "disk0")?;
    // What was confirmed before the second cut was not copied again, unless the first part was tiny.
    let (first, second) = (interrupted - before, after - interrupted);
    assert!(first + second >= 48 << 20, "{first} + {second}");
    assert!(second < (48 << 20) + (1 << 20), "{second}");
    pair.finish()
}
