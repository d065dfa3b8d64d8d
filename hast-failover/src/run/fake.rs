//! A node that is made up: what the tests of the plan look at and break. Each call can be made to fail or to hang, before or
//! after it has had its effect, and somebody else can do something in front of any of them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::address::Address;
use crate::run::{Failure, Wanted};
use crate::system::*;

/// What becomes of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// It fails at once, and nothing has happened.
    Fails,
    /// It does not end by itself, and nothing has happened.
    Hangs,
    /// It says that it failed, but it is done: somebody else was quicker, for example.
    FailsDone,
    /// It does not end by itself, but it is done.
    HangsDone,
}

pub(super) const FAULTS: [Fault; 4] = [Fault::Fails, Fault::Hangs, Fault::FailsDone, Fault::HangsDone];

/// What somebody else does.
pub(super) type Deed = fn(&mut Fake);

pub(super) const DEVICE: u64 = 0x700;
pub(super) const STRANGE: u64 = 0x801;
pub(super) const MOUNT: &str = "/srv/x";

/// A node with the resource `x`.
#[derive(Clone)]
pub(super) struct Fake {
    pub(super) platform: Platform,
    pub(super) clock: Duration,
    pub(super) roles: BTreeMap<String, String>,
    /// The status that changes to primary end with.
    pub(super) refuses: Option<i32>,
    pub(super) original: bool,
    pub(super) secondary_worker: bool,
    /// Devices come from `attach`, and not from hastd.
    pub(super) attaches: bool,
    pub(super) nodes: BTreeMap<String, Node>,
    pub(super) attached: BTreeMap<String, Attached>,
    pub(super) attached_answers: bool,
    /// The last one on a point is on top.
    pub(super) mounts: Vec<Mounted>,
    next_mount: u32,
    pub(super) checks: Vec<String>,
    /// What e2fsck or fsck ends with: the first time, and with a full check.
    pub(super) check_status: (i32, i32),
    /// Processes in the file system with this number: the signal that makes them go.
    pub(super) processes: Vec<(u32, u64, Signal)>,
    pub(super) signalled: Vec<u32>,
    /// Unmounting our file system works only with this, and only with nobody in it.
    pub(super) unmounts_with: Unmount,
    pub(super) remembered: Option<(String, Option<u64>)>,
    /// Who has the device open besides those.
    pub(super) openers: Vec<String>,
    pub(super) pool: Option<Pool>,
    pub(super) services: BTreeMap<String, bool>,
    pub(super) services_tell: bool,
    pub(super) addresses: Vec<Address>,
    pub(super) announced: Vec<Address>,
    pub(super) said: Vec<String>,
    pub(super) calls: Vec<String>,
    pub(super) faults: Vec<(usize, Fault)>,
    pub(super) deeds: Vec<(usize, Deed)>,
    /// The call from which on there is a later request.
    pub(super) later_at: Option<usize>,
    pub(super) wanted: Wanted,
    pub(super) failure: Option<Failure>,
    /// What hastd foresees.
    pub(super) grants: Option<bool>,
    pub(super) demoted: bool,
    /// What must never happen, and has.
    pub(super) crimes: Vec<String>,
    /// Devices may be taken from those who use them.
    pub(super) abandoned: bool,
}

impl Fake {
    pub(super) fn new(platform: Platform) -> Fake {
        Fake {
            platform,
            clock: Duration::ZERO,
            roles: BTreeMap::from([("x".to_owned(), "secondary".to_owned())]),
            refuses: None,
            original: false,
            secondary_worker: false,
            attaches: false,
            nodes: BTreeMap::new(),
            attached: BTreeMap::new(),
            attached_answers: true,
            mounts: Vec::new(),
            next_mount: 1,
            checks: Vec::new(),
            check_status: (0, 0),
            processes: Vec::new(),
            signalled: Vec::new(),
            unmounts_with: Unmount::Plain,
            remembered: None,
            openers: Vec::new(),
            pool: None,
            services: BTreeMap::new(),
            services_tell: false,
            addresses: Vec::new(),
            announced: Vec::new(),
            said: Vec::new(),
            calls: Vec::new(),
            faults: Vec::new(),
            deeds: Vec::new(),
            later_at: None,
            wanted: Wanted { primary: false, under_way: false },
            failure: None,
            grants: Some(true),
            demoted: false,
            crimes: Vec::new(),
            abandoned: false,
        }
    }

    /// Somebody else's file system on top of this point.
    pub(super) fn strange_mount(&mut self, point: &str) {
        self.mount_device(STRANGE, point);
    }

