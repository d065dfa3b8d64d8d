//! Explores all worlds and looks for all mistakes, a row for each; or tells how one of those loses data.

use std::collections::BTreeSet;
use std::process::ExitCode;

use hast_model::explore::{Explored, explore, hunt, verdict};
use hast_model::model::SIGHTS;
use hast_model::trace;
use hast_model::variant::Variant;
use hast_model::worlds::{self, Check};

const USAGE: &str = "\
usage: hast-model             everything, a row each: harness, engine, states, result
       hast-model only TEXT   the worlds whose names contain it
       hast-model trace [L5]  how a mistake loses data, step by step; all of them without a name";

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let good = match words.as_slice() {
        [] => everything(),
        ["only", text] => {
            let threads = threads();
            let good = |check: &&Check| check.name.contains(text);
            worlds::ALL
                .iter()
                .filter(good)
                .map(|check| one(check, threads).1)
                .fold(true, |all, good| all & good)
        }
        ["trace"] => Variant::ALL.map(tell).into_iter().all(|found| found),
        ["trace", name] => match Variant::parse(name) {
            Some(variant) => tell(variant),
            None => return usage(),
        },
        _ => return usage(),
    };
    if good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn usage() -> ExitCode {
    eprintln!("{USAGE}");
    ExitCode::from(64)
}

fn row(harness: &str, states: usize, result: &str) {
    println!("{harness}\tmodel\t{states}\t{result}");
}

fn threads() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// A world, its row, and whether it holds.
fn one(check: &Check, threads: usize) -> (Explored, bool) {
    let explored = explore(check.world, threads);
    let harness = format!("protocol: {}", check.name);
    let outcome = verdict(check, &explored);
    match &outcome {
        Ok(()) => row(&harness, explored.states, "holds"),
        Err(what) => {
            row(&harness, explored.states, &format!("FAILED: {what}"));
            if let Some(failure) = &explored.failure {
                eprint!("{}", trace::tell(failure, check.world.extents));
            }
        }
    }
    (explored, outcome.is_ok())
}

/// All worlds and all mistakes: whether the first hold and the second are found.
fn everything() -> bool {
    let mut good = true;
    let mut seen = BTreeSet::new();
    for check in worlds::ALL {
        let (explored, holds) = one(check, threads());
        good &= holds;
        seen.extend(explored.seen);
    }
    for sight in SIGHTS.into_iter().filter(|sight| !seen.contains(sight)) {
        good = false;
        row("protocol: what the worlds hold", 0, &format!("FAILED: nowhere: {sight}"));
    }
    for variant in Variant::ALL {
        let Explored { states, failure, .. } = hunt(variant);
        let result = match &failure {
            Some(failure) => format!("loss found in {} steps", failure.path.len().saturating_sub(1)),
            None => "FAILED: the loss is not found".to_owned(),
        };
        good &= failure.is_some();
        row(&format!("protocol: {}", variant.title()), states, &result);
    }
    good
}

/// How `variant` loses data; false if it does not.
fn tell(variant: Variant) -> bool {
    let world = worlds::of(variant);
    let Some(failure) = hunt(variant).failure else {
        println!("{variant:?}: no loss is found");
        return false;
    };
    println!("{variant:?}: {}\n", variant.mistake());
    println!("{}", trace::tell(&failure, world.extents));
    true
}
