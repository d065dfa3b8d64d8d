//! Metadata blocks captured from the original, on Linux and on FreeBSD itself: what they say, the bytes they are
//! made of, and the arithmetic behind their numbers.
#![cfg(feature = "alloc")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::fs;
use std::path::{Path, PathBuf};

use hast_format::bitmap::Bitmap;
use hast_format::extension::Extension;
use hast_format::layout::{self, Layout};
use hast_format::metadata::{BlockState, Metadata, Reading, Role};
use hast_format::nv::{List, Pair, Type};
use serde_json::Value;

/// Sorted, so that a failure names the same file every time.
fn captures(directory: &str, ending: &str) -> Vec<PathBuf> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/vectors").join(directory);
    let mut paths: Vec<_> = fs::read_dir(&directory)
        .unwrap_or_else(|error| panic!("{}: {error}", directory.display()))
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.file_name().unwrap().to_str().unwrap().ends_with(ending))
        .collect();
    paths.sort();
    paths
}

fn text(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The block with zeros after each name, where the original leaves what its heap held. Walks the pairs by hand.
fn mask_name_padding(block: &[u8]) -> Vec<u8> {
    let mut block = block.to_vec();
    let mut at = 0;
    while block.get(at).is_some_and(|code| *code != 0) {
        let name = usize::from(block[at + 1]);
        let data = u32::from_le_bytes(block[at + 2..at + 6].try_into().unwrap()) as usize;
        let padded = name.next_multiple_of(8);
        block[at + 6 + name..at + 6 + padded].fill(0);
        at += 6 + padded + data.next_multiple_of(8);
    }
    block
}

/// What `hastctl dump` printed: the text after the first `resource:` line that `find` chooses.
fn dump(lines: &str) -> Metadata {
    let field = |key: &str| {
        let value = lines
            .lines()
            .find_map(|line| line.trim().strip_prefix(&format!("{key}: ")))
            .unwrap_or_else(|| panic!("no {key} in {lines}"));
        value.split(' ').next().unwrap().to_owned()
    };
    let number = |key: &str| field(key).parse::<u64>().unwrap();
    Metadata {
        resource: field("resource"),
        datasize: number("datasize"),
        extentsize: number("extentsize").try_into().unwrap(),
        keepdirty: number("keepdirty").try_into().unwrap(),
        localoff: number("localoff"),
        resuid: number("resuid"),
        localcnt: number("localcnt"),
        remotecnt: number("remotecnt"),
        prevrole: Role::parse(&field("prevrole")).unwrap(),
        extension: Extension::default(),
    }
}

/// A pair as the captures' JSON writes it.
fn as_json(pair: &Pair<'_>) -> Value {
    let (kind, value) = match pair.kind {
        Type::UInt32 => ("uint32", u32::from_le_bytes(pair.data.try_into().unwrap()).into()),
        Type::UInt64 => ("uint64", u64::from_le_bytes(pair.data.try_into().unwrap()).into()),
        Type::String => ("string", pair.as_str().unwrap().into()),
        other => panic!("no {other:?} in metadata"),
    };
    let name = std::str::from_utf8(pair.name).unwrap();
    serde_json::json!({ "name": name, "type": kind, "value": Value::clone(&value) })
}

/// The block at the start of `bytes` says `expected`, and saying it again gives the same block.
fn check_block(path: &Path, bytes: &[u8], expected: &Metadata) {
    let path = path.display();
    let metadata = Metadata::decode(bytes).unwrap_or_else(|error| panic!("{path}: {error}"));
    assert_eq!(metadata, *expected, "{path}");
    assert!(metadata.encode() == *mask_name_padding(&bytes[..4096]), "{path}: encodes differently");
    let reading = Metadata::read(bytes).unwrap();
    assert_eq!(reading, Reading { metadata, state: BlockState::NoArea }, "{path}");
}

#[test]
fn blocks_captured_on_linux() {
    let captures = captures("metadata", ".json");
    assert_eq!(captures.len(), 31);
    for path in captures {
        let json: Value = serde_json::from_str(&text(&path)).unwrap();
        let bytes = fs::read(path.with_file_name(json["file"].as_str().unwrap())).unwrap();
        check_block(&path, &bytes, &dump(json["dump"].as_str().unwrap()));

        let list = List::parse(&bytes[..4096]).unwrap();
        let pairs: Vec<Value> = list.pairs().map(|pair| as_json(&pair)).collect();
        assert_eq!(Value::from(pairs), json["nv"], "{}", path.display());
        assert_eq!(list.as_bytes().len() as u64, json["nv_used"], "{}", path.display());

        // The activemap follows, up to the data.
        let metadata = Metadata::decode(&bytes).unwrap();
        assert_eq!(bytes.len() as u64, metadata.localoff);
        let extents = layout::nextents(metadata.datasize, metadata.extentsize);
        let map = Bitmap::from_bytes(extents.try_into().unwrap(), &bytes[4096..]);
        let dirty: Vec<u32> = map.iter().collect();
        assert_eq!(Value::from(dirty), json["dirty"], "{}", path.display());
        assert!(map.bytes(0..bytes.len() - 4096) == bytes[4096..], "{}: map", path.display());
    }
}

#[test]
fn blocks_captured_on_freebsd() {
    let captures = captures("freebsd", ".txt");
    assert_eq!(captures.len(), 13);
    for path in captures {
        check_block(&path, &fs::read(path.with_extension("bin")).unwrap(), &dump(&text(&path)));
    }
}

/// Two FreeBSD machines after a file system was made, used and unmounted: both nodes were dumped at the end,
/// first the primary.
#[test]
fn blocks_of_a_pair_on_freebsd() {
    let captures = captures("freebsd/pair", ".out");
    assert_eq!(captures.len(), 2);
    for path in captures {
        let text = text(&path);
        let dumps: Vec<&str> = text.split("resource: ").collect();
        let [.., primary, secondary] = dumps[..] else { panic!("{}: no dumps", path.display()) };
        for (node, text) in [("primary", primary), ("secondary", secondary)] {
            let path = path.with_extension(format!("{node}-meta.bin"));
            let bytes = fs::read(&path).unwrap();
            let expected = dump(&format!("resource: {text}"));
            assert_eq!(expected.prevrole.as_str(), node);
            assert_ne!(expected.resuid, 0);
            check_block(&path, &bytes, &expected);
            let layout = Layout::open(&expected, 64 << 20, 512).unwrap();
            assert_eq!(layout, Layout::create(64 << 20, 512, layout::EXTENTSIZE_DEFAULT).unwrap());
        }
    }
}

/// The numbers that `hastctl create` was given.
#[derive(Debug)]
struct Created {
    provider: u64,
    sectorsize: u32,
    mediasize: u64,
    extentsize: u32,
    keepdirty: u64,
}

impl Created {
    fn new(provider: u64, sectorsize: u32, command: &str) -> Created {
        let mut created = Created {
            provider,
            sectorsize,
            mediasize: provider,
            extentsize: layout::EXTENTSIZE_DEFAULT,
            keepdirty: 0,
        };
        let mut words = command.split_whitespace();
        while let Some(word) = words.next() {
            match word {
                "-e" => created.extentsize = size(words.next().unwrap()).try_into().unwrap(),
                "-m" => created.mediasize = size(words.next().unwrap()),
                "-k" => created.keepdirty = size(words.next().unwrap()),
                _ => assert!(!word.starts_with('-'), "{command}"),
            }
        }
        created
    }

    /// The arithmetic gives what is in the block, and the block is taken on the provider.
    fn check(&self, path: &Path, stored: &Metadata) {
        let context = format!("{}: {self:?}", path.display());
        let layout = Layout::create(self.mediasize, self.sectorsize, self.extentsize).unwrap();
        assert_eq!(layout.datasize(), stored.datasize, "{context}");
        assert_eq!(layout.localoff(), stored.localoff, "{context}");
        assert_eq!(layout.extentsize(), stored.extentsize, "{context}");
        assert_eq!(layout::keepdirty(self.keepdirty), Ok(stored.keepdirty), "{context}");

        let opened = Layout::open(stored, self.provider, self.sectorsize).unwrap();
        assert_eq!(opened.datasize(), layout.datasize(), "{context}");
        assert_eq!(opened.localoff(), layout.localoff(), "{context}");
        if self.mediasize == self.provider {
            assert_eq!(opened, layout, "{context}");
            assert_eq!(opened.sent_map_bytes(), opened.map_capacity(), "{context}");
        }
        assert!(opened.map_bytes() <= opened.sent_map_bytes(), "{context}");
    }
}

/// A number with or without a suffix, as in the captures.
fn size(word: &str) -> u64 {
    let digits = word.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let shift = match &word[digits.len()..] {
        "" => 0,
        "k" => 10,
        "m" => 20,
        "g" => 30,
        "t" => 40,
        other => panic!("suffix {other}"),
    };
    digits.parse::<u64>().unwrap() << shift
}

/// The word between `before` and the next blank.
fn word_after<'a>(text: &'a str, before: &str) -> &'a str {
    let (_, rest) = text.split_once(before).unwrap_or_else(|| panic!("no {before:?} in {text}"));
    rest.split_whitespace().next().unwrap()
}

