//! What passes between the nodes: connecting, sending, breaking off, and the supervisors' part of the
//! handshake.

use super::*;

impl World {
    /// Both connections of a pair are there and neither end has gone.
    pub(crate) fn is_connected(&self) -> bool {
        let [a, b] = &self.nodes;
        a.conns == b.conns
            && a.conns.iter().all(|conn| {
                conn.and_then(|conn| self.conns.get(&conn))
                    .is_some_and(|conn| !conn.cut && conn.ends.iter().all(|end| end.open))
            })
    }

    pub(super) fn transmit(&mut self, conn: ConnId, from: usize, bytes: Vec<u8>) {
        let after = self.latency(3_000);
        let to = 1 - from;
        let at = (self.now + after).max(self.stalled(to));
        let Some(conn_state) = self.conns.get_mut(&conn).filter(|conn| !conn.cut) else { return };
        let Some(end) = conn_state.ends.get_mut(to) else { return };
        end.last_arrival = end.last_arrival.max(at);
        let after = end.last_arrival.saturating_sub(self.now);
        self.number += 1;
        let sent = self.number;
        self.schedule(after, Happening::Arrival { conn, to, sent, bytes });
    }

    /// `node` closes its connections, and opens no more of those that it was opening.
    pub(super) fn hang_up(&mut self, node: usize) {
        self.queue.retain(
            |_, happening| !matches!(happening, Happening::Connected { node: of, .. } if *of == node),
        );
        let Some(n) = self.nodes.get_mut(node) else { return };
        for conn in std::mem::take(&mut n.conns).into_iter().flatten() {
            self.close_end(conn, node);
        }
    }

    pub(super) fn close_end(&mut self, conn: ConnId, node: usize) {
        if let Some(end) = self.conns.get_mut(&conn).and_then(|conn| conn.ends.get_mut(node)) {
            end.open = false;
        }
        // The other end hears of it after what is on its way.
        let after = self.latency(3_000);
        let to = 1 - node;
        let at = (self.now + after).max(self.stalled(to));
        let last = self.conns.get(&conn).and_then(|conn| conn.ends.get(to)).map(|end| end.last_arrival);
        let at = at.max(last.unwrap_or_default());
        self.schedule(at.saturating_sub(self.now), Happening::Broken { conn, to });
    }

    /// Every connection breaks, each end noticing in its own time and after any part of what was on its way.
    pub(crate) fn cut(&mut self) {
        self.cut_these(self.conns.keys().copied().collect());
    }

    /// One connection breaks; the other does not know.
    pub(crate) fn cut_one(&mut self) {
        let ids: Vec<ConnId> = self.conns.keys().copied().collect();
        let one = self.random.pick(&ids);
        self.cut_these(one.into_iter().collect());
    }

    /// Nothing that is sent to `node` arrives before then.
    fn stalled(&self, node: usize) -> Duration {
        self.stalled_until.get(node).copied().unwrap_or_default()
    }

    fn cut_these(&mut self, ids: Vec<ConnId>) {
        for id in ids {
            if let Some(conn) = self.conns.get_mut(&id) {
                conn.cut = true;
            }
            let mut on_way: Vec<(u64, (Duration, u64))> = self
                .queue
                .iter()
                .filter_map(|(at, happening)| match happening {
                    Happening::Arrival { conn, sent, .. } if *conn == id => Some((*sent, *at)),
                    _ => None,
                })
                .collect();
            on_way.sort_unstable();
            for to in 0..2 {
                let mut lost = false;
                for (_, at) in &on_way {
                    let chance = self.random.one_in(3);
                    let part = self.random.number();
                    let Some(Happening::Arrival { to: whom, bytes, .. }) = self.queue.get_mut(at) else {
                        continue;
                    };
                    if *whom != to {
                        continue;
                    }
                    if lost {
                        self.queue.remove(at);
                    } else if chance {
                        lost = true;
                        let keep = usize::try_from(part % (bytes.len() as u64 + 1)).unwrap_or(0);
                        bytes.truncate(keep);
                    }
                }
                let after = self.latency(5_000);
                let last = self.conns.get(&id).and_then(|conn| conn.ends.get(to)).map(|end| end.last_arrival);
                let at = (self.now + after).max(last.unwrap_or_default());
                self.schedule(at.saturating_sub(self.now), Happening::Broken { conn: id, to });
            }
        }
    }

    pub(super) fn broken(&mut self, conn: ConnId, to: usize) {
        let now = self.now;
        let Some(ended) = self.conns.get_mut(&conn) else { return };
        let (primary, side) = (ended.primary, ended.side);
        let Some(end) = ended.ends.get_mut(to).filter(|end| end.open) else { return };
        end.open = false;
        if let Some(frame) = end.end() {
            self.frame(conn, to, primary == to, side, frame);
        }
        let Some(n) = self.nodes.get_mut(to) else { return };
        if n.conns.contains(&Some(conn)) {
            n.handle_lost(now, "the connection was closed");
            self.pump(to);
        } else if n.pending.is_some_and(|(_, pending, _)| pending == conn) {
            n.pending = None;
        }
        if n_waits_on(self.nodes.get_mut(to), conn)
            && let Some(n) = self.nodes.get_mut(to)
        {
            n.waiting = None;
        }
        if self.conns.get(&conn).is_some_and(|conn| conn.ends.iter().all(|end| !end.open)) {
            self.conns.remove(&conn);
        }
    }

