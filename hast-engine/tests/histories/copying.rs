//! What a synchronisation asks for and how much at a time, what it leaves for later, and what the administrator hears of
//! its beginning and its end.

use super::*;

/// An extent of many blocks.
const HUGE: u32 = 4 << 20;

/// A primary of so many extents of that size, those in `bits` to synchronise.
fn primary(extents: u64, extentsize: u32, extension: Extension, bits: u8) -> H {
    let size = 4096 + 512 + extents * u64::from(extentsize);
    let layout = Layout::create(size, 512, extentsize).unwrap();
    let mut map = map_of(&layout, &[]);
    map[0] = bits;
    H::started(metadata_on(&layout, extension), layout, map, Box::new(|_| Some(Ok(()))), false)
}

/// A secondary connects that is in step but for what is in our map, and marks itself if it has to.
fn connect(h: &mut H, extents: u64, extentsize: u32) {
    h.handshake_first(Extensions::ALL);
    let datasize = extents * u64::from(extentsize);
    let answer = SecondAnswer { datasize, extentsize, mapsize: 512, ..h.agrees() };
    h.frame(Side::Out, Message::SecondAnswer(answer, Some(Buffer::from(vec![0; 512]))));
    h.serve_all(|message| is_mark(message).then_some(None));
}

/// The secondary stores these blocks and all that follow; gives the ranges.
fn copy(h: &mut H, mut first: Vec<(u64, u64, u64)>) -> Vec<(u64, u64)> {
    let mut copied = Vec::new();
    while !first.is_empty() {
        for (seq, offset, length) in first {
            assert!(length > 0, "nothing is asked for at {offset}");
            copied.push((offset, length));
            h.reply(seq, None, None);
        }
        first = blocks(h);
    }
    copied
}

fn bytes(blocks: &[(u64, u64)]) -> u64 {
    blocks.iter().map(|(_, length)| length).sum()
}

/// The events that tell of a synchronisation, since the last time.
fn events(h: &mut H) -> Vec<Event> {
    let told = |action| match action {
        Action::Event(event @ (Event::SyncStart | Event::SyncDone | Event::SyncIntr)) => Some(event),
        _ => None,
    };
    std::mem::take(&mut h.other).into_iter().filter_map(told).collect()
}

#[test]
fn a_synchronisation_is_told_of_if_there_is_something_to_copy() {
    assert_eq!(events(&mut H::in_step()), [], "the nodes were in step from the beginning");
    // Nothing but the flush that is to show that was left when the connection broke.
    let mut h = H::new(24, 1, Extension::default(), &[], 5, 1, 1);
    h.handshake_first(Extensions::ALL);
    h.answer(1, 1, SyncSource::Primary, Some(vec![0; 512]));
    assert!(h.p.status().complete && !h.p.is_in_step());
    h.p.handle_lost(h.t, "gone");
    h.pump();
    assert_eq!(events(&mut h), []);
}

#[test]
fn a_synchronisation_is_told_of_once_when_it_begins_and_once_when_it_ends() {
    for breaks in [false, true] {
        let mut h = H::new(24, 1, Extension::default(), &[2], 5, 1, 1);
        h.handshake_first(Extensions::ALL);
        h.answer(1, 1, SyncSource::Primary, Some(vec![0; 512]));
        h.serve_all(|message| is_mark(message).then_some(None));
        // The secondary refuses a write meanwhile: that is synchronised as well.
        h.w(1, 5);
        let refused =
            |message: &Message| matches!(message, Message::Request(request) if request.offset == 5 * 4096);
        h.serve_all(|message| refused(message).then_some(Some(Errno::EIO)));
        assert_eq!(events(&mut h), [Event::SyncStart]);
        if breaks {
            h.p.handle_lost(h.t, "gone");
            h.pump();
            assert_eq!(events(&mut h), [Event::SyncIntr]);
        } else {
            h.serve_all(|_| Some(None));
            h.tick(11);
            h.serve_all(|_| Some(None));
            assert!(h.p.is_in_step());
            assert_eq!(events(&mut h), [Event::SyncDone]);
        }
    }
}

