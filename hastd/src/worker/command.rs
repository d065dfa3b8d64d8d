//! One NBD command as a series of engine requests, and what becomes of it.
//!
//! Owns what a command means in requests, the flush that a FUA command ends with, zeroes that need not be written, and
//! the translation of errors. Knows neither sockets nor other commands.

use hast_engine::{DiskResult, MAX_REQUEST, Op};
use hast_nbd::{CommandId, Kind, NbdError, Pieces};
use hast_net::buffer::Buffer;
use hast_net::errno::Errno;
use smallvec::SmallVec;

use super::requests::Requests;

/// A command on its way through the engine.
pub(super) struct Command {
    /// The client's connection.
    pub(super) client: usize,
    /// The client's session's name for it.
    pub(super) handle: CommandId,
    requests: Requests,
    /// Zeroes that a delete is to leave.
    freeing: Option<Freeing>,
    /// Requests that the engine has.
    outstanding: usize,
    /// What reads have brought, in the order of their offsets.
    data: SmallVec<[Option<Buffer>; 1]>,
    flush: Flush,
    error: Option<NbdError>,
}

/// A command whose zeroes are left by deletes, as long as those succeed; the rest is written.
struct Freeing {
    /// [`MAX_REQUEST`] bytes of them.
    zeroes: Buffer,
    /// Offset and length of each delete: its requests are the first ones.
    asked: Vec<(u64, u64)>,
    /// What is to be written instead.
    failed: Vec<Requests>,
}

/// What a command still has to do about durability.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flush {
    /// Nothing.
    No,
    /// A flush once everything else has been done.
    Wanted,
    /// The flush has been asked for.
    Asked,
}

impl Command {
    /// The command `kind` of a client of a device with sectors of `sector` bytes. `zeroes` are
    /// [`MAX_REQUEST`] bytes of zeroes; with `frees` a delete is worth trying where zeroes need not be allocated.
    pub(super) fn new(
        client: usize,
        handle: CommandId,
        kind: Kind,
        sector: u32,
        zeroes: &Buffer,
        frees: bool,
    ) -> Command {
        let durable = matches!(
            kind,
            Kind::Flush
                | Kind::Write { fua: true, .. }
                | Kind::Trim { fua: true, .. }
                | Kind::WriteZeroes { fua: true, .. }
        );
        // What fits into one request is written: a delete is complete only when both nodes have carried it out, in any
        // mode, and small holes are no gain.
        let hole = match kind {
            Kind::WriteZeroes { offset, length, no_hole: false, .. } if frees && length > MAX_REQUEST => {
                Some((offset, length.into()))
            }
            _ => None,
        };
        let freeing = hole.map(|_| Freeing { zeroes: zeroes.clone(), asked: Vec::new(), failed: Vec::new() });
        Command {
            client,
            handle,
            requests: match hole {
                Some((offset, length)) => Requests::delete(offset, length),
                None => requests(kind, sector, zeroes),
            },
            freeing,
            outstanding: 0,
            data: SmallVec::new(),
            flush: if durable { Flush::Wanted } else { Flush::No },
            error: None,
        }
    }

    /// The next request for the engine, and the number to name it by in [`Command::finished`]. None while
    /// there is nothing to ask: for good, or until what is outstanding has finished.
    pub(super) fn next_request(&mut self) -> Option<(usize, Op)> {
        if self.error.is_some() {
            return None;
        }
        if let Some(op) = self.next_op() {
            let number = self.data.len();
            self.data.push(None);
            self.outstanding += 1;
            return Some((number, op));
        }
        if self.flush == Flush::Wanted && self.outstanding == 0 {
            self.flush = Flush::Asked;
            self.outstanding += 1;
            return Some((self.data.len(), Op::Flush));
        }
        None
    }

    fn next_op(&mut self) -> Option<Op> {
        let next = self.requests.next();
        let Some(freeing) = &mut self.freeing else { return next };
        if let Some(Op::Delete { offset, length }) = &next {
            freeing.asked.push((*offset, *length));
        }
        next.or_else(|| freeing.failed.iter_mut().find_map(Iterator::next))
    }

