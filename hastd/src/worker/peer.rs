//! The two connections to the peer: frames in, messages out, neither ever waited for.
//!
//! Owns the sockets, what was received in part and what waits to be sent. Knows frames and payload stages,
//! not what a message means. A connection that breaks, sends nonsense or takes nothing for too long ends
//! both: the reason is kept until the reactor fetches it with [`Link::take_failure`].

use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use hast_engine::{Event, Side};
use hast_format::metadata::Role;
use hast_log::error_text;
use hast_net::buffer::{Buffer, Pool};
use hast_net::frame::{Frame, Limits, Receiver};
use hast_net::message::{Encoder, Message};
use hast_net::payload::{self, Stages};
use polling::Poller;
use socket2::{SockRef, Socket, TcpKeepalive};

use super::sandbox::{self, Purpose};
use super::sendqueue::{Piece, SendQueue};
use crate::watch::Watched;

/// Unsent bytes from which on no more work is taken in that would add to them.
const BUSY_BYTES: usize = 64 << 20;
/// Questions of TCP that may stay without an answer.
const KEEPALIVE_PROBES: u32 = 2;

/// How the link is run; the part of the resource's settings that concerns it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct LinkSettings {
    /// What is applied to payloads that are sent.
    pub(super) stages: Stages,
    /// How long a peer may take nothing of what waits for it.
    pub(super) timeout: Duration,
    /// How long its system may leave data unacknowledged, or say nothing at all.
    pub(super) peer_timeout: Duration,
    /// The peer's address as configured, for messages.
    pub(super) remote: String,
}

/// One value for each of the two connections.
#[derive(Default)]
struct Sided<T> {
    out: T,
    in_: T,
}

impl<T> Sided<T> {
    fn get(&self, side: Side) -> &T {
        match side {
            Side::Out => &self.out,
            Side::In => &self.in_,
        }
    }

    fn get_mut(&mut self, side: Side) -> &mut T {
        match side {
            Side::Out => &mut self.out,
            Side::In => &mut self.in_,
        }
    }
}

/// Both connections, as far as they exist, and the connects that were asked for.
pub(super) struct Link {
    poller: Arc<Poller>,
    keys: Sided<usize>,
    pool: Pool,
    role: Role,
    settings: LinkSettings,
    connections: Sided<Option<Connection>>,
    wanted: Sided<Option<u32>>,
    encoder: Encoder,
    last_id: u32,
    failure: Option<String>,
    /// The handshake is over: what comes now are replies, or nothing (a primary's view).
    established: bool,
}

impl Link {
    /// A link without connections, whose sockets will be watched under `keys` (Out, In).
    pub(super) fn new(
        poller: &Arc<Poller>,
        keys: (usize, usize),
        pool: Pool,
        role: Role,
        settings: LinkSettings,
    ) -> Link {
        Link {
            poller: Arc::clone(poller),
            keys: Sided { out: keys.0, in_: keys.1 },
            pool,
            role,
            settings,
            connections: Sided::default(),
            wanted: Sided::default(),
            encoder: Encoder::default(),
            last_id: 0,
            failure: None,
            established: false,
        }
    }

    /// Takes note of what the engine says has become of the connections.
    pub(super) fn note(&mut self, event: Event) {
        match event {
            Event::Connect => self.established = true,
            Event::Disconnect => self.established = false,
            Event::SyncStart | Event::SyncDone | Event::SyncIntr | Event::SplitBrain => {}
        }
    }

    /// Applies changed settings, to open connections too.
    pub(super) fn apply(&mut self, settings: LinkSettings) {
        self.settings = settings;
        for side in [Side::Out, Side::In] {
            let connection = self.connections.get(side).as_ref();
            if let Some(socket) = connection.and_then(|connection| connection.socket.get()) {
                watch_for_silence(socket, self.settings.peer_timeout);
            }
        }
    }

    /// Draws the number under which a connection for `side` is asked for. An answer with another number is
    /// stale from here on.
    pub(super) fn want(&mut self, side: Side) -> u32 {
        self.last_id = self.last_id.wrapping_add(1);
        *self.wanted.get_mut(side) = Some(self.last_id);
        self.last_id
    }

    /// Whether `id` is the connection that is waited for; it no longer is afterwards.
    pub(super) fn is_wanted(&mut self, side: Side, id: u32) -> bool {
        let wanted = self.wanted.get_mut(side);
        let found = *wanted == Some(id);
        if found {
            *wanted = None;
        }
        found
    }

    /// Takes a connected socket into use.
    pub(super) fn adopt(&mut self, side: Side, socket: OwnedFd) -> io::Result<()> {
        let socket = Socket::from(socket);
        socket.set_nonblocking(true)?;
        if is_tcp(&socket) {
            socket.set_tcp_nodelay(true)?;
        }
        watch_for_silence(&socket, self.settings.peer_timeout);
        sandbox::limit(socket.as_fd(), Purpose::Peer)?;
        let socket = Watched::new(&self.poller, *self.keys.get(side), socket, true, false)?;
        let receiver = Receiver::new(Limits::PEER, self.pool.clone());
        *self.connections.get_mut(side) = Some(Connection {
            socket,
            receiver,
            payload_limit: Limits::PEER.payload,
            unsent: SendQueue::default(),
            progress: Duration::ZERO,
            ended: false,
            garbage: None,
        });
        Ok(())
    }

