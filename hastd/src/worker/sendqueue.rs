//! What waits to be sent on one socket: pieces of memory that go out in order, many in one system call,
//! without being copied together first.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::mem;
use std::ops::Deref;

use hast_net::buffer::Buffer;
use socket2::Socket;

/// Pieces handed to the system in one call.
const VECTOR: usize = 64;
/// Vectors kept for the next headers.
const SPARES: usize = 256;

/// Something to send: bytes of our own, or a payload shared with whoever else uses it.
pub(super) enum Piece {
    Bytes(Vec<u8>),
    Data(Buffer),
}

impl Deref for Piece {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Piece::Bytes(bytes) => bytes,
            Piece::Data(data) => data,
        }
    }
}

/// The pieces that wait, oldest first.
#[derive(Default)]
pub(super) struct SendQueue {
    pieces: VecDeque<Piece>,
    /// Bytes of the first piece that have been sent.
    sent_of_first: usize,
    bytes: usize,
    /// Empty, with the memory of headers that have been sent.
    spares: Vec<Vec<u8>>,
}

impl SendQueue {
    /// Adds a piece at the end.
    pub(super) fn push(&mut self, piece: Piece) {
        if !piece.is_empty() {
            self.bytes += piece.len();
            self.pieces.push_back(piece);
        }
    }

    /// An empty vector for a header; it comes back when that has been sent.
    pub(super) fn spare(&mut self) -> Vec<u8> {
        self.spares.pop().unwrap_or_default()
    }

    /// Bytes that wait.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether nothing waits.
    pub(super) fn is_empty(&self) -> bool {
        self.pieces.is_empty()
    }

    /// Sends as much as the socket takes without blocking; returns how many bytes that was.
    pub(super) fn transmit(&mut self, socket: &Socket) -> io::Result<usize> {
        let mut total = 0;
        while !self.pieces.is_empty() {
            let mut skip = self.sent_of_first;
            let mut slices = [IoSlice::new(&[]); VECTOR];
            for (slice, piece) in slices.iter_mut().zip(&self.pieces) {
                *slice = IoSlice::new(piece.get(mem::take(&mut skip)..).unwrap_or_default());
            }
            let filled = slices.get(..self.pieces.len()).unwrap_or(&slices);
            match socket.send_vectored_with_flags(filled, libc::MSG_NOSIGNAL) {
                Ok(sent) => {
                    total += sent;
                    self.sent(sent);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(total)
    }

    /// Forgets `sent` bytes from the front.
    fn sent(&mut self, sent: usize) {
        self.bytes = self.bytes.saturating_sub(sent);
        self.sent_of_first += sent;
        while let Some(first) = self.pieces.front() {
            let length = first.len();
            if self.sent_of_first < length {
                break;
            }
            self.sent_of_first -= length;
            if let Some(Piece::Bytes(mut bytes)) = self.pieces.pop_front()
                && self.spares.len() < SPARES
            {
                bytes.clear();
                self.spares.push(bytes);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use socket2::{Domain, Type};
    use std::io::Read;

    #[test]
    fn pieces_of_any_size_arrive_in_order_through_a_full_socket() {
        let (ours, theirs) = Socket::pair(Domain::UNIX, Type::STREAM, None).unwrap();
        ours.set_nonblocking(true).unwrap();
        let mut queue = SendQueue::default();
        let mut expected = Vec::new();
        for i in 0_usize..500 {
            let bytes: Vec<u8> = (0..(i * 37) % 5000).map(|j| (i + j) as u8).collect();
            expected.extend_from_slice(&bytes);
            queue.push(if i % 2 == 0 { Piece::Bytes(bytes) } else { Piece::Data(Buffer::from(bytes)) });
        }
        assert_eq!(queue.bytes(), expected.len());
        let mut received = Vec::new();
        let mut room = vec![0; 7777];
        let mut blocked = 0;
        while received.len() < expected.len() {
            queue.transmit(&ours).unwrap();
            blocked += usize::from(!queue.is_empty());
            let n = (&theirs).read(&mut room).unwrap();
            received.extend_from_slice(&room[..n]);
        }
        assert!(queue.is_empty() && queue.bytes() == 0);
        assert!(blocked > 0, "the socket was never full: the test shows nothing");
        assert!(received == expected);
    }

    #[test]
    fn a_peer_that_is_gone_is_an_error_and_no_signal() {
        let (ours, theirs) = Socket::pair(Domain::UNIX, Type::STREAM, None).unwrap();
        drop(theirs);
        let mut queue = SendQueue::default();
        queue.push(Piece::Bytes(vec![1]));
        assert_eq!(queue.transmit(&ours).unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    }
}
