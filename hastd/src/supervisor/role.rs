//! Role changes, one at a time for each resource, without holding up any other.
//!
//! The order is always: the old worker stops (what it acknowledged is stored), the provider is opened and
//! locked, the role changes, the new worker starts, the hook runs, the control client is answered. Whether a
//! node may become primary is asked before its worker stops, and again after (`promotion`).
//!
//! A role that a provider or a device rules out: a primary is in role init then, no hook runs, and the control
//! client is told an error, whatever the cause. A secondary is one all the same, and tries again when a primary
//! comes.

use std::time::Instant;

use hast_format::metadata::{Metadata, Role};
use hast_net::control::{ConnectionState, Entry};
use hast_net::handshake::texts;
use hast_provider::Provider;

use super::Supervisor;
use super::device::{self, Device};
use super::jobs::{JobId, UnusableError};
use super::promotion::{Outdated, Promotion};
use super::resource::{Change, Pending, Step, Task, Waiter};

use crate::exit;

impl Supervisor {
    /// Adds something to be done with a resource, and begins with it if nothing else is being done.
    pub(super) fn add_task(&mut self, index: usize, task: Task, now: Instant) {
        if let Some(resource) = self.resources.get_mut(index) {
            let the_same = task.is_checked_promotion();
            resource.tasks.push_back(task);
            if !the_same {
                self.give_up_waiting(index);
            }
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
                    Step::Waiting(_) if resource.is_left_alone() => self.leave_role(index, now),
                    Step::Asking
                    | Step::Waiting(_)
                    | Step::AskingAgain
                    | Step::Stopping
                    | Step::Opening(_) => return,
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
                Some(Task::SetRole { role, waiter, .. }) if role == resource.role => {
                    if role != Role::Primary {
                        let (directory, provider) = (&resource.nbd_directory, &resource.config.provname);
                        device::sweep(directory.as_deref(), provider, &self.owner);
                    }
                    self.answer_role(index, waiter, role);
                }
                Some(Task::SetRole { role, promotion, waiter }) => {
                    let (step, suspect, stopped) = (Step::Stopping, false, None);
                    resource.change = Some(Change { role, promotion, waiter, step, suspect, stopped });
                    if !self.ask_before_promotion(index, now) {
                        self.leave_role(index, now);
                    }
                }
            }
        }
    }

    /// Begins to end what belongs to the old role.
    pub(super) fn leave_role(&mut self, index: usize, now: Instant) {
        let Some(resource) = self.resources.get_mut(index) else { return };
        let Some(change) = &mut resource.change else { return };
        change.step = Step::Stopping;
        resource.restart = None;
        resource.pending = Pending::None;
        resource.opening = None;
        let bound = resource.stop_bound();
        if let Some(worker) = &mut resource.worker {
            worker.stop(now, bound);
        }
        self.cancel_connect(index, None);
    }

    /// A thread has opened a provider, or has not.
    pub(super) fn provider_opened(
        &mut self,
        job: JobId,
        result: Result<(Provider, Option<Metadata>), UnusableError>,
        now: Instant,
    ) {
        if let Some(index) = self.resources.iter().position(|resource| resource.opening == Some(job)) {
            return self.provider_found(index, result.map(|(provider, _)| provider), now);
        }
        let wanted = |change: &Change| change.step == Step::Opening(job);
        let found = self.resources.iter().position(|resource| resource.change.as_ref().is_some_and(wanted));
        let Some(index) = found else { return };
        let Some(resource) = self.resources.get_mut(index) else { return };
        match result {
            Ok((provider, metadata)) => {
                resource.provider = Some(provider);
                let outdated = metadata.as_ref().and_then(Outdated::on);
                let created = metadata.as_ref().is_some_and(|metadata| metadata.resuid == 0);
                let outdated = outdated.or_else(|| Outdated::unsure(resource).filter(|_| !created));
                let promoted = resource.change.as_ref().is_some_and(|change| change.role == Role::Primary);
                let outdated = outdated.filter(|_| promoted);
                if let Some(change) = &mut resource.change {
                    change.suspect |= metadata.is_some_and(|metadata| metadata.extension.possibly_behind);
                }
                let promotion = resource.change.as_ref().map(|change| change.promotion);
                match (outdated, promotion) {
                    (Some(outdated), Some(Promotion::Checked)) => {
                        self.refuse_promotion(index, &outdated.to_string());
                    }
                    (outdated, _) => {
                        if let Some(outdated) = outdated {
                            let _scope = resource.scope();
                            log::warn!("{outdated}. Role {} is forced.", Role::Primary.as_str());
                        }
                        self.finish(index, now);
                    }
                }
            }
            Err(error) => {
                let scope = resource.scope();
                log::error!("{error}");
                drop(scope);
                let secondary = resource.change.as_ref().is_some_and(|change| change.role == Role::Secondary);
                if secondary { self.finish(index, now) } else { self.fail(index, exit::NO_INPUT) }
            }
        }
        self.advance(index, now);
    }

    /// The provider of a secondary that was without one.
    fn provider_found(&mut self, index: usize, result: Result<Provider, UnusableError>, now: Instant) {
        let Some(resource) = self.resources.get_mut(index) else { return };
        resource.opening = None;
        match result {
            Ok(provider) => resource.provider = Some(provider),
            Err(error) => {
                let scope = resource.scope();
                log::error!("{error}");
                // It comes again.
                if let Pending::Complete(primary) = std::mem::take(&mut resource.pending) {
                    primary.turn_away(&texts::provider_failed(&error.to_string()));
                }
                drop(scope);
                let reason = format!("The provider cannot be used. {error}");
                self.connection_is(index, ConnectionState::Refused, reason, now);
            }
        }
        self.start_secondary(index);
    }

    /// The old worker is gone: sees to it that the provider is there, and what it says is known.
    fn enter(&mut self, index: usize, now: Instant) {
        let Some(resource) = self.resources.get_mut(index) else { return };
        let Some(change) = &mut resource.change else { return };
        let reads = change.role == Role::Primary && change.promotion != Promotion::Resumed;
        if change.role == Role::Init || (resource.provider.is_some() && !reads) {
            self.finish(index, now);
        } else {
            let about = reads.then(|| resource.config.name.clone());
            let path = resource.config.localpath.clone();
            change.step = Step::Opening(self.jobs.open(path, resource.provider.take(), about));
        }
    }

    /// Everything is there: changes the role.
    fn finish(&mut self, index: usize, now: Instant) {
        let Some(resource) = self.resources.get_mut(index) else { return };
        let Some(change) = &resource.change else { return };
        let role = change.role;
        let was = resource.role;
        let scope = resource.scope();
        let had_device = resource.device.take().is_some();
        let (directory, provider) = (resource.nbd_directory.as_deref(), &resource.config.provname);
        match (role, had_device) {
            (Role::Primary, _) => {}
            // Of what this primary had, GEOM Gate's device has gone, or cannot go.
            (_, true) => device::sweep_attached(directory, provider),
            (_, false) => device::sweep(directory, provider, &self.owner),
        }
        if role == Role::Primary {
            match Device::open(directory, provider, &self.owner) {
                Ok(device) => resource.device = Some(device),
                Err(error) => {
                    log::error!("Device cannot be created: {error}");
                    drop(scope);
                    return self.fail(index, exit::OS_ERROR);
                }
            }
        }
        let Some(Change { promotion, waiter, suspect, stopped, .. }) = resource.change.take() else { return };
        if role == Role::Init {
            resource.provider = None;
        }
        if role == Role::Primary && suspect {
            log::warn!("The data here may be out of date: the other node's original hastd does not tell.");
        }
        if role != was {
            log::info!("Role changed to {}.", role.as_str());
        }
        drop(scope);
        if role != was {
            resource.split_brain = false;
            resource.connections.begin(role);
        }
        resource.role = role;
        resource.unsure &= role != Role::Primary;
        if promotion != Promotion::Resumed {
            resource.detached = None; // the disk is tried again
        }
        if let Some(pid) = stopped {
            let _scope = resource.scope();
            log::debug!("Worker process {pid} stopped.");
        }
        let forced = match promotion {
            Promotion::Checked => false,
            Promotion::Forced => true,
            Promotion::Resumed => resource.forced,
        };
        if role == Role::Primary && !self.start_primary(index, forced) {
            return self.answer_failed(index, waiter, exit::OS_ERROR);
        }
        if role != was {
            self.hook(index, now, "role", &[was.as_str(), role.as_str()], None);
        }
        self.answer_role(index, waiter, was);
    }

    /// The node cannot be primary; the worker of what it was has ended already.
    fn fail(&mut self, index: usize, error: i32) {
        let Some(resource) = self.resources.get_mut(index) else { return };
        let Some(Change { waiter, .. }) = resource.change.take() else { return };
        let scope = resource.scope();
        if resource.role == Role::Init {
            log::warn!("Role not changed to {}.", Role::Primary.as_str());
        } else {
            log::warn!("Role changed to {} instead of {}.", Role::Init.as_str(), Role::Primary.as_str());
        }
        drop(scope);
        resource.role = Role::Init;
        resource.connections.begin(Role::Init);
        resource.split_brain = false;
        resource.provider = None;
        self.answer_failed(index, waiter, error);
    }

    fn answer_failed(&mut self, index: usize, waiter: Option<Waiter>, error: i32) {
        let Some(resource) = self.resources.get(index) else { return };
        let Some(waiter) = waiter else { return };
        let (name, error) = (resource.config.name.clone(), i16::try_from(error).unwrap_or(i16::MAX));
        self.answer(waiter.client, &[waiter.slot], Entry::error(name, error));
    }

    fn answer_role(&mut self, index: usize, waiter: Option<Waiter>, was: Role) {
        let Some(resource) = self.resources.get_mut(index) else { return };
        let peer_behind = std::mem::take(&mut resource.peer_behind);
        let Some(waiter) = waiter else { return };
        let (name, role) = (resource.config.name.clone(), was.as_str().to_owned());
        self.answer(waiter.client, &[waiter.slot], Entry::RoleWas { name, role, peer_behind });
    }
}
