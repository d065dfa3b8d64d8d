//! The kernel's own GEOM Gate. All of this crate's unsafe code.

use std::ffi::CStr;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::process::{Command, Stdio};
use std::ptr;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use hast_net::errno::Errno;

use crate::{Answer, Change, Create, Gate, Seen, Started, Ticket, Which, abi, geom, settle};

/// How long GEOM may take to say what there is.
const CONFXML_BOUND: Duration = Duration::from_secs(2);
/// The longest request when the kernel does not say otherwise, in bytes.
const DEFAULT_MAX_REQUEST: usize = 131_072;

/// A name that no provider can have. With an empty one the kernel goes on using what it has freed.
const NO_PROVIDER: &str = "/";

/// `/dev/ggctl`, open.
#[derive(Debug)]
pub struct Kernel {
    control: File,
}

/// Why GEOM Gate cannot be used.
#[derive(Debug)]
#[non_exhaustive]
pub enum OpenError {
    /// The kernel module cannot be loaded.
    Load(io::Error),
    /// The control device cannot be opened.
    Open(io::Error),
}

impl std::error::Error for OpenError {}

impl std::fmt::Display for OpenError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            OpenError::Load(error) => {
                let text = Errno::from_io(error);
                write!(f, "Unable to load geom_gate module: {text}.")
            }
            OpenError::Open(error) => {
                let text = Errno::from_io(error);
                write!(f, "Unable to open {}: {text}.", abi::CONTROL)
            }
        }
    }
}

impl Kernel {
    /// Opens the control device; loads the module first if it is not there. Needs root.
    ///
    /// # Errors
    ///
    /// What the system refuses.
    pub fn open() -> Result<Kernel, OpenError> {
        load_module().map_err(OpenError::Load)?;
        let control =
            OpenOptions::new().read(true).write(true).open(abi::CONTROL).map_err(OpenError::Open)?;
        Ok(Kernel { control })
    }

    /// The control device on a descriptor that is open already.
    #[must_use]
    pub fn from_fd(control: OwnedFd) -> Kernel {
        Kernel { control: control.into() }
    }

    /// Another descriptor of the control device, to be passed on.
    ///
    /// # Errors
    ///
    /// When there are too many descriptors.
    pub fn duplicate(&self) -> io::Result<OwnedFd> {
        self.control.as_fd().try_clone_to_owned()
    }

    /// # Safety
    ///
    /// `argument` is the structure that belongs to `request`, and what it points at is valid for what the
    /// request does with it.
    unsafe fn call<T>(&self, request: u64, argument: &mut T) -> Result<(), Errno> {
        // SAFETY: the descriptor is open because `self` is borrowed; the kernel copies the structure, whose
        // size is part of the request's number, in and out of memory that is exclusively borrowed; the rest
        // is the caller's promise.
        let result = unsafe { libc::ioctl(self.control.as_raw_fd(), request, ptr::from_mut(argument)) };
        if result == -1 { Err(Errno::from_io(&io::Error::last_os_error())) } else { Ok(()) }
    }
}

impl AsFd for Kernel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.control.as_fd()
    }
}

