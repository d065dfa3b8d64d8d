//! SIGHUP and `hastctl reload`: takes over another configuration without disturbing what has not changed
//! (spec/conf.md, Reload).
//!
//! The new configuration is read and everything it needs is opened first; if that fails the old one stays in
//! force. What changed is found by [`hast_conf::diff`]. A resource that would lose what it uses, because its new provider
//! or device cannot be opened, goes on as it was. The clients that asked are told what became of it (`told`).

use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use hast_conf::{Action, ChangedResource, Changes, Config};
use hast_format::metadata::Role;
use hast_net::address::{Address, Endpoint};
use hast_net::control::{Reloaded, Reply};

use super::absent::{self, Absent};
use super::jobs::JobId;
use super::listen::PeerListener;
use super::listener::Listener;
use super::pidfile::Pidfile;
use super::promotion::Promotion;
use super::resource::Task;
use super::start::{control_place, is_excused};
use super::{Supervisor, device};
use crate::exit;
use crate::ipc::{Reload as WorkerReload, ToWorker};
use crate::watch::Watched;

/// How long the name service may take for the addresses to listen on, and providers to be opened.
const PATIENCE: Duration = Duration::from_secs(8);

/// A configuration that is about to be in force.
#[derive(Debug)]
pub(super) struct Reload {
    config: Config,
    changes: Changes,
    /// Host names to listen on, and the first address of each.
    lookups: Vec<(Address, Option<Option<SocketAddr>>)>,
    probes: Vec<Probe>,
    deadline: Instant,
    told: Told,
}

/// A provider that a running resource is to use instead of its own.
#[derive(Debug)]
struct Probe {
    resource: String,
    job: JobId,
    /// Whether it can, once that is known.
    found: Option<Result<(), String>>,
}

/// What those who asked for the reload will hear.
#[derive(Debug, Default)]
struct Told {
    /// Control clients, by their keys.
    clients: Vec<usize>,
    lines: Vec<String>,
    /// A resource goes on as it was.
    kept: bool,
}

impl Told {
    /// Says what has changed, here and in the log.
    fn info(&mut self, line: String) {
        log::info!("{line}");
        self.lines.push(line);
    }

    /// Says what has not.
    fn warn(&mut self, line: String) {
        log::warn!("{line}");
        self.lines.push(line);
    }
}

impl Reload {
    /// When it goes on without the name service.
    pub(super) fn deadline(&self) -> Instant {
        self.deadline
    }

    fn found(&self, address: &Address) -> Option<SocketAddr> {
        self.lookups.iter().find(|(asked, _)| asked == address).and_then(|(_, found)| found.flatten())
    }

    fn is_complete(&self) -> bool {
        self.lookups.iter().all(|(_, found)| found.is_some())
            && self.probes.iter().all(|probe| probe.found.is_some())
    }
}

impl Supervisor {
    /// Reads the configuration again; `client` is told what comes of it. One that is being taken over already gives way.
    pub(super) fn begin_reload(&mut self, client: Option<usize>, now: Instant) {
        log::info!("Reloading configuration...");
        let mut clients = self.reload.take().map(|reload| reload.told.clients).unwrap_or_default();
        clients.extend(client);
        let mut told = Told { clients, ..Told::default() };
        let config = match hast_conf::load(&self.config_path, &self.node) {
            Ok(config) => config,
            Err(error) => {
                log::error!("{error}");
                told.lines.push(error.to_string());
                return self.not_reloaded(told, error.exit_code(), now);
            }
        };
        for warning in &config.warnings {
            told.warn(warning.clone());
        }
        let listening: Vec<Address> =
            self.listeners.iter().map(|listener| listener.address.clone()).collect();
        let changes = hast_conf::diff(&self.config, &listening, &config);
        let lookups = changes
            .listen_opened
            .iter()
            .chain(&changes.control)
            .filter(|address| {
                matches!(address.endpoint(), Endpoint::Tcp { .. }) && address.literal().is_none()
            })
            .map(|address| (address.clone(), None))
            .collect::<Vec<_>>();
        for (address, _) in &lookups {
            self.jobs.resolve(address);
        }
        let probes = changes.changed.iter().filter_map(|changed| self.probe(changed)).collect();
        self.reload = Some(Reload { config, changes, lookups, probes, deadline: now + PATIENCE, told });
        self.go_on_with_reload(now);
    }

