//! The structures and numbers of `/dev/ggctl` as the kernel has them, on systems with 64-bit pointers.
//!
//! Layouts and numbers are checked when this is compiled, on every system.

use std::ffi::c_void;
use std::mem::{offset_of, size_of};

/// The control device.
pub const CONTROL: &str = "/dev/ggctl";
/// The module as modfind(2) knows it, and as kldload(2) does.
pub const MODULE: (&str, &str) = ("g_gate", "geom_gate");
/// In every structure's first field.
pub const VERSION: u32 = 3;
/// Bytes for a name or a path, NUL included (`NAME_MAX`).
pub const NAME_SIZE: usize = 255;
/// Bytes for the description.
pub const INFO_SIZE: usize = 2048;
/// In place of a unit's number: the name says which.
pub const UNIT_BY_NAME: i32 = -2;

/// In [`Modify::modify`]: another media size.
pub const MODIFY_MEDIASIZE: u32 = 1;
/// In [`Modify::modify`]: another description.
pub const MODIFY_INFO: u32 = 2;
/// In [`Modify::modify`]: another provider to read from.
pub const MODIFY_READPROV: u32 = 4;
/// In [`Modify::modify`]: another offset on it.
pub const MODIFY_READOFFSET: u32 = 8;

/// In [`Io::command`].
pub const BIO_READ: u32 = 1;
/// In [`Io::command`].
pub const BIO_WRITE: u32 = 2;
/// In [`Io::command`].
pub const BIO_DELETE: u32 = 3;
/// In [`Io::command`]: an attribute is asked for. Nobody here has any.
pub const BIO_GETATTR: u32 = 4;
/// In [`Io::command`].
pub const BIO_FLUSH: u32 = 5;
/// In [`Io::command`]: something about zoned disks.
pub const BIO_ZONE: u32 = 9;
/// In [`Io::command`]: a hint that space is short.
pub const BIO_SPEEDUP: u32 = 10;

/// Makes a device.
#[repr(C)]
#[derive(Clone, Debug)]
pub struct Create {
    /// [`VERSION`].
    pub version: u32,
    /// Bytes.
    pub mediasize: i64,
    /// Bytes.
    pub sectorsize: u32,
    /// 0: for reading and writing.
    pub flags: u32,
    /// Requests that may wait; 0 for no limit.
    pub maxcount: u32,
    /// Seconds until a request fails; 0 for never.
    pub timeout: u32,
    /// Below `/dev`.
    pub name: [u8; NAME_SIZE],
    /// A description.
    pub info: [u8; INFO_SIZE],
    /// Whom the kernel reads from; none if empty.
    pub readprov: [u8; NAME_SIZE],
    /// Where on it.
    pub readoffset: i64,
    /// In: [`UNIT_BY_NAME`]. Out: the number.
    pub unit: i32,
}

/// Changes a device.
#[repr(C)]
#[derive(Clone, Debug)]
pub struct Modify {
    /// [`VERSION`].
    pub version: u32,
    /// The device.
    pub unit: i32,
    /// What of the following counts: `MODIFY_` bits.
    pub modify: u32,
    /// Bytes.
    pub mediasize: i64,
    /// A description.
    pub info: [u8; INFO_SIZE],
    /// Whom the kernel reads from; none if empty.
    pub readprov: [u8; NAME_SIZE],
    /// Where on it.
    pub readoffset: i64,
}

/// Takes a device away.
#[repr(C)]
#[derive(Clone, Debug)]
pub struct Destroy {
    /// [`VERSION`].
    pub version: u32,
    /// The device, or [`UNIT_BY_NAME`].
    pub unit: i32,
    /// 1: also while it is open.
    pub force: i32,
    /// Below `/dev`.
    pub name: [u8; NAME_SIZE],
}

/// Puts requests back into the queue.
#[repr(C)]
#[derive(Clone, Debug)]
pub struct Cancel {
    /// [`VERSION`].
    pub version: u32,
    /// In: the device, or [`UNIT_BY_NAME`]. Out: the device.
    pub unit: i32,
    /// Which request; 0 for all.
    pub seq: usize,
    /// Below `/dev`.
    pub name: [u8; NAME_SIZE],
}

