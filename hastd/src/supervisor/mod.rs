//! The supervisor: owns the control socket, the sockets that other nodes connect to, the pidfile, the hooks,
//! the roles and the worker processes (spec/behaviour.md, Processes).
//!
//! One thread, one loop, and nothing in it waits for a peer, a client, a worker, a hook or the name service:
//! each of them has a deadline, and what may block runs in `jobs`. It never touches a resource's data; it
//! opens and locks providers and hands them to workers.

mod absent;
mod attach;
mod connect;
mod connection;
mod control;
mod daemon;
mod device;
mod handshake;
mod hooks;
mod jobs;
mod listen;
mod listener;
mod look;
mod options;
mod pidfile;
pub(crate) mod process;
mod promotion;
mod reload;
mod resource;
mod role;
mod signals;
mod start;
mod unix;

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hast_conf::{Config, Node};
use polling::{Event, Events, Poller};

use crate::exit;
use crate::watch::Watched;
use absent::Absent;
use connect::Connecting;
use control::Client;
use hooks::{Condition, Hooks};
use jobs::{Jobs, Report};
use listen::{Peer, PeerListener};
use listener::Listener;
use look::Look;
use options::{Options, Stop};
use pidfile::Pidfile;
use process::{Worker, Workers};
use reload::Reload;
use resource::{Pending, Resource, ResourceId};
use signals::Signals;

/// Connections taken from one listening socket before others have their turn.
const ACCEPTS_MAX: usize = 64;
/// How long to leave a listening socket alone when the system has no room for another connection.
const ACCEPT_PAUSE: Duration = Duration::from_secs(1);

/// Runs the daemon with the process's arguments; returns its exit status.
pub fn run() -> i32 {
    daemon::keep_descriptors_private();
    let options = match Options::parse(std::env::args_os().skip(1)) {
        Ok(options) => options,
        Err(Stop::Asked(text)) => return print(&text),
        Err(Stop::Mistake(text)) => {
            eprintln!("{text}");
            return exit::USAGE;
        }
    };
    hast_log::init(hast_log::Sink::Terminal, options.debug);
    if options.check {
        return start::check(&options).map_or_else(|failure| fail(&failure), |text| print(&text));
    }
    hast_log::count_repeats();
    let supervisor = start::prepare(&options).and_then(|prepared| prepared.start(&options));
    let result = supervisor.and_then(|mut supervisor| {
        supervisor.work().map_err(|error| {
            let text = format!("Unable to wait for events: {}.", hast_log::error_text(&error));
            start::Failure { status: exit::OS_ERROR, text }
        })
    });
    hast_log::end_repeats();
    result.map_or_else(|failure| fail(&failure), |()| 0)
}

/// Says why it does not go on; returns the exit status.
fn fail(failure: &start::Failure) -> i32 {
    log::error!("{}", failure.text);
    failure.status
}

/// Prints what was asked for; returns the exit status.
fn print(text: &str) -> i32 {
    // A reader that has closed the pipe has seen enough.
    let _ = writeln!(io::stdout(), "{text}");
    0
}

/// Everything the supervisor has. When it ends, the fields go in this order: the control socket before the
/// pidfile, so that whoever waits for the pidfile to go can start the next instance at once.
struct Supervisor {
    control: Watched<Listener>,
    /// When to accept control clients again.
    control_resume: Option<Instant>,
    clients: BTreeMap<usize, Client>,
    listeners: Vec<PeerListener>,
    absent: Absent,
    /// Connections of other nodes, the oldest first.
    peers: BTreeMap<usize, Peer>,
    connects: BTreeMap<usize, Connecting>,
    looks: Vec<Look>,
    /// In the order in which they are shown.
    resources: Vec<Resource>,
    hooks: Hooks,
    jobs: Jobs,
    signals: Signals,
    workers: Workers,
    /// The configuration in force; resources may still be on their way to it.
    config: Config,
    config_path: PathBuf,
    node: Node,
    /// Which hastd of this machine this is, the same after a restart: devices say it.
    owner: String,
    /// A reload that waits for the name service.
    reload: Option<Reload>,
    /// In the background and without `-P`: the pidfile follows the configuration.
    pidfile_follows: bool,
    /// The signal to end has come: only the workers are waited for.
    ending: bool,
    next_key: usize,
    next_resource: u64,
    poller: Arc<Poller>,
    pidfile: Option<Pidfile>,
}

