//! Name-value lists (spec/on-disk.md, nv encoding): what is written is read back; the reader takes exactly what
//! the spec calls a list, stays inside its input and comes to an end; a list that was read is written as the same
//! bytes, up to padding; and the first pair of a name decides.

use hast_format::nv::{List, Pair, Type, Writer};

use crate::source::{Case, Source};

/// The code under proof.
pub trait Subject {
    /// Checks a list; gives its bytes without the end mark, and its pairs.
    fn parse(bytes: &[u8]) -> Option<(&[u8], Vec<Pair<'_>>)> {
        // More pairs than there can be would be a reader that does not come to an end.
        let list = List::parse(bytes).ok()?;
        Some((list.as_bytes(), list.pairs().take(bytes.len() / 8 + 1).collect()))
    }

    /// The list with these pairs.
    fn write(pairs: &[(&str, Value)]) -> Vec<u8> {
        let mut list = Writer::new();
        for (name, value) in pairs {
            value.write(&mut list, name);
        }
        list.into_bytes()
    }

    /// What the look-ups find under a name.
    fn look_up(list: &List<'_>, name: &str) -> Option<Value> {
        Value::found(list, name)
    }
}

/// The code as it ships.
#[derive(Clone, Copy, Debug)]
pub struct Real;
impl Subject for Real {}

