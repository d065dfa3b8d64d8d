//! What a provider says about itself: the metadata, and the original's form of it, one name-value list (spec
//! "Metadata").
//!
//! Owns names, types and order of the nine pairs. What else is in the block, and which part of it counts, is
//! `block`'s. Whether the numbers make sense on a provider of some size is `Layout::open`'s to say; whether
//! the name is the configured one, the caller's.

use core::fmt;

#[cfg(feature = "alloc")]
use alloc::string::String;

#[cfg(feature = "alloc")]
pub use crate::block::{BlockState, Reading};
#[cfg(feature = "alloc")]
use crate::extension::{Extension, Mark};
#[cfg(feature = "alloc")]
use crate::layout::{Layout, METADATA_SIZE};
#[cfg(feature = "alloc")]
use crate::nv;

/// Longest resource name in bytes.
pub const RESOURCE_NAME_MAX: usize = 254;

/// Bytes of the block.
#[cfg(feature = "alloc")]
const BLOCK: usize = METADATA_SIZE as usize;

/// What a provider says about itself.
#[cfg(feature = "alloc")]
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Metadata {
    /// Name of the resource the provider belongs to, at most [`RESOURCE_NAME_MAX`] bytes.
    pub resource: String,
    /// Usable bytes.
    pub datasize: u64,
    /// Bytes per extent.
    pub extentsize: u32,
    /// How many most recently written extents stay marked dirty.
    pub keepdirty: u32,
    /// Byte at which the data area begins.
    pub localoff: u64,
    /// Random id of the resource; 0 until a handshake has reached its second step.
    pub resuid: u64,
    /// This node's modification count.
    pub localcnt: u64,
    /// The other node's modification count, as far as this node knows.
    pub remotecnt: u64,
    /// The role that wrote the block.
    pub prevrole: Role,
    /// What the original does not know.
    pub extension: Extension,
}

#[cfg(feature = "alloc")]
impl Metadata {
    /// What `hastctl create` writes: a provider laid out like this, which has not been used yet. `keepdirty` is from
    /// 1 to [`KEEPDIRTY_MAX`](crate::layout::KEEPDIRTY_MAX).
    #[must_use]
    pub fn created(resource: impl Into<String>, layout: &Layout, keepdirty: u32) -> Metadata {
        Metadata {
            resource: resource.into(),
            datasize: layout.datasize(),
            extentsize: layout.extentsize(),
            keepdirty,
            localoff: layout.localoff(),
            resuid: 0,
            localcnt: 0,
            remotecnt: 0,
            prevrole: Role::Init,
            extension: Extension::default(),
        }
    }

    /// What `hastctl discard` writes: a provider that, for whoever knows only the list, was just created with the
    /// same layout, so that all of it is copied. For us it remembers which resource it was part of and since when
    /// its map, which is left alone, has all that was changed, so that perhaps less has to be copied; and that
    /// its data is out of date, `since` then, in seconds since 1970, and `by` whom it will be brought up to date.
    #[must_use]
    pub fn discarded(&self, since: u64, by: impl Into<String>) -> Metadata {
        let former = &self.extension;
        // Given up before and not met anybody since: what is remembered still holds.
        let given_up = if self.resuid == 0 { former.given_up } else { self.resuid };
        let parted = if given_up == 0 { 0 } else { former.parted };
        let mark = former.mark.clone().unwrap_or(Mark { since, by: by.into() });
        Metadata {
            resuid: 0,
            localcnt: 0,
            remotecnt: 0,
            prevrole: Role::Init,
            extension: Extension {
                generation: former.generation.saturating_add(1),
                mark: Some(mark),
                stale: former.stale.clone(),
                boot: former.boot,
                parted,
                given_up,
                ..Extension::default()
            },
            ..self.clone()
        }
    }

