//! Providers with extents of many blocks, with maps of many sectors, and with many extents at once.

use super::*;

/// Bytes of an extent that is copied in blocks.
const LARGE: u32 = 1 << 20;

/// A primary of so many extents of that size, those in `bits` to synchronise.
fn primary(extents: u64, extentsize: u32, bits: &[u32]) -> H {
    let map_bytes = extents.div_ceil(64) * 8;
    let size = 4096 + map_bytes.next_multiple_of(512) + extents * u64::from(extentsize);
    let layout = Layout::create(size, 512, extentsize).unwrap();
    let mut h = H::started(
        metadata_on(&layout, Extension::default()),
        layout,
        map_of(&layout, bits),
        Box::new(|_| Some(Ok(()))),
        false,
    );
    h.handshake_first(Extensions::ALL);
    let answer = SecondAnswer {
        datasize: layout.datasize(),
        extentsize,
        localcnt: 1,
        remotecnt: 1,
        virgin: false,
        syncsrc: SyncSource::Primary,
        mapsize: layout.map_bytes() as u32,
        boot: Some([2; 16]),
        peer_timeout: None,
        met: None,
        zero_deletes: false,
    };
    let map = Buffer::from(vec![0; layout.map_bytes() as usize]);
    h.frame(Side::Out, Message::SecondAnswer(answer, Some(map)));
    h
}

/// Answers marks, and gives the blocks that are being copied to the secondary: number, offset and length.
fn blocks(h: &mut H) -> Vec<(u64, u64, u64)> {
    h.serve_all(|message| is_mark(message).then_some(None));
    super::blocks(h)
}

#[test]
fn a_large_extent_is_copied_block_by_block() {
    let mut h = primary(3, LARGE, &[0, 2]);
    let mut copied = Vec::new();
    loop {
        let blocks = blocks(&mut h);
        if blocks.is_empty() {
            break;
        }
        for (seq, offset, length) in blocks {
            copied.push(offset..offset + length);
            h.reply(seq, None, None);
        }
    }
    h.serve_all(|_| Some(None));
    copied.sort_by_key(|block| block.start);
    let mut expected = (0..u64::from(LARGE)).chain(2 * u64::from(LARGE)..3 * u64::from(LARGE));
    assert!(copied.iter().cloned().flatten().eq(expected.by_ref()), "{copied:?}");
    assert!(copied.iter().all(|block| block.end - block.start <= u64::from(MAX_REQUEST)));
    assert!(h.p.is_in_step());
}

#[test]
fn a_large_extent_of_which_one_block_fails_is_copied_again() {
    for fails_here in [true, false] {
        let mut h = primary(40, LARGE, &(0..40).collect::<Vec<_>>());
        let bad = DATA + 5 * u64::from(LARGE);
        if fails_here {
            h.policy = Box::new(move |op| {
                let fails = matches!(op, DiskOp::Read { offset, .. } if *offset == bad);
                Some(if fails { Err(Errno::EIO) } else { Ok(()) })
            });
        }
        let mut failed = 0;
        for _ in 0..10_000 {
            let blocks = blocks(&mut h);
            if blocks.is_empty() {
                break;
            }
            for (seq, offset, _) in blocks {
                let fails = !fails_here && offset == 5 * u64::from(LARGE);
                failed += u32::from(fails);
                h.reply(seq, fails.then_some(Errno::EIO), None);
            }
        }
        assert!(!h.p.is_in_step(), "L15");
        assert_eq!(h.p.status().dirty, u64::from(LARGE));
        assert!(fails_here || failed == 1, "{failed}");
        // It is tried again later, and then all of it.
        h.policy = Box::new(|_| Some(Ok(())));
        h.tick(11);
        let mut copied = 0;
        loop {
            let blocks = blocks(&mut h);
            if blocks.is_empty() {
                break;
            }
            for (seq, _, length) in blocks {
                copied += length;
                h.reply(seq, None, None);
            }
        }
        h.serve_all(|_| Some(None));
        assert_eq!(copied, u64::from(LARGE));
        assert!(h.p.is_in_step());
    }
}

