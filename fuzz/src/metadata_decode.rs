//! The metadata block with its extension area: read from arbitrary bytes, and from blocks of ours that one
//! sector of was damaged.

use hast_format::extension::{Extension, Mark, Run};
use hast_format::layout::Layout;
use hast_format::metadata::{BlockState, Metadata, Role};

use crate::source::Source;

/// Bytes in the block.
const BLOCK: usize = 4096;
/// Where the extension area, and the copy of it beside the list, begin; each is 1024 bytes, the last four of
/// which are the CRC.
const AREAS: [usize; 2] = [1024, 3072];

/// The first byte says what the rest is: a block as it is, one whose areas get good checksums, or a script that
/// makes a block and damages it.
pub fn run(data: &[u8]) {
    let Some((kind, rest)) = data.split_first() else { return };
    match kind % 3 {
        0 => read(&raw(rest)),
        1 => {
            let mut block = raw(rest);
            for start in AREAS {
                let (covered, crc) = block[start..start + 1024].split_at_mut(1020);
                crc.copy_from_slice(&crc32c(covered).to_le_bytes());
            }
            read(&block);
        }
        _ => script(&mut Source::new(rest)),
    }
    // Fewer bytes than a block has are none.
    assert!(Metadata::read(&rest[..rest.len().min(BLOCK - 1)]).is_err());
}

fn raw(bytes: &[u8]) -> Vec<u8> {
    let mut block = bytes[..bytes.len().min(BLOCK)].to_vec();
    block.resize(BLOCK, 0);
    block
}

/// CRC-32C bit by bit: not the table that the format's own code uses.
fn crc32c(bytes: &[u8]) -> u32 {
    let bit = |crc: u32| if crc & 1 == 1 { crc >> 1 ^ 0x82f6_3b78 } else { crc >> 1 };
    !bytes.iter().fold(!0, |crc, byte| (0..8).fold(crc ^ u32::from(*byte), |crc, _| bit(crc)))
}

/// Whatever is read can be saved, and is then read as it was.
pub fn read(block: &[u8]) {
    let Ok(reading) = Metadata::read(block) else { return };
    assert!(!reading.state.to_string().is_empty());
    check(&reading.metadata);
    if let Ok(listed) = Metadata::decode(block) {
        check(&listed);
    }
}

fn check(metadata: &Metadata) {
    assert!(metadata.resource.len() <= 254);
    assert!(metadata.extension.stale.len() <= 32);
    let block = metadata.encode();
    let again = Metadata::read(&block).expect("a block of ours");
    assert_eq!(again.metadata, *metadata, "saved and read again");
    assert!(again.state.is_sound());
    if metadata.extension.generation == 0 {
        assert_eq!(metadata.extension, Extension::default(), "without an area there is nothing in it");
        assert_eq!(again.state, BlockState::NoArea);
    }
    check_writes(metadata, &block);
    for sector in [512, 4096] {
        for size in [metadata.localoff.saturating_add(metadata.datasize), 64 << 20, 0] {
            check_layout(metadata, size, sector);
        }
    }
}

/// The writes of a save put the block together, and stay inside it.
fn check_writes(metadata: &Metadata, block: &[u8; BLOCK]) {
    for sector in [512, 1024, 4096] {
        let mut disk = [0x5a; BLOCK];
        for (offset, bytes) in metadata.writes(sector) {
            let offset = usize::try_from(offset).unwrap();
            assert!(offset.is_multiple_of(sector as usize) && bytes.len().is_multiple_of(sector as usize));
            disk[offset..offset + bytes.len()].copy_from_slice(&bytes);
        }
        assert!(disk == *block);
    }
}

/// Nothing overlaps and nothing is outside, or the provider is refused.
fn check_layout(metadata: &Metadata, size: u64, sector: u32) {
    let Ok(layout) = Layout::open(metadata, size, sector) else { return };
    let end = |start: u64, length: u64| start.checked_add(length).expect("no end overflows");
    assert!(end(layout.map_offset(), layout.map_bytes()) <= layout.localoff());
    assert!(end(layout.localoff(), layout.datasize()) <= size);
    let extents = layout.nextents();
    assert!(extents > 0 && extents.div_ceil(8) <= layout.map_bytes());
    let last = layout.datasize() - u64::from(sector);
    assert_eq!(layout.check_range(last, sector.into()), Ok(()));
    assert!(layout.check_range(layout.datasize(), sector.into()).is_err());
    let touched = layout.extents_of(last, sector.into());
    assert_eq!(u64::from(touched.end), extents, "the last byte is in the last extent");
}

/// A block of ours, of which one sector is not what was written.
fn script(source: &mut Source<'_>) {
    let metadata = metadata(source);
    check(&metadata);
    let block = metadata.encode();
    let sector = source.choose(&[512, 1024]);
    let start = source.below(BLOCK / sector) * sector;
    let mut damaged = block;
    let touched = &mut damaged[start..start + sector];
    match source.below(4) {
        0 => touched.fill(0),
        1 => touched.fill(source.byte()),
        // A torn save leaves the end of what was there before.
        2 => touched[source.below(256) * 2..].fill(0),
        // A burst that a CRC notices for certain.
        _ => {
            let at = usize::from(source.number::<u16>()) % (sector - 3);
            let burst = source.number::<u32>();
            for (byte, with) in touched[at..].iter_mut().zip(burst.to_le_bytes()) {
                *byte ^= with;
            }
        }
    }
    read(&damaged);
    if metadata.extension.generation > 0 {
        let reading = Metadata::read(&damaged).expect("one sector can be made up for");
        assert_eq!(reading.metadata, metadata, "found {}", reading.state);
        assert!(reading.state.is_sound() <= (damaged == block), "damage is noticed");
    }
}

/// Metadata as a node may have saved it.
pub fn metadata(source: &mut Source<'_>) -> Metadata {
    let generation = source.count();
    let mut extension = Extension {
        generation,
        connection_localcnt: generation, // a number like any other
        mark: source.flag().then(|| Mark { since: source.number(), by: cut(source.text(), 63) }),
        target: source.flag(),
        full_sync_owed: source.flag(),
        stale: (0..source.below(33))
            .map(|_| Run { first: source.number(), count: source.number() })
            .collect(),
        boot: [source.byte(); 16],
        peer_boot: [source.byte(); 16],
        parted: source.number(),
        given_up: source.number(),
        connection: source.number(),
        connection_before: source.number(),
        possibly_behind: source.flag(),
        unsure: source.flag(),
        map_complete: source.flag(),
    };
    if extension.generation == 0 {
        extension = Extension::default();
    }
    Metadata {
        resource: cut(source.text().replace('\0', ""), 254),
        datasize: source.number(),
        extentsize: source.number(),
        keepdirty: source.number(),
        localoff: source.number(),
        resuid: source.number(),
        localcnt: source.number(),
        remotecnt: source.number(),
        prevrole: source.choose(&[Role::Init, Role::Primary, Role::Secondary]),
        extension,
    }
}

/// `text`, at most so many bytes of it.
fn cut(mut text: String, length: usize) -> String {
    text.truncate(text.floor_char_boundary(length));
    text
}
