//! The layout: parts that do not overlap and end inside the medium, extents for all bytes and bits for all
//! extents, and exactly the sizes refused that spec/on-disk.md ("Arithmetic") refuses; and which requests lie
//! inside the data area.
//!
//! The formulas of the spec are written down once more, in 128 bits, where nothing overflows.

use hast_format::extension::Extension;
use hast_format::layout::Layout;
use hast_format::metadata::{Metadata, Role};

use crate::source::{Case, Source};

/// The code under proof.
pub trait Subject {
    /// The layout that `create` makes of a medium; `None` if it refuses.
    fn create(mediasize: u64, sectorsize: u32, extentsize: u32) -> Option<Layout> {
        Layout::create(mediasize, sectorsize, extentsize).ok()
    }

    /// The layout of a provider that says so of itself; `None` if that is not believed.
    fn open(metadata: &Metadata, provider: u64, sectorsize: u32) -> Option<Layout> {
        Layout::open(metadata, provider, sectorsize).ok()
    }

    /// Where a layout says that its parts are.
    fn parts(layout: &Layout) -> Parts {
        Parts {
            map_offset: layout.map_offset(),
            map_bytes: layout.map_bytes(),
            sent_map_bytes: layout.sent_map_bytes(),
            localoff: layout.localoff(),
            datasize: layout.datasize(),
            nextents: layout.nextents(),
        }
    }

    /// The extents of a range that is inside the data area.
    fn extents_of(layout: &Layout, offset: u64, length: u64) -> core::ops::Range<u32> {
        layout.extents_of(offset, length)
    }

    /// First byte and length of an extent.
    fn extent_range(layout: &Layout, extent: u32) -> (u64, u32) {
        layout.extent_range(extent)
    }

    /// Whether a request is taken.
    fn accepts(layout: &Layout, offset: u64, length: u64) -> bool {
        layout.check_range(offset, length).is_ok()
    }
}

/// The code as it ships.
#[derive(Clone, Copy, Debug)]
pub struct Real;
impl Subject for Real {}

/// The numbers of a layout, in bytes and extents.
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs)]
pub struct Parts {
    pub map_offset: u64,
    pub map_bytes: u64,
    pub sent_map_bytes: u64,
    pub localoff: u64,
    pub datasize: u64,
    pub nextents: u64,
}

/// Sector sizes: all that are accepted, and some of every kind that are not.
const SECTORS: [u64; 20] = [
    512,
    4096,
    1,
    2,
    4,
    8,
    16,
    32,
    64,
    128,
    256,
    1024,
    2048,
    0,
    3,
    513,
    4095,
    8192,
    1 << 31,
    u32::MAX as u64,
];

/// Media of any size: what `create` makes of them, or that it refuses.
pub fn created<T: Subject>(source: &mut impl Source) -> Case {
    let sectorsize = source.small(&SECTORS);
    let extentsize = source.small(&extentsizes(sectorsize));
    let media = source.number(0..=u64::MAX, &media(sectorsize, extentsize));
    let layout = T::create(media, sectorsize, extentsize);
    let expected = creatable(media, sectorsize, extentsize);
    let found = layout.as_ref().map(T::parts).map(|p| (u128::from(p.datasize), u128::from(p.localoff)));
    assert_eq!(found, expected, "medium {media}, sectors {sectorsize}, extents {extentsize}");
    let Some(layout) = layout else { return Ok(()) };
    sound::<T>(source, &layout, media, sectorsize, extentsize);
    Ok(())
}

/// Metadata with any numbers on providers of any size: what is believed, and that what is believed is sound.
pub fn opened<T: Subject>(source: &mut impl Source) -> Case {
    let sectorsize = source.small(&[512, 4096, 1, 0, 8192]);
    let extentsize = source.small(&[4096, 512, 1 << 21, 1 << 30, 1 << 31, 1536, 0]);
    let sector = u64::from(sectorsize).max(1);
    let provider = source.number(
        0..=u64::MAX,
        &[0, 4095, 4096 + 2 * sector, 1 << 20, (1 << 20) + 1, 1 << 40, (1 << 63) - 1, 1 << 63, u64::MAX],
    );
    let localoff = source.number(
        0..=u64::MAX,
        &[
            4096 + sector,
            4096,
            4096 - sector.min(4096),
            4096 + sector + 1,
            4096 + 64 * sector,
            0,
            u64::MAX - sector + 1,
        ],
    );
    let rest = provider.wrapping_sub(localoff);
    let few = [
        rest,
        rest.wrapping_sub(sector),
        rest.wrapping_add(sector),
        rest / sector * sector,
        0,
        sector,
        sector - 1,
        sector.saturating_mul(512).saturating_mul(u64::from(extentsize).clamp(1, 1 << 30)),
        u64::MAX - sector + 1,
    ];
    let datasize = source.number(0..=u64::MAX, &few);
    let keepdirty = source.small(&[1, 0, 64, i32::MAX as u64, 1 << 31, u32::MAX as u64]);
    let metadata = Metadata {
        resource: "r".into(),
        datasize,
        extentsize,
        keepdirty,
        localoff,
        resuid: 0,
        localcnt: 0,
        remotecnt: 0,
        prevrole: Role::Init,
        extension: Extension::default(),
    };
    let layout = T::open(&metadata, provider, sectorsize);
    assert_eq!(
        layout.is_some(),
        believable(&metadata, provider, sectorsize),
        "{metadata:?} on {provider} bytes in sectors of {sectorsize}"
    );
    let Some(layout) = layout else { return Ok(()) };
    let parts = T::parts(&layout);
    assert_eq!((parts.datasize, parts.localoff), (datasize, localoff));
    sound::<T>(source, &layout, provider, sectorsize, extentsize);
    Ok(())
}

