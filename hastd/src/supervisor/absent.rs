//! Addresses to listen on that this host does not have yet: a shared address, an interface that comes later. Each is
//! opened once it is there.

use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use hast_net::address::Address;

use super::Supervisor;
use super::listener::ListenError;

/// How often it is tried whether they have come.
const PAUSE: Duration = Duration::from_secs(3);

/// Where nobody listens yet.
#[derive(Debug, Default)]
pub(super) struct Absent {
    addresses: Vec<Address>,
    /// Absent while there is nothing to be tried.
    retry: Option<Instant>,
}

impl Absent {
    pub(super) fn new(addresses: Vec<Address>, now: Instant) -> Absent {
        let retry = (!addresses.is_empty()).then(|| now + PAUSE);
        Absent { addresses, retry }
    }

    /// When to try again.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.retry
    }

    fn has(&self, address: &Address) -> bool {
        self.addresses.contains(address)
    }
}

/// Says that an address is not there, and what will become of it.
pub(super) fn log(error: &ListenError) {
    log::warn!("{error} It is opened as soon as this host has it.");
}

impl Supervisor {
    /// Tries what is due. Names and zones are looked up first.
    pub(super) fn expire_absent(&mut self, now: Instant) {
        if self.absent.retry.is_none_or(|at| at > now) {
            return;
        }
        self.absent.retry = Some(now + PAUSE);
        for address in self.absent.addresses.clone() {
            match address.literal() {
                None if address.unix_path().is_none() => self.jobs.resolve(&address),
                literal => self.open_absent(&address, literal),
            }
        }
    }

    /// The name service has answered about an address.
    pub(super) fn absent_resolved(&mut self, address: &Address, result: &io::Result<Vec<SocketAddr>>) {
        if self.absent.has(address)
            && let Ok(found) = result
        {
            self.open_absent(address, found.first().copied());
        }
    }

    fn open_absent(&mut self, address: &Address, resolved: Option<SocketAddr>) {
        match self.open_listener(address, resolved) {
            Err(error) if error.is_not_there() => return,
            Err(error) => log::warn!("{error}"),
            Ok(()) => log::info!("Listening on address {address}."),
        }
        self.absent.addresses.retain(|absent| absent != address);
        if self.absent.addresses.is_empty() {
            self.absent.retry = None;
        }
    }
}
