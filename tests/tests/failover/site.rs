//! Two hosts as an administrator sets them up: one resource with ext4 on it, a service that stores lines, an address
//! that ucarp moves, and a client on a third host.

use std::path::PathBuf;
use std::process::{Child, Command};
use std::time::Instant;

use hast_tests::node::says_in_step;
use hast_tests::programs::Programs;
use hast_tests::{Context, Failure, LONG, Run, SHORT, disk, wait_for, wait_until};

use super::lab::{Host, Lab};

/// The address that moves.
pub(crate) const SHARED: &str = "10.77.0.100";

/// What is made on the device.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FileSystem {
    name: &'static str,
    /// Bytes of each provider.
    size: u64,
    /// How it is made, and how it is looked at without being changed; the device comes last.
    make: &'static str,
    check: &'static str,
    programs: [&'static str; 2],
}

pub(crate) const EXT4: FileSystem = FileSystem {
    name: "ext4",
    size: 64 << 20,
    make: "mkfs.ext4 -q -E lazy_itable_init=0,lazy_journal_init=0",
    check: "e2fsck -f -n",
    programs: ["mkfs.ext4", "e2fsck"],
};

/// It is not made smaller than 300 MB.
pub(crate) const XFS: FileSystem = FileSystem {
    name: "xfs",
    size: 320 << 20,
    make: "mkfs.xfs -q -K",
    check: "xfs_repair -n",
    programs: ["mkfs.xfs", "xfs_repair"],
};

/// How long an answer may take, and how long a peer may say nothing: long enough for a primary that is cut off to
/// give its device up before it goes on alone. In fullsync it has completed nothing until then that the other node
/// has not confirmed; in the other modes that would be counted, and a split-brain.
const SETTINGS: &str = "replication fullsync\ntimeout 5\n#% peer-timeout 6";

/// The two hosts, their client and the lab that they are in.
pub(crate) struct Site {
    pub(crate) a: Server,
    pub(crate) b: Server,
    pub(crate) client: Host,
    sender: Option<Child>,
    pub(crate) lab: Lab,
}

/// A host that hastd runs on.
pub(crate) struct Server {
    pub(crate) host: Host,
    hastd: Option<Child>,
    ucarp: Option<Child>,
    keepalived: Option<Child>,
    skew: &'static str,
    filesystem: FileSystem,
}

impl Site {
    /// Both hosts with hastd, a file system, and nothing mounted.
    pub(crate) fn new() -> Result<Option<Site>, Failure> {
        Site::with(EXT4)
    }

    /// The same with this file system.
    pub(crate) fn with(filesystem: FileSystem) -> Result<Option<Site>, Failure> {
        let needed = ["nbdfuse", "ucarp", "arping", "fuser", "pgrep", "tc"];
        let Some(lab) = Lab::new(&[&needed[..], &filesystem.programs].concat())? else { return Ok(None) };
        let a = Server::new(&lab, "alpha", 1, "0", filesystem)?;
        let b = Server::new(&lab, "beta", 2, "100", filesystem)?;
        let client = lab.host("client", 50)?;
        let mut site = Site { a, b, client, sender: None, lab };
        site.configure()?;
        for server in [&mut site.a, &mut site.b] {
            server.start_hastd()?;
            disk::make(&server.provider(), filesystem.size)?;
            server.ctl(&["create", "-e", "64k", "shared"])?;
        }
        site.b.failover(&["secondary"])?.ok("beta: secondary")?;
        // The file system is made once, over both nodes.
        site.a.failover(&["-r", "primary", "shared"])?.ok("alpha: primary")?;
        site.a.host.sh(&format!("{} {}", filesystem.make, site.a.device().display()))?;
        site.a.wait_in_step()?;
        site.a.failover(&["-r", "secondary", "shared"])?.ok("alpha: secondary")?;
        Ok(Some(site))
    }

    fn configure(&self) -> Result<(), Failure> {
        let mut text = format!("{SETTINGS}\nresource shared {{\n");
        for (server, peer) in [(&self.a, &self.b), (&self.b, &self.a)] {
            let (host, peer) = (&server.host, &peer.host);
            text.push_str(&format!(
                "    on {} {{\n        local {}\n        remote {}\n    }}\n",
                host.name(),
                server.provider().display(),
                peer.address()
            ));
        }
        text.push_str(&format!("    exec {}\n}}\n", self.hook()?.display()));
        std::fs::write(self.lab.directory().join("hast.conf"), text)?;
        std::fs::write(self.lab.directory().join("password"), "of the lab\n")?;
        for server in [&self.a, &self.b] {
            server.configure(&self.lab)?;
        }
        Ok(())
    }

