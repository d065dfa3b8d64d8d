//! The device: NBD clients on a unix socket, their commands on the way to the engine and back.
//!
//! Owns the listening socket, the clients' connections and every command that was accepted and not
//! answered. It admits what the reactor asks for, one request of each client in turn, and never waits for a
//! client.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::time::Duration;

use hast_engine::{DiskResult, MAX_REQUEST, Op, RequestId};
use hast_log::error_text;
use hast_nbd::{CommandId, Export, NbdError, Question, Run, Session};
use hast_net::buffer::{Buffer, Pool};
use polling::Poller;
use socket2::Socket;

use super::command::Command;
use super::holes::{Answer, Holes};
use super::sendqueue::{Piece, SendQueue};
use crate::watch::Watched;

/// Connections served at once; one more is closed at once. Each may hold `hast_nbd::MAX_BYTES`.
const MAX_CLIENTS: usize = 32;
/// Buffers full of input taken from one client before the others have their turn.
const READS: usize = 32;
/// Bytes of answers taken from a session ahead of the socket.
const SEND_AHEAD: usize = 1 << 20;
/// How long to leave the listening socket alone after accept failed for want of resources.
const PAUSE: Duration = Duration::from_secs(1);

/// The NBD server of one primary.
pub(super) struct Server {
    poller: Arc<Poller>,
    listener: Option<Watched<UnixListener>>,
    /// When to accept again, if that is suspended.
    accept_at: Option<Duration>,
    export: Export,
    /// Who knows what of the provider is a hole.
    holes: Option<Holes>,
    /// Questions that it has not answered: client and question.
    asked: BTreeSet<(usize, CommandId)>,
    pool: Pool,
    zeroes: Buffer,
    clients: BTreeMap<usize, Client>,
    /// Whose turn it is: every client once.
    turns: VecDeque<usize>,
    next_client: usize,
    commands: HashMap<u64, Command>,
    last_command: u64,
    /// What the engine has: command and number within it.
    requests: HashMap<RequestId, (u64, usize)>,
    last_request: u64,
    stopping: bool,
    /// ... and what cannot be done is refused. Otherwise it is left to a successor, without an answer.
    refusing: bool,
    /// Clients that went without taking leave, since somebody asked.
    lost: bool,
}

/// One connection.
struct Client {
    socket: Watched<Socket>,
    /// Who has connected it, 0 if the system does not say.
    process: u32,
    session: Session,
    /// Commands that may have something to ask of the engine, oldest first.
    queue: VecDeque<u64>,
    unsent: SendQueue,
    /// The client sends nothing more.
    ended: bool,
}

impl Server {
    /// Serves `export` on `listener`. Watches it under the first of `keys` and clients under the keys from
    /// the second on.
    pub(super) fn new(
        poller: &Arc<Poller>,
        keys: (usize, usize),
        listener: OwnedFd,
        export: Export,
        holes: Option<Holes>,
        pool: Pool,
    ) -> io::Result<Server> {
        let listener = UnixListener::from(listener);
        listener.set_nonblocking(true)?;
        let mut zeroes = pool.take(MAX_REQUEST as usize);
        zeroes.fill(0);
        Ok(Server {
            poller: Arc::clone(poller),
            listener: Some(Watched::new(poller, keys.0, listener, true, false)?),
            accept_at: None,
            export: Export { tells_holes: holes.is_some(), ..export },
            holes,
            asked: BTreeSet::new(),
            pool,
            zeroes: zeroes.freeze(),
            clients: BTreeMap::new(),
            turns: VecDeque::new(),
            next_client: keys.1,
            commands: HashMap::new(),
            last_command: 0,
            requests: HashMap::new(),
            last_request: 0,
            stopping: false,
            refusing: false,
            lost: false,
        })
    }

