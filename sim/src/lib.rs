//! Two nodes of the shipping engine in a simulated world.
//!
//! One seed is one history: disks with volatile caches, a network that stalls and breaks, a clock, an
//! operator who kills, restarts and switches roles, and a client who remembers what was acknowledged.
//! After each quiet period both data areas must be byte-identical and hold every acknowledged write that
//! the replication mode promises.
#![forbid(unsafe_code)]
#![warn(missing_docs)]

pub mod client;
pub mod disk;
mod network;
mod node;
mod operator;
pub mod random;
mod scenes;
mod world;

pub use scenes::Scene;
pub use world::{Plan, World};

use hast_net::Replication;

/// Plays one whole history.
///
/// # Errors
/// What rule was broken, and when.
pub fn play(seed: u64, trace: bool) -> Result<World, String> {
    let modes = [Replication::Fullsync, Replication::Memsync, Replication::Async];
    let mode = usize::try_from(seed % 3).ok().and_then(|at| modes.get(at).copied()).unwrap_or_default();
    let scene =
        usize::try_from(seed / 3 % Scene::ALL.len() as u64).ok().and_then(|at| Scene::ALL.get(at).copied());
    let scene = scene.unwrap_or(Scene::Storm);
    let mut world = World::new(Plan { seed, scene, mode, rounds: 3, trace })?;
    world.run().map(|()| world)
}
