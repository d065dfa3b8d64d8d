//! A node whose data is known to be out of date does not become primary, unless it is forced.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod support;

use hast_format::extension::{Mark, Run};
use hast_format::metadata::{Metadata, Role};
use hast_format::nv::{List, Writer};
use hast_net::control::{Command, Entry, Facts, Reply, Request, ResourceStatus};
use hast_net::frame::{self, Frame};
use hast_net::handshake::FirstReply;
use hast_provider::Provider;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use support::{Daemon, Place, Stream, exchange, is_alive, set_role, status, wait_for};

const PEER: &str = "127.0.0.4";
const SINCE: u64 = 1_795_503_600;
const REFUSED: &str = "The data here is out of date since 2026-11-24 07:00:00 UTC; tcp4://127.0.0.4 has the \
                       newer data. Role not changed to primary.\n";
const WAITING: &str = "[INFO] [disk0] (secondary) tcp4://127.0.0.4:8457 is primary and connected: waiting up to 22 s for it to \
                       leave its role.";

fn configure(place: &Place) {
    let hook = place.hook();
    place.configure(&format!(
        "timeout 1 peer-timeout 1 exec {} resource disk0 {{ local @/disk0 on a {{ remote tcp4://{PEER}:8457 }} }}",
        hook.display()
    ));
}

fn place() -> Place {
    let place = Place::new();
    configure(&place);
    place.create("disk0", "disk0");
    place
}

/// Marks a provider as the engine does, behind the back of whoever uses it.
fn mark(place: &Place, name: &str) {
    let provider = Provider::open(&place.path(name), true).unwrap();
    let mut metadata = provider.read_metadata().unwrap();
    metadata.extension.generation += 1;
    metadata.extension.mark = Some(Mark { since: SINCE, by: format!("tcp4://{PEER}") });
    metadata.extension.stale = vec![Run { first: 2, count: 3 }];
    provider.write_metadata(&metadata).unwrap();
}

fn forced(role: Role) -> Request {
    Request { force: true, ..set_role(role, &["disk0"]) }
}

/// The node is not made primary. Why.
fn refused(place: &Place, names: &[&str]) -> String {
    let reply = place.ask(&set_role(Role::Primary, names));
    let Reply::Entries(mut entries) = reply else { panic!("{reply:?}") };
    match entries.remove(0) {
        Entry::Error { name, error: 70, reason: Some(reason) } if name == "disk0" => reason,
        other => panic!("{other:?}\n{}", place.log()),
    }
}

/// Asks for role primary; the primary that is connected leaves once it is waited for.
fn promote_when_left_alone(place: &Place, connections: (Stream, Stream, Frame)) -> Reply {
    std::thread::scope(|scope| {
        let asking = scope.spawn(|| place.ask(&set_role(Role::Primary, &["disk0"])));
        place.wait_for_log(WAITING);
        assert_eq!(place.role("disk0"), "secondary");
        drop(connections);
        asking.join().unwrap()
    })
}

fn was(role: &str) -> Reply {
    Reply::Entries(vec![Entry::RoleWas { name: "disk0".into(), role: role.into(), peer_behind: false }])
}

fn is_locked(place: &Place) -> bool {
    Provider::open(&place.path("disk0"), true).unwrap().lock().is_err()
}

/// Becomes the primary of the node's `disk0`: both connections, and the answer to the second step.
fn connect(place: &Place) -> (Stream, Stream, Frame) {
    connect_with(place, |hello| {
        hello.i8("virgin", 1).u64("resuid", 77).u64("localcnt", 0).u64("remotecnt", 0);
    })
}

/// The same for a primary that says this of itself.
fn connect_with(place: &Place, introduce: impl FnOnce(&mut Writer)) -> (Stream, Stream, Frame) {
    let (mut out, in_) = begin_to_connect(place, introduce);
    let answer = out.receive().unwrap_or_else(|| panic!("{}", place.log()));
    (out, in_, answer)
}

