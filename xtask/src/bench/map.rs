//! What the activemap costs when it is large.

use hast_tests::{Failure, Outcome, Pair};

use super::Wish;
use super::contender::{DISK, RESOURCE, setup, uri};
use super::cost;
use super::fio::{self, Amount, Workload};
use super::report::{Table, median};

/// Size of a provider with a large map, in bytes. Only what is written takes room.
const LARGE: u64 = 10 << 40;
/// What is written, in bytes.
const WRITTEN: u64 = 1 << 30;
const LOAD: Workload = Workload {
    name: "4k random write qd32",
    kind: "randwrite",
    block: 4 << 10,
    depth: 32,
    flush_each: 0,
    rate: 0,
};

/// Per write of a client.
#[derive(Clone, Copy)]
struct PerWrite {
    rate: f64,
    /// Bytes that the primary's worker wrote besides the data.
    bytes: f64,
    /// Writes of the map, each of them one sector or a run of them, and one flush.
    updates: f64,
}

pub(super) fn run(wish: &Wish) -> Outcome {
    let mut table = Table::new(
        &format!("{} MiB of random 4k writes, memsync, depth 32", WRITTEN >> 20),
        &["IO/s", "map bytes per write", "map writes per write"],
    );
    let mut base = f64::NAN;
    let cases = [
        ("1 GiB provider", DISK, DISK),
        ("10 TiB provider, its first GiB", LARGE, DISK),
        ("10 TiB provider, all of it", LARGE, LARGE),
    ];
    for (name, size, area) in cases {
        let turns: Result<Vec<PerWrite>, Failure> =
            (0..wish.rounds).map(|_| measure(wish, size, area)).collect();
        let turns = turns?;
        let of = |value: fn(&PerWrite) -> f64| median(turns.iter().map(value));
        let rate = of(|turn| turn.rate);
        base = if base.is_nan() { rate } else { base };
        table.row(
            name,
            vec![
                format!("{:.2}", rate / base),
                format!("{:.1}", of(|turn| turn.bytes)),
                format!("{:.4}", of(|turn| turn.updates)),
            ],
        );
    }
    table.print();
    Ok(())
}

/// A provider of this size, written in an area of that.
fn measure(wish: &Wish, size: u64, area: u64) -> Result<PerWrite, Failure> {
    let mut setup = setup(&wish.directory, "memsync");
    setup.provider = size + (8 << 20);
    let pair = Pair::up_direct(setup)?;
    let worker = pair.a.wait_worker(RESOURCE)?.as_raw();
    let (before, updates) = (cost::of_process(worker)?, pair.a.number(RESOURCE, "activemap updates")?);
    let measured = fio::run(&[uri(&pair, RESOURCE)], &LOAD, Amount::Bytes(WRITTEN), area)?;
    let used = cost::of_process(worker)? - before;
    let updates = pair.a.number(RESOURCE, "activemap updates")? - updates;
    pair.finish()?;
    let writes = measured.bytes / f64::from(LOAD.block);
    Ok(PerWrite {
        rate: measured.iops,
        bytes: (used.written as f64 - measured.bytes) / writes,
        updates: updates as f64 / writes,
    })
}
