//! SIGHUP: what changes, what stays, and what is refused.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod support;

use std::fs;
use std::net::TcpStream;
use std::os::unix::fs::MetadataExt;
use std::process::Stdio;

use hast_format::metadata::Role;
use hast_net::control::{Command, Entry, Reply, Request};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use support::{Place, ask_at, free_ports, is_alive, status, wait_for};

fn resource(name: &str, rest: &str) -> String {
    format!("resource {name} {{ local @/{name} on a {{ remote none }} {rest} }}\n")
}

fn names(place: &Place) -> Vec<String> {
    let Reply::Entries(entries) = place.ask(&status(&["all"])) else { panic!() };
    entries.iter().map(|entry| entry.name().to_owned()).collect()
}

fn reload() -> Request {
    Request::new(Command::Reload, vec!["all".to_owned()])
}

#[test]
fn a_bad_file_changes_nothing() {
    let place = Place::new();
    place.configure(&resource("one", ""));
    let daemon = place.start();
    place.write_conf("resource one { local @/one }\n");
    daemon.signal(Signal::SIGHUP);
    place.wait_for_log("[WARNING] Configuration not reloaded.");
    assert!(place.log().contains("hast.conf:1:"), "{}", place.log());
    assert_eq!(names(&place), ["one"]);
    // Nor does one that is missing.
    fs::remove_file(place.conf()).unwrap();
    daemon.signal(Signal::SIGHUP);
    place.wait_for_log_times("[WARNING] Configuration not reloaded.", 2);
    assert_eq!(names(&place), ["one"]);
}

#[test]
fn resources_come_go_and_restart() {
    let place = Place::new();
    let hook = format!("exec {}\n", place.hook().display());
    for name in ["one", "two", "three", "four"] {
        place.provider(name);
    }
    place.configure(&[&hook, &*resource("one", ""), &resource("two", ""), &resource("three", "")].concat());
    let daemon = place.start();
    place.set_role(Role::Secondary, &["one", "two", "three"]);
    place.wait_for_lines("events", 3);

    // `one' goes, `two' changes, `three' stays as it is, `four' is new and in front of all.
    place.configure(
        &[&hook, &*resource("four", ""), &resource("two", "timeout 7"), &resource("three", "")].concat(),
    );
    daemon.reload();
    let mut events = place.wait_for_lines("events", 6).split_off(3);
    events.sort();
    let expected = ["role one secondary init", "role two init secondary", "role two secondary init"];
    assert_eq!(events, expected);
    assert_eq!(names(&place), ["three", "four", "two"]);
    let roles = ["three", "four", "two"].map(|name| place.role(name));
    assert_eq!(roles, ["secondary", "init", "secondary"]);
    assert_eq!(place.ask(&status(&["one"])), Reply::Entries(vec![Entry::error("one", 1)]));
    // Its provider is free again.
    hast_provider::Provider::open(&place.path("one"), true).unwrap().lock().unwrap();

    // The same file once more changes nothing.
    daemon.reload();
    assert_eq!(names(&place), ["three", "four", "two"]);
    assert_eq!(place.wait_for_lines("events", 6).len(), 6);
}

#[test]
fn a_resource_in_role_init_shows_its_new_values() {
    let place = Place::new();
    place.configure(&resource("one", ""));
    let daemon = place.start();
    assert_eq!(place.status("one").checksum, "none");
    place.configure(&resource("one", "checksum crc32 compression lzf replication async"));
    daemon.reload();
    let status = place.status("one");
    assert_eq!(
        (status.checksum.as_str(), status.compression.as_str(), status.replication.as_str()),
        ("crc32", "lzf", "async")
    );
    assert_eq!(status.role, "init");
}

