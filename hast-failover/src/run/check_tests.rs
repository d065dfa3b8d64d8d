//! Whether a node may have the address, in all that can have happened to it.

use std::time::Duration;

use super::fake::{Fake, Fault};
use super::tests::{UP, down, group, mend, node, up, work};
use super::*;
use crate::system::Platform;

const FILES: &str = "fstype = ext4\nmount = /srv/x\nservices = one two\naddress = 10.0.0.9/24@eth0\n";
const MINUTE: Duration = Duration::from_secs(60);

/// A decider has asked for this; a run is there, or has ended.
fn wants(fake: &mut Fake, primary: bool, under_way: bool) {
    fake.wanted = Wanted { primary, under_way };
}

fn judge(fake: &mut Fake) -> (String, bool) {
    judge_of(fake, FILES)
}

fn judge_of(fake: &mut Fake, settings: &str) -> (String, bool) {
    let (lines, status) = Run::new(fake, &group(settings), UP).judge();
    (lines.join("\n"), status == exit::OK)
}

fn may(fake: &mut Fake) -> bool {
    judge(fake).1
}

fn linux(primary: bool) -> Fake {
    node(Platform::Linux, true, primary)
}

/// A node whose promotion hastd has refused with this status, and which is secondary again, as a decider wants it.
fn refused(status: i32) -> Fake {
    let mut fake = linux(false);
    wants(&mut fake, true, false);
    fake.refuses = Some(status);
    assert_ne!(up(&mut fake), 0);
    assert!(!may(&mut fake), "it has the address, but not the data");
    wants(&mut fake, false, false);
    fake
}

#[test]
fn a_backup_and_a_primary_that_works_may() {
    let mut fake = linux(false);
    assert!(may(&mut fake), "nobody has asked for anything since the system was started");
    wants(&mut fake, false, false);
    assert!(may(&mut fake));
    let mut fake = linux(true);
    wants(&mut fake, true, false);
    assert!(may(&mut fake));
}

/// The role without what belongs to it, or what belongs to it without the role.
#[test]
fn a_primary_without_its_data_may_not() {
    let mut fake = linux(true);
    wants(&mut fake, true, false);
    fake.attached_answers = false;
    assert!(!may(&mut fake));
    let mut fake = linux(true);
    wants(&mut fake, true, false);
    fake.roles.insert("x".to_owned(), "init".to_owned());
    assert!(!may(&mut fake), "hastd was started again");
    let mut fake = linux(true);
    fake.mounts.clear();
    assert!(!may(&mut fake), "made primary by somebody else");
}

#[test]
fn a_node_whose_hastd_does_not_answer_may_not() {
    for primary in [false, true] {
        let mut fake = linux(false);
        fake.roles.clear();
        wants(&mut fake, primary, primary);
        assert!(!may(&mut fake));
    }
}

/// However long it takes, and whatever has failed before. On the way down it does no harm to wait either.
#[test]
fn a_run_that_is_under_way_is_waited_for() {
    for role in ["secondary", "primary"] {
        let mut fake = linux(false);
        fake.refuses = Some(66);
        up(&mut fake);
        fake.roles.insert("x".to_owned(), role.to_owned());
        wants(&mut fake, true, true);
        assert!(may(&mut fake), "{role}");
    }
    let mut fake = linux(true);
    fake.mounts.clear();
    wants(&mut fake, false, true);
    assert!(may(&mut fake));
}

/// Its run was killed, say.
#[test]
fn a_request_without_a_run_is_not_waited_for() {
    let mut fake = linux(false);
    wants(&mut fake, true, false);
    assert!(!may(&mut fake));
}

/// The disk was repaired, or the newer data has come.
#[test]
fn a_node_that_was_refused_may_again_when_hastd_would_grant_it() {
    for status in [66, 70] {
        let mut fake = refused(status);
        fake.grants = Some(false);
        let (why, so) = judge(&mut fake);
        assert!(!so && why.contains("role -n primary x"), "{why}");
        fake.clock += 100 * MINUTE;
        assert!(!may(&mut fake), "time alone repairs nothing");
        fake.grants = Some(true);
        assert!(may(&mut fake));
        // It cannot be foreseen after all: it is not tried at once for ever.
        wants(&mut fake, true, false);
        up(&mut fake);
        wants(&mut fake, false, false);
        assert!(!may(&mut fake));
        fake.clock += 3 * MINUTE;
        assert!(may(&mut fake));
    }
}

