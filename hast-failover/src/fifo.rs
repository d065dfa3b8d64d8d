//! keepalived's notify FIFO: one line for each change of an instance or a group of VRRP, in the order in which they happened.
//!
//! Each line becomes a run of this program that works by itself; of several the latest counts, since it was made last.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Read};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Child;

use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::stat::Mode;

use crate::run::Role;

/// The longest line that is read.
const LONGEST: usize = 4096;

/// What a line says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Change {
    /// The instance's or the group's name.
    pub(crate) name: String,
    pub(crate) role: Role,
    pub(crate) abandon: bool,
}

/// Understands a line like `INSTANCE "name" MASTER 100`; none if it changes nothing here.
fn change(line: &str) -> Option<Change> {
    let line = line.trim();
    let rest = line.strip_prefix("INSTANCE ").or_else(|| line.strip_prefix("GROUP "))?;
    // A name in quotes may have blanks.
    let (name, rest) = match rest.strip_prefix('"') {
        Some(quoted) => quoted.rsplit_once('"')?,
        None => rest.split_once(' ')?,
    };
    let (role, abandon) = match rest.split_whitespace().next()? {
        "MASTER" => (Role::Primary, false),
        "BACKUP" | "STOP" => (Role::Secondary, false),
        // The interface is gone, or a check has failed: another node takes over.
        "FAULT" => (Role::Secondary, true),
        _ => return None,
    };
    Some(Change { name: name.to_owned(), role, abandon })
}

/// Lines out of pieces.
#[derive(Debug, Default)]
struct Lines(Vec<u8>);

impl Lines {
    /// Adds a piece; gives the lines that are whole now.
    fn add(&mut self, piece: &[u8]) -> Vec<String> {
        let mut lines = Vec::new();
        for byte in piece {
            if *byte == b'\n' {
                lines.push(String::from_utf8_lossy(&self.0).into_owned());
                self.0.clear();
            } else if self.0.len() < LONGEST {
                self.0.push(*byte);
            }
        }
        lines
    }
}

/// A run that was started.
struct Running {
    /// What it was started with: its manner, role and groups.
    order: (Role, bool, Vec<String>),
    child: Child,
}

/// What a FIFO is served with.
pub(crate) trait Follower {
    /// The groups that follow a name, in the order in which they are worked on.
    fn groups(&mut self, change: &Change) -> Vec<String>;
    /// Starts a run.
    fn start(&mut self, change: &Change, groups: &[String]) -> io::Result<Child>;
    fn note(&mut self, words: &str);
    fn warn(&mut self, words: &str);
}

/// Opens a FIFO, and makes it if it is not there.
///
/// # Errors
///
/// The path is no FIFO, or anybody could write to it.
pub(crate) fn open(path: &Path) -> io::Result<File> {
    match nix::unistd::mkfifo(path, Mode::S_IRUSR | Mode::S_IWUSR) {
        Ok(()) | Err(nix::errno::Errno::EEXIST) => {}
        Err(errno) => return Err(errno.into()),
    }
    // Also for writing: it does not end when keepalived closes it.
    let file = OpenOptions::new().read(true).write(true).custom_flags(OFlag::O_NONBLOCK.bits()).open(path)?;
    let metadata = file.metadata()?;
    if !metadata.file_type().is_fifo() {
        return Err(io::Error::other("it is not a FIFO"));
    }
    if metadata.mode() & 0o002 != 0 {
        return Err(io::Error::other("everybody can write to it"));
    }
    Ok(file)
}

/// Serves a FIFO until something comes through `end`; what has been written to it by then is served too.
pub(crate) fn serve(mut fifo: File, end: &UnixStream, follower: &mut impl Follower) -> io::Result<()> {
    let (mut lines, mut running) = (Lines::default(), Vec::new());
    loop {
        // Those that have ended are looked after now and then.
        let patience = if running.is_empty() { PollTimeout::NONE } else { PollTimeout::from(1000u16) };
        let ended = {
            let mut both =
                [PollFd::new(fifo.as_fd(), PollFlags::POLLIN), PollFd::new(end.as_fd(), PollFlags::POLLIN)];
            match poll(&mut both, patience) {
                Ok(_) | Err(nix::errno::Errno::EINTR) => {}
                Err(errno) => return Err(errno.into()),
            }
            both.get(1).is_some_and(|end| end.any().unwrap_or(false))
        };
        read(&mut fifo, &mut lines, |line| follow(&line, &mut running, follower))?;
        running.retain_mut(|run: &mut Running| matches!(run.child.try_wait(), Ok(None)));
        if ended {
            return Ok(());
        }
    }
}

