//! Signals of a worker process, turned into bytes on a socket.

use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use signal_hook::SigId;
use signal_hook::consts::{SIGHUP, SIGINT, SIGPIPE, SIGTERM};
use signal_hook::low_level;

/// Becomes readable when the process is told to end. Catches the signals for as long as it lives.
pub(super) struct Signals {
    pipe: UnixStream,
    registered: Vec<SigId>,
}

impl Signals {
    /// SIGTERM and SIGINT (which a terminal sends to the whole process group) ask for an orderly end;
    /// SIGHUP is the supervisor's, and `pkill -HUP hastd` reaches the workers too; a broken connection is
    /// an error of that connection, never SIGPIPE.
    pub(super) fn catch() -> io::Result<Signals> {
        let (pipe, sender) = UnixStream::pair()?;
        pipe.set_nonblocking(true)?;
        let mut signals = Signals { pipe, registered: Vec::new() };
        for signal in [SIGTERM, SIGINT] {
            let id = low_level::pipe::register(signal, sender.try_clone()?)?;
            signals.registered.push(id);
        }
        for signal in [SIGHUP, SIGPIPE] {
            let id = signal_hook::flag::register(signal, Arc::new(AtomicBool::new(false)))?;
            signals.registered.push(id);
        }
        Ok(signals)
    }

    /// Whether the process has been told to end since the last time.
    pub(super) fn ended(&self) -> bool {
        let mut bytes = [0; 64];
        matches!((&self.pipe).read(&mut bytes), Ok(n) if n > 0)
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pipe.as_fd()
    }
}

impl Drop for Signals {
    fn drop(&mut self) {
        for id in self.registered.drain(..) {
            low_level::unregister(id);
        }
    }
}
