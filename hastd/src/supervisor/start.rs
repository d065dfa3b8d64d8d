//! From the command line to a running supervisor: what can fail fails before the daemon goes into the
//! background, with the exit statuses of the original.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use hast_conf::{Config, Node};
use hast_net::address::Address;
use hast_net::frame::VERSION;
use nix::unistd::{User, geteuid};
use polling::Poller;

use super::Supervisor;
use super::absent::Absent;
use super::daemon;
use super::hooks::Hooks;
use super::jobs::Jobs;
use super::listen::PeerListener;
use super::listener::{ListenError, Listener};
use super::options::Options;
use super::pidfile::{Pidfile, PidfileError};
use super::process::Workers;
use super::signals::Signals;
use crate::exit;
use crate::watch::Watched;

/// Bytes that the path of a pidfile may have, as in the configuration.
const PIDFILE_MAX: usize = 1023;
/// Whom workers run as.
const USER: &str = "hast";

/// Why the daemon ends.
#[derive(Debug)]
pub(super) struct Failure {
    /// The exit status.
    pub(super) status: i32,
    /// What the log says.
    pub(super) text: String,
}

impl Failure {
    fn new(status: i32, text: impl ToString) -> Failure {
        Failure { status, text: text.to_string() }
    }

    fn system(what: &str, error: &std::io::Error) -> Failure {
        Failure::new(exit::OS_ERROR, format!("{what}: {}.", hast_log::error_text(error)))
    }
}

/// Everything that is opened before the daemon goes into the background.
#[derive(Debug)]
pub(super) struct Prepared {
    config: Config,
    config_path: PathBuf,
    node: Node,
    pidfile: Option<Pidfile>,
    control: Listener,
    listeners: Vec<(Address, Listener)>,
    /// Addresses that this host does not have yet.
    absent: Vec<Address>,
    program: PathBuf,
}

/// Reads the configuration and says what it found, for `-t`. Nothing is opened but the file.
pub(super) fn check(options: &Options) -> Result<String, Failure> {
    let (path, node, config) = configuration(options)?;
    let resources = match config.resources.len() {
        1 => "1 resource".to_owned(),
        count => format!("{count} resources"),
    };
    let node = node.names.first().cloned().or(node.uuid).unwrap_or_else(|| "-".to_owned());
    Ok(format!("Configuration {} is good: {resources} for node {node}.", path.display()))
}

fn configuration(options: &Options) -> Result<(PathBuf, Node, Config), Failure> {
    let config_path = if options.config.is_absolute() {
        options.config.clone()
    } else {
        // In the background the current directory is another one.
        std::fs::canonicalize(&options.config).map_err(|error| {
            let (path, error) = (options.config.display(), hast_log::error_text(&error));
            Failure::new(exit::CONFIG, format!("Unable to find configuration file {path}: {error}."))
        })?
    };
    let node = options.node.as_deref().map_or_else(Node::detect, Node::named);
    let config =
        hast_conf::load(&config_path, &node).map_err(|error| Failure::new(error.exit_code(), error))?;
    for warning in &config.warnings {
        log::warn!("{warning}");
    }
    Ok((config_path, node, config))
}

/// Reads the configuration, takes the pidfile and opens the sockets.
pub(super) fn prepare(options: &Options) -> Result<Prepared, Failure> {
    let (config_path, node, config) = configuration(options)?;
    let program =
        Workers::own_program().map_err(|error| Failure::system("Unable to find own program", &error))?;
    let pidfile = open_pidfile(options, &config)?;
    let control = open_control(&config.control)?;
    let mut absent = Vec::new();
    let listeners = open_listeners(&config, &mut absent)?;
    Ok(Prepared { config, config_path, node, pidfile, control, listeners, absent, program })
}

impl Prepared {
    /// Goes into the background, unless it was told not to, and begins.
    pub(super) fn start(self, options: &Options) -> Result<Supervisor, Failure> {
        let ready = if options.foreground {
            None
        } else {
            let ready = daemon::into_background()
                .map_err(|error| Failure::system("Unable to go into the background", &error))?;
            hast_log::set_sink(hast_log::Sink::Syslog);
            Some(ready)
        };
        let unable = |error: std::io::Error| Failure::system("Unable to watch for events", &error);
        // Not before the fork: a kqueue(2) does not survive it.
        let poller = Arc::new(Poller::new().map_err(unable)?);
        let mut keys = 0..;
        let mut key = || keys.next().unwrap_or(usize::MAX);
        let signals = Signals::listen(&poller, key()).map_err(unable)?;
        let control = Watched::new(&poller, key(), self.control, true, false).map_err(unable)?;
        let mut listeners = Vec::new();
        for (address, listener) in self.listeners {
            let listener = Watched::new(&poller, key(), listener, true, false).map_err(unable)?;
            listeners.push(PeerListener { address, listener, resume: None });
        }
        let owner = device_owner(&self.node, &self.config.control);
        let mut supervisor = Supervisor {
            control,
            control_resume: None,
            clients: Default::default(),
            listeners,
            absent: Absent::new(self.absent, Instant::now()),
            peers: Default::default(),
            connects: Default::default(),
            looks: Vec::new(),
            resources: Vec::new(),
            hooks: Hooks::new(!options.foreground),
            jobs: Jobs::new(&poller),
            signals,
            workers: Workers {
                program: self.program,
                debug: options.debug,
                background: !options.foreground,
                drop_privileges: false,
                boot: crate::boot_id(),
            },
            config: self.config,
            config_path: self.config_path,
            node: self.node,
            owner,
            reload: None,
            pidfile_follows: !options.foreground && options.pidfile.is_none(),
            ending: false,
            next_key: key(),
            next_resource: 0,
            poller,
            pidfile: self.pidfile,
        };
        for resource in supervisor.config.resources.clone() {
            let nbd = supervisor.config.nbd_directory().map(Path::to_owned);
            supervisor.add_resource(resource, nbd);
        }
        if let Some(pidfile) = &mut supervisor.pidfile {
            match pidfile.write() {
                Ok(()) => log::debug!("PID stored in {}.", pidfile.path().display()),
                Err(error) => log::warn!(
                    "Unable to write pidfile {}: {}.",
                    pidfile.path().display(),
                    hast_log::error_text(&error)
                ),
            }
        }
        log::info!("Started successfully, running protocol version {VERSION}.");
        log::debug!("Listening on control address {}.", control_place(&supervisor.config.control));
        for listener in &supervisor.listeners {
            log::info!("Listening on address {}.", listener.address);
        }
        supervisor.workers.drop_privileges = can_drop_privileges();
        if let Some(ready) = ready {
            ready.tell();
        }
        Ok(supervisor)
    }
}