    pub(super) fn mount_device(&mut self, number: u64, point: &str) {
        let id = self.next_mount.to_string();
        self.next_mount += 1;
        self.mounts.push(Mounted {
            id,
            device: Some(number),
            files: number,
            point: PathBuf::from(point),
            source: format!("/dev/{number:x}"),
            fstype: "ext4".to_owned(),
        });
    }

    /// What the node is: role, what is mounted at our place, services that run, addresses.
    pub(super) fn state(&self) -> (String, Option<u64>, usize, usize) {
        let top = self.mounts.iter().rfind(|mounted| mounted.point == Path::new(MOUNT));
        let services = self.services.values().filter(|runs| **runs).count();
        (
            self.roles.get("x").cloned().unwrap_or_default(),
            top.map(|mounted| mounted.device.unwrap_or_default()),
            services,
            self.addresses.len(),
        )
    }

    fn in_use(&self, number: u64) -> bool {
        self.mounts.iter().any(|mounted| mounted.device == Some(number)) || !self.openers.is_empty()
    }

    /// A call: gives what becomes of it.
    fn call(&mut self, words: String) -> Option<Fault> {
        let index = self.calls.len();
        self.calls.push(words);
        for (_, deed) in self.deeds.clone().into_iter().filter(|(at, _)| *at == index) {
            deed(self);
        }
        let fault = self.faults.iter().find(|(at, _)| *at == index).map(|(_, fault)| *fault);
        if matches!(fault, Some(Fault::Hangs | Fault::HangsDone)) {
            self.clock += Duration::from_secs(60);
        }
        fault
    }

    /// A call that asks.
    fn ask_for<T>(&mut self, words: String, answer: impl FnOnce(&mut Fake) -> T) -> Result<T, String> {
        match self.call(words) {
            None => Ok(answer(self)),
            Some(_) => Err("it cannot be told".to_owned()),
        }
    }

    /// A call that does something.
    fn act(&mut self, words: String, effect: impl FnOnce(&mut Fake)) -> Ran {
        let fault = self.call(words);
        if !matches!(fault, Some(Fault::Fails | Fault::Hangs)) {
            effect(self);
        }
        match fault {
            None => Ran::Well,
            Some(Fault::Fails | Fault::FailsDone) => Ran::Badly(1, "it does not work".to_owned()),
            Some(_) => Ran::TooLong(Duration::from_secs(60)),
        }
    }

    fn act_in_words(&mut self, words: String, effect: impl FnOnce(&mut Fake)) -> Result<(), String> {
        match self.act(words, effect) {
            Ran::Well => Ok(()),
            ran => Err(format!("{ran:?}")),
        }
    }

    /// The device goes, also if it is used.
    fn take_device(&mut self, resource: &str) {
        let number = self.attached.get(resource).and_then(|attached| attached.number);
        let number = number.or(self.nodes.get(resource).and_then(|node| node.number));
        if !self.abandoned && number.is_some_and(|number| self.in_use(number)) && self.attached_answers {
            self.crimes.push(format!("the device of {resource} was taken from those who use it"));
        }
        self.attached.remove(resource);
        self.nodes.remove(resource);
        // FreeBSD says by its name only where something was mounted from.
        if self.platform == Platform::FreeBsd {
            for mounted in self.mounts.iter_mut().filter(|mounted| mounted.device == number) {
                mounted.device = None;
            }
        }
    }

    pub(super) fn make_device(&mut self, resource: &str, number: u64) {
        let path = PathBuf::from(format!("/dev/hast/{resource}"));
        self.nodes.insert(resource.to_owned(), Node { path, number: Some(number), foreign: None });
    }
}

impl System for Fake {
    fn platform(&self) -> Platform {
        self.platform
    }

    fn now(&self) -> Duration {
        self.clock
    }

    fn pause(&mut self) {
        self.clock += Duration::from_millis(100);
    }

    fn later(&mut self) -> Option<Later> {
        let at = self.later_at?;
        (self.calls.len() >= at).then(|| Later::Request("secondary 9.9".to_owned()))
    }

    fn wanted(&mut self) -> Wanted {
        self.wanted.clone()
    }

    fn uptime(&self) -> Duration {
        self.clock
    }

    fn failure(&mut self) -> Option<Failure> {
        self.failure.clone()
    }

    fn note_failure(&mut self, failure: Option<&Failure>) {
        self.failure = failure.cloned();
    }

    fn would_become_primary(&mut self, _: &str) -> Option<bool> {
        self.grants
    }

