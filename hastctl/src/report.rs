//! What `list` and `status` print of a daemon's answer, byte for byte as the original (spec/control.md) unless
//! more is asked for (`-v`).

use std::fmt::Write;

use hast_net::control::{Entry, ResourceStatus, WorkerStatus};

use crate::condition;
use crate::human::printable;
use hast_net::human::human;

/// The terse report: one line per resource under a header, which appears only if there is a resource.
pub(crate) fn status(entries: &[Entry], verbose: bool) -> String {
    let mut out = Text::default();
    if !entries.is_empty() {
        let more = if verbose { "\tCondition\tConnection" } else { "" };
        out.line(format_args!("Name\tStatus\t Role\t\tComponents{more}"));
    }
    for entry in entries {
        let name = printable(entry.name());
        match entry {
            Entry::Error { error, .. } => out.line(format_args!("{name}\tERR{error}")),
            // No answer to a question about status has only a role.
            Entry::RoleWas { role, .. } => {
                let more = if verbose { "\t-\t-" } else { "" };
                out.line(format_args!("{name}\t{:<9}{:<15}-\t-{more}", "-", printable(role)));
            }
            Entry::Status { status, .. } => {
                let words = verbose.then(|| {
                    let connection = status.connection.as_ref();
                    let words = condition::words(status.facts.as_ref(), connection);
                    format!("\t{words}\t{}", condition::connection(connection))
                });
                out.line(format_args!(
                    "{name}\t{:<9}{:<15}{}\t{}{}",
                    status.worker.as_ref().map_or("-", word),
                    printable(&status.role),
                    printable(&status.localpath),
                    printable(&status.remoteaddr),
                    words.unwrap_or_default()
                ));
            }
        }
    }
    out.0
}

/// The long report: a block per resource.
pub(crate) fn list(entries: &[Entry], verbose: bool) -> String {
    let mut out = Text::default();
    for entry in entries {
        out.line(format_args!("{}:", printable(entry.name())));
        match entry {
            Entry::Error { error, .. } => out.line(format_args!("  error: {error}")),
            Entry::RoleWas { role, .. } => out.line(format_args!("  role: {}", printable(role))),
            Entry::Status { status, .. } => {
                resource(&mut out, status);
                if verbose {
                    out.0.push_str(&condition::lines(status.facts.as_ref(), status.connection.as_ref()));
                }
            }
        }
    }
    out.0
}

fn resource(out: &mut Text, status: &ResourceStatus) {
    let unknown = WorkerStatus::default();
    let worker = status.worker.as_ref().unwrap_or(&unknown);
    out.line(format_args!("  role: {}", printable(&status.role)));
    out.line(format_args!("  provname: {}", printable(&status.provname)));
    out.line(format_args!("  localpath: {}", printable(&status.localpath)));
    out.line(format_args!("  extentsize: {} ({})", worker.extentsize, human(worker.extentsize.into())));
    out.line(format_args!("  keepdirty: {}", worker.keepdirty));
    out.line(format_args!("  remoteaddr: {}", printable(&status.remoteaddr)));
    if let Some(source) = &status.sourceaddr {
        out.line(format_args!("  sourceaddr: {}", printable(source)));
    }
    out.line(format_args!("  replication: {}", printable(&status.replication)));
    if let Some(worker) = &status.worker {
        out.line(format_args!("  status: {}", word(worker)));
    }
    if status.workerpid != 0 {
        out.line(format_args!("  workerpid: {}", status.workerpid));
    }
    out.line(format_args!("  dirty: {} ({})", worker.dirty, human(worker.dirty)));
    let counted = &worker.statistics;
    out.line(format_args!("  statistics:"));
    out.line(format_args!("    reads: {}", counted.reads));
    out.line(format_args!("    writes: {}", counted.writes));
    out.line(format_args!("    deletes: {}", counted.deletes));
    out.line(format_args!("    flushes: {}", counted.flushes));
    out.line(format_args!("    activemap updates: {}", counted.activemap_updates));
    out.line(format_args!(
        "    local errors: read: {}, write: {}, delete: {}, flush: {}",
        counted.read_errors, counted.write_errors, counted.delete_errors, counted.flush_errors
    ));
    out.line(format_args!(
        "    queues: local: {}, send: {}, recv: {}, done: {}, idle: {}",
        counted.local_queue, counted.send_queue, counted.recv_queue, counted.done_queue, counted.idle_queue
    ));
}

fn word(worker: &WorkerStatus) -> &'static str {
    if worker.complete { "complete" } else { "degraded" }
}

#[derive(Default)]
struct Text(String);

impl Text {
    fn line(&mut self, line: std::fmt::Arguments<'_>) {
        // Writing to a string cannot fail.
        let _ = writeln!(self.0, "{line}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_said_about_nothing() {
        for verbose in [false, true] {
            assert_eq!(status(&[], verbose), "");
            assert_eq!(list(&[], verbose), "");
        }
    }

    #[test]
    fn an_unknown_resource_has_its_error() {
        let entries = [Entry::error("nosuch".to_owned(), 1)];
        assert_eq!(status(&entries, false), "Name\tStatus\t Role\t\tComponents\nnosuch\tERR1\n");
        assert_eq!(
            status(&entries, true),
            "Name\tStatus\t Role\t\tComponents\tCondition\tConnection\nnosuch\tERR1\n"
        );
        for verbose in [false, true] {
            assert_eq!(list(&entries, verbose), "nosuch:\n  error: 1\n");
        }
    }

    #[test]
    fn a_daemon_cannot_steer_the_terminal() {
        let entries = [Entry::error("a\u{1b}[2J\nb".to_owned(), 1)];
        assert_eq!(list(&entries, false), "a?[2J?b:\n  error: 1\n");
    }
}
