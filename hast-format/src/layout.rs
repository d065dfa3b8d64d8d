//! Where things lie on a provider, and all arithmetic on sizes and offsets (spec "Arithmetic").
//!
//! Owns the numbers, not the bytes: nothing here reads or writes. A [`Layout`] exists only once its numbers have been
//! checked against each other and against the provider, so what is computed from it cannot overflow, leave
//! the provider, or reach from the activemap into the data area.

use core::ops::Range;

#[cfg(feature = "alloc")]
use crate::metadata::Metadata;

/// Bytes of the metadata block; the activemap begins right behind it.
pub const METADATA_SIZE: u64 = 4096;
/// Bytes per extent if nobody says otherwise.
pub const EXTENTSIZE_DEFAULT: u32 = 2 << 20;
/// Most bytes per extent.
pub const EXTENTSIZE_MAX: u32 = 1 << 30;
/// Where a data area begins on a boundary that suits what lies below it: disks with physical sectors of 4096 bytes
/// that say 512, page caches, file systems.
pub const ALIGNMENT: u64 = 4096;
/// The same for flash and RAID as well, where there is room enough.
pub const WIDE_ALIGNMENT: u64 = 1 << 20;
/// Extents kept dirty if nobody says otherwise.
pub const KEEPDIRTY_DEFAULT: u32 = 64;
/// Most extents kept dirty.
pub const KEEPDIRTY_MAX: u32 = i32::MAX as u32;
/// Sector size of a provider that is a regular file.
pub const FILE_SECTORSIZE: u32 = 512;
/// Largest size: offsets are signed on the wire and in every system call.
const SIZE_MAX: u64 = i64::MAX as u64;

/// How many extents `size` bytes have; the last one may be short. 0 if either number is 0.
pub fn nextents(size: u64, extentsize: u32) -> u64 {
    if extentsize == 0 { 0 } else { size.div_ceil(u64::from(extentsize)) }
}

/// Bytes of a bitmap of that many extents: an array of 64-bit words.
pub fn map_bytes(nextents: u64) -> u64 {
    nextents.div_ceil(64).saturating_mul(8)
}

/// Bytes that the bitmap for `size` bytes takes on disk, in whole sectors. Without a sector size nothing is
/// rounded.
pub fn on_disk_map_bytes(size: u64, extentsize: u32, sectorsize: u32) -> u64 {
    let bytes = map_bytes(nextents(size, extentsize));
    bytes.checked_next_multiple_of(u64::from(sectorsize)).unwrap_or(bytes)
}

/// What `create` stores as keepdirty: `requested`, with 0 standing for the default.
pub fn keepdirty(requested: u64) -> Result<u32, LayoutError> {
    match u32::try_from(requested) {
        Ok(0) => Ok(KEEPDIRTY_DEFAULT),
        Ok(keepdirty) if keepdirty <= KEEPDIRTY_MAX => Ok(keepdirty),
        _ => Err(LayoutError::Keepdirty { keepdirty: requested }),
    }
}

/// Where the parts of one provider lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    datasize: u64,
    localoff: u64,
    /// As the device or file says, not rounded.
    provider_size: u64,
    extentsize: u32,
    sectorsize: u32,
}

impl Layout {
    /// Lays out a provider, or its first `mediasize` bytes, for `hastctl create`. A `mediasize` that is no multiple of
    /// the sector size is rounded down to one. That it is no larger than the provider is the caller's to see to.
    pub fn create(mediasize: u64, sectorsize: u32, extentsize: u32) -> Result<Layout, LayoutError> {
        let sector = check_sectorsize(sectorsize)?;
        check_extentsize(extentsize, sectorsize)?;
        if mediasize > SIZE_MAX {
            return Err(LayoutError::TooLarge { size: mediasize });
        }
        let too_small = LayoutError::TooSmall { size: mediasize };
        let media = mediasize.saturating_sub(mediasize.checked_rem(sector).unwrap_or_default());
        let usable = media.checked_sub(METADATA_SIZE).ok_or(too_small)?;
        let map = on_disk_map_bytes(usable, extentsize, sectorsize);
        let datasize = usable.checked_sub(map).filter(|datasize| *datasize > 0).ok_or(too_small)?;
        let localoff = METADATA_SIZE.saturating_add(map);
        let layout = Layout { datasize, localoff, provider_size: mediasize, extentsize, sectorsize };
        layout.check_extents()?;
        Ok(layout)
    }

