//! Control clients: one request, one answer, none of them in anybody's way (spec/control.md).
//!
//! Roles and workers are asked for elsewhere; here is who asked, and what is still missing in the answer.

use std::io::{self, Read, Write};
use std::time::{Duration, Instant};

use hast_net::buffer::Pool;
use hast_net::control::{Command, ERROR_INVALID, ERROR_NO_ENTRY, Entry, Rejected, Reply, Request};
use hast_net::control::{Connection, Facts, ResourceStatus, WorkerStatus};
use hast_net::errno::Errno;
use hast_net::frame::{self, Frame, Limits, Receiver, VERSION};
use socket2::Socket;

use super::Supervisor;
use super::process::{Asker, Query};
use super::promotion::Promotion;
use super::resource::{Resource, Task, Waiter};
use crate::watch::Watched;

/// Clients at a time.
const CLIENTS_MAX: usize = 64;
/// How long a client may take to say what it wants, and to take the answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// Resources in one request. The answer says about a kilobyte of each.
const RESOURCES_MAX: usize = 16384;
/// Reads for one client before others have their turn.
const READS_MAX: usize = 16;

/// A control client.
#[derive(Debug)]
pub(super) struct Client {
    socket: Watched<Socket>,
    state: State,
    /// Absent while the answer is being made: that has its own bounds.
    deadline: Option<Instant>,
}

#[derive(Debug)]
enum State {
    /// Until the request is complete.
    Asking(Receiver),
    /// Until every slot is filled.
    Waiting { slots: Vec<Option<Entry>>, missing: usize },
    /// Until the answer is sent, from this byte on.
    Answering { bytes: Vec<u8>, sent: usize },
}

/// What has come from a client.
enum Input {
    Nothing,
    Request(Frame),
    End,
}

impl Client {
    /// When it is given up.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    /// Reads what is there.
    fn read(&mut self) -> Input {
        let (State::Asking(receiver), Some(mut socket)) = (&mut self.state, self.socket.get()) else {
            return Input::Nothing;
        };
        for _ in 0..READS_MAX {
            match socket.read(receiver.space()) {
                Ok(0) => return Input::End,
                Ok(length) => {
                    let advanced = receiver.advance(length);
                    if let Some(frame) = receiver.next_frame() {
                        return Input::Request(frame);
                    }
                    if let Err(error) = advanced {
                        log::error!("Unable to receive control header: {error}.");
                        return Input::End;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Input::Nothing,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    log::error!("Unable to receive control header: {}.", hast_log::error_text(&error));
                    return Input::End;
                }
            }
        }
        Input::Nothing
    }

    /// Begins to wait for `slots` entries. The client has nothing more to say.
    fn wait(&mut self, slots: usize) -> io::Result<()> {
        self.state = State::Waiting { slots: vec![None; slots], missing: slots };
        self.deadline = None;
        self.socket.want(false, false)
    }

    /// Begins to answer.
    fn answer(&mut self, reply: &Reply, now: Instant) -> io::Result<()> {
        let bytes = frame::encode(VERSION, &reply.encode()).map_err(io::Error::other)?;
        self.state = State::Answering { bytes, sent: 0 };
        self.deadline = Some(now + PATIENCE);
        self.socket.want(false, true)
    }

    /// Sends what the socket takes. True when everything is sent, or can never be.
    fn write(&mut self) -> bool {
        let (State::Answering { bytes, sent }, Some(mut socket)) = (&mut self.state, self.socket.get())
        else {
            return false;
        };
        while let Some(rest) = bytes.get(*sent..).filter(|rest| !rest.is_empty()) {
            match socket.write(rest) {
                Ok(length) => *sent = sent.saturating_add(length),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return false,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    log::error!("Unable to send control reply: {}.", hast_log::error_text(&error));
                    return true;
                }
            }
        }
        true
    }

    fn is_asking(&self) -> bool {
        matches!(self.state, State::Asking(_))
    }
}

impl Supervisor {
    /// Connections are waiting at the control socket.
    pub(super) fn accept_clients(&mut self, now: Instant) {
        for _ in 0..super::ACCEPTS_MAX {
            let Some(listener) = self.control.get() else { return };
            let socket = match listener.accept() {
                Ok((socket, _)) => socket,
                Err(error) => {
                    self.control_resume = super::accept_pause(&error, now);
                    if self.control_resume.is_some() {
                        let _ = self.control.want(false, false);
                    }
                    return;
                }
            };
            if self.clients.len() >= CLIENTS_MAX {
                // The one that has been silent for longest gives way.
                let silent = self.clients.iter().find(|(_, client)| client.is_asking()).map(|(key, _)| *key);
                match silent {
                    Some(key) => drop(self.clients.remove(&key)),
                    None => {
                        log::warn!("Too many control clients: one is turned away.");
                        continue;
                    }
                }
            }
            let key = self.new_key();
            let receiver = Receiver::new(Limits::CONTROL, Pool::new());
            match Watched::new(&self.poller, key, socket, true, false) {
                Ok(socket) => {
                    let (state, deadline) = (State::Asking(receiver), Some(now + PATIENCE));
                    self.clients.insert(key, Client { socket, state, deadline });
                }
                Err(error) => {
                    log::error!("Unable to watch control client: {}.", hast_log::error_text(&error));
                }
            }
        }
    }

