//! hast-failover on real file systems: what is mounted where, and who uses it, as only the kernel knows. On a host of its own,
//! with a loop device for HAST's, and hastctl only playing its part.

use std::path::PathBuf;
use std::process::{Child, Command};

use hast_tests::{Context, Failure, LONG, Outcome, Run, wait_until};

use super::lab::{Host, Lab};
use super::site::executable;

/// It keeps a role in a file, and does as told.
const HASTCTL: &str = r#"#!/bin/sh
here=$(cd "${0%/*}/.." && pwd)
for last; do :; done
case $1 in
list) printf '%s:\n  role: %s\n  provname: %s\n' "$last" "$(cat "$here/role")" "$last" ;;
role) [ "$2" != -f ] || shift; echo "$2" >"$here/role" ;;
esac
"#;

/// A host with a group `data`, mounted at what is named `mnt`.
struct Ground {
    host: Host,
    device: String,
    _lab: Lab,
}

impl Ground {
    fn new(mount: &str) -> Result<Option<Ground>, Failure> {
        let Some(lab) = Lab::new(&["mkfs.ext4", "e2fsck"])? else { return Ok(None) };
        let mut host = lab.host("ground", 9)?;
        let root = host.directory().to_path_buf();
        for directory in ["bin", "dev", "mnt", "other"] {
            std::fs::create_dir(root.join(directory))?;
        }
        executable(&root.join("bin/hastctl"), HASTCTL)?;
        std::fs::write(root.join("role"), "secondary\n")?;
        let built = hast_tests::programs::Programs::find()?.failover;
        let built = built.parent().context("programs lie in a directory")?.display().to_string();
        let root = root.display().to_string();
        host.set("PATH", &format!("{root}/bin:{built}:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"));
        let conf = format!(
            "state_dir = {root}/state\ndevice_dir = {root}/dev\nattach = none\nunmount_timeout = 3\n[data]\n\
             fstype = ext4\nmount = {}\n",
            mount.replace("ROOT", &root)
        );
        std::fs::write(host.directory().join("conf"), conf)?;
        host.set("HAST_FAILOVER_CONF", &format!("{root}/conf"));
        host.sh(&format!("truncate -s 16m {root}/image && mkfs.ext4 -q {root}/image"))?;
        let device = host.sh(&format!("losetup -f --show {root}/image"))?.trim().to_string();
        host.sh(&format!("ln -s {device} {root}/dev/data"))?;
        Ok(Some(Ground { host, device, _lab: lab }))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.host.directory().join(name)
    }

    fn failover(&self, arguments: &[&str]) -> Result<Run, Failure> {
        self.host.run("hast-failover", arguments)
    }

    fn role(&self) -> String {
        self.host.file("role").trim().to_string()
    }

    /// What is mounted at a directory, by the kernel's own table: the devices, from the lowest to the top.
    fn mounted(&self, name: &str) -> Result<Vec<String>, Failure> {
        let point = self.path(name).canonicalize()?.display().to_string().replace(' ', "\\040");
        let table = self.host.sh("cat /proc/self/mountinfo")?;
        let of = |line: &str| {
            let words: Vec<&str> = line.split(' ').collect();
            let source = line.split(" - ").nth(1)?.split(' ').nth(1)?;
            (*words.get(4)? == point).then(|| source.to_string())
        };
        Ok(table.lines().filter_map(of).collect())
    }

    /// Starts a script that goes on, and waits for it to say that it is there.
    fn start(&self, script: &str) -> Result<Child, Failure> {
        let said = self.path("said");
        let _ = std::fs::remove_file(&said);
        let script = script.replace("HERE", &format!("echo here >{}", said.display()));
        let child = self.host.spawn("script.log", "sh", &["-c", &script])?;
        wait_until("the script to be there", LONG, || Ok(said.exists()))?;
        Ok(child)
    }

    fn primary(&self) -> Outcome {
        self.failover(&["primary"])?.ok("primary")?;
        assert_eq!(self.role(), "primary");
        Ok(())
    }

    /// Down is refused, for this reason, and everything is as it was.
    fn stays(&self, why: &str) -> Outcome {
        let run = self.failover(&["secondary"])?;
        assert_eq!((run.code, self.role().as_str()), (1, "primary"), "{}", run.stderr);
        assert!(
            run.stderr.contains(why) && !run.stderr.contains("This node is secondary."),
            "{}",
            run.stderr
        );
        Ok(())
    }

    fn goes(&self) -> Outcome {
        let run = self.failover(&["secondary"])?;
        assert_eq!((run.code, self.role().as_str()), (0, "secondary"), "{}", run.stderr);
        assert!(run.stderr.contains("This node is secondary."), "{}", run.stderr);
        self.host.sh(&format!("e2fsck -f -n {} >/dev/null 2>&1", self.device)).map(drop)
    }

    /// Ends what `start` has started, which is a `sleep` by now.
    fn end(&self, mut child: Child) -> Outcome {
        self.host.sh("pkill -9 -f '^sleep 1000$' || true")?;
        child.wait().map(drop).context("the script")
    }
}

