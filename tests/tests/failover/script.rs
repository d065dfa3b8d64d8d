//! hast-failover and what calls it, among programs that only play their parts: each step can be made to fail, on
//! Linux and on FreeBSD. Needs no root.

use std::path::Path;
use std::process::{Command, Stdio};

use hast_tests::{Context, Failure, Outcome, Run, SHORT, wait_until};

use super::site::executable;

/// The part of every program: it notes how it was called, fails when `fail-<name>` says so, and behaves as the state
/// in the directory `now` wants. `fail-<name>` holds a pattern for the arguments, and a status.
const PLAYER: &str = r##"#!/bin/sh
here=$(cd "${0%/*}/.." && pwd)
name=${0##*/}
echo "$name $*" >>"$here/calls"
if [ -r "$here/fail-$name" ]; then
    read -r status pattern <"$here/fail-$name"
    case "$*" in
    $pattern) exit "$status" ;;
    esac
fi
now=$here/now
case $name in
uname) cat "$here/system" ;;
hastctl)
    case $1 in
    list)
        for last; do :; done
        printf '%s:\n  role: %s\n  provname: %s\n' "$last" "$(cat "$now/role.$last")" "$last"
        ;;
    role)
        for last; do :; done
        role=$2
        [ "$role" != -f ] || role=$3
        while [ -e "$here/hold" ]; do sleep 0.05; done
        echo "$role" >"$now/role.$last"
        if [ "$role" = primary ]; then : >"$here/dev/$last"; else rm -f "$here/dev/$last"; fi
        ;;
    status) [ ! -e "$here/original" ] || exit 64 ;;
    esac
    ;;
mount)
    case $1 in
    '') while read -r where; do echo "x on $where type x"; done <"$now/mounts" ;;
    -p) while read -r where; do echo "x $where ufs rw 0 0"; done <"$now/mounts" ;;
    *)
        for last; do :; done
        echo "$last" >>"$now/mounts"
        ;;
    esac
    ;;
umount)
    for last; do :; done
    grep -vx "$last" "$now/mounts" >"$now/mounts.new"
    mv "$now/mounts.new" "$now/mounts"
    ;;
zpool)
    case $1 in
    list) [ ! -e "$now/pool" ] || echo tank ;;
    import) : >"$now/pool" ;;
    export) rm -f "$now/pool" ;;
    esac
    ;;
pgrep) [ -e "$here/secondary-worker" ] || exit 1 ;;
service)
    case $2 in
    onestatus) [ -e "$now/runs.$1" ] || exit 1 ;;
    onestart|start) : >"$now/runs.$1" ;;
    onestop|stop) rm -f "$now/runs.$1" ;;
    esac
    ;;
systemctl)
    case $1 in
    start) : >"$now/runs.$2" ;;
    stop) rm -f "$now/runs.$2" ;;
    esac
    ;;
esac
exit 0
"##;

const PLAYERS: &[&str] = &[
    "uname",
    "hastctl",
    "mount",
    "umount",
    "zpool",
    "zfs",
    "pgrep",
    "service",
    "systemctl",
    "fsck",
    "e2fsck",
    "fuser",
    "logger",
    "losetup",
    "nbdfuse",
    "nbd-client",
    "modprobe",
    "ip",
    "ifconfig",
];

struct Stage {
    directory: tempfile::TempDir,
}

impl Stage {
    /// A node that is secondary, on this system, with a group `data` of this kind.
    fn new(system: &str, group: &str) -> Result<Stage, Failure> {
        let stage = Stage { directory: tempfile::Builder::new().prefix("hast-stage.").tempdir()? };
        let root = stage.root();
        for directory in ["bin", "now", "dev", "mnt", "state"] {
            std::fs::create_dir(root.join(directory))?;
        }
        for player in PLAYERS {
            executable(&root.join("bin").join(player), PLAYER)?;
        }
        std::fs::write(root.join("system"), format!("{system}\n"))?;
        std::fs::write(root.join("now/mounts"), "")?;
        for resource in ["data", "data2"] {
            std::fs::write(root.join(format!("now/role.{resource}")), "secondary\n")?;
        }
        let root = root.display();
        // Time-outs of a second: what is waited for in vain costs that much.
        let conf = format!(
            "state_dir = {root}/state\ndevice_dir = {root}/dev\nnbd_dir = {root}\nattach = none\nrole_timeout = 1\n\
             device_timeout = 1\nunmount_timeout = 1\n[data]\n{group}\n"
        );
        std::fs::write(stage.root().join("conf"), conf.replace("MNT", &format!("{root}/mnt")))?;
        Ok(stage)
    }

