//! How `-v` shows what a node knows about itself: a word for each thing that is wrong, or a line for each thing
//! there is to know.

use std::fmt::Write;

use hast_format::extension::Utc;
use hast_net::control::{Connection, ConnectionState, Facts};
use hast_net::human::human;

use crate::human::printable;

/// The words of `status -v`, joined by commas: `ok` if nothing is wrong, `-` if nobody knows. A resource without its other
/// node is not `ok`.
pub(crate) fn words(facts: Option<&Facts>, connection: Option<&Connection>) -> String {
    let apart = connection.map(|connection| connection.state).filter(|state| !state.is_well());
    let Some(facts) = facts else { return apart.map_or("-", ConnectionState::as_str).to_owned() };
    // Said once.
    let apart = apart.filter(|state| !(facts.split_brain && *state == ConnectionState::SplitBrain));
    let words: Vec<&str> = [
        (facts.inconsistent_since.is_some(), "inconsistent"),
        (facts.target, "target"),
        (facts.stale_bytes > 0, "stale"),
        (facts.detached, "detached"),
        (facts.split_brain, "split-brain"),
        (facts.possibly_behind, "possibly-behind"),
        (facts.synchronising, "synchronising"),
    ]
    .into_iter()
    .filter_map(|(so, word)| so.then_some(word))
    .chain(apart.map(ConnectionState::as_str))
    .collect();
    if words.is_empty() { "ok".to_owned() } else { words.join(",") }
}

/// How the resource stands to the other node: the state, since when, and why; `-` if nobody knows.
pub(crate) fn connection(connection: Option<&Connection>) -> String {
    let Some(Connection { state, reason, since }) = connection else { return "-".to_owned() };
    let reason = if reason.is_empty() { String::new() } else { format!(": {}", printable(reason)) };
    format!("{} since {}{reason}", state.as_str(), Utc(*since))
}

/// The lines of `list -v`.
pub(crate) fn lines(facts: Option<&Facts>, other: Option<&Connection>) -> String {
    let connection = connection(other);
    let Some(facts) = facts else {
        return format!("  connection: {connection}\n  condition: -\n");
    };
    let yes = |so: bool| if so { "yes" } else { "no" };
    let bytes = |count: u64| format!("{count} ({})", human(count));
    let inconsistent = match facts.inconsistent_since {
        None => "no".to_owned(),
        Some(since) if facts.inconsistent_by.is_empty() => format!("since {}", Utc(since)),
        Some(since) => format!("since {}, by {}", Utc(since), printable(&facts.inconsistent_by)),
    };
    let peer = match facts.peer_is_original {
        None => "-",
        Some(true) => "original",
        Some(false) => "extended",
    };
    let mut out = format!("  connection: {connection}\n  condition:\n");
    for (name, value) in [
        ("inconsistent", inconsistent),
        ("target", yes(facts.target).to_owned()),
        ("stale", bytes(facts.stale_bytes)),
        ("local disk", if facts.detached { "detached" } else { "attached" }.to_owned()),
        ("split-brain", yes(facts.split_brain).to_owned()),
        ("possibly behind", yes(facts.possibly_behind).to_owned()),
        ("other node", peer.to_owned()),
        ("synchronising", yes(facts.synchronising).to_owned()),
        ("to synchronise", bytes(facts.to_synchronise_bytes)),
    ] {
        // Writing to a string cannot fail.
        let _ = writeln!(out, "    {name}: {value}");
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn everything() -> Facts {
        Facts {
            inconsistent_since: Some(1_795_503_600),
            inconsistent_by: "tcp4://10.9.0.1\u{1b}".to_owned(),
            target: true,
            stale_bytes: 6 << 20,
            detached: true,
            possibly_behind: true,
            split_brain: true,
            peer_is_original: Some(true),
            synchronising: true,
            to_synchronise_bytes: 512,
            ..Facts::default()
        }
    }

    #[test]
    fn one_word_for_each_thing_that_is_wrong() {
        assert_eq!(words(None, None), "-");
        assert_eq!(words(Some(&Facts::default()), None), "ok");
        // Who the other node is, is no condition.
        assert_eq!(words(Some(&Facts { peer_is_original: Some(true), ..Facts::default() }), None), "ok");
        assert_eq!(words(Some(&Facts { stale_bytes: 1, ..Facts::default() }), None), "stale");
        assert_eq!(
            words(Some(&everything()), None),
            "inconsistent,target,stale,detached,split-brain,possibly-behind,synchronising"
        );
    }

    #[test]
    fn one_line_for_each_thing_there_is_to_know() {
        assert_eq!(lines(None, None), "  connection: -\n  condition: -\n");
        let expected = "  connection: -
  condition:
    inconsistent: since 2026-11-24 07:00:00 UTC, by tcp4://10.9.0.1?
    target: yes
    stale: 6291456 (6.0MB)
    local disk: detached
    split-brain: yes
    possibly behind: yes
    other node: original
    synchronising: yes
    to synchronise: 512 (512B)
";
        assert_eq!(lines(Some(&everything()), None), expected);
        let expected = "  connection: -
  condition:
    inconsistent: no
    target: no
    stale: 0 (0B)
    local disk: attached
    split-brain: no
    possibly behind: no
    other node: -
    synchronising: no
    to synchronise: 0 (0B)
";
        assert_eq!(lines(Some(&Facts::default()), None), expected);
        let ours = Facts { peer_is_original: Some(false), inconsistent_since: Some(0), ..Facts::default() };
        let text = lines(Some(&ours), None);
        assert!(text.contains("    inconsistent: since an unknown time\n"), "{text}");
        assert!(text.contains("    other node: extended\n"), "{text}");
    }

    fn connection_of(state: ConnectionState, reason: &str) -> Connection {
        Connection { state, reason: reason.to_owned(), since: 1_795_503_600 }
    }

    #[test]
    fn a_node_without_the_other_one_is_not_ok() {
        let facts = Facts { stale_bytes: 1, ..Facts::default() };
        for (state, alone, with) in [
            (ConnectionState::Connected, "ok", "stale"),
            (ConnectionState::Standalone, "ok", "stale"),
            (ConnectionState::Disconnected, "disconnected", "stale,disconnected"),
            (ConnectionState::TwoPrimaries, "two-primaries", "stale,two-primaries"),
        ] {
            let connection = connection_of(state, "");
            assert_eq!(words(Some(&Facts::default()), Some(&connection)), alone);
            assert_eq!(words(Some(&facts), Some(&connection)), with);
        }
        let waiting = connection_of(ConnectionState::Waiting, "");
        assert_eq!(words(None, Some(&waiting)), "waiting");
        let split = connection_of(ConnectionState::SplitBrain, "");
        let facts = Facts { split_brain: true, ..Facts::default() };
        assert_eq!(words(Some(&facts), Some(&split)), "split-brain");
    }

    #[test]
    fn the_connection_says_since_when_and_why() {
        let refused = connection_of(ConnectionState::Refused, "Resource not configured.\u{7}");
        let expected = "refused since 2026-11-24 07:00:00 UTC: Resource not configured.?";
        assert_eq!(connection(Some(&refused)), expected);
        let well = connection_of(ConnectionState::Connected, "");
        assert_eq!(connection(Some(&well)), "connected since 2026-11-24 07:00:00 UTC");
        assert!(lines(None, Some(&well)).starts_with("  connection: connected since"));
    }
}
