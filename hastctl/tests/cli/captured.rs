//! The captures: where they are and how to read them.

use std::fs;
use std::path::{Path, PathBuf};

/// A directory of `tests/vectors`.
pub(crate) fn directory(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/vectors").join(name)
}

/// The names, without extension and sorted, of a directory's files that begin and end as said.
pub(crate) fn names(directory_name: &str, prefix: &str, extension: &str) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(directory(directory_name))
        .unwrap()
        .filter_map(|entry| {
            let name = entry.unwrap().file_name().into_string().unwrap();
            name.strip_suffix(extension).filter(|name| name.starts_with(prefix)).map(str::to_owned)
        })
        .collect();
    names.sort();
    names
}

pub(crate) fn bytes(directory_name: &str, file: &str) -> Vec<u8> {
    let path = directory(directory_name).join(file);
    fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

pub(crate) fn text(directory_name: &str, file: &str) -> String {
    String::from_utf8(bytes(directory_name, file)).unwrap()
}

pub(crate) fn json(directory_name: &str, file: &str) -> serde_json::Value {
    serde_json::from_slice(&bytes(directory_name, file)).unwrap()
}

/// The indented block under a heading of a capture's description, without its indentation.
pub(crate) fn block(description: &str, heading: &str) -> String {
    let mut lines = description.lines().skip_while(|line| *line != heading);
    assert_eq!(lines.next(), Some(heading));
    lines.map_while(|line| line.strip_prefix("    ")).map(|line| format!("{line}\n")).collect()
}

/// The text between two others, of which the first is the first of its kind.
pub(crate) fn between<'a>(text: &'a str, before: &str, after: &str) -> &'a str {
    let (_, rest) = text.split_once(before).unwrap_or_else(|| panic!("no {before:?} in {text}"));
    rest.split_once(after).unwrap_or_else(|| panic!("no {after:?} in {rest}")).0
}

/// A name-value list with the padding after names zeroed, which the original leaves undefined. What comes
/// after the list's end stays.
pub(crate) fn masked(list: &[u8]) -> Vec<u8> {
    let mut list = list.to_vec();
    let mut at = 0;
    while at < list.len() && list[at] != 0 {
        let namesize = usize::from(list[at + 1]);
        let dsize = u32::from_le_bytes(list[at + 2..at + 6].try_into().unwrap()) as usize;
        let name = at + 6;
        let data = name + namesize.next_multiple_of(8);
        list[name + namesize..data].fill(0);
        at = data + dsize.next_multiple_of(8);
    }
    list
}
