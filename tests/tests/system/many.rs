//! Sixty-four resources in one daemon.

use hast_tests::{Outcome, Pair, Resource, Setup};

use crate::volume::Volume;

const COUNT: usize = 64;

#[test]
fn sixty_four_resources() -> Outcome {
    let resources = (0..COUNT).map(|n| Resource::named(&format!("disk{n}"))).collect();
    let pair = Pair::up(Setup { provider: 1 << 20, extent: 16 << 10, resources, ..Setup::default() })?;
    let status = pair.a.ctl(&["status"])?;
    assert_eq!(status.lines().count(), COUNT + 1, "a header and one line each");
    assert_eq!(status.lines().filter(|line| line.contains("\tcomplete primary")).count(), COUNT);
    let mut volumes = Vec::new();
    for n in 0..COUNT {
        volumes.push(Volume::fresh(&pair.a, &format!("disk{n}"))?);
    }
    for (n, volume) in volumes.iter_mut().enumerate() {
        volume.scribble(n as u64, n * 4096, 64 << 10)?;
    }
    for volume in &volumes {
        volume.flush()?;
    }
    for (n, volume) in volumes.iter().enumerate() {
        volume.verify()?;
        volume.verify_provider(&pair.b, &format!("disk{n}"))?;
    }
    // All at once to init: no device is left.
    pair.a.role("init", "all")?;
    assert!((0..COUNT).all(|n| !pair.a.socket(&format!("disk{n}")).exists()));
    pair.finish()
}
