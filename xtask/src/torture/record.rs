//! What the clients did and were told, and so what the device may hold: the simulator's `Memory`, kept for
//! several threads, with a journal of the round.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use hast_sim::client::{Memory, WriteId};
use hast_tests::{Failure, SHORT, wait_until};

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

/// Who is told of every request of the clients.
pub(super) trait Keeper: Send + Sync + 'static {
    /// A request begins now.
    fn begin(&self, what: What) -> Open;
    /// It has ended.
    fn end(&self, open: &Open, end: End);
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

/// Shared by every client and the operator.
pub(super) struct Record {
    begin: Instant,
    interrupted: Arc<AtomicBool>,
    inner: Mutex<Inner>,
}

struct Inner {
    memory: Memory,
    last: WriteId,
    /// Every request that is open, and when it was begun.
    open: BTreeMap<WriteId, Duration>,
    /// Begin of the last acknowledged flush that the memory has not heard of: a read that was begun earlier is
    /// still open, and may bring what the flush makes the memory forget.
    flushed: Option<Duration>,
    sums: Sums,
    wrong: Option<String>,
    /// The device may refuse: its node waits for the other one, which has the newer data.
    may_refuse: bool,
    journal: Journal,
}

impl Keeper for Record {
    fn begin(&self, what: What) -> Open {
        let mut inner = self.lock();
        let now = self.begin.elapsed();
        inner.last += 1;
        let id = inner.last;
        match &what {
            What::Read(_) | What::Flush => {}
            What::Write(range, _) => inner.memory.begin(now, id, false, range.start, range.len()),
            What::Zeroes(range) => inner.memory.begin_zeroes(now, id, range.start, range.len()),
            What::Trim(range) => inner.memory.begin(now, id, true, range.start, range.len()),
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
            (What::Read(range), End::Good(data)) => inner.compare(open, range, data),
            (What::Flush, End::Good(_)) => {
                inner.sums.flushes += 1;
                inner.flushed = inner.flushed.max(Some(open.invoked));
            }
            (What::Read(_) | What::Flush, _) => {}
            (What::Write(..) | What::Zeroes(_) | What::Trim(_), _) => {
                inner.sums.acknowledged += u64::from(good);
                inner.memory.end(now, open.id, good);
            }
        }
        inner.journal.ended(now, open.id, &end);
        match end {
            End::Good(_) => {}
            End::Lost => inner.sums.lost += 1,
            End::Refused(why) if !inner.may_refuse => {
                inner.fail(format!("request {} ({:?}) was refused: {why}", open.id, open.what));
            }
            End::Refused(_) => {}
        }
        inner.open.remove(&open.id);
        inner.forget_flushed();
    }
}

