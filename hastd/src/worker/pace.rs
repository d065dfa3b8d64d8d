//! How quick the disk has been of late, and so where its operations are carried out.
//!
//! To hand an operation to a thread and to be woken by it costs two changes of thread, which take longer than most
//! writes to a cache. While a disk answers at once its operations are carried out right here; as soon as it makes
//! itself waited for, they are the threads' again, which measure whether it has become quick once more. Nothing but
//! speed depends on it.

use std::time::Duration;

use hast_engine::DiskOp;

/// Taking more time than this on average, in nanoseconds, a disk is slow ...
const SLOW: u64 = 50_000;
/// ... and taking less than this it is quick again.
const QUICK: u64 = 25_000;
/// Operations that the average is over.
const MEMORY: u64 = 64;
/// What one operation counts at most, in nanoseconds: a thread that has to wait for the processor looks like a slow disk.
const MOST: u64 = 1_000_000;
/// One that takes as long as this has waited for the disk, however rare it is, and everything waited for it.
const LONG: u64 = 8_000_000;
/// After such a one this many nanoseconds of it keep one operation with the threads.
const PENANCE: u64 = 10_000;
/// Bytes that may be moved in a nanosecond by whoever only copies them.
const COPIED: u64 = 4;
/// Taking less than this on average, in nanoseconds, a flush is waited for by whoever has nothing else to do.
const BEARABLE: u64 = 500_000;
/// After one that took so long, in nanoseconds, it is not: somebody else has had to go on with the rest.
const UNBEARABLE: u64 = 50_000_000;

/// Flushes between two that a thread carries out to see whether it is alone.
const PROBE: u32 = 64;

/// The pace of reads, of writes and of flushes: what is written to a cache says nothing of what has to be read from a
/// disk.
#[derive(Debug)]
pub(super) struct Pace {
    reads: Mean,
    writes: Mean,
    flushes: Mean,
}

impl Default for Pace {
    fn default() -> Pace {
        let flushes = Mean { nanos: BEARABLE, ..Mean::default() };
        Pace { reads: Mean::default(), writes: Mean::default(), flushes }
    }
}

/// What kind of operation it is and how long, as far as its pace tells anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Read(u64),
    Write(u64),
    Flush,
    /// As slow as the disk itself.
    Delete,
}

impl Kind {
    pub(super) fn of(op: &DiskOp) -> Kind {
        match op {
            DiskOp::Read { length, .. } => Kind::Read(u64::from(*length)),
            DiskOp::Write { data, .. } => Kind::Write(data.len() as u64),
            DiskOp::Flush => Kind::Flush,
            DiskOp::Delete { .. } => Kind::Delete,
        }
    }
}

impl Pace {
    /// Whether such an operation is likely to be over at once.
    pub(super) fn is_quick(&self, kind: Kind) -> bool {
        match kind {
            Kind::Read(_) => self.reads.quick,
            Kind::Write(_) => self.writes.quick,
            Kind::Flush => self.flushes.quick,
            Kind::Delete => false,
        }
    }

    /// Whether a flush takes no longer than it may if nothing else is to do.
    pub(super) fn is_bearable(&self, kind: Kind) -> bool {
        let Mean { nanos, penance, .. } = self.flushes;
        kind == Kind::Flush && nanos < BEARABLE && penance < UNBEARABLE / PENANCE
    }

    /// One has taken so long.
    pub(super) fn took(&mut self, kind: Kind, time: Duration) {
        match kind {
            Kind::Read(bytes) => self.reads.add(bytes, time),
            Kind::Write(bytes) => self.writes.add(bytes, time),
            Kind::Flush => self.flushes.add(0, time),
            Kind::Delete => {}
        }
    }
}

/// Whether anything else is likely to come while a flush is on. Whoever waits for a flush cannot know: so once in a
/// while a thread carries one out, and if something has come meanwhile threads do for a time.
#[derive(Debug, Default)]
pub(super) struct Solitude {
    /// Flushes that threads have.
    flushing: u32,
    /// Flushes that threads get because they were not alone.
    company: u32,
    /// Flushes until a thread gets one to find out.
    until_next: u32,
}

impl Solitude {
    /// An operation has come.
    pub(super) fn submitted(&mut self) {
        if self.flushing > 0 {
            self.company = PROBE;
        }
    }

    /// A thread gets one.
    pub(super) fn handed_over(&mut self, kind: Kind) {
        self.flushing += u32::from(kind == Kind::Flush);
    }

    /// A thread has carried one out.
    pub(super) fn handed_back(&mut self, kind: Kind) {
        self.flushing = self.flushing.saturating_sub(u32::from(kind == Kind::Flush));
    }

    /// Whether the next flush will be alone, as far as can be told.
    pub(super) fn is_likely(&mut self) -> bool {
        if self.company > 0 {
            self.company -= 1;
            return false;
        }
        let alone = self.until_next > 0;
        self.until_next = if alone { self.until_next - 1 } else { PROBE };
        alone
    }
}

/// A mean in which the past fades. Every disk is slow until it has shown otherwise.
#[derive(Debug)]
struct Mean {
    nanos: u64,
    /// Operations that stay with the threads whatever the mean is.
    penance: u64,
    quick: bool,
}

