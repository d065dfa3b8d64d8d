//! What processes have used so far, as the kernel counts it.

use std::ops::Sub;

use hast_tests::{Context, Failure};
use nix::unistd::{SysconfVar, sysconf};

/// Processor time and memory of process groups.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Cost {
    /// Processor time in seconds, user and system.
    pub(super) cpu: f64,
    /// Most memory resident at any time, in KiB, summed over the processes.
    pub(super) peak: u64,
    /// Bytes written by write calls, to files mostly.
    pub(super) written: u64,
    /// Threads.
    pub(super) threads: u64,
    /// Memory resident now, in KiB.
    pub(super) resident: u64,
}

/// What was used between two moments; memory and threads as at the later one.
impl Sub for Cost {
    type Output = Cost;

    fn sub(self, before: Cost) -> Cost {
        Cost { cpu: self.cpu - before.cpu, written: self.written.saturating_sub(before.written), ..self }
    }
}

/// All processes of these groups together.
pub(super) fn of_groups(groups: &[i32]) -> Result<Cost, Failure> {
    let mut sum = Cost::default();
    for entry in std::fs::read_dir("/proc")?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else {
            continue;
        };
        // Whatever ends while we look was none of those that are measured.
        let Ok(stat) = std::fs::read_to_string(entry.path().join("stat")) else { continue };
        let Some((_, rest)) = stat.rsplit_once(") ") else { continue };
        // state ppid pgrp
        let group = rest.split(' ').nth(2).and_then(|field| field.parse().ok());
        if group.is_some_and(|group| groups.contains(&group)) {
            let one = of_process(pid)?;
            sum.cpu += one.cpu;
            sum.peak += one.peak;
            sum.written += one.written;
            sum.threads += one.threads;
            sum.resident += one.resident;
        }
    }
    Ok(sum)
}

/// One process.
pub(super) fn of_process(pid: i32) -> Result<Cost, Failure> {
    let read = |name: &str| {
        let path = format!("/proc/{pid}/{name}");
        std::fs::read_to_string(&path).context(path)
    };
    let ticks = sysconf(SysconfVar::CLK_TCK)?.context("clock ticks per second")? as f64;
    let stat = read("stat")?;
    let (_, rest) = stat.rsplit_once(") ").context("stat")?;
    // From the state on, utime and stime are the 12th and 13th field.
    let used: u64 = rest.split(' ').skip(11).take(2).filter_map(|field| field.parse::<u64>().ok()).sum();
    let (status, io) = (read("status")?, read("io")?);
    Ok(Cost {
        cpu: used as f64 / ticks,
        peak: number(&status, "VmHWM:")?,
        resident: number(&status, "VmRSS:")?,
        threads: number(&status, "Threads:")?,
        written: number(&io, "wchar:")?,
    })
}

/// The number behind a label.
fn number(text: &str, label: &str) -> Result<u64, Failure> {
    let line = text.lines().find_map(|line| line.strip_prefix(label)).context(label)?;
    let digits = line.split_whitespace().next().context(label)?;
    digits.parse().context(label)
}
