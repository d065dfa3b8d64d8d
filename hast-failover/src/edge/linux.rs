//! Linux's own tables: what is mounted (mountinfo), block devices (sysfs), and when a process began (procfs).

use std::ffi::{OsStr, OsString};
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{OFlag, open, openat};
use nix::sys::stat::{Mode, major, makedev, minor};
use nix::time::{ClockId, clock_gettime};
use nix::unistd::{SysconfVar, sysconf};

use crate::system::{Mounted, Ran};

use super::command::Runner;
use super::requests::Key;
use super::{BUSY, device_number, processes};

pub(super) use super::processes::{has_process, kill_if_named, signal};

/// A line of mountinfo.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Entry {
    id: u32,
    parent: u32,
    number: u64,
    point: PathBuf,
    fstype: String,
    source: OsString,
}

fn entry(line: &[u8]) -> Option<Entry> {
    let mut words = line.split(|byte| *byte == b' ');
    let number = |word: Option<&[u8]>| std::str::from_utf8(word?).ok()?.parse::<u32>().ok();
    let id = number(words.next())?;
    let parent = number(words.next())?;
    let (major, minor) = std::str::from_utf8(words.next()?).ok()?.split_once(':')?;
    let _root = words.next()?;
    let point = PathBuf::from(OsString::from_vec(unescape(words.next()?)));
    let mut rest = words.skip_while(|word| *word != b"-").skip(1);
    let fstype = String::from_utf8_lossy(rest.next()?).into_owned();
    let source = OsString::from_vec(unescape(rest.next().unwrap_or_default()));
    Some(Entry {
        id,
        parent,
        number: makedev(major.parse().ok()?, minor.parse().ok()?),
        point,
        fstype,
        source,
    })
}

/// Blanks and such are written as a backslash and three octal digits.
fn unescape(word: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(word.len());
    let mut rest = word;
    while let [first, others @ ..] = rest {
        let digit = |byte: &u8| (b'0'..=b'7').contains(byte).then(|| u32::from(byte.wrapping_sub(b'0')));
        if let (b'\\', [a, b, c, after @ ..]) = (first, others)
            && let (Some(a), Some(b), Some(c)) = (digit(a), digit(b), digit(c))
            && let Ok(byte) = u8::try_from(a * 64 + b * 8 + c)
        {
            out.push(byte);
            rest = after;
        } else {
            out.push(*first);
            rest = others;
        }
    }
    out
}

fn entries(file: &Path) -> Result<Vec<Entry>, String> {
    let text =
        fs::read(file).map_err(|error| format!("{}: {}", file.display(), hast_log::error_text(&error)))?;
    Ok(text.split(|byte| *byte == b'\n').filter_map(entry).collect())
}

fn own_entries() -> Result<Vec<Entry>, String> {
    entries(Path::new("/proc/self/mountinfo"))
}

/// The kernel's name for the time since it was started: numbers of mounts begin again with the next one.
fn boot_id() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default()
}

fn mounted(entry: &Entry, boot: &str) -> Mounted {
    // File systems over several devices, and those of a program, have a number that is no device's.
    let device = if major(entry.number) != 0 {
        Some(entry.number)
    } else {
        Some(Path::new(&entry.source)).filter(|source| source.starts_with("/dev")).and_then(device_number)
    };
    Mounted {
        id: format!("{} {}", entry.id, boot.trim()),
        device,
        files: entry.number,
        point: entry.point.clone(),
        source: entry.source.to_string_lossy().into_owned(),
        fstype: entry.fstype.clone(),
    }
}

/// All that is mounted, in the order of the kernel.
pub(super) fn mounts() -> Result<Vec<Mounted>, String> {
    let boot = boot_id();
    Ok(own_entries()?.iter().map(|entry| mounted(entry, &boot)).collect())
}

/// What is mounted below a mount, or over it.
pub(super) fn mounted_below(above: &Mounted) -> Result<Vec<Mounted>, String> {
    let id = above.id.split(' ').next().and_then(|id| id.parse::<u32>().ok());
    let below =
        own_entries()?.into_iter().filter(|entry| Some(entry.parent) == id && entry.id != entry.parent);
    let boot = boot_id();
    Ok(below.map(|entry| mounted(&entry, &boot)).collect())
}