/// FreeBSD's own hastctl foresees nothing.
#[test]
fn where_nothing_is_foreseen_a_second_failure_is_waited_out() {
    let mut fake = refused(66);
    fake.grants = None;
    assert!(may(&mut fake));
    wants(&mut fake, true, false);
    up(&mut fake);
    wants(&mut fake, false, false);
    assert!(!may(&mut fake));
}

/// Twice as long each time, an hour at most; a success makes it short again.
#[test]
fn what_nobody_can_foresee_is_tried_more_and_more_seldom() {
    let mut fake = linux(false);
    for rest in [1, 2, 4, 8, 16, 32, 60, 60] {
        fake.check_status = (8, 8);
        wants(&mut fake, true, false);
        assert_eq!(up(&mut fake), 1, "{:#?}", fake.said);
        assert!(!may(&mut fake));
        wants(&mut fake, false, false);
        assert_eq!(down(&mut fake), 0, "{:#?}", fake.said);
        let (why, so) = judge(&mut fake);
        assert!(!so && why.contains("left alone for"), "{rest}: {why}");
        let at = fake.failure.as_ref().unwrap().at;
        fake.clock = at + rest * MINUTE - Duration::from_secs(1);
        assert!(!may(&mut fake), "{rest}");
        fake.clock = at + rest * MINUTE;
        assert!(may(&mut fake), "{rest}");
    }
    fake.check_status = (0, 0);
    assert_eq!(up(&mut fake), 0, "{:#?}", fake.said);
    assert_eq!((fake.failure.clone(), down(&mut fake)), (None, 0));
    assert!(may(&mut fake));
}

/// An administrator has mended it and does not want the role here.
#[test]
fn secondary_by_force_says_that_it_is_mended() {
    let mut fake = linux(false);
    fake.check_status = (8, 8);
    up(&mut fake);
    assert_eq!(down(&mut fake), 0);
    assert!(!may(&mut fake));
    let force = Manner { force: true, abandon: false };
    assert_eq!(work(&mut fake, &group(FILES), force, Role::Secondary), 0);
    assert!(may(&mut fake));
}

/// A later request has ended it: that says nothing against the node.
#[test]
fn what_was_overtaken_has_not_failed() {
    let mut fake = linux(false);
    fake.later_at = Some(3);
    assert_eq!(up(&mut fake), exit::TEMPFAIL);
    assert_eq!(fake.failure, None);
}

#[test]
fn whatever_call_fails_is_a_failure_until_a_run_succeeds() {
    for at in 0..60 {
        let mut fake = linux(false);
        fake.faults.push((at, Fault::Fails));
        let status = up(&mut fake);
        mend(&mut fake);
        assert_eq!(fake.failure.is_some(), status != 0, "{at}: {:#?}", fake.said);
        wants(&mut fake, true, false);
        assert_eq!(may(&mut fake), status == 0, "{at}");
        assert_eq!(up(&mut fake), 0, "{at}");
        assert!(may(&mut fake), "{at}");
    }
}

#[test]
fn carp_is_told_once_and_only_where_it_decides() {
    let settings = format!("{FILES}carp = 1@em0\n");
    let group = group(&settings);
    let mut fake = node(Platform::FreeBsd, false, false);
    fake.refuses = Some(66);
    fake.grants = Some(false);
    assert_eq!(work(&mut fake, &group, UP, Role::Primary), 1);
    assert!(fake.demoted);
    // carp(4) makes it backup; the disk is as it was.
    wants(&mut fake, false, false);
    assert_eq!(work(&mut fake, &group, UP, Role::Secondary), 0);
    let before = fake.demoted;
    assert_eq!((before, judge_of(&mut fake, &settings).1, fake.demoted), (true, false, true));
    // The disk was repaired, and somebody looks.
    fake.grants = Some(true);
    fake.refuses = None;
    assert!(judge_of(&mut fake, &settings).1 && !fake.demoted);
    assert_eq!(work(&mut fake, &group, UP, Role::Primary), 0, "{:#?}", fake.said);
    wants(&mut fake, true, false);
    // The device goes away under a primary.
    fake.nodes.clear();
    assert!(!judge_of(&mut fake, &settings).1 && fake.demoted);
    let told = fake.said.iter().filter(|line| line.starts_with("CARP: this node is demoted,")).count();
    assert_eq!(told, 2, "{:#?}", fake.said);
    for (platform, settings) in [(Platform::FreeBsd, FILES), (Platform::Linux, settings.as_str())] {
        let mut fake = node(platform, false, false);
        fake.refuses = Some(66);
        assert_eq!(work(&mut fake, &super::tests::group(settings), UP, Role::Primary), 1);
        assert!(!fake.demoted);
    }
}
