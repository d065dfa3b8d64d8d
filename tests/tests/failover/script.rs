//! hast-failover and what calls it, among programs that only play their parts, each of which can be made to fail. File
//! systems, which nobody can play, are in `mounts`; every step and every failure is tried in hast-failover's own tests.
//! Needs no root.

use std::path::Path;
use std::process::{Command, Stdio};

use hast_tests::programs::Programs;
use hast_tests::{Context, Failure, LONG, Outcome, Run, SHORT, wait_until};

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
hastctl)
    case $1 in
    list)
        for last; do :; done
        printf '%s:\n  role: %s\n  provname: %s\n' "$last" "$(cat "$now/role.$last")" "$last"
        ;;
    role)
        for last; do :; done
        [ "$2" != -n ] || exit 0
        role=$2
        [ "$role" != -f ] || role=$3
        while [ -e "$here/hold" ]; do sleep 0.05; done
        echo "$role" >"$now/role.$last"
        if [ "$role" = primary ]; then : >"$here/dev/$last"; else rm -f "$here/dev/$last"; fi
        ;;
    status) [ ! -e "$here/original" ] || exit 64 ;;
    esac
    ;;
zpool)
    case $1 in
    list) [ ! -e "$now/pool" ] || echo tank ;;
    import) : >"$now/pool" ;;
    export) rm -f "$now/pool" ;;
    esac
    ;;
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
    "hastctl",
    "zpool",
    "zfs",
    "service",
    "systemctl",
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
    /// A node that is secondary, with a group `data` of this kind.
    fn new(group: &str) -> Result<Stage, Failure> {
        let stage = Stage { directory: tempfile::Builder::new().prefix("hast-stage.").tempdir()? };
        let root = stage.root();
        for directory in ["bin", "now", "dev", "mnt", "state"] {
            std::fs::create_dir(root.join(directory))?;
        }
        for player in PLAYERS {
            executable(&root.join("bin").join(player), PLAYER)?;
        }
        for resource in ["data", "data2"] {
            std::fs::write(root.join(format!("now/role.{resource}")), "secondary\n")?;
        }
        let root = root.display();
        let conf = format!(
            "state_dir = {root}/state\ndevice_dir = {root}/dev\nnbd_dir = {root}\nattach = none\nrole_timeout = 60\n\
             device_timeout = 60\nunmount_timeout = 60\n[data]\n{group}\n"
        );
        std::fs::write(stage.root().join("conf"), conf)?;
        Ok(stage)
    }

    /// A pool and two services.
    fn pool() -> Result<Stage, Failure> {
        Stage::new("pool = tank\nservices = one two")
    }

    fn root(&self) -> &Path {
        self.directory.path()
    }

    /// A program of ours, with the players in place of those that it calls.
    fn command(&self, program: impl AsRef<std::ffi::OsStr>, arguments: &[&str]) -> Result<Command, Failure> {
        let built =
            Programs::find()?.failover.parent().context("programs lie in a directory")?.display().to_string();
        let mut command = Command::new(program);
        let path = format!("{}/bin:{built}:/usr/bin:/bin", self.root().display());
        command.args(arguments).env("PATH", path).env("HAST_FAILOVER_CONF", self.root().join("conf"));
        command.env("HAST_VIP_STATE", self.root().join("state"));
        Ok(command)
    }

    fn failover_command(&self, arguments: &[&str]) -> Result<Command, Failure> {
        self.command(Programs::find()?.failover, arguments)
    }

    fn failover(&self, arguments: &[&str]) -> Result<Run, Failure> {
        Run::of(&mut self.failover_command(arguments)?)
    }

    /// A script of dist/.
    fn script(&self, name: &str, arguments: &[&str]) -> Result<Command, Failure> {
        self.command(format!("{}/../dist/{name}", env!("CARGO_MANIFEST_DIR")), arguments)
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

    /// What the node is: role, imported, services.
    fn state(&self) -> (String, bool, bool) {
        let role = self.read("now/role.data").trim().to_string();
        let imported = self.root().join("now/pool").exists();
        let services =
            ["one", "two"].iter().all(|name| self.root().join(format!("now/runs.{name}")).exists());
        let some = ["one", "two"].iter().any(|name| self.root().join(format!("now/runs.{name}")).exists());
        assert_eq!(services, some, "services are started and stopped together");
        (role, imported, services)
    }
}