    fn demote(&mut self, demoted: bool) -> Result<bool, String> {
        Ok(std::mem::replace(&mut self.demoted, demoted) != demoted)
    }

    fn say(&mut self, _: Priority, words: &str) {
        self.said.push(words.to_owned());
    }

    fn ask(&mut self, resource: &str) -> Option<Known> {
        let role =
            self.ask_for(format!("ask {resource}"), |fake| fake.roles.get(resource).cloned()).ok()??;
        let works = self.secondary_worker && role == "secondary";
        Some(Known { role, provider: resource.to_owned(), works })
    }

    fn is_original(&mut self, resource: &str) -> bool {
        self.ask_for(format!("original {resource}"), |fake| fake.original).unwrap_or(true)
    }

    fn change_role(&mut self, resource: &str, role: &str, force: bool) -> Ran {
        if let (Some(status), "primary", false) = (self.refuses, role, force) {
            return Ran::Badly(status, "refused".to_owned());
        }
        self.act(format!("role {role} {resource}"), |fake| {
            if role == "primary" {
                if !fake.attaches {
                    fake.make_device(resource, DEVICE + u64::from(resource != "x"));
                }
            } else if fake.roles.get(resource).is_some_and(|role| role == "primary") {
                fake.take_device(resource);
            }
            fake.roles.insert(resource.to_owned(), role.to_owned());
        })
    }

    fn secondary_works(&mut self, resource: &str) -> Result<bool, String> {
        self.ask_for(format!("worker {resource}"), |fake| fake.secondary_worker)
    }

    fn attached(&mut self, resource: &str) -> Option<Attached> {
        self.attached.get(resource).cloned()
    }

    fn answers(&mut self, resource: &str) -> bool {
        self.ask_for(format!("answers {resource}"), |fake| fake.attached_answers).unwrap_or(false)
    }

    fn hastd_makes_devices(&mut self) -> bool {
        !self.attaches
    }

    fn export(&mut self, provider: &str) -> Result<(), String> {
        self.ask_for(format!("export {provider}"), |_| ())
    }

    fn attach(&mut self, resource: &str, _: &str, _: bool) -> Result<PathBuf, String> {
        let device = PathBuf::from("/dev/loop0");
        self.act_in_words(format!("attach {resource}"), |fake| {
            fake.attached_answers = true;
            fake.make_device(resource, DEVICE);
            let attached = Attached { device: device.clone(), number: Some(DEVICE) };
            fake.attached.insert(resource.to_owned(), attached);
        })?;
        Ok(device)
    }

    fn detach(&mut self, resource: &str, _: bool) -> Result<(), String> {
        self.act_in_words(format!("detach {resource}"), |fake| fake.take_device(resource))
    }

    fn node(&mut self, provider: &str) -> Option<Node> {
        self.nodes.get(provider).cloned()
    }

    fn users(&mut self, provider: &str, number: u64) -> Result<Vec<String>, String> {
        self.ask_for(format!("users {provider}"), |fake| {
            let mounts = fake.mounts.iter().filter(|mounted| mounted.device == Some(number));
            let mounts = mounts.map(|mounted| format!("mounted on {}", mounted.point.display()));
            mounts.chain(fake.openers.iter().cloned()).collect()
        })
    }

    fn is_directory(&mut self, path: &Path) -> bool {
        path == Path::new(MOUNT)
    }

    fn mounted_at(&mut self, point: &Path) -> Result<Option<Mounted>, String> {
        self.ask_for("mounted at".to_owned(), |fake| {
            fake.mounts.iter().rfind(|mounted| mounted.point == point).cloned()
        })
    }

    fn mounts_of(&mut self, number: u64) -> Result<Vec<Mounted>, String> {
        self.ask_for("mounts of".to_owned(), |fake| {
            fake.mounts.iter().filter(|mounted| mounted.device == Some(number)).cloned().collect()
        })
    }

    fn mounted_below(&mut self, mounted: &Mounted) -> Result<Vec<Mounted>, String> {
        self.ask_for("mounted below".to_owned(), |fake| {
            let below =
                |other: &&Mounted| other.point != mounted.point && other.point.starts_with(&mounted.point);
            fake.mounts.iter().filter(below).cloned().collect()
        })
    }

    fn check(&mut self, checker: &[&str], device: &Path) -> Ran {
        let words = format!("{} {}", checker.join(" "), device.display());
        let status = if self.checks.is_empty() { self.check_status.0 } else { self.check_status.1 };
        self.checks.push(words.clone());
        match self.act(words, |_| ()) {
            Ran::Well if status != 0 => Ran::Badly(status, "errors".to_owned()),
            ran => ran,
        }
    }

