//! What `hastctl` and `hastd` say to each other: one request frame, one reply frame (spec "The control socket").
//!
//! Owns the pairs, their order and the meaning of what is missing. Sockets, frames, and what a role change or a
//! status is, belong to others.

mod connection;
mod facts;

pub use connection::{Connection, ConnectionState};
pub use facts::{Divergence, Facts};

use std::collections::HashMap;

use hast_format::metadata::Role;
use hast_format::nv::{List, Pair, Type, Writer};

/// `error`: there is no such resource.
pub const ERROR_NO_ENTRY: i16 = 1;
/// `error`: the request is not valid.
pub const ERROR_INVALID: i16 = 2;
/// `error`: no memory.
pub const ERROR_NO_MEMORY: i16 = 3;
/// `error`: there is no such command.
pub const ERROR_UNIMPLEMENTED: i16 = 4;

/// The name that stands for every resource, if it comes first.
pub const ALL: &str = "all";

/// Stands for a text that was not sent.
const ABSENT: &str = "-";
/// `status`: both connections are up.
const COMPLETE: &str = "complete";
/// `status`: they are not.
const DEGRADED: &str = "degraded";

/// What `hastctl` asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// What to do.
    pub command: Command,
    /// With which resources: names in the order asked for, or [`ALL`] first.
    pub resources: Vec<String>,
    /// With [`Command::SetRole`]: make even a node primary whose data is known to be out of date. An original
    /// does not know this and always does.
    pub force: bool,
    /// With [`Command::Status`]: tell [`Facts`] as well.
    pub verbose: bool,
}

impl Request {
    /// A request as the original makes them.
    pub fn new(command: Command, resources: Vec<String>) -> Request {
        Request { command, resources, force: false, verbose: false }
    }

    /// Whether every resource is meant.
    pub fn is_all(&self) -> bool {
        self.resources.first().is_some_and(|name| name == ALL)
    }

    /// The list to send.
    pub fn encode(&self) -> Vec<u8> {
        let mut list = Writer::new();
        match self.command {
            Command::SetRole(role) => list.u8("cmd", SET_ROLE).u8("role", role_code(role)),
            Command::Status => list.u8("cmd", STATUS),
            Command::Reload => list.u8("cmd", RELOAD),
        };
        match self.command {
            Command::SetRole(_) if self.force => _ = list.u8("force", 1),
            Command::Status if self.verbose => _ = list.u8("verbose", 1),
            _ => {}
        }
        for (index, name) in self.resources.iter().enumerate() {
            list.str(&format!("resource{index}"), name);
        }
        list.into_bytes()
    }

    /// Understands a list as the reference's hastd does. The names end at the first gap in their numbers; there is
    /// at least one.
    pub fn decode(list: &List<'_>) -> Result<Request, Rejected> {
        let command = list.u8("cmd").filter(|command| *command != 0).ok_or(Rejected::Close)?;
        // Checked in the reference's order: of several faults the first one is answered.
        let role = list.u8("role").and_then(role_of_code);
        if command == SET_ROLE && role.is_none() {
            return Err(Rejected::Error(ERROR_INVALID));
        }
        let pairs = Pairs::new(list);
        let resources: Vec<String> = (0..).map_while(|index| pairs.text("resource", index)).collect();
        if resources.is_empty() {
            return Err(Rejected::Error(ERROR_INVALID));
        }
        let command = match (command, role) {
            (SET_ROLE, Some(role)) => Command::SetRole(role),
            (STATUS, _) => Command::Status,
            (RELOAD, _) => Command::Reload,
            _ => return Err(Rejected::Error(ERROR_UNIMPLEMENTED)),
        };
        let asked = |name| list.u8(name) == Some(1);
        let force = matches!(command, Command::SetRole(_)) && asked("force");
        let verbose = command == Command::Status && asked("verbose");
        Ok(Request { command, resources, force, verbose })
    }
}

/// What to do with resources.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// Change their role.
    SetRole(Role),
    /// Tell about them.
    Status,
    /// Read the configuration again; the resources say nothing, but have to be there. An original answers
    /// [`ERROR_UNIMPLEMENTED`].
    Reload,
}

const SET_ROLE: u8 = 1;
const STATUS: u8 = 2;
/// Far from what an original may have next.
const RELOAD: u8 = 64;

/// What a request that is none gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Rejected {
    /// The connection is closed without an answer.
    #[error("control request without a command")]
    Close,
    /// [`Reply::Error`] with that number.
    #[error("control request answered with error {0}")]
    Error(i16),
}