/// The same without waiting for the answer.
fn begin_to_connect(place: &Place, introduce: impl FnOnce(&mut Writer)) -> (Stream, Stream) {
    let mut out = place.connect_from(PEER);
    let mut hello = Writer::new();
    hello.str("resource", "disk0").u8("version", 2);
    out.send(1, &hello);
    let frame = out.receive().expect("an answer");
    let FirstReply::Answer(answer) = FirstReply::decode(&List::parse(&frame.nv).unwrap()).unwrap() else {
        panic!("{}", place.log())
    };
    let mut in_ = place.connect_from(PEER);
    let mut hello = Writer::new();
    hello.str("resource", "disk0").u8_array("token", &answer.token);
    introduce(&mut hello);
    in_.send(2, &hello);
    (out, in_)
}

/// The same for a primary that has met this node and has not counted since.
fn begin_to_connect_again(place: &Place) -> (Stream, Stream) {
    begin_to_connect(place, |hello| {
        hello.i8("virgin", 0).u64("resuid", 77).u64("localcnt", 0).u64("remotecnt", 0);
    })
}

fn verbose(place: &Place) -> ResourceStatus {
    let reply = place.ask(&Request { verbose: true, ..status(&["disk0"]) });
    let Reply::Entries(mut entries) = reply else { panic!("{reply:?}") };
    match entries.remove(0) {
        Entry::Status { status, .. } => *status,
        other => panic!("{other:?}"),
    }
}

#[test]
fn from_role_init() {
    let place = place();
    mark(&place, "disk0");
    let _daemon = place.start();
    assert_eq!(format!("{}. Role not changed to primary.\n", refused(&place, &["disk0"])), REFUSED);
    refused(&place, &["all"]);
    let status = place.status("disk0");
    assert_eq!((status.role.as_str(), status.workerpid), ("init", 0));
    assert!(!is_locked(&place), "role init holds no lock");
    assert!(!place.path("nbd/disk0.sock").exists());
    assert_eq!(place.log().matches(&format!("[ERROR] [disk0] (init) {REFUSED}")).count(), 2);
    // No other role asks.
    assert_eq!(place.set_role(Role::Secondary, &["disk0"]), ["init"]);
    assert_eq!(place.set_role(Role::Init, &["disk0"]), ["secondary"]);

    assert_eq!(place.ask(&forced(Role::Primary)), was("init"));
    assert_eq!(place.role("disk0"), "primary");
    place.wait_for_log("[WARNING] [disk0] (init) The data here is out of date since 2026-11-24 07:00:00 UTC");
    wait_for("a worker", || (place.status("disk0").workerpid != 0).then_some(()));
    // A refusal is no change: no hook has heard of it.
    let mut events = place.wait_for_lines("events", 3);
    events.sort();
    assert_eq!(events, ["role disk0 init primary", "role disk0 init secondary", "role disk0 secondary init"]);
}

/// A daemon whose resource has an id, without which there is nobody to be behind. A worker that finds the file "die" ends
/// as the file says.
fn start_with_an_id(place: &Place) -> Daemon<'_> {
    let daemon = place.start_as(place.command().env("HASTD_TEST_DIE", place.path("die")), &[]);
    assert_eq!(place.set_role(Role::Secondary, &["disk0"]), ["init"]);
    drop(connect(place));
    wait_for("the worker to end", || (place.status("disk0").workerpid == 0).then_some(()));
    daemon
}

/// The same, after a worker of a primary has ended without writing down that the data here is out of date.
fn start_and_become_secondary_out_of_date(place: &Place) -> Daemon<'_> {
    let daemon = start_with_an_id(place);
    std::fs::write(place.path("die"), "70").unwrap();
    assert_eq!(place.ask(&set_role(Role::Primary, &["disk0"])), was("secondary"));
    place.wait_for_log("exitcode=70");
    assert_eq!(place.ask(&set_role(Role::Secondary, &["disk0"])), was("init"));
    daemon
}

