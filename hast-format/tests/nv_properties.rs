//! Name-value lists of any content and any bytes.
#![cfg(feature = "alloc")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use hast_format::nv::{List, NAME_MAX, Type, Writer};
use proptest::collection::vec;
use proptest::prelude::*;

#[derive(Clone, Debug, PartialEq)]
enum Value {
    I8(i8),
    U8(u8),
    I16(i16),
    U16(u16),
    I32(i32),
    U32(u32),
    I64(i64),
    U64(u64),
    Str(String),
    Bytes(Vec<u8>),
}

impl Value {
    fn write(&self, list: &mut Writer, name: &str) {
        match self {
            Value::I8(v) => list.i8(name, *v),
            Value::U8(v) => list.u8(name, *v),
            Value::I16(v) => list.i16(name, *v),
            Value::U16(v) => list.u16(name, *v),
            Value::I32(v) => list.i32(name, *v),
            Value::U32(v) => list.u32(name, *v),
            Value::I64(v) => list.i64(name, *v),
            Value::U64(v) => list.u64(name, *v),
            Value::Str(v) => list.str(name, v),
            Value::Bytes(v) => list.u8_array(name, v),
        };
    }

    /// What every getter makes of a name: at most one of them finds it.
    fn found(list: &List<'_>, name: &str) -> Vec<Value> {
        let candidates = [
            list.i8(name).map(Value::I8),
            list.u8(name).map(Value::U8),
            list.i16(name).map(Value::I16),
            list.u16(name).map(Value::U16),
            list.i32(name).map(Value::I32),
            list.u32(name).map(Value::U32),
            list.i64(name).map(Value::I64),
            list.u64(name).map(Value::U64),
            list.str(name).map(|v| Value::Str(v.to_owned())),
            list.u8_array(name).map(|v| Value::Bytes(v.to_vec())),
        ];
        candidates.into_iter().flatten().collect()
    }
}

fn value() -> impl Strategy<Value = Value> {
    prop_oneof![
        any::<i8>().prop_map(Value::I8),
        any::<u8>().prop_map(Value::U8),
        any::<i16>().prop_map(Value::I16),
        any::<u16>().prop_map(Value::U16),
        any::<i32>().prop_map(Value::I32),
        any::<u32>().prop_map(Value::U32),
        any::<i64>().prop_map(Value::I64),
        any::<u64>().prop_map(Value::U64),
        vec(prop::char::range('\u{1}', '\u{2000}'), 0..40).prop_map(|c| Value::Str(c.into_iter().collect())),
        vec(any::<u8>(), 1..40).prop_map(Value::Bytes),
    ]
}

/// Few names, so that some come twice, and any name there can be.
fn name() -> impl Strategy<Value = String> {
    prop_oneof![
        prop::sample::select(vec!["a", "b", "size", "resource", "resource0"]).prop_map(str::to_owned),
        vec(prop::char::range('\u{1}', '\u{7f}'), 1..=NAME_MAX).prop_map(|c| c.into_iter().collect()),
    ]
}

fn written(pairs: &[(String, Value)]) -> Vec<u8> {
    let mut list = Writer::new();
    for (name, value) in pairs {
        value.write(&mut list, name);
    }
    list.into_bytes()
}

/// The rules of the spec once more, written for clarity: where the list in `bytes` ends, if it is one.
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
        let namesize = u64::from(rest[1]);
        let dsize = u64::from(u32::from_le_bytes(rest[2..6].try_into().unwrap()));
        let data_at = 6 + namesize.div_ceil(8) * 8;
        let length = data_at + dsize.div_ceil(8) * 8;
        if length > rest.len() as u64 || dsize == 0 {
            return None;
        }
        let name = &rest[6..][..namesize as usize];
        let data = &rest[data_at as usize..][..dsize as usize];
        let well_named = name.iter().position(|b| *b == 0).is_some_and(|nul| nul + 1 == name.len());
        let well_sized = match rest[0] & 0x7f {
            1 | 2 => dsize == 1,
            3 | 4 => dsize == 2,
            5 | 6 => dsize == 4,
            7 | 8 => dsize == 8,
            9 | 10 => true,
            11 | 12 => dsize.is_multiple_of(2),
            13 | 14 => dsize.is_multiple_of(4),
            15 | 16 => dsize.is_multiple_of(8),
            17 => data.iter().position(|b| *b == 0).is_some_and(|nul| nul + 1 == data.len()),
            _ => false,
        };
        if !well_named || !well_sized {
            return None;
        }
        at += length as usize;
    }
    Some(at)
}

/// Nothing that can be done with `bytes` panics, and the reader takes exactly what is a list.
fn check_bytes(bytes: &[u8]) {
    match (List::parse(bytes), end_of_list(bytes)) {
        (Ok(list), Some(end)) => {
            assert_eq!(list.as_bytes(), &bytes[..end]);
            let mut length = 0;
            for pair in list.pairs() {
                assert!(!pair.name.contains(&0));
                assert!(!pair.data.is_empty());
                length += 6 + (pair.name.len() + 1).next_multiple_of(8) + pair.data.len().next_multiple_of(8);
                if let Ok(name) = std::str::from_utf8(pair.name) {
                    assert!(list.contains(name));
                    assert!(Value::found(&list, name).len() <= 1);
                }
            }
            assert_eq!(length, end, "the pairs make up the list");
            assert_eq!(list.is_empty(), end == 0);
        }
        (Err(_), None) => (),
        (ours, rules) => panic!("reader says {ours:?}, the rules {rules:?}"),
    }
}

