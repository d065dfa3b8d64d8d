//! The engines that run everywhere: exhaustive over a bounded domain, and random.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};

use proptest::collection::vec;
use proptest::prelude::any;
use proptest::test_runner::{Config, TestCaseError, TestError, TestRunner};

use crate::source::{Case, Tape, Walk};

/// Numbers that one random case may use; what it takes beyond that is 0.
const TAPE: usize = 192;

/// What came of one harness under one engine.
#[derive(Clone, Debug)]
pub struct Row {
    /// The harness.
    pub name: &'static str,
    /// How it was run.
    pub engine: &'static str,
    /// Cases that met what the harness assumes.
    pub cases: u64,
    /// Nothing, or what failed and with which choices.
    pub failure: Option<String>,
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let result = self.failure.as_deref().map_or("ok".to_owned(), |why| format!("FAILED: {why}"));
        // One row, one line.
        let result = result.replace(['\n', '\t'], " ");
        write!(f, "{}\t{}\t{}\t{result}", self.name, self.engine, self.cases)
    }
}

/// Runs `harness` with every combination of its choices, up to the first that fails.
pub fn exhaustive(name: &'static str, mut harness: impl FnMut(&mut Walk) -> Case) -> Row {
    let mut walk = Walk::new();
    let mut row = Row { name, engine: "exhaustive", cases: 0, failure: None };
    loop {
        match catch_unwind(AssertUnwindSafe(|| harness(&mut walk))) {
            Ok(Ok(())) => row.cases += 1,
            Ok(Err(_)) => {}
            Err(panic) => {
                row.failure = Some(format!("{} (choices {:?})", text(&*panic), walk.choices()));
                return row;
            }
        }
        if !walk.advance() {
            break;
        }
    }
    if row.cases == 0 {
        row.failure = Some("no case meets what is assumed".to_owned());
    }
    row
}

/// Runs `harness` with `cases` random tapes; one that fails is made as simple as possible.
pub fn random(name: &'static str, cases: u32, harness: impl Fn(&mut Tape<'_>) -> Case) -> Row {
    let config = Config { cases, failure_persistence: None, max_shrink_iters: 2000, ..Config::default() };
    let fit = std::cell::Cell::new(0_u64);
    let outcome = TestRunner::new(config).run(&vec(any::<u64>(), TAPE), |numbers| {
        match catch_unwind(AssertUnwindSafe(|| harness(&mut Tape::new(&numbers)))) {
            Ok(Ok(())) => fit.set(fit.get() + 1),
            Ok(Err(_)) => {}
            Err(panic) => return Err(TestCaseError::fail(text(&*panic))),
        }
        Ok(())
    });
    let failure = match outcome {
        Ok(()) if fit.get() == 0 => Some("no case meets what is assumed".to_owned()),
        Ok(()) => None,
        Err(TestError::Fail(why, numbers)) => {
            let mut tape = Tape::new(&numbers);
            let _ = catch_unwind(AssertUnwindSafe(|| harness(&mut tape)));
            Some(format!("{why} (tape {:?})", tape.used()))
        }
        Err(error) => Some(error.to_string()),
    };
    Row { name, engine: "random", cases: fit.get(), failure }
}

fn text(panic: &(dyn std::any::Any + Send)) -> String {
    let string = panic.downcast_ref::<String>().map(String::as_str);
    string.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("a panic without words").to_owned()
}
