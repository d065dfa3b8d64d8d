//! io_uring as far as ublk needs it, and the memory that a device's requests are described in. All of the unsafe
//! code for ublk.

use std::fs::File;
use std::io::{self, PipeReader, Read};
use std::num::NonZeroUsize;
use std::os::fd::AsRawFd;
use std::ptr::NonNull;
use std::sync::Arc;

use io_uring::{IoUring, cqueue, opcode, squeue, types};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};
use zerocopy::IntoBytes;

use super::command::{COMMIT_AND_FETCH, Control, ControlCommand, Descriptor, FETCH, IoCommand};

/// Commands of ublk do not fit into the common entries.
type WideRing = IoUring<squeue::Entry128, cqueue::Entry>;

fn ring(entries: u32) -> io::Result<WideRing> {
    WideRing::builder().build(entries)
}

/// Bytes for a command in an entry.
const COMMAND: usize = 80;

fn entry(file: &File, opcode: u32, command: &[u8]) -> squeue::Entry128 {
    let mut bytes = [0; COMMAND];
    bytes.iter_mut().zip(command).for_each(|(to, from)| *to = *from);
    opcode::UringCmd80::new(types::Fd(file.as_raw_fd()), opcode).cmd(bytes).build()
}

/// Asks for no memory for the sake of which this thread would have to wait for what it serves itself. Kernels
/// before Linux 5.6, and a process without privileges, go on without.
pub(super) fn serve_without_reclaim() {
    /// `PR_SET_IO_FLUSHER` of `linux/prctl.h`, which libc lacks.
    const SET_IO_FLUSHER: libc::c_int = 57;
    // SAFETY: this option takes numbers, and changes nothing but how the kernel gets memory for this thread.
    let _ = unsafe { libc::prctl(SET_IO_FLUSHER, 1_u64, 0_u64, 0_u64, 0_u64) };
}

/// The control device, one command at a time.
pub(super) struct ControlRing {
    ring: WideRing,
    file: File,
    /// Commands so far: each is known by its number.
    commands: u64,
    /// Commands of which nobody knows whether they have ended, and the memory that the kernel may use for them.
    lost: Vec<(u64, Vec<u8>)>,
}

impl ControlRing {
    pub(super) fn new(file: File) -> io::Result<ControlRing> {
        Ok(ControlRing { ring: ring(2)?, file, commands: 0, lost: Vec::new() })
    }

    /// Carries out a command, which may read `bytes` and change them; they are given back.
    pub(super) fn call(
        &mut self,
        control: Control,
        device: Option<u32>,
        data: u64,
        mut bytes: Vec<u8>,
    ) -> io::Result<Vec<u8>> {
        let length = u16::try_from(bytes.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
        let address = if bytes.is_empty() { 0 } else { bytes.as_mut_ptr().expose_provenance() as u64 };
        let command = ControlCommand::new(device, data, address, length);
        self.commands = self.commands.saturating_add(1);
        let number = self.commands;
        let entry = entry(&self.file, control.opcode(), command.as_bytes()).user_data(number);
        // SAFETY: what the entry names is the file, which lives as long as the ring, and the bytes. Those are neither
        // touched nor freed before the completion with this command's number has come: `outcome` returns it and no
        // other, or an error, and then they are kept until it comes with a later command, or for ever.
        unsafe { self.ring.submission().push(&entry) }.map_err(|_| io::ErrorKind::WouldBlock)?;
        match self.outcome(number) {
            Ok(result) if result >= 0 => Ok(bytes),
            Ok(result) => Err(io::Error::from_raw_os_error(result.saturating_neg())),
            Err(error) => {
                self.lost.push((number, bytes));
                Err(error)
            }
        }
    }

    /// The result of the command with this number. An error: what becomes of it is unknown.
    fn outcome(&mut self, number: u64) -> io::Result<i32> {
        loop {
            while let Some(done) = self.ring.completion().next() {
                if done.user_data() == number {
                    return Ok(done.result());
                }
                // An earlier one has ended after all: nobody uses its memory any more.
                self.lost.retain(|(lost, _)| *lost != done.user_data());
            }
            match self.ring.submit_and_wait(1) {
                Err(error) if error.kind() != io::ErrorKind::Interrupted => return Err(error),
                _ => {}
            }
        }
    }
}

impl Drop for ControlRing {
    fn drop(&mut self) {
        // The kernel ends what is under way in its own time.
        self.lost.drain(..).for_each(std::mem::forget);
    }
}

/// What has happened to a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Happened {
    /// A tag's command has been completed: with 0 there is a request.
    Tag(u16, i32),
    /// Somebody has written to the waker.
    Woken,
}

