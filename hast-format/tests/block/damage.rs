//! One sector of a block that was saved in full is something else.

use hast_format::extension::{Extension, Mark};
use hast_format::metadata::{BlockState, Metadata, MetadataError, Reading};

use crate::states::{BLOCK, SECTORS, SMALL_SECTORS, changed, created, first_saves, mixed, next, pairs, used};

/// Bytes that look like nothing, the same every time.
fn noise(mut seed: u64) -> [u8; BLOCK] {
    let mut bytes = [0; BLOCK];
    for byte in &mut bytes {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        *byte = (seed >> 56) as u8;
    }
    bytes
}

/// Blocks of other providers: fresh ones, and used ones whose generation is above and below.
fn foreign() -> Vec<[u8; BLOCK]> {
    let mut others = vec![created("disk1"), created("another-resource-with-a-longer-name")];
    for generation in [1, 41, 42, 1 << 40] {
        let mut other = used();
        other.resource = "disk1".into();
        other.extension.generation = generation;
        others.push(other.clone());
        // Of the same name, made anew since, or of another size.
        other.resource = "disk0".into();
        other.resuid = 0x1234;
        others.push(other.clone());
        other.resuid = used().resuid;
        other.datasize -= 512;
        others.push(other);
    }
    others.iter().map(Metadata::encode).collect()
}

/// The states that are damaged here.
fn saved() -> Vec<Metadata> {
    pairs().into_iter().chain(first_saves()).map(|(_, _, after)| after).collect()
}

/// Calls `check` with each block that differs in one sector: the sector's number, a name, and the block.
fn each_damage(metadata: &Metadata, sector: usize, check: impl Fn(usize, &str, &[u8; BLOCK])) {
    let block = metadata.encode();
    let mut instead = vec![("zeros", [0; BLOCK]), ("ones", [0xff; BLOCK])];
    instead.extend((1..6).map(|seed| ("noise", noise(seed))));
    instead.extend(foreign().into_iter().map(|other| ("foreign", other)));
    for (name, other) in instead {
        for index in changed(&block, &other, sector) {
            let damaged = mixed(&block, &other, sector, &[index], 1);
            check(index, name, &damaged);
        }
    }
}

#[test]
fn small_sectors_are_noticed_and_made_up_for() {
    for metadata in saved() {
        for sector in SMALL_SECTORS {
            each_damage(&metadata, sector, |index, name, block| {
                let reading =
                    Metadata::read(block).unwrap_or_else(|error| panic!("{name} in {index}: {error}"));
                assert_eq!(reading.metadata, metadata, "{name} in sector {index} of {sector}");
                let area = index * sector >= 3072;
                let expected: &[BlockState] = if area {
                    &[BlockState::AreaDamaged]
                } else {
                    &[BlockState::ListDamaged, BlockState::AreaNewer]
                };
                assert!(
                    expected.contains(&reading.state),
                    "{name} in {index} of {sector}: {:?}",
                    reading.state
                );
            });
        }
    }
}

/// With 2048-byte sectors there are two opinions, and what cannot be told is whose sector is the foreign one.
#[test]
fn of_two_sectors_one_is_enough_unless_the_other_is_credible() {
    for metadata in saved() {
        each_damage(&metadata, 2048, |index, name, block| {
            let reading = Metadata::read(block).unwrap();
            assert!(!reading.state.is_sound(), "{name} in sector {index}: {:?}", reading.state);
            if name != "foreign" || index == 1 {
                assert_eq!(reading.metadata, metadata, "{name} in sector {index}");
            }
        });
    }
}

/// Nothing is left of a block of one sector, and that is seen.
#[test]
fn a_block_in_one_sector_is_lost() {
    each_damage(&used(), 4096, |_, name, block| match Metadata::read(block) {
        Ok(reading) => assert!(name == "foreign" && reading.metadata != used(), "{name}"),
        Err(_) => assert_ne!(name, "foreign"),
    });
}

/// Any one bit.
#[test]
fn a_single_bit_is_noticed_and_made_up_for() {
    for metadata in [used(), saved().into_iter().max_by_key(|m| m.extension.stale.len()).unwrap()] {
        let good = metadata.encode();
        for bit in 0..BLOCK * 8 {
            let mut block = good;
            block[bit / 8] ^= 1 << (bit % 8);
            let reading = Metadata::read(&block).unwrap();
            assert_eq!(reading.metadata, metadata, "bit {bit}");
            assert!(!reading.state.is_sound(), "bit {bit}");
        }
    }
}

/// A disk that says it wrote, and did not: sectors of the state before, whichever they are.
#[test]
fn a_sector_that_was_never_written_is_noticed() {
    for (name, before, after) in pairs() {
        for sector in SECTORS {
            let (old, new) = (before.encode(), after.encode());
            for index in changed(&old, &new, sector) {
                let block = mixed(&new, &old, sector, &[index], 1);
                if block == old {
                    // The whole block: nobody can know.
                    continue;
                }
                let reading = Metadata::read(&block).unwrap();
                assert!(!reading.state.is_sound(), "{name}, sector {index} of {sector}");
                // With small sectors that is at most half of the area or of the list part.
                assert_eq!(reading.metadata, after, "{name}, sector {index} of {sector}");
            }
        }
    }
    // The whole area, and the whole list part.
    let (old, new) = (used(), next(&used(), |m| m.localcnt += 1));
    let [old_block, new_block] = [old.encode(), new.encode()];
    for (range, state) in [(3072..4096, BlockState::AreaDamaged), (0..3072, BlockState::AreaNewer)] {
        let mut block = new_block;
        block[range.clone()].copy_from_slice(&old_block[range]);
        let reading = Metadata::read(&block).unwrap();
        assert_eq!((reading.metadata, reading.state), (new.clone(), state));
    }
}

