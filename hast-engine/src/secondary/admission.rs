//! The second step of the handshake: who is out of date, and what must be on disk before the answer.

use hast_format::bitmap::Bitmap;
use hast_net::buffer::Buffer;
use hast_net::control::ConnectionState;
use hast_net::errno::Errno;
use hast_net::extensions::Extensions;
use hast_net::handshake::{Meeting, Met, SecondAnswer, SecondRefusal, SyncSource, texts};
use hast_net::message::Message;

use super::doubt::Doubt;
use super::{EXIT_PROVIDER, EXIT_REFUSED, Phase, Purpose, Save, Secondary};
use crate::connection::{Counted, Histories, before, judged, next};
use crate::counts::{Counts, Decision, Hello, MapToSend, decide, written_alone};
use crate::loss::Loss;
use crate::parting::{is_given_up, map_after_giving_up, number_of};
use crate::rule::{Rule, keeps};
use crate::types::{Action, Deletes, DiskOp, DiskResult, Event, Side};

/// The answer to a primary that is accepted.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reply {
    virgin: bool,
    pub(super) map: MapToSend,
    pub(super) source: SyncSource,
}

impl Default for Reply {
    fn default() -> Reply {
        Reply { virgin: false, map: MapToSend::Full, source: SyncSource::Primary }
    }
}

impl Secondary {
    pub(super) fn flushed_at_start(&mut self, result: DiskResult) {
        if let Err(error) = result
            && error != Errno::EOPNOTSUPP
        {
            log::error!("Unable to flush the provider: {error}.");
            // What an earlier worker left in caches may be gone.
            self.unflushable = true;
            self.doubt();
        }
        if self.doubt == Doubt::Settled { self.admit() } else { self.kick_doubt() }
    }

    /// What this node is not sure of is on disk, if anything is: answers the primary.
    pub(super) fn admit(&mut self) {
        if self.phase != Phase::Admitting {
            return;
        }
        if self.unflushable {
            // A new worker begins with what is on the disk by then.
            return self.turn_away("It cannot be flushed");
        }
        match self.decision() {
            Decision::Mismatch => {
                let text = texts::resuid_mismatch(self.hello.resuid, self.metadata.resuid);
                self.refuse(&text);
                log::error!("{text}");
                self.tell_connection(&Loss::refused(&text));
                self.end(EXIT_REFUSED);
            }
            Decision::SplitBrain => {
                self.refuse_with_map();
                log::error!("Split-brain detected, exiting.");
                self.tell_connection(&Loss::refused(texts::SPLIT_BRAIN));
                self.actions.push_back(Action::Event(Event::SplitBrain));
                self.end(EXIT_REFUSED);
            }
            Decision::Accept { adopt: false, map, source } => {
                self.tell_histories();
                self.reply = Reply { virgin: false, map, source };
                if self.histories() == Histories::PrimaryAhead && keeps(Rule::G1) {
                    self.own_up();
                } else {
                    self.part_from_others();
                }
            }
            Decision::Accept { adopt: true, map, source } => {
                let map = self.with_former(map);
                self.reply = Reply { virgin: true, map, source };
                self.begin_to_adopt(map);
            }
        }
    }

    /// Neither node has belonged to a resource, and so what nobody has written since need not be the same on both. But what
    /// this node's file still holds from before does not stay: the primary of ours, which copies it, leaves holes where it
    /// has zeros.
    fn with_former(&mut self, map: MapToSend) -> MapToSend {
        let copies = map == MapToSend::Nothing && self.ext.contains(Extensions::ZERO_DELETES);
        if !copies || self.former.is_empty() {
            return map;
        }
        self.map.union(&self.former);
        MapToSend::Own
    }

    /// What this node missed when it was the primary it must get from the other one (L3).
    fn add_stale_to_map(&mut self) {
        for extent in self.metadata.extension.stale.iter().flat_map(|run| run.extents()) {
            self.map.insert(extent);
        }
    }

    /// This node has no resuid yet, or not any more: what has to be on disk before it takes the primary's over.
    fn begin_to_adopt(&mut self, map: MapToSend) {
        match map {
            _ if !keeps(Rule::L19) => self.adopt(),
            MapToSend::Full if self.was_primary => {
                // Should this first contact break off, the full map must not look like writes of our own.
                self.save(Save::Role);
            }
            MapToSend::Full => self.set_full_map(),
            MapToSend::Own | MapToSend::Nothing => self.adopt(),
        }
    }

    /// G1: this node's disk is an older one. Once both nodes have stored the generation of this connection nobody could tell
    /// any more: so its map and its mark say it first.
    fn own_up(&mut self) {
        if self.ext.is_ours() {
            self.mark_as_behind();
        }
        self.set_full_map();
    }