/// What `hastd` answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// The request as a whole failed: an `ERROR_` number, or an errno from a worker. Never 0.
    Error(i16),
    /// One entry per resource, in the order asked for.
    Entries(Vec<Entry>),
    /// Answer to [`Command::Reload`].
    Reloaded(Reloaded),
}

/// What became of a reload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reloaded {
    /// 0 if the configuration is in force as a whole, otherwise the exit status that says why not.
    pub status: u8,
    /// What has changed, or why something has not, for people.
    pub lines: Vec<String>,
}

impl Reply {
    /// The list to send, pairs in the reference's order.
    ///
    /// Without entries it still has a pair that no reader knows: the reference's hastctl aborts on an empty list.
    pub fn encode(&self) -> Vec<u8> {
        let mut list = Writer::new();
        match self {
            Reply::Error(error) => {
                list.i16("error", *error);
            }
            Reply::Reloaded(Reloaded { status, lines }) => {
                list.u8("x_reloaded", *status);
                for (index, line) in lines.iter().enumerate() {
                    list.str(&format!("x_line{index}"), line);
                }
            }
            Reply::Entries(entries) if entries.is_empty() => {
                list.u32("resources", 0);
            }
            Reply::Entries(entries) => {
                for (index, entry) in entries.iter().enumerate() {
                    entry.encode(&mut Numbered { list: &mut list, index });
                }
            }
        }
        list.into_bytes()
    }

    /// Understands a list. The entries end at the first gap in their numbers; no entry at all is a valid reply.
    /// What is missing in a status reads as `-` or 0, as the reference's hastctl shows it.
    pub fn decode(list: &List<'_>) -> Result<Reply, ReplyError> {
        if let Some(error) = list.i16("error").filter(|error| *error != 0) {
            return Ok(Reply::Error(error));
        }
        let pairs = Pairs::new(list);
        if let Some(status) = list.u8("x_reloaded") {
            let lines = (0..).map_while(|index| pairs.text("x_line", index)).collect();
            return Ok(Reply::Reloaded(Reloaded { status, lines }));
        }
        let entries = (0..).map_while(|index| {
            let name = pairs.text("resource", index)?;
            Some(Entry::decode(name, index, &pairs))
        });
        entries.collect::<Result<_, _>>().map(Reply::Entries)
    }
}

/// What `hastd` says about one resource.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Entry {
    /// It could not be done.
    Error {
        /// The resource as asked for.
        name: String,
        /// An `ERROR_` number or an errno, never 0.
        error: i16,
        /// Why, in words for the administrator (extension `x_reason`).
        reason: Option<String>,
    },
    /// Answer to [`Command::SetRole`].
    RoleWas {
        /// The resource.
        name: String,
        /// The role that it had before.
        role: String,
        /// It was primary, and the other node lacks something that was written here without knowing it.
        peer_behind: bool,
    },
    /// Answer to [`Command::Status`].
    Status {
        /// The resource.
        name: String,
        /// All about it.
        status: Box<ResourceStatus>,
    },
}

impl Entry {
    /// What could not be done with a resource, without a reason in words.
    pub fn error(name: impl Into<String>, error: i16) -> Entry {
        Entry::Error { name: name.into(), error, reason: None }
    }

    /// The resource's name.
    pub fn name(&self) -> &str {
        match self {
            Entry::Error { name, .. } | Entry::RoleWas { name, .. } | Entry::Status { name, .. } => name,
        }
    }

    fn encode(&self, list: &mut Numbered<'_>) {
        list.str("resource", self.name());
        match self {
            Entry::Error { error, reason, .. } => {
                list.i16("error", *error);
                if let Some(reason) = reason {
                    list.str("x_reason", reason);
                }
            }
            Entry::RoleWas { role, peer_behind, .. } => {
                list.str("role", role);
                if *peer_behind {
                    list.bool("x_peer_behind", true);
                }
            }
            Entry::Status { status, .. } => status.encode(list),
        }
    }

    fn decode(name: String, index: usize, pairs: &Pairs<'_>) -> Result<Entry, ReplyError> {
        if let Some(error) = pairs.i16("error", index).filter(|error| *error != 0) {
            let reason = pairs.text("x_reason", index);
            return Ok(Entry::Error { name, error, reason });
        }
        // Only a status has these, and every status has them.
        let is_status = ["provname", "localpath", "remoteaddr", "replication", "workerpid"]
            .iter()
            .any(|key| pairs.get(key, index).is_some());
        if is_status {
            return Ok(Entry::Status { name, status: Box::new(ResourceStatus::decode(index, pairs)) });
        }
        match pairs.text("role", index) {
            Some(role) => {
                let peer_behind = pairs.bool("x_peer_behind", index).unwrap_or(false);
                Ok(Entry::RoleWas { name, role, peer_behind })
            }
            None => Err(ReplyError { name }),
        }
    }
}

