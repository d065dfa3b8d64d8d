//! A provider on a disk of ours: a FUSE file system that is one regular file, served by threads of this process.
//!
//! The programs under test are untouched: they open, lock, read, write, flush and punch holes into an ordinary file.
//! Owns the mount, the thread that answers the kernel, and the power of the disk: while that is off nothing is carried
//! out and nothing is answered, so that a process never hears of an error that no real one would have lived to see.
//!
//! One thing differs from a disk: the kernel lets no write to a FUSE file begin while one of its flushes runs.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hast_sim::random::Random;
use hast_tests::{Context, Failure};
use nix::libc::{EIO, EOPNOTSUPP, FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE, FALLOC_FL_ZERO_RANGE};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::unistd::{getegid, geteuid};

use super::disk::{Disk, Failed, Kind};
use super::protocol::{self, Request};

/// One mounted disk. Unmounted when it is dropped.
pub(super) struct Mounted {
    path: PathBuf,
    shared: Arc<Shared>,
}

struct Shared {
    device: File,
    state: Mutex<State>,
}

struct State {
    disk: Disk,
    power: Power,
    /// Counts the times that the power was switched off.
    losses: u64,
    /// Requests that wait for an answer that their process will not see.
    withheld: Vec<u64>,
    /// Descriptors of the provider, as the kernel counts them.
    open: u32,
    slow: Option<Slow>,
    random: Random,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Power {
    On,
    /// Nothing is answered.
    Off,
    /// The same, and who still waits for an answer is about to end and gets one.
    Gone,
}

/// Operations of a kind take so long at most, by chance.
#[derive(Clone, Copy, Debug)]
pub(super) struct Slow {
    pub(super) kind: Kind,
    pub(super) most: Duration,
}

/// What takes time and touches the disk.
enum Op {
    Read { offset: u64, length: usize },
    Write { offset: u64, data: Vec<u8> },
    Zeros { offset: u64, length: usize },
    Flush { covers: u64 },
}

impl Op {
    fn kind(&self) -> Kind {
        match self {
            Op::Read { .. } => Kind::Read,
            Op::Write { .. } | Op::Zeros { .. } => Kind::Write,
            Op::Flush { .. } => Kind::Flush,
        }
    }
}

impl Mounted {
    /// Mounts a disk over the regular file at `path`.
    ///
    /// # Errors
    /// There is no FUSE, or it may not be mounted here.
    pub(super) fn over(path: &Path, disk: Disk, random: Random) -> Result<Mounted, Failure> {
        let device = OpenOptions::new().read(true).write(true).open("/dev/fuse").context("/dev/fuse")?;
        let options = protocol::mount_options(device.as_raw_fd(), geteuid().as_raw(), getegid().as_raw());
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
        mount(Some("hast-power"), path, Some("fuse"), flags, Some(options.as_str()))
            .context(format!("mounting a disk over {}", path.display()))?;
        let state =
            State { disk, power: Power::On, losses: 0, withheld: Vec::new(), open: 0, slow: None, random };
        let shared = Arc::new(Shared { device, state: Mutex::new(state) });
        let server = Arc::clone(&shared);
        std::thread::spawn(move || server.serve());
        Ok(Mounted { path: path.to_owned(), shared })
    }

    /// The disk, to be looked at or told to fail.
    pub(super) fn disk<T>(&self, with: impl FnOnce(&mut Disk) -> T) -> T {
        with(&mut self.shared.lock().disk)
    }

    /// Makes a kind of operations slow, or ends that.
    pub(super) fn set_slow(&self, slow: Option<Slow>) {
        self.shared.lock().slow = slow;
    }

    /// From now on nothing is carried out and nothing is answered.
    pub(super) fn switch_off(&self) {
        let mut state = self.shared.lock();
        state.power = Power::Off;
        state.losses += 1;
    }

    /// Every process that used the disk has been sent SIGKILL: those that wait for an answer can end.
    pub(super) fn let_go(&self) {
        let withheld = {
            let mut state = self.shared.lock();
            state.power = Power::Gone;
            std::mem::take(&mut state.withheld)
        };
        for unique in withheld {
            self.shared.answer(&protocol::error(unique, EIO));
        }
    }

