//! `cargo xtask freebsd`: the workspace checked, linted, built and linked for FreeBSD on Linux.

mod inspect;
mod kit;
mod linker;
mod port;

use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use kit::Kit;

/// What cannot be done, and why.
pub(crate) type Failure = String;

/// What a person may ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wish {
    Check,
    Clippy,
    Build,
    Test,
    Ci,
}

impl Wish {
    fn parse(word: &str) -> Option<Wish> {
        match word {
            "check" => Some(Wish::Check),
            "clippy" => Some(Wish::Clippy),
            "build" => Some(Wish::Build),
            "test" => Some(Wish::Test),
            "ci" => Some(Wish::Ci),
            _ => None,
        }
    }
}

/// The processors that programs can be built for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Arch {
    X86_64,
    Aarch64,
}

impl Arch {
    fn parse(word: &str) -> Option<Arch> {
        match word {
            "x86_64" | "amd64" => Some(Arch::X86_64),
            "aarch64" | "arm64" => Some(Arch::Aarch64),
            _ => None,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Arch::X86_64 => "x86_64",
            Arch::Aarch64 => "aarch64",
        }
    }

    /// As Rust calls the system.
    fn target(self) -> String {
        format!("{}-unknown-freebsd", self.name())
    }
}

pub(crate) fn main(mut parser: lexopt::Parser) -> Result<ExitCode, lexopt::Error> {
    use lexopt::Arg::{Long, Value};
    use lexopt::ValueExt;
    let mut wish = None;
    let mut arch = Arch::X86_64;
    while let Some(argument) = parser.next()? {
        match argument {
            Long("arch") => {
                let word = parser.value()?.string()?;
                arch = Arch::parse(&word).ok_or_else(|| format!("no processor {word}: x86_64 or aarch64"))?;
            }
            // The compiler calls us for each program that it links.
            Value(word) if word == "link" => {
                let arguments: Vec<_> = parser.raw_args()?.collect();
                return Ok(linker::main(arguments));
            }
            Value(word) if word == "crates" => return Ok(conclude(port::write_crates())),
            Value(word) if wish.is_none() => {
                let found = word.to_str().and_then(Wish::parse);
                wish = Some(
                    found.ok_or_else(|| format!("{word:?} is none of check, clippy, build, test, crates"))?,
                );
            }
            other => return Err(other.unexpected()),
        }
    }
    let wish = wish.ok_or("say what: check, clippy, build, test or crates")?;
    if let Err(error) = std::env::set_current_dir(root()) {
        return Err(format!("the project's root: {error}").into());
    }
    Ok(conclude(run(wish, arch)))
}

fn conclude(result: Result<(), Failure>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("xtask: {failure}");
            ExitCode::FAILURE
        }
    }
}

fn run(wish: Wish, arch: Arch) -> Result<(), Failure> {
    let kit = Kit::prepare(arch)?;
    match wish {
        Wish::Check => kit.cargo("check --workspace --all-targets"),
        Wish::Clippy => clippy(&kit),
        Wish::Build => {
            kit.cargo("build --release -p hastd -p hastctl -p hast-failover")?;
            inspect(&kit, "release")
        }
        Wish::Test => kit.cargo("test --no-run --workspace"),
        Wish::Ci => {
            clippy(&kit)?;
            kit.cargo("test --quiet --no-run --workspace")?;
            kit.cargo("build --quiet -p hastd -p hastctl -p hast-failover")?;
            inspect(&kit, "debug")?;
            foreign_calls_do_not_link(&kit)
        }
    }
}

fn clippy(kit: &Kit) -> Result<(), Failure> {
    kit.cargo("clippy --quiet --workspace --all-targets -- -D warnings")
}

/// Looks whether the programs are what FreeBSD runs.
fn inspect(kit: &Kit, profile: &str) -> Result<(), Failure> {
    for program in ["hastd", "hastctl", "hast-failover"] {
        let path = kit.target_directory().join(kit.arch().target()).join(profile).join(program);
        let about = inspect::program(&path, kit.arch())?;
        println!("{}: {about}", path.display());
    }
    Ok(())
}

/// A program that calls what only Linux has must not come through; the same program without does.
fn foreign_calls_do_not_link(kit: &Kit) -> Result<(), Failure> {
    let directory = tempfile::tempdir().map_err(|error| error.to_string())?;
    let program = |function: &str| {
        format!(
            "unsafe extern \"C\" {{ fn {function}(argument: i32) -> i32; }}\n\
             fn main() {{ std::process::exit(unsafe {{ {function}(0) }} & 1) }}\n"
        )
    };
    let link = |function: &str| -> Result<(PathBuf, std::process::Output), Failure> {
        let source = directory.path().join(format!("{function}.rs"));
        let result = directory.path().join(function);
        std::fs::write(&source, program(function)).map_err(|error| error.to_string())?;
        let output = kit.rustc().arg("--edition=2024").arg("-o").arg(&result).arg(source).output();
        Ok((result, output.map_err(|error| format!("rustc: {error}"))?))
    };
    let (result, output) = link("getdtablesize")?;
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stderr);
        return Err(format!("a program that calls nothing foreign does not link:\n{text}"));
    }
    inspect::program(&result, kit.arch())?;
    for function in ["epoll_create1", "gnu_get_libc_version", "signalfd"] {
        let (_, output) = link(function)?;
        let text = String::from_utf8_lossy(&output.stderr);
        if output.status.success() || !text.contains(function) {
            return Err(format!("a program that calls {function} is not refused for it:\n{text}"));
        }
        println!("{function}: refused, as it should be");
    }
    Ok(())
}

fn root() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

/// Runs a command with its output shown.
fn pass(command: &mut Command) -> Result<(), Failure> {
    let words: Vec<_> = command.get_args().map(|word| word.to_string_lossy().into_owned()).collect();
    let shown = format!("{} {}", command.get_program().to_string_lossy(), words.join(" "));
    println!("$ {shown}");
    match command.stdin(std::process::Stdio::null()).status() {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(format!("{shown}: {status}")),
        Err(error) => Err(format!("{shown}: {error}")),
    }
}

/// Runs a command and gives what it says.
fn ask(command: &mut Command) -> Result<String, Failure> {
    let program = command.get_program().to_string_lossy().into_owned();
    match command.stdin(std::process::Stdio::null()).output() {
        Ok(output) if output.status.success() => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
        Ok(output) => {
            let text = String::from_utf8_lossy(&output.stderr);
            Err(format!("{program}: {}: {}", output.status, text.trim()))
        }
        Err(error) => Err(format!("{program}: {error}")),
    }
}

/// With what was done to which file.
fn at(path: &Path) -> impl Fn(io::Error) -> Failure {
    move |error| format!("{}: {error}", path.display())
}
