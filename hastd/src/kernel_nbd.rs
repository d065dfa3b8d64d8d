//! A block device of the kernel over an NBD export, on Linux: connected, connected again, and disconnected, over
//! generic netlink.
//!
//! The kernel is given a socket whose negotiation is over. When that connection ends, requests wait in the device,
//! so that a worker's successor, or that of a hastd that was killed, can take them over: it finds the device by the
//! identifier that the kernel keeps for it.

mod message;

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use hast_nbd::client::Agreed;
use message::{Connection, Reply};
use socket2::{Domain, Protocol, Socket, Type};

/// Where the kernel tells of its block devices.
const BLOCK_DEVICES: &str = "/sys/block";
/// Where their nodes are.
const NODES: &str = "/dev";
/// How long the kernel may take for an answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long requests wait for a successor before they fail.
pub(crate) const DEAD_TIMEOUT: Duration = Duration::from_secs(120);

/// Why there is no device.
#[derive(Debug, thiserror::Error)]
pub(crate) enum KernelError {
    /// The module is not loaded.
    #[error("this kernel has no NBD (module nbd)")]
    Absent,
    /// The kernel or the system refuses.
    #[error("the kernel's NBD: unable to {what}: {}", hast_log::error_text(error))]
    Refused {
        /// What was to be done.
        what: &'static str,
        /// Why it was not.
        error: io::Error,
    },
}

/// What connects a device to an export.
#[derive(Debug)]
pub(crate) struct Link {
    /// The connection, in the transmission phase.
    pub(crate) socket: OwnedFd,
    /// What was negotiated.
    pub(crate) agreed: Agreed,
    /// How long a request may take before it is sent again.
    pub(crate) timeout: Duration,
    /// By what the device is found again.
    pub(crate) backend: String,
}

impl Link {
    fn connection(&self) -> Result<Connection, KernelError> {
        let socket = u32::try_from(self.socket.as_raw_fd())
            .map_err(|_| refused("pass the connection", io::Error::from_raw_os_error(libc::EBADF)))?;
        Ok(Connection {
            size: self.agreed.size,
            block_size: self.agreed.minimum_block.into(),
            timeout: self.timeout.as_secs(),
            dead_timeout: DEAD_TIMEOUT.as_secs(),
            flags: self.agreed.flags.into(),
            socket,
            backend: self.backend.clone(),
        })
    }
}

/// The kernel's NBD.
#[derive(Debug)]
pub(crate) struct KernelNbd {
    socket: Socket,
    family: u16,
    seq: u32,
}

impl KernelNbd {
    /// Looks whether the kernel has NBD.
    pub(crate) fn open() -> Result<KernelNbd, KernelError> {
        let what = "open a netlink socket";
        let failed = |error| refused(what, error);
        let domain = Domain::from(libc::AF_NETLINK);
        let protocol = Protocol::from(libc::NETLINK_GENERIC);
        let socket = Socket::new(domain, Type::DGRAM, Some(protocol)).map_err(failed)?;
        socket.set_read_timeout(Some(PATIENCE)).map_err(failed)?;
        let mut kernel = KernelNbd { socket, family: 0, seq: 0 };
        let seq = kernel.next_seq();
        let replies = kernel.ask("find the family", seq, &message::get_family(seq, "nbd"), None);
        let replies = replies.map_err(|error| match error {
            KernelError::Refused { error, .. } if error.raw_os_error() == Some(libc::ENOENT) => {
                KernelError::Absent
            }
            error => error,
        })?;
        kernel.family = replies
            .iter()
            .find_map(|reply| if let Reply::Family(id) = reply { Some(*id) } else { None })
            .ok_or(KernelError::Absent)?;
        Ok(kernel)
    }

    /// Connects a device that is not in use; gives its index.
    pub(crate) fn connect(&mut self, link: &Link) -> Result<u32, KernelError> {
        let what = "connect a device";
        let (family, seq) = (self.family, self.next_seq());
        let replies =
            self.ask(what, seq, &message::connect(family, seq, &link.connection()?), Some(family))?;
        replies
            .iter()
            .find_map(|reply| if let Reply::Device(index) = reply { Some(*index) } else { None })
            .ok_or_else(|| refused(what, io::ErrorKind::InvalidData.into()))
    }

