use super::fake::{DEVICE, Deed, FAULTS, Fake, Fault, MOUNT, STRANGE};
use super::*;
use crate::config::File;
use crate::system::{Attached, Platform, Pool, Signal, Unmount};

const FILES: &str = "fstype = ext4\nmount = /srv/x\nservices = one two\naddress = 10.0.0.9/24@eth0\n";
const BOTH: [Platform; 2] = [Platform::Linux, Platform::FreeBsd];
pub(super) const UP: Manner = Manner { abandon: false, force: false };
const ABANDON: Manner = Manner { abandon: true, force: false };

pub(super) fn group(settings: &str) -> Group {
    File::parse(&format!("[x]\n{settings}")).unwrap().group("x", false).unwrap()
}

fn files() -> Group {
    group(FILES)
}

pub(super) fn work(fake: &mut Fake, group: &Group, manner: Manner, role: Role) -> u8 {
    fake.abandoned = manner.abandon;
    let status = Run::new(fake, group, manner).work(role);
    assert!(fake.crimes.is_empty(), "{:?}: {:#?}", fake.crimes, fake.said);
    status
}

pub(super) fn up(fake: &mut Fake) -> u8 {
    work(fake, &files(), UP, Role::Primary)
}

pub(super) fn down(fake: &mut Fake) -> u8 {
    work(fake, &files(), UP, Role::Secondary)
}

/// A node of this kind, as it is before a run: secondary or primary.
pub(super) fn node(platform: Platform, attaches: bool, primary: bool) -> Fake {
    let mut fake = Fake::new(platform);
    fake.attaches = attaches && platform == Platform::Linux;
    if primary {
        assert_eq!(up(&mut fake), 0, "{:#?}", fake.said);
        fake.calls.clear();
        fake.said.clear();
    }
    fake
}

fn nodes(primary: bool) -> Vec<Fake> {
    vec![
        node(Platform::Linux, false, primary),
        node(Platform::Linux, true, primary),
        node(Platform::FreeBsd, false, primary),
    ]
}

fn is_up(fake: &Fake) -> bool {
    fake.state() == ("primary".to_owned(), Some(DEVICE), 2, 1)
}

fn is_down(fake: &Fake) -> bool {
    fake.state() == ("secondary".to_owned(), None, 0, 0) && fake.attached.is_empty() && fake.nodes.is_empty()
}

fn said(fake: &Fake, words: &str) -> bool {
    fake.said.iter().any(|line| line.contains(words))
}

pub(super) fn mend(fake: &mut Fake) {
    fake.faults.clear();
    fake.deeds.clear();
    fake.later_at = None;
    fake.calls.clear();
}

#[test]
fn there_and_back_and_each_once_more() {
    for mut fake in nodes(false) {
        assert_eq!((up(&mut fake), is_up(&fake)), (0, true), "{:#?}", fake.said);
        assert!(said(&fake, "This node is primary, and everything on it runs."));
        let changes =
            |fake: &Fake, word: &str| fake.calls.iter().filter(|call| call.starts_with(word)).count();
        assert_eq!((up(&mut fake), is_up(&fake)), (0, true));
        for once in ["role primary", "mount /dev", "address Up"] {
            assert_eq!(changes(&fake, once), 1, "{once}: {:?}", fake.calls);
        }
        assert_eq!((down(&mut fake), is_down(&fake)), (0, true), "{:#?}", fake.said);
        assert!(said(&fake, "This node is secondary."));
        assert_eq!((down(&mut fake), is_down(&fake)), (0, true));
        assert_eq!(changes(&fake, "role secondary"), 2, "hastd may be waiting to give another one");
        assert_eq!(fake.announced.len(), 2, "told again, since it may have been forgotten");
    }
}

/// The address comes last and goes first.
#[test]
fn the_order_of_both_ways() {
    let mut fake = Fake::new(Platform::Linux);
    up(&mut fake);
    down(&mut fake);
    let changes = ["role", "e2fsck", "mount /", "service", "address", "unmount"];
    let order: Vec<&str> = fake
        .calls
        .iter()
        .filter(|call| changes.iter().any(|word| call.starts_with(word)))
        .map(String::as_str)
        .collect();
    assert_eq!(
        order,
        [
            "role primary x",
            "e2fsck -p /dev/hast/x",
            "mount /dev/hast/x",
            "service one Up",
            "service two Up",
            "address Up",
            "address Down",
            "service two Down",
            "service one Down",
            "unmount Plain",
            "role secondary x",
        ]
    );
}