    /// No process uses the disk any more: it forgets what it forgets, and has power again.
    pub(super) fn switch_on(&self) {
        let mut state = self.shared.lock();
        state.disk.lose_power();
        state.power = Power::On;
        state.slow = None;
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // What still has it open keeps it until it ends; the mount namespace is ours alone and ends with us.
        let _ = umount2(&self.path, MntFlags::MNT_DETACH);
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Until the file is unmounted.
    fn serve(self: Arc<Shared>) {
        let mut buffer = vec![0; protocol::BUFFER];
        loop {
            let length = match (&self.device).read(&mut buffer) {
                Ok(0) => return,
                Ok(length) => length,
                // A request that was taken back while it was read, or a signal.
                Err(error) if matches!(error.raw_os_error(), Some(nix::libc::ENOENT | nix::libc::EINTR)) => {
                    continue;
                }
                // ENODEV: it is unmounted.
                Err(_) => return,
            };
            let Some(request) = buffer.get(..length) else { return };
            let Some((unique, what)) = protocol::parse(request) else { continue };
            self.handle(unique, what, request);
        }
    }

    fn handle(self: &Arc<Shared>, unique: u64, what: Request, bytes: &[u8]) {
        match what {
            Request::Nothing => {}
            Request::Init { max_readahead, .. } => {
                self.answer(&protocol::good(unique, &protocol::init(max_readahead)))
            }
            Request::Attributes => {
                let size = self.lock().disk.size();
                let owner = (geteuid().as_raw(), getegid().as_raw());
                self.answer(&protocol::good(unique, &protocol::attributes(size, owner.0, owner.1)));
            }
            Request::Open => {
                let mut state = self.lock();
                if state.open == 0 {
                    state.disk.forget_given_up();
                }
                state.open += 1;
                drop(state);
                self.answer(&protocol::good(unique, &protocol::opened()));
            }
            Request::Release => {
                let mut state = self.lock();
                state.open = state.open.saturating_sub(1);
                drop(state);
                self.answer(&protocol::good(unique, &[]));
            }
            Request::Close => self.answer(&protocol::good(unique, &[])),
            Request::Read { offset, length } => self.begin(unique, Op::Read { offset, length }),
            Request::Write { offset, data } => {
                let data = bytes.get(data).unwrap_or_default().to_vec();
                self.begin(unique, Op::Write { offset, data });
            }
            Request::Flush => {
                let covers = self.lock().disk.written();
                self.begin(unique, Op::Flush { covers });
            }
            Request::Allocate { offset, length, mode } => self.allocate(unique, offset, length, mode),
            Request::Unknown => self.answer(&protocol::error(unique, nix::libc::ENOSYS)),
        }
    }

    /// A hole reads as zeros.
    fn allocate(self: &Arc<Shared>, unique: u64, offset: u64, length: u64, mode: u32) {
        let zeros = [FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, FALLOC_FL_ZERO_RANGE];
        let mode = i32::try_from(mode).unwrap_or_default();
        let known = zeros.iter().any(|zeros| mode | FALLOC_FL_KEEP_SIZE == zeros | FALLOC_FL_KEEP_SIZE);
        let size = self.lock().disk.size();
        match usize::try_from(length.min(size)) {
            Ok(length) if known => self.begin(unique, Op::Zeros { offset, length }),
            _ => self.answer(&protocol::error(unique, EOPNOTSUPP)),
        }
    }

    /// Carries it out now, or in a thread of its own if it is to take time.
    fn begin(self: &Arc<Shared>, unique: u64, op: Op) {
        let (losses, pause) = {
            let mut state = self.lock();
            let slow = state.slow.filter(|slow| slow.kind == op.kind());
            let most = slow.map(|slow| u64::try_from(slow.most.as_millis()).unwrap_or(0));
            (state.losses, most.map(|most| Duration::from_millis(state.random.below(most + 1))))
        };
        match pause {
            None => self.carry_out(unique, &op, losses),
            Some(pause) => {
                let shared = Arc::clone(self);
                std::thread::spawn(move || {
                    std::thread::sleep(pause);
                    shared.carry_out(unique, &op, losses);
                });
            }
        }
    }

    /// `losses` is how often power had been lost when it was asked for.
    fn carry_out(&self, unique: u64, op: &Op, losses: u64) {
        let mut state = self.lock();
        if state.power == Power::Off {
            state.withheld.push(unique);
            return;
        }
        if state.power == Power::Gone || state.losses != losses {
            // Whose request it was is dead, or as good as that.
            drop(state);
            return self.answer(&protocol::error(unique, EIO));
        }
        let result = match op {
            Op::Read { offset, length } => state.disk.read(*offset, *length).map(<[u8]>::to_vec),
            Op::Write { offset, data } => {
                state.disk.write(*offset, data).map(|()| protocol::written(data.len()))
            }
            Op::Zeros { offset, length } => state.disk.write(*offset, &vec![0; *length]).map(|()| Vec::new()),
            Op::Flush { covers } => state.disk.flush(*covers).map(|()| Vec::new()),
        };
        drop(state);
        match result {
            Ok(body) => self.answer(&protocol::good(unique, &body)),
            Err(Failed) => self.answer(&protocol::error(unique, EIO)),
        }
    }

    /// The kernel refuses an answer only to a request that it has given up.
    fn answer(&self, bytes: &[u8]) {
        let _ = (&self.device).write(bytes);
    }
}
