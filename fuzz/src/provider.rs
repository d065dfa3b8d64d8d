//! A small simulated provider under an engine: it holds what was written, and checks where.

use hast_engine::{Deletes, DiskOp, DiskResult, Host, OpId, Settings};
use hast_format::bitmap::Bitmap;
use hast_format::extension::{Extension, Mark, Run};
use hast_format::layout::Layout;
use hast_format::metadata::{Metadata, Role};
use hast_net::Replication;
use hast_net::buffer::Buffer;
use hast_net::errno::Errno;
use hast_net::handshake::Met;
use std::ops::Range;
use std::time::Duration;

use crate::source::Source;

/// The resource's identity where a node has one.
pub const RESUID: u64 = 0x0123_4567_89ab_cdef;

/// Bytes in the metadata block.
const BLOCK: usize = 4096;

/// A provider with what an engine has asked of it.
#[derive(Debug)]
pub struct Provider {
    contents: Vec<u8>,
    /// The metadata block that a loss of power would leave at least, and how many operations came before it.
    durable: (u64, Vec<u8>),
    submitted: u64,
    layout: Layout,
    created: Metadata,
    created_as: Layout,
    pending: Vec<Pending>,
    no_cache: bool,
    flush_has_failed: bool,
    /// A write of the metadata has failed.
    metadata_failed: bool,
    /// Where reads have failed: there a primary writes back what the secondary has, beside other reads.
    repairs: Option<Vec<Range<u64>>>,
    /// The metadata was written since it was looked at.
    touched: bool,
}

/// An operation that has not ended.
#[derive(Debug)]
struct Pending {
    id: OpId,
    op: DiskOp,
    /// For a flush: the metadata block when it was asked for, which is what it has to make durable.
    covers: Option<(u64, Vec<u8>)>,
}

impl Provider {
    /// A provider of some size, of a node with some past.
    pub fn new(source: &mut Source<'_>) -> Provider {
        let sector: u32 = source.choose(&[512, 512, 512, 4096]);
        let extentsize = source.choose(&[4096_u32, 8192, 65_536]);
        let sectors = 1 + source.below(64) as u64;
        let created = Layout::create(4096 + 4096 + sectors * u64::from(sector), sector, extentsize)
            .expect("large enough for one sector of data");
        Provider::with(source, created)
    }

    /// A provider of the same size, of a node with another past.
    pub fn twin(&self, source: &mut Source<'_>) -> Provider {
        Provider::with(source, self.created_as)
    }

    fn with(source: &mut Source<'_>, created: Layout) -> Provider {
        let sector = created.sectorsize();
        let metadata = metadata(source, &created);
        // A provider may be larger than what it was created for, so much that a map for all of it would reach
        // into the data.
        let roomy = if source.one_in(4) { 1 << 27 } else { 0 };
        let used = created.localoff() + created.datasize();
        let layout = Layout::open(&metadata, used + roomy, sector).expect("what was laid out can be opened");
        let mut contents = metadata.encode().to_vec();
        contents.resize(usize::try_from(used).unwrap(), source.byte());
        let map = map_range(&layout);
        contents[map.clone()].fill(0);
        for byte in &mut contents[map].iter_mut().take(source.below(8)) {
            *byte = source.byte();
        }
        let no_cache = source.one_in(4);
        Provider {
            durable: (0, contents[..BLOCK].to_vec()),
            submitted: 0,
            contents,
            layout,
            created: metadata,
            created_as: created,
            pending: Vec::new(),
            no_cache,
            flush_has_failed: false,
            metadata_failed: false,
            repairs: None,
            touched: true,
        }
    }

    /// How it is laid out.
    #[must_use]
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// What its metadata says.
    #[must_use]
    pub fn metadata(&self) -> Metadata {
        read(&self.contents)
    }

    /// What its metadata would say after a loss of power, at least.
    #[must_use]
    pub fn durable_metadata(&self) -> Metadata {
        read(&self.durable.1)
    }

    /// The map as it lies there.
    #[must_use]
    pub fn map(&self) -> Vec<u8> {
        self.contents[map_range(&self.layout)].to_vec()
    }

    /// The data area.
    #[must_use]
    pub fn data(&self) -> &[u8] {
        &self.contents[data_range(&self.layout)]
    }

    /// The data area, for whoever made it what it is before the engine began.
    pub fn data_mut(&mut self) -> &mut [u8] {
        &mut self.contents[data_range(&self.layout)]
    }

    /// The engine may write where a read has failed, though other reads, or repairs, of the same bytes are under
    /// way.
    pub fn expect_repairs(&mut self) {
        self.repairs = Some(Vec::new());
    }

