//! Whether a program is one that FreeBSD runs: what its ELF file says.

use std::fmt;
use std::path::Path;

use super::linker::OS_ABI;
use super::{Arch, Failure, at};

/// FreeBSD's dynamic linker.
const INTERPRETER: &str = "/libexec/ld-elf.so.1";
/// What every FreeBSD has without packages, and our programs may need.
const BASE_SYSTEM: &[&str] = &[
    "libc.so.7",
    "libthr.so.3",
    "libm.so.5",
    "libgcc_s.so.1",
    "libexecinfo.so.1",
    "librt.so.1",
    "libutil.so.9",
];

const MACHINE_X86_64: u16 = 62;
const MACHINE_AARCH64: u16 = 183;
const PROGRAM_DYNAMIC: u32 = 2;
const PROGRAM_INTERPRETER: u32 = 3;
const PROGRAM_NOTE: u32 = 4;
const PROGRAM_LOAD: u32 = 1;
const DYNAMIC_NEEDED: u64 = 1;
const DYNAMIC_STRINGS: u64 = 5;
/// The note that says for which release a program is.
const NOTE_RELEASE: u32 = 1;
const NOTE_OWNER: &[u8] = b"FreeBSD\0";

/// What a program says about itself.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct About {
    os_abi: u8,
    machine: u16,
    interpreter: Option<String>,
    /// As in `__FreeBSD_version`.
    release: Option<u32>,
    needed: Vec<String>,
}

impl fmt::Display for About {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "for FreeBSD {}, needs {}", self.release.unwrap_or_default(), self.needed.join(" "))
    }
}

/// Reads what the program says, and refuses what FreeBSD would not run.
pub(super) fn program(path: &Path, arch: Arch) -> Result<About, Failure> {
    let bytes = std::fs::read(path).map_err(at(path))?;
    let about = About::read(&bytes).ok_or_else(|| format!("{}: no 64-bit ELF program", path.display()))?;
    about.check(arch).map_err(|what| format!("{}: {what}", path.display()))?;
    Ok(about)
}

impl About {
    fn read(bytes: &[u8]) -> Option<About> {
        // 64 bits, little-endian.
        if bytes.get(..6)? != b"\x7fELF\x02\x01" {
            return None;
        }
        let segments = segments(bytes)?;
        let os_abi = *bytes.get(usize::try_from(OS_ABI.0).ok()?)?;
        let mut about = About { os_abi, machine: u16_at(bytes, 18)?, ..About::default() };
        for segment in &segments {
            let content = segment.content(bytes)?;
            match segment.kind {
                PROGRAM_INTERPRETER => about.interpreter = Some(text(content, 0)?),
                PROGRAM_NOTE => about.release = about.release.or_else(|| release(content)),
                PROGRAM_DYNAMIC => about.needed = needed(bytes, &segments, content)?,
                _ => {}
            }
        }
        Some(about)
    }

    fn check(&self, arch: Arch) -> Result<(), String> {
        let machine = match arch {
            Arch::X86_64 => MACHINE_X86_64,
            Arch::Aarch64 => MACHINE_AARCH64,
        };
        if self.machine != machine {
            return Err(format!("is for processor {}, not {machine}", self.machine));
        }
        if self.os_abi != OS_ABI.1 {
            return Err(format!("is for system {}, not {}", self.os_abi, OS_ABI.1));
        }
        if self.interpreter.as_deref() != Some(INTERPRETER) {
            return Err(format!("is started by {:?}, not {INTERPRETER}", self.interpreter));
        }
        if self.release.is_none() {
            return Err("has no note that says for which release it is".to_owned());
        }
        match self.needed.iter().find(|library| !BASE_SYSTEM.contains(&library.as_str())) {
            Some(library) => Err(format!("needs {library}, which is not in the base system")),
            None => Ok(()),
        }
    }
}

/// A part of the program as it is loaded.
struct Segment {
    kind: u32,
    offset: u64,
    address: u64,
    length: u64,
}

impl Segment {
    fn content<'a>(&self, bytes: &'a [u8]) -> Option<&'a [u8]> {
        let start = usize::try_from(self.offset).ok()?;
        bytes.get(start..start.checked_add(usize::try_from(self.length).ok()?)?)
    }
}

