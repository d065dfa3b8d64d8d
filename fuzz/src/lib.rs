//! What the fuzz targets do, as functions of bytes: each reads its input as a peer, a client, a disk or a file
//! would present it, and asserts what must hold whatever that is.
//!
//! The targets in `fuzz_targets` hand libFuzzer's inputs to these functions; `tests/replay.rs` hands them every
//! file of `corpus` and `regressions`, on any toolchain. README.md says how a target is run and added.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "test code: a panic is how it says that something is wrong"
)]
#![warn(missing_docs)]

pub mod allocation;
pub mod conf_parse;
pub mod control_decode;
pub mod handshake;
pub mod lzf_decode;
pub mod messages;
pub mod metadata_decode;
pub mod nbd_session;
pub mod node;
pub mod nv_decode;
pub mod primary_session;
pub mod proto_decode;
pub mod provider;
pub mod secondary_session;
pub mod source;

#[cfg(fuzzing)]
pub use libfuzzer_sys;

/// One fuzz target.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// Its name: of the program, and of its directories in `corpus` and `regressions`.
    pub name: &'static str,
    /// What it does with one input.
    pub run: fn(&[u8]),
}

/// Every target.
pub const TARGETS: [Target; 10] = [
    Target { name: "proto_decode", run: proto_decode::run },
    Target { name: "nv_decode", run: nv_decode::run },
    Target { name: "metadata_decode", run: metadata_decode::run },
    Target { name: "control_decode", run: control_decode::run },
    Target { name: "conf_parse", run: conf_parse::run },
    Target { name: "lzf_decode", run: lzf_decode::run },
    Target { name: "nbd_session", run: nbd_session::run },
    Target { name: "handshake", run: handshake::run },
    Target { name: "secondary_session", run: secondary_session::run },
    Target { name: "primary_session", run: primary_session::run },
];

/// Makes the program of a target: under `cargo fuzz` libFuzzer calls the function, otherwise it is called with
/// each file named on the command line.
#[macro_export]
macro_rules! target {
    ($run:path) => {
        #[cfg(fuzzing)]
        $crate::libfuzzer_sys::fuzz_target!(|data: &[u8]| $run(data));

        #[cfg(not(fuzzing))]
        fn main() -> std::io::Result<()> {
            $crate::replay($run)
        }
    };
}

/// Runs a target on each file named on the command line.
///
/// # Errors
/// A file cannot be read.
pub fn replay(run: fn(&[u8])) -> std::io::Result<()> {
    for path in std::env::args_os().skip(1) {
        run(&std::fs::read(&path)?);
        println!("{}: nothing wrong", path.display());
    }
    Ok(())
}

/// Shows what happens in a session, if `HAST_FUZZ_TRACE` is set. Only in replays: a fuzzer has no time for it.
fn trace(what: &dyn std::fmt::Debug) {
    static WANTED: std::sync::OnceLock<bool> = std::sync::OnceLock::new();
    if !cfg!(fuzzing) && *WANTED.get_or_init(|| std::env::var_os("HAST_FUZZ_TRACE").is_some()) {
        println!("{what:?}");
    }
}
