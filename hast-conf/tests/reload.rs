//! What a reload changes: the cases of spec conf.md, "Reload", one by one.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use common::config;
use hast_conf::{Action, Address, Changes, diff};
use std::path::PathBuf;

const BASE: &str = "control /c pidfile /p listen 10.0.0.1 nbd /n
    resource r { name n local /d replication memsync checksum none compression hole timeout 20 exec /x metaflush on
                 on a { remote b source 10.0.0.1 } }";

fn changes(old: &str, new: &str) -> Changes {
    let old = config(old);
    diff(&old, &old.listen, &config(new))
}

/// BASE with `from` replaced.
fn edited(from: &str, to: &str) -> Changes {
    assert!(BASE.contains(from));
    changes(BASE, &BASE.replace(from, to))
}

/// The one resource that changed and nothing else: what to do as init or secondary, as primary.
fn actions(changes: &Changes) -> (Action, Action) {
    let rest = Changes { changed: Vec::new(), ..changes.clone() };
    assert!(rest.is_empty(), "{rest:?}");
    assert_eq!(changes.changed.len(), 1);
    (changes.changed[0].action(false), changes.changed[0].action(true))
}

fn texts(addresses: &[Address]) -> Vec<&str> {
    addresses.iter().map(Address::as_str).collect()
}

#[test]
fn the_same_file_changes_nothing() {
    assert!(changes(BASE, BASE).is_empty());
    assert!(edited("resource", "# a comment\n resource").is_empty());
    assert!(edited("control /c", "").control.is_some());
}

#[test]
fn control_and_pidfile_move() {
    let control = edited("control /c", "control /c2");
    assert_eq!(control, Changes { control: Some(Address::parse("/c2").unwrap()), ..Changes::default() });
    let pidfile = edited("pidfile /p", "pidfile /p2");
    assert_eq!(pidfile, Changes { pidfile: Some(PathBuf::from("/p2")), ..Changes::default() });
    assert!(edited("control /c", "control unix:///c").is_empty());
}

#[test]
fn unchanged_listen_sockets_stay_new_ones_open_gone_ones_close() {
    let more = edited("listen 10.0.0.1", "listen 10.0.0.2 listen 10.0.0.1 listen 10.0.0.3");
    assert_eq!(texts(&more.listen_opened), ["10.0.0.2", "10.0.0.3"]);
    assert_eq!(texts(&more.listen_closed), [""; 0]);
    let other = edited("listen 10.0.0.1", "listen 10.0.0.1:9");
    assert_eq!(texts(&other.listen_opened), ["10.0.0.1:9"]);
    assert_eq!(texts(&other.listen_closed), ["10.0.0.1"]);
    // The same endpoint in other words cannot be opened a second time and need not be.
    assert!(edited("listen 10.0.0.1", "listen tcp://10.0.0.1:8457").is_empty());
    let default = edited("listen 10.0.0.1", "");
    assert_eq!(texts(&default.listen_opened), ["tcp4://0.0.0.0:8457", "tcp6://[::]:8457"]);
    assert_eq!(texts(&default.listen_closed), ["10.0.0.1"]);
}

/// What a file says is not what is open: the address was not there yet when it was to be opened.
#[test]
fn a_listen_address_that_could_not_be_opened_is_opened_later() {
    let both = config(&BASE.replace("listen 10.0.0.1", "listen 10.0.0.1 listen 10.0.0.2"));
    let changes = diff(&both, &both.listen[..1], &both);
    assert_eq!(texts(&changes.listen_opened), ["10.0.0.2"]);
    assert_eq!(texts(&changes.listen_closed), [""; 0]);
    // And one that is in neither file is closed.
    let one = config(BASE);
    let changes = diff(&one, &both.listen, &one);
    assert_eq!(texts(&changes.listen_closed), ["10.0.0.2"]);
}

#[test]
fn removed_resources_disappear_and_new_ones_appear() {
    let one = |name: &str| format!("resource {name} {{ on a {{ local /{name} remote b }} }}\n");
    let changes = changes(&[one("x"), one("y"), one("z")].concat(), &[one("w"), one("y"), one("v")].concat());
    let names = |resources: &[hast_conf::Resource]| -> Vec<String> {
        resources.iter().map(|r| r.name.clone()).collect()
    };
    assert_eq!(names(&changes.removed), ["x", "z"]);
    assert_eq!(names(&changes.added), ["w", "v"]);
    assert_eq!(changes.changed, []);
}

#[test]
fn another_order_is_no_change() {
    let one = |name: &str| format!("resource {name} {{ on a {{ local /{name} remote b }} }}\n");
    assert!(changes(&[one("x"), one("y")].concat(), &[one("y"), one("x")].concat()).is_empty());
}

#[test]
fn another_local_or_name_restarts_in_every_role() {
    for (from, to) in [("local /d", "local /e"), ("name n", "name m")] {
        assert_eq!(actions(&edited(from, to)), (Action::Restart, Action::Restart), "{to}");
    }
}

#[test]
fn other_settings_are_applied_in_a_running_primary() {
    for (from, to) in [
        ("replication memsync", "replication async"),
        ("checksum none", "checksum crc32"),
        ("compression hole", "compression lzf"),
        ("timeout 20", "timeout 21"),
        ("exec /x", "exec /y"),
        ("exec /x", ""),
        ("metaflush on", "metaflush off"),
    ] {
        let expected = (Action::Restart, Action::Apply { reconnect: false });
        assert_eq!(actions(&edited(from, to)), expected, "{to}");
    }
}

#[test]
fn another_remote_or_source_reconnects_a_running_primary() {
    for (from, to) in [
        ("remote b", "remote c"),
        ("remote b", "remote b:9"),
        ("remote b", "remote none"),
        ("source 10.0.0.1", "source 10.0.0.2"),
        ("source 10.0.0.1", ""),
    ] {
        let expected = (Action::Restart, Action::Apply { reconnect: true });
        assert_eq!(actions(&edited(from, to)), expected, "{to}");
    }
}

#[test]
fn another_spelling_of_the_same_remote_is_shown_but_does_not_reconnect() {
    let changes = edited("remote b", "remote tcp://b:8457");
    assert_eq!(actions(&changes), (Action::Restart, Action::Apply { reconnect: false }));
    assert_eq!(changes.changed[0].new.remote_text(), "tcp://b:8457");
}

#[test]
fn a_restart_wins_over_applying() {
    let new = BASE.replace("local /d", "local /e").replace("remote b", "remote c");
    assert_eq!(actions(&changes(BASE, &new)), (Action::Restart, Action::Restart));
}

#[test]
fn a_global_change_reaches_the_resources_that_inherit_it() {
    let tail =
        "resource x { on a { local /d remote b } } resource y { timeout 5 on a { local /e remote b } }";
    let changes = changes(tail, &format!("timeout 6 {tail}"));
    assert_eq!(changes.changed.len(), 1);
    assert_eq!((changes.changed[0].old.timeout, changes.changed[0].new.timeout), (20, 6));
    assert_eq!(changes.changed[0].new.name, "x");
}

#[test]
fn another_nbd_directory_restarts_primaries_only() {
    let changes = edited("nbd /n", "nbd /m");
    assert_eq!(actions(&changes), (Action::Nothing, Action::Restart));
    assert!(changes.changed[0].nbd_moved);
    let both = changes_of_nbd_and_timeout();
    assert_eq!(actions(&both), (Action::Restart, Action::Restart));
}

fn changes_of_nbd_and_timeout() -> Changes {
    changes(BASE, &BASE.replace("nbd /n", "nbd /m").replace("timeout 20", "timeout 21"))
}
