//! The block device `/dev/hast/<name>` over a primary's NBD export, where the kernel makes one (Linux, statement
//! `device`).
//!
//! The supervisor negotiates with its own worker like any other client, and hands the connection to the kernel's
//! NBD, or serves the kernel's ublk with it. It does so when a worker has been started, and when a connection has
//! been lost. The device goes when the role is left, and stays when workers, or this process, are killed: who comes
//! after finds it again.

use std::path::PathBuf;
use std::time::Duration;

use hast_conf::KernelDevice;
use hast_format::metadata::Role;

use super::Supervisor;
use super::resource::ResourceId;
pub(super) use system::{Attached, attach, is_left_behind, sweep};

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
    /// After how long the kernel's NBD sends a request again.
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
        let device = resource.device.as_ref().filter(|device| !device.waits());
        let Some(socket) = device.and_then(|device| device.export()) else { return };
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
#[path = "attach/linux.rs"]
mod system;

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

    pub(in crate::supervisor) fn is_left_behind(_: &Path) -> bool {
        false
    }

    pub(in crate::supervisor) fn sweep(_: &Path, _: &str) {}
}
