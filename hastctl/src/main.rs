//! `hastctl`: creates providers, changes roles, shows status and metadata, stops the daemon.
//!
//! Options, output, messages and exit statuses are those of spec/control.md. Scripts depend on all of them:
//! whatever is new shows only with a new option.
#![forbid(unsafe_code)]

mod client;
mod compare;
mod condition;
mod create;
mod discard;
mod dump;
mod human;
mod options;
mod report;
mod role;
mod size;
mod stop;
mod users;

use std::env;
use std::io::{self, ErrorKind, Write};
use std::path::Path;
use std::process::ExitCode;

use hast_conf::{Config, Node, Resource};
use hast_format::metadata::{Reading, Role};
use hast_log::{Sink, error_text};
use hast_net::control::{self, Entry, Reply, Request};
use hast_net::errno::Errno;
use hast_provider::{Provider, ProviderError};

use create::Sizes;
use options::{Command, Dumped, Invocation};

/// Exit statuses, from sysexits(3).
mod exit {
    pub(crate) const USAGE: u8 = 64;
    pub(crate) const DATAERR: u8 = 65;
    pub(crate) const NOINPUT: u8 = 66;
    pub(crate) const UNAVAILABLE: u8 = 69;
    pub(crate) const SOFTWARE: u8 = 70;
    pub(crate) const OSERR: u8 = 71;
    pub(crate) const IOERR: u8 = 74;
    pub(crate) const TEMPFAIL: u8 = 75;
    pub(crate) const CONFIG: u8 = 78;
    /// `dump` cannot read a provider or its metadata.
    pub(crate) const DUMP: u8 = 255;
}

fn main() -> ExitCode {
    hast_log::log_panics();
    let mut arguments = env::args_os();
    let program = arguments.next().unwrap_or_default();
    match Invocation::parse(arguments) {
        Ok(invocation) => {
            hast_log::init(Sink::Terminal, invocation.debug);
            match run(invocation) {
                Ok(()) => ExitCode::SUCCESS,
                Err(Failed(status)) => ExitCode::from(status),
            }
        }
        Err(error) => {
            let name = Path::new(&program).file_name().unwrap_or(program.as_os_str()).to_string_lossy();
            let _ = io::stderr().write_all(error.text(&name).as_bytes());
            ExitCode::from(exit::USAGE)
        }
    }
}

/// Something went wrong and has been said; what remains is the exit status.
#[derive(Clone, Copy, Debug)]
struct Failed(u8);

fn run(invocation: Invocation) -> Result<(), Failed> {
    if let Command::Dump { what: Dumped::File(path), map } = &invocation.command {
        return dump_file(path, *map);
    }
    let config = configuration(&invocation)?;
    match invocation.command {
        Command::Create { names, extentsize, keepdirty, mediasize } => {
            let sizes = Sizes { extentsize, keepdirty, mediasize };
            each(names.iter().map(|name| {
                let _scope = hast_log::scope(Some(name), None);
                create::create(named(&config, name)?, sizes)
                    .map_err(|error| failed(&error, error.exit_code()))
            }))
        }
        Command::Role { role, force, dry: true, names } => {
            let request = Request::new(control::Command::Status, names);
            let entries = ask(&config, &Request { verbose: true, ..request })?;
            let (text, status) = role::foresee(&config, &entries, role, force);
            print(&text)?;
            if status == 0 { Ok(()) } else { Err(Failed(status)) }
        }
        Command::Role { role, force, dry: false, names } => {
            if role != Role::Primary {
                role::warn_of_users(&config, &names);
            }
            let request = Request::new(control::Command::SetRole(role), names);
            let entries = ask(&config, &Request { force, ..request })?;
            report_roles(&entries, role);
            outcome(&entries)
        }
        Command::List { names, verbose } => {
            let request = Request::new(control::Command::Status, names);
            let entries = ask(&config, &Request { verbose, ..request })?;
            print(&report::list(&entries, verbose))?;
            outcome(&entries)
        }
        Command::Status { names, verbose } => {
            let request = Request::new(control::Command::Status, names);
            let entries = ask(&config, &Request { verbose, ..request })?;
            print(&report::status(&entries, verbose))?;
            outcome(&entries)
        }
        Command::Dump { what: Dumped::Resources(names), map } => {
            if names.is_empty() {
                each(config.resources.iter().map(|resource| dump_resource(resource, map)))
            } else {
                each(names.iter().map(|name| dump_resource(named(&config, name)?, map)))
            }
        }
        Command::Dump { what: Dumped::File(path), map } => dump_file(&path, map),
        Command::Compare { names } => {
            let request = Request::new(control::Command::Status, names);
            let entries = ask(&config, &Request { verbose: true, ..request })?;
            print(&compare::compare(&config, &entries))?;
            outcome(&entries)
        }
        Command::Discard { names } => each(names.iter().map(|name| {
            let _scope = hast_log::scope(Some(name), None);
            let text = discard::discard(&config, named(&config, name)?)
                .map_err(|error| failed(&error, error.exit_code()))?;
            print(&format!("{text}\n"))
        })),
        Command::Stop => stop::stop(&config.pidfile).map_err(|error| failed(&error, error.exit_code())),
    }
}

