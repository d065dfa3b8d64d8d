//! `hastctl stop`: ends the daemon that the pidfile names, and waits for its end.
//!
//! A process id alone proves nothing, as it may be another program's by now. What counts is the lock that a
//! running hastd holds on its pidfile.

use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use hast_conf::Config;
use hast_log::error_text;
use hast_net::control;
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::client::longest_change;
use crate::exit;
use crate::role::warn_of_users;

/// How often it is looked whether the daemon has ended.
const PAUSE: Duration = Duration::from_millis(50);

/// How many pauses a daemon has to write its pidfile once it has locked it.
const STARTING: u32 = 40;

/// How often somebody who waits is told that we do.
const REMINDER: Duration = Duration::from_secs(10);

/// Sends the daemon of `config` a SIGTERM and returns when it has ended. Its workers finish their writes first, so
/// this takes as long as they take, which has a bound. Programs that use a device which goes with it are named.
pub(crate) fn stop(config: &Config) -> Result<(), StopError> {
    let pidfile = config.pidfile.as_path();
    let not_running = || StopError::NotRunning { pidfile: pidfile.to_owned() };
    let read = |error| StopError::Read { pidfile: pidfile.to_owned(), error };
    let file = match File::open(pidfile) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Err(not_running()),
        result => result.map_err(read)?,
    };
    if !is_locked(&file).map_err(read)? {
        return Err(not_running());
    }
    let mut text = fs::read_to_string(pidfile).map_err(read)?;
    for _ in 0..STARTING {
        // A daemon that has only just started writes it in a moment.
        if !text.is_empty() {
            break;
        }
        thread::sleep(PAUSE);
        text = fs::read_to_string(pidfile).map_err(read)?;
    }
    let pid = process_in(&text).ok_or_else(|| StopError::NoProcess { pidfile: pidfile.to_owned() })?;
    warn_of_users(config, &[control::ALL.to_owned()]);
    match kill(pid, Signal::SIGTERM) {
        Ok(()) => log::debug!("Sent SIGTERM to hastd ({pid})."),
        Err(Errno::ESRCH) => return Err(not_running()),
        Err(errno) => return Err(StopError::Kill { pid, error: errno.into() }),
    }
    let (begun, longest) = (Instant::now(), longest_change(config));
    let mut reminded = begun;
    while is_locked(&file).map_err(read)? && kill(pid, None) != Err(Errno::ESRCH) {
        if begun.elapsed() >= longest {
            return Err(StopError::Late { pid, seconds: longest.as_secs() });
        }
        if reminded.elapsed() >= REMINDER {
            log::info!("Waiting for hastd ({pid}) to stop its workers, {} s at most.", longest.as_secs());
            reminded = Instant::now();
        }
        thread::sleep(PAUSE);
    }
    log::debug!("hastd ({pid}) has stopped.");
    Ok(())
}

/// Why no daemon was stopped.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StopError {
    #[error("hastd is not running: nobody holds the lock on its pidfile {}.", pidfile.display())]
    NotRunning { pidfile: PathBuf },
    #[error("Unable to read pidfile {}: {}.", pidfile.display(), error_text(error))]
    Read { pidfile: PathBuf, error: io::Error },
    #[error(
        "hastd is running, but its pidfile {} holds no process id (yet). Try again, or end it where it was started.",
        pidfile.display()
    )]
    NoProcess { pidfile: PathBuf },
    #[error("Unable to stop hastd ({pid}): {}.", error_text(error))]
    Kill { pid: Pid, error: io::Error },
    #[error(
        "hastd ({pid}) was told to end and has not done so for {seconds} s: its log may say what it waits for."
    )]
    Late { pid: Pid, seconds: u64 },
}

impl StopError {
    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            StopError::NotRunning { .. } | StopError::Kill { .. } => exit::OSERR,
            StopError::Read { .. } => exit::IOERR,
            StopError::NoProcess { .. } | StopError::Late { .. } => exit::TEMPFAIL,
        }
    }
}

/// Whether somebody else holds an exclusive lock on `file`. Asked by taking a shared one, for a moment.
fn is_locked(file: &File) -> io::Result<bool> {
    match Flock::lock(file.try_clone()?, FlockArg::LockSharedNonblock) {
        Ok(_lock) => Ok(false),
        Err((_, Errno::EWOULDBLOCK)) => Ok(true),
        Err((_, errno)) => Err(errno.into()),
    }
}

/// The process that a pidfile names. Never 0, 1 or a group of processes.
fn process_in(text: &str) -> Option<Pid> {
    text.trim().parse::<i32>().ok().filter(|pid| *pid > 1).map(Pid::from_raw)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_process_is_a_process() {
        assert_eq!(process_in("4711"), Some(Pid::from_raw(4711)));
        assert_eq!(process_in(" 4711\n"), Some(Pid::from_raw(4711)));
        for text in ["", "0", "1", "-1", "-4711", "x", "4711 2", "99999999999"] {
            assert_eq!(process_in(text), None, "{text}");
        }
    }
}
