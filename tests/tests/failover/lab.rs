//! Hosts on this machine: each one has its own network, hostname, mounts and processes, and hangs with one link on
//! one switch. Whatever a test leaves, even one that fails, goes away with the lab.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};

use hast_tests::programs::Programs;
use hast_tests::{Context, Failure, Run, SHORT, wait_for, wait_until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Directories of labs begin like this, then comes the process id of the test.
const PREFIX: &str = "hast-lab.";
/// The network that all hosts of a lab are in, and no other.
const NETWORK: &str = "10.77.0";

/// A switch and a directory for everything the hosts write.
pub(crate) struct Lab {
    switch: Option<Namespaces>,
    directory: tempfile::TempDir,
}

/// What a lab is made with.
const NEEDED: &[&str] = &["unshare", "nsenter", "ip", "losetup"];

impl Lab {
    /// A lab without hosts; none if this is not root or `programs` are not all installed, which is a failure in CI.
    pub(crate) fn new(programs: &[&str]) -> Result<Option<Lab>, Failure> {
        if !nix::unistd::geteuid().is_root() {
            if hast_tests::tools::in_ci() {
                return Failure::because("hosts can be made by root only");
            }
            eprintln!("SKIPPED: not root");
            return Ok(None);
        }
        if !hast_tests::tools::have(&[NEEDED, programs].concat())? {
            return Ok(None);
        }
        sweep();
        let directory =
            tempfile::Builder::new().prefix(&format!("{PREFIX}{}.", std::process::id())).tempdir()?;
        let switch = Namespaces::start("switch", directory.path())?;
        let lab = Lab { switch: Some(switch), directory };
        // Snooping would keep CARP's announcements from hosts that have not asked for them.
        lab.switch("ip link add br0 type bridge forward_delay 0 mcast_snooping 0 && ip link set br0 up")?;
        Ok(Some(lab))
    }

    /// The directory of the lab.
    pub(crate) fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// A host with this name and the address `10.77.0.<number>`.
    pub(crate) fn host(&self, name: &str, number: u8) -> Result<Host, Failure> {
        let directory = self.directory().join(name);
        std::fs::create_dir_all(&directory)?;
        let mut host = Host {
            name: name.to_string(),
            number,
            directory,
            lab: self.directory().to_path_buf(),
            programs: Programs::find()?,
            environment: Vec::new(),
            namespaces: None,
        };
        self.boot(&mut host)?;
        Ok(host)
    }

    /// Starts a host again that was killed.
    pub(crate) fn boot(&self, host: &mut Host) -> Result<(), Failure> {
        let namespaces = Namespaces::start(&host.name, self.directory())?;
        // Both ends are gone when the host is; the switch's end may take a moment.
        let port = format!("v-{}", host.name);
        wait_until("the port to be free", SHORT, || {
            Ok(self.switch(&format!("! ip link show {port}")).is_ok())
        })?;
        // The hardware address stays the same over a restart, as a real one does.
        self.switch(&format!(
            "ip link add {port} type veth peer address 02:00:00:00:00:{:02x} name eth0 netns {} && \
             ip link set {port} master br0 up",
            host.number, namespaces.init
        ))?;
        host.namespaces = Some(namespaces);
        host.sh(&format!("ip addr add {}/24 dev eth0 && ip link set eth0 up", host.address())).map(drop)
    }

    /// Cuts a host off, as if its cable were pulled, or puts the cable back.
    pub(crate) fn set_link(&self, host: &Host, up: bool) -> Result<(), Failure> {
        self.switch(&format!("ip link set v-{} {}", host.name, if up { "up" } else { "down" }))
    }

    /// Keeps a host from everybody else, but leaves its interface as it is, as when the switch fails.
    pub(crate) fn set_port(&self, host: &Host, forwarding: bool) -> Result<(), Failure> {
        // A port that is only disabled is forwarding again at once, without anybody's doing.
        let bridge = if forwarding { "master br0" } else { "nomaster" };
        self.switch(&format!("ip link set v-{} {bridge}", host.name))
    }

    fn switch(&self, script: &str) -> Result<(), Failure> {
        let switch = self.switch.as_ref().context("the switch")?;
        // Only its network: process ids are those of this machine.
        let mut command = Command::new("nsenter");
        command.args(["-t", &switch.init.to_string(), "-n", "sh", "-c", script]);
        Run::of(&mut command)?.ok(script).map(drop)
    }
}

/// One host, running or not.
pub(crate) struct Host {
    name: String,
    number: u8,
    directory: PathBuf,
    lab: PathBuf,
    programs: Programs,
    environment: Vec<(String, String)>,
    namespaces: Option<Namespaces>,
}

impl Host {
    /// Its name, which is also its hostname.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Its own address.
    pub(crate) fn address(&self) -> String {
        format!("{NETWORK}.{}", self.number)
    }

    /// Whether it runs.
    pub(crate) fn is_running(&self) -> bool {
        self.namespaces.is_some()
    }

    /// Its directory, which stays when it is killed.
    pub(crate) fn directory(&self) -> &Path {
        &self.directory
    }

    /// From now on, a variable for every command.
    pub(crate) fn set(&mut self, name: &str, value: &str) {
        self.environment.push((name.to_string(), value.to_string()));
    }

    /// A command on the host.
    pub(crate) fn command(&self, program: &str, arguments: &[&str]) -> Result<Command, Failure> {
        let namespaces = self.namespaces.as_ref().context(format!("{} does not run", self.name))?;
        let mut command = Command::new("nsenter");
        command.args(["-t", &namespaces.init.to_string(), "-n", "-u", "-m", "-p", "-i", "--", program]);
        let built = self.programs.hastd.parent().context("programs lie in a directory")?;
        let path = std::env::var("PATH").unwrap_or_default();
        let dist = concat!(env!("CARGO_MANIFEST_DIR"), "/../dist");
        command
            .args(arguments)
            .env("PATH", format!("{}:{dist}/ucarp:{path}:/usr/sbin:/sbin", built.display()));
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        Ok(command)
    }

    /// Runs a command on the host to its end.
    pub(crate) fn run(&self, program: &str, arguments: &[&str]) -> Result<Run, Failure> {
        Run::of(&mut self.command(program, arguments)?)
    }

    /// Runs a script on the host, which must succeed; gives what it printed.
    pub(crate) fn sh(&self, script: &str) -> Result<String, Failure> {
        self.run("sh", &["-c", script])?.ok(&format!("{}: {script}", self.name))
    }

    /// Starts a command on the host that goes on running; what it says goes to `<directory>/<log>`.
    pub(crate) fn spawn(&self, log: &str, program: &str, arguments: &[&str]) -> Result<Child, Failure> {
        let file = File::options().create(true).append(true).open(self.directory.join(log))?;
        let mut command = self.command(program, arguments)?;
        command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
        command.spawn().context(format!("{}: {program}", self.name))
    }

    /// What a file in its directory holds; nothing if it is not there.
    pub(crate) fn file(&self, name: &str) -> String {
        let bytes = std::fs::read(self.directory.join(name)).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Whether an address is on its interface.
    pub(crate) fn has_address(&self, address: &str) -> Result<bool, Failure> {
        let text = self.sh("ip -o -4 addr show dev eth0")?;
        Ok(text.contains(&format!("inet {address}/")))
    }

    /// Bytes that its interface has received.
    pub(crate) fn received(&self) -> Result<u64, Failure> {
        let text = self.sh("cat /sys/class/net/eth0/statistics/rx_bytes")?;
        text.trim().parse().context(text)
    }

    /// Kills the whole host, all of its processes at once.
    pub(crate) fn kill(&mut self) -> Result<(), Failure> {
        let Some(namespaces) = self.namespaces.take() else { return Ok(()) };
        // The kernel of a host that dies takes its loop devices with it; here there is only one kernel.
        let loops = loops_in(&self.lab.join(&self.name));
        namespaces.stop();
        for device in loops {
            wait_until(&format!("{device} to be free"), SHORT, || {
                let _ = Run::of(Command::new("losetup").args(["-d", &device]));
                Ok(backing_file(&device).is_none_or(|file| !file.contains(PREFIX)))
            })?;
        }
        Ok(())
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        if let Err(why) = self.kill() {
            eprintln!("{}: {why}", self.name);
        }
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if let Some(switch) = self.switch.take() {
            switch.stop();
        }
    }
}

/// The namespaces of a host, kept by its first process; everything else on it dies with that.
struct Namespaces {
    holder: Child,
    init: Pid,
    /// The first process ends when this does, so also when this program is killed.
    _lifeline: Option<ChildStdin>,
}

impl Namespaces {
    fn start(name: &str, lab: &Path) -> Result<Namespaces, Failure> {
        // /sys shows the network of whoever mounted it. The first process reaps whatever is orphaned. It must not be
        // killed before the program above it, unshare, which keeps the mounts until all processes are gone: else
        // a process that serves a file system might be the one that has to unmount it, and wait for itself.
        // Loop devices know the way to their file only as long as the mounts are there.
        let setup = format!(
            "exec 2>&1 3<&0; hostname {name} && mount -t sysfs sysfs /sys && mount -t tmpfs tmpfs /run && \
             {{ [ -L /var/run ] || mount -t tmpfs tmpfs /var/run; }} && mkdir -p /var/run/hast && \
             ip link set lo up && echo ready || exit 1; cat <&3 >/dev/null & wait; kill -9 -1; \
             for file in /sys/block/loop*/loop/backing_file; do case $(cat \"$file\") in {}/{name}/*) \
             device=${{file#/sys/block/}}; losetup -d \"/dev/${{device%%/*}}\" ;; esac; done",
            lab.display()
        );
        let mut command = Command::new("unshare");
        command.args([
            "--net",
            "--uts",
            "--ipc",
            "--mount",
            "--pid",
            "--fork",
            "--mount-proc",
            "sh",
            "-c",
            &setup,
        ]);
        // unshare itself has only to say, when it is killed, that it was disturbed.
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut holder = command.spawn().context("unshare")?;
        let lifeline = holder.stdin.take();
        let mut said = String::new();
        let mut output = BufReader::new(holder.stdout.take().context("its output")?);
        output.read_line(&mut said)?;
        if said != "ready\n" {
            let _ = holder.wait();
            return Failure::because(format!("host {name} cannot be made: {said}"));
        }
        let parent = holder.id();
        let init = wait_for("the first process of a host", SHORT, || Ok(child_of(parent)))?;
        Ok(Namespaces { holder, init, _lifeline: lifeline })
    }

    fn stop(mut self) {
        // Neither can fail in a way that anything could be done about.
        let _ = kill(self.init, Signal::SIGKILL);
        let _ = self.holder.wait();
    }
}

fn child_of(parent: u32) -> Option<Pid> {
    std::fs::read_dir("/proc").ok()?.flatten().find_map(|entry| {
        let pid: i32 = entry.file_name().to_str()?.parse().ok()?;
        let stat = std::fs::read_to_string(entry.path().join("stat")).ok()?;
        // pid (comm) state ppid
        let (_, rest) = stat.rsplit_once(") ")?;
        (rest.split(' ').nth(1)?.parse() == Ok(parent)).then_some(Pid::from_raw(pid))
    })
}

fn backing_file(device: &str) -> Option<String> {
    let name = device.strip_prefix("/dev/")?;
    std::fs::read_to_string(format!("/sys/block/{name}/loop/backing_file")).ok()
}

/// The loop devices over files whose path begins so.
fn loops_in(directory: &Path) -> Vec<String> {
    let directory = format!("{}/", directory.display());
    loops().into_iter().filter(|(_, file)| file.contains(&directory)).map(|(device, _)| device).collect()
}

fn loops() -> Vec<(String, String)> {
    let entries = std::fs::read_dir("/sys/block").into_iter().flatten().flatten();
    entries
        .filter_map(|entry| {
            let device = format!("/dev/{}", entry.file_name().to_str()?);
            Some((device.clone(), backing_file(&device)?))
        })
        .collect()
}

/// Frees what labs have left whose test was killed: loop devices and directories.
fn sweep() {
    for (device, file) in loops() {
        // Of a file whose mount has gone only its name is left; hast-failover gives it this one.
        if is_abandoned(&file) || file.trim() == "/disk" {
            let _ = Run::of(Command::new("losetup").args(["-d", &device]));
        }
    }
    for entry in std::fs::read_dir(std::env::temp_dir()).into_iter().flatten().flatten() {
        if is_abandoned(&entry.file_name().to_string_lossy()) {
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
}

/// Whether a path is that of a lab whose test does not run any more.
fn is_abandoned(path: &str) -> bool {
    let pid = path.split_once(PREFIX).and_then(|(_, rest)| rest.split('.').next()?.parse::<u32>().ok());
    pid.is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists())
}
