//! The link to the secondary: connecting, the handshake (spec/wire.md), requests that await an answer, and
//! loss.

use core::time::Duration;
use std::collections::{BTreeMap, BTreeSet};

use hast_format::bitmap::Bitmap;
use hast_format::extension::{Extension, Mark};
use hast_format::nv::List;
use hast_net::buffer::Buffer;
use hast_net::control::ConnectionState;
use hast_net::errno::Errno;
use hast_net::frame::{Frame, VERSION};
use hast_net::handshake::{
    Extensions, FirstAnswer, FirstHello, FirstReply, Meeting, Met, Parting, Refused, SecondAnswer,
    SecondHello, SecondReply, SyncSource,
};
use hast_net::message::{self, Command, FromSecondary, MarkKind, Message, Reply, Request};

use super::silence::Signs;
use super::stuck::Stuck;
use super::{Phase, Primary};
use crate::connection::{Histories, compare, met};
use crate::counts::Counts;
use crate::loss::Loss;
use crate::parting::{Apart, draw};
use crate::ranges::Key;
use crate::rule::{Rule, keeps};
use crate::types::{Action, Deletes, Event, Settings, Side};

/// Waits between attempts to connect grow from one second to this.
const RECONNECT_MAX: Duration = Duration::from_secs(10);
/// What a refusal with `wait` waits before the next attempt.
const WAIT: Duration = Duration::from_secs(1);

/// How long the device's requests wait for a secondary whose host does not answer at all. One that is there
/// answers at once; a host that is dead would hold up a takeover for the whole of `timeout`. The attempt goes on
/// all the same, and ends as any other while requests are served.
const FIRST_ANSWER: Duration = Duration::from_secs(2);

/// Why an answer of the secondary is awaited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Awaited {
    Request(Key),
    Flush,
    SyncRead(Key),
    SyncWrite(Key),
    /// The secondary marks itself as out of date.
    SyncStart,
    /// The secondary writes the equal counts down.
    SyncDone,
    /// The secondary remembers what this request's local write missed.
    Told(Key),
    /// The secondary remembers that its copy of everything is the right one.
    Left,
}

/// The two connections, seen as one.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) stage: Stage,
    /// When the stage has lasted too long.
    deadline: Option<Duration>,
    /// Whom the connection was made to, whatever hast.conf says by now.
    name: String,
    /// Failed attempts since the last success.
    attempts: u32,
    /// Why the last one failed, as the log has it.
    complaint: String,
    /// What those who ask are told.
    told: Option<(ConnectionState, String)>,
    stuck: Stuck,
    /// When the nodes were connected last.
    up_since: Duration,
    /// When the last attempt began.
    attempted: Duration,
    /// While this lasts, a refusal with `wait` keeps the device's requests waiting.
    wait_until: Duration,
    /// The log says so.
    waiting: bool,
    /// Negotiated; 1 before the first contact.
    version: u8,
    token: [u8; 16],
    /// What both nodes know beyond the original.
    ext: Extensions,
    peer: Counts,
    /// The secondary's boot id, zeros if it did not say.
    peer_boot: [u8; 16],
    /// What the secondary's disk can do with deletes.
    pub(super) peer_deletes: Deletes,
    /// The last attempt ended with a split-brain.
    split: bool,
    /// ... and with the secondary's map.
    apart: Option<Apart>,
    /// The number of this connection, or of the attempt at one; 0: it has none (`crate::parting`).
    number: u64,
    /// The generation of this connection, once the secondary has stored it; 0: it has none (`crate::connection`).
    connection: u64,
    /// The secondary's latest, if it has seen connections that this node has not, and could not store this one's; else 0.
    pub(super) newer: u64,
    /// An earlier first contact broke off before its map was durable (L19).
    owed: bool,
    /// The save that made the resuid durable, or will.
    resuid_save: u64,
    /// localcnt as it stood in the second step: what the secondary decides by.
    said: u64,
    /// The save that must be durable before the nodes count as connected.
    merge_save: u64,
    pub(super) last_sent: Duration,
    pub(super) signs: Signs,
    /// When the secondary last answered anything, that it has received it apart.
    pub(super) last_answer: Duration,
    /// When the youngest request was asked that has been answered.
    pub(super) answered: Duration,
    /// What the secondary said last that its disk is busy with, and when.
    pub(super) busy: (u64, Duration),
    last_seq: u64,
    /// Answers with an error that this connection has brought.
    failures: u64,
    /// Which connection this is.
    epoch: u64,
    pub(super) outstanding: BTreeMap<u64, Outstanding>,
    /// The writes and deletes among them.
    writes: BTreeSet<u64>,
}

