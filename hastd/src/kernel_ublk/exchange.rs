//! The requests of a device that are under way, and their exchange with the worker over NBD.
//!
//! The queue's thread [asks](Exchange::ask) and fetches [answers](Exchange::answers). Another one sends what is
//! asked to the worker, and one more receives what the worker answers. When the connection ends, requests wait until
//! there is another one, and what had not been answered is sent again; the kernel's NBD does the same.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, PipeWriter, Write};
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use hast_nbd::NbdError;
use hast_nbd::client::{Client, ClientError};

use super::command::{self, Operation};
use super::ring::serve_without_reclaim;

/// How long after a failed attempt to connect the next one is made.
const PAUSE: Duration = Duration::from_millis(200);

/// Where the data of requests is.
pub(super) trait Data: Sync {
    /// Gets the data that a write is to store.
    fn fetch(&self, tag: u16, data: &mut [u8]) -> io::Result<()>;
    /// Gives a read its data.
    fn give(&self, tag: u16, data: &[u8]) -> io::Result<()>;
}

/// A device's own file.
impl Data for File {
    fn fetch(&self, tag: u16, data: &mut [u8]) -> io::Result<()> {
        self.read_exact_at(data, command::data_offset(tag))
    }

    fn give(&self, tag: u16, data: &[u8]) -> io::Result<()> {
        self.write_all_at(data, command::data_offset(tag))
    }
}

/// What the threads of a device share.
#[derive(Debug)]
pub(super) struct Exchange {
    state: Mutex<State>,
    changed: Condvar,
    waker: PipeWriter,
}

#[derive(Debug)]
struct State {
    /// What the kernel waits for, by tag.
    under_way: Vec<Option<Operation>>,
    /// Which of it is still to be sent.
    unsent: VecDeque<u16>,
    /// What the kernel is still to be told: bytes, or an error's negative number.
    answers: Vec<(u16, i32)>,
    /// The queue's thread knows that there is something.
    woken: bool,
    connection: Option<Arc<Client>>,
    /// Whatever is asked fails from now on.
    ended: bool,
}

impl Exchange {
    /// For tags below `depth`; the queue's thread waits at the other end of `waker`.
    pub(super) fn new(depth: u16, waker: PipeWriter) -> Exchange {
        let state = State {
            under_way: vec![None; depth.into()],
            unsent: VecDeque::new(),
            answers: Vec::new(),
            woken: false,
            connection: None,
            ended: false,
        };
        Exchange { state: Mutex::new(state), changed: Condvar::new(), waker }
    }

    /// The kernel has a request.
    pub(super) fn ask(&self, tag: u16, operation: Operation) {
        let mut state = self.lock();
        if state.ended {
            self.answer(&mut state, tag, -libc::EIO);
        } else if let Some(slot) = state.under_way.get_mut(usize::from(tag)) {
            *slot = Some(operation);
            state.unsent.push_back(tag);
            self.changed.notify_all();
        }
    }

    /// What the kernel is to be told.
    pub(super) fn answers(&self) -> Vec<(u16, i32)> {
        let mut state = self.lock();
        state.woken = false;
        std::mem::take(&mut state.answers)
    }

    /// Everything fails that is under way or will be asked.
    pub(super) fn end(&self) {
        let mut state = self.lock();
        state.ended = true;
        // First nothing can be sent any more: a tag's next request has other data.
        if let Some(client) = state.connection.take() {
            client.close();
        }
        self.fail_all(&mut state);
        self.changed.notify_all();
    }

    /// Exchanges requests for answers over `client`, and over connections that `connect` makes when that has ended,
    /// until the [end](Exchange::end). While there has been none for longer than `patience` requests fail.
    pub(super) fn run(
        &self,
        data: &dyn Data,
        client: Client,
        connect: &dyn Fn() -> Result<Client, ClientError>,
        patience: Duration,
    ) {
        serve_without_reclaim();
        let mut next = Some(Ok(client));
        let mut lost = Instant::now();
        while !self.lock().ended {
            match next.take().unwrap_or_else(connect) {
                Ok(client) => {
                    self.talk(data, &Arc::new(client));
                    lost = Instant::now();
                }
                Err(error) => {
                    log::debug!("No connection to the worker: {error}.");
                    let state = self.lock();
                    let mut state = self
                        .changed
                        .wait_timeout_while(state, PAUSE, |state| !state.ended)
                        .unwrap_or_else(PoisonError::into_inner)
                        .0;
                    if lost.elapsed() >= patience {
                        self.fail_all(&mut state);
                    }
                }
            }
        }
    }

