//! The second step of the handshake: who is out of date, and what must be on disk before the answer.

use hast_format::bitmap::Bitmap;
use hast_net::buffer::Buffer;
use hast_net::errno::Errno;
use hast_net::extensions::Extensions;
use hast_net::handshake::{SecondAnswer, SecondRefusal, SyncSource, texts};
use hast_net::message::Message;

use super::{EXIT_PROVIDER, EXIT_REFUSED, Phase, Purpose, Save, Secondary};
use crate::counts::{Counts, Decision, Hello, MapToSend, decide, written_alone};
use crate::rule::{Rule, keeps};
use crate::types::{Action, DiskOp, DiskResult, Event, Side};

impl Secondary {
    pub(super) fn flushed_at_start(&mut self, result: DiskResult) {
        if let Err(error) = result
            && error != Errno::EOPNOTSUPP
        {
            return self.provider_failed("flush the provider", error);
        }
        if self.phase != Phase::Admitting {
            return;
        }
        match self.decision() {
            Decision::Mismatch => {
                let text = texts::resuid_mismatch(self.hello.resuid, self.metadata.resuid);
                self.refuse(&text);
                log::error!("{text}");
                self.end(EXIT_REFUSED);
            }
            Decision::SplitBrain => {
                self.refuse(texts::SPLIT_BRAIN);
                log::error!("Split-brain detected, exiting.");
                self.actions.push_back(Action::Event(Event::SplitBrain));
                self.end(EXIT_REFUSED);
            }
            Decision::Accept { adopt: false, map, source } => {
                // In step, with nothing left in the map: what this node missed long ago has been made up for.
                let (hello, counts) = (&self.hello, self.counts());
                let in_step = (counts.local, counts.remote) == (hello.remotecnt, hello.localcnt);
                if in_step && self.map.is_empty() && self.metadata.extension.mark.is_none() {
                    self.metadata.extension.stale.clear();
                }
                self.answer(false, map, source);
            }
            Decision::Accept { adopt: true, .. } if !keeps(Rule::L19) => self.adopt(),
            Decision::Accept { adopt: true, map: MapToSend::Full, .. } if self.was_primary => {
                // Should this first contact break off, the full map must not look like writes of our own.
                self.save(Save::Role);
            }
            Decision::Accept { adopt: true, map: MapToSend::Full, .. } => self.set_full_map(),
            Decision::Accept { adopt: true, .. } => self.adopt(),
        }
    }

    fn decision(&self) -> Decision {
        let hello = Hello {
            resuid: self.hello.resuid,
            counts: Counts { local: self.hello.localcnt, remote: self.hello.remotecnt },
            virgin: self.hello.virgin,
        };
        let written = written_alone(self.was_primary, &self.map);
        decide(hello, self.metadata.resuid, self.counts(), written)
    }

    pub(super) fn counts(&self) -> Counts {
        Counts { local: self.metadata.localcnt, remote: self.metadata.remotecnt }
    }

    /// The map's bytes on disk, as far as the metadata says (L12).
    pub(super) fn map_length(&self) -> usize {
        let length = if keeps(Rule::L12) {
            self.layout.map_bytes().min(self.layout.map_capacity())
        } else {
            self.layout.sent_map_bytes()
        };
        usize::try_from(length).unwrap_or(0)
    }

    pub(super) fn role_saved(&mut self, result: Result<(), Errno>) {
        match result {
            Ok(()) => self.set_full_map(),
            Err(error) => self.provider_failed("write metadata", error),
        }
    }

    /// L19: should this first contact break off, the next one must still copy everything.
    fn set_full_map(&mut self) {
        let extents = self.map.len();
        self.map = Bitmap::full(extents);
        let data = Buffer::from(self.map.bytes(0..self.map_length()));
        self.disk(Purpose::FullMap, DiskOp::Write { offset: self.layout.map_offset(), data });
    }

    pub(super) fn full_map_written(&mut self, result: DiskResult) {
        match result {
            Ok(_) => self.flush_disk(Purpose::FullMapFlush),
            Err(error) => self.provider_failed("write the activemap", error),
        }
    }

    pub(super) fn full_map_flushed(&mut self, result: DiskResult) {
        match result {
            Ok(_) | Err(Errno::EOPNOTSUPP) => self.adopt(),
            Err(error) => self.provider_failed("flush the activemap", error),
        }
    }

    /// Takes the primary's resuid over, durably, before the answer.
    fn adopt(&mut self) {
        self.metadata.resuid = self.hello.resuid;
        self.save(Save::Adoption);
    }

    pub(super) fn adopted(&mut self, result: Result<(), Errno>) {
        match result {
            Ok(()) => {
                let map = if self.hello.virgin { MapToSend::Nothing } else { MapToSend::Full };
                self.answer(true, map, SyncSource::Primary);
            }
            Err(error) => self.provider_failed("write metadata", error),
        }
    }

    fn answer(&mut self, virgin: bool, map: MapToSend, syncsrc: SyncSource) {
        if self.phase != Phase::Admitting {
            return;
        }
        let length = usize::try_from(self.layout.sent_map_bytes()).unwrap_or(0);
        self.possibly_behind = !self.ext.contains(Extensions::SYNC_MARKS) && map != MapToSend::Nothing;
        // What this node missed when it was the primary it must get from there (L3).
        for extent in self.metadata.extension.stale.iter().flat_map(|run| run.extents()) {
            self.map.insert(extent);
        }
        let map = match map {
            MapToSend::Nothing => None,
            MapToSend::Own => Some(self.map.bytes(0..length)),
            MapToSend::Full => Some(vec![0xff; length]),
        };
        let answer = SecondAnswer {
            datasize: self.layout.datasize(),
            extentsize: self.layout.extentsize(),
            localcnt: self.metadata.localcnt,
            remotecnt: self.metadata.remotecnt,
            virgin,
            syncsrc,
            mapsize: map.as_ref().and_then(|map| u32::try_from(map.len()).ok()).unwrap_or(0),
            boot: self.ext.contains(Extensions::SYNC_MARKS).then_some(self.host.boot),
        };
        self.send(Side::Out, Message::SecondAnswer(answer, map.map(Buffer::from)));
        self.phase = Phase::Answered;
        self.last_received = self.now;
        self.actions.push_back(Action::Event(Event::Connect));
    }

    fn refuse(&mut self, errmsg: &str) {
        let refusal = SecondRefusal {
            datasize: self.layout.datasize(),
            extentsize: self.layout.extentsize(),
            localcnt: self.metadata.localcnt,
            remotecnt: self.metadata.remotecnt,
            errmsg: errmsg.into(),
        };
        self.send(Side::Out, Message::SecondRefusal(refusal));
    }

    fn provider_failed(&mut self, what: &str, error: Errno) {
        log::error!("Unable to {what}: {error}.");
        if !matches!(self.phase, Phase::Ending { .. } | Phase::Ended) {
            self.actions.push_back(Action::Close);
            self.end(EXIT_PROVIDER);
        }
    }
}