    /// Begins to look whether a resource at work can use the other provider that it is to have.
    fn probe(&mut self, changed: &ChangedResource) -> Option<Probe> {
        if changed.old.localpath == changed.new.localpath {
            return None;
        }
        let index = self.resource_named(&changed.new.name)?;
        let resource = self.resources.get(index)?;
        if resource.settled_role() == Role::Init {
            return None; // nothing runs, and nothing is lost
        }
        let held = resource.provider.as_ref().map(|provider| provider.path().to_owned());
        let job = self.jobs.probe(changed.new.localpath.clone(), held, changed.new.name.clone());
        Some(Probe { resource: changed.new.name.clone(), job, found: None })
    }

    /// A thread has looked at a provider.
    pub(super) fn reload_probed(&mut self, job: JobId, result: Result<(), String>, now: Instant) {
        let Some(reload) = &mut self.reload else { return };
        if let Some(probe) = reload.probes.iter_mut().find(|probe| probe.job == job) {
            probe.found = Some(result);
            self.go_on_with_reload(now);
        }
    }

    /// The name service has answered about an address.
    pub(super) fn reload_resolved(
        &mut self,
        address: &Address,
        result: &Result<Vec<SocketAddr>, io::Error>,
        now: Instant,
    ) {
        let Some(reload) = &mut self.reload else { return };
        for (_, found) in reload.lookups.iter_mut().filter(|(asked, _)| asked == address) {
            *found = Some(result.as_ref().ok().and_then(|addresses| addresses.first().copied()));
        }
        self.go_on_with_reload(now);
    }

    /// Goes on without names that the name service does not tell in time, and providers that do not open.
    pub(super) fn expire_reload(&mut self, now: Instant) {
        if let Some(reload) = self.reload.as_mut().filter(|reload| reload.deadline <= now) {
            for (_, found) in reload.lookups.iter_mut().filter(|(_, found)| found.is_none()) {
                *found = Some(None);
            }
            for probe in reload.probes.iter_mut().filter(|probe| probe.found.is_none()) {
                probe.found =
                    Some(Err(format!("the provider does not open within {} s.", PATIENCE.as_secs())));
            }
            self.go_on_with_reload(now);
        }
    }

    fn go_on_with_reload(&mut self, now: Instant) {
        let Some(mut reload) = self.reload.take_if(|reload| reload.is_complete()) else { return };
        if let Err(why) = self.take_over(&mut reload, now) {
            log::error!("{why}");
            reload.told.lines.push(why);
            return self.not_reloaded(reload.told, exit::OS_ERROR, now);
        }
        let mut told = reload.told;
        let status = if told.kept {
            log::warn!("Configuration reloaded, except for resources that go on as they were.");
            exit::CONFIG
        } else {
            log::info!("Configuration reloaded successfully.");
            0
        };
        if told.lines.is_empty() {
            told.lines.push("Nothing has changed.".to_owned());
        }
        self.tell_reloaded(told, status, now);
    }

    fn not_reloaded(&mut self, mut told: Told, status: i32, now: Instant) {
        told.warn("Configuration not reloaded.".to_owned());
        self.tell_reloaded(told, status, now);
    }

    fn tell_reloaded(&mut self, told: Told, status: i32, now: Instant) {
        let status = u8::try_from(status).unwrap_or(u8::MAX);
        let reply = Reply::Reloaded(Reloaded { status, lines: told.lines });
        for client in told.clients {
            self.reply(client, &reply, now);
        }
    }

