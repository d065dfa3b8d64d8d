//! Whether a node may become primary: not with data that is known to be out of date, and not while the other node is
//! primary and connected, unless it is forced (spec: durability, "Out-of-date nodes").
//!
//! A secondary's worker is asked first, so that a refusal leaves it at work. What counts is the provider, read
//! when no worker can write to it any more: whatever a worker has answered, it may have been told later.
//!
//! A primary that is connected is waited for: in a planned change it is about to leave its role, and one that has died is
//! noticed meanwhile.

use std::collections::VecDeque;
use std::fmt;
use std::time::Instant;

use hast_format::extension::{Mark, Utc};
use hast_format::metadata::{Metadata, Role};
use hast_net::control::{Entry, Facts, WorkerStatus};
use hast_net::errno::Errno;

use super::Supervisor;
use super::process::Asker;
use super::resource::{Change, Resource, Step, Task, Waiter};
use crate::wall;

/// On what condition a node becomes primary.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Promotion {
    /// If its data is not known to be out of date.
    Checked,
    /// On none: its administrator has decided.
    Forced,
    /// On none: it is primary, and only its worker is replaced. What its data is worth, the worker knows.
    Resumed,
}

/// A node's data is older than that of the other node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Outdated {
    since: u64,
    by: String,
}

impl Outdated {
    /// As a provider says.
    pub(super) fn on(metadata: &Metadata) -> Option<Outdated> {
        metadata.extension.mark.as_ref().map(|Mark { since, by }| Outdated { since: *since, by: by.clone() })
    }

    /// A secondary whose last worker could not rely on the disk, and perhaps could not write that down either.
    pub(super) fn unsure(resource: &Resource) -> Option<Outdated> {
        resource.unsure.then(|| Outdated { since: wall::now(), by: resource.config.remote_text().to_owned() })
    }

    /// As a worker says.
    fn told(facts: &Facts) -> Option<Outdated> {
        facts.inconsistent_since.map(|since| Outdated { since, by: facts.inconsistent_by.clone() })
    }
}

impl fmt::Display for Outdated {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let by = if self.by.is_empty() { "the other node" } else { &self.by };
        write!(f, "The data here is out of date since {}; {by} has the newer data", Utc(self.since))
    }
}

/// What a provider says about its node while no worker does.
pub(super) fn facts(metadata: &Metadata) -> Facts {
    let extents: u64 = metadata.extension.stale.iter().map(|run| u64::from(run.count)).sum();
    let outdated = Outdated::on(metadata);
    Facts {
        inconsistent_since: outdated.as_ref().map(|outdated| outdated.since),
        inconsistent_by: outdated.map(|outdated| outdated.by).unwrap_or_default(),
        target: metadata.extension.target,
        stale_bytes: extents.saturating_mul(metadata.extentsize.into()),
        possibly_behind: metadata.extension.possibly_behind,
        ..Facts::default()
    }
}

impl Supervisor {
    /// Asks the worker of a secondary that is to become primary, or waits for the primary that is just connecting. False
    /// if there is neither.
    pub(super) fn ask_before_promotion(&mut self, index: usize, now: Instant) -> bool {
        let Some(resource) = self.resources.get_mut(index) else { return false };
        let alone = resource.role != Role::Secondary || resource.is_left_alone();
        let Some(change) = &mut resource.change else { return false };
        if change.role != Role::Primary || change.promotion != Promotion::Checked {
            return false;
        }
        let worker = resource.worker.as_mut().filter(|worker| !worker.stopping);
        if worker.is_some_and(|worker| worker.ask(now, Asker::Promotion).is_ok()) {
            change.step = Step::Asking;
        } else if !alone {
            self.wait_for_primary(index, now, false);
        } else {
            return false;
        }
        true
    }

    /// The other node is primary, and may be about to leave that role.
    fn wait_for_primary(&mut self, index: usize, now: Instant, original: bool) {
        let Some(resource) = self.resources.get_mut(index) else { return };
        let patience = resource.primary_patience(original);
        let Some(change) = &mut resource.change else { return };
        change.step = Step::Waiting(now + patience);
        let _scope = resource.scope();
        let (primary, seconds) = (resource.connected_primary(), patience.as_secs());
        log::info!("{primary}: waiting up to {seconds} s for it to leave its role.");
    }

