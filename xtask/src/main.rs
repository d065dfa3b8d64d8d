//! `cargo xtask <command>`: what the README asks a person to type.

mod bench;
mod demo;
mod freebsd;
mod fuzz;
mod help;
mod install;
mod release;
mod sim;
mod test;
mod tools;
mod torture;
mod trace;
mod verify;
mod vm_test;
mod watch;

use std::process::ExitCode;

fn main() -> ExitCode {
    match run() {
        Ok(code) => code,
        Err(error) => {
            eprintln!("xtask: {error}");
            eprintln!("Try `cargo xtask help`.");
            ExitCode::from(64)
        }
    }
}

fn run() -> Result<ExitCode, lexopt::Error> {
    use lexopt::Arg::{Long, Short, Value};
    let mut parser = lexopt::Parser::from_env();
    match parser.next()? {
        None | Some(Long("help") | Short('h')) => Ok(help::show()),
        Some(Value(command)) => match command.to_str() {
            Some("help") => Ok(help::show()),
            Some("bench") => bench::main(parser),
            Some("demo") => demo::main(parser),
            Some("freebsd") => freebsd::main(parser),
            Some("fuzz") => fuzz::main(parser),
            Some("install") => install::main(parser),
            Some("sim") => sim::main(parser),
            Some("test") => test::main(parser),
            Some("torture") => torture::main(parser),
            Some("trace") => trace::main(parser),
            Some("verify") => verify::main(parser),
            Some("vm-test") => vm_test::main(parser),
            _ => Err(format!("no command {command:?}").into()),
        },
        Some(other) => Err(other.unexpected()),
    }
}
