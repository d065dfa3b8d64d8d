//! What the clients did and were told, kept for several threads, with a journal of the round, and what is wrong with it.
//! What the device may hold by that a [`Book`] says, of which each kind of torture has its own.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use hast_sim::client::WriteId;
use hast_tests::{Failure, LONG, SHORT, wait_until};

use super::journal::Journal;

/// The unit of the record in bytes; every write tags each of its sectors.
pub(super) const SECTOR: usize = 512;

/// What one request is about.
#[derive(Clone, Debug)]
pub(super) enum What {
    Read(Range<usize>),
    /// With forced unit access or without.
    Write(Range<usize>, bool),
    Zeroes(Range<usize>),
    Trim(Range<usize>),
    Flush,
}

/// A request that was begun and has to be ended once.
pub(super) struct Open {
    pub(super) id: WriteId,
    pub(super) what: What,
    pub(super) invoked: Duration,
}

/// How a request ended.
pub(super) enum End {
    /// With the data of a read.
    Good(Vec<u8>),
    /// The device said that it failed.
    Refused(String),
    /// The connection ended first.
    Lost,
}

/// Sums over the whole run.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Sums {
    /// Writes of all kinds that were acknowledged.
    pub(super) acknowledged: u64,
    /// Flushes that were acknowledged.
    pub(super) flushes: u64,
    /// Requests that lost their connection.
    pub(super) lost: u64,
    /// Bytes read and found to be what they may be.
    pub(super) checked: u64,
}

/// What each sector of the device may hold, by the requests of the clients and their answers. Times are since the
/// beginning of the run.
pub(super) trait Book: Send + 'static {
    /// A request begins.
    fn begun(&mut self, now: Duration, id: WriteId, what: &What);
    /// It has ended, well or not.
    fn ended(&mut self, now: Duration, open: &Open, good: bool);
    /// Whether a read that was begun then may bring `bytes` from sector `at`.
    ///
    /// # Errors
    /// Says what it brought and what it might.
    fn check(&self, at: usize, bytes: &[u8], begun: Duration) -> Result<(), String>;
    /// A read that ended now has brought what it may.
    fn seen(&mut self, _at: usize, _bytes: &[u8], _now: Duration) {}
    /// A request has ended, and these were begun then and are still open.
    fn still_open(&mut self, _open: &BTreeMap<WriteId, Duration>) {}
}

/// Shared by every client and the operator.
pub(super) struct Record<B> {
    begin: Instant,
    interrupted: Arc<AtomicBool>,
    inner: Mutex<Inner<B>>,
}

struct Inner<B> {
    book: B,
    last: WriteId,
    /// Every request that is open, and when it was begun.
    open: BTreeMap<WriteId, Duration>,
    sums: Sums,
    wrong: Option<String>,
    /// The device may have a reason to refuse.
    may_refuse: bool,
    refused: u64,
    journal: Journal,
}

impl<B: Book> Record<B> {
    /// Of a device for which `book` says what it holds at the beginning. `interrupted` ends every wait.
    pub(super) fn new(book: B, interrupted: Arc<AtomicBool>) -> Record<B> {
        let inner = Inner {
            book,
            last: 0,
            open: BTreeMap::new(),
            sums: Sums::default(),
            wrong: None,
            may_refuse: false,
            refused: 0,
            journal: Journal::default(),
        };
        Record { begin: Instant::now(), interrupted, inner: Mutex::new(inner) }
    }

    /// A request begins now.
    pub(super) fn begin(&self, what: What) -> Open {
        let mut inner = self.lock();
        let now = self.now();
        inner.last += 1;
        let id = inner.last;
        inner.book.begun(now, id, &what);
        inner.open.insert(id, now);
        inner.journal.begun(now, id, &what);
        Open { id, what, invoked: now }
    }

    /// It has ended.
    pub(super) fn end(&self, open: &Open, end: End) {
        let mut inner = self.lock();
        let now = self.now();
        let good = matches!(end, End::Good(_));
        match (&open.what, &end) {
            (What::Read(range), End::Good(data)) => inner.read(open, range, data, now),
            (What::Read(_), _) => {}
            (What::Flush, _) => inner.sums.flushes += u64::from(good),
            (What::Write(..) | What::Zeroes(_) | What::Trim(_), _) => {
                inner.sums.acknowledged += u64::from(good);
            }
        }
        inner.book.ended(now, open, good);
        inner.journal.ended(now, open.id, &end);
        match end {
            End::Good(_) => {}
            End::Lost => inner.sums.lost += 1,
            End::Refused(_) if inner.may_refuse => inner.refused += 1,
            End::Refused(why) => {
                inner.fail(format!("request {} ({:?}) was refused: {why}", open.id, open.what));
            }
        }
        inner.open.remove(&open.id);
        let Inner { book, open, .. } = &mut *inner;
        book.still_open(open);
    }