    /// Accepts clients that wait.
    pub(super) fn accept(&mut self, now: Duration) {
        for _ in 0..MAX_CLIENTS {
            let Some(listener) = self.listener.as_ref().and_then(Watched::get) else { return };
            match listener.accept() {
                Ok((stream, _)) => {
                    if let Err(error) = self.welcome(OwnedFd::from(stream)) {
                        log::warn!("Unable to serve an NBD client: {}.", error_text(&error));
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error)
                    if matches!(
                        error.kind(),
                        io::ErrorKind::Interrupted | io::ErrorKind::ConnectionAborted
                    ) => {}
                Err(error) => {
                    log::warn!("Unable to accept NBD clients: {}.", error_text(&error));
                    self.accept_at = Some(now.saturating_add(PAUSE));
                    return;
                }
            }
        }
    }

    /// When [`Server::check`] has something to do.
    pub(super) fn deadline(&self) -> Option<Duration> {
        self.accept_at
    }

    /// Resumes accepting when the time has come.
    pub(super) fn check(&mut self, now: Duration) {
        if self.accept_at.is_some_and(|at| at <= now) {
            self.accept_at = None;
        }
    }

    /// Takes what the client under `key` has sent.
    pub(super) fn receive(&mut self, key: usize) {
        let Some(client) = self.clients.get_mut(&key) else { return };
        if let Err(reason) = client.receive() {
            log::debug!("NBD client disconnected: {reason}.");
            self.lost = true;
            self.forget(key);
        }
    }

    /// Whether a client has gone without taking leave since this was last asked. The kernel does, when a request
    /// has taken too long: it waits for another connection then.
    pub(super) fn take_lost(&mut self) -> bool {
        std::mem::take(&mut self.lost)
    }

    /// The next request for the engine, of each client in turn. None after [`Server::stop`].
    pub(super) fn next_request(&mut self) -> Option<(RequestId, Op)> {
        if self.stopping {
            return None;
        }
        for _ in 0..self.turns.len() {
            let key = self.turns.pop_front()?;
            self.turns.push_back(key);
            if let Some(found) = self.next_of(key) {
                return Some(found);
            }
        }
        None
    }

    /// The next question of a client what of a range is a hole, of no more than so many bytes. None after
    /// [`Server::stop`].
    pub(super) fn next_question(&mut self) -> Option<(usize, Question)> {
        let most = self.holes.as_ref().map(Holes::most)?;
        let mut clients = self.clients.iter_mut().filter(|_| !self.stopping);
        let (key, mut question) =
            clients.find_map(|(key, client)| Some((*key, client.session.poll_question()?)))?;
        question.length = question.length.min(most);
        Some((key, question))
    }

    /// Has a client's question answered: by the file system if that is `right`, or else no hole is told of.
    pub(super) fn tell_holes(&mut self, client: usize, question: Question, right: bool) {
        let Some(holes) = &mut self.holes else { return };
        self.asked.insert((client, question.handle));
        if right { holes.ask(client, question) } else { holes.tell_nothing(client, question) }
    }

    /// Passes the answers on that have come, if what they speak of is still `right`: offset and length.
    pub(super) fn take_answers(&mut self, right: impl Fn(u64, u64) -> bool) {
        for Answer { client, question, mut runs } in self.holes.iter().flat_map(Holes::take_answers) {
            // Of a client that has gone since, and of a device that is being taken away, nobody asks any more.
            if !self.asked.remove(&(client, question.handle)) {
                continue;
            }
            let length = runs.iter().map(|run| run.length).sum();
            if runs.iter().any(|run| run.hole) && !right(question.offset, length) {
                runs = vec![Run { length, hole: false }];
            }
            if let Some(client) = self.clients.get_mut(&client) {
                client.session.answer(question.handle, &runs);
            }
        }
    }

    /// Requests that the engine has.
    pub(super) fn in_flight(&self) -> usize {
        self.requests.len()
    }

    /// Takes the end of a request.
    pub(super) fn complete(&mut self, id: RequestId, result: DiskResult) {
        let Some((key, number)) = self.requests.remove(&id) else {
            log::error!("Request {} was completed, but is not in flight.", id.0);
            return;
        };
        let Some(command) = self.commands.get_mut(&key) else { return };
        if self.stopping && !self.refusing && result.is_err() {
            // A successor may do better.
            let client = command.client;
            return self.forget(client);
        }
        command.finished(number, result);
        if self.stopping && command.has_more() {
            command.abort(NbdError::Shutdown);
        }
        if command.goes_on()
            && let Some(client) = self.clients.get_mut(&command.client)
        {
            client.queue.push_front(key);
            return;
        }
        self.answer(key);
    }

    /// Sends answers, as far as the clients take them, and parts from those that are done. True if that may
    /// have made room for further commands.
    pub(super) fn transmit(&mut self) -> bool {
        let mut moved = false;
        let mut gone = Vec::new();
        for (key, client) in &mut self.clients {
            match client.transmit(self.stopping && self.refusing) {
                Ok(sent) => moved |= sent,
                Err(error) => {
                    log::debug!("NBD client disconnected: {}.", error_text(&error));
                    self.lost = true;
                    gone.push(*key);
                    continue;
                }
            }
            if client.is_finished() {
                self.lost |= client.ended;
                gone.push(*key);
            }
        }
        for key in gone {
            self.forget(key);
        }
        moved
    }

    /// Tells the poller what is of interest.
    pub(super) fn watch(&mut self) {
        if let Some(listener) = &mut self.listener
            && let Err(error) = listener.want(self.accept_at.is_none(), false)
        {
            log::warn!("Unable to accept NBD clients: {}.", error_text(&error));
        }
        let mut gone = Vec::new();
        for (key, client) in &mut self.clients {
            let read = !client.ended && client.session.wants_input();
            if let Err(error) = client.socket.want(read, !client.unsent.is_empty()) {
                log::warn!("Unable to serve an NBD client: {}.", error_text(&error));
                gone.push(*key);
            }
        }
        for key in gone {
            self.forget(key);
        }
    }

    /// Accepts no more clients and begins no more commands. What the engine has is finished and answered, everything
    /// else refused if `refuse`; otherwise it stays unanswered, and what fails too: a client that waits for a
    /// successor, as the kernel does, shall not hear of an error.
    pub(super) fn stop(&mut self, refuse: bool) {
        self.stopping = true;
        self.listener = None;
        self.refusing |= refuse;
        if !self.refusing {
            self.commands.retain(|_, command| !command.has_more());
            return;
        }
        let open: Vec<u64> = self.commands.keys().copied().collect();
        for key in open {
            if let Some(command) = self.commands.get_mut(&key)
                && command.has_more()
            {
                command.abort(NbdError::Shutdown);
            }
            self.answer(key);
        }
        for (key, handle) in std::mem::take(&mut self.asked) {
            if let Some(client) = self.clients.get_mut(&key) {
                client.session.complete(handle, Err(NbdError::Shutdown));
            }
        }
        for client in self.clients.values_mut() {
            client.queue.clear();
        }
    }

    /// Whether some client has not taken all of its answers yet.
    pub(super) fn has_unsent(&self) -> bool {
        self.clients.values().any(|client| !client.unsent.is_empty())
    }

    /// The processes that are connected; 0 for one that the system does not name. The supervisor is none of them: it
    /// connects for the kernel, and who uses the kernel's device is known there.
    pub(super) fn processes(&self) -> Vec<u32> {
        let supervisor = u32::try_from(nix::unistd::getppid().as_raw()).unwrap_or(0);
        let others = self.clients.values().map(|client| client.process);
        others.filter(|process| *process == 0 || *process != supervisor).collect()
    }

    /// Connections served.
    #[cfg(test)]
    pub(super) fn clients(&self) -> usize {
        self.clients.len()
    }

    fn welcome(&mut self, stream: OwnedFd) -> io::Result<()> {
        if self.clients.len() >= MAX_CLIENTS {
            log::warn!("{MAX_CLIENTS} NBD clients are connected, another one is turned away.");
            return Ok(());
        }
        let socket = Socket::from(stream);
        socket.set_nonblocking(true)?;
        let key = self.next_client;
        self.next_client = self.next_client.wrapping_add(1);
        let client = Client {
            process: process_of(&socket),
            socket: Watched::new(&self.poller, key, socket, true, false)?,
            session: Session::new(self.export.clone(), self.pool.clone()),
            queue: VecDeque::new(),
            unsent: SendQueue::default(),
            ended: false,
        };
        self.clients.insert(key, client);
        self.turns.push_back(key);
        Ok(())
    }

    fn next_of(&mut self, client_key: usize) -> Option<(RequestId, Op)> {
        loop {
            let client = self.clients.get_mut(&client_key)?;
            let Some(&key) = client.queue.front() else {
                self.take_command(client_key)?;
                continue;
            };
            if let Some((number, op)) = self.commands.get_mut(&key).and_then(Command::next_request) {
                self.last_request = self.last_request.wrapping_add(1);
                let id = RequestId(self.last_request);
                self.requests.insert(id, (key, number));
                return Some((id, op));
            }
            client.queue.pop_front();
            self.answer(key);
        }
    }

    /// Moves the client's next command from its session to its queue.
    fn take_command(&mut self, client_key: usize) -> Option<()> {
        let client = self.clients.get_mut(&client_key)?;
        let hast_nbd::Command { handle, kind } = client.session.poll_command()?;
        self.last_command = self.last_command.wrapping_add(1);
        let Export { minimum_block, trims, .. } = self.export;
        let command = Command::new(client_key, handle, kind, minimum_block, &self.zeroes, trims);
        self.commands.insert(self.last_command, command);
        client.queue.push_back(self.last_command);
        Some(())
    }

    /// Answers a command and forgets it, if it is over.
    fn answer(&mut self, key: u64) {
        let Some(command) = self.commands.get_mut(&key) else { return };
        let Some(outcome) = command.outcome() else { return };
        if let Some(client) = self.clients.get_mut(&command.client) {
            client.session.complete(command.handle, outcome);
        }
        self.commands.remove(&key);
    }

    /// Parts from a client. What the engine has of its commands ends unheard; the rest is not begun.
    fn forget(&mut self, client_key: usize) {
        if self.clients.remove(&client_key).is_none() {
            return;
        }
        self.turns.retain(|key| *key != client_key);
        self.asked.retain(|(client, _)| *client != client_key);
        let open = self.commands.iter().filter(|(_, command)| command.client == client_key);
        let open: Vec<u64> = open.map(|(key, _)| *key).collect();
        for key in open {
            if let Some(command) = self.commands.get_mut(&key) {
                command.abort(NbdError::Shutdown);
            }
            self.answer(key);
        }
    }
}

/// The process that has connected a unix socket, by number; 0 where the system does not say.
fn process_of(socket: &Socket) -> u32 {
    #[cfg(target_os = "linux")]
    let process = nix::sys::socket::getsockopt(socket, nix::sys::socket::sockopt::PeerCredentials)
        .map_or(0, |credentials| credentials.pid());
    #[cfg(not(target_os = "linux"))]
    let process = {
        let _ = socket;
        0_i32
    };
    u32::try_from(process).unwrap_or(0)
}

impl Client {
    fn receive(&mut self) -> Result<(), String> {
        let Some(mut socket) = self.socket.get() else { return Ok(()) };
        for _ in 0..READS {
            if self.ended || !self.session.wants_input() {
                return Ok(());
            }
            match socket.read(self.session.space()) {
                Ok(0) => self.ended = true,
                Ok(n) => self.session.advance(n).map_err(|error| error.to_string())?,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error_text(&error)),
            }
        }
        Ok(())
    }

    fn transmit(&mut self, stopping: bool) -> io::Result<bool> {
        let mut moved = false;
        loop {
            while stopping && let Some(command) = self.session.poll_command() {
                self.session.complete(command.handle, Err(NbdError::Shutdown));
            }
            while stopping && let Some(question) = self.session.poll_question() {
                self.session.complete(question.handle, Err(NbdError::Shutdown));
            }
            while self.unsent.bytes() < SEND_AHEAD
                && let Some(piece) = self.session.poll_transmit()
            {
                self.unsent.push(Piece::Data(piece));
                moved = true;
            }
            let Some(socket) = self.socket.get() else { return Ok(moved) };
            if self.unsent.is_empty() || self.unsent.transmit(socket)? == 0 {
                return Ok(moved);
            }
        }
    }

    /// Nothing is to be said any more, by either.
    fn is_finished(&self) -> bool {
        self.unsent.is_empty()
            && (self.session.is_finished() || (self.ended && self.session.in_flight() == 0))
    }
}

#[cfg(test)]
#[path = "nbd_tests.rs"]
mod tests;
