//! `cargo xtask freebsd crates`: the crates that the port in `dist/freebsd/port` fetches, from Cargo.lock.
//!
//! They are all of them: cargo resolves the whole workspace before it builds hastd and hastctl, and fails if a
//! crate that Cargo.lock names is missing, even one that only a test has.

use std::path::PathBuf;

use super::{Failure, at, root};

const LIST: &str = "dist/freebsd/port/Makefile.crates";

/// Writes the port's list anew.
pub(super) fn write_crates() -> Result<(), Failure> {
    let path = list();
    std::fs::write(&path, current()?).map_err(at(&path))?;
    println!("{LIST} is as Cargo.lock says.");
    Ok(())
}

fn list() -> PathBuf {
    root().join(LIST)
}

/// The list as it should be.
fn current() -> Result<String, Failure> {
    let lock = root().join("Cargo.lock");
    let text = std::fs::read_to_string(&lock).map_err(at(&lock))?;
    let crates = crates(&text).map_err(|why| format!("{}: {why}", lock.display()))?;
    Ok(format!(
        "# Written by `cargo xtask freebsd crates` from Cargo.lock.\nCARGO_CRATES=\t{}\n",
        crates.join(" \\\n\t\t")
    ))
}

/// Name and version of everything that a registry has, as bsd.port.mk wants it, in Cargo.lock's order.
fn crates(lock: &str) -> Result<Vec<String>, Failure> {
    let mut found = Vec::new();
    for package in lock.split("[[package]]").skip(1) {
        let value = |key: &str| {
            let line = package.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(" = \""));
            line.and_then(|line| line.strip_suffix('"'))
        };
        let (Some(name), Some(version)) = (value("name"), value("version")) else {
            return Err(format!("a package without name or version:{package}"));
        };
        match value("source") {
            None => {}
            Some(source) if source.starts_with("registry+") => found.push(format!("{name}-{version}")),
            Some(source) => return Err(format!("{name} comes from {source}: the port fetches crates only")),
        }
    }
    if found.is_empty() { Err("no crates".to_owned()) } else { Ok(found) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ports_crates_are_those_of_cargo_lock() {
        let written = std::fs::read_to_string(list()).unwrap();
        assert_eq!(written, current().unwrap(), "run `cargo xtask freebsd crates`");
    }

    #[test]
    fn only_what_a_registry_has_is_fetched() {
        let package = |name: &str, source: &str| {
            format!(
                "[[package]]\nname = \"{name}\"\nversion = \"1.2.3\"\n{source}dependencies = [\n \"libc\",\n]\n"
            )
        };
        let ours = package("hastd", "");
        let theirs = package("a-b", "source = \"registry+https://example.org\"\n");
        assert_eq!(crates(&format!("version = 4\n\n{ours}\n{theirs}")), Ok(vec!["a-b-1.2.3".to_owned()]));
        assert!(crates(&package("c", "source = \"git+https://example.org#1\"\n")).is_err());
        assert!(crates(&format!("{ours}[[package]]\nname = \"d\"\n")).is_err());
        assert!(crates(&ours).is_err());
    }

    /// Every file that the port installs from the source is there, and the packing list has each under its name.
    #[test]
    fn the_port_installs_what_is_there() {
        let directory = root().join("dist/freebsd/port");
        let makefile = std::fs::read_to_string(directory.join("Makefile")).unwrap();
        let plist = std::fs::read_to_string(directory.join("pkg-plist")).unwrap();
        let listed: Vec<&str> = plist.lines().map(|line| line.rsplit(['/', ' ']).next().unwrap()).collect();
        let mut installed = Vec::new();
        let (_, rules) = makefile.split_once("do-install:").unwrap();
        for word in rules.split_whitespace() {
            let Some((_, path)) = word.split_once("${WRKSRC}/") else { continue };
            assert!(root().join(path).is_file(), "{path}");
            let name = path.rsplit('/').next().unwrap();
            installed.push(if path.starts_with("docs/man/") {
                format!("{name}.gz")
            } else {
                name.to_owned()
            });
        }
        for program in ["hastd", "hastctl", "hast-failover"] {
            assert!(
                rules.contains(&format!("${{CARGO_TARGET_DIR}}/${{CARGO_BUILD_TARGET}}/release/{program} "))
            );
            installed.push(program.to_owned());
        }
        for name in &installed {
            assert!(listed.contains(&name.as_str()), "{name} is installed and not in pkg-plist");
        }
        for name in &listed {
            assert!(installed.iter().any(|file| file == name), "{name} is in pkg-plist and not installed");
        }
    }
}