#[derive(Debug)]
pub(super) struct Outstanding {
    why: Awaited,
    /// `None` for a mark.
    command: Option<Command>,
    length: u64,
    pub(super) since: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// Not connected; the next attempt is due then, if ever.
    Down(Option<Duration>),
    OpeningOut,
    AwaitingFirst,
    OpeningIn,
    /// A new resuid (`virgin`), or that a full synchronisation may be owed, is being written by this save.
    Preparing {
        save: u64,
        virgin: bool,
    },
    AwaitingSecond,
    /// The merged map is being written.
    Merging,
    /// The secondary writes down that it is out of date, before anything reaches it (L6).
    Marking,
    Up,
}

impl Link {
    pub(super) fn new(settings: &Settings, now: Duration) -> Link {
        Link {
            stage: Stage::Down(None),
            deadline: None,
            name: settings.peer.clone(),
            attempts: 0,
            complaint: String::new(),
            told: None,
            stuck: Stuck::default(),
            up_since: now,
            attempted: now,
            wait_until: now + settings.timeout,
            waiting: false,
            version: 1,
            token: [0; 16],
            ext: Extensions::NONE,
            peer: Counts::default(),
            peer_boot: [0; 16],
            peer_deletes: Deletes::Refused,
            split: false,
            apart: None,
            number: 0,
            connection: 0,
            newer: 0,
            owed: false,
            resuid_save: 0,
            said: 0,
            merge_save: 0,
            last_sent: now,
            signs: Signs::new(now),
            last_answer: now,
            answered: now,
            busy: (0, now),
            last_seq: 0,
            failures: 0,
            epoch: 0,
            outstanding: BTreeMap::new(),
            writes: BTreeSet::new(),
        }
    }

    /// Whether requests go to the secondary.
    pub(super) fn is_up(&self) -> bool {
        self.stage == Stage::Up
    }

    /// Whether there is anything to lose.
    pub(super) fn is_connected(&self) -> bool {
        !matches!(self.stage, Stage::Down(_))
    }

    /// Whether the secondary's map is being made durable here.
    pub(super) fn is_merging(&self) -> bool {
        self.stage == Stage::Merging
    }

    /// Whom the connection is to, as hast.conf had it when it was made.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn version(&self) -> u8 {
        self.version
    }

    /// The secondary's counts as of the handshake.
    pub(super) fn peer_counts(&self) -> Counts {
        self.peer
    }

    /// Which connection this is: what an earlier one's secondary stored it may have lost since.
    pub(super) fn epoch(&self) -> u64 {
        self.epoch
    }

    /// The secondary raised its localcnt because we asked it to; gives the new one.
    pub(super) fn peer_counted(&mut self) -> u64 {
        self.peer.local = self.peer.local.saturating_add(1);
        self.peer.local
    }

    /// How many answers with an error this connection has brought.
    pub(super) fn failures(&self) -> u64 {
        self.failures
    }

    /// The number of the latest request.
    pub(super) fn last_seq(&self) -> u64 {
        self.last_seq
    }

    /// Whether some write or delete has not been answered.
    pub(super) fn awaits_writes(&self) -> bool {
        !self.writes.is_empty()
    }

    /// Whether a write or delete numbered up to `seq` has not been answered.
    pub(super) fn awaits_writes_up_to(&self, seq: u64) -> bool {
        self.writes.first().is_some_and(|first| *first <= seq)
    }

    /// Whether both nodes know this extension.
    pub(super) fn has(&self, ext: Extensions) -> bool {
        self.ext.contains(ext)
    }

    /// Whether the other node is one of ours, not an original.
    pub(super) fn is_ours(&self) -> bool {
        self.ext.is_ours()
    }

    /// Whether the secondary refused because both nodes were written apart.
    pub(super) fn is_split(&self) -> bool {
        self.split
    }

    /// What the secondary that refused because of that has changed.
    pub(super) fn apart(&self) -> Option<&Apart> {
        self.apart.as_ref()
    }

    pub(super) fn peer_boot(&self) -> [u8; 16] {
        self.peer_boot
    }

    /// Whether the secondary's host has started since the nodes were in step, as far as anybody knows: then it
    /// may have lost what it had not flushed.
    pub(super) fn peer_has_restarted(&self, extension: &Extension) -> bool {
        self.peer_boot == [0; 16] || self.peer_boot != extension.peer_boot
    }

    pub(super) fn outstanding_requests(&self) -> usize {
        self.outstanding.len()
    }
}

