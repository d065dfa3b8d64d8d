//! Other nodes that connect: accepted, recognised, and led through the handshake's first two steps, none of
//! them in anybody's way (spec/wire.md, Handshake).
//!
//! The decisions are in [`super::handshake`]. What comes after the second step is the worker's.

use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use hast_net::address::Address;
use hast_net::buffer::Pool;
use hast_net::control::Divergence;
use hast_net::frame::{self, Frame, Limits, Receiver, VERSION};
use hast_net::handshake::{
    Extensions, FirstAnswer, FirstHello, HandshakeError, Hello, SecondHello, TOKEN_SIZE, Token,
};
use socket2::Socket;

use super::Supervisor;
use super::handshake::{self, Admitted, Match, Origin, Standing};
use super::listener::{Listener, local_name};
use super::resource::{Complete, HalfOpen, Pending};
use crate::watch::Watched;

/// Connections that have not become part of a pair, at a time.
const PEERS_MAX: usize = 128;
/// How long a connection may take to say what it wants, and to take a refusal.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long a first connection waits for the second one, at least.
const HALF_OPEN_MIN: Duration = Duration::from_secs(20);
/// Headers only: no first frame has a payload.
const LIMITS: Limits = Limits { header: Limits::PEER.header, payload: 0 };

/// A listening socket for other nodes.
#[derive(Debug)]
pub(super) struct PeerListener {
    pub(super) address: Address,
    pub(super) listener: Watched<Listener>,
    /// When to accept again after the system had no descriptors left.
    pub(super) resume: Option<Instant>,
}

/// A connection from another node, or from a stranger.
#[derive(Debug)]
pub(super) struct Peer {
    socket: Watched<Socket>,
    origin: Origin,
    /// As it is logged: `tcp://10.9.0.2:61000`.
    name: String,
    state: State,
    deadline: Instant,
    /// Host names that were looked up for this connection; `None` until the answer is there.
    lookups: Vec<(Address, Option<Vec<SocketAddr>>)>,
}

#[derive(Debug)]
enum State {
    /// Until it is known whether the address is anybody's. Nothing is read.
    Unknown,
    /// Until the header is complete.
    Greeting(Receiver),
    /// Until it is known whether the address is that of the resource's other node.
    Checking(Hello),
    /// Until the refusal is sent.
    Refusing(Vec<u8>),
}

impl Peer {
    /// When it is given up.
    pub(super) fn deadline(&self) -> Instant {
        self.deadline
    }

    fn comes_from(&self, remote: Option<&Address>) -> Match {
        handshake::comes_from(self.origin, remote, |address| {
            let found = self.lookups.iter().find(|(asked, _)| asked == address);
            found.and_then(|(_, answer)| answer.as_deref())
        })
    }

    /// Reads the header. An error: what the log says about the end of the connection.
    fn read(&mut self) -> Result<Option<Frame>, String> {
        let (State::Greeting(receiver), Some(mut socket)) = (&mut self.state, self.socket.get()) else {
            return Ok(None);
        };
        loop {
            let length = match socket.read(receiver.space()) {
                Ok(0) => return Err("the connection was closed".to_owned()),
                Ok(length) => length,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(hast_log::error_text(&error)),
            };
            receiver.advance(length).map_err(|error| error.to_string())?;
            if let Some(frame) = receiver.next_frame() {
                // A primary says nothing more before it is answered.
                let alone = receiver.is_idle() && receiver.next_frame().is_none();
                return if alone { Ok(Some(frame)) } else { Err("more than one header".to_owned()) };
            }
        }
    }
}

impl Supervisor {
    /// Connections are waiting at a listening socket.
    pub(super) fn accept_peers(&mut self, at: usize, now: Instant) {
        for _ in 0..super::ACCEPTS_MAX {
            let Some(listening) = self.listeners.get_mut(at) else { return };
            let Some(listener) = listening.listener.get() else { return };
            let (socket, from) = match listener.accept() {
                Ok(accepted) => accepted,
                Err(error) => {
                    listening.resume = super::accept_pause(&error, now);
                    if listening.resume.is_some() {
                        let _ = listening.listener.want(false, false);
                    }
                    return;
                }
            };
            let place = listener.place();
            log::debug!("Accepting connection to {place}.");
            let (name, local) = match from {
                Some(from) => (format!("tcp://{from}"), local_name(&socket)),
                None => (place.clone(), place),
            };
            log::info!("Connection from {name} to {local}.");
            self.add_peer(socket, Origin::from(from), name, now);
        }
    }

