//! Connections to other nodes, made for the workers of primaries: a worker without privileges, and in a sandbox,
//! could not.

use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use hast_engine::Side;
use hast_net::address::{Address, Endpoint};
use socket2::{Domain, SockAddr, Socket, Type};

use super::Supervisor;
use super::resource::ResourceId;
use crate::ipc::ToWorker;
use crate::watch::Watched;

/// Requests of one worker at a time; it never has more than two.
const REQUESTS_MAX: usize = 8;

/// A connection that is being made.
#[derive(Debug)]
pub(super) struct Connecting {
    resource: ResourceId,
    side: Side,
    /// The worker's number for it.
    request: u32,
    deadline: Instant,
    remote: Lookup,
    source: Option<Lookup>,
    /// Absent while names are being looked up.
    socket: Option<Watched<Socket>>,
}

/// An address, and what is known of where it leads.
#[derive(Debug)]
struct Lookup {
    address: Address,
    /// Absent until the name service has answered.
    found: Option<Vec<SocketAddr>>,
}

impl Lookup {
    fn new(address: &Address) -> Lookup {
        let found = match address.endpoint() {
            Endpoint::Unix(_) => Some(Vec::new()),
            Endpoint::Tcp { .. } => address.literal().map(|address| vec![address]),
        };
        Lookup { address: address.clone(), found }
    }
}

impl Connecting {
    /// When it is given up.
    pub(super) fn deadline(&self) -> Instant {
        self.deadline
    }

    fn lookups(&mut self) -> impl Iterator<Item = &mut Lookup> {
        std::iter::once(&mut self.remote).chain(&mut self.source)
    }

    /// Where to connect to and from, once both are known.
    fn ends(&self) -> Option<Result<(SockAddr, Option<SocketAddr>), io::Error>> {
        let found = self.remote.found.as_ref()?;
        let source = match &self.source {
            None => None,
            Some(lookup) => Some(lookup.found.as_ref()?),
        };
        if let Some(path) = self.remote.address.unix_path() {
            return Some(SockAddr::unix(path).map(|address| (address, None)));
        }
        Some(match choose(found, source.map(Vec::as_slice)) {
            Some((remote, source)) => Ok((SockAddr::from(remote), source)),
            None => Err(io::Error::new(
                io::ErrorKind::NotFound,
                "remote and source have no address family in common",
            )),
        })
    }
}

/// The first address of the remote node, and the first one of ours that can reach it.
fn choose(remote: &[SocketAddr], source: Option<&[SocketAddr]>) -> Option<(SocketAddr, Option<SocketAddr>)> {
    let Some(source) = source.filter(|source| !source.is_empty()) else {
        return remote.first().map(|remote| (*remote, None));
    };
    remote.iter().find_map(|remote| {
        let ours = source.iter().find(|source| source.is_ipv4() == remote.is_ipv4())?;
        Some((*remote, Some(*ours)))
    })
}

impl Supervisor {
    /// A worker wants a connection.
    pub(super) fn connect(&mut self, index: usize, side: Side, request: u32, now: Instant) {
        let Some(resource) = self.resources.get(index) else { return };
        let resource_id = resource.id;
        let Some(remote) = &resource.config.remote else {
            self.connect_failed(index, side, request, "There is no remote node to connect to".to_owned());
            return;
        };
        if self.connects.values().filter(|other| other.resource == resource_id).count() >= REQUESTS_MAX {
            self.connect_failed(index, side, request, "Too many connections at once".to_owned());
            return;
        }
        let mut connecting = Connecting {
            resource: resource_id,
            side,
            request,
            deadline: now + Duration::from_secs(resource.config.timeout.into()),
            remote: Lookup::new(remote),
            source: resource.config.source.as_ref().map(Lookup::new),
            socket: None,
        };
        for lookup in connecting.lookups().filter(|lookup| lookup.found.is_none()) {
            self.jobs.resolve(&lookup.address);
        }
        let key = self.new_key();
        self.connects.insert(key, connecting);
        self.begin_connect(key);
    }

    /// A worker does not want a connection any more; without a number, none at all.
    pub(super) fn cancel_connect(&mut self, index: usize, request: Option<u32>) {
        let Some(resource) = self.resources.get(index) else { return };
        let id = resource.id;
        self.connects.retain(|_, c| c.resource != id || request.is_some_and(|request| c.request != request));
    }

