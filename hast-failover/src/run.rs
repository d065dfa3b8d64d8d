//! A run for one group: the plan of steps on the way up and on the way down, in which order they are done, and what
//! becomes of failures.
//!
//! Each step knows three things: whether it is so, how it is done, and how it is undone; they are in the modules below, by
//! what they are about. Up: a step that fails ends the run, and what this run has done is undone, the last thing first.
//! Down: whatever fails is told and the rest is done all the same, but for one thing: a device that somebody uses stays
//! where it is, and so does the role of its resource, unless the node is abandoned. Success is what was looked at in the end.

mod addresses;
mod check;
mod devices;
mod files;
mod pools;
mod roles;
mod services;
mod status;

use std::fmt;
use std::time::Duration;

pub(crate) use check::{Failure, Wanted};

use crate::address::Address;
use crate::config::{Content, Group};
use crate::system::{Later, Priority, Ran, System};

/// Exit statuses, of which most are from sysexits(3).
pub(crate) mod exit {
    pub(crate) const OK: u8 = 0;
    pub(crate) const FAILED: u8 = 1;
    pub(crate) const USAGE: u8 = 64;
    pub(crate) const DATAERR: u8 = 65;
    pub(crate) const NOINPUT: u8 = 66;
    pub(crate) const SOFTWARE: u8 = 70;
    pub(crate) const CANTCREAT: u8 = 73;
    pub(crate) const TEMPFAIL: u8 = 75;
    pub(crate) const CONFIG: u8 = 78;
}

/// A role as it may be asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    Primary,
    Secondary,
    Init,
}

impl Role {
    pub(crate) fn word(self) -> &'static str {
        match self {
            Role::Primary => "primary",
            Role::Secondary => "secondary",
            Role::Init => "init",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

/// How a run is meant.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Manner {
    /// The other node takes over anyway: nothing more is written here.
    pub(crate) abandon: bool,
    /// Also with data that is known to be out of date; on the way down: whatever kept the node from being primary is mended.
    pub(crate) force: bool,
}

/// A step. What belongs to a group is here in the order of the way up.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Step {
    Role(String),
    Device(String),
    Content,
    Service(String),
    Address(Address),
}

/// The plan of a group on the way up; down it is followed backwards.
fn plan(group: &Group) -> Vec<Step> {
    let roles = group.resources.iter().cloned().map(Step::Role);
    let devices = group.resources.iter().cloned().map(Step::Device);
    let content = (group.content != Content::Nothing).then_some(Step::Content);
    let services = group.services.iter().cloned().map(Step::Service);
    let addresses = group.addresses.iter().cloned().map(Step::Address);
    roles.chain(devices).chain(content).chain(services).chain(addresses).collect()
}

/// How something that this run has done is taken back.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Undo {
    /// To the role that it had.
    Role(String, String),
    Device(String),
    Content,
    Service(String),
    Address(Address),
}

/// A step has failed, and it has been told why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Failed;

type Done = Result<(), Failed>;

/// A run for one group on one node.
pub(crate) struct Run<'a, S: System> {
    system: &'a mut S,
    group: &'a Group,
    manner: Manner,
    undo: Vec<Undo>,
    /// Resources whose device somebody uses and has not let go of.
    used: Vec<String>,
    /// Why it gives up, if it does.
    later: Option<Later>,
    /// What the first step to fail has told.
    why: String,
    /// It was hastd, which says beforehand whether it would grant a role, that has refused it.
    foreseeable: bool,
    status: u8,
}

