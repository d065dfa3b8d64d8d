//! Waiting for events: asleep, or awake if they are about to come.
//!
//! To go to sleep and be woken takes tens of microseconds, longer than a small write to a cache or the answer of a
//! node nearby. While what the reactor waits for comes sooner than that, its thread looks for it again and again for
//! a moment before it sleeps, and lets any other thread have the processor in between. Nothing but speed depends on
//! it.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use polling::{Events, Poller};

/// Nobody stays awake for longer than this, or when waits take longer than this.
const AWAKE: Duration = Duration::from_micros(100);
/// What one wait counts at most: after a long one nobody stays awake until some were short.
const MOST: Duration = Duration::from_millis(1);
/// Waits that the average is over.
const MEMORY: u32 = 8;

/// The poller, and how long one has had to wait for it of late.
pub(super) struct Waiter {
    poller: Arc<Poller>,
    /// A wake-up says nothing but that there was one, and only if one sleeps.
    woken: Arc<AtomicBool>,
    mean: Duration,
}

impl Waiter {
    pub(super) fn new() -> io::Result<Waiter> {
        let poller = Arc::new(Poller::new()?);
        Ok(Waiter { poller, woken: Arc::default(), mean: MOST })
    }

    /// What events are to be registered with.
    pub(super) fn poller(&self) -> &Arc<Poller> {
        &self.poller
    }

    /// Ends a wait, from any thread.
    pub(super) fn waker(&self) -> impl Fn() + Send + Sync + 'static {
        let (poller, woken) = (Arc::clone(&self.poller), Arc::clone(&self.woken));
        move || {
            woken.store(true, Ordering::SeqCst);
            // Fails only when the poller is broken, and then waiting on it fails too.
            let _ = poller.notify();
        }
    }

    /// Waits for events, for a wake-up, or for as long as `patience` says. A signal may end it as well.
    pub(super) fn wait(&mut self, events: &mut Events, patience: Option<Duration>) -> io::Result<()> {
        let begun = Instant::now();
        let awake = patience.map_or(self.awake(), |patience| patience.min(self.awake()));
        let mut waited = Duration::ZERO;
        while waited < awake && !self.look(events, Some(Duration::ZERO))? {
            thread::yield_now();
            waited = begun.elapsed();
        }
        if waited >= awake {
            self.look(events, patience.map(|patience| patience.saturating_sub(waited)))?;
        }
        self.add(begun.elapsed());
        Ok(())
    }

    /// Whether there is anything.
    fn look(&self, events: &mut Events, patience: Option<Duration>) -> io::Result<bool> {
        events.clear();
        match self.poller.wait(events, patience) {
            Err(error) if error.kind() != io::ErrorKind::Interrupted => Err(error),
            _ => Ok(self.woken.swap(false, Ordering::SeqCst) || !events.is_empty()),
        }
    }

    /// How long to stay awake.
    fn awake(&self) -> Duration {
        if self.mean < AWAKE { (self.mean * 2).min(AWAKE) } else { Duration::ZERO }
    }

    fn add(&mut self, waited: Duration) {
        self.mean = (self.mean * (MEMORY - 1) + waited.min(MOST)) / MEMORY;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(waits: &[(u32, u64)]) -> Duration {
        let mut waiter = Waiter::new().unwrap();
        for (count, micros) in waits {
            for _ in 0..*count {
                waiter.add(Duration::from_micros(*micros));
            }
        }
        waiter.awake()
    }

    #[test]
    fn one_stays_awake_only_for_what_is_about_to_come() {
        assert_eq!(after(&[]), Duration::ZERO);
        assert_eq!(after(&[(100, 150)]), Duration::ZERO);
        assert_eq!(after(&[(100, 80)]), AWAKE);
        let short = after(&[(100, 10)]);
        assert!(short > Duration::ZERO && short < AWAKE / 2, "{short:?}");
        // Whoever has nothing to do sleeps at once.
        assert_eq!(after(&[(100, 10), (1, 1_000_000)]), Duration::ZERO);
        assert!(after(&[(100, 10), (1, 1_000_000), (30, 10)]) > Duration::ZERO);
    }

    /// Asleep or awake, a wake-up ends the wait, and none is lost.
    #[test]
    fn a_wake_up_ends_the_wait() {
        for mean in [MOST, Duration::from_micros(90)] {
            let mut waiter = Waiter::new().unwrap();
            let wake = waiter.waker();
            let mut events = Events::new();
            let (sender, receiver) = std::sync::mpsc::channel();
            let other = thread::spawn(move || {
                while receiver.recv().is_ok() {
                    wake();
                }
            });
            for _ in 0..2000 {
                waiter.mean = mean;
                sender.send(()).unwrap();
                let begun = Instant::now();
                waiter.wait(&mut events, Some(Duration::from_secs(30))).unwrap();
                assert!(begun.elapsed() < Duration::from_secs(30), "not woken");
            }
            drop(sender);
            other.join().unwrap();
        }
    }
}
