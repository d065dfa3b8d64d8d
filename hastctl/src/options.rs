//! The command line: a sub-command, then options as getopt(3) takes them, then operands.
//!
//! Decides what is asked for and nothing else; whether names exist or sizes fit is seen later.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

use hast_format::metadata::Role;

use crate::size;

/// Where the configuration is unless `-c` says otherwise.
const DEFAULT_CONFIG: &str = "/etc/hast.conf";

/// Everything that the command line says.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Invocation {
    /// How often `-d` was given.
    pub(crate) debug: u8,
    pub(crate) config: PathBuf,
    /// Be this node instead of asking the host (`-N`).
    pub(crate) node: Option<String>,
    pub(crate) command: Command,
}

/// What is to be done. Sizes are in bytes, 0 where none was given; `force` makes even a node primary whose data
/// is known to be out of date, `dry` changes nothing and says what would happen.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Command {
    Create { names: Vec<String>, extentsize: u64, keepdirty: u64, mediasize: u64 },
    Role { role: Role, force: bool, dry: bool, names: Vec<String> },
    List { names: Vec<String>, verbose: bool },
    Status { names: Vec<String>, verbose: bool },
    Dump { what: Dumped, map: bool },
    Compare { names: Vec<String> },
    Discard { names: Vec<String> },
    Stop,
}

/// Whose metadata `dump` shows.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Dumped {
    /// Of these resources; none stands for all.
    Resources(Vec<String>),
    /// Of this file or device.
    File(PathBuf),
}

impl Invocation {
    /// Reads the arguments after the program's name.
    pub(crate) fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Invocation, UsageError> {
        let mut arguments = arguments.into_iter();
        let word = arguments.next().ok_or(UsageError::Usage)?;
        let (kind, letters) = match word.to_str() {
            Some("create") => (Kind::Create, "c:dhN:e:k:m:"),
            Some("role") => (Kind::Role, "c:dhN:fn"),
            Some("list") => (Kind::List, "c:dhN:v"),
            Some("status") => (Kind::Status, "c:dhN:v"),
            Some("dump") => (Kind::Dump, "c:dhN:f:v"),
            Some("compare") => (Kind::Compare, "c:dhN:"),
            Some("discard") => (Kind::Discard, "c:dhN:"),
            Some("stop") => (Kind::Stop, "c:dhN:"),
            _ => return Err(UsageError::Usage),
        };

        let mut options = Options::new(arguments.collect(), letters);
        let (mut debug, mut config, mut node) = (0_u8, PathBuf::from(DEFAULT_CONFIG), None);
        let (mut extentsize, mut keepdirty, mut mediasize) = (0, 0, 0);
        let (mut file, mut verbose, mut force, mut dry) = (None, false, false, false);
        while let Some(option) = options.next()? {
            match option.letter {
                b'd' => debug = debug.saturating_add(1),
                b'c' => config = PathBuf::from(option.value),
                b'N' => node = Some(option.value.to_string_lossy().into_owned()),
                b'e' => extentsize = size_of(&option.value, "extentsize")?,
                b'k' => keepdirty = size_of(&option.value, "keepdirty")?,
                b'm' => mediasize = size_of(&option.value, "mediasize")?,
                b'f' if matches!(kind, Kind::Role) => force = true,
                b'f' => file = Some(PathBuf::from(option.value)),
                b'n' => dry = true,
                b'v' => verbose = true,
                _ => return Err(UsageError::Usage),
            }
        }

        let mut names: Vec<String> =
            options.operands().map(|operand| operand.to_string_lossy().into_owned()).collect();
        let command = match kind {
            Kind::Create if names.is_empty() => return Err(UsageError::Usage),
            Kind::Create => Command::Create { names, extentsize, keepdirty, mediasize },
            Kind::Role => {
                let role = names.first().and_then(|word| Role::parse(word)).ok_or(UsageError::Usage)?;
                names.remove(0);
                if names.is_empty() {
                    return Err(UsageError::Usage);
                }
                Command::Role { role, force, dry, names }
            }
            Kind::List => Command::List { names: or_all(names), verbose },
            Kind::Status => Command::Status { names: or_all(names), verbose },
            Kind::Dump => match file {
                Some(_) if !names.is_empty() => return Err(UsageError::Usage),
                Some(file) => Command::Dump { what: Dumped::File(file), map: verbose },
                None => {
                    if names == ["all"] {
                        names.clear();
                    }
                    Command::Dump { what: Dumped::Resources(names), map: verbose }
                }
            },
            Kind::Compare => Command::Compare { names: or_all(names) },
            Kind::Discard if names.is_empty() => return Err(UsageError::Usage),
            Kind::Discard => Command::Discard { names },
            Kind::Stop if !names.is_empty() => return Err(UsageError::Usage),
            Kind::Stop => Command::Stop,
        };
        Ok(Invocation { debug, config, node, command })
    }
}

