//! What is remembered in `state_dir`: the devices that were attached, `<resource>.device`, what a group has mounted,
//! `<group>.mount`, and that its last promotion failed, `<group>.failed`.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::run::Failure;
use crate::system::Mounted;

use super::command::printable;

/// A name as part of a file's name.
pub(super) fn name(of: &str) -> String {
    of.replace('/', "%")
}

/// What a device is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Nbd,
    Fuse,
}

/// A line of `<resource>.device`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Record {
    pub(super) kind: Kind,
    pub(super) device: PathBuf,
    /// What the kernel has said of the device when it was attached; it says something else of any other one.
    pub(super) token: Option<String>,
}

/// The directory.
pub(super) struct State {
    directory: PathBuf,
}

impl State {
    pub(super) fn new(directory: &Path) -> State {
        State { directory: directory.to_path_buf() }
    }

    pub(super) fn file(&self, of: &str, kind: &str) -> PathBuf {
        self.directory.join(format!("{}.{kind}", name(of)))
    }

    pub(super) fn device(&self, resource: &str) -> Option<Record> {
        parse(&fs::read_to_string(self.file(resource, "device")).ok()?)
    }

    pub(super) fn set_device(&self, resource: &str, record: Option<&Record>) -> io::Result<()> {
        let file = self.file(resource, "device");
        let Some(record) = record else { return forget(&file) };
        let kind = match record.kind {
            Kind::Nbd => "nbd",
            Kind::Fuse => "fuse",
        };
        let token = record.token.as_deref().unwrap_or_default();
        write(&file, format!("{kind} {} {token}", record.device.display()).trim_end())
    }

    /// The last promotion of a group, if it failed.
    pub(super) fn failure(&self, group: &str) -> Option<Failure> {
        let text = fs::read_to_string(self.file(group, "failed")).ok()?;
        let mut words = text.trim_end_matches('\n').splitn(4, ' ');
        let times = words.next()?.parse().ok()?;
        let at = Duration::from_millis(words.next()?.parse().ok()?);
        let foreseeable = words.next()? == "role";
        Some(Failure { times, at, foreseeable, why: words.next().unwrap_or_default().to_owned() })
    }

    pub(super) fn set_failure(&self, group: &str, failure: Option<&Failure>) -> Result<(), String> {
        let file = self.file(group, "failed");
        let done = match failure {
            None => forget(&file),
            Some(Failure { times, at, foreseeable, why }) => {
                let kind = if *foreseeable { "role" } else { "step" };
                write(&file, &format!("{times} {} {kind} {}", at.as_millis(), printable(why)))
            }
        };
        done.map_err(|error| format!("{}: {}", file.display(), hast_log::error_text(&error)))
    }

    /// What a group has mounted: the kernel's name for it, and its device.
    pub(super) fn mount(&self, group: &str) -> Option<(String, Option<u64>)> {
        let text = fs::read_to_string(self.file(group, "mount")).ok()?;
        let (device, id) = text.trim_end_matches('\n').split_once(' ')?;
        Some((id.to_owned(), device.parse().ok()))
    }

    pub(super) fn set_mount(&self, group: &str, mounted: Option<&Mounted>) -> Result<(), String> {
        let file = self.file(group, "mount");
        let done = match mounted {
            None => forget(&file),
            Some(mounted) => {
                let device = mounted.device.map_or_else(|| "-".to_owned(), |number| number.to_string());
                write(&file, &format!("{device} {}", mounted.id))
            }
        };
        done.map_err(|error| format!("{}: {}", file.display(), hast_log::error_text(&error)))
    }
}

fn parse(text: &str) -> Option<Record> {
    let mut words = text.trim_end_matches('\n').splitn(3, ' ');
    let kind = match words.next()? {
        "nbd" => Kind::Nbd,
        "fuse" => Kind::Fuse,
        _ => return None,
    };
    let device = PathBuf::from(words.next()?);
    let token = words.next().map(str::to_owned);
    Some(Record { kind, device, token })
}

/// Writes a file of one line, at once or not at all. One at a time: the caller holds a lock.
pub(super) fn write(file: &Path, line: &str) -> io::Result<()> {
    let mut new = file.as_os_str().to_owned();
    new.push(".new");
    fs::write(&new, format!("{line}\n"))?;
    fs::rename(&new, file)
}

/// Removes a file, if it is there.
pub(super) fn forget(file: &Path) -> io::Result<()> {
    match fs::remove_file(file) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_remembered_is_read_again() {
        let directory = tempfile::tempdir().unwrap();
        let state = State::new(directory.path());
        assert_eq!(state.device("a/b"), None);
        for (kind, token) in [(Kind::Nbd, Some("123")), (Kind::Fuse, Some("/a b/disk")), (Kind::Fuse, None)] {
            let record = Record { kind, device: "/dev/loop0".into(), token: token.map(str::to_owned) };
            state.set_device("a/b", Some(&record)).unwrap();
            assert_eq!(state.device("a/b"), Some(record));
        }
        state.set_device("a/b", None).unwrap();
        state.set_device("a/b", None).unwrap();
        assert_eq!(state.device("a/b"), None);
        for nonsense in ["", "\n", "nbd", "x /dev/loop0", "nbd\n"] {
            assert_eq!(parse(nonsense), None, "{nonsense}");
        }
        let mounted = Mounted {
            id: "36 7:0".to_owned(),
            device: Some(0x700),
            files: 0x700,
            point: "/m".into(),
            source: "/dev/loop0".to_owned(),
            fstype: "ext4".to_owned(),
        };
        state.set_mount("g", Some(&mounted)).unwrap();
        assert_eq!(state.mount("g"), Some(("36 7:0".to_owned(), Some(0x700))));
        state.set_mount("g", None).unwrap();
        assert_eq!(state.mount("g"), None);
    }

    #[test]
    fn a_failure_is_remembered_in_one_line() {
        let directory = tempfile::tempdir().unwrap();
        let state = State::new(directory.path());
        assert_eq!(state.failure("g"), None);
        for foreseeable in [false, true] {
            let at = Duration::from_millis(1234);
            let failure = Failure { times: 3, at, foreseeable, why: "a\nb".to_owned() };
            state.set_failure("g", Some(&failure)).unwrap();
            assert_eq!(state.failure("g"), Some(Failure { why: "a b".to_owned(), ..failure }));
        }
        for nonsense in ["", "1", "1 x role", "x 1 role", "-1 1 step why"] {
            fs::write(directory.path().join("g.failed"), nonsense).unwrap();
            assert_eq!(state.failure("g"), None, "{nonsense}");
        }
        state.set_failure("g", None).unwrap();
        state.set_failure("g", None).unwrap();
        assert!(!directory.path().join("g.failed").exists());
    }
}
