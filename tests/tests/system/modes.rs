//! Every replication mode with every checksum and compression: what is written to the device is on
//! both providers.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use hast_tests::{Outcome, Pair, Resource, Setup, disk};

use crate::volume::Volume;

const CHECKSUMS: [&str; 3] = ["none", "crc32", "sha256"];
const COMPRESSIONS: [&str; 3] = ["none", "hole", "lzf"];

/// Nine resources on one pair, one per combination.
fn setup(replication: &str) -> Setup {
    let mut resources = Vec::new();
    for checksum in CHECKSUMS {
        for compression in COMPRESSIONS {
            let statements =
                format!("replication {replication}\nchecksum {checksum}\ncompression {compression}");
            resources.push(Resource::with(&format!("{checksum}-{compression}"), &statements));
        }
    }
    Setup { provider: 8 << 20, resources, ..Setup::default() }
}

fn write_and_compare(replication: &str) -> Outcome {
    let pair = Pair::up(setup(replication))?;
    for (n, resource) in pair.setup.resources.iter().enumerate() {
        let name = &resource.name;
        assert_eq!(pair.a.value(name, "replication")?.as_deref(), Some(replication));
        let mut volume = Volume::fresh(&pair.a, name)?;
        let seed = n as u64;
        // Noise, text, zeros over noise, and a block that is half of each; sizes around the limits of
        // one request, aligned to a sector only.
        volume.scribble(seed, 0, 512)?;
        volume.scribble(seed + 10, 3 * 512, 4096)?;
        volume.write(128 << 10, &disk::text(seed, 128 << 10))?;
        volume.write((256 << 10) + 512, &disk::text(seed, 1 << 20))?;
        volume.scribble(seed + 20, 2 << 20, (1 << 20) + 512)?;
        volume.write((2 << 20) + 4096, &vec![0; 256 << 10])?;
        let mut mixed = disk::pattern(seed + 30, 64 << 10);
        mixed.extend(vec![0; 64 << 10]);
        volume.write(4 << 20, &mixed)?;
        let end = usize::try_from(volume.client.size())? - 4096;
        volume.scribble(seed + 40, end, 4096)?;
        volume.verify()?;
        volume.flush()?;
        volume.verify_provider(&pair.a, name)?;
        volume.verify_provider(&pair.b, name)?;
        let errors = pair.a.value(name, "local errors")?;
        assert_eq!(errors.as_deref(), Some("read: 0, write: 0, delete: 0, flush: 0"));
        assert!(pair.a.number(name, "writes")? >= 8);
        assert!(pair.b.number(name, "writes")? >= 8, "the secondary counts its writes too");
        assert_eq!(pair.a.status(name)?, "complete");
    }
    pair.finish()
}

#[test]
fn fullsync() -> Outcome {
    write_and_compare("fullsync")
}

#[test]
fn memsync() -> Outcome {
    write_and_compare("memsync")
}

#[test]
fn async_() -> Outcome {
    write_and_compare("async")
}

/// TRIM and WRITE_ZEROES reach both nodes too, and leave zeros there without taking room (D1).
#[test]
fn trims_and_zeroes_are_replicated() -> Outcome {
    let pair = Pair::up(Setup::default())?;
    let volume = {
        let mut volume = Volume::fresh(&pair.a, "disk0")?;
        volume.scribble(1, 0, 4 << 20)?;
        volume
    };
    volume.flush()?;
    let before = disk::metadata(&pair.a.provider("disk0"))?;
    let providers = [pair.a.provider("disk0"), pair.b.provider("disk0")];
    let room = |path: &Path| std::fs::metadata(path).map(|metadata| metadata.blocks() * 512);
    let full = [room(&providers[0])?, room(&providers[1])?];
    volume.client.write_zeroes(512, 200 << 10)?;
    volume.client.trim(1 << 20, 1 << 20)?;
    volume.client.write_fua(3 << 20, &disk::pattern(9, 8192))?;
    volume.flush()?;
    assert_eq!(volume.client.read(512, 200 << 10)?, vec![0; 200 << 10]);
    assert_eq!(volume.client.read(3 << 20, 8192)?, disk::pattern(9, 8192));
    assert_eq!(volume.client.read(1 << 20, 1 << 20)?, vec![0; 1 << 20]);
    disk::same_data(&providers[0], &providers[1])?;
    assert_eq!(pair.a.number("disk0", "deletes")?, 2);
    assert_eq!(pair.b.number("disk0", "deletes")?, 2);
    for (path, full) in providers.iter().zip(full) {
        assert!(room(path)? + (1 << 20) < full, "{} takes as much room as before", path.display());
    }
    assert_eq!(disk::metadata(&providers[0])?.localcnt, before.localcnt);
    pair.finish()
}
