//! The messages as nv lists. The first pair of each is `msg`.

use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use hast_conf::{KernelDevice, Replication, Resource};
use hast_engine::{Event, Side};
use hast_format::metadata::{Metadata, Role};
use hast_format::nv;
use hast_net::address::Address;
use hast_net::control::{ConnectionState, Divergence, Facts, Statistics, WorkerStatus};
use hast_net::handshake::{BootId, Extensions, Meeting, Met, Parting, SecondHello};
use hast_net::payload::{Checksum, Compression};

use super::{GateStart, Packet, Reload, Start, StartKind, ToSupervisor, ToWorker};

impl ToWorker {
    pub(super) fn encode(self) -> Packet {
        match self {
            ToWorker::Start(start) => start.encode(),
            ToWorker::Connected { side, id, socket } => {
                let mut nv = message("connected");
                nv.u8("side", side_number(side)).u32("id", id);
                Packet { nv: nv.into_bytes(), descriptors: vec![socket] }
            }
            ToWorker::ConnectFailed { side, id, error } => {
                let mut nv = message("connect-failed");
                nv.u8("side", side_number(side)).u32("id", id).str("error", &error);
                nv.into()
            }
            ToWorker::Reload(reload) => {
                let mut nv = message("reload");
                put_resource(&mut nv, &reload.resource);
                nv.u8("reconnect", reload.reconnect.into());
                nv.into()
            }
            ToWorker::Status { id } => {
                let mut nv = message("status");
                nv.u32("id", id);
                nv.into()
            }
            ToWorker::Stop => message("stop").into(),
        }
    }

    pub(super) fn decode(packet: Packet) -> io::Result<ToWorker> {
        let list = parse(&packet.nv)?;
        let mut descriptors = Descriptors(packet.descriptors.into_iter());
        match need(list.str("msg"), "msg")? {
            "start" => Ok(ToWorker::Start(Box::new(Start::decode(&list, descriptors)?))),
            "connected" => Ok(ToWorker::Connected {
                side: get_side(&list)?,
                id: need(list.u32("id"), "id")?,
                socket: descriptors.next()?,
            }),
            "connect-failed" => Ok(ToWorker::ConnectFailed {
                side: get_side(&list)?,
                id: need(list.u32("id"), "id")?,
                error: need(list.str("error"), "error")?.to_owned(),
            }),
            "reload" => Ok(ToWorker::Reload(Box::new(Reload {
                resource: get_resource(&list)?,
                reconnect: need(list.u8("reconnect"), "reconnect")? != 0,
            }))),
            "status" => Ok(ToWorker::Status { id: need(list.u32("id"), "id")? }),
            "stop" => Ok(ToWorker::Stop),
            other => Err(invalid(&format!("unknown message `{other}'"))),
        }
    }
}

impl Start {
    fn encode(self) -> Packet {
        let mut nv = message("start");
        nv.str("role", self.role().as_str());
        put_resource(&mut nv, &self.resource);
        nv.u8("debug", self.debug);
        nv.u8("background", self.background.into());
        nv.u8("drop", self.drop_privileges.into());
        nv.u8_array("boot", &self.boot);
        nv.u8("forced", self.forced.into()).u8("unsure", self.unsure.into());
        if let Some(metadata) = &self.detached {
            nv.u8_array("detached", &metadata.encode());
        }
        let descriptors = match self.kind {
            StartKind::Primary { nbd, gate, served, left_behind } => {
                nv.u8("nbd", nbd.is_some().into());
                nv.u8("gate", gate.is_some().into());
                nv.u8("served", served.into()).u8("left_behind", left_behind.into());
                let control = gate.map(|GateStart { control, owner }| {
                    nv.str("owner", &owner);
                    control
                });
                [Some(self.provider), nbd, control].into_iter().flatten().collect()
            }
            StartKind::Secondary { out, in_, version, ext, hello } => {
                nv.u8("version", version);
                nv.str("ext", &ext.words());
                nv.u8_array("token", &hello.token);
                nv.u8("virgin", hello.virgin.into());
                nv.u64("resuid", hello.resuid);
                nv.u64("localcnt", hello.localcnt);
                nv.u64("remotecnt", hello.remotecnt);
                if let Some(boot) = &hello.boot {
                    nv.u8_array("peer_boot", boot);
                }
                if let Some(parting) = &hello.parting {
                    nv.u64("parted", parting.last).u64("parting", parting.next);
                    if let Some(divergence) = &parting.divergence {
                        put_divergence(&mut nv, divergence);
                    }
                }
                if let Some(Meeting { met, draw, localcnt }) = hello.meeting {
                    nv.u64("connection", met.last).u64("connection_before", met.before);
                    nv.u32("connection_draw", draw).u64("connection_localcnt", localcnt);
                }
                vec![self.provider, out, in_]
            }
        };
        Packet { nv: nv.into_bytes(), descriptors }
    }