    /// The name service has answered about an address.
    pub(super) fn connect_resolved(
        &mut self,
        address: &Address,
        result: &Result<Vec<SocketAddr>, io::Error>,
    ) {
        let keys: Vec<usize> = self.connects.keys().copied().collect();
        for key in keys {
            let Some(connecting) = self.connects.get_mut(&key) else { continue };
            let mut waits = false;
            for lookup in connecting.lookups().filter(|l| l.found.is_none() && l.address == *address) {
                waits = true;
                if let Ok(found) = result {
                    lookup.found = Some(found.clone());
                }
            }
            match result {
                Ok(_) if waits => self.begin_connect(key),
                Err(error) if waits => {
                    let why = format!("unable to resolve {address}: {}", hast_log::error_text(error));
                    self.end_connect(key, Err(io::Error::new(error.kind(), why)));
                }
                _ => {}
            }
        }
    }

    /// Something has become of a connection.
    pub(super) fn connect_ready(&mut self, key: usize) {
        let Some(connecting) = self.connects.get_mut(&key) else { return };
        let Some(socket) = connecting.socket.as_ref().and_then(Watched::get) else { return };
        let result = match socket.take_error() {
            Ok(None) => Ok(()),
            Ok(Some(error)) | Err(error) => Err(error),
        };
        self.end_connect(key, result);
    }

    /// Gives up connections whose time is over.
    pub(super) fn expire_connects(&mut self, now: Instant) {
        let late: Vec<usize> =
            self.connects.iter().filter(|(_, c)| c.deadline <= now).map(|(key, _)| *key).collect();
        for key in late {
            self.end_connect(key, Err(io::Error::from_raw_os_error(libc::ETIMEDOUT)));
        }
    }

    /// Connects as soon as it is known where to.
    fn begin_connect(&mut self, key: usize) {
        let Some(connecting) = self.connects.get_mut(&key) else { return };
        let Some(ends) = connecting.ends() else { return };
        let begun = ends.and_then(|(remote, source)| begin(&remote, source)).and_then(|(socket, done)| {
            connecting.socket = Some(Watched::new(&self.poller, key, socket, false, !done)?);
            Ok(done)
        });
        match begun {
            Ok(true) => self.end_connect(key, Ok(())),
            Ok(false) => {}
            Err(error) => self.end_connect(key, Err(error)),
        }
    }

    fn end_connect(&mut self, key: usize, result: io::Result<()>) {
        let Some(connecting) = self.connects.remove(&key) else { return };
        let Connecting { resource, side, request, socket, remote, .. } = connecting;
        let Some(index) = self.resources.iter().position(|other| other.id == resource) else { return };
        let socket = result.and_then(|()| {
            socket.and_then(Watched::into_inner).ok_or_else(|| io::Error::other("the connection is gone"))
        });
        match socket {
            Ok(socket) => {
                let message = ToWorker::Connected { side, id: request, socket: socket.into() };
                self.tell_worker(index, message);
            }
            Err(error) => {
                let (remote, error) = (remote.address, hast_log::error_text(&error));
                self.connect_failed(index, side, request, format!("Unable to connect to {remote}: {error}"));
            }
        }
    }

    fn connect_failed(&mut self, index: usize, side: Side, id: u32, error: String) {
        self.tell_worker(index, ToWorker::ConnectFailed { side, id, error });
    }

    /// Sends to a worker if there is one. Its end is noticed elsewhere.
    pub(super) fn tell_worker(&mut self, index: usize, message: ToWorker) {
        let Some(resource) = self.resources.get_mut(index) else { return };
        let scope = resource.scope();
        if let Some(worker) = &mut resource.worker
            && let Err(error) = worker.send(message)
        {
            log::debug!("Worker process {} does not listen: {}.", worker.pid(), hast_log::error_text(&error));
        }
        drop(scope);
    }
}

/// Begins a connection; true if it is there at once.
fn begin(remote: &SockAddr, source: Option<SocketAddr>) -> io::Result<(Socket, bool)> {
    let socket = Socket::new(Domain::from(i32::from(remote.family())), Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    if !remote.is_unix() {
        socket.set_tcp_nodelay(true)?;
    }
    if let Some(source) = source {
        socket.set_reuse_address(source.port() != 0)?;
        socket.bind(&SockAddr::from(source)).map_err(|error| {
            let (source, text) = (source.ip(), hast_log::error_text(&error));
            io::Error::new(error.kind(), format!("unable to use the source address {source}: {text}"))
        })?;
    }
    match socket.connect(remote) {
        Ok(()) => Ok((socket, true)),
        Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => Ok((socket, false)),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_remote_address_that_ours_can_reach() {
        let addresses = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect::<Vec<_>>();
        let remote = addresses(&["[2001:db8::2]:8457", "10.9.0.2:8457"]);
        let v4 = addresses(&["10.9.0.1:0"]);
        assert_eq!(choose(&remote, None), Some((remote[0], None)));
        assert_eq!(choose(&remote, Some(&v4)), Some((remote[1], Some(v4[0]))));
        assert_eq!(choose(&remote[..1], Some(&v4)), None);
        assert_eq!(choose(&[], None), None);
    }
}