    /// The number of this connection is durable before the answer, or that it has none (`crate::parting`).
    fn part_from_others(&mut self) {
        let number = number_of(self.hello.parting);
        let parted = std::mem::replace(&mut self.metadata.extension.parted, number);
        let (suspicion, meeting) = (self.note_suspicion(), self.meet());
        if suspicion || meeting || parted != number || self.map_was_complete {
            self.save(Save::Parting);
        } else {
            self.answer();
        }
    }

    /// G1: the generation of this connection is durable before the answer, and the one that the primary still has; true
    /// if there is one.
    fn meet(&mut self) -> bool {
        let Some(Meeting { met, draw, .. }) = self.hello.meeting else { return false };
        let before = before(self.histories(), met.last);
        let extension = &mut self.metadata.extension;
        extension.connection = next(met, self.past.met(), draw);
        extension.connection_before = before;
        // What the primary does not know of was written alone, and may not be copied to it.
        extension.connection_localcnt = self.metadata.localcnt.min(self.hello.remotecnt);
        self.connection = extension.connection;
        true
    }

    /// G1: the nodes are equal. Of an older disk that could not store the generation of this connection, the primary's is
    /// in common with the primary.
    pub(super) fn note_equality(&mut self) {
        let older = self.histories() == Histories::PrimaryAhead;
        let extension = &mut self.metadata.extension;
        extension.connection_localcnt = self.metadata.localcnt;
        if let Some(meeting) = self.hello.meeting.filter(|_| older && self.connection == 0) {
            (extension.connection, extension.connection_before) = (meeting.met.last, 0);
        }
    }

    pub(super) fn parting_saved(&mut self, result: Result<(), Errno>) {
        match result {
            Ok(()) => self.answer(),
            // The primary will have another number than whatever is on disk here. But as a primary this node would rely on a
            // map that has nothing of this connection (C1 (d)).
            Err(error) if self.ext.contains(Extensions::PARTING) && !self.map_was_complete => {
                log::error!("Unable to write metadata: {error}.");
                // What is saved later must not say that we have met either: the primary will not know of it.
                self.past.put_back(&mut self.metadata.extension);
                self.connection = 0;
                self.answer();
            }
            Err(error) => self.provider_failed("write metadata", error),
        }
    }

    /// G1: the disk forgets the generation before, if nothing else is being written.
    pub(super) fn kick_met(&mut self) {
        if self.forgets_before && self.saving.is_none() && self.marking.is_none() {
            self.save(Save::Met);
        }
    }

    /// Says in the log what the generations have shown.
    fn tell_histories(&self) {
        let (here, there) = (self.past.met().last, self.hello.meeting.map_or(0, |meeting| meeting.met.last));
        match self.histories() {
            Histories::PrimaryAhead => log::error!(
                "This node's disk is older than its last connection (generation {here:x}, {there:x} on the primary): \
                 it was rolled back, cloned or exchanged. Everything is synchronized from the primary."
            ),
            Histories::SecondaryAhead => log::error!(
                "The primary's disk is older than its last connection (generation {there:x}, here {here:x}): it was \
                 rolled back, cloned or exchanged. Everything is synchronized from this node."
            ),
            Histories::Unknown | Histories::Same | Histories::Apart => {}
        }
    }

    fn decision(&self) -> Decision {
        let hello = Hello {
            resuid: self.hello.resuid,
            counts: Counts { local: self.hello.localcnt, remote: self.hello.remotecnt },
            virgin: self.hello.virgin,
        };
        if is_given_up(&self.metadata) && hello.resuid != 0 {
            let map = map_after_giving_up(&self.metadata, &self.hello);
            return Decision::Accept { adopt: true, map, source: SyncSource::Primary };
        }
        let written = written_alone(self.was_primary, &self.map);
        let decision = decide(hello, self.metadata.resuid, self.counts(), written);
        let decision = judged(
            decision,
            Counted { now: hello.counts, then: self.hello.meeting.map_or(0, |meeting| meeting.localcnt) },
            self.past.counted(self.counts()),
            self.metadata.extension.mark.is_some(),
            self.histories(),
        );
        let newer = matches!(decision, Decision::Accept { source: SyncSource::Secondary, .. });
        let misses = !self.metadata.extension.stale.is_empty() || self.metadata.extension.unsure;
        if newer && misses && keeps(Rule::L3) {
            // The primary alone has what is stale here, or may have been lost, and lacks what this node was written without
            // it.
            return Decision::SplitBrain;
        }
        decision
    }