/// A resource is named in a reply, and nothing is said about it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("hastd names resource {name} in its reply, but says nothing about it")]
pub struct ReplyError {
    /// The resource.
    pub name: String,
}

/// All that `hastctl list` and `status` show of a resource. Texts are passed on as the daemon has them.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct ResourceStatus {
    pub provname: String,
    pub localpath: String,
    /// As configured; `none` without a remote node.
    pub remoteaddr: String,
    pub sourceaddr: Option<String>,
    pub replication: String,
    pub checksum: String,
    pub compression: String,
    pub role: String,
    /// 0 without a worker.
    pub workerpid: i32,
    /// What the worker says, if one runs; its facts do not travel in here.
    pub worker: Option<WorkerStatus>,
    /// What the node knows about itself. Only for a request that is verbose; None also if nobody knows.
    pub facts: Option<Facts>,
    /// How it stands to the other node; told to those who ask for facts.
    pub connection: Option<Connection>,
}

impl ResourceStatus {
    fn encode(&self, list: &mut Numbered<'_>) {
        list.str("provname", &self.provname);
        list.str("localpath", &self.localpath);
        list.str("remoteaddr", &self.remoteaddr);
        if let Some(sourceaddr) = &self.sourceaddr {
            list.str("sourceaddr", sourceaddr);
        }
        list.str("replication", &self.replication);
        list.str("checksum", &self.checksum);
        list.str("compression", &self.compression);
        list.str("role", &self.role);
        list.i32("workerpid", self.workerpid);
        if let Some(worker) = &self.worker {
            list.str("status", if worker.complete { COMPLETE } else { DEGRADED });
            list.u64("dirty", worker.dirty);
            list.u32("extentsize", worker.extentsize);
            list.u32("keepdirty", worker.keepdirty);
            let mut statistics = worker.statistics;
            for (name, counter) in Statistics::COUNTERS {
                list.u64(name, *counter(&mut statistics));
            }
        }
        if let Some(connection) = &self.connection {
            connection.encode(list);
        }
        if let Some(facts) = &self.facts {
            facts.encode(list);
        }
    }

    fn decode(index: usize, pairs: &Pairs<'_>) -> ResourceStatus {
        let text = |key| pairs.text(key, index).unwrap_or_else(|| ABSENT.to_owned());
        let number = |key| pairs.u64(key, index).unwrap_or_default();
        let mut statistics = Statistics::default();
        for (name, counter) in Statistics::COUNTERS {
            *counter(&mut statistics) = number(name);
        }
        let worker = pairs.text("status", index).map(|status| WorkerStatus {
            complete: status == COMPLETE,
            dirty: number("dirty"),
            extentsize: pairs.u32("extentsize", index).unwrap_or_default(),
            keepdirty: pairs.u32("keepdirty", index).unwrap_or_default(),
            statistics,
            facts: Facts::default(),
        });
        ResourceStatus {
            provname: text("provname"),
            localpath: text("localpath"),
            remoteaddr: text("remoteaddr"),
            sourceaddr: pairs.text("sourceaddr", index),
            replication: text("replication"),
            checksum: text("checksum"),
            compression: text("compression"),
            role: text("role"),
            workerpid: pairs.i32("workerpid", index).unwrap_or_default(),
            worker,
            facts: Facts::decode(index, pairs),
            connection: Connection::decode(index, pairs),
        }
    }
}

/// What a worker says about itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WorkerStatus {
    /// Both connections are up.
    pub complete: bool,
    /// Bytes of the extents that are being written or still to synchronise; 0 on a secondary.
    pub dirty: u64,
    /// Bytes per extent.
    pub extentsize: u32,
    /// Extents kept dirty; 0 on a secondary.
    pub keepdirty: u32,
    /// Counted since the worker began.
    pub statistics: Statistics,
    /// What the original could not say. The worker tells its supervisor; on the control socket this is
    /// [`ResourceStatus::facts`].
    pub facts: Facts,
}

/// What a worker has counted, and the lengths of its queues. "Queue" is the reference's word: requests free, at
/// the local disk, waiting to be sent, waiting for their reply, and done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Statistics {
    pub reads: u64,
    pub writes: u64,
    pub deletes: u64,
    pub flushes: u64,
    pub activemap_updates: u64,
    pub read_errors: u64,
    /// Includes failed writes of the map.
    pub write_errors: u64,
    pub delete_errors: u64,
    /// Includes failed flushes of the map.
    pub flush_errors: u64,
    pub idle_queue: u64,
    pub local_queue: u64,
    pub send_queue: u64,
    pub recv_queue: u64,
    pub done_queue: u64,
}

