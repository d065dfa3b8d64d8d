//! The HAST daemon: a supervisor that owns roles and sockets, and one worker process for each resource
//! that does the work (docs/ARCHITECTURE.md).

mod boot;
mod contract;
mod exit;
pub mod ipc;
#[cfg(target_os = "linux")]
mod kernel_nbd;
#[cfg(ublk)]
mod kernel_ublk;
mod refusal;
pub mod supervisor;
mod wall;
mod watch;
pub mod worker;

pub use boot::boot_id;

use std::fs::OpenOptions;
use std::io;
use std::os::fd::AsFd;

/// Runs this process as what it was started as; returns its exit status.
///
/// A worker is the same program, started by the supervisor with a title and an environment of its own, and
/// with the channel to the supervisor for its standard input.
pub fn run() -> i32 {
    hast_log::abort_on_panic();
    #[cfg(feature = "mutants")]
    if let Err(status) = break_rule() {
        return status;
    }
    if is_worker() {
        match worker_channel() {
            Ok(channel) => worker::run(channel),
            Err(error) => {
                eprintln!("hastd: no channel to the supervisor: {}", hast_log::error_text(&error));
                exit::OS_ERROR
            }
        }
    } else {
        supervisor::run()
    }
}

fn is_worker() -> bool {
    std::env::var_os(contract::WORKER_VARIABLE).is_some()
        && std::env::args_os()
            .next()
            .is_some_and(|title| title.as_encoded_bytes().starts_with(contract::TITLE_PREFIX.as_bytes()))
}

/// Takes the channel from standard input and leaves `/dev/null` there.
fn worker_channel() -> io::Result<ipc::Channel> {
    let channel = ipc::Channel::new(io::stdin().as_fd().try_clone_to_owned()?)?;
    nix::unistd::dup2_stdin(OpenOptions::new().read(true).write(true).open("/dev/null")?)?;
    // The program was started by a path that the kernel knows under another name.
    #[cfg(target_os = "linux")]
    nix::sys::prctl::set_name(c"hastd")?;
    Ok(channel)
}

/// No build of the daemon has the switch that breaks a rule, unless it was asked for by the daemon's own feature: not
/// because something else that is built at the same time has it.
const _: () = assert!(
    hast_engine::rule::MUTANTS == cfg!(feature = "mutants"),
    "hastd has the feature `mutants` of another package"
);

/// Breaks the rule that the environment names, if it names one. The workers inherit it.
#[cfg(feature = "mutants")]
fn break_rule() -> Result<(), i32> {
    use hast_engine::rule::{self, Rule};
    let Some(name) = std::env::var_os("HASTD_BREAK_RULE") else { return Ok(()) };
    let found = Rule::ALL.into_iter().find(|rule| name == *format!("{rule:?}"));
    rule::break_rule(Some(found.ok_or_else(|| {
        eprintln!("hastd: no rule {} to break", name.display());
        exit::USAGE
    })?));
    Ok(())
}
