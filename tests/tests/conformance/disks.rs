//! Disks as the original left them, put under our daemons.

use std::os::unix::fs::FileExt;
use std::path::Path;

use hast_tests::{Context, Failure, Outcome, Pair, Setup, disk, wait_until};

use crate::session::DISK;

const EXTENT: usize = 2 << 20;

/// Makes a provider from a captured head, with `fill` as its data area.
fn restore(capture: &str, provider: &Path, fill: &[u8]) -> Result<u64, Failure> {
    let source = format!("{}/vectors/metadata/metadata-{capture}.bin", env!("CARGO_MANIFEST_DIR"));
    let head = std::fs::read(&source).context(source)?;
    std::fs::write(provider, &head)?;
    let metadata = disk::metadata(provider)?;
    assert_eq!(metadata.localoff, head.len() as u64, "the capture ends where the data begin");
    let file = std::fs::OpenOptions::new().write(true).open(provider)?;
    file.set_len(metadata.localoff + metadata.datasize)?;
    file.write_all_at(fill, metadata.localoff)?;
    Ok(metadata.datasize)
}

/// Both nodes with these captured disks, started, b secondary and a primary. b's data are all zeros,
/// a's are noise in the extents that `differ` names.
fn pair(a: &str, b: &str, differ: &[usize]) -> Result<Pair, Failure> {
    let mut pair = Pair::blank(Setup::with("exec @hook@"))?;
    let mut data = Vec::new();
    for extent in 0..8 {
        let noise = differ.contains(&extent);
        data.extend(if noise { disk::pattern(extent as u64, EXTENT) } else { vec![0; EXTENT] });
    }
    data.truncate(16_772_608);
    let size = restore(a, &pair.a.provider(DISK), &data)?;
    restore(b, &pair.b.provider(DISK), &vec![0; usize::try_from(size)?])?;
    pair.a.start()?;
    pair.b.start()?;
    pair.b.role("secondary", DISK)?;
    pair.a.role("primary", DISK)?;
    Ok(pair)
}

/// A pair that was in step goes on as one: only what the primary had kept dirty is looked at again.
#[test]
fn in_step() -> Outcome {
    let pair = pair("life-3-synced-primary", "life-3-synced-secondary", &[])?;
    pair.a.wait_in_step(DISK)?;
    let (a, b) = (disk::metadata(&pair.a.provider(DISK))?, disk::metadata(&pair.b.provider(DISK))?);
    assert_eq!((a.resuid, b.resuid), (8_500_339_130_669_621_089, 8_500_339_130_669_621_089));
    assert_eq!(a.keepdirty, 2);
    pair.a.client(DISK)?.write(0, &disk::pattern(1, 4096))?;
    pair.a.client(DISK)?.flush()?;
    disk::same_data(&pair.a.provider(DISK), &pair.b.provider(DISK))?;
    pair.finish()
}

/// A primary that had gone on alone (localcnt 1) brings its dirty extents over, and no other.
#[test]
fn the_primary_had_gone_on_alone() -> Outcome {
    let dirty = [1, 3, 6];
    let pair = pair("life-6-primary-stopped", "life-5-degraded-secondary", &dirty)?;
    pair.a.wait_in_step(DISK)?;
    disk::same_data(&pair.a.provider(DISK), &pair.b.provider(DISK))?;
    let moved = pair.link.bytes_from_a().0;
    let least = (dirty.len() * EXTENT) as u64;
    assert!(moved >= least && moved < least + (64 << 10), "{moved} bytes moved");
    assert!(pair.a.hook_lines().contains(&"syncdone disk0".to_string()));
    pair.finish()
}

/// The other way round: the node that had gone on alone is now the secondary, so the primary takes
/// the data from it.
#[test]
fn the_secondary_had_gone_on_alone() -> Outcome {
    let mut pair = Pair::blank(Setup::default())?;
    let data = disk::pattern(5, 16_772_608);
    restore("life-5-degraded-secondary", &pair.a.provider(DISK), &vec![0; data.len()])?;
    restore("life-6-primary-stopped", &pair.b.provider(DISK), &data)?;
    pair.start_in_step()?;
    let synced = disk::data(&pair.a.provider(DISK))?;
    for (extent, found) in synced.chunks(EXTENT).enumerate() {
        let dirty = [1, 3, 6].contains(&extent);
        let theirs = &data[extent * EXTENT..][..found.len()];
        assert_eq!(found == theirs, dirty, "extent {extent}");
        assert_eq!(found.iter().all(|byte| *byte == 0), !dirty, "extent {extent}");
    }
    assert!(disk::data(&pair.b.provider(DISK))? == data, "the source is untouched");
    pair.finish()
}

/// The captured split-brain: the original found it, ours finds it too.
#[test]
fn split_brain() -> Outcome {
    let mut pair = Pair::blank(Setup::with("exec @hook@"))?;
    let zeros = vec![0; 16_772_608];
    restore("splitbrain-a", &pair.a.provider(DISK), &zeros)?;
    // b's block was not captured; by the steps of the capture it says the same with its own role.
    restore("splitbrain-a", &pair.b.provider(DISK), &zeros)?;
    pair.a.start()?;
    pair.b.start()?;
    pair.b.role("secondary", DISK)?;
    pair.a.role("primary", DISK)?;
    for node in [&pair.a, &pair.b] {
        wait_until("the split-brain hook", hast_tests::SHORT, || {
            Ok(node.hook_lines().contains(&"split-brain disk0".to_string()))
        })?;
    }
    assert_eq!(pair.a.status(DISK)?, "degraded");
    pair.finish()
}

/// Metadata that no `create` ever wrote: refused with words, never a panic, and the daemon goes on.
#[test]
fn damaged_metadata() -> Outcome {
    let mut pair = Pair::blank(Setup::default())?;
    pair.create()?;
    pair.a.start()?;
    let provider = pair.a.provider(DISK);
    let good = std::fs::read(&provider)?;
    let mut damaged: Vec<(&str, Vec<u8>)> = vec![
        ("zeros", vec![0; good.len()]),
        ("noise", [disk::pattern(3, 4096), good[4096..].to_vec()].concat()),
        ("shorter than the metadata", good[..1000].to_vec()),
        ("shorter than the data", good[..good.len() / 2].to_vec()),
    ];
    // Each byte of the list in turn, in steps that hit headers, names and values.
    for at in (0..254).step_by(5) {
        let mut bent = good.clone();
        bent[at] ^= 0xff;
        damaged.push(("one byte", bent));
    }
    for (what, bytes) in damaged {
        std::fs::write(&provider, &bytes)?;
        let run = pair.a.hastctl(&["role", "primary", DISK])?;
        assert!(run.code >= 0, "{what}");
        // Either it was harmless (padding, a count) or the resource is back in init with an error logged.
        wait_until("the role to be settled", hast_tests::SHORT, || {
            let role = pair.a.value(DISK, "role")?;
            Ok(role.as_deref() == Some("init") || pair.a.socket(DISK).exists())
        })?;
        pair.a.role("init", DISK)?;
        assert!(pair.a.is_running()?, "{what}");
        let dump = pair.a.hastctl(&["dump", DISK])?;
        assert!(dump.code == 0 || dump.code == 255, "{what}: dump ended with {}", dump.code);
    }
    pair.finish()
}
