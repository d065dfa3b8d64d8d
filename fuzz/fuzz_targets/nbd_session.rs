//! See `hast_fuzz::nbd_session`.
#![cfg_attr(fuzzing, no_main)]

hast_fuzz::target!(hast_fuzz::nbd_session::run);