impl Primary {
    /// A connection that was asked for is there.
    pub fn handle_connected(&mut self, now: Duration, side: Side) {
        self.now = now;
        match (self.link.stage, side) {
            (Stage::OpeningOut, Side::Out) => {
                let hello = FirstHello {
                    resource: self.metadata.resource.clone(),
                    version: VERSION,
                    ext: Extensions::ALL,
                };
                self.enter(Stage::AwaitingFirst);
                self.send(Side::Out, Message::FirstHello(hello));
            }
            (Stage::OpeningIn, Side::In) => self.introduce(),
            _ => {}
        }
        self.settle();
    }

    /// A connection that was asked for could not be made.
    pub fn handle_connect_failed(&mut self, now: Duration, side: Side, reason: &str) {
        self.now = now;
        if matches!((self.link.stage, side), (Stage::OpeningOut, Side::Out) | (Stage::OpeningIn, Side::In)) {
            self.lose_link(reason);
        }
        self.settle();
    }

    /// Either connection has ended, broke, or brought something that is no message.
    pub fn handle_lost(&mut self, now: Duration, reason: &str) {
        self.now = now;
        if self.link.is_connected() {
            self.lose_link(reason);
        }
        self.settle();
    }

    /// A frame has come, its payload already decoded.
    pub fn handle_frame(&mut self, now: Duration, side: Side, frame: Frame) {
        self.now = now;
        self.link.signs.heard(now);
        let understood = match (self.link.stage, side) {
            (Stage::AwaitingFirst, Side::Out) => self.first_reply(&frame),
            (Stage::AwaitingSecond, Side::Out) => self.second_reply(frame),
            (Stage::AwaitingSecond, Side::In) => self.second_refused(&frame),
            // While the map is being merged it can only say that it is alive.
            (Stage::Up | Stage::Marking | Stage::Merging, Side::In) => self.reply(frame),
            (Stage::Down(_), _) => Ok(()),
            (_, side) => Err(format!("The secondary sent something unexpected on connection {side}").into()),
        };
        if let Err(loss) = understood {
            self.lose_link(loss);
        }
        self.settle();
    }

    /// Makes the first attempt, or the next one.
    pub(super) fn connect(&mut self) {
        if !self.settings.remote {
            self.enter(Stage::Down(None));
            self.tell_connection(ConnectionState::Standalone, String::new());
            return self.serve();
        }
        if self.link.told.is_none() {
            self.tell_connection(ConnectionState::Connecting, String::new());
        }
        self.link.name.clone_from(&self.settings.peer);
        self.link.attempted = self.now;
        self.enter(Stage::OpeningOut);
        self.actions.push_back(Action::Connect(Side::Out));
    }

    /// Closes and connects anew, after a drain.
    pub(super) fn reconnect(&mut self) {
        if self.link.is_up() {
            self.disconnected();
        }
        self.close();
        self.link.attempts = 0;
        self.link.stuck = Stuck::default(); // that was another way
        self.link.wait_until = self.now;
        self.connect();
    }

    fn enter(&mut self, stage: Stage) {
        self.link.stage = stage;
        self.link.deadline = match stage {
            // The supervisor gives up after `timeout`; this is for when it does not answer at all.
            Stage::OpeningOut | Stage::OpeningIn => {
                Some(self.now + self.settings.timeout + Duration::from_secs(5))
            }
            Stage::AwaitingFirst | Stage::AwaitingSecond => Some(self.now + self.settings.timeout),
            Stage::Down(next) => next,
            // From here on each request has a deadline of its own.
            Stage::Marking | Stage::Up => None,
            Stage::Preparing { .. } | Stage::Merging => None,
        };
    }

    fn first_reply(&mut self, frame: &Frame) -> Result<(), Loss> {
        let list = List::parse(&frame.nv).map_err(|error| error.to_string())?;
        match FirstReply::decode(&list).map_err(|error| error.to_string())? {
            FirstReply::Refused(refusal) => {
                let loss = Loss::refused(&refusal.errmsg);
                let patient = refusal.wait
                    && self.phase == Phase::Connecting
                    && self.now + WAIT <= self.link.wait_until;
                if patient {
                    log::warn!("{}", refusal.errmsg);
                    if !self.link.waiting {
                        let seconds = self.settings.timeout.as_secs();
                        log::warn!("Waiting for remote node to become secondary for {seconds}s.");
                        self.link.waiting = true;
                    }
                    // One of the two is about to change its role.
                    self.tell_connection(ConnectionState::Connecting, loss.reason);
                    self.close();
                    self.enter(Stage::Down(Some(self.now + WAIT)));
                } else {
                    self.lose_link(loss);
                }
            }
            FirstReply::Answer(FirstAnswer { version, token, ext }) => {
                self.link.ext = ext.intersection(Extensions::ALL);
                self.link.version = version.clamp(1, VERSION);
                log::debug!("Negotiated protocol version {}.", self.link.version);
                self.link.token = token;
                self.enter(Stage::OpeningIn);
                self.actions.push_back(Action::Connect(Side::In));
            }
        }
        Ok(())
    }