/// The queue of a device, for the one thread that serves it.
pub(super) struct QueueRing {
    ring: WideRing,
    descriptors: Descriptors,
    file: Arc<File>,
    waker: PipeReader,
}

impl QueueRing {
    /// What tells the waker from a tag.
    const WAKER: u64 = u64::MAX;

    /// For `depth` requests of the device `file`.
    pub(super) fn new(file: Arc<File>, depth: u16, waker: PipeReader) -> io::Result<QueueRing> {
        let descriptors = Descriptors::map(&file, depth)?;
        // Never full: a command for each tag, and one for the waker.
        let ring = ring(u32::from(depth).saturating_add(1))?;
        Ok(QueueRing { ring, descriptors, file, waker })
    }

    /// Asks for the first request with this tag.
    pub(super) fn fetch(&mut self, tag: u16) -> io::Result<()> {
        self.push_command(FETCH, tag, 0)
    }

    /// Answers the tag's request and asks for the next one.
    pub(super) fn commit_and_fetch(&mut self, tag: u16, result: i32) -> io::Result<()> {
        self.push_command(COMMIT_AND_FETCH, tag, result)
    }

    /// Wants to know when somebody writes to the waker, once.
    pub(super) fn watch(&mut self) -> io::Result<()> {
        let readable = u32::from(libc::POLLIN.unsigned_abs());
        let poll = opcode::PollAdd::new(types::Fd(self.waker.as_raw_fd()), readable).build();
        self.push(&poll.user_data(Self::WAKER).into())
    }

    /// Tells the kernel what was asked, and waits for something to happen if `wait`.
    pub(super) fn submit(&mut self, wait: bool) -> io::Result<()> {
        match self.ring.submit_and_wait(usize::from(wait)) {
            Ok(_) => Ok(()),
            // The first is a signal; with the others it wants to be rid of what has happened first.
            Err(error) => match error.raw_os_error() {
                Some(libc::EINTR | libc::EAGAIN | libc::EBUSY) => Ok(()),
                _ => Err(error),
            },
        }
    }

    /// What has happened next, if anything has.
    pub(super) fn next(&mut self) -> io::Result<Option<Happened>> {
        let Some(done) = self.ring.completion().next() else { return Ok(None) };
        if done.user_data() == Self::WAKER {
            // How often it was written to does not matter.
            let _ = self.waker.read(&mut [0; 64])?;
            return Ok(Some(Happened::Woken));
        }
        let tag = u16::try_from(done.user_data()).map_err(|_| io::ErrorKind::InvalidData)?;
        Ok(Some(Happened::Tag(tag, done.result())))
    }

    /// The request that has come with this tag.
    pub(super) fn descriptor(&self, tag: u16) -> Option<Descriptor> {
        self.descriptors.get(tag)
    }

    fn push_command(&mut self, opcode: u32, tag: u16, result: i32) -> io::Result<()> {
        let entry = entry(&self.file, opcode, IoCommand::new(tag, result).as_bytes());
        self.push(&entry.user_data(tag.into()))
    }

    fn push(&mut self, entry: &squeue::Entry128) -> io::Result<()> {
        // SAFETY: the entries made here name no memory, only the file and the waker, which live as long as the ring.
        unsafe { self.ring.submission().push(entry) }.map_err(|_| io::ErrorKind::WouldBlock.into())
    }
}

/// The descriptors of a queue's requests, which the kernel writes.
struct Descriptors {
    memory: NonNull<libc::c_void>,
    bytes: NonZeroUsize,
    depth: u16,
}

impl Descriptors {
    fn map(file: &File, depth: u16) -> io::Result<Descriptors> {
        let bytes = usize::from(depth).saturating_mul(size_of::<Descriptor>());
        let bytes = NonZeroUsize::new(bytes).ok_or(io::ErrorKind::InvalidInput)?;
        // SAFETY: a new mapping where the kernel likes it, over nothing that is in use.
        let memory = unsafe { mmap(None, bytes, ProtFlags::PROT_READ, MapFlags::MAP_SHARED, file, 0) }?;
        Ok(Descriptors { memory, bytes, depth })
    }