/// A directory as a place in the tree: nothing is read, and nobody is asked who may not answer.
fn place(path: &Path) -> nix::Result<OwnedFd> {
    open(path, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())
}

/// The mount that a place is in.
fn mount_of(place: &OwnedFd) -> Result<u32, String> {
    let file = format!("/proc/self/fdinfo/{}", place.as_raw_fd());
    let text =
        fs::read_to_string(&file).map_err(|error| format!("{file}: {}", hast_log::error_text(&error)))?;
    let id = text.lines().find_map(|line| line.strip_prefix("mnt_id:")?.trim().parse().ok());
    id.ok_or_else(|| format!("{file} does not say which mount it is in"))
}

pub(super) fn is_directory(path: &Path) -> bool {
    place(path).is_ok()
}

/// What is mounted at a directory, however that is named; nothing if it is only within something that is mounted.
pub(super) fn mounted_at(point: &Path) -> Result<Option<Mounted>, String> {
    let place = match place(point) {
        Ok(place) => place,
        Err(Errno::ENOENT | Errno::ENOTDIR) => return Ok(None),
        Err(errno) => return Err(errno.desc().to_owned()),
    };
    let id = mount_of(&place)?;
    let above = openat(&place, "..", OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty());
    let above = above.map_err(|errno| errno.desc().to_owned()).and_then(|above| mount_of(&above));
    let table = own_entries()?;
    let Some(entry) = table.iter().find(|entry| entry.id == id) else {
        return Err("what is mounted there changes right now".to_owned());
    };
    let is_root = match above {
        Ok(above) => above != id,
        // Somebody's file system may keep even root out: then by the kernel's name for both.
        Err(_) => fs::read_link(format!("/proc/self/fd/{}", place.as_raw_fd()))
            .is_ok_and(|name| name == entry.point),
    };
    Ok(is_root.then(|| mounted(entry, &boot_id())))
}

fn sys(number: u64, file: &str) -> PathBuf {
    PathBuf::from(format!("/sys/dev/block/{}:{}/{file}", major(number), minor(number)))
}

/// A word that sysfs has about a device.
pub(super) fn sys_text(number: u64, file: &str) -> Option<String> {
    let text = fs::read_to_string(sys(number, file)).ok()?;
    Some(text.trim_end_matches('\n').to_owned())
}

/// The kernel's name for a block device.
fn kernel_name(number: u64) -> String {
    let uevent = sys_text(number, "uevent").unwrap_or_default();
    let name = uevent.lines().find_map(|line| line.strip_prefix("DEVNAME="));
    name.map_or_else(|| format!("{}:{}", major(number), minor(number)), str::to_owned)
}

/// What a device is, if it cannot be the device of this provider that hastd, or this program, has made.
pub(super) fn foreign(number: u64, provider: &str) -> Option<String> {
    let name = kernel_name(number);
    let whole =
        |prefix: &str| name.strip_prefix(prefix).is_some_and(|rest| rest.bytes().all(|b| b.is_ascii_digit()));
    if whole("ublkb") || whole("loop") {
        return None;
    }
    let shown = format!("/dev/{name}");
    if !whole("nbd") {
        return Some(shown);
    }
    // hastd's own say which socket they are connected to.
    let backend = sys_text(number, "backend").unwrap_or_default();
    let (socket, _) = backend.strip_prefix("hast:")?.rsplit_once(' ')?;
    let expected = format!("{provider}.sock");
    let is_its = Path::new(socket).file_name() == Path::new(&expected).file_name();
    (!is_its).then(|| format!("{shown} over {socket}"))
}

/// Whether hastd can make devices.
pub(super) fn hastd_makes_devices() -> bool {
    ["/sys/module/nbd", "/sys/module/ublk_drv"].iter().any(|module| Path::new(module).is_dir())
}

