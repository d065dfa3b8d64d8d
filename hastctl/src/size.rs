//! Sizes on the command line: a number with an optional suffix (spec/control.md).

/// Reads a number, decimal, octal (`0…`) or hexadecimal (`0x…`), with one of the suffixes b k m g t p e in
/// any case, which stand for powers of 1024. Leading blanks are skipped. None for anything else and for
/// what does not fit 63 bits, the sizes of files.
pub(crate) fn parse(text: &str) -> Option<u64> {
    let text = text.trim_start_matches([' ', '\t', '\n', '\x0b', '\x0c', '\r']);
    let text = text.strip_prefix('+').unwrap_or(text);
    let (radix, digits) = match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        Some(digits) => (16, digits),
        None if text.starts_with('0') => (8, text),
        None => (10, text),
    };
    let end = digits.find(|c: char| !c.is_digit(radix)).unwrap_or(digits.len());
    let (digits, suffix) = digits.split_at_checked(end)?;
    let number = u64::from_str_radix(digits, radix).ok()?;
    let unit = match suffix {
        "" | "b" | "B" => 1,
        "k" | "K" => 1 << 10,
        "m" | "M" => 1 << 20,
        "g" | "G" => 1 << 30,
        "t" | "T" => 1 << 40,
        "p" | "P" => 1 << 50,
        "e" | "E" => 1_u64 << 60,
        _ => return None,
    };
    number.checked_mul(unit).filter(|size| i64::try_from(*size).is_ok())
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn numbers_in_three_radixes() {
        assert_eq!(parse("0"), Some(0));
        assert_eq!(parse("131072"), Some(131_072));
        assert_eq!(parse("0x20000"), Some(131_072));
        assert_eq!(parse("0X1E"), Some(30));
        assert_eq!(parse("010"), Some(8));
        assert_eq!(parse(" \t\n\r12"), Some(12));
        assert_eq!(parse("+12"), Some(12));
    }

    #[test]
    fn suffixes_of_any_case() {
        let table = [("b", 0), ("k", 10), ("m", 20), ("g", 30), ("t", 40), ("p", 50), ("e", 60)];
        for (suffix, shift) in table {
            assert_eq!(parse(&format!("4{suffix}")), Some(4 << shift), "4{suffix}");
            let upper = suffix.to_uppercase();
            assert_eq!(parse(&format!("4{upper}")), Some(4 << shift), "4{upper}");
        }
        // Hexadecimal digits come before suffixes.
        assert_eq!(parse("0x1e"), Some(30));
        assert_eq!(parse("0x1k"), Some(1024));
        assert_eq!(parse("0b"), Some(0));
        assert_eq!(parse("020k"), Some(16 << 10));
    }

    #[test]
    fn what_is_no_size() {
        for text in [
            "", " ", "k", "-1", "4x", "4 k", "4mX", "4kb", "08", "09k", "0x", "0xk", "1.5g", "٣", "4é", "++1",
        ] {
            assert_eq!(parse(text), None, "{text}");
        }
    }

    #[test]
    fn sizes_end_at_63_bits() {
        assert_eq!(parse("9223372036854775807"), Some(i64::MAX as u64));
        assert_eq!(parse("9223372036854775808"), None);
        assert_eq!(parse("7e"), Some(7 << 60));
        assert_eq!(parse("8e"), None);
        assert_eq!(parse("16e"), None);
        assert_eq!(parse("18446744073709551616"), None);
        assert_eq!(parse("0x8000000000000000"), None);
    }
}
