use super::*;
use proptest::prelude::*;

/// Bytes as written by hand after the kernel's headers, for a little-endian machine.
fn hex(text: &str) -> Vec<u8> {
    let digits: String = text.split_whitespace().collect();
    (0..digits.len()).step_by(2).map(|at| u8::from_str_radix(&digits[at..at + 2], 16).unwrap()).collect()
}

fn connection() -> Connection {
    Connection {
        size: 0x4000_0000,
        block_size: 512,
        timeout: 30,
        dead_timeout: 120,
        flags: 0x016d,
        socket: 7,
        backend: "hast:disk0".into(),
    }
}

/// The attributes of [`connection`].
const CONNECTION: &str = "
    0c00 0200 0000004000000000
    0c00 0300 0002000000000000
    0c00 0400 1e00000000000000
    0c00 0500 6d01000000000000
    0c00 0800 7800000000000000
    1000 0700 0c00 0100 0800 0100 07000000
    0f00 0a00 686173743a6469736b3000 00
";

#[cfg(target_endian = "little")]
#[test]
fn requests_are_what_the_kernels_headers_say() {
    // nlmsghdr: length, type, flags (request, ack), number, port; genlmsghdr: command, version.
    let family = hex("1c000000 1000 0500 01000000 00000000 03 01 0000
                      0800 0200 6e626400");
    assert_eq!(get_family(1, "nbd"), family);
    let disconnect_3 = hex("1c000000 2300 0500 02000000 00000000 02 01 0000
                            0800 0100 03000000");
    assert_eq!(disconnect(0x23, 2, 3), disconnect_3);
    let connected = hex(&format!("70000000 2300 0500 03000000 00000000 01 01 0000 {CONNECTION}"));
    assert_eq!(connected.len(), 0x70);
    assert_eq!(connect(0x23, 3, &connection()), connected);
    let again =
        hex(&format!("78000000 2300 0500 04000000 00000000 03 01 0000 0800 0100 05000000 {CONNECTION}"));
    assert_eq!(reconfigure(0x23, 4, 5, &connection()), again);
}

#[cfg(target_endian = "little")]
#[test]
fn replies_are_understood() {
    // CTRL_CMD_NEWFAMILY with name, number and version, then the confirmation.
    let family = hex("2c000000 1000 0000 01000000 d2040000 01 02 0000
                      0800 0200 6e626400
                      0600 0100 2300 0000
                      0800 0300 01000000
                      24000000 0200 0001 01000000 d2040000 00000000
                      1c000000 1000 0500 01000000 00000000");
    assert_eq!(replies(&family, None), [Reply::Family(0x23), Reply::Done { seq: 1 }]);

    // NBD_CMD_CONNECT with the index.
    let device = hex("1c000000 2300 0000 03000000 d2040000 01 01 0000
                      0800 0100 02000000");
    assert_eq!(replies(&device, Some(0x23)), [Reply::Device(2)]);
    assert_eq!(replies(&device, Some(0x24)), [Reply::Other]);

    // ENOENT: no such family.
    let none = hex("2c000000 0200 0000 01000000 d2040000 feffffff
                    1c000000 1000 0500 01000000 00000000 03 01 0000 0800 0200");
    assert_eq!(replies(&none, None), [Reply::Failed { seq: 1, errno: 2 }]);
}

#[test]
fn what_is_cut_short_is_left_out() {
    let whole = disconnect(0x23, 2, 3);
    assert_eq!(replies(&whole, Some(0x23)), [Reply::Device(3)]);
    for length in 0..whole.len() {
        assert_eq!(replies(&whole[..length], Some(0x23)), [], "{length}");
    }
}

proptest! {
    #[test]
    fn any_bytes_are_survived(bytes in proptest::collection::vec(any::<u8>(), 0..200), family: Option<u16>) {
        let count = replies(&bytes, family).len();
        prop_assert!(count <= bytes.len() / HEADER);
    }

    #[test]
    fn attributes_after_the_family_do_not_hide_it(id: u16, before in proptest::collection::vec(any::<u8>(), 0..40)) {
        let mut message = Message::new(CONTROLLER, 9, 1);
        message.nested(FAMILY_NAME, |message| message.bytes.extend_from_slice(&before));
        message.nested(FAMILY_ID, |message| message.bytes.extend_from_slice(&id.to_ne_bytes()));
        prop_assert_eq!(replies(&message.finish(), None), [Reply::Family(id)]);
    }
}
