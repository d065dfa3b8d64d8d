//! See `hast_fuzz::handshake`.
#![cfg_attr(fuzzing, no_main)]

hast_fuzz::target!(hast_fuzz::handshake::run);
