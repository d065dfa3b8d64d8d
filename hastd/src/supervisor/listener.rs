//! Listening sockets of either kind: TCP and unix, for other nodes and for control clients.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd};

use hast_net::address::{Address, Endpoint};
use socket2::{Domain, SockAddr, Socket, Type};

use super::unix::{BindError, UnixListener};

/// Connections that wait to be accepted.
const BACKLOG: i32 = 128;

/// A non-blocking listening socket.
#[derive(Debug)]
pub(super) enum Listener {
    /// On a unix socket.
    Unix(UnixListener),
    /// On a TCP port.
    Tcp(Socket),
}

impl Listener {
    /// Listens on `address`. A host name must have been looked up before: `resolved` holds what came out.
    pub(super) fn open(address: &Address, resolved: Option<SocketAddr>) -> Result<Listener, ListenError> {
        let failed = |error| ListenError::Failed { address: address.to_string(), error };
        match address.endpoint() {
            Endpoint::Unix(path) => UnixListener::bind(path).map(Listener::Unix).map_err(ListenError::Bind),
            Endpoint::Tcp { .. } => {
                let address = address.literal().or(resolved).ok_or_else(|| {
                    failed(io::Error::new(io::ErrorKind::NotFound, "the host has no address"))
                })?;
                tcp(address).map(Listener::Tcp).map_err(failed)
            }
        }
    }

    /// The next connection, non-blocking, with the other end's address unless it is a unix socket.
    pub(super) fn accept(&self) -> io::Result<(Socket, Option<SocketAddr>)> {
        let (socket, from) = match self {
            Listener::Unix(listener) => listener.socket().accept()?,
            Listener::Tcp(socket) => socket.accept()?,
        };
        socket.set_nonblocking(true)?;
        if let Listener::Tcp(_) = self {
            socket.set_tcp_nodelay(true)?;
        }
        Ok((socket, from.as_socket()))
    }

    /// Where it listens, as logged for a connection: `tcp://0.0.0.0:8457`.
    pub(super) fn place(&self) -> String {
        match self {
            Listener::Unix(listener) => format!("uds://{}", listener.path().display()),
            Listener::Tcp(socket) => local_name(socket),
        }
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Listener::Unix(listener) => listener.as_fd(),
            Listener::Tcp(socket) => socket.as_fd(),
        }
    }
}

/// The near end of a TCP socket, as the reference logs it.
pub(super) fn local_name(socket: &Socket) -> String {
    match socket.local_addr().ok().and_then(|address| address.as_socket()) {
        Some(address) => format!("tcp://{address}"),
        None => "tcp://?".to_owned(),
    }
}

fn tcp(address: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    socket.set_reuse_address(true)?;
    if address.is_ipv6() {
        // Otherwise the two default addresses collide on Linux, and IPv4 peers look like mapped addresses.
        socket.set_only_v6(true)?;
    }
    socket.bind(&SockAddr::from(address))?;
    socket.listen(BACKLOG)?;
    Ok(socket)
}

/// Why nobody listens.
#[derive(Debug, thiserror::Error)]
pub(super) enum ListenError {
    /// A unix socket.
    #[error("{0}")]
    Bind(BindError),
    /// A TCP port.
    #[error("Unable to listen on address {address}: {}.", hast_log::error_text(error))]
    Failed {
        /// The address as configured.
        address: String,
        /// The system's reason.
        error: io::Error,
    },
}

impl ListenError {
    /// Whether the reason is a process that listens there.
    pub(super) fn is_in_use(&self) -> bool {
        match self {
            ListenError::Bind(error) => matches!(error, BindError::InUse { .. }),
            ListenError::Failed { error, .. } => error.kind() == io::ErrorKind::AddrInUse,
        }
    }

    /// Whether the address may come: this host does not have it, or nobody knows it.
    pub(super) fn is_not_there(&self) -> bool {
        match self {
            ListenError::Bind(_) => false,
            ListenError::Failed { error, .. } => {
                matches!(error.kind(), io::ErrorKind::AddrNotAvailable | io::ErrorKind::NotFound)
            }
        }
    }

    /// Whether the kernel does not have the address's family (or no address of it at all).
    pub(super) fn is_family_absent(&self) -> bool {
        match self {
            ListenError::Bind(_) => false,
            ListenError::Failed { error, .. } => {
                matches!(error.raw_os_error(), Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL))
            }
        }
    }
}
