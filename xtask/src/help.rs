//! `cargo xtask help`.

use std::process::ExitCode;

const TEXT: &str = "\
cargo xtask demo [--keep]
    Shows a replicated disk at work: two nodes on this machine, a write on the
    first, the first killed, the data read back from the second, the first
    brought back. Needs no root and no packages; ends within two minutes with
    a verdict. --keep leaves the pair running and says how to use it.

cargo xtask test [--list] [STEP ...]
    Runs everything that CI runs, or only the steps named. As root on a system
    with apt it installs the packages that the tests need; otherwise it says
    what it had to skip. With CI set in the environment nothing is skipped.

cargo xtask help
    Shows this.
";

pub(crate) fn show() -> ExitCode {
    print!("{TEXT}");
    ExitCode::SUCCESS
}
