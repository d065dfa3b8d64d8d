//! A kernel in memory with GEOM Gate's rules (spec/ggate.md), for tests on every system.
//!
//! [`FakeKernel`] has the devices and their users; each [`Process`] is one process's open control device,
//! and can be killed, at a call of the test's choice. Every call is recorded.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use hast_net::errno::Errno;

use crate::{Answer, Change, Create, Gate, Seen, Started, Ticket, Which, abi, settle};

/// The kernel. Clones are the same one.
#[derive(Clone, Default)]
pub struct FakeKernel {
    shared: Arc<Shared>,
}

/// A process with the control device open.
pub struct Process {
    kernel: FakeKernel,
    number: u32,
}

/// A request as the device's user makes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bio {
    /// One of [`abi`]'s `BIO_` numbers, or any other.
    pub command: u32,
    /// First byte.
    pub offset: i64,
    /// Bytes.
    pub length: i64,
    /// What a write writes.
    pub data: Vec<u8>,
}

impl Bio {
    /// A read.
    #[must_use]
    pub fn read(offset: i64, length: i64) -> Bio {
        Bio { command: abi::BIO_READ, offset, length, data: Vec::new() }
    }

    /// A write.
    #[must_use]
    pub fn write(offset: i64, data: Vec<u8>) -> Bio {
        Bio { command: abi::BIO_WRITE, offset, length: data.len() as i64, data }
    }

    /// A request without data.
    #[must_use]
    pub fn plain(command: u32, offset: i64, length: i64) -> Bio {
        Bio { command, offset, length, data: Vec::new() }
    }
}

/// How a request ended: what was read, nothing for anything else, or the error.
pub type Ended = Result<Vec<u8>, Errno>;

/// A call that a process made.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Call {
    Create(String),
    Cancel(String),
    /// And what was handed out, if something was.
    Start(Option<usize>),
    Done {
        seq: usize,
        error: i32,
    },
    Modify(Change),
    Destroy(Which),
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    units: BTreeMap<i32, Unit>,
    next_unit: i32,
    next_process: u32,
    dead: BTreeSet<u32>,
    /// Which process dies at its how manieth call from now, and whether before or after it takes effect.
    doomed: Option<(u32, usize, Moment)>,
    calls: Vec<Call>,
    /// Providers that the kernel can read from.
    providers: BTreeSet<String>,
    interrupts: usize,
    refuse_modify: Option<Errno>,
    /// Reads that the kernel serves itself wait until they are let go.
    holds_reads: bool,
    /// Nobody is told what there is.
    silent: bool,
}

struct Unit {
    create: Create,
    next_seq: usize,
    waiting: VecDeque<(usize, Bio)>,
    handed_out: Vec<(usize, Bio)>,
    ended: BTreeMap<usize, Ended>,
    read_from: Option<(String, u64)>,
    /// The provider was taken away and is still pointed at: whatever looks at it next panics the kernel.
    dangling: bool,
    /// Reads that the kernel serves itself and that have not ended, with what they bring.
    reading: Vec<(usize, Vec<u8>)>,
    /// Reads that the kernel served itself.
    direct_reads: usize,
    /// How often it was asked what there is of it.
    asked: usize,
}

/// When a process dies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    /// The call has no effect.
    Before,
    /// The call has its effect, but the process does not live to see it.
    After,
}

impl FakeKernel {
    /// A kernel without devices.
    #[must_use]
    pub fn new() -> FakeKernel {
        FakeKernel::default()
    }

    /// Another process.
    #[must_use]
    pub fn process(&self) -> Process {
        let mut state = self.lock();
        state.next_process = state.next_process.wrapping_add(1);
        Process { kernel: self.clone(), number: state.next_process }
    }

    /// Makes `path` a provider that direct reads may come from; anything else is refused, as a regular file is.
    pub fn add_provider(&self, path: &str) {
        self.lock().providers.insert(path.to_owned());
    }

    /// The next call that waits is interrupted by a signal.
    pub fn interrupt(&self) {
        self.lock().interrupts += 1;
        self.shared.changed.notify_all();
    }

    /// Every change of a device is refused from now on.
    pub fn refuse_modify(&self, errno: Option<Errno>) {
        self.lock().refuse_modify = errno;
    }

    /// Reads that the kernel serves itself end from now on when this is called with false, and those that wait at once.
    pub fn hold_direct_reads(&self, hold: bool) {
        let mut state = self.lock();
        state.holds_reads = hold;
        if !hold {
            state.units.values_mut().for_each(Unit::end_reads);
        }
        self.shared.changed.notify_all();
    }

