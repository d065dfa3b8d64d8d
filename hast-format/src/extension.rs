//! What our nodes remember and the original's metadata cannot say (spec: extensions, "Disk"; durability).
//!
//! Owns the facts and the 1024 bytes that hold them together with a copy of the nine core fields. Where in the
//! metadata block these bytes lie, how often, and which part wins when they disagree is `block`'s.

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;
use core::mem::offset_of;
use core::ops::Range;

use crc::{CRC_32_ISCSI, Crc, Table};
use zerocopy::byteorder::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::bitmap::Bitmap;
use crate::metadata::{Metadata, MetadataError, RESOURCE_NAME_MAX, Role, cut};

/// Most runs of stale extents that there is room for.
pub const STALE_RUNS: usize = 32;
/// Most bytes of [`Mark::by`].
pub const MARK_BY_MAX: usize = 63;

/// What a node knows beyond the core fields. All of it is empty on a provider that the original wrote last.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Extension {
    /// Rises with every save; 0: there is no extension area, and nothing of what follows is stored.
    pub generation: u64,
    /// This node's copy is inconsistent: it is the target of a synchronisation that has not ended.
    pub mark: Option<Mark>,
    /// As a primary: the other node has the newer data (L18).
    pub target: bool,
    /// A first contact has begun, and the map that it merged is not durable yet (L19); or this copy is used by force after
    /// its generation was lost (G1). Then the maps alone do not say what the other node lacks.
    pub full_sync_owed: bool,
    /// Extents that are wrong here and right on the other node (L3): at most [`STALE_RUNS`]. More cannot be
    /// stored, and must not be dropped either: a block that was written with more is refused when it is read.
    pub stale: Vec<Run>,
    /// Boot id of this host when the block was saved; zeros: unknown.
    pub boot: [u8; 16],
    /// Boot id of the other node's host, as far as this node was told; zeros: unknown.
    pub peer_boot: [u8; 16],
    /// The connection since which this node's map has everything that it may have and the other node not, by a
    /// number that both nodes know; 0: there is none of which that can be said.
    pub parted: u64,
    /// The resource id that this node had when its administrator gave its changes up (`hastctl discard`), until
    /// it has met a primary; 0: they have not been given up.
    pub given_up: u64,
    /// The generation of the latest connection of this node (G1); 0: unknown.
    pub connection: u64,
    /// A secondary that has not heard from its primary since it stored `connection`: the generation that the primary
    /// had then, and may still have; 0: there is no doubt.
    pub connection_before: u64,
    /// What the other node knew of localcnt when `connection` was stored, or localcnt when the nodes became equal since: what
    /// this node was written alone may be nowhere else if localcnt is higher (G1). 0 in an area that does not say it.
    pub connection_localcnt: u64,
    /// The last primary was an original and did not say that this node has everything (A7).
    pub possibly_behind: bool,
    /// This node may have lost what it had told its primary that it has (B1).
    pub unsure: bool,
    /// This node has been connected as the primary since it took over: its map and its stale extents say all that the other
    /// node may lack (C1 (d)). False in an area that does not say it, and once this node is a secondary.
    pub map_complete: bool,
}

/// Since when a node is inconsistent, and who is bringing it up to date.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mark {
    /// Seconds since 1970, UTC; 0: nobody knows.
    pub since: u64,
    /// Who synchronises this node. Stored up to [`MARK_BY_MAX`] bytes, cut between two characters.
    pub by: String,
}

/// Extents that follow each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Run {
    /// The first of them.
    pub first: u32,
    /// How many there are.
    pub count: u32,
}

impl Run {
    /// The extents as a range; one that goes past the last number there can be ends there.
    #[must_use]
    pub fn extents(self) -> Range<u32> {
        self.first..self.first.saturating_add(self.count)
    }
}