/// Where a counter is.
pub type Counter = fn(&mut Statistics) -> &mut u64;

impl Statistics {
    /// The counters by their names on the control socket, in the order in which they are sent.
    pub const COUNTERS: [(&str, Counter); 14] = [
        ("stat_read", |all| &mut all.reads),
        ("stat_write", |all| &mut all.writes),
        ("stat_delete", |all| &mut all.deletes),
        ("stat_flush", |all| &mut all.flushes),
        ("stat_activemap_update", |all| &mut all.activemap_updates),
        ("stat_read_error", |all| &mut all.read_errors),
        ("stat_write_error", |all| &mut all.write_errors),
        ("stat_delete_error", |all| &mut all.delete_errors),
        ("stat_flush_error", |all| &mut all.flush_errors),
        ("idle_queue_size", |all| &mut all.idle_queue),
        ("local_queue_size", |all| &mut all.local_queue),
        ("send_queue_size", |all| &mut all.send_queue),
        ("recv_queue_size", |all| &mut all.recv_queue),
        ("done_queue_size", |all| &mut all.done_queue),
    ];
}

fn role_code(role: Role) -> u8 {
    match role {
        Role::Init => 1,
        Role::Primary => 2,
        Role::Secondary => 3,
    }
}

fn role_of_code(code: u8) -> Option<Role> {
    [Role::Init, Role::Primary, Role::Secondary].into_iter().find(|role| role_code(*role) == code)
}

/// Writes pairs whose names end in the number of a resource.
struct Numbered<'a> {
    list: &'a mut Writer,
    index: usize,
}

impl Numbered<'_> {
    fn name(&self, key: &str) -> String {
        format!("{key}{}", self.index)
    }

    fn str(&mut self, key: &str, value: &str) {
        self.list.str(&self.name(key), value);
    }

    fn bool(&mut self, key: &str, value: bool) {
        self.list.u8(&self.name(key), value.into());
    }

    fn i16(&mut self, key: &str, value: i16) {
        self.list.i16(&self.name(key), value);
    }

    fn i32(&mut self, key: &str, value: i32) {
        self.list.i32(&self.name(key), value);
    }

    fn u32(&mut self, key: &str, value: u32) {
        self.list.u32(&self.name(key), value);
    }

    fn u64(&mut self, key: &str, value: u64) {
        self.list.u64(&self.name(key), value);
    }
}

/// Finds numbered pairs. A list may hold very many names; each is looked up without going through all others.
struct Pairs<'a>(HashMap<&'a [u8], Pair<'a>>);

impl<'a> Pairs<'a> {
    fn new(list: &List<'a>) -> Pairs<'a> {
        let mut first = HashMap::new();
        for pair in list.pairs() {
            // The first pair of a name decides.
            first.entry(pair.name).or_insert(pair);
        }
        Pairs(first)
    }

    fn get(&self, key: &str, index: usize) -> Option<&Pair<'a>> {
        self.0.get(format!("{key}{index}").as_bytes())
    }

    /// Text need not be UTF-8 (a path of the other side's): what is not is shown as U+FFFD.
    fn text(&self, key: &str, index: usize) -> Option<String> {
        match self.get(key, index)? {
            Pair { kind: Type::String, data: [text @ .., 0], .. } => {
                Some(String::from_utf8_lossy(text).into_owned())
            }
            _ => None,
        }
    }

    fn bool(&self, key: &str, index: usize) -> Option<bool> {
        self.number(key, index, Type::UInt8).map(|[value]| value != 0)
    }

    fn i16(&self, key: &str, index: usize) -> Option<i16> {
        self.number(key, index, Type::Int16).map(i16::from_le_bytes)
    }

    fn i32(&self, key: &str, index: usize) -> Option<i32> {
        self.number(key, index, Type::Int32).map(i32::from_le_bytes)
    }

    fn u32(&self, key: &str, index: usize) -> Option<u32> {
        self.number(key, index, Type::UInt32).map(u32::from_le_bytes)
    }

    fn u64(&self, key: &str, index: usize) -> Option<u64> {
        self.number(key, index, Type::UInt64).map(u64::from_le_bytes)
    }

    fn number<const N: usize>(&self, key: &str, index: usize, kind: Type) -> Option<[u8; N]> {
        self.get(key, index).filter(|pair| pair.kind == kind)?.data.try_into().ok()
    }
}
