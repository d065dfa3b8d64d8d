//! `cargo xtask torture --power`: two real daemons on disks that forget what was not flushed, clients that record what
//! they were told, and an operator under whom nodes lose power, die, are cut off, take over and come back.
//!
//! After each cycle both disks hold the same, durably, and everything that the clients were promised: flushed writes
//! on whichever node serves, acknowledged ones as the mode promises, nothing older than what was read. Nodes that both
//! wrote while they were apart have to find a split-brain, and no others may.

mod boot;
mod disk;
mod field;
mod histories;
mod ledger;
mod mount;
mod protocol;
mod record;
mod scenes;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use hast_sim::random::Random;
use hast_tests::{Context, Failure, Pair, Setup};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use self::boot::Boots;
use self::disk::{Disk, SECTOR};
use self::field::Field;
use self::ledger::Ledger;
use self::mount::Mounted;
use self::record::Record;
use self::scenes::Scene;
use super::clients::Clients;
use super::field::Side;
use super::{Mode, RESOURCE, Wish, set_mode, setup};

/// The word on the command line that means [`booted`].
pub(super) const WORD: &str = boot::WORD;

/// Bytes of a provider: small, so that it can be read and compared often.
const PROVIDER: u64 = 4 << 20;
/// Cycles that are played before the mode changes, which takes a while.
const SAME_MODE: u64 = 3;
/// Cycles when neither they nor minutes were asked for.
const CYCLES: u64 = 20;

/// Becomes a daemon with a boot id of ours; returns if that fails.
pub(super) fn booted(words: &[OsString]) -> Failure {
    boot::run(words)
}

/// What this needs of the system before there is more than one thread.
///
/// # Errors
/// The system does not allow a mount namespace of our own.
pub(super) fn prepare() -> Result<(), Failure> {
    boot::enter_namespace()
}

/// Runs as long as is wished; says what was shown.
///
/// # Errors
/// Something was lost, or did not work. The failure names the directory with logs, disks and journal.
pub(super) fn run(wish: &Wish) -> Result<String, Failure> {
    let interrupted = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        signal_hook::flag::register(signal, Arc::clone(&interrupted))?;
    }
    let mut random = Random::new(wish.seed);
    let mode = wish.mode.unwrap_or(Mode::Fullsync);
    let mut field = up(&mut random, mode, wish.mutant.as_deref(), interrupted)?;
    println!("seed {}, {}, in {}", wish.seed, length(wish), field.pair.directory().display());
    match cycles(&mut field, wish) {
        Ok(cycles) => {
            let Field { pair, deeds, record, .. } = field;
            let sums = record.sums();
            pair.finish()?;
            println!(
                "\n{cycles} cycles: {}\n{} writes and {} flushes acknowledged, {} requests lost their connection, {} \
                 were refused by a node with a bad disk",
                words(&deeds, &BTreeMap::new()),
                sums.acknowledged,
                sums.flushes,
                sums.lost,
                record.refused()
            );
            Ok(format!(
                "whatever was flushed or promised is there, {} MiB read and checked, both disks identical after every \
                 cycle",
                sums.checked >> 20
            ))
        }
        Err(failure) if field.record.is_interrupted() => Err(failure),
        Err(failure) => keep(&mut field, &failure),
    }
}

fn length(wish: &Wish) -> String {
    match (wish.cycles, wish.minutes) {
        (None, Some(minutes)) => format!("{minutes} min"),
        (cycles, _) => format!("{} cycles", cycles.unwrap_or(CYCLES)),
    }
}

/// A pair in step on disks of ours.
fn up(
    random: &mut Random,
    mode: Mode,
    mutant: Option<&str>,
    interrupted: Arc<AtomicBool>,
) -> Result<Field, Failure> {
    let mut pair = Pair::blank(Setup { provider: PROVIDER, ..setup(random, mode) })?;
    let size = usize::try_from(PROVIDER)?;
    let mut mounted = |path: &std::path::Path| {
        let disk = Disk::new(size, Random::new(random.number()));
        Mounted::over(path, disk, Random::new(random.number()))
    };
    let disks = [mounted(&pair.a.provider(RESOURCE))?, mounted(&pair.b.provider(RESOURCE))?];
    let boots = [Boots::new(pair.a.directory(), random)?, Boots::new(pair.b.directory(), random)?];
    let [on_a, on_b] = &boots;
    pair.a.launch_by(on_a.launcher(mutant)?);
    pair.b.launch_by(on_b.launcher(mutant)?);
    pair.create()?;
    pair.start_in_step()?;
    let datasize = hast_tests::disk::metadata(&pair.a.provider(RESOURCE))?.datasize;
    let record = Arc::new(Record::new(Ledger::new(usize::try_from(datasize)? / SECTOR), interrupted));
    let field = Field::new(pair, (disks, boots), record, random.clone(), mode);
    for side in Side::BOTH {
        let offset = field.data_offset(side)?;
        field.disk(side).disk(|disk| disk.set_data_offset(offset));
    }
    Ok(field)
}

