//! LZF: a stream fills exactly the output it claims or is refused, and what comes out survives our own packing.

use hast_net::lzf;

/// The longest output that is tried, in bytes: what one request may carry.
const LONGEST: usize = 1 << 20;

/// The first four bytes claim the length, as on the wire; the rest is the stream.
pub fn run(data: &[u8]) {
    let Some((claimed, stream)) = data.split_first_chunk() else { return };
    let claimed = usize::try_from(u32::from_le_bytes(*claimed)).unwrap();
    if claimed <= LONGEST {
        let mut output = vec![0x5a; claimed];
        if lzf::decompress(stream, &mut output).is_ok() {
            assert_eq!(lzf::check_claim(stream, claimed), Ok(()), "what is possible is not refused");
            check_packing(&output);
        }
    }
    check_packing(stream);
}

/// Packs, within limits, and unpacks.
fn check_packing(input: &[u8]) {
    let mut packed = b"before".to_vec();
    assert!(lzf::compress(input, &mut packed, usize::MAX), "without a limit everything fits");
    let stream = packed[6..].to_vec();
    assert!(packed.starts_with(b"before"));
    assert!(stream.len() <= input.len() + input.len().div_ceil(32), "noise grows by one in 32 at most");
    let mut output = vec![0x5a; input.len()];
    assert_eq!(lzf::decompress(&stream, &mut output), Ok(()));
    assert!(output == input, "comes back as it was");
    let mut limited = Vec::new();
    assert!(lzf::compress(input, &mut limited, stream.len()), "fits exactly");
    assert!(limited == stream);
    if !stream.is_empty() {
        assert!(!lzf::compress(input, &mut limited, stream.len() - 1), "and not in less");
        assert!(limited == stream, "which leaves the output as it was");
    }
}
