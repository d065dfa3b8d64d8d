//! The arithmetic of providers of any size, against the formulas of the spec in 128 bits; and metadata with any values.
#![cfg(feature = "alloc")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use hast_format::extension::Extension;
use hast_format::layout::{self, Layout};
use hast_format::metadata::{Metadata, RESOURCE_NAME_MAX, Role};
use proptest::prelude::*;

fn roundup(x: u128, to: u128) -> u128 {
    x.div_ceil(to) * to
}

/// Spec: `nextents`, `mapbytes`, `ondisk_map`, for x > 0.
fn ondisk_map(x: u128, extentsize: u32, sectorsize: u32) -> u128 {
    let nextents = (x - 1) / u128::from(extentsize) + 1;
    roundup(roundup(nextents, 64) / 8, sectorsize.into())
}

fn sizes_ok(sectorsize: u32, extentsize: u32) -> bool {
    let power_of_two = |n: u32| n.count_ones() == 1;
    power_of_two(sectorsize)
        && extentsize >= sectorsize
        && extentsize.is_multiple_of(sectorsize)
        && power_of_two(extentsize)
        && extentsize <= 1 << 30
}

/// Extents have numbers of 32 bits, sizes have 63.
fn numbers_fit(provider: u64, extentsize: u32) -> bool {
    let x = u128::from(provider).saturating_sub(4096);
    provider < 1 << 63 && x.div_ceil(extentsize.into()) < 1 << 32
}

/// Datasize and localoff, or `None` where `create` refuses.
fn created(mediasize: u64, sectorsize: u32, extentsize: u32) -> Option<(u128, u128)> {
    if !sizes_ok(sectorsize, extentsize) || !numbers_fit(mediasize, extentsize) {
        return None;
    }
    let media = u128::from(mediasize) / u128::from(sectorsize) * u128::from(sectorsize);
    let x = media.checked_sub(4096).filter(|x| *x > 0)?;
    let map = ondisk_map(x, extentsize, sectorsize);
    let datasize = x.checked_sub(map).filter(|size| *size > 0 && size % u128::from(sectorsize) == 0)?;
    Some((datasize, 4096 + map))
}

/// Whether `open` takes these numbers.
fn openable(m: &Metadata, provider: u64, sectorsize: u32) -> bool {
    let sector = u128::from(sectorsize);
    let (datasize, localoff) = (u128::from(m.datasize), u128::from(m.localoff));
    sizes_ok(sectorsize, m.extentsize)
        && sectorsize <= 4096
        && (1..1 << 31).contains(&m.keepdirty)
        && numbers_fit(provider, m.extentsize)
        && datasize > 0
        && datasize.is_multiple_of(sector)
        && localoff.is_multiple_of(sector)
        && localoff + datasize <= provider.into()
        && 4096 + ondisk_map(datasize, m.extentsize, sectorsize) <= localoff
}

/// What holds for every layout, wherever it comes from.
fn check(layout: &Layout, provider: u64) {
    let (datasize, localoff) = (u128::from(layout.datasize()), u128::from(layout.localoff()));
    let (sector, extent) = (u128::from(layout.sectorsize()), u128::from(layout.extentsize()));
    // Metadata, map and data follow each other and end inside the provider.
    assert_eq!(layout.map_offset(), 4096);
    assert!(layout.map_bytes() <= layout.map_capacity());
    assert_eq!(u128::from(layout.map_capacity()) + 4096, localoff);
    assert!(localoff + datasize <= provider.into());
    assert!(datasize > 0 && datasize.is_multiple_of(sector) && localoff.is_multiple_of(sector));
    // Every extent has a bit, on disk and in what is sent.
    let extents = u128::from(layout.nextents());
    assert_eq!(extents, datasize.div_ceil(extent));
    assert!(extents <= u128::from(u32::MAX));
    assert!(extents <= u128::from(layout.map_bytes()) * 8);
    assert!(u128::from(layout.map_bytes()).is_multiple_of(sector));
    assert_eq!(
        u128::from(layout.map_bytes()),
        ondisk_map(datasize, layout.extentsize(), layout.sectorsize())
    );
    let x = u128::from(provider) - 4096;
    assert_eq!(u128::from(layout.sent_map_bytes()), ondisk_map(x, layout.extentsize(), layout.sectorsize()));
    assert!(layout.sent_map_bytes() >= layout.map_bytes());
    assert!(layout.sent_map_bytes() < 1 << 30);
    // The extents are the data area in pieces; only the last may be short.
    let last = (extents - 1) as u32;
    for extent_number in [0, 1, last / 2, last.saturating_sub(1), last] {
        if extent_number <= last {
            let (offset, length) = layout.extent_range(extent_number);
            let start = u128::from(extent_number) * extent;
            assert_eq!(u128::from(offset), start);
            assert_eq!(u128::from(length), extent.min(datasize - start));
        }
    }
    assert_eq!(layout.extent_range(last.saturating_add(1)).1, if last == u32::MAX { 1 } else { 0 });
    assert_eq!(layout.extents_of(0, layout.datasize()), 0..extents as u32);
}

