//! A resource's local provider: the disk, partition or regular file that holds metadata, activemap and
//! data (spec/on-disk.md).
//!
//! Owns how a provider is opened, measured, locked and flushed, how its metadata block and map are read and
//! written as a whole, and what becomes of sectors of either that cannot be read (A3): of the metadata they count
//! as damaged, in the map as set bits. `hastctl create` and `dump`, the supervisor and the workers share it. It
//! knows nothing of requests, peers or roles, and never touches the data area.
//!
//! | file | owns |
//! |---|---|
//! | `device` | the system calls of which each system has its own |
//! | `sectors` | reading and writing around sectors that cannot be read |
//! | `map` | the activemap, read and repaired |
//! | `error` | why a provider cannot be used |
#![warn(missing_docs)]

mod device;
mod error;
mod map;
mod sectors;

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use hast_format::layout::{Layout, METADATA_SIZE};
use hast_format::metadata::{Metadata, Reading};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};

pub use error::ProviderError;

/// The sector size that regular files are said to have, in bytes.
pub const FILE_SECTORSIZE: u32 = 512;

/// An open provider.
#[derive(Debug)]
pub struct Provider {
    file: File,
    path: PathBuf,
    mediasize: u64,
    sectorsize: u32,
    is_device: bool,
    /// Sectors that a test has made bad.
    #[cfg(test)]
    faults: tests::Faults,
}

impl Provider {
    /// Opens and measures the provider at `path`; for reading only unless `write`.
    ///
    /// On Linux a block device is opened for writing with `O_EXCL`: the kernel refuses it while a file
    /// system, swap or another volume is on it, as GEOM does on FreeBSD.
    ///
    /// # Errors
    ///
    /// What cannot be opened, what is neither a disk nor a regular file, and a disk that cannot be written if it is to be.
    pub fn open(path: &Path, write: bool) -> Result<Provider, ProviderError> {
        let open = |error: io::Error| match error.raw_os_error() {
            Some(libc::EBUSY) => ProviderError::Mounted { path: path.to_owned() },
            _ => ProviderError::Open { path: path.to_owned(), error },
        };
        // O_NONBLOCK: opening a FIFO by mistake must not hang.
        let mut flags = OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
        let is_disk = device::is_disk(fs::metadata(path).map_err(open)?.file_type());
        if is_disk && cfg!(target_os = "freebsd") {
            // GEOM knows no such flag: taking it away again would fail.
            flags -= OFlag::O_NONBLOCK;
        }
        if is_disk && write && cfg!(target_os = "linux") {
            flags |= OFlag::O_EXCL;
        }
        let file =
            OpenOptions::new().read(true).write(write).custom_flags(flags.bits()).open(path).map_err(open)?;
        let provider = Provider::measure(file, path)?;
        if write && is_disk && device::is_read_only(&provider.file).map_err(open)? {
            return Err(ProviderError::ReadOnly { path: path.to_owned() });
        }
        if flags.contains(OFlag::O_NONBLOCK) {
            let flags = if write { OFlag::O_RDWR } else { OFlag::O_RDONLY };
            fcntl(&provider.file, FcntlArg::F_SETFL(flags))
                .map_err(|errno| ProviderError::Open { path: path.to_owned(), error: errno.into() })?;
        }
        Ok(provider)
    }

    /// Takes over a descriptor that is open already and measures what it refers to. `path` is for messages.
    ///
    /// # Errors
    ///
    /// As for [`Provider::open`].
    pub fn from_fd(fd: OwnedFd, path: impl Into<PathBuf>) -> Result<Provider, ProviderError> {
        Provider::measure(File::from(fd), &path.into())
    }

    /// Opens `path` for writing and [locks](Provider::lock) it. One that is in use is asked for again, for as long
    /// as `patience`.
    ///
    /// # Errors
    ///
    /// As for [`Provider::open`] and [`Provider::lock`].
    pub fn claim(path: &Path, patience: Duration) -> Result<Provider, ProviderError> {
        let begun = Instant::now();
        let mut opened = Provider::open(path, true);
        loop {
            let locked = opened.as_ref().map_or(Ok(()), Provider::lock);
            let in_use = matches!(locked, Err(ProviderError::InUse { .. }))
                || matches!(opened, Err(ProviderError::Mounted { .. }));
            let is_device = opened.as_ref().is_ok_and(Provider::is_device);
            let patience = if is_device { patience.max(UDEV) } else { patience };
            if !in_use || begun.elapsed() >= patience {
                return opened.and_then(|provider| locked.map(|()| provider));
            }
            thread::sleep(PAUSE);
            if opened.is_err() {
                opened = Provider::open(path, true);
            }
        }
    }

