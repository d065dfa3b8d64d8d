//! All harnesses by name, with their bounds, and for each the wrong variants of the code that it must notice.

use hast_engine::RangeQueue;

use crate::source::{Case, Tape, Walk};
use crate::{activemap, bits, handshake, layout, metadata, nv, queue, torn, wrong};

/// One harness.
#[derive(Clone, Copy, Debug)]
pub struct Harness {
    /// What it is about.
    pub name: &'static str,
    /// Steps, pairs or bytes of a case, where its length is bounded: in `cargo test`, in `cargo xtask verify`, and
    /// at random.
    pub steps: [u64; 3],
    /// Random cases in `cargo xtask verify`; `cargo test` runs a fortieth.
    pub random: u32,
    /// The harness over the code as it ships.
    pub walk: fn(&mut Walk, u64) -> Case,
    /// The same, at random.
    pub tape: fn(&mut Tape<'_>, u64) -> Case,
    /// The harness over wrong code.
    pub wrong: &'static [Wrong],
}

/// A wrong variant of the code: the harness has to fail.
#[derive(Clone, Copy, Debug)]
pub struct Wrong {
    /// What is wrong with it.
    pub what: &'static str,
    /// The harness over it.
    pub walk: fn(&mut Walk, u64) -> Case,
}

macro_rules! harness {
    ($name:literal, $steps:expr, $random:literal, |$source:ident, $length:ident, $Subject:ident| $call:expr,
     $Real:ty, [$($what:literal => $Wrong:ty),+ $(,)?]) => {
        Harness {
            name: $name,
            steps: $steps,
            random: $random,
            walk: |$source: &mut Walk, $length: u64| { let _ = $length; type $Subject = $Real; $call },
            tape: |$source: &mut Tape<'_>, $length: u64| { let _ = $length; type $Subject = $Real; $call },
            wrong: &[$(Wrong {
                what: $what,
                walk: |$source: &mut Walk, $length: u64| { let _ = $length; type $Subject = $Wrong; $call },
            }),+],
        }
    };
}

/// The activemap of so many extents.
macro_rules! activemap {
    ($name:literal, $steps:expr, $extents:literal) => {
        harness!($name, $steps, 20_000, |source, n, T| activemap::sequences::<T>(source, n, $extents), activemap::Real, [
            "a write is issued before its bit is durable" => wrong::AtOnceIssued,
            "an answer of both nodes is enough (M2)" => wrong::NoFlush,
            "a copied extent is forgotten" => wrong::CopyForgotten,
            "a loss of the link is no matter (M3)" => wrong::LossIgnored,
            "a failed flush counts" => wrong::FailedFlush,
            "a flush covers what is answered while it runs" => wrong::LateFlush,
            "a failed map write counts" => wrong::FailedMapWrite,
            "the other node's map is not merged" => wrong::NotMerged,
            "one extent more is kept dirty" => wrong::OneMoreDirty,
        ])
    };
}

/// Every harness.
pub const ALL: [Harness; 17] = [
    harness!("layout-create", [0; 3], 200_000, |source, n, T| layout::created::<T>(source), layout::Real, [
        "a medium of odd length is refused" => wrong::NoOddMedia,
        "an extent of 2 GiB is made one of 1 GiB" => wrong::HugeExtents,
        "the data reaches one byte too far" => wrong::DataTooLong,
        "the map is one word too long" => wrong::MapTooLong,
        "a byte belongs to the extent before" => wrong::ExtentBefore,
        "the last extent is as long as the others" => wrong::NoShortExtent,
    ]),
    harness!("layout-open", [0; 3], 200_000, |source, n, T| layout::opened::<T>(source), layout::Real, [
        "keepdirty may be 0" => wrong::NoKeepdirty,
        "data may end one sector behind the provider" => wrong::PastTheEnd,
        "data may begin inside the map" => wrong::MapInData,
    ]),
    harness!("request-range", [0; 3], 200_000, |source, n, T| layout::requests::<T>(source), layout::Real, [
        "the last sector is out of reach" => wrong::LastSectorOut,
        "an end past 64 bits wraps" => wrong::EndWraps,
        "a request may be empty" => wrong::EmptyRequests,
        "any length is taken" => wrong::OddLengths,
        "the last extent touched is left out" => wrong::LastExtentOut,
    ]),
    harness!("nv-round-trip", [2, 2, 6], 20_000, |source, n, T| nv::round_trip::<T>(source, n), nv::Real, [
        "pairs are written in reverse" => wrong::Reversed,
        "the last pair of a name decides" => wrong::LastWins,
        "numbers of 32 bits are also found as 64" => wrong::AnyWidth,
    ]),
    harness!("nv-reader", [2, 2, 4], 200_000, |source, n, T| nv::reader::<T>(source, n), nv::Real, [
        "a last pair that is cut off is dropped" => wrong::LastDropped,
        "data sizes near 4 GiB wrap" => wrong::SizeWraps,
        "a type that nobody knows is read as bytes" => wrong::AnyType,
    ]),
    harness!("nv-bytes", [7, 9, 64], 200_000, |source, n, T| nv::bytes::<T>(source, n), nv::Real, [
        "fewer than eight bytes at the end are ignored" => wrong::Leftover,
    ]),
    harness!("metadata", [0; 3], 20_000, |source, n, T| metadata::round_trip::<T>(source), metadata::Real, [
        "no area is written" => wrong::NoArea,
        "no mark is written" => wrong::NoMark,
        "the list is not written" => wrong::NoList,
        "the counts are exchanged" => wrong::Exchanged,
    ]),
    harness!("metadata-torn", [0; 3], 20_000, |source, n, T| torn::save::<T>(source), metadata::Real, [
        "the list is written first" => wrong::ListFirst,
        "all is written at once" => wrong::AtOnce,
        "only the list is read (L8)" => wrong::OnlyList,
    ]),
    harness!("metadata-repair", [0; 3], 20_000, |source, n, T| torn::repair::<T>(source), metadata::Real, [
        "the list is written first" => wrong::ListFirst,
        "all is written at once" => wrong::AtOnce,
    ]),
    harness!("bit-order", [0; 3], 20_000, |source, n, T| bits::order::<T>(source), bits::Real, [
        "the most significant bit comes first" => wrong::MostFirst,
        "words are big-endian" => wrong::BigEndian,
        "padding is read" => wrong::Padding,
    ]),
    harness!("bitmap", [3, 4, 60], 20_000, |source, n, T| bits::set::<T>(source, n), bits::Real, [
        "a bit that is set is set again" => wrong::Again,
        "the search for the next bit leaves out the one it begins at" => wrong::NextAfter,
    ]),
    activemap!("activemap-one-extent", [6, 8, 80], 1),
    activemap!("activemap-two-extents", [4, 5, 80], 2),
    harness!("range-queue", [4, 5, 60], 50_000, |source, n, T| queue::queue::<T>(source, n), RangeQueue, [
        "requests that wait do not hold up later ones" => wrong::Overtaking,
        "all share" => wrong::AllShare,
        "readers exclude each other" => wrong::NoSharing,
        "nobody who waits is woken" => wrong::Starving,
        "the last to come is the first to run" => wrong::LastCome,
    ]),
    harness!("handshake-table", [0; 3], 200_000, |source, n, T| handshake::table::<T>(source), handshake::Real, [
        "writes before the first contact are no matter (L20)" => wrong::NoL20,
        "a secondary that is ahead is always right" => wrong::AheadIsRight,
        "a primary without an id is let in" => wrong::AnyId,
    ]),
    harness!("handshake-parted", [0; 3], 200_000, |source, n, T| handshake::parted::<T>(source), handshake::Real, [
        "a split-brain needs as many changes on both nodes" => wrong::EvenSplit,
        "a secondary that is ahead is always right" => wrong::AheadIsRight,
    ]),
    harness!("handshake-exchanged", [0; 3], 200_000, |source, n, T| handshake::exchanged::<T>(source), handshake::Real, [
        "a secondary that is ahead is always right" => wrong::AheadIsRight,
        "in doubt the node with the higher count is right" => wrong::HigherIsRight,
    ]),
];
