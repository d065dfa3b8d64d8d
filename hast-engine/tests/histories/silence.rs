//! Signs of life (T7): keepalives that are answered, and a peer that says nothing.

use super::*;

fn after(seconds: f64) -> Duration {
    Duration::from_secs_f64(seconds)
}

/// A connected pair whose primary gives up after five seconds, and whose secondary said this of itself.
fn connected(known: Extensions, theirs: Option<u32>) -> H {
    let mut h = H::new(24, 1, Extension::default(), &[], 5, 1, 1);
    h.p.handle_reload(h.t, Settings { peer_timeout: after(5.0), ..H::settings() }, false);
    h.pump();
    h.handshake_first(known);
    h.answer_with(1, 1, SyncSource::Primary, None, theirs);
    h.serve_all(|_| Some(None));
    h.sent.clear();
    assert!(h.p.status().complete);
    h
}

/// Lets time pass until `end`; a keepalive is answered if `answered`. Gives when keepalives went out.
fn pass(h: &mut H, end: Duration, answered: bool) -> Vec<Duration> {
    let mut keepalives = Vec::new();
    while let Some(at) = h.p.poll_timeout().filter(|at| *at <= end && h.p.status().complete) {
        h.t = h.t.max(at);
        h.p.handle_timeout(h.t);
        h.pump();
        for (side, message) in std::mem::take(&mut h.sent) {
            if message == Message::Keepalive {
                assert_eq!(side, Side::Out);
                keepalives.push(h.t);
                if answered {
                    h.frame(Side::In, Message::Alive);
                }
            }
        }
    }
    h.t = h.t.max(end);
    keepalives
}

#[test]
fn a_secondary_that_says_nothing_is_gone_after_the_peer_timeout() {
    let mut h = connected(Extensions::ALL, Some(5));
    pass(&mut h, after(100.0), true);
    assert!(h.p.status().complete, "it answered every time");
    h.frame(Side::In, Message::Alive);
    pass(&mut h, after(104.9), false);
    assert!(h.p.status().complete);
    pass(&mut h, after(105.1), false);
    assert!(!h.p.status().complete, "silent for five seconds, though no answer was owed");
    assert!(h.other.contains(&Action::Event(Event::Disconnect)));
}

/// The link breaks while a write is under way: it is complete here after the peer timeout, not after `timeout`.
#[test]
fn a_write_waits_for_a_dead_secondary_no_longer_than_the_peer_timeout() {
    let mut h = connected(Extensions::ALL, Some(5));
    h.w(1, 3);
    pass(&mut h, after(4.9), false);
    assert_eq!(h.result(1), None);
    pass(&mut h, after(5.1), false);
    assert_eq!(h.result(1), Some(Ok(None)));
}

#[test]
fn whatever_comes_is_a_sign_of_life() {
    let mut h = connected(Extensions::ALL, Some(5));
    for _ in 0..10 {
        let end = h.t + after(4.0);
        pass(&mut h, end, false);
        h.p.handle_heard(h.t);
        assert!(h.p.status().complete, "bytes of a long message came at {:?}", h.t);
    }
    // The disk takes long, and the secondary says so.
    h.w(1, 3);
    let seq = h.sent.iter().find_map(|(_, message)| match message {
        Message::Request(request) => Some(request.seq),
        _ => None,
    });
    let seq = seq.unwrap();
    for _ in 0..10 {
        let end = h.t + after(4.0);
        pass(&mut h, end, false);
        h.frame(Side::In, Message::Busy(seq));
        assert!(h.p.status().complete, "busy at {:?}", h.t);
    }
}

