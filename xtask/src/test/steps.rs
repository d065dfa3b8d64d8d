//! The checks, in the order in which they run: the quick ones first.

use std::fs::OpenOptions;
use std::process::Command;

use super::{Outcome, Step, Surroundings, When, deny, packages, shell};

/// How long each fuzz target runs: all of them, with what has to be built, within four minutes.
const FUZZ_SECONDS: &str = "3";

pub(super) const ALL: &[Step] = &[
    always("packages", "the programs that tests use", packages::install),
    always("format", "rustfmt", format),
    always("shell", "shellcheck over every script", shell::check),
    always("manuals", "mandoc over every manual page", manuals),
    always("no-std", "hast-format without std", no_std),
    always("clippy", "the linter, warnings are errors", clippy),
    always("build", "hastd, hastctl and hast-failover", build),
    always("tests", "unit tests and whole-system tests", tests),
    always("failover", "hast-failover with ucarp and keepalived, among hosts that are namespaces", failover),
    always("doctests", "the examples in the documentation of the code", doctests),
    always("rustdoc", "the documentation of the code, warnings are errors", rustdoc),
    always("freebsd", "checked, linted and linked for FreeBSD", freebsd),
    always("demo", "a release-built pair, a failover and back", demo),
    always("install", "programs, manuals and what starts them, into a directory", install),
    always(
        "simulator",
        "the engine in a simulated world, some hundred histories and half a minute of new ones",
        simulator,
    ),
    always("mutants", "every rule of the engine broken once, and noticed", mutants),
    always("no-mutants", "nothing of that is in what ships", no_mutants),
    with_all("verify", "proofs, properties and the model of the protocol", verify),
    with_all("torture", "real daemons killed, cut off and frozen for a minute", torture),
    with_all("power", "twenty cycles with losses of power", power),
    with_all("fuzz", "every fuzz target for some seconds", fuzz),
    with_all("deny", "licenses, bans and sources of what it is built with", deny::check),
];

const fn always(name: &'static str, what: &'static str, run: fn(&Surroundings) -> Outcome) -> Step {
    Step { name, what, when: When::Always, run }
}

const fn with_all(name: &'static str, what: &'static str, run: fn(&Surroundings) -> Outcome) -> Step {
    Step { name, what, when: When::All, run }
}

fn format(around: &Surroundings) -> Outcome {
    around.pass(&mut around.cargo("fmt --all --check"))
}

/// hast-format promises to work without std and without an allocator.
fn no_std(around: &Surroundings) -> Outcome {
    around.pass(&mut around.cargo("check --quiet -p hast-format --lib --no-default-features"))
}

/// The failover tests are no part of the others, and so not of --all-targets either.
fn clippy(around: &Surroundings) -> Outcome {
    match around.pass(&mut around.cargo("clippy --quiet --workspace --all-targets -- -D warnings")) {
        Outcome::Passed => {
            around.pass(&mut around.cargo("clippy --quiet -p hast-tests --test failover -- -D warnings"))
        }
        outcome => outcome,
    }
}

/// The programs, which the whole-system tests and the demo take as they find them.
fn build(around: &Surroundings) -> Outcome {
    around.pass(&mut around.cargo("build --quiet -p hastd -p hastctl -p hast-failover"))
}

fn tests(around: &Surroundings) -> Outcome {
    if hast_tests::tools::find("cargo-nextest").is_some() {
        around.pass(&mut around.cargo("nextest run --workspace --no-fail-fast"))
    } else {
        around.pass(&mut around.cargo("test --workspace --lib --bins --tests --no-fail-fast"))
    }
}

/// hast-failover with the scripts of dist/, and both among hosts that are namespaces of this machine.
fn failover(around: &Surroundings) -> Outcome {
    around.pass(&mut around.cargo("test --quiet -p hast-tests --test failover -- --test-threads 4"))
}

fn doctests(around: &Surroundings) -> Outcome {
    around.pass(&mut around.cargo("test --quiet --workspace --doc"))
}

fn rustdoc(around: &Surroundings) -> Outcome {
    around.pass(around.cargo("doc --quiet --workspace --no-deps").env("RUSTDOCFLAGS", "-D warnings"))
}

