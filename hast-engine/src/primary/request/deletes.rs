//! Deletes: which of them are carried out, and which are refused at once (D1).
//!
//! A delete that is complete is as good as a write of zeros: a read of the range brings zeros from then on, on
//! either node. So it is a write of zeros in everything that `write` does, with these differences:
//!
//! 1. It is given out only if our disk leaves zeros, and the secondary's too while one is connected. Otherwise it is
//!    answered with EOPNOTSUPP before either disk or the map has been touched. An original cannot promise zeros.
//! 2. It is never complete before both nodes have carried it out, in any mode, unless this one is alone.
//! 3. A secondary that is connected and fails it has failed it for the device (`verdict`). Nobody relies on the zeros then,
//!    so there is nothing that localcnt would have to protect, and it does not rise; the range is in the sync set, as
//!    after any write that failed, until it is the same on both nodes. A client that needs zeros writes them.
//! 4. It does not wait for a secondary that is away and has the only good copy: it is advice, and who needs zeros
//!    will wait as a write.
//!
//! Alone it counts as a write does (C1(a)). The device hears that it is done and reads zeros; if this node then dies
//! and the other one, which still has the old bytes, is promoted and written, only the count says that both were
//! written apart. Without it the old bytes would come back without a word.

use hast_format::activemap::Outcome;
use hast_net::errno::Errno;

use super::{Op, Request, Stage};
use crate::primary::Primary;
use crate::ranges::Key;
use crate::rule::{Rule, keeps};
use crate::types::Deletes;
use crate::verdict::Half;

impl Primary {
    /// Whether a delete leaves zeros wherever it would be carried out now.
    pub(super) fn can_delete(&self) -> bool {
        let there = !self.link.is_up() || self.link.peer_deletes == Deletes::LeaveZeros;
        (self.host.deletes == Deletes::LeaveZeros && there) || !keeps(Rule::D1)
    }

    pub(super) fn is_delete(&self, key: Key) -> bool {
        matches!(self.requests.get(&key), Some(Request { op: Op::Delete { .. }, .. }))
    }

    /// `key`, of which the map knows, is given to nobody.
    pub(super) fn refuse_delete(&mut self, key: Key) {
        let Some(request) = self.requests.get(&key) else { return };
        self.map.finish(request.extents(), Outcome::NotIssued);
        self.set_stage(key, Stage::Queued);
        self.not_issued(key, Errno::EOPNOTSUPP);
    }

    /// `key` needs the secondary, which is away. If it was with both disks before that, something may have come of it.
    pub(super) fn refuse_to_wait(&mut self, key: Key) {
        let Some(request) = self.requests.get(&key) else { return };
        let issued = matches!(request.stage, Stage::Issued | Stage::Flushing(_));
        self.set_stage(key, Stage::Queued);
        self.not_issued(key, if issued { Errno::ENOTCONN } else { Errno::EOPNOTSUPP });
    }

    /// A node has answered `key`. One that turns out not to be able to delete after all is not asked again, or each
    /// delete would have its range synchronised: our disk by this worker, the secondary's on this connection.
    pub(super) fn learn_of_delete(&mut self, key: Key) {
        let Some(Request { op: Op::Delete { .. }, local, remote, .. }) = self.requests.get(&key) else {
            return;
        };
        let cannot = Half::Failed(Errno::EOPNOTSUPP);
        if *local == cannot {
            self.host.deletes = Deletes::Refused;
        }
        if *remote == cannot {
            self.link.peer_deletes = Deletes::Refused;
        }
    }
}
