//! What can be wrong with a configuration file, and how it is shown to the administrator.
//!
//! Owns the wording: every error names file, line and column, shows the line with a caret under
//! the place, and ends with what was expected there.

use crate::lex::Position;
use crate::nbd::NbdPathError;
use hast_net::address::AddressError;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

/// Characters of a source line that are shown at most.
const SHOWN: usize = 120;
/// Characters that are shown before the caret when a line is cut.
const SHOWN_BEFORE: usize = 40;
/// Characters of a word that are quoted at most.
const QUOTED: usize = 64;

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfError {
    /// The file does not exist or cannot be read.
    #[error("Unable to read configuration file {}: {}.", path.display(), error_text(source))]
    File {
        /// The file as it was asked for.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// The file is larger than any configuration.
    #[error("Configuration file {} is larger than {limit} bytes.", path.display())]
    TooLarge {
        /// The file as it was asked for.
        path: PathBuf,
        /// Bytes that are read at most.
        limit: u64,
    },
    /// The file was read, and something in it is wrong.
    #[error("{0}")]
    Invalid(Box<Invalid>),
}

impl ConfError {
    /// What a program that cannot go on without the file exits with: 72 if the file cannot be
    /// read, 78 if it is wrong (spec control.md).
    #[must_use]
    pub fn exit_code(&self) -> i32 {
        match self {
            ConfError::File { .. } => 72,
            ConfError::TooLarge { .. } | ConfError::Invalid(_) => 78,
        }
    }
}

/// One thing wrong with a file, and where.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Invalid {
    /// The file as it was asked for.
    pub file: String,
    /// Line of the file, from 1.
    pub line: usize,
    /// Character of the line, from 1.
    pub column: usize,
    /// What is wrong.
    pub problem: Problem,
    /// What should stand there instead.
    pub expected: String,
    /// The line, shortened and without control characters, and the place in it.
    snippet: Snippet,
}

impl Invalid {
    pub(crate) fn new(file: &str, text: &str, at: Position, problem: Problem, expected: String) -> Invalid {
        let line = text.get(at.line_start..).unwrap_or_default().split('\n').next().unwrap_or_default();
        let snippet = Snippet::new(line.trim_end_matches('\r'), at);
        Invalid { file: file.to_owned(), line: at.line, column: at.column, problem, expected, snippet }
    }
}

impl fmt::Display for Invalid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Invalid { file, line, column, problem, expected, snippet } = self;
        let number = line.to_string();
        let gutter = number.len();
        writeln!(f, "{file}:{line}:{column}: {problem}")?;
        writeln!(f, "{number} | {}", snippet.line)?;
        writeln!(f, "{:gutter$} | {}{}", "", snippet.indent, "^".repeat(snippet.width))?;
        write!(f, "expected {expected}")
    }
}

/// What is wrong at one place of a file.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Problem {
    /// Where a statement should begin, a word that begins none.
    #[error("unknown word `{0}`")]
    UnknownWord(String),
    /// A value that this statement does not take.
    #[error("wrong value `{0}`")]
    WrongValue(String),
    /// A word of the language where it has no meaning.
    #[error("`{0}` cannot stand here")]
    OutOfPlace(String),
    /// A word of the language where a name, path or address should stand.
    #[error("`{0}` is a reserved word")]
    Reserved(String),
    /// Digits alone where a name, path or address should stand.
    #[error("`{0}` is a number")]
    Number(String),
    /// The file ends too early.
    #[error("the file ends here")]
    EndOfFile,
    /// The file ends inside a section.
    #[error("the file ends inside the section opened at line {opened}")]
    Unclosed {
        /// Line of the section's `{`.
        opened: usize,
    },
    /// A `#%` line ends too early.
    #[error("the extension line ends here")]
    EndOfLine,
    /// A `#%` line in the middle of a statement or in a section without extensions.
    #[error("the extension line `#% {0}` cannot stand here")]
    ExtensionOutOfPlace(String),
    /// A timeout of no seconds, or of more than can be counted.
    #[error("timeout of {0} seconds")]
    Timeout(String),
    /// A name, path or address above its limit.
    #[error("the {what} has {length} bytes, at most {limit} are possible")]
    TooLong {
        /// What it is.
        what: &'static str,
        /// Its bytes.
        length: usize,
        /// The most it may have.
        limit: usize,
    },
    /// Not an address.
    #[error("{0}")]
    Address(AddressError),
    /// A second resource of the same name.
    #[error("resource {name} is given twice, first at line {first}")]
    ResourceTwice {
        /// The resource.
        name: String,
        /// Line of the first one.
        first: usize,
    },
    /// No `on` section of the resource is for this node.
    #[error("resource {resource} has no `on` section for this node{}", other_nodes(present))]
    NoSection {
        /// The resource.
        resource: String,
        /// The nodes that it has sections for.
        present: Vec<String>,
    },
    /// The resource has no `remote` for this node.
    #[error("resource {resource} has no `remote` for this node")]
    NoRemote {
        /// The resource.
        resource: String,
    },
    /// The resource has no `local` for this node.
    #[error("resource {resource} has no `local`")]
    NoLocal {
        /// The resource.
        resource: String,
    },
    /// A second resource with the same disk or file below it.
    #[error("resource {resource} has the same `local` as resource {other}, {}", path.display())]
    LocalTwice {
        /// The resource.
        resource: String,
        /// The one before it.
        other: Box<str>,
        /// The disk or file.
        path: Box<Path>,
    },
    /// A second resource with the same provider name.
    #[error("resource {resource} has the same provider name as resource {other}, `{provname}`")]
    NameTwice {
        /// The resource.
        resource: String,
        /// The one before it.
        other: Box<str>,
        /// The name.
        provname: Box<str>,
    },
    /// This node would replicate to itself.
    #[error("resource {resource}: its `remote` {remote} is this node itself")]
    RemoteIsSelf {
        /// The resource.
        resource: String,
        /// The address as configured.
        remote: String,
    },
    /// The resource's NBD socket cannot have the path that follows from its provider name.
    #[error("resource {resource}: {error}")]
    NbdPath {
        /// The resource.
        resource: String,
        /// What is wrong with the path.
        error: NbdPathError,
    },
    /// The directory of the NBD sockets does not begin with `/`.
    #[error("`{0}` is not an absolute directory")]
    RelativeDirectory(String),
}

