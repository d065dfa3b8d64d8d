//! Ends the demo tidily when it is interrupted or hangs.

use std::path::{Path, PathBuf};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hast_tests::{Context, Failure};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

/// Knows what must be gone at the end. Clones share it.
#[derive(Clone)]
pub(crate) struct Guard {
    state: Arc<Mutex<State>>,
}

struct State {
    /// Process groups of the nodes that were started.
    groups: Vec<Pid>,
    directory: PathBuf,
    dismissed: bool,
}

enum End {
    Signal,
}

impl Guard {
    /// Begins to watch for signals and the limit.
    pub(crate) fn watch(directory: &Path, limit: Duration) -> Result<Guard, Failure> {
        let state = State { groups: Vec::new(), directory: directory.to_path_buf(), dismissed: false };
        let guard = Guard { state: Arc::new(Mutex::new(state)) };
        let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP]).context("signals")?;
        let (sender, receiver): (Sender<End>, _) = channel();
        std::thread::spawn(move || {
            for _ in signals.forever() {
                if sender.send(End::Signal).is_err() {
                    return;
                }
            }
        });
        let watcher = guard.clone();
        std::thread::spawn(move || match receiver.recv_timeout(limit) {
            Ok(End::Signal) => watcher.end("interrupted", 130),
            Err(RecvTimeoutError::Timeout) => {
                watcher.end(&format!("not finished after {} s", limit.as_secs()), 1);
            }
            Err(RecvTimeoutError::Disconnected) => {}
        });
        Ok(guard)
    }

    /// A process group that must be gone at the end.
    pub(crate) fn started(&self, group: Pid) {
        self.lock().groups.push(group);
    }

    /// A process group that is gone already; its number may be used by others from now on.
    pub(crate) fn ended(&self, group: Pid) {
        self.lock().groups.retain(|known| *known != group);
    }

    /// From now on everything stays.
    pub(crate) fn dismiss(&self) {
        self.lock().dismissed = true;
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Kills, removes, says the verdict and exits. Holds the lock to the end, so that nothing is
    /// started meanwhile.
    fn end(&self, why: &str, code: i32) {
        let state = self.lock();
        if state.dismissed {
            return;
        }
        for group in &state.groups {
            // Gone already is as good.
            let _ = killpg(*group, Signal::SIGKILL);
        }
        let _ = std::fs::remove_dir_all(&state.directory);
        println!("\nFAIL: {why}");
        std::process::exit(code);
    }
}
