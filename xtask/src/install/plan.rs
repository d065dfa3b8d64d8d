//! What is installed, and where: nothing but a list, so that it can be shown, tested and removed again.

use std::path::{Path, PathBuf};

use crate::release::PROGRAMS;

/// Whose ways are followed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum System {
    Linux,
    FreeBsd,
}

impl System {
    pub(super) const HERE: System = if cfg!(target_os = "freebsd") { System::FreeBsd } else { System::Linux };
}

/// One file.
#[derive(Debug, PartialEq)]
pub(super) struct Item {
    pub(super) from: Source,
    /// Below `/`, or below the directory that stands for it.
    pub(super) to: PathBuf,
    pub(super) mode: u32,
}

#[derive(Debug, PartialEq)]
pub(super) enum Source {
    /// Built, and in the directory that has them; everything else lies in the repository.
    Program(&'static str),
    /// As it is.
    File(&'static str),
    /// With the prefix put in where it says `/usr/local` or `%%PREFIX%%`.
    Text(&'static str),
}

const DATA: u32 = 0o644;
const EXECUTABLE: u32 = 0o755;

const MANUALS: [(&str, &str); 4] = [
    ("share/man/man5", "docs/man/hast.conf.5"),
    ("share/man/man8", "docs/man/hastd.8"),
    ("share/man/man8", "docs/man/hastctl.8"),
    ("share/man/man8", "docs/man/hast-failover.8"),
];
const EXAMPLES: [&str; 2] = ["dist/hast.conf.sample", "dist/hast-failover.conf.sample"];
const DOCUMENTS: [&str; 3] = ["README.md", "docs/failover.md", "docs/troubleshooting.md"];
const SCRIPTS: [&str; 4] =
    ["dist/keepalived/hast-notify", "dist/ucarp/hast-ucarp", "dist/ucarp/vip-up", "dist/ucarp/vip-down"];
const UNITS: [&str; 3] =
    ["dist/systemd/hastd.service", "dist/systemd/hast-failover.service", "dist/systemd/hast-ucarp@.service"];
const FREEBSD_EXAMPLES: [&str; 3] =
    ["dist/carp/hast.devd.conf", "dist/freebsd/examples/newsyslog.conf", "dist/freebsd/examples/syslog.conf"];

/// Every file, for a prefix such as `/usr/local`.
pub(super) fn plan(system: System, prefix: &Path) -> Vec<Item> {
    let within = |directory: &str, from: Source, mode| {
        let (Source::Program(path) | Source::File(path) | Source::Text(path)) = from;
        let name = Path::new(path).file_name().unwrap_or_default();
        Item { to: prefix.join(directory).join(name), from, mode }
    };
    let mut items: Vec<Item> = PROGRAMS.map(|name| within("sbin", Source::Program(name), EXECUTABLE)).into();
    items.extend(MANUALS.map(|(directory, page)| within(directory, Source::File(page), DATA)));
    items.extend(EXAMPLES.map(|file| within("share/examples/hast", Source::File(file), DATA)));
    items.extend(DOCUMENTS.map(|file| within("share/doc/hast", Source::File(file), DATA)));
    items.extend(SCRIPTS.map(|script| within("libexec/hast", Source::Text(script), EXECUTABLE)));
    match system {
        System::Linux => {
            items.extend(UNITS.map(|unit| within("lib/systemd/system", Source::Text(unit), DATA)));
            items.push(within("lib/ocf/resource.d/hast", Source::Text("dist/ocf/resource"), EXECUTABLE));
        }
        System::FreeBsd => {
            items.push(within("libexec/hast", Source::Text("dist/carp/carp-notify"), EXECUTABLE));
            items
                .extend(FREEBSD_EXAMPLES.map(|file| within("share/examples/hast", Source::Text(file), DATA)));
            let to = prefix.join("etc/rc.d/hastd");
            items.push(Item { from: Source::Text("dist/freebsd/port/files/hastd.in"), to, mode: EXECUTABLE });
        }
    }
    items
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paths(system: System, prefix: &str) -> Vec<String> {
        plan(system, Path::new(prefix)).iter().map(|item| item.to.display().to_string()).collect()
    }

    #[test]
    fn each_system_gets_what_starts_it() {
        let linux = paths(System::Linux, "/usr/local");
        for path in [
            "/usr/local/sbin/hastd",
            "/usr/local/sbin/hastctl",
            "/usr/local/sbin/hast-failover",
            "/usr/local/share/man/man5/hast.conf.5",
            "/usr/local/share/man/man8/hastctl.8",
            "/usr/local/lib/systemd/system/hastd.service",
            "/usr/local/libexec/hast/hast-notify",
            "/usr/local/share/examples/hast/hast.conf.sample",
        ] {
            assert!(linux.iter().any(|found| found == path), "{path}");
        }
        let freebsd = paths(System::FreeBsd, "/usr/local");
        assert!(freebsd.contains(&"/usr/local/etc/rc.d/hastd".to_owned()));
        assert!(freebsd.contains(&"/usr/local/libexec/hast/carp-notify".to_owned()));
        assert!(!freebsd.iter().any(|path| path.contains("systemd")));
        assert!(!linux.iter().any(|path| path.contains("rc.d") || path.contains("carp-notify")));
    }

    #[test]
    fn nothing_lies_outside_the_prefix_or_twice() {
        for system in [System::Linux, System::FreeBsd] {
            let mut paths = paths(system, "/opt/hast");
            let count = paths.len();
            paths.sort();
            paths.dedup();
            assert_eq!(paths.len(), count);
            assert!(paths.iter().all(|path| path.starts_with("/opt/hast/")));
        }
    }

    /// Whatever is added to `dist` is installed, or is one of these.
    #[test]
    fn nothing_in_dist_is_forgotten() {
        let repository = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
        let mut known: Vec<String> = [System::Linux, System::FreeBsd]
            .into_iter()
            .flat_map(|system| plan(system, Path::new("/")))
            .map(|item| match item.from {
                Source::Program(_) => String::new(),
                Source::File(path) | Source::Text(path) => path.to_owned(),
            })
            .collect();
        // It runs what was built in the checkout.
        known.push("dist/hast-failover".to_owned());
        let mut directories = vec![repository.join("dist")];
        while let Some(directory) = directories.pop() {
            for entry in std::fs::read_dir(directory).unwrap() {
                let path = entry.unwrap().path();
                let name = path.strip_prefix(repository).unwrap().display().to_string();
                if path.is_dir() {
                    directories.push(path);
                } else {
                    assert!(known.contains(&name) || name.starts_with("dist/freebsd/port/"), "{name}");
                }
            }
        }
    }
}
