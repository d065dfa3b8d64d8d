//! The channel between the supervisor and one worker process: typed messages, one nv list per packet of a
//! `SOCK_SEQPACKET` socket pair, descriptors beside them (`SCM_RIGHTS`).
//!
//! This module owns the socket and the encoding; it knows neither the roles' rules nor what a message causes.
//! Both ends run the same binary, so the format is private to one version of hastd. What arrives is checked
//! all the same: a worker that went wrong must not be able to take the supervisor with it.

mod codec;
#[cfg(test)]
mod tests;

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use hast_conf::Resource;
use hast_engine::{Event, Side};
use hast_format::metadata::{Metadata, Role};
use hast_net::control::{ConnectionState, WorkerStatus};
use hast_net::handshake::{BootId, Extensions, SecondHello};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, UnixAddr, getsockopt,
    recvmsg, sendmsg, setsockopt, socketpair, sockopt,
};

/// Longest packet, in bytes, its length included; a start message is below 10 KiB. FreeBSD's limit for one packet is
/// the room that the socket has, 65536 bytes unless `net.local.seqpacket` says less; see [`make_room`].
const PACKET_MAX: usize = 65536;
/// Most descriptors in one packet: provider and two sockets, or provider and both kinds of device.
const DESCRIPTORS_MAX: usize = 3;
/// Packets kept for a peer that does not read; one more is an error.
const QUEUE_MAX: usize = 1024;

/// From the supervisor to a worker.
#[derive(Debug)]
pub enum ToWorker {
    /// The first message of every worker: what it is and what it works with.
    Start(Box<Start>),
    /// Answer to [`ToSupervisor::Connect`]: a connected, non-blocking socket.
    Connected {
        /// Which of the two connections.
        side: Side,
        /// The request's number.
        id: u32,
        /// The connection.
        socket: OwnedFd,
    },
    /// Answer to [`ToSupervisor::Connect`]: no connection.
    ConnectFailed {
        /// Which of the two connections.
        side: Side,
        /// The request's number.
        id: u32,
        /// Why, in the system's words, without a full stop.
        error: String,
    },
    /// The configuration changed under a running primary.
    Reload(Box<Reload>),
    /// Asks for [`ToSupervisor::Status`] with the same number.
    Status {
        /// Echoed in the answer.
        id: u32,
    },
    /// Store what was acknowledged, then exit 0.
    Stop,
}

/// What a worker starts with.
#[derive(Debug)]
pub struct Start {
    /// The resource's settings.
    pub resource: Resource,
    /// Debug level: how often `-d` was given.
    pub debug: u8,
    /// Log to syslog instead of the terminal.
    pub background: bool,
    /// Change to user `hast` once everything is open.
    pub drop_privileges: bool,
    /// This boot's id ([`crate::boot_id`]); zeros if it is not known.
    pub boot: BootId,
    /// A primary whose administrator knows that its data may be out of date, and wants it all the same. Every
    /// worker after the change of role is told until one says [`ToSupervisor::Begun`].
    pub forced: bool,
    /// The last worker of a secondary could not rely on its disk, nor write that down (B1).
    pub unsure: bool,
    /// The last worker of a primary has given its disk up ([`ToSupervisor::Detached`]).
    pub detached: Option<Box<Metadata>>,
    /// The provider, open for reading and writing, locked by the supervisor through the same open file.
    pub provider: OwnedFd,
    /// What depends on the role.
    pub kind: StartKind,
}

impl Start {
    /// The role this worker plays.
    pub fn role(&self) -> Role {
        match self.kind {
            StartKind::Primary { .. } => Role::Primary,
            StartKind::Secondary { .. } => Role::Secondary,
        }
    }
}

