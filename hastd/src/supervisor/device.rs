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

use hast_ggate::{Gate, Reading, Which};
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
    nbd: Option<UnixListener>,
    gate: Option<GateDevice>,
}

impl Device {
    /// Opens what the device of `provider_name` needs; NBD only if there is a directory for its socket. `owner` says which
    /// hastd this is.
    pub(super) fn open(
        nbd_directory: Option<&Path>,
        provider_name: &str,
        owner: &str,
    ) -> Result<Device, String> {
        let nbd = match nbd_directory {
            None => None,
            Some(directory) => {
                let path = hast_conf::nbd_socket_path(directory, provider_name)
                    .map_err(|error| error.to_string())?;
                Some(UnixListener::bind_with_directories(&path).map_err(|error| error.to_string())?)
            }
        };
        let gate = system::open(provider_name, nbd.is_some(), owner)?;
        Ok(Device { attached: None, nbd, gate })
    }

    /// Where the export is served, if there is one.
    pub(super) fn export(&self) -> Option<&Path> {
        self.nbd.as_ref().map(UnixListener::path)
    }

    /// Whether there is a block device over the export.
    pub(super) fn is_attached(&self) -> bool {
        self.attached.is_some()
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
        let nbd = self.nbd.as_ref().map(|nbd| nbd.socket().try_clone().map(OwnedFd::from)).transpose()?;
        let start = |gate: &GateDevice| {
            let (owner, served) = (gate.owner.clone(), gate.served);
            gate.control.try_clone().map(|control| GateStart { control, owner, served })
        };
        let gate = self.gate.as_ref().map(start).transpose()?;
        Ok(StartKind::Primary { nbd, gate })
    }

    /// A worker serves the device of GEOM Gate: from now on what waits there was meant for this primary.
    pub(super) fn served(&mut self) {
        if let Some(gate) = &mut self.gate {
            gate.served = true;
        }
    }

    /// What waits in the device of GEOM Gate was meant for older data: it goes with the worker.
    pub(super) fn discard(&mut self) {
        if let Some(gate) = &mut self.gate {
            gate.discard = true;
        }
    }

    /// Another worker may begin.
    pub(super) fn worker_ended(&mut self) {
        if let Some(gate) = &mut self.gate
            && std::mem::take(&mut gate.discard)
        {
            gate.destroy();
        }
    }
}

/// Takes away the device that an earlier hastd of this place has left behind, as this node is not to be the primary.
pub(super) fn sweep(nbd_directory: Option<&Path>, provider_name: &str, owner: &str) {
    if let Some(directory) = nbd_directory {
        attach::sweep(directory, provider_name);
    }
    system::sweep(&hast_ggate::device_name(provider_name), owner);
}

/// A device of GEOM Gate, made by a worker.
struct GateDevice {
    gate: Box<dyn Gate>,
    control: OwnedFd,
    name: String,
    /// What the device says of who serves it: another hastd on this machine may have taken it over.
    owner: String,
    /// [`GateStart::served`].
    served: bool,
    /// It is destroyed when the worker has ended.
    discard: bool,
}

impl GateDevice {
    /// Destroys the device, if there is one, and it is not another hastd's.
    fn destroy(&self) {
        if self.gate.info(&self.name).is_some_and(|owner| owner != self.owner) {
            return log::warn!("Device {} is left alone: another hastd has taken it over.", self.name);
        }
        destroy(&*self.gate, &self.name);
    }
}

