//! `hastctl compare`: how far the copies on the two nodes are apart, as their maps say.
//!
//! Owns the words. What a map says is no comparison of data: an extent that is in neither is the same on both
//! nodes, one that is in a map may be.

use std::fmt::Write;
use std::path::Path;

use hast_conf::Config;
use hast_format::bitmap::Bitmap;
use hast_format::layout::Layout;
use hast_format::metadata::Role;
use hast_net::control::{Entry, ResourceStatus};
use hast_net::human::human;
use hast_provider::Provider;

use crate::human::printable;

/// A block per resource.
pub(crate) fn compare(config: &Config, entries: &[Entry]) -> String {
    let mut out = String::new();
    for entry in entries {
        // Writing to a string cannot fail.
        let _ = writeln!(out, "{}:", printable(entry.name()));
        let _ = match entry {
            Entry::Error { error, .. } => writeln!(out, "  error: {error}"),
            Entry::RoleWas { role, .. } => writeln!(out, "  role: {}", printable(role)),
            Entry::Status { name, status } => {
                out.push_str(&Apart::of(status, || changed_here(config, name)).lines());
                Ok(())
            }
        };
    }
    out
}

/// What is known of two copies; None of what nobody knows.
#[derive(Debug, Default, PartialEq, Eq)]
struct Apart {
    state: &'static str,
    extentsize: u32,
    here: Option<u64>,
    there: Option<u64>,
    both: Option<u64>,
    either: Option<u64>,
    exact: Option<bool>,
}

impl Apart {
    /// `on_disk` looks at the provider here: bytes per extent, and extents in its map.
    fn of(status: &ResourceStatus, on_disk: impl FnOnce() -> Option<(u32, u64)>) -> Apart {
        let facts = status.facts.as_ref();
        if let Some(divergence) = facts.and_then(|facts| facts.divergence) {
            return Apart {
                state: "split-brain",
                extentsize: divergence.extentsize,
                here: Some(divergence.here),
                there: Some(divergence.there),
                both: Some(divergence.both),
                either: Some(divergence.either()),
                exact: Some(divergence.exact),
            };
        }
        let connected = status.worker.as_ref().is_some_and(|worker| worker.complete);
        let state = match facts {
            Some(facts) if facts.split_brain => "split-brain",
            _ if connected => "connected",
            _ => "apart",
        };
        // A primary knows better than its disk, where extents stay dirty to spare writes of the map.
        let at_work = match (status.role == Role::Primary.as_str(), &status.worker, facts) {
            (true, Some(worker), Some(facts)) => facts
                .to_synchronise_bytes
                .checked_div(worker.extentsize.into())
                .map(|extents| (worker.extentsize, extents)),
            _ => None,
        };
        // A connected secondary leaves the map to its primary.
        let here = at_work.or_else(|| if connected { None } else { on_disk() });
        let (extentsize, extents) = here.unzip();
        let apart = Apart { state, extentsize: extentsize.unwrap_or_default(), ..Apart::default() };
        // Connected, the primary's map is that of both.
        if connected { Apart { either: extents, ..apart } } else { Apart { here: extents, ..apart } }
    }

    fn lines(&self) -> String {
        let extents = |count: Option<u64>| match count {
            None => "-".to_owned(),
            Some(count) => {
                let bytes = count.saturating_mul(self.extentsize.into());
                format!("{count} extents, {bytes} ({})", human(bytes))
            }
        };
        let exact = match self.exact {
            None => "-",
            Some(true) => "yes",
            Some(false) => "unknown",
        };
        format!(
            "  state: {}\n  changed here: {}\n  changed there: {}\n  changed on both: {}\n  together: {}\n  \
             complete: {exact}\n",
            self.state,
            extents(self.here),
            extents(self.there),
            extents(self.both),
            extents(self.either),
        )
    }
}

/// The map on the provider, as far as it can be read.
fn changed_here(config: &Config, name: &str) -> Option<(u32, u64)> {
    let resource = config.resources.iter().find(|resource| resource.name == name)?;
    let provider = Provider::open(Path::new(&resource.localpath), false).ok()?;
    let metadata = provider.read_metadata_of(name).ok()?;
    let layout = Layout::open(&metadata, provider.mediasize(), provider.sectorsize()).ok()?;
    let map = provider.read_map(&layout).ok()?;
    let mut map = Bitmap::from_bytes(u32::try_from(layout.nextents()).ok()?, &map);
    for extent in metadata.extension.stale.iter().flat_map(|run| run.extents()) {
        map.insert(extent);
    }
    Some((layout.extentsize(), map.count().into()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use hast_net::control::{Divergence, Facts, WorkerStatus};

    fn status(role: &str, complete: Option<bool>, facts: Option<Facts>) -> ResourceStatus {
        let worker =
            complete.map(|complete| WorkerStatus { complete, extentsize: 4096, ..WorkerStatus::default() });
        ResourceStatus {
            provname: "disk0".to_owned(),
            localpath: "/dev/x".to_owned(),
            remoteaddr: "none".to_owned(),
            sourceaddr: None,
            replication: "memsync".to_owned(),
            checksum: "none".to_owned(),
            compression: "none".to_owned(),
            role: role.to_owned(),
            workerpid: 0,
            worker,
            facts,
            connection: None,
        }
    }

    #[test]
    fn both_maps_are_counted() {
        let divergence = Divergence { extentsize: 1 << 20, here: 3, there: 2, both: 1, exact: true };
        let facts = Facts { split_brain: true, divergence: Some(divergence), ..Facts::default() };
        let told = |facts: Facts| Apart::of(&status("secondary", None, Some(facts)), || panic!()).lines();
        let expected = "  state: split-brain
  changed here: 3 extents, 3145728 (3.0MB)
  changed there: 2 extents, 2097152 (2.0MB)
  changed on both: 1 extents, 1048576 (1.0MB)
  together: 4 extents, 4194304 (4.0MB)
  complete: yes
";
        assert_eq!(told(facts.clone()), expected);
        let divergence = Some(Divergence { exact: false, ..divergence });
        assert!(told(Facts { divergence, ..facts }).ends_with("  complete: unknown\n"));
    }

    #[test]
    fn what_nobody_knows_is_a_dash() {
        let facts = |bytes| Some(Facts { to_synchronise_bytes: bytes, ..Facts::default() });
        let apart = |status: &ResourceStatus, here| {
            let Apart { state, here, either, there: None, both: None, exact: None, .. } =
                Apart::of(status, || here)
            else {
                panic!()
            };
            (state, here, either)
        };
        let disk = Some((512, 7));
        assert_eq!(apart(&status("init", None, facts(0)), disk), ("apart", Some(7), None));
        assert_eq!(apart(&status("init", None, None), None), ("apart", None, None));
        assert_eq!(apart(&status("primary", Some(false), facts(8192)), disk), ("apart", Some(2), None));
        assert_eq!(apart(&status("primary", Some(true), facts(4096)), disk), ("connected", None, Some(1)));
        assert_eq!(apart(&status("secondary", Some(true), facts(0)), disk), ("connected", None, None));
        let split = Some(Facts { split_brain: true, ..Facts::default() });
        assert_eq!(apart(&status("secondary", None, split), disk), ("split-brain", Some(7), None));
        // An original tells no facts; its disk does.
        assert_eq!(apart(&status("primary", Some(false), None), disk), ("apart", Some(7), None));
        assert!(Apart::of(&status("init", None, None), || None).lines().contains("  changed here: -\n"));
    }
}
