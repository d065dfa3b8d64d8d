//! The local disk: the engine's disk operations carried out at queue depth by a few threads, or by whoever drives
//! the reactor while the disk answers at once (`super::pace`).
//!
//! Owns the provider while the worker runs. Decides nothing: operations may finish in any order, and what
//! must not overlap has been kept apart by the engine before it gets here. A flush covers what had been
//! answered before it was submitted, because one descriptor serves all threads.

use std::collections::VecDeque;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use hast_engine::{DiskOp, DiskResult, OpId};
use hast_net::buffer::Pool;
use hast_net::errno::Errno;
use hast_provider::Provider;

use super::deletes;
use super::lock::lock;
use super::pace::{Kind, Pace, Solitude};

/// Threads, and so operations that the system sees at once.
const THREADS: usize = 4;
/// Waiting and running operations from which on no more work is taken in from outside: more than a primary of
/// ours asks for at once, so that a slow disk does not stop the connection.
const BUSY_OPERATIONS: usize = 8192;
/// Bytes in waiting and running writes from which on no more work is taken in from outside.
const BUSY_BYTES: usize = 64 << 20;

/// Time the reactor's thread spends on what is likely to be over at once: after that everything else has its turn.
const TURN: Duration = Duration::from_millis(2);

/// The provider and the threads that work on it.
pub(super) struct Disk {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    operations: usize,
    bytes: usize,
    /// Submitted, and nobody has it yet.
    submitted: VecDeque<(OpId, DiskOp)>,
    /// What the reactor's thread has been given last.
    given: Kind,
    /// What is left of its turn.
    left: Duration,
    solitude: Solitude,
    /// Carried out by it.
    finished: Vec<Finished>,
    pace: Pace,
}

impl Disk {
    /// Starts the threads. `wake` is called by one of them when completions have come in after there
    /// were none.
    pub(super) fn start(
        provider: Provider,
        pool: Pool,
        wake: impl Fn() + Send + Sync + 'static,
    ) -> io::Result<Disk> {
        let shared = Arc::new(Shared {
            provider,
            pool,
            queue: Mutex::new(Queue { waiting: VecDeque::new(), running: 0, ended: false }),
            work: Condvar::new(),
            done: Mutex::new(Vec::new()),
            #[cfg(debug_assertions)]
            slow: std::env::var("HASTD_TEST_SLOW")
                .ok()
                .and_then(|millis| millis.parse().ok())
                .map(Duration::from_millis),
            #[cfg(debug_assertions)]
            quick: std::env::var_os("HASTD_TEST_QUICK").is_some(),
            wake: Box::new(wake),
        });
        let mut disk = Disk {
            shared,
            threads: Vec::new(),
            operations: 0,
            bytes: 0,
            submitted: VecDeque::new(),
            given: Kind::Delete,
            left: TURN,
            solitude: Solitude::default(),
            finished: Vec::new(),
            pace: Pace::default(),
        };
        for number in 0..THREADS {
            let shared = Arc::clone(&disk.shared);
            let thread = thread::Builder::new().name(format!("disk {number}"));
            disk.threads.push(thread.spawn(move || shared.work())?);
        }
        Ok(disk)
    }

    /// Takes one operation in; it begins with the next [`Disk::next`]. Never blocks and never refuses: the engine's
    /// own operations must get through, so the bound is kept by taking nothing in while the disk
    /// [is busy](Disk::is_busy).
    pub(super) fn submit(&mut self, id: OpId, op: DiskOp) {
        self.operations += 1;
        self.solitude.submitted();
        self.bytes = self.bytes.saturating_add(weight(Kind::of(&op)));
        self.submitted.push_back((id, op));
    }

