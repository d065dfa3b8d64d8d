//! Runs every harness, exhaustively within its bounds and at random, and prints a row for each: harness, engine,
//! cases and result, with tabs between them. `cargo xtask verify` makes a table of it. Names choose some.

#[cfg(kani)]
fn main() {}

#[cfg(not(kani))]
fn main() -> std::process::ExitCode {
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

    use hast_proofs::engine::{Row, exhaustive, random};
    use hast_proofs::harness::ALL;

    /// Each harness over code that is wrong: it has to fail.
    fn noticed() -> Row {
        let mut row =
            Row { name: "every harness over wrong code", engine: "exhaustive", cases: 0, failure: None };
        for harness in ALL {
            for wrong in harness.wrong {
                let found = exhaustive(harness.name, |walk| (wrong.walk)(walk, harness.steps[0]));
                match found.failure {
                    Some(_) => row.cases += 1,
                    None => row.failure = Some(format!("{}: {} is not noticed", harness.name, wrong.what)),
                }
            }
        }
        row
    }

    // A harness that fails says so in its row.
    std::panic::set_hook(Box::new(|_| {}));
    let chosen: Vec<String> = std::env::args().skip(1).collect();
    let is_chosen = |name| chosen.is_empty() || chosen.iter().any(|chosen| chosen == name);
    let harnesses: Vec<_> = ALL.iter().filter(|harness| is_chosen(harness.name)).collect();
    if harnesses.is_empty() {
        eprintln!("no such harness; there are {:?}", ALL.map(|harness| harness.name));
        return std::process::ExitCode::from(64);
    }
    let (next, failed) = (AtomicUsize::new(0), AtomicBool::new(false));
    let show = |row: Row| {
        failed.fetch_or(row.failure.is_some(), Ordering::Relaxed);
        println!("{row}");
    };
    let work = || {
        while let Some(harness) = harnesses.get(next.fetch_add(1, Ordering::Relaxed)) {
            let [_, steps, long] = harness.steps;
            show(exhaustive(harness.name, |walk| (harness.walk)(walk, steps)));
            show(random(harness.name, harness.random, |tape| (harness.tape)(tape, long)));
        }
    };
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    std::thread::scope(|scope| (0..threads).for_each(|_| drop(scope.spawn(work))));
    if chosen.is_empty() {
        show(noticed());
    }
    std::process::ExitCode::from(u8::from(failed.load(Ordering::Relaxed)))
}
