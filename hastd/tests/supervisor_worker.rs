//! Worker processes as the supervisor sees them: started, connected, restarted, stopped, outlived.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod support;

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream;

use hast_format::metadata::Role;
use hast_format::nv::List;
use hast_net::handshake::{Extensions, FirstHello, Hello, Refusal, texts};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use support::{Place, Stream, is_alive, wait_for};

fn alone(place: &Place) {
    let hook = place.hook();
    place.configure(&format!(
        "timeout 1 exec {} resource disk0 {{ name pool/disk0 on a {{ local @/disk0 remote none }} }}",
        hook.display()
    ));
}

/// The running worker of `disk0`.
fn worker(place: &Place) -> i32 {
    wait_for("a worker", || Some(place.status("disk0").workerpid).filter(|pid| *pid != 0))
}

fn title(pid: i32) -> String {
    let arguments = fs::read(format!("/proc/{pid}/cmdline")).unwrap();
    String::from_utf8(arguments).unwrap().trim_end_matches('\0').to_owned()
}

#[test]
fn a_primary_has_a_worker_a_device_and_the_lock() {
    let place = Place::new();
    alone(&place);
    let provider = place.create("disk0", "disk0");
    let _daemon = place.start();
    let device = place.path("nbd/pool/disk0.sock");
    assert!(!device.exists());
    assert_eq!(place.set_role(Role::Primary, &["disk0"]), ["init"]);

    let pid = worker(&place);
    assert_eq!(title(pid), "hastd: disk0 (primary)");
    assert_eq!(fs::read_to_string(format!("/proc/{pid}/comm")).unwrap(), "hastd\n");
    let socket = fs::metadata(&device).unwrap();
    assert!(socket.file_type().is_socket());
    assert_eq!(socket.permissions().mode() & 0o777, 0o600);
    UnixStream::connect(&device).unwrap();
    assert!(hast_provider::Provider::open(&provider, true).unwrap().lock().is_err());
    let status = place.status("disk0");
    assert_eq!((status.role.as_str(), status.provname.as_str()), ("primary", "pool/disk0"));
    let said = status.worker.expect("the worker's part");
    assert_eq!((said.complete, said.extentsize, said.keepdirty), (false, 65536, 4));

    assert_eq!(place.set_role(Role::Init, &["disk0"]), ["primary"]);
    assert!(!is_alive(pid));
    assert!(!device.exists());
    hast_provider::Provider::open(&provider, true).unwrap().lock().unwrap();
    let status = place.status("disk0");
    assert_eq!((status.role.as_str(), status.workerpid, status.worker), ("init", 0, None));
    let mut events = place.wait_for_lines("events", 2);
    events.sort();
    assert_eq!(events, ["role disk0 init primary", "role disk0 primary init"]);
    place.wait_for_log(&format!("[DEBUG][1] [disk0] (init) Worker process {pid} stopped.\n"));
}

#[test]
fn a_worker_that_dies_is_replaced_and_the_device_stays() {
    let place = Place::new();
    alone(&place);
    let provider = place.create("disk0", "disk0");
    let _daemon = place.start();
    place.set_role(Role::Primary, &["disk0"]);
    let device = place.path("nbd/pool/disk0.sock");
    let inode = fs::metadata(&device).unwrap().ino();
    let first = worker(&place);
    kill(Pid::from_raw(first), Signal::SIGKILL).unwrap();
    place
        .wait_for_log(&format!("[ERROR] [disk0] (primary) Worker process killed (pid={first}, signal=9).\n"));
    assert_eq!(place.role("disk0"), "primary");
    assert!(hast_provider::Provider::open(&provider, true).unwrap().lock().is_err());
    let second = worker(&place);
    assert_ne!(first, second);
    assert_eq!(fs::metadata(&device).unwrap().ino(), inode);
    UnixStream::connect(&device).unwrap();
    // A role that did not change fires no hook.
    assert_eq!(place.wait_for_lines("events", 1), ["role disk0 init primary"]);
}

