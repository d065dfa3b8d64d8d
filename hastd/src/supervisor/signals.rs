//! Signals as events of the loop.

use std::io::{self, Read};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use polling::Poller;
use signal_hook::consts::{SIGCHLD, SIGHUP, SIGINT, SIGTERM};

use crate::watch::Watched;

/// What has arrived since the last look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Received {
    /// SIGINT or SIGTERM: end.
    pub(super) end: bool,
    /// SIGHUP: read the configuration again.
    pub(super) reload: bool,
    /// SIGCHLD: a worker or a hook ended.
    pub(super) child: bool,
}

/// The signals that the supervisor listens to.
#[derive(Debug)]
pub(super) struct Signals {
    wake: Watched<UnixStream>,
    end: Arc<AtomicBool>,
    reload: Arc<AtomicBool>,
    child: Arc<AtomicBool>,
}

impl Signals {
    /// From now on signals are events under `key`. (SIGPIPE is ignored already: Rust's runtime sees to it.)
    pub(super) fn listen(poller: &Arc<Poller>, key: usize) -> io::Result<Signals> {
        let (ours, handlers) = UnixStream::pair()?;
        ours.set_nonblocking(true)?;
        let signals = Signals {
            wake: Watched::new(poller, key, ours, true, false)?,
            end: Arc::default(),
            reload: Arc::default(),
            child: Arc::default(),
        };
        for (signal, flag) in [
            (SIGINT, &signals.end),
            (SIGTERM, &signals.end),
            (SIGHUP, &signals.reload),
            (SIGCHLD, &signals.child),
        ] {
            // The flag first: whoever is woken finds it set.
            signal_hook::flag::register(signal, Arc::clone(flag))?;
            signal_hook::low_level::pipe::register(signal, handlers.try_clone()?)?;
        }
        Ok(signals)
    }

    /// Takes what has arrived.
    pub(super) fn take(&mut self) -> Received {
        if let Some(mut wake) = self.wake.get() {
            let mut bytes = [0; 64];
            while matches!(wake.read(&mut bytes), Ok(1..)) {}
        }
        let take = |flag: &AtomicBool| flag.swap(false, Ordering::Relaxed);
        Received { end: take(&self.end), reload: take(&self.reload), child: take(&self.child) }
    }
}
