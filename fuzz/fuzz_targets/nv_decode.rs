//! See `hast_fuzz::nv_decode`.
#![cfg_attr(fuzzing, no_main)]

hast_fuzz::target!(hast_fuzz::nv_decode::run);
