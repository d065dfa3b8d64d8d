//! Who may touch which bytes now: overlapping requests in the order they came, everything else at once.

use core::ops::Range;
use std::collections::BTreeMap;

/// A waiting or running piece of work; numbered by its owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(pub u64);

/// Range locks, first come first served. Readers of the same bytes share; writers exclude. A request waits
/// only for earlier ones that overlap it, so nothing starves and nothing unrelated waits (defects.md T1).
///
/// Inserting and releasing cost a few look-ups and one step for each entry that overlaps, however many others
/// there are.
#[derive(Clone, Debug, Default)]
pub struct RangeQueue {
    entries: BTreeMap<Key, Entry>,
    /// The entries by length and place: whoever overlaps a range begins in it, or at most the longest length
    /// of its class before it.
    classes: BTreeMap<u32, BTreeMap<Place, Key>>,
    arrivals: u64,
}

/// The first byte of a range, and when it came.
type Place = (u64, u64);

#[derive(Clone, Debug)]
struct Entry {
    range: Range<u64>,
    shared: bool,
    arrival: u64,
    /// Earlier entries that overlap, unless both only read.
    blockers: usize,
}

impl Entry {
    fn conflicts(&self, other: &Entry) -> bool {
        self.range.start < other.range.end
            && other.range.start < self.range.end
            && !(self.shared && other.shared)
    }

    fn place(&self) -> Place {
        (self.range.start, self.arrival)
    }

    /// Entries of class `n` are shorter than 2^n bytes, and no shorter than half of that.
    fn class(&self) -> u32 {
        u64::BITS - self.range.end.saturating_sub(self.range.start).leading_zeros()
    }
}

impl RangeQueue {
    /// Nobody waits, nobody runs.
    #[must_use]
    pub fn new() -> RangeQueue {
        RangeQueue::default()
    }

    /// Queues `key`, which is in the queue only once, for `range`, shared or alone; true if it may run at once.
    pub fn insert(&mut self, key: Key, range: Range<u64>, shared: bool) -> bool {
        self.arrivals = self.arrivals.saturating_add(1);
        let mut entry = Entry { range, shared, arrival: self.arrivals, blockers: 0 };
        entry.blockers = self.conflicting(&entry).count();
        let free = entry.blockers == 0;
        self.classes.entry(entry.class()).or_default().insert(entry.place(), key);
        self.entries.insert(key, entry);
        free
    }

    /// `key` has ended, or does not want to run any more; appends those that may run now to `ready`, in the
    /// order they came.
    pub fn release(&mut self, key: Key, ready: &mut Vec<Key>) {
        let Some(gone) = self.entries.remove(&key) else { return };
        if let Some(class) = self.classes.get_mut(&gone.class()) {
            class.remove(&gone.place()); // the class stays: there are few, and it will be needed again
        }
        let mut later: Vec<(u64, Key)> =
            self.conflicting(&gone).filter(|(arrival, _)| *arrival > gone.arrival).collect();
        later.sort_unstable();
        for (_, key) in later {
            let Some(entry) = self.entries.get_mut(&key) else { continue };
            entry.blockers = entry.blockers.saturating_sub(1);
            if entry.blockers == 0 {
                ready.push(key);
            }
        }
    }

    /// When those came that conflict with `entry`, and their keys.
    fn conflicting<'a>(&'a self, entry: &'a Entry) -> impl Iterator<Item = (u64, Key)> + 'a {
        self.classes.iter().flat_map(move |(class, entries)| {
            let longest = 1_u64.checked_shl(*class).map_or(u64::MAX, |end| end - 1);
            let first = entry.range.start.saturating_sub(longest);
            entries
                .range((first, 0)..(entry.range.end, 0))
                .filter(|(_, key)| self.entries.get(key).is_some_and(|other| other.conflicts(entry)))
                .map(|((_, arrival), key)| (*arrival, *key))
        })
    }

    /// Whether somebody waits for a byte of `range`, or works on it, other than a reader.
    #[must_use]
    pub fn is_written(&self, range: Range<u64>) -> bool {
        let reader = Entry { range, shared: true, arrival: u64::MAX, blockers: 0 };
        self.conflicting(&reader).next().is_some()
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

    /// T1.
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

    /// Whoever is found only because others of about its length could overlap.
    #[test]
    fn neighbours_of_other_lengths_are_no_matter() {
        let mut queue = RangeQueue::new();
        assert!(queue.insert(Key(1), 0..4, false));
        assert!(queue.insert(Key(2), 6..7, false), "an entry of up to seven bytes could have reached it");
        assert!(queue.insert(Key(3), 4..6, false));
        assert!(!queue.insert(Key(4), 3..5, false));
        assert!(queue.len() == 4 && !queue.is_empty());
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
