//! One node: its directory, its hastd, and hastctl talking to it.

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::Read;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use hast_nbd::client::Client;
use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;

use crate::programs::Programs;
use crate::{Context, Failure, LONG, SHORT, wait_for, wait_until};

/// What a program printed and how it ended.
#[derive(Clone, Debug)]
pub struct Run {
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
    /// Exit code; 128 + signal if it was killed, as a shell counts.
    pub code: i32,
}

impl Run {
    /// Runs a command to its end.
    pub fn of(command: &mut Command) -> Result<Run, Failure> {
        let output = command.stdin(Stdio::null()).output().context(format!("{command:?}"))?;
        let code = output.status.code().or(output.status.signal().map(|signal| 128 + signal)).unwrap_or(-1);
        Ok(Run {
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
            code,
        })
    }

    /// Standard output of a run that ended with 0; anything else is a failure that shows all.
    pub fn ok(self, what: &str) -> Result<String, Failure> {
        if self.code == 0 {
            return Ok(self.stdout);
        }
        Failure::because(format!("{what} ended with {}:\n{}{}", self.code, self.stdout, self.stderr))
    }
}

/// One node of a pair, running or not.
#[derive(Debug)]
pub struct Node {
    name: String,
    directory: PathBuf,
    conf: PathBuf,
    programs: Programs,
    launcher: Vec<OsString>,
    daemon: Option<Child>,
}

impl Node {
    /// The node `name` that lives in `directory` and reads `conf`; makes the directory.
    pub fn new(name: &str, directory: &Path, conf: &Path) -> Result<Node, Failure> {
        std::fs::create_dir_all(directory).context(directory.display())?;
        Ok(Node {
            name: name.to_string(),
            directory: directory.to_path_buf(),
            conf: conf.to_path_buf(),
            programs: Programs::find()?,
            launcher: Vec::new(),
            daemon: None,
        })
    }

    /// The node's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The node's directory.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The provider of a resource.
    pub fn provider(&self, resource: &str) -> PathBuf {
        self.directory.join(format!("{resource}.img"))
    }

    /// The control socket.
    pub fn control(&self) -> PathBuf {
        self.directory.join("control")
    }

    /// The pidfile.
    pub fn pidfile(&self) -> PathBuf {
        self.directory.join("hastd.pid")
    }

    /// What the hook of `Pair::hook` has written: one line per call.
    pub fn hook_lines(&self) -> Vec<String> {
        let text = std::fs::read_to_string(self.directory.join("hooks")).unwrap_or_default();
        text.lines().map(str::to_string).collect()
    }

    /// What it has found in its environment, one line per call: resource, event, role, status, dirty bytes.
    pub fn hook_facts(&self) -> Vec<String> {
        let text = std::fs::read_to_string(self.directory.join("hook-facts")).unwrap_or_default();
        text.lines().map(str::to_string).collect()
    }

    // ---- the daemon ----

    /// From now on hastd is started by another program, which becomes it: the first of these words, with the others,
    /// hastd's path and its arguments behind it.
    pub fn launch_by(&mut self, words: Vec<OsString>) {
        self.launcher = words;
    }

    /// A command for hastd as this node, with these arguments first.
    pub fn hastd(&self, arguments: &[&str]) -> Command {
        let mut command = match self.launcher.split_first() {
            Some((program, words)) => {
                let mut command = Command::new(program);
                command.args(words).arg(&self.programs.hastd);
                command
            }
            None => Command::new(&self.programs.hastd),
        };
        command.args(arguments).arg("-c").arg(&self.conf).args(["-N", &self.name]);
        command.env("HAST_TEST_NODE", &self.directory);
        command
    }

    /// Starts hastd in the foreground and waits until its control socket answers.
    pub fn start(&mut self) -> Result<(), Failure> {
        self.launch()?;
        self.wait_ready()
    }

