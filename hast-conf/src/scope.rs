//! Scopes and defaults: which of the values for a thing counts (spec conf.md).
//!
//! resource-node → resource → global → default; node sections before global statements. Nothing
//! here depends on the order of the file, but that the last statement of a kind wins at its level.

use crate::config::HAS_NBD_BY_DEFAULT;
use crate::config::{
    Config, DEFAULT_CONTROL, DEFAULT_PEER_TIMEOUT, DEFAULT_PIDFILE, DEFAULT_TIMEOUT, KernelDevice, Resource,
};
use crate::error::{Problem, one_of};
use crate::lex::{Position, Token};
use crate::nbd::{DEFAULT_NBD_DIRECTORY, NbdPathError, nbd_socket_path};
use crate::node::Node;
use crate::own;
use hast_net::Replication;
use hast_net::address::{Address, DEFAULT_PORT, Endpoint, Family, Host};
use hast_net::payload::{Checksum, Compression};
use std::collections::HashMap;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};

/// A value and where it stands.
#[derive(Clone, Debug)]
pub(crate) struct Placed<T> {
    pub(crate) value: T,
    pub(crate) at: Position,
}

/// Something that the file as a whole lacks.
pub(crate) struct Missing {
    pub(crate) at: Position,
    pub(crate) problem: Problem,
    pub(crate) expected: String,
}

/// Everything in the file that concerns this node.
#[derive(Default)]
pub(crate) struct Global<'a> {
    pub(crate) settings: Settings,
    /// Of the top level.
    pub(crate) daemon: Daemon,
    /// Of all sections for this node.
    pub(crate) node: Daemon,
    /// A statement of ours stands there in the open.
    pub(crate) is_ours_alone: bool,
    sections: Vec<Section<'a>>,
    lines: HashMap<&'a str, usize>,
}

/// Statements about `hastd` itself.
#[derive(Default)]
pub(crate) struct Daemon {
    pub(crate) control: Option<Address>,
    pub(crate) pidfile: Option<PathBuf>,
    pub(crate) nbd: Option<PathBuf>,
    pub(crate) listen: Vec<Address>,
}

/// Statements that may stand in a resource and at the top.
#[derive(Default)]
pub(crate) struct Settings {
    pub(crate) replication: Option<Replication>,
    pub(crate) checksum: Option<Checksum>,
    pub(crate) compression: Option<Compression>,
    pub(crate) timeout: Option<u32>,
    pub(crate) peer_timeout: Option<u32>,
    pub(crate) device: Option<KernelDevice>,
    pub(crate) direct_reads: Option<bool>,
    pub(crate) exec: Option<PathBuf>,
    pub(crate) metaflush: Option<bool>,
}

/// A `resource` section.
pub(crate) struct Section<'a> {
    name: &'a str,
    at: Position,
    pub(crate) settings: Settings,
    pub(crate) provname: Option<Placed<String>>,
    pub(crate) local: Option<PathBuf>,
    /// Of all its `on` sections for this node.
    pub(crate) node: NodeValues,
    has_node: bool,
    others: Vec<String>,
}

/// An `on` section of a resource.
#[derive(Default)]
pub(crate) struct NodeValues {
    pub(crate) provname: Option<Placed<String>>,
    pub(crate) local: Option<PathBuf>,
    /// `Some(None)` is `remote none`.
    pub(crate) remote: Option<Option<Address>>,
    pub(crate) source: Option<Address>,
    pub(crate) metaflush: Option<bool>,
}

impl<'a> Global<'a> {
    pub(crate) fn add(&mut self, section: Section<'a>) {
        self.lines.insert(section.name, section.at.line);
        self.sections.push(section);
    }

    /// The line of the resource of this name.
    pub(crate) fn line_of(&self, name: &str) -> Option<usize> {
        self.lines.get(name).copied()
    }

    pub(crate) fn finish(self, node: &Node, mut warnings: Vec<String>) -> Result<Config, Missing> {
        let nbd = self.node.nbd.or(self.daemon.nbd);
        let nbd_is_default = nbd.is_none();
        let nbd = nbd.unwrap_or_else(|| DEFAULT_NBD_DIRECTORY.into());
        let has_nbd = HAS_NBD_BY_DEFAULT || !nbd_is_default;
        let mut resources: Vec<Resource> = Vec::with_capacity(self.sections.len());
        let mut places = Vec::with_capacity(self.sections.len());
        let mut taken = Taken::default();
        for section in self.sections {
            let at = section.at;
            let resource = section.finish(&self.settings, node, &nbd, has_nbd)?;
            taken.add(&resource, at)?;
            resources.push(resource);
            places.push(at);
        }
        let mut listen: Vec<Address> = Vec::new();
        for address in self.node.listen.into_iter().chain(self.daemon.listen) {
            // A second socket for the same endpoint could not be opened.
            if !listen.iter().any(|other| other.endpoint() == address.endpoint()) {
                listen.push(address);
            }
        }
        let listen_is_default = listen.is_empty();
        if listen_is_default {
            listen.extend(node.inet.then(default_listen_v4));
            listen.extend(node.inet6.then(default_listen_v6));
        }
        for (resource, at) in resources.iter().zip(places) {
            let Some(remote) = &resource.remote else { continue };
            if own::leads_here_now(remote, &listen, node) {
                let (name, remote) = (&resource.name, remote.as_str());
                warnings
                    .push(format!("resource {name}: its `remote` {remote} is an address of this host now"));
            }
            if own::leads_here(remote, &listen, node) {
                let problem = Problem::RemoteIsSelf {
                    resource: resource.name.clone(),
                    remote: remote.as_str().to_owned(),
                };
                let expected = "the address of the other node in the `on` section for this node".to_owned();
                return Err(Missing { at, problem, expected });
            }
        }
        Ok(Config {
            control: self.node.control.or(self.daemon.control).unwrap_or_else(default_control),
            pidfile: self.node.pidfile.or(self.daemon.pidfile).unwrap_or_else(|| DEFAULT_PIDFILE.into()),
            listen,
            listen_is_default,
            nbd,
            nbd_is_default,
            resources,
            is_ours_alone: self.is_ours_alone,
            warnings,
        })
    }
}

