//! A3: sectors that cannot be read until they are written.

use std::collections::BTreeSet;
use std::sync::Mutex;

use hast_format::metadata::Role;

use super::*;

const SECTOR: u64 = 512;

/// Bad sectors, and what a system makes of them: that of FreeBSD, unless `page` and `direct` say otherwise.
#[derive(Debug, Default)]
pub(crate) struct Faults(Mutex<Bad>);

#[derive(Debug)]
struct Bad {
    /// Their numbers.
    sectors: BTreeSet<u64>,
    /// What is read from the disk at once, and before a part of it is written, in bytes.
    page: u64,
    /// Whether single sectors can be read and written past that.
    direct: bool,
    /// What a read of one answers.
    error: i32,
    /// They cannot be written either.
    dead: bool,
    /// Reads that failed.
    failed: u32,
}

impl Default for Bad {
    fn default() -> Bad {
        let sectors = BTreeSet::new();
        Bad { sectors, page: SECTOR, direct: false, error: libc::EIO, dead: false, failed: 0 }
    }
}

impl Bad {
    fn read(&mut self, first: u64, end: u64) -> io::Result<()> {
        if self.sectors.range(first / SECTOR..end.div_ceil(SECTOR)).next().is_none() {
            return Ok(());
        }
        self.failed += 1;
        Err(io::Error::from_raw_os_error(self.error))
    }

    /// In pages: of those that are not written as a whole the rest is read first.
    fn written(&mut self, first: u64, end: u64, page: u64) -> io::Result<()> {
        for at in (first / page..end.div_ceil(page)).map(|number| number * page) {
            if at < first || end < at + page {
                self.read(at, at + page)?;
            }
        }
        if self.dead {
            return self.read(first, end);
        }
        self.sectors.retain(|sector| !(first / SECTOR..end.div_ceil(SECTOR)).contains(sector));
        Ok(())
    }

    fn supported(&self) -> io::Result<()> {
        if self.direct { Ok(()) } else { Err(io::Error::from_raw_os_error(libc::EINVAL)) }
    }
}

impl Faults {
    pub(crate) fn reads(&self, offset: u64, length: usize) -> io::Result<()> {
        let mut bad = self.0.lock().unwrap();
        let page = bad.page;
        bad.read(offset / page * page, (offset + length as u64).next_multiple_of(page))
    }

    pub(crate) fn writes(&self, offset: u64, length: usize) -> io::Result<()> {
        let mut bad = self.0.lock().unwrap();
        let page = bad.page;
        bad.written(offset, offset + length as u64, page)
    }

    pub(crate) fn reads_directly(&self, offset: u64, length: usize) -> io::Result<()> {
        let mut bad = self.0.lock().unwrap();
        bad.supported()?;
        bad.read(offset, offset + length as u64)
    }

    pub(crate) fn writes_directly(&self, offset: u64, length: usize) -> io::Result<()> {
        let mut bad = self.0.lock().unwrap();
        bad.supported()?;
        bad.written(offset, offset + length as u64, SECTOR)
    }

    fn set(&self, change: impl FnOnce(&mut Bad)) {
        change(&mut self.0.lock().unwrap());
    }

    fn spoil(&self, sectors: impl IntoIterator<Item = u64>) {
        self.set(|bad| bad.sectors.extend(sectors));
    }

    fn left(&self) -> usize {
        self.0.lock().unwrap().sectors.len()
    }
}

