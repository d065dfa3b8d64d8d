//! Providers as files: making them, and comparing what they hold.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use hast_format::layout::METADATA_SIZE;
use hast_format::metadata::Metadata;

use crate::{Context, Failure};

/// Makes a provider of `size` zero bytes.
pub fn make(path: &Path, size: u64) -> Result<(), Failure> {
    let file = File::create(path).context(path.display())?;
    file.set_len(size).context(path.display())
}

/// Reads and decodes a provider's metadata.
pub fn metadata(path: &Path) -> Result<Metadata, Failure> {
    let file = File::open(path).context(path.display())?;
    let mut block = vec![0; usize::try_from(METADATA_SIZE)?];
    file.read_exact_at(&mut block, 0).context(path.display())?;
    Metadata::decode(&block).context(path.display())
}

/// The on-disk activemap: the bytes between the metadata and the data area.
pub fn map(path: &Path) -> Result<Vec<u8>, Failure> {
    let metadata = metadata(path)?;
    let length = metadata.localoff.checked_sub(METADATA_SIZE).context("the data area begins too early")?;
    let mut map = vec![0; usize::try_from(length)?];
    File::open(path)?.read_exact_at(&mut map, METADATA_SIZE).context(path.display())?;
    Ok(map)
}

/// Reads from a provider's data area.
pub fn read(path: &Path, offset: u64, length: usize) -> Result<Vec<u8>, Failure> {
    let metadata = metadata(path)?;
    let mut data = vec![0; length];
    let at = metadata.localoff.checked_add(offset).context("offset")?;
    File::open(path)?.read_exact_at(&mut data, at).context(path.display())?;
    Ok(data)
}

/// The whole data area.
pub fn data(path: &Path) -> Result<Vec<u8>, Failure> {
    let metadata = metadata(path)?;
    read(path, 0, usize::try_from(metadata.datasize)?)
}

/// Fails unless the data areas of two providers are identical, and says where they first differ.
pub fn same_data(a: &Path, b: &Path) -> Result<(), Failure> {
    let (left, right) = (data(a)?, data(b)?);
    if left.len() != right.len() {
        return Failure::because(format!("data sizes differ: {} and {}", left.len(), right.len()));
    }
    match left.iter().zip(&right).position(|(x, y)| x != y) {
        None => Ok(()),
        Some(at) => {
            let count = left.iter().zip(&right).filter(|(x, y)| x != y).count();
            Failure::because(format!("the data differ first at offset {at}, in {count} bytes"))
        }
    }
}

/// Bytes that depend on `seed` and position, do not compress and never repeat within a block.
pub fn pattern(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        // xorshift64*
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        bytes.extend_from_slice(&state.wrapping_mul(0x2545_f491_4f6c_dd1d).to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

/// Text-like bytes that LZF shrinks well.
pub fn text(seed: u64, length: usize) -> Vec<u8> {
    let line = format!("extent {seed} of the resource was written by the primary; ");
    line.bytes().cycle().take(length).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_differ_by_seed_and_repeat_by_seed() {
        assert_eq!(pattern(1, 1000), pattern(1, 1000));
        assert_ne!(pattern(1, 1000), pattern(2, 1000));
        assert_eq!(pattern(1, 1000).len(), 1000);
        assert_eq!(text(1, 77).len(), 77);
    }
}