    /// Drops both connections and whatever they had received or still to send. Returns the numbers of the
    /// connects that are no longer wanted.
    pub(super) fn close(&mut self) -> impl Iterator<Item = u32> + use<> {
        self.connections = Sided::default();
        self.failure = None;
        self.established = false;
        let wanted = std::mem::take(&mut self.wanted);
        [wanted.out, wanted.in_].into_iter().flatten()
    }

    /// Whether the connections have to be given up.
    pub(super) fn has_failed(&self) -> bool {
        self.failure.is_some()
    }

    /// Why the connections have to be given up, if they have; a sentence without its full stop.
    pub(super) fn take_failure(&mut self) -> Option<String> {
        self.failure.take()
    }

    /// Bounds what a payload on `side` may be long, on the wire and unpacked.
    pub(super) fn set_payload_limit(&mut self, side: Side, limit: u32) {
        if let Some(connection) = self.connections.get_mut(side)
            && connection.payload_limit != limit
        {
            connection.payload_limit = limit;
            connection.receiver.set_payload_limit(limit);
        }
    }

    /// Receives what is there, up to one buffer full. False: nothing more for now.
    pub(super) fn receive(&mut self, side: Side) -> bool {
        if self.failure.is_some() {
            return false;
        }
        let Some(connection) = self.connections.get_mut(side) else { return false };
        if connection.ended || connection.garbage.is_some() {
            return false;
        }
        let Some(mut socket) = connection.socket.get() else { return false };
        let error = match socket.read(connection.receiver.space()) {
            Ok(0) if self.role == Role::Secondary && side == Side::In => {
                // Nothing ever comes here. What the primary had asked before it hung up is still to be
                // read from the other connection, whose end is the end of both.
                connection.ended = true;
                return false;
            }
            Ok(0) => io::Error::from_raw_os_error(libc::ENOTCONN),
            Ok(n) => match connection.receiver.advance(n) {
                Ok(()) => return true,
                Err(error) => {
                    // What was complete before is still to be taken.
                    connection.garbage = Some(error.to_string());
                    return true;
                }
            },
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return false,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return true,
            Err(error) => error,
        };
        let part = if connection.receiver.is_idle() { "header" } else { "data" };
        self.fail_receiving(side, part, &error_text(&error));
        false
    }

    /// The next complete frame of `side`, its payload unpacked.
    pub(super) fn next_frame(&mut self, side: Side) -> Option<Frame> {
        if self.failure.is_some() {
            return None;
        }
        let connection = self.connections.get_mut(side).as_mut()?;
        let Some(mut frame) = connection.receiver.next_frame() else {
            if let Some(reason) = connection.garbage.take() {
                self.fail(side, &reason);
            }
            return None;
        };
        if self.role == Role::Secondary && side == Side::In {
            self.fail(side, "the primary sent something where only replies to it belong");
            return None;
        }
        match payload::decode(&mut frame, connection.payload_limit, &self.pool) {
            Ok(()) => Some(frame),
            Err(error) => {
                self.fail(side, &error.to_string());
                None
            }
        }
    }

    /// Queues a message. Without a connection it is dropped, as it would have been a moment later.
    pub(super) fn send(&mut self, now: Duration, side: Side, version: u8, message: &Message) {
        if self.failure.is_some() {
            return;
        }
        let Some(connection) = self.connections.get_mut(side) else { return };
        let mut header = connection.unsent.spare();
        match self.encoder.encode(message, version, self.settings.stages, &mut header) {
            Ok(data) => connection.push(now, header, data),
            Err(error) => self.fail(side, &error.to_string()),
        }
    }

    /// Sends what waits, as far as the sockets take it.
    pub(super) fn transmit(&mut self, now: Duration) {
        for side in [Side::Out, Side::In] {
            if self.failure.is_some() {
                return;
            }
            let Some(connection) = self.connections.get_mut(side) else { continue };
            if let Err(error) = connection.transmit(now) {
                self.fail_sending(&error_text(&error));
            }
        }
    }

    /// When a peer that takes nothing will have taken nothing for too long.
    pub(super) fn deadline(&self) -> Option<Duration> {
        [Side::Out, Side::In]
            .into_iter()
            .filter_map(|side| self.connections.get(side).as_ref())
            .filter(|connection| !connection.unsent.is_empty())
            .map(|connection| connection.progress.saturating_add(self.settings.timeout))
            .min()
    }

    /// Gives up on a peer whose deadline has passed.
    pub(super) fn check(&mut self, now: Duration) {
        if self.failure.is_none() && self.deadline().is_some_and(|deadline| deadline <= now) {
            self.fail_sending(&error_text(&io::Error::from_raw_os_error(libc::ETIMEDOUT)));
        }
    }

