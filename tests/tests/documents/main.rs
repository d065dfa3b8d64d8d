//! What the documents say of the programs is what the programs say.
#![allow(clippy::expect_used)]

mod messages;
mod troubleshooting;