#[test]
fn a_mount_point_is_known_under_every_name() -> Outcome {
    for name in ["ROOT/mnt/", "ROOT/link", "ROOT/link/", "ROOT/./mnt//", "ROOT/a/../mnt", "ROOT/link2/below"]
    {
        let Some(ground) = Ground::new(name)? else { return Ok(()) };
        let target = ground.path("a place");
        std::fs::create_dir_all(target.join("below"))?;
        std::fs::create_dir(ground.path("a"))?;
        let real = if name.contains("link2") {
            "a place/below"
        } else if name.contains("link") {
            "a place"
        } else {
            "mnt"
        };
        std::os::unix::fs::symlink(&target, ground.path("link"))?;
        std::os::unix::fs::symlink(&target, ground.path("link2"))?;
        for _ in 0..2 {
            ground.primary()?;
            assert_eq!(ground.mounted(real)?.len(), 1, "{name}: mounted once");
            assert_eq!(ground.failover(&["status"])?.code, 0, "{name}");
        }
        ground.goes()?;
        assert_eq!(ground.mounted(real)?, [""; 0], "{name}");
        ground.goes()?;
    }
    Ok(())
}

#[test]
fn somebody_elses_file_system_is_left_alone() -> Outcome {
    let Some(ground) = Ground::new("ROOT/mnt")? else { return Ok(()) };
    let mnt = ground.path("mnt").display().to_string();
    ground.host.sh(&format!("mount -t tmpfs theirs {mnt}"))?;
    let sitting = ground.start(&format!("cd {mnt} && HERE && exec sleep 1000"))?;
    let run = ground.failover(&["primary"])?;
    assert_eq!((run.code, ground.role().as_str()), (1, "secondary"), "{}", run.stderr);
    assert!(run.stderr.contains("has something else mounted on it (theirs, tmpfs)"), "{}", run.stderr);
    for arguments in [&["secondary"][..], &["-a", "secondary"]] {
        let run = ground.failover(arguments)?;
        assert_eq!(run.code, 0, "{}", run.stderr);
        assert!(run.stderr.contains("left alone"), "{}", run.stderr);
    }
    let status = ground.failover(&["status"])?;
    assert!(status.code == 3 && status.stdout.contains("something else mounted on it"), "{}", status.stdout);
    assert_eq!(ground.mounted("mnt")?, ["theirs"]);
    ground.host.sh(&format!("kill -0 $(pgrep -f '^sleep 1000$') && test -d {mnt}"))?;
    ground.end(sitting)?;
    // Over ours: it is in the way, and nobody goes.
    ground.host.sh(&format!("umount {mnt}"))?;
    ground.primary()?;
    ground.host.sh(&format!("mount -t tmpfs theirs {mnt}"))?;
    ground.stays("is still used: mounted on")?;
    assert_eq!(ground.mounted("mnt")?.last().map(String::as_str), Some("theirs"));
    // Below ours: the same, and nobody is told to go for it.
    ground.host.sh(&format!("umount {mnt} && mkdir {mnt}/below && mount -t tmpfs theirs {mnt}/below"))?;
    let sitting = ground.start(&format!("cd {mnt} && HERE && exec sleep 1000"))?;
    ground.stays("mounted below it")?;
    ground.host.sh("kill -0 $(pgrep -f '^sleep 1000$')")?;
    ground.end(sitting)?;
    ground.host.sh(&format!("umount {mnt}/below"))?;
    ground.goes()
}

#[test]
fn a_device_that_somebody_uses_stays() -> Outcome {
    let Some(ground) = Ground::new("ROOT/mnt")? else { return Ok(()) };
    let (mnt, other) = (ground.path("mnt").display().to_string(), ground.path("other").display().to_string());
    let device = ground.device.clone();
    // Mounted at another place too.
    ground.primary()?;
    ground.host.sh(&format!("mount --bind {mnt} {other}"))?;
    ground.stays(&format!("mounted on {other}"))?;
    ground.host.sh(&format!("umount {other}"))?;
    ground.goes()?;
    // Open, under another name of the same device.
    ground.primary()?;
    let (major, minor) = (format!("$((0x$(stat -c %t {device})))"), format!("$((0x$(stat -c %T {device})))"));
    ground.host.sh(&format!("mknod {other}/same b {major} {minor}"))?;
    let holding = ground.start(&format!("exec 9<{other}/same && HERE && exec sleep 1000"))?;
    ground.stays("open in process")?;
    ground.end(holding)?;
    ground.goes()?;
    // Out of the tree, but still written to.
    ground.primary()?;
    let writing = ground.start(&format!("exec 9>{mnt}/file && HERE && exec sleep 1000"))?;
    ground.host.sh(&format!("umount -l {mnt}"))?;
    ground.stays("its files are used by process")?;
    ground.end(writing)?;
    ground.goes()?;
    // In a mount namespace of somebody else.
    ground.primary()?;
    let apart = ground.start("exec unshare --mount --propagation private sh -c 'HERE; exec sleep 1000'")?;
    ground.stays("in the mount namespace of process")?;
    ground.end(apart)?;
    ground.goes()?;
    // Below another loop device.
    ground.primary()?;
    let above = ground.host.sh(&format!("losetup -f --show {device}"))?.trim().to_string();
    ground.stays("below loop")?;
    ground.host.sh(&format!("losetup -d {above}"))?;
    ground.goes()?;
    // A node that is abandoned lets go of all that.
    ground.primary()?;
    let holding = ground.start(&format!("exec 9<{other}/same && cd {mnt} && HERE && exec sleep 1000"))?;
    let run = ground.failover(&["-a", "secondary"])?;
    assert_eq!((run.code, ground.role().as_str()), (0, "secondary"), "{}", run.stderr);
    assert!(run.stderr.contains("SIGKILL"), "{}", run.stderr);
    ground.end(holding)
}