/// What a system is like, and what makes the disk one of such a system.
type System = (&'static str, fn(&mut Bad));

/// How systems see a disk with 512-byte sectors.
fn systems() -> [System; 2] {
    [
        ("sector by sector", |_| {}),
        ("page by page, and sectors past the cache", |bad| {
            bad.page = 4096;
            bad.direct = true;
        }),
    ]
}

/// Beside the test program: not every system can read past the cache where temporary files go.
fn scratch(size: u64) -> (tempfile::TempDir, PathBuf) {
    let program = std::env::current_exe().unwrap();
    let dir = tempfile::tempdir_in(program.parent().unwrap()).unwrap();
    let path = dir.path().join("provider");
    File::create(&path).unwrap().set_len(size).unwrap();
    (dir, path)
}

#[test]
fn one_unreadable_sector_of_the_metadata_is_made_up_for_and_written_again() {
    for (name, system) in systems() {
        for sector in 0..8 {
            let (_dir, path) = scratch(1 << 20);
            let (provider, metadata) = extended(&path);
            let good = fs::read(&path).unwrap();
            // What the file holds there nobody is told.
            provider.file.write_all_at(&[0xee; 512], sector * SECTOR).unwrap();
            provider.faults.set(system);
            provider.faults.spoil([sector]);

            let state = if sector < 6 { BlockState::ListDamaged } else { BlockState::AreaDamaged };
            let reading = provider.read_metadata_block().unwrap();
            assert_eq!((&reading.metadata, reading.state), (&metadata, state), "{name}, sector {sector}");
            assert_eq!(provider.read_metadata_of("disk0").unwrap(), metadata);
            assert_eq!(provider.faults.left(), 1, "looking changes nothing");

            assert_eq!(provider.recover_metadata_of("disk0").unwrap(), reading);
            assert_eq!(provider.faults.left(), 0, "{name}, sector {sector}");
            assert!(fs::read(&path).unwrap() == good, "{name}, sector {sector}");
            assert_eq!(provider.read_metadata_block().unwrap().state, BlockState::Whole);
        }
    }
}

#[test]
fn either_copy_alone_is_enough() {
    for (name, system) in systems() {
        for (sectors, state) in [(0..6, BlockState::ListDamaged), (6..8, BlockState::AreaDamaged)] {
            let (_dir, path) = scratch(1 << 20);
            let (provider, metadata) = extended(&path);
            provider.faults.set(system);
            provider.faults.spoil(sectors);
            let reading = provider.recover_metadata_of("disk0").unwrap();
            assert_eq!((reading.metadata, reading.state), (metadata, state), "{name}");
            assert_eq!(provider.faults.left(), 0);
        }
    }
}

/// The list of a block that `create` or an original wrote is its one copy.
#[test]
fn what_is_left_is_not_enough_or_needs_no_more() {
    let (_dir, path) = scratch(1 << 20);
    let provider = Provider::open(&path, true).unwrap();
    let layout = Layout::create(provider.mediasize(), provider.sectorsize(), 512).unwrap();
    provider.initialize(&described(&layout), &layout).unwrap();
    provider.faults.spoil([4]);
    let reading = provider.recover_metadata_of("disk0").unwrap();
    assert_eq!((reading.metadata, reading.state), (described(&layout), BlockState::RestUnreadable));
    assert_eq!(provider.faults.left(), 0);
    provider.faults.spoil([0]);
    let refusal = provider.recover_metadata_of("disk0").unwrap_err();
    let expected = format!(
        "Unable to read metadata from {}: Input/output error (512 bytes at offset 0), and what can be read is not \
         enough: ",
        path.display()
    );
    assert!(refusal.to_string().starts_with(&expected), "{refusal}");
    assert_eq!(provider.faults.left(), 1, "nothing was written over what may be read some day");
}

/// With 4096-byte sectors, or a page cache that cannot be passed, the block is one piece.
#[test]
fn a_block_that_cannot_be_read_at_all_stays_an_error() {
    let expected =
        |path: &Path| format!("Unable to read metadata from {}: Input/output error.", path.display());
    let whole: [fn(&mut Provider); 2] =
        [|provider| provider.sectorsize = 4096, |provider| provider.faults.set(|bad| bad.page = 4096)];
    for change in whole {
        let (_dir, path) = scratch(1 << 20);
        let (mut provider, _) = extended(&path);
        change(&mut provider);
        provider.faults.spoil([3]);
        let refusal = provider.recover_metadata_of("disk0").unwrap_err();
        assert_eq!(refusal.to_string(), expected(&path));
    }
}

#[test]
fn what_is_no_bad_sector_is_no_damage() {
    let (_dir, path) = scratch(1 << 20);
    let (provider, _) = extended(&path);
    let layout = Layout::create(provider.mediasize(), provider.sectorsize(), 512).unwrap();
    provider.faults.spoil([0, 8]);
    for (error, is_bad) in [(libc::EIO, true), (libc::ENXIO, false), (libc::ENOMEM, false)] {
        provider.faults.set(|bad| bad.error = error);
        assert_eq!(provider.read_metadata().is_ok(), is_bad, "{error}");
        let map = provider.read_map(&layout);
        assert_eq!(map.is_ok(), is_bad, "{error}");
        assert!(is_bad || matches!(map, Err(ProviderError::ReadMap { .. })));
    }
}

/// A provider with a map of `bytes` bytes, every second bit of which is set, and with extents of 512 bytes; the last
/// bits stand for none.
fn mapped(bytes: u64) -> (tempfile::TempDir, Provider, Layout, Vec<u8>) {
    let (dir, path) = scratch(METADATA_SIZE + bytes * 8 * 512);
    let provider = Provider::open(&path, true).unwrap();
    let layout = Layout::create(provider.mediasize(), provider.sectorsize(), 512).unwrap();
    assert_eq!((layout.map_bytes(), layout.nextents()), (bytes, bytes * 8 - bytes / 512));
    provider.initialize(&described(&layout), &layout).unwrap();
    let map = vec![0x55; bytes as usize];
    provider.file.write_all_at(&map, layout.map_offset()).unwrap();
    (dir, provider, layout, map)
}

/// What the disk holds up to a page behind the beginning of its data.
fn head(provider: &Provider, layout: &Layout) -> Vec<u8> {
    let mut bytes = vec![0; layout.localoff() as usize + 4096];
    provider.file.read_exact_at(&mut bytes, 0).unwrap();
    bytes
}

/// Where the map begins, in sectors.
const MAP: u64 = METADATA_SIZE / SECTOR;

#[test]
fn bits_that_cannot_be_read_are_set() {
    for (name, system) in systems() {
        let (_dir, provider, layout, mut expected) = mapped(256 << 10);
        provider.faults.set(system);
        // One alone, two in a row, two at the ends, the last one short by a bit.
        let sectors = [0, 7, 129, 130, 511];
        provider.faults.spoil(sectors.map(|sector| MAP + sector));
        for sector in sectors {
            expected[sector as usize * 512..][..512].fill(0xff);
        }
        let padding = expected.len() - 512 / 8;
        expected[padding..].fill(0);
        let before = head(&provider, &layout);
        assert!(provider.read_map(&layout).unwrap() == expected, "{name}");
        assert_eq!(provider.faults.left(), 5, "looking changes nothing");
        assert!(head(&provider, &layout) == before);

        let lost = 5 * 4096 - 512;
        assert!(provider.recover_map(&layout).unwrap() == (expected.clone(), lost), "{name}");
        assert_eq!(provider.faults.left(), 0, "{name}");
        let after = head(&provider, &layout);
        let localoff = layout.localoff() as usize;
        assert!(after[4096..localoff] == expected, "{name}");
        assert!(after[..4096] == before[..4096] && after[localoff..] == before[localoff..], "{name}");
        assert!(provider.recover_map(&layout).unwrap() == (expected, 0));
    }
}

/// A disk takes seconds to find out that a sector is bad.
#[test]
fn a_bad_sector_is_asked_for_three_times() {
    let (_dir, provider, layout, _) = mapped(256 << 10);
    provider.faults.spoil([MAP + 200]);
    provider.read_map(&layout).unwrap();
    provider.faults.set(|bad| assert_eq!(bad.failed, 3));
}

/// Nothing is known of what a disk says later of sectors that it neither reads nor writes.
#[test]
fn what_cannot_be_written_either_is_refused() {
    let (_dir, provider, layout, _) = mapped(4096);
    provider.faults.set(|bad| bad.dead = true);
    provider.faults.spoil([MAP + 1]);
    provider.read_map(&layout).unwrap();
    let refusal = provider.recover_map(&layout).unwrap_err();
    assert!(matches!(refusal, ProviderError::RepairMap { .. }), "{refusal}");
    provider.faults.spoil([0]);
    let mut metadata = described(&layout);
    metadata.extension.generation = 1;
    metadata.prevrole = Role::Secondary;
    assert!(matches!(provider.write_metadata(&metadata), Err(ProviderError::WriteMetadata { .. })));
}

/// `create` makes a provider of a disk whose sectors are bad where its metadata and map go.
#[test]
fn a_fresh_provider_has_no_bad_sectors() {
    for (name, system) in systems() {
        for sector in [0, 5, 7, MAP, MAP + 9] {
            let (_dir, provider, layout, _) = mapped(8192);
            provider.faults.set(system);
            provider.faults.spoil([sector]);
            provider.initialize(&described(&layout), &layout).unwrap();
            assert_eq!(provider.faults.left(), 0, "{name}, sector {sector}");
            let bytes = head(&provider, &layout);
            assert!(bytes[..4096] == described(&layout).encode());
            assert!(bytes[4096..layout.localoff() as usize].iter().all(|byte| *byte == 0));
        }
    }
}

/// Reading and writing past the cache leaves the file as it was opened.
#[cfg(target_os = "linux")]
#[test]
fn the_cache_is_passed_for_a_moment_only() {
    let (_dir, path) = scratch(1 << 20);
    let (provider, metadata) = extended(&path);
    provider.faults.set(|bad| (bad.page, bad.direct) = (4096, true));
    provider.faults.spoil([0]);
    let flags = || fcntl(provider.as_file(), FcntlArg::F_GETFL).unwrap();
    let before = flags();
    assert_eq!(provider.recover_metadata_of("disk0").unwrap().metadata, metadata);
    assert_eq!(flags(), before);
}