    /// Takes the end of a request.
    pub(super) fn finished(&mut self, number: usize, result: DiskResult) {
        self.outstanding = self.outstanding.saturating_sub(1);
        match result {
            Ok(data) => {
                if let Some(place) = self.data.get_mut(number) {
                    *place = data;
                }
            }
            // A delete need not be possible, nor succeed; zeroes that the client wants have to.
            Err(_) if self.write_instead(number) => {}
            // A disk without a cache has nothing to flush.
            Err(Errno::EOPNOTSUPP) if self.flush == Flush::Asked => {}
            // A trim is advice, and nobody was there who could follow it.
            Err(Errno::EOPNOTSUPP) if self.requests.is_trim() => {}
            Err(error) => self.abort(nbd_error(error)),
        }
    }

    /// Has the zeroes written that this request should have left; false if it should not.
    fn write_instead(&mut self, number: usize) -> bool {
        let Some(freeing) = &mut self.freeing else { return false };
        let Some(&(offset, length)) = freeing.asked.get(number) else { return false };
        freeing.failed.push(Requests::zeroes(offset, length, &freeing.zeroes));
        // The others would not do better.
        self.requests.write_zeroes(&freeing.zeroes);
        true
    }

    /// Ends the command with `error`, unless another came first, as soon as the engine has nothing of it.
    pub(super) fn abort(&mut self, error: NbdError) {
        self.error.get_or_insert(error);
    }

    /// Whether the end of a request has brought about that something is to be asked for: the flush once everything
    /// else has finished, or zeroes that a delete has not left.
    pub(super) fn goes_on(&self) -> bool {
        let flush = self.outstanding == 0 && self.flush == Flush::Wanted && self.requests.is_empty();
        self.error.is_none() && (flush || self.has_failed())
    }

    fn has_failed(&self) -> bool {
        self.freeing.as_ref().is_some_and(|freeing| freeing.failed.iter().any(|zeroes| !zeroes.is_empty()))
    }

    /// Whether something is left to be asked of the engine, now or later.
    pub(super) fn has_more(&self) -> bool {
        !self.requests.is_empty() || self.has_failed() || self.flush == Flush::Wanted
    }

    /// What to answer, once there is nothing more to do. Takes the data: the command is over.
    pub(super) fn outcome(&mut self) -> Option<Result<Pieces, NbdError>> {
        if self.outstanding > 0 {
            return None;
        }
        if let Some(error) = self.error {
            return Some(Err(error));
        }
        if self.has_more() {
            return None;
        }
        Some(Ok(self.data.drain(..).flatten().collect()))
    }
}

/// What a command asks of the engine, its flush apart.
fn requests(kind: Kind, sector: u32, zeroes: &Buffer) -> Requests {
    match kind {
        Kind::Read { offset, length } => Requests::read(offset, length.into()),
        Kind::Write { offset, data, .. } => Requests::write(offset, data),
        Kind::Trim { offset, length, .. } => {
            let (offset, length) = inward(offset, length.into(), sector);
            Requests::delete(offset, length)
        }
        Kind::WriteZeroes { offset, length, .. } => Requests::zeroes(offset, length.into(), zeroes),
        Kind::Cache { .. } | Kind::Flush => Requests::none(),
    }
}

/// The whole sectors inside a range.
fn inward(offset: u64, length: u64, sector: u32) -> (u64, u64) {
    let sector = u64::from(sector.max(1));
    let end = offset.saturating_add(length);
    let end = end.saturating_sub(end % sector);
    let start = offset.checked_next_multiple_of(sector).unwrap_or(end);
    (start, end.saturating_sub(start))
}

/// The nearest that NBD has.
fn nbd_error(error: Errno) -> NbdError {
    match error {
        Errno::EPERM | Errno::EACCES | Errno::EROFS => NbdError::Perm,
        Errno::ENOMEM => NbdError::NoMem,
        Errno::EINVAL => NbdError::Inval,
        Errno::ENOSPC | Errno::EDQUOT => NbdError::NoSpc,
        Errno::EOPNOTSUPP => NbdError::NotSup,
        _ => NbdError::Io,
    }
}

#[cfg(test)]
mod tests {
    use super::super::requests::MAX_DELETE;
    use super::*;
    use proptest::prelude::*;

    fn zeroes() -> Buffer {
        Buffer::from(vec![0; MAX_REQUEST as usize])
    }

    fn command(kind: Kind) -> Command {
        freeing(kind, false)
    }

    fn freeing(kind: Kind, frees: bool) -> Command {
        Command::new(1, CommandId(7), kind, 512, &zeroes(), frees)
    }

    fn drain(command: &mut Command) -> Vec<(usize, Op)> {
        std::iter::from_fn(|| command.next_request()).collect()
    }

