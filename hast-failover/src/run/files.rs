//! The file system of a group. What else is mounted at its place is somebody else's: it is in the way of a primary, and left
//! alone on the way down.

use std::path::Path;

use crate::config::Check;
use crate::system::{Mounted, Platform, Ran, Signal, System, Unmount};

use super::{Done, Failed, Run, Undo, how};

/// Whose a file system is that is mounted at the group's place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Whose {
    /// From the group's device.
    Ours,
    /// From a device of the group that has gone since.
    Former,
    Strangers,
}

impl<S: System> Run<'_, S> {
    fn whose(&mut self, mounted: &Mounted) -> Whose {
        let devices = self.devices();
        if mounted.device.is_some_and(|number| devices.iter().any(|device| device.number == number)) {
            return Whose::Ours;
        }
        match self.system.remembered() {
            // The id alone says nothing: the kernel gives that of a mount which has gone to the next one.
            Some((id, device)) if id == mounted.id && device == mounted.device => Whose::Former,
            // FreeBSD knows a device by its name only, which nothing has any more.
            Some((id, _)) if id == mounted.id && mounted.device.is_none() && self.is_named(mounted) => {
                Whose::Former
            }
            _ => Whose::Strangers,
        }
    }

    /// Whether it was mounted from a device that has the name of one of the group's.
    fn is_named(&mut self, mounted: &Mounted) -> bool {
        let resources = self.group.resources.clone();
        resources.iter().any(|resource| {
            let path = self.group.device_dir.join(self.provider(resource));
            path == Path::new(&mounted.source)
        })
    }

    /// What is mounted at this place, and whose it is. A failure to find out is told.
    fn at(&mut self, point: &Path) -> Result<Option<(Mounted, Whose)>, Failed> {
        match self.system.mounted_at(point) {
            Ok(Some(mounted)) => {
                let whose = self.whose(&mounted);
                Ok(Some((mounted, whose)))
            }
            Ok(None) => Ok(None),
            Err(why) => self.failed(format!("{}: {why}", point.display())).map(|()| None),
        }
    }

    pub(super) fn is_mounted(&mut self, point: &Path) -> bool {
        matches!(self.system.mounted_at(point), Ok(Some(mounted)) if self.whose(&mounted) == Whose::Ours)
    }

    /// What somebody else has mounted at this place.
    pub(super) fn strangers_at(&mut self, point: &Path) -> Option<Mounted> {
        let mounted = self.system.mounted_at(point).ok().flatten()?;
        (self.whose(&mounted) == Whose::Strangers).then_some(mounted)
    }

    /// Before anything is changed: the place is there, and nothing else is mounted on it.
    pub(super) fn mount_point_is_free(&mut self, point: &Path) -> Done {
        let shown = point.display();
        if !self.system.is_directory(point) {
            return self.failed(format!("{shown} is not there."));
        }
        match self.at(point)? {
            None | Some((_, Whose::Ours)) => Ok(()),
            Some((mounted, Whose::Former)) => self.failed(format!(
                "{shown} has the file system of a device that is gone ({}); 'hast-failover secondary' takes it out.",
                mounted.source
            )),
            Some((mounted, Whose::Strangers)) => self.failed(format!(
                "{shown} has something else mounted on it ({}, {}); nothing is changed.",
                mounted.source, mounted.fstype
            )),
        }
    }

    /// Checks and mounts.
    pub(super) fn mount(&mut self, fstype: &str, point: &Path, options: &str) -> Done {
        let shown = point.display();
        // What is there is looked at again: it took a while to get here.
        self.mount_point_is_free(point)?;
        if self.is_mounted(point) {
            self.note(format!("{shown} is mounted already."));
            return Ok(());
        }
        let device = self.first_device()?;
        for number in self.devices().iter().map(|device| device.number).collect::<Vec<u64>>() {
            // Checking a file system that is mounted, wherever that is, would destroy it.
            if let Some(elsewhere) = self.system.mounts_of(number).unwrap_or_default().first() {
                let elsewhere = elsewhere.point.display();
                return self.failed(format!("{} is mounted on {elsewhere}.", device.display()));
            }
        }
        self.check(fstype, &device)?;
        self.step(format!("Mounting {} at {shown}.", device.display()))?;
        self.undo.push(Undo::Content);
        let ran = self.system.mount(fstype, options, &device, point);
        let mounted = match self.system.mounted_at(point) {
            Ok(Some(mounted)) if self.whose(&mounted) == Whose::Ours => Some(mounted),
            _ => None,
        };
        match (ran, mounted) {
            // Also if another program has mounted it.
            (ran, Some(mounted)) => {
                self.system.remember(Some(&mounted));
                if ran == Ran::Well {
                    return self.conclude(&format!("mount {shown}"), &ran);
                }
                self.note(format!("{shown} is mounted already."));
                Ok(())
            }
            (Ran::Well, None) => self.failed(format!(
                "mount {shown}: done, but what is mounted there is not {}.",
                device.display()
            )),
            (ran, None) => self.conclude(&format!("mount {shown}"), &ran),
        }
    }

    /// Makes it a file system that can be mounted. Both kinds of fsck say with 1 that they have repaired, or (FreeBSD's)
    /// with other codes that a full check is needed.
    fn check(&mut self, fstype: &str, device: &Path) -> Done {
        if self.group.check == Check::Never {
            return Ok(());
        }
        let (preen, full, good): (&[&str], &[&str], i32) = match fstype {
            "ext2" | "ext3" | "ext4" => (&["e2fsck", "-p"], &["e2fsck", "-f", "-y"], 1),
            "ufs" => (&["fsck", "-t", "ufs", "-p"], &["fsck", "-t", "ufs", "-y"], 0),
            // XFS replays its log when it is mounted; what else there is has no preening.
            _ => return Ok(()),
        };
        let shown = device.display();
        self.step(format!("Checking {shown} ({fstype})."))?;
        let ran = self.system.check(preen, device);
        match &ran {
            Ran::Well => return Ok(()),
            Ran::Badly(status, _) if *status <= good => return Ok(()),
            Ran::Badly(status, said) => self.warn(format!("{}: status {status}: {said}", preen.join(" "))),
            _ => return self.failed(format!("{}: {}", preen.join(" "), how(&ran))),
        }
        if self.group.check != Check::Full {
            return self
                .failed(format!("{shown} needs a full check; 'check = full' does it without asking."));
        }
        self.step(format!("Checking {shown} fully."))?;
        let ran = self.system.check(full, device);
        match &ran {
            Ran::Well => Ok(()),
            Ran::Badly(status, _) if *status <= good => Ok(()),
            _ => self.failed(format!("{}: {}", full.join(" "), how(&ran))),
        }
    }

    /// Politely, then with SIGTERM, then with SIGKILL, then by force.
    pub(super) fn unmount(&mut self, point: &Path) -> Done {
        let shown = point.display();
        let mounted = match self.at(point)? {
            None => {
                self.system.remember(None);
                return Ok(());
            }
            Some((mounted, Whose::Strangers)) => {
                self.warn(format!(
                    "{shown} has something else mounted on it ({}, {}), which is left alone.",
                    mounted.source, mounted.fstype
                ));
                return Ok(());
            }
            Some((mounted, _)) => mounted,
        };
        self.nothing_below(point, &mounted)?;
        self.note(format!("Unmounting {shown}."));
        let stages: &[Option<Signal>] = if self.manner.abandon {
            &[Some(Signal::Kill)]
        } else {
            &[None, Some(Signal::Term), Some(Signal::Kill)]
        };
        for stage in stages {
            if let Some(signal) = stage {
                self.signal(point, &mounted, *signal);
            }
            let limit = self.group.unmount_timeout;
            if self.insist(limit, |run| run.unmounted(point, &mounted, Unmount::Plain)) {
                self.system.remember(None);
                return Ok(());
            }
        }
        self.warn(format!("Unmounting {shown} by force."));
        // Out of the tree is not enough where something may still be written; a device that is gone takes nothing.
        let gone = self.unmounted(point, &mounted, Unmount::Force)
            || (self.manner.abandon
                && self.system.platform() == Platform::Linux
                && self.nothing_below(point, &mounted).is_ok()
                && self.unmounted(point, &mounted, Unmount::Lazy));
        if gone {
            self.system.remember(None);
            return Ok(());
        }
        self.failed(format!("{shown} cannot be unmounted."))
    }

    /// What is mounted below belongs to somebody else, and nobody is signalled in vain.
    fn nothing_below(&mut self, point: &Path, mounted: &Mounted) -> Done {
        match self.system.mounted_below(mounted) {
            Ok(below) if below.is_empty() => Ok(()),
            Ok(below) => {
                let below: Vec<String> =
                    below.iter().map(|mounted| mounted.point.display().to_string()).collect();
                self.failed(format!(
                    "{} cannot be unmounted: something else is mounted below it, on {}.",
                    point.display(),
                    below.join(", ")
                ))
            }
            Err(why) => self.failed(format!("{}: {why}", point.display())),
        }
    }

    /// Tries once. It is unmounted if it is not there any more, also if another program has unmounted it.
    fn unmounted(&mut self, point: &Path, mounted: &Mounted, how: Unmount) -> bool {
        match self.system.mounted_at(point) {
            // What the command says counts less than what is so.
            Ok(Some(now)) if now.id == mounted.id => drop(self.system.unmount(mounted, how)),
            // Somebody else's that was mounted over it meanwhile would go instead.
            Ok(_) => {}
            Err(_) => return false,
        }
        let number = mounted.device.unwrap_or_default();
        let there = |others: Vec<Mounted>| others.iter().any(|other| other.id == mounted.id);
        let on_top = matches!(self.system.mounted_at(point), Ok(now) if now.as_ref().is_none_or(|now| now.id != mounted.id));
        on_top && self.system.mounts_of(number).is_ok_and(|others| !there(others))
    }

    fn signal(&mut self, point: &Path, mounted: &Mounted, signal: Signal) {
        let name = match signal {
            Signal::Term => "SIGTERM",
            Signal::Kill => "SIGKILL",
        };
        match self.system.signal(mounted, signal) {
            Ok(processes) if processes.is_empty() => {}
            Ok(processes) => {
                let processes: Vec<String> = processes.iter().map(u32::to_string).collect();
                self.warn(format!(
                    "Sent {name} to those that use {}: {}.",
                    point.display(),
                    processes.join(" ")
                ));
            }
            Err(why) => self.warn(format!("Who uses {} is not known: {why}", point.display())),
        }
    }
}
