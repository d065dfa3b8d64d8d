//! How `-v` shows what a node knows about itself: a word for each thing that is wrong, or a line for each thing
//! there is to know.

use std::fmt::Write;

use hast_format::extension::Utc;
use hast_net::control::Facts;
use hast_net::human::human;

use crate::human::printable;

/// The words of `status -v`, joined by commas: `ok` if nothing is wrong, `-` if nobody knows.
pub(crate) fn words(facts: Option<&Facts>) -> String {
    let Some(facts) = facts else { return "-".to_owned() };
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
    .collect();
    if words.is_empty() { "ok".to_owned() } else { words.join(",") }
}

/// The lines of `list -v`.
pub(crate) fn lines(facts: Option<&Facts>) -> String {
    let Some(facts) = facts else { return "  condition: -\n".to_owned() };
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
    let mut out = String::from("  condition:\n");
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
        assert_eq!(words(None), "-");
        assert_eq!(words(Some(&Facts::default())), "ok");
        // Who the other node is, is no condition.
        assert_eq!(words(Some(&Facts { peer_is_original: Some(true), ..Facts::default() })), "ok");
        assert_eq!(words(Some(&Facts { stale_bytes: 1, ..Facts::default() })), "stale");
        assert_eq!(
            words(Some(&everything())),
            "inconsistent,target,stale,detached,split-brain,possibly-behind,synchronising"
        );
    }

    #[test]
    fn one_line_for_each_thing_there_is_to_know() {
        assert_eq!(lines(None), "  condition: -\n");
        let expected = "  condition:
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
        assert_eq!(lines(Some(&everything())), expected);
        let expected = "  condition:
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
        assert_eq!(lines(Some(&Facts::default())), expected);
        let ours = Facts { peer_is_original: Some(false), inconsistent_since: Some(0), ..Facts::default() };
        let text = lines(Some(&ours));
        assert!(text.contains("    inconsistent: since an unknown time\n"), "{text}");
        assert!(text.contains("    other node: extended\n"), "{text}");
    }
}