fn up() -> (String, bool, bool) {
    ("primary".to_string(), true, true)
}

fn down() -> (String, bool, bool) {
    ("secondary".to_string(), false, false)
}

#[test]
fn there_and_back() -> Outcome {
    let stage = Stage::pool()?;
    for _ in 0..2 {
        let run = stage.failover(&["primary"])?;
        assert_eq!((run.code, stage.state()), (0, up()), "{}", run.stderr);
    }
    assert_eq!(stage.calls("zpool import"), ["zpool import -f -o cachefile=none -d dev tank"]);
    assert_eq!(stage.calls("hastctl role primary").len(), 1, "promoted once");
    for _ in 0..2 {
        let run = stage.failover(&["secondary"])?;
        assert_eq!((run.code, stage.state()), (0, down()), "{}", run.stderr);
    }
    assert_eq!(
        stage.calls("hastctl role secondary").len(),
        2,
        "said again, should hastd wait to give another role"
    );
    Ok(())
}

#[test]
fn a_pool_over_two_resources() -> Outcome {
    let stage = Stage::new("resources = data data2\npool = tank\nservices = one two")?;
    let run = stage.failover(&["primary"])?;
    assert_eq!((run.code, stage.state()), (0, up()), "{}", run.stderr);
    assert_eq!(stage.read("now/role.data2"), "primary\n");
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
    let steps: &[(&str, u8, &str, i32, &str)] = &[
        ("hastctl", 1, "list*", 1, "does not say which role"),
        ("hastctl", 70, "role primary*", 70, "has newer data"),
        ("hastctl", 66, "role primary*", 1, "failed with status 66"),
        ("hastctl", 71, "role primary*", 1, "failed with status 71"),
        ("zpool", 32, "import*", 1, "failed with status 32"),
        ("systemctl", 1, "*", 1, "does not start (status 1)"),
    ];
    for (program, status, pattern, code, told) in steps {
        // Without systemd it is service(8).
        let programs = if *program == "systemctl" { vec!["systemctl", "service"] } else { vec![*program] };
        let stage = Stage::pool()?;
        for program in programs {
            stage.fail(program, *status, pattern)?;
        }
        let run = stage.failover(&["primary"])?;
        assert_eq!(run.code, *code, "{program} {pattern}: {}", run.stderr);
        assert!(run.stderr.contains(told), "{program} {pattern}: {}", run.stderr);
        assert_eq!(stage.state(), down(), "{program} {pattern}: {}", run.stderr);
        stage.mend()?;
        let run = stage.failover(&["primary"])?;
        assert_eq!((run.code, stage.state()), (0, up()), "{}", run.stderr);
    }
    Ok(())
}

/// The second service fails: what this run did is undone, in the other order.
#[test]
fn rolling_back_goes_backwards() -> Outcome {
    let stage = Stage::pool()?;
    stage.fail("service", 1, "two start")?;
    stage.fail("systemctl", 1, "start two")?;
    let run = stage.failover(&["primary"])?;
    assert_eq!((run.code, stage.state()), (1, down()), "{}", run.stderr);
    let told = |what: &str| run.stderr.rfind(what).context(what);
    assert!(
        told("Stopping one.")? < told("Exporting tank.")?
            && told("Exporting tank.")? < told("role secondary")?,
        "{}",
        run.stderr
    );
    // A run that found all but the services done leaves the rest as it was.
    stage.mend()?;
    stage.failover(&["primary"])?.ok("primary")?;
    std::fs::remove_file(stage.root().join("now/runs.one"))?;
    std::fs::remove_file(stage.root().join("now/runs.two"))?;
    stage.fail("service", 1, "two start")?;
    stage.fail("systemctl", 1, "start two")?;
    assert_eq!(stage.failover(&["primary"])?.code, 1);
    assert_eq!(stage.state(), ("primary".to_string(), true, false));
    Ok(())
}