/// Whatever happens to any call, the end is what was said, and the next run without faults succeeds.
fn every_fault(primary: bool, manner: Manner, role: Role, so: fn(&Fake) -> bool) {
    let group = files();
    for start in nodes(primary) {
        let mut smooth = start.clone();
        assert_eq!(work(&mut smooth, &group, manner, role), 0);
        let calls = smooth.calls.len();
        for at in 0..calls + 20 {
            for fault in FAULTS {
                let mut fake = start.clone();
                fake.faults.push((at, fault));
                let status = work(&mut fake, &group, manner, role);
                let told = format!("{fault:?} at {at} ({:?}): {status} {:#?}", fake.calls.get(at), fake.said);
                assert!(status != 0 || so(&fake), "said, but not so: {told}");
                assert!(status == 0 || !said(&fake, "This node is primary,"), "{told}");
                if role == Role::Primary && status != 0 && at < calls {
                    assert!(!fake.addresses.iter().any(|_| fake.state().0 != "primary"), "{told}");
                }
                mend(&mut fake);
                assert_eq!(work(&mut fake, &group, manner, role), 0, "again after {told}: {:#?}", fake.said);
                assert!(so(&fake), "again after {told}");
            }
        }
    }
}

#[test]
fn every_call_on_the_way_up_fails_or_hangs() {
    every_fault(false, UP, Role::Primary, is_up);
}

#[test]
fn every_call_on_the_way_down_fails_or_hangs() {
    every_fault(true, UP, Role::Secondary, is_down);
}

#[test]
fn every_call_fails_or_hangs_where_the_node_is_abandoned() {
    every_fault(true, ABANDON, Role::Secondary, is_down);
}

#[test]
fn two_calls_of_a_run_fail() {
    for (primary, role, so) in
        [(false, Role::Primary, is_up as fn(&Fake) -> bool), (true, Role::Secondary, is_down)]
    {
        let start = node(Platform::Linux, true, primary);
        for first in 0..60 {
            for second in first + 1..70 {
                let mut fake = start.clone();
                fake.faults = vec![(first, Fault::Fails), (second, Fault::FailsDone)];
                let status = work(&mut fake, &files(), UP, role);
                assert!(status != 0 || so(&fake), "{first} {second}: {:#?}", fake.said);
                mend(&mut fake);
                assert_eq!((work(&mut fake, &files(), UP, role), so(&fake)), (0, true), "{first} {second}");
            }
        }
    }
}

/// Somebody does what is to be done, or undoes what is done, in front of any call.
#[test]
fn somebody_else_is_at_work() {
    let deeds: &[(&str, Deed)] = &[
        ("mounts it", |fake| {
            if fake.nodes.contains_key("x")
                && !fake.mounts.iter().any(|mounted| mounted.device == Some(DEVICE))
            {
                fake.mount_device(DEVICE, MOUNT);
            }
        }),
        ("unmounts it", |fake| fake.mounts.retain(|mounted| mounted.device != Some(DEVICE))),
        ("starts a service", |fake| {
            fake.services.insert("one".to_owned(), true);
        }),
        ("removes the address", |fake| fake.addresses.clear()),
        ("mounts something over it", |fake| fake.strange_mount(MOUNT)),
        ("opens the device", |fake| fake.openers.push("open in process 7 (dd)".to_owned())),
    ];
    for (primary, role) in [(false, Role::Primary), (true, Role::Secondary)] {
        for start in nodes(primary) {
            for at in 0..80 {
                for (name, deed) in deeds {
                    let mut fake = start.clone();
                    fake.deeds.push((at, *deed));
                    // Between the last look and the deed itself nobody can be noticed.
                    let mut smooth = start.clone();
                    work(&mut smooth, &files(), UP, role);
                    let taken =
                        |call: &String| call.starts_with("detach") || call.starts_with("role secondary");
                    if smooth.calls.get(at).is_some_and(taken) {
                        continue;
                    }
                    // The fake itself notices when something of a stranger is touched.
                    let status = work(&mut fake, &files(), UP, role);
                    let strange =
                        fake.mounts.iter().filter(|mounted| mounted.device == Some(STRANGE)).count();
                    let begun = fake.calls.len() > at;
                    assert_eq!(strange, usize::from(begun && *name == "mounts something over it"), "{name}");
                    if status == 0 && role == Role::Secondary {
                        assert!(
                            fake.state().0 == "secondary"
                                && fake.mounts.iter().all(|mounted| mounted.device != Some(DEVICE)),
                            "{name} at {at}: {:#?}",
                            fake.said
                        );
                    }
                }
            }
        }
    }
}