    /// Reads only the list in the block at the start of a provider, as the original does: the first 4096
    /// bytes of `block`, of which there may be more. [`read`](Self::read) reads all of it.
    ///
    /// All nine pairs must be there with their types; other pairs are ignored. A `prevrole` that is no role
    /// reads as init. The extension is empty.
    pub fn decode(block: &[u8]) -> Result<Metadata, MetadataError> {
        let block = block.get(..BLOCK).ok_or(MetadataError::Short { length: block.len() })?;
        let list = nv::List::parse(block)?;
        let number = |name| list.u64(name).ok_or(MetadataError::Missing { name });
        let small = |name| list.u32(name).ok_or(MetadataError::Missing { name });
        let resource = list.str("resource").ok_or(MetadataError::Missing { name: "resource" })?;
        if resource.len() > RESOURCE_NAME_MAX {
            return Err(MetadataError::NameTooLong { length: resource.len() });
        }
        Ok(Metadata {
            resource: String::from(resource),
            datasize: number("datasize")?,
            extentsize: small("extentsize")?,
            keepdirty: small("keepdirty")?,
            localoff: number("offset")?,
            resuid: number("resuid")?,
            localcnt: number("localcnt")?,
            remotecnt: number("remotecnt")?,
            prevrole: match list.find("prevrole") {
                Some(pair) if pair.kind == nv::Type::String => {
                    pair.as_str().and_then(Role::parse).unwrap_or(Role::Init)
                }
                _ => return Err(MetadataError::Missing { name: "prevrole" }),
            },
            extension: Extension::default(),
        })
    }

    /// The list, at most 510 bytes.
    pub(crate) fn list(&self) -> nv::Writer {
        debug_assert!(self.resource.len() <= RESOURCE_NAME_MAX, "resource name too long: {}", self.resource);
        let mut list = nv::Writer::with_capacity(512);
        list.str("resource", cut(&self.resource, RESOURCE_NAME_MAX))
            .u64("datasize", self.datasize)
            .u32("extentsize", self.extentsize)
            .u32("keepdirty", self.keepdirty)
            .u64("offset", self.localoff)
            .u64("resuid", self.resuid)
            .u64("localcnt", self.localcnt)
            .u64("remotecnt", self.remotecnt)
            .str("prevrole", self.prevrole.as_str());
        list
    }

    /// What the list says.
    pub(crate) fn core(&self) -> impl PartialEq + use<'_> {
        let sizes = (self.datasize, self.extentsize, self.keepdirty, self.localoff);
        (&self.resource, sizes, self.resuid, self.localcnt, self.remotecnt, self.prevrole)
    }
}

/// `text` cut off, between two characters, after at most `length` bytes.
#[cfg(feature = "alloc")]
pub(crate) fn cut(text: &str, length: usize) -> &str {
    text.get(..text.floor_char_boundary(length)).unwrap_or_default()
}

/// Why a block is no metadata.
#[cfg(feature = "alloc")]
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MetadataError {
    /// Fewer than 4096 bytes.
    #[error("the metadata block has {length} bytes instead of 4096")]
    Short {
        /// How many there are.
        length: usize,
    },
    /// The block holds no name-value list.
    #[error("the metadata block holds no metadata: {0}")]
    Malformed(#[from] nv::Error),
    /// A pair that must be there is not, or its type is another.
    #[error(
        "the metadata has no valid \"{name}\": the provider may never have been initialized with `hastctl create`"
    )]
    Missing {
        /// Name of the pair.
        name: &'static str,
    },
    /// A resource name that no configuration can hold.
    #[error("the metadata's resource name has {length} bytes, more than 254")]
    NameTooLong {
        /// Bytes of the name.
        length: usize,
    },
    /// An intact extension area in a form that we do not know.
    #[error(
        "a newer hastd has saved the metadata (version {version} of its extension area); upgrade this node"
    )]
    Version {
        /// Version of the area.
        version: u16,
    },
    /// More stale extents than an area has room for.
    #[error(
        "the metadata lists {count} runs of stale extents, more than 32, so that not all of them are known; \
         initialize the provider with `hastctl create` to have it synchronised in full"
    )]
    StaleRuns {
        /// How many runs.
        count: u16,
    },
}

/// What a node is for a resource.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Role {
    /// Neither: the provider is not in use.
    Init,
    /// Serves the device.
    Primary,
    /// Stores what the primary sends.
    Secondary,
}

