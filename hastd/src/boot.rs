//! The running system's boot id: what tells a node that restarted from one that merely lost a connection
//! (spec: durability, "Out-of-date nodes").

use hast_net::handshake::BootId;

/// This boot's id: the same in every process until the system restarts, another one afterwards. Zeros if the
/// system does not tell.
///
/// To be asked before the root directory changes.
#[must_use]
pub fn boot_id() -> BootId {
    read().unwrap_or_default()
}

#[cfg(target_os = "linux")]
fn read() -> Option<BootId> {
    parse(&std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?)
}

/// Not `kern.boottime`: that is another one after each step of the clock.
#[cfg(target_os = "freebsd")]
fn read() -> Option<BootId> {
    let mut id = BootId::default();
    let mut length = id.len();
    // SAFETY: the name ends with a NUL; `id` is `length` bytes long, and the kernel writes at most so many;
    // nothing is set, for which the last two arguments stand.
    let result = unsafe {
        libc::sysctlbyname(
            c"kern.boot_id".as_ptr(),
            id.as_mut_ptr().cast(),
            &raw mut length,
            std::ptr::null_mut(),
            0,
        )
    };
    (result == 0 && length == id.len()).then_some(id)
}

#[cfg(not(any(target_os = "linux", target_os = "freebsd")))]
fn read() -> Option<BootId> {
    None
}

/// 32 hexadecimal digits, with dashes where they please.
#[cfg(any(target_os = "linux", test))]
fn parse(text: &str) -> Option<BootId> {
    let digits: String = text.trim_end().chars().filter(|character| *character != '-').collect();
    // `from_str_radix` takes a sign as well.
    let plain = digits.len() == 32 && digits.bytes().all(|digit| digit.is_ascii_hexdigit());
    plain.then(|| u128::from_str_radix(&digits, 16).ok().map(u128::to_be_bytes)).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_boot_has_one_id() {
        assert_eq!(boot_id(), boot_id());
        #[cfg(target_os = "linux")]
        assert_ne!(boot_id(), BootId::default());
    }

    #[test]
    fn the_id_is_read_as_it_is_written() {
        let expected =
            [0x00, 0x01, 0x02, 0x03, 0x45, 0x67, 0x89, 0xab, 0xcd, 0xef, 0xfe, 0xdc, 0xba, 0x98, 0x76, 0x54];
        assert_eq!(parse("00010203-4567-89ab-cdef-fedcba987654\n"), Some(expected));
        for other in ["", "0", "00010203-4567-89ab-cdef-fedcba98765", "+0010203-4567-89ab-cdef-fedcba987654"]
        {
            assert_eq!(parse(other), None, "{other}");
        }
    }
}