#[derive(Clone, Copy)]
enum Kind {
    Create,
    Role,
    List,
    Status,
    Dump,
    Compare,
    Discard,
    Stop,
}

/// A command line that asks for nothing that we know.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum UsageError {
    /// Show how it is done.
    Usage,
    /// An option that the sub-command does not have.
    IllegalOption(u8),
    /// An option without the value that it needs.
    MissingValue(u8),
    /// A size that is none; the name of what it is for.
    InvalidSize(&'static str),
}

impl UsageError {
    /// What goes to standard error, in full. `program` is the name that we were called by.
    pub(crate) fn text(&self, program: &str) -> String {
        match self {
            UsageError::Usage => usage(program),
            UsageError::IllegalOption(letter) => {
                format!("{program}: illegal option -- {}\n{}", Letter(*letter), usage(program))
            }
            UsageError::MissingValue(letter) => {
                format!("{program}: option requires an argument -- {}\n{}", Letter(*letter), usage(program))
            }
            UsageError::InvalidSize(what) => format!("{program}: Invalid {what}\n"),
        }
    }
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
         every command: -N node (be this node); list, status, dump: -v (show more)\n\
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

fn size_of(value: &OsStr, what: &'static str) -> Result<u64, UsageError> {
    value.to_str().and_then(size::parse).ok_or(UsageError::InvalidSize(what))
}

fn or_all(names: Vec<String>) -> Vec<String> {
    if names.is_empty() { vec!["all".to_owned()] } else { names }
}

/// getopt(3): single letters, several in one argument, values attached or in the next argument, an end at
/// the first operand or at `--`.
struct Options {
    arguments: std::vec::IntoIter<OsString>,
    /// Letters, each followed by `:` if it takes a value.
    letters: &'static [u8],
    /// What is left of the argument that is being read.
    cluster: Vec<u8>,
    /// The argument that ended the options, if it was an operand.
    operand: Option<OsString>,
    done: bool,
}

struct Opt {
    letter: u8,
    /// Empty for an option that takes none.
    value: OsString,
}

impl Options {
    fn new(arguments: Vec<OsString>, letters: &'static str) -> Options {
        let letters = letters.as_bytes();
        Options { arguments: arguments.into_iter(), letters, cluster: Vec::new(), operand: None, done: false }
    }

    fn next(&mut self) -> Result<Option<Opt>, UsageError> {
        if self.cluster.is_empty() && !self.begin_cluster() {
            return Ok(None);
        }
        let letter = self.cluster.remove(0);
        let Some(at) = self.letters.iter().position(|known| *known == letter && letter != b':') else {
            return Err(UsageError::IllegalOption(letter));
        };
        if self.letters.get(at.saturating_add(1)) != Some(&b':') {
            return Ok(Some(Opt { letter, value: OsString::new() }));
        }
        let attached = std::mem::take(&mut self.cluster);
        let value = if attached.is_empty() {
            self.arguments.next().ok_or(UsageError::MissingValue(letter))?
        } else {
            OsString::from_vec(attached)
        };
        Ok(Some(Opt { letter, value }))
    }

    /// Goes to the next argument; false if that holds no options.
    fn begin_cluster(&mut self) -> bool {
        if self.done {
            return false;
        }
        match self.arguments.next() {
            Some(argument) if argument.as_bytes() == b"--" => self.done = true,
            Some(argument) => match argument.as_bytes() {
                [b'-', letters @ ..] if !letters.is_empty() => self.cluster = letters.to_vec(),
                _ => {
                    self.operand = Some(argument);
                    self.done = true;
                }
            },
            None => self.done = true,
        }
        !self.done
    }

    fn operands(self) -> impl Iterator<Item = OsString> {
        self.operand.into_iter().chain(self.arguments)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &[&str]) -> Result<Invocation, UsageError> {
        Invocation::parse(line.iter().map(OsString::from))
    }

