use super::*;

use hast_net::message::{Command, FromPrimary, Reply, Request};
use hast_net::payload::{Checksum, Compression};
use proptest::prelude::*;
use socket2::{Domain, Type};
use std::io::Write;
use std::net::{TcpListener, TcpStream};

const OUT: usize = 7;
const IN: usize = 8;
const PLAIN: Stages = Stages { compression: Compression::None, checksum: Checksum::None };

fn link_with(role: Role, stages: Stages) -> Link {
    let poller = Arc::new(Poller::new().unwrap());
    let settings = LinkSettings {
        stages,
        timeout: Duration::from_secs(5),
        peer_timeout: Duration::from_secs(3),
        remote: "tcp4://192.0.2.1".into(),
    };
    Link::new(&poller, (OUT, IN), Pool::new(), role, settings)
}

fn link(role: Role) -> Link {
    link_with(role, PLAIN)
}

/// A link's first connection, and the other end of it.
fn connected(link: &mut Link, side: Side) -> Socket {
    let (ours, theirs) = Socket::pair(Domain::UNIX, Type::STREAM, None).unwrap();
    link.adopt(side, ours.into()).unwrap();
    theirs
}

fn write(seq: u64, length: usize) -> Message {
    let data = Buffer::from((0..length).map(|i| (i as u64 * 31 + seq) as u8).collect::<Vec<u8>>());
    let length = length as u64;
    let (command, memsync) = (Command::Write, seq.is_multiple_of(2));
    Message::Request(Request { command, seq, offset: 0, length, memsync, data: Some(data) })
}

fn bytes(message: &Message) -> Vec<u8> {
    let (mut bytes, data) = hast_net::message::to_wire(message, 2, PLAIN).unwrap();
    bytes.extend_from_slice(&data.unwrap_or(Buffer::from(Vec::new())));
    bytes
}

/// What a link on `side` makes of a stream that ends after `stream`.
fn hear(role: Role, side: Side, stream: &[u8]) -> (Vec<Frame>, String) {
    let mut link = link(role);
    let mut theirs = connected(&mut link, side);
    std::thread::scope(|scope| {
        // Fails when the link has heard enough.
        scope.spawn(move || theirs.write_all(stream));
        let mut frames = Vec::new();
        loop {
            frames.extend(std::iter::from_fn(|| link.next_frame(side)));
            if !link.receive(side)
                && let Some(reason) = link.take_failure()
            {
                link.close().for_each(drop);
                return (frames, reason);
            }
        }
    })
}

#[test]
fn payloads_cross_a_slow_connection_unharmed_and_in_order() {
    for stages in [
        PLAIN,
        Stages { compression: Compression::Lzf, checksum: Checksum::Sha256 },
        Stages { compression: Compression::Hole, checksum: Checksum::Crc32 },
    ] {
        let (mut primary, mut secondary) = (link_with(Role::Primary, stages), link(Role::Secondary));
        let (ours, theirs) = Socket::pair(Domain::UNIX, Type::STREAM, None).unwrap();
        ours.set_send_buffer_size(20_000).unwrap();
        primary.adopt(Side::Out, ours.into()).unwrap();
        secondary.adopt(Side::Out, theirs.into()).unwrap();
        let sent: Vec<Message> =
            (1..40_u64).map(|seq| write(seq, 1 + (seq as usize * 9973) % 131_072)).collect();
        for message in &sent {
            primary.send(Duration::ZERO, Side::Out, 2, message);
        }
        let mut received = Vec::new();
        let mut blocked = 0;
        while received.len() < sent.len() {
            primary.transmit(Duration::ZERO);
            blocked += usize::from(primary.unsent_bytes() > 0);
            secondary.receive(Side::Out);
            while let Some(frame) = secondary.next_frame(Side::Out) {
                match FromPrimary::decode(frame).unwrap() {
                    FromPrimary::Request(request) => received.push(Message::Request(request)),
                    other => panic!("{other:?}"),
                }
            }
            assert_eq!(primary.take_failure(), None);
            assert_eq!(secondary.take_failure(), None);
        }
        assert!(blocked > 0 || stages != PLAIN, "the socket was never full: the test shows nothing");
        assert!(received == sent);
        assert_eq!(primary.unsent_bytes(), 0);
        assert_eq!(primary.deadline(), None);
    }
}

