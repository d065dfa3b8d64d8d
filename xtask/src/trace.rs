//! `cargo xtask trace`: where each rule is kept and what checks it; and how the original's mistakes, and others, lose data,
//! as the model of the protocol finds it.

mod rules;

use std::path::Path;
use std::process::ExitCode;

use lexopt::Arg::Value;

pub(crate) fn main(mut parser: lexopt::Parser) -> Result<ExitCode, lexopt::Error> {
    match parser.next()? {
        None => Ok(table()?),
        Some(Value(name)) => model(name.to_str().filter(|name| *name != "all")),
        Some(other) => Err(other.unexpected()),
    }
}

/// Every rule, and what is wrong with how it is cited and checked.
fn table() -> Result<ExitCode, String> {
    crate::tools::enter_root()?;
    let rules = rules::Rules::of(Path::new(".")).map_err(|error| error.to_string())?;
    print!("{}", rules.table());
    for problem in &rules.problems {
        eprintln!("{problem}");
    }
    Ok(if rules.problems.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// How a mistake loses data, or all of them.
fn model(mistake: Option<&str>) -> Result<ExitCode, lexopt::Error> {
    let mut command = crate::tools::cargo();
    command.args(["run", "--quiet", "--release", "-p", "hast-model", "--", "trace"]);
    command.args(mistake);
    let status = command.status().map_err(|error| format!("cargo: {error}"))?;
    Ok(ExitCode::from(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1)))
}