/// B1, S1: the worker has found out that the data here is out of date, and could not write that down. The supervisor
/// remembers it, whatever role the node has had since, until the node is primary by force or the provider is a new one.
#[test]
fn what_a_worker_could_not_write_down_is_remembered() {
    for (role, code) in [(Role::Secondary, "66"), (Role::Primary, "70")] {
        let place = place();
        let _daemon = start_with_an_id(&place);
        std::fs::write(place.path("die"), code).unwrap();
        let _streams = if role == Role::Primary {
            assert_eq!(place.ask(&set_role(Role::Primary, &["disk0"])), was("secondary"));
            None
        } else {
            Some(begin_to_connect_again(&place))
        };
        place.wait_for_log(&format!("exitcode={code}"));
        for _ in 0..2 {
            place.set_role(Role::Init, &["disk0"]);
            refused(&place, &["disk0"]);
        }
        place.create("disk0", "disk0");
        assert_eq!(place.ask(&set_role(Role::Primary, &["disk0"])), was("init"));
        place.set_role(Role::Init, &["disk0"]);
        assert_eq!(
            place.ask(&set_role(Role::Primary, &["disk0"])),
            was("init"),
            "it is primary no more than once"
        );
    }
}

/// What was forced holds for the worker that follows one which died before it could write that down.
#[test]
fn a_forced_primary_whose_worker_dies_at_once() {
    let place = place();
    mark(&place, "disk0");
    let once = place.path("die");
    std::fs::write(&once, "").unwrap();
    let _daemon = place.start_as(place.command().env("HASTD_TEST_DIE", &once), &[]);
    assert_eq!(place.ask(&forced(Role::Primary)), was("init"));
    place.wait_for_log("[ERROR] [disk0] (primary) Worker process killed");
    assert!(!once.exists());
    wait_for("the data to be used as it is", || {
        let metadata = Provider::open(&place.path("disk0"), true).unwrap().read_metadata().unwrap();
        metadata.extension.mark.is_none().then_some(())
    });
    let facts = verbose(&place).facts.unwrap();
    assert_eq!((facts.target, facts.stale_bytes, facts.inconsistent_since), (false, 0, None));
    place.wait_for_log("[WARNING] [disk0] (primary) This copy is used as it is, though it was out of date.");
    // Once that is written down, and the daemon has heard of it, the next one is like any other. One that is killed in
    // between is followed by another that is forced.
    wait_for("a worker that is not forced", || {
        let worker = place.status("disk0").workerpid;
        mark(&place, "disk0");
        kill(Pid::from_raw(worker), Signal::SIGKILL).unwrap();
        wait_for("another worker", || {
            let pid = place.status("disk0").workerpid;
            (pid != 0 && pid != worker).then_some(())
        });
        let facts = wait_for("its answer", || verbose(&place).facts);
        facts.target.then_some(())
    });
}

#[test]
fn from_role_secondary_without_a_primary() {
    let place = place();
    mark(&place, "disk0");
    let _daemon = place.start();
    place.set_role(Role::Secondary, &["disk0"]);
    refused(&place, &["disk0"]);
    assert_eq!(place.role("disk0"), "secondary");
    assert!(is_locked(&place));
    place.wait_for_log(&format!("[ERROR] [disk0] (secondary) {REFUSED}"));
    // It is as good a secondary as before.
    let _connections = connect(&place);
    wait_for("a worker", || (place.status("disk0").workerpid != 0).then_some(()));
    assert_eq!(place.ask(&forced(Role::Primary)), was("secondary"));
    assert_eq!(place.role("disk0"), "primary");
}

/// The worker has no reason to refuse, and the mark is there when it has ended: the provider decides.
#[test]
fn a_mark_that_comes_while_the_worker_stops_counts() {
    let place = place();
    let _daemon = place.start();
    place.set_role(Role::Secondary, &["disk0"]);
    let connections = connect(&place);
    let pid = wait_for("a worker", || Some(place.status("disk0").workerpid).filter(|pid| *pid != 0));
    mark(&place, "disk0");
    let reply = promote_when_left_alone(&place, connections);
    let Reply::Entries(entries) = &reply else { panic!("{reply:?}") };
    assert!(matches!(entries.as_slice(), [Entry::Error { error: 70, .. }]), "{reply:?}");
    assert!(!is_alive(pid));
    assert_eq!(place.role("disk0"), "secondary");
    assert!(is_locked(&place));
    let _connections = connect(&place);
}