impl Gate for Kernel {
    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        Some(self.control.as_fd())
    }

    fn create(&self, create: &Create) -> Result<i32, Errno> {
        let mut argument = abi::Create {
            version: abi::VERSION,
            mediasize: i64::try_from(create.mediasize).map_err(|_| Errno::EINVAL)?,
            sectorsize: create.sectorsize,
            flags: 0,
            maxcount: 0,
            timeout: 0,
            name: abi::text(&create.name).ok_or(Errno::ENAMETOOLONG)?,
            info: abi::text(&create.info).unwrap_or([0; abi::INFO_SIZE]),
            readprov: [0; abi::NAME_SIZE],
            readoffset: 0,
            unit: abi::UNIT_BY_NAME,
        };
        // SAFETY: CREATE takes this structure, which points at nothing.
        unsafe { self.call(abi::CREATE, &mut argument) }?;
        Ok(argument.unit)
    }

    fn cancel(&self, name: &str) -> Result<i32, Errno> {
        let name = abi::text(name).ok_or(Errno::ENAMETOOLONG)?;
        let mut argument = abi::Cancel { version: abi::VERSION, unit: abi::UNIT_BY_NAME, seq: 0, name };
        // SAFETY: CANCEL takes this structure, which points at nothing.
        unsafe { self.call(abi::CANCEL, &mut argument) }?;
        Ok(argument.unit)
    }

    fn start(&self, unit: i32, buffer: &mut [u8]) -> Result<Started, Errno> {
        let mut argument = abi::Io {
            version: abi::VERSION,
            unit,
            seq: 0,
            command: 0,
            offset: 0,
            length: i64::try_from(buffer.len()).map_err(|_| Errno::EINVAL)?,
            data: buffer.as_mut_ptr().cast(),
            error: 0,
        };
        // SAFETY: START takes this structure. It writes at `data` at most `length` bytes, which is how long
        // the buffer is: a longer write is not handed out. The buffer is exclusively borrowed for as long as
        // the call takes, and plain bytes may become any bytes.
        unsafe { self.call(abi::START, &mut argument) }?;
        let abi::Io { seq, command, offset, length, error, .. } = argument;
        Ok(Started { seq, command, offset, length, error })
    }

    fn done(&self, ticket: Ticket, answer: Answer<'_>) -> Result<(), Errno> {
        let (error, data) = settle(&ticket, answer);
        let mut argument = abi::Io {
            version: abi::VERSION,
            unit: ticket.unit,
            seq: ticket.seq,
            command: 0,
            offset: 0,
            length: i64::try_from(data.len()).map_err(|_| Errno::EINVAL)?,
            data: data.as_ptr().cast_mut().cast(),
            error,
        };
        // SAFETY: DONE takes this structure. It only reads at `data`, and only for a read that succeeded:
        // then as many bytes as the kernel asked for when it handed the request out. Those are `wanted` of
        // the ticket, which is used up here and cannot have been made up, and `settle` lets no data through
        // that is not exactly as long. A cancelled request is unknown to the kernel, or has the same length.
        unsafe { self.call(abi::DONE, &mut argument) }
    }

    fn exists(&self, name: &str) -> bool {
        Path::new("/dev").join(name).exists()
    }

    fn look(&self, name: &str) -> Result<Option<Seen>, Errno> {
        Ok(geom::seen(&confxml().map_err(|error| Errno::from_io(&error))?, name))
    }

    fn modify(&self, unit: i32, change: &Change) -> Result<(), Errno> {
        let mut argument = abi::Modify {
            version: abi::VERSION,
            unit,
            modify: 0,
            mediasize: 0,
            info: [0; abi::INFO_SIZE],
            readprov: [0; abi::NAME_SIZE],
            readoffset: 0,
        };
        match change {
            Change::Mediasize(bytes) => {
                argument.modify = abi::MODIFY_MEDIASIZE;
                argument.mediasize = i64::try_from(*bytes).map_err(|_| Errno::EINVAL)?;
            }
            Change::Info(info) => {
                argument.modify = abi::MODIFY_INFO;
                argument.info = abi::text(info).ok_or(Errno::EINVAL)?;
            }
            Change::ReadFrom { provider, offset } => {
                argument.modify = abi::MODIFY_READPROV | abi::MODIFY_READOFFSET;
                let name = Some(provider).filter(|name| !name.is_empty());
                argument.readprov = name.and_then(|name| abi::text(name)).ok_or(Errno::EINVAL)?;
                argument.readoffset = i64::try_from(*offset).map_err(|_| Errno::EINVAL)?;
            }
            Change::ReadHere => {
                argument.modify = abi::MODIFY_READPROV;
                argument.readprov = abi::text(NO_PROVIDER).ok_or(Errno::EINVAL)?;
            }
        }
        // SAFETY: MODIFY takes this structure, which points at nothing.
        match unsafe { self.call(abi::MODIFY, &mut argument) } {
            // There is no such provider; the one there was has been let go by then.
            Err(Errno::EINVAL) if *change == Change::ReadHere => Ok(()),
            result => result,
        }
    }

    fn destroy(&self, which: &Which) -> Result<(), Errno> {
        let (unit, name) = match which {
            Which::Unit(unit) => (*unit, [0; abi::NAME_SIZE]),
            Which::Name(name) => (abi::UNIT_BY_NAME, abi::text(name).ok_or(Errno::ENAMETOOLONG)?),
        };
        let mut argument = abi::Destroy { version: abi::VERSION, unit, force: 1, name };
        // SAFETY: DESTROY takes this structure, which points at nothing.
        unsafe { self.call(abi::DESTROY, &mut argument) }
    }
}

/// The longest request that this kernel makes, in bytes: `kern.maxphys`.
#[must_use]
pub fn max_request() -> usize {
    let mut bytes: libc::c_ulong = 0;
    let mut length = size_of::<libc::c_ulong>();
    // SAFETY: the name ends with a NUL; `bytes` is `length` bytes long, and the kernel writes at most so
    // many; nothing is set, for which the last two arguments stand.
    let result = unsafe {
        libc::sysctlbyname(
            c"kern.maxphys".as_ptr(),
            ptr::from_mut(&mut bytes).cast(),
            &raw mut length,
            ptr::null_mut(),
            0,
        )
    };
    let known = result == 0 && length == size_of::<libc::c_ulong>();
    usize::try_from(bytes).ok().filter(|bytes| known && *bytes > 0).unwrap_or(DEFAULT_MAX_REQUEST)
}

/// What the kernel tells of GEOM: `kern.geom.confxml`.
///
/// The kernel answers after everything that GEOM has begun before, and somebody may be looking at a device that nobody serves.
/// That wait cannot be interrupted, so another process has it, and is left alone with it.
///
/// # Errors
///
/// What the system refuses. `TimedOut`: no answer within two seconds.
pub fn confxml() -> io::Result<String> {
    let (answer, answered) = mpsc::channel();
    let ask = || Command::new("/sbin/sysctl").args(["-n", "kern.geom.confxml"]).stdin(Stdio::null()).output();
    thread::Builder::new().name("geom".to_owned()).spawn(move || {
        // Nobody may wait for it any more.
        let _ = answer.send(ask());
    })?;
    let output =
        answered.recv_timeout(CONFXML_BOUND).map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
    if !output.status.success() {
        return Err(io::Error::other("sysctl: kern.geom.confxml"));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn load_module() -> io::Result<()> {
    unsafe extern "C" {
        fn modfind(name: *const libc::c_char) -> libc::c_int;
        fn kldload(file: *const libc::c_char) -> libc::c_int;
    }
    const MODULE: &CStr = c"g_gate";
    const FILE: &CStr = c"geom_gate";
    const _: () =
        assert!(MODULE.count_bytes() == abi::MODULE.0.len() && FILE.count_bytes() == abi::MODULE.1.len());
    // SAFETY: modfind(2) reads a name that ends with a NUL.
    if unsafe { modfind(MODULE.as_ptr()) } >= 0 {
        return Ok(());
    }
    // SAFETY: kldload(2) reads a name that ends with a NUL.
    if unsafe { kldload(FILE.as_ptr()) } >= 0 {
        return Ok(());
    }
    match io::Error::last_os_error() {
        // Somebody else was quicker.
        error if error.raw_os_error() == Some(libc::EEXIST) => Ok(()),
        error => Err(error),
    }
}
