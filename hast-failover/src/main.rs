//! `hast-failover`: gives this node a role, together with everything that depends on the role: the device, its file system or
//! pool, the services on it and its addresses. Whatever decides who is primary (CARP, ucarp, keepalived, Pacemaker, a
//! person) calls it; docs/failover.md says how. What belongs together is written down in hast-failover.conf.
//!
//! [`run`] is the plan and decides; it knows nothing but [`system`], behind which [`edge`] is the real node. Here are the command
//! line, and the order of requests.
#![deny(unsafe_op_in_unsafe_fn)]

mod address;
mod config;
mod edge;
mod fifo;
mod log;
mod options;
#[cfg(target_os = "linux")]
mod relay;
mod run;
mod system;

use std::env;
use std::ffi::OsString;
use std::io::{self, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, ExitCode, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use config::{File, General};
use edge::Edge;
use edge::command::{Runner, variable};
use edge::requests::{Key, Published, Requests};
use fifo::{Change, Follower};
use log::Log;
use options::{Command, Options};
use run::{Role, Run, exit};
use system::{Later, Priority, System};

const DEFAULT_CONFIG: &str =
    if cfg!(target_os = "linux") { "/etc/hast-failover.conf" } else { "/usr/local/etc/hast-failover.conf" };

fn main() -> ExitCode {
    let arguments: Vec<OsString> = env::args_os().skip(1).collect();
    if let [option, node] = arguments.as_slice()
        && option == "-X"
    {
        return probe(Path::new(node));
    }
    #[cfg(target_os = "linux")]
    if let [option, rest @ ..] = arguments.as_slice()
        && option == edge::RELAY
    {
        return relay(rest);
    }
    keep_descriptors_from_others();
    let default = env::var_os("HAST_FAILOVER_CONF").unwrap_or_else(|| DEFAULT_CONFIG.into());
    let Ok(options) = Options::parse(arguments) else {
        let _ = io::stderr().write_all(options::usage(&default.to_string_lossy()).as_bytes());
        return ExitCode::from(exit::USAGE);
    };
    let status = Program::new(options, PathBuf::from(default)).and_then(|program| program.run());
    ExitCode::from(status.unwrap_or_else(|Status(status)| status))
}

/// An exit status that has been explained.
struct Status(u8);

/// Not for people: whether nobody has claimed a block device, for a process that may hang over it.
fn probe(node: &Path) -> ExitCode {
    match edge::is_exclusively_free(node) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(edge::BUSY),
        Err(error) => {
            let _ = writeln!(io::stderr(), "{}: {}", node.display(), hast_log::error_text(&error));
            ExitCode::FAILURE
        }
    }
}

/// Not for people: nbdfuse, and what connects it to hastd's export. What it is about, and the log's file, are in `words`.
#[cfg(target_os = "linux")]
fn relay(words: &[OsString]) -> ExitCode {
    keep_descriptors_from_others();
    let [resource, socket, export, pid_file, file, log @ ..] = words else {
        return ExitCode::from(exit::USAGE);
    };
    let errand = relay::Errand {
        socket: socket.into(),
        export: export.to_string_lossy().into_owned(),
        pid_file: pid_file.into(),
        file: file.into(),
    };
    let log = Log::new(true, log.first().map(PathBuf::from), Some(&resource.to_string_lossy()));
    ExitCode::from(errand.run(log))
}

/// What the caller has left open, a lock for example, is not for services that this program starts.
fn keep_descriptors_from_others() {
    for descriptor in 3..1024 {
        // SAFETY: F_SETFD changes nothing but a flag; a descriptor that is not open is an error, which is no matter.
        let _ = unsafe { libc::fcntl(descriptor, libc::F_SETFD, libc::FD_CLOEXEC) };
    }
}

/// A run of this program.
struct Program {
    options: Options,
    config: PathBuf,
    file: File,
    general: General,
    runner: Runner,
    key: Key,
}

