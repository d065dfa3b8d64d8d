//! The block device `/dev/hast/<name>` over a primary's NBD export, where the kernel makes one (Linux, statement
//! `device`).
//!
//! The supervisor negotiates with its own worker like any other client, and hands the connection to the kernel. It
//! does so when a worker has been started, and when the kernel has lost its connection. The device goes when the
//! role is left, and stays when workers, or this process, are killed: who comes after finds it again.

use std::path::PathBuf;
use std::time::Duration;

use hast_conf::KernelDevice;
use hast_format::metadata::Role;

use super::Supervisor;
use super::resource::ResourceId;
pub(super) use system::{Attached, attach, sweep};

/// The shortest time after which the kernel sends a request again, over another connection.
const RETRY_MIN: Duration = Duration::from_secs(30);
/// How much longer than a request may take by itself.
const RETRY_MORE: Duration = Duration::from_secs(10);

/// What a device is to be made of.
#[derive(Clone, Debug)]
#[cfg_attr(not(target_os = "linux"), expect(dead_code, reason = "only Linux makes a device of it"))]
pub(super) struct Export {
    /// The worker's socket.
    pub(super) socket: PathBuf,
    /// The provider's name: that of the export, and of the device.
    pub(super) name: String,
    /// What hast.conf says.
    pub(super) wanted: KernelDevice,
    /// After how long the kernel sends a request again.
    pub(super) retry: Duration,
}

/// Why there is no device.
#[derive(Debug, thiserror::Error)]
#[cfg_attr(not(target_os = "linux"), expect(dead_code, reason = "only Linux makes a device of it"))]
pub(super) enum NoDevice {
    /// The kernel does not offer it, or not to this process.
    #[error("{0}")]
    NotOffered(String),
    /// The device has its connection; there was nothing to do.
    #[error("the device is connected already")]
    Connected,
    /// Something else.
    #[error("{0}")]
    Failed(String),
}

/// How far the device of a resource is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Attaching {
    /// Nothing is being done.
    #[default]
    Idle,
    /// A thread is at it.
    UnderWay,
    /// The same, and meanwhile there was another reason.
    Again,
}

impl Supervisor {
    /// Sees to it that the export of a primary is a block device, if it is to be one.
    pub(super) fn attach(&mut self, index: usize) {
        let Some(resource) = self.resources.get_mut(index) else { return };
        let config = &resource.config;
        if !cfg!(target_os = "linux") || config.device == KernelDevice::None {
            return;
        }
        let Some(socket) = resource.device.as_ref().and_then(|device| device.export()) else { return };
        if resource.attaching != Attaching::Idle {
            resource.attaching = Attaching::Again;
            return;
        }
        resource.attaching = Attaching::UnderWay;
        let timeout = Duration::from_secs(config.timeout.into());
        let export = Export {
            socket: socket.to_owned(),
            name: config.provname.clone(),
            wanted: config.device,
            retry: timeout.saturating_add(RETRY_MORE).max(RETRY_MIN),
        };
        self.jobs.attach(resource.id, export);
    }

    /// A client has left the export without a word. If it was the kernel, it waits for another connection.
    pub(super) fn attach_again(&mut self, index: usize) {
        let device = self.resources.get(index).and_then(|resource| resource.device.as_ref());
        if device.is_some_and(|device| device.is_attached()) {
            self.attach(index);
        }
    }

    /// A thread has made the device, or found that there can be none.
    pub(super) fn attached(&mut self, id: ResourceId, result: Result<Attached, NoDevice>) {
        // What nobody wants any more goes by being dropped.
        let Some(index) = self.resources.iter().position(|resource| resource.id == id) else { return };
        let Some(resource) = self.resources.get_mut(index) else { return };
        let again = std::mem::take(&mut resource.attaching) == Attaching::Again;
        let scope = resource.scope();
        match (result, &mut resource.device) {
            (Ok(attached), Some(device)) if resource.role == Role::Primary && resource.change.is_none() => {
                log::info!("Device {attached} attached.");
                device.attach(attached);
            }
            (Ok(_), _) | (Err(NoDevice::Connected), _) => {}
            (Err(NoDevice::NotOffered(why)), _) if resource.config.device == KernelDevice::Auto => {
                log::debug!("The device is an NBD export only: {why}.");
            }
            (Err(error), _) => log::warn!("The device is an NBD export only: {error}."),
        }
        drop(scope);
        if again {
            self.attach(index);
        }
    }
}

