//! The activemap as it lies on the provider. Bits that cannot be read count as set.
//!
//! A set bit says "may differ between the nodes" and has no direction of its own: which copy is right the counts,
//! the mark and the stale runs of the metadata say, as they do for every other bit. So each of the places where a
//! lost bit ends up errs on the safe side:
//!
//! - In step, the primary's copy of the extent goes to the secondary. If the bit was clear both are equal, and
//!   nothing but time is lost; if it was set, that is what it asked for. Extents that are wrong on the primary
//!   are stale runs there, not bits, and come from the secondary all the same.
//! - A node that is behind (by its counts, or as the target of a synchronisation) gets the extent from the other
//!   one, which has the right copy of everything.
//! - A secondary sends its map to the primary, where the two cases above decide.
//! - A node that was primary and has not met any other yet (resource id 0) has nothing but the map to say that it
//!   was written (C5). It counts as written: as a primary it sends the extents to the node that it meets; as a
//!   secondary it answers with a split-brain rather than have writes overwritten that nobody else has (L20). Its
//!   administrator knows better, and `hastctl create` says so.

use std::io;

use hast_format::layout::Layout;
use hast_log::error_text;

use crate::sectors::Hole;
use crate::{Provider, ProviderError};

impl Provider {
    /// Reads the activemap of the data area: `layout.map_bytes()` bytes, from right behind the metadata. Bits of a
    /// sector that cannot be read are set; the log says how many. Nothing is repaired.
    ///
    /// # Errors
    ///
    /// When reading fails for another reason than that sectors are bad.
    pub fn read_map(&self, layout: &Layout) -> Result<Vec<u8>, ProviderError> {
        Ok(self.read_map_around(layout)?.0)
    }

    /// Reads the activemap as [`read_map`](Self::read_map) does, for a caller that is going to change it: sectors that
    /// could not be read are written again, with their bits set, and that is durable when this returns. Gives the
    /// number of extents whose bits were lost, too.
    ///
    /// # Errors
    ///
    /// As [`read_map`](Self::read_map), and [`ProviderError::RepairMap`] when they cannot be written either: what
    /// the disk says of them later is unknown.
    pub fn recover_map(&self, layout: &Layout) -> Result<(Vec<u8>, u64), ProviderError> {
        let (map, holes, lost) = self.read_map_around(layout)?;
        if holes.is_empty() {
            return Ok((map, lost));
        }
        let rewrite = |hole: Hole| {
            let bytes = map.get(hole.within).unwrap_or_default();
            self.write_around(bytes, hole.offset)
        };
        holes
            .into_iter()
            .try_for_each(rewrite)
            .and_then(|()| self.flush_if_known())
            .map_err(|error| ProviderError::RepairMap { path: self.path.clone(), error })?;
        Ok((map, lost))
    }

    fn read_map_around(&self, layout: &Layout) -> Result<(Vec<u8>, Vec<Hole>, u64), ProviderError> {
        let read = |error| ProviderError::ReadMap { path: self.path.clone(), error };
        let length = usize::try_from(layout.map_bytes()).map_err(|error| read(io::Error::other(error)))?;
        let mut map = vec![0; length];
        let holes = self.read_around(&mut map, layout.map_offset()).map_err(read)?;
        let mut lost = 0_u64;
        for hole in &holes {
            let extents = set(&mut map, hole, layout.nextents());
            lost = lost.saturating_add(extents);
            log::warn!(
                "Unable to read {} bytes of the activemap at offset {} of {}: {}. The {extents} extents that they \
                 stand for count as changed and will be copied.",
                hole.within.len(),
                hole.offset,
                self.path.display(),
                error_text(&hole.error)
            );
        }
        Ok((map, holes, lost))
    }
}

/// Sets the bits of the hole and clears its padding; gives the number of extents that it stands for.
fn set(map: &mut [u8], hole: &Hole, extents: u64) -> u64 {
    let mut found = 0_u64;
    let first = hole.within.start as u64;
    for (byte, at) in map.get_mut(hole.within.clone()).unwrap_or_default().iter_mut().zip(first..) {
        let bits = extents.saturating_sub(at.saturating_mul(8)).min(8);
        *byte = u8::try_from((1_u16 << bits).saturating_sub(1)).unwrap_or(u8::MAX);
        found = found.saturating_add(bits);
    }
    found
}