/// Whatever fails on the way down, the role is given up all the same, and the failure is reported.
#[test]
fn each_step_down_fails_and_the_rest_is_done() -> Outcome {
    let stage = Stage::pool()?;
    stage.failover(&["primary"])?.ok("primary")?;
    stage.fail("service", 1, "one stop")?;
    stage.fail("systemctl", 1, "stop one")?;
    let run = stage.failover(&["secondary"])?;
    assert_eq!(run.code, 1, "{}", run.stderr);
    assert!(run.stderr.contains("one does not stop"), "{}", run.stderr);
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

/// A program that does not end is killed, and what follows is done.
#[test]
fn a_service_that_hangs() -> Outcome {
    let stage = Stage::new("services = SERVICE\nservice_timeout = 5")?;
    let service = stage.root().join("service");
    let text = format!("#!/bin/sh\n[ ! -e {0}/hang ] || sleep 1000\n", stage.root().display());
    executable(&service, &text)?;
    let conf = stage.read("conf").replace("SERVICE", &service.display().to_string());
    std::fs::write(stage.root().join("conf"), conf)?;
    stage.failover(&["primary"])?.ok("primary")?;
    std::fs::write(stage.root().join("hang"), "")?;
    let run = stage.failover(&["secondary"])?;
    assert_eq!(run.code, 1, "{}", run.stderr);
    assert!(run.stderr.contains("does not stop (not within 5 s)"), "{}", run.stderr);
    assert_eq!(stage.read("now/role.data"), "secondary\n");
    let run = stage.failover(&["primary"])?;
    assert_eq!((run.code, stage.read("now/role.data")), (1, "secondary\n".to_string()), "{}", run.stderr);
    Ok(())
}

/// FreeBSD's own hastd: nothing is promoted while the secondary's worker is there.
#[test]
fn with_the_original_the_secondary_leaves_first() -> Outcome {
    let stage = Stage::pool()?;
    // Its own name: the processes of other tests are seen too.
    let resource = format!("data{}", std::process::id());
    let conf = stage.read("conf").replace("pool =", &format!("resources = {resource}\npool ="));
    // This is waited for in vain.
    let conf = conf.replace("role_timeout = 60", "role_timeout = 5");
    std::fs::write(stage.root().join("conf"), conf)?;
    let role = format!("now/role.{resource}");
    std::fs::write(stage.root().join(&role), "secondary\n")?;
    std::fs::write(stage.root().join("original"), "")?;
    let title = format!("exec -a 'hastd: {resource} (secondary)' sleep 1000");
    let mut worker = Command::new("bash").args(["-c", &title]).spawn()?;
    let cmdline = format!("/proc/{}/cmdline", worker.id());
    wait_until("the worker to be there", LONG, || {
        Ok(std::fs::read_to_string(&cmdline).unwrap_or_default().starts_with("hastd"))
    })?;
    let run = stage.failover(&["primary"]);
    std::fs::remove_file(stage.root().join("original"))?;
    let ours = stage.failover(&["primary"]);
    worker.kill()?;
    worker.wait()?;
    let run = run?;
    assert_eq!(run.code, 70, "{}", run.stderr);
    assert!(run.stderr.contains("the other node is still primary"), "{}", run.stderr);
    // Ours says itself whether it has one.
    assert_eq!(ours?.code, 0);
    Ok(())
}

#[test]
fn the_device_that_hastd_makes() -> Outcome {
    let stage = Stage::new("")?;
    let conf = stage.read("conf").replace("attach = none", "attach = hastd");
    std::fs::write(stage.root().join("conf"), &conf)?;
    let run = stage.failover(&["primary"])?;
    assert_eq!(run.code, 0, "{}", run.stderr);
    assert_eq!(stage.failover(&["secondary"])?.code, 0);
    let conf = conf
        .replace("device_dir = ", "device_dir = /nowhere")
        .replace("device_timeout = 60", "device_timeout = 1");
    std::fs::write(stage.root().join("conf"), conf)?;
    let run = stage.failover(&["primary"])?;
    assert_eq!((run.code, stage.read("now/role.data")), (1, "secondary\n".to_string()), "{}", run.stderr);
    assert!(run.stderr.contains("is not there after 1 s"), "{}", run.stderr);
    Ok(())
}

/// What a node was told before it died may name a loop device that is somebody else's by now.
#[test]
fn a_strangers_loop_device_is_left_alone() -> Outcome {
    let stage = Stage::new("")?;
    std::fs::write(stage.root().join("state/data.device"), "fuse /dev/loop0\n")?;
    let run = stage.failover(&["secondary"])?;
    assert_eq!(run.code, 0, "{}", run.stderr);
    assert_eq!(stage.calls("losetup"), Vec::<String>::new());
    assert!(!stage.root().join("state/data.device").exists(), "still remembered");
    Ok(())
}

/// One run works at a time, and only the latest request counts.
#[test]
fn later_requests_take_the_place_of_earlier_ones() -> Outcome {
    let stage = Stage::pool()?;
    let hold = stage.root().join("hold");
    std::fs::write(&hold, "")?;
    let mut first = stage.failover_command(&["-q", "primary"])?.stdin(Stdio::null()).spawn()?;
    wait_until("the first to be at work", SHORT, || Ok(!stage.calls("hastctl role primary").is_empty()))?;
    // Two more wait for it; of these the last one counts.
    let before = stage.read("state/data.request");
    let mut second = stage.failover_command(&["-q", "primary"])?.stdin(Stdio::null()).spawn()?;
    wait_until("the second to ask", SHORT, || Ok(stage.read("state/data.request") != before))?;
    let mut third = stage.failover_command(&["-q", "secondary"])?.stdin(Stdio::null()).spawn()?;
    wait_until("the third to ask", SHORT, || Ok(stage.read("state/data.request").starts_with("secondary")))?;
    std::fs::remove_file(&hold)?;
    assert_eq!(first.wait()?.code(), Some(75), "the first has been overtaken");
    second.wait()?;
    assert_eq!(third.wait()?.code(), Some(0));
    assert_eq!(stage.state(), down());
    assert!(stage.calls("zpool import").is_empty(), "nothing was begun that was not wanted any more");
    Ok(())
}

/// keepalived's track script: a node whose data did not come up fails it, a backup and one on its way up do not.
#[test]
fn the_check_fails_where_a_promotion_has_failed() -> Outcome {
    let stage = Stage::pool()?;
    let check = || -> Result<(i32, i32), Failure> {
        let run = Run::of(&mut stage.script("keepalived/hast-notify", &["check", "data"])?)?;
        Ok((run.code, stage.failover(&["check", "data"])?.code))
    };
    assert_eq!(check()?, (0, 0), "a backup");
    stage.fail("zpool", 1, "import*")?;
    assert_eq!(stage.failover(&["primary"])?.code, 1);
    assert_eq!(check()?, (1, 1), "it has the address");
    assert_eq!(stage.failover(&["-a", "secondary"])?.code, 0);
    assert_eq!(check()?, (1, 1), "it would only fail again");
    let said = stage.failover(&["check", "data"])?.stdout;
    assert!(said.contains("Importing tank") || said.contains("import"), "{said}");
    // What was remembered is gone, as after a restart.
    let kept = stage.read("state/data.failed");
    std::fs::remove_file(stage.root().join("state/data.failed"))?;
    assert_eq!(check()?, (0, 0));
    std::fs::write(stage.root().join("state/data.failed"), kept)?;
    // An administrator has mended it, and says so or tries it.
    assert_eq!(stage.failover(&["-f", "secondary"])?.code, 0);
    assert_eq!(check()?, (0, 0));
    assert_eq!(stage.failover(&["primary"])?.code, 1);
    stage.mend()?;
    let hold = stage.root().join("hold");
    std::fs::write(stage.root().join("now/role.data"), "secondary\n")?;
    std::fs::write(&hold, "")?;
    let mut run = stage.failover_command(&["-q", "primary"])?.stdin(Stdio::null()).spawn()?;
    wait_until("the run to be at work", SHORT, || Ok(stage.calls("hastctl role primary").len() == 3))?;
    assert_eq!(check()?, (0, 0), "it is on its way");
    std::fs::remove_file(&hold)?;
    assert_eq!(run.wait()?.code(), Some(0));
    assert_eq!(check()?, (0, 0));
    // hastd does not answer.
    stage.fail("hastctl", 75, "list*")?;
    assert_eq!(check()?, (1, 1));
    Ok(())
}

/// Two groups on one node: what one of them cannot do says nothing about the other.
#[test]
fn the_check_is_about_the_groups_that_are_named() -> Outcome {
    let stage = Stage::pool()?;
    let conf = stage.read("conf") + "\n[data2]\nresources = data2\n";
    std::fs::write(stage.root().join("conf"), conf)?;
    stage.fail("hastctl", 71, "role primary*data2")?;
    assert_eq!(stage.failover(&["primary", "data"])?.code, 0);
    assert_eq!(stage.failover(&["primary", "data2"])?.code, 1);
    for (names, code) in [(&["data"][..], 0), (&["data2"], 1), (&["data", "data2"], 1), (&[], 1)] {
        assert_eq!(stage.failover(&[&["check"], names].concat())?.code, code, "{names:?}");
    }
    Ok(())
}

/// What counts is when a request was made, not when its process gets to say so.
#[test]
fn a_request_that_was_made_earlier_and_comes_later_does_not_count() -> Outcome {
    let stage = Stage::pool()?;
    let made = stage.failover(&["time"])?.ok("time")?;
    stage.failover(&["secondary"])?.ok("secondary")?;
    let run = Run::of(stage.failover_command(&["primary"])?.env("HAST_FAILOVER_TIME", made.trim()))?;
    assert_eq!((run.code, stage.state()), (75, down()), "{}", run.stderr);
    assert!(run.stderr.contains("A later request (secondary "), "{}", run.stderr);
    let run = Run::of(stage.failover_command(&["primary"])?.env("HAST_FAILOVER_TIME", "yesterday"))?;
    assert_eq!(run.code, 64, "{}", run.stderr);
    // A service is not given the time of the request that started it.
    assert_eq!(stage.failover(&["primary"])?.code, 0);
    Ok(())
}

/// keepalived's FIFO: what it said last is what the node becomes, however fast it came.
#[test]
fn the_last_line_of_the_fifo_counts() -> Outcome {
    use std::io::Write;
    let stage = Stage::new("vrrp = VI_1")?;
    let path = stage.root().join("fifo");
    let mut server = stage.failover_command(&["-q", "fifo", &path.display().to_string()])?.spawn()?;
    let play = || -> Outcome {
        wait_until("the FIFO to be there", LONG, || Ok(path.exists()))?;
        let mut fifo = std::fs::OpenOptions::new().write(true).open(&path)?;
        for (last, expected) in [("MASTER", "primary\n"), ("BACKUP", "secondary\n"), ("MASTER", "primary\n")]
        {
            for state in ["BACKUP", "MASTER", "FAULT", "MASTER", "STOP", "MASTER", "BACKUP", last] {
                writeln!(fifo, "INSTANCE \"VI_1\" {state} 100")?;
                writeln!(fifo, "INSTANCE \"other\" FAULT 100")?;
            }
            let settled = || -> Result<bool, Failure> {
                let idle = Run::of(
                    Command::new("pgrep").args(["-f", &format!("[-]c {}/conf", stage.root().display())]),
                )?;
                Ok(idle.code == 1 && stage.read("now/role.data") == expected)
            };
            wait_until(&format!("the node to be {expected}"), LONG, settled)?;
        }
        Ok(())
    };
    let played = play();
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(server.id().try_into()?),
        nix::sys::signal::Signal::SIGTERM,
    )?;
    assert_eq!(server.wait()?.code(), Some(0));
    played?;
    std::fs::write(stage.root().join("file"), "")?;
    let file = stage.root().join("file").display().to_string();
    assert_eq!(stage.failover(&["fifo", &file])?.code, 66);
    Ok(())
}

