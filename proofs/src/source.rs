//! Where a harness takes its values from.

use core::ops::RangeInclusive;

/// The values do not meet what the harness assumes: nothing is claimed of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unfit;

/// One run of a harness. That its claim is wrong it says by a panic.
pub type Case = Result<(), Unfit>;

/// A source of values.
pub trait Source {
    /// A number of `all`. An engine that cannot try them all tries those of `few`, which is not empty.
    fn number(&mut self, all: RangeInclusive<u64>, few: &[u64]) -> u64;

    /// A number below `end`, which is not 0. Every engine tries them all.
    fn below(&mut self, end: u64) -> u64;

    /// Either.
    fn bool(&mut self) -> bool {
        self.below(2) == 1
    }

    /// One of these.
    fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len() as u64) as usize]
    }

    /// A number of 32 bits; else as [`number`](Self::number).
    fn small(&mut self, few: &[u64]) -> u32 {
        u32::try_from(self.number(0..=u64::from(u32::MAX), few)).unwrap_or(u32::MAX)
    }

    /// Goes on only with values of which `holds` is true.
    fn assume(&mut self, holds: bool) -> Case {
        if holds { Ok(()) } else { Err(Unfit) }
    }
}

/// Every combination of choices, one run after the other.
#[derive(Clone, Debug, Default)]
pub struct Walk {
    /// What was chosen, and of how many.
    path: Vec<(u64, u64)>,
    at: usize,
}

impl Walk {
    /// Before the first run.
    #[must_use]
    pub fn new() -> Walk {
        Walk::default()
    }

    /// On to the next combination; false after the last.
    pub fn advance(&mut self) -> bool {
        // What the last run did not ask for any more does not count.
        self.path.truncate(self.at);
        self.at = 0;
        while let Some((choice, of)) = self.path.pop() {
            if choice + 1 < of {
                self.path.push((choice + 1, of));
                return true;
            }
        }
        false
    }

    /// The choices of this run, to be named in a failure.
    #[must_use]
    pub fn choices(&self) -> Vec<u64> {
        self.path.iter().take(self.at).map(|(choice, _)| *choice).collect()
    }
}

impl Source for Walk {
    fn number(&mut self, all: RangeInclusive<u64>, few: &[u64]) -> u64 {
        let value = self.pick(few);
        debug_assert!(all.contains(&value), "{value} is none of {all:?}");
        value
    }

    fn below(&mut self, end: u64) -> u64 {
        if self.at == self.path.len() {
            self.path.push((0, end));
        }
        let (choice, of) = self.path[self.at];
        assert_eq!(of, end, "the harness chooses differently though nothing has changed");
        self.at += 1;
        choice
    }
}

/// Random numbers that were drawn before; zeros when they are used up.
#[derive(Clone, Debug)]
pub struct Tape<'a> {
    numbers: &'a [u64],
    used: usize,
}

impl<'a> Tape<'a> {
    /// These.
    #[must_use]
    pub fn new(numbers: &'a [u64]) -> Tape<'a> {
        Tape { numbers, used: 0 }
    }

    /// The numbers that this run has used, to be named in a failure.
    #[must_use]
    pub fn used(&self) -> &'a [u64] {
        self.numbers.get(..self.used).unwrap_or(self.numbers)
    }

    fn next(&mut self) -> u64 {
        let number = self.numbers.get(self.used).copied().unwrap_or(0);
        self.used += 1;
        number
    }
}

impl Source for Tape<'_> {
    /// Half of them those of `few`: what lies far apart seldom meets by chance.
    fn number(&mut self, all: RangeInclusive<u64>, few: &[u64]) -> u64 {
        if self.bool() {
            let (start, width) = (*all.start(), all.end() - all.start());
            let drawn = self.next();
            // Of all sizes, not just of the largest.
            let drawn = drawn >> (self.below(64) as u32);
            start + width.checked_add(1).map_or(drawn, |count| drawn % count)
        } else {
            self.pick(few)
        }
    }

    fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_walk_tries_every_combination_once() {
        let mut walk = Walk::new();
        let mut seen = Vec::new();
        loop {
            let first = walk.below(3);
            let second = if first == 1 { walk.number(0..=99, &[7, 9]) } else { 0 };
            seen.push((first, second, walk.bool()));
            assert_eq!(walk.choices().len(), if first == 1 { 3 } else { 2 });
            if !walk.advance() {
                break;
            }
        }
        let expected = [(0, 0), (1, 7), (1, 9), (2, 0)];
        assert_eq!(seen, expected.map(|(a, b)| [(a, b, false), (a, b, true)]).concat());
    }

    #[test]
    fn a_tape_stays_within_what_is_asked_for() {
        for seed in 0..2000_u64 {
            let numbers: Vec<u64> =
                (1..9).map(|n| (seed + n).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(17)).collect();
            let mut tape = Tape::new(&numbers);
            assert!((5..=9).contains(&tape.number(5..=9, &[6])));
            assert!(tape.below(3) < 3);
            let _ = tape.number(0..=u64::MAX, &[1]);
        }
        assert_eq!(Tape::new(&[]).number(3..=4, &[4]), 4);
    }
}