/// Extents as runs, as few as there can be, in order.
#[must_use]
pub fn runs_of(extents: &Bitmap) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    for extent in extents.iter() {
        match runs.last_mut() {
            Some(run) if run.first.saturating_add(run.count) == extent => run.count += 1,
            _ => runs.push(Run { first: extent, count: 1 }),
        }
    }
    runs
}

/// A point in time, in seconds since 1970, shown as `2026-11-24 07:00:00 UTC`; 0 is an unknown time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Utc(pub u64);

impl fmt::Display for Utc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 == 0 {
            return f.write_str("an unknown time");
        }
        let (days, second) = (self.0 / 86_400, self.0 % 86_400);
        // Days since the first of March of year 0: a leap day then ends its year, and every fifth month
        // begins after 153 days.
        let days = days + 719_468;
        let (era, day) = (days / 146_097, days % 146_097);
        let year_of_era = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
        let day_of_year = day - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let march_month = (5 * day_of_year + 2) / 153;
        let day = day_of_year - (153 * march_month + 2) / 5 + 1;
        let month = if march_month < 10 { march_month + 3 } else { march_month - 9 };
        let year = 400 * era + year_of_era + u64::from(month <= 2);
        let (hour, minute) = (second / 3600, second / 60 % 60);
        let second = second % 60;
        write!(f, "{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02} UTC")
    }
}

/// Bytes of an area.
pub(crate) const AREA: usize = size_of::<Area>();

/// What the bytes of an area hold.
#[derive(Debug)]
#[expect(
    clippy::large_enum_variant,
    reason = "one is made for each block that is read, and taken apart at once"
)]
pub(crate) enum Found {
    /// Nothing but zeros.
    Absent,
    /// Something that is no area, or no longer.
    Damaged,
    /// The state that was saved there, core fields and extension.
    Valid(Metadata),
}

/// The area of `metadata`.
pub(crate) fn encode(metadata: &Metadata) -> [u8; AREA] {
    let extension = &metadata.extension;
    debug_assert!(extension.stale.len() <= STALE_RUNS, "{} stale runs", extension.stale.len());
    let mut area = Area::new_zeroed();
    area.magic = MAGIC;
    area.version = VERSION.into();
    area.length = LENGTH.into();
    area.generation = extension.generation.into();
    area.datasize = metadata.datasize.into();
    area.extentsize = metadata.extentsize.into();
    area.keepdirty = metadata.keepdirty.into();
    area.localoff = metadata.localoff.into();
    area.resuid = metadata.resuid.into();
    area.localcnt = metadata.localcnt.into();
    area.remotecnt = metadata.remotecnt.into();
    area.prevrole = role_code(metadata.prevrole);
    area.name_length = put(&mut area.name, cut(&metadata.resource, RESOURCE_NAME_MAX));
    area.flags =
        if extension.target { TARGET } else { 0 } | if extension.full_sync_owed { FULL_SYNC_OWED } else { 0 };
    if let Some(mark) = &extension.mark {
        area.flags |= MARKED;
        area.mark_since = mark.since.into();
        area.mark_by_length = put(&mut area.mark_by, cut(&mark.by, MARK_BY_MAX));
    }
    area.boot = extension.boot;
    area.peer_boot = extension.peer_boot;
    area.parted = extension.parted.into();
    area.given_up = extension.given_up.into();
    area.connection = extension.connection.into();
    area.connection_before = extension.connection_before.into();
    area.connection_localcnt = extension.connection_localcnt.into();
    area.remarks = if extension.possibly_behind { POSSIBLY_BEHIND } else { 0 }
        | if extension.unsure { UNSURE } else { 0 }
        | if extension.map_complete { MAP_COMPLETE } else { 0 };
    area.stale_count = u16::try_from(extension.stale.len()).unwrap_or(u16::MAX).into();
    for (to, from) in area.stale.iter_mut().zip(&extension.stale) {
        *to = StaleRun { first: from.first.into(), count: from.count.into() };
    }
    area.crc = area.checksum().into();
    zerocopy::transmute!(area)
}

