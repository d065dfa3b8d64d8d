//! Metadata to test with, and disks to put it on.

use hast_format::extension::{Extension, MARK_BY_MAX, Mark, Run, STALE_RUNS};
use hast_format::layout::Layout;
use hast_format::metadata::{Metadata, RESOURCE_NAME_MAX, Role};

pub(crate) const BLOCK: usize = 4096;

/// Every sector size that a provider can have, from the usual smallest on.
pub(crate) const SECTORS: [usize; 4] = [512, 1024, 2048, 4096];

/// Those with which list, copy and area are in sectors of their own.
pub(crate) const SMALL_SECTORS: [usize; 2] = [512, 1024];

/// What `create` writes.
pub(crate) fn created(name: &str) -> Metadata {
    let layout = Layout::create(1 << 30, 512, 131_072).unwrap();
    Metadata {
        resource: name.into(),
        datasize: layout.datasize(),
        extentsize: layout.extentsize(),
        keepdirty: 64,
        localoff: layout.localoff(),
        resuid: 0,
        localcnt: 0,
        remotecnt: 0,
        prevrole: Role::Init,
        extension: Extension::default(),
    }
}

/// A provider that has been in use for a while.
pub(crate) fn used() -> Metadata {
    let mut metadata = created("disk0");
    metadata.resuid = 0xfed4_0000_0000_0001;
    metadata.localcnt = 255;
    metadata.remotecnt = 7;
    metadata.prevrole = Role::Primary;
    metadata.extension = Extension { generation: 41, boot: [0xb0; 16], ..Extension::default() };
    metadata
}

pub(crate) fn mark() -> Mark {
    Mark { since: 1_790_000_000, by: "tcp4://10.9.0.2".into() }
}

pub(crate) fn runs(count: u32) -> Vec<Run> {
    (0..count).map(|index| Run { first: index * 7, count: index % 3 + 1 }).collect()
}

/// The state after `metadata`, as `change` makes it.
pub(crate) fn next(metadata: &Metadata, change: impl FnOnce(&mut Metadata)) -> Metadata {
    let mut next = metadata.clone();
    change(&mut next);
    next.extension.generation += 1;
    next
}

/// What happens to a node's metadata, each with a name: the state before and the state after.
pub(crate) fn pairs() -> Vec<(&'static str, Metadata, Metadata)> {
    let used = used();
    let marked = next(&used, |m| m.extension.mark = Some(mark()));
    let stale = next(&used, |m| m.extension.stale = runs(5));
    let longest = {
        let mut metadata = used.clone();
        metadata.resource = "n".repeat(RESOURCE_NAME_MAX);
        metadata.extension.mark = Some(Mark { since: u64::MAX, by: "b".repeat(MARK_BY_MAX) });
        metadata.extension.stale = runs(STALE_RUNS as u32 - 1);
        metadata.prevrole = Role::Secondary;
        metadata
    };
    let full = next(&used, |m| {
        m.extension.mark = Some(mark());
        m.extension.target = true;
        m.extension.full_sync_owed = true;
        m.extension.stale = runs(STALE_RUNS as u32);
        m.extension.peer_boot = [0xff; 16];
    });
    let contact = next(&created("disk0"), |m| m.extension.full_sync_owed = true);
    let changes: Vec<(&'static str, Metadata, Metadata)> = vec![
        ("nothing but the generation", used.clone(), next(&used, |_| ())),
        ("a count rises", used.clone(), next(&used, |m| m.localcnt += 1)),
        ("both counts change", used.clone(), next(&used, |m| (m.localcnt, m.remotecnt) = (256, 255))),
        ("marked", used.clone(), marked.clone()),
        ("mark cleared", marked.clone(), next(&marked, |m| m.extension.mark = None)),
        (
            "mark cleared, counts equalised",
            marked.clone(),
            next(&marked, |m| {
                m.extension.mark = None;
                m.remotecnt = 300;
            }),
        ),
        ("target", used.clone(), next(&used, |m| m.extension.target = true)),
        ("extents become stale", used.clone(), stale.clone()),
        ("one more run", stale.clone(), next(&stale, |m| m.extension.stale = runs(6))),
        ("all runs", stale.clone(), next(&stale, |m| m.extension.stale = runs(STALE_RUNS as u32))),
        ("stale extents repaired", stale.clone(), next(&stale, |m| m.extension.stale.clear())),
        ("role", used.clone(), next(&used, |m| m.prevrole = Role::Secondary)),
        ("role and back", marked.clone(), next(&marked, |m| m.prevrole = Role::Init)),
        ("another boot", used.clone(), next(&used, |m| m.extension.boot = [0x0b; 16])),
        ("the peer's boot", used.clone(), next(&used, |m| m.extension.peer_boot = [1; 16])),
        ("everything set", used.clone(), full.clone()),
        (
            "everything cleared",
            full.clone(),
            next(&full, |m| {
                m.extension = Extension { generation: m.extension.generation, ..Extension::default() }
            }),
        ),
        (
            "the longest",
            longest.clone(),
            next(&longest, |m| {
                m.extension.stale = runs(STALE_RUNS as u32);
                m.localcnt = u64::MAX;
            }),
        ),
        (
            "resuid adopted, with the map durable",
            contact.clone(),
            next(&contact, |m| {
                m.resuid = 99;
                m.localcnt = 1;
                m.prevrole = Role::Secondary;
                m.extension.full_sync_owed = false;
            }),
        ),
        // The generation may jump: a save that failed in between.
        ("many generations later", used.clone(), {
            let mut later = next(&used, |m| m.localcnt += 9);
            later.extension.generation = u64::MAX - 9;
            later
        }),
    ];
    for (name, before, after) in &changes {
        assert_ne!(before, after, "{name}");
        assert!(before.extension.generation > 0 && after.extension.generation > before.extension.generation);
    }
    changes
}

