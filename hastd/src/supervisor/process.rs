//! Worker processes: started, talked to, stopped, and what their end means.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus};
use std::time::{Duration, Instant};

use hast_engine::{EXIT_LOST, EXIT_PEER_BEHIND, EXIT_STALE, Event};
use hast_format::metadata::Role;
use hast_net::control::{ConnectionState, WorkerStatus};
use hast_net::handshake::BootId;

use super::Supervisor;
use super::device::Device;
use super::hooks::Condition;
use super::resource::{Complete, Pending, Step};
use crate::contract::{TITLE_PREFIX, WORKER_VARIABLE};
use crate::exit;
use crate::ipc::{Channel, Start, StartKind, ToSupervisor, ToWorker};
use crate::watch::Watched;

/// Pause before the worker of a primary is started again.
const RESTART_AFTER: Duration = Duration::from_secs(1);
/// How long a worker that has closed its channel may live on.
const SILENT_BOUND: Duration = Duration::from_secs(10);
/// Messages of one worker before others have their turn.
const MESSAGES_MAX: usize = 64;
/// How long a worker may take to answer a question.
const QUERY_BOUND: Duration = Duration::from_secs(5);

/// A worker process.
#[derive(Debug)]
pub(super) struct Worker {
    child: Child,
    channel: Watched<Channel>,
    /// It was told to stop, so that its end is no surprise.
    pub(super) stopping: bool,
    kill_at: Option<Instant>,
    queries: Vec<Query>,
    next_query: u32,
}

/// A question that is not answered yet.
#[derive(Debug)]
pub(super) struct Query {
    id: u32,
    pub(super) asker: Asker,
    deadline: Instant,
}

/// Who wants to know.
#[derive(Debug)]
pub(super) enum Asker {
    /// A control client.
    Client {
        /// Its key.
        key: usize,
        /// Where in its answer.
        slots: Vec<usize>,
        /// It wants the facts as well.
        verbose: bool,
    },
    /// The supervisor, before the node becomes primary.
    Promotion,
}

impl Worker {
    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The key of the channel's events.
    pub(super) fn key(&self) -> usize {
        self.channel.key()
    }

    /// Sends a message, or keeps it until the worker reads.
    pub(super) fn send(&mut self, message: ToWorker) -> io::Result<()> {
        let Some(channel) = self.channel.get() else { return Ok(()) };
        let sent = channel.send_to_worker(message);
        self.watch();
        sent
    }

    /// Tells it to end, and by when.
    pub(super) fn stop(&mut self, now: Instant, bound: Duration) {
        if self.stopping {
            return;
        }
        self.stopping = true;
        self.kill_by(now + bound);
        if self.send(ToWorker::Stop).is_err() {
            // It is ending already, or will be killed.
        }
    }

    /// Asks for its status. An error gives the asker back: it is gone.
    pub(super) fn ask(&mut self, now: Instant, asker: Asker) -> Result<(), Asker> {
        let id = self.next_query;
        self.next_query = self.next_query.wrapping_add(1);
        match self.send(ToWorker::Status { id }) {
            Ok(()) => {
                self.queries.push(Query { id, asker, deadline: now + QUERY_BOUND });
                Ok(())
            }
            Err(_) => Err(asker),
        }
    }

    /// The questions whose time is over.
    pub(super) fn late_queries(&mut self, now: Instant) -> Vec<Query> {
        self.queries.extract_if(.., |query| query.deadline <= now).collect()
    }

    /// Kills it if its time is over.
    pub(super) fn kill_if_due(&mut self, now: Instant) {
        if self.kill_at.is_some_and(|at| at <= now) {
            self.kill_at = None;
            log::error!("Worker process did not end in time and is killed (pid={}).", self.pid());
            self.kill();
        }
    }

