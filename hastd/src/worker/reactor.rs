//! The reactor: waits for the channel, the peer, the clients, the disk and the clock, tells the engine what
//! happened, and carries out what it asks for.
//!
//! Owns the order of things: after every event the engine's actions are carried out before the next event
//! is looked at. Nothing in here waits except for events: a disk operation that the reactor's thread is to carry
//! out is left to whoever drives it (`super::leader`).

use std::io;
use std::mem;
use std::time::{Duration, Instant};

use hast_conf::Resource;
use hast_engine::{Action, DiskOp, DiskResult, OpId, Side};
use hast_log::error_text;
use hast_nbd::Question;
use hast_net::buffer::Pool;
use hast_net::control::WorkerStatus;
use polling::Events;

use super::devices::Devices;
use super::disk::{Disk, Finished, Hands};
use super::engine::Engine;
use super::holes::Holes;
use super::peer::Link;
use super::signals::Signals;
use super::start::{self, Device, LeftBehind, Started};
use super::wait::Waiter;
use crate::contract::longest_end;
use crate::exit;
use crate::ipc::{Channel, Reload, ToSupervisor, ToWorker};
use crate::watch::Watched;

const CHANNEL: usize = 0;
const SIGNALS: usize = 1;
const OUT: usize = 2;
const IN: usize = 3;
const LISTENER: usize = 4;
const FIRST_CLIENT: usize = 16;

/// Device requests that the engine has not answered.
const MAX_REQUESTS: usize = 256;
/// Buffers full of input taken from one connection before everything else has its turn.
const READS: usize = 32;
/// Bytes that a client is told of if not all that it asked about may be believed: a whole number of blocks of any size.
const FEWER_TOLD: u32 = 16 << 20;
/// How long an orderly end of a primary may take when nobody is left to wait for it.
const ORPHAN_LIMIT: Duration = Duration::from_secs(5);
/// How long to try to deliver last words.
const LEAVE_LIMIT: Duration = Duration::from_secs(2);

/// A worker at work.
pub(super) struct Reactor {
    origin: Instant,
    waiter: Waiter,
    channel: Watched<Channel>,
    signals: Watched<Signals>,
    engine: Engine,
    disk: Disk,
    link: Link,
    devices: Devices,
    resource: Resource,
    phase: Phase,
    /// The supervisor is gone.
    orphaned: bool,
    /// The supervisor does not know yet that what was forced is durable.
    forced: bool,
    /// An earlier hastd has left the device behind, and nobody has said yet that it is to be served.
    left_behind: LeftBehind,
    /// The device cannot be served any longer, and the exit code says so whatever the engine does.
    fault: Option<i32>,
    /// A stop was asked for: nobody takes the device over.
    told_to_stop: bool,
    /// Frames of the first connection wait until there is room for what they ask.
    held_back: bool,
    completions: Vec<(OpId, DiskResult)>,
}

/// What a reactor cannot do by itself.
pub(super) enum Turn {
    /// This disk operation, which is likely to be over at once ([`Reactor::finish`]).
    Operate(OpId, DiskOp),
    /// End the worker with this exit code.
    End(i32),
}

/// How far a worker is on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Running,
    /// The engine has been asked to come to an end.
    Stopping {
        deadline: Duration,
    },
    /// The engine is done; what it said last is being delivered.
    Leaving {
        code: i32,
        deadline: Duration,
    },
}

impl Reactor {
    /// Puts everything together. The engine's time starts here.
    pub(super) fn new(channel: Channel, signals: Signals, started: Started) -> io::Result<Reactor> {
        let Started { engine, provider, holes, resource, device, forced, left_behind, .. } = started;
        let waiter = Waiter::new()?;
        let poller = waiter.poller();
        let pool = Pool::new();
        let settings = start::link_settings(&resource);
        let mut link = Link::new(poller, (OUT, IN), pool.clone(), engine.role(), settings);
        let keys = (LISTENER, FIRST_CLIENT);
        let devices = match device {
            Device::Primary { .. } => {
                let holes = holes.and_then(|layout| Holes::new(&provider, &layout, waiter.waker()));
                Devices::start(device, holes, &resource.provname, &waiter, keys, &pool)?
            }
            Device::Connections { out, in_ } => {
                link.adopt(Side::Out, out)?;
                link.adopt(Side::In, in_)?;
                Devices::default()
            }
        };
        let disk = Disk::start(provider, pool, waiter.waker())?;
        Ok(Reactor {
            origin: Instant::now(),
            channel: Watched::new(poller, CHANNEL, channel, true, false)?,
            signals: Watched::new(poller, SIGNALS, signals, true, false)?,
            waiter,
            engine,
            disk,
            link,
            devices,
            resource,
            phase: Phase::Running,
            orphaned: false,
            forced,
            left_behind,
            fault: None,
            told_to_stop: false,
            held_back: false,
            completions: Vec::new(),
        })
    }

