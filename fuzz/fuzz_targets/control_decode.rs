//! See `hast_fuzz::control_decode`.
#![cfg_attr(fuzzing, no_main)]

hast_fuzz::target!(hast_fuzz::control_decode::run);