#[test]
fn a_later_request_ends_the_way_up_at_any_point() {
    for start in nodes(false) {
        for at in 0..60 {
            let mut fake = start.clone();
            fake.later_at = Some(at);
            let status = up(&mut fake);
            let (done, gone) = (status == 0 && is_up(&fake), status == exit::TEMPFAIL && is_down(&fake));
            assert!(done || gone, "at {at}: {status} {:#?}", fake.said);
        }
        // Nothing that is half down is left because of one.
        let mut fake = node(Platform::Linux, true, true);
        fake.later_at = Some(1);
        assert_eq!((down(&mut fake), is_down(&fake)), (0, true));
    }
}

#[test]
fn a_device_in_use_is_not_detached() {
    for mut fake in nodes(true) {
        fake.openers.push("open in process 7 (dd)".to_owned());
        let status = down(&mut fake);
        assert_eq!((status, fake.state().0), (1, "primary".to_owned()), "{:#?}", fake.said);
        assert!(said(&fake, "is still used: open in process 7 (dd)"), "{:#?}", fake.said);
        assert!(!said(&fake, "This node is secondary."));
        assert!(!fake.nodes.is_empty());
        fake.abandoned = true;
        assert_eq!(work(&mut fake, &files(), ABANDON, Role::Secondary), 0);
        assert_eq!(fake.state().0, "secondary");
    }
}

/// Whatever cannot be found out meanwhile.
#[test]
fn a_device_in_use_is_not_detached_whatever_fails() {
    for start in nodes(true) {
        for first in 0..60 {
            for second in [first, first + 1, first + 2] {
                let mut fake = start.clone();
                fake.openers.push("open in process 7 (dd)".to_owned());
                fake.faults = vec![(first, Fault::Hangs), (second, Fault::Fails)];
                assert_eq!((down(&mut fake), fake.state().0.as_str()), (1, "primary"), "{:#?}", fake.said);
            }
        }
    }
}

#[test]
fn a_device_that_is_mounted_elsewhere_too_is_not_detached() {
    for mut fake in nodes(true) {
        fake.mount_device(DEVICE, "/mnt/bind");
        assert_eq!(down(&mut fake), 1, "{:#?}", fake.said);
        assert!(said(&fake, "mounted on /mnt/bind"), "{:#?}", fake.said);
        assert_eq!(fake.mounts.len(), 1, "only ours was unmounted");
    }
}

#[test]
fn something_else_on_the_mount_point_stops_the_way_up_before_anything_is_changed() {
    for mut fake in nodes(false) {
        fake.strange_mount(MOUNT);
        let before = fake.state();
        assert_eq!(up(&mut fake), 1);
        assert_eq!(fake.state(), before);
        assert!(said(&fake, "has something else mounted on it"), "{:#?}", fake.said);
        let changed = |call: &String| call.starts_with("role") || call.starts_with("mount /");
        assert!(!fake.calls.iter().any(changed), "{:?}", fake.calls);
        // And is left alone on the way down, together with who is in it.
        fake.processes.push((42, STRANGE, Signal::Term));
        assert_eq!(down(&mut fake), 0, "{:#?}", fake.said);
        assert_eq!((fake.mounts.len(), fake.signalled.len()), (1, 0));
    }
}