impl Role {
    /// The word used on disk, on the control socket, in logs and by hastctl.
    pub fn as_str(self) -> &'static str {
        match self {
            Role::Init => "init",
            Role::Primary => "primary",
            Role::Secondary => "secondary",
        }
    }

    /// The role of that word.
    pub fn parse(word: &str) -> Option<Role> {
        [Role::Init, Role::Primary, Role::Secondary].into_iter().find(|role| role.as_str() == word)
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

#[cfg(all(test, feature = "alloc"))]
mod tests {
    use super::*;
    use alloc::string::ToString;
    use alloc::vec::Vec;

    fn sample() -> Metadata {
        Metadata {
            resource: "disk0".to_string(),
            datasize: 2_092_544,
            extentsize: 131_072,
            keepdirty: 16,
            localoff: 4608,
            resuid: 0xfed4_0000_0000_0001,
            localcnt: 3,
            remotecnt: 2,
            prevrole: Role::Secondary,
            extension: Extension::default(),
        }
    }

    #[test]
    fn a_zeroed_block_lacks_everything() {
        assert_eq!(Metadata::decode(&[0; 4096]), Err(MetadataError::Missing { name: "resource" }));
    }

    #[test]
    fn what_is_given_up_is_fresh_to_an_original() {
        let mut used = sample();
        used.extension.parted = 9;
        used.extension.generation = 4;
        used.extension.target = true;
        used.extension.boot = [2; 16];
        used.extension.peer_boot = [3; 16];
        used.extension.stale = alloc::vec![crate::extension::Run { first: 1, count: 2 }];
        let given = used.discarded(1_000, "nodeb");
        let layout = Layout::create(4096 + 512 + used.datasize, 512, used.extentsize).unwrap();
        let created = Metadata::created("disk0", &layout, used.keepdirty);
        assert_eq!(Metadata::decode(&given.encode()).unwrap(), created);
        let expected = Extension {
            generation: 5,
            mark: Some(Mark { since: 1_000, by: "nodeb".to_string() }),
            stale: used.extension.stale.clone(),
            boot: [2; 16],
            parted: 9,
            given_up: used.resuid,
            ..Extension::default()
        };
        assert_eq!(given.extension, expected);
        // Once more: nothing is forgotten.
        let again = given.discarded(2_000, "nodec");
        assert_eq!(again.extension, Extension { generation: 6, ..expected });
        // Of a fresh one there is nothing to remember.
        let fresh = created.discarded(1, "").extension;
        assert_eq!((fresh.parted, fresh.given_up), (0, 0));
    }

    #[test]
    fn a_short_block_is_refused() {
        let block = sample().encode();
        assert_eq!(Metadata::decode(&block[..4095]), Err(MetadataError::Short { length: 4095 }));
    }

    #[test]
    fn every_pair_is_mandatory() {
        let block = sample().encode();
        let list = nv::List::parse(&block).unwrap();
        let names: Vec<_> = list.pairs().map(|pair| core::str::from_utf8(pair.name).unwrap()).collect();
        assert_eq!(names.len(), 9);
        for name in names {
            // Rename the pair in place: "x" is a name of its own.
            let mut block = block;
            let at =
                block.windows(name.len() + 1).position(|w| w == [name.as_bytes(), b"\0"].concat()).unwrap();
            block[at] = b'X';
            match Metadata::decode(&block) {
                Err(MetadataError::Missing { name: missing }) => assert_eq!(missing, name),
                other => panic!("{name}: {other:?}"),
            }
            // And once more with another type of the same size.
            let mut block = sample().encode();
            block[at - 6] = match block[at - 6] {
                6 => 5,
                8 => 7,
                17 => 10,
                other => panic!("{other}"),
            };
            match Metadata::decode(&block) {
                Err(MetadataError::Missing { name: missing }) => assert_eq!(missing, name),
                other => panic!("{name}: {other:?}"),
            }
        }
    }

    #[test]
    fn an_unknown_prevrole_reads_as_init() {
        let mut block = sample().encode();
        let at = block.windows(9).position(|w| w == b"secondary").unwrap();
        block[at] = b'S';
        assert_eq!(Metadata::decode(&block).unwrap().prevrole, Role::Init);
        block[at] = 0xff;
        assert_eq!(Metadata::decode(&block).unwrap().prevrole, Role::Init);
    }

    #[test]
    fn the_longest_name_fits_one_sector() {
        let mut metadata = sample();
        metadata.resource = "n".repeat(RESOURCE_NAME_MAX);
        let block = metadata.encode();
        assert!(nv::List::parse(&block).unwrap().as_bytes().len() <= 510);
        assert_eq!(Metadata::decode(&block).unwrap(), metadata);
    }

    #[test]
    fn a_longer_name_is_refused() {
        let mut list = nv::Writer::new();
        list.str("resource", &"n".repeat(RESOURCE_NAME_MAX + 1));
        let mut block = list.into_bytes();
        block.resize(4096, 0);
        assert_eq!(Metadata::decode(&block), Err(MetadataError::NameTooLong { length: 255 }));
    }

    #[test]
    fn roles_have_words() {
        for role in [Role::Init, Role::Primary, Role::Secondary] {
            assert_eq!(Role::parse(role.as_str()), Some(role));
        }
        assert_eq!(Role::parse("Primary"), None);
        assert_eq!(alloc::format!("{:<10}|", Role::Init), "init      |");
    }
}
