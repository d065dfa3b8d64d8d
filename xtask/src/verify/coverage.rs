//! Line and branch coverage of the crates that are verified, by cargo-llvm-cov.
//!
//! What counts are their unit tests, properties and conformance vectors, the proofs, the corpora of the fuzz targets,
//! the simulator and its mutants.
//! Lines and branches of test modules do not count: they would all be covered. Branches are counted by nightly
//! compilers alone; without one their row fails.
//!
//! A *guard* is a look-up that cannot fail, written so that it would not panic if it did: `let Some(entry) = ... else
//! { return };` on one line. Its other branch is there so that no test need reach it, so guards are left out of what
//! is asked for; the share with them is told beside it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::{CRATES, Row};
use crate::tools;

/// The version of cargo-llvm-cov that is installed.
const VERSION: &str = "0.9.1";
/// What is asked for, in percent.
const LEAST: f64 = 95.0;

pub(super) fn rows() -> Vec<Row> {
    match measure() {
        Ok(counts) => CRATES
            .iter()
            .flat_map(|name| counts.get(*name).map(|counts| counts.rows(name)))
            .flatten()
            .collect(),
        Err(why) => vec![Row::new("coverage", "llvm-cov", "", Err(why))],
    }
}

/// What was covered, of how much.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Counts {
    lines: Share,
    branches: Share,
    /// Those of the branches that are guards'.
    guards: Share,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Share {
    covered: u32,
    all: u32,
}

impl Share {
    fn add(&mut self, covered: bool) {
        self.all += 1;
        self.covered += u32::from(covered);
    }

    fn percent(self) -> f64 {
        100.0 * f64::from(self.covered) / f64::from(self.all.max(1))
    }

    fn row(self, title: &str, beside: &str) -> Row {
        let outcome = format!("{:.1} %{beside}", self.percent());
        let good = self.percent() >= LEAST;
        let outcome = if good { Ok(outcome) } else { Err(format!("{outcome}, less than {LEAST} %")) };
        Row::new(title, "llvm-cov", format!("{} of {}", self.covered, self.all), outcome)
    }
}

impl Counts {
    fn rows(self, name: &str) -> [Row; 2] {
        let Share { covered, all } = self.branches;
        let asked = Share { covered: covered - self.guards.covered, all: all - self.guards.all };
        let beside = format!(" without guards, {:.1} % with them", self.branches.percent());
        [self.lines.row(&format!("lines of {name}"), ""), asked.row(&format!("branches of {name}"), &beside)]
    }
}

/// Runs the tests and gives the counts by crate.
fn measure() -> Result<BTreeMap<String, Counts>, String> {
    let tool = tools::cargo_tool("cargo-llvm-cov", VERSION)?;
    let major = llvm_major()?;
    let (cov, profdata) = llvm_tools(major)?;
    let report = tools::target().join("coverage.lcov");
    let run = |arguments: &[&str]| -> Result<(), String> {
        println!("$ cargo +nightly llvm-cov {}", arguments.join(" "));
        let mut command = Command::new(&tool);
        // As cargo would call it; RUSTUP_TOOLCHAIN is what `+nightly` sets.
        command.arg("llvm-cov").args(arguments).env("RUSTUP_TOOLCHAIN", "nightly").env_remove("CARGO");
        // Assertions are code too, and the simulator is slow without optimisation.
        command.env("CARGO_PROFILE_RELEASE_DEBUG_ASSERTIONS", "true");
        command.env_remove("RUSTC").env("LLVM_COV", &cov).env("LLVM_PROFDATA", &profdata);
        match command.stdin(Stdio::null()).stdout(Stdio::null()).status() {
            Ok(status) if status.success() => Ok(()),
            Ok(status) => Err(format!("cargo llvm-cov {}: {status}", arguments.join(" "))),
            Err(error) => Err(format!("cargo llvm-cov: {error}")),
        }
    };
    run(&["clean", "--workspace"])?;
    let packages =
        CRATES.iter().chain(&["hast-proofs", "hast-fuzz", "hast-sim"]).flat_map(|name| ["-p", *name]);
    let packages: Vec<&str> = packages.collect();
    let common = ["--no-report", "--branch", "--release"];
    run(&[&common[..], &packages, &["--lib", "--tests"]].concat())?;
    run(&[&common[..], &["-p", "hast-sim", "--features", "mutants", "--test", "mutants"]].concat())?;
    let path = report.to_string_lossy();
    run(&["report", "--release", "--branch", "--lcov", "--output-path", &path])?;
    let text = std::fs::read_to_string(&report).map_err(|error| format!("{path}: {error}"))?;
    let root = std::env::current_dir().map_err(|error| format!("the project's root: {error}"))?;
    Ok(count(&text, &root, |path| std::fs::read_to_string(path).unwrap_or_default()))
}

