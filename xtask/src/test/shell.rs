//! shellcheck over every shell script that git knows.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::{Outcome, Surroundings};

pub(super) fn check(around: &Surroundings) -> Outcome {
    if hast_tests::tools::find("shellcheck").is_none() {
        return around.cannot("shellcheck is not installed");
    }
    let scripts = scripts();
    if scripts.is_empty() {
        return Outcome::Failed("no shell script found, not even .ci/run".to_string());
    }
    around.pass(Command::new("shellcheck").args(scripts))
}

fn scripts() -> Vec<PathBuf> {
    let listed =
        Command::new("git").args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"]).output();
    let known = match listed {
        Ok(output) if output.status.success() => output.stdout,
        // No git, no repository: the one script that is always there.
        _ => b".ci/run".to_vec(),
    };
    let names = known.split(|byte| *byte == 0).filter(|name| !name.is_empty());
    names
        .filter_map(|name| std::str::from_utf8(name).ok())
        .map(PathBuf::from)
        .filter(|path| is_shell(path))
        .collect()
}

/// A shell script by its name or its first line.
fn is_shell(path: &Path) -> bool {
    if path.extension().is_some_and(|extension| extension == "sh") {
        return true;
    }
    let mut head = [0; 64];
    let Ok(length) = File::open(path).and_then(|mut file| file.read(&mut head)) else { return false };
    let head = head.get(..length).unwrap_or_default();
    let line = head.split(|byte| *byte == b'\n').next().unwrap_or_default();
    line.starts_with(b"#!") && [&b"/sh"[..], b"bash", b" sh"].iter().any(|end| line.ends_with(end))
}
