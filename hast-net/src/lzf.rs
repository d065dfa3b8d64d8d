//! LZF, the one real compression on HAST's wire, in the stream format of liblzf.
//!
//! A stream is a sequence of tokens. A first byte below 32 is followed by that many plus one literal
//! bytes. Any other first byte is a reference: its top three bits plus two are the length, where seven
//! means that a further byte is to be added; its low five bits and the last byte are the distance minus
//! one, back from where the output stands. A reference may overlap what it produces.
//!
//! Both directions work on memory of a size fixed by the caller; no input makes either panic. This
//! module knows nothing of frames and pairs.

use thiserror::Error;

/// The longest run of literals that one token holds.
const MAX_LITERALS: usize = 32;
/// How far back a reference reaches.
const MAX_DISTANCE: usize = 1 << 13;
/// The shortest match that is worth a reference.
const MIN_MATCH: usize = 3;
/// The longest match that one reference copies.
const MAX_MATCH: usize = 264;
/// Bytes of a reference that copies so much.
const LONG_REFERENCE: usize = 3;
/// Places in the table of sequences seen, as a power of two.
const TABLE_BITS: u32 = 13;
/// After this many literals in a row the search steps wider, as a power of two.
const PATIENCE_BITS: u32 = 6;

/// Why a stream does not decode to what it claims to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum LzfError {
    /// The input ends inside a token.
    #[error("compressed data ends in the middle of a token at byte {at}")]
    Truncated {
        /// Offset in the compressed data.
        at: usize,
    },
    /// A reference points before the first byte of the output.
    #[error("compressed data refers {distance} bytes back where only {produced} exist")]
    BadReference {
        /// How far back the reference points, in bytes.
        distance: usize,
        /// How many bytes were there.
        produced: usize,
    },
    /// The stream holds more than the announced length.
    #[error("compressed data holds more than the {expected} bytes it announces")]
    TooLong {
        /// The announced length in bytes.
        expected: usize,
    },
    /// No stream of that length holds as much as is announced.
    #[error("{length} bytes of compressed data cannot hold the {expected} bytes that they announce")]
    Impossible {
        /// Bytes of compressed data.
        length: usize,
        /// The announced length in bytes.
        expected: usize,
    },
    /// The stream holds less than the announced length.
    #[error("compressed data holds {produced} bytes and announces {expected}")]
    TooShort {
        /// How many bytes the stream holds.
        produced: usize,
        /// The announced length in bytes.
        expected: usize,
    },
}

/// Whether a stream like `input` can hold `expected` bytes at all: to be asked before memory is taken for them.
///
/// # Errors
/// It cannot: a reference is three bytes and makes at most 264.
pub fn check_claim(input: &[u8], expected: usize) -> Result<(), LzfError> {
    let most = input.len().saturating_mul(MAX_MATCH / LONG_REFERENCE);
    if expected > most { Err(LzfError::Impossible { length: input.len(), expected }) } else { Ok(()) }
}

/// Decompresses `input` into `output`, which it must fill to the last byte and not beyond.
///
/// # Errors
/// Whatever keeps `input` from decoding to exactly `output.len()` bytes; `output` is then partly written
/// and must not be used.
pub fn decompress(input: &[u8], output: &mut [u8]) -> Result<(), LzfError> {
    let expected = output.len();
    let mut rest = input;
    let mut produced = 0;
    while let Some((&token, after)) = rest.split_first() {
        let truncated = LzfError::Truncated { at: input.len() - rest.len() };
        let room = output.get_mut(produced..).unwrap_or_default();
        if usize::from(token) < MAX_LITERALS {
            let length = usize::from(token) + 1;
            let (literals, next) = after.split_at_checked(length).ok_or(truncated)?;
            room.get_mut(..length).ok_or(LzfError::TooLong { expected })?.copy_from_slice(literals);
            produced += length;
            rest = next;
            continue;
        }
        let (extra, after) = match token >> 5 {
            7 => after.split_first().ok_or(truncated)?,
            _ => (&0, after),
        };
        let (&low, next) = after.split_first().ok_or(truncated)?;
        let length = usize::from(token >> 5) + usize::from(*extra) + 2;
        let distance = (usize::from(token & 0x1f) << 8 | usize::from(low)) + 1;
        let start = produced.checked_sub(distance).ok_or(LzfError::BadReference { distance, produced })?;
        if length > room.len() {
            return Err(LzfError::TooLong { expected });
        }
        // What was copied can be copied again: each round doubles what an overlapping reference has.
        let end = produced + length;
        while produced < end {
            let piece = (produced - start).min(end - produced);
            output.copy_within(start..start + piece, produced);
            produced += piece;
        }
        rest = next;
    }
    if produced == expected { Ok(()) } else { Err(LzfError::TooShort { produced, expected }) }
}

/// Appends the compressed form of `input` to `output`, at most `limit` bytes of it. Returns false, with
/// `output` as it was, if it does not fit.
#[must_use]
pub fn compress(input: &[u8], output: &mut Vec<u8>, limit: usize) -> bool {
    let before = output.len();
    let mut writer = Tokens { output, end: before.saturating_add(limit) };
    let fits = search(input, &mut writer).is_some();
    if !fits {
        output.truncate(before);
    }
    fits
}

