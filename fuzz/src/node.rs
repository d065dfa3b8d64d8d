//! A node whose engine is fuzzed: its engine, its disk and its clock, and how a session drives them.

use std::time::Duration;

use hast_engine::{DiskResult, OpId, Primary, Secondary};

use crate::messages;
use crate::provider::Provider;
use crate::source::Source;

/// Time ends here, where sums of times are still far from overflowing.
const LATEST: Duration = Duration::from_secs(1 << 40);
/// Operations that may follow one from another before the disk rests.
const OPERATIONS: u32 = 100_000;
/// Deadlines that may be due at the same time.
const DUE: u32 = 100;

/// What both engines are told.
pub trait Engine {
    /// A disk operation has ended.
    fn handle_disk(&mut self, now: Duration, id: OpId, result: DiskResult);
    /// Time has passed.
    fn handle_timeout(&mut self, now: Duration);
    /// When it wants to be told of the time.
    fn poll_timeout(&self) -> Option<Duration>;
}

/// The engines' own methods under the trait's names.
macro_rules! engine {
    ($($Engine:ty),+) => {$(
        impl Engine for $Engine {
            fn handle_disk(&mut self, now: Duration, id: OpId, result: DiskResult) {
                self.handle_disk(now, id, result);
            }

            fn handle_timeout(&mut self, now: Duration) {
                self.handle_timeout(now);
            }

            fn poll_timeout(&self) -> Option<Duration> {
                self.poll_timeout()
            }
        }
    )+};
}

engine!(Primary, Secondary);

/// An engine, its disk and its clock.
#[derive(Debug)]
pub struct Node<E> {
    /// The engine as it ships.
    pub engine: E,
    /// Its disk.
    pub provider: Provider,
    /// What its clock says.
    pub now: Duration,
    /// Its worker has ended.
    pub over: bool,
}

impl<E: Engine> Node<E> {
    /// A node that begins now.
    pub fn new(engine: E, provider: Provider) -> Node<E> {
        Node { engine, provider, now: Duration::ZERO, over: false }
    }

    /// When something is due; now, if nothing is.
    pub fn due(&self) -> Duration {
        self.engine.poll_timeout().unwrap_or(self.now).max(self.now)
    }

    /// One of the pending operations ends.
    fn end(&mut self, index: usize, fails: Option<hast_net::errno::Errno>) {
        let (id, result) = self.provider.end(index, fails);
        crate::trace(&(id, &result));
        self.engine.handle_disk(self.now, id, result);
    }
}

/// A session of one node with an arbitrary peer.
pub trait Session {
    /// Which engine it is about.
    type Engine: Engine;

    /// The node.
    fn node(&mut self) -> &mut Node<Self::Engine>;

    /// Carries out what the engine asks for.
    fn drain(&mut self);

    /// Gives the engine what it has not had room for.
    fn hand_over(&mut self) {}

    /// One disk operation ends, mostly well.
    fn end_one(&mut self, source: &mut Source<'_>) {
        let node = self.node();
        let pending = node.provider.pending();
        if pending == 0 {
            return;
        }
        let index = usize::from(source.byte()) % pending;
        let fails = source.one_in(16).then(|| messages::errno(source));
        node.end(index, fails);
    }

    /// Every operation ends well, and those that follow from it.
    ///
    /// # Panics
    /// The disk is asked for more without end.
    fn end_all(&mut self) {
        for _ in 0..OPERATIONS {
            self.drain();
            if self.node().over {
                return;
            }
            self.hand_over();
            if self.node().provider.pending() == 0 {
                return;
            }
            self.node().end(0, None);
        }
        panic!("the disk is asked for more without end");
    }

    /// Time passes; the engine is told when it wants to be.
    ///
    /// # Panics
    /// The engine is due all the time.
    fn pass_time(&mut self, by: Duration) {
        let node = self.node();
        node.now = node.now.saturating_add(by).min(LATEST);
        for _ in 0..DUE {
            let node = self.node();
            if node.over || node.engine.poll_timeout().is_none_or(|due| due > node.now) {
                return;
            }
            node.engine.handle_timeout(node.now);
            self.drain();
        }
        panic!("the engine is due all the time");
    }
}
