//! A block device of the kernel over an NBD export by ublk, on Linux: made, served, taken over, and removed, over
//! io_uring.
//!
//! The kernel hands the device's requests to this process, which passes them on to the worker over NBD like any
//! other client of the export. When this process is killed they wait in the kernel, so that the next one can take
//! the device over: it finds it by a word that the kernel keeps for it.

mod command;
mod exchange;
mod queue;
mod ring;

use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::sync_channel;
use std::thread;
use std::time::{Duration, Instant};

use hast_nbd::client::{Agreed, Client, ClientError};
use zerocopy::{FromBytes, IntoBytes};

use command::{Control, Info, Parameters, State};
use exchange::Exchange;
use ring::ControlRing;

/// Where commands go.
const CONTROL: &str = "/dev/ublk-control";
/// Where the nodes of devices are.
const NODES: &str = "/dev";
/// Where the kernel tells of devices that are not stopped, and of all that there are.
const BLOCK_DEVICES: &str = "/sys/block";
const DEVICES: &str = "/sys/class/ublk-char";
/// How long a process that was killed may take to let its device go.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often it is looked meanwhile.
const PAUSE: Duration = Duration::from_millis(50);

/// Why there is no device.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UblkError {
    /// The module is not loaded.
    #[error("this kernel has no ublk (module ublk_drv)")]
    Absent,
    /// It lacks something that is needed.
    #[error("this kernel's ublk is too old (Linux 6.5 has all that is needed)")]
    TooOld,
    /// Another process serves the device.
    #[error("the kernel's ublk: process {0} serves the device")]
    Served(u32),
    /// This process does.
    #[error("the device is served already")]
    ServedHere,
    /// No block device has such a size, or such units.
    #[error("the kernel's ublk: there is no device of {size} bytes in blocks of {block}")]
    NoDevice {
        /// Bytes.
        size: u64,
        /// Bytes.
        block: u32,
    },
    /// The kernel or the system refuses.
    #[error("the kernel's ublk: unable to {what}: {}", hast_log::error_text(error))]
    Refused {
        /// What was to be done.
        what: &'static str,
        /// Why it was not.
        error: io::Error,
    },
}

fn refused(what: &'static str) -> impl FnOnce(io::Error) -> UblkError {
    move |error| UblkError::Refused { what, error }
}

/// Makes another connection to the worker whose export a device is made of.
pub(crate) type Connect = Box<dyn Fn() -> Result<Client, ClientError> + Send>;

/// A device that this process serves until [`end`](Served::end), whether this is kept or not.
#[derive(Debug)]
pub(crate) struct Served {
    device: u32,
    exchange: Arc<Exchange>,
}

impl Served {
    /// The device's number.
    pub(crate) fn device(&self) -> u32 {
        self.device
    }

    /// Whoever uses the device gets errors from now on. It is still there.
    pub(crate) fn end(&self) {
        self.exchange.end();
    }
}

/// The kernel's ublk.
pub(crate) struct KernelUblk {
    control: ControlRing,
}

impl KernelUblk {
    /// Looks whether the kernel has ublk.
    pub(crate) fn open() -> Result<KernelUblk, UblkError> {
        let file = OpenOptions::new().read(true).write(true).open(CONTROL);
        let file = file.map_err(|error| match error.raw_os_error() {
            Some(libc::ENOENT | libc::ENODEV | libc::ENXIO) => UblkError::Absent,
            _ => refused("open /dev/ublk-control")(error),
        })?;
        let control = ControlRing::new(file).map_err(refused("set up an io_uring"))?;
        let mut kernel = KernelUblk { control };
        let features = kernel.control.call(Control::GetFeatures, None, 0, vec![0; command::FEATURES_SIZE]);
        let features = features.map_err(|error| match error.raw_os_error() {
            Some(libc::ENODEV | libc::EINVAL | libc::EOPNOTSUPP) => UblkError::TooOld,
            _ => refused("ask what it can do")(error),
        })?;
        let features = features.first_chunk().map_or(0, |bytes| u64::from_ne_bytes(*bytes));
        if features & command::feature::NEEDED != command::feature::NEEDED {
            return Err(UblkError::TooOld);
        }
        Ok(kernel)
    }

    /// The device with this identity that is served, or waits for being served.
    pub(crate) fn find(&mut self, identity: u64) -> Option<u32> {
        let info = devices_in(Path::new(DEVICES)).into_iter().find_map(|device| {
            let info = self.info(device).ok()?;
            let starts = !matches!(info.state(), State::Dead);
            (info.identity() == identity && starts).then_some(info)
        });
        info.map(|info| info.device())
    }