    /// The same, with a data area that begins on a multiple of [`ALIGNMENT`]. It costs up to 3584 bytes of data, so
    /// that a node that the original has laid out has a larger data area: the two are not taken for a pair.
    pub fn create_aligned(mediasize: u64, sectorsize: u32, extentsize: u32) -> Result<Layout, LayoutError> {
        let layout = Layout::create(mediasize, sectorsize, extentsize)?;
        let localoff = layout.localoff.checked_next_multiple_of(ALIGNMENT).unwrap_or(layout.localoff);
        let lost = localoff.saturating_sub(layout.localoff);
        match layout.datasize.checked_sub(lost).filter(|datasize| *datasize > 0) {
            Some(datasize) => Ok(Layout { datasize, localoff, ..layout }),
            None => Ok(layout),
        }
    }

    /// Moves the data area of a layout for a part of a provider up to a boundary, as far as there is room behind that part.
    /// Its size stays, so that the other node, of whatever kind, sees no difference: where the area begins stands in
    /// the metadata.
    #[must_use]
    pub fn moved_to_boundary(self, provider_size: u64) -> Layout {
        let aligned = self.localoff.checked_next_multiple_of(ALIGNMENT);
        let wide = self.localoff.checked_next_multiple_of(WIDE_ALIGNMENT);
        let fits = |localoff: &u64| {
            localoff.checked_add(self.datasize).is_some_and(|end| end <= provider_size.min(SIZE_MAX))
        };
        let localoff = wide.filter(fits).or(aligned.filter(fits)).unwrap_or(self.localoff);
        debug_assert!(localoff >= self.localoff);
        Layout { localoff, ..self }
    }

    /// Takes a layout from the metadata of a provider of `provider_size` bytes, believing none of it.
    #[cfg(feature = "alloc")]
    pub fn open(m: &Metadata, provider_size: u64, sectorsize: u32) -> Result<Layout, LayoutError> {
        let sector = check_sectorsize(sectorsize)?;
        check_extentsize(m.extentsize, sectorsize)?;
        if m.keepdirty == 0 || m.keepdirty > KEEPDIRTY_MAX {
            return Err(LayoutError::Keepdirty { keepdirty: u64::from(m.keepdirty) });
        }
        if provider_size > SIZE_MAX {
            return Err(LayoutError::TooLarge { size: provider_size });
        }
        if m.datasize == 0 || !m.datasize.is_multiple_of(sector) {
            return Err(LayoutError::Datasize { datasize: m.datasize, sectorsize });
        }
        if !m.localoff.is_multiple_of(sector) {
            return Err(LayoutError::Localoff { localoff: m.localoff, sectorsize });
        }
        if m.localoff.checked_add(m.datasize).is_none_or(|end| end > provider_size) {
            return Err(LayoutError::PastEnd { localoff: m.localoff, datasize: m.datasize, provider_size });
        }
        let layout = Layout {
            datasize: m.datasize,
            localoff: m.localoff,
            provider_size,
            extentsize: m.extentsize,
            sectorsize,
        };
        layout.check_extents()?;
        let (map, capacity) = (layout.map_bytes(), layout.map_capacity());
        if map > capacity {
            return Err(LayoutError::MapPastData { map, localoff: m.localoff });
        }
        Ok(layout)
    }

    /// Bytes of the provider.
    pub fn provider_size(&self) -> u64 {
        self.provider_size
    }

    /// Usable bytes, a positive multiple of the sector size.
    pub fn datasize(&self) -> u64 {
        self.datasize
    }

    /// Bytes per extent: a power of two, a multiple of the sector size, at most 2^30.
    pub fn extentsize(&self) -> u32 {
        self.extentsize
    }

    /// Bytes per sector: a power of two up to 4096.
    pub fn sectorsize(&self) -> u32 {
        self.sectorsize
    }

    /// Byte of the provider at which the data area begins, a multiple of the sector size.
    pub fn localoff(&self) -> u64 {
        self.localoff
    }

    /// How many extents the data area has: 1 to 2^32 - 1.
    pub fn nextents(&self) -> u64 {
        nextents(self.datasize, self.extentsize)
    }

    /// Byte of the provider at which the activemap begins.
    pub fn map_offset(&self) -> u64 {
        METADATA_SIZE
    }