#[test]
fn a_node_without_a_mark_is_not_asked_twice() {
    let place = place();
    let _daemon = place.start();
    for force in [false, true] {
        place.set_role(Role::Secondary, &["disk0"]);
        let connections = connect(&place);
        let request = if force { forced(Role::Primary) } else { set_role(Role::Primary, &["disk0"]) };
        let reply = if force { place.ask(&request) } else { promote_when_left_alone(&place, connections) };
        assert_eq!(reply, was("secondary"));
        assert_eq!(place.role("disk0"), "primary");
        // Nothing changes, and nothing is asked.
        assert_eq!(place.ask(&request), was("primary"));
        place.set_role(Role::Init, &["disk0"]);
        // The next connection comes from a primary that has drawn a resuid of its own.
        place.create("disk0", "disk0");
    }
    assert!(!place.log().contains("out of date"), "{}", place.log());
}

/// A7: an original dies before it has copied what this node lacks, and then hastd here, with its worker.
#[test]
fn a_suspicion_outlives_the_worker_and_the_daemon() {
    const WARNED: &str = "The data here may be out of date: the other node's original hastd does not tell.";
    let place = place();
    let provider = Provider::open(&place.path("disk0"), true).unwrap();
    let metadata = provider.read_metadata().unwrap();
    provider.write_metadata(&Metadata { resuid: 77, localcnt: 4, remotecnt: 4, ..metadata }).unwrap();
    let mut daemon = place.start();
    place.set_role(Role::Secondary, &["disk0"]);
    let suspects = || verbose(&place).facts.unwrap().possibly_behind;
    assert!(!suspects());
    let connections = connect_with(&place, |hello| {
        hello.u64("resuid", 77).u64("localcnt", 5).u64("remotecnt", 4);
    });
    let worker = wait_for("a worker", || Some(place.status("disk0").workerpid).filter(|pid| *pid != 0));
    assert!(suspects());
    daemon.signal(Signal::SIGKILL);
    daemon.wait();
    drop(connections);
    wait_for("the worker to end", || (!is_alive(worker)).then_some(()));
    drop(daemon);

    let _daemon = place.start();
    assert!(suspects(), "in role init");
    place.set_role(Role::Secondary, &["disk0"]);
    assert!(suspects(), "in role secondary, without a worker");
    assert!(!place.log().contains(WARNED), "{}", place.log());
    // Nothing is written between the two: what was true the first time still is.
    for (times, request) in [(1, set_role(Role::Primary, &["disk0"])), (2, forced(Role::Primary))] {
        place.set_role(Role::Init, &["disk0"]);
        assert_eq!(place.ask(&request), was("init"));
        place.wait_for_log_times(&format!("[WARNING] [disk0] (init) {WARNED}"), times);
        wait_for("a worker", || (place.status("disk0").workerpid != 0).then_some(()));
    }
    // A worker that is started again is no decision.
    let worker = place.status("disk0").workerpid;
    kill(Pid::from_raw(worker), Signal::SIGKILL).unwrap();
    wait_for("another worker", || {
        let pid = place.status("disk0").workerpid;
        (pid != 0 && pid != worker).then_some(())
    });
    assert_eq!(place.log().matches(WARNED).count(), 2);

    // The nodes meet in step: it was for nothing.
    place.set_role(Role::Secondary, &["disk0"]);
    let connections = connect_with(&place, |hello| {
        hello.u64("resuid", 77).u64("localcnt", 4).u64("remotecnt", 4);
    });
    assert!(!suspects());
    assert_eq!(promote_when_left_alone(&place, connections), was("secondary"));
    assert_eq!(place.log().matches(WARNED).count(), 2);
}

/// A node does not become primary beside one that is primary and connected, unless it is forced. Nothing has changed then,
/// neither here nor for the other node.
#[test]
fn a_primary_that_stays_is_not_joined() {
    let place = place();
    let _daemon = place.start();
    place.set_role(Role::Secondary, &["disk0"]);
    let (mut out, _in, _answer) = connect(&place);
    let worker = wait_for("a worker", || Some(place.status("disk0").workerpid).filter(|pid| *pid != 0));
    std::thread::scope(|scope| {
        let asking = scope.spawn(|| refused(&place, &["disk0"]));
        while !asking.is_finished() {
            // One that says nothing would count as gone.
            let mut keepalive = Writer::new();
            keepalive.u8("cmd", 5);
            out.send(2, &keepalive);
            std::thread::sleep(std::time::Duration::from_millis(100));
        }
        assert_eq!(asking.join().unwrap(), format!("tcp4://{PEER}:8457 is primary and connected"));
    });
    place.wait_for_log(WAITING);
    assert_eq!((place.role("disk0").as_str(), place.status("disk0").workerpid), ("secondary", worker));
    // A client that asks for something else meanwhile does not wait.
    std::thread::scope(|scope| {
        let asking = scope.spawn(|| refused(&place, &["disk0"]));
        place.wait_for_log_times(WAITING, 2);
        assert_eq!(place.ask(&set_role(Role::Secondary, &["disk0"])), was("secondary"));
        assert!(asking.join().unwrap().contains("is primary and connected"));
    });
    assert_eq!(place.status("disk0").workerpid, worker);
    assert_eq!(place.ask(&forced(Role::Primary)), was("secondary"));
    assert_eq!(place.role("disk0"), "primary");
}

