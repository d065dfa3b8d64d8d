//! What lies on a provider that is about to be written over: file systems, partition tables, volumes, as those know
//! that know all of them.
//!
//! Linux: wipefs(8) of util-linux, with libblkid's knowledge. FreeBSD: fstyp(8), and what GEOM has made a partition
//! table of. Asking the programs makes no library necessary to build or to run hastctl. Where there is none, a beginning
//! that is not empty has to be something.

use std::ffi::OsStr;
use std::io;
use std::os::unix::fs::FileExt;
use std::process::{Command, Output, Stdio};

use hast_provider::Provider;

use crate::human::printable;

/// What there is.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Found {
    /// Nothing that anybody knows.
    Nothing,
    /// This, as a part of a sentence.
    These(String),
    /// Something, and this program, which would know, is not there.
    Unknown(&'static str),
}

/// Where administrators' programs are, also for a user whose PATH does not say so.
const PATH: &str = "/sbin:/usr/sbin:/bin:/usr/bin:/usr/local/sbin:/usr/local/bin";

/// Looks what is on `provider`, of which the first `length` bytes will be written over.
pub(crate) fn find(provider: &Provider, length: u64) -> Found {
    match system::find(provider) {
        Ok(kinds) if kinds.is_empty() => Found::Nothing,
        Ok(kinds) => Found::These(kinds.join(", ")),
        Err(error) => {
            log::debug!("Unable to run {}: {}.", system::TOOL, hast_log::error_text(&error));
            if is_empty(provider, length) { Found::Nothing } else { Found::Unknown(system::TOOL) }
        }
    }
}

/// Runs a program that looks at `provider` and prints what it sees. One that does not end well knows nothing.
fn run(provider: &Provider, program: &str, arguments: &[&str], operand: &OsStr) -> io::Result<Output> {
    let provider = provider.path().display();
    log::trace!("Asking {program} about {provider}.");
    let mut command = Command::new(program);
    command.args(arguments).arg(operand).stdin(Stdio::null()).stderr(Stdio::null());
    command.env("PATH", PATH).env("LC_ALL", "C").output()
}

/// Whether there are only zeros. What cannot be read is not empty.
fn is_empty(provider: &Provider, length: u64) -> bool {
    let mut piece = vec![0; 1 << 16];
    let mut offset = 0;
    while offset < length {
        match provider.as_file().read_at(&mut piece, offset) {
            Ok(0) => break,
            Ok(read) => {
                if piece.iter().take(read).any(|byte| *byte != 0) {
                    return false;
                }
                offset = offset.saturating_add(u64::try_from(read).unwrap_or(u64::MAX));
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return false,
        }
    }
    true
}

/// Each kind once, in the order of its first appearance.
fn distinct<'a>(kinds: impl Iterator<Item = &'a str>) -> Vec<String> {
    let mut found: Vec<String> = Vec::new();
    for kind in kinds.map(printable).filter(|kind| !kind.is_empty()) {
        if !found.contains(&kind) {
            found.push(kind);
        }
    }
    found
}

#[cfg(not(target_os = "freebsd"))]
mod system {
    use super::*;

    pub(super) const TOOL: &str = "wipefs";

    /// The types of all signatures, in libblkid's words: `ext4`, `gpt`, `LVM2_member`, `crypto_LUKS`.
    pub(super) fn find(provider: &Provider) -> io::Result<Vec<String>> {
        let output = run(provider, TOOL, &["--no-act", "--parsable", "--"], provider.path().as_os_str())?;
        if !output.status.success() {
            return Err(io::Error::other(output.status.to_string()));
        }
        Ok(types(&String::from_utf8_lossy(&output.stdout)))
    }

    /// Of lines `offset,uuid,label,type`, in which a label has no comma of its own.
    pub(super) fn types(text: &str) -> Vec<String> {
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        distinct(lines.filter_map(|line| line.rsplit(',').next()).map(str::trim))
    }
}

#[cfg(target_os = "freebsd")]
mod system {
    use super::*;

    pub(super) const TOOL: &str = "fstyp";

    /// A file system, or what cannot be mounted by itself: a pool's or an encrypted provider's.
    pub(super) fn find(provider: &Provider) -> io::Result<Vec<String>> {
        let output = run(provider, TOOL, &["-u"], provider.path().as_os_str())?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let mut kinds = distinct(text.lines().map(str::trim).filter(|_| output.status.success()));
        if let Some(geom) = provider.path().strip_prefix("/dev").ok().filter(|_| provider.is_device()) {
            let table = run(provider, "gpart", &["show"], geom.as_os_str())?;
            if table.status.success() {
                kinds.push("a partition table".to_owned());
            }
        }
        Ok(kinds)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn provider(bytes: &[u8]) -> (tempfile::NamedTempFile, Provider) {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(bytes).unwrap();
        file.as_file().set_len(1 << 20).unwrap();
        let provider = Provider::open(file.path(), false).unwrap();
        (file, provider)
    }

    #[test]
    fn only_zeros_are_empty() {
        let (_file, zeros) = provider(&[]);
        assert!(is_empty(&zeros, 1 << 20) && is_empty(&zeros, 2 << 20) && is_empty(&zeros, 0));
        let mut bytes = vec![0; 70_000];
        bytes[69_999] = 1;
        let (_file, one) = provider(&bytes);
        assert!(is_empty(&one, 65_536) && !is_empty(&one, 70_000));
    }

    #[cfg(not(target_os = "freebsd"))]
    #[test]
    fn a_type_is_named_once() {
        let text = "# offset,uuid,label,type\n0x200,,,gpt\n0x3ffe00,,,gpt\n0x1fe,,,PMBR\n0x438,0a-b,my\\x2cdisk,ext4\n";
        assert_eq!(system::types(text), ["gpt", "PMBR", "ext4"]);
        assert_eq!(system::types(""), [""; 0]);
    }
}