    /// A client's socket can be read or written.
    pub(super) fn client_ready(&mut self, key: usize, now: Instant) {
        let Some(client) = self.clients.get_mut(&key) else { return };
        match client.read() {
            Input::Nothing => {
                if client.write() {
                    self.clients.remove(&key);
                }
            }
            Input::Request(frame) => self.request(key, &frame, now),
            Input::End => drop(self.clients.remove(&key)),
        }
    }

    fn request(&mut self, key: usize, frame: &Frame, now: Instant) {
        let list = match frame.list() {
            Ok(list) => list,
            Err(error) => {
                log::error!("Unable to receive control header: {error}.");
                self.clients.remove(&key);
                return;
            }
        };
        match Request::decode(&list) {
            Ok(request) if request.resources.len() > RESOURCES_MAX => {
                self.reply(key, &Reply::Error(ERROR_INVALID), now);
            }
            Ok(request) => self.carry_out(key, &request, now),
            Err(Rejected::Error(error)) => self.reply(key, &Reply::Error(error), now),
            Err(rejected @ Rejected::Close) => {
                log::error!("Control header is missing 'cmd' field: {rejected}.");
                self.clients.remove(&key);
            }
        }
    }

    fn carry_out(&mut self, key: usize, request: &Request, now: Instant) {
        if request.command == Command::Reload {
            return self.reload_for(key, now);
        }
        let names: Vec<String> = if request.is_all() {
            self.resources.iter().filter(|r| !r.leaving).map(|r| r.config.name.clone()).collect()
        } else {
            request.resources.clone()
        };
        let Some(client) = self.clients.get_mut(&key) else { return };
        if let Err(error) = client.wait(names.len()) {
            log::error!("Unable to serve control client: {}.", hast_log::error_text(&error));
            self.clients.remove(&key);
            return;
        }
        if names.is_empty() {
            self.reply(key, &Reply::Entries(Vec::new()), now);
            return;
        }
        match request.command {
            Command::SetRole(role) => {
                let promotion = if request.force { Promotion::Forced } else { Promotion::Checked };
                for (slot, name) in names.into_iter().enumerate() {
                    match self.resource_named(&name) {
                        Some(index) => {
                            let waiter = Some(Waiter { client: key, slot });
                            self.add_task(index, Task::SetRole { role, promotion, waiter }, now);
                        }
                        None => self.answer(key, &[slot], Entry::error(name, ERROR_NO_ENTRY)),
                    }
                }
            }
            Command::Reload => {} // is no matter of single resources
            Command::Status => {
                for (name, slots) in places(names) {
                    match self.resource_named(&name) {
                        Some(index) => {
                            let asker = Asker::Client { key, slots, verbose: request.verbose };
                            self.ask_status(index, asker, now);
                        }
                        None => self.answer(key, &slots, Entry::error(name, ERROR_NO_ENTRY)),
                    }
                }
            }
        }
    }

    /// Reads the configuration again and answers when that has come to its end.
    fn reload_for(&mut self, key: usize, now: Instant) {
        let Some(client) = self.clients.get_mut(&key) else { return };
        if let Err(error) = client.wait(0) {
            log::error!("Unable to serve control client: {}.", hast_log::error_text(&error));
            self.clients.remove(&key);
            return;
        }
        self.begin_reload(Some(key), now);
    }

    fn ask_status(&mut self, index: usize, asker: Asker, now: Instant) {
        let Some(resource) = self.resources.get_mut(index) else { return };
        let asked = match &mut resource.worker {
            Some(worker) => worker.ask(now, asker),
            None => Err(asker),
        };
        if let Err(asker) = asked {
            self.answer_status(index, asker, None, now);
        }
    }