/// Finds matches and hands out tokens until the input is used up or the output is full.
fn search(input: &[u8], tokens: &mut Tokens<'_>) -> Option<()> {
    // Positions plus one of the last sequence with each hash; zero is none.
    let mut table = vec![0_u32; 1 << TABLE_BITS];
    let mut literals = 0;
    let mut at: usize = 0;
    while let Some(sequence) = sequence(input, at) {
        let seen = table.get_mut(hash(sequence))?;
        let candidate = usize::try_from(*seen).ok()?.checked_sub(1);
        *seen = u32::try_from(at + 1).ok()?;
        let found = candidate
            .filter(|&candidate| at - candidate <= MAX_DISTANCE)
            .map(|candidate| (at - candidate, match_length(input, candidate, at)))
            .filter(|&(_, length)| length >= MIN_MATCH);
        let Some((distance, length)) = found else {
            // Data that does not compress is passed over quickly, but not so that what follows it is missed.
            at += 1 + ((at - literals) >> PATIENCE_BITS).min(MAX_LITERALS);
            continue;
        };
        tokens.literals(input.get(literals..at)?)?;
        tokens.reference(distance, length)?;
        at += length;
        literals = at;
        // The sequences at the end of a match are the likeliest to come again.
        for inside in [at - 2, at - 1] {
            if let Some(sequence) = self::sequence(input, inside) {
                *table.get_mut(hash(sequence))? = u32::try_from(inside + 1).ok()?;
            }
        }
    }
    tokens.literals(input.get(literals..)?)
}

/// The three bytes at `at`, if there are three.
fn sequence(input: &[u8], at: usize) -> Option<[u8; MIN_MATCH]> {
    input.get(at..)?.first_chunk().copied()
}

/// The place of a sequence in the table.
fn hash([a, b, c]: [u8; MIN_MATCH]) -> usize {
    let spread = u32::from_le_bytes([0, a, b, c]).wrapping_mul(0x9e37_79b1);
    usize::try_from(spread >> (u32::BITS - TABLE_BITS)).unwrap_or_default()
}

/// How many bytes at `first` and `second` are the same, up to what one reference can copy.
fn match_length(input: &[u8], first: usize, second: usize) -> usize {
    let earlier = input.get(first..).unwrap_or_default();
    let later = input.get(second..).unwrap_or_default();
    earlier.iter().zip(later).take(MAX_MATCH).take_while(|(a, b)| a == b).count()
}

/// Where tokens go, with its end.
struct Tokens<'a> {
    output: &'a mut Vec<u8>,
    end: usize,
}