#[test]
fn sockets_move_and_those_that_stay_are_not_touched() {
    let place = Place::new();
    let [stays, goes, comes] = free_ports(place.address);
    let listen = |ports: &[u16]| -> String {
        ports.iter().map(|port| format!("listen tcp4://{}:{port}\n", place.address)).collect()
    };
    place.write_conf(&format!("control @/ctl\n{}", listen(&[stays, goes])));
    let daemon = place.start();
    let reach = |port: u16| TcpStream::connect((place.address, port)).is_ok();
    assert!(reach(stays) && reach(goes) && !reach(comes));

    place.write_conf(&format!("control @/moved\n{}", listen(&[comes, stays])));
    daemon.reload();
    assert!(reach(stays) && !reach(goes) && reach(comes));
    assert!(!place.control().exists());
    assert_eq!(ask_at(&place.path("moved"), &status(&["all"])), Reply::Entries(vec![]));
    let stayed = format!("Listening on address tcp4://{}:{stays}.", place.address);
    assert_eq!(place.log().matches(&stayed).count(), 1);

    // An address that is taken only warns while there is another one ...
    let taken = std::net::TcpListener::bind((place.address, 0)).unwrap();
    let port = taken.local_addr().unwrap().port();
    place.write_conf(&format!("control @/moved\n{}", listen(&[stays, port])));
    daemon.reload();
    assert!(place.log().contains("[WARNING] Unable to listen on address"), "{}", place.log());
    // ... and is refused as the only one: everything stays as it was.
    place.write_conf(&format!("control @/elsewhere\n{}", listen(&[port])));
    daemon.signal(Signal::SIGHUP);
    place.wait_for_log("[WARNING] Configuration not reloaded.");
    assert!(reach(stays));
    assert!(!place.path("elsewhere").exists());
    assert_eq!(ask_at(&place.path("moved"), &status(&["all"])), Reply::Entries(vec![]));
    assert_eq!(daemon.stop().code(), Some(0));
    assert!(!place.path("moved").exists());
}

/// A shared address arrives after the file has named it: the next reload opens it.
#[test]
fn an_address_that_was_taken_is_tried_again_at_each_reload() {
    let place = Place::new();
    let [stays, busy] = free_ports(place.address);
    let conf = |ports: &[u16]| {
        let listen: String =
            ports.iter().map(|port| format!("listen tcp4://{}:{port}\n", place.address)).collect();
        place.write_conf(&format!("control @/ctl\n{listen}"));
    };
    conf(&[stays]);
    let daemon = place.start();
    let taken = std::net::TcpListener::bind((place.address, busy)).unwrap();
    conf(&[stays, busy]);
    for times in 1..=2 {
        daemon.reload();
        place.wait_for_log_times("[WARNING] Unable to listen on address", times);
    }
    drop(taken);
    daemon.reload();
    place.wait_for_log(&format!("Listening on address tcp4://{}:{busy}.", place.address));
    TcpStream::connect((place.address, busy)).unwrap();
    // Once it is open it stays open.
    daemon.reload();
    assert_eq!(
        place.log().matches(&format!("Listening on address tcp4://{}:{busy}.", place.address)).count(),
        1
    );
    assert_eq!(daemon.stop().code(), Some(0));
}

/// A resource at work does not lose what it has because of a path that leads nowhere.
#[test]
fn a_wrong_local_or_name_leaves_the_resource_as_it_is() {
    let place = Place::new();
    let hook = format!("exec {}\n", place.hook().display());
    let conf = |one: &str, more: &str, two: &str| {
        place.configure(&format!(
            "{hook}resource one {{ local @/{one} on a {{ remote none }} {more} }}\n\
             resource two {{ local @/{two} on a {{ remote none }} }}\n"
        ));
    };
    place.create("one", "one");
    place.create("two", "two");
    place.create("three", "three");
    conf("one", "", "two");
    let daemon = place.start();
    place.set_role(Role::Primary, &["one"]);
    place.set_role(Role::Secondary, &["two"]);
    place.wait_for_lines("events", 2);
    let socket = place.path("nbd/one.sock");
    let before = (place.status("one").workerpid, fs::metadata(&socket).unwrap().ino());
    fs::write(place.path("nbd/taken.sock"), "").unwrap();
    for (local, more, why) in [
        ("typo", "", "No such file or directory"),
        ("three", "", "not part of resource one"),
        ("one", "name taken", "taken.sock"),
    ] {
        conf(local, more, "two");
        let Reply::Reloaded(told) = place.ask(&reload()) else { panic!() };
        assert_eq!(told.status, 78, "{told:?}");
        let [line] = told.lines.as_slice() else { panic!("{told:?}") };
        assert!(line.starts_with("Resource one goes on as it was: ") && line.contains(why), "{line}");
        let now = (place.status("one").workerpid, fs::metadata(&socket).unwrap().ino());
        assert_eq!((now, place.role("one")), (before, "primary".to_owned()), "{why}");
        assert!(place.log().contains("[WARNING] [one] (primary) The resource goes on as it was: "));
    }
    // A secondary without a connection as well; and what else is new is taken over.
    conf("one", "timeout 7", "typo");
    let Reply::Reloaded(told) = place.ask(&reload()) else { panic!() };
    assert_eq!(told.status, 78);
    assert_eq!(told.lines[0], "Resource one reloaded.");
    assert_eq!(place.role("two"), "secondary");
    assert_eq!(place.status("two").localpath, place.path("two").to_str().unwrap());
    // Put right, it is as it was all the time; no role has changed meanwhile.
    conf("one", "timeout 7", "two");
    daemon.reload();
    assert_eq!(place.status("one").workerpid, before.0);
    assert_eq!(place.wait_for_lines("events", 2).len(), 2);
    // The same disk by another name is no other disk.
    fs::hard_link(place.path("one"), place.path("elsewhere")).unwrap();
    conf("elsewhere", "timeout 7", "two");
    daemon.reload();
    wait_for("another worker", || {
        let status = place.status("one");
        (status.role == "primary" && ![0, before.0].contains(&status.workerpid)).then_some(())
    });
}

