//! `cargo xtask torture`: two real daemons, clients that record what they were told, and an operator that
//! kills, cuts, stalls, freezes, restarts and fails over at random; after each round of that, everything is set
//! right, and every acknowledged write must be there, on both nodes.
//!
//! The record is the simulator's, and so is the meaning of each check. What differs is that everything is real:
//! processes, sockets, files, time. SIGKILL leaves the page cache alone, so a node that acknowledged a write has
//! it whatever was killed.

mod clients;
mod field;
mod journal;
mod operator;
#[cfg(target_os = "linux")]
mod power;
mod record;
mod remembered;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::release;
use clients::Clients;
use field::{Deeds, Field, Side};
use hast_sim::random::Random;
use hast_tests::programs::Programs;
use hast_tests::{Context, Failure, Pair, Setup, disk};
use record::SECTOR;
use remembered::Record;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

const RESOURCE: &str = "disk0";
/// What hast.conf says besides the mode. The time-out is short, so that a stall of a few seconds exceeds it.
const STATEMENTS: &str = "timeout 3";
/// Small extents in bytes, so that what one write needs is not done by chance for its neighbour.
const EXTENT: u64 = 16 << 10;
/// A storm lasts this long at least, in milliseconds, and so much more at most.
const STORM: (u64, u64) = (3_000, 5_000);
/// How long it lasts unless somebody says otherwise.
const MINUTES: u64 = 1;
/// One read of the final comparison in bytes.
const BLOCK: usize = 1 << 20;

/// The replication mode, which changes from round to round unless one was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Fullsync,
    Memsync,
    Async,
}

impl Mode {
    const ALL: [Mode; 3] = [Mode::Fullsync, Mode::Memsync, Mode::Async];

    fn as_str(self) -> &'static str {
        match self {
            Mode::Fullsync => "fullsync",
            Mode::Memsync => "memsync",
            Mode::Async => "async",
        }
    }
}

/// What was asked for.
#[derive(Default)]
struct Wish {
    /// The nodes lose power.
    power: bool,
    minutes: Option<u64>,
    cycles: Option<u64>,
    seed: u64,
    mode: Option<Mode>,
    /// Disks fail and are slow.
    faults: bool,
    /// With `power`: the only scene that is played.
    scene: Option<String>,
    /// Where hastd and hastctl are; ours, built now, unless somebody says so.
    programs: Option<PathBuf>,
    /// With `power`: the rule of the engine that is broken, which has to be noticed.
    mutant: Option<String>,
}

pub(crate) fn main(mut parser: lexopt::Parser) -> Result<ExitCode, lexopt::Error> {
    use lexopt::ValueExt;
    let mut wish = Wish { seed: fresh_seed(), faults: true, ..Wish::default() };
    while let Some(argument) = parser.next()? {
        match argument {
            lexopt::Arg::Long("power") => wish.power = true,
            lexopt::Arg::Long("minutes") => wish.minutes = Some(parser.value()?.parse()?),
            lexopt::Arg::Long("cycles") => wish.cycles = Some(parser.value()?.parse()?),
            lexopt::Arg::Long("no-faults") => wish.faults = false,
            lexopt::Arg::Long("scene") => wish.scene = Some(parser.value()?.parse()?),
            lexopt::Arg::Long("mutant") => wish.mutant = Some(parser.value()?.parse()?),
            lexopt::Arg::Long("programs") => wish.programs = Some(parser.value()?.into()),
            lexopt::Arg::Long("seed") => wish.seed = parser.value()?.parse()?,
            lexopt::Arg::Long("mode") => {
                let word = parser.value()?;
                let mode = Mode::ALL.into_iter().find(|mode| word.to_str() == Some(mode.as_str()));
                wish.mode = Some(mode.ok_or_else(|| format!("no mode {word:?}"))?);
            }
            #[cfg(target_os = "linux")]
            lexopt::Arg::Value(word) if word.to_str() == Some(power::WORD) => {
                let words: Vec<_> = parser.raw_args()?.collect();
                return Err(power::booted(&words).to_string().into());
            }
            other => return Err(other.unexpected()),
        }
    }
    if !wish.power && (wish.cycles.is_some() || wish.scene.is_some() || wish.mutant.is_some() || !wish.faults)
    {
        return Err("--cycles, --scene, --mutant and --no-faults go with --power".into());
    }
    release::insist()?;
    let begin = Instant::now();
    Ok(match (start(&wish), &wish.mutant) {
        (Err(failure), Some(rule)) if failure.to_string().starts_with("cycle ") => {
            println!("\nPASS: without {rule}, seed {}: {failure}", wish.seed);
            ExitCode::SUCCESS
        }
        (Ok(_), Some(rule)) => {
            println!("\nFAIL: seed {}: nothing noticed that {rule} is broken", wish.seed);
            ExitCode::FAILURE
        }
        (Ok(verdict), None) => {
            println!("\nPASS: {verdict} ({} s in all)", begin.elapsed().as_secs());
            ExitCode::SUCCESS
        }
        (Err(failure), _) => {
            println!("\nFAIL: seed {}: {failure}", wish.seed);
            ExitCode::FAILURE
        }
    })
}

