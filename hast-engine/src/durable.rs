//! What a disk holds for certain: flushes one at a time, and what a failed one may have dropped.
//!
//! fsync(2) says once, to whoever asks next, that something could not be written. By then the system may have
//! dropped it, and every later flush is good without it. So a flush that fails, whatever it was for, fails for
//! everybody who waits for one; and whatever was written since the last good flush began counts as dropped until
//! it was written again, or is taken from the other node. What can still be read is what is written again.

use core::ops::Range;
use core::time::Duration;

use hast_format::bitmap::Bitmap;
use hast_format::layout::Layout;
use hast_net::errno::Errno;
use smallvec::SmallVec;

use crate::ranges::Key;
use crate::types::{DiskOp, DiskResult, MAX_REQUEST};

/// How long a disk is left alone that fails again and again.
const PAUSE: Duration = Duration::from_secs(1);

/// Why a flush was asked for, mostly by one: then that is no allocation.
pub type Whom<P> = SmallVec<[P; 4]>;

/// The flushes of one disk, and the extents of its data area that they have or have not made durable. `P` says why
/// a flush was asked for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Durable<P> {
    running: Whom<P>,
    waiting: Whom<P>,
    /// Written since the flush under way, or the last one, began.
    written: Bitmap,
    /// Written before the flush under way began, and by no flush covered.
    covered: Bitmap,
    /// A flush failed: perhaps not on the disk, and no flush will tell.
    dropped: Bitmap,
    /// Of those: written again while the flush under way, or the last one, ran, which does not cover them.
    late: Bitmap,
    /// How the last flush that failed did.
    error: Errno,
    failed_at: Option<Duration>,
    /// Nothing is written again before then.
    not_before: Duration,
    rewriting: Option<Rewriting>,
}

/// An extent that is written again, piece by piece.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Rewriting {
    extent: u32,
    next: u64,
    end: u64,
    /// A flush failed meanwhile, or a piece could not be read or written.
    in_vain: bool,
    /// The piece under way: who holds its range, and which that is.
    piece: Option<(Key, Range<u64>)>,
}

impl<P: Copy + PartialEq> Durable<P> {
    /// Of a disk with so many extents, all of them durable as far as anybody knows.
    pub fn new(extents: u32) -> Durable<P> {
        Durable {
            running: Whom::new(),
            waiting: Whom::new(),
            written: Bitmap::new(extents),
            covered: Bitmap::new(extents),
            dropped: Bitmap::new(extents),
            late: Bitmap::new(extents),
            error: Errno::EIO,
            failed_at: None,
            not_before: Duration::ZERO,
            rewriting: None,
        }
    }

    /// Wants a flush that begins from now on.
    pub fn flush(&mut self, why: P) {
        self.waiting.push(why);
    }

    /// Whether a flush is to begin now: one that begins while another runs could be told what that one hides.
    pub fn begin(&mut self) -> bool {
        if !self.running.is_empty() || self.waiting.is_empty() {
            return false;
        }
        self.running = core::mem::take(&mut self.waiting);
        self.late_is_written();
        self.covered.union(&self.written);
        self.written.clear();
        true
    }

    /// The flush has ended; gives those for whom it ended like this.
    pub fn end(&mut self, now: Duration, result: &DiskResult) -> Whom<P> {
        let mut whom = core::mem::take(&mut self.running);
        match result {
            Ok(_) | Err(Errno::EOPNOTSUPP) => self.covered.clear(),
            Err(error) => {
                whom.append(&mut self.waiting);
                self.dropped.union(&self.covered);
                self.dropped.union(&self.written);
                self.late.clear();
                self.covered.clear();
                self.written.clear();
                self.error = *error;
                if self.failed_at.is_some_and(|at| now < at + PAUSE) {
                    self.not_before = now + PAUSE;
                }
                self.failed_at = Some(now);
                if let Some(rewriting) = &mut self.rewriting {
                    rewriting.in_vain = true;
                }
            }
        }
        whom
    }

