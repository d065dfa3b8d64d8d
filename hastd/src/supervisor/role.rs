//! Role changes, one at a time for each resource, without holding up any other.
//!
//! The order is always: the old worker stops (what it acknowledged is stored), the provider is opened and
//! locked, the role changes, the new worker starts, the hook runs, the control client is answered.

use std::time::Instant;

use hast_format::metadata::Role;
use hast_net::control::Entry;
use hast_provider::{Provider, ProviderError};

use super::Supervisor;
use super::jobs::JobId;
use super::resource::{Change, Pending, Step, Task, Waiter};
use super::unix::UnixListener;

impl Supervisor {
    /// Adds something to be done with a resource, and begins with it if nothing else is being done.
    pub(super) fn add_task(&mut self, index: usize, task: Task, now: Instant) {
        if let Some(resource) = self.resources.get_mut(index) {
            resource.tasks.push_back(task);
            self.advance(index, now);
        }
    }

    /// Does what can be done with a resource until something has to be waited for.
    pub(super) fn advance(&mut self, index: usize, now: Instant) {
        loop {
            let Some(resource) = self.resources.get_mut(index) else { return };
            if let Some(change) = &resource.change {
                match change.step {
                    Step::Stopping if resource.worker.is_none() => self.enter(index, now),
                    Step::Stopping | Step::Opening(_) => return,
                }
                continue;
            }
            match resource.tasks.pop_front() {
                None => return,
                Some(Task::Replace(replacement)) => {
                    (resource.config, resource.nbd_directory) = *replacement;
                    // An unlocked provider of the old configuration is of no use.
                    resource.provider = None;
                }
                Some(Task::Remove) => {
                    self.resources.remove(index);
                    return;
                }
                Some(Task::SetRole { role, waiter }) if role == resource.role => {
                    self.answer_role(index, waiter, role);
                }
                Some(Task::SetRole { role, waiter }) => {
                    resource.change = Some(Change { role, waiter, step: Step::Stopping, stopped: None });
                    resource.restart = None;
                    resource.pending = Pending::None;
                    let bound = resource.stop_bound();
                    if let Some(worker) = &mut resource.worker {
                        worker.stop(now, bound);
                    }
                    self.cancel_connect(index, None);
                }
            }
        }
    }

    /// A thread has opened a provider, or has not.
    pub(super) fn provider_opened(
        &mut self,
        job: JobId,
        result: Result<Provider, ProviderError>,
        now: Instant,
    ) {
        let wanted = |change: &Change| change.step == Step::Opening(job);
        let found = self.resources.iter().position(|resource| resource.change.as_ref().is_some_and(wanted));
        let Some(index) = found else { return };
        let Some(resource) = self.resources.get_mut(index) else { return };
        match result {
            Ok(provider) => {
                resource.provider = Some(provider);
                self.finish(index, now);
            }
            Err(error) => {
                let scope = resource.scope();
                log::error!("{error}");
                drop(scope);
                if let Some(change) = &mut resource.change {
                    change.role = Role::Init;
                }
                self.finish(index, now);
            }
        }
        self.advance(index, now);
    }

    /// The old worker is gone: sees to it that the provider is there.
    fn enter(&mut self, index: usize, now: Instant) {
        let Some(resource) = self.resources.get_mut(index) else { return };
        let Some(change) = &mut resource.change else { return };
        if change.role == Role::Init || resource.provider.is_some() {
            self.finish(index, now);
        } else {
            change.step = Step::Opening(self.jobs.open(resource.config.localpath.clone()));
        }
    }

    /// Everything is there: changes the role.
    fn finish(&mut self, index: usize, now: Instant) {
        let Some(resource) = self.resources.get_mut(index) else { return };
        let Some(Change { mut role, waiter, stopped, .. }) = resource.change.take() else { return };
        let was = resource.role;
        let scope = resource.scope();
        resource.nbd = None;
        if role == Role::Primary {
            match hast_conf::nbd_socket_path(&resource.nbd_directory, &resource.config.provname)
                .map_err(|error| error.to_string())
                .and_then(|path| {
                    UnixListener::bind_with_directories(&path).map_err(|error| error.to_string())
                }) {
                Ok(nbd) => resource.nbd = Some(nbd),
                Err(error) => {
                    log::error!("Device cannot be created: {error}");
                    role = Role::Init;
                }
            }
        }
        if role == Role::Init {
            resource.provider = None;
        }
        if role != was {
            log::info!("Role changed to {}.", role.as_str());
        }
        drop(scope);
        resource.role = role;
        if let Some(pid) = stopped {
            let _scope = resource.scope();
            log::debug!("Worker process {pid} stopped.");
        }
        if role == Role::Primary {
            self.start_primary(index);
        }
        if role != was {
            self.hook(index, now, "role", &[was.as_str(), role.as_str()]);
        }
        self.answer_role(index, waiter, was);
    }

    fn answer_role(&mut self, index: usize, waiter: Option<Waiter>, was: Role) {
        let Some(resource) = self.resources.get(index) else { return };
        let Some(waiter) = waiter else { return };
        let name = resource.config.name.clone();
        self.answer(waiter.client, &[waiter.slot], Entry::RoleWas { name, role: was.as_str().to_owned() });
    }
}