/// Sizes around those that matter, and any.
fn size() -> impl Strategy<Value = u64> {
    prop_oneof![
        0u64..20_000,
        0u64..1 << 32,
        (0u32..64, -5000i64..5000).prop_map(|(bits, off)| (1u64 << bits).wrapping_add_signed(off)),
        (1u64..1 << 40).prop_map(|sectors| sectors * 512),
        any::<u64>(),
    ]
}

fn sectorsize() -> impl Strategy<Value = u32> {
    prop_oneof![16 => (9u32..=12).prop_map(|bits| 1 << bits), 2 => (0u32..32).prop_map(|bits| 1 << bits), 1 => any::<u32>()]
}

fn extentsize() -> impl Strategy<Value = u32> {
    prop_oneof![
        16 => (9u32..=30).prop_map(|bits| 1 << bits),
        2 => (0u32..32).prop_map(|bits| 1 << bits),
        2 => (1u32..1000).prop_map(|n| n * 512),
        1 => any::<u32>(),
    ]
}

fn role() -> impl Strategy<Value = Role> {
    prop::sample::select(vec![Role::Init, Role::Primary, Role::Secondary])
}

prop_compose! {
    fn metadata()(
        resource in proptest::collection::vec(prop::char::range('\u{1}', '\u{7f}'), 0..=RESOURCE_NAME_MAX),
        (datasize, localoff) in (size(), size()),
        extentsize in extentsize(),
        keepdirty in any::<u32>(),
        (resuid, localcnt, remotecnt) in any::<(u64, u64, u64)>(),
        prevrole in role(),
    ) -> Metadata {
        let resource = resource.into_iter().collect();
        let extension = Extension::default();
        Metadata { resource, datasize, extentsize, keepdirty, localoff, resuid, localcnt, remotecnt, prevrole, extension }
    }
}