/// Reads what is there.
fn read(fifo: &mut File, lines: &mut Lines, mut each: impl FnMut(String)) -> io::Result<()> {
    let mut buffer = [0; LONGEST];
    loop {
        match fifo.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(length) => lines.add(buffer.get(..length).unwrap_or_default()).into_iter().for_each(&mut each),
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

fn follow(line: &str, running: &mut Vec<Running>, follower: &mut impl Follower) {
    let Some(change) = change(line) else { return };
    let groups = follower.groups(&change);
    if groups.is_empty() {
        return;
    }
    let order = (change.role, change.abandon, groups);
    // Instance and group both have a line for the same thing: a run that is at it is not begun again.
    if let Some(last) = running.last_mut()
        && last.order == order
        && matches!(last.child.try_wait(), Ok(None))
    {
        return;
    }
    follower.note(&format!("{}: {} {}", line.trim(), order.0, order.2.join(" ")));
    match follower.start(&change, &order.2) {
        Ok(child) => running.push(Running { order, child }),
        Err(error) => follower.warn(&format!("hast-failover {}: {error}", order.0)),
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    fn said(role: Role, abandon: bool) -> Change {
        Change { name: "VI 1".to_owned(), role, abandon }
    }

    #[test]
    fn lines_become_roles() {
        for (line, expected) in [
            ("INSTANCE \"VI 1\" MASTER 100", Some(said(Role::Primary, false))),
            ("GROUP \"VI 1\" BACKUP 0\r", Some(said(Role::Secondary, false))),
            ("INSTANCE \"VI 1\" STOP 100", Some(said(Role::Secondary, false))),
            ("INSTANCE \"VI 1\" FAULT", Some(said(Role::Secondary, true))),
            (
                "INSTANCE VI_1 MASTER 100",
                Some(Change { name: "VI_1".to_owned(), ..said(Role::Primary, false) }),
            ),
            ("INSTANCE \"VI 1\" MASTER_RX_LOWER_PRI 100", None),
            ("INSTANCE \"VI 1\" DELETED 0", None),
            ("VS [x]:tcp:80 UP", None),
            ("INSTANCE \"VI", None),
            ("INSTANCE", None),
            ("", None),
        ] {
            assert_eq!(change(line), expected, "{line}");
        }
    }

    #[test]
    fn lines_come_in_pieces() {
        let mut lines = Lines::default();
        assert_eq!(lines.add(b"INSTANCE \"a\" MA"), [""; 0]);
        assert_eq!(lines.add(b"STER 1\nGROUP"), ["INSTANCE \"a\" MASTER 1"]);
        assert_eq!(lines.add(b"\n\nx"), ["GROUP", ""]);
        // One without an end does not fill the memory, and the next one is read.
        assert_eq!(lines.add(&[b'y'; 3 * LONGEST]), [""; 0]);
        assert_eq!(lines.add(b"\nz\n")[1], "z");
    }

    struct Recorder {
        started: Vec<(Role, bool)>,
        program: &'static str,
    }

    impl Follower for Recorder {
        fn groups(&mut self, change: &Change) -> Vec<String> {
            if change.name == "other" { Vec::new() } else { vec!["g".to_owned()] }
        }

        fn start(&mut self, change: &Change, _: &[String]) -> io::Result<Child> {
            self.started.push((change.role, change.abandon));
            Command::new("sh").args(["-c", self.program]).spawn()
        }

        fn note(&mut self, _: &str) {}

        fn warn(&mut self, words: &str) {
            panic!("{words}");
        }
    }

    fn served(text: &[u8], program: &'static str) -> Vec<(Role, bool)> {
        use std::io::Write;
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("fifo");
        let fifo = open(&path).unwrap();
        let mut writer = OpenOptions::new().write(true).open(&path).unwrap();
        writer.write_all(text).unwrap();
        let (end, mut ours) = UnixStream::pair().unwrap();
        ours.write_all(b"x").unwrap();
        let mut recorder = Recorder { started: Vec::new(), program };
        serve(fifo, &end, &mut recorder).unwrap();
        recorder.started
    }

    #[test]
    fn what_was_written_before_the_end_is_served_in_order() {
        let text =
            b"INSTANCE \"a\" MASTER 1\nINSTANCE \"other\" BACKUP 1\nnonsense\nINSTANCE \"a\" BACKUP 1\n\
                     INSTANCE \"a\" FAULT 1\nINSTANCE \"a\" MASTER";
        let expected = [(Role::Primary, false), (Role::Secondary, false), (Role::Secondary, true)];
        assert_eq!(served(text, "exit 0"), expected);
    }

    #[test]
    fn a_run_that_is_at_it_is_not_begun_again() {
        let text = b"INSTANCE \"a\" MASTER 1\nGROUP \"b\" MASTER 1\nGROUP \"b\" BACKUP 1\n";
        let expected = [(Role::Primary, false), (Role::Secondary, false)];
        assert_eq!(served(text, "read -r x </dev/null; sleep 20"), expected);
    }

    #[test]
    fn only_a_fifo_of_ours_is_served() {
        use std::os::unix::fs::PermissionsExt;
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        std::fs::write(&path, "").unwrap();
        assert!(open(&path).unwrap_err().to_string().contains("not a FIFO"));
        let path = directory.path().join("fifo");
        drop(open(&path).unwrap());
        drop(open(&path).unwrap());
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o666)).unwrap();
        assert!(open(&path).unwrap_err().to_string().contains("everybody"));
    }
}