/// With area and copy gone, the list is what a reference would know; with the list gone too, nothing is.
#[test]
fn what_is_left_when_more_is_lost() {
    let metadata = used();
    let mut list_only = metadata.clone();
    list_only.extension = Default::default();
    let good = metadata.encode();

    let mut block = good;
    block[1024] ^= 1;
    block[4000] ^= 1;
    let reading = Metadata::read(&block).unwrap();
    assert_eq!((reading.metadata, reading.state), (list_only, BlockState::AreaLost));
    // The list as well.
    block[..512].fill(0xff);
    assert!(Metadata::read(&block).is_err());

    // List and area: the copy is left.
    let mut block = good;
    block[..512].fill(0xff);
    block[3072..].fill(0xff);
    let reading = Metadata::read(&block).unwrap();
    assert_eq!((reading.metadata, reading.state), (metadata.clone(), BlockState::AreaDamaged));

    // List and copy: the area is.
    let mut block = good;
    block[..3072].fill(0);
    let reading = Metadata::read(&block).unwrap();
    assert_eq!((reading.metadata, reading.state), (metadata, BlockState::ListDamaged));
}

/// Reads a block of which these bytes could not be read, each from the first to before the second.
fn around(block: &[u8], unreadable: &[(usize, usize)]) -> Result<Reading, MetadataError> {
    let holes: Vec<_> = unreadable.iter().map(|(first, end)| *first..*end).collect();
    Metadata::read_around(block, &holes)
}

/// A3: a sector that cannot be read, whatever the reader has in its place. The other copy is used, and what was read
/// has to be saved again.
#[test]
fn an_unreadable_sector_is_a_damaged_one() {
    for metadata in saved() {
        let block = metadata.encode();
        for sector in SMALL_SECTORS {
            for index in 0..BLOCK / sector {
                // As if it had been read, as if it were all zeros, and as if it were somebody else's.
                for instead in [block, [0; BLOCK], noise(7)] {
                    let read = mixed(&block, &instead, sector, &[index], 1);
                    let reading = around(&read, &[(index * sector, (index + 1) * sector)]).unwrap();
                    assert_eq!(reading.metadata, metadata, "sector {index} of {sector}");
                    let is_area = index * sector >= 3072;
                    let state = if is_area { BlockState::AreaDamaged } else { BlockState::ListDamaged };
                    assert_eq!(reading.state, state, "sector {index} of {sector}");
                }
            }
        }
        assert_eq!(around(&block, &[]), Metadata::read(&block));
        assert!(around(&block, &[(0, BLOCK)]).is_err());
        assert!(around(&block[..4095], &[(0, 512)]).is_err());
    }
}

/// Of a block that the original wrote, or `create`, the first sector is all there is. Zeros that cannot be read are no
/// area that is lost, but they are not known to be zeros either.
#[test]
fn of_a_block_without_an_area_the_list_is_enough() {
    let metadata = created("disk0");
    let block = metadata.encode();
    for (holes, state) in [
        (&[(512, 1024)][..], BlockState::RestUnreadable),
        (&[(2048, 2560), (2560, 3072)], BlockState::RestUnreadable),
        (&[(1024, 1536)], BlockState::AreaLost),
        (&[(3584, 4096)], BlockState::AreaLost),
        (&[(512, 4096)], BlockState::AreaLost),
    ] {
        let reading = around(&block, holes).unwrap();
        assert_eq!((&reading.metadata, reading.state), (&metadata, state), "{holes:?}");
        assert!(!reading.state.is_sound());
    }
    assert!(around(&block, &[(0, 512)]).is_err());
}

/// A3: neither the area nor its copy can be read, as far as there were any. What was stale is not known then: the node is
/// out of date. Where nothing was, nothing is lost.
#[test]
fn a_node_whose_area_cannot_be_read_is_out_of_date() {
    let unknown =
        Extension { generation: 1, mark: Some(Mark { since: 0, by: String::new() }), ..Extension::default() };
    let (used, fresh) = (used(), Metadata { resuid: 0, ..used() });
    let both = [(1024, 1536), (3584, 4096)];
    for (metadata, holes, extension) in [
        (&used, &both[..], unknown.clone()),
        (&used, &[(1024, 4096)], unknown),
        (&used, &both[..1], used.extension.clone()),
        (&used, &both[1..], used.extension.clone()),
        (&fresh, &both, Extension::default()),
    ] {
        let reading = around(&metadata.encode(), holes).unwrap();
        assert_eq!(reading.metadata, Metadata { extension, ..metadata.clone() }, "{holes:?}");
    }
}

/// What the log says of a block that was not sound.
#[test]
fn what_was_found_is_said_in_words() {
    use BlockState::{AreaDamaged, AreaLost, AreaNewer, ListDamaged, NoArea, RestUnreadable, Whole};
    let texts = [NoArea, Whole, AreaNewer, ListDamaged, AreaDamaged, AreaLost, RestUnreadable]
        .map(|state| state.to_string());
    for (number, text) in texts.iter().enumerate() {
        assert!(!texts[..number].contains(text));
        let used = if text.contains("area was used") {
            "area"
        } else if text.contains("copy") && text.contains("copy beside the list was used") {
            "copy"
        } else {
            "list"
        };
        let expected = ["list", "list", "area", "area", "copy", "list", "list"][number];
        assert_eq!(used, expected, "{text}");
    }
}
