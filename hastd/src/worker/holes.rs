//! Which bytes of a provider's file are holes, as clients of the NBD export ask before they copy it.
//!
//! Owns a thread that asks the file system: it may take its time, and nothing else waits for that. Whether the file is what
//! a client may be told about the engine decides (`hast_engine::Primary::reads_here`). A client that hears of a hole does
//! not read it, so only file systems are asked that tell of each byte which was written, be it on the disk by now or not.

use std::fs::File;
use std::io;
use std::mem;
use std::ops::Range;
use std::sync::mpsc::{self, Receiver, SyncSender};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use hast_format::layout::Layout;
use hast_log::error_text;
use hast_nbd::{Question, Run};
use hast_provider::Provider;
use nix::errno::Errno;
use nix::libc::off_t;
use nix::sys::statfs::fstatfs;
use nix::unistd::{Whence, lseek};

use super::lock::lock;

/// Runs that one answer has at most. The client asks again for the rest.
const MAX_RUNS: usize = 256;
/// Bytes that a client is told of at once: a whole number of blocks of any size. It asks again for the rest.
const MOST: u32 = 1 << 30;
/// ... and extents, each of which is looked at by the engine.
const MOST_EXTENTS: u32 = 4096;
/// Questions that wait for the thread at most. Those that find no room are answered at once: nothing is said to be a hole.
const MAX_WAITING: usize = 1024;
/// For how long the last run of data is remembered: to find its end may take a file system long, and a client asks for one
/// piece of it after the other.
const REMEMBERED: Duration = Duration::from_secs(1);

/// Whether what the file system says of the provider's holes can be relied on, and there may be some. Asked for once, before
/// the worker's rights are limited.
pub(super) fn are_told(provider: &Provider) -> bool {
    !provider.is_device() && fstatfs(provider.as_file()).is_ok_and(|found| system::is_reliable(&found))
}

/// The next bytes from `from` on that are not a hole, and begin before `end`; none if there is nothing but a hole.
///
/// # Errors
///
/// The file system does not tell.
pub(super) fn next_data(file: &File, from: u64, end: u64) -> io::Result<Option<Range<u64>>> {
    let seek = |from: u64, whence| {
        let from = off_t::try_from(from).map_err(|_| Errno::EOVERFLOW)?;
        lseek(file, from, whence).map(off_t::cast_unsigned)
    };
    let data = match seek(from, Whence::SeekData) {
        Ok(data) if data < end => data.max(from),
        Ok(_) | Err(Errno::ENXIO) => return Ok(None),
        Err(errno) => return Err(errno.into()),
    };
    let hole = seek(data, Whence::SeekHole)?;
    if hole <= data {
        return Err(Errno::EINVAL.into()); // what it says makes no sense
    }
    Ok(Some(data..hole))
}

/// A client's question, on its way to the thread.
struct Asked {
    client: usize,
    question: Question,
}

/// What a client is to hear.
pub(super) struct Answer {
    /// The client, by the server's number.
    pub(super) client: usize,
    /// Which of its questions.
    pub(super) question: Question,
    /// What the bytes are.
    pub(super) runs: Vec<Run>,
}

/// A data area in a file.
struct Area {
    file: File,
    /// Where in the file it begins.
    start: u64,
    /// The smallest unit of a run.
    block: u64,
    /// The last run of data that was found, in the file, and when.
    data: Option<(Instant, Range<u64>)>,
}

/// The thread that asks the file system, and what it has found.
pub(super) struct Holes {
    /// What the thread is to work with, until it begins.
    idle: Option<(Area, Box<dyn Fn() + Send>)>,
    questions: Option<SyncSender<Asked>>,
    answers: Arc<Mutex<Vec<Answer>>>,
    most: u32,
}

impl Holes {
    /// For the data area of a provider of whose holes clients [are told](are_told). `wake` is called by the thread after each
    /// answer.
    pub(super) fn new(
        provider: &Provider,
        layout: &Layout,
        wake: impl Fn() + Send + 'static,
    ) -> Option<Holes> {
        let file = provider.as_file().try_clone().ok()?;
        let (start, block, extent) =
            (layout.localoff(), u64::from(layout.sectorsize().max(1)), layout.extentsize());
        let area = Area { file, start, block, data: None };
        Some(Holes {
            idle: Some((area, Box::new(wake))),
            questions: None,
            answers: Arc::default(),
            most: extent.saturating_mul(MOST_EXTENTS).clamp(extent, MOST.max(extent)),
        })
    }