    /// Does what there is to do before anything happens.
    pub(super) fn begin(&mut self) {
        if self.engine.is_primary() && self.left_behind == LeftBehind::No {
            self.tell(ToSupervisor::Served);
        }
        self.act();
        self.settle();
    }

    /// Works until there is something to do that somebody else has to do.
    pub(super) fn turn(&mut self, events: &mut Events) -> Turn {
        loop {
            if let Some((id, op)) = self.disk.next() {
                return Turn::Operate(id, op);
            }
            if self.disk.has_finished() {
                self.take_completions();
            } else if let Some(code) = self.over() {
                self.devices.finish(self.has_successor(code));
                return Turn::End(code);
            } else if let Err(error) = self.wait(events) {
                log::error!("Unable to wait for events: {}.", error_text(&error));
                return Turn::End(exit::OS_ERROR);
            }
            self.settle();
        }
    }

    /// What carries out the operations of [`Turn::Operate`].
    pub(super) fn hands(&self) -> Hands {
        self.disk.hands()
    }

    /// Takes back the operation that the last turn gave.
    pub(super) fn finish(&mut self, finished: Finished) {
        self.disk.finish(finished);
    }

    /// The operation that the last turn gave has not come back after so long: it will come from a thread.
    pub(super) fn overdue(&mut self, time: Duration) {
        self.disk.overdue(time);
    }

    /// Waits for something to happen, and takes it in.
    fn wait(&mut self, events: &mut Events) -> io::Result<()> {
        self.watch();
        let repeats = hast_log::tell_repeats().map(|at| at.saturating_duration_since(Instant::now()));
        let patience = [self.patience(), repeats].into_iter().flatten().min();
        self.waiter.wait(events, patience)?;
        for event in events.iter() {
            self.dispatch(event.key);
        }
        self.take_completions();
        self.check_clock();
        Ok(())
    }

    fn now(&self) -> Duration {
        self.origin.elapsed()
    }

    fn dispatch(&mut self, key: usize) {
        match key {
            CHANNEL => self.hear_supervisor(),
            SIGNALS => {
                if self.signals.get().is_some_and(Signals::ended) {
                    self.told_to_stop = true;
                    self.stop(self.stop_limit());
                }
            }
            OUT => self.receive(Side::Out),
            IN => self.receive(Side::In),
            LISTENER => {
                let now = self.now();
                self.devices.accept(now);
            }
            client => self.devices.receive(client),
        }
    }

    /// Reads from a connection, for a while, and hands the engine every frame that is whole.
    fn receive(&mut self, side: Side) {
        // Frames first: what the last read completed may be all that the peer sends before it waits.
        if self.hand_over(side).is_none() {
            return;
        }
        for _ in 0..READS {
            if !self.link.receive(side) {
                return;
            }
            match self.hand_over(side) {
                None => return,
                // Part of a frame, which may be long and the link slow.
                Some(0) => {
                    let now = self.now();
                    self.engine.handle_heard(now);
                    self.act();
                }
                Some(_) => {}
            }
        }
    }

    /// Hands the engine the frames that have come whole and says how many; none if some have to wait.
    fn hand_over(&mut self, side: Side) -> Option<usize> {
        let mut frames = 0_usize;
        loop {
            if self.is_leaving() {
                return None;
            }
            if side == Side::Out && !self.has_room() {
                self.held_back = true;
                return None;
            }
            if side == Side::Out {
                self.link.set_payload_limit(side, self.engine.payload_limit());
            }
            let Some(frame) = self.link.next_frame(side) else { return Some(frames) };
            frames = frames.saturating_add(1);
            let now = self.now();
            self.engine.handle_frame(now, side, frame);
            self.act();
        }
    }