fn start(wish: &Wish) -> Result<String, Failure> {
    match (&wish.programs, &wish.mutant) {
        (Some(directory), _) => Programs::take_from(directory)?,
        (None, Some(_)) => Programs::take_from(&release::build_mutants()?)?,
        (None, None) => release::build_programs()?,
    }
    if !wish.power {
        return run(wish);
    }
    #[cfg(target_os = "linux")]
    return power::prepare().and_then(|()| power::run(wish));
    #[cfg(not(target_os = "linux"))]
    return Failure::because("disks that forget are made of Linux' FUSE");
}

/// Only chance that differs from run to run is worth running often.
fn fresh_seed() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos() as u64 % 1_000_000)
}

fn run(wish: &Wish) -> Result<String, Failure> {
    let interrupted = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        signal_hook::flag::register(signal, Arc::clone(&interrupted))?;
    }

    let mut random = Random::new(wish.seed);
    let mode = wish.mode.unwrap_or(Mode::Fullsync);
    let pair = Pair::up(setup(&mut random, mode))?;
    let bytes = disk::metadata(&pair.a.provider(RESOURCE))?.datasize;
    let sectors = usize::try_from(bytes)? / SECTOR;
    println!(
        "seed {}, {} min, {} MiB, in {}",
        wish.seed,
        wish.minutes.unwrap_or(MINUTES),
        bytes >> 20,
        pair.directory().display()
    );
    let record = Arc::new(Record::blank(sectors, interrupted));
    let mut field = Field::new(pair, record, random, mode);
    match rounds(&mut field, wish, sectors) {
        Ok(rounds) => {
            let Field { pair, deeds, record, .. } = field;
            pair.finish()?;
            Ok(verdict(rounds, deeds, &record))
        }
        Err(failure) if field.record.is_interrupted() => Err(failure),
        Err(failure) => {
            let journal = field.pair.directory().join("journal");
            field.record.write_journal(&journal)?;
            let kept = field.pair.keep().display();
            Err(Failure::new(format!("{failure}\nLogs, disks and the journal of the round are in {kept}")))
        }
    }
}

/// A pair whose wire differs from seed to seed.
fn setup(random: &mut Random, mode: Mode) -> Setup {
    let checksum = random.pick(&["none", "crc32", "sha256"]).unwrap_or("none");
    let compression = random.pick(&["none", "hole", "lzf"]).unwrap_or("none");
    let mut setup = Setup { globals: format!("{STATEMENTS}\n"), extent: EXTENT, ..Setup::default() };
    setup.globals.push_str(&format!("checksum {checksum}\ncompression {compression}\n"));
    set_mode(&mut setup, mode);
    setup
}

fn set_mode(setup: &mut Setup, mode: Mode) {
    for resource in &mut setup.resources {
        resource.statements = format!("replication {}", mode.as_str());
    }
}

fn rounds(field: &mut Field, wish: &Wish, sectors: usize) -> Result<u32, Failure> {
    let end = Instant::now() + Duration::from_secs(wish.minutes.unwrap_or(MINUTES).saturating_mul(60));
    let mut round = 0_u32;
    while Instant::now() < end || round == 0 {
        round += 1;
        let before = field.deeds;
        let begin = Instant::now();
        play(field, sectors)?;
        println!(
            "round {round:>3}  {:<8} {:>5.1} s  {}, {} serves: {}",
            field.mode.as_str(),
            begin.elapsed().as_secs_f64(),
            progress(field),
            field.node(field.serving).name(),
            done(&field.deeds, &before),
        );
        field.record.turn_page();
        if wish.mode.is_none() {
            change_mode(field)?;
        }
    }
    Ok(round)
}