/// A reload that changes the resource ends the wait; what follows is no promotion that nobody has been asked about. The same
/// request from somebody else does not end it.
#[test]
fn a_reload_does_not_join_a_primary() {
    let place = place();
    let daemon = place.start();
    place.set_role(Role::Secondary, &["disk0"]);
    let _connections = connect(&place);
    std::thread::scope(|scope| {
        let asking = [(); 2].map(|()| scope.spawn(|| refused(&place, &["disk0"])));
        place.wait_for_log(WAITING);
        let hook = place.hook();
        place.configure(&format!(
            "timeout 2 peer-timeout 1 exec {} resource disk0 {{ local @/disk0 on a {{ remote tcp4://{PEER}:8457 }} }}",
            hook.display()
        ));
        daemon.signal(Signal::SIGHUP);
        place.wait_for_log("Configuration reloaded");
        for asking in asking {
            let reason = asking.join().unwrap();
            assert!(
                reason.contains("is primary and connected") || reason.contains("has changed"),
                "{reason}"
            );
        }
    });
    // The reload takes it through role init.
    wait_for("role secondary", || (place.role("disk0") == "secondary").then_some(()));
    assert_eq!(place.set_role(Role::Init, &["disk0"]), ["secondary"]);
}

/// What force overrides is a mark, not the lack of data.
#[test]
fn a_provider_that_says_nothing_is_refused_forced_or_not() {
    let place = Place::new();
    configure(&place);
    place.provider("disk0");
    let _daemon = place.start();
    let unusable = || Reply::Entries(vec![Entry::error("disk0", 66)]);
    assert_eq!(place.ask(&forced(Role::Primary)), unusable());
    assert_eq!(place.ask(&Request { force: false, ..forced(Role::Primary) }), unusable());
    assert_eq!(place.role("disk0"), "init");
    assert!(!place.log().contains("Worker process"), "{}", place.log());
}

#[test]
fn a_reload_replaces_a_primarys_worker_without_asking_but_not_its_disk() {
    let place = Place::new();
    let conf = |local: &str, name: &str| {
        place.configure(&format!("resource disk0 {{ name {name} local @/{local} on a {{ remote none }} }}"));
    };
    conf("disk0", "one");
    place.create("disk0", "disk0");
    place.create("other", "disk0");
    let daemon = place.start();
    place.set_role(Role::Primary, &["disk0"]);
    mark(&place, "disk0");
    conf("disk0", "two");
    daemon.reload();
    wait_for("the new device", || place.path("nbd/two.sock").exists().then_some(()));
    wait_for("the primary", || (place.role("disk0") == "primary").then_some(()));

    mark(&place, "other");
    conf("other", "two");
    daemon.reload();
    place.wait_for_log("Role not changed to primary.");
    wait_for("role init", || (place.role("disk0") == "init").then_some(()));
}

