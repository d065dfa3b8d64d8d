//! Commands that are about what ships begin anew as a release build, and build the programs likewise.

use std::os::unix::process::CommandExt;
use std::path::PathBuf;

use hast_tests::{Context, Failure, Outcome, programs};

/// Goes on only in a release build: otherwise this process becomes one, and does not return unless that fails.
pub(crate) fn insist() -> Result<(), lexopt::Error> {
    if !cfg!(debug_assertions) {
        return Ok(());
    }
    println!("Building for release; the first time that takes some minutes ...");
    let mut command = crate::tools::cargo();
    command.args(["run", "--release", "--package", "xtask", "--"]).args(std::env::args_os().skip(1));
    let error = command.current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/..")).exec();
    Err(format!("{command:?}: {error}").into())
}

/// The programs that ship.
pub(crate) const PROGRAMS: [&str; 3] = ["hastd", "hastctl", "hast-failover"];

/// Builds the programs as they ship, whatever this one is built as; gives their directory. Always all of them: what is
/// below them would be built differently for some, and be built again for all.
pub(crate) fn build_shipping() -> Result<PathBuf, Failure> {
    let names = PROGRAMS.join(", ");
    println!("Building {names} for release; the first time that takes some minutes ...");
    // Beside the profile that this program lies in, wherever it was called.
    let executable = std::env::current_exe()?;
    let target = executable.ancestors().nth(2).context("xtask lies in a target directory")?;
    let mut command = crate::tools::cargo();
    command.args(["build", "--release", "--target-dir"]).arg(target);
    command.args(PROGRAMS.iter().flat_map(|program| ["-p", program]));
    command.current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
    if !command.status().context("running cargo build")?.success() {
        return Failure::because(format!("{names} do not build"));
    }
    Ok(target.join("release"))
}

/// Builds hastd and hastctl next to this program, where the harness looks for them.
pub(crate) fn build_programs() -> Outcome {
    let executable = std::env::current_exe()?;
    programs::build(executable.parent().context("xtask lies in a directory")?)
}

/// Builds a hastd whose rules can be broken, in a target directory of its own, and a hastctl; gives their directory.
pub(crate) fn build_mutants() -> Result<PathBuf, Failure> {
    let target = crate::tools::target().join("mutants");
    let mut command = crate::tools::cargo();
    command.args([
        "build",
        "--quiet",
        "--release",
        "-p",
        "hastd",
        "-p",
        "hastctl",
        "--features",
        "hastd/mutants",
    ]);
    command.arg("--target-dir").arg(&target).current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
    if !command.status().context("running cargo build")?.success() {
        return Failure::because("hastd does not build with its rules to be broken");
    }
    Ok(target.join("release"))
}