    /// What the generations that both nodes have stored say (G1).
    fn histories(&self) -> Histories {
        self.hello.meeting.map_or(Histories::Unknown, |meeting| self.past.compared(meeting.met))
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
            Ok(_) | Err(Errno::EOPNOTSUPP) if self.reply.virgin => self.adopt(),
            Ok(_) | Err(Errno::EOPNOTSUPP) => self.part_from_others(),
            Err(error) => self.provider_failed("flush the activemap", error),
        }
    }

    /// Takes the primary's resuid over, durably, before the answer.
    fn adopt(&mut self) {
        self.metadata.resuid = self.hello.resuid;
        let extension = &mut self.metadata.extension;
        if std::mem::take(&mut extension.given_up) != 0 {
            if self.reply.map == MapToSend::Own {
                // As far as the primary knows us: what we have written alone since is given up.
                self.metadata.localcnt = self.hello.remotecnt;
                log::info!("Only what has changed since the nodes parted will be synchronized.");
            } else {
                log::warn!(
                    "Everything will be synchronized: it is not known what has changed since the nodes parted."
                );
            }
        }
        if self.ext.is_ours() {
            // L6, L19: what the primary has written before this node was there it lacks until it is told otherwise.
            self.mark_as_behind();
        } else {
            // Given up, and the primary will not say when it is up to date again: as after a create.
            self.metadata.extension.mark = None;
        }
        let extension = &mut self.metadata.extension;
        extension.parted = number_of(self.hello.parting);
        self.meet();
        self.note_suspicion();
        self.save(Save::Adoption);
    }

    pub(super) fn adopted(&mut self, result: Result<(), Errno>) {
        match result {
            Ok(()) => self.answer(),
            Err(error) => self.provider_failed("write metadata", error),
        }
    }

    fn answer(&mut self) {
        if self.phase != Phase::Admitting {
            return;
        }
        let Reply { virgin, map, source: syncsrc } = self.reply;
        let length = usize::try_from(self.layout.sent_map_bytes()).unwrap_or(0);
        self.add_stale_to_map();
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
            boot: self.ext.is_ours().then(|| self.boot_to_say()),
            peer_timeout: self
                .ext
                .contains(Extensions::ALIVE)
                .then(|| u32::try_from(self.patience.as_secs()).unwrap_or(u32::MAX)),
            met: self.hello.meeting.map(|_| Met { last: self.connection, before: self.past.met().last }),
            zero_deletes: self.ext.contains(Extensions::ZERO_DELETES)
                && self.host.deletes == Deletes::LeaveZeros,
        };
        self.send(Side::Out, Message::SecondAnswer(answer, map.map(Buffer::from)));
        self.phase = Phase::Answered;
        self.last_received = self.now;
        self.actions.push_back(Action::Event(Event::Connect));
        let (state, reason) = (ConnectionState::Connected, String::new());
        self.actions.push_back(Action::Connection { state, reason });
    }

    /// Both nodes have written alone: the primary gets the map, to say how far they are apart.
    fn refuse_with_map(&mut self) {
        if !self.ext.contains(Extensions::PARTING) {
            return self.refuse(texts::SPLIT_BRAIN);
        }
        self.add_stale_to_map();
        let map = Buffer::from(self.map.bytes(0..self.map_length()));
        let parted = Some(self.metadata.extension.parted);
        let refusal = SecondRefusal { parted, ..self.refusal(texts::SPLIT_BRAIN) };
        self.send(Side::Out, Message::SecondRefusal(refusal, Some(map)));
    }

    fn refuse(&mut self, errmsg: &str) {
        let refusal = self.refusal(errmsg);
        self.send(Side::Out, Message::SecondRefusal(refusal, None));
    }

    fn refusal(&self, errmsg: &str) -> SecondRefusal {
        SecondRefusal {
            datasize: self.layout.datasize(),
            extentsize: self.layout.extentsize(),
            localcnt: self.metadata.localcnt,
            remotecnt: self.metadata.remotecnt,
            errmsg: errmsg.into(),
            parted: None,
        }
    }

    pub(super) fn provider_failed(&mut self, what: &str, error: Errno) {
        log::error!("Unable to {what}: {error}.");
        if !matches!(self.phase, Phase::Ending { .. } | Phase::Ended) {
            self.turn_away(&format!("Unable to {what}: {error}"));
        }
    }

    /// This node's disk is of no use. A primary that is still at the door and understands it is told why.
    fn turn_away(&mut self, why: &str) {
        let loss = Loss::refused(&texts::provider_failed(why));
        self.tell_connection(&loss);
        if self.phase == Phase::Admitting && self.ext.contains(Extensions::REASONS) {
            self.refuse(&loss.reason);
        } else {
            self.actions.push_back(Action::Close);
        }
        self.end(EXIT_PROVIDER);
    }
}