#[test]
fn what_is_mounted_below_is_left_alone_and_nobody_is_signalled_for_it() {
    for (manner, mut fake) in
        [(UP, node(Platform::Linux, true, true)), (ABANDON, node(Platform::Linux, true, true))]
    {
        fake.strange_mount("/srv/x/below");
        fake.processes.push((7, DEVICE, Signal::Kill));
        assert_eq!(work(&mut fake, &files(), manner, Role::Secondary), 1);
        assert!(said(&fake, "below it, on /srv/x/below"), "{:#?}", fake.said);
        assert_eq!((fake.mounts.len(), fake.signalled.len()), (2, 0));
    }
}

#[test]
fn processes_in_the_file_system_are_asked_to_end_then_killed() {
    for (goes, signals) in [(Signal::Term, 1), (Signal::Kill, 2)] {
        let mut fake = node(Platform::Linux, false, true);
        fake.processes = vec![(7, DEVICE, goes), (8, STRANGE, Signal::Term)];
        assert_eq!((down(&mut fake), is_down(&fake)), (0, true), "{:#?}", fake.said);
        assert_eq!(fake.signalled, vec![7; signals]);
    }
    let mut fake = node(Platform::Linux, false, true);
    fake.unmounts_with = Unmount::Force;
    assert_eq!((down(&mut fake), is_down(&fake)), (0, true));
    assert!(said(&fake, "by force"));
    // Out of the tree only of a node that is abandoned: what is still written there would be lost.
    fake = node(Platform::Linux, false, true);
    fake.unmounts_with = Unmount::Lazy;
    assert_eq!((down(&mut fake), fake.state().0.as_str()), (1, "primary"), "{:#?}", fake.said);
    assert!(said(&fake, "cannot be unmounted"));
    assert_eq!(work(&mut fake, &files(), ABANDON, Role::Secondary), 0, "{:#?}", fake.said);
    assert!(is_down(&fake));
}

#[test]
fn a_dead_device_is_attached_again_only_if_nobody_uses_it() {
    let mut fake = node(Platform::Linux, true, true);
    fake.attached_answers = false;
    assert_eq!(up(&mut fake), 1);
    assert!(said(&fake, "is still used: mounted on /srv/x"), "{:#?}", fake.said);
    assert_eq!((down(&mut fake), is_down(&fake)), (0, true), "{:#?}", fake.said);
    // Left behind, and not in use.
    let number = Some(DEVICE);
    fake.attached.insert("x".to_owned(), Attached { device: "/dev/loop0".into(), number });
    fake.attached_answers = false;
    assert_eq!((up(&mut fake), is_up(&fake)), (0, true), "{:#?}", fake.said);
}

#[test]
fn the_file_system_of_a_device_that_is_gone_is_taken_out() {
    let mut fake = node(Platform::Linux, false, true);
    fake.nodes.clear();
    fake.roles.insert("x".to_owned(), "init".to_owned());
    assert_eq!(up(&mut fake), 1);
    assert!(said(&fake, "has the file system of a device that is gone"), "{:#?}", fake.said);
    assert_eq!((down(&mut fake), is_down(&fake)), (0, true), "{:#?}", fake.said);
    assert_eq!((up(&mut fake), is_up(&fake)), (0, true), "{:#?}", fake.said);
}

/// FreeBSD knows only the name of the device that a file system was mounted from, and that is gone with the device.
#[test]
fn of_an_abandoned_node_the_file_system_is_taken_out_though_its_device_is_gone() {
    for mut fake in nodes(true) {
        assert_eq!((work(&mut fake, &files(), ABANDON, Role::Secondary), is_down(&fake)), (0, true));
        assert!(!said(&fake, "something else mounted"), "{:#?}", fake.said);
        assert_eq!((up(&mut fake), is_up(&fake)), (0, true), "{:#?}", fake.said);
    }
}

/// The link was changed while the file system was mounted.
#[test]
fn the_file_system_counts_and_not_what_the_link_leads_to_by_now() {
    let mut fake = node(Platform::Linux, false, true);
    fake.make_device("x", STRANGE);
    fake.unmounts_with = Unmount::Lazy;
    assert_eq!((down(&mut fake), fake.state().0.as_str()), (1, "primary"), "{:#?}", fake.said);
    assert!(said(&fake, "is still used: mounted on /srv/x"), "{:#?}", fake.said);
    fake.unmounts_with = Unmount::Plain;
    assert_eq!((down(&mut fake), is_down(&fake)), (0, true), "{:#?}", fake.said);
}

