//! Mount namespaces: one of our own, in which the disks are mounted and which ends with us, and one for each run of a
//! daemon, in which the system's boot id is a file of ours.

use std::ffi::{OsStr, OsString};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use hast_sim::random::Random;
use hast_tests::{Context, Failure};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::unistd::{getegid, geteuid};

/// What a daemon reads.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
const NOTHING: Option<&str> = None;

/// The word on our command line that means [`run`].
pub(super) const WORD: &str = "as-booted";

/// Moves this process, which must have no other threads yet, to a mount namespace of its own; one who is not root, to a
/// user namespace of its own too.
///
/// # Errors
/// The system does not allow it.
pub(super) fn enter_namespace() -> Result<(), Failure> {
    let (user, group) = (geteuid(), getegid());
    let flags = if user.is_root() { CloneFlags::empty() } else { CloneFlags::CLONE_NEWUSER };
    unshare(flags | CloneFlags::CLONE_NEWNS).context("a mount namespace of our own")?;
    if !user.is_root() {
        for (file, text) in [
            ("setgroups", "deny".to_owned()),
            ("uid_map", format!("{user} {user} 1")),
            ("gid_map", format!("{group} {group} 1")),
        ] {
            std::fs::write(format!("/proc/self/{file}"), text).context(file)?;
        }
    }
    mount(NOTHING, "/", NOTHING, MsFlags::MS_REC | MsFlags::MS_PRIVATE, NOTHING).context("private mounts")
}

/// The boot ids of one node: another one whenever it starts after a loss of power.
pub(super) struct Boots {
    file: PathBuf,
}

impl Boots {
    /// Draws the first.
    ///
    /// # Errors
    /// The file cannot be written.
    pub(super) fn new(directory: &Path, random: &mut Random) -> Result<Boots, Failure> {
        let boots = Boots { file: directory.join("boot_id") };
        boots.next(random)?;
        Ok(boots)
    }

    /// Draws the next.
    ///
    /// # Errors
    /// The file cannot be written.
    pub(super) fn next(&self, random: &mut Random) -> Result<(), Failure> {
        let (high, low) = (random.number(), random.number());
        let text = format!(
            "{:08x}-{:04x}-{:04x}-{:04x}-{:012x}\n",
            high >> 32,
            high >> 16 & 0xffff,
            high & 0xffff,
            low >> 48,
            low & 0xffff_ffff_ffff
        );
        std::fs::write(&self.file, text).context(self.file.display())
    }

    /// What stands before a command that is to run with the boot id of that moment, and with this rule broken.
    ///
    /// # Errors
    /// This program does not know where it is.
    pub(super) fn launcher(&self, mutant: Option<&str>) -> Result<Vec<OsString>, Failure> {
        let ourselves = std::env::current_exe()?;
        let mut words: Vec<OsString> =
            vec![ourselves.into(), "torture".into(), WORD.into(), self.file.clone().into()];
        if let Some(rule) = mutant {
            words.extend(["env".into(), format!("HASTD_BREAK_RULE={rule}").into()]);
        }
        Ok(words)
    }
}

/// Becomes the program that `words` name after the file with the boot id. Returns only if that fails.
pub(super) fn run(words: &[OsString]) -> Failure {
    match words {
        [file, program, arguments @ ..] => match pretend(file) {
            Ok(()) => {
                let error = Command::new(program).args(arguments).exec();
                Failure::new(format!("{}: {error}", program.display()))
            }
            Err(failure) => failure,
        },
        _ => Failure::new("a file with a boot id and a program"),
    }
}

fn pretend(file: &OsStr) -> Result<(), Failure> {
    enter_namespace()?;
    mount(Some(file), BOOT_ID, NOTHING, MsFlags::MS_BIND, NOTHING)
        .context(format!("a boot id over {BOOT_ID}"))
}
