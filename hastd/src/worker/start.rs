//! From a start message to everything a worker runs with: the provider checked, the map read, the engine
//! made, privileges dropped.
//!
//! Owns the refusals that end a worker before it serves anything, and their exit codes.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use hast_conf::Resource;
use hast_engine::{Deletes, Host, Primary, PrimaryStart, Secondary, SecondaryStart, Settings};
use hast_format::bitmap::Bitmap;
use hast_format::layout::{Layout, LayoutError};
use hast_format::metadata::{Metadata, Role};
use hast_ggate::{Create, DeviceError, Gate};
use hast_log::{Sink, error_text};
use hast_net::handshake::texts;
use hast_net::payload::Stages;
use hast_provider::{Provider, ProviderError};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use socket2::SockRef;

use super::deletes;
use super::engine::Engine;
use super::former;
use super::gate;
use super::holes;
use super::peer::LinkSettings;
use super::privileges::{self, PrivilegesError};
use super::reclaim;
use super::sandbox::{self, Purpose};
use crate::contract::TITLE_PREFIX;
use crate::exit;
use crate::ipc::{Channel, GateStart, Start, StartKind, ToWorker};
use crate::refusal;
use crate::wall;

/// Why a worker ends before it has begun.
#[derive(Debug, thiserror::Error)]
pub(super) enum StartError {
    #[error(transparent)]
    Provider(#[from] ProviderError),
    #[error("Metadata on {path} is unusable: {error}.")]
    Layout { path: String, error: LayoutError },
    #[error(transparent)]
    Privileges(#[from] PrivilegesError),
    #[error("Unable to create {name} device: {error}.")]
    Device { name: String, error: DeviceError },
    #[error("Unable to draw random numbers: {0}.")]
    Random(String),
    #[error("Unable to receive from the supervisor: {}.", error_text(.0))]
    Channel(io::Error),
    #[error("The supervisor sent something before the start message.")]
    OutOfTurn,
    #[error("Unable to limit the worker's rights: {}.", error_text(.0))]
    Sandbox(io::Error),
    #[error("Unable to set up the worker: {}.", error_text(.0))]
    System(io::Error),
}

impl StartError {
    /// The worker's exit code.
    pub(super) fn code(&self) -> i32 {
        match self {
            StartError::Provider(_) | StartError::Layout { .. } => exit::NO_INPUT,
            StartError::Privileges(_) | StartError::Sandbox(_) => exit::CONFIG,
            StartError::Device { .. }
            | StartError::Random(_)
            | StartError::Channel(_)
            | StartError::OutOfTurn
            | StartError::System(_) => exit::OS_ERROR,
        }
    }
}

/// Everything that a worker runs with.
pub(super) struct Started {
    pub(super) engine: Engine,
    pub(super) provider: Provider,
    /// Its layout, if clients of the device may be told what of it is a hole.
    pub(super) holes: Option<Layout>,
    pub(super) resource: Resource,
    pub(super) device: Device,
    /// A primary is to use its data whatever is known of it.
    pub(super) forced: bool,
    pub(super) left_behind: LeftBehind,
    /// Privileges were dropped: what is open now is all that will be.
    pub(super) dropped: bool,
}

/// Whether an earlier hastd has left a primary's device behind, and what waits in it was meant for the data as they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LeftBehind {
    /// No device was left behind.
    No,
    /// It may have been: the other node has to be asked.
    Perhaps,
    /// It was not: this node has had another role since.
    Old,
}

/// What the role brings: the devices of a primary, the connections of a secondary.
pub(super) enum Device {
    Primary { nbd: Option<OwnedFd>, gate: Option<gate::Opened>, size: u64, sector: u32, deletes: Deletes },
    Connections { out: OwnedFd, in_: OwnedFd },
}

/// Waits for the start message. None: the worker is not wanted after all.
pub(super) fn receive(channel: &Channel) -> Result<Option<Start>, StartError> {
    loop {
        match channel.recv_from_supervisor() {
            Ok(Some(ToWorker::Start(start))) => return Ok(Some(*start)),
            Ok(Some(ToWorker::Stop) | None) => return Ok(None),
            Ok(Some(_)) => return Err(StartError::OutOfTurn),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                let mut watched = [PollFd::new(channel.as_fd(), PollFlags::POLLIN)];
                match poll(&mut watched, PollTimeout::NONE) {
                    Ok(_) | Err(nix::Error::EINTR) => {}
                    Err(error) => return Err(StartError::Channel(error.into())),
                }
            }
            Err(error) => return Err(StartError::Channel(error)),
        }
    }
}

/// Opens the log, checks the provider, makes the engine (at time zero) and the device, and drops privileges.
pub(super) fn open(mut start: Start) -> Result<Started, StartError> {
    begin_log(&start);
    if start.role() == Role::Primary {
        reclaim::stay_out_of_reclaim();
    }
    let gate = match &mut start.kind {
        StartKind::Primary { gate, .. } => gate.take(),
        StartKind::Secondary { .. } => None,
    };
    let name = hast_ggate::device_name(&start.resource.provname);
    let refused = |error| StartError::Device { name, error };
    let used = |GateStart { control, owner }| gate::kernel(control).map(|kernel| UsedGate { kernel, owner });
    let gate = gate.map(used).transpose().map_err(refused)?;
    open_with(start, gate)
}

