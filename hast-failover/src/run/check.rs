//! Whether this node may have the shared address: what a decider asks again and again (`hast-failover check`), judged by what
//! hastd and the device say now, by the last request and by what came of it.
//!
//! A node whose promotion has failed gives the address away, and does not take it again before something speaks for it: the
//! role would be granted now, or a while has passed, longer each time. Otherwise two nodes that both fail would pass it to and
//! fro for ever.

use std::time::Duration;

use crate::system::{Platform, System};

use super::{Role, Run, exit};

/// After a first failure that nobody can foresee; then twice as long each time.
const FIRST_REST: Duration = Duration::from_secs(60);
const LONGEST_REST: Duration = Duration::from_secs(3600);
/// How long a request may be there before its run is.
const GAP: Duration = Duration::from_secs(2);

/// A promotion that has failed for good: not because of a later request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Failure {
    /// How many have failed since the last one that succeeded.
    pub(crate) times: u32,
    /// When, since the system was started.
    pub(crate) at: Duration,
    /// hastd has refused the role because of the data or the disk, and says beforehand when it would grant it.
    pub(crate) foreseeable: bool,
    pub(crate) why: String,
}

impl Failure {
    /// How long it is to be left alone after this.
    fn rest(&self) -> Duration {
        if self.foreseeable && self.times < 2 {
            return Duration::ZERO;
        }
        let doubled = 1_u32.checked_shl(self.times.saturating_sub(1).min(16)).unwrap_or(1);
        FIRST_REST.saturating_mul(doubled).min(LONGEST_REST)
    }
}

/// The request for a group that was made last.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Wanted {
    pub(crate) primary: bool,
    /// A run for the group is there that has not ended.
    pub(crate) under_way: bool,
}

impl<S: System> Run<'_, S> {
    /// What to print, and whether the node may have the address.
    pub(crate) fn judge(mut self) -> (Vec<String>, u8) {
        let verdict = self.verdict();
        self.tell_carp(verdict.is_ok());
        let name = &self.group.name;
        match verdict {
            Ok(()) => (vec![format!("{name}: as it should be")], exit::OK),
            Err(why) => (vec![format!("{name}: {why}")], exit::FAILED),
        }
    }

    fn verdict(&mut self) -> Result<(), String> {
        let Err(lines) = self.all_works() else { return Ok(()) };
        let roles: Vec<Option<String>> = self.roles();
        if roles.contains(&None) {
            return Err(lines);
        }
        if self.is_to_be_primary() {
            return match (self.system.wanted(), self.system.failure()) {
                (Wanted { under_way: true, .. }, _) => Ok(()),
                (_, Some(failure)) => Err(format!("did not become primary: {}", failure.why)),
                // It may have come up meanwhile.
                (_, None) => self.all_works(),
            };
        }
        let is_primary = roles.iter().flatten().any(|role| role == Role::Primary.word());
        if is_primary && !self.system.wanted().under_way {
            // Somebody has made it primary without a word to this program, or it is stuck on its way down.
            return Err(lines);
        }
        self.may_be_tried()
    }

    /// Whether this node is primary, and everything is here; else what is not.
    fn all_works(&mut self) -> Result<(), String> {
        let (lines, state) = Run::new(self.system, self.group, self.manner).report();
        if state == exit::OK { Ok(()) } else { Err(lines.join("; ")) }
    }

    fn roles(&mut self) -> Vec<Option<String>> {
        let resources = self.group.resources.iter();
        resources.map(|resource| self.system.ask(resource).map(|known| known.role)).collect()
    }

    /// Whether primary was asked for last. What was asked a moment ago may have no run yet.
    fn is_to_be_primary(&mut self) -> bool {
        self.insist(GAP, |run| {
            let wanted = run.system.wanted();
            wanted.under_way || !wanted.primary
        });
        self.system.wanted().primary
    }

    /// Whether it is worth trying to make a node primary that is not.
    pub(super) fn may_be_tried(&mut self) -> Result<(), String> {
        let Some(failure) = self.system.failure() else { return Ok(()) };
        let since = self.system.uptime().saturating_sub(failure.at);
        if let Some(left) = failure.rest().checked_sub(since).filter(|left| !left.is_zero()) {
            return Err(format!(
                "did not become primary ({}) and is left alone for {} s more, unless 'hast-failover primary' succeeds or \
                 'hast-failover -f secondary' says that it is mended",
                failure.why,
                left.as_secs().saturating_add(1)
            ));
        }
        if failure.foreseeable {
            for resource in self.group.resources.clone() {
                if self.system.would_become_primary(&resource) == Some(false) {
                    return Err(format!(
                        "did not become primary ({}), and {resource} would still not: 'hastctl role -n primary \
                         {resource}' says why",
                        failure.why
                    ));
                }
            }
        }
        Ok(())
    }

    /// Takes note of a promotion that has failed for good.
    pub(super) fn note_failure(&mut self) {
        let before = self.system.failure().map_or(0, |failure| failure.times);
        let failure = Failure {
            times: before.saturating_add(1),
            at: self.system.uptime(),
            foreseeable: self.foreseeable,
            why: self.why.clone(),
        };
        self.system.note_failure(Some(&failure));
        self.tell_carp(false);
    }

    /// There is nothing any more that speaks against this node.
    pub(super) fn forget_failure(&mut self) {
        self.system.note_failure(None);
        self.tell_carp(true);
    }

    pub(super) fn follows_carp(&self) -> bool {
        self.system.platform() == Platform::FreeBsd && !self.group.carp.is_empty()
    }

    /// Lets carp(4) prefer other nodes to this one, or not any more.
    pub(super) fn tell_carp(&mut self, well: bool) {
        if !self.follows_carp() {
            return;
        }
        match self.system.demote(!well) {
            Ok(false) => {}
            Ok(true) if well => self.note("CARP: this node is demoted no longer because of this group."),
            Ok(true) => self.warn("CARP: this node is demoted, so that another one takes the address."),
            Err(why) => self.warn(format!("CARP: {why}")),
        }
    }
}
