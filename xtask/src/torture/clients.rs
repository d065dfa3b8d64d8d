//! The clients: threads that write, read, trim and flush whatever node has the device.

use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use hast_nbd::NbdError;
use hast_nbd::client::{Client, ClientError, Request, Ticket};
use hast_sim::client::{Memory, WriteId};
use hast_sim::random::Random;
use hast_tests::{Failure, LONG, wait_until};

use super::record::{Book, End, Open, Record, SECTOR, What};

/// Threads, each with a connection of its own.
const THREADS: u64 = 4;
/// Requests that one thread has under way at once.
const BATCH: u64 = 6;
/// The longest request in sectors: two of the engine's.
const LONGEST: u64 = 400;
/// Sectors in each of the places that many requests go to, so that they meet.
const PLACE: u64 = 192;
/// The longest pause between two batches of a thread in microseconds, one for each pace. What is written again
/// and again is copied again and again, right or wrong: so there are slow times.
const PAUSES: [u64; 4] = [2_000, 10_000, 60_000, 400_000];

/// How busy the clients are; whoever has a clone may change it.
#[derive(Clone, Debug, Default)]
pub(super) struct Pace(Arc<AtomicU64>, Arc<AtomicU64>);

impl Pace {
    /// Silence: what is under way ends, and nothing is begun.
    const SILENCE: u64 = u64::MAX;

    /// Changes it at random, often to silence.
    pub(super) fn change(&self, random: &mut Random) {
        let pause = random.pick(&PAUSES).filter(|_| !random.one_in(4)).unwrap_or(Pace::SILENCE);
        self.0.store(pause, Ordering::SeqCst);
    }

    /// Ends a silence.
    pub(super) fn resume(&self) {
        self.0.store(PAUSES.iter().copied().max().unwrap_or(0), Ordering::SeqCst);
    }

    /// Begins one.
    pub(super) fn silence(&self) {
        self.0.store(Pace::SILENCE, Ordering::SeqCst);
    }

    /// Begins one, and waits until no client has a request under way.
    #[cfg(target_os = "linux")]
    pub(super) fn silence_all(&self) -> Result<(), Failure> {
        self.silence();
        let Pace(_, busy) = self;
        wait_until("the clients to be silent", LONG, || Ok(busy.load(Ordering::SeqCst) == 0))
    }

    /// A client is about to begin requests. False: it must not, there is silence.
    fn enter(&self) -> bool {
        let Pace(pace, busy) = self;
        busy.fetch_add(1, Ordering::SeqCst);
        // The one that begins a silence looks at `busy` afterwards.
        let may = pace.load(Ordering::SeqCst) != Pace::SILENCE;
        if !may {
            self.leave();
        }
        may
    }

    /// It has the answers.
    fn leave(&self) {
        let Pace(_, busy) = self;
        busy.fetch_sub(1, Ordering::SeqCst);
    }

    /// The longest pause now, none in a silence.
    fn pause(&self) -> Option<u64> {
        Some(self.0.load(Ordering::SeqCst)).filter(|pause| *pause != Pace::SILENCE)
    }
}

/// The running threads.
pub(super) struct Clients {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Clients {
    /// Starts them. They look for the export `name` on `sockets`.
    pub(super) fn start<B: Book>(
        record: &Arc<Record<B>>,
        sockets: &[PathBuf],
        name: &str,
        sectors: usize,
        pace: &Pace,
        random: &mut Random,
    ) -> Clients {
        let stop = Arc::new(AtomicBool::new(false));
        let places: Vec<u64> = (0..3).map(|_| random.below((sectors as u64).saturating_sub(PLACE))).collect();
        let threads = (0..THREADS)
            .map(|_| {
                let one = One {
                    stop: Arc::clone(&stop),
                    record: Arc::clone(record),
                    sockets: sockets.to_vec(),
                    name: name.to_owned(),
                    sectors: sectors as u64,
                    places: places.clone(),
                    pace: pace.clone(),
                    random: Random::new(random.number()),
                };
                std::thread::spawn(move || one.run())
            })
            .collect();
        Clients { stop, threads }
    }

    /// Lets them finish what they have begun. A request that is never answered is a failure.
    pub(super) fn stop(self) -> Result<(), Failure> {
        self.stop.store(true, Ordering::Relaxed);
        wait_until("the clients' requests to be answered", LONG, || {
            Ok(self.threads.iter().all(JoinHandle::is_finished))
        })?;
        for thread in self.threads {
            if thread.join().is_err() {
                return Failure::because("a client panicked");
            }
        }
        Ok(())
    }
}

/// One thread.
struct One<B> {
    stop: Arc<AtomicBool>,
    record: Arc<Record<B>>,
    sockets: Vec<PathBuf>,
    name: String,
    sectors: u64,
    places: Vec<u64>,
    pace: Pace,
    random: Random,
}

impl<B: Book> One<B> {
    fn run(mut self) {
        while !self.stopped() {
            let found = self.sockets.iter().find_map(|socket| Client::connect(socket, &self.name).ok());
            match found {
                Some(client) => while !self.stopped() && self.pause() && self.unless_silent(&client) {},
                // Nobody has the device at the moment.
                None => std::thread::sleep(Duration::from_millis(10)),
            }
        }
    }

