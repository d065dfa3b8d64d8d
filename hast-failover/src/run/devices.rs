//! The device of a resource: hastd's own, GEOM Gate's, or one that is attached to the export. Never is a device detached that
//! somebody uses, unless the node is abandoned.

use std::path::PathBuf;
use std::time::Duration;

use crate::config::{Attach, Content};
use crate::system::{Platform, System};

use super::{Done, Failed, Run, Undo};

/// How long hastd may take for a device that it may make or not.
const SOON: Duration = Duration::from_secs(5);

/// The device of a resource, as it is now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Device {
    pub(super) resource: String,
    pub(super) provider: String,
    pub(super) path: PathBuf,
    pub(super) number: u64,
}

impl<S: System> Run<'_, S> {
    /// The name of the device; the resource's if hastd does not answer, which is the usual one.
    pub(super) fn provider(&mut self, resource: &str) -> String {
        let known = self.system.ask(resource).map(|known| known.provider);
        known.filter(|provider| !provider.is_empty()).unwrap_or_else(|| resource.to_owned())
    }

    /// The devices of a resource: what was attached, and what is there under its name.
    fn devices_of(&mut self, resource: &str) -> Vec<Device> {
        let provider = self.provider(resource);
        let device =
            |path, number| Device { resource: resource.to_owned(), provider: provider.clone(), path, number };
        let mut found = Vec::new();
        if let Some(attached) = self.system.attached(resource)
            && let Some(number) = attached.number
        {
            found.push(device(attached.device, number));
        }
        if let Some(node) = self.system.node(&provider)
            && node.foreign.is_none()
            && let Some(number) = node.number
            && found.iter().all(|device| device.number != number)
        {
            found.push(device(node.path, number));
        }
        found
    }

    /// All devices of the group.
    pub(super) fn devices(&mut self) -> Vec<Device> {
        let resources = self.group.resources.clone();
        resources.iter().flat_map(|resource| self.devices_of(resource)).collect()
    }

    /// The device of the file system that the group has mounted, whatever its name leads to by now.
    pub(super) fn former(&mut self) -> Option<Device> {
        let resource = self.group.resources.first()?.clone();
        let (id, number) = self.system.remembered()?;
        let number = number?;
        // Once it is unmounted the number may be anybody's.
        let mounts = self.system.mounts_of(number).ok()?;
        let mounted = mounts.into_iter().find(|mounted| mounted.id == id)?;
        Some(Device {
            provider: self.provider(&resource),
            resource,
            path: PathBuf::from(mounted.source),
            number,
        })
    }

    /// Where the device is that a file system is mounted from.
    pub(super) fn first_device(&mut self) -> Result<PathBuf, Failed> {
        let resource = self.group.resources.first().cloned().unwrap_or_default();
        let provider = self.provider(&resource);
        let path = self.group.device_dir.join(&provider);
        let Some(node) = self.system.node(&provider) else {
            return self.failed(format!("{} is not there.", path.display())).map(|()| path);
        };
        if let Some(foreign) = node.foreign {
            return self.foreign(&resource, &provider, &foreign).map(|()| path);
        }
        if node.number.is_none() {
            return self
                .failed(format!("{} is no device that can be mounted.", path.display()))
                .map(|()| path);
        }
        Ok(path)
    }

    fn foreign(&mut self, resource: &str, provider: &str, foreign: &str) -> Done {
        let path = self.group.device_dir.join(provider);
        self.failed(format!("{} leads to {foreign}, which is not {resource}'s device.", path.display()))
    }

    /// Makes sure that there is one.
    pub(super) fn provide_device(&mut self, resource: &str) -> Done {
        let provider = self.system.ask(resource).map(|known| known.provider).unwrap_or_default();
        if provider.is_empty() || provider.starts_with('/') || provider.split('/').any(|part| part == "..") {
            return self.failed(format!("hastd does not say which device {resource} has."));
        }
        let attach = self.group.attach;
        let limit = self.group.device_timeout;
        if self.system.platform() != Platform::Linux || attach == Attach::Hastd {
            if self.wait_until(limit, |run| run.system.node(&provider).is_some()) {
                return Ok(());
            }
            let path = self.group.device_dir.join(&provider);
            return self.too_late(format!("{} is not there after {} s.", path.display(), limit.as_secs()));
        }
        let attached = self.system.attached(resource);
        // hastd answers before it has made its device.
        if attach == Attach::Auto && attached.is_none() && self.system.hastd_makes_devices() {
            self.wait_until(SOON.min(limit), |run| run.system.node(&provider).is_some());
        }
        if attach == Attach::None {
            return Ok(());
        }
        if attached.is_none()
            && let Some(node) = self.system.node(&provider)
        {
            return match node.foreign {
                None => Ok(()),
                Some(foreign) => self.foreign(resource, &provider, &foreign),
            };
        }
        if let Some(attached) = attached {
            if attached.number.is_some() && self.system.answers(resource) {
                self.note(format!("{resource} is attached already as {}.", attached.device.display()));
                return Ok(());
            }
            self.device_is_used(resource)?;
            self.detach(resource, true)?;
        }
        self.attach(resource, &provider)
    }

    /// A file system or a pool loses what it had in memory when its device fails for good.
    fn needs_lasting_device(&self) -> bool {
        self.group.content != Content::Nothing && !self.manner.force
    }

    /// nbd-client does not connect again when hastd's worker has died and another one is there.
    pub(super) fn device_will_last(&mut self) -> Done {
        let by_client = self.system.platform() == Platform::Linux && self.group.attach == Attach::Nbd;
        if !by_client || !self.needs_lasting_device() {
            return Ok(());
        }
        let resources = self.group.resources.clone();
        if resources.iter().all(|resource| self.system.attached(resource).is_some()) {
            return Ok(());
        }
        self.failed(
            "attach = nbd: nbd-client's device fails for good when hastd's worker dies, and what is mounted from it with it. \
             Let hastd make the device (attach = hastd; 'device nbd' in hast.conf), or use attach = fuse; -f does it all \
             the same.",
        )
    }

    fn attach(&mut self, resource: &str, provider: &str) -> Done {
        self.step(format!("{resource}: attaching its export."))?;
        let limit = self.group.device_timeout;
        let mut missing = String::new();
        let there = self.wait_until(limit, |run| match run.system.export(provider) {
            Ok(()) => true,
            Err(why) => {
                missing = why;
                false
            }
        });
        if !there {
            return self.too_late(format!("{missing} after {} s.", limit.as_secs()));
        }
        self.undo.push(Undo::Device(resource.to_owned()));
        let lasting = self.needs_lasting_device();
        match self.system.attach(resource, provider, lasting) {
            Ok(device) => {
                self.note(format!("{resource}: the export is {}.", device.display()));
                Ok(())
            }
            Err(why) => self.failed(format!("{resource}: no device: {why}")),
        }
    }

    /// What is wrong with the device of a resource, if it does not work.
    pub(super) fn device_is_missing(&mut self, resource: &str) -> Option<String> {
        if self.system.platform() == Platform::Linux && self.group.attach == Attach::None {
            return None;
        }
        if let Some(attached) = self.system.attached(resource) {
            let works = attached.number.is_some() && self.system.answers(resource);
            return (!works).then(|| format!("{resource}: {} does not answer", attached.device.display()));
        }
        let provider = self.provider(resource);
        let path = self.group.device_dir.join(&provider);
        self.system.node(&provider).is_none().then(|| format!("{resource}: {} is not there", path.display()))
    }

    /// Fails, and says who it is, if anybody uses the device of a resource and does not let go within the time that
    /// unmounting has: a program that looks at new devices may have it open for a moment.
    pub(super) fn device_is_used(&mut self, resource: &str) -> Done {
        if self.used.iter().any(|used| used == resource) {
            return Err(Failed); // as has been told
        }
        let mut devices = self.devices_of(resource);
        devices.extend(self.former().filter(|former| former.resource == resource));
        for device in devices {
            let mut users = Ok(Vec::new());
            let limit = self.group.unmount_timeout;
            let free = self.insist(limit, |run| {
                users = run.system.users(&device.provider, device.number);
                users.as_ref().is_ok_and(Vec::is_empty)
            });
            if free {
                continue;
            }
            self.used.push(resource.to_owned());
            let path = device.path.display();
            return match users {
                Ok(users) => self.failed(format!("{resource}: {path} is still used: {}.", users.join("; "))),
                Err(why) => self.failed(format!("{resource}: who uses {path} is not known: {why}")),
            };
        }
        Ok(())
    }

    /// Detaches what was attached, unless somebody uses it.
    pub(super) fn give_back(&mut self, resource: &str) -> Done {
        if self.system.attached(resource).is_none() {
            return Ok(());
        }
        if !self.manner.abandon {
            self.device_is_used(resource)?;
        }
        self.detach(resource, false)
    }

    pub(super) fn detach(&mut self, resource: &str, cut: bool) -> Done {
        let Some(attached) = self.system.attached(resource) else { return Ok(()) };
        let device = attached.device.display();
        match self.system.detach(resource, cut) {
            Ok(()) => {
                self.note(format!("{resource}: detached from {device}."));
                Ok(())
            }
            Err(why) => self.failed(format!("{resource}: {device} is not detached: {why}")),
        }
    }
}
