//! Descriptors registered with the poller: the one place that tells the system what to watch.

use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;

use polling::{Event, PollMode, Poller};

/// A descriptor that the poller watches, level-triggered, for as long as this value lives.
#[derive(Debug)]
pub(crate) struct Watched<S: AsFd> {
    /// Absent only after [`Watched::into_inner`].
    source: Option<S>,
    poller: Arc<Poller>,
    key: usize,
    read: bool,
    write: bool,
}

impl<S: AsFd> Watched<S> {
    /// Takes `source`, to be reported under `key`, and watches it for what is of interest.
    pub(crate) fn new(
        poller: &Arc<Poller>,
        key: usize,
        source: S,
        read: bool,
        write: bool,
    ) -> io::Result<Watched<S>> {
        let poller = Arc::clone(poller);
        let mut watched = Watched { source: Some(source), poller, key, read: false, write: false };
        watched.want(read, write)?;
        Ok(watched)
    }

    /// The key that events carry.
    pub(crate) fn key(&self) -> usize {
        self.key
    }

    /// What is watched; absent only in a value that is being taken apart.
    pub(crate) fn get(&self) -> Option<&S> {
        self.source.as_ref()
    }

    /// Says which of reading and writing is of interest from now on.
    ///
    /// With neither, the system does not know the descriptor at all: a hang-up is reported whatever is asked
    /// for, and would otherwise keep the loop spinning.
    pub(crate) fn want(&mut self, read: bool, write: bool) -> io::Result<()> {
        if (read, write) == (self.read, self.write) {
            return Ok(());
        }
        let Some(source) = &self.source else { return Ok(()) };
        let event = Event::new(self.key, read, write);
        match (self.read || self.write, read || write) {
            (false, _) => {
                // SAFETY: the poller demands that a source is deleted before its descriptor closes. This
                // value owns the source, gives out shared references only, and deletes the registration in
                // `forget`, which both ways of giving the source up (`into_inner`, `drop`) call first.
                unsafe { self.poller.add_with_mode(source.as_fd().as_raw_fd(), event, PollMode::Level)? };
            }
            (true, true) => self.poller.modify_with_mode(source.as_fd(), event, PollMode::Level)?,
            (true, false) => self.poller.delete(source.as_fd())?,
        }
        (self.read, self.write) = (read, write);
        Ok(())
    }

    /// Stops watching and gives the descriptor back.
    pub(crate) fn into_inner(mut self) -> Option<S> {
        self.forget();
        self.source.take()
    }

    fn forget(&mut self) {
        if let Some(source) = &self.source
            && (self.read || self.write)
        {
            // Fails only if the poller does not know the source any more, which is what is wanted.
            let _ = self.poller.delete(source.as_fd());
            (self.read, self.write) = (false, false);
        }
    }
}

impl<S: AsFd> Drop for Watched<S> {
    fn drop(&mut self) {
        self.forget();
    }
}
