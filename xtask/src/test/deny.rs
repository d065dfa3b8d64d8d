//! cargo-deny: licenses, bans and sources of everything we build with, as deny.toml says.

use std::path::PathBuf;
use std::process::Command;

use super::{Outcome, Surroundings, pass};

/// The version that deny.toml is written for.
const VERSION: &str = "0.20.2";

pub(super) fn check(around: &Surroundings) -> Outcome {
    let tools = tools();
    let cached = tools.join("bin/cargo-deny");
    let program = match hast_tests::tools::find("cargo-deny") {
        Some(installed) => installed,
        None if cached.is_file() => cached,
        None => {
            let mut install = around.cargo("install --locked --quiet --version");
            install.arg(VERSION).arg("--root").arg(&tools).arg("cargo-deny");
            if let Outcome::Failed(why) = pass(&mut install) {
                return around.cannot(format!("cargo-deny cannot be installed: {why}"));
            }
            cached
        }
    };
    pass(Command::new(program).args([
        "--workspace",
        "check",
        "--hide-inclusion-graph",
        "bans",
        "licenses",
        "sources",
    ]))
}

/// `target/tools`, where a tool that was built once stays.
fn tools() -> PathBuf {
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| PathBuf::from("target"), PathBuf::from);
    target.join("tools")
}
