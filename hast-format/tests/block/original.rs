//! Blocks that the original writes, over ours and alone. (Its captured ones are read in `vectors.rs`.)

use hast_format::extension::Extension;
use hast_format::metadata::{BlockState, Metadata, Reading};

use crate::states::{SMALL_SECTORS, created, cuts_of, mark, next, pairs, used};

/// The same without what the original does not know.
fn core(metadata: &Metadata) -> Metadata {
    Metadata { extension: Extension::default(), ..metadata.clone() }
}

/// What the original writes: a list whose names are followed by what its heap held, and zeros.
fn originals(metadata: &Metadata) -> [u8; 4096] {
    let mut block = core(metadata).encode();
    let mut at = 0;
    while block[at] != 0 {
        let name = usize::from(block[at + 1]);
        let data = u32::from_le_bytes(block[at + 2..at + 6].try_into().unwrap()) as usize;
        let padded = name.next_multiple_of(8);
        block[at + 6 + name..at + 6 + padded].fill(0xa5);
        at += 6 + padded + data.next_multiple_of(8);
    }
    block
}

#[test]
fn what_create_writes_is_the_originals() {
    for metadata in [created("disk0"), core(&used())] {
        let block = metadata.encode();
        assert!(block[510..].iter().all(|byte| *byte == 0));
        let reading = Metadata::read(&block).unwrap();
        assert_eq!(reading, Reading { metadata, state: BlockState::NoArea });
    }
}

#[test]
fn the_original_reads_ours() {
    for (name, _, metadata) in pairs() {
        let block = metadata.encode();
        assert_eq!(Metadata::decode(&block).as_ref(), Ok(&core(&metadata)), "{name}");
        // Its list is as ever, and its end is where the original looks for it.
        assert_eq!(block[..1024], core(&metadata).encode()[..1024], "{name}");
        // What saving leaves half done has a list, too, whenever the list is in a sector of its own.
        let mut written = next(&metadata, |m| m.remotecnt += 1).writes(512);
        assert_eq!(written.remove(0).0, 3072);
    }
}

#[test]
fn after_its_rewrite_only_the_list_counts() {
    for (name, _, ours) in pairs() {
        let theirs = next(&ours, |m| (m.localcnt, m.remotecnt) = (1000, 1001));
        let reading = Metadata::read(&originals(&theirs)).unwrap();
        assert_eq!(reading, Reading { metadata: core(&theirs), state: BlockState::NoArea }, "{name}");
    }
}

/// A rewrite of the original that is torn: its list or ours, and never an area that is not of the list.
#[test]
fn its_rewrite_is_torn_over_ours() {
    for (name, _, ours) in pairs() {
        let theirs = next(&ours, |m| m.localcnt = 1000);
        for sector in SMALL_SECTORS {
            for block in cuts_of(&ours.encode(), &[(0, originals(&theirs).to_vec())], sector) {
                let metadata = Metadata::read(&block).unwrap().metadata;
                let known = [&ours, &core(&ours), &core(&theirs)];
                assert!(known.contains(&&metadata), "{name}, {sector}: {metadata:?}");
                // Without the area, its list is the last word, whatever is left of the copy.
                if block[..512] == originals(&theirs)[..512] && block[3072..] != ours.encode()[3072..] {
                    assert_eq!(metadata, core(&theirs), "{name}, {sector}");
                }
            }
        }
    }
}

/// What is left of an old area, or of its copy, is not taken for news after the original's rewrite, whatever
/// is saved later and wherever that is cut off.
#[test]
fn remains_of_an_old_area_do_not_come_back() {
    let ours = next(&used(), |m| {
        m.extension.mark = Some(mark());
        m.extension.generation = 1 << 40;
    });
    let theirs = next(&ours, |m| m.localcnt = 1000);
    for sector in SMALL_SECTORS {
        for block in cuts_of(&ours.encode(), &[(0, originals(&theirs).to_vec())], sector) {
            let found = Metadata::read(&block).unwrap();
            if found.metadata != core(&theirs) {
                continue;
            }
            let later = next(&found.metadata, |m| m.localcnt = 1001);
            assert_eq!(later.extension.generation, 1);
            for repair in [true, false] {
                let mut block = block;
                if repair && !found.state.is_sound() {
                    block = *cuts_of(&block, &found.metadata.writes(512), sector).last().unwrap();
                }
                for cut in cuts_of(&block, &later.writes(512), sector) {
                    let metadata = Metadata::read(&cut).unwrap().metadata;
                    assert!(metadata == found.metadata || metadata == later, "{sector}: {metadata:?}");
                }
            }
        }
    }
}

/// The first save over an original's block: padding that is not ours is no damage.
#[test]
fn the_first_save_over_its_block() {
    let theirs = core(&used());
    let ours = next(&theirs, |m| m.localcnt += 1);
    for sector in SMALL_SECTORS {
        let cuts = cuts_of(&originals(&theirs), &ours.writes(512), sector);
        for block in &cuts {
            let reading = Metadata::read(block).unwrap();
            assert!(reading.metadata == theirs || reading.metadata == ours, "{sector}");
        }
        // The area is there, the list not yet.
        let mut block = originals(&theirs);
        block[3072..].copy_from_slice(&ours.encode()[3072..]);
        let reading = Metadata::read(&block).unwrap();
        assert_eq!((reading.metadata, reading.state), (ours.clone(), BlockState::AreaNewer));
    }
}