    /// Begins what was submitted: an operation that is likely to be over at once is for the caller, who asks again
    /// when it is, the others are for the threads.
    ///
    /// To be called when everything has been sent that may be: the other node works meanwhile.
    pub(super) fn next(&mut self) -> Option<(OpId, DiskOp)> {
        while let Some((id, op)) = self.submitted.pop_front() {
            let kind = Kind::of(&op);
            if self.is_for_the_caller(kind) {
                self.given = kind;
                return Some((id, op));
            }
            self.solitude.handed_over(kind);
            lock(&self.shared.queue).waiting.push_back((id, op));
            self.shared.work.notify_one();
        }
        self.left = TURN;
        None
    }

    fn is_for_the_caller(&mut self, kind: Kind) -> bool {
        let quick = self.pace.is_quick(kind);
        // So that a test can see what becomes of a worker whose disk is slow all of a sudden.
        #[cfg(debug_assertions)]
        let quick = quick || self.shared.quick;
        let quick = quick && !self.left.is_zero();
        quick || (self.operations == 1 && self.pace.is_bearable(kind) && self.solitude.is_likely())
    }

    /// What carries out an operation that [`Disk::next`] gave.
    pub(super) fn hands(&self) -> Hands {
        Hands(Arc::clone(&self.shared))
    }

    /// The operation that was given last is over. Its completion is one of those to take.
    pub(super) fn finish(&mut self, finished: Finished) {
        self.pace.took(finished.kind, finished.time);
        self.left = self.left.saturating_sub(finished.time);
        self.finished.push(finished);
    }

    /// The operation that was given last is not over after so long, and whoever was given it will see to the rest.
    pub(super) fn overdue(&mut self, time: Duration) {
        self.pace.took(self.given, time);
    }

    /// Whether there are completions to take of what was given.
    pub(super) fn has_finished(&self) -> bool {
        !self.finished.is_empty()
    }

    /// Moves everything that has finished into `completions`.
    pub(super) fn take_completions(&mut self, completions: &mut Vec<(OpId, DiskResult)>) {
        let mut done = lock(&self.shared.done);
        for Finished { kind, time, by_thread, .. } in done.iter() {
            self.pace.took(*kind, *time);
            if *by_thread {
                self.solitude.handed_back(*kind);
            }
        }
        for Finished { id, kind, result, .. } in done.drain(..).chain(self.finished.drain(..)) {
            self.operations = self.operations.saturating_sub(1);
            self.bytes = self.bytes.saturating_sub(weight(kind));
            completions.push((id, result));
        }
    }

    /// Whether so much is queued that requests should wait where they come from.
    pub(super) fn is_busy(&self) -> bool {
        self.operations >= BUSY_OPERATIONS || self.bytes >= BUSY_BYTES
    }

    /// Operations submitted and not yet taken back.
    #[cfg(test)]
    fn outstanding(&self) -> usize {
        self.operations
    }
}

impl Drop for Disk {
    /// Forgets what has not begun and waits for what threads have, unless the disk hangs: then they are left
    /// behind, and the end of the process waits for them.
    fn drop(&mut self) {
        let running = {
            let mut queue = lock(&self.shared.queue);
            queue.ended = true;
            queue.waiting.clear();
            queue.running
        };
        self.shared.work.notify_all();
        if running == 0 {
            for thread in self.threads.drain(..) {
                // A panic in a thread has been reported by the panic itself.
                let _ = thread.join();
            }
        }
    }
}

/// Carries out operations on whichever thread.
pub(super) struct Hands(Arc<Shared>);

impl Hands {
    pub(super) fn carry_out(&self, id: OpId, op: DiskOp) -> Finished {
        self.0.carry_out(id, op)
    }

    /// Hands in an operation that took too long to be waited for.
    pub(super) fn hand_in(&self, finished: Finished) {
        self.0.hand_in(finished);
    }
}

struct Shared {
    provider: Provider,
    pool: Pool,
    queue: Mutex<Queue>,
    work: Condvar,
    done: Mutex<Vec<Finished>>,
    #[cfg(debug_assertions)]
    slow: Option<Duration>,
    #[cfg(debug_assertions)]
    quick: bool,
    wake: Box<dyn Fn() + Send + Sync>,
}

