//! Addresses as `hast.conf` writes them: `[protocol://]host[:port]` or a unix socket path.
//!
//! This module owns the text form (spec conf.md, "Addresses") and nothing else: it opens no
//! socket. Looking a host name up ([`Address::resolve`]) blocks; whoever may not block does it in
//! a thread, anew for each connect and accept.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// The TCP port of an address that names none.
pub const DEFAULT_PORT: u16 = 8457;

/// The longest address in bytes, protocol and port included.
pub const MAX_TEXT: usize = 1023;

/// The longest unix socket path in bytes that this system can bind or connect to.
pub const MAX_SOCKET_PATH: usize = if cfg!(target_os = "freebsd") { 103 } else { 107 };

/// An address that was configured, with the text it was configured as.
///
/// Two addresses are equal when their texts are: a status shows the text, so a change of spelling
/// is a change. Whether two spellings lead to the same place is a question to [`Address::endpoint`].
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Address {
    text: String,
    endpoint: Endpoint,
}

impl Address {
    /// Reads an address to listen on or to connect to; the port is 8457 unless given.
    ///
    /// # Errors
    ///
    /// Says which part of the text is not an address, see [`AddressError`].
    pub fn parse(text: &str) -> Result<Address, AddressError> {
        Address::parse_with_port(text, DEFAULT_PORT)
    }

    /// Reads the address that connections come from; the port is 0 (any) unless given.
    ///
    /// # Errors
    ///
    /// As [`Address::parse`].
    pub fn parse_source(text: &str) -> Result<Address, AddressError> {
        Address::parse_with_port(text, 0)
    }

    /// Reads a `remote` value: the word `none` is no address (`Ok(None)`).
    ///
    /// # Errors
    ///
    /// As [`Address::parse`].
    pub fn parse_remote(text: &str) -> Result<Option<Address>, AddressError> {
        if text == "none" {
            return Ok(None);
        }
        Address::parse(text).map(Some)
    }

    /// An address that need not be read because the program knows it; `text` should be a spelling
    /// of `endpoint` that [`Address::parse`] takes.
    #[must_use]
    pub fn spelled(text: &str, endpoint: Endpoint) -> Address {
        Address { text: text.to_owned(), endpoint }
    }

    /// Where the address leads, independent of how it was spelled.
    #[must_use]
    pub fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// Exactly the text that was configured.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The path, if this is a unix socket.
    #[must_use]
    pub fn unix_path(&self) -> Option<&Path> {
        match &self.endpoint {
            Endpoint::Unix(path) => Some(path),
            Endpoint::Tcp { .. } => None,
        }
    }

    /// The TCP port: the configured one, else the default it was read with (0 for a source).
    #[must_use]
    pub fn port(&self) -> Option<u16> {
        match self.endpoint {
            Endpoint::Tcp { port, .. } => Some(port),
            Endpoint::Unix(_) => None,
        }
    }

    /// The socket address, if that is known without asking a name service.
    #[must_use]
    pub fn literal(&self) -> Option<SocketAddr> {
        match &self.endpoint {
            Endpoint::Tcp { host: Host::Ip(ip), port, .. } => Some(SocketAddr::new(*ip, *port)),
            Endpoint::Tcp { .. } | Endpoint::Unix(_) => None,
        }
    }

    /// All socket addresses of the host in the order of the name service, of the wanted family
    /// only and never empty. HAST uses the first one. May block for as long as the name service
    /// does, except when [`Address::literal`] knows the answer.
    ///
    /// # Errors
    ///
    /// Whatever the name service says; `NotFound` if the host has no address of the wanted
    /// family; `Unsupported` for a unix socket, which has a path instead.
    pub fn resolve(&self) -> io::Result<Vec<SocketAddr>> {
        let (family, host, port) = match &self.endpoint {
            Endpoint::Tcp { family, host, port } => (*family, host, *port),
            Endpoint::Unix(path) => {
                let message = format!("{} is a unix socket, not a host", path.display());
                return Err(io::Error::new(io::ErrorKind::Unsupported, message));
            }
        };
        let found: Vec<SocketAddr> = match host {
            Host::Ip(ip) => return Ok(vec![SocketAddr::new(*ip, port)]),
            Host::Name(name) => (name.as_str(), port).to_socket_addrs()?.collect(),
        };
        let wanted: Vec<SocketAddr> = found.into_iter().filter(|a| family.admits(&a.ip())).collect();
        if wanted.is_empty() {
            let message = format!("host {host} has no {family} address");
            return Err(io::Error::new(io::ErrorKind::NotFound, message));
        }
        Ok(wanted)
    }

