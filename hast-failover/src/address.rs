//! An address that moves with a group, as hast-failover.conf names it: `10.0.0.100/24@eth0`.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

/// An address, its prefix and the interface that it belongs on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Address {
    pub(crate) ip: IpAddr,
    /// Bits of the network: at most 32 (IPv4) or 128.
    pub(crate) prefix: u8,
    pub(crate) interface: String,
}

impl FromStr for Address {
    type Err = String;

    fn from_str(text: &str) -> Result<Address, String> {
        let wrong = || format!("address must be like 10.0.0.100/24@eth0, not '{text}'");
        let (network, interface) = text.split_once('@').ok_or_else(wrong)?;
        let (ip, prefix) = network.split_once('/').map_or((network, None), |(ip, prefix)| (ip, Some(prefix)));
        let ip: IpAddr = ip.parse().map_err(|_| wrong())?;
        let most = if ip.is_ipv4() { 32 } else { 128 };
        let prefix: u8 = prefix.map_or(Ok(most), str::parse).map_err(|_| wrong())?;
        let usable = !ip.is_unspecified() && !ip.is_multicast() && !ip.is_loopback();
        let named = !interface.is_empty() && interface.len() < 16 && !interface.contains(['/', '@']);
        if prefix > most || prefix == 0 || !usable || !named || interface.starts_with('-') {
            return Err(wrong());
        }
        Ok(Address { ip, prefix, interface: interface.to_owned() })
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}@{}", self.ip, self.prefix, self.interface)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_read_and_shown() {
        for (text, shown) in [
            ("10.0.0.100/24@eth0", "10.0.0.100/24@eth0"),
            ("10.0.0.100@eth0", "10.0.0.100/32@eth0"),
            ("2001:db8::1/64@br-lan", "2001:db8::1/64@br-lan"),
            ("2001:db8::1@eth0.7", "2001:db8::1/128@eth0.7"),
        ] {
            assert_eq!(text.parse::<Address>().unwrap().to_string(), shown);
        }
        for wrong in [
            "",
            "10.0.0.100/24",
            "10.0.0.100/33@eth0",
            "10.0.0.100/0@eth0",
            "10.0.0/24@eth0",
            "10.0.0.1/x@eth0",
            "10.0.0.1/-1@eth0",
            "0.0.0.0/8@eth0",
            "224.0.0.1/8@eth0",
            "127.0.0.1/8@lo",
            "2001:db8::1/129@eth0",
            "10.0.0.1/24@",
            "10.0.0.1/24@-x",
            "10.0.0.1/24@a/b",
            "10.0.0.1/24@abcdefghijklmnop",
            "10.0.0.1/24@eth0@eth1",
        ] {
            assert!(wrong.parse::<Address>().is_err(), "{wrong}");
        }
    }
}
