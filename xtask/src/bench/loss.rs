//! What a short loss of the link costs: how much is to be copied afterwards, and how much of that because it was
//! written before and no flush had covered it yet (durability.md M2, M3).

use std::thread;
use std::time::Duration;

use hast_tests::{Context, Failure, Outcome, Pair, Setup};

use super::Wish;
use super::contender::{DISK, EXTENT, RESOURCE, setup, uri};
use super::fio::{self, Amount, Workload};
use super::report::{Table, median};

/// 10 000 random writes a second.
const LOAD: Workload = Workload {
    name: "4k random write qd32, 10 000/s",
    kind: "randwrite",
    block: 4 << 10,
    depth: 32,
    flush_each: 0,
    rate: 10_000,
};
/// Size of the disks in bytes, sparse: so large that hardly an extent is written twice.
const SIZE: u64 = 1 << 40;
/// How long the load goes on before the link is lost, and how long it is lost.
const BEFORE: Duration = Duration::from_secs(2);
const LOST: Duration = Duration::from_secs(1);

pub(super) fn run(wish: &Wish) -> Outcome {
    let mut table = Table::new(
        "Extents to copy after the link was lost for a second under 10 000 random 4k writes a second, memsync",
        &["written meanwhile, at most", "to copy at the moment of loss", "to copy a second later"],
    );
    for (name, size) in [("1 GiB", DISK), ("1 TiB", SIZE)] {
        let mut turns = Vec::new();
        for _ in 0..wish.rounds {
            turns.push(lose(wish, size)?);
        }
        let column = |at: usize| median(turns.iter().filter_map(|turn| turn.get(at).copied()));
        let written = (LOAD.rate as f64 * LOST.as_secs_f64()).min((size / EXTENT) as f64);
        table.row(
            name,
            vec![format!("{written:.0}"), format!("{:.0}", column(0)), format!("{:.0}", column(1))],
        );
    }
    table.print();
    Ok(())
}

/// Extents to copy when the loss was noticed, and when the link was lost for [`LOST`].
fn lose(wish: &Wish, size: u64) -> Result<[f64; 2], Failure> {
    let pair = Pair::up(Setup { provider: size + (8 << 20), ..setup(&wish.directory, "memsync") })?;
    let uris = [uri(&pair, RESOURCE)];
    let load = thread::spawn(move || fio::run(&uris, &LOAD, Amount::Seconds(5), size));
    thread::sleep(BEFORE);
    pair.link.cut();
    pair.a.wait_status(RESOURCE, "degraded")?;
    let first = pair.a.number(RESOURCE, "dirty")?;
    thread::sleep(LOST);
    let second = pair.a.number(RESOURCE, "dirty")?;
    load.join().ok().context("fio's thread")??;
    // Not copied: that would fill what the disks lie on.
    drop(pair);
    Ok([(first / EXTENT) as f64, (second / EXTENT) as f64])
}
