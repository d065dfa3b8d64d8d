//! `hastctl dump` on captured providers.

use std::fs;

use hast_format::extension::{Extension, Mark, Run};
use hast_format::metadata::{Metadata, Role};

use crate::captured::{between, block, bytes, json, names, text};
use crate::program::{Node, Ran, hastctl};

/// What `-v` adds for a list of dirty extents.
fn described(datasize: u64, extentsize: u64, dirty: &[u64]) -> String {
    let sizes = dirty.iter().map(|extent| extentsize.min(datasize - extent * extentsize));
    let bytes: u64 = sizes.sum();
    let mut text = format!("    dirty extents: {} of {}\n", dirty.len(), datasize.div_ceil(extentsize));
    text += &format!("    dirty bytes: {bytes} (");
    let mut ranges = String::from("    dirty ranges:\n");
    let mut rest = dirty;
    while let Some((first, _)) = rest.split_first() {
        let length = rest.iter().zip(*first..).take_while(|(extent, expected)| *extent == expected).count();
        let last = first + length as u64 - 1;
        let line = if last == *first { first.to_string() } else { format!("{first}-{last}") };
        ranges += &format!("        {line}\n");
        rest = &rest[length..];
    }
    text + "HUMAN)\n" + &ranges
}

/// Takes the human-readable part out of what `-v` printed: that has tests of its own.
fn without_human(text: &str) -> String {
    let (before, rest) = text.split_once("dirty bytes: ").unwrap();
    let (bytes, rest) = rest.split_once(" (").unwrap();
    let (_, rest) = rest.split_once(")\n").unwrap();
    format!("{before}dirty bytes: {bytes} (HUMAN)\n{rest}")
}

#[test]
fn captured_providers_are_dumped_as_the_original_does() {
    let names = names("metadata", "metadata-", ".json");
    assert_eq!(names.len(), 31);
    let mut with_dirty = 0;
    for name in names {
        let description = text("metadata", &format!("{name}.txt"));
        let decoded = json("metadata", &format!("{name}.json"));
        let node_name = between(&description, " of node ", "'");
        let size = between(&description, "regular files of ", " ").parse().unwrap();
        let node = Node::new(node_name, &block(&description, "hast.conf:"));
        let provider = format!("{node_name}.img");
        node.put(&provider, size, &bytes("metadata", &format!("{name}.bin")));

        let expected = decoded["dump"].as_str().unwrap();
        assert_eq!(expected, block(&description, "hastctl dump:"));
        let printed = |stdout: String| Ran { status: 0, stdout, stderr: String::new() };
        let resource = expected.lines().next().unwrap().strip_prefix("resource: ").unwrap();
        assert_eq!(node.hastctl(&["dump", resource]), printed(expected.to_owned()), "{name}");
        let path = node.path(&provider);
        let path = path.to_str().unwrap();
        assert_eq!(hastctl(&["dump", "-f", path]), printed(expected.to_owned()), "{name}");

        let number = |key: &str| {
            let pairs = decoded["nv"].as_array().unwrap();
            pairs.iter().find(|pair| pair["name"] == key).unwrap()["value"].as_u64().unwrap()
        };
        let dirty: Vec<u64> =
            decoded["dirty"].as_array().unwrap().iter().map(|extent| extent.as_u64().unwrap()).collect();
        with_dirty += usize::from(!dirty.is_empty());
        let map = described(number("datasize"), number("extentsize"), &dirty);
        let verbose = hastctl(&["dump", "-v", "-f", path]);
        assert_eq!(verbose.status, 0, "{name}: {verbose:?}");
        assert_eq!(without_human(&verbose.stdout), format!("{expected}    extension: none\n{map}"), "{name}");
        assert_eq!(node.hastctl(&["dump", "-v", resource]), verbose, "{name}");
    }
    assert!(with_dirty >= 5, "too few captures with dirty extents: {with_dirty}");
}

#[test]
fn freebsds_providers_are_dumped_as_freebsd_does() {
    let names = names("freebsd", "metadata-", ".txt");
    assert_eq!(names.len(), 13);
    for name in names {
        let description = text("freebsd", &format!("{name}.txt"));
        let mediasize = description.lines().find(|line| line.contains("# mediasize in bytes")).unwrap();
        let mediasize = mediasize.split_whitespace().next().unwrap().parse().unwrap();
        let at = description.find("resource: ").unwrap();
        let node = Node::with_provider(0);
        node.put("a.img", mediasize, &bytes("freebsd", &format!("{name}.bin")));
        let expected = Ran { status: 0, stdout: description[at..].to_owned(), stderr: String::new() };
        assert_eq!(node.hastctl(&["dump"]), expected, "{name}");
        assert_eq!(hastctl(&["dump", "-f", node.provider().to_str().unwrap()]), expected, "{name}");
    }
}