/// A request is taken exactly when its range, a mathematical one, is not empty, in whole sectors and inside the
/// data area; and then it touches exactly the extents that it shares bytes with.
pub fn requests<T: Subject>(source: &mut impl Source) -> Case {
    let sectorsize = source.pick(&[1_u32, 2, 512, 4096]);
    let extentsize = sectorsize * source.pick(&[1_u32, 2, 4]);
    let sector = u64::from(sectorsize);
    let map = 8_u64.next_multiple_of(sector);
    let media = 4096 + map + source.number(sector..=sector * 60, &[1, 2, 7, 12].map(|n| n * sector));
    let Some(layout) = T::create(media, sectorsize, extentsize) else {
        panic!("{media} bytes in sectors of {sectorsize} are refused");
    };
    let size = T::parts(&layout).datasize;
    let mut few: Vec<u64> = (0..=size / sector + 2).map(|n| n * sector).collect();
    few.extend([1, sector - 1, size - 1, size + 1, u64::MAX - sector + 1, u64::MAX, 1 << 63, 1 << 32]);
    let offset = source.number(0..=u64::MAX, &few);
    let length = source.number(0..=u64::MAX, &few);
    let (start, end) = (u128::from(offset), u128::from(offset) + u128::from(length));
    let inside = start < end
        && end <= u128::from(size)
        && offset.is_multiple_of(sector)
        && length.is_multiple_of(sector);
    assert_eq!(T::accepts(&layout, offset, length), inside, "{length} bytes at {offset} of {size}");
    if inside {
        let touched = T::extents_of(&layout, offset, length);
        for extent in 0..T::parts(&layout).nextents as u32 + 1 {
            let (first, bytes) = T::extent_range(&layout, extent);
            let shares = first < offset + length && offset < first + u64::from(bytes);
            assert_eq!(touched.contains(&extent), shares, "extent {extent} and {length} bytes at {offset}");
        }
    }
    Ok(())
}

/// What holds for every layout, wherever it comes from.
fn sound<T: Subject>(
    source: &mut impl Source,
    layout: &Layout,
    provider: u64,
    sectorsize: u32,
    extentsize: u32,
) {
    let parts = T::parts(layout);
    let wide = u128::from;
    let (sector, extent) = (u64::from(sectorsize), u64::from(extentsize));
    // Metadata, map and data, in this order, up to the end at most.
    assert_eq!(parts.map_offset, 4096);
    assert!(wide(parts.map_offset) + wide(parts.map_bytes) <= wide(parts.localoff), "{parts:?}");
    assert!(wide(parts.localoff) + wide(parts.datasize) <= wide(provider), "{parts:?} of {provider}");
    assert!(parts.datasize > 0 && parts.datasize.is_multiple_of(sector));
    assert!(parts.localoff.is_multiple_of(sector));
    // A bit for every extent, in whole sectors, and no more of them than there need be.
    assert_eq!(wide(parts.nextents), extents(wide(parts.datasize), extentsize));
    assert!(parts.nextents >= 1 && parts.nextents <= u64::from(u32::MAX));
    assert_eq!(wide(parts.map_bytes), map(wide(parts.datasize), extentsize, sectorsize));
    assert!(wide(parts.map_bytes) * 8 >= wide(parts.nextents));
    // What is sent is sized by the provider and never less.
    assert_eq!(wide(parts.sent_map_bytes), map(wide(provider) - 4096, extentsize, sectorsize));
    assert!(parts.sent_map_bytes >= parts.map_bytes && parts.sent_map_bytes < 1 << 30);
    // Any byte: the extent of its sector is the one that it lies in, and no other.
    let few = [0, extent - 1, extent, parts.datasize - 1, parts.datasize / 2]
        .map(|byte| byte.min(parts.datasize - 1));
    let byte = source.number(0..=parts.datasize - 1, &few);
    let touched = T::extents_of(layout, byte / sector * sector, sector);
    assert_eq!(touched.len(), 1, "byte {byte}");
    assert_eq!(u64::from(touched.start), byte / extent, "byte {byte}");
    assert!(u64::from(touched.start) < parts.nextents);
    let (first, length) = T::extent_range(layout, touched.start);
    assert!(first <= byte && byte < first + u64::from(length), "byte {byte} in {first}+{length}");
    // Extents follow each other without a gap, up to the end of the data and not past it.
    let end = first + u64::from(length);
    assert!(length > 0 && end <= parts.datasize);
    if u64::from(touched.end) < parts.nextents {
        assert_eq!((end, u64::from(length)), (T::extent_range(layout, touched.end).0, extent));
    } else {
        assert_eq!(end, parts.datasize);
    }
}

