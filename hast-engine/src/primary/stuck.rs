//! A connection that comes up and then passes nothing: large packets that get lost on the way, or a secondary whose disk
//! hangs. Each time it comes up, what is written is held up until the secondary counts as gone; so the attempts become
//! rarer, as for a secondary that cannot be connected to, until something as large as what got stuck was answered.
//!
//! Owns what got stuck.

use core::time::Duration;

use hast_net::message::Command;

/// An answer that has been awaited for so long when the connection is given up, got stuck.
const STUCK_AFTER: Duration = Duration::from_secs(1);
/// The longest wait for the next attempt because of that.
const WAIT_MOST: Duration = Duration::from_secs(60);
/// A connection that has lasted for so long has not got stuck as the one before, whatever passed.
const LASTING: Duration = Duration::from_secs(600);

/// What got stuck on the last connection, if anything did.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Stuck(Option<Request>);

#[derive(Clone, Copy, Debug)]
struct Request {
    command: Command,
    /// Bytes, of the data that it sends or fetches.
    length: u64,
}

impl Stuck {
    /// Nothing as large has been answered since.
    pub(super) fn is_stuck(self) -> bool {
        self.0.is_some()
    }

    /// The secondary has carried this out: if it is as large as what got stuck, the connection passes that; true then.
    pub(super) fn answered(&mut self, command: Command, length: u64) -> bool {
        let passes = |stuck: &mut Request| command == stuck.command && length >= stuck.length;
        self.0.take_if(passes).is_some()
    }

    /// The connection is given up after it has lasted for `lasted`: true if nothing got stuck for so long that what did is of the
    /// past.
    pub(super) fn is_over(&mut self, lasted: Duration) -> bool {
        self.0.take_if(|_| lasted >= LASTING).is_some()
    }

    /// The connection is given up while the answer to this, the oldest read or write, has been awaited for
    /// `awaited`. What the administrator is told, the first time.
    pub(super) fn given_up(&mut self, command: Command, length: u64, awaited: Duration) -> Option<String> {
        if awaited < STUCK_AFTER {
            return None;
        }
        let what = if command == Command::Read { "A read" } else { "A write" };
        let first = self.0.replace(Request { command, length }).is_none();
        first.then(|| {
            format!(
                "{what} of {length} bytes got stuck for {} seconds though the nodes were connected. If that comes again, \
                 look at the path between them (do packets of its MTU pass?) and at the other node's disk.",
                awaited.as_secs()
            )
        })
    }

    /// How long to wait for the next attempt at least, if what is written has been held up for `awaited` more than once: what
    /// is written goes on twice as long as it was held up.
    pub(super) fn wait(awaited: Duration) -> Duration {
        (awaited * 2).min(WAIT_MOST)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(5);

    #[test]
    fn the_administrator_is_told_once() {
        let mut stuck = Stuck::default();
        let told = stuck.given_up(Command::Write, 131_072, LONG);
        assert!(told.is_some_and(|text| text.starts_with("A write of 131072 bytes got stuck for 5 seconds")));
        assert_eq!(stuck.given_up(Command::Write, 131_072, LONG), None);
        assert!(stuck.answered(Command::Write, 131_072));
        assert!(stuck.given_up(Command::Read, 512, LONG).is_some_and(|text| text.starts_with("A read")));
    }

    #[test]
    fn what_was_asked_just_now_is_not_stuck() {
        let mut stuck = Stuck::default();
        assert_eq!(stuck.given_up(Command::Write, 4096, Duration::from_millis(999)), None);
        assert!(!stuck.is_stuck());
        assert!(stuck.given_up(Command::Write, 4096, STUCK_AFTER).is_some() && stuck.is_stuck());
    }

    #[test]
    fn what_is_smaller_or_goes_the_other_way_proves_nothing() {
        let mut stuck = Stuck::default();
        stuck.given_up(Command::Write, 4096, LONG);
        for (command, length) in [
            (Command::Write, 4095),
            (Command::Flush, 0),
            (Command::Read, 131_072),
            (Command::Delete, 131_072), // carries nothing
        ] {
            assert!(!stuck.answered(command, length));
            assert!(stuck.is_stuck());
        }
        assert!(stuck.answered(Command::Write, 4096));
        assert!(!stuck.is_stuck() && !stuck.answered(Command::Write, 4096));
    }

    #[test]
    fn a_connection_that_lasts_has_not_got_stuck() {
        let mut stuck = Stuck::default();
        assert!(!stuck.is_over(LASTING));
        stuck.given_up(Command::Write, 131_072, LONG);
        assert!(!stuck.is_over(LASTING - Duration::from_secs(1)) && stuck.is_stuck());
        assert!(stuck.is_over(LASTING) && !stuck.is_stuck());
    }

    #[test]
    fn the_pause_is_twice_as_long_and_bounded() {
        assert_eq!(Stuck::wait(LONG), LONG * 2);
        assert_eq!(Stuck::wait(Duration::from_secs(3600)), WAIT_MOST);
    }
}
