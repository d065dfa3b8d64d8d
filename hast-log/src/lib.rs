//! Log output as HAST administrators know it (spec/control.md, "Logging").
//!
//! Owns where a message goes and what surrounds it: the level tag, the `[resource] (role) ` prefix, the
//! terminal or the system's log. It decides nothing about what is worth saying; callers use the macros of
//! the [`log`] crate. Logging never fails, never blocks and never panics: what cannot be delivered is
//! dropped.
//!
//! | macro | terminal | syslog |
//! |---|---|---|
//! | `error!` | `[ERROR] ` on stderr | err |
//! | `warn!` | `[WARNING] ` on stderr | warning |
//! | `info!` | `[INFO] ` on stdout | info |
//! | `debug!` (one `-d`) | `[DEBUG][1] ` on stdout | debug |
//! | `trace!` (`-dd`) | `[DEBUG][2] ` on stdout | debug |
//! | [`critical`] | `[CRIT] ` on stderr | crit |
#![forbid(unsafe_code)]
#![warn(missing_docs)]

mod repeats;
mod syslog;

use std::cell::RefCell;
use std::fmt;
use std::io::{self, Write};
use std::marker::PhantomData;
use std::os::fd::BorrowedFd;
use std::panic;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use log::{Level, LevelFilter, Log, Metadata, Record};

use repeats::{Line, Repeats};
pub use syslog::Syslog;

/// Where messages go.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Sink {
    /// Standard output and standard error, with level tags: `hastctl`, and `hastd -F`.
    Terminal,
    /// The system's log, facility daemon, with the process id and without level tags: `hastd` in the
    /// background. As long as no syslog daemon answers, messages go to the terminal instead.
    Syslog,
}

/// Starts logging to `sink`. `debug` is how often `-d` was given: 0 shows information and worse, 1 also
/// `debug!`, 2 and more also `trace!`. Calling it again changes both settings.
pub fn init(sink: Sink, debug: u8) {
    // An error means that a logger is set already: ours, from an earlier call.
    let _ = log::set_logger(&LOGGER);
    set_sink(sink);
    set_debug(debug);
}

/// Changes where messages go. The syslog socket is opened here, at once, so that it works later without
/// the file system (after chroot).
pub fn set_sink(sink: Sink) {
    let mut output = output();
    output.syslog = match sink {
        Sink::Terminal => None,
        Sink::Syslog => Some(output.syslog.take().unwrap_or_else(Syslog::system)),
    };
}

