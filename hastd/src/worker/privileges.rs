//! Giving up root: a worker that has its disk and its sockets needs no rights to anything else.
//!
//! Owns the one-way change to the unprivileged user. Everything that must be opened by path (the
//! system log, above all) has to be open before.

use std::io;
use std::path::{Path, PathBuf};

use nix::unistd::{
    Gid, Uid, User, chdir, chroot, getegid, geteuid, getgroups, getuid, setgid, setgroups, setuid,
};

/// The user that workers run as.
pub(super) const USER: &str = "hast";

/// Why a worker could not give up its privileges; it must not go on with them.
#[derive(Debug, thiserror::Error)]
pub(super) enum PrivilegesError {
    /// The account data base could not be read.
    #[error("Unable to look up user {user}: {}.", hast_log::error_text(.error))]
    Lookup { user: String, error: io::Error },
    /// One of the steps was refused.
    #[error("Unable to drop privileges to user {user}: {step}: {}.", hast_log::error_text(.error))]
    Step { user: String, step: String, error: io::Error },
    /// All steps succeeded and yet something of root is left.
    #[error("Privileges of user {user} were asked for, but {left}.")]
    Left { user: String, left: &'static str },
}

/// Becomes user [`USER`], confined to its home directory, if this process is root and the user exists: in a
/// jail of its own where there are jails, which is called `title`. Returns whether anything was dropped.
pub(super) fn drop_privileges(title: &str) -> Result<bool, PrivilegesError> {
    if !geteuid().is_root() {
        return Ok(false);
    }
    let found = User::from_name(USER)
        .map_err(|error| PrivilegesError::Lookup { user: USER.to_owned(), error: error.into() })?;
    let Some(user) = found else { return Ok(false) };
    Account { name: user.name, uid: user.uid, gid: user.gid, root: user.dir }.become_it(title)?;
    Ok(true)
}

/// Whom to become, and where.
struct Account {
    name: String,
    uid: Uid,
    gid: Gid,
    /// The directory that becomes the root of the file system.
    root: PathBuf,
}

impl Account {
    fn become_it(&self, title: &str) -> Result<(), PrivilegesError> {
        let step = |step: &str, result: nix::Result<()>| {
            result.map_err(|error| PrivilegesError::Step {
                user: self.name.clone(),
                step: step.to_owned(),
                error: error.into(),
            })
        };
        let jailed = jail::enter(&self.root, title).unwrap_or_else(|error| {
            // None may be allowed where hastd itself runs in one.
            log::debug!(
                "Unable to make a jail in {}: {}.",
                self.root.display(),
                hast_log::error_text(&error)
            );
            false
        });
        if !jailed {
            step(&format!("change root directory to {}", self.root.display()), chroot(&self.root))?;
        }
        step("change directory to /", chdir(Path::new("/")))?;
        step("set groups", setgroups(&[self.gid]))?;
        step("set group", setgid(self.gid))?;
        step("set user", setuid(self.uid))?;
        self.verify()
    }

    /// Looks at what the process is now, and tries to get root back.
    fn verify(&self) -> Result<(), PrivilegesError> {
        let left = if getuid() != self.uid || geteuid() != self.uid {
            Some("the process runs as another user")
        } else if getegid() != self.gid {
            Some("the process runs with another group")
        } else if getgroups().is_ok_and(|groups| groups.iter().any(|group| *group != self.gid)) {
            Some("the process is still member of other groups")
        } else if !self.uid.is_root() && setuid(Uid::from_raw(0)).is_ok() {
            Some("root can be had back")
        } else {
            None
        };
        match left {
            Some(left) => Err(PrivilegesError::Left { user: self.name.clone(), left }),
            None => Ok(()),
        }
    }
}

#[cfg(target_os = "freebsd")]
mod jail {
    use std::ffi::CString;
    use std::io;
    use std::os::unix::ffi::OsStrExt;
    use std::path::Path;
    use std::ptr;

    /// Makes a jail without addresses, whose root directory is `root`, and goes there.
    pub(super) fn enter(root: &Path, title: &str) -> io::Result<bool> {
        let path = CString::new(root.as_os_str().as_bytes())?;
        let hostname = CString::new(title)?;
        let mut jail = libc::jail {
            version: libc::JAIL_API_VERSION,
            path: path.as_ptr().cast_mut(),
            hostname: hostname.as_ptr().cast_mut(),
            jailname: ptr::null_mut(),
            ip4s: 0,
            ip6s: 0,
            ip4: ptr::null_mut(),
            ip6: ptr::null_mut(),
        };
        // SAFETY: the structure is this version's; its texts end with NUL, outlive the call and are only read;
        // a jail may have no name, and there are no addresses behind the pointers that are null.
        let result = unsafe { libc::jail(&raw mut jail) };
        if result == -1 { Err(io::Error::last_os_error()) } else { Ok(true) }
    }
}

#[cfg(not(target_os = "freebsd"))]
mod jail {
    use std::io;
    use std::path::Path;

    /// There are none.
    pub(super) fn enter(_: &Path, _: &str) -> io::Result<bool> {
        Ok(false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    const ROLE: &str = "HASTD_TEST_PRIVILEGES";

    fn nobody(root: &Path) -> Account {
        Account {
            name: "nobody".into(),
            uid: Uid::from_raw(65_534),
            gid: Gid::from_raw(65_534),
            root: root.into(),
        }
    }

    /// The change cannot be undone, so it happens in a copy of the test program. Without root the same
    /// call has to be refused at the first step.
    #[test]
    fn the_process_is_confined_and_cannot_come_back() {
        if let Some(root) = std::env::var_os(ROLE) {
            let outcome = nobody(Path::new(&root)).become_it("hastd: test (primary)");
            let code = match outcome {
                Ok(()) if Path::new("/only-here").exists() && !Path::new("/etc").exists() => 10,
                Ok(()) => 11,
                Err(PrivilegesError::Step { .. }) => 12,
                Err(_) => 13,
            };
            std::process::exit(code);
        }
        let root = tempfile::tempdir().unwrap();
        std::fs::write(root.path().join("only-here"), b"").unwrap();
        let name = "worker::privileges::tests::the_process_is_confined_and_cannot_come_back";
        let status = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", name, "--test-threads=1"])
            .env(ROLE, root.path())
            .status()
            .unwrap();
        let expected = if geteuid().is_root() { 10 } else { 12 };
        assert_eq!(status.code(), Some(expected));
    }

    #[test]
    fn nothing_happens_for_a_user_that_is_not_root() {
        if !geteuid().is_root() {
            assert!(!drop_privileges("hastd: test (primary)").unwrap());
        } else if User::from_name(USER).unwrap().is_none() {
            assert!(!drop_privileges("hastd: test (primary)").unwrap());
            assert!(geteuid().is_root());
        }
    }
}
