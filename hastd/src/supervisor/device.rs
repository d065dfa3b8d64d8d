//! What the supervisor has of a primary's device: the socket of an NBD export and perhaps a block device over it,
//! GEOM Gate's control device, or both.
//!
//! The worker serves the device and takes it away at its end. What outlives a worker is kept here, for its
//! successor, and goes when the role is left.

use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::{Duration, Instant};

use hast_ggate::{Change, Gate, Which};
use hast_net::errno::Errno;

use super::attach::{self, Attached};
use super::unix::UnixListener;
use crate::ipc::{GateStart, StartKind};

/// How long reads that the kernel serves itself may take to end before a device is left where it is.
const READS_END_WITHIN: Duration = Duration::from_secs(5);
/// How often in a row the kernel has to say that there are none: the last one may be about to leave the device.
const LOOKS: u32 = 2;
/// ... and at what distance it is asked.
const LOOK_AGAIN: Duration = Duration::from_millis(10);

/// A primary's device. Dropping it takes away what a worker may have left behind.
#[derive(Debug)]
pub(super) struct Device {
    /// Before the export: it is disconnected first.
    attached: Option<Attached>,
    nbd: Option<Export>,
    gate: Option<GateDevice>,
    /// A worker serves it: from now on what waits there was meant for this primary.
    served: bool,
    /// What waits there was meant for older data: it goes when the worker has ended.
    discard: bool,
}

/// The NBD export.
#[derive(Debug)]
struct Export {
    listener: UnixListener,
    provider_name: String,
    /// An earlier hastd has left a kernel's device over it behind.
    left_behind: bool,
}

impl Device {
    /// Opens what the device of `provider_name` needs; NBD only if there is a directory for its socket. `owner` says which
    /// hastd this is.
    pub(super) fn open(
        nbd_directory: Option<&Path>,
        provider_name: &str,
        owner: &str,
    ) -> Result<Device, String> {
        let nbd = nbd_directory.map(|directory| Export::open(directory, provider_name)).transpose()?;
        let gate = system::open(provider_name, nbd.is_some(), owner)?;
        Ok(Device { attached: None, nbd, gate, served: false, discard: false })
    }

    /// Where the export is served, if there is one.
    pub(super) fn export(&self) -> Option<&Path> {
        self.nbd.as_ref().map(|nbd| nbd.listener.path())
    }

    /// Whether there is a block device over the export.
    pub(super) fn is_attached(&self) -> bool {
        self.attached.is_some()
    }

    /// Whether a block device over the export, which was left behind, has to wait: nobody has said yet that what waits there
    /// is to be served.
    pub(super) fn waits(&self) -> bool {
        !self.served && self.nbd.as_ref().is_some_and(|nbd| nbd.left_behind)
    }

    /// From now on, or again, there is.
    pub(super) fn attach(&mut self, attached: Attached) {
        if let Some(before) = self.attached.replace(attached)
            && let Some(attached) = &self.attached
        {
            before.yield_to(attached);
        }
    }

    /// What a worker is given.
    pub(super) fn for_worker(&self) -> io::Result<StartKind> {
        let socket = |nbd: &Export| nbd.listener.socket().try_clone().map(OwnedFd::from);
        let start = |gate: &GateDevice| {
            let owner = gate.owner.clone();
            gate.control.try_clone().map(|control| GateStart { control, owner })
        };
        let (nbd, gate) = (self.nbd.as_ref(), self.gate.as_ref());
        Ok(StartKind::Primary {
            nbd: nbd.map(socket).transpose()?,
            gate: gate.map(start).transpose()?,
            served: self.served,
            left_behind: nbd.is_some_and(|nbd| nbd.left_behind),
        })
    }

    /// A worker serves the device.
    pub(super) fn served(&mut self) {
        self.served = true;
    }

    /// What waits in the device goes when the worker has ended.
    pub(super) fn discard(&mut self) {
        self.discard = true;
    }

    /// Another worker may begin.
    pub(super) fn worker_ended(&mut self) {
        if !std::mem::take(&mut self.discard) {
            return;
        }
        if let Some(nbd) = self.nbd.as_mut().filter(|nbd| nbd.left_behind) {
            attach::sweep(nbd.listener.path(), &nbd.provider_name);
            nbd.left_behind = false;
        }
        self.take_gate_away();
    }

    fn take_gate_away(&self) {
        if let Some(gate) = &self.gate {
            take_away(&*gate.gate, &gate.name, &gate.owner, self.served);
        }
    }
}

impl Drop for Device {
    /// A worker that was killed left the device behind, and everybody who uses it would wait for ever.
    fn drop(&mut self) {
        self.take_gate_away();
    }
}

impl Export {
    fn open(directory: &Path, provider_name: &str) -> Result<Export, String> {
        let path = hast_conf::nbd_socket_path(directory, provider_name).map_err(|error| error.to_string())?;
        let listener = UnixListener::bind_with_directories(&path).map_err(|error| error.to_string())?;
        let left_behind = attach::is_left_behind(&path);
        Ok(Export { listener, provider_name: provider_name.to_owned(), left_behind })
    }
}