    fn add_peer(&mut self, socket: Socket, origin: Origin, name: String, now: Instant) {
        let key = self.new_key();
        let socket = match Watched::new(&self.poller, key, socket, false, false) {
            Ok(socket) => socket,
            Err(error) => {
                log::error!("Unable to watch {name}: {}.", hast_log::error_text(&error));
                return;
            }
        };
        if self.peers.len() >= PEERS_MAX
            && let Some((_, oldest)) = self.peers.pop_first()
        {
            log::warn!("Too many connections at once: {} is closed.", oldest.name);
        }
        let deadline = now + PATIENCE;
        let mut peer = Peer { socket, origin, name, state: State::Unknown, deadline, lookups: Vec::new() };
        for resource in self.resources.iter().filter(|resource| !resource.leaving) {
            let remote = resource.config.remote.as_ref();
            if let (Match::Unknown, Some(remote)) = (peer.comes_from(remote), remote) {
                peer.lookups.push((remote.clone(), None));
            }
        }
        for (address, _) in &peer.lookups {
            self.jobs.resolve(address);
        }
        self.peers.insert(key, peer);
        self.recognise(key, now);
    }

    /// The name service has answered about an address.
    pub(super) fn peers_resolved(
        &mut self,
        address: &Address,
        result: &Result<Vec<SocketAddr>, io::Error>,
        now: Instant,
    ) {
        if let Err(error) = result {
            log::warn!("Unable to resolve {address}: {}.", hast_log::error_text(error));
        }
        let keys: Vec<usize> = self.peers.keys().copied().collect();
        for key in keys {
            let Some(peer) = self.peers.get_mut(&key) else { continue };
            for (_, answer) in peer.lookups.iter_mut().filter(|(asked, _)| asked == address) {
                *answer = Some(result.as_ref().map_or_else(|_| Vec::new(), Clone::clone));
            }
            match peer.state {
                State::Unknown => self.recognise(key, now),
                State::Checking(_) => self.check(key, now),
                State::Greeting(_) | State::Refusing(_) => {}
            }
        }
    }

    /// Lets a connection speak if its address is that of any resource's other node.
    fn recognise(&mut self, key: usize, now: Instant) {
        let Some(peer) = self.peers.get_mut(&key) else { return };
        let mut known = Match::No;
        for resource in self.resources.iter().filter(|resource| !resource.leaving) {
            match peer.comes_from(resource.config.remote.as_ref()) {
                Match::Yes => {
                    known = Match::Yes;
                    break;
                }
                Match::Unknown => known = Match::Unknown,
                Match::No => {}
            }
        }
        match known {
            Match::Unknown => {}
            Match::No => {
                log::error!("Client {} isn't known.", peer.name);
                self.peers.remove(&key);
            }
            Match::Yes => {
                peer.state = State::Greeting(Receiver::new(LIMITS, Pool::new()));
                if let Err(error) = peer.socket.want(true, false) {
                    log::error!("Unable to watch {}: {}.", peer.name, hast_log::error_text(&error));
                    self.peers.remove(&key);
                } else {
                    self.peer_ready(key, now);
                }
            }
        }
    }

    /// A connection can be read or written.
    pub(super) fn peer_ready(&mut self, key: usize, now: Instant) {
        let Some(peer) = self.peers.get_mut(&key) else { return };
        if let State::Refusing(unsent) = &mut peer.state {
            if peer.socket.get().is_none_or(|socket| send(socket, unsent).is_err()) || unsent.is_empty() {
                self.peers.remove(&key);
            }
            return;
        }
        let hello = match peer.read() {
            Ok(None) => return,
            Ok(Some(frame)) => understand(&frame, &peer.name),
            Err(why) => {
                log::error!("Unable to receive header from {}: {why}.", peer.name);
                None
            }
        };
        match hello {
            Some(hello) => {
                peer.state = State::Checking(hello);
                // Whatever it says now, it is too early.
                let _ = peer.socket.want(false, false);
                self.check(key, now);
            }
            None => drop(self.peers.remove(&key)),
        }
    }

