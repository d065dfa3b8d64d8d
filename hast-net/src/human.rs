//! Numbers of bytes as people are shown them, by `hastctl` and in the log.

/// A number of bytes in at most three digits and a prefix, powers of 1024: `512B`, `2.0MB`, `931GB`. Rounded
/// as FreeBSD's tools round (spec/control.md, "Corners").
#[must_use]
pub fn human(bytes: u64) -> String {
    let mut value = bytes;
    let mut remainder = 0;
    let mut prefixes = ["", "K", "M", "G", "T", "P", "E"].into_iter();
    let mut prefix = prefixes.next().unwrap_or_default();
    let mut divided = false;
    while value >= 1000 || (value == 999 && remainder >= 512) {
        let Some(next) = prefixes.next() else { break };
        remainder = value % 1024;
        value /= 1024;
        prefix = next;
        divided = true;
    }
    if divided && (value < 9 || (value == 9 && remainder < 973)) {
        let tenths = (remainder * 10 + 512) / 1024;
        format!("{}.{}{prefix}B", value + tenths / 10, tenths % 10)
    } else {
        format!("{}{prefix}B", value + (remainder + 512) / 1024)
    }
}

#[cfg(test)]
mod tests {
    use super::human;

    #[test]
    fn small_and_round_numbers() {
        let table = [
            (0, "0B"),
            (1, "1B"),
            (512, "512B"),
            (999, "999B"),
            (1000, "1.0KB"),
            (1023, "1.0KB"),
            (1024, "1.0KB"),
            (1025, "1.0KB"),
            (1 << 20, "1.0MB"),
            (1 << 30, "1.0GB"),
            (1 << 40, "1.0TB"),
            (1 << 50, "1.0PB"),
            (1 << 60, "1.0EB"),
            (u64::MAX, "16EB"),
        ];
        for (bytes, text) in table {
            assert_eq!(human(bytes), text, "{bytes}");
        }
    }

    #[test]
    fn borders_between_one_digit_and_two() {
        // 9 with a remainder of 973 is no longer below ten.
        assert_eq!(human(9 * 1024), "9.0KB");
        assert_eq!(human(9 * 1024 + 972), "9.9KB");
        assert_eq!(human(9 * 1024 + 973), "10KB");
        assert_eq!(human(10 * 1024 - 1), "10KB");
        assert_eq!(human(10 * 1024), "10KB");
        // Tenths are rounded half up, also over the full number.
        assert_eq!(human(1024 + 51), "1.0KB");
        assert_eq!(human(1024 + 52), "1.1KB");
        assert_eq!(human(8 * 1024 + 972), "8.9KB");
        assert_eq!(human(8 * 1024 + 973), "9.0KB");
        // From ten on the number is rounded half up.
        assert_eq!(human(10 * 1024 + 511), "10KB");
        assert_eq!(human(10 * 1024 + 512), "11KB");
    }

    #[test]
    fn borders_between_prefixes() {
        assert_eq!(human(999 * 1024 + 511), "999KB");
        assert_eq!(human(999 * 1024 + 512), "1.0MB");
        assert_eq!(human(1000 * 1024), "1.0MB");
        assert_eq!(human(999 << 20), "999MB");
        assert_eq!(human((999 << 20) + (512 << 10)), "1.0GB");
        assert_eq!(human((999 << 20) + (512 << 10) - 1), "999MB");
    }

    #[test]
    fn captured_values() {
        let table = [
            (3584, "3.5KB"),
            (4096, "4.0KB"),
            (65_536, "64KB"),
            (131_072, "128KB"),
            (1_048_576, "1.0MB"),
            (2_092_544, "2.0MB"),
            (2_097_152, "2.0MB"),
            (3_141_120, "3.0MB"),
            (4_189_696, "4.0MB"),
            (16_769_024, "16MB"),
            (33_549_824, "32MB"),
            (67_104_256, "64MB"),
            (1_073_737_216, "1.0GB"),
            (107_374_171_648, "100GB"),
            (999_653_638_144, "931GB"),
            (2_199_023_120_384, "2.0TB"),
        ];
        for (bytes, text) in table {
            assert_eq!(human(bytes), text, "{bytes}");
        }
    }
}
