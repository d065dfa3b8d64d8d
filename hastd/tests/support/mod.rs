//! A real hastd in a directory of its own, and what talks to it.
#![allow(dead_code)] // Each test program uses its part.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

use hast_format::metadata::Role;
use hast_format::nv::{List, Writer};
use hast_net::buffer::Pool;
use hast_net::control::{self, Entry, Reply, Request, ResourceStatus};
use hast_net::frame::{self, Frame, Limits, Receiver};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use socket2::{Domain, SockAddr, Socket, Type};

/// Long enough for a machine under load.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Waits until `found` finds something.
pub(crate) fn wait_for<T>(what: &str, mut found: impl FnMut() -> Option<T>) -> T {
    let give_up = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = found() {
            return found;
        }
        assert!(Instant::now() < give_up, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A directory with a hast.conf for node `a`.
pub(crate) struct Place {
    directory: tempfile::TempDir,
    /// Where its hastd listens for other nodes: a loopback address that no other test has.
    pub(crate) address: Ipv4Addr,
    pub(crate) port: u16,
}

impl Place {
    pub(crate) fn new() -> Place {
        static PLACES: AtomicU8 = AtomicU8::new(1);
        let [.., high, low] = std::process::id().to_be_bytes();
        let address = Ipv4Addr::new(127, 64 | (high & 63), low, PLACES.fetch_add(1, Ordering::Relaxed));
        let [port] = free_ports(address);
        Place { directory: tempfile::tempdir().unwrap(), address, port }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub(crate) fn conf(&self) -> PathBuf {
        self.path("hast.conf")
    }

    pub(crate) fn control(&self) -> PathBuf {
        self.path("ctl")
    }

    /// Writes hast.conf: control socket, pidfile, listen address and NBD directory, then `resources`, in
    /// which `@` stands for the directory.
    pub(crate) fn configure(&self, resources: &str) {
        let text = format!(
            "control uds://@/ctl\npidfile @/hastd.pid\nlisten tcp4://{}:{}\nnbd @/nbd\n{resources}",
            self.address, self.port
        );
        self.write_conf(&text);
    }

    /// Writes hast.conf, in which `@` stands for the directory.
    pub(crate) fn write_conf(&self, text: &str) {
        fs::write(self.conf(), text.replace('@', self.directory.path().to_str().unwrap())).unwrap();
    }

    /// Makes an empty file for a provider.
    pub(crate) fn provider(&self, name: &str) -> PathBuf {
        let path = self.path(name);
        File::create(&path).unwrap().set_len(1 << 20).unwrap();
        path
    }

    /// Makes a provider as `hastctl create` does.
    pub(crate) fn create(&self, name: &str, resource: &str) -> PathBuf {
        let path = self.provider(name);
        let provider = hast_provider::Provider::open(&path, true).unwrap();
        let layout = hast_format::layout::Layout::create(1 << 20, 512, 65536).unwrap();
        let metadata = hast_format::metadata::Metadata::created(resource, &layout, 4);
        provider.initialize(&metadata, &layout).unwrap();
        path
    }

    /// hastd with this directory's configuration, not started yet.
    pub(crate) fn command(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_hastd"));
        command.arg("-c").arg(self.conf()).args(["-N", "a"]).stdin(Stdio::null());
        command
    }

    /// Starts hastd in the foreground and waits until it answers.
    pub(crate) fn start(&self) -> Daemon<'_> {
        self.start_with(&[])
    }

    pub(crate) fn start_with(&self, options: &[&str]) -> Daemon<'_> {
        self.start_as(&mut self.command(), options)
    }

    /// The same with a command of one's own.
    pub(crate) fn start_as(&self, command: &mut Command, options: &[&str]) -> Daemon<'_> {
        self.start_showing(command.arg("-dd"), options)
    }

    /// The same without debug output.
    pub(crate) fn start_quietly(&self) -> Daemon<'_> {
        self.start_showing(&mut self.command(), &[])
    }

    fn start_showing(&self, command: &mut Command, options: &[&str]) -> Daemon<'_> {
        let log = OpenOptions::new().create(true).append(true).open(self.path("log")).unwrap();
        let started = || self.log().matches("Started successfully").count();
        let before = started();
        let child =
            command.arg("-F").args(options).stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap();
        let mut daemon = Daemon { place: self, child };
        wait_for("hastd to start", || {
            if let Some(status) = daemon.child.try_wait().unwrap() {
                panic!("hastd ended with {status}:\n{}", self.log());
            }
            (started() > before).then_some(())
        });
        daemon
    }

    /// What hastd and its workers have printed.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.path("log")).unwrap_or_default()
    }

    /// Waits until hastd has said something.
    pub(crate) fn wait_for_log(&self, text: &str) {
        self.wait_for_log_times(text, 1);
    }

    /// Waits until hastd has said something that often.
    pub(crate) fn wait_for_log_times(&self, text: &str, times: usize) {
        let give_up = Instant::now() + PATIENCE;
        while self.log().matches(text).count() < times {
            assert!(Instant::now() < give_up, "`{text}' is not in the log:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// What a file says once it has that many lines; hooks write such files.
    pub(crate) fn wait_for_lines(&self, name: &str, lines: usize) -> Vec<String> {
        wait_for(&format!("{lines} lines in {name}"), || {
            let text = fs::read_to_string(self.path(name)).unwrap_or_default();
            (text.lines().count() >= lines).then(|| text.lines().map(str::to_owned).collect())
        })
    }

    /// Makes a hook that appends its arguments to the file `events`.
    pub(crate) fn hook(&self) -> PathBuf {
        use std::os::unix::fs::PermissionsExt;
        let path = self.path("hook");
        fs::write(&path, format!("#!/bin/sh\necho \"$*\" >> {}\n", self.path("events").display())).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        path
    }

    /// Sends a control request and decodes the answer.
    pub(crate) fn ask(&self, request: &Request) -> Reply {
        ask_at(&self.control(), request)
    }

    /// Changes a role, and insists that it is done. The role that was, for each resource.
    pub(crate) fn set_role(&self, role: Role, names: &[&str]) -> Vec<String> {
        let reply = self.ask(&set_role(role, names));
        let Reply::Entries(entries) = reply else { panic!("{reply:?}") };
        entries
            .into_iter()
            .map(|entry| match entry {
                Entry::RoleWas { role, .. } => role,
                other => panic!("{other:?}\n{}", self.log()),
            })
            .collect()
    }

    /// Asks for a role that the resource cannot have. The error.
    pub(crate) fn refused(&self, role: Role, name: &str) -> i16 {
        let reply = self.ask(&set_role(role, &[name]));
        match reply {
            Reply::Entries(entries) => match entries.as_slice() {
                [Entry::Error { name: of, error, .. }] if of == name => *error,
                other => panic!("{other:?}\n{}", self.log()),
            },
            other => panic!("{other:?}"),
        }
    }

    /// Asks for the status of a resource.
    pub(crate) fn status(&self, name: &str) -> ResourceStatus {
        let reply = self.ask(&status(&[name]));
        let Reply::Entries(entries) = reply else { panic!("{reply:?}") };
        match entries.into_iter().next() {
            Some(Entry::Status { status, .. }) => *status,
            other => panic!("{other:?}\n{}", self.log()),
        }
    }

    pub(crate) fn role(&self, name: &str) -> String {
        self.status(name).role
    }

    /// Connects as another node, from `source` (any address of 127.0.0.0/8).
    pub(crate) fn connect_from(&self, source: &str) -> Stream {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        let source: SocketAddr = format!("{source}:0").parse().unwrap();
        socket.bind(&SockAddr::from(source)).unwrap();
        let there = SocketAddr::from((self.address, self.port));
        socket.connect(&SockAddr::from(there)).unwrap();
        Stream::new(socket.into())
    }
}

/// A running hastd; killed when dropped.
pub(crate) struct Daemon<'a> {
    place: &'a Place,
    pub(crate) child: Child,
}

impl Daemon<'_> {
    pub(crate) fn pid(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.child.id()).unwrap())
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill(self.pid(), signal).unwrap();
    }

    /// Reloads the configuration and waits for the outcome.
    pub(crate) fn reload(&self) {
        let before = self.place.log().matches("Configuration reloaded").count();
        self.signal(Signal::SIGHUP);
        self.place.wait_for_log_times("Configuration reloaded", before + 1);
    }

    /// Waits for its end.
    pub(crate) fn wait(&mut self) -> ExitStatus {
        wait_for("hastd to end", || self.child.try_wait().unwrap())
    }

    /// Ends it as an administrator does.
    pub(crate) fn stop(mut self) -> ExitStatus {
        self.signal(Signal::SIGTERM);
        self.wait()
    }
}