impl Default for Mean {
    fn default() -> Mean {
        Mean { nanos: SLOW, penance: 0, quick: false }
    }
}

impl Mean {
    fn add(&mut self, bytes: u64, time: Duration) {
        let time = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        let waited = time.saturating_sub(bytes / COPIED);
        self.penance = match waited {
            LONG.. => self.penance.max(waited / PENANCE),
            _ => self.penance.saturating_sub(1),
        };
        self.nanos = (self.nanos * (MEMORY - 1) + waited.min(MOST)) / MEMORY;
        self.quick = self.penance == 0 && self.nanos < if self.quick { SLOW } else { QUICK };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WRITE: Kind = Kind::Write(4096);
    const READ: Kind = Kind::Read(4096);

    fn after(pace: &mut Pace, kind: Kind, count: usize, micros: u64) {
        for _ in 0..count {
            pace.took(kind, Duration::from_micros(micros));
        }
    }

    #[test]
    fn a_disk_has_to_show_that_it_is_quick() {
        let mut pace = Pace::default();
        assert!(!pace.is_quick(WRITE));
        after(&mut pace, WRITE, 60, 3);
        assert!(pace.is_quick(WRITE) && !pace.is_quick(READ) && !pace.is_quick(Kind::Delete));
        after(&mut pace, READ, 1000, 90);
        assert!(!pace.is_quick(READ), "an SSD that has to be asked");
        after(&mut pace, Kind::Delete, 1000, 3);
        assert!(!pace.is_quick(Kind::Delete));
    }

    #[test]
    fn a_flush_that_takes_a_while_is_bearable_as_long_as_it_does_on_average() {
        let mut pace = Pace::default();
        assert!(!pace.is_quick(Kind::Flush) && !pace.is_bearable(Kind::Flush));
        after(&mut pace, Kind::Flush, 100, 300);
        assert!(!pace.is_quick(Kind::Flush) && pace.is_bearable(Kind::Flush));
        assert!(!pace.is_bearable(WRITE) && !pace.is_bearable(Kind::Delete));
        after(&mut pace, Kind::Flush, 1, 12_000);
        assert!(pace.is_bearable(Kind::Flush), "a journal is full once in a while");
        after(&mut pace, Kind::Flush, 1, 60_000);
        assert!(!pace.is_bearable(Kind::Flush), "a disk that hangs");
        after(&mut pace, Kind::Flush, 1500, 300);
        assert!(pace.is_bearable(Kind::Flush));
        after(&mut pace, Kind::Flush, 100, 8_000);
        assert!(!pace.is_bearable(Kind::Flush));
    }

    #[test]
    fn whether_flushes_are_alone_is_found_out_now_and_then() {
        let mut solitude = Solitude::default();
        let alone = |solitude: &mut Solitude| (0..PROBE * 3).filter(|_| solitude.is_likely()).count();
        // Those of three probes are not.
        assert_eq!(alone(&mut solitude), PROBE as usize * 3 - 3);
        solitude.handed_over(Kind::Flush);
        solitude.handed_back(Kind::Flush);
        solitude.submitted();
        assert!(alone(&mut solitude) > PROBE as usize * 2);
        // Something comes while a thread flushes.
        solitude.handed_over(Kind::Flush);
        solitude.submitted();
        solitude.handed_back(Kind::Flush);
        assert!((0..PROBE).all(|_| !solitude.is_likely()));
        assert!((0..3).any(|_| solitude.is_likely()));
    }

    #[test]
    fn it_is_slow_after_a_few_operations_and_quick_after_many() {
        let mut pace = Pace::default();
        after(&mut pace, WRITE, 1000, 3);
        after(&mut pace, WRITE, 2, 3000);
        assert!(pace.is_quick(WRITE), "the processor was needed elsewhere");
        after(&mut pace, WRITE, 3, 3000);
        assert!(!pace.is_quick(WRITE));
        after(&mut pace, WRITE, 30, 3);
        assert!(!pace.is_quick(WRITE));
        after(&mut pace, WRITE, 100, 3);
        assert!(pace.is_quick(WRITE));
    }

    #[test]
    fn one_long_wait_is_not_forgotten_soon() {
        let mut pace = Pace::default();
        after(&mut pace, READ, 1000, 3);
        after(&mut pace, READ, 1, 20_000);
        assert!(!pace.is_quick(READ));
        after(&mut pace, READ, 1990, 3);
        assert!(!pace.is_quick(READ));
        after(&mut pace, READ, 20, 3);
        assert!(pace.is_quick(READ));
        // A few in a hundred that have to come from the disk keep it slow.
        for _ in 0..100 {
            after(&mut pace, READ, 1, 10_000);
            after(&mut pace, READ, 30, 3);
            assert!(!pace.is_quick(READ));
        }
    }

    #[test]
    fn copying_much_is_not_slow() {
        let mut pace = Pace::default();
        after(&mut pace, Kind::Write(131_072), 1000, 40);
        assert!(pace.is_quick(WRITE));
        after(&mut pace, Kind::Write(131_072), 1000, 400);
        assert!(!pace.is_quick(WRITE));
    }
}
