//! Name-value lists: the encoding of everything HAST stores or sends (spec "nv encoding").
//!
//! Owns the bytes of a list and nothing else: which names exist and what they mean belongs to whoever reads
//! or writes the list. Reading borrows and never allocates; a [`List`] exists only once every byte of it has
//! been checked, so look-ups cannot fail on form.
//!
//! All numbers are little-endian. Sizes are computed in 64 bits: a data size near 2^32 must not wrap when it
//! is rounded up to the padding.

#[cfg(feature = "alloc")]
use alloc::vec::Vec;

use zerocopy::byteorder::little_endian::U32;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Longest name in bytes, without the terminating NUL.
pub const NAME_MAX: usize = 254;

/// Fewer bytes than this cannot begin a pair.
const MIN_REST: usize = 8;
/// Names and data are padded to a multiple of this.
const ALIGN: u64 = 8;
/// "Host byte order" in the type byte: the reference sets it in memory only; it says nothing about the data.
const ORDER_BIT: u8 = 0x80;

/// A list that has been checked from its first byte to its end.
#[derive(Clone, Copy, Debug, Default)]
pub struct List<'a> {
    /// Exactly the pairs: neither the terminating zero nor what follows it.
    bytes: &'a [u8],
}

impl<'a> List<'a> {
    /// Checks `bytes` and borrows the list in it.
    ///
    /// The list ends at the end of `bytes` or at the first pair whose type byte is 0; whatever follows that
    /// byte is ignored. An empty slice is an empty list.
    pub fn parse(bytes: &'a [u8]) -> Result<List<'a>, Error> {
        let mut offset = 0;
        loop {
            let rest = bytes.get(offset..).unwrap_or_default();
            if rest.is_empty() {
                return Ok(List { bytes });
            }
            match split_pair(rest).map_err(|problem| Error { offset, problem })? {
                Some((_, length)) => offset = offset.saturating_add(length),
                None => return Ok(List { bytes: bytes.get(..offset).unwrap_or_default() }),
            }
        }
    }

    /// Whether the list has no pairs.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// The bytes of the pairs, without a terminating zero and what follows it.
    pub fn as_bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// The pairs in the order in which they were written, duplicates included.
    pub fn pairs(&self) -> impl Iterator<Item = Pair<'a>> + Clone + use<'a> {
        Pairs { rest: self.bytes }
    }

    /// The first pair of that name, whatever its type.
    pub fn find(&self, name: &str) -> Option<Pair<'a>> {
        self.pairs().find(|pair| pair.name == name.as_bytes())
    }

    /// Whether there is a pair of that name, whatever its type.
    pub fn contains(&self, name: &str) -> bool {
        self.find(name).is_some()
    }

    /// The string of that name, without its NUL. The first pair of the name decides: of another type, or not
    /// UTF-8, it counts as absent.
    pub fn str(&self, name: &str) -> Option<&'a str> {
        self.find(name)?.as_str()
    }

    /// The uint8 array of that name, never empty. The first pair of the name decides.
    pub fn u8_array(&self, name: &str) -> Option<&'a [u8]> {
        self.find(name).filter(|pair| pair.kind == Type::UInt8Array).map(|pair| pair.data)
    }
}

macro_rules! scalar_getters {
    ($($method:ident => $kind:ident, $what:literal;)*) => {
        impl List<'_> {
            $(
                #[doc = concat!("The ", $what, " of that name. The first pair of the name decides: of another type, it counts as absent.")]
                pub fn $method(&self, name: &str) -> Option<$method> {
                    let pair = self.find(name).filter(|pair| pair.kind == Type::$kind)?;
                    pair.data.try_into().ok().map($method::from_le_bytes)
                }
            )*
        }
    };
}

scalar_getters! {
    i8 => Int8, "int8";
    u8 => UInt8, "uint8";
    i16 => Int16, "int16";
    u16 => UInt16, "uint16";
    i32 => Int32, "int32";
    u32 => UInt32, "uint32";
    i64 => Int64, "int64";
    u64 => UInt64, "uint64";
}

/// One pair of a checked list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pair<'a> {
    /// The name without its NUL; any bytes but NUL, possibly none.
    pub name: &'a [u8],
    /// The type of the data.
    pub kind: Type,
    /// The data without its padding: little-endian numbers, or a string with its NUL. Never empty.
    pub data: &'a [u8],
}

impl<'a> Pair<'a> {
    /// The text without its NUL, if this is a string in UTF-8.
    pub fn as_str(&self) -> Option<&'a str> {
        match self.data {
            [text @ .., 0] if self.kind == Type::String => core::str::from_utf8(text).ok(),
            _ => None,
        }
    }
}