    fn pieces(length: usize) -> Pieces {
        let bytes: Vec<u8> = (0..length).map(|i| (i / 512) as u8).collect();
        bytes.chunks(MAX_REQUEST as usize).map(|piece| Buffer::from(piece.to_vec())).collect()
    }

    proptest! {
        /// Whatever the command, its requests cover its range once, in order, and each within the bound.
        #[test]
        fn requests_cover_the_range(start in 0_u64..1 << 40, sectors in 1_u32..70_000, which in 0..4) {
            let (offset, length) = (start * 512, sectors * 512);
            let kind = match which {
                0 => Kind::Read { offset, length },
                1 => Kind::WriteZeroes { offset, length, no_hole: false, fua: false },
                2 => Kind::Trim { offset, length, fua: false },
                _ => Kind::Write { offset, data: pieces(length.min(1 << 20) as usize), fua: false },
            };
            let length = if which == 3 { length.min(1 << 20) } else { length };
            let mut command = command(kind);
            let mut at = offset;
            for (_, op) in drain(&mut command) {
                let (offset, length) = op.range();
                prop_assert_eq!(offset, at);
                prop_assert!(length > 0);
                let most = if which == 2 { MAX_DELETE } else { u64::from(MAX_REQUEST) };
                prop_assert!(length <= most);
                if let Op::Write { data, .. } = &op {
                    prop_assert!(which == 3 || data.iter().all(|&byte| byte == 0));
                }
                at += length;
            }
            prop_assert_eq!(at, offset + u64::from(length));
        }

        #[test]
        fn inward_keeps_whole_sectors_only(offset in 0_u64..1 << 20, length in 0_u64..1 << 20, shift in 9_u32..13) {
            let sector = 1_u32 << shift;
            let (start, left) = inward(offset, length, sector);
            prop_assert_eq!(left % u64::from(sector), 0);
            if left > 0 {
                prop_assert_eq!(start % u64::from(sector), 0);
                prop_assert!(start >= offset && start + left <= offset + length);
                prop_assert!(start - offset < u64::from(sector));
                prop_assert!(offset + length - (start + left) < u64::from(sector));
            } else {
                prop_assert!(length < 2 * u64::from(sector));
            }
        }
    }

    #[test]
    fn a_read_is_answered_with_its_data_in_order() {
        let mut command = command(Kind::Read { offset: 4096, length: 300_000 });
        let requests = drain(&mut command);
        assert_eq!(requests.len(), 3);
        let all = pieces(300_000);
        for number in [2, 0, 1] {
            assert!(command.outcome().is_none());
            command.finished(number, Ok(Some(all[number].clone())));
        }
        assert_eq!(command.outcome(), Some(Ok(all)));
    }

    #[test]
    fn the_first_error_is_the_answer_once_everything_is_back() {
        let mut command = command(Kind::Write { offset: 0, data: pieces(400_000), fua: true });
        let (first, _) = command.next_request().unwrap();
        let (second, _) = command.next_request().unwrap();
        command.finished(second, Err(Errno::ENOSPC));
        assert!(command.next_request().is_none(), "no more is asked after an error");
        assert!(command.outcome().is_none(), "one request is still with the engine");
        command.finished(first, Err(Errno::EIO));
        assert!(!command.goes_on());
        assert_eq!(command.outcome(), Some(Err(NbdError::NoSpc)));
    }

    #[test]
    fn a_fua_write_is_flushed_before_it_is_answered() {
        let mut command = command(Kind::Write { offset: 0, data: pieces(200_000), fua: true });
        let requests = drain(&mut command);
        assert_eq!(requests.len(), 2);
        command.finished(0, Ok(None));
        assert!(!command.goes_on() && command.next_request().is_none());
        command.finished(1, Ok(None));
        assert!(command.goes_on() && command.outcome().is_none());
        let (number, op) = command.next_request().unwrap();
        assert_eq!(op, Op::Flush);
        assert!(command.outcome().is_none());
        command.finished(number, Err(Errno::EIO));
        assert_eq!(command.outcome(), Some(Err(NbdError::Io)));
    }

    #[test]
    fn what_no_disk_can_do_is_no_failure_for_advice_and_flush() {
        for kind in [Kind::Flush, Kind::Trim { offset: 0, length: 4096, fua: false }] {
            let mut command = command(kind);
            let (number, _) = command.next_request().unwrap();
            command.finished(number, Err(Errno::EOPNOTSUPP));
            assert_eq!(command.outcome(), Some(Ok(Pieces::new())));
        }
    }