    /// Takes the exclusive lock that marks the provider as in use: flock(2), without waiting. It belongs to
    /// the open file: whoever shares the descriptor shares the lock, and it ends with the last of them.
    /// A file system that has no such locks is used without, with a warning.
    ///
    /// # Errors
    ///
    /// [`ProviderError::InUse`] when somebody else holds it.
    pub fn lock(&self) -> Result<(), ProviderError> {
        loop {
            match device::lock_exclusively(&self.file) {
                Ok(()) => return Ok(()),
                Err(Errno::EINTR) => {}
                Err(Errno::EWOULDBLOCK) => return Err(ProviderError::InUse { path: self.path.clone() }),
                Err(Errno::EOPNOTSUPP) => {
                    log::warn!(
                        "Unable to lock {} (operation not supported), but continuing.",
                        self.path.display()
                    );
                    return Ok(());
                }
                Err(errno) => {
                    return Err(ProviderError::Lock { path: self.path.clone(), error: errno.into() });
                }
            }
        }
    }

    /// Reads the metadata block and says which parts of it were good. A sector that cannot be read is a part that
    /// was not. Nothing is repaired.
    ///
    /// # Errors
    ///
    /// When nothing of it can be read, or what can be is no metadata. Whether the numbers fit the provider,
    /// [`Layout::open`] says.
    pub fn read_metadata_block(&self) -> Result<Reading, ProviderError> {
        let path = || self.path.clone();
        let available = usize::try_from(self.mediasize.min(METADATA_SIZE)).unwrap_or_default();
        let mut block = vec![0; available];
        let holes = self
            .read_around(&mut block, 0)
            .map_err(|error| ProviderError::ReadMetadata { path: path(), error })?;
        let unreadable: Vec<_> = holes.iter().map(|hole| hole.within.clone()).collect();
        let read = Metadata::read_around(&block, &unreadable);
        read.map_err(|error| match holes.into_iter().next() {
            None => ProviderError::BadMetadata { path: path(), error },
            Some(hole) if hole.within.len() == available => {
                ProviderError::ReadMetadata { path: path(), error: hole.error }
            }
            Some(hole) => ProviderError::UnreadableMetadata {
                path: path(),
                offset: hole.offset,
                length: hole.within.len(),
                error: hole.error,
                rest: error,
            },
        })
    }

    /// The same, and checks that the block is that of `resource`.
    ///
    /// # Errors
    ///
    /// As [`read_metadata_block`](Self::read_metadata_block), and [`ProviderError::NotPartOf`].
    pub fn read_metadata_block_of(&self, resource: &str) -> Result<Reading, ProviderError> {
        let reading = self.read_metadata_block()?;
        if reading.metadata.resource == resource {
            Ok(reading)
        } else {
            Err(ProviderError::NotPartOf { path: self.path.clone(), resource: resource.to_owned() })
        }
    }

    /// Reads the metadata, recovered from what is good of the block.
    ///
    /// # Errors
    ///
    /// As [`read_metadata_block`](Self::read_metadata_block).
    pub fn read_metadata(&self) -> Result<Metadata, ProviderError> {
        Ok(self.read_metadata_block()?.metadata)
    }

    /// Reads the metadata and checks that it is that of `resource`.
    ///
    /// # Errors
    ///
    /// As [`read_metadata_block_of`](Self::read_metadata_block_of).
    pub fn read_metadata_of(&self, resource: &str) -> Result<Metadata, ProviderError> {
        Ok(self.read_metadata_block_of(resource)?.metadata)
    }

    /// Reads the metadata of `resource` for a caller that is going to change it: it is durable when this returns,
    /// even if the process that saved it was killed before its flush, and a block of which a part had to be
    /// recovered is whole again, which the next save relies on. `state` says what was found; what was not
    /// sound is logged.
    ///
    /// # Errors
    ///
    /// As [`read_metadata_block_of`](Self::read_metadata_block_of); [`ProviderError::WriteMetadata`] when the block cannot
    /// be repaired or flushed.
    pub fn recover_metadata_of(&self, resource: &str) -> Result<Reading, ProviderError> {
        let reading = self.read_metadata_block_of(resource)?;
        if reading.state.is_sound() {
            self.flush_if_known()
                .map_err(|error| ProviderError::WriteMetadata { path: self.path.clone(), error })?;
        } else {
            log::warn!(
                "Metadata on {} was not whole: {}. Saving it again.",
                self.path.display(),
                reading.state
            );
            self.write_metadata(&reading.metadata)?;
        }
        Ok(reading)
    }

    /// Saves the metadata durably, in the order that keeps the state before it until the new one is safe.
    ///
    /// # Errors
    ///
    /// When it cannot be written or flushed: then the disk holds the state before or the new one. A disk that
    /// knows no flush has no cache to lose, which is no error.
    pub fn write_metadata(&self, metadata: &Metadata) -> Result<(), ProviderError> {
        self.write_block(&metadata.writes(self.sectorsize))
    }

