//! What the supervisor knows of one resource.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use hast_format::metadata::{Metadata, Role};
use hast_net::control::Divergence;
use hast_net::handshake::{Extensions, SecondHello, Token};
use hast_provider::Provider;
use socket2::{SockRef, Socket};

use super::attach::Attaching;
use super::connection::Connections;
use super::device::Device;
use super::jobs::JobId;
use super::process::Worker;
use super::promotion::Promotion;
use crate::contract::longest_end;
use crate::refusal;
use crate::watch::Watched;

/// How much longer than it should a worker may take to end before it is killed.
const STOP_GRACE: Duration = Duration::from_secs(5);
/// How long the worker of a secondary may need to end once its primary counts as gone.
const SILENCE_GRACE: Duration = Duration::from_secs(2);

/// A resource as long as it is configured. A resource that is removed and configured again is another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ResourceId(pub(super) u64);

/// One resource.
#[derive(Debug)]
pub(super) struct Resource {
    pub(super) id: ResourceId,
    pub(super) config: hast_conf::Resource,
    /// Where the socket of its device appears, if it has one.
    pub(super) nbd_directory: Option<PathBuf>,
    pub(super) role: Role,
    /// Open and locked in every role but init. A secondary may lack it: then it is tried again when a primary
    /// comes.
    pub(super) provider: Option<Provider>,
    /// That is being done.
    pub(super) opening: Option<JobId>,
    /// There as long as the role is primary, across restarts of the worker.
    pub(super) device: Option<Device>,
    /// How far the kernel's block device over its export is.
    pub(super) attaching: Attaching,
    pub(super) worker: Option<Worker>,
    /// A primary's data is wanted whatever is known of it, and no worker has written that down yet.
    pub(super) forced: bool,
    /// The last worker ended because it could not rely on its disk (a secondary's, B1), or could not write down what that
    /// misses (a primary's): a secondary's next worker writes it down, and the node does not become primary unforced.
    pub(super) unsure: bool,
    /// The worker that was stopped for a change of roles has left the other node behind, and could not tell it.
    pub(super) peer_behind: bool,
    /// The worker of this primary has given its disk up: what the next one begins with instead.
    pub(super) detached: Option<Box<Metadata>>,
    /// When to start the worker of a primary again.
    pub(super) restart: Option<Instant>,
    /// Connections of a primary that have no worker yet.
    pub(super) pending: Pending,
    /// As a secondary it last turned a primary away because both nodes have written alone: the worker that did is
    /// gone, and the other node does not say so to everybody who asks here.
    pub(super) split_brain: bool,
    /// How this node stands to the other one.
    pub(super) connections: Connections,
    /// How far the copies are apart then, as the other node has told.
    pub(super) divergence: Option<Divergence>,
    /// The role change that is being carried out.
    pub(super) change: Option<Change>,
    /// What comes after it.
    pub(super) tasks: VecDeque<Task>,
    /// Removed from the configuration: it exists until its worker has ended, and nobody is told of it.
    pub(super) leaving: bool,
}

impl Resource {
    pub(super) fn new(
        id: ResourceId,
        config: hast_conf::Resource,
        nbd_directory: Option<PathBuf>,
    ) -> Resource {
        Resource {
            id,
            config,
            nbd_directory,
            role: Role::Init,
            provider: None,
            opening: None,
            device: None,
            attaching: Attaching::Idle,
            worker: None,
            forced: false,
            unsure: false,
            peer_behind: false,
            detached: None,
            restart: None,
            pending: Pending::None,
            split_brain: false,
            connections: Connections::default(),
            divergence: None,
            change: None,
            tasks: VecDeque::new(),
            leaving: false,
        }
    }

    /// The prefix of messages about this resource, in force until the guard is dropped.
    pub(super) fn scope(&self) -> hast_log::Scope {
        hast_log::scope(Some(&self.config.name), Some(self.role.as_str()))
    }

    /// The role that peers are told: a secondary that is about to be something else accepts nobody any more.
    pub(super) fn role_for_peers(&self) -> Role {
        match (self.role, &self.change) {
            (Role::Secondary, Some(change)) if change.step.leaves_role() => change.role,
            (role, _) => role,
        }
    }

