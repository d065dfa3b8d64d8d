//! How a resource of this node stands to the other node, for those who ask (`status -v`): what its worker says, and what
//! this daemon itself has noticed when the other node asked for it.
//!
//! Owns both, and that two primaries are an alarm: once when they begin to see each other, whichever notices it.

use std::time::{Duration, Instant};

use hast_format::metadata::Role;
use hast_net::control::{Connection, ConnectionState};

use super::Supervisor;
use super::handshake::Refused;
use crate::wall;

/// The hook's event: both nodes are primary, and see each other.
const TWO_PRIMARIES: &str = "two-primaries";
/// For how long it counts that the other node was turned away, or is primary too: it comes again within ten seconds.
const REMEMBERED: Duration = Duration::from_secs(60);

/// What is known of the connection to the other node.
#[derive(Debug, Default)]
pub(super) struct Connections {
    /// As the worker has it, the last one if it has ended. A new role begins without.
    worker: Option<Connection>,
    /// Why the other node was turned away last, and when.
    turned_away: Option<(Connection, Instant)>,
    /// The same of one that comes from an address which is not the other node's.
    stranger: Option<(Connection, Instant)>,
    /// When it was noticed last that both nodes are primary.
    two_primaries: Option<Instant>,
}

impl Connections {
    /// The node has this role from now on.
    pub(super) fn begin(&mut self, role: Role) {
        let state = match role {
            Role::Secondary => Some(ConnectionState::Waiting),
            Role::Primary => Some(ConnectionState::Connecting),
            Role::Init => None,
        };
        let worker = state.map(|state| noted(None, state, String::new()));
        *self = Connections { worker, ..Connections::default() };
    }

    /// A worker has told how it stands, or has died. True if that is an alarm.
    #[must_use]
    pub(super) fn worker_says(&mut self, state: ConnectionState, reason: String, now: Instant) -> bool {
        // It tells changes only: so far both were.
        if self.worker.as_ref().is_some_and(|before| before.state == ConnectionState::TwoPrimaries) {
            self.two_primaries = Some(now);
        }
        if state.is_well() {
            (self.turned_away, self.two_primaries) = (None, None);
        }
        self.worker = Some(noted(self.worker.as_ref(), state, reason));
        self.is_alarm(state, now)
    }

    /// The other node asked for the resource, and was refused. True if that is an alarm.
    #[must_use]
    pub(super) fn turned_away(&mut self, state: ConnectionState, reason: String, now: Instant) -> bool {
        notice(&mut self.turned_away, state, reason, now);
        self.is_alarm(state, now)
    }

    /// Somebody whose address is not the other node's asked for the resource, and was refused.
    pub(super) fn stranger_turned_away(&mut self, state: ConnectionState, reason: String, now: Instant) {
        notice(&mut self.stranger, state, reason, now);
    }

    /// The worker of a secondary has ended, `how`: it does not say so if it was killed, nor if it could not begin.
    pub(super) fn secondary_ended(&mut self, cannot_use_provider: bool, how: String, now: Instant) {
        let said = self.worker.as_ref().map(|connection| connection.state);
        let state = match said {
            Some(ConnectionState::Connected) => ConnectionState::Disconnected,
            Some(ConnectionState::Waiting | ConnectionState::Disconnected) if cannot_use_provider => {
                ConnectionState::Refused
            }
            _ => return,
        };
        let _ = self.worker_says(state, how, now);
    }

    fn is_alarm(&mut self, state: ConnectionState, now: Instant) -> bool {
        if state != ConnectionState::TwoPrimaries {
            return false;
        }
        let before = self.two_primaries.replace(now);
        before.is_none_or(|before| now.saturating_duration_since(before) >= REMEMBERED)
    }

