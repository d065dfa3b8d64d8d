//! How a node stands to the other one, as both of them tell it: two real hastds, whatever is wrong between them.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod support;

use std::fs;

use hast_format::metadata::Role;
use hast_net::control::{Connection, ConnectionState, Entry, Reply, Request};
use hast_provider::Provider;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use support::{Daemon, Place, status, wait_for};

/// Two nodes with a resource `disk0` each, which know each other's address.
struct Pair {
    a: Place,
    b: Place,
}

impl Pair {
    fn new() -> Pair {
        let pair = Pair { a: Place::new(), b: Place::new() };
        for (here, there) in [(&pair.a, &pair.b), (&pair.b, &pair.a)] {
            configure(here, &remote(there), "disk0");
            here.create("disk0", "disk0");
        }
        pair
    }

    fn start(&self) -> [Daemon<'_>; 2] {
        [self.a.start(), self.b.start()]
    }

    /// `a` is primary, `b` secondary.
    fn begin(&self) {
        self.b.set_role(Role::Secondary, &["disk0"]);
        self.a.set_role(Role::Primary, &["disk0"]);
    }
}

fn remote(place: &Place) -> String {
    format!("tcp4://{}:{}", place.address, place.port)
}

fn configure(place: &Place, remote: &str, name: &str) {
    let (hook, address) = (place.hook(), place.address);
    place.configure(&format!(
        "timeout 2 peer-timeout 1 device none exec {} resource {name} {{ local @/disk0 on a {{ remote {remote} source \
         tcp4://{address} }} }}",
        hook.display()
    ));
}

fn connection(place: &Place, name: &str) -> Option<Connection> {
    let reply = place.ask(&Request { verbose: true, ..status(&[name]) });
    let Reply::Entries(mut entries) = reply else { panic!("{reply:?}") };
    match entries.remove(0) {
        Entry::Status { status, .. } => status.connection,
        other => panic!("{other:?}"),
    }
}