#[test]
fn a_worker_that_cannot_work_leaves_the_role_at_init() {
    let place = Place::new();
    alone(&place);
    // Good metadata, but the map behind it cannot be read: only the worker finds out.
    let path = place.create("disk0", "disk0");
    let _daemon = place.start();
    assert_eq!(place.set_role(Role::Primary, &["disk0"]), ["init"]);
    let first = worker(&place);
    fs::OpenOptions::new().write(true).open(path).unwrap().set_len(4096).unwrap();
    kill(Pid::from_raw(first), Signal::SIGKILL).unwrap();
    wait_for("role init", || (place.role("disk0") == "init").then_some(()));
    assert!(place.log().contains("exitcode=66"), "{}", place.log());
    assert!(!place.path("nbd/pool/disk0.sock").exists());
    hast_provider::Provider::open(&place.path("disk0"), true).unwrap().lock().unwrap();
    assert_eq!(place.wait_for_lines("events", 1), ["role disk0 init primary"]);
}

/// A panic is an assumption that was wrong, not a reason to hang: it is logged, the worker ends at once, and
/// another one is started.
#[test]
fn a_worker_that_panics_says_so_and_is_replaced() {
    if !cfg!(debug_assertions) {
        return; // the programs that are built for use have nothing that could be made to panic
    }
    let place = Place::new();
    alone(&place);
    place.create("disk0", "disk0");
    let _daemon = place.start_as(place.command().env("HASTD_TEST_PANIC", "1"), &[]);
    place.set_role(Role::Primary, &["disk0"]);
    place.wait_for_log("[CRIT] [disk0] (primary) panicked at hastd/src/worker/disk.rs:");
    place.wait_for_log("a test wants a disk thread to panic");
    place.wait_for_log("[ERROR] [disk0] (primary) Worker process killed (pid=");
    place.wait_for_log(", signal=6).\n");
    place.wait_for_log_times("[INFO] [disk0] (primary) Restarting worker process.\n", 2);
    assert_eq!(place.role("disk0"), "primary");
}

#[test]
fn a_device_that_cannot_be_created_leaves_the_role_at_init() {
    let place = Place::new();
    alone(&place);
    place.create("disk0", "disk0");
    // In the way of the directory.
    fs::write(place.path("nbd"), "").unwrap();
    let _daemon = place.start();
    assert_eq!(place.refused(Role::Primary, "disk0"), 71);
    assert_eq!(place.role("disk0"), "init");
    assert!(place.log().contains("[ERROR] [disk0] (init) Device cannot be created"), "{}", place.log());
    hast_provider::Provider::open(&place.path("disk0"), true).unwrap().lock().unwrap();

    // From another role it goes to init as well, and no hook is told anything.
    place.set_role(Role::Secondary, &["disk0"]);
    assert_eq!(place.wait_for_lines("events", 1), ["role disk0 init secondary"]);
    assert_eq!(place.refused(Role::Primary, "disk0"), 71);
    assert_eq!(place.role("disk0"), "init");
    place.wait_for_log("[WARNING] [disk0] (secondary) Role changed to init instead of primary.\n");
    hast_provider::Provider::open(&place.path("disk0"), true).unwrap().lock().unwrap();
    // The way is free: now it is told, once.
    fs::remove_file(place.path("nbd")).unwrap();
    assert_eq!(place.set_role(Role::Primary, &["disk0"]), ["init"]);
    assert_eq!(place.wait_for_lines("events", 2)[1..], ["role disk0 init primary"]);
}