/// Whether an NBD export can be served at `socket`; nothing stays there.
pub(super) fn can_be_opened(socket: &Path) -> Result<(), String> {
    UnixListener::bind_with_directories(socket).map(drop).map_err(|error| error.to_string())
}

/// Takes away the devices that an earlier hastd with this `owner` has left behind: this node is not to be the primary.
pub(super) fn sweep(nbd_directory: Option<&Path>, provider_name: &str, owner: &str) {
    sweep_attached(nbd_directory, provider_name);
    system::sweep(&hast_ggate::device_name(provider_name), owner);
}

/// The same of a block device over the export alone.
pub(super) fn sweep_attached(nbd_directory: Option<&Path>, provider_name: &str) {
    let socket = nbd_directory.and_then(|path| hast_conf::nbd_socket_path(path, provider_name).ok());
    if let Some(socket) = socket {
        attach::sweep(&socket, provider_name);
    }
}

/// A device of GEOM Gate, made by a worker.
struct GateDevice {
    gate: Box<dyn Gate>,
    control: OwnedFd,
    name: String,
    /// What the device says of who serves it: another hastd on this machine may have taken it over.
    owner: String,
}

/// Takes away the device `name`, if there is one and `owner` serves it, or has: the last worker has ended. If nobody can say
/// whose it is, `ours` decides.
fn take_away(gate: &dyn Gate, name: &str, owner: &str, ours: bool) {
    if !gate.exists(name) {
        return;
    }
    let reads = match gate.look(name) {
        Ok(None) => return,
        Ok(Some(seen)) if seen.info != owner => {
            return log::warn!("Device {name} is left alone: {} serves it.", seen.info);
        }
        Ok(Some(seen)) => seen.reads,
        Err(errno) if ours => {
            log::warn!("GEOM does not say what reads device {name}: {errno}.");
            true
        }
        Err(errno) => return log::error!("Device {name} is left: GEOM does not say whose it is: {errno}."),
    };
    if reads && !reads_end(gate, name) {
        return log::error!(
            "Device {name} is left: its disk has not ended a read for {} seconds.",
            READS_END_WITHIN.as_secs()
        );
    }
    match gate.destroy(&Which::Name(name.to_owned())) {
        Ok(()) => log::info!("Device {name} destroyed."),
        Err(Errno::ENXIO) => {}
        Err(errno) => log::error!("Unable to destroy device {name}: {errno}."),
    }
}

/// Waits until the kernel does not read for the device any more: what such a read looks at when it ends goes with the device.
/// False: it still does. If GEOM does not say so for as long, it waits for this device itself, which nobody serves.
fn reads_end(gate: &dyn Gate, name: &str) -> bool {
    // A worker that was killed has not let go of what is read.
    if let Ok(unit) = gate.cancel(name)
        && let Err(errno) = gate.modify(unit, &Change::ReadHere)
    {
        log::error!("Unable to switch the direct reads of device {name} off: {errno}.");
    }
    let deadline = Instant::now() + READS_END_WITHIN;
    let (mut quiet, mut silent) = (0, false);
    while quiet < LOOKS {
        if Instant::now() >= deadline {
            return silent;
        }
        let reads = gate.look(name).map(|seen| seen.is_some_and(|seen| seen.reads));
        silent = reads.is_err();
        quiet = if reads == Ok(false) { quiet + 1 } else { 0 };
        std::thread::sleep(LOOK_AGAIN);
    }
    true
}

impl fmt::Debug for GateDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "GateDevice({})", self.name)
    }
}

#[cfg(target_os = "freebsd")]
mod system {
    use super::GateDevice;
    use hast_ggate::{Kernel, abi};
    use std::path::Path;

    /// Who is not root has no GEOM Gate; if there is NBD, that is the device then.
    pub(super) fn open(
        provider_name: &str,
        has_nbd: bool,
        owner: &str,
    ) -> Result<Option<GateDevice>, String> {
        if has_nbd && !nix::unistd::geteuid().is_root() {
            log::warn!("The device is an NBD export only: GEOM Gate needs root.");
            return Ok(None);
        }
        let kernel = Kernel::open().map_err(|error| error.to_string())?;
        let control = kernel.duplicate().map_err(|error| hast_log::error_text(&error))?;
        let (name, owner) = (hast_ggate::device_name(provider_name), owner.to_owned());
        Ok(Some(GateDevice { gate: Box::new(kernel), control, name, owner }))
    }

    pub(super) fn sweep(name: &str, owner: &str) {
        // Without the control device there is no GEOM Gate, and nothing is to be loaded for that.
        if !Path::new(abi::CONTROL).exists() {
            return;
        }
        match Kernel::open() {
            Ok(kernel) => super::take_away(&kernel, name, owner, false),
            Err(error) => log::error!("Device {name} may have been left behind: {error}"),
        }
    }
}

