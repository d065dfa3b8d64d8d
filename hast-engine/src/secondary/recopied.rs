//! What was stale here, and an original has copied (L3). It does not say when it has, so what it writes is watched: an extent
//! is right again once all of it was written, from its beginning to its end, and a flush that began afterwards has succeeded.
//!
//! Owns how far each stale extent has come. A primary of ours says itself when it has copied everything.

use std::collections::BTreeMap;

use hast_format::bitmap::Bitmap;
use hast_format::extension::{Run, STALE_RUNS, runs_of};
use hast_net::errno::Errno;

use super::{Phase, Save, Secondary};
use crate::types::DiskResult;

/// How far stale extents have come.
#[derive(Debug)]
pub(super) struct Recopied {
    /// Bytes from the beginning of an extent that have been written, one after the other.
    written: BTreeMap<u32, u64>,
    /// All of it was written ...
    whole: Bitmap,
    /// ... before the flush under way began ...
    covered: Bitmap,
    /// ... and that succeeded.
    durable: Bitmap,
}

impl Recopied {
    pub(super) fn new(extents: u32) -> Recopied {
        let none = || Bitmap::new(extents);
        Recopied { written: BTreeMap::new(), whole: none(), covered: none(), durable: none() }
    }

    /// A flush begins.
    pub(super) fn flush_begins(&mut self) {
        self.covered.union(&self.whole);
        self.whole.clear();
    }

    /// It has ended. Of what a flush that failed did not cover nobody knows whether it is there.
    pub(super) fn flush_ended(&mut self, result: &DiskResult) {
        if matches!(result, Ok(_) | Err(Errno::EOPNOTSUPP)) {
            self.durable.union(&self.covered);
        } else {
            self.written.clear();
            self.whole.clear();
        }
        self.covered.clear();
    }
}

impl Secondary {
    /// These bytes were written, as the primary has them.
    pub(super) fn note_recopied(&mut self, offset: u64, length: u64) {
        if self.own.is_none() || self.metadata.extension.stale.is_empty() {
            return;
        }
        let end = offset.saturating_add(length);
        for extent in self.layout.extents_of(offset, length) {
            let stale = |run: &Run| run.extents().contains(&extent);
            if !self.metadata.extension.stale.iter().any(stale) {
                continue;
            }
            let (begin, size) = self.layout.extent_range(extent);
            let written = self.recopied.written.entry(extent).or_default();
            if offset <= begin.saturating_add(*written) {
                *written = (*written).max(end.saturating_sub(begin).min(size.into()));
            }
            if *written >= u64::from(size) {
                self.recopied.written.remove(&extent);
                self.recopied.whole.insert(extent);
            }
        }
    }

    /// Writes down what is right again, if nothing else is being written.
    pub(super) fn kick_recopied(&mut self) {
        let busy = self.saving.is_some() || self.marking.is_some() || self.phase == Phase::Ended;
        if self.recopied.durable.is_empty() || busy {
            return;
        }
        let mut left = Bitmap::new(self.map.len());
        for extent in self.metadata.extension.stale.iter().flat_map(|run| run.extents()) {
            if !self.recopied.durable.contains(extent) {
                left.insert(extent);
            }
        }
        let runs = runs_of(&left);
        // Else the rest has to be copied first.
        if runs.len() <= STALE_RUNS && runs != self.metadata.extension.stale {
            self.recopied.durable.clear();
            self.metadata.extension.stale = runs;
            self.save(Save::Recopied);
        }
    }

    /// The disk says so, or goes on calling more stale than is: a later worker finds that, and asks for it again.
    pub(super) fn recopied_saved(&mut self, result: Result<(), Errno>) {
        if let Err(error) = result {
            log::error!("Unable to write down what was copied: {error}.");
        }
    }
}
