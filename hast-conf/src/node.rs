//! Which `on <node>` sections are meant for this host (spec conf.md).
//!
//! Owns asking the host who it is: its name, its UUID, its host id and which IP families its
//! kernel has. Nothing is ever written.

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use std::sync::OnceLock;

/// Who this node is.
#[derive(Clone, Debug)]
pub struct Node {
    /// Names it goes by, case-sensitive: the full host name, then the part before the first dot.
    pub names: Vec<String>,
    /// Its UUID, in any case.
    pub uuid: Option<String>,
    /// Its kernel has IPv4: the default `listen` address exists.
    pub inet: bool,
    /// Its kernel has IPv6: the default `listen` address exists.
    pub inet6: bool,
    hostid: HostId,
    /// It is this host, whose addresses are its own. Otherwise nobody knows which those are.
    pub(crate) is_host: bool,
}

impl Node {
    /// Asks the host.
    #[must_use]
    pub fn detect() -> Node {
        Node {
            names: nix::unistd::gethostname()
                .map(|name| names_of(&name.to_string_lossy()))
                .unwrap_or_default(),
            uuid: system::uuid(),
            inet: has_family(AddressFamily::Inet),
            inet6: has_family(AddressFamily::Inet6),
            hostid: HostId::of_host(),
            is_host: true,
        }
    }

    /// Is the node of this name instead of asking the host (`-N`). The name may be a UUID.
    #[must_use]
    pub fn named(name: &str) -> Node {
        Node {
            names: names_of(name),
            uuid: is_uuid(name).then(|| name.to_owned()),
            inet: has_family(AddressFamily::Inet),
            inet6: has_family(AddressFamily::Inet6),
            hostid: HostId::unknown(),
            is_host: false,
        }
    }

    /// Whether a section for `name` is for this node.
    #[must_use]
    pub fn matches(&self, name: &str) -> bool {
        if self.names.iter().any(|own| own == name) {
            return true;
        }
        if self.uuid.as_ref().is_some_and(|own| own.eq_ignore_ascii_case(name)) {
            return true;
        }
        // Only a section that asks for a host id may cost the look-up of one.
        match name.strip_prefix("hostid") {
            Some(number) if is_number(number) => {
                self.hostid.get().is_some_and(|own| own.to_string() == number)
            }
            _ => false,
        }
    }

    /// The names that would match, for messages.
    #[must_use]
    pub fn matching_names(&self) -> Vec<String> {
        let hostid = self.hostid.peek().map(|number| format!("hostid{number}"));
        self.names.iter().cloned().chain(self.uuid.clone()).chain(hostid).collect()
    }
}

/// A host id that is only asked for when somebody needs it.
#[derive(Clone, Debug)]
struct HostId(OnceLock<Option<u64>>);

impl HostId {
    fn unknown() -> HostId {
        HostId(OnceLock::from(None))
    }

    fn of_host() -> HostId {
        match system::cheap_hostid() {
            Some(number) => HostId(OnceLock::from(Some(number))),
            None => HostId(OnceLock::new()),
        }
    }

    fn get(&self) -> Option<u64> {
        *self.0.get_or_init(system::expensive_hostid)
    }

    /// What is known without asking.
    fn peek(&self) -> Option<u64> {
        self.0.get().copied().flatten()
    }
}

fn names_of(name: &str) -> Vec<String> {
    let mut names = Vec::new();
    if !name.is_empty() {
        names.push(name.to_owned());
    }
    if let Some((short, _)) = name.split_once('.')
        && !short.is_empty()
    {
        names.push(short.to_owned());
    }
    names
}

fn has_family(family: AddressFamily) -> bool {
    // Any other failure (no descriptor left) says nothing about the kernel.
    !matches!(
        socket(family, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None),
        Err(nix::Error::EAFNOSUPPORT | nix::Error::EPROTONOSUPPORT)
    )
}

fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit())
}

