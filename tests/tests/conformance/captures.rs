//! The streams in tests/vectors/wire.

use std::fs::File;
use std::io::{BufReader, Read};
use std::path::PathBuf;

use hast_tests::peer::Packet;
use hast_tests::{Context, Failure};

fn directory() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/vectors/wire"))
}

/// A captured stream as bytes: `name` like `wire-requests.c3.p2s`.
pub(crate) fn bytes(name: &str) -> Result<Vec<u8>, Failure> {
    let plain = directory().join(format!("{name}.bin"));
    if let Ok(bytes) = std::fs::read(&plain) {
        return Ok(bytes);
    }
    let packed = directory().join(format!("{name}.bin.xz"));
    let file = File::open(&packed).context(packed.display())?;
    let mut bytes = Vec::new();
    lzma_rust2::XzReader::new(BufReader::new(file), true).read_to_end(&mut bytes).context(name)?;
    Ok(bytes)
}

/// A captured stream as frames.
pub(crate) fn packets(name: &str) -> Result<Vec<Packet>, Failure> {
    Packet::all(&bytes(name)?).context(name)
}

/// What a capture says of itself.
pub(crate) fn json(name: &str) -> Result<serde_json::Value, Failure> {
    let text = std::fs::read_to_string(directory().join(format!("{name}.json"))).context(name)?;
    Ok(serde_json::from_str(&text)?)
}
