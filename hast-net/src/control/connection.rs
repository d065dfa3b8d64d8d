//! How a node stands to the other one: what `status -v` and `list -v` say about the connection of a resource.

use super::{Numbered, Pairs};

/// In which condition the connection to the other node is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ConnectionState {
    /// `remote none`: there is no other node.
    Standalone,
    /// A secondary that no primary has connected to yet.
    Waiting,
    /// A primary that has begun to connect.
    Connecting,
    /// Both connections are up.
    Connected,
    /// There was no answer, or the connection broke.
    Disconnected,
    /// One of the nodes does not take the other one.
    Refused,
    /// Both nodes are primary.
    TwoPrimaries,
    /// Both nodes have written alone.
    SplitBrain,
    /// The primary's worker process has died and is about to be replaced.
    Restarting,
}

impl ConnectionState {
    const ALL: [ConnectionState; 9] = [
        ConnectionState::Standalone,
        ConnectionState::Waiting,
        ConnectionState::Connecting,
        ConnectionState::Connected,
        ConnectionState::Disconnected,
        ConnectionState::Refused,
        ConnectionState::TwoPrimaries,
        ConnectionState::SplitBrain,
        ConnectionState::Restarting,
    ];

    /// The word for it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            ConnectionState::Standalone => "standalone",
            ConnectionState::Waiting => "waiting",
            ConnectionState::Connecting => "connecting",
            ConnectionState::Connected => "connected",
            ConnectionState::Disconnected => "disconnected",
            ConnectionState::Refused => "refused",
            ConnectionState::TwoPrimaries => "two-primaries",
            ConnectionState::SplitBrain => "split-brain",
            ConnectionState::Restarting => "restarting",
        }
    }

    /// The state of that name.
    #[must_use]
    pub fn parse(word: &str) -> Option<ConnectionState> {
        ConnectionState::ALL.into_iter().find(|state| state.as_str() == word)
    }

    /// Whether there is nothing to look after.
    #[must_use]
    pub fn is_well(self) -> bool {
        matches!(self, ConnectionState::Connected | ConnectionState::Standalone)
    }
}

/// A connection's state, and why and since when it is in that.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Connection {
    /// The state.
    pub state: ConnectionState,
    /// What was noticed last, as a sentence or two with what to do; empty if there is nothing to say.
    pub reason: String,
    /// Since when it is in this state, in seconds since 1970.
    pub since: u64,
}

impl Connection {
    pub(super) fn encode(&self, list: &mut Numbered<'_>) {
        list.str(STATE, self.state.as_str());
        if !self.reason.is_empty() {
            list.str("x_connection_reason", &self.reason);
        }
        list.u64("x_connection_since", self.since);
    }

    /// None from a daemon that does not tell, or tells a state that this program does not know.
    pub(super) fn decode(index: usize, pairs: &Pairs<'_>) -> Option<Connection> {
        let state = pairs.text(STATE, index)?;
        Some(Connection {
            state: ConnectionState::parse(&state)?,
            reason: pairs.text("x_connection_reason", index).unwrap_or_default(),
            since: pairs.u64("x_connection_since", index).unwrap_or_default(),
        })
    }
}

/// The state's word.
const STATE: &str = "x_connection";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_come_back() {
        for state in ConnectionState::ALL {
            assert_eq!(ConnectionState::parse(state.as_str()), Some(state));
        }
        assert_eq!(ConnectionState::parse("ok"), None);
    }
}
