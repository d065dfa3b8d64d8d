//! What is said to the kernel's ublk and what it says, as numbers and bytes (`linux/ublk_cmd.h`). Numbers have the
//! machine's own byte order, lengths and offsets are in bytes unless they are called sectors.

use std::mem::offset_of;

use hast_nbd::client::{Agreed, Request};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Bytes of a sector, whatever the device's smallest request.
const SECTOR: u32 = 512;
/// The longest read or write that the kernel hands out: a fraction of what an NBD server takes.
pub(super) const MAX_IO: u32 = 512 << 10;
/// The longest discard, and the longest range of zeroes, in sectors: 1 GiB.
const MAX_RANGE: u32 = 1 << 21;
/// How many requests the one queue of a device has at most.
pub(super) const DEPTH: u16 = 128;
/// The device that the kernel is to choose.
const ANY: u32 = u32::MAX;
/// A command that is not about a queue.
const NO_QUEUE: u16 = u16::MAX;

/// Commands to the control device. Kernels before Linux 6.5 have other numbers for them, or not all of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Control {
    /// Tells what this kernel can do.
    GetFeatures,
    /// Tells of a device.
    GetInfo,
    /// Makes a device; nobody sees it yet.
    Add,
    /// What is to be known of it before it starts.
    SetParameters,
    /// Everybody sees it, once it is served.
    Start,
    /// Nobody does any more; whoever uses it gets errors.
    Stop,
    /// Removes it, and waits until nobody has it open.
    Delete,
    /// Removes it as soon as nobody has it open (Linux 6.9).
    DeleteLater,
    /// Forgets who served it before.
    StartRecovery,
    /// Lets the requests come that wait, once it is served again.
    EndRecovery,
}

impl Control {
    /// The number of the command.
    pub(super) fn opcode(self) -> u32 {
        match self {
            Control::GetFeatures => asks(0x13),
            Control::GetInfo => asks(0x02),
            Control::Add => changes(0x04),
            Control::SetParameters => changes(0x08),
            Control::Start => changes(0x06),
            Control::Stop => changes(0x07),
            Control::Delete => changes(0x05),
            Control::DeleteLater => asks(0x14),
            Control::StartRecovery => changes(0x10),
            Control::EndRecovery => changes(0x11),
        }
    }
}

/// Asks for the first request with a tag.
pub(super) const FETCH: u32 = nix::request_code_readwrite!(TYPE, 0x20, size_of::<IoCommand>()) as u32;
/// Answers a request, and asks for the next one with this tag.
pub(super) const COMMIT_AND_FETCH: u32 =
    nix::request_code_readwrite!(TYPE, 0x21, size_of::<IoCommand>()) as u32;

/// What all of ublk's commands are told from others by.
const TYPE: u8 = b'u';

fn asks(number: u8) -> u32 {
    nix::request_code_read!(TYPE, number, size_of::<ControlCommand>()) as u32
}

fn changes(number: u8) -> u32 {
    nix::request_code_readwrite!(TYPE, number, size_of::<ControlCommand>()) as u32
}

/// What a device, or the kernel, can do.
pub(super) mod feature {
    /// It waits for somebody else who serves it, when nobody does.
    pub(in crate::kernel_ublk) const USER_RECOVERY: u64 = 1 << 3;
    /// Then it hands out again what had not been answered.
    pub(in crate::kernel_ublk) const USER_RECOVERY_REISSUE: u64 = 1 << 4;
    /// Data is copied with pread(2) and pwrite(2).
    pub(in crate::kernel_ublk) const USER_COPY: u64 = 1 << 7;
    /// All that is needed of a kernel.
    pub(in crate::kernel_ublk) const NEEDED: u64 = USER_RECOVERY | USER_RECOVERY_REISSUE | USER_COPY;
}

/// Bytes of the answer to [`Control::GetFeatures`].
pub(super) const FEATURES_SIZE: usize = 8;

/// A command to the control device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, IntoBytes, Immutable)]
#[repr(C)]
pub(super) struct ControlCommand {
    device: u32,
    queue: u16,
    length: u16,
    address: u64,
    data: u64,
    path_length: u16,
    pad: u16,
    reserved: u32,
}

impl ControlCommand {
    /// A command about a device, if about one, with a word of its own and `length` bytes at `address`.
    pub(super) fn new(device: Option<u32>, data: u64, address: u64, length: u16) -> ControlCommand {
        ControlCommand {
            device: device.unwrap_or(ANY),
            queue: NO_QUEUE,
            length,
            address,
            data,
            path_length: 0,
            pad: 0,
            reserved: 0,
        }
    }
}

