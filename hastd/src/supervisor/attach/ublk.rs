//! Devices that the kernel's ublk makes of an export, served by this process.

use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::thread;
use std::time::Duration;

use hast_nbd::client::Client;

use super::{DIALECT, Export, NoDevice, load_module, negotiate};
use crate::kernel_nbd::DEAD_TIMEOUT;
use crate::kernel_ublk::{self, KernelUblk, Served, UblkError};

/// How long the supervisor waits for the kernel; whatever it is then goes on without it.
const PATIENCE: Duration = Duration::from_secs(10);

/// A device.
#[derive(Debug)]
pub(super) struct Found {
    device: u32,
    /// Absent if it was left behind by another process.
    served: Option<Served>,
}

impl Found {
    pub(super) fn node(&self) -> PathBuf {
        kernel_ublk::node(self.device)
    }
}

/// Looks whether the kernel has ublk, with its module loaded if the configuration asks for that.
pub(super) fn open(load: bool) -> Result<KernelUblk, UblkError> {
    match KernelUblk::open() {
        Err(UblkError::Absent) if load && load_module("ublk_drv") => KernelUblk::open(),
        kernel => kernel,
    }
}

/// Whether there is a device over this socket.
pub(super) fn left_behind(kernel: &mut KernelUblk, socket: &Path) -> bool {
    kernel.find(kernel_ublk::identity(socket)).is_some()
}

/// The device over this socket that has been left behind.
pub(super) fn find(socket: &Path) -> Option<Found> {
    let identity = kernel_ublk::identity(socket);
    let device = bounded(move || KernelUblk::open().ok()?.find(identity)).ok()??;
    Some(Found { device, served: None })
}

/// Makes a device, or takes over the one that was left behind.
pub(super) fn make(kernel: &mut KernelUblk, export: &Export) -> Result<Found, NoDevice> {
    let name = export.name.clone();
    let client = negotiate(export, |stream| Client::over(stream, &name, DIALECT))?;
    let socket = export.socket.clone();
    let connect = Box::new(move || Client::over(UnixStream::connect(&socket)?, &name, DIALECT));
    let identity = kernel_ublk::identity(&export.socket);
    match kernel.serve(identity, client, connect, DEAD_TIMEOUT) {
        Ok(served) => Ok(Found { device: served.device(), served: Some(served) }),
        Err(UblkError::ServedHere) => Err(NoDevice::Connected),
        Err(error) => Err(NoDevice::Failed(error.to_string())),
    }
}

/// Stops a device and removes it.
pub(super) fn remove(found: &Found, name: &Path) {
    if let Some(served) = &found.served {
        served.end();
    }
    let device = found.device;
    match bounded(move || KernelUblk::open().and_then(|mut kernel| kernel.remove(device))) {
        Ok(Ok(())) => log::debug!("Device {} detached.", name.display()),
        Ok(Err(error)) => log::error!("Unable to detach device {}: {error}.", name.display()),
        Err(why) => log::error!("Unable to detach device {}: {why}.", name.display()),
    }
}

/// Does what may block in a thread of its own, and does not wait for ever.
fn bounded<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, String> {
    let (sender, receiver) = sync_channel(1);
    let thread = thread::Builder::new().name("hastd job".to_owned()).spawn(move || {
        // Fails when nobody waits any more.
        let _ = sender.send(work());
    });
    thread.map_err(|error| hast_log::error_text(&error))?;
    receiver.recv_timeout(PATIENCE).map_err(|error| match error {
        RecvTimeoutError::Timeout => format!("the kernel takes longer than {} s", PATIENCE.as_secs()),
        RecvTimeoutError::Disconnected => "the thread has ended".to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_takes_its_time_is_not_waited_for() {
        assert_eq!(bounded(|| 7), Ok(7));
    }
}