#[test]
fn a_used_pairs_providers_are_dumped_as_freebsd_does() {
    for (name, role) in [
        ("fullsync-crc32-lzf.primary", "primary"),
        ("fullsync-crc32-lzf.secondary", "secondary"),
        ("memsync-none-hole.primary", "primary"),
        ("memsync-none-hole.secondary", "secondary"),
    ] {
        let (pair, _) = name.split_once('.').unwrap();
        let session = text("freebsd", &format!("pair/{pair}.out"));
        let node = Node::with_provider(0);
        node.put("a.img", 64 << 20, &bytes("freebsd", &format!("pair/{name}-meta.bin")));
        let ran = node.hastctl(&["dump"]);
        assert_eq!((ran.status, ran.stderr.as_str()), (0, ""));
        assert!(session.contains(&ran.stdout), "{name}: {}", ran.stdout);
        assert!(ran.stdout.ends_with(&format!("    prevrole: {role}\n")), "{}", ran.stdout);
    }
}

/// A node whose provider holds metadata as ours saves it; and that metadata.
fn extended() -> (Node, Metadata) {
    let node = Node::with_provider(8 << 20);
    assert_eq!(node.hastctl(&["create", "test"]).status, 0);
    let mut metadata = Metadata::read(&node.head("a.img", 4096)).unwrap().metadata;
    metadata.localcnt = 12;
    metadata.prevrole = Role::Secondary;
    metadata.extension = Extension {
        generation: 3,
        mark: Some(Mark { since: 1_234_567_890, by: "tcp4://10.9.0.1".to_owned() }),
        stale: vec![Run { first: 1, count: 2 }],
        boot: [0x5a; 16],
        ..Extension::default()
    };
    node.change("a.img", 0, &metadata.encode());
    (node, metadata)
}

#[test]
fn what_the_original_does_not_know_shows_with_v() {
    let (node, metadata) = extended();
    let path = node.provider().display().to_string();
    let plain = node.hastctl(&["dump"]);
    assert_eq!((plain.status, plain.stderr.as_str()), (0, ""));
    // Exactly what the list alone would give.
    let list = Metadata::decode(&metadata.encode()).unwrap();
    let original = Node::with_provider(8 << 20);
    original.change("a.img", 0, &list.encode());
    assert_eq!(original.hastctl(&["dump"]), plain);

    let verbose = node.hastctl(&["dump", "-v"]);
    assert_eq!((verbose.status, verbose.stderr.as_str()), (0, ""));
    let (before, after) = verbose.stdout.split_once("    extension: ").unwrap();
    assert_eq!(before, plain.stdout);
    assert_eq!(
        after,
        "generation 3\n    boot: 5a5a5a5a-5a5a-5a5a-5a5a-5a5a5a5a5a5a\n    peer boot: unknown\n    \
         inconsistent: since 2009-02-13 23:31:30 UTC, synchronised by tcp4://10.9.0.1\n    target: no\n    \
         full sync owed: no\n    stale extents: 2\n    stale bytes: 4194304 (4.0MB)\n    stale ranges:\n        1-2\n    \
         dirty extents: 0 of 4\n    dirty bytes: 0 (0B)\n    dirty ranges:\n"
    );
    assert_eq!(hastctl(&["dump", "-v", "-f", &path]), verbose);
}

#[test]
fn damaged_metadata_is_dumped_as_it_was_and_stderr_says_so() {
    let (node, metadata) = extended();
    let path = node.provider().display().to_string();
    let [plain, verbose] = [&["dump"][..], &["dump", "-v"]].map(|line| node.hastctl(line).stdout);
    let good = metadata.encode();
    let mut older = metadata.clone();
    older.localcnt = 11;
    older.extension.generation = 2;
    let older = older.encode();
    for (at, instead, what) in [
        (0, &[0xff; 512][..], "the list or what follows it is damaged; the extension area was used"),
        (1024, &[0; 512], "the list or what follows it is damaged; the extension area was used"),
        (
            0,
            &older[..3072],
            "the list is of an earlier state (a save was cut off); the extension area was used",
        ),
        (3584, &[0; 512], "the extension area is damaged or outdated; its copy beside the list was used"),
        (
            3072,
            &older[3072..],
            "the extension area is damaged or outdated; its copy beside the list was used",
        ),
    ] {
        node.change("a.img", 0, &good);
        node.change("a.img", at, instead);
        let stderr = format!("[WARNING] Metadata on {path} is not whole: {what}.\n");
        let expected = |stdout: &str| Ran { status: 0, stdout: stdout.to_owned(), stderr: stderr.clone() };
        assert_eq!(node.hastctl(&["dump"]), expected(&plain));
        assert_eq!(node.hastctl(&["dump", "-v"]), expected(&verbose));
        let of_a_file = Ran { stderr: stderr.clone(), ..expected(&plain) };
        assert_eq!(hastctl(&["dump", "-f", &path]), of_a_file);
        // Looking does not change it.
        assert_eq!(node.head("a.img", 4096)[at as usize..][..instead.len()], *instead);
    }

    // The list alone is left.
    node.change("a.img", 0, &good);
    node.change("a.img", 1024, &[1]);
    node.change("a.img", 3072, &[1]);
    let ran = node.hastctl(&["dump"]);
    assert_eq!((ran.status, &ran.stdout), (0, &plain));
    assert!(ran.stderr.contains("the list was used"), "{ran:?}");
    // And that not either.
    node.change("a.img", 0, &[0xff; 512]);
    let ran = node.hastctl(&["dump"]);
    assert_eq!((ran.status, ran.stdout.as_str()), (255, ""));
    assert!(ran.stderr.starts_with(&format!("[ERROR] Unable to read metadata from {path}: ")), "{ran:?}");
}