/// A command about one tag of a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, IntoBytes, Immutable)]
#[repr(C)]
pub(super) struct IoCommand {
    queue: u16,
    tag: u16,
    result: i32,
    address: u64,
}

impl IoCommand {
    /// With the result of the tag's last request: bytes, or an error's negative number.
    pub(super) fn new(tag: u16, result: i32) -> IoCommand {
        // There is no address: data is copied otherwise.
        IoCommand { queue: 0, tag, result, address: 0 }
    }
}

/// Where a device is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// Not started yet, or stopped.
    Dead,
    /// Served.
    Live,
    /// Waiting for somebody who serves it.
    Quiesced,
    /// Something that is not known here.
    Other(u16),
}

/// What the kernel knows of a device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct Info {
    queues: u16,
    depth: u16,
    state: u16,
    pad0: u16,
    max_io: u32,
    device: u32,
    process: i32,
    pad1: u32,
    flags: u64,
    /// A word that the kernel keeps for whoever made the device.
    identity: u64,
    owner_user: u32,
    owner_group: u32,
    reserved: [u64; 2],
}

impl Info {
    /// A device to be made, and by what it is found again.
    pub(super) fn wanted(identity: u64) -> Info {
        Info {
            queues: 1,
            depth: DEPTH,
            max_io: MAX_IO,
            device: ANY,
            flags: feature::NEEDED,
            identity,
            ..Info::default()
        }
    }

    pub(super) fn device(&self) -> u32 {
        self.device
    }

    pub(super) fn depth(&self) -> u16 {
        self.depth
    }

    pub(super) fn identity(&self) -> u64 {
        self.identity
    }

    /// Whether it is one that can be served here.
    pub(super) fn is_fit(&self) -> bool {
        self.queues == 1 && self.depth > 0 && self.flags & feature::NEEDED == feature::NEEDED
    }

    /// The process that serves it, or did.
    pub(super) fn process(&self) -> Option<u32> {
        u32::try_from(self.process).ok()
    }

    pub(super) fn state(&self) -> State {
        match self.state {
            0 => State::Dead,
            1 => State::Live,
            2 => State::Quiesced,
            other => State::Other(other),
        }
    }
}

/// What a new device is: size, units, and what it can do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, IntoBytes, Immutable)]
#[repr(C)]
pub(super) struct Parameters {
    length: u32,
    types: u32,
    basic: Basic,
    discard: Discard,
    /// Only fills the structure up.
    rest: u32,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, IntoBytes, Immutable)]
#[repr(C)]
struct Basic {
    attributes: u32,
    logical_shift: u8,
    physical_shift: u8,
    optimal_shift: u8,
    minimum_shift: u8,
    max_sectors: u32,
    chunk_sectors: u32,
    sectors: u64,
    boundary_mask: u64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, IntoBytes, Immutable)]
#[repr(C)]
struct Discard {
    alignment: u32,
    granularity: u32,
    max_sectors: u32,
    max_zeroes_sectors: u32,
    max_segments: u16,
    reserved: u16,
}

impl Parameters {
    /// Those of an export; `None` if it has a size or units that no block device has.
    pub(super) fn of(agreed: &Agreed) -> Option<Parameters> {
        /// Which parts there are.
        const BASIC: u32 = 1 << 0;
        const DISCARD: u32 = 1 << 1;
        /// Attributes.
        const READ_ONLY: u32 = 1 << 0;
        const VOLATILE_CACHE: u32 = 1 << 2;
        const FUA: u32 = 1 << 3;
        const LARGEST_BLOCK: u32 = 4096;

        let block = agreed.minimum_block.max(SECTOR);
        if !block.is_power_of_two() || block > LARGEST_BLOCK || !agreed.size.is_multiple_of(block.into()) {
            return None;
        }
        let shift = u8::try_from(block.trailing_zeros()).ok()?;
        let attributes = [
            (agreed.is_read_only(), READ_ONLY),
            (agreed.can_flush(), VOLATILE_CACHE),
            (agreed.can_flush() && agreed.can_fua(), FUA),
        ];
        let basic = Basic {
            attributes: attributes.iter().filter(|(has, _)| *has).map(|(_, bit)| bit).sum(),
            logical_shift: shift,
            physical_shift: shift,
            optimal_shift: shift,
            minimum_shift: shift,
            max_sectors: MAX_IO.min(agreed.maximum_payload) / block * block / SECTOR,
            sectors: agreed.size / u64::from(SECTOR),
            ..Basic::default()
        };
        let ranges = |has| if has { MAX_RANGE } else { 0 };
        let discard = Discard {
            granularity: block,
            max_sectors: ranges(agreed.can_trim()),
            max_zeroes_sectors: ranges(agreed.can_write_zeroes()),
            max_segments: u16::from(agreed.can_trim()),
            ..Discard::default()
        };
        (basic.max_sectors > 0).then_some(Parameters {
            length: u32::try_from(offset_of!(Parameters, rest)).ok()?,
            types: BASIC | DISCARD,
            basic,
            discard,
            rest: 0,
        })
    }
}