impl Program {
    fn new(options: Options, default: PathBuf) -> Result<Program, Status> {
        let log = Log::new(options.quiet, None, None);
        let wrong = |status, words: &str| {
            log.say(Priority::Error, words);
            Status(status)
        };
        let key = match env::var(variable::TIME) {
            Ok(text) if !text.is_empty() => text.parse().map_err(|()| {
                wrong(
                    exit::USAGE,
                    &format!("{}: not what 'hast-failover time' prints: '{text}'", variable::TIME),
                )
            })?,
            _ => edge::started().map_err(|error| wrong(exit::FAILED, &error.to_string()))?,
        };
        if env::var_os(variable::BACKGROUND).is_some() {
            // Fails only for one that has a session of its own already.
            let _ = nix::unistd::setsid();
        }
        let config = std::path::absolute(options.config.clone().unwrap_or(default))
            .map_err(|error| wrong(exit::USAGE, &error.to_string()))?;
        let file =
            if options.command == Command::Time { Ok(File::default()) } else { read(&config, options.bare) };
        let understood = file.and_then(|file| {
            let general = file.general().map_err(|mistake| format!("{}, {mistake}", config.display()))?;
            Ok((file, general))
        });
        let (file, general) = understood.map_err(|words| wrong(exit::CONFIG, &words))?;
        // The directory of the caller may be in a file system that is to be unmounted.
        let _ = env::set_current_dir("/");
        let runner = Runner::new(env::var_os("PATH"));
        Ok(Program { options, config, file, general, runner, key })
    }

    fn log(&self, group: Option<&str>) -> Log {
        Log::new(self.options.quiet, self.general.log.clone(), group)
    }

    fn run(mut self) -> Result<u8, Status> {
        match self.options.command {
            Command::Time => {
                let _ = writeln!(io::stdout(), "{}", self.key);
                Ok(exit::OK)
            }
            Command::Fifo => self.fifo(),
            Command::Status | Command::Check => {
                self.choose(false)?;
                Ok(self.report())
            }
            Command::Role(role) => {
                self.choose(role != Role::Primary)?;
                self.role(role)
            }
        }
    }

    /// Whom it is about: all groups, or those of an address, if none is named. Down in the other order, for one may lie within
    /// another.
    fn choose(&mut self, backwards: bool) -> Result<(), Status> {
        if self.options.names.is_empty() {
            self.options.names = match self.options.address.clone() {
                None => self.file.groups().to_vec(),
                Some(address) => self.followers(&address, |group| &group.carp)?,
            };
            if backwards {
                self.options.names.reverse();
            }
            if self.file.groups().is_empty() {
                self.log(None).say(Priority::Warning, &format!("{} has no group.", self.config.display()));
            }
        }
        let unknown = |name: &&String| !self.options.bare && !self.file.groups().contains(*name);
        if let Some(name) = self.options.names.iter().find(unknown) {
            let words = format!("{} has no group of this name: {name}", self.config.display());
            self.log(None).say(Priority::Error, &words);
            return Err(Status(exit::DATAERR));
        }
        Ok(())
    }

    /// The groups that name `whom`, or all groups if none names anybody.
    fn followers(
        &self,
        whom: &str,
        named: impl Fn(&config::Group) -> &Vec<String>,
    ) -> Result<Vec<String>, Status> {
        let (mut chosen, mut any, mut broken) = (Vec::new(), false, false);
        for name in self.file.groups() {
            // A mistake in one group does not keep another one from what is asked of it.
            let Ok(group) = self.group(name) else {
                broken = true;
                continue;
            };
            any |= !named(&group).is_empty();
            if named(&group).iter().any(|one| one == whom) {
                chosen.push(name.clone());
            }
        }
        match (any, broken) {
            (true, _) => Ok(chosen),
            (false, false) => Ok(self.file.groups().to_vec()),
            // It may be the one that names whom the others do not follow.
            (false, true) => Err(Status(exit::CONFIG)),
        }
    }

