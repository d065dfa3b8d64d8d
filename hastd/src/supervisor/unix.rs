//! Listening unix sockets: made without taking one from a process that uses it, removed when done.

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use nix::sys::stat::{Mode, umask};
use socket2::{Domain, SockAddr, Socket, Type};

/// Connections that wait to be accepted.
const BACKLOG: i32 = 128;

/// A listening socket, non-blocking, for its owner only (0600). Dropping it removes its file.
#[derive(Debug)]
pub(super) struct UnixListener {
    socket: Socket,
    path: PathBuf,
    /// Device and inode of the file, so that never another one's is removed.
    identity: (u64, u64),
}

impl UnixListener {
    /// Binds `path`. What an ended process left there is replaced.
    pub(super) fn bind(path: &Path) -> Result<UnixListener, BindError> {
        let failed = |error| BindError::Failed { path: path.to_owned(), error };
        let address = SockAddr::unix(path).map_err(failed)?;
        match fs::symlink_metadata(path) {
            Ok(there) if !there.file_type().is_socket() => {
                return Err(BindError::NotASocket { path: path.to_owned() });
            }
            Ok(_) if answers(&address).map_err(failed)? => {
                return Err(BindError::InUse { path: path.to_owned() });
            }
            Ok(_) => fs::remove_file(path).map_err(failed)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(failed(error)),
        }
        let socket = Socket::new(Domain::UNIX, Type::STREAM, None).map_err(failed)?;
        socket.set_nonblocking(true).map_err(failed)?;
        // The file has its mode from the beginning. No other thread creates files.
        let mask = umask(Mode::from_bits_truncate(0o177));
        let bound = socket.bind(&address);
        umask(mask);
        bound.map_err(failed)?;
        let there = fs::symlink_metadata(path).map_err(failed)?;
        let listener = UnixListener { socket, path: path.to_owned(), identity: (there.dev(), there.ino()) };
        listener.socket.listen(BACKLOG).map_err(failed)?;
        Ok(listener)
    }

    /// As [`UnixListener::bind`], with the directories down to the file created where they are missing.
    pub(super) fn bind_with_directories(path: &Path) -> Result<UnixListener, BindError> {
        if let Some(directory) = path.parent() {
            fs::DirBuilder::new()
                .recursive(true)
                .mode(0o755)
                .create(directory)
                .map_err(|error| BindError::Failed { path: directory.to_owned(), error })?;
        }
        UnixListener::bind(path)
    }

    /// The listening socket.
    pub(super) fn socket(&self) -> &Socket {
        &self.socket
    }

    /// Where it is.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

impl AsFd for UnixListener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Drop for UnixListener {
    fn drop(&mut self) {
        match fs::symlink_metadata(&self.path) {
            Ok(there) if (there.dev(), there.ino()) == self.identity => {
                if let Err(error) = fs::remove_file(&self.path) {
                    log::warn!("Unable to remove {}: {}.", self.path.display(), hast_log::error_text(&error));
                }
            }
            _ => {}
        }
    }
}

/// Whether somebody listens there.
fn answers(address: &SockAddr) -> io::Result<bool> {
    let probe = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    // A listener whose queue is full would make a blocking connect wait for it.
    probe.set_nonblocking(true)?;
    match probe.connect(address) {
        Ok(()) => Ok(true),
        Err(error) => match error.kind() {
            io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound => Ok(false),
            _ if matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EINPROGRESS)) => Ok(true),
            _ => Err(error),
        },
    }
}

/// Why there is no listening socket.
#[derive(Debug, thiserror::Error)]
pub(super) enum BindError {
    /// Somebody answers there.
    #[error("{} is in use: another process, probably hastd, listens on it.", path.display())]
    InUse {
        /// The path.
        path: PathBuf,
    },
    /// There is a file, and it is not removed for this.
    #[error("{} exists and is not a socket. Remove it or configure another path.", path.display())]
    NotASocket {
        /// The path.
        path: PathBuf,
    },
    /// The system refused.
    #[error("Unable to listen on {}: {}.", path.display(), hast_log::error_text(error))]
    Failed {
        /// The path.
        path: PathBuf,
        /// The system's reason.
        error: io::Error,
    },
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::net::UnixStream;

    #[test]
    fn one_that_answers_is_kept_and_one_that_does_not_is_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a/b/x.sock");
        let first = UnixListener::bind_with_directories(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(matches!(UnixListener::bind(&path), Err(BindError::InUse { .. })));
        UnixStream::connect(&path).unwrap();

        // A process that was killed leaves the file without anybody behind it.
        let copy = directory.path().join("a/b/y.sock");
        fs::rename(&path, &copy).unwrap();
        drop(first);
        assert!(copy.exists());
        let second = UnixListener::bind(&copy).unwrap();
        UnixStream::connect(&copy).unwrap();
        drop(second);
        assert!(!copy.exists());
    }

    #[test]
    fn a_file_that_is_no_socket_is_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("precious");
        fs::write(&path, "data").unwrap();
        assert!(matches!(UnixListener::bind(&path), Err(BindError::NotASocket { .. })));
        assert_eq!(fs::read_to_string(&path).unwrap(), "data");
    }
}