fn manuals(around: &Surroundings) -> Outcome {
    if hast_tests::tools::find("mandoc").is_none() {
        return around.cannot("mandoc is not installed");
    }
    let mut pages = Vec::new();
    for entry in std::fs::read_dir("docs/man").into_iter().flatten().flatten() {
        pages.push(entry.path());
    }
    if pages.is_empty() {
        return Outcome::Failed("no manual pages in docs/man".to_string());
    }
    pages.sort();
    around.pass(Command::new("mandoc").args(["-T", "lint", "-W", "warning"]).args(pages))
}

/// Every history that once failed, some hundred that are always the same, and fresh ones for half a minute. The
/// output names the first of those, and one that fails with the command that plays it again.
fn simulator(around: &Surroundings) -> Outcome {
    let mut histories = around.cargo("test --quiet --release -p hast-sim --test histories --test mixed");
    match around.pass(histories.env("HAST_SIM_COUNT", "800")) {
        Outcome::Passed => around.pass(&mut around.cargo("run --quiet --release -p hast-sim -- search 30")),
        outcome => outcome,
    }
}

/// Every rule of the engine is broken once, and noticed.
fn mutants(around: &Surroundings) -> Outcome {
    around.pass(&mut around.cargo("test --quiet --release -p hast-sim --features mutants --test mutants"))
}

/// What ships has no switch that breaks a rule.
fn no_mutants(around: &Surroundings) -> Outcome {
    let mut tree =
        around.cargo("tree --quiet -p hastd -p hastctl -p hast-failover -e features,normal --prefix none");
    match tree.output() {
        Ok(output) if !output.status.success() => Outcome::Failed("cargo tree failed".to_string()),
        Ok(output) if String::from_utf8_lossy(&output.stdout).contains("mutants") => {
            Outcome::Failed("the programs are built with the feature `mutants`".to_string())
        }
        Ok(_) => Outcome::Passed,
        Err(error) => Outcome::Failed(format!("cargo tree: {error}")),
    }
}

/// Checked, linted and linked for FreeBSD; nothing of it can run here.
fn freebsd(around: &Surroundings) -> Outcome {
    if hast_tests::tools::find("apt-get").is_none() {
        return around.cannot("the standard library for FreeBSD comes from Debian's packages");
    }
    ourselves(around, &["freebsd", "ci"])
}

/// Every target for a few seconds. (The corpora, and what failed once, are replayed by the tests.)
fn fuzz(around: &Surroundings) -> Outcome {
    if hast_tests::tools::find("c++").is_none() {
        return around.cannot("libFuzzer needs a C++ compiler, and none is installed");
    }
    if let Err(why) = crate::fuzz::tool() {
        return around.cannot(why);
    }
    ourselves(around, &["fuzz", "--seconds", FUZZ_SECONDS])
}

fn demo(around: &Surroundings) -> Outcome {
    ourselves(around, &["demo"])
}

/// As a packager does it; what was installed runs.
fn install(around: &Surroundings) -> Outcome {
    let root = match tempfile::tempdir() {
        Ok(root) => root,
        Err(error) => return Outcome::Failed(format!("a directory: {error}")),
    };
    let destdir = root.path().display().to_string();
    match ourselves(around, &["install", "--prefix", "/usr", "--destdir", &destdir]) {
        Outcome::Passed => around.pass(Command::new(root.path().join("usr/sbin/hastd")).arg("--version")),
        outcome => outcome,
    }
}

/// Proofs, properties and the model, with a table.
fn verify(around: &Surroundings) -> Outcome {
    ourselves(around, &["verify"])
}

/// One minute, from another seed each time.
fn torture(around: &Surroundings) -> Outcome {
    ourselves(around, &["torture", "--minutes", "1"])
}

/// Twenty cycles with losses of power, from another seed each time.
fn power(around: &Surroundings) -> Outcome {
    match OpenOptions::new().read(true).write(true).open("/dev/fuse") {
        Ok(_) => ourselves(around, &["torture", "--power"]),
        Err(error) => around.cannot(format!("disks that forget are made of FUSE: /dev/fuse: {error}")),
    }
}

/// Another command of ours.
fn ourselves(around: &Surroundings, arguments: &[&str]) -> Outcome {
    match std::env::current_exe() {
        Ok(xtask) => around.pass(Command::new(xtask).args(arguments)),
        Err(error) => Outcome::Failed(format!("xtask does not know itself: {error}")),
    }
}
