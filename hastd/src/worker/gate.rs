//! The device on FreeBSD: GEOM Gate's requests on their way to the engine and back.
//!
//! Owns the device, the threads that wait for the kernel's requests, and every request that was taken and
//! not answered. Answers are given by the reactor's thread. A write stays in the buffer that the kernel
//! copied it to; only a read of more than [`MAX_REQUEST`] bytes is put together from several buffers.

use std::collections::{HashMap, VecDeque};
use std::mem;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use hast_engine::{DiskResult, MAX_REQUEST, Op, RequestId};
use hast_ggate::{Create, Device, DeviceError, Gate, Kind, Next, Origin, Request};
use hast_nbd::Pieces;
use hast_net::buffer::{Buffer, Pool};
use hast_net::errno::Errno;
use nix::sys::signal::SigSet;

use super::lock::lock;
use super::requests::Requests;

/// Threads that wait for requests: while one copies a write in, the other takes the next.
const THREADS: usize = 2;
/// Requests taken and not answered. More are left in the kernel's queue.
const MAX_TAKEN: usize = 256;
/// Bytes of room for a write until one needs more.
const ROOM: usize = MAX_REQUEST as usize;
/// Bytes of the longest request that is taken, whatever the kernel says is its longest.
const TAKEN_ANYWAY: usize = 1 << 20;
/// How often a wait may end without a reason in a row. A device that is being destroyed ends all.
const MAX_CANCELLED: u32 = 16;
/// Numbers of requests from here on are this device's; below they are NBD's.
const FIRST_ID: u64 = 1 << 63;

/// GEOM Gate on the control device that the supervisor opened.
#[cfg(target_os = "freebsd")]
pub(super) fn kernel(control: OwnedFd) -> Result<Arc<dyn Gate>, DeviceError> {
    Ok(Arc::new(hast_ggate::Kernel::from_fd(control)))
}

/// There is none.
#[cfg(not(target_os = "freebsd"))]
pub(super) fn kernel(_control: OwnedFd) -> Result<Arc<dyn Gate>, DeviceError> {
    Err(DeviceError::Refused { what: "this system has none", errno: Errno::EOPNOTSUPP })
}

/// Where the kernel may read by itself.
pub(super) struct Source {
    /// The provider.
    pub(super) path: String,
    /// Its bytes.
    pub(super) size: u64,
    /// Where the data begins on it, in bytes.
    pub(super) offset: u64,
    /// `direct-reads` of hast.conf: it may.
    pub(super) allowed: bool,
}

/// The device of a primary, before anybody serves it.
pub(super) struct Opened {
    device: Device,
    /// Where the kernel may read by itself.
    source: Source,
    /// The longest request, in bytes. Asked for here: in capability mode the kernel does not tell.
    longest: usize,
    origin: Origin,
}

impl Opened {
    /// Whether another process has made it, and left it behind.
    pub(super) fn is_taken_over(&self) -> bool {
        self.origin == Origin::TakenOver
    }

    /// The descriptor of the control device.
    pub(super) fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        self.device.descriptor()
    }

    /// Creates the device or takes it over. `source` says where the kernel may read by itself, once that is
    /// allowed.
    pub(super) fn open(gate: Arc<dyn Gate>, create: &Create, source: Source) -> Result<Opened, DeviceError> {
        let (device, origin) = Device::open(gate, create)?;
        match origin {
            Origin::Created => log::info!("Device {} created.", create.name),
            Origin::TakenOver => log::info!("Device {} recovered.", create.name),
        }
        Ok(Opened { device, source, longest: max_request(), origin })
    }
}

/// The device and its requests.
pub(super) struct Server {
    shared: Arc<Shared>,
    source: Source,
    pool: Pool,
    threads: Vec<JoinHandle<()>>,
    /// Whose turn it is to have something asked of the engine, oldest first.
    turns: VecDeque<u64>,
    taken: HashMap<u64, Taken>,
    last_taken: u64,
    /// What the engine has: request and number within it.
    requests: HashMap<RequestId, (u64, usize)>,
    last_request: u64,
    stopping: bool,
    /// The nodes are in step, as far as the kernel was told: it could read by itself.
    in_step: bool,
}

