//! Who uses a primary's device: NBD clients, as hastd knows them, on Linux what lies on the block device that is
//! linked as `/dev/hast/<name>`, and on FreeBSD what GEOM has open of it.
//!
//! Owns the looking and the words. Whatever cannot be found out is left out; nothing here is an error.

use std::path::Path;

use hast_net::control::ResourceStatus;

use crate::human::printable;

/// Everybody who uses the device of a primary, one phrase each.
pub(crate) fn users(status: &ResourceStatus) -> Vec<String> {
    let clients = status.facts.iter().flat_map(|facts| &facts.clients);
    let mut found: Vec<String> = clients.map(|pid| client(*pid)).collect();
    found.extend(holders(Path::new(DEVICES), &status.provname));
    found
}

/// Where hast-failover, or the administrator, links block devices.
pub(crate) const DEVICES: &str = "/dev/hast";

fn client(pid: u32) -> String {
    if pid == 0 {
        return "an NBD client".to_owned();
    }
    format!("NBD client {}", named(pid))
}

/// A process by its number and, if it lives, its name.
fn named(pid: u32) -> String {
    match std::fs::read_to_string(format!("/proc/{pid}/comm")) {
        Ok(name) => format!("{pid} ({})", printable(name.trim_end())),
        Err(_) => pid.to_string(),
    }
}

/// What lies on the block device that is linked as `name` in `devices`: file systems by their mount points, and
/// devices built on it; and who has it open.
#[cfg(target_os = "linux")]
fn holders(devices: &Path, name: &str) -> Vec<String> {
    use std::os::unix::fs::{FileTypeExt, MetadataExt};

    if hast_conf::nbd_socket_path(devices, name).is_err() {
        return Vec::new(); // no name of a file below it
    }
    let link = devices.join(name);
    let Ok(metadata) = std::fs::metadata(&link) else { return Vec::new() };
    if !metadata.file_type().is_block_device() {
        return Vec::new();
    }
    let (major, minor) = (nix::sys::stat::major(metadata.rdev()), nix::sys::stat::minor(metadata.rdev()));
    let number = format!("{major}:{minor}");
    let shown = printable(&std::fs::canonicalize(&link).unwrap_or(link).to_string_lossy());
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let mut found: Vec<String> =
        mounted(&mounts, &number).map(|point| format!("{shown}, mounted on {}", printable(point))).collect();
    let above = std::fs::read_dir(format!("/sys/dev/block/{number}/holders")).into_iter().flatten().flatten();
    found.extend(
        above.map(|device| format!("{shown}, below {}", printable(&device.file_name().to_string_lossy()))),
    );
    let openers = openers(Path::new("/proc"), Path::new(&shown));
    found.extend(openers.into_iter().map(|pid| format!("{shown}, open in process {}", named(pid))));
    found
}

/// The processes that have `node` open, as far as `proc` shows them to who asks.
#[cfg(target_os = "linux")]
fn openers(proc: &Path, node: &Path) -> Vec<u32> {
    let entries = |path: &Path| std::fs::read_dir(path).into_iter().flatten().flatten();
    let processes = entries(proc).filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let mut found: Vec<u32> = processes
        .filter(|pid| {
            // What a link says is enough: to follow it might take long.
            entries(&proc.join(format!("{pid}/fd")))
                .any(|file| std::fs::read_link(file.path()).is_ok_and(|target| target == node))
        })
        .collect();
    found.sort_unstable();
    found
}

/// What GEOM has open of the provider `name`: file systems, what lies on it, or its node.
#[cfg(target_os = "freebsd")]
fn holders(_: &Path, name: &str) -> Vec<String> {
    let name = format!("hast/{name}");
    let confxml = hast_ggate::confxml().unwrap_or_default();
    let users = hast_ggate::geom::users(&confxml, &name);
    let text =
        |user: hast_ggate::geom::User<'_>| format!("{} {}", printable(user.class), printable(user.geom));
    users.into_iter().map(|user| format!("/dev/{}, open in {}", printable(&name), text(user))).collect()
}

#[cfg(not(any(target_os = "linux", target_os = "freebsd")))]
fn holders(_: &Path, _: &str) -> Vec<String> {
    Vec::new()
}

/// The mount points of a device, `major:minor`, in the text of /proc/self/mountinfo.
#[cfg(target_os = "linux")]
fn mounted<'a>(mountinfo: &'a str, number: &'a str) -> impl Iterator<Item = &'a str> {
    mountinfo.lines().filter_map(move |line| {
        let mut words = line.split(' ').skip(2);
        (words.next() == Some(number)).then(|| words.nth(1)).flatten()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_has_a_number_and_if_it_lives_a_name() {
        assert_eq!(client(0), "an NBD client");
        assert_eq!(client(u32::MAX), format!("NBD client {}", u32::MAX));
        if cfg!(target_os = "linux") {
            let pid = std::process::id();
            assert!(client(pid).starts_with(&format!("NBD client {pid} (")), "{}", client(pid));
        }
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn mount_points_are_found_by_the_device() {
        let text = "22 1 0:21 / /proc rw - proc proc rw\n\
                    31 1 7:0 / /srv/a\\040b rw,noatime shared:1 - ext4 /dev/loop0 rw\n\
                    32 1 7:0 /x /mnt rw - ext4 /dev/loop0 rw\n\
                    33 1 7:01 / /no rw - ext4 /dev/loop1 rw\n";
        let found: Vec<&str> = mounted(text, "7:0").collect();
        assert_eq!(found, ["/srv/a\\040b", "/mnt"]);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn who_has_a_device_open_is_found_by_its_files() {
        let proc = tempfile::tempdir().unwrap();
        for (process, target) in
            [("12", "/dev/ublkb1"), ("3", "/dev/ublkb1"), ("4", "/dev/ublkb10"), ("self", "/dev/ublkb1")]
        {
            let files = proc.path().join(process).join("fd");
            std::fs::create_dir_all(&files).unwrap();
            std::os::unix::fs::symlink("/dev/null", files.join("0")).unwrap();
            std::os::unix::fs::symlink(target, files.join("3")).unwrap();
        }
        std::fs::create_dir(proc.path().join("5")).unwrap(); // somebody else's
        assert_eq!(openers(proc.path(), Path::new("/dev/ublkb1")), [3, 12]);
        assert_eq!(openers(proc.path(), Path::new("/dev/nbd0")), [0; 0]);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn what_is_no_block_device_is_held_by_nobody() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("disk0"), "").unwrap();
        for name in ["disk0", "disk1", "../etc", ""] {
            assert!(holders(directory.path(), name).is_empty(), "{name}");
        }
    }
}