    /// Whether a secondary can take in more without piling up what its disk or its primary does not take.
    /// What a primary receives it has asked for.
    fn has_room(&self) -> bool {
        self.engine.is_primary()
            || (self.engine.wants_input() && !self.disk.is_busy() && !self.link.is_busy())
    }

    /// Carries out whatever has become possible, until nothing more is but what the disk has to do.
    fn settle(&mut self) {
        loop {
            if mem::take(&mut self.held_back) {
                self.receive(Side::Out);
            }
            self.admit();
            self.tell_holes();
            let now = self.now();
            let was_busy = self.link.is_busy();
            self.link.transmit(now);
            if let Some(reason) = self.link.take_failure() {
                self.lose(&reason);
                continue;
            }
            // No event will say that there is room again: it was made just now.
            let has_room = was_busy && !self.link.is_busy();
            let has_room = has_room || (self.held_back && self.has_room());
            let answered = self.devices.transmit();
            if self.devices.take_lost() && self.phase == Phase::Running {
                self.tell(ToSupervisor::ClientLost);
            }
            if !has_room && !answered {
                return;
            }
        }
    }

    /// Whether the device is to be served by now.
    ///
    /// What waits in one that an earlier hastd has left behind was meant for the data as they were then. So the other node is
    /// asked first: if that has been written since, the device goes, and everything that waits fails.
    fn may_serve(&mut self) -> bool {
        match self.left_behind {
            LeftBehind::No => return true,
            _ if self.phase != Phase::Running => return false,
            LeftBehind::Perhaps if !self.engine.is_serving() => return false,
            LeftBehind::Perhaps if !self.engine.is_target() => {
                self.left_behind = LeftBehind::No;
                self.tell(ToSupervisor::Served);
                return true;
            }
            LeftBehind::Perhaps => log::error!(
                "The device was left behind, and the other node has been written since: it is destroyed, and what waits \
                 there fails."
            ),
            LeftBehind::Old => log::error!(
                "The device was left behind, and this node was not primary since: it is destroyed, and what waits there \
                 fails."
            ),
        }
        self.tell(ToSupervisor::DiscardDevice);
        self.fault = Some(exit::TEMPORARY);
        self.stop(self.stop_limit());
        false
    }

    /// Hands the device's requests to the engine, as many as it may have.
    fn admit(&mut self) {
        if !self.may_serve() {
            return;
        }
        while self.phase == Phase::Running && !self.link.is_busy() && self.engine.wants_requests() {
            if self.devices.in_flight() >= MAX_REQUESTS {
                return;
            }
            let Some((id, op)) = self.devices.next_request() else { return };
            let now = self.now();
            self.engine.handle_request(now, id, op);
            self.act();
        }
    }

    /// Tells NBD clients what is a hole, as far as the local disk may be believed.
    fn tell_holes(&mut self) {
        while let Some((client, mut question)) = self.devices.next_question() {
            let right =
                |question: &Question| self.engine.reads_here(question.offset, u64::from(question.length));
            let whole = right(&question);
            if !whole {
                // Not all of it is wrong because some of it is.
                question.length = question.length.min(FEWER_TOLD);
            }
            let right = whole || right(&question);
            self.devices.tell_holes(client, question, right);
        }
        // What has become wrong meanwhile is not said.
        let engine = &self.engine;
        self.devices.take_answers(|offset, length| engine.reads_here(offset, length));
    }

    /// Carries out what the engine asks for.
    fn act(&mut self) {
        // Before anything is done that rests on it.
        if self.forced && self.engine.has_begun() {
            self.forced = false;
            self.tell(ToSupervisor::Begun);
        }
        while self.is_trusted()
            && let Some(action) = self.engine.poll_action()
        {
            match action {
                Action::Disk { id, op } => self.disk.submit(id, op),
                Action::Connect(side) => {
                    let id = self.link.want(side);
                    self.tell(ToSupervisor::Connect { side, id });
                }
                Action::Send { side, version, message } => {
                    let now = self.now();
                    self.link.send(now, side, version, &message);
                }
                Action::Close => {
                    // The last word may be why.
                    let now = self.now();
                    self.link.transmit(now);
                    self.close();
                }
                Action::Complete { id, result } => self.devices.complete(id, result),
                Action::Event(event) => {
                    self.link.note(event);
                    let WorkerStatus { complete, dirty, .. } = self.engine.status();
                    self.tell(ToSupervisor::Event { event, complete, dirty });
                }
                Action::Connection { state, reason } => {
                    self.tell(ToSupervisor::Connection { state, reason });
                }
                Action::DirectReads(allowed) => self.direct_reads(allowed),
                Action::Detached(metadata) => self.tell(ToSupervisor::Detached(Some(metadata))),
                Action::Attached => self.tell(ToSupervisor::Detached(None)),
                Action::Exit(code) => self.leave(code),
            }
        }
    }

