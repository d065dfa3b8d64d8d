//! How many blocks a synchronisation has under way: as many as the link and the disks carry, and no queue of them
//! that users would have to stand in.
//!
//! What a block takes says which it is. On a long link every block takes as long as the shortest does, however many
//! there are: more of them fill it. As soon as they take twice as long they wait for each other, or for users; and
//! beside users, who would have to wait as well, as soon as they take a little longer. Users also have a turn after
//! each block, and shorter blocks in the way.

use core::time::Duration;

/// At a time in the beginning, and at least while nobody else wants anything: enough to keep a disk busy.
const LEAST: usize = 8;
/// At most: with blocks of 128 KiB, 60 MiB. That fills a link of 1 GB/s with a round trip of 50 ms, and the connection
/// holds it.
const MOST: usize = 480;
/// At most at an original, which holds so many requests in all (256) that users' have to fit beside them.
pub(super) const MOST_OF_ORIGINAL: usize = 32;
/// What a block may take beyond twice the shortest: less than this is no queue but the noise of two hosts.
const NOISE: Duration = Duration::from_micros(500);
/// Users who have asked for something so long ago are gone.
pub(super) const USERS: Duration = Duration::from_millis(100);
/// Bytes of a block beside users, at most: while one is sent, read or written nothing else is.
pub(super) const SHARED_BLOCK: u32 = 32 << 10;
/// The same for a block beside users: the queue that blocks make is one that they stand in.
const NOISE_BESIDE_USERS: Duration = Duration::from_micros(50);
/// After this time all is measured anew: the way may have become longer, and who only ever sees a queue does not know
/// how long it is without.
const MEMORY: Duration = Duration::from_secs(10);

/// The window of a synchronisation.
#[derive(Debug)]
pub(super) struct Window {
    blocks: usize,
    /// The least that a block took, alone and beside users, where it is shorter.
    shortest: [Duration; 2],
    /// Since when; before the first block nobody knows.
    since: Option<Duration>,
    /// No queue has been noticed yet: each round's window is four times the last one, or twice.
    rising: bool,
    /// Blocks that have ended since the window last changed.
    ended: usize,
    /// Blocks that are still to end of a larger window, and tell nothing of this one.
    old: usize,
}

impl Window {
    /// Of a new session.
    pub(super) fn new() -> Window {
        Window { blocks: LEAST, shortest: [Duration::MAX; 2], since: None, rising: true, ended: 0, old: 0 }
    }

    /// How many blocks may be under way.
    pub(super) fn blocks(&self) -> usize {
        self.blocks
    }

    /// Beside users: how long a block that took so long keeps its place after it has ended. One at a time leaves them
    /// half of the time; many, which a long link takes without a queue, leave them less.
    pub(super) fn pause(&self, took: Duration) -> Duration {
        (took / u32::try_from(self.blocks).unwrap_or(u32::MAX).max(1)).min(USERS)
    }

