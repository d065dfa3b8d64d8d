//! FreeBSD's own tables: what is mounted (getfsstat), GEOM, and when a process began (sysctl).

use std::ffi::{CStr, CString, OsStr, c_char, c_int, c_void};
use std::io;
use std::mem;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::signal::{Signal as Number, kill};
use nix::time::{ClockId, clock_gettime};
use nix::unistd::Pid;

use crate::system::{Mounted, Ran, Signal};

use super::command::Runner;
use super::device_number;
use super::requests::Key;

/// How long a question to a program may take.
const LIMIT: Duration = Duration::from_secs(30);

fn text(bytes: &[c_char]) -> &CStr {
    // SAFETY: c_char has the size and alignment of a byte, and all its values are valid ones.
    let bytes = unsafe { std::slice::from_raw_parts(bytes.as_ptr().cast::<u8>(), bytes.len()) };
    CStr::from_bytes_until_nul(bytes).unwrap_or_default()
}

fn mounted(found: &libc::statfs) -> Mounted {
    // SAFETY: fsid_t is two numbers of 32 bits; its field is private to libc alone.
    let id: [i32; 2] = unsafe { mem::transmute_copy(&found.f_fsid) };
    let point = PathBuf::from(OsStr::from_bytes(text(&found.f_mntonname).to_bytes()));
    let source = text(&found.f_mntfromname).to_string_lossy().into_owned();
    let device = Some(Path::new(&source)).filter(|source| source.starts_with("/dev")).and_then(device_number);
    Mounted {
        id: format!("{:08x}{:08x}", id[0], id[1]),
        device,
        files: std::fs::metadata(&point).map(|metadata| metadata.dev()).unwrap_or_default(),
        point,
        source,
        fstype: text(&found.f_fstypename).to_string_lossy().into_owned(),
    }
}

/// All that is mounted.
pub(super) fn mounts() -> Result<Vec<Mounted>, String> {
    let told = || format!("getfsstat: {}", hast_log::error_text(&io::Error::last_os_error()));
    // SAFETY: without a place getfsstat(2) only counts.
    let count = unsafe { libc::getfsstat(std::ptr::null_mut(), 0, libc::MNT_NOWAIT) };
    let count = usize::try_from(count).map_err(|_| told())?;
    // Some more may come in between.
    let mut table: Vec<libc::statfs> = Vec::with_capacity(count.saturating_add(16));
    let bytes = table.capacity().saturating_mul(size_of::<libc::statfs>());
    let bytes = libc::c_long::try_from(bytes).map_err(|error| error.to_string())?;
    // SAFETY: the place has room for `bytes` bytes.
    let filled = unsafe { libc::getfsstat(table.as_mut_ptr(), bytes, libc::MNT_NOWAIT) };
    let filled = usize::try_from(filled).map_err(|_| told())?.min(table.capacity());
    // SAFETY: that many entries have been written, and there is room for them.
    unsafe { table.set_len(filled) };
    Ok(table.iter().map(mounted).collect())
}

/// What is mounted below a mount: what lies on its files by name, which both have from the kernel.
pub(super) fn mounted_below(above: &Mounted) -> Result<Vec<Mounted>, String> {
    let below = |other: &Mounted| other.id != above.id && other.point.starts_with(&above.point);
    Ok(mounts()?.into_iter().filter(below).collect())
}

pub(super) fn is_directory(path: &Path) -> bool {
    path.is_dir()
}

/// What is mounted at a directory, however that is named; nothing if it is only within something that is mounted.
pub(super) fn mounted_at(point: &Path) -> Result<Option<Mounted>, String> {
    let metadata = match std::fs::metadata(point) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(hast_log::error_text(&error)),
    };
    let above = std::fs::metadata(point.join("..")).map_err(|error| hast_log::error_text(&error))?;
    if metadata.dev() == above.dev() {
        return Ok(None);
    }
    let name = CString::new(point.as_os_str().as_bytes()).map_err(|error| error.to_string())?;
    let mut found = mem::MaybeUninit::<libc::statfs>::uninit();
    // SAFETY: the name ends with a NUL, and the place is big enough for what is written.
    if unsafe { libc::statfs(name.as_ptr(), found.as_mut_ptr()) } != 0 {
        return Err(hast_log::error_text(&io::Error::last_os_error()));
    }
    // SAFETY: it has succeeded, and so has written all of it.
    Ok(Some(mounted(&unsafe { found.assume_init() })))
}

/// There is nothing in `/dev/hast` that GEOM Gate has not made.
pub(super) fn foreign(_: u64, _: &str) -> Option<String> {
    None
}

pub(super) fn hastd_makes_devices() -> bool {
    true
}

