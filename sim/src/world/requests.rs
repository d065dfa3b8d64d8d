//! The client's requests: asking, and judging the answers.

use super::*;

impl World {
    pub(crate) fn nothing_is_open(&self) -> bool {
        self.requests.is_empty()
    }

    /// One write of up to four sectors anywhere.
    pub(crate) fn write_one(&mut self, node: usize, tracked: bool) {
        let first = usize::try_from(self.random.below(self.sectors() as u64)).unwrap_or(0);
        let count = usize::try_from(self.random.below(4)).unwrap_or(0).min(self.sectors() - first - 1) + 1;
        let (first, count) = self.whole_sectors(first, count);
        self.write_there(node, first, count, tracked);
    }

    /// One write of `count` sectors of the data area, from sector `first`, which the client remembers.
    pub(crate) fn write_at(&mut self, node: usize, first: usize, count: usize) {
        self.write_there(node, first, count, true);
    }

    fn write_there(&mut self, node: usize, first: usize, count: usize, tracked: bool) {
        self.next_id += 1;
        let id = RequestId(self.next_id);
        if tracked {
            self.write_begins(node, id.0, false, first, count);
        }
        let data = Buffer::from(Memory::contents(id.0).repeat(count));
        self.ask(node, id, What::Write, Op::Write { offset: (first * SECTOR) as u64, data });
    }

    /// One read of `count` sectors of the data area, from sector `first`.
    pub(crate) fn read_at(&mut self, node: usize, first: usize, count: usize) {
        self.next_id += 1;
        let op =
            Op::Read { offset: (first * SECTOR) as u64, length: u32::try_from(count * SECTOR).unwrap_or(0) };
        self.ask(node, RequestId(self.next_id), What::Read { first, count }, op);
    }

    /// Reads every sector, through the engine.
    pub(crate) fn read_all(&mut self, node: usize) {
        for first in (0..self.sectors()).step_by(8) {
            let count = (self.sectors() - first).min(8);
            self.read_at(node, first, count);
        }
    }

    /// One delete of `count` sectors of the data area, from sector `first`, which the client remembers.
    pub(crate) fn delete_at(&mut self, node: usize, first: usize, count: usize) {
        self.next_id += 1;
        let id = RequestId(self.next_id);
        self.write_begins(node, id.0, true, first, count);
        let (offset, length) = ((first * SECTOR) as u64, (count * SECTOR) as u64);
        self.ask(node, id, What::Delete, Op::Delete { offset, length });
    }

    /// One flush.
    pub(crate) fn flush_one(&mut self, node: usize) {
        self.next_id += 1;
        self.ask(node, RequestId(self.next_id), What::Flush, Op::Flush);
    }

    pub(super) fn ask(&mut self, node: usize, id: RequestId, what: What, op: Op) {
        let now = self.now;
        if !self.nodes.get(node).is_some_and(Node::is_primary) {
            return;
        }
        self.check_holes(node, &op);
        let Some(n) = self.nodes.get_mut(node) else { return };
        self.requests.insert(id, Asked { node, invoked: now, what });
        let (offset, length) = op.range();
        n.handle_request(now, id, op);
        let sector = SECTOR as u64;
        self.trace(|| {
            format!("client: request {} {what:?}, {} sectors from {}", id.0, length / sector, offset / sector)
        });
        self.pump(node);
    }

    /// The sectors of the disk that hold these `count` of 512 bytes from `first` on.
    fn whole_sectors(&self, first: usize, count: usize) -> (usize, usize) {
        let size = self.nodes.first().map_or(SECTOR, |node| node.shape().sectorsize as usize) / SECTOR;
        let begin = first / size * size;
        (begin, (first + count).next_multiple_of(size) - begin)
    }

    pub(crate) fn sectors(&self) -> usize {
        self.nodes.first().and_then(|node| node.data().ok()).map_or(0, <[u8]>::len) / SECTOR
    }

    /// Where the kernel may read without asking, it reads what lies on the disk.
    pub(super) fn read_directly(&mut self, first: usize, count: usize) {
        let now = self.now;
        let serving = self.serving;
        let Some(node) = self.nodes.get(serving).filter(|node| node.direct_reads) else { return };
        let (Ok(data), Ok(layout)) = (node.data(), node.layout()) else { return };
        let offset = layout.localoff() + (first * SECTOR) as u64;
        if !node.disk.is_readable(offset, (count * SECTOR) as u64) {
            return; // the kernel asks the engine then
        }
        let found = (first..first + count).find_map(|at| {
            let bytes = data.get(at * SECTOR..(at + 1) * SECTOR)?;
            self.check_read(serving, at, bytes, now).err()
        });
        if let Some(error) = found {
            self.fail(format!("read directly: {error}"));
        }
    }

