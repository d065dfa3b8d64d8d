//! Writing the metadata block: its parts in order, each durable before the next (durability.md, Metadata).

use std::collections::VecDeque;

use hast_format::metadata::Metadata;
use hast_net::buffer::Buffer;
use hast_net::errno::Errno;

use crate::rule::{Rule, keeps};
use crate::types::{DiskOp, DiskResult};

/// A part of the block: byte offset on the provider, and what to write there.
pub(crate) type Part = (u64, Vec<u8>);

/// One save under way.
#[derive(Debug)]
pub(crate) struct Saving {
    current: Option<Part>,
    parts: VecDeque<Part>,
    /// How many of them, the current one included, belong to a save that failed before.
    again: usize,
    /// What is on the disk besides is being flushed, before anything else.
    before: bool,
    flushing: bool,
}

/// What a save wants next.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// This, and then to be told of its end.
    Disk(DiskOp),
    /// Nothing: the block is durable as it was given.
    Durable,
    /// Nothing: nobody knows what of it is on disk.
    Failed(Errno),
}

impl Saving {
    /// Begins to write `metadata` to a provider with sectors of `sectorsize` bytes. What an earlier save may
    /// have left half done, `unsure`, is done first: beside a part that may be torn there must be a whole one.
    /// With `flush` what the data area holds is made durable before it is relied on.
    pub(crate) fn begin(
        metadata: &Metadata,
        unsure: Vec<Part>,
        sectorsize: u32,
        flush: bool,
    ) -> (Saving, Next) {
        let again = unsure.len();
        let mut parts = VecDeque::from(unsure);
        parts.extend(metadata.writes(sectorsize));
        let mut saving = Saving { current: None, parts, again, before: flush, flushing: flush };
        let next = if flush { Next::Disk(DiskOp::Flush) } else { saving.part() };
        (saving, next)
    }

    /// After a failure: what the next save has to begin with, the part that failed and what belongs to it.
    pub(crate) fn unsure(self) -> Vec<Part> {
        let mut parts: Vec<Part> = self.current.into_iter().chain(self.parts).collect();
        if self.again > 0 || self.before {
            parts.truncate(self.again);
        }
        parts
    }

    /// What was asked for last has ended.
    pub(crate) fn advance(&mut self, result: DiskResult) -> Next {
        match result {
            // L7: flushed always, whatever metaflush says; a disk without a cache needs none.
            Ok(_) if !self.flushing && keeps(Rule::L7) => {
                self.flushing = true;
                Next::Disk(DiskOp::Flush)
            }
            Ok(_) => self.part_done(),
            Err(Errno::EOPNOTSUPP) if self.flushing => self.part_done(),
            Err(error) => Next::Failed(error),
        }
    }

    fn part_done(&mut self) -> Next {
        if std::mem::take(&mut self.before) {
            return self.part();
        }
        self.again = self.again.saturating_sub(1);
        self.part()
    }

    fn part(&mut self) -> Next {
        self.flushing = false;
        self.current = self.parts.pop_front();
        match &self.current {
            Some((offset, data)) => {
                Next::Disk(DiskOp::Write { offset: *offset, data: Buffer::from(data.clone()) })
            }
            None => Next::Durable,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hast_format::extension::Extension;
    use hast_format::metadata::Role;

    fn metadata(localcnt: u64) -> Metadata {
        Metadata {
            resource: "t".into(),
            datasize: 1 << 20,
            extentsize: 4096,
            keepdirty: 1,
            localoff: 8192,
            resuid: 5,
            localcnt,
            remotecnt: 1,
            prevrole: Role::Primary,
            extension: Extension { generation: localcnt, ..Extension::default() },
        }
    }

    /// Every part up to this one is written and flushed; it is not.
    fn failed(saving: &mut Saving, next: Next, part: usize) -> Vec<Part> {
        let (mut next, mut written) = (next, Vec::new());
        while written.len() <= part {
            next = match next {
                Next::Disk(DiskOp::Write { offset, data }) => {
                    written.push((offset, data.to_vec()));
                    saving.advance(if written.len() > part { Err(Errno::EIO) } else { Ok(None) })
                }
                Next::Disk(DiskOp::Flush) => saving.advance(Ok(None)),
                other => panic!("{other:?} after {} parts", written.len()),
            };
        }
        assert_eq!(next, Next::Failed(Errno::EIO));
        written
    }

    #[test]
    fn what_a_failed_save_left_is_repeated_and_nothing_else() {
        let (old, new): (Vec<Part>, Vec<Part>) = (metadata(1).writes(512), metadata(2).writes(512));
        let (mut saving, next) = Saving::begin(&metadata(1), Vec::new(), 512, false);
        assert_eq!(failed(&mut saving, next, 1), old[..2]);
        let unsure = saving.unsure();
        assert_eq!(unsure, old[1..], "the part that failed and those after it");
        // The repetition fails: the new state has not begun.
        let (mut saving, next) = Saving::begin(&metadata(2), unsure.clone(), 512, false);
        assert_eq!(failed(&mut saving, next, 0), old[1..2]);
        assert_eq!(saving.unsure(), unsure);
        // It does not, and the new state does.
        let (mut saving, next) = Saving::begin(&metadata(2), unsure.clone(), 512, false);
        failed(&mut saving, next, unsure.len());
        assert_eq!(saving.unsure(), new);
    }

    #[test]
    fn a_flush_before_a_save_that_fails_leaves_it_undone() {
        for unsure in [Vec::new(), vec![(512, vec![1; 512])]] {
            let (mut saving, next) = Saving::begin(&metadata(2), unsure.clone(), 512, true);
            assert_eq!(next, Next::Disk(DiskOp::Flush));
            assert_eq!(saving.advance(Err(Errno::EIO)), Next::Failed(Errno::EIO));
            assert_eq!(saving.unsure(), unsure);
        }
    }
}
