//! What the supervisor has of a primary's device: the socket of an NBD export and perhaps a block device over it,
//! GEOM Gate's control device, or both.
//!
//! The worker serves the device and takes it away at its end. What outlives a worker is kept here, for its
//! successor, and goes when the role is left.

use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use hast_ggate::{Gate, Which};
use hast_net::errno::Errno;

use super::attach::Attached;
use super::unix::UnixListener;
use crate::ipc::StartKind;

/// A primary's device. Dropping it takes away what a worker may have left behind.
#[derive(Debug)]
pub(super) struct Device {
    /// Before the export: it is disconnected first.
    attached: Option<Attached>,
    nbd: Option<UnixListener>,
    gate: Option<GateDevice>,
}

impl Device {
    /// Opens what the device of `provider_name` needs; NBD only if there is a directory for its socket.
    pub(super) fn open(nbd_directory: Option<&Path>, provider_name: &str) -> Result<Device, String> {
        let nbd = match nbd_directory {
            None => None,
            Some(directory) => {
                let path = hast_conf::nbd_socket_path(directory, provider_name)
                    .map_err(|error| error.to_string())?;
                Some(UnixListener::bind_with_directories(&path).map_err(|error| error.to_string())?)
            }
        };
        let gate = system::open(provider_name, nbd.is_some())?;
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
        let gate = self.gate.as_ref().map(|gate| gate.control.try_clone()).transpose()?;
        Ok(StartKind::Primary { nbd, gate })
    }
}

/// A device of GEOM Gate, made by a worker.
struct GateDevice {
    gate: Box<dyn Gate>,
    control: OwnedFd,
    name: String,
}

impl fmt::Debug for GateDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "GateDevice({})", self.name)
    }
}

impl Drop for GateDevice {
    /// A worker that was killed left the device behind, and everybody who uses it would wait for ever.
    fn drop(&mut self) {
        match self.gate.destroy(&Which::Name(self.name.clone())) {
            Ok(()) => log::warn!("Device {} was left behind and is destroyed.", self.name),
            Err(Errno::ENXIO) => {}
            Err(errno) => log::error!("Unable to destroy device {}: {errno}.", self.name),
        }
    }
}

#[cfg(target_os = "freebsd")]
mod system {
    use super::GateDevice;
    use hast_ggate::Kernel;

    /// Who is not root has no GEOM Gate; if there is NBD, that is the device then.
    pub(super) fn open(provider_name: &str, has_nbd: bool) -> Result<Option<GateDevice>, String> {
        if has_nbd && !nix::unistd::geteuid().is_root() {
            log::warn!("The device is an NBD export only: GEOM Gate needs root.");
            return Ok(None);
        }
        let kernel = Kernel::open().map_err(|error| error.to_string())?;
        let control = kernel.duplicate().map_err(|error| hast_log::error_text(&error))?;
        let name = hast_ggate::device_name(provider_name);
        Ok(Some(GateDevice { gate: Box::new(kernel), control, name }))
    }
}

#[cfg(not(target_os = "freebsd"))]
mod system {
    use super::GateDevice;

    pub(super) fn open(_: &str, _: bool) -> Result<Option<GateDevice>, String> {
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hast_ggate::Create;
    use hast_ggate::fake::FakeKernel;
    use std::fs::File;

    #[test]
    fn what_a_killed_worker_left_goes_with_the_role() {
        let kernel = FakeKernel::new();
        let name = hast_ggate::device_name("disk0");
        let create = Create { name: name.clone(), mediasize: 1 << 20, sectorsize: 512, info: String::new() };
        kernel.process().create(&create).unwrap();
        let gate = GateDevice {
            gate: Box::new(kernel.process()),
            control: File::open("/dev/null").unwrap().into(),
            name: name.clone(),
        };
        let device = Device { attached: None, nbd: None, gate: Some(gate) };
        let StartKind::Primary { nbd: None, gate: Some(_) } = device.for_worker().unwrap() else { panic!() };
        assert!(kernel.exists(&name));
        drop(device);
        assert!(!kernel.exists(&name));
    }

    #[test]
    fn without_a_directory_there_is_no_socket() {
        let directory = tempfile::tempdir().unwrap();
        let device = Device::open(Some(directory.path()), "a/b").unwrap();
        assert!(directory.path().join("a/b.sock").exists());
        assert!(matches!(device.for_worker().unwrap(), StartKind::Primary { nbd: Some(_), .. }));
        drop(device);
        assert!(!directory.path().join("a/b.sock").exists());
        if !cfg!(target_os = "freebsd") {
            let device = Device::open(None, "a/b").unwrap();
            assert!(matches!(device.for_worker().unwrap(), StartKind::Primary { nbd: None, gate: None }));
        }
    }
}