    /// A file system and two services.
    fn files(system: &str) -> Result<Stage, Failure> {
        let kind = if system == "FreeBSD" { "ufs" } else { "ext4" };
        Stage::new(system, &format!("fstype = {kind}\nmount = MNT\nservices = one two"))
    }

    fn root(&self) -> &Path {
        self.directory.path()
    }

    fn command(&self, program: &str, arguments: &[&str]) -> Command {
        let dist = concat!(env!("CARGO_MANIFEST_DIR"), "/../dist");
        let mut command = Command::new(format!("{dist}/{program}"));
        let path = format!("{}/bin:{dist}:/usr/bin:/bin", self.root().display());
        command.args(arguments).env("PATH", path).env("HAST_FAILOVER_CONF", self.root().join("conf"));
        command.env("HAST_VIP_STATE", self.root().join("state"));
        command
    }

    fn failover(&self, arguments: &[&str]) -> Result<Run, Failure> {
        Run::of(&mut self.command("hast-failover", arguments))
    }

    /// From now on a program fails when its arguments match.
    fn fail(&self, program: &str, status: u8, pattern: &str) -> Outcome {
        std::fs::write(self.root().join(format!("fail-{program}")), format!("{status} {pattern}\n"))
            .context(program)
    }

    fn mend(&self) -> Outcome {
        for player in PLAYERS {
            let _ = std::fs::remove_file(self.root().join(format!("fail-{player}")));
        }
        Ok(())
    }

    fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.root().join(name)).unwrap_or_default()
    }

    /// Calls so far that begin so, without the paths of the stage.
    fn calls(&self, beginning: &str) -> Vec<String> {
        let calls = self.read("calls").replace(&format!("{}/", self.root().display()), "");
        calls.lines().filter(|line| line.starts_with(beginning)).map(str::to_string).collect()
    }

    /// What the node is: role, mounted or imported, services.
    fn state(&self) -> (String, bool, bool) {
        let role = self.read("now/role.data").trim().to_string();
        let mounted = !self.read("now/mounts").is_empty() || self.root().join("now/pool").exists();
        let services =
            ["one", "two"].iter().all(|name| self.root().join(format!("now/runs.{name}")).exists());
        let some = ["one", "two"].iter().any(|name| self.root().join(format!("now/runs.{name}")).exists());
        assert_eq!(services, some, "services are started and stopped together");
        (role, mounted, services)
    }
}

fn up() -> (String, bool, bool) {
    ("primary".to_string(), true, true)
}

fn down() -> (String, bool, bool) {
    ("secondary".to_string(), false, false)
}

#[test]
fn there_and_back_on_both_systems() -> Outcome {
    for system in ["Linux", "FreeBSD"] {
        let stage = Stage::files(system)?;
        let run = stage.failover(&["primary"])?;
        assert_eq!((run.code, stage.state()), (0, up()), "{system}: {}", run.stderr);
        let run = stage.failover(&["primary"])?;
        assert_eq!((run.code, stage.state()), (0, up()), "{system}: {}", run.stderr);
        assert_eq!(stage.calls("mount -t").len(), 1, "mounted once");
        assert_eq!(stage.calls("hastctl role primary").len(), 1, "promoted once");
        let run = stage.failover(&["secondary"])?;
        assert_eq!((run.code, stage.state()), (0, down()), "{system}: {}", run.stderr);
        assert_eq!(stage.failover(&["secondary"])?.code, 0);
        assert_eq!(stage.calls("hastctl role secondary").len(), 1, "demoted once");
        let (check, mount) = if system == "FreeBSD" {
            ("fsck -t ufs -p dev/data", "mount -t ufs dev/data mnt")
        } else {
            ("e2fsck -p dev/data", "mount -t ext4 dev/data mnt")
        };
        assert_eq!(stage.calls(check).len(), 1);
        assert_eq!(stage.calls(mount).len(), 1);
    }
    Ok(())
}

