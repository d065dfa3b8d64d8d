//! The same for any metadata, and for bytes that are none.

use hast_format::extension::{Extension, MARK_BY_MAX, Mark, Run, STALE_RUNS};
use hast_format::metadata::{BlockState, Metadata, RESOURCE_NAME_MAX, Reading, Role};
use proptest::prelude::*;

use crate::states::{BLOCK, SECTORS, cuts, put, used};

prop_compose! {
    fn mark()(since in any::<u64>(), by in "\\PC{0,63}") -> Mark {
        let end = by.floor_char_boundary(MARK_BY_MAX);
        Mark { since, by: by[..end].to_owned() }
    }
}

prop_compose! {
    fn extension()(
        generation in 1..u64::MAX / 2,
        mark in proptest::option::of(mark()),
        (target, full_sync_owed) in any::<(bool, bool)>(),
        stale in proptest::collection::vec(any::<(u32, u32)>(), 0..=STALE_RUNS),
        (boot, peer_boot) in any::<([u8; 16], [u8; 16])>(),
        (parted, given_up) in any::<(u64, u64)>(),
        (connection, connection_before, connection_localcnt) in any::<(u64, u64, u64)>(),
        (possibly_behind, unsure, map_complete) in any::<(bool, bool, bool)>(),
    ) -> Extension {
        let stale = stale.into_iter().map(|(first, count)| Run { first, count }).collect();
        Extension {
            generation,
            mark,
            target,
            full_sync_owed,
            stale,
            boot,
            peer_boot,
            parted,
            given_up,
            connection,
            connection_before,
            connection_localcnt,
            possibly_behind,
            unsure,
            map_complete,
        }
    }
}

prop_compose! {
    fn changing()(
        (resuid, localcnt, remotecnt) in any::<(u64, u64, u64)>(),
        prevrole in prop::sample::select(vec![Role::Init, Role::Primary, Role::Secondary]),
        extension in extension(),
    ) -> (u64, u64, u64, Role, Extension) {
        (resuid, localcnt, remotecnt, prevrole, extension)
    }
}

prop_compose! {
    /// Two states of one provider, the second later.
    fn successive()(
        resource in proptest::collection::vec(prop::char::range('\u{1}', '\u{7f}'), 0..=RESOURCE_NAME_MAX),
        (datasize, localoff, extentsize, keepdirty) in any::<(u64, u64, u32, u32)>(),
        states in (changing(), changing()),
        same_resuid in any::<bool>(),
    ) -> (Metadata, Metadata) {
        let resource: String = resource.into_iter().collect();
        let make = |(resuid, localcnt, remotecnt, prevrole, extension)| Metadata {
            resource: resource.clone(),
            datasize,
            extentsize,
            keepdirty,
            localoff,
            resuid,
            localcnt,
            remotecnt,
            prevrole,
            extension,
        };
        let (mut before, mut after) = (make(states.0), make(states.1));
        // A resuid is drawn or adopted once.
        if same_resuid { after.resuid = before.resuid } else { before.resuid = 0 }
        after.extension.generation += before.extension.generation;
        (before, after)
    }
}

fn check(block: &[u8; BLOCK], before: &Metadata, after: &Metadata) -> Result<Reading, TestCaseError> {
    let reading = Metadata::read(block).map_err(|error| TestCaseError::fail(error.to_string()))?;
    prop_assert!(reading.metadata == *before || reading.metadata == *after, "{:?}", reading);
    Ok(reading)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn what_was_written_is_read((_, metadata) in successive()) {
        let block = metadata.encode();
        let reading = Metadata::read(&block).unwrap();
        prop_assert_eq!(reading, Reading { metadata: metadata.clone(), state: BlockState::Whole });
        for sector in SECTORS {
            let mut written = [0xee; BLOCK];
            for (offset, bytes) in metadata.writes(u32::try_from(sector).unwrap()) {
                prop_assert!(offset.is_multiple_of(sector as u64) && bytes.len().is_multiple_of(sector));
                put(&mut written, offset, &bytes);
            }
            prop_assert_eq!(written, block);
        }
    }

    #[test]
    fn any_of_the_sectors_reached_the_disk((before, after) in successive()) {
        for sector in SECTORS {
            for block in cuts(&before.encode(), &after, sector) {
                let reading = check(&block, &before, &after)?;
                prop_assert_eq!(reading.state.is_sound(), block == before.encode() || block == after.encode());
            }
        }
    }

    /// Sectors torn into any number of pieces, several of them at a time. Nothing but single sectors is asked
    /// of 2048 and 4096 bytes (`torn.rs`).
    #[test]
    fn any_of_the_bytes_reached_the_disk(
        (before, after) in successive(),
        new in proptest::collection::vec(any::<u8>(), BLOCK / 8),
        borders in proptest::collection::vec(0..BLOCK, 1..20),
        in_pieces in any::<bool>(),
    ) {
        let is_new = |at: usize| {
            if in_pieces {
                borders.iter().filter(|border| **border <= at).count() % 2 == 1
            } else {
                new[at / 8] >> (at % 8) & 1 == 1
            }
        };
        let mut block = before.encode();
        for (offset, bytes) in after.writes(512) {
            let mut torn = block;
            for (at, byte) in bytes.iter().enumerate().map(|(at, byte)| (at + offset as usize, byte)) {
                if is_new(at) {
                    torn[at] = *byte;
                }
            }
            check(&torn, &before, &after)?;
            put(&mut block, offset, &bytes);
        }
    }

    /// Whatever is on the disk, reading it ends, and what it gives can be saved and read again.
    #[test]
    fn damage_never_panics(
        (_, metadata) in successive(),
        damage in proptest::collection::vec((0..BLOCK, any::<u8>()), 1..6),
        fill in proptest::option::of((0..BLOCK, 0..BLOCK, any::<u8>())),
    ) {
        let mut block = metadata.encode();
        for (at, byte) in damage {
            block[at] = byte;
        }
        if let Some((from, to, byte)) = fill {
            block[from.min(to)..from.max(to)].fill(byte);
        }
        if let Ok(reading) = Metadata::read(&block) {
            prop_assert_eq!(Metadata::read(&reading.metadata.encode()).unwrap().metadata, reading.metadata);
        }
    }

    #[test]
    fn bytes_that_are_no_metadata(bytes in proptest::collection::vec(any::<u8>(), 0..5000)) {
        prop_assert!(Metadata::read(&bytes).is_err());
    }

    #[test]
    fn bytes_behind_a_list_are_no_area(bytes in proptest::collection::vec(any::<u8>(), 1..3000)) {
        let mut list = used();
        list.extension = Extension::default();
        let mut block = list.encode();
        let at = BLOCK - bytes.len();
        block[at..].copy_from_slice(&bytes);
        let reading = Metadata::read(&block).unwrap();
        prop_assert_eq!(reading.metadata, list);
        prop_assert!(bytes.iter().all(|byte| *byte == 0) || reading.state == BlockState::AreaLost);
    }
}
