//! What a file still holds from before it became a provider: the extents in which the file system has anything allocated.
//!
//! A fresh secondary says so to its primary, so that a thin file does not stay as thick as what was in it before.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;

use hast_format::bitmap::Bitmap;
use hast_format::layout::Layout;
use nix::errno::Errno;
use nix::libc::off_t;
use nix::unistd::{Whence, lseek};

/// The extents of the data area that are not holes.
///
/// # Errors
///
/// The file system does not tell.
pub(super) fn allocated(file: &File, layout: &Layout) -> io::Result<Bitmap> {
    let extents = u32::try_from(layout.nextents()).map_err(|_| Errno::EOVERFLOW)?;
    // A block that the metadata or the map have allocated says nothing.
    let block = file.metadata()?.blksize().max(1);
    let begin = layout.localoff().checked_next_multiple_of(block).ok_or(Errno::EOVERFLOW)?;
    let mut found = Bitmap::new(extents);
    let mut extent = 0;
    while extent < extents {
        let (offset, _) = layout.extent_range(extent);
        let from = layout.localoff().saturating_add(offset).max(begin);
        let from = off_t::try_from(from).map_err(|_| Errno::EOVERFLOW)?;
        let data = match lseek(file, from, Whence::SeekData) {
            Ok(data) => data.cast_unsigned(),
            // Holes only, up to the end.
            Err(Errno::ENXIO) => break,
            Err(errno) => return Err(errno.into()),
        };
        let at = data.saturating_sub(layout.localoff()) / u64::from(layout.extentsize());
        let Ok(at) = u32::try_from(at) else { break };
        if at >= extents {
            break;
        }
        // All of the run at once: each question may be one to a file server.
        let end = lseek(file, data.cast_signed(), Whence::SeekHole).map_err(io::Error::from)?.cast_unsigned();
        let last = end.saturating_sub(1).max(data).saturating_sub(layout.localoff())
            / u64::from(layout.extentsize());
        let last = u32::try_from(last).unwrap_or(u32::MAX).min(extents - 1);
        let first = at.max(extent);
        for extent in first..=last.max(first) {
            found.insert(extent);
        }
        extent = last.max(first).saturating_add(1);
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