    /// L17: the kernel may read the disk by itself, or not any more.
    fn direct_reads(&mut self, allowed: bool) {
        let result = self.devices.direct_reads(allowed);
        self.check_direct_reads(result);
    }

    fn check_direct_reads(&mut self, result: Result<(), hast_ggate::DeviceError>) {
        if let Err(error) = result {
            log::error!("{error}");
            // Nothing is acknowledged any more, least of all what made the disk out of date.
            self.fault = Some(exit::OS_ERROR);
            self.phase = Phase::Leaving { code: exit::OS_ERROR, deadline: Duration::ZERO };
        }
    }

    /// Whether what is acknowledged can be read back.
    fn is_trusted(&self) -> bool {
        !matches!(self.phase, Phase::Leaving { deadline: Duration::ZERO, .. })
    }

    /// Drops both connections and what is being opened.
    fn close(&mut self) {
        for id in self.link.close() {
            self.tell(ToSupervisor::Cancel { id });
        }
        self.held_back = false;
    }

    /// The connections cannot be used any more.
    fn lose(&mut self, reason: &str) {
        self.close();
        if !self.is_leaving() {
            let now = self.now();
            self.engine.handle_lost(now, reason);
            self.act();
        }
    }

    fn tell(&mut self, message: ToSupervisor) {
        if self.orphaned {
            return;
        }
        let Some(channel) = self.channel.get() else { return };
        if let Err(error) = channel.send_to_supervisor(message) {
            self.orphan(&error_text(&error));
        }
    }

