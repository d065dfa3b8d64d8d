//! Reading real files: those that are not there, those that are no text, those of the captures.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use common::node;
use hast_conf::{ConfError, load, parse};
use proptest::prelude::*;
use std::fs;
use std::path::{Path, PathBuf};

const GOOD: &str = "resource r { on a { local /d remote b } }\n";

#[test]
fn a_missing_file_is_not_a_configuration_error() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("hast.conf");
    let error = load(&path, &node("a")).unwrap_err();
    assert!(matches!(&error, ConfError::File { path: told, .. } if *told == path));
    assert_eq!(error.exit_code(), 72);
    let expected =
        format!("Unable to read configuration file {}: No such file or directory.", path.display());
    assert_eq!(error.to_string(), expected);

    let error = load(directory.path(), &node("a")).unwrap_err();
    assert!(matches!(error, ConfError::File { .. }), "{error}");
    assert_eq!(error.exit_code(), 72);
}

#[test]
fn messages_name_the_file() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("my.conf");
    fs::write(&path, "; timeout 1\n").unwrap();
    let warnings = load(&path, &node("a")).unwrap().warnings;
    assert_eq!(warnings, [format!("{}:1:1: skipped `;`, no word has this", path.display())]);
    fs::write(&path, "\n timeout 0\n").unwrap();
    let error = load(&path, &node("a")).unwrap_err();
    assert_eq!(error.exit_code(), 78);
    assert!(
        error.to_string().starts_with(&format!("{}:2:10: timeout of 0 seconds\n", path.display())),
        "{error}"
    );
}

#[test]
fn bytes_that_are_no_text_are_skipped_like_other_strange_characters() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("hast.conf");
    let mut bytes = b"# \xff\xfe caf\xe9\n\x00\xff".to_vec();
    bytes.extend_from_slice(GOOD.as_bytes());
    fs::write(&path, &bytes).unwrap();
    let config = load(&path, &node("a")).unwrap();
    assert_eq!(config.resources.len(), 1);
    assert_eq!(config.warnings.len(), 1);
    assert!(config.warnings[0].contains(":2:1: skipped `?\u{fffd}`"), "{:?}", config.warnings);
}

#[test]
fn a_file_that_never_ends_is_not_read_for_ever() {
    let error = load(Path::new("/dev/zero"), &node("a")).unwrap_err();
    assert!(matches!(error, ConfError::TooLarge { limit: 1_048_576, .. }), "{error}");
    assert_eq!(error.exit_code(), 78);
    assert_eq!(error.to_string(), "Configuration file /dev/zero is larger than 1048576 bytes.");

    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("hast.conf");
    fs::write(&path, format!("{GOOD}{}", "\n".repeat(1_048_576 - GOOD.len()))).unwrap();
    assert_eq!(load(&path, &node("a")).unwrap().resources.len(), 1);
}

/// Each capture's description holds the hast.conf that the original ran with.
#[test]
fn the_files_of_the_captures_are_understood() {
    let vectors = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/vectors");
    let mut found = 0;
    for kind in ["wire", "control", "metadata"] {
        for entry in fs::read_dir(vectors.join(kind)).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_none_or(|extension| extension != "txt") {
                continue;
            }
            let described = fs::read_to_string(&path).unwrap();
            let Some((_, rest)) = described.split_once("\nhast.conf:\n") else { continue };
            let text: String =
                rest.lines().take_while(|line| !line.is_empty()).map(|l| format!("{l}\n")).collect();
            for name in ["a", "b"] {
                let config =
                    parse(&text, &path.display().to_string(), &node(name)).unwrap_or_else(|e| panic!("{e}"));
                assert_eq!(config.control.as_str(), format!("uds:///hast/{name}.ctl"));
                assert_eq!(config.pidfile, Path::new(&format!("/hast/{name}.pid")));
                assert_eq!(config.listen.len(), 1);
                assert_eq!(config.resources.len(), text.matches("resource ").count());
                for r in &config.resources {
                    assert!(r.localpath.starts_with("/hast"), "{}", path.display());
                }
                assert_eq!(config.warnings, [""; 0]);
            }
            found += 1;
        }
    }
    assert!(found > 50, "only {found} captures with a hast.conf in {}", vectors.display());
}

/// Pieces of which files are made, so that what proptest builds gets past the first token.
fn piece() -> impl Strategy<Value = String> {
    prop_oneof![
        proptest::sample::select(
            "control pidfile listen replication checksum compression timeout exec metaflush resource name local remote \
             source on off fullsync memsync async none crc32 sha256 hole lzf nbd peer-timeout device direct-reads auto { } { } a b /d 10.0.0.1 [::1]:2 20 0 #% # ; \
             resource\u{20}r\u{20}{ on\u{20}a\u{20}{ local\u{20}/d remote\u{20}b #%\u{20}nbd"
                .split_whitespace()
                .map(str::to_owned)
                .collect::<Vec<_>>()
        ),
        Just("\n".to_owned()),
        Just("resource r { on a { local /d remote b".to_owned()),
        Just("\n#% nbd /n\n".to_owned()),
        "[A-Za-z0-9._/:\\[\\]-]{0,8}",
        any::<char>().prop_map(String::from),
    ]
}

proptest! {
    #[test]
    fn no_text_makes_it_panic(text in ".*|(?s:.{0,200})") {
        check(&text)?;
    }

    #[test]
    fn no_sequence_of_words_makes_it_panic(pieces in proptest::collection::vec(piece(), 0..60)) {
        check(&pieces.join(" "))?;
    }

    #[test]
    fn no_damage_to_a_good_file_makes_it_panic(at in 0usize..400, length in 0usize..40, with in piece()) {
        let good = "control /c\non a { listen 10.0.0.1 }\n#% nbd /n\n".to_owned() + GOOD + "timeout 5 # end";
        let start = good.floor_char_boundary(at);
        let end = good.floor_char_boundary(start + length);
        check(&format!("{}{with}{}", &good[..start], &good[end..]))?;
    }
}

/// Whatever the text: a configuration or an error whose place is inside the text.
fn check(text: &str) -> Result<(), TestCaseError> {
    match parse(text, "hast.conf", &node("a")) {
        Ok(config) => {
            let names: std::collections::HashSet<_> = config.resources.iter().map(|r| &r.name).collect();
            prop_assert_eq!(names.len(), config.resources.len());
        }
        Err(ConfError::Invalid(invalid)) => {
            let line = text.split('\n').nth(invalid.line - 1);
            prop_assert!(line.is_some());
            prop_assert!(invalid.column <= line.unwrap().chars().count() + 1);
            let shown = invalid.to_string();
            prop_assert!(shown.lines().nth(2).unwrap().trim_end().ends_with('^'), "{}", shown);
            prop_assert!(shown.contains("\nexpected "), "{}", shown);
        }
        Err(other) => return Err(TestCaseError::fail(other.to_string())),
    }
    Ok(())
}
