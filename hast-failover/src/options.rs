//! The command line. Options come before the command, as getopt(3) has it.

use std::ffi::OsString;
use std::path::PathBuf;

use lexopt::{Arg, Parser, ValueExt};

use crate::run::{Manner, Role};

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Command {
    Role(Role),
    Status,
    Check,
    Fifo,
    Time,
}

/// A command line that makes sense.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Options {
    pub(crate) command: Command,
    pub(crate) manner: Manner,
    pub(crate) background: bool,
    pub(crate) quiet: bool,
    /// The names are resources.
    pub(crate) bare: bool,
    pub(crate) config: Option<PathBuf>,
    /// An address of carp(4), `vhid@interface`.
    pub(crate) address: Option<String>,
    /// Groups or resources, or the path of a FIFO.
    pub(crate) names: Vec<String>,
}

/// What to say about one that does not.
pub(crate) fn usage(default_config: &str) -> String {
    format!(
        "usage: hast-failover [-abfqr] [-c config] [-v vhid@interface] primary | secondary | init [group ...]
       hast-failover [-c config] status | check [group ...]
       hast-failover [-q] [-c config] fifo path
       hast-failover time

-a  abandon: the other node takes over anyway, so write nothing more (secondary, init)
-b  return at once and work in the background
-c  read this file instead of {default_config}
-f  become primary even with data that is known to be out of date; with secondary: what made a promotion fail is mended
-q  nothing on standard error: syslog and the file that 'log' names are enough
-r  the names are resources: handle role and device only
-v  the groups whose 'carp' names this address of carp(4), or all groups if none has a 'carp'
"
    )
}

impl Options {
    /// Understands a command line, without the program's name.
    ///
    /// # Errors
    ///
    /// There is nothing in it that could be done; [`usage`] says what could.
    pub(crate) fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Options, ()> {
        let mut options = Options {
            command: Command::Status,
            manner: Manner::default(),
            background: false,
            quiet: false,
            bare: false,
            config: None,
            address: None,
            names: Vec::new(),
        };
        let mut parser = Parser::from_args(arguments);
        loop {
            match parser.next().map_err(drop)?.ok_or(())? {
                Arg::Short('a') => options.manner.abandon = true,
                Arg::Short('b') => options.background = true,
                Arg::Short('c') => options.config = Some(PathBuf::from(parser.value().map_err(drop)?)),
                Arg::Short('f') => options.manner.force = true,
                Arg::Short('q') => options.quiet = true,
                Arg::Short('r') => options.bare = true,
                Arg::Short('v') => {
                    options.address = Some(parser.value().map_err(drop)?.string().map_err(drop)?)
                }
                Arg::Value(word) => {
                    options.command = command(&word.string().map_err(drop)?)?;
                    break;
                }
                _ => return Err(()),
            }
        }
        for name in parser.raw_args().map_err(drop)? {
            options.names.push(name.string().map_err(drop)?);
        }
        let good = match options.command {
            Command::Fifo => options.names.len() == 1 && !options.bare,
            Command::Time => options.names.is_empty(),
            Command::Role(_) | Command::Status | Command::Check => {
                !options.bare
                    || (!options.names.is_empty() && options.names.iter().all(|name| is_resource(name)))
            }
        };
        if good { Ok(options) } else { Err(()) }
    }
}

fn command(word: &str) -> Result<Command, ()> {
    Ok(match word {
        "primary" => Command::Role(Role::Primary),
        "secondary" => Command::Role(Role::Secondary),
        "init" => Command::Role(Role::Init),
        "status" => Command::Status,
        "check" => Command::Check,
        "fifo" => Command::Fifo,
        "time" => Command::Time,
        _ => return Err(()),
    })
}

/// Something that can be given to hastctl as a name.
fn is_resource(name: &str) -> bool {
    !name.is_empty() && !name.starts_with('-') && !name.contains(char::is_control) && !name.contains("..")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Options, ()> {
        Options::parse(line.split_whitespace().map(OsString::from))
    }

    #[test]
    fn options_come_first() {
        let options = parse("-abq -c /x -f -v 1@em0 primary one two").unwrap();
        assert!(options.manner.abandon && options.manner.force && options.background && options.quiet);
        assert_eq!(options.config, Some("/x".into()));
        assert_eq!(
            (options.address.as_deref(), options.command),
            (Some("1@em0"), Command::Role(Role::Primary))
        );
        assert_eq!(options.names, ["one", "two"]);
        assert_eq!(parse("status -a").unwrap().names, ["-a"]);
        assert_eq!(parse("-c/x -- init").unwrap().config, Some("/x".into()));
        assert_eq!(parse("fifo /run/x").unwrap().names, ["/run/x"]);
    }

    #[test]
    fn what_cannot_be_done_is_a_wrong_usage() {
        for line in [
            "",
            "-a",
            "promote",
            "-x primary",
            "--help",
            "-c",
            "-r primary",
            "-r primary -f",
            "-r status ../x",
            "fifo",
            "fifo a b",
            "time x",
            "-L 1.1 primary x",
            "-a=yes primary",
        ] {
            assert!(parse(line).is_err(), "{line}");
        }
    }
}