impl Tokens<'_> {
    /// Appends literals; None if there is no room.
    fn literals(&mut self, bytes: &[u8]) -> Option<()> {
        for run in bytes.chunks(MAX_LITERALS) {
            self.append(&[u8::try_from(run.len() - 1).ok()?])?;
            self.append(run)?;
        }
        Some(())
    }

    /// Appends a reference; None if there is no room.
    fn reference(&mut self, distance: usize, length: usize) -> Option<()> {
        let [low, high] = u16::try_from(distance - 1).ok()?.to_le_bytes();
        match u8::try_from(length - 2).ok() {
            Some(short) if short < 7 => self.append(&[short << 5 | high, low]),
            _ => self.append(&[7 << 5 | high, u8::try_from(length - 2 - 7).ok()?, low]),
        }
    }

    fn append(&mut self, bytes: &[u8]) -> Option<()> {
        if bytes.len() > self.end.saturating_sub(self.output.len()) {
            return None;
        }
        self.output.extend_from_slice(bytes);
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn compressed(input: &[u8]) -> Vec<u8> {
        let mut output = Vec::new();
        assert!(compress(input, &mut output, usize::MAX));
        output
    }

    fn decompressed(input: &[u8], length: usize) -> Result<Vec<u8>, LzfError> {
        let mut output = vec![0xee; length];
        decompress(input, &mut output).map(|()| output)
    }

    #[test]
    fn streams_written_by_hand_decode_as_the_format_says() {
        assert_eq!(decompressed(&[], 0).unwrap(), b"");
        assert_eq!(decompressed(&[2, b'a', b'b', b'c'], 3).unwrap(), b"abc");
        // Three back, three long.
        assert_eq!(decompressed(&[2, b'a', b'b', b'c', 1 << 5, 2], 6).unwrap(), b"abcabc");
        // One back, overlapping, with a length byte: 7 + 20 + 2.
        assert_eq!(decompressed(&[0, b'x', 7 << 5, 20, 0], 30).unwrap(), [b'x'; 30]);
        // Distances above 256 use the low bits of the first byte.
        let mut far = Vec::new();
        for byte in 0..=9_u8 {
            far.push(31);
            far.extend([byte; 32]);
        }
        far.extend([1 << 5 | 1, 0x3f]);
        assert_eq!(decompressed(&far, 323).unwrap()[320..], [0; 3]);
    }

    #[test]
    fn streams_that_do_not_fit_are_refused_with_the_reason() {
        assert_eq!(decompressed(&[], 1), Err(LzfError::TooShort { produced: 0, expected: 1 }));
        assert_eq!(decompressed(&[3, 1, 2], 4), Err(LzfError::Truncated { at: 0 }));
        assert_eq!(decompressed(&[0, 1, 7 << 5, 1], 30), Err(LzfError::Truncated { at: 2 }));
        assert_eq!(decompressed(&[0, 1, 7 << 5], 30), Err(LzfError::Truncated { at: 2 }));
        assert_eq!(decompressed(&[0, 1, 1 << 5], 4), Err(LzfError::Truncated { at: 2 }));
        assert_eq!(
            decompressed(&[0, 1, 1 << 5, 1], 4),
            Err(LzfError::BadReference { distance: 2, produced: 1 })
        );
        assert_eq!(decompressed(&[0, 1, 1 << 5, 0], 3), Err(LzfError::TooLong { expected: 3 }));
        assert_eq!(decompressed(&[1, 1, 1], 1), Err(LzfError::TooLong { expected: 1 }));
    }

    #[test]
    fn the_densest_stream_is_possible_and_one_byte_more_is_not() {
        let mut densest = vec![0, b'x'];
        densest.extend([0xe0, 0xff, 0].repeat(100));
        let length = 1 + 100 * MAX_MATCH;
        assert_eq!(decompressed(&densest, length).unwrap(), vec![b'x'; length]);
        assert_eq!(check_claim(&densest, length), Ok(()));
        let (stream, most) = (&[0xff; 9], 3 * MAX_MATCH);
        assert_eq!(check_claim(stream, most), Ok(()));
        assert_eq!(
            check_claim(stream, most + 1),
            Err(LzfError::Impossible { length: 9, expected: most + 1 })
        );
        assert_eq!(check_claim(&[], 0), Ok(()));
    }

    #[test]
    fn matches_of_every_length_and_distance_come_back() {
        for length in (1..20).chain(255..290).chain(520..540) {
            let run = vec![7; length];
            assert_eq!(decompressed(&compressed(&run), length).unwrap(), run);
        }
        for gap in (1..5).chain(240..260).chain(8175..8200) {
            let mut data = b"sequence".to_vec();
            data.extend((0..gap).map(|i: u32| (i.wrapping_mul(2_654_435_761) >> 24) as u8));
            data.extend(b"sequence");
            assert_eq!(decompressed(&compressed(&data), data.len()).unwrap(), data, "{gap}");
        }
    }

    #[test]
    fn repetitive_data_shrinks_and_noise_grows_by_one_in_thirty_two_at_most() {
        let text = b"all work and no play makes jack a dull boy. ".repeat(100);
        assert!(compressed(&text).len() < text.len() / 20);
        let mut seed = 1_u64;
        let noise: Vec<u8> = std::iter::repeat_with(|| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (seed >> 56) as u8
        })
        .take(65_536)
        .collect();
        assert!(compressed(&noise).len() <= noise.len() + noise.len() / 32 + 1);
    }

    #[test]
    fn what_compresses_is_found_after_much_that_does_not() {
        let mut seed = 1_u64;
        let mut data: Vec<u8> = std::iter::repeat_with(|| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (seed >> 56) as u8
        })
        .take(100_000)
        .collect();
        data.extend(b"all work and no play makes jack a dull boy. ".repeat(700));
        assert!(compressed(&data).len() < 107_000);
        assert_eq!(decompressed(&compressed(&data), data.len()).unwrap(), data);
    }

    #[test]
    fn a_full_output_is_left_as_it_was() {
        let input: Vec<u8> = (0..=255).collect();
        let needed = compressed(&input).len();
        let mut output = b"before".to_vec();
        assert!(!compress(&input, &mut output, needed - 1));
        assert_eq!(output, b"before");
        assert!(compress(&input, &mut output, needed));
        assert_eq!(output.len(), 6 + needed);
    }

    proptest! {
        #[test]
        fn whatever_is_compressed_comes_back(
            pieces in prop::collection::vec((prop::collection::vec(0_u8..4, 0..40), 1_usize..30), 0..40)
        ) {
            let input: Vec<u8> = pieces.iter().flat_map(|(piece, times)| piece.repeat(*times)).collect();
            prop_assert_eq!(decompressed(&compressed(&input), input.len()), Ok(input));
        }

        #[test]
        fn arbitrary_bytes_come_back(input in prop::collection::vec(any::<u8>(), 0..5000)) {
            prop_assert_eq!(decompressed(&compressed(&input), input.len()), Ok(input));
        }

        #[test]
        fn arbitrary_streams_never_panic_and_fill_exactly_or_fail(
            input in prop::collection::vec(any::<u8>(), 0..300), length in 0_usize..3000
        ) {
            let mut output = vec![0; length];
            let _ = decompress(&input, &mut output);
        }
    }
}