    fn take_over(&mut self, reload: &mut Reload, now: Instant) -> Result<(), String> {
        let control = match &reload.changes.control {
            None => None,
            Some(address) => {
                let opened =
                    Listener::open(address, reload.found(address)).map_err(|error| error.to_string())?;
                let key = self.new_key();
                Some(
                    Watched::new(&self.poller, key, opened, true, false)
                        .map_err(|error| error.to_string())?,
                )
            }
        };
        let pidfile = match &reload.changes.pidfile {
            Some(path) if self.pidfile_follows => {
                let mut pidfile = Pidfile::open(path).map_err(|error| error.to_string())?;
                pidfile.write().map_err(|error| {
                    format!("Unable to write pidfile {}: {}.", path.display(), hast_log::error_text(&error))
                })?;
                Some(pidfile)
            }
            _ => None,
        };
        self.move_listeners(reload, now)?;
        // From here on nothing can fail.
        if let Some(control) = control {
            self.control = control;
            self.control_resume = None;
            let place = control_place(&reload.config.control);
            log::debug!("Listening on control address {place}.");
            reload.told.lines.push(format!("The control socket is {place} now."));
        }
        if let Some(pidfile) = pidfile {
            log::debug!("PID stored in {}.", pidfile.path().display());
            reload.told.lines.push(format!("The pidfile is {} now.", pidfile.path().display()));
            self.pidfile = Some(pidfile);
        }
        self.change_resources(reload, now);
        self.config = reload.config.clone();
        Ok(())
    }

    /// Closes the listening sockets that are gone, then opens the new ones: a new address may cover an old one.
    fn move_listeners(&mut self, reload: &mut Reload, now: Instant) -> Result<(), String> {
        let Changes { listen_closed, listen_opened, .. } = reload.changes.clone();
        let closed: Vec<PeerListener> =
            self.listeners.extract_if(.., |listener| is_among(&listener.address, &listen_closed)).collect();
        let closed: Vec<Address> = closed.into_iter().map(|listener| listener.address).collect();
        let mut missing = Vec::new();
        for address in listen_opened {
            match self.open_listener(&address, reload.found(&address)) {
                Ok(()) => reload.told.info(format!("Listening on address {address}.")),
                Err(error) if is_excused(&reload.config, &error) => log::debug!("{error}"),
                Err(error) if error.is_not_there() => {
                    absent::log(&error);
                    reload.told.lines.push(error.to_string());
                    missing.push(address);
                }
                Err(error) => reload.told.warn(error.to_string()),
            }
        }
        if !self.listeners.is_empty() {
            let closed = closed.iter().map(|address| format!("Not listening on address {address} any more."));
            reload.told.lines.extend(closed);
            self.absent = Absent::new(missing, now);
            return Ok(());
        }
        for address in &closed {
            if let Err(error) = self.open_listener(address, address.literal()) {
                log::error!("{error}");
            }
        }
        Err("There is no address to listen on for other nodes.".to_owned())
    }

    pub(super) fn open_listener(
        &mut self,
        address: &Address,
        resolved: Option<SocketAddr>,
    ) -> Result<(), super::listener::ListenError> {
        let listener = Listener::open(address, resolved)?;
        let key = self.new_key();
        let listener = Watched::new(&self.poller, key, listener, true, false)
            .map_err(|error| super::listener::ListenError::Failed { address: address.to_string(), error })?;
        self.listeners.push(PeerListener { address: address.clone(), listener, resume: None });
        Ok(())
    }

    fn change_resources(&mut self, reload: &mut Reload, now: Instant) {
        let (changes, nbd) = (reload.changes.clone(), reload.config.nbd_directory().map(Path::to_owned));
        for gone in &changes.removed {
            let Some(index) = self.resource_named(&gone.name) else { continue };
            reload.told.info(format!("Resource {} removed.", gone.name));
            if let Some(resource) = self.resources.get_mut(index) {
                resource.leaving = true;
                resource.tasks.push_back(to_init());
            }
            self.add_task(index, Task::Remove, now);
        }
        for added in &changes.added {
            reload.told.info(format!("Resource {} added.", added.name));
            self.add_resource(added.clone(), nbd.clone());
        }
        for changed in &changes.changed {
            self.change_resource(changed, reload, now);
        }
    }