struct Queue {
    waiting: VecDeque<(OpId, DiskOp)>,
    running: usize,
    ended: bool,
}

/// An operation that is over.
pub(super) struct Finished {
    id: OpId,
    kind: Kind,
    /// How long it took.
    time: Duration,
    /// One of the disk's threads carried it out.
    by_thread: bool,
    result: DiskResult,
}

impl Shared {
    /// One thread's life.
    fn work(&self) {
        // So that a test can see what becomes of a worker of which one thread panics.
        #[cfg(debug_assertions)]
        assert!(std::env::var_os("HASTD_TEST_PANIC").is_none(), "a test wants a disk thread to panic");
        while let Some((id, op)) = self.next() {
            let finished = Finished { by_thread: true, ..self.carry_out(id, op) };
            {
                let mut queue = lock(&self.queue);
                queue.running = queue.running.saturating_sub(1);
            }
            self.hand_in(finished);
        }
    }

    fn next(&self) -> Option<(OpId, DiskOp)> {
        let mut queue = lock(&self.queue);
        loop {
            if queue.ended {
                return None;
            }
            if let Some(next) = queue.waiting.pop_front() {
                queue.running += 1;
                return Some(next);
            }
            queue = self.work.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn hand_in(&self, finished: Finished) {
        let first = {
            let mut done = lock(&self.done);
            done.push(finished);
            done.len() == 1
        };
        if first {
            (self.wake)();
        }
    }

    fn carry_out(&self, id: OpId, op: DiskOp) -> Finished {
        let (kind, begun) = (Kind::of(&op), Instant::now());
        // So that a test can see what becomes of a worker whose disk is slow with what it is given much of.
        #[cfg(debug_assertions)]
        if let Some(slow) = self.slow.filter(|_| weight(kind) >= 64 << 10) {
            thread::sleep(slow);
        }
        let result = self.perform(op);
        Finished { id, kind, time: begun.elapsed(), by_thread: false, result }
    }

    fn perform(&self, op: DiskOp) -> DiskResult {
        let result = match op {
            DiskOp::Read { offset, length } => return self.read(offset, length),
            DiskOp::Write { offset, data } => self.provider.as_file().write_all_at(&data, offset),
            DiskOp::Delete { offset, length } => {
                deletes::free(self.provider.as_file(), self.provider.is_device(), offset, length)
            }
            DiskOp::Flush => self.provider.flush(),
        };
        result.map(|()| None).map_err(|error| errno(&error))
    }

    fn read(&self, offset: u64, length: u32) -> DiskResult {
        let length = usize::try_from(length).map_err(|_| Errno::EINVAL)?;
        let mut buffer = self.pool.take(length);
        self.provider.as_file().read_exact_at(&mut buffer, offset).map_err(|error| errno(&error))?;
        Ok(Some(buffer.freeze()))
    }
}

/// The error in the numbering of the wire. A transfer that ends early has no number of its own: the
/// provider is shorter than its metadata says.
fn errno(error: &io::Error) -> Errno {
    match error.raw_os_error() {
        Some(raw) => Errno::from_os(raw),
        None => Errno::EIO,
    }
}

/// Bytes of memory that an operation holds while it waits.
fn weight(kind: Kind) -> usize {
    match kind {
        Kind::Write(bytes) => usize::try_from(bytes).unwrap_or(usize::MAX),
        Kind::Read(_) | Kind::Flush | Kind::Delete => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hast_net::buffer::Buffer;
    use std::collections::HashMap;
    use std::fs::File;
    use std::sync::mpsc;
    use std::time::Duration;

    const DEADLINE: Duration = Duration::from_secs(30);

    struct Bench {
        disk: Disk,
        woken: mpsc::Receiver<()>,
        file: File,
    }

    impl Bench {
        fn new(size: u64) -> Bench {
            let file = tempfile::tempfile().unwrap();
            file.set_len(size).unwrap();
            let provider = Provider::from_fd(file.try_clone().unwrap().into(), "test").unwrap();
            let (sender, woken) = mpsc::channel();
            let sender = Mutex::new(sender);
            let disk = Disk::start(provider, Pool::new(), move || {
                let _ = lock(&sender).send(());
            })
            .unwrap();
            Bench { disk, woken, file }
        }

        fn run(&mut self, ops: Vec<DiskOp>) -> Vec<DiskResult> {
            let count = ops.len();
            for (id, op) in (0_u64..).zip(ops) {
                self.disk.submit(OpId(id), op);
            }
            while let Some((id, op)) = self.disk.next() {
                let finished = self.disk.hands().carry_out(id, op);
                self.disk.finish(finished);
            }
            let mut here = self.disk.has_finished();
            let mut found = HashMap::new();
            let mut batch = Vec::new();
            while found.len() < count {
                if !std::mem::take(&mut here) {
                    self.woken.recv_timeout(DEADLINE).unwrap();
                }
                self.disk.take_completions(&mut batch);
                for (OpId(id), result) in batch.drain(..) {
                    assert!(found.insert(id, result).is_none(), "operation {id} finished twice");
                }
            }
            assert_eq!(self.disk.outstanding(), 0);
            (0_u64..).take(count).map(|id| found.remove(&id).unwrap()).collect()
        }
    }

    fn pattern(seed: usize, length: usize) -> Buffer {
        Buffer::from((0..length).map(|i| (i * 7 + seed * 13) as u8).collect::<Vec<u8>>())
    }

    /// T5: many at once.
    #[test]
    fn what_is_written_lies_at_its_offset_and_is_read_back() {
        let mut bench = Bench::new(1 << 20);
        let writes = (0..32)
            .map(|i| DiskOp::Write { offset: i as u64 * 8192, data: pattern(i, 8192) })
            .chain([DiskOp::Flush]);
        let results = bench.run(writes.collect());
        assert!(results.iter().all(|result| *result == Ok(None)));
        let mut third = vec![0; 8192];
        bench.file.read_exact_at(&mut third, 3 * 8192).unwrap();
        assert_eq!(third[..], pattern(3, 8192)[..]);
        let reads = (0..32).map(|i| DiskOp::Read { offset: i as u64 * 8192, length: 8192 });
        for (i, result) in bench.run(reads.collect()).into_iter().enumerate() {
            assert_eq!(result, Ok(Some(pattern(i, 8192))));
        }
    }

    #[test]
    fn a_read_past_the_end_is_an_error_and_never_short() {
        let mut bench = Bench::new(8192);
        let results = bench.run(vec![
            DiskOp::Read { offset: 4096, length: 8192 },
            DiskOp::Read { offset: 1 << 40, length: 512 },
            DiskOp::Read { offset: 4096, length: 4096 },
        ]);
        assert_eq!(results[0], Err(Errno::EIO));
        assert_eq!(results[1], Err(Errno::EIO));
        assert_eq!(results[2], Ok(Some(Buffer::from(vec![0; 4096]))));
    }

    #[test]
    fn errors_of_the_system_keep_their_numbers() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(8192).unwrap();
        let readonly = File::open(file.path()).unwrap();
        let mut bench = Bench::new(0);
        let provider = Provider::from_fd(readonly.into(), "test").unwrap();
        let (sender, woken) = mpsc::channel();
        let sender = Mutex::new(sender);
        bench.disk = Disk::start(provider, Pool::new(), move || {
            let _ = lock(&sender).send(());
        })
        .unwrap();
        bench.woken = woken;
        let results = bench.run(vec![DiskOp::Write { offset: 0, data: pattern(0, 512) }]);
        assert_eq!(results[0], Err(Errno::from_os(libc::EBADF)));
    }

    #[test]
    fn a_delete_frees_the_range_and_nothing_else() {
        let mut bench = Bench::new(1 << 20);
        let whole = pattern(1, 1 << 20);
        assert_eq!(bench.run(vec![DiskOp::Write { offset: 0, data: whole.clone() }]), [Ok(None)]);
        let result = bench.run(vec![DiskOp::Delete { offset: 65_536, length: 131_072 }]);
        let mut now = vec![0; 1 << 20];
        bench.file.read_exact_at(&mut now, 0).unwrap();
        assert_eq!(now[..65_536], whole[..65_536]);
        assert_eq!(now[196_608..], whole[196_608..]);
        match &result[0] {
            Ok(None) => assert!(now[65_536..196_608].iter().all(|&byte| byte == 0)),
            // A file system for temporary files need not know holes.
            other => assert_eq!(*other, Err(Errno::EOPNOTSUPP)),
        }
        let absurd = bench.run(vec![DiskOp::Delete { offset: u64::MAX, length: 512 }]);
        assert_eq!(absurd[0], Err(Errno::EINVAL));
    }

    #[test]
    fn while_the_disk_is_quick_its_operations_are_the_callers() {
        let mut bench = Bench::new(1 << 20);
        let write = |seed| DiskOp::Write { offset: 8192, data: pattern(seed, 4096) };
        for _ in 0..100 {
            bench.disk.pace.took(Kind::Write(4096), Duration::from_micros(1));
        }
        bench.disk.submit(OpId(7), write(7));
        let (id, op) = bench.disk.next().expect("it is quick");
        let finished = bench.disk.hands().carry_out(id, op);
        bench.disk.finish(Finished { time: Duration::from_micros(1), ..finished });
        assert!(bench.disk.has_finished());
        let mut batch = Vec::new();
        bench.disk.take_completions(&mut batch);
        assert_eq!(std::mem::take(&mut batch), [(OpId(7), Ok(None))]);
        let mut there = vec![0; 4096];
        bench.file.read_exact_at(&mut there, 8192).unwrap();
        assert_eq!(there[..], pattern(7, 4096)[..]);
        // What may be slow all the same is not waited for.
        bench.disk.submit(OpId(8), DiskOp::Flush);
        bench.disk.submit(OpId(9), DiskOp::Read { offset: 8192, length: 4096 });
        assert!(bench.disk.next().is_none());
        // What was waited for and took long is over as if a thread had done it, and nothing is given until the disk
        // is quick again.
        bench.disk.submit(OpId(10), write(10));
        let (id, op) = bench.disk.next().expect("still quick");
        bench.disk.overdue(Duration::from_millis(20));
        bench.disk.submit(OpId(11), write(11));
        assert!(bench.disk.next().is_none());
        let hands = bench.disk.hands();
        hands.hand_in(hands.carry_out(id, op));
        let mut done: Vec<u64> = Vec::new();
        while done.len() < 4 {
            bench.woken.recv_timeout(DEADLINE).unwrap();
            bench.disk.take_completions(&mut batch);
            done.extend(batch.drain(..).map(|(OpId(id), _)| id));
        }
        done.sort_unstable();
        assert_eq!(done, [8, 9, 10, 11]);
    }

    #[test]
    fn a_full_queue_says_that_it_is_busy() {
        let mut bench = Bench::new(1 << 20);
        assert!(!bench.disk.is_busy());
        let data = pattern(0, 1 << 20);
        let writes = BUSY_BYTES / data.len();
        for id in 0..writes as u64 {
            bench.disk.submit(OpId(id), DiskOp::Write { offset: 0, data: data.clone() });
        }
        assert!(bench.disk.next().is_none());
        assert!(bench.disk.is_busy(), "completions have not been taken, so the bytes still count");
        let mut batch = Vec::new();
        while batch.len() < writes {
            bench.woken.recv_timeout(DEADLINE).unwrap();
            bench.disk.take_completions(&mut batch);
        }
        assert!(!bench.disk.is_busy());
    }
}