    /// When something is to be done about it.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.queries.iter().map(|query| query.deadline).chain(self.kill_at).min()
    }

    fn kill(&mut self) {
        if let Err(error) = self.child.kill() {
            log::error!("Unable to kill worker process {}: {}.", self.pid(), hast_log::error_text(&error));
        }
    }

    fn kill_by(&mut self, at: Instant) {
        self.kill_at = Some(self.kill_at.map_or(at, |before| before.min(at)));
    }

    /// Watches for what is of interest now.
    fn watch(&mut self) {
        let wants_write = self.channel.get().is_some_and(Channel::wants_write);
        if let Err(error) = self.channel.want(true, wants_write) {
            log::error!("Unable to watch worker process {}: {}.", self.pid(), hast_log::error_text(&error));
        }
    }

    /// The next message, if there is one. Its end or a message that is none makes it deaf for good: it is
    /// expected to end, and killed if it does not.
    fn next_message(&mut self, now: Instant) -> Option<ToSupervisor> {
        let channel = self.channel.get()?;
        let trouble = match channel.recv_from_worker() {
            Ok(Some(message)) => return Some(message),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return None,
            Ok(None) => None,
            Err(error) => Some(error),
        };
        // Fails only if the system does not know the descriptor any more.
        let _ = self.channel.want(false, false);
        match trouble {
            None => self.kill_by(now + SILENT_BOUND),
            Some(error) => {
                log::error!("Worker process {}: {}.", self.pid(), hast_log::error_text(&error));
                self.kill_by(now);
            }
        }
        None
    }
}

/// How workers are started.
#[derive(Clone, Debug)]
pub(super) struct Workers {
    /// This very program, whatever has become of its file.
    pub(super) program: PathBuf,
    pub(super) debug: u8,
    pub(super) background: bool,
    pub(super) drop_privileges: bool,
    /// Which boot of the system this is.
    pub(super) boot: BootId,
}

impl Workers {
    /// This process's own program: on Linux the kernel keeps the running one at hand, so that an upgrade on
    /// disk does not mix versions.
    pub(super) fn own_program() -> io::Result<PathBuf> {
        let running = PathBuf::from("/proc/self/exe");
        if cfg!(target_os = "linux") && running.exists() { Ok(running) } else { std::env::current_exe() }
    }
}

impl Supervisor {
    /// Starts the worker that belongs to the resource's role.
    fn start_worker(&mut self, index: usize, kind: StartKind, forced: bool) -> io::Result<()> {
        let key = self.new_key();
        let Some(resource) = self.resources.get_mut(index) else { return Ok(()) };
        let Some(provider) = &resource.provider else {
            return Err(io::Error::new(io::ErrorKind::NotFound, "the provider is not open"));
        };
        let start = Start {
            resource: resource.config.clone(),
            debug: self.workers.debug,
            background: self.workers.background,
            drop_privileges: self.workers.drop_privileges,
            boot: self.workers.boot,
            forced,
            unsure: resource.unsure,
            detached: resource.detached.clone(),
            provider: OwnedFd::from(provider.as_file().try_clone()?),
            kind,
        };
        let title = format!("{TITLE_PREFIX}{} ({})", resource.config.name, start.role().as_str());
        let (channel, theirs) = Channel::pair()?;
        channel.send_to_worker(ToWorker::Start(Box::new(start)))?;
        let channel = Watched::new(&self.poller, key, channel, true, false)?;
        let child = Command::new(&self.workers.program)
            .arg0(title)
            .env(WORKER_VARIABLE, "1")
            .stdin(theirs)
            .spawn()?;
        let (stopping, kill_at, queries, next_query) = (false, None, Vec::new(), 0);
        let worker = Worker { child, channel, stopping, kill_at, queries, next_query };
        log::debug!("Worker process {} started.", worker.pid());
        resource.worker = Some(worker);
        resource.restart = None;
        Ok(())
    }

    /// Starts the worker of a primary, `forced` if its data is wanted whatever is known of it: those after it are
    /// too, until one has written that down. If that cannot be done the resource goes to role init; false then.
    pub(super) fn start_primary(&mut self, index: usize, forced: bool) -> bool {
        let Some(resource) = self.resources.get_mut(index) else { return false };
        resource.forced = forced;
        let scope = resource.scope();
        let kind = match &resource.device {
            Some(device) => device.for_worker(),
            None => Err(io::Error::new(io::ErrorKind::NotFound, "there is no device")),
        };
        let started = kind.and_then(|kind| self.start_worker(index, kind, forced));
        drop(scope);
        if let Err(error) = &started {
            if let Some(resource) = self.resources.get(index) {
                let _scope = resource.scope();
                log::error!("Unable to start worker process: {}.", hast_log::error_text(error));
            }
            self.fall_back_to_init(index);
        } else {
            self.attach(index);
        }
        started.is_ok()
    }

