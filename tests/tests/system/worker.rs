//! Worker processes: their titles, their death, their supervisor's death.

use std::path::PathBuf;

use hast_tests::{LONG, Outcome, Pair, SHORT, Setup, wait_for, wait_until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::volume::Volume;

/// The command line of a process as `pgrep -f` sees it: arguments joined by blanks.
fn title(pid: Pid) -> String {
    let bytes = std::fs::read(PathBuf::from(format!("/proc/{pid}/cmdline"))).unwrap_or_default();
    String::from_utf8_lossy(&bytes).replace('\0', " ").trim_end().to_string()
}

/// Whether a process is there and no zombie.
fn is_alive(pid: Pid) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('Z'))
}

/// Failover scripts wait for these titles, to the letter.
#[test]
fn titles_are_exact() -> Outcome {
    let pair = Pair::up(Setup::default())?;
    let (a, b) = (pair.a.wait_worker("disk0")?, pair.b.wait_worker("disk0")?);
    assert_eq!(title(a), "hastd: disk0 (primary)");
    assert_eq!(title(b), "hastd: disk0 (secondary)");
    for worker in [a, b] {
        assert_eq!(std::fs::read_to_string(format!("/proc/{worker}/comm"))?, "hastd\n");
    }
    pair.b.role("init", "disk0")?;
    assert!(!is_alive(b), "after the role change there is no such process to wait for");
    pair.finish()
}

/// A worker that is killed comes back within moments and takes the device over: every request that was
/// acknowledged stays, none hangs, and the other node gets everything.
#[test]
fn a_killed_primary_worker_is_restarted() -> Outcome {
    let pair = Pair::up(Setup::default())?;
    let mut volume = Volume::fresh(&pair.a, "disk0")?;
    volume.scribble(1, 0, 2 << 20)?;
    let worker = pair.a.wait_worker("disk0")?;
    // A second client with requests in flight at the moment of death.
    let busy = pair.a.client("disk0")?;
    let stop = std::sync::atomic::AtomicBool::new(false);
    let answered = std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let mut answered = 0_u64;
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                let data = hast_tests::disk::pattern(answered, 4096);
                // An error or a closed connection is an answer, too; only silence is not.
                match busy.write((8 << 20) + (answered % 512) * 4096, &data) {
                    Ok(()) => answered += 1,
                    Err(_) => break,
                }
            }
            answered
        });
        hast_tests::wait_until("the second client to write", SHORT, || {
            Ok(pair.a.number("disk0", "writes")? > 100)
        })?;
        kill(worker, Signal::SIGKILL)?;
        let other = wait_for("another worker", SHORT, || {
            Ok(pair.a.worker("disk0")?.filter(|other| *other != worker))
        })?;
        assert_eq!(title(other), "hastd: disk0 (primary)");
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        let answered = writer.join().expect("the writer ends");
        Ok::<_, hast_tests::Failure>(answered)
    })?;
    assert!(answered > 0);
    assert_eq!(pair.a.value("disk0", "role")?.as_deref(), Some("primary"));
    pair.a.wait_in_step("disk0")?;
    // Every write that was answered is there, whoever answered it.
    let client = pair.a.client("disk0")?;
    for slot in 0..answered.min(512) {
        // The last complete round to this slot.
        let last = (answered - 1 - slot) / 512 * 512 + slot;
        let found = client.read((8 << 20) + slot * 4096, 4096)?;
        let expected = hast_tests::disk::pattern(last, 4096);
        // The one write that was in flight may have landed unanswered on the next slot in turn.
        assert!(found == expected || slot == answered % 512, "slot {slot}");
    }
    let after = volume.moved_to(&pair.a, "disk0")?;
    assert!(after.client.read(0, 2 << 20)? == hast_tests::disk::pattern(1, 2 << 20));
    client.flush()?;
    pair.wait_same_data("disk0")?;
    pair.finish()
}

/// A secondary whose worker is killed stays secondary and takes the primary's next connection.
#[test]
fn a_killed_secondary_worker_is_no_matter() -> Outcome {
    let pair = Pair::up(Setup::default())?;
    let mut volume = Volume::fresh(&pair.a, "disk0")?;
    volume.scribble(1, 0, 1 << 20)?;
    let worker = pair.b.wait_worker("disk0")?;
    kill(worker, Signal::SIGKILL)?;
    volume.scribble(2, 1 << 20, 1 << 20)?;
    wait_for("another worker", LONG, || Ok(pair.b.worker("disk0")?.filter(|other| *other != worker)))?;
    assert_eq!(pair.b.value("disk0", "role")?.as_deref(), Some("secondary"));
    pair.a.wait_in_step("disk0")?;
    volume.flush()?;
    volume.verify_provider(&pair.a, "disk0")?;
    volume.verify_provider(&pair.b, "disk0")?;
    pair.finish()
}

/// Workers whose supervisor is gone end themselves, and a new hastd can take over.
#[test]
fn workers_end_with_their_supervisor() -> Outcome {
    let mut pair = Pair::up(Setup::default())?;
    let mut volume = Volume::fresh(&pair.a, "disk0")?;
    volume.scribble(1, 0, 1 << 20)?;
    for primary in [true, false] {
        let node = if primary { &mut pair.a } else { &mut pair.b };
        let worker = node.wait_worker("disk0")?;
        node.signal(Signal::SIGKILL)?;
        wait_until("the worker to end by itself", SHORT, || Ok(!is_alive(worker)))?;
        node.wait_exit()?;
        node.start()?;
        node.role(if primary { "primary" } else { "secondary" }, "disk0")?;
        pair.a.wait_in_step("disk0")?;
    }
    volume.moved_to(&pair.a, "disk0")?.verify()?;
    pair.a.client("disk0")?.flush()?;
    volume.verify_provider(&pair.b, "disk0")?;
    pair.finish()
}

/// A provider that is missing, foreign or in use: the resource goes back to init, the daemon stays.
#[test]
fn a_provider_that_cannot_be_used() -> Outcome {
    let pair = Pair::started(Setup {
        resources: vec![hast_tests::Resource::named("disk0"), hast_tests::Resource::named("disk1")],
        ..Setup::default()
    })?;
    // The metadata of another resource.
    std::fs::copy(pair.a.provider("disk1"), pair.a.provider("disk0"))?;
    pair.a.hastctl(&["role", "primary", "disk0"])?;
    wait_until("disk0 to be back in role init", SHORT, || {
        Ok(pair.a.value("disk0", "role")?.as_deref() == Some("init"))
    })?;
    pair.a.wait_log("not part of resource")?;
    std::fs::remove_file(pair.a.provider("disk0"))?;
    pair.a.hastctl(&["role", "primary", "disk0"])?;
    wait_until("disk0 to be back in role init", SHORT, || {
        Ok(pair.a.value("disk0", "role")?.as_deref() == Some("init"))
    })?;
    pair.a.role("primary", "disk1")?;
    let mut volume = Volume::fresh(&pair.a, "disk1")?;
    volume.scribble(1, 0, 4096)?;
    pair.finish()
}
