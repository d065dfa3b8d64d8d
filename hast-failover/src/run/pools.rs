//! The ZFS pool of a group. One of the same name that lies on other devices is somebody else's.

use crate::system::{Pool, Ran, Signal, System};

use super::{Done, Run, Undo};

impl<S: System> Run<'_, S> {
    /// The pool, if it is imported; an error if it is somebody else's, or nobody knows.
    pub(super) fn own_pool(&mut self, name: &str) -> Result<Option<Pool>, String> {
        let Some(pool) = self.system.pool(name)? else { return Ok(None) };
        let ours = self.devices();
        let is_ours = |number: &u64| ours.iter().any(|device| device.number == *number);
        // Of a pool whose devices have gone none is known, and one that has none of ours is not ours.
        if pool.devices.is_empty() || pool.devices.iter().any(is_ours) {
            return Ok(Some(pool));
        }
        Err(format!("a pool '{name}' that lies on other devices is imported"))
    }

    pub(super) fn pool_is_no_strangers(&mut self, name: &str) -> Done {
        match self.own_pool(name) {
            Ok(_) => Ok(()),
            Err(why) => self.failed(format!("{why}; nothing is changed.")),
        }
    }

    pub(super) fn import(&mut self, name: &str) -> Done {
        match self.own_pool(name) {
            Ok(None) => {}
            Ok(Some(_)) => {
                self.note(format!("{name} is imported already."));
                return Ok(());
            }
            Err(why) => return self.failed(format!("{why}.")),
        }
        self.step(format!("Importing {name}."))?;
        self.undo.push(Undo::Content);
        let ran = self.system.import(name);
        self.conclude(&format!("zpool import {name}"), &ran)
    }

    /// Politely, then after SIGTERM, then by force after SIGKILL.
    pub(super) fn export(&mut self, name: &str) -> Done {
        match self.own_pool(name) {
            Ok(None) => return Ok(()),
            Ok(Some(_)) => {}
            // Somebody else's is left alone; one that nobody knows anything of is not exported.
            Err(why) => {
                self.warn(format!("{why}; it is left alone."));
                return if self.system.pool(name).is_ok() { Ok(()) } else { self.failed(why) };
            }
        }
        self.note(format!("Exporting {name}."));
        let stages = [(None, false), (Some(Signal::Term), false), (Some(Signal::Kill), true)];
        for (signal, force) in stages {
            if let Some(signal) = signal {
                for mounted in self.system.mounted_from_pool(name) {
                    // A process that stays gets another signal in the next stage.
                    let _ = self.system.signal(&mounted, signal);
                }
            }
            // Told at the end, if it does not succeed at all.
            let _: Ran = self.system.export_pool(name, force);
            if self.system.pool(name) == Ok(None) {
                return Ok(());
            }
        }
        self.failed(format!("{name} cannot be exported."))
    }
}