    /// Whether anybody waits for a flush for this reason.
    pub fn is_flushing(&self, why: P) -> bool {
        self.running.contains(&why) || self.waiting.contains(&why)
    }

    /// The disk has answered a write or delete to these extents, well or not.
    pub fn wrote(&mut self, extents: Range<u32>) {
        for extent in extents {
            self.written.insert(extent);
        }
    }

    /// ... which was on its way when a flush failed.
    pub fn may_have_dropped(&mut self, extents: Range<u32>) {
        for extent in extents {
            self.dropped.insert(extent);
            self.late.remove(extent);
        }
    }

    /// The other node's copy of `extent` is the right one.
    pub fn forget(&mut self, extent: u32) {
        self.dropped.remove(extent);
        self.late.remove(extent);
    }

    /// No flush is under way that began before these were written again.
    fn late_is_written(&mut self) {
        for extent in self.late.iter() {
            self.dropped.remove(extent);
        }
        self.written.union(&self.late);
        self.late.clear();
    }

    /// What counts as dropped.
    pub fn dropped(&self) -> &Bitmap {
        &self.dropped
    }

    /// Whether all that was written to `extent` is covered by a good flush.
    pub fn is_durable(&self, extent: u32) -> bool {
        ![&self.written, &self.covered, &self.dropped].into_iter().any(|extents| extents.contains(extent))
    }

    /// How the last flush that failed did.
    pub fn error(&self) -> Errno {
        self.error
    }

    /// Whether the disk has just failed more than once, and is to be left alone for a moment.
    pub fn is_paused(&self, now: Duration) -> bool {
        self.not_before > now
    }

    /// Whether something is being written again.
    pub fn is_rewriting(&self) -> bool {
        self.rewriting.is_some()
    }

    /// When to look again for something to write again.
    pub fn deadline(&self, now: Duration) -> Option<Duration> {
        let waits = self.rewriting.is_none() && !self.dropped.is_empty() && self.not_before > now;
        waits.then_some(self.not_before)
    }

    /// The next piece of the data area to be written again: `key` has to hold it. Only of extents that are
    /// `ready` for it.
    pub fn next_piece(
        &mut self,
        now: Duration,
        key: Key,
        layout: &Layout,
        ready: impl Fn(u32) -> bool,
    ) -> Option<Range<u64>> {
        if let Some(Rewriting { extent, next, end, in_vain, piece }) = &self.rewriting {
            if piece.is_some() {
                return None;
            }
            let (extent, done, in_vain) = (*extent, next >= end, *in_vain);
            let goes_on = !done && !in_vain && self.dropped.contains(extent);
            if !goes_on {
                self.rewriting = None;
            }
            if done && !in_vain && self.dropped.contains(extent) {
                self.late.insert(extent);
            }
        }
        if self.running.is_empty() {
            self.late_is_written();
        }
        if self.rewriting.is_none() {
            if self.not_before > now {
                return None;
            }
            let extent = self.dropped.iter().find(|extent| !self.late.contains(*extent) && ready(*extent))?;
            let (next, length) = layout.extent_range(extent);
            let end = next.saturating_add(u64::from(length));
            self.rewriting = Some(Rewriting { extent, next, end, in_vain: false, piece: None });
        }
        let rewriting = self.rewriting.as_mut()?;
        let end = rewriting.end.min(rewriting.next.saturating_add(u64::from(MAX_REQUEST)));
        let range = rewriting.next..end;
        rewriting.next = end;
        rewriting.piece = Some((key, range.clone()));
        Some(range)
    }

    /// Whether `key` is a piece that is written again.
    pub fn is_piece(&self, key: Key) -> bool {
        self.rewriting
            .as_ref()
            .and_then(|rewriting| rewriting.piece.as_ref())
            .is_some_and(|piece| piece.0 == key)
    }

