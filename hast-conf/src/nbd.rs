//! Where a resource's NBD socket appears (spec extensions.md, "Config").

use hast_net::address::MAX_SOCKET_PATH;
use std::path::{Path, PathBuf};

/// Where NBD sockets appear unless an `nbd` statement says otherwise.
pub const DEFAULT_NBD_DIRECTORY: &str = "/var/run/hast";

/// The path of the NBD socket of a provider: `<directory>/<provider name>.sock`. A `/` in the name
/// makes subdirectories, never a way out of the directory.
///
/// # Errors
///
/// If the name has a component that is empty, `.` or `..`, or if the path has more bytes than a
/// unix socket can have on this system (107; FreeBSD: 103).
pub fn nbd_socket_path(directory: &Path, provider_name: &str) -> Result<PathBuf, NbdPathError> {
    if provider_name.contains('\0') || provider_name.split('/').any(|part| matches!(part, "" | "." | "..")) {
        return Err(NbdPathError::Component { name: provider_name.to_owned() });
    }
    let path = directory.join(format!("{provider_name}.sock"));
    let length = path.as_os_str().len();
    if length > MAX_SOCKET_PATH {
        return Err(NbdPathError::TooLong { path, length });
    }
    Ok(path)
}

/// Why a provider cannot have an NBD socket.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NbdPathError {
    /// A component of the name leads nowhere or out of the directory.
    #[error("provider name {name} has an empty, `.` or `..` component and cannot become a socket path")]
    Component {
        /// The provider name.
        name: String,
    },
    /// The system cannot bind a path of this length.
    #[error(
        "NBD socket path {} has {length} bytes, this system takes at most {MAX_SOCKET_PATH}",
        path.display()
    )]
    TooLong {
        /// The path.
        path: PathBuf,
        /// Its bytes.
        length: usize,
    },
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn names_become_paths() {
        let path = |name| nbd_socket_path(Path::new("/var/run/hast"), name).unwrap();
        assert_eq!(path("disk0"), Path::new("/var/run/hast/disk0.sock"));
        assert_eq!(path("vm/a/..b"), Path::new("/var/run/hast/vm/a/..b.sock"));
        assert_eq!(nbd_socket_path(Path::new("/n/"), "a").unwrap(), Path::new("/n/a.sock"));
    }

    #[test]
    fn names_cannot_leave_the_directory() {
        for name in ["..", "../x", "a/../../x", "a/..", ".", "a/./b", "/etc/x", "a//b", "a/", "", "a\0b"] {
            let error = NbdPathError::Component { name: name.to_owned() };
            assert_eq!(nbd_socket_path(Path::new("/d"), name), Err(error), "{name}");
        }
    }

    #[test]
    fn the_limit_is_the_systems() {
        let name = "n".repeat(MAX_SOCKET_PATH - "/d/.sock".len());
        assert!(nbd_socket_path(Path::new("/d"), &name).is_ok());
        let error = nbd_socket_path(Path::new("/d"), &format!("{name}n")).unwrap_err();
        assert!(matches!(error, NbdPathError::TooLong { length, .. } if length == MAX_SOCKET_PATH + 1));
    }

    proptest! {
        #[test]
        fn every_path_is_below_the_directory(name in "[a./]{0,12}|.*") {
            if let Ok(path) = nbd_socket_path(Path::new("/d"), &name) {
                prop_assert!(path.starts_with("/d"));
                prop_assert!(path.components().all(|c| c != std::path::Component::ParentDir));
            }
        }
    }
}
