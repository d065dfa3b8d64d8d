//! Where hastd, hastctl and hast-failover are.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use crate::{Context, Failure};

/// The programs, built.
#[derive(Clone, Debug)]
pub struct Programs {
    /// The daemon.
    pub hastd: PathBuf,
    /// The control program.
    pub hastctl: PathBuf,
    /// What gives a node its role. Only tests of failover need it: it may be missing in a directory of programs.
    pub failover: PathBuf,
}

static FOUND: OnceLock<Programs> = OnceLock::new();

impl Programs {
    /// From now on [`Programs::find`] gives those in this directory, which must be there.
    ///
    /// # Errors
    ///
    /// They are not, or others have been found already.
    pub fn take_from(directory: &Path) -> Result<(), Failure> {
        let programs = Programs::in_directory(directory);
        if !programs.are_there() {
            return Failure::because(format!("no hastd and hastctl in {}", directory.display()));
        }
        FOUND.set(programs).or_else(|_| Failure::because("the programs have been found already"))
    }

    fn in_directory(directory: &Path) -> Programs {
        let program = |name| directory.join(name);
        Programs { hastd: program("hastd"), hastctl: program("hastctl"), failover: program("hast-failover") }
    }

    fn are_there(&self) -> bool {
        self.hastd.is_file() && self.hastctl.is_file()
    }

    /// The programs next to this executable (a test or xtask). When they are missing they are built
    /// once; when they are there they are taken as they are: `cargo xtask test` builds them first.
    pub fn find() -> Result<Programs, Failure> {
        if let Some(found) = FOUND.get() {
            return Ok(found.clone());
        }
        let directory = profile_directory()?;
        let programs = Programs::in_directory(&directory);
        if !programs.are_there() || !programs.failover.is_file() {
            build(&directory)?;
        }
        Ok(FOUND.get_or_init(|| programs).clone())
    }
}

/// `target/<profile>` of the running executable, which lies there itself or in `deps`.
fn profile_directory() -> Result<PathBuf, Failure> {
    let executable = std::env::current_exe()?;
    let mut directory = executable.parent().context("an executable has a directory")?;
    if directory.ends_with("deps") {
        directory = directory.parent().context("deps lies in the profile's directory")?;
    }
    Ok(directory.to_path_buf())
}

/// Builds the programs into that directory.
pub fn build(directory: &Path) -> Result<(), Failure> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.args(["build", "--quiet", "-p", "hastd", "-p", "hastctl", "-p", "hast-failover"]);
    if directory.ends_with("release") {
        command.arg("--release");
    }
    if let Some(target) = directory.parent() {
        command.arg("--target-dir").arg(target);
    }
    command.current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
    let status = command.status().context("running cargo build")?;
    if !status.success() {
        return Failure::because("hastd, hastctl and hast-failover do not build");
    }
    Ok(())
}
