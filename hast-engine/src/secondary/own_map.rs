//! The secondary's own activemap, kept under a primary that is an original (durability.md M5).
//!
//! The original forgets an extent as soon as both nodes have answered, flushed or not (defects.md L10), and
//! cannot be told otherwise. So the secondary remembers by itself what a loss of power could take from it, and
//! sends that map at the next handshake. A primary of ours keeps the map for both.

use core::time::Duration;
use std::collections::VecDeque;

use hast_format::activemap::{Activemap, Outcome};
use hast_net::buffer::Buffer;
use hast_net::errno::Errno;

use super::{Purpose, Secondary};
use crate::ranges::Key;
use crate::types::{DiskOp, DiskResult};

/// The housekeeping flush begins at latest this long after the first write that no flush covers (M2).
const LATEST: Duration = Duration::from_secs(1);
/// ... or as soon as this many extents wait.
const EXTENTS: u32 = 256;

/// The map, its writes and its flushes.
#[derive(Debug)]
pub(super) struct OwnMap {
    map: Activemap,
    outstanding: usize,
    failure: Option<Errno>,
    flush_map: bool,
    /// Stored writes that may not be answered before their bits are durable.
    unanswered: VecDeque<(Key, DiskResult)>,
    unflushed_since: Option<Duration>,
    flushing: bool,
}

impl OwnMap {
    pub(super) fn new(map: Activemap, flush_map: bool) -> OwnMap {
        OwnMap {
            map,
            outstanding: 0,
            failure: None,
            flush_map,
            unanswered: VecDeque::new(),
            unflushed_since: None,
            flushing: false,
        }
    }
}

impl Secondary {
    /// The primary has our map: what it says need not be remembered here any more.
    pub(super) fn own_map_was_sent(&mut self) {
        if let Some(own) = &mut self.own {
            own.map.forget_dirty();
        }
        self.kick_own_map();
    }

    /// A write or delete of these bytes begins.
    pub(super) fn remember(&mut self, offset: u64, length: u64) {
        let extents = self.layout.extents_of(offset, length);
        if let Some(own) = &mut self.own {
            own.map.start(extents);
        }
        self.kick_own_map();
    }

    /// A write or delete has ended; gives the result back if it may be answered now.
    pub(super) fn remembered(
        &mut self,
        key: Key,
        offset: u64,
        length: u64,
        result: DiskResult,
    ) -> Option<DiskResult> {
        let extents = self.layout.extents_of(offset, length);
        let Some(own) = &mut self.own else { return Some(result) };
        if !own.map.is_durable(extents) {
            own.unanswered.push_back((key, result));
            // If writing the map has failed meanwhile, nobody else will try again.
            self.kick_own_map();
            return None;
        }
        Some(result)
    }

    /// The answer to a write or delete goes out.
    pub(super) fn forget_in_flight(&mut self, offset: u64, length: u64, stored: bool) {
        let extents = self.layout.extents_of(offset, length);
        let Some(own) = &mut self.own else { return };
        // What failed half-way differs from the primary: it stays in the map until the next handshake.
        own.map.finish(extents, if stored { Outcome::StoredOnBoth } else { Outcome::Unconfirmed });
        own.unflushed_since.get_or_insert(self.now);
    }

    pub(super) fn kick_own_map(&mut self) {
        let Some(own) = &mut self.own else { return };
        let runs = own.map.begin_write();
        if runs.is_empty() {
            return;
        }
        own.outstanding = runs.len();
        own.failure = None;
        for run in runs {
            let offset = self.layout.map_offset() + run.offset;
            self.disk(Purpose::OwnMap, DiskOp::Write { offset, data: Buffer::from(run.bytes) });
        }
    }

    pub(super) fn own_map_written(&mut self, result: DiskResult) {
        let Some(own) = &mut self.own else { return };
        own.outstanding = own.outstanding.saturating_sub(1);
        if let Err(error) = result {
            log::error!("Unable to write the activemap: {error}.");
            self.statistics.write_errors += 1;
            own.failure = Some(error);
        }
        if own.outstanding > 0 {
            return;
        }
        if own.failure.is_none() && own.flush_map {
            self.flush_disk(Purpose::OwnMapFlush);
        } else {
            self.own_map_durable();
        }
    }

    pub(super) fn own_map_flushed(&mut self, result: DiskResult) {
        let Some(own) = &mut self.own else { return };
        match result {
            Ok(_) => {}
            Err(Errno::EOPNOTSUPP) => own.flush_map = false,
            Err(error) => {
                log::error!("Unable to flush the activemap: {error}.");
                self.statistics.flush_errors += 1;
                own.failure = Some(error);
            }
        }
        self.own_map_durable();
    }

    fn own_map_durable(&mut self) {
        let Some(own) = &mut self.own else { return };
        let failure = own.failure.take();
        own.map.end_write(failure.is_none());
        for (key, result) in std::mem::take(&mut own.unanswered) {
            match failure {
                Some(error) => self.answered(key, Err(error)),
                // M5: the write that has ended need not be the one that holds these bits.
                None => self.stored(key, result),
            }
        }
        if failure.is_none() {
            self.kick_own_map();
        }
    }

    /// Begins a housekeeping flush if one is due and none is under way.
    pub(super) fn kick_own_flush(&mut self) {
        let due = self.own_flush_deadline().is_some_and(|at| at <= self.now);
        let Some(own) = &mut self.own else { return };
        if own.flushing || !(due || own.map.unflushed() >= EXTENTS) {
            return;
        }
        own.flushing = true;
        own.unflushed_since = None;
        own.map.flush_begins();
        self.flush_disk(Purpose::OwnFlush);
    }

    pub(super) fn own_flush_ended(&mut self, result: DiskResult) {
        let Some(own) = &mut self.own else { return };
        own.flushing = false;
        match result {
            // M4: a disk without a cache has nothing to lose.
            Ok(_) | Err(Errno::EOPNOTSUPP) => own.map.flush_succeeded(),
            Err(error) => {
                log::error!("Unable to flush the provider: {error}.");
                self.statistics.flush_errors += 1;
                own.map.flush_failed();
                own.unflushed_since.get_or_insert(self.now);
            }
        }
        self.kick_own_map();
    }

    /// A flush has failed, whatever it was for. What it did not cover stays in the map until the next handshake;
    /// a map write under way is not on disk.
    pub(super) fn own_map_may_be_dropped(&mut self, error: Errno) {
        let Some(own) = &mut self.own else { return };
        own.map.peer_lost();
        if own.map.is_writing() {
            own.failure = Some(error);
        }
        if !own.flush_map {
            own.map.distrust();
            self.kick_own_map();
        }
    }

    pub(super) fn own_flush_deadline(&self) -> Option<Duration> {
        let own = self.own.as_ref()?;
        if own.flushing { None } else { own.unflushed_since.map(|since| since + LATEST) }
    }
}