    pub(super) fn client(&mut self) {
        if !self.storm {
            return;
        }
        let pause = if self.random.one_in(20) { 2_000_000 } else { 20_000 };
        let after = Duration::from_micros(self.random.below(pause));
        self.schedule(after, Happening::Client);
        let (now, serving) = (self.now, self.asks_whom());
        let sectors = self.sectors();
        let kind = self.random.below(20);
        let first = usize::try_from(self.random.below(sectors as u64)).unwrap_or(0);
        let most = if self.random.one_in(10) { 24 } else { 4 };
        let count = usize::try_from(self.random.below(most)).unwrap_or(0).min(sectors - first - 1) + 1;
        let (first, count) = self.whole_sectors(first, count);
        if self.random.one_in(4) {
            self.read_directly(first, count);
        }
        let now_asleep = |node: &Node| node.asleep_until > now;
        let idle = |node: &Node| !node.is_primary() || node.next_role.is_some() || now_asleep(node);
        if self.nodes.get(serving).is_none_or(idle) || self.requests.len() >= OPEN {
            return;
        }
        self.next_id += 1;
        let id = RequestId(self.next_id);
        let (offset, length) = ((first * SECTOR) as u64, (count * SECTOR) as u64);
        let (what, op) = match kind {
            0..=9 => {
                self.write_begins(serving, id.0, false, first, count);
                let data = Buffer::from(Memory::contents(id.0).repeat(count));
                (What::Write, Op::Write { offset, data })
            }
            10 => {
                self.write_begins(serving, id.0, true, first, count);
                (What::Delete, Op::Delete { offset, length })
            }
            11 => (What::Flush, Op::Flush),
            _ => {
                let length = u32::try_from(length).unwrap_or(0);
                (What::Read { first, count }, Op::Read { offset, length })
            }
        };
        self.check_holes(serving, &op);
        self.requests.insert(id, Asked { node: serving, invoked: now, what });
        if let Some(node) = self.nodes.get_mut(serving) {
            node.handle_request(now, id, op);
        }
        self.trace(|| format!("client: request {} {what:?}, {count} sectors from {first}", id.0));
        self.pump(serving);
    }

    /// Where a client reads it could also have asked what is a hole: if it would be told what the disk holds there, that has
    /// to be what it may read.
    fn check_holes(&mut self, node: usize, op: &Op) {
        let Op::Read { offset, length } = op else { return };
        let Some(n) = self.nodes.get(node).filter(|n| n.reads_here(*offset, u64::from(*length))) else {
            return;
        };
        let (first, count) = (*offset as usize / SECTOR, *length as usize / SECTOR);
        let Ok(data) = n.data() else { return };
        let found = data.chunks(SECTOR).enumerate().skip(first).take(count);
        let wrong = found.filter_map(|(at, bytes)| self.check_read(node, at, bytes, self.now).err()).next();
        if let Some(error) = wrong {
            self.fail(format!("told what is a hole: {error}"));
        }
    }

    pub(super) fn completed(&mut self, node: usize, id: RequestId, result: DiskResult) {
        let Some(Asked { invoked, what, .. }) = self.requests.remove(&id) else {
            return self.fail(format!("node {node} completes request {} which is not open", id.0));
        };
        self.trace(|| format!("client: request {} ends: {:?}", id.0, result.as_ref().err()));
        self.failed_requests += u64::from(result.is_err());
        match (what, result) {
            (What::Read { first, count }, Ok(Some(data))) => {
                if data.len() != count * SECTOR {
                    self.fail(format!("a read of {count} sectors brought {} bytes", data.len()));
                }
                if self.nodes.get(node).is_some_and(|node| node.original) {
                    return; // what an original serves nobody answers for
                }
                for (index, bytes) in data.chunks(SECTOR).enumerate() {
                    if let Err(error) = self.check_read(node, first + index, bytes, invoked) {
                        return self.fail(format!("read by request {}: {error}", id.0));
                    }
                    self.was_read(node, first + index, bytes);
                }
            }
            (What::Read { .. }, Ok(None)) => self.fail("a read brought no data".into()),
            (What::Write | What::Delete, result) => self.write_ended(node, id.0, result.is_ok()),
            (What::Flush, Ok(_)) => self.was_flushed(node, invoked),
            (_, Err(_)) => {}
        }
    }
}