    fn mount(&mut self, _: &str, _: &str, device: &Path, point: &Path) -> Ran {
        let node = self.nodes.values().find(|node| node.path == device).cloned();
        self.act(format!("mount {}", device.display()), |fake| {
            let number = node.and_then(|node| node.number).unwrap_or_default();
            fake.mount_device(number, &point.display().to_string());
            if let Some(mounted) = fake.mounts.last_mut() {
                mounted.source = device.display().to_string();
            }
        })
    }

    fn unmount(&mut self, mounted: &Mounted, how: Unmount) -> Ran {
        if mounted.device.is_none_or(|number| number != DEVICE) && mounted.source != "/dev/hast/x" {
            self.crimes.push(format!("a stranger's file system was unmounted: {mounted:?}"));
        }
        let top =
            self.mounts.iter().rfind(|other| other.point == mounted.point).map(|other| other.id.clone());
        if top != Some(mounted.id.clone()) {
            self.crimes.push(format!("what is mounted over it was unmounted: {mounted:?}"));
        }
        let busy = how != Unmount::Lazy && self.processes.iter().any(|(_, files, _)| *files == mounted.files);
        let hard = |how| match how {
            Unmount::Plain => 0,
            Unmount::Force => 1,
            Unmount::Lazy => 2,
        };
        if busy || hard(how) < hard(self.unmounts_with) {
            self.calls.push("unmount: busy".to_owned());
            return Ran::Badly(32, "target is busy".to_owned());
        }
        let id = mounted.id.clone();
        self.act(format!("unmount {how:?}"), |fake| fake.mounts.retain(|mounted| mounted.id != id))
    }

    fn signal(&mut self, mounted: &Mounted, signal: Signal) -> Result<Vec<u32>, String> {
        let files = mounted.files;
        if files != DEVICE && mounted.fstype != "zfs" {
            self.crimes.push("somebody in another file system was signalled".to_owned());
        }
        self.ask_for(format!("signal {signal:?}"), |fake| {
            let told: Vec<u32> =
                fake.processes.iter().filter(|(_, of, _)| *of == files).map(|(pid, _, _)| *pid).collect();
            fake.signalled.extend(&told);
            fake.processes
                .retain(|(_, of, goes)| *of != files || (signal == Signal::Term && *goes == Signal::Kill));
            told
        })
    }

    fn remembered(&mut self) -> Option<(String, Option<u64>)> {
        self.remembered.clone()
    }

    fn remember(&mut self, mounted: Option<&Mounted>) {
        self.remembered = mounted.map(|mounted| (mounted.id.clone(), mounted.device));
    }

    fn pool(&mut self, _: &str) -> Result<Option<Pool>, String> {
        self.ask_for("pool".to_owned(), |fake| fake.pool.clone())
    }

    fn import(&mut self, name: &str) -> Ran {
        self.act(format!("import {name}"), |fake| {
            fake.pool = Some(Pool { health: "ONLINE".to_owned(), devices: vec![DEVICE] });
        })
    }

    fn export_pool(&mut self, name: &str, force: bool) -> Ran {
        if self.pool.as_ref().is_some_and(|pool| pool.devices == [STRANGE]) {
            self.crimes.push("a stranger's pool was exported".to_owned());
        }
        self.act(format!("export {name} {force}"), |fake| fake.pool = None)
    }

    fn mounted_from_pool(&mut self, _: &str) -> Vec<Mounted> {
        Vec::new()
    }

    fn service_runs(&mut self, name: &str) -> Option<bool> {
        self.services_tell.then(|| self.services.get(name).copied().unwrap_or(false))
    }

    fn service(&mut self, name: &str, way: Way) -> Ran {
        self.act(format!("service {name} {way:?}"), |fake| {
            fake.services.insert(name.to_owned(), way == Way::Up);
        })
    }

    fn has_address(&mut self, address: &Address) -> Result<bool, String> {
        self.ask_for("has address".to_owned(), |fake| fake.addresses.contains(address))
    }

    fn address(&mut self, address: &Address, way: Way) -> Ran {
        self.act(format!("address {way:?}"), |fake| {
            fake.addresses.retain(|there| there != address);
            if way == Way::Up {
                fake.addresses.push(address.clone());
            }
        })
    }

    fn announce(&mut self, address: &Address) -> Result<(), String> {
        if !self.addresses.contains(address) {
            self.crimes.push(format!("{address} was announced before it was there"));
        }
        self.announced.push(address.clone());
        Ok(())
    }
}