    /// A user's request. None if there is no such device.
    pub fn submit(&self, name: &str, bio: Bio) -> Option<usize> {
        let mut state = self.lock();
        let holds = state.holds_reads;
        let unit = state.units.values_mut().find(|unit| unit.create.name == name)?;
        unit.next_seq += 1;
        let seq = unit.next_seq;
        if bio.command == abi::BIO_READ
            && let Some(data) = unit.read_directly(&bio)
        {
            unit.direct_reads += 1;
            unit.reading.push((seq, data));
            if !holds {
                unit.end_reads();
            }
        } else {
            unit.waiting.push_back((seq, bio));
        }
        self.shared.changed.notify_all();
        Some(seq)
    }

    /// How a request ended, within `limit`. The end is told once.
    #[must_use]
    pub fn wait(&self, name: &str, seq: usize, limit: Duration) -> Option<Ended> {
        self.until(limit, |state| {
            let Some(unit) = state.units.values_mut().find(|unit| unit.create.name == name) else {
                // Who destroys a device fails what its users had asked for.
                return Some(Err(Errno::ENXIO));
            };
            unit.ended.remove(&seq)
        })
    }

    /// Whether there is a device of that name.
    #[must_use]
    pub fn exists(&self, name: &str) -> bool {
        self.lock().units.values().any(|unit| unit.create.name == name)
    }

    /// Waits until there is one.
    #[must_use]
    pub fn wait_for_device(&self, name: &str, limit: Duration) -> bool {
        self.until(limit, |state| state.units.values().any(|unit| unit.create.name == name).then_some(()))
            .is_some()
    }

    /// The size of a device.
    #[must_use]
    pub fn mediasize(&self, name: &str) -> Option<u64> {
        self.look(name, |unit| unit.create.mediasize)
    }

    /// Where the kernel reads from by itself; none if every read comes to the process.
    #[must_use]
    pub fn reads_from(&self, name: &str) -> Option<(String, u64)> {
        self.look(name, |unit| unit.read_from.clone())?
    }

    /// How many reads it has served itself.
    #[must_use]
    pub fn direct_reads(&self, name: &str) -> usize {
        self.look(name, |unit| unit.direct_reads).unwrap_or_default()
    }

    /// Nobody is told what there is any more.
    pub fn say_nothing(&self) {
        self.lock().silent = true;
    }

    /// How often it was asked what there is of a device.
    #[must_use]
    pub fn looks(&self, name: &str) -> usize {
        self.look(name, |unit| unit.asked).unwrap_or_default()
    }

    /// Requests that wait, and those that were handed out.
    #[must_use]
    pub fn queues(&self, name: &str) -> (usize, usize) {
        self.look(name, |unit| (unit.waiting.len(), unit.handed_out.len())).unwrap_or_default()
    }

    /// All calls so far.
    #[must_use]
    pub fn calls(&self) -> Vec<Call> {
        self.lock().calls.clone()
    }

    fn look<T>(&self, name: &str, look: impl FnOnce(&Unit) -> T) -> Option<T> {
        self.lock().units.values().find(|unit| unit.create.name == name).map(look)
    }

