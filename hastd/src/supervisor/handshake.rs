//! Who may become the primary of a resource: the decisions of the handshake's two steps, without sockets
//! (spec/wire.md, Handshake).

use std::net::{IpAddr, SocketAddr};

use hast_format::metadata::Role;
use hast_net::address::{Address, Endpoint};
use hast_net::control::ConnectionState;
use hast_net::handshake::{Hello, Refusal, Token, texts};

/// Where a connection comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    /// From this address; ports say nothing. With it the number of the interface, if the address is of a link.
    Ip(IpAddr, u32),
    /// From this machine, over a unix socket.
    Unix,
}

impl From<Option<SocketAddr>> for Origin {
    fn from(address: Option<SocketAddr>) -> Origin {
        address.map_or(Origin::Unix, |address| Origin::Ip(address.ip(), scope(&address)))
    }
}

/// The number of the interface that a link-local address is of, or 0.
fn scope(address: &SocketAddr) -> u32 {
    match address {
        SocketAddr::V6(address) => address.scope_id(),
        SocketAddr::V4(_) => 0,
    }
}

/// Whether a connection comes from the node at an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Match {
    Yes,
    No,
    /// The name service has to be asked.
    Unknown,
}

/// Compares an origin with a resource's `remote`. `lookup` knows the addresses of hosts that were looked up
/// for this connection.
pub(super) fn comes_from<'a>(
    origin: Origin,
    remote: Option<&Address>,
    lookup: impl FnOnce(&Address) -> Option<&'a [SocketAddr]>,
) -> Match {
    let Some(remote) = remote else { return Match::No };
    let yes = |yes: bool| if yes { Match::Yes } else { Match::No };
    match (origin, remote.endpoint()) {
        (Origin::Unix, endpoint) => yes(matches!(endpoint, Endpoint::Unix(_))),
        (Origin::Ip(..), Endpoint::Unix(_)) => Match::No,
        (Origin::Ip(ip, link), Endpoint::Tcp { .. }) => {
            // Another link may have the same address.
            let is =
                |address: &SocketAddr| address.ip() == ip && (scope(address) == 0 || scope(address) == link);
            match remote.literal() {
                Some(address) => yes(is(&address)),
                None => match lookup(remote) {
                    Some(addresses) => yes(addresses.iter().any(is)),
                    None => Match::Unknown,
                },
            }
        }
    }
}

/// What the supervisor knows of the resource that a header names.
#[derive(Clone, Copy, Debug)]
pub(super) struct Standing<'a> {
    /// The header comes from the resource's `remote`.
    pub(super) access: bool,
    /// The role that peers are told.
    pub(super) role: Role,
    /// The token of the first step that is pending, if one is.
    pub(super) token: Option<&'a Token>,
}

/// What follows from a header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Admitted {
    /// Step one: answer with this version and a new token; whatever was there before gives way.
    First {
        /// The negotiated protocol version.
        version: u8,
    },
    /// Step two: both connections are there. The token has done its work.
    Second,
}

/// Why a header is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refused {
    /// No such resource.
    NotConfigured,
    /// It comes from elsewhere.
    NoAccess,
    /// The resource is no secondary.
    Role(Role),
    /// No first step with this token is pending.
    Token,
}

/// Decides about a header, given the resource it names, if there is one.
pub(super) fn admit(hello: &Hello, resource: Option<Standing<'_>>) -> Result<Admitted, Refused> {
    let Some(resource) = resource else { return Err(Refused::NotConfigured) };
    if !resource.access {
        return Err(Refused::NoAccess);
    }
    if resource.role != Role::Secondary {
        return Err(Refused::Role(resource.role));
    }
    match hello {
        Hello::First(first) => Ok(Admitted::First { version: first.negotiated() }),
        Hello::Second(second) => match resource.token {
            Some(token) if is_same(token, &second.token) => Ok(Admitted::Second),
            _ => Err(Refused::Token),
        },
    }
}