/// What `bytes` hold; they are as many as an area has.
///
/// # Errors
///
/// An area that is intact and that we cannot do justice to: [`MetadataError::Version`],
/// [`MetadataError::StaleRuns`].
pub(crate) fn decode(bytes: &[u8]) -> Result<Found, MetadataError> {
    if bytes.iter().all(|byte| *byte == 0) {
        return Ok(Found::Absent);
    }
    let Ok(area) = Area::ref_from_bytes(bytes) else { return Ok(Found::Damaged) };
    if area.magic != MAGIC || area.crc.get() != area.checksum() {
        return Ok(Found::Damaged);
    }
    if area.version != VERSION {
        return Err(MetadataError::Version { version: area.version.get() });
    }
    Ok(area.metadata()?.map_or(Found::Damaged, Found::Valid))
}

/// The area as it lies on the disk.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Area {
    magic: [u8; 8],
    /// A reader of another version cannot use the area.
    version: U16,
    /// Bytes up to the end of the last field. Later fields may follow in what is zero today: whoever does not
    /// know them does without.
    length: U16,
    stale_count: U16,
    flags: u8,
    prevrole: u8,
    generation: U64,
    datasize: U64,
    extentsize: U32,
    keepdirty: U32,
    localoff: U64,
    resuid: U64,
    localcnt: U64,
    remotecnt: U64,
    mark_since: U64,
    boot: [u8; 16],
    peer_boot: [u8; 16],
    stale: [StaleRun; STALE_RUNS],
    name_length: u8,
    name: [u8; RESOURCE_NAME_MAX],
    mark_by_length: u8,
    mark_by: [u8; MARK_BY_MAX],
    // From here on fields that an area need not have.
    parted: U64,
    given_up: U64,
    connection: U64,
    connection_before: U64,
    remarks: u8,
    connection_localcnt: U64,
    rest: [u8; 292],
    /// CRC-32C of all bytes before it.
    crc: U32,
}

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct StaleRun {
    first: U32,
    count: U32,
}

const _: () = assert!(AREA == 1024);

const MAGIC: [u8; 8] = *b"hastEXT\n";
const VERSION: u16 = 1;
/// [`Area::length`] as it is written.
const LENGTH: u16 = offset_of!(Area, rest) as u16;
/// The least that an area of this version has. What may be missing behind it is zero then.
const LEAST: u16 = offset_of!(Area, parted) as u16;

const MARKED: u8 = 1;
const TARGET: u8 = 2;
const FULL_SYNC_OWED: u8 = 4;

/// Bits of [`Area::remarks`]; others are a later version's.
const POSSIBLY_BEHIND: u8 = 1;
const UNSURE: u8 = 2;
const MAP_COMPLETE: u8 = 4;

static CRC: Crc<u32, Table<1>> = Crc::<u32, Table<1>>::new(&CRC_32_ISCSI);

impl Area {
    fn checksum(&self) -> u32 {
        let (covered, _) = self.as_bytes().split_at(offset_of!(Area, crc));
        CRC.checksum(covered)
    }