    /// The second connection is there: say who we are, after writing down what must not be forgotten once the
    /// secondary has heard it.
    fn introduce(&mut self) {
        let virgin = self.metadata.resuid == 0;
        if virgin {
            self.metadata.resuid = self.random;
            self.link.resuid_save = 0;
        }
        // L19: an original adopts the resuid at once, and what it has to be sent lives in its memory alone.
        // A fresh one cannot be told from one that we know: note it each time, and look at the answer.
        self.link.owed = self.metadata.extension.full_sync_owed;
        let note = !virgin && !self.link.is_ours() && keeps(Rule::L19);
        // Whoever does not know of numbers may clear its map, and ours will be cleared without one.
        let forget =
            !self.link.has(Extensions::PARTING) && std::mem::take(&mut self.metadata.extension.parted) != 0;
        if virgin || forget || (note && !self.link.owed) {
            self.metadata.extension.full_sync_owed = note || (forget && self.link.owed);
            let save = self.save_metadata();
            self.link.resuid_save = save;
            self.enter(Stage::Preparing { save, virgin });
        } else if !self
            .meta
            .is_durable(self.link.resuid_save.max(self.link.merge_save).max(self.sync.equal_save))
        {
            // Drawn in an attempt that broke off, and not on disk yet: nobody may adopt it before that. Nor may the
            // secondary take a generation for stored that is not (G1).
            let save = self.save_metadata();
            self.link.resuid_save = save;
            self.enter(Stage::Preparing { save, virgin: false });
        } else {
            self.second_hello(false);
        }
    }

    pub(super) fn resuid_drawn(&mut self, done: u64) {
        if let Stage::Preparing { save, virgin } = self.link.stage
            && save <= done
        {
            self.second_hello(virgin);
        }
    }

    pub(super) fn resuid_not_drawn(&mut self, failed: u64) {
        if let Stage::Preparing { save, virgin } = self.link.stage
            && save <= failed
        {
            if virgin {
                self.metadata.resuid = 0;
            }
            self.lose_link("The metadata could not be written");
        }
    }

    fn second_hello(&mut self, virgin: bool) {
        let known = self.link.has(Extensions::PARTING);
        let number = if known && self.settings.metaflush { draw(self.random, self.link.epoch) } else { 0 };
        self.link.number = number;
        let last = self.metadata.extension.parted;
        let parting = known.then(|| Parting { last, next: number, divergence: self.divergence() });
        // G1: the secondary must not store that it has met a node which may not remember that.
        let certain = self.meta.certain_met(&self.metadata.extension);
        let generations = certain.filter(|_| self.link.has(Extensions::CONNECTION)).map(|met| {
            let draw = (draw(self.random, self.link.epoch) >> 32) as u32;
            Meeting { met, draw, localcnt: self.metadata.extension.connection_localcnt }
        });
        let hello = SecondHello {
            resource: self.metadata.resource.clone(),
            token: self.link.token,
            virgin,
            resuid: self.metadata.resuid,
            localcnt: self.metadata.localcnt,
            remotecnt: self.metadata.remotecnt,
            boot: self.link.is_ours().then_some(self.host.boot),
            parting,
            meeting: generations,
        };
        self.link.said = self.metadata.localcnt;
        self.enter(Stage::AwaitingSecond);
        self.send(Side::In, Message::SecondHello(hello));
    }

    /// On the second connection only a refusal can come before the handshake is over.
    fn second_refused(&mut self, frame: &Frame) -> Result<(), Loss> {
        let list = List::parse(&frame.nv).map_err(|error| error.to_string())?;
        match SecondReply::decode(&list).map_err(|error| error.to_string())? {
            SecondReply::Refused(refused) => Err(self.refused(refused, None)),
            SecondReply::Answer(_) => {
                Err("The secondary answered the handshake on the wrong connection".into())
            }
        }
    }