/// Everybody who uses a block device, in words: what is mounted from it, in any mount namespace, what is built on it, and
/// who has it open. What none of these shows, the kernel itself knows of.
pub(super) fn users(runner: &Runner, _: &str, number: u64, limit: Duration) -> Result<Vec<String>, String> {
    let mut users: Vec<String> = mounts()?
        .iter()
        .filter(|mounted| mounted.device == Some(number))
        .map(|mounted| format!("mounted on {}", mounted.point.display()))
        .collect();
    users.extend(elsewhere(number));
    let holders = fs::read_dir(sys(number, "holders")).into_iter().flatten().flatten();
    users.extend(holders.map(|holder| format!("below {}", holder.file_name().to_string_lossy())));
    users.extend(loops_over(number));
    let server = sys_text(number, "pid").and_then(|pid| pid.parse::<u32>().ok());
    for process in processes::all() {
        if Some(process.pid) != server && process.has_open(number) {
            users.push(format!("open in process {process}"));
        } else if process.uses_files(number) {
            users.push(format!("its files are used by process {process}"));
        }
    }
    if users.is_empty() && !runner_says_free(runner, number, limit)? {
        users.push("in use by the kernel, which may still be unmounting it".to_owned());
    }
    Ok(users)
}

/// Mounts in other namespaces.
fn elsewhere(number: u64) -> Vec<String> {
    let namespace = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/mnt")).ok();
    let mut seen: Vec<PathBuf> = namespace("self").into_iter().collect();
    let mut found = Vec::new();
    for process in processes::all() {
        let Some(other) = namespace(&process.pid.to_string()) else { continue };
        if seen.contains(&other) {
            continue;
        }
        seen.push(other);
        let table = entries(Path::new(&format!("/proc/{}/mountinfo", process.pid))).unwrap_or_default();
        let of_it = table.iter().filter(|entry| entry.number == number);
        found.extend(of_it.map(|entry| {
            format!("mounted on {} in the mount namespace of process {process}", entry.point.display())
        }));
    }
    found
}

/// Loop devices over it.
fn loops_over(number: u64) -> Vec<String> {
    let blocks = fs::read_dir("/sys/block").into_iter().flatten().flatten();
    let over = |name: &OsStr| {
        let file = fs::read(Path::new("/sys/block").join(name).join("loop/backing_file")).ok()?;
        let file = file.strip_suffix(b"\n").unwrap_or(&file);
        let file = Path::new(OsStr::from_bytes(file));
        (file.starts_with("/dev") && device_number(file) == Some(number)).then_some(())
    };
    let names = blocks.map(|block| block.file_name()).filter(|name| over(name).is_some());
    names.map(|name| format!("below {}", name.to_string_lossy())).collect()
}

/// Asks the kernel, in a process of its own: to open a device that does not answer may take long.
fn runner_says_free(runner: &Runner, number: u64, limit: Duration) -> Result<bool, String> {
    let node = PathBuf::from(format!("/dev/{}", kernel_name(number)));
    if device_number(&node) != Some(number) {
        return Err(format!("{} is not there", node.display()));
    }
    let arguments = [OsStr::new("-X"), node.as_os_str()];
    match runner.run("/proc/self/exe", &arguments, limit) {
        Ran::Well => Ok(true),
        Ran::Badly(status, _) if status == i32::from(BUSY) => Ok(false),
        Ran::TooLong(limit) => Err(format!("it does not answer within {} s", limit.as_secs())),
        Ran::Badly(_, said) | Ran::Not(said) => Err(said),
    }
}

/// Whether nobody has claimed a block device: no file system, and nothing that is built on it.
pub(crate) fn is_exclusively_free(node: &Path) -> io::Result<bool> {
    let flags = (OFlag::O_EXCL | OFlag::O_NONBLOCK).bits();
    match OpenOptions::new().read(true).custom_flags(flags).open(node) {
        Ok(file) => {
            let _: File = file;
            Ok(true)
        }
        Err(error) if error.raw_os_error() == Some(libc::EBUSY) => Ok(false),
        // Of a device that has no medium nothing can be mounted.
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENXIO | libc::ENODEV | libc::ENOMEDIUM)) => {
            Ok(true)
        }
        Err(error) => Err(error),
    }
}

