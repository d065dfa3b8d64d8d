//! The real node: what [`crate::system`] asks for and does, with commands, the kernel's tables and files in `state_dir`.
//!
//! Paths are never compared by their text where it matters whose something is: the kernel says what is mounted where, and a
//! device is known by its number.

mod addresses;
mod announce;
mod attached;
pub(crate) mod command;
mod demotion;
mod pools;
pub(crate) mod requests;
mod services;
mod state;

#[cfg(target_os = "linux")]
mod linux;
#[cfg(target_os = "linux")]
mod processes;
#[cfg(target_os = "linux")]
use linux as kernel;
#[cfg(target_os = "freebsd")]
mod freebsd;
#[cfg(target_os = "freebsd")]
use freebsd as kernel;

pub(crate) use kernel::{boot_clock, is_exclusively_free, started};

use std::ffi::OsStr;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::address::Address;
use crate::config::{Attach, General, Group};
use crate::log::Log;
use crate::run::{Failure, Role, Wanted};
use crate::system::{
    Attached, Known, Later, Mounted, Node, Platform, Pool, Priority, Ran, Signal, System, Unmount, Way,
};

use command::Runner;
use requests::{Key, Requests};
use state::State;

/// The exit status of this program, asked about a device with `-X`, if somebody has claimed it.
pub(crate) const BUSY: u8 = 16;

/// The option of this program, which is not for people, that makes it nbdfuse's relay.
pub(crate) const RELAY: &str = "-R";

/// Between two looks at something that is waited for.
const MOMENT: Duration = Duration::from_millis(100);

/// The node that this program runs on, for one group.
pub(crate) struct Edge<'a> {
    pub(crate) general: &'a General,
    pub(crate) group: &'a Group,
    pub(crate) log: &'a Log,
    pub(crate) runner: &'a Runner,
    /// The request that is carried out; none for a question.
    pub(crate) request: Option<(Role, Key)>,
    /// Somebody wants the program to end.
    pub(crate) ends: Arc<AtomicBool>,
    begin: Instant,
    state: State,
    requests: Requests,
}

impl<'a> Edge<'a> {
    pub(crate) fn new(
        general: &'a General,
        group: &'a Group,
        log: &'a Log,
        runner: &'a Runner,
        request: Option<(Role, Key)>,
        ends: Arc<AtomicBool>,
    ) -> Edge<'a> {
        let state = State::new(&general.state_dir);
        let requests = Requests::new(&general.state_dir);
        Edge { general, group, log, runner, request, ends, begin: Instant::now(), state, requests }
    }

    /// Runs `hastctl`; gives how it ended and what it printed to its standard output.
    fn hastctl(&self, sub: &str, arguments: &[&str]) -> (Ran, String) {
        let mut all: Vec<&OsStr> = vec![OsStr::new(sub)];
        if let Some(conf) = &self.general.hast_conf {
            all.extend([OsStr::new("-c"), conf.as_os_str()]);
        }
        if let Some(node) = &self.general.node {
            all.extend([OsStr::new("-N"), OsStr::new(node)]);
        }
        all.extend(arguments.iter().map(OsStr::new));
        self.runner.ask("hastctl", &all, self.group.role_timeout)
    }

    /// The path of a name in `device_dir`.
    fn name_of(&self, provider: &str) -> PathBuf {
        self.group.device_dir.join(provider)
    }
}

/// The number of the device that a path leads to, if file systems can be mounted from it.
pub(crate) fn device_number(path: &Path) -> Option<u64> {
    let metadata = std::fs::metadata(path).ok()?;
    let kind = metadata.file_type();
    let is_disk = if cfg!(target_os = "linux") { kind.is_block_device() } else { kind.is_char_device() };
    is_disk.then(|| metadata.rdev())
}

/// A value of `hastctl list`, by its key.
fn value<'t>(text: &'t str, key: &str) -> Option<&'t str> {
    text.lines().find_map(|line| line.strip_prefix("  ")?.strip_prefix(key)?.strip_prefix(": "))
}