    /// What those who ask are told.
    pub(super) fn shown(&self, now: Instant) -> Option<&Connection> {
        // These say more than that the other node was turned away.
        let first = |connection: &&Connection| {
            let grave = [ConnectionState::TwoPrimaries, ConnectionState::SplitBrain];
            connection.state.is_well() || grave.contains(&connection.state)
        };
        let worker = self.worker.as_ref();
        let waits = |connection: &&Connection| connection.state != ConnectionState::Waiting;
        // What a stranger asks for says least.
        worker
            .filter(first)
            .or_else(|| recent(self.turned_away.as_ref(), now))
            .or_else(|| worker.filter(waits))
            .or_else(|| recent(self.stranger.as_ref(), now))
            .or(worker)
    }
}

fn notice(place: &mut Option<(Connection, Instant)>, state: ConnectionState, reason: String, now: Instant) {
    *place = Some((noted(recent(place.as_ref(), now), state, reason), now));
}

fn recent(noticed: Option<&(Connection, Instant)>, now: Instant) -> Option<&Connection> {
    let (connection, at) = noticed?;
    (now.saturating_duration_since(*at) < REMEMBERED).then_some(connection)
}

impl Supervisor {
    /// A worker has told how its resource stands to the other node.
    pub(super) fn connection_is(
        &mut self,
        index: usize,
        state: ConnectionState,
        reason: String,
        now: Instant,
    ) {
        let Some(resource) = self.resources.get_mut(index) else { return };
        if resource.connections.worker_says(state, reason, now) {
            self.alarm(index, now);
        }
    }

    /// The other node has asked for a resource, and was refused.
    pub(super) fn other_turned_away(&mut self, index: usize, refused: Refused, peer: &str, now: Instant) {
        let Some(resource) = self.resources.get_mut(index) else { return };
        let Some((state, reason)) = refused.told(peer) else { return };
        if refused == Refused::NoAccess {
            return resource.connections.stranger_turned_away(state, reason, now);
        }
        // One that is about to be something else is no second primary.
        if state == ConnectionState::TwoPrimaries && resource.settled_role() != Role::Primary {
            return;
        }
        if resource.connections.turned_away(state, reason, now) {
            self.alarm(index, now);
        }
    }

    fn alarm(&mut self, index: usize, now: Instant) {
        let Some(resource) = self.resources.get(index) else { return };
        let scope = resource.scope();
        log::error!(
            "Both nodes are primary, this one and {}: what is written on one of them will be lost. Make the one whose \
             changes are to be given up secondary.",
            resource.config.remote_text()
        );
        drop(scope);
        self.hook(index, now, TWO_PRIMARIES, &[], None);
    }
}