fn cycles(field: &mut Field, wish: &Wish) -> Result<u64, Failure> {
    let end = wish.minutes.map(|minutes| Instant::now() + Duration::from_secs(minutes.saturating_mul(60)));
    let most = wish.cycles.or(end.is_none().then_some(CYCLES));
    let (mut cycle, mut deck) = (0, Vec::new());
    while most.is_none_or(|most| cycle < most) && end.is_none_or(|end| Instant::now() < end || cycle == 0) {
        cycle += 1;
        if deck.is_empty() {
            deck = Scene::shuffle(&mut field.random, wish.scene.as_deref())?;
        }
        let Some(scene) = deck.pop() else { continue };
        let (before, begin) = (field.deeds.clone(), Instant::now());
        one(field, scene, wish.faults)
            .context(format!("cycle {cycle}, {scene:?}, {}", field.mode.as_str()))?;
        println!(
            "cycle {cycle:>3}  {:<8} {:<12} {:>5.1} s  {} serves: {}",
            field.mode.as_str(),
            format!("{scene:?}"),
            begin.elapsed().as_secs_f64(),
            field.node(field.serving).name(),
            words(&field.deeds, &before)
        );
        field.record.turn_page();
        if wish.mode.is_none() && cycle % SAME_MODE == 0 {
            change_mode(field)?;
        }
    }
    Ok(cycle)
}

/// A scene, calm, and the truth.
fn one(field: &mut Field, scene: Scene, faults: bool) -> Result<(), Failure> {
    let sockets = Side::BOTH.map(|side| field.node(side).socket(RESOURCE));
    let sectors = usize::try_from(PROVIDER)? / SECTOR / 2;
    field.pace.change(&mut field.random);
    let clients = Clients::start(&field.record, &sockets, RESOURCE, sectors, &field.pace, &mut field.random);
    field.say(format!("{scene:?}"));
    field.go_on(300)?;
    if faults && scene != Scene::FlushedAlone && field.random.one_in(2) {
        field.disturb();
        field.go_on(300)?;
    }
    field.play(scene)?;
    field.calm()?;
    clients.stop()?;
    field.record.check()
}

/// To the next of the three.
fn change_mode(field: &mut Field) -> Result<(), Failure> {
    let [first, second, third] = Mode::ALL;
    field.mode = match field.mode {
        Mode::Fullsync => second,
        Mode::Memsync => third,
        Mode::Async => first,
    };
    set_mode(&mut field.pair.setup, field.mode);
    field.pair.write_conf()?;
    for side in Side::BOTH {
        field.node(side).reload()?;
    }
    field.wait_in_step()
}

/// What was done since `before`.
fn words(now: &BTreeMap<&'static str, u32>, before: &BTreeMap<&'static str, u32>) -> String {
    let words: Vec<String> = now
        .iter()
        .map(|(what, count)| (count - before.get(what).copied().unwrap_or_default(), what))
        .filter(|(count, _)| *count > 0)
        .map(|(count, what)| format!("{count} {what}"))
        .collect();
    if words.is_empty() { "nothing happened".to_owned() } else { words.join(", ") }
}

/// Leaves everything that tells of a failure where it is, with the contents of the disks.
fn keep(field: &mut Field, failure: &Failure) -> Result<String, Failure> {
    let directory = field.pair.directory().to_path_buf();
    field.record.write_journal(&directory.join("journal"))?;
    for side in Side::BOTH {
        let home = field.node(side).directory().to_path_buf();
        field.disk(side).disk(|disk| {
            std::fs::write(home.join("disk.seen"), disk.seen())?;
            std::fs::write(home.join("disk.durable"), disk.durable())
        })?;
    }
    let kept = field.pair.keep().display();
    Err(Failure::new(format!("{failure}\nLogs, disks and the journal of the cycle are in {kept}")))
}