    /// What the device reads as in the end, of what a command asks for; `fails` says which requests do.
    fn zeroed(command: &mut Command, mut fails: impl FnMut(usize, &Op) -> bool) -> (Vec<(u64, u64)>, usize) {
        let (mut zeroed, mut deletes) = (Vec::new(), 0);
        while command.outcome().is_none() {
            let asked = drain(command);
            assert!(!asked.is_empty(), "it stops half-way");
            for (number, op) in asked {
                deletes += usize::from(matches!(op, Op::Delete { .. }));
                if fails(number, &op) {
                    command.finished(number, Err(Errno::EOPNOTSUPP));
                    assert!(command.goes_on());
                    continue;
                }
                if op != Op::Flush {
                    zeroed.push(op.range());
                }
                command.finished(number, Ok(None));
            }
        }
        zeroed.sort_unstable();
        (zeroed, deletes)
    }

    fn covers(ranges: &[(u64, u64)], offset: u64, length: u64) -> bool {
        let end = ranges.iter().fold(offset, |at, range| if range.0 == at { at + range.1 } else { at });
        end == offset + length && ranges.iter().map(|range| range.1).sum::<u64>() == length
    }

    /// D1: a delete may be tried where a hole will do, and zeroes are written where it has failed, exactly there.
    #[test]
    fn zeroes_are_freed_where_that_works_and_written_where_not() {
        let (offset, length) = (512 * 3, (3 << 30) + 512);
        for fua in [false, true] {
            let kind = |no_hole| Kind::WriteZeroes { offset, length, no_hole, fua };
            let (all, deletes) = zeroed(&mut freeing(kind(false), true), |_, _| false);
            assert!(covers(&all, offset, length.into()) && deletes == 4 && all.len() == 4, "{all:?}");
            for first in 0..4 {
                let fails = |number, op: &Op| matches!(op, Op::Delete { .. }) && number >= first;
                let (all, deletes) = zeroed(&mut freeing(kind(false), true), fails);
                assert!(covers(&all, offset, length.into()), "{first}");
                assert_eq!(deletes, 4);
                let left = (u64::from(length) - first as u64 * MAX_DELETE).div_ceil(u64::from(MAX_REQUEST));
                assert_eq!(all.len() as u64, first as u64 + left);
            }
            for (no_hole, frees) in [(true, true), (false, false), (true, false)] {
                let (all, deletes) = zeroed(&mut freeing(kind(no_hole), frees), |_, _| false);
                assert!(covers(&all, offset, length.into()) && deletes == 0);
            }
        }
        let small = Kind::WriteZeroes { offset: 0, length: MAX_REQUEST, no_hole: false, fua: false };
        assert_eq!(zeroed(&mut freeing(small, true), |_, _| false), (vec![(0, MAX_REQUEST.into())], 0));
    }

    /// One that is refused is followed by no other: none of the pieces would fare better.
    #[test]
    fn after_a_delete_that_failed_the_rest_is_written() {
        let kind = Kind::WriteZeroes { offset: 0, length: 3 << 30, no_hole: false, fua: false };
        let mut command = freeing(kind, true);
        let (number, op) = command.next_request().unwrap();
        assert_eq!(op, Op::Delete { offset: 0, length: MAX_DELETE });
        command.finished(number, Err(Errno::EOPNOTSUPP));
        let rest = drain(&mut command);
        assert!(rest.iter().all(|(_, op)| matches!(op, Op::Write { .. })));
        assert_eq!(rest.len() as u64, 3 * MAX_DELETE / u64::from(MAX_REQUEST));
        // What cannot be written either is an error.
        command.finished(rest[0].0, Err(Errno::ENOSPC));
        for (number, _) in &rest[1..] {
            assert!(command.outcome().is_none());
            command.finished(*number, Ok(None));
        }
        assert_eq!(command.outcome(), Some(Err(NbdError::NoSpc)));
    }

    #[test]
    fn commands_without_requests_are_answered_at_once() {
        let small = Kind::Trim { offset: 100, length: 600, fua: false };
        for kind in [Kind::Cache { offset: 0, length: 512 }, small] {
            let mut command = command(kind);
            assert!(command.next_request().is_none());
            assert_eq!(command.outcome(), Some(Ok(Pieces::new())));
        }
    }
}
