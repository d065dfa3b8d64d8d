//! Debian packages that the tests use, installed when that is possible without asking anybody.

use std::process::Command;

use hast_tests::tools::find;

use super::{Outcome, Surroundings, pass};

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
    ("c++", "g++"),
];

pub(super) fn install(around: &Surroundings) -> Outcome {
    if missing().is_empty() {
        return Outcome::Passed;
    }
    if nix::unistd::geteuid().is_root() && find("apt-get").is_some() {
        let mut packages: Vec<&str> = missing().iter().map(|(_, package)| *package).collect();
        packages.dedup();
        // A failed update may still leave a usable list; the installation decides.
        let _ = pass(Command::new("apt-get").args(["update", "-qq"]));
        let mut install = Command::new("apt-get");
        install.args(["install", "-qq", "-y", "--no-install-recommends"]).args(packages);
        let _ = pass(install.env("DEBIAN_FRONTEND", "noninteractive"));
    }
    let left: Vec<&str> = missing().iter().map(|(program, _)| *program).collect();
    if left.is_empty() {
        return Outcome::Passed;
    }
    around.cannot(format!("not installed, and tests that need them are skipped: {}", left.join(", ")))
}

fn missing() -> Vec<(&'static str, &'static str)> {
    PROGRAMS.iter().copied().filter(|(program, _)| find(program).is_none()).collect()
}