/// Waits until a node says this of its `disk0`. Since when.
fn says(place: &Place, state: ConnectionState, reason: &str) -> u64 {
    let mut last = None;
    let give_up = std::time::Instant::now() + support::PATIENCE;
    loop {
        let now = connection(place, "disk0");
        if let Some(Connection { since, .. }) =
            now.as_ref().filter(|now| now.state == state && now.reason.contains(reason))
        {
            return *since;
        }
        if now != last {
            eprintln!("{now:?}");
            last = now;
        }
        assert!(std::time::Instant::now() < give_up, "not {state:?} `{reason}': {last:?}\n{}", place.log());
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
}

/// The secondary's provider is created again, and the nodes connect.
fn is_mended_by_create(pair: &Pair) {
    pair.b.create("disk0", "disk0");
    says(&pair.a, ConnectionState::Connected, "");
    says(&pair.b, ConnectionState::Connected, "");
}

fn alarms(place: &Place) -> usize {
    let events = fs::read_to_string(place.path("events")).unwrap_or_default();
    events.lines().filter(|line| *line == "two-primaries disk0").count()
}

#[test]
fn nodes_that_are_connected_say_so() {
    let pair = Pair::new();
    let _daemons = pair.start();
    assert_eq!(connection(&pair.a, "disk0"), None, "in role init there is nothing to say");
    pair.b.set_role(Role::Secondary, &["disk0"]);
    says(&pair.b, ConnectionState::Waiting, "");
    pair.a.set_role(Role::Primary, &["disk0"]);
    let since = says(&pair.a, ConnectionState::Connected, "");
    says(&pair.b, ConnectionState::Connected, "");
    assert!(since > 1_700_000_000);
    // The original's answer stays what it is.
    assert_eq!(pair.a.status("disk0").connection, None);
    pair.a.set_role(Role::Init, &["disk0"]);
    says(&pair.b, ConnectionState::Disconnected, "");
    assert_eq!((alarms(&pair.a), alarms(&pair.b)), (0, 0));
}

#[test]
fn two_primaries_are_an_alarm_on_both_nodes_once() {
    let pair = Pair::new();
    let _daemons = pair.start();
    pair.b.set_role(Role::Primary, &["disk0"]);
    pair.a.set_role(Role::Primary, &["disk0"]);
    for place in [&pair.a, &pair.b] {
        says(place, ConnectionState::TwoPrimaries, "");
        wait_for("the hook", || (alarms(place) > 0).then_some(()));
        // They see each other again and again.
        place.wait_for_log_times("We act as primary for the resource", 2);
        assert_eq!(alarms(place), 1, "{}", place.log());
        assert_eq!(place.log().matches("Both nodes are primary").count(), 1);
    }
    // One of them gives way.
    pair.b.set_role(Role::Secondary, &["disk0"]);
    says(&pair.a, ConnectionState::Connected, "");
    says(&pair.b, ConnectionState::Connected, "");
}

#[test]
fn nodes_of_different_size_say_both_sizes_and_what_to_do() {
    let pair = Pair::new();
    let path = pair.b.path("disk0");
    fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(2 << 20).unwrap();
    let provider = Provider::open(&path, true).unwrap();
    let layout = hast_format::layout::Layout::create(2 << 20, 512, 65536).unwrap();
    let metadata = hast_format::metadata::Metadata::created("disk0", &layout, 4);
    provider.initialize(&metadata, &layout).unwrap();
    drop(provider);
    let _daemons = pair.start();
    pair.begin();
    for place in [&pair.a, &pair.b] {
        says(place, ConnectionState::Refused, "Data size differs between nodes (local=");
        says(place, ConnectionState::Refused, "hastctl create -m");
    }
}

#[test]
fn parts_of_different_resources_say_so() {
    let pair = Pair::new();
    for (place, resuid) in [(&pair.a, 3), (&pair.b, 5)] {
        let provider = Provider::open(&place.path("disk0"), true).unwrap();
        let mut metadata = provider.read_metadata().unwrap();
        (metadata.resuid, metadata.localcnt) = (resuid, 1);
        provider.write_metadata(&metadata).unwrap();
    }
    let _daemons = pair.start();
    pair.begin();
    for place in [&pair.a, &pair.b] {
        says(place, ConnectionState::Refused, "Resource unique ID mismatch (primary=3, secondary=5)");
    }
}

#[test]
fn a_resource_that_the_other_node_does_not_know_is_told() {
    let pair = Pair::new();
    configure(&pair.b, &remote(&pair.a), "disk1");
    pair.b.create("disk0", "disk1");
    let _daemons = pair.start();
    pair.a.set_role(Role::Primary, &["disk0"]);
    says(&pair.a, ConnectionState::Refused, "Resource not configured. The other node's hast.conf");
}

#[test]
fn an_address_that_the_other_node_does_not_expect_is_told_on_both() {
    let pair = Pair::new();
    let (hook, remote) = (pair.b.hook(), remote(&pair.a));
    pair.b.configure(&format!(
        "device none exec {} resource disk0 {{ local @/disk0 on a {{ remote tcp4://127.0.0.9 }} }}
         resource other {{ local @/other on a {{ remote {remote} }} }}",
        hook.display()
    ));
    let _daemons = pair.start();
    pair.begin();
    says(
        &pair.a,
        ConnectionState::Refused,
        "No access to the resource. In the other node's hast.conf `remote`",
    );
    says(&pair.b, ConnectionState::Refused, "asked for this resource, and `remote` names another node");
}

#[test]
fn a_node_without_a_role_is_told_on_both() {
    let pair = Pair::new();
    let _daemons = pair.start();
    pair.a.set_role(Role::Primary, &["disk0"]);
    says(&pair.a, ConnectionState::Refused, "Remote node acts as init");
    says(&pair.b, ConnectionState::Refused, "asked for this node as its secondary, which is init");
}

#[test]
fn a_secondary_without_its_provider_is_told_on_both() {
    let pair = Pair::new();
    fs::remove_file(pair.b.path("disk0")).unwrap();
    let _daemons = pair.start();
    pair.begin();
    says(&pair.a, ConnectionState::Refused, "The secondary's provider fails. ");
    says(&pair.a, ConnectionState::Refused, "/disk0");
    says(&pair.b, ConnectionState::Refused, "The provider cannot be used. ");
    is_mended_by_create(&pair);
}

/// The worker of a secondary that cannot read what it needs ends before it answers; the primary hears why first.
#[test]
fn a_secondary_whose_metadata_are_gone_is_told_on_both() {
    let pair = Pair::new();
    fs::write(pair.b.path("disk0"), vec![0; 8 << 20]).unwrap();
    let _daemons = pair.start();
    pair.begin();
    says(&pair.a, ConnectionState::Refused, "The secondary's provider fails. ");
    says(&pair.a, ConnectionState::Refused, "metadata");
    says(&pair.b, ConnectionState::Refused, "hastd's log says why");
    is_mended_by_create(&pair);
}

#[test]
fn a_node_that_cannot_be_reached_is_told_with_the_systems_reason() {
    let place = Place::new();
    place.create("disk0", "disk0");
    configure(&place, "tcp4://127.0.0.5:1", "disk0");
    let daemon = place.start();
    place.set_role(Role::Primary, &["disk0"]);
    says(
        &place,
        ConnectionState::Disconnected,
        "Unable to connect to tcp4://127.0.0.5:1: Connection refused.",
    );
    configure(&place, "no-such-host.invalid", "disk0");
    daemon.reload();
    says(&place, ConnectionState::Disconnected, "unable to resolve no-such-host.invalid");
    configure(&place, "none", "disk0");
    daemon.reload();
    says(&place, ConnectionState::Standalone, "");
}

#[test]
fn a_worker_that_has_died_is_told() {
    let pair = Pair::new();
    let _daemons = pair.start();
    pair.begin();
    let before = says(&pair.a, ConnectionState::Connected, "");
    let pid = pair.a.status("disk0").workerpid;
    kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
    says(&pair.a, ConnectionState::Restarting, "was killed by signal 9; it is started again.");
    assert!(says(&pair.a, ConnectionState::Connected, "") >= before);
}

/// The secondary's worker is killed, and the primary, which is frozen, does not connect again.
#[test]
fn a_secondary_whose_worker_was_killed_is_not_connected() {
    let pair = Pair::new();
    let _daemons = pair.start();
    pair.begin();
    says(&pair.a, ConnectionState::Connected, "");
    says(&pair.b, ConnectionState::Connected, "");
    let primary = Pid::from_raw(pair.a.status("disk0").workerpid);
    kill(primary, Signal::SIGSTOP).unwrap();
    kill(Pid::from_raw(pair.b.status("disk0").workerpid), Signal::SIGKILL).unwrap();
    says(&pair.b, ConnectionState::Disconnected, "was killed by signal 9");
    kill(primary, Signal::SIGCONT).unwrap();
    says(&pair.b, ConnectionState::Connected, "");
}

#[test]
fn a_secondary_whose_provider_was_not_created_says_so() {
    let pair = Pair::new();
    let path = pair.b.path("disk0");
    let bytes = fs::metadata(&path).unwrap().len();
    fs::File::create(&path).unwrap().set_len(bytes).unwrap();
    let _daemons = pair.start();
    pair.begin();
    says(&pair.b, ConnectionState::Refused, "exit status 66; hastd's log says why.");
}
