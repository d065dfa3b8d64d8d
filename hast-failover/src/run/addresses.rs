//! The addresses of a group: the last things that come, and the first that go.

use crate::address::Address;
use crate::system::{Ran, System, Way};

use super::{Done, Run, Undo};

impl<S: System> Run<'_, S> {
    pub(super) fn add_address(&mut self, address: &Address) -> Done {
        match self.system.has_address(address) {
            Ok(true) => {
                self.note(format!("{address} is here already."));
                return self.announce(address);
            }
            Ok(false) => {}
            Err(why) => return self.failed(format!("{address}: {why}")),
        }
        self.step(format!("Adding {address}."))?;
        self.undo.push(Undo::Address(address.clone()));
        let ran = self.system.address(address, Way::Up);
        if ran != Ran::Well && self.system.has_address(address) != Ok(true) {
            return self.conclude(&format!("address {address}"), &ran);
        }
        self.announce(address)
    }

    /// A failure is no reason to give up: the other hosts of the network find out for themselves, but later.
    fn announce(&mut self, address: &Address) -> Done {
        if let Err(why) = self.system.announce(address) {
            self.warn(format!("{address}: the network is not told of it: {why}"));
        }
        Ok(())
    }

    pub(super) fn remove_address(&mut self, address: &Address) -> Done {
        if self.system.has_address(address) == Ok(false) {
            return Ok(());
        }
        self.note(format!("Removing {address}."));
        let ran = self.system.address(address, Way::Down);
        if self.system.has_address(address) == Ok(false) {
            return Ok(());
        }
        match ran {
            Ran::Well => self.failed(format!("address {address}: it is still there.")),
            ran => self.conclude(&format!("address {address}"), &ran),
        }
    }
}