    /// Starts hastd in the foreground. It gets a process group of its own, so that the whole node can
    /// be killed.
    pub fn launch(&mut self) -> Result<(), Failure> {
        if self.daemon.is_some() {
            return Failure::because(format!("node {} runs already", self.name));
        }
        let log = OpenOptions::new().create(true).append(true).open(self.log_path())?;
        // In the foreground there is a pidfile only where -P says so.
        let pidfile = self.pidfile().display().to_string();
        let mut command = self.hastd(&["-F", "-d", "-P", &pidfile]);
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).process_group(0);
        self.daemon = Some(command.spawn().context(format!("starting {command:?}"))?);
        Ok(())
    }

    /// Waits until the control socket of a hastd that was launched answers.
    pub fn wait_ready(&mut self) -> Result<(), Failure> {
        wait_until(&format!("hastd on node {} to answer", self.name), SHORT, || {
            if let Some(status) = self.poll_exit()? {
                return Failure::because(format!(
                    "hastd on node {} ended: {status}\n{}",
                    self.name,
                    self.log()
                ));
            }
            Ok(self.hastctl(&["status"])?.code == 0)
        })
    }

    /// The process id of the running hastd.
    pub fn pid(&self) -> Result<Pid, Failure> {
        let daemon = self.daemon.as_ref().context(format!("node {} does not run", self.name))?;
        Ok(Pid::from_raw(i32::try_from(daemon.id())?))
    }

    /// Sends a signal to hastd alone.
    pub fn signal(&self, signal: Signal) -> Result<(), Failure> {
        kill(self.pid()?, signal).context("kill")
    }

    /// Reads hast.conf again and waits until hastd says how that went.
    pub fn reload(&self) -> Result<(), Failure> {
        let before = reload_count(&self.log());
        self.signal(Signal::SIGHUP)?;
        wait_until("the configuration to be reloaded", SHORT, || Ok(reload_count(&self.log()) > before))
    }

    /// Kills the whole node, hastd and its workers, with SIGKILL, and waits until nothing is left.
    pub fn kill(&mut self) -> Result<(), Failure> {
        let group = self.pid()?;
        killpg(group, Signal::SIGKILL).context("killpg")?;
        if let Some(mut daemon) = self.daemon.take() {
            daemon.wait()?;
        }
        self.wait_gone(group)
    }

    /// Stops hastd as rc(8) does, by SIGTERM, and says how it ended. Nothing may be left behind.
    pub fn stop(&mut self) -> Result<ExitStatus, Failure> {
        self.signal(Signal::SIGTERM)?;
        self.wait_exit()
    }

    /// Waits until hastd, told to stop in some way, has ended with all its workers.
    pub fn wait_exit(&mut self) -> Result<ExitStatus, Failure> {
        let group = self.pid()?;
        let status = wait_for(&format!("hastd on node {} to stop", self.name), LONG, || self.poll_exit())?;
        self.daemon = None;
        self.wait_gone(group)?;
        Ok(status)
    }

    /// Whether hastd still runs.
    pub fn is_running(&mut self) -> Result<bool, Failure> {
        Ok(self.daemon.is_some() && self.poll_exit()?.is_none())
    }

    /// Lets hastd run on after this value is gone. Returns its process id.
    pub fn leave_running(&mut self) -> Option<u32> {
        self.daemon.take().map(|daemon| daemon.id())
    }

    fn poll_exit(&mut self) -> Result<Option<ExitStatus>, Failure> {
        match &mut self.daemon {
            Some(daemon) => Ok(daemon.try_wait()?),
            None => Failure::because(format!("node {} does not run", self.name)),
        }
    }

    fn wait_gone(&self, group: Pid) -> Result<(), Failure> {
        wait_until(&format!("every process of node {} to be gone", self.name), SHORT, || {
            Ok(group_is_gone(group))
        })
    }

    fn log_path(&self) -> PathBuf {
        self.directory.join("log")
    }

    /// Everything hastd and its workers have printed.
    pub fn log(&self) -> String {
        let mut bytes = Vec::new();
        if let Ok(mut file) = File::open(self.log_path()) {
            // A log that cannot be read shows as an empty one; it is only ever shown.
            let _ = file.read_to_end(&mut bytes);
        }
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Waits until the log holds `text`.
    pub fn wait_log(&self, text: &str) -> Result<(), Failure> {
        wait_until(&format!("node {} to log {text:?}", self.name), SHORT, || Ok(self.log().contains(text)))
    }

    // ---- hastctl ----

    /// Runs `hastctl <sub-command> -c <conf> -N <node> <rest>`.
    pub fn hastctl(&self, arguments: &[&str]) -> Result<Run, Failure> {
        let (sub, rest) = arguments.split_first().context("a sub-command")?;
        let mut command = Command::new(&self.programs.hastctl);
        command.arg(sub).arg("-c").arg(&self.conf).args(["-N", &self.name]).args(rest);
        Run::of(&mut command)
    }

    /// The same, which must succeed; gives what it printed.
    pub fn ctl(&self, arguments: &[&str]) -> Result<String, Failure> {
        self.hastctl(arguments)?.ok(&format!("node {}: hastctl {}", self.name, arguments.join(" ")))
    }

    /// Sets a resource's role.
    pub fn role(&self, role: &str, resource: &str) -> Result<(), Failure> {
        self.ctl(&["role", role, resource]).map(drop)
    }

    /// One value of `hastctl list`, for example `dirty` or `workerpid`; none if the line is not there.
    pub fn value(&self, resource: &str, key: &str) -> Result<Option<String>, Failure> {
        let text = self.ctl(&["list", resource])?;
        Ok(text
            .lines()
            .find_map(|line| line.trim().strip_prefix(key)?.strip_prefix(": ").map(str::to_string)))
    }

    /// A number in `hastctl list`; a line that is not there is a failure.
    pub fn number(&self, resource: &str, key: &str) -> Result<u64, Failure> {
        let value = self.value(resource, key)?.context(format!("hastctl list shows no {key}"))?;
        let digits = value.split(' ').next().unwrap_or_default();
        digits.parse().context(format!("{key}: {value}"))
    }

    /// The status word: `complete`, `degraded`, or `-` without a worker.
    pub fn status(&self, resource: &str) -> Result<String, Failure> {
        Ok(self.value(resource, "status")?.unwrap_or_else(|| "-".to_string()))
    }

    /// Waits until `status` is this word.
    pub fn wait_status(&self, resource: &str, status: &str) -> Result<(), Failure> {
        wait_until(&format!("{resource} on node {} to be {status}", self.name), LONG, || {
            Ok(self.status(resource)? == status)
        })
    }

    /// Waits until a primary is connected, has nothing left to synchronise, and the other node knows that.
    pub fn wait_in_step(&self, resource: &str) -> Result<(), Failure> {
        wait_until(&format!("{resource} on node {} to be in step", self.name), LONG, || {
            Ok(says_in_step(&self.ctl(&["list", "-v", resource])?))
        })
    }

    /// The same, and that it waits for no answer any more: the last mark may be under way until then.
    pub fn wait_at_rest(&self, resource: &str) -> Result<(), Failure> {
        self.wait_in_step(resource)?;
        wait_until(&format!("{resource} on node {} to be at rest", self.name), SHORT, || {
            Ok(self.value(resource, "queues")?.is_some_and(|queues| queues.contains("recv: 0,")))
        })
    }

    /// The worker's process id, when there is a worker.
    pub fn worker(&self, resource: &str) -> Result<Option<Pid>, Failure> {
        match self.value(resource, "workerpid")? {
            Some(pid) => Ok(Some(Pid::from_raw(pid.parse().context(pid)?))),
            None => Ok(None),
        }
    }

    /// Waits until there is a worker and gives its process id.
    pub fn wait_worker(&self, resource: &str) -> Result<Pid, Failure> {
        wait_for(&format!("a worker for {resource} on node {}", self.name), SHORT, || self.worker(resource))
    }

    // ---- the device ----

    /// The NBD socket of a provider name.
    pub fn socket(&self, provider: &str) -> PathBuf {
        self.directory.join(format!("{provider}.sock"))
    }

    /// An NBD client on the device, as soon as the device is there.
    pub fn client(&self, provider: &str) -> Result<Client, Failure> {
        let socket = self.socket(provider);
        wait_for(&format!("the device of {provider} on node {}", self.name), SHORT, || {
            Ok(Client::connect(&socket, provider).ok())
        })
    }
}