    /// Bytes that one answer covers at most; a whole number of blocks.
    pub(super) fn most(&self) -> u32 {
        self.most
    }

    /// Has a question answered. The thread begins with the first one.
    pub(super) fn ask(&mut self, client: usize, question: Question) {
        if let Some((mut area, wake)) = self.idle.take() {
            let (questions, asked) = mpsc::sync_channel(MAX_WAITING);
            let answers = Arc::clone(&self.answers);
            let work = move || answer_all(&mut area, &asked, &answers, &*wake);
            match thread::Builder::new().name("holes".to_owned()).spawn(work) {
                Ok(_) => self.questions = Some(questions),
                Err(error) => log::warn!("Clients are not told what is a hole: {}.", error_text(&error)),
            }
        }
        let sent = self.questions.as_ref().is_some_and(|to| to.try_send(Asked { client, question }).is_ok());
        if !sent {
            self.tell_nothing(client, question);
        }
    }

    /// Answers that the bytes are not known to be a hole.
    pub(super) fn tell_nothing(&self, client: usize, question: Question) {
        let run = Run { length: u64::from(question.length), hole: false };
        lock(&self.answers).push(Answer { client, question, runs: vec![run] });
    }

    /// The answers that have come since the last time.
    pub(super) fn take_answers(&self) -> Vec<Answer> {
        mem::take(&mut *lock(&self.answers))
    }
}

fn answer_all(area: &mut Area, asked: &Receiver<Asked>, answers: &Mutex<Vec<Answer>>, wake: &dyn Fn()) {
    for Asked { client, question } in asked {
        let runs = area.runs(question.offset, u64::from(question.length));
        lock(answers).push(Answer { client, question, runs });
        wake();
    }
}

impl Area {
    /// What `length` bytes of the area from `offset` on are, both of whole blocks, or as many of them as fit into one
    /// answer. What the file system does not tell is no hole.
    fn runs(&mut self, offset: u64, length: u64) -> Vec<Run> {
        let end = offset.saturating_add(length);
        let mut runs = Runs { runs: Vec::new(), at: offset };
        while runs.at < end && runs.runs.len() < MAX_RUNS {
            let from = self.start.saturating_add(runs.at);
            match self.next_data(from, self.start.saturating_add(end)) {
                Ok(Some(data)) => {
                    // A block is a hole only if all of it is.
                    let first =
                        (data.start.saturating_sub(self.start) / self.block).saturating_mul(self.block);
                    let last =
                        data.end.saturating_sub(self.start).div_ceil(self.block).saturating_mul(self.block);
                    runs.up_to(first, true);
                    runs.up_to(last.min(end), false);
                }
                Ok(None) => runs.up_to(end, true),
                Err(_) => runs.up_to(end, false),
            }
        }
        if !self.is_there_up_to(self.start.saturating_add(end)) {
            return vec![Run { length, hole: false }];
        }
        runs.runs
    }

    /// The next bytes that are not a hole, by what was found a moment ago where that says it.
    fn next_data(&mut self, from: u64, end: u64) -> io::Result<Option<Range<u64>>> {
        if let Some((at, data)) = &self.data
            && data.contains(&from)
            && at.elapsed() < REMEMBERED
        {
            return Ok(Some(from..data.end.min(end)));
        }
        let Some(data) = next_data(&self.file, from, end)? else { return Ok(None) };
        self.data = Some((Instant::now(), data.clone()));
        Ok(Some(data.start..data.end.min(end)))
    }

    /// Beyond its end a file has no holes: a read fails there.
    fn is_there_up_to(&self, end: u64) -> bool {
        lseek(&self.file, 0, Whence::SeekEnd).is_ok_and(|length| length.cast_unsigned() >= end)
    }
}

struct Runs {
    runs: Vec<Run>,
    /// The first byte that they do not cover.
    at: u64,
}

impl Runs {
    /// All bytes up to `end` are a hole, or are not.
    fn up_to(&mut self, end: u64, hole: bool) {
        let length = end.saturating_sub(self.at);
        if length == 0 {
            return;
        }
        self.at = end;
        match self.runs.last_mut() {
            Some(last) if last.hole == hole => last.length = last.length.saturating_add(length),
            _ => self.runs.push(Run { length, hole }),
        }
    }
}

#[cfg(target_os = "linux")]
mod system {
    use nix::sys::statfs::{EXT4_SUPER_MAGIC, FsType, Statfs, TMPFS_MAGIC, XFS_SUPER_MAGIC};

    /// ext2, ext3 and ext4 have one number.
    const RELIABLE: [FsType; 3] = [EXT4_SUPER_MAGIC, XFS_SUPER_MAGIC, TMPFS_MAGIC];