impl Refused {
    /// What the other node is told.
    pub(super) fn refusal(self) -> Refusal {
        match self {
            Refused::NotConfigured => Refusal::new(texts::NOT_CONFIGURED),
            Refused::NoAccess => Refusal::new(texts::NO_ACCESS),
            Refused::Role(role) => Refusal {
                errmsg: texts::not_secondary(role.as_str()),
                // The other node asks again each second: one of the two is about to change its role.
                wait: role == Role::Primary,
            },
            Refused::Token => Refusal::new(texts::TOKEN_MISMATCH),
        }
    }

    /// What those are told who ask this node how it stands to the other one; None if that says nothing of it.
    pub(super) fn told(self, peer: &str) -> Option<(ConnectionState, String)> {
        match self {
            // Nobody can ask for a resource that is not there; and a token is the business of one attempt.
            Refused::NotConfigured | Refused::Token => None,
            Refused::NoAccess => Some((
                ConnectionState::Refused,
                format!(
                    "{peer} asked for this resource, and `remote` names another node. Check `remote` here and `source` \
                     there."
                ),
            )),
            Refused::Role(Role::Primary) => Some((
                ConnectionState::TwoPrimaries,
                format!("{peer} is primary, too. Make the node whose changes are to be given up secondary."),
            )),
            Refused::Role(role) => Some((
                ConnectionState::Refused,
                format!(
                    "{peer} is primary and asked for this node as its secondary, which is {}.",
                    role.as_str()
                ),
            )),
        }
    }

    /// Tells the administrator of this node; the prefix names resource and role.
    pub(super) fn log(self, resource: &str, peer: &str) {
        match self {
            Refused::NotConfigured => log::error!("No resource '{resource}' as requested by {peer}."),
            Refused::NoAccess => log::error!("Client {peer} has no access to the resource."),
            Refused::Role(role) => log::warn!(
                "We act as {} for the resource and not as secondary as requested by {peer}.",
                role.as_str()
            ),
            Refused::Token => log::error!("Token received from {peer} doesn't match."),
        }
    }
}

