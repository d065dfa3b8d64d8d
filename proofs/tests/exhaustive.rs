//! Every harness over the code as it ships, with every case within the bounds of a quick test.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use hast_proofs::engine::exhaustive;
use hast_proofs::harness::ALL;

/// A test for each harness, and one that none is left out.
macro_rules! harnesses {
    ($($test:ident: $name:literal,)*) => {
        $(
            #[test]
            fn $test() {
                let harness = ALL.iter().find(|harness| harness.name == $name).unwrap();
                let row = exhaustive(harness.name, |walk| (harness.walk)(walk, harness.steps[0]));
                println!("{row}");
                assert_eq!(row.failure, None);
            }
        )*

        #[test]
        fn all_are_there() {
            assert_eq!(ALL.map(|harness| harness.name), [$($name),*]);
        }
    };
}

harnesses! {
    layout_create: "layout-create",
    layout_open: "layout-open",
    request_range: "request-range",
    nv_round_trip: "nv-round-trip",
    nv_reader: "nv-reader",
    nv_bytes: "nv-bytes",
    metadata: "metadata",
    metadata_torn: "metadata-torn",
    metadata_repair: "metadata-repair",
    bit_order: "bit-order",
    bitmap: "bitmap",
    activemap_one_extent: "activemap-one-extent",
    activemap_two_extents: "activemap-two-extents",
    range_queue: "range-queue",
    handshake_table: "handshake-table",
    handshake_parted: "handshake-parted",
    handshake_exchanged: "handshake-exchanged",
}