#[test]
fn a_pool_over_two_resources() -> Outcome {
    let stage = Stage::new("FreeBSD", "resources = data data2\npool = tank\nservices = one two")?;
    let run = stage.failover(&["primary"])?;
    assert_eq!((run.code, stage.state()), (0, up()), "{}", run.stderr);
    assert_eq!(stage.read("now/role.data2"), "primary\n");
    assert_eq!(stage.calls("zpool import"), ["zpool import -f -o cachefile=none -d dev tank"]);
    // The second resource does not come: the first one goes back too.
    assert_eq!(stage.failover(&["secondary"])?.code, 0);
    stage.fail("hastctl", 66, "role primary*data2")?;
    let run = stage.failover(&["primary"])?;
    assert_eq!((run.code, stage.state()), (1, down()), "{}", run.stderr);
    // One that can be exported by force only.
    stage.mend()?;
    assert_eq!(stage.failover(&["primary"])?.code, 0);
    stage.fail("zpool", 1, "export tank")?;
    let run = stage.failover(&["secondary"])?;
    assert_eq!((run.code, stage.state()), (0, down()), "{}", run.stderr);
    assert_eq!(stage.calls("zpool export -f tank").len(), 1);
    Ok(())
}

/// Whatever fails on the way up, the node is what it was before, and the next run succeeds.
#[test]
fn each_step_up_fails_and_is_rolled_back() -> Outcome {
    for system in ["Linux", "FreeBSD"] {
        let (checker, full) = if system == "FreeBSD" { ("fsck", 8) } else { ("e2fsck", 4) };
        let steps: &[(&str, u8, &str, i32, &str)] = &[
            ("hastctl", 1, "list*", 1, "does not say which role"),
            ("hastctl", 70, "role primary*", 70, "has newer data"),
            ("hastctl", 66, "role primary*", 1, "failed with status 66"),
            ("hastctl", 71, "role primary*", 1, "failed with status 71"),
            (checker, full, "*", 1, "needs a full check"),
            ("mount", 32, "-t*", 1, "failed with status 32"),
            (if system == "FreeBSD" { "service" } else { "systemctl" }, 1, "*", 1, "does not start"),
        ];
        for (program, status, pattern, code, told) in steps {
            // Without systemd it is service(8) on Linux too.
            let programs =
                if *program == "systemctl" { vec!["systemctl", "service"] } else { vec![*program] };
            let stage = Stage::files(system)?;
            for program in programs {
                stage.fail(program, *status, pattern)?;
            }
            let run = stage.failover(&["primary"])?;
            assert_eq!(run.code, *code, "{system}: {program} {pattern}: {}", run.stderr);
            assert!(run.stderr.contains(told), "{system}: {program} {pattern}: {}", run.stderr);
            assert_eq!(stage.state(), down(), "{system}: {program} {pattern}: {}", run.stderr);
            stage.mend()?;
            let run = stage.failover(&["primary"])?;
            assert_eq!((run.code, stage.state()), (0, up()), "{system}: {}", run.stderr);
        }
    }
    Ok(())
}

/// The second service fails: what this run did is undone, in the other order.
#[test]
fn rolling_back_goes_backwards() -> Outcome {
    let stage = Stage::files("FreeBSD")?;
    stage.fail("service", 1, "two onestart")?;
    let run = stage.failover(&["primary"])?;
    assert_eq!((run.code, stage.state()), (1, down()), "{}", run.stderr);
    let calls = stage.read("calls");
    let at = |what: &str| calls.rfind(what).context(what);
    assert!(
        at("service one onestop")? < at("umount ")? && at("umount ")? < at("hastctl role secondary")?,
        "{calls}"
    );
    // A run that found all but the services done leaves the rest as it was.
    stage.mend()?;
    stage.failover(&["primary"])?.ok("primary")?;
    std::fs::remove_file(stage.root().join("now/runs.one"))?;
    std::fs::remove_file(stage.root().join("now/runs.two"))?;
    stage.fail("service", 1, "two onestart")?;
    assert_eq!(stage.failover(&["primary"])?.code, 1);
    assert_eq!(stage.state(), ("primary".to_string(), true, false));
    Ok(())
}

