//! Many short histories: whatever happens, both nodes end up the same and hold what was acknowledged.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

#[test]
fn histories_keep_every_promise() {
    let first: u64 = std::env::var("HAST_SIM_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or(1);
    let count: u64 = std::env::var("HAST_SIM_COUNT").ok().and_then(|s| s.parse().ok()).unwrap_or(200);
    let trace = std::env::var("HAST_SIM_TRACE").is_ok();
    let mut failures = Vec::new();
    let mut happenings = 0;
    for seed in first..first + count {
        match hast_sim::play(seed, trace) {
            Ok(world) => happenings += world.happenings(),
            Err(error) => failures.push(error),
        }
    }
    assert!(failures.is_empty(), "{} of {count} failed:\n{}", failures.len(), failures.join("\n"));
    assert!(happenings > count * 1_000, "only {happenings} things happened");
}