/// What the data of a pair is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
#[allow(missing_docs)]
pub enum Type {
    Int8 = 1,
    UInt8 = 2,
    Int16 = 3,
    UInt16 = 4,
    Int32 = 5,
    UInt32 = 6,
    Int64 = 7,
    UInt64 = 8,
    Int8Array = 9,
    UInt8Array = 10,
    Int16Array = 11,
    UInt16Array = 12,
    Int32Array = 13,
    UInt32Array = 14,
    Int64Array = 15,
    UInt64Array = 16,
    /// Text that ends in its only NUL.
    String = 17,
}

impl Type {
    /// Every type, in the order of their codes.
    pub const ALL: [Type; 17] = [
        Type::Int8,
        Type::UInt8,
        Type::Int16,
        Type::UInt16,
        Type::Int32,
        Type::UInt32,
        Type::Int64,
        Type::UInt64,
        Type::Int8Array,
        Type::UInt8Array,
        Type::Int16Array,
        Type::UInt16Array,
        Type::Int32Array,
        Type::UInt32Array,
        Type::Int64Array,
        Type::UInt64Array,
        Type::String,
    ];

    /// The code in the type byte: 1 to 17.
    pub fn code(self) -> u8 {
        self as u8
    }

    /// The type with that code, without the order bit.
    pub fn from_code(code: u8) -> Option<Type> {
        Type::ALL.get(usize::from(code.checked_sub(1)?)).copied()
    }

    /// Bytes of one element.
    fn element(self) -> usize {
        match self {
            Type::Int8 | Type::UInt8 | Type::Int8Array | Type::UInt8Array | Type::String => 1,
            Type::Int16 | Type::UInt16 | Type::Int16Array | Type::UInt16Array => 2,
            Type::Int32 | Type::UInt32 | Type::Int32Array | Type::UInt32Array => 4,
            Type::Int64 | Type::UInt64 | Type::Int64Array | Type::UInt64Array => 8,
        }
    }

    /// Whether `data` (never empty) is well formed for this type.
    fn admits(self, data: &[u8]) -> Result<(), Problem> {
        match self {
            Type::String => match data {
                [text @ .., 0] if !text.contains(&0) => Ok(()),
                _ => Err(Problem::BadString),
            },
            _ if self.code() <= Type::UInt64.code() && data.len() == self.element() => Ok(()),
            _ if self.code() > Type::UInt64.code() && data.len().is_multiple_of(self.element()) => Ok(()),
            _ => Err(Problem::BadSize { code: self.code(), size: data.len() }),
        }
    }
}

/// Why bytes are no list. The reference calls all of them EINVAL.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("malformed name-value list at byte {offset}: {problem}")]
pub struct Error {
    /// Where the bad pair begins.
    pub offset: usize,
    /// What is wrong with it.
    pub problem: Problem,
}

/// What is wrong with a pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// Bytes are left, but fewer than any pair has.
    #[error("{left} bytes left over")]
    Leftover {
        /// How many.
        left: usize,
    },
    /// Name or data, with their padding, run past the end.
    #[error("name or data run past the end")]
    PastEnd,
    /// The name does not end in its only NUL.
    #[error("name not terminated where it ends")]
    BadName,
    /// No type has that code.
    #[error("unknown type {0}")]
    UnknownType(u8),
    /// No data at all.
    #[error("no data")]
    NoData,
    /// The data is of a length that the type cannot have.
    #[error("{size} bytes of data for type {code}")]
    BadSize {
        /// The code of the type.
        code: u8,
        /// Bytes of data.
        size: usize,
    },
    /// A string that does not end in its only NUL.
    #[error("string not terminated where it ends")]
    BadString,
}

/// Writes a list, pair by pair, in the order in which the methods are called.
///
/// Names are constants of the program: 1 to [`NAME_MAX`] bytes without NUL. A name that breaks this is a bug
/// (a debug assertion) and its pair is left out. The same name is never written twice by one caller: a reader
/// looks at the first pair only.
#[cfg(feature = "alloc")]
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Writer {
    bytes: Vec<u8>,
}

#[cfg(feature = "alloc")]
impl Writer {
    /// An empty list.
    pub fn new() -> Writer {
        Writer::default()
    }

    /// An empty list with room for `bytes` bytes.
    pub fn with_capacity(bytes: usize) -> Writer {
        Writer { bytes: Vec::with_capacity(bytes) }
    }

