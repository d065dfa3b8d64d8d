//! How fast a secondary is brought up to date: everything, or a tenth of it; near and far; and what the
//! clients notice of it.

use std::process::Command;
use std::time::{Duration, Instant};

use hast_tests::link::Relay;
use hast_tests::pair::scratch_in;
use hast_tests::{Context, Failure, LONG, Loopback, Outcome, Pair, Run, Setup, wait_until};

use super::contender::{self, DISK, EXTENT, RESOURCE, fill_behind, qemu_nbd, setup, uri};
use super::fio::{self, Amount, Workload};
use super::report::{Table, median};
use super::{Server, Wish};

/// Round trips of the link in milliseconds.
const ROUND_TRIPS: [u64; 4] = [0, 1, 10, 50];
/// What the clients do while a synchronisation goes on.
const FOREGROUND: Workload = Workload {
    name: "4k random write qd1",
    kind: "randwrite",
    block: 4 << 10,
    depth: 1,
    flush_each: 0,
    rate: 0,
};
/// Size of the disks at the ends of a long link, in bytes: the round trips in which a synchronisation begins and ends
/// are to be a small part of it.
const FAR_DISK: u64 = 4 * DISK;

pub(super) fn run(wish: &Wish) -> Outcome {
    direct(wish)?;
    far(wish)?;
    foreground(wish)
}

/// Without anything between the nodes, beside a plain copy over the same kind of connection.
fn direct(wish: &Wish) -> Outcome {
    let pair = Pair::up_direct(setup(&wish.directory, "memsync"))?;
    fill_pair(&pair)?;
    let (mut copies, mut full, mut tenth) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..wish.rounds {
        copies.push(copy(wish, DISK, Duration::ZERO)?);
        full.push(full_sync(&pair)?);
        tenth.push(scattered_sync(&pair)?);
    }
    pair.finish()?;
    let base = median(copies.into_iter());
    let mut table = Table::new(
        "Bytes per second on a direct link, as a multiple of nbdcopy's",
        &["nbdcopy", "full", "10 % scattered"],
    );
    let row = [base, median(full.into_iter()), median(tenth.into_iter())];
    table.ratios("synchronisation", &row, base, &format!("{:.0} MB/s", base / 1e6));
    table.print();
    Ok(())
}

/// Through relays that delay both directions.
fn far(wish: &Wish) -> Outcome {
    let pair = Pair::up(Setup { provider: FAR_DISK, ..setup(&wish.directory, "memsync") })?;
    fill_pair(&pair)?;
    let mut table = Table::new(
        "Bytes per second by round trip, as a multiple of the same without delay",
        &ROUND_TRIPS.map(|ms| format!("{ms} ms")).iter().map(String::as_str).collect::<Vec<_>>(),
    );
    let mut measure = |name: &str, one: &dyn Fn(Duration) -> Result<f64, Failure>| -> Outcome {
        let mut row = Vec::new();
        for round_trip in ROUND_TRIPS {
            let each_way = Duration::from_micros(round_trip * 500);
            let values: Result<Vec<f64>, Failure> = (0..wish.rounds).map(|_| one(each_way)).collect();
            row.push(median(values?.into_iter()));
        }
        let base = row.first().copied().unwrap_or(f64::NAN);
        table.ratios(name, &row, base, &format!("{:.0} MB/s", base / 1e6));
        Ok(())
    };
    measure("nbdcopy", &|each_way| copy(wish, FAR_DISK, each_way))?;
    measure("full synchronisation", &|each_way| {
        pair.link.delay(each_way);
        full_sync(&pair)
    })?;
    table.print();
    pair.finish()
}

/// What a client notices of a full synchronisation.
fn foreground(wish: &Wish) -> Outcome {
    let pair = Pair::up_direct(Setup { provider: 4 * DISK, ..setup(&wish.directory, "memsync") })?;
    fill_pair(&pair)?;
    let (mut alone, mut during) = (Vec::new(), Vec::new());
    let uris = [uri(&pair, RESOURCE)];
    for _ in 0..wish.rounds {
        alone.push(fio::run(&uris, &FOREGROUND, Amount::Seconds(1), DISK)?.p99);
        begin_full_sync(&pair)?;
        during.push(fio::run(&uris, &FOREGROUND, Amount::Seconds(1), DISK)?.p99);
        if pair.a.number(RESOURCE, "dirty")? == 0 {
            println!(
                "  the synchronisation was over before the load was: the tail is better than it should be"
            );
        }
        pair.a.wait_in_step(RESOURCE)?;
    }
    pair.finish()?;
    let base = median(alone.into_iter());
    let mut table = Table::new(
        "99th percentile of 4k random writes at depth 1",
        &["without", "during a full synchronisation"],
    );
    table.ratios("memsync", &[base, median(during.into_iter())], base, &format!("{base:.0} µs"));
    table.print();
    Ok(())
}

