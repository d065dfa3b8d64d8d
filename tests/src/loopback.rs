//! Addresses in 127.0.0.0/8 that no other test uses at the same time.
//!
//! hastd tells peers apart by address and ignores ports, so every node and every end of a link needs
//! an address of its own. Each one is reserved, across processes, by a listener on port 8456.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::sync::atomic::{AtomicU32, Ordering};

use crate::Failure;

/// HAST's port.
pub const PORT: u16 = 8457;
const RESERVATION_PORT: u16 = 8456;
/// 127.16.0.0 to 127.239.255.255: away from what people put on 127.0.0.x by hand.
const FIRST: u32 = 0x7f10_0000;
const COUNT: u32 = 0x00e0_0000;

static NEXT: AtomicU32 = AtomicU32::new(0);

/// One loopback address, ours until it is dropped.
#[derive(Debug)]
pub struct Loopback {
    address: Ipv4Addr,
    _reservation: TcpListener,
}

impl Loopback {
    /// Reserves a free address.
    pub fn reserve() -> Result<Loopback, Failure> {
        for _ in 0..10_000 {
            let n = NEXT.fetch_add(1, Ordering::Relaxed);
            let offset = std::process::id().wrapping_mul(64).wrapping_add(n) % COUNT;
            let bits = FIRST + offset;
            // .0 and .255 are ordinary in 127/8, but read like mistakes in a log.
            if matches!(bits & 0xff, 0 | 0xff) {
                continue;
            }
            let address = Ipv4Addr::from_bits(bits);
            if let Ok(reservation) = TcpListener::bind((address, RESERVATION_PORT)) {
                return Ok(Loopback { address, _reservation: reservation });
            }
        }
        Failure::because("no free loopback address")
    }

    /// The address.
    pub fn ip(&self) -> IpAddr {
        IpAddr::V4(self.address)
    }

    /// The address with HAST's port.
    pub fn hast(&self) -> SocketAddr {
        SocketAddr::new(self.ip(), PORT)
    }

    /// The address as hast.conf writes it, with HAST's default port.
    pub fn conf(&self) -> String {
        format!("tcp4://{}", self.address)
    }
}