    fn names(words: &[&str]) -> Vec<String> {
        words.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn options_are_taken_as_getopt_does() {
        let expected = Invocation {
            debug: 3,
            config: PathBuf::from("x.conf"),
            node: Some("a".to_owned()),
            command: Command::Create {
                names: names(&["disk0", "-d"]),
                extentsize: 4 << 20,
                keepdirty: 16,
                mediasize: 1 << 30,
            },
        };
        for line in [
            &[
                "create", "-dd", "-d", "-c", "x.conf", "-N", "a", "-e4m", "-k", "16", "-m", "1g", "disk0",
                "-d",
            ][..],
            &["create", "-dddcx.conf", "-Na", "-e", "4m", "-k16", "-m1g", "--", "disk0", "-d"],
        ] {
            assert_eq!(parse(line).as_ref(), Ok(&expected), "{line:?}");
        }
        // A value begins right behind the letter, whatever it is.
        assert_eq!(parse(&["list", "-c=x"]).unwrap().config, PathBuf::from("=x"));
        assert_eq!(parse(&["list", "-c", "-d"]).unwrap().config, PathBuf::from("-d"));
        // A lone dash is an operand.
        assert_eq!(
            parse(&["list", "-"]).unwrap().command,
            Command::List { names: names(&["-"]), verbose: false }
        );
    }

    #[test]
    fn defaults() {
        let invocation = parse(&["status"]).unwrap();
        assert_eq!(
            invocation,
            Invocation {
                debug: 0,
                config: PathBuf::from("/etc/hast.conf"),
                node: None,
                command: Command::Status { names: names(&["all"]), verbose: false },
            }
        );
    }

    #[test]
    fn dump_knows_what_to_show() {
        let dump = |line: &[&str]| parse(line).map(|invocation| invocation.command);
        let all = Command::Dump { what: Dumped::Resources(Vec::new()), map: false };
        assert_eq!(dump(&["dump"]), Ok(all));
        assert_eq!(
            dump(&["dump", "-v", "all"]),
            Ok(Command::Dump { what: Dumped::Resources(Vec::new()), map: true })
        );
        assert_eq!(
            dump(&["dump", "a", "all"]),
            Ok(Command::Dump { what: Dumped::Resources(names(&["a", "all"])), map: false })
        );
        assert_eq!(
            dump(&["dump", "-vf/dev/x"]),
            Ok(Command::Dump { what: Dumped::File(PathBuf::from("/dev/x")), map: true })
        );
        assert_eq!(dump(&["dump", "-f", "/dev/x", "a"]), Err(UsageError::Usage));
    }

    #[test]
    fn what_is_new_has_options_of_its_own() {
        let command = |line: &[&str]| parse(line).unwrap().command;
        for force in [false, true] {
            let line = if force { &["role", "-df", "primary", "a"][..] } else { &["role", "primary", "a"] };
            let expected = Command::Role { role: Role::Primary, force, dry: false, names: names(&["a"]) };
            assert_eq!(command(line), expected);
        }
        // Options end where operands begin.
        let late = Command::Role { role: Role::Init, force: false, dry: false, names: names(&["-f", "a"]) };
        assert_eq!(command(&["role", "init", "-f", "a"]), late);
        let dry = Command::Role { role: Role::Secondary, force: false, dry: true, names: names(&["a"]) };
        assert_eq!(command(&["role", "-n", "secondary", "a"]), dry);
        let all = names(&["all"]);
        assert_eq!(command(&["list", "-v"]), Command::List { names: all.clone(), verbose: true });
        assert_eq!(command(&["compare"]), Command::Compare { names: all.clone() });
        assert_eq!(command(&["discard", "all"]), Command::Discard { names: all.clone() });
        assert_eq!(command(&["status", "-v"]), Command::Status { names: all, verbose: true });
    }

    #[test]
    fn what_is_no_command_line() {
        let table: &[(&[&str], UsageError)] = &[
            (&[], UsageError::Usage),
            (&["-d", "list"], UsageError::Usage),
            (&["Create", "a"], UsageError::Usage),
            (&["create"], UsageError::Usage),
            (&["create", "-h", "a"], UsageError::Usage),
            (&["create", "-v", "a"], UsageError::IllegalOption(b'v')),
            (&["create", "-:", "a"], UsageError::IllegalOption(b':')),
            (&["create", "--help"], UsageError::IllegalOption(b'-')),
            (&["create", "-e", "4x", "-z"], UsageError::InvalidSize("extentsize")),
            (&["create", "-k", ""], UsageError::InvalidSize("keepdirty")),
            (&["create", "-m8e", "a"], UsageError::InvalidSize("mediasize")),
            (&["create", "-m"], UsageError::MissingValue(b'm')),
            (&["role"], UsageError::Usage),
            (&["role", "primary"], UsageError::Usage),
            (&["role", "Primary", "a"], UsageError::Usage),
            (&["role", "a", "primary"], UsageError::Usage),
            (&["list", "-e", "4m"], UsageError::IllegalOption(b'e')),
            (&["list", "-c"], UsageError::MissingValue(b'c')),
            (&["list", "-f"], UsageError::IllegalOption(b'f')),
            (&["role", "-v", "init", "a"], UsageError::IllegalOption(b'v')),
            (&["status", "-n"], UsageError::IllegalOption(b'n')),
            (&["stop", "all"], UsageError::Usage),
            (&["discard"], UsageError::Usage),
            (&["discard", "-f", "a"], UsageError::IllegalOption(b'f')),
            (&["compare", "-v"], UsageError::IllegalOption(b'v')),
        ];
        for (line, error) in table {
            assert_eq!(parse(line).as_ref(), Err(error), "{line:?}");
        }
    }
}
