use super::*;

use std::os::unix::fs::FileExt;
use std::path::Path;

const SIZE: usize = 1 << 20;

fn full(path: &Path) -> Provider {
    std::fs::write(path, vec![7; SIZE]).unwrap();
    Provider::open(path, true).unwrap()
}

fn contents(provider: &Provider) -> Vec<u8> {
    let mut contents = vec![0; SIZE];
    provider.as_file().read_exact_at(&mut contents, 0).unwrap();
    contents
}

/// Does what it says it can, exactly, and nothing else.
fn check(provider: &Provider) -> Deletes {
    let ability = ability(provider);
    assert!(contents(provider).iter().all(|&byte| byte == 7), "asking changes nothing");
    if ability == Deletes::Refused && cfg!(target_os = "freebsd") {
        return ability; // the system would write zeros
    }
    let mut expected = vec![7; SIZE];
    // Around the ends of pages, and behind a write that is in the cache alone.
    for (at, length) in
        [(SIZE / 4, SIZE / 2 + 512), (1024, 6144), (8192, 4096), (512, 512), (4096 - 512, 1024)]
    {
        provider.as_file().write_all_at(&[8; 4096], at as u64).unwrap();
        expected[at..at + 4096].fill(8);
        let freed = free(provider.as_file(), provider.is_device(), at as u64, length as u64);
        match (ability, &freed) {
            (Deletes::LeaveZeros, Ok(())) => expected[at..at + length].fill(0),
            (Deletes::Refused, Err(error)) => assert_eq!(error.raw_os_error(), Some(libc::EOPNOTSUPP)),
            // A part of a page.
            (Deletes::Refused, Ok(())) if provider.is_device() && length < 8192 => {
                expected[at..at + length].fill(0);
            }
            other => panic!("{other:?}"),
        }
        assert!(contents(provider) == expected, "{at}, {length}: {freed:?}");
        provider.flush().unwrap();
        provider.forget_cached().unwrap();
        assert!(contents(provider) == expected, "{at}, {length}: {freed:?}, on the disk");
    }
    let absurd = free(provider.as_file(), provider.is_device(), u64::MAX, 512).unwrap_err();
    assert_eq!(absurd.raw_os_error(), Some(libc::EINVAL));
    ability
}

#[test]
fn a_file_has_a_hole_where_it_was_freed() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("provider");
    let provider = full(&path);
    provider.flush().unwrap();
    let before = std::os::unix::fs::MetadataExt::blocks(&std::fs::metadata(&path).unwrap());
    if check(&provider) == Deletes::Refused {
        eprintln!("SKIPPED: the file system for temporary files knows no holes");
        return;
    }
    provider.flush().unwrap();
    let metadata = std::fs::metadata(&path).unwrap();
    assert!(std::os::unix::fs::MetadataExt::blocks(&metadata) < before);
    assert_eq!(metadata.len(), SIZE as u64);
}

#[test]
fn what_is_open_for_reading_alone_cannot_be_freed() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("provider");
    drop(full(&path));
    assert_eq!(ability(&Provider::open(&path, false).unwrap()), Deletes::Refused);
}

#[cfg(target_os = "linux")]
mod linux {
    use super::*;

    use std::path::PathBuf;
    use std::process::Command;

    /// A file system in memory that knows no holes, on a view of the mounts of this thread's own. None where that cannot
    /// be had: without root, or in a container.
    fn without_holes(directory: &Path) -> Option<()> {
        use nix::sched::{CloneFlags, unshare};
        unshare(CloneFlags::CLONE_FS | CloneFlags::CLONE_NEWNS).ok()?;
        let mount = |arguments: &[&str]| {
            let mut command = Command::new("mount");
            let mounted = command.args(arguments).status().is_ok_and(|status| status.success());
            mounted.then_some(())
        };
        mount(&["--make-rprivate", "/"])?;
        mount(&["-t", "ramfs", "none", directory.to_str()?])
    }

    /// A loop device, for as long as the value lives.
    struct Loop(PathBuf);

    impl Loop {
        fn attach(file: &Path) -> Option<Loop> {
            let mut command = Command::new("losetup");
            let output = command.args(["--find", "--show"]).arg(file).output().ok()?;
            output
                .status
                .success()
                .then(|| Loop(PathBuf::from(String::from_utf8(output.stdout).unwrap().trim())))
        }
    }

    impl Drop for Loop {
        fn drop(&mut self) {
            let _ = Command::new("losetup").arg("--detach").arg(&self.0).status();
        }
    }

    #[test]
    fn a_file_system_without_holes_refuses_and_so_does_a_device_on_it() {
        let directory = tempfile::tempdir().unwrap();
        let Some(()) = without_holes(directory.path()) else {
            eprintln!("SKIPPED: only root can mount a file system that knows no holes");
            return;
        };
        let path = directory.path().join("provider");
        assert_eq!(check(&full(&path)), Deletes::Refused);
        drop(full(&path));
        let Some(device) = Loop::attach(&path) else {
            eprintln!("SKIPPED: no loop device can be attached here");
            return;
        };
        assert_eq!(check(&Provider::open(&device.0, true).unwrap()), Deletes::Refused);
    }

    #[test]
    fn a_block_device_is_asked_what_it_can_do() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("provider");
        let of_the_file = ability(&full(&path));
        let Some(device) = Loop::attach(&path) else {
            eprintln!("SKIPPED: no loop device can be attached here");
            return;
        };
        assert_eq!(check(&Provider::open(&device.0, true).unwrap()), of_the_file);
    }
}
