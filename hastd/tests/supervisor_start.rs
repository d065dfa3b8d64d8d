//! Starting and ending: command line, exit statuses, background, pidfile, second instances.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod support;

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixListener;
use std::process::{Command, Output, Stdio};

use hast_format::metadata::Role;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use support::{Place, is_alive, wait_for};

const RESOURCE: &str = "resource disk0 { local @/disk0 on a { remote none } }";

fn output(command: &mut Command) -> (i32, String, String) {
    let Output { status, stdout, stderr } = command.stdin(Stdio::null()).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (status.code().unwrap(), text(stdout), text(stderr))
}

fn hastd(arguments: &[&str]) -> (i32, String, String) {
    output(Command::new(env!("CARGO_BIN_EXE_hastd")).args(arguments))
}

#[test]
fn usage_is_status_64_on_standard_error() {
    let usage = "hastd: [-dFh] [-c config] [-P pidfile]\n";
    let (status, stdout, stderr) = hastd(&["-h"]);
    assert_eq!((status, stdout.as_str()), (64, ""));
    let ours = stderr.strip_prefix(usage).unwrap();
    assert!(ours.contains("[-N node]") && ours.contains("[-t]"), "{ours}");
    let (status, _, again) = hastd(&["-F", "-q"]);
    assert_eq!((status, again.ends_with(&stderr)), (64, true), "{again}");
}

#[test]
fn help_and_version_are_status_0_on_standard_output() {
    for (option, part) in
        [("--help", "-N node "), ("--version", concat!("hastd ", env!("CARGO_PKG_VERSION"), "\n"))]
    {
        let (status, stdout, stderr) = hastd(&["-d", option]);
        assert_eq!((status, stderr.as_str()), (0, ""));
        assert!(stdout.contains(part), "{stdout}");
    }
}

#[test]
fn dash_t_checks_the_configuration_and_touches_nothing() {
    let place = Place::new();
    place.configure(RESOURCE);
    let (status, stdout, stderr) = output(place.command().arg("-t"));
    assert_eq!((status, stderr.as_str()), (0, ""));
    assert_eq!(stdout, format!("Configuration {} is good: 1 resource for node a.\n", place.conf().display()));
    assert!(!place.control().exists() && !place.path("hastd.pid").exists());
    // With a daemon at work too.
    let _daemon = place.start();
    assert_eq!(output(place.command().arg("-t")).0, 0);
    place.write_conf("resource disk0 {\n\tlocal\n");
    let (status, stdout, stderr) = output(place.command().arg("-t"));
    assert_eq!((status, stdout.as_str()), (78, ""));
    assert!(stderr.starts_with("[ERROR] ") && stderr.contains("hast.conf:2:7"), "{stderr}");
    fs::remove_file(place.conf()).unwrap();
    assert_eq!(output(place.command().arg("-t")).0, 72);
    assert_eq!(place.role("disk0"), "init");
}

#[test]
fn a_configuration_that_cannot_be_used_has_the_originals_statuses() {
    let place = Place::new();
    let missing = place.path("missing");
    let (status, _, stderr) = hastd(&["-F", "-c", missing.to_str().unwrap()]);
    assert_eq!(status, 72, "{stderr}");
    let (status, _, stderr) = hastd(&["-F", "-c", "relative/and/missing"]);
    assert_eq!(status, 78, "{stderr}");
    place.configure(RESOURCE);
    let (status, _, stderr) = output(place.command().args(["-F", "-P", &"p".repeat(1024)]));
    assert_eq!((status, stderr.as_str()), (78, "[ERROR] Pidfile path is too long.\n"));
    place.write_conf("resource disk0 {\n\treplication sometimes\n}\n");
    let (status, _, stderr) = output(place.command().arg("-F"));
    assert_eq!(status, 78);
    assert!(stderr.starts_with("[ERROR] "), "{stderr}");
    assert!(stderr.contains("hast.conf:2:14"), "{stderr}");
}

#[test]
fn an_address_in_use_is_status_71() {
    let place = Place::new();
    place.configure(RESOURCE);
    let _taken = TcpListener::bind((place.address, place.port)).unwrap();
    let (status, _, stderr) = output(place.command().arg("-F"));
    assert_eq!(status, 71, "{stderr}");
    assert!(stderr.contains("Address already in use"), "{stderr}");
    assert!(!place.control().exists());
}

/// A shared address that is elsewhere just now, an interface that comes later: the others are served meanwhile.
#[test]
fn an_address_that_is_not_there_yet_is_waited_for() {
    let place = Place::new();
    let here = format!("listen tcp4://{}:{}\n", place.address, place.port);
    // The network of documentation is nobody's.
    let away = "listen tcp4://192.0.2.1:8457\nlisten tcp6://[fe80::1%nosuch0]:8457\n";
    place.write_conf(&format!("control @/ctl\n{away}{here}{RESOURCE}"));
    let daemon = place.start();
    std::net::TcpStream::connect((place.address, place.port)).unwrap();
    let lines = "It is opened as soon as this host has it.";
    place.wait_for_log_times(lines, 2);
    assert!(place.log().contains("[WARNING] Unable to listen on address tcp4://192.0.2.1:8457: "));
    assert_eq!(daemon.stop().code(), Some(0));
    // None at all is nothing to begin with.
    place.write_conf(&format!("control @/ctl\n{away}{RESOURCE}"));
    let (status, _, stderr) = output(place.command().arg("-F"));
    assert_eq!(status, 71, "{stderr}");
    assert!(stderr.contains("There is no address to listen on"), "{stderr}");
}