    fn get(&self, tag: u16) -> Option<Descriptor> {
        if tag >= self.depth {
            return None;
        }
        let all = self.memory.cast::<Descriptor>();
        // SAFETY: the mapping is as long as `depth` descriptors, begins with a page, and is there as long as this.
        // The kernel writes a descriptor before it completes the tag's command, and not again before that request
        // is answered; whatever it writes is a valid value.
        Some(unsafe { all.add(tag.into()).read_volatile() })
    }
}

impl Drop for Descriptors {
    fn drop(&mut self) {
        // SAFETY: it is this mapping, and nobody refers to it: descriptors are copied.
        let _ = unsafe { munmap(self.memory, self.bytes.get()) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    /// `None`: this system allows no io_uring, as many containers.
    fn queue(depth: u16, content: &[u8]) -> Option<(QueueRing, io::PipeWriter)> {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(content).unwrap();
        let (reader, writer) = io::pipe().unwrap();
        match QueueRing::new(Arc::new(file), depth, reader) {
            Ok(queue) => Some((queue, writer)),
            Err(error) => {
                let refusals = [Some(libc::EPERM), Some(libc::EACCES), Some(libc::ENOSYS)];
                assert!(refusals.contains(&error.raw_os_error()), "{error}");
                None
            }
        }
    }

    #[test]
    fn descriptors_are_read_by_tag() {
        let descriptors: Vec<Descriptor> = (0..4)
            .map(|tag| Descriptor { operation: 1, sectors: 8, first_sector: tag, address: 0 })
            .collect();
        let Some((queue, _)) = queue(4, descriptors.as_bytes()) else { return };
        for (tag, descriptor) in (0..).zip(descriptors) {
            assert_eq!(queue.descriptor(tag), Some(descriptor));
        }
        assert_eq!(queue.descriptor(4), None);
    }

    #[test]
    fn a_thread_that_waits_is_woken() {
        let Some((mut queue, mut writer)) = queue(1, &[0; 4096]) else { return };
        for _ in 0..3 {
            queue.watch().unwrap();
            queue.submit(false).unwrap();
            assert_eq!(queue.next().unwrap(), None);
            let thread = std::thread::spawn(move || {
                writer.write_all(&[1, 2]).unwrap();
                writer
            });
            queue.submit(true).unwrap();
            assert_eq!(queue.next().unwrap(), Some(Happened::Woken));
            writer = thread.join().unwrap();
        }
    }

    /// A command that was lost sight of ends while the next one is waited for: its result is not taken for the other's, and
    /// its memory is kept until then.
    #[test]
    fn a_result_is_that_of_the_command_and_not_of_an_earlier_one() {
        if queue(1, &[0; 4096]).is_none() {
            return;
        }
        let mut control = ControlRing::new(tempfile::tempfile().unwrap()).unwrap();
        let lost = squeue::Entry128::from(opcode::Nop::new().build().user_data(77));
        // SAFETY: the entry names no memory.
        unsafe { control.ring.submission().push(&lost) }.unwrap();
        control.lost = vec![(77, vec![0; 8]), (78, vec![0; 8])];
        let error = control.call(Control::GetFeatures, None, 0, vec![0; 8]).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EOPNOTSUPP), "an ordinary file takes no commands");
        assert_eq!(control.lost.len(), 1, "the one that has ended is freed");
    }

    /// An ordinary file takes no commands, and that is what comes back, under the tag.
    #[test]
    fn commands_reach_the_file() {
        let Some((mut queue, _writer)) = queue(8, &[0; 4096]) else { return };
        queue.fetch(3).unwrap();
        queue.commit_and_fetch(7, -5).unwrap();
        for _ in 0..2 {
            queue.submit(true).unwrap();
            let Some(Happened::Tag(3 | 7, result)) = queue.next().unwrap() else { panic!() };
            assert_eq!(result, -libc::EOPNOTSUPP);
        }
        let mut control = ControlRing::new(tempfile::tempfile().unwrap()).unwrap();
        let error = control.call(Control::GetFeatures, None, 0, vec![0; 8]).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EOPNOTSUPP));
    }
}