    /// Serves the device with this identity that another process has left behind, or a new one, over `client` and
    /// the connections after it.
    pub(crate) fn serve(
        &mut self,
        identity: u64,
        client: Client,
        connect: Connect,
        patience: Duration,
    ) -> Result<Served, UblkError> {
        let agreed = client.agreed();
        if let Some(device) = self.find(identity) {
            let info = self.take_over(device)?;
            if info.is_fit() && size(device) == Some(agreed.size) {
                let served = self.run(&info, client, connect, patience, Control::EndRecovery);
                if served.is_err() {
                    // Half taken over: nobody could do that again.
                    let _ = self.remove(device);
                }
                return served;
            }
            log::warn!("Device {} is of no use any more and is removed.", node(device).display());
            self.remove(device)?;
        }
        self.forget_unstarted(identity);
        let parameters = Parameters::of(&agreed);
        let no_device = UblkError::NoDevice { size: agreed.size, block: agreed.minimum_block };
        let parameters = parameters.ok_or(no_device)?;
        let bytes = Info::wanted(identity).as_bytes().to_vec();
        let bytes = self.control.call(Control::Add, None, 0, bytes).map_err(refused("make a device"))?;
        let info = info_of(&bytes)?;
        let bytes = parameters.as_bytes().to_vec();
        let set = self.control.call(Control::SetParameters, Some(info.device()), 0, bytes);
        let started = set
            .map_err(refused("set a device up"))
            .and_then(|_| self.run(&info, client, connect, patience, Control::Start));
        if started.is_err() {
            // Nobody has seen it.
            let _ = self.delete(info.device());
        }
        started
    }

    /// Stops a device, whose users get errors, and removes it. Waits until what its server has to answer is
    /// answered, if there is one.
    pub(crate) fn remove(&mut self, device: u32) -> Result<(), UblkError> {
        let stopped = self.control.call(Control::Stop, Some(device), 0, Vec::new());
        stopped.map_err(refused("stop a device"))?;
        self.delete(device)
    }

    /// Does not wait for those who have it open, if the kernel can do that.
    fn delete(&mut self, device: u32) -> Result<(), UblkError> {
        let deleted = match self.control.call(Control::DeleteLater, Some(device), 0, Vec::new()) {
            Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => {
                self.control.call(Control::Delete, Some(device), 0, Vec::new())
            }
            deleted => deleted,
        };
        deleted.map(drop).map_err(refused("remove a device"))
    }

    /// Removes what somebody made who was killed before it started.
    fn forget_unstarted(&mut self, identity: u64) {
        for device in devices_in(Path::new(DEVICES)) {
            let info = self.info(device);
            if info.is_ok_and(|info| info.identity() == identity && info.state() == State::Dead) {
                // One that cannot be removed is in nobody's way.
                let _ = self.delete(device);
            }
        }
    }

    fn info(&mut self, device: u32) -> Result<Info, UblkError> {
        let bytes = vec![0; size_of::<Info>()];
        let bytes = self.control.call(Control::GetInfo, Some(device), 0, bytes);
        info_of(&bytes.map_err(refused("ask for a device"))?)
    }

    /// Makes sure that nobody else serves a device, and that the kernel knows it.
    fn take_over(&mut self, device: u32) -> Result<Info, UblkError> {
        let deadline = Instant::now().checked_add(PATIENCE);
        loop {
            let info = self.info(device)?;
            let process = info.process().unwrap_or_default();
            let served = info.state() == State::Live;
            if served && process == std::process::id() {
                return Err(UblkError::ServedHere);
            }
            let error = if served {
                UblkError::Served(process)
            } else {
                match self.control.call(Control::StartRecovery, Some(device), 0, Vec::new()) {
                    Ok(_) => return Ok(info),
                    Err(error) => refused("take a device over")(error),
                }
            };
            // A process that was killed is not gone at once.
            let busy = match &error {
                UblkError::Refused { error, .. } => error.raw_os_error() == Some(libc::EBUSY),
                _ => true,
            };
            if !busy || deadline.is_none_or(|deadline| Instant::now() >= deadline) {
                return Err(error);
            }
            thread::sleep(PAUSE);
        }
    }