/// Takes a request, or answers one.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Io {
    /// [`VERSION`].
    pub version: u32,
    /// The device.
    pub unit: i32,
    /// The request.
    pub seq: usize,
    /// One of the `BIO_` numbers.
    pub command: u32,
    /// First byte.
    pub offset: i64,
    /// In: bytes at `data`. Out: bytes that are concerned.
    pub length: i64,
    /// Where a write's data goes to, or a read's comes from.
    pub data: *mut c_void,
    /// An error number.
    pub error: i32,
}

/// Makes a device: [`Create`].
pub const CREATE: u64 = request(0, size_of::<Create>());
/// Changes a device: [`Modify`].
pub const MODIFY: u64 = request(1, size_of::<Modify>());
/// Takes a device away: [`Destroy`].
pub const DESTROY: u64 = request(2, size_of::<Destroy>());
/// Puts requests back: [`Cancel`].
pub const CANCEL: u64 = request(3, size_of::<Cancel>());
/// Takes a request: [`Io`].
pub const START: u64 = request(4, size_of::<Io>());
/// Answers a request: [`Io`].
pub const DONE: u64 = request(5, size_of::<Io>());

/// The number of an ioctl(2) in the group `m` that passes a structure in and out.
const fn request(number: u64, size: usize) -> u64 {
    0xc000_0000 | ((size as u64) << 16) | ((b'm' as u64) << 8) | number
}

/// A text as the kernel takes it: NUL-terminated. None if it does not fit.
#[must_use]
pub fn text<const SIZE: usize>(text: &str) -> Option<[u8; SIZE]> {
    let mut bytes = [0; SIZE];
    if text.len() >= SIZE || text.bytes().any(|byte| byte == 0) {
        return None;
    }
    bytes.get_mut(..text.len())?.copy_from_slice(text.as_bytes());
    Some(bytes)
}

/// What spec/ggate.md says.
const _: () = {
    assert!(size_of::<usize>() == 8, "GEOM Gate's structures are known for 64-bit systems only");
    assert!(size_of::<Create>() == 2608 && CREATE == 0xca30_6d00);
    assert!(offset_of!(Create, version) == 0 && offset_of!(Create, mediasize) == 8);
    assert!(offset_of!(Create, sectorsize) == 16 && offset_of!(Create, flags) == 20);
    assert!(offset_of!(Create, maxcount) == 24 && offset_of!(Create, timeout) == 28);
    assert!(offset_of!(Create, name) == 32 && offset_of!(Create, info) == 287);
    assert!(offset_of!(Create, readprov) == 2335 && offset_of!(Create, readoffset) == 2592);
    assert!(offset_of!(Create, unit) == 2600);
    assert!(size_of::<Modify>() == 2336 && MODIFY == 0xc920_6d01);
    assert!(offset_of!(Modify, version) == 0 && offset_of!(Modify, unit) == 4);
    assert!(offset_of!(Modify, modify) == 8 && offset_of!(Modify, mediasize) == 16);
    assert!(offset_of!(Modify, info) == 24 && offset_of!(Modify, readprov) == 2072);
    assert!(offset_of!(Modify, readoffset) == 2328);
    assert!(size_of::<Destroy>() == 268 && DESTROY == 0xc10c_6d02);
    assert!(offset_of!(Destroy, version) == 0 && offset_of!(Destroy, unit) == 4);
    assert!(offset_of!(Destroy, force) == 8 && offset_of!(Destroy, name) == 12);
    assert!(size_of::<Cancel>() == 272 && CANCEL == 0xc110_6d03);
    assert!(offset_of!(Cancel, version) == 0 && offset_of!(Cancel, unit) == 4);
    assert!(offset_of!(Cancel, seq) == 8 && offset_of!(Cancel, name) == 16);
    assert!(size_of::<Io>() == 56 && START == 0xc038_6d04 && DONE == 0xc038_6d05);
    assert!(offset_of!(Io, version) == 0 && offset_of!(Io, unit) == 4 && offset_of!(Io, seq) == 8);
    assert!(offset_of!(Io, command) == 16 && offset_of!(Io, offset) == 24 && offset_of!(Io, length) == 32);
    assert!(offset_of!(Io, data) == 40 && offset_of!(Io, error) == 48);
};
