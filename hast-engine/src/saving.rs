//! Writing the metadata block: its parts in order, each durable before the next (durability.md, Metadata).

use std::collections::VecDeque;

use hast_format::metadata::Metadata;
use hast_net::buffer::Buffer;
use hast_net::errno::Errno;

use crate::rule::{Rule, keeps};
use crate::types::{DiskOp, DiskResult};

/// One save under way.
#[derive(Debug)]
pub(crate) struct Saving {
    parts: VecDeque<(u64, Vec<u8>)>,
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
    /// Begins to write `metadata` to a provider with sectors of `sectorsize` bytes.
    pub(crate) fn begin(metadata: &Metadata, sectorsize: u32) -> (Saving, Next) {
        let mut saving = Saving { parts: metadata.writes(sectorsize).into(), flushing: false };
        if !keeps(Rule::L8) {
            // The whole block at once, list and all, as the original does.
            saving.parts = [(0, metadata.encode().to_vec())].into();
        }
        let next = saving.part();
        (saving, next)
    }

    /// What was asked for last has ended.
    pub(crate) fn advance(&mut self, result: DiskResult) -> Next {
        match result {
            // L7: flushed always, whatever metaflush says; a disk without a cache needs none.
            Ok(_) if !self.flushing && keeps(Rule::L7) => {
                self.flushing = true;
                Next::Disk(DiskOp::Flush)
            }
            Ok(_) => self.part(),
            Err(Errno::EOPNOTSUPP) if self.flushing => self.part(),
            Err(error) => Next::Failed(error),
        }
    }

    fn part(&mut self) -> Next {
        self.flushing = false;
        match self.parts.pop_front() {
            Some((offset, data)) => Next::Disk(DiskOp::Write { offset, data: Buffer::from(data) }),
            None => Next::Durable,
        }
    }
}