/// What a pair holds, of the types that we write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Value {
    I8(i8),
    U8(u8),
    I16(i16),
    U16(u16),
    I32(i32),
    U32(u32),
    I64(i64),
    U64(u64),
    Str(&'static str),
    Bytes(&'static [u8]),
}

impl Value {
    fn any(source: &mut impl Source) -> Value {
        let kind = source.below(10);
        let n = source.number(0..=u64::MAX, &[0, 1, u64::MAX, 1 << 63]);
        match kind {
            0 => Value::I8(n as i8),
            1 => Value::U8(n as u8),
            2 => Value::I16(n as i16),
            3 => Value::U16(n as u16),
            4 => Value::I32(n as i32),
            5 => Value::U32(n as u32),
            6 => Value::I64(n as i64),
            7 => Value::U64(n),
            8 => Value::Str(["", "a", "secondy", "secondary"][(n % 4) as usize]),
            _ => Value::Bytes([&[0][..], &[1, 2, 3], &[0; 8], &[0xff; 9]][(n % 4) as usize]),
        }
    }

    fn write(self, list: &mut Writer, name: &str) {
        match self {
            Value::I8(v) => list.i8(name, v),
            Value::U8(v) => list.u8(name, v),
            Value::I16(v) => list.i16(name, v),
            Value::U16(v) => list.u16(name, v),
            Value::I32(v) => list.i32(name, v),
            Value::U32(v) => list.u32(name, v),
            Value::I64(v) => list.i64(name, v),
            Value::U64(v) => list.u64(name, v),
            Value::Str(v) => list.str(name, v),
            Value::Bytes(v) => list.u8_array(name, v),
        };
    }

    /// The one value that a look-up finds, of whatever type; two of them would be a fault.
    fn found(list: &List<'_>, name: &str) -> Option<Value> {
        let known_str = ["", "a", "secondy", "secondary"];
        let known_bytes = [&[0][..], &[1, 2, 3], &[0; 8], &[0xff; 9]];
        let str = list.str(name).and_then(|found| known_str.into_iter().find(|known| *known == found));
        let bytes =
            list.u8_array(name).and_then(|found| known_bytes.into_iter().find(|known| *known == found));
        let found = [
            list.i8(name).map(Value::I8),
            list.u8(name).map(Value::U8),
            list.i16(name).map(Value::I16),
            list.u16(name).map(Value::U16),
            list.i32(name).map(Value::I32),
            list.u32(name).map(Value::U32),
            list.i64(name).map(Value::I64),
            list.u64(name).map(Value::U64),
            str.map(Value::Str),
            bytes.map(Value::Bytes),
        ];
        let mut found = found.into_iter().flatten();
        let first = found.next();
        assert_eq!(found.next(), None, "two look-ups find {name}");
        assert_eq!(list.contains(name), first.is_some());
        first
    }
}

/// Lists of up to `pairs` pairs with any values, under names some of which come twice: read back pair by pair;
/// a look-up finds the first pair of a name if it asks for its type, and else nothing.
pub fn round_trip<T: Subject>(source: &mut impl Source, pairs: u64) -> Case {
    let count = source.below(pairs + 1);
    let mut written: Vec<(&str, Value)> = Vec::new();
    for _ in 0..count {
        let name = source.pick(&["a", "size", "resource"]);
        written.push((name, Value::any(source)));
    }
    let bytes = T::write(&written);
    let (list, read) = T::parse(&bytes).unwrap_or_else(|| panic!("{written:?} is no list: {bytes:?}"));
    assert_eq!(list, bytes);
    assert_eq!(read.len(), written.len());
    for (pair, (name, value)) in read.iter().zip(&written) {
        assert_eq!(pair.name, name.as_bytes());
        let alone = T::write(&[(*name, *value)]);
        assert_eq!(List::parse(&alone).ok().and_then(|list| T::look_up(&list, name)), Some(*value));
    }
    let list = List::parse(&bytes).unwrap_or_default();
    for name in ["a", "size", "resource", "absent", ""] {
        let first = written.iter().find(|(other, _)| *other == name).map(|(_, value)| *value);
        assert_eq!(T::look_up(&list, name), first, "{name} in {written:?}");
    }
    Ok(())
}

/// Any bytes made of up to `pairs` pairs with anything in their headers, cut off or with something behind them.
pub fn reader<T: Subject>(source: &mut impl Source, pairs: u64) -> Case {
    let mut bytes = Vec::new();
    let count = 1 + source.below(pairs);
    for number in 0..count {
        // Of all but the last it is enough that they are good, of whatever type.
        if number + 1 < count { good(source, &mut bytes) } else { pair(source, &mut bytes) }
    }
    match source.below(4) {
        0 => {}
        1 => bytes.extend([0; 8]),
        2 => bytes.extend([0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]),
        _ => {
            let cut = source.number(1..=64, &[1, 2, 7, 8, 9, 16, 17]) as usize;
            bytes.truncate(bytes.len().saturating_sub(cut));
        }
    }
    read::<T>(&bytes);
    Ok(())
}

/// Any `length` bytes at most, of the values that mean something and two that do not.
pub fn bytes<T: Subject>(source: &mut impl Source, length: u64) -> Case {
    let length = source.below(length + 1);
    let mut bytes = Vec::new();
    for _ in 0..length {
        bytes.push(source.number(0..=255, &[0, 1, 2, 17]) as u8);
    }
    read::<T>(&bytes);
    Ok(())
}

/// What the reader makes of `bytes` is what the rules make of them.
fn read<T: Subject>(bytes: &[u8]) {
    let found = T::parse(bytes);
    let end = end_of_list(bytes);
    assert_eq!(found.as_ref().map(|(list, _)| list.len()), end, "{bytes:?}");
    let Some((list, pairs)) = found else { return };
    // All that it gives back is of its input, and of that it used nothing behind the end.
    let within = |part: &[u8]| {
        let (input, part) = (list.as_ptr_range(), part.as_ptr_range());
        input.start <= part.start && part.end <= input.end
    };
    assert_eq!(list.as_ptr(), bytes.as_ptr());
    assert!(pairs.iter().all(|pair| within(pair.name) && within(pair.data)));
    assert_eq!(T::parse(list).map(|(_, pairs)| pairs), Some(pairs.clone()));
    // Written again, the same bytes, but for the padding and the order bit, which are of no meaning.
    let mut again = Vec::new();
    for pair in &pairs {
        again.extend(encode(pair));
    }
    assert_eq!(again, without_padding(list));
}

/// One pair, by the writer if it is one that we write, and else by the spec's table.
fn encode(pair: &Pair<'_>) -> Vec<u8> {
    if let Some(bytes) = encode_ours(pair) {
        return bytes;
    }
    let mut bytes = vec![pair.kind.code(), pair.name.len() as u8 + 1];
    bytes.extend((pair.data.len() as u32).to_le_bytes());
    bytes.extend(pair.name);
    bytes.extend(vec![0; 1 + padding(pair.name.len() + 1)]);
    bytes.extend(pair.data);
    bytes.extend(vec![0; padding(pair.data.len())]);
    bytes
}

/// `None` for types and names that the writer does not write.
fn encode_ours(pair: &Pair<'_>) -> Option<Vec<u8>> {
    let name = core::str::from_utf8(pair.name).ok().filter(|name| !name.is_empty())?;
    let mut list = Writer::new();
    match pair.kind {
        Type::Int8 => list.i8(name, i8::from_le_bytes(pair.data.try_into().ok()?)),
        Type::UInt8 => list.u8(name, u8::from_le_bytes(pair.data.try_into().ok()?)),
        Type::Int16 => list.i16(name, i16::from_le_bytes(pair.data.try_into().ok()?)),
        Type::UInt16 => list.u16(name, u16::from_le_bytes(pair.data.try_into().ok()?)),
        Type::Int32 => list.i32(name, i32::from_le_bytes(pair.data.try_into().ok()?)),
        Type::UInt32 => list.u32(name, u32::from_le_bytes(pair.data.try_into().ok()?)),
        Type::Int64 => list.i64(name, i64::from_le_bytes(pair.data.try_into().ok()?)),
        Type::UInt64 => list.u64(name, u64::from_le_bytes(pair.data.try_into().ok()?)),
        Type::UInt8Array => list.u8_array(name, pair.data),
        Type::String => list.str(name, pair.as_str()?),
        _ => return None,
    };
    Some(list.into_bytes())
}

/// The bytes of a list with zeros for padding and without order bits.
fn without_padding(list: &[u8]) -> Vec<u8> {
    let mut clean = list.to_vec();
    let mut at = 0;
    while at < clean.len() {
        clean[at] &= 0x7f;
        let (name, data, _) = sizes(&clean[at..]);
        let fields = [(at + 6, name), (at + 6 + name + padding(name), data)];
        for (start, size) in fields {
            clean[start + size..start + size + padding(size)].fill(0);
        }
        at = fields[1].0 + data + padding(data);
    }
    clean
}

/// The rules of the spec once more, for clarity and not for speed: where the list in `bytes` ends, if it is one.
fn end_of_list(bytes: &[u8]) -> Option<usize> {
    let mut at = 0;
    while at < bytes.len() {
        let rest = &bytes[at..];
        if rest.len() < 8 {
            return None;
        }
        if rest[0] == 0 {
            return Some(at);
        }
        let (name, data, whole) = sizes(rest);
        if whole > rest.len() || data == 0 {
            return None;
        }
        let nul_ends = |text: &[u8]| text.iter().position(|byte| *byte == 0) == text.len().checked_sub(1);
        let named = name > 0 && nul_ends(&rest[6..6 + name]);
        let start = 6 + name + padding(name);
        let sized = match rest[0] & 0x7f {
            1 | 2 => data == 1,
            3 | 4 => data == 2,
            5 | 6 => data == 4,
            7 | 8 => data == 8,
            9 | 10 => true,
            11 | 12 => data % 2 == 0,
            13 | 14 => data % 4 == 0,
            15 | 16 => data % 8 == 0,
            17 => nul_ends(&rest[start..start + data]),
            _ => false,
        };
        if !(named && sized) {
            return None;
        }
        at += whole;
    }
    Some(at)
}

/// Sizes of name and data, and of the whole pair with padding, as its header says. Of 64 bits: no sum wraps.
fn sizes(pair: &[u8]) -> (usize, usize, usize) {
    let (name, data) = (pair[1] as usize, u32::from_le_bytes([pair[2], pair[3], pair[4], pair[5]]) as usize);
    (name, data, 6 + name + padding(name) + data + padding(data))
}

fn padding(size: usize) -> usize {
    size.next_multiple_of(8) - size
}

/// A pair that is one.
fn good(source: &mut impl Source, bytes: &mut Vec<u8>) {
    let (kind, data): (u8, &[u8]) =
        source.pick(&[(2, &[7][..]), (0x88, &[1; 8]), (16, &[2; 16]), (17, b"x\0")]);
    let name: &[u8] = source.pick(&[&b"ab\0"[..], b"\0", b"sevenby\0"]);
    bytes.extend([kind, name.len() as u8]);
    bytes.extend((data.len() as u32).to_le_bytes());
    bytes.extend(name);
    bytes.extend(vec![0xa5; padding(name.len())]);
    bytes.extend(data);
    bytes.extend(vec![0x5a; padding(data.len())]);
}

/// A pair that may be wrong in anything: type, sizes, ends of name and string.
fn pair(source: &mut impl Source, bytes: &mut Vec<u8>) {
    let codes: Vec<u64> = (0..=18).chain([0x7f, 0x80, 0x82, 0x91, 0xff]).collect();
    let kind = source.number(0..=255, &codes) as u8;
    let name = source.number(0..=255, &[2, 0, 1, 8, 9, 255]) as u8;
    let top = u64::from(u32::MAX);
    let data = source.small(&[1, 0, 2, 3, 4, 8, 12, 16, top, top - 6, top - 7, 1 << 31]);
    let name_end = source.pick(&[End::Nul, End::None, End::Two]);
    let data_end = source.pick(&[End::Nul, End::None, End::Two]);
    bytes.extend([kind, name]);
    bytes.extend(data.to_le_bytes());
    for (size, end) in [(name as usize, name_end), (data as usize, data_end)] {
        // What claims to be large has not as many bytes.
        let size = size.min(24);
        let mut text = vec![b'a'; size];
        if let (End::Nul | End::Two, Some(last)) = (end, text.last_mut()) {
            *last = 0;
        }
        if let (End::Two, Some(first)) = (end, text.first_mut()) {
            *first = 0;
        }
        bytes.extend(&text);
        bytes.extend(vec![0xa5; padding(size)]);
    }
}

/// How a text ends.
#[derive(Clone, Copy)]
enum End {
    /// In a NUL.
    Nul,
    /// In a character.
    None,
    /// In a NUL that is not its only one.
    Two,
}
