//! The checker at work: worlds explored to the end, mistakes looked for.

use std::collections::BTreeSet;

use stateright::{Checker, CheckerBuilder, HasDiscoveries, Model};

use crate::model::{Action, SAFETY, SIGHTS};
use crate::state::State;
use crate::variant::Variant;
use crate::worlds::{self, Check, World};

/// What became of a world.
pub struct Explored {
    /// Different states.
    pub states: usize,
    /// What of [`SIGHTS`] was seen.
    pub seen: BTreeSet<&'static str>,
    /// What does not hold, if anything, and how it comes to that.
    pub failure: Option<Failure>,
}

/// A property that does not hold.
pub struct Failure {
    /// Its name.
    pub property: &'static str,
    /// The states on the way there, each with what happens next.
    pub path: Vec<(State, Option<Action>)>,
}

/// Explores a world to its end, or to the first failure.
#[must_use]
pub fn explore(world: World, threads: usize) -> Explored {
    run(world.checker().threads(threads))
}

fn run(builder: CheckerBuilder<World>) -> Explored {
    let checker = builder.finish_when(HasDiscoveries::AnyFailures).spawn_bfs().join();
    let mut discoveries = checker.discoveries();
    let seen = SIGHTS.into_iter().filter(|sight| discoveries.contains_key(sight)).collect();
    let failure = SAFETY.into_iter().find_map(|property| {
        let path = discoveries.remove(property)?;
        Some(Failure { property, path: path.into_vec() })
    });
    Explored { states: checker.unique_state_count(), seen, failure }
}

/// What a check is to show.
///
/// # Errors
/// What went wrong.
pub fn verdict(check: &Check, explored: &Explored) -> Result<(), String> {
    match &explored.failure {
        Some(failure) => Err(format!("does not hold: {}", failure.property)),
        None if explored.states != check.states => {
            Err(format!("{} states are recorded: look why, and record what is right", check.states))
        }
        None => Ok(()),
    }
}

/// Looks for the loss that a mistake leads to: the shortest way there.
#[must_use]
pub fn hunt(variant: Variant) -> Explored {
    let world = worlds::of(variant);
    // The checker looks a little further than the first failure, and keeps the last.
    let shorter = (2..DEPTH).map(|depth| run(world.checker().target_max_depth(depth)));
    shorter.into_iter().find(|explored| explored.failure.is_some()).unwrap_or_else(|| explore(world, 1))
}

/// No mistake needs so many steps to show.
const DEPTH: usize = 18;