/// The same for the first save of an area.
pub(crate) fn first_saves() -> Vec<(&'static str, Metadata, Metadata)> {
    let fresh = created("disk0");
    let mut original = used();
    original.extension = Extension::default();
    vec![
        ("first save, nothing else", original.clone(), next(&original, |_| ())),
        ("first save, marked", original.clone(), next(&original, |m| m.extension.mark = Some(mark()))),
        ("first save, a count rises", original.clone(), next(&original, |m| m.localcnt += 1)),
        (
            "first save of a fresh provider",
            fresh.clone(),
            next(&fresh, |m| {
                m.resuid = 1;
                m.prevrole = Role::Primary;
                m.extension.full_sync_owed = true;
            }),
        ),
    ]
}

/// The bytes of a block after `bytes` were written at `offset`.
pub(crate) fn put(block: &mut [u8; BLOCK], offset: u64, bytes: &[u8]) {
    let offset = usize::try_from(offset).unwrap();
    block[offset..offset + bytes.len()].copy_from_slice(bytes);
}

/// The sectors in which two blocks differ.
pub(crate) fn changed(before: &[u8; BLOCK], after: &[u8; BLOCK], sector: usize) -> Vec<usize> {
    (0..BLOCK / sector)
        .filter(|index| {
            let range = index * sector..(index + 1) * sector;
            before[range.clone()] != after[range]
        })
        .collect()
}

/// `before`, with those sectors of `after` whose bit is set in `which`.
pub(crate) fn mixed(
    before: &[u8; BLOCK],
    after: &[u8; BLOCK],
    sector: usize,
    sectors: &[usize],
    which: usize,
) -> [u8; BLOCK] {
    let mut block = *before;
    for (bit, index) in sectors.iter().enumerate() {
        if which >> bit & 1 == 1 {
            let range = index * sector..(index + 1) * sector;
            block[range.clone()].copy_from_slice(&after[range]);
        }
    }
    block
}

/// Every block that a loss of power can leave while `after` is saved over `block`: for each write, any of its
/// sectors, all earlier writes being durable. The untouched and the complete one are among them.
pub(crate) fn cuts(block: &[u8; BLOCK], after: &Metadata, sector: usize) -> Vec<[u8; BLOCK]> {
    cuts_of(block, &after.writes(u32::try_from(sector).unwrap()), sector)
}

pub(crate) fn cuts_of(block: &[u8; BLOCK], writes: &[(u64, Vec<u8>)], sector: usize) -> Vec<[u8; BLOCK]> {
    let mut block = *block;
    let mut cuts = Vec::new();
    for (offset, bytes) in writes {
        let mut written = block;
        put(&mut written, *offset, bytes);
        let sectors = changed(&block, &written, sector);
        cuts.extend((0..1 << sectors.len()).map(|which| mixed(&block, &written, sector, &sectors, which)));
        block = written;
    }
    cuts
}