/// Destroys the device, if there is one, once the kernel does not read for it any more: what such a read looks at when it ends
/// would be gone.
fn destroy(gate: &dyn Gate, name: &str) {
    let deadline = Instant::now() + READS_END_WITHIN;
    let mut quiet = 0;
    while quiet < LOOKS {
        match gate.reading(name) {
            Some(Reading::Ending) if Instant::now() >= deadline => {
                return log::error!(
                    "Device {name} is left: its disk has not ended a read for {} seconds.",
                    READS_END_WITHIN.as_secs()
                );
            }
            Some(Reading::Ending) => quiet = 0,
            // Of what it may go on reading it would not hear that it is old.
            Some(Reading::No | Reading::On) => quiet += 1,
            None => break,
        }
        std::thread::sleep(LOOK_AGAIN);
    }
    match gate.destroy(&Which::Name(name.to_owned())) {
        Ok(()) => log::debug!("Device {name} destroyed."),
        Err(Errno::ENXIO) => {}
        Err(errno) => log::error!("Unable to destroy device {name}: {errno}."),
    }
}

impl fmt::Debug for GateDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "GateDevice({})", self.name)
    }
}

impl Drop for GateDevice {
    /// A worker that was killed left the device behind, and everybody who uses it would wait for ever.
    fn drop(&mut self) {
        self.destroy();
    }
}

#[cfg(target_os = "freebsd")]
mod system {
    use super::GateDevice;
    use hast_ggate::{Kernel, abi, confxml, geom};
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
        Ok(Some(GateDevice { gate: Box::new(kernel), control, name, owner, served: false, discard: false }))
    }

    pub(super) fn sweep(name: &str, owner: &str) {
        let ours = || confxml().is_ok_and(|text| geom::info(&text, name) == Some(owner));
        // Without the control device there is no GEOM Gate, and nothing is to be loaded for that.
        if !Path::new(abi::CONTROL).exists() || !ours() {
            return;
        }
        match Kernel::open() {
            Ok(kernel) => {
                log::warn!("Device {name} was left behind and is destroyed.");
                super::destroy(&kernel, name);
            }
            Err(error) => log::error!("Device {name} was left behind: {error}"),
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
    use hast_ggate::fake::{Bio, FakeKernel};
    use hast_ggate::{Change, Create};
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
                served: false,
                discard: false,
            };
            let mut device = Device { attached: None, nbd: None, gate: Some(gate) };
            for served in [false, true] {
                let StartKind::Primary { nbd: None, gate: Some(gate) } = device.for_worker().unwrap() else {
                    panic!()
                };
                assert_eq!(gate.served, served);
                device.served();
            }
            assert!(kernel.exists(&name));
            drop(device);
            assert_ne!(kernel.exists(&name), goes);
        }
    }

    /// A device goes when the kernel reads nothing for it any more; one from which it may go on reading goes at once.
    #[test]
    fn a_device_goes_after_the_reads_that_the_kernel_serves_itself() {
        for on in [false, true] {
            let kernel = FakeKernel::new();
            let disk = tempfile::NamedTempFile::new().unwrap();
            disk.as_file().set_len(1 << 20).unwrap();
            let path = disk.path().to_str().unwrap().to_owned();
            kernel.add_provider(&path);
            let gate = kernel.process();
            let name = hast_ggate::device_name("disk0");
            let create =
                Create { name: name.clone(), mediasize: 1 << 20, sectorsize: 512, info: String::new() };
            let unit = gate.create(&create).unwrap();
            gate.modify(unit, &Change::ReadFrom { provider: path, offset: 0 }).unwrap();
            if on {
                super::destroy(&gate, &name);
                assert!(!kernel.exists(&name));
                continue;
            }
            kernel.hold_direct_reads(true);
            kernel.submit(&name, Bio::read(0, 512)).unwrap();
            gate.modify(unit, &Change::ReadHere).unwrap();
            std::thread::scope(|scope| {
                let destroyed = scope.spawn(|| super::destroy(&gate, &name));
                while kernel.readings(&name) < 3 {
                    std::thread::yield_now();
                }
                assert!(kernel.exists(&name), "the fake kernel panics on what comes too early");
                kernel.hold_direct_reads(false);
                destroyed.join().unwrap();
            });
            assert!(!kernel.exists(&name));
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
            assert!(matches!(device.for_worker().unwrap(), StartKind::Primary { nbd: None, gate: None }));
        }
    }
}
