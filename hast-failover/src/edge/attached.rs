//! Devices that this program attaches (Linux): the kernel's nbd with nbd-client, or nbdfuse and a loop device, with a relay in
//! front of nbdfuse (`crate::relay`). They outlive the run; `<resource>.device` remembers them together with what tells them from any later one.

use std::ffi::OsStr;
use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use crate::config::Attach;
use crate::system::{Attached, Ran, System};

use super::state::{Kind, Record};
use super::{Edge, MOMENT, RELAY, device_number, kernel};

impl Edge<'_> {
    /// The socket of an export.
    pub(super) fn socket(&self, provider: &str) -> PathBuf {
        self.group.nbd_dir.join(format!("{provider}.sock"))
    }

    fn fuse_directory(&self, resource: &str) -> PathBuf {
        self.state.file(resource, "fuse")
    }

    fn fuse_file(&self, resource: &str) -> PathBuf {
        self.fuse_directory(resource).join("disk")
    }

    fn command(&self, program: &str, arguments: &[impl AsRef<OsStr>]) -> Ran {
        self.runner.run(program, arguments, self.group.device_timeout)
    }

    /// Waits for something on the way up.
    fn wait(&mut self, so: impl Fn() -> bool) -> bool {
        let begin = Instant::now();
        while !so() {
            if begin.elapsed() >= self.group.device_timeout || self.later().is_some() {
                return false;
            }
            std::thread::sleep(MOMENT);
        }
        true
    }
}

/// What the kernel says of a device that tells it from any later one with its number: the file of a loop device, the
/// process that has connected an nbd.
fn token(kind: Kind, number: u64) -> Option<String> {
    let text = kernel::sys_text(number, if kind == Kind::Fuse { "loop/backing_file" } else { "pid" })?;
    (!text.is_empty()).then(|| text.replace('\n', " "))
}

/// The number of a remembered device, if it is the same one still.
fn number(edge: &Edge<'_>, resource: &str, record: &Record) -> Option<u64> {
    let number = device_number(&record.device)?;
    let now = token(record.kind, number)?;
    let same = match (&record.token, record.kind) {
        (Some(then), _) => *then == now,
        // Remembered by a program that noted the device alone.
        (None, Kind::Nbd) => true,
        (None, Kind::Fuse) => {
            let directory = edge.fuse_directory(resource);
            fs::canonicalize(directory.parent()?).is_ok_and(|parent| {
                Some(parent.join(directory.file_name().unwrap_or_default()).join("disk").as_os_str())
                    == Some(OsStr::new(&now))
            })
        }
    };
    same.then_some(number)
}

pub(super) fn find(edge: &Edge<'_>, resource: &str) -> Option<Attached> {
    let record = edge.state.device(resource)?;
    let number = number(edge, resource, &record);
    Some(Attached { device: record.device, number })
}

/// Whether a remembered device answers a read, past what is in memory.
pub(super) fn answers(edge: &Edge<'_>, resource: &str) -> bool {
    let Some(record) = edge.state.device(resource) else { return false };
    if number(edge, resource, &record).is_none() {
        return false;
    }
    let (file, flag) = match record.kind {
        Kind::Fuse => (edge.fuse_file(resource), None),
        Kind::Nbd => (record.device, Some("iflag=direct")),
    };
    let file = format!("if={}", file.display());
    let mut words = vec![file.as_str(), "of=/dev/null", "bs=4096", "count=1"];
    words.extend(flag);
    edge.command("dd", &words) == Ran::Well
}

pub(super) fn attach(
    edge: &mut Edge<'_>,
    resource: &str,
    provider: &str,
    lasting: bool,
) -> Result<PathBuf, String> {
    let told =
        |what: &Path, error: &io::Error| format!("{}: {}", what.display(), hast_log::error_text(error));
    fs::create_dir_all(&edge.group.device_dir).map_err(|error| told(&edge.group.device_dir, &error))?;
    let record = match edge.group.attach {
        Attach::Nbd => nbd(edge, provider),
        Attach::Fuse => fuse(edge, resource, provider),
        _ if lasting => fuse(edge, resource, provider),
        _ => match nbd(edge, provider) {
            Ok(record) => Ok(record),
            Err(why) => fuse(edge, resource, provider).map_err(|more| format!("{why}; {more}")),
        },
    }?;
    edge.state.set_device(resource, Some(&record)).map_err(|error| told(&edge.general.state_dir, &error))?;
    let name = edge.name_of(provider);
    link(&name, &record.device).map_err(|error| told(&name, &error))?;
    Ok(record.device)
}

