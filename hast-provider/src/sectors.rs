//! Reading and writing around bad sectors: one that cannot be read takes nothing with it but itself.
//!
//! A transfer that fails is repeated in pieces and at last sector by sector. Where the system has a page cache
//! (Linux) that alone would not do: it reads whole pages, and reads them even when a part of one is written. So a
//! single sector is read past the cache, and written past it if the cache does not take it.

use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use crate::{Provider, device};

/// Bytes that a failed read is repeated in before it comes down to sectors: a multiple of every sector size, and
/// few enough that a disk which takes seconds for each bad sector is asked for the same one three times at most.
const PIECE: usize = 64 << 10;

/// Where a page begins, and so a buffer that the disk itself writes to.
const ALIGNMENT: usize = 4096;

/// Bytes that cannot be read: whole sectors.
#[derive(Debug)]
pub(crate) struct Hole {
    /// Where on the provider.
    pub(crate) offset: u64,
    /// Where in what was read.
    pub(crate) within: Range<usize>,
    /// Why, for the first of them.
    pub(crate) error: io::Error,
}

impl Provider {
    /// Fills `into` from `offset` on, but for the holes that it gives; what is in `into` there means nothing.
    pub(crate) fn read_around(&self, into: &mut [u8], offset: u64) -> io::Result<Vec<Hole>> {
        match self.read(into, offset) {
            Err(error) if device::is_bad_sector(&error) => {}
            result => return result.map(|()| Vec::new()),
        }
        let sector = usize::try_from(self.sectorsize).unwrap_or(ALIGNMENT).clamp(512, PIECE);
        let mut holes: Vec<Hole> = Vec::new();
        let mut begin = 0_usize;
        for piece in into.chunks_mut(PIECE) {
            let at = |begin: usize| offset.saturating_add(begin as u64);
            let end = begin.saturating_add(piece.len());
            if self.read(piece, at(begin)).is_ok() {
                begin = end;
                continue;
            }
            for single in piece.chunks_mut(sector) {
                let end = begin.saturating_add(single.len());
                match self.read_single(single, at(begin)) {
                    Ok(()) => {}
                    Err(error) if device::is_bad_sector(&error) => match holes.last_mut() {
                        Some(hole) if hole.within.end == begin => hole.within.end = end,
                        _ => holes.push(Hole { offset: at(begin), within: begin..end, error }),
                    },
                    Err(error) => return Err(error),
                }
                begin = end;
            }
        }
        Ok(holes)
    }

    /// Writes whole sectors, whatever can be read beside them.
    pub(crate) fn write_around(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        match self.write(bytes, offset) {
            Err(error) if device::is_bad_sector(&error) => {
                self.write_directly(bytes, offset).map_err(|_| error)
            }
            result => result,
        }
    }

    fn read_single(&self, into: &mut [u8], offset: u64) -> io::Result<()> {
        match self.read_directly(into, offset) {
            // Neither the system nor the disk can do less than a page, then.
            Err(error) if device::is_unsupported(&error) => self.read(into, offset),
            result => result,
        }
    }

    fn read_directly(&self, into: &mut [u8], offset: u64) -> io::Result<()> {
        let mut memory = vec![0; into.len().saturating_add(ALIGNMENT)];
        let aligned = aligned(&mut memory, into.len())?;
        device::past_the_cache(&self.file, || {
            #[cfg(test)]
            self.faults.reads_directly(offset, into.len())?;
            self.file.read_exact_at(aligned, offset)
        })?;
        into.copy_from_slice(aligned);
        Ok(())
    }

    fn write_directly(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let mut memory = vec![0; bytes.len().saturating_add(ALIGNMENT)];
        let aligned = aligned(&mut memory, bytes.len())?;
        aligned.copy_from_slice(bytes);
        device::past_the_cache(&self.file, || {
            #[cfg(test)]
            self.faults.writes_directly(offset, bytes.len())?;
            self.file.write_all_at(aligned, offset)
        })
    }

    fn read(&self, into: &mut [u8], offset: u64) -> io::Result<()> {
        #[cfg(test)]
        self.faults.reads(offset, into.len())?;
        self.file.read_exact_at(into, offset)
    }

    fn write(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        #[cfg(test)]
        self.faults.writes(offset, bytes.len())?;
        self.file.write_all_at(bytes, offset)
    }
}

/// `length` bytes of `memory` that begin where a page may: it has [`ALIGNMENT`] bytes more.
fn aligned(memory: &mut [u8], length: usize) -> io::Result<&mut [u8]> {
    let start = memory.as_ptr().align_offset(ALIGNMENT);
    let end = start.saturating_add(length);
    memory.get_mut(start..end).ok_or_else(|| io::Error::from(io::ErrorKind::OutOfMemory))
}
