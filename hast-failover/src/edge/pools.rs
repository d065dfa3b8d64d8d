//! ZFS pools, as zpool(8) shows them.

use std::path::Path;
use std::time::Duration;

use crate::system::{Mounted, Pool, Ran};

use super::command::Runner;
use super::device_number;

/// The pool with this name, if it is imported.
pub(super) fn pool(runner: &Runner, name: &str, limit: Duration) -> Result<Option<Pool>, String> {
    let list = |property: &str| runner.ask("zpool", &["list", "-H", "-o", property, name], limit);
    match list("name") {
        (Ran::Well, said) if said.trim() == name => {}
        // It is not there, or ZFS is not.
        (Ran::Well | Ran::Badly(..) | Ran::Not(_), _) => return Ok(None),
        (Ran::TooLong(limit), _) => {
            return Err(format!("zpool list: no answer within {} s", limit.as_secs()));
        }
    }
    let health = list("health").1.trim().to_owned();
    let (_, said) = runner.ask("zpool", &["status", "-P", name], limit);
    Ok(Some(Pool { health, devices: devices(&said).filter_map(device_number).collect() }))
}

/// The paths of the devices in what `zpool status -P` prints.
fn devices(text: &str) -> impl Iterator<Item = &Path> {
    let words = text.lines().filter_map(|line| line.split_whitespace().next());
    words.filter(|word| word.starts_with("/dev/")).map(Path::new)
}

/// The file systems of a pool, of all that is mounted.
pub(super) fn mounted(mounts: &[Mounted], pool: &str) -> Vec<Mounted> {
    let of_it = |mounted: &&Mounted| {
        let below = mounted.source.strip_prefix(pool);
        mounted.fstype == "zfs" && below.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    };
    mounts.iter().filter(of_it).cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_devices_of_a_pool_are_found() {
        let text = "  pool: tank\n state: ONLINE\nconfig:\n\n\tNAME                STATE     READ WRITE CKSUM\n\
                    \ttank                ONLINE       0     0     0\n\t  mirror-0          ONLINE       0     0     0\n\
                    \t    /dev/hast/tank0  ONLINE       0     0     0\n\t    /dev/hast/tank1  ONLINE       0     0     0\n";
        let found: Vec<&Path> = devices(text).collect();
        assert_eq!(found, [Path::new("/dev/hast/tank0"), Path::new("/dev/hast/tank1")]);
    }

    #[test]
    fn file_systems_belong_to_their_pool_only() {
        let mounted_from = |source: &str, fstype: &str| Mounted {
            id: String::new(),
            device: None,
            files: 1,
            point: "/x".into(),
            source: source.to_owned(),
            fstype: fstype.to_owned(),
        };
        let all =
            [("tank", "zfs"), ("tank/a", "zfs"), ("tank2", "zfs"), ("tank", "tmpfs"), ("other/tank", "zfs")];
        let all: Vec<Mounted> = all.iter().map(|(source, fstype)| mounted_from(source, fstype)).collect();
        assert_eq!(mounted(&all, "tank"), all[..2]);
    }
}