/// What `limit` makes of the descriptor of the connection to the syslog daemon, if there is one.
pub fn with_socket<T>(limit: impl FnOnce(BorrowedFd<'_>) -> T) -> Option<T> {
    output().syslog.as_ref().and_then(Syslog::descriptor).map(limit)
}

/// Changes how many debug levels are shown: see [`init`].
pub fn set_debug(debug: u8) {
    log::set_max_level(match debug {
        0 => LevelFilter::Info,
        1 => LevelFilter::Debug,
        _ => LevelFilter::Trace,
    });
}

/// Prefixes all messages of this thread with `[resource] (role) `, or as much of it as is given, until the
/// returned guard is dropped. Scopes nest: the inner one replaces the outer one. It also replaces the
/// process's prefix.
#[must_use = "the prefix lasts only as long as the guard"]
pub fn scope(resource: Option<&str>, role: Option<&str>) -> Scope {
    let previous = SCOPE.with_borrow_mut(|scope| scope.replace(prefix(resource, role)));
    Scope { previous, of_this_thread: PhantomData }
}

/// Prefixes all messages of all threads of this process (a worker is about one resource only), except
/// where a [`scope`] says otherwise.
pub fn set_process_prefix(resource: Option<&str>, role: Option<&str>) {
    output().prefix = prefix(resource, role);
}

/// Logs that an assumption of the program itself turned out wrong (`[CRIT] `). Shown at every debug level.
pub fn critical(message: fmt::Arguments<'_>) {
    emit(Severity::Critical, message);
}

/// From now on messages of one kind that come very often are counted instead of being shown, and told of once a minute and
/// when they have ended: a disk that fails ten thousand times a second does not fill another one. For programs that run
/// long, and call [`tell_repeats`]. With debug output everything is shown.
pub fn count_repeats() {
    output().repeats.get_or_insert_with(|| (Instant::now(), Repeats::default()));
}

/// Tells of all that was counted: the process ends.
pub fn end_repeats() {
    let mut output = output();
    let Some((_, mut repeats)) = output.repeats.take() else { return };
    let mut lines = Vec::new();
    repeats.end(&mut lines);
    lines.iter().for_each(|line| output.show(line));
}

/// Tells of what was counted and is due. When that is the case again, if nothing is logged meanwhile.
pub fn tell_repeats() -> Option<Instant> {
    let mut output = output();
    let (start, repeats) = output.repeats.as_mut()?;
    let mut lines = Vec::new();
    repeats.tell(start.elapsed(), &mut lines);
    let due = repeats.due().map(|due| *start + due);
    lines.iter().for_each(|line| output.show(line));
    due
}

/// From now on panics are logged as [`critical`] instead of being written to a standard error that a program
/// in the background does not have.
pub fn log_panics() {
    panic::set_hook(Box::new(|information| critical(format_args!("{information}"))));
}

/// The same, and then the process ends by SIGABRT: for a program of several threads, of which one that is gone
/// would leave the others waiting. Whoever started it sees what has happened, and can start another one.
pub fn abort_on_panic() {
    panic::set_hook(Box::new(|information| {
        critical(format_args!("{information}"));
        std::process::abort();
    }));
}

/// The system's text for an error, without Rust's `(os error N)`: what a message ends with, before the
/// full stop.
pub fn error_text(error: &io::Error) -> String {
    let text = error.to_string();
    match error.raw_os_error() {
        Some(number) => match text.strip_suffix(&format!(" (os error {number})")) {
            Some(stripped) => stripped.to_owned(),
            None => text,
        },
        None => text,
    }
}

/// A prefix in force: see [`scope`]. Dropping it brings the former prefix back.
#[derive(Debug)]
pub struct Scope {
    previous: Option<String>,
    /// The prefix belongs to a thread, so its guard stays there too.
    of_this_thread: PhantomData<*const ()>,
}

impl Drop for Scope {
    fn drop(&mut self) {
        let previous = self.previous.take();
        // The thread may be ending, its variables gone.
        let _ = SCOPE.try_with(|scope| {
            if let Ok(mut scope) = scope.try_borrow_mut() {
                *scope = previous;
            }
        });
    }
}

thread_local! {
    static SCOPE: RefCell<Option<String>> = const { RefCell::new(None) };
}

static LOGGER: Logger = Logger;
static OUTPUT: Mutex<Output> = Mutex::new(Output { syslog: None, prefix: String::new(), repeats: None });

/// What all threads share.
struct Output {
    /// Messages go to the terminal when absent.
    syslog: Option<Syslog>,
    prefix: String,
    /// With the moment from which their times count; absent if everything is shown.
    repeats: Option<(Instant, Repeats)>,
}

impl Output {
    fn show(&mut self, line: &Line) {
        let Line { severity, prefix, message } = line;
        let message = printable(message);
        if let Some(syslog) = &mut self.syslog
            && syslog.send(severity.number(), prefix, &message)
        {
            return;
        }
        let text = format!("{}{}{message}\n", severity.tag(), printable(prefix));
        // A closed terminal or a full disk is no reason to stop.
        let _ = if severity.is_trouble() {
            io::stderr().lock().write_all(text.as_bytes())
        } else {
            let mut stdout = io::stdout().lock();
            stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush())
        };
    }
}

fn output() -> MutexGuard<'static, Output> {
    // Nothing in here is left half done by a panic.
    OUTPUT.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Importance, with syslog's numbers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Severity {
    Critical,
    Error,
    Warning,
    Info,
    Debug(u8),
}

impl Severity {
    fn tag(self) -> String {
        match self {
            Severity::Critical => "[CRIT] ".to_owned(),
            Severity::Error => "[ERROR] ".to_owned(),
            Severity::Warning => "[WARNING] ".to_owned(),
            Severity::Info => "[INFO] ".to_owned(),
            Severity::Debug(level) => format!("[DEBUG][{level}] "),
        }
    }

    fn number(self) -> u8 {
        match self {
            Severity::Critical => 2,
            Severity::Error => 3,
            Severity::Warning => 4,
            Severity::Info => 6,
            Severity::Debug(_) => 7,
        }
    }

    fn is_trouble(self) -> bool {
        self.number() <= 4
    }
}

impl From<Level> for Severity {
    fn from(level: Level) -> Severity {
        match level {
            Level::Error => Severity::Error,
            Level::Warn => Severity::Warning,
            Level::Info => Severity::Info,
            Level::Debug => Severity::Debug(1),
            Level::Trace => Severity::Debug(2),
        }
    }
}

