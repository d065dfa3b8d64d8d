//! The metadata block as a whole: 4096 bytes that survive a torn or corrupt sector, and that the original can
//! still read and rewrite (spec: extensions, "Disk" and "Torn writes"; L7, L8).
//!
//! ```text
//! 0        list of nine pairs, at most 510 bytes     the original's; it writes zeros behind it
//! 1024     copy of the extension area                written together with the list
//! 3072     extension area                            written, and flushed, before the list
//! 4096
//! ```
//!
//! List, copy and area are in sectors of their own as long as sectors have at most 1024 bytes. While the area
//! is being written, list and copy hold the earlier state; while those are being written, the area holds the
//! later one: whatever a crash leaves half done, one of the two is whole. A single area would not do: what is
//! stored nowhere else, the mark above all, would be gone whenever the area is torn.
//!
//! The original reads the list alone, and zeroes everything else whenever it writes. Then only the list
//! counts.

use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;
use core::fmt;
use core::ops::Range;

use crate::extension::{self, AREA, Found, Mark};
use crate::layout::METADATA_SIZE;
use crate::metadata::{Metadata, MetadataError};
use crate::nv;
use crate::rule::{Rule, keeps};

/// Bytes of the block.
const BLOCK: usize = METADATA_SIZE as usize;
/// Where the copy of the area begins: behind the list, and, even with 2048 bytes per sector, not in the
/// area's sector.
const COPY_OFFSET: usize = 1024;
/// Where the area begins. What is before it is written at once: the *list part*.
const AREA_OFFSET: usize = BLOCK - AREA;

/// A byte that neither an area with its check sum nor the beginning of a list is full of, nor what is between them.
const DAMAGE: u8 = 0xff;

/// What a metadata block says, and where that was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reading {
    /// Core fields and extension.
    pub metadata: Metadata,
    /// Which parts of the block were good.
    pub state: BlockState,
}

/// In what state a metadata block was found.
///
/// Of a block that [is not sound](BlockState::is_sound), what was read has to be saved, unchanged, before
/// anything else is: a save protects the state before it only if list part and area both hold that.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum BlockState {
    /// There is no area: the original, or `create`, wrote the block. The list was used.
    NoArea,
    /// All parts say the same.
    Whole,
    /// The list is of an earlier state, because a save was cut off after the area. The area was used.
    AreaNewer,
    /// The list, or what follows it, is not what was written. The area was used.
    ListDamaged,
    /// The area is damaged, of an earlier state than the list, or another provider's. The copy beside the
    /// list was used: nothing is lost.
    AreaDamaged,
    /// Neither area nor copy can be used. The list was: what a reference would know. If that is because they cannot be
    /// read, the node counts as out of date ([`Metadata::read_around`]).
    AreaLost,
    /// There is no area, and something that says nothing cannot be read. The list was used: nothing is lost.
    RestUnreadable,
}

impl BlockState {
    /// Whether nothing had to be recovered.
    #[must_use]
    pub fn is_sound(self) -> bool {
        matches!(self, BlockState::NoArea | BlockState::Whole)
    }
}

/// What is wrong and what was used, as the end of a sentence.
impl fmt::Display for BlockState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            BlockState::NoArea => "there is no extension area; the list was used",
            BlockState::Whole => "list and extension area agree",
            BlockState::AreaNewer => {
                "the list is of an earlier state (a save was cut off); the extension area was used"
            }
            BlockState::ListDamaged => "the list or what follows it is damaged; the extension area was used",
            BlockState::AreaDamaged => {
                "the extension area is damaged or outdated; its copy beside the list was used"
            }
            BlockState::AreaLost => {
                "the extension area and its copy are damaged; the list was used, and whether the node was \
                 inconsistent or had stale extents is lost"
            }
            BlockState::RestUnreadable => {
                "a part of the block that says nothing cannot be read; the list was used"
            }
        })
    }
}

