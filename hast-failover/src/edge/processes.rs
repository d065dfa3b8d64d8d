//! Processes of Linux, and what they use: by the numbers of devices and file systems, for which no file server is asked, so
//! that one that has died cannot hold this up.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, StatxFlags, statx};
use rustix::process::{Pid, PidfdFlags, Signal as Number, kill_process, pidfd_open, pidfd_send_signal};

use nix::sys::stat::makedev;

use crate::system::{Mounted, Signal};

use super::command::{Runner, printable};

/// A process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Process {
    pub(super) pid: u32,
}

/// What a file of a process lies on, and is.
struct Seen {
    /// The file system.
    files: u64,
    /// The number of a block device.
    block: Option<u64>,
}

fn look(path: &Path) -> Option<Seen> {
    let flags = AtFlags::STATX_DONT_SYNC | AtFlags::NO_AUTOMOUNT;
    let found = statx(CWD, path, flags, StatxFlags::TYPE).ok()?;
    let is_block = FileType::from_raw_mode(found.stx_mode.into()) == FileType::BlockDevice;
    let block = is_block.then(|| makedev(found.stx_rdev_major.into(), found.stx_rdev_minor.into()));
    Some(Seen { files: makedev(found.stx_dev_major.into(), found.stx_dev_minor.into()), block })
}

impl Process {
    fn path(self, file: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/{file}", self.pid))
    }

    fn open_files(self) -> impl Iterator<Item = Seen> {
        let files = fs::read_dir(self.path("fd")).into_iter().flatten().flatten();
        files.filter_map(|file| look(&file.path()))
    }

    /// Whether it has this block device open.
    pub(super) fn has_open(self, number: u64) -> bool {
        self.open_files().any(|seen| seen.block == Some(number))
    }

    /// Whether it uses the file system with this number in any way that keeps it from being unmounted.
    pub(super) fn uses_files(self, number: u64) -> bool {
        let places = ["cwd", "root", "exe"].map(|file| self.path(file));
        places.iter().filter_map(|path| look(path)).any(|seen| seen.files == number)
            || self.open_files().any(|seen| seen.files == number && seen.block.is_none())
            || fs::read_to_string(self.path("maps")).is_ok_and(|maps| mapped(&maps, number))
    }
}

impl fmt::Display for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match fs::read_to_string(self.path("comm")) {
            Ok(name) => write!(f, "{} ({})", self.pid, printable(&name)),
            Err(_) => write!(f, "{}", self.pid),
        }
    }
}

/// Whether one of the lines of `maps` is a file of this file system.
fn mapped(maps: &str, number: u64) -> bool {
    let of = |line: &str| {
        let (major, minor) = line.split_whitespace().nth(3)?.split_once(':')?;
        let number = |digits| u64::from_str_radix(digits, 16).ok();
        Some(makedev(number(major)?, number(minor)?))
    };
    maps.lines().any(|line| of(line) == Some(number))
}

/// All processes but this one.
pub(super) fn all() -> Vec<Process> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    pids.filter(|pid| *pid != std::process::id()).map(|pid| Process { pid }).collect()
}

/// Whether there is a process whose first argument begins with this title.
pub(super) fn has_process(_: &Runner, title: &str) -> Result<bool, String> {
    let is_it = |process: &Process| {
        fs::read(process.path("cmdline")).is_ok_and(|words| words.starts_with(title.as_bytes()))
    };
    Ok(all().iter().any(is_it))
}

/// Sends a signal to all who use a file system; the first process of all is never meant.
pub(super) fn signal(_: &Runner, mounted: &Mounted, signal: Signal) -> Result<Vec<u32>, String> {
    let number = match signal {
        Signal::Term => Number::TERM,
        Signal::Kill => Number::KILL,
    };
    let uses = |process: &Process| process.pid != 1 && process.uses_files(mounted.files);
    let told = all().into_iter().filter(uses).filter(|process| send(*process, mounted.files, number));
    Ok(told.map(|process| process.pid).collect())
}

/// Sends it to the process that was meant, and to no later one with its number.
fn send(process: Process, files: u64, signal: Number) -> bool {
    let Some(pid) = i32::try_from(process.pid).ok().and_then(Pid::from_raw) else { return false };
    match pidfd_open(pid, PidfdFlags::empty()) {
        // Looked at again: from here on it is the same one.
        Ok(held) => process.uses_files(files) && pidfd_send_signal(&held, signal).is_ok(),
        Err(rustix::io::Errno::NOSYS) => kill_process(pid, signal).is_ok(),
        Err(_) => false,
    }
}

/// Kills a process, if it has this name.
pub(super) fn kill_if_named(pid: u32, name: &str) {
    let Some(number) = i32::try_from(pid).ok().and_then(Pid::from_raw) else { return };
    let is_it = || fs::read_to_string(Process { pid }.path("comm")).is_ok_and(|comm| comm.trim_end() == name);
    // A failure means that it is gone.
    match pidfd_open(number, PidfdFlags::empty()) {
        Ok(held) if is_it() => drop(pidfd_send_signal(&held, Number::KILL)),
        Err(rustix::io::Errno::NOSYS) if is_it() => drop(kill_process(number, Number::KILL)),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn what_a_process_uses_is_found() {
        let directory = tempfile::tempdir().unwrap();
        let number = fs::metadata(directory.path()).unwrap().dev();
        let file = directory.path().join("open");
        fs::write(&file, "").unwrap();
        let script = "exec 9<\"$0\" && echo here && read -r x";
        let mut child = Command::new("sh")
            .args(["-c", script])
            .arg(&file)
            .current_dir("/proc")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut said = String::new();
        std::io::BufRead::read_line(&mut std::io::BufReader::new(child.stdout.take().unwrap()), &mut said)
            .unwrap();
        let process = Process { pid: child.id() };
        assert!(all().contains(&process) && !all().contains(&Process { pid: std::process::id() }));
        assert!(process.open_files().any(|seen| seen.files == number));
        assert!(process.uses_files(number) && !process.uses_files(makedev(4000, 1)));
        assert!(!process.has_open(number));
        assert!(process.to_string().contains("(sh)"), "{process}");
        drop(child.stdin.take());
        child.wait().unwrap();
    }

    #[test]
    fn maps_are_read_by_their_device() {
        let maps = "00400000-00452000 r-xp 00000000 08:02 173521 /usr/bin/dbus-daemon\n\
                    7ffe0000-7ffe1000 rw-p 00000000 00:00 0 [stack]\n";
        assert!(mapped(maps, makedev(8, 2)) && !mapped(maps, makedev(8, 1)) && !mapped("x\n", 0));
    }

    #[test]
    fn a_process_is_found_by_its_title() {
        let runner = Runner::new(None);
        assert_eq!(has_process(&runner, "hastd: no such resource (secondary)"), Ok(false));
    }
}
