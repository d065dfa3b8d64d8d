//! How structured input is read: a script of small numbers and runs of bytes, front to back.
//!
//! Only [`Unstructured`]'s reads of fixed-size numbers are used. Past its end the input goes on with zeros, so
//! every prefix of a script is a script, and bytes mean the same in every version of `arbitrary`: committed
//! inputs keep their meaning.

use arbitrary::{Arbitrary, Unstructured};

/// An input that is read as decisions.
#[derive(Debug)]
pub struct Source<'a> {
    rest: Unstructured<'a>,
}

impl<'a> Source<'a> {
    /// The decisions that `data` stands for.
    #[must_use]
    pub fn new(data: &'a [u8]) -> Source<'a> {
        Source { rest: Unstructured::new(data) }
    }

    /// Whether nothing but zeros would follow.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    /// A number, little-endian.
    pub fn number<T: Arbitrary<'a> + Default>(&mut self) -> T {
        self.rest.arbitrary().unwrap_or_default()
    }

    /// A byte.
    pub fn byte(&mut self) -> u8 {
        self.number()
    }

    /// A number below `end`, from one byte. `end` is 1 to 256.
    pub fn below(&mut self, end: usize) -> usize {
        usize::from(self.byte()) % end
    }

    /// True for odd bytes.
    pub fn flag(&mut self) -> bool {
        self.byte() & 1 == 1
    }

    /// True once in `times`, and not at the end.
    pub fn one_in(&mut self, times: usize) -> bool {
        self.below(times) == times - 1
    }

    /// Up to `count` bytes, as many as there are.
    pub fn bytes(&mut self, count: usize) -> &'a [u8] {
        let count = count.min(self.rest.len());
        self.rest.bytes(count).unwrap_or_default()
    }

    /// Everything that is left.
    pub fn remainder(&mut self) -> &'a [u8] {
        self.bytes(usize::MAX)
    }

    /// A text behind its length in one byte; what is not UTF-8 is replaced.
    pub fn text(&mut self) -> String {
        let length = usize::from(self.byte());
        String::from_utf8_lossy(self.bytes(length)).into_owned()
    }

    /// One of `choices`, which are at most 256.
    pub fn choose<T: Clone>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len())].clone()
    }

    /// A count as counters hold it: mostly small, sometimes close to where it would overflow, or anything.
    pub fn count(&mut self) -> u64 {
        match self.byte() {
            small @ 0..=0xef => u64::from(small) & 7,
            large @ 0xf0..=0xf7 => u64::MAX - u64::from(large & 7),
            _ => self.number(),
        }
    }
}