impl Metadata {
    /// Reads a metadata block, the first 4096 bytes of `block`, and recovers what can be.
    ///
    /// One sector that is torn, corrupt, not written or another provider's is noticed, and made up for if
    /// sectors have at most 1024 bytes. (Whether the block as a whole is another provider's, the name says.)
    ///
    /// # Errors
    ///
    /// When list, area and copy are all unusable, and when an intact area is none that this version
    /// understands.
    pub fn read(block: &[u8]) -> Result<Reading, MetadataError> {
        let block = block.get(..BLOCK).ok_or(MetadataError::Short { length: block.len() })?;
        if !keeps(Rule::L8) {
            return Ok(Reading { metadata: Metadata::decode(block)?, state: BlockState::NoArea });
        }
        let (list_part, area) = block.split_at(AREA_OFFSET);
        let copy = list_part.get(COPY_OFFSET..).and_then(|rest| rest.get(..AREA)).unwrap_or_default();
        let (metadata, state) = match (extension::decode(area)?, extension::decode(copy)?) {
            (Found::Valid(area), copy) => weigh(area, copy, list_part),
            // The copy is of one write with the list. If they differ, an original, or a fault, was at them since.
            (_, Found::Valid(copy)) => match Metadata::decode(block) {
                Ok(list) if copy.core() != list.core() => (list, BlockState::AreaLost),
                _ => (copy, BlockState::AreaDamaged),
            },
            (Found::Absent, Found::Absent) => (Metadata::decode(block)?, BlockState::NoArea),
            _ => (Metadata::decode(block)?, BlockState::AreaLost),
        };
        Ok(Reading { metadata, state })
    }

    /// The same of a block of which some bytes could not be read from the disk: `unreadable`, as ranges of it. They
    /// count as damaged, whatever they are in `block`. If neither area nor copy is left of what was there, nobody knows
    /// whether the node was out of date, or what was stale there: it is out of date then, by a
    /// [mark](extension::Extension::mark) without a time.
    ///
    /// # Errors
    ///
    /// As [`read`](Metadata::read).
    pub fn read_around(block: &[u8], unreadable: &[Range<usize>]) -> Result<Reading, MetadataError> {
        if unreadable.is_empty() {
            return Metadata::read(block);
        }
        let mut block = block.to_vec();
        for range in unreadable {
            if let Some(bytes) = block.get_mut(range.clone()) {
                bytes.fill(DAMAGE);
            }
        }
        let mut reading = Metadata::read(&block)?;
        if reading.state.is_sound() {
            reading.state = BlockState::RestUnreadable;
        }
        if reading.state == BlockState::AreaLost && has_area(&block) && keeps(Rule::A3) {
            reading.metadata = without_area(reading.metadata);
        }
        Ok(reading)
    }

    /// The whole block. The list takes at most its first 510 bytes, so that it lies within one sector; area
    /// and copy are there if the extension has a generation; the rest is zero.
    ///
    /// A resource name longer than [`RESOURCE_NAME_MAX`](crate::metadata::RESOURCE_NAME_MAX) cannot come from
    /// a configuration or a block; it is written cut off, so that the provider would be refused rather than
    /// misread.
    pub fn encode(&self) -> [u8; BLOCK] {
        let list = self.list();
        let mut block = [0; BLOCK];
        put(&mut block, 0, list.as_bytes());
        if self.extension.generation > 0 {
            let area = extension::encode(self);
            put(&mut block, COPY_OFFSET, &area);
            put(&mut block, AREA_OFFSET, &area);
        }
        block
    }

