use super::*;

const MIB: u64 = 1 << 20;

fn agreed() -> Agreed {
    // Flags, flush, FUA, trim, zeroes.
    Agreed { size: 96 * MIB, flags: 0b110_1101, minimum_block: 512, maximum_payload: 32 << 20 }
}

/// As the header's macros spell them where requests are encoded as on x86.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64", target_arch = "riscv64"))]
#[test]
fn commands_have_the_headers_numbers() {
    let numbers = [
        (Control::GetFeatures, 0x8020_7513),
        (Control::GetInfo, 0x8020_7502),
        (Control::Add, 0xc020_7504),
        (Control::SetParameters, 0xc020_7508),
        (Control::Start, 0xc020_7506),
        (Control::Stop, 0xc020_7507),
        (Control::Delete, 0xc020_7505),
        (Control::DeleteLater, 0x8020_7514),
        (Control::StartRecovery, 0xc020_7510),
        (Control::EndRecovery, 0xc020_7511),
    ];
    for (control, number) in numbers {
        assert_eq!(control.opcode(), number, "{control:?}");
    }
    assert_eq!((FETCH, COMMIT_AND_FETCH), (0xc010_7520, 0xc010_7521));
    assert_eq!(feature::NEEDED, 0x98);
}

#[test]
fn structures_have_the_headers_sizes_and_places() {
    assert_eq!(size_of::<ControlCommand>(), 32);
    assert_eq!(size_of::<IoCommand>(), 16);
    assert_eq!(size_of::<Info>(), 64);
    assert_eq!(size_of::<Descriptor>(), 24);
    assert_eq!(offset_of!(ControlCommand, address), 8);
    assert_eq!(offset_of!(ControlCommand, path_length), 24);
    assert_eq!(offset_of!(Info, process), 16);
    assert_eq!(offset_of!(Info, flags), 24);
    assert_eq!(offset_of!(Info, identity), 32);
    assert_eq!(offset_of!(Parameters, basic), 8);
    assert_eq!(offset_of!(Parameters, discard), 40);
    assert_eq!(offset_of!(Parameters, rest), 60);
    assert_eq!(offset_of!(Basic, max_sectors), 8);
    assert_eq!(offset_of!(Basic, sectors), 16);
    assert_eq!(offset_of!(Discard, max_segments), 16);
}

#[cfg(target_endian = "little")]
#[test]
fn commands_as_bytes() {
    let command = ControlCommand::new(Some(0x0304), 0x0506, 0x0708_090a, 64);
    let mut expected = [0; 32];
    expected[..8].copy_from_slice(&[4, 3, 0, 0, 0xff, 0xff, 64, 0]);
    expected[8..24].copy_from_slice(&[0x0a, 9, 8, 7, 0, 0, 0, 0, 6, 5, 0, 0, 0, 0, 0, 0]);
    assert_eq!(command.as_bytes(), expected);
    assert_eq!(ControlCommand::new(None, 0, 0, 0).as_bytes()[..4], [0xff; 4]);

    let command = IoCommand::new(0x0102, -5);
    assert_eq!(command.as_bytes(), [0, 0, 2, 1, 0xfb, 0xff, 0xff, 0xff, 0, 0, 0, 0, 0, 0, 0, 0]);
}

#[test]
fn a_device_that_is_wanted_and_one_that_there_is() {
    let info = Info::wanted(7);
    assert_eq!((info.device(), info.depth(), info.identity()), (u32::MAX, DEPTH, 7));
    assert_eq!((info.state(), info.process()), (State::Dead, Some(0)));
    assert!(info.is_fit());

    let mut bytes = [0; 64];
    info.write_to(&mut bytes).unwrap();
    bytes[4..6].copy_from_slice(&2_u16.to_ne_bytes());
    bytes[12..16].copy_from_slice(&3_u32.to_ne_bytes());
    bytes[16..20].copy_from_slice(&(-1_i32).to_ne_bytes());
    let info = Info::read_from_bytes(&bytes).unwrap();
    assert_eq!((info.device(), info.state(), info.process()), (3, State::Quiesced, None));
    assert_eq!(Info { state: 1, ..info }.state(), State::Live);
    assert_eq!(Info { state: 9, ..info }.state(), State::Other(9));

    for other in [
        Info { queues: 2, ..info },
        Info { depth: 0, ..info },
        Info { flags: feature::USER_RECOVERY | feature::USER_COPY, ..info },
    ] {
        assert!(!other.is_fit(), "{other:?}");
    }
}