    /// The worker has answered, or will not.
    pub(super) fn promotion_answered(&mut self, index: usize, answer: Option<&WorkerStatus>, now: Instant) {
        let Some(resource) = self.resources.get_mut(index) else { return };
        let alone = resource.is_left_alone();
        let primary = resource.connected_primary();
        let Some(change) = resource.change.as_mut().filter(|change| !change.step.leaves_role()) else {
            return;
        };
        let facts = answer.map(|status| &status.facts);
        change.suspect |= facts.is_some_and(|facts| facts.possibly_behind);
        let again = change.step == Step::AskingAgain;
        match facts.and_then(Outdated::told) {
            Some(outdated) => self.refuse_promotion(index, &outdated.to_string()),
            // A primary that is just connecting again, or one that a worker which does not answer serves, still counts.
            None if again && !alone && answer.is_none_or(|status| status.complete) => {
                self.refuse_promotion(index, &primary);
            }
            None if !again && !alone => {
                let original = facts.is_some_and(|facts| facts.peer_is_original == Some(true));
                self.wait_for_primary(index, now, original);
            }
            None => self.leave_role(index, now),
        }
        self.advance(index, now);
    }

    /// The primary has had its time to leave its role: is it still there?
    pub(super) fn ask_again(&mut self, index: usize, now: Instant) {
        let Some(resource) = self.resources.get_mut(index) else { return };
        let Some(change) = &mut resource.change else { return };
        if !matches!(change.step, Step::Waiting(until) if until <= now) {
            return;
        }
        change.step = Step::AskingAgain;
        let asked = resource.worker.as_mut().is_some_and(|worker| worker.ask(now, Asker::Promotion).is_ok());
        if !asked {
            self.promotion_answered(index, None, now);
        }
    }

    /// Something else is wanted meanwhile: the primary is not waited for any longer.
    pub(super) fn give_up_waiting(&mut self, index: usize) {
        let Some(resource) = self.resources.get_mut(index) else { return };
        let uncertain =
            |change: &Change| change.promotion == Promotion::Checked && !change.step.leaves_role();
        if resource.change.as_ref().is_some_and(uncertain) {
            let primary = resource.connected_primary();
            self.refuse_promotion(index, &primary);
        }
    }

    /// Refuses what a secondary has been asked to become and may not: now, and what is asked for after that.
    pub(super) fn refuse_uncertain(&mut self, index: usize) {
        self.give_up_waiting(index);
        let Some(resource) = self.resources.get_mut(index).filter(|r| r.role == Role::Secondary) else {
            return;
        };
        let (refused, rest): (VecDeque<Task>, _) =
            std::mem::take(&mut resource.tasks).into_iter().partition(Task::is_checked_promotion);
        resource.tasks = rest;
        for task in refused {
            if let Task::SetRole { waiter, .. } = task {
                self.answer_refused(index, waiter, "The configuration of the resource has changed meanwhile");
            }
        }
    }

    /// Leaves the role what it is, for that `reason`.
    pub(super) fn refuse_promotion(&mut self, index: usize, reason: &str) {
        let Some(resource) = self.resources.get_mut(index) else { return };
        let Some(Change { waiter, .. }) = resource.change.take() else { return };
        let scope = resource.scope();
        log::error!("{reason}. Role not changed to {}.", Role::Primary.as_str());
        drop(scope);
        if resource.role == Role::Init {
            // Opened to be asked, and locked by nobody in this role.
            resource.provider = None;
        }
        self.answer_refused(index, waiter, reason);
        self.start_secondary(index);
    }

