//! Two nodes of the shipping engine in a simulated world.
//!
//! One seed is one history: disks with volatile caches, a network that stalls and breaks, a clock, an
//! operator who kills, restarts and switches roles, and a client who remembers what was acknowledged.
//! After each quiet period both data areas must be byte-identical and hold every acknowledged write that
//! the replication mode promises.
#![forbid(unsafe_code)]
#![warn(missing_docs)]

mod admin;
mod branch;
pub mod client;
mod clock;
pub mod disk;
pub mod faults;
mod mixed;
mod network;
mod node;
mod operator;
mod oracle;
mod original;
pub mod random;
mod scenes;
mod world;

pub use mixed::play_mixed;
pub use scenes::Scene;
pub use world::{Plan, World};

use std::fmt;
use std::str::FromStr;

use hast_net::Replication;

pub use crate::faults::FaultSet;

impl Plan {
    /// The plan that belongs to a seed.
    #[must_use]
    pub fn of(seed: u64) -> Plan {
        let pick = |n: u64, count: usize| usize::try_from(n % (count as u64).max(1)).unwrap_or(0);
        let mode = MODES.get(pick(seed, MODES.len())).copied().unwrap_or_default();
        let scene = Scene::ALL.get(pick(seed / 3, Scene::ALL.len())).copied().unwrap_or(Scene::Storm);
        Plan {
            seed,
            scene,
            mode,
            faults: FaultSet::NONE,
            rounds: 3,
            trace: false,
            originals: scene.originals(),
        }
    }
}

impl Plan {
    /// The plan of this scene that belongs to a seed.
    #[must_use]
    pub fn in_scene(scene: Scene, seed: u64) -> Plan {
        let all = scene == Scene::AllFaults;
        let faults = if all { FaultSet::drawn(seed, FaultSet::all()) } else { FaultSet::NONE };
        Plan { scene, faults, originals: scene.originals(), ..Plan::of(seed) }
    }

    /// The plan of a mixed pair that belongs to a seed.
    #[must_use]
    pub fn mixed(seed: u64) -> Plan {
        let scene = match seed / 3 % 10 {
            0 | 2 | 4 | 6 | 8 => Scene::MixedOurPrimary,
            9 => Scene::MixedDiscard,
            _ => Scene::MixedOurSecondary,
        };
        Plan::in_scene(scene, seed)
    }
}

impl FromStr for Scene {
    type Err = String;

    fn from_str(name: &str) -> Result<Scene, String> {
        let found = Scene::every().find(|known| format!("{known:?}") == name);
        found.ok_or_else(|| format!("no scene is called {name}"))
    }
}

/// `Storm async 14`: all that it takes to play the history again. If other faults are on than the seed draws, they
/// follow: `AllFaults async 14 BothPower,BadMap`.
impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} {} {}", self.scene, self.mode, self.seed)?;
        if self.faults == Plan::in_scene(self.scene, self.seed).faults {
            return Ok(());
        }
        write!(f, " {}", self.faults)
    }
}

impl FromStr for Plan {
    type Err = String;

    /// The form that `Display` writes, or a seed alone.
    fn from_str(text: &str) -> Result<Plan, String> {
        let words: Vec<&str> = text.split_whitespace().collect();
        let seed = |word: &str| word.parse::<u64>().map_err(|error| format!("{word}: {error}"));
        match words.as_slice() {
            [number] => Ok(Plan::of(seed(number)?)),
            [scene, mode, number, faults @ ..] if faults.len() < 2 => {
                let mode = Replication::parse(mode).ok_or_else(|| format!("no mode is called {mode}"))?;
                let plan = Plan { mode, ..Plan::in_scene(scene.parse()?, seed(number)?) };
                match faults.first() {
                    Some(faults) => Ok(Plan { faults: faults.parse()?, ..plan }),
                    None => Ok(plan),
                }
            }
            _ => Err(format!("neither a seed nor a scene, a mode, a seed and perhaps faults: {text}")),
        }
    }
}

/// The replication modes, in the order that seeds take them.
const MODES: [Replication; 3] = [Replication::Fullsync, Replication::Memsync, Replication::Async];

/// Plays one whole history.
///
/// # Errors
/// What rule was broken, and when.
pub fn play(plan: Plan) -> Result<World, String> {
    let mut world = World::new(plan)?;
    world.run().map(|()| world)
}

/// Whether something goes wrong in this history: what, if so. A panic counts, debug assertions are meant to
/// notice.
#[must_use]
pub fn notices(plan: Plan) -> Option<String> {
    match std::panic::catch_unwind(|| play(plan)) {
        Ok(Ok(_)) => None,
        Ok(Err(error)) => Some(error),
        Err(_) => Some("a panic".into()),
    }
}

/// Breaks a rule, or none, in the whole process; false in a build that has no mutants.
pub fn break_rule(rule: Option<hast_engine::rule::Rule>) -> bool {
    #[cfg(feature = "mutants")]
    hast_engine::rule::break_rule(rule);
    #[cfg(not(feature = "mutants"))]
    let _ = rule;
    cfg!(feature = "mutants")
}