#[test]
fn an_export_becomes_parameters() {
    let of = Parameters::of(&agreed()).unwrap();
    assert_eq!((of.length, of.types), (60, 3));
    assert_eq!(of.basic.attributes, 0b1100, "a cache, and writes through it");
    assert_eq!((of.basic.logical_shift, of.basic.physical_shift, of.basic.sectors), (9, 9, 96 * 2048));
    assert_eq!((of.basic.max_sectors, of.discard.granularity), (1024, 512));
    assert_eq!((of.discard.max_sectors, of.discard.max_zeroes_sectors), (1 << 21, 1 << 21));
    assert_eq!(of.discard.max_segments, 1);

    let of = Parameters::of(&Agreed { flags: 0b11, minimum_block: 4096, ..agreed() }).unwrap();
    assert_eq!(of.basic.attributes, 1, "neither flushes nor FUA, and read-only");
    assert_eq!((of.basic.logical_shift, of.discard.granularity), (12, 4096));
    assert_eq!((of.discard.max_sectors, of.discard.max_zeroes_sectors), (0, 0));
    assert_eq!(of.discard.max_segments, 0);

    // Without flushes FUA makes nothing durable.
    assert_eq!(Parameters::of(&Agreed { flags: 0b1001, ..agreed() }).unwrap().basic.attributes, 0);
    // A server that did not say.
    assert_eq!(Parameters::of(&Agreed { minimum_block: 1, ..agreed() }).unwrap().basic.logical_shift, 9);
    let small = Parameters::of(&Agreed { maximum_payload: 70_000, minimum_block: 4096, ..agreed() });
    assert_eq!(small.unwrap().basic.max_sectors, 17 * 8);

    for no_device in [
        Agreed { minimum_block: 1536, ..agreed() },
        Agreed { minimum_block: 8192, ..agreed() },
        Agreed { size: MIB + 512, minimum_block: 4096, ..agreed() },
        Agreed { maximum_payload: 511, ..agreed() },
    ] {
        assert_eq!(Parameters::of(&no_device), None, "{no_device:?}");
    }
}

#[test]
fn descriptors_become_operations() {
    let of = |operation, sectors, first_sector| {
        Operation::of(&Descriptor { operation, sectors, first_sector, address: 0 })
    };
    let (offset, length) = (5 * 512, 4096);
    assert_eq!(of(0, 8, 5), Some(Operation::Read { offset, length }));
    assert_eq!(of(1, 8, 5), Some(Operation::Write { offset, length, fua: false }));
    // Other flags do not matter.
    assert_eq!(of(1 | 1 << 13 | 1 << 11, 8, 5), Some(Operation::Write { offset, length, fua: true }));
    assert_eq!(of(2, 0, 0), Some(Operation::Flush));
    assert_eq!(of(3, 8, 5), Some(Operation::Discard { offset, length, fua: false }));
    assert_eq!(of(3, 1 << 21, 0), Some(Operation::Discard { offset: 0, length: 1 << 30, fua: false }));
    assert_eq!(of(5, 8, 5), Some(Operation::Zeroes { offset, length, no_hole: false, fua: false }));
    let through = 5 | 1 << 15 | 1 << 13;
    assert_eq!(of(through, 8, 5), Some(Operation::Zeroes { offset, length, no_hole: true, fua: true }));

    for (operation, sectors, first_sector) in
        [(4, 8, 5), (15, 8, 5), (0, 1025, 0), (1, 1025, 0), (0, 0, 0), (3, 1 << 23, 0), (0, 8, 1 << 55)]
    {
        assert_eq!(of(operation, sectors, first_sector), None, "{operation} {sectors} {first_sector}");
    }
}

#[test]
fn operations_become_requests() {
    let data = [1; 512];
    let all = [
        (Operation::Read { offset: 1, length: 2 }, Request::Read { offset: 1, length: 2 }, 2),
        (
            Operation::Write { offset: 1, length: 512, fua: true },
            Request::Write { offset: 1, data: &data, fua: true },
            512,
        ),
        (Operation::Flush, Request::Flush, 0),
        (
            Operation::Discard { offset: 1, length: 2, fua: true },
            Request::Trim { offset: 1, length: 2, fua: true },
            0,
        ),
        (
            Operation::Zeroes { offset: 1, length: 2, no_hole: true, fua: false },
            Request::WriteZeroes { offset: 1, length: 2, no_hole: true, fua: false },
            0,
        ),
    ];
    for (operation, request, length) in all {
        assert_eq!(operation.request(&data), request);
        assert_eq!(operation.data_length(), length);
    }
}

#[test]
fn each_tags_data_has_its_place() {
    assert_eq!(data_offset(0), 0x8000_0000);
    assert_eq!(data_offset(3), 0x8000_0000 + 3 * (32 << 20));
    assert_eq!(data_offset(u16::MAX), 0x8000_0000 + 65_535 * (32 << 20));
}

#[test]
fn another_export_has_to_be_the_same_device() {
    let agreed = agreed();
    assert!(replaces(&agreed, &agreed));
    assert!(replaces(&agreed, &Agreed { flags: agreed.flags | 1 << 8, ..agreed }));
    assert!(!replaces(&agreed, &Agreed { size: agreed.size * 2, ..agreed }));
    assert!(!replaces(&agreed, &Agreed { flags: 1, ..agreed }));
    assert!(!replaces(&agreed, &Agreed { minimum_block: 4096, ..agreed }));
    assert!(!replaces(&agreed, &Agreed { maximum_payload: 4096, ..agreed }));
}
