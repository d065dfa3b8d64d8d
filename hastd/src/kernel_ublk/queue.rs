//! The thread that serves a device's queue: takes requests from the kernel and answers them.
//!
//! The kernel wants all commands of a queue from one thread, so this one does nothing that blocks but wait for the
//! kernel: the requests are carried out elsewhere, by the threads of [`super::exchange`].

use std::fs::File;
use std::io::{self, PipeReader};
use std::sync::Arc;
use std::sync::mpsc::SyncSender;

use super::command::Operation;
use super::exchange::Exchange;
use super::ring::{Happened, QueueRing, serve_without_reclaim};

/// The body of the thread: says whether it is ready for requests, and serves them until the device is stopped.
pub(super) fn serve(
    file: Arc<File>,
    depth: u16,
    waker: PipeReader,
    exchange: &Exchange,
    ready: &SyncSender<io::Result<()>>,
) {
    serve_without_reclaim();
    let queue = QueueRing::new(file, depth, waker).and_then(|mut queue| {
        begin(&mut queue, depth)?;
        Ok(queue)
    });
    // Fails only when nobody waits for it any more; the device is taken away then.
    let (queue, result) = match queue {
        Ok(queue) => (Some(queue), Ok(())),
        Err(error) => (None, Err(error)),
    };
    let _ = ready.send(result);
    if let Some(mut queue) = queue
        && let Err(error) = work(&mut queue, depth, exchange)
    {
        log::error!("The kernel's ublk is not served any more: {}.", hast_log::error_text(&error));
    }
    exchange.end();
}

/// Asks for a request with each tag: the device cannot start before.
fn begin(queue: &mut QueueRing, depth: u16) -> io::Result<()> {
    for tag in 0..depth {
        queue.fetch(tag)?;
    }
    queue.watch()?;
    queue.submit(false)?;
    // What the kernel does not want it has said at once.
    match queue.next()? {
        None => Ok(()),
        Some(Happened::Tag(_, result)) if result < 0 => {
            Err(io::Error::from_raw_os_error(result.saturating_neg()))
        }
        Some(_) => Err(io::ErrorKind::InvalidData.into()),
    }
}

fn work(queue: &mut QueueRing, depth: u16, exchange: &Exchange) -> io::Result<()> {
    // When the device stops every tag's command comes back without a request.
    let mut given_back = 0;
    while given_back < depth {
        queue.submit(true)?;
        while let Some(happened) = queue.next()? {
            match happened {
                Happened::Woken => queue.watch()?,
                Happened::Tag(tag, 0) => match queue.descriptor(tag).as_ref().and_then(Operation::of) {
                    Some(operation) => exchange.ask(tag, operation),
                    None => queue.commit_and_fetch(tag, -libc::EOPNOTSUPP)?,
                },
                Happened::Tag(_, result) => {
                    if result != -libc::ENODEV {
                        log::warn!("The kernel's ublk refuses a command: error {}.", result.saturating_neg());
                    }
                    given_back = given_back.saturating_add(1);
                }
            }
        }
        for (tag, result) in exchange.answers() {
            queue.commit_and_fetch(tag, result)?;
        }
    }
    Ok(())
}