#[test]
fn a_stop_in_the_middle_of_a_large_extent_leaves_it_dirty() {
    let mut h = primary(40, LARGE, &(0..40).collect::<Vec<_>>());
    let mut first = blocks(&mut h);
    // The next extent has begun.
    for (seq, ..) in first.drain(..3) {
        h.reply(seq, None, None);
    }
    first.extend(blocks(&mut h));
    h.p.handle_stop(h.t);
    h.pump();
    for (seq, ..) in first {
        h.reply(seq, None, None);
    }
    h.serve_all(|_| Some(None));
    assert!(h.other.contains(&Action::Exit(0)));
    let left = h.disk[4096..4096 + 5].iter().map(|byte| byte.count_ones()).sum::<u32>();
    assert!(
        (36..40).contains(&left),
        "{left}: 35 blocks were copied, and what was not copied in full is in the map"
    );
}

#[test]
fn map_sectors_far_apart_are_written_side_by_side() {
    let mut h = primary(4 * 4096, 512, &[]);
    h.serve_all(|_| Some(None));
    // The first write holds up the others, which then share one map write of two pieces.
    h.policy =
        Box::new(|op| (!matches!(op, DiskOp::Write { offset, .. } if *offset >= 4096)).then_some(Ok(())));
    for (id, extent) in [(1, 0), (2, 4096), (3, 3 * 4096)] {
        h.req(id, Op::Write { offset: extent * 512, data: Buffer::from(vec![1; 512]) });
    }
    let end = |h: &mut H| {
        let (id, op) = h.ops.remove(0);
        let DiskOp::Write { offset, .. } = op else { panic!("{op:?}") };
        h.p.handle_disk(h.t, id, Ok(None));
        h.pump();
        offset
    };
    assert_eq!(h.ops.len(), 1);
    assert_eq!(end(&mut h), 4096);
    let mut pieces = Vec::new();
    while pieces.len() < 2 {
        assert!(
            h.sent.iter().all(
                |(_, message)| !matches!(message, Message::Request(Request { offset, .. }) if *offset > 0)
            )
        );
        let at = end(&mut h);
        if at < 4096 + 4 * 512 {
            pieces.push(at);
        }
    }
    assert_eq!(pieces, [4096 + 512, 4096 + 3 * 512]);
    let sent = |offset: u64| {
        h.sent
            .iter()
            .any(|(_, message)| matches!(message, Message::Request(request) if request.offset == offset))
    };
    assert!(sent(4096 * 512) && sent(3 * 4096 * 512));
}

#[test]
fn many_unflushed_extents_are_flushed_without_waiting() {
    let mut h = primary(1100, 512, &[]);
    h.serve_all(|_| Some(None));
    let flushes = |h: &H| {
        let asked =
            |message: &Message| matches!(message, Message::Request(Request { command: Command::Flush, .. }));
        h.sent.iter().filter(|(_, message)| asked(message)).count()
    };
    for extent in 0..1024 {
        assert_eq!(flushes(&h), 0, "after {extent} extents");
        h.req(extent, Op::Write { offset: extent * 512, data: Buffer::from(vec![1; 512]) });
        h.serve_all(|message| {
            matches!(message, Message::Request(Request { command: Command::Write, .. })).then_some(None)
        });
        assert_eq!(h.result(extent), Some(Ok(None)));
    }
    assert_eq!(flushes(&h), 1, "M2: at latest when 1024 wait");
}