/// A state with its reason; one that lasts keeps its time.
fn noted(before: Option<&Connection>, state: ConnectionState, reason: String) -> Connection {
    let since = before.filter(|before| before.state == state).map_or_else(wall::now, |before| before.since);
    Connection { state, reason, since }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ConnectionState::{Connected, Disconnected, Refused as RefusedState, TwoPrimaries, Waiting};

    fn state(connections: &Connections, now: Instant) -> Option<ConnectionState> {
        connections.shown(now).map(|connection| connection.state)
    }

    #[test]
    fn a_role_begins_without_a_past() {
        let (mut connections, now) = (Connections::default(), Instant::now());
        assert_eq!(state(&connections, now), None);
        connections.begin(Role::Secondary);
        assert_eq!(state(&connections, now), Some(Waiting));
        let _ = connections.worker_says(Connected, String::new(), now);
        connections.begin(Role::Primary);
        assert_eq!(state(&connections, now), Some(ConnectionState::Connecting));
        connections.begin(Role::Init);
        assert_eq!(state(&connections, now), None);
    }

    #[test]
    fn the_last_refusal_is_told_until_the_nodes_are_connected() {
        let (mut connections, now) = (Connections::default(), Instant::now());
        connections.begin(Role::Secondary);
        assert!(!connections.turned_away(RefusedState, "why".to_owned(), now));
        assert_eq!(connections.shown(now).map(|c| c.reason.as_str()), Some("why"));
        assert_eq!(state(&connections, now + REMEMBERED), Some(Waiting));
        assert!(!connections.worker_says(Connected, String::new(), now));
        assert_eq!(state(&connections, now), Some(Connected));
        assert!(!connections.worker_says(Disconnected, "gone".to_owned(), now));
        assert_eq!(state(&connections, now), Some(Disconnected));
    }

    #[test]
    fn two_primaries_are_one_alarm() {
        let (mut connections, now) = (Connections::default(), Instant::now());
        connections.begin(Role::Primary);
        let at = |seconds| now + Duration::from_secs(seconds);
        assert!(connections.worker_says(TwoPrimaries, String::new(), at(0)));
        assert!(!connections.turned_away(TwoPrimaries, String::new(), at(5)));
        assert!(!connections.worker_says(Disconnected, String::new(), at(20)));
        assert_eq!(state(&connections, at(20)), Some(TwoPrimaries), "as the other node still says");
        assert!(!connections.worker_says(TwoPrimaries, String::new(), at(50)));
        // It was over for so long, or they have been connected since, or the role is another one.
        assert!(connections.turned_away(TwoPrimaries, String::new(), at(110)));
        assert!(!connections.worker_says(Connected, String::new(), at(111)));
        assert!(connections.worker_says(TwoPrimaries, String::new(), at(112)));
        connections.begin(Role::Primary);
        assert!(connections.turned_away(TwoPrimaries, String::new(), at(113)));
    }

    #[test]
    fn a_stranger_hides_nothing() {
        let (mut connections, now) = (Connections::default(), Instant::now());
        connections.begin(Role::Secondary);
        connections.stranger_turned_away(RefusedState, "a stranger".to_owned(), now);
        assert_eq!(connections.shown(now).map(|c| c.reason.as_str()), Some("a stranger"));
        let _ = connections.worker_says(Disconnected, "gone".to_owned(), now);
        assert_eq!(connections.shown(now).map(|c| c.reason.as_str()), Some("gone"));
        let _ = connections.turned_away(RefusedState, "the other node".to_owned(), now);
        connections.stranger_turned_away(RefusedState, "a stranger".to_owned(), now);
        assert_eq!(connections.shown(now).map(|c| c.reason.as_str()), Some("the other node"));
    }

    #[test]
    fn a_secondary_whose_worker_has_ended_is_not_connected() {
        let (mut connections, now) = (Connections::default(), Instant::now());
        connections.begin(Role::Secondary);
        connections.secondary_ended(false, "ended".to_owned(), now);
        assert_eq!(state(&connections, now), Some(Waiting));
        connections.secondary_ended(true, "ended".to_owned(), now);
        assert_eq!(state(&connections, now), Some(RefusedState));
        let _ = connections.worker_says(Connected, String::new(), now);
        connections.secondary_ended(false, "ended".to_owned(), now);
        assert_eq!(state(&connections, now), Some(Disconnected));
    }

    #[test]
    fn two_primaries_that_a_worker_has_seen_all_the_time_are_one_alarm() {
        let (mut connections, now) = (Connections::default(), Instant::now());
        connections.begin(Role::Primary);
        let at = |seconds| now + Duration::from_secs(seconds);
        assert!(connections.worker_says(TwoPrimaries, String::new(), at(0)));
        assert!(!connections.worker_says(Disconnected, String::new(), at(300)));
        assert!(!connections.worker_says(TwoPrimaries, String::new(), at(310)));
    }

    #[test]
    fn a_state_that_lasts_keeps_its_time() {
        let first = Connection { state: Disconnected, reason: "a".to_owned(), since: 7 };
        assert_eq!(noted(Some(&first), Disconnected, "b".to_owned()).since, 7);
        assert!(noted(Some(&first), Connected, String::new()).since > 7);
    }
}
