//! The checksums that guard a payload against accidents on its way (spec: wire, payload stages).
//!
//! They cover the bytes as sent, after compression, and nothing else: pairs and frame headers are not
//! covered, and neither is anybody protected against an attacker.

use sha2::{Digest as _, Sha256};
use std::fmt;

/// Which checksum a payload carries: the `checksum` statement of hast.conf and the pair on the wire.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Checksum {
    /// None; the pair is absent.
    #[default]
    None,
    /// CRC-32 as in zlib, 4 bytes, little-endian.
    Crc32,
    /// SHA-256, 32 bytes.
    Sha256,
}

impl Checksum {
    /// The name in hast.conf, in `hastctl` output and, except for `none`, on the wire.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Checksum::None => "none",
            Checksum::Crc32 => "crc32",
            Checksum::Sha256 => "sha256",
        }
    }

    /// The checksum of that name, as [`Checksum::as_str`] writes it.
    #[must_use]
    pub fn parse(name: &str) -> Option<Checksum> {
        [Checksum::None, Checksum::Crc32, Checksum::Sha256].into_iter().find(|c| c.as_str() == name)
    }

    /// The hash of `bytes` as the wire carries it; None for [`Checksum::None`].
    #[must_use]
    pub fn hash(self, bytes: &[u8]) -> Option<Hash> {
        match self {
            Checksum::None => None,
            Checksum::Crc32 => Some(Hash::Crc32(crc32fast::hash(bytes).to_le_bytes())),
            Checksum::Sha256 => Some(Hash::Sha256(Sha256::digest(bytes).into())),
        }
    }
}

impl fmt::Display for Checksum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A payload's hash in the form in which it travels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hash {
    /// CRC-32, little-endian.
    Crc32([u8; 4]),
    /// SHA-256.
    Sha256([u8; 32]),
}

impl Hash {
    /// The bytes of the `hash` pair.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        match self {
            Hash::Crc32(bytes) => bytes,
            Hash::Sha256(bytes) => bytes,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_are_the_well_known_ones() {
        assert_eq!(Checksum::None.hash(b"123456789"), None);
        assert_eq!(Checksum::Crc32.hash(b"123456789").unwrap().as_bytes(), 0xcbf4_3926_u32.to_le_bytes());
        let sha256 = Checksum::Sha256.hash(b"abc").unwrap();
        assert_eq!(sha256.as_bytes().len(), 32);
        assert_eq!(sha256.as_bytes()[..4], [0xba, 0x78, 0x16, 0xbf]);
    }

    #[test]
    fn names_are_exact() {
        for checksum in [Checksum::None, Checksum::Crc32, Checksum::Sha256] {
            assert_eq!(Checksum::parse(checksum.as_str()), Some(checksum));
        }
        assert_eq!(Checksum::parse("CRC32"), None);
        assert_eq!(Checksum::parse(""), None);
    }
}
