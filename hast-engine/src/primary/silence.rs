//! Signs of life (T7): what is sent to a secondary so that it knows of this node, and when its silence means that
//! it is gone.
//!
//! A secondary of ours answers what it hears (`alive`), so it is gone when it was asked and says nothing for
//! `peer-timeout`, whether it owes an answer or not. An original answers requests only: it has `timeout` for each.

use core::time::Duration;

use hast_net::extensions::Extensions;
use hast_net::message::Message;

use super::Primary;
use super::link::Stage;
use crate::types::Side;

/// A keepalive goes out when nothing else did for this long; sooner if `alive` is active.
const KEEPALIVE: Duration = Duration::from_secs(10);

/// What was last heard of a secondary that answers keepalives.
#[derive(Debug)]
pub(super) struct Signs {
    /// When anything came from it.
    heard: Duration,
    /// When it was first sent something since.
    asked: Option<Duration>,
    /// After how long a silence of ours it gives up; zero if it did not say.
    patience: Duration,
}

impl Signs {
    pub(super) fn new(now: Duration) -> Signs {
        Signs { heard: now, asked: None, patience: Duration::ZERO }
    }

    /// The handshake is over.
    pub(super) fn begin(&mut self, now: Duration, patience: Option<u32>) {
        *self = Signs::new(now);
        self.patience = Duration::from_secs(patience.unwrap_or(0).into());
    }

    /// Something came from the secondary.
    pub(super) fn heard(&mut self, now: Duration) {
        self.heard = now;
        self.asked = None;
    }

    /// Something was sent that it answers, or is in the middle of answering.
    pub(super) fn asked(&mut self, now: Duration) {
        self.asked.get_or_insert(now);
    }
}

impl Primary {
    /// Bytes have come from the secondary, be they a whole message or not.
    pub fn handle_heard(&mut self, now: Duration) {
        self.now = now;
        self.link.signs.heard(now);
    }

    /// Gives up a secondary that is silent, or sees to it that it hears of this node.
    pub(super) fn silence_timeout(&mut self) {
        let over = |deadline: Option<Duration>| deadline.is_some_and(|deadline| deadline <= self.now);
        if over(self.silence_deadline()) {
            let seconds = self.settings.timeout.as_secs();
            self.lose_link(format!("The secondary did not answer for {seconds} seconds"));
        } else if over(self.alive_deadline()) {
            let seconds = self.settings.peer_timeout.as_secs();
            self.lose_link(format!("The secondary has been silent for {seconds} seconds"));
        } else if over(self.keepalive_due()) {
            self.send(Side::Out, Message::Keepalive);
        }
    }

    /// When [`Primary::silence_timeout`] has something to do.
    pub(super) fn silence_due(&self) -> Option<Duration> {
        let deadlines = [self.silence_deadline(), self.alive_deadline(), self.keepalive_due()];
        deadlines.into_iter().flatten().min()
    }

    /// Whether the secondary answers keepalives, and is there to do so.
    fn answers_keepalives(&self) -> bool {
        matches!(self.link.stage, Stage::Merging | Stage::Marking | Stage::Up)
            && self.link.has(Extensions::ALIVE)
    }

    fn keepalive_due(&self) -> Option<Duration> {
        let answers = self.answers_keepalives();
        if !answers && !self.link.is_up() {
            return None;
        }
        let pace = if answers { self.pace() } else { KEEPALIVE };
        Some(self.link.last_sent + pace)
    }

    /// How often a secondary that answers hears of this node: often enough for the patience of both.
    fn pace(&self) -> Duration {
        let (ours, theirs) = (self.settings.peer_timeout, self.link.signs.patience);
        let patience = if theirs.is_zero() { ours } else { ours.min(theirs) };
        (patience / 3).min(KEEPALIVE)
    }

    /// When a secondary that answers keepalives has been silent for too long. A node that slept itself asks
    /// first.
    fn alive_deadline(&self) -> Option<Duration> {
        let Signs { heard, asked, .. } = self.link.signs;
        let asked = asked.filter(|_| self.answers_keepalives())?;
        let patience = self.settings.peer_timeout;
        Some((heard + patience).max(asked + patience * 2 / 3))
    }

    /// When a secondary that owes an answer has owed it for too long: `timeout` after the oldest request was
    /// asked, or after it was last heard that its disk is busy with that one. Answers to others count as
    /// long as those may have been on their way before it, in a long queue on either side; not those to requests
    /// that were asked a whole `timeout` later.
    fn silence_deadline(&self) -> Option<Duration> {
        let (seq, oldest) = self.link.outstanding.first_key_value()?;
        let (busy, heard) = self.link.busy;
        let since = if busy == *seq { heard } else { oldest.since };
        let overdue = since + self.settings.timeout;
        if self.link.answered >= overdue {
            return Some(overdue);
        }
        Some(since.max(self.link.last_answer) + self.settings.timeout)
    }
}
