//! What the clients did and were told, in the histories of both nodes: that of the node which serves, and that of one
//! which served before, when they have parted.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use hast_sim::client::WriteId;
use hast_tests::{Failure, SHORT, wait_until};

use super::disk::SECTOR;
use super::ledger::Ledger;
use crate::torture::journal::Journal;
use crate::torture::record::{End, Keeper, Open, Sums, What};

/// Shared by every client and the operator.
pub(super) struct Record {
    begin: Instant,
    interrupted: Arc<AtomicBool>,
    inner: Mutex<Inner>,
}

struct Inner {
    /// Of the node that serves.
    ledger: Ledger,
    last: WriteId,
    open: BTreeMap<WriteId, Duration>,
    sums: Sums,
    wrong: Option<String>,
    /// The device may have a reason to refuse.
    may_refuse: bool,
    refused: u64,
    journal: Journal,
}

impl Record {
    /// A device of `sectors` zero sectors. `interrupted` ends every wait.
    pub(super) fn new(sectors: usize, interrupted: Arc<AtomicBool>) -> Record {
        let inner = Inner {
            ledger: Ledger::new(sectors),
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

    /// Somebody wants us to end.
    pub(super) fn is_interrupted(&self) -> bool {
        self.interrupted.load(Ordering::Relaxed)
    }

    /// Does something while no request begins and none is known to have ended.
    pub(super) fn meanwhile<T>(&self, deed: impl FnOnce(&mut Ledger, Duration) -> T) -> T {
        let mut inner = self.lock();
        let now = self.begin.elapsed();
        deed(&mut inner.ledger, now)
    }

    /// Whether the device may have a reason to refuse anything from now on.
    pub(super) fn may_refuse(&self, so: bool) {
        self.lock().may_refuse = so;
    }

    /// Requests refused so far, with reason.
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

    /// Writes the journal of this cycle.
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

    /// So many bytes more were compared with what they may be.
    pub(super) fn count_checked(&self, bytes: usize) {
        self.lock().sums.checked += bytes as u64;
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Keeper for Record {
    fn begin(&self, what: What) -> Open {
        let mut inner = self.lock();
        let now = self.begin.elapsed();
        inner.last += 1;
        let id = inner.last;
        match &what {
            What::Read(_) => {}
            What::Flush => inner.ledger.begin_flush(now),
            What::Write(range, _) => inner.ledger.begin(now, id, Some(id), range.clone()),
            What::Zeroes(range) => inner.ledger.begin(now, id, Some(0), range.clone()),
            What::Trim(range) => inner.ledger.begin(now, id, None, range.clone()),
        }
        inner.open.insert(id, now);
        inner.journal.begun(now, id, &what);
        Open { id, what, invoked: now }
    }

    fn end(&self, open: &Open, end: End) {
        let mut inner = self.lock();
        let now = self.begin.elapsed();
        let good = matches!(end, End::Good(_));
        match (&open.what, &end) {
            (What::Read(range), End::Good(data)) => inner.compare(open, range.start, range.len(), data, now),
            (What::Read(_), _) => {}
            (What::Flush, _) => {
                inner.sums.flushes += u64::from(good);
                inner.ledger.end_flush(now, open.invoked, good);
            }
            (What::Write(..) | What::Zeroes(_) | What::Trim(_), _) => {
                let through = matches!(open.what, What::Write(_, true));
                inner.sums.acknowledged += u64::from(good);
                inner.ledger.end(now, open.id, good, through);
            }
        }
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
    }
}

impl Inner {
    fn compare(&mut self, open: &Open, first: usize, sectors: usize, data: &[u8], now: Duration) {
        if data.len() != sectors * SECTOR {
            return self.fail(format!("read {} brought {} bytes", open.id, data.len()));
        }
        for (at, bytes) in (first..).zip(data.chunks(SECTOR)) {
            if let Err(error) = self.ledger.check(at, bytes, open.invoked) {
                return self.fail(format!("read {}: {error}", open.id));
            }
            self.ledger.seen(at, bytes, now);
        }
        self.sums.checked += data.len() as u64;
    }

    fn fail(&mut self, what: String) {
        self.wrong.get_or_insert(what);
    }
}
