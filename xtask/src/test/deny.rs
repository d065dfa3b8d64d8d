//! cargo-deny: licenses, bans and sources of everything we build with, as deny.toml says.

use std::process::Command;

use super::{Outcome, Surroundings};
use crate::tools::cargo_tool;

/// The version that deny.toml is written for.
const VERSION: &str = "0.20.2";

pub(super) fn check(around: &Surroundings) -> Outcome {
    let program = match cargo_tool("cargo-deny", VERSION) {
        Ok(program) => program,
        Err(why) => return around.cannot(why),
    };
    around.pass(Command::new(program).args([
        "--workspace",
        "check",
        "--hide-inclusion-graph",
        "bans",
        "licenses",
        "sources",
    ]))
}