impl Drop for Daemon<'_> {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A connection to hastd, with frames cut from what comes back.
pub(crate) struct Stream {
    pub(crate) socket: TcpStream,
    receiver: Receiver,
}

impl Stream {
    pub(crate) fn new(socket: TcpStream) -> Stream {
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket.set_write_timeout(Some(PATIENCE)).unwrap();
        Stream { socket, receiver: Receiver::new(Limits::PEER, Pool::new()) }
    }

    pub(crate) fn send(&mut self, version: u8, list: &Writer) {
        self.socket.write_all(&frame::encode(version, list.as_bytes()).unwrap()).unwrap();
    }

    /// The next frame; `None` when the connection was closed.
    pub(crate) fn receive(&mut self) -> Option<Frame> {
        loop {
            if let Some(frame) = self.receiver.next_frame() {
                return Some(frame);
            }
            match self.socket.read(self.receiver.space()) {
                Ok(0) => {
                    assert!(self.receiver.is_idle(), "the connection ended inside a frame");
                    return None;
                }
                Ok(length) => self.receiver.advance(length).unwrap(),
                Err(error) if error.kind() == ErrorKind::ConnectionReset => return None,
                Err(error) => panic!("{error}"),
            }
        }
    }

    /// The only frame before the connection is closed.
    pub(crate) fn last(&mut self) -> Frame {
        let frame = self.receive().expect("a frame");
        assert_eq!(self.receive(), None);
        frame
    }
}