    fn answer_refused(&mut self, index: usize, waiter: Option<Waiter>, reason: &str) {
        let Some(resource) = self.resources.get(index) else { return };
        let Some(waiter) = waiter else { return };
        let (name, reason) = (resource.config.name.clone(), Some(reason.to_owned()));
        self.answer(
            waiter.client,
            &[waiter.slot],
            Entry::Error { name, error: Errno::ESTALE.to_wire(), reason },
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::supervisor::options::Options;
    use crate::supervisor::resource::{Complete, Pending};
    use crate::supervisor::start;
    use hast_format::extension::{Extension, Run};
    use hast_net::extensions::Extensions;
    use hast_net::handshake::SecondHello;

    fn metadata(extension: Extension) -> Metadata {
        Metadata {
            resource: "r".into(),
            datasize: 1 << 30,
            extentsize: 1 << 20,
            keepdirty: 1,
            localoff: 8192,
            resuid: 1,
            localcnt: 1,
            remotecnt: 1,
            prevrole: Role::Secondary,
            extension,
        }
    }

    #[test]
    fn a_mark_says_since_when_and_by_whom() {
        assert_eq!(Outdated::on(&metadata(Extension::default())), None);
        let mark = |by: &str| Extension {
            mark: Some(Mark { since: 86_399, by: by.into() }),
            ..Extension::default()
        };
        let text = |by| Outdated::on(&metadata(mark(by))).unwrap().to_string();
        assert_eq!(
            text("tcp4://10.9.0.1"),
            "The data here is out of date since 1970-01-01 23:59:59 UTC; tcp4://10.9.0.1 has the newer data"
        );
        assert!(text("").contains("the other node has"));
        // Worker and provider say the same.
        let facts = facts(&metadata(mark("x")));
        assert_eq!(Outdated::told(&facts), Outdated::on(&metadata(mark("x"))));
        assert_eq!(Outdated::told(&Facts::default()), None);
    }

    #[test]
    fn stale_extents_are_told_in_bytes() {
        let stale = vec![Run { first: 1, count: 2 }, Run { first: 9, count: 1 }];
        let facts = facts(&metadata(Extension { target: true, stale, ..Extension::default() }));
        assert_eq!((facts.stale_bytes, facts.target, facts.inconsistent_since), (3 << 20, true, None));
        assert!(!facts.possibly_behind);
        assert!(
            super::facts(&metadata(Extension { possibly_behind: true, ..Extension::default() }))
                .possibly_behind
        );
    }

    /// A supervisor with a secondary that has been asked.
    fn asked(directory: &std::path::Path) -> Supervisor {
        let conf = directory.join("hast.conf");
        let at = directory.display();
        let text = format!(
            "control uds://{at}/ctl\nlisten uds://{at}/listen\nresource r {{ local {at}/r on a {{ remote none }} }}"
        );
        std::fs::write(&conf, text).unwrap();
        let options = Options {
            debug: 0,
            foreground: true,
            config: conf,
            pidfile: None,
            node: Some("a".into()),
            check: false,
        };
        let mut supervisor = start::prepare(&options).unwrap().start(&options).unwrap();
        let resource = &mut supervisor.resources[0];
        resource.role = Role::Secondary;
        let (role, promotion, step) = (Role::Primary, Promotion::Checked, Step::Asking);
        resource.change = Some(Change { role, promotion, waiter: None, step, suspect: false, stopped: None });
        supervisor
    }

    /// A primary that has completed both steps of the handshake, and whose worker here has not begun.
    fn just_connected() -> Pending {
        let (out, in_) = socket2::Socket::pair(socket2::Domain::UNIX, socket2::Type::STREAM, None).unwrap();
        let hello = SecondHello {
            resource: "r".into(),
            token: [1; 16],
            virgin: false,
            resuid: 1,
            localcnt: 1,
            remotecnt: 1,
            boot: None,
            parting: None,
            meeting: None,
        };
        Pending::Complete(Box::new(Complete { out, in_, version: 1, ext: Extensions::NONE, hello }))
    }

    /// The worker has died while the primary was waited for: nobody can be asked, and whether the primary is connected is
    /// known from its connections alone.
    #[test]
    fn a_primary_that_is_just_connecting_is_not_joined() {
        let directory = tempfile::tempdir().unwrap();
        let now = Instant::now();
        let mut supervisor = asked(directory.path());
        for (pending, is_refused) in [(just_connected(), true), (Pending::None, false)] {
            let resource = &mut supervisor.resources[0];
            resource.pending = pending;
            let (role, promotion, step) = (Role::Primary, Promotion::Checked, Step::Waiting(now));
            resource.change =
                Some(Change { role, promotion, waiter: None, step, suspect: false, stopped: None });
            supervisor.ask_again(0, now);
            let resource = &supervisor.resources[0];
            assert_eq!(resource.is_settled(), is_refused, "{:?}", resource.change);
            assert_eq!(matches!(resource.pending, Pending::Complete(_)), is_refused);
        }
    }

    /// Nothing has been stopped when the worker's answer is a refusal; only a good answer, or none, goes on.
    #[test]
    fn a_worker_that_refuses_goes_on_working() {
        let directory = tempfile::tempdir().unwrap();
        let mut supervisor = asked(directory.path());
        let status = |facts| WorkerStatus { facts, ..WorkerStatus::default() };
        let outdated = Facts { inconsistent_since: Some(0), possibly_behind: true, ..Facts::default() };
        supervisor.promotion_answered(0, Some(&status(outdated)), Instant::now());
        let resource = &supervisor.resources[0];
        assert_eq!((resource.role, resource.is_settled()), (Role::Secondary, true));
        // An answer that comes late changes nothing.
        supervisor.promotion_answered(0, Some(&WorkerStatus::default()), Instant::now());
        assert!(supervisor.resources[0].is_settled());
        drop(supervisor);

        for answer in
            [Some(Facts { possibly_behind: true, ..Facts::default() }), Some(Facts::default()), None]
        {
            let mut supervisor = asked(directory.path());
            supervisor.promotion_answered(0, answer.clone().map(status).as_ref(), Instant::now());
            let change = supervisor.resources[0].change.as_ref().unwrap();
            assert!(matches!(change.step, Step::Opening(_)), "{change:?}");
            assert_eq!(change.suspect, answer.is_some_and(|facts| facts.possibly_behind));
        }
    }
}