/// When this process began, in ticks since the system was started.
pub(crate) fn started() -> io::Result<Key> {
    let stat = fs::read_to_string("/proc/self/stat")?;
    // The name, in brackets, may have anything in it. The first field after it is the third of all.
    let mut fields = stat.rsplit_once(") ").map(|(_, rest)| rest.split(' ')).into_iter().flatten();
    let moment = fields.nth(19).and_then(|field| field.parse().ok());
    let moment =
        moment.ok_or_else(|| io::Error::other("/proc/self/stat does not say when this process began"))?;
    Ok(Key { moment, pid: std::process::id() })
}

/// Time since the system was started.
pub(super) fn uptime() -> Duration {
    clock_gettime(ClockId::CLOCK_BOOTTIME).map(Duration::from).unwrap_or_default()
}

/// This moment, in ticks since the system was started.
pub(crate) fn boot_clock() -> u64 {
    let now = uptime();
    let ticks = sysconf(SysconfVar::CLK_TCK).ok().flatten().and_then(|ticks| u64::try_from(ticks).ok());
    let ticks = ticks.unwrap_or(100);
    let parts = u64::from(now.subsec_millis()).saturating_mul(ticks) / 1000;
    now.as_secs().saturating_mul(ticks).saturating_add(parts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_mountinfo_are_read() {
        let line = b"36 35 98:0 /mnt1 /mnt2/a\\040b\\134 rw,noatime master:1 - ext3 /dev/ro\\011ot rw,errors=continue";
        let expected = Entry {
            id: 36,
            parent: 35,
            number: makedev(98, 0),
            point: "/mnt2/a b\\".into(),
            fstype: "ext3".to_owned(),
            source: "/dev/ro\tot".into(),
        };
        assert_eq!(entry(line), Some(expected));
        for wrong in [
            &b""[..],
            b"36 35",
            b"a 35 98:0 / / rw - ext3 x rw",
            b"36 35 98 / / rw - ext3 x rw",
            b"1 2 3:4 / / rw",
        ] {
            assert_eq!(entry(wrong), None, "{}", String::from_utf8_lossy(wrong));
        }
        assert_eq!(unescape(b"\\0401\\04\\777\\"), b" 1\\04\\777\\");
    }

    #[test]
    fn this_systems_table_is_understood_in_full() {
        let text = fs::read("/proc/self/mountinfo").unwrap();
        let lines = text.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()).count();
        assert_eq!(own_entries().unwrap().len(), lines);
    }

    #[test]
    fn a_mount_point_is_found_under_any_name() {
        let directory = tempfile::tempdir().unwrap();
        let link = directory.path().join("a link");
        std::os::unix::fs::symlink("/proc", &link).unwrap();
        for name in ["/proc", "/proc/", "/proc/.", "/proc/../proc", &link.display().to_string()] {
            let found = mounted_at(Path::new(name)).unwrap().unwrap();
            assert_eq!((found.fstype.as_str(), found.device), ("proc", None), "{name}");
        }
        for name in ["/proc/sys/kernel", "/proc/cpuinfo", "/nowhere", &directory.path().display().to_string()]
        {
            assert_eq!(mounted_at(Path::new(name)), Ok(None), "{name}");
        }
        let below = mounted_below(
            &mounted_at(Path::new("/")).unwrap().unwrap_or_else(|| mounts().unwrap().remove(0)),
        );
        assert!(below.unwrap().iter().all(|mounted| mounted.point != Path::new("/")));
    }

    #[test]
    fn this_process_began_before_now() {
        let key = started().unwrap();
        let now = boot_clock();
        assert!(key.moment <= now && now - key.moment < 100 * 3600, "{key} {now}");
        assert_eq!(key, started().unwrap());
    }

    #[test]
    fn only_what_hast_makes_is_no_stranger() {
        assert_eq!(
            foreign(makedev(1, 0), "x").as_deref(),
            Some("/dev/ram0").filter(|_| Path::new("/sys/block/ram0").exists()).or(Some("/dev/1:0"))
        );
    }
}
