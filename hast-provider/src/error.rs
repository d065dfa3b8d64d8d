//! Why a provider cannot be used, in words for its administrator.

use std::io;
use std::path::PathBuf;

use hast_format::metadata::MetadataError;
use hast_log::error_text;

use crate::device;

/// Why a provider cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ProviderError {
    /// It cannot be opened.
    #[error("Unable to open {}: {}.", path.display(), error_text(error))]
    Open {
        /// The provider.
        path: PathBuf,
        /// The system's reason.
        error: io::Error,
    },
    /// The kernel has given the disk to somebody else.
    #[error(
        "Provider {} is in use: a file system, swap, a volume or hastd (in the primary or secondary role) has it \
         open exclusively. Unmount it, or change the role to init, first.",
        path.display()
    )]
    Mounted {
        /// The provider.
        path: PathBuf,
    },
    /// A disk that can be read alone.
    #[error("Unable to open {} for writing: the disk is read-only.", path.display())]
    ReadOnly {
        /// The provider.
        path: PathBuf,
    },
    /// Nothing can be learned about it.
    #[error("Unable to stat {}: {}.", path.display(), error_text(error))]
    Stat {
        /// The provider.
        path: PathBuf,
        /// The system's reason.
        error: io::Error,
    },
    /// A device that does not tell its size: no disk.
    #[error("Unable obtain provider {} mediasize: {}.", path.display(), error_text(error))]
    Mediasize {
        /// The provider.
        path: PathBuf,
        /// The system's reason.
        error: io::Error,
    },
    /// A device that does not tell its sector size: no disk.
    #[error("Unable obtain provider {} sectorsize: {}.", path.display(), error_text(error))]
    Sectorsize {
        /// The provider.
        path: PathBuf,
        /// The system's reason.
        error: io::Error,
    },
    /// A directory, FIFO, socket or the like.
    #[error("{} is neither {} nor regular file.", path.display(), device::DISK)]
    NotAProvider {
        /// The provider.
        path: PathBuf,
    },
    /// Somebody holds the lock on it.
    #[error(
        "Provider {} is in use: another program holds an exclusive lock (flock(2)) on it, normally hastd for \
         a resource in the primary or secondary role. Change that role to init or stop hastd first.",
        path.display()
    )]
    InUse {
        /// The provider.
        path: PathBuf,
    },
    /// It cannot be locked for another reason.
    #[error("Unable to lock {}: {}.", path.display(), error_text(error))]
    Lock {
        /// The provider.
        path: PathBuf,
        /// The system's reason.
        error: io::Error,
    },
    /// The metadata block cannot be read.
    #[error("Unable to read metadata from {}: {}.", path.display(), error_text(error))]
    ReadMetadata {
        /// The provider.
        path: PathBuf,
        /// The system's reason.
        error: io::Error,
    },
    /// A part of the metadata block cannot be read, and the rest does not say enough.
    #[error(
        "Unable to read metadata from {}: {} ({length} bytes at offset {offset}), and what can be read is not \
         enough: {rest}.",
        path.display(),
        error_text(error)
    )]
    UnreadableMetadata {
        /// The provider.
        path: PathBuf,
        /// The first byte that cannot be read.
        offset: u64,
        /// How many bytes from there cannot be.
        length: usize,
        /// The system's reason.
        error: io::Error,
        /// What is wrong with the rest.
        rest: MetadataError,
    },
    /// The metadata block does not hold metadata.
    #[error("Unable to read metadata from {}: {error}.", path.display())]
    BadMetadata {
        /// The provider.
        path: PathBuf,
        /// What is wrong with it.
        error: MetadataError,
    },
    /// The metadata is that of another resource.
    #[error("Provider {} is not part of resource {resource}.", path.display())]
    NotPartOf {
        /// The provider.
        path: PathBuf,
        /// The resource that was expected.
        resource: String,
    },
    /// The metadata block cannot be written.
    #[error("Unable to write metadata to {}: {}.", path.display(), error_text(error))]
    WriteMetadata {
        /// The provider.
        path: PathBuf,
        /// The system's reason.
        error: io::Error,
    },
    /// The map cannot be read.
    #[error("Unable to read activemap from {}: {}.", path.display(), error_text(error))]
    ReadMap {
        /// The provider.
        path: PathBuf,
        /// The system's reason.
        error: io::Error,
    },
    /// A part of the map cannot be read, and cannot be written either.
    #[error(
        "Unable to rewrite the unreadable part of the activemap on {}: {}. The disk is failing: replace it.",
        path.display(),
        error_text(error)
    )]
    RepairMap {
        /// The provider.
        path: PathBuf,
        /// The system's reason.
        error: io::Error,
    },
    /// The map cannot be written.
    #[error("Unable to store initial bitmap on {}: {}.", path.display(), error_text(error))]
    WriteMap {
        /// The provider.
        path: PathBuf,
        /// The system's reason.
        error: io::Error,
    },
}