    /// Uses one connection to its end.
    fn talk(&self, data: &dyn Data, client: &Arc<Client>) {
        {
            let mut state = self.lock();
            if state.ended {
                return;
            }
            state.connection = Some(Arc::clone(client));
            let tags = 0..u16::try_from(state.under_way.len()).unwrap_or(u16::MAX);
            let unanswered = tags.zip(&state.under_way).filter_map(|(tag, slot)| slot.map(|_| tag));
            let unsent = unanswered.collect();
            state.unsent = unsent;
        }
        thread::scope(|scope| {
            let receiver = thread::Builder::new().name("hastd ublk".to_owned()).spawn_scoped(scope, || {
                serve_without_reclaim();
                self.receive_all(data, client);
                client.close();
                self.lock().connection = None;
                self.changed.notify_all();
            });
            match receiver {
                Ok(_) => self.send_all(data, client),
                Err(error) => log::error!("Unable to start a thread: {}.", hast_log::error_text(&error)),
            }
            client.close();
        });
        self.lock().connection = None;
    }

    fn send_all(&self, data: &dyn Data, client: &Client) {
        let mut buffer = Vec::new();
        while let Some((tag, operation)) = self.next_to_send() {
            buffer.clear();
            if matches!(operation, Operation::Write { .. }) {
                buffer.resize(usize::try_from(operation.data_length()).unwrap_or_default(), 0);
                if let Err(error) = data.fetch(tag, &mut buffer) {
                    // Only when the device is being taken away.
                    log::warn!("Unable to get the data of a write: {}.", hast_log::error_text(&error));
                    self.settle(tag, -libc::EIO);
                    continue;
                }
            }
            if let Err(error) = client.send(tag.into(), operation.request(&buffer)) {
                log::debug!("The connection to the worker has ended: {error}.");
                return;
            }
        }
    }

    /// Waits for something to be sent; `None` when the connection has ended.
    fn next_to_send(&self) -> Option<(u16, Operation)> {
        let mut state = self.lock();
        loop {
            if state.ended || state.connection.is_none() {
                return None;
            }
            while let Some(tag) = state.unsent.pop_front() {
                if let Some(operation) = state.under_way.get(usize::from(tag)).copied().flatten() {
                    return Some((tag, operation));
                }
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn receive_all(&self, data: &dyn Data, client: &Client) {
        loop {
            let (cookie, answer) = match client.receive() {
                // It is going away, and so is the connection: its successor is asked.
                Ok((_, Err(NbdError::Shutdown))) => return,
                Ok(received) => received,
                Err(error) => return log::debug!("The connection to the worker has ended: {error}."),
            };
            let Ok(tag) = u16::try_from(cookie) else { return };
            let Some(operation) = self.lock().under_way.get(usize::from(tag)).copied().flatten() else {
                continue;
            };
            let length = operation.data_length();
            let given = match (&operation, &answer) {
                (Operation::Read { .. }, Ok(bytes)) if bytes.len() as u64 != u64::from(length) => {
                    Err(io::ErrorKind::InvalidData.into())
                }
                (Operation::Read { .. }, Ok(bytes)) => data.give(tag, bytes),
                _ => Ok(()),
            };
            let result = match (answer, given) {
                (Ok(_), Ok(())) => i32::try_from(length).unwrap_or(-libc::EIO),
                (Err(NbdError::NoSpc), _) => -libc::ENOSPC,
                _ => -libc::EIO,
            };
            self.settle(tag, result);
        }
    }

    /// A request under way has its result, unless it has failed meanwhile.
    fn settle(&self, tag: u16, result: i32) {
        let mut state = self.lock();
        if state.under_way.get_mut(usize::from(tag)).and_then(Option::take).is_some() {
            self.answer(&mut state, tag, result);
        }
    }

    fn fail_all(&self, state: &mut State) {
        state.unsent.clear();
        let tags = 0..u16::try_from(state.under_way.len()).unwrap_or(u16::MAX);
        let failed: Vec<u16> =
            tags.zip(&mut state.under_way).filter_map(|(tag, slot)| slot.take().map(|_| tag)).collect();
        for tag in failed {
            self.answer(state, tag, -libc::EIO);
        }
    }

    fn answer(&self, state: &mut State, tag: u16, result: i32) {
        state.answers.push((tag, result));
        if !std::mem::replace(&mut state.woken, true) {
            // Fails only when the queue's thread has ended.
            let _ = (&self.waker).write_all(&[0]);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
#[path = "exchange_tests.rs"]
mod tests;
