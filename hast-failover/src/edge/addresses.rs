//! Addresses on interfaces, by ip(8) or ifconfig(8).

use std::net::IpAddr;
use std::time::Duration;

use nix::ifaddrs::getifaddrs;

use crate::address::Address;
use crate::system::{Ran, Way};

use super::command::Runner;

/// Whether it is on its interface, whatever its prefix is.
pub(super) fn is_there(address: &Address) -> Result<bool, String> {
    Ok(prefix_of(address)?.is_some())
}

/// The prefix with which it is on its interface.
fn prefix_of(address: &Address) -> Result<Option<u8>, String> {
    let all = getifaddrs().map_err(|errno| format!("getifaddrs: {}", errno.desc()))?;
    for found in all.filter(|found| found.interface_name == address.interface) {
        let Some(storage) = found.address else { continue };
        let ip = match (storage.as_sockaddr_in(), storage.as_sockaddr_in6()) {
            (Some(v4), _) => IpAddr::V4(v4.ip()),
            (_, Some(v6)) => IpAddr::V6(v6.ip()),
            _ => continue,
        };
        if ip == address.ip {
            let mask = found.netmask.and_then(|mask| match (mask.as_sockaddr_in(), mask.as_sockaddr_in6()) {
                (Some(v4), _) => u8::try_from(v4.ip().to_bits().count_ones()).ok(),
                (_, Some(v6)) => u8::try_from(v6.ip().to_bits().count_ones()).ok(),
                _ => None,
            });
            return Ok(Some(mask.unwrap_or(address.prefix)));
        }
    }
    Ok(None)
}

pub(super) fn change(runner: &Runner, address: &Address, way: Way, limit: Duration) -> Ran {
    // One that somebody else has added may have another prefix.
    let prefix = match way {
        Way::Up => address.prefix,
        Way::Down => prefix_of(address).ok().flatten().unwrap_or(address.prefix),
    };
    let network = format!("{}/{prefix}", address.ip);
    let (interface, v6) = (address.interface.as_str(), address.ip.is_ipv6());
    if cfg!(target_os = "linux") {
        let verb = if way == Way::Up { "add" } else { "del" };
        let mut words = vec!["addr", verb, &network, "dev", interface];
        // The node that had it may not have let go yet, and it is to be used at once.
        if v6 && way == Way::Up {
            words.push("nodad");
        }
        return runner.run("ip", &words, limit);
    }
    let (network, verb) = match way {
        Way::Up => (network, "alias"),
        Way::Down => (address.ip.to_string(), "-alias"),
    };
    let family = if v6 { "inet6" } else { "inet" };
    runner.run("ifconfig", &[interface, family, &network, verb], limit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_found_on_its_interface_only() {
        let lo = if cfg!(target_os = "linux") { "lo" } else { "lo0" };
        let of = |interface: &str, last| Address {
            ip: IpAddr::from([127, 0, 0, last]),
            prefix: 32,
            interface: interface.to_owned(),
        };
        assert_eq!(is_there(&of("none", 1)), Ok(false));
        assert_eq!(is_there(&of(lo, 254)), Ok(false));
        if is_there(&of(lo, 1)) == Ok(true) {
            assert_eq!(prefix_of(&of(lo, 1)), Ok(Some(8)));
        }
    }
}