    /// A block has been copied, and took so long.
    pub(super) fn copied(&mut self, now: Duration, took: Duration, beside_users: bool) {
        if self.old > 0 {
            self.old -= 1;
            return;
        }
        if now.saturating_sub(*self.since.get_or_insert(now)) > MEMORY {
            *self = Window { old: self.blocks, blocks: self.blocks.min(LEAST), ..Window::new() };
            return;
        }
        let [alone, shared] = &mut self.shortest;
        let shortest = if beside_users { shared } else { alone };
        *shortest = took.min(*shortest);
        let shortest = *shortest;
        self.ended += 1;
        let (least, queueing) =
            if beside_users { (1, shortest / 4 + NOISE_BESIDE_USERS) } else { (LEAST, shortest + NOISE) };
        if took <= shortest.saturating_add(queueing) {
            if self.rising {
                self.blocks = (self.blocks + if beside_users { 1 } else { 3 }).min(MOST);
                self.ended = 0;
            } else if self.ended >= self.blocks {
                self.blocks = (self.blocks + 1).min(MOST);
                self.ended = 0;
            }
        } else if self.rising || self.ended >= self.blocks {
            // Once a round: those that are under way were sent before anything could be known.
            self.blocks = (self.blocks - (self.blocks / 8).max(1).min(self.blocks)).max(least);
            self.rising = false;
            self.ended = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Copies so many blocks over a way of this latency that carries a block each `each`; gives the window in the end
    /// and how much of what the way carries was used in the second half.
    fn copy(blocks: u64, latency: Duration, each: Duration, users: bool) -> (usize, f64) {
        go_on(&mut Window::new(), Duration::ZERO, blocks, latency, each, users)
    }

    fn go_on(
        window: &mut Window,
        start: Duration,
        blocks: u64,
        latency: Duration,
        each: Duration,
        users: bool,
    ) -> (usize, f64) {
        let (mut now, mut free) = (start, start);
        let mut under_way = std::collections::VecDeque::new();
        let mut pauses = std::collections::VecDeque::new();
        let (mut half, mut ended) = (start, 0);
        while ended < blocks {
            while pauses.pop_front_if(|end| *end <= now).is_some() {}
            while under_way.len() + pauses.len() < window.blocks() {
                free = free.max(now) + each;
                under_way.push_back((now, free + latency));
            }
            // Whichever comes first, a block's end or that of a pause.
            let next = under_way.front().map(|(_, end)| *end);
            if pauses.front().is_some_and(|&pause| next.is_none_or(|end| pause < end)) {
                now = *pauses.front().unwrap();
                continue;
            }
            let (sent, end) = under_way.pop_front().unwrap();
            now = end;
            window.copied(now, now - sent, users);
            if users {
                pauses.push_back(now + window.pause(now - sent));
            }
            ended += 1;
            if ended == blocks / 2 {
                half = now;
            }
        }
        let ideal = each * u32::try_from(blocks / 2).unwrap();
        (window.blocks(), ideal.as_secs_f64() / (now - half).as_secs_f64())
    }

    /// T3.
    #[test]
    fn a_long_link_is_filled_and_a_short_one_not_flooded() {
        const BLOCK: Duration = Duration::from_micros(500); // 250 MiB/s
        let (short, used) = copy(20_000, Duration::from_micros(200), BLOCK, false);
        assert!(short <= 24 && used > 0.95, "{short} {used}");
        for millis in [1, 10, 50] {
            let (blocks, used) = copy(20_000, Duration::from_millis(millis), BLOCK, false);
            assert!(used > 0.9 && blocks <= MOST, "{millis} ms: {blocks} {used}");
            assert!(
                u128::try_from(blocks).unwrap() <= 24 + 4 * u128::from(millis) * 1000 / BLOCK.as_micros()
            );
        }
    }

    #[test]
    fn beside_users_it_makes_no_queue_and_still_fills_a_long_link() {
        const BLOCK: Duration = Duration::from_micros(100);
        let (short, used) = copy(20_000, Duration::from_micros(200), BLOCK, true);
        assert!(short <= 8 && used > 0.3, "{short} {used}");
        let (long, used) = copy(40_000, Duration::from_millis(10), BLOCK, true);
        assert!((50..150).contains(&long) && used > 0.6, "{long} {used}");
        let (gone, _) = copy(20_000, Duration::from_micros(200), BLOCK, false);
        assert!(gone >= LEAST);
    }

    #[test]
    fn a_way_that_becomes_longer_is_filled_again() {
        const BLOCK: Duration = Duration::from_micros(100);
        let mut window = Window::new();
        go_on(&mut window, Duration::ZERO, 20_000, Duration::from_micros(200), BLOCK, true);
        let start = Duration::from_secs(5);
        let (blocks, used) = go_on(&mut window, start, 100_000, Duration::from_millis(10), BLOCK, true);
        assert!((50..150).contains(&blocks) && used > 0.4, "{blocks} {used}");
    }

    #[test]
    fn users_who_come_now_and_then_do_not_empty_a_long_link() {
        const BLOCK: Duration = Duration::from_micros(500);
        const LATENCY: Duration = Duration::from_millis(50);
        let mut window = Window::new();
        let (full, _) = go_on(&mut window, Duration::ZERO, 1000, LATENCY, BLOCK, false);
        for users in [true, false, true, false] {
            let (blocks, _) = go_on(&mut window, Duration::from_secs(5), 10, LATENCY, BLOCK, users);
            assert!(full > 100 && blocks > full / 2, "{blocks} of {full}");
        }
    }

    #[test]
    fn it_is_bounded_and_makes_room_for_others() {
        let mut window = Window::new();
        let mut most = 0;
        for _ in 0..10_000 {
            window.copied(Duration::ZERO, Duration::from_millis(50), false);
            most = most.max(window.blocks());
        }
        assert_eq!(most, MOST);
        let mut window = Window::new();
        window.copied(Duration::ZERO, Duration::from_millis(1), false);
        for _ in 0..1000 {
            window.copied(Duration::ZERO, Duration::from_millis(100), false);
        }
        assert_eq!(window.blocks(), LEAST);
    }

    const SHORT: Duration = Duration::from_millis(1);
    const LONG: Duration = Duration::from_millis(40);

    #[test]
    fn after_a_queue_it_grows_by_one_block_each_round() {
        let mut window = Window::new();
        for took in [SHORT, LONG] {
            window.copied(Duration::ZERO, took, false);
        }
        for _ in 0..5 {
            let blocks = window.blocks();
            for _ in 0..blocks {
                assert_eq!(window.blocks(), blocks);
                window.copied(Duration::ZERO, SHORT, false);
            }
            assert_eq!(window.blocks(), blocks + 1);
        }
    }

    #[test]
    fn users_have_their_turn_and_a_window_that_they_have_made_small_stays_it() {
        let mut window = Window::new();
        assert_eq!(window.pause(LONG), LONG / 8);
        window.copied(Duration::ZERO, SHORT, true);
        for _ in 0..1000 {
            window.copied(Duration::ZERO, LONG, true);
        }
        assert_eq!((window.blocks(), window.pause(LONG)), (1, LONG));
        assert_eq!(window.pause(LONG * 10), USERS);
        window.copied(MEMORY, LONG, true);
        assert_eq!(window.shortest, [Duration::MAX, SHORT]);
        window.copied(MEMORY + SHORT, SHORT, true);
        assert_eq!((window.blocks(), window.shortest), (1, [Duration::MAX; 2]), "both are measured again");
    }
}
