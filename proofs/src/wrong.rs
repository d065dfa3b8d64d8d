//! Wrong variants of the code, each wrong in one thing. That the harnesses fail over them shows that they can.

use hast_engine::{Counts, Decision, Hello, MapToSend, RangeQueue, decide};
use hast_format::activemap::{Activemap, Outcome};
use hast_format::bitmap::Bitmap;
use hast_format::layout::{Layout, LayoutError};
use hast_format::metadata::{BlockState, Metadata, MetadataError, Reading};
use hast_format::nv::{List, Pair};
use hast_net::handshake::SyncSource;

use crate::layout::Parts;
use crate::nv::Value;
use crate::{activemap, bits, handshake, layout, metadata, nv, queue};

/// Types that are a subject with some methods of their own.
macro_rules! wrong {
    ($($Name:ident: $Subject:path { $($body:tt)* })*) => {
        $(
            #[derive(Clone, Copy, Debug)]
            #[allow(missing_docs)]
            pub struct $Name;
            impl $Subject for $Name { $($body)* }
        )*
    };
}

wrong! {
    NoOddMedia: layout::Subject {
        fn create(mediasize: u64, sectorsize: u32, extentsize: u32) -> Option<Layout> {
            let whole = mediasize.is_multiple_of(u64::from(sectorsize));
            Layout::create(mediasize, sectorsize, extentsize).ok().filter(|_| whole)
        }
    }
    HugeExtents: layout::Subject {
        fn create(mediasize: u64, sectorsize: u32, extentsize: u32) -> Option<Layout> {
            Layout::create(mediasize, sectorsize, extentsize.min(1 << 30)).ok()
        }
    }
    DataTooLong: layout::Subject {
        fn parts(layout: &Layout) -> Parts {
            let parts = layout::Real::parts(layout);
            Parts { datasize: parts.datasize + 1, ..parts }
        }
    }
    MapTooLong: layout::Subject {
        fn parts(layout: &Layout) -> Parts {
            let parts = layout::Real::parts(layout);
            Parts { map_bytes: parts.map_bytes + 8, ..parts }
        }
    }
    ExtentBefore: layout::Subject {
        fn extents_of(layout: &Layout, offset: u64, length: u64) -> core::ops::Range<u32> {
            let extents = layout.extents_of(offset, length);
            extents.start.saturating_sub(1)..extents.end.max(2) - 1
        }
    }
    NoShortExtent: layout::Subject {
        fn extent_range(layout: &Layout, extent: u32) -> (u64, u32) {
            (layout.extent_range(extent).0, layout.extentsize())
        }
    }
    NoKeepdirty: layout::Subject {
        fn open(metadata: &Metadata, provider: u64, sectorsize: u32) -> Option<Layout> {
            let keepdirty = metadata.keepdirty.max(1);
            Layout::open(&Metadata { keepdirty, ..metadata.clone() }, provider, sectorsize).ok()
        }
    }
    PastTheEnd: layout::Subject {
        fn open(metadata: &Metadata, provider: u64, sectorsize: u32) -> Option<Layout> {
            match Layout::open(metadata, provider, sectorsize) {
                Err(LayoutError::PastEnd { .. }) => {
                    Layout::open(metadata, provider.saturating_add(sectorsize.into()), sectorsize).ok()
                }
                layout => layout.ok(),
            }
        }
    }
    MapInData: layout::Subject {
        fn open(metadata: &Metadata, provider: u64, sectorsize: u32) -> Option<Layout> {
            match Layout::open(metadata, provider, sectorsize) {
                Err(LayoutError::MapPastData { .. }) => Layout::create(provider, sectorsize, metadata.extentsize).ok(),
                layout => layout.ok(),
            }
        }
    }
    LastSectorOut: layout::Subject {
        fn accepts(layout: &Layout, offset: u64, length: u64) -> bool {
            layout.check_range(offset, length).is_ok() && offset + length < layout.datasize()
        }
    }
    EndWraps: layout::Subject {
        fn accepts(layout: &Layout, offset: u64, length: u64) -> bool {
            let sector = u64::from(layout.sectorsize());
            let whole = offset.is_multiple_of(sector) && length.is_multiple_of(sector);
            length > 0 && whole && offset.wrapping_add(length) <= layout.datasize()
        }
    }
    EmptyRequests: layout::Subject {
        fn accepts(layout: &Layout, offset: u64, length: u64) -> bool {
            length == 0 || layout.check_range(offset, length).is_ok()
        }
    }
    OddLengths: layout::Subject {
        fn accepts(layout: &Layout, offset: u64, length: u64) -> bool {
            let sector = u64::from(layout.sectorsize());
            layout.check_range(offset, length.checked_next_multiple_of(sector).unwrap_or(length)).is_ok()
        }
    }
    LastExtentOut: layout::Subject {
        fn extents_of(layout: &Layout, offset: u64, length: u64) -> core::ops::Range<u32> {
            let extents = layout.extents_of(offset, length);
            extents.start..extents.end.max(extents.start + 2) - 1
        }
    }
    Reversed: nv::Subject {
        fn write(pairs: &[(&str, Value)]) -> Vec<u8> {
            let mut pairs = pairs.to_vec();
            pairs.reverse();
            nv::Real::write(&pairs)
        }
    }
    LastWins: nv::Subject {
        fn look_up(list: &List<'_>, name: &str) -> Option<Value> {
            let bytes = list.as_bytes();
            let last = (0..bytes.len()).rev().find_map(|at| {
                List::parse(&bytes[at..]).ok().and_then(|list| nv::Real::look_up(&list, name))
            });
            last.or_else(|| nv::Real::look_up(list, name))
        }
    }
    AnyWidth: nv::Subject {
        fn look_up(list: &List<'_>, name: &str) -> Option<Value> {
            match nv::Real::look_up(list, name) {
                Some(Value::U32(value)) => Some(Value::U64(value.into())),
                found => found,
            }
        }
    }
    Leftover: nv::Subject {
        fn parse(bytes: &[u8]) -> Option<(&[u8], Vec<Pair<'_>>)> {
            let shorter = bytes.get(..bytes.len().saturating_sub(1)).unwrap_or_default();
            nv::Real::parse(bytes).or_else(|| nv::Real::parse(shorter))
        }
    }
    LastDropped: nv::Subject {
        fn parse(bytes: &[u8]) -> Option<(&[u8], Vec<Pair<'_>>)> {
            (0..=bytes.len()).rev().find_map(|end| nv::Real::parse(&bytes[..end]))
        }
    }
    SizeWraps: nv::Subject {
        fn parse(bytes: &[u8]) -> Option<(&[u8], Vec<Pair<'_>>)> {
            let wraps = bytes.get(3..6) == Some(&[0xff; 3][..]) && bytes.get(2).is_some_and(|low| *low > 0xf8);
            if wraps { Some((&bytes[..0], Vec::new())) } else { nv::Real::parse(bytes) }
        }
    }
    AnyType: nv::Subject {
        fn parse(bytes: &[u8]) -> Option<(&[u8], Vec<Pair<'_>>)> {
            let known = bytes.first().is_none_or(|code| (0..=17).contains(&(code & 0x7f)));
            let found = nv::Real::parse(bytes);
            found.or_else(|| if known { None } else { Some((&bytes[..0], Vec::new())) })
        }
    }
    NoArea: metadata::Subject {
        fn encode(metadata: &Metadata) -> [u8; 4096] {
            let mut bare = metadata.clone();
            bare.extension.generation = 0;
            bare.encode()
        }
    }
    NoMark: metadata::Subject {
        fn encode(metadata: &Metadata) -> [u8; 4096] {
            let mut unmarked = metadata.clone();
            unmarked.extension.mark = None;
            unmarked.encode()
        }
    }
    NoList: metadata::Subject {
        fn encode(metadata: &Metadata) -> [u8; 4096] {
            let mut block = metadata.encode();
            block[..512].fill(0);
            block
        }
    }
    Exchanged: metadata::Subject {
        fn decode(block: &[u8]) -> Result<Metadata, MetadataError> {
            let read = Metadata::decode(block)?;
            Ok(Metadata { localcnt: read.remotecnt, remotecnt: read.localcnt, ..read })
        }
    }
    ListFirst: metadata::Subject {
        fn writes(metadata: &Metadata, sectorsize: u32) -> Vec<(u64, Vec<u8>)> {
            let mut writes = metadata.writes(sectorsize);
            let area = writes.remove(0);
            // What is repaired, and what is in one part, stays as it is; of the rest, first the old half is gone.
            if let Some((_, list)) = writes.first_mut() {
                list[1024] ^= 0xff;
            }
            writes.push(area);
            writes
        }
    }
    AtOnce: metadata::Subject {
        fn writes(metadata: &Metadata, _: u32) -> Vec<(u64, Vec<u8>)> {
            vec![(0, metadata.encode().to_vec())]
        }
    }
    OnlyList: metadata::Subject {
        fn read(block: &[u8]) -> Result<Reading, MetadataError> {
            Ok(Reading { metadata: Metadata::decode(block)?, state: BlockState::NoArea })
        }
    }
    MostFirst: bits::Subject {
        fn bytes(map: &Bitmap, count: usize) -> Vec<u8> {
            map.bytes(0..count).into_iter().map(u8::reverse_bits).collect()
        }
    }
    BigEndian: bits::Subject {
        fn bytes(map: &Bitmap, count: usize) -> Vec<u8> {
            let mut bytes = map.bytes(0..count);
            bytes.chunks_mut(8).for_each(<[u8]>::reverse);
            bytes
        }
    }
    Padding: bits::Subject {
        fn from_bytes(bits: u32, bytes: &[u8]) -> Bitmap {
            Bitmap::from_bytes(bits.next_multiple_of(8), bytes)
        }
    }
    Again: bits::Subject {
        fn change(map: &mut Bitmap, bit: u32, set: bool) -> bool {
            map.remove(bit);
            if set { map.insert(bit) } else { false }
        }
    }
    NextAfter: bits::Subject {
        fn next_from(map: &Bitmap, from: u32) -> Option<u32> {
            map.next_from(from + 1)
        }
    }
    AtOnceIssued: activemap::Subject {
        fn is_durable(_: &Activemap, _: u32) -> bool {
            true
        }
    }
    NoFlush: activemap::Subject {
        fn finish(map: &mut Activemap, extent: u32, outcome: Outcome) {
            let kept = if outcome == Outcome::StoredOnBoth { Outcome::NotIssued } else { outcome };
            map.finish(extent..extent + 1, kept);
        }
    }
    CopyForgotten: activemap::Subject {
        fn copied(map: &mut Activemap, extent: u32) {
            map.copied(extent);
            map.flush_begins();
            map.flush_succeeded();
        }
    }
    LossIgnored: activemap::Subject {
        fn peer_lost(map: &mut Activemap) {
            map.flush_failed();
        }
    }
    FailedFlush: activemap::Subject {
        fn flush_ended(map: &mut Activemap, _: bool) {
            map.flush_succeeded();
        }
    }
    LateFlush: activemap::Subject {
        fn flush_ended(map: &mut Activemap, succeeded: bool) {
            map.flush_begins();
            activemap::Real::flush_ended(map, succeeded);
        }
    }
    FailedMapWrite: activemap::Subject {
        fn end_write(map: &mut Activemap, _: bool) {
            map.end_write(true);
        }
    }
    NotMerged: activemap::Subject {
        fn merge(_: &mut Activemap, _: &Bitmap) {}
    }
    OneMoreDirty: activemap::Subject {
        fn keepdirty(wanted: u32) -> u32 {
            wanted + 1
        }
    }
    NoL20: handshake::Subject {
        fn decide(hello: Hello, resuid: u64, counts: Counts, _: bool) -> Decision {
            decide(hello, resuid, counts, false)
        }
    }
    AheadIsRight: handshake::Subject {
        fn decide(hello: Hello, resuid: u64, counts: Counts, written: bool) -> Decision {
            if resuid != 0 && resuid == hello.resuid && counts.local > hello.counts.remote {
                let source = SyncSource::Secondary;
                return Decision::Accept { adopt: false, map: MapToSend::Own, source };
            }
            decide(hello, resuid, counts, written)
        }
    }
    AnyId: handshake::Subject {
        fn decide(hello: Hello, resuid: u64, counts: Counts, written: bool) -> Decision {
            decide(Hello { resuid: hello.resuid.max(1), ..hello }, resuid, counts, written)
        }
    }
    EvenSplit: handshake::Subject {
        fn decide(hello: Hello, resuid: u64, counts: Counts, written: bool) -> Decision {
            let found = decide(hello, resuid, counts, written);
            let ahead = [(counts.local, hello.counts.remote), (hello.counts.local, counts.remote)]
                .map(|(is, was)| is.wrapping_sub(was));
            if found == Decision::SplitBrain && ahead[0] != ahead[1] {
                let source = if ahead[0] > ahead[1] { SyncSource::Secondary } else { SyncSource::Primary };
                return Decision::Accept { adopt: false, map: MapToSend::Own, source };
            }
            found
        }
    }
    HigherIsRight: handshake::Subject {
        fn decide(hello: Hello, resuid: u64, counts: Counts, written: bool) -> Decision {
            match decide(hello, resuid, counts, written) {
                Decision::Accept { adopt: false, map: MapToSend::Full, .. } => {
                    let ahead = counts.local > hello.counts.local;
                    let source = if ahead { SyncSource::Secondary } else { SyncSource::Primary };
                    Decision::Accept { adopt: false, map: MapToSend::Own, source }
                }
                found => found,
            }
        }
    }
}

