//! Programs that are watched: what they print is passed on line by line, and while they print nothing it is said how
//! long they have been running. No more than that: no colours, no cursor, the same on a terminal and in CI.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

/// Nothing is silent for ten seconds.
const SILENCE: Duration = Duration::from_secs(9);
/// How long what a program has left behind may keep its output open.
const REST: Duration = Duration::from_secs(2);

/// What is being waited for.
#[derive(Clone)]
pub(crate) struct Watch {
    name: String,
    begin: Instant,
    last: Option<Duration>,
}

/// What happens to a program.
enum Event {
    Out(Vec<u8>),
    Error(Vec<u8>),
    /// It, or one that it has left behind, will print nothing more here.
    Closed,
    Ended(io::Result<ExitStatus>),
}

impl Watch {
    /// Begins now. `last` is how long it took the last time.
    pub(crate) fn begin(name: &str, last: Option<Duration>) -> Watch {
        Watch { name: name.to_owned(), begin: Instant::now(), last }
    }

    /// How long it has been going on.
    pub(crate) fn took(&self) -> Duration {
        self.begin.elapsed()
    }

    /// Runs a program to its end, with nothing to read.
    ///
    /// # Errors
    /// It cannot be started or waited for.
    pub(crate) fn run(&self, command: &mut Command) -> io::Result<ExitStatus> {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.env("CARGO_TERM_COLOR", "never").env("NO_COLOR", "1");
        let mut child = command.spawn()?;
        let (sender, events) = channel();
        pass_on(child.stdout.take(), Event::Out, &sender);
        pass_on(child.stderr.take(), Event::Error, &sender);
        std::thread::spawn(move || sender.send(Event::Ended(child.wait())));
        let (mut open, mut ended) = (2_u8, None);
        while open > 0 || ended.is_none() {
            match events.recv_timeout(if ended.is_some() { REST } else { SILENCE }) {
                Ok(Event::Out(line)) => io::stdout().write_all(&line)?,
                Ok(Event::Error(line)) => io::stderr().write_all(&line)?,
                Ok(Event::Closed) => open = open.saturating_sub(1),
                Ok(Event::Ended(status)) => ended = Some(status),
                Err(RecvTimeoutError::Timeout) if ended.is_none() => {
                    println!("{}", so_far(&self.name, self.took(), self.last));
                }
                Err(_) => break,
            }
        }
        ended.unwrap_or_else(|| Err(io::Error::other("nobody has waited for it")))
    }
}

/// Reads one of a program's outputs, line by line. A line that is not finished does not count as said.
fn pass_on(
    output: Option<impl Read + Send + 'static>,
    as_event: fn(Vec<u8>) -> Event,
    sender: &Sender<Event>,
) {
    let sender = sender.clone();
    std::thread::spawn(move || {
        let mut output = output.map(BufReader::new);
        loop {
            let mut line = Vec::new();
            match output.as_mut().map(|output| output.read_until(b'\n', &mut line)) {
                Some(Ok(1..)) => {}
                _ => break,
            }
            if !line.ends_with(b"\n") {
                line.push(b'\n');
            }
            if sender.send(as_event(line)).is_err() {
                return;
            }
        }
        let _ = sender.send(Event::Closed);
    });
}

/// The line of somebody who waits.
fn so_far(name: &str, took: Duration, last: Option<Duration>) -> String {
    let last = last.map(|last| format!(" ({} last time)", about(last))).unwrap_or_default();
    format!("{name}: {} so far{last}", about(took))
}

/// A duration as one tells it: seconds up to two minutes, then minutes.
pub(crate) fn about(duration: Duration) -> String {
    match duration.as_secs() {
        seconds @ ..120 => format!("{seconds} s"),
        seconds => format!("{} min", seconds.saturating_add(30) / 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_told_how_long_it_takes() {
        let seconds = Duration::from_secs;
        assert_eq!(so_far("tests", seconds(40), Some(seconds(470))), "tests: 40 s so far (8 min last time)");
        assert_eq!(so_far("tests", seconds(119), None), "tests: 119 s so far");
        assert_eq!(so_far("tests", seconds(149), None), "tests: 2 min so far");
        assert_eq!(about(Duration::from_millis(700)), "0 s");
    }

    #[test]
    fn what_a_program_prints_is_passed_on_and_its_status_is_kept() {
        let watch = Watch::begin("sh", None);
        let status = watch.run(Command::new("sh").args(["-c", "printf unfinished; exit 3"])).unwrap();
        assert_eq!(status.code(), Some(3));
        assert!(watch.run(&mut Command::new("hast-no-such-program")).is_err());
    }

    /// It has the output still open, and nobody waits for it.
    #[test]
    fn what_a_program_leaves_behind_is_not_waited_for() {
        let status =
            Watch::begin("sh", None).run(Command::new("sh").args(["-c", "sleep 100 & exit 0"])).unwrap();
        assert!(status.success());
    }
}
