//! What the device may hold: the simulator's `Memory`.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use hast_sim::client::{Memory, WriteId};
use hast_tests::Failure;

use super::record::{Book, Open, SECTOR, What};

/// What the clients did and were told.
pub(super) type Record = super::record::Record<Remembered>;

/// The book of one history.
pub(super) struct Remembered {
    memory: Memory,
    /// Begin of the last acknowledged flush that the memory has not heard of: a read that was begun earlier is
    /// still open, and may bring what the flush makes the memory forget.
    flushed: Option<Duration>,
}

impl Book for Remembered {
    fn begun(&mut self, now: Duration, id: WriteId, what: &What) {
        match what {
            What::Read(_) | What::Flush => {}
            What::Write(range, _) => self.memory.begin(now, id, false, range.start, range.len()),
            What::Zeroes(range) => self.memory.begin_zeroes(now, id, range.start, range.len()),
            What::Trim(range) => self.memory.begin(now, id, true, range.start, range.len()),
        }
    }

    fn ended(&mut self, now: Duration, open: &Open, good: bool) {
        match &open.what {
            What::Flush if good => self.flushed = self.flushed.max(Some(open.invoked)),
            What::Read(_) | What::Flush => {}
            What::Write(..) | What::Zeroes(_) | What::Trim(_) => self.memory.end(now, open.id, good),
        }
    }

    fn check(&self, at: usize, bytes: &[u8], begun: Duration) -> Result<(), String> {
        self.memory.check(at, bytes, begun)
    }

    /// Tells the memory of a flush as soon as no open request may still bring what was before.
    fn still_open(&mut self, open: &BTreeMap<WriteId, Duration>) {
        let Some(flushed) = self.flushed else { return };
        if open.values().all(|invoked| *invoked >= flushed) {
            self.memory.flushed(flushed);
            self.flushed = None;
        }
    }
}

impl Record {
    /// Nothing written yet on a device of `sectors` sectors. `interrupted` ends every wait.
    pub(super) fn blank(sectors: usize, interrupted: Arc<AtomicBool>) -> Record {
        Record::new(Remembered { memory: Memory::new(sectors), flushed: None }, interrupted)
    }

    /// Acknowledged writes that no flush has covered may be lost.
    pub(super) fn unflushed_may_be_lost(&self) {
        self.meanwhile(|book, _| book.memory.unflushed_may_be_lost());
    }

    /// Compares a stretch of the device, read when no request was open, with what it may hold. With `settle`
    /// it is known to be all that there is on either node.
    ///
    /// # Errors
    /// It holds something else.
    pub(super) fn verify(&self, first: usize, data: &[u8], settle: bool) -> Result<(), Failure> {
        self.compare(first, data, None)?;
        if settle {
            self.meanwhile(|book, _| {
                (first..).zip(data.chunks(SECTOR)).for_each(|(at, bytes)| book.memory.settle(at, bytes));
            });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::ops::Range;

    use super::*;
    use crate::torture::record::End;

    fn record() -> Record {
        Record::blank(16, Arc::default())
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
