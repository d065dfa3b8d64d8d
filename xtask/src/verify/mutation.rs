//! Mutation testing with cargo-mutants: hast-format, and the modules of the engine that are rules. Every mutant is
//! caught by a test, or is one of those that `proofs/mutants-explained.txt` explains.

use std::path::Path;
use std::process::{Command, Stdio};

use super::Row;
use crate::tools;

/// The version of cargo-mutants that is installed.
const VERSION: &str = "27.1.0";
/// Where the mutants are explained that no test can catch.
const EXPLAINED: &str = "proofs/mutants-explained.txt";

/// What is mutated, and the tests that have to notice: those of the crate, and of hast-proofs where it is named.
/// (`rule.rs` is nothing but the switch for the simulator's mutants.)
const RUNS: [(&str, &str, &str); 6] = [
    ("hast-format", "hast-format/src/{layout,nv}.rs", "--lib --test layout_properties --test nv_properties"),
    ("hast-format", "hast-format/src/{block,extension,metadata}.rs", "--lib --test block"),
    ("hast-format", "hast-format/src/bitmap.rs", "--lib"),
    ("hast-format", "hast-format/src/activemap.rs", "-p hast-proofs --lib --test exhaustive -- activemap"),
    ("hast-engine", "hast-engine/src/{saving,verdict}.rs", "--lib --test histories"),
    (
        "hast-engine",
        "hast-engine/src/{counts,ranges}.rs",
        "-p hast-proofs --lib --test exhaustive -- range_queue handshake counts ranges",
    ),
];

pub(super) fn rows() -> Vec<Row> {
    let explained = std::fs::read_to_string(EXPLAINED).unwrap_or_default();
    let explained: Vec<&str> = explained.lines().filter_map(mutant).collect();
    RUNS.iter().enumerate().map(|(number, run)| row(number, *run, &explained)).collect()
}

fn row(number: usize, run: (&str, &str, &str), explained: &[&str]) -> Row {
    let files = run.1;
    let output = tools::target().join(format!("mutation-{number}"));
    let title = format!("mutants of {files}");
    let outcome = mutate(run, &output).and_then(|()| survivors(&output.join("mutants.out"), explained));
    match outcome {
        Ok((caught, unexplained)) if unexplained.is_empty() => {
            Row::new(&title, "cargo-mutants", caught, Ok("all others are explained".to_owned()))
        }
        Ok((caught, unexplained)) => {
            unexplained.iter().for_each(|mutant| println!("not noticed: {mutant}"));
            Row::new(&title, "cargo-mutants", caught, Err(format!("{} not noticed", unexplained.len())))
        }
        Err(why) => Row::new(&title, "cargo-mutants", "", Err(why)),
    }
}

fn mutate((package, files, tests): (&str, &str, &str), output: &Path) -> Result<(), String> {
    let tool = tools::cargo_tool("cargo-mutants", VERSION)?;
    std::fs::create_dir_all(output).map_err(|error| format!("{}: {error}", output.display()))?;
    println!("$ cargo mutants -p {package} -f '{files}' -- {tests}");
    let mut command = Command::new(tool);
    command.args(["mutants", "-p", package, "-f", files]);
    command
        .args(["--timeout", "120", "--colors", "never", "-o"])
        .arg(output)
        .arg("--")
        .args(tests.split(' '));
    // A mutant that random tests notice they notice soon. Each has a target directory of its own.
    command.env("PROPTEST_CASES", "32").env_remove("CARGO_TARGET_DIR");
    command.env("CARGO_PROFILE_DEV_DEBUG", "0").env("CARGO_PROFILE_TEST_DEBUG", "0");
    match command.stdin(Stdio::null()).status() {
        // 2: some were not noticed; 3: some did not end.
        Ok(status) if matches!(status.code(), Some(0 | 2 | 3)) => Ok(()),
        Ok(status) => Err(format!("cargo mutants: {status}")),
        Err(error) => Err(format!("cargo mutants: {error}")),
    }
}

/// How many were caught, and those that neither were nor are explained.
fn survivors(results: &Path, explained: &[&str]) -> Result<(u64, Vec<String>), String> {
    let lines = |name: &str| {
        let path = results.join(name);
        std::fs::read_to_string(&path).map_err(|error| format!("{}: {error}", path.display()))
    };
    let caught = lines("caught.txt")?.lines().count() + lines("timeout.txt")?.lines().count();
    let missed = lines("missed.txt")?;
    let missed = missed.lines().filter_map(mutant).filter(|mutant| !explained.contains(mutant));
    Ok((caught as u64, missed.map(str::to_owned).collect()))
}

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
        write("missed.txt", "a.rs:1:1: three\na.rs:2:1: four\n");
        assert_eq!(survivors(results.path(), &["three"]), Ok((2, vec!["four".to_owned()])));
        assert!(survivors(&results.path().join("none"), &[]).is_err());
    }
}
