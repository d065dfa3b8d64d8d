//! What is remembered in `state_dir`: the devices that were attached, `<resource>.device`, and what a group has mounted,
//! `<group>.mount`.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::system::Mounted;

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

fn forget(file: &Path) -> io::Result<()> {
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
}
