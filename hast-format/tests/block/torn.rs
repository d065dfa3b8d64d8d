//! Power lost while a state is saved over another.

use hast_format::metadata::{BlockState, Metadata, Reading};

use crate::states::{BLOCK, SECTORS, changed, cuts, cuts_of, first_saves, mixed, pairs, put, used};

fn read(block: &[u8; BLOCK], context: &dyn Fn() -> String) -> Reading {
    Metadata::read(block).unwrap_or_else(|error| panic!("{}: {error}", context()))
}

/// The first save of 4096-byte sectors goes over a block without a check sum: that such a sector is
/// torn is not noticed there, as it is not with an original.
fn unchecked(before: &Metadata, sector: usize) -> bool {
    before.extension.generation == 0 && sector == 4096
}

#[test]
fn any_of_the_sectors_reached_the_disk() {
    let mut seen = Vec::new();
    for (name, before, after) in pairs().into_iter().chain(first_saves()) {
        for sector in SECTORS {
            let cuts = cuts(&before.encode(), &after, sector);
            for (number, block) in cuts.iter().enumerate() {
                let context = || format!("{name}, {sector}-byte sectors, cut {number}");
                let Reading { metadata, state } = read(block, &context);
                assert!(metadata == before || metadata == after, "{}: {metadata:?}", context());
                seen.push(state);
                // What is said about it is true.
                let sound = *block == before.encode() || *block == after.encode();
                assert_eq!(state.is_sound(), sound, "{}: {state:?}", context());
                if state == BlockState::AreaNewer {
                    assert_eq!(metadata, after, "{}", context());
                }
                let first = before.extension.generation == 0;
                assert!(state != BlockState::AreaLost || first, "{}", context());
                let no_area = first && *block == before.encode();
                assert_eq!(state == BlockState::NoArea, no_area, "{}", context());
            }
            assert_eq!(read(cuts.last().unwrap(), &|| name.to_owned()).state, BlockState::Whole);
        }
    }
    for state in [BlockState::Whole, BlockState::AreaNewer, BlockState::ListDamaged, BlockState::AreaDamaged]
    {
        assert!(seen.contains(&state), "{state:?}");
    }
}

/// One sector is torn at any byte, the others that change reached the disk or did not.
#[test]
fn one_sector_is_torn_at_any_byte() {
    for (name, before, after) in pairs().into_iter().chain(first_saves()) {
        for sector in SECTORS {
            if unchecked(&before, sector) {
                continue;
            }
            let mut block = before.encode();
            for (offset, bytes) in after.writes(u32::try_from(sector).unwrap()) {
                let mut written = block;
                put(&mut written, offset, &bytes);
                let sectors = changed(&block, &written, sector);
                for torn in &sectors {
                    let others: Vec<usize> = sectors.iter().copied().filter(|index| index != torn).collect();
                    for which in 0..1 << others.len() {
                        let base = mixed(&block, &written, sector, &others, which);
                        let range = torn * sector..(torn + 1) * sector;
                        // Between two bytes that differ, one border is like the other.
                        for at in range.clone().filter(|at| base[*at] != written[*at]) {
                            for new in [range.start..at + 1, at..range.end] {
                                let mut block = base;
                                block[new.clone()].copy_from_slice(&written[new.clone()]);
                                let context = || format!("{name}, {sector}-byte sectors, {new:?} of {torn}");
                                let Reading { metadata, .. } = read(&block, &context);
                                assert!(metadata == before || metadata == after, "{}", context());
                            }
                        }
                    }
                }
                block = written;
            }
        }
    }
}

/// With 4096-byte sectors over a block without an area, a tear that comes behind the list is noticed.
#[test]
fn a_torn_first_save_in_one_sector_is_noticed_behind_the_list() {
    for (name, before, after) in first_saves() {
        let (old, new) = (before.encode(), after.encode());
        for border in 1..BLOCK {
            let mut suffix = old;
            suffix[border..].copy_from_slice(&new[border..]);
            let reading = Metadata::read(&suffix).unwrap();
            assert!(reading.metadata == before || reading.metadata == after, "{name} from {border}");
            let mut prefix = old;
            prefix[..border].copy_from_slice(&new[..border]);
            if prefix[1024..] != old[1024..] && prefix != new {
                let state = Metadata::read(&prefix).unwrap().state;
                assert!(!state.is_sound(), "{name} up to {border}: {state:?}");
            }
        }
    }
}

/// A block left half saved, read, repaired (which may be cut off too) and saved again, cut off again: what was
/// read in between is not forgotten, although it was never saved in full.
#[test]
fn what_was_read_after_a_cut_outlives_the_next_one() {
    for (name, before, after) in pairs().into_iter().chain(first_saves()) {
        for sector in SECTORS {
            for block in cuts(&before.encode(), &after, sector) {
                let read_back = Metadata::read(&block).unwrap();
                let mut repaired = block;
                if !read_back.state.is_sound() {
                    for cut in cuts(&block, &read_back.metadata, sector) {
                        let again = Metadata::read(&cut).unwrap();
                        assert_eq!(again.metadata, read_back.metadata, "{name}, {sector}: repairing");
                        repaired = cut;
                    }
                    assert_eq!(repaired, read_back.metadata.encode(), "{name}, {sector}");
                }
                let third = crate::states::next(&read_back.metadata, |m| m.localcnt ^= 0x0101);
                for cut in cuts(&repaired, &third, sector) {
                    let metadata = Metadata::read(&cut).unwrap().metadata;
                    assert!(metadata == read_back.metadata || metadata == third, "{name}, {sector}");
                }
            }
        }
    }
}

/// And repairing is what makes it so: a save over a block that is not whole can lose both states.
#[test]
fn a_save_without_repair_would_not_do() {
    let (_, before, after) = pairs().into_iter().find(|(name, _, _)| *name == "marked").unwrap();
    let third = crate::states::next(&after, |m| m.localcnt += 1);
    let lost = cuts(&before.encode(), &after, 512).into_iter().any(|block| {
        Metadata::read(&block).unwrap().metadata == after
            && cuts(&block, &third, 512)
                .iter()
                .any(|cut| Metadata::read(cut).map_or(true, |r| r.metadata != after && r.metadata != third))
    });
    assert!(lost);
}

/// `create` over a used provider: marks stay until nothing is left.
#[test]
fn erasing_leaves_all_or_nothing() {
    for sector in SECTORS {
        let writes = Metadata::erasing_writes(u32::try_from(sector).unwrap());
        let cuts = cuts_of(&used().encode(), &writes, sector);
        assert_eq!(cuts.last(), Some(&[0; BLOCK]));
        for block in cuts {
            match Metadata::read(&block) {
                Ok(reading) => assert_eq!(reading.metadata, used(), "{sector}"),
                Err(error) => assert!(block[..512].iter().all(|byte| *byte == 0), "{sector}: {error}"),
            }
        }
    }
}

#[test]
fn the_writes_are_the_block_in_the_order_that_keeps_it() {
    let block = used().encode();
    for (sector, split) in [(512, 3072), (1024, 3072), (2048, 2048)] {
        let expected = vec![(split, block[split as usize..].to_vec()), (0, block[..split as usize].to_vec())];
        assert_eq!(used().writes(sector), expected);
    }
    assert_eq!(used().writes(4096), [(0, block.to_vec())]);
    let mut original = used();
    original.extension.generation = 0;
    for sector in [512, 1024, 2048, 4096] {
        assert_eq!(original.writes(sector), [(0, original.encode().to_vec())]);
    }
}