    /// Bytes between the metadata block and the data area. The map never goes past them, whatever a size computed
    /// from the provider says (L12).
    pub fn map_capacity(&self) -> u64 {
        self.localoff.saturating_sub(METADATA_SIZE)
    }

    /// Bytes of the activemap on disk: whole sectors, at most [`map_capacity`](Self::map_capacity).
    pub fn map_bytes(&self) -> u64 {
        on_disk_map_bytes(self.datasize, self.extentsize, self.sectorsize)
    }

    /// Bytes of the map that a secondary sends. The reference sizes it by the provider, not by the data area,
    /// so this is at least [`map_bytes`](Self::map_bytes) and may be more than what is there to read: the rest is sent as
    /// zeros. Below 2^30.
    pub fn sent_map_bytes(&self) -> u64 {
        on_disk_map_bytes(self.provider_size.saturating_sub(METADATA_SIZE), self.extentsize, self.sectorsize)
    }

    /// The extents that a range touches. The range has passed [`check_range`](Self::check_range).
    pub fn extents_of(&self, offset: u64, length: u64) -> Range<u32> {
        debug_assert!(self.check_range(offset, length).is_ok(), "unchecked range {offset}+{length}");
        let first = offset.checked_div(u64::from(self.extentsize)).unwrap_or_default();
        let end = nextents(offset.saturating_add(length), self.extentsize);
        extent_number(first)..extent_number(end)
    }

    /// First byte (in the data area) and length of an extent. The last extent may be short; one past it has length 0.
    pub fn extent_range(&self, extent: u32) -> (u64, u32) {
        let size = u64::from(self.extentsize);
        let offset = u64::from(extent).saturating_mul(size).min(self.datasize);
        let length = self.datasize.saturating_sub(offset).min(size);
        (offset, u32::try_from(length).unwrap_or(self.extentsize))
    }

    /// Whether a request for `length` bytes at `offset` of the data area is one: not empty, in whole sectors, inside.
    pub fn check_range(&self, offset: u64, length: u64) -> Result<(), RangeError> {
        let sector = u64::from(self.sectorsize);
        if length == 0 {
            return Err(RangeError::Empty);
        }
        if !offset.is_multiple_of(sector) {
            return Err(RangeError::Offset { offset, sectorsize: self.sectorsize });
        }
        if !length.is_multiple_of(sector) {
            return Err(RangeError::Length { length, sectorsize: self.sectorsize });
        }
        if offset.checked_add(length).is_none_or(|end| end > self.datasize) {
            return Err(RangeError::PastEnd { offset, length, datasize: self.datasize });
        }
        Ok(())
    }

    /// Extents are numbered in 32 bits, and so is the length of a map on the wire. The map that is sent has the most.
    fn check_extents(&self) -> Result<(), LayoutError> {
        let extents = nextents(self.provider_size.saturating_sub(METADATA_SIZE), self.extentsize);
        if extents > u64::from(u32::MAX) {
            return Err(LayoutError::TooManyExtents { extents });
        }
        Ok(())
    }
}

/// Why a provider cannot be laid out, or why what its metadata says cannot be true.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)]
pub enum LayoutError {
    /// The spec's "sector size no power of two". Above 4096 the metadata block is no whole sector, and no
    /// data area can begin behind it.
    #[error("sector size {sectorsize} is not a power of two up to 4096")]
    SectorSize { sectorsize: u32 },
    #[error("extent size {extentsize} is smaller than the sector size {sectorsize}")]
    ExtentBelowSector { extentsize: u32, sectorsize: u32 },
    #[error("extent size {extentsize} is not a multiple of the sector size {sectorsize}")]
    ExtentNoMultiple { extentsize: u32, sectorsize: u32 },
    #[error("extent size {extentsize} is not a power of two up to 1073741824 (1 GiB)")]
    ExtentSize { extentsize: u32 },
    #[error("keepdirty {keepdirty} is not a number from 1 to 2147483647")]
    Keepdirty { keepdirty: u64 },
    /// No room for data behind metadata and map.
    #[error("{size} bytes are too few for metadata, activemap and data")]
    TooSmall { size: u64 },
    #[error("{size} bytes are too many: offsets have 63 bits")]
    TooLarge { size: u64 },
    #[error("{extents} extents are too many; choose a larger extent size")]
    TooManyExtents { extents: u64 },
    #[error(
        "data size {datasize} in the metadata is not a positive multiple of the sector size {sectorsize}"
    )]
    Datasize { datasize: u64, sectorsize: u32 },
    #[error("data offset {localoff} in the metadata is not a multiple of the sector size {sectorsize}")]
    Localoff { localoff: u64, sectorsize: u32 },
    #[error("{datasize} bytes of data at {localoff} run past the end of the provider at {provider_size}")]
    PastEnd { localoff: u64, datasize: u64, provider_size: u64 },
    #[error("an activemap of {map} bytes runs into the data, which begins at {localoff}")]
    MapPastData { map: u64, localoff: u64 },
}