/// Metadata of a provider, true but for a few fields.
fn nearly_true() -> impl Strategy<Value = (Metadata, u64, u32)> {
    let sizes = (size(), sectorsize(), extentsize());
    let near = prop_oneof![-1024i64..1024, (-8i64..8).prop_map(|sectors| sectors * 512)];
    let damage = proptest::collection::vec((0..6u32, size(), near), 0..3);
    (metadata(), sizes, damage).prop_filter_map("no layout", |(mut m, (provider, sector, extent), damage)| {
        let layout = Layout::create(provider, sector, extent).ok()?;
        (m.datasize, m.localoff, m.extentsize) = (layout.datasize(), layout.localoff(), extent);
        m.keepdirty = m.keepdirty.clamp(1, i32::MAX as u32);
        let (mut provider, mut sector) = (provider, sector);
        for (what, any, near) in damage {
            match what {
                0 => m.datasize = m.datasize.wrapping_add_signed(near),
                1 => m.localoff = m.localoff.wrapping_add_signed(near),
                2 => m.datasize = any,
                3 => provider = provider.wrapping_add_signed(near),
                4 => sector = sector.wrapping_mul(2),
                _ => m.extentsize = m.extentsize.wrapping_mul(2),
            }
        }
        Some((m, provider, sector))
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn create_is_the_formula(mediasize in size(), sectorsize in sectorsize(), extentsize in extentsize()) {
        let layout = Layout::create(mediasize, sectorsize, extentsize);
        let expected = created(mediasize, sectorsize, extentsize);
        let got = layout.map(|l| (u128::from(l.datasize()), u128::from(l.localoff())));
        prop_assert_eq!(got.ok(), expected, "{:?}", layout);
        if let Ok(layout) = layout {
            check(&layout, mediasize);
            let metadata = Metadata {
                resource: "r".into(),
                datasize: layout.datasize(),
                extentsize,
                keepdirty: layout::KEEPDIRTY_DEFAULT,
                localoff: layout.localoff(),
                resuid: 0,
                localcnt: 0,
                remotecnt: 0,
                prevrole: Role::Init,
                extension: Extension::default(),
            };
            prop_assert_eq!(Layout::open(&metadata, mediasize, sectorsize), Ok(layout));
        }
    }

    #[test]
    fn open_believes_what_can_be_true((metadata, provider, sectorsize) in nearly_true()) {
        let layout = Layout::open(&metadata, provider, sectorsize);
        prop_assert_eq!(layout.is_ok(), openable(&metadata, provider, sectorsize), "{:?}", layout);
        if let Ok(layout) = layout {
            check(&layout, provider);
        }
    }

    #[test]
    fn open_never_panics(metadata in metadata(), provider in size(), sectorsize in sectorsize()) {
        let layout = Layout::open(&metadata, provider, sectorsize);
        prop_assert_eq!(layout.is_ok(), openable(&metadata, provider, sectorsize), "{:?}", layout);
    }

    #[test]
    fn sizes_of_anything(size in any::<u64>(), extentsize in any::<u32>(), sectorsize in any::<u32>()) {
        let map = layout::on_disk_map_bytes(size, extentsize, sectorsize);
        if size > 0 && extentsize > 0 && sectorsize > 0 {
            prop_assert_eq!(u128::from(map), ondisk_map(size.into(), extentsize, sectorsize));
        }
    }

    #[test]
    fn ranges(
        (provider, sectorsize, extentsize) in (size(), sectorsize(), extentsize()),
        offset in size(),
        length in size(),
        aligned in any::<bool>(),
        from_end in any::<bool>(),
    ) {
        let Ok(layout) = Layout::create(provider, sectorsize, extentsize) else { return Ok(()) };
        let (mut offset, mut length) = (offset, length);
        if from_end {
            offset = layout.datasize().wrapping_sub(offset % (4 * u64::from(extentsize)));
            length %= 4 * u64::from(extentsize);
        }
        if aligned {
            offset -= offset % u64::from(sectorsize);
            length -= length % u64::from(sectorsize);
        }
        let valid = length > 0
            && offset.is_multiple_of(u64::from(sectorsize))
            && length.is_multiple_of(u64::from(sectorsize))
            && u128::from(offset) + u128::from(length) <= u128::from(layout.datasize());
        prop_assert_eq!(layout.check_range(offset, length).is_ok(), valid);
        if valid {
            let extents = layout.extents_of(offset, length);
            prop_assert_eq!(u64::from(extents.start), offset / u64::from(extentsize));
            prop_assert_eq!(u64::from(extents.end), (offset + length - 1) / u64::from(extentsize) + 1);
            prop_assert!(u64::from(extents.end) <= layout.nextents());
        }
    }

    #[test]
    fn metadata_round_trip(metadata in metadata()) {
        let block = metadata.encode();
        prop_assert_eq!(Metadata::decode(&block), Ok(metadata));
        prop_assert!(block[510..].iter().all(|byte| *byte == 0));
    }

    #[test]
    fn damaged_metadata_never_panics(metadata in metadata(), damage in proptest::collection::vec((0usize..300, any::<u8>()), 1..4)) {
        let mut block = metadata.encode();
        for (at, byte) in damage {
            block[at] = byte;
        }
        if let Ok(metadata) = Metadata::decode(&block) {
            // What is believed can be written and read again.
            prop_assert_eq!(Metadata::decode(&metadata.encode()), Ok(metadata));
        }
    }
}
