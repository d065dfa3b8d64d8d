//! See `hast_fuzz::metadata_decode`.
#![cfg_attr(fuzzing, no_main)]

hast_fuzz::target!(hast_fuzz::metadata_decode::run);
