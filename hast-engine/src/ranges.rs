//! Who may touch which bytes now: overlapping requests in the order they came, everything else at once.

use core::ops::Range;

/// A waiting or running piece of work; numbered by its owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(pub u64);

/// Range locks, first come first served. Readers of the same bytes share; writers exclude. A request waits
/// only for earlier ones that overlap it, so nothing starves and nothing unrelated waits (defects.md S1).
#[derive(Clone, Debug, Default)]
pub struct RangeQueue {
    /// In order of arrival.
    entries: Vec<Entry>,
}

#[derive(Clone, Debug)]
struct Entry {
    key: Key,
    range: Range<u64>,
    shared: bool,
    blockers: u32,
}

impl Entry {
    fn conflicts(&self, other: &Entry) -> bool {
        self.range.start < other.range.end
            && other.range.start < self.range.end
            && !(self.shared && other.shared)
    }
}

impl RangeQueue {
    /// Nobody waits, nobody runs.
    #[must_use]
    pub fn new() -> RangeQueue {
        RangeQueue::default()
    }

    /// Queues `key` for `range`, shared or alone; true if it may run at once.
    pub fn insert(&mut self, key: Key, range: Range<u64>, shared: bool) -> bool {
        let mut entry = Entry { key, range, shared, blockers: 0 };
        let blockers = self.entries.iter().filter(|earlier| earlier.conflicts(&entry)).count();
        entry.blockers = u32::try_from(blockers).unwrap_or(u32::MAX);
        self.entries.push(entry);
        blockers == 0
    }

    /// `key` has ended, or does not want to run any more; appends those that may run now to `ready`.
    pub fn release(&mut self, key: Key, ready: &mut Vec<Key>) {
        let Some(index) = self.entries.iter().position(|entry| entry.key == key) else { return };
        let gone = self.entries.remove(index);
        for later in self.entries.iter_mut().skip(index) {
            if gone.conflicts(later) {
                later.blockers = later.blockers.saturating_sub(1);
                if later.blockers == 0 {
                    ready.push(later.key);
                }
            }
        }
    }

    /// How many are waiting or running.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether nobody is waiting or running.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn overlapping_writes_run_one_after_the_other() {
        let mut queue = RangeQueue::new();
        let mut ready = Vec::new();
        assert!(queue.insert(Key(1), 0..10, false));
        assert!(!queue.insert(Key(2), 5..15, false));
        assert!(!queue.insert(Key(3), 12..20, false), "behind 2, which has not run");
        assert!(queue.insert(Key(4), 20..30, false));
        queue.release(Key(1), &mut ready);
        assert_eq!(ready, [Key(2)]);
        queue.release(Key(2), &mut ready);
        assert_eq!(ready, [Key(2), Key(3)]);
    }

    #[test]
    fn readers_share_and_wait_for_earlier_writers_only() {
        let mut queue = RangeQueue::new();
        let mut ready = Vec::new();
        assert!(queue.insert(Key(1), 0..10, true));
        assert!(queue.insert(Key(2), 0..10, true));
        assert!(!queue.insert(Key(3), 0..10, false));
        assert!(!queue.insert(Key(4), 0..10, true));
        queue.release(Key(1), &mut ready);
        assert!(ready.is_empty());
        queue.release(Key(2), &mut ready);
        assert_eq!(ready, [Key(3)]);
        queue.release(Key(3), &mut ready);
        assert_eq!(ready, [Key(3), Key(4)]);
        queue.release(Key(4), &mut ready);
        assert!(queue.is_empty());
    }

    proptest! {
        /// Never two conflicting entries running; first come first served among conflicting ones; everybody
        /// gets to run once those before have ended.
        #[test]
        fn excludes_orders_and_never_starves(
            wanted in proptest::collection::vec((0u64..32, 1u64..8, any::<bool>()), 1..40),
            choices in proptest::collection::vec(any::<usize>(), 40),
        ) {
            let mut queue = RangeQueue::new();
            let mut running: Vec<usize> = Vec::new();
            let mut ended: Vec<usize> = Vec::new();
            let conflict = |a: usize, b: usize| {
                let ((s, l, r), (t, m, q)) = (wanted[a], wanted[b]);
                s < t + m && t < s + l && !(r && q)
            };
            for (index, &(start, len, shared)) in wanted.iter().enumerate() {
                if queue.insert(Key(index as u64), start..start + len, shared) { running.push(index); }
            }
            for choice in choices {
                for (n, &a) in running.iter().enumerate() {
                    for &b in &running[..n] { prop_assert!(!conflict(a, b)); }
                    for earlier in 0..a {
                        prop_assert!(!conflict(earlier, a) || ended.contains(&earlier), "{a} overtook {earlier}");
                    }
                }
                if running.is_empty() { break; }
                let gone = running.swap_remove(choice % running.len());
                ended.push(gone);
                let mut ready = Vec::new();
                queue.release(Key(gone as u64), &mut ready);
                running.extend(ready.into_iter().map(|key| key.0 as usize));
            }
            prop_assert_eq!(ended.len(), wanted.len());
        }
    }
}
