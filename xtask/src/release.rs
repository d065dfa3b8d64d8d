//! Commands that are about what ships begin anew as a release build, and build the programs likewise.

use std::os::unix::process::CommandExt;
use std::process::Command;

use hast_tests::{Context, Outcome, programs};

/// Goes on only in a release build: otherwise this process becomes one, and does not return unless that fails.
pub(crate) fn insist() -> Result<(), lexopt::Error> {
    if !cfg!(debug_assertions) {
        return Ok(());
    }
    println!("Building for release ...");
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command
        .args(["run", "--quiet", "--release", "--package", "xtask", "--"])
        .args(std::env::args_os().skip(1));
    let error = command.current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/..")).exec();
    Err(format!("{command:?}: {error}").into())
}

/// Builds hastd and hastctl next to this program, where the harness looks for them.
pub(crate) fn build_programs() -> Outcome {
    let executable = std::env::current_exe()?;
    programs::build(executable.parent().context("xtask lies in a directory")?)
}