    /// Adds a string. The encoding has no way to hold a NUL: the text ends before its first one.
    pub fn str(&mut self, name: &str, value: &str) -> &mut Self {
        let text = value.split('\0').next().unwrap_or_default();
        self.pair(name, Type::String, &[text.as_bytes(), &[0]])
    }

    /// Adds an array of bytes. The encoding has no empty arrays: an empty one is left out.
    pub fn u8_array(&mut self, name: &str, value: &[u8]) -> &mut Self {
        self.pair(name, Type::UInt8Array, &[value])
    }

    /// The list so far.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The finished list.
    pub fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }

    /// Begins again with an empty list, in the same memory.
    pub fn clear(&mut self) {
        self.bytes.clear();
    }

    /// Bytes so far.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Whether no pair has been written.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Adds a pair whose data is the concatenation of `parts`.
    fn pair(&mut self, name: &str, kind: Type, parts: &[&[u8]]) -> &mut Self {
        let valid = (1..=NAME_MAX).contains(&name.len()) && !name.as_bytes().contains(&0);
        debug_assert!(valid, "not a name for a pair: {name:?}");
        let size = parts.iter().fold(0, |sum: usize, part| sum.saturating_add(part.len()));
        let (Ok(name_size), Ok(data_size)) =
            (u8::try_from(name.len().saturating_add(1)), u32::try_from(size))
        else {
            return self;
        };
        if !valid || data_size == 0 {
            return self;
        }
        let header = Header { code: kind.code(), name_size, data_size: U32::new(data_size) };
        self.bytes.extend_from_slice(header.as_bytes());
        self.bytes.extend_from_slice(name.as_bytes());
        self.zeros(1 + padding(u64::from(name_size)));
        for part in parts {
            self.bytes.extend_from_slice(part);
        }
        self.zeros(padding(u64::from(data_size)));
        self
    }

    fn zeros(&mut self, count: usize) {
        self.bytes.extend(core::iter::repeat_n(0, count));
    }
}

#[cfg(feature = "alloc")]
macro_rules! scalar_setters {
    ($($method:ident => $kind:ident, $what:literal;)*) => {
        impl Writer {
            $(
                #[doc = concat!("Adds an ", $what, ".")]
                pub fn $method(&mut self, name: &str, value: $method) -> &mut Self {
                    self.pair(name, Type::$kind, &[&value.to_le_bytes()])
                }
            )*
        }
    };
}

#[cfg(feature = "alloc")]
scalar_setters! {
    i8 => Int8, "int8";
    u8 => UInt8, "uint8";
    i16 => Int16, "int16";
    u16 => UInt16, "uint16";
    i32 => Int32, "int32";
    u32 => UInt32, "uint32";
    i64 => Int64, "int64";
    u64 => UInt64, "uint64";
}

/// What every pair begins with. Six bytes, packed: the next pair need not be aligned to anything.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Header {
    /// The type's code, and the order bit.
    code: u8,
    /// Bytes of the name with its NUL.
    name_size: u8,
    /// Bytes of the data without padding.
    data_size: U32,
}

/// The pairs of a checked list.
#[derive(Clone)]
struct Pairs<'a> {
    rest: &'a [u8],
}

impl<'a> Iterator for Pairs<'a> {
    type Item = Pair<'a>;

    fn next(&mut self) -> Option<Pair<'a>> {
        if self.rest.is_empty() {
            return None;
        }
        let (pair, length) = split_pair(self.rest).ok().flatten()?;
        self.rest = self.rest.get(length..).unwrap_or_default();
        Some(pair)
    }
}

/// The pair at the start of `rest`, which is not empty, and the bytes it takes; `None` at the end of the list.
fn split_pair(rest: &[u8]) -> Result<Option<(Pair<'_>, usize)>, Problem> {
    if rest.len() < MIN_REST {
        return Err(Problem::Leftover { left: rest.len() });
    }
    let (header, body) = Header::ref_from_prefix(rest).map_err(|_| Problem::Leftover { left: rest.len() })?;
    if header.code == 0 {
        return Ok(None);
    }
    let (name, body) = split_padded(body, u64::from(header.name_size))?;
    let name = match name {
        [name @ .., 0] if !name.contains(&0) => name,
        _ => return Err(Problem::BadName),
    };
    let code = header.code & !ORDER_BIT;
    let kind = Type::from_code(code).ok_or(Problem::UnknownType(code))?;
    let size = u64::from(header.data_size.get());
    if size == 0 {
        return Err(Problem::NoData);
    }
    let (data, body) = split_padded(body, size)?;
    kind.admits(data)?;
    Ok(Some((Pair { name, kind, data }, rest.len().saturating_sub(body.len()))))
}

