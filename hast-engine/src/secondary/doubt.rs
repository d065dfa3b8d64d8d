//! A secondary that cannot be sure that it still has what it told its primary it has (durability.md B1): a flush failed
//! and may have dropped it, or the disk refused a write that was received.
//!
//! It writes that down: it is marked as out of date, so that it does not become primary unforced, and it does not say
//! which boot of its system this is, so that the primary takes it for a node that has restarted. Once the primary
//! says that this node is up to date, the doubt is over.

use hast_format::extension::Mark;
use hast_net::errno::Errno;

use super::{Phase, Save, Secondary};
use crate::rule::{Rule, keeps};

/// How far the note of a doubt has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Doubt {
    /// Nothing is in doubt, or what is has been written down.
    #[default]
    Settled,
    /// It has to be written down.
    Arisen,
    /// It is being written down.
    Saving,
    /// It could not be: the supervisor remembers it, which sees how this worker ends.
    Unsaved,
}

impl Secondary {
    /// Something that the primary relies on may be gone: that is written down as soon as the metadata can be.
    pub(super) fn doubt(&mut self) {
        if !keeps(Rule::B1) || self.metadata.extension.unsure {
            return;
        }
        self.metadata.extension.unsure = true;
        // An original would never say that this node is up to date again.
        if self.ext.is_ours() {
            self.mark_as_behind();
        }
        log::error!(
            "The disk may have lost what this node told its primary it has: it is out of date until the next \
                     synchronization."
        );
        self.doubt = Doubt::Arisen;
    }

    /// Marks this node as out of date, in memory; since when stays what it is if it is marked already.
    pub(super) fn mark_as_behind(&mut self) {
        let since = self.host.wall.saturating_add(self.now.as_secs());
        let by = self.peer.clone();
        self.metadata.extension.mark.get_or_insert(Mark { since, by });
    }

    /// Writes a doubt down, if nothing else is being written.
    pub(super) fn kick_doubt(&mut self) {
        if self.doubt == Doubt::Arisen && self.saving.is_none() && self.marking.is_none() {
            self.doubt = Doubt::Saving;
            self.save(Save::Doubt);
        }
    }

    /// The doubt is on disk, or could not be written.
    pub(super) fn doubt_saved(&mut self, result: Result<(), Errno>) {
        self.doubt = Doubt::Settled;
        if let Err(error) = result {
            log::error!("Unable to write metadata: {error}.");
            self.doubt = Doubt::Unsaved;
        }
        if self.phase == Phase::Admitting {
            return self.admit();
        }
        self.next_mark();
    }

    /// At the end of the worker, whose disk may be well by now: a doubt that could not be written down is once more. True
    /// if that has to be waited for.
    pub(super) fn writes_doubt_again(&mut self) -> bool {
        if self.doubt != Doubt::Unsaved || self.doubted_again {
            return false;
        }
        self.doubted_again = true;
        self.doubt = Doubt::Arisen;
        self.kick_doubt();
        true
    }

    /// Whether something may be gone of which the primary has not heard: its next flush fails.
    pub(super) fn doubts_since_the_flush(&self) -> bool {
        keeps(Rule::B1)
            && self.metadata.extension.unsure
            && (self.has_dropped() || self.flush_failed.is_some())
    }

    /// Which boot of the system this is, as the primary is told.
    pub(super) fn boot_to_say(&self) -> [u8; 16] {
        if self.metadata.extension.unsure { [0; 16] } else { self.host.boot }
    }
}
