//! See `hast_fuzz::secondary_session`.
#![cfg_attr(fuzzing, no_main)]

hast_fuzz::target!(hast_fuzz::secondary_session::run);
