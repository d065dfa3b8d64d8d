//! `cargo xtask demo`: a pair at work, from nothing to a failover and back, told as it happens.
//!
//! Owns the processes and the directory it makes: whatever happens (an error, Ctrl-C, a hang) they
//! are gone afterwards, unless `--keep` was given and all went well.

mod guard;
mod node;
mod story;
mod teller;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use guard::Guard;
use hast_tests::programs::Programs;
use hast_tests::{Failure, pair};
use teller::Teller;

/// From the end of the build to the verdict. The whole takes some ten seconds; this is for a hang.
const LIMIT: Duration = Duration::from_secs(100);

pub(crate) fn main(mut parser: lexopt::Parser) -> Result<ExitCode, lexopt::Error> {
    let mut keep = false;
    while let Some(argument) = parser.next()? {
        match argument {
            lexopt::Arg::Long("keep") => keep = true,
            other => return Err(other.unexpected()),
        }
    }
    let begin = Instant::now();
    Ok(match run(keep) {
        Ok(verdict) => {
            println!("\nPASS: {verdict} ({} s in all)", begin.elapsed().as_secs());
            ExitCode::SUCCESS
        }
        Err(failure) => {
            println!("\nFAIL: {failure}");
            ExitCode::FAILURE
        }
    })
}

/// Builds, plays the story and gives the verdict.
fn run(keep: bool) -> Result<String, Failure> {
    println!("HAST demo: one disk on two nodes, both on this machine.\n");
    // What is shown is what ships; and it is built only once, since installing needs the same.
    let directory = crate::release::build_shipping()?;
    Programs::take_from(&directory)?;

    let scratch = pair::scratch("hast-demo-")?;
    let guard = Guard::watch(scratch.path(), LIMIT)?;
    let mut nodes = node::Nodes::make(scratch.path(), &guard)?;
    let told = story::play(&mut nodes, &Teller::new());
    match told {
        Ok(verdict) if keep => {
            nodes.keep()?;
            guard.dismiss();
            // From here on the directory belongs to the user.
            let _ = scratch.keep();
            Ok(verdict)
        }
        Ok(verdict) => {
            nodes.stop()?;
            Ok(verdict)
        }
        Err(failure) => {
            nodes.show_logs();
            Err(failure)
        }
    }
}