    fn until<T>(&self, limit: Duration, mut found: impl FnMut(&mut State) -> Option<T>) -> Option<T> {
        let give_up = Instant::now() + limit;
        let mut state = self.lock();
        loop {
            if let Some(found) = found(&mut state) {
                return Some(found);
            }
            let left = give_up.checked_duration_since(Instant::now())?;
            state = self.shared.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Process {
    /// Ends the process: no call of its has any effect from now on, and what it had was left as it is.
    pub fn kill(&self) {
        self.kernel.lock().dead.insert(self.number);
        self.kernel.shared.changed.notify_all();
    }

    /// Ends the process at its `calls`-th call from now.
    pub fn kill_at(&self, calls: usize, moment: Moment) {
        self.kernel.lock().doomed = Some((self.number, calls, moment));
    }

    /// Whether it was ended.
    #[must_use]
    pub fn is_dead(&self) -> bool {
        self.kernel.lock().dead.contains(&self.number)
    }

    /// One call, with the process's fate: what a dead process does has no effect, and what it would hear,
    /// it hears from nobody.
    fn call<T>(&self, call: impl FnOnce(&mut State) -> Result<T, Errno>) -> Result<T, Errno> {
        let mut state = self.kernel.lock();
        if state.dead.contains(&self.number) {
            return Err(Errno::ENXIO);
        }
        let last = state.is_last_call(self.number);
        let result = if last == Some(Moment::Before) { Err(Errno::ENXIO) } else { call(&mut state) };
        if last.is_some() {
            state.dead.insert(self.number);
        }
        self.kernel.shared.changed.notify_all();
        if last.is_some() { Err(Errno::ENXIO) } else { result }
    }
}

impl State {
    fn is_last_call(&mut self, process: u32) -> Option<Moment> {
        match &mut self.doomed {
            Some((doomed, left, moment)) if *doomed == process => {
                *left = left.saturating_sub(1);
                (*left == 0).then_some(*moment)
            }
            _ => None,
        }
    }
}

impl Unit {
    /// A read that fails here goes to the process.
    fn read_directly(&self, bio: &Bio) -> Option<Vec<u8>> {
        self.panic_if_dangling();
        let (path, offset) = self.read_from.as_ref()?;
        let mut data = vec![0; usize::try_from(bio.length).ok()?];
        let at = u64::try_from(bio.offset).ok()?.checked_add(*offset)?;
        File::open(path).ok()?.read_exact_at(&mut data, at).ok()?;
        Some(data)
    }

    fn end_reads(&mut self) {
        self.ended.extend(self.reading.drain(..).map(|(seq, data)| (seq, Ok(data))));
    }

    fn panic_if_dangling(&self) {
        assert!(!self.dangling, "page fault: the provider of direct reads was freed and is still used");
    }

    fn read_from(&mut self, provider: &str, offset: u64, known: bool) -> Result<(), Errno> {
        self.panic_if_dangling();
        let had = self.read_from.take().is_some();
        if provider.is_empty() {
            self.dangling = had;
            return Ok(());
        }
        if !known {
            return Err(Errno::EINVAL);
        }
        let end = offset.checked_add(self.create.mediasize);
        let fits = end.is_some_and(|end| end <= size_of(provider))
            && offset.is_multiple_of(self.create.sectorsize.into());
        assert!(fits, "panic: MODIFY returns with the topology lock held");
        self.read_from = Some((provider.to_owned(), offset));
        Ok(())
    }
}

/// Bytes of a provider; 0 if it is not there.
fn size_of(provider: &str) -> u64 {
    std::fs::metadata(provider).map_or(0, |data| data.len())
}

impl Gate for Process {
    fn create(&self, create: &Create) -> Result<i32, Errno> {
        self.call(|state| {
            state.calls.push(Call::Create(create.name.clone()));
            if create.sectorsize == 0
                || create.mediasize == 0
                || !create.mediasize.is_multiple_of(create.sectorsize.into())
            {
                return Err(Errno::EINVAL);
            }
            if state.units.values().any(|unit| unit.create.name == create.name) {
                return Err(Errno::EEXIST);
            }
            let number = state.next_unit;
            state.next_unit += 1;
            let unit = Unit {
                create: create.clone(),
                next_seq: 0,
                waiting: VecDeque::new(),
                handed_out: Vec::new(),
                ended: BTreeMap::new(),
                read_from: None,
                dangling: false,
                reading: Vec::new(),
                direct_reads: 0,
                asked: 0,
            };
            state.units.insert(number, unit);
            Ok(number)
        })
    }

    fn cancel(&self, name: &str) -> Result<i32, Errno> {
        self.call(|state| {
            state.calls.push(Call::Cancel(name.to_owned()));
            let found = state.units.iter_mut().find(|(_, unit)| unit.create.name == name);
            let (number, unit) = found.ok_or(Errno::ENXIO)?;
            for request in unit.handed_out.drain(..).rev() {
                unit.waiting.push_front(request);
            }
            Ok(*number)
        })
    }

    fn start(&self, unit: i32, buffer: &mut [u8]) -> Result<Started, Errno> {
        let mut state = self.kernel.lock();
        let mut waited = false;
        loop {
            if state.dead.contains(&self.number) {
                return Err(Errno::ENXIO);
            }
            let canceled = Started { error: i32::from(Errno::ECANCELED.to_wire()), ..Started::default() };
            let Some(found) = state.units.get_mut(&unit) else {
                // Whoever waited when the device went is told so; whoever comes later finds none.
                return if waited { Ok(canceled) } else { Err(Errno::ENXIO) };
            };
            if let Some((seq, bio)) = found.waiting.front().cloned() {
                if bio.command == abi::BIO_WRITE && bio.data.len() > buffer.len() {
                    let error = i32::from(Errno::ENOMEM.to_wire());
                    return Ok(Started { error, length: bio.length, ..Started::default() });
                }
                let last = state.is_last_call(self.number);
                if last.is_some() {
                    state.dead.insert(self.number);
                    self.kernel.shared.changed.notify_all();
                }
                if last == Some(Moment::Before) {
                    return Err(Errno::ENXIO);
                }
                let Bio { command, offset, length, data } = bio.clone();
                if let Some(found) = state.units.get_mut(&unit) {
                    found.waiting.pop_front();
                    found.handed_out.push((seq, bio));
                }
                state.calls.push(Call::Start(Some(seq)));
                if last.is_some() {
                    return Err(Errno::ENXIO);
                }
                if let Some(room) = buffer.get_mut(..data.len()) {
                    room.copy_from_slice(&data);
                }
                return Ok(Started { seq, command, offset, length, error: 0 });
            }
            if state.interrupts > 0 {
                state.interrupts -= 1;
                state.calls.push(Call::Start(None));
                return Err(Errno::EINTR);
            }
            waited = true;
            state = self.kernel.shared.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn done(&self, ticket: Ticket, answer: Answer<'_>) -> Result<(), Errno> {
        self.call(|state| {
            let (error, data) = settle(&ticket, answer);
            state.calls.push(Call::Done { seq: ticket.seq, error });
            let unit = state.units.get_mut(&ticket.unit).ok_or(Errno::ENOENT)?;
            let Some(at) = unit.handed_out.iter().position(|(seq, _)| *seq == ticket.seq) else {
                return Ok(());
            };
            let (seq, bio) = unit.handed_out.remove(at);
            match i16::try_from(error).map_or(Some(Errno::EIO), Errno::from_wire) {
                Some(Errno::EAGAIN) => unit.waiting.push_front((seq, bio)),
                Some(errno) => drop(unit.ended.insert(seq, Err(errno))),
                None => drop(unit.ended.insert(seq, Ok(data.to_vec()))),
            }
            Ok(())
        })
    }

    fn exists(&self, name: &str) -> bool {
        self.kernel.exists(name)
    }

    fn look(&self, name: &str) -> Result<Option<Seen>, Errno> {
        let mut state = self.kernel.lock();
        if state.silent {
            return Err(Errno::ETIMEDOUT);
        }
        let unit = state.units.values_mut().find(|unit| unit.create.name == name);
        Ok(unit.map(|unit| {
            unit.asked += 1;
            let reads = unit.read_from.is_some() || !unit.reading.is_empty();
            Seen { info: unit.create.info.clone(), reads }
        }))
    }

    fn modify(&self, unit: i32, change: &Change) -> Result<(), Errno> {
        self.call(|state| {
            state.calls.push(Call::Modify(change.clone()));
            if let Some(errno) = state.refuse_modify {
                return Err(errno);
            }
            let known = match change {
                Change::ReadFrom { provider, .. } => state.providers.contains(provider),
                Change::Mediasize(_) | Change::Info(_) | Change::ReadHere => true,
            };
            let unit = state.units.get_mut(&unit).ok_or(Errno::ENXIO)?;
            match change {
                Change::Mediasize(bytes) => {
                    if *bytes == 0 || !bytes.is_multiple_of(unit.create.sectorsize.into()) {
                        return Err(Errno::EINVAL);
                    }
                    unit.create.mediasize = *bytes;
                }
                Change::Info(info) => unit.create.info.clone_from(info),
                Change::ReadFrom { provider, offset } => unit.read_from(provider, *offset, known)?,
                Change::ReadHere => {
                    unit.panic_if_dangling();
                    unit.read_from = None;
                }
            }
            Ok(())
        })
    }

    fn destroy(&self, which: &Which) -> Result<(), Errno> {
        self.call(|state| {
            state.calls.push(Call::Destroy(which.clone()));
            let found = state.units.iter().find(|(number, unit)| match which {
                Which::Unit(wanted) => *number == wanted,
                Which::Name(name) => unit.create.name == *name,
            });
            let number = *found.ok_or(Errno::ENXIO)?.0;
            if let Some(unit) = state.units.remove(&number) {
                unit.panic_if_dangling();
                assert!(
                    unit.reading.is_empty(),
                    "page fault: a read that the kernel serves itself ends without its device"
                );
            }
            Ok(())
        })
    }
}
