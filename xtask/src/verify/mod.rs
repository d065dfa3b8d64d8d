//! `cargo xtask verify`: proofs, properties and the model, and one table of what they show. With `--full` also
//! coverage, mutation testing and long fuzzing.

mod coverage;
mod mutation;

use std::fmt;
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use lexopt::Arg::{Long, Value};
use lexopt::ValueExt;

use crate::tools;

/// The crates that are verified.
const CRATES: [&str; 3] = ["hast-format", "hast-net", "hast-engine"];
/// What there is to verify; the first is what CI does.
const PARTS: [&str; 4] = ["checks", "coverage", "mutation", "fuzzing"];
/// How long each fuzz target runs with `--full` unless told otherwise.
const FUZZ_SECONDS: u32 = 600;

/// One line of the table.
struct Row {
    harness: String,
    engine: String,
    cases: String,
    result: String,
    good: bool,
}

impl Row {
    fn new(harness: &str, engine: &str, cases: impl fmt::Display, outcome: Result<String, String>) -> Row {
        let good = outcome.is_ok();
        let result = outcome.unwrap_or_else(|why| format!("FAILED: {why}"));
        Row { harness: harness.into(), engine: engine.into(), cases: cases.to_string(), result, good }
    }

    /// A row as our own programs print it: harness, engine, cases and result, with tabs between them.
    fn parse(line: &str) -> Option<Row> {
        let mut fields = line.splitn(4, '\t').map(str::to_owned);
        let (harness, engine, cases, result) =
            (fields.next()?, fields.next()?, fields.next()?, fields.next()?);
        let good = !result.starts_with("FAILED");
        Some(Row { harness, engine, cases, result, good })
    }
}

pub(crate) fn main(mut parser: lexopt::Parser) -> Result<ExitCode, lexopt::Error> {
    let (mut full, mut again, mut seconds, mut chosen) = (false, false, FUZZ_SECONDS, Vec::new());
    while let Some(argument) = parser.next()? {
        match argument {
            Long("full") => full = true,
            Long("again") => again = true,
            Long("seconds") => seconds = parser.value()?.parse()?,
            Value(name) => match PARTS.iter().find(|part| name.to_str() == Some(part)) {
                Some(part) => chosen.push(*part),
                None => return Err(format!("no part {name:?}; there are {}", PARTS.join(", ")).into()),
            },
            other => return Err(other.unexpected()),
        }
    }
    if chosen.is_empty() {
        chosen.extend(if full { &PARTS[..] } else { &PARTS[..1] });
    }
    tools::enter_root()?;
    let begin = Instant::now();
    let mut rows = Vec::new();
    for part in chosen {
        match part {
            "coverage" => rows.extend(coverage::rows()),
            "mutation" => rows.extend(mutation::rows(again)),
            "fuzzing" => rows.push(fuzzing(seconds)),
            _ => rows.extend(checks()),
        }
    }
    Ok(conclude(&rows, begin.elapsed()))
}

/// What CI verifies.
fn checks() -> Vec<Row> {
    let mut rows = program("hast-proofs");
    rows.extend(CRATES.map(properties));
    rows.extend(program("hast-model"));
    rows.push(kani());
    rows
}

/// The rows that one of our programs prints, and one more if it fails otherwise.
fn program(name: &str) -> Vec<Row> {
    let mut run = tools::cargo();
    run.args(["run", "--quiet", "--release", "-p", name]);
    println!("$ cargo run --release -p {name}");
    match run.stdin(Stdio::null()).stderr(Stdio::inherit()).output() {
        Ok(output) => {
            let text = String::from_utf8_lossy(&output.stdout);
            let mut rows: Vec<Row> = text.lines().filter_map(Row::parse).collect();
            // Two threads print as they get along.
            rows.sort_by(|a, b| (&a.harness, &a.engine).cmp(&(&b.harness, &b.engine)));
            let told = rows.iter().any(|row| !row.good);
            if rows.is_empty() || (!output.status.success() && !told) {
                rows.push(Row::new(name, "", "", Err(format!("{}", output.status))));
            }
            rows
        }
        Err(error) => vec![Row::new(name, "", "", Err(format!("cargo: {error}")))],
    }
}

