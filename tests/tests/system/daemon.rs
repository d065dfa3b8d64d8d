//! hastd as a program: starting, a second one, the background, stopping.

use std::process::{Command, Stdio};

use hast_tests::{Context, Failure, LONG, Outcome, Pair, Run, SHORT, Setup, wait_for, wait_until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::volume::Volume;

#[test]
fn a_second_daemon_is_refused() -> Outcome {
    let mut pair = Pair::up(Setup::default())?;
    let pid = std::fs::read_to_string(pair.a.pidfile())?;
    assert_eq!(pid.trim(), pair.a.pid()?.to_string());
    let pidfile = pair.a.pidfile().display().to_string();
    for arguments in [&["-F", "-P", &pidfile][..], &[]] {
        let second = Run::of(&mut pair.a.hastd(arguments))?;
        assert_eq!(second.code, 75, "{arguments:?}: {}{}", second.stdout, second.stderr);
    }
    // Without a pidfile, or with one of its own, it finds the control socket in use and leaves it alone.
    let other = pair.directory().join("other.pid").display().to_string();
    for arguments in [&["-F"][..], &["-F", "-P", &other]] {
        let third = Run::of(&mut pair.a.hastd(arguments))?;
        assert_ne!(third.code, 0, "{}{}", third.stdout, third.stderr);
        assert_eq!(pair.a.hastctl(&["status"])?.code, 0);
    }
    assert_eq!(std::fs::read_to_string(pair.a.pidfile())?, pid);
    assert!(pair.a.is_running()?);
    assert_eq!(pair.a.status("disk0")?, "complete", "the first goes on as if nothing had happened");
    let mut volume = Volume::fresh(&pair.a, "disk0")?;
    volume.scribble(1, 0, 4096)?;
    pair.finish()
}

/// The path that administrators use: a daemon in the background, found by its pidfile.
#[test]
fn in_the_background() -> Outcome {
    let pair = Pair::blank(Setup::default())?;
    pair.create()?;
    let started = Run::of(&mut pair.a.hastd(&[]))?;
    let background = Background::found(&pair)?;
    assert_eq!(started.code, 0, "{}{}", started.stdout, started.stderr);
    wait_until("the control socket", SHORT, || Ok(pair.a.hastctl(&["status"])?.code == 0))?;
    pair.a.role("primary", "disk0")?;
    let mut volume = Volume::fresh(&pair.a, "disk0")?;
    volume.scribble(1, 0, 1 << 20)?;
    volume.verify()?;
    // In the background a reload moves the pidfile.
    let moved = pair.a.directory().join("moved.pid");
    std::fs::write(pair.conf_path(), pair.conf().replace("a/hastd.pid", "a/moved.pid"))?;
    kill(background.0, Signal::SIGHUP)?;
    wait_until("the pidfile to move", SHORT, || Ok(moved.exists() && !pair.a.pidfile().exists()))?;
    assert_eq!(std::fs::read_to_string(&moved)?.trim(), background.0.to_string());
    volume.verify()?;
    assert_eq!(pair.a.hastctl(&["stop"])?.code, 0);
    background.wait_gone()?;
    assert!(!moved.exists() && !pair.a.control().exists() && !pair.a.socket("disk0").exists());
    pair.finish()
}

/// A daemon that the harness did not start as its child; it is killed if the test fails.
pub(crate) struct Background(pub(crate) Pid);

impl Background {
    fn found(pair: &Pair) -> Result<Background, Failure> {
        let pid = wait_for("the pidfile", SHORT, || {
            let text = std::fs::read_to_string(pair.a.pidfile()).unwrap_or_default();
            Ok(text.trim().parse().ok())
        })?;
        Ok(Background(Pid::from_raw(pid)))
    }

    pub(crate) fn wait_gone(&self) -> Outcome {
        wait_until("the daemon to end", LONG, || Ok(!self.is_alive()))
    }

    fn is_alive(&self) -> bool {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.0)).unwrap_or_default();
        stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('Z'))
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        if self.is_alive() {
            let _ = kill(self.0, Signal::SIGTERM);
        }
    }
}

#[test]
fn usage_and_configuration_errors() -> Outcome {
    let pair = Pair::blank(Setup::default())?;
    let hastd = hast_tests::programs::Programs::find()?.hastd;
    let run = |arguments: &[&str]| Run::of(Command::new(&hastd).args(arguments).stdout(Stdio::piped()));
    let help = run(&["-h"])?;
    assert_eq!(help.code, 64);
    assert!(help.stderr.contains("[-dFh] [-c config] [-P pidfile]"), "{}", help.stderr);
    assert_eq!(run(&["-x"])?.code, 64);
    assert_eq!(run(&["-F", "-c", "/nonexistent/hast.conf"])?.code, 72);
    std::fs::write(pair.conf_path(), "resource disk0 {\n    replication sometimes\n}\n")?;
    let broken = Run::of(&mut pair.a.hastd(&["-F"]))?;
    assert_eq!(broken.code, 78, "{}", broken.stderr);
    for expected in ["hast.conf:2:17", "replication sometimes", "fullsync"] {
        assert!(broken.stderr.contains(expected), "{expected:?} in\n{}", broken.stderr);
    }
    // A node that no `on` section names.
    pair.write_conf()?;
    let conf = pair.conf_path().display().to_string();
    let stranger = run(&["-F", "-c", &conf, "-N", "stranger"])?;
    assert_eq!(stranger.code, 78, "{}", stranger.stderr);
    assert!(stranger.stderr.contains("stranger"), "{}", stranger.stderr);
    pair.finish()
}

/// SIGTERM and SIGINT stop everything in order: what was acknowledged is on both disks.
#[test]
fn stopping_keeps_acknowledged_writes() -> Outcome {
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let mut pair = Pair::up(Setup::default())?;
        let mut volume = Volume::fresh(&pair.a, "disk0")?;
        volume.scribble(5, 0, 4 << 20)?;
        pair.a.signal(signal)?;
        let status = pair.a.wait_exit()?;
        assert_eq!(status.code(), Some(0));
        pair.b.role("primary", "disk0")?;
        volume.moved_to(&pair.b, "disk0")?.verify()?;
        volume.verify_provider(&pair.a, "disk0").context("the stopped node's disk")?;
        pair.finish()?;
    }
    Ok(())
}
