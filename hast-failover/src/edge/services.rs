//! Services, by whatever starts them here: a program, rc(8), systemd or service(8). What they print goes nowhere.

use std::path::Path;
use std::time::Duration;

use crate::system::{Ran, Way};

use super::command::Runner;

/// Who starts a service.
enum By<'a> {
    /// The service is a program that does it itself.
    Itself(&'a str),
    Rc,
    Systemd,
    Service,
}

fn by<'a>(runner: &Runner, name: &'a str) -> By<'a> {
    if name.starts_with('/') {
        By::Itself(name)
    } else if cfg!(target_os = "freebsd") {
        By::Rc
    } else if Path::new("/run/systemd/system").is_dir() && runner.has("systemctl") {
        By::Systemd
    } else {
        By::Service
    }
}

/// Whether it runs, as far as anybody can say.
pub(super) fn runs(runner: &Runner, name: &str, limit: Duration) -> Option<bool> {
    let ran = match by(runner, name) {
        By::Rc => runner.run_silent("service", &[name, "onestatus"], limit),
        By::Systemd => runner.run_silent("systemctl", &["--quiet", "is-active", name], limit),
        By::Itself(_) | By::Service => return None,
    };
    match ran {
        Ran::Well => Some(true),
        // rc(8) calls it an error to stop what does not run.
        Ran::Badly(..) if cfg!(target_os = "freebsd") => Some(false),
        // A unit that is only being started, or has failed, is to be stopped too.
        _ => None,
    }
}

pub(super) fn does(runner: &Runner, name: &str, way: Way, limit: Duration) -> Ran {
    let verb = match way {
        Way::Up => "start",
        Way::Down => "stop",
    };
    match by(runner, name) {
        By::Itself(program) => runner.run_silent(program, &[verb], limit),
        By::Rc => runner.run_silent("service", &[name, &format!("one{verb}")], limit),
        By::Systemd => runner.run_silent("systemctl", &[verb, name], limit),
        By::Service => runner.run_silent("service", &[name, verb], limit),
    }
}