#[test]
fn a_link_to_another_device_is_not_followed() {
    let mut fake = Fake::new(Platform::Linux);
    fake.attaches = true;
    fake.make_device("x", STRANGE);
    fake.nodes.get_mut("x").unwrap().foreign = Some("/dev/sda1".to_owned());
    assert_eq!(up(&mut fake), 1);
    assert!(said(&fake, "leads to /dev/sda1, which is not x's device"), "{:#?}", fake.said);
    assert_eq!(fake.state(), ("secondary".to_owned(), None, 0, 0));
}

#[test]
fn a_device_that_is_mounted_elsewhere_is_not_checked() {
    let mut fake = node(Platform::Linux, false, true);
    fake.mounts.clear();
    fake.checks.clear();
    fake.mount_device(DEVICE, "/elsewhere");
    assert_eq!(up(&mut fake), 1);
    assert!(said(&fake, "is mounted on /elsewhere"), "{:#?}", fake.said);
    assert!(fake.checks.is_empty());
}

#[test]
fn a_full_check_only_where_it_is_wanted() {
    for platform in BOTH {
        let settings =
            if platform == Platform::FreeBsd { FILES.replace("ext4", "ufs") } else { FILES.to_owned() };
        let full = group(&format!("{settings}check = full\n"));
        for (group, statuses, status, checks) in [
            (group(&settings), (8, 0), 1, 1),
            (full.clone(), (8, 0), 0, 2),
            (full.clone(), (8, 8), 1, 2),
            (full, (0, 8), 0, 1),
        ] {
            let mut fake = Fake::new(platform);
            fake.check_status = statuses;
            assert_eq!(work(&mut fake, &group, UP, Role::Primary), status, "{:#?}", fake.said);
            assert_eq!(fake.checks.len(), checks, "{:?}", fake.checks);
            assert_eq!(status == 0, is_up(&fake));
        }
    }
}

#[test]
fn newer_data_elsewhere_is_given_up_by_force_only() {
    let mut fake = Fake::new(Platform::Linux);
    fake.refuses = Some(70);
    assert_eq!((up(&mut fake), is_down(&fake)), (exit::SOFTWARE, true));
    assert!(said(&fake, "has newer data, or is primary"));
    let force = Manner { force: true, abandon: false };
    assert_eq!((work(&mut fake, &files(), force, Role::Primary), is_up(&fake)), (0, true));
}

#[test]
fn the_secondarys_worker_is_waited_for_with_the_original() {
    for platform in BOTH {
        let mut fake = Fake::new(platform);
        (fake.original, fake.secondary_worker) = (true, true);
        assert_eq!((up(&mut fake), is_down(&fake)), (exit::SOFTWARE, true));
        assert!(said(&fake, "the other node is still primary"), "{:#?}", fake.said);
    }
}

/// A cluster manager may tell the new primary before the old one; by force it does not wait.
#[test]
fn a_primary_that_is_connected_is_waited_for() {
    let mut fake = Fake::new(Platform::Linux);
    fake.secondary_worker = true;
    assert_eq!((up(&mut fake), is_down(&fake)), (exit::SOFTWARE, true));
    assert!(said(&fake, "the other node is still primary"), "{:#?}", fake.said);
    let force = Manner { force: true, abandon: false };
    assert_eq!((work(&mut fake, &files(), force, Role::Primary), is_up(&fake)), (0, true));
}