#[test]
fn only_a_verbose_status_tells_facts() {
    let place = place();
    let _daemon = place.start();
    let raw = |request: &Request| {
        exchange(&place.control(), &frame::encode(2, &request.encode()).unwrap()).unwrap()
    };
    let told = |frame: &Frame| {
        List::parse(&frame.nv).unwrap().pairs().filter(|pair| pair.name.starts_with(b"x_")).count()
    };
    let plain = Request::new(Command::Status, vec!["disk0".into()]);
    let more = Request { verbose: true, ..plain.clone() };
    // What follows is what was there, and the facts.
    let follows = |which: &str| {
        let (plain, more) = (raw(&plain), raw(&more));
        assert_eq!(told(&plain), 0, "{which}");
        assert!(told(&more) >= 7, "{which}: {}", told(&more));
        assert!(more.nv.starts_with(&plain.nv), "{which}");
    };
    follows("init");
    assert_eq!(verbose(&place).facts, Some(Facts::default()));
    mark(&place, "disk0");
    let marked = Facts {
        inconsistent_since: Some(SINCE),
        inconsistent_by: format!("tcp4://{PEER}"),
        stale_bytes: 3 * 65536,
        ..Facts::default()
    };
    assert_eq!(verbose(&place).facts, Some(marked.clone()));
    place.set_role(Role::Secondary, &["disk0"]);
    follows("secondary");
    assert_eq!(verbose(&place).facts, Some(marked));
    place.ask(&forced(Role::Primary));
    wait_for("a worker", || (place.status("disk0").workerpid != 0).then_some(()));
    follows("primary");
    let told = verbose(&place);
    assert!(told.worker.is_some() && told.facts.is_some());

    // Of a provider that cannot be read nothing is known.
    place.set_role(Role::Init, &["disk0"]);
    std::fs::remove_file(place.path("disk0")).unwrap();
    assert_eq!(verbose(&place).facts, None);
    // Nor of one that is another resource's.
    place.create("disk0", "disk1");
    assert_eq!(verbose(&place).facts, None);
    let reply = place.ask(&Request { verbose: true, ..status(&["disk0", "nosuch", "disk0"]) });
    let Reply::Entries(entries) = reply else { panic!() };
    assert!(matches!(
        &entries[..],
        [Entry::Status { .. }, Entry::Error { error: 1, .. }, Entry::Status { .. }]
    ));
}

/// S1: the data of a node is out of date, which its worker could not write down. It becomes secondary, so that it is brought
/// up to date.
#[test]
fn a_node_that_is_remembered_to_be_out_of_date_becomes_secondary() {
    let place = place();
    let _daemon = start_and_become_secondary_out_of_date(&place);
}

/// S1: the same; the secondary's worker that is to write it down dies before it can.
#[test]
fn what_a_worker_could_not_write_down_is_remembered_until_one_has() {
    let place = place();
    let _daemon = start_and_become_secondary_out_of_date(&place);
    std::fs::write(place.path("die"), "").unwrap();
    let _streams = begin_to_connect_again(&place);
    place.wait_for_log("Worker process killed");
    refused(&place, &["disk0"]);
}

/// A disk that cannot be written is found out before anything has changed: the kernel lets it be opened.
#[cfg(target_os = "linux")]
#[test]
fn a_read_only_disk_makes_no_primary() {
    use std::process::Command;
    let place = Place::new();
    let file = place.create("disk0", "disk0");
    let losetup = Command::new("losetup").args(["--find", "--show", "--read-only"]).arg(&file).output();
    let Some(device) = losetup.ok().filter(|output| output.status.success()) else {
        eprintln!("skipped: no loop device can be attached here");
        return;
    };
    let device = String::from_utf8(device.stdout).unwrap().trim().to_owned();
    let _detach = Detach(device.clone());
    let hook = place.hook();
    place.configure(&format!(
        "exec {} resource disk0 {{ local {device} on a {{ remote none }} }}",
        hook.display()
    ));
    let _daemon = place.start();
    assert_eq!(place.refused(Role::Primary, "disk0"), 66);
    let status = place.status("disk0");
    assert_eq!((status.role.as_str(), status.workerpid), ("init", 0));
    assert!(place.log().contains(&format!("Unable to open {device} for writing: the disk is read-only.")));
    // The first hook is that of the next change.
    assert_eq!(place.set_role(Role::Secondary, &["disk0"]), ["init"]);
    assert_eq!(place.wait_for_lines("events", 1), ["role disk0 init secondary"]);
}

/// A loop device that goes with the test.
#[cfg(target_os = "linux")]
struct Detach(String);

#[cfg(target_os = "linux")]
impl Drop for Detach {
    fn drop(&mut self) {
        let _ = std::process::Command::new("losetup").arg("--detach").arg(&self.0).status();
    }
}