/// Compares in a time that does not depend on where the tokens differ.
fn is_same(one: &Token, other: &Token) -> bool {
    one.iter().zip(other).fold(0, |difference, (a, b)| difference | (a ^ b)) == 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use hast_net::handshake::{Extensions, FirstHello, SecondHello};

    const TOKEN: Token = [7; 16];

    fn first(version: u8) -> Hello {
        Hello::First(FirstHello { resource: "disk0".into(), version, ext: Extensions::NONE })
    }

    fn second(token: Token) -> Hello {
        let (virgin, resuid, localcnt, remotecnt) = (false, 1, 0, 0);
        let resource = "disk0".into();
        Hello::Second(SecondHello {
            resource,
            token,
            virgin,
            resuid,
            localcnt,
            remotecnt,
            boot: None,
            parting: None,
            meeting: None,
        })
    }

    fn standing(role: Role, token: Option<&Token>) -> Option<Standing<'_>> {
        Some(Standing { access: true, role, token })
    }

    #[test]
    fn refusals_in_the_order_of_the_reference() {
        assert_eq!(admit(&first(2), None), Err(Refused::NotConfigured));
        let elsewhere = Standing { access: false, role: Role::Init, token: None };
        assert_eq!(admit(&first(2), Some(elsewhere)), Err(Refused::NoAccess));
        for role in [Role::Init, Role::Primary] {
            assert_eq!(admit(&first(2), standing(role, None)), Err(Refused::Role(role)));
            assert_eq!(admit(&second(TOKEN), standing(role, Some(&TOKEN))), Err(Refused::Role(role)));
        }
    }

    #[test]
    fn the_lower_version_is_agreed_on() {
        for (offered, agreed) in [(1, 1), (2, 2), (3, 2), (255, 2)] {
            let admitted = admit(&first(offered), standing(Role::Secondary, Some(&TOKEN)));
            assert_eq!(admitted, Ok(Admitted::First { version: agreed }));
        }
    }

    #[test]
    fn a_token_counts_only_while_its_first_step_is_pending() {
        let secondary = |token| standing(Role::Secondary, token);
        assert_eq!(admit(&second(TOKEN), secondary(Some(&TOKEN))), Ok(Admitted::Second));
        assert_eq!(admit(&second([8; 16]), secondary(Some(&TOKEN))), Err(Refused::Token));
        assert_eq!(admit(&second(TOKEN), secondary(None)), Err(Refused::Token));
        // X8: before any first step, zeros are no token.
        assert_eq!(admit(&second([0; 16]), secondary(None)), Err(Refused::Token));
    }

    #[test]
    fn only_a_primary_is_worth_waiting_for() {
        assert!(Refused::Role(Role::Primary).refusal().wait);
        for refused in [Refused::NotConfigured, Refused::NoAccess, Refused::Role(Role::Init), Refused::Token]
        {
            assert!(!refused.refusal().wait);
        }
        assert_eq!(
            Refused::Role(Role::Init).refusal().errmsg,
            "Remote node acts as init for the resource and not as secondary."
        );
    }

    #[test]
    fn addresses_match_without_ports() {
        let origin = Origin::from(Some("10.9.0.2:61000".parse().unwrap()));
        let unknown = |_: &Address| None;
        let matches = |remote: &str| comes_from(origin, Some(&Address::parse(remote).unwrap()), unknown);
        assert_eq!(matches("tcp4://10.9.0.2"), Match::Yes);
        assert_eq!(matches("10.9.0.2:9000"), Match::Yes);
        assert_eq!(matches("10.9.0.3"), Match::No);
        assert_eq!(matches("uds:///tmp/x"), Match::No);
        assert_eq!(matches("node-b"), Match::Unknown);
        assert_eq!(comes_from(origin, None, unknown), Match::No);
        assert_eq!(comes_from(Origin::Unix, None, unknown), Match::No);
        let remote = Address::parse("/tmp/x").unwrap();
        assert_eq!(comes_from(Origin::Unix, Some(&remote), unknown), Match::Yes);
        let remote = Address::parse("10.9.0.2").unwrap();
        assert_eq!(comes_from(Origin::Unix, Some(&remote), unknown), Match::No);
    }

    #[test]
    fn names_match_what_they_were_resolved_to() {
        let origin = Origin::Ip("10.9.0.2".parse().unwrap(), 0);
        let remote = Address::parse("node-b").unwrap();
        let there = ["[fe80::1]:8457".parse().unwrap(), "10.9.0.2:8457".parse().unwrap()];
        assert_eq!(comes_from(origin, Some(&remote), |_| Some(&there)), Match::Yes);
        assert_eq!(comes_from(origin, Some(&remote), |_| Some(&there[..1])), Match::No);
        assert_eq!(comes_from(origin, Some(&remote), |_| Some(&[])), Match::No);
    }

    #[test]
    fn an_address_of_a_link_matches_on_that_link() {
        use std::net::SocketAddrV6;
        let on = |link| SocketAddr::from(SocketAddrV6::new("fe80::1".parse().unwrap(), 9, 0, link));
        let remote = Address::parse("fe80::1%eth0").unwrap();
        let there = [on(2)];
        let matches = |origin| comes_from(Origin::from(Some(origin)), Some(&remote), |_| Some(&there));
        assert_eq!(matches(on(2)), Match::Yes);
        assert_eq!(matches(on(3)), Match::No);
        assert_eq!(matches("[fe80::2]:9".parse().unwrap()), Match::No);
        // Without a zone any link will do, as before.
        let remote = Address::parse("fe80::1").unwrap();
        assert_eq!(comes_from(Origin::from(Some(on(3))), Some(&remote), |_| None), Match::Yes);
    }
}
