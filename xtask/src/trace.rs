//! `cargo xtask trace`: how the original's mistakes, and others, lose data, as the model of the protocol finds it.

use std::process::ExitCode;

use lexopt::Arg::Value;

pub(crate) fn main(mut parser: lexopt::Parser) -> Result<ExitCode, lexopt::Error> {
    let mut command = crate::tools::cargo();
    command.args(["run", "--quiet", "--release", "-p", "hast-model", "--", "trace"]);
    match parser.next()? {
        None => {}
        Some(Value(name)) => {
            command.arg(name);
        }
        Some(other) => return Err(other.unexpected()),
    }
    let status = command.status().map_err(|error| format!("cargo: {error}"))?;
    Ok(ExitCode::from(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1)))
}
