//! What the plan of a run asks of a node and does to it. The edge does it to the real one, tests to one that they made up.
//!
//! Whatever is done ends: a command that takes too long is killed, and [`Ran`] says so. Nothing here decides.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::address::Address;
use crate::run::{Failure, Wanted};

/// The system that a node runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Platform {
    Linux,
    FreeBsd,
}

/// How important a message is; syslog's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Priority {
    Notice,
    Warning,
    Error,
}

/// How a command ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Ran {
    /// With status 0.
    Well,
    /// With another status (128 and the number of the signal that killed it), and what it printed.
    Badly(i32, String),
    /// Not within this time; it was killed. What it was about may happen yet.
    TooLong(Duration),
    /// It could not be started.
    Not(String),
}

/// What hastd says of a resource.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Known {
    pub(crate) role: String,
    /// Its device's name.
    pub(crate) provider: String,
    /// A worker is at work: that of a secondary serves a primary that is connected.
    pub(crate) works: bool,
}

/// A device that a run has attached, this one or an earlier one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Attached {
    pub(crate) device: PathBuf,
    /// Its device number; none if it is not the same device any more, but somebody else's or nobody's.
    pub(crate) number: Option<u64>,
}

/// What the name of a device in `device_dir` leads to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Node {
    pub(crate) path: PathBuf,
    /// The device number; none if it is no device.
    pub(crate) number: Option<u64>,
    /// What it is, if it is nothing that HAST can have made.
    pub(crate) foreign: Option<String>,
}

/// A file system that is mounted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Mounted {
    /// The kernel's own name for this mount: no two that are there at one time have the same.
    pub(crate) id: String,
    /// The number of the device that it is mounted from, if it is mounted from one.
    pub(crate) device: Option<u64>,
    /// What `st_dev` says of its files.
    pub(crate) files: u64,
    /// Where it is mounted, as the kernel names it.
    pub(crate) point: PathBuf,
    pub(crate) source: String,
    pub(crate) fstype: String,
}

/// How hard a file system is unmounted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unmount {
    Plain,
    Force,
    /// Only out of the tree (Linux).
    Lazy,
}

/// What processes are told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Signal {
    Term,
    Kill,
}

/// A pool that is imported.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Pool {
    pub(crate) health: String,
    /// The numbers of the devices that it lies on, as far as they are known.
    pub(crate) devices: Vec<u64>,
}

/// Why a run is to give up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Later {
    /// A request that was made later, in words.
    Request(String),
    /// Somebody wants the program to end.
    Signal,
}

impl fmt::Display for Later {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Later::Request(words) => write!(f, "A later request ({words}) takes this one's place."),
            Later::Signal => f.write_str("A signal ends this run."),
        }
    }
}

/// Which way a service, or an address, goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    Up,
    Down,
}

/// The node. Errors are in words, about what could not be found out or done.
pub(crate) trait System {
    fn platform(&self) -> Platform;

    // ---- Time, and other requests
    /// Time since some moment; it never goes back.
    fn now(&self) -> Duration;
    /// Waits a moment, about a tenth of a second.
    fn pause(&mut self);
    fn later(&mut self) -> Option<Later>;
    /// The request that was made last.
    fn wanted(&mut self) -> Wanted;
    /// Time since the system was started.
    fn uptime(&self) -> Duration;
    /// The last promotion, if it has failed since the system was started.
    fn failure(&mut self) -> Option<Failure>;
    fn note_failure(&mut self, failure: Option<&Failure>);
    fn say(&mut self, priority: Priority, words: &str);

    // ---- hastd
    /// None if it does not answer, or does not know the resource.
    fn ask(&mut self, resource: &str) -> Option<Known>;
    /// Whether it is FreeBSD's own.
    fn is_original(&mut self, resource: &str) -> bool;
    fn change_role(&mut self, resource: &str, role: &str, force: bool) -> Ran;
    /// Whether hastd would grant the role primary now; none if it does not say so beforehand.
    fn would_become_primary(&mut self, resource: &str) -> Option<bool>;
    /// Whether a worker of the role secondary is there.
    fn secondary_works(&mut self, resource: &str) -> Result<bool, String>;

    // ---- Devices
    /// What is remembered of a device that was attached.
    fn attached(&mut self, resource: &str) -> Option<Attached>;
    /// Whether that still answers a read.
    fn answers(&mut self, resource: &str) -> bool;
    /// Whether the kernel has what hastd makes devices with.
    fn hastd_makes_devices(&mut self) -> bool;
    /// Whether the socket of the export is there.
    fn export(&mut self, provider: &str) -> Result<(), String>;
    /// Attaches the export, links it and remembers that. `lasting`: only by what survives a worker's death.
    fn attach(&mut self, resource: &str, provider: &str, lasting: bool) -> Result<PathBuf, String>;
    /// Detaches what was attached, unlinks and forgets it. `cut`: what is still in memory is dropped, not written.
    fn detach(&mut self, resource: &str, cut: bool) -> Result<(), String>;
    /// What is there under the name of a device.
    fn node(&mut self, provider: &str) -> Option<Node>;
    /// Everybody who uses a device, in words.
    fn users(&mut self, provider: &str, number: u64) -> Result<Vec<String>, String>;

    // ---- File systems
    fn is_directory(&mut self, path: &Path) -> bool;
    /// What is mounted at this directory, on top.
    fn mounted_at(&mut self, point: &Path) -> Result<Option<Mounted>, String>;
    /// Where a device with this number is mounted.
    fn mounts_of(&mut self, number: u64) -> Result<Vec<Mounted>, String>;
    /// What is mounted below it.
    fn mounted_below(&mut self, mounted: &Mounted) -> Result<Vec<Mounted>, String>;
    fn check(&mut self, checker: &[&str], device: &Path) -> Ran;
    fn mount(&mut self, fstype: &str, options: &str, device: &Path, point: &Path) -> Ran;
    fn unmount(&mut self, mounted: &Mounted, how: Unmount) -> Ran;
    /// Sends a signal to all that use the file system; gives their process ids.
    fn signal(&mut self, mounted: &Mounted, signal: Signal) -> Result<Vec<u32>, String>;
    /// What the group has mounted, if it was remembered.
    fn remembered(&mut self) -> Option<(String, Option<u64>)>;
    fn remember(&mut self, mounted: Option<&Mounted>);

    // ---- Pools
    fn pool(&mut self, name: &str) -> Result<Option<Pool>, String>;
    fn import(&mut self, name: &str) -> Ran;
    fn export_pool(&mut self, name: &str, force: bool) -> Ran;
    /// The file systems of the pool that are mounted.
    fn mounted_from_pool(&mut self, name: &str) -> Vec<Mounted>;

    // ---- Services and addresses
    /// Whether it runs; none if nobody can say.
    fn service_runs(&mut self, name: &str) -> Option<bool>;
    fn service(&mut self, name: &str, way: Way) -> Ran;
    fn has_address(&mut self, address: &Address) -> Result<bool, String>;
    fn address(&mut self, address: &Address, way: Way) -> Ran;
    /// Lets carp(4) prefer other nodes, because of this group, or not any more. False: so it was already.
    fn demote(&mut self, demoted: bool) -> Result<bool, String>;
    /// Tells the network where the address is now.
    fn announce(&mut self, address: &Address) -> Result<(), String>;
}