/// The part of [`Start`] that depends on the role.
#[derive(Debug)]
pub enum StartKind {
    /// A primary.
    Primary {
        /// Listening socket for NBD clients, non-blocking, if there is to be one.
        nbd: Option<OwnedFd>,
        /// GEOM Gate, if the device is to be made there.
        gate: Option<GateStart>,
        /// A worker of this hastd has served the device since the node became primary ([`ToSupervisor::Served`]): what waits
        /// in it was meant for the data as they are. What an earlier hastd has left behind need not be.
        served: bool,
        /// An earlier hastd has left a kernel's device over the NBD export behind.
        left_behind: bool,
    },
    /// A secondary with a primary that has completed the second step of the handshake.
    Secondary {
        /// The first connection: requests arrive here, the handshake's answer leaves here.
        out: OwnedFd,
        /// The second connection: replies leave here.
        in_: OwnedFd,
        /// Negotiated protocol version.
        version: u8,
        /// The extensions that are active on these connections.
        ext: Extensions,
        /// The primary's second header.
        hello: SecondHello,
    },
}

/// What a primary needs for a device of GEOM Gate.
#[derive(Debug)]
pub struct GateStart {
    /// The control device.
    pub control: OwnedFd,
    /// Which hastd this is, as the device says it.
    pub owner: String,
}

/// New settings for a running primary.
#[derive(Debug)]
pub struct Reload {
    /// All settings, changed or not; `local` and `name` are the old ones.
    pub resource: Resource,
    /// Another remote or source address: close the connections and connect anew.
    pub reconnect: bool,
}

/// From a worker to the supervisor.
#[derive(Debug)]
pub enum ToSupervisor {
    /// Connect to the resource's remote address, from its source address.
    Connect {
        /// Which of the two connections.
        side: Side,
        /// Echoed in the answer; the worker's choice.
        id: u32,
    },
    /// The connection is no longer wanted. An answer may already be on its way.
    Cancel {
        /// The request's number.
        id: u32,
    },
    /// A primary has written down what was forced: no worker after it need be told.
    Begun,
    /// A primary has given its disk up: a worker that replaces it begins with this metadata, not with the disk's. Or, with
    /// none, the disk is in use again.
    Detached(Option<Box<Metadata>>),
    /// A primary's device is served: what waits in it is meant for the data as they are.
    Served,
    /// What waits in it is not: it goes before another worker begins, with all of that.
    DiscardDevice,
    /// A client of the NBD export has gone without taking leave: it may be the kernel's device.
    ClientLost,
    /// Something a hook wants to hear of.
    Event {
        /// What has happened.
        event: Event,
        /// Whether both connections are up now.
        complete: bool,
        /// Bytes of the extents that are being written or still to synchronise; 0 on a secondary.
        dirty: u64,
    },
    /// How the resource stands to the other node from now on.
    Connection {
        /// The state.
        state: ConnectionState,
        /// Why, as a sentence or two; may be empty.
        reason: String,
    },
    /// Answer to [`ToWorker::Status`].
    Status {
        /// The question's number.
        id: u32,
        /// The answer.
        status: Box<WorkerStatus>,
    },
}

/// One end of the channel. Non-blocking; not for use by several threads.
#[derive(Debug)]
pub struct Channel {
    socket: OwnedFd,
    unsent: RefCell<VecDeque<Outgoing>>,
    incoming: RefCell<Incoming>,
}