    /// How many operations have not ended.
    #[must_use]
    pub fn pending(&self) -> usize {
        self.pending.len()
    }

    /// Whether a flush has failed: some of what was written before may be dropped then.
    #[must_use]
    pub fn flush_has_failed(&self) -> bool {
        self.flush_has_failed
    }

    /// Whether a write of the metadata or any flush has failed: what an engine wanted to record may not be there.
    #[must_use]
    pub fn metadata_has_failed(&self) -> bool {
        self.metadata_failed || self.flush_has_failed
    }

    /// Takes an operation; gives its place in the data area, if that is where it goes.
    ///
    /// # Panics
    /// It goes where the engine has no business, or meets another one.
    pub fn submit(&mut self, id: OpId, op: DiskOp) -> Option<Range<u64>> {
        let place = place(&op, &self.layout);
        let repaired =
            |place: &Range<u64>| self.repairs.iter().flatten().any(|failed| overlap(place, failed));
        if let Some(place) = place.as_ref().filter(|place| !repaired(place)) {
            let reads = matches!(op, DiskOp::Read { .. });
            for Pending { op: other, .. } in &self.pending {
                let meets = self::place(other, &self.layout).is_some_and(|other| overlap(place, &other));
                let shared = reads && matches!(other, DiskOp::Read { .. });
                assert!(!meets || shared, "{op:?} is issued while {other:?} is under way");
            }
        }
        assert!(self.pending.iter().all(|other| other.id != id), "{id:?} is used twice");
        self.submitted += 1;
        let covers = (op == DiskOp::Flush).then(|| (self.submitted, self.contents[..BLOCK].to_vec()));
        self.pending.push(Pending { id, op, covers });
        place
    }

    /// Ends one of the pending operations, well or not.
    pub fn end(&mut self, index: usize, fails: Option<Errno>) -> (OpId, DiskResult) {
        let Pending { id, op, covers } = self.pending.remove(index);
        if let Some(error) = fails {
            if let (Some(repairs), DiskOp::Read { .. }) = (&mut self.repairs, &op) {
                repairs.extend(place(&op, &self.layout));
            }
            if error == Errno::EOPNOTSUPP && op == DiskOp::Flush {
                // It has no cache that could be flushed: what it has stored is durable.
                self.no_cache = true;
                self.durable.1.copy_from_slice(&self.contents[..BLOCK]);
            } else if op == DiskOp::Flush {
                self.flush_has_failed = true;
            }
            self.metadata_failed |=
                matches!(op, DiskOp::Write { offset, .. } if offset < self.layout.map_offset());
            return (id, Err(error));
        }
        let range = |offset: u64, length: usize| {
            let start = usize::try_from(offset).unwrap();
            start..start + length
        };
        let result = match op {
            DiskOp::Read { offset, length } => {
                Ok(Some(Buffer::from(self.contents[range(offset, length as usize)].to_vec())))
            }
            DiskOp::Write { offset, data } => {
                self.touched |= offset < self.layout.map_offset();
                self.contents[range(offset, data.len())].copy_from_slice(&data);
                Ok(None)
            }
            DiskOp::Delete { offset, length } => {
                self.contents[range(offset, usize::try_from(length).unwrap())].fill(0);
                Ok(None)
            }
            DiskOp::Flush if self.no_cache => Err(Errno::EOPNOTSUPP),
            DiskOp::Flush => Ok(None),
        };
        if self.no_cache {
            self.durable.1.copy_from_slice(&self.contents[..BLOCK]);
        } else if let Some(covers) = covers.filter(|covers| covers.0 > self.durable.0) {
            self.durable = covers;
        }
        (id, result)
    }

    /// What must be there at any time.
    ///
    /// # Panics
    /// The provider is not what it was created as any more.
    pub fn check(&mut self) {
        if !std::mem::take(&mut self.touched) {
            return;
        }
        for metadata in [self.metadata(), self.durable_metadata()] {
            let made = |metadata: &Metadata| {
                let Metadata { datasize, extentsize, keepdirty, localoff, .. } = *metadata;
                (metadata.resource.clone(), datasize, extentsize, keepdirty, localoff)
            };
            assert_eq!(made(&metadata), made(&self.created), "what `create` wrote stays");
        }
    }
}

fn read(contents: &[u8]) -> Metadata {
    Metadata::read(contents).expect("the metadata can be read at any time").metadata
}

fn map_range(layout: &Layout) -> Range<usize> {
    let start = usize::try_from(layout.map_offset()).unwrap();
    start..start + usize::try_from(layout.map_bytes()).unwrap()
}

fn data_range(layout: &Layout) -> Range<usize> {
    let start = usize::try_from(layout.localoff()).unwrap();
    start..start + usize::try_from(layout.datasize()).unwrap()
}