    /// Gives a device another connection for the one that is gone.
    pub(crate) fn reconfigure(&mut self, index: u32, link: &Link) -> Result<(), KernelError> {
        let (family, seq) = (self.family, self.next_seq());
        let message = message::reconfigure(family, seq, index, &link.connection()?);
        self.ask("connect a device again", seq, &message, Some(family)).map(drop)
    }

    /// Disconnects a device: whoever uses it gets errors.
    pub(crate) fn disconnect(&mut self, index: u32) -> Result<(), KernelError> {
        let (family, seq) = (self.family, self.next_seq());
        self.ask("disconnect a device", seq, &message::disconnect(family, seq, index), Some(family)).map(drop)
    }

    fn next_seq(&mut self) -> u32 {
        self.seq = self.seq.wrapping_add(1);
        self.seq
    }

    /// Sends a request and gathers what comes until it is confirmed.
    fn ask(
        &mut self,
        what: &'static str,
        seq: u32,
        request: &[u8],
        family: Option<u16>,
    ) -> Result<Vec<Reply>, KernelError> {
        let failed = |error| refused(what, error);
        self.socket.send(request).map_err(failed)?;
        let mut all = Vec::new();
        let mut bytes = vec![0; message::REPLY_MAX];
        loop {
            let length = match io::Read::read(&mut &self.socket, &mut bytes) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                length => length.map_err(failed)?,
            };
            for reply in message::replies(bytes.get(..length).unwrap_or_default(), family) {
                match reply {
                    Reply::Done { seq: of } if of == seq => return Ok(all),
                    Reply::Failed { seq: of, errno } if of == seq => {
                        return Err(failed(io::Error::from_raw_os_error(errno)));
                    }
                    reply => all.push(reply),
                }
            }
        }
    }
}

fn refused(what: &'static str, error: io::Error) -> KernelError {
    KernelError::Refused { what, error }
}

/// The devices that have an identifier, with their indexes.
pub(crate) fn devices() -> Vec<(u32, String)> {
    devices_in(Path::new(BLOCK_DEVICES))
}

fn devices_in(directory: &Path) -> Vec<(u32, String)> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries
        .filter_map(|entry| {
            let index = entry.file_name().to_str()?.strip_prefix("nbd")?.parse().ok()?;
            let text = fs::read_to_string(entry.path().join("backend")).ok()?;
            Some((index, text.trim_end_matches('\n').to_owned()))
        })
        .collect()
}

/// The node of the device with this index.
pub(crate) fn node(index: u32) -> PathBuf {
    Path::new(NODES).join(format!("nbd{index}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_found_with_their_identifiers() {
        let devices = tempfile::tempdir().unwrap();
        for (name, backend) in [
            ("nbd0", Some("hast:disk10\n")),
            ("nbd1", None),
            ("nbd12", Some("hast:disk1\n")),
            ("sda", Some("hast:x\n")),
        ] {
            let directory = devices.path().join(name);
            fs::create_dir(&directory).unwrap();
            if let Some(backend) = backend {
                fs::write(directory.join("backend"), backend).unwrap();
            }
        }
        let mut found = devices_in(devices.path());
        found.sort_unstable();
        assert_eq!(found, [(0, "hast:disk10".to_owned()), (12, "hast:disk1".to_owned())]);
        assert_eq!(devices_in(&devices.path().join("none")), []);
        assert_eq!(node(12), Path::new("/dev/nbd12"));
    }

    /// Whatever kernel this runs on: it says in good time whether it has NBD.
    #[test]
    fn the_kernel_is_asked() {
        match KernelNbd::open() {
            Ok(kernel) => assert!(Path::new("/sys/module/nbd").exists(), "{kernel:?}"),
            Err(KernelError::Absent) => assert!(!Path::new("/sys/module/nbd").exists()),
            // Where there are no netlink sockets, as in some containers.
            Err(error) => assert!(matches!(error, KernelError::Refused { .. }), "{error}"),
        }
    }
}