/// One pair by hand, with anything in its header.
fn raw_pair() -> impl Strategy<Value = Vec<u8>> {
    let code = prop_oneof![9 => 0u8..=18, 1 => any::<u8>(), 1 => 0x80u8..=0x92];
    let namesize = prop_oneof![9 => 1u8..=9, 1 => any::<u8>()];
    let dsize = prop_oneof![9 => 0u32..=17, 1 => u32::MAX - 20..=u32::MAX, 1 => any::<u32>()];
    (code, namesize, dsize, vec(prop_oneof![4 => Just(0x61u8), 1 => Just(0u8)], 0..64)).prop_map(
        |(code, namesize, dsize, body)| {
            let mut bytes = vec![code, namesize];
            bytes.extend(dsize.to_le_bytes());
            bytes.extend(body);
            bytes
        },
    )
}

/// A pair whose sizes are right and whose content may be wrong.
fn plausible_pair() -> impl Strategy<Value = Vec<u8>> {
    let byte = || prop_oneof![4 => Just(0x61u8), 1 => Just(0u8), 1 => any::<u8>()];
    // Terminated once, terminated perhaps twice, or as it comes.
    let end = |text: &mut Vec<u8>, how: u8| {
        if how == 0 {
            text.retain(|b| *b != 0);
        }
        if how <= 1 {
            text.push(0);
        }
    };
    (0u8..=18, vec(byte(), 0..10), 0u8..3, vec(byte(), 0..20), 0u8..3).prop_map(
        move |(code, mut name, name_end, mut data, data_end)| {
            end(&mut name, name_end);
            end(&mut data, data_end);
            let mut bytes = vec![code, name.len() as u8];
            bytes.extend((data.len() as u32).to_le_bytes());
            name.resize(name.len().next_multiple_of(8), 0xa5);
            bytes.extend(name);
            data.resize(data.len().next_multiple_of(8), 0);
            bytes.extend(data);
            bytes
        },
    )
}

proptest! {
    #[test]
    fn what_is_written_is_read(pairs in vec((name(), value()), 0..12)) {
        let bytes = written(&pairs);
        let list = List::parse(&bytes).unwrap();
        prop_assert_eq!(list.pairs().count(), pairs.len());
        prop_assert_eq!(list.as_bytes(), &bytes[..]);
        for (pair, (name, value)) in list.pairs().zip(&pairs) {
            prop_assert_eq!(pair.name, name.as_bytes());
            // Alone, each pair is a list with that one value.
            let alone = written(&[(name.clone(), value.clone())]);
            prop_assert_eq!(Value::found(&List::parse(&alone).unwrap(), name), vec![value.clone()]);
            let first = pairs.iter().find(|(other, _)| other == name).unwrap();
            prop_assert_eq!(Value::found(&list, name), vec![first.1.clone()], "the first pair decides");
        }
        let absent = "not there";
        prop_assert!(!list.contains(absent) && Value::found(&list, absent).is_empty());
        check_bytes(&bytes);
    }

    #[test]
    fn what_follows_the_end_is_ignored(pairs in vec((name(), value()), 0..4), rest in vec(any::<u8>(), 7..40)) {
        let bytes = written(&pairs);
        let longer = [&bytes[..], &[0], &rest].concat();
        let list = List::parse(&longer).unwrap();
        prop_assert_eq!(list.as_bytes(), &bytes[..]);
    }

    #[test]
    fn any_bytes(bytes in vec(prop_oneof![any::<u8>(), 0u8..18, Just(0)], 0..100)) {
        check_bytes(&bytes);
    }

    #[test]
    fn any_pairs(pairs in vec(prop_oneof![raw_pair(), plausible_pair()], 0..4)) {
        check_bytes(&pairs.concat());
    }

    #[test]
    fn damaged_lists(
        pairs in vec((name(), value()), 1..5),
        damage in vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
        cut in prop::option::of(any::<prop::sample::Index>()),
    ) {
        let mut bytes = written(&pairs);
        for (at, byte) in damage {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        check_bytes(&bytes);
    }

    #[test]
    fn padding_after_names_means_nothing(pairs in vec((name(), value()), 1..5), filler in any::<u8>()) {
        let bytes = written(&pairs);
        let mut dirty = bytes.clone();
        let mut at = 0;
        while at < dirty.len() {
            let name = usize::from(dirty[at + 1]);
            let data = u32::from_le_bytes(dirty[at + 2..at + 6].try_into().unwrap()) as usize;
            let padded = name.next_multiple_of(8);
            prop_assert!(dirty[at + 6 + name..at + 6 + padded].iter().all(|b| *b == 0));
            dirty[at + 6 + name..at + 6 + padded].fill(filler);
            at += 6 + padded + data.next_multiple_of(8);
        }
        let (clean, dirty) = (List::parse(&bytes).unwrap(), List::parse(&dirty).unwrap());
        prop_assert!(clean.pairs().eq(dirty.pairs()));
    }
}

#[test]
fn every_type_but_the_other_arrays_can_be_written() {
    let mut list = Writer::with_capacity(64);
    list.i8("a", 1).u8("a", 1).i16("a", 1).u16("a", 1).i32("a", 1).u32("a", 1).i64("a", 1).u64("a", 1);
    list.u8_array("a", &[1]).str("a", "1");
    let bytes = list.into_bytes();
    let kinds: Vec<Type> = List::parse(&bytes).unwrap().pairs().map(|pair| pair.kind).collect();
    let expected = Type::ALL.into_iter().filter(|kind| kind.code() <= 8 || [10, 17].contains(&kind.code()));
    assert_eq!(kinds, expected.collect::<Vec<_>>());
}
