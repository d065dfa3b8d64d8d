//! hastd's command line, read as getopt(3) reads it.

use std::ffi::OsString;
use std::path::PathBuf;

/// What is printed for `-h` and after a mistake. The reference's line, to the byte: `-N` is ours and is in the
/// manual page.
const USAGE: &str = "hastd: [-dFh] [-c config] [-P pidfile]";

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
}

impl Options {
    /// Reads the arguments after the program's name.
    ///
    /// # Errors
    ///
    /// What to print on standard error before exiting with status 64.
    pub(super) fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Options, String> {
        use lexopt::Arg;
        let mut options = Options {
            debug: 0,
            foreground: false,
            config: PathBuf::from(DEFAULT_CONFIG),
            pidfile: None,
            node: None,
        };
        let mut parser = lexopt::Parser::from_args(arguments);
        parser.set_short_equals(false);
        loop {
            // getopt(3) takes what follows a letter as its value whatever it looks like; so does this.
            let letter = match parser.next() {
                Ok(None) => return Ok(options),
                Ok(Some(Arg::Short(letter))) => letter,
                Ok(Some(Arg::Long(name))) => return Err(illegal(&format!("-{name}"))),
                Ok(Some(Arg::Value(value))) => {
                    return Err(format!(
                        "hastd: unexpected argument -- {}\n{USAGE}",
                        value.to_string_lossy()
                    ));
                }
                Err(error) => return Err(format!("hastd: {error}\n{USAGE}")),
            };
            let mut value = || parser.value().map_err(|_| missing(letter));
            match letter {
                'd' => options.debug = options.debug.saturating_add(1),
                'F' => options.foreground = true,
                'c' => options.config = PathBuf::from(value()?),
                'P' => options.pidfile = Some(PathBuf::from(value()?)),
                'N' => options.node = Some(value()?.to_string_lossy().into_owned()),
                'h' => return Err(USAGE.to_owned()),
                other => return Err(illegal(&other.to_string())),
            }
        }
    }
}

fn illegal(option: &str) -> String {
    format!("hastd: illegal option -- {option}\n{USAGE}")
}

fn missing(letter: char) -> String {
    format!("hastd: option requires an argument -- {letter}\n{USAGE}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(arguments: &[&str]) -> Result<Options, String> {
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
        assert_eq!(parse(&["-h"]).unwrap_err(), "hastd: [-dFh] [-c config] [-P pidfile]");
        for (arguments, first) in [
            (vec!["-x"], "hastd: illegal option -- x"),
            (vec!["--foreground"], "hastd: illegal option -- -foreground"),
            (vec!["-F", "-c"], "hastd: option requires an argument -- c"),
            (vec!["start"], "hastd: unexpected argument -- start"),
        ] {
            let text = parse(&arguments).unwrap_err();
            assert_eq!(text.lines().next(), Some(first));
            assert_eq!(text.lines().last(), Some(USAGE));
        }
    }
}