/// 8-4-4-4-12 hexadecimal digits.
fn is_uuid(text: &str) -> bool {
    text.len() == 36
        && text.bytes().enumerate().all(|(index, byte)| match index {
            8 | 13 | 18 | 23 => byte == b'-',
            _ => byte.is_ascii_hexdigit(),
        })
}

/// A UUID as firmware and files hold it; all zeros or all ones is firmware without one.
fn usable_uuid(text: &str) -> Option<String> {
    let text = text.trim();
    let digits = || text.chars().filter(|c| *c != '-');
    let blank = digits().all(|c| c == '0') || digits().all(|c| matches!(c, 'f' | 'F'));
    (is_uuid(text) && !blank).then(|| text.to_owned())
}

#[cfg(not(target_os = "freebsd"))]
mod system {
    use super::usable_uuid;
    use std::fs;
    use std::net::{IpAddr, ToSocketAddrs};

    const DMI_UUID: &str = "/sys/class/dmi/id/product_uuid";
    const MACHINE_ID: &str = "/etc/machine-id";
    const HOSTID: &str = "/etc/hostid";

    /// The DMI product UUID (only root may read it), else the machine id in UUID form.
    pub(super) fn uuid() -> Option<String> {
        let dmi = fs::read_to_string(DMI_UUID).ok();
        let machine_id = fs::read_to_string(MACHINE_ID).ok();
        choose_uuid(dmi.as_deref(), machine_id.as_deref())
    }

    pub(super) fn choose_uuid(dmi: Option<&str>, machine_id: Option<&str>) -> Option<String> {
        dmi.and_then(usable_uuid).or_else(|| usable_uuid(&with_dashes(machine_id?.trim())))
    }

    fn with_dashes(digits: &str) -> String {
        let mut text = String::new();
        for (index, digit) in digits.chars().enumerate() {
            if matches!(index, 8 | 12 | 16 | 20) {
                text.push('-');
            }
            text.push(digit);
        }
        text
    }

    /// What sethostid(3) stored. This and the next function answer as gethostid(3) does.
    pub(super) fn cheap_hostid() -> Option<u64> {
        let bytes = fs::read(HOSTID).ok()?;
        Some(u64::from(u32::from_ne_bytes(bytes.first_chunk().copied()?)))
    }

    /// Made from the IPv4 address of the host's own name; may have to ask a name service. 0 without one.
    pub(super) fn expensive_hostid() -> Option<u64> {
        address_hostid().or(Some(0))
    }

    fn address_hostid() -> Option<u64> {
        let name = nix::unistd::gethostname().ok()?;
        let mut addresses = (name.to_str()?, 0).to_socket_addrs().ok()?;
        addresses.find_map(|address| match address.ip() {
            IpAddr::V4(ip) => Some(u64::from(u32::from_ne_bytes(ip.octets()).rotate_left(16))),
            IpAddr::V6(_) => None,
        })
    }
}

#[cfg(target_os = "freebsd")]
mod system {
    use super::usable_uuid;
    use std::process::Command;

    pub(super) fn uuid() -> Option<String> {
        usable_uuid(&sysctl("kern.hostuuid")?)
    }

    pub(super) fn cheap_hostid() -> Option<u64> {
        sysctl("kern.hostid")?.trim().parse().ok()
    }

    pub(super) fn expensive_hostid() -> Option<u64> {
        None
    }

