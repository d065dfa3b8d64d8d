use super::*;
use hast_format::extension::{Extension, Mark};
use hast_format::metadata::BlockState;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixListener;

mod bad_sectors;
pub(crate) use bad_sectors::Faults;

fn scratch(size: u64) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("provider");
    File::create(&path).unwrap().set_len(size).unwrap();
    (dir, path)
}

fn described(layout: &Layout) -> Metadata {
    Metadata::created("disk0", layout, 64)
}

#[test]
fn a_regular_file_has_its_length_and_512_byte_sectors() {
    let (_dir, path) = scratch(100_001);
    let provider = Provider::open(&path, true).unwrap();
    assert_eq!(provider.mediasize(), 100_001);
    assert_eq!(provider.sectorsize(), 512);
    assert!(!provider.is_device());
    assert_eq!(provider.path(), path);
    let again = Provider::from_fd(provider.as_file().as_fd().try_clone_to_owned().unwrap(), &path).unwrap();
    assert_eq!((again.mediasize(), again.sectorsize()), (100_001, 512));
}

#[test]
fn the_open_file_is_a_blocking_one() {
    let (_dir, path) = scratch(4096);
    for write in [false, true] {
        let provider = Provider::open(&path, write).unwrap();
        let flags = fcntl(provider.as_file(), FcntlArg::F_GETFL).unwrap();
        let flags = OFlag::from_bits_truncate(flags);
        assert!(!flags.contains(OFlag::O_NONBLOCK), "{flags:?}");
        assert_eq!(flags & OFlag::O_ACCMODE, if write { OFlag::O_RDWR } else { OFlag::O_RDONLY });
    }
}

#[test]
fn what_is_not_flushed_yet_stays_in_the_cache() {
    let (_dir, path) = scratch(1 << 20);
    let provider = Provider::open(&path, true).unwrap();
    provider.as_file().write_all_at(&[7; 4096], 8192).unwrap();
    provider.forget_cached().unwrap();
    let mut bytes = [0; 4096];
    provider.as_file().read_exact_at(&mut bytes, 8192).unwrap();
    assert_eq!(bytes, [7; 4096]);
}

#[test]
fn what_is_no_disk_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let missing = dir.path().join("missing");
    assert_eq!(
        Provider::open(&missing, false).unwrap_err().to_string(),
        format!("Unable to open {}: No such file or directory.", missing.display())
    );
    let fifo = dir.path().join("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let socket = dir.path().join("socket");
    let _listener = UnixListener::bind(&socket).unwrap();
    let refusal = |path: &Path| Provider::open(path, false).unwrap_err();
    assert!(matches!(refusal(&fifo), ProviderError::NotAProvider { .. }));
    assert!(matches!(refusal(dir.path()), ProviderError::NotAProvider { .. }));
    assert!(matches!(
        refusal(Path::new("/dev/null")),
        ProviderError::NotAProvider { .. } | ProviderError::Mediasize { .. }
    ));
    assert!(matches!(refusal(&socket), ProviderError::Open { .. }));
}

#[test]
fn one_open_file_locks_out_the_others() {
    let (_dir, path) = scratch(4096);
    let first = Provider::open(&path, true).unwrap();
    first.lock().unwrap();
    first.lock().unwrap();
    let second = Provider::open(&path, true).unwrap();
    assert!(matches!(second.lock(), Err(ProviderError::InUse { .. })));
    // The lock goes where the descriptor goes, and stays when one of its holders lets go.
    let shared = Provider::from_fd(first.as_file().as_fd().try_clone_to_owned().unwrap(), &path).unwrap();
    drop(first);
    assert!(matches!(second.lock(), Err(ProviderError::InUse { .. })));
    drop(shared.into_file());
    second.lock().unwrap();
}

#[test]
fn metadata_and_map_go_to_the_disk_and_back() {
    let (_dir, path) = scratch(1 << 20);
    let provider = Provider::open(&path, true).unwrap();
    let layout = Layout::create(provider.mediasize(), provider.sectorsize(), 512).unwrap();
    let metadata = described(&layout);
    provider.write_metadata(&metadata).unwrap();
    assert_eq!(provider.read_metadata().unwrap(), metadata);
    assert_eq!(provider.read_metadata_of("disk0").unwrap(), metadata);
    let refusal = provider.read_metadata_of("disk1").unwrap_err();
    assert_eq!(refusal.to_string(), format!("Provider {} is not part of resource disk1.", path.display()));
    provider.as_file().write_all_at(&[0xa5], layout.localoff() - 1).unwrap();
    let map = provider.read_map(&layout).unwrap();
    assert_eq!(map.len() as u64, layout.map_bytes());
    assert_eq!(map.last(), Some(&0xa5));
}

/// A provider whose metadata has an extension, saved.
fn extended(path: &Path) -> (Provider, Metadata) {
    let provider = Provider::open(path, true).unwrap();
    let layout = Layout::create(provider.mediasize(), provider.sectorsize(), 512).unwrap();
    let mut metadata = described(&layout);
    provider.initialize(&metadata, &layout).unwrap();
    metadata.localcnt = 3;
    metadata.extension.generation = 7;
    metadata.extension.mark = Some(Mark { since: 1, by: "nodeb".to_owned() });
    provider.write_metadata(&metadata).unwrap();
    (provider, metadata)
}

