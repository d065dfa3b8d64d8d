//! The system's log: one datagram per line to the local syslog socket.
//!
//! Owns the socket and the datagram's form. The datagram carries no time: every syslog daemon stamps what
//! arrives without one, with the same machine's clock, and a worker in a chroot has no time zone file.

use std::env;
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process;

/// Facility daemon, shifted over the severity.
const FACILITY: u8 = 3 << 3;

/// What a syslog daemon takes for certain in one datagram, in bytes, when it refuses longer ones.
const SAFE_LENGTH: usize = 1000;

#[cfg(target_os = "freebsd")]
const SOCKETS: &[&str] = &["/var/run/logpriv", "/var/run/log"];
#[cfg(not(target_os = "freebsd"))]
const SOCKETS: &[&str] = &["/dev/log"];

/// A connection to the local syslog daemon, renewed when it breaks.
#[derive(Debug)]
pub struct Syslog {
    paths: Vec<PathBuf>,
    identity: String,
    socket: Option<UnixDatagram>,
}

impl Syslog {
    /// The system's own syslog daemon; connects at once if there is one.
    #[must_use]
    pub fn system() -> Syslog {
        Syslog::at(SOCKETS.iter().map(PathBuf::from).collect(), &program())
    }

    fn at(paths: Vec<PathBuf>, identity: &str) -> Syslog {
        let socket = connect(&paths);
        Syslog { paths, identity: identity.to_owned(), socket }
    }

    /// Sends `message`, each of its lines with the prefix, as syslog's `severity` (3 is an error). Says whether there is a
    /// syslog daemon at all; a daemon that is too slow loses the message, which counts as sent.
    pub fn send(&mut self, severity: u8, prefix: &str, message: &str) -> bool {
        let head = format!("<{}>{}[{}]: {prefix}", FACILITY | severity, self.identity, process::id());
        let mut sent = true;
        for line in message.lines() {
            // All of them, even after a failure: the daemon may be back for the next.
            sent &= self.deliver(&format!("{head}{line}"));
        }
        sent
    }

    /// The socket, if a daemon was there.
    pub(crate) fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        self.socket.as_ref().map(AsFd::as_fd)
    }

    fn deliver(&mut self, datagram: &str) -> bool {
        // Twice: the first failure may be a daemon that was restarted since the last message.
        for _ in 0..2 {
            if self.socket.is_none() {
                self.socket = connect(&self.paths);
            }
            let Some(socket) = &self.socket else { return false };
            match attempt(socket, datagram) {
                Ok(()) => return true,
                Err(error) if is_congestion(&error) => return true,
                Err(_) => self.socket = None,
            }
        }
        false
    }
}

fn attempt(socket: &UnixDatagram, datagram: &str) -> io::Result<()> {
    match socket.send(datagram.as_bytes()) {
        Err(error) if error.raw_os_error() == Some(libc::EMSGSIZE) => {
            let end = datagram.floor_char_boundary(SAFE_LENGTH);
            let (shortened, _) = datagram.split_at(end);
            socket.send(shortened.as_bytes()).map(|_| ())
        }
        result => result.map(|_| ()),
    }
}

fn is_congestion(error: &io::Error) -> bool {
    error.kind() == ErrorKind::WouldBlock || error.raw_os_error() == Some(libc::ENOBUFS)
}

fn connect(paths: &[PathBuf]) -> Option<UnixDatagram> {
    paths.iter().find_map(|path| {
        let socket = UnixDatagram::unbound().ok()?;
        socket.set_nonblocking(true).ok()?;
        socket.connect(path).ok()?;
        Some(socket)
    })
}

/// The program's name as logs show it. A worker's first argument is its title, `hastd: disk0 (primary)`.
fn program() -> String {
    name_in(&env::args_os().next().unwrap_or_default().to_string_lossy())
}

fn name_in(argument: &str) -> String {
    let command = argument.split_once(": ").map_or(argument, |(command, _)| command);
    Path::new(command)
        .file_name()
        .map_or_else(|| "hast".to_owned(), |name| name.to_string_lossy().into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn receive(socket: &UnixDatagram) -> String {
        let mut buffer = vec![0; 100_000];
        let n = socket.recv(&mut buffer).unwrap();
        String::from_utf8(buffer[..n].to_vec()).unwrap()
    }

    #[test]
    fn datagram_has_priority_name_pid_and_prefix() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let daemon = UnixDatagram::bind(&path).unwrap();
        let mut syslog = Syslog::at(vec![dir.path().join("none"), path], "hastd");
        assert!(syslog.send(3, "[disk0] (primary) ", "Split-brain!\nsecond line"));
        let pid = process::id();
        assert_eq!(receive(&daemon), format!("<27>hastd[{pid}]: [disk0] (primary) Split-brain!"));
        assert_eq!(receive(&daemon), format!("<27>hastd[{pid}]: [disk0] (primary) second line"));
    }

    #[test]
    fn a_restarted_daemon_is_found_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let mut syslog = Syslog::at(vec![path.clone()], "hastd");
        assert!(!syslog.send(6, "", "nobody there"));
        assert!(syslog.descriptor().is_none());
        let daemon = UnixDatagram::bind(&path).unwrap();
        assert!(syslog.send(6, "", "one"));
        assert!(syslog.descriptor().is_some());
        assert!(receive(&daemon).ends_with("]: one"));
        drop(daemon);
        std::fs::remove_file(&path).unwrap();
        assert!(!syslog.send(6, "", "lost"));
        let daemon = UnixDatagram::bind(&path).unwrap();
        assert!(syslog.send(6, "", "two"));
        assert!(receive(&daemon).ends_with("]: two"));
    }

    #[test]
    fn a_daemon_that_does_not_read_blocks_nobody() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let _daemon = UnixDatagram::bind(&path).unwrap();
        let mut syslog = Syslog::at(vec![path], "hastd");
        for i in 0..10_000 {
            assert!(syslog.send(7, "", &format!("message {i}")));
        }
    }

    #[test]
    fn an_over_long_message_is_shortened() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let daemon = UnixDatagram::bind(&path).unwrap();
        let mut syslog = Syslog::at(vec![path], "hastd");
        assert!(syslog.send(6, "", &"ä".repeat(4_000_000)));
        let text = receive(&daemon);
        assert!(text.contains("ää"));
        assert!(text.len() <= SAFE_LENGTH);
    }

    #[test]
    fn the_name_is_the_programs() {
        assert_eq!(name_in("hastd: a/b (primary)"), "hastd");
        assert_eq!(name_in("/usr/local/sbin/hastd"), "hastd");
        assert_eq!(name_in(""), "hast");
    }
}