/// Spec: `nextents = (x - 1) / extentsize + 1`.
fn extents(x: u128, extentsize: u32) -> u128 {
    if x == 0 { 0 } else { (x - 1) / u128::from(extentsize) + 1 }
}

/// Spec: `ondisk_map`.
fn map(x: u128, extentsize: u32, sectorsize: u32) -> u128 {
    let roundup = |x: u128, to: u128| x.div_ceil(to) * to;
    roundup(roundup(extents(x, extentsize), 64) / 8, sectorsize.into())
}

/// The sizes that the spec accepts. A sector above 4096 bytes would be larger than the metadata.
fn sizes_fit(sectorsize: u32, extentsize: u32) -> bool {
    let power_of_two = |n: u32| n != 0 && n & (n - 1) == 0;
    power_of_two(sectorsize)
        && sectorsize <= 4096
        && power_of_two(extentsize)
        && extentsize >= sectorsize
        && extentsize <= 1 << 30
}

/// Offsets have 63 bits and extents 32.
fn numbers_fit(provider: u64, extentsize: u32) -> bool {
    provider < 1 << 63
        && extents(u128::from(provider).saturating_sub(4096), extentsize) <= u128::from(u32::MAX)
}

/// Datasize and localoff, or `None` where `create` has to refuse.
fn creatable(mediasize: u64, sectorsize: u32, extentsize: u32) -> Option<(u128, u128)> {
    if !sizes_fit(sectorsize, extentsize) || !numbers_fit(mediasize, extentsize) {
        return None;
    }
    let media = u128::from(mediasize - mediasize % u64::from(sectorsize));
    let x = media.checked_sub(4096)?;
    let map = map(x, extentsize, sectorsize);
    let datasize = x.checked_sub(map).filter(|datasize| *datasize > 0)?;
    Some((datasize, 4096 + map))
}

/// Whether `open` has to take these numbers.
fn believable(m: &Metadata, provider: u64, sectorsize: u32) -> bool {
    let (datasize, localoff) = (u128::from(m.datasize), u128::from(m.localoff));
    sizes_fit(sectorsize, m.extentsize)
        && numbers_fit(provider, m.extentsize)
        && (1..=i32::MAX as u32).contains(&m.keepdirty)
        && datasize > 0
        && datasize.is_multiple_of(sectorsize.into())
        && localoff.is_multiple_of(sectorsize.into())
        && localoff + datasize <= provider.into()
        && 4096 + map(datasize, m.extentsize, sectorsize) <= localoff
}

/// All powers of two, and what is none.
fn extentsizes(sectorsize: u32) -> Vec<u64> {
    let mut few: Vec<u64> = (0..32).map(|bits| 1 << bits).collect();
    few.extend([0, 1536, 3 << 20, (1 << 30) + 1, u32::MAX as u64, u64::from(sectorsize)]);
    few
}

/// Sizes around those at which something changes: too small, one extent more, one sector of map more, too large.
fn media(sectorsize: u32, extentsize: u32) -> Vec<u64> {
    let (sector, extent) = (u64::from(sectorsize), u64::from(extentsize));
    let base = 4096 + sector;
    let edges = [
        0,
        4096,
        base,
        base + sector,
        base + extent,
        base + 64 * extent,
        base.saturating_add(sector.saturating_mul(extent).saturating_mul(8)),
        4096 + extent * u64::from(u32::MAX),
        1 << 32,
        1 << 40,
        1 << 63,
        u64::MAX - 1,
    ];
    let around = |edge: u64| {
        [
            edge.saturating_sub(sector),
            edge.saturating_sub(1),
            edge,
            edge.saturating_add(1),
            edge.saturating_add(sector),
        ]
    };
    edges.into_iter().flat_map(around).collect()
}