    fn refused(&mut self, refused: Refused, map: Option<Buffer>) -> Loss {
        let Refused { errmsg, parted } = refused;
        let loss = Loss::refused(&errmsg);
        if loss.state == ConnectionState::SplitBrain {
            self.link.split = true;
            let extents = self.map.to_synchronise().len();
            let apart =
                |(map, parted): (Buffer, u64)| Apart { map: Bitmap::from_bytes(extents, &map), parted };
            self.link.apart = map.zip(parted).filter(|_| self.link.has(Extensions::PARTING)).map(apart);
            self.actions.push_back(Action::Event(Event::SplitBrain));
        }
        loss
    }

    fn second_reply(&mut self, frame: Frame) -> Result<(), Loss> {
        let Frame { nv, payload, .. } = frame;
        let list = List::parse(&nv).map_err(|error| error.to_string())?;
        let answer = match SecondReply::decode(&list).map_err(|error| error.to_string())? {
            SecondReply::Refused(refused) => return Err(self.refused(refused, payload)),
            SecondReply::Answer(answer) => answer,
        };
        let SecondAnswer { datasize, extentsize, localcnt, remotecnt, virgin, syncsrc, boot, met, .. } =
            answer;
        self.link.signs.begin(self.now, answer.peer_timeout);
        self.link.failures = 0;
        let promises = answer.zero_deletes && self.link.has(Extensions::ZERO_DELETES);
        self.link.peer_deletes = if promises { Deletes::LeaveZeros } else { Deletes::Refused };
        if (datasize, extentsize) != (self.layout.datasize(), self.layout.extentsize()) {
            let (data, extent) = (self.layout.datasize(), self.layout.extentsize());
            return Err(Loss::ours(&if datasize == data {
                format!("Extent size differs between nodes (local={extent}, remote={extentsize})")
            } else {
                format!("Data size differs between nodes (local={data}, remote={datasize})")
            }));
        }
        let map = answer.map(payload).map_err(|error| error.to_string())?;
        let extents = u32::try_from(self.layout.nextents()).unwrap_or(u32::MAX);
        if let Some(map) = &map {
            let least = extents.div_ceil(64) as usize * 8;
            if map.len() < least {
                return Err(format!("The secondary's map has {} bytes, ours {least}", map.len()).into());
            }
        }
        if syncsrc == SyncSource::Secondary && self.link.said != self.metadata.localcnt {
            // A write was completed here alone since: the secondary decided by a count that is no more.
            return Err("This node was written during the handshake".into());
        }
        let before = std::mem::replace(&mut self.link.peer, Counts { local: localcnt, remote: remotecnt });
        self.sync.told = remotecnt;
        if virgin {
            self.set_counts(self.counts().met_virgin());
        }
        self.link.peer_boot = boot.unwrap_or_default();
        self.link.split = false;
        self.link.apart = None;
        let received =
            map.as_ref().map_or_else(|| Bitmap::new(extents), |map| Bitmap::from_bytes(extents, map));
        if syncsrc == SyncSource::Primary && self.sync.target {
            // The copy that ours was being brought up to date from is gone: a mixture is no good copy.
            return Err(Loss::ours(
                "The secondary does not have the newer data any more, and this node's copy is \
                 inconsistent; `hastctl role -f primary` uses it all the same",
            ));
        }
        let fresh = self.link.peer == Counts::default() && received.is_empty() && !virgin;
        if self.owes_everything(fresh, met) {
            self.map.merge(&Bitmap::full(extents));
            self.sync.unconfirmed = true;
        }
        if received.iter().any(|extent| !self.map.to_synchronise().contains(extent)) {
            self.sync.unconfirmed = true;
        }
        self.met_again(met.unwrap_or_default(), syncsrc);
        self.map.merge(&received);
        self.adopt_source(syncsrc, before);
        self.enter(Stage::Merging);
        self.kick_map();
        self.merged();
        Ok(())
    }

    /// Whether the maps say too little of what the secondary, which seems to be `fresh` and has stored `met`, may lack.
    fn owes_everything(&self, fresh: bool, met: Option<Met>) -> bool {
        if !self.link.owed || !self.metadata.extension.full_sync_owed {
            return false;
        }
        if fresh {
            log::warn!("An earlier first contact broke off: everything will be synchronized.");
            return true;
        }
        // A3, G1: this node has lost the generation that they had in common, and cannot tell whether a disk was set back.
        let lost = self.meta.met().last == 0 && met.is_some_and(|met| met.before != 0);
        if lost {
            log::warn!(
                "It is not known here when the nodes were connected last: everything will be synchronized."
            );
        }
        lost
    }