impl Supervisor {
    /// Works until the signal to end has come and the last worker has ended.
    fn work(&mut self) -> io::Result<()> {
        let mut events = Events::new();
        while !self.ending || self.resources.iter().any(|resource| resource.worker.is_some()) {
            let deadline = [self.deadline(), hast_log::tell_repeats()].into_iter().flatten().min();
            let timeout = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            events.clear();
            match self.poller.wait(&mut events, timeout) {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
            let now = Instant::now();
            self.take_signals(now);
            for event in events.iter() {
                self.dispatch(event, now);
            }
            while let Some(report) = self.jobs.report() {
                self.take_report(report, now);
            }
            self.expire(now);
        }
        Ok(())
    }

    /// When something has to be done even if nothing happens.
    fn deadline(&self) -> Option<Instant> {
        let clients = self.clients.values().filter_map(Client::deadline);
        let peers = self.peers.values().map(Peer::deadline);
        let connects = self.connects.values().map(Connecting::deadline);
        let resources = self.resources.iter().filter_map(Resource::deadline);
        let looks = self.looks.iter().map(Look::deadline);
        let listeners = self.listeners.iter().filter_map(|listener| listener.resume);
        let rest = [
            self.hooks.deadline(),
            self.control_resume,
            self.reload.as_ref().map(Reload::deadline),
            self.absent.deadline(),
        ];
        clients
            .chain(peers)
            .chain(connects)
            .chain(resources)
            .chain(looks)
            .chain(listeners)
            .chain(rest.into_iter().flatten())
            .min()
    }

    fn take_signals(&mut self, now: Instant) {
        let received = self.signals.take();
        if received.child {
            self.reap_workers(now);
            self.hooks.reap();
        }
        if received.end && !self.ending {
            self.end(now);
        }
        if received.reload && !self.ending {
            self.begin_reload(None, now);
        }
    }

    /// An event of the poller. The keys of what has gone meanwhile belong to nobody.
    fn dispatch(&mut self, event: Event, now: Instant) {
        let key = event.key;
        if key == self.control.key() {
            self.accept_clients(now);
        } else if self.clients.contains_key(&key) {
            self.client_ready(key, now);
        } else if self.peers.contains_key(&key) {
            self.peer_ready(key, now);
        } else if self.connects.contains_key(&key) {
            self.connect_ready(key);
        } else if let Some(at) = self.listeners.iter().position(|l| l.listener.key() == key) {
            self.accept_peers(at, now);
        } else if let Some(index) = self.resources.iter().position(|r| has_worker(r, key)) {
            self.worker_ready(index, now);
        } else if let Some(index) = self.resources.iter().position(|r| has_half_open(r, key)) {
            self.half_open_ready(index);
        }
    }

    fn take_report(&mut self, report: Report, now: Instant) {
        match report {
            Report::Resolved { address, result } => {
                self.peers_resolved(&address, &result, now);
                self.connect_resolved(&address, &result);
                self.absent_resolved(&address, &result);
                self.reload_resolved(&address, &result, now);
            }
            Report::Opened { job, result } => self.provider_opened(job, result, now),
            Report::Probed { job, result } => self.reload_probed(job, result, now),
            Report::Looked { path, result } => self.looked(&path, &result),
            Report::Attached { resource, result } => self.attached(resource, result),
        }
    }

    /// Does what is due.
    fn expire(&mut self, now: Instant) {
        self.expire_clients(now);
        self.expire_peers(now);
        self.expire_connects(now);
        self.expire_looks(now);
        self.expire_reload(now);
        self.expire_absent(now);
        self.hooks.report(now);
        let due = |at: Option<Instant>| at.is_some_and(|at| at <= now);
        if due(self.control_resume) {
            self.control_resume = None;
            let _ = self.control.want(true, false);
        }
        for listener in self.listeners.iter_mut().filter(|listener| due(listener.resume)) {
            listener.resume = None;
            let _ = listener.listener.want(true, false);
        }
        for index in 0..self.resources.len() {
            let Some(resource) = self.resources.get_mut(index) else { return };
            let scope = resource.scope();
            let mut late = Vec::new();
            if let Some(worker) = &mut resource.worker {
                worker.kill_if_due(now);
                late = worker.late_queries(now);
            }
            let (restart, forced) = (due(resource.restart), resource.forced);
            if restart {
                resource.restart = None;
                log::info!("Restarting worker process.");
            }
            drop(scope);
            for query in late {
                self.answer_late(index, query, now);
            }
            if restart {
                self.start_primary(index, forced);
            }
            self.ask_again(index, now);
        }
    }

    /// Begins to end: only the workers still have to store what they acknowledged.
    fn end(&mut self, now: Instant) {
        log::info!("Termination signal received, exiting.");
        self.ending = true;
        // The control socket stays until the end, unanswered: a second instance must not take our place.
        let _ = self.control.want(false, false);
        self.control_resume = None;
        self.reload = None;
        self.clients.clear();
        self.listeners.clear();
        self.absent = Absent::default();
        self.peers.clear();
        self.connects.clear();
        self.looks.clear();
        for resource in &mut self.resources {
            resource.tasks.clear();
            resource.change = None;
            resource.restart = None;
            resource.pending = Pending::None;
            resource.opening = None;
            let bound = resource.stop_bound();
            if let Some(worker) = &mut resource.worker {
                worker.stop(now, bound);
            }
        }
    }

    /// Runs a resource's hook: event, resource, and what else there is to say; with what its worker has said of
    /// its condition, if that is the worker's event.
    fn hook(&mut self, index: usize, now: Instant, event: &str, rest: &[&str], condition: Option<Condition>) {
        let Some(resource) = self.resources.get(index) else { return };
        let Some(exec) = &resource.config.exec else { return };
        let mut arguments = vec![event, resource.config.name.as_str()];
        arguments.extend(rest);
        let _scope = resource.scope();
        let facts =
            hooks::Facts { resource: &resource.config.name, event, role: resource.role.as_str(), condition };
        self.hooks.run(now, exec, &arguments, &facts);
    }

    /// The resource of that name, unless it is on its way out.
    fn resource_named(&self, name: &str) -> Option<usize> {
        self.resources.iter().position(|resource| !resource.leaving && resource.config.name == name)
    }

    fn add_resource(&mut self, config: hast_conf::Resource, nbd_directory: Option<PathBuf>) {
        let id = ResourceId(self.next_resource);
        self.next_resource = self.next_resource.wrapping_add(1);
        self.resources.push(Resource::new(id, config, nbd_directory));
    }

    /// A key that was never used before.
    fn new_key(&mut self) -> usize {
        let key = self.next_key;
        // The last one is the poller's own; nobody lives long enough to see it.
        self.next_key = self.next_key.wrapping_add(1);
        key
    }
}

fn has_worker(resource: &Resource, key: usize) -> bool {
    resource.worker.as_ref().map(Worker::key) == Some(key)
}

fn has_half_open(resource: &Resource, key: usize) -> bool {
    matches!(&resource.pending, Pending::HalfOpen(half) if half.socket.key() == key)
}

/// When to accept again after a failure; absent if there is nothing wrong. A connection that could not be
/// taken stays in the queue and would keep the loop spinning.
fn accept_pause(error: &io::Error, now: Instant) -> Option<Instant> {
    use io::ErrorKind::{ConnectionAborted, Interrupted, WouldBlock};
    if matches!(error.kind(), WouldBlock | Interrupted | ConnectionAborted) {
        return None;
    }
    log::error!("Unable to accept connection: {}.", hast_log::error_text(error));
    Some(now + ACCEPT_PAUSE)
}