/// What the `log` crate hands its records to.
struct Logger;

impl Log for Logger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        // Libraries that are not ours have debug output too, which no administrator of HAST asked for.
        metadata.target().starts_with("hast") && metadata.level() <= log::max_level()
    }

    fn log(&self, record: &Record<'_>) {
        if self.enabled(record.metadata()) {
            emit(record.level().into(), *record.args());
        }
    }

    fn flush(&self) {}
}

fn prefix(resource: Option<&str>, role: Option<&str>) -> String {
    let mut text = String::new();
    if let Some(resource) = resource {
        text.push('[');
        text.push_str(resource);
        text.push_str("] ");
    }
    if let Some(role) = role {
        text.push('(');
        text.push_str(role);
        text.push_str(") ");
    }
    text
}

fn emit(severity: Severity, message: fmt::Arguments<'_>) {
    let message = message.to_string();
    let scope =
        SCOPE.try_with(|scope| scope.try_borrow().ok().and_then(|scope| scope.clone())).ok().flatten();
    let mut output = output();
    let prefix = scope.unwrap_or_else(|| output.prefix.clone());
    let line = Line { severity, prefix, message };
    let mut lines = Vec::new();
    match &mut output.repeats {
        // Debug output is asked for to see all of it.
        Some((start, repeats)) if log::max_level() <= LevelFilter::Info => {
            repeats.take(start.elapsed(), line, &mut lines);
        }
        _ => lines.push(line),
    }
    lines.iter().for_each(|line| output.show(line));
}

/// Messages may quote a peer or a client: control characters become visible instead of reaching a
/// terminal. Line ends stay (a configuration error has several lines).
fn printable(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() && c != '\n' && c != '\t' {
            out.extend(c.escape_default());
        } else {
            out.push(c);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_and_numbers_are_those_of_the_specification() {
        let table = [
            (Severity::Critical, "[CRIT] ", 2, true),
            (Severity::from(Level::Error), "[ERROR] ", 3, true),
            (Severity::from(Level::Warn), "[WARNING] ", 4, true),
            (Severity::from(Level::Info), "[INFO] ", 6, false),
            (Severity::from(Level::Debug), "[DEBUG][1] ", 7, false),
            (Severity::from(Level::Trace), "[DEBUG][2] ", 7, false),
        ];
        for (severity, tag, number, trouble) in table {
            assert_eq!(severity.tag(), tag);
            assert_eq!(severity.number(), number);
            assert_eq!(severity.is_trouble(), trouble);
        }
    }

    #[test]
    fn prefix_shows_what_is_known() {
        assert_eq!(prefix(Some("disk0"), Some("primary")), "[disk0] (primary) ");
        assert_eq!(prefix(Some("disk0"), None), "[disk0] ");
        assert_eq!(prefix(None, None), "");
    }

    #[test]
    fn scopes_nest_and_end() {
        let current = || SCOPE.with_borrow(Clone::clone);
        assert_eq!(current(), None);
        {
            let _outer = scope(Some("a"), Some("init"));
            assert_eq!(current().as_deref(), Some("[a] (init) "));
            {
                let _inner = scope(Some("b"), None);
                assert_eq!(current().as_deref(), Some("[b] "));
            }
            assert_eq!(current().as_deref(), Some("[a] (init) "));
            let other = std::thread::spawn(move || SCOPE.with_borrow(Clone::clone)).join().unwrap();
            assert_eq!(other, None, "a scope belongs to its thread");
        }
        assert_eq!(current(), None);
    }

    #[test]
    fn error_text_is_the_systems() {
        let text = error_text(&io::Error::from_raw_os_error(libc::ENOENT));
        assert_eq!(text, "No such file or directory");
        assert_eq!(error_text(&io::Error::other("something else")), "something else");
    }

    #[test]
    fn control_characters_do_not_reach_the_terminal() {
        assert_eq!(printable("a\u{1b}[2Jb\r\nc\td"), "a\\u{1b}[2Jb\\r\nc\td");
    }

    #[test]
    fn only_our_own_records_are_enabled() {
        log::set_max_level(LevelFilter::Trace);
        let of = |target| Metadata::builder().target(target).level(Level::Error).build();
        assert!(Logger.enabled(&of("hastd::worker")));
        assert!(Logger.enabled(&of("hast_conf")));
        assert!(!Logger.enabled(&of("polling")));
    }
}