/// The socket to the system log must be open before the root directory changes.
fn begin_log(start: &Start) {
    hast_log::init(if start.background { Sink::Syslog } else { Sink::Terminal }, start.debug);
    hast_log::set_process_prefix(Some(&start.resource.name), Some(start.role().as_str()));
    hast_log::count_repeats();
}

/// GEOM Gate as a worker uses it.
pub(super) struct UsedGate {
    pub(super) kernel: Arc<dyn Gate>,
    /// [`GateStart::owner`].
    pub(super) owner: String,
}

/// The same, with this GEOM Gate.
pub(super) fn open_with(start: Start, gate: Option<UsedGate>) -> Result<Started, StartError> {
    let role = start.role();
    let Start {
        resource,
        debug: _,
        background: _,
        drop_privileges,
        boot,
        forced,
        unsure,
        detached,
        provider,
        kind,
    } = start;
    let used = use_provider(provider, &resource, role, detached.as_deref());
    let (provider, metadata, layout, map) = used.inspect_err(|error| kind.turn_away(error))?;
    let settings = settings(&resource);
    let deletes = deletes::ability(&provider);
    let holes = (role == Role::Primary && holes::are_told(&provider)).then_some(layout);
    log::debug!("Deletes: {deletes:?}.");
    let host = Host { boot, wall: wall::now(), deletes };
    let (size, sector) = (layout.datasize(), layout.sectorsize());
    let was_primary = metadata.prevrole == Role::Primary;
    let (engine, device, left_behind) = match kind {
        StartKind::Primary { nbd, served, left_behind, .. } => {
            let gate = gate.map(|gate| open_device(gate, &resource, &layout)).transpose()?;
            let taken_over = gate.as_ref().is_some_and(gate::Opened::is_taken_over);
            let left_behind = match !served && (left_behind || taken_over) {
                false => LeftBehind::No,
                true if was_primary => LeftBehind::Perhaps,
                true => LeftBehind::Old,
            };
            let detached = detached.is_some();
            let random = random()?;
            let start = PrimaryStart { settings, metadata, layout, map, random, host, forced, detached };
            let primary = Primary::new(start, Duration::ZERO);
            let device = Device::Primary { nbd, gate, size, sector, deletes };
            (Engine::Primary(Box::new(primary)), device, left_behind)
        }
        StartKind::Secondary { out, in_, version, ext, hello } => {
            let former = former(&provider, &metadata, &layout, deletes);
            let start =
                SecondaryStart { metadata, layout, map, settings, version, ext, host, hello, unsure, former };
            let secondary = Secondary::new(start, Duration::ZERO);
            (Engine::Secondary(Box::new(secondary)), Device::Connections { out, in_ }, LeftBehind::No)
        }
    };
    let title = format!("{TITLE_PREFIX}{} ({})", resource.name, role.as_str());
    let dropped = drop_privileges && privileges::drop_privileges(&title)?;
    if dropped {
        log::info!("Privileges successfully dropped.");
    }
    Ok(Started { engine, provider, holes, resource, device, forced, left_behind, dropped })
}

/// Locks the provider and reads what is on it; nothing of that if its disk was given up.
fn use_provider(
    provider: OwnedFd,
    resource: &Resource,
    role: Role,
    detached: Option<&Metadata>,
) -> Result<(Provider, Metadata, Layout, Vec<u8>), StartError> {
    let provider = Provider::from_fd(provider, &resource.localpath)?;
    log::debug!("Obtained info about {}.", provider.path().display());
    log::debug!("Locked {}.", provider.path().display());
    if let Err(error) = provider.forget_cached() {
        log::warn!("Unable to look past the cache of {}: {error}.", provider.path().display());
    }
    let (metadata, layout, map) = match detached {
        Some(metadata) => given_up(&provider, metadata)?,
        None => read(&provider, resource, role)?,
    };
    Ok((provider, metadata, layout, map))
}

impl StartKind {
    /// A secondary's worker cannot use its provider: the primary hears why.
    fn turn_away(&self, error: &StartError) {
        if let StartKind::Secondary { out, version, ext, .. } = self {
            let errmsg = texts::provider_failed(&error.to_string());
            refusal::turn_away(&SockRef::from(out), *version, *ext, &errmsg);
        }
    }
}

/// What a fresh secondary's file holds from before, if it can be freed.
fn former(provider: &Provider, metadata: &Metadata, layout: &Layout, deletes: Deletes) -> Bitmap {
    let none = Bitmap::new(u32::try_from(layout.nextents()).unwrap_or(u32::MAX));
    let wanted = metadata.resuid == 0 && deletes == Deletes::LeaveZeros && !provider.is_device();
    if !wanted {
        return none;
    }
    former::allocated(provider.as_file(), layout).unwrap_or_else(|error| {
        log::debug!("It is not known what {} held before: {error}.", provider.path().display());
        none
    })
}