#[test]
fn creating_again_leaves_nothing_of_an_extension() {
    let (node, _) = extended();
    assert_eq!(node.hastctl(&["create", "test"]).status, 0);
    let fresh = Node::with_provider(8 << 20);
    assert_eq!(fresh.hastctl(&["create", "test"]).status, 0);
    assert_eq!(node.head("a.img", 8192), fresh.head("a.img", 8192));
}

#[test]
fn a_provider_that_cannot_be_read_is_255() {
    let node = Node::with_provider(1 << 20);
    let path = node.provider().display().to_string();
    let ran = node.hastctl(&["dump"]);
    assert_eq!((ran.status, ran.stdout.as_str()), (255, ""));
    assert!(ran.stderr.starts_with(&format!("[ERROR] Unable to read metadata from {path}: ")), "{ran:?}");
    assert!(ran.stderr.ends_with("`hastctl create`.\n"), "{ran:?}");
    // A file is nobody's.
    let plain = Ran { stderr: ran.stderr.clone(), ..ran };
    assert_eq!(hastctl(&["dump", "-f", &path]), plain);

    fs::remove_file(node.provider()).unwrap();
    let stderr = format!("[ERROR] Unable to open {path}: No such file or directory.\n");
    assert_eq!(node.hastctl(&["dump", "test"]), Ran { status: 255, stdout: String::new(), stderr });
    fs::create_dir(node.provider()).unwrap();
    let ran = node.hastctl(&["dump", "all"]);
    assert_eq!(ran.status, 255);
    assert!(ran.stderr.contains("nor regular file."), "{ran:?}");
}

#[test]
fn another_resources_provider_is_refused() {
    let node = Node::with_provider(0);
    node.put("a.img", 4 << 20, &bytes("metadata", "metadata-create-default.bin"));
    let path = node.provider().display().to_string();
    let stderr = format!("[ERROR] Provider {path} is not part of resource test.\n");
    assert_eq!(node.hastctl(&["dump"]), Ran { status: 255, stdout: String::new(), stderr });
    // A file is asked for by its name only.
    assert_eq!(hastctl(&["dump", "-f", &path]).status, 0);
}

#[test]
fn several_resources_are_dumped_and_the_first_error_counts() {
    let node = Node::new(
        "a",
        "resource one { on a { local /hast/1.img remote none } }\n\
         resource two { on a { local /hast/2.img remote none } }\n",
    );
    node.put("1.img", 1 << 20, &[]);
    node.put("2.img", 1 << 20, &[]);
    assert_eq!(node.hastctl(&["create", "one", "two"]).status, 0);
    let one = node.hastctl(&["dump", "one"]).stdout;
    let two = node.hastctl(&["dump", "two"]).stdout;
    assert!(one.starts_with("resource: one\n") && two.starts_with("resource: two\n"));
    for line in [&["dump"][..], &["dump", "all"], &["dump", "one", "two"]] {
        let ran = node.hastctl(line);
        assert_eq!(ran, Ran { status: 0, stdout: format!("{one}{two}"), stderr: String::new() });
    }
    // Not alone, `all` is a name like any other.
    let ran = node.hastctl(&["dump", "all", "two"]);
    let stderr = "[ERROR] Unknown resource all.\n[WARNING] The configuration has one, two.\n".to_owned();
    assert_eq!(ran, Ran { status: 65, stdout: two.clone(), stderr });
    fs::remove_file(node.path("1.img")).unwrap();
    let ran = node.hastctl(&["dump", "one", "nosuch", "two"]);
    assert_eq!((ran.status, ran.stdout), (255, two));
    let ran = node.hastctl(&["dump", "nosuch", "one"]);
    assert_eq!(ran.status, 65);
    // Without resources there is nothing to say.
    let nothing = Ran { status: 0, stdout: String::new(), stderr: String::new() };
    assert_eq!(Node::new("a", "").hastctl(&["dump"]), nothing);
}

#[test]
fn metadata_that_does_not_fit_the_provider_is_shown_but_has_no_map() {
    let node = Node::with_provider(0);
    node.put("a.img", 8192, &bytes("freebsd", "metadata-1g-default.bin"));
    let plain = node.hastctl(&["dump"]);
    assert_eq!(plain.status, 0);
    let verbose = node.hastctl(&["dump", "-v"]);
    assert_eq!(verbose.status, 255);
    assert_eq!(verbose.stdout, format!("{}    extension: none\n", plain.stdout));
    assert!(verbose.stderr.starts_with("[ERROR] Unable to read activemap from "), "{verbose:?}");
}