/// Who asks for it over the control socket is told what has changed, or why nothing has.
#[test]
fn a_reload_that_was_asked_for_is_answered() {
    let place = Place::new();
    place.configure(&[&*resource("one", ""), &resource("two", "")].concat());
    let daemon = place.start();
    let ask = || match place.ask(&reload()) {
        Reply::Reloaded(told) => (told.status, told.lines),
        other => panic!("{other:?}"),
    };
    assert_eq!(ask(), (0, vec!["Nothing has changed.".to_owned()]));
    place.configure(&[&*resource("two", "timeout 7"), &resource("three", "")].concat());
    let expected = ["Resource one removed.", "Resource three added.", "Resource two restarted."];
    assert_eq!(ask(), (0, expected.map(str::to_owned).to_vec()));
    assert_eq!(names(&place), ["three", "two"]);
    place.write_conf("resource one { local\n");
    let (status, lines) = ask();
    assert_eq!(status, 78);
    assert!(lines[0].contains("hast.conf:1:"), "{lines:?}");
    assert_eq!(lines.last().map(String::as_str), Some("Configuration not reloaded."));
    fs::remove_file(place.conf()).unwrap();
    assert_eq!(ask().0, 72);
    assert_eq!(names(&place), ["three", "two"]);
    assert_eq!(daemon.stop().code(), Some(0));
}

#[test]
fn a_control_socket_of_somebody_else_is_not_taken() {
    let place = Place::new();
    place.configure("");
    let daemon = place.start();
    let other = std::os::unix::net::UnixListener::bind(place.path("other")).unwrap();
    let inode = fs::metadata(place.path("other")).unwrap().ino();
    place.write_conf(&format!("control @/other\nlisten tcp4://{}:{}\n", place.address, place.port));
    daemon.signal(Signal::SIGHUP);
    place.wait_for_log("[WARNING] Configuration not reloaded.");
    assert_eq!(fs::metadata(place.path("other")).unwrap().ino(), inode);
    assert_eq!(place.ask(&status(&["all"])), Reply::Entries(vec![]));
    drop(other);
}

#[test]
fn the_pidfile_moves_in_the_background() {
    let place = Place::new();
    place.configure("");
    let started = place.command().stdout(Stdio::null()).stderr(Stdio::null()).status().unwrap();
    assert!(started.success());
    let pid: i32 = fs::read_to_string(place.path("hastd.pid")).unwrap().parse().unwrap();
    place.write_conf(&format!(
        "control uds://@/ctl\npidfile @/moved.pid\nlisten tcp4://{}:{}\n",
        place.address, place.port
    ));
    kill(Pid::from_raw(pid), Signal::SIGHUP).unwrap();
    wait_for("the pidfile to move", || (!place.path("hastd.pid").exists()).then_some(()));
    assert_eq!(fs::read_to_string(place.path("moved.pid")).unwrap(), pid.to_string());
    kill(Pid::from_raw(pid), Signal::SIGTERM).unwrap();
    wait_for("the daemon to end", || (!is_alive(pid)).then_some(()));
    assert!(!place.path("moved.pid").exists());
}