    /// Time since the beginning.
    pub(super) fn now(&self) -> Duration {
        self.begin.elapsed()
    }

    /// A failure if something is wrong already, or somebody wants us to end.
    pub(super) fn check(&self) -> Result<(), Failure> {
        if self.is_interrupted() {
            return Failure::because("interrupted");
        }
        match &self.lock().wrong {
            Some(wrong) => Failure::because(wrong.clone()),
            None => Ok(()),
        }
    }

    /// Waits for something that must come.
    ///
    /// # Errors
    /// It does not, or something else is wrong.
    pub(super) fn wait(&self, what: &str, probe: impl Fn() -> Result<bool, Failure>) -> Result<(), Failure> {
        wait_until(what, LONG, || {
            self.check()?;
            probe()
        })
    }

    /// Somebody wants us to end.
    pub(super) fn is_interrupted(&self) -> bool {
        self.interrupted.load(Ordering::Relaxed)
    }

    /// Does something while no request begins and none is known to have ended.
    pub(super) fn meanwhile<T>(&self, deed: impl FnOnce(&mut B, Duration) -> T) -> T {
        let mut inner = self.lock();
        let now = self.now();
        deed(&mut inner.book, now)
    }

    /// Compares a stretch of the device from sector `first` on, whose reading was begun then, or is of this very moment,
    /// with what it may hold.
    ///
    /// # Errors
    /// It holds something else.
    pub(super) fn compare(&self, first: usize, data: &[u8], begun: Option<Duration>) -> Result<(), Failure> {
        let mut inner = self.lock();
        let now = self.now();
        inner.compare(first, data, begun.unwrap_or(now), now).map_err(Failure::new)
    }

    /// Whether the device may have a reason to refuse anything from now on.
    pub(super) fn may_refuse(&self, so: bool) {
        self.lock().may_refuse = so;
    }

    /// Requests refused so far, with reason.
    #[cfg(target_os = "linux")]
    pub(super) fn refused(&self) -> u64 {
        self.lock().refused
    }

    /// Waits until every client has its answers, or has noticed that there will be none.
    ///
    /// # Errors
    /// There are requests that nobody answers.
    pub(super) fn wait_nothing_open(&self) -> Result<(), Failure> {
        wait_until("every open request to end", SHORT, || Ok(self.lock().open.is_empty()))
    }

    /// The operator says what happens.
    pub(super) fn say(&self, text: impl Into<String>) {
        let now = self.now();
        self.lock().journal.said(now, text);
    }

    /// Begins the journal again: all that was is in order.
    pub(super) fn turn_page(&self) {
        self.lock().journal.clear();
    }

    /// Writes the journal of this round.
    ///
    /// # Errors
    /// It cannot be written.
    pub(super) fn write_journal(&self, path: &Path) -> Result<(), Failure> {
        self.lock().journal.write(path)
    }

    /// Sums so far.
    pub(super) fn sums(&self) -> Sums {
        self.lock().sums
    }

    fn lock(&self) -> MutexGuard<'_, Inner<B>> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<B: Book> Inner<B> {
    fn read(&mut self, open: &Open, range: &Range<usize>, data: &[u8], now: Duration) {
        if data.len() != range.len() * SECTOR {
            return self.fail(format!("read {} brought {} bytes", open.id, data.len()));
        }
        if let Err(error) = self.compare(range.start, data, open.invoked, now) {
            self.fail(format!("read {}: {error}", open.id));
        }
    }

    fn compare(&mut self, first: usize, data: &[u8], begun: Duration, now: Duration) -> Result<(), String> {
        for (at, bytes) in (first..).zip(data.chunks(SECTOR)) {
            self.book.check(at, bytes, begun)?;
            self.book.seen(at, bytes, now);
        }
        self.sums.checked += data.len() as u64;
        Ok(())
    }

    fn fail(&mut self, what: String) {
        self.wrong.get_or_insert(what);
    }
}
