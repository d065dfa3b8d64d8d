//! The simulator's command line; `cargo xtask sim` calls it.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use hast_engine::rule::Rule;
use hast_sim::{FaultSet, Plan, Scene, World};

const USAGE: &str = "\
usage: hast-sim play PLAN           one history, told step by step
       hast-sim scene NAME COUNT [FAULTS]
                                    COUNT histories of one scene, with these faults: how many fail
       hast-sim search SECONDS      fresh histories until one fails
       hast-sim storms SECONDS [FAULTS]
                                    fresh histories with all faults, or these: every one that fails
       hast-sim mutant RULE SECONDS [SCENE [FAULTS]]
                                    histories, or those of one scene, with these faults, that notice when RULE is broken
A plan is a seed, or a scene, a mode and a seed: Storm async 14";

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let outcome = match words.split_first().map(|(verb, rest)| (verb.as_str(), rest)) {
        Some(("play", plan)) => plan.join(" ").parse().map(replay),
        Some(("scene", [scene, count, faults @ ..])) if faults.len() < 2 => {
            scene.parse().and_then(|scene| in_scene(scene, number(count)?, faults.first()))
        }
        Some(("search", [seconds])) => number(seconds).map(search),
        Some(("storms", [seconds, faults @ ..])) if faults.len() < 2 => {
            number(seconds).and_then(|seconds| storms(seconds, faults.first()))
        }
        Some(("mutant", [rule, seconds, scene @ ..])) if scene.len() < 3 => parse(rule).and_then(|rule| {
            let faults = scene.get(1).map(|faults| faults.parse()).transpose()?;
            let scene = scene.first().map(|name| name.parse()).transpose()?;
            number(seconds).map(|seconds| hunt(rule, seconds, scene, faults))
        }),
        _ => Err(USAGE.to_owned()),
    };
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::from(64)
        }
    }
}

/// Prints what the engines log, for a history that is told.
struct Told;

impl log::Log for Told {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        println!("             {}: {}", record.level(), record.args());
    }

    fn flush(&self) {}
}

/// One history, with everything that happens.
fn replay(plan: Plan) -> bool {
    if log::set_logger(&Told).is_ok() {
        log::set_max_level(log::LevelFilter::Info);
    }
    match hast_sim::play(Plan { trace: true, ..plan }) {
        Ok(world) => {
            println!("{plan}: kept every promise; {} things happened", world.happenings());
            true
        }
        Err(error) => {
            println!("{error}");
            false
        }
    }
}

/// Plays a history. The engine checks itself; a panic is a failure like any other.
fn attempt(plan: Plan) -> Result<World, String> {
    let played = std::panic::catch_unwind(|| hast_sim::play(plan));
    played.unwrap_or_else(|_| Err(format!("{plan}: a panic, see above")))
}

/// Failing histories that are told of, at most.
const TOLD: u64 = 10;

/// The first `count` histories of a scene, one mode after the other.
fn in_scene(scene: Scene, count: u64, faults: Option<&String>) -> Result<bool, String> {
    let faults = faults.map(|faults| faults.parse()).transpose()?;
    let (mut failed, mut needless) = (0, 0);
    for seed in 0..count {
        let plan = Plan::in_scene(scene, seed);
        match attempt(Plan { faults: faults.unwrap_or(plan.faults), ..plan }) {
            Ok(world) => needless += world.needless_splits(),
            Err(how) => {
                failed += 1;
                if failed <= TOLD {
                    println!("{how}");
                }
            }
        }
    }
    if needless > 0 {
        println!("{needless} histories end in a split-brain after a failover that has lost nothing");
    }
    println!("{scene:?}: {failed} of {count} histories fail");
    Ok(failed == 0)
}

/// Fresh histories until one fails or the time is over.
fn search(seconds: u64) -> bool {
    let begin = Instant::now();
    let first = fresh();
    println!("histories from seed {first} on");
    let mut happenings = 0;
    for seed in first.. {
        if begin.elapsed() >= Duration::from_secs(seconds) {
            let count = seed - first;
            println!("{count} histories from seed {first} kept every promise; {happenings} things happened");
            return true;
        }
        // One in four with an original on one side.
        let plan = if seed % 4 == 0 { Plan::mixed(seed) } else { Plan::of(seed) };
        match attempt(plan) {
            Ok(world) => happenings += world.happenings(),
            Err(error) => {
                println!("{error}\nto see it again: cargo xtask sim --plan '{plan}'");
                return false;
            }
        }
    }
    true
}

/// Fresh histories with everything that may go wrong, or with these faults alone, until the time is over; those that fail
/// are named.
fn storms(seconds: u64, faults: Option<&String>) -> Result<bool, String> {
    let faults = faults.map(|faults| faults.parse()).transpose()?;
    let begin = Instant::now();
    let first = fresh();
    println!("histories from seed {first} on");
    let (mut seed, mut happenings, mut failed, mut needless) = (first, 0, 0, 0);
    while begin.elapsed() < Duration::from_secs(seconds) {
        let storm = Plan::in_scene(Scene::AllFaults, seed);
        let plan = match seed % 8 {
            _ if faults.is_some() => Plan { faults: faults.unwrap_or_default(), ..storm },
            0 => Plan::mixed(seed),
            1 => Plan::of(seed),
            _ => storm,
        };
        match attempt(plan) {
            Ok(world) => {
                happenings += world.happenings();
                needless += world.needless_splits();
            }
            Err(error) => {
                failed += 1;
                if failed <= TOLD {
                    println!("{error}\nto see it again: cargo xtask sim --plan '{plan}'");
                }
            }
        }
        seed += 1;
    }
    let (count, last) = (seed - first, seed.saturating_sub(1));
    println!("{count} histories, seeds {first} to {last}, {happenings} things happened: {failed} fail");
    if needless > 0 {
        println!("{needless} ended in a split-brain after a failover that has lost nothing");
    }
    Ok(failed == 0)
}

/// How many histories are looked for: the engine changes, and chance with it.
const WANTED: usize = 3;

/// Histories in which breaking `rule` shows: true if one was found.
fn hunt(rule: Rule, seconds: u64, scene: Option<Scene>, faults: Option<FaultSet>) -> bool {
    if !hast_sim::break_rule(Some(rule)) {
        eprintln!("this build has no mutants: cargo xtask sim --mutant {rule:?}");
        return false;
    }
    let begin = Instant::now();
    let mut found = 0;
    for seed in 1.. {
        if begin.elapsed() >= Duration::from_secs(seconds) {
            println!("# {rule:?}: noticed in {found} of {seed} histories");
            return found > 0;
        }
        let plans = match scene {
            Some(scene) => {
                let plan = Plan::in_scene(scene, seed);
                vec![Plan { faults: faults.unwrap_or(plan.faults), ..plan }]
            }
            None => vec![Plan::of(seed), Plan::mixed(seed)],
        };
        for plan in plans {
            let Some(how) = hast_sim::notices(plan) else { continue };
            println!("{rule:?} {plan}\t# {}", how.replace('\n', " "));
            found += 1;
            if found == WANTED {
                return true;
            }
        }
    }
    false
}

fn number(word: &str) -> Result<u64, String> {
    word.parse().map_err(|error| format!("{word}: {error}"))
}

fn parse(name: &str) -> Result<Rule, String> {
    let found = Rule::ALL.into_iter().find(|rule| format!("{rule:?}") == name);
    found.ok_or_else(|| format!("no rule is called {name}; there are {:?}", Rule::ALL))
}

/// A seed that nobody has played yet, most likely.
fn fresh() -> u64 {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |since| since.as_secs() * 1_000_000)
}
