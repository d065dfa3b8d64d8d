//! What is exported: the numbers and the name that a client is told.

use crate::MAX_PAYLOAD;

/// The device that a session serves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Export {
    /// The export's name: the resource's provider name. The empty name selects the same export.
    pub name: String,
    /// Bytes in the data area, a multiple of `minimum_block`.
    pub size: u64,
    /// The smallest unit of a request in bytes: the provider's sector size, a power of two up to 65536.
    pub minimum_block: u32,
    /// The unit in bytes from which requests are efficient, a power of two.
    pub preferred_block: u32,
    /// The most bytes that one read or write may carry, [`MAX_PAYLOAD`] at most.
    pub maximum_payload: u32,
    /// Whether writes, trims and zeroing are refused.
    pub read_only: bool,
    /// Whether clients are told that they may trim. One that trims all the same is served: a kernel goes by what
    /// it was told first, and the disk may be another one since.
    pub trims: bool,
    /// Whether the driver is asked what is a hole ([`Session::poll_question`](crate::Session::poll_question)). Without it
    /// clients hear that all of the device is allocated.
    pub tells_holes: bool,
}

impl Export {
    /// A writable export with the usual preferred block (4096 bytes) and maximum payload (32 MiB).
    #[must_use]
    pub fn new(name: impl Into<String>, size: u64, minimum_block: u32) -> Export {
        Export {
            name: name.into(),
            size,
            minimum_block,
            preferred_block: 4096,
            maximum_payload: MAX_PAYLOAD,
            read_only: false,
            trims: true,
            tells_holes: false,
        }
    }

    /// The same export with numbers that keep the protocol's promises: no zero block, a preferred block no
    /// smaller than the minimum, a payload that this crate can buffer and a whole block fits into.
    pub(crate) fn normalised(mut self) -> Export {
        self.minimum_block = self.minimum_block.max(1);
        self.preferred_block = self.preferred_block.max(self.minimum_block).max(512);
        self.maximum_payload = self.maximum_payload.min(MAX_PAYLOAD).max(self.preferred_block);
        self
    }

    /// Whether a client that asks for `name` means this export.
    pub(crate) fn answers_to(&self, name: &[u8]) -> bool {
        name.is_empty() || name == self.name.as_bytes()
    }
}