/// Both data areas full of the same.
fn fill_pair(pair: &Pair) -> Outcome {
    for node in [&pair.a, &pair.b] {
        fill_behind(&node.provider(RESOURCE))?;
    }
    // A primary that nobody wrote to has nothing to synchronise to a fresh secondary.
    let client = pair.a.client(RESOURCE)?;
    client.write(0, &[1; 4096]).context("a first write")?;
    client.flush().context("a flush")?;
    client.disconnect().context("disconnect")
}

/// Bytes per second of `nbdcopy` of so many bytes to a qemu-nbd over TCP.
fn copy(wish: &Wish, size: u64, each_way: Duration) -> Result<f64, Failure> {
    let directory = scratch_in(&wish.directory, "hast-bench-")?;
    let (from, to) = (directory.path().join("from"), directory.path().join("to"));
    contender::fill(&from, size)?;
    contender::fill(&to, size)?;
    let (server, relay) = (Loopback::reserve()?, Loopback::reserve()?);
    let target = (server.ip(), 10809).into();
    let _server = Server::start(qemu_nbd(&to).args(["-b", &server.ip().to_string(), "-p", "10809"]))?;
    wait_until("qemu-nbd to listen", LONG, || Ok(std::net::TcpStream::connect(target).is_ok()))?;
    let relayed = Relay::start((relay.ip(), 10809).into(), target, relay.ip())?;
    relayed.delay(each_way);
    let host = if each_way.is_zero() { server.ip() } else { relay.ip() };
    let begin = Instant::now();
    Run::of(Command::new("nbdcopy").arg(&from).arg(format!("nbd://{host}:10809")))?.ok("nbdcopy")?;
    Ok(size as f64 / begin.elapsed().as_secs_f64())
}

/// Bytes per second of a full synchronisation.
fn full_sync(pair: &Pair) -> Result<f64, Failure> {
    let began = begin_full_sync(pair)?;
    let size = hast_tests::disk::metadata(&pair.a.provider(RESOURCE))?.datasize;
    finish_sync(pair, began, size)
}

/// Node b starts with an empty disk. Gives when the synchronisation had begun.
fn begin_full_sync(pair: &Pair) -> Result<Instant, Failure> {
    pair.b.role("init", RESOURCE)?;
    pair.a.wait_status(RESOURCE, "degraded")?;
    pair.b.ctl(&["create", "-e", &EXTENT.to_string(), RESOURCE])?;
    begin(pair)
}

/// Bytes per second when every tenth extent has been touched meanwhile.
fn scattered_sync(pair: &Pair) -> Result<f64, Failure> {
    pair.b.role("init", RESOURCE)?;
    pair.a.wait_status(RESOURCE, "degraded")?;
    let client = pair.a.client(RESOURCE)?;
    for at in (0..DISK).step_by(usize::try_from(10 * EXTENT)?) {
        client.write(at, &[2; 4096]).context("a write")?;
    }
    client.disconnect().context("disconnect")?;
    let dirty = pair.a.number(RESOURCE, "dirty")?;
    let began = begin(pair)?;
    finish_sync(pair, began, dirty)
}

fn begin(pair: &Pair) -> Result<Instant, Failure> {
    let before = started(pair);
    pair.b.role("secondary", RESOURCE)?;
    // The log is quicker than `hastctl list`, and costs the daemon nothing.
    wait_until("the synchronisation to begin", LONG, || Ok(started(pair) > before))?;
    Ok(Instant::now())
}

fn started(pair: &Pair) -> usize {
    pair.a.log().matches("Synchronization started").count()
}

fn finish_sync(pair: &Pair, began: Instant, bytes: u64) -> Result<f64, Failure> {
    wait_until("the synchronisation to be complete", 4 * LONG, || {
        Ok(pair.a.log().matches("Synchronization complete").count() == started(pair))
    })?;
    let elapsed = began.elapsed().as_secs_f64();
    pair.a.wait_in_step(RESOURCE)?;
    Ok(bytes as f64 / elapsed)
}
