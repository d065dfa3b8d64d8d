//! Debian packages that the tests use. It is said which, and they are installed when somebody agrees: at once in CI or
//! with `--yes`, after a question on a terminal, otherwise not at all.

use std::io::Write;
use std::process::Command;

use hast_tests::tools::find;

use super::{Outcome, Surroundings};

/// Programs and the packages that bring them.
const PROGRAMS: &[(&str, &str)] = &[
    ("nbdinfo", "libnbd-bin"),
    ("nbdcopy", "libnbd-bin"),
    ("qemu-img", "qemu-utils"),
    ("qemu-io", "qemu-utils"),
    ("fio", "fio"),
    ("nbdkit", "nbdkit"),
    ("mandoc", "mandoc"),
    ("ucarp", "ucarp"),
    ("keepalived", "keepalived"),
    ("nbdfuse", "libnbd-bin"),
    ("fusermount3", "fuse3"),
    ("mkfs.ext4", "e2fsprogs"),
    ("mkfs.xfs", "xfsprogs"),
    ("ip", "iproute2"),
    ("arping", "iputils-arping"),
    ("fuser", "psmisc"),
    ("pgrep", "procps"),
    ("ocf-tester", "resource-agents"),
    ("xmllint", "libxml2-utils"),
    ("systemd-analyze", "systemd"),
    ("shellcheck", "shellcheck"),
    ("cc", "gcc"),
    ("c++", "g++"),
];

pub(super) fn install(around: &Surroundings) -> Outcome {
    let needed = missing();
    if needed.is_empty() {
        return Outcome::Passed;
    }
    let packages = packages(&needed);
    println!("Tests use programs that are not installed: {}.", names(&needed));
    let root = nix::unistd::geteuid().is_root();
    let install = format!("apt-get install --no-install-recommends {}", packages.join(" "));
    if find("apt-get").is_some() {
        println!("The packages: {}{install}", if root { "" } else { "sudo " });
        if root && (around.yes || agreed(around.terminal)) {
            // A failed update may still leave a usable list; the installation decides.
            let _ = around.pass(Command::new("apt-get").args(["update", "-qq"]));
            let mut command = Command::new("apt-get");
            command.args(["install", "-qq", "-y", "--no-install-recommends"]).args(packages);
            let _ = around.pass(command.env("DEBIAN_FRONTEND", "noninteractive"));
        } else if root && !around.terminal {
            println!("With --yes they are installed.");
        }
    }
    let left = missing();
    if left.is_empty() {
        return Outcome::Passed;
    }
    around.cannot(format!("not installed, and tests that need them are skipped: {}", names(&left)))
}

/// Asks on the terminal; no answer is a no.
fn agreed(terminal: bool) -> bool {
    if !terminal {
        return false;
    }
    print!("Install them now? [y/N] ");
    let _ = std::io::stdout().flush();
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer).is_ok() && is_yes(&answer)
}

fn is_yes(answer: &str) -> bool {
    ["y", "yes"].contains(&answer.trim().to_ascii_lowercase().as_str())
}

fn missing() -> Vec<(&'static str, &'static str)> {
    PROGRAMS.iter().copied().filter(|(program, _)| find(program).is_none()).collect()
}

fn names(programs: &[(&str, &str)]) -> String {
    programs.iter().map(|(program, _)| *program).collect::<Vec<_>>().join(", ")
}

/// What brings these programs, each once.
fn packages<'a>(programs: &[(&str, &'a str)]) -> Vec<&'a str> {
    let mut packages: Vec<&str> = programs.iter().map(|(_, package)| *package).collect();
    packages.sort_unstable();
    packages.dedup();
    packages
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_package_is_named_once() {
        let programs = [("nbdinfo", "libnbd-bin"), ("fio", "fio"), ("nbdfuse", "libnbd-bin")];
        assert_eq!(packages(&programs), ["fio", "libnbd-bin"]);
        assert_eq!(names(&programs), "nbdinfo, fio, nbdfuse");
    }

    #[test]
    fn only_a_yes_is_one() {
        assert!(["y\n", "Y\n", " yes\n"].into_iter().all(is_yes));
        assert!(["", "\n", "n\n", "yesterday\n"].into_iter().all(|answer| !is_yes(answer)));
    }
}
