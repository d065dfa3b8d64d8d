//! The checks, in the order in which they run: the quick ones first.

use std::fs::OpenOptions;
use std::process::Command;

use super::{Outcome, Step, Surroundings, deny, packages, pass, shell};

/// How long each fuzz target runs: all of them, with what has to be built, within four minutes.
const FUZZ_SECONDS: u32 = 3;

pub(super) const ALL: &[Step] = &[
    Step { name: "packages", run: packages::install },
    Step { name: "format", run: format },
    Step { name: "shell", run: shell::check },
    Step { name: "manuals", run: manuals },
    Step { name: "no-std", run: no_std },
    Step { name: "clippy", run: clippy },
    Step { name: "build", run: build },
    Step { name: "tests", run: tests },
    Step { name: "failover", run: failover },
    Step { name: "doctests", run: doctests },
    Step { name: "rustdoc", run: rustdoc },
    Step { name: "freebsd", run: freebsd },
    Step { name: "demo", run: demo },
    Step { name: "simulator", run: simulator },
    Step { name: "mutants", run: mutants },
    Step { name: "no-mutants", run: no_mutants },
    Step { name: "verify", run: verify },
    Step { name: "torture", run: torture },
    Step { name: "power", run: power },
    Step { name: "fuzz", run: fuzz },
    Step { name: "deny", run: deny::check },
];

fn format(around: &Surroundings) -> Outcome {
    pass(&mut around.cargo("fmt --all --check"))
}

/// hast-format promises to work without std and without an allocator.
fn no_std(around: &Surroundings) -> Outcome {
    pass(&mut around.cargo("check --quiet -p hast-format --lib --no-default-features"))
}

fn clippy(around: &Surroundings) -> Outcome {
    pass(&mut around.cargo("clippy --quiet --workspace --all-targets -- -D warnings"))
}

/// The programs, which the whole-system tests and the demo take as they find them.
fn build(around: &Surroundings) -> Outcome {
    pass(&mut around.cargo("build --quiet -p hastd -p hastctl -p hast-failover"))
}

fn tests(around: &Surroundings) -> Outcome {
    if hast_tests::tools::find("cargo-nextest").is_some() {
        pass(&mut around.cargo("nextest run --workspace --no-fail-fast"))
    } else {
        pass(&mut around.cargo("test --workspace --lib --bins --tests --no-fail-fast"))
    }
}

/// hast-failover with the scripts of dist/, and both among hosts that are namespaces of this machine.
fn failover(around: &Surroundings) -> Outcome {
    pass(&mut around.cargo("test --quiet -p hast-tests --test failover -- --test-threads 4"))
}

fn doctests(around: &Surroundings) -> Outcome {
    pass(&mut around.cargo("test --quiet --workspace --doc"))
}

fn rustdoc(around: &Surroundings) -> Outcome {
    pass(around.cargo("doc --quiet --workspace --no-deps").env("RUSTDOCFLAGS", "-D warnings"))
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
    pass(Command::new("mandoc").args(["-T", "lint", "-W", "warning"]).args(pages))
}

/// Every history that once failed, some hundred that are always the same, and fresh ones for half a minute. The
/// output names the first of those, and one that fails with the command that plays it again.
fn simulator(around: &Surroundings) -> Outcome {
    let mut histories = around.cargo("test --quiet --release -p hast-sim --test histories --test mixed");
    match pass(histories.env("HAST_SIM_COUNT", "800")) {
        Outcome::Passed => pass(&mut around.cargo("run --quiet --release -p hast-sim -- search 30")),
        outcome => outcome,
    }
}

/// Every rule of the engine is broken once, and noticed.
fn mutants(around: &Surroundings) -> Outcome {
    pass(&mut around.cargo("test --quiet --release -p hast-sim --features mutants --test mutants"))
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
    ourselves(&["freebsd", "ci"])
}

/// Every target for a few seconds. (The corpora, and what failed once, are replayed by the tests.)
fn fuzz(around: &Surroundings) -> Outcome {
    if hast_tests::tools::find("c++").is_none() {
        return around.cannot("libFuzzer needs a C++ compiler, and none is installed");
    }
    if let Err(why) = crate::fuzz::tool() {
        return around.cannot(why);
    }
    match crate::fuzz::all(FUZZ_SECONDS) {
        Ok(failed) if failed.is_empty() => Outcome::Passed,
        Ok(failed) => Outcome::Failed(failed.join(", ")),
        Err(why) => Outcome::Failed(why),
    }
}

fn demo(_: &Surroundings) -> Outcome {
    ourselves(&["demo"])
}

/// Proofs, properties and the model, with a table.
fn verify(_: &Surroundings) -> Outcome {
    ourselves(&["verify"])
}

/// One minute, from another seed each time.
fn torture(_: &Surroundings) -> Outcome {
    ourselves(&["torture", "--minutes", "1"])
}

/// Twenty cycles with losses of power, from another seed each time.
fn power(around: &Surroundings) -> Outcome {
    match OpenOptions::new().read(true).write(true).open("/dev/fuse") {
        Ok(_) => ourselves(&["torture", "--power"]),
        Err(error) => around.cannot(format!("disks that forget are made of FUSE: /dev/fuse: {error}")),
    }
}

/// Another command of ours.
fn ourselves(arguments: &[&str]) -> Outcome {
    match std::env::current_exe() {
        Ok(xtask) => pass(Command::new(xtask).args(arguments)),
        Err(error) => Outcome::Failed(format!("xtask does not know itself: {error}")),
    }
}