#[cfg(not(target_os = "freebsd"))]
mod system {
    use super::GateDevice;

    pub(super) fn open(_: &str, _: bool, _: &str) -> Result<Option<GateDevice>, String> {
        Ok(None)
    }

    pub(super) fn sweep(_: &str, _: &str) {}
}

#[cfg(test)]
mod tests {
    use super::*;
    use hast_ggate::Create;
    use hast_ggate::fake::{Bio, FakeKernel, Process};
    use std::fs::File;

    #[test]
    fn what_a_killed_worker_left_goes_with_the_role_unless_another_hastd_has_it() {
        for (by, goes) in [("hastd at a", true), ("hastd at b", false)] {
            let kernel = FakeKernel::new();
            let name = hast_ggate::device_name("disk0");
            let create = Create { name: name.clone(), mediasize: 1 << 20, sectorsize: 512, info: by.into() };
            kernel.process().create(&create).unwrap();
            let gate = GateDevice {
                gate: Box::new(kernel.process()),
                control: File::open("/dev/null").unwrap().into(),
                name: name.clone(),
                owner: "hastd at a".into(),
            };
            let mut device =
                Device { attached: None, nbd: None, gate: Some(gate), served: false, discard: false };
            for expected in [false, true] {
                let StartKind::Primary { nbd: None, gate: Some(_), served, left_behind: false } =
                    device.for_worker().unwrap()
                else {
                    panic!()
                };
                assert_eq!(served, expected);
                device.served();
            }
            assert!(kernel.exists(&name));
            drop(device);
            assert_ne!(kernel.exists(&name), goes);
        }
    }

    /// A device of which the kernel serves reads itself, and one is under way.
    fn read_itself(kernel: &FakeKernel) -> (Process, tempfile::NamedTempFile) {
        let disk = tempfile::NamedTempFile::new().unwrap();
        disk.as_file().set_len(1 << 20).unwrap();
        let path = disk.path().to_str().unwrap().to_owned();
        kernel.add_provider(&path);
        let gate = kernel.process();
        let create = Create { name: NAME.into(), mediasize: 1 << 20, sectorsize: 512, info: "us".into() };
        let unit = gate.create(&create).unwrap();
        gate.modify(unit, &Change::ReadFrom { provider: path, offset: 0 }).unwrap();
        kernel.hold_direct_reads(true);
        kernel.submit(NAME, Bio::read(0, 512)).unwrap();
        (gate, disk)
    }

    const NAME: &str = "hast/disk0";

    /// Its worker was killed. The fake kernel panics on what comes too early.
    #[test]
    fn a_device_goes_after_the_reads_that_the_kernel_serves_itself() {
        let kernel = FakeKernel::new();
        let (gate, _disk) = read_itself(&kernel);
        std::thread::scope(|scope| {
            let taken_away = scope.spawn(|| take_away(&gate, NAME, "us", false));
            while kernel.looks(NAME) < 3 {
                std::thread::yield_now();
            }
            assert_eq!(kernel.reads_from(NAME), None, "no further one begins");
            assert!(kernel.exists(NAME));
            kernel.hold_direct_reads(false);
            taken_away.join().unwrap();
        });
        assert!(!kernel.exists(NAME));
    }

    #[test]
    fn a_device_whose_reads_do_not_end_is_left() {
        let kernel = FakeKernel::new();
        let (gate, _disk) = read_itself(&kernel);
        take_away(&gate, NAME, "us", true);
        assert!(kernel.exists(NAME));
        assert_eq!(kernel.reads_from(NAME), None);
    }

    /// GEOM waits for the device itself: the hastd that has served the device takes it away, and no other does.
    #[test]
    fn without_an_answer_a_device_goes_only_if_it_is_known_to_be_ours() {
        for ours in [false, true] {
            let kernel = FakeKernel::new();
            let create = Create { name: NAME.into(), mediasize: 1 << 20, sectorsize: 512, info: "us".into() };
            let gate = kernel.process();
            gate.create(&create).unwrap();
            kernel.say_nothing();
            take_away(&gate, NAME, "us", ours);
            assert_eq!(kernel.exists(NAME), !ours);
        }
    }

    #[test]
    fn without_a_directory_there_is_no_socket() {
        let directory = tempfile::tempdir().unwrap();
        let device = Device::open(Some(directory.path()), "a/b", "hastd").unwrap();
        assert!(directory.path().join("a/b.sock").exists());
        assert!(matches!(device.for_worker().unwrap(), StartKind::Primary { nbd: Some(_), .. }));
        drop(device);
        assert!(!directory.path().join("a/b.sock").exists());
        if !cfg!(target_os = "freebsd") {
            let device = Device::open(None, "a/b", "hastd").unwrap();
            assert!(matches!(device.for_worker().unwrap(), StartKind::Primary { nbd: None, gate: None, .. }));
        }
    }
}
