//! Says with `cfg(ublk)` whether the kernel's ublk can be spoken to: on Linux, on processors that io-uring knows.

use std::env;

/// Those of Cargo.toml.
const PROCESSORS: [&str; 5] = ["x86_64", "aarch64", "riscv64", "powerpc64", "loongarch64"];

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rustc-check-cfg=cfg(ublk)");
    let is = |name: &str, values: &[&str]| env::var(name).is_ok_and(|value| values.contains(&value.as_str()));
    if is("CARGO_CFG_TARGET_OS", &["linux"]) && is("CARGO_CFG_TARGET_ARCH", &PROCESSORS) {
        println!("cargo::rustc-cfg=ublk");
    }
}
