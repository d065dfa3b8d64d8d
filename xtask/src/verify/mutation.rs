//! Mutation testing with cargo-mutants: hast-format, and all of the engine. Every mutant is caught by a test, or is one
//! of those that `proofs/mutants-explained.txt` explains.

use std::path::Path;
use std::process::{Command, Stdio};

use super::Row;
use crate::tools;

/// The version of cargo-mutants that is installed.
const VERSION: &str = "27.1.0";
/// Where the mutants are explained that no test can catch.
const EXPLAINED: &str = "proofs/mutants-explained.txt";

/// One run of cargo-mutants.
#[derive(Clone, Copy)]
struct Run {
    package: &'static str,
    /// What is mutated.
    files: &'static str,
    /// The tests that have to notice: those of the crate, and of hast-proofs where it is named.
    tests: &'static str,
    /// How much hast-format is optimised. Unless the tests try many cases, compiling it is what takes the time.
    optimised: u8,
    /// Tests that take longer, in seconds, have noticed. What has to be compiled of hast-proofs counts as a test.
    timeout: &'static str,
}

/// All of hast-format and of the engine. (`rule.rs` is nothing but the switch for the simulator's mutants.)
const RUNS: [Run; 7] = [
    Run {
        package: "hast-format",
        files: "hast-format/src/{layout,nv}.rs",
        tests: "--lib --test layout_properties --test nv_properties",
        optimised: 0,
        timeout: "20",
    },
    Run {
        package: "hast-format",
        files: "hast-format/src/{block,extension,metadata}.rs",
        tests: "--lib --test block",
        optimised: 1,
        timeout: "20",
    },
    Run {
        package: "hast-format",
        files: "hast-format/src/bitmap.rs",
        tests: "--lib",
        optimised: 0,
        timeout: "20",
    },
    Run {
        package: "hast-format",
        files: "hast-format/src/activemap.rs",
        tests: "-p hast-proofs --lib --test exhaustive -- activemap",
        optimised: 2,
        timeout: "300",
    },
    Run {
        package: "hast-engine",
        files: "hast-engine/src/{durable,saving,verdict}.rs",
        tests: "--lib --test histories",
        optimised: 2,
        timeout: "20",
    },
    Run {
        package: "hast-engine",
        files: "hast-engine/src/{counts,ranges}.rs",
        tests: "-p hast-proofs --lib --test exhaustive -- range_queue handshake counts ranges",
        optimised: 2,
        timeout: "300",
    },
    Run {
        package: "hast-engine",
        files: "hast-engine/src/{connection,parting,types,secondary/*,primary/**/*}.rs",
        tests: "--lib --tests",
        optimised: 2,
        timeout: "30",
    },
];

/// All mutants; `again` only those that were not noticed the last time, and those that are new since.
pub(super) fn rows(again: bool) -> Vec<Row> {
    let explained = std::fs::read_to_string(EXPLAINED).unwrap_or_default();
    let explained: Vec<&str> = explained.lines().filter_map(mutant).collect();
    RUNS.iter().enumerate().map(|(number, run)| row(number, *run, again, &explained)).collect()
}

fn row(number: usize, run: Run, again: bool, explained: &[&str]) -> Row {
    let files = run.files;
    let output = tools::target().join(format!("mutation-{number}"));
    let title = format!("mutants of {files}");
    let outcome = mutate(run, again, &output).and_then(|()| Results::read(&output.join("mutants.out")));
    match outcome {
        Ok(results) => {
            let unexplained = results.unexplained(explained);
            unexplained.iter().for_each(|mutant| println!("not noticed: {mutant}"));
            let outcome = match unexplained.len() {
                0 => Ok(format!("ok, {} explained{}", results.missed.len(), results.before())),
                many => Err(format!("{many} not noticed{}", results.before())),
            };
            Row::new(&title, "cargo-mutants", results.caught, outcome)
        }
        Err(why) => Row::new(&title, "cargo-mutants", "", Err(why)),
    }
}