    fn group(&self, name: &str) -> Result<config::Group, Status> {
        self.file.group(name, self.options.bare).map_err(|mistake| {
            self.log(None).say(Priority::Error, &format!("{}, {mistake}", self.config.display()));
            Status(exit::CONFIG)
        })
    }

    /// Of several groups the last one that is not well decides.
    fn report(&self) -> u8 {
        let mut outcome = exit::OK;
        for name in &self.options.names {
            let Ok(group) = self.group(name) else {
                outcome = exit::CONFIG;
                continue;
            };
            let log = self.log(Some(name));
            let never = Arc::new(AtomicBool::new(false));
            let mut node = Edge::new(&self.general, &group, &log, &self.runner, None, never);
            let run = Run::new(&mut node, &group, self.options.manner);
            let (lines, worst) =
                if self.options.command == Command::Check { run.judge() } else { run.report() };
            for line in lines {
                let _ = writeln!(io::stdout(), "{line}");
            }
            if worst != exit::OK {
                outcome = worst;
            }
        }
        outcome
    }

    fn role(&self, role: Role) -> Result<u8, Status> {
        let requests = Requests::new(&self.general.state_dir);
        // All of them first: a run that works on one of them now is to give up.
        let mut latest = Vec::new();
        let mut shown = Vec::new();
        for name in &self.options.names {
            let published =
                requests.publish(name, role, self.key, edge::boot_clock()).and_then(|published| {
                    shown.push(requests.show_run(name)?);
                    Ok(published)
                });
            match published {
                Ok(published) => latest.push((name, published)),
                Err(error) => {
                    let words = format!(
                        "{} cannot be written: {}.",
                        self.general.state_dir.display(),
                        hast_log::error_text(&error)
                    );
                    self.log(Some(name)).say(Priority::Error, &words);
                    return Err(Status(exit::CANTCREAT));
                }
            }
        }
        if self.options.background {
            return self.in_background(role);
        }
        let ends = Arc::new(AtomicBool::new(false));
        for signal in [SIGTERM, SIGINT, SIGHUP] {
            // Once: it gives up in order. Once more: at once.
            let _ =
                signal_hook::flag::register_conditional_shutdown(signal, exit::TEMPFAIL.into(), ends.clone());
            let _ = signal_hook::flag::register(signal, ends.clone());
        }
        let mut outcome = exit::OK;
        for ((name, published), _shown) in latest.into_iter().zip(shown) {
            let status = match published {
                Published::Latest => self.work(name, role, &requests, &ends),
                Published::Overtaken(other) => {
                    self.log(Some(name)).say(Priority::Notice, &Later::Request(other).to_string());
                    exit::TEMPFAIL
                }
            };
            if status != exit::OK {
                outcome = status;
            }
        }
        Ok(outcome)
    }

    /// Works on one group, as soon as nobody else does.
    fn work(&self, name: &str, role: Role, requests: &Requests, ends: &Arc<AtomicBool>) -> u8 {
        let Ok(group) = self.group(name) else { return exit::CONFIG };
        let log = self.log(Some(name));
        let request = Some((role, self.key));
        let mut node = Edge::new(&self.general, &group, &log, &self.runner, request, ends.clone());
        let limit = self.general.lock_timeout;
        let held = requests.lock(name, limit, || {
            requests.overtaken(name, role, self.key).is_some() || ends.load(Ordering::Relaxed)
        });
        match held {
            Ok(Some(_held)) => Run::new(&mut node, &group, self.options.manner).work(role),
            Ok(None) => {
                match node.later() {
                    Some(later) => log.say(Priority::Notice, &later.to_string()),
                    None => log.say(
                        Priority::Error,
                        &format!("Another run has not ended within {} s.", limit.as_secs()),
                    ),
                }
                exit::TEMPFAIL
            }
            Err(error) => {
                let directory = self.general.state_dir.display();
                let error = hast_log::error_text(&error);
                log.say(Priority::Error, &format!("{directory} cannot be written: {error}."));
                exit::CANTCREAT
            }
        }
    }