    /// Makes a fresh provider of it: an empty map and `metadata`, durably.
    ///
    /// Whenever the power goes, there is never a block that describes a map which is not its own: the old
    /// metadata is gone before the map is touched, the new one comes when the map is durable.
    ///
    /// # Errors
    ///
    /// When something cannot be written or flushed; the provider then holds its old metadata, none, or the
    /// new one.
    pub fn initialize(&self, metadata: &Metadata, layout: &Layout) -> Result<(), ProviderError> {
        self.write_block(&Metadata::erasing_writes(self.sectorsize))?;
        self.write_zeros(layout.map_offset(), layout.map_capacity())
            .map_err(|error| ProviderError::WriteMap { path: self.path.clone(), error })?;
        self.write_metadata(metadata)
    }

    /// Makes everything written so far durable: the file system's and the disk's caches are flushed.
    ///
    /// # Errors
    ///
    /// The system's, unchanged: a disk that cannot flush answers `EOPNOTSUPP` (Linux never says so).
    pub fn flush(&self) -> io::Result<()> {
        device::flush(&self.file, self.is_device)
    }

    /// Has the system forget what it has cached of the provider and takes for written. A flush that failed has
    /// perhaps left there what the disk does not hold; a worker that starts is to see what it does. On FreeBSD,
    /// where disks have no page cache, this does nothing.
    ///
    /// # Errors
    ///
    /// What posix_fadvise(2) says.
    pub fn forget_cached(&self) -> io::Result<()> {
        device::forget_cached(&self.file)
    }

    /// The open file, for positioned reads and writes.
    pub fn as_file(&self) -> &File {
        &self.file
    }

    /// The open file alone; the lock stays with it.
    pub fn into_file(self) -> File {
        self.file
    }

    /// The path that it was opened by.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its size in bytes. Not always a multiple of the sector size for a regular file.
    pub fn mediasize(&self) -> u64 {
        self.mediasize
    }

    /// Its sector size in bytes, as the device says; [`FILE_SECTORSIZE`] for a regular file.
    pub fn sectorsize(&self) -> u32 {
        self.sectorsize
    }

    /// Whether it is a disk rather than a regular file.
    pub fn is_device(&self) -> bool {
        self.is_device
    }

    /// One after the other, each durable before the next.
    fn write_block(&self, writes: &[(u64, Vec<u8>)]) -> Result<(), ProviderError> {
        for (offset, bytes) in writes {
            self.write_around(bytes, *offset)
                .and_then(|()| self.flush_if_known())
                .map_err(|error| ProviderError::WriteMetadata { path: self.path.clone(), error })?;
        }
        Ok(())
    }

    fn write_zeros(&self, mut offset: u64, mut length: u64) -> io::Result<()> {
        let zeros = vec![0; ZEROS];
        while length > 0 {
            let piece = usize::try_from(length).unwrap_or(ZEROS).min(ZEROS);
            let (piece, _) = zeros.split_at(piece);
            self.write_around(piece, offset)?;
            offset = offset.saturating_add(piece.len() as u64);
            length = length.saturating_sub(piece.len() as u64);
        }
        self.flush_if_known()
    }

    fn flush_if_known(&self) -> io::Result<()> {
        match self.flush() {
            Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => Ok(()),
            result => result,
        }
    }

    fn measure(file: File, path: &Path) -> Result<Provider, ProviderError> {
        let stat = |error| ProviderError::Stat { path: path.to_owned(), error };
        let metadata = file.metadata().map_err(stat)?;
        let (mediasize, sectorsize, is_device) = if metadata.is_file() {
            (metadata.len(), FILE_SECTORSIZE, false)
        } else if device::is_disk(metadata.file_type()) {
            let size = device::mediasize(&file)
                .map_err(|error| ProviderError::Mediasize { path: path.to_owned(), error })?;
            let sector = device::sectorsize(&file)
                .map_err(|error| ProviderError::Sectorsize { path: path.to_owned(), error })?;
            (size, sector, true)
        } else {
            return Err(ProviderError::NotAProvider { path: path.to_owned() });
        };
        Ok(Provider {
            file,
            path: path.to_owned(),
            mediasize,
            sectorsize,
            is_device,
            #[cfg(test)]
            faults: tests::Faults::default(),
        })
    }
}

/// Bytes that are zeroed at a time: a multiple of every sector size.
const ZEROS: usize = 1 << 20;

/// How long [`Provider::claim`] asks for a disk at least. Linux: udev locks one for some milliseconds to look what
/// is on it, each time that somebody closes it after writing. That is no use of the disk.
const UDEV: Duration = Duration::from_millis(500);
/// How long it waits in between.
const PAUSE: Duration = Duration::from_millis(50);

#[cfg(test)]
mod tests;
