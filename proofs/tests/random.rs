//! Every harness over the code as it ships, at random.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use hast_proofs::engine::random;
use hast_proofs::harness::ALL;

#[test]
fn every_harness_holds_at_random() {
    for harness in &ALL {
        let row = random(harness.name, harness.random / 40, |tape| (harness.tape)(tape, harness.steps[2]));
        println!("{row}");
        assert_eq!(row.failure, None, "{}", harness.name);
    }
}
