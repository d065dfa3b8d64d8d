//! Why a node gives the other one up, or is refused: a state, what was noticed, and what the administrator can do.
//!
//! Owns the advice for what the nodes say to each other; decides nothing.

use hast_net::control::ConnectionState;
use hast_net::handshake::texts;

/// Why there is no connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Loss {
    pub(crate) state: ConnectionState,
    /// What was noticed, as a sentence.
    pub(crate) reason: String,
    /// What to do; empty if there is nothing to do but wait.
    advice: &'static str,
    /// This node has found it, and the other one does not know it.
    pub(crate) is_news: bool,
}

impl Loss {
    /// The other node has refused this one with these words.
    pub(crate) fn refused(errmsg: &str) -> Loss {
        let state = if errmsg == texts::SPLIT_BRAIN {
            ConnectionState::SplitBrain
        } else if errmsg == texts::not_secondary("primary") {
            ConnectionState::TwoPrimaries
        } else {
            ConnectionState::Refused
        };
        Loss { state, reason: sentence(errmsg), advice: advice(errmsg), is_news: false }
    }

    /// This node does not take the other one.
    pub(crate) fn ours(reason: &str) -> Loss {
        Loss { is_news: true, ..Loss::refused(reason) }
    }

    /// The primary has said why it gives this node up; what to do is part of that.
    pub(crate) fn heard(reason: &str) -> Loss {
        Loss { state: ConnectionState::Refused, ..Loss::from(format!("The primary says: {reason}")) }
    }

    /// What was noticed and what to do about it.
    pub(crate) fn told(&self) -> String {
        if self.advice.is_empty() { self.reason.clone() } else { format!("{} {}", self.reason, self.advice) }
    }
}

impl From<&str> for Loss {
    fn from(reason: &str) -> Loss {
        Loss {
            state: ConnectionState::Disconnected,
            reason: sentence(reason),
            advice: advice(reason),
            is_news: false,
        }
    }
}

impl From<String> for Loss {
    fn from(reason: String) -> Loss {
        Loss::from(reason.as_str())
    }
}

/// The longest reason, in bytes: a peer's is a line for the administrator, however much it sends.
const REASON_MAX: usize = 1000;

/// The reason as a sentence of its own.
fn sentence(reason: &str) -> String {
    let reason = reason.get(..reason.floor_char_boundary(REASON_MAX)).unwrap_or_default();
    if reason.ends_with(['.', '!']) { reason.to_owned() } else { format!("{reason}.") }
}

/// What begins so, and what to do about it.
const ADVICE: [(&str, &str); 10] = [
    (texts::NOT_CONFIGURED, "The other node's hast.conf has no resource of this name."),
    (
        texts::NO_ACCESS,
        "In the other node's hast.conf `remote` is another address than the one that this node connects from; \
         see also `source`.",
    ),
    (texts::SPLIT_BRAIN, "Choose whose changes are given up: run `hastctl discard` on that node."),
    (
        "Remote node acts as primary",
        "There are two primaries: make the node whose changes are to be given up secondary.",
    ),
    ("Remote node acts as init", "Make the other node secondary: `hastctl role secondary`."),
    (
        "Resource unique ID mismatch",
        "The two were not created as one resource, or one of them was created again: run `hastctl create` on the node \
         whose data is to be given up.",
    ),
    (
        "Data size differs",
        "Run `hastctl create -m` with the size of the smaller provider on the node with the larger one; what that has is \
         lost, and comes back from the other node.",
    ),
    (
        "Extent size differs",
        "Run `hastctl create -e` with the primary's extent size on the secondary; what that has is lost, and comes back \
         from the primary.",
    ),
    ("The secondary's provider fails", "See to the disk of the secondary, and to its `local` in hast.conf."),
    (
        "Unable to connect",
        "Is hastd running on the other node, and do name, address, route and firewall let it be reached?",
    ),
];

fn advice(reason: &str) -> &'static str {
    ADVICE.iter().find(|(begin, _)| reason.starts_with(begin)).map_or("", |(_, advice)| advice)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_other_node_says_is_told_with_what_to_do() {
        for (errmsg, state) in [
            (texts::NOT_CONFIGURED.to_owned(), ConnectionState::Refused),
            (texts::NO_ACCESS.to_owned(), ConnectionState::Refused),
            (texts::resuid_mismatch(1, 2), ConnectionState::Refused),
            (texts::not_secondary("init"), ConnectionState::Refused),
            (texts::not_secondary("primary"), ConnectionState::TwoPrimaries),
            (texts::SPLIT_BRAIN.to_owned(), ConnectionState::SplitBrain),
        ] {
            let loss = Loss::refused(&errmsg);
            assert_eq!((loss.state, loss.is_news), (state, false), "{errmsg}");
            assert!(
                loss.told().starts_with(&errmsg) && loss.told().len() > errmsg.len() + 20,
                "{}",
                loss.told()
            );
        }
    }

    #[test]
    fn a_reason_is_a_sentence() {
        assert_eq!(Loss::from("gone").told(), "gone.");
        assert_eq!(Loss::from("Gone.".to_owned()).told(), "Gone.");
    }

    #[test]
    fn a_reason_of_a_peer_has_an_end() {
        let long = "\u{e9}".repeat(40_000);
        for loss in [Loss::refused(&long), Loss::from(long.as_str()), Loss::heard(&long)] {
            assert!(loss.told().len() < 2000 && loss.reason.len() <= REASON_MAX + 1, "{}", loss.reason.len());
        }
    }

    #[test]
    fn what_this_node_finds_is_news() {
        let loss = Loss::ours("Data size differs between nodes (local=1, remote=2)");
        assert_eq!((loss.state, loss.is_news), (ConnectionState::Refused, true));
        assert!(loss.told().contains("(local=1, remote=2). Run `hastctl create -m`"));
    }
}
