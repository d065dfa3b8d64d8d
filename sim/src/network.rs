//! Connections between the nodes: streams of bytes that arrive late, in pieces, or never.

use core::time::Duration;

use hast_engine::Side;
use hast_net::buffer::Pool;
use hast_net::frame::{Frame, Limits, Receiver};
use hast_net::payload;

/// The number of a connection.
pub(crate) type ConnId = u64;

/// One TCP connection.
pub(crate) struct Conn {
    /// The node that opened it, the primary.
    pub(crate) primary: usize,
    pub(crate) side: Side,
    /// The secondary's supervisor has read a hello from it: what follows is for a worker.
    pub(crate) greeted: bool,
    /// Nothing that is sent from now on arrives.
    pub(crate) cut: bool,
    /// By node.
    pub(crate) ends: [End; 2],
}

/// One node's end of a connection.
pub(crate) struct End {
    pub(crate) open: bool,
    /// When the last bytes on their way to this end arrive: streams keep their order.
    pub(crate) last_arrival: Duration,
    receiver: Receiver,
    pool: Pool,
}

impl Conn {
    pub(crate) fn new(primary: usize, side: Side) -> Conn {
        Conn { primary, side, cut: false, greeted: false, ends: [End::new(), End::new()] }
    }
}

impl End {
    fn new() -> End {
        let pool = Pool::new();
        let receiver = Receiver::new(Limits::PEER, pool.clone());
        End { open: true, last_arrival: Duration::ZERO, receiver, pool }
    }

    /// The connection has ended: nothing of an incomplete message comes out, except from a mutant.
    pub(crate) fn end(&mut self) -> Option<Frame> {
        #[cfg(feature = "mutants")]
        {
            let mut frame = self.receiver.take_incomplete()?;
            payload::decode(&mut frame, 1 << 20, &self.pool).ok()?;
            Some(frame)
        }
        #[cfg(not(feature = "mutants"))]
        None
    }

    /// Takes in what has arrived; gives the frames that are whole.
    pub(crate) fn feed(&mut self, mut bytes: &[u8]) -> Result<Vec<Frame>, String> {
        let mut frames = Vec::new();
        while !bytes.is_empty() {
            let space = self.receiver.space();
            let count = space.len().min(bytes.len());
            let (now, later) = bytes.split_at(count);
            if let Some(space) = space.get_mut(..count) {
                space.copy_from_slice(now);
            }
            bytes = later;
            self.receiver.advance(count).map_err(|error| error.to_string())?;
            while let Some(mut frame) = self.receiver.next_frame() {
                payload::decode(&mut frame, 1 << 20, &self.pool).map_err(|error| error.to_string())?;
                frames.push(frame);
            }
        }
        Ok(frames)
    }
}