/// A request of the kernel on its way through the engine.
struct Taken {
    request: Request,
    requests: Requests,
    /// A flush, which is no range, is still to be asked for.
    flush: bool,
    /// Requests that the engine has.
    outstanding: usize,
    /// What reads have brought, in the order of their offsets.
    data: Vec<Option<Buffer>>,
    error: Option<Errno>,
}

impl Server {
    /// Starts to take requests. `wake` is called by another thread when one has come.
    pub(super) fn start(
        opened: Opened,
        pool: Pool,
        wake: impl Fn() + Send + Sync + 'static,
    ) -> std::io::Result<Server> {
        let Opened { device, source, longest, .. } = opened;
        let shared = Arc::new(Shared {
            device,
            longest,
            pool: pool.clone(),
            state: Mutex::new(State::default()),
            room: Condvar::new(),
            wake: Box::new(wake),
        });
        let mut server = Server {
            shared,
            source,
            pool,
            threads: Vec::new(),
            turns: VecDeque::new(),
            taken: HashMap::new(),
            last_taken: 0,
            requests: HashMap::new(),
            last_request: FIRST_ID,
            stopping: false,
            in_step: false,
        };
        for number in 0..THREADS {
            let shared = Arc::clone(&server.shared);
            let thread = thread::Builder::new().name(format!("gate {number}"));
            server.threads.push(thread.spawn(move || shared.work())?);
        }
        Ok(server)
    }

    /// Whether a request is this device's.
    pub(super) fn owns(id: RequestId) -> bool {
        id.0 >= FIRST_ID
    }