    fn decode(list: &nv::List<'_>, mut descriptors: Descriptors) -> io::Result<Start> {
        let resource = get_resource(list)?;
        let provider = descriptors.next()?;
        let kind = match need(list.str("role").and_then(Role::parse), "role")? {
            Role::Primary => {
                let mut if_sent = |name: &str| match need(list.u8(name), name)? {
                    0 => Ok(None),
                    _ => descriptors.next().map(Some),
                };
                let (nbd, control) = (if_sent("nbd")?, if_sent("gate")?);
                let gate = control.map(|control| get_gate(list, control)).transpose()?;
                let flag = |name: &str| need(list.u8(name), name).map(|flag| flag != 0);
                StartKind::Primary { nbd, gate, served: flag("served")?, left_behind: flag("left_behind")? }
            }
            Role::Secondary => StartKind::Secondary {
                out: descriptors.next()?,
                in_: descriptors.next()?,
                version: need(list.u8("version"), "version")?,
                ext: Extensions::from_words(need(list.str("ext"), "ext")?),
                hello: SecondHello {
                    resource: resource.name.clone(),
                    token: need(sixteen_bytes(list, "token"), "token")?,
                    virgin: need(list.u8("virgin"), "virgin")? != 0,
                    resuid: need(list.u64("resuid"), "resuid")?,
                    localcnt: need(list.u64("localcnt"), "localcnt")?,
                    remotecnt: need(list.u64("remotecnt"), "remotecnt")?,
                    boot: sixteen_bytes(list, "peer_boot"),
                    parting: get_parting(list)?,
                    meeting: get_meeting(list),
                },
            },
            Role::Init => return Err(invalid("role init has no worker")),
        };
        Ok(Start {
            resource,
            debug: need(list.u8("debug"), "debug")?,
            background: need(list.u8("background"), "background")? != 0,
            drop_privileges: need(list.u8("drop"), "drop")? != 0,
            boot: need(sixteen_bytes(list, "boot"), "boot")?,
            forced: need(list.u8("forced"), "forced")? != 0,
            unsure: need(list.u8("unsure"), "unsure")? != 0,
            detached: list.u8_array("detached").map(get_metadata).transpose()?,
            provider,
            kind,
        })
    }
}

impl ToSupervisor {
    pub(super) fn encode(self) -> Packet {
        match self {
            ToSupervisor::Connect { side, id } => {
                let mut nv = message("connect");
                nv.u8("side", side_number(side)).u32("id", id);
                nv.into()
            }
            ToSupervisor::Cancel { id } => {
                let mut nv = message("cancel");
                nv.u32("id", id);
                nv.into()
            }
            ToSupervisor::Begun => message("begun").into(),
            ToSupervisor::Detached(metadata) => {
                let mut nv = message("detached");
                if let Some(metadata) = metadata {
                    nv.u8_array("metadata", &metadata.encode());
                }
                nv.into()
            }
            ToSupervisor::Served => message("served").into(),
            ToSupervisor::DiscardDevice => message("discard-device").into(),
            ToSupervisor::ClientLost => message("client-lost").into(),
            ToSupervisor::Event { event, complete, dirty } => {
                let mut nv = message("event");
                nv.str("name", event.as_str()).u8("complete", complete.into()).u64("dirty", dirty);
                nv.into()
            }
            ToSupervisor::Connection { state, reason } => {
                let mut nv = message("connection");
                nv.str("state", state.as_str()).str("reason", &reason);
                nv.into()
            }
            ToSupervisor::Status { id, status } => {
                let mut nv = message("status");
                nv.u32("id", id);
                put_status(&mut nv, &status);
                nv.into()
            }
        }
    }

    pub(super) fn decode(packet: Packet) -> io::Result<ToSupervisor> {
        let list = parse(&packet.nv)?;
        match need(list.str("msg"), "msg")? {
            "connect" => {
                Ok(ToSupervisor::Connect { side: get_side(&list)?, id: need(list.u32("id"), "id")? })
            }
            "cancel" => Ok(ToSupervisor::Cancel { id: need(list.u32("id"), "id")? }),
            "begun" => Ok(ToSupervisor::Begun),
            "detached" => list.u8_array("metadata").map(get_metadata).transpose().map(ToSupervisor::Detached),
            "served" => Ok(ToSupervisor::Served),
            "discard-device" => Ok(ToSupervisor::DiscardDevice),
            "client-lost" => Ok(ToSupervisor::ClientLost),
            "event" => Ok(ToSupervisor::Event {
                event: need(list.str("name").and_then(Event::parse), "name")?,
                complete: need(list.u8("complete"), "complete")? != 0,
                dirty: need(list.u64("dirty"), "dirty")?,
            }),
            "connection" => Ok(ToSupervisor::Connection {
                state: need(list.str("state").and_then(ConnectionState::parse), "state")?,
                reason: need(list.str("reason"), "reason")?.to_owned(),
            }),
            "status" => {
                let status = Box::new(get_status(&list)?);
                Ok(ToSupervisor::Status { id: need(list.u32("id"), "id")?, status })
            }
            other => Err(invalid(&format!("unknown message `{other}'"))),
        }
    }
}

