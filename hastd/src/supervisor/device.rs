//! What the supervisor has of a primary's device: the socket of an NBD export and perhaps a block device over it,
//! GEOM Gate's control device, or both.
//!
//! The worker serves the device and takes it away at its end. What outlives a worker is kept here, for its
//! successor, and goes when the role is left. A device that outlives the supervisor, because that was killed, waits for the
//! role to be set again.

use std::fmt;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

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
    pub(super) fn open(
        nbd_directory: Option<&Path>,
        provider_name: &str,
        pidfile: Option<&Path>,
    ) -> Result<Device, String> {
        let nbd = match nbd_directory {
            None => None,
            Some(directory) => {
                let path = hast_conf::nbd_socket_path(directory, provider_name)
                    .map_err(|error| error.to_string())?;
                Some(UnixListener::bind_with_directories(&path).map_err(|error| error.to_string())?)
            }
        };
        let gate =
            system::open(provider_name, nbd.is_some(), pidfile.map(|pidfile| note(pidfile, provider_name)))?;
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
    /// A file that says that the device is this hastd's, for the next one.
    note: Option<PathBuf>,
}

#[cfg(any(test, target_os = "freebsd"))]
impl GateDevice {
    fn new(gate: Box<dyn Gate>, control: OwnedFd, name: String, note: Option<PathBuf>) -> GateDevice {
        if let Some(note) = &note
            && let Err(error) = fs::write(note, &name)
        {
            log::warn!(
                "Unable to write {}: {}. If this hastd is killed, the next one does not know that device {name} is its own.",
                note.display(),
                hast_log::error_text(&error)
            );
        }
        GateDevice { gate, control, name, note }
    }
}

/// The file that says that the device of `provider_name` is that of the hastd with this pidfile.
fn note(pidfile: &Path, provider_name: &str) -> PathBuf {
    let mut path = pidfile.as_os_str().to_owned();
    path.push(".");
    path.push(provider_name.replace('%', "%25").replace('/', "%2f"));
    path.into()
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
            Err(errno) => return log::error!("Unable to destroy device {}: {errno}.", self.name),
        }
        // One that stays makes the next hastd look once more.
        let _ = self.note.as_ref().map(fs::remove_file);
    }
}

/// The role is not primary: destroys a device that the worker of a hastd with this pidfile has left, because that was killed.
/// One that somebody else made is not touched.
pub(super) fn sweep(provider_name: &str, pidfile: Option<&Path>) {
    let note = pidfile.map(|pidfile| note(pidfile, provider_name));
    if !note.as_ref().is_some_and(|note| note.exists()) {
        return;
    }
    match system::open(provider_name, false, note) {
        Ok(device) => drop(device),
        Err(error) => log::error!("Unable to destroy the device of {provider_name}: {error}."),
    }
}

#[cfg(target_os = "freebsd")]
mod system {
    use super::GateDevice;
    use hast_ggate::Kernel;
    use std::path::PathBuf;

    /// Who is not root has no GEOM Gate; if there is NBD, that is the device then.
    pub(super) fn open(
        provider_name: &str,
        has_nbd: bool,
        note: Option<PathBuf>,
    ) -> Result<Option<GateDevice>, String> {
        if has_nbd && !nix::unistd::geteuid().is_root() {
            log::warn!("The device is an NBD export only: GEOM Gate needs root.");
            return Ok(None);
        }
        let kernel = Kernel::open().map_err(|error| error.to_string())?;
        let control = kernel.duplicate().map_err(|error| hast_log::error_text(&error))?;
        let name = hast_ggate::device_name(provider_name);
        Ok(Some(GateDevice::new(Box::new(kernel), control, name, note)))
    }
}

#[cfg(not(target_os = "freebsd"))]
mod system {
    use super::GateDevice;
    use std::path::PathBuf;

    pub(super) fn open(_: &str, _: bool, _: Option<PathBuf>) -> Result<Option<GateDevice>, String> {
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
        let directory = tempfile::tempdir().unwrap();
        let note = note(&directory.path().join("hastd.pid"), "a/disk0");
        assert_eq!(note, directory.path().join("hastd.pid.a%2fdisk0"));
        let control = File::open("/dev/null").unwrap().into();
        let gate = GateDevice::new(Box::new(kernel.process()), control, name.clone(), Some(note.clone()));
        assert!(note.exists(), "should this hastd be killed");
        let device = Device { attached: None, nbd: None, gate: Some(gate) };
        let StartKind::Primary { nbd: None, gate: Some(_) } = device.for_worker().unwrap() else { panic!() };
        assert!(kernel.exists(&name));
        drop(device);
        assert!(!kernel.exists(&name) && !note.exists());
    }

    #[test]
    fn without_a_directory_there_is_no_socket() {
        let directory = tempfile::tempdir().unwrap();
        let device = Device::open(Some(directory.path()), "a/b", None).unwrap();
        assert!(directory.path().join("a/b.sock").exists());
        assert!(matches!(device.for_worker().unwrap(), StartKind::Primary { nbd: Some(_), .. }));
        drop(device);
        assert!(!directory.path().join("a/b.sock").exists());
        if !cfg!(target_os = "freebsd") {
            let device = Device::open(None, "a/b", None).unwrap();
            assert!(matches!(device.for_worker().unwrap(), StartKind::Primary { nbd: None, gate: None }));
        }
    }
}
