//! A node's clock: the engine's times are its own, not the world's.

use core::time::Duration;

/// A clock that goes at a rate of its own, and stands still now and then.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    /// It shows this much ...
    shown: Duration,
    /// ... when the world's time was this, ...
    at: Duration,
    /// ... and goes on by so many thousandths.
    rate: u32,
}

/// The world's own rate.
const EVEN: u32 = 1000;

impl Clock {
    /// The world's time.
    pub(crate) fn even() -> Clock {
        Clock { shown: Duration::ZERO, at: Duration::ZERO, rate: EVEN }
    }

    /// One that shows `shown` at the beginning of the world, and goes at `rate` thousandths, 1 and up, from then on.
    pub(crate) fn new(shown: Duration, rate: u32) -> Clock {
        Clock { shown, rate: rate.max(1), ..Clock::even() }
    }

    /// What it shows when the world's time is `now`.
    pub(crate) fn shows(&self, now: Duration) -> Duration {
        let passed = now.saturating_sub(self.at);
        self.shown + if self.rate == EVEN { passed } else { passed / EVEN * self.rate }
    }

    /// The world's time when it shows `time`, or a little later.
    pub(crate) fn world(&self, time: Duration) -> Duration {
        let passed = time.saturating_sub(self.shown);
        if self.rate == EVEN {
            return self.at + passed;
        }
        self.at + passed / self.rate * EVEN + Duration::from_micros(2)
    }

    /// It stands still from now on for so long, as far as the world is concerned.
    pub(crate) fn stop(&mut self, now: Duration, length: Duration) {
        (self.shown, self.at) = (self.shows(now), now + length);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moment_is_found_again() {
        let mut clock = Clock::new(Duration::from_secs(77), 1030);
        for seconds in [1, 50, 4_000] {
            let now = Duration::from_secs(seconds);
            let again = clock.world(clock.shows(now));
            assert!(again >= now.saturating_sub(Duration::from_micros(1)), "{again:?}");
            assert!(again < now + Duration::from_millis(5), "{again:?}");
        }
        let now = Duration::from_secs(5_000);
        let shown = clock.shows(now);
        clock.stop(now, Duration::from_secs(10));
        assert_eq!(clock.shows(now + Duration::from_secs(9)), shown);
        assert!(clock.shows(now + Duration::from_secs(11)) > shown);
        assert_eq!(Clock::even().world(Duration::from_secs(3)), Duration::from_secs(3));
    }
}
