//! Which of several requests for a group counts: the one that was *made* last, whenever its process gets to say so.
//!
//! A request is made when its process is forked. Its key is that moment, as exactly as the kernel tells it, and the process
//! id, which tells apart what the moment does not: ids are given out in order. The file `<group>.request` always has the latest
//! request; the run that works on the group holds `<group>.lock`, and all that are there share `<group>.runs`.

use std::cmp::Ordering;
use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::{Duration, Instant};

use nix::fcntl::{Flock, FlockArg};

use crate::run::Role;

use super::state;

/// Between two looks at a lock.
const MOMENT: Duration = Duration::from_millis(20);
/// Process ids that are further apart than this, at one moment, have wrapped around in between.
const FAR: u32 = 1 << 14;

/// When a request was made: ticks since the system was started (Linux), or microseconds (FreeBSD), and a process id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Key {
    pub(crate) moment: u64,
    pub(crate) pid: u32,
}

impl Key {
    /// Whether the other request was made before this one.
    fn is_after(self, other: Key) -> bool {
        match self.moment.cmp(&other.moment) {
            Ordering::Greater => true,
            Ordering::Less => false,
            Ordering::Equal => {
                let wrapped = self.pid.abs_diff(other.pid) > FAR;
                self.pid != other.pid && (self.pid > other.pid) != wrapped
            }
        }
    }
}

impl FromStr for Key {
    type Err = ();

    fn from_str(text: &str) -> Result<Key, ()> {
        let (moment, pid) = text.split_once('.').ok_or(())?;
        Ok(Key { moment: moment.parse().map_err(drop)?, pid: pid.parse().map_err(drop)? })
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.moment, self.pid)
    }
}

/// What came of saying that there is a request.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Published {
    /// It is the latest one.
    Latest,
    /// That one was made later.
    Overtaken(String),
}

/// The requests and locks in a directory.
pub(crate) struct Requests {
    directory: PathBuf,
}

