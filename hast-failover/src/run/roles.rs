//! The role of a resource.

use crate::config::Wait;
use crate::system::{Ran, System};

use super::{Done, Run, Undo, exit, how};

impl<S: System> Run<'_, S> {
    pub(super) fn has_role(&mut self, resource: &str, role: &str) -> bool {
        self.system.ask(resource).is_some_and(|known| known.role == role)
    }

    /// To primary; remembers what it was.
    pub(super) fn promote(&mut self, resource: &str) -> Done {
        let before = self.system.ask(resource).map(|known| known.role).unwrap_or_default();
        match before.as_str() {
            "primary" => {
                self.note(format!("{resource} is primary already."));
                return Ok(());
            }
            "init" | "secondary" => {}
            _ => {
                return self.failed(format!("hastd does not say which role {resource} has; is it running?"));
            }
        }
        self.step(format!("{resource}: from {before} to primary."))?;
        if before == "secondary" {
            self.secondary_has_left(resource)?;
        }
        self.undo.push(Undo::Role(resource.to_owned(), before));
        let ran = self.system.change_role(resource, "primary", self.manner.force);
        match &ran {
            Ran::Well => {}
            Ran::Badly(70, said) => {
                self.status = exit::SOFTWARE;
                self.foreseeable = true;
                return self.failed(format!(
                    "{resource}: the other node has newer data, or is primary; 'hast-failover -f primary' gives up what \
                     this one lacks. {said}"
                ));
            }
            _ => {
                self.foreseeable = matches!(ran, Ran::Badly(66, _));
                return self.failed(format!("{resource}: hastctl role primary {}", how(&ran)));
            }
        }
        // The original answers first and tries then.
        if self.has_role(resource, "primary") {
            return Ok(());
        }
        self.failed(format!("{resource} did not stay primary; hastd's log says why."))
    }

    /// A secondary with a worker has a primary that is connected: in a planned change the cluster manager may have told
    /// the new primary first. FreeBSD's own hastd does not wait for that worker either, which would still hold the provider.
    fn secondary_has_left(&mut self, resource: &str) -> Done {
        let original = match self.group.wait_secondary {
            Wait::No => return Ok(()),
            Wait::Yes if !self.manner.force => true,
            Wait::Yes | Wait::Auto => self.system.is_original(resource),
        };
        let limit = self.group.role_timeout;
        if !original {
            let left = |run: &mut Self| !run.system.ask(resource).is_some_and(|known| known.works);
            if self.manner.force || self.wait_until(limit, left) {
                return Ok(());
            }
            return self.is_still_primary(resource);
        }
        let mut unknown = None;
        let left = self.wait_until(limit, |run| match run.system.secondary_works(resource) {
            Ok(works) => !works,
            Err(why) => {
                unknown = Some(why);
                true
            }
        });
        if let Some(why) = unknown {
            return self
                .failed(format!("{resource}: whether the secondary's worker has left is not known: {why}"));
        }
        if left {
            return Ok(());
        }
        self.is_still_primary(resource)
    }

    fn is_still_primary(&mut self, resource: &str) -> Done {
        self.status = exit::SOFTWARE;
        self.foreseeable = true;
        let seconds = self.group.role_timeout.as_secs();
        self.too_late(format!(
            "{resource}: the secondary's worker is still there after {seconds} s: the other node is still primary."
        ))
    }

    /// To another role, unless the device is still used: hastd would take it away together with the role.
    pub(super) fn demote_unless_used(&mut self, resource: &str, role: &str) -> Done {
        let before = self.system.ask(resource).map(|known| known.role);
        // Of one that is not known the worst is to be feared.
        let has_device = !matches!(before.as_deref(), Some("secondary" | "init"));
        if has_device && !self.manner.abandon && self.device_is_used(resource).is_err() {
            return self.failed(format!(
                "{resource}: the role stays while the device is used; with -a both go all the same."
            ));
        }
        self.change_role(resource, role, before.as_deref())
    }

    pub(super) fn demote(&mut self, resource: &str, role: &str) -> Done {
        let before = self.system.ask(resource).map(|known| known.role);
        self.change_role(resource, role, before.as_deref())
    }

    fn change_role(&mut self, resource: &str, role: &str, before: Option<&str>) -> Done {
        if before == Some(role) {
            // Sent all the same: hastd may be waiting to give it another one, for a run that did not wait so long.
            self.note(format!("{resource} is {role} already."));
        }
        let ran = self.system.change_role(resource, role, false);
        self.conclude(&format!("{resource}: role {role}"), &ran)
    }
}
