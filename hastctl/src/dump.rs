//! `hastctl dump`: what a provider says about itself, without a daemon.
//!
//! Only reads, and takes no lock: a provider in use can be looked at, though what is seen then may be a
//! moment old.

use std::fmt::Write;

use hast_format::bitmap::Bitmap;
use hast_format::layout::{Layout, LayoutError};
use hast_format::metadata::Metadata;
use hast_provider::{Provider, ProviderError};

use crate::human::printable;
use hast_net::human::human;

/// The metadata as the original prints it.
pub(crate) fn metadata(metadata: &Metadata) -> String {
    format!(
        "resource: {}\n\
         \x20   datasize: {} ({})\n\
         \x20   extentsize: {} ({})\n\
         \x20   keepdirty: {}\n\
         \x20   localoff: {}\n\
         \x20   resuid: {}\n\
         \x20   localcnt: {}\n\
         \x20   remotecnt: {}\n\
         \x20   prevrole: {}\n",
        printable(&metadata.resource),
        metadata.datasize,
        human(metadata.datasize),
        metadata.extentsize,
        human(metadata.extentsize.into()),
        metadata.keepdirty,
        metadata.localoff,
        metadata.resuid,
        metadata.localcnt,
        metadata.remotecnt,
        metadata.prevrole
    )
}

/// Reads the map of `provider` and describes it: how many extents may differ between the nodes, how much
/// data that is, and which extents they are.
pub(crate) fn map(provider: &Provider, metadata: &Metadata) -> Result<String, MapError> {
    let layout = Layout::open(metadata, provider.mediasize(), provider.sectorsize())
        .map_err(|error| MapError::Layout { path: provider.path().display().to_string(), error })?;
    Ok(describe(&layout, &provider.read_map(&layout)?))
}

/// Why a map cannot be shown.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MapError {
    #[error("Unable to read activemap from {path}: {error}.")]
    Layout { path: String, error: LayoutError },
    #[error("{0}")]
    Read(#[from] ProviderError),
}

fn describe(layout: &Layout, map: &[u8]) -> String {
    // Extents are counted in 32 bits: `Layout` makes sure.
    let extents = u32::try_from(layout.nextents()).unwrap_or(u32::MAX);
    let dirty = Bitmap::from_bytes(extents, map);
    let bytes: u64 = dirty.iter().map(|extent| u64::from(layout.extent_range(extent).1)).sum();
    let mut out = format!(
        "    dirty extents: {} of {extents}\n    dirty bytes: {bytes} ({})\n    dirty ranges:\n",
        dirty.count(),
        human(bytes)
    );
    for (first, last) in ranges(dirty.iter()) {
        // Writing to a string cannot fail.
        let _ = if first == last {
            writeln!(out, "        {first}")
        } else {
            writeln!(out, "        {first}-{last}")
        };
    }
    out
}

/// Joins ascending numbers that follow each other.
fn ranges(numbers: impl Iterator<Item = u32>) -> impl Iterator<Item = (u32, u32)> {
    let mut numbers = numbers.peekable();
    std::iter::from_fn(move || {
        let first = numbers.next()?;
        let mut last = first;
        while let Some(next) = numbers.next_if(|next| last.checked_add(1) == Some(*next)) {
            last = next;
        }
        Some((first, last))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_share_a_range() {
        let joined = |numbers: &[u32]| ranges(numbers.iter().copied()).collect::<Vec<_>>();
        assert_eq!(joined(&[]), []);
        assert_eq!(joined(&[7]), [(7, 7)]);
        assert_eq!(joined(&[0, 1, 2, 5, 7, 8]), [(0, 2), (5, 5), (7, 8)]);
        assert_eq!(joined(&[u32::MAX - 1, u32::MAX]), [(u32::MAX - 1, u32::MAX)]);
    }

    #[test]
    fn a_map_is_described_without_its_padding() {
        let layout = Layout::create(64 << 20, 512, 2 << 20).unwrap();
        let mut map = vec![0; 512];
        // Extents 0, 1 and 31 (the short last one) of 32, and a bit behind them.
        map[0] = 0b11;
        map[3] = 0x80;
        map[4] = 0xff;
        let last = (2 << 20) - 4608;
        assert_eq!(
            describe(&layout, &map),
            format!(
                "    dirty extents: 3 of 32\n    dirty bytes: {} (6.0MB)\n    dirty ranges:\n        0-1\n        31\n",
                (4 << 20) + last
            )
        );
        assert_eq!(
            describe(&layout, &[0; 512]),
            "    dirty extents: 0 of 32\n    dirty bytes: 0 (0B)\n    dirty ranges:\n"
        );
    }
}