/// What lies on the provider, whole: metadata, layout and map.
fn read(
    provider: &Provider,
    resource: &Resource,
    role: Role,
) -> Result<(Metadata, Layout, Vec<u8>), StartError> {
    let metadata = provider.recover_metadata_of(&resource.name)?.metadata;
    let layout = layout(provider, &metadata)?;
    let (map, lost) = provider.recover_map(&layout)?;
    if lost > 0 && metadata.resuid == 0 && metadata.prevrole == Role::Primary && role == Role::Secondary {
        log::warn!(
            "This node was primary and has not met another one: what its activemap has lost counts as written here, \
             and a primary that it meets is told of a split-brain. If nothing was written here, make it a fresh \
             one: hastctl role init {0}, hastctl create {0}.",
            resource.name
        );
    }
    Ok((metadata, layout, map))
}

/// The same for a primary whose disk was given up: nothing of it is read.
fn given_up(provider: &Provider, metadata: &Metadata) -> Result<(Metadata, Layout, Vec<u8>), StartError> {
    let layout = layout(provider, metadata)?;
    let bytes = usize::try_from(layout.map_bytes()).unwrap_or(0);
    Ok((metadata.clone(), layout, vec![0; bytes]))
}

fn layout(provider: &Provider, metadata: &Metadata) -> Result<Layout, StartError> {
    Layout::open(metadata, provider.mediasize(), provider.sectorsize())
        .map_err(|error| StartError::Layout { path: provider.path().display().to_string(), error })
}

/// Leaves a worker that has dropped its privileges only what it needs of what is open, where the system can do
/// that.
pub(super) fn confine(channel: &Channel, started: &Started) -> Result<(), StartError> {
    if !started.dropped {
        return Ok(());
    }
    let limit = |fd: BorrowedFd<'_>, purpose| sandbox::limit(fd, purpose).map_err(StartError::Sandbox);
    limit(std::io::stdin().as_fd(), Purpose::Input)?;
    limit(std::io::stdout().as_fd(), Purpose::Log)?;
    limit(std::io::stderr().as_fd(), Purpose::Log)?;
    hast_log::with_socket(|socket| limit(socket, Purpose::Log)).transpose()?;
    limit(channel.as_fd(), Purpose::Channel)?;
    limit(started.provider.as_file().as_fd(), Purpose::Disk)?;
    // A secondary's connections are limited where they are taken into use, as a primary's are.
    if let Device::Primary { nbd, gate, .. } = &started.device {
        if let Some(nbd) = nbd {
            limit(nbd.as_fd(), Purpose::NbdListener)?;
        }
        if let Some(control) = gate.as_ref().and_then(gate::Opened::descriptor) {
            limit(control, Purpose::Gate)?;
        }
    }
    if sandbox::enter().map_err(StartError::Sandbox)? {
        log::debug!("Capability mode entered.");
    }
    Ok(())
}

/// Creates the device, or takes over what a predecessor left.
fn open_device(gate: UsedGate, resource: &Resource, layout: &Layout) -> Result<gate::Opened, StartError> {
    let name = hast_ggate::device_name(&resource.provname);
    let create = Create {
        name: name.clone(),
        mediasize: layout.datasize(),
        sectorsize: layout.sectorsize(),
        info: gate.owner,
    };
    let source = gate::Source {
        path: resource.localpath.to_string_lossy().into_owned(),
        size: layout.provider_size(),
        offset: layout.localoff(),
        allowed: resource.direct_reads,
    };
    gate::Opened::open(gate.kernel, &create, source).map_err(|error| StartError::Device { name, error })
}

/// The part of the configuration that the engine goes by.
pub(super) fn settings(resource: &Resource) -> Settings {
    Settings {
        replication: resource.replication,
        timeout: timeout(resource),
        peer_timeout: peer_timeout(resource),
        metaflush: resource.metaflush,
        remote: resource.remote.is_some(),
        peer: resource.remote_text().to_owned(),
    }
}

/// The part of the configuration that the connections go by.
pub(super) fn link_settings(resource: &Resource) -> LinkSettings {
    LinkSettings {
        stages: Stages { compression: resource.compression, checksum: resource.checksum },
        timeout: timeout(resource),
        peer_timeout: peer_timeout(resource),
        remote: resource.remote_text().to_owned(),
    }
}

/// How long the other node may take.
pub(super) fn timeout(resource: &Resource) -> Duration {
    Duration::from_secs(u64::from(resource.timeout.max(1)))
}

/// How long the other node may say nothing.
fn peer_timeout(resource: &Resource) -> Duration {
    Duration::from_secs(u64::from(resource.peer_timeout.max(1)))
}

/// A number that is not 0 and that nobody else draws.
fn random() -> Result<u64, StartError> {
    loop {
        let drawn = getrandom::u64().map_err(|error| StartError::Random(error.to_string()))?;
        if drawn != 0 {
            return Ok(drawn);
        }
    }
}