/// Why a request's range is refused. On the wire each of them is EINVAL.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)]
pub enum RangeError {
    #[error("the length is zero")]
    Empty,
    #[error("offset {offset} is not a multiple of the sector size {sectorsize}")]
    Offset { offset: u64, sectorsize: u32 },
    #[error("length {length} is not a multiple of the sector size {sectorsize}")]
    Length { length: u64, sectorsize: u32 },
    #[error("{length} bytes at {offset} run past the end of the data at {datasize}")]
    PastEnd { offset: u64, length: u64, datasize: u64 },
}

fn check_sectorsize(sectorsize: u32) -> Result<u64, LayoutError> {
    let sector = u64::from(sectorsize);
    if sectorsize.is_power_of_two() && sector <= METADATA_SIZE {
        Ok(sector)
    } else {
        Err(LayoutError::SectorSize { sectorsize })
    }
}

/// `sectorsize` has been checked.
fn check_extentsize(extentsize: u32, sectorsize: u32) -> Result<(), LayoutError> {
    if extentsize < sectorsize {
        Err(LayoutError::ExtentBelowSector { extentsize, sectorsize })
    } else if !extentsize.is_multiple_of(sectorsize) {
        Err(LayoutError::ExtentNoMultiple { extentsize, sectorsize })
    } else if !extentsize.is_power_of_two() || extentsize > EXTENTSIZE_MAX {
        Err(LayoutError::ExtentSize { extentsize })
    } else {
        Ok(())
    }
}