#[test]
fn layouts_captured_on_linux() {
    let captures = captures("metadata", ".txt");
    assert_eq!(captures.len(), 31);
    for path in captures {
        let text = text(&path);
        let provider = size(word_after(&text, "Providers: regular files of "));
        let sectorsize = if text.contains("block devices with 4096-byte sectors") { 4096 } else { 512 };
        let (_, command) = text.split_once("    a: hastctl create ").unwrap();
        let created = Created::new(provider, sectorsize, command.lines().next().unwrap());
        created.check(&path, &Metadata::decode(&fs::read(path.with_extension("bin")).unwrap()).unwrap());
    }
}

#[test]
fn layouts_captured_on_freebsd() {
    let captures = captures("freebsd", ".txt");
    assert_eq!(captures.len(), 13);
    for path in captures {
        let text = text(&path);
        // "provider size N; mdconfig ...; hastctl create ...", then two lines of diskinfo.
        let (_, command) = text.lines().next().unwrap().split_once("hastctl create ").unwrap();
        let diskinfo = |what: &str| {
            let line = text.lines().find(|line| line.contains(what)).unwrap();
            line.split_whitespace().next().unwrap().to_owned()
        };
        let provider = diskinfo("# mediasize in bytes").parse().unwrap();
        assert_eq!(provider, size(word_after(&text, "provider size ").trim_end_matches(';')));
        let created = Created::new(provider, diskinfo("# sectorsize").parse().unwrap(), command);
        created.check(&path, &Metadata::decode(&fs::read(path.with_extension("bin")).unwrap()).unwrap());
    }
}