impl Channel {
    /// Both ends of a new channel, close-on-exec: (supervisor's, worker's).
    pub fn pair() -> io::Result<(Channel, OwnedFd)> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags)?;
        make_room(&ours)?;
        make_room(&theirs)?;
        Ok((Channel { socket: ours, unsent: RefCell::default(), incoming: RefCell::default() }, theirs))
    }

    /// The channel on a descriptor that came from elsewhere; makes it non-blocking.
    pub fn new(socket: OwnedFd) -> io::Result<Channel> {
        let flags = OFlag::from_bits_retain(fcntl(&socket, FcntlArg::F_GETFL)?);
        fcntl(&socket, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
        Ok(Channel { socket, unsent: RefCell::default(), incoming: RefCell::default() })
    }

    /// Sends to the worker, or keeps the message until [`Channel::flush`] when the socket is full.
    /// An error means that the worker is gone or has not read for a very long time.
    pub fn send_to_worker(&self, message: ToWorker) -> io::Result<()> {
        self.send(message.encode())
    }

    /// Sends to the supervisor, or keeps the message until [`Channel::flush`] when the socket is full.
    pub fn send_to_supervisor(&self, message: ToSupervisor) -> io::Result<()> {
        self.send(message.encode())
    }

    /// The next message from the worker. `Ok(None)`: it closed its end. `WouldBlock`: nothing there now.
    /// `InvalidData`: not a message; the sender cannot be trusted any more.
    pub fn recv_from_worker(&self) -> io::Result<Option<ToSupervisor>> {
        self.recv()?.map(ToSupervisor::decode).transpose()
    }

    /// The next message from the supervisor. `Ok(None)`: it is gone. `WouldBlock`: nothing there now.
    pub fn recv_from_supervisor(&self) -> io::Result<Option<ToWorker>> {
        self.recv()?.map(ToWorker::decode).transpose()
    }

    /// True while messages wait for the socket to become writable.
    pub fn wants_write(&self) -> bool {
        !self.unsent.borrow().is_empty()
    }

    /// Sends what waits, as far as the socket takes it.
    pub fn flush(&self) -> io::Result<()> {
        let mut unsent = self.unsent.borrow_mut();
        while let Some(packet) = unsent.front_mut() {
            if !packet.send(self.socket.as_fd())? {
                return Ok(());
            }
            unsent.pop_front();
        }
        Ok(())
    }

    fn send(&self, packet: Packet) -> io::Result<()> {
        {
            let mut unsent = self.unsent.borrow_mut();
            if unsent.len() >= QUEUE_MAX {
                return Err(io::Error::new(
                    io::ErrorKind::TimedOut,
                    "the other process does not read its messages",
                ));
            }
            unsent.push_back(packet.into());
        }
        self.flush()
    }

    fn recv(&self) -> io::Result<Option<Packet>> {
        let mut incoming = self.incoming.borrow_mut();
        match incoming.recv(self.socket.as_fd()) {
            // Linux says so once, and only then hands out what the other end had still sent.
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {
                incoming.recv(self.socket.as_fd())
            }
            other => other,
        }
    }
}

