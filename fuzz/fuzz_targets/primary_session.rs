//! See `hast_fuzz::primary_session`.
#![cfg_attr(fuzzing, no_main)]

hast_fuzz::target!(hast_fuzz::primary_session::run);
