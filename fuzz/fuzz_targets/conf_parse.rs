//! See `hast_fuzz::conf_parse`.
#![cfg_attr(fuzzing, no_main)]

hast_fuzz::target!(hast_fuzz::conf_parse::run);
