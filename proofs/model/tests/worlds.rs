//! Small worlds hold what all must hold, with the recorded number of states, and every mistake is found.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use hast_model::explore::{explore, hunt, verdict};
use hast_model::variant::Variant;
use hast_model::{trace, worlds};

#[test]
fn small_worlds_hold() {
    let mut wrong = Vec::new();
    for check in worlds::SMALL {
        let explored = explore(check.world, 2);
        if let Err(what) = verdict(check, &explored) {
            let story = explored.failure.map(|failure| trace::tell(&failure, check.world.extents));
            let (name, states) = (check.name, explored.states);
            wrong.push(format!("{name}, {states} states: {what}\n{}", story.unwrap_or_default()));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_mistake_is_found() {
    for variant in Variant::ALL {
        let failure = hunt(variant).failure.unwrap_or_else(|| panic!("{variant:?} is not found"));
        let story = trace::tell(&failure, 2);
        assert!(story.ends_with(".\n") && story.contains("Broken: "), "{story}");
    }
}

#[test]
fn without_the_mistake_its_world_holds() {
    // The large ones are among the worlds that `cargo run -p hast-model` explores: "there and back", "flush fails there",
    // "reads", "doubts" and "set back".
    let large = [Variant::L7, Variant::L9Marked, Variant::S1, Variant::B1, Variant::G1, Variant::G1Counted];
    for variant in Variant::ALL.into_iter().filter(|variant| !large.contains(variant)) {
        let world = worlds::World { variant: None, ..worlds::of(variant) };
        assert!(explore(world, 2).failure.is_none(), "{variant:?}");
    }
}