/// Whatever fails on the way down, the role is given up all the same, and the failure is reported.
#[test]
fn each_step_down_fails_and_the_rest_is_done() -> Outcome {
    let stage = Stage::files("FreeBSD")?;
    stage.failover(&["primary"])?.ok("primary")?;
    stage.fail("service", 1, "one onestop")?;
    let run = stage.failover(&["secondary"])?;
    assert_eq!(run.code, 1, "{}", run.stderr);
    assert!(run.stderr.contains("one does not stop"), "{}", run.stderr);
    assert_eq!(stage.read("now/role.data"), "secondary\n");
    stage.mend()?;
    // Only by force.
    stage.failover(&["primary"])?.ok("primary")?;
    let mount = stage.root().join("mnt").display().to_string();
    stage.fail("umount", 1, &mount)?;
    let run = stage.failover(&["secondary"])?;
    assert_eq!((run.code, stage.state()), (0, down()), "{}", run.stderr);
    assert!(run.stderr.contains("by force"), "{}", run.stderr);
    // Not at all.
    stage.mend()?;
    stage.failover(&["primary"])?.ok("primary")?;
    stage.fail("umount", 1, "*")?;
    let run = stage.failover(&["secondary"])?;
    assert_eq!(run.code, 1, "{}", run.stderr);
    assert!(run.stderr.contains("cannot be unmounted"), "{}", run.stderr);
    assert_eq!(stage.read("now/role.data"), "secondary\n");
    // The daemon says no.
    stage.mend()?;
    stage.failover(&["secondary"])?.ok("secondary")?;
    stage.failover(&["primary"])?.ok("primary")?;
    stage.fail("hastctl", 71, "role secondary*")?;
    let run = stage.failover(&["secondary"])?;
    assert_eq!(run.code, 1, "{}", run.stderr);
    assert!(run.stderr.contains("not secondary as it should be"), "{}", run.stderr);
    Ok(())
}

/// FreeBSD's own hastd: nothing is promoted while the secondary's worker is there.
#[test]
fn with_the_original_the_secondary_leaves_first() -> Outcome {
    let stage = Stage::files("FreeBSD")?;
    std::fs::write(stage.root().join("original"), "")?;
    std::fs::write(stage.root().join("secondary-worker"), "")?;
    let run = stage.failover(&["primary"])?;
    assert_eq!((run.code, stage.state()), (1, down()), "{}", run.stderr);
    assert!(run.stderr.contains("the other node is still primary"), "{}", run.stderr);
    assert!(stage.calls("hastctl role primary").is_empty());
    assert_eq!(stage.calls("pgrep")[0], "pgrep -f hastd: data \\(secondary\\)");
    std::fs::remove_file(stage.root().join("secondary-worker"))?;
    assert_eq!(stage.failover(&["primary"])?.code, 0);
    // Ours stops it itself.
    let stage = Stage::files("FreeBSD")?;
    std::fs::write(stage.root().join("secondary-worker"), "")?;
    assert_eq!(stage.failover(&["primary"])?.code, 0);
    Ok(())
}

#[test]
fn a_device_that_does_not_come() -> Outcome {
    let stage = Stage::files("FreeBSD")?;
    let conf = stage.read("conf").replace("device_dir", "#device_dir");
    std::fs::write(stage.root().join("conf"), conf)?;
    let run = stage.failover(&["primary"])?;
    assert_eq!((run.code, stage.state()), (1, down()), "{}", run.stderr);
    assert!(run.stderr.contains("is not there after 1 s"), "{}", run.stderr);
    Ok(())
}

/// On Linux hastd may make the device itself, and be waited for like GEOM Gate.
#[test]
fn the_device_that_hastd_makes() -> Outcome {
    let stage = Stage::files("Linux")?;
    let conf = stage.read("conf").replace("attach = none", "attach = hastd");
    std::fs::write(stage.root().join("conf"), &conf)?;
    let run = stage.failover(&["primary"])?;
    assert_eq!(run.code, 0, "{}", run.stderr);
    assert_eq!(stage.failover(&["secondary"])?.code, 0);
    std::fs::write(stage.root().join("conf"), conf.replace("device_dir", "#device_dir"))?;
    let run = stage.failover(&["primary"])?;
    assert_eq!((run.code, stage.state()), (1, down()), "{}", run.stderr);
    assert!(run.stderr.contains("is not there after 1 s"), "{}", run.stderr);
    Ok(())
}