/// An original takes in 256 requests, and users' have to fit beside the blocks.
#[test]
fn an_original_is_asked_to_store_so_many_blocks_at_most() {
    let mut h = H::new(300, 1, Extension::default(), &(0..200).collect::<Vec<u32>>(), 5, 1, 1);
    h.handshake_first(Extensions::NONE);
    h.answer(1, 1, SyncSource::Primary, Some(vec![0; 512]));
    let mut under_way = blocks(&mut h);
    let mut most = 0;
    while !under_way.is_empty() {
        most = most.max(under_way.len());
        let (seq, ..) = under_way.remove(0);
        h.reply(seq, None, None);
        under_way.extend(blocks(&mut h));
    }
    assert_eq!(most, 32);
    h.serve_all(|_| Some(None));
    assert!(h.p.is_in_step());
}

/// A disk that fails everything is asked for sixteen extents, and for those that were under way by then; no more of them
/// than in the beginning.
#[test]
fn a_secondary_that_stores_nothing_is_not_asked_for_everything() {
    let mut h = H::new(100, 1, Extension::default(), &(0..100).collect::<Vec<u32>>(), 5, 1, 1);
    h.handshake_first(Extensions::ALL);
    h.answer(1, 1, SyncSource::Primary, Some(vec![0; 512]));
    h.serve_all(|message| is_mark(message).then_some(None));
    let mut asked = 0;
    let mut under_way = blocks(&mut h);
    while !under_way.is_empty() {
        asked += 1;
        h.reply(under_way.remove(0).0, Some(Errno::EIO), None);
        under_way.extend(blocks(&mut h));
    }
    assert!((16..24).contains(&asked), "{asked}");
    assert_eq!(h.p.status().dirty, 100 * u64::from(ES));
    // Later they are all tried.
    h.tick(11);
    h.serve_all(|_| Some(None));
    assert!(h.p.is_in_step(), "{:?}", h.p.status());
}

/// All of an extent is copied again later: what is left of it can wait until then, the next extent does not.
#[test]
fn after_a_block_has_failed_the_rest_of_its_extent_is_not_copied() {
    let mut h = primary(2, HUGE, Extension::default(), 3);
    connect(&mut h, 2, HUGE);
    let mut first = blocks(&mut h);
    let begun = first.len();
    assert!(first.iter().all(|(_, offset, _)| *offset < u64::from(HUGE)));
    let (seq, ..) = first.remove(0);
    h.reply(seq, Some(Errno::EIO), None);
    first.extend(blocks(&mut h));
    let copied = copy(&mut h, first);
    let (failed, next): (Vec<_>, Vec<_>) =
        copied.into_iter().partition(|(offset, _)| *offset < u64::from(HUGE));
    assert_eq!((failed.len(), bytes(&next)), (begun - 1, u64::from(HUGE)));
    assert_eq!(h.p.status().dirty, u64::from(HUGE), "L15");
    h.tick(11);
    let first = blocks(&mut h);
    assert_eq!(bytes(&copy(&mut h, first)), u64::from(HUGE));
    h.serve_all(|_| Some(None));
    assert!(h.p.is_in_step());
}

/// The device asks for something while an extent is copied. Blocks are short then, and each keeps its place for a moment
/// when it has ended. A user that has asked for nothing for a tenth of a second is gone.
#[test]
fn users_have_a_turn_between_the_blocks() {
    let mut h = primary(2, HUGE, Extension::default(), 1);
    h.req(1, Op::Read { offset: u64::from(HUGE), length: 512 });
    connect(&mut h, 2, HUGE);
    let mut under_way = blocks(&mut h);
    let is_short = |blocks: &[(u64, u64, u64)]| blocks.iter().all(|(_, _, length)| *length == 32 << 10);
    assert!(under_way.len() == 8 && is_short(&under_way), "{under_way:?}");
    h.t = Duration::from_millis(80);
    for (seq, ..) in std::mem::take(&mut under_way) {
        h.reply(seq, None, None);
        under_way.extend(blocks(&mut h));
    }
    assert_eq!(under_way.len(), 8, "sixteen places by now, and eight of them are kept");
    let next = h.p.poll_timeout().unwrap();
    assert!(next > h.t && next < h.t + Duration::from_millis(10), "{next:?}");
    h.t = next;
    h.p.handle_timeout(next);
    h.pump();
    under_way.extend(blocks(&mut h));
    assert_eq!(under_way.len(), 16);
    for (milliseconds, length) in [(99, 32 << 10), (100, u64::from(MAX_REQUEST))] {
        h.t = Duration::from_millis(milliseconds);
        h.reply(under_way.remove(0).0, None, None);
        let new = blocks(&mut h);
        assert!(!new.is_empty() && new.iter().all(|block| block.2 == length), "{new:?}");
        under_way.extend(new);
    }
}

