//! SIGHUP: takes over another configuration without disturbing what has not changed (spec/conf.md, Reload).
//!
//! The new configuration is read and everything it needs is opened first; if that fails the old one stays in
//! force. What changed is found by [`hast_conf::diff`].

use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use hast_conf::{Action, Changes, Config};
use hast_format::metadata::Role;
use hast_net::address::{Address, Endpoint};

use super::Supervisor;
use super::listen::PeerListener;
use super::listener::Listener;
use super::pidfile::Pidfile;
use super::promotion::Promotion;
use super::resource::Task;
use super::start::{control_place, is_excused};
use crate::ipc::{Reload as WorkerReload, ToWorker};
use crate::watch::Watched;

/// How long the name service may take for the addresses to listen on.
const PATIENCE: Duration = Duration::from_secs(10);

/// A configuration that is about to be in force.
#[derive(Debug)]
pub(super) struct Reload {
    config: Config,
    changes: Changes,
    /// Host names to listen on, and the first address of each.
    lookups: Vec<(Address, Option<Option<SocketAddr>>)>,
    deadline: Instant,
}

impl Reload {
    /// When it goes on without the name service.
    pub(super) fn deadline(&self) -> Instant {
        self.deadline
    }

    fn found(&self, address: &Address) -> Option<SocketAddr> {
        self.lookups.iter().find(|(asked, _)| asked == address).and_then(|(_, found)| found.flatten())
    }
}

impl Supervisor {
    /// Reads the configuration again.
    pub(super) fn begin_reload(&mut self, now: Instant) {
        log::info!("Reloading configuration...");
        let config = match hast_conf::load(&self.config_path, &self.node) {
            Ok(config) => config,
            Err(error) => {
                log::error!("{error}");
                log::error!("Configuration not reloaded.");
                return;
            }
        };
        for warning in &config.warnings {
            log::warn!("{warning}");
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
        self.reload = Some(Reload { config, changes, lookups, deadline: now + PATIENCE });
        self.go_on_with_reload(now);
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

    /// Goes on without names that the name service does not tell in time.
    pub(super) fn expire_reload(&mut self, now: Instant) {
        if let Some(reload) = self.reload.as_mut().filter(|reload| reload.deadline <= now) {
            for (_, found) in reload.lookups.iter_mut().filter(|(_, found)| found.is_none()) {
                *found = Some(None);
            }
            self.go_on_with_reload(now);
        }
    }

    fn go_on_with_reload(&mut self, now: Instant) {
        let Some(reload) = self.reload.take_if(|reload| reload.lookups.iter().all(|(_, f)| f.is_some()))
        else {
            return;
        };
        match self.take_over(reload, now) {
            Ok(()) => log::info!("Configuration reloaded successfully."),
            Err(why) => {
                log::error!("{why}");
                log::error!("Configuration not reloaded.");
            }
        }
    }

    fn take_over(&mut self, reload: Reload, now: Instant) -> Result<(), String> {
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
        self.move_listeners(&reload)?;
        // From here on nothing can fail.
        if let Some(control) = control {
            self.control = control;
            self.control_resume = None;
            log::debug!("Listening on control address {}.", control_place(&reload.config.control));
        }
        if let Some(pidfile) = pidfile {
            log::debug!("PID stored in {}.", pidfile.path().display());
            self.pidfile = Some(pidfile);
        }
        self.change_resources(&reload, now);
        self.config = reload.config;
        Ok(())
    }

    /// Closes the listening sockets that are gone, then opens the new ones: a new address may cover an old one.
    fn move_listeners(&mut self, reload: &Reload) -> Result<(), String> {
        let Changes { listen_closed, listen_opened, .. } = &reload.changes;
        let closed: Vec<PeerListener> =
            self.listeners.extract_if(.., |listener| is_among(&listener.address, listen_closed)).collect();
        let closed: Vec<Address> = closed.into_iter().map(|listener| listener.address).collect();
        for address in listen_opened {
            match self.open_listener(address, reload.found(address)) {
                Ok(()) => log::info!("Listening on address {address}."),
                Err(error) if is_excused(&reload.config, &error) => log::debug!("{error}"),
                Err(error) => log::warn!("{error}"),
            }
        }
        if !self.listeners.is_empty() {
            return Ok(());
        }
        for address in &closed {
            if let Err(error) = self.open_listener(address, address.literal()) {
                log::error!("{error}");
            }
        }
        Err("There is no address to listen on for other nodes.".to_owned())
    }

    fn open_listener(
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

    fn change_resources(&mut self, reload: &Reload, now: Instant) {
        let (changes, nbd) = (&reload.changes, reload.config.nbd_directory().map(Path::to_owned));
        for gone in &changes.removed {
            let Some(index) = self.resource_named(&gone.name) else { continue };
            log::info!("Resource {} removed.", gone.name);
            if let Some(resource) = self.resources.get_mut(index) {
                resource.leaving = true;
                resource.tasks.push_back(to_init());
            }
            self.add_task(index, Task::Remove, now);
        }
        for added in &changes.added {
            log::info!("Resource {} added.", added.name);
            self.add_resource(added.clone(), nbd.clone());
        }
        for changed in &changes.changed {
            let Some(index) = self.resource_named(&changed.new.name) else { continue };
            let Some(resource) = self.resources.get_mut(index) else { continue };
            let role = resource.settled_role();
            let scope = resource.scope();
            match changed.action(role == Role::Primary) {
                Action::Apply { reconnect } if resource.is_settled() => {
                    log::info!("Resource {} reloaded.", changed.new.name);
                    drop(scope);
                    resource.config = changed.new.clone();
                    let told = WorkerReload { resource: changed.new.clone(), reconnect };
                    self.tell_worker(index, ToWorker::Reload(Box::new(told)));
                }
                Action::Nothing if resource.is_settled() => resource.nbd_directory.clone_from(&nbd),
                Action::Apply { .. } | Action::Nothing | Action::Restart => {
                    log::info!("Resource {} restarted.", changed.new.name);
                    drop(scope);
                    let mut resource = self.resources.remove(index);
                    let replacement = Box::new((changed.new.clone(), nbd.clone()));
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
    }
}

fn to_init() -> Task {
    Task::SetRole { role: Role::Init, promotion: Promotion::Checked, waiter: None }
}

fn is_among(address: &Address, others: &[Address]) -> bool {
    others.iter().any(|other| other.endpoint() == address.endpoint())
}