    /// Tells the poller what is of interest: `receive` says on which sides (Out, In).
    pub(super) fn watch(&mut self, receive: (bool, bool)) {
        for (side, receive) in [(Side::Out, receive.0), (Side::In, receive.1)] {
            let Some(connection) = self.connections.get_mut(side) else { continue };
            let read = receive && !connection.ended;
            let write = !connection.unsent.is_empty();
            if let Err(error) = connection.socket.want(read, write) {
                self.fail(side, &error_text(&error));
            }
        }
    }

    /// Whether so much waits to be sent that work which adds to it should wait where it comes from.
    pub(super) fn is_busy(&self) -> bool {
        self.unsent_bytes() >= BUSY_BYTES
    }

    /// Bytes that wait to be sent.
    pub(super) fn unsent_bytes(&self) -> usize {
        [&self.connections.out, &self.connections.in_]
            .into_iter()
            .flatten()
            .map(|connection| connection.unsent.bytes())
            .sum()
    }

    fn fail(&mut self, side: Side, reason: &str) {
        let what = match (self.role, side) {
            (Role::Secondary, _) => "Unable to receive request",
            (_, Side::Out) if !self.established => "Unable to receive handshake answer",
            (_, Side::Out | Side::In) => "Unable to receive reply",
        };
        self.failure.get_or_insert_with(|| format!("{what}: {}", reason.trim_end_matches('.')));
    }

    fn fail_receiving(&mut self, side: Side, part: &str, reason: &str) {
        let remote = &self.settings.remote;
        let what = match (self.role, side) {
            (Role::Secondary, _) => format!("request {part}"),
            (_, Side::Out) if !self.established => format!("handshake {part} from {remote}"),
            (_, Side::Out | Side::In) => format!("reply {part}"),
        };
        self.failure.get_or_insert_with(|| format!("Unable to receive {what}: {reason}"));
    }

    fn fail_sending(&mut self, reason: &str) {
        let what = if self.role == Role::Secondary { "reply" } else { "request" };
        self.failure.get_or_insert_with(|| format!("Unable to send {what}: {reason}"));
    }
}

/// One connection.
struct Connection {
    socket: Watched<Socket>,
    receiver: Receiver,
    payload_limit: u32,
    unsent: SendQueue,
    /// When the peer last took something, or had something put before it.
    progress: Duration,
    /// The peer has closed its direction and that is no failure.
    ended: bool,
    /// Why what follows the frames received so far is none.
    garbage: Option<String>,
}

impl Connection {
    fn push(&mut self, now: Duration, header: Vec<u8>, data: Option<Buffer>) {
        if self.unsent.is_empty() {
            self.progress = now;
        }
        self.unsent.push(Piece::Bytes(header));
        if let Some(data) = data {
            self.unsent.push(Piece::Data(data));
        }
    }

    fn transmit(&mut self, now: Duration) -> io::Result<()> {
        match self.socket.get() {
            Some(socket) if self.unsent.transmit(socket)? > 0 => self.progress = now,
            _ => {}
        }
        Ok(())
    }
}

/// Asks the system to notice a peer that is gone without a word within about `timeout`, idle or not. What
/// it cannot do it does not do: the engine's own timers remain.
fn watch_for_silence(socket: &impl AsFd, timeout: Duration) {
    let socket = SockRef::from(socket);
    if !is_tcp(&socket) {
        return;
    }
    let timeout = timeout.max(Duration::from_secs(1));
    let (idle, interval) = keepalive_times(timeout);
    let keepalive =
        TcpKeepalive::new().with_time(idle).with_interval(interval).with_retries(KEEPALIVE_PROBES);
    if let Err(error) = socket.set_tcp_keepalive(&keepalive) {
        log::debug!("Unable to set TCP keepalive: {}.", error_text(&error));
    }
    #[cfg(target_os = "linux")]
    if let Err(error) = socket.set_tcp_user_timeout(Some(timeout)) {
        log::debug!("Unable to set TCP user timeout: {}.", error_text(&error));
    }
}

/// How long TCP waits before it asks, and after each question. The system knows whole seconds. All of them together are not
/// less than `timeout`: FreeBSD ends a connection then that has something to send, too.
fn keepalive_times(timeout: Duration) -> (Duration, Duration) {
    let seconds = timeout.as_secs().saturating_add(u64::from(timeout.subsec_nanos() > 0));
    let interval = (seconds / u64::from(KEEPALIVE_PROBES + 1)).max(1);
    let idle = seconds.saturating_sub(interval.saturating_mul(KEEPALIVE_PROBES.into())).max(1);
    (Duration::from_secs(idle), Duration::from_secs(interval))
}

fn is_tcp(socket: &Socket) -> bool {
    socket.local_addr().is_ok_and(|address| address.as_socket().is_some())
}

#[cfg(test)]
#[path = "peer_tests.rs"]
mod tests;
