//! What those who ask are told of the connection, and a connection that comes up and then passes nothing.

use super::*;
use hast_net::control::ConnectionState;

/// What was said last of the connection.
fn told(h: &H) -> Option<(ConnectionState, String)> {
    h.other.iter().rev().find_map(|action| match action {
        Action::Connection { state, reason } => Some((*state, reason.clone())),
        _ => None,
    })
}

fn state(h: &H) -> Option<ConnectionState> {
    told(h).map(|(state, _)| state)
}

fn known() -> H {
    H::new(24, 1, Extension::default(), &[], 5, 1, 1)
}

fn refused_with(errmsg: &str) -> H {
    let mut h = known();
    h.connected(Side::Out);
    let nv = Refusal { errmsg: errmsg.into(), wait: false }.encode().as_bytes().to_vec();
    h.p.handle_frame(h.t, Side::Out, Frame { version: 2, nv: nv.into(), payload: None });
    h.pump();
    h
}

fn farewell(h: &H) -> Option<String> {
    h.sent.iter().find_map(|(_, message)| match message {
        Message::Farewell(reason) => Some(reason.clone()),
        _ => None,
    })
}

#[test]
fn the_life_of_a_connection_is_told() {
    let mut h = known();
    assert_eq!(told(&h), Some((ConnectionState::Connecting, String::new())));
    h.p.handle_connect_failed(h.t, Side::Out, "Unable to connect to s: Connection refused");
    h.pump();
    let Some((ConnectionState::Disconnected, reason)) = told(&h) else { panic!("{:?}", told(&h)) };
    assert!(reason.starts_with("Unable to connect to s: Connection refused. Is hastd running"), "{reason}");
    // The next attempt is no news.
    let said = h.other.iter().filter(|action| matches!(action, Action::Connection { .. })).count();
    h.tick(2);
    h.p.handle_connect_failed(h.t, Side::Out, "Unable to connect to s: Connection refused");
    h.pump();
    assert_eq!(h.other.iter().filter(|action| matches!(action, Action::Connection { .. })).count(), said);
    h.tick(3);
    h.handshake_first(Extensions::ALL);
    h.answer(1, 1, SyncSource::Primary, None);
    h.serve_all(|_| Some(None));
    assert_eq!(told(&h), Some((ConnectionState::Connected, String::new())));
    h.p.handle_lost(h.t, "The other node has gone");
    h.pump();
    assert_eq!(told(&h), Some((ConnectionState::Disconnected, "The other node has gone.".to_owned())));
}

#[test]
fn a_primary_without_another_node_stands_alone() {
    let mut h = known();
    h.p.handle_reload(h.t, Settings { remote: false, ..H::settings() }, true);
    h.pump();
    assert_eq!(state(&h), Some(ConnectionState::Standalone));
}

#[test]
fn a_refusal_is_told_with_what_to_do() {
    for (errmsg, state) in [
        (texts::NOT_CONFIGURED.to_owned(), ConnectionState::Refused),
        (texts::NO_ACCESS.to_owned(), ConnectionState::Refused),
        (texts::not_secondary("init"), ConnectionState::Refused),
        (texts::not_secondary("primary"), ConnectionState::TwoPrimaries),
    ] {
        let h = refused_with(&errmsg);
        let Some((told, reason)) = told(&h) else { panic!("{errmsg}") };
        assert_eq!(told, state, "{errmsg}");
        assert!(reason.starts_with(&errmsg) && reason.len() > errmsg.len(), "{reason}");
    }
    let mut h = known();
    h.handshake_first(Extensions::ALL);
    h.frame(Side::Out, split_brain());
    assert_eq!(state(&h), Some(ConnectionState::SplitBrain));
}

/// What the primary alone can see it tells the secondary, too, if that understands.
#[test]
fn nodes_of_different_size_both_know_why_they_are_apart() {
    for ext in [Extensions::ALL, Extensions::SYNC_MARKS, Extensions::NONE] {
        let mut h = known();
        h.handshake_first(ext);
        let answer = SecondAnswer { datasize: 1 << 20, ..h.agrees() };
        h.frame(Side::Out, Message::SecondAnswer(answer, None));
        let Some((ConnectionState::Refused, reason)) = told(&h) else { panic!("{:?}", told(&h)) };
        assert!(reason.contains("(local=98304, remote=1048576). Run `hastctl create -m`"), "{reason}");
        assert_eq!(farewell(&h), (ext == Extensions::ALL).then_some(reason), "{ext:?}");
    }
}

#[test]
fn a_secondary_tells_why_its_primary_has_given_it_up() {
    for ext in [Extensions::ALL, Extensions::NONE] {
        let mut s = sessions::driven_secondary(ext);
        s.good();
        s.frame(Message::Farewell("Data size differs.".to_owned()));
        s.good();
        let last = s.told();
        if ext == Extensions::ALL {
            let reason = "The primary says: Data size differs.".to_owned();
            assert_eq!(last, Some((ConnectionState::Refused, reason)));
            assert!(s.exits(75));
        } else {
            assert_eq!(last, Some((ConnectionState::Connected, String::new())), "a keepalive as any other");
        }
    }
}

