//! Metadata: what is written is read back, by us with the extension area and without, by a reference without it.

use hast_format::extension::{Extension, MARK_BY_MAX, Mark, Run, STALE_RUNS};
use hast_format::metadata::{BlockState, Metadata, MetadataError, RESOURCE_NAME_MAX, Reading, Role};

use crate::source::{Case, Source};

/// The code under proof.
pub trait Subject {
    /// The block.
    fn encode(metadata: &Metadata) -> [u8; 4096] {
        metadata.encode()
    }

    /// How a state is saved: what to write where, each durable before the next.
    fn writes(metadata: &Metadata, sectorsize: u32) -> Vec<(u64, Vec<u8>)> {
        metadata.writes(sectorsize)
    }

    /// All that a block says.
    fn read(block: &[u8]) -> Result<Reading, MetadataError> {
        Metadata::read(block)
    }

    /// What a reference reads.
    fn decode(block: &[u8]) -> Result<Metadata, MetadataError> {
        Metadata::decode(block)
    }
}

/// The code as it ships.
#[derive(Clone, Copy, Debug)]
pub struct Real;
impl Subject for Real {}

/// Any state: our reader gives back what was written, a reference's reader all but the extension.
pub fn round_trip<T: Subject>(source: &mut impl Source) -> Case {
    let metadata = any(source);
    let block = T::encode(&metadata);
    let expected = if metadata.extension.generation > 0 { BlockState::Whole } else { BlockState::NoArea };
    let read = T::read(&block);
    assert_eq!(read, Ok(Reading { metadata: metadata.clone(), state: expected }));
    let core = Metadata { extension: Extension::default(), ..metadata.clone() };
    assert_eq!(T::decode(&block), Ok(core));
    // What is behind the block is not read.
    let mut longer = block.to_vec();
    longer.extend([0xff; 16]);
    assert_eq!(T::read(&longer), read);
    // Saved step by step it is the same block, whatever the sectors.
    for sectorsize in [512, 1024, 2048, 4096] {
        let mut disk = [0; 4096];
        for (offset, bytes) in T::writes(&metadata, sectorsize) {
            assert!(offset.is_multiple_of(sectorsize.into()));
            assert!(bytes.len().is_multiple_of(sectorsize as usize));
            disk[offset as usize..offset as usize + bytes.len()].copy_from_slice(&bytes);
        }
        assert_eq!(disk, block, "sectors of {sectorsize}");
    }
    Ok(())
}

/// A state of a provider; without an area it has no extension.
pub(crate) fn any(source: &mut impl Source) -> Metadata {
    let name = source.number(1..=RESOURCE_NAME_MAX as u64, &[1, 5, RESOURCE_NAME_MAX as u64]);
    let all = 0..=u64::MAX;
    let counts = [(); 2].map(|()| source.number(all.clone(), &[0, u64::MAX]));
    let mut extension = Extension::default();
    if source.bool() {
        extension.generation = source.number(1..=u64::MAX, &[1, u64::MAX]);
        if source.bool() {
            let by = source.number(0..=MARK_BY_MAX as u64, &[0, MARK_BY_MAX as u64]);
            let since = source.number(all.clone(), &[0, u64::MAX]);
            extension.mark = Some(Mark { since, by: "b".repeat(by as usize) });
        }
        extension.target = source.bool();
        extension.full_sync_owed = source.bool();
        let runs = source.number(0..=STALE_RUNS as u64, &[0, 1, STALE_RUNS as u64]);
        extension.stale = (0..runs as u32).map(|n| Run { first: n * 7, count: u32::MAX - n }).collect();
        extension.boot = [source.pick(&[0, 0xb0]); 16];
        extension.peer_boot = [source.pick(&[0, 0xff]); 16];
        if source.bool() {
            (extension.connection, extension.connection_before) = (u64::MAX, 1 << 32);
            extension.connection_localcnt = u64::MAX - 1;
            (extension.possibly_behind, extension.unsure, extension.map_complete) = (true, true, true);
        }
    }
    Metadata {
        resource: "n".repeat(name as usize),
        datasize: source.number(all.clone(), &[512, 0x0102_0304_0506_0708]),
        extentsize: source.small(&[1 << 21]),
        keepdirty: source.small(&[64]),
        localoff: source.number(all.clone(), &[4608]),
        resuid: source.number(all, &[0, 0xfed4_0000_0000_0001]),
        localcnt: counts[0],
        remotecnt: counts[1],
        prevrole: source.pick(&[Role::Init, Role::Primary, Role::Secondary]),
        extension,
    }
}