#[test]
fn a_peer_that_stops_reading_is_given_up_after_the_timeout() {
    let mut link = link(Role::Primary);
    let theirs = connected(&mut link, Side::Out);
    let second = Duration::from_secs(1);
    while !link.is_busy() {
        link.send(second, Side::Out, 2, &write(1, 131_072));
        link.transmit(second);
    }
    assert_eq!(link.deadline(), Some(6 * second));
    link.check(6 * second - Duration::from_nanos(1));
    assert_eq!(link.take_failure(), None);
    // Anything that it takes gives it more time.
    (&theirs).read_exact(&mut [0; 100_000]).unwrap();
    link.transmit(4 * second);
    assert_eq!(link.deadline(), Some(9 * second));
    link.check(9 * second);
    let reason = link.take_failure().unwrap();
    assert!(reason.starts_with("Unable to send request: "), "{reason}");
    assert_eq!(link.close().count(), 0);
    assert_eq!((link.deadline(), link.unsent_bytes()), (None, 0));
}

#[test]
fn the_end_of_a_connection_has_a_reason() {
    let reply = bytes(&Message::Reply(Reply { seq: 1, received: false, error: None, data: None }));
    let (frames, reason) = hear(Role::Primary, Side::In, &reply);
    assert_eq!(frames.len(), 1);
    let text = error_text(&io::Error::from_raw_os_error(libc::ENOTCONN));
    assert_eq!(reason, format!("Unable to receive reply header: {text}"));
    let (_, reason) = hear(Role::Secondary, Side::Out, &[]);
    assert_eq!(reason, format!("Unable to receive request header: {text}"));
    let (_, reason) = hear(Role::Primary, Side::Out, &[]);
    assert_eq!(reason, format!("Unable to receive handshake header from tcp4://192.0.2.1: {text}"));
}

/// Whichever connection's end is noticed first: once connected, it is replies that do not come any more.
#[test]
fn an_established_connection_does_not_end_in_the_handshake() {
    let text = error_text(&io::Error::from_raw_os_error(libc::ENOTCONN));
    for side in [Side::Out, Side::In] {
        let mut link = link(Role::Primary);
        let theirs = connected(&mut link, side);
        link.note(Event::Connect);
        drop(theirs);
        while link.receive(side) {}
        assert_eq!(link.take_failure(), Some(format!("Unable to receive reply header: {text}")));
        // The next one begins with a handshake again.
        link.close().for_each(drop);
        drop(connected(&mut link, Side::Out));
        while link.receive(Side::Out) {}
        assert!(link.take_failure().unwrap().starts_with("Unable to receive handshake header"));
    }
}

#[test]
fn a_primary_that_hangs_up_on_replies_first_is_still_heard_out() {
    let mut link = link(Role::Secondary);
    let mut out = connected(&mut link, Side::Out);
    drop(connected(&mut link, Side::In));
    out.write_all(&bytes(&write(3, 5000))).unwrap();
    assert!(!link.receive(Side::In));
    assert_eq!(link.take_failure(), None);
    while link.receive(Side::Out) {}
    assert!(link.next_frame(Side::Out).is_some());
}

#[test]
fn nothing_of_an_incomplete_message_comes_out() {
    let whole = bytes(&write(5, 4096));
    for end in [3, 60, whole.len() - 1] {
        let (frames, reason) = hear(Role::Secondary, Side::Out, &whole[..end]);
        assert_eq!(frames, []);
        assert!(reason.starts_with("Unable to receive request data: "));
    }
}

#[test]
fn what_came_before_garbage_is_delivered_and_nothing_after() {
    let mut stream = bytes(&write(1, 2000));
    stream.push(9);
    stream.extend_from_slice(&bytes(&write(2, 2000)));
    let (frames, reason) = hear(Role::Secondary, Side::Out, &stream);
    assert_eq!(frames.len(), 1);
    assert!(reason.starts_with("Unable to receive request: "));
}

#[test]
fn a_payload_that_is_not_what_its_checksum_says_ends_the_link() {
    let stages = Stages { compression: Compression::None, checksum: Checksum::Crc32 };
    let (mut stream, data) = hast_net::message::to_wire(&write(1, 4096), 2, stages).unwrap();
    let mut data = data.unwrap().to_vec();
    data[17] ^= 1;
    stream.extend_from_slice(&data);
    let (frames, reason) = hear(Role::Secondary, Side::Out, &stream);
    assert_eq!(frames, []);
    assert!(reason.starts_with("Unable to receive request: "));
}

#[test]
fn payloads_above_the_limit_are_refused_unless_a_map_is_expected() {
    let long = bytes(&write(1, (1 << 20) + 512));
    let (frames, reason) = hear(Role::Secondary, Side::Out, &long);
    assert_eq!(frames, []);
    assert!(reason.starts_with("Unable to receive request: "), "{reason}");

    let mut link = link(Role::Primary);
    let theirs = connected(&mut link, Side::Out);
    link.set_payload_limit(Side::Out, 2 << 20);
    let writer = std::thread::spawn(move || (&theirs).write_all(&long).unwrap());
    let frame = loop {
        if let Some(frame) = link.next_frame(Side::Out) {
            break frame;
        }
        link.receive(Side::Out);
        assert_eq!(link.take_failure(), None);
        std::thread::yield_now();
    };
    writer.join().unwrap();
    assert_eq!(frame.payload.unwrap().len(), (1 << 20) + 512);
}