    /// The role when everything that was asked for has been done.
    pub(super) fn settled_role(&self) -> Role {
        let last = self.tasks.iter().rev().find_map(|task| match task {
            Task::SetRole { role, .. } => Some(*role),
            Task::Replace(_) | Task::Remove => None,
        });
        last.or(self.change.as_ref().map(|change| change.role)).unwrap_or(self.role)
    }

    /// Whether nothing is being changed.
    pub(super) fn is_settled(&self) -> bool {
        self.change.is_none() && self.tasks.is_empty()
    }

    /// Whether this node has no primary: neither a worker for one, nor one that is just connecting.
    pub(super) fn is_left_alone(&self) -> bool {
        self.worker.is_none() && matches!(self.pending, Pending::None)
    }

    /// Why this secondary does not become primary, while the other node is it.
    pub(super) fn connected_primary(&self) -> String {
        format!("{} is primary and connected", self.config.remote_text())
    }

    /// How long a primary that is connected may take to leave its role before a promotion here is refused. A dead one is
    /// noticed in that time: it is silent for `peer-timeout`, and then its connection counts as lost.
    pub(super) fn primary_patience(&self, original: bool) -> Duration {
        let silence = Duration::from_secs(self.config.peer_timeout.into());
        // Nobody expects an original to say anything sooner.
        let silence = if original { silence.max(hast_engine::ORIGINAL_SILENCE) } else { silence };
        let silence = silence.saturating_add(SILENCE_GRACE);
        Duration::from_secs(self.config.timeout.into()).max(silence)
    }

    /// How long a worker may take to store what it acknowledged.
    pub(super) fn stop_bound(&self) -> Duration {
        let timeout = Duration::from_secs(self.config.timeout.into());
        longest_end(self.role, timeout).saturating_add(STOP_GRACE)
    }

    /// The token of the first step that is pending.
    pub(super) fn token(&self) -> Option<&Token> {
        match &self.pending {
            Pending::HalfOpen(half) => Some(&half.token),
            Pending::None | Pending::Complete(_) => None,
        }
    }

    /// When something has to be done for this resource.
    pub(super) fn deadline(&self) -> Option<Instant> {
        let half = match &self.pending {
            Pending::HalfOpen(half) => Some(half.deadline),
            Pending::None | Pending::Complete(_) => None,
        };
        let worker = self.worker.as_ref().and_then(Worker::deadline);
        let waiting = self.change.as_ref().and_then(|change| change.step.deadline());
        [self.restart, half, worker, waiting].into_iter().flatten().min()
    }
}

/// What is to be done with a resource, in order.
#[derive(Debug)]
pub(super) enum Task {
    /// Change the role.
    SetRole {
        /// To this one.
        role: Role,
        /// If that is primary.
        promotion: Promotion,
        /// Who is told when it is done.
        waiter: Option<Waiter>,
    },
    /// Take another configuration; only in role init.
    Replace(Box<(hast_conf::Resource, Option<PathBuf>)>),
    /// Forget the resource; only in role init.
    Remove,
}

impl Task {
    /// Whether it makes this node primary on condition that its data is not known to be out of date.
    pub(super) fn is_checked_promotion(&self) -> bool {
        matches!(self, Task::SetRole { role: Role::Primary, promotion: Promotion::Checked, .. })
    }
}

/// A place in the answer to a control client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Waiter {
    /// The client's key.
    pub(super) client: usize,
    /// Which of the resources that it asked for.
    pub(super) slot: usize,
}

/// A role change under way.
#[derive(Debug)]
pub(super) struct Change {
    /// The new role.
    pub(super) role: Role,
    pub(super) promotion: Promotion,
    pub(super) waiter: Option<Waiter>,
    pub(super) step: Step,
    /// The worker had reason to think that an original primary has newer data.
    pub(super) suspect: bool,
    /// Process id of the worker that was stopped for it and ended as it should.
    pub(super) stopped: Option<u32>,
}

/// Where a role change stands.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// The worker has been asked whether its data is out of date. Nothing has changed yet.
    Asking,
    /// The other node is primary and connected: it is given until then to leave its role. Nothing has changed yet.
    Waiting(Instant),
    /// That time is over, and the worker has been asked whether the primary still is connected. Nothing has changed yet.
    AskingAgain,
    /// The old worker has been told to stop.
    Stopping,
    /// The provider is being opened and locked, or read.
    Opening(JobId),
}

