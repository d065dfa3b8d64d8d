//! What the compiler calls to link a program: zig's C compiler, with what it does wrong put right.

use std::ffi::{OsStr, OsString};
use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

/// Where the number of the system lies in an ELF file, and FreeBSD's.
pub(super) const OS_ABI: (u64, u8) = (7, 9);

/// What is asked of the linker.
#[derive(Debug, Default, PartialEq, Eq)]
struct Order {
    zig: PathBuf,
    /// What zig needs to know before the compiler's arguments.
    before: Vec<OsString>,
    arguments: Vec<OsString>,
    output: Option<PathBuf>,
    /// Debug information is to be left out, but not the names of functions.
    strip_debug: bool,
}

/// `link ZIG TARGET DIRECTORY ARGUMENT ...`: links for zig's target, with stubs from the directory.
pub(super) fn main(arguments: Vec<OsString>) -> ExitCode {
    let Some(order) = Order::parse(arguments) else {
        eprintln!("xtask: link: only the compiler calls this");
        return ExitCode::from(64);
    };
    match order.carry_out() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("xtask: link: {error}");
            ExitCode::FAILURE
        }
    }
}

impl Order {
    fn parse(arguments: Vec<OsString>) -> Option<Order> {
        let mut arguments = arguments.into_iter();
        let zig = PathBuf::from(arguments.next()?);
        let target = arguments.next()?;
        let mut stubs = OsString::from("-L");
        stubs.push(arguments.next()?);
        let before = vec!["cc".into(), "-target".into(), target, stubs];
        let mut order = Order { zig, before, ..Order::default() };
        let mut is_output = false;
        for argument in arguments {
            if is_output {
                order.output = Some(PathBuf::from(&argument));
            }
            is_output = argument == "-o";
            // zig takes it for --strip-all, and backtraces would have no names.
            if argument == "-Wl,--strip-debug" {
                order.strip_debug = true;
            } else {
                order.arguments.push(argument);
            }
        }
        Some(order)
    }

    fn carry_out(&self) -> io::Result<bool> {
        let status = Command::new(&self.zig).args(&self.before).args(&self.arguments).status()?;
        if !status.success() {
            return Ok(false);
        }
        if let Some(output) = self.output.as_deref().filter(|output| output.is_file()) {
            if self.strip_debug {
                strip(output);
            }
            mark(output)?;
        }
        Ok(true)
    }
}

/// A program that is larger than it need be is no failure: there may be no strip for another processor.
fn strip(program: &Path) {
    let arguments = [OsStr::new("--strip-debug"), program.as_os_str()];
    let _ = Command::new("strip").args(arguments).stderr(std::process::Stdio::null()).status();
}

/// zig leaves open whose program it is; FreeBSD's own linker does not.
fn mark(program: &Path) -> io::Result<()> {
    let file = OpenOptions::new().write(true).open(program)?;
    file.write_all_at(&[OS_ABI.1], OS_ABI.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_order_is_passed_on_but_for_what_zig_gets_wrong() {
        let words = ["zig", "x86_64-freebsd.14.0", "/stubs", "-Wl,--strip-debug", "a.o", "-o", "a", "-lc"];
        let order = Order::parse(words.iter().map(OsString::from).collect()).unwrap();
        assert_eq!(order.before, ["cc", "-target", "x86_64-freebsd.14.0", "-L/stubs"]);
        assert_eq!(order.arguments, ["a.o", "-o", "a", "-lc"]);
        assert_eq!((order.output, order.strip_debug), (Some("a".into()), true));
        assert_eq!(Order::parse(vec!["zig".into()]), None);
    }
}
