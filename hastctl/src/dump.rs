//! `hastctl dump`: what a provider says about itself, without a daemon.
//!
//! Only reads, and takes no lock: a provider in use can be looked at, though what is seen then may be a
//! moment old.

use std::fmt::Write;

use hast_format::bitmap::Bitmap;
use hast_format::extension::Utc;
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

/// What the metadata says that the original's cannot. Stale extents are given as the map's dirty ones are.
pub(crate) fn extension(metadata: &Metadata) -> String {
    let extension = &metadata.extension;
    if extension.generation == 0 {
        return String::from("    extension: none\n");
    }
    let inconsistent = match &extension.mark {
        None => String::from("no"),
        Some(mark) => format!("since {}, synchronised by {}", Utc(mark.since), printable(&mark.by)),
    };
    let extents: u64 = extension.stale.iter().map(|run| u64::from(run.count)).sum();
    let bytes = stale_bytes(metadata);
    let mut out = format!(
        "    extension: generation {}\n\
         \x20   boot: {}\n\
         \x20   peer boot: {}\n\
         \x20   inconsistent: {inconsistent}\n\
         \x20   target: {}\n\
         \x20   full sync owed: {}\n\
         \x20   stale extents: {extents}\n\
         \x20   stale bytes: {bytes} ({})\n\
         \x20   stale ranges:\n",
        extension.generation,
        boot(extension.boot),
        boot(extension.peer_boot),
        yes(extension.target),
        yes(extension.full_sync_owed),
        human(bytes)
    );
    for run in extension.stale.iter().filter(|run| run.count > 0) {
        range(&mut out, run.first, run.first.saturating_add(run.count.saturating_sub(1)));
    }
    // Writing to a string cannot fail.
    if extension.parted != 0 {
        let _ = writeln!(out, "    parted: {:016x}", extension.parted);
    }
    if extension.given_up != 0 {
        let _ = writeln!(out, "    given up: {}", extension.given_up);
    }
    if extension.connection != 0 {
        let _ = writeln!(out, "    connection: {:016x}", extension.connection);
    }
    if extension.connection_before != 0 {
        let _ = writeln!(out, "    connection before: {:016x}", extension.connection_before);
    }
    if extension.connection != 0 {
        let _ = writeln!(out, "    localcnt at that connection: {}", extension.connection_localcnt);
    }
    if extension.possibly_behind {
        out.push_str("    possibly behind: yes\n");
    }
    if extension.unsure {
        out.push_str("    unsure: yes\n");
    }
    if extension.map_complete {
        out.push_str("    map complete: yes\n");
    }
    out
}

/// How much of the data area the stale extents take, the last one being short.
fn stale_bytes(metadata: &Metadata) -> u64 {
    let byte = |extent: u64| extent.saturating_mul(metadata.extentsize.into()).min(metadata.datasize);
    let bytes = metadata.extension.stale.iter().map(|run| {
        let first = u64::from(run.first);
        byte(first.saturating_add(run.count.into())).saturating_sub(byte(first))
    });
    bytes.fold(0, u64::saturating_add)
}

/// A boot id in the form that systems show it in.
fn boot(id: [u8; 16]) -> String {
    if id == [0; 16] {
        return String::from("unknown");
    }
    let mut text = String::new();
    for (index, byte) in id.iter().enumerate() {
        if matches!(index, 4 | 6 | 8 | 10) {
            text.push('-');
        }
        // Writing to a string cannot fail.
        let _ = write!(text, "{byte:02x}");
    }
    text
}

fn yes(is_so: bool) -> &'static str {
    if is_so { "yes" } else { "no" }
}

/// One line of a list of ranges.
fn range(out: &mut String, first: u32, last: u32) {
    // Writing to a string cannot fail.
    let _ = if first == last {
        writeln!(out, "        {first}")
    } else {
        writeln!(out, "        {first}-{last}")
    };
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
        range(&mut out, first, last);
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
    use hast_format::extension::{Extension, Mark, Run};
    use hast_format::metadata::Role;

    #[test]
    fn neighbours_share_a_range() {
        let joined = |numbers: &[u32]| ranges(numbers.iter().copied()).collect::<Vec<_>>();
        assert_eq!(joined(&[]), []);
        assert_eq!(joined(&[7]), [(7, 7)]);
        assert_eq!(joined(&[0, 1, 2, 5, 7, 8]), [(0, 2), (5, 5), (7, 8)]);
        assert_eq!(joined(&[u32::MAX - 1, u32::MAX]), [(u32::MAX - 1, u32::MAX)]);
    }

    fn metadata() -> Metadata {
        let layout = Layout::create(64 << 20, 512, 2 << 20).unwrap();
        Metadata {
            resource: "test".to_owned(),
            datasize: layout.datasize(),
            extentsize: layout.extentsize(),
            keepdirty: 64,
            localoff: layout.localoff(),
            resuid: 1,
            localcnt: 2,
            remotecnt: 3,
            prevrole: Role::Secondary,
            extension: Extension::default(),
        }
    }

    #[test]
    fn an_extension_is_described() {
        let mut metadata = metadata();
        assert_eq!(extension(&metadata), "    extension: none\n");
        metadata.extension.generation = 7;
        assert_eq!(
            extension(&metadata),
            "    extension: generation 7\n    boot: unknown\n    peer boot: unknown\n    inconsistent: no\n    \
             target: no\n    full sync owed: no\n    stale extents: 0\n    stale bytes: 0 (0B)\n    stale ranges:\n"
        );
        metadata.extension = Extension {
            generation: 8,
            mark: Some(Mark { since: 1_234_567_890, by: "node\tb".to_owned() }),
            target: true,
            full_sync_owed: true,
            // Two extents, the short last one of 32, and nothing.
            stale: [(3, 2), (31, 1), (5, 0)].map(|(first, count)| Run { first, count }).to_vec(),
            boot: *b"\x01\x23\x45\x67\x89\xab\xcd\xef\0\x11\x22\x33\x44\x55\x66\x77",
            peer_boot: [0xff; 16],
            parted: 0xabc,
            given_up: 12,
            connection: 0xdef,
            connection_before: 0xde,
            connection_localcnt: 4,
            possibly_behind: true,
            unsure: true,
            map_complete: true,
        };
        assert_eq!(
            extension(&metadata),
            format!(
                "    extension: generation 8\n    boot: 01234567-89ab-cdef-0011-223344556677\n    \
                 peer boot: ffffffff-ffff-ffff-ffff-ffffffffffff\n    \
                 inconsistent: since 2009-02-13 23:31:30 UTC, synchronised by node?b\n    target: yes\n    \
                 full sync owed: yes\n    stale extents: 3\n    stale bytes: {} (6.0MB)\n    stale ranges:\n        \
                 3-4\n        31\n    parted: 0000000000000abc\n    given up: 12\n    \
                 connection: 0000000000000def\n    connection before: 00000000000000de\n    \
                 localcnt at that connection: 4\n    \
                 possibly behind: yes\n    unsure: yes\n    map complete: yes\n",
                (6 << 20) - 4608
            )
        );
    }

    #[test]
    fn stale_extents_that_cannot_be_have_no_bytes() {
        let mut metadata = metadata();
        metadata.extension.stale = vec![Run { first: u32::MAX, count: u32::MAX }; 32];
        assert_eq!(stale_bytes(&metadata), 0);
        metadata.extension.stale = vec![Run { first: 0, count: u32::MAX }; 2];
        assert_eq!(stale_bytes(&metadata), 2 * metadata.datasize);
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