/// Connects, if an attempt is due within `seconds`; gives when it was.
fn reconnects(h: &mut H, seconds: u64) -> Option<Duration> {
    let attempts =
        |h: &H| h.other.iter().filter(|action| matches!(action, Action::Connect(Side::Out))).count();
    let (before, end) = (attempts(h), h.t + Duration::from_secs(seconds));
    while attempts(h) == before {
        let at = h.p.poll_timeout().filter(|at| *at <= end)?;
        h.t = h.t.max(at);
        h.p.handle_timeout(h.t);
        h.pump();
    }
    let at = h.t;
    h.sent.clear();
    shake_hands(h);
    Some(at)
}

/// The nodes are connected, whatever the secondary lacks.
fn shake_hands(h: &mut H) {
    h.handshake_first(Extensions::ALL);
    h.answer(1, 1, SyncSource::Primary, None);
    h.serve_all(|message| is_mark(message).then_some(None));
    assert!(h.p.status().complete, "{:?}", h.p.status());
}

/// All that is small passes: marks, flushes, signs of life. Nothing else does, until the secondary counts as gone.
fn passes_only_what_is_small(h: &mut H) -> Duration {
    let up = h.t;
    while h.p.status().complete {
        let data = |message: &Message| matches!(message, Message::Request(request) if request.length > 0);
        h.serve_all(|message| (!data(message)).then_some(None));
        let Some(at) = h.p.poll_timeout() else { break };
        h.t = h.t.max(at);
        h.p.handle_timeout(h.t);
        h.pump();
    }
    h.t.saturating_sub(up)
}

/// Attempts become rarer, though each of them comes up: what is written goes on for at least twice as long as it is held up.
/// Once something as large as what got stuck has passed, all is as before.
#[test]
fn a_connection_that_passes_nothing_is_tried_ever_more_seldom() {
    let mut h = H::in_step();
    h.set_peer_timeout(Duration::from_secs(5));
    h.w(1, 3);
    let mut held = passes_only_what_is_small(&mut h);
    let mut lost = h.t;
    for attempt in 0..50 {
        h.w(10 + attempt, 3);
        assert_eq!(h.result(10 + attempt), Some(Ok(None)), "written alone meanwhile");
        let at = reconnects(&mut h, 300).expect("another attempt");
        let pause = at.saturating_sub(lost);
        if attempt > 0 {
            assert!(pause >= held * 2, "attempt {attempt}: {pause:?} after {held:?}");
        }
        assert!(pause <= Duration::from_secs(60));
        held = passes_only_what_is_small(&mut h);
        lost = h.t;
    }
    assert!(reconnects(&mut h, 300).is_some());
    h.serve_all(|_| Some(None));
    assert!(h.p.is_in_step());
    h.p.handle_lost(h.t, "gone");
    h.pump();
    let lost = h.t;
    let at = reconnects(&mut h, 300).expect("another attempt");
    assert_eq!(at.saturating_sub(lost), Duration::from_secs(1));
}

/// What got stuck once is forgotten when a connection has lasted, though nothing as large was written since; and when the other
/// node has another address.
#[test]
fn what_got_stuck_once_is_forgotten() {
    for lasts in [true, false] {
        let mut h = H::in_step();
        h.set_peer_timeout(Duration::from_secs(5));
        // Larger than a block of the synchronisation that follows.
        h.req(1, Op::Write { offset: 0, data: Buffer::from(vec![1; 2 * ES as usize]) });
        passes_only_what_is_small(&mut h);
        assert!(reconnects(&mut h, 300).is_some());
        passes_only_what_is_small(&mut h);
        if lasts {
            assert!(reconnects(&mut h, 300).is_some());
            for _ in 0..700 {
                h.serve_all(|_| Some(None));
                h.frame(Side::In, Message::Alive);
                h.tick(1);
            }
            assert!(h.p.status().complete);
        } else {
            h.p.handle_reload(h.t, Settings { peer: "other".into(), ..H::settings() }, true);
            h.pump();
            shake_hands(&mut h);
            passes_only_what_is_small(&mut h);
        }
        h.p.handle_lost(h.t, "gone");
        h.pump();
        let lost = h.t;
        let at = reconnects(&mut h, 300).expect("another attempt");
        assert_eq!(at.saturating_sub(lost), Duration::from_secs(1), "{lasts}");
    }
}

/// A node that restarts under load has answered until it went: nothing got stuck.
#[test]
fn a_secondary_that_restarts_under_load_is_connected_to_at_once() {
    let mut h = H::in_step();
    for round in 0..5 {
        h.w(10 + round, 3);
        h.p.handle_lost(h.t, "gone");
        h.pump();
        let lost = h.t;
        let at = reconnects(&mut h, 300).expect("another attempt");
        assert_eq!(at.saturating_sub(lost), Duration::from_secs(1), "round {round}");
        h.serve_all(|_| Some(None));
    }
}
