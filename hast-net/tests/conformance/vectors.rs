//! Where the captured data lies and how it describes itself.

use hast_format::nv::{List, Pair, Type};
use hast_net::checksum::Checksum;
use serde_json::Value;
use std::io::Read as _;
use std::path::{Path, PathBuf};

/// The directory `tests/vectors/NAME`.
pub(crate) fn directory(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/vectors").join(name)
}

/// The file of that name, or what its `.xz` twin holds.
pub(crate) fn read(directory: &Path, name: &str) -> Vec<u8> {
    if let Ok(bytes) = std::fs::read(directory.join(name)) {
        return bytes;
    }
    let compressed = std::fs::read(directory.join(format!("{name}.xz"))).expect(name);
    let mut bytes = Vec::new();
    lzma_rust2::XzReader::new(compressed.as_slice(), true).read_to_end(&mut bytes).expect(name);
    bytes
}

/// A description in JSON.
pub(crate) fn json(directory: &Path, name: &str) -> Value {
    serde_json::from_slice(&read(directory, name)).expect(name)
}

/// The names in a directory that end in `suffix`, sorted.
pub(crate) fn names(directory: &Path, suffix: &str) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.ends_with(suffix))
        .collect();
    names.sort();
    names
}

/// A list with the padding after its names zeroed: the original leaves it undefined.
pub(crate) fn masked(list: &[u8]) -> Vec<u8> {
    let mut bytes = list.to_vec();
    let mut at = 0;
    while at < bytes.len() {
        let name = usize::from(bytes[at + 1]);
        let data = u32::from_le_bytes(bytes[at + 2..at + 6].try_into().unwrap()) as usize;
        let padding = at + 6 + name..at + 6 + name.next_multiple_of(8);
        at = padding.end + data.next_multiple_of(8);
        bytes[padding].fill(0);
    }
    bytes
}

/// SHA-256 in hexadecimal.
pub(crate) fn sha256(bytes: &[u8]) -> String {
    let hash = Checksum::Sha256.hash(bytes).unwrap();
    hash.as_bytes().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// That a list holds exactly the pairs that the description names.
pub(crate) fn check_pairs(list: &List<'_>, described: &Value, what: &str) {
    let ours: Vec<Value> = list.pairs().map(|pair| describe(&pair)).collect();
    assert_eq!(&Value::from(ours), described, "{what}");
}

fn describe(pair: &Pair<'_>) -> Value {
    let number = |width: usize| pair.data.len() == width;
    let (kind, value): (&str, Value) = match pair.kind {
        Type::Int8 if number(1) => ("int8", pair.data[0].cast_signed().into()),
        Type::UInt8 if number(1) => ("uint8", pair.data[0].into()),
        Type::Int16 if number(2) => ("int16", i16::from_le_bytes(pair.data.try_into().unwrap()).into()),
        Type::Int32 if number(4) => ("int32", i32::from_le_bytes(pair.data.try_into().unwrap()).into()),
        Type::UInt32 if number(4) => ("uint32", u32::from_le_bytes(pair.data.try_into().unwrap()).into()),
        Type::Int64 if number(8) => ("int64", i64::from_le_bytes(pair.data.try_into().unwrap()).into()),
        Type::UInt64 if number(8) => ("uint64", u64::from_le_bytes(pair.data.try_into().unwrap()).into()),
        Type::UInt8Array => ("uint8[]", pair.data.to_vec().into()),
        Type::String => ("string", pair.as_str().unwrap().into()),
        other => panic!("no capture has {other:?}"),
    };
    serde_json::json!({ "name": std::str::from_utf8(pair.name).unwrap(), "type": kind, "value": value })
}