    /// The next request for the engine. None after [`Server::stop`].
    pub(super) fn next_request(&mut self) -> Option<(RequestId, Op)> {
        loop {
            if self.stopping {
                return None;
            }
            let Some(&key) = self.turns.front() else {
                self.take()?;
                continue;
            };
            if let Some((number, op)) = self.taken.get_mut(&key).and_then(Taken::next_request) {
                self.last_request = self.last_request.wrapping_add(1) | FIRST_ID;
                let id = RequestId(self.last_request);
                self.requests.insert(id, (key, number));
                return Some((id, op));
            }
            self.turns.pop_front();
            self.answer(key);
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
        if self.stopping && result.is_err() {
            self.taken.remove(&key);
        } else if let Some(taken) = self.taken.get_mut(&key) {
            taken.finished(number, result);
            self.answer(key);
        }
    }

    /// Lets the kernel read the local disk by itself, or not any more (L17).
    ///
    /// A read that the kernel had begun may still end afterwards, with what its range held at some moment while it was under
    /// way. That breaks no rule: whatever makes the copies differ is acknowledged after this returned, so that the read
    /// began before, and of a write that is under way at the same time a read may bring the old or the new bytes.
    ///
    /// An error means that it may go on reading what is old: nothing may be acknowledged any more.
    pub(super) fn direct_reads(&mut self, in_step: bool) -> Result<(), DeviceError> {
        self.in_step = in_step;
        self.switch_direct_reads()
    }

    /// `direct-reads` was read again. An error means what it does for [`Server::direct_reads`].
    pub(super) fn allow_direct_reads(&mut self, allowed: bool) -> Result<(), DeviceError> {
        if self.source.allowed == allowed {
            return Ok(());
        }
        self.source.allowed = allowed;
        self.switch_direct_reads()
    }

    fn switch_direct_reads(&self) -> Result<(), DeviceError> {
        let device = &self.shared.device;
        if self.in_step && self.source.allowed {
            let Source { path, size, offset, .. } = &self.source;
            match device.read_from(path, *size, *offset) {
                Ok(()) => log::debug!("Direct reads enabled."),
                // A regular file, for example.
                Err(error) => log::debug!("Direct reads not enabled: {error}."),
            }
            return Ok(());
        }
        match device.read_here() {
            Ok(()) => {
                log::debug!("Direct reads disabled.");
                Ok(())
            }
            // Nobody reads from a device that is not there.
            Err(DeviceError::Gone) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Takes no more requests from here on, and asks nothing more of the engine. What the engine has is
    /// finished, and answered if it is well. The rest a successor gets again; or it fails with the device, all at once and with
    /// ENXIO, which a file system takes for the loss of its disk, and not for a bad sector.
    pub(super) fn stop(&mut self) {
        self.stopping = true;
        lock(&self.shared.state).ended = true;
        self.shared.room.notify_all();
    }

    /// Why the device cannot be served any longer. Told once.
    pub(super) fn take_failure(&mut self) -> Option<DeviceError> {
        lock(&self.shared.state).failure.take()
    }

    /// Leaves the device to a successor, with the requests that are not answered, or destroys it. If the kernel may still be
    /// reading for the device, the supervisor destroys it later.
    pub(super) fn finish(&mut self, successor: bool) {
        self.stop();
        // Nobody could keep the kernel from reading what is old by then.
        if successor && matches!(self.shared.device.read_here(), Ok(()) | Err(DeviceError::Gone)) {
            return self.shared.device.leave();
        }
        match self.shared.device.destroy() {
            Ok(false) => log::debug!("The device is left to the supervisor."),
            Ok(true) => {
                // The kernel has woken them.
                for thread in self.threads.drain(..) {
                    // A panic in a thread has been reported by the panic itself.
                    let _ = thread.join();
                }
            }
            Err(error) => log::error!("{error}"),
        }
    }

    /// Takes over a request that has come.
    fn take(&mut self) -> Option<()> {
        let (request, data) = lock(&self.shared.state).arrived.pop_front()?;
        self.last_taken = self.last_taken.wrapping_add(1);
        self.taken.insert(self.last_taken, Taken::new(request, data));
        self.turns.push_back(self.last_taken);
        Some(())
    }

    /// Answers a request and forgets it, if it is over.
    fn answer(&mut self, key: u64) {
        if self.taken.get(&key).is_none_or(|taken| !taken.is_over()) {
            return;
        }
        let Some(taken) = self.taken.remove(&key) else { return };
        let (request, result) = taken.outcome(&self.pool);
        let told = match &result {
            Ok(data) => self.shared.device.complete(request, Ok(data)),
            Err(errno) => self.shared.device.complete(request, Err(*errno)),
        };
        let mut state = lock(&self.shared.state);
        state.taken = state.taken.saturating_sub(1);
        if let Err(error) = told
            && !state.ended
        {
            state.fail(error);
        }
        drop(state);
        self.shared.room.notify_one();
    }
}

impl Taken {
    fn new(request: Request, data: Option<Buffer>) -> Taken {
        let requests = match request.kind() {
            Kind::Read { offset, length } => Requests::read(offset, length as u64),
            Kind::Write { offset, .. } => Requests::write(offset, pieces(&data.unwrap_or_else(nothing))),
            Kind::Delete { offset, length } => Requests::delete(offset, length),
            Kind::Flush => Requests::none(),
        };
        let flush = request.kind() == Kind::Flush;
        Taken { request, requests, flush, outstanding: 0, data: Vec::new(), error: None }
    }

    fn next_request(&mut self) -> Option<(usize, Op)> {
        if self.error.is_some() {
            return None;
        }
        let op = self.requests.next().or_else(|| mem::take(&mut self.flush).then_some(Op::Flush))?;
        let number = self.data.len();
        self.data.push(None);
        self.outstanding += 1;
        Some((number, op))
    }

    fn finished(&mut self, number: usize, result: DiskResult) {
        self.outstanding = self.outstanding.saturating_sub(1);
        match result {
            Ok(data) => {
                if let Some(place) = self.data.get_mut(number) {
                    *place = data;
                }
            }
            // Unlike an NBD client a file system here is told what the disk cannot do: it asks no more then.
            Err(errno) => drop(self.error.get_or_insert(errno)),
        }
    }

    fn is_over(&self) -> bool {
        self.outstanding == 0 && (self.error.is_some() || (self.requests.is_empty() && !self.flush))
    }

    fn outcome(self, pool: &Pool) -> (Request, Result<Buffer, Errno>) {
        let result = match self.error {
            Some(errno) => Err(errno),
            None => Ok(joined(self.data.into_iter().flatten().collect(), pool)),
        };
        (self.request, result)
    }
}

/// What the threads and the reactor share.
struct Shared {
    device: Device,
    longest: usize,
    pool: Pool,
    state: Mutex<State>,
    /// There may be room for another request, or the end has come.
    room: Condvar,
    wake: Box<dyn Fn() + Send + Sync>,
}

#[derive(Default)]
struct State {
    arrived: VecDeque<(Request, Option<Buffer>)>,
    /// Requests taken from the kernel and not answered.
    taken: usize,
    ended: bool,
    failed: bool,
    failure: Option<DeviceError>,
}

impl State {
    /// Only the first reason is of interest.
    fn fail(&mut self, error: DeviceError) {
        if !mem::replace(&mut self.failed, true) {
            self.failure = Some(error);
        }
    }
}

impl Shared {
    /// One thread's life.
    fn work(&self) {
        // Signals are the reactor's: they would end a wait that has not come to its end.
        if let Err(error) = SigSet::all().thread_block() {
            log::warn!("Unable to block signals: {error}.");
        }
        if let Err(error) = self.serve() {
            let mut state = lock(&self.state);
            if !state.ended {
                state.fail(error);
                drop(state);
                (self.wake)();
            }
        }
    }

    fn serve(&self) -> Result<(), DeviceError> {
        let room = ROOM.min(self.longest);
        let mut buffer = self.pool.take(room);
        let mut cancelled = 0;
        while self.wait_for_room() {
            match self.device.next_request(&mut buffer)? {
                Next::Request(request) => {
                    cancelled = 0;
                    let data = match request.kind() {
                        Kind::Write { length, .. } => {
                            let mut full = mem::replace(&mut buffer, self.pool.take(room));
                            full.truncate(length);
                            Some(full.freeze())
                        }
                        Kind::Read { .. } | Kind::Delete { .. } | Kind::Flush => None,
                    };
                    self.arrive(request, data);
                }
                Next::TooSmall(length) if length > buffer.len() && length <= self.longest => {
                    buffer = self.pool.take(length);
                }
                Next::TooSmall(_) => {
                    let errno = Errno::ENOMEM;
                    return Err(DeviceError::Refused { what: "a request is longer than any may be", errno });
                }
                // Of a device that is being destroyed, or after a signal: the next call tells.
                Next::Cancelled if cancelled < MAX_CANCELLED => {
                    cancelled += 1;
                    thread::yield_now();
                }
                Next::Cancelled | Next::Gone => return Err(DeviceError::Gone),
            }
        }
        Ok(())
    }

    /// False: there is nothing more to be taken.
    fn wait_for_room(&self) -> bool {
        let mut state = lock(&self.state);
        while !state.ended && state.taken >= MAX_TAKEN {
            state = self.room.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        !state.ended
    }

    fn arrive(&self, request: Request, data: Option<Buffer>) {
        let mut state = lock(&self.state);
        if state.ended {
            // Too late. A successor gets it again, and if there is none the device's end answers it.
            return;
        }
        state.taken += 1;
        state.arrived.push_back((request, data));
        drop(state);
        (self.wake)();
    }
}

#[cfg(target_os = "freebsd")]
fn max_request() -> usize {
    hast_ggate::max_request().max(TAKEN_ANYWAY)
}

#[cfg(not(target_os = "freebsd"))]
fn max_request() -> usize {
    TAKEN_ANYWAY
}

/// A write in pieces that every peer takes.
fn pieces(data: &Buffer) -> Pieces {
    (0..data.len()).step_by(ROOM).map(|at| data.slice(at..at.saturating_add(ROOM))).collect()
}

fn nothing() -> Buffer {
    Buffer::from(Vec::new())
}

/// The kernel takes a read's data in one piece.
fn joined(mut pieces: Pieces, pool: &Pool) -> Buffer {
    if pieces.len() <= 1 {
        return pieces.pop().unwrap_or_else(nothing);
    }
    let mut whole = pool.take(pieces.iter().map(|piece| piece.len()).sum());
    let mut rest = &mut whole[..];
    for piece in &pieces {
        let Some((place, after)) = mem::take(&mut rest).split_at_mut_checked(piece.len()) else { break };
        place.copy_from_slice(piece);
        rest = after;
    }
    whole.freeze()
}

#[cfg(test)]
#[path = "gate_tests.rs"]
mod tests;
