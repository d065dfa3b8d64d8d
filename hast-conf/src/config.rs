//! The configuration of one node: what remains of the file once scopes, defaults and node sections
//! are worked out.

use crate::error::ConfError;
use crate::node::Node;
use crate::parse::Parser;
use hast_net::Replication;
use hast_net::address::Address;
use hast_net::payload::{Checksum, Compression};
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

/// Where `hastctl` reaches `hastd` unless a `control` statement says otherwise.
pub const DEFAULT_CONTROL: &str = "uds:///var/run/hastctl";
/// The pidfile unless a `pidfile` statement or `-P` says otherwise.
pub const DEFAULT_PIDFILE: &str = "/var/run/hastd.pid";
/// Seconds, unless a `timeout` statement says otherwise.
pub const DEFAULT_TIMEOUT: u32 = 20;
/// Seconds, unless a `peer-timeout` statement says otherwise.
pub const DEFAULT_PEER_TIMEOUT: u32 = 5;

/// Whether devices are NBD exports unless the file says otherwise: everywhere but on FreeBSD.
pub(crate) const HAS_NBD_BY_DEFAULT: bool = cfg!(not(target_os = "freebsd"));

/// Bytes of a file that are read at most: thousands of resources.
const MAX_FILE: u64 = 1 << 20;

/// What the file says for this node.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Config {
    /// The control socket.
    pub control: Address,
    /// The pidfile; `-P` overrides it.
    pub pidfile: PathBuf,
    /// Addresses to accept other nodes on: this node's own, then the global ones, each endpoint
    /// once. May be empty only if the defaults apply and the kernel has neither IP family.
    pub listen: Vec<Address>,
    /// No `listen` was given, so that `listen` holds the defaults for the kernel's IP families.
    pub listen_is_default: bool,
    /// The directory in which NBD sockets appear, where they do ([`Config::nbd_directory`]).
    pub nbd: PathBuf,
    /// No `nbd` was given, so that `nbd` is the default.
    pub nbd_is_default: bool,
    /// The resources in the order of the file.
    pub resources: Vec<Resource>,
    /// The file has a statement outside `#%` that an original cannot read: only this implementation reads the file.
    pub is_ours_alone: bool,
    /// What was skipped in the file, one message each, with file, line and column.
    pub warnings: Vec<String>,
}

impl Config {
    /// The resource of this name.
    #[must_use]
    pub fn resource(&self, name: &str) -> Option<&Resource> {
        self.resources.iter().find(|resource| resource.name == name)
    }

    /// The directory in which NBD sockets appear. None if there are none: where devices are GEOM Gate's,
    /// NBD has to be asked for.
    #[must_use]
    pub fn nbd_directory(&self) -> Option<&Path> {
        (HAS_NBD_BY_DEFAULT || !self.nbd_is_default).then_some(&self.nbd)
    }
}

/// One resource as this node sees it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Resource {
    /// The name; 1 to 254 bytes.
    pub name: String,
    /// The name of the provider that a primary creates; 1 to 254 bytes.
    pub provname: String,
    /// The disk or file below.
    pub localpath: PathBuf,
    /// The other node; `None` stands for `remote none`, not known yet.
    pub remote: Option<Address>,
    /// The address to connect from and, if it names a host, its port 0 unless given.
    pub source: Option<Address>,
    /// When a write is complete.
    pub replication: Replication,
    /// How payloads are protected on the wire.
    pub checksum: Checksum,
    /// How payloads are shortened on the wire.
    pub compression: Compression,
    /// Seconds, from 1 to 2147483647.
    pub timeout: u32,
    /// Seconds of silence, from 1 to 2147483647.
    pub peer_timeout: u32,
    /// What makes a block device of a primary's export on Linux.
    pub device: KernelDevice,
    /// On FreeBSD: the kernel may serve reads of a primary's device itself while the nodes are in step.
    pub direct_reads: bool,
    /// The program to run on events.
    pub exec: Option<PathBuf>,
    /// Whether each write of the activemap is followed by a flush.
    pub metaflush: bool,
}

/// What makes a block device of a primary's NBD export; only on Linux.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum KernelDevice {
    /// The kernel's NBD where it is there, otherwise its ublk, otherwise nothing.
    #[default]
    Auto,
    /// The kernel's NBD. That it is not there is worth a warning.
    Nbd,
    /// The kernel's ublk. That it is not there is worth a warning.
    Ublk,
    /// Nothing.
    None,
}

impl KernelDevice {
    /// Every choice there is.
    pub const ALL: [KernelDevice; 4] =
        [KernelDevice::Auto, KernelDevice::Nbd, KernelDevice::Ublk, KernelDevice::None];

    /// The word for it in the file.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            KernelDevice::Auto => "auto",
            KernelDevice::Nbd => "nbd",
            KernelDevice::Ublk => "ublk",
            KernelDevice::None => "none",
        }
    }

    /// The one with this word.
    #[must_use]
    pub fn parse(word: &str) -> Option<KernelDevice> {
        KernelDevice::ALL.into_iter().find(|device| device.as_str() == word)
    }
}

impl Resource {
    /// The `remote` value as configured: an address or `none`.
    #[must_use]
    pub fn remote_text(&self) -> &str {
        self.remote.as_ref().map_or("none", Address::as_str)
    }
}

/// Reads and checks a configuration file.
///
/// # Errors
///
/// [`ConfError::File`] if it cannot be read, otherwise what is wrong in it.
pub fn load(path: &Path, node: &Node) -> Result<Config, ConfError> {
    let unreadable = |source| ConfError::File { path: path.to_owned(), source };
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(unreadable)?;
    // One byte more than allowed tells a file at the limit from one above it.
    file.take(MAX_FILE.saturating_add(1)).read_to_end(&mut bytes).map_err(unreadable)?;
    if u64::try_from(bytes.len()).is_ok_and(|length| length > MAX_FILE) {
        return Err(ConfError::TooLarge { path: path.to_owned(), limit: MAX_FILE });
    }
    // Bytes that are no text are skipped like other strange characters, also inside comments.
    parse(&String::from_utf8_lossy(&bytes), &path.display().to_string(), node)
}

/// Checks the text of a configuration file; messages call it `file`.
///
/// # Errors
///
/// [`ConfError::Invalid`] with the first thing that is wrong.
pub fn parse(text: &str, file: &str, node: &Node) -> Result<Config, ConfError> {
    Parser::new(text, file, node).config()
}