/// A wrong queue is one that asks the right one something else.
macro_rules! wrong_queues {
    ($($Name:ident { $($body:tt)* })*) => {
        $(
            #[derive(Clone, Debug, Default)]
            #[allow(missing_docs)]
            pub struct $Name(RangeQueue);
            impl queue::Subject for $Name {
                $($body)*
                fn len(&self) -> usize {
                    self.0.len()
                }
            }
        )*
    };
}

wrong_queues! {
    Overtaking {
        fn insert(&mut self, key: u64, start: u64, end: u64, shared: bool) -> bool {
            // A read of one byte has no time to wait.
            queue::Subject::insert(&mut self.0, key, start, end, shared) || (shared && end == start + 1)
        }
        fn release(&mut self, key: u64, ready: &mut Vec<u64>) {
            queue::Subject::release(&mut self.0, key, ready);
        }
    }
    AllShare {
        fn insert(&mut self, key: u64, start: u64, end: u64, _: bool) -> bool {
            queue::Subject::insert(&mut self.0, key, start, end, true)
        }
        fn release(&mut self, key: u64, ready: &mut Vec<u64>) {
            queue::Subject::release(&mut self.0, key, ready);
        }
    }
    NoSharing {
        fn insert(&mut self, key: u64, start: u64, end: u64, _: bool) -> bool {
            queue::Subject::insert(&mut self.0, key, start, end, false)
        }
        fn release(&mut self, key: u64, ready: &mut Vec<u64>) {
            queue::Subject::release(&mut self.0, key, ready);
        }
    }
    Starving {
        fn insert(&mut self, key: u64, start: u64, end: u64, shared: bool) -> bool {
            queue::Subject::insert(&mut self.0, key, start, end, shared)
        }
        fn release(&mut self, key: u64, _: &mut Vec<u64>) {
            queue::Subject::release(&mut self.0, key, &mut Vec::new());
        }
    }
    LastCome {
        fn insert(&mut self, key: u64, start: u64, end: u64, shared: bool) -> bool {
            queue::Subject::insert(&mut self.0, key, start, end, shared)
        }
        fn release(&mut self, key: u64, ready: &mut Vec<u64>) {
            queue::Subject::release(&mut self.0, key, ready);
            ready.reverse();
        }
    }
}
