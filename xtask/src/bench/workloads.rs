//! Requests per second, time per request, processor time and memory, contender by contender.

use hast_tests::{Context, Failure, Outcome};

use super::Wish;
use super::contender::{Contender, DISK};
use super::fio::{self, Amount, Measured, Workload};
use super::report::{self, Table, median};

const fn workload(name: &'static str, kind: &'static str, block: u32, depth: u32) -> Workload {
    Workload { name, kind, block, depth, flush_each: 0, rate: 0 }
}

const WORKLOADS: [Workload; 9] = [
    workload("4k random write qd1", "randwrite", 4 << 10, 1),
    workload("4k random write qd32", "randwrite", 4 << 10, 32),
    workload("128k sequential write qd1", "write", 128 << 10, 1),
    workload("128k sequential write qd16", "write", 128 << 10, 16),
    workload("4k random read qd1", "randread", 4 << 10, 1),
    workload("4k random read qd32", "randread", 4 << 10, 32),
    workload("128k sequential read qd16", "read", 128 << 10, 16),
    workload("4k mixed qd32", "randrw", 4 << 10, 32),
    Workload { flush_each: 16, ..workload("4k random write qd16, flush each 16", "randwrite", 4 << 10, 16) },
];

/// One turn of one contender.
#[derive(Clone, Copy)]
struct Turn {
    measured: Measured,
    /// Processor seconds of all its processes per GiB moved.
    cpu: f64,
    /// Peak memory so far in MiB, all its processes.
    peak: f64,
}

pub(super) fn run(wish: &Wish) -> Outcome {
    let root = &wish.directory;
    let mut contenders = vec![Contender::plain(root)?, Contender::quorum(root)?];
    for mode in ["memsync", "fullsync", "async"] {
        contenders.push(Contender::pair(root, mode)?);
    }
    if let Some(other) = &wish.other {
        contenders.push(Contender::other(root, other)?);
    }
    let names: Vec<&str> = contenders.iter().map(|contender| contender.name.as_str()).collect();
    let mut rates = Table::new("IO/s, as a multiple of qemu-nbd's", &names);
    let mut medians = Table::new("Median time of a request, as a multiple of qemu-nbd's", &names);
    let mut tails = Table::new("99th percentile, as a multiple of qemu-nbd's", &names);
    let mut costs = Table::new("Processor seconds per GiB, as a multiple of qemu-nbd's", &names);
    let mut peak = Vec::new();
    for workload in WORKLOADS.iter().filter(|workload| wish.wants(workload.name)) {
        let turns = play(wish, &contenders, workload)?;
        let row =
            |value: fn(&Turn) -> f64| turns.iter().map(|turns| median(turns.iter().map(value))).collect();
        let (rate, p50, p99): (Vec<f64>, Vec<f64>, Vec<f64>) =
            (row(|turn| turn.measured.iops), row(|turn| turn.measured.p50), row(|turn| turn.measured.p99));
        let cpu: Vec<f64> = row(|turn| turn.cpu);
        let base = |row: &[f64]| row.first().copied().unwrap_or(f64::NAN);
        rates.ratios(workload.name, &rate, base(&rate), &format!("{:.1} k/s", base(&rate) / 1e3));
        medians.ratios(workload.name, &p50, base(&p50), &format!("{:.0} µs", base(&p50)));
        tails.ratios(workload.name, &p99, base(&p99), &format!("{:.0} µs", base(&p99)));
        costs.ratios(workload.name, &cpu, base(&cpu), &format!("{:.2} s", base(&cpu)));
        peak = row(|turn| turn.peak);
        report::progress(workload.name, &names, &rate, base(&rate));
    }
    let mut memory = Table::new("Peak memory of all processes, as a multiple of qemu-nbd's", &names);
    let base = peak.first().copied().context("no workload is called so")?;
    memory.ratios("all workloads", &peak, base, &format!("{base:.0} MiB"));
    for table in [rates, medians, tails, costs, memory] {
        table.print();
    }
    contenders.into_iter().try_for_each(Contender::finish)
}

/// The turns of each contender. They take them one by one, round after round, so that whatever else the
/// machine does meets all of them.
fn play(wish: &Wish, contenders: &[Contender], workload: &Workload) -> Result<Vec<Vec<Turn>>, Failure> {
    let mut turns = vec![Vec::new(); contenders.len()];
    for _ in 0..wish.rounds {
        for (contender, turns) in contenders.iter().zip(&mut turns) {
            let before = contender.cost()?;
            let uri = std::slice::from_ref(&contender.uri);
            let measured =
                fio::run(uri, workload, Amount::Seconds(wish.seconds), DISK).context(&contender.name)?;
            let used = contender.cost()? - before;
            let gib = measured.bytes / f64::from(1 << 30);
            turns.push(Turn { measured, cpu: used.cpu / gib, peak: used.peak as f64 / 1024.0 });
        }
    }
    Ok(turns)
}
