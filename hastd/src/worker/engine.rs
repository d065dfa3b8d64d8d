//! The engine of either role behind one face, so that the reactor need not care which it drives.

use std::time::Duration;

use hast_engine::{Action, DiskResult, Op, OpId, Primary, RequestId, Secondary, Settings, Side};
use hast_format::metadata::Role;
use hast_net::control::WorkerStatus;
use hast_net::frame::{Frame, Limits};

/// A resource's state machine. What a role does not know, it ignores.
pub(super) enum Engine {
    Primary(Box<Primary>),
    Secondary(Box<Secondary>),
}

impl Engine {
    pub(super) fn handle_request(&mut self, now: Duration, id: RequestId, op: Op) {
        if let Engine::Primary(primary) = self {
            primary.handle_request(now, id, op);
        }
    }

    pub(super) fn handle_disk(&mut self, now: Duration, id: OpId, result: DiskResult) {
        match self {
            Engine::Primary(primary) => primary.handle_disk(now, id, result),
            Engine::Secondary(secondary) => secondary.handle_disk(now, id, result),
        }
    }

    pub(super) fn handle_connected(&mut self, now: Duration, side: Side) {
        if let Engine::Primary(primary) = self {
            primary.handle_connected(now, side);
        }
    }

    pub(super) fn handle_connect_failed(&mut self, now: Duration, side: Side, reason: &str) {
        if let Engine::Primary(primary) = self {
            primary.handle_connect_failed(now, side, reason);
        }
    }

    pub(super) fn handle_frame(&mut self, now: Duration, side: Side, frame: Frame) {
        match self {
            Engine::Primary(primary) => primary.handle_frame(now, side, frame),
            Engine::Secondary(secondary) => secondary.handle_frame(now, frame),
        }
    }

    /// Bytes have come from the peer, be they a whole frame or not.
    pub(super) fn handle_heard(&mut self, now: Duration) {
        match self {
            Engine::Primary(primary) => primary.handle_heard(now),
            Engine::Secondary(secondary) => secondary.handle_heard(now),
        }
    }

    /// Nothing is read from the peer just now. What a primary receives it has asked for.
    pub(super) fn handle_deaf(&mut self, now: Duration) {
        if let Engine::Secondary(secondary) = self {
            secondary.handle_deaf(now);
        }
    }

    pub(super) fn handle_lost(&mut self, now: Duration, reason: &str) {
        match self {
            Engine::Primary(primary) => primary.handle_lost(now, reason),
            Engine::Secondary(secondary) => secondary.handle_lost(now, reason),
        }
    }

    pub(super) fn handle_timeout(&mut self, now: Duration) {
        match self {
            Engine::Primary(primary) => primary.handle_timeout(now),
            Engine::Secondary(secondary) => secondary.handle_timeout(now),
        }
    }

    pub(super) fn handle_reload(&mut self, now: Duration, settings: Settings, reconnect: bool) {
        if let Engine::Primary(primary) = self {
            primary.handle_reload(now, settings, reconnect);
        }
    }

    pub(super) fn handle_stop(&mut self, now: Duration) {
        match self {
            Engine::Primary(primary) => primary.handle_stop(now),
            Engine::Secondary(secondary) => secondary.handle_stop(now),
        }
    }

    pub(super) fn poll_timeout(&self) -> Option<Duration> {
        match self {
            Engine::Primary(primary) => primary.poll_timeout(),
            Engine::Secondary(secondary) => secondary.poll_timeout(),
        }
    }

    pub(super) fn poll_action(&mut self) -> Option<Action> {
        match self {
            Engine::Primary(primary) => primary.poll_action(),
            Engine::Secondary(secondary) => secondary.poll_action(),
        }
    }

    pub(super) fn status(&self) -> WorkerStatus {
        match self {
            Engine::Primary(primary) => primary.status(),
            Engine::Secondary(secondary) => secondary.status(),
        }
    }

    /// Whether what a primary starts from is durable.
    pub(super) fn has_begun(&self) -> bool {
        matches!(self, Engine::Primary(primary) if primary.has_begun())
    }

    /// Whether a primary has met the other node, or has tried in vain, and carries requests out.
    pub(super) fn is_serving(&self) -> bool {
        matches!(self, Engine::Primary(primary) if primary.is_serving())
    }

    /// Whether a primary's data is out of date, and the other node's is right.
    pub(super) fn is_target(&self) -> bool {
        matches!(self, Engine::Primary(primary) if primary.is_target())
    }

    /// Whether what the local disk holds of a range, or that it holds nothing, is what the device holds.
    pub(super) fn reads_here(&self, offset: u64, length: u64) -> bool {
        matches!(self, Engine::Primary(primary) if primary.reads_here(offset, length))
    }

    /// Whether the device may hand over another request.
    pub(super) fn wants_requests(&self) -> bool {
        match self {
            Engine::Primary(primary) => primary.wants_requests(),
            Engine::Secondary(_) => false,
        }
    }

    /// Whether another frame may be taken from the first connection.
    pub(super) fn wants_input(&self) -> bool {
        match self {
            // What a primary receives it has asked for.
            Engine::Primary(_) => true,
            Engine::Secondary(secondary) => secondary.wants_input(),
        }
    }

    /// The longest payload that may come on the first connection, in bytes.
    pub(super) fn payload_limit(&self) -> u32 {
        match self {
            Engine::Primary(primary) => primary.payload_limit(),
            Engine::Secondary(_) => Limits::PEER.payload,
        }
    }

    pub(super) fn is_primary(&self) -> bool {
        self.role() == Role::Primary
    }

    pub(super) fn role(&self) -> Role {
        match self {
            Engine::Primary(_) => Role::Primary,
            Engine::Secondary(_) => Role::Secondary,
        }
    }
}
