//! A device and the requests of its users.

use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use hast_net::errno::Errno;

use crate::{Answer, Change, Create, Gate, MAX_NAME, Started, Ticket, Which, abi};

/// How often a device that is there when it is created, and gone when it is taken over, is tried again.
const ATTEMPTS: usize = 3;

/// A device that this process serves. When it is dropped the device disappears, unless
/// [`leave`](Device::leave) was called, or the kernel may be reading for it ([`destroy`](Device::destroy)).
pub struct Device {
    gate: Arc<dyn Gate>,
    unit: i32,
    sectorsize: u32,
    /// Bytes.
    mediasize: AtomicU64,
    direct: Mutex<Direct>,
    /// Another process has made it, as large as it liked.
    taken_over: bool,
    /// Nothing is left to be destroyed, or it is somebody else's.
    released: AtomicBool,
}

/// Whether the kernel serves reads itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Direct {
    /// It never has.
    Never,
    /// It does.
    On,
    /// It does not any more. What it has begun may be under way.
    Off,
}

/// How a device came to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// It is new.
    Created,
    /// A process that is gone left it; what it had not answered will be handed out again.
    TakenOver,
}

/// What waiting for a request came to.
#[derive(Debug, PartialEq, Eq)]
pub enum Next {
    /// A request. A write's data is at the beginning of the buffer.
    Request(Request),
    /// The next request is a write of so many bytes and was not handed out.
    TooSmall(usize),
    /// The wait was ended: the device is being destroyed, or a signal came.
    Cancelled,
    /// The device does not exist any more.
    Gone,
}

/// A request that has to be answered, with [`Device::complete`] or [`Device::requeue`].
#[derive(Debug, PartialEq, Eq)]
pub struct Request {
    ticket: Ticket,
    kind: Kind,
}

impl Request {
    /// What is asked for.
    #[must_use]
    pub fn kind(&self) -> Kind {
        self.kind
    }
}

/// What a request asks for; offsets and lengths in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Reads.
    Read {
        /// First byte.
        offset: u64,
        /// Bytes.
        length: usize,
    },
    /// Writes what lies at the beginning of the buffer.
    Write {
        /// First byte.
        offset: u64,
        /// Bytes.
        length: usize,
    },
    /// The range is not needed any more.
    Delete {
        /// First byte.
        offset: u64,
        /// Bytes.
        length: u64,
    },
    /// Everything that was answered is to be made durable.
    Flush,
}

/// Why a device cannot be had, used or changed.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum DeviceError {
    /// No device can have that name.
    Name {
        /// The name.
        name: String,
    },
    /// The kernel refuses it.
    Refused {
        /// What was asked for.
        what: &'static str,
        /// Its reason.
        errno: Errno,
    },
    /// The device does not exist any more.
    Gone,
}

impl std::error::Error for DeviceError {}

impl std::fmt::Display for DeviceError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            DeviceError::Name { name } => {
                write!(
                    f,
                    "{name} is no name for a device: it is empty, contains NUL or is longer than {MAX_NAME} bytes"
                )
            }
            DeviceError::Refused { what, errno } => write!(f, "GEOM Gate: {what}: {errno}"),
            DeviceError::Gone => f.write_str("GEOM Gate: the device has been destroyed by somebody else"),
        }
    }
}

impl Device {
    /// Creates the device, or takes over what a process that is gone has left under its name, as large as it
    /// is: then every request comes here first (L17), because the kernel may still have served reads from a
    /// disk that is out of date by now.
    ///
    /// # Errors
    ///
    /// What the kernel refuses; EINVAL is a size that is no multiple of the sector size.
    pub fn open(gate: Arc<dyn Gate>, create: &Create) -> Result<(Device, Origin), DeviceError> {
        if create.name.is_empty() || create.name.len() > MAX_NAME || create.name.contains('\0') {
            return Err(DeviceError::Name { name: create.name.clone() });
        }
        let refused = |what| move |errno| DeviceError::Refused { what, errno };
        for _ in 0..ATTEMPTS {
            match gate.create(create) {
                Ok(unit) => return Ok((Device::of(gate, unit, create), Origin::Created)),
                Err(Errno::EEXIST) => {}
                Err(errno) => return Err(refused("creating the device")(errno)),
            }
            match gate.cancel(&create.name) {
                Ok(unit) => {
                    let mut device = Device::of(gate, unit, create);
                    device.taken_over = true;
                    // Until it is known to be in order it is not ours to destroy.
                    device.leave();
                    *device.lock_direct() = Direct::On; // nobody knows
                    device.read_here()?;
                    device.modify("taking the device over", &Change::Info(create.info.clone()))?;
                    device.released.store(false, Ordering::Relaxed);
                    return Ok((device, Origin::TakenOver));
                }
                Err(Errno::ENXIO) => {}
                Err(errno) => return Err(refused("taking the device over")(errno)),
            }
        }
        Err(refused("taking the device over")(Errno::ENXIO))
    }