/// What a node was told before it died may name a loop device that is somebody else's by now.
#[test]
fn a_strangers_loop_device_is_left_alone() -> Outcome {
    let stage = Stage::files("Linux")?;
    std::fs::write(stage.root().join("state/data.device"), "fuse /dev/loop0\n")?;
    let run = stage.failover(&["secondary"])?;
    assert_eq!((run.code, stage.state()), (0, down()), "{}", run.stderr);
    assert_eq!(stage.calls("losetup"), Vec::<String>::new());
    assert!(!stage.root().join("state/data.device").exists(), "still remembered");
    Ok(())
}

#[test]
fn a_full_check_only_where_it_is_wanted() -> Outcome {
    for (system, checker, preen) in [("FreeBSD", "fsck", "-t ufs -p*"), ("Linux", "e2fsck", "-p*")] {
        let stage = Stage::files(system)?;
        let conf = stage.read("conf").replace("[data]", "check = full\n[data]");
        std::fs::write(stage.root().join("conf"), conf)?;
        stage.fail(checker, 8, preen)?;
        let run = stage.failover(&["primary"])?;
        assert_eq!((run.code, stage.state()), (0, up()), "{}", run.stderr);
        assert_eq!(stage.calls(checker).len(), 2);
        stage.failover(&["secondary"])?.ok("secondary")?;
        stage.fail(checker, 8, "*")?;
        assert_eq!((stage.failover(&["primary"])?.code, stage.state()), (1, down()));
    }
    Ok(())
}

/// One run works at a time, and only the latest request counts.
#[test]
fn later_requests_take_the_place_of_earlier_ones() -> Outcome {
    let stage = Stage::files("Linux")?;
    let conf = stage.read("conf").replace("role_timeout = 1", "role_timeout = 60");
    std::fs::write(stage.root().join("conf"), conf)?;
    let hold = stage.root().join("hold");
    std::fs::write(&hold, "")?;
    let mut first = stage.command("hast-failover", &["-q", "primary"]).stdin(Stdio::null()).spawn()?;
    wait_until("the first to be at work", SHORT, || Ok(!stage.calls("hastctl role primary").is_empty()))?;
    // Two more wait for it; of these the last one counts.
    let before = stage.read("state/data.request");
    let mut second = stage.command("hast-failover", &["-q", "primary"]).stdin(Stdio::null()).spawn()?;
    wait_until("the second to ask", SHORT, || Ok(stage.read("state/data.request") != before))?;
    let mut third = stage.command("hast-failover", &["-q", "secondary"]).stdin(Stdio::null()).spawn()?;
    wait_until("the third to ask", SHORT, || Ok(stage.read("state/data.request").starts_with("secondary")))?;
    std::fs::remove_file(&hold)?;
    assert_eq!(first.wait()?.code(), Some(75), "the first has been overtaken");
    second.wait()?;
    assert_eq!(third.wait()?.code(), Some(0));
    assert_eq!(stage.state(), down());
    assert!(stage.calls("mount -t").is_empty(), "nothing was begun that was not wanted any more");
    Ok(())
}

#[test]
fn mistakes_are_told_with_the_line() -> Outcome {
    for (wrong, told) in [
        ("mount = relative", "absolute path"),
        ("mount = /a;b", "not allowed in a path"),
        ("services = $(reboot)", "not allowed"),
        ("role_timeout = soon", "number of seconds"),
        ("colour = red", "no setting 'colour'"),
        ("check = maybe", "preen, full or never"),
        ("state_dir = /x", "before the first group"),
        ("[data]", "twice"),
        ("nonsense", "neither"),
        ("fstype = zfs", "no pool"),
        ("fstype = ext4", "no mount"),
    ] {
        let stage = Stage::new("Linux", wrong)?;
        let run = stage.failover(&["primary", "data"])?;
        assert_eq!(run.code, 78, "{wrong}: {}", run.stderr);
        assert!(run.stderr.contains(told) && run.stderr.contains("line "), "{wrong}: {}", run.stderr);
        assert!(stage.calls("hastctl").is_empty(), "{wrong}");
    }
    let stage = Stage::files("Linux")?;
    assert_eq!(stage.failover(&["primary", "other"])?.code, 65);
    for wrong in [&["promote"][..], &[], &["-x", "primary"], &["-r", "primary"]] {
        assert_eq!(stage.failover(wrong)?.code, 64, "{wrong:?}");
    }
    Ok(())
}