#[test]
fn a_secondary_takes_nothing_on_the_connection_for_replies() {
    let (frames, reason) = hear(Role::Secondary, Side::In, &bytes(&Message::Keepalive));
    assert_eq!(frames, []);
    assert!(reason.starts_with("Unable to receive request: "), "{reason}");
}

#[test]
fn a_broken_connection_is_noticed_when_sending() {
    let mut link = link(Role::Secondary);
    drop(connected(&mut link, Side::In));
    let reply = Message::Reply(Reply { seq: 1, received: false, error: None, data: None });
    link.send(Duration::ZERO, Side::In, 2, &reply);
    link.transmit(Duration::ZERO);
    assert!(link.take_failure().unwrap().starts_with("Unable to send reply: "));
}

#[test]
fn stale_connects_are_told_apart() {
    let mut link = link(Role::Primary);
    let first = link.want(Side::Out);
    let second = link.want(Side::In);
    assert_ne!(first, second);
    assert_eq!(link.close().collect::<Vec<_>>(), [first, second]);
    assert!(!link.is_wanted(Side::Out, first));
    let third = link.want(Side::Out);
    assert!(!link.is_wanted(Side::Out, first) && !link.is_wanted(Side::In, third));
    assert!(link.is_wanted(Side::Out, third));
    assert!(!link.is_wanted(Side::Out, third), "only once");
    assert_eq!(link.close().count(), 0);
}

#[test]
fn messages_for_a_connection_that_is_gone_are_dropped() {
    let mut link = link(Role::Primary);
    link.send(Duration::ZERO, Side::Out, 2, &Message::Keepalive);
    link.transmit(Duration::ZERO);
    assert_eq!((link.unsent_bytes(), link.take_failure()), (0, None));
    assert!(!link.receive(Side::Out));
    assert!(link.next_frame(Side::Out).is_none());
}

#[test]
fn tcp_connections_notice_silence_and_follow_the_peer_timeout() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let seen = stream.try_clone().unwrap();
    let seen = SockRef::from(&seen);
    let mut link = link(Role::Primary);
    link.adopt(Side::Out, stream.into()).unwrap();
    assert!(seen.keepalive().unwrap() && seen.tcp_nodelay().unwrap() && seen.nonblocking().unwrap());
    #[cfg(target_os = "linux")]
    assert_eq!(seen.tcp_user_timeout().unwrap(), Some(Duration::from_secs(3)));
    link.apply(LinkSettings { peer_timeout: Duration::from_secs(60), ..link.settings.clone() });
    assert_eq!(seen.tcp_keepalive_time().unwrap(), Duration::from_secs(20));
    #[cfg(target_os = "linux")]
    assert_eq!(seen.tcp_user_timeout().unwrap(), Some(Duration::from_secs(60)));
}

/// FreeBSD ends a connection when the last question of TCP has not been answered, whatever else is under way: a primary that
/// is cut off completes nothing alone before the time that hast.conf gives it.
#[test]
fn tcp_does_not_give_a_peer_up_before_its_time() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let socket = SockRef::from(&stream);
    for seconds in [1, 2, 3, 4, 5, 7, 20, 60] {
        let timeout = Duration::from_secs(seconds);
        watch_for_silence(&stream, timeout);
        let interval = socket.tcp_keepalive_interval().unwrap();
        let probes = socket.tcp_keepalive_retries().unwrap();
        let ends = socket.tcp_keepalive_time().unwrap() + interval * probes;
        assert!(ends >= timeout && ends <= timeout.max(Duration::from_secs(3)), "{seconds} s: {ends:?}");
    }
}

proptest! {
    /// No bytes from a peer make a link do anything but deliver frames or give up.
    #[test]
    fn any_bytes_are_survived(
        mut stream in proptest::collection::vec(any::<u8>(), 0..600),
        prefix in 0_usize..3,
        flip in any::<(prop::sample::Index, u8)>(),
    ) {
        if prefix > 0 {
            let mut valid = bytes(&write(1, 700));
            if prefix > 1 {
                let at = flip.0.index(valid.len());
                valid[at] ^= flip.1;
            }
            valid.extend_from_slice(&stream);
            stream = valid;
        }
        for (role, side) in [(Role::Primary, Side::In), (Role::Primary, Side::Out), (Role::Secondary, Side::Out)] {
            let (frames, reason) = hear(role, side, &stream);
            prop_assert!(frames.len() <= stream.len() / 5);
            prop_assert!(reason.starts_with("Unable to receive "));
        }
    }
}