#[test]
fn keepalives_come_often_enough_for_both() {
    for (theirs, pace) in [
        (Some(5), 5.0 / 3.0),
        (Some(60), 5.0 / 3.0),
        (Some(1), 1.0 / 3.0),
        (None, 5.0 / 3.0),
        (Some(0), 5.0 / 3.0),
    ] {
        let mut h = connected(Extensions::ALL, theirs);
        let sent = pass(&mut h, after(20.0), true);
        assert!(sent.len() > 8, "{theirs:?}: {sent:?}");
        for pair in sent.windows(2) {
            assert!(pair[1] - pair[0] <= after(pace + 0.001), "{theirs:?}: {sent:?}");
        }
    }
    // Not more often than needed, and an original hears as little as from an original.
    let mut h = connected(Extensions::ALL, Some(3600));
    h.p.handle_reload(h.t, H::settings(), false);
    assert_eq!(pass(&mut h, after(35.0), true).len(), 3);
    let mut h = connected(Extensions::NONE, None);
    assert_eq!(pass(&mut h, after(35.0), false).len(), 3);
}

#[test]
fn an_original_need_not_answer_keepalives() {
    for known in [Extensions::NONE, Extensions::SYNC_MARKS.union(Extensions::BUSY)] {
        let mut h = connected(known, None);
        pass(&mut h, after(200.0), false);
        assert!(h.p.status().complete);
        h.w(1, 3);
        pass(&mut h, after(219.0), false);
        assert!(h.p.status().complete);
        pass(&mut h, after(221.0), false);
        assert!(!h.p.status().complete, "`timeout` for an answer");
    }
}

#[test]
fn a_primary_that_slept_asks_first() {
    let mut h = connected(Extensions::ALL, Some(5));
    h.frame(Side::In, Message::Alive);
    h.t = after(60.0);
    h.p.handle_timeout(h.t);
    h.pump();
    assert!(h.p.status().complete, "nobody was asked while it slept");
    assert!(h.sent.iter().any(|(_, message)| *message == Message::Keepalive));
    pass(&mut h, after(63.0), false);
    assert!(h.p.status().complete);
    pass(&mut h, after(63.4), false);
    assert!(!h.p.status().complete);
}

/// The secondary waits for this node's disk, and may wonder whether anybody is there.
#[test]
fn keepalives_go_out_while_the_map_is_merged() {
    let mut h = H::new(24, 1, Extension::default(), &[], 5, 1, 1);
    h.p.handle_reload(h.t, Settings { peer_timeout: after(5.0), ..H::settings() }, false);
    h.handshake_first(Extensions::ALL);
    h.policy = Box::new(|_| None);
    h.answer_with(1, 1, SyncSource::Primary, Some(vec![0xff; 512]), Some(1));
    h.sent.clear();
    assert!(!h.p.status().complete);
    let mut keepalives = 0;
    while let Some(at) = h.p.poll_timeout().filter(|at| *at < after(30.0)) {
        h.t = h.t.max(at);
        h.p.handle_timeout(h.t);
        h.pump();
        for (_, message) in std::mem::take(&mut h.sent) {
            keepalives += usize::from(message == Message::Keepalive);
            h.frame(Side::In, Message::Alive);
        }
    }
    assert!(keepalives > 80, "{keepalives}");
    h.policy = Box::new(|_| Some(Ok(())));
    h.pump();
    h.serve_all(|_| Some(None));
    assert!(h.p.status().complete, "and the connection is still there");
}

fn secondary(known: Extensions) -> S {
    let mut s = S::patient(known, after(5.0), Extension::default(), &[]);
    s.run();
    s
}

/// Lets time pass until `end`; gives what the secondary said.
fn listen(s: &mut S, end: Duration) -> Vec<Message> {
    while let Some(at) = s.s.poll_timeout().filter(|at| *at <= end && s.s.status().complete) {
        s.t = s.t.max(at);
        s.s.handle_timeout(s.t);
        s.poll();
    }
    s.t = s.t.max(end);
    std::mem::take(&mut s.sent)
}

#[test]
fn a_secondary_answers_keepalives_and_says_how_long_it_waits() {
    for (known, answers) in [(Extensions::ALL, true), (Extensions::NONE, false)] {
        let mut s = secondary(known);
        let answer = s.sent.iter().find_map(|message| match message {
            Message::SecondAnswer(answer, _) => Some(answer.peer_timeout),
            _ => None,
        });
        assert_eq!(answer, Some(answers.then_some(5)));
        s.sent.clear();
        for _ in 0..3 {
            s.frame(Message::Keepalive);
        }
        assert_eq!(s.sent.len(), if answers { 3 } else { 0 }, "{:?}", s.sent);
        assert!(s.sent.iter().all(|message| *message == Message::Alive));
    }
}

