//! Whether an address is that of this node itself.
//!
//! An address that this node listens on is its own for certain, and an error as a `remote`. One that an interface has now,
//! while the node listens on a wildcard, may move to another node: that is worth a warning. The interfaces of a node that is
//! not this host (`-N`) are not known. A name is not looked up; only the node's own names count.

use crate::node::Node;
use hast_net::address::{Address, Endpoint, Host};
use std::net::IpAddr;

/// Whether `remote` is at the moment an address of an interface of this node, which listens on `listen`, a wildcard among
/// them: a connection to it would end here.
pub(crate) fn leads_here_now(remote: &Address, listen: &[Address], node: &Node) -> bool {
    let Endpoint::Tcp { host: Host::Ip(ip), port, .. } = remote.endpoint() else { return false };
    let mut on_port = listen.iter().filter(|own| own.port() == Some(*port)).filter_map(Address::literal);
    on_port.any(|own| {
        own.ip().is_unspecified() && own.is_ipv4() == ip.is_ipv4() && node.is_host && is_of_this_host(*ip)
    })
}

/// Whether a connection to `remote` ends at this node itself, which listens on `listen`, whatever addresses its interfaces
/// have.
pub(crate) fn leads_here(remote: &Address, listen: &[Address], node: &Node) -> bool {
    let (host, port) = match remote.endpoint() {
        endpoint @ Endpoint::Unix(_) => return listen.iter().any(|own| own.endpoint() == endpoint),
        Endpoint::Tcp { host, port, .. } => (host, *port),
    };
    let on_port = || listen.iter().filter(|own| own.port() == Some(port));
    match host {
        Host::Name(name) => {
            node.names.contains(name)
                && on_port().any(|own| own.literal().is_none_or(|own| own.ip().is_unspecified()))
                || on_port().any(|own| own.endpoint() == remote.endpoint())
        }
        Host::Ip(ip) => on_port().filter_map(Address::literal).any(|own| own.ip() == *ip),
    }
}

/// Whether one of the interfaces has this address.
fn is_of_this_host(ip: IpAddr) -> bool {
    if ip.is_unspecified() {
        return true;
    }
    let Ok(interfaces) = nix::ifaddrs::getifaddrs() else { return false };
    let mut addresses = interfaces.filter_map(|interface| interface.address);
    addresses.any(|address| match (address.as_sockaddr_in(), address.as_sockaddr_in6()) {
        (Some(v4), _) => ip == IpAddr::V4(v4.ip()),
        (_, Some(v6)) => ip == IpAddr::V6(v6.ip()),
        _ => false,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leads(remote: &str, listen: &[&str]) -> bool {
        let parse = |text: &&str| Address::parse(text).unwrap();
        let listen: Vec<Address> = listen.iter().map(parse).collect();
        let mut node = Node::detect();
        node.names = vec!["a.example.org".to_owned(), "a".to_owned()];
        leads_here(&parse(&remote), &listen, &node)
    }

    #[test]
    fn what_is_listened_on_is_this_node() {
        assert!(leads("10.9.0.1", &["tcp4://10.9.0.1:8457"]));
        assert!(leads("10.9.0.1:99", &["10.9.0.2:99", "10.9.0.1:99"]));
        assert!(leads("uds:///tmp/x", &["/tmp/x"]));
        for (remote, listen) in [
            ("10.9.0.1:99", "10.9.0.1:98"),
            ("10.9.0.1", "10.9.0.2"),
            ("/tmp/x", "/tmp/y"),
            ("b", "0.0.0.0"),
            ("a", "10.9.0.1"),
            // No interface has it.
            ("192.0.2.1", "0.0.0.0"),
            ("127.0.0.1", "tcp6://[::]"),
        ] {
            assert!(!leads(remote, &[listen]), "{remote} {listen}");
        }
    }

    #[test]
    fn behind_a_wildcard_every_address_of_the_host_is_this_node() {
        let any = [Address::parse("tcp4://0.0.0.0").unwrap()];
        let now = |remote, node: &Node| leads_here_now(&Address::parse(remote).unwrap(), &any, node);
        assert!(now("127.0.0.1", &Node::detect()));
        assert!(!now("127.0.0.1:99", &Node::detect()) && !now("192.0.2.1", &Node::detect()));
        assert!(!now("127.0.0.1", &Node::named("a")), "of which host is not known");
        assert!(!leads("127.0.0.1", &["tcp4://0.0.0.0"]), "it may move");
        assert!(leads("a", &["tcp4://0.0.0.0"]) && leads("a.example.org", &["tcp6://[::]"]));
    }
}