/// Extents of a layout fit 32 bits (`check_extents`).
fn extent_number(extent: u64) -> u32 {
    u32::try_from(extent).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn default_layout_of_64_mebibytes() {
        let layout = Layout::create(64 << 20, 512, EXTENTSIZE_DEFAULT).unwrap();
        assert_eq!(layout.localoff(), 4608);
        assert_eq!(layout.datasize(), 67_104_256);
        assert_eq!(layout.nextents(), 32);
        assert_eq!(layout.extent_range(31), (31 * (2 << 20), (2 << 20) - 4608));
        assert_eq!(layout.extent_range(32), (67_104_256, 0));
        assert_eq!(layout.extents_of(0, 512), 0..1);
        assert_eq!(layout.extents_of((2 << 20) - 512, 1024), 0..2);
        assert_eq!(layout.extents_of(2 << 20, 2 << 20), 1..2);
    }

    #[test]
    fn the_smallest_provider_has_one_sector_of_data() {
        for sector in [512, 1024, 2048, 4096] {
            let smallest = 4096 + 2 * u64::from(sector);
            let layout = Layout::create(smallest, sector, EXTENTSIZE_DEFAULT).unwrap();
            assert_eq!(layout.datasize(), u64::from(sector));
            for size in [0, 1, 4095, 4096, 4096 + u64::from(sector), smallest - 1] {
                assert_eq!(
                    Layout::create(size, sector, EXTENTSIZE_DEFAULT),
                    Err(LayoutError::TooSmall { size })
                );
            }
        }
    }

    #[test]
    fn an_aligned_layout_begins_on_a_boundary() {
        for sector in [512, 1024, 2048, 4096] {
            for size in [1 << 20, (64 << 20) + u64::from(sector), 1 << 40] {
                let plain = Layout::create(size, sector, EXTENTSIZE_DEFAULT).unwrap();
                let aligned = Layout::create_aligned(size, sector, EXTENTSIZE_DEFAULT).unwrap();
                assert!(aligned.localoff().is_multiple_of(ALIGNMENT), "{size} {sector}");
                assert!(aligned.datasize() > plain.datasize() - ALIGNMENT, "{size} {sector}");
                assert_eq!(aligned.localoff() + aligned.datasize(), plain.localoff() + plain.datasize());
                assert!(aligned.map_bytes() <= aligned.map_capacity());
            }
        }
        let aligned = Layout::create_aligned(64 << 20, 512, EXTENTSIZE_DEFAULT).unwrap();
        assert_eq!((aligned.localoff(), aligned.datasize()), (8192, (64 << 20) - 8192));
        // Where nothing would be left of the data there is no boundary.
        let small = Layout::create_aligned(8192, 512, EXTENTSIZE_DEFAULT).unwrap();
        assert_eq!((small.localoff(), small.datasize()), (4608, 3584));
        let small = Layout::create_aligned(8192 + 512, 512, EXTENTSIZE_DEFAULT).unwrap();
        assert_eq!((small.localoff(), small.datasize()), (8192, 512));
    }

    #[test]
    fn a_part_of_a_provider_moves_to_a_boundary_and_keeps_its_size() {
        let part = Layout::create(64 << 20, 512, EXTENTSIZE_DEFAULT).unwrap();
        let end = part.localoff() + part.datasize();
        for (provider, localoff) in [
            (end, 4608),
            (end + 3583, 4608),
            (end + 3584, 8192),
            (end + (1 << 20) - 4608 - 1, 8192),
            (end + (1 << 20) - 4608, 1 << 20),
            (u64::MAX, 1 << 20),
        ] {
            let moved = part.moved_to_boundary(provider);
            assert_eq!((moved.localoff(), moved.datasize()), (localoff, part.datasize()), "{provider}");
        }
    }

    #[test]
    fn an_odd_length_is_rounded_down() {
        let odd = Layout::create((64 << 20) + 511, 512, EXTENTSIZE_DEFAULT).unwrap();
        assert_eq!(odd.datasize(), 67_104_256);
        assert_eq!(odd.localoff(), 4608);
    }

    #[test]
    fn refuses_sector_sizes() {
        for sectorsize in [0, 3, 513, 1536, 8192, 1 << 31, u32::MAX] {
            assert_eq!(
                Layout::create(1 << 30, sectorsize, EXTENTSIZE_DEFAULT),
                Err(LayoutError::SectorSize { sectorsize })
            );
        }
    }

    #[test]
    fn refuses_extent_sizes() {
        let create = |extentsize| Layout::create(1 << 40, 512, extentsize);
        for extentsize in [0, 1, 256, 511] {
            assert_eq!(
                create(extentsize),
                Err(LayoutError::ExtentBelowSector { extentsize, sectorsize: 512 })
            );
        }
        assert_eq!(create(1000), Err(LayoutError::ExtentNoMultiple { extentsize: 1000, sectorsize: 512 }));
        for extentsize in [1536, 3 << 20, 1 << 31] {
            assert_eq!(create(extentsize), Err(LayoutError::ExtentSize { extentsize }));
        }
        assert!(create(512).is_ok());
        assert!(create(1 << 30).is_ok());
    }

    #[test]
    fn extents_are_numbered_in_32_bits() {
        let most = METADATA_SIZE + 512 * u64::from(u32::MAX);
        let layout = Layout::create(most, 512, 512).unwrap();
        assert!(layout.sent_map_bytes() < 1 << 30);
        assert_eq!(layout.extents_of(layout.datasize() - 512, 512).end as u64, layout.nextents());
        assert_eq!(
            Layout::create(most + 512, 512, 512),
            Err(LayoutError::TooManyExtents { extents: 1 << 32 })
        );
    }

    #[test]
    fn sizes_have_63_bits() {
        let size = 1 << 63;
        assert_eq!(Layout::create(size, 512, 1 << 30), Err(LayoutError::TooLarge { size }));
        // One below is within bounds, but has too many extents of any size.
        assert!(matches!(Layout::create(size - 1, 512, 1 << 30), Err(LayoutError::TooManyExtents { .. })));
    }

    #[test]
    fn keepdirty_of_zero_is_the_default() {
        assert_eq!(keepdirty(0), Ok(64));
        assert_eq!(keepdirty(1), Ok(1));
        assert_eq!(keepdirty((1 << 31) - 1), Ok((1 << 31) - 1));
        for keepdirty in [1 << 31, 1 << 32, (1 << 32) + 1, u64::MAX] {
            assert_eq!(super::keepdirty(keepdirty), Err(LayoutError::Keepdirty { keepdirty }));
        }
    }

    #[test]
    fn sizes_of_nothing() {
        assert_eq!(nextents(0, 512), 0);
        assert_eq!(nextents(512, 0), 0);
        assert_eq!(map_bytes(0), 0);
        assert_eq!(map_bytes(u64::MAX), 1 << 61);
        assert_eq!(on_disk_map_bytes(u64::MAX, 1, u32::MAX) % u64::from(u32::MAX), 0);
        assert_eq!(on_disk_map_bytes(1 << 20, 512, 0), 256);
    }

    #[test]
    #[cfg(feature = "alloc")]
    fn believes_nothing_from_the_disk() {
        use crate::extension::Extension;
        use crate::metadata::{Metadata, Role};
        let provider = 64 << 20;
        let good = Metadata {
            resource: "r".into(),
            datasize: 67_104_256,
            extentsize: EXTENTSIZE_DEFAULT,
            keepdirty: 64,
            localoff: 4608,
            resuid: 0,
            localcnt: 0,
            remotecnt: 0,
            prevrole: Role::Init,
            extension: Extension::default(),
        };
        let open = |change: &dyn Fn(&mut Metadata)| {
            let mut metadata = good.clone();
            change(&mut metadata);
            Layout::open(&metadata, provider, 512)
        };
        assert_eq!(open(&|_| ()).unwrap(), Layout::create(provider, 512, EXTENTSIZE_DEFAULT).unwrap());
        let sectorsize = 512;
        assert_eq!(open(&|m| m.datasize = 0), Err(LayoutError::Datasize { datasize: 0, sectorsize }));
        assert_eq!(
            open(&|m| m.datasize -= 1),
            Err(LayoutError::Datasize { datasize: 67_104_255, sectorsize })
        );
        assert_eq!(open(&|m| m.localoff = 4097), Err(LayoutError::Localoff { localoff: 4097, sectorsize }));
        for (localoff, datasize) in [
            (4608, 67_104_768),
            (5120, 67_104_256),
            (4608, u64::MAX - 511),
            (u64::MAX - 511, 512),
            (u64::MAX - 511, u64::MAX - 511),
        ] {
            let past = LayoutError::PastEnd { localoff, datasize, provider_size: provider };
            assert_eq!(open(&|m| (m.localoff, m.datasize) = (localoff, datasize)), Err(past));
        }
        for localoff in [0, 512, 4096] {
            assert_eq!(
                open(&|m| m.localoff = localoff),
                Err(LayoutError::MapPastData { map: 512, localoff })
            );
        }
        // 64 MiB in 512-byte extents need 16384 bytes of map.
        assert_eq!(
            open(&|m| m.extentsize = 512),
            Err(LayoutError::MapPastData { map: 16_384, localoff: 4608 })
        );
        assert_eq!(
            open(&|m| m.extentsize = 256),
            Err(LayoutError::ExtentBelowSector { extentsize: 256, sectorsize })
        );
        assert_eq!(open(&|m| m.extentsize = 3 << 20), Err(LayoutError::ExtentSize { extentsize: 3 << 20 }));
        assert_eq!(open(&|m| m.keepdirty = 0), Err(LayoutError::Keepdirty { keepdirty: 0 }));
        assert_eq!(open(&|m| m.keepdirty = 1 << 31), Err(LayoutError::Keepdirty { keepdirty: 1 << 31 }));
        assert!(open(&|m| m.keepdirty = 1).is_ok());
        // The same disk behind larger sectors: the data is not where they begin.
        assert_eq!(
            Layout::open(&good, provider, 4096),
            Err(LayoutError::Datasize { datasize: 67_104_256, sectorsize: 4096 })
        );
        assert_eq!(Layout::open(&good, 1 << 63, 512), Err(LayoutError::TooLarge { size: 1 << 63 }));
        assert!(matches!(Layout::open(&good, (1 << 63) - 1, 512), Err(LayoutError::TooManyExtents { .. })));
        // create -m smaller than the provider: the map that is sent is sized by the provider, the map on disk is not.
        let small = Layout::create(32 << 20, 512, 4096).unwrap();
        let metadata =
            Metadata { datasize: small.datasize(), extentsize: 4096, localoff: small.localoff(), ..good };
        let layout = Layout::open(&metadata, 64 << 20, 512).unwrap();
        assert_eq!(layout.map_bytes(), 1024);
        assert_eq!(layout.map_capacity(), 1024);
        assert_eq!(layout.sent_map_bytes(), 2048);
    }
}
