//! `cargo xtask bench`: what replication costs, measured beside what it competes with. All contenders work
//! in the same directory and take turns, and every number is shown as a ratio to one that was measured in
//! the same run: on another machine, or on this one on another day, only ratios mean anything.

mod contender;
mod cost;
mod durable;
mod fio;
mod loss;
mod map;
mod micro;
mod report;
mod resync;
mod scaling;
mod workloads;

use std::path::PathBuf;
use std::process::{Command, ExitCode};

use hast_tests::{Failure, Outcome, tools};

use crate::release;

/// Measures one thing and prints it.
type Part = fn(&Wish) -> Outcome;
/// The parts, in the order in which they run.
const PARTS: [(&str, Part); 5] = [
    ("io", workloads::run),
    ("resync", resync::run),
    ("map", map::run),
    ("loss", loss::run),
    ("scaling", scaling::run),
];
/// Parts that run only when they are named: one is ours alone, one wants a real disk.
const APART: [(&str, Part); 2] = [("micro", micro::run), ("durable", durable::run)];
/// Where providers lie unless told otherwise: memory, so that nothing but the programs is measured.
const MEMORY: &str = "/dev/shm";

/// What was asked for.
struct Wish {
    /// Where the providers are made.
    directory: PathBuf,
    /// How often each contender has its turn.
    rounds: usize,
    /// How long a turn takes, in seconds.
    seconds: u64,
    /// The parts to run; none: all but those apart.
    parts: Vec<String>,
    /// Workloads by a part of their name; none: all.
    only: Vec<String>,
    /// Somebody else's server: its name, the command that starts it, and where it then listens.
    other: Option<[String; 3]>,
}

impl Wish {
    fn wants(&self, workload: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|part| workload.contains(part.as_str()))
    }
}

pub(crate) fn main(mut parser: lexopt::Parser) -> Result<ExitCode, lexopt::Error> {
    use lexopt::ValueExt;
    let mut wish = Wish {
        directory: PathBuf::from(MEMORY),
        rounds: 3,
        seconds: 3,
        parts: Vec::new(),
        only: Vec::new(),
        other: None,
    };
    while let Some(argument) = parser.next()? {
        match argument {
            lexopt::Arg::Long("dir") => wish.directory = parser.value()?.into(),
            lexopt::Arg::Long("rounds") => wish.rounds = parser.value()?.parse()?,
            lexopt::Arg::Long("seconds") => wish.seconds = parser.value()?.parse()?,
            lexopt::Arg::Long("only") => wish.only.push(parser.value()?.string()?),
            lexopt::Arg::Long("contender") => {
                let mut words = parser.values()?.map(ValueExt::string);
                let mut next = || words.next().unwrap_or_else(|| Err("NAME COMMAND URI".into()));
                wish.other = Some([next()?, next()?, next()?]);
            }
            lexopt::Arg::Value(part) => {
                let part = part.string()?;
                if !PARTS.iter().chain(&APART).any(|(name, _)| *name == part) {
                    return Err(format!("no part {part:?}").into());
                }
                wish.parts.push(part);
            }
            other => return Err(other.unexpected()),
        }
    }
    release::insist()?;
    let result = beside(&wish).and_then(|()| apart(&wish));
    Ok(match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            println!("FAIL: {failure}");
            ExitCode::FAILURE
        }
    })
}

/// The parts in which others take part.
fn beside(wish: &Wish) -> Outcome {
    let wanted = |name: &str| wish.parts.is_empty() || wish.parts.iter().any(|part| part == name);
    let parts: Vec<Part> = PARTS.iter().filter(|(name, _)| wanted(name)).map(|(_, part)| *part).collect();
    if parts.is_empty() {
        return Ok(());
    }
    for program in ["fio", "qemu-nbd", "qemu-storage-daemon", "nbdcopy"] {
        if tools::find(program).is_none() {
            return Failure::because(format!(
                "{program} is not installed: `cargo xtask test packages` installs it as root"
            ));
        }
    }
    release::build_programs()?;
    report::machine(wish)?;
    parts.into_iter().try_for_each(|part| part(wish))
}

/// Those that were named of the others.
fn apart(wish: &Wish) -> Outcome {
    let wanted = APART.iter().filter(|(name, _)| wish.parts.iter().any(|part| part == name));
    wanted.map(|(_, part)| part).try_for_each(|part| part(wish))
}

/// A child process that ends with the value.
#[derive(Debug)]
struct Server(std::process::Child);

impl Server {
    fn start(command: &mut Command) -> Result<Server, Failure> {
        use std::os::unix::process::CommandExt;
        use std::process::Stdio;
        // Its children, if any, are counted and ended with it.
        command.stdin(Stdio::null()).stdout(Stdio::null()).process_group(0);
        match command.spawn() {
            Ok(child) => Ok(Server(child)),
            Err(error) => Failure::because(format!("{command:?}: {error}")),
        }
    }

    /// The process group.
    fn group(&self) -> i32 {
        i32::try_from(self.0.id()).unwrap_or(i32::MAX)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        use nix::sys::signal::{Signal, killpg};
        // One that has ended already needs neither.
        let _ = killpg(nix::unistd::Pid::from_raw(self.group()), Signal::SIGKILL);
        let _ = self.0.wait();
    }
}
