//! Metadata over a loss of power: whatever of a save reached the disk, the state before it or the one after it is
//! read, whole; and afterwards, repaired, the next save is as safe.
//!
//! Of each write any of the sectors that it changes are on the disk and any are not, and one of them may be torn
//! between any two bytes that differ.

use hast_format::extension::{Mark, Run, STALE_RUNS};
use hast_format::layout::Layout;
use hast_format::metadata::{BlockState, Metadata, Role};

use crate::metadata::Subject;
use crate::source::{Case, Source};

type Block = [u8; 4096];

/// One save over another, cut off. (The first area ever over sectors of 4096 bytes is left out: there is nothing
/// yet to notice a torn sector by, here as with the original.)
pub fn save<T: Subject>(source: &mut impl Source) -> Case {
    let sector = source.pick(&[512_usize, 1024, 2048, 4096]);
    let before = state(source, 0);
    let after = state(source, 1);
    source.assume(before.extension.generation > 0 || sector < 4096)?;
    let disk = cut::<T>(source, T::encode(&before), &after, sector, true);
    let read = T::read(&disk).unwrap_or_else(|error| panic!("{error}, between {before:?} and {after:?}"));
    assert!(read.metadata == before || read.metadata == after, "{read:?}");
    let settled = disk == T::encode(&before) || disk == T::encode(&after);
    assert_eq!(read.state.is_sound(), settled, "{:?}", read.state);
    if read.state == BlockState::AreaNewer {
        assert_eq!(read.metadata, after);
    }
    // Nothing of what our area says is lost once there was one.
    assert!(read.state != BlockState::AreaLost || before.extension.generation == 0);
    Ok(())
}

/// A save cut off, what was read saved again as it has to be, which may be cut off too, and then the next save cut
/// off: what was read first is still there, or what was saved last.
pub fn repair<T: Subject>(source: &mut impl Source) -> Case {
    let sector = source.pick(&[512_usize, 1024, 2048, 4096]);
    let (before, after) = (state(source, 0), state(source, 1));
    source.assume(before.extension.generation > 0)?;
    let read = |disk: &Block| T::read(disk).unwrap_or_else(|error| panic!("{error}"));
    let disk = cut::<T>(source, T::encode(&before), &after, sector, false);
    let first = read(&disk);
    let disk = if first.state.is_sound() {
        disk
    } else {
        let repairing = cut::<T>(source, disk, &first.metadata, sector, false);
        assert_eq!(read(&repairing).metadata, first.metadata, "while it is repaired");
        put::<T>(disk, &first.metadata, sector)
    };
    let mut third = first.metadata.clone();
    third.extension.generation += 1;
    third.localcnt ^= 0x0101;
    let disk = cut::<T>(source, disk, &third, sector, false);
    let last = read(&disk).metadata;
    assert!(last == first.metadata || last == third, "{last:?}");
    Ok(())
}

/// What is on the disk when power is lost while `state` is saved over `disk`.
fn cut<T: Subject>(
    source: &mut impl Source,
    disk: Block,
    state: &Metadata,
    sector: usize,
    torn: bool,
) -> Block {
    let writes = T::writes(state, u32::try_from(sector).unwrap_or(512));
    let last = source.below(writes.len() as u64) as usize;
    let mut disk = disk;
    for (number, (offset, bytes)) in writes.iter().enumerate().take(last + 1) {
        let mut written = disk;
        written[*offset as usize..*offset as usize + bytes.len()].copy_from_slice(bytes);
        if number < last {
            disk = written;
            continue;
        }
        let changed: Vec<usize> = (0..4096)
            .step_by(sector)
            .filter(|at| disk[*at..at + sector] != written[*at..at + sector])
            .collect();
        let none = changed.len();
        let tear = if torn { source.below(none as u64 + 1) as usize } else { none };
        for (number, at) in changed.into_iter().enumerate() {
            let all = at..at + sector;
            let reached = if number == tear {
                let differ: Vec<usize> = all.clone().filter(|byte| disk[*byte] != written[*byte]).collect();
                let few: Vec<u64> = (0..differ.len() as u64).collect();
                let border = differ[source.number(0..=few.len() as u64 - 1, &few) as usize];
                if source.bool() { at..border } else { border..at + sector }
            } else if source.bool() {
                all
            } else {
                continue;
            };
            disk[reached.clone()].copy_from_slice(&written[reached]);
        }
    }
    disk
}

/// The disk after a whole save.
fn put<T: Subject>(mut disk: Block, state: &Metadata, sector: usize) -> Block {
    for (offset, bytes) in T::writes(state, u32::try_from(sector).unwrap_or(512)) {
        disk[offset as usize..offset as usize + bytes.len()].copy_from_slice(&bytes);
    }
    disk
}

/// A provider's state: what `create` left, or one of those that it goes through; `save` tells one from the next.
fn state(source: &mut impl Source, save: u64) -> Metadata {
    let sizes = Layout::create(1 << 30, 512, 1 << 17);
    let mut metadata = Metadata {
        resource: "disk0".into(),
        datasize: sizes.map_or(0, |layout| layout.datasize()),
        extentsize: 1 << 17,
        keepdirty: 64,
        localoff: sizes.map_or(0, |layout| layout.localoff()),
        resuid: 0,
        localcnt: 0,
        remotecnt: 0,
        prevrole: Role::Init,
        extension: Default::default(),
    };
    // Only the first state of two can be one without an area.
    let kinds = if save == 0 { 5 } else { 4 };
    let kind = source.below(kinds);
    if kind == 4 {
        return metadata;
    }
    metadata.resuid = 0xfed4_0000_0000_0001;
    metadata.localcnt = 255 + save;
    metadata.prevrole = if kind % 2 == 0 { Role::Primary } else { Role::Secondary };
    metadata.extension.generation = 41 + save;
    if kind > 0 {
        metadata.extension.mark = Some(Mark { since: 1_790_000_000, by: "tcp4://10.9.0.2".into() });
        metadata.extension.boot = [0xb0; 16];
    }
    if kind > 1 {
        let runs = if kind == 2 { 1 } else { STALE_RUNS as u32 };
        metadata.extension.stale = (0..runs).map(|n| Run { first: n * 7, count: n % 3 + 1 }).collect();
        metadata.extension.target = true;
    }
    metadata
}
