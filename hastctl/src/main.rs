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
mod hint;
mod human;
mod occupants;
mod options;
mod report;
mod role;
mod size;
mod stop;
mod usage;
mod users;

use std::env;
use std::io::{self, ErrorKind, Write};
use std::path::Path;
use std::process::ExitCode;

use hast_conf::{Config, Node, Resource};
use hast_format::metadata::{Reading, Role};
use hast_log::{Sink, error_text};
use hast_net::control::{self, Entry, Reloaded, Reply, Request};
use hast_provider::{Provider, ProviderError};

use client::AskError;
use create::{Alignment, Wanted};
use discard::DiscardError;
use human::printable;
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
    let name = Path::new(&program).file_name().unwrap_or(program.as_os_str()).to_string_lossy();
    match Invocation::parse(arguments) {
        Ok(Invocation { command: Command::Help, .. }) => print_alone(&usage::help(&name)),
        Ok(Invocation { command: Command::Version, .. }) => {
            print_alone(&format!("hastctl {}\n", env!("CARGO_PKG_VERSION")))
        }
        Ok(invocation) => {
            hast_log::init(Sink::Terminal, invocation.debug);
            match run(invocation) {
                Ok(()) => ExitCode::SUCCESS,
                Err(Failed(status)) => ExitCode::from(status),
            }
        }
        Err(error) => {
            let _ = io::stderr().write_all(error.text(&name).as_bytes());
            ExitCode::from(exit::USAGE)
        }
    }
}