/// Makes `name` mean `device`, at once or not at all.
fn link(name: &Path, device: &Path) -> io::Result<()> {
    if fs::symlink_metadata(name).is_ok_and(|there| !there.is_symlink()) {
        return Err(ErrorKind::AlreadyExists.into());
    }
    let mut new = name.as_os_str().to_owned();
    new.push(".new");
    let _ = fs::remove_file(&new);
    std::os::unix::fs::symlink(device, &new)?;
    fs::rename(&new, name)
}

fn nbd(edge: &mut Edge<'_>, provider: &str) -> Result<Record, String> {
    if !edge.runner.has("nbd-client") {
        return Err("nbd-client is not installed".to_owned());
    }
    if !Path::new("/sys/module/nbd").is_dir() {
        let _ = edge.command("modprobe", &["nbd"]);
    }
    let socket = edge.socket(provider);
    let mut free = Vec::new();
    for block in fs::read_dir("/sys/block").into_iter().flatten().flatten() {
        let name = block.file_name().to_string_lossy().into_owned();
        let index = name.strip_prefix("nbd").and_then(|digits| digits.parse::<u32>().ok());
        if let Some(index) = index.filter(|_| !block.path().join("pid").exists()) {
            free.push((index, PathBuf::from(format!("/dev/{name}"))));
        }
    }
    free.sort();
    let mut last = "this kernel has no nbd that is free".to_owned();
    for (_, device) in free {
        let words = [
            OsStr::new("-unix"),
            socket.as_os_str(),
            device.as_os_str(),
            OsStr::new("-N"),
            OsStr::new(provider),
        ];
        // Somebody else may have been quicker.
        match edge.command("nbd-client", &words) {
            Ran::Well => {
                let token = device_number(&device).and_then(|number| token(Kind::Nbd, number));
                return Ok(Record { kind: Kind::Nbd, device, token });
            }
            Ran::Badly(_, said) | Ran::Not(said) => last = format!("nbd-client: {said}"),
            Ran::TooLong(limit) => last = format!("nbd-client: not done after {} s", limit.as_secs()),
        }
        if edge.later().is_some() {
            break;
        }
    }
    Err(last)
}

fn fuse(edge: &mut Edge<'_>, resource: &str, provider: &str) -> Result<Record, String> {
    for program in ["nbdfuse", "losetup"] {
        if !edge.runner.has(program) {
            return Err(format!("{program} is not installed"));
        }
    }
    let told =
        |what: &Path, error: io::Error| format!("{}: {}", what.display(), hast_log::error_text(&error));
    let (directory, file) = (edge.fuse_directory(resource), edge.fuse_file(resource));
    let pid_file = edge.state.file(resource, "nbdfuse.pid");
    let _ = fs::remove_file(&pid_file);
    fs::create_dir_all(&directory).map_err(|error| told(&directory, error))?;
    // Whatever happens from here on, there is something to be taken away.
    let begun = Record { kind: Kind::Fuse, device: PathBuf::from("-"), token: None };
    edge.state.set_device(resource, Some(&begun)).map_err(|error| told(&edge.general.state_dir, error))?;
    // nbdfuse and what connects it outlive us: they have a session of their own, and none of our descriptors.
    let mut command = edge.runner.command("/proc/self/exe");
    command.arg(RELAY).arg(resource).arg(edge.socket(provider)).arg(provider).arg(&pid_file).arg(&file);
    command.args(&edge.general.log).stdout(Stdio::null()).stderr(Stdio::null());
    let _child = command.spawn().map_err(|error| format!("the relay: {}", hast_log::error_text(&error)))?;
    let there = edge.wait(|| fs::metadata(&pid_file).is_ok_and(|file| file.len() > 0) && file.is_file());
    if !there {
        return Err("nbdfuse does not show the export".to_owned());
    }
    let mut said = String::new();
    for options in [&["--direct-io=on", "-f", "--show"][..], &["-f", "--show"]] {
        let mut words: Vec<&OsStr> = options.iter().map(OsStr::new).collect();
        words.push(file.as_os_str());
        let (ran, out) = edge.runner.ask("losetup", &words, edge.group.device_timeout);
        if ran == Ran::Well {
            let device = PathBuf::from(out.trim());
            let token = device_number(&device).and_then(|number| token(Kind::Fuse, number));
            return Ok(Record { kind: Kind::Fuse, device, token });
        }
        if let Ran::Badly(_, words) | Ran::Not(words) = ran {
            said = words;
        }
    }
    Err(format!("losetup: {said}"))
}