    pub(super) fn is_reliable(found: &Statfs) -> bool {
        RELIABLE.contains(&found.filesystem_type())
    }
}

#[cfg(not(target_os = "linux"))]
mod system {
    use nix::sys::statfs::Statfs;

    pub(super) fn is_reliable(found: &Statfs) -> bool {
        ["ufs", "tmpfs"].contains(&found.filesystem_type_name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hast_nbd::CommandId;
    use std::os::unix::fs::FileExt;

    /// The runs of an area of 1 MiB that begins `start` bytes into a file, where the file was written at `written`.
    fn runs_of(start: u64, written: &[Range<u64>], offset: u64, length: u64) -> Vec<(u64, bool)> {
        let file = tempfile::tempfile().unwrap();
        file.set_len(start + (1 << 20)).unwrap();
        for range in written {
            file.write_all_at(&vec![1; (range.end - range.start) as usize], range.start).unwrap();
        }
        let mut area = Area { file, start, block: 512, data: None };
        area.runs(offset, length).into_iter().map(|run| (run.length, run.hole)).collect()
    }

    #[test]
    fn holes_are_found_between_what_was_written() {
        let start = 8192;
        let written = [start + 65_536..start + 131_072, start + 262_144..start + 266_240];
        assert_eq!(runs_of(start, &[], 0, 1 << 20), [(1 << 20, true)]);
        assert_eq!(
            runs_of(start, &written, 0, 1 << 20),
            [(65_536, true), (65_536, false), (131_072, true), (4096, false), ((1 << 20) - 266_240, true)]
        );
        assert_eq!(runs_of(start, &written, 65_536, 512), [(512, false)]);
        assert_eq!(runs_of(start, &written, 131_072, 1024), [(1024, true)]);
        assert_eq!(runs_of(start, &written, 98_304, 65_536), [(32_768, false), (32_768, true)]);
    }

    /// The file system allocates blocks of its own, whose limits are not those of the data area.
    #[test]
    fn no_byte_that_was_written_is_in_a_hole() {
        for start in [512, 4096, 4608, 12_800] {
            let written = start + 70_000..start + 70_001;
            let runs = runs_of(start, std::slice::from_ref(&written), 0, 1 << 20);
            assert_eq!(runs.iter().map(|(length, _)| length).sum::<u64>(), 1 << 20);
            let mut at = 0;
            for (length, hole) in runs {
                assert!(length.is_multiple_of(512));
                assert!(!(hole && (at..at + length).contains(&70_000)), "{start}");
                at += length;
            }
        }
    }

    /// A file that has been cut short has no holes where it ends: reads fail there, and are answered by the other node.
    #[test]
    fn beyond_the_end_there_is_no_hole() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(4096 + (1 << 19)).unwrap();
        let mut area = Area { file, start: 4096, block: 512, data: None };
        assert_eq!(area.runs(0, 1 << 19), [Run { length: 1 << 19, hole: true }]);
        for (offset, length) in [(0, 1 << 20), (1 << 19, 512), ((1 << 19) - 512, 1024)] {
            assert_eq!(area.runs(offset, length), [Run { length, hole: false }]);
        }
    }

    #[test]
    fn one_answer_is_bounded() {
        let written: Vec<Range<u64>> = (0..100).map(|n| n * 10_000..n * 10_000 + 100).collect();
        assert!(runs_of(0, &written, 0, 1 << 20).len() <= MAX_RUNS + 1);
    }

    #[test]
    fn questions_are_answered_by_the_thread() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("provider");
        File::create(&path).unwrap().set_len(1 << 20).unwrap();
        let file = File::options().read(true).write(true).open(&path).unwrap();
        let provider = Provider::from_fd(file.into(), "test").unwrap();
        let (woken, wakes) = mpsc::channel();
        let layout = Layout::create(1 << 20, 512, 4096).unwrap();
        let mut holes = Holes::new(&provider, &layout, move || _ = woken.send(())).unwrap();
        holes.ask(7, Question { handle: CommandId(3), offset: 0, length: 1024 });
        assert_eq!(holes.most(), 4096 * MOST_EXTENTS);
        wakes.recv().unwrap();
        let [Answer { client: 7, question: Question { handle: CommandId(3), .. }, runs }] =
            &holes.take_answers()[..]
        else {
            panic!()
        };
        assert_eq!(runs, &[Run { length: 1024, hole: true }]);
        assert!(holes.take_answers().is_empty());
    }
}
