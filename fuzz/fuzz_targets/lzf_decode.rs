//! See `hast_fuzz::lzf_decode`.
#![cfg_attr(fuzzing, no_main)]

hast_fuzz::target!(hast_fuzz::lzf_decode::run);