impl Record {
    /// Nothing written yet on a device of `sectors` sectors. `interrupted` ends every wait.
    pub(super) fn new(sectors: usize, interrupted: Arc<AtomicBool>) -> Record {
        let inner = Inner {
            memory: Memory::new(sectors),
            last: 0,
            open: BTreeMap::new(),
            flushed: None,
            sums: Sums::default(),
            wrong: None,
            may_refuse: false,
            journal: Journal::default(),
        };
        Record { begin: Instant::now(), interrupted, inner: Mutex::new(inner) }
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

    /// Whether the device may have a reason to refuse anything from now on.
    pub(super) fn may_refuse(&self, so: bool) {
        self.lock().may_refuse = so;
    }

    /// Waits until every client has its answers, or has noticed that there will be none.
    pub(super) fn wait_nothing_open(&self) -> Result<(), Failure> {
        wait_until("every open request to end", SHORT, || Ok(self.lock().open.is_empty()))
    }

    /// Acknowledged writes that no flush has covered may be lost.
    pub(super) fn unflushed_may_be_lost(&self) {
        self.lock().memory.unflushed_may_be_lost();
    }

    /// Compares a stretch of the device, read when no request was open, with what it may hold. With `settle`
    /// it is known to be all that there is on either node.
    pub(super) fn verify(&self, first: usize, data: &[u8], settle: bool) -> Result<(), Failure> {
        let mut inner = self.lock();
        let now = self.begin.elapsed();
        for (index, bytes) in data.chunks(SECTOR).enumerate() {
            let at = first.saturating_add(index);
            inner.memory.check(at, bytes, now).map_err(Failure::new)?;
            if settle {
                inner.memory.settle(at, bytes);
            }
        }
        inner.sums.checked += data.len() as u64;
        Ok(())
    }

    /// The operator says what happens.
    pub(super) fn say(&self, text: impl Into<String>) {
        let now = self.begin.elapsed();
        self.lock().journal.said(now, text);
    }

    /// Begins the journal anew: all that was is in order.
    pub(super) fn turn_page(&self) {
        self.lock().journal.clear();
    }

    /// Writes the journal of this round.
    pub(super) fn write_journal(&self, path: &Path) -> Result<(), Failure> {
        self.lock().journal.write(path)
    }

    /// Sums so far.
    pub(super) fn sums(&self) -> Sums {
        self.lock().sums
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn compare(&mut self, open: &Open, range: &Range<usize>, data: &[u8]) {
        if data.len() != range.len() * SECTOR {
            return self.fail(format!("read {} brought {} bytes", open.id, data.len()));
        }
        for (at, bytes) in range.clone().zip(data.chunks(SECTOR)) {
            if let Err(error) = self.memory.check(at, bytes, open.invoked) {
                return self.fail(format!("read {}: {error}", open.id));
            }
        }
        self.sums.checked += data.len() as u64;
    }

    /// Tells the memory of a flush as soon as no open request may still bring what was before.
    fn forget_flushed(&mut self) {
        let Some(flushed) = self.flushed else { return };
        if self.open.values().all(|invoked| *invoked >= flushed) {
            self.memory.flushed(flushed);
            self.flushed = None;
        }
    }

    fn fail(&mut self, what: String) {
        self.wrong.get_or_insert(what);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> Record {
        Record::new(16, Arc::default())
    }

    fn write(record: &Record, range: Range<usize>) -> WriteId {
        let open = record.begin(What::Write(range, false));
        record.end(&open, End::Good(Vec::new()));
        open.id
    }

    fn flush(record: &Record) {
        let open = record.begin(What::Flush);
        record.end(&open, End::Good(Vec::new()));
    }

    fn holds(record: &Record, sector: usize, id: WriteId) -> bool {
        record.verify(sector, &Memory::contents(id), false).is_ok()
    }

    #[test]
    fn an_acknowledged_write_must_be_there() {
        let record = record();
        let first = write(&record, 0..4);
        let second = write(&record, 2..4);
        assert!(holds(&record, 1, first) && holds(&record, 2, second));
        assert!(!holds(&record, 1, 0) && !holds(&record, 2, first));
        // One that nobody answered may be there or not.
        let open = record.begin(What::Write(2..4, true));
        record.end(&open, End::Lost);
        assert!(holds(&record, 2, open.id) && holds(&record, 2, second));
        assert_eq!((record.sums().acknowledged, record.sums().lost), (2, 1));
    }

    #[test]
    fn a_wrong_read_is_told_to_everybody() {
        let record = record();
        write(&record, 0..2);
        let open = record.begin(What::Read(0..2));
        record.end(&open, End::Good(vec![0; 2 * SECTOR]));
        assert!(record.check().unwrap_err().to_string().contains("sector 0 holds write 0"));
    }

    #[test]
    fn what_was_refused_or_short_is_wrong() {
        let short = record();
        let open = short.begin(What::Read(0..2));
        short.end(&open, End::Good(vec![0; SECTOR]));
        short.check().unwrap_err();
        let refused = record();
        let open = refused.begin(What::Flush);
        refused.end(&open, End::Refused("EIO".into()));
        refused.check().unwrap_err();
        let behind = record();
        behind.may_refuse(true);
        let id = write(&behind, 0..1);
        let open = behind.begin(What::Write(0..1, false));
        behind.end(&open, End::Refused("EIO".into()));
        behind.check().unwrap();
        assert!(holds(&behind, 0, id) && holds(&behind, 0, open.id));
    }

    #[test]
    fn a_flush_bounds_what_may_be_lost() {
        let record = record();
        let first = write(&record, 0..1);
        flush(&record);
        let second = write(&record, 0..1);
        record.unflushed_may_be_lost();
        assert!(holds(&record, 0, first) && holds(&record, 0, second) && !holds(&record, 0, 0));
        flush(&record);
        let third = write(&record, 0..1);
        flush(&record);
        record.unflushed_may_be_lost();
        assert!(holds(&record, 0, third) && !holds(&record, 0, second));
    }

    /// The answer of a read may be looked at after a flush, though it was read before.
    #[test]
    fn a_flush_waits_for_older_reads() {
        let record = record();
        let read = record.begin(What::Read(0..1));
        let id = write(&record, 0..1);
        flush(&record);
        record.end(&read, End::Good(vec![0; SECTOR]));
        record.check().unwrap();
        record.unflushed_may_be_lost();
        assert!(holds(&record, 0, id) && !holds(&record, 0, 0));
    }

    #[test]
    fn zeroes_and_trims_are_writes() {
        let record = record();
        let id = write(&record, 0..8);
        for what in [What::Zeroes(0..2), What::Trim(4..6)] {
            let open = record.begin(what);
            record.end(&open, End::Good(Vec::new()));
        }
        assert!(holds(&record, 0, 0) && !holds(&record, 0, id));
        assert!(holds(&record, 4, 0) && holds(&record, 4, id));
        assert_eq!(record.sums().acknowledged, 3);
    }
}
