//! The command line: a sub-command, then options as getopt(3) takes them, then operands.
//!
//! Decides what is asked for and nothing else; whether names exist or sizes fit is seen later.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

use hast_format::metadata::Role;

use crate::size;
use crate::usage::UsageError;

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

/// What is to be done. Sizes are in bytes, 0 where none was given. `force` writes over what a provider holds, or makes
/// even a node primary whose data is known to be out of date; `align` asks for a data area on a boundary; `dry` changes
/// nothing and says what would happen.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Command {
    Create {
        names: Vec<String>,
        extentsize: u64,
        keepdirty: u64,
        mediasize: u64,
        align: bool,
        force: bool,
    },
    Role {
        role: Role,
        force: bool,
        dry: bool,
        names: Vec<String>,
    },
    List {
        names: Vec<String>,
        verbose: bool,
    },
    Status {
        names: Vec<String>,
        verbose: bool,
    },
    Dump {
        what: Dumped,
        map: bool,
    },
    Compare {
        names: Vec<String>,
    },
    Discard {
        names: Vec<String>,
    },
    Reload,
    Stop,
    /// `--help`
    Help,
    /// `--version`
    Version,
}

/// Whose metadata `dump` shows.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Dumped {
    /// Of these resources; none stands for all.
    Resources(Vec<String>),
    /// Of this file or device.
    File(PathBuf),
}

impl Command {
    /// The words that stand where names of resources stand.
    pub(crate) fn names(&self) -> &[String] {
        match self {
            Command::Create { names, .. }
            | Command::Role { names, .. }
            | Command::List { names, .. }
            | Command::Status { names, .. }
            | Command::Dump { what: Dumped::Resources(names), .. }
            | Command::Compare { names }
            | Command::Discard { names } => names,
            Command::Dump { .. } | Command::Reload | Command::Stop | Command::Help | Command::Version => &[],
        }
    }
}

impl Invocation {
    /// Reads the arguments after the program's name.
    pub(crate) fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Invocation, UsageError> {
        let mut arguments = arguments.into_iter();
        let word = arguments.next().ok_or(UsageError::Usage)?;
        let (kind, letters) = match word.to_str() {
            Some("--help") => return Ok(Invocation::alone(Command::Help)),
            Some("--version") => return Ok(Invocation::alone(Command::Version)),
            Some("-h") => return Err(UsageError::Usage),
            name => match COMMANDS.iter().find(|command| name == Some(command.name)) {
                Some(command) => (command.kind, command.letters),
                None => return Err(UsageError::UnknownCommand(word.to_string_lossy().into_owned())),
            },
        };

        let mut options = Options::new(arguments.collect(), letters);
        let mut given = Given { config: PathBuf::from(DEFAULT_CONFIG), ..Given::default() };
        while let Some(option) = options.next()? {
            match option.letter {
                HELP => return Ok(Invocation::alone(Command::Help)),
                VERSION => return Ok(Invocation::alone(Command::Version)),
                b'd' => given.debug = given.debug.saturating_add(1),
                b'c' => given.config = PathBuf::from(option.value),
                b'N' => given.node = Some(option.value.to_string_lossy().into_owned()),
                b'e' => given.extentsize = size_of(&option.value, "extentsize")?,
                b'k' => given.keepdirty = size_of(&option.value, "keepdirty")?,
                b'm' => given.mediasize = size_of(&option.value, "mediasize")?,
                b'f' if matches!(kind, Kind::Dump) => given.file = Some(PathBuf::from(option.value)),
                b'f' => given.force = true,
                b'n' => given.dry = true,
                b'a' => given.align = true,
                b'v' => given.verbose = true,
                _ => return Err(UsageError::Usage),
            }
        }
        let names = options.operands().map(|operand| operand.to_string_lossy().into_owned()).collect();
        let (debug, config, node) = (given.debug, given.config.clone(), given.node.clone());
        Ok(Invocation { debug, config, node, command: given.command(kind, names)? })
    }

    /// What needs no other word.
    fn alone(command: Command) -> Invocation {
        Invocation { debug: 0, config: PathBuf::from(DEFAULT_CONFIG), node: None, command }
    }
}

/// What the options of all sub-commands say.
#[derive(Default)]
struct Given {
    debug: u8,
    config: PathBuf,
    node: Option<String>,
    extentsize: u64,
    keepdirty: u64,
    mediasize: u64,
    file: Option<PathBuf>,
    verbose: bool,
    force: bool,
    dry: bool,
    align: bool,
}