    fn parse_with_port(text: &str, default_port: u16) -> Result<Address, AddressError> {
        if text.is_empty() {
            return Err(AddressError::Empty);
        }
        if text.len() > MAX_TEXT {
            return Err(AddressError::TooLong { length: text.len() });
        }
        let endpoint = if text.starts_with('/') {
            parse_unix(text)?
        } else {
            match text.split_once("://") {
                None => parse_tcp(text, Family::Any, default_port)?,
                Some((protocol, rest)) => match protocol.to_ascii_lowercase().as_str() {
                    "tcp" => parse_tcp(rest, Family::Any, default_port)?,
                    "tcp4" => parse_tcp(rest, Family::V4, default_port)?,
                    "tcp6" => parse_tcp(rest, Family::V6, default_port)?,
                    "uds" | "unix" => parse_unix(rest)?,
                    _ => return Err(AddressError::UnknownProtocol(protocol.to_owned())),
                },
            }
        };
        Ok(Address { text: text.to_owned(), endpoint })
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.text)
    }
}

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Address, AddressError> {
        Address::parse(text)
    }
}

/// Where an [`Address`] leads.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Endpoint {
    /// A TCP port of a host.
    Tcp {
        /// Which addresses of the host count.
        family: Family,
        /// The host, by number or by name.
        host: Host,
        /// The port; 0 only for a source address that names none.
        port: u16,
    },
    /// A unix stream socket at this path, of at most [`MAX_SOCKET_PATH`] bytes.
    Unix(PathBuf),
}

/// The IP family that an address asks for.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Family {
    /// `tcp://` or no protocol: whichever the host has first.
    Any,
    /// `tcp4://`
    V4,
    /// `tcp6://`
    V6,
}

impl Family {
    fn admits(self, ip: &IpAddr) -> bool {
        match self {
            Family::Any => true,
            Family::V4 => ip.is_ipv4(),
            Family::V6 => ip.is_ipv6(),
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Family::Any => "IP",
            Family::V4 => "IPv4",
            Family::V6 => "IPv6",
        })
    }
}

/// A host, by number or by name.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Host {
    /// A literal address; needs no name service.
    Ip(IpAddr),
    /// A name to be looked up at each use, or an IPv6 address with the zone that it is of (`fe80::1%eth0`): the
    /// interface's number is known only while it is there.
    Name(String),
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Host::Ip(ip) => ip.fmt(f),
            Host::Name(name) => f.pad(name),
        }
    }
}

/// Why a text is not an address.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AddressError {
    /// There is no text.
    #[error("the address is empty")]
    Empty,
    /// The text is longer than [`MAX_TEXT`].
    #[error("the address has {length} bytes, at most {MAX_TEXT} are possible")]
    TooLong {
        /// Bytes given.
        length: usize,
    },
    /// What stands before `://` is none of the known protocols.
    #[error("unknown protocol `{0}`, known are tcp, tcp4, tcp6, uds and unix")]
    UnknownProtocol(String),
    /// No host between the protocol and the port.
    #[error("the address names no host")]
    NoHost,
    /// A host name with a character that no host name has.
    #[error("`{0}` is not a host name")]
    BadHost(String),
    /// Brackets or several colons, but no IPv6 address.
    #[error("`{0}` is not an IPv6 address")]
    BadIpv6(String),
    /// A zone behind an address that is not a link-local one.
    #[error("{0} is not a link-local address and has no zone")]
    ZoneOfGlobal(Ipv6Addr),
    /// A bracket without its partner, or something other than a port behind it.
    #[error("`{0}` is not of the form [IPv6 address]:port")]
    BadBrackets(String),
    /// A literal address of the family that the protocol rules out.
    #[error("{ip} is not an {family} address")]
    WrongFamily {
        /// The literal address.
        ip: IpAddr,
        /// What the protocol asks for.
        family: Family,
    },
    /// Not a number from 1 to 65535.
    #[error("`{0}` is not a port, ports are 1 to 65535")]
    BadPort(String),
    /// `uds://` without a path, or one with a NUL byte.
    #[error("the address names no unix socket path")]
    BadPath,
    /// Longer than the system's socket addresses can hold.
    #[error("the unix socket path has {length} bytes, this system takes at most {MAX_SOCKET_PATH}")]
    SocketPathTooLong {
        /// Bytes given.
        length: usize,
    },
}