    /// What the fields say. `None` if they say what nobody wrote, although the CRC is right.
    fn metadata(&self) -> Result<Option<Metadata>, MetadataError> {
        let stale_count = self.stale_count.get();
        if usize::from(stale_count) > STALE_RUNS {
            return Err(MetadataError::StaleRuns { count: stale_count });
        }
        let name = text(&self.name, self.name_length).filter(|name| !name.contains('\0'));
        let by = text(&self.mark_by, self.mark_by_length);
        let known = self.flags & !(MARKED | TARGET | FULL_SYNC_OWED) == 0;
        let (Some(resource), Some(by), Some(prevrole), true, true, 1..) =
            (name, by, role_of(self.prevrole), known, self.length.get() >= LEAST, self.generation.get())
        else {
            return Ok(None);
        };
        Ok(Some(Metadata {
            resource,
            datasize: self.datasize.get(),
            extentsize: self.extentsize.get(),
            keepdirty: self.keepdirty.get(),
            localoff: self.localoff.get(),
            resuid: self.resuid.get(),
            localcnt: self.localcnt.get(),
            remotecnt: self.remotecnt.get(),
            prevrole,
            extension: Extension {
                generation: self.generation.get(),
                mark: (self.flags & MARKED != 0).then(|| Mark { since: self.mark_since.get(), by }),
                target: self.flags & TARGET != 0,
                full_sync_owed: self.flags & FULL_SYNC_OWED != 0,
                stale: self
                    .stale
                    .iter()
                    .take(usize::from(stale_count))
                    .map(|run| Run { first: run.first.get(), count: run.count.get() })
                    .collect(),
                boot: self.boot,
                peer_boot: self.peer_boot,
                parted: self.parted.get(),
                given_up: self.given_up.get(),
                connection: self.connection.get(),
                connection_before: self.connection_before.get(),
                connection_localcnt: self.connection_localcnt.get(),
                possibly_behind: self.remarks & POSSIBLY_BEHIND != 0,
                unsure: self.remarks & UNSURE != 0,
                map_complete: self.remarks & MAP_COMPLETE != 0,
            },
        }))
    }
}

fn role_code(role: Role) -> u8 {
    match role {
        Role::Init => 0,
        Role::Primary => 1,
        Role::Secondary => 2,
    }
}

fn role_of(code: u8) -> Option<Role> {
    [Role::Init, Role::Primary, Role::Secondary].into_iter().find(|role| role_code(*role) == code)
}

/// Copies `text` to the beginning of `field`, for which it is not too long; gives its length.
fn put(field: &mut [u8], text: &str) -> u8 {
    for (to, from) in field.iter_mut().zip(text.bytes()) {
        *to = from;
    }
    u8::try_from(text.len()).unwrap_or(u8::MAX)
}