/// A lock that is held until this is dropped, or the process ends.
pub(crate) struct Held(#[allow(dead_code)] Flock<File>);

impl Requests {
    pub(crate) fn new(directory: &Path) -> Requests {
        Requests { directory: directory.to_path_buf() }
    }

    fn file(&self, group: &str, kind: &str) -> PathBuf {
        self.directory.join(format!("{}.{kind}", state::name(group)))
    }

    fn current(&self, group: &str) -> Option<String> {
        let text = fs::read_to_string(self.file(group, "request")).ok()?;
        let line = text.lines().next().unwrap_or_default().trim();
        (!line.is_empty()).then(|| line.to_owned())
    }

    /// Says that there is a request, unless one was made later. `now` is this moment, in the unit of keys: what was made
    /// after it was made before the system was started again.
    pub(crate) fn publish(&self, group: &str, role: Role, key: Key, now: u64) -> io::Result<Published> {
        fs::create_dir_all(&self.directory)?;
        let Some(_held) = lock(&self.file(group, "order"), Duration::from_secs(60), || false)? else {
            return Err(io::Error::from(io::ErrorKind::TimedOut));
        };
        if let Some(current) = self.current(group)
            && let Some(other) = current.split(' ').nth(1).and_then(|text| text.parse::<Key>().ok())
            && other.moment <= now
            && other.is_after(key)
        {
            return Ok(Published::Overtaken(current));
        }
        state::write(&self.file(group, "request"), &format!("{role} {key}"))?;
        Ok(Published::Latest)
    }

    /// The request that has taken the place of this one.
    pub(crate) fn overtaken(&self, group: &str, role: Role, key: Key) -> Option<String> {
        self.current(group).filter(|current| *current != format!("{role} {key}"))
    }

    /// Whether the last request is for this role, and was made since the system was started, `now` ago.
    pub(crate) fn is_last(&self, group: &str, role: Role, now: u64) -> bool {
        let current = self.current(group).unwrap_or_default();
        let mut words = current.split(' ');
        words.next() == Some(role.word())
            && words.next().and_then(|text| text.parse::<Key>().ok()).is_some_and(|key| key.moment <= now)
    }

    /// Shows that a run for the group is there, or soon will be, until this is dropped or the process ends.
    pub(crate) fn show_run(&self, group: &str) -> io::Result<Held> {
        let file = OpenOptions::new().create(true).append(true).open(self.file(group, "runs"))?;
        // One that looks holds it for a moment.
        let held = Flock::lock(file, FlockArg::LockShared);
        held.map(Held).map_err(|(_, errno)| errno.into())
    }

    /// Whether somebody shows a run.
    pub(crate) fn has_run(&self, group: &str) -> bool {
        let Ok(file) = OpenOptions::new().append(true).open(self.file(group, "runs")) else { return false };
        Flock::lock(file, FlockArg::LockExclusiveNonblock).is_err()
    }

    /// Waits for the lock of a group, at most this long and until `given_up`.
    pub(crate) fn lock(
        &self,
        group: &str,
        limit: Duration,
        given_up: impl FnMut() -> bool,
    ) -> io::Result<Option<Held>> {
        lock(&self.file(group, "lock"), limit, given_up)
    }
}

fn lock(path: &Path, limit: Duration, mut given_up: impl FnMut() -> bool) -> io::Result<Option<Held>> {
    let mut file = OpenOptions::new().create(true).append(true).open(path)?;
    let begin = Instant::now();
    loop {
        file = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(held) => return Ok(Some(Held(held))),
            Err((file, nix::errno::Errno::EWOULDBLOCK | nix::errno::Errno::EINTR)) => file,
            Err((_, errno)) => return Err(errno.into()),
        };
        if begin.elapsed() >= limit || given_up() {
            return Ok(None);
        }
        std::thread::sleep(MOMENT);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(moment: u64, pid: u32) -> Key {
        Key { moment, pid }
    }

    #[test]
    fn the_moment_decides_then_the_process() {
        assert!(key(2, 1).is_after(key(1, 9)) && !key(1, 9).is_after(key(2, 1)));
        assert!(key(1, 9).is_after(key(1, 8)) && !key(1, 8).is_after(key(1, 9)));
        // Ids have begun again in between.
        assert!(key(1, 300).is_after(key(1, 4_194_000)) && !key(1, 4_194_000).is_after(key(1, 300)));
        assert!(!key(1, 1).is_after(key(1, 1)));
        for wrong in ["", "1", "1.", ".1", "a.1", "1.1.1", "1 .1", "-1.1"] {
            assert!(wrong.parse::<Key>().is_err(), "{wrong}");
        }
        assert_eq!(key(7, 8).to_string().parse(), Ok(key(7, 8)));
    }

    #[test]
    fn the_request_that_was_made_last_counts_whenever_it_comes() {
        let directory = tempfile::tempdir().unwrap();
        let requests = Requests::new(&directory.path().join("state"));
        let publish = |role, key| requests.publish("g", role, key, 1000).unwrap();
        assert_eq!(publish(Role::Primary, key(100, 5)), Published::Latest);
        assert_eq!(publish(Role::Secondary, key(100, 6)), Published::Latest);
        let overtaken = Published::Overtaken("secondary 100.6".to_owned());
        assert_eq!(publish(Role::Primary, key(100, 4)), overtaken);
        assert_eq!(publish(Role::Primary, key(99, 9)), overtaken);
        assert_eq!(requests.overtaken("g", Role::Secondary, key(100, 6)), None);
        assert_eq!(requests.overtaken("g", Role::Primary, key(100, 5)), Some("secondary 100.6".to_owned()));
        assert_eq!(requests.overtaken("h", Role::Primary, key(1, 1)), None);
        // The same once more, as the part in the background says it.
        assert_eq!(publish(Role::Secondary, key(100, 6)), Published::Latest);
    }

    #[test]
    fn what_is_left_from_before_a_restart_or_is_nonsense_does_not_count() {
        let directory = tempfile::tempdir().unwrap();
        let requests = Requests::new(directory.path());
        for left in
            ["primary 5000.1\n", "primary\n", "", "x y z\n", "primary 99999999999999999999.1\n", "\u{fffd}"]
        {
            fs::write(directory.path().join("g.request"), left).unwrap();
            assert_eq!(
                requests.publish("g", Role::Secondary, key(10, 1), 20).unwrap(),
                Published::Latest,
                "{left}"
            );
        }
    }

    #[test]
    fn a_run_is_seen_until_the_last_one_ends() {
        let directory = tempfile::tempdir().unwrap();
        let requests = Requests::new(directory.path());
        assert!(!requests.has_run("g"));
        let (one, two) = (requests.show_run("g").unwrap(), requests.show_run("g").unwrap());
        assert!(requests.has_run("g") && requests.has_run("g") && !requests.has_run("h"));
        drop(one);
        assert!(requests.has_run("g"));
        drop(two);
        assert!(!requests.has_run("g"));
        requests.publish("g", Role::Primary, key(100, 5), 1000).unwrap();
        assert!(requests.is_last("g", Role::Primary, 100) && !requests.is_last("g", Role::Secondary, 100));
        assert!(!requests.is_last("g", Role::Primary, 99), "made before a restart");
        assert!(!requests.is_last("h", Role::Primary, 100));
    }

    #[test]
    fn a_lock_is_waited_for_and_given_up() {
        let directory = tempfile::tempdir().unwrap();
        let requests = Requests::new(directory.path());
        let long = Duration::from_secs(600);
        let held = requests.lock("g", long, || false).unwrap();
        assert!(held.is_some());
        assert!(requests.lock("g", long, || true).unwrap().is_none());
        assert!(requests.lock("g", Duration::ZERO, || false).unwrap().is_none());
        assert!(requests.lock("h", long, || true).unwrap().is_some());
        drop(held);
        assert!(requests.lock("g", long, || true).unwrap().is_some());
    }
}