    /// G1: the secondary has stored the generation of this connection, and says which it had before.
    fn met_again(&mut self, theirs: Met, source: SyncSource) {
        self.link.connection = theirs.last;
        self.link.newer = 0;
        let (here, there) = (self.meta.met().last, theirs.before);
        let theirs = Met { last: there, before: 0 };
        // What the secondary decides from may include the generation before; only what it decided counts.
        match compare(self.meta.met(), theirs) {
            Histories::PrimaryAhead => {
                log::error!(
                    "The disk of {} is older than its last connection (generation {there:x}, here {here:x}): it was \
                     rolled back, cloned or exchanged. What differs is synchronized from this node.",
                    self.link.name
                );
                self.sync.unconfirmed = true;
            }
            // If it is the source: it may only have stored a connection that this node could not.
            Histories::SecondaryAhead if source == SyncSource::Secondary => {
                log::error!(
                    "This node's disk is older than its last connection (generation {here:x}, {there:x} on {}): it \
                     was rolled back, cloned or exchanged. What differs is synchronized from the other node.",
                    self.link.name
                );
                if self.link.connection == 0 {
                    self.link.newer = there;
                }
            }
            _ => {}
        }
    }

    /// Whose data is right is written down before anything is copied (L18).
    /// `before` are the secondary's counts when the nodes last met.
    fn adopt_source(&mut self, source: SyncSource, before: Counts) {
        self.link.merge_save = 0;
        if source == SyncSource::Secondary {
            // What has come from the secondary since this node became its target, or was written on both nodes,
            // is right here, and the secondary may have lost it meanwhile; alone it was given nothing since.
            if !self.sync.target || self.link.peer != before {
                self.sync.stale.union(self.map.to_synchronise());
            }
            if keeps(Rule::L18) {
                self.sync.target = true;
                let since = self.host.wall.saturating_add(self.now.as_secs());
                let extension = &mut self.metadata.extension;
                extension.target = true;
                extension.mark.get_or_insert(Mark { since, by: self.link.name.clone() });
                self.link.merge_save = self.save_metadata();
            }
        }
    }

    /// Once the merged map is durable, the nodes are connected.
    pub(super) fn merged(&mut self) {
        if self.link.stage != Stage::Merging {
            return;
        }
        let detached = self.detachment.is_detached();
        let open = self.map.to_synchronise();
        if !detached && !open.iter().all(|extent| self.map.is_durable(extent..extent + 1)) {
            return;
        }
        if !self.meta.is_durable(self.link.merge_save) {
            return;
        }
        // The map is that of this connection now: before anybody builds on it.
        let number = if self.settings.metaflush { self.link.number } else { 0 };
        let met = match self.link.connection {
            0 => met(&self.metadata.extension),
            last => Met { last, before: 0 }, // G1: the secondary has it too
        };
        let extension = &mut self.metadata.extension;
        let new = (number, met.last, met.before);
        let is_another = (extension.parted, extension.connection, extension.connection_before) != new;
        if is_another || extension.map_complete != self.settings.metaflush {
            extension.map_complete = self.settings.metaflush;
            if is_another {
                (extension.parted, extension.connection, extension.connection_before) = new;
                // What the secondary does not know of was written alone, and is not copied to it yet.
                extension.connection_localcnt = self.metadata.localcnt.min(self.link.peer.remote);
            }
            self.metadata.extension.full_sync_owed = false;
            self.link.merge_save = self.save_metadata();
            return;
        }
        if std::mem::take(&mut self.metadata.extension.full_sync_owed) {
            self.save_metadata();
        }
        if detached {
            self.enter(Stage::Marking);
            self.tell_all();
        } else if self.secondary_lacks_something() {
            self.enter(Stage::Marking);
            self.mark(Awaited::SyncStart, MarkKind::SyncStart);
        } else {
            self.up();
        }
    }

    /// The secondary has written down that it is out of date: now it may have everything else.
    pub(super) fn up_when_marked(&mut self) {
        if self.link.stage == Stage::Marking {
            self.up();
        }
    }

    fn up(&mut self) {
        self.enter(Stage::Up);
        self.link.up_since = self.now;
        if !self.link.stuck.is_stuck() {
            self.link.attempts = 0;
        }
        self.tell_connection(ConnectionState::Connected, String::new());
        self.link.complaint.clear();
        self.map_complete = true;
        self.counted = None;
        self.flush.peer_connected();
        log::info!("Connected to {}.", self.link.name);
        self.actions.push_back(Action::Event(Event::Connect));
        self.begin_session();
        self.unpark();
        self.serve();
    }

    /// The merged map could not be written: without it nothing may be synchronised.
    pub(super) fn merge_failed(&mut self) {
        if self.link.stage == Stage::Merging {
            self.lose_link("What the secondary said could not be written down");
        }
    }