/// Killed at any moment, and asked once more.
#[test]
fn killed_in_the_middle_and_repeated() -> Outcome {
    let Some(ground) = Ground::new("ROOT/mnt")? else { return Ok(()) };
    for round in 0..12u32 {
        for (command, role, mounts) in [("primary", "primary", 1), ("secondary", "secondary", 0)] {
            let mut child = ground.host.spawn("killed.log", "hast-failover", &[command])?;
            // From before it has begun until after it has ended, wherever that is on this machine.
            Run::of(Command::new("sleep").arg(format!("0.{:02}", round * 3)))?;
            ground.host.sh("pkill -9 -x hast-failover || true")?;
            child.wait()?;
            let run = ground.failover(&[command])?;
            assert_eq!((run.code, ground.role().as_str()), (0, role), "{}", run.stderr);
            // A mount(8) that was left behind may come late, but nothing is mounted twice.
            assert_eq!(ground.mounted("mnt")?.len(), mounts, "{command}: {}", run.stderr);
        }
    }
    Ok(())
}

/// The address comes with the role, and those who had talked to the other node hear of it.
#[test]
fn an_address_moves_and_the_network_is_told() -> Outcome {
    let Some(lab) = Lab::new(&["ip"])? else { return Ok(()) };
    let mut hosts = vec![lab.host("one", 1)?, lab.host("two", 2)?];
    let client = lab.host("client", 3)?;
    client.sh("ip addr add fd00:77::3/64 dev eth0 nodad")?;
    let built = hast_tests::programs::Programs::find()?.failover;
    let built = built.parent().context("programs lie in a directory")?.display().to_string();
    for host in &mut hosts {
        let root = host.directory().display().to_string();
        std::fs::create_dir(host.directory().join("bin"))?;
        executable(&host.directory().join("bin/hastctl"), HASTCTL)?;
        std::fs::write(host.directory().join("role"), "secondary\n")?;
        let conf = format!(
            "state_dir = {root}/state\nattach = none\n[data]\naddress = 10.77.0.99/24@eth0 fd00:77::99/64@eth0\n"
        );
        std::fs::write(host.directory().join("conf"), conf)?;
        host.set("PATH", &format!("{root}/bin:{built}:/usr/bin:/bin:/usr/sbin:/sbin"));
        host.set("HAST_FAILOVER_CONF", &format!("{root}/conf"));
    }
    let neighbour = |ip: &str| {
        client.sh(&format!("ip neigh show {ip} dev eth0 | sed -n 's/.*lladdr \\([^ ]*\\).*/\\1/p'"))
    };
    for (here, there, mac) in
        [(0, 1, "02:00:00:00:00:01\n"), (1, 0, "02:00:00:00:00:02\n"), (0, 1, "02:00:00:00:00:01\n")]
    {
        hosts[there].run("hast-failover", &["secondary"])?.ok("secondary")?;
        assert!(!hosts[there].has_address("10.77.0.99")?);
        // What the client remembers is old.
        for ip in ["10.77.0.99", "fd00:77::99"] {
            client.sh(&format!("ip neigh replace {ip} lladdr 02:00:00:00:00:77 dev eth0 nud stale"))?;
        }
        hosts[here].run("hast-failover", &["primary"])?.ok("primary")?;
        assert!(hosts[here].has_address("10.77.0.99")?);
        // It has not asked: it was told.
        for ip in ["10.77.0.99", "fd00:77::99"] {
            wait_until(&format!("the client to know where {ip} is"), LONG, || Ok(neighbour(ip)? == mac))?;
        }
        assert_eq!(hosts[here].run("hast-failover", &["status"])?.code, 0);
    }
    // It goes although the role does not, and it comes last: nothing of it is there when a step before it fails.
    std::fs::write(hosts[1].directory().join("conf"), {
        let root = hosts[1].directory().display().to_string();
        format!(
            "state_dir = {root}/state\nattach = none\n[data]\nservices = /bin/false\naddress = 10.77.0.99/24@eth0\n"
        )
    })?;
    assert_eq!(hosts[1].run("hast-failover", &["primary"])?.code, 1);
    assert!(!hosts[1].has_address("10.77.0.99")?);
    Ok(())
}
