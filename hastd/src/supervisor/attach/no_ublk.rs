//! No devices by ublk: io_uring is not spoken on this processor.

use std::path::{Path, PathBuf};

use super::{Export, NoDevice};

/// There is none.
#[derive(Debug)]
pub(super) enum Found {}

impl Found {
    pub(super) fn node(&self) -> PathBuf {
        match *self {}
    }
}

pub(super) fn open(_: bool) -> Result<Found, &'static str> {
    Err("this hastd has no ublk on this processor")
}

pub(super) fn left_behind(kernel: &mut Found, _: &Path) -> bool {
    match *kernel {}
}

pub(super) fn find(_: &Path) -> Option<Found> {
    None
}

pub(super) fn make(kernel: &mut Found, _: &Export) -> Result<Found, NoDevice> {
    match *kernel {}
}

pub(super) fn remove(found: &Found, _: &Path) {
    match *found {}
}