/// The properties next to the code, and the single cases beside them.
fn properties(name: &str) -> Row {
    println!("$ cargo test -p {name} --lib --tests");
    let mut test = tools::cargo();
    test.args(["test", "--quiet", "-p", name, "--lib", "--tests", "--no-fail-fast"]);
    let title = format!("tests of {name}");
    match test.stdin(Stdio::null()).stderr(Stdio::inherit()).output() {
        Ok(output) => {
            let text = String::from_utf8_lossy(&output.stdout);
            let passed: u64 = text.lines().filter_map(passed).sum();
            let outcome = if output.status.success() && passed > 0 {
                Ok("ok".to_owned())
            } else {
                print!("{text}");
                Err(format!("{}", output.status))
            };
            Row::new(&title, "random, cases", format!("{passed} tests"), outcome)
        }
        Err(error) => Row::new(&title, "random, cases", "", Err(format!("cargo: {error}"))),
    }
}

/// How many tests passed, if the line says so.
fn passed(line: &str) -> Option<u64> {
    let (before, _) = line.strip_prefix("test result: ")?.split_once(" passed")?;
    before.rsplit(' ').next()?.parse().ok()
}

/// The proofs by Kani, where it is installed.
fn kani() -> Row {
    let title = "every harness of hast-proofs";
    if hast_tests::tools::find("cargo-kani").is_none() {
        return Row::new(title, "Kani", "", Ok("not run: Kani is not installed".to_owned()));
    }
    println!("$ cargo kani -p hast-proofs");
    let status = tools::cargo().args(["kani", "-p", "hast-proofs"]).stdin(Stdio::null()).status();
    let outcome = match status {
        Ok(status) if status.success() => Ok("ok".to_owned()),
        Ok(status) => Err(format!("{status}")),
        Err(error) => Err(format!("cargo kani: {error}")),
    };
    Row::new(title, "Kani", "symbolic", outcome)
}

/// Every fuzz target for so long.
fn fuzzing(seconds: u32) -> Row {
    let outcome = match std::env::current_exe() {
        Ok(xtask) => match Command::new(xtask).args(["fuzz", "--seconds", &seconds.to_string()]).status() {
            Ok(status) if status.success() => Ok("ok".to_owned()),
            Ok(status) => Err(format!("{status}")),
            Err(error) => Err(format!("{error}")),
        },
        Err(error) => Err(format!("xtask does not know itself: {error}")),
    };
    Row::new("every fuzz target", "libFuzzer", format!("{seconds} s each"), outcome)
}

/// The table and the closing line.
fn conclude(rows: &[Row], took: Duration) -> ExitCode {
    let width = |of: fn(&Row) -> &str, title: &str| {
        rows.iter().map(|row| of(row).chars().count()).chain([title.len()]).max().unwrap_or_default()
    };
    let (harness, engine) = (width(|row| &row.harness, "harness"), width(|row| &row.engine, "engine"));
    let cases = width(|row| &row.cases, "cases or states");
    println!("\n{:<harness$}  {:<engine$}  {:>cases$}  result", "harness", "engine", "cases or states");
    for row in rows {
        let Row { harness: name, engine: how, cases: many, result, .. } = row;
        println!("{name:<harness$}  {how:<engine$}  {many:>cases$}  {result}");
    }
    let failed = rows.iter().filter(|row| !row.good).count();
    println!("\n{} rows, {failed} failed, {:.0} seconds", rows.len(), took.as_secs_f64());
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_parsed() {
        let row = Row::parse("bits\texhaustive\t12\tok").unwrap();
        assert!(row.good && row.harness == "bits" && row.cases == "12" && row.result == "ok");
        assert!(!Row::parse("bits\trandom\t3\tFAILED: at 3").unwrap().good);
        assert!(Row::parse("warning: nothing").is_none());
    }

    #[test]
    fn passed_tests_are_counted() {
        assert_eq!(passed("test result: ok. 50 passed; 0 failed; 0 ignored"), Some(50));
        assert_eq!(passed("test result: FAILED. 7 passed; 2 failed"), Some(7));
        assert_eq!(passed("running 3 tests"), None);
    }
}