fn get_gate(list: &nv::List<'_>, control: OwnedFd) -> io::Result<GateStart> {
    Ok(GateStart { control, owner: need(list.str("owner"), "owner")?.to_owned() })
}

pub(super) fn message(msg: &str) -> nv::Writer {
    let mut nv = nv::Writer::new();
    nv.str("msg", msg);
    nv
}

fn put_resource(nv: &mut nv::Writer, resource: &Resource) {
    nv.str("name", &resource.name);
    nv.str("provname", &resource.provname);
    nv.str("localpath", &resource.localpath.to_string_lossy());
    nv.str("remoteaddr", resource.remote.as_ref().map_or("none", Address::as_str));
    if let Some(source) = &resource.source {
        nv.str("sourceaddr", source.as_str());
    }
    nv.str("replication", resource.replication.as_str());
    nv.str("checksum", resource.checksum.as_str());
    nv.str("compression", resource.compression.as_str());
    nv.u32("timeout", resource.timeout);
    nv.u32("peer_timeout", resource.peer_timeout);
    nv.str("device", resource.device.as_str()).u8("direct_reads", resource.direct_reads.into());
    nv.u8("metaflush", resource.metaflush.into());
    if let Some(exec) = &resource.exec {
        nv.str("exec", &exec.to_string_lossy());
    }
}

fn get_resource(list: &nv::List<'_>) -> io::Result<Resource> {
    let address = |text: &str, parsed: Option<Address>| {
        parsed.ok_or_else(|| invalid(&format!("`{text}' is not an address")))
    };
    let remote = match need(list.str("remoteaddr"), "remoteaddr")? {
        "none" => None,
        text => Some(address(text, Address::parse(text).ok())?),
    };
    let source = match list.str("sourceaddr") {
        None => None,
        Some(text) => Some(address(text, Address::parse_source(text).ok())?),
    };
    Ok(Resource {
        name: need(list.str("name"), "name")?.to_owned(),
        provname: need(list.str("provname"), "provname")?.to_owned(),
        localpath: PathBuf::from(need(list.str("localpath"), "localpath")?),
        remote,
        source,
        replication: need(list.str("replication").and_then(Replication::parse), "replication")?,
        checksum: need(list.str("checksum").and_then(Checksum::parse), "checksum")?,
        compression: need(list.str("compression").and_then(Compression::parse), "compression")?,
        timeout: need(list.u32("timeout"), "timeout")?,
        peer_timeout: need(list.u32("peer_timeout"), "peer_timeout")?,
        device: need(list.str("device").and_then(KernelDevice::parse), "device")?,
        direct_reads: need(list.u8("direct_reads"), "direct_reads")? != 0,
        exec: list.str("exec").map(PathBuf::from),
        metaflush: need(list.u8("metaflush"), "metaflush")? != 0,
    })
}

fn put_status(nv: &mut nv::Writer, status: &WorkerStatus) {
    nv.u8("complete", status.complete.into());
    nv.u64("dirty", status.dirty);
    nv.u32("extentsize", status.extentsize);
    nv.u32("keepdirty", status.keepdirty);
    let mut statistics = status.statistics;
    for (name, counter) in Statistics::COUNTERS {
        nv.u64(name, *counter(&mut statistics));
    }
    let f = &status.facts;
    if let Some(since) = f.inconsistent_since {
        nv.u64("inconsistent_since", since).str("inconsistent_by", &f.inconsistent_by);
    }
    nv.u8("target", f.target.into()).u64("stale_bytes", f.stale_bytes).u8("detached", f.detached.into());
    nv.u8("possibly_behind", f.possibly_behind.into()).u8("split_brain", f.split_brain.into());
    if let Some(original) = f.peer_is_original {
        nv.u8("peer_is_original", original.into());
    }
    nv.u8("synchronising", f.synchronising.into()).u64("to_synchronise_bytes", f.to_synchronise_bytes);
    for (index, client) in f.clients.iter().enumerate() {
        nv.u32(&format!("client{index}"), *client);
    }
    if let Some(divergence) = &f.divergence {
        put_divergence(nv, divergence);
    }
}

