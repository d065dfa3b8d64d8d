//! What goes to standard error when a command line cannot be understood, and what `--help` prints.
//!
//! The original's lines come first and are its own, to the word; ours follow.

use std::fmt::{self, Write};

use hast_format::metadata::Role;

use crate::hint::{did_you_mean, similar};
use crate::human::printable;
use crate::options::{COMMANDS, Known};

/// A command line that asks for nothing that we know.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum UsageError {
    /// Show how it is done.
    Usage,
    /// A word that is no sub-command.
    UnknownCommand(String),
    /// `role` without one.
    NoRole,
    /// A word that is no role.
    UnknownRole(String),
    /// A resource has to be named.
    NoName,
    /// A word that means nothing here.
    Superfluous(String),
    /// An option that the sub-command does not have.
    IllegalOption(u8),
    /// An option without the value that it needs.
    MissingValue(u8),
    /// Not a size; the name of what it is for.
    InvalidSize(&'static str),
}

impl UsageError {
    /// What goes to standard error, in full: the original's lines, then, where those do not say it, what is wrong.
    /// `program` is the name that we were called by.
    pub(crate) fn text(&self, program: &str) -> String {
        let wrong = match self {
            UsageError::Usage => return usage(program),
            UsageError::IllegalOption(letter) => {
                return format!("{program}: illegal option -- {}\n{}", Letter(*letter), usage(program));
            }
            UsageError::MissingValue(letter) => {
                return format!(
                    "{program}: option requires an argument -- {}\n{}",
                    Letter(*letter),
                    usage(program)
                );
            }
            UsageError::InvalidSize(what) => return format!("{program}: Invalid {what}\n"),
            UsageError::UnknownCommand(word) => {
                let meant = similar(word, COMMANDS.iter().map(|command| command.name));
                format!("unknown command {}{}", printable(word), did_you_mean(meant))
            }
            UsageError::NoRole => "a role is missing: init, primary or secondary".to_owned(),
            UsageError::UnknownRole(word) => {
                let meant = similar(word, ROLES.iter().map(|role| role.as_str()));
                let hint = if word.starts_with('-') { "; options come before the role" } else { "" };
                let meant = if hint.is_empty() { did_you_mean(meant) } else { hint.to_owned() };
                format!("unknown role {}: init, primary and secondary are roles{meant}", printable(word))
            }
            UsageError::NoName => "the name of a resource is missing".to_owned(),
            UsageError::Superfluous(word) if word.starts_with('-') => {
                format!("unexpected {}: options come before the first name", printable(word))
            }
            UsageError::Superfluous(word) => format!("unexpected {}", printable(word)),
        };
        format!("{}{program}: {wrong}\n", usage(program))
    }
}

const ROLES: [Role; 3] = [Role::Init, Role::Primary, Role::Secondary];

/// What `--help` prints: a line for each sub-command, then the options.
pub(crate) fn help(program: &str) -> String {
    let mut text = format!("usage: {program} command [options] [operands]\n\n");
    for Known { name, summary, .. } in &COMMANDS {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "  {name:<8} {summary}");
    }
    text.push('\n');
    text.push_str(&usage(program));
    let _ = writeln!(
        text,
        "{program} --help, {program} --version\nOptions come before operands. More is in hastctl(8)."
    );
    text
}

/// First the original's commands and options in the original's words, then ours.
fn usage(program: &str) -> String {
    format!(
        "usage: {program} create [-d] [-c config] [-e extentsize] [-k keepdirty]\n\
         \t\t[-m mediasize] name ...\n\
         \x20      {program} role [-d] [-c config] <init | primary | secondary> all | name ...\n\
         \x20      {program} list [-d] [-c config] [all | name ...]\n\
         \x20      {program} status [-d] [-c config] [all | name ...]\n\
         \x20      {program} dump [-d] [-c config] [all | name ...]\n\
         \x20      {program} stop [-d] [-c config]\n\
         \x20      {program} dump [-v] -f file | device\n\
         \x20      {program} compare [-d] [-c config] [all | name ...]\n\
         \x20      {program} discard [-d] [-c config] name ...\n\
         \x20      {program} reload [-d] [-c config]\n\
         every command: -N node (be this node); list, status, dump: -v (show more)\n\
         create: -a (align the data area), -f (write over what is there)\n\
         role: -f (make primary even if the data here is out of date), -n (only say what would happen)\n"
    )
}

/// An option letter as a message shows it.
struct Letter(u8);

impl fmt::Display for Letter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.escape_ascii().fmt(f)
    }
}