/// In a network namespace of its own, where an address can come.
#[cfg(target_os = "linux")]
#[test]
fn an_address_that_comes_is_listened_on() {
    let place = Place::new();
    let conf =
        format!("control @/ctl\nlisten tcp4://127.0.0.1:8457\nlisten tcp4://198.51.100.7:8457\n{RESOURCE}");
    place.write_conf(&conf);
    let script = "ip link set lo up && exec \"$@\"";
    let hastd = place.command();
    let mut command = Command::new("unshare");
    command.args(["-rn", "sh", "-c", script, "sh"]).arg(hastd.get_program()).args(hastd.get_args());
    let probe = Command::new("unshare").args(["-rn", "ip", "link", "set", "lo", "up"]).status();
    if !probe.is_ok_and(|status| status.success()) {
        eprintln!("skipped: no network namespace can be made here");
        return;
    }
    let daemon = place.start_as(&mut command, &[]);
    place.wait_for_log("It is opened as soon as this host has it.");
    let pid = daemon.pid().to_string();
    let enter = |arguments: &[&str]| {
        let status = Command::new("nsenter")
            .args(["-t", &pid, "-U", "-n", "--preserve-credentials"])
            .args(arguments)
            .status();
        assert!(status.unwrap().success(), "{arguments:?}");
    };
    enter(&["ip", "address", "add", "198.51.100.7/32", "dev", "lo"]);
    place.wait_for_log("[INFO] Listening on address tcp4://198.51.100.7:8457.\n");
    assert_eq!(daemon.stop().code(), Some(0));
}

#[test]
fn in_the_background_it_is_ready_when_the_command_returns() {
    let place = Place::new();
    place.configure(RESOURCE);
    place.provider("disk0");
    assert_eq!(output(&mut place.command()).0, 0);
    // Nothing is waited for here: it answers, and its process id can be read.
    assert_eq!(place.role("disk0"), "init");
    let pid: i32 = fs::read_to_string(place.path("hastd.pid")).unwrap().parse().unwrap();
    assert!(is_alive(pid));
    let of = |name: &str| fs::read_link(format!("/proc/{pid}/{name}")).unwrap();
    assert_eq!(of("cwd").to_str(), Some("/"));
    for descriptor in ["fd/0", "fd/1", "fd/2"] {
        assert_eq!(of(descriptor).to_str(), Some("/dev/null"));
    }
    let session = nix::unistd::getsid(Some(Pid::from_raw(pid))).unwrap();
    assert_eq!(session.as_raw(), pid);

    let (status, _, stderr) = output(&mut place.command());
    assert_eq!(status, 75, "{stderr}");
    assert!(stderr.contains("already running") && stderr.contains(&pid.to_string()), "{stderr}");
    assert_eq!(place.role("disk0"), "init");

    place.set_role(Role::Secondary, &["disk0"]);
    kill(Pid::from_raw(pid), Signal::SIGTERM).unwrap();
    wait_for("the daemon to end", || (!is_alive(pid)).then_some(()));
    assert!(!place.path("hastd.pid").exists());
    assert!(!place.control().exists());
}

#[test]
fn dash_p_overrides_the_configured_pidfile_in_the_foreground_too() {
    let place = Place::new();
    place.configure(RESOURCE);
    let other = place.path("other.pid");
    let other = other.to_str().unwrap();
    let mut daemon = place.start_with(&["-P", other]);
    assert_eq!(fs::read_to_string(other).unwrap(), daemon.child.id().to_string());
    assert!(!place.path("hastd.pid").exists());
    let (status, _, stderr) = output(place.command().args(["-F", "-P", other]));
    assert_eq!(status, 75, "{stderr}");
    assert!(stderr.contains(&daemon.child.id().to_string()), "{stderr}");
    daemon.signal(Signal::SIGINT);
    assert_eq!(daemon.wait().code(), Some(0));
    assert!(!place.path("other.pid").exists());
}

#[test]
fn a_second_instance_without_pidfile_leaves_the_first_ones_socket_alone() {
    let place = Place::new();
    place.configure(RESOURCE);
    let daemon = place.start();
    let socket = fs::metadata(place.control()).unwrap().ino();
    let (status, _, stderr) = output(place.command().arg("-F"));
    assert_eq!(status, 75, "{stderr}");
    assert!(stderr.contains("in use"), "{stderr}");
    assert_eq!(fs::metadata(place.control()).unwrap().ino(), socket);
    assert_eq!(place.role("disk0"), "init");
    assert_eq!(daemon.stop().code(), Some(0));
    assert!(!place.control().exists());
    assert!(place.log().contains("[INFO] Termination signal received, exiting."));
}

#[test]
fn the_socket_of_a_dead_instance_is_replaced() {
    let place = Place::new();
    place.configure(RESOURCE);
    drop(UnixListener::bind(place.control()).unwrap());
    assert!(place.control().exists());
    let mut daemon = place.start();
    assert_eq!(place.role("disk0"), "init");
    daemon.child.kill().unwrap();
    daemon.wait();
    let _daemon = place.start();
    assert_eq!(place.role("disk0"), "init");
}

#[test]
fn it_says_what_it_does() {
    let place = Place::new();
    place.configure(RESOURCE);
    let _daemon = place.start();
    // It is ready before it has said all of it.
    place.wait_for_log("[INFO] Started successfully, running protocol version 2.\n");
    place.wait_for_log(&format!("[INFO] Listening on address tcp4://{}:{}.\n", place.address, place.port));
    let control = place.control();
    place.wait_for_log(&format!("[DEBUG][1] Listening on control address {}.\n", control.display()));
}
