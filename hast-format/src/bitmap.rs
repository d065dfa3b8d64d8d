//! The bitmap of the activemap: one bit an extent, in the byte order it has on disk.

use alloc::vec;
use alloc::vec::Vec;
use core::ops::Range;

/// A fixed number of bits. On disk and on the wire they are little-endian 64-bit words, least
/// significant bit first, so bit `i` is bit `i % 8` of byte `i / 8` (spec/on-disk.md, Activemap).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Bitmap {
    words: Vec<u64>,
    bits: u32,
    set: u32,
}

impl Bitmap {
    /// `bits` bits, none of them set.
    #[must_use]
    pub fn new(bits: u32) -> Bitmap {
        Bitmap { words: vec![0; bits.div_ceil(64) as usize], bits, set: 0 }
    }

    /// `bits` bits, all of them set.
    #[must_use]
    pub fn full(bits: u32) -> Bitmap {
        let mut map = Bitmap::new(bits);
        for bit in 0..bits {
            map.insert(bit);
        }
        map
    }

    /// The first `bits` bits of `bytes`. Missing bytes count as zero; padding and what follows it is
    /// ignored.
    #[must_use]
    pub fn from_bytes(bits: u32, bytes: &[u8]) -> Bitmap {
        let mut map = Bitmap::new(bits);
        for (word, chunk) in map.words.iter_mut().zip(bytes.chunks(8)) {
            let mut le = [0; 8];
            for (to, from) in le.iter_mut().zip(chunk) {
                *to = *from;
            }
            *word = u64::from_le_bytes(le);
        }
        let used = bits % 64;
        if used != 0
            && let Some(last) = map.words.last_mut()
        {
            *last &= (1 << used) - 1;
        }
        map.set = map.words.iter().map(|word| word.count_ones()).sum();
        map
    }

    /// How many bits there are.
    #[must_use]
    pub fn len(&self) -> u32 {
        self.bits
    }

    /// Whether no bit is set.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.set == 0
    }

    /// How many bits are set.
    #[must_use]
    pub fn count(&self) -> u32 {
        self.set
    }

    /// Whether `bit` is set; a bit past the end is not.
    #[must_use]
    pub fn contains(&self, bit: u32) -> bool {
        self.words.get(bit as usize / 64).is_some_and(|word| word & (1 << (bit % 64)) != 0)
    }

    /// Sets `bit` and says whether that changed anything; a bit past the end is left alone.
    pub fn insert(&mut self, bit: u32) -> bool {
        let changed = bit < self.bits && !self.contains(bit);
        if changed && let Some(word) = self.words.get_mut(bit as usize / 64) {
            *word |= 1 << (bit % 64);
            self.set += 1;
        }
        changed
    }

    /// Clears `bit` and says whether that changed anything.
    pub fn remove(&mut self, bit: u32) -> bool {
        let changed = self.contains(bit);
        if changed && let Some(word) = self.words.get_mut(bit as usize / 64) {
            *word &= !(1 << (bit % 64));
            self.set -= 1;
        }
        changed
    }

    /// Clears every bit.
    pub fn clear(&mut self) {
        if self.set > 0 {
            self.words.fill(0);
            self.set = 0;
        }
    }

    /// Sets every bit that is set in `other`.
    pub fn union(&mut self, other: &Bitmap) {
        for bit in other.iter() {
            self.insert(bit);
        }
    }

    /// Whether every set bit is set in `other` too, which has no fewer bits.
    #[must_use]
    pub fn is_subset(&self, other: &Bitmap) -> bool {
        self.is_empty() || self.words.iter().zip(&other.words).all(|(ours, theirs)| ours & !theirs == 0)
    }

    /// The first set bit at or after `from`.
    #[must_use]
    pub fn next_from(&self, from: u32) -> Option<u32> {
        if self.is_empty() {
            return None; // as most are most of the time, however large the provider is
        }
        let mut index = from as usize / 64;
        let mut mask = u64::MAX << (from % 64);
        loop {
            let word = self.words.get(index)? & mask;
            if word != 0 {
                return u32::try_from(index * 64).ok().map(|base| base + word.trailing_zeros());
            }
            index += 1;
            mask = u64::MAX;
        }
    }

    /// The set bits in rising order.
    pub fn iter(&self) -> impl Iterator<Item = u32> + '_ {
        core::iter::successors(self.next_from(0), |&bit| self.next_from(bit.checked_add(1)?))
    }

    /// The bytes `range` of the bitmap as they lie on disk, zero past the last word.
    #[must_use]
    pub fn bytes(&self, range: Range<usize>) -> Vec<u8> {
        let byte = |at: usize| {
            let word = self.words.get(at / 8).copied().unwrap_or(0).to_le_bytes();
            word.get(at % 8).copied().unwrap_or(0)
        };
        range.map(byte).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::collections::BTreeSet;
    use proptest::prelude::*;

    #[test]
    fn bit_order_is_that_of_the_disk() {
        let mut map = Bitmap::new(70);
        for bit in [0, 9, 63, 64, 69] {
            assert!(map.insert(bit));
            assert!(!map.insert(bit));
        }
        assert!(!map.insert(70));
        assert_eq!(map.bytes(0..16), [1, 2, 0, 0, 0, 0, 0, 0x80, 0x21, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(map.bytes(7..18)[..2], [0x80, 0x21]);
        assert_eq!(map.bytes(15..18), [0, 0, 0]);
    }

    #[test]
    fn padding_and_missing_bytes_read_as_clear() {
        let map = Bitmap::from_bytes(10, &[0xff; 512]);
        assert_eq!((map.count(), map.bytes(0..8)), (10, vec![0xff, 3, 0, 0, 0, 0, 0, 0]));
        assert_eq!(Bitmap::from_bytes(100, &[0xff]).count(), 8);
        assert_eq!(Bitmap::full(130).iter().count(), 130);
    }

    proptest! {
        #[test]
        fn behaves_as_a_set(bits in 1u32..300, ops in proptest::collection::vec((any::<bool>(), 0u32..320), 0..200)) {
            let mut map = Bitmap::new(bits);
            let mut model = BTreeSet::new();
            for (insert, bit) in ops {
                if insert {
                    prop_assert_eq!(map.insert(bit), bit < bits && model.insert(bit));
                } else {
                    prop_assert_eq!(map.remove(bit), model.remove(&bit));
                }
            }
            prop_assert_eq!(map.iter().collect::<Vec<_>>(), model.iter().copied().collect::<Vec<_>>());
            prop_assert_eq!((map.count() as usize, map.is_empty()), (model.len(), model.is_empty()));
            let full = Bitmap::full(bits);
            prop_assert!(map.is_subset(&full) && map.is_subset(&map));
            prop_assert_eq!(full.is_subset(&map), map.count() == bits);
            let bytes = map.bytes(0..(bits.div_ceil(64) * 8) as usize);
            prop_assert_eq!(Bitmap::from_bytes(bits, &bytes), map);
        }
    }
}
