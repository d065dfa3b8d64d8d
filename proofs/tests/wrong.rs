//! Every harness over wrong code, where it has to fail.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use hast_proofs::engine::exhaustive;
use hast_proofs::harness::ALL;

/// A harness that cannot fail proves nothing.
#[test]
fn every_harness_notices_what_is_wrong() {
    std::panic::set_hook(Box::new(|_| {}));
    let mut survivors = Vec::new();
    for harness in &ALL {
        assert!(!harness.wrong.is_empty(), "{}", harness.name);
        for wrong in harness.wrong {
            let row = exhaustive(harness.name, |walk| (wrong.walk)(walk, harness.steps[0]));
            match row.failure {
                Some(how) => println!("{}: {}: {how}", harness.name, wrong.what),
                None => survivors.push(format!("{}: {}", harness.name, wrong.what)),
            }
        }
    }
    let _ = std::panic::take_hook();
    assert!(survivors.is_empty(), "not noticed:\n{}", survivors.join("\n"));
}

#[test]
fn names_are_used_once() {
    let mut names: Vec<_> = ALL.iter().map(|harness| harness.name).collect();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), ALL.len());
}