/// The version of LLVM in the nightly compiler, which has to read what it writes.
fn llvm_major() -> Result<u32, String> {
    let output = Command::new("rustc").arg("-vV").env("RUSTUP_TOOLCHAIN", "nightly").output();
    let output = output.map_err(|error| format!("rustc: {error}"))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let version = text.lines().find_map(|line| line.strip_prefix("LLVM version: "));
    let major = version.and_then(|version| version.split('.').next()?.parse().ok());
    major.ok_or_else(|| {
        "no nightly compiler, which alone counts branches: `rustup toolchain install nightly`".into()
    })
}

/// llvm-cov and llvm-profdata of that version: Debian's, installed if need be.
fn llvm_tools(major: u32) -> Result<(PathBuf, PathBuf), String> {
    let found = || {
        let find = |name: &str| hast_tests::tools::find(&format!("{name}-{major}"));
        Some((find("llvm-cov")?, find("llvm-profdata")?))
    };
    if found().is_none() && nix::unistd::geteuid().is_root() && hast_tests::tools::find("apt-get").is_some() {
        let package = format!("llvm-{major}");
        println!("$ apt-get install {package}");
        let mut install = Command::new("apt-get");
        install.args(["install", "-qq", "-y", "--no-install-recommends", &package]);
        let _ = install.env("DEBIAN_FRONTEND", "noninteractive").stdin(Stdio::null()).status();
    }
    found().ok_or_else(|| format!("llvm-cov-{major} is not installed (Debian's package llvm-{major})"))
}

/// Sums up a report in lcov's format. `source` gives the text of a file.
fn count(lcov: &str, root: &Path, source: impl Fn(&Path) -> String) -> BTreeMap<String, Counts> {
    let mut counts: BTreeMap<String, Counts> = BTreeMap::new();
    let mut current: Option<(String, u32, Vec<u32>)> = None;
    for line in lcov.lines() {
        if let Some(path) = line.strip_prefix("SF:") {
            let path = Path::new(path);
            let relative = path.strip_prefix(root).unwrap_or(path);
            let mut parts = relative.components().map(|part| part.as_os_str().to_string_lossy());
            let (name, directory) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
            let ours = CRATES.contains(&&*name) && directory == "src";
            current = ours.then(|| {
                let source = source(path);
                (name.into_owned(), end_of_code(&source), guards(&source))
            });
        }
        let Some((name, end, guards)) = &current else { continue };
        let counts = counts.entry(name.clone()).or_default();
        let Some((kind @ ("DA" | "BRDA"), fields)) = line.split_once(':') else { continue };
        let number =
            fields.split(',').next().and_then(|number| number.parse::<u32>().ok()).unwrap_or_default();
        let covered = !matches!(fields.rsplit(',').next(), Some("0" | "-"));
        if number >= *end {
            continue;
        }
        if kind == "DA" {
            counts.lines.add(covered);
        } else {
            counts.branches.add(covered);
            if guards.contains(&number) {
                counts.guards.add(covered);
            }
        }
    }
    counts
}

/// The line at which a file's test module begins: it is the last thing in it.
fn end_of_code(source: &str) -> u32 {
    let line = source.lines().position(|line| line.starts_with("#[cfg(") && line.contains("test"));
    line.and_then(|line| u32::try_from(line + 1).ok()).unwrap_or(u32::MAX)
}

/// The lines that are guards.
fn guards(source: &str) -> Vec<u32> {
    let is_guard = |line: &str| {
        let line = line.trim();
        let leaves = ["else { return", "else { continue"].iter().any(|end| line.contains(end));
        line.starts_with("let ") && leaves && line.ends_with("};")
    };
    (1..).zip(source.lines()).filter(|(_, line)| is_guard(line)).map(|(number, _)| number).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_code_of_the_crates_counts() {
        let lcov = "SF:/p/hast-format/src/nv.rs\nDA:1,5\nDA:2,0\nBRDA:2,0,0,3\nBRDA:2,0,1,-\nDA:4,9\nend_of_record\n\
                    SF:/p/hast-format/tests/nv.rs\nDA:1,1\nend_of_record\n\
                    SF:/p/hastd/src/main.rs\nDA:1,0\nend_of_record\n";
        let counts = count(lcov, Path::new("/p"), |_| "a\nb\n#[cfg(test)]\nmod tests {}\n".to_owned());
        let half = Share { covered: 1, all: 2 };
        let expected = Counts { lines: half, branches: half, guards: Share::default() };
        assert_eq!(counts, BTreeMap::from([("hast-format".to_owned(), expected)]));
        assert!(!half.row("", "").good);
        assert!(Share { covered: 19, all: 20 }.row("", "").good);
    }

    #[test]
    fn guards_are_left_out() {
        let source = "fn f() {\n    let Some(a) = b.get(c) else { return };\n    let Some(a) = b else {\n";
        assert_eq!(guards(source), [2]);
        let lcov = "SF:/p/hast-net/src/lzf.rs\nBRDA:2,0,0,3\nBRDA:2,0,1,0\nBRDA:3,0,0,1\nend_of_record\n";
        let counts = count(lcov, Path::new("/p"), |_| source.to_owned());
        let [_, branches] = counts["hast-net"].rows("hast-net");
        assert!(branches.good && branches.cases == "1 of 1", "{}", branches.result);
    }
}