/// The blocks take longer and longer beside users, so that at one moment all of them have ended and keep their places: most of
/// the extent is still to be copied.
#[test]
fn an_extent_is_not_copied_while_its_blocks_pause() {
    let mut h = primary(2, HUGE, Extension::default(), 1);
    h.req(1, Op::Read { offset: u64::from(HUGE), length: 512 });
    connect(&mut h, 2, HUGE);
    let mut under_way = blocks(&mut h);
    let mut copied = 0;
    h.t = Duration::from_millis(10);
    copied += under_way[0].2;
    h.reply(under_way.remove(0).0, None, None);
    h.t = Duration::from_millis(90);
    under_way.extend(blocks(&mut h));
    for (seq, _, length) in under_way {
        copied += length;
        h.reply(seq, None, None);
    }
    assert_eq!(blocks(&mut h), [], "all of them pause");
    assert_eq!(h.p.status().facts.to_synchronise_bytes, u64::from(HUGE));
    h.tick(1);
    let first = blocks(&mut h);
    copied += bytes(&copy(&mut h, first));
    assert_eq!(copied, u64::from(HUGE));
    h.serve_all(|_| Some(None));
    assert!(h.p.is_in_step());
}

/// The connection breaks when some blocks of an extent are copied: on the next one all of it is.
#[test]
fn an_extent_is_copied_from_its_beginning_after_the_connection_broke() {
    let mut h = primary(2, HUGE, Extension::default(), 1);
    connect(&mut h, 2, HUGE);
    for (seq, ..) in blocks(&mut h).drain(..3) {
        h.reply(seq, None, None);
    }
    h.p.handle_lost(h.t, "gone");
    h.pump();
    h.sent.clear();
    h.tick(2);
    connect(&mut h, 2, HUGE);
    let first = blocks(&mut h);
    assert_eq!(bytes(&copy(&mut h, first)), u64::from(HUGE));
    h.serve_all(|_| Some(None));
    assert!(h.p.is_in_step());
}

/// Some blocks of a stale extent are on their way here when our disk is given up. It works again before they have come, and
/// all of it is copied.
#[test]
fn a_disk_that_was_given_up_in_the_middle_of_a_copy_is_brought_up_to_date() {
    let run = hast_format::extension::Run { first: 0, count: 1 };
    let stale = Extension { generation: 1, stale: vec![run], ..Extension::default() };
    let mut h = primary(2, HUGE, stale, 1);
    connect(&mut h, 2, HUGE);
    assert!(h.sent.iter().any(|(_, message)| is_read(message)));
    h.policy = Box::new(|_| Some(Err(Errno::EIO)));
    h.req(1, Op::Write { offset: u64::from(HUGE), data: Buffer::from(vec![1; 512]) });
    h.serve_all(|message| (!is_read(message)).then_some(None));
    assert_eq!(h.result(1), Some(Ok(None)));
    assert!(h.p.status().facts.detached);
    h.policy = Box::new(|_| Some(Ok(())));
    for _ in 0..5 {
        h.serve_all(|_| Some(None));
        h.tick(4);
    }
    assert!(h.p.is_in_step(), "{:?}", h.p.status());
    let data = DATA as usize..DATA as usize + 2 * HUGE as usize;
    assert!(h.disk[data].iter().all(|byte| *byte == 0x55), "all is the secondary's");
}

/// The first block of an extent is on the secondary, which then refuses a write to the same bytes. When the last block is there
/// as well, it lacks that write all the same.
#[test]
fn an_extent_to_which_a_write_was_refused_meanwhile_is_copied_again() {
    let length = MAX_REQUEST * 8;
    let mut h = primary(2, length, Extension::default(), 1);
    connect(&mut h, 2, length);
    let mut first = blocks(&mut h);
    let (last, ..) = first.pop().unwrap();
    assert_eq!(copy(&mut h, first).len(), 7);
    h.req(1, Op::Write { offset: 0, data: Buffer::from(vec![1; 512]) });
    h.serve_all(|message| is(Command::Write)(message).then_some(Some(Errno::EIO)));
    assert_eq!(h.result(1), Some(Ok(None)), "it is here, and the secondary knows that it lacks something");
    h.reply(last, None, None);
    assert_eq!(h.p.status().facts.to_synchronise_bytes, u64::from(length));
    h.tick(1);
    let first = blocks(&mut h);
    assert_eq!(bytes(&copy(&mut h, first)), u64::from(length));
    h.serve_all(|_| Some(None));
    assert!(h.p.is_in_step());
}