#[test]
fn workers_end_with_the_daemon_and_without_it() {
    let place = Place::new();
    alone(&place);
    place.create("disk0", "disk0");
    let daemon = place.start();
    place.set_role(Role::Primary, &["disk0"]);
    let pid = worker(&place);
    assert_eq!(daemon.stop().code(), Some(0));
    assert!(!is_alive(pid));
    assert!(!place.control().exists());
    assert!(!place.path("nbd/pool/disk0.sock").exists());
    // Ending is no role change.
    assert_eq!(place.wait_for_lines("events", 1), ["role disk0 init primary"]);

    // A daemon that is killed cannot stop its worker: the worker sees to it itself, and the next daemon waits
    // for the provider that it still holds.
    let mut daemon = place.start();
    place.set_role(Role::Primary, &["disk0"]);
    let pid = worker(&place);
    daemon.child.kill().unwrap();
    daemon.wait();
    let _daemon = place.start();
    assert_eq!(place.set_role(Role::Primary, &["disk0"]), ["init"]);
    assert_ne!(worker(&place), pid);
    wait_for("the old worker to end", || (!is_alive(pid)).then_some(()));
}

#[test]
fn a_primary_is_connected_to_its_remote_node_from_its_source_address() {
    let place = Place::new();
    let other = TcpListener::bind((place.address, 0)).unwrap();
    let port = other.local_addr().unwrap().port();
    place.configure(&format!(
        "timeout 2 resource disk0 {{ local @/disk0 on a {{ remote tcp4://{}:{port} source tcp4://127.0.0.55 }} }}",
        place.address
    ));
    place.create("disk0", "disk0");
    let _daemon = place.start();
    place.set_role(Role::Primary, &["disk0"]);
    let (socket, from) = other.accept().unwrap();
    assert_eq!(from.ip().to_string(), "127.0.0.55");
    let mut stream = Stream::new(socket);
    let header = stream.receive().expect("a header");
    assert_eq!(header.version, 1);
    let hello = Hello::decode(&List::parse(&header.nv).unwrap()).unwrap();
    assert_eq!(
        hello,
        Hello::First(FirstHello { resource: "disk0".to_owned(), version: 2, ext: Extensions::ALL })
    );
    let refusal = Refusal { errmsg: texts::not_secondary("init"), wait: false };
    stream.send(2, &refusal.encode());
    drop(stream);
    // It comes again.
    let (_socket, from) = other.accept().unwrap();
    assert_eq!(from.ip().to_string(), "127.0.0.55");
    assert_eq!(place.role("disk0"), "primary");
}

#[test]
fn a_remote_node_by_name_is_looked_up() {
    let place = Place::new();
    let other = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = other.local_addr().unwrap().port();
    place.configure(&format!(
        "timeout 2 resource disk0 {{ local @/disk0 on a {{ remote tcp4://localhost:{port} }} }}"
    ));
    place.create("disk0", "disk0");
    let _daemon = place.start();
    place.set_role(Role::Primary, &["disk0"]);
    let (socket, _) = other.accept().unwrap();
    assert!(Stream::new(socket).receive().is_some());
}

#[test]
fn another_remote_address_is_taken_over_without_a_new_worker() {
    let place = Place::new();
    let (one, two) =
        (TcpListener::bind((place.address, 0)).unwrap(), TcpListener::bind((place.address, 0)).unwrap());
    let configure = |listener: &TcpListener| {
        place.configure(&format!(
            "timeout 2 resource disk0 {{ local @/disk0 on a {{ remote tcp4://{} }} }}",
            listener.local_addr().unwrap()
        ));
    };
    configure(&one);
    place.create("disk0", "disk0");
    let daemon = place.start();
    place.set_role(Role::Primary, &["disk0"]);
    let (first, _) = one.accept().unwrap();
    let pid = worker(&place);
    configure(&two);
    daemon.reload();
    let (second, _) = two.accept().unwrap();
    assert!(Stream::new(second).receive().is_some());
    assert_eq!(worker(&place), pid);
    assert!(place.status("disk0").remoteaddr.ends_with(&two.local_addr().unwrap().to_string()));
    drop(first);
}