/// The sample does nothing until somebody has written a group into it.
#[test]
fn the_sample_has_no_group() -> Outcome {
    let stage = Stage::pool()?;
    let sample = concat!(env!("CARGO_MANIFEST_DIR"), "/../dist/hast-failover.conf.sample");
    for command in ["primary", "secondary", "init", "status"] {
        let run = stage.failover(&["-c", sample, command])?;
        assert_eq!(run.code, 0, "{command}: {}", run.stderr);
        assert!(run.stderr.contains("has no group"), "{}", run.stderr);
    }
    assert_eq!(stage.read("calls"), "");
    // What is commented out is what may be written.
    let text: String = std::fs::read_to_string(sample)?
        .lines()
        .map(|line| {
            line.strip_prefix('#').filter(|line| line.contains('=') || line.starts_with('[')).unwrap_or(line)
        })
        .map(|line| format!("{line}\n"))
        .collect();
    std::fs::write(stage.root().join("sample"), &text)?;
    let uncommented = stage.root().join("sample").display().to_string();
    let run = stage.failover(&["-c", &uncommented, "status"])?;
    assert_ne!(run.code, 78, "{}{text}", run.stderr);
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
        let stage = Stage::new(wrong)?;
        let run = stage.failover(&["primary", "data"])?;
        assert_eq!(run.code, 78, "{wrong}: {}", run.stderr);
        assert!(run.stderr.contains(told) && run.stderr.contains("line "), "{wrong}: {}", run.stderr);
        assert!(stage.calls("hastctl").is_empty(), "{wrong}");
    }
    let stage = Stage::pool()?;
    assert_eq!(stage.failover(&["primary", "other"])?.code, 65);
    for wrong in [&["promote"][..], &[], &["-x", "primary"], &["-r", "primary"]] {
        assert_eq!(stage.failover(wrong)?.code, 64, "{wrong:?}");
    }
    Ok(())
}