/// How the kernel describes a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct Descriptor {
    /// What is to be done, and behind that how.
    pub(super) operation: u32,
    pub(super) sectors: u32,
    pub(super) first_sector: u64,
    pub(super) address: u64,
}

/// What a request is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Operation {
    /// Read.
    Read {
        /// First byte.
        offset: u64,
        /// Bytes.
        length: u32,
    },
    /// Write.
    Write {
        /// First byte.
        offset: u64,
        /// Bytes.
        length: u32,
        /// Durable before it is answered.
        fua: bool,
    },
    /// Make what was written durable.
    Flush,
    /// Give a range up.
    Discard {
        /// First byte.
        offset: u64,
        /// Bytes.
        length: u32,
        /// Durable before it is answered.
        fua: bool,
    },
    /// Make a range read as zeroes.
    Zeroes {
        /// First byte.
        offset: u64,
        /// Bytes.
        length: u32,
        /// The range stays allocated.
        no_hole: bool,
        /// Durable before it is answered.
        fua: bool,
    },
}

impl Operation {
    /// `None` for what no device here is asked for.
    pub(super) fn of(descriptor: &Descriptor) -> Option<Operation> {
        const FUA: u32 = 1 << 13;
        const NO_UNMAP: u32 = 1 << 15;

        let offset = descriptor.first_sector.checked_mul(SECTOR.into());
        let length = descriptor.sectors.checked_mul(SECTOR);
        let fua = descriptor.operation & FUA != 0;
        let no_hole = descriptor.operation & NO_UNMAP != 0;
        Some(match descriptor.operation & 0xff {
            0 => Operation::Read { offset: offset?, length: short(length?)? },
            1 => Operation::Write { offset: offset?, length: short(length?)?, fua },
            2 => Operation::Flush,
            3 => Operation::Discard { offset: offset?, length: length?, fua },
            5 => Operation::Zeroes { offset: offset?, length: length?, no_hole, fua },
            _ => return None,
        })
    }

    /// How many bytes of data go along with it, in whichever direction.
    pub(super) fn data_length(&self) -> u32 {
        match *self {
            Operation::Read { length, .. } | Operation::Write { length, .. } => length,
            _ => 0,
        }
    }

    /// The same for an NBD server, with the data of a write.
    pub(super) fn request<'a>(&self, data: &'a [u8]) -> Request<'a> {
        match *self {
            Operation::Read { offset, length } => Request::Read { offset, length },
            Operation::Write { offset, fua, .. } => Request::Write { offset, data, fua },
            Operation::Flush => Request::Flush,
            Operation::Discard { offset, length, fua } => Request::Trim { offset, length, fua },
            Operation::Zeroes { offset, length, no_hole, fua } => {
                Request::WriteZeroes { offset, length, no_hole, fua }
            }
        }
    }
}

/// No data is longer than what was agreed.
fn short(length: u32) -> Option<u32> {
    (1..=MAX_IO).contains(&length).then_some(length)
}

/// Where in the device's file the data of a tag's request lies.
pub(super) fn data_offset(tag: u16) -> u64 {
    /// Behind the descriptors.
    const DATA: u64 = 0x8000_0000;
    /// Bits of an offset into a request.
    const TAG_SHIFT: u32 = 25;
    DATA.saturating_add(u64::from(tag) << TAG_SHIFT)
}

/// Whether `export` can take the place of the one that a device was made of.
pub(super) fn replaces(before: &Agreed, export: &Agreed) -> bool {
    before.size == export.size
        && export.flags & before.flags == before.flags
        && before.minimum_block == export.minimum_block
        && before.maximum_payload <= export.maximum_payload
}

#[cfg(test)]
#[path = "command_tests.rs"]
mod tests;
