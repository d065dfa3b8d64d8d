//! What a reload changes (spec conf.md, "Reload" and "Corners").
//!
//! Compares two configurations; carrying the changes out is the supervisor's, who also knows the
//! roles: what a change asks for depends on the role the resource has at that time.

use crate::config::{Config, Resource};
use hast_net::address::Address;
use std::path::PathBuf;

/// Compares the running configuration with a new one. `listening` is where sockets are open: an address that
/// could not be opened before is opened with the next reload, though neither file differs in it.
#[must_use]
pub fn diff(old: &Config, listening: &[Address], new: &Config) -> Changes {
    let moved = |old: &Address, new: &Address| old.endpoint() != new.endpoint();
    let only_in = |these: &[Address], those: &[Address]| -> Vec<Address> {
        these.iter().filter(|this| those.iter().all(|that| moved(this, that))).cloned().collect()
    };
    let mut changes = Changes {
        control: moved(&old.control, &new.control).then(|| new.control.clone()),
        pidfile: (old.pidfile != new.pidfile).then(|| new.pidfile.clone()),
        listen_closed: only_in(listening, &new.listen),
        listen_opened: only_in(&new.listen, listening),
        ..Changes::default()
    };
    for resource in &old.resources {
        if new.resource(&resource.name).is_none() {
            changes.removed.push(resource.clone());
        }
    }
    for resource in &new.resources {
        match old.resource(&resource.name) {
            None => changes.added.push(resource.clone()),
            Some(before) => {
                let changed = ChangedResource {
                    old: before.clone(),
                    new: resource.clone(),
                    nbd_moved: old.nbd_directory() != new.nbd_directory(),
                };
                if changed.old != changed.new || changed.nbd_moved {
                    changes.changed.push(changed);
                }
            }
        }
    }
    changes
}

/// The differences between two configurations of one node.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Changes {
    /// The control socket moves here.
    pub control: Option<Address>,
    /// The pidfile moves here (in the background and without `-P`).
    pub pidfile: Option<PathBuf>,
    /// Listen sockets to open, in the order of the new file, after those in `listen_closed` are
    /// closed: a wildcard address excludes its port's others. One that cannot be opened is only a
    /// warning unless none is left.
    pub listen_opened: Vec<Address>,
    /// Listen sockets to close, as they were opened. What is in neither list stays open.
    pub listen_closed: Vec<Address>,
    /// Resources that go to role init and disappear, in the order of the old file.
    pub removed: Vec<Resource>,
    /// Resources that appear in role init at the end of the list, in the order of the new file.
    pub added: Vec<Resource>,
    /// Resources of both files that differ, in the order of the new file.
    pub changed: Vec<ChangedResource>,
}

impl Changes {
    /// Nothing is to be done.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Changes::default()
    }
}

/// A resource that is in both files but not the same.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ChangedResource {
    /// As it runs.
    pub old: Resource,
    /// As it shall be.
    pub new: Resource,
    /// The directory of the NBD sockets is another one.
    pub nbd_moved: bool,
}

impl ChangedResource {
    /// What has to be done if the resource is in the role primary, or else in init or secondary.
    #[must_use]
    pub fn action(&self, primary: bool) -> Action {
        let ChangedResource { old, new, nbd_moved } = self;
        if !primary {
            // Only a primary has an NBD socket.
            return if old == new { Action::Nothing } else { Action::Restart };
        }
        let device = old.device != new.device;
        if old.localpath != new.localpath || old.provname != new.provname || device || *nbd_moved {
            return Action::Restart;
        }
        let leads = |address: &Option<Address>| address.as_ref().map(|a| a.endpoint().clone());
        let reconnect = leads(&old.remote) != leads(&new.remote) || leads(&old.source) != leads(&new.source);
        Action::Apply { reconnect }
    }
}

/// How a change of a resource is carried out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Action {
    /// Nothing that matters in this role has changed.
    Nothing,
    /// To init, back to its role, and to the end of the list.
    Restart,
    /// In the running worker, without touching the device.
    Apply {
        /// Remote or source lead elsewhere: close the connections and connect anew.
        reconnect: bool,
    },
}
