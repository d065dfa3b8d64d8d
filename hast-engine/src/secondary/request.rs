//! Requests of the primary: overlapping ones in the order they came, a flush behind every write before it.

use hast_format::layout::RangeError;
use hast_net::buffer::Buffer;
use hast_net::errno::Errno;
use hast_net::frame::Frame;
use hast_net::message::{Command, FromPrimary, MarkKind, Message, Reply};

use super::{Phase, Purpose, Secondary};
use crate::loss::Loss;
use crate::ranges::Key;
use crate::types::{Deletes, DiskOp, DiskResult, Side};

/// The longest read or write, in bytes (the reference's MAXPHYS on 64-bit FreeBSD 13 and newer).
const MAXPHYS: u64 = 1_048_576;

/// A request under way.
#[derive(Debug)]
pub(super) struct Request {
    pub(super) command: Command,
    seq: u64,
    offset: u64,
    length: u64,
    data: Option<Buffer>,
    /// The primary was told that it is here (memsync), and may have told its client.
    received: bool,
    /// A flush failed while the disk had it.
    pub(super) suspect: bool,
}

impl Request {
    pub(super) fn seq(&self) -> u64 {
        self.seq
    }
}

impl Secondary {
    pub(super) fn take_frame(&mut self, frame: Frame) {
        match FromPrimary::decode_extended(frame, self.ext) {
            Ok(FromPrimary::Keepalive) => self.tell_alive(),
            Ok(FromPrimary::Farewell { reason }) => self.lose(Loss::heard(&reason)),
            Ok(FromPrimary::Mark(mark)) => {
                if !matches!(mark.kind, MarkKind::Stale { .. }) {
                    self.first_request();
                }
                self.take_mark(mark);
            }
            Ok(FromPrimary::Invalid { seq, memsync, reason }) => {
                self.first_request();
                self.invalid(seq, memsync, &reason);
            }
            Ok(FromPrimary::Request(request)) => {
                self.first_request();
                self.suspect_from(&request);
                self.take_request(request);
            }
            Err(error) => self.lose(error.to_string()),
        }
    }

    /// The primary has our map, durably, or it would not have gone on: ours has served its purpose.
    fn first_request(&mut self) {
        if self.phase != Phase::Answered {
            return;
        }
        self.phase = Phase::Serving;
        // G1: the primary has stored the generation of this connection.
        if self.connection != 0 && std::mem::take(&mut self.metadata.extension.connection_before) != 0 {
            self.forgets_before = true;
        }
        if self.own.is_some() {
            self.own_map_was_sent();
        } else if !self.map.is_empty() && !self.told_stale {
            self.map.clear();
            self.clearing = true;
            let data = Buffer::from(vec![0; self.map_length()]);
            self.disk(Purpose::ClearMap, DiskOp::Write { offset: self.layout.map_offset(), data });
        }
    }

    fn take_request(&mut self, request: hast_net::message::Request) {
        let hast_net::message::Request { command, seq, offset, length, memsync, data } = request;
        match command {
            Command::Read => self.statistics.reads += 1,
            Command::Write => self.statistics.writes += 1,
            Command::Delete => self.statistics.deletes += 1,
            Command::Flush => self.statistics.flushes += 1,
        }
        if let Some(reason) = self.objection(command, offset, length) {
            return self.invalid(seq, memsync, &reason);
        }
        let received = memsync && command == Command::Write;
        if received {
            self.reply(seq, true, None, None);
        }
        self.next_key += 1;
        let key = Key(self.next_key);
        self.bytes_in_flight += if command == Command::Delete { 0 } else { length };
        self.requests.insert(key, Request { command, seq, offset, length, data, received, suspect: false });
        if matches!(command, Command::Write | Command::Delete) {
            self.writes.insert(key);
            self.remember(offset, length);
        }
        if command == Command::Flush {
            self.flushes.push_back(key);
            self.start_flushes();
        } else if self.ranges.insert(key, offset..offset.saturating_add(length), command == Command::Read) {
            self.start(key);
        }
    }

    fn objection(&self, command: Command, offset: u64, length: u64) -> Option<String> {
        match command {
            Command::Flush => None,
            Command::Read | Command::Write if length > MAXPHYS => {
                Some(format!("Data length is too large ({length} > {MAXPHYS})."))
            }
            Command::Read | Command::Write | Command::Delete => {
                let error = self.layout.check_range(offset, length).err()?;
                Some(match error {
                    RangeError::Empty => "Data length is zero.".into(),
                    RangeError::Offset { .. } => format!("Offset {offset} is not multiple of sector size."),
                    RangeError::Length { .. } => format!("Length {length} is not multiple of sector size."),
                    RangeError::PastEnd { .. } => {
                        let end = u128::from(offset) + u128::from(length);
                        format!("Data offset is too large ({end} > {}).", self.layout.datasize())
                    }
                })
            }
        }
    }

    /// A request that cannot be carried out; the link stays.
    fn invalid(&mut self, seq: u64, memsync: bool, reason: &str) {
        log::error!("{reason}");
        self.reply(seq, memsync, Some(Errno::EINVAL), None);
    }