fn configuration(invocation: &Invocation) -> Result<Config, Failed> {
    let node = match &invocation.node {
        Some(name) => Node::named(name),
        None => Node::detect(),
    };
    let config = hast_conf::load(&invocation.config, &node)
        .map_err(|error| failed(&error, u8::try_from(error.exit_code()).unwrap_or(exit::CONFIG)))?;
    for warning in &config.warnings {
        log::warn!("{warning}");
    }
    Ok(config)
}

fn named<'a>(config: &'a Config, name: &str) -> Result<&'a Resource, Failed> {
    config.resources.iter().find(|resource| resource.name == name).ok_or_else(|| {
        let _plain = hast_log::scope(None, None);
        failed(&format_args!("Unknown resource {name}."), exit::DATAERR)
    })
}

fn dump_resource(resource: &Resource, verbose: bool) -> Result<(), Failed> {
    let _scope = hast_log::scope(Some(&resource.name), None);
    dump_provider(Path::new(&resource.localpath), verbose, |provider| {
        provider.read_metadata_block_of(&resource.name)
    })
}

fn dump_file(path: &Path, verbose: bool) -> Result<(), Failed> {
    dump_provider(path, verbose, Provider::read_metadata_block)
}

fn dump_provider(
    path: &Path,
    verbose: bool,
    read: impl FnOnce(&Provider) -> Result<Reading, ProviderError>,
) -> Result<(), Failed> {
    let unreadable = |error| failed(&error, exit::DUMP);
    let provider = Provider::open(path, false).map_err(unreadable)?;
    log::debug!("Obtained info about {}.", path.display());
    let Reading { metadata, state } = read(&provider).map_err(unreadable)?;
    if !state.is_sound() {
        log::warn!("Metadata on {} is not whole: {state}.", path.display());
    }
    print(&dump::metadata(&metadata))?;
    if verbose {
        print(&dump::extension(&metadata))?;
        let text = dump::map(&provider, &metadata).map_err(|error| failed(&error, exit::DUMP))?;
        print(&text)?;
    }
    Ok(())
}

fn ask(config: &Config, request: &Request) -> Result<Vec<Entry>, Failed> {
    let reply = client::ask(&config.control, request);
    match reply.map_err(|error| failed(&error, error.exit_code()))? {
        Reply::Entries(entries) => Ok(entries),
        Reply::Error(error) => {
            Err(failed(&format_args!("Error {error} received from hastd."), exit::SOFTWARE))
        }
    }
}

fn report_roles(entries: &[Entry], new: Role) {
    for entry in entries {
        let _scope = hast_log::scope(Some(entry.name()), None);
        match entry {
            Entry::Error { name, error, reason } => {
                log::warn!("Received error {error} from hastd.");
                if let Some(reason) = reason {
                    log::warn!("{}.", human::printable(reason));
                }
                if new == Role::Primary {
                    explain(name, *error);
                }
            }
            Entry::RoleWas { role: old, peer_behind: true, .. } => log::warn!(
                "Role changed from {old} to {new}, but the other node lacks something that was written here and does not \
                 know it: make this node primary again and let them synchronize before that one becomes primary."
            ),
            Entry::RoleWas { role: old, .. } if old == new.as_str() => log::trace!("Role unchanged ({old})."),
            Entry::RoleWas { role: old, .. } => log::debug!("Role changed from {old} to {new}."),
            Entry::Status { .. } => {}
        }
    }
}

/// Why hastd does not make a resource primary.
fn explain(name: &str, error: i16) {
    if error == Errno::ESTALE.to_wire() {
        log::warn!(
            "Let the other node be primary or leave its role first, or give up what it has written and this node has not \
             with `hastctl role -f primary {name}'."
        );
    } else if error == i16::from(exit::NOINPUT) {
        log::warn!("The provider cannot be used: hastd's log says why. The role is init.");
    } else if error == i16::from(exit::OSERR) {
        log::warn!("The device cannot be created: hastd's log says why. The role is init.");
    }
}

/// The first resource that failed decides the exit status: its error's number.
fn outcome(entries: &[Entry]) -> Result<(), Failed> {
    let first = entries.iter().find_map(|entry| match entry {
        Entry::Error { error, .. } => Some(*error),
        _ => None,
    });
    match first {
        None if entries.iter().any(|entry| matches!(entry, Entry::RoleWas { peer_behind: true, .. })) => {
            Err(Failed(exit::TEMPFAIL))
        }
        None => Ok(()),
        // Of a status only eight bits come through, and they must not say success.
        Some(error) => Err(Failed(u8::try_from(error & 0xff).unwrap_or(u8::MAX).max(1))),
    }
}

/// Does all of them; the first failure decides the exit status.
fn each(results: impl Iterator<Item = Result<(), Failed>>) -> Result<(), Failed> {
    let mut outcome = Ok(());
    for result in results {
        outcome = outcome.and(result);
    }
    outcome
}

fn print(text: &str) -> Result<(), Failed> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        // Whoever read it has seen enough.
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            let _plain = hast_log::scope(None, None);
            Err(failed(&format_args!("Unable to write output: {}.", error_text(&error)), exit::IOERR))
        }
        _ => Ok(()),
    }
}

fn failed(message: &dyn std::fmt::Display, status: u8) -> Failed {
    log::error!("{message}");
    Failed(status)
}