    /// The piece holds its range: what to do first.
    pub fn read(&self, layout: &Layout) -> Option<DiskOp> {
        let (_, range) = self.rewriting.as_ref()?.piece.as_ref()?;
        let length = u32::try_from(range.end.saturating_sub(range.start)).ok()?;
        Some(DiskOp::Read { offset: layout.localoff().saturating_add(range.start), length })
    }

    /// The piece was read: what to do with it, if it could be.
    pub fn write(&self, layout: &Layout, result: DiskResult) -> Option<DiskOp> {
        let (_, range) = self.rewriting.as_ref()?.piece.as_ref()?;
        let length = range.end.saturating_sub(range.start);
        let data = result.ok().flatten().filter(|data| data.len() as u64 == length)?;
        Some(DiskOp::Write { offset: layout.localoff().saturating_add(range.start), data })
    }

    /// The piece was written, or could not be; gives who held its range.
    pub fn piece_ended(&mut self, now: Duration, well: bool) -> Option<Key> {
        let rewriting = self.rewriting.as_mut()?;
        if !well {
            rewriting.in_vain = true;
            self.not_before = now + PAUSE;
        }
        rewriting.piece.take().map(|(key, _)| key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hast_net::buffer::Buffer;

    const fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn dropped(durable: &Durable<u8>) -> Vec<u32> {
        durable.dropped().iter().collect()
    }

    #[test]
    fn what_a_good_flush_covers_is_durable_and_nothing_else() {
        let mut durable: Durable<()> = Durable::new(4);
        assert!(durable.is_durable(1));
        durable.wrote(1..2);
        assert!(!durable.is_durable(1) && durable.is_durable(2), "written");
        durable.flush(());
        assert!(durable.begin());
        assert!(!durable.is_durable(1), "not before the flush has ended");
        durable.end(Duration::ZERO, &Ok(None));
        assert!(durable.is_durable(1));
        durable.wrote(1..2);
        durable.flush(());
        assert!(durable.begin());
        durable.end(Duration::ZERO, &Err(Errno::EIO));
        assert!(!durable.is_durable(1), "no flush will tell");
    }

    #[test]
    fn a_failed_flush_fails_for_all_and_covers_nothing() {
        let mut durable = Durable::new(8);
        durable.wrote(0..1);
        durable.flush(1);
        assert!(durable.begin());
        durable.wrote(1..2);
        durable.flush(2);
        assert!(!durable.begin(), "one at a time");
        assert_eq!(durable.end(at(1), &Err(Errno::EIO)).to_vec(), vec![1, 2]);
        assert_eq!(dropped(&durable), vec![0, 1]);
        durable.wrote(2..3);
        durable.flush(3);
        assert!(durable.begin());
        assert_eq!(durable.end(at(2), &Ok(None)).to_vec(), vec![3]);
        assert_eq!(dropped(&durable), vec![0, 1], "no later flush brings them back");
    }

    #[test]
    fn what_a_good_flush_covered_is_not_dropped_later() {
        let mut durable = Durable::new(8);
        durable.wrote(0..1);
        durable.flush(1);
        durable.begin();
        durable.wrote(1..2);
        durable.end(at(1), &Ok(None));
        durable.flush(2);
        durable.begin();
        durable.end(at(1), &Err(Errno::EIO));
        assert_eq!(dropped(&durable), vec![1]);
    }

    #[test]
    fn what_was_dropped_is_written_again() {
        let layout = Layout::create(4096 + 512 + 8 * 262_144, 512, 262_144).unwrap();
        let mut durable = Durable::new(8);
        durable.may_have_dropped(3..5);
        let (mut key, mut pieces) = (Key(0), Vec::new());
        for second in 0..10 {
            key.0 += 1;
            let Some(range) = durable.next_piece(at(second), key, &layout, |extent| extent == 3) else {
                break;
            };
            assert!(
                durable.is_piece(key) && durable.next_piece(at(second), key, &layout, |_| true).is_none()
            );
            assert!(matches!(durable.read(&layout), Some(DiskOp::Read { length: 131_072, .. })));
            let read = Ok(Some(Buffer::from(vec![7; 131_072])));
            assert!(matches!(durable.write(&layout, read), Some(DiskOp::Write { .. })));
            // The first attempt is in vain.
            assert_eq!(durable.piece_ended(at(second), second > 0), Some(key));
            pieces.push(range.start);
        }
        let extent = 3 * 262_144;
        assert_eq!(pieces, vec![extent, extent, extent + 131_072]);
        assert_eq!(dropped(&durable), vec![4]);
        durable.flush(1);
        durable.begin();
        durable.end(at(20), &Err(Errno::EIO));
        assert_eq!(dropped(&durable), vec![3, 4], "written again, and dropped again");
    }

    #[test]
    fn a_flush_does_not_cover_what_is_written_again_while_it_runs() {
        let layout = Layout::create(4096 + 512 + 8 * 4096, 512, 4096).unwrap();
        let mut durable = Durable::new(8);
        let rewrite = |durable: &mut Durable<u8>, key: u64| {
            let piece = durable.next_piece(at(1), Key(key), &layout, |_| true);
            durable.piece_ended(at(1), true);
            assert_eq!(durable.next_piece(at(1), Key(key + 1), &layout, |_| true), None, "once is enough");
            piece
        };
        durable.may_have_dropped(3..4);
        durable.flush(1);
        durable.begin();
        assert!(rewrite(&mut durable, 1).is_some());
        durable.flush(2);
        durable.end(at(1), &Ok(None));
        assert_eq!(dropped(&durable), vec![3], "the first flush cannot tell");
        durable.begin();
        assert_eq!(dropped(&durable), Vec::<u32>::new(), "the second can");
        durable.end(at(1), &Err(Errno::EIO));
        assert_eq!(dropped(&durable), vec![3]);
        // Without another flush it is settled when the first has ended.
        durable.flush(1);
        durable.begin();
        assert!(rewrite(&mut durable, 3).is_some());
        durable.end(at(9), &Ok(None));
        assert_eq!(rewrite(&mut durable, 5), None);
        assert_eq!(dropped(&durable), Vec::<u32>::new());
        // It is dropped anew by a flush that fails meanwhile, and not if the other node's copy is taken.
        for forgotten in [false, true] {
            durable.may_have_dropped(3..4);
            durable.flush(1);
            durable.begin();
            assert!(rewrite(&mut durable, 7).is_some());
            if forgotten {
                durable.forget(3);
            } else {
                durable.may_have_dropped(3..4);
            }
            durable.end(at(20), &Ok(None));
            assert_eq!(rewrite(&mut durable, 9).is_some(), !forgotten);
        }
    }

    #[test]
    fn a_flush_that_fails_meanwhile_makes_it_vain() {
        let layout = Layout::create(4096 + 512 + 8 * 4096, 512, 4096).unwrap();
        let mut durable = Durable::new(8);
        durable.may_have_dropped(3..4);
        durable.next_piece(at(1), Key(1), &layout, |_| true).unwrap();
        durable.flush(1);
        durable.begin();
        durable.end(at(1), &Err(Errno::EIO));
        durable.piece_ended(at(1), true);
        assert_eq!(durable.next_piece(at(1), Key(2), &layout, |_| true), Some(3 * 4096..4 * 4096));
        durable.piece_ended(at(1), true);
        assert_eq!(durable.next_piece(at(1), Key(3), &layout, |_| true), None);
        assert!(durable.dropped().is_empty());
    }

    #[test]
    fn who_waits_for_a_flush_is_known_and_why_it_failed() {
        let mut durable = Durable::new(8);
        durable.flush(1);
        durable.begin();
        durable.flush(2);
        assert!(durable.is_flushing(1) && durable.is_flushing(2) && !durable.is_flushing(3));
        durable.end(at(1), &Err(Errno::ENOSPC));
        assert!(!durable.is_flushing(1) && !durable.is_flushing(2));
        assert_eq!(durable.error(), Errno::ENOSPC);
    }

    #[test]
    fn a_disk_that_fails_again_at_once_is_left_alone_for_a_second() {
        let layout = Layout::create(4096 + 512 + 8 * 4096, 512, 4096).unwrap();
        let mut durable = Durable::new(8);
        let fail = |durable: &mut Durable<u8>, millis: u64| {
            durable.flush(1);
            durable.begin();
            durable.end(Duration::from_millis(millis), &Err(Errno::EIO));
        };
        fail(&mut durable, 10_000);
        fail(&mut durable, 10_500);
        let (early, due) = (Duration::from_millis(11_499), Duration::from_millis(11_500));
        assert!(durable.is_paused(early) && !durable.is_paused(due));
        assert_eq!(durable.deadline(early), None, "there is nothing to write again");
        durable.may_have_dropped(3..4);
        assert_eq!((durable.deadline(early), durable.deadline(due)), (Some(due), None));
        assert_eq!(durable.next_piece(early, Key(1), &layout, |_| true), None);
        assert!(!durable.is_rewriting());
        assert!(durable.next_piece(due, Key(1), &layout, |_| true).is_some());
        assert!(durable.is_rewriting());
        fail(&mut durable, 11_499);
        assert_eq!(durable.deadline(due), None, "the piece's end is waited for");
        fail(&mut durable, 12_499);
        assert!(!durable.is_paused(Duration::from_millis(12_500)), "a second has passed");
    }

    #[test]
    fn an_extent_is_dropped_until_all_of_it_is_written_again() {
        let layout = Layout::create(4096 + 512 + 8 * 262_144, 512, 262_144).unwrap();
        let mut durable = Durable::<u8>::new(8);
        durable.may_have_dropped(3..4);
        let extent = 3 * 262_144;
        let first = durable.next_piece(at(1), Key(1), &layout, |_| true);
        assert_eq!(first, Some(extent..extent + 131_072));
        assert!(durable.is_piece(Key(1)) && !durable.is_piece(Key(2)));
        let short = Ok(Some(Buffer::from(vec![7; 131_072 - 512])));
        assert!(durable.write(&layout, short).is_none(), "what was not read is not written");
        assert_eq!(durable.piece_ended(at(1), true), Some(Key(1)));
        let second = durable.next_piece(at(1), Key(2), &layout, |_| true);
        assert_eq!(second, Some(extent + 131_072..extent + 262_144));
        assert_eq!(dropped(&durable), vec![3]);
        durable.piece_ended(at(1), true);
        // Another node's copy is taken after all: no need to go on.
        durable.may_have_dropped(4..5);
        assert_eq!(
            durable.next_piece(at(1), Key(3), &layout, |_| true),
            Some(extent + 262_144..extent + 393_216)
        );
        assert_eq!(dropped(&durable), vec![4]);
        durable.piece_ended(at(1), true);
        durable.forget(4);
        assert_eq!(durable.next_piece(at(1), Key(4), &layout, |_| true), None);
        assert!(!durable.is_rewriting());
        // The same while its last piece is under way: what was written is not what is to be kept.
        durable.may_have_dropped(5..6);
        for key in [Key(5), Key(6)] {
            assert!(durable.next_piece(at(1), key, &layout, |_| true).is_some());
            durable.piece_ended(at(1), true);
        }
        durable.forget(5);
        assert_eq!(durable.next_piece(at(1), Key(7), &layout, |_| true), None);
        durable.flush(1);
        durable.begin();
        durable.end(at(2), &Err(Errno::EIO));
        assert_eq!(dropped(&durable), vec![3], "of what was written again here");
    }
}