    /// Leaves the daemons and their operator their turn. False when it is time to stop.
    fn pause(&mut self) -> bool {
        while !self.stopped() {
            match self.pace.pause() {
                None => std::thread::sleep(Duration::from_millis(10)),
                Some(most) => {
                    std::thread::sleep(Duration::from_micros(self.random.below(most)));
                    return true;
                }
            }
        }
        false
    }

    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// Some requests at once, or none if there is silence by now; false when the connection has ended.
    fn unless_silent(&mut self, client: &Client) -> bool {
        if !self.pace.enter() {
            return true;
        }
        let alive = self.batch(client);
        self.pace.leave();
        alive
    }

    /// Some requests at once; false when the connection has ended.
    fn batch(&mut self, client: &Client) -> bool {
        let mut under_way = Vec::new();
        let mut alive = true;
        for _ in 0..=self.random.below(BATCH) {
            let what = self.next();
            let open = self.record.begin(what);
            match submit(client, &open) {
                Ok(ticket) => under_way.push((open, ticket)),
                Err(_) => {
                    self.record.end(&open, End::Lost);
                    alive = false;
                    break;
                }
            }
        }
        for (open, ticket) in under_way {
            let end = answer(client, ticket);
            alive &= !matches!(end, End::Lost);
            self.record.end(&open, end);
        }
        alive
    }

    fn next(&mut self) -> What {
        match self.random.below(24) {
            0..=10 => What::Write(self.range(), self.random.one_in(12)),
            11 => What::Zeroes(self.range()),
            12 => What::Trim(self.range()),
            13 if self.random.one_in(2) => What::Flush,
            _ => What::Read(self.range()),
        }
    }

    fn range(&mut self) -> Range<usize> {
        let most = if self.random.one_in(16) { LONGEST } else { 24 };
        let count = self.random.below(most) + 1;
        let place = self.random.pick(&self.places).filter(|_| self.random.one_in(2));
        let first = match place {
            Some(place) => place + self.random.below(PLACE),
            None => self.random.below(self.sectors),
        };
        let first = first.min(self.sectors.saturating_sub(count));
        let number = |n: u64| usize::try_from(n).unwrap_or(0);
        number(first)..number(first + count)
    }
}

/// Asks for one thing and waits for the answer. False: there was none, or the device refused.
#[cfg(target_os = "linux")]
pub(super) fn ask<B: Book>(record: &Record<B>, client: &Client, what: What) -> bool {
    let open = record.begin(what);
    let end = submit(client, &open).map_or(End::Lost, |ticket| answer(client, ticket));
    let good = matches!(end, End::Good(_));
    record.end(&open, end);
    good
}

fn answer(client: &Client, ticket: Ticket) -> End {
    match client.wait(ticket) {
        Ok(data) => End::Good(data),
        // The role changes, or the node is told to stop.
        Err(ClientError::Command { error: NbdError::Shutdown, .. }) => End::Lost,
        Err(error @ (ClientError::Command { .. } | ClientError::Protocol(_))) => {
            End::Refused(error.to_string())
        }
        Err(_) => End::Lost,
    }
}

fn submit(client: &Client, open: &Open) -> Result<Ticket, ClientError> {
    let bytes = |range: &Range<usize>| {
        let length = u32::try_from(range.len() * SECTOR).unwrap_or(u32::MAX);
        ((range.start * SECTOR) as u64, length)
    };
    match &open.what {
        What::Read(range) => {
            let (offset, length) = bytes(range);
            client.submit(Request::Read { offset, length })
        }
        What::Write(range, fua) => {
            let data = contents(open.id, range.len());
            client.submit(Request::Write { offset: bytes(range).0, data: &data, fua: *fua })
        }
        What::Zeroes(range) => {
            let (offset, length) = bytes(range);
            client.submit(Request::WriteZeroes {
                offset,
                length,
                no_hole: open.id.is_multiple_of(2),
                fua: false,
            })
        }
        What::Trim(range) => {
            let (offset, length) = bytes(range);
            client.submit(Request::Trim { offset, length, fua: false })
        }
        What::Flush => client.submit(Request::Flush),
    }
}

fn contents(write: WriteId, sectors: usize) -> Vec<u8> {
    Memory::contents(write).repeat(sectors)
}