#[test]
fn another_provider_name_restarts_a_primary() {
    let place = Place::new();
    let hook = place.hook();
    let configure = |name: &str| {
        place.configure(&format!(
            "exec {} resource disk0 {{ name {name} local @/disk0 on a {{ remote none }} }}",
            hook.display()
        ));
    };
    configure("one");
    place.create("disk0", "disk0");
    let daemon = place.start();
    place.set_role(Role::Primary, &["disk0"]);
    let pid = worker(&place);
    place.wait_for_lines("events", 1);
    configure("two");
    daemon.reload();
    let mut events = place.wait_for_lines("events", 3).split_off(1);
    events.sort();
    assert_eq!(events, ["role disk0 init primary", "role disk0 primary init"]);
    assert!(!place.path("nbd/one.sock").exists());
    UnixStream::connect(place.path("nbd/two.sock")).unwrap();
    assert_ne!(worker(&place), pid);
}

#[test]
fn a_stopped_worker_holds_up_only_its_own_resource() {
    let place = Place::new();
    place.configure(
        "timeout 1
         resource disk0 { local @/disk0 on a { remote none } }
         resource disk1 { local @/disk1 on a { remote none } }",
    );
    place.create("disk0", "disk0");
    place.create("disk1", "disk1");
    let _daemon = place.start();
    place.set_role(Role::Primary, &["all"]);
    let pid = worker(&place);
    kill(Pid::from_raw(pid), Signal::SIGSTOP).unwrap();
    // Each thread stops for itself, and until then may answer.
    wait_for("all of the worker to stop", || {
        let mut threads = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap();
        let stopped = threads.all(|thread| {
            let stat = std::fs::read_to_string(thread.unwrap().path().join("stat")).unwrap_or_default();
            stat.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with('T'))
        });
        stopped.then_some(())
    });
    std::thread::scope(|scope| {
        // Asks the stopped worker too: its resource is marked, the other one is told about.
        let both = scope.spawn(|| place.ask(&support::status(&["all"])));
        // Meanwhile others are served.
        assert_eq!(place.role("disk1"), "primary");
        let hast_net::control::Reply::Entries(entries) = both.join().unwrap() else { panic!() };
        assert!(
            matches!(&entries[0], hast_net::control::Entry::Error { name, error: 60, .. } if name == "disk0")
        );
        assert!(matches!(&entries[1], hast_net::control::Entry::Status { name, .. } if name == "disk1"));
    });
    std::thread::scope(|scope| {
        // It cannot be stopped either, and is killed when its time is over.
        let change = scope.spawn(|| place.set_role(Role::Init, &["disk0"]));
        assert_eq!(place.set_role(Role::Init, &["disk1"]), ["primary"]);
        assert_eq!(change.join().unwrap(), ["primary"]);
    });
    assert!(!is_alive(pid));
    assert!(place.log().contains("did not end in time and is killed"), "{}", place.log());
}

#[test]
fn a_worker_inherits_no_listening_socket() {
    let place = Place::new();
    alone(&place);
    place.create("disk0", "disk0");
    let daemon = place.start();
    place.set_role(Role::Primary, &["disk0"]);
    let [a, b, c, d] = place.address.octets();
    let address = format!("{d:02X}{c:02X}{b:02X}{a:02X}:{:04X} 00000000:0000 0A", place.port);
    let table = fs::read_to_string("/proc/net/tcp").unwrap();
    let line = table.lines().find(|line| line.contains(&address)).expect("the listening socket");
    let socket = format!("socket:[{}]", line.split_whitespace().nth(9).unwrap());
    let holds = |pid: i32| {
        let descriptors = fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
        let mut targets = descriptors.filter_map(|entry| fs::read_link(entry.unwrap().path()).ok());
        targets.any(|target| target.to_str() == Some(&socket))
    };
    assert!(holds(daemon.pid().as_raw()));
    assert!(!holds(worker(&place)));
}