    pub(super) fn connected(&mut self, node: usize, incarnation: u64, side: Side) {
        let (now, other) = (self.now, 1 - node);
        let reachable = self.network && self.nodes.get(other).is_some_and(|other| other.running);
        let Some(n) = self.nodes.get_mut(node) else { return };
        if n.incarnation != incarnation {
            return;
        }
        if !n.is_primary() {
            return;
        }
        if reachable {
            self.number += 1;
            let id = self.number;
            if let Some(slot) = n.conns.get_mut(usize::from(side == Side::In)) {
                *slot = Some(id);
            }
            self.conns.insert(id, Conn::new(node, side));
            if let Some(n) = self.nodes.get_mut(node) {
                n.handle_connected(now, side);
            }
        } else {
            n.handle_connect_failed(now, side, "connection refused");
        }
        self.pump(node);
    }

    pub(super) fn arrival(&mut self, id: ConnId, to: usize, bytes: &[u8]) {
        let Some(conn) = self.conns.get_mut(&id) else { return };
        let (primary, side) = (conn.primary, conn.side);
        let Some(end) = conn.ends.get_mut(to) else { return };
        if !end.open {
            return;
        }
        match end.feed(bytes) {
            Ok(frames) => {
                for frame in frames {
                    self.frame(id, to, primary == to, side, frame);
                }
            }
            Err(error) => self.fail(format!("node {to} cannot read what node {} sent: {error}", 1 - to)),
        }
    }

    pub(super) fn frame(&mut self, id: ConnId, to: usize, is_primary: bool, side: Side, frame: Frame) {
        let now = self.now;
        let Some(n) = self.nodes.get(to) else { return };
        let known = n.conns.contains(&Some(id));
        if !is_primary && !known {
            let conn = self.conns.get_mut(&id);
            if conn.is_some_and(|conn| std::mem::replace(&mut conn.greeted, true)) {
                return; // its worker has gone
            }
            return self.hello(id, to, &frame);
        }
        if !known || (is_primary != n.is_primary()) {
            return;
        }
        self.mixed_receives(to, &frame);
        if let Some(n) = self.nodes.get_mut(to) {
            n.handle_frame(now, side, frame);
        }
        self.pump(to);
    }

    /// A frame for the supervisor of a secondary.
    pub(super) fn hello(&mut self, id: ConnId, to: usize, frame: &Frame) {
        let mode = self.mode;
        let Some(n) = self.nodes.get_mut(to) else { return };
        let hello = frame
            .list()
            .map_err(|e| e.to_string())
            .and_then(|list| Hello::decode(&list).map_err(|e| e.to_string()));
        match hello {
            Ok(Hello::First(_)) if n.role != Role::Secondary || n.next_role.is_some() => {
                let mut refusal = Refusal::new(texts::not_secondary(n.role.as_str()));
                refusal.wait = n.role == Role::Primary;
                self.reply(id, to, refusal.encode().as_bytes());
                self.close_end(id, to);
            }
            Ok(Hello::First(hello)) => {
                // A plain pair is one of which the secondary knows nothing beyond the original.
                let plain = n.original || self.plan.scene.is_plain();
                let known = if plain { Extensions::NONE } else { Extensions::ALL };
                let ext = hello.ext.intersection(known);
                if !n.can_start() {
                    self.close_end(id, to);
                } else if n.is_secondary() {
                    n.waiting = Some((id, ext));
                    n.handle_stop(self.now);
                    self.pump(to);
                } else {
                    self.answer_first(to, id, ext);
                }
            }
            Ok(Hello::Second(hello)) => match n.pending.take() {
                Some((token, out, ext))
                    if token == hello.token && n.role == Role::Secondary && n.can_start() =>
                {
                    if let Err(error) = n.start_secondary(self.now, mode, hello, ext) {
                        return self.fail(error);
                    }
                    n.conns = [Some(out), Some(id)];
                    self.mixed_introduced(to);
                    self.pump(to);
                }
                _ => {
                    self.reply(id, to, Refusal::new(texts::TOKEN_MISMATCH).encode().as_bytes());
                    self.close_end(id, to);
                }
            },
            Err(error) => self.fail(format!("node {to} got a hello it cannot read: {error}")),
        }
    }

    pub(super) fn answer_first(&mut self, node: usize, conn: ConnId, ext: Extensions) {
        let mut token = [0; 16];
        for chunk in token.chunks_exact_mut(8) {
            chunk.copy_from_slice(&self.random.number().to_le_bytes());
        }
        if let Some(n) = self.nodes.get_mut(node) {
            n.pending = Some((token, conn, ext));
        }
        self.reply(conn, node, FirstAnswer { version: 2, token, ext }.encode().as_bytes());
    }

    pub(super) fn reply(&mut self, conn: ConnId, from: usize, nv: &[u8]) {
        match frame::encode(2, nv) {
            Ok(bytes) => self.transmit(conn, from, bytes),
            Err(error) => self.fail(error.to_string()),
        }
    }
}