/// Different ports of that address that nobody uses at the moment.
pub(crate) fn free_ports<const COUNT: usize>(address: Ipv4Addr) -> [u16; COUNT] {
    let taken = [(); COUNT].map(|()| TcpListener::bind((address, 0)).unwrap());
    taken.map(|listener| listener.local_addr().unwrap().port())
}

pub(crate) fn set_role(role: Role, names: &[&str]) -> Request {
    request(control::Command::SetRole(role), names)
}

pub(crate) fn status(names: &[&str]) -> Request {
    request(control::Command::Status, names)
}

fn request(command: control::Command, names: &[&str]) -> Request {
    Request::new(command, names.iter().map(|name| (*name).to_owned()).collect())
}

pub(crate) fn ask_at(control: &Path, request: &Request) -> Reply {
    let answer = exchange(control, &frame::encode(2, &request.encode()).unwrap());
    let frame = answer.expect("an answer");
    assert_eq!(frame.version, 2);
    Reply::decode(&List::parse(&frame.nv).unwrap()).unwrap()
}

/// Sends bytes to the control socket, says that there are no more, and returns the answer, if there is one.
pub(crate) fn exchange(control: &Path, bytes: &[u8]) -> Option<Frame> {
    let mut socket = UnixStream::connect(control).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    // hastd may have closed the connection before it has all.
    let _ = socket.write_all(bytes);
    let _ = socket.shutdown(std::net::Shutdown::Write);
    let mut receiver = Receiver::new(Limits::CONTROL, Pool::new());
    loop {
        match socket.read(receiver.space()) {
            Ok(0) => break,
            Ok(length) => receiver.advance(length).unwrap(),
            Err(error) if error.kind() == ErrorKind::ConnectionReset => break,
            Err(error) => panic!("{error}"),
        }
    }
    let frame = receiver.next_frame();
    assert!(receiver.is_idle() && receiver.next_frame().is_none());
    frame
}

/// Whether a process exists (and is not just waiting to be buried).
pub(crate) fn is_alive(pid: i32) -> bool {
    match fs::read_to_string(format!("/proc/{pid}/stat")) {
        Ok(stat) => !stat.rsplit(") ").next().is_some_and(|rest| rest.starts_with('Z')),
        Err(_) => !Path::new("/proc/self/stat").exists() && kill(Pid::from_raw(pid), None).is_ok(),
    }
}