#[test]
fn a_pool_and_a_strangers_pool() {
    let pool = group("pool = x\nservices = one two\naddress = 10.0.0.9/24@eth0\n");
    let mut fake = Fake::new(Platform::FreeBsd);
    assert_eq!(work(&mut fake, &pool, UP, Role::Primary), 0, "{:#?}", fake.said);
    assert!(fake.pool.is_some());
    assert_eq!(work(&mut fake, &pool, ABANDON, Role::Secondary), 0, "{:#?}", fake.said);
    let at = |word: &str| fake.calls.iter().position(|call| call.starts_with(word)).unwrap();
    assert!(at("export") < at("role secondary"), "a pool without devices would hang: {:?}", fake.calls);
    fake.pool = Some(Pool { health: "ONLINE".to_owned(), devices: vec![STRANGE] });
    assert_eq!(work(&mut fake, &pool, UP, Role::Primary), 1);
    assert!(said(&fake, "lies on other devices"), "{:#?}", fake.said);
    assert_eq!(fake.state().0, "secondary");
    assert_eq!(work(&mut fake, &pool, UP, Role::Secondary), 0);
    assert!(fake.pool.is_some());
}

/// What ran before is not stopped by a run that fails.
#[test]
fn what_this_run_has_not_started_it_does_not_stop() {
    let mut fake = Fake::new(Platform::FreeBsd);
    fake.services_tell = true;
    fake.services.insert("one".to_owned(), true);
    let two = |fake: &Fake| fake.calls.iter().position(|call| call == "service two Up");
    let mut smooth = fake.clone();
    assert_eq!(up(&mut smooth), 0);
    fake.faults.push((two(&smooth).unwrap(), Fault::Fails));
    assert_eq!(up(&mut fake), 1);
    assert_eq!(fake.state(), ("secondary".to_owned(), None, 1, 0), "{:#?}", fake.said);
}

#[test]
fn status_says_what_is() {
    let status = |fake: &mut Fake| Run::new(fake, &files(), UP).report();
    for mut fake in nodes(true) {
        let (lines, worst) = status(&mut fake);
        assert_eq!(worst, 0, "{lines:?}");
        assert_eq!(lines, ["x: x is primary", "x: /srv/x is mounted", "x: 10.0.0.9/24@eth0 is here"]);
        fake.strange_mount(MOUNT);
        let (lines, worst) = status(&mut fake);
        assert_eq!((worst, lines[1].as_str()), (1, "x: /srv/x has something else mounted on it (/dev/801)"));
        fake.mounts.clear();
        assert_eq!(status(&mut fake).1, 1);
        fake.roles.insert("x".to_owned(), "secondary".to_owned());
        assert_eq!(status(&mut fake).1, 3);
        fake.roles.clear();
        let (lines, worst) = status(&mut fake);
        assert_eq!((worst, lines[0].as_str()), (4, "x: x is unknown, hastd does not answer"));
    }
    let mut fake = node(Platform::Linux, true, true);
    fake.attached_answers = false;
    let (lines, worst) = status(&mut fake);
    assert_eq!((worst, lines[0].as_str()), (1, "x: x is primary, its device does not answer"));
    let mut fake = node(Platform::Linux, false, true);
    fake.nodes.clear();
    let (lines, worst) = status(&mut fake);
    assert_eq!((worst, lines[0].as_str()), (1, "x: x is primary, its device is not there"));
}

/// Before anything is changed; but what is attached already stays, and nobody loses anything without a file system.
#[test]
fn nbd_client_is_refused_for_a_file_system() {
    let settings = format!("{FILES}attach = nbd\n");
    let mut fake = node(Platform::Linux, true, false);
    let before = fake.state();
    assert_eq!(work(&mut fake, &group(&settings), UP, Role::Primary), 1);
    assert_eq!((fake.state(), fake.calls.len()), (before, 0), "{:?}", fake.calls);
    assert!(said(&fake, "attach = hastd") && said(&fake, "-f does it all the same"), "{:#?}", fake.said);
    let force = Manner { force: true, abandon: false };
    assert_eq!(work(&mut fake, &group(&settings), force, Role::Primary), 0, "{:#?}", fake.said);
    assert_eq!(work(&mut fake, &group(&settings), UP, Role::Primary), 0, "{:#?}", fake.said);
    let mut bare = node(Platform::Linux, true, false);
    assert_eq!(work(&mut bare, &group("attach = nbd\n"), UP, Role::Primary), 0, "{:#?}", bare.said);
    let mut freebsd = node(Platform::FreeBsd, false, false);
    assert_eq!(work(&mut freebsd, &group(&settings), UP, Role::Primary), 0, "{:#?}", freebsd.said);
}