    /// Starts the worker of a secondary for a primary that is there, unless the former one still runs or the
    /// provider, which could not be opened so far, has to be opened first.
    pub(super) fn start_secondary(&mut self, index: usize) {
        let Some(resource) = self.resources.get_mut(index) else { return };
        if resource.worker.is_some() || !matches!(resource.pending, Pending::Complete(_)) {
            return;
        }
        if resource.provider.is_none() {
            if resource.opening.is_none() {
                resource.opening = Some(self.jobs.open(resource.config.localpath.clone(), None, None));
            }
            return;
        }
        let Pending::Complete(complete) = std::mem::take(&mut resource.pending) else { return };
        let Complete { out, in_, version, ext, hello } = *complete;
        let _scope = resource.scope();
        let kind = StartKind::Secondary { out: out.into(), in_: in_.into(), version, ext, hello };
        if let Err(error) = self.start_worker(index, kind, false) {
            log::error!("Unable to start worker process: {}.", hast_log::error_text(&error));
        }
    }

    /// A primary that cannot be one: role init, without a hook.
    fn fall_back_to_init(&mut self, index: usize) {
        let Some(resource) = self.resources.get_mut(index) else { return };
        let _scope = resource.scope();
        log::warn!("Role changed back to {}: there is no worker.", Role::Init.as_str());
        resource.role = Role::Init;
        resource.connections.begin(Role::Init);
        resource.provider = None;
        resource.device = None;
        resource.restart = None;
        resource.forced = false;
        resource.detached = None;
    }

    /// Something is on a worker's channel.
    pub(super) fn worker_ready(&mut self, index: usize, now: Instant) {
        let Some(worker) = self.resources.get_mut(index).and_then(|resource| resource.worker.as_mut()) else {
            return;
        };
        // A worker that is gone is found out by reading.
        if let Some(channel) = worker.channel.get() {
            let _ = channel.flush();
        }
        worker.watch();
        self.hear(index, MESSAGES_MAX, now);
    }

    /// Takes what a worker has said so far, at most so many messages.
    fn hear(&mut self, index: usize, messages: usize, now: Instant) {
        for _ in 0..messages {
            let Some(resource) = self.resources.get_mut(index) else { return };
            let scope = resource.scope();
            let Some(message) = resource.worker.as_mut().and_then(|worker| worker.next_message(now)) else {
                return;
            };
            drop(scope);
            match message {
                ToSupervisor::Connect { side, id } => self.connect(index, side, id, now),
                ToSupervisor::Cancel { id } => self.cancel_connect(index, Some(id)),
                ToSupervisor::Begun => self.primary_begun(index),
                ToSupervisor::Detached(metadata) => {
                    if let Some(resource) = self.resources.get_mut(index) {
                        resource.detached = metadata;
                    }
                }
                ToSupervisor::Served => self.device_served(index),
                ToSupervisor::DiscardDevice => {
                    if let Some(device) = self.device_of(index) {
                        device.discard();
                    }
                }
                ToSupervisor::ClientLost => self.attach_again(index),
                ToSupervisor::Event { event, complete, dirty } => {
                    self.note(index, event);
                    let condition = Condition { complete, dirty };
                    self.hook(index, now, event.as_str(), &[], Some(condition));
                }
                ToSupervisor::Connection { state, reason } => {
                    self.connection_is(index, state, reason, now);
                }
                ToSupervisor::Status { id, status } => self.worker_answered(index, id, *status, now),
            }
        }
    }

    /// A worker serves what waits in the device: a block device that was left behind gets its connection.
    fn device_served(&mut self, index: usize) {
        let Some(device) = self.device_of(index) else { return };
        let waited = device.waits();
        device.served();
        if waited {
            self.attach(index);
        }
    }

    fn device_of(&mut self, index: usize) -> Option<&mut Device> {
        self.resources.get_mut(index)?.device.as_mut()
    }

    /// Remembers of a secondary's worker, which is gone when it is asked for, that both nodes were written.
    fn note(&mut self, index: usize, event: Event) {
        let Some(resource) = self.resources.get_mut(index).filter(|r| r.role == Role::Secondary) else {
            return;
        };
        match event {
            Event::SplitBrain => resource.split_brain = true,
            Event::Connect => resource.split_brain = false,
            Event::Disconnect | Event::SyncStart | Event::SyncDone | Event::SyncIntr => {}
        }
    }

    /// A primary's worker has written down what was forced.
    fn primary_begun(&mut self, index: usize) {
        if let Some(resource) = self.resources.get_mut(index) {
            resource.forced = false;
        }
    }

