//! `cargo xtask sim`: the simulator, built for speed, and its mutants.

use std::process::ExitCode;

use lexopt::Arg::Long;
use lexopt::ValueExt;

/// How long a search lasts unless told otherwise, in minutes.
const MINUTES: f64 = 1.0;
/// How many histories of one scene are played unless told otherwise.
const COUNT: u64 = 150;

pub(crate) fn main(mut parser: lexopt::Parser) -> Result<ExitCode, lexopt::Error> {
    let (mut plan, mut mutant, mut scene, mut minutes, mut count) = (None, None, None, None, None);
    let mut faults = None;
    while let Some(argument) = parser.next()? {
        match argument {
            Long("seed" | "plan") => plan = Some(parser.value()?.string()?),
            Long("mutant") => mutant = Some(parser.value()?.string()?),
            Long("scene") => scene = Some(parser.value()?.string()?),
            Long("count") => count = Some(parser.value()?.parse::<u64>()?),
            Long("faults") => faults = Some(parser.value()?.string()?),
            Long("minutes") => minutes = Some(parser.value()?.parse::<f64>()?),
            other => return Err(other.unexpected()),
        }
    }
    let seconds = (minutes.unwrap_or(MINUTES) * 60.0).clamp(1.0, 86_400.0).round().to_string();
    let count = count.unwrap_or(COUNT).to_string();
    let mut words: Vec<&str> = match (&plan, &mutant, &scene) {
        (Some(plan), None, None) => vec!["play", plan],
        (None, Some(rule), None) => vec!["mutant", rule, &seconds],
        (None, None, Some(scene)) => vec!["scene", scene, &count],
        (None, None, None) => vec!["storms", &seconds],
        _ => return Err("--plan, --scene and --mutant do not go together".into()),
    };
    match (&faults, &plan, &mutant) {
        (Some(faults), None, None) => words.push(faults),
        (Some(_), ..) => return Err("--faults goes with --scene, or alone".into()),
        (None, ..) => {}
    }
    let mut command = crate::tools::cargo();
    command.args(["run", "--quiet", "--release", "-p", "hast-sim"]);
    if mutant.is_some() {
        command.args(["--features", "mutants"]);
    }
    let status = command.arg("--").args(words).status().map_err(|error| format!("cargo: {error}"))?;
    Ok(ExitCode::from(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1)))
}