/// Whether `hastctl list -v` shows a primary that is connected, clean, and at the end of its synchronisation.
pub fn says_in_step(list: &str) -> bool {
    let says = |text: &str| list.lines().any(|line| line.trim().starts_with(text));
    says("status: complete") && says("dirty: 0 ") && says("synchronising: no")
}

/// A node that is dropped takes its processes with it.
impl Drop for Node {
    fn drop(&mut self) {
        if let (Ok(group), Some(mut daemon)) = (self.pid(), self.daemon.take()) {
            // Nothing more can be done about a group that is gone or a child that cannot be waited for.
            let _ = killpg(group, Signal::SIGKILL);
            let _ = daemon.wait();
            let _ = wait_until("processes to end", Duration::from_secs(2), || Ok(group_is_gone(group)));
        }
    }
}

fn reload_count(log: &str) -> usize {
    log.matches("onfiguration reloaded").count() + log.matches("onfiguration not reloaded").count()
}

/// Whether no process of a group is left. Zombies do not count: an orphan waits for init to reap it.
fn group_is_gone(group: Pid) -> bool {
    if killpg(group, None).is_err() {
        return true;
    }
    let Ok(entries) = std::fs::read_dir("/proc") else { return false };
    let mut seen_proc = false;
    for entry in entries.flatten() {
        let Ok(stat) = std::fs::read_to_string(entry.path().join("stat")) else { continue };
        seen_proc = true;
        // pid (comm) state ppid pgrp …; comm may hold blanks and parentheses.
        let Some((_, rest)) = stat.rsplit_once(") ") else { continue };
        let mut fields = rest.split(' ');
        let state = fields.next();
        let pgrp = fields.nth(1);
        if pgrp == Some(&group.to_string()) && state != Some("Z") {
            return false;
        }
    }
    seen_proc
}