impl Step {
    /// Whether the old role is being left.
    pub(super) fn leaves_role(&self) -> bool {
        match self {
            Step::Asking | Step::Waiting(_) | Step::AskingAgain => false,
            Step::Stopping | Step::Opening(_) => true,
        }
    }

    fn deadline(&self) -> Option<Instant> {
        match self {
            Step::Waiting(until) => Some(*until),
            Step::Asking | Step::AskingAgain | Step::Stopping | Step::Opening(_) => None,
        }
    }
}

/// The connections of a primary until a secondary's worker has them.
#[derive(Debug, Default)]
pub(super) enum Pending {
    /// None.
    #[default]
    None,
    /// The first step is done.
    HalfOpen(HalfOpen),
    /// Both steps are done; the former worker has not ended yet.
    Complete(Box<Complete>),
}

/// A first connection that waits for its second one.
#[derive(Debug)]
pub(super) struct HalfOpen {
    pub(super) socket: Watched<Socket>,
    /// What the kernel has not taken of the answer.
    pub(super) unsent: Vec<u8>,
    pub(super) token: Token,
    pub(super) version: u8,
    pub(super) ext: Extensions,
    pub(super) peer: String,
    pub(super) deadline: Instant,
}

/// A primary that has completed both steps.
#[derive(Debug)]
pub(super) struct Complete {
    pub(super) out: Socket,
    pub(super) in_: Socket,
    pub(super) version: u8,
    pub(super) ext: Extensions,
    pub(super) hello: SecondHello,
}

impl Complete {
    /// Lets a primary go that this node cannot serve.
    pub(super) fn turn_away(self, errmsg: &str) {
        refusal::turn_away(&SockRef::from(&self.out), self.version, self.ext, errmsg);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resource() -> Resource {
        let node = hast_conf::Node::named("a");
        let text = "resource r { timeout 5 local /dev/null on a { remote none } }";
        let config = hast_conf::parse(text, "test", &node).unwrap();
        Resource::new(ResourceId(1), config.resources[0].clone(), Some(config.nbd))
    }

    fn change(role: Role) -> Option<Change> {
        let (promotion, step) = (Promotion::Checked, Step::Stopping);
        Some(Change { role, promotion, waiter: None, step, suspect: false, stopped: None })
    }

    #[test]
    fn a_secondary_that_is_leaving_its_role_says_so() {
        let mut resource = resource();
        assert_eq!(resource.role_for_peers(), Role::Init);
        resource.role = Role::Secondary;
        assert_eq!(resource.role_for_peers(), Role::Secondary);
        resource.change = change(Role::Init);
        assert_eq!(resource.role_for_peers(), Role::Init);
        // Nobody knows yet whether it will leave.
        for step in [Step::Asking, Step::Waiting(Instant::now()), Step::AskingAgain] {
            resource.change = change(Role::Primary).map(|change| Change { step, ..change });
            assert_eq!(resource.role_for_peers(), Role::Secondary);
        }
        // Not yet a secondary: the other node may try again.
        resource.role = Role::Primary;
        resource.change = change(Role::Secondary);
        assert_eq!(resource.role_for_peers(), Role::Primary);
    }

    #[test]
    fn the_last_wish_counts() {
        let mut resource = resource();
        assert!(resource.is_settled());
        assert_eq!(resource.settled_role(), Role::Init);
        resource.change = change(Role::Primary);
        assert_eq!(resource.settled_role(), Role::Primary);
        let (role, promotion) = (Role::Secondary, Promotion::Checked);
        resource.tasks.push_back(Task::SetRole { role, promotion, waiter: None });
        resource.tasks.push_back(Task::Remove);
        assert_eq!(resource.settled_role(), Role::Secondary);
        assert!(!resource.is_settled());
    }

    /// L14: what a secondary has answered with `received` its engine waits for, and that wait is the shortest.
    #[test]
    fn nobody_cuts_a_secondary_short() {
        let mut resource = resource();
        for timeout in [1, 5, 20, i32::MAX.cast_unsigned()] {
            resource.config.timeout = timeout;
            resource.role = Role::Secondary;
            let worker = longest_end(Role::Secondary, Duration::from_secs(timeout.into()));
            assert!(hast_engine::DISK_PATIENCE < worker && worker < resource.stop_bound());
            resource.role = Role::Primary;
            assert_eq!(resource.stop_bound(), Duration::from_secs(u64::from(timeout) + 10));
        }
    }
}