impl Given {
    /// With the operands, what is to be done.
    fn command(self, kind: Kind, mut names: Vec<String>) -> Result<Command, UsageError> {
        let Given { extentsize, keepdirty, mediasize, verbose, force, dry, align, .. } = self;
        Ok(match kind {
            Kind::Create | Kind::Discard if names.is_empty() => return Err(UsageError::NoName),
            Kind::Create => Command::Create { names, extentsize, keepdirty, mediasize, align, force },
            Kind::Role => {
                let word = names.first().ok_or(UsageError::NoRole)?;
                let role = Role::parse(word).ok_or_else(|| UsageError::UnknownRole(word.clone()))?;
                names.remove(0);
                if names.is_empty() {
                    return Err(UsageError::NoName);
                }
                Command::Role { role, force, dry, names }
            }
            Kind::List => Command::List { names: or_all(names), verbose },
            Kind::Status => Command::Status { names: or_all(names), verbose },
            Kind::Dump => match self.file {
                Some(_) if !names.is_empty() => return Err(UsageError::Superfluous(names.swap_remove(0))),
                Some(file) => Command::Dump { what: Dumped::File(file), map: verbose },
                None => {
                    if names == ["all"] {
                        names.clear();
                    }
                    Command::Dump { what: Dumped::Resources(names), map: verbose }
                }
            },
            Kind::Compare => Command::Compare { names: or_all(names) },
            Kind::Discard => Command::Discard { names },
            Kind::Reload | Kind::Stop if !names.is_empty() => {
                return Err(UsageError::Superfluous(names.swap_remove(0)));
            }
            Kind::Reload => Command::Reload,
            Kind::Stop => Command::Stop,
        })
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
    Reload,
    Stop,
}

/// A sub-command.
pub(crate) struct Known {
    pub(crate) name: &'static str,
    kind: Kind,
    /// Its options, as [`Options`] takes them.
    letters: &'static str,
    /// What `--help` says of it.
    pub(crate) summary: &'static str,
}

pub(crate) const COMMANDS: [Known; 9] = [
    Known {
        name: "create",
        kind: Kind::Create,
        letters: "c:dhN:ae:fk:m:",
        summary: "make the local provider of a resource ready for use",
    },
    Known {
        name: "role",
        kind: Kind::Role,
        letters: "c:dhN:fn",
        summary: "change the role of resources: init, primary or secondary",
    },
    Known {
        name: "list",
        kind: Kind::List,
        letters: "c:dhN:v",
        summary: "show everything that hastd knows of resources",
    },
    Known {
        name: "status",
        kind: Kind::Status,
        letters: "c:dhN:v",
        summary: "show a line for each resource",
    },
    Known {
        name: "dump",
        kind: Kind::Dump,
        letters: "c:dhN:f:v",
        summary: "show the metadata on local providers; needs no hastd",
    },
    Known {
        name: "compare",
        kind: Kind::Compare,
        letters: "c:dhN:",
        summary: "tell how far the two copies are apart",
    },
    Known {
        name: "discard",
        kind: Kind::Discard,
        letters: "c:dhN:",
        summary: "give up what was written here, after a split-brain",
    },
    Known {
        name: "reload",
        kind: Kind::Reload,
        letters: "c:dhN:",
        summary: "let hastd read its configuration again; say what has changed",
    },
    Known { name: "stop", kind: Kind::Stop, letters: "c:dhN:", summary: "end hastd, and wait for its end" },
];

/// Stands for the long option in place of a letter.
const HELP: u8 = 0;
const VERSION: u8 = 1;

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
        if letter == HELP || letter == VERSION {
            return Ok(Some(Opt { letter, value: OsString::new() }));
        }
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
            Some(argument) if argument.as_bytes() == b"--help" => self.cluster = vec![HELP],
            Some(argument) if argument.as_bytes() == b"--version" => self.cluster = vec![VERSION],
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
                align: false,
                force: false,
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
        assert_eq!(dump(&["dump", "-f", "/dev/x", "a"]), Err(UsageError::Superfluous("a".to_owned())));
    }

    #[test]
    fn what_is_new_has_options_of_its_own() {
        let command = |line: &[&str]| parse(line).unwrap().command;
        let create = |line: &[&str]| match command(line) {
            Command::Create { align, force, .. } => (align, force),
            other => panic!("{other:?}"),
        };
        assert_eq!(create(&["create", "a"]), (false, false));
        assert_eq!(create(&["create", "-f", "a"]), (false, true));
        assert_eq!(create(&["create", "-ad", "a"]), (true, false));
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
    fn help_and_version_need_nothing_else() {
        let command = |line: &[&str]| parse(line).map(|invocation| invocation.command);
        assert_eq!(command(&["--help"]), Ok(Command::Help));
        assert_eq!(command(&["--version"]), Ok(Command::Version));
        assert_eq!(command(&["role", "-d", "--help"]), Ok(Command::Help));
        // A value is a value, and an operand an operand.
        assert_eq!(parse(&["list", "-c", "--help"]).unwrap().config, PathBuf::from("--help"));
        assert_eq!(parse(&["list", "a", "--help"]).unwrap().command.names(), names(&["a", "--help"]));
        assert_eq!(command(&["list", "--helpful"]), Err(UsageError::IllegalOption(b'-')));
    }

    #[test]
    fn what_is_wrong_is_said_behind_the_usage() {
        let last = |line: &[&str]| {
            let text = parse(line).unwrap_err().text("hastctl");
            assert!(text.starts_with("usage: hastctl create "), "{text}");
            text.lines().last().unwrap_or_default().to_owned()
        };
        assert_eq!(last(&["staus"]), "hastctl: unknown command staus; did you mean status?");
        assert_eq!(last(&["frobnicate"]), "hastctl: unknown command frobnicate");
        assert_eq!(
            last(&["role", "primry", "a"]),
            "hastctl: unknown role primry: init, primary and secondary are roles; did you mean primary?"
        );
        assert_eq!(last(&["role"]), "hastctl: a role is missing: init, primary or secondary");
        assert_eq!(last(&["role", "primary"]), "hastctl: the name of a resource is missing");
        assert_eq!(last(&["create"]), "hastctl: the name of a resource is missing");
        assert_eq!(last(&["stop", "now"]), "hastctl: unexpected now");
        assert_eq!(last(&["dump", "-f", "x", "a", "-v"]), "hastctl: unexpected a");
    }

    #[test]
    fn what_is_no_command_line() {
        let table: &[(&[&str], UsageError)] = &[
            (&[], UsageError::Usage),
            (&["-d", "list"], UsageError::UnknownCommand("-d".to_owned())),
            (&["Create", "a"], UsageError::UnknownCommand("Create".to_owned())),
            (&["create"], UsageError::NoName),
            (&["create", "-h", "a"], UsageError::Usage),
            (&["create", "-v", "a"], UsageError::IllegalOption(b'v')),
            (&["create", "-:", "a"], UsageError::IllegalOption(b':')),
            (&["create", "--force"], UsageError::IllegalOption(b'-')),
            (&["create", "-e", "4x", "-z"], UsageError::InvalidSize("extentsize")),
            (&["create", "-k", ""], UsageError::InvalidSize("keepdirty")),
            (&["create", "-m8e", "a"], UsageError::InvalidSize("mediasize")),
            (&["create", "-m"], UsageError::MissingValue(b'm')),
            (&["role"], UsageError::NoRole),
            (&["role", "primary"], UsageError::NoName),
            (&["role", "Primary", "a"], UsageError::UnknownRole("Primary".to_owned())),
            (&["role", "a", "primary"], UsageError::UnknownRole("a".to_owned())),
            (&["list", "-e", "4m"], UsageError::IllegalOption(b'e')),
            (&["list", "-c"], UsageError::MissingValue(b'c')),
            (&["list", "-f"], UsageError::IllegalOption(b'f')),
            (&["role", "-v", "init", "a"], UsageError::IllegalOption(b'v')),
            (&["status", "-n"], UsageError::IllegalOption(b'n')),
            (&["stop", "all"], UsageError::Superfluous("all".to_owned())),
            (&["reload", "all"], UsageError::Superfluous("all".to_owned())),
            (&["discard"], UsageError::NoName),
            (&["discard", "-f", "a"], UsageError::IllegalOption(b'f')),
            (&["compare", "-v"], UsageError::IllegalOption(b'v')),
        ];
        for (line, error) in table {
            assert_eq!(parse(line).as_ref(), Err(error), "{line:?}");
        }
    }
}
