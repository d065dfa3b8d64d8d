//! Where the original loses data or can be attacked, as a secondary: ours must not.

use hast_tests::{Outcome, Resource, Setup, disk};

use crate::session::{DATASIZE, DISK, Session, request, secondary, wait_no_worker, write};

/// Writes answered with `received` are stored even if the connection ends at once (L14).
#[test]
fn received_means_stored() -> Outcome {
    let pair = secondary("")?;
    for round in 0..5_u64 {
        let mut session = Session::open(&pair)?;
        let data = disk::pattern(round, 128 << 10);
        for n in 0..8 {
            session.out.send(&write(n + 1, n * (128 << 10), &data, true))?;
        }
        let mut received = std::collections::BTreeSet::new();
        while received.len() < 8 {
            let reply = session.inward.receive()?;
            assert_eq!(reply.list().i16("error"), None);
            received.extend(reply.list().u64("seq"));
        }
        // Half of the rounds drop the link, half are replaced by a new session.
        let mut next = if round % 2 == 0 {
            drop(session);
            wait_no_worker(&pair)?;
            Session::open(&pair)?
        } else {
            Session::open(&pair)?
        };
        for n in 0..8 {
            assert!(next.read(n * (128 << 10), 128 << 10)? == data, "round {round}, write {n}");
        }
    }
    pair.finish()
}

/// Nothing of a message that was cut off is used (L13).
#[test]
fn a_write_that_is_cut_off_is_not_written() -> Outcome {
    let pair = secondary("")?;
    let before = disk::data(&pair.b.provider(DISK))?;
    let whole = write(1, 4096, &disk::pattern(1, 64 << 10), true).bytes();
    for cut in [1, 4, 5, 60, 149, whole.len() / 2, whole.len() - 1] {
        let mut session = Session::open(&pair)?;
        session.out.send_bytes(&whole[..cut])?;
        session.out.end()?;
        session.inward.expect_closed()?;
        wait_no_worker(&pair)?;
        assert!(disk::data(&pair.b.provider(DISK))? == before, "{cut} bytes of the message came");
    }
    pair.finish()
}

/// Ranges that wrap around or leave the data area are refused, and the metadata stay (X2).
#[test]
fn ranges_outside_the_data_area() -> Outcome {
    let pair = secondary("")?;
    let metadata = disk::metadata(&pair.b.provider(DISK))?;
    let mut session = Session::open(&pair)?;
    let localoff = metadata.localoff;
    for offset in [DATASIZE, DATASIZE + 512, u64::MAX - 511, u64::MAX - localoff + 1, 1 << 63] {
        let reply = session.ask(&write(5, offset, &[0xff; 512], false))?;
        assert_eq!(reply.list().i16("error"), Some(22), "a write at {offset}");
        let reply = session.ask(&request(1, 6, offset, 512))?;
        assert_eq!(reply.list().i16("error"), Some(22), "a read at {offset}");
        let reply = session.ask(&request(3, 7, offset, 1 << 20))?;
        assert_eq!(reply.list().i16("error"), Some(22), "a delete at {offset}");
    }
    // One that begins inside and ends outside.
    let reply = session.ask(&write(8, DATASIZE - 512, &[0xff; 1024], false))?;
    assert_eq!(reply.list().i16("error"), Some(22));
    let reply = session.ask(&request(3, 9, 512, u64::MAX - 511))?;
    assert_eq!(reply.list().i16("error"), Some(22));
    let now = disk::metadata(&pair.b.provider(DISK))?;
    assert_eq!((now.datasize, now.localoff), (metadata.datasize, metadata.localoff));
    assert!(disk::data(&pair.b.provider(DISK))?.iter().all(|byte| *byte == 0));
    pair.finish()
}

/// What `create -e 512 -m 1m` of an original makes of an empty provider.
fn lay_out_as_original(provider: &std::path::Path) -> Outcome {
    use hast_format::layout::Layout;
    use hast_format::metadata::Metadata;
    use std::os::unix::fs::FileExt;
    let layout = Layout::create(1 << 20, 512, 512)?;
    let file = std::fs::OpenOptions::new().write(true).open(provider)?;
    for (offset, bytes) in Metadata::created(DISK, &layout, 64).writes(512) {
        file.write_all_at(&bytes, offset)?;
    }
    Ok(())
}

/// A secondary created smaller than its provider clears its map without touching the data (L12).
#[test]
fn clearing_the_map_stays_inside_the_map() -> Outcome {
    let setup = Setup { provider: 64 << 20, resources: vec![Resource::named(DISK)], ..Setup::default() };
    let mut pair = hast_tests::Pair::blank(setup)?;
    // 1 MiB of a 64 MiB provider in extents of 512 bytes: the provider's own map would be 16 KiB long,
    // this one has a few hundred bytes. The data begin right behind it, as where an original lays them out.
    let provider = pair.b.provider(DISK);
    lay_out_as_original(&provider)?;
    let metadata = disk::metadata(&provider)?;
    assert!(metadata.localoff < 8192, "{}", metadata.localoff);
    let filled = disk::pattern(1, usize::try_from(metadata.datasize)?);
    {
        use std::os::unix::fs::FileExt;
        let file = std::fs::OpenOptions::new().write(true).open(&provider)?;
        file.write_all_at(&filled, metadata.localoff)?;
    }
    pair.b.start()?;
    pair.b.role("secondary", DISK)?;
    let mut session = Session::open(&pair)?;
    // What is sent is as long as a reference primary expects, made from the provider's size.
    let sent = u64::from(session.answer.list().u32("mapsize").unwrap_or(0));
    assert_eq!(sent, 16 << 10);
    assert_eq!(session.read(0, 4096)?, filled[..4096]);
    drop(session);
    wait_no_worker(&pair)?;
    assert!(disk::data(&provider)? == filled, "the data area is as it was");
    pair.finish()
}

/// Overlapping requests are carried out in the order in which they came (S1).
#[test]
fn overlapping_requests_keep_their_order() -> Outcome {
    let pair = secondary("")?;
    let mut session = Session::open(&pair)?;
    let mut expected = vec![0; 256 << 10];
    for n in 0..64_u64 {
        let offset = (n * 37 % 96) * 512;
        let data = disk::pattern(n, 64 << 10);
        session.out.send(&write(n + 1, offset, &data, n % 2 == 0))?;
        let at = usize::try_from(offset)?;
        expected[at..at + data.len()].copy_from_slice(&data);
    }
    // A read behind them, over all of it.
    session.out.send(&request(1, 1000, 0, 256 << 10))?;
    loop {
        let reply = session.inward.receive()?;
        assert_eq!(reply.list().i16("error"), None);
        if reply.list().u64("seq") == Some(1000) {
            assert!(reply.decoded()? == expected, "the read sees every write before it");
            break;
        }
    }
    pair.finish()
}