/// Lets the longest packet into a socket, whatever the system gives to new ones: without room it would be kept back
/// for ever.
fn make_room(socket: &OwnedFd) -> nix::Result<()> {
    if getsockopt(socket, sockopt::SndBuf)? < PACKET_MAX {
        setsockopt(socket, sockopt::SndBuf, &PACKET_MAX)?;
    }
    if getsockopt(socket, sockopt::RcvBuf)? < PACKET_MAX {
        setsockopt(socket, sockopt::RcvBuf, &PACKET_MAX)?;
    }
    Ok(())
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl AsRawFd for Channel {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

/// One message: the list, and the descriptors that travel with it.
#[derive(Debug)]
struct Packet {
    nv: Vec<u8>,
    descriptors: Vec<OwnedFd>,
}

/// A packet on its way out: its length, its list, and what the socket has not taken of either.
#[derive(Debug)]
struct Outgoing {
    bytes: Vec<u8>,
    descriptors: Vec<OwnedFd>,
}

impl From<Packet> for Outgoing {
    fn from(packet: Packet) -> Outgoing {
        let length = u32::try_from(packet.nv.len()).unwrap_or(u32::MAX);
        let bytes = [&length.to_le_bytes()[..], &packet.nv].concat();
        Outgoing { bytes, descriptors: packet.descriptors }
    }
}

impl Outgoing {
    /// Sends as much as the socket takes. True once nothing is left; false if the socket is full.
    fn send(&mut self, socket: BorrowedFd<'_>) -> io::Result<bool> {
        // Since FreeBSD 15 a packet ends where the sender says so.
        let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_EOR;
        while !self.bytes.is_empty() {
            let bytes = [IoSlice::new(&self.bytes)];
            let descriptors: Vec<RawFd> = self.descriptors.iter().map(AsRawFd::as_raw_fd).collect();
            let rights = [ControlMessage::ScmRights(&descriptors)];
            let rights: &[ControlMessage<'_>] = if descriptors.is_empty() { &[] } else { &rights };
            match sendmsg::<UnixAddr>(socket.as_raw_fd(), &bytes, rights, flags, None) {
                Ok(0) => return Ok(false),
                Ok(sent) => {
                    self.bytes.drain(..sent.min(self.bytes.len()));
                    // They go with the first byte.
                    self.descriptors.clear();
                }
                Err(Errno::EINTR) => {}
                Err(error) if is_full(error) => return Ok(false),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(true)
    }
}

/// Whether there is only no room now. FreeBSD up to 14 says so in other words if there is some, but not enough.
fn is_full(error: Errno) -> bool {
    error == Errno::EAGAIN
        || (cfg!(target_os = "freebsd") && matches!(error, Errno::EMSGSIZE | Errno::ENOBUFS))
}

/// What has come of a packet. It comes in one piece, except that since FreeBSD 15 it need not.
#[derive(Debug, Default)]
struct Incoming {
    bytes: Vec<u8>,
    descriptors: Vec<OwnedFd>,
}

impl Incoming {
    /// The next packet. None: the other end is closed.
    fn recv(&mut self, socket: BorrowedFd<'_>) -> io::Result<Option<Packet>> {
        loop {
            if !self.read(socket)? {
                return Ok(None);
            }
            if let Some(packet) = self.complete()? {
                return Ok(Some(packet));
            }
        }
    }

    /// Receives once. False: the other end is closed.
    fn read(&mut self, socket: BorrowedFd<'_>) -> io::Result<bool> {
        let mut bytes = vec![0; PACKET_MAX];
        let mut space = nix::cmsg_space!([RawFd; DESCRIPTORS_MAX]);
        let (length, flags) = {
            let mut slices = [IoSliceMut::new(&mut bytes)];
            let received = recvmsg::<UnixAddr>(
                socket.as_raw_fd(),
                &mut slices,
                Some(&mut space),
                MsgFlags::MSG_CMSG_CLOEXEC,
            )?;
            for control in received.cmsgs()? {
                if let ControlMessageOwned::ScmRights(numbers) = control {
                    for number in numbers {
                        // SAFETY: the kernel has just installed this descriptor for this very message and
                        // told its number to nobody else: it is open and has no owner yet.
                        self.descriptors.push(unsafe { OwnedFd::from_raw_fd(number) });
                    }
                }
            }
            (received.bytes, received.flags)
        };
        if length == 0 {
            return Ok(false);
        }
        if flags.intersects(MsgFlags::MSG_TRUNC | MsgFlags::MSG_CTRUNC) {
            *self = Incoming::default();
            return Err(codec::invalid("it was cut"));
        }
        self.bytes.extend_from_slice(bytes.get(..length).unwrap_or_default());
        Ok(true)
    }

    /// The packet, if all of it is there.
    fn complete(&mut self) -> io::Result<Option<Packet>> {
        let Some((head, nv)) = self.bytes.split_first_chunk() else { return Ok(None) };
        let expected = u32::from_le_bytes(*head) as usize;
        if nv.len() < expected && expected < PACKET_MAX {
            return Ok(None);
        }
        let Incoming { bytes, descriptors } = std::mem::take(self);
        if bytes.len() != expected.saturating_add(HEAD) {
            return Err(codec::invalid("its length is wrong"));
        }
        Ok(Some(Packet { nv: bytes.get(HEAD..).unwrap_or_default().to_vec(), descriptors }))
    }
}

/// Bytes in front of the list: its length.
const HEAD: usize = size_of::<u32>();
