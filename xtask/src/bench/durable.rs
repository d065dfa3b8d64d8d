//! What it costs that each write is durable on both nodes before the next one: on a real disk, beside a program that
//! does the same to two files and nothing else.

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use hast_nbd::client::{self, Dialect};
use hast_sim::random::Random;
use hast_tests::pair::scratch_in;
use hast_tests::{Context, Failure, Outcome, Pair, Setup};

use super::contender::{DISK, RESOURCE, fill, fill_behind, setup};
use super::report::{self, Table, median};
use super::{MEMORY, Wish};
use crate::release;

/// Bytes of an extent: so few that among these writes hardly any comes to one that is dirty already.
const EXTENT: u64 = 128 << 10;
/// Where the writes go, in bytes: to half as many extents as `keepdirty` keeps in the map, or to all.
const AREAS: [(&str, u64); 2] = [("within keepdirty", 32 * EXTENT), ("all over the disk", DISK)];
const BLOCK: usize = 4 << 10;
/// Bytes of a request without data, and of its reply.
const HEADER: usize = 28;
const REPLY: usize = 16;
/// NBD's magic number of a request, and the commands.
const REQUEST: u32 = 0x2560_9513;
const WRITE: u16 = 1;
const FLUSH: u16 = 3;

pub(super) fn run(wish: &Wish) -> Outcome {
    if wish.directory == Path::new(MEMORY) {
        return Failure::because("what a flush costs can only be measured on a disk: --dir DIRECTORY");
    }
    release::build_programs()?;
    report::machine(wish)?;
    let pair = Pair::up_direct(Setup { extent: EXTENT, ..setup(&wish.directory, "fullsync") })?;
    for node in [&pair.a, &pair.b] {
        fill_behind(&node.provider(RESOURCE))?;
        File::open(node.provider(RESOURCE))?.sync_all()?;
    }
    let device = UnixStream::connect(pair.a.socket(RESOURCE))?;
    client::negotiate(&device, RESOURCE, Dialect { structured: false, export_name: false })
        .context("a connection to the device")?;
    let ours = |at: u64| -> Outcome {
        ask(&device, WRITE, at, &[0x5a; BLOCK])?;
        ask(&device, FLUSH, 0, &[])
    };
    let directory = scratch_in(&wish.directory, "hast-bench-")?;
    let files = [Mirror::open(&directory.path().join("a"))?, Mirror::open(&directory.path().join("b"))?];
    let theirs = |at: u64| -> Outcome {
        for file in &files {
            file.offsets.send(at).context("a thread that has ended")?;
        }
        files.iter().try_for_each(|file| Ok(file.done.recv().context("a thread that has ended")??))
    };
    let mut table = Table::new(
        "Median time of a 4k write and its flush, fullsync, as a multiple of two files'",
        &["two files", "pair"],
    );
    let mut random = Random::new(1);
    for (name, area) in AREAS {
        let (mut two, mut pair) = (Vec::new(), Vec::new());
        for _ in 0..wish.rounds {
            two.push(cycles(&mut random, wish.seconds, area, &theirs)?);
            pair.push(cycles(&mut random, wish.seconds, area, &ours)?);
        }
        let base = median(two.into_iter());
        table.ratios(name, &[base, median(pair.into_iter())], base, &format!("{:.0} µs", base * 1e6));
    }
    table.print();
    client::take_leave(&device).context("a farewell")?;
    pair.finish()
}

/// Median seconds of one at a random place, of as many as there are in so many seconds.
fn cycles(
    random: &mut Random,
    seconds: u64,
    area: u64,
    one: &dyn Fn(u64) -> Outcome,
) -> Result<f64, Failure> {
    let mut times = Vec::new();
    let end = Instant::now() + Duration::from_secs(seconds);
    while Instant::now() < end {
        let at = random.below(area / BLOCK as u64) * BLOCK as u64;
        let begun = Instant::now();
        one(at)?;
        times.push(begun.elapsed().as_secs_f64());
    }
    Ok(median(times.into_iter()))
}

/// One request and its answer, as the kernel would do it: in one piece, and by nobody but who waits for it.
fn ask(mut device: &UnixStream, command: u16, offset: u64, data: &[u8]) -> Outcome {
    let mut request = [0; HEADER + BLOCK];
    let (header, payload) = request.split_at_mut(HEADER);
    let length = u32::try_from(data.len())?;
    let fields: [&[u8]; 6] = [
        &REQUEST.to_be_bytes(),
        &[0; 2],
        &command.to_be_bytes(),
        &[0; 8],
        &offset.to_be_bytes(),
        &length.to_be_bytes(),
    ];
    header.copy_from_slice(&fields.concat());
    payload.get_mut(..data.len()).context("a longer block")?.copy_from_slice(data);
    device.write_all(request.get(..HEADER + data.len()).context("a longer block")?)?;
    let mut reply = [0; REPLY];
    device.read_exact(&mut reply)?;
    match reply {
        [_, _, _, _, 0, 0, 0, 0, ..] => Ok(()),
        _ => Failure::because("the device reports an error"),
    }
}

/// A thread that writes to a file where it is told, and flushes.
struct Mirror {
    offsets: Sender<u64>,
    done: Receiver<std::io::Result<()>>,
    _thread: JoinHandle<()>,
}

impl Mirror {
    fn open(path: &Path) -> Result<Mirror, Failure> {
        fill(path, DISK)?;
        let file = File::options().write(true).open(path)?;
        file.sync_all()?;
        let ((offsets, orders), (answers, done)) = (channel::<u64>(), channel());
        let thread = thread::spawn(move || {
            for at in orders {
                let result = file.write_all_at(&[0x5a; BLOCK], at).and_then(|()| file.sync_data());
                if answers.send(result).is_err() {
                    return;
                }
            }
        });
        Ok(Mirror { offsets, done, _thread: thread })
    }
}