    /// Nothing earlier overlaps `key`.
    fn start(&mut self, key: Key) {
        let Some(request) = self.requests.get_mut(&key) else { return };
        let offset = self.layout.localoff() + request.offset;
        let op = match (request.command, request.data.take()) {
            (Command::Write, Some(data)) => DiskOp::Write { offset, data },
            (Command::Read, _) => {
                DiskOp::Read { offset, length: u32::try_from(request.length).unwrap_or(u32::MAX) }
            }
            (Command::Delete, _) if self.host.deletes == Deletes::Refused => {
                return self.stored(key, Err(Errno::EOPNOTSUPP));
            }
            (Command::Delete, _) => DiskOp::Delete { offset, length: request.length },
            (Command::Flush, _) => return self.flush_disk(Purpose::Request(key)),
            // The decoder lets no write through without its data.
            (Command::Write, None) => return self.stored(key, Err(Errno::EINVAL)),
        };
        self.disk(Purpose::Request(key), op);
    }

    /// A flush covers every write received before it, answered or not: a reference primary may have told its
    /// device about them already (memsync).
    fn start_flushes(&mut self) {
        while let Some(&flush) = self.flushes.front()
            && self.writes.first().is_none_or(|write| flush < *write)
        {
            self.flushes.pop_front();
            self.start(flush);
        }
    }

    /// The disk has answered; the primary gets to hear of it once the map remembers the write (M5).
    pub(super) fn stored(&mut self, key: Key, result: DiskResult) {
        let Some(&Request { command, offset, length, suspect, .. }) = self.requests.get(&key) else { return };
        let mut result = result;
        if matches!(command, Command::Write | Command::Delete) {
            let extents = self.layout.extents_of(offset, length);
            if suspect {
                self.durable.may_have_dropped(extents);
                result = result.and(Err(self.durable.error()));
            } else {
                self.durable.wrote(extents);
                if command == Command::Write && result.is_ok() {
                    self.note_recopied(offset, length);
                }
            }
        }
        let result = match command {
            Command::Write | Command::Delete => self.remembered(key, offset, length, result),
            Command::Read | Command::Flush => Some(result),
        };
        if let Some(result) = result {
            self.answered(key, result);
        }
    }

    pub(super) fn answered(&mut self, key: Key, result: DiskResult) {
        let Some(request) = self.requests.remove(&key) else { return };
        self.writes.remove(&key);
        let Request { command, seq, length, offset, received, .. } = request;
        if command != Command::Delete {
            self.bytes_in_flight = self.bytes_in_flight.saturating_sub(length);
        }
        let result = match (command, result) {
            (Command::Flush, Ok(None)) => {
                let dropped = self.has_dropped().then(|| self.durable.error());
                self.flush_failed.take().or(dropped).map_or(Ok(None), Err)
            }
            (Command::Flush, Err(error)) => {
                self.flush_failed = None;
                Err(error)
            }
            (Command::Read, Ok(data)) if data.as_ref().map_or(0, |data| data.len() as u64) != length => {
                Err(Errno::EIO)
            }
            (_, result) => result,
        };
        match (command, &result) {
            (Command::Write | Command::Delete, Ok(_)) => self.unflushed = true,
            (_, Ok(_)) => {}
            (command, Err(error)) => {
                self.count_error(command, offset, length, *error);
                if received {
                    self.doubt();
                }
            }
        }
        if matches!(command, Command::Write | Command::Delete) {
            self.forget_in_flight(offset, length, result.is_ok());
        }
        match result {
            Ok(data) => self.reply(seq, false, None, data),
            Err(error) => self.reply(seq, false, Some(error), None),
        }
        if command != Command::Flush {
            self.release(key);
        }
        self.start_flushes();
    }

    /// Gives the bytes that `key` holds to whoever waits for them.
    pub(super) fn release(&mut self, key: Key) {
        let mut ready = Vec::new();
        self.ranges.release(key, &mut ready);
        for key in ready {
            if self.durable.is_piece(key) { self.dropped_ready() } else { self.start(key) }
        }
    }

    fn count_error(&mut self, command: Command, offset: u64, length: u64, error: Errno) {
        let (what, counter) = match command {
            Command::Read => (format!("READ({offset}, {length})"), &mut self.statistics.read_errors),
            Command::Write => (format!("WRITE({offset}, {length})"), &mut self.statistics.write_errors),
            Command::Delete => (format!("DELETE({offset}, {length})"), &mut self.statistics.delete_errors),
            Command::Flush => ("FLUSH".to_owned(), &mut self.statistics.flush_errors),
        };
        // A disk without a cache has nothing to flush: no failure.
        if (command, error) != (Command::Flush, Errno::EOPNOTSUPP) {
            *counter += 1;
        }
        log::error!("Request failed: {what}.: {error}.");
    }

    fn reply(&mut self, seq: u64, received: bool, error: Option<Errno>, data: Option<Buffer>) {
        self.send(Side::In, Message::Reply(Reply { seq, received, error, data }));
    }
}
