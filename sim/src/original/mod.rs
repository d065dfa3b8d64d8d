//! A model of the original: what the reference hastd does with messages and disk, habits of defects.md included.
//!
//! It plays one node of a mixed pair. It speaks through the same wire messages as ours, without `hast_ext`, and
//! keeps its state where the original does: in the list of the metadata block, which it rewrites as a whole
//! (the extension area becomes zeros), and in the map. It knows none of our rules, on purpose:
//!
//! | habit | where |
//! |---|---|
//! | L1, L2 a write whose remote half was lost or failed is cleared | `primary::link`, `lose`; `primary`, `advance` |
//! | L3 a local failure is forgotten if the other node has the write | `primary`, `advance` |
//! | L4 deletes leave no trace in the map | `primary`, `issue` |
//! | L5 a period is counted only if localcnt is the secondary's last known remotecnt, 0 after a restart | `primary`, `tell` |
//! | L6 a node that is being brought up to date does not know it | everywhere |
//! | L7 metadata are never flushed, and the counts equalised backwards | `block`; `primary::link`, `synchronised` |
//! | L9 a flush succeeds when either node did | `primary`, `advance` |
//! | L10 bits are cleared without a flush | `primary`, `write_complete` |
//! | L11 a failed map write or flush is ignored | `primary`, `write_map` |
//! | L12 the map is cleared by the provider's size | `secondary` |
//! | L14 what was `received` is dropped with the connection, or the role | `secondary` |
//! | L15 a block that cannot be copied is skipped | `primary::link`, `kick_sync` |
//! | L16 `received` is enough, whatever the local disk says | `primary`, `advance` |
//! | L18 after a restart a primary has forgotten that it is out of date | `primary` |
//! | L19 the full map of a first contact is in memory only | `secondary` |
//! | L20 a node written alone before its first handshake looks fresh | `secondary` |
//!
//! Left out are habits that stop a history rather than lose data (T2: reads during a synchronisation from the
//! secondary are answered here), the map inside the data area (L12 needs a larger provider; mixed scenes have
//! none), short reads (L13) and torn metadata (L8).

mod primary;
mod secondary;

use std::collections::VecDeque;

use hast_engine::{Action, DiskOp, OpId};
use hast_format::extension::Extension;
use hast_format::metadata::{Metadata, Role};
use hast_net::buffer::Buffer;

pub(crate) use primary::Primary;
pub(crate) use secondary::Secondary;

/// Carries out disk operations one after the other, as a thread with blocking calls does.
#[derive(Debug)]
struct DiskThread<W> {
    waiting: VecDeque<(W, DiskOp)>,
    running: Option<(OpId, W)>,
}

impl<W> DiskThread<W> {
    fn new() -> DiskThread<W> {
        DiskThread { waiting: VecDeque::new(), running: None }
    }

    fn queue(&mut self, why: W, op: DiskOp) {
        self.waiting.push_back((why, op));
    }

    /// Begins the next one if none is under way.
    fn kick(&mut self, ids: &mut u64, actions: &mut VecDeque<Action>) {
        if self.running.is_none()
            && let Some((why, op)) = self.waiting.pop_front()
        {
            *ids += 1;
            self.running = Some((OpId(*ids), why));
            actions.push_back(Action::Disk { id: OpId(*ids), op });
        }
    }

    /// If `id` is what this thread waits for, gives back why.
    fn ended(&mut self, id: OpId) -> Option<W> {
        self.running.take_if(|(running, _)| *running == id).map(|(_, why)| why)
    }
}

/// The write that `metadata` is saved with: all 4096 bytes, the list and zeros.
fn block(metadata: &mut Metadata, role: Role) -> DiskOp {
    metadata.prevrole = role;
    metadata.extension = Extension::default();
    DiskOp::Write { offset: 0, data: Buffer::from(metadata.encode().to_vec()) }
}