/// What resources cannot share.
#[derive(Default)]
struct Taken {
    locals: HashMap<PathBuf, String>,
    provnames: HashMap<String, String>,
}

impl Taken {
    fn add(&mut self, resource: &Resource, at: Position) -> Result<(), Missing> {
        let name = || resource.name.clone();
        // Not as text: `/dev//da0` is `/dev/da0`.
        let path: PathBuf = resource.localpath.components().collect();
        if let Some(other) = self.locals.insert(path.clone(), name()) {
            let problem = Problem::LocalTwice { resource: name(), other: other.into(), path: path.into() };
            return Err(Missing { at, problem, expected: "a disk or file for each resource".to_owned() });
        }
        if let Some(other) = self.provnames.insert(resource.provname.clone(), name()) {
            let provname = resource.provname.clone().into();
            let problem = Problem::NameTwice { resource: name(), other: other.into(), provname };
            return Err(Missing { at, problem, expected: "another `name`".to_owned() });
        }
        Ok(())
    }
}

impl<'a> Section<'a> {
    pub(crate) fn new(name: Token<'a>) -> Section<'a> {
        Section {
            name: name.text,
            at: name.at,
            settings: Settings::default(),
            provname: None,
            local: None,
            node: NodeValues::default(),
            has_node: false,
            others: Vec::new(),
        }
    }

    /// An `on` section for the node of this name begins.
    pub(crate) fn enter(&mut self, name: &str, mine: bool) {
        if mine {
            self.has_node = true;
        } else {
            self.others.push(name.to_owned());
        }
    }

    fn finish(self, global: &Settings, node: &Node, nbd: &Path, has_nbd: bool) -> Result<Resource, Missing> {
        let Section { at, settings: own, node: values, .. } = self;
        let name = self.name.to_owned();
        if !self.has_node {
            let names: Vec<String> = node.matching_names().iter().map(|n| format!("on {n}")).collect();
            let expected = match names.as_slice() {
                [] => "an `on` section for this node, which has no name".to_owned(),
                names => one_of(names),
            };
            let problem = Problem::NoSection { resource: name, present: self.others };
            return Err(Missing { at, problem, expected });
        }
        let Some(remote) = values.remote else {
            let expected = "`remote <address>` or `remote none` in the `on` section".to_owned();
            return Err(Missing { at, problem: Problem::NoRemote { resource: name }, expected });
        };
        let Some(localpath) = values.local.or(self.local) else {
            let expected = "`local <path>` in the resource or in its `on` section".to_owned();
            return Err(Missing { at, problem: Problem::NoLocal { resource: name }, expected });
        };
        let provname = values.provname.or(self.provname).unwrap_or(Placed { value: name.clone(), at });
        if let Err(error) = nbd_socket_path(nbd, &provname.value)
            && (has_nbd || !matches!(error, NbdPathError::TooLong { .. }))
        {
            let expected = "another `name` or another `nbd` directory".to_owned();
            let problem = Problem::NbdPath { resource: name, error };
            return Err(Missing { at: provname.at, problem, expected });
        }
        Ok(Resource {
            name,
            provname: provname.value,
            localpath,
            remote,
            source: values.source,
            replication: own.replication.or(global.replication).unwrap_or(Replication::Memsync),
            checksum: own.checksum.or(global.checksum).unwrap_or(Checksum::None),
            compression: own.compression.or(global.compression).unwrap_or(Compression::Hole),
            timeout: own.timeout.or(global.timeout).unwrap_or(DEFAULT_TIMEOUT),
            peer_timeout: own.peer_timeout.or(global.peer_timeout).unwrap_or(DEFAULT_PEER_TIMEOUT),
            device: own.device.or(global.device).unwrap_or_default(),
            direct_reads: own.direct_reads.or(global.direct_reads).unwrap_or(false),
            exec: own.exec.or_else(|| global.exec.clone()),
            metaflush: values.metaflush.or(own.metaflush).or(global.metaflush).unwrap_or(true),
        })
    }
}

fn default_control() -> Address {
    Address::spelled(DEFAULT_CONTROL, Endpoint::Unix("/var/run/hastctl".into()))
}

fn default_listen_v4() -> Address {
    let host = Host::Ip(Ipv4Addr::UNSPECIFIED.into());
    Address::spelled("tcp4://0.0.0.0:8457", Endpoint::Tcp { family: Family::V4, host, port: DEFAULT_PORT })
}

fn default_listen_v6() -> Address {
    let host = Host::Ip(Ipv6Addr::UNSPECIFIED.into());
    Address::spelled("tcp6://[::]:8457", Endpoint::Tcp { family: Family::V6, host, port: DEFAULT_PORT })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_spelled_as_they_mean() {
        for address in [default_control(), default_listen_v4(), default_listen_v6()] {
            assert_eq!(Address::parse(address.as_str()).unwrap(), address);
        }
    }
}
