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
    assert_eq!(hastd(&["-h"]), (64, String::new(), usage.to_owned()));
    let (status, _, stderr) = hastd(&["-F", "-q"]);
    assert_eq!((status, stderr.ends_with(usage)), (64, true), "{stderr}");
}

#[test]
fn a_configuration_that_cannot_be_used_has_the_originals_statuses() {
    let place = Place::new();
    let missing = place.path("missing");
    let (status, _, stderr) = hastd(&["-F", "-c", missing.to_str().unwrap()]);
    assert_eq!(status, 72, "{stderr}");
    let (status, _, stderr) = hastd(&["-F", "-c", "relative/and/missing"]);
    assert_eq!(status, 78, "{stderr}");
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