/// The first `size` bytes, and what follows them and their padding.
fn split_padded(bytes: &[u8], size: u64) -> Result<(&[u8], &[u8]), Problem> {
    let take = |bytes: u64| usize::try_from(bytes).map_err(|_| Problem::PastEnd);
    let padded = take(size.next_multiple_of(ALIGN))?;
    let (field, rest) = bytes.split_at_checked(padded).ok_or(Problem::PastEnd)?;
    Ok((field.get(..take(size)?).ok_or(Problem::PastEnd)?, rest))
}

/// Zero bytes after `size` bytes of name or data.
#[cfg(feature = "alloc")]
fn padding(size: u64) -> usize {
    usize::try_from(size.next_multiple_of(ALIGN).saturating_sub(size)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A pair by hand: header, padded name (NUL included by the caller), padded data.
    fn pair(code: u8, name: &[u8], dsize: u32, data: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::from([code, name.len() as u8]);
        bytes.extend(dsize.to_le_bytes());
        bytes.extend(name);
        bytes.resize(bytes.len().next_multiple_of(8).max(6 + name.len().next_multiple_of(8)), 0xa5);
        bytes.truncate(6 + name.len().next_multiple_of(8));
        bytes.extend(data);
        bytes
    }

    fn problem(bytes: &[u8]) -> Problem {
        List::parse(bytes).unwrap_err().problem
    }

    #[test]
    fn writes_the_documented_bytes() {
        let mut writer = Writer::new();
        assert!(writer.is_empty());
        writer.u8("cmd", 2).str("resource0", "second").u8_array("hash", &[1, 2, 3]);
        let expected: &[u8] = b"\x02\x04\x01\0\0\0cmd\0\0\0\0\0\x02\0\0\0\0\0\0\0\
            \x11\x0a\x07\0\0\0resource0\0\0\0\0\0\0\0second\0\0\
            \x0a\x05\x03\0\0\0hash\0\0\0\0\x01\x02\x03\0\0\0\0\0";
        assert_eq!(writer.as_bytes(), expected);
        assert_eq!((writer.len(), writer.is_empty()), (expected.len(), false));
        let list = List::parse(expected).unwrap();
        assert_eq!(list.u8("cmd"), Some(2));
        assert_eq!(list.str("resource0"), Some("second"));
        assert_eq!(list.u8_array("hash"), Some(&[1u8, 2, 3][..]));
        assert_eq!(list.pairs().count(), 3);
    }

    #[test]
    fn an_empty_slice_is_an_empty_list() {
        let list = List::parse(&[]).unwrap();
        assert!(list.is_empty());
        assert_eq!(list.pairs().count(), 0);
        assert!(!list.contains(""));
    }

    #[test]
    fn a_type_byte_of_zero_ends_the_list() {
        let mut bytes = Writer::new().u8("a", 1).as_bytes().to_vec();
        let length = bytes.len();
        bytes.extend([0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]);
        let list = List::parse(&bytes).unwrap();
        assert_eq!(list.as_bytes().len(), length);
        assert_eq!(list.pairs().count(), 1);
        // Fewer than eight bytes are no pair, not even a last one.
        bytes.truncate(length + 7);
        assert_eq!(
            List::parse(&bytes).unwrap_err(),
            Error { offset: length, problem: Problem::Leftover { left: 7 } }
        );
    }

    #[test]
    fn refuses_what_is_cut_off() {
        let whole = Writer::new().u64("localcnt", 7).as_bytes().to_vec();
        for length in 1..whole.len() {
            let expected = if length < 8 { Problem::Leftover { left: length } } else { Problem::PastEnd };
            assert_eq!(problem(&whole[..length]), expected, "{length}");
        }
    }

    #[test]
    fn refuses_bad_names() {
        let data = [1, 0, 0, 0, 0, 0, 0, 0];
        assert_eq!(problem(&pair(2, b"ab", 1, &data)), Problem::BadName);
        assert_eq!(problem(&pair(2, b"a\0b\0", 1, &data)), Problem::BadName);
        assert_eq!(problem(&pair(2, b"a\0\0", 1, &data)), Problem::BadName);
        assert_eq!(problem(&pair(2, b"", 1, &data)), Problem::BadName);
        // A name of nothing but its NUL is accepted.
        let bytes = pair(2, b"\0", 1, &data);
        assert_eq!(List::parse(&bytes).unwrap().u8(""), Some(1));
    }

    #[test]
    fn refuses_bad_types_and_sizes() {
        let data = [1, 0, 0, 0, 0, 0, 0, 0];
        for code in [18, 19, 0x7f] {
            assert_eq!(problem(&pair(code, b"a\0", 1, &data)), Problem::UnknownType(code));
        }
        assert_eq!(problem(&pair(0x80, b"a\0", 1, &data)), Problem::UnknownType(0));
        for code in 1..=17 {
            assert_eq!(problem(&pair(code, b"a\0", 0, &data)), Problem::NoData);
        }
        for (code, good) in [(1, 1), (2, 1), (3, 2), (4, 2), (5, 4), (6, 4), (7, 8), (8, 8)] {
            for size in 1..=8 {
                let bytes = pair(code, b"a\0", size, &data);
                let bad = Problem::BadSize { code, size: size as usize };
                assert_eq!(
                    List::parse(&bytes).map(|_| ()).map_err(|e| e.problem),
                    if size == good { Ok(()) } else { Err(bad) }
                );
            }
        }
        // Two of them are none.
        let two = [[1, 0, 0, 0, 0, 0, 0, 0]; 2].concat();
        assert_eq!(problem(&pair(8, b"a\0", 16, &two)), Problem::BadSize { code: 8, size: 16 });
        for (code, element) in [(9, 1), (10, 1), (11, 2), (12, 2), (13, 4), (14, 4), (15, 8), (16, 8)] {
            for size in 1..=8u32 {
                let bytes = pair(code, b"a\0", size, &data);
                assert_eq!(List::parse(&bytes).is_ok(), size.is_multiple_of(element));
            }
        }
    }

    #[test]
    fn refuses_bad_strings() {
        let bytes = pair(17, b"a\0", 4, b"abc\0\0\0\0\0");
        assert_eq!(List::parse(&bytes).unwrap().str("a"), Some("abc"));
        assert_eq!(problem(&pair(17, b"a\0", 3, b"abc\0\0\0\0\0")), Problem::BadString);
        assert_eq!(problem(&pair(17, b"a\0", 5, b"abc\0\0\0\0\0")), Problem::BadString);
        let bytes = pair(17, b"a\0", 1, &[0; 8]);
        assert_eq!(List::parse(&bytes).unwrap().str("a"), Some(""));
        let bytes = pair(17, b"a\0", 3, b"\xff\xfe\0\0\0\0\0\0");
        assert_eq!(List::parse(&bytes).unwrap().str("a"), None);
        assert!(List::parse(&bytes).unwrap().contains("a"));
    }

    /// Rounding these sizes up to eight wraps in 32 bits.
    #[test]
    fn data_sizes_near_the_top_of_32_bits_run_past_the_end() {
        for size in u32::MAX - 16..=u32::MAX {
            for code in [10, 17] {
                assert_eq!(problem(&pair(code, b"a\0", size, &[0; 64])), Problem::PastEnd);
            }
        }
    }

    #[test]
    fn the_order_bit_is_accepted() {
        let bytes = pair(0x80 | 8, b"a\0", 8, &[1, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(List::parse(&bytes).unwrap().u64("a"), Some(1));
    }

    #[test]
    fn the_first_pair_of_a_name_decides() {
        let mut writer = Writer::new();
        writer.i64("size", -1).u64("size", 5).u64("other", 6).u64("other", 7);
        let list = List::parse(writer.as_bytes()).unwrap();
        assert_eq!(list.u64("size"), None);
        assert_eq!(list.i64("size"), Some(-1));
        assert!(list.contains("size"));
        assert_eq!(list.u64("other"), Some(6));
    }

    #[test]
    fn strings_end_before_a_nul_and_empty_arrays_are_left_out() {
        let mut writer = Writer::new();
        writer.str("a", "x\0y").u8_array("b", &[]);
        let list = List::parse(writer.as_bytes()).unwrap();
        assert_eq!(list.str("a"), Some("x"));
        assert_eq!(list.pairs().count(), 1);
    }

    #[test]
    #[should_panic(expected = "not a name")]
    #[cfg(debug_assertions)]
    fn a_name_that_cannot_be_written_is_a_bug() {
        Writer::new().u8("a\0", 1);
    }

    #[test]
    fn type_codes_are_those_of_the_table() {
        for (index, kind) in Type::ALL.into_iter().enumerate() {
            assert_eq!(usize::from(kind.code()), index + 1);
            assert_eq!(Type::from_code(kind.code()), Some(kind));
        }
        assert_eq!(Type::from_code(0), None);
        assert_eq!(Type::from_code(18), None);
    }
}