#[test]
fn a_primary_that_says_nothing_is_left() {
    for (known, patience) in [(Extensions::ALL, 5.0), (Extensions::NONE, 20.0)] {
        let mut s = secondary(known);
        s.frame(Message::Keepalive);
        listen(&mut s, after(patience - 0.1));
        assert!(s.s.status().complete);
        s.s.handle_heard(s.t);
        s.poll();
        listen(&mut s, after(2.0 * patience - 0.2));
        assert!(s.s.status().complete, "bytes came");
        listen(&mut s, after(2.0 * patience));
        assert!(!s.s.status().complete);
    }
}

/// A long message on a slow link: that its bytes come is answered, and not too often.
#[test]
fn bytes_are_answered_before_they_are_a_message() {
    for (known, answers) in [(Extensions::ALL, true), (Extensions::NONE, false)] {
        let mut s = secondary(known);
        s.sent.clear();
        for _ in 0..200 {
            s.t += Duration::from_millis(50);
            s.s.handle_heard(s.t);
            s.poll();
        }
        let count = s.sent.len();
        assert!(s.sent.iter().all(|message| *message == Message::Alive));
        assert!(if answers { (20..=40).contains(&count) } else { count == 0 }, "{known}: {count} in 10 s");
    }
}

#[test]
fn what_cannot_be_heard_is_no_silence() {
    let mut s = secondary(Extensions::ALL);
    s.frame(Message::Keepalive);
    for _ in 0..5 {
        let end = s.t + after(4.0);
        listen(&mut s, end);
        s.s.handle_deaf(s.t);
        s.poll();
    }
    assert!(s.s.status().complete);
    assert!(!s.sent.contains(&Message::Alive), "nothing was heard either");
}

/// A disk that goes on working says nothing of the primary.
#[test]
fn a_disk_that_answers_is_no_sign_of_the_primary() {
    let mut s = secondary(Extensions::ALL);
    s.write(1, 3);
    listen(&mut s, after(4.9));
    s.run();
    assert_eq!(s.answer(1), Some(Ok(())));
    assert!(s.s.status().complete);
    listen(&mut s, after(5.0));
    assert!(!s.s.status().complete, "the primary has been silent for five seconds");
}

/// The secondary is lost while a write that relies on its copy waits for the next flush, and nothing else is under way:
/// what is stale now is written down at once, and a planned end comes when that is done, not after all of `timeout`.
#[test]
fn what_the_loss_of_the_secondary_makes_stale_is_written_down_at_once() {
    let mut h = H::target(&(3..20).collect::<Vec<u32>>());
    h.p.handle_reload(h.t, Settings { peer_timeout: Duration::from_secs(5), ..H::settings() }, false);
    h.policy = Box::new(|op| Some(if *op == DiskOp::Flush { Err(Errno::EOPNOTSUPP) } else { Ok(()) }));
    let flushes = |h: &H| h.sent.iter().filter(|(_, message)| is(Command::Flush)(message)).count();
    h.req(1, Op::Flush);
    h.serve_all(|message| is(Command::Flush)(message).then_some(None));
    h.req(2, Op::Flush);
    assert_eq!(flushes(&h), 1, "{:?}", h.sent);
    h.w(3, 23);
    h.serve_all(|message| is(Command::Write)(message).then_some(None));
    assert_eq!((flushes(&h), h.result(3)), (1, None), "its own flush comes after that of the client");
    h.p.handle_stop(h.t);
    h.pump();
    let stopped = h.t;
    while h.exit().is_none() && h.t < stopped + Duration::from_secs(60) {
        h.tick(1);
    }
    assert!(h.t < stopped + Duration::from_secs(10), "it ended after {:?}", h.t - stopped);
    assert_eq!(h.exit(), Some(0));
}