    /// A worker has answered, or there is none (any more) that could.
    pub(super) fn answer_status(
        &mut self,
        index: usize,
        asker: Asker,
        answer: Option<WorkerStatus>,
        now: Instant,
    ) {
        let (key, slots, verbose) = match asker {
            Asker::Client { key, slots, verbose } => (key, slots, verbose),
            Asker::Promotion => {
                return self.promotion_answered(index, answer.as_ref(), now);
            }
        };
        if verbose && answer.is_none() {
            return self.look(index, key, slots, now);
        }
        let Some(resource) = self.resources.get(index) else { return };
        let facts = answer.as_ref().filter(|_| verbose).map(|status| status.facts.clone());
        let connection = resource.connections.shown(now).filter(|_| verbose);
        let entry = status(resource, answer, facts, connection);
        self.answer(key, &slots, entry);
    }

    /// A worker has not answered in time: only its own resource is marked.
    pub(super) fn answer_late(&mut self, index: usize, query: Query, now: Instant) {
        let Some(resource) = self.resources.get(index) else { return };
        let scope = resource.scope();
        log::error!("Worker process does not tell its status.");
        drop(scope);
        let entry = Entry::error(resource.config.name.clone(), Errno::ETIMEDOUT.to_wire());
        match query.asker {
            Asker::Client { key, slots, .. } => self.answer(key, &slots, entry),
            // Its provider can be asked once it has ended.
            Asker::Promotion => self.promotion_answered(index, None, now),
        }
    }

    /// Fills places in the answer to a client, which may be gone.
    pub(super) fn answer(&mut self, key: usize, places: &[usize], entry: Entry) {
        let Some(client) = self.clients.get_mut(&key) else { return };
        let State::Waiting { slots, missing } = &mut client.state else { return };
        for place in places {
            if let Some(slot) = slots.get_mut(*place)
                && slot.is_none()
            {
                *slot = Some(entry.clone());
                *missing = missing.saturating_sub(1);
            }
        }
        if *missing == 0 {
            let entries = slots.drain(..).flatten().collect();
            self.reply(key, &Reply::Entries(entries), Instant::now());
        }
    }

    /// Sends an answer to a client, which may be gone.
    pub(super) fn reply(&mut self, key: usize, reply: &Reply, now: Instant) {
        let Some(client) = self.clients.get_mut(&key) else { return };
        match client.answer(reply, now) {
            Ok(()) => {
                if client.write() {
                    self.clients.remove(&key);
                }
            }
            Err(error) => {
                log::error!("Unable to send control reply: {}.", hast_log::error_text(&error));
                self.clients.remove(&key);
            }
        }
    }

    /// Gives up clients whose time is over.
    pub(super) fn expire_clients(&mut self, now: Instant) {
        self.clients.retain(|_, client| {
            let over = client.deadline.is_some_and(|deadline| deadline <= now);
            if over {
                log::debug!("A control client took too long.");
            }
            !over
        });
    }
}

/// All that is known of a resource; with `facts`, what its worker or its provider says of them, and how its `connection` is.
pub(super) fn status(
    resource: &Resource,
    worker: Option<WorkerStatus>,
    mut facts: Option<Facts>,
    connection: Option<&Connection>,
) -> Entry {
    let config = &resource.config;
    if let Some(facts) = facts.as_mut().filter(|_| resource.split_brain) {
        facts.split_brain = true;
        facts.divergence = facts.divergence.or(resource.divergence);
    }
    let pid = resource.worker.as_ref().and_then(|worker| i32::try_from(worker.pid()).ok());
    let status = ResourceStatus {
        provname: config.provname.clone(),
        localpath: config.localpath.to_string_lossy().into_owned(),
        remoteaddr: config.remote_text().to_owned(),
        sourceaddr: config.source.as_ref().map(ToString::to_string),
        replication: config.replication.as_str().to_owned(),
        checksum: config.checksum.as_str().to_owned(),
        compression: config.compression.as_str().to_owned(),
        role: resource.role.as_str().to_owned(),
        workerpid: pid.unwrap_or(0),
        worker,
        facts,
        connection: connection.cloned(),
    };
    Entry::Status { name: config.name.clone(), status: Box::new(status) }
}

/// Each name once, with all its places, in the order of first appearance.
fn places(names: Vec<String>) -> Vec<(String, Vec<usize>)> {
    let mut found: Vec<(String, Vec<usize>)> = Vec::new();
    let mut known: std::collections::HashMap<String, usize> = std::collections::HashMap::new();
    for (place, name) in names.into_iter().enumerate() {
        let at = *known.entry(name.clone()).or_insert(found.len());
        match found.get_mut(at) {
            Some((_, places)) => places.push(place),
            None => found.push((name, vec![place])),
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_asked_for_once() {
        let names = ["a", "b", "a", "c", "a"].map(str::to_owned).to_vec();
        let expected =
            vec![("a".to_owned(), vec![0, 2, 4]), ("b".to_owned(), vec![1]), ("c".to_owned(), vec![3])];
        assert_eq!(places(names), expected);
    }
}