    /// Decides about a header once it is known whether it comes from the right address.
    fn check(&mut self, key: usize, now: Instant) {
        let Some(State::Checking(hello)) = self.peers.get(&key).map(|peer| &peer.state) else { return };
        let index = self.resource_named(resource_name(hello));
        let Some(peer) = self.peers.get_mut(&key) else { return };
        let State::Checking(hello) = &peer.state else { return };
        let resource = index.and_then(|index| self.resources.get(index));
        let mut standing = None;
        if let Some(resource) = resource {
            let remote = resource.config.remote.as_ref();
            let access = match (peer.comes_from(remote), remote) {
                (Match::Yes, _) => true,
                (Match::Unknown, Some(remote)) => {
                    let remote = remote.clone();
                    if !peer.lookups.iter().any(|(asked, _)| *asked == remote) {
                        self.jobs.resolve(&remote);
                        peer.lookups.push((remote, None));
                    }
                    return;
                }
                _ => false,
            };
            standing = Some(Standing { access, role: resource.role_for_peers(), token: resource.token() });
        }
        match handshake::admit(hello, standing) {
            Err(refused) => {
                let scope = resource.map(super::Resource::scope);
                refused.log(resource_name(hello), &peer.name);
                drop(scope);
                let name = peer.name.clone();
                if let Some(index) = index {
                    self.other_turned_away(index, refused, &name, now);
                }
                self.refuse(key, refused);
            }
            Ok(admitted) => {
                let (Some(index), Some(peer)) = (index, self.peers.remove(&key)) else { return };
                let Peer { socket, name, state, .. } = peer;
                match (admitted, state) {
                    (Admitted::First { version }, State::Checking(Hello::First(hello))) => {
                        self.first_step(index, socket, name, version, &hello, now);
                    }
                    (Admitted::Second, State::Checking(Hello::Second(hello))) => {
                        self.second_step(index, socket, &name, hello);
                    }
                    _ => {}
                }
            }
        }
    }

    fn refuse(&mut self, key: usize, refused: handshake::Refused) {
        let Some(peer) = self.peers.get_mut(&key) else { return };
        let refusal = refused.refusal().encode();
        // Cannot fail: our version, a short list.
        let bytes = frame::encode(VERSION, refusal.as_bytes()).unwrap_or_default();
        peer.state = State::Refusing(bytes);
        match peer.socket.want(false, true) {
            Ok(()) => self.peer_ready(key, Instant::now()),
            Err(_) => drop(self.peers.remove(&key)),
        }
    }

    /// A primary's first header: whatever was there before gives way to it.
    fn first_step(
        &mut self,
        index: usize,
        mut socket: Watched<Socket>,
        name: String,
        version: u8,
        hello: &FirstHello,
        now: Instant,
    ) {
        let Some(resource) = self.resources.get_mut(index) else { return };
        let _scope = resource.scope();
        log::debug!("Initial connection from {name}.");
        if hello.version > VERSION {
            log::info!(
                "Remote protocol version {} is not supported, falling back to version {VERSION}.",
                hello.version
            );
        }
        log::debug!("Negotiated protocol version {version}.");
        resource.pending = Pending::None;
        let bound = resource.stop_bound();
        if let Some(worker) = &mut resource.worker {
            log::debug!("Worker process exists (pid={}), stopping it.", worker.pid());
            worker.stop(now, bound);
        }
        let mut token: Token = [0; TOKEN_SIZE];
        if let Err(error) = getrandom::fill(&mut token) {
            log::error!("Unable to draw a token: {error}.");
            return;
        }
        // Only what both know, so that an original hears nothing of it.
        let ext = hello.ext.intersection(Extensions::ALL);
        if !ext.is_empty() {
            log::debug!("Extensions in use: {ext}.");
        }
        let answer = FirstAnswer { version, token, ext }.encode();
        let mut unsent = frame::encode(version, answer.as_bytes()).unwrap_or_default();
        let sent = match socket.get() {
            Some(stream) => send(stream, &mut unsent),
            None => Ok(()),
        };
        if let Err(error) = sent.and_then(|()| socket.want(true, !unsent.is_empty())) {
            log::error!("Unable to send response to {name}: {}.", hast_log::error_text(&error));
            return;
        }
        log::debug!("Incoming connection from {name} configured.");
        let wait = Duration::from_secs(resource.config.timeout.into()).max(HALF_OPEN_MIN);
        let deadline = now + wait;
        resource.pending =
            Pending::HalfOpen(HalfOpen { socket, unsent, token, version, ext, peer: name, deadline });
    }