/// L3, L9: a failed flush leaves more stale runs than there is room for: too much is stale then, and never too little.
#[test]
fn more_stale_runs_than_the_metadata_holds_leave_none_out() {
    let mut h = primary(200, 512, &[]);
    h.serve_all(|_| Some(None));
    // A flush of the map would make everything before it durable.
    h.p.handle_reload(h.t, Settings { metaflush: false, ..H::settings() }, false);
    h.pump();
    for n in 0..40 {
        h.req(n, Op::Write { offset: n * 4 * 512, data: Buffer::from(vec![1; 512]) });
        h.serve_all(|message| {
            matches!(message, Message::Request(Request { command: Command::Write, .. })).then_some(None)
        });
        assert_eq!(h.result(n), Some(Ok(None)));
    }
    let mut once = true;
    h.policy = Box::new(move |op| {
        let fails = matches!(op, DiskOp::Flush) && std::mem::take(&mut once);
        Some(if fails { Err(Errno::EIO) } else { Ok(()) })
    });
    h.req(99, Op::Flush);
    h.serve_all(|message| match message {
        Message::Request(Request { command: Command::Read, .. }) => None,
        _ => Some(None),
    });
    let stale = Metadata::read(&h.disk).unwrap().metadata.extension.stale;
    assert!(stale.len() <= hast_format::extension::STALE_RUNS, "{} runs", stale.len());
    for n in 0..40 {
        assert!(stale.iter().any(|run| run.extents().contains(&(n * 4))), "extent {} of {stale:?}", n * 4);
    }
}

/// The first of three extents is on the secondary but for its last block, which our disk has yet to read.
fn copied_but_for_one_block() -> H {
    let mut h = primary(3, LARGE, &[0]);
    let last = DATA + u64::from(LARGE - MAX_REQUEST);
    h.policy =
        Box::new(move |op| (!matches!(op, DiskOp::Read { offset, .. } if *offset == last)).then_some(Ok(())));
    let mut copied = 0;
    while copied < u64::from(LARGE - MAX_REQUEST) {
        for (seq, _, length) in blocks(&mut h) {
            copied += length;
            h.reply(seq, None, None);
        }
    }
    h
}

/// Some blocks of an extent have been copied when the secondary fails a flush, which may have dropped them; the others follow.
/// All of the extent is copied again.
#[test]
fn an_extent_of_which_the_secondary_may_have_dropped_a_part_is_copied_again() {
    let mut h = copied_but_for_one_block();
    h.req(1, Op::Flush);
    h.serve_all(|message| is(Command::Flush)(message).then_some(Some(Errno::EIO)));
    h.policy = Box::new(|_| Some(Ok(())));
    h.pump();
    let mut copied = 0;
    for _ in 0..100 {
        for (seq, _, length) in blocks(&mut h) {
            copied += length;
            h.reply(seq, None, None);
        }
        h.serve_all(|message| is(Command::Flush)(message).then_some(None));
        h.tick(1);
    }
    assert!(h.p.is_in_step());
    assert_eq!(copied, u64::from(MAX_REQUEST + LARGE));
}

/// Some blocks of an extent have been copied when the secondary refuses a write to one of them; the others follow. All of the
/// extent is copied again.
#[test]
fn an_extent_of_which_the_secondary_refuses_a_write_while_it_is_copied_is_copied_again() {
    let mut h = copied_but_for_one_block();
    h.w(1, 0);
    h.serve_all(|message| is(Command::Write)(message).then_some(Some(Errno::EIO)));
    assert_eq!(h.result(1), Some(Ok(None)), "it is here alone");
    h.policy = Box::new(|_| Some(Ok(())));
    h.pump();
    let mut copied = Vec::new();
    for _ in 0..100 {
        for (seq, offset, length) in blocks(&mut h) {
            copied.push((offset, length));
            h.reply(seq, None, None);
        }
        h.serve_all(|message| is(Command::Flush)(message).then_some(None));
        h.tick(1);
    }
    assert!(h.p.is_in_step());
    assert!(copied.iter().any(|(offset, _)| *offset == 0), "the secondary has the old bytes: {copied:?}");
}