#[cfg(target_os = "linux")]
mod system {
    use std::fmt;
    use std::fs;
    use std::io;
    use std::os::fd::OwnedFd;
    use std::os::unix::fs::DirBuilderExt;
    use std::os::unix::net::UnixStream;
    use std::path::{Path, PathBuf};
    use std::process::{Command, Stdio};
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::sync::{Mutex, PoisonError};

    use hast_conf::KernelDevice;
    use hast_nbd::client::{self, Agreed, ClientError, Dialect};

    use super::{Export, NoDevice};
    use crate::kernel_nbd::{self, KernelError, KernelNbd, Link};

    /// Where the devices are found under their names.
    const DIRECTORY: &str = "/dev/hast";
    /// How often a worker is asked for its export that does not answer, ten seconds each time: its disk may be
    /// slow.
    const ATTEMPTS: usize = 6;

    /// What this process has disconnected: it has its identifier for as long as somebody has it open, and is of no
    /// use any more.
    static DISCONNECTED: Mutex<Vec<String>> = Mutex::new(Vec::new());
    /// Tells one device over a socket from the next.
    static LAST: AtomicU32 = AtomicU32::new(0);

    /// A device of the kernel, and its name. Both go when this is dropped.
    #[derive(Debug)]
    pub(in crate::supervisor) struct Attached {
        /// Absent if another one stands for the same device.
        found: Option<Found>,
        name: PathBuf,
    }

    /// A device, by its index and by its identifier, which no other one ever has.
    #[derive(Clone, Debug, PartialEq, Eq)]
    struct Found {
        index: u32,
        backend: String,
    }

    /// How the identifiers of all devices over this socket begin, whichever process made them.
    fn prefix(socket: &Path) -> String {
        format!("hast:{} ", socket.display())
    }

    /// An identifier for a new device.
    fn new_backend(socket: &Path) -> String {
        let number = LAST.fetch_add(1, Ordering::Relaxed);
        format!("{}{}.{number}", prefix(socket), std::process::id())
    }

    /// The device over this socket that has been left behind, or has lost its connection.
    fn find(socket: &Path) -> Option<Found> {
        let gone = DISCONNECTED.lock().unwrap_or_else(PoisonError::into_inner);
        let ours = |backend: &String| backend.starts_with(&prefix(socket)) && !gone.contains(backend);
        let mut devices = kernel_nbd::devices().into_iter();
        devices.find(|(_, backend)| ours(backend)).map(|(index, backend)| Found { index, backend })
    }

    impl Attached {
        /// The same device, or another one, has taken this one's place.
        pub(in crate::supervisor) fn yield_to(mut self, other: &Attached) {
            if self.found == other.found {
                self.found = None;
            }
        }
    }

