//! External programs that tests use: NBD clients and the like.

use std::path::PathBuf;

use crate::Failure;

/// Where a program is, if it is installed.
pub fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|directory| directory.join(program)).find(|file| file.is_file())
}

/// Whether all these programs are there. In CI nothing may be skipped, so there a missing one is a
/// failure; elsewhere it is said on standard error, and the test that asked ends early.
pub fn have(programs: &[&str]) -> Result<bool, Failure> {
    let missing: Vec<&str> = programs.iter().copied().filter(|program| find(program).is_none()).collect();
    if missing.is_empty() {
        return Ok(true);
    }
    let text = format!("not installed: {}", missing.join(", "));
    if in_ci() {
        return Failure::because(text);
    }
    eprintln!("SKIPPED: {text}");
    Ok(false)
}

/// Whether this is CI.
pub fn in_ci() -> bool {
    std::env::var_os("CI").is_some_and(|value| !value.is_empty() && value != "false" && value != "0")
}