    /// Serves a device and tells the kernel so.
    fn run(
        &mut self,
        info: &Info,
        client: Client,
        connect: Connect,
        patience: Duration,
        tell: Control,
    ) -> Result<Served, UblkError> {
        let (device, depth) = (info.device(), info.depth());
        let file = Arc::new(open_when_there(device).map_err(refused("open a device"))?);
        let (waits, wakes) = io::pipe().map_err(refused("make a pipe"))?;
        let exchange = Arc::new(Exchange::new(depth, wakes));
        let (ready, is_ready) = sync_channel(1);
        start("hastd ublk", {
            let (file, exchange) = (Arc::clone(&file), Arc::clone(&exchange));
            move || queue::serve(file, depth, waits, &exchange, &ready)
        })?;
        let ready = is_ready.recv().unwrap_or_else(|_| Err(io::ErrorKind::BrokenPipe.into()));
        ready.map_err(refused("serve a device"))?;
        let served = Served { device, exchange: Arc::clone(&exchange) };
        let told = start("hastd ublk", move || {
            let agreed = client.agreed();
            exchange.run(&*file, client, &|| connect().and_then(|client| same(&agreed, client)), patience);
        })
        .and_then(|()| {
            let process = u64::from(std::process::id());
            let told = self.control.call(tell, Some(device), process, Vec::new());
            told.map(drop).map_err(refused("start a device"))
        });
        if let Err(error) = told {
            served.end();
            return Err(error);
        }
        Ok(served)
    }
}

fn start(name: &str, work: impl FnOnce() + Send + 'static) -> Result<(), UblkError> {
    let thread = thread::Builder::new().name(name.to_owned()).spawn(work);
    thread.map(drop).map_err(refused("start a thread"))
}

fn info_of(bytes: &[u8]) -> Result<Info, UblkError> {
    let info = Info::read_from_bytes(bytes);
    info.map_err(|_| refused("understand the kernel")(io::ErrorKind::InvalidData.into()))
}

/// The export of a worker's successor, if it is the same device.
fn same(before: &Agreed, client: Client) -> Result<Client, ClientError> {
    if command::replaces(before, &client.agreed()) {
        return Ok(client);
    }
    Err(ClientError::Protocol("the export is not what the device was made of".to_owned()))
}

/// Its file appears a little later than the device.
fn open_when_there(device: u32) -> io::Result<File> {
    let path = Path::new(NODES).join(format!("ublkc{device}"));
    let deadline = Instant::now().checked_add(PATIENCE);
    loop {
        match OpenOptions::new().read(true).write(true).open(&path) {
            Err(error)
                if error.kind() == io::ErrorKind::NotFound
                    && deadline.is_some_and(|deadline| Instant::now() < deadline) =>
            {
                thread::sleep(PAUSE);
            }
            opened => return opened,
        }
    }
}

/// By what a device is found again that is made of the export at this socket. Nobody else has a word like that.
pub(crate) fn identity(socket: &Path) -> u64 {
    // FNV-1a.
    let hash = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
    let path = socket.as_os_str().as_encoded_bytes();
    b"hast:".iter().chain(path).fold(0xcbf2_9ce4_8422_2325, hash)
}

/// The node of the device with this number.
pub(crate) fn node(device: u32) -> PathBuf {
    Path::new(NODES).join(format!("ublkb{device}"))
}

/// Bytes of a device.
fn size(device: u32) -> Option<u64> {
    size_in(Path::new(BLOCK_DEVICES), device)
}

fn size_in(directory: &Path, device: u32) -> Option<u64> {
    let text = fs::read_to_string(directory.join(format!("ublkb{device}/size"))).ok()?;
    text.trim().parse::<u64>().ok()?.checked_mul(512)
}

fn devices_in(directory: &Path) -> Vec<u32> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.strip_prefix("ublkc")?.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_found_with_their_sizes() {
        let directory = tempfile::tempdir().unwrap();
        for name in ["ublkc0", "ublkc12", "ublkb3", "sda"] {
            fs::create_dir(directory.path().join(name)).unwrap();
        }
        fs::write(directory.path().join("ublkb3/size"), "196608\n").unwrap();
        let mut found = devices_in(directory.path());
        found.sort_unstable();
        assert_eq!(found, [0, 12]);
        assert_eq!(devices_in(&directory.path().join("none")), []);
        assert_eq!(size_in(directory.path(), 3), Some(96 << 20));
        assert_eq!(size_in(directory.path(), 0), None);
        assert_eq!(node(12), Path::new("/dev/ublkb12"));
    }

    #[test]
    fn an_identity_is_that_of_the_socket() {
        let of = |path: &str| identity(Path::new(path));
        assert_eq!(of("/var/run/hast/disk0.sock"), of("/var/run/hast/disk0.sock"));
        assert_ne!(of("/var/run/hast/disk0.sock"), of("/var/run/hast/disk1.sock"));
        // It has to be the same in every build: devices outlive hastd.
        assert_eq!(of(""), 0xad55_8869_491c_6a3d);
    }

    /// Whatever kernel this runs on: it says in good time whether it has ublk.
    #[test]
    fn the_kernel_is_asked() {
        match KernelUblk::open() {
            Ok(_) => assert!(Path::new(DEVICES).exists()),
            Err(UblkError::Absent) => assert!(!Path::new(CONTROL).exists()),
            // Too old, or no io_uring for this process.
            Err(error) => assert!(Path::new(CONTROL).exists(), "{error}"),
        }
    }
}