fn parse_unix(path: &str) -> Result<Endpoint, AddressError> {
    if path.is_empty() || path.contains('\0') {
        return Err(AddressError::BadPath);
    }
    if path.len() > MAX_SOCKET_PATH {
        return Err(AddressError::SocketPathTooLong { length: path.len() });
    }
    Ok(Endpoint::Unix(PathBuf::from(path)))
}

fn parse_tcp(text: &str, family: Family, default_port: u16) -> Result<Endpoint, AddressError> {
    let (host, port) = if let Some(inner) = text.strip_prefix('[') {
        let bad = || AddressError::BadBrackets(text.to_owned());
        let (ip, rest) = inner.split_once(']').ok_or_else(bad)?;
        let port = match rest.strip_prefix(':') {
            Some(port) => Some(port),
            None if rest.is_empty() => None,
            None => return Err(bad()),
        };
        (parse_v6(ip, family)?, port)
    } else {
        match text.split_once(':') {
            None => (parse_host(text)?, None),
            Some((_, rest)) if rest.contains(':') => (parse_v6(text, family)?, None),
            Some((host, port)) => (parse_host(host)?, Some(port)),
        }
    };
    if let Host::Ip(ip) = host
        && !family.admits(&ip)
    {
        return Err(AddressError::WrongFamily { ip, family });
    }
    let port = match port {
        None => default_port,
        Some(port) => parse_port(port)?,
    };
    Ok(Endpoint::Tcp { family, host, port })
}

fn parse_v6(text: &str, family: Family) -> Result<Host, AddressError> {
    let bad = || AddressError::BadIpv6(text.to_owned());
    let (address, zone) = text.split_once('%').map_or((text, None), |(address, zone)| (address, Some(zone)));
    let ip = Ipv6Addr::from_str(address).map_err(|_| bad())?;
    let Some(zone) = zone else { return Ok(Host::Ip(IpAddr::V6(ip))) };
    // Other addresses mean the same on every interface.
    if !ip.is_unicast_link_local() {
        return Err(AddressError::ZoneOfGlobal(ip));
    }
    let is_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | ':');
    if zone.is_empty() || !zone.chars().all(is_name) {
        return Err(bad());
    }
    if !family.admits(&IpAddr::V6(ip)) {
        return Err(AddressError::WrongFamily { ip: IpAddr::V6(ip), family });
    }
    Ok(Host::Name(text.to_owned()))
}

fn parse_host(text: &str) -> Result<Host, AddressError> {
    if text.is_empty() {
        return Err(AddressError::NoHost);
    }
    if let Ok(ip) = Ipv4Addr::from_str(text) {
        return Ok(Host::Ip(IpAddr::V4(ip)));
    }
    if !text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_')) {
        return Err(AddressError::BadHost(text.to_owned()));
    }
    Ok(Host::Name(text.to_owned()))
}

