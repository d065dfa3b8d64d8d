//! The messages of the programs, as their sources have them: literals of errors and warnings, without what is put in.

use std::path::{Path, PathBuf};

/// What administrators see comes from these.
const CRATES: [&str; 6] = ["hastd", "hastctl", "hast-failover", "hast-engine", "hast-provider", "hast-ggate"];
/// A literal in one of these is a message about something that is not as it should be.
const SAID: [&str; 4] = ["log::error!(", "log::warn!(", "#[error(", "Priority::Error,"];

/// The repository.
pub(crate) fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// One message, and the file that has it.
pub(crate) struct Message {
    pub(crate) text: String,
    pub(crate) file: PathBuf,
}

impl Message {
    /// The longest part of it that is always the same.
    pub(crate) fn fixed(&self) -> &str {
        let mut parts: Vec<&str> = self.text.split(['{', '}']).step_by(2).map(str::trim).collect();
        parts.sort_by_key(|part| part.len());
        parts.pop().unwrap_or_default()
    }
}

/// Every source file of these crates and of more, tests aside, with literals over several lines in one.
pub(crate) fn sources(more: &[&str]) -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    let crates = CRATES.iter().chain(more);
    let mut directories: Vec<PathBuf> = crates.map(|name| repository().join(name).join("src")).collect();
    while let Some(directory) = directories.pop() {
        for entry in std::fs::read_dir(&directory).expect("the sources are there").flatten() {
            let path = entry.path();
            let name = entry.file_name().into_string().unwrap_or_default();
            if path.is_dir() {
                directories.push(path);
            } else if name.ends_with(".rs") && !name.ends_with("tests.rs") {
                let text = std::fs::read_to_string(&path).expect("a source is text");
                let text = text.split("#[cfg(test)]\nmod tests").next().unwrap_or_default();
                found.push((path, joined(text)));
            }
        }
    }
    found
}

/// A backslash at the end of a line goes, with the blanks that begin the next one.
fn joined(text: &str) -> String {
    let mut parts = text.split("\\\n");
    let mut joined = parts.next().unwrap_or_default().to_owned();
    parts.for_each(|part| joined.push_str(part.trim_start()));
    joined
}

/// The messages of these sources.
pub(crate) fn messages(sources: &[(PathBuf, String)]) -> Vec<Message> {
    let mut found = Vec::new();
    for (file, text) in sources {
        for said in SAID {
            for after in text.split(said).skip(1) {
                if let Some(text) = literal(after) {
                    found.push(Message { text, file: file.clone() });
                }
            }
        }
    }
    found
}

/// The literal that comes first, if nothing but the beginning of an argument is before it.
fn literal(text: &str) -> Option<String> {
    let (before, after) = text.split_once('"')?;
    if !["", "&format!(", "format!("].contains(&before.trim()) {
        return None;
    }
    let mut literal = String::new();
    let mut characters = after.chars();
    loop {
        match characters.next()? {
            '"' => return Some(literal),
            '\\' => literal.push(characters.next()?),
            other => literal.push(other),
        }
    }
}