fn segments(bytes: &[u8]) -> Option<Vec<Segment>> {
    let (table, size, count) = (u64_at(bytes, 32)?, u16_at(bytes, 54)?, u16_at(bytes, 56)?);
    (0..u64::from(count))
        .map(|number| {
            let at = usize::try_from(table.checked_add(number.checked_mul(size.into())?)?).ok()?;
            let header = bytes.get(at..)?;
            Some(Segment {
                kind: u32_at(header, 0)?,
                offset: u64_at(header, 8)?,
                address: u64_at(header, 16)?,
                length: u64_at(header, 32)?,
            })
        })
        .collect()
}

/// The release in FreeBSD's note, if it is among these.
fn release(mut notes: &[u8]) -> Option<u32> {
    let padded = |length: u32| usize::try_from(length.checked_next_multiple_of(4)?).ok();
    loop {
        let (name, description, kind) = (u32_at(notes, 0)?, u32_at(notes, 4)?, u32_at(notes, 8)?);
        let rest = notes.get(12..)?;
        let (owner, rest) = rest.split_at_checked(padded(name)?)?;
        if kind == NOTE_RELEASE && owner == NOTE_OWNER {
            return u32_at(rest, 0);
        }
        notes = rest.get(padded(description)?..)?;
    }
}

/// The libraries in the dynamic section.
fn needed(bytes: &[u8], segments: &[Segment], dynamic: &[u8]) -> Option<Vec<String>> {
    let entries =
        || dynamic.chunks_exact(16).filter_map(|entry| Some((u64_at(entry, 0)?, u64_at(entry, 8)?)));
    let (_, address) = entries().find(|(tag, _)| *tag == DYNAMIC_STRINGS)?;
    let within = |segment: &&Segment| {
        segment.kind == PROGRAM_LOAD
            && address.checked_sub(segment.address).is_some_and(|offset| offset < segment.length)
    };
    let segment = segments.iter().find(within)?;
    let strings = segment.content(bytes)?.get(usize::try_from(address - segment.address).ok()?..)?;
    let libraries = entries().filter(|(tag, _)| *tag == DYNAMIC_NEEDED);
    libraries.map(|(_, name)| text(strings, usize::try_from(name).ok()?)).collect()
}

fn text(bytes: &[u8], at: usize) -> Option<String> {
    let bytes = bytes.get(at..)?.split(|byte| *byte == 0).next()?;
    String::from_utf8(bytes.to_vec()).ok()
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn good() -> About {
        About {
            os_abi: 9,
            machine: MACHINE_X86_64,
            interpreter: Some(INTERPRETER.into()),
            release: Some(1_400_097),
            needed: vec!["libc.so.7".into(), "libthr.so.3".into()],
        }
    }

    #[test]
    fn each_thing_that_freebsd_would_not_run_is_refused() {
        assert_eq!(good().check(Arch::X86_64), Ok(()));
        assert!(good().check(Arch::Aarch64).is_err());
        let bad = [
            About { os_abi: 0, ..good() },
            About { interpreter: Some("/lib64/ld-linux-x86-64.so.2".into()), ..good() },
            About { interpreter: None, ..good() },
            About { release: None, ..good() },
            About { needed: vec!["libc.so.6".into()], ..good() },
        ];
        for about in bad {
            assert!(about.check(Arch::X86_64).is_err(), "{about:?}");
        }
    }

    /// This test itself is a program for another system, and read as such.
    #[test]
    fn a_program_of_this_system_is_none_of_freebsds() {
        let path = std::env::current_exe().unwrap();
        if cfg!(all(target_os = "linux", target_arch = "x86_64")) {
            let about = About::read(&std::fs::read(&path).unwrap()).unwrap();
            assert!(about.needed.contains(&"libc.so.6".to_owned()), "{about:?}");
            assert_eq!((about.release, about.machine), (None, MACHINE_X86_64));
            assert!(program(&path, Arch::X86_64).is_err());
        }
        assert!(program(Path::new("/dev/null"), Arch::X86_64).is_err());
        assert_eq!(About::read(b"\x7fELF\x02\x01"), None);
    }

    #[test]
    fn the_note_is_found_among_others() {
        let note = |owner: &[u8; 8], kind: u32, release: u32| {
            let head = [8_u32.to_le_bytes(), 4_u32.to_le_bytes(), kind.to_le_bytes()].concat();
            [&head[..], owner, &release.to_le_bytes()].concat()
        };
        let notes = [note(b"FreeBSD\0", 2, 5), note(b"Another\0", 1, 6), note(b"FreeBSD\0", 1, 7)].concat();
        assert_eq!(release(&notes), Some(7));
        assert_eq!(release(&notes[..48]), None);
    }
}