    fn of(gate: Arc<dyn Gate>, unit: i32, create: &Create) -> Device {
        Device {
            gate,
            unit,
            sectorsize: create.sectorsize,
            mediasize: AtomicU64::new(create.mediasize),
            direct: Mutex::new(Direct::Never),
            taken_over: false,
            released: AtomicBool::new(false),
        }
    }

    /// The kernel's number for it.
    #[must_use]
    pub fn unit(&self) -> i32 {
        self.unit
    }

    /// The descriptor of the control device, if there is one.
    #[must_use]
    pub fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        self.gate.descriptor()
    }

    /// Waits for a request that has to be looked at; several threads may. A write's data comes to the
    /// beginning of `buffer`. What nobody knows is refused without bothering the caller.
    ///
    /// # Errors
    ///
    /// What the kernel says, except that the device is gone.
    pub fn next_request(&self, buffer: &mut [u8]) -> Result<Next, DeviceError> {
        loop {
            let started = match self.gate.start(self.unit, buffer) {
                Ok(started) => started,
                Err(Errno::EINTR) => continue,
                Err(Errno::ENXIO) => return Ok(Next::Gone),
                Err(errno) => return Err(DeviceError::Refused { what: "waiting for requests", errno }),
            };
            if let Some(errno) = started_error(&started) {
                return match errno {
                    Errno::ENOMEM => Ok(usize::try_from(started.length).map_or(Next::Gone, Next::TooSmall)),
                    Errno::ECANCELED => Ok(Next::Cancelled),
                    errno => Err(DeviceError::Refused { what: "waiting for requests", errno }),
                };
            }
            let kind = Kind::of(&started, buffer.len());
            let wanted = match kind {
                Ok(Kind::Read { length, .. }) => length,
                _ => 0,
            };
            let ticket = Ticket { unit: self.unit, seq: started.seq, wanted };
            match kind {
                Ok(kind) => return Ok(Next::Request(Request { ticket, kind })),
                Err(errno) => self.answer(ticket, Answer::Failed(errno))?,
            }
        }
    }

    /// Answers a request: a read with as many bytes as it asked for, anything else with none.
    ///
    /// # Errors
    ///
    /// [`DeviceError::Gone`] if nobody waits for answers any more.
    pub fn complete(&self, request: Request, result: Result<&[u8], Errno>) -> Result<(), DeviceError> {
        self.answer(request.ticket, result.map_or_else(Answer::Failed, Answer::Done))
    }

    /// Gives a request back: it will be handed out again.
    ///
    /// # Errors
    ///
    /// As [`complete`](Device::complete).
    pub fn requeue(&self, request: Request) -> Result<(), DeviceError> {
        self.answer(request.ticket, Answer::Requeue)
    }

    /// Lets the kernel serve reads by itself, from the provider at `path`, which has `size` bytes, `offset` bytes further on.
    ///
    /// # Errors
    ///
    /// What the kernel refuses: EINVAL if that is no GEOM provider. EINVAL, too, if it is too small. EBUSY: another process has
    /// made the device, and nobody knows how large.
    pub fn read_from(&self, path: &str, size: u64, offset: u64) -> Result<(), DeviceError> {
        let what = "switching direct reads on";
        // Refused here: the kernel would return with a lock held.
        let end = self.mediasize.load(Ordering::Relaxed).checked_add(offset);
        let fits = end.is_some_and(|end| end <= size) && offset.is_multiple_of(self.sectorsize.into());
        if path.len() > MAX_NAME || path.is_empty() || !fits {
            return Err(DeviceError::Refused { what, errno: Errno::EINVAL });
        }
        if self.taken_over {
            return Err(DeviceError::Refused { what, errno: Errno::EBUSY });
        }
        let mut direct = self.lock_direct();
        if *direct != Direct::On {
            self.modify(what, &Change::ReadFrom { provider: path.to_owned(), offset })?;
            *direct = Direct::On;
        }
        Ok(())
    }

    /// Lets every read come here again. When this returns none is begun by the kernel any more; one that was under way
    /// may still end, with what its range held while it was under way.
    ///
    /// # Errors
    ///
    /// What the kernel refuses. The device must not be used any longer then.
    pub fn read_here(&self) -> Result<(), DeviceError> {
        let mut direct = self.lock_direct();
        if *direct != Direct::Never {
            self.modify("switching direct reads off", &Change::ReadHere)?;
            *direct = Direct::Off;
        }
        Ok(())
    }

    fn lock_direct(&self) -> MutexGuard<'_, Direct> {
        self.direct.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives the device another size in bytes. Another thread must be waiting for requests: the kernel lets
    /// all its classes look at the device again, and returns when they have read what they want.
    ///
    /// # Errors
    ///
    /// What the kernel refuses.
    pub fn resize(&self, mediasize: u64) -> Result<(), DeviceError> {
        self.modify("changing the size", &Change::Mediasize(mediasize))?;
        self.mediasize.store(mediasize, Ordering::Relaxed);
        Ok(())
    }

    /// Leaves the device to a successor, with whatever is not answered yet.
    pub fn leave(&self) {
        self.released.store(true, Ordering::Relaxed);
    }

    /// Takes the device away, in use or not. Threads that wait for requests are woken. False: the device is still there. The
    /// kernel may have begun to serve a read itself, and must not lose the device before that read has ended, which this process
    /// cannot see. No further read begins; the supervisor, which can see it ([`Gate::look`]), takes the device away.
    ///
    /// # Errors
    ///
    /// What the kernel refuses. That it is gone already is none.
    pub fn destroy(&self) -> Result<bool, DeviceError> {
        if self.released.swap(true, Ordering::Relaxed) {
            return Ok(true);
        }
        if *self.lock_direct() != Direct::Never {
            return match self.read_here() {
                Ok(()) => Ok(false),
                Err(DeviceError::Gone) => Ok(true),
                Err(error) => Err(error),
            };
        }
        match self.gate.destroy(&Which::Unit(self.unit)) {
            Ok(()) | Err(Errno::ENXIO) => Ok(true),
            Err(errno) => Err(DeviceError::Refused { what: "destroying the device", errno }),
        }
    }

    fn modify(&self, what: &'static str, change: &Change) -> Result<(), DeviceError> {
        self.gate.modify(self.unit, change).map_err(|errno| match errno {
            Errno::ENXIO => DeviceError::Gone,
            errno => DeviceError::Refused { what, errno },
        })
    }

    fn answer(&self, ticket: Ticket, answer: Answer<'_>) -> Result<(), DeviceError> {
        match self.gate.done(ticket, answer) {
            Ok(()) => Ok(()),
            Err(Errno::ENOENT | Errno::ENXIO) => Err(DeviceError::Gone),
            Err(errno) => Err(DeviceError::Refused { what: "answering a request", errno }),
        }
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        // There is nobody left to be told.
        let _ = self.destroy();
    }
}

impl Kind {
    /// What a request asks for, or how to refuse it.
    fn of(started: &Started, room: usize) -> Result<Kind, Errno> {
        let offset = || u64::try_from(started.offset).map_err(|_| Errno::EINVAL);
        let length = || usize::try_from(started.length).map_err(|_| Errno::EINVAL);
        match started.command {
            abi::BIO_READ => Ok(Kind::Read { offset: offset()?, length: length()? }),
            abi::BIO_WRITE if length()? > room => Err(Errno::EIO),
            abi::BIO_WRITE => Ok(Kind::Write { offset: offset()?, length: length()? }),
            abi::BIO_DELETE => Ok(Kind::Delete { offset: offset()?, length: length()? as u64 }),
            abi::BIO_FLUSH => Ok(Kind::Flush),
            // Attributes, zones, speedup, and whatever comes after them.
            _ => Err(Errno::EOPNOTSUPP),
        }
    }
}

fn started_error(started: &Started) -> Option<Errno> {
    i16::try_from(started.error).map_or(Some(Errno::EIO), Errno::from_wire)
}
