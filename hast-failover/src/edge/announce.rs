//! Tells the network where an address is now: gratuitous ARP (RFC 5227) or an unsolicited neighbour advertisement (RFC 4861,
//! 7.2.6), so that nobody goes on sending to the node that had it.
//!
//! FreeBSD's ifconfig does that by itself.

#[cfg(not(target_os = "linux"))]
pub(super) fn announce(_: &crate::address::Address) -> Result<(), String> {
    Ok(())
}

#[cfg(target_os = "linux")]
pub(super) use linux::announce;

#[cfg(target_os = "linux")]
mod linux {
    use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
    use std::os::fd::AsRawFd;
    use std::time::Duration;

    use nix::ifaddrs::getifaddrs;
    use nix::sys::socket::{AddressFamily, LinkAddr, MsgFlags, SockFlag, SockType, sendto, socket};

    use crate::address::Address;

    /// How often it is told, as what is told once may be lost.
    const TIMES: u32 = 3;
    const BETWEEN: Duration = Duration::from_millis(100);

    /// A hardware address.
    type Mac = [u8; 6];

    pub(crate) fn announce(address: &Address) -> Result<(), String> {
        let Some((link, mac)) = link(&address.interface)? else {
            return Ok(()); // not an Ethernet: nobody keeps hardware addresses there
        };
        let frames = match address.ip {
            IpAddr::V4(ip) => vec![arp(mac, ip, 1), arp(mac, ip, 2)],
            IpAddr::V6(ip) => vec![advertisement(mac, ip)],
        };
        let told = |errno: nix::Error| errno.desc().to_owned();
        let socket =
            socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, None).map_err(told)?;
        for time in 0..TIMES {
            if time > 0 {
                std::thread::sleep(BETWEEN);
            }
            for frame in &frames {
                sendto(socket.as_raw_fd(), frame, &link, MsgFlags::MSG_DONTWAIT).map_err(told)?;
            }
        }
        Ok(())
    }

    /// An interface and its hardware address; none if it has none.
    fn link(interface: &str) -> Result<Option<(LinkAddr, Mac)>, String> {
        let all = getifaddrs().map_err(|errno| errno.desc().to_owned())?;
        let links = all.filter(|found| found.interface_name == interface);
        let mut links = links.filter_map(|found| found.address?.as_link_addr().copied());
        let Some(link) = links.next() else { return Err(format!("{interface} is not there")) };
        let is_ethernet = u32::from(link.hatype()) == u32::from(libc::ARPHRD_ETHER) && link.halen() == 6;
        Ok(link.addr().filter(|_| is_ethernet).map(|mac| (link, mac)))
    }

    fn ethernet(to: Mac, from: Mac, kind: u16) -> Vec<u8> {
        [&to[..], &from, &kind.to_be_bytes()].concat()
    }

    /// Says that it has the address: as a question (`operation` 1), or as an answer (2) for those who listen to these only.
    pub(super) fn arp(mac: Mac, ip: Ipv4Addr, operation: u16) -> Vec<u8> {
        const BROADCAST: Mac = [0xff; 6];
        let target = if operation == 1 { [0; 6] } else { BROADCAST };
        let mut frame = ethernet(BROADCAST, mac, 0x0806);
        // Ethernet, IPv4, and the lengths of their addresses.
        frame.extend([0, 1, 8, 0, 6, 4]);
        frame.extend(operation.to_be_bytes());
        for part in [&mac[..], &ip.octets(), &target, &ip.octets()] {
            frame.extend(part);
        }
        frame.resize(60, 0);
        frame
    }

    /// To all nodes: the address is here, and what anybody remembers of it is old.
    pub(super) fn advertisement(mac: Mac, ip: Ipv6Addr) -> Vec<u8> {
        let all_nodes = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
        // Type 136, code 0, room for the sum; override; the address; and an option with the hardware address.
        let mut message = vec![136, 0, 0, 0, 0x20, 0, 0, 0];
        message.extend(ip.octets());
        message.extend([2, 1]);
        message.extend(mac);
        let length = u16::try_from(message.len()).unwrap_or_default();
        let pseudo =
            [&ip.octets()[..], &all_nodes.octets(), &[0, 0], &length.to_be_bytes(), &[0, 0, 0, 58]].concat();
        let sum = checksum(&[pseudo, message.clone()].concat());
        if let Some(place) = message.get_mut(2..4) {
            place.copy_from_slice(&sum.to_be_bytes());
        }
        let mut frame = ethernet([0x33, 0x33, 0, 0, 0, 1], mac, 0x86dd);
        frame.extend([0x60, 0, 0, 0]);
        frame.extend(length.to_be_bytes());
        // ICMPv6, and a hop limit that says it comes from this link.
        frame.extend([58, 255]);
        frame.extend(ip.octets());
        frame.extend(all_nodes.octets());
        frame.extend(message);
        frame
    }

    /// The sum of IP.
    pub(super) fn checksum(bytes: &[u8]) -> u16 {
        let word = |pair: &[u8]| match pair {
            [high, low] => u32::from(u16::from_be_bytes([*high, *low])),
            [high] => u32::from(u16::from_be_bytes([*high, 0])),
            _ => 0,
        };
        let mut sum = bytes.chunks(2).map(word).fold(0u32, u32::saturating_add);
        while sum > 0xffff {
            sum = (sum & 0xffff).saturating_add(sum >> 16);
        }
        !u16::try_from(sum).unwrap_or_default()
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::linux::{advertisement, arp, checksum};

    const MAC: [u8; 6] = [2, 0, 0, 0, 0, 7];

    #[test]
    fn arp_says_who_has_the_address() {
        let frame = arp(MAC, "10.0.0.9".parse().unwrap(), 1);
        let expected = [
            0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2, 0, 0, 0, 0, 7, 8, 6, 0, 1, 8, 0, 6, 4, 0, 1, 2, 0, 0, 0,
            0, 7, 10, 0, 0, 9, 0, 0, 0, 0, 0, 0, 10, 0, 0, 9,
        ];
        assert_eq!(frame[..42], expected);
        assert_eq!(frame.len(), 60, "the shortest frame");
        assert_eq!(arp(MAC, "10.0.0.9".parse().unwrap(), 2)[20..22], [0, 2]);
    }

    #[test]
    fn an_advertisement_is_one_that_is_believed() {
        let frame = advertisement(MAC, "2001:db8::9".parse().unwrap());
        assert_eq!(frame[..14], [0x33, 0x33, 0, 0, 0, 1, 2, 0, 0, 0, 0, 7, 0x86, 0xdd]);
        let (header, message) = frame[14..].split_at(40);
        assert_eq!(header[..8], [0x60, 0, 0, 0, 0, 32, 58, 255], "payload of 32 bytes, hop limit 255");
        assert_eq!((message[0], message[1], message[4]), (136, 0, 0x20));
        assert_eq!(message[8..24], header[8..24], "the target is the source");
        assert_eq!(message[24..], [2, 1, 2, 0, 0, 0, 0, 7]);
        // Summed up together with its sum there is nothing left.
        let pseudo = [&header[8..40], &[0, 0, 0, 32, 0, 0, 0, 58]].concat();
        assert_eq!(checksum(&[&pseudo[..], message].concat()), 0);
    }
}