/// Which hastd this is, as its devices say it. In a jail the same path is another directory, with a number of its own.
fn device_owner(node: &Node, control: &Address) -> String {
    let name = node.names.first().map_or("", String::as_str);
    let directory = control.unix_path().and_then(Path::parent).and_then(|path| path.metadata().ok());
    let number = directory.map_or(0, |directory| directory.ino());
    // The kernel tells it in XML, and not every version escapes it.
    format!("hastd of {name} at {} ({number})", control_place(control)).replace(['&', '<', '>'], "?")
}

/// How the control address is logged: a path without its protocol.
pub(super) fn control_place(address: &Address) -> String {
    match address.unix_path() {
        Some(path) => path.display().to_string(),
        None => address.to_string(),
    }
}

fn open_pidfile(options: &Options, config: &Config) -> Result<Option<Pidfile>, Failure> {
    let path = match &options.pidfile {
        Some(path) if path.as_os_str().len() > PIDFILE_MAX => {
            return Err(Failure::new(exit::CONFIG, "Pidfile path is too long."));
        }
        Some(path) => path,
        None if options.foreground => return Ok(None),
        None => &config.pidfile,
    };
    // Until the end, from wherever that is: the directory may be another one then.
    let path = std::path::absolute(path).unwrap_or_else(|_| path.clone());
    match Pidfile::open(&path) {
        Ok(pidfile) => Ok(Some(pidfile)),
        Err(error @ PidfileError::AlreadyRunning { .. }) => Err(Failure::new(exit::TEMPORARY, error)),
        Err(error @ PidfileError::Open { .. }) => {
            log::warn!("{error}");
            Ok(None)
        }
    }
}

fn open_control(address: &Address) -> Result<Listener, Failure> {
    Listener::open(address, look_up(address)).map_err(|error| {
        let status = if error.is_in_use() { exit::TEMPORARY } else { exit::OS_ERROR };
        Failure::new(status, format!("Unable to open control socket {address}: {error}"))
    })
}

/// Opens what can be opened; what this host does not have yet is `absent`.
fn open_listeners(config: &Config, absent: &mut Vec<Address>) -> Result<Vec<(Address, Listener)>, Failure> {
    let mut listeners = Vec::new();
    let mut reasons = Vec::new();
    for address in &config.listen {
        match Listener::open(address, look_up(address)) {
            Ok(listener) => listeners.push((address.clone(), listener)),
            Err(error) if is_excused(config, &error) => log::debug!("{error}"),
            Err(error) if error.is_not_there() => {
                absent.push(address.clone());
                reasons.push(error);
            }
            Err(error) => return Err(Failure::new(exit::OS_ERROR, error)),
        }
    }
    if listeners.is_empty() {
        let reasons: String = reasons.iter().map(|error| format!("{error} ")).collect();
        let text = format!("{reasons}There is no address to listen on for other nodes.");
        return Err(Failure::new(exit::OS_ERROR, text));
    }
    reasons.iter().for_each(super::absent::log);
    Ok(listeners)
}

/// The default addresses count only as far as the kernel has their families.
pub(super) fn is_excused(config: &Config, error: &ListenError) -> bool {
    config.listen_is_default && error.is_family_absent()
}

/// At the start there is nobody yet whom the name service could keep waiting.
fn look_up(address: &Address) -> Option<std::net::SocketAddr> {
    if address.unix_path().is_some() {
        return None;
    }
    address.resolve().ok()?.first().copied()
}

fn can_drop_privileges() -> bool {
    if !geteuid().is_root() {
        return false;
    }
    match User::from_name(USER) {
        Ok(Some(_)) => true,
        Ok(None) => {
            log::warn!("User {USER} does not exist: worker processes keep root's privileges.");
            false
        }
        Err(error) => {
            log::warn!("Unable to look up user {USER} ({error}): worker processes keep root's privileges.");
            false
        }
    }
}
