//! A synchronisation leaves holes where the source has zeros, on nodes that can free a range so that it reads as zeros (D1).

use super::*;

/// Extents 2 and 3 are to be copied to the secondary; all of 2 is zeros.
fn to_the_secondary(theirs: bool) -> H {
    let mut h = H::new(24, 1, Extension::default(), &[2, 3], 5, 1, 1);
    let at = DATA as usize + 2 * ES as usize;
    h.disk[at..at + ES as usize].fill(0);
    h.handshake_first(Extensions::ALL);
    let agrees = SecondAnswer { zero_deletes: theirs, mapsize: 512, ..h.agrees() };
    h.frame(Side::Out, Message::SecondAnswer(agrees, Some(Buffer::from(vec![0; 512]))));
    h.serve_all(|message| is_mark(message).then_some(None));
    h
}

/// What the secondary is asked to do with the data area, and where.
fn asked(h: &H) -> Vec<(Command, u64)> {
    let request = |(_, message): &(Side, Message)| match message {
        Message::Request(request) if request.length > 0 => {
            Some((request.command, request.offset / u64::from(ES)))
        }
        _ => None,
    };
    let mut asked: Vec<_> = h.sent.iter().filter_map(request).collect();
    asked.sort_by_key(|(_, extent)| *extent);
    asked
}

#[test]
fn zeros_are_freed_on_a_secondary_that_can() {
    for theirs in [true, false] {
        let mut h = to_the_secondary(theirs);
        let zeros = if theirs { Command::Delete } else { Command::Write };
        assert_eq!(asked(&h), [(zeros, 2), (Command::Write, 3)]);
        h.serve_all(|_| Some(None));
        assert!(h.p.is_in_step());
    }
}

/// A secondary that fails to free stores zeros instead. One that says that it cannot is not asked again.
#[test]
fn zeros_that_could_not_be_freed_are_stored() {
    for error in [Errno::EIO, Errno::EOPNOTSUPP] {
        let mut h = to_the_secondary(true);
        h.serve_all(|message| is(Command::Delete)(message).then_some(Some(error)));
        assert_eq!(asked(&h), [(Command::Write, 2), (Command::Write, 3)]);
        let data = h.sent.iter().find_map(|(_, message)| match message {
            Message::Request(Request { offset, data, .. }) if *offset == 2 * u64::from(ES) => data.clone(),
            _ => None,
        });
        assert_eq!(data.as_deref(), Some(&vec![0; ES as usize][..]));
        h.serve_all(|_| Some(None));
        assert!(h.p.is_in_step(), "{error:?}");
        h.req(1, Op::Delete { offset: 0, length: ES.into() });
        let refused = error == Errno::EOPNOTSUPP;
        assert_eq!(h.result(1) == Some(Err(Errno::EOPNOTSUPP)), refused, "{:?}", h.result(1));
    }
}

/// If storing them fails, too, nothing was copied.
#[test]
fn zeros_that_could_not_be_stored_either_are_copied_later() {
    let mut h = to_the_secondary(true);
    h.serve_all(|message| {
        let zeros = matches!(message, Message::Request(request) if request.offset == 2 * u64::from(ES));
        zeros.then_some(Some(Errno::EIO))
    });
    assert_eq!(asked(&h), [(Command::Write, 3)]);
    h.serve_all(|_| Some(None));
    assert!(!h.p.is_in_step() && h.p.status().dirty == u64::from(ES));
    h.tick(11);
    h.serve_all(|_| Some(None));
    assert!(h.p.is_in_step());
}

/// The secondary is the source of extents 2 and 3.
fn from_the_secondary(policy: impl Fn(&DiskOp) -> Result<(), Errno> + 'static) -> H {
    let mut h = H::target(&[2, 3]);
    h.policy = Box::new(move |op| Some(policy(op)));
    h.serve_all(|message| is_mark(message).then_some(None));
    let reads: Vec<_> = h
        .sent
        .iter()
        .filter_map(|(_, message)| match message {
            Message::Request(Request { command: Command::Read, seq, offset, length, .. }) => {
                Some((*seq, *offset, *length))
            }
            _ => None,
        })
        .collect();
    h.sent.retain(|(_, message)| !is_read(message));
    for (seq, offset, length) in reads {
        let byte = if offset / u64::from(ES) == 2 { 0 } else { 0x55 };
        h.reply(seq, None, Some(Buffer::from(vec![byte; length as usize])));
    }
    h
}

fn data_of(h: &H, extent: u64) -> &[u8] {
    let at = (DATA + extent * u64::from(ES)) as usize;
    &h.disk[at..at + ES as usize]
}

#[test]
fn zeros_are_freed_here() {
    let freed = std::rc::Rc::new(std::cell::RefCell::new(Vec::new()));
    let log = freed.clone();
    let mut h = from_the_secondary(move |op| {
        if let DiskOp::Delete { offset, length } = op {
            log.borrow_mut().push((*offset, *length));
        }
        Ok(())
    });
    assert_eq!(*freed.borrow(), [(DATA + 2 * u64::from(ES), u64::from(ES))]);
    h.serve_all(|_| Some(None));
    assert!(h.p.is_in_step());
    assert!(data_of(&h, 2).iter().all(|byte| *byte == 0) && data_of(&h, 3).iter().all(|byte| *byte == 0x55));
}

#[test]
fn zeros_that_could_not_be_freed_here_are_stored() {
    for error in [Errno::EIO, Errno::EOPNOTSUPP] {
        let mut h = from_the_secondary(move |op| match op {
            DiskOp::Delete { .. } => Err(error),
            _ => Ok(()),
        });
        h.serve_all(|_| Some(None));
        assert!(h.p.is_in_step(), "{error:?}");
        assert!(data_of(&h, 2).iter().all(|byte| *byte == 0));
    }
}

/// Nodes that have both just been created: what the secondary's file holds from before is copied from a primary of ours; an
/// original, and a file that is all holes, have nothing to copy.
#[test]
fn what_a_fresh_secondary_holds_from_before_is_copied() {
    for (ext, former, expected) in [
        (Extensions::ALL, &[2, 5][..], Some(&[0b10_0100][..])),
        (Extensions::ALL, &[][..], None),
        (Extensions::NONE, &[2, 5][..], None),
    ] {
        let mut start = sessions::starting(24, ext, 0, (0, 0), 0, Role::Primary, Extension::default());
        start.metadata.prevrole = Role::Init;
        start.hello.virgin = true;
        (start.hello.localcnt, start.hello.remotecnt) = (0, 0);
        for extent in former {
            start.former.insert(*extent);
        }
        let mut s = sessions::driven(start);
        s.good();
        let [Message::SecondAnswer(answer, map)] = &s.sent[..] else { panic!("{:?}", s.sent) };
        assert!(answer.virgin && answer.syncsrc == SyncSource::Primary);
        assert_eq!(map.as_ref().map(|map| &map[..1]), expected, "{ext:?}, {former:?}");
    }
}
