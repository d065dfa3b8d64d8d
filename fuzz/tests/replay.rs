//! Every committed input once more: the corpora, and whatever failed before.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use hast_fuzz::TARGETS;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

fn directory(kind: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(kind)
}

/// The files of a target, sorted, so that the first failure is the same every time. What libFuzzer left in the
/// corpus under the name of a hash is not committed and not replayed.
fn inputs(kind: &str, target: &str) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(directory(kind).join(target)) else { return Vec::new() };
    let is_hash = |name: &str| name.len() == 40 && name.bytes().all(|byte| byte.is_ascii_hexdigit());
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.retain(|path| !is_hash(path.file_name().unwrap().to_str().unwrap()));
    paths.sort();
    paths
}

/// Replays in a thread of its own: the target's panic is joined by the name of the file.
fn replay(kind: &str) -> usize {
    let mut count = 0;
    for target in TARGETS {
        for path in inputs(kind, target.name) {
            let data = std::fs::read(&path).unwrap();
            let outcome = std::panic::catch_unwind(|| (target.run)(&data));
            assert!(outcome.is_ok(), "cargo run -p hast-fuzz --bin {} {}", target.name, path.display());
            count += 1;
        }
    }
    count
}

#[test]
fn the_corpora_pass() {
    assert!(replay("corpus") >= 10 * TARGETS.len());
}

#[test]
fn what_failed_once_passes() {
    assert!(replay("regressions") > 0);
}

#[test]
fn every_target_has_a_corpus_of_small_files_and_a_dictionary() {
    for target in TARGETS {
        let paths = inputs("corpus", target.name);
        assert!(paths.len() >= 5, "{}: {} inputs", target.name, paths.len());
        for path in paths {
            let length = path.metadata().unwrap().len();
            assert!((1..=8192).contains(&length), "{} has {length} bytes", path.display());
        }
        let dictionary = directory("dictionaries").join(format!("{}.dict", target.name));
        assert!(dictionary.is_file(), "{}", dictionary.display());
    }
}

#[test]
fn the_list_of_targets_is_the_list_of_programs() {
    let manifest = std::fs::read_to_string(directory("Cargo.toml")).unwrap();
    let programs: BTreeSet<&str> =
        manifest.lines().filter_map(|line| line.strip_prefix("name = \"")?.strip_suffix('"')).collect();
    let targets: BTreeSet<&str> = TARGETS.iter().map(|target| target.name).chain(["hast-fuzz"]).collect();
    assert_eq!(programs, targets);
    for kind in ["corpus", "regressions"] {
        for entry in std::fs::read_dir(directory(kind)).unwrap() {
            let name = entry.unwrap().file_name();
            assert!(targets.contains(name.to_str().unwrap()), "{kind}/{name:?} belongs to no target");
        }
    }
}

/// Prefixes of the corpora: streams and scripts that break off anywhere.
#[test]
fn the_corpora_pass_cut_off() {
    for target in TARGETS {
        for path in inputs("corpus", target.name) {
            let data = std::fs::read(&path).unwrap();
            for eighth in 1..8 {
                (target.run)(&data[..data.len() * eighth / 8]);
            }
        }
    }
}