pub(super) fn detach(edge: &Edge<'_>, resource: &str, cut: bool) -> Result<(), String> {
    let Some(record) = edge.state.device(resource) else { return Ok(()) };
    let number = number(edge, resource, &record);
    // The links that lead to it, before it is somebody else's.
    let links = links_to(&edge.group.device_dir, number, &record.device);
    if cut && record.kind == Kind::Fuse {
        kill_nbdfuse(edge, resource);
    }
    match record.kind {
        Kind::Nbd if number.is_some() => {
            let ran = edge.command("nbd-client", &[OsStr::new("-d"), record.device.as_os_str()]);
            if ran != Ran::Well && self::number(edge, resource, &record).is_some() {
                return Err(format!("nbd-client -d: {ran:?}"));
            }
        }
        Kind::Nbd => {}
        Kind::Fuse => {
            if number.is_some() {
                let ran = edge.command("losetup", &[OsStr::new("-d"), record.device.as_os_str()]);
                if ran != Ran::Well && !cut && self::number(edge, resource, &record).is_some() {
                    return Err(format!("losetup -d: {ran:?}"));
                }
            }
            unmount_fuse(edge, resource);
            kill_nbdfuse(edge, resource);
            let _ = fs::remove_dir(edge.fuse_directory(resource));
        }
    }
    for link in links {
        let _ = fs::remove_file(link);
    }
    edge.state.set_device(resource, None).map_err(|error| hast_log::error_text(&error))
}

/// The links in a directory that lead to this device, and those with its name: it may be somebody else's soon.
fn links_to(directory: &Path, number: Option<u64>, name: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let links = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_symlink()));
    let is_one = |path: &PathBuf| {
        (number.is_some() && device_number(path) == number)
            || fs::read_link(path).is_ok_and(|target| target == *name)
    };
    links.map(|entry| entry.path()).filter(is_one).collect()
}

fn unmount_fuse(edge: &Edge<'_>, resource: &str) {
    let directory = edge.fuse_directory(resource);
    let is_mounted =
        || matches!(kernel::mounted_at(&directory), Ok(Some(mounted)) if mounted.fstype.starts_with("fuse"));
    for options in [&[][..], &["-l"]] {
        if !is_mounted() {
            return;
        }
        let mut words: Vec<&OsStr> = options.iter().map(OsStr::new).collect();
        words.push(directory.as_os_str());
        // A loop device that has just gone may hold its file for a moment.
        let begin = Instant::now();
        while edge.command("umount", &words) != Ran::Well
            && is_mounted()
            && begin.elapsed() < Duration::from_secs(2)
        {
            std::thread::sleep(MOMENT);
        }
    }
}

fn kill_nbdfuse(edge: &Edge<'_>, resource: &str) {
    let file = edge.state.file(resource, "nbdfuse.pid");
    if let Ok(text) = fs::read_to_string(&file)
        && let Ok(pid) = text.trim().parse()
    {
        // A file that is left from before a restart may name somebody else.
        kernel::kill_if_named(pid, "nbdfuse");
    }
    let _ = fs::remove_file(&file);
}