    fn sysctl(name: &str) -> Option<String> {
        let output = Command::new("/sbin/sysctl").arg("-n").arg(name).output().ok()?;
        String::from_utf8(output.stdout).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const UUID: &str = "4c4c4544-0051-3510-8052-b4c04f4a4e31";

    fn node(names: &[&str], uuid: Option<&str>, hostid: Option<u64>) -> Node {
        Node {
            names: names.iter().map(|name| (*name).to_owned()).collect(),
            uuid: uuid.map(str::to_owned),
            inet: true,
            inet6: true,
            hostid: HostId(OnceLock::from(hostid)),
            is_host: true,
        }
    }

    #[test]
    fn full_and_short_name_match_in_their_case() {
        let node = Node::named("a.example.org");
        assert!(node.matches("a.example.org"));
        assert!(node.matches("a"));
        for other in ["A", "a.example", "a.example.org.", "example", "b", ""] {
            assert!(!node.matches(other), "{other}");
        }
        assert_eq!(node.matching_names(), ["a.example.org", "a"]);
        assert_eq!(Node::named("a").names, ["a"]);
        assert_eq!(Node::named(".a").names, [".a"]);
        assert!(Node::named("").names.is_empty());
    }

    #[test]
    fn the_uuid_matches_in_any_case() {
        let node = node(&["a"], Some(UUID), None);
        assert!(node.matches(UUID));
        assert!(node.matches(&UUID.to_uppercase()));
        assert!(!node.matches("4c4c4544-0051-3510-8052-b4c04f4a4e32"));
        assert_eq!(node.matching_names(), ["a", UUID]);
    }

    #[test]
    fn the_host_id_matches_as_a_number() {
        let node = node(&["a"], None, Some(8_323_329));
        assert!(node.matches("hostid8323329"));
        for other in ["hostid", "hostid8323328", "hostid08323329", "HOSTID8323329", "hostid+8323329"] {
            assert!(!node.matches(other), "{other}");
        }
        assert_eq!(node.matching_names(), ["a", "hostid8323329"]);
    }

    /// A host whose id nobody has set has the id 0, and the original takes a section for that.
    #[test]
    fn the_host_id_may_be_0() {
        assert!(node(&["a"], None, Some(0)).matches("hostid0"));
        // Not so where the host is not asked.
        assert!(!Node::named("a").matches("hostid0"));
    }

    #[test]
    fn a_given_name_replaces_the_host() {
        let node = Node::named(&UUID.to_uppercase());
        assert!(node.matches(UUID));
        let detected = Node::detect();
        let other = Node::named("no-such-node");
        for name in detected.matching_names() {
            assert!(detected.matches(&name), "{name}");
            assert!(!other.matches(&name), "{name}");
        }
        assert!(Node::named("hostid1").matches("hostid1"));
    }

    #[test]
    fn this_host_is_known_by_its_name() {
        let name = nix::unistd::gethostname().unwrap();
        assert!(Node::detect().matches(name.to_str().unwrap()));
    }

    #[test]
    fn firmware_without_a_uuid_has_none() {
        assert_eq!(usable_uuid(&format!("{UUID}\n")).as_deref(), Some(UUID));
        for text in [
            "",
            "Not Settable",
            "00000000-0000-0000-0000-000000000000",
            "FFFFFFFF-FFFF-FFFF-FFFF-FFFFFFFFFFFF",
            "4c4c454400513510-8052-b4c04f4a4e31xx",
        ] {
            assert_eq!(usable_uuid(text), None, "{text}");
        }
    }

    #[cfg(not(target_os = "freebsd"))]
    #[test]
    fn dmi_before_machine_id() {
        let machine_id = "0123456789abcdef0123456789abcdef\n";
        let dashed = Some("01234567-89ab-cdef-0123-456789abcdef");
        let dmi = format!("{}\n", UUID.to_uppercase());
        assert_eq!(system::choose_uuid(Some(&dmi), Some(machine_id)), Some(UUID.to_uppercase()));
        assert_eq!(system::choose_uuid(None, Some(machine_id)).as_deref(), dashed);
        assert_eq!(system::choose_uuid(Some("None"), Some(machine_id)).as_deref(), dashed);
        assert_eq!(system::choose_uuid(None, Some("short")), None);
        assert_eq!(system::choose_uuid(None, None), None);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn the_host_id_is_that_of_gethostid() {
        // coreutils' hostid(1) prints what gethostid(3) returns; a host without an IPv4 address of
        // its own has 0.
        let Ok(output) = std::process::Command::new("hostid").output() else { return };
        let printed = u64::from_str_radix(String::from_utf8(output.stdout).unwrap().trim(), 16).unwrap();
        assert_eq!(HostId::of_host().get(), Some(printed));
        assert!(Node::detect().matches(&format!("hostid{printed}")));
    }
}
