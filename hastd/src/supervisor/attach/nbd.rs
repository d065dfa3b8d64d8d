//! Devices that the kernel's NBD makes of an export.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};

use hast_nbd::client;

use super::{DIALECT, Export, NoDevice, load_module, negotiate};
use crate::kernel_nbd::{self, KernelError, KernelNbd, Link};

/// What this process has disconnected: it has its identifier for as long as somebody has it open, and is of no use
/// any more.
static DISCONNECTED: Mutex<Vec<String>> = Mutex::new(Vec::new());
/// Tells one device over a socket from the next.
static LAST: AtomicU32 = AtomicU32::new(0);

/// A device, by its index and by its identifier, which no other one ever has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Found {
    index: u32,
    backend: String,
}

impl Found {
    pub(super) fn node(&self) -> PathBuf {
        kernel_nbd::node(self.index)
    }
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
pub(super) fn find(socket: &Path) -> Option<Found> {
    let gone = DISCONNECTED.lock().unwrap_or_else(PoisonError::into_inner);
    let ours = |backend: &String| backend.starts_with(&prefix(socket)) && !gone.contains(backend);
    let mut devices = kernel_nbd::devices().into_iter();
    devices.find(|(_, backend)| ours(backend)).map(|(index, backend)| Found { index, backend })
}

/// Looks whether the kernel has NBD, with its module loaded if the configuration asks for that.
pub(super) fn open(load: bool) -> Result<KernelNbd, KernelError> {
    match KernelNbd::open() {
        Err(KernelError::Absent) if load && load_module("nbd") => KernelNbd::open(),
        kernel => kernel,
    }
}

/// Makes a device, or gives the one that there is another connection.
pub(super) fn make(kernel: &mut KernelNbd, export: &Export) -> Result<Found, NoDevice> {
    let (stream, agreed) = negotiate(export, |stream| {
        let agreed = client::negotiate(&stream, &export.name, DIALECT)?;
        Ok((stream, agreed))
    })?;
    let spare = stream.try_clone().map_err(|error| NoDevice::Failed(hast_log::error_text(&error)))?;
    let found = find(&export.socket);
    let backend = found.as_ref().map_or_else(|| new_backend(&export.socket), |found| found.backend.clone());
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
    Ok(Found { index, backend: link.backend })
}

/// Disconnects a device.
pub(super) fn remove(Found { index, backend }: Found, name: &Path) {
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