impl<'a, S: System> Run<'a, S> {
    /// A run for `group`, whose lock is held.
    pub(crate) fn new(system: &'a mut S, group: &'a Group, manner: Manner) -> Run<'a, S> {
        Run {
            system,
            group,
            manner,
            undo: Vec::new(),
            used: Vec::new(),
            later: None,
            why: String::new(),
            foreseeable: false,
            status: exit::FAILED,
        }
    }

    /// Gives the group its role; gives the exit status.
    pub(crate) fn work(mut self, role: Role) -> u8 {
        if self.goes_on().is_err() {
            return exit::TEMPFAIL;
        }
        match role {
            Role::Primary => self.primary(),
            _ => self.not_primary(role),
        }
    }

    fn primary(&mut self) -> u8 {
        if self.go_up().is_ok() {
            self.forget_failure();
            self.note("This node is primary, and everything on it runs.");
            return exit::OK;
        }
        self.roll_back();
        if self.later.is_some() {
            return exit::TEMPFAIL;
        }
        self.note_failure();
        let _ = self.failed("This node did not become primary.");
        self.status
    }

    fn not_primary(&mut self, role: Role) -> u8 {
        let done = self.go_down(role);
        if self.manner.force {
            self.forget_failure();
        } else if self.follows_carp() {
            let well = done.is_ok() && self.may_be_tried().is_ok();
            self.tell_carp(well);
        }
        if done.is_ok() {
            self.note(format!("This node is {role}."));
            return exit::OK;
        }
        let _ = self.failed(format!("This node is not {role} as it should be."));
        exit::FAILED
    }

    /// All steps, after a look at what would stand in the way of one of them.
    fn go_up(&mut self) -> Done {
        self.nothing_in_the_way()?;
        for step in plan(self.group) {
            match &step {
                Step::Role(resource) => self.promote(resource)?,
                Step::Device(resource) => self.provide_device(resource)?,
                Step::Content => self.bring_in()?,
                Step::Service(name) => self.start_service(name)?,
                Step::Address(address) => self.add_address(address)?,
            }
        }
        self.all_is_here()
    }

    /// Looks before anything is changed.
    fn nothing_in_the_way(&mut self) -> Done {
        self.device_will_last()?;
        match self.group.content.clone() {
            Content::Nothing => Ok(()),
            Content::Pool(name) => self.pool_is_no_strangers(&name),
            Content::Files { mount, .. } => self.mount_point_is_free(&mount),
        }
    }

    fn bring_in(&mut self) -> Done {
        match self.group.content.clone() {
            Content::Nothing => Ok(()),
            Content::Pool(name) => self.import(&name),
            Content::Files { fstype, mount, options } => self.mount(&fstype, &mount, &options),
        }
    }

    fn take_out(&mut self) -> Done {
        match self.group.content.clone() {
            Content::Nothing => Ok(()),
            Content::Pool(name) => self.export(&name),
            Content::Files { mount, .. } => self.unmount(&mount),
        }
    }

    /// Looks at everything again: it took a while to get here.
    fn all_is_here(&mut self) -> Done {
        for step in plan(self.group) {
            let missing = match &step {
                Step::Role(resource) => (!self.has_role(resource, Role::Primary.word()))
                    .then(|| format!("{resource} is not primary")),
                Step::Device(resource) => self.device_is_missing(resource),
                Step::Content => self.content_is_missing(),
                // Many services have no way to be asked.
                Step::Service(_) => None,
                Step::Address(address) => match self.system.has_address(address) {
                    Ok(true) => None,
                    Ok(false) => Some(format!("{address} is not there")),
                    Err(why) => Some(why),
                },
            };
            if let Some(missing) = missing {
                return self.failed(format!("{missing} any more."));
            }
        }
        Ok(())
    }

    fn content_is_missing(&mut self) -> Option<String> {
        match self.group.content.clone() {
            Content::Nothing => None,
            Content::Pool(name) => match self.own_pool(&name) {
                Ok(Some(_)) => None,
                Ok(None) => Some(format!("{name} is not imported")),
                Err(why) => Some(why),
            },
            Content::Files { mount, .. } => {
                (!self.is_mounted(&mount)).then(|| format!("{} is not mounted", mount.display()))
            }
        }
    }

    /// Takes back what this run has done, the last thing first.
    fn roll_back(&mut self) {
        if self.undo.is_empty() {
            return;
        }
        self.warn("Rolling back.");
        while let Some(done) = self.undo.pop() {
            // A failure has been told, and the rest is taken back all the same.
            let _ = match done {
                Undo::Address(address) => self.remove_address(&address),
                Undo::Service(name) => self.stop_service(&name),
                Undo::Content => self.take_out(),
                Undo::Device(resource) => self.give_back(&resource),
                Undo::Role(resource, role) => self.demote_unless_used(&resource, &role),
            };
        }
    }

    /// The plan backwards. The other node is about to take over: whatever fails, the rest is done.
    fn go_down(&mut self, role: Role) -> Done {
        let mut done = Ok(());
        let mut devices = self.devices();
        devices.extend(self.former());
        let mut taken_out = Ok(());
        let mut cut = false;
        for step in plan(self.group).iter().rev() {
            if !matches!(step, Step::Address(_)) && !cut {
                cut = true;
                self.cut_off(role);
            }
            match step {
                Step::Address(address) => done = self.remove_address(address).and(done),
                Step::Service(name) => done = self.stop_service(name).and(done),
                Step::Content => taken_out = self.take_out(),
                Step::Device(resource) => done = self.give_back(resource).and(done),
                Step::Role(resource) => done = self.demote_unless_used(resource, role.word()).and(done),
            }
        }
        // What kept the file system may have gone together with the device.
        if taken_out.is_err() && self.used.is_empty() {
            taken_out = self.take_out();
        }
        done.and(taken_out).and(self.all_is_gone(role, &devices))
    }

    /// Of a node that is abandoned the devices go first, with whatever is still to be written to them.
    fn cut_off(&mut self, role: Role) {
        if !self.manner.abandon {
            return;
        }
        self.note("The other node takes over: nothing more is written here.");
        // A pool without its devices hangs for ever, so it keeps them until it is exported.
        if matches!(self.group.content, Content::Pool(_)) {
            return;
        }
        for resource in self.group.resources.clone() {
            // Both are tried again later, and told then.
            let _ = self.detach(&resource, true);
            let _ = self.demote(&resource, role.word());
        }
    }

    /// Looks whether it is so, before it is said.
    fn all_is_gone(&mut self, role: Role, devices: &[devices::Device]) -> Done {
        let mut gone = Ok(());
        for resource in self.group.resources.clone() {
            if !self.has_role(&resource, role.word()) {
                gone = self.failed(format!("{resource} is not {role}."));
            }
        }
        for device in devices {
            match self.system.mounts_of(device.number) {
                Ok(mounts) => {
                    for mounted in mounts {
                        gone = self.failed(format!(
                            "{}: {} is still mounted on {}.",
                            device.resource,
                            mounted.source,
                            mounted.point.display()
                        ));
                    }
                }
                Err(why) => gone = self.failed(why),
            }
        }
        for address in self.group.addresses.clone() {
            if self.system.has_address(&address) == Ok(true) {
                gone = self.failed(format!("{address} is still there."));
            }
        }
        gone
    }

    // ---- What all steps need

    fn note(&mut self, words: impl AsRef<str>) {
        self.system.say(Priority::Notice, words.as_ref());
    }

    fn warn(&mut self, words: impl AsRef<str>) {
        self.system.say(Priority::Warning, words.as_ref());
    }

    /// Tells why a step fails.
    fn failed(&mut self, words: impl AsRef<str>) -> Done {
        self.system.say(Priority::Error, words.as_ref());
        if self.why.is_empty() {
            words.as_ref().clone_into(&mut self.why);
        }
        Err(Failed)
    }

    /// Gives up, and says so, if there is a reason to.
    fn goes_on(&mut self) -> Done {
        let Some(later) = self.system.later() else { return Ok(()) };
        self.note(later.to_string());
        self.later = Some(later);
        Err(Failed)
    }

    /// In front of everything that changes something on the way up.
    fn step(&mut self, words: impl AsRef<str>) -> Done {
        self.goes_on()?;
        self.note(words);
        Ok(())
    }

    /// After [`Run::wait_until`] has ended in vain: because of its time, or of a later request.
    fn too_late(&mut self, words: impl AsRef<str>) -> Done {
        self.goes_on()?;
        self.failed(words)
    }

    /// Waits until it is so: at most this long, and not when a later request has come.
    fn wait_until(&mut self, limit: Duration, mut so: impl FnMut(&mut Self) -> bool) -> bool {
        let mut is_so = false;
        self.insist(limit, |run| {
            is_so = so(run);
            is_so || run.system.later().is_some()
        });
        is_so
    }

    /// The same on the way down: nothing that is half down is left because of a later request.
    fn insist(&mut self, limit: Duration, mut so: impl FnMut(&mut Self) -> bool) -> bool {
        let begin = self.system.now();
        loop {
            if so(self) {
                return true;
            }
            if self.system.now().saturating_sub(begin) >= limit {
                return false;
            }
            self.system.pause();
        }
    }

    /// Tells how a command ended.
    fn conclude(&mut self, what: &str, ran: &Ran) -> Done {
        match ran {
            Ran::Well => {
                self.note(format!("{what}: done."));
                Ok(())
            }
            _ => self.failed(format!("{what}: {}", how(ran))),
        }
    }
}

/// How a command has failed, in words.
fn how(ran: &Ran) -> String {
    match ran {
        Ran::Well => "done.".to_owned(),
        Ran::Badly(status, said) if said.is_empty() => format!("failed with status {status}"),
        Ran::Badly(status, said) => format!("failed with status {status}: {said}"),
        Ran::TooLong(limit) => format!("not done after {} s, killed", limit.as_secs()),
        Ran::Not(why) => format!("cannot be run: {why}"),
    }
}

#[cfg(test)]
mod check_tests;
#[cfg(test)]
mod fake;
#[cfg(test)]
mod tests;
