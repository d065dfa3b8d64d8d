//! Small worlds hold what all must hold, with the recorded number of states, and every mistake of the original is
//! found.
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
fn every_mistake_of_the_original_is_found() {
    for variant in Variant::ALL {
        let failure = hunt(variant).failure.unwrap_or_else(|| panic!("{variant:?} is not found"));
        let story = trace::tell(&failure, 2);
        assert!(story.ends_with(".\n") && story.contains("Broken: "), "{story}");
    }
}

#[test]
fn without_the_mistake_its_world_holds() {
    // That of L7 is large, and among the worlds that `cargo run -p hast-model` explores: "there and back".
    for variant in Variant::ALL.into_iter().filter(|variant| *variant != Variant::L7) {
        let world = worlds::World { variant: None, ..worlds::of(variant) };
        assert!(explore(world, 2).failure.is_none(), "{variant:?}");
    }
}
