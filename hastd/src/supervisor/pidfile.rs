//! The pidfile: who is running, and the lock that keeps a second instance out.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

/// An open, locked pidfile. Dropping it removes it.
#[derive(Debug)]
pub(super) struct Pidfile {
    path: PathBuf,
    file: Flock<File>,
}

impl Pidfile {
    /// Creates or takes over the file at `path`; does not write yet.
    pub(super) fn open(path: &Path) -> Result<Pidfile, PidfileError> {
        let failed = |error| PidfileError::Open { path: path.to_owned(), error };
        // More than one attempt only if others remove the file at the same time.
        for _ in 0..10 {
            let file = OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .mode(0o600)
                .open(path)
                .map_err(failed)?;
            let file = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                Ok(file) => file,
                Err((file, Errno::EWOULDBLOCK)) => {
                    return Err(PidfileError::AlreadyRunning { path: path.to_owned(), pid: read_pid(file) });
                }
                Err((_, error)) => return Err(failed(error.into())),
            };
            // The former holder removes its file while it still has the lock: what we locked may be gone.
            if is_at(&file, path) {
                return Ok(Pidfile { path: path.to_owned(), file });
            }
        }
        Err(failed(io::Error::from(io::ErrorKind::ResourceBusy)))
    }

    /// Replaces the contents by this process's id.
    pub(super) fn write(&mut self) -> io::Result<()> {
        self.file.set_len(0)?;
        self.file.rewind()?;
        self.file.write_all(std::process::id().to_string().as_bytes())?;
        self.file.flush()
    }

    /// Where it is.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Pidfile {
    fn drop(&mut self) {
        if is_at(&self.file, &self.path)
            && let Err(error) = fs::remove_file(&self.path)
        {
            log::warn!("Unable to remove pidfile {}: {}.", self.path.display(), hast_log::error_text(&error));
        }
    }
}

/// Why there is no pidfile.
#[derive(Debug, thiserror::Error)]
pub(super) enum PidfileError {
    /// Somebody holds the lock.
    #[error("Another hastd is already running, pidfile: {}, pid: {}.", path.display(), shown(pid))]
    AlreadyRunning {
        /// The pidfile.
        path: PathBuf,
        /// What it says, if it says anything.
        pid: Option<u32>,
    },
    /// Anything else.
    #[error("Unable to open or create pidfile {}: {}.", path.display(), hast_log::error_text(error))]
    Open {
        /// The pidfile.
        path: PathBuf,
        /// The system's reason.
        error: io::Error,
    },
}

fn shown(pid: &Option<u32>) -> String {
    pid.map_or_else(|| "unknown".to_owned(), |pid| pid.to_string())
}

/// The process id in the file. The other instance may not have written it yet: waits for it, briefly.
fn read_pid(mut file: File) -> Option<u32> {
    for _ in 0..20 {
        let mut text = String::new();
        file.rewind().ok()?;
        (&mut file).take(32).read_to_string(&mut text).ok()?;
        if let Ok(pid) = text.trim().parse() {
            return Some(pid);
        }
        thread::sleep(Duration::from_millis(5));
    }
    None
}

/// Whether `path` still leads to this very file.
fn is_at(file: &File, path: &Path) -> bool {
    match (file.metadata(), fs::symlink_metadata(path)) {
        (Ok(open), Ok(there)) => (open.dev(), open.ino()) == (there.dev(), there.ino()),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_written_locked_and_removed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("hastd.pid");
        fs::write(&path, "a long line of an earlier life\n").unwrap();
        let mut pidfile = Pidfile::open(&path).unwrap();
        pidfile.write().unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), std::process::id().to_string());

        let error = Pidfile::open(&path).unwrap_err();
        let PidfileError::AlreadyRunning { pid, .. } = &error else { panic!("{error}") };
        assert_eq!(*pid, Some(std::process::id()));
        assert!(error.to_string().contains("already running"));
        assert!(error.to_string().contains(&std::process::id().to_string()));

        drop(pidfile);
        assert!(!path.exists());
        drop(Pidfile::open(&path).unwrap());
    }

    #[test]
    fn somebody_elses_file_is_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("hastd.pid");
        let pidfile = Pidfile::open(&path).unwrap();
        fs::remove_file(&path).unwrap();
        fs::write(&path, "1").unwrap();
        drop(pidfile);
        assert!(path.exists());
    }
}