/// Prints what needs neither a configuration nor a daemon.
fn print_alone(text: &str) -> ExitCode {
    match print(text) {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failed(status)) => ExitCode::from(status),
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
    refuse_misplaced(&config, &invocation.command)?;
    match invocation.command {
        Command::Create { names, extentsize, keepdirty, mediasize, align, force } => {
            let alignment = if align { Alignment::Always } else { Alignment::of(&config) };
            let wanted = Wanted { extentsize, keepdirty, mediasize, alignment, force };
            each(names.iter().map(|name| {
                let _scope = hast_log::scope(Some(name), None);
                create::create(named(&config, name)?, wanted)
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
        Command::Role { role, force, dry: false, names } => change_roles(&config, role, force, names),
        Command::List { names, verbose } => {
            let request = Request::new(control::Command::Status, names);
            let entries = ask(&config, &Request { verbose, ..request })?;
            print(&report::list(&entries, verbose))?;
            explain(&config, &entries);
            outcome(&entries)
        }
        Command::Status { names, verbose } => {
            let request = Request::new(control::Command::Status, names);
            let entries = ask(&config, &Request { verbose, ..request })?;
            print(&report::status(&entries, verbose))?;
            explain(&config, &entries);
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
            explain(&config, &entries);
            outcome(&entries)
        }
        Command::Discard { names } => each(names.iter().map(|name| discard(&config, name))),
        Command::Reload => reload(&config),
        Command::Stop => stop::stop(&config).map_err(|error| failed(&error, error.exit_code())),
        Command::Help | Command::Version => Ok(()), // have been answered
    }
}

/// An option behind the first operand is no option to getopt(3), but a resource of that name: one that was meant as
/// an option must not be taken for the other, nor left out.
fn refuse_misplaced(config: &Config, command: &Command) -> Result<(), Failed> {
    let names = command.names();
    let Some(word) = names.iter().find(|name| name.starts_with('-') && config.resource(name).is_none())
    else {
        return Ok(());
    };
    let first = match command {
        Command::Role { role, .. } => Some(role.as_str()),
        _ => names.first().filter(|first| *first != word).map(String::as_str),
    };
    let place =
        first.map_or_else(String::new, |first| format!(", and options come before `{}'", printable(first)));
    Err(failed(
        &format_args!("`{}' is no resource of the configuration{place}. Nothing was done.", printable(word)),
        exit::USAGE,
    ))
}

fn configuration(invocation: &Invocation) -> Result<Config, Failed> {
    let node = match &invocation.node {
        Some(name) => Node::named(name),
        None => Node::detect(),
    };
    let config = hast_conf::load(&invocation.config, &node).map_err(|error| {
        let status = failed(&error, u8::try_from(error.exit_code()).unwrap_or(exit::CONFIG));
        if matches!(invocation.command, Command::Reload) {
            log::warn!(
                "hastd was not asked: it would say the same, and goes on with the configuration that it has."
            );
        }
        if let Some(word) = invocation.command.names().iter().find(|name| name.starts_with('-')) {
            log::warn!(
                "`{}' counts as the name of a resource: options come before operands.",
                printable(word)
            );
        }
        status
    })?;
    for warning in &config.warnings {
        log::warn!("{warning}");
    }
    Ok(config)
}

fn named<'a>(config: &'a Config, name: &str) -> Result<&'a Resource, Failed> {
    config.resources.iter().find(|resource| resource.name == name).ok_or_else(|| {
        let _plain = hast_log::scope(None, None);
        let status = failed(&format_args!("Unknown resource {name}."), exit::DATAERR);
        log::warn!("{}", hint::resource(config, name));
        status
    })
}

fn dump_resource(resource: &Resource, verbose: bool) -> Result<(), Failed> {
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
    let reply = client::ask(config, request);
    match reply.map_err(|error| failed(&error, error.exit_code()))? {
        Reply::Entries(entries) => Ok(entries),
        Reply::Reloaded(_) => Err(failed(&"hastd answers what was not asked.", exit::UNAVAILABLE)),
        Reply::Error(error) => {
            let status = failed(&format_args!("Error {error} received from hastd."), exit::SOFTWARE);
            log::warn!("{}", hint::request(error));
            Err(status)
        }
    }
}

fn change_roles(config: &Config, role: Role, force: bool, names: Vec<String>) -> Result<(), Failed> {
    if role != Role::Primary {
        role::warn_of_users(config, &names);
    }
    let request = Request::new(control::Command::SetRole(role), names);
    let entries = ask(config, &Request { force, ..request })?;
    report_roles(config, &entries, role);
    outcome(&entries)
}

fn discard(config: &Config, name: &str) -> Result<(), Failed> {
    let _scope = hast_log::scope(Some(name), None);
    let text = discard::discard(config, named(config, name)?).map_err(|error| {
        let status = failed(&error, error.exit_code());
        if let DiscardError::Failed { error } | DiscardError::Refused { error } = error {
            log::warn!("{}", hint::error(config, name, error, None));
        }
        status
    })?;
    print(&format!("{text}\n"))
}

fn reload(config: &Config) -> Result<(), Failed> {
    let request = Request::new(control::Command::Reload, vec![control::ALL.to_owned()]);
    let reply = client::ask(config, &request).map_err(|error| {
        let status = failed(&error, error.exit_code());
        if matches!(error, AskError::Connect { .. }) {
            log::warn!("If hastd runs, and `control' is what has changed, send it a SIGHUP instead.");
        }
        status
    })?;
    match reply {
        Reply::Reloaded(Reloaded { status: 0, lines }) => {
            print(&lines.iter().map(|line| format!("{}\n", printable(line))).collect::<String>())
        }
        Reply::Reloaded(Reloaded { status, lines }) => {
            for line in lines.iter().flat_map(|line| line.lines()) {
                log::error!("{}", printable(line));
            }
            Err(Failed(status))
        }
        Reply::Error(error) => {
            let status = failed(&format_args!("Error {error} received from hastd."), exit::SOFTWARE);
            log::warn!("{} A SIGHUP makes it reload.", hint::request(error));
            Err(status)
        }
        Reply::Entries(_) => Err(failed(&"hastd does not say what it has done.", exit::UNAVAILABLE)),
    }
}

fn report_roles(config: &Config, entries: &[Entry], new: Role) {
    for entry in entries {
        let _scope = hast_log::scope(Some(entry.name()), None);
        match entry {
            Entry::Error { name, error, reason } => {
                log::warn!("Received error {error} from hastd.");
                tell_reason(reason.as_deref());
                if reason.is_none() || new == Role::Primary {
                    log::warn!("{}", hint::error(config, name, *error, Some(new)));
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

/// Says in words what the output says in numbers.
fn explain(config: &Config, entries: &[Entry]) {
    for entry in entries {
        if let Entry::Error { name, error, reason } = entry {
            let _scope = hast_log::scope(Some(name), None);
            tell_reason(reason.as_deref());
            log::warn!("{}", hint::error(config, name, *error, None));
        }
    }
}

/// Why hastd refuses, if it says so.
fn tell_reason(reason: Option<&str>) {
    if let Some(reason) = reason {
        log::warn!("{}.", printable(reason));
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