/// The text of that many bytes at the beginning of `field`.
fn text(field: &[u8], length: u8) -> Option<String> {
    core::str::from_utf8(field.get(..usize::from(length))?).ok().map(String::from)
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::format;
    use alloc::string::ToString;
    use alloc::vec;

    fn sample() -> Metadata {
        Metadata {
            resource: "disk0".to_string(),
            datasize: 0x0102_0304_0506_0708,
            extentsize: 0x1112_1314,
            keepdirty: 0x2122_2324,
            localoff: 0x3132_3334_3536_3738,
            resuid: 0x4142_4344_4546_4748,
            localcnt: 0x5152_5354_5556_5758,
            remotecnt: 0x6162_6364_6566_6768,
            prevrole: Role::Secondary,
            extension: Extension {
                generation: 0x7172_7374_7576_7778,
                mark: Some(Mark { since: 0x0182_8384_8586_8788, by: "nodeb".to_string() }),
                target: true,
                full_sync_owed: true,
                stale: vec![Run { first: 1, count: 2 }, Run { first: u32::MAX, count: 0x0a0b_0c0d }],
                boot: [0xb0; 16],
                peer_boot: [0xb1; 16],
                parted: 0x0192_9394_9596_9798,
                given_up: 0x01a2_a3a4_a5a6_a7a8,
                connection: 0x01b2_b3b4_b5b6_b7b8,
                connection_before: 0x01c2_c3c4_c5c6_c7c8,
                connection_localcnt: 0x01d2_d3d4_d5d6_d7d8,
                possibly_behind: true,
                unsure: true,
                map_complete: true,
            },
        }
    }

    /// The sample's area after `change`, with a check sum that is right again.
    fn changed(change: impl FnOnce(&mut Area)) -> [u8; AREA] {
        let bytes = encode(&sample());
        let mut area = Area::read_from_bytes(&bytes).unwrap();
        change(&mut area);
        area.crc = area.checksum().into();
        zerocopy::transmute!(area)
    }

    fn is_damaged(bytes: &[u8]) -> bool {
        matches!(decode(bytes), Ok(Found::Damaged))
    }

    /// The bytes on the disk, by hand: they have to stay what they are.
    #[test]
    fn fields_lie_where_they_lie() {
        let mut expected = vec![];
        expected.extend(b"hastEXT\n");
        expected.extend([1, 0]);
        expected.extend(728_u16.to_le_bytes());
        expected.extend([2, 0]);
        expected.extend([7, 2]);
        expected.extend(0x7172_7374_7576_7778_u64.to_le_bytes());
        expected.extend(0x0102_0304_0506_0708_u64.to_le_bytes());
        expected.extend(0x1112_1314_u32.to_le_bytes());
        expected.extend(0x2122_2324_u32.to_le_bytes());
        expected.extend(0x3132_3334_3536_3738_u64.to_le_bytes());
        expected.extend(0x4142_4344_4546_4748_u64.to_le_bytes());
        expected.extend(0x5152_5354_5556_5758_u64.to_le_bytes());
        expected.extend(0x6162_6364_6566_6768_u64.to_le_bytes());
        expected.extend(0x0182_8384_8586_8788_u64.to_le_bytes());
        expected.extend([0xb0; 16]);
        expected.extend([0xb1; 16]);
        expected.extend([1, 0, 0, 0, 2, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0x0d, 0x0c, 0x0b, 0x0a]);
        expected.resize(112 + 256, 0);
        expected.extend(b"\x05disk0");
        expected.resize(368 + 255, 0);
        expected.extend(b"\x05nodeb");
        expected.resize(687, 0);
        expected.extend(0x0192_9394_9596_9798_u64.to_le_bytes());
        expected.extend(0x01a2_a3a4_a5a6_a7a8_u64.to_le_bytes());
        expected.extend(0x01b2_b3b4_b5b6_b7b8_u64.to_le_bytes());
        expected.extend(0x01c2_c3c4_c5c6_c7c8_u64.to_le_bytes());
        expected.push(7);
        expected.extend(0x01d2_d3d4_d5d6_d7d8_u64.to_le_bytes());
        expected.resize(1020, 0);
        // Bit by bit, with the reflected polynomial.
        let crc = !expected.iter().fold(u32::MAX, |crc, byte| {
            (0..8)
                .fold(crc ^ u32::from(*byte), |crc, _| crc >> 1 ^ if crc & 1 == 1 { 0x82f6_3b78 } else { 0 })
        });
        expected.extend(crc.to_le_bytes());
        assert_eq!(encode(&sample()), *expected);
        assert!(matches!(decode(&expected), Ok(Found::Valid(metadata)) if metadata == sample()));
    }

    #[test]
    fn the_check_sum_is_crc_32c() {
        assert_eq!(CRC.checksum(b"123456789"), 0xe306_9283);
        assert_eq!(CRC.checksum(&[0; 32]), 0x8a91_36aa);
    }

    #[test]
    fn zeros_are_no_area() {
        assert!(matches!(decode(&[0; AREA]), Ok(Found::Absent)));
    }

    #[test]
    fn any_changed_byte_is_damage() {
        let good = encode(&sample());
        for at in 0..AREA {
            for flip in [0x01, 0x80, 0xff] {
                let mut bytes = good;
                bytes[at] ^= flip;
                assert!(is_damaged(&bytes), "{at}");
            }
        }
        assert!(is_damaged(&good[..AREA - 1]));
        assert!(is_damaged(&[0xff; AREA]));
    }

    #[test]
    fn another_version_is_refused_rather_than_overwritten() {
        let newer = changed(|area| area.version = 2.into());
        assert_eq!(decode(&newer).unwrap_err(), MetadataError::Version { version: 2 });
        // Damaged, it may say what it likes.
        let mut bytes = encode(&sample());
        bytes[8] = 2;
        assert!(is_damaged(&bytes));
    }

    #[test]
    fn later_fields_are_no_matter() {
        let later = changed(|area| {
            area.length = 850.into();
            area.remarks |= 0xf0;
            area.rest[0] = 0xff;
        });
        assert!(matches!(decode(&later), Ok(Found::Valid(metadata)) if metadata == sample()));
    }

    #[test]
    fn an_area_that_ends_earlier_has_none_of_the_later_fields() {
        let earlier = changed(|area| {
            area.length = LEAST.into();
            (area.parted, area.given_up) = (0.into(), 0.into());
            (area.connection, area.connection_before, area.remarks) = (0.into(), 0.into(), 0);
            area.connection_localcnt = 0.into();
        });
        let Ok(Found::Valid(read)) = decode(&earlier) else { panic!() };
        assert_eq!((read.extension.parted, read.extension.given_up), (0, 0));
        assert_eq!((read.extension.connection, read.extension.connection_before), (0, 0));
        assert_eq!(read.extension.connection_localcnt, 0);
        assert!(!read.extension.possibly_behind && !read.extension.unsure && !read.extension.map_complete);
        assert_eq!(LEAST, 687);
    }

    #[test]
    fn what_nobody_wrote_is_damage_whatever_its_check_sum_says() {
        let changes: [&dyn Fn(&mut Area); 10] = [
            &|area| area.length = (LEAST - 1).into(),
            &|area| area.generation = 0.into(),
            &|area| area.prevrole = 3,
            &|area| area.flags = 8,
            &|area| area.name_length = 255,
            &|area| area.name[0] = 0xff,
            &|area| area.name[0] = 0,
            &|area| area.mark_by_length = 64,
            &|area| area.mark_by[0] = 0xff,
            &|area| area.magic[7] = 0,
        ];
        for (number, change) in changes.iter().enumerate() {
            assert!(is_damaged(&changed(change)), "change {number}");
        }
    }

    /// There is no room for more, and dropping some would have stale data read as good.
    #[test]
    fn more_stale_runs_than_there_is_room_for_are_not_forgotten() {
        let bytes = changed(|area| area.stale_count = 33.into());
        assert_eq!(decode(&bytes).unwrap_err(), MetadataError::StaleRuns { count: 33 });
    }

    #[test]
    fn the_markers_name_is_cut_between_characters() {
        let mut metadata = sample();
        let stored = |by: &str, metadata: &mut Metadata| {
            metadata.extension.mark = Some(Mark { since: 1, by: by.to_string() });
            let Ok(Found::Valid(read)) = decode(&encode(metadata)) else { panic!() };
            read.extension.mark.unwrap().by
        };
        assert_eq!(stored(&"b".repeat(64), &mut metadata), "b".repeat(63));
        assert_eq!(stored(&"é".repeat(40), &mut metadata), "é".repeat(31));
        assert_eq!(stored("", &mut metadata), "");
    }

    #[test]
    fn a_run_is_a_range() {
        assert_eq!(Run { first: 3, count: 2 }.extents(), 3..5);
        assert_eq!(Run { first: u32::MAX, count: 9 }.extents(), u32::MAX..u32::MAX);
    }

    #[test]
    fn times_are_dates() {
        let table = [
            (0, "an unknown time"),
            (1, "1970-01-01 00:00:01 UTC"),
            (951_782_399, "2000-02-28 23:59:59 UTC"),
            (951_782_400, "2000-02-29 00:00:00 UTC"),
            (951_868_800, "2000-03-01 00:00:00 UTC"),
            (1_234_567_890, "2009-02-13 23:31:30 UTC"),
            (1_735_689_599, "2024-12-31 23:59:59 UTC"),
            (4_107_542_399, "2100-02-28 23:59:59 UTC"),
            (4_107_542_400, "2100-03-01 00:00:00 UTC"),
        ];
        for (seconds, text) in table {
            assert_eq!(Utc(seconds).to_string(), text);
        }
        // Whatever the disk says.
        assert!(format!("{}", Utc(u64::MAX)).ends_with(" UTC"));
    }
}
