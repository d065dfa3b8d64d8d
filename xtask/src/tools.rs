//! Cargo's own tools that steps need: taken from the PATH, or built once into `target/tools`.

use std::path::PathBuf;
use std::process::Command;

use crate::watch::Watch;

/// Where a tool of cargo's is; it is installed first if need be.
///
/// # Errors
/// Why it cannot be installed.
pub(crate) fn cargo_tool(name: &str, version: &str) -> Result<PathBuf, String> {
    if let Some(installed) = hast_tests::tools::find(name) {
        return Ok(installed);
    }
    let tools = target().join("tools");
    let cached = tools.join("bin").join(name);
    if cached.is_file() {
        return Ok(cached);
    }
    let mut install = cargo();
    install
        .args(["install", "--locked", "--quiet", "--version", version])
        .arg("--root")
        .arg(&tools)
        .arg(name);
    println!("$ cargo install --locked --version {version} --root {} {name}", tools.display());
    match Watch::begin(name, None).run(&mut install) {
        Ok(status) if status.success() => Ok(cached),
        Ok(status) => Err(format!("{name} cannot be installed: {status}")),
        Err(error) => Err(format!("{name} cannot be installed: {error}")),
    }
}

/// The cargo that runs us.
pub(crate) fn cargo() -> Command {
    Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
}

/// The directory of what was built.
pub(crate) fn target() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| PathBuf::from("target"), PathBuf::from)
}

/// Makes the project's root the current directory: everything that is run speaks of files relative to it.
///
/// # Errors
/// It is not there.
pub(crate) fn enter_root() -> Result<(), String> {
    std::env::set_current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
        .map_err(|error| format!("the project's root: {error}"))
}
