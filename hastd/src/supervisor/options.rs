//! hastd's command line, read as getopt(3) reads it, and what it says about itself.

use std::ffi::OsString;
use std::path::PathBuf;

/// What is printed for `-h` and after a mistake: the reference's line, to the byte, then ours.
const USAGE: &str = "hastd: [-dFh] [-c config] [-P pidfile]\nextensions: [-t] [-N node] [--help] [--version]";

/// What `--help` prints.
const HELP: &str = "\
hastd keeps the same data on the disks of two nodes.

usage: hastd [-dFht] [-c config] [-N node] [-P pidfile]

  -c config   read this file instead of /etc/hast.conf
  -d          say more; each further -d adds a level
  -F          stay in the foreground, and log there
  -h          print a line about the options, status 64
  -N node     be this node of the configuration
  -P pidfile  write the process id there
  -t          check the configuration, say whether it is good, and exit
  --help      print this
  --version   print the version

Resources are handled with hastctl(8). More is in hastd(8) and hast.conf(5).";

/// Where the configuration is unless `-c` says otherwise.
const DEFAULT_CONFIG: &str = "/etc/hast.conf";

/// The command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Options {
    /// How often `-d` was given.
    pub(super) debug: u8,
    /// `-F`: stay in the foreground.
    pub(super) foreground: bool,
    /// `-c`
    pub(super) config: PathBuf,
    /// `-P`
    pub(super) pidfile: Option<PathBuf>,
    /// `-N`: be this node, whatever the host is called.
    pub(super) node: Option<String>,
    /// `-t`: only check the configuration.
    pub(super) check: bool,
}

/// Why there is no daemon to be started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Stop {
    /// For standard output: it was asked for.
    Asked(String),
    /// For standard error, with exit status 64.
    Mistake(String),
}

impl Options {
    /// Reads the arguments after the program's name.
    ///
    /// # Errors
    ///
    /// What to print instead of doing anything.
    pub(super) fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Options, Stop> {
        use lexopt::Arg;
        let mut options = Options {
            debug: 0,
            foreground: false,
            config: PathBuf::from(DEFAULT_CONFIG),
            pidfile: None,
            node: None,
            check: false,
        };
        let mut parser = lexopt::Parser::from_args(arguments);
        parser.set_short_equals(false);
        loop {
            // getopt(3) takes what follows a letter as its value whatever it looks like; so does this.
            let letter = match parser.next() {
                Ok(None) => return Ok(options),
                Ok(Some(Arg::Short(letter))) => letter,
                Ok(Some(Arg::Long("help"))) => return Err(Stop::Asked(HELP.to_owned())),
                Ok(Some(Arg::Long("version"))) => {
                    return Err(Stop::Asked(concat!("hastd ", env!("CARGO_PKG_VERSION")).to_owned()));
                }
                Ok(Some(Arg::Long(name))) => return Err(illegal(&format!("-{name}"))),
                Ok(Some(Arg::Value(value))) => {
                    return Err(Stop::Mistake(format!(
                        "hastd: unexpected argument -- {}\n{USAGE}",
                        value.to_string_lossy()
                    )));
                }
                Err(error) => return Err(Stop::Mistake(format!("hastd: {error}\n{USAGE}"))),
            };
            let mut value = || parser.value().map_err(|_| missing(letter));
            match letter {
                'd' => options.debug = options.debug.saturating_add(1),
                'F' => options.foreground = true,
                'c' => options.config = PathBuf::from(value()?),
                'P' => options.pidfile = Some(PathBuf::from(value()?)),
                'N' => options.node = Some(value()?.to_string_lossy().into_owned()),
                't' => options.check = true,
                'h' => return Err(Stop::Mistake(USAGE.to_owned())),
                other => return Err(illegal(&other.to_string())),
            }
        }
    }
}

fn illegal(option: &str) -> Stop {
    Stop::Mistake(format!("hastd: illegal option -- {option}\n{USAGE}"))
}

fn missing(letter: char) -> Stop {
    Stop::Mistake(format!("hastd: option requires an argument -- {letter}\n{USAGE}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(arguments: &[&str]) -> Result<Options, Stop> {
        Options::parse(arguments.iter().map(OsString::from))
    }

    #[test]
    fn defaults() {
        let options = parse(&[]).unwrap();
        assert_eq!((options.debug, options.foreground), (0, false));
        assert_eq!(options.config, PathBuf::from("/etc/hast.conf"));
        assert_eq!((options.pidfile, options.node), (None, None));
    }

    #[test]
    fn letters_cluster_and_values_may_be_attached() {
        let options = parse(&["-ddF", "-d", "-c/tmp/x", "-P", "run.pid", "-Na"]).unwrap();
        assert_eq!((options.debug, options.foreground), (3, true));
        assert_eq!(options.config, PathBuf::from("/tmp/x"));
        assert_eq!(options.pidfile, Some(PathBuf::from("run.pid")));
        assert_eq!(options.node.as_deref(), Some("a"));
    }

    #[test]
    fn a_value_may_look_like_an_option_or_hold_an_equals_sign() {
        assert_eq!(parse(&["-c", "-F"]).unwrap().config, PathBuf::from("-F"));
        assert_eq!(parse(&["-c=x"]).unwrap().config, PathBuf::from("=x"));
    }

    #[test]
    fn mistakes_show_the_usage() {
        let Stop::Mistake(usage) = parse(&["-h"]).unwrap_err() else { panic!() };
        assert_eq!(usage.lines().next(), Some("hastd: [-dFh] [-c config] [-P pidfile]"));
        assert!(usage.contains("[-N node]") && usage.contains("[-t]"), "{usage}");
        for (arguments, first) in [
            (vec!["-x"], "hastd: illegal option -- x"),
            (vec!["--foreground"], "hastd: illegal option -- -foreground"),
            (vec!["-F", "-c"], "hastd: option requires an argument -- c"),
            (vec!["start"], "hastd: unexpected argument -- start"),
        ] {
            let Stop::Mistake(text) = parse(&arguments).unwrap_err() else { panic!() };
            assert_eq!(text.lines().next(), Some(first));
            assert!(text.ends_with(USAGE), "{text}");
        }
    }

    #[test]
    fn what_was_asked_for_is_no_mistake() {
        for (arguments, part) in [(["-d", "--help"], "-t  "), (["-F", "--version"], "hastd 0.")] {
            let Stop::Asked(text) = parse(&arguments).unwrap_err() else { panic!() };
            assert!(text.contains(part), "{text}");
        }
        assert!(parse(&["-t"]).unwrap().check && !parse(&[]).unwrap().check);
        // As a value it is a value.
        assert_eq!(parse(&["-c", "--help"]).unwrap().config, PathBuf::from("--help"));
    }
}