#[test]
fn without_its_configuration_only_roles_and_devices() -> Outcome {
    let stage = Stage::files("FreeBSD")?;
    let run = stage.failover(&["-r", "primary", "data2"])?;
    assert_eq!(run.code, 0, "{}", run.stderr);
    assert_eq!(stage.read("now/role.data2"), "primary\n");
    assert!(stage.calls("mount -t").is_empty());
    assert_eq!(stage.failover(&["-r", "init", "data2"])?.code, 0);
    assert_eq!(stage.read("now/role.data2"), "init\n");
    assert_eq!(stage.failover(&["-c", "/nowhere", "primary"])?.code, 78);
    Ok(())
}

/// devd's and keepalived's notifications, as they call their scripts.
#[test]
fn notifications_become_roles() -> Outcome {
    let stage = Stage::files("FreeBSD")?;
    let conf = stage.read("conf");
    std::fs::write(stage.root().join("conf"), format!("{conf}carp = 1@em0 2@em1\n[other]\ncarp = 3@em0\n"))?;
    std::fs::write(stage.root().join("now/role.other"), "secondary\n")?;
    let role = |name: &str, role: &str| {
        wait_until(&format!("{name} to be {role}"), SHORT, || {
            Ok(stage.read(&format!("now/role.{name}")).trim() == role)
        })
    };
    for (subsystem, kind, name, expected) in [
        ("2@em1", "MASTER", "data", "primary"),
        ("3@em0", "MASTER", "other", "primary"),
        ("1@em0", "BACKUP", "data", "secondary"),
        ("3@em0", "INIT", "other", "secondary"),
    ] {
        Run::of(&mut stage.command("carp/carp-notify", &[subsystem, kind]))?.ok("carp-notify")?;
        role(name, expected)?;
    }
    assert_eq!(stage.read("now/role.data"), "secondary\n");
    for (state, expected) in
        [("MASTER", "primary"), ("BACKUP", "secondary"), ("MASTER", "primary"), ("FAULT", "secondary")]
    {
        let arguments = ["data", "INSTANCE", "VI_1", state, "100"];
        Run::of(&mut stage.command("keepalived/hast-notify", &arguments))?.ok("hast-notify")?;
        role("data", expected)?;
    }
    let check = |stage: &Stage| Run::of(&mut stage.command("keepalived/hast-notify", &["check", "data"]));
    wait_until("a healthy backup", SHORT, || Ok(check(&stage)?.code == 0))?;
    stage.fail("hastctl", 71, "*")?;
    assert_eq!(check(&stage)?.code, 1);
    Ok(())
}

/// The units are what systemd takes; every program that they name is there.
#[test]
fn systemd_takes_the_units() -> Outcome {
    if !hast_tests::tools::have(&["systemd-analyze"])? {
        return Ok(());
    }
    let units = tempfile::tempdir()?;
    let dist = concat!(env!("CARGO_MANIFEST_DIR"), "/../dist/systemd");
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(dist)?.flatten() {
        let text = std::fs::read_to_string(entry.path())?;
        // Not installed here; whether they exist is all that is checked of them.
        let text = text
            .replace("/usr/local/sbin/", "/bin/true #")
            .replace("/usr/local/libexec/hast/", "/bin/true #");
        let name = entry.file_name().to_string_lossy().replace("@.", "@shared.");
        std::fs::write(units.path().join(&name), text)?;
        paths.push(units.path().join(name));
    }
    assert_eq!(paths.len(), 3);
    let run = Run::of(Command::new("systemd-analyze").args(["verify", "--man=no"]).args(&paths))?;
    let ours: Vec<&str> = run.stderr.lines().filter(|line| line.contains("hast")).collect();
    assert!(run.code == 0 && ours.is_empty(), "{}", run.stderr);
    Ok(())
}