#[test]
fn without_its_configuration_only_roles_and_devices() -> Outcome {
    let stage = Stage::pool()?;
    let run = stage.failover(&["-r", "primary", "data2"])?;
    assert_eq!(run.code, 0, "{}", run.stderr);
    assert_eq!(stage.read("now/role.data2"), "primary\n");
    assert!(stage.calls("zpool").is_empty());
    assert_eq!(stage.failover(&["-r", "init", "data2"])?.code, 0);
    assert_eq!(stage.read("now/role.data2"), "init\n");
    assert_eq!(stage.failover(&["-c", "/nowhere", "primary"])?.code, 78);
    Ok(())
}

/// devd's and keepalived's notifications, as they call their scripts.
#[test]
fn notifications_become_roles() -> Outcome {
    let stage = Stage::pool()?;
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
        Run::of(&mut stage.script("carp/carp-notify", &[subsystem, kind])?)?.ok("carp-notify")?;
        role(name, expected)?;
    }
    assert_eq!(stage.read("now/role.data"), "secondary\n");
    for (state, expected) in
        [("MASTER", "primary"), ("BACKUP", "secondary"), ("MASTER", "primary"), ("FAULT", "secondary")]
    {
        let arguments = ["data", "INSTANCE", "VI_1", state, "100"];
        Run::of(&mut stage.script("keepalived/hast-notify", &arguments)?)?.ok("hast-notify")?;
        role("data", expected)?;
    }
    let check = |stage: &Stage| Run::of(&mut stage.script("keepalived/hast-notify", &["check", "data"])?);
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