impl System for Edge<'_> {
    fn platform(&self) -> Platform {
        if cfg!(target_os = "linux") { Platform::Linux } else { Platform::FreeBsd }
    }

    fn now(&self) -> Duration {
        self.begin.elapsed()
    }

    fn pause(&mut self) {
        std::thread::sleep(MOMENT);
    }

    fn later(&mut self) -> Option<Later> {
        if self.ends.load(Ordering::Relaxed) {
            return Some(Later::Signal);
        }
        let (role, key) = self.request?;
        self.requests.overtaken(&self.group.name, role, key).map(Later::Request)
    }

    fn wanted(&mut self) -> Wanted {
        let primary = self.requests.is_last(&self.group.name, Role::Primary, kernel::boot_clock());
        Wanted { primary, under_way: self.requests.has_run(&self.group.name) }
    }

    fn uptime(&self) -> Duration {
        kernel::uptime()
    }

    fn failure(&mut self) -> Option<Failure> {
        // What was later than now was before the system was started again.
        self.state.failure(&self.group.name).filter(|failure| failure.at <= kernel::uptime())
    }

    fn note_failure(&mut self, failure: Option<&Failure>) {
        if let Err(why) = self.state.set_failure(&self.group.name, failure) {
            self.log.say(Priority::Warning, &why);
        }
    }

    fn say(&mut self, priority: Priority, words: &str) {
        self.log.say(priority, words);
    }

    fn ask(&mut self, resource: &str) -> Option<Known> {
        let (ran, said) = self.hastctl("list", &[resource]);
        if ran != Ran::Well {
            return None;
        }
        let role = value(&said, "role")?.to_owned();
        let provider = value(&said, "provname").unwrap_or_default().to_owned();
        let works = value(&said, "workerpid").is_some_and(|pid| pid != "0");
        Some(Known { role, provider, works })
    }

    fn is_original(&mut self, resource: &str) -> bool {
        // FreeBSD's own hastctl does not know -v.
        matches!(self.hastctl("status", &["-v", resource]).0, Ran::Badly(64, _))
    }

    fn change_role(&mut self, resource: &str, role: &str, force: bool) -> Ran {
        let options: &[&str] = if force { &["-f"] } else { &[] };
        self.hastctl("role", &[options, &[role, resource]].concat()).0
    }

    fn would_become_primary(&mut self, resource: &str) -> Option<bool> {
        match self.hastctl("role", &["-n", "primary", resource]).0 {
            Ran::Well => Some(true),
            // FreeBSD's own does not know -n.
            Ran::Badly(64, _) => None,
            _ => Some(false),
        }
    }

    fn secondary_works(&mut self, resource: &str) -> Result<bool, String> {
        kernel::has_process(self.runner, &format!("hastd: {resource} (secondary)"))
    }

    fn attached(&mut self, resource: &str) -> Option<Attached> {
        attached::find(self, resource)
    }

    fn answers(&mut self, resource: &str) -> bool {
        attached::answers(self, resource)
    }

    fn hastd_makes_devices(&mut self) -> bool {
        kernel::hastd_makes_devices()
    }

    fn export(&mut self, provider: &str) -> Result<(), String> {
        let socket = self.socket(provider);
        let there = std::fs::metadata(&socket).is_ok_and(|metadata| metadata.file_type().is_socket());
        if there { Ok(()) } else { Err(format!("{} is not there", socket.display())) }
    }

    fn attach(&mut self, resource: &str, provider: &str, lasting: bool) -> Result<PathBuf, String> {
        attached::attach(self, resource, provider, lasting)
    }

    fn detach(&mut self, resource: &str, cut: bool) -> Result<(), String> {
        attached::detach(self, resource, cut)
    }

    fn node(&mut self, provider: &str) -> Option<Node> {
        let path = self.name_of(provider);
        let metadata = std::fs::metadata(&path).ok()?;
        let number = device_number(&path);
        let given = self.group.attach == Attach::None || metadata.file_type().is_file();
        let foreign = number.filter(|_| !given).and_then(|number| kernel::foreign(number, provider));
        Some(Node { path, number, foreign })
    }

    fn users(&mut self, provider: &str, number: u64) -> Result<Vec<String>, String> {
        kernel::users(self.runner, provider, number, self.group.device_timeout)
    }

    fn is_directory(&mut self, path: &Path) -> bool {
        kernel::is_directory(path)
    }

    fn mounted_at(&mut self, point: &Path) -> Result<Option<Mounted>, String> {
        kernel::mounted_at(point)
    }

    fn mounts_of(&mut self, number: u64) -> Result<Vec<Mounted>, String> {
        let mounts = kernel::mounts()?;
        Ok(mounts.into_iter().filter(|mounted| mounted.device == Some(number)).collect())
    }

    fn mounted_below(&mut self, mounted: &Mounted) -> Result<Vec<Mounted>, String> {
        kernel::mounted_below(mounted)
    }

    fn check(&mut self, checker: &[&str], device: &Path) -> Ran {
        let Some((program, arguments)) = checker.split_first() else { return Ran::Not(String::new()) };
        let mut all: Vec<&OsStr> = arguments.iter().map(OsStr::new).collect();
        all.push(device.as_os_str());
        self.runner.run(program, &all, self.group.check_timeout)
    }

    fn mount(&mut self, fstype: &str, options: &str, device: &Path, point: &Path) -> Ran {
        let mut all = vec![OsStr::new("-t"), OsStr::new(fstype)];
        if !options.is_empty() {
            all.extend([OsStr::new("-o"), OsStr::new(options)]);
        }
        all.extend([device.as_os_str(), point.as_os_str()]);
        self.runner.run("mount", &all, self.group.check_timeout)
    }

    fn unmount(&mut self, mounted: &Mounted, how: Unmount) -> Ran {
        let mut all = match how {
            Unmount::Plain => vec![],
            Unmount::Force => vec![OsStr::new("-f")],
            Unmount::Lazy => vec![OsStr::new("-l")],
        };
        all.push(mounted.point.as_os_str());
        self.runner.run("umount", &all, self.group.unmount_timeout)
    }

    fn signal(&mut self, mounted: &Mounted, signal: Signal) -> Result<Vec<u32>, String> {
        kernel::signal(self.runner, mounted, signal)
    }

    fn remembered(&mut self) -> Option<(String, Option<u64>)> {
        self.state.mount(&self.group.name)
    }

    fn remember(&mut self, mounted: Option<&Mounted>) {
        if let Err(why) = self.state.set_mount(&self.group.name, mounted) {
            self.log.say(Priority::Warning, &why);
        }
    }

    fn pool(&mut self, name: &str) -> Result<Option<Pool>, String> {
        pools::pool(self.runner, name, self.group.device_timeout)
    }

    fn import(&mut self, name: &str) -> Ran {
        let directory = self.group.device_dir.as_os_str();
        let arguments = ["import", "-f", "-o", "cachefile=none", "-d"].map(OsStr::new);
        let all = [&arguments[..], &[directory, OsStr::new(name)]].concat();
        self.runner.run("zpool", &all, self.group.check_timeout)
    }

    fn export_pool(&mut self, name: &str, force: bool) -> Ran {
        let words: &[&str] = if force { &["export", "-f", name] } else { &["export", name] };
        self.runner.run("zpool", words, self.group.unmount_timeout)
    }

    fn mounted_from_pool(&mut self, name: &str) -> Vec<Mounted> {
        pools::mounted(&kernel::mounts().unwrap_or_default(), name)
    }

    fn service_runs(&mut self, name: &str) -> Option<bool> {
        services::runs(self.runner, name, self.group.service_timeout)
    }

    fn service(&mut self, name: &str, way: Way) -> Ran {
        services::does(self.runner, name, way, self.group.service_timeout)
    }

    fn has_address(&mut self, address: &Address) -> Result<bool, String> {
        addresses::is_there(address)
    }

    fn address(&mut self, address: &Address, way: Way) -> Ran {
        addresses::change(self.runner, address, way, self.group.device_timeout)
    }

    fn demote(&mut self, demoted: bool) -> Result<bool, String> {
        let file = self.state.file(&self.group.name, "demotion");
        demotion::set(self.runner, &file, demoted, kernel::uptime(), self.group.device_timeout)
    }

    fn announce(&mut self, address: &Address) -> Result<(), String> {
        announce::announce(address)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_found_by_their_keys() {
        let text =
            "x:\n  role: primary\n  provname: role: secondary\n    role: init\nrole: init\n  error: 1\n";
        assert_eq!(value(text, "role"), Some("primary"));
        assert_eq!(value(text, "provname"), Some("role: secondary"));
        assert_eq!(value(text, "dirty"), None);
    }

    #[test]
    fn what_is_no_device_has_no_number() {
        for path in ["/", "/dev/null/x", "/nowhere", "/etc/passwd"] {
            assert_eq!(device_number(Path::new(path)), None, "{path}");
        }
    }
}
