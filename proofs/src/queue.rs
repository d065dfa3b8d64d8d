//! The range queue: never two overlapping writes in flight at once, first come first served, no starvation.

use hast_engine::{Key, RangeQueue};

use crate::source::{Case, Source};

/// The code under proof.
pub trait Subject: Default {
    /// Queues a request for `start..end`; true if it may run at once.
    fn insert(&mut self, key: u64, start: u64, end: u64, shared: bool) -> bool;
    /// A request has ended; appends those that may run now.
    fn release(&mut self, key: u64, ready: &mut Vec<u64>);
    /// How many wait or run.
    fn len(&self) -> usize;
    /// Whether nobody does.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// The code as it ships.
impl Subject for RangeQueue {
    fn insert(&mut self, key: u64, start: u64, end: u64, shared: bool) -> bool {
        RangeQueue::insert(self, Key(key), start..end, shared)
    }

    fn release(&mut self, key: u64, ready: &mut Vec<u64>) {
        let mut keys = Vec::new();
        RangeQueue::release(self, Key(key), &mut keys);
        ready.extend(keys.into_iter().map(|key| key.0));
    }

    fn len(&self) -> usize {
        RangeQueue::len(self)
    }
}

/// A request that has come and not ended, as the rules see it.
#[derive(Clone, Copy, Debug)]
struct Request {
    key: u64,
    start: u64,
    end: u64,
    shared: bool,
    runs: bool,
}

impl Request {
    /// Overlap, and one of them writes.
    fn excludes(&self, other: &Request) -> bool {
        let overlap = (self.start..self.end).any(|byte| (other.start..other.end).contains(&byte));
        overlap && !(self.shared && other.shared)
    }
}

/// Up to `steps` requests that come, end, or give up while they wait, in any order; then all end, in any order.
pub fn queue<Q: Subject>(source: &mut impl Source, steps: u64) -> Case {
    let mut queue = Q::default();
    let mut live: Vec<Request> = Vec::new();
    for step in 0..steps {
        let choice = source.below(2 + live.len() as u64);
        if choice < 2 {
            // A write, or a read of the same bytes. The queue sorts by lengths between powers of two.
            let shared = choice == 1;
            let start = source.number(0..=40, &[0, 1, 2]);
            let end = start + source.number(1..=40, &[1, 2, 4]);
            let mut request = Request { key: step, start, end, shared, runs: false };
            request.runs = !live.iter().any(|earlier| earlier.excludes(&request));
            assert_eq!(Q::insert(&mut queue, step, start, end, shared), request.runs, "{request:?}");
            live.push(request);
        } else {
            end(&mut queue, &mut live, choice as usize - 2);
        }
        check(&queue, &live);
    }
    // Nobody starves: as long as anybody waits somebody runs, and when all have ended that ran, all have run.
    while !live.is_empty() {
        let running: Vec<usize> = (0..live.len()).filter(|index| live[*index].runs).collect();
        assert!(!running.is_empty(), "all wait: {live:?}");
        let last = running.len() > 1 && source.bool();
        let next = if last { running[running.len() - 1] } else { running[0] };
        end(&mut queue, &mut live, next);
        check(&queue, &live);
    }
    Ok(())
}

/// One ends: exactly those may run now that no earlier one excludes any more, in the order in which they came.
fn end<Q: Subject>(queue: &mut Q, live: &mut Vec<Request>, index: usize) {
    let gone = live.remove(index);
    let mut ready = Vec::new();
    queue.release(gone.key, &mut ready);
    let mut expected = Vec::new();
    for index in 0..live.len() {
        let request = live[index];
        if !request.runs && !live[..index].iter().any(|earlier| earlier.excludes(&request)) {
            live[index].runs = true;
            expected.push(request.key);
        }
    }
    assert_eq!(ready, expected, "after {gone:?}: {live:?}");
}

/// What holds at any time.
fn check<Q: Subject>(queue: &Q, live: &[Request]) {
    assert_eq!(queue.len(), live.len());
    assert_eq!(queue.is_empty(), live.is_empty());
    for (index, request) in live.iter().enumerate() {
        for earlier in &live[..index] {
            if request.excludes(earlier) {
                assert!(!(request.runs && earlier.runs), "both in flight: {earlier:?}, {request:?}");
                assert!(!request.runs, "{request:?} has overtaken {earlier:?}");
            }
        }
    }
}
