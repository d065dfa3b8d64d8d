//! `cargo xtask fuzz`: every fuzz target for some seconds, and one table.
//!
//! cargo-fuzz builds the targets, without a sanitizer: the crates forbid unsafe code, and so any toolchain will do.
//! What libFuzzer learns is kept in the target directory; the committed corpora are only read.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use lexopt::Arg::{Long, Value};
use lexopt::ValueExt;

use crate::tools::{self, cargo, cargo_tool, target};

/// The version of cargo-fuzz that is installed.
const VERSION: &str = "0.13.2";
/// How long each target runs unless told otherwise.
const SECONDS: u32 = 60;
/// The longest input in bytes: somewhat more than a metadata block.
const LONGEST: u32 = 5000;
/// One input that takes longer is a failure, in seconds.
const TIMEOUT: u32 = 25;
/// More memory than this is a failure, in MiB.
const MEMORY: u32 = 2048;

pub(crate) fn main(mut parser: lexopt::Parser) -> Result<ExitCode, lexopt::Error> {
    tools::enter_root()?;
    let known = targets()?;
    let (mut seconds, mut chosen) = (SECONDS, Vec::new());
    while let Some(argument) = parser.next()? {
        match argument {
            Long("seconds") => seconds = parser.value()?.parse()?,
            Value(name) => {
                let found = known.iter().find(|target| name.to_str() == Some(target.as_str()));
                chosen.push(
                    found
                        .ok_or_else(|| format!("no target {name:?}; there are {}", known.join(", ")))?
                        .clone(),
                );
            }
            other => return Err(other.unexpected()),
        }
    }
    if chosen.is_empty() {
        chosen = known;
    }
    let directory = build()?;
    let failed = run(&directory, &chosen, seconds)?;
    Ok(if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// cargo-fuzz, installed if need be.
///
/// # Errors
/// It cannot be installed.
pub(crate) fn tool() -> Result<PathBuf, String> {
    cargo_tool("cargo-fuzz", VERSION)
}

/// The names of the targets: those of the programs.
fn targets() -> Result<Vec<String>, String> {
    let entries = fs::read_dir("fuzz/fuzz_targets").map_err(|error| format!("fuzz/fuzz_targets: {error}"))?;
    let mut names: Vec<String> =
        entries.filter_map(|entry| Some(entry.ok()?.path().file_stem()?.to_str()?.to_owned())).collect();
    names.sort();
    if names.is_empty() { Err("no targets in fuzz/fuzz_targets".into()) } else { Ok(names) }
}

/// Builds all targets; gives the directory they are in.
fn build() -> Result<PathBuf, String> {
    let tool = tool()?;
    let mut path = tool.parent().map(|directory| directory.as_os_str().to_owned()).unwrap_or_default();
    path.push(":");
    path.push(std::env::var_os("PATH").unwrap_or_default());
    let directory = target().join("fuzz");
    let host = host()?;
    let mut build = cargo();
    build.args(["fuzz", "build", "--sanitizer", "none", "--target", &host, "--target-dir"]).arg(&directory);
    println!("$ cargo fuzz build --sanitizer none --target-dir {}", directory.display());
    let status = build
        .env("PATH", path)
        .stdin(Stdio::null())
        .status()
        .map_err(|error| format!("cargo fuzz: {error}"))?;
    if !status.success() {
        return Err(format!("the targets cannot be built: {status}"));
    }
    Ok(directory.join(host).join("release"))
}

/// This machine, as rustc calls it.
fn host() -> Result<String, String> {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let output = Command::new(rustc).arg("-vV").output().map_err(|error| format!("rustc: {error}"))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let host = text.lines().find_map(|line| line.strip_prefix("host: "));
    host.map(str::to_owned).ok_or_else(|| "rustc does not say what machine this is".into())
}

/// Runs the targets one after the other; gives those that found something, and what.
fn run(directory: &Path, targets: &[String], seconds: u32) -> Result<Vec<String>, String> {
    let mut runs = Vec::new();
    for target in targets {
        println!("{target}: {seconds} seconds");
        runs.push(Run::of(directory, target, seconds)?);
    }
    println!(
        "\n{:<18} {:>11} {:>10} {:>7} {:>7} {:>7}  result",
        "target", "executions", "per second", "edges", "of", "corpus"
    );
    for run in &runs {
        let Run { target, executions, edges, all_edges, corpus, .. } = run;
        let rate = executions / u64::from(seconds.max(1));
        let result = if run.succeeded { "ok" } else { "FAILED" };
        println!("{target:<18} {executions:>11} {rate:>10} {edges:>7} {all_edges:>7} {corpus:>7}  {result}");
    }
    let failed: Vec<&Run> = runs.iter().filter(|run| !run.succeeded).collect();
    for run in &failed {
        run.explain();
    }
    Ok(failed.into_iter().map(Run::finding).collect())
}

/// What came of one target.
struct Run {
    target: String,
    executions: u64,
    /// Edges of the control flow that were taken ...
    edges: u64,
    /// ... of so many in the program.
    all_edges: u64,
    /// Inputs that each take an edge, or take it as often, as no other does.
    corpus: u64,
    succeeded: bool,
    /// What libFuzzer, or the code that panicked, says of it.
    complaint: Option<String>,
    /// The input that failed, where it lies ...
    artifact: Option<String>,
    /// ... and in base64, for a reader who has only what was printed.
    input: Option<String>,
    log: PathBuf,
}

impl Run {
    fn of(directory: &Path, name: &str, seconds: u32) -> Result<Run, String> {
        let work = target().join("fuzz-work");
        let (learnt, artifacts) = (work.join(name), format!("fuzz/artifacts/{name}/"));
        for needed in [learnt.as_path(), Path::new(&artifacts)] {
            fs::create_dir_all(needed).map_err(|error| format!("{}: {error}", needed.display()))?;
        }
        let log = work.join(format!("{name}.log"));
        let to_log = File::create(&log).map_err(|error| format!("{}: {error}", log.display()))?;
        let mut fuzzer = Command::new(directory.join(name));
        fuzzer.arg(&learnt).arg(format!("fuzz/corpus/{name}"));
        fuzzer
            .arg(format!("-dict=fuzz/dictionaries/{name}.dict"))
            .arg(format!("-artifact_prefix={artifacts}"));
        fuzzer.arg(format!("-max_total_time={}", seconds.max(1))).arg("-print_final_stats=1");
        fuzzer
            .arg(format!("-max_len={LONGEST}"))
            .arg(format!("-timeout={TIMEOUT}"))
            .arg(format!("-rss_limit_mb={MEMORY}"));
        let status = fuzzer.stdin(Stdio::null()).stdout(Stdio::null()).stderr(to_log).status();
        let status = status.map_err(|error| format!("{name}: {error}"))?;
        let text = fs::read(&log).map_err(|error| format!("{}: {error}", log.display()))?;
        let text = String::from_utf8_lossy(&text);
        let artifact =
            text.lines().find_map(|line| Some(line.split_once("Test unit written to ")?.1.to_owned()));
        let run = Run {
            target: name.to_owned(),
            executions: last_number(&text, "stat::number_of_executed_units:"),
            edges: last_number(&text, " cov:"),
            all_edges: last_number(&text, "modules   ("),
            corpus: last_number(&text, " corp:"),
            succeeded: status.success(),
            complaint: complaint(&text),
            input: artifact.as_deref().and_then(base64),
            artifact,
            log,
        };
        if run.succeeded && run.executions == 0 {
            return Err(format!("{name} executed nothing; see {}", run.log.display()));
        }
        Ok(run)
    }

    /// The target and what it found, in a line.
    fn finding(&self) -> String {
        match &self.complaint {
            Some(complaint) => format!("{}: {complaint}", self.target),
            None => self.target.clone(),
        }
    }

    /// Says what failed and how to see it again.
    fn explain(&self) {
        let Run { target, artifact, log, .. } = self;
        println!("\n{}; its output is in {}.", self.finding(), log.display());
        let Some(artifact) = artifact else { return };
        if let Some(input) = &self.input {
            println!("  base64:          {input}");
        }
        println!("  the input:       {artifact}");
        println!("  to replay it:    cargo run -p hast-fuzz --bin {target} {artifact}");
        println!("  to make it small: cargo fuzz tmin --sanitizer none {target} {artifact}");
        println!("  to keep it:      cp {artifact} fuzz/regressions/{target}/what-is-wrong");
    }
}

/// A file in base64, as coreutils say it (libFuzzer does so for short inputs alone).
fn base64(file: &str) -> Option<String> {
    let output = Command::new("base64")
        .args(["-w", "0", file])
        .output()
        .ok()
        .filter(|output| output.status.success())?;
    String::from_utf8(output.stdout).ok()
}

/// Where something panicked and what it said, or what libFuzzer gives as its reason.
fn complaint(text: &str) -> Option<String> {
    let mut lines = text.lines().skip_while(|line| !line.contains(" panicked at "));
    if let Some((_, place)) = lines.next().and_then(|line| line.split_once(" panicked at ")) {
        let mut complaint = format!("{place} {}", lines.next().unwrap_or_default());
        // What an assertion compared stands below it.
        for compared in
            lines.map(str::trim).take_while(|line| line.starts_with("left: ") || line.starts_with("right: "))
        {
            complaint.push_str("; ");
            complaint.push_str(compared);
        }
        return Some(complaint);
    }
    Some(text.lines().find_map(|line| line.split_once("ERROR: libFuzzer: "))?.1.to_owned())
}

/// The number behind the last `label`; 0 if there is none.
fn last_number(text: &str, label: &str) -> u64 {
    let Some((_, after)) = text.rsplit_once(label) else { return 0 };
    let digits: String = after.trim_start().chars().take_while(char::is_ascii_digit).collect();
    digits.parse().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::{complaint, last_number};

    #[test]
    fn the_reason_is_found() {
        let panicked =
            "#12 NEW cov: 7\nthread '<unnamed>' (9) panicked at fuzz/src/nv.rs:3:5:\nlost\nstack\n";
        assert_eq!(complaint(panicked).as_deref(), Some("fuzz/src/nv.rs:3:5: lost"));
        let compared = "thread 'main' (1) panicked at a.rs:1:1:\nassertion `left == right` failed\n  left: 1\n right: 2\nstack\n";
        let said = "a.rs:1:1: assertion `left == right` failed; left: 1; right: 2";
        assert_eq!(complaint(compared).as_deref(), Some(said));
        let slow = "#12 NEW cov: 7\n==3== ERROR: libFuzzer: timeout after 25 seconds\n";
        assert_eq!(complaint(slow).as_deref(), Some("timeout after 25 seconds"));
        assert_eq!(complaint("#12 DONE cov: 7\n"), None);
    }

    #[test]
    fn numbers_are_found_where_libfuzzer_puts_them() {
        let log = "INFO: Loaded 1 modules   (12345 inline 8-bit counters): 12345 [0x1, 0x2),\n\
                   #2\tINITED cov: 10 ft: 11 corp: 1/1b exec/s: 0 rss: 27Mb\n\
                   #99\tDONE   cov: 778 ft: 3375 corp: 481/216Kb lim: 1201 exec/s: 1156 rss: 30Mb\n\
                   stat::number_of_executed_units: 99\n";
        assert_eq!(last_number(log, "modules   ("), 12_345);
        assert_eq!(last_number(log, " cov:"), 778);
        assert_eq!(last_number(log, " corp:"), 481);
        assert_eq!(last_number(log, "stat::number_of_executed_units:"), 99);
        assert_eq!(last_number(log, "stat::slowest"), 0);
    }
}
