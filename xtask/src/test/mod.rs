//! `cargo xtask test`: every check that CI runs, one after the other, with a table at the end.

mod deny;
mod packages;
mod shell;
mod steps;

use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

/// What came of one step.
enum Outcome {
    Passed,
    Failed(String),
    /// Only outside CI.
    Skipped(String),
}

/// One check with its name.
struct Step {
    name: &'static str,
    run: fn(&Surroundings) -> Outcome,
}

/// What the steps need to know about where they run.
struct Surroundings {
    /// In CI a step that cannot run has failed.
    ci: bool,
    /// The cargo that runs us.
    cargo: std::ffi::OsString,
}

impl Surroundings {
    fn look() -> Surroundings {
        Surroundings {
            ci: hast_tests::tools::in_ci(),
            cargo: std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()),
        }
    }

    /// A cargo command with these words, split at blanks.
    fn cargo(&self, words: &str) -> Command {
        let mut command = Command::new(&self.cargo);
        command.args(words.split_whitespace());
        command
    }

    /// A step that cannot run here.
    fn cannot(&self, why: impl Into<String>) -> Outcome {
        if self.ci { Outcome::Failed(why.into()) } else { Outcome::Skipped(why.into()) }
    }
}

/// Runs a command with its output shown; its success is the step's.
fn pass(command: &mut Command) -> Outcome {
    let words: Vec<_> = command.get_args().map(|word| word.to_string_lossy()).collect();
    let shown = format!("{} {}", command.get_program().to_string_lossy(), words.join(" "));
    println!("$ {shown}");
    match command.stdin(std::process::Stdio::null()).status() {
        Ok(status) if status.success() => Outcome::Passed,
        Ok(status) => Outcome::Failed(format!("{status}")),
        Err(error) => Outcome::Failed(format!("{error}")),
    }
}

pub(crate) fn main(mut parser: lexopt::Parser) -> Result<ExitCode, lexopt::Error> {
    let mut chosen = Vec::new();
    while let Some(argument) = parser.next()? {
        match argument {
            lexopt::Arg::Long("list") => {
                steps::ALL.iter().for_each(|step| println!("{}", step.name));
                return Ok(ExitCode::SUCCESS);
            }
            lexopt::Arg::Value(name) => {
                let step = steps::ALL.iter().find(|step| name.to_str() == Some(step.name));
                chosen.push(step.ok_or_else(|| format!("no step {name:?}; --list shows them"))?);
            }
            other => return Err(other.unexpected()),
        }
    }
    if chosen.is_empty() {
        chosen.extend(steps::ALL);
    }
    crate::tools::enter_root()?;
    Ok(run(&chosen))
}

fn run(steps: &[&Step]) -> ExitCode {
    let surroundings = Surroundings::look();
    let mut results = Vec::new();
    for step in steps {
        println!("\n== {} ==", step.name);
        let begin = Instant::now();
        let outcome = (step.run)(&surroundings);
        match &outcome {
            Outcome::Passed => {}
            Outcome::Failed(why) => println!("FAILED: {why}"),
            Outcome::Skipped(why) => println!("SKIPPED: {why}"),
        }
        results.push((step.name, outcome, begin.elapsed()));
    }
    conclude(&results)
}

/// The table and the closing line, which CI reads.
fn conclude(results: &[(&str, Outcome, Duration)]) -> ExitCode {
    let (mut passed, mut failed, mut skipped) = (0_u32, 0_u32, 0_u32);
    println!("\n{:<12} {:>7}  result", "step", "seconds");
    for (name, outcome, took) in results {
        let (counter, text) = match outcome {
            Outcome::Passed => (&mut passed, "ok".to_string()),
            Outcome::Failed(why) => (&mut failed, format!("FAILED: {why}")),
            Outcome::Skipped(why) => (&mut skipped, format!("skipped: {why}")),
        };
        *counter = counter.saturating_add(1);
        println!("{name:<12} {:>7.1}  {text}", took.as_secs_f64());
    }
    let more = if skipped > 0 { format!(", {skipped} skipped") } else { String::new() };
    println!("\n{passed} passed, {failed} failed{more}");
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
