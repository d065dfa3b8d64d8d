//! See `hast_fuzz::proto_decode`.
#![cfg_attr(fuzzing, no_main)]

hast_fuzz::target!(hast_fuzz::proto_decode::run);