    /// How the block is saved on a disk with such sectors: what to write where, in this order, each durable
    /// (written and flushed) before the next begins.
    ///
    /// The save holds when the last one is durable. If one fails, what the disk will say later is this state
    /// or the one before; all of them have to be repeated before any other state is saved.
    ///
    /// Over a block without an area, 4096-byte sectors must not tear: there is nothing yet to notice it by.
    pub fn writes(&self, sectorsize: u32) -> Vec<(u64, Vec<u8>)> {
        let block = self.encode();
        let mut writes = in_two(&block, sectorsize);
        writes.reverse();
        if self.extension.generation == 0 { vec![(0, block.to_vec())] } else { writes }
    }

    /// How a block is made none on a disk with such sectors, as [`writes`](Self::writes) says it: until that is
    /// complete, the block reads as it did, marks included, or not at all.
    pub fn erasing_writes(sectorsize: u32) -> Vec<(u64, Vec<u8>)> {
        in_two(&[0; BLOCK], sectorsize)
    }

    /// What stays the same from `create` to `create`.
    fn is_of_same_provider(&self, other: &Metadata) -> bool {
        let made = |m: &Metadata| (m.datasize, m.extentsize, m.keepdirty, m.localoff);
        let resuid = self.resuid == other.resuid || self.resuid == 0 || other.resuid == 0;
        self.resource == other.resource && made(self) == made(other) && resuid
    }
}

/// The block in two writes, the list first and the area last. In one, if they share a sector.
fn in_two(block: &[u8; BLOCK], sectorsize: u32) -> Vec<(u64, Vec<u8>)> {
    let last = usize::try_from(sectorsize).unwrap_or(BLOCK).clamp(AREA, BLOCK);
    let (first, last) = block.split_at(BLOCK.saturating_sub(last));
    let writes = [(0, first.to_vec()), (first.len() as u64, last.to_vec())];
    writes.into_iter().filter(|(_, bytes)| !bytes.is_empty()).collect()
}

/// Decides between a good area and the list part.
fn weigh(area: Metadata, copy: Found, list_part: &[u8]) -> (Metadata, BlockState) {
    if is_list_part_of(list_part, &area) {
        return (area, BlockState::Whole);
    }
    match copy {
        Found::Valid(copy) if is_list_part_of(list_part, &copy) => {
            // List and copy vouch for each other.
            if copy.extension.generation > area.extension.generation || !copy.is_of_same_provider(&area) {
                (copy, BlockState::AreaDamaged)
            } else {
                (area, BlockState::AreaNewer)
            }
        }
        Found::Absent if is_only_a_list(list_part) => (area, BlockState::AreaNewer),
        _ => (area, BlockState::ListDamaged),
    }
}

/// Whether an area was saved, with its copy, whatever is left of them.
fn has_area(block: &[u8]) -> bool {
    let zeros = |from: usize| block.iter().skip(from).take(AREA).all(|byte| *byte == 0);
    !zeros(AREA_OFFSET) && !zeros(COPY_OFFSET)
}

/// What the list says of a node of which nothing else is known. One that has not met another node yet is not behind it.
fn without_area(mut list: Metadata) -> Metadata {
    if list.resuid != 0 {
        list.extension.generation = 1;
        list.extension.mark = Some(Mark { since: 0, by: String::new() });
    }
    list
}

/// Whether that is exactly what is saved before the area of `metadata`.
fn is_list_part_of(list_part: &[u8], metadata: &Metadata) -> bool {
    metadata.encode().get(..AREA_OFFSET) == Some(list_part)
}

/// Whether there is metadata and nothing else: what the first save of an area finds.
fn is_only_a_list(list_part: &[u8]) -> bool {
    let Ok(list) = nv::List::parse(list_part) else { return false };
    let rest = list_part.get(list.as_bytes().len()..).unwrap_or_default();
    !list.is_empty() && rest.iter().all(|byte| *byte == 0)
}

/// Copies `bytes` to where they lie within the block.
fn put(block: &mut [u8; BLOCK], offset: usize, bytes: &[u8]) {
    if let Some(to) = block.get_mut(offset..offset.saturating_add(bytes.len())) {
        to.copy_from_slice(bytes);
    }
}
