//! Many resources in one daemon.

use hast_tests::{Outcome, Pair, Resource, Setup};

use super::Wish;
use super::contender::{setup, uri};
use super::cost;
use super::fio::{self, Amount, Workload};
use super::report::{Table, median};

const COUNTS: [usize; 3] = [1, 8, 64];
/// Provider of each resource, in bytes.
const SIZE: u64 = 64 << 20;
const LOAD: Workload = Workload {
    name: "4k random write qd4",
    kind: "randwrite",
    block: 4 << 10,
    depth: 4,
    flush_each: 0,
    rate: 0,
};

pub(super) fn run(wish: &Wish) -> Outcome {
    let mut table = Table::new(
        "4k random writes at depth 4 on each of several resources, memsync",
        &["IO/s in all", "idle memory per worker, MiB", "peak memory per worker, MiB", "threads per worker"],
    );
    let mut base = f64::NAN;
    for count in COUNTS {
        let names: Vec<String> = (0..count).map(|number| format!("disk{number}")).collect();
        let pair = Pair::up_direct(Setup {
            provider: SIZE + (2 << 20),
            resources: names.iter().map(|name| Resource::with(name, "replication memsync")).collect(),
            ..setup(&wish.directory, "memsync")
        })?;
        let workers: Result<Vec<i32>, _> =
            names.iter().map(|name| pair.a.wait_worker(name).map(nix::unistd::Pid::as_raw)).collect();
        let workers = workers?;
        let sum = || {
            workers.iter().try_fold((0, 0, 0), |(resident, peak, threads), pid| {
                let one = cost::of_process(*pid)?;
                Ok::<_, hast_tests::Failure>((
                    resident + one.resident,
                    peak + one.peak,
                    threads + one.threads,
                ))
            })
        };
        let (idle, ..) = sum()?;
        let uris: Vec<String> = names.iter().map(|name| uri(&pair, name)).collect();
        let mut rates = Vec::new();
        for _ in 0..wish.rounds {
            rates.push(fio::run(&uris, &LOAD, Amount::Seconds(wish.seconds), SIZE)?.iops);
        }
        let (_, peak, threads) = sum()?;
        pair.finish()?;
        let rate = median(rates.into_iter());
        base = if base.is_nan() { rate } else { base };
        let per_worker = |kib: u64| format!("{:.1}", kib as f64 / 1024.0 / count as f64);
        table.row(
            &format!("{count} resources"),
            vec![
                format!("{:.2}", rate / base),
                per_worker(idle),
                per_worker(peak),
                format!("{:.1}", threads as f64 / count as f64),
            ],
        );
    }
    table.print();
    Ok(())
}