#[test]
fn an_extension_is_saved_and_found() {
    let (_dir, path) = scratch(1 << 20);
    let (provider, metadata) = extended(&path);
    let reading = provider.read_metadata_block().unwrap();
    assert_eq!((&reading.metadata, reading.state), (&metadata, BlockState::Whole));
    assert_eq!(provider.recover_metadata_of("disk0").unwrap(), reading);
    assert_eq!(fs::read(&path).unwrap()[..4096], metadata.encode());
    // Made anew, it is as the original makes it.
    let layout = Layout::create(provider.mediasize(), provider.sectorsize(), 512).unwrap();
    provider.initialize(&described(&layout), &layout).unwrap();
    assert_eq!(provider.read_metadata_block().unwrap().state, BlockState::NoArea);
    assert_eq!(fs::read(&path).unwrap()[..4096], described(&layout).encode());
}

#[test]
fn a_damaged_block_is_read_as_it_is_and_repaired_on_request() {
    for (sector, state) in
        [(0, BlockState::ListDamaged), (1024, BlockState::ListDamaged), (3584, BlockState::AreaDamaged)]
    {
        let (_dir, path) = scratch(1 << 20);
        let (provider, metadata) = extended(&path);
        let good = fs::read(&path).unwrap();
        provider.as_file().write_all_at(&[0xff; 512], sector).unwrap();
        let bad = fs::read(&path).unwrap();

        let reading = provider.read_metadata_block().unwrap();
        assert_eq!((&reading.metadata, reading.state), (&metadata, state));
        assert_eq!(provider.read_metadata_of("disk0").unwrap(), metadata);
        let refusal = provider.recover_metadata_of("disk1").unwrap_err();
        assert!(matches!(refusal, ProviderError::NotPartOf { .. }));
        let refusal = Provider::open(&path, false).unwrap().recover_metadata_of("disk0").unwrap_err();
        assert!(matches!(refusal, ProviderError::WriteMetadata { .. }), "{refusal}");
        assert!(fs::read(&path).unwrap() == bad);

        assert_eq!(provider.recover_metadata_of("disk0").unwrap(), reading);
        assert!(fs::read(&path).unwrap() == good);
        assert_eq!(provider.read_metadata_block().unwrap().state, BlockState::Whole);
    }
}

/// Without the area nothing is left but the list; what was damaged is cleared, or the next save would find it.
#[test]
fn a_lost_area_is_cleared() {
    let (_dir, path) = scratch(1 << 20);
    let (provider, mut metadata) = extended(&path);
    for at in [1024, 3072] {
        provider.as_file().write_all_at(&[0xff], at).unwrap();
    }
    metadata.extension = Extension::default();
    let reading = provider.recover_metadata_of("disk0").unwrap();
    assert_eq!((&reading.metadata, reading.state), (&metadata, BlockState::AreaLost));
    assert_eq!(fs::read(&path).unwrap()[..4096], metadata.encode());
    assert_eq!(provider.read_metadata_block().unwrap().state, BlockState::NoArea);
}

#[test]
fn what_holds_no_metadata_says_so() {
    for size in [0, 4095, 4096, 1 << 20] {
        let (_dir, path) = scratch(size);
        let refusal = Provider::open(&path, false).unwrap().read_metadata().unwrap_err();
        assert!(matches!(refusal, ProviderError::BadMetadata { .. }), "{size}: {refusal}");
        assert!(
            refusal.to_string().starts_with(&format!("Unable to read metadata from {}: ", path.display()))
        );
    }
}

#[test]
fn a_fresh_provider_has_an_empty_map_and_its_old_data() {
    let (_dir, path) = scratch(0);
    fs::write(&path, vec![0xff; 3 << 20]).unwrap();
    let provider = Provider::open(&path, true).unwrap();
    let layout = Layout::create(provider.mediasize(), provider.sectorsize(), 512).unwrap();
    provider.initialize(&described(&layout), &layout).unwrap();
    let bytes = fs::read(&path).unwrap();
    let (head, data) = bytes.split_at(layout.localoff() as usize);
    let (block, map) = head.split_at(4096);
    assert_eq!(block, described(&layout).encode());
    assert!(map.iter().all(|byte| *byte == 0));
    assert!(data.iter().all(|byte| *byte == 0xff));
    assert_eq!(bytes.len(), 3 << 20);
}

/// Needs root and a free loop device; elsewhere there is nothing to test it on.
#[cfg(target_os = "linux")]
#[test]
fn a_block_device_is_measured() {
    use std::process::Command;

    let (_dir, path) = scratch(8 << 20);
    let attach =
        Command::new("losetup").args(["--find", "--show", "--sector-size", "4096"]).arg(&path).output();
    let Some(output) = attach.ok().filter(|output| output.status.success()) else {
        eprintln!("skipped: no loop device can be attached here");
        return;
    };
    let device = PathBuf::from(String::from_utf8(output.stdout).unwrap().trim());
    let measured = Provider::claim(&device, Duration::ZERO).map(|provider| {
        let exclusive = Provider::open(&device, true).map(drop);
        (provider.mediasize(), provider.sectorsize(), provider.is_device(), exclusive)
    });
    assert!(Command::new("losetup").arg("--detach").arg(&device).status().unwrap().success());
    let (mediasize, sectorsize, is_device, exclusive) = measured.unwrap();
    assert_eq!((mediasize, sectorsize, is_device), (8 << 20, 4096, true));
    assert!(matches!(exclusive, Err(ProviderError::Mounted { .. })), "{exclusive:?}");
}
