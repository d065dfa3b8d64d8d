//! What the primary has this node write down (`sync-marks`): that its data is out of date, that it is up to
//! date, and what the primary's own disk missed and cannot remember.

use hast_net::buffer::Buffer;
use hast_net::errno::Errno;
use hast_net::message::{Mark, MarkKind, Message, Reply};

use super::doubt::Doubt;
use super::{Phase, Purpose, Save, Secondary};
use crate::rule::{Rule, keeps};
use crate::types::{DiskOp, DiskResult, Side};

impl Secondary {
    /// A mark has come; marks are written down one after the other.
    pub(super) fn take_mark(&mut self, mark: Mark) {
        self.told_stale |= matches!(mark.kind, MarkKind::Stale { .. });
        self.marks.push_back(mark);
        self.next_mark();
    }

    /// The number of the mark that is being written down, or waits for that.
    pub(super) fn oldest_mark(&self) -> Option<u64> {
        let saving = match self.saving {
            Some((Save::Mark(seq), _)) => Some(seq),
            _ => None,
        };
        saving.or(self.marking).or(self.marks.front().map(|mark| mark.seq))
    }

    pub(super) fn next_mark(&mut self) {
        let serving = matches!(self.phase, Phase::Answered | Phase::Serving);
        if self.saving.is_some() || self.marking.is_some() || self.clearing || !serving {
            return;
        }
        let Some(Mark { seq, kind }) = self.marks.pop_front() else { return };
        match kind {
            MarkKind::SyncStart => {
                self.mark_as_behind();
                self.save(Save::Mark(seq));
            }
            MarkKind::SyncDone { localcnt, failures } => {
                if self.doubts_since_the_flush() {
                    return self.answer_mark(seq, Err(Errno::EIO)); // the primary's next flush hears of it
                }
                // C2: localcnt stays; the primary knows it already.
                let counts = self.counts().equal_to_primary(localcnt);
                self.metadata.remotecnt = counts.remote;
                self.metadata.extension.target = false;
                self.metadata.extension.possibly_behind = false;
                self.metadata.extension.stale.clear();
                if failures.is_none_or(|failures| failures == self.failures) || !keeps(Rule::B1) {
                    self.metadata.extension.mark = None;
                    self.metadata.extension.unsure = false;
                    self.doubt = Doubt::Settled;
                }
                if let Some(boot) = self.hello.boot {
                    self.metadata.extension.peer_boot = boot;
                }
                self.note_equality();
                self.save(Save::Mark(seq));
            }
            MarkKind::Stale { offset, length } => {
                if self.layout.check_range(offset, length).is_err() {
                    return self.answer_mark(seq, Err(Errno::EINVAL));
                }
                for extent in self.layout.extents_of(offset, length) {
                    self.map.insert(extent);
                }
                self.marking = Some(seq);
                let data = Buffer::from(self.map.bytes(0..self.map_length()));
                self.disk(Purpose::MarkMap, DiskOp::Write { offset: self.layout.map_offset(), data });
            }
        }
    }

    pub(super) fn mark_map_written(&mut self, result: DiskResult) {
        match result {
            Ok(_) => self.flush_disk(Purpose::MarkMapFlush),
            Err(error) => self.mark_map_saved(Err(error)),
        }
    }

    pub(super) fn mark_map_flushed(&mut self, result: DiskResult) {
        match result {
            Ok(_) | Err(Errno::EOPNOTSUPP) => self.mark_map_saved(Ok(())),
            Err(error) => self.mark_map_saved(Err(error)),
        }
    }

    /// The primary's missed write is in our map: our count says that it is behind.
    fn mark_map_saved(&mut self, result: Result<(), Errno>) {
        let Some(seq) = self.marking.take() else { return };
        match result {
            Ok(()) => {
                self.metadata.localcnt = self.metadata.localcnt.saturating_add(1);
                self.counting = Some(seq);
                // Only a node that lacks nothing is told that it alone is right: it has got back what it missed itself. What it
                // is not sure of itself the primary may not know yet.
                self.metadata.extension.stale.clear();
                let sure = self.failures == 0 && !self.metadata.extension.unsure;
                if sure && !self.doubts_since_the_flush() {
                    self.metadata.extension.mark = None;
                }
                self.save(Save::Mark(seq));
            }
            Err(error) => self.answer_mark(seq, Err(error)),
        }
    }

    pub(super) fn mark_saved(&mut self, seq: u64, result: Result<(), Errno>) {
        if self.counting.take() == Some(seq) && result.is_err() {
            // The primary knows what is counted here only by the answers.
            self.metadata.localcnt = self.metadata.localcnt.saturating_sub(1);
        }
        self.answer_mark(seq, result);
    }

    fn answer_mark(&mut self, seq: u64, result: Result<(), Errno>) {
        if let Err(error) = result {
            log::error!("Unable to write down what the primary said: {error}.");
        }
        self.send(Side::In, Message::Reply(Reply { seq, received: false, error: result.err(), data: None }));
        self.next_mark();
    }
}