pub(super) fn sys_text(_: u64, _: &str) -> Option<String> {
    None
}

pub(super) fn kill_if_named(_: u32, _: &str) {}

/// Everybody who has a device of GEOM Gate open, in words.
pub(super) fn users(_: &Runner, provider: &str, _: u64, _: Duration) -> Result<Vec<String>, String> {
    let confxml = hast_ggate::confxml().map_err(|error| hast_log::error_text(&error))?;
    let users = hast_ggate::geom::users(&confxml, &format!("hast/{provider}"));
    Ok(users.iter().map(|user| format!("open in {} {}", user.class, user.geom)).collect())
}

/// Whether there is a process whose title begins so.
pub(super) fn has_process(runner: &Runner, title: &str) -> Result<bool, String> {
    let mut pattern = String::from("^");
    for c in title.chars() {
        if !c.is_ascii_alphanumeric() && c != ' ' {
            pattern.push('\\');
        }
        pattern.push(c);
    }
    match runner.run("pgrep", &["-f", &pattern], LIMIT) {
        Ran::Well => Ok(true),
        Ran::Badly(1, _) => Ok(false),
        ran => Err(format!("pgrep: {ran:?}")),
    }
}

/// Sends a signal to all who use a file system.
pub(super) fn signal(runner: &Runner, mounted: &Mounted, signal: Signal) -> Result<Vec<u32>, String> {
    let number = match signal {
        Signal::Term => Number::SIGTERM,
        Signal::Kill => Number::SIGKILL,
    };
    let (ran, said) = runner.ask("fuser", &[OsStr::new("-c"), mounted.point.as_os_str()], LIMIT);
    if !matches!(ran, Ran::Well | Ran::Badly(..)) {
        return Err(format!("fuser: {ran:?}"));
    }
    let others = said.split_whitespace().filter_map(|word| word.parse::<u32>().ok());
    let others = others.filter(|pid| *pid > 1 && *pid != std::process::id());
    let told =
        others.filter(|pid| i32::try_from(*pid).is_ok_and(|pid| kill(Pid::from_raw(pid), number).is_ok()));
    Ok(told.collect())
}

/// Asked only of block devices, of which there are none.
pub(crate) fn is_exclusively_free(_: &Path) -> io::Result<bool> {
    Ok(true)
}

/// A value of sysctl(3) that is a structure.
///
/// # Safety
///
/// Any bytes of its size must be a valid `T`.
unsafe fn sysctl<T>(name: &[c_int]) -> io::Result<T> {
    let mut value = mem::MaybeUninit::<T>::zeroed();
    let mut length = size_of::<T>();
    let words = libc::c_uint::try_from(name.len()).unwrap_or_default();
    let place = value.as_mut_ptr().cast::<c_void>();
    // SAFETY: the name has that many words, and the place that many bytes.
    let done = unsafe { libc::sysctl(name.as_ptr(), words, place, &raw mut length, std::ptr::null(), 0) };
    if done != 0 {
        return Err(io::Error::last_os_error());
    }
    if length < size_of::<T>() {
        return Err(io::Error::other("sysctl: less than expected"));
    }
    // SAFETY: all of it was written, and the caller says that any bytes will do.
    Ok(unsafe { value.assume_init() })
}

fn microseconds(time: libc::timeval) -> i64 {
    time.tv_sec.saturating_mul(1_000_000).saturating_add(time.tv_usec)
}

/// When this process began, in microseconds since the system was started.
pub(crate) fn started() -> io::Result<Key> {
    let pid = std::process::id();
    let number = c_int::try_from(pid).map_err(io::Error::other)?;
    // SAFETY: both are numbers, and pointers that are not followed.
    let process: libc::kinfo_proc =
        unsafe { sysctl(&[libc::CTL_KERN, libc::KERN_PROC, libc::KERN_PROC_PID, number]) }?;
    // SAFETY: it is two numbers.
    let boot: libc::timeval = unsafe { sysctl(&[libc::CTL_KERN, libc::KERN_BOOTTIME]) }?;
    // The kernel has added the one to the other.
    let since = microseconds(process.ki_start).saturating_sub(microseconds(boot));
    Ok(Key { moment: u64::try_from(since).unwrap_or_default(), pid })
}

/// Time since the system was started.
pub(super) fn uptime() -> Duration {
    clock_gettime(ClockId::CLOCK_MONOTONIC).map(Duration::from).unwrap_or_default()
}

/// This moment, in microseconds since the system was started.
pub(crate) fn boot_clock() -> u64 {
    let now = uptime();
    // Two clocks may differ by a little.
    u64::try_from(now.as_micros()).unwrap_or(u64::MAX).saturating_add(1_000_000)
}