    fn in_background(&self, role: Role) -> Result<u8, Status> {
        if self.options.names.is_empty() {
            return Ok(exit::OK);
        }
        match self.another(role, self.options.manner.abandon, &self.options.names, Some(self.key)) {
            Ok(_) => Ok(exit::OK),
            Err(error) => {
                self.log(None).say(Priority::Error, &format!("hast-failover {role}: {error}"));
                Err(Status(exit::FAILED))
            }
        }
    }

    /// Starts this program once more, for these groups; it does not end together with this one. Its request was made when
    /// `key` says, or now.
    fn another(&self, role: Role, abandon: bool, names: &[String], key: Option<Key>) -> io::Result<Child> {
        let mut command = self.runner.command(myself()?);
        if let Some(key) = key {
            command.env(variable::TIME, key.to_string());
        }
        command.env(variable::BACKGROUND, "yes").arg("-q");
        let flags = [("-a", abandon), ("-f", self.options.manner.force), ("-r", self.options.bare)];
        command.args(flags.iter().filter_map(|(flag, so)| so.then_some(flag)));
        command.arg("-c").arg(&self.config).arg(role.word()).args(names);
        command.stdout(Stdio::null()).stderr(Stdio::null()).spawn()
    }

    fn fifo(&self) -> Result<u8, Status> {
        let log = self.log(None);
        let path = self.options.names.first().map(String::as_str).unwrap_or_default();
        let wrong = |error: io::Error| {
            log.say(Priority::Error, &format!("{path}: {}", hast_log::error_text(&error)));
            Status(exit::NOINPUT)
        };
        let (end, ours) = UnixStream::pair().map_err(wrong)?;
        for signal in [SIGTERM, SIGINT, SIGHUP] {
            signal_hook::low_level::pipe::register(signal, ours.try_clone().map_err(wrong)?)
                .map_err(wrong)?;
        }
        let fifo = fifo::open(Path::new(path)).map_err(wrong)?;
        log.say(Priority::Notice, &format!("Serving {path}."));
        fifo::serve(fifo, &end, &mut Keepalived { program: self, log: &log }).map_err(wrong)?;
        Ok(exit::OK)
    }
}

/// This program's file, also if it has been replaced since.
fn myself() -> io::Result<PathBuf> {
    if cfg!(target_os = "linux") { Ok(PathBuf::from("/proc/self/exe")) } else { env::current_exe() }
}

fn read(config: &Path, bare: bool) -> Result<File, String> {
    match std::fs::read(config) {
        Ok(bytes) => File::parse(&String::from_utf8_lossy(&bytes))
            .map_err(|mistake| format!("{}, {mistake}", config.display())),
        Err(_) if bare => Ok(File::default()),
        Err(error) => Err(format!("{} cannot be read: {}.", config.display(), hast_log::error_text(&error))),
    }
}

/// What follows the lines of keepalived.
struct Keepalived<'a> {
    program: &'a Program,
    log: &'a Log,
}

impl Follower for Keepalived<'_> {
    fn groups(&mut self, change: &Change) -> Vec<String> {
        // What the configuration says now.
        let program = Program {
            options: self.program.options.clone(),
            config: self.program.config.clone(),
            file: match read(&self.program.config, false) {
                Ok(file) => file,
                Err(words) => {
                    self.warn(&words);
                    return Vec::new();
                }
            },
            general: self.program.general.clone(),
            runner: Runner::new(None),
            key: self.program.key,
        };
        let mut groups = program.followers(&change.name, |group| &group.vrrp).unwrap_or_default();
        if change.role != Role::Primary {
            groups.reverse();
        }
        groups
    }

    fn start(&mut self, change: &Change, groups: &[String]) -> io::Result<Child> {
        self.program.another(change.role, change.abandon, groups, None)
    }

    fn note(&mut self, words: &str) {
        self.log.say(Priority::Notice, words);
    }

    fn warn(&mut self, words: &str) {
        self.log.say(Priority::Warning, words);
    }
}
