//! Whatever happens, both nodes end up the same and hold what was acknowledged.
//!
//! `HAST_SIM_SEED` and `HAST_SIM_COUNT` choose other histories than the first few hundred.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use hast_sim::{Plan, Scene, play};

#[test]
fn histories_keep_every_promise() {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    // The engine checks itself without optimisation, and takes its time; CI plays thousands with it.
    let usual = if cfg!(debug_assertions) { 50 } else { 240 };
    let (first, count) = (number("HAST_SIM_SEED").unwrap_or(1), number("HAST_SIM_COUNT").unwrap_or(usual));
    let mut failures = Vec::new();
    let mut happenings = 0;
    for seed in first..first + count {
        match play(Plan::of(seed)) {
            Ok(world) => happenings += world.happenings(),
            Err(error) => failures.push(error),
        }
    }
    assert!(failures.is_empty(), "{} of {count} failed:\n{}", failures.len(), failures.join("\n"));
    assert!(happenings > count * 500, "only {happenings} things happened");
}

/// Storms in which everything may go wrong that `faults.rs` lists, both nodes' power at once among it.
#[test]
fn storms_with_all_faults_keep_every_promise() {
    let count = if cfg!(debug_assertions) { 6 } else { 90 };
    let plans = (0..count).map(|seed| Plan::in_scene(Scene::AllFaults, seed));
    let failures: Vec<String> = plans.filter_map(|plan| play(plan).err()).collect();
    assert!(failures.is_empty(), "{} of {count} failed:\n{}", failures.len(), failures.join("\n"));
}

/// Every history that ever found a fault, in the engine or in the simulator.
#[test]
fn histories_that_failed_once_pass() {
    let plans = include_str!("../seeds/once-failing");
    // Without optimisation a part of them: CI plays all of them with it.
    let part = if cfg!(debug_assertions) { 4 } else { 1 };
    for line in plans.lines().filter(|line| !line.starts_with('#')).step_by(part) {
        let plan: Plan = line.split('#').next().unwrap_or_default().parse().expect("a plan");
        if let Err(error) = play(plan) {
            panic!("{error}");
        }
    }
}
