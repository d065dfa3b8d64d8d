//! The harnesses with symbolic values. `cargo kani -p hast-proofs` proves them; see proofs/README.md.

use core::ops::RangeInclusive;

use hast_engine::RangeQueue;

use crate::source::{Case, Source};
use crate::{activemap, bits, handshake, layout, metadata, nv, queue, torn};

/// Any value at all.
struct Symbolic;

impl Source for Symbolic {
    fn number(&mut self, all: RangeInclusive<u64>, _: &[u64]) -> u64 {
        let value: u64 = kani::any();
        kani::assume(all.contains(&value));
        value
    }

    fn below(&mut self, end: u64) -> u64 {
        let value: u64 = kani::any();
        kani::assume(value < end);
        value
    }

    fn assume(&mut self, holds: bool) -> Case {
        kani::assume(holds);
        Ok(())
    }
}

/// One proof a harness. The bound is one more than the longest loop in it.
macro_rules! proofs {
    ($($name:ident, $unwind:literal, $harness:expr;)*) => {
        $(
            #[kani::proof]
            #[kani::unwind($unwind)]
            fn $name() {
                let harness: fn(&mut Symbolic) -> Case = $harness;
                let _ = harness(&mut Symbolic);
            }
        )*
    };
}

proofs! {
    layout_create, 65, |source| layout::created::<layout::Real>(source);
    layout_open, 65, |source| layout::opened::<layout::Real>(source);
    request_range, 70, |source| layout::requests::<layout::Real>(source);
    nv_round_trip, 65, |source| nv::round_trip::<nv::Real>(source, 2);
    nv_reader, 65, |source| nv::reader::<nv::Real>(source, 1);
    nv_bytes, 25, |source| nv::bytes::<nv::Real>(source, 16);
    metadata_round_trip, 4113, |source| metadata::round_trip::<metadata::Real>(source);
    metadata_torn, 4097, |source| torn::save::<metadata::Real>(source);
    metadata_repair, 4097, |source| torn::repair::<metadata::Real>(source);
    bit_order, 202, |source| bits::order::<bits::Real>(source);
    bitmap, 134, |source| bits::set::<bits::Real>(source, 3);
    activemap_one_extent, 20, |source| activemap::sequences::<activemap::Real>(source, 4, 1);
    activemap_two_extents, 20, |source| activemap::sequences::<activemap::Real>(source, 2, 2);
    range_queue, 12, |source| queue::queue::<RangeQueue>(source, 3);
    handshake_table, 12, |source| handshake::table::<handshake::Real>(source);
    handshake_parted, 12, |source| handshake::parted::<handshake::Real>(source);
    handshake_exchanged, 12, |source| handshake::exchanged::<handshake::Real>(source);
}
