//! Failover as administrators run it: hast-failover and the scripts of dist/ with real daemons, ucarp, file systems and services, on
//! hosts that are namespaces of this machine.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod addresses;
mod lab;
mod mounts;
mod roles;
mod script;
mod silence;
mod site;
mod takeover;
