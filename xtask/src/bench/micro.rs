//! Steps of a request, each alone, by criterion (`benches`).

use hast_tests::{Failure, Outcome};

use super::Wish;

/// How long a step runs before it is measured, in seconds.
const WARM_UP: &str = "1";

pub(super) fn run(wish: &Wish) -> Outcome {
    let mut command = crate::tools::cargo();
    command.current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
    command.args(["bench", "--quiet", "--package", "hast-benches", "--bench", "micro", "--"]);
    command.args(["--warm-up-time", WARM_UP, "--measurement-time", &wish.seconds.to_string()]);
    if !wish.only.is_empty() {
        // A regular expression.
        command.arg(wish.only.join("|"));
    }
    match command.status()? {
        status if status.success() => Ok(()),
        status => Failure::because(format!("{command:?}: {status}")),
    }
}