    fn reply(&mut self, frame: Frame) -> Result<(), Loss> {
        let message = FromSecondary::decode_extended(frame, self.link.ext);
        let Reply { seq, received, error, data } = match message.map_err(|error| error.to_string())? {
            FromSecondary::Reply(reply) => reply,
            FromSecondary::Busy { seq } => {
                self.link.busy = (seq, self.now);
                return Ok(());
            }
            FromSecondary::Alive => return Ok(()),
        };
        let Some(request) = self.link.outstanding.get(&seq) else {
            return Err(format!("The secondary answered request {seq}, which was not asked").into());
        };
        if received && error.is_none() {
            if let Awaited::Request(key) = request.why {
                self.remote_received(key);
            }
            return Ok(());
        }
        let length = request.length;
        if error.is_none() && request.command == Some(Command::Read) {
            let got = data.as_ref().map_or(0, |data| data.len() as u64);
            if got != length {
                return Err(format!("The secondary sent {got} bytes for a read of {length}").into());
            }
        }
        let Some(Outstanding { why, since, command, .. }) = self.link.outstanding.remove(&seq) else {
            return Ok(());
        };
        if let Some(command) = command
            && error.is_none()
            && self.link.stuck.answered(command, length)
        {
            self.link.attempts = 0;
        }
        self.link.last_answer = self.now;
        self.link.answered = self.link.answered.max(since);
        self.link.writes.remove(&seq);
        let outcome = error.map_or(Ok(()), Err);
        self.link.failures += u64::from(outcome.is_err());
        match why {
            Awaited::Request(key) => self.remote_answered(key, outcome.map(|()| data)),
            Awaited::Flush => self.remotely_flushed(outcome),
            Awaited::SyncWrite(key) => self.block_written_remotely(key, outcome),
            Awaited::SyncStart => self.marked(outcome),
            Awaited::SyncDone => self.equal_there(outcome),
            Awaited::Told(key) => self.told(key, outcome),
            Awaited::Left => self.left(outcome),
            Awaited::SyncRead(key) => {
                let read = outcome.and_then(|()| data.ok_or(Errno::EIO));
                self.block_read_remotely(key, read);
            }
        }
        self.advance_flush();
        Ok(())
    }

    /// Asks the secondary for something, under a number of its own (T2).
    pub(super) fn ask(
        &mut self,
        why: Awaited,
        command: Command,
        offset: u64,
        length: u64,
        memsync: bool,
        data: Option<Buffer>,
    ) {
        self.link.last_seq += 1;
        let seq = self.link.last_seq;
        if matches!(command, Command::Write | Command::Delete) {
            self.link.writes.insert(seq);
        }
        let since = self.now;
        self.link.outstanding.insert(seq, Outstanding { why, command: Some(command), length, since });
        self.send(Side::Out, Message::Request(Request { command, seq, offset, length, memsync, data }));
    }

    /// Tells a secondary of ours something, and awaits that it has written it down.
    pub(super) fn mark(&mut self, why: Awaited, kind: MarkKind) {
        self.link.last_seq += 1;
        let seq = self.link.last_seq;
        self.link.outstanding.insert(seq, Outstanding { why, command: None, length: 0, since: self.now });
        self.send(Side::Out, Message::Mark(message::Mark { seq, kind }));
    }

    pub(super) fn send(&mut self, side: Side, message: Message) {
        if side == Side::Out {
            self.link.last_sent = self.now;
            self.link.signs.asked(self.now);
        }
        self.actions.push_back(Action::Send { side, version: self.link.version, message });
    }

    /// Drops the connections; whatever was asked is answered as lost.
    fn close(&mut self) {
        let was_up = self.link.is_up();
        self.link.epoch += 1;
        self.actions.push_back(Action::Close);
        self.enter(Stage::Down(None));
        self.turning.clear();
        self.end_session();
        if was_up {
            // M3: what is not durable there is to be synchronised.
            if keeps(Rule::M3) {
                self.map.peer_lost();
            }
        }
        self.link.writes.clear();
        for (_, Outstanding { why, .. }) in std::mem::take(&mut self.link.outstanding) {
            match why {
                Awaited::Request(key) => self.remote_lost(key),
                Awaited::Told(key) => self.told(key, Err(Errno::ENOTCONN)),
                Awaited::Left => self.left_after_flush(false),
                Awaited::Flush
                | Awaited::SyncRead(_)
                | Awaited::SyncWrite(_)
                | Awaited::SyncStart
                | Awaited::SyncDone => {}
            }
        }
        if was_up {
            self.end_relying(false);
            self.remote_flush_lost();
            self.end_marking();
        }
    }