/// "`a`, `b` or `c`"
pub(crate) fn one_of<S: AsRef<str>>(words: &[S]) -> String {
    let mut text = String::new();
    for (index, word) in words.iter().enumerate() {
        if index > 0 {
            text.push_str(if index.saturating_add(1) == words.len() { " or " } else { ", " });
        }
        text.push('`');
        text.push_str(word.as_ref());
        text.push('`');
    }
    text
}

/// A word as it can stand in a message: not longer than a line, nothing but printable.
pub(crate) fn quoted(word: &str) -> String {
    let mut text: String = word.chars().take(QUOTED).map(printable).collect();
    if word.chars().nth(QUOTED).is_some() {
        text.push_str("...");
    }
    text
}

/// The system's words for an error, without the number that Rust appends.
pub(crate) fn error_text(error: &io::Error) -> String {
    let text = error.to_string();
    match text.split_once(" (os error") {
        Some((words, _)) => words.to_owned(),
        None => text,
    }
}

fn other_nodes(present: &[String]) -> String {
    if present.is_empty() {
        return String::new();
    }
    let shown: Vec<String> = present.iter().take(8).map(|name| quoted(name)).collect();
    let more = if present.len() > shown.len() { ", ..." } else { "" };
    format!(", only for {}{more}", shown.join(", "))
}

/// Control characters (a terminal would obey them) become `?`; a tab stays.
fn printable(c: char) -> char {
    if c == '\t' || !c.is_control() { c } else { '?' }
}

#[derive(Clone, PartialEq, Eq, Debug)]
struct Snippet {
    line: String,
    /// Blanks, and tabs where the line has tabs, up to the caret.
    indent: String,
    width: usize,
}

impl Snippet {
    fn new(line: &str, at: Position) -> Snippet {
        let before = at.column.saturating_sub(1);
        let total = line.chars().count();
        let start = if total > SHOWN { before.saturating_sub(SHOWN_BEFORE) } else { 0 };
        let mut shown: String = line.chars().skip(start).take(SHOWN).map(printable).collect();
        let mut indent: String = shown
            .chars()
            .take(before.saturating_sub(start))
            .map(|c| if c == '\t' { c } else { ' ' })
            .collect();
        let room = SHOWN.saturating_sub(before.saturating_sub(start)).max(1);
        if start > 0 {
            shown.insert_str(0, "...");
            indent.insert_str(0, "   ");
        }
        if total.saturating_sub(start) > SHOWN {
            shown.push_str("...");
        }
        Snippet { line: shown, indent, width: at.width.clamp(1, room) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn show(line: &str, column: usize, width: usize) -> String {
        let at = Position { line: 1, column, width, line_start: 0 };
        let snippet = Snippet::new(line, at);
        format!("{}\n{}{}", snippet.line, snippet.indent, "^".repeat(snippet.width))
    }

    #[test]
    fn the_caret_stands_under_the_word_behind_tabs_too() {
        assert_eq!(show("\ttimeout\t0", 10, 1), "\ttimeout\t0\n\t       \t^");
    }

    #[test]
    fn a_terminal_is_not_sent_what_a_file_holds() {
        assert_eq!(show("a\x1b[2J b", 7, 1), "a?[2J b\n      ^");
        assert_eq!(quoted("\x07x"), "?x");
    }

    #[test]
    fn long_lines_are_cut_around_the_caret() {
        let line = format!("{}here{}", "x".repeat(1000), "y".repeat(1000));
        let text = show(&line, 1001, 4);
        let (shown, caret) = text.split_once('\n').unwrap();
        assert_eq!(shown.len(), SHOWN + 6);
        assert!(shown.starts_with("...xx") && shown.ends_with("yy..."), "{shown}");
        assert_eq!(shown.find("here"), caret.find('^'));
        assert_eq!(caret.matches('^').count(), 4);
        assert!(show(&line, 1, 2004).ends_with(&"^".repeat(SHOWN)));
        assert!(show(&line, 2005, 1).ends_with('^'));
    }

    #[test]
    fn lists_read_like_a_sentence() {
        assert_eq!(one_of::<&str>(&[]), "");
        assert_eq!(one_of(&["a"]), "`a`");
        assert_eq!(one_of(&["a", "b"]), "`a` or `b`");
        assert_eq!(one_of(&["a", "b", "c"]), "`a`, `b` or `c`");
        assert_eq!(quoted(&"w".repeat(100)), format!("{}...", "w".repeat(64)));
    }

    #[test]
    fn system_errors_without_their_number() {
        assert_eq!(error_text(&io::Error::from_raw_os_error(2)), "No such file or directory");
        assert_eq!(error_text(&io::Error::other("plain")), "plain");
    }
}