fn parse_port(text: &str) -> Result<u16, AddressError> {
    // u16::from_str alone would take a sign.
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    match u16::from_str(text) {
        Ok(port) if digits && port > 0 => Ok(port),
        _ => Err(AddressError::BadPort(text.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn tcp(family: Family, host: &str, port: u16) -> Endpoint {
        let host = host.parse().map_or_else(|_| Host::Name(host.to_owned()), Host::Ip);
        Endpoint::Tcp { family, host, port }
    }

    #[test]
    fn forms_of_spec_conf() {
        let cases = [
            ("10.9.0.2", tcp(Family::Any, "10.9.0.2", 8457)),
            ("10.9.0.2:1", tcp(Family::Any, "10.9.0.2", 1)),
            ("tcp://10.9.0.2:65535", tcp(Family::Any, "10.9.0.2", 65535)),
            ("tcp4://10.9.0.2", tcp(Family::V4, "10.9.0.2", 8457)),
            ("tcp4://0.0.0.0:8457", tcp(Family::V4, "0.0.0.0", 8457)),
            ("tcp6://[::]:8457", tcp(Family::V6, "::", 8457)),
            ("TcP6://[fe80::1]:99", tcp(Family::V6, "fe80::1", 99)),
            ("[fe80::1]", tcp(Family::Any, "fe80::1", 8457)),
            ("tcp://[fe80::1]", tcp(Family::Any, "fe80::1", 8457)),
            ("fe80::1:2", tcp(Family::Any, "fe80::1:2", 8457)),
            ("::1", tcp(Family::Any, "::1", 8457)),
            ("tcp6://fe80::1", tcp(Family::V6, "fe80::1", 8457)),
            (
                "tcp6://[fe80::1%lo]:99",
                Endpoint::Tcp { family: Family::V6, host: Host::Name("fe80::1%lo".into()), port: 99 },
            ),
            (
                "fe80::1%eth0.7",
                Endpoint::Tcp { family: Family::Any, host: Host::Name("fe80::1%eth0.7".into()), port: 8457 },
            ),
            ("b.example.org", tcp(Family::Any, "b.example.org", 8457)),
            ("tcp4://hast_b-1:77", tcp(Family::V4, "hast_b-1", 77)),
            ("/var/run/h", Endpoint::Unix("/var/run/h".into())),
            ("/odd://path:9", Endpoint::Unix("/odd://path:9".into())),
            ("uds:///var/run/hastctl", Endpoint::Unix("/var/run/hastctl".into())),
            ("UNIX://relative", Endpoint::Unix("relative".into())),
        ];
        for (text, endpoint) in cases {
            let address = Address::parse(text).unwrap();
            assert_eq!(address.endpoint(), &endpoint, "{text}");
            assert_eq!(address.to_string(), text);
            assert_eq!(text.parse(), Ok(address));
        }
    }

    #[test]
    fn source_has_port_0_unless_given() {
        assert_eq!(Address::parse_source("10.9.0.1").unwrap().port(), Some(0));
        assert_eq!(Address::parse_source("10.9.0.1:5").unwrap().port(), Some(5));
        assert_eq!(Address::parse_source("::1").unwrap().port(), Some(0));
        let zero = AddressError::BadPort("0".into());
        assert_eq!(Address::parse_source("10.9.0.1:0"), Err(zero));
    }

    #[test]
    fn remote_may_be_none_elsewhere_it_is_a_host_name() {
        assert_eq!(Address::parse_remote("none"), Ok(None));
        assert_eq!(Address::parse_remote("::1").unwrap(), Some(Address::parse("::1").unwrap()));
        assert_eq!(Address::parse("none").unwrap().endpoint(), &tcp(Family::Any, "none", 8457));
    }

    #[test]
    fn refusals() {
        let v4 = "10.9.0.2".parse().unwrap();
        let v6 = "::1".parse().unwrap();
        let cases = [
            ("", AddressError::Empty),
            ("http://x", AddressError::UnknownProtocol("http".into())),
            ("://x", AddressError::UnknownProtocol(String::new())),
            ("tcp4://", AddressError::NoHost),
            (":8457", AddressError::NoHost),
            ("tcp://:8457", AddressError::NoHost),
            ("a/b", AddressError::BadHost("a/b".into())),
            ("a]", AddressError::BadHost("a]".into())),
            ("[::1", AddressError::BadBrackets("[::1".into())),
            ("[::1]8457", AddressError::BadBrackets("[::1]8457".into())),
            ("[10.9.0.2]:1", AddressError::BadIpv6("10.9.0.2".into())),
            ("[]:1", AddressError::BadIpv6(String::new())),
            ("a:b:c", AddressError::BadIpv6("a:b:c".into())),
            ("a:", AddressError::BadPort(String::new())),
            ("a:0", AddressError::BadPort("0".into())),
            ("a:65536", AddressError::BadPort("65536".into())),
            ("a:+1", AddressError::BadPort("+1".into())),
            ("a:http", AddressError::BadPort("http".into())),
            ("[::1]:", AddressError::BadPort(String::new())),
            ("tcp6://10.9.0.2", AddressError::WrongFamily { ip: v4, family: Family::V6 }),
            ("tcp4://[::1]", AddressError::WrongFamily { ip: v6, family: Family::V4 }),
            ("tcp4://::1", AddressError::WrongFamily { ip: v6, family: Family::V4 }),
            ("fe80::1%", AddressError::BadIpv6("fe80::1%".into())),
            ("[fe80::1%a/b]:1", AddressError::BadIpv6("fe80::1%a/b".into())),
            ("[2001:db8::1%lo]:1", AddressError::ZoneOfGlobal("2001:db8::1".parse().unwrap())),
            (
                "tcp4://[fe80::1%lo]:1",
                AddressError::WrongFamily { ip: "fe80::1".parse().unwrap(), family: Family::V4 },
            ),
            ("uds://", AddressError::BadPath),
            ("uds://a\0b", AddressError::BadPath),
        ];
        for (text, error) in cases {
            assert_eq!(Address::parse(text), Err(error), "{text}");
        }
    }

    #[test]
    fn limits() {
        let path = format!("/{}", "p".repeat(MAX_SOCKET_PATH - 1));
        assert!(Address::parse(&path).is_ok());
        assert!(Address::parse(&format!("uds://{path}")).is_ok());
        assert_eq!(
            Address::parse(&format!("{path}p")),
            Err(AddressError::SocketPathTooLong { length: MAX_SOCKET_PATH + 1 })
        );
        assert!(Address::parse(&"h".repeat(MAX_TEXT)).is_ok());
        assert_eq!(
            Address::parse(&"h".repeat(MAX_TEXT + 1)),
            Err(AddressError::TooLong { length: MAX_TEXT + 1 })
        );
    }

    #[test]
    fn spelling_makes_an_address_but_not_an_endpoint() {
        let short = Address::parse("tcp4://10.9.0.2").unwrap();
        let long = Address::parse("TCP4://10.9.0.2:8457").unwrap();
        assert_ne!(short, long);
        assert_eq!(short.endpoint(), long.endpoint());
    }

    #[test]
    fn resolving_numbers_needs_no_name_service() {
        let address = Address::parse("[::1]:9").unwrap();
        let expected: SocketAddr = "[::1]:9".parse().unwrap();
        assert_eq!(address.literal(), Some(expected));
        assert_eq!(address.resolve().unwrap(), [expected]);
        assert_eq!(Address::parse("example.org").unwrap().literal(), None);
    }

    /// The loopback interface is the only one that is everywhere.
    #[cfg(target_os = "linux")]
    #[test]
    fn a_zone_becomes_the_number_of_its_interface() {
        let address = Address::parse("tcp6://[fe80::1%lo]:9").unwrap();
        assert_eq!(address.literal(), None);
        let found = address.resolve().unwrap();
        let [SocketAddr::V6(found)] = found.as_slice() else { panic!("{found:?}") };
        assert_eq!((found.ip().to_string().as_str(), found.port()), ("fe80::1", 9));
        assert_ne!(found.scope_id(), 0);
        assert!(Address::parse("[fe80::1%nosuch0]:9").unwrap().resolve().is_err());
    }

    #[test]
    fn resolving_keeps_to_the_family() {
        // `localhost` is answered from /etc/hosts; a host may lack one family there, not both.
        let all = Address::parse("localhost:9").unwrap().resolve().unwrap();
        assert!(!all.is_empty());
        for (text, family) in [("tcp4://localhost:9", Family::V4), ("tcp6://localhost:9", Family::V6)] {
            match Address::parse(text).unwrap().resolve() {
                Ok(found) => assert!(
                    !found.is_empty() && found.iter().all(|a| family.admits(&a.ip()) && a.port() == 9)
                ),
                Err(_) => assert!(!all.iter().any(|a| family.admits(&a.ip()))),
            }
        }
    }

    #[test]
    fn a_unix_socket_does_not_resolve() {
        let address = Address::parse("/var/run/hastctl").unwrap();
        assert_eq!(address.unix_path(), Some(Path::new("/var/run/hastctl")));
        assert_eq!(address.port(), None);
        assert_eq!(address.resolve().unwrap_err().kind(), io::ErrorKind::Unsupported);
    }

    proptest! {
        #[test]
        fn any_text_is_an_address_or_an_error(text in "(tcp[46]?://|uds://|/)?[a-z0-9.:\\[\\]/_-]{0,40}|.*") {
            if let Ok(address) = Address::parse(&text) {
                prop_assert_eq!(address.as_str(), text);
                prop_assert_ne!(address.port(), Some(0));
            }
        }

        #[test]
        fn a_socket_address_reads_back(ip: IpAddr, port in 1u16..) {
            let expected = SocketAddr::new(ip, port);
            prop_assert_eq!(Address::parse(&expected.to_string()).unwrap().literal(), Some(expected));
        }
    }
}