    /// The connection is gone, or never came to be.
    pub(super) fn lose_link(&mut self, loss: impl Into<Loss>) {
        let loss = loss.into();
        let was_up = self.link.is_up();
        // What is the same as last time need not be said each time.
        if was_up {
            log::error!("{}", loss.reason);
        } else if self.link.complaint != loss.reason {
            log::warn!("{}", loss.reason);
        } else {
            log::debug!("{}", loss.reason);
        }
        self.tell_connection(loss.state, loss.told());
        if loss.is_news && self.link.has(Extensions::REASONS) {
            self.send(Side::Out, Message::Farewell(loss.told()));
        }
        self.link.complaint = if was_up { String::new() } else { loss.reason };
        if was_up && self.phase != Phase::Ended {
            self.disconnected();
        }
        if let Phase::Draining(drain) = &mut self.phase {
            // Whatever this makes known has to be written down, however late in the drain it comes.
            drain.deadline = self.now + self.settings.timeout;
        }
        let wait = self.pause_before_next_attempt();
        self.close();
        self.link.attempts = self.link.attempts.saturating_add(1);
        if matches!(self.phase, Phase::Connecting | Phase::Serving) && self.settings.remote {
            self.enter(Stage::Down(Some(self.now + wait)));
        }
        self.serve();
    }

    /// How long to wait before the next attempt, the connection being given up now.
    fn pause_before_next_attempt(&mut self) -> Duration {
        if self.link.is_up() && self.link.stuck.is_over(self.now.saturating_sub(self.link.up_since)) {
            self.link.attempts = 0;
        }
        let wait = Duration::from_secs(1 << self.link.attempts.min(4)).min(RECONNECT_MAX);
        let oldest = self.link.outstanding.values().find_map(|request| {
            let awaited = self.now.saturating_sub(request.since);
            // A delete carries no data, however long its range is.
            let command = request.command.filter(|command| matches!(command, Command::Read | Command::Write));
            command.map(|command| (command, request.length, awaited))
        });
        let Some((command, length, awaited)) = oldest else { return wait };
        let again = self.link.stuck.is_stuck();
        if let Some(told) = self.link.stuck.given_up(command, length, awaited) {
            log::warn!("{told}");
        }
        if again { wait.max(Stuck::wait(awaited)) } else { wait }
    }

    /// Tells those who ask how this node stands to the other one, if that has changed.
    fn tell_connection(&mut self, state: ConnectionState, reason: String) {
        let same = self.link.told.as_ref().is_some_and(|told| (told.0, &told.1) == (state, &reason));
        if !same {
            self.link.told = Some((state, reason.clone()));
            self.actions.push_back(Action::Connection { state, reason });
        }
    }

    fn disconnected(&mut self) {
        log::warn!("Disconnected from {}.", self.link.name);
        self.actions.push_back(Action::Event(Event::Disconnect));
    }

    pub(super) fn link_timeout(&mut self) {
        if self.answer_deadline().is_some_and(|deadline| deadline <= self.now) {
            log::warn!("{} does not answer; going on without it.", self.link.name);
            self.serve();
        }
        if let Some(deadline) = self.link.deadline
            && deadline <= self.now
        {
            match self.link.stage {
                Stage::Down(_) if matches!(self.phase, Phase::Connecting | Phase::Serving) => self.connect(),
                Stage::Down(_) => self.link.deadline = None,
                _ => self.lose_link("The secondary did not answer during the handshake"),
            }
        }
        if matches!(self.link.stage, Stage::Up | Stage::Marking | Stage::Merging) {
            self.silence_timeout();
        }
    }

    pub(super) fn link_deadline(&self) -> Option<Duration> {
        let deadlines = [self.link.deadline, self.silence_due(), self.answer_deadline()];
        deadlines.into_iter().flatten().min()
    }

    /// When requests stop waiting for a secondary that has not answered this attempt to connect: a host that is silent, or
    /// a hastd that is frozen and has left the answer to its kernel.
    fn answer_deadline(&self) -> Option<Duration> {
        let patience = match self.link.stage {
            Stage::OpeningOut => FIRST_ANSWER,
            Stage::AwaitingFirst | Stage::OpeningIn | Stage::AwaitingSecond => {
                self.settings.peer_timeout.max(FIRST_ANSWER)
            }
            Stage::Down(_) | Stage::Preparing { .. } | Stage::Merging | Stage::Marking | Stage::Up => {
                return None;
            }
        };
        (self.phase == Phase::Connecting).then(|| self.link.attempted.saturating_add(patience))
    }
}