    impl fmt::Display for Attached {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            let node = self.found.as_ref().map(|found| kernel_nbd::node(found.index)).unwrap_or_default();
            write!(f, "{} ({})", self.name.display(), node.display())
        }
    }

    impl Drop for Attached {
        fn drop(&mut self) {
            if let Some(found) = self.found.take() {
                disconnect(found, &self.name);
            }
        }
    }

    /// Makes the device; may take a while.
    pub(in crate::supervisor) fn attach(export: &Export) -> Result<Attached, NoDevice> {
        if !nix::unistd::geteuid().is_root() {
            return Err(NoDevice::NotOffered("only root can attach it to the kernel".to_owned()));
        }
        let mut kernel = open(export.wanted)?;
        let (stream, agreed) = negotiate(export).map_err(|error| NoDevice::Failed(error.to_string()))?;
        let spare = stream.try_clone().map_err(|error| NoDevice::Failed(hast_log::error_text(&error)))?;
        let found = find(&export.socket);
        let backend =
            found.as_ref().map_or_else(|| new_backend(&export.socket), |found| found.backend.clone());
        let link = Link { socket: OwnedFd::from(stream), agreed, timeout: export.retry, backend };
        let connected = match found {
            Some(found) => kernel.reconfigure(found.index, &link).map(|()| found.index),
            None => kernel.connect(&link),
        };
        let index = connected.map_err(|error| {
            // It makes no difference any more whether the worker hears of it.
            let _ = client::take_leave(&spare);
            match error {
                KernelError::Refused { error, .. } if error.raw_os_error() == Some(libc::ENOSPC) => {
                    NoDevice::Connected
                }
                error => NoDevice::Failed(error.to_string()),
            }
        })?;
        let found = Some(Found { index, backend: link.backend });
        let attached = Attached { found, name: Path::new(DIRECTORY).join(&export.name) };
        // If that fails the device goes again: nobody would find it.
        name(&attached.name, &kernel_nbd::node(index)).map_err(|error| {
            let (name, error) = (attached.name.display(), hast_log::error_text(&error));
            NoDevice::Failed(format!("unable to make {name}: {error}"))
        })?;
        Ok(attached)
    }

    /// Disconnects what a process that was killed left behind.
    pub(in crate::supervisor) fn sweep(nbd_directory: &Path, name: &str) {
        let Ok(socket) = hast_conf::nbd_socket_path(nbd_directory, name) else { return };
        if let Some(found) = find(&socket) {
            let name = Path::new(DIRECTORY).join(name);
            log::warn!("Device {} was left behind and is disconnected.", name.display());
            disconnect(found, &name);
        }
    }

    fn open(wanted: KernelDevice) -> Result<KernelNbd, NoDevice> {
        let mut kernel = KernelNbd::open();
        // Nobody has asked for a module if the configuration does not.
        if matches!(kernel, Err(KernelError::Absent)) && wanted == KernelDevice::Nbd && load_module() {
            kernel = KernelNbd::open();
        }
        kernel.map_err(|error| NoDevice::NotOffered(error.to_string()))
    }

    fn load_module() -> bool {
        let mut modprobe = Command::new("modprobe");
        modprobe.args(["-q", "nbd"]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        modprobe.status().is_ok_and(|status| status.success())
    }

    fn negotiate(export: &Export) -> Result<(UnixStream, Agreed), ClientError> {
        let dialect = Dialect { structured: false, export_name: false };
        let mut attempts = 0;
        loop {
            attempts += 1;
            let stream = UnixStream::connect(&export.socket)?;
            match client::negotiate(&stream, &export.name, dialect) {
                Err(ClientError::Timeout) if attempts < ATTEMPTS => {}
                agreed => return Ok((stream, agreed?)),
            }
        }
    }

    /// Makes `name` mean `node`, at once or not at all.
    fn name(name: &Path, node: &Path) -> io::Result<()> {
        if let Some(directory) = name.parent() {
            fs::DirBuilder::new().recursive(true).mode(0o755).create(directory)?;
        }
        if fs::symlink_metadata(name).is_ok_and(|there| !there.is_symlink()) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let mut new = name.as_os_str().to_owned();
        new.push(".new");
        match fs::remove_file(&new) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        std::os::unix::fs::symlink(node, &new)?;
        fs::rename(&new, name)
    }

    fn disconnect(Found { index, backend }: Found, name: &Path) {
        // Another device may have the name by now.
        if fs::read_link(name).is_ok_and(|node| node == kernel_nbd::node(index))
            && let Err(error) = fs::remove_file(name)
        {
            log::warn!("Unable to remove {}: {}.", name.display(), hast_log::error_text(&error));
        }
        match KernelNbd::open().and_then(|mut kernel| kernel.disconnect(index)) {
            Ok(()) => log::debug!("Device {} detached.", name.display()),
            Err(error) => log::error!("Unable to detach device {}: {error}.", name.display()),
        }
        let mut gone = DISCONNECTED.lock().unwrap_or_else(PoisonError::into_inner);
        // Those that have been closed since need not be remembered.
        let there = kernel_nbd::devices();
        gone.retain(|backend| there.iter().any(|(_, other)| other == backend));
        gone.push(backend);
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn a_name_means_one_device_at_a_time() {
            let directory = tempfile::tempdir().unwrap();
            let path = directory.path().join("vm/disk0");
            for node in ["/dev/nbd0", "/dev/nbd7"] {
                name(&path, Path::new(node)).unwrap();
                assert_eq!(fs::read_link(&path).unwrap(), Path::new(node));
            }
            let file = directory.path().join("file");
            fs::write(&file, "somebody's").unwrap();
            assert_eq!(name(&file, Path::new("/dev/nbd0")).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
            assert_eq!(fs::read_to_string(&file).unwrap(), "somebody's");
        }
    }
}

#[cfg(not(target_os = "linux"))]
mod system {
    use std::fmt;
    use std::path::Path;

    use super::{Export, NoDevice};

    /// No other system needs it.
    #[derive(Debug)]
    pub(in crate::supervisor) enum Attached {}

    impl Attached {
        pub(in crate::supervisor) fn yield_to(self, _: &Attached) {
            match self {}
        }
    }

    impl fmt::Display for Attached {
        fn fmt(&self, _: &mut fmt::Formatter<'_>) -> fmt::Result {
            match *self {}
        }
    }

    pub(in crate::supervisor) fn attach(_: &Export) -> Result<Attached, NoDevice> {
        Err(NoDevice::NotOffered("only Linux makes a device of it".to_owned()))
    }

    pub(in crate::supervisor) fn sweep(_: &Path, _: &str) {}
}
