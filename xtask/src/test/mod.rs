//! `cargo xtask test`: what a contributor needs to know before sending a change; with `--all` everything that CI runs.
//! One step after the other, with a table at the end.

mod deny;
mod packages;
mod shell;
mod steps;
mod times;

use std::io::IsTerminal;
use std::process::{Command, ExitCode};
use std::time::Duration;

use times::Times;

use crate::watch::{Watch, about};

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
    /// What it does, in a few words.
    what: &'static str,
    when: When,
    run: fn(&Surroundings) -> Outcome,
}

/// Which runs a step is part of.
#[derive(Clone, Copy, Debug, PartialEq)]
enum When {
    Always,
    /// With `--all`, or by its name.
    All,
}

/// What is to be run, and how.
#[derive(Default)]
struct Options {
    all: bool,
    list: bool,
    /// Packages are installed without a question.
    yes: bool,
    named: Vec<&'static Step>,
}

/// What the steps need to know about where they run.
struct Surroundings {
    /// In CI a step that cannot run has failed.
    ci: bool,
    /// Packages are installed without a question.
    yes: bool,
    /// Somebody can be asked.
    terminal: bool,
    /// The cargo that runs us.
    cargo: std::ffi::OsString,
    /// The step that is being run.
    watch: Watch,
}

impl Surroundings {
    fn look(options: &Options, watch: Watch) -> Surroundings {
        let ci = hast_tests::tools::in_ci();
        Surroundings {
            ci,
            yes: ci || options.yes,
            terminal: std::io::stdin().is_terminal() && std::io::stdout().is_terminal(),
            cargo: std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()),
            watch,
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

    /// Runs a command with its output shown; its success is the step's.
    fn pass(&self, command: &mut Command) -> Outcome {
        let words: Vec<_> = command.get_args().map(|word| word.to_string_lossy()).collect();
        println!("$ {} {}", command.get_program().to_string_lossy(), words.join(" "));
        match self.watch.run(command) {
            Ok(status) if status.success() => Outcome::Passed,
            Ok(status) => Outcome::Failed(format!("{status}")),
            Err(error) => Outcome::Failed(format!("{error}")),
        }
    }
}

pub(crate) fn main(parser: lexopt::Parser) -> Result<ExitCode, lexopt::Error> {
    let options = parse(parser)?;
    let chosen = choose(&options);
    if options.list {
        chosen.iter().for_each(|step| println!("{:<12} {}", step.name, step.what));
        return Ok(ExitCode::SUCCESS);
    }
    crate::tools::enter_root()?;
    Ok(run(&chosen, &options))
}

fn parse(mut parser: lexopt::Parser) -> Result<Options, lexopt::Error> {
    let mut options = Options::default();
    while let Some(argument) = parser.next()? {
        match argument {
            lexopt::Arg::Long("all") => options.all = true,
            lexopt::Arg::Long("list") => options.list = true,
            lexopt::Arg::Long("yes") => options.yes = true,
            lexopt::Arg::Value(name) => {
                let step = steps::ALL.iter().find(|step| name.to_str() == Some(step.name));
                options.named.push(step.ok_or_else(|| format!("no step {name:?}; --list --all shows them"))?);
            }
            other => return Err(other.unexpected()),
        }
    }
    Ok(options)
}

/// The steps that were named, or those of every run, or all.
fn choose(options: &Options) -> Vec<&'static Step> {
    if !options.named.is_empty() {
        return options.named.clone();
    }
    steps::ALL.iter().filter(|step| options.all || step.when == When::Always).collect()
}

fn run(steps: &[&Step], options: &Options) -> ExitCode {
    let mut times = Times::load();
    let names: Vec<&str> = steps.iter().map(|step| step.name).collect();
    println!("{} ({}): {}", steps_of(names.len()), times.forecast(&names), names.join(", "));
    let mut results = Vec::new();
    for (n, step) in (1..).zip(steps) {
        let last = times.last(step.name);
        let told = last.map(|last| format!("; {} last time", about(last))).unwrap_or_default();
        println!("\n== {} ({n} of {}): {}{told} ==", step.name, steps.len(), step.what);
        let surroundings = Surroundings::look(options, Watch::begin(step.name, last));
        let outcome = (step.run)(&surroundings);
        let took = surroundings.watch.took();
        match &outcome {
            Outcome::Passed => times.passed(step.name, took),
            Outcome::Failed(why) => println!("FAILED: {why}"),
            Outcome::Skipped(why) => println!("SKIPPED: {why}"),
        }
        results.push((step.name, outcome, took));
    }
    if options.named.is_empty() && !options.all {
        let left = steps::ALL.iter().filter(|step| step.when == When::All).map(|step| step.name);
        println!("\nNot run, see --all: {}", left.collect::<Vec<_>>().join(", "));
    }
    conclude(&results)
}

fn steps_of(count: usize) -> String {
    if count == 1 { "1 step".to_owned() } else { format!("{count} steps") }
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
    let all: Duration = results.iter().map(|(_, _, took)| *took).sum();
    println!("{:<12} {:>7.1}", "together", all.as_secs_f64());
    let more = if skipped > 0 { format!(", {skipped} skipped") } else { String::new() };
    println!("\n{passed} passed, {failed} failed{more}");
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(words: &[&str]) -> Result<Vec<&'static str>, lexopt::Error> {
        let options = parse(lexopt::Parser::from_args(words))?;
        Ok(choose(&options).iter().map(|step| step.name).collect())
    }

    #[test]
    fn the_default_run_is_part_of_all() {
        let (default, all) = (chosen(&[]).unwrap(), chosen(&["--all", "--yes"]).unwrap());
        assert!(default.len() < all.len() && default.iter().all(|name| all.contains(name)));
        for name in ["format", "clippy", "tests", "failover", "simulator", "freebsd", "demo"] {
            assert!(default.contains(&name), "{name}");
        }
        for name in ["verify", "torture", "power", "fuzz", "deny"] {
            assert!(!default.contains(&name), "{name}");
        }
    }

    #[test]
    fn steps_are_run_by_name() {
        assert_eq!(chosen(&["deny", "format"]).unwrap(), ["deny", "format"]);
        assert!(chosen(&["unknown"]).unwrap_err().to_string().contains("no step"));
    }
}