/// One round: a storm, calm, and the truth.
fn play(field: &mut Field, sectors: usize) -> Result<(), Failure> {
    let sockets = Side::BOTH.map(|side| field.node(side).socket(RESOURCE));
    let clients = Clients::start(&field.record, &sockets, RESOURCE, sectors, &field.pace, &mut field.random);
    let (least, more) = STORM;
    let length = Duration::from_millis(least + field.random.below(more));
    // After a failure the threads end with the process.
    field.storm(length)?;
    field.calm()?;
    clients.stop()?;
    field.record.check()?;
    field.wait("the nodes to be clean", Field::is_clean)?;
    verify(field, sectors)
}

/// Nothing writes, and the nodes say that they are in step.
fn verify(field: &Field, sectors: usize) -> Result<(), Failure> {
    let client = field.node(field.serving).client(RESOURCE)?;
    client.flush().context("flush")?;
    for first in (0..sectors).step_by(BLOCK / SECTOR) {
        let length = (sectors - first).min(BLOCK / SECTOR) * SECTOR;
        let data = client.read((first * SECTOR) as u64, length).context(format!("read at sector {first}"))?;
        field.record.verify(first, &data, false).context("read through the device")?;
    }
    client.disconnect().context("disconnect")?;
    let [a, b] = Side::BOTH.map(|side| field.node(side).provider(RESOURCE));
    disk::same_data(&a, &b)?;
    field.record.verify(0, &disk::data(&a)?, true).context("on the disks")?;
    look_at_logs(field)
}

/// What no history of this kind may bring.
fn look_at_logs(field: &Field) -> Result<(), Failure> {
    for side in Side::BOTH {
        let node = field.node(side);
        let log = node.log();
        let bad = ["Split-brain", "panicked", "[CRIT]"];
        if let Some(line) = log.lines().find(|line| bad.iter().any(|bad| line.contains(bad))) {
            return Failure::because(format!("node {} logged: {line}", node.name()));
        }
    }
    Ok(())
}

fn change_mode(field: &mut Field) -> Result<(), Failure> {
    field.mode = field.random.pick(&Mode::ALL).unwrap_or(field.mode);
    set_mode(&mut field.pair.setup, field.mode);
    field.pair.write_conf()?;
    for side in Side::BOTH {
        field.node(side).reload()?;
    }
    field.wait("the nodes to be in step after a reload", Field::is_in_step)
}

fn progress(field: &Field) -> String {
    let sums = field.record.sums();
    format!("{} writes acknowledged, {} MiB checked", sums.acknowledged, sums.checked >> 20)
}

/// What was done since `before`.
fn done(now: &Deeds, before: &Deeds) -> String {
    let counts = [
        (now.kills - before.kills, "kills"),
        (now.restarts - before.restarts, "restarts"),
        (now.cuts - before.cuts, "cuts"),
        (now.stalls - before.stalls, "stalls"),
        (now.freezes - before.freezes, "freezes"),
        (now.switches - before.switches, "switches"),
        (now.failovers - before.failovers, "fail-overs"),
        (now.mistakes - before.mistakes, "older nodes promoted"),
    ];
    let words: Vec<String> = counts
        .iter()
        .filter(|(count, _)| *count > 0)
        .map(|(count, what)| format!("{count} {what}"))
        .collect();
    if words.is_empty() { "nothing happened".to_owned() } else { words.join(", ") }
}

fn verdict(rounds: u32, deeds: Deeds, record: &Record) -> String {
    let sums = record.sums();
    println!(
        "\n{rounds} rounds: {}\n{} writes and {} flushes acknowledged, {} requests lost their connection",
        done(&deeds, &Deeds::default()),
        sums.acknowledged,
        sums.flushes,
        sums.lost,
    );
    format!(
        "every one of {} acknowledged writes is there, {} MiB read and checked, both disks identical",
        sums.acknowledged,
        sums.checked >> 20
    )
}