    fn worker_answered(&mut self, index: usize, id: u32, status: WorkerStatus, now: Instant) {
        let Some(resource) = self.resources.get_mut(index) else { return };
        let Some(worker) = &mut resource.worker else { return };
        let Some(at) = worker.queries.iter().position(|query| query.id == id) else { return };
        let query = worker.queries.swap_remove(at);
        self.answer_status(index, query.asker, Some(status), now);
    }

    /// Looks which workers have ended.
    pub(super) fn reap_workers(&mut self, now: Instant) {
        // From the end: a resource that was waiting for this may disappear.
        for index in (0..self.resources.len()).rev() {
            let Some(resource) = self.resources.get_mut(index) else { continue };
            let Some(worker) = &mut resource.worker else { continue };
            match worker.child.try_wait() {
                Ok(None) => {}
                Ok(Some(status)) => self.worker_ended(index, status, now),
                Err(error) => {
                    log::error!("Unable to learn about worker: {}.", hast_log::error_text(&error));
                }
            }
        }
    }

    fn worker_ended(&mut self, index: usize, status: ExitStatus, now: Instant) {
        // What it said last still counts.
        self.hear(index, usize::MAX, now);
        self.cancel_connect(index, None);
        let Some(resource) = self.resources.get_mut(index) else { return };
        let Some(worker) = resource.worker.take() else { return };
        let scope = resource.scope();
        let pid = worker.pid();
        match (status.code(), status.signal()) {
            (Some(0), _) => log::debug!("Worker process exited gracefully (pid={pid})."),
            (Some(EXIT_PEER_BEHIND), _) if worker.stopping => {
                log::warn!(
                    "Worker process exited (pid={pid}): the other node is behind, and does not know it."
                );
                resource.peer_behind = true;
            }
            (Some(exit::TEMPORARY), _) if resource.role == Role::Secondary => {
                log::info!("Worker process exited (pid={pid}): the connection to its primary has ended.");
            }
            (Some(code), _) => {
                log::error!("Worker process exited ungracefully (pid={pid}, exitcode={code}).");
            }
            (None, signal) => {
                log::error!("Worker process killed (pid={pid}, signal={}).", signal.unwrap_or_default());
            }
        }
        if let Some(device) = &mut resource.device {
            device.worker_ended();
        }
        drop(scope);
        if resource.role == Role::Secondary {
            let cannot_use_provider = status.code() == Some(exit::NO_INPUT);
            let how = format!("The worker process (pid {pid}) {}; hastd's log says why.", ended(status));
            resource.connections.secondary_ended(cannot_use_provider, how, now);
        }
        match (resource.role, status.code()) {
            (Role::Secondary, Some(exit::NO_INPUT)) => resource.unsure = true,
            // One that has had the time to write it down has ended by itself.
            (Role::Secondary, Some(0 | exit::TEMPORARY | exit::CONFIG)) => resource.unsure = false,
            (Role::Primary, Some(EXIT_STALE | EXIT_LOST)) => resource.unsure = true,
            _ => {}
        }
        if let Some(change) = &mut resource.change {
            if change.step == Step::Stopping && (status.success() || resource.peer_behind) {
                change.stopped = Some(pid);
            }
        } else if resource.role == Role::Primary && !self.ending {
            if after_primary(status.code()) == After::Restart {
                resource.restart = Some(now + RESTART_AFTER);
                let how = ended(status);
                let reason = format!("The worker process (pid {pid}) {how}; it is started again.");
                self.connection_is(index, ConnectionState::Restarting, reason, now);
            } else {
                self.fall_back_to_init(index);
            }
        }
        for query in worker.queries {
            self.answer_status(index, query.asker, None, now);
        }
        if !self.ending {
            self.advance(index, now);
            self.start_secondary(index);
        }
    }
}

/// How a worker has ended that should not have.
fn ended(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("has ended with exit status {code}"),
        (None, signal) => format!("was killed by signal {}", signal.unwrap_or_default()),
    }
}

/// What the end of a primary's worker means for its resource.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum After {
    /// A new worker takes the device over.
    Restart,
    /// The resource goes to role init.
    Init,
}

/// `code` is absent if the worker died by a signal.
fn after_primary(code: Option<i32>) -> After {
    match code {
        None | Some(exit::TEMPORARY) => After::Restart,
        Some(_) => After::Init,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_accidents_are_repaired() {
        assert_eq!(after_primary(None), After::Restart);
        assert_eq!(after_primary(Some(75)), After::Restart);
        for code in [0, 1, 66, EXIT_STALE, EXIT_LOST, 71, 78] {
            assert_eq!(after_primary(Some(code)), After::Init);
        }
    }
}