fn mutate(
    Run { package, files, tests, optimised, timeout }: Run,
    again: bool,
    output: &Path,
) -> Result<(), String> {
    let tool = tools::cargo_tool("cargo-mutants", VERSION)?;
    std::fs::create_dir_all(output).map_err(|error| format!("{}: {error}", output.display()))?;
    println!("$ cargo mutants -p {package} -f '{files}' -- {tests}");
    let mut command = Command::new(tool);
    command.args(["mutants", "-p", package, "-f", files]);
    command.args(again.then_some("--iterate"));
    let optimised = format!("--cargo-arg=profile.dev.package.hast-format.opt-level={optimised}");
    command.args(["--cargo-arg=--config", &optimised, "--timeout", timeout, "--colors", "never", "-o"]);
    command.arg(output).arg("--").args(tests.split(' '));
    // A mutant that random tests notice they notice soon. The crates from elsewhere are built once for all runs.
    let target = tools::target().join("mutation");
    let target = std::path::absolute(&target).map_err(|error| format!("{}: {error}", target.display()))?;
    command.env("PROPTEST_CASES", "32").env("CARGO_TARGET_DIR", target);
    command.env("CARGO_PROFILE_DEV_DEBUG", "0").env("CARGO_PROFILE_TEST_DEBUG", "0");
    match command.stdin(Stdio::null()).status() {
        // 2: some were not noticed; 3: some did not end.
        Ok(status) if matches!(status.code(), Some(0 | 2 | 3)) => Ok(()),
        Ok(status) => Err(format!("cargo mutants: {status}")),
        Err(error) => Err(format!("cargo mutants: {error}")),
    }
}

/// What a run of cargo-mutants left.
struct Results {
    /// How many were noticed.
    caught: usize,
    /// How many were left out: noticed the last time, or no program.
    before: usize,
    /// Those that were not noticed.
    missed: Vec<String>,
}

impl Results {
    fn read(results: &Path) -> Result<Results, String> {
        let lines = |name: &str| {
            let path = results.join(name);
            std::fs::read_to_string(&path).map_err(|error| format!("{}: {error}", path.display()))
        };
        let before = if results.join(BEFORE).exists() { lines(BEFORE)?.lines().count() } else { 0 };
        let caught = lines("caught.txt")?.lines().count() + lines("timeout.txt")?.lines().count();
        let missed = lines("missed.txt")?.lines().filter_map(mutant).map(str::to_owned).collect();
        Ok(Results { caught, before, missed })
    }

    /// Those that are not explained. A line explains one: two of the same name need two.
    fn unexplained(&self, explained: &[&str]) -> Vec<&str> {
        let mut explained = explained.to_vec();
        let mut unexplained = Vec::new();
        for mutant in &self.missed {
            match explained.iter().position(|line| line == mutant) {
                Some(at) => _ = explained.swap_remove(at),
                None => unexplained.push(mutant.as_str()),
            }
        }
        unexplained
    }

    fn before(&self) -> String {
        if self.before == 0 { String::new() } else { format!("; {} not tried again", self.before) }
    }
}

/// Where cargo-mutants lists what it left out.
const BEFORE: &str = "previously_caught.txt";

/// A mutant without the place that it has today: `hast-format/src/nv.rs:12:5: replace ...` is known by its file and
/// what is replaced in which function; the first of these words is the file's.
fn mutant(line: &str) -> Option<&str> {
    let line = line.trim();
    if line.is_empty() || line.starts_with('#') {
        return None;
    }
    Some(line.split_once(": ").map_or(line, |(_, what)| what))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mutants_are_known_wherever_they_move() {
        let one = mutant("hast-format/src/nv.rs:12:5: replace List::is_empty -> bool with true");
        assert_eq!(one, mutant("hast-format/src/nv.rs:99:1: replace List::is_empty -> bool with true"));
        assert_eq!(mutant("# a word about them"), None);
        assert_eq!(mutant(""), None);
    }

    #[test]
    fn only_what_is_explained_may_survive() {
        let results = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(results.path().join(name), text).unwrap();
        write("caught.txt", "a.rs:1:1: one\n");
        write("timeout.txt", "a.rs:1:1: two\n");
        write("missed.txt", "a.rs:1:1: three\na.rs:2:1: four\na.rs:3:1: three\n");
        let read = Results::read(results.path()).unwrap();
        assert_eq!((read.caught, read.before().as_str()), (2, ""));
        assert_eq!(read.unexplained(&["three", "five"]), ["four", "three"]);
        assert_eq!(read.unexplained(&["three", "four", "three"]), Vec::<&str>::new());
        write(BEFORE, "a.rs:3:1: five\n");
        assert_eq!(Results::read(results.path()).unwrap().before, 1);
        assert!(Results::read(&results.path().join("none")).is_err());
    }
}