    fn change_resource(&mut self, changed: &ChangedResource, reload: &mut Reload, now: Instant) {
        let Some(index) = self.resource_named(&changed.new.name) else { return };
        let nbd = reload.config.nbd_directory().map(Path::to_owned);
        // A restart would carry a promotion out that is not certain yet, and nobody could ask the worker any more.
        self.refuse_uncertain(index);
        let Some(resource) = self.resources.get(index) else { return };
        let role = resource.settled_role();
        let action = changed.action(role == Role::Primary);
        if let Err(why) = self.can_change(index, changed, role, action, reload) {
            return self.keep(index, changed, &why, reload);
        }
        let Some(resource) = self.resources.get_mut(index) else { return };
        let scope = resource.scope();
        match action {
            Action::Apply { reconnect } if resource.is_settled() => {
                reload.told.info(format!("Resource {} reloaded.", changed.new.name));
                drop(scope);
                resource.config = changed.new.clone();
                let told = WorkerReload { resource: changed.new.clone(), reconnect };
                self.tell_worker(index, ToWorker::Reload(Box::new(told)));
            }
            Action::Nothing if resource.is_settled() => resource.nbd_directory.clone_from(&nbd),
            Action::Apply { .. } | Action::Nothing | Action::Restart => {
                reload.told.info(format!("Resource {} restarted.", changed.new.name));
                drop(scope);
                let mut resource = self.resources.remove(index);
                let replacement = Box::new((changed.new.clone(), nbd));
                // A primary stays what it is, unless it has to start with another disk.
                let resumed = resource.role == Role::Primary
                    && resource.is_settled()
                    && changed.old.localpath == changed.new.localpath;
                let promotion = if resumed { Promotion::Resumed } else { Promotion::Checked };
                resource.tasks.extend([
                    to_init(),
                    Task::Replace(replacement),
                    Task::SetRole { role, promotion, waiter: None },
                ]);
                self.resources.push(resource);
                let last = self.resources.len().saturating_sub(1);
                self.advance(last, now);
            }
        }
    }

    /// Whether what a running resource is to use instead of what it has can be opened.
    fn can_change(
        &self,
        index: usize,
        changed: &ChangedResource,
        role: Role,
        action: Action,
        reload: &Reload,
    ) -> Result<(), String> {
        if role == Role::Init || action != Action::Restart {
            return Ok(());
        }
        let probe = reload.probes.iter().find(|probe| probe.resource == changed.new.name);
        if let Some(Err(why)) = probe.and_then(|probe| probe.found.as_ref()) {
            return Err(why.clone());
        }
        let place = |directory: Option<&Path>, name: &str| {
            directory.and_then(|directory| hast_conf::nbd_socket_path(directory, name).ok())
        };
        let new = place(reload.config.nbd_directory(), &changed.new.provname);
        let mut here = self.resources.iter().enumerate().filter(|(_, resource)| resource.device.is_some());
        let is_own = here.any(|(at, resource)| {
            let own = place(resource.nbd_directory.as_deref(), &resource.config.provname);
            own == new && (at == index || !reload.config.resources.contains(&resource.config))
        });
        match new.filter(|_| role == Role::Primary && !is_own) {
            Some(path) => device::can_be_opened(&path),
            None => Ok(()),
        }
    }

    /// Leaves a resource as it is, also in what the next reload compares with.
    fn keep(&mut self, index: usize, changed: &ChangedResource, why: &str, reload: &mut Reload) {
        reload.told.kept = true;
        let scope = self.resources.get(index).map(super::Resource::scope);
        log::warn!("The resource goes on as it was: {why}");
        drop(scope);
        let name = &changed.old.name;
        reload.told.lines.push(format!("Resource {name} goes on as it was: {why}"));
        if let Some(entry) = reload.config.resources.iter_mut().find(|resource| resource.name == *name) {
            entry.clone_from(&changed.old);
        }
    }
}

fn to_init() -> Task {
    Task::SetRole { role: Role::Init, promotion: Promotion::Checked, waiter: None }
}

fn is_among(address: &Address, others: &[Address]) -> bool {
    others.iter().any(|other| other.endpoint() == address.endpoint())
}