    fn hear_supervisor(&mut self) {
        while !self.orphaned {
            let Some(channel) = self.channel.get() else { return };
            if channel.wants_write()
                && let Err(error) = channel.flush()
            {
                return self.orphan(&error_text(&error));
            }
            match channel.recv_from_supervisor() {
                Ok(Some(message)) => self.obey(message),
                Ok(None) => self.orphan("it closed the channel"),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) => self.orphan(&error_text(&error)),
            }
        }
    }

    fn obey(&mut self, message: ToWorker) {
        let now = self.now();
        match message {
            ToWorker::Start(_) => log::error!("The supervisor sent a second start message."),
            ToWorker::Connected { side, id, socket } => {
                // A stale one is closed by being dropped.
                if self.is_leaving() || !self.link.is_wanted(side, id) {
                    return;
                }
                match self.link.adopt(side, socket) {
                    Ok(()) => self.engine.handle_connected(now, side),
                    Err(error) => {
                        self.engine.handle_connect_failed(now, side, &error_text(&error));
                    }
                }
            }
            ToWorker::ConnectFailed { side, id, error } => {
                if self.link.is_wanted(side, id) && !self.is_leaving() {
                    self.engine.handle_connect_failed(now, side, &error);
                }
            }
            ToWorker::Reload(reload) => {
                let Reload { resource, reconnect } = *reload;
                self.resource = resource;
                self.link.apply(start::link_settings(&self.resource));
                let result = self.devices.allow_direct_reads(self.resource.direct_reads);
                self.check_direct_reads(result);
                if !self.is_leaving() {
                    self.engine.handle_reload(now, start::settings(&self.resource), reconnect);
                }
            }
            ToWorker::Status { id } => {
                let mut status = self.engine.status();
                status.facts.clients = self.devices.clients();
                self.tell(ToSupervisor::Status { id, status: Box::new(status) });
            }
            ToWorker::Stop => {
                self.told_to_stop = true;
                self.stop(self.stop_limit());
            }
        }
        self.act();
    }

    /// The supervisor is gone, and with it everybody who could make sense of this worker.
    fn orphan(&mut self, reason: &str) {
        if self.orphaned {
            return;
        }
        self.orphaned = true;
        log::error!("The supervisor is gone ({reason}), exiting.");
        let limit = if self.engine.is_primary() { ORPHAN_LIMIT } else { self.stop_limit() };
        self.stop(limit);
    }

    fn stop_limit(&self) -> Duration {
        longest_end(self.engine.role(), start::timeout(&self.resource))
    }

    /// Begins an orderly end that has to be over within `limit`.
    fn stop(&mut self, limit: Duration) {
        let limit = self.now().saturating_add(limit);
        match &mut self.phase {
            Phase::Leaving { .. } => {}
            Phase::Stopping { deadline } => *deadline = limit.min(*deadline),
            Phase::Running => {
                // The original's secondary goes without a word.
                if self.engine.is_primary() && !self.orphaned && self.fault.is_none() {
                    log::info!("Termination signal received, exiting.");
                }
                self.phase = Phase::Stopping { deadline: limit };
                self.devices.stop(self.told_to_stop);
                let now = self.now();
                self.engine.handle_stop(now);
                self.act();
            }
        }
    }

    /// The engine has come to its end.
    fn leave(&mut self, code: i32) {
        self.devices.stop(self.told_to_stop);
        let code = self.fault.unwrap_or(code);
        self.phase = Phase::Leaving { code, deadline: self.now().saturating_add(LEAVE_LIMIT) };
    }

    /// Whether another worker will take the device over: of this hastd, or of the next one if this one has died.
    fn has_successor(&self, code: i32) -> bool {
        !self.told_to_stop && (code == exit::TEMPORARY || (self.orphaned && code == 0))
    }

    fn is_leaving(&self) -> bool {
        matches!(self.phase, Phase::Leaving { .. })
    }

    /// The exit code, once everything is delivered or has had its time.
    fn over(&self) -> Option<i32> {
        let Phase::Leaving { code, deadline } = self.phase else { return None };
        let channel = self.channel.get().filter(|_| !self.orphaned);
        let pending = self.link.unsent_bytes() > 0
            || self.devices.has_unsent()
            || channel.is_some_and(Channel::wants_write);
        (!pending || self.now() >= deadline).then_some(code)
    }

    fn take_completions(&mut self) {
        let mut completions = mem::take(&mut self.completions);
        self.disk.take_completions(&mut completions);
        for (id, result) in completions.drain(..) {
            if !self.is_leaving() {
                let now = self.now();
                self.engine.handle_disk(now, id, result);
                self.act();
            }
        }
        self.completions = completions;
    }

    fn check_clock(&mut self) {
        let now = self.now();
        if self.held_back {
            self.engine.handle_deaf(now);
        }
        if !self.is_leaving() && self.engine.poll_timeout().is_some_and(|at| at <= now) {
            self.engine.handle_timeout(now);
            self.act();
        }
        self.link.check(now);
        if let Err(error) = self.devices.check(now) {
            log::error!("{error}.");
            self.fault = Some(exit::OS_ERROR);
            self.stop(self.stop_limit());
        }
        if let Phase::Stopping { deadline } = self.phase
            && deadline <= now
        {
            log::warn!("Unable to finish in time what was begun, exiting.");
            self.leave(exit::TEMPORARY);
        }
    }

    /// How long nothing happens by itself.
    fn patience(&self) -> Option<Duration> {
        let phase = match self.phase {
            Phase::Running => None,
            Phase::Stopping { deadline } | Phase::Leaving { deadline, .. } => Some(deadline),
        };
        let engine = self.engine.poll_timeout().filter(|_| !self.is_leaving());
        if self.link.has_failed() {
            return Some(Duration::ZERO);
        }
        let first =
            [phase, engine, self.devices.deadline(), self.link.deadline()].into_iter().flatten().min()?;
        Some(first.saturating_sub(self.now()))
    }

    /// Tells the poller what is of interest now.
    fn watch(&mut self) {
        let receive = !self.is_leaving();
        self.link.watch((receive && !self.held_back, receive));
        self.devices.watch();
        let write = self.channel.get().is_some_and(Channel::wants_write);
        let (read, write) = (!self.orphaned, write && !self.orphaned);
        if let Err(error) = self.channel.want(read, write) {
            self.orphan(&error_text(&error));
        }
    }
}
