//! The checks, in the order in which they run: the quick ones first.

use std::process::Command;

use super::{Outcome, Step, Surroundings, deny, packages, pass, shell};

pub(super) const ALL: &[Step] = &[
    Step { name: "packages", run: packages::install },
    Step { name: "format", run: format },
    Step { name: "shell", run: shell::check },
    Step { name: "manuals", run: manuals },
    Step { name: "no-std", run: no_std },
    Step { name: "clippy", run: clippy },
    Step { name: "build", run: build },
    Step { name: "tests", run: tests },
    Step { name: "doctests", run: doctests },
    Step { name: "rustdoc", run: rustdoc },
    Step { name: "demo", run: demo },
    Step { name: "torture", run: torture },
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
    pass(&mut around.cargo("build --quiet -p hastd -p hastctl"))
}

fn tests(around: &Surroundings) -> Outcome {
    if hast_tests::tools::find("cargo-nextest").is_some() {
        pass(&mut around.cargo("nextest run --workspace --no-fail-fast"))
    } else {
        pass(&mut around.cargo("test --workspace --lib --bins --tests --no-fail-fast"))
    }
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

fn demo(_: &Surroundings) -> Outcome {
    ourselves(&["demo"])
}

/// One minute, from another seed each time.
fn torture(_: &Surroundings) -> Outcome {
    ourselves(&["torture", "--minutes", "1"])
}

/// Another command of ours.
fn ourselves(arguments: &[&str]) -> Outcome {
    match std::env::current_exe() {
        Ok(xtask) => pass(Command::new(xtask).args(arguments)),
        Err(error) => Outcome::Failed(format!("xtask does not know itself: {error}")),
    }
}
