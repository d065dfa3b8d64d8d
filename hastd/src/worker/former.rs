//! What a file still holds from before it became a provider: the extents in which the file system has anything allocated.
//!
//! A fresh secondary says so to its primary, so that a thin file does not stay as thick as what was in it before.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;

use hast_format::bitmap::Bitmap;
use hast_format::layout::Layout;
use nix::errno::Errno;

use super::holes::next_data;

/// The extents of the data area that are not holes.
///
/// # Errors
///
/// The file system does not tell.
pub(super) fn allocated(file: &File, layout: &Layout) -> io::Result<Bitmap> {
    let extents = u32::try_from(layout.nextents()).map_err(|_| Errno::EOVERFLOW)?;
    let (area, size) = (layout.localoff(), u64::from(layout.extentsize()));
    let end = area.saturating_add(layout.datasize());
    let extent_of = |byte: u64| u32::try_from(byte.saturating_sub(area) / size).unwrap_or(u32::MAX);
    let mut found = Bitmap::new(extents);
    // A block that the metadata or the map have allocated says nothing.
    let block = file.metadata()?.blksize().max(1);
    let mut from = area.checked_next_multiple_of(block).ok_or(Errno::EOVERFLOW)?;
    while from < end
        && let Some(data) = next_data(file, from, end)?
    {
        let (first, last) = (extent_of(data.start), extent_of(data.end.min(end).saturating_sub(1)));
        for extent in first..=last {
            found.insert(extent);
        }
        from = area.saturating_add((u64::from(last) + 1).saturating_mul(size));
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt;

    #[test]
    fn what_was_written_is_found_and_holes_are_not() {
        let file = tempfile::tempfile().unwrap();
        let (size, extent) = (8 << 20, 64 << 10);
        file.set_len(size).unwrap();
        let layout = Layout::create(size, 512, extent).unwrap();
        let at = |number: u32| layout.localoff() + layout.extent_range(number).0;
        let found = || allocated(&file, &layout).unwrap().iter().collect::<Vec<u32>>();
        assert_eq!(found(), []);
        // Metadata and map, whose last block may be the data area's first.
        file.write_all_at(&vec![1; layout.localoff() as usize], 0).unwrap();
        assert_eq!(found(), []);
        file.write_all_at(&[1; 512], at(3)).unwrap();
        // The last byte of one extent and the first of the next one.
        file.write_all_at(&[1; 2], at(8) - 1).unwrap();
        let last = u32::try_from(layout.nextents()).unwrap() - 1;
        file.write_all_at(&[1], at(last)).unwrap();
        let found = found();
        // A file system allocates whole blocks.
        assert!([3, 7, 8, last].iter().all(|extent| found.contains(extent)), "{found:?}");
        assert!(found.len() <= 6, "{found:?}");
    }
}