    /// A hook that writes one line per call to `hooks` in its host's directory.
    fn hook(&self) -> Result<PathBuf, Failure> {
        let path = self.lab.directory().join("hook");
        let text = format!("#!/bin/sh\necho \"$*\" >>{}/$(hostname)/hooks\n", self.lab.directory().display());
        executable(&path, &text)?;
        Ok(path)
    }

    /// Starts the client, which sends lines until it is stopped.
    pub(crate) fn send_lines(&mut self) -> Result<(), Failure> {
        let address = format!("{SHARED}:7777");
        let record = self.client.directory().join("record").display().to_string();
        let program = env!("CARGO_BIN_EXE_hast-lines");
        self.sender = Some(self.client.spawn("sender.log", program, &["send", &address, &record])?);
        Ok(())
    }

    /// How many lines have been acknowledged.
    pub(crate) fn acknowledged(&self) -> usize {
        self.client.file("record").lines().count()
    }

    /// Waits until alpha is beta's secondary, and in step.
    pub(crate) fn wait_alpha_is_back(&self) -> Result<(), Failure> {
        self.a.wait_role("secondary")?;
        wait_until("alpha to be in step again", LONG, || {
            Ok(self.b.value("role")? == "primary" && self.b.value("status")? == "complete")
        })
    }

    /// Waits until some more lines have been acknowledged.
    pub(crate) fn wait_lines(&self) -> Result<(), Failure> {
        let enough = self.acknowledged() + 20;
        wait_until("lines to be acknowledged", LONG, || Ok(self.acknowledged() >= enough))
            .map_err(|why| self.told(&why))
    }

    /// Stops the client; then every line that was acknowledged must be on the node that has the file system.
    pub(crate) fn every_line_is_on(&mut self, server: usize) -> Result<(), Failure> {
        self.client.sh("pkill -9 hast-lines || true")?;
        if let Some(mut sender) = self.sender.take() {
            sender.wait()?;
        }
        let server = if server == 0 { &self.a } else { &self.b };
        let stored = server.host.sh(&format!("cat {}/lines", server.mount().display()))?;
        let stored: std::collections::HashSet<&str> = stored.lines().collect();
        let record = self.client.file("record");
        let lost: Vec<&str> = record.lines().filter(|line| !stored.contains(line)).collect();
        if lost.is_empty() && !record.is_empty() {
            return Ok(());
        }
        Failure::because(format!("{} acknowledged, lost: {lost:?}", record.lines().count()))
    }

    /// Takes everything down on both hosts. Then the file system on the host `last` must be without a fault, and
    /// both copies identical.
    pub(crate) fn finish(&mut self, last: usize) -> Result<(), Failure> {
        self.a.stop_ucarp()?;
        self.b.stop_ucarp()?;
        let (last, other) = if last == 0 { (&self.a, &self.b) } else { (&self.b, &self.a) };
        for server in [other, last] {
            server.failover(&["secondary"])?.ok("secondary")?;
        }
        last.failover(&["-r", "primary", "shared"])?.ok("primary")?;
        last.wait_in_step()?;
        last.fsck()?;
        last.failover(&["-r", "init", "shared"])?.ok("init")?;
        other.failover(&["-r", "init", "shared"])?.ok("init")?;
        disk::same_data(&self.a.provider(), &self.b.provider())
    }

    /// A failure together with what the hosts have logged.
    pub(crate) fn told(&self, why: &Failure) -> Failure {
        let mut text = format!("{why}\n");
        for server in [&self.a, &self.b] {
            for log in ["failover.log", "ucarp.log", "keepalived.log", "hastd.log"] {
                let lines = server.host.file(log);
                let lines: Vec<&str> = lines.lines().collect();
                let tail = lines.get(lines.len().saturating_sub(60)..).unwrap_or_default();
                text.push_str(&format!("---- {} {log}\n{}\n", server.host.name(), tail.join("\n")));
            }
        }
        Failure::new(text)
    }
}

impl Server {
    fn new(
        lab: &Lab,
        name: &str,
        number: u8,
        skew: &'static str,
        filesystem: FileSystem,
    ) -> Result<Server, Failure> {
        let mut host = lab.host(name, number)?;
        let directory = host.directory().display().to_string();
        host.set("HAST_FAILOVER_CONF", &format!("{directory}/hast-failover.conf"));
        host.set("HAST_VIP_STATE", &format!("{directory}/vip"));
        Ok(Server { host, hastd: None, ucarp: None, keepalived: None, skew, filesystem })
    }

