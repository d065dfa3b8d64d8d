//! The suspicion that an original primary has something that this node has not (A7).
//!
//! An original never says when it has brought its secondary up to date. What this node can see:
//!
//! - *Counts out of step* at the handshake, or a full map: the primary is about to copy what this node has missed.
//!   When the nodes meet again with counts in step, it has done so: it makes them equal when nothing is left, and
//!   not before.
//! - *Counts in step, and bits in this node's map*: it asks for extents that it may have lost, if its system was
//!   started since; else it has them, and only has not flushed them in time.
//! - *Blocks of a synchronisation that this node has not asked for*: the primary knows of something more, because it was
//!   restarted or has written alone and not counted that (L5). All such blocks have the number 1; of the device's
//!   requests only the very first one has it.
//!
//! The suspicion is stored before the handshake is answered, or at the first such block. It is over when a handshake
//! shows none of this, when a primary of ours says that this node is up to date, and when this node has been written
//! as a primary itself: its administrator was warned. A synchronisation with counts in step that breaks off is not
//! suspected any more once the nodes have met again: what is left of it the primary has in its map, and sends it on.

use hast_net::errno::Errno;
use hast_net::handshake::SyncSource;
use hast_net::message::{Command, Request};

use super::admission::Reply;
use super::{Save, Secondary};
use crate::counts::MapToSend;
use crate::rule::{Rule, keeps};

/// The number of all requests of an original's synchronisation.
const SYNC_SEQ: u64 = 1;

impl Secondary {
    /// Notes in the metadata what the handshake shows; true if they have to be saved before the answer.
    pub(super) fn note_suspicion(&mut self) -> bool {
        if self.ext.is_ours() || !keeps(Rule::A7) {
            return false; // the primary says what this node lacks, and when it does not any more
        }
        let suspected = self.is_about_to_be_synchronised();
        let extension = &mut self.metadata.extension;
        let before = std::mem::replace(&mut extension.possibly_behind, suspected);
        if suspected && !before {
            log::info!(
                "The primary has something that this node may lack, and its original hastd does not say when it has \
                 copied that: becoming primary is warned of until the nodes have met in step."
            );
        }
        // The boot too: what is in the map from now on, a later worker under the same boot has not lost.
        suspected != before || extension.boot != self.host.boot
    }

    fn is_about_to_be_synchronised(&self) -> bool {
        let Reply { map, source, .. } = self.reply;
        match (map, source) {
            (MapToSend::Nothing, _) | (MapToSend::Own, SyncSource::Secondary) => false,
            (MapToSend::Full, _) => true,
            (MapToSend::Own, SyncSource::Primary) => {
                let extension = &self.metadata.extension;
                let in_step = (self.metadata.localcnt, self.metadata.remotecnt)
                    == (self.hello.remotecnt, self.hello.localcnt);
                let restarted = self.host.boot == [0; 16] || extension.boot != self.host.boot;
                let lost = !self.map.is_empty() && (restarted || extension.unsure);
                !in_step || lost || !extension.stale.is_empty()
            }
        }
    }

    /// Looks at a request of the primary.
    pub(super) fn suspect_from(&mut self, request: &Request) {
        let Request { command, seq, offset, length, memsync, .. } = *request;
        let copies = command == Command::Write && seq == SYNC_SEQ && !memsync;
        if !copies || self.metadata.extension.possibly_behind || self.saving.is_some() {
            return; // the next block comes soon
        }
        let asked_for = |extent| self.map.contains(extent);
        if self.ext.is_ours()
            || !keeps(Rule::A7)
            || self.layout.check_range(offset, length).is_err()
            || self.layout.extents_of(offset, length).all(asked_for)
        {
            return;
        }
        self.metadata.extension.possibly_behind = true;
        self.save(Save::Suspicion);
    }

    pub(super) fn suspicion_saved(&mut self, result: Result<(), Errno>) {
        if let Err(error) = result {
            log::error!("Unable to write down that this node may lack something: {error}.");
        }
    }
}