fn overlap(one: &Range<u64>, other: &Range<u64>) -> bool {
    one.start < other.end && other.start < one.end
}

/// Where an operation goes: a range of the data area, or None for the engine's own writes and flushes.
fn place(op: &DiskOp, layout: &Layout) -> Option<Range<u64>> {
    let (offset, length) = match op {
        DiskOp::Read { offset, length } => (*offset, u64::from(*length)),
        DiskOp::Write { offset, data } => (*offset, data.len() as u64),
        DiskOp::Delete { offset, length } => (*offset, *length),
        DiskOp::Flush => return None,
    };
    let end = offset.checked_add(length).expect("no end overflows");
    let sector = u64::from(layout.sectorsize());
    assert!(length > 0 && offset % sector == 0 && length % sector == 0, "whole sectors: {offset}, {length}");
    if matches!(op, DiskOp::Write { .. }) && offset < layout.localoff() {
        let map = layout.map_offset()..layout.map_offset() + layout.map_bytes();
        let is_metadata = end <= map.start;
        let is_map = offset >= map.start && end <= map.end;
        assert!(is_metadata || is_map, "a write at {offset} to {end} is neither metadata nor map nor data");
        return None;
    }
    assert!(offset >= layout.localoff(), "{op:?} begins before the data area");
    let place = offset - layout.localoff()..end - layout.localoff();
    assert!(place.end <= layout.datasize(), "{op:?} ends after the data area");
    Some(place)
}

/// Metadata as any past may have left it.
fn metadata(source: &mut Source<'_>, layout: &Layout) -> Metadata {
    let extents = u32::try_from(layout.nextents()).unwrap();
    let run = |source: &mut Source<'_>| Run {
        first: u32::from(source.byte()) % (extents + 2),
        count: u32::from(source.byte()) % (extents + 2),
    };
    let mut extension = Extension::default();
    if source.flag() {
        let generation = source.count().max(1);
        extension = Extension {
            generation,
            connection_localcnt: generation - 1, // a count like any other
            mark: source.one_in(4).then(|| Mark { since: source.number(), by: "peer".into() }),
            target: source.one_in(4),
            full_sync_owed: source.one_in(4),
            stale: (0..source.below(4)).map(|_| run(source)).collect(),
            boot: [source.byte(); 16],
            peer_boot: [source.byte() & 3; 16],
            parted: source.choose(&[0, 1, 2]),
            given_up: source.choose(&[0, 0, RESUID]),
            connection: met(source).last,
            connection_before: met(source).before,
            possibly_behind: source.one_in(4),
            unsure: source.one_in(4),
            map_complete: source.one_in(2),
        };
    }
    Metadata {
        resource: "disk0".into(),
        datasize: layout.datasize(),
        extentsize: layout.extentsize(),
        keepdirty: u32::from(source.byte() % 8) + 1,
        localoff: layout.localoff(),
        resuid: source.choose(&[0, RESUID, RESUID, RESUID, u64::MAX]),
        localcnt: source.count(),
        remotecnt: source.count(),
        prevrole: source.choose(&[Role::Init, Role::Primary, Role::Secondary]),
        extension,
    }
}

/// Settings as hast.conf may have them.
pub fn settings(source: &mut Source<'_>) -> Settings {
    let modes = [Replication::Fullsync, Replication::Memsync, Replication::Async];
    Settings {
        replication: source.choose(&modes),
        timeout: Duration::from_secs(source.choose(&[20, 20, 1, 600])),
        metaflush: !source.one_in(4),
        remote: !source.one_in(16),
        peer: "peer".into(),
        peer_timeout: Duration::from_secs(source.choose(&[5, 1, 60, u32::MAX.into()])),
    }
}

/// What a fresh secondary may hold from before.
pub fn former(source: &mut Source<'_>, layout: &Layout) -> Bitmap {
    let extents = u32::try_from(layout.nextents()).unwrap();
    if source.flag() { Bitmap::full(extents) } else { Bitmap::new(extents) }
}

/// What a node knows of itself.
pub fn host(source: &mut Source<'_>) -> Host {
    let byte = source.byte();
    let deletes = if byte & 4 == 0 { Deletes::LeaveZeros } else { Deletes::Refused };
    Host { boot: [byte & 3; 16], wall: 1_800_000_000, deletes }
}

/// Generations that a node may have stored: few, so that two nodes often have one in common.
pub fn met(source: &mut Source<'_>) -> Met {
    Met {
        last: source.choose(&[0, 1 << 32, (1 << 32) + 1, 2 << 32, u64::MAX]),
        before: source.choose(&[0, 1 << 32, u64::MAX]),
    }
}