    fn configure(&self, lab: &Lab) -> Result<(), Failure> {
        let directory = self.host.directory().display();
        std::fs::create_dir_all(self.mount())?;
        let service = self.host.directory().join("service");
        executable(
            &service,
            &format!(
                "#!/bin/sh\ncase $1 in\nstart)\n    kill -0 \"$(cat {directory}/service.pid)\" 2>/dev/null && exit 0\n    \
                 {} serve 0.0.0.0:7777 {directory}/mnt/lines >>{directory}/service.log 2>&1 &\n    \
                 echo $! >{directory}/service.pid\n    ;;\n\
                 stop) kill \"$(cat {directory}/service.pid)\" 2>/dev/null; rm -f {directory}/service.pid ;;\nesac\nexit 0\n",
                env!("CARGO_BIN_EXE_hast-lines")
            ),
        )?;
        let conf = format!(
            "state_dir = {directory}/state\nhast_conf = {}\ndevice_dir = {directory}/dev\nattach = fuse\n\
             log = {directory}/failover.log\nunmount_timeout = 5\n\n[shared]\nfstype = {}\nmount = {directory}/mnt\nservices = {}\n",
            lab.directory().join("hast.conf").display(),
            self.filesystem.name,
            service.display(),
        );
        std::fs::write(self.host.directory().join("hast-failover.conf"), conf)?;
        Ok(())
    }

    pub(crate) fn provider(&self) -> PathBuf {
        self.host.directory().join("shared.img")
    }

    pub(crate) fn mount(&self) -> PathBuf {
        self.host.directory().join("mnt")
    }

    /// The block device of a primary.
    pub(crate) fn device(&self) -> PathBuf {
        self.host.directory().join("dev/shared")
    }

    fn conf(&self) -> String {
        self.host.directory().with_file_name("hast.conf").display().to_string()
    }

    /// Starts hastd and waits until it answers.
    pub(crate) fn start_hastd(&mut self) -> Result<(), Failure> {
        let conf = self.conf();
        self.hastd = Some(self.host.spawn(
            "hastd.log",
            "hastd",
            &["-F", "-d", "-c", &conf, "-P", "/run/hastd.pid"],
        )?);
        wait_until("hastd to answer", SHORT, || Ok(self.hastctl(&["status"])?.code == 0))
    }

    /// Kills hastd alone, with SIGKILL.
    pub(crate) fn kill_hastd(&mut self) -> Result<(), Failure> {
        self.host.sh("kill -9 $(cat /run/hastd.pid)")?;
        if let Some(mut hastd) = self.hastd.take() {
            hastd.wait()?;
        }
        Ok(())
    }

    pub(crate) fn hastctl(&self, arguments: &[&str]) -> Result<Run, Failure> {
        let (sub, rest) = arguments.split_first().context("a sub-command")?;
        let conf = self.conf();
        self.host.run("hastctl", &[&[*sub, "-c", &conf], rest].concat())
    }

    pub(crate) fn ctl(&self, arguments: &[&str]) -> Result<String, Failure> {
        self.hastctl(arguments)?.ok(&format!("{}: hastctl {}", self.host.name(), arguments.join(" ")))
    }

    /// A value of `hastctl list`.
    pub(crate) fn value(&self, key: &str) -> Result<String, Failure> {
        let text = self.ctl(&["list", "shared"])?;
        let found = text.lines().find_map(|line| line.trim().strip_prefix(key)?.strip_prefix(": "));
        Ok(found.unwrap_or("-").to_string())
    }

    pub(crate) fn is_in_step(&self) -> Result<bool, Failure> {
        Ok(says_in_step(&self.ctl(&["list", "-v", "shared"])?))
    }

    /// Waits until a primary is connected and has nothing left to synchronise.
    pub(crate) fn wait_in_step(&self) -> Result<(), Failure> {
        wait_until(&format!("{} to be in step", self.host.name()), LONG, || self.is_in_step())
    }

    pub(crate) fn wait_role(&self, role: &str) -> Result<(), Failure> {
        wait_until(&format!("{} to be {role}", self.host.name()), LONG, || Ok(self.value("role")? == role))
    }

    /// Runs hast-failover on this host.
    pub(crate) fn failover(&self, arguments: &[&str]) -> Result<Run, Failure> {
        self.host.run("hast-failover", arguments)
    }

    /// Starts ucarp as an administrator does, under hast-ucarp.
    pub(crate) fn start_ucarp(&mut self) -> Result<(), Failure> {
        let address = format!("{SHARED}/24");
        let password = self.host.directory().with_file_name("password").display().to_string();
        let own = self.host.address();
        let arguments = [
            "-i", "eth0", "-s", &own, "-a", &address, "-v", "1", "-p", &password, "-k", self.skew, "-n",
            "shared",
        ];
        self.ucarp = Some(self.host.spawn("ucarp.log", "hast-ucarp", &arguments)?);
        Ok(())
    }