fn get_status(list: &nv::List<'_>) -> io::Result<WorkerStatus> {
    let number = |name: &str| need(list.u64(name), name);
    let mut statistics = Statistics::default();
    for (name, counter) in Statistics::COUNTERS {
        *counter(&mut statistics) = number(name)?;
    }
    Ok(WorkerStatus {
        complete: need(list.u8("complete"), "complete")? != 0,
        dirty: number("dirty")?,
        extentsize: need(list.u32("extentsize"), "extentsize")?,
        keepdirty: need(list.u32("keepdirty"), "keepdirty")?,
        statistics,
        facts: get_facts(list)?,
    })
}

fn get_facts(list: &nv::List<'_>) -> io::Result<Facts> {
    let flag = |name: &str| need(list.u8(name), name).map(|value| value != 0);
    let inconsistent_since = list.u64("inconsistent_since");
    let inconsistent_by = match inconsistent_since {
        Some(_) => need(list.str("inconsistent_by"), "inconsistent_by")?.to_owned(),
        None => String::new(),
    };
    Ok(Facts {
        inconsistent_since,
        inconsistent_by,
        target: flag("target")?,
        stale_bytes: need(list.u64("stale_bytes"), "stale_bytes")?,
        detached: flag("detached")?,
        possibly_behind: flag("possibly_behind")?,
        split_brain: flag("split_brain")?,
        peer_is_original: list.u8("peer_is_original").map(|value| value != 0),
        synchronising: flag("synchronising")?,
        to_synchronise_bytes: need(list.u64("to_synchronise_bytes"), "to_synchronise_bytes")?,
        clients: (0..).map_while(|index| list.u32(&format!("client{index}"))).collect(),
        divergence: get_divergence(list)?,
    })
}

fn get_parting(list: &nv::List<'_>) -> io::Result<Option<Parting>> {
    let Some(last) = list.u64("parted") else { return Ok(None) };
    let next = need(list.u64("parting"), "parting")?;
    Ok(Some(Parting { last, next, divergence: get_divergence(list)? }))
}

/// A block of metadata as it would lie on a disk.
fn get_metadata(block: &[u8]) -> io::Result<Box<Metadata>> {
    let reading = Metadata::read(block).map_err(|error| invalid(&error.to_string()))?;
    Ok(Box::new(reading.metadata))
}

fn get_meeting(list: &nv::List<'_>) -> Option<Meeting> {
    let met = Met { last: list.u64("connection")?, before: list.u64("connection_before")? };
    let (draw, localcnt) = (list.u32("connection_draw")?, list.u64("connection_localcnt")?);
    Some(Meeting { met, draw, localcnt })
}

fn put_divergence(nv: &mut nv::Writer, divergence: &Divergence) {
    let Divergence { extentsize, here, there, both, exact } = *divergence;
    nv.u32("changed_extentsize", extentsize).u64("changed_here", here).u64("changed_there", there);
    nv.u64("changed_both", both).u8("changed_exact", exact.into());
}

fn get_divergence(list: &nv::List<'_>) -> io::Result<Option<Divergence>> {
    let Some(extentsize) = list.u32("changed_extentsize") else { return Ok(None) };
    Ok(Some(Divergence {
        extentsize,
        here: need(list.u64("changed_here"), "changed_here")?,
        there: need(list.u64("changed_there"), "changed_there")?,
        both: need(list.u64("changed_both"), "changed_both")?,
        exact: need(list.u8("changed_exact"), "changed_exact")? != 0,
    }))
}

/// A token or a boot id.
fn sixteen_bytes(list: &nv::List<'_>, name: &str) -> Option<BootId> {
    list.u8_array(name).and_then(|bytes| bytes.try_into().ok())
}

fn side_number(side: Side) -> u8 {
    match side {
        Side::Out => 0,
        Side::In => 1,
    }
}

fn get_side(list: &nv::List<'_>) -> io::Result<Side> {
    match need(list.u8("side"), "side")? {
        0 => Ok(Side::Out),
        1 => Ok(Side::In),
        other => Err(invalid(&format!("no connection has the number {other}"))),
    }
}

fn parse(bytes: &[u8]) -> io::Result<nv::List<'_>> {
    nv::List::parse(bytes).map_err(|error| invalid(&error.to_string()))
}

fn need<T>(value: Option<T>, name: &str) -> io::Result<T> {
    value.ok_or_else(|| invalid(&format!("no usable `{name}'")))
}

pub(super) fn invalid(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("bad message between hastd's processes: {what}"))
}

impl From<nv::Writer> for Packet {
    fn from(nv: nv::Writer) -> Packet {
        Packet { nv: nv.into_bytes(), descriptors: Vec::new() }
    }
}

/// The descriptors of a packet, in the order in which they were sent.
struct Descriptors(std::vec::IntoIter<OwnedFd>);

impl Descriptors {
    fn next(&mut self) -> io::Result<OwnedFd> {
        self.0.next().ok_or_else(|| invalid("a descriptor is missing"))
    }
}
