//! A small provider of which only what was flushed counts, and nodes that have one.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::time::Duration;

use hast_engine::*;
use hast_format::extension::Extension;
use hast_format::layout::Layout;
use hast_format::metadata::{Metadata, Role};
use hast_net::Replication;
use hast_net::buffer::Buffer;
use hast_net::errno::Errno;

/// Bytes of an extent.
pub(crate) const ES: u32 = 4096;
/// How many there are.
pub(crate) const EXTENTS: u64 = 24;
/// Where the map begins ...
pub(crate) const MAP: usize = 4096;
/// ... and the data.
const DATA: u64 = 4096 + 512;

/// How the provider is laid out.
pub(crate) fn layout() -> Layout {
    Layout::create(DATA + EXTENTS * u64::from(ES), 512, ES).unwrap()
}

/// Metadata of a node with these counts, its own and the other one's.
pub(crate) fn metadata(role: Role, counts: (u64, u64), extension: Extension) -> Metadata {
    let mut metadata = Metadata::created("t", &layout(), 1);
    (metadata.resuid, metadata.localcnt, metadata.remotecnt) = (5, counts.0, counts.1);
    metadata.prevrole = role;
    metadata.extension = Extension { generation: 1, ..extension };
    metadata
}

/// A node's settings, with a silence that no test waits for.
pub(crate) fn settings() -> Settings {
    Settings {
        replication: Replication::Fullsync,
        timeout: Duration::from_secs(20),
        peer_timeout: Duration::from_secs(1 << 30),
        metaflush: true,
        remote: true,
        peer: "p".into(),
    }
}

/// What has been written, and what of it a flush has made durable.
pub(crate) struct Disk {
    pub(crate) bytes: Vec<u8>,
    pub(crate) durable: Vec<u8>,
    /// Writes of the metadata fail.
    pub(crate) broken: bool,
}

impl Disk {
    /// With this first byte of the map.
    pub(crate) fn new(metadata: &Metadata, map: u8) -> Disk {
        let mut bytes = metadata.encode().to_vec();
        bytes.resize(usize::try_from(DATA + EXTENTS * u64::from(ES)).unwrap(), 0);
        bytes[MAP] = map;
        Disk { durable: bytes.clone(), bytes, broken: false }
    }

    pub(crate) fn carry_out(&mut self, op: &DiskOp) -> DiskResult {
        match op {
            DiskOp::Write { offset, .. } if self.broken && *offset < 4096 => return Err(Errno::EIO),
            DiskOp::Write { offset, data } => {
                let at = usize::try_from(*offset).unwrap();
                self.bytes[at..at + data.len()].copy_from_slice(data);
            }
            DiskOp::Flush => self.durable = self.bytes.clone(),
            DiskOp::Read { offset, length } => {
                let at = usize::try_from(*offset).unwrap();
                return Ok(Some(Buffer::from(self.bytes[at..at + *length as usize].to_vec())));
            }
            DiskOp::Delete { .. } => {}
        }
        Ok(None)
    }

    /// The map, as it is read.
    pub(crate) fn map(&self) -> Vec<u8> {
        self.bytes[MAP..MAP + 512].to_vec()
    }

    /// What is durable.
    pub(crate) fn metadata(&self) -> Metadata {
        Metadata::read(&self.durable).unwrap().metadata
    }
}
