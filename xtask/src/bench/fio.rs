//! fio as the load: one job through NBD, and what it says about it.

use std::process::Command;

use hast_tests::{Context, Failure, Run};
use serde_json::Value;

/// What a device is made to do.
#[derive(Clone, Copy, Debug)]
pub(super) struct Workload {
    pub(super) name: &'static str,
    /// fio's `rw`.
    pub(super) kind: &'static str,
    /// Bytes per request.
    pub(super) block: u32,
    /// Requests outstanding.
    pub(super) depth: u32,
    /// A flush after so many writes; 0: none.
    pub(super) flush_each: u32,
    /// Requests per second at most; 0: as many as there can be.
    pub(super) rate: u32,
}

/// How much of it.
#[derive(Clone, Copy, Debug)]
pub(super) enum Amount {
    Seconds(u64),
    Bytes(u64),
}

/// What it did.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Measured {
    /// Requests per second, reads and writes together.
    pub(super) iops: f64,
    /// Bytes moved.
    pub(super) bytes: f64,
    /// Median and 99th percentile of the time that a request takes, in microseconds; of writes if there are any.
    pub(super) p50: f64,
    pub(super) p99: f64,
}

/// Runs a workload on the first `area` bytes of each of the devices at `uris` at once.
pub(super) fn run(
    uris: &[String],
    workload: &Workload,
    amount: Amount,
    area: u64,
) -> Result<Measured, Failure> {
    let mut command = Command::new("fio");
    command.args([
        "--output-format=json",
        "--group_reporting",
        "--ioengine=nbd",
        "--norandommap",
        "--randrepeat=0",
    ]);
    // One generator for all sizes: the default one ends at 2^32 blocks.
    command.args(["--random_generator=tausworthe64"]).arg(format!("--size={area}"));
    match amount {
        Amount::Seconds(seconds) => command.arg("--time_based").arg(format!("--runtime={seconds}")),
        Amount::Bytes(bytes) => command.arg(format!("--io_size={bytes}")),
    };
    command.arg(format!("--rw={}", workload.kind)).arg(format!("--bs={}", workload.block));
    command.arg(format!("--iodepth={}", workload.depth));
    if workload.flush_each > 0 {
        command.arg(format!("--fsync={}", workload.flush_each));
    }
    if workload.rate > 0 {
        command.arg(format!("--rate_iops={}", workload.rate));
    }
    for (number, uri) in uris.iter().enumerate() {
        command.arg(format!("--name=job{number}")).arg(format!("--uri={uri}"));
    }
    let text = Run::of(&mut command)?.ok("fio")?;
    // Remarks may precede the report.
    let json = text.find('{').and_then(|at| text.get(at..)).context("fio's report")?;
    let report: Value = serde_json::from_str(json).context("fio's report")?;
    let job = report.get("jobs").and_then(|jobs| jobs.get(0)).context("fio's job")?;
    if number(job, &["error"])? != 0.0 {
        return Failure::because(format!("fio met an error in {}", workload.name));
    }
    let sum = |key: &str| Ok::<f64, Failure>(number(job, &["read", key])? + number(job, &["write", key])?);
    let direction = if number(job, &["write", "total_ios"])? > 0.0 { "write" } else { "read" };
    let percentile =
        |key: &str| Ok::<f64, Failure>(number(job, &[direction, "clat_ns", "percentile", key])? / 1e3);
    Ok(Measured {
        iops: sum("iops")?,
        bytes: sum("io_bytes")?,
        p50: percentile("50.000000")?,
        p99: percentile("99.000000")?,
    })
}

fn number(value: &Value, path: &[&str]) -> Result<f64, Failure> {
    let found = path.iter().try_fold(value, |value, key| value.get(key));
    found.and_then(Value::as_f64).context(format!("fio says no {}", path.join(" ")))
}