    /// A primary's second header: the connection is complete, and the worker takes over.
    fn second_step(&mut self, index: usize, socket: Watched<Socket>, name: &str, hello: SecondHello) {
        let Some(resource) = self.resources.get_mut(index) else { return };
        let scope = resource.scope();
        // With this the token is gone.
        let Pending::HalfOpen(half) = std::mem::take(&mut resource.pending) else { return };
        log::debug!("Outgoing connection to {name} configured.");
        // What it says of the last attempt, which this node has turned away.
        resource.divergence =
            hello.parting.and_then(|parting| parting.divergence).map(Divergence::seen_from_there);
        if let (Some(out), Some(in_)) = (half.socket.into_inner(), socket.into_inner()) {
            let complete = Complete { out, in_, version: half.version, ext: half.ext, hello };
            resource.pending = Pending::Complete(Box::new(complete));
        }
        drop(scope);
        self.start_secondary(index);
    }

    /// A first connection that waits for its second one can be read or written.
    pub(super) fn half_open_ready(&mut self, index: usize) {
        let Some(resource) = self.resources.get_mut(index) else { return };
        let scope = resource.scope();
        let Pending::HalfOpen(half) = &mut resource.pending else { return };
        let Some(socket) = half.socket.get() else { return };
        let sent = send(socket, &mut half.unsent);
        let mut byte = [std::mem::MaybeUninit::uninit()];
        let why = match (sent, socket.peek(&mut byte)) {
            (Err(error), _) => hast_log::error_text(&error),
            (Ok(()), Err(error))
                if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) =>
            {
                match half.socket.want(true, !half.unsent.is_empty()) {
                    Ok(()) => return,
                    Err(error) => hast_log::error_text(&error),
                }
            }
            (Ok(()), Err(error)) => hast_log::error_text(&error),
            (Ok(()), Ok(0)) => "it was closed".to_owned(),
            (Ok(()), Ok(_)) => "it said more than it may".to_owned(),
        };
        log::debug!("Incoming connection from {} is given up: {why}.", half.peer);
        resource.pending = Pending::None;
        drop(scope);
    }

    /// Gives up connections whose time is over.
    pub(super) fn expire_peers(&mut self, now: Instant) {
        self.peers.retain(|_, peer| {
            let over = peer.deadline <= now;
            if over {
                let said = if matches!(peer.state, State::Refusing(_)) { "takes" } else { "sends" };
                log::error!("Client {} {said} nothing: closing the connection.", peer.name);
            }
            !over
        });
        for resource in &mut self.resources {
            if let Pending::HalfOpen(half) = &resource.pending
                && half.deadline <= now
            {
                let _scope = hast_log::scope(Some(&resource.config.name), Some(resource.role.as_str()));
                log::error!("No second connection from {} in time.", half.peer);
                resource.pending = Pending::None;
            }
        }
    }
}

fn resource_name(hello: &Hello) -> &str {
    match hello {
        Hello::First(first) => &first.resource,
        Hello::Second(second) => &second.resource,
    }
}

/// Reads a header, and logs what it says or what is wrong with it.
fn understand(frame: &Frame, name: &str) -> Option<Hello> {
    let list = match frame.list() {
        Ok(list) => list,
        Err(error) => {
            log::error!("Unable to receive header from {name}: {error}.");
            return None;
        }
    };
    match Hello::decode(&list) {
        Ok(hello) => {
            log::trace!("{name}: resource={}", resource_name(&hello));
            log::trace!("{name}: version={}", list.u8("version").unwrap_or(0));
            Some(hello)
        }
        Err(HandshakeError::Missing(field)) => {
            log::error!("No '{field}' field in the header received from {name}.");
            None
        }
        Err(HandshakeError::TokenSize(size)) => {
            log::error!("Received token of invalid size from {name} (expected {TOKEN_SIZE}, got {size}).");
            None
        }
        Err(error) => {
            log::error!("Bad header received from {name}: {error}.");
            None
        }
    }
}

/// Sends what the socket takes, and removes it from `unsent`.
fn send(mut socket: &Socket, unsent: &mut Vec<u8>) -> io::Result<()> {
    while !unsent.is_empty() {
        match socket.write(unsent) {
            Ok(length) => drop(unsent.drain(..length.min(unsent.len()))),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
