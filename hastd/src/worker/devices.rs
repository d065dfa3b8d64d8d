//! A primary's device, whichever kinds of it there are: an NBD export, GEOM Gate's device, or both.
//!
//! A secondary has none, and everything here is nothing then.

use std::io;
use std::time::Duration;

use hast_engine::{Deletes, DiskResult, Op, RequestId};
use hast_ggate::DeviceError;
use hast_nbd::{Export, Question};
use hast_net::buffer::Pool;

use super::holes::Holes;
use super::start::Device;
use super::wait::Waiter;
use super::{gate, nbd};

/// The device.
#[derive(Default)]
pub(super) struct Devices {
    nbd: Option<nbd::Server>,
    gate: Option<gate::Server>,
}

impl Devices {
    /// Serves the device of the provider called `name`. NBD's sockets are watched under the first of `keys`
    /// and the keys from the second on. Of a secondary's connections nothing is used.
    pub(super) fn start(
        device: Device,
        holes: Option<Holes>,
        name: &str,
        waiter: &Waiter,
        keys: (usize, usize),
        pool: &Pool,
    ) -> io::Result<Devices> {
        let Device::Primary { nbd, gate, size, sector, deletes } = device else {
            return Ok(Devices::default());
        };
        if gate.is_none() {
            log::info!("Device {} created.", hast_ggate::device_name(name));
        }
        let gate = gate.map(|gate| gate::Server::start(gate, pool.clone(), waiter.waker())).transpose()?;
        let serve = |listener| {
            // The other node, which may come later, may refuse them: then they are answered at once.
            let trims = deletes == Deletes::LeaveZeros;
            let export = Export { trims, ..Export::new(name, size, sector) };
            nbd::Server::new(waiter.poller(), keys, listener, export, holes, pool.clone())
        };
        Ok(Devices { nbd: nbd.map(serve).transpose()?, gate })
    }

    /// Accepts NBD clients that wait.
    pub(super) fn accept(&mut self, now: Duration) {
        if let Some(nbd) = &mut self.nbd {
            nbd.accept(now);
        }
    }

    /// Takes what the NBD client under `key` has sent.
    pub(super) fn receive(&mut self, key: usize) {
        if let Some(nbd) = &mut self.nbd {
            nbd.receive(key);
        }
    }

    /// The next request for the engine.
    pub(super) fn next_request(&mut self) -> Option<(RequestId, Op)> {
        let request = self.gate.as_mut().and_then(gate::Server::next_request);
        request.or_else(|| self.nbd.as_mut().and_then(nbd::Server::next_request))
    }

    /// The next question of an NBD client what of a range is a hole.
    pub(super) fn next_question(&mut self) -> Option<(usize, Question)> {
        self.nbd.as_mut().and_then(nbd::Server::next_question)
    }

    /// Has such a question answered: by the file system if that is `right`, or else no hole is told of.
    pub(super) fn tell_holes(&mut self, client: usize, question: Question, right: bool) {
        if let Some(nbd) = &mut self.nbd {
            nbd.tell_holes(client, question, right);
        }
    }

    /// Passes the answers to such questions on that have come, if what they speak of is still `right`.
    pub(super) fn take_answers(&mut self, right: impl Fn(u64, u64) -> bool) {
        if let Some(nbd) = &mut self.nbd {
            nbd.take_answers(right);
        }
    }

    /// Requests that the engine has.
    pub(super) fn in_flight(&self) -> usize {
        let gate = self.gate.as_ref().map_or(0, gate::Server::in_flight);
        gate.saturating_add(self.nbd.as_ref().map_or(0, nbd::Server::in_flight))
    }

    /// Takes the end of a request.
    pub(super) fn complete(&mut self, id: RequestId, result: DiskResult) {
        if gate::Server::owns(id) {
            if let Some(gate) = &mut self.gate {
                gate.complete(id, result);
            }
        } else if let Some(nbd) = &mut self.nbd {
            nbd.complete(id, result);
        }
    }

    /// Lets the kernel read the local disk by itself, or not any more (L17). An NBD client has no way around
    /// this process.
    ///
    /// An error means that it may go on reading what is old: nothing may be acknowledged any more.
    pub(super) fn direct_reads(&mut self, allowed: bool) -> Result<(), DeviceError> {
        self.gate.as_mut().map_or(Ok(()), |gate| gate.direct_reads(allowed))
    }

    /// `direct-reads` of hast.conf was read again.
    ///
    /// An error means what it does there.
    pub(super) fn allow_direct_reads(&mut self, allowed: bool) -> Result<(), DeviceError> {
        self.gate.as_mut().map_or(Ok(()), |gate| gate.allow_direct_reads(allowed))
    }

    /// The processes that are connected to the NBD export; 0 for one that the system does not name.
    pub(super) fn clients(&self) -> Vec<u32> {
        self.nbd.as_ref().map_or_else(Vec::new, nbd::Server::processes)
    }

    /// Sends answers. True if that may have made room for further requests.
    pub(super) fn transmit(&mut self) -> bool {
        self.nbd.as_mut().is_some_and(nbd::Server::transmit)
    }

    /// Whether some client has not taken all of its answers yet.
    pub(super) fn has_unsent(&self) -> bool {
        self.nbd.as_ref().is_some_and(nbd::Server::has_unsent)
    }

    /// Tells the poller what is of interest.
    pub(super) fn watch(&mut self) {
        if let Some(nbd) = &mut self.nbd {
            nbd.watch();
        }
    }

    /// When [`Devices::check`] has something to do.
    pub(super) fn deadline(&self) -> Option<Duration> {
        self.nbd.as_ref().and_then(nbd::Server::deadline)
    }

    /// Does what is due. An error: the device cannot be served any longer.
    pub(super) fn check(&mut self, now: Duration) -> Result<(), DeviceError> {
        if let Some(nbd) = &mut self.nbd {
            nbd.check(now);
        }
        self.gate.as_mut().and_then(gate::Server::take_failure).map_or(Ok(()), Err)
    }

    /// Whether an NBD client has gone without taking leave since this was last asked.
    pub(super) fn take_lost(&mut self) -> bool {
        self.nbd.as_mut().is_some_and(nbd::Server::take_lost)
    }

    /// Takes nothing more from here on. What the engine has is finished and answered. What an NBD client asks for
    /// besides is refused if `refuse`, or else left to a successor.
    pub(super) fn stop(&mut self, refuse: bool) {
        if let Some(nbd) = &mut self.nbd {
            nbd.stop(refuse);
        }
        if let Some(gate) = &mut self.gate {
            gate.stop();
        }
    }

    /// Parts from what outlives a worker: it is left to a successor, or goes.
    pub(super) fn finish(&mut self, successor: bool) {
        if let Some(gate) = &mut self.gate {
            gate.finish(successor);
        }
    }
}
