//! What the documents say of the programs is what the programs say.
#![allow(clippy::expect_used)]

mod manuals;
mod messages;
mod troubleshooting;
