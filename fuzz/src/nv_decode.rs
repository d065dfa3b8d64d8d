//! Name-value lists: whatever is accepted holds together, and is written again as the same bytes up to padding.

use hast_format::nv::{List, Pair, Type, Writer};

/// One input is one list.
pub fn run(data: &[u8]) {
    check(data);
    // A list is also read where something else follows it, and where it was cut off.
    for length in 0..data.len().min(64) {
        let _ = List::parse(&data[..length]);
    }
}

/// Parses, and checks what comes of it.
pub fn check(data: &[u8]) {
    let Ok(list) = List::parse(data) else { return };
    let bytes = list.as_bytes();
    assert!(data.starts_with(bytes), "a list is where it was read from");
    assert_eq!(list.is_empty(), list.pairs().next().is_none());
    let again = List::parse(bytes).expect("what was accepted is accepted again");
    assert!(again.pairs().eq(list.pairs()), "and says the same");
    let mut canonical = Vec::new();
    let mut shape = Vec::new();
    for pair in list.pairs() {
        write(&pair, &mut canonical, &mut shape);
        check_lookup(&list, &pair);
        check_writer(&pair);
    }
    assert_eq!(canonical.len(), bytes.len(), "pairs are as long as they say");
    let differs = canonical
        .iter()
        .zip(bytes)
        .zip(&shape)
        .position(|((ours, theirs), mask)| ours & mask != theirs & mask);
    assert_eq!(differs, None, "written again, only padding and the order bit may differ");
}

/// Writes a pair by hand, and which of its bits mean something.
fn write(pair: &Pair<'_>, bytes: &mut Vec<u8>, shape: &mut Vec<u8>) {
    assert!(pair.name.len() <= 254 && !pair.name.contains(&0));
    assert!(!pair.data.is_empty());
    bytes.extend([pair.kind.code(), u8::try_from(pair.name.len() + 1).unwrap()]);
    bytes.extend(u32::try_from(pair.data.len()).unwrap().to_le_bytes());
    bytes.extend(pair.name);
    bytes.push(0);
    shape.push(0x7f);
    shape.resize(bytes.len(), 0xff);
    let padded = |size: usize| size.next_multiple_of(8) - size;
    bytes.resize(bytes.len() + padded(pair.name.len() + 1), 0);
    shape.resize(bytes.len(), 0);
    bytes.extend(pair.data);
    shape.resize(bytes.len(), 0xff);
    bytes.resize(bytes.len() + padded(pair.data.len()), 0);
    shape.resize(bytes.len(), 0);
}

/// The first pair of a name decides, and only for its own type.
fn check_lookup(list: &List<'_>, pair: &Pair<'_>) {
    let Ok(name) = std::str::from_utf8(pair.name) else { return };
    let first = list.pairs().find(|other| other.name == pair.name).unwrap();
    assert_eq!(list.find(name), Some(first));
    assert!(list.contains(name));
    let is = |kind| first.kind == kind;
    assert_eq!(list.i8(name).is_some(), is(Type::Int8));
    assert_eq!(list.u8(name).is_some(), is(Type::UInt8));
    assert_eq!(list.i16(name).is_some(), is(Type::Int16));
    assert_eq!(list.u16(name).is_some(), is(Type::UInt16));
    assert_eq!(list.i32(name).is_some(), is(Type::Int32));
    assert_eq!(list.u32(name).is_some(), is(Type::UInt32));
    assert_eq!(list.i64(name).is_some(), is(Type::Int64));
    assert_eq!(list.u64(name).is_some(), is(Type::UInt64));
    assert_eq!(list.u8_array(name).is_some(), is(Type::UInt8Array));
    let text = first.data.split_last().is_some_and(|(_, text)| std::str::from_utf8(text).is_ok());
    assert_eq!(list.str(name).is_some(), is(Type::String) && text);
}

/// What [`Writer`] can write, it writes so that it is read back.
fn check_writer(pair: &Pair<'_>) {
    let Ok(name) = std::str::from_utf8(pair.name) else { return };
    if name.is_empty() {
        return;
    }
    let mut writer = Writer::new();
    match pair.kind {
        Type::UInt8 => writer.u8(name, pair.data[0]),
        Type::Int16 => writer.i16(name, i16::from_le_bytes(pair.data.try_into().unwrap())),
        Type::UInt32 => writer.u32(name, u32::from_le_bytes(pair.data.try_into().unwrap())),
        Type::Int64 => writer.i64(name, i64::from_le_bytes(pair.data.try_into().unwrap())),
        Type::UInt64 => writer.u64(name, u64::from_le_bytes(pair.data.try_into().unwrap())),
        Type::UInt8Array => writer.u8_array(name, pair.data),
        Type::String => match pair.as_str() {
            Some(text) => writer.str(name, text),
            None => return,
        },
        _ => return,
    };
    let list = List::parse(writer.as_bytes()).expect("our own list");
    assert!(list.pairs().eq([*pair]));
}