    /// Starts keepalived with what docs/failover.md recommends, but that it looks more often.
    pub(crate) fn start_keepalived(&mut self, priority: u8) -> Result<(), Failure> {
        let directory = self.host.directory().display();
        let notify = concat!(env!("CARGO_MANIFEST_DIR"), "/../dist/keepalived/hast-notify");
        // Both ways: the host with the higher priority has the FIFO.
        let fifo = self.host.directory().join("notify.fifo").display().to_string();
        let failover = Programs::find()?.failover.display().to_string();
        let (serve, call) = if priority > 100 {
            (
                format!("    notify_fifo {fifo}\n    notify_fifo_script \"{failover} -q fifo\"\n"),
                String::new(),
            )
        } else {
            let stop = format!("    notify_stop \"{notify} shared INSTANCE shared STOP 0\"\n");
            (String::new(), format!("    notify \"{notify} shared\"\n{stop}"))
        };
        let conf = format!(
            "global_defs {{\n    script_user root\n    max_auto_priority -1\n{serve}}}\n\
             vrrp_script hast {{\n    script \"{notify} check shared\"\n    interval 1\n    fall 3\n    rise 2\n}}\n\
             vrrp_instance shared {{\n    state BACKUP\n    nopreempt\n    interface eth0\n    \
             virtual_router_id 1\n    priority {priority}\n    virtual_ipaddress {{ {SHARED}/24 }}\n    \
             track_script {{ hast }}\n{call}}}\n"
        );
        let path = self.host.directory().join("keepalived.conf").display().to_string();
        std::fs::write(&path, conf)?;
        let (pid, vrrp) = (format!("{directory}/keepalived.pid"), format!("{directory}/vrrp.pid"));
        let arguments = ["--dont-fork", "--log-console", "--vrrp", "-f", &path, "-p", &pid, "-r", &vrrp];
        self.keepalived = Some(self.host.spawn("keepalived.log", "keepalived", &arguments)?);
        Ok(())
    }

    /// Waits until address, data and service are here, whoever has brought them.
    pub(crate) fn wait_serves(&self) -> Result<(), Failure> {
        wait_until(&format!("{} to serve", self.host.name()), LONG, || {
            Ok(self.host.has_address(SHARED)?
                && self.failover(&["-q", "status"])?.code == 0
                && self.host.run("pgrep", &["-x", "hast-lines"])?.code == 0)
        })
    }

    /// What vip-up and vip-down have noted about the address: coming, up or down.
    pub(crate) fn address_state(&self) -> String {
        let text = self.host.file(&format!("vip/vip.eth0.{SHARED}"));
        text.split(' ').next().unwrap_or_default().trim().to_string()
    }

    /// Waits until the address and the data are here, and says how long that took from the start of the up-script: on a
    /// machine that does nothing else below two seconds, but how busy this one is nobody knows.
    pub(crate) fn wait_taken_over(&self) -> Result<(), Failure> {
        let begin = wait_for(&format!("{} to become master", self.host.name()), LONG, || {
            Ok(matches!(self.address_state().as_str(), "coming" | "up").then(Instant::now))
        })?;
        wait_until("the takeover to be complete", LONG, || Ok(self.address_state() == "up"))?;
        eprintln!("{}: taken over after {} ms", self.host.name(), begin.elapsed().as_millis());
        Ok(())
    }

    /// Ends hast-ucarp as an administrator does; the address and the data go down before it ends.
    pub(crate) fn stop_ucarp(&mut self) -> Result<(), Failure> {
        self.host.sh("pkill -TERM -x hast-ucarp || true")?;
        match self.ucarp.take() {
            Some(mut ucarp) => ucarp.wait().map(drop).context("hast-ucarp"),
            None => Ok(()),
        }
    }

    /// Kills the whole host.
    pub(crate) fn kill(&mut self) -> Result<(), Failure> {
        self.host.kill()?;
        for mut child in [self.hastd.take(), self.ucarp.take(), self.keepalived.take()].into_iter().flatten()
        {
            child.wait()?;
        }
        Ok(())
    }

    /// Reads the file system again from its device, read-only, as fsck does; the device must not be in use.
    pub(crate) fn fsck(&self) -> Result<(), Failure> {
        self.host.sh(&format!("{} {}", self.filesystem.check, self.device().display())).map(drop)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // What could go wrong is told by the host when it is dropped.
        let _ = self.kill();
    }
}

/// Writes a script.
pub(crate) fn executable(path: &std::path::Path, text: &str) -> Result<(), Failure> {
    use std::os::unix::fs::PermissionsExt;
    std::fs::write(path, text)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).context(path.display())?;
    // Nobody may still have it open for writing when it is run: a fork elsewhere in this process may, for a moment.
    wait_until("the script to be runnable", SHORT, || {
        Ok(Run::of(Command::new("sh").args(["-n", &path.display().to_string()]))?.code == 0)
    })
}
